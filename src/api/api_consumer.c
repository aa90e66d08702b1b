/*
 * api_consumer - the consumers of an application, and what they have; the log of what happened to their
 * connections.
 *
 * A consumer is made by its first connection and gone with its last: there is no table of them.
 */
#include "api/api_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"

#define PAGE_DEFAULT 20
#define PAGE_MAX 200
#define LIST_MAX ((size_t)16 * 1024 * 1024)
#define FORGET_GROUP 100

struct forgetting {
	unsigned tries;
	int64_t forgotten;
	char unified_api[72], service_id[72]; /* of the connection whose lease is waited for */
};

static void write_iso(struct jsonw *w, const char *name, int64_t wall_us)
{
	char text[STR_ISO_BYTES];
	if (wall_us == 0 || wall_us == INT64_MAX) {
		jsonw_null(w, name);
		return;
	}
	str_format_iso_ms(wall_us, text);
	jsonw_str(w, name, text);
}

/* Requests are not counted here: an application calls its providers itself. */
static void write_counts(struct jsonw *w)
{
	jsonw_int(w, "aggregated_request_count", 0);
	jsonw_object(w, "request_counts");
	jsonw_int(w, "unify", 0);
	jsonw_int(w, "proxy", 0);
	jsonw_int(w, "vault", 0);
	jsonw_object_end(w);
}

/* ---------------------------------------------------------------- many */

static bool write_one(struct api_reply *r, const void *items, size_t i)
{
	const struct store_consumer *v = &((const struct store_consumer *)items)[i];
	jsonw_object(&r->w, NULL);
	jsonw_str(&r->w, "consumer_id", v->consumer_id);
	jsonw_str(&r->w, "application_id", r->call->application);
	jsonw_object(&r->w, "metadata");
	jsonw_object_end(&r->w);
	jsonw_raw(&r->w, "services", v->services, strlen(v->services));
	write_counts(&r->w);
	write_iso(&r->w, "created", v->created_at);
	write_iso(&r->w, "modified", v->updated_at);
	jsonw_object_end(&r->w);
	return true;
}

static void cursor_behind(struct buf *next, const void *items, size_t last)
{
	ALWAYS(api_cursor_write(next, &((const struct store_consumer *)items)[last].consumer_id, 1) == 0);
}

static void limit_is(struct api_call *c, unsigned limit)
{
	unsigned *kept = mem_alloc(sizeof *kept);
	*kept = limit;
	c->state = kept;
	c->free_state = mem_free;
}

static void on_consumers(void *arg, int code, const struct store_consumer *v, size_t n)
{
	struct api_call *c = arg;
	const struct api_list l = {.max = LIST_MAX, .limit = *(unsigned *)c->state, .write = write_one, .cursor = cursor_behind};
	if (code != 0)
		api_fail_store(c, code);
	else
		api_reply_list(c, &l, v, n);
}

void api_do_consumers(struct api_call *c)
{
	struct api_page p;
	if (api_page_take(c, &p, PAGE_DEFAULT, PAGE_MAX, 1) == 0) {
		limit_is(c, p.limit);
		int e = store_consumers(c->api->parts.store, c->application, p.parts[0], p.limit + 1, on_consumers, c);
		if (e != 0)
			api_fail_store(c, e);
	}
	api_page_fini(&p);
}

/* ---------------------------------------------------------------- one */

static void write_connection(struct jsonw *w, const struct api_call *c, const struct store_connection *k)
{
	const struct provider *p = conf_provider(c->conf, k->key.service_id);
	char id[160];
	(void)snprintf(id, sizeof id, "%s+%s", k->key.unified_api, k->key.service_id);
	jsonw_object(w, NULL);
	jsonw_str(w, "id", id);
	jsonw_str(w, "name", p != NULL ? p->name : k->key.service_id);
	jsonw_str(w, "icon", "");
	jsonw_str(w, "logo", "");
	jsonw_str(w, "website", p != NULL && p->website != NULL ? p->website : "");
	jsonw_str(w, "tag_line", "");
	jsonw_str(w, "service_id", k->key.service_id);
	jsonw_str(w, "unified_api", k->key.unified_api);
	jsonw_str(w, "consumer_id", k->key.consumer_id);
	jsonw_str(w, "auth_type", k->auth_type);
	jsonw_bool(w, "enabled", k->enabled);
	jsonw_raw(w, "settings", k->settings_public, strlen(k->settings_public));
	jsonw_raw(w, "metadata", k->metadata, strlen(k->metadata));
	write_iso(w, "created_at", k->created_at);
	write_iso(w, "updated_at", k->updated_at);
	jsonw_str(w, "state", k->state);
	jsonw_str(w, "health", k->health);
	write_iso(w, "credentials_expire_at", k->expires_at);
	write_iso(w, "last_refresh_failed_at", k->last_failed_at);
	jsonw_object_end(w);
}

static void write_consumer(
	struct jsonw *w, const struct api_call *c, const struct store_connection *v, size_t n)
{
	int64_t created = v[0].created_at, modified = 0;
	jsonw_object(w, "data");
	jsonw_str(w, "consumer_id", c->key.consumer_id);
	jsonw_str(w, "application_id", c->application);
	jsonw_object(w, "metadata");
	jsonw_object_end(w);
	jsonw_array(w, "connections");
	for (size_t i = 0; i < n; i++) {
		write_connection(w, c, &v[i]);
		created = v[i].created_at < created ? v[i].created_at : created;
		modified = v[i].updated_at > modified ? v[i].updated_at : modified;
	}
	jsonw_array_end(w);
	jsonw_array(w, "services");
	for (size_t i = 0; i < n; i++) {
		bool again = false;
		for (size_t k = 0; k < i && !again; k++)
			again = strcmp(v[k].key.service_id, v[i].key.service_id) == 0;
		if (!again)
			jsonw_str(w, NULL, v[i].key.service_id);
	}
	jsonw_array_end(w);
	write_counts(w);
	write_iso(w, "created", created);
	write_iso(w, "modified", modified);
	jsonw_object_end(w);
}

static int list_of_consumer(struct api_call *c, unsigned limit, store_connections_fn *fn)
{
	const struct store_conn_list w = {
		.application_id = c->application,
		.consumer_id = c->key.consumer_id,
		.after = {c->application, "", "", ""},
		.limit = limit,
		.bytes = LIST_MAX,
	};
	return store_connections_list(c->api->parts.store, &w, fn, c);
}

/* The consumer is in the path here. False: answered. */
static bool take_consumer(struct api_call *c)
{
	struct fault f = {0};
	c->key.consumer_id = buf_str(&c->match.id);
	const struct conn_key key = {c->application, c->key.consumer_id, "x", "x"};
	if (conn_key_check(&key, &f) == 0)
		return true;
	api_fail(c, API_BAD_REQUEST, "%s", f.text);
	return false;
}

static void on_consumer(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	struct api_reply r;
	if (code != 0) {
		api_fail_store(c, code);
	} else if (n == 0) {
		api_fail(c, API_NOT_FOUND, "there is no such consumer");
	} else {
		api_reply_begin(&r, c, LIST_MAX, false);
		write_consumer(&r.w, c, v, n);
		api_reply_send(&r);
	}
}

void api_do_consumer(struct api_call *c)
{
	if (!take_consumer(c))
		return;
	int e = list_of_consumer(c, API_PAGE_MAX, on_consumer);
	if (e != 0)
		api_fail_store(c, e);
}

/* ---------------------------------------------------------------- forget all of one consumer, in groups */

static void on_some(void *arg, int code, const struct store_connection *v, size_t n);

static void next_some(struct api_call *c)
{
	int e = list_of_consumer(c, FORGET_GROUP, on_some);
	if (e != 0)
		api_fail_store(c, e);
}

static void on_some_forgotten(void *arg, int code, int64_t n)
{
	struct api_call *c = arg;
	struct forgetting *p = c->state;
	if (code != 0 && code != ST_AGAIN) {
		api_fail_store(c, code);
		return;
	}
	p->forgotten += n;
	if (n > 0)
		c->api->parts.outbox(c->api->parts.arg);
	else if (++p->tries > 5) {
		api_fail(c, API_CONFLICT,
			"the consumer's connections were changed by others again and again; try again");
		return;
	}
	next_some(c);
}

static int forget_order(const void *a, const void *b)
{
	return memcmp(((const struct store_forget *)a)->id, ((const struct store_forget *)b)->id, 16);
}

static int forget_some(struct api_call *c, const struct store_connection *v, size_t n)
{
	struct store_forget *f = mem_calloc(n, sizeof *f);
	struct buf *entities = mem_calloc(n, sizeof *entities), entity_id = BUF_INIT(EVENT_ENTITY_ID_MAX);
	int64_t now = sys_wall_us();
	int e = 0;
	for (size_t i = 0; e == 0 && i < n; i++) {
		buf_init(&entities[i], EVENT_ENTITY_MAX);
		buf_reset(&entity_id);
		e = api_build_event(c->conf, &v[i], conn_state_word(CONN_AVAILABLE), v[i].health, false, now,
			&entities[i], &entity_id);
		f[i].application_id = c->application;
		f[i].entity = buf_str(&entities[i]);
		memcpy(f[i].id, v[i].id, 16);
	}
	for (size_t i = 0; i < n; i++)
		f[i].entity_id = buf_str(&entity_id); /* the same for all of a consumer */
	qsort(f, n, sizeof *f, forget_order);
	if (e == 0)
		e = store_forget(c->api->parts.store, f, n, now, on_some_forgotten, c);
	for (size_t i = 0; i < n; i++)
		buf_fini(&entities[i]);
	buf_fini(&entity_id);
	mem_free(entities);
	mem_free(f);
	return e;
}

static bool all_leased(const struct store_connection *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (!v[i].leased)
			return false;
	}
	return n > 0;
}

static void wait_for(struct api_call *c, const struct conn_key *k)
{
	struct forgetting *p = c->state;
	(void)snprintf(p->unified_api, sizeof p->unified_api, "%s", k->unified_api);
	(void)snprintf(p->service_id, sizeof p->service_id, "%s", k->service_id);
	c->key.unified_api = p->unified_api;
	c->key.service_id = p->service_id;
	api_forget_later(c, next_some);
}

static void on_some(void *arg, int code, const struct store_connection *v, size_t n)
{
	struct api_call *c = arg;
	const struct forgetting *p = c->state;
	struct api_reply r;
	int e = code;
	if (code == 0 && all_leased(v, n)) {
		wait_for(c, &v[0].key);
		return;
	}
	if (code == 0 && n > 0)
		e = forget_some(c, v, n);
	if (e != 0) {
		api_fail_store(c, e);
	} else if (n == 0 && p->forgotten == 0) {
		api_fail(c, API_NOT_FOUND, "there is no such consumer");
	} else if (n == 0) {
		api_reply_begin(&r, c, 4096, false);
		jsonw_object(&r.w, "data");
		jsonw_str(&r.w, "consumer_id", c->key.consumer_id);
		jsonw_object_end(&r.w);
		api_reply_send(&r);
	}
}

void api_do_consumer_delete(struct api_call *c)
{
	c->state = mem_alloc(sizeof(struct forgetting));
	c->free_state = mem_free;
	if (take_consumer(c))
		next_some(c);
}

/* ---------------------------------------------------------------- the log */

static const char *member(struct json_object *o, const char *name)
{
	struct json_object *v;
	return o != NULL && json_object_object_get_ex(o, name, &v) &&
			       json_object_get_type(v) == json_type_string
		       ? json_object_get_string(v)
		       : "";
}

static bool is_good(const char *event_type)
{
	const char *end = strrchr(event_type, '.');
	return end == NULL ||
	       (strcmp(end, ".failed") != 0 && strcmp(end, ".pending") != 0 && strcmp(end, ".revoked") != 0);
}

static void write_happened(struct jsonw *w, const struct store_happened *x)
{
	char id[STR_UUID_BYTES];
	enum reason reason;
	bool told = x->reason != NULL && reason_parse(x->reason, &reason) == 0 && reason != REASON_NONE;
	struct json_object *o = json_tokener_parse(x->entity);
	const char *consumer = member(o, "consumer_id");
	str_format_uuid(x->event_id, id);
	jsonw_object(w, NULL);
	jsonw_str(w, "id", id);
	jsonw_null(w, "parent_id");
	jsonw_str(w, "api_style", "EVENT");
	jsonw_str(w, "base_url", "");
	jsonw_bool(w, "child_request", false);
	jsonw_bool(w, "has_children", false);
	jsonw_str(w, "consumer_id", consumer);
	jsonw_int(w, "duration", 0);
	jsonw_int(w, "latency", 0);
	jsonw_int(w, "execution", x->failures > 0 ? x->failures : 1);
	jsonw_str(w, "error_message", told ? reason_text(reason) : NULL);
	jsonw_str(w, "http_method", "");
	jsonw_str(w, "path", "");
	jsonw_bool(w, "sandbox", false);
	jsonw_object(w, "operation");
	jsonw_str(w, "id", x->event_type);
	jsonw_str(w, "name", told ? x->reason : x->event_type);
	jsonw_object_end(w);
	jsonw_object(w, "service");
	jsonw_str(w, "id", member(o, "service_id"));
	jsonw_str(w, "name", member(o, "name"));
	jsonw_object_end(w);
	jsonw_bool(w, "success", is_good(x->event_type));
	jsonw_int(w, "status_code", is_good(x->event_type) ? 200 : 502);
	write_iso(w, "timestamp", x->occurred_at);
	jsonw_str(w, "unified_api", member(o, "unified_api")[0] != '\0' ? member(o, "unified_api") : "vault");
	jsonw_object_end(w);
	json_object_put(o);
}

static bool write_logged(struct api_reply *r, const void *items, size_t i)
{
	write_happened(&r->w, &((const struct store_happened *)items)[i]);
	return true;
}

static void cursor_behind_logged(struct buf *next, const void *items, size_t last)
{
	const struct store_happened *x = &((const struct store_happened *)items)[last];
	ALWAYS(api_cursor_write_at(next, x->occurred_at, x->event_id, NULL) == 0);
}

static void on_log(void *arg, int code, const struct store_happened *v, size_t n)
{
	struct api_call *c = arg;
	const struct api_list l = {.max = LIST_MAX, .limit = *(unsigned *)c->state, .write = write_logged, .cursor = cursor_behind_logged};
	if (code != 0)
		api_fail_store(c, code);
	else
		api_reply_list(c, &l, v, n);
}

static int read_log_start(const struct api_page *p, struct store_log *w)
{
	memset(w->before_id, 0xff, sizeof w->before_id);
	w->before = INT64_MAX;
	if (p->first)
		return 0;
	int e = api_cursor_read_time(p->parts[0], &w->before);
	return e == 0 ? str_parse_uuid(p->parts[1], strlen(p->parts[1]), w->before_id) : e;
}

void api_do_logs(struct api_call *c)
{
	struct buf entity_id = BUF_INIT(EVENT_ENTITY_ID_MAX);
	struct store_log w = {.application_id = c->application};
	struct api_page p;
	if (api_page_take(c, &p, PAGE_DEFAULT, PAGE_MAX, 2) == 0) {
		limit_is(c, p.limit);
		int e = read_log_start(&p, &w);
		if (c->consumer != NULL) {
			ALWAYS(buf_printf(&entity_id, "%s+%s", c->application, c->consumer) == 0);
			w.entity_id = buf_str(&entity_id);
		}
		w.limit = p.limit + 1;
		if (e != 0)
			api_fail(c, API_BAD_REQUEST, "query parameter cursor is none that was handed out");
		else if ((e = store_log(c->api->parts.store, &w, on_log, c)) != 0)
			api_fail_store(c, e);
	}
	api_page_fini(&p);
	buf_fini(&entity_id);
}
