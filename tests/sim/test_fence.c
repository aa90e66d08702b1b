/*
 * test_fence - results that come when the row is not theirs any more: the token that was lost, the refusal that is none, the
 * settings that changed meanwhile. docs/design.md "Fence", a case a test.
 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
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

START_TEST(merge_that_blames_the_schema_is_left_to_an_operator)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_take_over(r, SECONDS(60));
	fake_store_blame_merges(w->store);
	world_wait_gone(w, r);
	ck_assert_int_eq(r->orphans, 1);
	ck_assert_int_eq(r->merges, 0);
	ck_assert_uint_le(fake_store_counts(w->store)->merges, 6);
	ck_assert_uint_eq(world_logged(w, "refresh.orphaned"), 1);
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

/* ---------------------------------------------------------------- the journal */

static struct fake_row *add(struct world *w, int i)
{
	char consumer[32];
	(void)snprintf(consumer, sizeof consumer, "m%d", i);
	return world_add(w, consumer, 0, SECONDS(300));
}

/* A record of each of n connections, from an earlier life. */
static struct world *with_records(int n)
{
	struct world *w = world_new(11, STRICT, "", false);
	uint8_t record[4096];
	size_t len = 0;
	r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_set_delay(w->store, 10 * US_PER_MS);
	ck_assert(world_claim(w, r));
	while (len == 0) {
		fake_loop_run_for(w->loop, US_PER_MS);
		const void *p = fake_journal_open_record(0, NULL, &len);
		if (p != NULL)
			memcpy(record, p, len);
	}
	world_wait_gone(w, r);
	fake_loop_run_for(w->loop, SECONDS(1));
	for (int i = 0; i < n; i++) {
		const struct fake_row *x = add(w, i);
		uint8_t other[4096];
		memcpy(other, record, len);
		memcpy(other + 1, x->id, 16); /* it cannot be opened as the other's, and so it is set aside */
		(void)fake_journal_put(other, len);
	}
	return w;
}

START_TEST(replay_takes_so_many_records_at_a_time)
{
	struct world *w = with_records(1000);
	fake_store_set_writable(w->store, false);
	world_kill(w, false);
	fake_store_set_writable(w->store, true);
	world_replay(w);
	ck_assert_uint_gt(refresh_unsettled(w->refresh), 0);
	ck_assert_uint_le(refresh_unsettled(w->refresh), REFRESH_BATCH);
	ck_assert(!refresh_replayed(w->refresh));
	for (int i = 0; i < 3000 && !refresh_replayed(w->refresh); i++) {
		fake_loop_run_for(w->loop, 10 * US_PER_MS);
		ck_assert_uint_le(refresh_unsettled(w->refresh), REFRESH_BATCH);
	}
	ck_assert(refresh_replayed(w->refresh));
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_uint_eq(w->replayed, 1000);
	ck_assert_uint_eq(fake_store_counts(w->store)->quarantines, 1000);
	world_end(w);
}
END_TEST

START_TEST(replies_without_the_journal_are_told_once)
{
	struct world *w = world_new(11, STRICT, "", false);
	struct fake_row *rows[6];
	for (int i = 0; i < 6; i++)
		rows[i] = add(w, i);
	fake_journal_fail_sync(ST_IO);
	for (int i = 0; i < 3; i++)
		world_refresh(w, rows[i]);
	fake_journal_fail_append(ST_UNAVAILABLE);
	world_refresh(w, rows[3]);
	ck_assert_uint_eq(world_logged(w, "journal.append_failed"), 1);
	fake_journal_fail_append(0);
	fake_journal_fail_sync(0);
	world_refresh(w, rows[4]);
	fake_journal_fail_sync(ST_IO);
	world_refresh(w, rows[5]);
	ck_assert_uint_eq(world_logged(w, "journal.append_failed"), 2);
	for (int i = 0; i < 6; i++)
		ck_assert(world_token_is_live(w, rows[i]));
	world_end(w);
}
END_TEST

START_TEST(no_more_is_sent_than_the_journal_has_room_for)
{
	struct world *w = world_new(11, STRICT, "", false);
	struct fake_row *x = add(w, 0);
	unsigned all = refresh_room(w->refresh);
	ck_assert_uint_gt(all, 2);
	fake_journal_set_room(3 * JOURNAL_REPLY_BYTES - 1);
	ck_assert_uint_eq(refresh_room(w->refresh), 2);
	w->latency_us = SECONDS(1);
	ck_assert(world_claim(w, x));
	fake_loop_run_for(w->loop, 100 * US_PER_MS);
	ck_assert_uint_eq(refresh_room(w->refresh), 1);
	fake_journal_set_room(JOURNAL_REPLY_BYTES);
	ck_assert_uint_eq(refresh_room(w->refresh), 0);
	world_wait_gone(w, x);
	fake_journal_set_room(0);
	ck_assert_uint_eq(refresh_room(w->refresh), all);
	world_end(w);
}
END_TEST

START_TEST(damage_and_given_up_files_are_told_and_counted)
{
	struct world *w = world_new(11, STRICT, "", false);
	struct fault f;
	fault_set(&f, ST_SYNTAX, "one.seg: damaged");
	fake_journal_tell(w->journal, &f);
	fault_set(&f, ST_IO, "two.seg: fdatasync");
	fake_journal_tell(w->journal, &f);
	ck_assert_uint_eq(world_logged(w, "journal.damaged"), 1);
	ck_assert_uint_eq(world_logged(w, "journal.file_given_up"), 1);
	world_end(w);
}
END_TEST

static void on_drained(void *arg)
{
	struct world *w = arg;
	w->drains++;
}

/* ---------------------------------------------------------------- stopping without a database */

START_TEST(stop_without_a_database_leaves_to_the_journal_what_it_has)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_set_writable(w->store, false);
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, SECONDS(3)); /* the answer came */
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 1);
	ck_assert_uint_eq(w->drains, 0);
	fake_loop_run_for(w->loop, SECONDS(4));
	ck_assert_uint_eq(w->drains, 1);
	ck_assert_uint_eq(world_logged(w, "refresh.left_in_journal"), 1);
	ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, NULL));
	world_kill(w, false);
	fake_store_set_writable(w->store, true);
	world_replay(w);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(stop_waits_for_an_answer_that_only_memory_has)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_journal_fail_sync(ST_IO);
	fake_store_set_writable(w->store, false);
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, MINUTES(5));
	ck_assert_uint_eq(w->drains, 0);
	fake_store_set_writable(w->store, true);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert_uint_eq(w->drains, 1);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(stop_waits_for_a_database_that_comes_back)
{
	struct world *w = in_flight(ANSWER_OK);
	fake_store_set_writable(w->store, false);
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, SECONDS(4));
	fake_store_set_writable(w->store, true);
	fake_loop_run_for(w->loop, SECONDS(6));
	ck_assert_uint_eq(w->drains, 1);
	ck_assert_uint_eq(world_logged(w, "refresh.left_in_journal"), 0);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	ck_assert(world_token_is_live(w, r));
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
	unit_add(t, merge_that_blames_the_schema_is_left_to_an_operator);
	unit_add(t, death_before_the_merge_is_replayed);
	unit_add(t, replay_behind_an_import_of_the_old_token_is_merged);
	unit_add(t, refusal_behind_a_merge_marks_nobody_and_tries_the_new_token);
	unit_add(t, refusal_of_a_row_that_was_taken_over_marks_nobody);
	unit_add(t, refusal_of_older_settings_is_not_believed);
	unit_add(t, unanswered_request_of_older_settings_leaves_its_doubt);
	unit_add(t, token_of_older_settings_is_written_all_the_same);
	unit_add(t, replayed_refusal_of_older_settings_is_not_believed);
	unit_add(t, replay_takes_so_many_records_at_a_time);
	unit_add(t, replies_without_the_journal_are_told_once);
	unit_add(t, no_more_is_sent_than_the_journal_has_room_for);
	unit_add(t, damage_and_given_up_files_are_told_and_counted);
	unit_add(t, stop_without_a_database_leaves_to_the_journal_what_it_has);
	unit_add(t, stop_waits_for_an_answer_that_only_memory_has);
	unit_add(t, stop_waits_for_a_database_that_comes_back);
	suite_add_tcase(s, t);
	return s;
}
