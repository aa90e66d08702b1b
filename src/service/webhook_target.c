/*
 * webhook_target - who there is to deliver to: the endpoints of the configuration, and those of the API out
 * of the database.
 *
 * Both become the same thing here, a target with an endpoint; only the way in differs. Those of the API are
 * loaded when their mark in the database has changed, so that a poll costs one row. One whose secret cannot
 * be opened stays known, so that its events wait for the right keyring instead of being lost.
 */
#include "service/webhook_priv.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"

/* ---------------------------------------------------------------- endpoints */

struct endpoint *endpoint_ref(struct endpoint *e)
{
	e->refs++;
	return e;
}

void endpoint_unref(struct endpoint *e)
{
	if (e == NULL || --e->refs > 0)
		return;
	conf_unref(e->conf);
	mem_free(e->owned_application);
	mem_free(e->owned_url);
	webhook_keys_fini(&e->keys);
	webhook_keys_fini(&e->previous);
	mem_free(e);
}

static struct endpoint *endpoint_of_conf(struct conf *c, const struct conf_webhook *hook)
{
	struct endpoint *e = mem_alloc(sizeof *e);
	*e = (struct endpoint){
		.refs = 1,
		.conf = conf_ref(c),
		.application = hook->application,
		.url = hook->url,
		.secret = &hook->secret,
		.allow_private = hook->allow_private,
	};
	return e;
}

static void open_keys(struct endpoint *e, struct keyring *ring, const struct store_hook *h)
{
	struct fault f = {0};
	uint8_t id[16];
	int rc = str_parse_uuid(h->endpoint_id, strlen(h->endpoint_id), id);
	if (rc != 0)
		(void)fault_set(&f, rc, "its id is no UUID");
	if (rc == 0 && h->secret == NULL)
		rc = fault_set(&f, ST_NOT_FOUND, "it has no secret");
	if (rc == 0)
		rc = webhook_keys_open(ring, id, h->secret, h->secret_len, &e->keys, &f);
	/* Without the previous secret its receiver may not know us; that is less than nothing being sent. */
	if (rc == 0 && h->previous_secret != NULL &&
		webhook_keys_open(ring, id, h->previous_secret, h->previous_secret_len, &e->previous, &f) !=
			0)
		log_warning("webhook.previous_secret", K_TEXT("endpoint", h->endpoint_id), K_FAULT(&f));
	if (rc != 0)
		log_error("webhook.endpoint_unusable", K_TEXT("endpoint", h->endpoint_id), K_FAULT(&f));
	else
		e->secret = &e->keys.hmac;
}

static struct endpoint *endpoint_of_row(struct keyring *ring, const struct store_hook *h)
{
	struct endpoint *e = mem_alloc(sizeof *e);
	*e = (struct endpoint){.refs = 1, .of_api = true, .previous_until = h->previous_until};
	e->application = e->owned_application = mem_strdup(h->application_id);
	e->url = e->owned_url = mem_strdup(h->url);
	open_keys(e, ring, h);
	return e;
}

/* ---------------------------------------------------------------- targets */

struct target *target_find(const struct webhook *w, const char *id)
{
	struct target *t = w->targets;
	while (t != NULL && strcmp(t->id, id) != 0)
		t = t->next;
	return t;
}

bool target_usable(const struct target *t)
{
	return t->endpoint != NULL && t->endpoint->secret != NULL;
}

size_t targets_count(const struct webhook *w)
{
	size_t n = 0;
	for (const struct target *t = w->targets; t != NULL; t = t->next)
		n++;
	return n;
}

void targets_rotate(struct webhook *w, struct target *first)
{
	struct target **at = &w->targets, *before = w->targets;
	while (*at != first)
		at = &(*at)->next;
	if (at == &w->targets)
		return;
	*at = NULL;
	w->targets = first;
	while (first->next != NULL)
		first = first->next;
	first->next = before;
}

static void target_free(struct target *t)
{
	endpoint_unref(t->endpoint);
	mem_free(t->id);
	mem_free(t);
}

void targets_free(struct webhook *w)
{
	while (w->targets != NULL) {
		struct target *t = w->targets;
		w->targets = t->next;
		target_free(t);
	}
}

void targets_drop(struct webhook *w)
{
	if (w->claiming)
		return; /* the answer may name any of them */
	struct target **at = &w->targets;
	while (*at != NULL) {
		struct target *t = *at;
		if (t->endpoint != NULL || t->in_hand > 0) {
			at = &t->next;
			continue;
		}
		*at = t->next;
		target_free(t);
	}
}

/* `id` is taken over. */
static struct target *target_of(struct webhook *w, char *id, bool of_api)
{
	struct target *t = target_find(w, id);
	if (t != NULL) {
		mem_free(id);
		return t;
	}
	t = mem_alloc(sizeof *t);
	t->id = id;
	t->name = of_api ? id : strchr(id, ':') + 1;
	t->of_api = of_api;
	t->next = w->targets;
	w->targets = t;
	return t;
}

/* `e` is taken over. */
static void set_endpoint(struct target *t, struct endpoint *e)
{
	endpoint_unref(t->endpoint);
	t->endpoint = e;
	t->failures = 0; /* it may have been mended: let it show */
}

static void forget(struct webhook *w, bool of_api)
{
	for (struct target *t = w->targets; t != NULL; t = t->next) {
		if (t->of_api == of_api)
			set_endpoint(t, NULL);
	}
}

static void set_events(struct target *t, const struct strlist *patterns)
{
	t->n_events = 0;
	for (int e = EVENT_NONE + 1; e < EVENT_TYPE_COUNT; e++) {
		if (event_type_matches((const char *const *)patterns->v, patterns->n, (enum event_type)e))
			t->events[t->n_events++] = event_type_word((enum event_type)e);
	}
}

void targets_set_conf(struct webhook *w, struct conf *c)
{
	forget(w, false);
	for (size_t i = 0; i < c->n_webhooks; i++) {
		const struct conf_webhook *hook = &c->webhooks[i];
		struct target *t = target_of(w, mem_printf("config:%s", hook->name), false);
		set_endpoint(t, endpoint_of_conf(c, hook));
		set_events(t, &hook->events);
	}
}

/* ---------------------------------------------------------------- those of the API */

static void on_loaded(void *arg, int code, bool changed, int64_t mark, const struct store_hook *v, size_t n)
{
	struct webhook *w = arg;
	w->loading = false;
	if (!webhook_call_ended(w, code, "endpoints")) {
		w->want_load = w->want_load || (code != 0 && code != ST_INVALID);
		w->load_all = true;
		return;
	}
	if (!changed)
		return;
	w->load_mark = mark;
	forget(w, true);
	for (size_t i = 0; i < n; i++)
		set_endpoint(target_of(w, mem_strdup(v[i].endpoint_id), true),
			endpoint_of_row(w->conf->keyring, &v[i]));
	targets_drop(w);
	log_debug("webhook.endpoints", K_COUNT(n));
	w->want_claim = true;
	w->want_list = true; /* one may have been switched off or on */
}

void targets_load(struct webhook *w)
{
	w->want_load = false;
	w->loading = webhook_call_started(
		w, store_hooks_load(w->store, w->load_mark, w->load_all, on_loaded, w), "endpoints");
	if (w->loading)
		w->load_all = false;
	else
		w->want_load = true;
}
