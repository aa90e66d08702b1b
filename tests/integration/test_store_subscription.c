/*
 * test_store_subscription - the SQL of endpoints of the API against a real Postgres: who is fanned out to,
 * changes that are seen, what a late record may not bring back, redelivery, and two applications apart.
 */
#include "service/store_webhook_endpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "integration/pgworld.h"
#include "io/pgsync.h"
#include "service/migrations.h"
#include "service/store_webhook.h"
#include "unit/unit.h"

#define ID1 "11111111-1111-4111-8111-111111111111"
#define ID2 "22222222-2222-4222-8222-222222222222"
#define CREATED "vault.connection.created"
#define FAILED "vault.connection.token_refresh.failed"
#define FIVE_DAYS_US (5 * INT64_C(86400) * US_PER_S)
#define NEVER INT64_MAX

static struct store *store;
static struct pgsync *sync_conn;
static bool migrated;
static struct {
	bool called, changed;
	int code;
	size_t n;
	int64_t mark;
	struct store_hook hook; /* the first; its texts are copies: */
	char url[200], events[200], reason[40], secret[40], previous[40];
	struct store_redelivered redelivered;
	struct store_delivery deliveries[8];
	char types[16][64], endpoints[16][64];
} told;

/* ---------------------------------------------------------------- world */

static bool is_ready(void *arg)
{
	return store_state(arg) == STORE_READY;
}

static void sql(const char *text)
{
	struct fault f = {0};
	ck_assert_msg(pgsync_exec(sync_conn, text, &f) == 0, "%s: %s", f.text, text);
}

static long number(const char *query)
{
	return strtol(pgcluster_sql(world.cluster, query), NULL, 10);
}

static void setup(void)
{
	struct fault f = {0};
	struct migrations_state from;
	char url[500], name[] = "one";
	uint8_t home[16] = {1};
	world_open();
	ck_assert_msg(
		pgsync_connect(pgcluster_url(world.cluster, ""), "test", &sync_conn, &f) == 0, "%s", f.text);
	if (!migrated)
		ck_assert_msg(migrations_apply(sync_conn, &from, &f) == 0, "%s", f.text);
	migrated = true;
	sql("TRUNCATE refreshd.event, refreshd.delivery, refreshd.webhook_endpoint, refreshd.instance");
	snprintf(url, sizeof url, "%s", pgcluster_url(world.cluster, ""));
	const struct conf c = {
		.instance = name,
		.database = {.url = url, .pool_size = 2, .statement_timeout_us = 10 * US_PER_S},
		.refresh = {.poll_interval_us = 5 * US_PER_S},
	};
	ck_assert_msg(store_new(world.loop, world.resolver, &c, home, &store, &f) == 0, "%s", f.text);
	world_wait("the store", is_ready, store);
}

static void teardown(void)
{
	store_free(store);
	pgsync_free(sync_conn);
	world_close();
}

/* ---------------------------------------------------------------- calls, awaited */

static bool is_told(void *arg)
{
	(void)arg;
	return told.called;
}

static void note(int code, size_t n)
{
	ck_assert(!told.called);
	told.called = true;
	told.code = code;
	told.n = n;
}

static void copy_bytes(char to[40], const void *p, size_t n)
{
	snprintf(to, 40, "%.*s", (int)n, p != NULL ? (const char *)p : "");
}

static void on_hooks(void *arg, int code, const struct store_hook *v, size_t n)
{
	(void)arg;
	note(code, n);
	if (n == 0)
		return;
	told.hook = v[0];
	snprintf(told.url, sizeof told.url, "%s", v[0].url);
	snprintf(told.events, sizeof told.events, "%s", v[0].events);
	snprintf(told.reason, sizeof told.reason, "%s",
		v[0].disabled_reason != NULL ? v[0].disabled_reason : "");
	copy_bytes(told.secret, v[0].secret, v[0].secret_len);
	copy_bytes(told.previous, v[0].previous_secret, v[0].previous_secret_len);
}

static void on_loaded(void *arg, int code, bool changed, int64_t mark, const struct store_hook *v, size_t n)
{
	on_hooks(arg, code, v, n);
	told.changed = changed;
	told.mark = mark;
}

static void on_count(void *arg, int code, int64_t n)
{
	(void)arg;
	note(code, (size_t)n);
}

static void on_number(void *arg, int code, size_t n)
{
	(void)arg;
	note(code, n);
}

static void on_redelivered(void *arg, int code, const struct store_redelivered *r)
{
	(void)arg;
	note(code, r->n);
	told.redelivered = *r;
}

static void on_deliveries(void *arg, int code, const struct store_delivery *v, size_t n, int64_t next_due_at)
{
	(void)arg;
	(void)next_due_at;
	note(code, n);
	ck_assert_uint_le(n, 8);
	for (size_t i = 0; i < n; i++) {
		told.deliveries[i] = v[i];
		snprintf(told.endpoints[i], sizeof told.endpoints[i], "%s", v[i].endpoint_id);
	}
}

static void on_log(void *arg, int code, const struct store_delivery_logged *v, size_t n)
{
	(void)arg;
	note(code, n);
	ck_assert_uint_le(n, 16);
	for (size_t i = 0; i < n; i++) {
		snprintf(told.types[i], sizeof told.types[i], "%s", v[i].event_type);
		snprintf(told.endpoints[i], sizeof told.endpoints[i], "%s", v[i].endpoint_id);
	}
}

static size_t await(int started)
{
	ck_ok(started);
	world_wait("the answer", is_told, NULL);
	ck_assert_int_eq(told.code, 0);
	told.called = false;
	return told.n;
}

static size_t insert(const char *id, const char *application, const char *events, unsigned limit)
{
	const struct store_hook h = {.endpoint_id = id,
		.application_id = application,
		.url = "https://a.test/",
		.unified_api = "vault",
		.description = "",
		.events = events,
		.public_key = "whpk_x",
		.secret = "first",
		.secret_len = 5};
	return await(store_hook_insert(store, &h, limit, on_hooks, NULL));
}

static size_t update(const char *application, const char *id, const struct store_hook_change *c)
{
	return await(store_hook_update(store, application, id, c, on_hooks, NULL));
}

static void event(const char *type, const char *application, const char *entity_type, const char *entity_id)
{
	char *text =
		mem_printf("INSERT INTO refreshd.event (event_id, application_id, event_type, entity_id, "
			   "entity_type, entity, occurred_at)"
			   " VALUES (gen_random_uuid(), '%s', '%s', '%s', '%s', '{}', clock_timestamp())",
			application, type, entity_id, entity_type);
	sql(text);
	mem_free(text);
}

static size_t fan_out(void)
{
	return await(store_fanout(store, NULL, 0, 100, on_number, NULL));
}

static long deliveries_of(const char *id)
{
	char *q = mem_printf("SELECT count(*) FROM refreshd.delivery WHERE endpoint_id = '%s'", id);
	long n = number(q);
	mem_free(q);
	return n;
}

static size_t claim(const char *id)
{
	const struct store_room room = {id, 8, false};
	return await(store_claim_deliveries(store, &room, 1, 8, 0, 60 * US_PER_S, on_deliveries, NULL));
}

static size_t record(const char *id, bool delivered, bool gone)
{
	struct store_attempt a = {.endpoint_id = id,
		.attempt = told.deliveries[0].attempt,
		.status = delivered ? 200
			  : gone    ? 410
				    : 500,
		.error = delivered ? NULL : "http_status",
		.delivered = delivered,
		.gone = gone,
		.next_due_at = delivered || gone ? NEVER : sys_wall_us() + 3600 * US_PER_S};
	memcpy(a.event_id, told.deliveries[0].event_id, 16);
	return await(store_record_attempts(store, &a, 1, FIVE_DAYS_US, on_number, NULL));
}

static size_t redeliver(const char *application, bool all, unsigned limit)
{
	const struct store_redeliver q = {.application_id = application,
		.endpoint_id = ID1,
		.to = NEVER,
		.delivered_too = all,
		.limit = limit};
	return await(store_redeliver(store, &q, on_redelivered, NULL));
}

static size_t load(int64_t mark, bool force)
{
	return await(store_hooks_load(store, mark, force, on_loaded, NULL));
}

/* ---------------------------------------------------------------- fan-out */

/* The patterns in SQL and in C say the same of every type. */
START_TEST(patterns_mean_what_they_mean_in_the_configuration)
{
	static const char *const patterns[] = {"*", "vault.*", "vault.connection.*",
		"vault.connection.token_refresh.*", CREATED, "refreshd.*", "vault.conn*", "vault",
		"*.created", ".*", "vault.connection.created.*", "VAULT.*", "vault_connection.*", "%",
		"vault.connection._pdated"};
	for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
		sql("TRUNCATE refreshd.event, refreshd.delivery, refreshd.webhook_endpoint");
		ck_assert_uint_eq(insert(ID1, "app1", patterns[i], 50), 1);
		long want = 0;
		for (int t = EVENT_NONE + 1; t < EVENT_TYPE_COUNT; t++) {
			event(event_type_word((enum event_type)t), "app1", "Connection", "app1+c");
			want += event_type_matches(&patterns[i], 1, (enum event_type)t);
		}
		ck_assert_uint_eq(fan_out(), EVENT_TYPE_COUNT - 1);
		ck_assert_msg(deliveries_of(ID1) == want, "%s: %ld, not %ld", patterns[i], deliveries_of(ID1),
			want);
	}
}
END_TEST

START_TEST(an_endpoint_gets_events_of_its_application_alone)
{
	insert(ID1, "app1", "*", 50);
	insert(ID2, "app2", FAILED " " CREATED, 50);
	event(FAILED, "app1", "Connection", "app1+c");
	event(CREATED, "app2", "Connection", "app2+c");
	event("refreshd.provider.failing", "*", "Provider", "xero");
	event("refreshd.webhook.test", "app1", "Endpoint", ID1);
	event("refreshd.webhook.test", "app2", "Endpoint", ID1); /* not theirs to test */
	ck_assert_uint_eq(fan_out(), 5);
	ck_assert_int_eq(deliveries_of(ID1), 2);
	ck_assert_int_eq(deliveries_of(ID2), 1);
	const struct store_hook_change off = {.status = "disabled"};
	update("app1", ID1, &off);
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out();
	ck_assert_int_eq(deliveries_of(ID1), 2);
	ck_assert_uint_eq(claim(ID1), 0);
}
END_TEST

/* ---------------------------------------------------------------- rows */

START_TEST(every_change_moves_the_mark_and_nothing_else_does)
{
	int64_t seen[8];
	size_t n = 0;
	ck_assert_uint_eq(load(0, false), 0);
	ck_assert(!told.changed && told.mark == 0);
	insert(ID1, "app1", "*", 50);
	ck_assert_uint_eq(load(0, false), 1);
	ck_assert(told.changed);
	seen[n++] = told.mark;
	ck_assert_uint_eq(load(seen[0], false), 0);
	ck_assert(!told.changed && told.mark == seen[0]);
	ck_assert_uint_eq(load(seen[0], true), 1);
	ck_assert(told.changed);
	insert(ID2, "app2", "*", 50);
	ck_assert_uint_eq(load(seen[0], false), 2);
	seen[n++] = told.mark;
	const struct store_hook_change change = {.url = "https://b.test/"};
	update("app1", ID1, &change);
	ck_assert_uint_eq(load(seen[1], false), 2);
	seen[n++] = told.mark;
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out();
	ck_assert_uint_eq(claim(ID1), 1);
	record(ID1, false, false);
	ck_assert_uint_eq(load(seen[2], false), 0);
	ck_assert(!told.changed);
	ck_assert_uint_eq(await(store_hook_delete(store, "app2", ID2, on_count, NULL)), 1);
	ck_assert_uint_eq(load(seen[2], false), 1);
	seen[n++] = told.mark;
	await(store_hook_delete(store, "app1", ID1, on_count, NULL));
	ck_assert_uint_eq(load(seen[3], false), 0);
	ck_assert(told.changed && told.mark == 0);
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < i; k++)
			ck_assert(seen[i] != seen[k]);
}
END_TEST

START_TEST(another_application_changes_nothing)
{
	const struct store_hook_change change = {.url = "https://evil.test/", .status = "disabled"};
	struct buf secret = BUF_INIT(16);
	ck_ok(buf_puts(&secret, "evil"));
	insert(ID1, "app1", "*", 50);
	ck_assert_uint_eq(await(store_hook_get(store, "app2", ID1, on_hooks, NULL)), 0);
	ck_assert_uint_eq(update("app2", ID1, &change), 0);
	ck_assert_uint_eq(await(store_hook_rotate(store, "app2", ID1, &secret, "x", 0, on_hooks, NULL)), 0);
	ck_assert_uint_eq(await(store_hook_delete(store, "app2", ID1, on_count, NULL)), 0);
	ck_assert_uint_eq(await(store_hook_list(store, "app2", 0, "", 10, on_hooks, NULL)), 0);
	redeliver("app2", true, 10);
	ck_assert(!told.redelivered.found);
	ck_assert_uint_eq(await(store_hook_get(store, "app1", ID1, on_hooks, NULL)), 1);
	ck_assert_str_eq(told.url, "https://a.test/");
	ck_assert_str_eq(told.secret, "first");
	ck_assert_int_eq(told.hook.disabled_at, 0);
	buf_fini(&secret);
}
END_TEST

START_TEST(an_application_has_its_limit)
{
	ck_assert_uint_eq(insert(ID1, "app1", "*", 1), 1);
	ck_assert_uint_eq(insert(ID2, "app1", "*", 1), 0);
	ck_assert_uint_eq(insert(ID2, "app2", "*", 1), 1);
}
END_TEST

START_TEST(a_rotation_keeps_the_secret_before_it_for_a_while)
{
	struct buf secret = BUF_INIT(16);
	insert(ID1, "app1", "*", 50);
	ck_ok(buf_puts(&secret, "second"));
	int64_t now = sys_wall_us();
	ck_assert_uint_eq(await(store_hook_rotate(
				  store, "app1", ID1, &secret, "whpk_2", 3600 * US_PER_S, on_hooks, NULL)),
		1);
	ck_assert_str_eq(told.secret, "second");
	ck_assert_str_eq(told.previous, "first");
	ck_assert(told.hook.previous_until > now + 3500 * US_PER_S &&
		  told.hook.previous_until < now + 3700 * US_PER_S);
	await(store_hook_rotate(store, "app1", ID1, &secret, "whpk_3", 0, on_hooks, NULL));
	ck_assert_str_eq(told.previous, "");
	ck_assert_int_eq(told.hook.previous_until, 0);
	buf_fini(&secret);
}
END_TEST

START_TEST(off_says_why_and_on_forgets_it)
{
	const struct store_hook_change on = {.status = "enabled"}, off = {.status = "disabled"},
				       words = {.description = "x", .events = CREATED};
	insert(ID1, "app1", "*", 50);
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out();
	claim(ID1);
	ck_assert_uint_eq(record(ID1, false, true), 1);
	update("app1", ID1, &words);
	ck_assert_str_eq(told.reason, "gone");
	ck_assert_str_eq(told.events, CREATED);
	update("app1", ID1, &off);
	ck_assert_str_eq(told.reason, "gone");
	update("app1", ID1, &on);
	ck_assert(
		told.hook.disabled_at == 0 && told.hook.failing_since == 0 && told.hook.last_failure_at != 0);
	update("app1", ID1, &off);
	ck_assert_str_eq(told.reason, "requested");
}
END_TEST

START_TEST(a_late_record_does_not_bring_a_deleted_endpoint_back)
{
	insert(ID1, "app1", "*", 50);
	event(FAILED, "app1", "Connection", "app1+c");
	event(CREATED, "app1", "Connection", "app1+c");
	fan_out();
	ck_assert_uint_eq(claim(ID1), 2);
	ck_assert_uint_eq(await(store_hook_delete(store, "app1", ID1, on_count, NULL)), 1);
	ck_assert_int_eq(deliveries_of(ID1), 0);
	ck_assert_uint_eq(record(ID1, false, true), 0);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.webhook_endpoint"), 0);
	/* one of the configuration has no row until its first record */
	ck_assert_uint_eq(record("config:ops", false, false), 0);
	ck_assert_int_eq(
		number("SELECT count(*) FROM refreshd.webhook_endpoint WHERE application_id IS NULL"), 1);
}
END_TEST

/* ---------------------------------------------------------------- once more, the log */

START_TEST(what_did_not_arrive_is_due_anew)
{
	insert(ID1, "app1", "vault.*", 50);
	event(FAILED, "app1", "Connection", "app1+c");
	fan_out();
	claim(ID1);
	redeliver("app1", true, 10); /* under way: left alone, though counted */
	ck_assert_int_eq(number("SELECT attempt FROM refreshd.delivery WHERE lease_until > now()"), 1);
	record(ID1, true, false);
	ck_assert_uint_eq(redeliver("app1", false, 10), 0);
	ck_assert_uint_eq(redeliver("app1", true, 10), 1);
	ck_assert_uint_eq(claim(ID1), 1);
	ck_assert_int_eq(told.deliveries[0].attempt, 1);
	record(ID1, true, false);
	const struct store_hook_change off = {.status = "disabled"}, on = {.status = "enabled"};
	update("app1", ID1, &off);
	event(CREATED, "app1", "Connection", "app1+c");
	event(CREATED, "app2", "Connection", "app2+c");
	event("refreshd.webhook.test", "app1", "Connection", "app1+c"); /* no pattern of its */
	fan_out();
	redeliver("app1", false, 10);
	ck_assert(told.redelivered.found && told.redelivered.disabled && told.redelivered.n == 0);
	update("app1", ID1, &on);
	ck_assert_uint_eq(redeliver("app1", false, 10), 1);
	ck_assert_uint_eq(claim(ID1), 1);
	ck_assert_int_eq(told.deliveries[0].type, EVENT_CREATED);
}
END_TEST

START_TEST(a_long_range_goes_in_portions)
{
	insert(ID1, "app1", "*", 50);
	for (int i = 0; i < 5; i++)
		event(CREATED, "app1", "Connection", "app1+c");
	fan_out();
	sql("DELETE FROM refreshd.delivery");
	struct store_redeliver q = {.application_id = "app1", .endpoint_id = ID1, .to = NEVER, .limit = 2};
	size_t sizes[] = {2, 2, 1, 0};
	for (size_t i = 0; i < 4; i++) {
		ck_assert_uint_eq(await(store_redeliver(store, &q, on_redelivered, NULL)), sizes[i]);
		if (told.redelivered.n > 0) {
			q.after = told.redelivered.last;
			memcpy(q.after_id, told.redelivered.last_id, 16);
		}
	}
	ck_assert_int_eq(deliveries_of(ID1), 5);
}
END_TEST

START_TEST(the_log_is_the_application_s_own)
{
	struct store_delivery_log q = {
		.application_id = "app1", .before = NEVER, .before_endpoint = "", .limit = 16};
	static const char *const every[] = {FAILED, CREATED};
	const struct store_endpoint ops = {"config:ops", "*", every, 2};
	insert(ID1, "app1", "*", 50);
	insert(ID2, "app2", "*", 50);
	event(FAILED, "app1", "Connection", "app1+c");
	event(CREATED, "app1", "Connection", "app1+c");
	event(CREATED, "app2", "Connection", "app2+c");
	await(store_fanout(store, &ops, 1, 100, on_number, NULL));
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.delivery"), 6);
	ck_assert_uint_eq(await(store_delivery_log(store, &q, on_log, NULL)), 2);
	ck_assert_str_eq(told.types[0], CREATED); /* newest first */
	ck_assert(strcmp(told.endpoints[0], ID1) == 0 && strcmp(told.endpoints[1], ID1) == 0);
	q.failed_only = true;
	ck_assert_uint_eq(await(store_delivery_log(store, &q, on_log, NULL)), 0);
	claim(ID1);
	record(ID1, false, false);
	ck_assert_uint_eq(await(store_delivery_log(store, &q, on_log, NULL)), 1);
	q.endpoint_id = ID2;
	q.failed_only = false;
	ck_assert_uint_eq(await(store_delivery_log(store, &q, on_log, NULL)), 0);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("store_subscription");
	TCase *c = tcase_create("store_subscription");
	tcase_set_timeout(c, 60);
	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_test(c, patterns_mean_what_they_mean_in_the_configuration);
	tcase_add_test(c, an_endpoint_gets_events_of_its_application_alone);
	tcase_add_test(c, every_change_moves_the_mark_and_nothing_else_does);
	tcase_add_test(c, another_application_changes_nothing);
	tcase_add_test(c, an_application_has_its_limit);
	tcase_add_test(c, a_rotation_keeps_the_secret_before_it_for_a_while);
	tcase_add_test(c, off_says_why_and_on_forgets_it);
	tcase_add_test(c, a_late_record_does_not_bring_a_deleted_endpoint_back);
	tcase_add_test(c, what_did_not_arrive_is_due_anew);
	tcase_add_test(c, a_long_range_goes_in_portions);
	tcase_add_test(c, the_log_is_the_application_s_own);
	suite_add_tcase(s, c);
	return s;
}
