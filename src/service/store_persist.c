/*
 * store_persist - the SQL of a refresh behind its request: its result, its release, its quarantine, its longer lease, and events.
 *
 * Every statement asks for the fence (attempt id and token version) again, under the row lock of `schedule`, which it takes before
 * anything else. Arrays are unnested in the select list: in FROM each of them would be a tuplestore of its own. Read the statements
 * first; the C below only binds and unpacks.
 */
#include "service/store_refresh.h"

#include "base/mem.h"
#include "base/sys.h"
#include "service/store_call.h"
#include "service/store_mutant.h"

#define WAIT_US (10 * US_PER_S)

/* ---------------------------------------------------------------- statements */

/* One statement for every outcome. `f` holds the rows whose fence still stood; everything else follows from it. A
 * row without a fence is `already` when it is exactly in the state that this very result would have left (the COMMIT's
 * answer was lost), else `lost`, and a token in hand becomes an orphan in the same transaction - unless the connection was
 * deleted, which means that its tokens are to be forgotten. An import voids the attempt (attempt_id 0) but leaves our lease,
 * so that nobody presents a token while we do: `x` gives that lease back. So does a merge, which adds one to the version; a
 * refusal that comes behind it may have been a provider's revocation, so the merged token is to be tried at once. State and event
 * follow from the settings that the request was made with: when these changed meanwhile, `n` finds nobody, and the row is due
 * again now, with the new ones; its tokens are written all the same. So it is when a row is to leave the schedule for what it was:
 * it may have been switched on since. Nobody is waited
 * for: a row that another transaction has (an import, a deletion, or this very result whose first sending is only now
 * committed) must not keep the rest of the batch. Its fence stands in the snapshot and not in `f`: `again`, because only a
 * later snapshot can tell what became of it. */
#define RESULT_LOCK \
	" l AS MATERIALIZED (SELECT r.ord FROM refreshd.schedule s JOIN r ON s.slot = r.slot AND s.connection_id = r.connection_id" \
	" WHERE s.attempt_id = r.attempt_id AND s.token_version = r.token_version AND s.lease_owner IS NOT NULL" \
	" FOR NO KEY UPDATE OF s SKIP LOCKED),"
#define RESULT_JUDGES "(r.touch OR r.due_at = 'infinity')"
#define TOUCHED(column_) column_ " = CASE WHEN r.touch THEN r." column_ " ELSE c." column_ " END"
#define RESULT_TOKENS \
	" k AS (UPDATE refreshd.credential c SET token_version = r.token_version + 1, access_token = r.access_token," \
	" refresh_token = r.refresh_token, previous_refresh_token = r.previous_refresh_token," \
	" captured = coalesce(r.captured, c.captured), issued_at = r.issued_at, expires_at = r.expires_at," \
	" refresh_issued_at = r.refresh_issued_at, refresh_expires_at = r.refresh_expires_at," \
	" token_type = coalesce(r.token_type, c.token_type), scope = coalesce(r.scope, c.scope)," \
	" refreshed_at = now(), refreshes = c.refreshes + 1 FROM r JOIN f USING (ord)" \
	" WHERE c.slot = r.slot AND c.connection_id = r.connection_id AND r.has_token),"
#define RESULT_ORPHANS \
	" o AS (INSERT INTO refreshd.orphan_token (slot, connection_id, attempt_id, kind, token_version, issued_at, expires_at," \
	" access_token, refresh_token) SELECT r.slot, r.connection_id, r.attempt_id, 'token', r.token_version + 1, r.issued_at," \
	" r.expires_at, r.access_token, r.refresh_token FROM r JOIN v USING (ord) WHERE v.verdict = 2 AND v.there AND r.has_token" \
	" ON CONFLICT DO NOTHING),"
static const struct pgstmt SQL_PERSIST = {
	"refresh_persist",
	"WITH r AS MATERIALIZED (SELECT unnest($1::smallint[]) AS slot, "
	"unnest($2::uuid[]) AS connection_id, unnest($3::bigint[]) AS attempt_id, "
	"unnest($4::bigint[]) AS token_version, unnest($5::timestamptz[]) AS due_at, "
	"unnest($6::smallint[]) AS doubts, unnest($7::boolean[]) AS has_token, "
	"unnest($8::bytea[]) AS access_token, unnest($9::bytea[]) AS refresh_token, "
	"unnest($10::bytea[]) AS previous_refresh_token, unnest($11::bytea[]) AS captured, "
	"unnest($12::timestamptz[]) AS issued_at, unnest($13::timestamptz[]) AS expires_at, "
	"unnest($14::timestamptz[]) AS refresh_issued_at, unnest($15::timestamptz[]) AS refresh_expires_at, "
	"unnest($16::text[]) AS token_type, unnest($17::text[]) AS scope, unnest($18::bytea[]) AS raw_reply, "
	"unnest($19::boolean[]) AS touch, unnest($20::text[]) AS state, unnest($21::text[]) AS health, "
	"unnest($22::text[]) AS reason, unnest($23::int[]) AS failures, "
	"unnest($24::timestamptz[]) AS first_failed_at, unnest($25::timestamptz[]) AS last_failed_at, "
	"unnest($26::timestamptz[]) AS updated_at, unnest($27::text[]) AS event_type, "
	"unnest($28::uuid[]) AS event_id, unnest($29::text[]) AS application_id, "
	"unnest($30::text[]) AS entity_id, unnest($31::text[]) AS entity, unnest($32::timestamptz[]) AS seen_at, "
	"unnest($34::int[]) AS ord),"
	RESULT_LOCK
	" n AS (UPDATE refreshd.connection c SET " TOUCHED("state") ", " TOUCHED("health") ", " TOUCHED("reason") ", " TOUCHED("failures") ","
	" " TOUCHED("first_failed_at") ", " TOUCHED("last_failed_at") ", " TOUCHED("updated_at") " FROM r JOIN l USING (ord)"
	" WHERE c.slot = r.slot AND c.connection_id = r.connection_id AND " RESULT_JUDGES " AND c.updated_at = r.seen_at RETURNING r.ord),"
	" f AS (UPDATE refreshd.schedule s SET due_at = CASE WHEN " RESULT_JUDGES " AND n.ord IS NULL THEN now() ELSE r.due_at END,"
	" doubts = CASE WHEN " RESULT_JUDGES " AND n.ord IS NULL AND NOT r.has_token THEN greatest(s.doubts, r.doubts) ELSE r.doubts END,"
	" lease_owner = NULL, lease_until = NULL,"
	" sent_deadline = NULL, token_version = s.token_version + r.has_token::int FROM r JOIN l USING (ord) LEFT JOIN n USING (ord)"
	" WHERE s.slot = r.slot AND s.connection_id = r.connection_id"
	" RETURNING r.ord, " RESULT_JUDGES " AND n.ord IS NULL AS stale),"
	RESULT_TOKENS
	" e AS (INSERT INTO refreshd.event (event_id, application_id, connection_id, event_type, entity_id, entity_type, entity,"
	" reason, failures, occurred_at) SELECT r.event_id, r.application_id, r.connection_id, r.event_type, r.entity_id,"
	" 'Connection', r.entity, nullif(r.reason, 'none'), r.failures, r.updated_at FROM r JOIN n USING (ord)"
	" WHERE r.event_type IS NOT NULL ON CONFLICT DO NOTHING),"
	" v AS MATERIALIZED (SELECT r.ord, CASE WHEN r.ord IN (SELECT f.ord FROM f WHERE f.stale) THEN 4"
	" WHEN r.ord IN (SELECT f.ord FROM f) THEN 0"
	" WHEN s.attempt_id = r.attempt_id AND s.token_version = r.token_version + r.has_token::int AND s.lease_owner IS NULL"
	" THEN 1 WHEN s.attempt_id = r.attempt_id AND s.token_version = r.token_version AND s.lease_owner IS NOT NULL"
	" THEN 3 ELSE 2 END AS verdict, s.connection_id IS NOT NULL AS there FROM r"
	" LEFT JOIN refreshd.schedule s ON s.slot = r.slot AND s.connection_id = r.connection_id),"
	RESULT_ORPHANS
	" x AS (UPDATE refreshd.schedule s SET lease_owner = NULL, lease_until = NULL, sent_deadline = NULL,"
	" due_at = CASE WHEN r.touch AND r.health = 'needs_auth' AND s.token_version = r.token_version + 1 THEN now() ELSE s.due_at END"
	" FROM r JOIN v USING (ord)"
	" WHERE v.verdict = 2 AND s.slot = r.slot AND s.connection_id = r.connection_id AND s.attempt_id = 0 AND s.lease_owner = $33),"
	" w AS (INSERT INTO refreshd.orphan_token (slot, connection_id, attempt_id, kind, token_version, raw_reply)"
	" SELECT r.slot, r.connection_id, r.attempt_id, 'raw_reply', r.token_version, r.raw_reply FROM r JOIN v USING (ord)"
	" WHERE v.there AND v.verdict <> 3 AND r.raw_reply IS NOT NULL ON CONFLICT DO NOTHING)"
	" SELECT v.verdict FROM v ORDER BY v.ord",
};

/* The same where every result is a new token for a connection that was well and stays so: half the parameters, and no second look
 * at a row that was written. That look is what the CASE is for. */
static const struct pgstmt SQL_RENEW = {
	"refresh_renew",
	"WITH r AS MATERIALIZED (SELECT true AS has_token, unnest($1::smallint[]) AS slot, "
	"unnest($2::uuid[]) AS connection_id, unnest($3::bigint[]) AS attempt_id, "
	"unnest($4::bigint[]) AS token_version, unnest($5::timestamptz[]) AS due_at, "
	"unnest($6::smallint[]) AS doubts, unnest($7::bytea[]) AS access_token, "
	"unnest($8::bytea[]) AS refresh_token, unnest($9::bytea[]) AS previous_refresh_token, "
	"unnest($10::bytea[]) AS captured, unnest($11::timestamptz[]) AS issued_at, "
	"unnest($12::timestamptz[]) AS expires_at, unnest($13::timestamptz[]) AS refresh_issued_at, "
	"unnest($14::timestamptz[]) AS refresh_expires_at, unnest($15::text[]) AS token_type, "
	"unnest($16::text[]) AS scope, unnest($18::int[]) AS ord),"
	RESULT_LOCK
	" f AS (UPDATE refreshd.schedule s SET due_at = r.due_at, doubts = r.doubts, lease_owner = NULL, lease_until = NULL,"
	" sent_deadline = NULL, token_version = s.token_version + 1 FROM r JOIN l USING (ord)"
	" WHERE s.slot = r.slot AND s.connection_id = r.connection_id"
	" RETURNING r.ord),"
	RESULT_TOKENS
	" v AS MATERIALIZED (SELECT r.ord, CASE WHEN r.hit THEN 0"
	" WHEN s.attempt_id = r.attempt_id AND s.token_version = r.token_version + 1 AND s.lease_owner IS NULL"
	" THEN 1 WHEN s.attempt_id = r.attempt_id AND s.token_version = r.token_version AND s.lease_owner IS NOT NULL"
	" THEN 3 ELSE 2 END AS verdict, s.connection_id IS NOT NULL AS there FROM (SELECT slot, connection_id, attempt_id,"
	" token_version, ord, ord IN (SELECT f.ord FROM f) AS hit FROM r OFFSET 0) r"
	" LEFT JOIN refreshd.schedule s ON s.slot = CASE WHEN r.hit THEN NULL ELSE r.slot END AND s.connection_id = r.connection_id),"
	RESULT_ORPHANS
	" x AS (UPDATE refreshd.schedule s SET lease_owner = NULL, lease_until = NULL, sent_deadline = NULL FROM r JOIN v USING (ord)"
	" WHERE v.verdict = 2 AND s.slot = r.slot AND s.connection_id = r.connection_id AND s.attempt_id = 0 AND s.lease_owner = $17)"
	" SELECT v.verdict FROM v ORDER BY v.ord",
};

/* The claim that is given back may still be committing (its answer was lost, a synchronous standby is slow): then the snapshot
 * shows a free row, and only its lock tells. Verdict `again`, until the row can be looked at. Or it has not even begun: then the free
 * row gets its attempt id (`n`), and no claim takes a row that carries its own. */
static const struct pgstmt SQL_RELEASE = {
	"refresh_release",
	"WITH t AS MATERIALIZED (SELECT unnest($1::smallint[]) AS slot, "
	"unnest($2::uuid[]) AS connection_id, unnest($3::bigint[]) AS attempt_id, "
	"unnest($4::timestamptz[]) AS due_at, unnest($6::int[]) AS ord),"
	" l AS MATERIALIZED (SELECT t.ord, s.attempt_id, s.due_at, s.lease_owner FROM refreshd.schedule s"
	" JOIN t ON s.slot = t.slot AND s.connection_id = t.connection_id FOR NO KEY UPDATE OF s SKIP LOCKED),"
	" u AS (UPDATE refreshd.schedule s SET lease_owner = NULL, lease_until = NULL, sent_deadline = NULL,"
	" due_at = CASE WHEN l.attempt_id = t.attempt_id THEN coalesce(t.due_at, l.due_at) ELSE l.due_at END FROM l JOIN t USING (ord)"
	" WHERE s.slot = t.slot AND s.connection_id = t.connection_id AND l.lease_owner IS NOT NULL"
	" AND (l.attempt_id = t.attempt_id OR (l.attempt_id = 0 AND l.lease_owner = $5))),"
	" n AS (UPDATE refreshd.schedule s SET attempt_id = t.attempt_id FROM l JOIN t USING (ord)"
	" WHERE s.slot = t.slot AND s.connection_id = t.connection_id AND l.lease_owner IS NULL AND l.due_at <= now())"
	" SELECT CASE WHEN l.ord IS NULL AND s.slot IS NOT NULL THEN 3 ELSE 0 END FROM t LEFT JOIN l USING (ord)"
	" LEFT JOIN refreshd.schedule s ON s.slot = t.slot AND s.connection_id = t.connection_id ORDER BY t.ord",
};
static const struct pgstmt SQL_QUARANTINE = {
	"refresh_quarantine",
	"UPDATE refreshd.schedule SET due_at = 'infinity', sent_deadline = 'infinity'"
	" WHERE slot = $1 AND connection_id = $2 AND attempt_id = $3 AND lease_owner IS NOT NULL",
};
/* Ours from now on, also when it was claimed by an earlier life whose answer is being replayed: its leases are freed at a start. */
static const struct pgstmt SQL_HOLD = {
	"refresh_hold",
	"UPDATE refreshd.schedule SET lease_owner = $4, lease_until = now() + $5::bigint * interval '1 microsecond'"
	" WHERE slot = $1 AND connection_id = $2 AND attempt_id = $3 AND lease_owner IS NOT NULL",
};
static const struct pgstmt SQL_EVENT = {
	"refresh_event",
	"INSERT INTO refreshd.event (event_id, application_id, event_type, entity_id, entity_type, entity, reason, occurred_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, now()) ON CONFLICT DO NOTHING",
};

/* ---------------------------------------------------------------- binding */

struct persist_call {
	store_persist_fn *fn;
	void *arg;
};

static void on_persisted(void *arg, const struct pgtx_result *r)
{
	struct persist_call call = *(struct persist_call *)arg;
	mem_free(arg);
	if (r->class != PG_CLASS_OK) {
		call.fn(call.arg, ST_UNAVAILABLE, r->class, NULL, 0);
		return;
	}
	int n = pgresult_rows(&r->results[0]);
	enum store_verdict *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		v[i] = (enum store_verdict)pgresult_int(&r->results[0], i, 0);
	call.fn(call.arg, 0, PG_CLASS_OK, v, (size_t)n);
	mem_free(v);
}

static int send_persist(struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_persist_fn *fn, void *arg)
{
	return store_send_stmt(s, STORE_MUTANT(stmt), a, WAIT_US, on_persisted, STORE_CALL(persist_call, .fn = fn, .arg = arg));
}

/* One array parameter: `stmt` runs for each result, as `x`. */
#define COLUMN(type_, ...) PGARGS_COLUMN(a, type_, v, n, __VA_ARGS__)

static void add_token_columns(struct pgargs *a, const struct store_result *v, size_t n)
{
	COLUMN(PGT_BYTES, pgargs_buf(a, x->access_token));
	COLUMN(PGT_BYTES, pgargs_buf(a, x->refresh_token));
	COLUMN(PGT_BYTES, pgargs_buf(a, x->previous_refresh_token));
	COLUMN(PGT_BYTES, pgargs_buf(a, x->captured));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->issued_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->expires_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->refresh_issued_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->refresh_expires_at));
	COLUMN(PGT_TEXT, pgargs_text(a, x->token_type));
	COLUMN(PGT_TEXT, pgargs_text(a, x->scope));
}

static void add_connection_columns(struct pgargs *a, const struct store_result *v, size_t n)
{
	COLUMN(PGT_BOOL, pgargs_bool(a, x->touch));
	COLUMN(PGT_TEXT, pgargs_text(a, conn_state_word(x->state)));
	COLUMN(PGT_TEXT, pgargs_text(a, conn_health_word(x->health)));
	COLUMN(PGT_TEXT, pgargs_text(a, reason_word(x->reason)));
	COLUMN(PGT_I32, pgargs_i32(a, x->failures));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->first_failed_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->last_failed_at));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->updated_at));
	COLUMN(PGT_TEXT, pgargs_text(a, x->event == EVENT_NONE ? NULL : event_type_word(x->event)));
	COLUMN(PGT_UUID, if (x->event == EVENT_NONE) pgargs_null(a, PGT_UUID); else pgargs_uuid(a, x->event_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->application_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->seen_at));
}

static bool is_renewal(const struct store_result *x)
{
	return x->has_token && !x->touch && x->event == EVENT_NONE && (x->raw_reply == NULL || x->raw_reply->len == 0);
}

int store_persist(struct store *s, const struct store_result *v, size_t n, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	size_t renewals = 0;
	while (renewals < n && is_renewal(&v[renewals]))
		renewals++;
	store_add_keys(a, v[0].id, sizeof *v, n);
	COLUMN(PGT_I64, pgargs_i64(a, x->attempt_id));
	COLUMN(PGT_I64, pgargs_i64(a, x->token_version));
	COLUMN(PGT_TIME, pgargs_time(a, x->due_at));
	COLUMN(PGT_I16, pgargs_i16(a, (int16_t)x->doubts));
	if (renewals < n)
		COLUMN(PGT_BOOL, pgargs_bool(a, x->has_token));
	add_token_columns(a, v, n);
	if (renewals < n) {
		COLUMN(PGT_BYTES, pgargs_buf(a, x->raw_reply));
		add_connection_columns(a, v, n);
	}
	pgargs_i64(a, store_epoch(s));
	COLUMN(PGT_I32, pgargs_i32(a, (int32_t)(x - v)));
	return send_persist(s, renewals < n ? &SQL_PERSIST : &SQL_RENEW, a, fn, arg);
}

int store_release(struct store *s, const struct store_release *v, size_t n, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	store_add_keys(a, v[0].id, sizeof *v, n);
	COLUMN(PGT_I64, pgargs_i64(a, x->attempt_id));
	COLUMN(PGT_TIME, pgargs_time_or_null(a, x->due_at));
	pgargs_i64(a, store_epoch(s));
	COLUMN(PGT_I32, pgargs_i32(a, (int32_t)(x - v)));
	return send_persist(s, &SQL_RELEASE, a, fn, arg);
}

int store_quarantine(struct store *s, const uint8_t id[16], int64_t attempt_id, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = store_args_of(id);
	pgargs_i64(a, attempt_id);
	return send_persist(s, &SQL_QUARANTINE, a, fn, arg);
}

int store_hold(struct store *s, const uint8_t id[16], int64_t attempt_id, int64_t lease_us, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = store_args_of(id);
	pgargs_i64(a, attempt_id);
	pgargs_i64(a, store_epoch(s));
	pgargs_i64(a, lease_us);
	return send_persist(s, &SQL_HOLD, a, fn, arg);
}

int store_event(struct store *s, enum event_type type, const uint8_t event_id[16], const char *application_id, const char *entity_id,
	const char *entity_type, const char *entity, const char *reason, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_uuid(a, event_id);
	pgargs_text(a, application_id);
	pgargs_text(a, event_type_word(type));
	pgargs_text(a, entity_id);
	pgargs_text(a, entity_type);
	pgargs_text(a, entity);
	pgargs_text(a, reason);
	return send_persist(s, &SQL_EVENT, a, fn, arg);
}
