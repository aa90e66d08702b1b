/* pgworld - see pgworld.h. Real time on purpose: the peer is a real server. */
#include "integration/pgworld.h"

#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#include "base/mem.h"
#include "base/sys.h"
#include "unit/unit.h"

#define DEADLINE_US (20 * US_PER_S)

struct world world;

void world_fini(void)
{
	pgcluster_free(world.cluster);
	world.cluster = NULL;
}

void world_resolver(const char *resolv_conf, const char *hosts_file, int64_t timeout_us)
{
	struct fault f = {.code = 0};
	const struct resolver_params rp = {
		.resolv_conf = resolv_conf, .hosts_file = hosts_file, .timeout_us = timeout_us};
	resolver_free(world.resolver);
	world.resolver = NULL;
	ck_assert_msg(resolver_new(world.loop, &rp, &world.resolver, &f) == 0, "%s", f.text);
}

void world_open(void)
{
	struct fault f = {.code = 0};
	if (world.cluster == NULL) {
		world.cluster = pgcluster_new();
		ck_assert_int_eq(atexit(world_fini), 0);
	}
	pgcluster_start(world.cluster);
	ck_assert_msg(loop_new(&world.loop, &f) == 0, "%s", f.text);
	world_resolver(NULL, NULL, 2 * US_PER_S);
	world.state_calls = 0;
	world.up = false;
	world.why.code = 0;
}

void world_close(void)
{
	pgpool_free(world.pool);
	world.pool = NULL;
	resolver_free(world.resolver);
	world.resolver = NULL;
	loop_free(world.loop);
}

void world_wait(const char *what, bool (*cond)(void *arg), void *arg)
{
	int64_t end_us = sys_mono_us() + DEADLINE_US;
	while (!cond(arg)) {
		ck_assert_msg(sys_mono_us() < end_us, "waited too long for %s (last fault: %s)", what,
			world.pool != NULL ? pgpool_last_fault(world.pool)->text : "");
		loop_once(world.loop, 100 * US_PER_MS);
	}
}

void world_run_ms(int ms)
{
	int64_t end_us = sys_mono_us() + ms * US_PER_MS;
	int64_t left_us;
	while ((left_us = end_us - sys_mono_us()) > 0)
		loop_once(world.loop, left_us);
}

static void on_state(void *arg, bool up, const struct fault *why)
{
	(void)arg;
	ck_assert(!world.sending);
	world.state_calls++;
	world.up = up;
	if (!up)
		world.why = *why;
}

struct pgpool *world_pool(const char *url, unsigned size, int64_t statement_timeout_us, bool pooler)
{
	struct fault f = {.code = 0};
	struct pgpool_params p = {
		.url = url != NULL ? url : pgcluster_url(world.cluster, ""),
		.application_name = "pgtest",
		.size = size,
		.pooler_transaction = pooler,
		.statement_timeout_us = statement_timeout_us,
	};
	pgpool_free(world.pool);
	world.pool = NULL;
	int rc = pgpool_new(world.loop, world.resolver, &p, &world.pool, &f);
	ck_assert_msg(rc == 0, "%s", f.text);
	pgpool_on_state(world.pool, on_state, NULL);
	return world.pool;
}

static bool is_connected(void *arg)
{
	return pgpool_connected(world.pool) == *(unsigned *)arg && world.up;
}

void world_wait_up(unsigned connections)
{
	world_wait("the pool to come up", is_connected, &connections);
}

static bool is_down(void *arg)
{
	(void)arg;
	return !world.up && world.why.code != 0;
}

void world_wait_down(void)
{
	world_wait("the pool to go down", is_down, NULL);
}

static void on_outcome(void *arg, const struct pgtx_result *r)
{
	struct outcome *o = arg;
	o->calls++;
	o->inside |= world.sending;
	o->r = *r;
	if (r->n > 0) {
		const struct pgresult *last = &r->results[r->n - 1];
		o->rows = pgresult_rows(last);
		o->columns = PQnfields(last->res);
		if (o->rows > 0 && (PQftype(last->res, 0) == 20 || PQftype(last->res, 0) == 23) &&
			!pgresult_null(last, 0, 0))
			o->first = pgresult_int(last, 0, 0);
	}
	o->r.results = NULL;
}

void world_send(struct pgtx *t, int64_t wait_us, struct outcome *o)
{
	*o = (struct outcome){.calls = 0};
	world.sending = true;
	int rc = pgpool_send(world.pool, t, wait_us, on_outcome, o);
	world.sending = false;
	ck_assert_int_eq(rc, 0);
}

void world_send1(const struct pgstmt *s, struct pgargs *a, int64_t wait_us, struct outcome *o)
{
	struct pgtx *t = pgtx_new();
	pgtx_add(t, s, a);
	world_send(t, wait_us, o);
}

static bool has_outcome(void *arg)
{
	return ((struct outcome *)arg)->calls > 0;
}

enum pg_class world_await(struct outcome *o)
{
	world_wait("an outcome", has_outcome, o);
	ck_assert_uint_eq(o->calls, 1);
	ck_assert(!o->inside);
	return o->r.class;
}

enum pg_class world_query(const struct pgstmt *s, struct pgargs *a, struct outcome *o)
{
	world_send1(s, a, 0, o);
	return world_await(o);
}
