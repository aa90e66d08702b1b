/*
 * test_store_webhook - the SQL of the outbox against a real Postgres with the real schema: who gets what,
 * leases, fences, endpoints that are switched off, two daemons at once, purging.
 */
#include "service/store_webhook.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "integration/pgworld.h"
#include "io/pgsync.h"
#include "service/migrations.h"
#include "unit/unit.h"

#define TIME_NEVER INT64_MAX /* as in store_refresh.h, whose names are not those of pgworld.h */
#define LEASE_US (60 * US_PER_S)
#define FIVE_DAYS_US (5 * INT64_C(86400) * US_PER_S)

/* ---------------------------------------------------------------- world */

static struct store *one, *two; /* two daemons */
static struct pgsync *sync_conn;
static bool migrated;

static struct {
	bool called;
	int code;
	size_t n;
	int64_t next_due_at;
	struct store_delivery v[64];
	char endpoints[64][64];
	char ids[8][64];
} told;

static bool is_ready(void *arg)
{
	return store_state(arg) == STORE_READY;
}

static struct store *open_store(const char *instance, uint8_t home)
{
	struct fault f = {0};
	struct store *s = NULL;
	char name[32], url[500];
	uint8_t id[16] = {home};
	snprintf(name, sizeof name, "%s", instance);
	snprintf(url, sizeof url, "%s", pgcluster_url(world.cluster, ""));
	const struct conf c = {
		.instance = name,
		.database = {.url = url, .pool_size = 2, .statement_timeout_us = 10 * US_PER_S},
		.refresh = {.poll_interval_us = 5 * US_PER_S},
	};
	ck_assert_msg(store_new(world.loop, world.resolver, &c, id, &s, &f) == 0, "%s", f.text);
	world_wait("the store", is_ready, s);
	return s;
}

static void sql(const char *text)
{
	struct fault f = {0};
	ck_assert_msg(pgsync_exec(sync_conn, text, &f) == 0, "%s: %s", f.text, text);
}

/* The first value of a query, as a number. */
static long number(const char *query)
{
	return strtol(pgcluster_sql(world.cluster, query), NULL, 10);
}

static void setup(void)
{
	struct fault f = {0};
	struct migrations_state from;
	world_open();
	ck_assert_msg(
		pgsync_connect(pgcluster_url(world.cluster, ""), "test", &sync_conn, &f) == 0, "%s", f.text);
	if (!migrated)
		ck_assert_msg(migrations_apply(sync_conn, &from, &f) == 0, "%s", f.text);
	migrated = true;
	sql("TRUNCATE refreshd.event, refreshd.delivery, refreshd.webhook_endpoint, refreshd.instance");
	one = open_store("one", 1);
	two = open_store("two", 2);
}

static void teardown(void)
{
	store_free(one);
	store_free(two);
	pgsync_free(sync_conn);
	world_close();
}

/* ---------------------------------------------------------------- calls, awaited */

static bool is_told(void *arg)
{
	(void)arg;
	return told.called;
}

static void on_number(void *arg, int code, size_t n)
{
	(void)arg;
	ck_assert(!told.called);
	told.called = true;
	told.code = code;
	told.n = n;
}

static void on_deliveries(void *arg, int code, const struct store_delivery *v, size_t n, int64_t next_due_at)
{
	on_number(arg, code, n);
	told.next_due_at = next_due_at;
	for (size_t i = 0; i < n && i < 64; i++) {
		told.v[i] = v[i];
		snprintf(told.endpoints[i], sizeof told.endpoints[i], "%s", v[i].endpoint_id);
		told.v[i].endpoint_id = told.endpoints[i];
	}
}

static void on_ids(void *arg, int code, const char *const *ids, size_t n)
{
	on_number(arg, code, n);
	for (size_t i = 0; i < n && i < 8; i++)
		snprintf(told.ids[i], sizeof told.ids[i], "%s", ids[i]);
}

static size_t await(int started)
{
	ck_ok(started);
	world_wait("the answer", is_told, NULL);
	ck_assert_int_eq(told.code, 0);
	told.called = false;
	return told.n;
}

static const char *const failed_and_created[] = {
	"vault.connection.token_refresh.failed", "vault.connection.created"};
static const char *const created[] = {"vault.connection.created"};
static const struct store_endpoint endpoints[] = {
	{"config:all", "*", failed_and_created, 2},
	{"config:app1", "app1", failed_and_created, 2},
	{"config:created", "*", created, 1},
	{"config:none", "*", NULL, 0},
};

static size_t fan_out(struct store *s, unsigned limit)
{
	return await(store_fanout(s, endpoints, 4, limit, on_number, NULL));
}

static size_t claim(struct store *s, unsigned limit)
{
	const struct store_room rooms[] = {{"config:all", 4, false}, {"config:app1", 4, false},
		{"config:created", 4, false}, {"config:none", 4, false}};
	return await(store_claim_deliveries(s, rooms, 4, limit, 0, LEASE_US, on_deliveries, NULL));
}

static size_t claim_of(struct store *s, const char *endpoint, unsigned room)
{
	const struct store_room rooms[] = {{endpoint, room, false}};
	return await(store_claim_deliveries(s, rooms, 1, 64, 0, LEASE_US, on_deliveries, NULL));
}

static void event(const char *type, const char *application, const char *entity_type, const char *entity_id)
{
	char *text = mem_printf(
		"INSERT INTO refreshd.event (event_id, application_id, event_type, entity_id, entity_type, entity,"
		" reason, failures, occurred_at) VALUES (gen_random_uuid(), '%s', '%s', '%s', '%s', '{\"id\":\"x\"}',"
		" 'invalid_grant', 3, clock_timestamp())",
		application, type, entity_id, entity_type);
	sql(text);
	mem_free(text);
}

#define FAILED "vault.connection.token_refresh.failed"
#define CREATED "vault.connection.created"

static struct store_attempt attempt_of(size_t i)
{
	struct store_attempt a = {
		.endpoint_id = told.endpoints[i],
		.attempt = told.v[i].attempt,
		.status = 200,
		.delivered = true,
		.next_due_at = TIME_NEVER,
		.duration_us = 12345,
	};
	memcpy(a.event_id, told.v[i].event_id, 16);
	return a;
}

static struct store_attempt failure_of(size_t i)
{
	struct store_attempt a = attempt_of(i);
	a.status = 500;
	a.error = "http_status";
	a.delivered = false;
	a.next_due_at = sys_wall_us() + 3600 * US_PER_S;
	return a;
}

static size_t record(struct store *s, const struct store_attempt *v, size_t n)
{
	return await(store_record_attempts(s, v, n, FIVE_DAYS_US, on_number, NULL));
}

/* ---------------------------------------------------------------- fan-out */

START_TEST(events_go_to_the_endpoints_that_want_them)
{
	event(FAILED, "app1", "Connection", "app1+c");
	event(CREATED, "app2", "Connection", "app2+c");
	event(FAILED, "*", "Provider", "xero");
	event("vault.connection.deleted", "app1", "Connection", "app1+c");
	event("refreshd.webhook.test", "*", "Endpoint", "config:none");
	ck_assert_uint_eq(fan_out(one, 100), 5);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE endpoint_id = 'config:all'"), 3);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE endpoint_id = 'config:app1'"), 1);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE endpoint_id = 'config:created'"), 1);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE endpoint_id = 'config:none'"), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event WHERE fanned_out_at IS NULL"), 0);
	ck_assert_uint_eq(fan_out(two, 100), 0);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.delivery"), 6);
}
END_TEST

START_TEST(unknown_types_are_left_and_the_rest_goes_in_batches)
{
	event("vault.connection.of_the_future", "app1", "Connection", "app1+c");
	for (int i = 0; i < 5; i++)
		event(FAILED, "app1", "Connection", "app1+c");
	ck_assert_uint_eq(fan_out(one, 3), 3);
	ck_assert_uint_eq(fan_out(two, 3), 2);
	ck_assert_uint_eq(fan_out(one, 3), 0);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event WHERE fanned_out_at IS NULL"), 1);
	/* a newer daemon fanned it out: not for us to send */
	sql("INSERT INTO refreshd.delivery (event_id, endpoint_id, due_at) SELECT event_id, 'config:created', now()"
	    " FROM refreshd.event WHERE event_type = 'vault.connection.of_the_future'");
	ck_assert_uint_eq(claim_of(one, "config:created", 4), 0);
	ck_assert_int_eq(told.next_due_at, TIME_NEVER);
}
END_TEST

START_TEST(without_endpoints_events_are_done)
{
	event(FAILED, "app1", "Connection", "app1+c");
	ck_assert_uint_eq(await(store_fanout(one, NULL, 0, 10, on_number, NULL)), 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event WHERE fanned_out_at IS NULL"), 0);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.delivery"), 0);
}
END_TEST

START_TEST(an_event_in_an_open_transaction_of_another_is_not_waited_for)
{
	event(FAILED, "app1", "Connection", "app1+c");
	event(FAILED, "app1", "Connection", "app1+c");
	sql("BEGIN; SELECT 1 FROM refreshd.event ORDER BY occurred_at LIMIT 1 FOR UPDATE");
	ck_assert_uint_eq(fan_out(one, 10), 1);
	sql("COMMIT");
	ck_assert_uint_eq(fan_out(one, 10), 1);
}
END_TEST

/* ---------------------------------------------------------------- claim */

START_TEST(a_claim_leases_and_counts_the_attempt)
{
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	ck_assert_uint_eq(claim_of(one, "config:app1", 4), 1);
	const struct store_delivery *d = &told.v[0];
	ck_assert_str_eq(told.endpoints[0], "config:app1");
	ck_assert(d->attempt == 1 && d->type == EVENT_REFRESH_FAILED && d->failures == 3);
	ck_assert_int_eq(told.next_due_at, TIME_NEVER);
	ck_assert_int_eq(
		number("SELECT lease_owner FROM refreshd.delivery WHERE endpoint_id = 'config:app1'"),
		store_epoch(one));
	ck_assert_int_eq(number("SELECT round(extract(epoch FROM lease_until - now())) FROM refreshd.delivery"
				" WHERE endpoint_id = 'config:app1'"),
		60);
	ck_assert_uint_eq(claim_of(two, "config:app1", 4), 0); /* leased */
	sql("UPDATE refreshd.delivery SET lease_until = now() WHERE endpoint_id = 'config:app1'");
	ck_assert_uint_eq(claim_of(two, "config:app1", 4), 1); /* its owner died */
	ck_assert_int_eq(told.v[0].attempt, 2);
}
END_TEST

START_TEST(no_endpoint_takes_all)
{
	for (int i = 0; i < 10; i++)
		event(FAILED, "app1", "Connection", "app1+c");
	event(CREATED, "app2", "Connection", "app2+c");
	fan_out(one, 100);
	ck_assert_uint_eq(claim(one, 5), 5);
	unsigned all = 0, app1 = 0, made = 0;
	for (unsigned i = 0; i < 5; i++) {
		all += strcmp(told.endpoints[i], "config:all") == 0;
		app1 += strcmp(told.endpoints[i], "config:app1") == 0;
		made += strcmp(told.endpoints[i], "config:created") == 0;
	}
	ck_assert(all == 2 && app1 == 2 && made == 1);
	ck_assert_int_le(told.next_due_at, sys_wall_us());
	ck_assert_uint_eq(claim(two, 64), 8); /* four of each */
	ck_assert_uint_eq(number("SELECT count(*) FROM refreshd.delivery WHERE lease_owner IS NOT NULL"), 13);
}
END_TEST

START_TEST(ailing_endpoints_come_last_and_few)
{
	for (int i = 0; i < 3; i++)
		event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 100);
	const struct store_room rooms[] = {{"config:all", 4, true}, {"config:app1", 2, false}};
	ck_assert_uint_eq(
		await(store_claim_deliveries(one, rooms, 2, 3, 1, LEASE_US, on_deliveries, NULL)), 3);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE lease_owner IS NOT NULL AND endpoint_id = 'config:all'"),
		1);
	ck_assert_uint_eq(
		await(store_claim_deliveries(two, rooms, 2, 3, 0, LEASE_US, on_deliveries, NULL)), 1);
	ck_assert_str_eq(told.endpoints[0], "config:app1");
}
END_TEST

START_TEST(the_next_due_time_is_told)
{
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	ck_assert_uint_eq(claim_of(one, "config:app1", 4), 1);
	struct store_attempt a = failure_of(0);
	record(one, &a, 1);
	ck_assert_uint_eq(claim_of(one, "config:app1", 4), 0);
	ck_assert_int_eq(told.next_due_at, a.next_due_at);
	ck_assert_int_eq(
		number("SELECT attempt FROM refreshd.delivery WHERE endpoint_id = 'config:app1'"), 1);
	ck_assert_int_eq(
		number("SELECT last_status FROM refreshd.delivery WHERE endpoint_id = 'config:app1'"), 500);
	ck_assert_int_eq(
		number("SELECT last_duration_ms FROM refreshd.delivery WHERE endpoint_id = 'config:app1'"),
		12);
}
END_TEST

/* ---------------------------------------------------------------- record */

START_TEST(a_delivery_is_done_once)
{
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	ck_assert_uint_eq(claim(one, 64), 2);
	struct store_attempt v[] = {attempt_of(0), attempt_of(1)};
	ck_assert_uint_eq(record(one, v, 2), 0);
	ck_assert_uint_eq(record(one, v, 2), 0); /* the answer was lost */
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE delivered AND done_at IS NOT NULL AND lease_owner IS NULL"
		       " AND last_error IS NULL"),
		2);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.webhook_endpoint WHERE last_success_at IS NOT NULL"
		       " AND failing_since IS NULL"),
		2);
	ck_assert_uint_eq(claim(one, 64), 0);
}
END_TEST

START_TEST(a_lost_lease_changes_nothing_unless_it_delivered)
{
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	ck_assert_uint_eq(claim_of(one, "config:app1", 4), 1);
	struct store_attempt late_failure = failure_of(0), late_success = attempt_of(0);
	late_failure.endpoint_id = late_success.endpoint_id = "config:app1";
	sql("UPDATE refreshd.delivery SET lease_until = now()");
	ck_assert_uint_eq(claim_of(two, "config:app1", 4), 1);
	struct store_attempt theirs = failure_of(0);
	record(one, &late_failure, 1);
	ck_assert_int_eq(
		number("SELECT lease_owner FROM refreshd.delivery WHERE endpoint_id = 'config:app1'"),
		store_epoch(two));
	record(one, &late_success, 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.delivery WHERE delivered"), 1);
	record(two, &theirs, 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.delivery WHERE delivered"), 1);
}
END_TEST

START_TEST(the_last_try_is_done_and_failed)
{
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	claim_of(one, "config:app1", 4);
	struct store_attempt a = failure_of(0);
	a.next_due_at = TIME_NEVER;
	a.status = 0;
	a.error = "timeout";
	record(one, &a, 1);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE NOT delivered AND done_at IS NOT NULL"
		       " AND last_status IS NULL AND last_error = 'timeout'"),
		1);
}
END_TEST

START_TEST(gone_switches_off_and_nothing_more_comes)
{
	event(FAILED, "app1", "Connection", "app1+c");
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	ck_assert_uint_eq(claim_of(one, "config:app1", 1), 1);
	struct store_attempt a = failure_of(0);
	a.status = 410;
	a.gone = true;
	ck_assert_uint_eq(record(one, &a, 1), 1);
	ck_assert_uint_eq(record(one, &a, 1), 0); /* told once */
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.webhook_endpoint WHERE disabled_reason = 'gone'"), 1);
	ck_assert_uint_eq(await(store_disabled_endpoints(two, on_ids, NULL)), 1);
	ck_assert_str_eq(told.ids[0], "config:app1");
	ck_assert_uint_eq(claim_of(two, "config:app1", 4), 0);
	ck_assert_int_eq(told.next_due_at, TIME_NEVER);
	event(FAILED, "app1", "Connection", "app1+c");
	ck_assert_uint_eq(fan_out(one, 10), 1);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.delivery WHERE endpoint_id = 'config:app1'"), 2);
	const char *const ids[] = {"config:app1", "config:all"};
	ck_assert_uint_eq(await(store_webhook_backlog(one, ids, 2, on_number, NULL)), 3);
}
END_TEST

START_TEST(five_days_of_only_failures_switch_off)
{
	for (int i = 0; i < 3; i++)
		event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	ck_assert_uint_eq(claim_of(one, "config:app1", 3), 3);
	struct store_attempt v[] = {failure_of(0), failure_of(1), attempt_of(2)};
	ck_assert_uint_eq(record(one, v, 1), 0);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.webhook_endpoint WHERE failing_since IS NOT NULL"), 1);
	sql("UPDATE refreshd.webhook_endpoint SET failing_since = now() - interval '119 hours'");
	ck_assert_uint_eq(record(one, v + 1, 1), 0);
	sql("UPDATE refreshd.webhook_endpoint SET failing_since = now() - interval '120 hours'");
	ck_assert_uint_eq(record(one, v + 2, 1), 0); /* a success begins anew */
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.webhook_endpoint WHERE failing_since IS NULL"), 1);
	sql("UPDATE refreshd.webhook_endpoint SET failing_since = now() - interval '120 hours'");
	ck_assert_uint_eq(record(one, v, 1), 1);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.webhook_endpoint WHERE disabled_reason = 'failing'"),
		1);
}
END_TEST

START_TEST(a_release_takes_the_attempt_back)
{
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	claim_of(one, "config:app1", 4);
	struct store_attempt a = attempt_of(0);
	ck_assert_uint_eq(await(store_release_deliveries(two, &a, 1, on_number, NULL)), 0); /* not theirs */
	ck_assert_uint_eq(await(store_release_deliveries(one, &a, 1, on_number, NULL)), 1);
	ck_assert_uint_eq(await(store_release_deliveries(one, &a, 1, on_number, NULL)), 0);
	ck_assert_uint_eq(claim_of(two, "config:app1", 4), 1);
	ck_assert_int_eq(told.v[0].attempt, 1);
}
END_TEST

/* ---------------------------------------------------------------- upkeep */

START_TEST(old_events_go_with_their_deliveries)
{
	for (int i = 0; i < 4; i++)
		event(FAILED, "app1", "Connection", "app1+c");
	sql("UPDATE refreshd.event SET event_id = overlay(event_id::text placing '00000000' from 1)::uuid"); /* begin with the time */
	fan_out(one, 10);
	event(FAILED, "app1", "Connection", "app1+c"); /* not fanned out: stays however old */
	sql("UPDATE refreshd.event SET occurred_at = now() - interval '31 days',"
	    " fanned_out_at = fanned_out_at - interval '31 days'");
	ck_assert_uint_eq(claim_of(one, "config:app1", 1), 1); /* under way: its event stays */
	int64_t month_ago = sys_wall_us() - 30 * INT64_C(86400) * US_PER_S;
	ck_assert_uint_eq(await(store_purge_events(one, month_ago, 2, on_number, NULL)), 2);
	ck_assert_uint_eq(await(store_purge_events(two, month_ago, 2, on_number, NULL)), 1);
	ck_assert_uint_eq(await(store_purge_events(one, month_ago, 2, on_number, NULL)), 0);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.event"), 2);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.delivery"), 2);
}
END_TEST

START_TEST(the_backlog_is_what_is_due_and_free)
{
	for (int i = 0; i < 5; i++)
		event(FAILED, "app1", "Connection", "app1+c");
	fan_out(one, 10);
	const char *const ids[] = {"config:app1"};
	ck_assert_uint_eq(await(store_webhook_backlog(one, ids, 1, on_number, NULL)), 5);
	ck_assert_uint_eq(claim_of(one, "config:app1", 2), 2);
	struct store_attempt a = failure_of(0);
	record(one, &a, 1);
	ck_assert_uint_eq(await(store_webhook_backlog(one, ids, 1, on_number, NULL)), 3);
}
END_TEST

START_TEST(the_database_away_is_told_as_such)
{
	event(FAILED, "app1", "Connection", "app1+c");
	sql("ALTER TABLE refreshd.delivery RENAME TO delivery_x");
	ck_ok(store_fanout(one, endpoints, 4, 10, on_number, NULL));
	world_wait("the answer", is_told, NULL);
	ck_assert_int_eq(told.code, ST_INVALID); /* ours: no such table */
	told.called = false;
	sql("ALTER TABLE refreshd.delivery_x RENAME TO delivery");
	sql("BEGIN; LOCK TABLE refreshd.event IN ACCESS EXCLUSIVE MODE");
	ck_ok(store_fanout(one, endpoints, 4, 10, on_number, NULL));
	world_run_ms(50);
	ck_assert(!told.called);
	sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'refreshd'");
	world_wait("the answer", is_told, NULL);
	ck_assert_int_eq(told.code, ST_UNAVAILABLE);
	told.called = false;
	sql("ROLLBACK");
	world_wait("the store", is_ready, one);
	ck_assert_uint_eq(fan_out(one, 10), 1);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("store_webhook");
	TCase *c = tcase_create("store_webhook");
	tcase_add_checked_fixture(c, setup, teardown);
	tcase_set_timeout(c, 60);
	unit_add(c, events_go_to_the_endpoints_that_want_them);
	unit_add(c, unknown_types_are_left_and_the_rest_goes_in_batches);
	unit_add(c, without_endpoints_events_are_done);
	unit_add(c, an_event_in_an_open_transaction_of_another_is_not_waited_for);
	unit_add(c, a_claim_leases_and_counts_the_attempt);
	unit_add(c, no_endpoint_takes_all);
	unit_add(c, ailing_endpoints_come_last_and_few);
	unit_add(c, the_next_due_time_is_told);
	unit_add(c, a_delivery_is_done_once);
	unit_add(c, a_lost_lease_changes_nothing_unless_it_delivered);
	unit_add(c, the_last_try_is_done_and_failed);
	unit_add(c, gone_switches_off_and_nothing_more_comes);
	unit_add(c, five_days_of_only_failures_switch_off);
	unit_add(c, a_release_takes_the_attempt_back);
	unit_add(c, old_events_go_with_their_deliveries);
	unit_add(c, the_backlog_is_what_is_due_and_free);
	unit_add(c, the_database_away_is_told_as_such);
	suite_add_tcase(s, c);
	return s;
}
