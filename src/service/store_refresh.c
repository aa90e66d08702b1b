/*
 * store_refresh - the SQL of one refresh. Read the statements first; the C below only binds and unpacks.
 *
 * All of them touch `schedule` before anything else, so that its row lock orders claim, persist, import and delete.
 * Arrays are one parameter per column (unnest), so that a batch is one statement and one commit.
 */
#include "service/store_refresh.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "service/store_mutant.h"

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
	"WITH want AS MATERIALIZED (SELECT * FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::timestamptz[], $8::bigint[])"
	" AS t (slot, connection_id, attempt_id, due_at, takeover_us)),"
	" c AS MATERIALIZED (SELECT s.slot, s.connection_id, w.attempt_id FROM refreshd.schedule s"
	" JOIN want w ON s.slot = w.slot AND s.connection_id = w.connection_id"
	" WHERE s.due_at <= w.due_at AND s.due_at < 'infinity' AND (s.lease_until IS NULL OR s.lease_until <= now())"
	" AND (" FOREIGN("$5") " AND s.lease_until + w.takeover_us * interval '1 microsecond' > now()) IS NOT TRUE"
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

/* One statement for every outcome. `f` holds the rows whose fence still stood; everything else follows from it. A
 * row without a fence is `already` when it is exactly in the state that this very result would have left (the COMMIT's
 * answer was lost), else `lost`, and a token in hand becomes an orphan in the same transaction - unless the connection was
 * deleted, which means that its tokens are to be forgotten. An import voids the attempt (attempt_id 0) but leaves our lease,
 * so that nobody presents a token while we do: `x` gives that lease back. So does a merge, which adds one to the version; a
 * refusal that comes behind it may have been a provider's revocation, so the merged token is to be tried at once. State and event
 * follow from the settings that the request was made with: when these changed meanwhile, `n` finds nobody, and the row is due
 * again now, with the new ones; its tokens are written all the same. Nobody is waited
 * for: a row that another transaction has (an import, a deletion, or this very result whose first sending is only now
 * committed) must not keep the rest of the batch. Its fence stands in the snapshot and not in `f`: `again`, because only a
 * later snapshot can tell what became of it. */
#define RESULT_LOCK \
	" l AS MATERIALIZED (SELECT r.ord FROM refreshd.schedule s JOIN r ON s.slot = r.slot AND s.connection_id = r.connection_id" \
	" WHERE s.attempt_id = r.attempt_id AND s.token_version = r.token_version AND s.lease_owner IS NOT NULL" \
	" FOR NO KEY UPDATE OF s SKIP LOCKED),"
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
	"WITH r AS MATERIALIZED (SELECT * FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::timestamptz[],"
	" $6::smallint[], $7::boolean[], $8::bytea[], $9::bytea[], $10::bytea[], $11::bytea[], $12::timestamptz[],"
	" $13::timestamptz[], $14::timestamptz[], $15::timestamptz[], $16::text[], $17::text[], $18::bytea[], $19::boolean[],"
	" $20::text[], $21::text[], $22::text[], $23::int[], $24::timestamptz[], $25::timestamptz[], $26::timestamptz[],"
	" $27::text[], $28::uuid[], $29::text[], $30::text[], $31::text[], $32::timestamptz[]) WITH ORDINALITY"
	" AS t (slot, connection_id, attempt_id, token_version, due_at, doubts, has_token, access_token, refresh_token,"
	" previous_refresh_token, captured, issued_at, expires_at, refresh_issued_at, refresh_expires_at, token_type, scope,"
	" raw_reply, touch, state, health, reason, failures, first_failed_at, last_failed_at, updated_at, event_type, event_id,"
	" application_id, entity_id, entity, seen_at, ord)),"
	RESULT_LOCK
	" n AS (UPDATE refreshd.connection c SET state = r.state, health = r.health, reason = r.reason, failures = r.failures,"
	" first_failed_at = r.first_failed_at, last_failed_at = r.last_failed_at, updated_at = r.updated_at FROM r JOIN l USING (ord)"
	" WHERE c.slot = r.slot AND c.connection_id = r.connection_id AND r.touch AND c.updated_at = r.seen_at RETURNING r.ord),"
	" f AS (UPDATE refreshd.schedule s SET due_at = CASE WHEN r.touch AND n.ord IS NULL THEN now() ELSE r.due_at END,"
	" doubts = CASE WHEN r.touch AND n.ord IS NULL AND NOT r.has_token THEN greatest(s.doubts, r.doubts) ELSE r.doubts END,"
	" lease_owner = NULL, lease_until = NULL,"
	" sent_deadline = NULL, token_version = s.token_version + r.has_token::int FROM r JOIN l USING (ord) LEFT JOIN n USING (ord)"
	" WHERE s.slot = r.slot AND s.connection_id = r.connection_id"
	" RETURNING r.ord, r.touch AND n.ord IS NULL AS stale),"
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

/* The same where every result is a new token for a connection that was well and stays so: half the parameters, each of which costs the
 * server as much as an index entry, and no second look at a row that was written. That look is what the CASE is for. */
static const struct pgstmt SQL_RENEW = {
	"refresh_renew",
	"WITH r AS MATERIALIZED (SELECT t.*, true AS has_token FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[],"
	" $5::timestamptz[], $6::smallint[], $7::bytea[], $8::bytea[], $9::bytea[], $10::bytea[], $11::timestamptz[],"
	" $12::timestamptz[], $13::timestamptz[], $14::timestamptz[], $15::text[], $16::text[]) WITH ORDINALITY"
	" AS t (slot, connection_id, attempt_id, token_version, due_at, doubts, access_token, refresh_token,"
	" previous_refresh_token, captured, issued_at, expires_at, refresh_issued_at, refresh_expires_at, token_type, scope, ord)),"
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
 * shows a free row, and only its lock tells. Verdict `again`, until the row can be looked at. */
static const struct pgstmt SQL_RELEASE = {
	"refresh_release",
	"WITH t AS MATERIALIZED (SELECT * FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::timestamptz[]) WITH ORDINALITY"
	" AS t (slot, connection_id, attempt_id, due_at, ord)),"
	" l AS MATERIALIZED (SELECT t.ord, s.attempt_id, s.due_at, s.lease_owner FROM refreshd.schedule s"
	" JOIN t ON s.slot = t.slot AND s.connection_id = t.connection_id FOR NO KEY UPDATE OF s SKIP LOCKED),"
	" u AS (UPDATE refreshd.schedule s SET lease_owner = NULL, lease_until = NULL, sent_deadline = NULL,"
	" due_at = CASE WHEN l.attempt_id = t.attempt_id THEN coalesce(t.due_at, l.due_at) ELSE l.due_at END FROM l JOIN t USING (ord)"
	" WHERE s.slot = t.slot AND s.connection_id = t.connection_id AND l.lease_owner IS NOT NULL"
	" AND (l.attempt_id = t.attempt_id OR (l.attempt_id = 0 AND l.lease_owner = $5)))"
	" SELECT CASE WHEN l.ord IS NULL AND s.slot IS NOT NULL THEN 3 ELSE 0 END FROM t LEFT JOIN l USING (ord)"
	" LEFT JOIN refreshd.schedule s ON s.slot = t.slot AND s.connection_id = t.connection_id ORDER BY t.ord",
};
static const struct pgstmt SQL_QUARANTINE = {
	"refresh_quarantine",
	"UPDATE refreshd.schedule SET due_at = 'infinity'"
	" WHERE slot = $1 AND connection_id = $2 AND attempt_id = $3 AND lease_owner IS NOT NULL",
};
/* The webhooks that were being delivered as well: at least once is promised, and nobody is to wait for the lease of the dead. */
static const struct pgstmt SQL_RECOVER = {
	"refresh_recover",
	"WITH i AS (UPDATE refreshd.instance SET former_epochs = '{}' WHERE name = $1 AND epoch = $2 RETURNING name),"
	" f AS MATERIALIZED (SELECT former_epochs FROM refreshd.instance WHERE name = $1 AND epoch = $2),"
	" d AS (UPDATE refreshd.delivery SET lease_until = now() FROM f WHERE done_at IS NULL AND lease_until > now()"
	" AND lease_owner = ANY (f.former_epochs))"
	" UPDATE refreshd.schedule SET lease_owner = $2, lease_until = least(lease_until, now()) FROM i"
	" WHERE due_at < 'infinity' AND due_at <= now() + interval '1 hour' AND lease_owner = ANY (ARRAY(SELECT unnest(former_epochs) FROM f))",
};
static const struct pgstmt SQL_EVENT = {
	"refresh_event",
	"INSERT INTO refreshd.event (event_id, application_id, event_type, entity_id, entity_type, entity, reason, occurred_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, now()) ON CONFLICT DO NOTHING",
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

/* ---------------------------------------------------------------- helpers */

static void add_slots(struct pgargs *a, const uint8_t *first_id, size_t stride, size_t n)
{
	pgargs_array(a, PGT_I16);
	for (size_t i = 0; i < n; i++)
		pgargs_i16(a, conn_slot_of(first_id + i * stride));
	pgargs_array_end(a);
	pgargs_array(a, PGT_UUID);
	for (size_t i = 0; i < n; i++)
		pgargs_uuid(a, first_id + i * stride);
	pgargs_array_end(a);
}

/* One row by its key, as the first two parameters. */
static struct pgargs *args_of(const uint8_t id[16])
{
	struct pgargs *a = pgargs_new();
	pgargs_i16(a, conn_slot_of(id));
	pgargs_uuid(a, id);
	return a;
}

static void add_time(struct pgargs *a, int64_t t)
{
	if (t == 0)
		pgargs_null(a, PGT_TIME);
	else
		pgargs_time(a, t);
}

static void add_buf(struct pgargs *a, const struct buf *b)
{
	if (b == NULL || b->len == 0)
		pgargs_null(a, PGT_BYTES);
	else
		pgargs_bytes(a, b->data, b->len);
}

static int64_t time_or_0(const struct pgresult *r, int row, int col)
{
	return pgresult_null(r, row, col) ? 0 : pgresult_time(r, row, col);
}

static const char *text_or_null(const struct pgresult *r, int row, int col)
{
	return pgresult_null(r, row, col) ? NULL : pgresult_text(r, row, col, NULL);
}

static int send_tx(struct store *s, const struct pgstmt *stmt, struct pgargs *a, pgtx_fn *fn, void *arg)
{
	struct pgtx *t = pgtx_new();
	pgtx_add(t, STORE_MUTANT(stmt), a);
	return store_send(s, t, 10 * US_PER_S, fn, arg);
}

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
		v[i].foreign_until = time_or_0(&r->results[0], i, 4);
	}
	call.fn(call.arg, 0, v, (size_t)n);
	mem_free(v);
}

static int send_poll(struct store *s, const struct pgstmt *stmt, struct pgargs *a, store_poll_fn *fn, void *arg)
{
	struct poll_call *call = mem_alloc(sizeof *call);
	*call = (struct poll_call){ .fn = fn, .arg = arg };
	int e = send_tx(s, stmt, a, on_poll, call);
	if (e != 0)
		mem_free(call);
	return e;
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
	struct pgargs *a = args_of(id);
	pgargs_i64(a, store_epoch(s));
	return send_poll(s, &SQL_DUE_OF, a, fn, arg);
}

/* ---------------------------------------------------------------- claim */

struct claim_call {
	store_claim_fn *fn;
	void *arg;
};

static const void *sealed_or_null(const struct pgresult *r, int row, int col, size_t *n)
{
	if (pgresult_null(r, row, col)) {
		*n = 0;
		return NULL;
	}
	return pgresult_bytes(r, row, col, n);
}

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
	c->first_failed_at = time_or_0(r, i, C_FIRST_FAILED);
	c->last_failed_at = time_or_0(r, i, C_LAST_FAILED);
	c->issued_at = time_or_0(r, i, C_ISSUED);
	c->expires_at = time_or_0(r, i, C_EXPIRES);
	c->refresh_issued_at = time_or_0(r, i, C_R_ISSUED);
	c->refresh_expires_at = time_or_0(r, i, C_R_EXPIRES);
	c->current = pgresult_bool(r, i, C_CURRENT);
	c->scope = text_or_null(r, i, C_SCOPE);
	c->metadata = pgresult_text(r, i, C_METADATA, NULL);
	c->refresh_token = sealed_or_null(r, i, C_REFRESH_TOKEN, &c->refresh_token_len);
	c->captured = sealed_or_null(r, i, C_CAPTURED, &c->captured_len);
	c->settings = sealed_or_null(r, i, C_SETTINGS, &c->settings_len);
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
	struct claim_call *call = mem_alloc(sizeof *call);
	*call = (struct claim_call){ .fn = fn, .arg = arg };
	int e = send_tx(s, stmt, a, on_claimed, call);
	if (e != 0)
		mem_free(call);
	return e;
}

int store_claim(struct store *s, const struct store_want *v, size_t n, int64_t lease_us, int64_t timeout_us, store_claim_fn *fn,
	void *arg)
{
	struct pgargs *a = pgargs_new();
	add_slots(a, v[0].id, sizeof *v, n);
	pgargs_array(a, PGT_I64);
	for (size_t i = 0; i < n; i++)
		pgargs_i64(a, v[i].attempt_id);
	pgargs_array_end(a);
	pgargs_array(a, PGT_TIME);
	for (size_t i = 0; i < n; i++)
		pgargs_time(a, v[i].due_at);
	pgargs_array_end(a);
	pgargs_i64(a, store_epoch(s));
	pgargs_i64(a, lease_us);
	pgargs_i64(a, timeout_us);
	pgargs_array(a, PGT_I64);
	for (size_t i = 0; i < n; i++)
		pgargs_i64(a, v[i].takeover_us);
	pgargs_array_end(a);
	return send_claim(s, &SQL_CLAIM, a, fn, arg);
}

int store_load(struct store *s, const uint8_t id[16], store_claim_fn *fn, void *arg)
{
	struct pgargs *a = args_of(id);
	return send_claim(s, &SQL_LOAD, a, fn, arg);
}

/* ---------------------------------------------------------------- persist */

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
	struct persist_call *call = mem_alloc(sizeof *call);
	*call = (struct persist_call){ .fn = fn, .arg = arg };
	int e = send_tx(s, stmt, a, on_persisted, call);
	if (e != 0)
		mem_free(call);
	return e;
}

/* One array parameter: `stmt` runs for each result, as `x`. */
#define COLUMN(type_, ...)                              \
	do {                                            \
		pgargs_array(a, (type_));               \
		for (size_t i = 0; i < n; i++) {        \
			const struct store_result *x = &v[i]; \
			__VA_ARGS__;                    \
		}                                       \
		pgargs_array_end(a);                    \
	} while (0)

static void add_token_columns(struct pgargs *a, const struct store_result *v, size_t n)
{
	COLUMN(PGT_BYTES, add_buf(a, x->access_token));
	COLUMN(PGT_BYTES, add_buf(a, x->refresh_token));
	COLUMN(PGT_BYTES, add_buf(a, x->previous_refresh_token));
	COLUMN(PGT_BYTES, add_buf(a, x->captured));
	COLUMN(PGT_TIME, add_time(a, x->issued_at));
	COLUMN(PGT_TIME, add_time(a, x->expires_at));
	COLUMN(PGT_TIME, add_time(a, x->refresh_issued_at));
	COLUMN(PGT_TIME, add_time(a, x->refresh_expires_at));
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
	COLUMN(PGT_TIME, add_time(a, x->first_failed_at));
	COLUMN(PGT_TIME, add_time(a, x->last_failed_at));
	COLUMN(PGT_TIME, add_time(a, x->updated_at));
	COLUMN(PGT_TEXT, pgargs_text(a, x->event == EVENT_NONE ? NULL : event_type_word(x->event)));
	COLUMN(PGT_UUID, if (x->event == EVENT_NONE) pgargs_null(a, PGT_UUID); else pgargs_uuid(a, x->event_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->application_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity_id));
	COLUMN(PGT_TEXT, pgargs_text(a, x->entity));
	COLUMN(PGT_TIME, add_time(a, x->seen_at));
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
	add_slots(a, v[0].id, sizeof *v, n);
	COLUMN(PGT_I64, pgargs_i64(a, x->attempt_id));
	COLUMN(PGT_I64, pgargs_i64(a, x->token_version));
	COLUMN(PGT_TIME, pgargs_time(a, x->due_at));
	COLUMN(PGT_I16, pgargs_i16(a, (int16_t)x->doubts));
	if (renewals < n)
		COLUMN(PGT_BOOL, pgargs_bool(a, x->has_token));
	add_token_columns(a, v, n);
	if (renewals < n) {
		COLUMN(PGT_BYTES, add_buf(a, x->raw_reply));
		add_connection_columns(a, v, n);
	}
	pgargs_i64(a, store_epoch(s));
	return send_persist(s, renewals < n ? &SQL_PERSIST : &SQL_RENEW, a, fn, arg);
}

int store_release(struct store *s, const struct store_release *v, size_t n, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = pgargs_new();
	add_slots(a, v[0].id, sizeof *v, n);
	pgargs_array(a, PGT_I64);
	for (size_t i = 0; i < n; i++)
		pgargs_i64(a, v[i].attempt_id);
	pgargs_array_end(a);
	pgargs_array(a, PGT_TIME);
	for (size_t i = 0; i < n; i++)
		add_time(a, v[i].due_at);
	pgargs_array_end(a);
	pgargs_i64(a, store_epoch(s));
	return send_persist(s, &SQL_RELEASE, a, fn, arg);
}

int store_quarantine(struct store *s, const uint8_t id[16], int64_t attempt_id, store_persist_fn *fn, void *arg)
{
	struct pgargs *a = args_of(id);
	pgargs_i64(a, attempt_id);
	return send_persist(s, &SQL_QUARANTINE, a, fn, arg);
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

/* ---------------------------------------------------------------- recover, gauges, notices */

struct recover_call {
	void (*fn)(void *arg, int code, int64_t rows);
	void *arg;
};

static void on_recovered(void *arg, const struct pgtx_result *r)
{
	struct recover_call call = *(struct recover_call *)arg;
	mem_free(arg);
	bool ok = r->class == PG_CLASS_OK;
	call.fn(call.arg, ok ? 0 : ST_UNAVAILABLE, ok ? pgresult_affected(&r->results[0]) : 0);
}

int store_recover(struct store *s, void (*fn)(void *arg, int code, int64_t rows), void *arg)
{
	struct recover_call *call = mem_alloc(sizeof *call);
	*call = (struct recover_call){ .fn = fn, .arg = arg };
	struct pgargs *a = pgargs_new();
	pgargs_text(a, store_instance(s));
	pgargs_i64(a, store_epoch(s));
	int e = send_tx(s, &SQL_RECOVER, a, on_recovered, call);
	if (e != 0)
		mem_free(call);
	return e;
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
	struct gauges_call *call = mem_alloc(sizeof *call);
	*call = (struct gauges_call){ .fn = fn, .arg = arg, .states = count_states };
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &SQL_GAUGES, pgargs_new());
	if (count_states)
		pgtx_add(t, &SQL_STATES, pgargs_new());
	int e = store_send(s, t, US_PER_S, on_gauges, call);
	if (e != 0)
		mem_free(call);
	return e;
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
