/*
 * loop - the one event loop (libevent): timers, signals, deferred calls, the end-of-turn hook.
 *
 * A "turn" is one round of callbacks between two waits. Work that should be grouped (a journal sync, a
 * claim, a flush) hangs on the end of the turn. libevent 2.1 has no prepare hook, so the loop runs
 * EVLOOP_ONCE rounds itself. Callbacks are never called from inside the function that registers them.
 * Idle means idle: nothing here wakes the process without a reason.
 */
#ifndef REFRESHD_IO_LOOP_H
#define REFRESHD_IO_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define LOOP_MAX_HOOKS 8

struct event_base;
struct loop;
struct loop_timer;

typedef void loop_fn(void *arg);

int loop_new(struct loop **out, struct fault *f) MUST_USE;
void loop_free(struct loop *l); /* after everything that was registered has been freed */
int loop_run(struct loop *l) MUST_USE; /* until loop_stop; ST_IO when the kernel refuses to poll */
void loop_stop(struct loop *l);
/* One round: waits at most max_wait_us for something to happen. For command-line programs and tests. */
void loop_once(struct loop *l, int64_t max_wait_us);

/* One-shot timers on sys_mono_us(). Setting a set timer moves it. The callback may free its timer. */
struct loop_timer *loop_timer_new(struct loop *l, loop_fn *fn, void *arg);
void loop_timer_free(struct loop_timer *t); /* NULL is fine */
void loop_timer_at(struct loop_timer *t, int64_t mono_us); /* past: next turn */
void loop_timer_after(struct loop_timer *t, int64_t us);
/* For what goes on all the time: up to a second sooner, from five seconds on up to five, so that all waits of this kind end together and a
 * process at rest wakes up once for them. Under two seconds it is loop_timer_after. */
void loop_timer_about(struct loop_timer *t, int64_t us);
void loop_timer_stop(struct loop_timer *t);
bool loop_timer_is_set(const struct loop_timer *t);

/* Runs fn once before the loop waits again; embedded in its owner. Queuing it twice is one call. */
struct loop_task {
	loop_fn *fn;
	void *arg;
	struct loop_task *next, *prev;
	bool queued;
};
void loop_task_init(struct loop_task *t, loop_fn *fn, void *arg);
void loop_defer(struct loop *l, struct loop_task *t);
void loop_undefer(struct loop *l, struct loop_task *t);

/* Called after the callbacks and deferred calls of every turn, in the order of registration. */
int loop_on_turn_end(struct loop *l, loop_fn *fn, void *arg) MUST_USE; /* ST_FULL past LOOP_MAX_HOOKS */
void loop_off_turn_end(struct loop *l, loop_fn *fn, void *arg);

/* fn is called in the loop when the signal arrives. */
int loop_signal(struct loop *l, int signo, loop_fn *fn, void *arg, struct fault *f) MUST_USE;
/* fn is called when the wall clock was set or the machine came back from suspend (timerfd, CANCEL_ON_SET).
 * Timers of this loop are then set again by themselves: libevent's clock stands still during suspend. */
int loop_on_clock_jump(struct loop *l, loop_fn *fn, void *arg, struct fault *f) MUST_USE;

/* For the other files of io/: the libevent base, and the mark that starts the stall clock of a turn;
 * every libevent callback of ours calls it first. */
struct event_base *loop_base(struct loop *l);
void loop_enter(struct loop *l);
/* fn gets the length of each finished turn that ran callbacks. */
void loop_on_stall(struct loop *l, void (*fn)(int64_t us, void *arg), void *arg);

#endif
