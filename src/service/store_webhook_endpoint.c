/*
 * store_webhook_endpoint - endpoints of the API in the database. Read the statements first (some are in
 * store_webhook_sql.h); the C below binds and unpacks.
 *
 * An endpoint without application_id is one of the configuration and never touched here. updated_at always
 * grows: the load tells by it whether anything changed. Must not: know what is inside a secret.
 */
#include "service/store_webhook_endpoint.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/store_call.h"
#include "service/store_webhook.h"
#include "service/store_webhook_sql.h"

#define WAIT_US (2 * US_PER_S) /* a request must not hang on a database that is away */
#define LOAD_WAIT_US (10 * US_PER_S)

/* ---------------------------------------------------------------- statements */

#define COLUMNS                                                                           \
	"w.endpoint_id, w.application_id, w.url, w.unified_api, w.description,"           \
	" array_to_string(w.events, ' '), w.public_key, w.secret, w.previous_secret,"     \
	" w.previous_until, w.created_at, w.updated_at, w.failing_since, w.last_success_at," \
	" w.last_failure_at, w.disabled_at, w.disabled_reason"
enum {
	C_ID, C_APP, C_URL, C_API, C_DESCRIPTION, C_EVENTS, C_PUBLIC, C_SECRET, C_PREVIOUS, C_PREVIOUS_UNTIL,
	C_CREATED, C_UPDATED, C_FAILING, C_SUCCESS, C_FAILURE, C_DISABLED, C_REASON, C_MARK
};
/* One row at least, for the mark; its other columns are null when nothing is told. */
static const struct pgstmt SQL_LOAD = {
	"hook_load",
	"WITH w AS MATERIALIZED (SELECT * FROM refreshd.webhook_endpoint WHERE application_id IS NOT NULL),"
	" m AS (SELECT coalesce(bit_xor(hashtextextended(endpoint_id,"
	" (extract(epoch FROM updated_at) * 1000000)::bigint)), 0) AS mark FROM w)"
	" SELECT " COLUMNS ", m.mark FROM m LEFT JOIN w ON m.mark <> $1 OR $2"
	" ORDER BY w.created_at, w.endpoint_id",
};
static const struct pgstmt SQL_ADDING = { "hook_adding", STORE_HOOK_SQL_ADDING };
static const struct pgstmt SQL_INSERT = {
	"hook_insert",
	STORE_HOOK_SQL_INSERT " SELECT " COLUMNS " FROM w",
};
static const struct pgstmt SQL_GET = {
	"hook_get",
	"SELECT " COLUMNS " FROM refreshd.webhook_endpoint w" STORE_HOOK_SQL_OF_APPLICATION,
};
static const struct pgstmt SQL_LIST = {
	"hook_list",
	"SELECT " COLUMNS " FROM refreshd.webhook_endpoint w"
	" WHERE w.application_id = $1 AND (w.created_at, w.endpoint_id) > ($2, $3)"
	" ORDER BY w.created_at, w.endpoint_id LIMIT $4",
};
static const struct pgstmt SQL_UPDATE = {
	"hook_update",
	"WITH w AS (UPDATE refreshd.webhook_endpoint w SET"
	" url = coalesce($3, w.url), unified_api = coalesce($4, w.unified_api),"
	" description = coalesce($5, w.description), events = coalesce(string_to_array($6, ' '), w.events),"
	" failing_since = CASE WHEN $3 IS NOT NULL OR ($7::text = 'enabled' AND w.disabled_at IS NOT NULL)"
	" THEN NULL ELSE w.failing_since END,"
	" disabled_at = CASE WHEN $7 = 'disabled' THEN coalesce(w.disabled_at, now())"
	" WHEN $7 IS NULL THEN w.disabled_at END,"
	" disabled_reason = CASE WHEN $7 = 'disabled' THEN coalesce(w.disabled_reason, 'requested')"
	" WHEN $7 IS NULL THEN w.disabled_reason END,"
	" updated_at = " STORE_HOOK_SQL_LATER STORE_HOOK_SQL_OF_APPLICATION " RETURNING *)"
	" SELECT " COLUMNS " FROM w",
};
static const struct pgstmt SQL_ROTATE = {
	"hook_rotate",
	"WITH w AS (UPDATE refreshd.webhook_endpoint w SET secret = $3, public_key = $4,"
	" previous_secret = CASE WHEN $5::bigint > 0 THEN w.secret END,"
	" previous_until = CASE WHEN $5 > 0 THEN now() + $5 * interval '1 microsecond' END,"
	" updated_at = " STORE_HOOK_SQL_LATER STORE_HOOK_SQL_OF_APPLICATION " RETURNING *)"
	" SELECT " COLUMNS " FROM w",
};
static const struct pgstmt SQL_DELETE = {
	"hook_delete",
	STORE_HOOK_SQL_DELETE,
};
static const struct pgstmt SQL_REDELIVER = {
	"hook_redeliver",
	"WITH w AS MATERIALIZED (SELECT * FROM refreshd.webhook_endpoint w" STORE_HOOK_SQL_OF_APPLICATION "),"
	" e AS MATERIALIZED (SELECT e.event_id, e.occurred_at FROM w"
	" JOIN refreshd.event e ON e.application_id = w.application_id"
	" LEFT JOIN refreshd.delivery d ON d.event_id = e.event_id AND d.endpoint_id = w.endpoint_id"
	" WHERE w.disabled_at IS NULL AND e.fanned_out_at IS NOT NULL"
	" AND ($3::uuid IS NULL OR e.event_id = $3) AND e.occurred_at >= $4 AND e.occurred_at < $5"
	" AND (e.occurred_at, e.event_id) > ($6, $7) AND (d.event_id IS NOT NULL"
	" OR (e.entity_type <> '" STORE_ENTITY_ENDPOINT "' AND " STORE_HOOK_WANTS("w", "e") "))"
	" AND ($8 OR d.delivered IS NOT TRUE)"
	" ORDER BY e.occurred_at, e.event_id LIMIT $9 FOR KEY SHARE OF e),"
	" d AS (INSERT INTO refreshd.delivery AS d (event_id, endpoint_id, due_at)"
	" SELECT e.event_id, w.endpoint_id, now() FROM e, w ON CONFLICT (event_id, endpoint_id) DO UPDATE"
	" SET attempt = 0, due_at = now(), done_at = NULL, delivered = NULL, lease_owner = NULL,"
	" lease_until = NULL WHERE d.done_at IS NOT NULL OR d.lease_until IS NULL OR d.lease_until <= now())"
	" SELECT (SELECT count(*) FROM w), coalesce((SELECT w.disabled_at IS NOT NULL FROM w), false),"
	" (SELECT count(*) FROM e), l.occurred_at, l.event_id FROM (SELECT 1) one"
	" LEFT JOIN (SELECT * FROM e ORDER BY occurred_at DESC, event_id DESC LIMIT 1) l ON true",
};
static const struct pgstmt SQL_LOG = {
	"hook_log",
	"SELECT e.event_id, d.endpoint_id, w.url, e.event_type, e.entity_id, e.entity_type, e.occurred_at,"
	" d.due_at, d.done_at, d.attempt, coalesce(d.last_status, 0), coalesce(d.last_duration_ms, 0),"
	" d.last_error, coalesce(d.delivered, false)"
	" FROM refreshd.event e JOIN refreshd.delivery d ON d.event_id = e.event_id"
	" JOIN refreshd.webhook_endpoint w ON w.endpoint_id = d.endpoint_id AND w.application_id = $1"
	" WHERE e.application_id = $1 AND ($2::text IS NULL OR d.endpoint_id = $2) AND e.occurred_at <= $3"
	" AND (e.occurred_at, e.event_id, d.endpoint_id) < ($3, $4, $5) AND (NOT $6 OR (d.delivered IS NOT TRUE"
	" AND d.attempt > 0 AND (d.last_status IS NOT NULL OR d.last_error IS NOT NULL)))"
	" ORDER BY e.occurred_at DESC, e.event_id DESC, d.endpoint_id DESC LIMIT $7",
};
enum {
	L_EVENT, L_ENDPOINT, L_URL, L_TYPE, L_ENTITY_ID, L_ENTITY_TYPE, L_OCCURRED, L_DUE, L_DONE, L_ATTEMPT,
	L_STATUS, L_DURATION, L_ERROR, L_DELIVERED
};

/* ---------------------------------------------------------------- helpers */

static void unpack(const struct pgresult *r, int i, struct store_hook *h)
{
	*h = (struct store_hook){
		.endpoint_id = pgresult_text(r, i, C_ID, NULL),
		.application_id = pgresult_text(r, i, C_APP, NULL),
		.url = pgresult_text(r, i, C_URL, NULL),
		.unified_api = pgresult_text(r, i, C_API, NULL),
		.description = pgresult_text(r, i, C_DESCRIPTION, NULL),
		.events = pgresult_text(r, i, C_EVENTS, NULL),
		.public_key = pgresult_text(r, i, C_PUBLIC, NULL),
		.previous_until = pgresult_time_or_0(r, i, C_PREVIOUS_UNTIL),
		.created_at = pgresult_time_or_0(r, i, C_CREATED),
		.updated_at = pgresult_time_or_0(r, i, C_UPDATED),
		.failing_since = pgresult_time_or_0(r, i, C_FAILING),
		.last_success_at = pgresult_time_or_0(r, i, C_SUCCESS),
		.last_failure_at = pgresult_time_or_0(r, i, C_FAILURE),
		.disabled_at = pgresult_time_or_0(r, i, C_DISABLED),
		.disabled_reason = pgresult_text_or_null(r, i, C_REASON),
	};
	h->secret = pgresult_bytes_or_null(r, i, C_SECRET, &h->secret_len);
	h->previous_secret = pgresult_bytes_or_null(r, i, C_PREVIOUS, &h->previous_secret_len);
}

/* What is called in the end; one of the functions is set. */
struct call {
	void *arg;
	store_hooks_fn *hooks;
	store_hooks_load_fn *load;
	store_hook_count_fn *count;
	store_redeliver_fn *redelivered;
	store_delivery_log_fn *log;
	int64_t mark;
	bool force;
};

static int submit(struct store *s, const struct pgstmt *stmt, struct pgargs *a, int64_t wait_us, pgtx_fn *fn,
	const struct call *c)
{
	return store_send_stmt(s, stmt, a, wait_us, fn, c, sizeof *c);
}

static struct call taken(void *arg)
{
	struct call call = *(struct call *)arg;
	mem_free(arg);
	return call;
}

static void on_hooks(void *arg, const struct pgtx_result *r)
{
	struct call call = taken(arg);
	int code = store_code_of(r);
	const struct pgresult *last = code == 0 ? &r->results[r->n - 1] : NULL;
	int n = last != NULL ? pgresult_rows(last) : 0;
	struct store_hook *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		unpack(last, i, &v[i]);
	call.hooks(call.arg, code, v, (size_t)n);
	mem_free(v);
}

static int send_hooks(
	struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_hooks_fn *fn, void *arg)
{
	return submit(s, stmt, a, WAIT_US, on_hooks, &(struct call){.arg = arg, .hooks = fn});
}

/* ---------------------------------------------------------------- load */

static void on_loaded(void *arg, const struct pgtx_result *r)
{
	struct call call = taken(arg);
	int code = store_code_of(r);
	if (code != 0) {
		call.load(call.arg, code, false, 0, NULL, 0);
		return;
	}
	const struct pgresult *rows = &r->results[0];
	int64_t mark = pgresult_int(rows, 0, C_MARK);
	int n = pgresult_null(rows, 0, C_ID) ? 0 : pgresult_rows(rows);
	struct store_hook *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		unpack(rows, i, &v[i]);
	call.load(call.arg, 0, call.force || mark != call.mark, mark, v, (size_t)n);
	mem_free(v);
}

int store_hooks_load(struct store *s, int64_t mark, bool force, store_hooks_load_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_i64(a, mark);
	pgargs_bool(a, force);
	return submit(s, &SQL_LOAD, a, LOAD_WAIT_US, on_loaded,
		&(struct call){.arg = arg, .load = fn, .mark = mark, .force = force});
}

/* ---------------------------------------------------------------- one endpoint */

static struct pgargs *args_of(const char *application_id, const char *endpoint_id)
{
	struct pgargs *a = pgargs_new();
	pgargs_text(a, application_id);
	pgargs_text(a, endpoint_id);
	return a;
}

int store_hook_insert(
	struct store *s, const struct store_hook *h, unsigned limit, store_hooks_fn *fn, void *arg)
{
	struct pgargs *a = args_of(h->endpoint_id, h->application_id);
	pgargs_text(a, h->url);
	pgargs_text(a, h->unified_api);
	pgargs_text(a, h->description);
	pgargs_text(a, h->events);
	pgargs_text(a, h->public_key);
	pgargs_bytes(a, h->secret, h->secret_len);
	pgargs_i64(a, limit);
	struct pgtx *t = pgtx_new();
	struct pgargs *adding = pgargs_new();
	pgargs_text(adding, h->application_id);
	pgtx_add(t, &SQL_ADDING, adding);
	pgtx_add(t, &SQL_INSERT, a);
	const struct call c = {.arg = arg, .hooks = fn};
	return store_send_call(s, t, WAIT_US, on_hooks, &c, sizeof c);
}

int store_hook_get(
	struct store *s, const char *application_id, const char *endpoint_id, store_hooks_fn *fn, void *arg)
{
	return send_hooks(s, &SQL_GET, args_of(application_id, endpoint_id), fn, arg);
}

int store_hook_list(struct store *s, const char *application_id, int64_t after_created, const char *after_id,
	unsigned limit, store_hooks_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_text(a, application_id);
	pgargs_time(a, after_created);
	pgargs_text(a, after_id);
	pgargs_i64(a, limit);
	return send_hooks(s, &SQL_LIST, a, fn, arg);
}

int store_hook_update(struct store *s, const char *application_id, const char *endpoint_id,
	const struct store_hook_change *c, store_hooks_fn *fn, void *arg)
{
	struct pgargs *a = args_of(application_id, endpoint_id);
	pgargs_text(a, c->url);
	pgargs_text(a, c->unified_api);
	pgargs_text(a, c->description);
	pgargs_text(a, c->events);
	pgargs_text(a, c->status);
	return send_hooks(s, &SQL_UPDATE, a, fn, arg);
}

int store_hook_rotate(struct store *s, const char *application_id, const char *endpoint_id,
	const struct buf *secret, const char *public_key, int64_t overlap_us, store_hooks_fn *fn, void *arg)
{
	struct pgargs *a = args_of(application_id, endpoint_id);
	pgargs_bytes(a, secret->data, secret->len);
	pgargs_text(a, public_key);
	pgargs_i64(a, overlap_us);
	return send_hooks(s, &SQL_ROTATE, a, fn, arg);
}

static void on_count(void *arg, const struct pgtx_result *r)
{
	struct call call = taken(arg);
	int code = store_code_of(r);
	call.count(call.arg, code, code == 0 ? pgresult_int(&r->results[0], 0, 0) : 0);
}

int store_hook_delete(struct store *s, const char *application_id, const char *endpoint_id,
	store_hook_count_fn *fn, void *arg)
{
	return submit(s, &SQL_DELETE, args_of(application_id, endpoint_id), WAIT_US, on_count,
		&(struct call){.arg = arg, .count = fn});
}

/* ---------------------------------------------------------------- once more */

static void on_redelivered(void *arg, const struct pgtx_result *r)
{
	struct call call = taken(arg);
	struct store_redelivered out = {.n = 0};
	int code = store_code_of(r);
	if (code == 0) {
		const struct pgresult *row = &r->results[0];
		out.found = pgresult_int(row, 0, 0) > 0;
		out.disabled = pgresult_bool(row, 0, 1);
		out.n = (size_t)pgresult_int(row, 0, 2);
		out.last = pgresult_time_or_0(row, 0, 3);
		if (!pgresult_null(row, 0, 4))
			memcpy(out.last_id, pgresult_uuid(row, 0, 4), 16);
	}
	call.redelivered(call.arg, code, &out);
}

int store_redeliver(struct store *s, const struct store_redeliver *q, store_redeliver_fn *fn, void *arg)
{
	struct pgargs *a = args_of(q->application_id, q->endpoint_id);
	if (q->event_id != NULL)
		pgargs_uuid(a, q->event_id);
	else
		pgargs_null(a, PGT_UUID);
	pgargs_time(a, q->from);
	pgargs_time(a, q->to);
	pgargs_time(a, q->after);
	pgargs_uuid(a, q->after_id);
	pgargs_bool(a, q->delivered_too);
	pgargs_i64(a, q->limit);
	return submit(
		s, &SQL_REDELIVER, a, WAIT_US, on_redelivered, &(struct call){.arg = arg, .redelivered = fn});
}

/* ---------------------------------------------------------------- the log */

static void unpack_logged(const struct pgresult *r, int i, struct store_delivery_logged *d)
{
	*d = (struct store_delivery_logged){
		.endpoint_id = pgresult_text(r, i, L_ENDPOINT, NULL),
		.url = pgresult_text(r, i, L_URL, NULL),
		.event_type = pgresult_text(r, i, L_TYPE, NULL),
		.entity_id = pgresult_text(r, i, L_ENTITY_ID, NULL),
		.entity_type = pgresult_text(r, i, L_ENTITY_TYPE, NULL),
		.occurred_at = pgresult_time_or_0(r, i, L_OCCURRED),
		.due_at = pgresult_time_or_0(r, i, L_DUE),
		.done_at = pgresult_time_or_0(r, i, L_DONE),
		.attempt = (int)pgresult_int(r, i, L_ATTEMPT),
		.status = (int)pgresult_int(r, i, L_STATUS),
		.duration_ms = (int)pgresult_int(r, i, L_DURATION),
		.error = pgresult_text_or_null(r, i, L_ERROR),
		.delivered = pgresult_bool(r, i, L_DELIVERED),
	};
	memcpy(d->event_id, pgresult_uuid(r, i, L_EVENT), 16);
}

static void on_log(void *arg, const struct pgtx_result *r)
{
	struct call call = taken(arg);
	int code = store_code_of(r), n = code == 0 ? pgresult_rows(&r->results[0]) : 0;
	struct store_delivery_logged *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		unpack_logged(&r->results[0], i, &v[i]);
	call.log(call.arg, code, v, (size_t)n);
	mem_free(v);
}

int store_delivery_log(
	struct store *s, const struct store_delivery_log *q, store_delivery_log_fn *fn, void *arg)
{
	struct pgargs *a = args_of(q->application_id, q->endpoint_id);
	pgargs_time(a, q->before);
	pgargs_uuid(a, q->before_id);
	pgargs_text(a, q->before_endpoint);
	pgargs_bool(a, q->failed_only);
	pgargs_i64(a, q->limit);
	return submit(s, &SQL_LOG, a, WAIT_US, on_log, &(struct call){.arg = arg, .log = fn});
}
