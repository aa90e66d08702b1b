/*
 * The loop on the real kernel: turns, timers, deferred calls, signals, the clock watch, the stall clock.
 * timerfd_settime is replaced here, because a test must not set the clock of the machine it runs on.
 */
#include "unit/unit.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/sys.h"
#include "io/loop.h"

static struct loop *l;
static char trace[256];
static int calls;

static void setup(void)
{
	struct fault f;
	ck_ok(loop_new(&l, &f));
	trace[0] = '\0';
	calls = 0;
}

static void teardown(void)
{
	loop_free(l);
	l = NULL;
	sys_set(NULL);
}

static void note(void *arg)
{
	const char *word = arg;
	ck_assert(strlen(trace) + strlen(word) < sizeof trace);
	strcat(trace, word);
	calls++;
}

static void stop(void *arg)
{
	(void)arg;
	loop_stop(l);
}

static char word_a[] = "a", word_b[] = "b", word_c[] = "c", word_h[] = "h";

START_TEST(timers_fire_in_order_and_never_early)
{
	struct loop_timer *a = loop_timer_new(l, note, word_a), *b = loop_timer_new(l, note, word_b);
	struct loop_timer *end = loop_timer_new(l, stop, NULL);
	int64_t start = sys_mono_us();
	loop_timer_after(b, 20 * US_PER_MS);
	loop_timer_after(a, 5 * US_PER_MS);
	loop_timer_at(end, start + 30 * US_PER_MS);
	ck_assert(loop_timer_is_set(a));
	ck_ok(loop_run(l));
	ck_assert_str_eq(trace, "ab");
	ck_assert_int_ge(sys_mono_us() - start, 30 * US_PER_MS);
	ck_assert(!loop_timer_is_set(a));
	loop_timer_free(a);
	loop_timer_free(b);
	loop_timer_free(end);
	loop_timer_free(NULL);
}
END_TEST

static int64_t fired_at;

static void note_time(void *arg)
{
	(void)arg;
	fired_at = sys_mono_us();
	calls++;
}

/* libevent counts from the time it cached at the start of the turn; a timer set late in a long turn
 * must count from when it was set. */
static void long_callback(void *arg)
{
	int64_t until = sys_mono_us() + 40 * US_PER_MS;
	while (sys_mono_us() < until)
		;
	loop_timer_after(arg, 20 * US_PER_MS);
}

START_TEST(a_timer_set_late_in_a_long_turn_does_not_fire_early)
{
	struct loop_timer *t = loop_timer_new(l, note_time, NULL);
	struct loop_timer *busy = loop_timer_new(l, long_callback, t);
	int64_t start = sys_mono_us();
	loop_timer_after(busy, 0);
	while (calls == 0)
		loop_once(l, US_PER_S);
	ck_assert_int_ge(fired_at - start, 60 * US_PER_MS);
	loop_timer_free(t);
	loop_timer_free(busy);
}
END_TEST

START_TEST(waits_of_about_the_same_time_end_together)
{
	struct loop_timer *a = loop_timer_new(l, note_time, NULL), *b = loop_timer_new(l, note_time, NULL);
	int64_t start = sys_mono_us();
	int64_t half_past = 5 * US_PER_S / 2 - start % US_PER_S; /* so that both mean the same second */
	if (half_past < 2 * US_PER_S)
		half_past += US_PER_S;
	loop_timer_about(a, half_past);
	loop_timer_about(b, half_past + 100 * US_PER_MS);
	while (calls == 0)
		loop_once(l, US_PER_S);
	ck_assert_int_ge(fired_at - start, half_past - US_PER_S);
	ck_assert_int_lt(fired_at - start, half_past);
	loop_once(l, 2 * US_PER_MS);
	ck_assert_int_eq(calls, 2);
	loop_timer_about(a, 3 * US_PER_MS); /* a short wait is as long as it is */
	start = sys_mono_us();
	while (calls == 2)
		loop_once(l, US_PER_S);
	ck_assert_int_ge(fired_at - start, 3 * US_PER_MS - 100);
	loop_timer_free(a);
	loop_timer_free(b);
}
END_TEST

START_TEST(setting_a_timer_calls_nothing_and_moves_a_set_one)
{
	struct loop_timer *t = loop_timer_new(l, note, word_a);
	loop_timer_at(t, 0);
	ck_assert_int_eq(calls, 0);
	loop_timer_after(t, 3600 * US_PER_S);
	loop_once(l, 0);
	ck_assert_int_eq(calls, 0);
	loop_timer_at(t, sys_mono_us() - US_PER_S);
	loop_once(l, US_PER_S);
	ck_assert_int_eq(calls, 1);
	loop_timer_after(t, INT64_MAX);
	loop_once(l, 0);
	ck_assert(loop_timer_is_set(t));
	loop_timer_after(t, 0);
	loop_timer_stop(t);
	loop_once(l, 0);
	loop_once(l, 0);
	ck_assert_int_eq(calls, 1);
	loop_timer_free(t);
}
END_TEST

static void free_timer(void *arg)
{
	struct loop_timer **t = arg;
	loop_timer_free(*t);
	*t = NULL;
}

static void free_both(void *arg)
{
	struct loop_timer **t = arg;
	free_timer(&t[0]);
	free_timer(&t[1]);
	calls++;
}

START_TEST(a_callback_may_free_its_own_timer_and_another_that_is_due)
{
	struct loop_timer *t[2];
	t[0] = loop_timer_new(l, free_both, t);
	t[1] = loop_timer_new(l, free_both, t);
	loop_timer_at(t[0], 0);
	loop_timer_at(t[1], 0);
	loop_once(l, US_PER_S);
	loop_once(l, 0);
	ck_assert_int_eq(calls, 1);
	ck_assert_ptr_null(t[0]);
	ck_assert_ptr_null(t[1]);
}
END_TEST

static struct loop_task task_a, task_b, task_c;

static void note_and_defer_c(void *arg)
{
	note(arg);
	loop_defer(l, &task_c);
}

START_TEST(deferred_calls_run_once_in_order_before_the_hooks)
{
	loop_task_init(&task_a, note_and_defer_c, word_a);
	loop_task_init(&task_b, note, word_b);
	loop_task_init(&task_c, note, word_c);
	ck_ok(loop_on_turn_end(l, note, word_h));
	loop_defer(l, &task_a);
	loop_defer(l, &task_b);
	loop_defer(l, &task_a);
	ck_assert_int_eq(calls, 0);
	int64_t start = sys_mono_us();
	loop_once(l, 10 * US_PER_S);
	ck_assert_int_lt(sys_mono_us() - start, 5 * US_PER_S);
	ck_assert_str_eq(trace, "abch");
	loop_off_turn_end(l, note, word_h);
	loop_once(l, 0);
	ck_assert_str_eq(trace, "abch");
}
END_TEST

START_TEST(an_undeferred_call_does_not_run)
{
	loop_task_init(&task_a, note, word_a);
	loop_task_init(&task_b, note, word_b);
	loop_task_init(&task_c, note, word_c);
	loop_defer(l, &task_a);
	loop_defer(l, &task_b);
	loop_defer(l, &task_c);
	loop_undefer(l, &task_b);
	loop_undefer(l, &task_b);
	loop_once(l, 0);
	ck_assert_str_eq(trace, "ac");
	loop_defer(l, &task_a);
	loop_undefer(l, &task_a);
	loop_defer(l, &task_b);
	loop_once(l, 0);
	ck_assert_str_eq(trace, "acb");
}
END_TEST

static void defer_again(void *arg)
{
	(void)arg;
	calls++;
	loop_defer(l, &task_a);
}

START_TEST(a_call_that_defers_itself_for_ever_starves_nobody)
{
	struct loop_timer *end = loop_timer_new(l, stop, NULL);
	loop_task_init(&task_a, defer_again, NULL);
	loop_defer(l, &task_a);
	loop_timer_after(end, 10 * US_PER_MS);
	ck_ok(loop_run(l));
	ck_assert_int_gt(calls, 1000);
	loop_undefer(l, &task_a);
	loop_timer_free(end);
}
END_TEST

static void hook_defers(void *arg)
{
	loop_off_turn_end(l, hook_defers, arg);
	loop_defer(l, &task_a);
}

START_TEST(what_a_hook_defers_runs_without_waiting)
{
	loop_task_init(&task_a, stop, NULL);
	ck_ok(loop_on_turn_end(l, hook_defers, NULL));
	ck_ok(loop_on_turn_end(l, note, word_h));
	loop_once(l, 0);
	int64_t start = sys_mono_us();
	ck_ok(loop_run(l));
	ck_assert_int_lt(sys_mono_us() - start, 5 * US_PER_S);
	ck_assert_str_eq(trace, "hh");
	loop_off_turn_end(l, note, word_h);
}
END_TEST

START_TEST(hooks_are_limited_and_keep_their_order)
{
	ck_ok(loop_on_turn_end(l, note, word_a));
	for (int i = 1; i < LOOP_MAX_HOOKS; i++)
		ck_ok(loop_on_turn_end(l, note, word_b));
	ck_assert_int_eq(loop_on_turn_end(l, note, word_c), ST_FULL);
	loop_off_turn_end(l, note, word_c);
	loop_once(l, 0);
	ck_assert_str_eq(trace, "abbbbbbb");
	loop_off_turn_end(l, note, word_a);
	ck_ok(loop_on_turn_end(l, note, word_c));
	trace[0] = '\0';
	loop_once(l, 0);
	ck_assert_str_eq(trace, "bbbbbbbc");
}
END_TEST

START_TEST(a_round_with_nothing_to_do_ends_after_its_time)
{
	int64_t start = sys_mono_us();
	loop_once(l, 20 * US_PER_MS);
	int64_t took = sys_mono_us() - start;
	ck_assert_int_ge(took, 15 * US_PER_MS);
	ck_assert_int_lt(took, 10 * US_PER_S);
	/* A wait that ended early leaves nothing behind that wakes a later one. */
	loop_task_init(&task_a, note, word_a);
	loop_defer(l, &task_a);
	loop_once(l, 10 * US_PER_MS);
	start = sys_mono_us();
	loop_once(l, 60 * US_PER_MS);
	ck_assert_int_ge(sys_mono_us() - start, 50 * US_PER_MS);
}
END_TEST

START_TEST(signals_arrive_in_the_loop_and_a_broken_pipe_kills_nobody)
{
	struct fault f;
	int p[2];
	ck_ok(loop_signal(l, SIGUSR1, note, word_a, &f));
	ck_ok(loop_signal(l, SIGUSR1, note, word_b, &f));
	ck_ok(raise(SIGUSR1));
	ck_assert_int_eq(calls, 0);
	while (calls < 2)
		loop_once(l, US_PER_S);
	ck_assert_int_eq(loop_signal(l, 9999, note, word_c, &f), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(f.text, "9999"));
	ck_ok(pipe(p));
	close(p[0]);
	ck_assert_int_eq(write(p[1], "x", 1), -1);
	ck_assert_int_eq(errno, EPIPE);
	close(p[1]);
}
END_TEST

static int settime_calls, settime_flags;
static int64_t settime_s;

int timerfd_settime(int fd, int flags, const struct itimerspec *new_value, struct itimerspec *old_value)
{
	struct itimerspec soon = { .it_value = { .tv_nsec = 1000000 } };
	settime_flags = flags;
	settime_s = new_value->it_value.tv_sec;
	settime_calls++;
	/* The first two settings run out at once, as a clock that was set would wake them. */
	if (settime_calls <= 2)
		return (int)syscall(SYS_timerfd_settime, fd, 0, &soon, old_value);
	return (int)syscall(SYS_timerfd_settime, fd, flags, new_value, old_value);
}

START_TEST(a_clock_jump_is_told_and_watched_for_again)
{
	struct fault f;
	settime_calls = 0;
	ck_ok(loop_on_clock_jump(l, note, word_a, &f));
	ck_assert_int_eq(settime_calls, 1);
	ck_assert_int_eq(settime_flags, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
	ck_assert_int_gt(settime_s, sys_wall_us() / US_PER_S + 100LL * 365 * 86400);
	while (calls < 2)
		loop_once(l, US_PER_S);
	ck_assert_int_eq(settime_calls, 3);
	loop_once(l, 20 * US_PER_MS);
	ck_assert_int_eq(calls, 2);
}
END_TEST

static int64_t jumped_mono;

static int64_t jumped_now(void)
{
	return jumped_mono;
}

static int64_t wall_now(void)
{
	return 0;
}

START_TEST(after_a_suspend_timers_are_due_at_once)
{
	struct fault f;
	struct sys_ops ops = { .wall_us = wall_now, .mono_us = jumped_now, .random = NULL };
	jumped_mono = 1000 * US_PER_S;
	sys_set(&ops);
	settime_calls = 1;
	struct loop_timer *t = loop_timer_new(l, note, word_b);
	loop_timer_after(t, 3600 * US_PER_S);
	loop_once(l, 0);
	jumped_mono += 4000 * US_PER_S;
	ck_ok(loop_on_clock_jump(l, note, word_a, &f));
	while (calls < 2)
		loop_once(l, US_PER_S);
	ck_assert_str_eq(trace, "ab");
	loop_timer_free(t);
}
END_TEST

static int64_t longest_us;
static int turns;

static void on_stall(int64_t us, void *arg)
{
	(void)arg;
	turns++;
	if (us > longest_us)
		longest_us = us;
}

START_TEST(the_stall_clock_measures_turns_that_did_something)
{
	longest_us = 0;
	turns = 0;
	loop_on_stall(l, on_stall, NULL);
	loop_once(l, 30 * US_PER_MS);
	ck_assert_int_eq(turns, 0);
	struct loop_timer *t = loop_timer_new(l, note, word_a);
	struct loop_timer *busy = loop_timer_new(l, long_callback, t);
	loop_timer_after(busy, 0);
	while (calls == 0)
		loop_once(l, US_PER_S);
	ck_assert_int_eq(turns, 2);
	ck_assert_int_ge(longest_us, 40 * US_PER_MS);
	ck_assert_int_lt(longest_us, 10 * US_PER_S);
	loop_timer_free(t);
	loop_timer_free(busy);
}
END_TEST

START_TEST(a_stop_before_the_run_is_not_lost)
{
	loop_stop(l);
	ck_ok(loop_run(l));
	loop_free(NULL);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("loop");
	TCase *t = tcase_create("loop");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	unit_add(t, timers_fire_in_order_and_never_early);
	unit_add(t, a_timer_set_late_in_a_long_turn_does_not_fire_early);
	unit_add(t, waits_of_about_the_same_time_end_together);
	unit_add(t, setting_a_timer_calls_nothing_and_moves_a_set_one);
	unit_add(t, a_callback_may_free_its_own_timer_and_another_that_is_due);
	unit_add(t, deferred_calls_run_once_in_order_before_the_hooks);
	unit_add(t, an_undeferred_call_does_not_run);
	unit_add(t, a_call_that_defers_itself_for_ever_starves_nobody);
	unit_add(t, what_a_hook_defers_runs_without_waiting);
	unit_add(t, hooks_are_limited_and_keep_their_order);
	unit_add(t, a_round_with_nothing_to_do_ends_after_its_time);
	unit_add(t, signals_arrive_in_the_loop_and_a_broken_pipe_kills_nobody);
	unit_add(t, a_clock_jump_is_told_and_watched_for_again);
	unit_add(t, after_a_suspend_timers_are_due_at_once);
	unit_add(t, the_stall_clock_measures_turns_that_did_something);
	unit_add(t, a_stop_before_the_run_is_not_lost);
	suite_add_tcase(s, t);
	return s;
}
