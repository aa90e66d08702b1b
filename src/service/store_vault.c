/*
 * store_vault - what the API reads. Read the statements first; the C below only binds and unpacks.
 *
 * Pages are by key, newest or smallest first, never by offset. What is written is in store_vault_write.c.
 */
#include "service/store_vault.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"

/* A request must not hang on a database that is away: it is told so and comes again. */
#define READ_WAIT_US (2 * US_PER_S)

/* ---------------------------------------------------------------- statements */

static const struct pgstmt SQL_KEY = {
	"vaultapi_key",
	"SELECT application_id, array_to_string(scopes, ' '), revoked_at IS NOT NULL FROM refreshd.api_key WHERE key_sha256 = $1",
};
static const struct pgstmt SQL_BY_INDEX = { "vaultapi_by_index", "SELECT set_config('enable_seqscan', 'off', true)" };
const struct pgstmt vault_connections_of = { "vaultapi_connections", VAULT_CONNECTIONS_OF };
static const struct pgstmt SQL_LIST = {
	"vaultapi_list",
	"SELECT * FROM (SELECT q.*, coalesce(sum(octet_length(q.metadata::text) + octet_length(q.settings_public::text))"
	" OVER (ORDER BY q.consumer_id, q.unified_api, q.service_id ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING), 0) AS bytes_before FROM ("
	VAULT_CONNECTION_COLUMNS("$1")
	"FROM refreshd.connection n" VAULT_CONNECTION_JOINS
	"WHERE n.application_id = $2 AND ($3::text IS NULL OR n.consumer_id = $3) AND ($4::text IS NULL OR n.unified_api = $4)"
	" AND n.consumer_id >= $5 AND (n.consumer_id, n.unified_api, n.service_id) > ($5, $6, $7)"
	" ORDER BY n.consumer_id, n.unified_api, n.service_id LIMIT $8) q) w WHERE bytes_before < $9"
	" ORDER BY consumer_id, unified_api, service_id",
};
static const struct pgstmt SQL_CONSUMERS = {
	"vaultapi_consumers",
	"SELECT consumer_id, json_agg(DISTINCT service_id), min(created_at), max(updated_at) FROM refreshd.connection"
	" WHERE application_id = $1 AND consumer_id > $2 GROUP BY consumer_id ORDER BY consumer_id LIMIT $3",
};
static const struct pgstmt SQL_LOG = {
	"vaultapi_log",
	"SELECT event_id, event_type, entity_type, entity, reason, failures, occurred_at FROM refreshd.event"
	" WHERE application_id = $1 AND ($2::text IS NULL OR entity_id = $2) AND occurred_at <= $3"
	" AND (occurred_at, event_id) < ($3, $4) ORDER BY occurred_at DESC, event_id DESC LIMIT $5",
};

/* ---------------------------------------------------------------- helpers */

void vault_by_index(struct pgtx *t)
{
	pgtx_add(t, &SQL_BY_INDEX, pgargs_new());
}

/* ---------------------------------------------------------------- keys */

struct key_call {
	store_key_fn *fn;
	void *arg;
};

static void on_key(void *arg, const struct pgtx_result *r)
{
	struct key_call call = *(struct key_call *)arg;
	mem_free(arg);
	int code = store_code_of(r);
	if (code != 0 || pgresult_rows(&r->results[0]) == 0) {
		call.fn(call.arg, code, NULL);
		return;
	}
	const struct store_key k = {
		.application_id = pgresult_text(&r->results[0], 0, 0, NULL),
		.scopes = pgresult_text(&r->results[0], 0, 1, NULL),
		.revoked = pgresult_bool(&r->results[0], 0, 2),
	};
	call.fn(call.arg, 0, &k);
}

int store_key_of(struct store *s, const uint8_t sha256[32], store_key_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_bytes(a, sha256, 32);
	return store_send_stmt(s, &SQL_KEY, a, READ_WAIT_US, on_key, STORE_CALL(key_call, .fn = fn, .arg = arg));
}

/* ---------------------------------------------------------------- connections */

enum {
	C_ID, C_APP, C_CONSUMER, C_API, C_SERVICE, C_AUTH, C_STATE, C_HEALTH, C_REASON, C_ENABLED, C_FAILURES, C_LAST_FAILED,
	C_CREATED, C_UPDATED, C_METADATA, C_SETTINGS_PUBLIC, C_VERSION, C_ISSUED, C_EXPIRES, C_R_ISSUED, C_R_EXPIRES, C_HAS_REFRESH,
	C_TOKEN_TYPE, C_ATTEMPT, C_DUE, C_LEASED, C_SETTINGS, C_ACCESS
};

static void unpack(const struct pgresult *r, int i, struct store_connection *c)
{
	*c = (struct store_connection){
		.key = { pgresult_text(r, i, C_APP, NULL), pgresult_text(r, i, C_CONSUMER, NULL), pgresult_text(r, i, C_API, NULL),
			pgresult_text(r, i, C_SERVICE, NULL) },
		.auth_type = pgresult_text(r, i, C_AUTH, NULL),
		.state = pgresult_text(r, i, C_STATE, NULL),
		.health = pgresult_text(r, i, C_HEALTH, NULL),
		.reason = pgresult_text(r, i, C_REASON, NULL),
		.enabled = pgresult_bool(r, i, C_ENABLED),
		.failures = (int)pgresult_int(r, i, C_FAILURES),
		.last_failed_at = pgresult_time_or_0(r, i, C_LAST_FAILED),
		.created_at = pgresult_time_or_0(r, i, C_CREATED),
		.updated_at = pgresult_time_or_0(r, i, C_UPDATED),
		.metadata = pgresult_text(r, i, C_METADATA, NULL),
		.settings_public = pgresult_text(r, i, C_SETTINGS_PUBLIC, NULL),
		.token_version = pgresult_int(r, i, C_VERSION),
		.issued_at = pgresult_time_or_0(r, i, C_ISSUED),
		.expires_at = pgresult_time_or_0(r, i, C_EXPIRES),
		.refresh_issued_at = pgresult_time_or_0(r, i, C_R_ISSUED),
		.refresh_expires_at = pgresult_time_or_0(r, i, C_R_EXPIRES),
		.has_refresh_token = pgresult_bool(r, i, C_HAS_REFRESH),
		.token_type = pgresult_text_or_null(r, i, C_TOKEN_TYPE),
		.attempt_id = pgresult_int(r, i, C_ATTEMPT),
		.due_at = pgresult_time(r, i, C_DUE),
		.leased = pgresult_bool(r, i, C_LEASED),
	};
	memcpy(c->id, pgresult_uuid(r, i, C_ID), 16);
	c->settings = pgresult_bytes_or_null(r, i, C_SETTINGS, &c->settings_len);
	c->access_token = pgresult_bytes_or_null(r, i, C_ACCESS, &c->access_token_len);
}

void vault_on_rows(void *arg, const struct pgtx_result *r)
{
	struct vault_rows_call call = *(struct vault_rows_call *)arg;
	mem_free(arg);
	int code = store_code_of(r);
	if (code != 0) {
		call.fn(call.arg, code, NULL, 0);
		return;
	}
	const struct pgresult *last = &r->results[r->n - 1];
	int n = pgresult_rows(last);
	struct store_connection *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		unpack(last, i, &v[i]);
	call.fn(call.arg, 0, v, (size_t)n);
	mem_free(v);
}

static int send_rows(struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_connections_fn *fn, void *arg)
{
	return store_send_stmt(s, stmt, a, READ_WAIT_US, vault_on_rows, STORE_CALL(vault_rows_call, .fn = fn, .arg = arg));
}

struct pgargs *vault_ids_args(const struct store_conn_id *v, size_t n, bool sealed)
{
	struct pgargs *a = pgargs_new();
	pgargs_bool(a, sealed);
	store_add_keys(a, v[0].id, sizeof *v, n);
	PGARGS_COLUMN(a, PGT_TEXT, v, n, pgargs_text(a, x->application_id));
	return a;
}

int store_connections(struct store *s, const struct store_conn_id *v, size_t n, bool sealed, store_connections_fn *fn, void *arg)
{
	struct pgtx *t = pgtx_new();
	vault_by_index(t);
	pgtx_add(t, &vault_connections_of, vault_ids_args(v, n, sealed));
	return store_send_call(s, t, READ_WAIT_US, vault_on_rows, STORE_CALL(vault_rows_call, .fn = fn, .arg = arg));
}

int store_connections_list(struct store *s, const struct store_conn_list *w, store_connections_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_bool(a, false);
	pgargs_text(a, w->application_id);
	pgargs_text(a, w->consumer_id);
	pgargs_text(a, w->unified_api);
	pgargs_text(a, w->after.consumer_id);
	pgargs_text(a, w->after.unified_api);
	pgargs_text(a, w->after.service_id);
	pgargs_i64(a, w->limit);
	pgargs_i64(a, (int64_t)w->bytes);
	return send_rows(s, &SQL_LIST, a, fn, arg);
}

/* ---------------------------------------------------------------- consumers */

struct consumers_call {
	store_consumers_fn *fn;
	void *arg;
};

static void on_consumers(void *arg, const struct pgtx_result *r)
{
	struct consumers_call call = *(struct consumers_call *)arg;
	mem_free(arg);
	int code = store_code_of(r);
	if (code != 0) {
		call.fn(call.arg, code, NULL, 0);
		return;
	}
	const struct pgresult *rows = &r->results[0];
	int n = pgresult_rows(rows);
	struct store_consumer *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		v[i] = (struct store_consumer){
			.consumer_id = pgresult_text(rows, i, 0, NULL),
			.services = pgresult_text(rows, i, 1, NULL),
			.created_at = pgresult_time(rows, i, 2),
			.updated_at = pgresult_time(rows, i, 3),
		};
	call.fn(call.arg, 0, v, (size_t)n);
	mem_free(v);
}

int store_consumers(struct store *s, const char *application_id, const char *after, unsigned limit, store_consumers_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_text(a, application_id);
	pgargs_text(a, after);
	pgargs_i64(a, limit);
	return store_send_stmt(s, &SQL_CONSUMERS, a, READ_WAIT_US, on_consumers, STORE_CALL(consumers_call, .fn = fn, .arg = arg));
}

/* ---------------------------------------------------------------- what happened */

struct log_call {
	store_log_fn *fn;
	void *arg;
};

static void on_log(void *arg, const struct pgtx_result *r)
{
	struct log_call call = *(struct log_call *)arg;
	mem_free(arg);
	int code = store_code_of(r);
	if (code != 0) {
		call.fn(call.arg, code, NULL, 0);
		return;
	}
	const struct pgresult *rows = &r->results[0];
	int n = pgresult_rows(rows);
	struct store_happened *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++) {
		v[i] = (struct store_happened){
			.event_type = pgresult_text(rows, i, 1, NULL),
			.entity_type = pgresult_text(rows, i, 2, NULL),
			.entity = pgresult_text(rows, i, 3, NULL),
			.reason = pgresult_text_or_null(rows, i, 4),
			.failures = (int)pgresult_int(rows, i, 5),
			.occurred_at = pgresult_time(rows, i, 6),
		};
		memcpy(v[i].event_id, pgresult_uuid(rows, i, 0), 16);
	}
	call.fn(call.arg, 0, v, (size_t)n);
	mem_free(v);
}

int store_log(struct store *s, const struct store_log *w, store_log_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_text(a, w->application_id);
	pgargs_text(a, w->entity_id);
	pgargs_time(a, w->before);
	pgargs_uuid(a, w->before_id);
	pgargs_i64(a, w->limit);
	return store_send_stmt(s, &SQL_LOG, a, READ_WAIT_US, on_log, STORE_CALL(log_call, .fn = fn, .arg = arg));
}
