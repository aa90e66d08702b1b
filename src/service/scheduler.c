/*
 * scheduler - lanes, their heaps and one timer.
 *
 * Where a lane is tells what it waits for: in `ready` (a time: its first entry is due, or its gate opens then), in its
 * site's `parked` list (something of that provider must end first), or nowhere (empty). What fills them is in scheduler_poll.c.
 * Must not: trust an entry (the claim decides), hold an entry of a lane that has no provider or client, or wake
 * up without a reason.
 */
#include "service/scheduler.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"
#include "service/scheduler_priv.h"

/* What waits for a provider must not take all memory, nor keep others from being seen: a lane may always hold a few, many
 * while there is room in all, and what does not fit is found by the overdue poll. */
#define MAX_ENTRIES ((size_t)2000000)
#define LANE_MAX ((size_t)500000)
#define LANE_ALWAYS ((size_t)5000)
#define UNPARK_AT_ONCE 16
/* Everybody comes back at the same time: an owner that the database had lost gets this long to write what it was answered. */
#define OWNERS_FIRST_US (30 * US_PER_S)
#define TAKEOVER_NOT_NOW (INT64_C(1000) * 86400 * US_PER_S)

static void dispatch(void *arg);

/* ---------------------------------------------------------------- lanes */

static unsigned bucket_of(const char *application, const char *service)
{
	uint32_t h = 5381;
	for (const char *p = application; *p != '\0'; p++)
		h = h * 33 ^ (uint8_t)*p;
	for (const char *p = service; *p != '\0'; p++)
		h = h * 33 ^ (uint8_t)*p;
	return h % SCHEDULER_BUCKETS;
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

struct lane *scheduler_lane(struct scheduler *s, const char *application, const char *service)
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
void scheduler_place(struct scheduler *s, struct lane *l, int64_t wall, int64_t mono)
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
		scheduler_place(s, l, wall, mono);
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

/* False: it is there already, or there is no room. What is put in although its slot is not ours was asked for here. */
bool scheduler_push(struct scheduler *s, struct lane *l, const uint8_t id[16], int64_t start, int64_t row_due)
{
	uint8_t key[16];
	size_t n = l->heap.len;
	if (n >= LANE_ALWAYS && (n >= LANE_MAX || s->entries >= MAX_ENTRIES))
		return false;
	key_of(id, row_due, key);
	if (!idset_add(&s->ids, key))
		return false;
	if (!scheduler_owns(s, id))
		(void)idset_add(&s->explicit, key);
	struct due_entry e = { .due_us = start, .tag = row_due };
	memcpy(e.id, id, sizeof e.id);
	dueheap_push(&l->heap, &e);
	s->entries++;
	return true;
}

bool scheduler_lane_usable(struct lane *l)
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

/* How much longer the lease of another instance is respected after it ran out. A token that does not change when it is used may
 * be presented again without harm. */
static int64_t takeover_us(const struct scheduler *s, const struct lane *l)
{
	const struct provider *p = conf_provider(s->conf, l->service);
	if (p == NULL || p->rotation == ROTATION_NONE || p->grant == GRANT_CLIENT)
		return 0;
	int64_t since = store_ready_since(s->store);
	if (since == INT64_MAX || sys_mono_us() - since < OWNERS_FIRST_US)
		return TAKEOVER_NOT_NOW;
	return s->conf->refresh.takeover_delay_us;
}

/* When a row with such a lease can start. */
int64_t scheduler_takeover_start(const struct scheduler *s, const struct lane *l, int64_t foreign_until)
{
	int64_t after = takeover_us(s, l), owners = sys_wall_us();
	if (after == 0)
		return 0;
	if (after != TAKEOVER_NOT_NOW)
		return foreign_until + after;
	int64_t since = store_ready_since(s->store), mono = sys_mono_us();
	owners += since == INT64_MAX ? OWNERS_FIRST_US : since + OWNERS_FIRST_US - mono;
	after = foreign_until + s->conf->refresh.takeover_delay_us;
	return after > owners ? after : owners;
}

bool scheduler_owns(const struct scheduler *s, const uint8_t id[16])
{
	return slots_has(&s->own, (unsigned)conn_slot_of(id));
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
	bool ours = idset_remove(&s->explicit, key) || scheduler_owns(s, e.id);
	if (!ours || refresh_has(s->refresh, e.id))
		return false;
	gate_take(l->gate, mono);
	memcpy(w->id, e.id, sizeof w->id);
	w->due_at = e.tag;
	w->takeover_us = takeover_us(s, l);
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
		scheduler_place(s, l, wall, mono);
	}
	return n;
}

static void dispatch(void *arg)
{
	struct scheduler *s = arg;
	MAGIC_CHECK(s, SCHEDULER_MAGIC);
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

void scheduler_unpark_all(struct scheduler *s)
{
	int64_t wall = sys_wall_us(), mono = sys_mono_us();
	for (struct site_park *p = s->sites; p != NULL; p = p->next)
		unpark(s, p, wall, mono);
}

/* ---------------------------------------------------------------- from outside */

static void on_poll_timer(void *arg)
{
	struct scheduler *s = arg;
	MAGIC_CHECK(s, SCHEDULER_MAGIC);
	loop_timer_about(s->poll_timer, s->conf->refresh.poll_interval_us);
	scheduler_poll_now(s);
}

static void on_due_timer(void *arg)
{
	scheduler_kick(arg);
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
	for (unsigned b = 0; b < SCHEDULER_BUCKETS; b++) {
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
	idset_fini(&s->explicit);
	idset_init(&s->explicit);
	s->entries = 0;
	scheduler_forget_polls(s);
}

void scheduler_replan(struct scheduler *s)
{
	if (!s->running)
		return;
	forget(s);
	loop_timer_about(s->poll_timer, s->conf->refresh.poll_interval_us);
	scheduler_poll_now(s);
}

void scheduler_poll(struct scheduler *s)
{
	if (s->running)
		scheduler_poll_now(s);
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
	s->magic = SCHEDULER_MAGIC;
	s->loop = l;
	s->store = st;
	s->budget = b;
	minheap_init(&s->ready);
	idset_init(&s->ids);
	idset_init(&s->explicit);
	slots_all(&s->own);
	scheduler_poll_init(s);
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
	MAGIC_CHECK(s, SCHEDULER_MAGIC);
	forget(s);
	minheap_fini(&s->ready);
	for (unsigned b = 0; b < SCHEDULER_BUCKETS; b++) {
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
	idset_fini(&s->explicit);
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
	for (unsigned b = 0; b < SCHEDULER_BUCKETS; b++) {
		for (const struct lane *l = s->lanes[b]; l != NULL; l = l->hash_next) {
			out->due += count_due(&l->heap, 0, wall);
			const struct due_entry *e = dueheap_first(&l->heap);
			if (e != NULL && e->due_us < oldest)
				oldest = e->due_us;
		}
	}
	out->oldest_due_age_s = (double)(wall - oldest) / (double)US_PER_S;
}
