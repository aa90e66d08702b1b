/*
 * test_many - one daemon of several: it looks after its slots alone, takes over and hands over, and leaves to others what
 * they may still have the answer of.
 */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/slots.h"
#include "sim/world.h"
#include "unit/unit.h"

#define STRICT "rotation: strict"
#define HERD 120
#define OTHER_EPOCH 99

static const char *const NAMES[] = { "a", "b", "c" };

static struct slots part(size_t n, size_t self)
{
	struct slots own;
	slots_divide(NAMES, n, self, &own, NULL);
	return own;
}

static void give(struct world *w, struct slots own)
{
	scheduler_set_slots(w->scheduler, &own);
}

static bool in(const struct slots *s, const struct fake_row *r)
{
	return slots_has(s, (unsigned)conn_slot_of(r->id));
}

static void add_herd(struct world *w, struct fake_row **r, int64_t due_in)
{
	for (int i = 0; i < HERD; i++) {
		char name[16];
		(void)snprintf(name, sizeof name, "c%d", i);
		r[i] = world_add(w, name, due_in, due_in + SECONDS(900));
	}
}

/* All rows of `own` were refreshed, and none beside. */
static void check_refreshed(struct fake_row *const *r, const struct slots *own)
{
	for (int i = 0; i < HERD; i++)
		ck_assert_int_eq(r[i]->refreshes, in(own, r[i]) ? 1 : 0);
}

static struct fake_row *first_outside(struct fake_row *const *r, const struct slots *own)
{
	int i = 0;
	while (in(own, r[i]))
		i++;
	return r[i];
}

START_TEST(only_our_slots_are_loaded)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots own = part(3, 1);
	add_herd(w, r, SECONDS(20));
	give(w, own);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, MINUTES(2));
	check_refreshed(r, &own);
	ck_assert_uint_gt(w->sent, HERD / 5);
	ck_assert_uint_lt(w->sent, HERD / 2);
	world_end(w);
}
END_TEST

START_TEST(without_a_slot_nothing_is_asked)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots none;
	slots_none(&none);
	add_herd(w, r, 0);
	give(w, none);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, MINUTES(2));
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_uint_eq(fake_store_counts(w->store)->polls, 0);
	world_end(w);
}
END_TEST

/* One of three dies: its rows, also those that the cursor had passed long ago, are in memory before anything else happens. */
START_TEST(gained_slots_are_loaded_at_once)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots own = part(3, 0), more = part(2, 0);
	struct scheduler_figures f;
	add_herd(w, r, SECONDS(100));
	give(w, own);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(32));
	scheduler_figures(w->scheduler, &f);
	unsigned before = (unsigned)f.entries, expected = 0;
	slots_merge(&own, &more);
	for (int i = 0; i < HERD; i++)
		expected += in(&own, r[i]);
	ck_assert_uint_gt(expected, before);
	give(w, own);
	fake_loop_run_for(w->loop, US_PER_MS);
	scheduler_figures(w->scheduler, &f);
	ck_assert_uint_eq(f.entries, expected);
	fake_loop_run_for(w->loop, SECONDS(70));
	check_refreshed(r, &own);
	world_end(w);
}
END_TEST

START_TEST(slots_gained_while_the_database_is_slow_are_not_lost)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots own = part(3, 0), next = part(2, 0), all;
	slots_all(&all);
	add_herd(w, r, SECONDS(60));
	give(w, own);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(4));
	fake_store_set_delay(w->store, SECONDS(2));
	fake_loop_run_for(w->loop, SECONDS(2));
	slots_merge(&next, &own);
	give(w, next);
	fake_loop_run_for(w->loop, SECONDS(1));
	give(w, all); /* while the first gain is being read */
	fake_loop_run_for(w->loop, SECONDS(10));
	fake_store_set_delay(w->store, 0);
	struct scheduler_figures f;
	scheduler_figures(w->scheduler, &f);
	ck_assert_uint_eq(f.entries, HERD); /* not only when they are due */
	fake_loop_run_for(w->loop, SECONDS(60));
	check_refreshed(r, &all);
	world_end(w);
}
END_TEST

START_TEST(gain_that_failed_is_asked_for_again)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots own = part(2, 0), all;
	slots_all(&all);
	add_herd(w, r, SECONDS(60));
	give(w, own);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(6));
	fake_store_set_writable(w->store, false);
	give(w, all);
	fake_loop_run_for(w->loop, SECONDS(6));
	fake_store_set_writable(w->store, true);
	fake_loop_run_for(w->loop, SECONDS(5));
	struct scheduler_figures f;
	scheduler_figures(w->scheduler, &f);
	ck_assert_uint_eq(f.entries, HERD);
	world_end(w);
}
END_TEST

START_TEST(lost_slots_are_left_to_the_others)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots own = part(2, 1);
	add_herd(w, r, SECONDS(30));
	scheduler_start(w->scheduler); /* alone: everything is ours */
	fake_loop_run_for(w->loop, SECONDS(29));
	give(w, own);
	fake_loop_run_for(w->loop, MINUTES(2));
	check_refreshed(r, &own);
	struct scheduler_figures f;
	scheduler_figures(w->scheduler, &f);
	ck_assert_uint_eq(f.entries, 0);
	ck_assert_uint_eq(fake_store_counts(w->store)->claimed_rows, w->sent); /* not even asked for */
	world_end(w);
}
END_TEST

START_TEST(a_live_set_that_flaps_costs_no_memory_and_no_double_work)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots all;
	slots_all(&all);
	add_herd(w, r, SECONDS(60));
	scheduler_start(w->scheduler);
	unsigned polls = fake_store_counts(w->store)->polls;
	for (int i = 0; i < 40; i++) {
		give(w, i % 2 == 0 ? part(2, 0) : all);
		fake_loop_run_for(w->loop, US_PER_S);
		struct scheduler_figures f;
		scheduler_figures(w->scheduler, &f);
		ck_assert_uint_le(f.entries, HERD);
	}
	ck_assert_uint_le(fake_store_counts(w->store)->polls - polls, 40 * 3);
	fake_loop_run_for(w->loop, MINUTES(1));
	check_refreshed(r, &all);
	world_end(w);
}
END_TEST

START_TEST(explicit_act_is_served_whatever_its_slot)
{
	struct world *w = world_new(5, STRICT, "", true);
	struct fake_row *r[HERD];
	struct slots own = part(3, 2);
	add_herd(w, r, SECONDS(200));
	give(w, own);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(2));
	struct fake_row *x = first_outside(r, &own);
	ck_assert(!scheduler_owns(w->scheduler, x->id));
	x->due_at = sys_wall_us();
	scheduler_look_at(w->scheduler, x->id);
	fake_loop_run_for(w->loop, US_PER_S);
	ck_assert_uint_eq(w->sent, 1);
	ck_assert_int_eq(x->refreshes, 1);
	/* What is due later is its owner's. */
	scheduler_add(w->scheduler, "app", "sim", x->id, sys_wall_us() + SECONDS(60));
	fake_loop_run_for(w->loop, SECONDS(90));
	ck_assert_uint_eq(fake_store_counts(w->store)->claims, 1);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- leases of others */

static struct fake_row *foreign(struct world *w, const char *name, int64_t lease_left)
{
	struct fake_row *r = world_add(w, name, -SECONDS(60), HOURS(1));
	r->owner = OTHER_EPOCH;
	r->attempt = (int64_t)OTHER_EPOCH << 40 | 5;
	r->lease_until = sys_wall_us() + lease_left;
	return r;
}

START_TEST(foreign_lease_is_left_to_its_owner_for_the_delay)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 10m", true);
	struct fake_row *r = foreign(w, "c", SECONDS(30));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(30) + MINUTES(10) - US_PER_S);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_uint_eq(fake_store_counts(w->store)->claims, 0); /* it waits in memory */
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert_uint_eq(w->sent, 1);
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

START_TEST(takeover_counts_the_doubt)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 1m", true);
	struct fake_row *r = foreign(w, "c", 0);
	scheduler_start(w->scheduler);
	w->mode = ANSWER_DEAD;
	fake_loop_run_for(w->loop, MINUTES(2));
	ck_assert_int_eq(r->reason, REASON_ROTATION_LOST);
	world_end(w);
}
END_TEST

START_TEST(owner_that_writes_in_time_is_not_disturbed)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 10m", true);
	struct fake_row *r = foreign(w, "c", SECONDS(10));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, MINUTES(9));
	r->owner = r->lease_until = 0; /* its result */
	r->due_at = sys_wall_us() + HOURS(1);
	fake_loop_run_for(w->loop, MINUTES(10));
	ck_assert_uint_eq(w->sent, 0);
	world_end(w);
}
END_TEST

/* Whoever has it gets half a minute, and then it is refreshed. */
static void expect_in_half_a_minute(struct world *w, const struct fake_row *r)
{
	fake_loop_run_for(w->loop, SECONDS(29));
	ck_assert_uint_eq(w->sent, 0);
	fake_loop_run_for(w->loop, SECONDS(7));
	ck_assert_int_eq(r->refreshes, 1);
}

START_TEST(where_nothing_rotates_there_is_no_delay)
{
	struct world *w = world_new(5, "rotation: none", "takeover_delay: 1d", true);
	struct fake_row *r = foreign(w, "c", SECONDS(30));
	scheduler_start(w->scheduler);
	expect_in_half_a_minute(w, r);
	world_end(w);
}
END_TEST

START_TEST(what_an_operator_gave_up_goes_at_once)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 1d", true);
	struct fake_row *r = foreign(w, "c", -SECONDS(5));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, MINUTES(5));
	ck_assert_uint_eq(w->sent, 0);
	r->owner = FAKE_NOBODY;
	scheduler_poll(w->scheduler);
	fake_loop_run_for(w->loop, US_PER_S);
	ck_assert_int_eq(r->refreshes, 1);
	fake_loop_run_for(w->loop, HOURS(1) - MINUTES(6));
	ck_assert_uint_le(w->sent, 2); /* the entry that waited finds nothing */
	world_end(w);
}
END_TEST

START_TEST(lease_that_an_import_voided_is_nobodys)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 1d", true);
	struct fake_row *r = foreign(w, "c", SECONDS(20));
	fake_store_import(w->store, r, "rt-c-0", sys_wall_us(), sys_wall_us() + HOURS(1));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(27));
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

START_TEST(our_own_former_leases_are_not_foreign)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 1d", true);
	struct fake_row *r = world_add(w, "c", SECONDS(2), SECONDS(600));
	w->latency_us = SECONDS(5);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(3));
	ck_assert_uint_eq(w->sent, 1);
	w->latency_us = 50 * US_PER_MS;
	world_family(w, "c")->live = 0; /* the provider never saw it */
	world_kill(w, true);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert_uint_eq(w->sent, 2);
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

/* Ten seconds of work, then a database that is away for longer than any delay. */
static void outage(struct world *w)
{
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(10));
	fake_store_set_writable(w->store, false);
	fake_loop_run_for(w->loop, MINUTES(10));
	fake_store_set_writable(w->store, true);
}

/* The database was away for everybody, longer than any delay: owners write first. */
START_TEST(after_an_outage_the_owners_come_first)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 1m", true);
	struct fake_row *r = foreign(w, "c", SECONDS(20));
	outage(w);
	scheduler_replan(w->scheduler);
	expect_in_half_a_minute(w, r);
	world_end(w);
}
END_TEST

/* The same when the entry was in memory all the time and nobody replans. */
START_TEST(after_an_outage_an_entry_in_memory_waits_as_well)
{
	struct world *w = world_new(5, STRICT, "takeover_delay: 1m", true);
	struct fake_row *r = foreign(w, "c", -SECONDS(1));
	outage(w);
	scheduler_kick(w->scheduler);
	expect_in_half_a_minute(w, r);
	world_end(w);
}
END_TEST

/* A provider with more overdue rows than memory is willing to hold does not shut out the others. */
START_TEST(a_full_lane_leaves_room_for_others)
{
	struct world *w = world_new(5, STRICT ", max_in_flight: 1", "", true);
	(void)world_add(w, "first", 0, SECONDS(600));
	w->latency_us = SECONDS(40);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, US_PER_S); /* the one that the provider allows is out */
	ck_assert_uint_eq(w->sent, 1);
	int64_t now = sys_wall_us();
	uint8_t id[16] = { 0 };
	for (uint32_t i = 0; i < 600000; i++) {
		memcpy(id + 8, &i, sizeof i);
		scheduler_add(w->scheduler, "app", "sim", id, now);
	}
	struct scheduler_figures f;
	scheduler_figures(w->scheduler, &f);
	ck_assert_uint_eq(f.entries, 500000);
	struct fake_row *r = world_add_to(w, "other", "x", 0, SECONDS(600));
	fake_loop_run_for(w->loop, SECONDS(6));
	ck_assert_int_eq(r->lease_until != 0, 1);
	world_end(w);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("many");
	TCase *t = tcase_create("many");
	tcase_set_timeout(t, 60);
	unit_add(t, only_our_slots_are_loaded);
	unit_add(t, without_a_slot_nothing_is_asked);
	unit_add(t, gained_slots_are_loaded_at_once);
	unit_add(t, slots_gained_while_the_database_is_slow_are_not_lost);
	unit_add(t, gain_that_failed_is_asked_for_again);
	unit_add(t, lost_slots_are_left_to_the_others);
	unit_add(t, a_live_set_that_flaps_costs_no_memory_and_no_double_work);
	unit_add(t, explicit_act_is_served_whatever_its_slot);
	unit_add(t, foreign_lease_is_left_to_its_owner_for_the_delay);
	unit_add(t, takeover_counts_the_doubt);
	unit_add(t, owner_that_writes_in_time_is_not_disturbed);
	unit_add(t, where_nothing_rotates_there_is_no_delay);
	unit_add(t, what_an_operator_gave_up_goes_at_once);
	unit_add(t, lease_that_an_import_voided_is_nobodys);
	unit_add(t, our_own_former_leases_are_not_foreign);
	unit_add(t, after_an_outage_the_owners_come_first);
	unit_add(t, after_an_outage_an_entry_in_memory_waits_as_well);
	unit_add(t, a_full_lane_leaves_room_for_others);
	suite_add_tcase(s, t);
	return s;
}
