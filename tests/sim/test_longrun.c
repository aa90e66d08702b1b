/*
 * test_longrun - hours of a small world with every fault at random, and the promises checked at the end.
 *
 * I1 no token is presented again once it was answered; I2 no two presentations of a family at one time (both judged by the
 * provider of world.c at each request); I3 the stored token is the live one, or the row says that it is not; I4 no healthy
 * connection expires while its provider answers. SIM_SEED repeats a run.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/sys.h"
#include "sim/world.h"
#include "unit/unit.h"

#define ROWS 200

struct plan {
	bool storm;	/* faults of the provider */
	bool outages;	/* the database goes away and comes back */
	bool deaths;	/* the process dies at any moment */
	bool imports;
};

static struct plan plan;
static int64_t quiet_from; /* mono; no faults from here on */

static uint64_t seed_of(uint64_t otherwise)
{
	const char *s = getenv("SIM_SEED");
	return s != NULL ? strtoull(s, NULL, 10) : otherwise;
}

static const int lives[] = { 60, 90, 300, 900, 3600 };

static enum mode any_mode(struct world *w, struct family *f, bool other)
{
	(void)other;
	w->expires_in = lives[f->consumer[1] % 5];
	w->latency_us = (int64_t)sys_random_below(US_PER_S) + US_PER_MS;
	if (!plan.storm || sys_mono_us() >= quiet_from)
		return ANSWER_OK;
	switch (sys_random_below(100)) {
	case 0:
		return ANSWER_500;
	case 1:
		return ANSWER_502;
	case 2:
		return ANSWER_CUT_BEFORE;
	case 3:
		return ANSWER_NEVER_SENT;
	case 4:
		return ANSWER_HANG;
	case 5:
		return sys_random_below(10) == 0 ? ANSWER_429 : ANSWER_OK;
	case 6:
		return sys_random_below(4) == 0 ? ANSWER_CUT_AFTER : ANSWER_OK;
	default:
		return ANSWER_OK;
	}
}

/* Half of the deaths come while answers wait for the database. */
static void die(struct world *w)
{
	if (sys_random_below(2) == 0) {
		fake_store_fail_persist(w->store, 1000, PG_CLASS_RETRY, false);
		fake_loop_run_for(w->loop, (int64_t)sys_random_below(5 * US_PER_S));
	}
	world_kill(w, false);
	fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
	world_replay(w);
}

static void act(struct world *w, struct fake_row **r)
{
	if (plan.outages && sys_random_below(120) == 0) {
		switch (sys_random_below(4)) {
		case 0:
			fake_store_fail_persist(w->store, (unsigned)sys_random_below(5), PG_CLASS_UNKNOWN, true);
			break;
		case 1:
			fake_store_fail_persist(w->store, (unsigned)sys_random_below(5), PG_CLASS_UNKNOWN, false);
			break;
		case 2:
			fake_store_fail_claim(w->store, (unsigned)sys_random_below(3), PG_CLASS_UNKNOWN, sys_random_below(2) == 0);
			break;
		default:
			fake_store_set_writable(w->store, false);
			fake_loop_run_for(w->loop, (int64_t)sys_random_below(20 * US_PER_S));
			fake_store_set_writable(w->store, true);
		}
	}
	if (plan.deaths && sys_random_below(100) == 0)
		die(w);
	if (plan.imports && sys_random_below(60) == 0) {
		struct fake_row *x = r[sys_random_below(ROWS)];
		struct family *f = world_family(w, x->consumer);
		if (f->busy_until > sys_mono_us() || x->owner != 0) /* while one is out the importer's token would be rotated away */
			return;
		char token[64];
		(void)snprintf(token, sizeof token, "rt-%s-%d", f->consumer, f->live);
		f->revoked = false;
		f->access_until = sys_wall_us() + SECONDS(60);
		fake_store_import(w->store, x, token, sys_wall_us() + SECONDS(30), sys_wall_us() + SECONDS(60));
	}
}

static unsigned check_rows(struct world *w, struct fake_row **r, uint64_t seed)
{
	unsigned lost = 0;
	for (int i = 0; i < ROWS; i++) {
		bool live = world_token_is_live(w, r[i]), marked = r[i]->health == HEALTH_NEEDS_AUTH || r[i]->doubts > 0;
		lost += marked;
		const struct family *f = world_family(w, r[i]->consumer);
		char have[256];
		fake_row_refresh_token(w->store, r[i], have);
		ck_assert_msg(live || marked, "seed %llu: %s holds %s, dead, and does not say so (live %d, revoked %d, health %d, due in %lld s)",
			(unsigned long long)seed, r[i]->consumer, have, f->live, f->revoked, (int)r[i]->health,
			(long long)((r[i]->due_at - sys_wall_us()) / US_PER_S));
		ck_assert_msg(!(r[i]->reason == REASON_INVALID_GRANT), "seed %llu: %s: a grant that nobody took back is called dead",
			(unsigned long long)seed, r[i]->consumer);
		ck_assert_uint_le(world_events(r[i], EVENT_REFRESH_FAILED), 1 + (unsigned)r[i]->imports);
	}
	return lost;
}

/* After the faults: nothing in hand, nothing in the journal, no lease. */
static void check_rest(struct world *w, struct fake_row **r)
{
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 0);
	scheduler_stop(w->scheduler);
	fake_loop_run_for(w->loop, MINUTES(3));
	ck_assert_uint_eq(refresh_in_flight(w->refresh), 0);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	ck_assert_uint_eq(gate_in_flight(budget_gate(w->budget, "app", "sim")), 0);
	for (int i = 0; i < ROWS; i++)
		ck_assert_int_eq(r[i]->owner, 0);
}

static unsigned run(struct plan p, const char *rotation, int hours, uint64_t otherwise, bool expire_never)
{
	uint64_t seed = seed_of(otherwise);
	(void)printf("# seed %llu\n", (unsigned long long)seed);
	struct world *w = world_new(seed, rotation, "max_in_flight: 64", true);
	static struct fake_row *r[ROWS];
	plan = p;
	quiet_from = sys_mono_us() + HOURS(hours);
	w->choose = any_mode;
	w->journal_delay_us = 3 * US_PER_MS;
	fake_journal_set_delay(w->journal_delay_us);
	fake_store_set_delay(w->store, 2 * US_PER_MS);
	for (int i = 0; i < ROWS; i++) {
		char name[16];
		(void)snprintf(name, sizeof name, "c%d", i);
		int64_t due = (int64_t)sys_random_below(SECONDS(120));
		r[i] = world_add(w, name, due, due + SECONDS(60));
	}
	scheduler_start(w->scheduler);
	while (sys_mono_us() < quiet_from) {
		fake_loop_run_for(w->loop, US_PER_S);
		act(w, r);
		for (int i = 0; expire_never && i < ROWS; i++)
			ck_assert_msg(r[i]->expires_at > sys_wall_us(), "seed %llu: %s expired after %lld s: due %lld s ago, health %d, lease %d",
				(unsigned long long)seed, r[i]->consumer, (long long)((sys_wall_us() - SYS_VIRTUAL_WALL_US) / US_PER_S),
				(long long)((sys_wall_us() - r[i]->due_at) / US_PER_S), (int)r[i]->health, r[i]->owner != 0);
	}
	fake_store_set_writable(w->store, true);
	fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
	fake_store_fail_claim(w->store, 0, PG_CLASS_OK, false);
	fake_loop_run_for(w->loop, MINUTES(40)); /* the longest backoff is a quarter of an hour */
	for (int i = 0; i < ROWS; i++)
		ck_assert_int_ge(r[i]->health == HEALTH_OK ? r[i]->expires_at : INT64_MAX, sys_wall_us());
	check_rest(w, r);
	unsigned lost = check_rows(w, r, seed);
	(void)printf("# %u requests, %u marked, %u starts, %u replies replayed\n", w->sent, lost, w->replays, w->all_replayed);
	world_end(w);
	return lost;
}

START_TEST(healthy_provider_lets_nothing_expire)
{
	ck_assert_uint_eq(run((struct plan){ .imports = true }, "rotation: strict", 3, 101, true), 0);
}
END_TEST

START_TEST(storm_with_strict_rotation)
{
	unsigned lost = run((struct plan){ .storm = true }, "rotation: strict", 2, 102, false);
	ck_assert_uint_gt(lost, 0); /* answers that were lost for good: the test would be blind without them */
	ck_assert_uint_lt(lost, ROWS);
}
END_TEST

START_TEST(storm_with_grace_loses_nothing)
{
	ck_assert_uint_eq(run((struct plan){ .storm = true }, "rotation: grace, rotation_grace: 10m", 2, 103, false), 0);
}
END_TEST

START_TEST(database_outages_lose_nothing)
{
	ck_assert_uint_eq(run((struct plan){ .outages = true }, "rotation: strict", 2, 104, false), 0);
}
END_TEST

START_TEST(deaths_and_outages_with_grace_lose_nothing)
{
	ck_assert_uint_eq(run((struct plan){ .outages = true, .deaths = true }, "rotation: grace, rotation_grace: 10m", 2, 105, false), 0);
}
END_TEST

START_TEST(everything_at_once)
{
	(void)run((struct plan){ .storm = true, .outages = true, .deaths = true, .imports = true }, "rotation: strict", 2, 106, false);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("longrun");
	TCase *t = tcase_create("longrun");
	tcase_set_timeout(t, 120);
	unit_add(t, healthy_provider_lets_nothing_expire);
	unit_add(t, storm_with_strict_rotation);
	unit_add(t, storm_with_grace_loses_nothing);
	unit_add(t, database_outages_lose_nothing);
	unit_add(t, deaths_and_outages_with_grace_lose_nothing);
	unit_add(t, everything_at_once);
	suite_add_tcase(s, t);
	return s;
}
