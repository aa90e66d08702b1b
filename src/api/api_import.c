/*
 * api_import - POST .../import: read strictly, then upsert in groups.
 *
 * What came in one turn of the loop, or queued while another group was out, is one group: sealed and written
 * as if none of it were there yet. What was there is read, decided anew against that, and written over; a row
 * that changed in between goes round again. Two imports of one connection are never out at once: in a group
 * the last one wins and all are answered, a later one waits for the end of the one before; who only wants the
 * row to be there wins over nobody. Must not: answer before the commit.
 */
#include "api/api_import.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"
#include "service/seal.h"

#define GROUPS 3
#define GROUP_MAX 128
#define PATIENCE_US (50 * US_PER_MS)
#define GROUP_BYTES ((size_t)2 * 1024 * 1024)
#define PASSED_MAX 1024
#define TRIES_MAX 8

struct group {
	struct api_imports *q;
	struct pending *v[GROUP_MAX]; /* sorted by id */
	size_t n;                     /* 0: it is free */
	int64_t since;                /* mono */
	bool events;
};

struct api_imports {
	struct api *api;
	struct pending *first, **last; /* the queue; of one connection the oldest first */
	size_t queued;
	struct group groups[GROUPS];
	struct loop_task start;
	struct loop_timer *patience; /* until a further group may go out */
};

static void start_groups(void *arg);

struct api_imports *api_imports_new(struct api *a)
{
	struct api_imports *q = mem_alloc(sizeof *q);
	q->api = a;
	q->last = &q->first;
	for (size_t i = 0; i < GROUPS; i++)
		q->groups[i].q = q;
	loop_task_init(&q->start, start_groups, q);
	q->patience = loop_timer_new(a->loop, start_groups, q);
	return q;
}

static void pending_free(void *state)
{
	struct pending *p = state;
	import_fini(&p->import);
	for (int i = 0; i < SEALED; i++)
		buf_fini(&p->sealed[i]);
	buf_fini(&p->settings_public);
	buf_fini(&p->entity);
	buf_fini(&p->entity_id);
	mem_free(p);
}

/* ---------------------------------------------------------------- answers */

typedef void end_fn(struct api_call *c, const void *arg);

/* The call owns its pending: ending the one frees the other. The winner is the last, for `arg` may point into it. */
static void end_all(struct pending *p, end_fn *fn, const void *arg)
{
	struct pending *follower = p->followers;
	while (follower != NULL) {
		struct pending *next = follower->followers;
		fn(follower->call, arg);
		follower = next;
	}
	fn(p->call, arg);
}

static void end_with_row(struct api_call *c, const void *arg)
{
	struct pending *p = c->state;
	api_row_fn *then = p->then;
	if (then == NULL) {
		api_reply_connection(c, arg);
		return;
	}
	c->state = NULL;
	c->free_state = NULL;
	pending_free(p);
	then(c, arg);
}

static void end_with_code(struct api_call *c, const void *arg)
{
	api_fail_store(c, *(const int *)arg);
}

/* ---------------------------------------------------------------- into the queue */

/* False: it cannot be sealed, and was answered. */
static bool prepared(struct api_imports *q, struct pending *p, const struct store_connection *row)
{
	static const int broken = ST_INVALID;
	int e = api_import_decide(p, q->api->conf->keyring, row);
	if (e == 0)
		return true;
	log_error("api.import_not_sealed", K_ID(p->id), K_STATUS(e));
	end_all(p, end_with_code, &broken);
	return false;
}

/* Sealed and decided here and not when its group starts: the database works meanwhile, and then waits for nobody. */
static void enqueue(struct api_imports *q, struct pending *p)
{
	if (!prepared(q, p, NULL))
		return;
	p->next = NULL;
	*q->last = p;
	q->last = &p->next;
	q->queued++;
	loop_defer(q->api->loop, &q->start);
}

/* Before what came after it, which shall win. */
static void enqueue_again(struct api_imports *q, struct pending *p)
{
	if (!prepared(q, p, NULL))
		return;
	p->next = q->first;
	q->first = p;
	q->queued++;
	if (q->last == &q->first)
		q->last = &p->next;
}

static void group_end(struct group *g)
{
	g->n = 0;
	loop_defer(g->q->api->loop, &g->q->start);
	if (g->events)
		g->q->api->parts.outbox(g->q->api->parts.arg);
	g->events = false;
}

static void try_again(struct group *g, struct pending *p, int code)
{
	if (++p->tries < TRIES_MAX)
		enqueue_again(g->q, p);
	else
		end_all(p, end_with_code, &code);
}

static void fail_group(struct group *g, int code)
{
	for (size_t i = 0; i < g->n; i++) {
		struct pending *p = g->v[i];
		p->alone = code == ST_INVALID;
		if (code == ST_AGAIN || (code == ST_INVALID && g->n > 1))
			try_again(g, p, code);
		else
			end_all(p, end_with_code, &code);
	}
	group_end(g);
}

/* ---------------------------------------------------------------- write */

static struct store_upsert upsert_of(const struct pending *p)
{
	struct store_upsert u = {
		.key = p->call->key,
		.auth_type = p->provider->auth_type,
		.token_version = p->version,
		.now = p->now,
		.seen_at = p->seen_at,
		.times = &p->times,
		.access_token = &p->sealed[ACCESS_TOKEN],
		.refresh_token = &p->sealed[REFRESH_TOKEN],
		.settings = &p->sealed[SETTINGS],
		.settings_public = p->import.has_settings ? buf_str(&p->settings_public) : NULL,
		.metadata = p->import.has_metadata ? buf_str(&p->import.metadata) : NULL,
		.state = p->to.state,
		.health = p->to.health,
		.event = p->to.event,
		.entity_id = buf_str(&p->entity_id),
		.entity = buf_str(&p->entity),
	};
	memcpy(u.id, p->id, 16);
	return u;
}

typedef int write_fn(
	struct store *s, const struct store_upsert *v, size_t n, bool wanted, store_written_fn *fn, void *arg);

static void write_group(struct group *g, write_fn *write, store_written_fn *fn)
{
	if (g->n == 0) {
		group_end(g);
		return;
	}
	struct store_upsert *rows = mem_calloc(g->n, sizeof *rows);
	for (size_t i = 0; i < g->n; i++)
		rows[i] = upsert_of(g->v[i]);
	struct api *api = g->q->api;
	int e = write(api->parts.store, rows, g->n, api->conf->n_webhooks > 0, fn, g);
	mem_free(rows);
	if (e != 0)
		fail_group(g, ST_UNAVAILABLE);
}

/* ---------------------------------------------------------------- after the write */

static const struct store_connection *row_of(const struct store_connection *v, size_t n, const uint8_t id[16])
{
	for (size_t i = 0; i < n; i++) {
		if (memcmp(v[i].id, id, 16) == 0)
			return &v[i];
	}
	return NULL;
}

/* The row as it stands now. */
static struct store_connection as_written(const struct pending *p, const struct store_written *x)
{
	struct store_connection k = {
		.key = p->call->key,
		.auth_type = auth_type_word(p->provider->auth_type),
		.state = conn_state_word(p->to.state),
		.health = conn_health_word(p->to.health),
		.reason = reason_word(p->to.health == HEALTH_MISSING_SETTINGS ? REASON_MISSING_SETTINGS : REASON_NONE),
		.enabled = p->enabled,
		.last_failed_at = p->last_failed_at,
		.created_at = p->created_at,
		.updated_at = p->now,
		.metadata = x->metadata,
		.settings_public = x->settings_public,
		.token_version = p->version,
		.issued_at = p->times.issued_at,
		.expires_at = p->times.expires_at,
		.refresh_issued_at = p->times.refresh_issued_at,
		.refresh_expires_at = p->times.refresh_expires_at,
		.has_refresh_token = p->import.refresh_token.len > 0,
		.due_at = p->times.due_at,
	};
	memcpy(k.id, p->id, sizeof k.id);
	return k;
}

static void answer(struct group *g, struct pending *p, const struct store_written *x)
{
	const struct store_connection row = as_written(p, x);
	g->events = g->events || x->wanted;
	if (p->times.due_at != INT64_MAX)
		scheduler_add(g->q->api->parts.scheduler, row.key.application_id, row.key.service_id, p->id, p->times.due_at);
	end_all(p, end_with_row, &row);
}

/* Those that were taken are answered; the others stay in the group. */
static void answer_written(struct group *g, const struct store_written *v, size_t n)
{
	size_t kept = 0;
	for (size_t i = 0; i < g->n; i++) {
		size_t k = 0;
		while (k < n && memcmp(v[k].id, g->v[i]->id, 16) != 0)
			k++;
		if (k < n)
			answer(g, g->v[i], &v[k]);
		else
			g->v[kept++] = g->v[i];
	}
	g->n = kept;
}

static void on_renewed(void *arg, int code, const struct store_written *v, size_t n)
{
	struct group *g = arg;
	if (code != 0) {
		fail_group(g, code);
		return;
	}
	answer_written(g, v, n);
	for (size_t i = 0; i < g->n; i++)
		try_again(g, g->v[i], ST_AGAIN);
	group_end(g);
}

/* What was there is decided anew from what it was, and written over. */
static void on_read(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct group *g = arg;
	size_t kept = 0;
	if (code != 0) {
		fail_group(g, code);
		return;
	}
	for (size_t i = 0; i < g->n; i++) {
		struct pending *p = g->v[i];
		const struct store_connection *row = row_of(v, n, p->id);
		if (row == NULL)
			try_again(g, p, ST_AGAIN);
		else if (p->then != NULL)
			end_all(p, end_with_row, row);
		else if (prepared(g->q, p, row))
			g->v[kept++] = p;
	}
	g->n = kept;
	write_group(g, store_renew, on_renewed);
}

static void on_created(void *arg, int code, const struct store_written *v, size_t n)
{
	struct group *g = arg;
	struct store_conn_id ids[GROUP_MAX];
	if (code != 0) {
		fail_group(g, code);
		return;
	}
	/* The database goes on with the next group while this one is answered. */
	if (n == g->n)
		g->since = -PATIENCE_US;
	start_groups(g->q);
	answer_written(g, v, n);
	if (g->n == 0) {
		group_end(g);
		return;
	}
	for (size_t i = 0; i < g->n; i++) {
		ids[i].application_id = g->v[i]->call->application;
		memcpy(ids[i].id, g->v[i]->id, 16);
	}
	if (store_connections(g->q->api->parts.store, ids, g->n, false, on_read, g) != 0)
		fail_group(g, ST_UNAVAILABLE);
}

/* ---------------------------------------------------------------- the queue */

static int id_against(const void *id, const void *member)
{
	const struct pending *const *p = member;
	return memcmp(id, (*p)->id, 16);
}

static int by_id(const void *a, const void *b)
{
	return id_against((*(const struct pending *const *)a)->id, b);
}

/* Is an import of the same connection out? */
static bool is_out(const struct api_imports *q, const struct group *forming, const struct pending *p)
{
	for (size_t i = 0; i < GROUPS; i++) {
		const struct group *g = &q->groups[i];
		if (g != forming && g->n > 0 && bsearch(p->id, g->v, g->n, sizeof *g->v, id_against) != NULL)
			return true;
	}
	return false;
}

/* Puts p in the group; the one of the same connection that is there already becomes its follower, or the
 * other way round if p only wants a row. */
static void join(struct group *g, struct pending *p)
{
	for (size_t i = 0; i < g->n; i++) {
		if (memcmp(g->v[i]->id, p->id, 16) != 0)
			continue;
		struct pending *winner = p->then == NULL ? p : g->v[i];
		struct pending *other = winner == p ? g->v[i] : p;
		struct pending *end = winner;
		while (end->followers != NULL)
			end = end->followers;
		end->followers = other;
		g->v[i] = winner;
		return;
	}
	g->v[g->n++] = p;
}

/* Whoever has to wait is passed by, but never by a later import of the same connection. */
static void form_group(struct api_imports *q, struct group *g)
{
	struct pending **at = &q->first, *p;
	size_t bytes = 0, passed = 0;
	while ((p = *at) != NULL && g->n < GROUP_MAX && bytes < GROUP_BYTES && passed < PASSED_MAX) {
		if (p->alone && g->n > 0)
			break;
		if (is_out(q, g, p)) {
			at = &p->next;
			passed++;
			continue;
		}
		*at = p->next;
		if (q->last == &p->next)
			q->last = at;
		q->queued--;
		const struct import *i = &p->import;
		bytes += i->access_token.len + i->refresh_token.len + i->settings.len + i->metadata.len;
		join(g, p);
		if (p->alone)
			break;
	}
	qsort(g->v, g->n, sizeof *g->v, by_id);
}

/* Two at a time get into each other's way: a further one only where one takes long, so that it does not hold up the others. */
static struct group *free_group(struct api_imports *q)
{
	struct group *found = NULL;
	int64_t mono = sys_mono_us();
	for (size_t i = 0; i < GROUPS; i++) {
		struct group *g = &q->groups[i];
		if (g->n == 0)
			found = g;
		else if (mono - g->since < PATIENCE_US)
			return NULL;
	}
	return q->queued > 0 ? found : NULL;
}

/* What has waited for long is told as of now: the row may have been there meanwhile, and have been deleted. */
static void decide_anew(struct api_imports *q, struct group *g)
{
	int64_t now = sys_wall_us();
	size_t kept = 0;
	for (size_t i = 0; i < g->n; i++) {
		if (now - g->v[i]->now < PATIENCE_US || prepared(q, g->v[i], NULL))
			g->v[kept++] = g->v[i];
	}
	g->n = kept;
}

/* Nothing may come or end before. Where no group is free, the end of one is next. */
static void wait_for_patience(struct api_imports *q)
{
	bool is_free = false;
	int64_t last = 0;
	for (size_t i = 0; i < GROUPS; i++) {
		const struct group *g = &q->groups[i];
		is_free = is_free || g->n == 0;
		if (g->n > 0 && g->since > last)
			last = g->since;
	}
	if (is_free && q->queued > 0)
		loop_timer_at(q->patience, last + PATIENCE_US);
}

static void start_groups(void *arg)
{
	struct api_imports *q = arg;
	struct group *g;
	while ((g = free_group(q)) != NULL) {
		form_group(q, g);
		if (g->n == 0)
			return;
		decide_anew(q, g);
		g->since = sys_mono_us();
		write_group(g, store_create, on_created);
	}
	wait_for_patience(q);
}

void api_imports_free(struct api_imports *q)
{
	static const int gone = ST_UNAVAILABLE;
	if (q == NULL)
		return;
	loop_undefer(q->api->loop, &q->start);
	loop_timer_free(q->patience);
	for (size_t i = 0; i < GROUPS; i++)
		ALWAYS(q->groups[i].n == 0);
	while (q->first != NULL) {
		struct pending *p = q->first;
		q->first = p->next;
		end_all(p, end_with_code, &gone);
	}
	mem_free(q);
}

/* ---------------------------------------------------------------- the callers */

static struct pending *pending_new(struct api_call *c, const struct provider *provider)
{
	struct pending *p = mem_alloc(sizeof *p);
	import_init(&p->import);
	for (int i = 0; i < SEALED; i++)
		buf_init(&p->sealed[i], SEAL_COLUMN_MAX);
	buf_init(&p->settings_public, SEAL_COLUMN_MAX);
	buf_init(&p->entity, EVENT_ENTITY_MAX);
	buf_init(&p->entity_id, EVENT_ENTITY_ID_MAX);
	c->state = p;
	c->free_state = pending_free;
	p->call = c;
	p->provider = provider;
	conn_id_of(&c->key, p->id);
	return p;
}

void api_imports_make(struct api_imports *q, struct api_call *c, const struct provider *p, api_row_fn *fn)
{
	pending_new(c, p)->then = fn;
	enqueue(q, c->state);
}

void api_do_import(struct api_call *c)
{
	struct import_problems problems = {.n = 0};
	size_t n;
	const char *body = httpd_body(c->req, &n);
	const struct provider *provider = api_provider(c);
	if (provider == NULL) {
		api_fail_missing(c);
		return;
	}
	struct pending *p = pending_new(c, provider);
	if (import_parse(n > 0 ? body : "", n, false, &p->import, &problems) == 0) {
		p->import.unified_api = mem_strdup(c->key.unified_api);
		p->import.service_id = mem_strdup(c->key.service_id);
		(void)!import_check(&p->import, provider, &problems); /* what it finds is in `problems` */
	}
	if (problems.n > 0) {
		api_fail_fields(c, API_BAD_REQUEST, "the body is not a connection that can be imported", &problems);
		return;
	}
	enqueue(c->api->imports, p);
}
