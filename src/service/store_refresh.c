/*
 * store_refresh - the SQL of a refresh up to its request: poll, claim, load; and recovery, gauges, notices.
 *
 * Read the statements first; the C below only binds and unpacks. All of them touch `schedule` before anything else, so that its row
 * lock orders claim, persist (store_persist.c), import and delete. Arrays are one parameter per column (unnest), so that a batch is
 * one statement and one commit.
 */
#include "service/store_refresh.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "service/store_call.h"
#include "service/store_mutant.h"

#define WAIT_US (10 * US_PER_S)

/* ---------------------------------------------------------------- statements */

/* A lease is foreign while its owner may still come and write what it was answered: not ours, not given up by an operator
 * (0), and not voided by an import, whose tokens nobody has presented. */
#define FOREIGN(epoch_) "(s.lease_owner NOT IN (" epoch_ ", 0) AND s.attempt_id <> 0)"
#define DUE_COLUMNS(epoch_)                                                       \
	"SELECT s.connection_id, s.application_id, s.service_id, s.due_at,"       \
	" CASE WHEN " FOREIGN(epoch_) " THEN s.lease_until END FROM refreshd.schedule s "

static const struct pgstmt SQL_POLL = {
	"refresh_poll",
	DUE_COLUMNS("$6")
	"WHERE s.due_at < 'infinity' AND s.due_at >= $1 AND s.due_at <= $3 AND (s.due_at, s.connection_id) > ($1, $2)"
	" AND (s.lease_until IS NULL OR s.lease_until <= now()) AND ($5::bytea IS NULL OR get_bit($5, s.slot) = 1)"
	" ORDER BY s.due_at, s.connection_id LIMIT $4",
};
static const struct pgstmt SQL_DUE_OF = {
	"refresh_due_of",
	DUE_COLUMNS("$3")
	"WHERE s.slot = $1 AND s.connection_id = $2 AND s.due_at < 'infinity' AND (s.lease_until IS NULL OR s.lease_until <= now())",
};

#define CLAIMED_COLUMNS                                                                                            \
	"SELECT u.connection_id, u.attempt_id, u.token_version, u.due_at, u.doubts,"                               \
	" n.application_id, n.consumer_id, n.unified_api, n.service_id, n.auth_type, n.enabled, n.state, n.health," \
	" n.reason, n.failures, n.created_at, n.updated_at, n.first_failed_at, n.last_failed_at,"                  \
	" k.issued_at, k.expires_at, k.refresh_issued_at, k.refresh_expires_at, k.token_version = u.token_version," \
	" k.scope, n.metadata, k.refresh_token, k.captured, n.settings "
enum {
	C_ID, C_ATTEMPT, C_VERSION, C_DUE, C_DOUBTS, C_APP, C_CONSUMER, C_API, C_SERVICE, C_AUTH, C_ENABLED, C_STATE, C_HEALTH,
	C_REASON, C_FAILURES, C_CREATED, C_UPDATED, C_FIRST_FAILED, C_LAST_FAILED, C_ISSUED, C_EXPIRES, C_R_ISSUED, C_R_EXPIRES,
	C_CURRENT, C_SCOPE, C_METADATA, C_REFRESH_TOKEN, C_CAPTURED, C_SETTINGS
};

/* A lease that ran out with its owner still set was never resolved: its token may have been presented, so the doubt is
 * counted in the same write that takes the row over (not behind an import, whose tokens nobody has presented). The credential
 * is read from the statement's snapshot, the schedule row in its latest version: token_version shows whether both belong
 * together. */
static const struct pgstmt SQL_CLAIM = {
	"refresh_claim",
	"WITH want AS MATERIALIZED (SELECT unnest($1::smallint[]) AS slot, "
	"unnest($2::uuid[]) AS connection_id, unnest($3::bigint[]) AS attempt_id, "
	"unnest($4::timestamptz[]) AS due_at, unnest($8::bigint[]) AS takeover_us),"
	" c AS MATERIALIZED (SELECT s.slot, s.connection_id, w.attempt_id FROM refreshd.schedule s"
	" JOIN want w ON s.slot = w.slot AND s.connection_id = w.connection_id"
	" WHERE s.due_at <= w.due_at AND s.due_at < 'infinity' AND (s.lease_until IS NULL OR s.lease_until <= now())"
	" AND s.attempt_id <> w.attempt_id AND (" FOREIGN("$5") " AND s.lease_until + w.takeover_us * interval '1 microsecond' > now()) IS NOT TRUE"
	" FOR NO KEY UPDATE OF s SKIP LOCKED),"
	" u AS (UPDATE refreshd.schedule s SET attempt_id = c.attempt_id, lease_owner = $5,"
	" lease_until = now() + $6::bigint * interval '1 microsecond',"
	" sent_deadline = now() + $7::bigint * interval '1 microsecond',"
	" doubts = least(s.doubts + (s.lease_owner IS NOT NULL AND s.attempt_id <> 0)::int, 1000)"
	" FROM c WHERE s.slot = c.slot AND s.connection_id = c.connection_id"
	" RETURNING s.slot, s.connection_id, s.attempt_id, s.token_version, s.due_at, s.doubts) "
	CLAIMED_COLUMNS
	"FROM u JOIN refreshd.connection n ON n.slot = u.slot AND n.connection_id = u.connection_id"
	" JOIN refreshd.credential k ON k.slot = u.slot AND k.connection_id = u.connection_id",
};
static const struct pgstmt SQL_LOAD = {
	"refresh_load",
	CLAIMED_COLUMNS
	"FROM refreshd.schedule u JOIN refreshd.connection n ON n.slot = u.slot AND n.connection_id = u.connection_id"
	" JOIN refreshd.credential k ON k.slot = u.slot AND k.connection_id = u.connection_id"
	" WHERE u.slot = $1 AND u.connection_id = $2",
};

/* What is claimed is due, with few exceptions: so the first part, for which a start waits, reads what is due now and not the whole
 * table. The webhooks that were being delivered as well: at least once is promised, and nobody is to wait for the lease of the dead.
 * The second part is for what was started before its time, and then nothing is left to look for. */
#define FORMER_LEASES "lease_owner = ANY (ARRAY(SELECT unnest(former_epochs) FROM f))"
static const struct pgstmt SQL_RECOVER = {
	"refresh_recover",
	"WITH f AS MATERIALIZED (SELECT former_epochs FROM refreshd.instance WHERE name = $1 AND epoch = $2),"
	" d AS (UPDATE refreshd.delivery SET lease_until = now() FROM f WHERE done_at IS NULL AND lease_until > now()"
	" AND lease_owner = ANY (f.former_epochs))"
	" UPDATE refreshd.schedule SET lease_owner = $2, lease_until = least(lease_until, now())"
	" WHERE due_at < 'infinity' AND due_at <= now() + interval '10 seconds' AND " FORMER_LEASES,
};
static const struct pgstmt SQL_RECOVER_EARLY = {
	"refresh_recover_early",
	"WITH i AS (UPDATE refreshd.instance SET former_epochs = '{}' WHERE name = $1 AND epoch = $2 RETURNING name),"
	" f AS MATERIALIZED (SELECT former_epochs FROM refreshd.instance WHERE name = $1 AND epoch = $2)"
	" UPDATE refreshd.schedule SET lease_owner = $2, lease_until = least(lease_until, now()) FROM i"
	" WHERE due_at < 'infinity' AND due_at <= now() + $3::bigint * interval '1 microsecond' AND " FORMER_LEASES,
};
/* Due times come before expiries, so whatever has expired is at the front of the due index. What is due at its expiry has
 * nothing to be renewed with. */
static const struct pgstmt SQL_GAUGES = {
	"refresh_gauges",
	"WITH first AS MATERIALIZED (SELECT slot, connection_id, due_at FROM refreshd.schedule WHERE due_at < 'infinity'"
	" ORDER BY due_at LIMIT 2000)"
	" SELECT count(*) FILTER (WHERE k.expires_at <= now()),"
	" extract(epoch FROM min(k.expires_at) - now())::float8,"
	" (SELECT count(*) FROM refreshd.orphan_token WHERE resolved_at IS NULL)"
	" FROM first JOIN refreshd.connection n USING (slot, connection_id) JOIN refreshd.credential k USING (slot, connection_id)"
	" WHERE n.enabled AND n.health = 'ok' AND n.state = 'callable'"
	" AND (k.refresh_token IS NOT NULL OR first.due_at < k.expires_at)",
};
static const struct pgstmt SQL_STATES = {
	"refresh_states",
	"SELECT state, count(*) FROM refreshd.connection GROUP BY state",
};

/* ---------------------------------------------------------------- poll */

struct poll_call {
	store_poll_fn *fn;
	void *arg;
};

static void on_poll(void *arg, const struct pgtx_result *r)
{
	struct poll_call call = *(struct poll_call *)arg;
	mem_free(arg);
	if (r->class != PG_CLASS_OK) {
		call.fn(call.arg, ST_UNAVAILABLE, NULL, 0);
		return;
	}
	int n = pgresult_rows(&r->results[0]);
	struct store_due *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++) {
		memcpy(v[i].id, pgresult_uuid(&r->results[0], i, 0), 16);
		v[i].application_id = pgresult_text(&r->results[0], i, 1, NULL);
		v[i].service_id = pgresult_text(&r->results[0], i, 2, NULL);
		v[i].due_at = pgresult_time(&r->results[0], i, 3);
		v[i].foreign_until = pgresult_time_or_0(&r->results[0], i, 4);
	}
	call.fn(call.arg, 0, v, (size_t)n);
	mem_free(v);
}

static int send_poll(struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_poll_fn *fn, void *arg)
{
	return store_send_stmt(s, STORE_MUTANT(stmt), a, WAIT_US, on_poll, STORE_CALL(poll_call, .fn = fn, .arg = arg));
}

int store_poll(struct store *s, const struct store_cursor *from, int64_t until, unsigned limit, const struct slots *only, store_poll_fn *fn,
	void *arg)
{
	struct pgargs *a = pgargs_new();
	pgargs_time(a, from->due_at);
	pgargs_uuid(a, from->id);
	pgargs_time(a, until);
	pgargs_i64(a, limit);
	pgargs_bytes(a, only->n < SLOTS_N ? only->bits : NULL, sizeof only->bits);
	pgargs_i64(a, store_epoch(s));
	return send_poll(s, &SQL_POLL, a, fn, arg);
}

int store_due_of(struct store *s, const uint8_t id[16], store_poll_fn *fn, void *arg)
{
	struct pgargs *a = store_args_of(id);
	pgargs_i64(a, store_epoch(s));
	return send_poll(s, &SQL_DUE_OF, a, fn, arg);
}

/* ---------------------------------------------------------------- claim */

struct claim_call {
	store_claim_fn *fn;
	void *arg;
};

/* Words we do not know (a newer daemon wrote them) read as the most careful value. */
static void unpack_words(const struct pgresult *r, int i, struct store_claimed *c)
{
	if (auth_type_parse(pgresult_text(r, i, C_AUTH, NULL), &c->auth_type) != 0)
		c->auth_type = AUTH_CUSTOM;
	if (conn_state_parse(pgresult_text(r, i, C_STATE, NULL), &c->state) != 0)
		c->state = CONN_INVALID;
	if (conn_health_parse(pgresult_text(r, i, C_HEALTH, NULL), &c->health) != 0)
		c->health = HEALTH_NEEDS_AUTH;
	if (reason_parse(pgresult_text(r, i, C_REASON, NULL), &c->reason) != 0)
		c->reason = REASON_NONE;
}

static void unpack_claimed(const struct pgresult *r, int i, struct store_claimed *c)
{
	memcpy(c->id, pgresult_uuid(r, i, C_ID), 16);
	c->attempt_id = pgresult_int(r, i, C_ATTEMPT);
	c->token_version = pgresult_int(r, i, C_VERSION);
	c->due_at = pgresult_time(r, i, C_DUE);
	c->doubts = (int)pgresult_int(r, i, C_DOUBTS);
	c->key.application_id = pgresult_text(r, i, C_APP, NULL);
	c->key.consumer_id = pgresult_text(r, i, C_CONSUMER, NULL);
	c->key.unified_api = pgresult_text(r, i, C_API, NULL);
	c->key.service_id = pgresult_text(r, i, C_SERVICE, NULL);
	c->enabled = pgresult_bool(r, i, C_ENABLED);
	unpack_words(r, i, c);
	c->failures = (int)pgresult_int(r, i, C_FAILURES);
	c->created_at = pgresult_time(r, i, C_CREATED);
	c->updated_at = pgresult_time(r, i, C_UPDATED);
	c->first_failed_at = pgresult_time_or_0(r, i, C_FIRST_FAILED);
	c->last_failed_at = pgresult_time_or_0(r, i, C_LAST_FAILED);
	c->issued_at = pgresult_time_or_0(r, i, C_ISSUED);
	c->expires_at = pgresult_time_or_0(r, i, C_EXPIRES);
	c->refresh_issued_at = pgresult_time_or_0(r, i, C_R_ISSUED);
	c->refresh_expires_at = pgresult_time_or_0(r, i, C_R_EXPIRES);
	c->current = pgresult_bool(r, i, C_CURRENT);
	c->scope = pgresult_text_or_null(r, i, C_SCOPE);
	c->metadata = pgresult_text(r, i, C_METADATA, NULL);
	c->refresh_token = pgresult_bytes_or_null(r, i, C_REFRESH_TOKEN, &c->refresh_token_len);
	c->captured = pgresult_bytes_or_null(r, i, C_CAPTURED, &c->captured_len);
	c->settings = pgresult_bytes_or_null(r, i, C_SETTINGS, &c->settings_len);
}

static void on_claimed(void *arg, const struct pgtx_result *r)
{
	struct claim_call call = *(struct claim_call *)arg;
	mem_free(arg);
	if (r->class != PG_CLASS_OK) {
		call.fn(call.arg, ST_UNAVAILABLE, r->class, NULL, 0);
		return;
	}
	int n = pgresult_rows(&r->results[0]);
	struct store_claimed *v = mem_calloc((size_t)n + 1, sizeof *v);
	for (int i = 0; i < n; i++)
		unpack_claimed(&r->results[0], i, &v[i]);
	call.fn(call.arg, 0, PG_CLASS_OK, v, (size_t)n);
	mem_free(v);
}

static int send_claim(struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_claim_fn *fn, void *arg)
{
	return store_send_stmt(s, STORE_MUTANT(stmt), a, WAIT_US, on_claimed, STORE_CALL(claim_call, .fn = fn, .arg = arg));
}

int store_claim(struct store *s, const struct store_want *v, size_t n, int64_t lease_us, int64_t timeout_us, store_claim_fn *fn,
	void *arg)
{
	struct pgargs *a = pgargs_new();
	store_add_keys(a, v[0].id, sizeof *v, n);
	PGARGS_COLUMN(a, PGT_I64, v, n, pgargs_i64(a, x->attempt_id));
	PGARGS_COLUMN(a, PGT_TIME, v, n, pgargs_time(a, x->due_at));
	pgargs_i64(a, store_epoch(s));
	pgargs_i64(a, lease_us);
	pgargs_i64(a, timeout_us);
	PGARGS_COLUMN(a, PGT_I64, v, n, pgargs_i64(a, x->takeover_us));
	return send_claim(s, &SQL_CLAIM, a, fn, arg);
}

int store_load(struct store *s, const uint8_t id[16], store_claim_fn *fn, void *arg)
{
	struct pgargs *a = store_args_of(id);
	return send_claim(s, &SQL_LOAD, a, fn, arg);
}

/* ---------------------------------------------------------------- recover, gauges, notices */

struct recover_call {
	void (*fn)(void *arg, int code, int64_t rows);
	void *arg;
};

static void on_recovered(void *arg, const struct pgtx_result *r)
{
	struct recover_call call = *(struct recover_call *)arg;
	mem_free(arg);
	if (r->class == PG_CLASS_OK)
		call.fn(call.arg, 0, pgresult_affected(&r->results[0]));
	else
		call.fn(call.arg, r->class == PG_CLASS_BUG ? ST_DENIED : ST_UNAVAILABLE, 0);
}

static struct pgargs *instance_args(struct store *s)
{
	struct pgargs *a = pgargs_new();
	pgargs_text(a, store_instance(s));
	pgargs_i64(a, store_epoch(s));
	return a;
}

int store_recover(struct store *s, void (*fn)(void *arg, int code, int64_t rows), void *arg)
{
	return store_send_stmt(s, &SQL_RECOVER, instance_args(s), WAIT_US, on_recovered, STORE_CALL(recover_call, .fn = fn, .arg = arg));
}

int store_recover_early(struct store *s, int64_t early_us, void (*fn)(void *arg, int code, int64_t rows), void *arg)
{
	struct pgargs *a = instance_args(s);
	pgargs_i64(a, early_us);
	return store_send_stmt(s, &SQL_RECOVER_EARLY, a, WAIT_US, on_recovered, STORE_CALL(recover_call, .fn = fn, .arg = arg));
}

struct gauges_call {
	store_gauges_fn *fn;
	void *arg;
	bool states;
};

static void on_gauges(void *arg, const struct pgtx_result *r)
{
	struct gauges_call call = *(struct gauges_call *)arg;
	mem_free(arg);
	struct store_gauges g = { 0 };
	if (r->class != PG_CLASS_OK) {
		call.fn(call.arg, ST_UNAVAILABLE, &g);
		return;
	}
	const struct pgresult *first = &r->results[0];
	g.expired = pgresult_int(first, 0, 0);
	g.have_min = !pgresult_null(first, 0, 1);
	g.min_seconds_to_expiry = g.have_min ? pgresult_f64(first, 0, 1) : 0;
	g.orphans = pgresult_int(first, 0, 2);
	for (size_t i = 0; i < sizeof g.by_state / sizeof *g.by_state; i++)
		g.by_state[i] = call.states ? 0 : -1;
	for (int i = 0; call.states && i < pgresult_rows(&r->results[1]); i++) {
		enum conn_state state;
		if (conn_state_parse(pgresult_text(&r->results[1], i, 0, NULL), &state) == 0)
			g.by_state[state] = pgresult_int(&r->results[1], i, 1);
	}
	call.fn(call.arg, 0, &g);
}

int store_gauges(struct store *s, bool count_states, store_gauges_fn *fn, void *arg)
{
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &SQL_GAUGES, pgargs_new());
	if (count_states)
		pgtx_add(t, &SQL_STATES, pgargs_new());
	return store_send_call(s, t, US_PER_S, on_gauges, STORE_CALL(gauges_call, .fn = fn, .arg = arg, .states = count_states));
}

static void on_notice(void *arg, const char *payload)
{
	const struct store_notice *w = arg;
	uint8_t id[16];
	if (payload == NULL || payload[0] == '\0') /* reconnected, or a whole import */
		w->fn(w->arg, NULL);
	else if (str_parse_uuid(payload, strlen(payload), id) == 0)
		w->fn(w->arg, id); /* anything else was sent by someone else */
}

void store_on_notice(struct store *s, struct store_notice *w)
{
	pgpool_listen(store_pool(s), "refreshd_due", on_notice, w);
}
