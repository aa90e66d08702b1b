/*
 * fake_loop - io/loop.h in virtual time: no descriptors, no waiting.
 *
 * A turn is the same as in the real loop: due timers, deferred calls, turn-end hooks. Between turns the
 * clocks jump to the next due timer. A timer that is set during a turn fires in a later one, even when it is
 * due already.
 */
#include "sim/fake.h"

#include "base/mem.h"
#include "base/sys.h"

#define LOOP_MAGIC UINT32_C(0x666b6c70)
#define TIMER_MAGIC UINT32_C(0x666b7472)
#define MAX_WATCHES 16
/* So many turns without time passing are a busy loop in the service under test. */
#define MAX_TURNS_AT_ONCE 100000

struct hook {
	loop_fn *fn;
	void *arg;
};

struct watch {
	int signo; /* 0: clock jump */
	loop_fn *fn;
	void *arg;
	bool pending;
};

struct loop_timer {
	uint32_t magic;
	struct loop *loop;
	loop_fn *fn;
	void *arg;
	int64_t due_us;
	uint64_t order; /* of being set */
	bool set;
	struct loop_timer *next, *prev;
};

struct loop {
	uint32_t magic;
	bool stopping, in_turn;
	struct loop_timer *timers;
	uint64_t order;
	struct loop_task *first, *last;
	struct hook hooks[LOOP_MAX_HOOKS];
	unsigned n_hooks;
	struct watch watches[MAX_WATCHES];
	unsigned n_watches;
	uint64_t turns;
	void (*on_stall)(int64_t us, void *arg);
	void *stall_arg;
};

void fake_clock_start(uint64_t seed)
{
	sys_set(sys_virtual(seed));
}

int loop_new(struct loop **out, struct fault *f)
{
	(void)f;
	struct loop *l = mem_alloc(sizeof *l);
	l->magic = LOOP_MAGIC;
	*out = l;
	return 0;
}

void loop_free(struct loop *l)
{
	if (l == NULL)
		return;
	MAGIC_CHECK(l, LOOP_MAGIC);
	ALWAYS(!l->in_turn);
	ALWAYS(l->timers == NULL); /* as the real one: after everything that was registered has been freed */
	ALWAYS(l->first == NULL);
	l->magic = 0;
	mem_free(l);
}

void loop_stop(struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	l->stopping = true;
}

_Noreturn struct event_base *loop_base(struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	always_failed("no service needs the libevent base", __FILE__, __LINE__, __func__);
}

void loop_enter(struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
}

void loop_on_stall(struct loop *l, void (*fn)(int64_t us, void *arg), void *arg)
{
	l->on_stall = fn;
	l->stall_arg = arg;
}

/* ---------------------------------------------------------------- a turn */

/* The first due timer among those that were set before `order`. */
static struct loop_timer *first_timer(const struct loop *l, uint64_t order)
{
	struct loop_timer *best = NULL;
	for (struct loop_timer *t = l->timers; t != NULL; t = t->next) {
		if (!t->set || t->order >= order)
			continue;
		if (best == NULL || t->due_us < best->due_us ||
			(t->due_us == best->due_us && t->order < best->order))
			best = t;
	}
	return best;
}

int64_t fake_loop_next_timer(const struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	const struct loop_timer *t = first_timer(l, UINT64_MAX);
	return t == NULL ? INT64_MAX : t->due_us;
}

static bool watch_pending(const struct loop *l)
{
	for (unsigned i = 0; i < l->n_watches; i++) {
		if (l->watches[i].pending)
			return true;
	}
	return false;
}

static bool has_work(const struct loop *l)
{
	return l->first != NULL || watch_pending(l) || fake_loop_next_timer(l) <= sys_mono_us();
}

static void run_timers(struct loop *l)
{
	uint64_t before = l->order;
	for (;;) {
		struct loop_timer *t = first_timer(l, before);
		if (t == NULL || t->due_us > sys_mono_us())
			return;
		t->set = false;
		t->fn(t->arg);
	}
}

static void run_watches(struct loop *l)
{
	for (unsigned i = 0; i < l->n_watches; i++) {
		if (!l->watches[i].pending)
			continue;
		l->watches[i].pending = false;
		l->watches[i].fn(l->watches[i].arg);
	}
}

static void run_tasks(struct loop *l)
{
	for (unsigned n = 0; l->first != NULL; n++) {
		ALWAYS(n < MAX_TURNS_AT_ONCE);
		struct loop_task *t = l->first;
		loop_undefer(l, t);
		t->fn(t->arg);
	}
}

static void run_hooks(struct loop *l)
{
	for (unsigned i = 0; i < l->n_hooks;) {
		struct hook h = l->hooks[i];
		h.fn(h.arg);
		if (i < l->n_hooks && l->hooks[i].fn == h.fn && l->hooks[i].arg == h.arg)
			i++;
	}
}

static void turn(struct loop *l)
{
	ALWAYS(!l->in_turn); /* never from inside a callback */
	l->in_turn = true;
	int64_t start = sys_mono_us();
	l->turns++;
	run_watches(l);
	run_timers(l);
	run_tasks(l);
	run_hooks(l);
	l->in_turn = false;
	if (l->on_stall != NULL)
		l->on_stall(sys_mono_us() - start, l->stall_arg);
}

void fake_loop_settle(struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	for (unsigned n = 0; has_work(l); n++) {
		ALWAYS(n < MAX_TURNS_AT_ONCE);
		turn(l);
	}
}

static bool never(void *arg)
{
	(void)arg;
	return false;
}

static bool run(struct loop *l, bool (*done)(void *arg), void *arg, int64_t until)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	unsigned n = 0;
	while (!done(arg)) {
		if (has_work(l)) {
			ALWAYS(n++ < MAX_TURNS_AT_ONCE);
			turn(l);
			continue;
		}
		n = 0;
		int64_t next = fake_loop_next_timer(l);
		if (next > until) {
			if (until > sys_mono_us())
				sys_virtual_advance(until - sys_mono_us());
			return done(arg);
		}
		sys_virtual_advance(next - sys_mono_us());
	}
	return true;
}

void fake_loop_run_until(struct loop *l, int64_t mono_us)
{
	ALWAYS(mono_us >= sys_mono_us());
	(void)run(l, never, NULL, mono_us);
}

void fake_loop_run_for(struct loop *l, int64_t us)
{
	fake_loop_run_until(l, sys_mono_us() + us);
}

bool fake_loop_run_while_not(struct loop *l, bool (*done)(void *arg), void *arg, int64_t limit_us)
{
	return run(l, done, arg, sys_mono_us() + limit_us);
}

uint64_t fake_loop_turns(const struct loop *l)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	return l->turns;
}

static bool is_stopping(void *arg)
{
	const struct loop *l = arg;
	return l->stopping;
}

int loop_run(struct loop *l)
{
	/* Without a set timer nothing can ever stop it. */
	ALWAYS(run(l, is_stopping, l, INT64_MAX));
	l->stopping = false;
	return 0;
}

void loop_once(struct loop *l, int64_t max_wait_us)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	if (!has_work(l) && max_wait_us > 0) {
		int64_t now = sys_mono_us(), next = fake_loop_next_timer(l);
		sys_virtual_advance(next - now < max_wait_us ? next - now : max_wait_us);
	}
	turn(l);
}

/* ---------------------------------------------------------------- timers */

struct loop_timer *loop_timer_new(struct loop *l, loop_fn *fn, void *arg)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	struct loop_timer *t = mem_alloc(sizeof *t);
	t->magic = TIMER_MAGIC;
	t->loop = l;
	t->fn = fn;
	t->arg = arg;
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
	if (t->next != NULL)
		t->next->prev = t->prev;
	if (t->prev != NULL)
		t->prev->next = t->next;
	else
		t->loop->timers = t->next;
	t->magic = 0;
	mem_free(t);
}

void loop_timer_at(struct loop_timer *t, int64_t mono_us)
{
	MAGIC_CHECK(t, TIMER_MAGIC);
	t->due_us = mono_us;
	t->order = t->loop->order++;
	t->set = true;
}

void loop_timer_after(struct loop_timer *t, int64_t us)
{
	int64_t at;
	if (__builtin_add_overflow(sys_mono_us(), us, &at))
		at = INT64_MAX;
	loop_timer_at(t, at);
}

void loop_timer_about(struct loop_timer *t, int64_t us)
{
	int64_t at = sys_mono_us() + us, step = us < 5 * US_PER_S ? US_PER_S : 5 * US_PER_S;
	loop_timer_at(t, us < 2 * US_PER_S ? at : at - at % step);
}

void loop_timer_stop(struct loop_timer *t)
{
	MAGIC_CHECK(t, TIMER_MAGIC);
	t->set = false;
}

bool loop_timer_is_set(const struct loop_timer *t)
{
	MAGIC_CHECK(t, TIMER_MAGIC);
	return t->set;
}

/* ---------------------------------------------------------------- deferred calls and hooks */

void loop_task_init(struct loop_task *t, loop_fn *fn, void *arg)
{
	*t = (struct loop_task){.fn = fn, .arg = arg};
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

int loop_on_turn_end(struct loop *l, loop_fn *fn, void *arg)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	if (l->n_hooks == LOOP_MAX_HOOKS)
		return ST_FULL;
	l->hooks[l->n_hooks++] = (struct hook){.fn = fn, .arg = arg};
	return 0;
}

void loop_off_turn_end(struct loop *l, loop_fn *fn, void *arg)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	for (unsigned i = 0; i < l->n_hooks; i++) {
		if (l->hooks[i].fn != fn || l->hooks[i].arg != arg)
			continue;
		for (l->n_hooks--; i < l->n_hooks; i++)
			l->hooks[i] = l->hooks[i + 1];
		return;
	}
}

/* ---------------------------------------------------------------- signals and the wall clock */

static int watch_add(struct loop *l, int signo, loop_fn *fn, void *arg, struct fault *f)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	if (l->n_watches == MAX_WATCHES)
		return fault_set(f, ST_FULL, "the loop of this test takes %d watches", MAX_WATCHES);
	l->watches[l->n_watches++] = (struct watch){.signo = signo, .fn = fn, .arg = arg};
	return 0;
}

int loop_signal(struct loop *l, int signo, loop_fn *fn, void *arg, struct fault *f)
{
	return watch_add(l, signo, fn, arg, f);
}

int loop_on_clock_jump(struct loop *l, loop_fn *fn, void *arg, struct fault *f)
{
	return watch_add(l, 0, fn, arg, f);
}

void fake_loop_signal(struct loop *l, int signo)
{
	MAGIC_CHECK(l, LOOP_MAGIC);
	for (unsigned i = 0; i < l->n_watches; i++) {
		if (l->watches[i].signo == signo)
			l->watches[i].pending = true;
	}
}

void fake_loop_clock_jump(struct loop *l, int64_t wall_by_us)
{
	sys_virtual_set(sys_wall_us() + wall_by_us, sys_mono_us());
	fake_loop_signal(l, 0);
}
