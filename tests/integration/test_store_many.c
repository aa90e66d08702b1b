/*
 * test_store_many - the SQL by which several daemons share a table, against a real Postgres: who is running, whose rows a poll
 * brings, and whose lease may be taken over.
 */
#include "service/store_refresh.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "integration/pgcluster.h"
#include "io/pgsync.h"
#include "io/resolver.h"
#include "service/migrations.h"
#include "service/vault_ops.h"
#include "unit/unit.h"

#define DEADLINE_US (20 * US_PER_S)
#define ROWS 64

static struct pgcluster *cluster; /* one for the program */
static struct loop *loop;
static struct resolver *resolver;
static struct pgsync *other;
static bool migrated;

struct one { /* a daemon's store, and what it told */
	struct store *store;
	unsigned lives;
	size_t n, self;
	char names[200];
};

static struct answer {
	bool called;
	int code;
	size_t n;
	int64_t foreign_until, attempt_id, rows;
	int doubts;
	bool seen[ROWS]; /* by the last byte of the id */
} answer;

/* ---------------------------------------------------------------- world */

static void end_cluster(void)
{
	pgcluster_free(cluster);
}

static void wait_for(const char *what, bool (*cond)(void *arg), void *arg)
{
	int64_t end_us = sys_mono_us() + DEADLINE_US;
	while (!cond(arg)) {
		ck_assert_msg(sys_mono_us() < end_us, "waited too long for %s", what);
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

static void on_live(void *arg, const struct store_live *l)
{
	struct one *o = arg;
	o->lives++;
	o->n = l->n;
	o->self = l->self;
	o->names[0] = '\0';
	for (size_t i = 0; i < l->n; i++) {
		size_t len = strlen(o->names);
		(void)snprintf(o->names + len, sizeof o->names - len, "%s ", l->names[i]);
	}
}

static bool is_ready(void *arg)
{
	struct one *o = arg;
	return store_state(o->store) == STORE_READY;
}

static struct store *opened[4]; /* also when a test ended in its middle */

static void close_store(struct one *o)
{
	for (size_t i = 0; i < sizeof opened / sizeof *opened; i++) {
		if (opened[i] == o->store)
			opened[i] = NULL;
	}
	store_free(o->store);
	o->store = NULL;
}

static void start_store(struct one *o, const char *name, uint8_t home_byte)
{
	struct fault f = { 0 };
	char instance[60], url[500];
	const uint8_t home[16] = { home_byte };
	(void)snprintf(instance, sizeof instance, "%s", name);
	(void)snprintf(url, sizeof url, "%s", pgcluster_url(cluster, ""));
	const struct conf c = {
		.instance = instance,
		.database = { .url = url, .pool_size = 2, .statement_timeout_us = 30 * US_PER_S },
		.refresh = { .poll_interval_us = 300 * US_PER_S },
	};
	*o = (struct one){ 0 };
	ck_assert_msg(store_new(loop, resolver, &c, home, &o->store, &f) == 0, "%s", f.text);
	size_t at = 0;
	while (opened[at] != NULL)
		at++;
	opened[at] = o->store;
	store_on_live(o->store, on_live, o);
}

static void open_store(struct one *o, const char *name, uint8_t home_byte)
{
	start_store(o, name, home_byte);
	wait_for("the store", is_ready, o);
}

static bool is_fenced(void *arg)
{
	struct one *o = arg;
	return store_state(o->store) == STORE_FENCED;
}

static bool others_listen(void *arg)
{
	return number("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'") >= *(const long *)arg;
}

/* Row i lies in slot 16 i, and its id begins with the slot's bits. */
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
	sql("TRUNCATE refreshd.connection, refreshd.credential, refreshd.schedule, refreshd.instance CASCADE;"
	    "CREATE TEMPORARY TABLE IF NOT EXISTS r AS SELECT (16 * i)::smallint AS slot,"
	    " (lpad(to_hex((16 * i) << 6), 4, '0') || repeat('0', 26) || lpad(to_hex(i), 2, '0'))::uuid AS id FROM generate_series(0, 63) i;"
	    "INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type,"
	    " state, health, created_at, updated_at) SELECT slot, id, 'app', id::text, 'crm', 'sim', 'oauth2', 'callable', 'ok', now(), now() FROM r;"
	    "INSERT INTO refreshd.credential (slot, connection_id, token_version, access_token, refresh_token)"
	    " SELECT slot, id, 1, 'a', 'r' FROM r;"
	    "INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)"
	    " SELECT slot, id, 1, now() - interval '1 minute', 'app', 'sim' FROM r");
	answer = (struct answer){ 0 };
}

static void teardown(void)
{
	for (size_t i = 0; i < sizeof opened / sizeof *opened; i++) {
		store_free(opened[i]);
		opened[i] = NULL;
	}
	pgsync_free(other);
	resolver_free(resolver);
	loop_free(loop);
}

/* ---------------------------------------------------------------- calls */

static bool is_answered(void *arg)
{
	(void)arg;
	return answer.called;
}

static struct answer await(void)
{
	wait_for("the answer", is_answered, NULL);
	ck_assert_int_eq(answer.code, 0);
	struct answer a = answer;
	answer = (struct answer){ 0 };
	return a;
}

static void on_poll(void *arg, int code, const struct store_due *v, size_t n)
{
	(void)arg;
	answer.called = true;
	answer.code = code;
	answer.n = n;
	for (size_t i = 0; i < n; i++) {
		answer.seen[v[i].id[15]] = true;
		if (v[i].id[15] == 1)
			answer.foreign_until = v[i].foreign_until;
	}
}

static struct answer poll(struct one *o, const struct slots *only)
{
	const struct store_cursor from = { .due_at = 0 };
	ck_ok(store_poll(o->store, &from, sys_wall_us(), 1000, only, on_poll, NULL));
	return await();
}

static void on_claimed(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n)
{
	(void)arg;
	(void)class;
	answer = (struct answer){ .called = true, .code = code, .n = n, .attempt_id = n == 1 ? v[0].attempt_id : 0, .doubts = n == 1 ? v[0].doubts : -1 };
}

/* Row 1. */
static struct answer claim(struct one *o, int64_t takeover_us)
{
	struct store_want w = { .id = { 0x04 }, .attempt_id = store_next_attempt(o->store), .due_at = sys_wall_us(), .takeover_us = takeover_us };
	w.id[15] = 1;
	ck_ok(store_claim(o->store, &w, 1, 120 * US_PER_S, 60 * US_PER_S, on_claimed, NULL));
	return await();
}

static void on_recovered(void *arg, int code, int64_t rows)
{
	(void)arg;
	answer = (struct answer){ .called = true, .code = code, .rows = rows };
}

static const char *const END_LEASES = "UPDATE refreshd.schedule SET lease_until = now() - interval '1 minute' WHERE lease_until IS NOT NULL";

/* ---------------------------------------------------------------- slots */

START_TEST(poll_brings_the_slots_that_are_asked_for)
{
	struct one o;
	struct slots all, some;
	slots_all(&all);
	slots_none(&some);
	open_store(&o, "one", 1);
	ck_assert_uint_eq(poll(&o, &all).n, ROWS);
	ck_assert_uint_eq(poll(&o, &some).n, 0);
	for (unsigned i = 0; i < ROWS; i += 3)
		slots_add(&some, 16 * i);
	struct answer a = poll(&o, &some);
	for (unsigned i = 0; i < ROWS; i++)
		ck_assert_int_eq(a.seen[i], i % 3 == 0);
	close_store(&o);
}
END_TEST

/* The scheduler asks conn_slot_of(), the table has the column: they must be one. */
START_TEST(slots_of_the_table_are_those_of_the_ids)
{
	struct one o;
	struct slots own;
	slots_none(&own);
	open_store(&o, "one", 1);
	uint8_t id[16] = { 0x04 };
	id[15] = 1;
	slots_add(&own, (unsigned)conn_slot_of(id));
	struct answer a = poll(&o, &own);
	ck_assert_uint_eq(a.n, 1);
	ck_assert(a.seen[1]);
	close_store(&o);
}
END_TEST

/* ---------------------------------------------------------------- leases of others */

START_TEST(foreign_lease_is_told_by_the_poll_and_respected_by_the_claim)
{
	struct one a, b;
	struct slots all;
	slots_all(&all);
	open_store(&a, "a", 1);
	open_store(&b, "b", 2);
	ck_assert_uint_eq(claim(&a, 0).n, 1);
	ck_assert(!poll(&b, &all).seen[1]); /* it runs */
	sql(END_LEASES);
	struct answer p = poll(&b, &all);
	ck_assert(p.seen[1]);
	ck_assert_int_gt(p.foreign_until, sys_wall_us() - 70 * US_PER_S);
	ck_assert_int_lt(p.foreign_until, sys_wall_us() - 50 * US_PER_S);
	ck_assert_int_eq(poll(&a, &all).foreign_until, 0); /* our own */
	ck_assert_uint_eq(claim(&b, 90 * US_PER_S).n, 0);
	ck_assert_uint_eq(claim(&b, 30 * US_PER_S).n, 1);
	ck_assert_int_eq(number("SELECT doubts FROM refreshd.schedule WHERE lease_owner IS NOT NULL"), 1);
	close_store(&a);
	close_store(&b);
}
END_TEST

START_TEST(our_own_lease_and_one_that_was_voided_or_given_up_wait_for_nothing)
{
	struct one a, b;
	struct slots all;
	slots_all(&all);
	open_store(&a, "a", 1);
	open_store(&b, "b", 2);
	ck_assert_uint_eq(claim(&a, 0).n, 1);
	sql(END_LEASES);
	ck_assert_uint_eq(claim(&a, 3600 * US_PER_S).n, 1);
	sql(END_LEASES);
	sql("UPDATE refreshd.schedule SET attempt_id = 0 WHERE lease_owner IS NOT NULL"); /* an import */
	ck_assert_int_eq(poll(&b, &all).foreign_until, 0);
	ck_assert_uint_eq(claim(&b, 3600 * US_PER_S).n, 1);
	sql(END_LEASES);
	sql("UPDATE refreshd.schedule SET lease_owner = 0 WHERE lease_owner IS NOT NULL");
	ck_assert_int_eq(poll(&a, &all).foreign_until, 0);
	struct answer c = claim(&a, 3600 * US_PER_S);
	ck_assert_uint_eq(c.n, 1);
	ck_assert_int_ge(c.doubts, 1);
	close_store(&a);
	close_store(&b);
}
END_TEST

/* Died twice, the second time before it had looked through what the first life left. */
START_TEST(leases_of_all_former_lives_are_freed_and_ours)
{
	struct one o, x;
	open_store(&o, "one", 1);
	ck_assert(!store_has_former(o.store));
	ck_assert_uint_eq(claim(&o, 0).n, 1);
	close_store(&o);
	open_store(&o, "one", 1);
	close_store(&o);
	open_store(&x, "other", 2);
	open_store(&o, "one", 1);
	ck_assert(store_has_former(o.store));
	ck_assert_uint_eq(claim(&o, 0).n, 0);
	ck_ok(store_recover(o.store, on_recovered, NULL));
	ck_assert_int_eq(await().rows, 1);
	ck_assert_int_eq(number("SELECT cardinality(former_epochs) FROM refreshd.instance WHERE name = 'one'"), 2);
	ck_ok(store_recover_early(o.store, 0, on_recovered, NULL));
	ck_assert_int_eq(await().rows, 0);
	ck_assert_int_eq(number("SELECT cardinality(former_epochs) FROM refreshd.instance WHERE name = 'one'"), 0);
	struct answer c = claim(&o, 3600 * US_PER_S);
	ck_assert_uint_eq(c.n, 1);
	ck_assert_int_eq(c.doubts, 1);
	ck_ok(store_recover(x.store, on_recovered, NULL));
	ck_assert_int_eq(await().rows, 0); /* that is none of its business */
	close_store(&o);
	close_store(&x);
}
END_TEST

/* A start must not wait for a scan of the table; what was started before its time comes right after. */
START_TEST(a_lease_that_was_taken_early_is_freed_by_the_second_part)
{
	struct one o;
	open_store(&o, "one", 1);
	ck_assert_uint_eq(claim(&o, 0).n, 1);
	sql("UPDATE refreshd.schedule SET due_at = now() + interval '20 min' WHERE lease_owner IS NOT NULL");
	close_store(&o);
	open_store(&o, "one", 1);
	ck_ok(store_recover(o.store, on_recovered, NULL));
	ck_assert_int_eq(await().rows, 0);
	close_store(&o); /* died again, in between */
	open_store(&o, "one", 1);
	ck_ok(store_recover_early(o.store, 3600 * US_PER_S, on_recovered, NULL));
	ck_assert_int_eq(await().rows, 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.schedule s JOIN refreshd.instance i ON i.epoch = s.lease_owner"
				" WHERE s.lease_until <= now()"), 1);
	close_store(&o);
}
END_TEST

static bool nobody_is_connected(void *arg)
{
	(void)arg;
	return number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refreshd'") == 0;
}

START_TEST(another_home_under_the_same_name_inherits_nothing)
{
	struct one o;
	open_store(&o, "one", 1);
	ck_assert_uint_eq(claim(&o, 0).n, 1);
	close_store(&o);
	wait_for("its last heartbeat", nobody_is_connected, NULL);
	sql("UPDATE refreshd.instance SET heartbeat_at = now() - interval '1 hour'");
	open_store(&o, "one", 2);
	ck_assert(!store_has_former(o.store));
	sql(END_LEASES);
	ck_assert_uint_eq(claim(&o, 3600 * US_PER_S).n, 0);
	close_store(&o);
}
END_TEST

START_TEST(one_that_is_refused_uses_up_no_epoch)
{
	struct one a, b;
	open_store(&a, "one", 1);
	start_store(&b, "one", 2);
	wait_for("the other to be refused", is_fenced, &b);
	ck_assert_int_eq(number("SELECT last_value FROM refreshd.epoch"), store_epoch(a.store));
	ck_assert_int_eq(store_epoch(b.store), 0);
	close_store(&a);
	sql("UPDATE refreshd.instance SET heartbeat_at = now() - interval '1 hour'");
	wait_for("the name to be free", is_ready, &b);
	ck_assert(!store_has_former(b.store));
	close_store(&b);
}
END_TEST

START_TEST(forgotten_instance_is_gone_and_its_ended_leases_are_free)
{
	struct one a, b;
	struct fault f = { 0 };
	int64_t leases = -1;
	open_store(&a, "a", 1);
	open_store(&b, "b", 2);
	ck_assert_uint_eq(claim(&a, 0).n, 1);
	ck_assert_int_eq(vault_instance_forget(other, "a", &leases, &f), ST_DENIED);
	ck_assert_int_eq(vault_instance_forget(other, "nobody", &leases, &f), ST_NOT_FOUND);
	ck_assert_int_eq(leases, -1);
	close_store(&a);
	sql("UPDATE refreshd.instance SET heartbeat_at = now() - interval '21 s' WHERE name = 'a'");
	ck_ok(vault_instance_forget(other, "a", &leases, &f));
	ck_assert_int_eq(leases, 1);
	ck_assert_uint_eq(claim(&b, 3600 * US_PER_S).n, 0); /* a request may be out as long as the lease lasts */
	sql(END_LEASES);
	ck_assert_uint_eq(claim(&b, 3600 * US_PER_S).n, 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.instance"), 1);
	close_store(&b);
}
END_TEST

/* ---------------------------------------------------------------- who is running */

static bool sees_two(void *arg)
{
	const struct one *o = arg;
	return strcmp(o->names, "a b ") == 0;
}

static bool sees_a(void *arg)
{
	const struct one *o = arg;
	return strcmp(o->names, "a ") == 0;
}

static bool sees_b(void *arg)
{
	const struct one *o = arg;
	return strcmp(o->names, "b ") == 0;
}

/* Nobody sends a heartbeat here but the stores themselves, when they are told. */
START_TEST(who_comes_and_who_drains_is_seen_by_the_others_at_once)
{
	struct one a, b;
	long two = 2;
	open_store(&a, "a", 1);
	open_store(&b, "b", 2);
	wait_for("both to listen", others_listen, &two);
	store_set_presence(a.store, STORE_RUNNING);
	wait_for("a to see itself", sees_a, &a);
	wait_for("b to see a", sees_a, &b);
	ck_assert_uint_eq(a.self, 0);
	ck_assert_uint_eq(b.self, 1); /* none of them yet */
	store_set_presence(b.store, STORE_RUNNING);
	wait_for("a to see b", sees_two, &a);
	wait_for("b to see itself", sees_two, &b);
	ck_assert_uint_eq(b.self, 1);
	unsigned lives = b.lives;
	store_set_presence(a.store, STORE_DRAINING);
	wait_for("b to see that a leaves", sees_b, &b);
	wait_for("a to see that it is out", sees_b, &a);
	ck_assert_uint_eq(a.self, 1);
	ck_assert_uint_eq(b.lives, lives + 1);
	ck_assert_int_eq(number("SELECT count(*) FROM refreshd.instance WHERE name = 'a' AND NOT gone AND heartbeat_at > now() - interval '5 s'"), 1);
	close_store(&a);
	close_store(&b);
}
END_TEST

START_TEST(paused_takes_no_part_and_comes_back)
{
	struct one a, b;
	long two = 2;
	open_store(&a, "a", 1);
	open_store(&b, "b", 2);
	wait_for("both to listen", others_listen, &two);
	store_set_presence(a.store, STORE_RUNNING);
	store_set_presence(b.store, STORE_RUNNING);
	wait_for("both", sees_two, &a);
	store_set_presence(b.store, STORE_PAUSED);
	wait_for("b to be out", sees_a, &a);
	store_set_presence(b.store, STORE_RUNNING);
	wait_for("b to be back", sees_two, &a);
	close_store(&a);
	close_store(&b);
}
END_TEST

START_TEST(a_heartbeat_that_is_too_old_does_not_count)
{
	struct one a;
	open_store(&a, "a", 1);
	sql("INSERT INTO refreshd.instance (name, home, epoch, presence, version, started_at, heartbeat_at, gone) VALUES"
	    " ('b', gen_random_uuid(), 1000001, 'running', 'x', now(), now() - interval '19 s', false),"
	    " ('c', gen_random_uuid(), 1000002, 'running', 'x', now(), now() - interval '21 s', false),"
	    " ('d', gen_random_uuid(), 1000003, 'running', 'x', now(), now(), true),"
	    " ('e', gen_random_uuid(), 1000004, 'a newer word', 'x', now(), now(), false)");
	store_set_presence(a.store, STORE_RUNNING);
	wait_for("a and b", sees_two, &a);
	/* The next look is due when b is too old. */
	int64_t in = store_heartbeat_in(a.store);
	ck_assert_int_gt(in, 0);
	ck_assert_int_le(in, US_PER_S + US_PER_S / 10);
	close_store(&a);
}
END_TEST

START_TEST(enrolled_anew_it_says_again_that_it_runs)
{
	struct one a;
	open_store(&a, "a", 1);
	store_set_presence(a.store, STORE_RUNNING);
	wait_for("a", sees_a, &a);
	int64_t epoch = store_epoch(a.store);
	sql("DELETE FROM refreshd.instance"); /* forgotten while it stood still */
	int64_t end_us = sys_mono_us() + DEADLINE_US;
	while (store_epoch(a.store) == epoch || store_state(a.store) != STORE_READY ||
		number("SELECT count(*) FROM refreshd.instance WHERE presence = 'running'") != 1) {
		ck_assert_int_lt(sys_mono_us(), end_us);
		if (store_epoch(a.store) == epoch) /* one that was out already may have looked before */
			store_heartbeat(a.store);
		loop_once(loop, 20 * US_PER_MS);
	}
	close_store(&a);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("store_many");
	TCase *t = tcase_create("store_many");
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	unit_add(t, poll_brings_the_slots_that_are_asked_for);
	unit_add(t, slots_of_the_table_are_those_of_the_ids);
	unit_add(t, foreign_lease_is_told_by_the_poll_and_respected_by_the_claim);
	unit_add(t, our_own_lease_and_one_that_was_voided_or_given_up_wait_for_nothing);
	unit_add(t, leases_of_all_former_lives_are_freed_and_ours);
	unit_add(t, a_lease_that_was_taken_early_is_freed_by_the_second_part);
	unit_add(t, another_home_under_the_same_name_inherits_nothing);
	unit_add(t, one_that_is_refused_uses_up_no_epoch);
	unit_add(t, forgotten_instance_is_gone_and_its_ended_leases_are_free);
	unit_add(t, who_comes_and_who_drains_is_seen_by_the_others_at_once);
	unit_add(t, paused_takes_no_part_and_comes_back);
	unit_add(t, a_heartbeat_that_is_too_old_does_not_count);
	unit_add(t, enrolled_anew_it_says_again_that_it_runs);
	suite_add_tcase(s, t);
	return s;
}
