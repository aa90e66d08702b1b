/*
 * vault_ops - operator's acts and questions: statements and the unpacking of their rows.
 *
 * An act is one statement or runs inside the caller's transaction, and touches `schedule` first like everything
 * else that writes. Must not open a sealed value, wait, or print.
 */
#include "service/vault_ops.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/connection.h"
#include "service/store_refresh.h"
#include "service/vault.h"

/* ---------------------------------------------------------------- statements */

static const struct pgstmt SQL_NOTIFY = {
	"vault_notify",
	"SELECT pg_notify('refreshd_due', coalesce($1::uuid::text, ''))",
};
static const struct pgstmt SQL_LIVE = {
	"vault_live",
	"SELECT count(*) FROM refreshd.instance WHERE NOT gone AND heartbeat_at > now() - interval '20 seconds'",
};
static const struct pgstmt SQL_WATCH = {
	"vault_watch",
	"SELECT n.enabled, k.refresh_token IS NOT NULL, coalesce(s.lease_until > now(), false), n.auth_type, n.state, n.health,"
	" n.reason, k.token_version, k.refreshes, n.last_failed_at, s.attempt_id, s.due_at, k.expires_at, n.service_id"
	" FROM refreshd.schedule s JOIN refreshd.connection n USING (slot, connection_id)"
	" JOIN refreshd.credential k USING (slot, connection_id) WHERE s.slot = $1 AND s.connection_id = $2",
};
static const struct pgstmt SQL_REFRESH_NOW = {
	"vault_refresh_now",
	"WITH s AS (UPDATE refreshd.schedule s SET due_at = CASE WHEN " STORE_SET_ASIDE " THEN s.due_at ELSE now() END"
	" WHERE slot = $1 AND connection_id = $2 RETURNING connection_id, due_at < 'infinity' AS due)"
	" SELECT due, (SELECT pg_notify('refreshd_due', connection_id::text) WHERE due) FROM s",
};
static const struct pgstmt SQL_INSTANCES = {
	"vault_instances",
	"SELECT name, version, epoch, started_at, heartbeat_at, gone, NOT gone AND heartbeat_at > now() - interval '20 seconds', presence"
	" FROM refreshd.instance ORDER BY name COLLATE \"C\"",
};
/* A lease that has not run out is left: if the operator is wrong, a request may be out. Owner 0 is nobody, so that the doubt is
 * still counted. */
static const struct pgstmt SQL_FORGET = {
	"vault_instance_forget",
	"WITH i AS (SELECT name, epoch, former_epochs, NOT gone AND heartbeat_at > now() - interval '20 seconds' AS alive"
	" FROM refreshd.instance WHERE name = $1 FOR UPDATE),"
	" d AS (DELETE FROM refreshd.instance n USING i WHERE n.name = i.name AND NOT i.alive RETURNING 1),"
	" s AS (UPDATE refreshd.schedule s SET lease_owner = 0 FROM i WHERE NOT i.alive"
	" AND (s.lease_owner = i.epoch OR s.lease_owner = ANY (i.former_epochs)) RETURNING 1)"
	" SELECT i.alive, (SELECT count(*) FROM s) FROM i",
};
/* Left to a daemon that is silent: it may hold the answer ($1: for how long; $2: services whose tokens are taken over at once). One that
 * is alive takes its own lease again at once, so then nothing is waited for. */
#define LEFT_TO_OWNER                                                                                                   \
	"((s.attempt_id <> 0 AND s.lease_owner <> 0 AND s.lease_until > now() - $1::bigint * interval '1 microsecond'" \
	" AND s.service_id <> ALL ($2::text[]) AND NOT EXISTS (SELECT 1 FROM refreshd.instance i WHERE i.epoch = s.lease_owner" \
	" AND NOT i.gone AND i.heartbeat_at > now() - interval '20 seconds')) IS TRUE)"
static const struct pgstmt SQL_STATUS = {
	"vault_status",
	"SELECT d.due, d.overdue, d.oldest,"
	/* A leased row keeps the due time that it was claimed for. */
	" (SELECT count(*) FROM refreshd.schedule WHERE due_at <= now() + interval '1 hour' AND lease_until > now()),"
	" (SELECT count(*) FROM refreshd.orphan_token WHERE resolved_at IS NULL),"
	" (SELECT count(*) FROM refreshd.event WHERE fanned_out_at IS NULL),"
	" (SELECT count(*) FROM refreshd.delivery WHERE done_at IS NULL),"
	" least((SELECT min(occurred_at) FROM refreshd.event WHERE fanned_out_at IS NULL),"
	" (SELECT min(due_at) FROM refreshd.delivery WHERE done_at IS NULL)),"
	" (SELECT count(*) FROM refreshd.webhook_endpoint WHERE disabled_at IS NOT NULL), d.waiting"
	" FROM (SELECT count(*) FILTER (WHERE NOT waits) AS due,"
	" count(*) FILTER (WHERE NOT waits AND due_at <= now() - interval '1 minute') AS overdue,"
	" min(due_at) FILTER (WHERE NOT waits) AS oldest, count(*) FILTER (WHERE waits) AS waiting"
	" FROM (SELECT s.due_at, " LEFT_TO_OWNER " AS waits FROM refreshd.schedule s"
	" WHERE s.due_at <= now() AND (s.lease_until IS NULL OR s.lease_until <= now())) x) d",
};
static const struct pgstmt SQL_STATES = {
	"vault_states",
	"SELECT state, count(*) FROM refreshd.connection GROUP BY state",
};
static const struct pgstmt SQL_COUNTS = {
	"vault_counts",
	"SELECT (SELECT count(*) FROM refreshd.schedule WHERE doubts > 0),"
	" (SELECT count(*) FROM refreshd.connection n JOIN refreshd.credential k USING (slot, connection_id)"
	" WHERE n.enabled AND n.state = 'callable' AND k.expires_at <= now())",
};
static const struct pgstmt SQL_SERVICES = {
	"vault_services",
	"SELECT service_id, state, health, reason, count(*) FROM refreshd.connection WHERE $1::text IS NULL OR service_id = $1"
	" GROUP BY service_id, state, health, reason ORDER BY service_id, count(*) DESC, state, health, reason",
};
static const struct pgstmt SQL_ORPHANS = {
	"vault_orphans",
	"SELECT o.connection_id, n.application_id, n.consumer_id, n.unified_api, n.service_id, o.attempt_id, o.token_version,"
	" coalesce(s.token_version, 0), o.kind, o.resolution, o.created_at, o.issued_at, o.expires_at, o.resolved_at,"
	" o.access_token, o.refresh_token, o.raw_reply FROM refreshd.orphan_token o"
	" LEFT JOIN refreshd.connection n USING (slot, connection_id) LEFT JOIN refreshd.schedule s USING (slot, connection_id)"
	" WHERE ($1::uuid IS NULL OR (o.slot = $2 AND o.connection_id = $1)) AND ($3 OR o.resolved_at IS NULL)"
	" ORDER BY o.created_at DESC, o.token_version DESC LIMIT 1000",
};
static const struct pgstmt SQL_LOCK = {
	"vault_lock",
	"SELECT token_version FROM refreshd.schedule WHERE slot = $1 AND connection_id = $2 FOR NO KEY UPDATE",
};
static const struct pgstmt SQL_RESOLVE = {
	"vault_orphan_resolve",
	"UPDATE refreshd.orphan_token SET resolved_at = now(), resolution = $5"
	" WHERE slot = $1 AND connection_id = $2 AND attempt_id = $3 AND kind = $4 AND resolved_at IS NULL",
};
static const struct pgstmt SQL_KEEP_PREVIOUS = {
	"vault_keep_previous",
	"UPDATE refreshd.credential SET previous_refresh_token = $4 WHERE slot = $1 AND connection_id = $2 AND token_version = $3",
};
static const struct pgstmt SQL_REFRESH_TOKEN = {
	"vault_refresh_token",
	"SELECT refresh_token FROM refreshd.credential WHERE slot = $1 AND connection_id = $2",
};

/* ---------------------------------------------------------------- helpers */

static void copy_word(char *to, size_t size, const struct pgresult *r, int col)
{
	(void)snprintf(to, size, "%s", pgresult_text(r, 0, col, NULL));
}

static struct pgargs *id_args(const uint8_t id[16])
{
	struct pgargs *a = pgargs_new();
	vault_add_id(a, id);
	return a;
}

/* ---------------------------------------------------------------- refresh now */

int vault_notify(struct pgsync *pg, const uint8_t *id, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	if (id != NULL)
		pgargs_uuid(a, id);
	else
		pgargs_null(a, PGT_UUID);
	return vault_run(pg, &SQL_NOTIFY, a, NULL, f);
}

int vault_live_daemons(struct pgsync *pg, int64_t *n, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_LIVE, NULL, &r, NULL, f);
	if (rc != 0)
		return rc;
	*n = pgresult_int(&r, 0, 0);
	pgsync_clear(&r);
	return 0;
}

int vault_watch(struct pgsync *pg, const uint8_t id[16], struct vault_watch *out, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_WATCH, id_args(id), &r, NULL, f);
	if (rc != 0)
		return rc;
	if (pgresult_rows(&r) == 0) {
		pgsync_clear(&r);
		return fault_set(f, ST_NOT_FOUND, "there is no such connection: refreshctl list shows them");
	}
	*out = (struct vault_watch){
		.enabled = pgresult_bool(&r, 0, 0),
		.has_refresh_token = pgresult_bool(&r, 0, 1),
		.leased = pgresult_bool(&r, 0, 2),
		.token_version = pgresult_int(&r, 0, 7),
		.refreshes = pgresult_int(&r, 0, 8),
		.last_failed_at = pgresult_time_or_0(&r, 0, 9),
		.attempt_id = pgresult_int(&r, 0, 10),
		.due_at = pgresult_time(&r, 0, 11),
		.expires_at = pgresult_time_or_0(&r, 0, 12),
	};
	copy_word(out->auth_type, sizeof(out->auth_type), &r, 3);
	copy_word(out->state, sizeof(out->state), &r, 4);
	copy_word(out->health, sizeof(out->health), &r, 5);
	copy_word(out->reason, sizeof(out->reason), &r, 6);
	copy_word(out->service_id, sizeof(out->service_id), &r, 13);
	pgsync_clear(&r);
	return 0;
}

int vault_refresh_now(struct pgsync *pg, const uint8_t id[16], struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_REFRESH_NOW, id_args(id), &r, NULL, f);
	if (rc != 0)
		return rc;
	bool there = pgresult_rows(&r) == 1, due = there && pgresult_bool(&r, 0, 0);
	pgsync_clear(&r);
	if (!there)
		return fault_set(f, ST_NOT_FOUND, "the connection went away meanwhile");
	return due ? 0 : fault_set(f, ST_DENIED, "its token was answered, and the answer waits in the journal of a daemon, whose log says why:"
		" presented again it could be revoked; import new tokens if that answer is lost");
}

/* ---------------------------------------------------------------- status */

int vault_instances(struct pgsync *pg, vault_instance_fn *fn, void *arg, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_INSTANCES, NULL, &r, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; rc == 0 && i < pgresult_rows(&r); i++) {
		const struct vault_instance x = {
			.name = pgresult_text(&r, i, 0, NULL),
			.version = pgresult_text(&r, i, 1, NULL),
			.epoch = pgresult_int(&r, i, 2),
			.started_at = pgresult_time(&r, i, 3),
			.heartbeat_at = pgresult_time(&r, i, 4),
			.gone = pgresult_bool(&r, i, 5),
			.alive = pgresult_bool(&r, i, 6),
			.presence = pgresult_text(&r, i, 7, NULL),
		};
		rc = fn(arg, &x);
	}
	pgsync_clear(&r);
	return rc;
}

int vault_instance_forget(struct pgsync *pg, const char *name, int64_t *leases, struct fault *f)
{
	struct pgresult r;
	struct pgargs *a = pgargs_new();
	pgargs_text(a, name);
	int rc = pgsync_query(pg, &SQL_FORGET, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	bool there = pgresult_rows(&r) == 1, alive = there && pgresult_bool(&r, 0, 0);
	int64_t n = there ? pgresult_int(&r, 0, 1) : 0;
	pgsync_clear(&r);
	if (!there)
		return fault_set(f, ST_NOT_FOUND, "there is no instance %.200s", name);
	if (alive)
		return fault_set(f, ST_DENIED, "instance %.200s is alive: stop it first", name);
	*leases = n;
	return vault_notify(pg, NULL, f);
}

static int count_all_tables(struct pgsync *pg, struct vault_status *out, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_STATES, NULL, &r, NULL, f);
	if (rc != 0)
		return rc;
	memset(out->by_state, 0, sizeof(out->by_state));
	for (int i = 0; i < pgresult_rows(&r); i++) {
		enum conn_state s;
		if (conn_state_parse(pgresult_text(&r, i, 0, NULL), &s) == 0)
			out->by_state[s] = pgresult_int(&r, i, 1);
		else
			out->unknown_state += pgresult_int(&r, i, 1);
	}
	pgsync_clear(&r);
	rc = pgsync_query(pg, &SQL_COUNTS, NULL, &r, NULL, f);
	if (rc != 0)
		return rc;
	out->in_doubt = pgresult_int(&r, 0, 0);
	out->expired = pgresult_int(&r, 0, 1);
	out->counted = true;
	pgsync_clear(&r);
	return 0;
}

/* As the scheduler: presenting a token again that does not change does no harm. */
static struct pgargs *status_args(const struct conf *c)
{
	struct pgargs *a = pgargs_new();
	pgargs_i64(a, c->refresh.takeover_delay_us);
	pgargs_array(a, PGT_TEXT);
	for (size_t i = 0; i < c->n_providers; i++) {
		if (c->providers[i]->rotation == ROTATION_NONE || c->providers[i]->grant == GRANT_CLIENT)
			pgargs_text(a, c->providers[i]->key);
	}
	pgargs_array_end(a);
	return a;
}

int vault_status(struct pgsync *pg, const struct conf *c, bool count_all, struct vault_status *out, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_STATUS, status_args(c), &r, NULL, f);
	if (rc != 0)
		return rc;
	struct vault_status s = {
		.due = pgresult_int(&r, 0, 0),
		.overdue = pgresult_int(&r, 0, 1),
		.oldest_due_at = pgresult_time_or_0(&r, 0, 2),
		.in_flight = pgresult_int(&r, 0, 3),
		.orphans = pgresult_int(&r, 0, 4),
		.events_waiting = pgresult_int(&r, 0, 5),
		.deliveries_waiting = pgresult_int(&r, 0, 6),
		.oldest_waiting_at = pgresult_time_or_0(&r, 0, 7),
		.endpoints_disabled = pgresult_int(&r, 0, 8),
		.left_to_owner = pgresult_int(&r, 0, 9),
		.by_state = { -1, -1, -1, -1, -1 },
		.in_doubt = -1,
		.expired = -1,
	};
	pgsync_clear(&r);
	rc = count_all ? count_all_tables(pg, &s, f) : 0;
	if (rc == 0)
		*out = s;
	return rc;
}

int vault_service_counts(struct pgsync *pg, const char *service_or_null, vault_service_fn *fn, void *arg, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_text(a, service_or_null);
	int rc = pgsync_query(pg, &SQL_SERVICES, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; rc == 0 && i < pgresult_rows(&r); i++) {
		const struct vault_service_count c = {
			.service_id = pgresult_text(&r, i, 0, NULL),
			.state = pgresult_text(&r, i, 1, NULL),
			.health = pgresult_text(&r, i, 2, NULL),
			.reason = pgresult_text(&r, i, 3, NULL),
			.n = pgresult_int(&r, i, 4),
		};
		rc = fn(arg, &c);
	}
	pgsync_clear(&r);
	return rc;
}

/* ---------------------------------------------------------------- orphans */

static const void *sealed_or_null(const struct pgresult *r, int row, int col, size_t *n)
{
	*n = 0;
	return pgresult_null(r, row, col) ? NULL : pgresult_bytes(r, row, col, n);
}

static void unpack_orphan(const struct pgresult *r, int i, struct vault_orphan *o)
{
	*o = (struct vault_orphan){
		.application_id = pgresult_text_or_null(r, i, 1),
		.consumer_id = pgresult_text_or_null(r, i, 2),
		.unified_api = pgresult_text_or_null(r, i, 3),
		.service_id = pgresult_text_or_null(r, i, 4),
		.attempt_id = pgresult_int(r, i, 5),
		.token_version = pgresult_int(r, i, 6),
		.current_version = pgresult_int(r, i, 7),
		.kind = pgresult_text(r, i, 8, NULL),
		.resolution = pgresult_text_or_null(r, i, 9),
		.created_at = pgresult_time_or_0(r, i, 10),
		.issued_at = pgresult_time_or_0(r, i, 11),
		.expires_at = pgresult_time_or_0(r, i, 12),
		.resolved_at = pgresult_time_or_0(r, i, 13),
	};
	memcpy(o->id, pgresult_uuid(r, i, 0), sizeof(o->id));
	o->access_token = sealed_or_null(r, i, 14, &o->access_token_len);
	o->refresh_token = sealed_or_null(r, i, 15, &o->refresh_token_len);
	o->raw_reply = sealed_or_null(r, i, 16, &o->raw_reply_len);
}

int vault_orphans(struct pgsync *pg, const uint8_t *id, bool resolved_too, vault_orphan_fn *fn, void *arg, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	if (id != NULL)
		pgargs_uuid(a, id);
	else
		pgargs_null(a, PGT_UUID);
	pgargs_i16(a, id != NULL ? conn_slot_of(id) : 0);
	pgargs_bool(a, resolved_too);
	int rc = pgsync_query(pg, &SQL_ORPHANS, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; rc == 0 && i < pgresult_rows(&r); i++) {
		struct vault_orphan o;
		unpack_orphan(&r, i, &o);
		rc = fn(arg, &o);
	}
	pgsync_clear(&r);
	return rc;
}

int vault_lock(struct pgsync *pg, const uint8_t id[16], int64_t *token_version, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_LOCK, id_args(id), &r, NULL, f);
	if (rc != 0)
		return rc;
	if (pgresult_rows(&r) == 0)
		rc = fault_set(f, ST_NOT_FOUND, "the connection is not there any more");
	else
		*token_version = pgresult_int(&r, 0, 0);
	pgsync_clear(&r);
	return rc;
}

int vault_orphan_resolve(struct pgsync *pg, const uint8_t id[16], int64_t attempt_id, const char *kind, const char *resolution, struct fault *f)
{
	struct pgargs *a = id_args(id);
	int64_t rows = 0;
	pgargs_i64(a, attempt_id);
	pgargs_text(a, kind);
	pgargs_text(a, resolution);
	int rc = vault_run(pg, &SQL_RESOLVE, a, &rows, f);
	if (rc == 0 && rows != 1)
		return fault_set(f, ST_CONFLICT, "the orphan was resolved by someone else meanwhile");
	return rc;
}

int vault_keep_previous(struct pgsync *pg, const uint8_t id[16], int64_t version, const struct buf *sealed, struct fault *f)
{
	struct pgargs *a = id_args(id);
	int64_t rows = 0;
	pgargs_i64(a, version);
	pgargs_buf(a, sealed);
	int rc = vault_run(pg, &SQL_KEEP_PREVIOUS, a, &rows, f);
	if (rc == 0 && rows != 1)
		return fault_set(f, ST_CONFLICT, "the credential changed meanwhile");
	return rc;
}

int vault_refresh_token(struct pgsync *pg, const uint8_t id[16], struct buf *out, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_REFRESH_TOKEN, id_args(id), &r, NULL, f);
	if (rc != 0)
		return rc;
	size_t n = 0;
	const void *p = pgresult_rows(&r) == 1 ? sealed_or_null(&r, 0, 0, &n) : NULL;
	if (p != NULL && buf_append(out, p, n) != 0)
		rc = fault_set(f, ST_FULL, "the sealed refresh token is larger than any token can be");
	pgsync_clear(&r);
	return rc;
}
