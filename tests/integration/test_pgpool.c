/*
 * test_pgpool - the pool and its parameters against a real Postgres: types, pipelining, rollback, what of an
 * error comes through, prepared statements over schema changes, notifications, PgBouncer.
 */
#include "integration/pgworld.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "unit/unit.h"

#define STMT(ident, text) static const struct pgstmt ident = {#ident, text}

/* ---- types */

STMT(scalars, "select $1::bool, $2::int2, $3::int4, $4::int8, $5::float8, $6::text, $7::bytea, $8::uuid, "
	      "$9::timestamptz, "
	      "$10::jsonb, $11::text, $12::varchar, $13::json, $14::name");

static const uint8_t uuid_a[16] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 2, 3, 4, 5, 6, 7, 8};

static unsigned type_calls;

static void check_scalars(void *arg, const struct pgtx_result *r)
{
	size_t n;
	(void)arg;
	ck_assert_msg(r->class == PG_CLASS_OK, "%s", r->sqlstate);
	ck_assert_uint_eq(r->n, 1);
	const struct pgresult *q = &r->results[0];
	ck_assert_int_eq(pgresult_rows(q), 1);
	ck_assert(pgresult_bool(q, 0, 0));
	ck_assert_int_eq(pgresult_int(q, 0, 1), -32768);
	ck_assert_int_eq(pgresult_int(q, 0, 2), INT32_MIN);
	ck_assert(pgresult_int(q, 0, 3) == INT64_MIN);
	ck_assert(pgresult_f64(q, 0, 4) == -0.1);
	ck_assert_str_eq(pgresult_text(q, 0, 5, &n), "Gr\xc3\xbc\xc3\x9f'e\"\\");
	ck_assert_uint_eq(n, 10);
	ck_assert_mem_eq(pgresult_bytes(q, 0, 6, &n), "\0\377\\x\n", 5);
	ck_assert_uint_eq(n, 5);
	ck_assert_mem_eq(pgresult_uuid(q, 0, 7), uuid_a, 16);
	ck_assert_int_eq(pgresult_time(q, 0, 8), 1794000000123456);
	ck_assert_str_eq(pgresult_text(q, 0, 9, NULL), "{\"a\": [1, null]}");
	ck_assert(pgresult_null(q, 0, 10));
	ck_assert_str_eq(pgresult_text(q, 0, 11, &n), "");
	ck_assert_uint_eq(n, 0);
	ck_assert_str_eq(pgresult_text(q, 0, 12, NULL), "[1 ]");
	ck_assert_str_eq(pgresult_text(q, 0, 13, NULL), "ident");
	type_calls++;
}

static bool all_types_done(void *arg)
{
	return type_calls == *(unsigned *)arg;
}

START_TEST(every_type_round_trips)
{
	unsigned want = 2;
	type_calls = 0;
	world_pool(NULL, 1, 0, false);
	for (unsigned i = 0; i < want; i++) { /* the second time prepared */
		struct pgargs *a = pgargs_new();
		pgargs_bool(a, true);
		pgargs_i16(a, INT16_MIN);
		pgargs_i32(a, INT32_MIN);
		pgargs_i64(a, INT64_MIN);
		pgargs_f64(a, -0.1);
		pgargs_text(a, "Gr\xc3\xbc\xc3\x9f'e\"\\");
		pgargs_bytes(a, "\0\377\\x\n", 5);
		pgargs_uuid(a, uuid_a);
		pgargs_time(a, 1794000000123456);
		pgargs_jsonb(a, "{\"a\":[1,null]}");
		pgargs_text(a, NULL);
		pgargs_text(a, "");
		pgargs_text(a, "[1 ]");
		pgargs_textn(a, "identity", 5);
		ck_assert_uint_eq(pgargs_count(a), 14);
		struct pgtx *t = pgtx_new();
		pgtx_add(t, &scalars, a);
		ck_ok(pgpool_send(world.pool, t, 0, check_scalars, NULL));
	}
	world_wait("both", all_types_done, &want);
}
END_TEST

STMT(nulls, "select $1::bool is null and $2::int2 is null and $3::int4 is null and $4::int8 is null and "
	    "$5::float8 is null and "
	    "$6::text is null and $7::bytea is null and $8::uuid is null and $9::timestamptz is null and "
	    "$10::jsonb is null");
STMT(edges, "select $1::float8, $2::float8, $3::timestamptz, $4::timestamptz, $5::timestamptz, $6::bytea, "
	    "'294276-12-31 23:59:59+00'::timestamptz, $3 = 'infinity' and $4 = '-infinity' and $5 = "
	    "'1969-12-31 23:59:59.999999+00'");

static void check_nulls(void *arg, const struct pgtx_result *r)
{
	(void)arg;
	ck_assert_msg(r->class == PG_CLASS_OK, "%s", r->sqlstate);
	ck_assert(pgresult_bool(&r->results[0], 0, 0));
	type_calls++;
}

static void check_edges(void *arg, const struct pgtx_result *r)
{
	size_t n;
	(void)arg;
	ck_assert_msg(r->class == PG_CLASS_OK, "%s", r->sqlstate);
	const struct pgresult *q = &r->results[0];
	ck_assert(isinf(pgresult_f64(q, 0, 0)) && pgresult_f64(q, 0, 0) < 0);
	ck_assert(isnan(pgresult_f64(q, 0, 1)));
	ck_assert(pgresult_time(q, 0, 2) == INT64_MAX);
	ck_assert(pgresult_time(q, 0, 3) == INT64_MIN);
	ck_assert(pgresult_time(q, 0, 4) == -1);
	(void)pgresult_bytes(q, 0, 5, &n);
	ck_assert_uint_eq(n, 0);
	ck_assert(!pgresult_null(q, 0, 5));
	ck_assert(pgresult_time(q, 0, 6) == INT64_MAX - 1); /* not mistaken for infinity */
	ck_assert(pgresult_bool(q, 0, 7));
	type_calls++;
}

START_TEST(nulls_and_edges_round_trip)
{
	unsigned want = 2;
	type_calls = 0;
	world_pool(NULL, 1, 0, false);
	struct pgargs *a = pgargs_new();
	for (int t = PGT_BOOL; t <= PGT_JSONB; t++)
		pgargs_null(a, (enum pgtype)t);
	struct pgtx *tx = pgtx_new();
	pgtx_add(tx, &nulls, a);
	ck_ok(pgpool_send(world.pool, tx, 0, check_nulls, NULL));
	a = pgargs_new();
	pgargs_f64(a, -INFINITY);
	pgargs_f64(a, NAN);
	pgargs_time(a, INT64_MAX);
	pgargs_time(a, INT64_MIN);
	pgargs_time(a, -1);
	pgargs_bytes(a, "", 0);
	tx = pgtx_new();
	pgtx_add(tx, &edges, a);
	ck_ok(pgpool_send(world.pool, tx, 0, check_edges, NULL));
	world_wait("both", all_types_done, &want);
}
END_TEST

STMT(arrays,
	"select $1 = array[true,null,false] and $2 = array[1,-1]::int2[] and $3 = array[2147483647] and "
	"$4 = array[null,9223372036854775807] and $5 = array[0.5]::float8[] and $6 = "
	"array['','NULL',null,'{,}'] and "
	"$7 = array['\\x00ff','\\x']::bytea[] and $8 = array['01234567-89ab-cdef-0102-030405060708']::uuid[] "
	"and "
	"$9 = array['infinity','2000-01-01 00:00:00+00']::timestamptz[] and $10 = "
	"array['{\"k\":1}']::jsonb[] and "
	"$11 = '{}'::int8[] and cardinality($12) = 0 and $13::text[] is not null and array_lower($3, 1) = 1");

static void check_true(void *arg, const struct pgtx_result *r)
{
	(void)arg;
	ck_assert_msg(r->class == PG_CLASS_OK, "%s", r->sqlstate);
	ck_assert(!pgresult_null(&r->results[0], 0, 0));
	ck_assert(pgresult_bool(&r->results[0], 0, 0));
	type_calls++;
}

START_TEST(arrays_of_every_type_arrive)
{
	unsigned want = 1;
	type_calls = 0;
	world_pool(NULL, 1, 0, false);
	struct pgargs *a = pgargs_new();
	pgargs_array(a, PGT_BOOL), pgargs_bool(a, true), pgargs_null(a, PGT_BOOL), pgargs_bool(a, false),
		pgargs_array_end(a);
	pgargs_array(a, PGT_I16), pgargs_i16(a, 1), pgargs_i16(a, -1), pgargs_array_end(a);
	pgargs_array(a, PGT_I32), pgargs_i32(a, INT32_MAX), pgargs_array_end(a);
	pgargs_array(a, PGT_I64), pgargs_null(a, PGT_I64), pgargs_i64(a, INT64_MAX), pgargs_array_end(a);
	pgargs_array(a, PGT_F64), pgargs_f64(a, 0.5), pgargs_array_end(a);
	pgargs_array(a, PGT_TEXT), pgargs_text(a, ""), pgargs_text(a, "NULL"), pgargs_text(a, NULL),
		pgargs_text(a, "{,}"), pgargs_array_end(a);
	pgargs_array(a, PGT_BYTES), pgargs_bytes(a, "\0\377", 2), pgargs_bytes(a, "", 0), pgargs_array_end(a);
	pgargs_array(a, PGT_UUID), pgargs_uuid(a, uuid_a), pgargs_array_end(a);
	pgargs_array(a, PGT_TIME), pgargs_time(a, INT64_MAX), pgargs_time(a, 946684800000000),
		pgargs_array_end(a);
	pgargs_array(a, PGT_JSONB), pgargs_jsonb(a, "{\"k\":1}"), pgargs_array_end(a);
	pgargs_array(a, PGT_I64), pgargs_array_end(a);
	pgargs_array(a, PGT_TEXT), pgargs_array_end(a);
	pgargs_array(a, PGT_TEXT), pgargs_text(a, "x"), pgargs_array_end(a);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &arrays, a);
	ck_ok(pgpool_send(world.pool, t, 0, check_true, NULL));
	world_wait("the answer", all_types_done, &want);
}
END_TEST

STMT(unnested, "select coalesce(sum(length(b)), 0)::int8 + count(*) filter (where n is null) from "
	       "unnest($1::int8[], $2::bytea[]) "
	       "as u(n, b) where $3 = 'kept'");

static struct pgargs *large_batch(void)
{
	uint8_t block[1500];
	memset(block, 0xa5, sizeof(block));
	struct pgargs *a = pgargs_new();
	pgargs_array(a, PGT_I64);
	for (int i = 0; i < 2000; i++)
		i % 2 ? pgargs_i64(a, i) : pgargs_null(a, PGT_I64);
	pgargs_array_end(a);
	pgargs_array(a, PGT_BYTES);
	for (int i = 0; i < 2000; i++)
		pgargs_bytes(a, block, sizeof(block));
	pgargs_array_end(a);
	pgargs_text(a, "kept");
	return a;
}

START_TEST(large_batches_wait_for_their_turn_on_the_wire)
{
	struct outcome o[12]; /* of 3 MB each: far more than a socket buffer */
	world_pool(NULL, 1, 0, false);
	for (int i = 0; i < 12; i++)
		world_send1(&unnested, large_batch(), 0, &o[i]);
	for (int i = 0; i < 12; i++) {
		ck_assert_int_eq(world_await(&o[i]), PG_CLASS_OK);
		ck_assert_int_eq(o[i].first, 2000 * 1500 + 1000);
	}
}
END_TEST

/* ---- transactions */

STMT(put, "insert into t (n) values ($1)");
STMT(count_t, "select count(*), coalesce(sum(n), 0)::int8 from t");
STMT(count_backends, "select count(distinct pid) from t");
STMT(put_pid, "insert into t (n, pid) values ($1, pg_backend_pid())");

static struct pgargs *int_args(int64_t v)
{
	struct pgargs *a = pgargs_new();
	pgargs_i64(a, v);
	return a;
}

static void make_table(void)
{
	pgcluster_sql(world.cluster,
		"drop table if exists t; create table t (n int8, pid int, s text constraint s_short "
		"check (length(s) < 10), constraint t_n_key unique (n) deferrable initially immediate)");
}

static bool all_called(void *arg)
{
	const struct outcome *o = arg;
	for (unsigned i = 0; i < 1000; i++)
		if (o[i].calls == 0)
			return false;
	return true;
}

START_TEST(a_thousand_transactions_through_four_connections)
{
	struct outcome o;
	struct outcome *all = mem_calloc(1000, sizeof(*all));
	make_table();
	world_pool(NULL, 4, 0, false);
	world_wait_up(4);
	for (int i = 0; i < 1000; i++)
		world_send1(&put_pid, int_args(i), 0, &all[i]);
	world_wait("all of them", all_called, all);
	for (int i = 0; i < 1000; i++) {
		ck_assert_uint_eq(all[i].calls, 1);
		ck_assert_int_eq(all[i].r.class, PG_CLASS_OK);
		ck_assert(!all[i].inside);
	}
	ck_assert_int_eq(world_query(&count_t, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1000);
	ck_assert_int_eq(world_query(&count_backends, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 4);
	ck_assert_uint_eq(world.state_calls, 1);
	mem_free(all);
}
END_TEST

START_TEST(an_error_rolls_back_its_own_transaction_only)
{
	struct outcome before, bad, after, o;
	make_table();
	world_pool(NULL, 1, 0, false);
	world_send1(&put, int_args(1), 0, &before);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &put, int_args(2));
	pgtx_add(t, &put, int_args(1)); /* duplicate */
	pgtx_add(t, &put, int_args(3));
	world_send(t, 0, &bad);
	world_send1(&put, int_args(4), 0, &after);
	ck_assert_int_eq(world_await(&before), PG_CLASS_OK);
	ck_assert_int_eq(world_await(&bad), PG_CLASS_BUG);
	ck_assert_int_eq(world_await(&after), PG_CLASS_OK);
	ck_assert_str_eq(bad.r.sqlstate, "23505");
	ck_assert_str_eq(bad.r.constraint, "t_n_key");
	ck_assert_str_eq(bad.r.table, "t");
	ck_assert_uint_eq(bad.r.n, 0);
	ck_assert_int_eq(world_query(&count_t, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 2);
	ck_assert_uint_eq(world.state_calls, 1); /* the connection stayed */
}
END_TEST

STMT(put_text, "insert into t (s) values ($1)");
STMT(defer_all, "set constraints all deferred");

START_TEST(an_error_names_the_constraint_and_no_value)
{
	static const char secret[] = "SECRET-VALUE-IN-A-ROW";
	struct outcome o;
	make_table();
	world_pool(NULL, 1, 0, false);
	struct pgargs *a = pgargs_new();
	pgargs_text(a, secret);
	ck_assert_int_eq(world_query(&put_text, a, &o), PG_CLASS_BUG);
	ck_assert_str_eq(o.r.sqlstate, "23514");
	ck_assert_str_eq(o.r.constraint, "s_short");
	ck_assert_ptr_null(memmem(&o.r, sizeof(o.r), "SECRET", 6));
	ck_assert_ptr_null(strstr(pgpool_last_fault(world.pool)->text, "SECRET"));
}
END_TEST

START_TEST(an_error_at_commit_is_not_a_commit)
{
	struct outcome bad, after, o;
	make_table();
	world_pool(NULL, 1, 0, false);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &defer_all, NULL);
	pgtx_add(t, &put, int_args(7));
	pgtx_add(t, &put, int_args(7));
	world_send(t, 0, &bad);
	world_send1(&put, int_args(8), 0, &after);
	ck_assert_int_eq(world_await(&bad), PG_CLASS_BUG);
	ck_assert_str_eq(bad.r.sqlstate, "23505");
	ck_assert_str_eq(bad.r.constraint, "t_n_key");
	ck_assert_int_eq(world_await(&after), PG_CLASS_OK);
	ck_assert_int_eq(world_query(&count_t, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1);
}
END_TEST

/* ---- prepared statements */

STMT(broken_sql, "select from where");
STMT(no_table, "select n from not_there_yet where n = $1");
STMT(deallocate, "deallocate all");
STMT(divide, "select 1 / $1::int8");

START_TEST(a_failing_prepare_fails_only_its_own_transaction)
{
	struct outcome bad[4], good[4], o;
	make_table();
	world_pool(NULL, 1, 0, false);
	world_wait_up(1);
	for (int i = 0; i < 4; i++) {
		/* count_t is first prepared inside a transaction that has failed by then. */
		struct pgtx *t = pgtx_new();
		pgtx_add(t, i % 2 ? &divide : &broken_sql, i % 2 ? int_args(0) : NULL);
		pgtx_add(t, &count_t, NULL);
		world_send(t, 0, &bad[i]);
		world_send1(&count_t, NULL, 0, &good[i]);
	}
	for (int i = 0; i < 4; i++) {
		ck_assert_int_eq(world_await(&bad[i]), PG_CLASS_BUG);
		ck_assert_str_eq(bad[i].r.sqlstate, i % 2 ? "22012" : "42601");
		ck_assert_msg(world_await(&good[i]) == PG_CLASS_OK, "%d: %s", i, good[i].r.sqlstate);
	}
	ck_assert_int_eq(world_query(&no_table, int_args(1), &o), PG_CLASS_BUG);
	ck_assert_str_eq(o.r.sqlstate, "42P01");
	pgcluster_sql(world.cluster, "create table not_there_yet (n int8)");
	ck_assert_int_eq(world_query(&no_table, int_args(1), &o), PG_CLASS_OK);
	pgcluster_sql(world.cluster, "drop table not_there_yet");
	ck_assert_uint_eq(world.state_calls, 1);
}
END_TEST

STMT(nap, "select 1 from pg_sleep(0.05)");

START_TEST(a_second_try_does_not_rely_on_others)
{
	struct outcome bad[2], good, rest[6];
	make_table();
	world_pool(NULL, 1, 0, false);
	world_wait_up(1);
	/* The first prepares count_t in vain, the second trusts it; the second's second try comes behind the
	 * last, which waits for room in the pipeline and then prepares count_t in vain again. */
	for (int i = 0; i < 2; i++) {
		struct pgtx *t = pgtx_new();
		pgtx_add(t, &divide, int_args(0));
		pgtx_add(t, &count_t, NULL);
		world_send(t, 0, &bad[i]);
		if (i == 1)
			break;
		t = pgtx_new();
		pgtx_add(t, &nap, NULL);
		pgtx_add(t, &count_t, NULL);
		world_send(t, 0, &good);
		for (int k = 0; k < 6; k++)
			world_send1(&nap, NULL, 0, &rest[k]);
	}
	ck_assert_int_eq(world_await(&bad[0]), PG_CLASS_BUG);
	ck_assert_msg(world_await(&good) == PG_CLASS_OK, "%s", good.r.sqlstate);
	ck_assert_int_eq(world_await(&bad[1]), PG_CLASS_BUG);
	ck_assert_str_eq(bad[1].r.sqlstate, "22012");
	for (int k = 0; k < 6; k++)
		ck_assert_int_eq(world_await(&rest[k]), PG_CLASS_OK);
}
END_TEST

START_TEST(a_forgotten_statement_is_prepared_again)
{
	struct outcome all[3], o;
	make_table();
	world_pool(NULL, 1, 0, false);
	ck_assert_int_eq(world_query(&count_t, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(world_query(&deallocate, NULL, &o), PG_CLASS_OK);
	for (int i = 0; i < 3; i++)
		world_send1(&count_t, NULL, 0, &all[i]);
	for (int i = 0; i < 3; i++)
		ck_assert_msg(world_await(&all[i]) == PG_CLASS_OK, "%d: %s", i, all[i].r.sqlstate);
}
END_TEST

STMT(star, "select * from shape");

START_TEST(a_schema_change_replans)
{
	struct outcome all[3], o;
	pgcluster_sql(world.cluster,
		"drop table if exists shape; create table shape (a int8); insert into shape values (5)");
	world_pool(NULL, 1, 0, false);
	ck_assert_int_eq(world_query(&star, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.columns, 1);
	pgcluster_sql(world.cluster, "alter table shape add b int default 1");
	for (int i = 0; i < 3; i++)
		world_send1(&star, NULL, 0, &all[i]);
	for (int i = 0; i < 3; i++) {
		ck_assert_msg(world_await(&all[i]) == PG_CLASS_OK, "%d: %s", i, all[i].r.sqlstate);
		ck_assert_int_eq(all[i].columns, 2);
	}
	ck_assert_uint_eq(world.state_calls, 1);
}
END_TEST

STMT(by_key, "select count(*) from grown where id = $1");

static void look_up(void)
{
	struct outcome o;
	struct pgargs *a = pgargs_new();
	pgargs_i32(a, 3);
	ck_assert_int_eq(world_query(&by_key, a, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1);
}

static bool is_looked_up_by_key(void *arg)
{
	(void)arg;
	look_up();
	return strtol(pgcluster_sql(world.cluster, "select idx_scan from pg_stat_user_tables where relname = 'grown'"), NULL, 10) > 0;
}

/* Nobody analyses it, so that the server would keep the plan of the few rows for ever. */
START_TEST(a_plan_is_made_anew_for_a_table_that_grew)
{
	pgcluster_sql(world.cluster,
		"drop table if exists grown; create table grown (id int primary key) with (autovacuum_enabled = off);"
		" insert into grown select generate_series(1, 5)");
	pgcluster_sql(world.cluster, "vacuum analyze grown");
	world_pool(NULL, 1, 0, false);
	for (int i = 0; i < 10; i++)
		look_up();
	pgcluster_sql(world.cluster, "insert into grown select generate_series(6, 50000)");
	world_wait("a look-up by the key", is_looked_up_by_key, NULL);
}
END_TEST

/* ---- LISTEN */

static unsigned missed, payloads;
static char last_payload[32];

static void on_payload(void *arg, const char *payload)
{
	(void)arg;
	if (payload == NULL) {
		missed++;
		return;
	}
	payloads++;
	strncpy(last_payload, payload, sizeof(last_payload) - 1);
}

static bool missed_is(void *arg)
{
	return missed == *(unsigned *)arg;
}

static bool payloads_are(void *arg)
{
	return payloads == *(unsigned *)arg;
}

START_TEST(notifications_arrive_also_after_a_reconnection)
{
	unsigned one = 1, two = 2, three = 3;
	missed = payloads = 0;
	world_pool(NULL, 1, 0, false);
	pgpool_listen(world.pool, "Odd \"name", on_payload, NULL);
	world_wait("LISTEN", missed_is, &one);
	pgcluster_sql(world.cluster, "notify \"Odd \"\"name\", 'first'");
	world_wait("the payload", payloads_are, &one);
	ck_assert_str_eq(last_payload, "first");
	pgpool_listen(world.pool, "later", on_payload, NULL);
	world_wait("the second LISTEN", missed_is, &two);
	pgcluster_sql(world.cluster,
		"select pg_terminate_backend(pid) from pg_stat_activity where query like 'LISTEN%'");
	unsigned four = 4;
	world_wait("both again", missed_is, &four);
	pgcluster_sql(world.cluster, "notify later, 'second'; notify \"Odd \"\"name\", 'third'");
	world_wait("the payloads", payloads_are, &three);
	ck_assert_str_eq(last_payload, "third");
}
END_TEST

/* ---- through a pooler */

STMT(prepared_count, "select count(*) from pg_prepared_statements");
STMT(whoami, "select (current_setting('application_name') = 'pgtest')::int");

START_TEST(pgbouncer_in_transaction_mode)
{
	struct outcome o;
	struct outcome *all = mem_calloc(1000, sizeof(*all));
	unsigned none = 0;
	make_table();
	missed = 0;
	world_pool(pgcluster_bouncer_start(world.cluster), 4, 5 * US_PER_S, true);
	pgpool_listen(world.pool, "nothing", on_payload, NULL);
	world_wait_up(4);
	for (int i = 0; i < 1000; i++) {
		struct pgtx *t = pgtx_new();
		pgtx_add(t, &put, int_args(2 * i));
		pgtx_add(t, &put, int_args(i == 500 ? 0 : 2 * i + 1));
		world_send(t, 0, &all[i]);
	}
	world_wait("all of them", all_called, all);
	for (int i = 0; i < 1000; i++)
		ck_assert_msg(all[i].r.class == (i == 500 ? PG_CLASS_BUG : PG_CLASS_OK), "%d: %s %s", i,
			pg_class_word(all[i].r.class), all[i].r.sqlstate);
	ck_assert_int_eq(world_query(&count_t, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1998);
	ck_assert_int_eq(world_query(&prepared_count, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 0);
	ck_assert_int_eq(world_query(&whoami, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1);
	ck_assert(missed_is(&none));
	pgpool_free(world.pool);
	world.pool = NULL;
	pgcluster_bouncer_stop(world.cluster);
	mem_free(all);
}
END_TEST

/* ---- settings of the session */

STMT(settings,
	"select (current_setting('statement_timeout') = '7s' and current_setting('lock_timeout') = '3500ms' "
	"and "
	"current_setting('idle_in_transaction_session_timeout') = '8s' and current_setting('timezone') = "
	"'UTC' and current_setting('jit') = 'off' and current_setting('enable_bitmapscan') = 'off' and "
	"current_setting('client_encoding') = 'UTF8' and current_setting('application_name') = 'pgtest' and "
	"current_setting('work_mem') = '3MB')::int");
STMT(durable, "select (current_setting('synchronous_commit') = 'on')::int");
STMT(as_told, "select (current_setting('synchronous_commit') = 'remote_apply')::int");

START_TEST(the_session_is_bounded)
{
	struct outcome o;
	world_pool(pgcluster_url(world.cluster, "options='-c work_mem=3MB'"), 1, 7 * US_PER_S, false);
	ck_assert_int_eq(world_query(&settings, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1);
}
END_TEST

START_TEST(a_commit_is_durable_whatever_the_default_is)
{
	struct outcome o;
	(void)pgcluster_sql(world.cluster, "ALTER ROLE CURRENT_USER SET synchronous_commit = off");
	world_pool(NULL, 1, 7 * US_PER_S, false);
	ck_assert_int_eq(world_query(&durable, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1);
	world_pool(pgcluster_url(world.cluster, "options='-c synchronous_commit=remote_apply'"), 1, 7 * US_PER_S, false);
	ck_assert_int_eq(world_query(&as_told, NULL, &o), PG_CLASS_OK);
	ck_assert_int_eq(o.first, 1);
	(void)pgcluster_sql(world.cluster, "ALTER ROLE CURRENT_USER RESET synchronous_commit");
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("pgpool");
	TCase *tc = tcase_create("pgpool");
	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, world_open, world_close);
	unit_add(tc, every_type_round_trips);
	unit_add(tc, nulls_and_edges_round_trip);
	unit_add(tc, arrays_of_every_type_arrive);
	unit_add(tc, large_batches_wait_for_their_turn_on_the_wire);
	unit_add(tc, a_thousand_transactions_through_four_connections);
	unit_add(tc, an_error_rolls_back_its_own_transaction_only);
	unit_add(tc, an_error_names_the_constraint_and_no_value);
	unit_add(tc, an_error_at_commit_is_not_a_commit);
	unit_add(tc, a_failing_prepare_fails_only_its_own_transaction);
	unit_add(tc, a_second_try_does_not_rely_on_others);
	unit_add(tc, a_forgotten_statement_is_prepared_again);
	unit_add(tc, a_schema_change_replans);
	unit_add(tc, a_plan_is_made_anew_for_a_table_that_grew);
	unit_add(tc, notifications_arrive_also_after_a_reconnection);
	unit_add(tc, pgbouncer_in_transaction_mode);
	unit_add(tc, the_session_is_bounded);
	unit_add(tc, a_commit_is_durable_whatever_the_default_is);
	suite_add_tcase(s, tc);
	return s;
}
