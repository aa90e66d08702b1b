/*
 * store_webhook - the SQL of the outbox. Read the statements first; the C below only binds and unpacks.
 *
 * Several daemons run these at once: every statement locks with SKIP LOCKED or touches rows in the order of their
 * key. A claim is committed before anything is sent, and what came of it is written only while the claim still stands.
 * Which event types an endpoint of the configuration wants is decided by its patterns in C and comes in as full names; those
 * of the API are matched against their rows, so that one made or changed a moment ago misses nothing.
 */
#include "service/store_webhook.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/store_call.h"
#include "service/store_refresh.h" /* TIME_NEVER */
#include "service/store_webhook_endpoint.h"

/* ---------------------------------------------------------------- statements */

/* $1..$3 is one row for each endpoint and event type, with one of type '' for each endpoint, so that an endpoint
 * without any matching type still gets what is addressed to it alone. */
static const struct pgstmt SQL_FANOUT = {
	"webhook_fanout",
	"WITH ep AS MATERIALIZED (SELECT t.* FROM unnest($1::text[], $2::text[], $3::text[])"
	" AS t (endpoint_id, application_id, event_type) WHERE NOT EXISTS (SELECT 1 FROM refreshd.webhook_endpoint w"
	" WHERE w.endpoint_id = t.endpoint_id AND w.disabled_at IS NOT NULL)),"
	" c AS MATERIALIZED (SELECT event_id, application_id, event_type, entity_id, entity_type FROM refreshd.event"
	" WHERE fanned_out_at IS NULL AND event_type = ANY($4::text[])"
	" ORDER BY occurred_at LIMIT $5 FOR UPDATE SKIP LOCKED),"
	" u AS (UPDATE refreshd.event e SET fanned_out_at = now() FROM c WHERE e.event_id = c.event_id),"
	" d AS (INSERT INTO refreshd.delivery (event_id, endpoint_id, due_at)"
	" SELECT c.event_id, ep.endpoint_id, now() FROM c JOIN ep ON ep.event_type = c.event_type"
	" AND ep.application_id IN ('*', c.application_id) WHERE c.entity_type <> '" STORE_ENTITY_ENDPOINT "'"
	" UNION SELECT c.event_id, ep.endpoint_id, now() FROM c JOIN ep ON ep.endpoint_id = c.entity_id"
	" WHERE c.entity_type = '" STORE_ENTITY_ENDPOINT "'"
	" UNION SELECT c.event_id, w.endpoint_id, now() FROM c JOIN refreshd.webhook_endpoint w ON w.application_id = c.application_id"
	" WHERE w.disabled_at IS NULL AND CASE WHEN c.entity_type = '" STORE_ENTITY_ENDPOINT "' THEN w.endpoint_id = c.entity_id"
	" ELSE " STORE_HOOK_WANTS("w", "c") " END ON CONFLICT DO NOTHING)"
	" SELECT count(*) FROM c",
};

/* In a form that the index of the waiting ones does not know: a row whose key is at hand is to be found by it, and not among everything
 * that waits for its endpoint. */
#define UNDONE "coalesce(d.done_at, 'infinity') = 'infinity'"
#define FREE_LEASE "(d.lease_until IS NULL OR d.lease_until <= now())"
#define ROOMS                                                                                                     \
	"WITH ep AS MATERIALIZED (SELECT t.* FROM unnest($1::text[], $2::int[], $3::boolean[])"                   \
	" AS t (endpoint_id, room, ailing) WHERE NOT EXISTS (SELECT 1 FROM refreshd.webhook_endpoint w"           \
	" WHERE w.endpoint_id = t.endpoint_id AND w.disabled_at IS NOT NULL))"

/* Candidates by one index probe for each endpoint; ranked so that no endpoint takes all; then locked and taken. */
static const struct pgstmt SQL_CLAIM = {
	"webhook_claim",
	ROOMS
	", due AS MATERIALIZED (SELECT ep.ailing, x.event_id, x.endpoint_id, x.due_at,"
	" row_number() OVER (PARTITION BY x.endpoint_id ORDER BY x.due_at) AS rank FROM ep CROSS JOIN LATERAL"
	" (SELECT d.event_id, d.endpoint_id, d.due_at FROM refreshd.delivery d"
	" JOIN refreshd.event e ON e.event_id = d.event_id AND e.event_type = ANY($4::text[])"
	" WHERE d.endpoint_id = ep.endpoint_id AND d.done_at IS NULL AND d.due_at <= now() AND " FREE_LEASE
	" ORDER BY d.due_at LIMIT ep.room) x),"
	" pick AS MATERIALIZED (SELECT event_id, endpoint_id FROM (SELECT *, row_number() OVER"
	" (PARTITION BY ailing ORDER BY rank, due_at) AS place FROM due) p WHERE NOT ailing OR place <= $6"
	" ORDER BY ailing, rank, due_at LIMIT $5),"
	" l AS MATERIALIZED (SELECT d.event_id, d.endpoint_id FROM refreshd.delivery d JOIN pick USING (event_id, endpoint_id)"
	" WHERE " UNDONE " AND d.due_at <= now() AND " FREE_LEASE
	" FOR NO KEY UPDATE OF d SKIP LOCKED),"
	" u AS (UPDATE refreshd.delivery d SET attempt = d.attempt + 1, lease_owner = $7,"
	" lease_until = now() + $8::bigint * interval '1 microsecond' FROM l"
	" WHERE d.event_id = l.event_id AND d.endpoint_id = l.endpoint_id"
	" RETURNING d.event_id, d.endpoint_id, d.attempt, d.due_at)"
	" SELECT u.event_id, u.endpoint_id, u.attempt, e.event_type, e.entity, e.entity_id, e.entity_type, e.reason,"
	" e.failures, e.occurred_at FROM u JOIN refreshd.event e ON e.event_id = u.event_id ORDER BY u.due_at",
};
enum { C_EVENT, C_ENDPOINT, C_ATTEMPT, C_TYPE, C_ENTITY, C_ENTITY_ID, C_ENTITY_TYPE, C_REASON, C_FAILURES, C_OCCURRED };

static const struct pgstmt SQL_NEXT_DUE = {
	"webhook_next_due",
	ROOMS
	" SELECT min(x.due_at) FROM ep CROSS JOIN LATERAL (SELECT d.due_at FROM refreshd.delivery d"
	" JOIN refreshd.event e ON e.event_id = d.event_id AND e.event_type = ANY($4::text[])"
	" WHERE d.endpoint_id = ep.endpoint_id AND d.done_at IS NULL AND " FREE_LEASE
	" ORDER BY d.due_at LIMIT 1) x",
};

/* Whoever delivered is believed even after its lease; anything else needs the claim to stand. The row of the endpoint
 * counts every attempt: failing_since is the first failure after the last success. One of the configuration gets its row here;
 * one of the API that was deleted meanwhile must not come back, so its row is locked first. */
static const struct pgstmt SQL_RECORD = {
	"webhook_record",
	"WITH r AS MATERIALIZED (SELECT unnest($1::uuid[]) AS event_id, unnest($2::text[]) AS endpoint_id, unnest($3::int[]) AS attempt,"
	" unnest($4::int[]) AS status, unnest($5::text[]) AS error, unnest($6::boolean[]) AS delivered,"
	" unnest($7::timestamptz[]) AS next_due_at, unnest($8::int[]) AS duration_ms, unnest($9::boolean[]) AS gone),"
	" d AS (UPDATE refreshd.delivery d SET lease_owner = NULL, lease_until = NULL,"
	" due_at = CASE WHEN r.next_due_at < 'infinity' THEN r.next_due_at ELSE d.due_at END,"
	" done_at = CASE WHEN r.delivered OR r.next_due_at = 'infinity' THEN now() END,"
	" delivered = CASE WHEN r.delivered THEN true WHEN r.next_due_at = 'infinity' THEN false END,"
	" last_status = r.status, last_error = r.error, last_duration_ms = r.duration_ms FROM r"
	" WHERE d.event_id = r.event_id AND d.endpoint_id = r.endpoint_id AND " UNDONE
	" AND (r.delivered OR (d.attempt = r.attempt AND d.lease_owner = $10))),"
	" s AS (SELECT endpoint_id, bool_or(delivered) AS good, bool_or(NOT delivered) AS bad, bool_or(gone) AS gone"
	" FROM r GROUP BY endpoint_id ORDER BY endpoint_id),"
	" l AS MATERIALIZED (SELECT endpoint_id FROM refreshd.webhook_endpoint WHERE endpoint_id IN (SELECT endpoint_id FROM s)"
	" ORDER BY endpoint_id FOR UPDATE),"
	" w AS (INSERT INTO refreshd.webhook_endpoint AS w (endpoint_id, failing_since, last_success_at, last_failure_at,"
	" disabled_at, disabled_reason) SELECT endpoint_id, CASE WHEN NOT good THEN now() END, CASE WHEN good THEN now() END,"
	" CASE WHEN bad THEN now() END, CASE WHEN gone THEN now() END, CASE WHEN gone THEN 'gone' END FROM s"
	" WHERE endpoint_id LIKE 'config:%' OR endpoint_id IN (SELECT endpoint_id FROM l)"
	" ON CONFLICT (endpoint_id) DO UPDATE SET"
	" failing_since = CASE WHEN excluded.failing_since IS NOT NULL THEN coalesce(w.failing_since, now()) END,"
	" last_success_at = coalesce(excluded.last_success_at, w.last_success_at),"
	" last_failure_at = coalesce(excluded.last_failure_at, w.last_failure_at),"
	" disabled_at = coalesce(w.disabled_at, excluded.disabled_at, CASE WHEN excluded.failing_since IS NOT NULL"
	" AND w.failing_since <= now() - $11::bigint * interval '1 microsecond' THEN now() END),"
	" disabled_reason = CASE WHEN w.disabled_at IS NOT NULL THEN w.disabled_reason"
	" WHEN excluded.disabled_at IS NOT NULL THEN 'gone' WHEN excluded.failing_since IS NOT NULL"
	" AND w.failing_since <= now() - $11::bigint * interval '1 microsecond' THEN 'failing' END"
	" RETURNING disabled_at = now() AS off)"
	" SELECT count(*) FROM w WHERE off",
};
static const struct pgstmt SQL_RELEASE = {
	"webhook_release",
	"UPDATE refreshd.delivery d SET lease_owner = NULL, lease_until = NULL, attempt = d.attempt - 1"
	" FROM unnest($1::uuid[], $2::text[], $3::int[]) AS r (event_id, endpoint_id, attempt)"
	" WHERE d.event_id = r.event_id AND d.endpoint_id = r.endpoint_id AND d.attempt = r.attempt AND d.lease_owner = $4"
	" AND " UNDONE,
};
static const struct pgstmt SQL_DISABLED = {
	"webhook_disabled",
	"SELECT endpoint_id FROM refreshd.webhook_endpoint WHERE disabled_at IS NOT NULL ORDER BY endpoint_id",
};
/* Their ids begin with the time, so that an index by it would be one too many. */
static const struct pgstmt SQL_PURGE = {
	"webhook_purge",
	"DELETE FROM refreshd.event WHERE event_id IN (SELECT e.event_id FROM refreshd.event e WHERE e.event_id < $3 AND e.fanned_out_at < $1"
	" AND NOT EXISTS (SELECT 1 FROM refreshd.delivery d WHERE d.event_id = e.event_id AND d.lease_until > now())"
	" ORDER BY e.event_id LIMIT $2 FOR UPDATE SKIP LOCKED)",
};
static const struct pgstmt SQL_BACKLOG = {
	"webhook_backlog",
	"SELECT count(*) FROM (SELECT 1 FROM refreshd.delivery d WHERE d.endpoint_id = ANY($1::text[]) AND d.done_at IS NULL"
	" AND d.due_at <= now() AND " FREE_LEASE " AND NOT EXISTS (SELECT 1 FROM refreshd.webhook_endpoint w"
	" WHERE w.endpoint_id = d.endpoint_id AND w.disabled_at IS NOT NULL) LIMIT 100000) x",
};

/* ---------------------------------------------------------------- helpers */

#define WAIT_US (10 * US_PER_S)

/* Trying again later is all that a caller here can do. */
static int code_of(const struct pgtx_result *r)
{
	int code = store_code_of(r);
	return code == ST_AGAIN ? ST_UNAVAILABLE : code;
}

/* One array parameter: the rest runs for each row, as `x`. */
#define COLUMN(type_, ...) PGARGS_COLUMN(a, type_, v, n, __VA_ARGS__)

static void add_known_types(struct pgargs *a)
{
	pgargs_array(a, PGT_TEXT);
	for (int t = EVENT_NONE + 1; t < EVENT_TYPE_COUNT; t++)
		pgargs_text(a, event_type_word((enum event_type)t));
	pgargs_array_end(a);
}

struct outbox_call {
	store_outbox_fn *fn;
	void *arg;
};

/* The number is the last result's only value, or, without one, the number of rows. */
static void on_outbox(void *arg, const struct pgtx_result *r)
{
	struct outbox_call call = *(struct outbox_call *)arg;
	mem_free(arg);
	int64_t n = 0;
	if (r->class == PG_CLASS_OK) {
		const struct pgresult *last = &r->results[r->n - 1];
		n = pgresult_rows(last) == 1 ? pgresult_int(last, 0, 0) : pgresult_affected(last);
	}
	call.fn(call.arg, code_of(r), (size_t)n);
}

static int send_outbox(struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_outbox_fn *fn, void *arg)
{
	return store_send_stmt(s, stmt, a, WAIT_US, on_outbox, STORE_CALL(outbox_call, .fn = fn, .arg = arg));
}

/* ---------------------------------------------------------------- fan-out */

enum fanout_column { F_ENDPOINT, F_APPLICATION, F_TYPE };

static void add_fanout_column(struct pgargs *a, const struct store_endpoint *v, size_t n, enum fanout_column column)
{
	pgargs_array(a, PGT_TEXT);
	for (size_t i = 0; i < n; i++) {
		for (size_t j = 0; j <= v[i].n_events; j++) {
			if (column == F_ENDPOINT)
				pgargs_text(a, v[i].endpoint_id);
			else if (column == F_APPLICATION)
				pgargs_text(a, v[i].application);
			else
				pgargs_text(a, j < v[i].n_events ? v[i].events[j] : "");
		}
	}
	pgargs_array_end(a);
}

int store_fanout(struct store *s, const struct store_endpoint *v, size_t n, unsigned limit, store_outbox_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	add_fanout_column(a, v, n, F_ENDPOINT);
	add_fanout_column(a, v, n, F_APPLICATION);
	add_fanout_column(a, v, n, F_TYPE);
	add_known_types(a);
	pgargs_i64(a, limit);
	return send_outbox(s, &SQL_FANOUT, a, fn, arg);
}

/* ---------------------------------------------------------------- claim */

struct deliveries_call {
	store_deliveries_fn *fn;
	void *arg;
};

static void unpack_delivery(const struct pgresult *r, int i, struct store_delivery *d)
{
	memcpy(d->event_id, pgresult_uuid(r, i, C_EVENT), sizeof d->event_id);
	d->endpoint_id = pgresult_text(r, i, C_ENDPOINT, NULL);
	d->attempt = (int)pgresult_int(r, i, C_ATTEMPT);
	/* The statement takes known types only. */
	ALWAYS(event_type_parse(pgresult_text(r, i, C_TYPE, NULL), &d->type) == 0);
	d->entity = pgresult_text(r, i, C_ENTITY, NULL);
	d->entity_id = pgresult_text(r, i, C_ENTITY_ID, NULL);
	d->entity_type = pgresult_text(r, i, C_ENTITY_TYPE, NULL);
	d->reason = pgresult_text_or_null(r, i, C_REASON);
	d->failures = pgresult_int(r, i, C_FAILURES);
	d->occurred_at = pgresult_time(r, i, C_OCCURRED);
}

static void on_deliveries(void *arg, const struct pgtx_result *r)
{
	struct deliveries_call call = *(struct deliveries_call *)arg;
	mem_free(arg);
	if (r->class != PG_CLASS_OK) {
		call.fn(call.arg, code_of(r), NULL, 0, TIME_NEVER);
		return;
	}
	int n = pgresult_rows(&r->results[0]);
	struct store_delivery *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		unpack_delivery(&r->results[0], i, &v[i]);
	const struct pgresult *next = &r->results[1];
	call.fn(call.arg, 0, v, (size_t)n, pgresult_null(next, 0, 0) ? TIME_NEVER : pgresult_time(next, 0, 0));
	mem_free(v);
}

static struct pgargs *room_args(const struct store_room *v, size_t n)
{
	struct pgargs *a = pgargs_new();
	COLUMN(PGT_TEXT, pgargs_text(a, x->endpoint_id));
	COLUMN(PGT_I32, pgargs_i32(a, (int32_t)x->room));
	COLUMN(PGT_BOOL, pgargs_bool(a, x->ailing));
	add_known_types(a);
	return a;
}

int store_claim_deliveries(struct store *s, const struct store_room *v, size_t n, unsigned limit, unsigned ailing_limit,
	int64_t lease_us, store_deliveries_fn *fn, void *arg)
{
	struct pgargs *a = room_args(v, n);
	pgargs_i64(a, limit);
	pgargs_i64(a, ailing_limit);
	pgargs_i64(a, store_epoch(s));
	pgargs_i64(a, lease_us);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &SQL_CLAIM, a);
	pgtx_add(t, &SQL_NEXT_DUE, room_args(v, n));
	return store_send_call(s, t, WAIT_US, on_deliveries, STORE_CALL(deliveries_call, .fn = fn, .arg = arg));
}

/* ---------------------------------------------------------------- record, release */

static void add_attempt_keys(struct pgargs *a, const struct store_attempt *v, size_t n)
{
	COLUMN(PGT_UUID, pgargs_uuid(a, x->event_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->endpoint_id));
	COLUMN(PGT_I32, pgargs_i32(a, x->attempt));
}

static int32_t ms_of(int64_t us)
{
	int64_t ms = us / US_PER_MS;
	return ms > INT32_MAX ? INT32_MAX : (int32_t)ms;
}

static void add_attempt_results(struct pgargs *a, const struct store_attempt *v, size_t n)
{
	pgargs_array(a, PGT_I32);
	for (size_t i = 0; i < n; i++) {
		if (v[i].status == 0)
			pgargs_null(a, PGT_I32);
		else
			pgargs_i32(a, v[i].status);
	}
	pgargs_array_end(a);
	COLUMN(PGT_TEXT, pgargs_text(a, x->error));
	COLUMN(PGT_BOOL, pgargs_bool(a, x->delivered));
	COLUMN(PGT_TIME, pgargs_time(a, x->gone ? TIME_NEVER : x->next_due_at));
	COLUMN(PGT_I32, pgargs_i32(a, ms_of(x->duration_us)));
	COLUMN(PGT_BOOL, pgargs_bool(a, x->gone));
}

int store_record_attempts(struct store *s, const struct store_attempt *v, size_t n, int64_t disable_after_us,
	store_outbox_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	add_attempt_keys(a, v, n);
	add_attempt_results(a, v, n);
	pgargs_i64(a, store_epoch(s));
	pgargs_i64(a, disable_after_us);
	return send_outbox(s, &SQL_RECORD, a, fn, arg);
}

int store_release_deliveries(struct store *s, const struct store_attempt *v, size_t n, store_outbox_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	add_attempt_keys(a, v, n);
	pgargs_i64(a, store_epoch(s));
	return send_outbox(s, &SQL_RELEASE, a, fn, arg);
}

/* ---------------------------------------------------------------- the rest */

struct disabled_call {
	store_disabled_fn *fn;
	void *arg;
};

static void on_disabled(void *arg, const struct pgtx_result *r)
{
	struct disabled_call call = *(struct disabled_call *)arg;
	mem_free(arg);
	if (r->class != PG_CLASS_OK) {
		call.fn(call.arg, code_of(r), NULL, 0);
		return;
	}
	int n = pgresult_rows(&r->results[0]);
	const char **ids = mem_calloc((size_t)n + 1, sizeof *ids);
	for (int i = 0; i < n; i++)
		ids[i] = pgresult_text(&r->results[0], i, 0, NULL);
	call.fn(call.arg, 0, ids, (size_t)n);
	mem_free(ids);
}

int store_disabled_endpoints(struct store *s, store_disabled_fn *fn, void *arg)
{
	return store_send_stmt(s, &SQL_DISABLED, pgargs_new(), WAIT_US, on_disabled, STORE_CALL(disabled_call, .fn = fn, .arg = arg));
}

int store_purge_events(struct store *s, int64_t older_than, unsigned limit, store_outbox_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	uint8_t first[16];
	sys_uuid7_first(older_than, first);
	pgargs_time(a, older_than);
	pgargs_i64(a, limit);
	pgargs_uuid(a, first);
	return send_outbox(s, &SQL_PURGE, a, fn, arg);
}

int store_webhook_backlog(struct store *s, const char *const *endpoint_ids, size_t n, store_outbox_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_array(a, PGT_TEXT);
	for (size_t i = 0; i < n; i++)
		pgargs_text(a, endpoint_ids[i]);
	pgargs_array_end(a);
	return send_outbox(s, &SQL_BACKLOG, a, fn, arg);
}
