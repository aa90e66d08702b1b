/*
 * test_health - when the gauges are asked for, and when the whole table is counted with them; on a clock that stands still.
 *
 * Everything that health asks is answered here, so that nothing of the store and the scheduler is linked.
 */
#include <check.h>

#include "base/metrics.h"
#include "base/sys.h"
#include "io/journal.h"
#include "io/pgpool.h"
#include "service/health.h"
#include "service/store_refresh.h"
#include "unit/unit.h"

#define POLL_US (5 * US_PER_S)

static store_gauges_fn *asked; /* what waits for its answer */
static void *asked_arg;
static unsigned asks, counts;

int store_gauges(struct store *s, bool count_states, store_gauges_fn *fn, void *arg)
{
	(void)s;
	ck_assert_ptr_null(asked);
	asked = fn;
	asked_arg = arg;
	asks++;
	counts += count_states;
	return 0;
}

enum store_state store_state(const struct store *s)
{
	(void)s;
	return STORE_READY;
}

const char *store_state_word(enum store_state s)
{
	(void)s;
	return "ready";
}

bool store_writable(const struct store *s)
{
	(void)s;
	return true;
}

const char *store_why(const struct store *s)
{
	(void)s;
	return "";
}

struct pgpool *store_pool(struct store *s)
{
	(void)s;
	return NULL;
}

unsigned pgpool_connected(const struct pgpool *p)
{
	(void)p;
	return 1;
}

bool journal_writable(const struct journal *j)
{
	(void)j;
	return true;
}

uint64_t journal_open_records(const struct journal *j)
{
	(void)j;
	return 0;
}

void scheduler_figures(const struct scheduler *s, struct scheduler_figures *out)
{
	(void)s;
	*out = (struct scheduler_figures){ .entries = 0 };
}

unsigned refresh_in_flight(const struct refresh *r)
{
	(void)r;
	return 0;
}

/* ---------------------------------------------------------------- */

static struct health *health;
static struct health_parts parts;

static void setup(void)
{
	sys_set(sys_virtual(7));
	asked = NULL;
	asks = counts = 0;
	parts = (struct health_parts){ .store = (struct store *)&parts };
	health = health_new(NULL, &parts);
}

static void teardown(void)
{
	health_free(health);
	metrics_reset();
	sys_set(NULL);
}

/* Polls until it asks, then answers after `took_us`: a count that fails when `limit_us` is over, the rest always well. */
static void ask(int64_t took_us, int64_t limit_us)
{
	unsigned counted = counts;
	for (health_poll(health); asked == NULL; health_poll(health))
		sys_virtual_advance(POLL_US);
	bool counting = counts > counted;
	const struct store_gauges g = { .orphans = 3, .by_state = { counting ? 1 : -1, 0, 0, 0, 0 } };
	store_gauges_fn *fn = asked;
	asked = NULL;
	if (counting)
		sys_virtual_advance(took_us < limit_us ? took_us : limit_us);
	fn(asked_arg, counting && took_us >= limit_us ? ST_UNAVAILABLE : 0, &g);
}

START_TEST(a_count_is_the_rarer_the_longer_it_takes)
{
	ask(2 * US_PER_S, INT64_MAX);
	ck_assert_uint_eq(counts, 1);
	int64_t end = sys_mono_us() + 1900 * US_PER_S;
	while (sys_mono_us() < end)
		ask(2 * US_PER_S, INT64_MAX);
	ck_assert_uint_eq(counts, 1);
	for (int i = 0; i < 30; i++)
		ask(2 * US_PER_S, INT64_MAX);
	ck_assert_uint_eq(counts, 2);
	ck_assert(asks > 150);
}
END_TEST

/* The table has outgrown the time that a statement may take. */
START_TEST(a_count_that_never_succeeds_does_not_keep_the_other_gauges)
{
	for (int i = 0; i < 20; i++)
		ask(60 * US_PER_S, 15 * US_PER_S);
	ck_assert_uint_eq(asks, 20);
	ck_assert_uint_eq(counts, 1);
	ck_assert(series_value(metrics_get(M_ORPHANS, NULL, NULL)) == 3);
	int64_t end = sys_mono_us() + 3600 * US_PER_S;
	while (sys_mono_us() < end)
		ask(60 * US_PER_S, 15 * US_PER_S);
	ck_assert_uint_eq(counts, 2); /* it is tried now and then: a server that was slow may be well again */
}
END_TEST

START_TEST(a_count_that_failed_at_once_is_tried_soon)
{
	ask(US_PER_S / 10, US_PER_S / 10);
	int64_t end = sys_mono_us() + 200 * US_PER_S;
	while (sys_mono_us() < end)
		ask(US_PER_S / 100, US_PER_S);
	ck_assert(counts >= 2);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("health");
	TCase *t = tcase_create("health");
	tcase_add_checked_fixture(t, setup, teardown);
	unit_add(t, a_count_is_the_rarer_the_longer_it_takes);
	unit_add(t, a_count_that_never_succeeds_does_not_keep_the_other_gauges);
	unit_add(t, a_count_that_failed_at_once_is_tried_soon);
	suite_add_tcase(s, t);
	return s;
}
