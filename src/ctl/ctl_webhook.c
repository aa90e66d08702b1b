/*
 * ctl_webhook - webhook endpoints, those of the configuration and those of the API: how they do, a test
 * event, switching on again; and making or removing one of the API for an application.
 *
 * An endpoint of the configuration is named by its name ("config:" and that is its id in the database), one
 * of the API by its UUID. A test event goes through the outbox like any other, so that what is tested is the
 * whole way. A new secret is printed once, on stdout; all words about it go to stderr.
 */
#include "ctl/ctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "service/vault_ops.h"
#include "service/vault_webhook.h"
#include "service/webhook_keys.h"
#include "service/webhook_rules.h"

#define LOOK_US (US_PER_S / 5)
#define TEST_TIMEOUT_US (30 * US_PER_S)
#define SEALED_MAX 2048
#define TEXT_MAX ((size_t)64 * 1024)

/* ---------------------------------------------------------------- which one */

struct endpoint {
	const struct conf_webhook *conf; /* NULL: one of the API */
	char *name, *id, *application;   /* the name of one of the API is its id */
};

static void endpoint_fini(struct endpoint *e)
{
	mem_free(e->name);
	mem_free(e->id);
	mem_free(e->application);
}

static const struct conf_webhook *find_webhook(const struct conf *c, const char *name)
{
	for (size_t i = 0; i < c->n_webhooks; i++)
		if (strcmp(c->webhooks[i].name, name) == 0)
			return &c->webhooks[i];
	return NULL;
}

static int on_found(void *arg, const struct vault_hook *h)
{
	struct endpoint *e = arg;
	e->name = mem_strdup(h->endpoint_id);
	e->id = mem_strdup(h->endpoint_id);
	e->application = mem_strdup(h->application_id);
	return 0;
}

/* CTL_OK, or CTL_FAILURE with nothing to free. */
static int find_endpoint(struct ctl *c, const char *what, const char *name, struct endpoint *e)
{
	struct fault f = {0};
	uint8_t raw[16];
	char id[STR_UUID_BYTES];
	*e = (struct endpoint){.conf = find_webhook(c->conf, name)};
	if (e->conf != NULL) {
		e->name = mem_strdup(name);
		e->id = mem_printf("config:%s", name);
		e->application = mem_strdup(e->conf->application);
		return CTL_OK;
	}
	if (str_parse_uuid(name, strlen(name), raw) != 0)
		return ctl_complain("webhook %s: there is no endpoint '%.80s' in the configuration, and an "
				    "endpoint of the API is named by its id: refreshctl webhook list",
			what, name);
	str_format_uuid(raw, id);
	if (vault_hooks(c->pg, id, on_found, e, &f) != 0) {
		endpoint_fini(e);
		return ctl_complain("webhook %s: %s", what, f.text);
	}
	return e->id != NULL ? CTL_OK
			     : ctl_complain("webhook %s: there is no endpoint %s: refreshctl webhook list",
				       what, id);
}

/* ---------------------------------------------------------------- list */

static const char *endpoint_state(const struct vault_endpoint *e)
{
	if (e->disabled_at != 0)
		return "switched off";
	if (e->failing_since != 0)
		return "failing";
	return e->last_success_at != 0 ? "ok" : "unused";
}

/* What both kinds have to show. */
struct shown {
	const char *name, *id, *kind, *application, *url, *description;
	const char *events; /* separated by blanks */
	int64_t created_at;
	const struct vault_endpoint *how;
};

static void json_events(struct jsonw *w, const char *events)
{
	jsonw_array(w, "events");
	for (const char *p = events; *p != '\0';) {
		size_t n = strcspn(p, " ");
		jsonw_strn(w, NULL, p, n);
		p += n + (p[n] == ' ');
	}
	jsonw_array_end(w);
}

static void json_endpoint(struct jsonw *w, const struct shown *s)
{
	jsonw_object(w, NULL);
	jsonw_str(w, "name", s->name);
	jsonw_str(w, "id", s->id);
	jsonw_str(w, "kind", s->kind);
	jsonw_str(w, "application_id", s->application);
	jsonw_str(w, "url", s->url);
	jsonw_str(w, "description", s->description);
	json_events(w, s->events);
	jsonw_str(w, "state", endpoint_state(s->how));
	ctl_json_time(w, "created_at", s->created_at);
	ctl_json_time(w, "failing_since", s->how->failing_since);
	ctl_json_time(w, "last_success_at", s->how->last_success_at);
	ctl_json_time(w, "last_failure_at", s->how->last_failure_at);
	ctl_json_time(w, "disabled_at", s->how->disabled_at);
	jsonw_str(w, "disabled_reason", s->how->disabled_reason[0] != '\0' ? s->how->disabled_reason : NULL);
	jsonw_int(w, "waiting", s->how->waiting);
	jsonw_object_end(w);
}

static int list_one(struct ctl_listing *l, const struct shown *s)
{
	char when[CTL_TIME_BYTES];
	if (l->table == NULL) {
		ctl_json_element_begin(&l->json);
		json_endpoint(&l->json.w, s);
		return ctl_json_element_end(&l->json) == CTL_OK ? 0 : ST_IO;
	}
	ctl_table_cell(l->table, "%s", s->name);
	ctl_table_cell(l->table, "%s", s->application);
	ctl_table_cell(l->table, "%s", endpoint_state(s->how));
	ctl_table_cell(l->table, "%s",
		ctl_ago(s->how->disabled_at != 0 ? s->how->disabled_at : s->how->failing_since, when));
	ctl_table_cell(l->table, "%s", ctl_ago(s->how->last_success_at, when));
	ctl_table_cell(l->table, "%" PRId64, s->how->waiting);
	ctl_table_cell(l->table, "%s", s->url);
	ctl_table_cell(l->table, "%s", s->events);
	return 0;
}

static int list_configured(
	struct ctl *c, struct ctl_listing *l, const struct conf_webhook *h, struct fault *f)
{
	struct buf events = BUF_INIT(TEXT_MAX);
	struct vault_endpoint how;
	char *id = mem_printf("config:%s", h->name);
	int rc = vault_endpoint(c->pg, id, &how, f);
	for (size_t i = 0; rc == 0 && i < h->events.n; i++)
		rc = buf_printf(&events, "%s%s", i > 0 ? " " : "", h->events.v[i]);
	const struct shown s = {
		.name = h->name,
		.id = id,
		.kind = "configuration",
		.application = h->application,
		.url = h->url,
		.events = buf_str(&events),
		.how = &how,
	};
	if (rc == 0)
		rc = list_one(l, &s);
	buf_fini(&events);
	mem_free(id);
	return rc;
}

static int on_hook(void *arg, const struct vault_hook *h)
{
	const struct shown s = {
		.name = h->endpoint_id,
		.id = h->endpoint_id,
		.kind = "api",
		.application = h->application_id,
		.url = h->url,
		.description = h->description,
		.events = h->events,
		.created_at = h->created_at,
		.how = &h->how,
	};
	return list_one(arg, &s);
}

static int webhook_list(struct ctl *c)
{
	static const char *const headers[] = {
		"NAME", "APPLICATION", "STATE", "SINCE", "LAST SUCCESS", "WAITING", "URL", "EVENTS"};
	struct fault f = {0};
	struct ctl_listing l;
	int rc = 0;
	CTL_TRY(ctl_connect(c));
	ctl_listing_begin(&l, c, headers, 8);
	for (size_t i = 0; rc == 0 && i < c->conf->n_webhooks; i++)
		rc = list_configured(c, &l, &c->conf->webhooks[i], &f);
	if (rc == 0)
		rc = vault_hooks(c->pg, NULL, on_hook, &l, &f);
	ctl_listing_end(&l);
	if (rc == 0)
		return CTL_OK;
	return ctl_complain("webhook list: %s", f.text[0] != '\0' ? f.text : status_text(rc));
}

/* ---------------------------------------------------------------- test */

static int print_delivery(const struct ctl *c, const struct endpoint *e, const struct vault_delivery *d)
{
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "name", e->name);
		jsonw_bool(&j.w, "delivered", d->delivered);
		jsonw_int(&j.w, "attempts", d->attempt);
		jsonw_int(&j.w, "status", d->status);
		jsonw_str(&j.w, "error", d->error[0] != '\0' ? d->error : NULL);
		jsonw_object_end(&j.w);
		int status = ctl_json_end(&j);
		return status == CTL_OK && !d->delivered ? CTL_FAILURE : status;
	}
	if (d->delivered) {
		printf("delivered to %s: status %" PRId64 "\n", e->name, d->status);
		return CTL_OK;
	}
	if (!d->fanned_out)
		return ctl_complain(
			"webhook test: no daemon has taken the event in time; it stays in the outbox");
	if (!d->exists && e->conf == NULL)
		return ctl_complain("webhook test: the endpoint was removed or switched off meanwhile");
	if (!d->exists)
		return ctl_complain("webhook test: the daemon that took the event does not know the endpoint "
				    "'%.80s' (reload it?)",
			e->name);
	if (d->status == 0 && d->error[0] == '\0')
		return ctl_complain("webhook test: no outcome in time; the delivery goes on being tried");
	return ctl_complain("webhook test: not delivered: status %" PRId64 "%s%s", d->status,
		d->error[0] != '\0' ? ", " : "", d->error);
}

static bool has_outcome(const struct vault_delivery *d)
{
	return d->done || (d->exists && (d->status != 0 || d->error[0] != '\0')) ||
	       (d->fanned_out && !d->exists);
}

static int wait_delivery(
	struct ctl *c, const struct endpoint *e, const uint8_t event_id[16], int64_t timeout_us)
{
	struct vault_delivery d = {.fanned_out = false};
	struct fault f = {0};
	int64_t end = sys_mono_us() + timeout_us;
	while (!ctl_interrupted && sys_mono_us() < end && !has_outcome(&d)) {
		int rc = pgsync_wait_notify(c->pg, LOOK_US, &f);
		if (rc != 0 && rc != ST_TIMEOUT)
			return ctl_fail("webhook test", &f);
		if (vault_delivery(c->pg, event_id, e->id, &d, &f) != 0)
			return ctl_fail("webhook test", &f);
	}
	return print_delivery(c, e, &d);
}

static int build_entity(const struct endpoint *e, struct buf *out, struct fault *f)
{
	struct jsonw w;
	jsonw_init(&w, out);
	jsonw_object(&w, NULL);
	if (e->conf == NULL)
		jsonw_str(&w, "application_id", e->application);
	jsonw_str(&w, "id", e->id);
	if (e->conf != NULL)
		jsonw_str(&w, "name", e->name);
	jsonw_object_end(&w);
	int rc = jsonw_end(&w);
	return rc == 0 ? 0 : fault_set(f, rc, "the endpoint's name: %s", status_text(rc));
}

static int send_test(struct ctl *c, const struct endpoint *e, int64_t timeout_us)
{
	struct buf entity = BUF_INIT(4096);
	struct vault_endpoint how;
	struct fault f = {0};
	uint8_t event_id[16];
	int64_t live = 0;
	int rc = build_entity(e, &entity, &f);
	if (rc == 0)
		rc = vault_endpoint(c->pg, e->id, &how, &f);
	if (rc == 0 && how.disabled_at != 0)
		rc = fault_set(&f, ST_DENIED, "the endpoint is switched off: refreshctl webhook enable %.80s",
			e->name);
	if (rc == 0)
		rc = vault_live_daemons(c->pg, &live, &f);
	if (rc == 0)
		rc = vault_endpoint_test(c->pg, e->id, e->application, buf_str(&entity), event_id, &f);
	buf_fini(&entity);
	if (rc != 0)
		return ctl_fail("webhook test", &f);
	if (live == 0)
		ctl_note("webhook test: no daemon seems to be alive; the event waits in the outbox for one");
	return wait_delivery(c, e, event_id, timeout_us);
}

static int webhook_test(struct ctl *c, const char *name, int64_t timeout_us)
{
	struct endpoint e;
	CTL_TRY(ctl_connect(c));
	CTL_TRY(find_endpoint(c, "test", name, &e));
	ctl_catch_interrupt();
	int status = send_test(c, &e, timeout_us);
	endpoint_fini(&e);
	return status;
}

/* ---------------------------------------------------------------- enable, remove */

static int print_done(const struct ctl *c, const char *name, const char *key, bool value, const char *words)
{
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "name", name);
		jsonw_bool(&j.w, key, value);
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	printf("%s %s\n", name, words);
	return CTL_OK;
}

static int webhook_enable(struct ctl *c, const char *name)
{
	struct fault f = {0};
	struct endpoint e;
	bool was_disabled = false;
	CTL_TRY(ctl_connect(c));
	CTL_TRY(find_endpoint(c, "enable", name, &e));
	int rc = vault_endpoint_enable(c->pg, e.id, &was_disabled, &f);
	int status = rc != 0 ? ctl_fail("webhook enable", &f)
			     : print_done(c, e.name, "was_disabled", was_disabled,
				       was_disabled ? "is switched on again" : "was not switched off");
	endpoint_fini(&e);
	return status;
}

static int webhook_remove(struct ctl *c, const char *name)
{
	struct fault f = {0};
	struct endpoint e;
	int status;
	CTL_TRY(ctl_connect(c));
	CTL_TRY(find_endpoint(c, "remove", name, &e));
	if (e.conf != NULL)
		status = ctl_complain("webhook remove: '%.80s' stands in the configuration (%s:%u): take it "
				      "out there and reload the daemons",
			e.name, e.conf->file, e.conf->line);
	else if (vault_hook_remove(c->pg, e.application, e.id, &f) != 0)
		status = ctl_fail("webhook remove", &f);
	else
		status = print_done(c, e.name, "removed", true, "removed, with what waited for it");
	endpoint_fini(&e);
	return status;
}

/* ---------------------------------------------------------------- add */

struct add {
	const char *application, *url, *description;
	struct ctl_list events;
	struct buf event_words, sealed, public_key;
	struct webhook_keys keys;
	char id[STR_UUID_BYTES];
};

static int check_text(const struct ctl *c, const char *option, const char *s, size_t max)
{
	size_t n = strlen(s);
	if (n > max)
		return ctl_usage(c, "webhook add: --%s is longer than %zu bytes", option, max);
	if (str_has_ctl(s, n) || !str_is_utf8(s, n))
		return ctl_usage(
			c, "webhook add: --%s holds a control character or is not valid UTF-8", option);
	return CTL_OK;
}

/* What can be told without configuration and database. */
static int check_words(const struct ctl *c, struct add *a)
{
	if (a->application == NULL || a->url == NULL)
		return ctl_usage(c, "webhook add: --%s is missing", a->application == NULL ? "app" : "url");
	CTL_TRY(check_text(c, "url", a->url, WEBHOOK_URL_MAX));
	CTL_TRY(check_text(c, "description", a->description, WEBHOOK_DESCRIPTION_MAX));
	if (a->events.n == 0)
		a->events = (struct ctl_list){.v = {"*"}, .n = 1};
	for (size_t i = 0; i < a->events.n; i++) {
		if (!webhook_event_known(a->events.v[i]))
			return ctl_usage(c,
				"webhook add: --event '%.80s' is no name of an event, prefix.* or * that "
				"covers some event",
				a->events.v[i]);
		ALWAYS(buf_printf(&a->event_words, "%s%s", i > 0 ? " " : "", a->events.v[i]) == 0);
	}
	return CTL_OK;
}

static int make_keys(struct ctl *c, struct add *a, struct fault *f)
{
	uint8_t id[16];
	sys_uuid4(id);
	str_format_uuid(id, a->id);
	int rc = webhook_keys_new(NULL, &a->keys, f);
	if (rc != 0)
		return rc;
	rc = webhook_keys_seal(&a->keys, c->conf->keyring, id, &a->sealed);
	if (rc == 0)
		rc = webhook_keys_public(&a->keys, &a->public_key);
	return rc == 0 ? 0 : fault_set(f, rc, "the keys of the endpoint: %s", status_text(rc));
}

/* stdout: the secret, then the public key, each on a line of its own. */
static int print_keys(const struct ctl *c, const struct add *a)
{
	struct buf text = BUF_INIT_SECRET(TEXT_MAX);
	struct jsonw w;
	int rc;
	if (c->json) {
		jsonw_init(&w, &text);
		jsonw_object(&w, NULL);
		jsonw_str(&w, "id", a->id);
		jsonw_str(&w, "application_id", a->application);
		jsonw_str(&w, "url", a->url);
		jsonw_str(&w, "description", a->description);
		json_events(&w, buf_str(&a->event_words));
		jsonw_strn(&w, "secret", buf_str(&a->keys.hmac.text), a->keys.hmac.text.len);
		jsonw_str(&w, "public_key", buf_str(&a->public_key));
		jsonw_object_end(&w);
		rc = jsonw_end(&w);
	} else {
		rc = buf_printf(&text, "%s\n%s", buf_str(&a->keys.hmac.text), buf_str(&a->public_key));
	}
	int status =
		rc == 0 ? ctl_print_secret(&text, true) : ctl_complain("webhook add: %s", status_text(rc));
	buf_fini(&text);
	return status;
}

/* The API asks an endpoint before it is stored. Only a daemon makes requests, and here the receiver cannot
 * know the secret yet. */
static void explain(struct ctl *c, const struct add *a)
{
	struct fault f = {0};
	int64_t live = 0;
	ctl_note("endpoint %s for application %s. Its secret and its public key are on stdout; the secret is "
		 "shown this once and cannot be shown again",
		a->id, a->application);
	if (vault_live_daemons(c->pg, &live, &f) != 0)
		ctl_note("whether a daemon is alive cannot be told: %s", f.text);
	ctl_note("unlike by the API, the endpoint was not asked whether it agrees. Give it the secret, "
		 "then%s: refreshctl webhook test %s",
		live > 0 ? "" : " start a daemon (none is alive) and", a->id);
}

static int add_endpoint(struct ctl *c, struct add *a)
{
	struct fault f = {0};
	CTL_TRY(check_words(c, a));
	CTL_TRY(ctl_load(c));
	if (webhook_check_url(c->conf, a->url, &f) != 0)
		return ctl_usage(c, "webhook add: --url: %s", f.text);
	CTL_TRY(ctl_connect(c));
	int rc = make_keys(c, a, &f);
	const struct vault_hook_new h = {
		.endpoint_id = a->id,
		.application_id = a->application,
		.url = a->url,
		.unified_api = WEBHOOK_UNIFIED_API,
		.description = a->description,
		.events = buf_str(&a->event_words),
		.public_key = buf_str(&a->public_key),
		.secret = &a->sealed,
	};
	if (rc == 0)
		rc = vault_hook_add(c->pg, &h, &f);
	if (rc != 0)
		return ctl_fail("webhook add", &f);
	if (print_keys(c, a) != CTL_OK)
		return ctl_complain("webhook add: the secret of endpoint %s did not get out: refreshctl "
				    "webhook remove it and add it again",
			a->id);
	explain(c, a);
	return CTL_OK;
}

static int webhook_add(struct ctl *c, struct add *a)
{
	buf_init(&a->event_words, TEXT_MAX);
	buf_init(&a->sealed, SEALED_MAX);
	buf_init(&a->public_key, 128);
	int status = add_endpoint(c, a);
	webhook_keys_fini(&a->keys);
	buf_fini(&a->event_words);
	buf_fini(&a->sealed);
	buf_fini(&a->public_key);
	return status;
}

/* ---------------------------------------------------------------- the command */

/* The commands that take the name of one endpoint. */
static int with_name(struct ctl *c, const char *what, const char *name, int64_t timeout_us)
{
	if (name == NULL)
		return ctl_usage(c, "webhook %s: the NAME or ID is missing", what);
	if (strcmp(what, "test") == 0)
		return webhook_test(c, name, timeout_us);
	return strcmp(what, "enable") == 0 ? webhook_enable(c, name) : webhook_remove(c, name);
}

int ctl_webhook(struct ctl *c, int argc, char **argv)
{
	int64_t timeout_us = 0;
	struct add add = {.description = ""};
	const struct ctl_opt opts[] = {
		{"timeout", CTL_DURATION, &timeout_us},
		{"app", CTL_VALUE, &add.application},
		{"url", CTL_VALUE, &add.url},
		{"event", CTL_LIST, &add.events},
		{"description", CTL_VALUE, &add.description},
	};
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 1, 2));
	const char *what = c->words[0], *name = c->n_words > 1 ? c->words[1] : NULL;
	bool adds = strcmp(what, "add") == 0;
	if (!adds && (add.application != NULL || add.url != NULL || add.events.n > 0 ||
			     add.description[0] != '\0'))
		return ctl_usage(c, "webhook: --app, --url, --event and --description belong to webhook add");
	if (timeout_us != 0 && strcmp(what, "test") != 0)
		return ctl_usage(c, "webhook: --timeout belongs to webhook test");
	if ((adds || strcmp(what, "list") == 0) && name != NULL)
		return ctl_usage(c, "webhook %s: '%.60s' is one word too many", what, name);
	if (adds)
		return webhook_add(c, &add);
	if (strcmp(what, "list") == 0)
		return webhook_list(c);
	if (strcmp(what, "test") == 0 || strcmp(what, "enable") == 0 || strcmp(what, "remove") == 0)
		return with_name(c, what, name, timeout_us != 0 ? timeout_us : TEST_TIMEOUT_US);
	return ctl_usage(c, "webhook: '%.40s' is neither add, list, test, enable nor remove", what);
}
