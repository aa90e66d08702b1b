/*
 * store_vault_write - what the API writes: import, change, forget, due now.
 *
 * Each is one transaction: lock the schedule rows (in the order of their ids, so that two writers cannot deadlock),
 * then write what still fits by a statement with a snapshot of its own, taken when the locks were ours, so what it
 * compares cannot change any more. What is made new needs no lock: whose schedule row it is is decided by its key.
 */
#include "service/store_vault.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/store_refresh.h"
#include "service/upsert.h"

#define WRITE_WAIT_US (2 * US_PER_S)

/* ---------------------------------------------------------------- statements */

static const struct pgstmt SQL_LOCK = {
	"vaultapi_lock",
	"SELECT count(*) FROM (SELECT * FROM unnest($1::smallint[], $2::uuid[]) AS t (slot, connection_id) ORDER BY slot, connection_id) t,"
	" LATERAL (SELECT 1 FROM refreshd.schedule s WHERE s.slot = t.slot AND s.connection_id = t.connection_id LIMIT 1"
	" FOR NO KEY UPDATE) locked",
};

/* What comes in, a row each; in the select list, because each array in FROM would be a tuplestore of its own. No table is
 * joined to it anywhere: rows that are there are found by ON CONFLICT or one by one. */
#define UPSERT_ROWS \
	"(SELECT unnest($1::smallint[]) AS slot, unnest($2::uuid[]) AS connection_id, " \
	"unnest($3::text[]) AS application_id, unnest($4::text[]) AS consumer_id, " \
	"unnest($5::text[]) AS unified_api, unnest($6::text[]) AS service_id, " \
	"unnest($7::text[]) AS auth_type, unnest($8::bigint[]) AS token_version, " \
	"unnest($9::timestamptz[]) AS due_at, unnest($10::timestamptz[]) AS issued_at, " \
	"unnest($11::timestamptz[]) AS expires_at, unnest($12::timestamptz[]) AS refresh_issued_at, " \
	"unnest($13::timestamptz[]) AS refresh_expires_at, unnest($14::bytea[]) AS access_token, " \
	"unnest($15::bytea[]) AS refresh_token, unnest($16::bytea[]) AS settings, " \
	"unnest($17::text[]) AS settings_public, unnest($18::text[]) AS metadata, " \
	"unnest($19::text[]) AS state, unnest($20::text[]) AS health, unnest($21::timestamptz[]) AS seen_at, " \
	"unnest($22::text[]) AS event_type, unnest($23::uuid[]) AS event_id, " \
	"unnest($24::text[]) AS entity_id, unnest($25::text[]) AS entity, unnest($26::timestamptz[]) AS now_at) t"

/* Will the fan-out find somebody for these events? $27: somebody whom the database does not know. Once for the statement. */
#define WANTED                                                                                                            \
	"$27 OR EXISTS (SELECT 1 FROM refreshd.webhook_endpoint w WHERE w.application_id = ANY($3) AND w.disabled_at IS NULL)" \
	" AS wanted"

/* Whose schedule row it is decides about the rest; they come in the order of their keys, and are made in it. Nothing here is read by
 * a plan, nothing is copied that need not be, and as few nodes as can be: this is what an import costs. */
static const struct pgstmt SQL_CREATE = {
	"vaultapi_create",
	"WITH i AS (INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)"
	" SELECT unnest($1::smallint[]), unnest($2::uuid[]), unnest($8::bigint[]), unnest($9::timestamptz[]), unnest($3::text[]),"
	" unnest($6::text[])"
	" ON CONFLICT DO NOTHING RETURNING slot, connection_id),"
	" a AS MATERIALIZED (SELECT t.slot, t.connection_id, t.application_id, t.consumer_id, t.unified_api, t.service_id, t.auth_type,"
	" t.token_version, t.issued_at, t.expires_at, t.refresh_issued_at, t.refresh_expires_at, t.access_token, t.refresh_token,"
	" t.settings, t.settings_public::jsonb, t.metadata::jsonb, true AS created, t.state, t.health, t.event_type, t.event_id,"
	" t.entity_id, t.entity, t.now_at, " WANTED " FROM " UPSERT_ROWS " JOIN i USING (slot, connection_id)),"
	" k AS (" UPSERT_CREDENTIAL_INSERT "),"
	" e AS (" UPSERT_EVENT("now_at") "),"
	" n AS (" UPSERT_CONNECTION_INSERT("now_at") " RETURNING connection_id, metadata, settings_public)"
	" SELECT connection_id, metadata, settings_public, (SELECT bool_or(wanted) FROM a) FROM n",
};

/* The rows are locked: what is read here cannot change any more, and each of them meets itself in ON CONFLICT. */
static const struct pgstmt SQL_RENEW = {
	"vaultapi_renew",
	"WITH r AS MATERIALIZED (SELECT t.slot, t.connection_id, t.application_id, t.consumer_id, t.unified_api, t.service_id,"
	" t.auth_type, t.token_version, t.due_at, t.issued_at, t.expires_at, t.refresh_issued_at, t.refresh_expires_at,"
	" t.access_token, t.refresh_token, coalesce(t.settings, c.settings) AS settings,"
	" coalesce(t.settings_public::jsonb, c.settings_public) AS settings_public, coalesce(t.metadata::jsonb, c.metadata) AS metadata,"
	" t.state, t.health, c.created_at, t.event_type, t.event_id, t.entity_id, t.entity, t.now_at, " WANTED
	" FROM " UPSERT_ROWS " JOIN LATERAL " VAULT_ROW_OF("connection") " c"
	" ON c.updated_at = t.seen_at AND c.application_id = t.application_id),"
	" s AS (INSERT INTO refreshd.schedule AS s (slot, connection_id, token_version, due_at, application_id, service_id)"
	" SELECT slot, connection_id, token_version, due_at, application_id, service_id FROM r ORDER BY slot, connection_id"
	" ON CONFLICT (slot, connection_id) DO UPDATE SET " UPSERT_SCHEDULE_SET("excluded")
	" WHERE s.token_version < excluded.token_version RETURNING s.slot, s.connection_id),"
	" a AS MATERIALIZED (SELECT r.* FROM r JOIN s USING (slot, connection_id)),"
	" k AS (" UPSERT_CREDENTIAL "),"
	" e AS (" UPSERT_EVENT("now_at") "),"
	" n AS (" UPSERT_CONNECTION_RENEW("now_at") " RETURNING connection_id, metadata, settings_public)"
	" SELECT connection_id, metadata, settings_public, (SELECT bool_or(wanted) FROM a) FROM n",
};

static const struct pgstmt SQL_CHANGE = {
	"vaultapi_change",
	"WITH u AS (UPDATE refreshd.connection c SET enabled = $6, state = $7, health = $8, reason = $9,"
	" settings = coalesce($10, c.settings), settings_public = coalesce($11, c.settings_public),"
	" metadata = coalesce($12, c.metadata), updated_at = $5"
	" WHERE c.slot = $1 AND c.connection_id = $2 AND c.application_id = $3 AND c.updated_at = $4"
	" RETURNING c.slot, c.connection_id, c.application_id),"
	" s AS (UPDATE refreshd.schedule s SET due_at = $13 FROM u"
	" WHERE $13 IS NOT NULL AND s.slot = u.slot AND s.connection_id = u.connection_id AND NOT " STORE_SET_ASIDE ")"
	" INSERT INTO refreshd.event (event_id, application_id, connection_id, event_type, entity_id, entity_type, entity, occurred_at)"
	" SELECT $14, u.application_id, u.connection_id, $15, $16, 'Connection', $17, $5 FROM u WHERE $15::text IS NOT NULL",
};

/* Whatever changed the row while its lock was waited for happened before. */
static const struct pgstmt SQL_FORGET = {
	"vaultapi_forget",
	"WITH r AS MATERIALIZED (SELECT t.* FROM unnest($1::smallint[], $2::uuid[], $3::text[], $4::uuid[], $5::text[], $6::text[])"
	" AS t (slot, connection_id, application_id, event_id, entity_id, entity)"
	" LEFT JOIN LATERAL " VAULT_ROW_OF("schedule") " s ON true WHERE (s.lease_until > now()) IS NOT TRUE),"
	" n AS (DELETE FROM refreshd.connection c USING r WHERE c.slot = r.slot AND c.connection_id = r.connection_id"
	" AND c.application_id = r.application_id RETURNING c.slot, c.connection_id, c.updated_at),"
	" gone AS MATERIALIZED (SELECT r.*, n.updated_at FROM r JOIN n USING (slot, connection_id)),"
	" s AS (DELETE FROM refreshd.schedule x USING gone g WHERE x.slot = g.slot AND x.connection_id = g.connection_id),"
	" k AS (DELETE FROM refreshd.credential x USING gone g WHERE x.slot = g.slot AND x.connection_id = g.connection_id),"
	" o AS (DELETE FROM refreshd.orphan_token x USING gone g WHERE x.slot = g.slot AND x.connection_id = g.connection_id)"
	" INSERT INTO refreshd.event (event_id, application_id, connection_id, event_type, entity_id, entity_type, entity, occurred_at)"
	" SELECT event_id, application_id, connection_id, 'vault.connection.deleted', entity_id, 'Connection', entity,"
	" greatest($7, updated_at + interval '1 microsecond') FROM gone",
};

/* A lease whose attempt an import voided says nothing of the present tokens: due behind it. */
static const struct pgstmt SQL_DUE_NOW = {
	"vaultapi_due_now",
	"UPDATE refreshd.schedule s SET due_at = now() WHERE slot = $1 AND connection_id = $2 AND application_id = $3"
	" AND token_version = $4 AND (lease_until IS NULL OR lease_until <= now() OR attempt_id = 0) AND NOT " STORE_SET_ASIDE,
};

/* ---------------------------------------------------------------- helpers */

static void add_event_id(struct pgargs *a, enum event_type event)
{
	uint8_t id[16];
	if (event == EVENT_NONE) {
		pgargs_null(a, PGT_UUID);
		return;
	}
	sys_uuid7(id);
	pgargs_uuid(a, id);
}

static void add_event_type(struct pgargs *a, enum event_type event)
{
	pgargs_text(a, event == EVENT_NONE ? NULL : event_type_word(event));
}

/* One array parameter: the rest runs for each row, as `x`. */
#define COLUMN(type_, ...) PGARGS_COLUMN(a, type_, v, n, __VA_ARGS__)

/* Its last statement gives the rows. */
static int send_rows(struct store *s, struct pgtx *t, store_connections_fn *fn, void *arg)
{
	return store_send_call(s, t, WRITE_WAIT_US, vault_on_rows, STORE_CALL(vault_rows_call, .fn = fn, .arg = arg));
}

struct count_call {
	store_count_fn *fn;
	void *arg;
};

static void on_count(void *arg, const struct pgtx_result *r)
{
	struct count_call call = *(struct count_call *)arg;
	mem_free(arg);
	int code = store_code_of(r);
	call.fn(call.arg, code, code == 0 ? pgresult_affected(&r->results[r->n - 1]) : 0);
}

static int send_count(struct store *s, struct pgtx *t, store_count_fn *fn, void *arg)
{
	return store_send_call(s, t, WRITE_WAIT_US, on_count, STORE_CALL(count_call, .fn = fn, .arg = arg));
}

/* ---------------------------------------------------------------- import */

static void add_key_columns(struct pgargs *a, const struct store_upsert *v, size_t n)
{
	store_add_keys(a, v[0].id, sizeof *v, n);
	COLUMN(PGT_TEXT, pgargs_text(a, x->key.application_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->key.consumer_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->key.unified_api));
	COLUMN(PGT_TEXT, pgargs_text(a, x->key.service_id));
	COLUMN(PGT_TEXT, pgargs_text(a, auth_type_word(x->auth_type)));
}

static struct pgargs *upsert_args(const struct store_upsert *v, size_t n, bool wanted)
{
	struct pgargs *a = pgargs_new();
	add_key_columns(a, v, n);
	COLUMN(PGT_I64, pgargs_i64(a, x->token_version));
	COLUMN(PGT_TIME, pgargs_time(a, x->times->due_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->times->issued_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->times->expires_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->times->refresh_issued_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->times->refresh_expires_at));
	COLUMN(PGT_BYTES, pgargs_buf(a, x->access_token));
	COLUMN(PGT_BYTES, pgargs_buf(a, x->refresh_token));
	COLUMN(PGT_BYTES, pgargs_buf(a, x->settings));
	COLUMN(PGT_TEXT, pgargs_text(a, x->settings_public));
	COLUMN(PGT_TEXT, pgargs_text(a, x->metadata));
	COLUMN(PGT_TEXT, pgargs_text(a, conn_state_word(x->state)));
	COLUMN(PGT_TEXT, pgargs_text(a, conn_health_word(x->health)));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->seen_at));
	COLUMN(PGT_TEXT, add_event_type(a, x->event));
	COLUMN(PGT_UUID, add_event_id(a, x->event));
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity));
	COLUMN(PGT_TIME, pgargs_time(a, x->now));
	pgargs_bool(a, wanted);
	return a;
}

struct written_call {
	store_written_fn *fn;
	void *arg;
};

static void on_written(void *arg, const struct pgtx_result *r)
{
	struct written_call call = *(struct written_call *)arg;
	mem_free(arg);
	int code = store_code_of(r);
	if (code != 0) {
		call.fn(call.arg, code, NULL, 0);
		return;
	}
	const struct pgresult *last = &r->results[r->n - 1];
	int n = pgresult_rows(last);
	struct store_written *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++) {
		memcpy(v[i].id, pgresult_uuid(last, i, 0), 16);
		v[i].metadata = pgresult_text(last, i, 1, NULL);
		v[i].settings_public = pgresult_text(last, i, 2, NULL);
		v[i].wanted = pgresult_bool(last, i, 3);
	}
	call.fn(call.arg, 0, v, (size_t)n);
	mem_free(v);
}

static int send_written(struct store *s, struct pgtx *t, store_written_fn *fn, void *arg)
{
	return store_send_call(s, t, WRITE_WAIT_US, on_written, STORE_CALL(written_call, .fn = fn, .arg = arg));
}

int store_create(struct store *s, const struct store_upsert *v, size_t n, bool wanted, store_written_fn *fn, void *arg)
{
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &SQL_CREATE, upsert_args(v, n, wanted));
	return send_written(s, t, fn, arg);
}

int store_renew(struct store *s, const struct store_upsert *v, size_t n, bool wanted, store_written_fn *fn, void *arg)
{
	struct pgtx *t = pgtx_new();
	struct pgargs *a = pgargs_new();
	store_add_keys(a, v[0].id, sizeof *v, n);
	vault_by_index(t);
	pgtx_add(t, &SQL_LOCK, a);
	pgtx_add(t, &SQL_RENEW, upsert_args(v, n, wanted));
	return send_written(s, t, fn, arg);
}

/* ---------------------------------------------------------------- change, forget, due now */

static struct pgargs *lock_one(const uint8_t id[16])
{
	struct pgargs *a = pgargs_new();
	store_add_keys(a, id, 16, 1);
	return a;
}

int store_change(struct store *s, const struct store_change *c, store_connections_fn *fn, void *arg)
{
	struct store_conn_id id = { .application_id = c->application_id };
	struct pgtx *t = pgtx_new();
	struct pgargs *a = pgargs_new();
	memcpy(id.id, c->id, 16);
	vault_by_index(t);
	pgtx_add(t, &SQL_LOCK, lock_one(c->id));
	pgargs_i16(a, conn_slot_of(c->id));
	pgargs_uuid(a, c->id);
	pgargs_text(a, c->application_id);
	pgargs_time(a, c->seen_at);
	pgargs_time(a, c->updated_at);
	pgargs_bool(a, c->enabled);
	pgargs_text(a, conn_state_word(c->state));
	pgargs_text(a, conn_health_word(c->health));
	pgargs_text(a, reason_word(c->reason));
	pgargs_buf(a, c->settings);
	pgargs_jsonb(a, c->settings_public);
	pgargs_jsonb(a, c->metadata);
	pgargs_time_or_null(a, c->due_at);
	add_event_id(a, c->event);
	add_event_type(a, c->event);
	pgargs_text(a, c->entity_id);
	pgargs_text(a, c->entity);
	pgtx_add(t, &SQL_CHANGE, a);
	pgtx_add(t, &vault_connections_of, vault_ids_args(&id, 1, false));
	return send_rows(s, t, fn, arg);
}

int store_forget(struct store *s, const struct store_forget *v, size_t n, int64_t now, store_count_fn *fn, void *arg)
{
	struct pgtx *t = pgtx_new();
	struct pgargs *a = pgargs_new();
	store_add_keys(a, v[0].id, sizeof *v, n);
	vault_by_index(t);
	pgtx_add(t, &SQL_LOCK, a);
	a = pgargs_new();
	store_add_keys(a, v[0].id, sizeof *v, n);
	COLUMN(PGT_TEXT, pgargs_text(a, x->application_id));
	pgargs_array(a, PGT_UUID);
	for (size_t i = 0; i < n; i++)
		add_event_id(a, EVENT_DELETED);
	pgargs_array_end(a);
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity));
	pgargs_time(a, now);
	pgtx_add(t, &SQL_FORGET, a);
	return send_count(s, t, fn, arg);
}

int store_due_now(struct store *s, const struct store_conn_id *c, int64_t token_version, store_count_fn *fn, void *arg)
{
	struct pgtx *t = pgtx_new();
	struct pgargs *a = pgargs_new();
	pgargs_i16(a, conn_slot_of(c->id));
	pgargs_uuid(a, c->id);
	pgargs_text(a, c->application_id);
	pgargs_i64(a, token_version);
	pgtx_add(t, &SQL_DUE_NOW, a);
	return send_count(s, t, fn, arg);
}
