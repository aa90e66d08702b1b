/*
 * test_pgfault - what the pool says when the database, a connection, a host or the network misbehaves, and
 * that it comes back by itself.
 */
#include "integration/pgworld.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "unit/unit.h"

#define STMT(ident, text) static const struct pgstmt ident = {#ident, text}

STMT(one, "select 1");
STMT(nap, "select 1 from pg_sleep($1)");
STMT(put, "insert into t (n) values ($1)");
STMT(count_t, "select count(*) from t");
STMT(backend, "select pg_backend_pid()");
STMT(lock, "select count(pg_advisory_xact_lock(7))");

static struct pgargs *seconds(double s)
{
	struct pgargs *a = pgargs_new();
	pgargs_f64(a, s);
	return a;
}

static struct pgargs *number(int64_t v)
{
	struct pgargs *a = pgargs_new();
	pgargs_i64(a, v);
	return a;
}

static void make_table(void)
{
	pgcluster_sql(world.cluster, "drop table if exists t; create table t (n int8)");
}

/* Waits until the server runs pg_sleep for us: the transaction is certainly in flight. */
static bool naps(void *arg)
{
	(void)arg;
	return atoi(pgcluster_sql(world.cluster, "select count(*) from pg_stat_activity where wait_event = "
						 "'PgSleep' and state = 'active'")) > 0;
}

/* ---- losing connections */

START_TEST(a_killed_server_leaves_the_outcome_unknown_and_comes_back)
{
	struct outcome flying, behind, queued, o;
	make_table();
	world_pool(NULL, 1, 0, false);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &put, number(1));
	pgtx_add(t, &nap, seconds(30));
	world_send(t, 0, &flying);
	world_send1(&put, number(2), 0, &behind);
	world_wait("the nap", naps, NULL);
	pgcluster_stop(world.cluster, SIGKILL);
	ck_assert_int_eq(world_await(&flying), PG_CLASS_UNKNOWN);
	ck_assert_int_eq(world_await(&behind), PG_CLASS_UNKNOWN);
	world_wait_down();
	ck_assert_int_eq(world.why.code, ST_CLOSED);
	world_send1(&put, number(3), 0, &queued);
	world_run_ms(300);
	ck_assert_uint_eq(queued.calls, 0);
	ck_assert(!pgpool_is_up(world.pool));
	int64_t start_us = sys_mono_us();
	pgcluster_start(world.cluster);
	ck_assert_int_eq(world_await(&queued), PG_CLASS_OK);
	ck_assert_int_lt(sys_mono_us() - start_us, 12 * US_PER_S);
	ck_assert_int_ge(queued.r.wait_us, 300 * US_PER_MS);
	ck_assert_int_eq(world_query(&count_t, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1); /* neither of the two was committed, and nobody ran them again */
	ck_assert_uint_eq(world.state_calls, 3);
}
END_TEST

START_TEST(a_terminated_session_is_certain_about_the_rest)
{
	struct outcome flying, behind[3], o;
	make_table();
	world_pool(NULL, 1, 0, false);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &put, number(1));
	pgtx_add(t, &nap, seconds(30));
	world_send(t, 0, &flying);
	for (int i = 0; i < 3; i++)
		world_send1(&put, number(2 + i), 0, &behind[i]);
	world_wait("the nap", naps, NULL);
	pgcluster_sql(world.cluster,
		"select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgtest'");
	ck_assert_int_eq(world_await(&flying), PG_CLASS_CONNECTION);
	ck_assert_str_eq(flying.r.sqlstate, "57P01");
	for (int i = 0; i < 3; i++) /* never looked at by the dying session: run by the next one */
		ck_assert_int_eq(world_await(&behind[i]), PG_CLASS_OK);
	ck_assert_int_eq(world_query(&count_t, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 3);
	ck_assert_ptr_nonnull(strstr(world.why.text, "57P01"));
}
END_TEST

START_TEST(an_idle_session_that_ends_costs_nothing)
{
	struct outcome o;
	world_pool(NULL, 1, 0, false);
	world_wait_up(1);
	pgcluster_sql(world.cluster,
		"select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgtest'");
	world_wait_down();
	ck_assert_ptr_nonnull(strstr(world.why.text, "57P01"));
	ck_assert_int_eq(world_query(&one, NULL, &o), PG_CLASS_OK);
}
END_TEST

/* ---- time */

START_TEST(a_slow_statement_is_canceled_by_the_server)
{
	struct outcome slow, after;
	world_pool(NULL, 1, 200 * US_PER_MS, false);
	world_send1(&nap, seconds(30), 0, &slow);
	world_send1(&one, NULL, 0, &after);
	ck_assert_int_eq(world_await(&slow), PG_CLASS_RETRY);
	ck_assert_str_eq(slow.r.sqlstate, "57014");
	ck_assert_int_eq(world_await(&after), PG_CLASS_OK);
	ck_assert_uint_eq(world.state_calls, 1);
}
END_TEST

START_TEST(a_blocked_statement_is_told_apart)
{
	struct outcome holder, blocked;
	world_pool(NULL, 2, 600 * US_PER_MS, false);
	world_wait_up(2);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &lock, NULL);
	pgtx_add(t, &nap, seconds(0.55));
	world_send(t, 0, &holder);
	world_wait("the nap", naps, NULL);
	world_send1(&lock, NULL, 0, &blocked);
	ck_assert_int_eq(world_await(&blocked), PG_CLASS_RETRY);
	ck_assert_str_eq(blocked.r.sqlstate, "55P03");
	ck_assert_int_eq(world_await(&holder), PG_CLASS_OK);
}
END_TEST

START_TEST(a_silent_server_is_given_up)
{
	struct outcome pid, lost, o;
	world_pool(NULL, 1, 300 * US_PER_MS, false);
	ck_assert_int_eq(world_query(&backend, NULL, &pid), PG_CLASS_OK);
	ck_assert_int_gt(pid.first, 1);
	ck_assert_int_eq(kill((pid_t)pid.first, SIGSTOP), 0);
	int64_t start_us = sys_mono_us();
	world_send1(&one, NULL, 0, &lost);
	enum pg_class class = world_await(&lost);
	(void)kill((pid_t)pid.first, SIGCONT);
	ck_assert_int_eq(class, PG_CLASS_UNKNOWN);
	ck_assert_int_ge(sys_mono_us() - start_us, 1300 * US_PER_MS);
	ck_assert_ptr_nonnull(strstr(world.why.text, "no answer"));
	ck_assert_int_eq(world_query(&one, NULL, &o), PG_CLASS_OK);
}
END_TEST

static unsigned last_words;

/* For transactions that end with their pool: told so exactly then, and nothing new is taken. */
static void on_last_word(void *arg, const struct pgtx_result *r)
{
	(void)arg;
	last_words++;
	/* One whose result was there already keeps it. */
	ck_assert(r->class == PG_CLASS_UNKNOWN || r->class == PG_CLASS_CONNECTION || r->class == PG_CLASS_OK);
	if (world.pool == NULL)
		return;
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &one, NULL);
	ck_assert_int_eq(pgpool_send(world.pool, t, 0, on_last_word, NULL), ST_UNAVAILABLE);
	pgtx_free(t);
}

START_TEST(waiting_ends_at_its_deadline)
{
	struct outcome brief, longer, endless;
	pgcluster_stop(world.cluster, SIGINT);
	world_pool(NULL, 2, 0, false);
	world_wait_down(); /* the first failure of all is told as well */
	ck_assert_int_eq(world.why.code, ST_UNAVAILABLE);
	world_send1(&one, NULL, 400 * US_PER_MS, &longer);
	world_send1(&one, NULL, 100 * US_PER_MS, &brief);
	world_send1(&one, NULL, 0, &endless);
	ck_assert_int_eq(world_await(&brief), PG_CLASS_CONNECTION);
	ck_assert_str_eq(brief.r.sqlstate, "");
	ck_assert_int_ge(brief.r.wait_us, 100 * US_PER_MS);
	ck_assert_int_lt(brief.r.wait_us, 300 * US_PER_MS);
	ck_assert_uint_eq(longer.calls, 0);
	ck_assert_int_eq(world_await(&longer), PG_CLASS_CONNECTION);
	ck_assert_uint_eq(endless.calls, 0);
	ck_assert_uint_eq(world.state_calls, 1);
	pgcluster_start(world.cluster);
	ck_assert_int_eq(world_await(&endless), PG_CLASS_OK);
}
END_TEST

START_TEST(the_queue_is_bounded)
{
	struct fault f;
	struct pgpool_params p = {.url = "host=/nonexistent", .size = 1, .max_queued = 2};
	ck_ok(pgpool_new(world.loop, world.resolver, &p, &world.pool, &f));
	for (int i = 0; i < 2; i++) {
		struct pgtx *t = pgtx_new();
		pgtx_add(t, &one, NULL);
		ck_ok(pgpool_send(world.pool, t, 0, on_last_word, NULL));
	}
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &nap, seconds(0));
	ck_assert_int_eq(pgpool_send(world.pool, t, 0, on_last_word, NULL), ST_FULL);
	pgtx_free(t); /* still ours */
	pgtx_free(NULL);
	world_run_ms(50);
}
END_TEST

/* ---- hosts */

static bool refused_again(void *arg)
{
	unsigned *calls = arg;
	return world.state_calls > *calls;
}

START_TEST(a_read_only_database_is_told_and_left)
{
	struct outcome o;
	make_table();
	pgcluster_sql(world.cluster, "alter database postgres set default_transaction_read_only = on");
	world_pool(NULL, 1, 0, false);
	ck_assert_int_eq(world_query(&put, number(1), &o), PG_CLASS_READ_ONLY);
	ck_assert_str_eq(o.r.sqlstate, "25006");
	world_wait_down();
	ck_assert_ptr_nonnull(strstr(world.why.text, "read-only"));
	pgcluster_sql(world.cluster, "alter database postgres reset default_transaction_read_only");
	world_wait_up(1);
	ck_assert_int_eq(world_query(&put, number(1), &o), PG_CLASS_OK);
}
END_TEST

START_TEST(several_read_only_hosts_are_not_connected_to)
{
	char url[512];
	unsigned port = pgcluster_port(world.cluster);
	struct outcome o;
	make_table();
	pgcluster_sql(world.cluster, "alter database postgres set default_transaction_read_only = on");
	snprintf(url, sizeof(url),
		"host=%s,127.0.0.1 port=%u,%u user=postgres dbname=postgres password=" PGCLUSTER_PASSWORD,
		pgcluster_sock(world.cluster), port, port);
	world_pool(url, 1, 0, false);
	world_wait_down();
	ck_assert_msg(strstr(world.why.text, "session is read-only") != NULL, "%s", world.why.text);
	ck_assert_ptr_null(strstr(world.why.text, PGCLUSTER_PASSWORD));
	/* When told to take any of them, one refusal may be a stale host; the second is everyone. */
	snprintf(url + strlen(url), sizeof(url) - strlen(url), " target_session_attrs=any");
	world_pool(url, 1, 0, false);
	ck_assert_int_eq(world_query(&put, number(1), &o), PG_CLASS_CONNECTION);
	ck_assert_str_eq(o.r.sqlstate, "25006");
	ck_assert_int_eq(world_query(&put, number(1), &o), PG_CLASS_READ_ONLY);
	pgcluster_sql(world.cluster, "alter database postgres reset default_transaction_read_only");
	unsigned calls = world.state_calls;
	world_wait("a new connection", refused_again, &calls);
	world_wait_up(1);
	ck_assert_int_eq(world_query(&put, number(1), &o), PG_CLASS_OK);
}
END_TEST

static void write_temp(char path[32], const char *text)
{
	strcpy(path, "/tmp/pgfault-XXXXXX");
	int fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

START_TEST(dead_hosts_and_addresses_are_passed_over)
{
	char url[512], hosts[32], conf[32];
	unsigned port = pgcluster_port(world.cluster);
	struct outcome o;
	write_temp(conf, "nameserver 127.0.0.1:1\n");
	write_temp(hosts, "127.0.0.7 db.test\n127.0.0.1 db.test\n");
	world_resolver(conf, hosts, 300 * US_PER_MS);
	snprintf(url, sizeof(url),
		"postgres://postgres:" PGCLUSTER_PASSWORD "@127.0.0.1:%u,nowhere.test:%u,db.test:%u/postgres",
		pgcluster_free_port(), port, port);
	world_pool(url, 2, US_PER_S, false);
	world_wait_up(2);
	ck_assert_int_eq(world_query(&one, NULL, &o), PG_CLASS_OK);
	unlink(hosts);
	unlink(conf);
}
END_TEST

START_TEST(a_host_that_swallows_packets_is_tried_last)
{
	char url[512];
	struct outcome o;
	struct sockaddr_in sin = {.sin_family = AF_INET};
	socklen_t len = sizeof(sin);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	sin.sin_port = htons(pgcluster_free_port());
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	ck_assert_int_eq(listen(fd, 4), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&sin, &len), 0);
	snprintf(url, sizeof(url),
		"host=127.0.0.1,%s port=%u,%u user=postgres dbname=postgres connect_timeout=1",
		pgcluster_sock(world.cluster), ntohs(sin.sin_port), pgcluster_port(world.cluster));
	world_pool(url, 1, 0, false);
	world_wait_down();
	ck_assert_int_eq(world.why.code, ST_TIMEOUT);
	ck_assert_int_eq(world_query(&one, NULL, &o), PG_CLASS_OK);
	close(fd);
}
END_TEST

static unsigned ticks;
static struct loop_timer *ticker;
static int64_t worst_us, last_us;

static void on_tick(void *arg)
{
	(void)arg;
	int64_t now = sys_mono_us();
	if (now - last_us > worst_us)
		worst_us = now - last_us;
	last_us = now;
	ticks++;
	loop_timer_after(ticker, 10 * US_PER_MS);
}

START_TEST(a_silent_name_server_does_not_stall_the_loop)
{
	char conf[64], path[32], hosts[32];
	struct sockaddr_in sin = {.sin_family = AF_INET};
	socklen_t len = sizeof(sin);
	int fd = socket(AF_INET, SOCK_DGRAM, 0); /* takes questions, never answers */
	sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&sin, sizeof(sin)), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&sin, &len), 0);
	snprintf(conf, sizeof(conf), "nameserver 127.0.0.1:%u\n", ntohs(sin.sin_port));
	write_temp(path, conf);
	write_temp(hosts, "");
	world_resolver(path, hosts, US_PER_S);
	ticker = loop_timer_new(world.loop, on_tick, NULL);
	ticks = 0;
	worst_us = 0;
	last_us = sys_mono_us();
	loop_timer_after(ticker, 10 * US_PER_MS);
	int64_t start_us = last_us;
	world_pool("host=hangs.test user=postgres password=hush-hush", 1, 0, false);
	world_wait_down();
	ck_assert_msg(strstr(world.why.text, "hangs.test") != NULL, "%s", world.why.text);
	ck_assert_ptr_null(strstr(world.why.text, "hush"));
	int64_t took_us = sys_mono_us() - start_us;
	ck_assert_int_ge(took_us, 500 * US_PER_MS);
	ck_assert_msg(worst_us < 200 * US_PER_MS, "the loop stood still for %lld us", (long long)worst_us);
	ck_assert_uint_gt(ticks, 20);
	loop_timer_free(ticker);
	close(fd);
	unlink(path);
	unlink(hosts);
}
END_TEST

/* ---- refusals */

static void expect_refusal(const char *url, const char *says, const char *secret)
{
	world.up = false;
	world.why.code = 0;
	world_pool(url, 1, 0, false);
	world_wait_down();
	ck_assert_int_eq(world.why.code, ST_DENIED);
	ck_assert_msg(strstr(world.why.text, says) != NULL, "%s", world.why.text);
	ck_assert_msg(strstr(world.why.text, secret) == NULL, "%s", world.why.text);
}

START_TEST(a_refusal_says_why_and_not_the_password)
{
	char url[512];
	unsigned port = pgcluster_port(world.cluster);
	snprintf(url, sizeof(url), "postgres://postgres:wr0ng-S3cret@127.0.0.1:%u/postgres", port);
	expect_refusal(url, "password authentication failed for user \"postgres\"", "wr0ng");
	snprintf(url, sizeof(url),
		"host=127.0.0.1 port=%u user=postgres password=" PGCLUSTER_PASSWORD " dbname=n0where", port);
	expect_refusal(url, "database \"n0where\" does not exist", PGCLUSTER_PASSWORD);
	expect_refusal(pgcluster_url(world.cluster, "user=n0body password=S3cret"),
		"role \"n0body\" does not exist", "S3cret");
}
END_TEST

START_TEST(a_bad_url_is_refused_at_once)
{
	static const struct {
		const char *url;
		const char *says;
	} bad[] = {
		{"postgres://u:S3cret@[::1", "neither"},
		{"host=a password='S3cret", "neither"},
		{"host=a S3cret", "neither"},
		{"postgres://u:S3cret@h/db?nonsense=1", "neither"},
		{"host=a,b port=1,2,3 password=S3cret", "3 ports do not match 2 hosts"},
		{"host=a,b hostaddr=127.0.0.1 password=S3cret", "2 host names do not match 1 hostaddr"},
		{"host=a port=70000 password=S3cret", "port"},
		{"host=a port=S3cret", "port"},
		{"host=a connect_timeout=S3cret", "connect_timeout"},
		{"service=S3cret", "service"},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct fault f = {.code = 0};
		struct pgpool *p = NULL;
		struct pgpool_params pp = {.url = bad[i].url, .size = 1};
		ck_assert_msg(pgpool_new(world.loop, world.resolver, &pp, &p, &f) < 0, "%s", bad[i].url);
		ck_assert_ptr_null(p);
		ck_assert_msg(strstr(f.text, bad[i].says) != NULL, "%s: %s", bad[i].url, f.text);
		ck_assert_msg(strstr(f.text, "S3cret") == NULL, "%s", f.text);
	}
}
END_TEST

/* ---- ends */

static bool freed;

static void on_outcome_free(void *arg, const struct pgtx_result *r)
{
	(void)arg;
	ck_assert_int_eq(r->class, PG_CLASS_OK);
	pgpool_free(world.pool);
	world.pool = NULL;
	freed = true;
	ck_assert_int_eq(pgresult_int(&r->results[0], 0, 0), 1); /* still borrowed */
}

static void on_state_free(void *arg, bool up, const struct fault *why)
{
	(void)arg;
	(void)why;
	ck_assert(up);
	pgpool_free(world.pool);
	world.pool = NULL;
	freed = true;
}

static void on_payload_free(void *arg, const char *payload)
{
	(void)arg;
	(void)payload;
	pgpool_free(world.pool);
	world.pool = NULL;
	freed = true;
}

static bool is_freed(void *arg)
{
	(void)arg;
	return freed;
}

START_TEST(the_pool_may_be_freed_in_every_callback)
{
	world_pool(NULL, 2, US_PER_S, false);
	freed = false;
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &one, NULL);
	ck_ok(pgpool_send(world.pool, t, 0, on_outcome_free, NULL));
	for (int i = 0; i < 3; i++) {
		t = pgtx_new();
		pgtx_add(t, &nap, seconds(0));
		ck_ok(pgpool_send(world.pool, t, US_PER_S, on_last_word, NULL));
	}
	world_wait("the outcome", is_freed, NULL);

	world_pool(NULL, 2, 0, false);
	freed = false;
	pgpool_on_state(world.pool, on_state_free, NULL);
	world_wait("the state", is_freed, NULL);

	world_pool(NULL, 2, 0, false);
	freed = false;
	pgpool_listen(world.pool, "c", on_payload_free, NULL);
	world_wait("LISTEN", is_freed, NULL);
	world_run_ms(20);
}
END_TEST

START_TEST(freeing_tells_whoever_still_waits)
{
	last_words = 0;
	world_pool(NULL, 1, 0, false);
	world_wait_up(1);
	for (int i = 0; i < 20; i++) {
		struct pgtx *t = pgtx_new();
		pgtx_add(t, &nap, seconds(30));
		ck_ok(pgpool_send(world.pool, t, 0, on_last_word, NULL));
	}
	world_wait("the nap", naps, NULL);
	ck_assert_uint_eq(last_words, 0);
	pgpool_free(world.pool);
	world.pool = NULL;
	ck_assert_uint_eq(last_words, 20);
	world_run_ms(20);
	ck_assert_uint_eq(last_words, 20);
	pgcluster_sql(world.cluster,
		"select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgtest'");
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("pgfault");
	TCase *tc = tcase_create("pgfault");
	tcase_set_timeout(tc, 180);
	tcase_add_checked_fixture(tc, world_open, world_close);
	unit_add(tc, a_killed_server_leaves_the_outcome_unknown_and_comes_back);
	unit_add(tc, a_terminated_session_is_certain_about_the_rest);
	unit_add(tc, an_idle_session_that_ends_costs_nothing);
	unit_add(tc, a_slow_statement_is_canceled_by_the_server);
	unit_add(tc, a_blocked_statement_is_told_apart);
	unit_add(tc, a_silent_server_is_given_up);
	unit_add(tc, waiting_ends_at_its_deadline);
	unit_add(tc, the_queue_is_bounded);
	unit_add(tc, a_read_only_database_is_told_and_left);
	unit_add(tc, several_read_only_hosts_are_not_connected_to);
	unit_add(tc, dead_hosts_and_addresses_are_passed_over);
	unit_add(tc, a_host_that_swallows_packets_is_tried_last);
	unit_add(tc, a_silent_name_server_does_not_stall_the_loop);
	unit_add(tc, a_refusal_says_why_and_not_the_password);
	unit_add(tc, a_bad_url_is_refused_at_once);
	unit_add(tc, the_pool_may_be_freed_in_every_callback);
	unit_add(tc, freeing_tells_whoever_still_waits);
	suite_add_tcase(s, tc);
	return s;
}
