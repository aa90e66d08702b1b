/*
 * test_fence - results that come when the row is not theirs any more: the token that was lost, the refusal that is none, the
 * settings that changed meanwhile. docs/design.md "Fence", a case a test.
 */
#include <string.h>

#include "base/sys.h"
#include "sim/world.h"
#include "unit/unit.h"

#define STRICT "rotation: strict"

static struct fake_row *r;

/* A request is out, and its answer comes in a second. */
static struct world *in_flight(enum mode mode)
{
	struct world *w = world_new(11, STRICT, "retry_window: 1h", false);
	r = world_add(w, "c1", 0, SECONDS(300));
	w->latency_us = SECONDS(1);
	w->mode = mode;
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, 100 * US_PER_MS);
	ck_assert_uint_eq(w->sent, 1);
	return w;
}

static void expect_token(const struct world *w, const char *want, const char *previous)
{
	char text[256];
	fake_row_refresh_token(w->store, r, text);
	ck_assert_str_eq(text, want);
	fake_row_previous_token(w->store, r, text);
	ck_assert_str_eq(text, previous);
}

/* Nothing is in hand any more, and everybody knows it. */
static void expect_over(const struct world *w)
{
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 0);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
}

static bool is_loading(void *arg)
{
	const struct world *w = arg;
	return fake_store_counts(w->store)->loads == 1;
}

/* ---------------------------------------------------------------- the token is the live one */

START_TEST(token_of_an_attempt_that_was_taken_over_is_merged)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, SECONDS(60));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->orphans, 1);
	ck_assert_int_eq(r->merges, 1);
	ck_assert(world_token_is_live(w, r));
	expect_token(w, "rt-c1-1", "rt-c1-0");
	ck_assert_int_eq(r->version, 101);
	ck_assert_int_eq(r->doubts, 0);
	ck_assert_int_eq(r->attempt, 0);
	ck_assert_int_eq(r->owner, 1); /* the other's request may be out */
	expect_over(w);
	world_refresh(w, r);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(token_is_merged_when_an_import_brought_the_old_one_back)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_import(w->store, r, "rt-c1-0", sys_wall_us() + SECONDS(1000), sys_wall_us() + SECONDS(2000));
	int64_t version = r->version;
	world_wait_gone(w, r);
	ck_assert_int_eq(r->merges, 1);
	ck_assert_int_eq(r->version, version + 1);
	ck_assert_int_eq(r->owner, 0);
	expect_token(w, "rt-c1-1", "rt-c1-0");
	ck_assert(world_token_is_live(w, r));
	expect_over(w);
	world_refresh(w, r);
	world_end(w);
}
END_TEST

START_TEST(failing_connection_recovers_by_a_merge)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, SECONDS(60));
	r->health = HEALTH_PENDING;
	r->failures = 2;
	fake_store_change(r);
	world_wait_gone(w, r);
	ck_assert_int_eq(r->merges, 1);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_int_eq(r->failures, 0);
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_RECOVERED), 1);
	world_end(w);
}
END_TEST

START_TEST(refused_connection_says_nothing_before_the_merged_token_was_tried)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, 1);
	r->owner = r->lease_until = 0;
	r->state = CONN_INVALID;
	r->health = HEALTH_NEEDS_AUTH;
	r->due_at = TIME_NEVER;
	world_wait_gone(w, r);
	ck_assert_int_eq(r->merges, 1);
	ck_assert_int_eq(r->health, HEALTH_NEEDS_AUTH);
	ck_assert_uint_eq(r->n_events, 0);
	ck_assert_int_le(r->due_at, sys_wall_us());
	world_refresh(w, r);
	ck_assert_int_eq(r->state, CONN_CALLABLE);
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_RECOVERED), 1);
	ck_assert_uint_eq(r->n_events, 1);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- it is not, or cannot be told */

START_TEST(token_behind_an_import_of_another_is_kept_for_an_operator)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_import(w->store, r, "rt-imported-0", sys_wall_us() + SECONDS(1000), sys_wall_us() + SECONDS(2000));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->orphans, 1);
	ck_assert_int_eq(r->merges, 0);
	ck_assert_int_eq(r->closed, 0);
	ck_assert_uint_eq(world_logged(w, "refresh.orphaned"), 1);
	expect_token(w, "rt-imported-0", "");
	expect_over(w);
	world_end(w);
}
END_TEST

START_TEST(answer_without_a_new_refresh_token_is_no_loss)
{
	struct world *w = in_flight(ANSWER_OK_NO_RT);
	fake_store_import(w->store, r, "rt-imported-0", sys_wall_us() + SECONDS(1000), sys_wall_us() + SECONDS(2000));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->merges, 0);
	ck_assert_int_eq(r->closed, 1);
	ck_assert_uint_eq(world_logged(w, "refresh.orphaned"), 0);
	expect_over(w);
	world_end(w);
}
END_TEST

START_TEST(row_that_changes_between_reading_and_merging_is_read_again)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, SECONDS(60));
	fake_store_set_delay(w->store, 10 * US_PER_MS);
	ck_assert(fake_loop_run_while_not(w->loop, is_loading, w, SECONDS(10)));
	fake_store_import(w->store, r, "rt-imported-0", sys_wall_us() + SECONDS(1000), sys_wall_us() + SECONDS(2000));
	world_wait_gone(w, r);
	ck_assert_uint_eq(fake_store_counts(w->store)->merges, 1);
	ck_assert_uint_eq(fake_store_counts(w->store)->loads, 2);
	ck_assert_int_eq(r->merges, 0);
	ck_assert_uint_eq(world_logged(w, "refresh.orphaned"), 1);
	expect_token(w, "rt-imported-0", "");
	expect_over(w);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- trouble on the way */

START_TEST(merge_whose_commit_answer_is_lost_is_found_to_be_there)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, SECONDS(60));
	fake_store_set_delay(w->store, 10 * US_PER_MS);
	ck_assert(fake_loop_run_while_not(w->loop, is_loading, w, SECONDS(10)));
	fake_store_fail_persist(w->store, 1, PG_CLASS_UNKNOWN, true);
	world_wait_gone(w, r);
	ck_assert_uint_eq(fake_store_counts(w->store)->merges, 2);
	ck_assert_int_eq(r->merges, 1);
	ck_assert(world_token_is_live(w, r));
	expect_over(w);
	world_end(w);
}
END_TEST

START_TEST(merge_waits_for_the_database_and_for_whoever_has_the_row)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, SECONDS(600));
	fake_store_set_delay(w->store, 10 * US_PER_MS);
	ck_assert(fake_loop_run_while_not(w->loop, is_loading, w, SECONDS(10)));
	fake_store_set_writable(w->store, false);
	fake_loop_run_for(w->loop, SECONDS(20));
	ck_assert_int_eq(r->merges, 0);
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 1);
	ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, NULL));
	fake_store_disturb(w->store, 2);
	fake_store_set_writable(w->store, true);
	world_wait_gone(w, r);
	ck_assert_int_eq(r->merges, 1);
	ck_assert(world_token_is_live(w, r));
	expect_over(w);
	world_end(w);
}
END_TEST

START_TEST(death_before_the_merge_is_replayed)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, SECONDS(60));
	fake_store_set_delay(w->store, 10 * US_PER_MS);
	ck_assert(fake_loop_run_while_not(w->loop, is_loading, w, SECONDS(10)));
	ck_assert_int_eq(r->orphans, 1);
	world_kill(w, true);
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert_uint_eq(w->replayed, 1);
	ck_assert_int_eq(r->orphans, 1);
	ck_assert_int_eq(r->merges, 1);
	ck_assert(world_token_is_live(w, r));
	expect_over(w);
	world_end(w);
}
END_TEST

/* The record knows what was presented: the row of the next life cannot say it any more. */
START_TEST(replay_behind_an_import_of_the_old_token_is_merged)
{
	for (int other = 0; other < 2; other++) {
		struct world *w = in_flight(ANSWER_OK);
		fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
		fake_loop_run_for(w->loop, SECONDS(2));
		ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, NULL));
		world_kill(w, false);
		fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
		fake_store_import(w->store, r, other ? "rt-imported-0" : "rt-c1-0", sys_wall_us() + SECONDS(1000), sys_wall_us() + SECONDS(2000));
		world_replay(w);
		fake_loop_run_for(w->loop, SECONDS(2));
		ck_assert_int_eq(r->merges, !other);
		expect_token(w, other ? "rt-imported-0" : "rt-c1-1", other ? "" : "rt-c1-0");
		expect_over(w);
		world_end(w);
	}
}
END_TEST

/* ---------------------------------------------------------------- a refusal that is none */

START_TEST(refusal_behind_a_merge_marks_nobody_and_tries_the_new_token)
{
	struct world *w = in_flight(ANSWER_DEAD);
	fake_store_merge(w->store, r, "rt-c1-1", sys_wall_us() + SECONDS(1000));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_uint_eq(r->n_events, 0);
	ck_assert_int_eq(r->owner, 0);
	ck_assert_int_le(r->due_at, sys_wall_us());
	expect_token(w, "rt-c1-1", "");
	world_end(w);
}
END_TEST

START_TEST(refusal_of_a_row_that_was_taken_over_marks_nobody)
{
	struct world *w = in_flight(ANSWER_DEAD);
	fake_store_take_over(r, SECONDS(60));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_uint_eq(r->n_events, 0);
	ck_assert_int_eq(r->owner, 1);
	ck_assert_int_eq(r->orphans, 0);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- settings that changed */

START_TEST(refusal_of_older_settings_is_not_believed)
{
	struct world *w = in_flight(ANSWER_DEAD);
	fake_store_change(r);
	r->due_at = sys_wall_us() + SECONDS(1000);
	world_wait_gone(w, r);
	ck_assert_int_eq(r->state, CONN_CALLABLE);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_int_eq(r->failures, 0);
	ck_assert_uint_eq(r->n_events, 0);
	ck_assert_int_eq(r->owner, 0);
	ck_assert_int_le(r->due_at, sys_wall_us());
	ck_assert_int_le(w->last.next_due_at, sys_wall_us());
	ck_assert_uint_eq(w->outbox, 0);
	ck_assert_uint_eq(world_logged(w, "refresh.settings_changed"), 1);
	world_refresh(w, r); /* with the new ones it counts */
	ck_assert_int_eq(r->health, HEALTH_NEEDS_AUTH);
	ck_assert_int_eq(r->reason, REASON_INVALID_GRANT);
	world_end(w);
}
END_TEST

START_TEST(unanswered_request_of_older_settings_leaves_its_doubt)
{
	struct world *w = in_flight(ANSWER_CUT_AFTER);
	fake_store_change(r);
	world_wait_gone(w, r);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_int_eq(r->doubts, 1);
	ck_assert_int_le(r->due_at, sys_wall_us());
	w->faults_ok = true; /* the token was used up */
	w->mode = ANSWER_OK;
	world_refresh(w, r);
	ck_assert_int_eq(r->reason, REASON_ROTATION_LOST);
	world_end(w);
}
END_TEST

START_TEST(token_of_older_settings_is_written_all_the_same)
{
	struct world *w = world_new(11, STRICT, "", false);
	r = world_add(w, "c1", 0, SECONDS(300));
	r->health = HEALTH_PENDING;
	r->failures = 3;
	w->latency_us = SECONDS(1);
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, 100 * US_PER_MS);
	fake_store_change(r);
	world_wait_gone(w, r);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert(world_token_is_live(w, r));
	ck_assert_int_eq(r->health, HEALTH_PENDING);
	ck_assert_uint_eq(r->n_events, 0);
	ck_assert_int_le(r->due_at, sys_wall_us());
	world_refresh(w, r);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_RECOVERED), 1);
	world_end(w);
}
END_TEST

START_TEST(replayed_refusal_of_older_settings_is_not_believed)
{
	struct world *w = in_flight(ANSWER_DEAD);
	fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
	fake_loop_run_for(w->loop, SECONDS(2));
	world_kill(w, false);
	fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
	fake_store_change(r);
	world_replay(w);
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert_uint_eq(w->replayed, 1);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_uint_eq(r->n_events, 0);
	ck_assert_int_le(r->due_at, sys_wall_us());
	expect_over(w);
	world_end(w);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("fence");
	TCase *t = tcase_create("fence");
	tcase_set_timeout(t, 60);
	unit_add(t, token_of_an_attempt_that_was_taken_over_is_merged);
	unit_add(t, token_is_merged_when_an_import_brought_the_old_one_back);
	unit_add(t, failing_connection_recovers_by_a_merge);
	unit_add(t, refused_connection_says_nothing_before_the_merged_token_was_tried);
	unit_add(t, token_behind_an_import_of_another_is_kept_for_an_operator);
	unit_add(t, answer_without_a_new_refresh_token_is_no_loss);
	unit_add(t, row_that_changes_between_reading_and_merging_is_read_again);
	unit_add(t, merge_whose_commit_answer_is_lost_is_found_to_be_there);
	unit_add(t, merge_waits_for_the_database_and_for_whoever_has_the_row);
	unit_add(t, death_before_the_merge_is_replayed);
	unit_add(t, replay_behind_an_import_of_the_old_token_is_merged);
	unit_add(t, refusal_behind_a_merge_marks_nobody_and_tries_the_new_token);
	unit_add(t, refusal_of_a_row_that_was_taken_over_marks_nobody);
	unit_add(t, refusal_of_older_settings_is_not_believed);
	unit_add(t, unanswered_request_of_older_settings_leaves_its_doubt);
	unit_add(t, token_of_older_settings_is_written_all_the_same);
	unit_add(t, replayed_refusal_of_older_settings_is_not_believed);
	suite_add_tcase(s, t);
	return s;
}
