/*
 * api_credentials - validate (refresh now and say how it went), token (the same for a connection whose grant
 * needs nobody, made if it is not there) and credentials (the access token for its owner's own code).
 *
 * All make the row due and wait; the refresh is done by whoever claims it, once, however many ask. An access
 * token is opened for the answer only and never lies in a buffer that is not wiped. A refresh token is not
 * even read here.
 */
#include "api/api_priv.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"
#include "model/grant_parse.h"
#include "service/seal.h"

#define TOKEN_MAX ((size_t)128 * 1024)
#define MIN_TTL_MAX_S 86400
/* Of a token's life: who asks for more would have it refreshed at every call. */
#define TTL_SHARE 0.8

enum wanted { WANT_STATE, WANT_TOKEN, WANT_CONNECTION };

struct need {
	enum wanted what;
	int64_t min_ttl_us;
	struct store_conn_id id;
	struct api_baseline seen;
};

static void need_free(void *state)
{
	mem_free(state);
}

/* ---------------------------------------------------------------- answers */

static void reply_state(struct api_call *c, const struct store_connection *k)
{
	struct api_reply r;
	struct buf id = BUF_INIT(200);
	ALWAYS(buf_printf(&id, "%s+%s", k->key.unified_api, k->key.service_id) == 0);
	api_reply_begin(&r, c, 4096, false);
	jsonw_object(&r.w, "data");
	jsonw_str(&r.w, "id", buf_str(&id));
	jsonw_str(&r.w, "state", k->state);
	jsonw_object_end(&r.w);
	buf_fini(&id);
	api_reply_send(&r);
}

static void reply_token(struct api_call *c, const struct store_connection *k)
{
	struct buf token = BUF_INIT_SECRET(TOKEN_MAX);
	struct api_reply r;
	int e = seal_open(c->conf->keyring, SEAL_ACCESS_TOKEN, k->id, k->token_version, k->access_token,
		k->access_token_len, &token);
	if (e != 0) {
		log_error("api.token_not_opened", K_ID(k->id), K_STATUS(e));
		api_fail(c, API_INTERNAL, "the stored token cannot be opened: %s", status_text(e));
		buf_fini(&token);
		return;
	}
	api_reply_begin(&r, c, 4 * TOKEN_MAX, true);
	jsonw_object(&r.w, "data");
	jsonw_strn(&r.w, "access_token", buf_str(&token), token.len);
	jsonw_str(&r.w, "token_type", k->token_type != NULL ? k->token_type : "Bearer");
	if (k->expires_at > 0 && k->expires_at != INT64_MAX)
		jsonw_int(&r.w, "expires_at", k->expires_at / US_PER_MS);
	jsonw_object_end(&r.w);
	buf_fini(&token);
	api_reply_send(&r);
}

static void fail_dead(struct api_call *c, const struct store_connection *k, const char *reason)
{
	api_fail_refresh(c, API_UNAUTHORIZED, reason, k->failures,
		"the token cannot be refreshed any more; the connection has to be authorized again");
}

static void fail_by_row(struct api_call *c, const struct store_connection *k)
{
	if (strcmp(k->state, "invalid") == 0 || strcmp(k->health, "needs_auth") == 0 ||
		strcmp(k->health, "revoked") == 0)
		fail_dead(c, k, k->reason);
	else if (strcmp(k->health, "missing_settings") == 0)
		api_fail(c, API_SETTINGS, "a setting that the connector needs is missing");
	else /* a client or a pace that was refused is no fault of the connection: its row has no reason */
		api_fail_refresh(c, API_CONNECTOR_FAILED,
			strcmp(k->reason, "none") == 0 ? reason_word(REASON_PROVIDER_ERROR) : k->reason,
			k->failures, "the provider did not refresh the token now; it is tried again");
}

/* ---------------------------------------------------------------- what is there */

static int64_t left_us(const struct store_connection *k)
{
	if (k->access_token == NULL)
		return 0;
	return k->expires_at == 0 ? INT64_MAX : k->expires_at - sys_wall_us();
}

static int64_t wanted_us(const struct need *need, const struct store_connection *k)
{
	int64_t life =
		k->issued_at > 0 && k->expires_at > k->issued_at ? k->expires_at - k->issued_at : INT64_MAX;
	int64_t most = life == INT64_MAX ? INT64_MAX : (int64_t)((double)life * TTL_SHARE);
	return need->min_ttl_us < most ? need->min_ttl_us : most;
}

static bool usable(const struct store_connection *k)
{
	return strcmp(k->state, "callable") == 0 && left_us(k) > 0;
}

/* The settings as shown have every name, and that is all that is asked here. */
static bool settings_complete(const struct store_connection *k, const struct provider *p)
{
	struct json_object *o = grant_parse_json(k->settings_public, strlen(k->settings_public));
	bool complete = o != NULL && import_settings_complete(o, p);
	grant_parse_free(o);
	return complete;
}

/* ---------------------------------------------------------------- refresh now */

static void on_row_again(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	if (code != 0)
		api_fail_store(c, code);
	else if (n == 0)
		api_fail_missing(c);
	else if (!v[0].enabled)
		api_fail(c, API_SETTINGS, "the connection is disabled");
	else if (usable(&v[0]))
		reply_token(c, &v[0]); /* even if it could not be renewed: expires_at tells what it is worth */
	else
		fail_by_row(c, &v[0]);
}

/* Long after the key was looked at: a token is given to nobody whose key was revoked meanwhile. */
static void read_again(struct api_call *c)
{
	const struct need *need = c->state;
	int e = store_connections(c->api->parts.store, &need->id, 1, true, on_row_again, c);
	if (e != 0)
		api_fail_store(c, e);
}

static void on_ended(struct api_call *c, int code, bool ended_well, const struct store_connection *k)
{
	const struct need *need = c->state;
	if (code == ST_NOT_FOUND)
		api_fail_missing(c);
	else if (code != 0 && code != ST_TIMEOUT)
		api_fail_store(c, code);
	else if (k != NULL && !k->enabled)
		api_fail(c, API_SETTINGS, "the connection is disabled");
	else if (k != NULL && need->what == WANT_TOKEN && usable(k))
		api_auth_again(c, read_again);
	else if (k != NULL && ended_well && need->what == WANT_STATE)
		reply_state(c, k);
	else if (k != NULL && ended_well && need->what == WANT_CONNECTION)
		api_reply_connection(c, k);
	else if (code == ST_TIMEOUT || k == NULL)
		api_fail(c, API_TIMEOUT, "the refresh did not end within 60 seconds; it goes on by itself");
	else
		fail_by_row(c, k);
}

static void on_due(void *arg, int code, int64_t n)
{
	struct api_call *c = arg;
	const struct need *need = c->state;
	(void)n; /* none: an attempt is out or has just ended; either way there is an outcome to wait for */
	if (code != 0) {
		api_fail_store(c, code);
		return;
	}
	scheduler_look_at(c->api->parts.scheduler, need->id.id);
	if (api_wait(c->api->room, c, &need->seen, on_ended) != 0) {
		api_retry_after(c, 5);
		api_fail(c, API_UNAVAILABLE, "too many calls wait for a refresh");
	}
}

/* Or answered. */
static bool has_client(struct api_call *c, int failures)
{
	if (conf_client(c->conf, c->application, c->key.service_id) != NULL)
		return true;
	api_fail_refresh(c, API_CONNECTOR_FAILED, reason_word(REASON_NO_CLIENT), failures, "%s",
		reason_text(REASON_NO_CLIENT));
	return false;
}

/* The outcome is measured against the row as it was read, so none can slip through in between. */
static void refresh_now(struct api_call *c, const struct store_connection *k)
{
	struct need *need = c->state;
	/* An attempt that an import voided is none of the present tokens'. */
	need->seen = (struct api_baseline){.token_version = k->token_version,
		.attempt_id = k->attempt_id,
		.leased = k->leased && k->attempt_id != 0};
	if (!has_client(c, k->failures))
		return;
	if (!store_writable(c->api->parts.store)) {
		api_fail_store(c, ST_UNAVAILABLE);
		return;
	}
	/* Due already: its attempt may have begun, and must not be called for once more when it has failed. */
	if (k->due_at <= sys_wall_us()) {
		on_due(c, 0, 0);
		return;
	}
	int e = store_due_now(c->api->parts.store, &need->id, k->token_version, on_due, c);
	if (e != 0)
		api_fail_store(c, e);
}

/* ---------------------------------------------------------------- the handlers */

static void validate_oauth2(struct api_call *c, const struct store_connection *k, const struct provider *p)
{
	if (!settings_complete(k, p))
		api_fail(c, API_SETTINGS, "a setting that the connector needs is missing");
	else if (provider_renews(p, k->has_refresh_token))
		refresh_now(c, k);
	else if (usable(k))
		reply_state(c, k);
	else
		fail_dead(c, k, reason_word(REASON_NO_REFRESH_TOKEN));
}

static void give_credentials(struct api_call *c, const struct store_connection *k, const struct provider *p)
{
	const struct need *need = c->state;
	if (usable(k) && left_us(k) > wanted_us(need, k))
		reply_token(c, k);
	else if (strcmp(k->state, "invalid") == 0)
		fail_dead(c, k, k->reason);
	else if (strcmp(k->state, "authorized") == 0 && !settings_complete(k, p))
		api_fail(c, API_SETTINGS, "a setting that the connector needs is missing");
	else if (provider_renews(p, k->has_refresh_token) && (store_writable(c->api->parts.store) || !usable(k)))
		refresh_now(c, k);
	else if (usable(k))
		reply_token(c, k);
	else
		fail_dead(c, k, reason_word(REASON_NO_REFRESH_TOKEN));
}

static void on_row(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	const struct need *need = c->state;
	const struct provider *p = api_provider(c);
	if (code != 0)
		api_fail_store(c, code);
	else if (n == 0 || p == NULL)
		api_fail_missing(c);
	else if (!v[0].enabled)
		api_fail(c, API_SETTINGS, "the connection is disabled");
	else if (strcmp(v[0].auth_type, "oauth2") == 0 && need->what == WANT_TOKEN)
		give_credentials(c, &v[0], p);
	else if (strcmp(v[0].auth_type, "oauth2") == 0)
		validate_oauth2(c, &v[0], p);
	else if (need->what == WANT_TOKEN)
		api_fail(c, API_SETTINGS, "the connector has no access token: its auth_type is not oauth2");
	else if (!settings_complete(&v[0], p))
		api_fail(c, API_SETTINGS, "a setting that the connector needs is missing");
	else
		reply_state(c, &v[0]);
}

static struct need *need_new(struct api_call *c, enum wanted what)
{
	struct need *need = mem_alloc(sizeof *need);
	need->what = what;
	api_conn_id(c, &need->id);
	c->state = need;
	c->free_state = need_free;
	return need;
}

static void read_row(struct api_call *c, store_connections_fn *fn)
{
	const struct need *need = c->state;
	int e = store_connections(c->api->parts.store, &need->id, 1, true, fn, c);
	if (e != 0)
		api_fail_store(c, e);
}

/* The body of the two calls that take none. */
static bool empty_body(struct api_call *c)
{
	struct json_object *body = api_body(c, true);
	bool good = body != NULL;
	grant_parse_free(body);
	return good;
}

void api_do_validate(struct api_call *c)
{
	if (!empty_body(c))
		return;
	(void)need_new(c, WANT_STATE);
	read_row(c, on_row);
}

void api_do_credentials(struct api_call *c)
{
	int64_t s;
	if (api_query_int(c, "min_ttl", 0, 0, MIN_TTL_MAX_S, &s) != 0)
		return;
	need_new(c, WANT_TOKEN)->min_ttl_us = s * US_PER_S;
	read_row(c, on_row);
}

/* ---------------------------------------------------------------- the grant, now */

static void run_grant(struct api_call *c, const struct store_connection *k)
{
	const struct provider *p = api_provider(c);
	if (c->state == NULL)
		(void)need_new(c, WANT_CONNECTION);
	if (!k->enabled)
		api_fail(c, API_SETTINGS, "the connection is disabled");
	else if (!settings_complete(k, p))
		api_fail(c, API_SETTINGS, "a setting that the connector needs is missing");
	else
		refresh_now(c, k);
}

static void on_row_of_grant(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	const struct provider *p = api_provider(c);
	if (code != 0) {
		api_fail_store(c, code);
	} else if (n > 0) {
		run_grant(c, &v[0]);
	} else if (p->required_settings.n > 0) {
		api_fail(c, API_SETTINGS,
			"there is no such connection yet, and it needs settings: import it with them");
	} else if (has_client(c, 0)) {
		c->free_state(c->state);
		c->state = NULL;
		api_imports_make(c->api->imports, c, p, run_grant);
	}
}

void api_do_token(struct api_call *c)
{
	const struct provider *p = api_provider(c);
	if (!empty_body(c))
		return;
	if (p == NULL) {
		api_fail_missing(c);
	} else if (p->auth_type != AUTH_OAUTH2 || p->grant == GRANT_CODE) {
		api_fail(c, API_BAD_REQUEST,
			"the connector has no grant that could be run here: %s",
			p->auth_type == AUTH_OAUTH2 ? "with authorization_code a person logs in and the tokens are imported"
						    : "its auth_type is not oauth2");
	} else {
		(void)need_new(c, WANT_CONNECTION);
		read_row(c, on_row_of_grant);
	}
}
