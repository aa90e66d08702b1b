/*
 * scheduler_poll - from the table into memory: three polls, and single rows that somebody asked for.
 *
 * The forward poll moves a cursor to the horizon; the overdue poll looks again at what should have been done by now and
 * finds imports, freed leases and whatever was missed; the third brings what lies behind the cursor in slots that we
 * gained. Must not: load what another daemon looks after, or ask again and again for what waits in memory.
 */
#include "service/scheduler_priv.h"

#include <limits.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"

#define PAGE_ROWS 5000
#define PAGES_A_POLL 10

/* ---------------------------------------------------------------- polls */

/* When many entries share a due time and the provider has a rate, the last must start by its due time, so the ones before
 * start earlier: from the page's end backwards, one every 1/rate. */
static void spread(struct scheduler *s, struct lane **lane, int64_t *start, const struct store_due *v, size_t n)
{
	for (struct site_park *p = s->sites; p != NULL; p = p->next)
		p->next_start = INT64_MAX;
	for (size_t i = n; i-- > 0;) {
		double rate = gate_rate(lane[i]->gate);
		int64_t gap = rate > 0 ? (int64_t)((double)US_PER_S / rate) : 0;
		struct site_park *p = lane[i]->site;
		int64_t latest = p->next_start == INT64_MAX ? INT64_MAX : p->next_start - gap;
		start[i] = v[i].due_at < latest ? v[i].due_at : latest;
		p->next_start = start[i];
	}
}

/* A row that waits for a foreign lease to be given up is an entry of its own (a microsecond apart): when it becomes free
 * before, the poll brings it as any other. */
static bool push_row(struct scheduler *s, struct lane *l, const struct store_due *d, int64_t start)
{
	int64_t free_at = d->foreign_until != 0 ? scheduler_takeover_start(s, l, d->foreign_until) : 0;
	if (free_at > start)
		return scheduler_push(s, l, d->id, free_at, d->due_at + 1);
	return scheduler_push(s, l, d->id, start, d->due_at);
}

static void add_page(struct scheduler *s, const struct store_due *v, size_t n)
{
	struct lane **lane = mem_calloc(n + 1, sizeof *lane);
	int64_t *start = mem_calloc(n + 1, sizeof *start);
	for (size_t i = 0; i < n; i++)
		lane[i] = scheduler_lane(s, v[i].application_id, v[i].service_id);
	spread(s, lane, start, v, n);
	int64_t wall = sys_wall_us(), mono = sys_mono_us();
	for (size_t i = 0; i < n; i++) {
		if (!scheduler_lane_usable(lane[i]) || (s->refresh != NULL && refresh_has(s->refresh, v[i].id)))
			continue;
		if (push_row(s, lane[i], &v[i], start[i]))
			scheduler_place(s, lane[i], wall, mono);
	}
	mem_free(lane);
	mem_free(start);
	scheduler_kick(s);
}

static void next_page(struct poller *p);
static void start_poll(struct poller *p);

static void on_page(void *arg, int code, const struct store_due *v, size_t n)
{
	struct poller *p = arg;
	struct scheduler *s = p->owner;
	MAGIC_CHECK(s, SCHEDULER_MAGIC);
	p->running = false;
	bool outdated = p->outdated;
	p->outdated = false;
	if (!s->running)
		return;
	if (outdated) {
		start_poll(p);
		return;
	}
	if (code != 0)
		return;
	if (n > 0) {
		p->at.due_at = v[n - 1].due_at;
		memcpy(p->at.id, v[n - 1].id, 16);
		add_page(s, v, n);
	}
	p->whole = n < PAGE_ROWS;
	if (p->whole) {
		if (p->kind == POLL_FORWARD)
			p->at.due_at = p->until > p->at.due_at ? p->until : p->at.due_at;
		else
			p->at = (struct store_cursor){ .due_at = 0 };
		if (p->kind == POLL_GAINED)
			slots_none(&s->to_load);
	} else if ((p->kind != POLL_OVERDUE || --p->pages > 0)) {
		/* Forward to the horizon in one go: what many wait for in vain must not keep the others from being seen. */
		next_page(p);
	}
}

static void next_page(struct poller *p)
{
	p->running = store_poll(p->owner->store, &p->at, p->until, PAGE_ROWS, p->slots, on_page, p) == 0;
}

static void start_poll(struct poller *p)
{
	struct scheduler *s = p->owner;
	if (p->running || p->slots->n == 0 || store_state(s->store) != STORE_READY)
		return;
	if (p->kind == POLL_GAINED)
		p->until = s->forward.running ? s->forward.until : s->forward.at.due_at;
	else
		p->until = sys_wall_us() + (p->kind == POLL_FORWARD ? s->conf->refresh.horizon_us : 0);
	p->pages = PAGES_A_POLL;
	next_page(p);
}

/* A quarter of the horizon may go by before there is more to read; what comes in behind the cursor is not found by this poll. */
static bool sees_far(const struct scheduler *s)
{
	const struct poller *p = &s->forward;
	return p->whole && !p->outdated && p->at.due_at - sys_wall_us() >= s->conf->refresh.horizon_us / 4 * 3;
}

void scheduler_poll_now(struct scheduler *s)
{
	if (!sees_far(s))
		start_poll(&s->forward);
	start_poll(&s->overdue);
	start_poll(&s->gained);
	scheduler_unpark_all(s);
	scheduler_kick(s);
}

/* ---------------------------------------------------------------- from outside */

static void add(struct scheduler *s, const struct store_due *d)
{
	int64_t wall = sys_wall_us();
	/* A page that is on its way may have been read before this row was written. */
	int64_t passed = s->forward.running && s->forward.until > s->forward.at.due_at ? s->forward.until : s->forward.at.due_at;
	bool ours = scheduler_owns(s, d->id);
	/* The forward poll will come by; or the overdue poll of another, who does not know yet. */
	if (d->due_at > wall && (ours ? d->due_at > passed : d->due_at > wall + s->conf->refresh.poll_interval_us))
		return;
	struct lane *l = scheduler_lane(s, d->application_id, d->service_id);
	if (!scheduler_lane_usable(l) || !push_row(s, l, d, d->due_at))
		return;
	scheduler_place(s, l, wall, sys_mono_us());
	scheduler_kick(s);
}

void scheduler_add(struct scheduler *s, const char *application_id, const char *service_id, const uint8_t id[16], int64_t due_at)
{
	struct store_due d = { .application_id = application_id, .service_id = service_id, .due_at = due_at };
	memcpy(d.id, id, sizeof d.id);
	add(s, &d);
}

static void on_looked_at(void *arg, int code, const struct store_due *v, size_t n)
{
	struct scheduler *s = arg;
	MAGIC_CHECK(s, SCHEDULER_MAGIC);
	if (code == 0 && n == 1 && s->running)
		add(s, &v[0]);
}

void scheduler_look_at(struct scheduler *s, const uint8_t id[16])
{
	if (s->running && store_due_of(s->store, id, on_looked_at, s) != 0)
		return; /* the queue to the database is full: the overdue poll finds it */
}


/* ---------------------------------------------------------------- our part */

void scheduler_set_slots(struct scheduler *s, const struct slots *own)
{
	struct slots gained, lost;
	slots_minus(own, &s->own, &gained);
	slots_minus(&s->to_load, own, &lost);
	slots_minus(&s->to_load, &lost, &s->to_load);
	s->own = *own;
	if (!s->running || gained.n == 0)
		return;
	if (s->forward.running || s->forward.at.due_at != 0) { /* else it brings them, too */
		slots_merge(&s->to_load, &gained);
		s->gained.at = (struct store_cursor){ .due_at = 0 };
		s->gained.outdated = s->gained.running;
	}
	scheduler_poll_now(s);
}

/* ---------------------------------------------------------------- life */

void scheduler_forget_polls(struct scheduler *s)
{
	slots_none(&s->to_load); /* the forward poll starts anew, with all that is ours */
	s->forward.at = s->overdue.at = (struct store_cursor){ .due_at = 0 };
	s->forward.whole = false;
	s->forward.outdated = s->forward.running;
	s->overdue.outdated = s->overdue.running;
	s->gained.outdated = s->gained.running;
}

void scheduler_poll_init(struct scheduler *s)
{
	s->forward = (struct poller){ .owner = s, .kind = POLL_FORWARD, .slots = &s->own };
	s->overdue = (struct poller){ .owner = s, .kind = POLL_OVERDUE, .slots = &s->own };
	s->gained = (struct poller){ .owner = s, .kind = POLL_GAINED, .slots = &s->to_load };
}
