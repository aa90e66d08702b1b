/*
 * test_pgsync - the blocking connection of the command line: statements, faults without secrets, COPY,
 * waiting.
 */
#include <stdio.h>
#include <string.h>

#include "integration/pgworld.h"

#include "base/sys.h"
#include "io/pgsync.h"
#include "unit/unit.h"

#define STMT(ident, text) static const struct pgstmt ident = {#ident, text}

STMT(sum,
	"select sum(n)::int8, count(*) filter (where s is null), max(length(b))::int8 from c where n <> $1");
STMT(insert, "insert into c (n, s) values ($1, $2)");
STMT(nonsense, "select nonsense");

static struct pgsync *sync_conn;

static void open_sync(void)
{
	struct fault f = {.code = 0};
	world_open();
	int rc = pgsync_connect(pgcluster_url(world.cluster, ""), "pgsync-test", &sync_conn, &f);
	ck_assert_msg(rc == 0, "%s", f.text);
	rc = pgsync_exec(sync_conn,
		"drop table if exists c; create table c (n int8 primary key, s text, b bytea)", &f);
	ck_assert_msg(rc == 0, "%s", f.text);
}

static void close_sync(void)
{
	pgsync_free(sync_conn);
	world_close();
}

static struct pgargs *pair(int64_t n, const char *s)
{
	struct pgargs *a = pgargs_new();
	pgargs_i64(a, n);
	pgargs_text(a, s);
	return a;
}

START_TEST(statements_and_their_faults)
{
	struct fault f = {.code = 0};
	struct pgresult r;
	char state[6] = "";
	ck_ok(pgsync_query(sync_conn, &insert, pair(1, "one"), &r, state, &f));
	ck_assert_int_eq(pgresult_affected(&r), 1);
	pgsync_clear(&r);
	ck_assert_int_eq(pgsync_query(sync_conn, &insert, pair(1, "SECRET"), &r, state, &f), ST_CONFLICT);
	ck_assert_str_eq(state, "23505");
	ck_assert_ptr_nonnull(strstr(f.text, "c_pkey"));
	ck_assert_ptr_null(strstr(f.text, "SECRET"));
	ck_assert_ptr_null(strstr(f.text, "(1)"));
	ck_assert_int_eq(pgsync_query(sync_conn, &nonsense, NULL, &r, NULL, &f), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(f.text, "42703"));
	ck_assert_int_eq(pgsync_exec(sync_conn, "insert into c values (2); insert into c values (2)", &f),
		ST_CONFLICT);
	struct pgargs *a = pgargs_new();
	pgargs_i64(a, 0);
	ck_ok(pgsync_query(sync_conn, &sum, a, &r, state, &f));
	ck_assert_int_eq(pgresult_int(&r, 0, 0), 1); /* the two in one string were rolled back together */
	pgsync_clear(&r);
}
END_TEST

START_TEST(copy_takes_many_rows)
{
	struct fault f = {.code = 0};
	struct pgresult r;
	ck_ok(pgsync_copy_begin(sync_conn, "copy c (n, s, b) from stdin (format binary)", &f));
	for (int i = 1; i <= 5000; i++) {
		struct pgargs *a = pair(i, i % 10 ? "some text" : NULL);
		pgargs_bytes(a, "\0\1\2\3", (size_t)(i % 5));
		ck_ok(pgsync_copy_row(sync_conn, a, &f));
	}
	ck_ok(pgsync_copy_end(sync_conn, &f));
	struct pgargs *a = pgargs_new();
	pgargs_i64(a, 0);
	ck_ok(pgsync_query(sync_conn, &sum, a, &r, NULL, &f));
	ck_assert_int_eq(pgresult_int(&r, 0, 0), 5000 * 5001 / 2);
	ck_assert_int_eq(pgresult_int(&r, 0, 1), 500);
	ck_assert_int_eq(pgresult_int(&r, 0, 2), 4);
	pgsync_clear(&r);
}
END_TEST

START_TEST(copy_faults_leave_the_connection_usable)
{
	struct fault f = {.code = 0};
	ck_assert_int_eq(pgsync_copy_begin(sync_conn, "copy c (n, s) from stdin", &f), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(f.text, "binary"));
	ck_assert_int_eq(
		pgsync_copy_begin(sync_conn, "copy nowhere from stdin (format binary)", &f), ST_INVALID);
	ck_ok(pgsync_copy_begin(sync_conn, "copy c (n, s) from stdin (format binary)", &f));
	ck_ok(pgsync_copy_row(sync_conn, pair(1, "SECRET"), &f));
	ck_ok(pgsync_copy_row(sync_conn, pair(1, "SECRET"), &f));
	ck_assert_int_eq(pgsync_copy_end(sync_conn, &f), ST_CONFLICT);
	ck_assert_ptr_null(strstr(f.text, "SECRET"));
	ck_ok(pgsync_exec(sync_conn, "insert into c values (1)", &f));
}
END_TEST

START_TEST(waiting_for_a_notification)
{
	struct fault f = {.code = 0};
	ck_ok(pgsync_exec(sync_conn, "listen news", &f));
	int64_t start_us = sys_mono_us();
	ck_assert_int_eq(pgsync_wait_notify(sync_conn, 50 * US_PER_MS, &f), ST_TIMEOUT);
	ck_assert_int_ge(sys_mono_us() - start_us, 50 * US_PER_MS);
	pgcluster_sql(world.cluster, "notify news");
	ck_ok(pgsync_wait_notify(sync_conn, 10 * US_PER_S, &f));
	pgcluster_sql(world.cluster, "select pg_terminate_backend(pid) from pg_stat_activity where "
				     "application_name = 'pgsync-test'");
	ck_assert_int_eq(pgsync_wait_notify(sync_conn, 10 * US_PER_S, &f), ST_CLOSED);
	ck_assert_int_eq(pgsync_exec(sync_conn, "select 1", &f), ST_CLOSED);
}
END_TEST

START_TEST(connecting_fails_without_the_password)
{
	struct fault f = {.code = 0};
	struct pgsync *p = NULL;
	char url[256];
	snprintf(url, sizeof(url), "postgres://postgres:wr0ng-S3cret@127.0.0.1:%u/postgres",
		pgcluster_port(world.cluster));
	ck_assert_int_eq(pgsync_connect(url, "x", &p, &f), ST_UNAVAILABLE);
	ck_assert_ptr_nonnull(strstr(f.text, "password authentication failed"));
	ck_assert_ptr_null(strstr(f.text, "S3cret"));
	ck_assert_int_eq(pgsync_connect("postgres://u:S3cret@[::1", "x", &p, &f), ST_SYNTAX);
	ck_assert_ptr_null(strstr(f.text, "S3cret"));
	ck_assert_ptr_null(p);
	pgsync_free(NULL);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("pgsync");
	TCase *tc = tcase_create("pgsync");
	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, open_sync, close_sync);
	unit_add(tc, statements_and_their_faults);
	unit_add(tc, copy_takes_many_rows);
	unit_add(tc, copy_faults_leave_the_connection_usable);
	unit_add(tc, waiting_for_a_notification);
	unit_add(tc, connecting_fails_without_the_password);
	suite_add_tcase(s, tc);
	return s;
}
