/*
 * fake_outbox - the outbox of store_webhook in memory: fan-out, leases, fences, failing time.
 */
#include "sim/fake_outbox.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/store_refresh.h" /* TIME_NEVER */

#define EPOCH 7
#define FAKE_HOOKS 16

struct fake_endpoint {
	char id[64];
	int64_t failing_since; /* 0: not */
	bool disabled;
};

/* What will be told, later. */
struct answer {
	struct store *store;
	struct loop_timer *timer;
	struct answer *next, *prev;
	int code;
	size_t n;
	store_outbox_fn *outbox;
	store_deliveries_fn *deliveries;
	store_disabled_fn *disabled;
	store_hooks_load_fn *load;
	bool changed;
	int64_t mark;
	struct store_hook *hooks;
	void *arg;
	struct store_delivery *v;
	const char **ids;
	int64_t next_due_at;
};

struct store {
	struct loop *loop;
	enum store_state state;
	int64_t delay_us;
	int fail_code;
	bool fail_executed;
	struct fake_event events[FAKE_EVENTS];
	unsigned n_events;
	struct fake_delivery deliveries[FAKE_DELIVERIES];
	unsigned n_deliveries;
	struct fake_endpoint endpoints[FAKE_ENDPOINTS];
	unsigned n_endpoints;
	struct store_hook hooks[FAKE_HOOKS];
	unsigned n_hooks;
	int64_t mark;
	struct fake_outbox_calls calls;
	struct answer *answers;
};

struct store *fake_outbox_new(struct loop *l)
{
	struct store *s = mem_alloc(sizeof *s);
	s->loop = l;
	s->state = STORE_READY;
	s->delay_us = US_PER_MS;
	return s;
}

static void answer_free(struct answer *a)
{
	if (a->next != NULL)
		a->next->prev = a->prev;
	if (a->prev != NULL)
		a->prev->next = a->next;
	else
		a->store->answers = a->next;
	loop_timer_free(a->timer);
	mem_free(a->v);
	mem_free(a->ids);
	mem_free(a->hooks);
	mem_free(a);
}

void fake_outbox_free(struct store *s)
{
	while (s->answers != NULL)
		answer_free(s->answers);
	mem_free(s);
}

static void on_answer(void *arg)
{
	struct answer *a = arg;
	if (a->outbox != NULL)
		a->outbox(a->arg, a->code, a->n);
	else if (a->deliveries != NULL)
		a->deliveries(a->arg, a->code, a->v, a->n, a->next_due_at);
	else if (a->load != NULL)
		a->load(a->arg, a->code, a->code == 0 && a->changed, a->mark, a->hooks, a->code == 0 ? a->n : 0);
	else
		a->disabled(a->arg, a->code, a->ids, a->n);
	answer_free(a);
}

static struct answer *answer_new(struct store *s, void *arg)
{
	struct answer *a = mem_alloc(sizeof *a);
	a->store = s;
	a->arg = arg;
	a->code = s->fail_code;
	a->next_due_at = TIME_NEVER;
	a->next = s->answers;
	if (a->next != NULL)
		a->next->prev = a;
	s->answers = a;
	a->timer = loop_timer_new(s->loop, on_answer, a);
	loop_timer_after(a->timer, s->delay_us);
	return a;
}

static bool is_executed(const struct store *s)
{
	return s->fail_code == 0 || s->fail_executed;
}

/* ---------------------------------------------------------------- controls */

static struct fake_event *add_event(struct store *s, enum event_type type, const char *application)
{
	ALWAYS(s->n_events < FAKE_EVENTS);
	struct fake_event *e = &s->events[s->n_events++];
	sys_uuid4(e->id);
	snprintf(e->application, sizeof e->application, "%s", application);
	snprintf(e->entity_type, sizeof e->entity_type, "Connection");
	snprintf(e->entity_id, sizeof e->entity_id, "%s+c1", application);
	e->type = type;
	e->entity = "{\"id\":\"x\"}";
	e->occurred_at = sys_wall_us();
	return e;
}

unsigned fake_outbox_event(struct store *s, enum event_type type, const char *application)
{
	(void)add_event(s, type, application);
	return s->n_events - 1;
}

unsigned fake_outbox_test_event(struct store *s, const char *endpoint_id)
{
	struct fake_event *e = add_event(s, EVENT_TEST, "*");
	snprintf(e->entity_type, sizeof e->entity_type, "%s", STORE_ENTITY_ENDPOINT);
	snprintf(e->entity_id, sizeof e->entity_id, "%s", endpoint_id);
	return s->n_events - 1;
}

struct fake_event *fake_outbox_get_event(struct store *s, unsigned i)
{
	ALWAYS(i < s->n_events);
	return &s->events[i];
}

struct fake_delivery *fake_outbox_delivery(struct store *s, unsigned event, const char *endpoint_id)
{
	for (unsigned i = 0; i < s->n_deliveries; i++) {
		if (s->deliveries[i].event == event && strcmp(s->deliveries[i].endpoint, endpoint_id) == 0)
			return &s->deliveries[i];
	}
	return NULL;
}

unsigned fake_outbox_count(const struct store *s, const char *endpoint_id, bool delivered)
{
	unsigned n = 0;
	for (unsigned i = 0; i < s->n_deliveries; i++)
		n += strcmp(s->deliveries[i].endpoint, endpoint_id) == 0 &&
		     s->deliveries[i].delivered == delivered;
	return n;
}

static struct fake_endpoint *endpoint_of(struct store *s, const char *id)
{
	for (unsigned i = 0; i < s->n_endpoints; i++) {
		if (strcmp(s->endpoints[i].id, id) == 0)
			return &s->endpoints[i];
	}
	ALWAYS(s->n_endpoints < FAKE_ENDPOINTS);
	struct fake_endpoint *e = &s->endpoints[s->n_endpoints++];
	snprintf(e->id, sizeof e->id, "%s", id);
	return e;
}

bool fake_outbox_is_disabled(const struct store *s, const char *endpoint_id)
{
	for (unsigned i = 0; i < s->n_endpoints; i++) {
		if (strcmp(s->endpoints[i].id, endpoint_id) == 0)
			return s->endpoints[i].disabled;
	}
	return false;
}

void fake_outbox_set_disabled(struct store *s, const char *endpoint_id, bool disabled)
{
	struct fake_endpoint *e = endpoint_of(s, endpoint_id);
	e->disabled = disabled;
	e->failing_since = 0;
}

void fake_outbox_set_state(struct store *s, enum store_state state)
{
	s->state = state;
}

void fake_outbox_set_delay(struct store *s, int64_t us)
{
	s->delay_us = us;
}

void fake_outbox_fail(struct store *s, int code, bool executed)
{
	s->fail_code = code;
	s->fail_executed = executed;
}

const struct fake_outbox_calls *fake_outbox_calls(const struct store *s)
{
	return &s->calls;
}

unsigned fake_outbox_statements(const struct store *s)
{
	const struct fake_outbox_calls *c = &s->calls;
	return c->loads + c->fanouts + c->claims + c->records + c->releases + c->lists + c->counts + c->purges;
}

/* ---------------------------------------------------------------- service/store.h, as far as it is used */

enum store_state store_state(const struct store *s)
{
	return s->state;
}

const char *store_state_word(enum store_state st)
{
	switch (st) {
#define X(id, word)                                                                                          \
	case id:                                                                                             \
		return word;
		STORE_STATE_LIST(X)
#undef X
	}
	return "unknown";
}

/* ---------------------------------------------------------------- fan-out */

static bool has_type(const struct store_endpoint *p, enum event_type t)
{
	for (size_t i = 0; i < p->n_events; i++) {
		if (strcmp(p->events[i], event_type_word(t)) == 0)
			return true;
	}
	return false;
}

static bool is_wanted(const struct fake_event *e, const struct store_endpoint *p)
{
	if (strcmp(e->entity_type, STORE_ENTITY_ENDPOINT) == 0)
		return strcmp(p->endpoint_id, e->entity_id) == 0;
	return (strcmp(p->application, "*") == 0 || strcmp(p->application, e->application) == 0) &&
	       has_type(p, e->type);
}

static bool is_subscribed(const struct fake_event *e, const struct store_hook *h)
{
	if (strcmp(e->application, h->application_id) != 0)
		return false;
	if (strcmp(e->entity_type, STORE_ENTITY_ENDPOINT) == 0)
		return strcmp(e->entity_id, h->endpoint_id) == 0;
	return event_type_matches(&h->events, 1, e->type); /* one pattern is enough here */
}

static void fan_out_hooks(struct store *s, unsigned event)
{
	for (unsigned i = 0; i < s->n_hooks; i++) {
		const char *id = s->hooks[i].endpoint_id;
		if (!is_subscribed(&s->events[event], &s->hooks[i]) || fake_outbox_is_disabled(s, id))
			continue;
		ALWAYS(s->n_deliveries < FAKE_DELIVERIES);
		struct fake_delivery *d = &s->deliveries[s->n_deliveries++];
		*d = (struct fake_delivery){.event = event, .due_at = sys_wall_us()};
		snprintf(d->endpoint, sizeof d->endpoint, "%s", id);
	}
}

static void fan_out_one(struct store *s, unsigned event, const struct store_endpoint *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (!is_wanted(&s->events[event], &v[i]) || fake_outbox_is_disabled(s, v[i].endpoint_id))
			continue;
		ALWAYS(s->n_deliveries < FAKE_DELIVERIES);
		struct fake_delivery *d = &s->deliveries[s->n_deliveries++];
		*d = (struct fake_delivery){.event = event, .due_at = sys_wall_us()};
		snprintf(d->endpoint, sizeof d->endpoint, "%s", v[i].endpoint_id);
	}
	fan_out_hooks(s, event);
	s->events[event].fanned_out = true;
}

int store_fanout(struct store *s, const struct store_endpoint *v, size_t n, unsigned limit,
	store_outbox_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->outbox = fn;
	s->calls.fanouts++;
	for (unsigned i = 0; i < s->n_events && a->n < limit && is_executed(s); i++) {
		if (s->events[i].fanned_out)
			continue;
		fan_out_one(s, i, v, n);
		a->n++;
	}
	return 0;
}

/* ---------------------------------------------------------------- claim */

static bool is_waiting(const struct fake_delivery *d)
{
	return !d->done && d->lease_until <= sys_wall_us();
}

static struct fake_delivery *oldest(struct store *s, const char *endpoint_id)
{
	struct fake_delivery *best = NULL;
	for (unsigned i = 0; i < s->n_deliveries; i++) {
		struct fake_delivery *d = &s->deliveries[i];
		if (strcmp(d->endpoint, endpoint_id) == 0 && is_waiting(d) &&
			(best == NULL || d->due_at < best->due_at))
			best = d;
	}
	return best;
}

static void claim_one(struct store *s, struct answer *a, struct fake_delivery *d, int64_t lease_us)
{
	const struct fake_event *e = &s->events[d->event];
	d->owner = EPOCH;
	d->attempt++;
	d->lease_until = sys_wall_us() + lease_us;
	struct store_delivery *out = &a->v[a->n++];
	memcpy(out->event_id, e->id, 16);
	out->endpoint_id = d->endpoint;
	out->attempt = d->attempt;
	out->type = e->type;
	out->entity = e->entity;
	out->entity_id = e->entity_id;
	out->entity_type = e->entity_type;
	out->reason = "invalid_grant";
	out->failures = 3;
	out->occurred_at = e->occurred_at;
}

/* One round: every endpoint's next one. Healthy ones first. */
static bool claim_round(struct store *s, struct answer *a, const struct store_room *v, unsigned *room,
	size_t n, size_t most, unsigned *ailing, int64_t lease_us, bool want_ailing)
{
	bool any = false;
	for (size_t i = 0; i < n && a->n < most; i++) {
		if (v[i].ailing != want_ailing || room[i] == 0 || (want_ailing && *ailing == 0) ||
			fake_outbox_is_disabled(s, v[i].endpoint_id))
			continue;
		struct fake_delivery *d = oldest(s, v[i].endpoint_id);
		if (d == NULL || d->due_at > sys_wall_us() || d->locked)
			continue;
		claim_one(s, a, d, lease_us);
		room[i]--;
		if (want_ailing)
			--*ailing;
		any = true;
	}
	return any;
}

int store_claim_deliveries(struct store *s, const struct store_room *v, size_t n, unsigned limit,
	unsigned ailing_limit, int64_t lease_us, store_deliveries_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->deliveries = fn;
	a->v = mem_calloc(limit + 1, sizeof *a->v);
	s->calls.claims++;
	ALWAYS(n > 0 && limit > 0);
	if (!is_executed(s))
		return 0;
	unsigned *room = mem_calloc(n, sizeof *room);
	for (size_t i = 0; i < n; i++) {
		room[i] = v[i].room;
		ALWAYS(v[i].room > 0);
	}
	while (claim_round(s, a, v, room, n, limit, &ailing_limit, lease_us, false))
		;
	while (claim_round(s, a, v, room, n, limit, &ailing_limit, lease_us, true))
		;
	for (size_t i = 0; i < n; i++) {
		const struct fake_delivery *d = oldest(s, v[i].endpoint_id);
		if (d != NULL && !fake_outbox_is_disabled(s, v[i].endpoint_id) && d->due_at < a->next_due_at)
			a->next_due_at = d->due_at;
	}
	mem_free(room);
	return 0;
}

/* ---------------------------------------------------------------- record, release */

static struct fake_delivery *find(struct store *s, const struct store_attempt *x)
{
	for (unsigned i = 0; i < s->n_deliveries; i++) {
		struct fake_delivery *d = &s->deliveries[i];
		if (memcmp(s->events[d->event].id, x->event_id, 16) == 0 &&
			strcmp(d->endpoint, x->endpoint_id) == 0)
			return d;
	}
	return NULL;
}

static void record_delivery(struct fake_delivery *d, const struct store_attempt *x)
{
	if (d == NULL || d->done || !(x->delivered || (d->attempt == x->attempt && d->owner == EPOCH)))
		return;
	bool final = x->delivered || x->gone || x->next_due_at == TIME_NEVER;
	d->owner = 0;
	d->lease_until = 0;
	d->done = final;
	d->delivered = x->delivered;
	d->status = x->status;
	d->error = x->error;
	d->duration_us = x->duration_us;
	if (!final)
		d->due_at = x->next_due_at;
}

/* True: this one switched its endpoint off. */
static bool record_endpoint(struct store *s, const struct store_attempt *x, int64_t disable_after_us)
{
	struct fake_endpoint *p = endpoint_of(s, x->endpoint_id);
	if (x->delivered) {
		p->failing_since = 0;
		return false;
	}
	if (p->failing_since == 0)
		p->failing_since = sys_wall_us();
	if (p->disabled || !(x->gone || p->failing_since <= sys_wall_us() - disable_after_us))
		return false;
	p->disabled = true;
	return true;
}

int store_record_attempts(struct store *s, const struct store_attempt *v, size_t n, int64_t disable_after_us,
	store_outbox_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->outbox = fn;
	s->calls.records++;
	ALWAYS(n > 0);
	if (n > s->calls.biggest_record)
		s->calls.biggest_record = n;
	for (size_t i = 0; i < n; i++) {
		const struct fake_delivery *d = find(s, &v[i]);
		if (d != NULL && d->poisoned) {
			a->code = ST_INVALID;
			return 0;
		}
	}
	for (size_t i = 0; i < n && is_executed(s); i++) {
		record_delivery(find(s, &v[i]), &v[i]);
		a->n += record_endpoint(s, &v[i], disable_after_us);
	}
	return 0;
}

int store_release_deliveries(
	struct store *s, const struct store_attempt *v, size_t n, store_outbox_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->outbox = fn;
	s->calls.releases++;
	ALWAYS(n > 0);
	for (size_t i = 0; i < n && is_executed(s); i++) {
		struct fake_delivery *d = find(s, &v[i]);
		if (d == NULL || d->attempt != v[i].attempt || d->owner != EPOCH)
			continue;
		d->owner = 0;
		d->lease_until = 0;
		d->attempt--;
		a->n++;
	}
	return 0;
}

/* ---------------------------------------------------------------- the rest */

int store_disabled_endpoints(struct store *s, store_disabled_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->disabled = fn;
	s->calls.lists++;
	a->ids = mem_calloc(FAKE_ENDPOINTS, sizeof *a->ids);
	for (unsigned i = 0; i < s->n_endpoints; i++) {
		if (s->endpoints[i].disabled)
			a->ids[a->n++] = s->endpoints[i].id;
	}
	return 0;
}

int store_purge_events(struct store *s, int64_t older_than, unsigned limit, store_outbox_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->outbox = fn;
	s->calls.purges++;
	s->calls.purge_older_than = older_than;
	(void)limit;
	return 0;
}

int store_webhook_backlog(
	struct store *s, const char *const *endpoint_ids, size_t n, store_outbox_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->outbox = fn;
	s->calls.counts++;
	for (unsigned i = 0; i < s->n_deliveries; i++) {
		for (size_t j = 0; j < n; j++)
			a->n += strcmp(s->deliveries[i].endpoint, endpoint_ids[j]) == 0 &&
				is_waiting(&s->deliveries[i]) && s->deliveries[i].due_at <= sys_wall_us();
	}
	return 0;
}

/* ---------------------------------------------------------------- endpoints of the API */

void fake_outbox_remove_hook(struct store *s, const char *endpoint_id)
{
	unsigned n = 0;
	for (unsigned i = 0; i < s->n_hooks; i++) {
		if (strcmp(s->hooks[i].endpoint_id, endpoint_id) != 0)
			s->hooks[n++] = s->hooks[i];
	}
	s->n_hooks = n;
	s->mark++;
}

void fake_outbox_set_hook(struct store *s, const struct store_hook *h)
{
	fake_outbox_remove_hook(s, h->endpoint_id);
	ALWAYS(s->n_hooks < FAKE_HOOKS);
	s->hooks[s->n_hooks++] = *h;
}

int store_hooks_load(struct store *s, int64_t mark, bool force, store_hooks_load_fn *fn, void *arg)
{
	struct answer *a = answer_new(s, arg);
	a->load = fn;
	s->calls.loads++;
	a->changed = force || mark != s->mark;
	a->mark = s->mark;
	a->hooks = mem_calloc(FAKE_HOOKS, sizeof *a->hooks);
	a->n = a->changed ? s->n_hooks : 0;
	memcpy(a->hooks, s->hooks, a->n * sizeof *a->hooks);
	s->calls.hooks_told += (unsigned)a->n;
	return 0;
}
