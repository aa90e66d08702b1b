/*
 * api_webhook_log - what was delivered to an application's endpoints, and asking for some of it once more.
 *
 * Pages are by event, newest first; a redelivery goes oldest first, in portions that a cursor continues.
 * Bodies are not kept and not shown: only what came of a delivery.
 */
#include "api/api_webhooks.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/grant_parse.h"

#define LOG_MAX ((size_t)8 * 1024 * 1024)
#define REPLY_MAX 4096
#define REDELIVER_MAX 1000u /* events of one call */

struct log_call {
	struct json_object *body;
	struct store_redeliver q;
	uint8_t event_id[16];
	char id[STR_UUID_BYTES];
	unsigned limit;
};

static void log_call_free(void *state)
{
	struct log_call *x = state;
	grant_parse_free(x->body);
	mem_free(x);
}

static struct log_call *log_call_new(struct api_call *c)
{
	struct log_call *x = mem_alloc(sizeof *x);
	c->state = x;
	c->free_state = log_call_free;
	return x;
}

/* ---------------------------------------------------------------- cursors: time, event, and for the log the
 * endpoint */

static int read_cursor(const char *const *parts, int64_t *at, uint8_t event_id[16])
{
	int e = api_cursor_read_time(parts[0], at);
	return e == 0 ? str_parse_uuid(parts[1], strlen(parts[1]), event_id) : e;
}

/* ---------------------------------------------------------------- once more */

static void on_redelivered(void *arg, int code, const struct store_redelivered *v)
{
	struct api_call *c = arg;
	const struct log_call *x = c->state;
	struct buf next = BUF_INIT(512);
	struct api_reply r;
	webhook_changed(c->api->parts.webhook);
	if (code != 0) {
		api_fail_store(c, code);
	} else if (!v->found) {
		api_hook_missing(c);
	} else if (v->disabled) {
		api_fail(c, API_CONFLICT, "the webhook endpoint is disabled: enable it first");
	} else if (v->n == 0 && x->q.event_id != NULL) {
		api_fail(c, API_NOT_FOUND,
			"there is no such event for this endpoint, or it is not kept any more");
	} else {
		if (v->n == x->q.limit && x->q.event_id == NULL)
			ALWAYS(api_cursor_write_at(&next, v->last, v->last_id, "") == 0);
		api_reply_begin(&r, c, REPLY_MAX, false);
		jsonw_object(&r.w, "data");
		jsonw_str(&r.w, "id", x->id);
		jsonw_int(&r.w, "queued", (int64_t)v->n);
		jsonw_object_end(&r.w);
		api_reply_page(&r, v->n, &next);
		buf_fini(&next);
		api_reply_send(&r);
	}
}

/* Milliseconds or RFC 3339; false: neither, or not there. */
static bool take_time(struct json_object *body, const char *name, int64_t *out)
{
	struct json_object *v = api_hook_member(body, name);
	if (json_object_get_type(v) == json_type_string)
		return str_parse_rfc3339(
			       json_object_get_string(v), (size_t)json_object_get_string_len(v), out) == 0;
	if (json_object_get_type(v) != json_type_int)
		return false;
	int64_t ms = json_object_get_int64(v);
	if (ms < 0 || ms > INT64_C(253402300800000))
		return false;
	*out = ms * US_PER_MS;
	return true;
}

static void take_range(struct log_call *x, struct import_problems *p)
{
	struct json_object *to = api_hook_member(x->body, "to"), *all = api_hook_member(x->body, "all"),
			   *cursor = api_hook_member(x->body, "cursor");
	struct buf plain = BUF_INIT(512);
	const char *parts[3];
	if (!take_time(x->body, "from", &x->q.from))
		api_problem(p, "from", "must be a date-time or milliseconds, or give event_id");
	x->q.to = sys_wall_us() + 1;
	if (to != NULL && !take_time(x->body, "to", &x->q.to))
		api_problem(p, "to", "must be a date-time or milliseconds");
	if (p->n == 0 && x->q.to <= x->q.from)
		api_problem(p, "to", "must be later than from");
	if (all != NULL && json_object_get_type(all) != json_type_boolean)
		api_problem(p, "all", "must be true or false");
	x->q.delivered_too = all != NULL && json_object_get_boolean(all);
	if (cursor != NULL &&
		(json_object_get_type(cursor) != json_type_string ||
			api_cursor_read(json_object_get_string(cursor),
				(size_t)json_object_get_string_len(cursor), &plain, parts, 3) != 0 ||
			read_cursor(parts, &x->q.after, x->q.after_id) != 0))
		api_problem(p, "cursor", "is none that was handed out");
	buf_fini(&plain);
}

static void take_event(struct log_call *x, struct json_object *event, struct import_problems *p)
{
	if (json_object_get_type(event) != json_type_string ||
		str_parse_uuid(json_object_get_string(event), (size_t)json_object_get_string_len(event),
			x->event_id) != 0)
		api_problem(p, "event_id", "must be the id of an event");
	if (api_hook_member(x->body, "from") != NULL || api_hook_member(x->body, "to") != NULL)
		api_problem(p, "event_id", "goes without from and to");
	x->q.event_id = x->event_id;
	x->q.to = INT64_MAX;
	x->q.delivered_too = true;
}

void api_do_hook_redeliver(struct api_call *c)
{
	struct log_call *x = log_call_new(c);
	struct import_problems p = {.n = 0};
	if (!api_hook_id(c, x->id))
		return;
	struct json_object *body = api_body(c, false);
	if (body == NULL)
		return;
	x->body = body;
	x->q.application_id = c->application;
	x->q.endpoint_id = x->id;
	x->q.limit = REDELIVER_MAX;
	struct json_object *event = api_hook_member(x->body, "event_id");
	if (event != NULL)
		take_event(x, event, &p);
	else
		take_range(x, &p);
	if (p.n > 0) {
		api_fail_fields(c, API_BAD_REQUEST, "what is to be delivered once more is not clear", &p);
		return;
	}
	int e = store_redeliver(c->api->parts.store, &x->q, on_redelivered, c);
	if (e != 0)
		api_fail_store(c, e);
}

/* ---------------------------------------------------------------- the log */

static void write_logged(struct jsonw *w, const struct api_call *c, const struct store_delivery_logged *d)
{
	char id[STR_UUID_BYTES];
	str_format_uuid(d->event_id, id);
	jsonw_object(w, NULL);
	jsonw_str(w, "id", id);
	jsonw_str(w, "webhook_id", d->endpoint_id);
	jsonw_str(w, "application_id", c->application);
	jsonw_str(w, "endpoint", d->url);
	jsonw_str(w, "http_method", "POST");
	jsonw_str(w, "event_type", d->event_type);
	jsonw_str(w, "entity_id", d->entity_id);
	jsonw_str(w, "entity_type", d->entity_type);
	jsonw_bool(w, "success", d->delivered);
	jsonw_int(w, "status_code", d->status);
	if (d->error != NULL)
		jsonw_str(w, "error", d->error);
	jsonw_int(w, "execution_attempt", d->attempt);
	jsonw_int(w, "duration_ms", d->duration_ms);
	jsonw_bool(w, "retry_scheduled", d->done_at == 0);
	api_hook_time(w, "next_attempt_at", d->done_at == 0 ? d->due_at : 0);
	api_hook_time(w, "done_at", d->done_at);
	api_hook_time(w, "timestamp", d->occurred_at);
	jsonw_object_end(w);
}

static bool write_one(struct api_reply *r, const void *items, size_t i)
{
	write_logged(&r->w, r->call, &((const struct store_delivery_logged *)items)[i]);
	return true;
}

static void cursor_behind(struct buf *next, const void *items, size_t last)
{
	const struct store_delivery_logged *d = &((const struct store_delivery_logged *)items)[last];
	ALWAYS(api_cursor_write_at(next, d->occurred_at, d->event_id, d->endpoint_id) == 0);
}

static void on_log(void *arg, int code, const struct store_delivery_logged *v, size_t n)
{
	struct api_call *c = arg;
	const struct log_call *x = c->state;
	const struct api_list l = {.max = LOG_MAX, .limit = x->limit, .write = write_one, .cursor = cursor_behind};
	if (code != 0)
		api_fail_store(c, code);
	else
		api_reply_list(c, &l, v, n);
}

/* A boolean of the query; false: answered already. */
static bool query_flag(struct api_call *c, const char *name, bool *out)
{
	struct buf text = BUF_INIT(64);
	int e = api_query(c, name, &text);
	*out = e == 0 && strcmp(buf_str(&text), "true") == 0;
	bool good = e == ST_NOT_FOUND || *out || (e == 0 && strcmp(buf_str(&text), "false") == 0);
	buf_fini(&text);
	if (!good)
		api_fail(c, API_BAD_REQUEST, "query parameter %s must be true or false", name);
	return good;
}

/* The endpoint that the log is asked of; false: answered already. */
static bool query_endpoint(struct api_call *c, struct log_call *x, struct store_delivery_log *q)
{
	struct buf text = BUF_INIT(64);
	uint8_t raw[16];
	int e = api_query(c, "webhook_id", &text);
	if (e == 0)
		e = str_parse_uuid(buf_str(&text), text.len, raw);
	buf_fini(&text);
	if (e == 0) {
		str_format_uuid(raw, x->id);
		q->endpoint_id = x->id;
	} else if (e != ST_NOT_FOUND) {
		api_fail(c, API_BAD_REQUEST,
			"query parameter webhook_id must be the id of a webhook endpoint");
		return false;
	}
	return true;
}

void api_do_hook_logs(struct api_call *c)
{
	struct log_call *x = log_call_new(c);
	struct store_delivery_log q = {
		.application_id = c->application, .before = INT64_MAX, .before_endpoint = ""};
	struct api_page p = {.plain = BUF_INIT(0)};
	if (query_endpoint(c, x, &q) && query_flag(c, "failed", &q.failed_only) &&
		api_page_take(c, &p, API_HOOK_PAGE, API_HOOK_PAGE_MAX, 3) == 0) {
		int e = p.first ? 0 : read_cursor(p.parts, &q.before, q.before_id);
		q.before_endpoint = p.parts[2];
		x->limit = p.limit;
		q.limit = x->limit + 1;
		if (e != 0)
			api_fail(c, API_BAD_REQUEST, "query parameter cursor is none that was handed out");
		else if ((e = store_delivery_log(c->api->parts.store, &q, on_log, c)) != 0)
			api_fail_store(c, e);
	}
	api_page_fini(&p);
}
