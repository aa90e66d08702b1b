/*
 * test_refresh - one attempt from the want to the committed result, with everything failing around it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "service/refresh_priv.h"
#include "sim/world.h"
#include "unit/unit.h"

#define STRICT "rotation: strict"
#define GRACE "rotation: grace, rotation_grace: 60s"
#define NONE "rotation: none"

static struct world *start(const char *provider)
{
	return world_new(1, provider, "", false);
}

static enum attempt_state state_of(struct world *w, const struct fake_row *r)
{
	const struct attempt *a = attempt_find(w->refresh, r->id);
	return a != NULL ? a->state : AT_DONE;
}

/* ---------------------------------------------------------------- the plain way */

START_TEST(one_request_for_one_claim)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	ck_assert(world_claim(w, r));
	ck_assert_uint_eq(w->sent, 0); /* nothing before the claim is committed */
	world_settle(w);
	ck_assert_uint_eq(w->sent, 1);
	ck_assert_uint_eq(w->done, 1);
	ck_assert(w->last.claimed && w->last.refreshed);
	ck_assert_int_eq(w->last.outcome, OUTCOME_REFRESHED);
	ck_assert_int_eq(w->last.next_due_at, r->due_at);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_int_eq(r->version, 101);
	ck_assert_int_eq(r->owner, 0);
	ck_assert(world_token_is_live(w, r));
	char previous[256];
	fake_row_previous_token(w->store, r, previous);
	ck_assert_str_eq(previous, "rt-c1-0");
	ck_assert_int_eq(r->expires_at, r->issued_at + SECONDS(3600));
	ck_assert_int_gt(r->due_at, sys_wall_us() + SECONDS(3600 - 400));
	ck_assert_int_lt(r->due_at, r->expires_at - SECONDS(290));
	ck_assert_uint_eq(r->n_events, 0);
	ck_assert_uint_eq(fake_journal_appended(), 1);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	fake_loop_run_for(w->loop, HOURS(1));
	ck_assert_uint_eq(w->sent, 1);
	world_end(w);
}
END_TEST

START_TEST(absent_refresh_token_keeps_the_old_one)
{
	struct world *w = start(NONE);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	world_refresh(w, r);
	char text[256];
	fake_row_refresh_token(w->store, r, text);
	ck_assert_str_eq(text, "rt-c1-0");
	fake_row_previous_token(w->store, r, text);
	ck_assert_str_eq(text, "");
	world_refresh(w, r);
	ck_assert_int_eq(r->refreshes, 2);
	world_end(w);
}
END_TEST

START_TEST(client_credentials_are_renewed_without_a_refresh_token)
{
	struct world *w = start("grant: client_credentials, params: {who: c1}");
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	r->refresh_len = 0;
	world_refresh(w, r);
	ck_assert_str_eq(w->last_sent, "c1");
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_uint_eq(r->refresh_len, 0);
	ck_assert_int_gt(r->due_at, sys_wall_us() + SECONDS(3600 - 400));
	ck_assert_int_lt(r->due_at, r->expires_at - SECONDS(290));
	ck_assert_uint_eq(fake_journal_appended(), 1);
	/* A lost answer and a fault: retried, nothing is given up, no doubt is counted. */
	w->script[0] = ANSWER_CUT_AFTER;
	w->script[1] = ANSWER_502;
	w->n_script = 2;
	world_refresh(w, r);
	ck_assert_int_eq(r->health, HEALTH_PENDING);
	ck_assert_int_eq(r->doubts, 0);
	world_refresh(w, r);
	world_refresh(w, r);
	ck_assert_int_eq(r->refreshes, 2);
	ck_assert_int_eq(r->health, HEALTH_OK);
	/* Past its end it is renewed all the same. */
	fake_loop_run_for(w->loop, HOURS(3));
	world_refresh(w, r);
	ck_assert_int_eq(r->refreshes, 3);
	ck_assert_int_eq(r->state, CONN_CALLABLE);
	ck_assert_uint_eq(w->sent, 5);
	world_end(w);
}
END_TEST

START_TEST(stale_hint_costs_an_empty_claim)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	struct refresh_want want = { .due_at = r->due_at, .gate = budget_gate(w->budget, "app", "sim") };
	memcpy(want.id, r->id, 16);
	r->due_at += SECONDS(100);
	gate_take(want.gate, sys_mono_us());
	refresh_claim(w->refresh, &want, 1);
	world_settle(w);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_uint_eq(w->done, 1);
	ck_assert(!w->last.claimed);
	ck_assert_uint_eq(gate_in_flight(want.gate), 0);
	ck_assert_uint_eq(refresh_in_flight(w->refresh), 0);
	world_end(w);
}
END_TEST

START_TEST(one_claim_at_a_time_and_none_for_what_is_in_hand)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->latency_us = SECONDS(5);
	ck_assert(world_claim(w, r));
	ck_assert_uint_eq(refresh_room(w->refresh), 0);
	ck_assert(refresh_has(w->refresh, r->id));
	fake_loop_settle(w->loop);
	ck_assert_uint_eq(refresh_room(w->refresh), 255);
	ck_assert(refresh_has(w->refresh, r->id));
	ck_assert(!world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 1);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- what must not be sent */

START_TEST(unknown_claim_sends_nothing_and_gives_the_lease_back)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_fail_claim(w->store, 1, PG_CLASS_UNKNOWN, true);
	ck_assert(world_claim(w, r));
	ck_assert_int_ne(r->owner, 0);
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_int_eq(r->owner, 0);
	ck_assert_int_eq(r->lease_until, 0);
	ck_assert_uint_eq(fake_store_counts(w->store)->releases, 1);
	ck_assert_uint_eq(refresh_in_flight(w->refresh), 0);
	world_refresh(w, r);
	ck_assert_int_eq(r->doubts, 0);
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

START_TEST(failed_claim_sends_nothing)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_fail_claim(w->store, 1, PG_CLASS_CONNECTION, false);
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert(!w->last.claimed);
	ck_assert_uint_eq(fake_store_counts(w->store)->releases, 0);
	ck_assert_uint_eq(gate_in_flight(budget_gate(w->budget, "app", "sim")), 0);
	world_end(w);
}
END_TEST

START_TEST(nothing_is_sent_on_a_lease_that_is_too_short)
{
	/* lease 120 s, timeout 60 s, 10 s to spare: a claim that took more than 50 s is of no use */
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_set_delay(w->store, SECONDS(51));
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, SECONDS(52));
	fake_store_set_delay(w->store, 0);
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_int_eq(r->owner, 0);
	ck_assert(w->last.claimed && !w->last.refreshed);
	ck_assert_int_ge(w->last.next_due_at, sys_wall_us() + US_PER_S / 2);
	fake_store_set_delay(w->store, SECONDS(49));
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, SECONDS(49));
	ck_assert_uint_eq(w->sent, 1);
	fake_store_set_delay(w->store, 0);
	world_wait_gone(w, r);
	world_end(w);
}
END_TEST

START_TEST(nothing_is_claimed_while_the_journal_cannot_be_written)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_journal_set_writable(w->journal, false);
	ck_assert_uint_eq(refresh_room(w->refresh), 0);
	fake_journal_set_writable(w->journal, true);
	ck_assert(world_claim(w, r));
	fake_journal_set_writable(w->journal, false); /* between claim and send */
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_int_eq(r->owner, 0);
	world_end(w);
}
END_TEST

START_TEST(nothing_is_claimed_while_the_database_cannot_be_written)
{
	struct world *w = start(STRICT);
	fake_store_set_writable(w->store, false);
	ck_assert_uint_eq(refresh_room(w->refresh), 0);
	fake_store_set_writable(w->store, true);
	ck_assert_uint_eq(refresh_room(w->refresh), 256);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	ck_assert(world_claim(w, r));
	fake_store_set_writable(w->store, false); /* between claim and send */
	fake_loop_run_for(w->loop, SECONDS(20));
	ck_assert_uint_eq(w->sent, 0);
	fake_store_set_writable(w->store, true);
	world_wait_gone(w, r);
	ck_assert_int_eq(r->owner, 0);
	world_end(w);
}
END_TEST

START_TEST(changed_credential_is_given_back)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	r->current = false;
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_int_eq(r->owner, 0);
	world_end(w);
}
END_TEST

START_TEST(token_that_cannot_be_opened_is_put_off)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	r->refresh[r->refresh_len - 1] ^= 1;
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_int_eq(r->owner, 0);
	ck_assert_int_ge(r->due_at, sys_wall_us() + SECONDS(290));
	world_end(w);
}
END_TEST

START_TEST(disabled_connection_leaves_the_schedule)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	r->enabled = false;
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert_int_eq(r->health, HEALTH_OK);
	world_end(w);
}
END_TEST

START_TEST(a_connection_that_is_switched_on_meanwhile_stays_in_the_schedule)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	r->enabled = false; /* and an import has made it due */
	fake_store_set_delay(w->store, SECONDS(1));
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, US_PER_S / 2);
	ck_assert_int_eq(state_of(w, r), AT_CLAIMING); /* claimed, and the answer is on its way */
	r->enabled = true;
	fake_store_change(r);
	world_wait_gone(w, r);
	ck_assert_int_le(r->due_at, sys_wall_us());
	fake_store_set_delay(w->store, 0);
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- the journal */

START_TEST(reply_is_durable_before_it_is_parsed)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->journal_delay_us = SECONDS(2);
	fake_journal_set_delay(SECONDS(2));
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_int_eq(state_of(w, r), AT_JOURNALLING);
	const struct attempt *a = attempt_find(w->refresh, r->id);
	ck_assert(!a->answered);
	ck_assert_uint_eq(fake_store_counts(w->store)->persists, 0);
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	world_end(w);
}
END_TEST

START_TEST(failed_sync_goes_on_to_the_database)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_journal_fail_sync(ST_IO);
	world_refresh(w, r);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert(world_token_is_live(w, r));
	fake_journal_fail_sync(0);
	fake_journal_fail_append(ST_UNAVAILABLE);
	world_refresh(w, r);
	ck_assert_int_eq(r->refreshes, 2);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

/* Runs a refresh until it is in `state`, dies, and comes back. */
static struct world *die_in(enum attempt_state state, struct fake_row **row)
{
	struct world *w = start(GRACE);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_journal_set_delay(w->journal_delay_us = 10 * US_PER_MS);
	fake_store_set_delay(w->store, 10 * US_PER_MS);
	ck_assert(world_claim(w, r));
	for (int i = 0; i < 2000 && state_of(w, r) != state; i++)
		fake_loop_run_for(w->loop, 100);
	ck_assert_int_eq(state_of(w, r), state);
	world_kill(w, true);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_uint_eq(w->replays, 1);
	*row = r;
	return w;
}

START_TEST(death_while_claiming_is_a_doubt)
{
	struct fake_row *r;
	struct world *w = die_in(AT_CLAIMING, &r);
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_int_eq(r->doubts, 0);
	world_refresh(w, r);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(death_while_sending_is_a_doubt_and_the_lease_is_freed_at_once)
{
	struct fake_row *r;
	struct world *w = die_in(AT_SENDING, &r);
	ck_assert_uint_eq(w->replayed, 0);
	ck_assert_int_le(r->lease_until, sys_wall_us());
	w->mode = ANSWER_500;
	world_refresh(w, r);
	ck_assert_int_eq(r->doubts, 1); /* counted by the claim, kept by a failure that is none */
	w->mode = ANSWER_OK;
	world_refresh(w, r);
	ck_assert_int_eq(r->doubts, 0);
	ck_assert(world_token_is_live(w, r));
	ck_assert_uint_eq(w->sent, 3);
	world_end(w);
}
END_TEST

START_TEST(death_before_the_sync_is_a_doubt)
{
	struct fake_row *r;
	struct world *w = die_in(AT_JOURNALLING, &r);
	ck_assert_uint_eq(w->replayed, 0);
	world_refresh(w, r);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(death_after_the_sync_is_replayed)
{
	struct fake_row *r;
	struct world *w = start(STRICT);
	r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
	ck_assert(world_claim(w, r));
	world_settle(w);
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 1);
	ck_assert_int_eq(r->refreshes, 0);
	world_kill(w, false);
	fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
	world_replay(w);
	ck_assert_uint_eq(refresh_room(w->refresh), 0); /* no claim before the replay is over */
	ck_assert(!refresh_replayed(w->refresh));
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert(refresh_replayed(w->refresh));
	ck_assert_uint_eq(w->replayed, 1);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_int_eq(r->owner, 0);
	ck_assert_uint_eq(w->sent, 1);
	ck_assert(world_token_is_live(w, r));
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	world_refresh(w, r);
	ck_assert_uint_eq(w->sent, 2);
	world_end(w);
}
END_TEST

START_TEST(death_while_persisting_is_replayed)
{
	struct fake_row *r;
	struct world *w = die_in(AT_PERSISTING, &r);
	ck_assert_uint_eq(w->replayed, 1);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_int_eq(r->orphans, 0);
	ck_assert(world_token_is_live(w, r));
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	world_end(w);
}
END_TEST

START_TEST(lost_commit_answer_is_found_to_be_there_already)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_fail_persist(w->store, 1, PG_CLASS_UNKNOWN, true);
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_int_eq(r->orphans, 0);
	ck_assert_uint_eq(w->sent, 1);
	ck_assert(w->last.refreshed);
	ck_assert_uint_eq(fake_store_counts(w->store)->persists, 2);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	world_end(w);
}
END_TEST

START_TEST(row_that_another_writes_just_then_is_written_again)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_disturb(w->store, 3);
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_int_eq(r->orphans, 0);
	ck_assert(w->last.refreshed);
	ck_assert_uint_eq(fake_store_counts(w->store)->persists, 4);
	ck_assert_uint_eq(world_logged(w, "refresh.fence_lost"), 0);
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 0);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	world_end(w);
}
END_TEST

START_TEST(replay_waits_for_a_database_that_is_away)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
	ck_assert(world_claim(w, r));
	world_settle(w);
	world_kill(w, false);
	fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
	fake_store_set_writable(w->store, false);
	world_replay(w);
	fake_loop_run_for(w->loop, MINUTES(5)); /* far beyond the lease */
	ck_assert_uint_eq(w->replays, 0);
	fake_store_set_writable(w->store, true);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert_uint_eq(w->replays, 1);
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(replay_of_a_connection_that_is_gone_is_done)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
	ck_assert(world_claim(w, r));
	world_settle(w);
	world_kill(w, false);
	r->used = false;
	world_replay(w);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert_uint_eq(w->replays, 1);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	world_end(w);
}
END_TEST

START_TEST(unreadable_record_stays_and_does_not_stop_the_replay)
{
	struct world *w = start(STRICT);
	world_kill(w, false);
	fake_journal_put("\x01 rubbish", 9);
	world_replay(w);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_uint_eq(w->replays, 1);
	ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, NULL));
	world_end(w);
}
END_TEST

START_TEST(record_whose_clear_part_was_changed_is_not_replayed)
{
	for (int at = 1; at <= 32; at++) { /* connection, attempt, token version */
		struct world *w = start(STRICT);
		struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
		fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
		ck_assert(world_claim(w, r));
		world_settle(w);
		size_t n = 0;
		uint64_t seq = 0;
		uint8_t copy[4096];
		const void *p = fake_journal_open_record(0, &seq, &n);
		ck_assert_ptr_nonnull(p);
		memcpy(copy, p, n);
		copy[at] ^= 1;
		journal_done(w->journal, seq);
		world_kill(w, false);
		(void)fake_journal_put(copy, n);
		fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
		world_replay(w);
		fake_loop_run_for(w->loop, SECONDS(1));
		ck_assert_uint_eq(w->replays, 1);
		ck_assert_uint_eq(world_logged(w, "replay.unreadable"), 1);
		ck_assert_int_eq(r->refreshes, 0);
		world_end(w);
	}
}
END_TEST

/* Its answer is there, so its token must not be presented again, whoever can or cannot read that answer today. */
START_TEST(answered_row_whose_record_cannot_be_opened_leaves_the_schedule)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
	ck_assert(world_claim(w, r));
	world_settle(w);
	size_t n = 0;
	uint64_t seq = 0;
	uint8_t copy[4096];
	const void *p = fake_journal_open_record(0, &seq, &n);
	ck_assert_ptr_nonnull(p);
	memcpy(copy, p, n);
	copy[n - 1] ^= 1;
	journal_done(w->journal, seq);
	world_kill(w, false);
	(void)fake_journal_put(copy, n);
	fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
	unsigned sent = w->sent;
	world_replay(w);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_uint_eq(w->replays, 1);
	ck_assert_uint_eq(world_logged(w, "replay.kept"), 1);
	ck_assert(r->due_at == TIME_NEVER);
	ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, NULL));
	ck_assert_uint_eq(w->sent, sent);
	world_end(w);
}
END_TEST

/* The mark of the first record was lost with the crash, the second one holds the only copy of the live token. */
START_TEST(two_open_records_of_one_connection_are_both_replayed)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_set_delay(w->store, 10 * US_PER_MS);
	w->script[0] = ANSWER_502;
	w->n_script = 1;
	ck_assert(world_claim(w, r));
	uint8_t first[4096];
	size_t n = 0;
	while (n == 0) {
		fake_loop_run_for(w->loop, US_PER_MS);
		const void *p = fake_journal_open_record(0, NULL, &n);
		if (p != NULL)
			memcpy(first, p, n);
	}
	world_wait_gone(w, r);
	ck_assert_int_eq(r->doubts, 1);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	(void)fake_journal_put(first, n);
	fake_store_fail_persist(w->store, 1000, PG_CLASS_CONNECTION, false);
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, 100 * US_PER_MS);
	ck_assert_ptr_nonnull(fake_journal_open_record(1, NULL, NULL));
	world_kill(w, false);
	fake_store_fail_persist(w->store, 0, PG_CLASS_OK, false);
	world_replay(w);
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert_uint_eq(w->replays, 1);
	ck_assert_uint_eq(w->replayed, 2);
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert_int_eq(r->owner, 0);
	ck_assert(world_token_is_live(w, r));
	world_refresh(w, r);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- in doubt */

START_TEST(lost_reply_without_rotation_is_no_doubt)
{
	struct world *w = start(NONE);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->script[0] = ANSWER_CUT_AFTER;
	w->n_script = 1;
	world_refresh(w, r);
	ck_assert_int_eq(r->doubts, 0);
	ck_assert_int_eq(r->health, HEALTH_PENDING);
	ck_assert_int_eq(r->reason, REASON_NO_ANSWER);
	world_refresh(w, r);
	ck_assert_int_eq(r->health, HEALTH_OK);
	w->mode = ANSWER_DEAD;
	world_refresh(w, r);
	ck_assert_int_eq(r->reason, REASON_INVALID_GRANT);
	world_end(w);
}
END_TEST

START_TEST(lost_reply_within_grace_is_found_again)
{
	struct world *w = start(GRACE);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->script[0] = w->script[1] = w->script[2] = w->script[3] = ANSWER_CUT_AFTER;
	w->n_script = 4;
	int64_t begin = sys_wall_us();
	for (int i = 1; i <= 3; i++) {
		world_refresh(w, r);
		ck_assert_int_eq(r->doubts, i);
		ck_assert_int_le(r->due_at - sys_wall_us(), i == 1 ? US_PER_S / 2 : SECONDS(15));
	}
	world_refresh(w, r);
	world_refresh(w, r);
	ck_assert_int_lt(sys_wall_us() - begin, SECONDS(60));
	ck_assert_int_eq(r->doubts, 0);
	ck_assert(world_token_is_live(w, r));
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_PENDING), 1);
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_RECOVERED), 1);
	world_end(w);
}
END_TEST

START_TEST(request_that_never_arrived_is_saved_by_trying_again_when_strict)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->script[0] = ANSWER_CUT_BEFORE;
	w->n_script = 1;
	world_refresh(w, r);
	ck_assert_int_eq(r->doubts, 1);
	ck_assert_int_le(r->due_at - sys_wall_us(), US_PER_S / 2);
	world_refresh(w, r);
	ck_assert_int_eq(r->doubts, 0);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(lost_rotation_is_called_by_its_name)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->script[0] = ANSWER_CUT_AFTER;
	w->n_script = 1;
	world_refresh(w, r);
	world_refresh(w, r);
	ck_assert_int_eq(r->state, CONN_INVALID);
	ck_assert_int_eq(r->health, HEALTH_NEEDS_AUTH);
	ck_assert_int_eq(r->reason, REASON_ROTATION_LOST);
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_FAILED), 1);
	ck_assert(series_value(metrics_get(M_ROTATION_LOST, NULL, NULL)) == 1);
	ck_assert_uint_eq(w->sent, 2);
	world_end(w);
}
END_TEST

START_TEST(refusal_without_a_doubt_is_an_invalid_grant)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->script[0] = ANSWER_500;
	w->script[1] = ANSWER_NEVER_SENT;
	w->script[2] = ANSWER_DEAD;
	w->n_script = 3;
	for (int i = 0; i < 3; i++)
		world_refresh(w, r);
	ck_assert_int_eq(r->reason, REASON_INVALID_GRANT);
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_PENDING), 1);
	ck_assert_uint_eq(world_events(r, EVENT_REFRESH_FAILED), 1);
	ck_assert(series_value(metrics_get(M_ROTATION_LOST, NULL, NULL)) == 0);
	world_end(w);
}
END_TEST

START_TEST(lease_that_ran_out_is_a_doubt)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	r->owner = 3; /* another instance died with it */
	r->attempt = 99;
	r->lease_until = sys_wall_us() + SECONDS(10);
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_uint_eq(w->sent, 0); /* still leased */
	fake_loop_run_for(w->loop, SECONDS(11));
	w->mode = ANSWER_DEAD;
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->reason, REASON_ROTATION_LOST);
	world_end(w);
}
END_TEST

START_TEST(unreadable_success_is_kept_sealed_and_counted_as_a_doubt)
{
	struct world *w = start(STRICT);
	w->faults_ok = true; /* the provider did answer; we could not read it */
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->script[0] = ANSWER_MALFORMED;
	w->n_script = 1;
	world_refresh(w, r);
	ck_assert_int_eq(r->raws, 1);
	ck_assert_int_eq(r->doubts, 1);
	ck_assert_int_eq(r->reason, REASON_BAD_REPLY);
	ck_assert_int_eq(r->health, HEALTH_PENDING);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- the failure cycle */

START_TEST(dead_grant_fails_once_and_leaves_the_schedule)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->mode = ANSWER_DEAD;
	world_refresh(w, r);
	ck_assert_uint_eq(r->n_events, 1);
	ck_assert_int_eq(r->events[0], EVENT_REFRESH_FAILED);
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert_int_eq(w->last.next_due_at, TIME_NEVER);
	ck_assert_uint_eq(w->outbox, 1);
	char text[256];
	fake_row_refresh_token(w->store, r, text);
	ck_assert_str_eq(text, "rt-c1-0"); /* kept */
	world_end(w);
}
END_TEST

START_TEST(pending_and_recovered_are_told_once_in_a_cycle)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->script[0] = w->script[1] = w->script[2] = ANSWER_500;
	w->n_script = 3;
	int64_t waits[3];
	for (int i = 0; i < 3; i++) {
		world_refresh(w, r);
		waits[i] = r->due_at - sys_wall_us();
	}
	ck_assert_int_le(waits[0], SECONDS(1));
	ck_assert_int_ge(waits[2], SECONDS(2) - US_PER_MS * 60);
	ck_assert_int_le(waits[2], SECONDS(4));
	ck_assert_int_eq(r->failures, 3);
	ck_assert_int_eq(r->state, CONN_CALLABLE);
	ck_assert_uint_eq(r->n_events, 1);
	world_refresh(w, r);
	world_refresh(w, r);
	ck_assert_int_eq(r->failures, 0);
	ck_assert_int_eq(r->first_failed_at, 0);
	ck_assert_uint_eq(r->n_events, 2);
	ck_assert_int_eq(r->events[0], EVENT_REFRESH_PENDING);
	ck_assert_int_eq(r->events[1], EVENT_REFRESH_RECOVERED);
	world_end(w);
}
END_TEST

START_TEST(retry_window_over_is_failed)
{
	struct world *w = world_new(3, NONE, "retry_window: 10m", false);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->choose = NULL;
	w->mode = ANSWER_NEVER_SENT;
	int64_t begin = sys_wall_us();
	for (int i = 0; i < 100 && r->due_at != TIME_NEVER; i++) {
		struct gate *g = budget_gate(w->budget, "app", "sim");
		int64_t when = gate_when(g, sys_mono_us());
		if (when > sys_mono_us())
			fake_loop_run_until(w->loop, when);
		world_refresh(w, r);
	}
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert_int_ge(sys_wall_us() - begin, MINUTES(10));
	ck_assert_int_lt(sys_wall_us() - begin, MINUTES(26));
	ck_assert_int_eq(r->reason, REASON_RETRY_WINDOW_OVER);
	ck_assert_uint_eq(r->n_events, 2);
	ck_assert_int_eq(r->events[1], EVENT_REFRESH_FAILED);
	world_end(w);
}
END_TEST

START_TEST(broken_client_marks_nobody_and_opens_its_breaker_once)
{
	struct world *w = start(STRICT);
	struct fake_row *r[4];
	char name[4][16];
	for (int i = 0; i < 4; i++) {
		(void)snprintf(name[i], sizeof name[i], "c%d", i);
		r[i] = world_add(w, name[i], 0, SECONDS(3600));
	}
	w->mode = ANSWER_BAD_CLIENT;
	struct refresh_want v[3] = { 0 };
	struct gate *g = budget_gate(w->budget, "app", "sim");
	for (int i = 0; i < 3; i++) {
		memcpy(v[i].id, r[i]->id, 16);
		v[i].due_at = r[i]->due_at;
		v[i].gate = g;
		gate_take(g, sys_mono_us());
	}
	refresh_claim(w->refresh, v, 3);
	world_settle(w);
	ck_assert_uint_eq(w->sent, 3);
	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(r[i]->health, HEALTH_OK);
		ck_assert_uint_eq(r[i]->n_events, 0);
		ck_assert_int_eq(r[i]->failures, 0);
		ck_assert_int_gt(r[i]->due_at, sys_wall_us());
	}
	ck_assert(gate_is_open(g));
	ck_assert_uint_eq(fake_store_counts(w->store)->provider_events, 1);
	ck_assert_int_eq(fake_store_counts(w->store)->last_provider_event, EVENT_PROVIDER_FAILING);
	ck_assert_str_eq(fake_store_counts(w->store)->last_provider_reason, "client_refused");
	ck_assert(!world_claim(w, r[3]));
	/* the canary, which still fails */
	fake_loop_run_until(w->loop, gate_when(g, sys_mono_us()));
	ck_assert(world_claim(w, r[3]));
	ck_assert_int_eq(gate_when(g, sys_mono_us()), BUDGET_UNKNOWN);
	world_wait_gone(w, r[3]);
	ck_assert_uint_eq(fake_store_counts(w->store)->provider_events, 1);
	ck_assert_int_gt(gate_when(g, sys_mono_us()), sys_mono_us() + SECONDS(29));
	w->mode = ANSWER_OK;
	fake_loop_run_until(w->loop, gate_when(g, sys_mono_us()));
	if (r[3]->due_at > sys_wall_us())
		fake_loop_run_for(w->loop, r[3]->due_at - sys_wall_us());
	ck_assert(world_claim(w, r[3]));
	world_wait_gone(w, r[3]);
	ck_assert(!gate_is_open(g));
	ck_assert_uint_eq(fake_store_counts(w->store)->provider_events, 2);
	ck_assert_int_eq(fake_store_counts(w->store)->last_provider_event, EVENT_PROVIDER_RECOVERED);
	world_end(w);
}
END_TEST

START_TEST(rate_limit_holds_the_provider_and_marks_nobody)
{
	struct world *w = start(STRICT);
	struct fake_row *a = world_add(w, "a", 0, SECONDS(3600)), *b = world_add(w, "b", 0, SECONDS(3600));
	w->mode = ANSWER_429;
	world_refresh(w, a);
	ck_assert_int_eq(a->health, HEALTH_OK);
	ck_assert_uint_eq(a->n_events, 0);
	ck_assert_int_ge(a->due_at, sys_wall_us() + SECONDS(30));
	ck_assert(!world_claim(w, b));
	struct gate *g = budget_gate(w->budget, "app", "sim");
	ck_assert_int_eq(gate_when(g, sys_mono_us()), sys_mono_us() + SECONDS(30));
	w->mode = ANSWER_OK;
	fake_loop_run_for(w->loop, SECONDS(30));
	ck_assert(world_claim(w, b));
	world_wait_gone(w, b);
	world_end(w);
}
END_TEST

START_TEST(rate_limit_after_expiry_is_a_failure)
{
	struct world *w = start(STRICT);
	struct fake_row *a = world_add(w, "a", 0, -SECONDS(1));
	w->mode = ANSWER_429;
	world_refresh(w, a);
	ck_assert_int_eq(a->health, HEALTH_PENDING);
	ck_assert_int_eq(a->reason, REASON_RATE_LIMITED);
	world_end(w);
}
END_TEST

START_TEST(provider_breaker_marks_only_those_that_failed)
{
	struct world *w = start(STRICT);
	struct fake_row *r[8];
	char name[16];
	for (int i = 0; i < 8; i++) {
		(void)snprintf(name, sizeof name, "c%d", i);
		r[i] = world_add(w, name, 0, SECONDS(3600));
	}
	w->mode = ANSWER_500;
	for (int i = 0; i < 5; i++) {
		ck_assert(world_claim(w, r[i]));
		world_wait_gone(w, r[i]);
	}
	for (int i = 5; i < 8; i++)
		ck_assert(!world_claim(w, r[i]));
	ck_assert_uint_eq(fake_store_counts(w->store)->provider_events, 1);
	struct gate *g = budget_gate(w->budget, "app", "sim");
	w->mode = ANSWER_OK;
	fake_loop_run_until(w->loop, gate_when(g, sys_mono_us()));
	ck_assert(world_claim(w, r[5]));
	fake_loop_settle(w->loop);
	ck_assert(!world_claim(w, r[6])); /* one canary */
	world_wait_gone(w, r[5]);
	ck_assert(world_claim(w, r[6]));
	world_wait_gone(w, r[6]);
	ck_assert_uint_eq(fake_store_counts(w->store)->provider_events, 2);
	for (int i = 0; i < 8; i++)
		ck_assert_int_eq(r[i]->health, i < 5 ? HEALTH_PENDING : HEALTH_OK);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- the database */

START_TEST(import_during_the_flight_wins)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->latency_us = SECONDS(1);
	ck_assert(world_claim(w, r));
	fake_loop_settle(w->loop);
	ck_assert_uint_eq(w->sent, 1);
	int64_t due = sys_wall_us() + SECONDS(1000);
	fake_store_import(w->store, r, "rt-imported-0", due, sys_wall_us() + SECONDS(2000));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->refreshes, 0);
	ck_assert_int_eq(r->orphans, 1);
	ck_assert_int_eq(r->due_at, due);
	ck_assert_int_eq(r->owner, 0); /* the loser gives its lease back */
	char text[256];
	fake_row_refresh_token(w->store, r, text);
	ck_assert_str_eq(text, "rt-imported-0");
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, NULL));
	world_end(w);
}
END_TEST

START_TEST(lease_that_ran_out_behind_an_import_is_no_doubt)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	r->owner = 3; /* another instance died with it */
	r->attempt = 99;
	r->lease_until = sys_wall_us() + SECONDS(10);
	fake_store_import(w->store, r, "rt-c1-0", sys_wall_us(), sys_wall_us() + SECONDS(300));
	fake_loop_run_for(w->loop, SECONDS(11));
	w->mode = ANSWER_DEAD;
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->reason, REASON_INVALID_GRANT);
	world_end(w);
}
END_TEST

START_TEST(import_during_a_refusal_is_not_marked)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	w->latency_us = SECONDS(1);
	w->mode = ANSWER_DEAD;
	ck_assert(world_claim(w, r));
	fake_loop_settle(w->loop);
	fake_store_import(w->store, r, "rt-imported-0", sys_wall_us() + SECONDS(1000), sys_wall_us() + SECONDS(2000));
	world_wait_gone(w, r);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_uint_eq(r->n_events, 0);
	world_end(w);
}
END_TEST

static void add_many(struct world *w, struct fake_row **r, int n)
{
	struct refresh_want v[REFRESH_BATCH] = { 0 };
	struct gate *g = budget_gate(w->budget, "app", "sim");
	for (int i = 0; i < n; i++) {
		char name[16];
		(void)snprintf(name, sizeof name, "m%d", i);
		r[i] = world_add(w, name, 0, SECONDS(3600));
		memcpy(v[i].id, r[i]->id, 16);
		v[i].due_at = r[i]->due_at;
		v[i].gate = g;
		gate_take(g, sys_mono_us());
	}
	refresh_claim(w->refresh, v, (size_t)n);
}

START_TEST(results_that_come_together_are_written_together)
{
	struct world *w = start(STRICT);
	struct fake_row *r[100];
	add_many(w, r, 100);
	world_settle(w);
	for (int i = 0; i < 100; i++)
		ck_assert_int_eq(r[i]->refreshes, 1);
	ck_assert_uint_eq(fake_store_counts(w->store)->claims, 1);
	ck_assert_uint_ge(fake_store_counts(w->store)->biggest_batch, 90);
	world_end(w);
}
END_TEST

START_TEST(row_that_cannot_be_written_does_not_hold_up_the_others)
{
	struct world *w = start(STRICT);
	struct fake_row *r[20];
	const struct conn_key k = { .application_id = "app", .consumer_id = "m7", .unified_api = "accounting", .service_id = "sim" };
	uint8_t id[16];
	conn_id_of(&k, id);
	fake_store_poison(w->store, id);
	add_many(w, r, 20);
	fake_loop_run_for(w->loop, SECONDS(5));
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(r[i]->refreshes, i != 7);
	ck_assert_int_eq(r[7]->due_at, TIME_NEVER);
	ck_assert_uint_eq(fake_store_counts(w->store)->quarantines, 1);
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 0);
	size_t n;
	ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, &n)); /* its reply is kept */
	ck_assert_ptr_null(fake_journal_open_record(1, NULL, &n));
	world_end(w);
}
END_TEST

START_TEST(row_that_cannot_be_claimed_does_not_hold_up_the_others)
{
	struct world *w = start(STRICT);
	struct fake_row *r[20];
	const struct conn_key k = { .application_id = "app", .consumer_id = "m7", .unified_api = "accounting", .service_id = "sim" };
	uint8_t id[16];
	conn_id_of(&k, id);
	fake_store_poison_claim(w->store, id);
	add_many(w, r, 20);
	fake_loop_run_for(w->loop, SECONDS(5));
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(r[i]->refreshes, i != 7);
	ck_assert(refresh_has(w->refresh, r[7]->id)); /* nobody asks for it for a while */
	ck_assert_uint_eq(refresh_in_flight(w->refresh), 0);
	ck_assert_uint_le(fake_store_counts(w->store)->claims, 12);
	fake_store_poison_claim(w->store, NULL);
	fake_loop_run_for(w->loop, MINUTES(5));
	ck_assert(!refresh_has(w->refresh, r[7]->id));
	ck_assert(world_claim(w, r[7]));
	world_settle(w);
	ck_assert_int_eq(r[7]->refreshes, 1);
	world_end(w);
}
END_TEST

START_TEST(row_that_others_keep_locked_waits_alone)
{
	struct world *w = start(STRICT);
	struct fake_row *r[20];
	fake_store_fail_persist(w->store, 2, PG_CLASS_RETRY, false);
	add_many(w, r, 20);
	fake_loop_run_for(w->loop, SECONDS(5));
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(r[i]->refreshes, 1);
	ck_assert_uint_ge(fake_store_counts(w->store)->persists, 20); /* after the second refusal each by itself */
	world_end(w);
}
END_TEST

START_TEST(quarantine_waits_for_the_database)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_poison(w->store, r->id);
	ck_assert(world_claim(w, r));
	while (fake_store_counts(w->store)->persists == 0)
		fake_loop_run_for(w->loop, US_PER_MS);
	fake_store_set_writable(w->store, false);
	fake_loop_run_for(w->loop, SECONDS(30));
	fake_store_set_writable(w->store, true);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert(!refresh_has(w->refresh, r->id));
	world_end(w);
}
END_TEST

/* Neither its result nor its quarantine is taken. */
static struct fake_row *held_row(struct world *w, bool renewable)
{
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_store_poison(w->store, r->id);
	fake_store_poison_more(w->store, true, !renewable);
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, SECONDS(5));
	ck_assert(refresh_has(w->refresh, r->id));
	return r;
}

START_TEST(answered_row_that_takes_no_write_at_all_stays_in_hand_and_leased)
{
	struct world *w = start(STRICT);
	struct fake_row *r = held_row(w, true);
	for (int i = 0; i < 3600; i++) {
		fake_loop_run_for(w->loop, SECONDS(1));
		ck_assert(refresh_has(w->refresh, r->id)); /* so we do not claim it */
		ck_assert_int_gt(r->lease_until, sys_wall_us()); /* nor does anybody else */
	}
	ck_assert_uint_eq(w->sent, 1);
	ck_assert_uint_le(fake_store_counts(w->store)->holds, 300);
	ck_assert_uint_eq(world_logged(w, "refresh.held"), 1);
	struct fake_row *other = world_add(w, "c2", 0, SECONDS(300));
	ck_assert(world_claim(w, other));
	world_settle(w);
	ck_assert_int_eq(other->refreshes, 1);
	fake_store_poison(w->store, NULL); /* its token is written, without a restart */
	fake_loop_run_for(w->loop, MINUTES(1));
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert(world_token_is_live(w, r));
	ck_assert(!refresh_has(w->refresh, r->id));
	size_t n;
	ck_assert_ptr_null(fake_journal_open_record(0, NULL, &n));
	world_end(w);
}
END_TEST

START_TEST(held_row_that_can_be_set_aside_later_is)
{
	struct world *w = start(STRICT);
	struct fake_row *r = held_row(w, false);
	fake_loop_run_for(w->loop, MINUTES(30));
	ck_assert(refresh_has(w->refresh, r->id));
	fake_store_poison_more(w->store, false, false);
	fake_loop_run_for(w->loop, MINUTES(1));
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert(!refresh_has(w->refresh, r->id));
	size_t n;
	ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, &n));
	world_end(w);
}
END_TEST

START_TEST(held_row_does_not_hold_up_a_start_and_is_held_by_it)
{
	struct world *w = start(STRICT);
	struct fake_row *r = held_row(w, true);
	world_kill(w, true);
	fake_loop_run_for(w->loop, SECONDS(5));
	ck_assert(refresh_replayed(w->refresh));
	ck_assert_uint_eq(w->replayed, 1);
	ck_assert(refresh_has(w->refresh, r->id));
	ck_assert_int_eq(r->owner, store_epoch(w->store)); /* else it would be freed with the other leases of the earlier life */
	fake_loop_run_for(w->loop, MINUTES(10));
	ck_assert_int_gt(r->lease_until, sys_wall_us());
	ck_assert_uint_eq(w->sent, 1);
	fake_store_poison(w->store, NULL);
	fake_loop_run_for(w->loop, MINUTES(1));
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert(world_token_is_live(w, r));
	world_end(w);
}
END_TEST

START_TEST(answer_that_is_nowhere_else_is_held_although_its_row_is_set_aside)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(300));
	fake_journal_fail_append(ST_IO);
	fake_store_poison(w->store, r->id);
	ck_assert(world_claim(w, r));
	fake_loop_run_for(w->loop, MINUTES(10));
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert(refresh_has(w->refresh, r->id));
	fake_store_poison(w->store, NULL);
	fake_loop_run_for(w->loop, MINUTES(1));
	ck_assert_int_eq(r->refreshes, 1);
	ck_assert(world_token_is_live(w, r));
	ck_assert(!refresh_has(w->refresh, r->id));
	world_end(w);
}
END_TEST

START_TEST(held_row_gives_way_to_an_import)
{
	struct world *w = start(STRICT);
	struct fake_row *r = held_row(w, true);
	fake_store_import(w->store, r, "rt-imported-0", sys_wall_us() + SECONDS(1000), sys_wall_us() + SECONDS(2000));
	fake_store_poison(w->store, NULL);
	fake_loop_run_for(w->loop, MINUTES(1));
	ck_assert(!refresh_has(w->refresh, r->id));
	ck_assert_int_eq(r->owner, 0);
	ck_assert_int_eq(r->orphans, 1);
	world_end(w);
}
END_TEST

START_TEST(long_outage_with_answers_in_hand_loses_and_repeats_nothing)
{
	struct world *w = start(STRICT);
	struct fake_row *r[50];
	add_many(w, r, 50);
	fake_loop_run_for(w->loop, 10 * US_PER_MS);
	ck_assert_uint_eq(w->sent, 50);
	fake_store_set_writable(w->store, false);
	fake_loop_run_for(w->loop, MINUTES(10));
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 50);
	ck_assert_uint_eq(refresh_room(w->refresh), 0);
	unsigned tries = fake_store_counts(w->store)->persists;
	ck_assert_uint_gt(tries, 50);
	ck_assert_uint_lt(tries, 400); /* backoff, not a busy loop */
	fake_store_set_writable(w->store, true);
	fake_loop_run_for(w->loop, SECONDS(10));
	for (int i = 0; i < 50; i++) {
		ck_assert_int_eq(r[i]->refreshes, 1);
		ck_assert(world_token_is_live(w, r[i]));
	}
	ck_assert_uint_eq(w->sent, 50);
	ck_assert_uint_eq(refresh_unsettled(w->refresh), 0);
	world_end(w);
}
END_TEST

START_TEST(unwritten_answers_count_against_the_limit)
{
	struct world *w = world_new(1, STRICT, "max_in_flight: 20", false);
	struct fake_row *r[16];
	fake_store_fail_persist(w->store, 1000, PG_CLASS_RETRY, false);
	add_many(w, r, 16);
	world_settle(w);
	ck_assert_uint_eq(refresh_in_flight(w->refresh), 0);
	ck_assert_uint_eq(refresh_room(w->refresh), 18);
	world_end(w);
}
END_TEST

/* ---------------------------------------------------------------- drain */

static void on_drained(void *arg)
{
	struct world *w = arg;
	w->drained = true;
	w->drains++;
}

START_TEST(drain_finishes_what_is_out_and_releases_what_is_not)
{
	struct world *w = start(STRICT);
	struct fake_row *out = world_add(w, "out", 0, SECONDS(3600)), *claimed = world_add(w, "claimed", 0, SECONDS(3600)),
			*late = world_add(w, "late", 0, SECONDS(3600));
	w->latency_us = SECONDS(20);
	ck_assert(world_claim(w, out));
	fake_loop_settle(w->loop);
	ck_assert(world_claim(w, claimed));
	refresh_drain(w->refresh, on_drained, w);
	ck_assert(!world_claim(w, late));
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert(!w->drained);
	ck_assert_int_eq(claimed->owner, 0);
	ck_assert_uint_eq(w->sent, 1);
	fake_loop_run_for(w->loop, SECONDS(11));
	ck_assert_uint_eq(w->drains, 1);
	ck_assert_int_eq(out->refreshes, 1);
	fake_loop_run_for(w->loop, MINUTES(1));
	ck_assert_uint_eq(w->drains, 1);
	ck_assert_uint_eq(w->sent, 1);
	world_end(w);
}
END_TEST

START_TEST(claims_that_cannot_be_given_back_are_left_to_their_leases)
{
	struct world *w = start(STRICT);
	struct fake_row *r = world_add(w, "c1", 0, SECONDS(3600));
	ck_assert(world_claim(w, r));
	fake_store_blame_releases(w->store);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert(!refresh_has(w->refresh, r->id));
	ck_assert_uint_eq(w->sent, 0);
	ck_assert_uint_eq(fake_store_counts(w->store)->releases, 3);
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert(w->drained);
	world_end(w);
}
END_TEST

START_TEST(row_that_cannot_be_claimed_does_not_hold_up_the_end)
{
	struct world *w = start(STRICT);
	struct fake_row *r[3];
	const struct conn_key k = { .application_id = "app", .consumer_id = "m1", .unified_api = "accounting", .service_id = "sim" };
	uint8_t id[16];
	conn_id_of(&k, id);
	fake_store_poison_claim(w->store, id);
	add_many(w, r, 3);
	fake_loop_run_for(w->loop, SECONDS(5));
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, SECONDS(1));
	ck_assert(w->drained);
	world_end(w);
}
END_TEST

START_TEST(drain_leaves_a_held_row_to_the_journal)
{
	struct world *w = start(STRICT);
	struct fake_row *r = held_row(w, true);
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert(w->drained);
	ck_assert_int_gt(r->lease_until, sys_wall_us());
	size_t n;
	ck_assert_ptr_nonnull(fake_journal_open_record(0, NULL, &n));
	world_end(w);
}
END_TEST

START_TEST(drain_does_not_wait_for_a_held_row_without_an_answer)
{
	struct world *w = start(STRICT);
	w->mode = ANSWER_CUT_AFTER;
	(void)held_row(w, true);
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, SECONDS(2));
	ck_assert(w->drained);
	world_end(w);
}
END_TEST

START_TEST(drain_keeps_a_held_row_that_only_memory_knows)
{
	struct world *w = start(STRICT);
	fake_journal_fail_append(ST_IO);
	struct fake_row *r = held_row(w, true);
	refresh_drain(w->refresh, on_drained, w);
	fake_loop_run_for(w->loop, SECONDS(10));
	ck_assert(!w->drained);
	fake_store_poison(w->store, NULL);
	fake_loop_run_for(w->loop, MINUTES(1));
	ck_assert(w->drained);
	ck_assert_int_eq(r->refreshes, 1);
	world_end(w);
}
END_TEST

START_TEST(drain_of_nothing_is_told_in_a_later_turn)
{
	struct world *w = start(STRICT);
	refresh_drain(w->refresh, on_drained, w);
	ck_assert(!w->drained);
	fake_loop_settle(w->loop);
	ck_assert_uint_eq(w->drains, 1);
	world_end(w);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("refresh");
	TCase *t = tcase_create("refresh");
	tcase_set_timeout(t, 60);
	unit_add(t, one_request_for_one_claim);
	unit_add(t, absent_refresh_token_keeps_the_old_one);
	unit_add(t, client_credentials_are_renewed_without_a_refresh_token);
	unit_add(t, stale_hint_costs_an_empty_claim);
	unit_add(t, one_claim_at_a_time_and_none_for_what_is_in_hand);
	unit_add(t, unknown_claim_sends_nothing_and_gives_the_lease_back);
	unit_add(t, failed_claim_sends_nothing);
	unit_add(t, nothing_is_sent_on_a_lease_that_is_too_short);
	unit_add(t, nothing_is_claimed_while_the_journal_cannot_be_written);
	unit_add(t, nothing_is_claimed_while_the_database_cannot_be_written);
	unit_add(t, changed_credential_is_given_back);
	unit_add(t, token_that_cannot_be_opened_is_put_off);
	unit_add(t, disabled_connection_leaves_the_schedule);
	unit_add(t, a_connection_that_is_switched_on_meanwhile_stays_in_the_schedule);
	unit_add(t, reply_is_durable_before_it_is_parsed);
	unit_add(t, failed_sync_goes_on_to_the_database);
	unit_add(t, death_while_claiming_is_a_doubt);
	unit_add(t, death_while_sending_is_a_doubt_and_the_lease_is_freed_at_once);
	unit_add(t, death_before_the_sync_is_a_doubt);
	unit_add(t, death_after_the_sync_is_replayed);
	unit_add(t, death_while_persisting_is_replayed);
	unit_add(t, lost_commit_answer_is_found_to_be_there_already);
	unit_add(t, row_that_another_writes_just_then_is_written_again);
	unit_add(t, replay_waits_for_a_database_that_is_away);
	unit_add(t, replay_of_a_connection_that_is_gone_is_done);
	unit_add(t, unreadable_record_stays_and_does_not_stop_the_replay);
	unit_add(t, record_whose_clear_part_was_changed_is_not_replayed);
	unit_add(t, answered_row_whose_record_cannot_be_opened_leaves_the_schedule);
	unit_add(t, two_open_records_of_one_connection_are_both_replayed);
	unit_add(t, lost_reply_without_rotation_is_no_doubt);
	unit_add(t, lost_reply_within_grace_is_found_again);
	unit_add(t, request_that_never_arrived_is_saved_by_trying_again_when_strict);
	unit_add(t, lost_rotation_is_called_by_its_name);
	unit_add(t, refusal_without_a_doubt_is_an_invalid_grant);
	unit_add(t, lease_that_ran_out_is_a_doubt);
	unit_add(t, unreadable_success_is_kept_sealed_and_counted_as_a_doubt);
	unit_add(t, dead_grant_fails_once_and_leaves_the_schedule);
	unit_add(t, pending_and_recovered_are_told_once_in_a_cycle);
	unit_add(t, retry_window_over_is_failed);
	unit_add(t, broken_client_marks_nobody_and_opens_its_breaker_once);
	unit_add(t, rate_limit_holds_the_provider_and_marks_nobody);
	unit_add(t, rate_limit_after_expiry_is_a_failure);
	unit_add(t, provider_breaker_marks_only_those_that_failed);
	unit_add(t, import_during_the_flight_wins);
	unit_add(t, lease_that_ran_out_behind_an_import_is_no_doubt);
	unit_add(t, import_during_a_refusal_is_not_marked);
	unit_add(t, results_that_come_together_are_written_together);
	unit_add(t, row_that_cannot_be_written_does_not_hold_up_the_others);
	unit_add(t, row_that_cannot_be_claimed_does_not_hold_up_the_others);
	unit_add(t, claims_that_cannot_be_given_back_are_left_to_their_leases);
	unit_add(t, row_that_cannot_be_claimed_does_not_hold_up_the_end);
	unit_add(t, row_that_others_keep_locked_waits_alone);
	unit_add(t, quarantine_waits_for_the_database);
	unit_add(t, answered_row_that_takes_no_write_at_all_stays_in_hand_and_leased);
	unit_add(t, held_row_that_can_be_set_aside_later_is);
	unit_add(t, held_row_does_not_hold_up_a_start_and_is_held_by_it);
	unit_add(t, answer_that_is_nowhere_else_is_held_although_its_row_is_set_aside);
	unit_add(t, held_row_gives_way_to_an_import);
	unit_add(t, long_outage_with_answers_in_hand_loses_and_repeats_nothing);
	unit_add(t, unwritten_answers_count_against_the_limit);
	unit_add(t, drain_finishes_what_is_out_and_releases_what_is_not);
	unit_add(t, drain_leaves_a_held_row_to_the_journal);
	unit_add(t, drain_does_not_wait_for_a_held_row_without_an_answer);
	unit_add(t, drain_keeps_a_held_row_that_only_memory_knows);
	unit_add(t, drain_of_nothing_is_told_in_a_later_turn);
	suite_add_tcase(s, t);
	return s;
}
