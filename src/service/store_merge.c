/*
 * store_merge - the SQL that writes an orphan's token over the one of its row, and the one that lays an orphan aside.
 *
 * Rare: only after a fence was lost. One row a statement, so that nothing else waits with it, and nobody is waited for.
 */
#include "service/store_refresh.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/store_call.h"

/* ---------------------------------------------------------------- statements */

/* The fence is the row as it was read: nobody else has claimed or written it since. Like an import it voids an attempt that is out and
 * leaves its lease while that runs. After an unknown COMMIT the orphan itself says whether it was merged. */
static const struct pgstmt SQL_MERGE = {
	"refresh_merge",
	"WITH l AS MATERIALIZED (SELECT s.slot, s.connection_id FROM refreshd.schedule s WHERE s.slot = $1 AND s.connection_id = $2"
	" AND s.attempt_id = $4 AND s.token_version = $5 FOR NO KEY UPDATE SKIP LOCKED),"
	" n AS (UPDATE refreshd.connection c SET state = $18, health = $19, reason = $20, failures = $21, first_failed_at = $22,"
	" last_failed_at = $23, updated_at = $24 FROM l WHERE c.slot = l.slot AND c.connection_id = l.connection_id AND $17::boolean"
	" AND c.updated_at = $25 RETURNING c.slot, c.connection_id),"
	" f AS (UPDATE refreshd.schedule s SET token_version = $5 + 1, attempt_id = 0, doubts = 0,"
	" due_at = CASE WHEN $17 AND n.slot IS NULL THEN now() ELSE $6::timestamptz END,"
	" lease_owner = CASE WHEN s.lease_until > now() THEN s.lease_owner END,"
	" sent_deadline = CASE WHEN s.lease_until > now() THEN s.sent_deadline END,"
	" lease_until = CASE WHEN s.lease_until > now() THEN s.lease_until END"
	" FROM l LEFT JOIN n USING (slot, connection_id) WHERE s.slot = l.slot AND s.connection_id = l.connection_id"
	" RETURNING s.slot, s.connection_id, $17 AND n.slot IS NULL AS stale),"
	" k AS (UPDATE refreshd.credential c SET token_version = $5 + 1, access_token = $7, refresh_token = $8, previous_refresh_token = $9,"
	" captured = coalesce($10, c.captured), issued_at = $11, expires_at = $12, refresh_issued_at = $13, refresh_expires_at = $14,"
	" token_type = coalesce($15, c.token_type), scope = coalesce($16, c.scope), refreshed_at = now(), refreshes = c.refreshes + 1"
	" FROM f WHERE c.slot = f.slot AND c.connection_id = f.connection_id),"
	" e AS (INSERT INTO refreshd.event (event_id, application_id, connection_id, event_type, entity_id, entity_type, entity,"
	" reason, failures, occurred_at) SELECT $26, $27, n.connection_id, $28, $29, 'Connection', $30, nullif($20, 'none'), $21, $24"
	" FROM n WHERE $28::text IS NOT NULL ON CONFLICT DO NOTHING),"
	" o AS (UPDATE refreshd.orphan_token t SET resolved_at = now(), resolution = 'merged' FROM f"
	" WHERE t.slot = f.slot AND t.connection_id = f.connection_id AND t.attempt_id = $3 AND t.kind = 'token')"
	" SELECT CASE WHEN (SELECT stale FROM f) THEN 4 WHEN EXISTS (SELECT FROM f) THEN 0"
	" WHEN EXISTS (SELECT FROM refreshd.orphan_token t WHERE t.slot = $1 AND t.connection_id = $2 AND t.attempt_id = $3"
	" AND t.kind = 'token' AND t.resolution = 'merged') THEN 1"
	" WHEN EXISTS (SELECT FROM refreshd.schedule s WHERE s.slot = $1 AND s.connection_id = $2 AND s.attempt_id = $4"
	" AND s.token_version = $5) THEN 3 ELSE 2 END",
};
static const struct pgstmt SQL_CLOSE = {
	"refresh_close_orphan",
	"UPDATE refreshd.orphan_token SET resolved_at = now(), resolution = $4"
	" WHERE slot = $1 AND connection_id = $2 AND attempt_id = $3 AND kind = 'token' AND resolved_at IS NULL",
};

/* ---------------------------------------------------------------- binding */

struct merge_call {
	store_persist_fn *fn;
	void *arg;
};

static void on_merged(void *arg, const struct pgtx_result *r)
{
	struct merge_call call = *(struct merge_call *)arg;
	mem_free(arg);
	enum store_verdict verdict = STORE_APPLIED;
	if (r->class != PG_CLASS_OK) {
		call.fn(call.arg, ST_UNAVAILABLE, r->class, NULL, 0);
		return;
	}
	if (pgresult_rows(&r->results[0]) > 0)
		verdict = (enum store_verdict)pgresult_int(&r->results[0], 0, 0);
	call.fn(call.arg, 0, PG_CLASS_OK, &verdict, 1);
}

static int send_one(struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_persist_fn *fn, void *arg)
{
	return store_send_stmt(s, stmt, a, 10 * US_PER_S, on_merged, STORE_CALL(merge_call, .fn = fn, .arg = arg));
}

static void add_credential(struct pgargs *a, const struct store_result *x)
{
	pgargs_buf(a, x->access_token);
	pgargs_buf(a, x->refresh_token);
	pgargs_buf(a, x->previous_refresh_token);
	pgargs_buf(a, x->captured);
	pgargs_time_or_null(a, x->issued_at);
	pgargs_time_or_null(a, x->expires_at);
	pgargs_time_or_null(a, x->refresh_issued_at);
	pgargs_time_or_null(a, x->refresh_expires_at);
	pgargs_text(a, x->token_type);
	pgargs_text(a, x->scope);
}

static void add_connection(struct pgargs *a, const struct store_result *x)
{
	pgargs_bool(a, x->touch);
	pgargs_text(a, conn_state_word(x->state));
	pgargs_text(a, conn_health_word(x->health));
	pgargs_text(a, reason_word(x->reason));
	pgargs_i32(a, x->failures);
	pgargs_time_or_null(a, x->first_failed_at);
	pgargs_time_or_null(a, x->last_failed_at);
	pgargs_time_or_null(a, x->updated_at);
	pgargs_time_or_null(a, x->seen_at);
	if (x->event == EVENT_NONE)
		pgargs_null(a, PGT_UUID);
	else
		pgargs_uuid(a, x->event_id);
	pgargs_text(a, x->application_id);
	pgargs_text(a, x->event == EVENT_NONE ? NULL : event_type_word(x->event));
	pgargs_text(a, x->entity_id);
	pgargs_text(a, x->entity);
}

static struct pgargs *orphan_args(const uint8_t id[16], int64_t orphan)
{
	struct pgargs *a = store_args_of(id);
	pgargs_i64(a, orphan);
	return a;
}

int store_merge(struct store *s, const struct store_result *x, int64_t orphan, store_persist_fn *fn, void *arg)
{
	ALWAYS(x->has_token);
	struct pgargs *a = orphan_args(x->id, orphan);
	pgargs_i64(a, x->attempt_id);
	pgargs_i64(a, x->token_version);
	pgargs_time(a, x->due_at);
	add_credential(a, x);
	add_connection(a, x);
	return send_one(s, &SQL_MERGE, a, fn, arg);
}

int store_close_orphan(struct store *s, const uint8_t id[16], int64_t orphan, const char *resolution, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = orphan_args(id, orphan);
	pgargs_text(a, resolution);
	return send_one(s, &SQL_CLOSE, a, fn, arg);
}
