/*
 * api_connection - list, get, delete: the connections as they are stored, and as they could be.
 *
 * Delete waits for a request that is out: its answer has a row to go to, and whoever imports the same token right
 * behind it finds nobody presenting it. Must not: take a lease away.
 * A service that is configured and not connected is `available`; it has no row, here it is made up from the
 * configuration.
 */
#include "api/api_priv.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"

#define LIST_MAX ((size_t)32 * 1024 * 1024)

/* ---------------------------------------------------------------- one */

static void on_got(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	const struct provider *p = api_provider(c);
	struct api_reply r;
	if (code != 0) {
		api_fail_store(c, code);
	} else if (n > 0) {
		api_reply_connection(c, &v[0]);
	} else if (p == NULL) {
		api_fail_missing(c);
	} else {
		api_reply_begin(&r, c, API_BODY_MAX, false);
		api_write_available(&r.w, "data", c, p, c->key.unified_api);
		api_reply_send(&r);
	}
}

void api_do_get(struct api_call *c)
{
	struct store_conn_id id;
	api_conn_id(c, &id);
	int e = store_connections(c->api->parts.store, &id, 1, false, on_got, c);
	if (e != 0)
		api_fail_store(c, e);
}

/* ---------------------------------------------------------------- many */

enum filter { FILTER_NONE, FILTER_CONFIGURED, FILTER_NOT_CONFIGURED };

struct list_state {
	enum filter filter;
	unsigned limit;
	bool first_page;
	char *unified_api; /* NULL: all */
};

static void list_free(void *state)
{
	struct list_state *s = state;
	mem_free(s->unified_api);
	mem_free(s);
}

static bool is_configured(const struct store_connection *k)
{
	return strcmp(k->state, "available") != 0 && strcmp(k->state, "added") != 0;
}

static bool is_there(
	const struct store_connection *v, size_t n, const char *unified_api, const char *service_id)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(v[i].key.unified_api, unified_api) == 0 &&
			strcmp(v[i].key.service_id, service_id) == 0)
			return true;
	}
	return false;
}

/* What the consumer could connect and has not. */
static size_t write_available(struct api_reply *r, const void *items, size_t n)
{
	size_t written = 0;
	const struct list_state *s = r->call->state;
	const struct conf *c = r->call->conf;
	for (size_t i = 0; i < c->n_providers; i++) {
		const struct provider *p = c->providers[i];
		for (size_t k = 0; k < p->unified_apis.n; k++) {
			const char *api = p->unified_apis.v[k];
			if ((s->unified_api != NULL && strcmp(s->unified_api, api) != 0) ||
				is_there(items, n, api, p->key))
				continue;
			api_write_available(&r->w, NULL, r->call, p, api);
			written++;
		}
	}
	return written;
}

static bool write_one(struct api_reply *r, const void *items, size_t i)
{
	const struct list_state *s = r->call->state;
	const struct store_connection *k = &((const struct store_connection *)items)[i];
	if (s->filter != FILTER_NONE && is_configured(k) != (s->filter == FILTER_CONFIGURED))
		return false;
	api_write_connection(&r->w, NULL, r->call->conf, k);
	return true;
}

static void cursor_behind(struct buf *next, const void *items, size_t last)
{
	const struct conn_key *k = &((const struct store_connection *)items)[last].key;
	const char *const parts[] = {k->consumer_id, k->unified_api, k->service_id};
	ALWAYS(api_cursor_write(next, parts, 3) == 0); /* three ids of bounded length */
}

static void on_listed(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	const struct list_state *s = c->state;
	bool others = s->filter == FILTER_NOT_CONFIGURED && c->consumer != NULL && s->first_page;
	const struct api_list l = {.max = LIST_MAX,
		.limit = s->limit,
		.write = write_one,
		.cursor = cursor_behind,
		.more = others ? write_available : NULL};
	if (code != 0)
		api_fail_store(c, code);
	else
		api_reply_list(c, &l, v, n);
}

/* 0, or a wrong parameter that was answered. */
static int read_filters(struct api_call *c, struct list_state *s)
{
	struct buf text = BUF_INIT(2048);
	bool only = false;
	int e = api_query(c, "configured", &text);
	if (e == 0 && text.len > 0) {
		e = str_parse_bool(buf_str(&text), text.len, &only);
		s->filter = only ? FILTER_CONFIGURED : FILTER_NOT_CONFIGURED;
	}
	const char *wrong = e != 0 && e != ST_NOT_FOUND ? "configured" : NULL;
	e = wrong == NULL ? api_query(c, "api", &text) : e;
	if (e == 0 && text.len > 0)
		s->unified_api = mem_strndup(buf_str(&text), text.len);
	else if (wrong == NULL && e != 0 && e != ST_NOT_FOUND)
		wrong = "api";
	buf_fini(&text);
	if (wrong == NULL)
		return 0;
	api_fail(c, API_BAD_REQUEST, "query parameter %s cannot be understood", wrong);
	return ST_INVALID;
}

void api_do_list(struct api_call *c)
{
	struct list_state *s = mem_alloc(sizeof *s);
	struct api_page p = {.plain = BUF_INIT(0)};
	c->state = s;
	c->free_state = list_free;
	if (read_filters(c, s) == 0 && api_page_take(c, &p, API_PAGE_MAX, API_PAGE_MAX, 3) == 0) {
		s->first_page = p.first;
		s->limit = p.limit;
		const struct store_conn_list w = {
			.application_id = c->application,
			.consumer_id = c->consumer,
			.unified_api = s->unified_api,
			.after = {c->application, p.parts[0], p.parts[1], p.parts[2]},
			.limit = s->limit + 1, /* one more tells whether there is more */
			.bytes = LIST_MAX / 2 + 1, /* so does the last of these: the page ends before it */
		};
		int e = store_connections_list(c->api->parts.store, &w, on_listed, c);
		if (e != 0)
			api_fail_store(c, e);
	}
	api_page_fini(&p);
}

/* ---------------------------------------------------------------- forget */

int api_build_event(const struct conf *c, const struct store_connection *k, const char *state,
	const char *health, bool enabled, int64_t updated_at, struct buf *entity, struct buf *entity_id)
{
	const struct provider *p = conf_provider(c, k->key.service_id);
	const struct event_entity e = {
		.application_id = k->key.application_id,
		.consumer_id = k->key.consumer_id,
		.unified_api = k->key.unified_api,
		.service_id = k->key.service_id,
		.name = p != NULL ? p->name : k->key.service_id,
		.website = p != NULL ? p->website : NULL,
		.auth_type = k->auth_type,
		.state = state,
		.health = health,
		.enabled = enabled,
		.created_at = k->created_at,
		.updated_at = updated_at,
		.last_refresh_failed_at = k->last_failed_at,
	};
	int rc = event_entity_build(&e, entity);
	return rc != 0 ? rc : buf_printf(entity_id, "%s+%s", k->key.application_id, k->key.consumer_id);
}

static void on_not_leased(struct api_call *c, int code, bool ended_well, const struct store_connection *k)
{
	(void)ended_well, (void)k; /* only that it has ended counts */
	if (code == ST_UNAVAILABLE)
		api_fail_store(c, code);
	else
		c->then(c);
}

void api_forget_later(struct api_call *c, api_fn *fn)
{
	const struct api_baseline until = {.lease_only = true};
	if (api_wait_is_over(c)) {
		api_fail(c, API_TIMEOUT, "a refresh is out and did not end within 60 seconds; nothing was deleted, try again");
		return;
	}
	c->then = fn;
	if (api_wait(c->api->room, c, &until, on_not_leased) != 0) {
		api_retry_after(c, 5);
		api_fail(c, API_UNAVAILABLE, "too many calls wait for a refresh");
	}
}

static api_fn find;

static void on_forgotten(void *arg, int code, int64_t n)
{
	struct api_call *c = arg;
	if (code != 0) {
		api_fail_store(c, code);
	} else if (n > 0) {
		c->api->parts.outbox(c->api->parts.arg);
		api_reply_empty(c);
	} else {
		api_forget_later(c, find); /* claimed, or gone, since it was read */
	}
}

static void on_found(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	if (code != 0 || n == 0) {
		if (code != 0)
			api_fail_store(c, code);
		else
			api_fail_missing(c);
		return;
	}
	if (v[0].leased) {
		api_forget_later(c, find);
		return;
	}
	struct buf entity = BUF_INIT(EVENT_ENTITY_MAX), entity_id = BUF_INIT(EVENT_ENTITY_ID_MAX);
	int64_t now = sys_wall_us();
	struct store_forget f = {.application_id = c->application};
	memcpy(f.id, v[0].id, 16);
	int e = api_build_event(c->conf, &v[0], conn_state_word(CONN_AVAILABLE), v[0].health, false, now,
		&entity, &entity_id);
	f.entity = buf_str(&entity);
	f.entity_id = buf_str(&entity_id);
	if (e == 0)
		e = store_forget(c->api->parts.store, &f, 1, now, on_forgotten, c);
	if (e != 0)
		api_fail_store(c, e);
	buf_fini(&entity);
	buf_fini(&entity_id);
}

static void find(struct api_call *c)
{
	struct store_conn_id id;
	api_conn_id(c, &id);
	int e = store_connections(c->api->parts.store, &id, 1, false, on_found, c);
	if (e != 0)
		api_fail_store(c, e);
}

void api_do_delete(struct api_call *c)
{
	find(c);
}
