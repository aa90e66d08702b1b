/*
 * api_import - POST .../import: read strictly, then upsert in groups.
 *
 * What queued while the last statement ran goes into the next one: read the rows as they are, decide and seal
 * against that, write what still fits. A row that changed in between goes round again. Of several imports of
 * one connection in a group the last wins, and all are answered, after the commit; who only wants the row to be
 * there wins over nobody. Must not: answer before it.
 */
#include "api/api_priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"
#include "model/policy.h"
#include "service/seal.h"

#define GROUP_MAX 128
#define GROUP_BYTES ((size_t)2 * 1024 * 1024)
#define TRIES_MAX 8
#define SEALED_MAX ((size_t)256 * 1024)
#define ENTITY_MAX ((size_t)32 * 1024)

struct pending {
	struct pending *next;      /* in the queue, or behind `winner` */
	struct pending *followers; /* earlier imports of the same connection, answered with this one */
	struct api_call *call;
	struct import import;
	const struct provider *provider; /* of the call's configuration */
	uint8_t id[16];
	unsigned tries;
	bool alone; /* the server refused a group that it was in */
	api_row_fn *then; /* not an import: the row is to be made if it is not there, and this goes on with it */

	/* for the present try */
	int64_t version, seen_at;
	struct import_times times;
	struct conn_change to;
	struct buf access_token, refresh_token, settings, settings_public, entity, entity_id;
};

struct api_imports {
	struct api *api;
	struct pending *first, **last; /* the queue */
	struct pending *group[GROUP_MAX];
	size_t n;
	int64_t now;
	bool busy;
};

struct api_imports *api_imports_new(struct api *a)
{
	struct api_imports *q = mem_alloc(sizeof *q);
	q->api = a;
	q->last = &q->first;
	return q;
}

static void bufs_fini(struct pending *p)
{
	buf_fini(&p->access_token);
	buf_fini(&p->refresh_token);
	buf_fini(&p->settings);
	buf_fini(&p->settings_public);
	buf_fini(&p->entity);
	buf_fini(&p->entity_id);
}

static void pending_free(void *state)
{
	struct pending *p = state;
	import_fini(&p->import);
	bufs_fini(p);
	mem_free(p);
}

/* ---------------------------------------------------------------- answers */

typedef void end_fn(struct api_call *c, const void *arg);

/* The call owns its pending: ending the one frees the other. */
static void end_all(struct pending *p, end_fn *fn, const void *arg)
{
	while (p != NULL) {
		struct pending *next = p->followers;
		fn(p->call, arg);
		p = next;
	}
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

static void enqueue(struct api_imports *q, struct pending *p)
{
	p->next = NULL;
	*q->last = p;
	q->last = &p->next;
}

static void next_group(struct api_imports *q);

static void fail_group(struct api_imports *q, int code)
{
	for (size_t i = 0; i < q->n; i++) {
		struct pending *p = q->group[i];
		bool again = code == ST_AGAIN || (code == ST_INVALID && q->n > 1);
		p->alone = code == ST_INVALID;
		if (again && ++p->tries < TRIES_MAX)
			enqueue(q, p);
		else
			end_all(p, end_with_code, &code);
	}
	q->n = 0;
	q->busy = false;
	next_group(q);
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

static void on_written(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_imports *q = arg;
	static const int given_up = ST_AGAIN;
	bool events = false;
	if (code != 0) {
		fail_group(q, code);
		return;
	}
	for (size_t i = 0; i < q->n; i++) {
		struct pending *p = q->group[i];
		const struct store_connection *row = row_of(v, n, p->id);
		if (row != NULL && row->token_version == p->version) {
			events = events || p->to.event != EVENT_NONE;
			if (p->times.due_at != INT64_MAX)
				scheduler_add(q->api->parts.scheduler, row->key.application_id,
					row->key.service_id, p->id, p->times.due_at);
			end_all(p, end_with_row, row);
		} else if (++p->tries < TRIES_MAX) {
			enqueue(q, p);
		} else {
			end_all(p, end_with_code, &given_up);
		}
	}
	if (events)
		q->api->parts.outbox(q->api->parts.arg);
	q->n = 0;
	q->busy = false;
	next_group(q);
}

/* ---------------------------------------------------------------- decide, seal, write */

static int seal_one(struct api_imports *q, enum seal_column col, const struct pending *p, int64_t version,
	const struct buf *plain, struct buf *out)
{
	buf_fini(out);
	buf_init(out, SEALED_MAX);
	return plain->len == 0 ? 0
			       : seal_column(q->api->conf->keyring, col, p->id, version, plain->data,
					 plain->len, out);
}

static int seal_all(struct api_imports *q, struct pending *p)
{
	int e = seal_one(q, SEAL_ACCESS_TOKEN, p, p->version, &p->import.access_token, &p->access_token);
	if (e == 0)
		e = seal_one(
			q, SEAL_REFRESH_TOKEN, p, p->version, &p->import.refresh_token, &p->refresh_token);
	if (e != 0 || !p->import.has_settings)
		return e;
	e = seal_one(q, SEAL_SETTINGS, p, 0, &p->import.settings, &p->settings);
	buf_fini(&p->settings_public);
	buf_init(&p->settings_public, SEALED_MAX);
	return e != 0 ? e
		      : import_mask_settings(buf_str(&p->import.settings), p->import.settings.len,
				p->provider, &p->settings_public);
}

static void decide(struct pending *p, const struct store_connection *row)
{
	enum conn_state state = CONN_AVAILABLE;
	enum conn_health health = HEALTH_OK;
	/* Words of a newer program: treated as well, which tells nothing. */
	if (row != NULL && conn_state_parse(row->state, &state) != 0)
		state = CONN_CALLABLE;
	if (row != NULL && conn_health_parse(row->health, &health) != 0)
		health = HEALTH_OK;
	p->to = connection_apply(state, health, import_event(&p->import, p->provider));
	if (row == NULL)
		p->to.event = EVENT_CREATED;
	else if (p->to.event == EVENT_NONE)
		p->to.event = EVENT_UPDATED;
}

static int build_event(struct api_imports *q, struct pending *p, const struct store_connection *row)
{
	const struct store_connection fresh = {
		.key = p->call->key,
		.auth_type = auth_type_word(p->provider->auth_type),
		.created_at = row != NULL ? row->created_at : q->now,
		.last_failed_at = row != NULL ? row->last_failed_at : 0,
	};
	buf_fini(&p->entity);
	buf_fini(&p->entity_id);
	buf_init(&p->entity, ENTITY_MAX);
	buf_init(&p->entity_id, 1024);
	return api_build_event(p->call->conf, &fresh, conn_state_word(p->to.state),
		conn_health_word(p->to.health), row == NULL || row->enabled, q->now, &p->entity,
		&p->entity_id);
}

static int prepare(struct api_imports *q, struct pending *p, const struct store_connection *row)
{
	const struct conf *c = p->call->conf;
	const struct policy_margin margin = {
		.margin_us = c->refresh.margin_us, .fraction = c->refresh.margin_fraction};
	p->seen_at = row != NULL ? row->updated_at : 0;
	p->version = row != NULL && row->token_version >= q->now ? row->token_version + 1 : q->now;
	decide(p, row);
	import_plan(&p->import, p->provider, &margin, q->now, sys_random_unit(), &p->times);
	int e = seal_all(q, p);
	return e != 0 ? e : build_event(q, p, row);
}

static struct store_upsert upsert_of(const struct pending *p)
{
	struct store_upsert u = {
		.key = p->call->key,
		.auth_type = p->provider->auth_type,
		.token_version = p->version,
		.seen_at = p->seen_at,
		.times = &p->times,
		.access_token = &p->access_token,
		.refresh_token = &p->refresh_token,
		.settings = &p->settings,
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

/* What cannot be sealed is answered here; the rest stays in the group. */
static void prepare_all(struct api_imports *q, const struct store_connection *v, size_t n)
{
	static const int broken = ST_INVALID;
	size_t kept = 0;
	for (size_t i = 0; i < q->n; i++) {
		struct pending *p = q->group[i];
		const struct store_connection *row = row_of(v, n, p->id);
		/* updated_at must grow, for it is what the next writer compares. */
		if (row != NULL && row->updated_at >= q->now)
			q->now = row->updated_at + 1;
	}
	for (size_t i = 0; i < q->n; i++) {
		struct pending *p = q->group[i];
		const struct store_connection *row = row_of(v, n, p->id);
		if (p->then != NULL && row != NULL) {
			end_all(p, end_with_row, row);
			continue;
		}
		int e = prepare(q, p, row);
		if (e == 0) {
			q->group[kept++] = p;
			continue;
		}
		log_error("api.import_not_sealed", K_ID(p->id), K_STATUS(e));
		end_all(p, end_with_code, &broken);
	}
	q->n = kept;
}

static void on_read(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_imports *q = arg;
	struct store_upsert *rows;
	if (code != 0) {
		fail_group(q, code);
		return;
	}
	q->now = sys_wall_us();
	prepare_all(q, v, n);
	if (q->n == 0) {
		q->busy = false;
		next_group(q);
		return;
	}
	rows = mem_calloc(q->n, sizeof *rows);
	for (size_t i = 0; i < q->n; i++)
		rows[i] = upsert_of(q->group[i]);
	int e = store_upsert(q->api->parts.store, rows, q->n, q->now, on_written, q);
	mem_free(rows);
	if (e != 0)
		fail_group(q, ST_UNAVAILABLE);
}

/* ---------------------------------------------------------------- the queue */

static int by_id(const void *a, const void *b)
{
	const struct pending *const *x = a, *const *y = b;
	return memcmp((*x)->id, (*y)->id, 16);
}

/* Puts p in the group; the one of the same connection that is there already becomes its follower, or the other way round if p only
 * wants a row. */
static void join(struct api_imports *q, struct pending *p)
{
	for (size_t i = 0; i < q->n; i++) {
		if (memcmp(q->group[i]->id, p->id, 16) != 0)
			continue;
		struct pending *winner = p->then == NULL ? p : q->group[i];
		struct pending *other = winner == p ? q->group[i] : p;
		struct pending *end = winner;
		while (end->followers != NULL)
			end = end->followers;
		end->followers = other;
		q->group[i] = winner;
		return;
	}
	q->group[q->n++] = p;
}

static void next_group(struct api_imports *q)
{
	struct store_conn_id ids[GROUP_MAX];
	size_t bytes = 0;
	if (q->busy || q->first == NULL)
		return;
	while (q->first != NULL && q->n < GROUP_MAX && bytes < GROUP_BYTES) {
		struct pending *p = q->first;
		if (p->alone && q->n > 0)
			break;
		q->first = p->next;
		if (q->first == NULL)
			q->last = &q->first;
		bytes += p->import.access_token.len + p->import.refresh_token.len + p->import.settings.len +
			 p->import.metadata.len;
		join(q, p);
		if (p->alone)
			break;
	}
	qsort(q->group, q->n, sizeof *q->group, by_id);
	for (size_t i = 0; i < q->n; i++) {
		ids[i].application_id = q->group[i]->call->application;
		memcpy(ids[i].id, q->group[i]->id, 16);
	}
	q->busy = true;
	if (store_connections(q->api->parts.store, ids, q->n, false, on_read, q) != 0)
		fail_group(q, ST_UNAVAILABLE);
}

void api_imports_free(struct api_imports *q)
{
	static const int gone = ST_UNAVAILABLE;
	if (q == NULL)
		return;
	ALWAYS(!q->busy);
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
	next_group(q);
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
		api_fail_fields(
			c, API_BAD_REQUEST, "the body is not a connection that can be imported", &problems);
		return;
	}
	enqueue(c->api->imports, p);
	next_group(c->api->imports);
}
