/*
 * loop - one libevent base, and the turn around it that libevent does not know.
 *
 * A turn is: one EVLOOP_ONCE round, then the deferred calls, then the turn-end hooks. libevent waits on
 * CLOCK_MONOTONIC and reads a cached, coarse time; our due times are CLOCK_BOOTTIME. So a timer asks
 * sys_mono_us() again when libevent says it is due, and waits for the rest when it is not. Nothing here
 * logs, and nothing here wakes the process without a reason.
 */
#include "io/loop.h"

#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <signal.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"

#define LOOP_MAGIC 0x6c6f6f70U
#define TIMER_MAGIC 0x74696d72U
/* Deferred calls of one turn; more wait for the next one, so that calls that defer calls starve nobody. */
#define MAX_TASKS_PER_TURN 4096
/* A wall-clock second that no clock reaches (the year 2255), within the range of the kernel's ktime_t. */
#define FAR_FUTURE_S INT64_C(9000000000)

struct hook {
	loop_fn *fn;
	void *arg;
};

/* A signal or a clock jump: registered once, lives as long as the loop. */
struct watch {
	struct loop *loop;
	struct event ev;
	loop_fn *fn;
	void *arg;
	int fd; /* timerfd, -1 for a signal */
	struct watch *next;
};

struct loop_timer {
	unsigned magic;
	struct loop *loop;
	struct event ev;
	loop_fn *fn;
	void *arg;
	int64_t due_us; /* sys_mono_us() */
	bool set;
	struct loop_timer *next, *prev;
};

struct loop {
	unsigned magic;
	struct event_base *base;
	struct event wait_cap; /* ends a loop_once that found nothing to do */
	bool stopping;
	bool entered;
	int64_t entered_us;
	struct loop_task *first, *last;
	struct hook hooks[LOOP_MAX_HOOKS];
	unsigned n_hooks;
	struct watch *watches;
	struct loop_timer *timers;
	void (*on_stall)(int64_t us, void *arg);
	void *stall_arg;
};

static void on_wait_cap(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	(void)arg;
}

static struct timeval timeval_of(int64_t us)
{
	return (struct timeval){ .tv_sec = us / US_PER_S, .tv_usec = us % US_PER_S };
}

int loop_new(struct loop **out, struct fault *f)
{
	struct event_config *cfg = event_config_new();
	ALWAYS(cfg != NULL);
	ALWAYS(event_config_set_flag(cfg, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST) == 0);
	struct event_base *base = event_base_new_with_config(cfg);
	event_config_free(cfg);
	if (base == NULL)
		return fault_set(f, ST_IO, "event loop: the kernel gave no epoll descriptor: %s", strerror(errno));
	/* A peer that hangs up must be an error of one write, not the end of the process. */
	struct sigaction ignore = { .sa_handler = SIG_IGN };
	ALWAYS(sigaction(SIGPIPE, &ignore, NULL) == 0);
	ALWAYS(sigaction(SIGXFSZ, &ignore, NULL) == 0); /* a limit on files is an error of the write, like a full disk */

	struct loop *l = mem_alloc(sizeof *l);
	l->magic = LOOP_MAGIC;
	l->base = base;
	ALWAYS(event_assign(&l->wait_cap, base, -1, 0, on_wait_cap, l) == 0);
	*out = l;
	return 0;
}

struct event_base *loop_base(struct loop *l)
{
	return l->base;
}

void loop_stop(struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	l->stopping = true;
}

void loop_enter(struct loop *l)
{
	if (l->entered)
		return;
	l->entered = true;
	l->entered_us = sys_mono_us();
}

void loop_on_stall(struct loop *l, void (*fn)(int64_t us, void *arg), void *arg)
{
	l->on_stall = fn;
	l->stall_arg = arg;
}

static void run_tasks(struct loop *l)
{
	for (unsigned n = 0; l->first != NULL && n < MAX_TASKS_PER_TURN; n++) {
		struct loop_task *t = l->first;
		loop_enter(l);
		loop_undefer(l, t);
		t->fn(t->arg);
	}
}

void loop_free(struct loop *l)
{
	if (l == NULL)
		return;
	MAGIC_CHECK(l, LOOP_MAGIC);
	ALWAYS(l->timers == NULL);
	while (l->watches != NULL) {
		struct watch *w = l->watches;
		l->watches = w->next;
		event_del(&w->ev);
		if (w->fd >= 0)
			close(w->fd);
		mem_free(w);
	}
	event_del(&l->wait_cap);
	/* Canceled name queries and freed streams end in calls that the library still holds, and these in
	 * deferred calls of their owners: they own memory, and nobody else is left who could be called. */
	do {
		ALWAYS(event_base_loop(l->base, EVLOOP_ONCE | EVLOOP_NONBLOCK) >= 0);
		run_tasks(l);
	} while (event_base_get_num_events(l->base, EVENT_BASE_COUNT_ACTIVE) > 0 || l->first != NULL);
	event_base_free(l->base);
	l->magic = 0;
	mem_free(l);
}

static void end_turn(struct loop *l)
{
	run_tasks(l);
	/* A hook may take itself or another one out while it runs. */
	for (unsigned i = 0; i < l->n_hooks;) {
		struct hook h = l->hooks[i];
		h.fn(h.arg);
		if (i < l->n_hooks && l->hooks[i].fn == h.fn && l->hooks[i].arg == h.arg)
			i++;
	}
	if (!l->entered)
		return;
	l->entered = false;
	if (l->on_stall != NULL)
		l->on_stall(sys_mono_us() - l->entered_us, l->stall_arg);
}

static int turn(struct loop *l, bool may_wait)
{
	int flags = EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY;
	if (!may_wait || l->first != NULL)
		flags |= EVLOOP_NONBLOCK;
	if (event_base_loop(l->base, flags) < 0)
		return ST_IO;
	end_turn(l);
	return 0;
}

int loop_run(struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	int rc = 0;
	while (rc == 0 && !l->stopping)
		rc = turn(l, true);
	l->stopping = false;
	return rc;
}

void loop_once(struct loop *l, int64_t max_wait_us)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	if (max_wait_us > 0) {
		struct timeval tv = timeval_of(max_wait_us);
		ALWAYS(event_add(&l->wait_cap, &tv) == 0);
	}
	/* epoll_wait fails only on a descriptor or an address that we broke ourselves. */
	ALWAYS(turn(l, max_wait_us > 0) == 0);
	event_del(&l->wait_cap);
}

/* --- timers */

static void timer_arm(struct loop_timer *t, int64_t now_us)
{
	int64_t wait_us = t->due_us - now_us;
	struct timeval tv = timeval_of(wait_us > 0 ? wait_us : 0);
	ALWAYS(event_add(&t->ev, &tv) == 0);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	struct loop_timer *t = arg;
	MAGIC_CHECK(t, TIMER_MAGIC);
	(void)fd;
	(void)what;
	if (!t->set)
		return;
	int64_t now_us = sys_mono_us();
	if (now_us < t->due_us) {
		timer_arm(t, now_us);
		return;
	}
	loop_enter(t->loop);
	t->set = false;
	t->fn(t->arg);
}

struct loop_timer *loop_timer_new(struct loop *l, loop_fn *fn, void *arg)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	struct loop_timer *t = mem_alloc(sizeof *t);
	t->magic = TIMER_MAGIC;
	t->loop = l;
	t->fn = fn;
	t->arg = arg;
	ALWAYS(event_assign(&t->ev, l->base, -1, 0, on_timer, t) == 0);
	t->next = l->timers;
	if (t->next != NULL)
		t->next->prev = t;
	l->timers = t;
	return t;
}

void loop_timer_free(struct loop_timer *t)
{
	if (t == NULL)
		return;
	MAGIC_CHECK(t, TIMER_MAGIC);
	event_del(&t->ev);
	if (t->next != NULL)
		t->next->prev = t->prev;
	if (t->prev != NULL)
		t->prev->next = t->next;
	else
		t->loop->timers = t->next;
	t->magic = 0;
	mem_free(t);
}

static void timer_set(struct loop_timer *t, int64_t due_us, int64_t now_us)
{
	MAGIC_CHECK(t, TIMER_MAGIC);
	t->due_us = due_us;
	t->set = true;
	timer_arm(t, now_us);
}

void loop_timer_at(struct loop_timer *t, int64_t mono_us)
{
	timer_set(t, mono_us, sys_mono_us());
}

void loop_timer_after(struct loop_timer *t, int64_t us)
{
	int64_t at, now_us = sys_mono_us();
	if (__builtin_add_overflow(now_us, us, &at))
		at = INT64_MAX;
	timer_set(t, at, now_us);
}

void loop_timer_about(struct loop_timer *t, int64_t us)
{
	int64_t at, step = us < 5 * US_PER_S ? US_PER_S : 5 * US_PER_S;
	if (us < 2 * US_PER_S || __builtin_add_overflow(sys_mono_us(), us, &at))
		loop_timer_after(t, us);
	else
		loop_timer_at(t, at - at % step);
}

void loop_timer_stop(struct loop_timer *t)
{
	MAGIC_CHECK(t, TIMER_MAGIC);
	t->set = false;
	event_del(&t->ev);
}

bool loop_timer_is_set(const struct loop_timer *t)
{
	MAGIC_CHECK(t, TIMER_MAGIC);
	return t->set;
}

/* --- deferred calls */

void loop_task_init(struct loop_task *t, loop_fn *fn, void *arg)
{
	*t = (struct loop_task){ .fn = fn, .arg = arg };
}

void loop_defer(struct loop *l, struct loop_task *t)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	if (t->queued)
		return;
	t->queued = true;
	t->next = NULL;
	t->prev = l->last;
	if (l->last != NULL)
		l->last->next = t;
	else
		l->first = t;
	l->last = t;
}

void loop_undefer(struct loop *l, struct loop_task *t)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	if (!t->queued)
		return;
	if (t->prev != NULL)
		t->prev->next = t->next;
	else
		l->first = t->next;
	if (t->next != NULL)
		t->next->prev = t->prev;
	else
		l->last = t->prev;
	t->next = NULL;
	t->prev = NULL;
	t->queued = false;
}

/* --- turn-end hooks */

int loop_on_turn_end(struct loop *l, loop_fn *fn, void *arg)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	if (l->n_hooks == LOOP_MAX_HOOKS)
		return ST_FULL;
	l->hooks[l->n_hooks++] = (struct hook){ .fn = fn, .arg = arg };
	return 0;
}

void loop_off_turn_end(struct loop *l, loop_fn *fn, void *arg)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	for (unsigned i = 0; i < l->n_hooks; i++) {
		if (l->hooks[i].fn != fn || l->hooks[i].arg != arg)
			continue;
		memmove(&l->hooks[i], &l->hooks[i + 1], (l->n_hooks - i - 1) * sizeof l->hooks[0]);
		l->n_hooks--;
		return;
	}
}

/* --- signals and the wall clock */

static struct watch *watch_new(struct loop *l, loop_fn *fn, void *arg, int fd)
{
	struct watch *w = mem_alloc(sizeof *w);
	w->loop = l;
	w->fn = fn;
	w->arg = arg;
	w->fd = fd;
	return w;
}

static void watch_link(struct watch *w)
{
	w->next = w->loop->watches;
	w->loop->watches = w;
}

static void on_signal(evutil_socket_t signo, short what, void *arg)
{
	struct watch *w = arg;
	(void)signo;
	(void)what;
	loop_enter(w->loop);
	w->fn(w->arg);
}

int loop_signal(struct loop *l, int signo, loop_fn *fn, void *arg, struct fault *f)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	struct watch *w = watch_new(l, fn, arg, -1);
	if (event_assign(&w->ev, l->base, signo, EV_SIGNAL | EV_PERSIST, on_signal, w) != 0 ||
		event_add(&w->ev, NULL) != 0) {
		mem_free(w);
		return fault_set(f, ST_INVALID, "signal %d cannot be caught", signo);
	}
	watch_link(w);
	return 0;
}

static int jump_arm(int fd)
{
	struct itimerspec far = { .it_value = { .tv_sec = FAR_FUTURE_S } };
	return timerfd_settime(fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &far, NULL);
}

static void on_clock_jump(evutil_socket_t fd, short what, void *arg)
{
	struct watch *w = arg;
	struct loop *l = w->loop;
	uint64_t expirations;
	(void)what;
	if (read(fd, &expirations, sizeof expirations) < 0 && errno != ECANCELED)
		return;
	loop_enter(l);
	ALWAYS(jump_arm(fd) == 0);
	for (struct loop_timer *t = l->timers; t != NULL; t = t->next) {
		if (t->set)
			timer_arm(t, sys_mono_us());
	}
	w->fn(w->arg);
}

int loop_on_clock_jump(struct loop *l, loop_fn *fn, void *arg, struct fault *f)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	int fd = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	if (fd < 0)
		return fault_set(f, ST_IO, "timerfd: %s", strerror(errno));
	struct watch *w = watch_new(l, fn, arg, fd);
	if (jump_arm(fd) != 0 || event_assign(&w->ev, l->base, fd, EV_READ | EV_PERSIST, on_clock_jump, w) != 0 ||
		event_add(&w->ev, NULL) != 0) {
		int saved = errno;
		close(fd);
		mem_free(w);
		return fault_set(f, ST_IO, "cannot watch the wall clock: %s", strerror(saved));
	}
	watch_link(w);
	return 0;
}
