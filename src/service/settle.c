/*
 * settle - the decisions after (or instead of) an answer. Pure but for sealing.
 *
 * Every branch ends in one struct store_result. Must not: send, wait, log, or look at anything but its arguments and
 * the random numbers of sys.
 */
#include "service/settle.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/grant_parse.h"
#include "model/import.h"
#include "model/policy.h"
#include "service/seal.h"

#define RAW_MAX ((size_t)2 * 1024 * 1024)
#define TOKEN_MAX ((size_t)128 * 1024)
#define DOUBTS_MAX 1000
/* A missing key comes back with a reload, made by a person. */
#define SEALED_RETRY_US (300 * US_PER_S)
/* A provider that hands out tokens of no length must not make us turn in circles. */
#define MIN_INTERVAL_US (2 * US_PER_S)
#define REFUSED_WAIT_CAP_US (600 * US_PER_S)

/* ---------------------------------------------------------------- facts */

/* As most connections have it: not worth a tree. */
static bool is_empty(const char *json, size_t n)
{
	return n == 2 && memcmp(json, "{}", 2) == 0;
}

static int open_json(struct keyring *k, enum seal_column col, const uint8_t id[16], int64_t version, const void *sealed, size_t n,
	struct json_object **out, struct fault *f)
{
	if (sealed == NULL)
		return 0;
	struct buf plain;
	buf_init_secret(&plain, SEAL_COLUMN_MAX);
	int e = seal_open(k, col, id, version, sealed, n, &plain);
	if (e == 0 && !is_empty(buf_str(&plain), plain.len)) {
		*out = grant_parse_json(buf_str(&plain), plain.len);
		if (*out == NULL)
			e = ST_SYNTAX;
	}
	buf_fini(&plain);
	return e == 0 ? 0 : fault_set(f, e, "%s cannot be opened: %s", col == SEAL_SETTINGS ? "the settings" : "the captured fields", status_text(e));
}

/* The quick parser refuses what json-c has always taken from the database. */
static struct json_object *parse_metadata(const char *s)
{
	if (is_empty(s, strlen(s)))
		return NULL;
	struct json_object *o = grant_parse_json(s, strlen(s));
	return o != NULL ? o : json_tokener_parse(s);
}

/* Each allocation costs more than its bytes. */
static void copy_texts(struct settle_facts *x, const struct store_claimed *c)
{
	const struct {
		const char *from;
		const char **to;
	} texts[] = {
		{ c->key.application_id, &x->application_id },
		{ c->key.consumer_id, &x->consumer_id },
		{ c->key.unified_api, &x->unified_api },
		{ c->key.service_id, &x->service_id },
		{ c->scope, &x->scope },
	};
	size_t len[sizeof texts / sizeof *texts], all = 0;
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
		all += len[i] = texts[i].from != NULL ? strlen(texts[i].from) + 1 : 0;
	char *at = x->text = mem_raw(all);
	for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
		*texts[i].to = len[i] > 0 ? memcpy(at, texts[i].from, len[i]) : NULL;
		at += len[i];
	}
}

void settle_facts_plain(struct settle_facts *x, const struct store_claimed *c)
{
	memset(x, 0, sizeof *x);
	memcpy(x->id, c->id, sizeof x->id);
	x->attempt_id = c->attempt_id;
	x->token_version = c->token_version;
	x->due_at = c->due_at;
	x->doubts = c->doubts;
	copy_texts(x, c);
	x->auth_type = c->auth_type;
	x->enabled = c->enabled;
	x->state = c->state;
	x->health = c->health;
	x->reason = c->reason;
	x->failures = c->failures;
	x->created_at = c->created_at;
	x->updated_at = c->updated_at;
	x->first_failed_at = c->first_failed_at;
	x->last_failed_at = c->last_failed_at;
	x->issued_at = c->issued_at;
	x->expires_at = c->expires_at;
	x->refresh_issued_at = c->refresh_issued_at;
	x->refresh_expires_at = c->refresh_expires_at;
	x->metadata = c->metadata != NULL ? parse_metadata(c->metadata) : NULL;
	buf_init_secret(&x->refresh_token, TOKEN_MAX);
}

int settle_facts_init(struct settle_facts *x, struct keyring *k, const struct store_claimed *c, struct fault *f)
{
	settle_facts_plain(x, c);
	int e = 0;
	if (c->refresh_token != NULL) {
		e = seal_open(k, SEAL_REFRESH_TOKEN, c->id, c->token_version, c->refresh_token, c->refresh_token_len, &x->refresh_token);
		if (e != 0)
			(void)fault_set(f, e, "the refresh token cannot be opened: %s", status_text(e));
	}
	/* Captured fields are sealed once for the version that brought them, so their version is part of nothing: 0. */
	if (e == 0)
		e = open_json(k, SEAL_CAPTURED, c->id, 0, c->captured, c->captured_len, &x->captured, f);
	if (e == 0)
		e = open_json(k, SEAL_SETTINGS, c->id, 0, c->settings, c->settings_len, &x->settings, f);
	x->opened = e == 0;
	if (e != 0)
		settle_facts_fini(x);
	return e;
}

void settle_facts_fini(struct settle_facts *x)
{
	mem_free(x->text);
	buf_fini(&x->refresh_token);
	json_object_put(x->metadata);
	grant_parse_free(x->settings);
	grant_parse_free(x->captured);
	memset(x, 0, sizeof *x);
}

/* ---------------------------------------------------------------- record */

void settle_record_init(struct settle_record *r)
{
	memset(r, 0, sizeof *r);
	buf_init(&r->access_token, SEAL_COLUMN_MAX);
	buf_init(&r->refresh_token, SEAL_COLUMN_MAX);
	buf_init(&r->previous_refresh_token, SEAL_COLUMN_MAX);
	buf_init(&r->captured, SEAL_COLUMN_MAX);
	buf_init(&r->raw_reply, RAW_MAX);
	buf_init(&r->entity, 32 * 1024);
	buf_init(&r->entity_id, EVENT_ENTITY_ID_MAX);
}

void settle_record_fini(struct settle_record *r)
{
	buf_fini(&r->access_token);
	buf_fini(&r->refresh_token);
	buf_fini(&r->previous_refresh_token);
	buf_fini(&r->captured);
	buf_fini(&r->raw_reply);
	buf_fini(&r->entity);
	buf_fini(&r->entity_id);
	mem_free(r->scope);
	r->scope = NULL;
}

/* Everything as it is now, to be changed by the caller. */
static struct store_result *begin(const struct settle_facts *x, struct settle_record *out)
{
	struct store_result *r = &out->result;
	memcpy(r->id, x->id, sizeof r->id);
	r->attempt_id = x->attempt_id;
	r->token_version = x->token_version;
	r->due_at = x->due_at;
	r->doubts = x->doubts;
	r->state = x->state;
	r->health = x->health;
	r->reason = x->reason;
	r->failures = x->failures;
	r->first_failed_at = x->first_failed_at;
	r->last_failed_at = x->last_failed_at;
	r->updated_at = r->seen_at = x->updated_at;
	r->event = EVENT_NONE;
	return r;
}

static int build_event(const struct settle_facts *x, const struct provider *p, struct settle_record *out)
{
	struct store_result *r = &out->result;
	const struct event_entity e = {
		.application_id = x->application_id,
		.consumer_id = x->consumer_id,
		.unified_api = x->unified_api,
		.service_id = x->service_id,
		.name = p != NULL && p->name != NULL ? p->name : x->service_id,
		.website = p != NULL ? p->website : NULL,
		.auth_type = auth_type_word(x->auth_type),
		.state = conn_state_word(r->state),
		.health = conn_health_word(r->health),
		.enabled = x->enabled,
		.created_at = x->created_at,
		.updated_at = r->updated_at,
		.last_refresh_failed_at = r->last_failed_at,
	};
	int err = event_entity_build(&e, &out->entity);
	if (err == 0)
		err = buf_printf(&out->entity_id, "%s+%s", x->application_id, x->consumer_id);
	if (err != 0)
		return err;
	sys_uuid7(r->event_id);
	r->application_id = x->application_id;
	r->entity = buf_str(&out->entity);
	r->entity_id = buf_str(&out->entity_id);
	return 0;
}

static bool lacks_settings(const struct settle_facts *x, const struct provider *p)
{
	if (!x->opened)
		return x->state == CONN_AUTHORIZED;
	return p != NULL && p->auth_type == AUTH_OAUTH2 && !import_settings_complete(x->settings, p);
}

/* Applies the transition table and, when it says so, writes the event. */
static int happen(const struct settle_facts *x, const struct provider *p, enum conn_event ev, int64_t now, struct settle_record *out)
{
	struct store_result *r = &out->result;
	struct conn_change to = connection_apply(x->state, x->health, ev, lacks_settings(x, p));
	r->touch = true;
	r->state = to.state;
	r->health = to.health;
	r->event = to.event;
	r->updated_at = now;
	return to.event == EVENT_NONE ? 0 : build_event(x, p, out);
}

/* ---------------------------------------------------------------- what is presented */

bool settle_uses_refresh_token(const struct settle_facts *x, const struct provider *p)
{
	if (x->refresh_token.len == 0 || p->grant == GRANT_CLIENT)
		return false;
	return p->grant != GRANT_PASSWORD || x->reason != REASON_INVALID_GRANT;
}

/* Only a refresh token can be used up. */
static enum rotation rotation_of(const struct settle_facts *x, const struct provider *p)
{
	return settle_uses_refresh_token(x, p) ? p->rotation : ROTATION_NONE;
}

/* ---------------------------------------------------------------- success */

static void add_members(struct json_object *to, struct json_object *from)
{
	if (from == NULL)
		return;
	json_object_object_foreach(from, name, value)
		ALWAYS(json_object_object_add(to, name, json_object_get(value)) == 0);
}

/* A field that one answer leaves out keeps the value that an earlier one brought, like a refresh token does. */
static int seal_captured(const struct settle_facts *x, struct keyring *k, const struct grant_result *g, struct buf *out)
{
	if (g->captured == NULL)
		return 0;
	struct json_object *all = json_object_new_object();
	ALWAYS(all != NULL);
	add_members(all, x->captured);
	add_members(all, g->captured);
	const char *json = json_object_to_json_string_ext(all, JSON_C_TO_STRING_PLAIN);
	int e = seal_column(k, SEAL_CAPTURED, x->id, 0, json, strlen(json), out);
	json_object_put(all);
	return e;
}

/* A refresh token that was refused before the password was taken is forgotten; one that the grant has no use for stays as it is. */
static int seal_tokens(const struct settle_facts *x, struct keyring *k, const struct provider *p, const struct grant_result *g,
	struct settle_record *out)
{
	int64_t version = x->token_version + 1;
	const struct buf none = BUF_INIT(1);
	bool kept = settle_uses_refresh_token(x, p) || p->grant == GRANT_CLIENT;
	bool rotated = p->grant != GRANT_CLIENT && g->refresh_token.len > 0 &&
		       !buf_equals(&x->refresh_token, g->refresh_token.data, g->refresh_token.len);
	const struct buf *refresh = rotated ? &g->refresh_token : kept ? &x->refresh_token : &none;
	int e = seal_column(k, SEAL_ACCESS_TOKEN, x->id, version, g->access_token.data, g->access_token.len, &out->access_token);
	if (e == 0 && refresh->len > 0)
		e = seal_column(k, SEAL_REFRESH_TOKEN, x->id, version, refresh->data, refresh->len, &out->refresh_token);
	if (e == 0 && rotated && x->refresh_token.len > 0)
		e = seal_column(k, SEAL_PREVIOUS_REFRESH_TOKEN, x->id, version, x->refresh_token.data, x->refresh_token.len,
			&out->previous_refresh_token);
	return e == 0 ? seal_captured(x, k, g, &out->captured) : e;
}

static void set_times(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g,
	int64_t started_at, int64_t now, struct settle_record *out)
{
	struct store_result *r = &out->result;
	bool rotated = g->refresh_token.len > 0;
	const struct policy_life life = {
		.now = now,
		.issued_at = started_at,
		.expires_in_us = g->expires_at_us > started_at ? g->expires_at_us - started_at : 0,
		.jwt_exp = grant_jwt_exp(buf_str(&g->access_token), g->access_token.len),
		.last_lifetime_us = x->issued_at != 0 && x->expires_at > x->issued_at ? x->expires_at - x->issued_at : 0,
	};
	r->issued_at = started_at;
	r->expires_at = policy_expiry(p, &life);
	r->refresh_issued_at = started_at; /* the idle life starts again with every use */
	r->refresh_expires_at = x->refresh_expires_at;
	if (g->refresh_expires_at_us != 0)
		r->refresh_expires_at = g->refresh_expires_at_us;
	else if (rotated && p->refresh_token_ttl_us != 0)
		r->refresh_expires_at = started_at + p->refresh_token_ttl_us;
	if (out->refresh_token.len == 0)
		r->refresh_issued_at = r->refresh_expires_at = 0;
	const struct policy_margin margin = { .margin_us = c->refresh.margin_us, .fraction = c->refresh.margin_fraction };
	const struct policy_due due = {
		.now = now,
		.issued_at = r->issued_at,
		.expires_at = r->expires_at,
		.refresh_issued_at = r->refresh_issued_at,
		.refresh_expires_at = r->refresh_expires_at,
	};
	r->due_at = policy_due_at(p, &margin, &due, sys_random_unit());
	if (r->due_at < now + MIN_INTERVAL_US)
		r->due_at = now + MIN_INTERVAL_US;
}

static int write_tokens(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g,
	int64_t started_at, int64_t now, struct settle_record *out)
{
	struct store_result *r = &out->result;
	int e = seal_tokens(x, c->keyring, p, g, out);
	if (e != 0)
		return e;
	r->has_token = true;
	r->access_token = &out->access_token;
	r->refresh_token = &out->refresh_token;
	r->previous_refresh_token = &out->previous_refresh_token;
	r->captured = &out->captured;
	if (g->token_type[0] != '\0') {
		memcpy(out->token_type, g->token_type, sizeof out->token_type);
		r->token_type = out->token_type;
	}
	if (g->scope.len > 0)
		r->scope = out->scope = mem_strdup(buf_str(&g->scope));
	set_times(x, c, p, g, started_at, now, out);
	if (!provider_renews(p, out->refresh_token.len > 0))
		r->due_at = r->expires_at; /* nothing to refresh with: it can only expire */
	r->doubts = 0;
	return 0;
}

static int settle_refreshed(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g,
	int64_t started_at, int64_t now, struct settle_record *out)
{
	struct store_result *r = &out->result;
	int e = write_tokens(x, c, p, g, started_at, now, out);
	if (e != 0)
		return e;
	enum reason reason = lacks_settings(x, p) ? REASON_MISSING_SETTINGS : REASON_NONE;
	struct conn_change to = connection_apply(x->state, x->health, CE_REFRESHED, reason != REASON_NONE);
	if (to.state == x->state && to.health == x->health && x->failures == 0 && x->reason == reason)
		return 0;
	r->failures = 0;
	r->first_failed_at = 0;
	r->reason = reason;
	return happen(x, p, CE_REFRESHED, now, out);
}

/* ---------------------------------------------------------------- failure */

static int settle_dead(const struct settle_facts *x, const struct provider *p, enum reason why, int64_t now, struct settle_record *out)
{
	struct store_result *r = &out->result;
	r->due_at = TIME_NEVER;
	r->doubts = 0;
	r->reason = why;
	r->failures = x->failures + 1;
	r->last_failed_at = now;
	if (r->first_failed_at == 0)
		r->first_failed_at = now;
	return happen(x, p, CE_DEAD, now, out);
}

/* When an unanswered token may be presented again. Strict providers may have rotated it: once more soon (the request is over, so
 * nobody else holds it), then at the pace of any other failure, which costs nothing that is not lost already. Inside a
 * grace window the old token still works, so be quick. */
static int64_t doubt_retry_us(const struct settle_facts *x, const struct provider *p, int doubts, int failures)
{
	enum rotation rotation = rotation_of(x, p);
	double unit = sys_random_unit();
	int64_t backoff = policy_retry_us((unsigned)failures, 0, unit);
	if (rotation == ROTATION_NONE || doubts > 3)
		return backoff;
	if (doubts == 1)
		return (int64_t)(US_PER_S / 4 + unit * (double)US_PER_S / 4);
	if (rotation == ROTATION_GRACE && p->rotation_grace_us > 0 && backoff > p->rotation_grace_us / 4)
		return p->rotation_grace_us / 4;
	return backoff;
}

static int settle_failed(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g,
	int64_t now, struct settle_record *out)
{
	struct store_result *r = &out->result;
	bool doubt = g->outcome == OUTCOME_IN_DOUBT || g->outcome == OUTCOME_MALFORMED;
	if (doubt && rotation_of(x, p) != ROTATION_NONE && x->doubts < DOUBTS_MAX)
		r->doubts = x->doubts + 1;
	int64_t since = x->first_failed_at != 0 ? x->first_failed_at : now;
	/* Only an answer that is missing now says that a rotation may have been lost; an earlier doubt alone does not. */
	if (now - since >= c->refresh.retry_window_us)
		return settle_dead(x, p, doubt && r->doubts > 0 ? REASON_ROTATION_LOST : REASON_RETRY_WINDOW_OVER, now, out);
	r->reason = g->reason;
	r->failures = x->failures + 1;
	r->first_failed_at = since;
	r->last_failed_at = now;
	int64_t wait = g->outcome == OUTCOME_IN_DOUBT ? doubt_retry_us(x, p, r->doubts, r->failures)
						      : policy_retry_us((unsigned)r->failures, g->retry_after_us, sys_random_unit());
	r->due_at = now + wait;
	return happen(x, p, CE_FAILED, now, out);
}

/* The refresh token is dead and there is a password: with that, at once. The reason says so to the next attempt. */
static void settle_log_in_again(const struct settle_facts *x, int64_t now, struct settle_record *out)
{
	struct store_result *r = &out->result;
	r->touch = true;
	r->reason = REASON_INVALID_GRANT;
	r->updated_at = now > x->updated_at ? now : x->updated_at + 1;
	r->doubts = 0;
	r->due_at = now;
}

/* Nothing was wrong with the connection: come back later, mark nothing. */
static void settle_later(const struct settle_facts *x, const struct grant_result *g, int64_t now, struct settle_record *out)
{
	int64_t wait = policy_retry_us((unsigned)x->failures + 3, g->retry_after_us, sys_random_unit());
	out->result.due_at = now + wait;
}

/* The client was refused, or perhaps only what it asked for this one connection: then it must not be the canary every time
 * and keep the breaker open for the others. So it steps back behind them, for a quarter of the life that is left: never
 * so far that it would expire although the client was mended in time. */
static void settle_refused(const struct settle_facts *x, int64_t now, struct settle_record *out)
{
	int64_t wait = REFUSED_WAIT_CAP_US;
	if (x->expires_at > now && (x->expires_at - now) / 4 < wait)
		wait = (x->expires_at - now) / 4;
	if (wait < MIN_INTERVAL_US)
		wait = MIN_INTERVAL_US;
	out->result.due_at = now + wait + (int64_t)(sys_random_unit() * (double)wait / 4);
}

int settle_answer(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g,
	int64_t started_at, const struct buf *raw, int64_t now, struct settle_record *out)
{
	struct store_result *r = begin(x, out);
	if (raw != NULL && raw->len > 0) {
		int e = seal_column(c->keyring, SEAL_RAW_REPLY, x->id, x->token_version, raw->data, raw->len, &out->raw_reply);
		if (e != 0)
			return e;
		r->raw_reply = &out->raw_reply;
	}
	switch (g->outcome) {
	case OUTCOME_REFRESHED:
		return settle_refreshed(x, c, p, g, started_at, now, out);
	case OUTCOME_GRANT_DEAD:
		if (p->grant == GRANT_PASSWORD && settle_uses_refresh_token(x, p)) {
			settle_log_in_again(x, now, out);
			return 0;
		}
		/* Refused after an unanswered presentation: the rotation took place and its answer never came. */
		return settle_dead(x, p, x->doubts > 0 && rotation_of(x, p) != ROTATION_NONE ? REASON_ROTATION_LOST : g->reason, now, out);
	case OUTCOME_CLIENT_BROKEN:
		settle_refused(x, now, out);
		return 0;
	case OUTCOME_RATE_LIMITED:
		if (x->expires_at == 0 || x->expires_at > now) {
			settle_later(x, g, now, out);
			return 0;
		}
		return settle_failed(x, c, p, g, now, out);
	case OUTCOME_TRANSIENT:
	case OUTCOME_NEVER_SENT:
	case OUTCOME_IN_DOUBT:
	case OUTCOME_MALFORMED:
	case OUTCOME_COUNT:
		break;
	}
	return settle_failed(x, c, p, g, now, out);
}

/* Whoever took the row over presented the old token meanwhile. Where that was refused, a strict provider may have revoked the new
 * one as well: nothing is said before it has been tried, which is at once. */
int settle_merge(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g,
	int64_t started_at, int64_t now, struct settle_record *out)
{
	struct store_result *r = begin(x, out);
	if (x->health != HEALTH_NEEDS_AUTH)
		return settle_refreshed(x, c, p, g, started_at, now, out);
	int e = write_tokens(x, c, p, g, started_at, now, out);
	if (e == 0 && provider_renews(p, out->refresh_token.len > 0))
		r->due_at = now;
	return e;
}

/* ---------------------------------------------------------------- before a send */

enum settle_verdict settle_before_send(const struct settle_facts *x, const struct provider *p, const struct client *c, int64_t now,
	struct settle_record *out, int64_t *due_at)
{
	*due_at = 0;
	if (!x->enabled || x->auth_type != AUTH_OAUTH2 || x->health == HEALTH_REVOKED) {
		begin(x, out)->due_at = TIME_NEVER;
		return SETTLE_RECORD;
	}
	if (p == NULL || c == NULL) { /* the configuration changed between the claim's budget and now */
		*due_at = now + 30 * US_PER_S;
		return SETTLE_RELEASE;
	}
	if (provider_renews(p, x->refresh_token.len > 0))
		return SETTLE_SEND;
	if (x->expires_at > now) {
		*due_at = x->expires_at;
		return SETTLE_RELEASE;
	}
	(void)begin(x, out);
	if (settle_dead(x, p, REASON_NO_REFRESH_TOKEN, now, out) == 0)
		return SETTLE_RECORD;
	*due_at = now + 30 * US_PER_S;
	return SETTLE_RELEASE;
}

int settle_unsealable(const struct settle_facts *x, const struct conf *c, const struct provider *p, int64_t now, struct settle_record *out)
{
	(void)begin(x, out);
	const struct grant_result g = { .outcome = OUTCOME_NEVER_SENT, .reason = REASON_SEALED, .retry_after_us = SEALED_RETRY_US };
	return settle_failed(x, c, p, &g, now, out);
}

void settle_missing_settings(const struct settle_facts *x, const struct provider *p, int64_t now, struct settle_record *out)
{
	struct store_result *r = begin(x, out);
	r->due_at = TIME_NEVER; /* until its settings change */
	r->reason = REASON_MISSING_SETTINGS;
	/* The words come from our own tables and checked keys: the entity cannot outgrow its buffer. */
	ALWAYS(happen(x, p, CE_SETTINGS_MISSING, now, out) == 0);
}
