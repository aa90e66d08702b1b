/*
 * ctl_webhook - the webhook endpoints of the configuration: how they do, a test event, switching on again.
 *
 * An endpoint's id in the database is "config:" and its name. A test event goes through the outbox like any other, so
 * that what is tested is the whole way.
 */
#include "ctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/vault_ops.h"

#define LOOK_US (US_PER_S / 5)

static const struct conf_webhook *find_webhook(const struct conf *c, const char *name)
{
	for (size_t i = 0; i < c->n_webhooks; i++)
		if (strcmp(c->webhooks[i].name, name) == 0)
			return &c->webhooks[i];
	return NULL;
}

static const char *endpoint_state(const struct vault_endpoint *e)
{
	if (e->disabled_at != 0)
		return "switched off";
	if (e->failing_since != 0)
		return "failing";
	return e->last_success_at != 0 ? "ok" : "unused";
}

static void json_endpoint(struct jsonw *w, const struct conf_webhook *h, const struct vault_endpoint *e)
{
	jsonw_object(w, NULL);
	jsonw_str(w, "name", h->name);
	jsonw_str(w, "application_id", h->application);
	jsonw_str(w, "url", h->url);
	jsonw_array(w, "events");
	for (size_t i = 0; i < h->events.n; i++)
		jsonw_str(w, NULL, h->events.v[i]);
	jsonw_array_end(w);
	jsonw_str(w, "state", endpoint_state(e));
	ctl_json_time(w, "failing_since", e->failing_since);
	ctl_json_time(w, "last_success_at", e->last_success_at);
	ctl_json_time(w, "last_failure_at", e->last_failure_at);
	ctl_json_time(w, "disabled_at", e->disabled_at);
	jsonw_str(w, "disabled_reason", e->disabled_reason[0] != '\0' ? e->disabled_reason : NULL);
	jsonw_int(w, "waiting", e->waiting);
	jsonw_object_end(w);
}

static int list_one(struct ctl *c, struct ctl_listing *l, const struct conf_webhook *h, struct fault *f)
{
	char when[CTL_TIME_BYTES];
	struct vault_endpoint e;
	char *id = mem_printf("config:%s", h->name);
	int rc = vault_endpoint(c->pg, id, &e, f);
	mem_free(id);
	if (rc != 0)
		return rc;
	if (l->table == NULL) {
		ctl_json_element_begin(&l->json);
		json_endpoint(&l->json.w, h, &e);
		return ctl_json_element_end(&l->json) == CTL_OK ? 0 : fault_set(f, ST_IO, "it cannot be written as JSON");
	}
	ctl_table_cell(l->table, "%s", h->name);
	ctl_table_cell(l->table, "%s", h->application);
	ctl_table_cell(l->table, "%s", endpoint_state(&e));
	ctl_table_cell(l->table, "%s", ctl_ago(e.disabled_at != 0 ? e.disabled_at : e.failing_since, when));
	ctl_table_cell(l->table, "%s", ctl_ago(e.last_success_at, when));
	ctl_table_cell(l->table, "%" PRId64, e.waiting);
	ctl_table_cell(l->table, "%s", h->url);
	return 0;
}

static int webhook_list(struct ctl *c)
{
	static const char *const headers[] = { "NAME", "APPLICATION", "STATE", "SINCE", "LAST SUCCESS", "WAITING", "URL" };
	struct fault f = { 0 };
	struct ctl_listing l;
	int rc = 0;
	CTL_TRY(ctl_connect(c));
	ctl_listing_begin(&l, c, headers, 7);
	for (size_t i = 0; rc == 0 && i < c->conf->n_webhooks; i++)
		rc = list_one(c, &l, &c->conf->webhooks[i], &f);
	ctl_listing_end(&l);
	return rc == 0 ? CTL_OK : ctl_fail("webhook list", &f);
}

static int no_such(const char *what, const char *name)
{
	return ctl_complain("webhook %s: there is no endpoint '%.80s' in the configuration", what, name);
}

/* ---------------------------------------------------------------- test */

static int print_delivery(const struct ctl *c, const char *name, const struct vault_delivery *d)
{
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "name", name);
		jsonw_bool(&j.w, "delivered", d->delivered);
		jsonw_int(&j.w, "attempts", d->attempt);
		jsonw_int(&j.w, "status", d->status);
		jsonw_str(&j.w, "error", d->error[0] != '\0' ? d->error : NULL);
		jsonw_object_end(&j.w);
		int status = ctl_json_end(&j);
		return status == CTL_OK && !d->delivered ? CTL_FAILURE : status;
	}
	if (d->delivered) {
		printf("delivered to %s: status %" PRId64 "\n", name, d->status);
		return CTL_OK;
	}
	if (!d->fanned_out)
		return ctl_complain("webhook test: no daemon has taken the event in time; it stays in the outbox");
	if (!d->exists)
		return ctl_complain("webhook test: the daemon that took the event does not know the endpoint '%.80s' (reload it?)", name);
	if (d->status == 0 && d->error[0] == '\0')
		return ctl_complain("webhook test: no outcome in time; the delivery goes on being tried");
	return ctl_complain("webhook test: not delivered: status %" PRId64 "%s%s", d->status, d->error[0] != '\0' ? ", " : "", d->error);
}

static bool has_outcome(const struct vault_delivery *d)
{
	return d->done || (d->exists && (d->status != 0 || d->error[0] != '\0')) || (d->fanned_out && !d->exists);
}

static int wait_delivery(struct ctl *c, const char *name, const char *endpoint_id, const uint8_t event_id[16], int64_t timeout_us)
{
	struct vault_delivery d = { .fanned_out = false };
	struct fault f = { 0 };
	int64_t end = sys_mono_us() + timeout_us;
	while (!ctl_interrupted && sys_mono_us() < end && !has_outcome(&d)) {
		int rc = pgsync_wait_notify(c->pg, LOOK_US, &f);
		if (rc != 0 && rc != ST_TIMEOUT)
			return ctl_fail("webhook test", &f);
		if (vault_delivery(c->pg, event_id, endpoint_id, &d, &f) != 0)
			return ctl_fail("webhook test", &f);
	}
	return print_delivery(c, name, &d);
}

static int send_test(struct ctl *c, const struct conf_webhook *h, const char *endpoint_id, int64_t timeout_us)
{
	struct buf entity = BUF_INIT(4096);
	struct vault_endpoint e;
	struct fault f = { 0 };
	uint8_t event_id[16];
	int64_t live = 0;
	struct jsonw w;
	jsonw_init(&w, &entity);
	jsonw_object(&w, NULL);
	jsonw_str(&w, "id", endpoint_id);
	jsonw_str(&w, "name", h->name);
	jsonw_object_end(&w);
	int rc = jsonw_end(&w);
	if (rc != 0)
		(void)fault_set(&f, rc, "the endpoint's name: %s", status_text(rc));
	if (rc == 0)
		rc = vault_endpoint(c->pg, endpoint_id, &e, &f);
	if (rc == 0 && e.disabled_at != 0)
		rc = fault_set(&f, ST_DENIED, "the endpoint is switched off: refreshctl webhook enable %.80s", h->name);
	if (rc == 0)
		rc = vault_live_daemons(c->pg, &live, &f);
	if (rc == 0)
		rc = vault_endpoint_test(c->pg, endpoint_id, h->application, buf_str(&entity), event_id, &f);
	buf_fini(&entity);
	if (rc != 0)
		return ctl_fail("webhook test", &f);
	if (live == 0)
		ctl_note("webhook test: no daemon seems to be alive; the event waits in the outbox for one");
	return wait_delivery(c, h->name, endpoint_id, event_id, timeout_us);
}

static int webhook_test(struct ctl *c, const char *name, int64_t timeout_us)
{
	CTL_TRY(ctl_connect(c));
	const struct conf_webhook *h = find_webhook(c->conf, name);
	if (h == NULL)
		return no_such("test", name);
	ctl_catch_interrupt();
	char *endpoint_id = mem_printf("config:%s", name);
	int status = send_test(c, h, endpoint_id, timeout_us);
	mem_free(endpoint_id);
	return status;
}

/* ---------------------------------------------------------------- enable */

static int webhook_enable(struct ctl *c, const char *name)
{
	struct fault f = { 0 };
	bool was_disabled = false;
	CTL_TRY(ctl_connect(c));
	if (find_webhook(c->conf, name) == NULL)
		return no_such("enable", name);
	char *endpoint_id = mem_printf("config:%s", name);
	int rc = vault_endpoint_enable(c->pg, endpoint_id, &was_disabled, &f);
	mem_free(endpoint_id);
	if (rc != 0)
		return ctl_fail("webhook enable", &f);
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "name", name);
		jsonw_bool(&j.w, "was_disabled", was_disabled);
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	printf("%s %s\n", name, was_disabled ? "is switched on again" : "was not switched off");
	return CTL_OK;
}

int ctl_webhook(struct ctl *c, int argc, char **argv)
{
	int64_t timeout_us = 30 * US_PER_S;
	const struct ctl_opt opts[] = { { "timeout", CTL_DURATION, &timeout_us } };
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 1, 8));
	const char *what = c->words[0], *name = c->n_words > 1 ? c->words[1] : NULL;
	if (strcmp(what, "add") == 0 || strcmp(what, "remove") == 0)
		return ctl_usage(c, "webhook %s: endpoints live in the configuration file in this version (webhooks:)", what);
	if (c->n_words > 2)
		return ctl_usage(c, "webhook: '%.60s' is one word too many", c->words[2]);
	if (strcmp(what, "list") == 0)
		return name == NULL ? webhook_list(c) : ctl_usage(c, "webhook list: takes no name");
	if (strcmp(what, "test") == 0)
		return name != NULL ? webhook_test(c, name, timeout_us) : ctl_usage(c, "webhook test: the NAME is missing");
	if (strcmp(what, "enable") == 0)
		return name != NULL ? webhook_enable(c, name) : ctl_usage(c, "webhook enable: the NAME is missing");
	return ctl_usage(c, "webhook: '%.40s' is neither list, test nor enable", what);
}
