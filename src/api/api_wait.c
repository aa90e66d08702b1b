/*
 * api_wait - calls that wait for a refresh to end: one poll of the rows for all of them.
 *
 * The refresh itself is done by whichever daemon claims the row, so that it happens once however many ask;
 * here only the row is watched. Must not: hold a transaction, or decide anything about the connection.
 */
#include "api/api_priv.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"

#define WAITING_MAX 512
#define WAITING_SHARE 4 /* one connector of one application: one part in so many */
#define FIRST_LOOK_US (40 * US_PER_MS)
#define LOOK_US (150 * US_PER_MS)
#define PATIENCE_US (60 * US_PER_S)

struct waiting {
	struct waiting *next;
	struct api_call *call;
	api_wait_fn *fn;
	struct store_conn_id id; /* application borrowed from the call */
	struct api_baseline seen;
	int64_t deadline;
};

struct api_room {
	struct api *api;
	struct waiting *first;
	unsigned n;
	struct loop_timer *timer;
	bool looking, closed;
};

static void look(void *arg);

struct api_room *api_room_new(struct api *a)
{
	struct api_room *r = mem_alloc(sizeof *r);
	r->api = a;
	r->timer = loop_timer_new(a->loop, look, r);
	return r;
}

void api_room_close(struct api_room *r)
{
	r->closed = true;
	if (r->first != NULL && !r->looking)
		loop_timer_after(r->timer, 0);
}

/* Takes *at out of the list and tells its call. */
static void tell(
	struct api_room *r, struct waiting **at, int code, bool ended_well, const struct store_connection *k)
{
	struct waiting *w = *at;
	*at = w->next;
	r->n--;
	w->fn(w->call, code, ended_well, k);
	mem_free(w);
}

void api_room_free(struct api_room *r)
{
	if (r == NULL)
		return;
	ALWAYS(!r->looking);
	while (r->first != NULL)
		tell(r, &r->first, ST_UNAVAILABLE, false, NULL);
	loop_timer_free(r->timer);
	mem_free(r);
}

static bool was_read(const struct waiting *w, const struct store_conn_id *ids, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (memcmp(ids[i].id, w->id.id, 16) == 0)
			return true;
	}
	return false;
}

enum verdict { GO_ON, WELL, BADLY };

static enum verdict judge(const struct waiting *w, const struct store_connection *k)
{
	if (w->seen.lease_only)
		return k->leased ? GO_ON : BADLY;
	if (k->token_version != w->seen.token_version)
		return WELL;
	if (!k->enabled && !k->leased)
		return BADLY; /* nothing will be tried any more */
	if (k->leased || (!w->seen.leased && k->attempt_id == w->seen.attempt_id))
		return GO_ON;
	/* An attempt ended without tokens. One that was given back unsent is still due, and comes again. */
	return k->due_at <= sys_wall_us() ? GO_ON : BADLY;
}

struct look_call {
	struct api_room *room;
	bool last; /* begun when the room was closed */
	size_t n;
	struct store_conn_id ids[];
};

/* True: told, and out of the list. */
static bool settle_one(
	struct api_room *r, struct waiting **at, const struct store_connection *k, bool asked, bool last)
{
	struct waiting *w = *at;
	enum verdict v = k != NULL ? judge(w, k) : GO_ON;
	if (asked && k == NULL)
		tell(r, at, ST_NOT_FOUND, false, NULL);
	else if (v != GO_ON)
		tell(r, at, 0, v == WELL, k);
	else if (last)
		tell(r, at, ST_UNAVAILABLE, false, NULL);
	else if (sys_mono_us() >= w->deadline)
		tell(r, at, ST_TIMEOUT, false, k);
	else
		return false;
	return true;
}

static void on_looked(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct look_call *call = arg;
	struct api_room *r = call->room;
	r->looking = false;
	struct waiting **at = &r->first;
	while (*at != NULL) {
		struct waiting *w = *at;
		const struct store_connection *k = NULL;
		for (size_t i = 0; i < n && k == NULL; i++) {
			if (memcmp(v[i].id, w->id.id, 16) == 0)
				k = &v[i];
		}
		if (!settle_one(r, at, k, code == 0 && was_read(w, call->ids, call->n), call->last))
			at = &w->next;
	}
	mem_free(call);
	if (r->first != NULL)
		loop_timer_after(r->timer, r->closed ? 0 : LOOK_US);
}

static void look(void *arg)
{
	struct api_room *r = arg;
	if (r->looking || r->first == NULL)
		return;
	struct look_call *call = mem_alloc(sizeof *call + r->n * sizeof *call->ids);
	call->room = r;
	call->last = r->closed;
	for (const struct waiting *w = r->first; w != NULL; w = w->next)
		call->ids[call->n++] = w->id;
	r->looking = store_connections(r->api->parts.store, call->ids, call->n, true, on_looked, call) == 0;
	if (!r->looking) {
		on_looked(call, ST_UNAVAILABLE, NULL, 0);
		return;
	}
}

/* How many wait for this connector of this application: a provider that hangs must not take the places of the others. */
static unsigned of_connector(const struct api_room *r, const struct conn_key *key)
{
	unsigned n = 0;
	for (const struct waiting *w = r->first; w != NULL; w = w->next)
		n += strcmp(w->call->key.service_id, key->service_id) == 0 && strcmp(w->call->application, key->application_id) == 0;
	return n;
}

bool api_wait_is_over(const struct api_call *c)
{
	return sys_mono_us() - c->began_us >= PATIENCE_US;
}

int api_wait(struct api_room *r, struct api_call *c, const struct api_baseline *seen, api_wait_fn *fn)
{
	if (r->n >= WAITING_MAX || of_connector(r, &c->key) >= WAITING_MAX / WAITING_SHARE)
		return ST_FULL;
	struct waiting *w = mem_alloc(sizeof *w);
	*w = (struct waiting){.call = c, .fn = fn, .seen = *seen, .deadline = sys_mono_us() + PATIENCE_US};
	api_conn_id(c, &w->id);
	w->next = r->first;
	r->first = w;
	r->n++;
	if (!r->looking && r->n == 1)
		loop_timer_after(r->timer, FIRST_LOOK_US);
	return 0;
}
