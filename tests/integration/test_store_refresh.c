/*
 * test_store_refresh - the SQL of a refresh against a real Postgres with the real schema, while another session writes the
 * same row at the same moment; and the states of the store when the schema is not its own any more.
 *
 * Not over pgworld.h, whose `struct outcome` and the `enum outcome` of a refresh cannot be in one file.
 */
#include "service/store_refresh.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "integration/pgcluster.h"
#include "io/pgpool.h"
#include "io/pgsync.h"
#include "io/resolver.h"
#include "service/migrations.h"
#include "service/store_vault.h"
#include "service/vault_ops.h"
#include "unit/unit.h"

#define DEADLINE_US (20 * US_PER_S)
#define POOL_SIZE 3
#define LEASE_US (120 * US_PER_S)
#define TIMEOUT_US (60 * US_PER_S)

/* ---------------------------------------------------------------- world */

static struct pgcluster *cluster; /* one for the program */
static struct loop *loop;
static struct resolver *resolver;
static struct store *store;
static struct pgsync *other; /* the session that comes in between */
static bool migrated;
static uint8_t id[16];

static struct told { /* the answer to one call */
	bool called;
	int code;
	size_t n;
	enum store_verdict verdict, verdict2; /* of rows 0 and 1 */
	int64_t attempt_id, token_version, updated_at;
	int doubts;
} first, second;

static void end_cluster(void)
{
	pgcluster_free(cluster);
}

static void wait_for(const char *what, bool (*cond)(void *arg), void *arg)
{
	int64_t end_us = sys_mono_us() + DEADLINE_US;
	while (!cond(arg)) {
		ck_assert_msg(sys_mono_us() < end_us, "waited too long for %s: %s", what, store_why(store));
		loop_once(loop, 20 * US_PER_MS);
	}
}

static void sql(const char *text)
{
	struct fault f = { 0 };
	ck_assert_msg(pgsync_exec(other, text, &f) == 0, "%s: %s", f.text, text);
}

static long number(const char *query)
{
	return strtol(pgcluster_sql(cluster, query), NULL, 10);
}

static bool is_ready(void *arg)
{
	return store_state(arg) == STORE_READY;
}

/* Cuts all connections until none was left for a moment: one that was just being made survives a single cut. */
static bool is_wrong_after_a_cut(void *arg)
{
	if (store_state(arg) == STORE_READY)
		(void)number("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'refreshd'");
	return store_state(arg) == STORE_WRONG_SCHEMA;
}

static bool is_told(void *arg)
{
	const struct told *t = arg;
	return t->called;
}

/* Somebody waits for a row that another transaction has. */
static bool is_blocked(void *arg)
{
	(void)arg;
	return number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refreshd' AND wait_event_type = 'Lock'") > 0;
}

/* A lone connection would queue whatever is sent behind the statement that waits for a row. */
static bool is_whole(void *arg)
{
	return is_ready(arg) && pgpool_connected(store_pool(arg)) == POOL_SIZE;
}

static void start_store(void)
{
	struct fault f = { 0 };
	char instance[] = "one", url[500];
	const uint8_t home[16] = { 1 };
	(void)snprintf(url, sizeof url, "%s", pgcluster_url(cluster, ""));
	const struct conf c = {
		.instance = instance,
		.database = { .url = url, .pool_size = POOL_SIZE, .statement_timeout_us = 30 * US_PER_S },
		.refresh = { .poll_interval_us = 300 * US_PER_S },
	};
	ck_assert_msg(store_new(loop, resolver, &c, home, &store, &f) == 0, "%s", f.text);
}

static void open_store(void)
{
	start_store();
	wait_for("the store and all its connections", is_whole, store);
}

static void setup(void)
{
	struct fault f = { 0 };
	const struct resolver_params rp = { .timeout_us = 2 * US_PER_S };
	struct migrations_state from;
	if (cluster == NULL) {
		cluster = pgcluster_new();
		ck_assert_int_eq(atexit(end_cluster), 0);
	}
	ck_ok(loop_new(&loop, &f));
	ck_ok(resolver_new(loop, &rp, &resolver, &f));
	ck_assert_msg(pgsync_connect(pgcluster_url(cluster, ""), "test", &other, &f) == 0, "%s", f.text);
	if (!migrated)
		ck_assert_msg(migrations_apply(other, &from, &f) == 0, "%s", f.text);
	migrated = true;
	sql("TRUNCATE refreshd.connection, refreshd.credential, refreshd.schedule, refreshd.orphan_token, refreshd.instance, refreshd.event CASCADE");
	sql("INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type,"
	    " state, health, created_at, updated_at) VALUES (0, '00000000-0000-0000-0000-0000000000a1', 'app', 'c', 'crm', 'sim',"
	    " 'oauth2', 'callable', 'ok', now(), now());"
	    "INSERT INTO refreshd.credential (slot, connection_id, token_version, access_token, refresh_token)"
	    " VALUES (0, '00000000-0000-0000-0000-0000000000a1', 1, 'a', 'r');"
	    "INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)"
	    " VALUES (0, '00000000-0000-0000-0000-0000000000a1', 1, now() - interval '1 s', 'app', 'sim')");
	memset(id, 0, sizeof id);
	id[15] = 0xa1;
	first = second = (struct told){ 0 };
	open_store();
}

static void teardown(void)
{
	store_free(store);
	pgsync_free(other);
	resolver_free(resolver);
	loop_free(loop);
}

/* ---------------------------------------------------------------- calls */

static void on_claimed(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n)
{
	struct told *t = arg;
	(void)class;
	*t = (struct told){ .called = true, .code = code, .n = n };
	if (n == 1) {
		t->attempt_id = v[0].attempt_id;
		t->token_version = v[0].token_version;
		t->doubts = v[0].doubts;
		t->updated_at = v[0].updated_at;
	}
}

static void on_verdict(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct told *t = arg;
	(void)class;
	*t = (struct told){ .called = true, .code = code, .n = n, .verdict = n > 0 ? v[0] : STORE_LOST, .verdict2 = n > 1 ? v[1] : STORE_LOST };
}

static struct told await(struct told *t)
{
	wait_for("the answer", is_told, t);
	ck_assert_int_eq(t->code, 0);
	struct told answer = *t;
	*t = (struct told){ 0 };
	return answer;
}

static struct told claim_as(int64_t attempt_id)
{
	struct store_want w = { .attempt_id = attempt_id, .due_at = sys_wall_us() };
	memcpy(w.id, id, sizeof w.id);
	ck_ok(store_claim(store, &w, 1, LEASE_US, TIMEOUT_US, on_claimed, &first));
	return await(&first);
}

static struct told claim(void)
{
	return claim_as(store_next_attempt(store));
}

static void send_result(const struct told *claimed, bool has_token, struct told *to)
{
	struct buf access, refresh;
	buf_init(&access, 100);
	buf_init(&refresh, 100);
	ck_ok(buf_append(&access, "A", 1));
	ck_ok(buf_append(&refresh, "R", 1));
	struct store_result r = {
		.attempt_id = claimed->attempt_id,
		.token_version = claimed->token_version,
		.due_at = sys_wall_us() + 3600 * US_PER_S,
		.has_token = has_token,
		.touch = true,
		.state = CONN_CALLABLE,
		.updated_at = sys_wall_us(),
		.seen_at = claimed->updated_at,
		.application_id = "app",
	};
	memcpy(r.id, id, sizeof r.id);
	if (has_token) {
		r.access_token = &access;
		r.refresh_token = &refresh;
	}
	ck_ok(store_persist(store, &r, 1, on_verdict, to));
	buf_fini(&access);
	buf_fini(&refresh);
}

/* A result that ends the connection. */
static enum store_verdict refuse(const struct told *claimed)
{
	struct store_result r = {
		.attempt_id = claimed->attempt_id,
		.token_version = claimed->token_version,
		.due_at = TIME_NEVER,
		.touch = true,
		.state = CONN_INVALID,
		.health = HEALTH_NEEDS_AUTH,
		.reason = REASON_INVALID_GRANT,
		.failures = 1,
		.updated_at = sys_wall_us(),
		.seen_at = claimed->updated_at,
		.event = EVENT_REFRESH_FAILED,
		.event_id = { 7 },
		.application_id = "app",
		.entity_id = "app+c",
		.entity = "{}",
	};
	memcpy(r.id, id, sizeof r.id);
	ck_ok(store_persist(store, &r, 1, on_verdict, &first));
	return await(&first).verdict;
}

static struct told load(void)
{
	ck_ok(store_load(store, id, on_claimed, &first));
	return await(&first);
}

/* The orphan of `of`, over the row as `row` says it was. */
static enum store_verdict merge(const struct told *row, int64_t of, const char *token)
{
	struct buf access, refresh;
	buf_init(&access, 100);
	buf_init(&refresh, 100);
	ck_ok(buf_append(&access, "A", 1));
	ck_ok(buf_append(&refresh, token, strlen(token)));
	struct store_result r = {
		.attempt_id = row->attempt_id,
		.token_version = row->token_version,
		.due_at = sys_wall_us() + 3600 * US_PER_S,
		.has_token = true,
		.access_token = &access,
		.refresh_token = &refresh,
		.issued_at = sys_wall_us(),
		.expires_at = sys_wall_us() + 7200 * US_PER_S,
		.touch = true,
		.state = CONN_CALLABLE,
		.updated_at = sys_wall_us(),
		.seen_at = row->updated_at,
		.event = EVENT_REFRESH_RECOVERED,
		.event_id = { 9 },
		.application_id = "app",
		.entity_id = "app+c",
		.entity = "{}",
	};
	memcpy(r.id, id, sizeof r.id);
	ck_ok(store_merge(store, &r, of, on_verdict, &first));
	buf_fini(&access);
	buf_fini(&refresh);
	return await(&first).verdict;
}

static enum store_verdict persist(const struct told *claimed, bool has_token)
{
	send_result(claimed, has_token, &first);
	return await(&first).verdict;
}

static enum store_verdict release(int64_t attempt_id, int64_t due_at)
{
	struct store_release r = { .attempt_id = attempt_id, .due_at = due_at };
	memcpy(r.id, id, sizeof r.id);
	ck_ok(store_release(store, &r, 1, on_verdict, &first));
	return await(&first).verdict;
}

/* As an import does it: newer tokens, the attempt void, the lease left to whoever has it. */
static void import(void)
{
	sql("UPDATE refreshd.schedule SET token_version = 100, due_at = '2030-01-01', attempt_id = 0, doubts = 0;"
	    "UPDATE refreshd.credential SET token_version = 100, access_token = 'i', refresh_token = 'i'");
}

/* ---------------------------------------------------------------- tests */

START_TEST(a_result_that_is_sent_again_while_the_first_still_commits_is_no_orphan)
{
	for (int has_token = 0; has_token < 2; has_token++) {
		sql("UPDATE refreshd.schedule SET due_at = now() - interval '1 s'");
		struct told c = claim();
		ck_assert_uint_eq(c.n, 1);
		sql("BEGIN; SELECT 1 FROM refreshd.connection FOR UPDATE"); /* behind the schedule: the first has that already */
		send_result(&c, has_token, &first);
		wait_for("the first to wait", is_blocked, NULL);
		send_result(&c, has_token, &second);
		ck_assert_int_eq(await(&second).verdict, STORE_AGAIN);
		sql("COMMIT");
		ck_assert_int_eq(await(&first).verdict, STORE_APPLIED);
		ck_assert_int_eq(persist(&c, has_token), STORE_ALREADY);
		ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token"), 0);
	}
	ck_assert_int_eq(number("SELECT token_version FROM refreshd.credential"), 2);
}
END_TEST

START_TEST(a_release_is_told_when_the_claim_is_still_committing)
{
	char text[300];
	int64_t attempt = store_next_attempt(store);
	snprintf(text, sizeof text,
		"BEGIN; UPDATE refreshd.schedule SET attempt_id = %lld, lease_owner = 7, lease_until = now() + interval '1 h'",
		(long long)attempt);
	sql(text);
	ck_assert_int_eq(release(attempt, 0), STORE_AGAIN);
	sql("COMMIT");
	ck_assert_int_eq(release(attempt + 1, 0), STORE_APPLIED); /* somebody else's: looked at, and left alone */
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner = 7"), 1);
	ck_assert_int_eq(release(attempt, 0), STORE_APPLIED);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL"), 1);
}
END_TEST

START_TEST(a_claim_that_comes_after_its_release_takes_nothing)
{
	int64_t attempt = store_next_attempt(store);
	ck_assert_int_eq(release(attempt, 0), STORE_APPLIED);
	ck_assert_uint_eq(claim_as(attempt).n, 0);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL"), 1);
	ck_assert_uint_eq(claim().n, 1);
}
END_TEST

START_TEST(an_import_that_commits_while_a_result_waits_gets_its_lease_back)
{
	struct told c = claim();
	sql("BEGIN");
	import();
	ck_assert_int_eq(persist(&c, true), STORE_AGAIN);
	sql("COMMIT");
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token"), 0);
	ck_assert_int_eq(persist(&c, true), STORE_LOST);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL AND lease_until IS NULL AND attempt_id = 0"), 1);
	ck_assert_int_eq(persist(&c, true), STORE_LOST);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token"), 1);
}
END_TEST

/* Its lease runs for another daemon: its answer came late, and is in the orphans. */
static struct told taken_over(void)
{
	struct told c = claim();
	sql("UPDATE refreshd.schedule SET attempt_id = 5, lease_owner = -1, doubts = 1");
	ck_assert_int_eq(persist(&c, true), STORE_LOST);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token WHERE resolved_at IS NULL AND kind = 'token'"), 1);
	return c;
}

START_TEST(a_merge_writes_the_token_voids_the_other_attempt_and_resolves_the_orphan)
{
	struct told c = taken_over(), row = load();
	ck_assert_int_eq(row.attempt_id, 5);
	ck_assert_int_eq(merge(&row, c.attempt_id, "M"), STORE_APPLIED);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.credential WHERE token_version = 2 AND refresh_token = 'M' AND refreshes = 1"
				" AND expires_at > now()"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE token_version = 2 AND attempt_id = 0 AND doubts = 0"
				" AND lease_owner = -1 AND lease_until > now() AND due_at > now()"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token WHERE resolution = 'merged' AND resolved_at IS NOT NULL"
				" AND refresh_token IS NOT NULL"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event WHERE event_type LIKE '%recovered'"), 1);
	/* Sent once more after its answer was lost. */
	ck_assert_int_eq(merge(&row, c.attempt_id, "M"), STORE_ALREADY);
	ck_assert_int_eq(number("SELECT token_version FROM refreshd.credential"), 2);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event"), 1);
}
END_TEST

START_TEST(a_merge_over_a_row_that_changed_since_it_was_read_does_nothing)
{
	struct told c = taken_over(), row = load();
	import();
	ck_assert_int_eq(merge(&row, c.attempt_id, "M"), STORE_LOST);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.credential WHERE refresh_token = 'i' AND token_version = 100"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token WHERE resolved_at IS NULL"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event"), 0);
	sql("BEGIN; SELECT 1 FROM refreshd.schedule FOR UPDATE");
	row = load();
	ck_assert_int_eq(merge(&row, c.attempt_id, "M"), STORE_AGAIN);
	sql("COMMIT");
}
END_TEST

START_TEST(a_lease_that_is_over_does_not_outlive_a_merge)
{
	struct told c = taken_over(), row;
	sql("UPDATE refreshd.schedule SET lease_until = now() - interval '1 s'");
	row = load();
	ck_assert_int_eq(merge(&row, c.attempt_id, "M"), STORE_APPLIED);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL AND lease_until IS NULL"), 1);
}
END_TEST

START_TEST(a_merge_behind_a_change_of_settings_leaves_the_state)
{
	struct told c = taken_over(), row = load();
	sql("UPDATE refreshd.connection SET health = 'pending_refresh', updated_at = updated_at + interval '1 s'");
	ck_assert_int_eq(merge(&row, c.attempt_id, "M"), STORE_STALE);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.credential WHERE refresh_token = 'M' AND token_version = 2"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE due_at <= now()"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.connection WHERE health = 'pending_refresh'"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event"), 0);
}
END_TEST

START_TEST(an_orphan_that_is_laid_aside_is_kept)
{
	struct told c = taken_over();
	ck_ok(store_close_orphan(store, id, c.attempt_id, "superseded", on_verdict, &first));
	(void)await(&first);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token WHERE resolution = 'superseded' AND refresh_token IS NOT NULL"), 1);
}
END_TEST

START_TEST(a_refusal_behind_a_merge_gives_its_lease_back_and_the_new_token_is_tried)
{
	struct told c = claim(), row = load();
	row.attempt_id = c.attempt_id;
	ck_assert_int_eq(merge(&row, 1234, "M"), STORE_APPLIED); /* what another daemon had got before */
	sql("DELETE FROM refreshd.event");
	ck_assert_int_eq(refuse(&c), STORE_LOST);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.connection WHERE state = 'callable' AND health = 'ok'"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL AND due_at <= now()"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event"), 0);
	/* An import brings a token of its own, which a refusal of the old one says nothing about. */
	c = claim();
	import();
	ck_assert_int_eq(refuse(&c), STORE_LOST);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL AND due_at = '2030-01-01'"), 1);
}
END_TEST

START_TEST(a_result_of_older_settings_leaves_state_and_event_and_is_due_now)
{
	for (int has_token = 0; has_token < 2; has_token++) {
		sql("UPDATE refreshd.schedule SET due_at = now() - interval '1 s'");
		struct told c = claim();
		sql("UPDATE refreshd.connection SET health = 'pending_refresh', updated_at = updated_at + interval '1 s'");
		ck_assert_int_eq(has_token ? persist(&c, true) : refuse(&c), STORE_STALE);
		ck_assert_int_eq(number("SELECT count(*) FROM refreshd.connection WHERE state = 'callable' AND health = 'pending_refresh'"), 1);
		ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL AND due_at <= now()"), 1);
		ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event"), 0);
		ck_assert_int_eq(number("SELECT token_version FROM refreshd.credential"), 1 + has_token);
	}
	struct told c = claim();
	ck_assert_int_eq(refuse(&c), STORE_APPLIED);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.connection WHERE health = 'needs_auth'"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event"), 1);
}
END_TEST

/* The change commits between the statement's snapshot and its look at the row. */
START_TEST(a_change_of_settings_that_commits_while_a_result_waits_is_seen)
{
	struct told c = claim();
	sql("UPDATE refreshd.schedule SET doubts = 3");
	sql("BEGIN; UPDATE refreshd.connection SET updated_at = updated_at + interval '1 s'");
	struct told *t = &second;
	struct store_result r = {
		.attempt_id = c.attempt_id, .token_version = c.token_version, .due_at = TIME_NEVER, .touch = true, .state = CONN_INVALID,
		.health = HEALTH_NEEDS_AUTH, .updated_at = sys_wall_us(), .seen_at = c.updated_at,
	};
	memcpy(r.id, id, sizeof r.id);
	ck_ok(store_persist(store, &r, 1, on_verdict, t));
	wait_for("the result to wait", is_blocked, NULL);
	sql("COMMIT");
	ck_assert_int_eq(await(t).verdict, STORE_STALE);
	ck_assert_int_eq(number("SELECT doubts FROM refreshd.schedule"), 3); /* what the refusal says of them counts as little */
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.connection WHERE state = 'callable'"), 1);
}
END_TEST

START_TEST(a_connection_that_is_deleted_while_a_result_waits_leaves_nothing)
{
	struct told c = claim();
	sql("BEGIN; DELETE FROM refreshd.schedule");
	ck_assert_int_eq(persist(&c, true), STORE_AGAIN);
	sql("COMMIT");
	ck_assert_int_eq(persist(&c, true), STORE_LOST);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.orphan_token"), 0);
}
END_TEST

START_TEST(a_row_that_another_holds_does_not_keep_the_rest_of_the_batch)
{
	struct told c = claim();
	sql("INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id, attempt_id, lease_owner)"
	    " VALUES (0, '00000000-0000-0000-0000-0000000000a2', 1, now(), 'app', 'sim', 77, 7)");
	sql("BEGIN; SELECT 1 FROM refreshd.schedule WHERE attempt_id = 77 FOR UPDATE");
	struct store_result r[2] = { { .attempt_id = 77 }, { .attempt_id = c.attempt_id } };
	for (int i = 0; i < 2; i++) {
		memcpy(r[i].id, id, sizeof r[i].id);
		r[i].token_version = 1;
		r[i].due_at = sys_wall_us() + 3600 * US_PER_S;
		r[i].updated_at = sys_wall_us();
	}
	r[0].id[15] = 0xa2;
	ck_ok(store_persist(store, r, 2, on_verdict, &first));
	struct told t = await(&first);
	ck_assert_uint_eq(t.n, 2);
	ck_assert_int_eq(t.verdict, STORE_AGAIN);
	ck_assert_int_eq(t.verdict2, STORE_APPLIED);
	sql("COMMIT");
	ck_ok(store_persist(store, r, 2, on_verdict, &first));
	t = await(&first);
	ck_assert_int_eq(t.verdict, STORE_APPLIED);
	ck_assert_int_eq(t.verdict2, STORE_ALREADY);
}
END_TEST

START_TEST(a_lease_behind_an_import_is_released_and_its_due_time_stays)
{
	struct told c = claim();
	import();
	release(c.attempt_id, sys_wall_us());
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NULL AND due_at = '2030-01-01'"), 1);
}
END_TEST

START_TEST(a_lease_of_another_is_not_released)
{
	struct told c = claim();
	sql("UPDATE refreshd.schedule SET attempt_id = 0, lease_owner = lease_owner + 1");
	release(c.attempt_id, 0);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NOT NULL"), 1);
}
END_TEST

START_TEST(a_lease_that_ran_out_is_a_doubt_unless_an_import_came_in_between)
{
	ck_assert_int_eq(claim().doubts, 0);
	sql("UPDATE refreshd.schedule SET lease_until = now() - interval '1 s'");
	ck_assert_int_eq(claim().doubts, 1);
	import();
	sql("UPDATE refreshd.schedule SET lease_until = now() - interval '1 s', due_at = now() - interval '1 s'");
	struct told c = claim();
	ck_assert_uint_eq(c.n, 1);
	ck_assert_int_eq(c.token_version, 100);
	ck_assert_int_eq(c.doubts, 0);
}
END_TEST

START_TEST(a_heartbeat_does_not_make_a_wrong_schema_fit)
{
	sql("INSERT INTO refreshd.schema_version (version) VALUES (999)");
	wait_for("the check", is_wrong_after_a_cut, store);
	long beats = number("SELECT count(*) FROM refreshd.instance WHERE heartbeat_at > now() - interval '1 hour'");
	ck_assert_int_eq(beats, 1);
	sql("UPDATE refreshd.instance SET heartbeat_at = '2000-01-01'");
	int64_t end_us = sys_mono_us() + DEADLINE_US;
	while (number("SELECT count(*) FROM refreshd.instance WHERE heartbeat_at > '2000-01-01'") == 0) {
		ck_assert(sys_mono_us() < end_us);
		store_heartbeat(store);
		loop_once(loop, 20 * US_PER_MS);
	}
	for (int i = 0; i < 20; i++) {
		loop_once(loop, 10 * US_PER_MS);
		ck_assert_int_eq(store_state(store), STORE_WRONG_SCHEMA);
		ck_assert(!store_writable(store));
	}
	sql("DELETE FROM refreshd.schema_version WHERE version = 999");
	wait_for("the schema to fit again", is_ready, store);
	ck_assert(store_writable(store));
}
END_TEST

static void on_count(void *arg, int code, int64_t n)
{
	struct told *t = arg;
	*t = (struct told){ .called = true, .code = code, .n = (size_t)n };
}

static void on_changed(void *arg, int code, const struct store_connection *v, size_t n)
{
	(void)v;
	on_count(arg, code, (int64_t)n);
}

static struct told due_now(int64_t token_version)
{
	struct store_conn_id c = { .application_id = "app" };
	memcpy(c.id, id, sizeof c.id);
	ck_ok(store_due_now(store, &c, token_version, on_count, &first));
	return await(&first);
}

/* Switched off and on again, as the API does it. */
static void enable(const char *seen)
{
	struct store_change x = {
		.application_id = "app",
		.seen_at = number(seen),
		.updated_at = sys_wall_us(),
		.enabled = true,
		.state = CONN_CALLABLE,
		.due_at = sys_wall_us() - US_PER_S,
		.event = EVENT_NONE,
	};
	memcpy(x.id, id, sizeof x.id);
	ck_ok(store_change(store, &x, on_changed, &first));
	ck_assert_uint_eq(await(&first).n, 1);
	ck_assert_int_eq(number(seen), x.updated_at);
}

START_TEST(a_row_that_was_set_aside_is_made_due_by_new_tokens_only)
{
	static const char *const aside = "SELECT count(*) FROM refreshd.schedule WHERE due_at = 'infinity'";
	struct fault f = { 0 };
	struct told c = claim();
	ck_ok(store_quarantine(store, id, c.attempt_id, on_verdict, &first));
	(void)await(&first);
	sql("UPDATE refreshd.schedule SET lease_until = now() - interval '1 s'");
	ck_assert_uint_eq(due_now(1).n, 0);
	ck_assert_int_eq(number(aside), 1);
	enable("SELECT (extract(epoch FROM updated_at) * 1000000)::bigint FROM refreshd.connection");
	ck_assert_int_eq(number(aside), 1);
	ck_assert_int_eq(vault_refresh_now(other, id, &f), ST_DENIED);
	ck_assert_msg(strstr(f.text, "journal") != NULL, "%s", f.text);
	ck_assert_int_eq(number(aside), 1);
	ck_assert_uint_eq(claim().n, 0);
	import();
	ck_assert_uint_eq(due_now(100).n, 1);
	ck_ok(vault_refresh_now(other, id, &f));
	ck_assert_uint_eq(claim().n, 1);
}
END_TEST

START_TEST(a_row_that_was_set_aside_is_due_again_once_its_answer_is_written)
{
	struct told c = claim();
	ck_ok(store_quarantine(store, id, c.attempt_id, on_verdict, &first));
	(void)await(&first);
	ck_assert_int_eq(persist(&c, true), STORE_APPLIED);
	ck_assert_uint_eq(due_now(2).n, 1);
	ck_assert_uint_eq(claim().n, 1);
}
END_TEST

START_TEST(a_row_that_is_held_is_leased_anew_under_its_own_attempt_only)
{
	static const char *const leased = "SELECT count(*) FROM refreshd.schedule WHERE lease_until > now() + interval '50 s'";
	static const char *const run_out = "UPDATE refreshd.schedule SET lease_until = now() - interval '1 s'";
	struct told c = claim();
	sql(run_out);
	ck_ok(store_hold(store, id, c.attempt_id, 60 * US_PER_S, on_verdict, &first));
	(void)await(&first);
	ck_assert_int_eq(number(leased), 1);
	ck_assert_uint_eq(due_now(1).n, 0);
	ck_assert_uint_eq(claim().n, 0);
	import(); /* nobody has presented its tokens */
	sql(run_out);
	ck_ok(store_hold(store, id, c.attempt_id, 60 * US_PER_S, on_verdict, &first));
	(void)await(&first);
	ck_assert_int_eq(number(leased), 0);
	ck_assert_uint_eq(due_now(100).n, 1);
}
END_TEST

/* What a daemon makes of a connection that is switched off; of its words none is to be written. */
static enum store_verdict leave_the_schedule(const struct told *claimed)
{
	struct store_result r = {
		.attempt_id = claimed->attempt_id,
		.token_version = claimed->token_version,
		.due_at = TIME_NEVER,
		.state = CONN_INVALID,
		.health = HEALTH_NEEDS_AUTH,
		.failures = 9,
		.updated_at = sys_wall_us(),
		.seen_at = claimed->updated_at,
	};
	memcpy(r.id, id, sizeof r.id);
	ck_ok(store_persist(store, &r, 1, on_verdict, &first));
	return await(&first).verdict;
}

START_TEST(a_row_leaves_the_schedule_only_as_it_was_read)
{
	static const char *const untouched = "SELECT count(*) FROM refreshd.connection WHERE state = 'callable' AND health = 'ok' AND failures = 0";
	struct told c = claim();
	sql("UPDATE refreshd.schedule SET due_at = '2030-01-01'; UPDATE refreshd.connection SET enabled = true, updated_at = updated_at + interval '1 s'");
	ck_assert_int_eq(leave_the_schedule(&c), STORE_STALE);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE due_at <= now() AND lease_owner IS NULL"), 1);
	ck_assert_int_eq(number(untouched), 1);
	c = claim();
	ck_assert_uint_eq(c.n, 1);
	ck_assert_int_eq(leave_the_schedule(&c), STORE_APPLIED);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule WHERE due_at = 'infinity' AND lease_owner IS NULL"), 1);
	ck_assert_int_eq(number(untouched), 1);
	ck_assert_int_eq(number("SELECT (extract(epoch FROM updated_at) * 1000000)::bigint FROM refreshd.connection"), c.updated_at);
}
END_TEST

/* The commit of the first may wait long, as for a standby that is away; meanwhile the store looks again every two seconds. */
/* 100 is the collation of the database. */
START_TEST(keys_do_not_depend_on_the_collation_of_the_database)
{
	ck_assert_int_eq(number("SELECT count(*) FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid, unnest(i.indcollation) c"
				" WHERE t.relnamespace = 'refreshd'::regnamespace AND c = 100"), 0);
	ck_assert_int_gt(number("SELECT count(*) FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid, unnest(i.indcollation) c"
				" WHERE t.relnamespace = 'refreshd'::regnamespace AND c = 950"), 5);
}
END_TEST

START_TEST(an_enrolment_that_takes_long_is_not_sent_twice)
{
	static const char *const waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
					   " AND query LIKE 'INSERT INTO refreshd.instance%'";
	store_free(store);
	sql("BEGIN; SELECT 1 FROM refreshd.instance FOR UPDATE");
	start_store();
	int64_t end_us = sys_mono_us() + 5 * US_PER_S;
	long most = 0;
	while (sys_mono_us() < end_us && most < 2) {
		loop_once(loop, 50 * US_PER_MS);
		long n = number(waiting);
		most = n > most ? n : most;
	}
	sql("COMMIT");
	wait_for("the store", is_ready, store);
	ck_assert_int_eq(most, 1);
	ck_assert_int_eq(number("SELECT epoch FROM refreshd.instance"), store_epoch(store));
	ck_assert_int_eq(number("SELECT cardinality(former_epochs) FROM refreshd.instance"), 1);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("store_refresh");
	TCase *c = tcase_create("store_refresh");
	tcase_add_checked_fixture(c, setup, teardown);
	tcase_set_timeout(c, 60);
	unit_add(c, a_result_that_is_sent_again_while_the_first_still_commits_is_no_orphan);
	unit_add(c, a_release_is_told_when_the_claim_is_still_committing);
	unit_add(c, a_claim_that_comes_after_its_release_takes_nothing);
	unit_add(c, a_merge_writes_the_token_voids_the_other_attempt_and_resolves_the_orphan);
	unit_add(c, a_merge_over_a_row_that_changed_since_it_was_read_does_nothing);
	unit_add(c, a_lease_that_is_over_does_not_outlive_a_merge);
	unit_add(c, a_merge_behind_a_change_of_settings_leaves_the_state);
	unit_add(c, an_orphan_that_is_laid_aside_is_kept);
	unit_add(c, a_refusal_behind_a_merge_gives_its_lease_back_and_the_new_token_is_tried);
	unit_add(c, a_result_of_older_settings_leaves_state_and_event_and_is_due_now);
	unit_add(c, a_change_of_settings_that_commits_while_a_result_waits_is_seen);
	unit_add(c, an_import_that_commits_while_a_result_waits_gets_its_lease_back);
	unit_add(c, a_connection_that_is_deleted_while_a_result_waits_leaves_nothing);
	unit_add(c, a_row_that_another_holds_does_not_keep_the_rest_of_the_batch);
	unit_add(c, a_lease_behind_an_import_is_released_and_its_due_time_stays);
	unit_add(c, a_lease_of_another_is_not_released);
	unit_add(c, a_lease_that_ran_out_is_a_doubt_unless_an_import_came_in_between);
	unit_add(c, a_heartbeat_does_not_make_a_wrong_schema_fit);
	unit_add(c, a_row_leaves_the_schedule_only_as_it_was_read);
	unit_add(c, a_row_that_was_set_aside_is_made_due_by_new_tokens_only);
	unit_add(c, a_row_that_is_held_is_leased_anew_under_its_own_attempt_only);
	unit_add(c, a_row_that_was_set_aside_is_due_again_once_its_answer_is_written);
	unit_add(c, keys_do_not_depend_on_the_collation_of_the_database);
	unit_add(c, an_enrolment_that_takes_long_is_not_sent_twice);
	suite_add_tcase(s, c);
	return s;
}
