/*
 * test_scheduler - what becomes due is handed over in time, in order and within every budget; nothing else wakes up.
 */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "sim/world.h"
#include "unit/unit.h"

#define STRICT "rotation: strict"

static struct world *start(const char *provider, const char *refresh)
{
	return world_new(5, provider, refresh, true);
}

static struct scheduler_figures figures(struct world *w)
{
	struct scheduler_figures f;
	scheduler_figures(w->scheduler, &f);
	return f;
}

static void add_herd(struct world *w, struct fake_row **r, int n, const char *prefix, const char *service, int64_t due_in)
{
	for (int i = 0; i < n; i++) {
		char name[16];
		(void)snprintf(name, sizeof name, "%s%d", prefix, i);
		r[i] = world_add_to(w, service, name, due_in, due_in + SECONDS(600));
	}
}

/* Rows refreshed since the start, and how late the last one was against its first due time. */
static int count_refreshed(struct fake_row *const *r, int n)
{
	int done = 0;
	for (int i = 0; i < n; i++)
		done += r[i]->refreshes > 0;
	return done;
}

START_TEST(each_goes_at_its_due_time)
{
	struct world *w = start(STRICT, "");
	struct fake_row *late = world_add(w, "late", SECONDS(40), SECONDS(600)), *soon = world_add(w, "soon", SECONDS(20), SECONDS(600));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(20) - 1);
	ck_assert_uint_eq(w->sent, 0);
	fake_loop_run_for(w->loop, US_PER_MS);
	ck_assert_uint_eq(w->sent, 1);
	ck_assert_str_eq(w->last_sent, "rt-soon-0");
	fake_loop_run_for(w->loop, SECONDS(20));
	ck_assert_uint_eq(w->sent, 2);
	ck_assert_str_eq(w->last_sent, "rt-late-0");
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_int_eq(soon->refreshes + late->refreshes, 2);
	world_end(w);
}
END_TEST

START_TEST(it_comes_back_before_each_expiry)
{
	struct world *w = start(STRICT, "");
	w->expires_in = 120;
	struct fake_row *r = world_add(w, "c", SECONDS(5), SECONDS(60));
	scheduler_start(w->scheduler);
	for (int i = 0; i < 3600; i++) {
		fake_loop_run_for(w->loop, SECONDS(1));
		ck_assert_int_gt(r->expires_at, sys_wall_us());
	}
	ck_assert_int_ge(r->refreshes, 59);
	ck_assert_int_le(r->refreshes, 70);
	world_end(w);
}
END_TEST

START_TEST(what_lies_beyond_the_horizon_takes_no_memory)
{
	struct world *w = start(STRICT, "horizon: 1m");
	struct fake_row *near[10], *far[10];
	add_herd(w, near, 10, "near", "sim", SECONDS(50));
	add_herd(w, far, 10, "far", "sim", SECONDS(90));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, US_PER_S);
	ck_assert_uint_eq(figures(w).entries, 10);
	fake_loop_run_for(w->loop, SECONDS(28));
	ck_assert_uint_eq(figures(w).entries, 10);
	fake_loop_run_for(w->loop, SECONDS(20)); /* a quarter of the horizon and a poll later at most */
	ck_assert_uint_eq(figures(w).entries, 20);
	fake_loop_run_for(w->loop, SECONDS(47));
	ck_assert_int_eq(count_refreshed(far, 10), 10);
	ck_assert_uint_eq(figures(w).entries, 0); /* the next due times are far away again */
	world_end(w);
}
END_TEST

START_TEST(forward_poll_does_not_look_back_and_the_overdue_poll_finds_what_came_later)
{
	struct world *w = start(STRICT, "");
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(1));
	struct fake_row *r = world_add(w, "imported", SECONDS(100), SECONDS(600));
	fake_loop_run_for(w->loop, SECONDS(98));
	ck_assert_uint_eq(figures(w).entries, 0);
	fake_loop_run_for(w->loop, SECONDS(8));
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

START_TEST(missing_expiry_is_refreshed_within_a_poll)
{
	struct world *w = start(STRICT, "");
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, MINUTES(1));
	struct fake_row *r = world_add(w, "imported", 0, 0);
	fake_loop_run_for(w->loop, SECONDS(6));
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

START_TEST(row_made_due_sooner_is_found_although_it_is_in_memory)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r = world_add(w, "c", SECONDS(200), SECONDS(900));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(11));
	ck_assert_uint_eq(figures(w).entries, 1);
	fake_store_import(w->store, r, "rt-c-0", sys_wall_us() + SECONDS(10), sys_wall_us() + SECONDS(30));
	fake_loop_run_for(w->loop, SECONDS(16));
	ck_assert_int_eq(r->refreshes, 1);
	fake_loop_run_for(w->loop, SECONDS(300)); /* the old entry finds nothing */
	ck_assert_uint_eq(w->sent, 1);
	world_end(w);
}
END_TEST

/* A provider that is down makes its rows overdue for long: they are read by every poll and must not pile up. */
START_TEST(overdue_rows_do_not_pile_up_in_memory)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[50];
	w->mode = ANSWER_NEVER_SENT;
	add_herd(w, r, 50, "c", "sim", SECONDS(20));
	scheduler_start(w->scheduler);
	for (int i = 0; i < 360; i++) {
		fake_loop_run_for(w->loop, SECONDS(10));
		ck_assert_uint_le(figures(w).entries, 100);
	}
	w->mode = ANSWER_OK;
	fake_loop_run_for(w->loop, MINUTES(20));
	ck_assert_int_eq(count_refreshed(r, 50), 50);
	world_end(w);
}
END_TEST

START_TEST(notice_brings_a_row_at_once)
{
	struct world *w = start(STRICT, "");
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(7));
	struct fake_row *r = world_add(w, "imported", 0, 0);
	scheduler_look_at(w->scheduler, r->id);
	fake_loop_run_for(w->loop, US_PER_MS);
	ck_assert_uint_eq(w->sent, 1);
	world_end(w);
}
END_TEST

START_TEST(the_same_id_many_times_is_one_request)
{
	struct world *w = start(STRICT, "");
	w->latency_us = SECONDS(3);
	struct fake_row *r = world_add(w, "c", SECONDS(2), SECONDS(600));
	scheduler_start(w->scheduler);
	for (int i = 0; i < 5; i++)
		scheduler_add(w->scheduler, "app", "sim", r->id, r->due_at);
	fake_loop_run_for(w->loop, SECONDS(1));
	r->due_at = sys_wall_us(); /* made due sooner */
	for (int i = 0; i < 5; i++) {
		scheduler_add(w->scheduler, "app", "sim", r->id, r->due_at);
		scheduler_look_at(w->scheduler, r->id);
	}
	for (int i = 0; i < 30; i++) {
		fake_loop_run_for(w->loop, US_PER_S / 5);
		scheduler_add(w->scheduler, "app", "sim", r->id, sys_wall_us());
	}
	fake_loop_run_for(w->loop, MINUTES(2));
	ck_assert_uint_eq(w->sent, 1);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_uint_eq(gate_in_flight(budget_gate(w->budget, "app", "sim")), 0);
	world_end(w);
}
END_TEST

START_TEST(two_entries_of_one_id_in_one_batch_are_one_request)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r = world_add(w, "c", -SECONDS(2), SECONDS(600));
	scheduler_start(w->scheduler);
	scheduler_add(w->scheduler, "app", "sim", r->id, r->due_at);
	scheduler_add(w->scheduler, "app", "sim", r->id, r->due_at + US_PER_S);
	ck_assert_uint_eq(figures(w).due, 2);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert_uint_eq(w->sent, 1);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_uint_eq(gate_in_flight(budget_gate(w->budget, "app", "sim")), 0);
	world_end(w);
}
END_TEST

START_TEST(entry_that_comes_while_a_page_is_read_is_not_lost)
{
	struct world *w = start(STRICT, "horizon: 1m");
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(19));
	fake_store_set_delay(w->store, SECONDS(2));
	fake_loop_run_for(w->loop, SECONDS(2)); /* the poll of second 20 is on its way, up to second 80 */
	struct fake_row *r = world_add(w, "c", SECONDS(58), SECONDS(600)); /* second 79 */
	scheduler_add(w->scheduler, "app", "sim", r->id, r->due_at);
	fake_loop_run_for(w->loop, SECONDS(3));
	fake_store_set_delay(w->store, 0);
	ck_assert_uint_eq(figures(w).entries, 1);
	fake_loop_run_until(w->loop, sys_mono_us() + r->due_at - sys_wall_us());
	fake_loop_run_for(w->loop, US_PER_MS);
	ck_assert_uint_eq(w->sent, 1);
	world_end(w);
}
END_TEST

START_TEST(replan_while_a_page_is_read_loads_everything_again)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[20];
	add_herd(w, r, 20, "c", "sim", SECONDS(200));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(4));
	ck_assert_uint_eq(figures(w).entries, 20);
	fake_store_set_delay(w->store, SECONDS(2));
	fake_loop_run_for(w->loop, SECONDS(2));
	scheduler_replan(w->scheduler);
	ck_assert_uint_eq(figures(w).entries, 0);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert_uint_eq(figures(w).entries, 20);
	world_end(w);
}
END_TEST

START_TEST(clock_that_jumps_forward_makes_due_at_once)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[20];
	add_herd(w, r, 20, "c", "sim", HOURS(5));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(3));
	fake_loop_clock_jump(w->loop, HOURS(5));
	scheduler_replan(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_int_eq(count_refreshed(r, 20), 20);
	world_end(w);
}
END_TEST

START_TEST(clock_that_jumps_back_sends_nothing_early_and_forgets_nothing)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[20];
	add_herd(w, r, 20, "c", "sim", SECONDS(100));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(50));
	fake_loop_clock_jump(w->loop, -HOURS(1));
	scheduler_replan(w->scheduler);
	fake_loop_run_for(w->loop, HOURS(1) + SECONDS(49));
	ck_assert_uint_eq(w->sent, 0);
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert_int_eq(count_refreshed(r, 20), 20);
	world_end(w);
}
END_TEST

START_TEST(idle_takes_no_turns_but_the_polls)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[20];
	add_herd(w, r, 20, "c", "sim", SECONDS(250));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(12));
	uint64_t before = fake_loop_turns(w->loop);
	fake_loop_run_for(w->loop, SECONDS(200));
	ck_assert_uint_le(fake_loop_turns(w->loop) - before, 41);
	ck_assert_uint_ge(fake_loop_turns(w->loop) - before, 39);
	world_end(w);
}
END_TEST

START_TEST(no_room_is_no_reason_to_spin)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[20];
	add_herd(w, r, 20, "c", "sim", SECONDS(5));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(1));
	fake_journal_set_writable(w->journal, false);
	fake_loop_run_for(w->loop, SECONDS(10));
	uint64_t before = fake_loop_turns(w->loop);
	fake_loop_run_for(w->loop, SECONDS(100));
	ck_assert_uint_le(fake_loop_turns(w->loop) - before, 25);
	ck_assert_uint_eq(w->sent, 0);
	fake_journal_set_writable(w->journal, true);
	scheduler_kick(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_int_eq(count_refreshed(r, 20), 20);
	world_end(w);
}
END_TEST

static enum mode hang_sim(struct world *w, struct family *f, bool other)
{
	(void)w, (void)f;
	return other ? ANSWER_OK : ANSWER_HANG;
}

START_TEST(hanging_provider_does_not_delay_another_one)
{
	struct world *w = start(STRICT ", max_in_flight: 32", "max_in_flight: 64");
	static struct fake_row *sick[500], *well[300];
	add_herd(w, sick, 500, "sick", "sim", SECONDS(1));
	w->choose = hang_sim;
	for (int i = 0; i < 300; i++) {
		char name[16];
		(void)snprintf(name, sizeof name, "well%d", i);
		well[i] = world_add_to(w, "other", name, SECONDS(2 + i), SECONDS(900));
	}
	int64_t due[300];
	for (int i = 0; i < 300; i++)
		due[i] = well[i]->due_at;
	scheduler_start(w->scheduler);
	int next = 0;
	for (int s = 0; s < 320 && next < 300; s++) {
		fake_loop_run_for(w->loop, US_PER_S);
		for (; next < 300 && due[next] + SECONDS(1) <= sys_wall_us(); next++)
			ck_assert_int_eq(well[next]->refreshes, 1);
	}
	ck_assert_int_eq(next, 300);
	ck_assert_uint_le(gate_in_flight(budget_gate(w->budget, "app", "sim")), 32);
	ck_assert_int_eq(count_refreshed(sick, 500), 0);
	world_end(w);
}
END_TEST

START_TEST(in_flight_limits_hold_for_a_provider_and_for_all)
{
	struct world *w = start(STRICT ", max_in_flight: 7", "max_in_flight: 10");
	struct fake_row *a[100], *b[100];
	w->latency_us = SECONDS(1);
	add_herd(w, a, 100, "a", "sim", 0);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(3));
	ck_assert_uint_eq(fake_httpc_peak(w->httpc), 7);
	add_herd(w, b, 100, "b", "other", 0);
	fake_loop_run_for(w->loop, SECONDS(60));
	ck_assert_uint_le(fake_httpc_peak(w->httpc), 10);
	ck_assert_uint_ge(fake_httpc_peak(w->httpc), 9);
	ck_assert_int_eq(count_refreshed(a, 100), 100);
	ck_assert_int_eq(count_refreshed(b, 100), 100);
	world_end(w);
}
END_TEST

START_TEST(herd_is_spread_ahead_so_that_the_last_is_not_late)
{
	struct world *w = start(STRICT ", rate: 10/s", "");
	static struct fake_row *r[1000];
	add_herd(w, r, 1000, "h", "sim", SECONDS(250));
	int64_t due = r[0]->due_at;
	scheduler_start(w->scheduler);
	unsigned last = 0;
	while (sys_wall_us() < due) {
		fake_loop_run_for(w->loop, US_PER_S);
		ck_assert_uint_le(w->sent - last, 21); /* the first second may use the bucket */
		last = w->sent;
	}
	ck_assert_uint_ge(w->sent, 998);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_int_eq(count_refreshed(r, 1000), 1000);
	world_end(w);
}
END_TEST

START_TEST(herd_that_is_due_already_keeps_the_rate)
{
	struct world *w = start(STRICT ", rate: 20/s", "");
	static struct fake_row *r[400];
	add_herd(w, r, 400, "h", "sim", 0);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(5));
	ck_assert_uint_ge(w->sent, 118);
	ck_assert_uint_le(w->sent, 121);
	fake_loop_run_for(w->loop, SECONDS(16));
	ck_assert_int_eq(count_refreshed(r, 400), 400);
	world_end(w);
}
END_TEST

START_TEST(lane_without_a_client_is_dropped_told_once_and_brought_in_by_a_reload)
{
	struct world *w = start(STRICT, "");
	world_conf(w, fake_conf_with(STRICT, "", false));
	struct fake_row *r[10], *lost = world_add_to(w, "nobody", "x", 0, 0);
	add_herd(w, r, 10, "c", "other", 0);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, MINUTES(2));
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_uint_eq(figures(w).entries, 0);
	ck_assert_uint_eq(world_logged(w, "scheduler.cannot_refresh"), 2);
	ck_assert_uint_eq(world_logged(w, "no client is configured"), 1);
	world_conf(w, fake_conf_with(STRICT, "", true));
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_int_eq(count_refreshed(r, 10), 10);
	ck_assert_int_eq(lost->refreshes, 0);
	world_end(w);
}
END_TEST

START_TEST(breaker_parks_the_lanes_and_the_canary_brings_them_back)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[40];
	w->mode = ANSWER_500;
	add_herd(w, r, 40, "c", "sim", SECONDS(3));
	for (int i = 10; i < 40; i++) /* not all in one flight */
		r[i]->due_at += SECONDS(2);
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(30));
	int marked = 0;
	for (int i = 0; i < 40; i++)
		marked += r[i]->health != HEALTH_OK;
	ck_assert_int_le(marked, 20);
	ck_assert_uint_le(w->sent, 25);
	w->mode = ANSWER_OK;
	fake_loop_run_for(w->loop, SECONDS(100));
	ck_assert_int_eq(count_refreshed(r, 40), 40);
	world_end(w);
}
END_TEST

START_TEST(database_that_comes_back_finds_everything)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r[40];
	add_herd(w, r, 40, "c", "sim", SECONDS(20));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(10));
	fake_store_set_writable(w->store, false);
	fake_loop_run_for(w->loop, MINUTES(5));
	ck_assert_uint_eq(w->sent, 0);
	fake_store_set_writable(w->store, true);
	fake_loop_run_for(w->loop, SECONDS(6));
	ck_assert_int_eq(count_refreshed(r, 40), 40);
	world_end(w);
}
END_TEST

START_TEST(stopped_scheduler_does_nothing)
{
	struct world *w = start(STRICT, "");
	struct fake_row *r = world_add(w, "c", SECONDS(2), SECONDS(600));
	scheduler_start(w->scheduler);
	fake_loop_run_for(w->loop, SECONDS(1));
	scheduler_stop(w->scheduler);
	scheduler_kick(w->scheduler);
	scheduler_look_at(w->scheduler, r->id);
	fake_loop_run_for(w->loop, MINUTES(2));
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_uint_eq(fake_store_counts(w->store)->polls, 2);
	world_end(w);
}
END_TEST

static enum mode poison(struct world *w, struct family *f, bool other)
{
	(void)w;
	return !other && strcmp(f->consumer, "poison") == 0 ? ANSWER_BAD_CLIENT : ANSWER_OK;
}

/* Providers also say invalid_scope or invalid_request about one connection alone. */
START_TEST(one_refused_connection_does_not_let_the_others_expire)
{
	struct world *w = start(STRICT, "");
	w->choose = poison;
	w->expires_in = 600;
	struct fake_row *bad = world_add(w, "poison", SECONDS(1), SECONDS(300)), *r[20];
	for (int i = 0; i < 20; i++) {
		char name[16];
		(void)snprintf(name, sizeof name, "c%d", i);
		r[i] = world_add(w, name, SECONDS(10 * i), SECONDS(10 * i + 120));
	}
	scheduler_start(w->scheduler);
	for (int s = 0; s < 4 * 3600; s++) {
		fake_loop_run_for(w->loop, US_PER_S);
		for (int i = 0; i < 20; i++)
			ck_assert_int_gt(r[i]->expires_at, sys_wall_us());
	}
	ck_assert_int_eq(bad->health, HEALTH_OK);
	ck_assert_uint_lt(world_family(w, "poison")->presented, 60);
	world_end(w);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("scheduler");
	TCase *t = tcase_create("scheduler");
	tcase_set_timeout(t, 60);
	unit_add(t, each_goes_at_its_due_time);
	unit_add(t, it_comes_back_before_each_expiry);
	unit_add(t, what_lies_beyond_the_horizon_takes_no_memory);
	unit_add(t, forward_poll_does_not_look_back_and_the_overdue_poll_finds_what_came_later);
	unit_add(t, missing_expiry_is_refreshed_within_a_poll);
	unit_add(t, row_made_due_sooner_is_found_although_it_is_in_memory);
	unit_add(t, overdue_rows_do_not_pile_up_in_memory);
	unit_add(t, notice_brings_a_row_at_once);
	unit_add(t, the_same_id_many_times_is_one_request);
	unit_add(t, two_entries_of_one_id_in_one_batch_are_one_request);
	unit_add(t, entry_that_comes_while_a_page_is_read_is_not_lost);
	unit_add(t, replan_while_a_page_is_read_loads_everything_again);
	unit_add(t, clock_that_jumps_forward_makes_due_at_once);
	unit_add(t, clock_that_jumps_back_sends_nothing_early_and_forgets_nothing);
	unit_add(t, idle_takes_no_turns_but_the_polls);
	unit_add(t, no_room_is_no_reason_to_spin);
	unit_add(t, hanging_provider_does_not_delay_another_one);
	unit_add(t, in_flight_limits_hold_for_a_provider_and_for_all);
	unit_add(t, herd_is_spread_ahead_so_that_the_last_is_not_late);
	unit_add(t, herd_that_is_due_already_keeps_the_rate);
	unit_add(t, lane_without_a_client_is_dropped_told_once_and_brought_in_by_a_reload);
	unit_add(t, breaker_parks_the_lanes_and_the_canary_brings_them_back);
	unit_add(t, database_that_comes_back_finds_everything);
	unit_add(t, stopped_scheduler_does_nothing);
	unit_add(t, one_refused_connection_does_not_let_the_others_expire);
	suite_add_tcase(s, t);
	return s;
}
