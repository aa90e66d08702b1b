/*
 * scheduler - lanes, their heaps, two polls and one timer.
 *
 * Where a lane is tells what it waits for: in `ready` (a time: its first entry is due, or its gate opens then), in its
 * site's `parked` list (something of that provider must end first), or nowhere (empty). The forward poll moves a cursor to the horizon;
 * the overdue poll looks again at what should have been done by now and finds imports, freed leases and whatever was missed.
 * Must not: trust an entry (the claim decides), hold an entry of a lane that has no provider or client, or wake
 * up without a reason.
 */
#include "service/scheduler.h"

#include <limits.h>
#include <string.h>

#include "base/idset.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/minheap.h"
#include "base/sys.h"

#define MAGIC UINT32_C(0x73636865)
#define PAGE_ROWS 5000
#define PAGES_A_POLL 10
#define MAX_ENTRIES ((size_t)2000000)
#define UNPARK_AT_ONCE 16
#define BUCKETS 1024

struct site_park { /* lanes of one provider that wait for something to end there */
	struct site_park *next;
	char *provider;
	struct lane *first, *last;
	int64_t next_start; /* while a page is spread: the start time of the entry after */
};

struct lane {
	struct minheap_node node; /* first: cast back */
	struct lane *hash_next;
	struct lane *park_next;
	bool parked, complained;
	char *application, *service;
	struct dueheap heap; /* due_us: when to start; tag: the row's due_at */
	struct gate *gate;
	struct site_park *site;
};

enum poll_kind { POLL_FORWARD, POLL_OVERDUE };

struct poller {
	struct scheduler *owner;
	enum poll_kind kind;
	struct store_cursor at;
	int64_t until;
	unsigned pages; /* left in this round of the overdue poll */
	bool running, whole; /* whole: the last round reached `until` */
	bool outdated;	     /* what is on its way was asked before everything was forgotten */
};

struct scheduler {
	uint32_t magic;
	struct loop *loop;
	struct store *store;
	struct budget *budget;
	struct refresh *refresh;
	struct conf *conf;
	struct lane *lanes[BUCKETS];
	struct site_park *sites;
	struct minheap ready;
	struct idset ids;
	size_t entries;
	bool running;
	struct poller forward, overdue;
	struct loop_timer *poll_timer, *due_timer;
	struct loop_task dispatch;
};

static void dispatch(void *arg);

/* ---------------------------------------------------------------- lanes */

static unsigned bucket_of(const char *application, const char *service)
{
	uint32_t h = 5381;
	for (const char *p = application; *p != '\0'; p++)
		h = h * 33 ^ (uint8_t)*p;
	for (const char *p = service; *p != '\0'; p++)
		h = h * 33 ^ (uint8_t)*p;
	return h % BUCKETS;
}

static struct site_park *get_site(struct scheduler *s, const char *provider)
{
	for (struct site_park *p = s->sites; p != NULL; p = p->next) {
		if (strcmp(p->provider, provider) == 0)
			return p;
	}
	struct site_park *p = mem_alloc(sizeof *p);
	p->provider = mem_strdup(provider);
	p->next = s->sites;
	s->sites = p;
	return p;
}

static struct lane *get_lane(struct scheduler *s, const char *application, const char *service)
{
	unsigned b = bucket_of(application, service);
	for (struct lane *l = s->lanes[b]; l != NULL; l = l->hash_next) {
		if (strcmp(l->application, application) == 0 && strcmp(l->service, service) == 0)
			return l;
	}
	struct lane *l = mem_alloc(sizeof *l);
	l->application = mem_strdup(application);
	l->service = mem_strdup(service);
	l->gate = budget_gate(s->budget, application, service);
	l->site = get_site(s, service);
	dueheap_init(&l->heap);
	l->hash_next = s->lanes[b];
	s->lanes[b] = l;
	return l;
}

static void park(struct lane *l)
{
	struct site_park *p = l->site;
	l->parked = true;
	l->park_next = NULL;
	if (p->last != NULL)
		p->last->park_next = l;
	else
		p->first = l;
	p->last = l;
}

/* Puts a lane where it belongs, by its first entry and its gate. */
static void place(struct scheduler *s, struct lane *l, int64_t wall, int64_t mono)
{
	if (l->parked)
		return;
	const struct due_entry *e = dueheap_first(&l->heap);
	if (e == NULL) {
		minheap_remove(&s->ready, &l->node);
		return;
	}
	int64_t due = e->due_us, gate = gate_when(l->gate, mono);
	if (gate == BUDGET_UNKNOWN && due <= wall) {
		minheap_remove(&s->ready, &l->node);
		park(l);
		return;
	}
	if (gate != BUDGET_UNKNOWN && gate > mono && wall + (gate - mono) > due)
		due = wall + (gate - mono);
	if (minheap_has(&l->node))
		minheap_move(&s->ready, &l->node, due);
	else
		minheap_add(&s->ready, &l->node, due);
}

/* A few lanes of a provider get another look; those that still cannot go line up behind the others. */
static void unpark(struct scheduler *s, struct site_park *p, int64_t wall, int64_t mono)
{
	for (unsigned i = 0; i < UNPARK_AT_ONCE && p->first != NULL; i++) {
		struct lane *l = p->first;
		p->first = l->park_next;
		if (p->first == NULL)
			p->last = NULL;
		l->parked = false;
		place(s, l, wall, mono);
	}
}

/* What is in memory is a row at one due time: a row that was made due sooner is another entry, and the old one will find
 * nothing to claim. */
static void key_of(const uint8_t id[16], int64_t row_due, uint8_t key[16])
{
	memcpy(key, id, 16);
	for (int i = 0; i < 16; i++)
		key[i] ^= (uint8_t)((uint64_t)row_due >> (8 * (i % 8)));
}

/* False: it is there already. */
static bool push(struct scheduler *s, struct lane *l, const uint8_t id[16], int64_t start, int64_t row_due)
{
	uint8_t key[16];
	key_of(id, row_due, key);
	if (!idset_add(&s->ids, key))
		return false;
	struct due_entry e = { .due_us = start, .tag = row_due };
	memcpy(e.id, id, sizeof e.id);
	dueheap_push(&l->heap, &e);
	s->entries++;
	return true;
}

static bool usable(struct lane *l)
{
	enum gate_lack lack = gate_lack(l->gate);
	if (lack == GATE_FINE) {
		l->complained = false;
		return true;
	}
	if (!l->complained)
		log_error("scheduler.cannot_refresh", K_APP(l->application), K_PROVIDER(l->service),
			K_TEXT("why", lack == GATE_NO_PROVIDER ? "no such oauth2 provider is configured" : "no client is configured for this application and provider"));
	l->complained = true;
	return false;
}

/* ---------------------------------------------------------------- dispatch */

static void arm(struct scheduler *s)
{
	const struct minheap_node *n = minheap_first(&s->ready);
	if (n == NULL || !s->running) {
		loop_timer_stop(s->due_timer);
		return;
	}
	int64_t wait = n->due_us - sys_wall_us();
	loop_timer_after(s->due_timer, wait > 0 ? wait : 0);
}

/* The first entry of a lane whose gate is open; false when there is nothing to take (a stale entry was dropped). */
static bool take_one(struct scheduler *s, struct lane *l, int64_t mono, struct refresh_want *w)
{
	struct due_entry e;
	ALWAYS(dueheap_pop(&l->heap, &e));
	s->entries--;
	uint8_t key[16];
	key_of(e.id, e.tag, key);
	(void)idset_remove(&s->ids, key);
	if (refresh_has(s->refresh, e.id))
		return false;
	gate_take(l->gate, mono);
	memcpy(w->id, e.id, sizeof w->id);
	w->due_at = e.tag;
	w->gate = l->gate;
	return true;
}

/* One id may be in memory for two due times: only one of them goes into a batch. */
static bool in_batch(const struct refresh_want *v, size_t n, const uint8_t id[16])
{
	for (size_t i = 0; i < n; i++) {
		if (memcmp(v[i].id, id, 16) == 0)
			return true;
	}
	return false;
}

static size_t fill_batch(struct scheduler *s, struct refresh_want *v, size_t room)
{
	int64_t wall = sys_wall_us(), mono = sys_mono_us();
	size_t n = 0;
	while (n < room) {
		struct minheap_node *first = minheap_first(&s->ready);
		if (first == NULL || first->due_us > wall)
			break;
		struct lane *l = (struct lane *)first;
		if (gate_when(l->gate, mono) <= mono) {
			const struct due_entry *e = dueheap_first(&l->heap);
			bool twice = in_batch(v, n, e->id);
			if (take_one(s, l, mono, &v[n]) && !twice)
				n++;
			else if (twice)
				gate_give_back(l->gate);
		}
		place(s, l, wall, mono);
	}
	return n;
}

static void dispatch(void *arg)
{
	struct scheduler *s = arg;
	MAGIC_CHECK(s, MAGIC);
	unsigned room = s->running && s->refresh != NULL ? refresh_room(s->refresh) : 0;
	if (room > 0) {
		struct refresh_want v[REFRESH_BATCH];
		size_t n = fill_batch(s, v, room < REFRESH_BATCH ? room : REFRESH_BATCH);
		if (n > 0)
			refresh_claim(s->refresh, v, n);
	}
	/* Without room there is no reason to wake up: whoever makes room kicks. */
	if (room > 0)
		arm(s);
	else
		loop_timer_stop(s->due_timer);
}

void scheduler_kick(struct scheduler *s)
{
	if (s->running)
		loop_defer(s->loop, &s->dispatch);
}

static void unpark_all_sites(struct scheduler *s)
{
	int64_t wall = sys_wall_us(), mono = sys_mono_us();
	for (struct site_park *p = s->sites; p != NULL; p = p->next)
		unpark(s, p, wall, mono);
}

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

static void add_page(struct scheduler *s, const struct store_due *v, size_t n)
{
	struct lane **lane = mem_calloc(n + 1, sizeof *lane);
	int64_t *start = mem_calloc(n + 1, sizeof *start);
	for (size_t i = 0; i < n; i++)
		lane[i] = get_lane(s, v[i].application_id, v[i].service_id);
	spread(s, lane, start, v, n);
	int64_t wall = sys_wall_us(), mono = sys_mono_us();
	for (size_t i = 0; i < n; i++) {
		if (!usable(lane[i]) || (s->refresh != NULL && refresh_has(s->refresh, v[i].id)))
			continue;
		if (push(s, lane[i], v[i].id, start[i], v[i].due_at))
			place(s, lane[i], wall, mono);
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
	MAGIC_CHECK(s, MAGIC);
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
	} else if ((p->kind == POLL_FORWARD || --p->pages > 0) && s->entries < MAX_ENTRIES) {
		/* Forward to the horizon in one go: what many wait for in vain must not keep the others from being seen. */
		next_page(p);
	}
}

static void next_page(struct poller *p)
{
	p->running = store_poll(p->owner->store, &p->at, p->until, PAGE_ROWS, on_page, p) == 0;
}

static void start_poll(struct poller *p)
{
	struct scheduler *s = p->owner;
	if (p->running || s->entries >= MAX_ENTRIES || store_state(s->store) != STORE_READY)
		return;
	p->until = sys_wall_us() + (p->kind == POLL_FORWARD ? s->conf->refresh.horizon_us : 0);
	p->pages = PAGES_A_POLL;
	next_page(p);
}

static void poll_now(struct scheduler *s)
{
	start_poll(&s->forward);
	start_poll(&s->overdue);
	unpark_all_sites(s);
	scheduler_kick(s);
}

static void on_poll_timer(void *arg)
{
	struct scheduler *s = arg;
	MAGIC_CHECK(s, MAGIC);
	loop_timer_after(s->poll_timer, s->conf->refresh.poll_interval_us);
	poll_now(s);
}

static void on_due_timer(void *arg)
{
	scheduler_kick(arg);
}

/* ---------------------------------------------------------------- from outside */

void scheduler_add(struct scheduler *s, const char *application_id, const char *service_id, const uint8_t id[16], int64_t due_at)
{
	int64_t wall = sys_wall_us();
	/* A page that is on its way may have been read before this row was written. */
	int64_t passed = s->forward.running && s->forward.until > s->forward.at.due_at ? s->forward.until : s->forward.at.due_at;
	if (due_at > passed && due_at > wall)
		return; /* the forward poll will come by */
	struct lane *l = get_lane(s, application_id, service_id);
	if (!usable(l))
		return;
	if (!push(s, l, id, due_at, due_at))
		return;
	place(s, l, wall, sys_mono_us());
	scheduler_kick(s);
}

static void on_looked_at(void *arg, int code, const struct store_due *v, size_t n)
{
	struct scheduler *s = arg;
	MAGIC_CHECK(s, MAGIC);
	if (code == 0 && n == 1 && s->running)
		scheduler_add(s, v[0].application_id, v[0].service_id, v[0].id, v[0].due_at);
}

void scheduler_look_at(struct scheduler *s, const uint8_t id[16])
{
	if (s->running && store_due_of(s->store, id, on_looked_at, s) != 0)
		return; /* the queue to the database is full: the overdue poll finds it */
}

void scheduler_on_done(struct scheduler *s, const struct refresh_done *d)
{
	if (d->application_id != NULL && d->next_due_at != TIME_NEVER)
		scheduler_add(s, d->application_id, d->service_id, d->id, d->next_due_at);
	scheduler_kick(s);
}

void scheduler_on_gate(struct scheduler *s, const char *provider)
{
	if (provider != NULL)
		unpark(s, get_site(s, provider), sys_wall_us(), sys_mono_us());
	scheduler_kick(s);
}

static void forget(struct scheduler *s)
{
	for (unsigned b = 0; b < BUCKETS; b++) {
		for (struct lane *l = s->lanes[b]; l != NULL; l = l->hash_next) {
			minheap_remove(&s->ready, &l->node);
			dueheap_fini(&l->heap);
			dueheap_init(&l->heap);
			l->parked = l->complained = false;
		}
	}
	for (struct site_park *p = s->sites; p != NULL; p = p->next)
		p->first = p->last = NULL;
	idset_fini(&s->ids);
	idset_init(&s->ids);
	s->entries = 0;
	s->forward.at = s->overdue.at = (struct store_cursor){ .due_at = 0 };
	s->forward.outdated = s->forward.running;
	s->overdue.outdated = s->overdue.running;
}

void scheduler_replan(struct scheduler *s)
{
	if (!s->running)
		return;
	forget(s);
	loop_timer_after(s->poll_timer, s->conf->refresh.poll_interval_us);
	poll_now(s);
}

void scheduler_poll(struct scheduler *s)
{
	if (s->running)
		poll_now(s);
}

void scheduler_start(struct scheduler *s)
{
	s->running = true;
	scheduler_replan(s);
}

void scheduler_stop(struct scheduler *s)
{
	s->running = false;
	loop_timer_stop(s->poll_timer);
	loop_timer_stop(s->due_timer);
}

void scheduler_set_conf(struct scheduler *s, struct conf *c)
{
	struct conf *old = s->conf;
	s->conf = conf_ref(c);
	conf_unref(old);
}

void scheduler_set_refresh(struct scheduler *s, struct refresh *r)
{
	s->refresh = r;
}

int scheduler_new(struct loop *l, struct store *st, struct budget *b, struct scheduler **out, struct fault *f)
{
	(void)f;
	struct scheduler *s = mem_alloc(sizeof *s);
	s->magic = MAGIC;
	s->loop = l;
	s->store = st;
	s->budget = b;
	minheap_init(&s->ready);
	idset_init(&s->ids);
	s->forward = (struct poller){ .owner = s, .kind = POLL_FORWARD };
	s->overdue = (struct poller){ .owner = s, .kind = POLL_OVERDUE };
	s->poll_timer = loop_timer_new(l, on_poll_timer, s);
	s->due_timer = loop_timer_new(l, on_due_timer, s);
	loop_task_init(&s->dispatch, dispatch, s);
	*out = s;
	return 0;
}

void scheduler_free(struct scheduler *s)
{
	if (s == NULL)
		return;
	MAGIC_CHECK(s, MAGIC);
	forget(s);
	minheap_fini(&s->ready);
	for (unsigned b = 0; b < BUCKETS; b++) {
		while (s->lanes[b] != NULL) {
			struct lane *l = s->lanes[b];
			s->lanes[b] = l->hash_next;
			mem_free(l->application);
			mem_free(l->service);
			dueheap_fini(&l->heap);
			mem_free(l);
		}
	}
	while (s->sites != NULL) {
		struct site_park *p = s->sites;
		s->sites = p->next;
		mem_free(p->provider);
		mem_free(p);
	}
	idset_fini(&s->ids);
	loop_undefer(s->loop, &s->dispatch);
	loop_timer_free(s->poll_timer);
	loop_timer_free(s->due_timer);
	conf_unref(s->conf);
	s->magic = 0;
	mem_free(s);
}

/* ---------------------------------------------------------------- figures */

/* Entries due by `wall`: a heap's due part is a tree at its top. */
static uint64_t count_due(const struct dueheap *h, size_t i, int64_t wall)
{
	if (i >= h->len || h->v[i].due_us > wall)
		return 0;
	uint64_t n = 1;
	for (size_t c = 1; c <= 4; c++)
		n += count_due(h, 4 * i + c, wall);
	return n;
}

void scheduler_figures(const struct scheduler *s, struct scheduler_figures *out)
{
	int64_t wall = sys_wall_us(), oldest = wall;
	*out = (struct scheduler_figures){ .entries = s->entries };
	for (unsigned b = 0; b < BUCKETS; b++) {
		for (const struct lane *l = s->lanes[b]; l != NULL; l = l->hash_next) {
			out->due += count_due(&l->heap, 0, wall);
			const struct due_entry *e = dueheap_first(&l->heap);
			if (e != NULL && e->due_us < oldest)
				oldest = e->due_us;
		}
	}
	out->oldest_due_age_s = (double)(wall - oldest) / (double)US_PER_S;
}
