/*
 * api_update - PATCH: enabled, settings, metadata. What else is sent along is read-only and ignored.
 *
 * Settings are merged by name, null removes one; a masked value that comes back as it was shown changes
 * nothing. The write is taken only if the row is still the one that was read; else the whole thing is done
 * again. Which state follows is connection_apply's business.
 */
#include "api/api_priv.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"
#include "model/grant_parse.h"
#include "model/policy.h"
#include "service/seal.h"

#define TRIES_MAX 6
#define MASK "********"

struct update {
	struct json_object *body, *settings, *metadata; /* the last two borrowed from the first; NULL: not given */
	bool has_enabled, enabled;
	unsigned tries;
	struct store_change change;
	struct buf sealed, settings_public, metadata_text, entity, entity_id;
};

static void fini_bufs(struct update *u)
{
	buf_fini(&u->sealed);
	buf_fini(&u->settings_public);
	buf_fini(&u->metadata_text);
	buf_fini(&u->entity);
	buf_fini(&u->entity_id);
}

static void update_free(void *state)
{
	struct update *u = state;
	fini_bufs(u);
	grant_parse_free(u->body);
	mem_free(u);
}

/* ---------------------------------------------------------------- settings */

static struct json_object *open_settings(const struct api_call *c, const struct store_connection *k)
{
	struct buf plain = BUF_INIT_SECRET(SEAL_COLUMN_MAX);
	struct json_object *o = NULL;
	int e = 0;
	if (k->settings != NULL)
		e = seal_open(c->conf->keyring, SEAL_SETTINGS, k->id, 0, k->settings, k->settings_len, &plain);
	if (e == 0)
		o = plain.len > 0 ? grant_parse_json(buf_str(&plain), plain.len) : grant_parse_json("{}", 2);
	if (o == NULL)
		log_error("api.settings_not_opened", K_ID(k->id), K_STATUS(e));
	buf_fini(&plain);
	return o;
}

static void merge(struct json_object *into, struct json_object *from)
{
	json_object_object_foreach(from, name, v)
	{
		if (v == NULL)
			json_object_object_del(into, name);
		else if (json_object_get_type(v) != json_type_string ||
			 strcmp(json_object_get_string(v), MASK) != 0)
			(void)json_object_object_add(into, name, json_object_get(v));
	}
}

/* Is every required setting there? */
struct completeness {
	bool before, after;
};

/* Seals the merged settings. */
static int make_settings(struct api_call *c, struct update *u, const struct store_connection *k,
	const struct provider *p, struct completeness *complete)
{
	struct buf plain = BUF_INIT_SECRET(IMPORT_SETTINGS_MAX);
	struct json_object *all = open_settings(c, k);
	if (all == NULL)
		return ST_INVALID;
	complete->before = import_settings_complete(all, p);
	merge(all, u->settings);
	complete->after = import_settings_complete(all, p);
	int e = import_write_json(all, &plain);
	if (e == 0)
		e = seal_column(c->conf->keyring, SEAL_SETTINGS, k->id, 0, plain.data, plain.len, &u->sealed);
	if (e == 0)
		e = import_mask_settings(buf_str(&plain), plain.len, p, &u->settings_public);
	buf_fini(&plain);
	grant_parse_free(all);
	return e;
}

/* ---------------------------------------------------------------- what follows */

static int64_t due_when_enabled(
	const struct api_call *c, const struct store_connection *k, const struct provider *p, int64_t now)
{
	const struct policy_margin margin = {
		.margin_us = c->conf->refresh.margin_us, .fraction = c->conf->refresh.margin_fraction};
	const struct policy_due d = {
		.now = now,
		.issued_at = k->issued_at,
		.expires_at = k->expires_at,
		.refresh_issued_at = k->refresh_issued_at,
		.refresh_expires_at = k->refresh_expires_at,
	};
	if (!provider_renews(p, k->has_refresh_token) || strcmp(k->state, "invalid") == 0)
		return INT64_MAX;
	return k->expires_at > now ? policy_due_at(p, &margin, &d, sys_random_unit()) : now;
}

/* 0: leave it. */
static int64_t next_due(const struct api_call *c, const struct update *u, const struct store_connection *k,
	const struct provider *p, int64_t now)
{
	if (strcmp(k->auth_type, "oauth2") != 0)
		return 0;
	if (!u->change.enabled)
		return k->enabled ? INT64_MAX : 0;
	/* What was missing or wrong may be there now; what only lacks a setting is renewed at its time. */
	bool waits = strcmp(k->health, "missing_settings") == 0 ? k->due_at == INT64_MAX : strcmp(k->health, "ok") != 0;
	if (u->settings != NULL && provider_renews(p, k->has_refresh_token) && waits)
		return now;
	return k->enabled || p == NULL ? 0 : due_when_enabled(c, k, p, now);
}

static enum event_type happen(struct store_change *x, enum conn_event ev, enum reason reason)
{
	struct conn_change to = connection_apply(x->state, x->health, ev, ev == CE_SETTINGS_MISSING);
	x->reason = to.health == HEALTH_OK || to.health == HEALTH_MISSING_SETTINGS ? reason : x->reason;
	x->state = to.state;
	x->health = to.health;
	return to.event;
}

/* With tokens, settings make the difference between authorized and callable. A connection that waits for one that is not among the
 * required is left to the next refresh. */
static enum event_type apply_to_tokens(struct store_change *x, const struct completeness *complete)
{
	if (!complete->after && x->state == CONN_CALLABLE)
		return happen(x, CE_SETTINGS_MISSING, REASON_MISSING_SETTINGS);
	if (complete->after && !complete->before && x->health != HEALTH_OK)
		return happen(x, CE_SETTINGS_FILLED, REASON_NONE);
	return EVENT_NONE;
}

/* For services whose settings are the secret, they decide whether it can be called. */
static enum event_type apply_settings(
	struct store_change *x, const struct store_connection *k, const struct completeness *complete)
{
	if (strcmp(k->auth_type, "oauth2") == 0)
		return apply_to_tokens(x, complete);
	if (strcmp(k->auth_type, "none") == 0)
		return EVENT_NONE;
	if (!complete->after)
		return happen(x, CE_SETTINGS_MISSING, REASON_MISSING_SETTINGS);
	if (x->health == HEALTH_OK && x->state == CONN_CALLABLE)
		return EVENT_NONE;
	return happen(x, CE_IMPORTED, REASON_NONE);
}

static int copy_words(struct store_change *x, const struct store_connection *k)
{
	if (conn_state_parse(k->state, &x->state) != 0 || conn_health_parse(k->health, &x->health) != 0 ||
		reason_parse(k->reason, &x->reason) != 0)
		return ST_VERSION; /* a newer daemon wrote them: we must not write them over */
	return 0;
}

static int prepare(
	struct api_call *c, struct update *u, const struct store_connection *k, const struct provider *p)
{
	int64_t now = sys_wall_us();
	struct completeness complete;
	struct store_change *x = &u->change;
	fini_bufs(u);
	buf_init(&u->sealed, SEAL_COLUMN_MAX);
	buf_init(&u->settings_public, SEAL_COLUMN_MAX);
	buf_init(&u->metadata_text, IMPORT_SETTINGS_MAX);
	buf_init(&u->entity, EVENT_ENTITY_MAX);
	buf_init(&u->entity_id, EVENT_ENTITY_ID_MAX);
	*x = (struct store_change){
		.application_id = c->application, .seen_at = k->updated_at, .enabled = k->enabled};
	x->updated_at = now > k->updated_at ? now : k->updated_at + 1;
	memcpy(x->id, k->id, 16);
	int e = copy_words(x, k);
	if (u->has_enabled)
		x->enabled = u->enabled;
	if (e == 0 && u->settings != NULL) {
		e = make_settings(c, u, k, p, &complete);
		x->settings = &u->sealed;
		x->settings_public = buf_str(&u->settings_public);
		x->event = e == 0 ? apply_settings(x, k, &complete) : EVENT_NONE;
	}
	if (e == 0 && u->metadata != NULL) {
		e = import_write_json(u->metadata, &u->metadata_text);
		x->metadata = buf_str(&u->metadata_text);
	}
	if (e != 0)
		return e;
	/* One change, one event: that it is switched off outweighs what else became of it. */
	if (k->enabled && !x->enabled)
		x->event = EVENT_DISABLED;
	else if (x->event == EVENT_NONE)
		x->event = EVENT_UPDATED;
	x->due_at = next_due(c, u, k, p, now);
	e = api_build_event(c->conf, k, conn_state_word(x->state), conn_health_word(x->health), x->enabled,
		x->updated_at, &u->entity, &u->entity_id);
	x->entity = buf_str(&u->entity);
	x->entity_id = buf_str(&u->entity_id);
	return e;
}

/* ---------------------------------------------------------------- the turns of it */

static void read_row(struct api_call *c);

static void on_changed(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	struct update *u = c->state;
	bool taken = code == 0 && n > 0 && v[0].updated_at == u->change.updated_at;
	if (code != 0 && code != ST_AGAIN) {
		api_fail_store(c, code);
	} else if (!taken && ++u->tries < TRIES_MAX) {
		read_row(c);
	} else if (!taken) {
		api_fail(c, API_CONFLICT, "the connection was changed by others again and again; try again");
	} else {
		c->api->parts.outbox(c->api->parts.arg);
		scheduler_look_at(c->api->parts.scheduler, v[0].id);
		api_reply_connection(c, &v[0]);
	}
}

static void on_row(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	struct update *u = c->state;
	const struct provider *p = conf_provider(c->conf, c->key.service_id);
	if (code != 0) {
		api_fail_store(c, code);
		return;
	}
	if (n == 0 || (p == NULL && u->settings != NULL)) {
		api_fail_missing(c);
		return;
	}
	if (!u->has_enabled && u->settings == NULL && u->metadata == NULL) {
		api_reply_connection(c, &v[0]);
		return;
	}
	int e = prepare(c, u, &v[0], p);
	if (e == ST_FULL)
		api_fail(c, API_BAD_REQUEST, "settings or metadata are larger than %zu bytes",
			IMPORT_SETTINGS_MAX);
	else if (e == ST_RANGE)
		api_fail(c, API_BAD_REQUEST,
			"settings or metadata hold a number that cannot be kept as it is: write it as a string");
	else if (e != 0)
		api_fail_store(c, ST_INVALID);
	else if ((e = store_change(c->api->parts.store, &u->change, on_changed, c)) != 0)
		api_fail_store(c, e);
}

static void read_row(struct api_call *c)
{
	struct store_conn_id id;
	api_conn_id(c, &id);
	int e = store_connections(c->api->parts.store, &id, 1, true, on_row, c);
	if (e != 0)
		api_fail_store(c, e);
}

static struct json_object *take_object(struct json_object *body, const char *name, struct import_problems *p)
{
	struct json_object *v;
	if (!json_object_object_get_ex(body, name, &v) || v == NULL)
		return NULL;
	if (json_object_get_type(v) != json_type_object) {
		api_problem(p, name, "must be an object");
		return NULL;
	}
	return v;
}

void api_do_update(struct api_call *c)
{
	struct import_problems problems = {.n = 0};
	struct json_object *body = api_body(c, false), *v;
	if (body == NULL)
		return;
	struct update *u = mem_alloc(sizeof *u);
	u->body = body;
	c->state = u;
	c->free_state = update_free;
	u->settings = take_object(body, "settings", &problems);
	u->metadata = take_object(body, "metadata", &problems);
	if (json_object_object_get_ex(body, "enabled", &v)) {
		u->has_enabled = json_object_get_type(v) == json_type_boolean;
		u->enabled = u->has_enabled && json_object_get_boolean(v);
		if (!u->has_enabled)
			api_problem(&problems, "enabled", "must be true or false");
	}
	if (problems.n > 0)
		api_fail_fields(c, API_BAD_REQUEST, "the body cannot be taken", &problems);
	else
		read_row(c);
}
