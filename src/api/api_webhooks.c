/*
 * api_webhooks - webhook endpoints through the API: make, read, change, rotate, forget.
 *
 * An endpoint is stored only after it answered a signed test event with 2xx, and asked again when its URL
 * changes: nobody is subscribed who does not agree. The secret leaves in the one answer that made it and is
 * sealed ever after. Whoever brings a secret along is not told it back.
 */
#include "api/api_webhooks.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"
#include "model/grant_parse.h"

#define TEXT_MAX 500
#define HOOK_MAX ((size_t)64 * 1024)
#define LIST_MAX ((size_t)16 * 1024 * 1024)
#define OVERLAP_DEFAULT_S (24 * 3600)
#define OVERLAP_MAX_S (30 * 86400)

struct hook_call {
	struct json_object *body;
	struct store_hook_change change; /* borrowed from the body and: */
	struct buf events, sealed, public_key;
	const char *secret; /* the caller's own; NULL: make one */
	struct webhook_keys keys;
	char id[STR_UUID_BYTES];
	int64_t overlap_us;
	unsigned limit;
	bool show_secret;
};

static void hook_call_free(void *state)
{
	struct hook_call *h = state;
	grant_parse_free(h->body);
	buf_fini(&h->events);
	buf_fini(&h->sealed);
	buf_fini(&h->public_key);
	webhook_keys_fini(&h->keys);
	mem_free(h);
}

static struct hook_call *hook_call_new(struct api_call *c)
{
	struct hook_call *h = mem_alloc(sizeof *h);
	buf_init(&h->events, HOOK_MAX);
	buf_init(&h->sealed, 2048);
	buf_init(&h->public_key, 128);
	c->state = h;
	c->free_state = hook_call_free;
	return h;
}

/* ---------------------------------------------------------------- small things */

bool api_hook_id(struct api_call *c, char id[STR_UUID_BYTES])
{
	uint8_t raw[16];
	if (str_parse_uuid(buf_str(&c->match.id), c->match.id.len, raw) != 0) {
		api_hook_missing(c);
		return false;
	}
	str_format_uuid(raw, id);
	return true;
}

void api_hook_missing(struct api_call *c)
{
	api_fail(c, API_NOT_FOUND, "the application has no such webhook endpoint");
}

void api_hook_time(struct jsonw *w, const char *name, int64_t wall_us)
{
	char text[STR_ISO_BYTES];
	if (wall_us == 0)
		return;
	str_format_iso_ms(wall_us, text);
	jsonw_str(w, name, text);
}

struct json_object *api_hook_member(struct json_object *body, const char *name)
{
	struct json_object *v = NULL;
	return json_object_object_get_ex(body, name, &v) ? v : NULL;
}

/* ---------------------------------------------------------------- the body */

static const char *take_text(
	struct json_object *body, const char *name, size_t max, struct import_problems *p)
{
	struct json_object *v = api_hook_member(body, name);
	if (v == NULL)
		return NULL;
	if (json_object_get_type(v) != json_type_string)
		api_problem(p, name, "must be a string");
	else if ((size_t)json_object_get_string_len(v) > max)
		api_problem(p, name, "is longer than %zu bytes", max);
	else if (str_has_ctl(json_object_get_string(v), (size_t)json_object_get_string_len(v)))
		api_problem(p, name, "holds a control character");
	else
		return json_object_get_string(v);
	return NULL;
}

static const char *take_events(struct json_object *body, struct buf *out, struct import_problems *p)
{
	struct json_object *v = api_hook_member(body, "events");
	if (v == NULL)
		return NULL;
	size_t n = json_object_get_type(v) == json_type_array ? json_object_array_length(v) : 0;
	if (n == 0 || n > WEBHOOK_EVENTS_MAX) {
		api_problem(p, "events", "must be an array of 1 to %d names of events, prefix.* or *",
			WEBHOOK_EVENTS_MAX);
		return NULL;
	}
	for (size_t i = 0; i < n; i++) {
		struct json_object *one = json_object_array_get_idx(v, i);
		char field[32];
		(void)snprintf(field, sizeof field, "events[%zu]", i);
		if (json_object_get_type(one) != json_type_string ||
			!webhook_event_known(json_object_get_string(one)))
			api_problem(p, field,
				"must be a name of an event, prefix.* or *, that covers some event");
		else
			ALWAYS(buf_printf(out, "%s%s", out->len > 0 ? " " : "",
				       json_object_get_string(one)) == 0);
	}
	return buf_str(out);
}

static const char *take_url(const struct api_call *c, struct json_object *body, struct import_problems *p)
{
	struct fault f = {0};
	const char *url = take_text(body, "delivery_url", WEBHOOK_URL_MAX, p);
	if (url != NULL && webhook_check_url(c->conf, url, &f) != 0)
		api_problem(p, "delivery_url", "%.100s", f.text);
	return url;
}

static const char *take_status(struct json_object *body, bool created, struct import_problems *p)
{
	const char *status = take_text(body, "status", TEXT_MAX, p);
	if (status == NULL || strcmp(status, "enabled") == 0)
		return status;
	if (created || strcmp(status, "disabled") != 0)
		api_problem(
			p, "status", created ? "must be enabled at first" : "must be enabled or disabled");
	return status;
}

/* False: answered already. */
static bool take_body(struct api_call *c, struct hook_call *h, bool created)
{
	struct import_problems p = {.n = 0};
	struct json_object *body = api_body(c, false);
	if (body == NULL)
		return false;
	h->body = body;
	h->change = (struct store_hook_change){
		.url = take_url(c, h->body, &p),
		.unified_api = take_text(h->body, "unified_api", 64, &p),
		.description = take_text(h->body, "description", WEBHOOK_DESCRIPTION_MAX, &p),
		.events = take_events(h->body, &h->events, &p),
		.status = take_status(h->body, created, &p),
	};
	if (created && api_hook_member(h->body, "delivery_url") == NULL)
		api_problem(&p, "delivery_url", "is missing");
	if (created && api_hook_member(h->body, "events") == NULL)
		api_problem(&p, "events", "is missing");
	if (created)
		h->secret = take_text(h->body, "secret", TEXT_MAX, &p);
	if (p.n == 0)
		return true;
	api_fail_fields(c, API_BAD_REQUEST, "the webhook endpoint is not complete or not valid", &p);
	return false;
}

/* New keys, sealed; false: answered already. */
static bool make_keys(struct api_call *c, struct hook_call *h)
{
	struct import_problems p = {.n = 0};
	struct fault f = {0};
	uint8_t id[16];
	ALWAYS(str_parse_uuid(h->id, strlen(h->id), id) == 0);
	int e = webhook_keys_new(h->secret, &h->keys, &f);
	if (e != 0 && h->secret != NULL) {
		api_problem(&p, "secret", "%.120s", f.text);
		api_fail_fields(c, API_BAD_REQUEST, "the secret cannot be used", &p);
		return false;
	}
	if (e == 0)
		e = webhook_keys_seal(&h->keys, c->conf->keyring, id, &h->sealed);
	if (e == 0)
		e = webhook_keys_public(&h->keys, &h->public_key);
	h->show_secret = h->secret == NULL;
	if (e == 0)
		return true;
	log_error("api.webhook_keys", K_STATUS(e));
	api_fail(c, API_INTERNAL, "the keys of the endpoint could not be made");
	return false;
}

/* ---------------------------------------------------------------- answers */

static void write_events(struct jsonw *w, const char *events)
{
	jsonw_array(w, "events");
	for (const char *s = events; *s != '\0';) {
		size_t n = strcspn(s, " ");
		jsonw_strn(w, NULL, s, n);
		s += n + (s[n] == ' ');
	}
	jsonw_array_end(w);
}

/* `secret`: shown this once; NULL: not at all. */
static void write_hook(
	struct jsonw *w, const char *name, const struct store_hook *h, const struct buf *secret)
{
	bool off = h->disabled_at != 0;
	jsonw_object(w, name);
	jsonw_str(w, "id", h->endpoint_id);
	jsonw_str(w, "description", h->description);
	jsonw_str(w, "unified_api", h->unified_api);
	jsonw_str(w, "status", off ? "disabled" : "enabled");
	jsonw_str(w, "disabled_reason",
		off && strcmp(h->disabled_reason, "requested") != 0 ? "retry_limit" : "none");
	if (off)
		jsonw_str(w, "disabled_cause", h->disabled_reason);
	api_hook_time(w, "disabled_at", h->disabled_at);
	jsonw_str(w, "delivery_url", h->url);
	jsonw_str(w, "execute_base_url", "");
	write_events(w, h->events);
	jsonw_str(w, "public_key", h->public_key);
	if (secret != NULL)
		jsonw_strn(w, "secret", buf_str(secret), secret->len);
	if (h->previous_until > sys_wall_us())
		api_hook_time(w, "previous_secret_ends_at", h->previous_until);
	api_hook_time(w, "failing_since", h->failing_since);
	api_hook_time(w, "last_success_at", h->last_success_at);
	api_hook_time(w, "last_failure_at", h->last_failure_at);
	api_hook_time(w, "created_at", h->created_at);
	api_hook_time(w, "updated_at", h->updated_at);
	jsonw_object_end(w);
}

static void reply_hook(struct api_call *c, const struct store_hook *v)
{
	struct hook_call *h = c->state;
	struct api_reply r;
	api_reply_begin(&r, c, HOOK_MAX, h->show_secret);
	write_hook(&r.w, "data", v, h->show_secret ? &h->keys.hmac.text : NULL);
	api_reply_send(&r);
}

static void reply_created(struct api_call *c, const struct store_hook *v)
{
	struct hook_call *h = c->state;
	struct buf body = BUF_INIT_SECRET(HOOK_MAX);
	struct jsonw w;
	jsonw_init(&w, &body);
	jsonw_object(&w, NULL);
	jsonw_int(&w, "status_code", 201);
	jsonw_str(&w, "status", "Created");
	write_hook(&w, "data", v, h->show_secret ? &h->keys.hmac.text : NULL);
	jsonw_object_end(&w);
	ALWAYS(jsonw_end(&w) != ST_FULL); /* every part is bounded */
	api_call_end(c, 201, &body);
	buf_fini(&body);
}

static void on_hook(void *arg, int code, const struct store_hook *v, size_t n)
{
	struct api_call *c = arg;
	if (code != 0)
		api_fail_store(c, code);
	else if (n == 0)
		api_hook_missing(c);
	else
		reply_hook(c, &v[0]);
}

/* As on_hook, after a change. */
static void on_changed(void *arg, int code, const struct store_hook *v, size_t n)
{
	struct api_call *c = arg;
	webhook_changed(c->api->parts.webhook);
	on_hook(c, code, v, n);
}

/* ---------------------------------------------------------------- the check */

/* False: answered already. */
static bool is_accepted(struct api_call *c, int status, const char *error)
{
	struct import_problems p = {.n = 0};
	if (error == NULL)
		return true;
	if (strcmp(error, "canceled") == 0) {
		api_retry_after(c, 1);
		api_fail(c, API_UNAVAILABLE, "shutting down");
		return false;
	}
	if (status != 0)
		api_problem(
			&p, "delivery_url", "did not accept the test event: %s, status %d", error, status);
	else
		api_problem(&p, "delivery_url", "did not accept the test event: %s", error);
	api_fail_fields(c, API_BAD_REQUEST,
		"the endpoint must answer a signed event of type refreshd.webhook.test with 2xx", &p);
	return false;
}

static void start_check(struct api_call *c, webhook_checked_fn *fn)
{
	struct hook_call *h = c->state;
	struct import_problems p = {.n = 0};
	struct fault f = {0};
	int e = webhook_check(
		c->api->parts.webhook, c->conf, h->id, c->application, h->change.url, &h->keys, fn, c, &f);
	if (e == ST_FULL) {
		api_retry_after(c, 5);
		api_fail(c, API_TOO_MANY, "too many new endpoints are being checked");
	} else if (e != 0) {
		api_problem(&p, "delivery_url", "cannot be called: %.90s", f.text);
		api_fail_fields(c, API_BAD_REQUEST, "the endpoint cannot be called", &p);
	}
}

/* ---------------------------------------------------------------- create */

static void on_created(void *arg, int code, const struct store_hook *v, size_t n)
{
	struct api_call *c = arg;
	webhook_changed(c->api->parts.webhook);
	if (code != 0)
		api_fail_store(c, code);
	else if (n == 0)
		api_fail(c, API_CONFLICT,
			"the application has %u webhook endpoints already, which is the most", WEBHOOK_ENDPOINTS_MAX);
	else
		reply_created(c, &v[0]);
}

static void on_create_checked(void *arg, int status, const char *error)
{
	struct api_call *c = arg;
	struct hook_call *h = c->state;
	if (!is_accepted(c, status, error))
		return;
	const struct store_hook row = {
		.endpoint_id = h->id,
		.application_id = c->application,
		.url = h->change.url,
		.unified_api = h->change.unified_api != NULL ? h->change.unified_api : WEBHOOK_UNIFIED_API,
		.description = h->change.description != NULL ? h->change.description : "",
		.events = h->change.events,
		.public_key = buf_str(&h->public_key),
		.secret = h->sealed.data,
		.secret_len = h->sealed.len,
	};
	int e = store_hook_insert(c->api->parts.store, &row, WEBHOOK_ENDPOINTS_MAX, on_created, c);
	if (e != 0)
		api_fail_store(c, e);
}

void api_do_hook_create(struct api_call *c)
{
	struct hook_call *h = hook_call_new(c);
	uint8_t id[16];
	sys_uuid4(id);
	str_format_uuid(id, h->id);
	if (take_body(c, h, true) && make_keys(c, h))
		start_check(c, on_create_checked);
}

/* ---------------------------------------------------------------- read, forget */

void api_do_hook_get(struct api_call *c)
{
	struct hook_call *h = hook_call_new(c);
	if (!api_hook_id(c, h->id))
		return;
	int e = store_hook_get(c->api->parts.store, c->application, h->id, on_hook, c);
	if (e != 0)
		api_fail_store(c, e);
}

static bool write_one(struct api_reply *r, const void *items, size_t i)
{
	write_hook(&r->w, NULL, &((const struct store_hook *)items)[i], NULL);
	return true;
}

static void cursor_behind(struct buf *next, const void *items, size_t last)
{
	const struct store_hook *h = &((const struct store_hook *)items)[last];
	char created[24];
	(void)snprintf(created, sizeof created, "%lld", (long long)h->created_at);
	const char *const parts[] = {created, h->endpoint_id};
	ALWAYS(api_cursor_write(next, parts, 2) == 0);
}

static void on_list(void *arg, int code, const struct store_hook *v, size_t n)
{
	struct api_call *c = arg;
	const struct hook_call *h = c->state;
	const struct api_list l = {.max = LIST_MAX, .limit = h->limit, .write = write_one, .cursor = cursor_behind};
	if (code != 0)
		api_fail_store(c, code);
	else
		api_reply_list(c, &l, v, n);
}

void api_do_hook_list(struct api_call *c)
{
	struct hook_call *h = hook_call_new(c);
	struct api_page p;
	int64_t created = 0;
	if (api_page_take(c, &p, API_HOOK_PAGE, API_HOOK_PAGE_MAX, 2) == 0) {
		h->limit = p.limit;
		if (!p.first && api_cursor_read_time(p.parts[0], &created) != 0) {
			api_fail(c, API_BAD_REQUEST, "query parameter cursor is none that was handed out");
		} else {
			int e = store_hook_list(c->api->parts.store, c->application, created, p.parts[1],
				h->limit + 1, on_list, c);
			if (e != 0)
				api_fail_store(c, e);
		}
	}
	api_page_fini(&p);
}

static void on_deleted(void *arg, int code, int64_t n)
{
	struct api_call *c = arg;
	struct hook_call *h = c->state;
	struct api_reply r;
	webhook_changed(c->api->parts.webhook);
	if (code != 0) {
		api_fail_store(c, code);
	} else if (n == 0) {
		api_hook_missing(c);
	} else {
		api_reply_begin(&r, c, HOOK_MAX, false);
		jsonw_object(&r.w, "data");
		jsonw_str(&r.w, "id", h->id);
		jsonw_object_end(&r.w);
		api_reply_send(&r);
	}
}

void api_do_hook_delete(struct api_call *c)
{
	struct hook_call *h = hook_call_new(c);
	if (!api_hook_id(c, h->id))
		return;
	int e = store_hook_delete(c->api->parts.store, c->application, h->id, on_deleted, c);
	if (e != 0)
		api_fail_store(c, e);
}

/* ---------------------------------------------------------------- change */

static void write_change(struct api_call *c)
{
	struct hook_call *h = c->state;
	int e = store_hook_update(c->api->parts.store, c->application, h->id, &h->change, on_changed, c);
	if (e != 0)
		api_fail_store(c, e);
}

static void on_update_checked(void *arg, int status, const char *error)
{
	struct api_call *c = arg;
	if (is_accepted(c, status, error))
		write_change(c);
}

static void on_update_got(void *arg, int code, const struct store_hook *v, size_t n)
{
	struct api_call *c = arg;
	struct hook_call *h = c->state;
	struct fault f = {0};
	uint8_t id[16];
	if (code != 0 || n == 0) {
		on_hook(c, code, v, n);
		return;
	}
	if (strcmp(v[0].url, h->change.url) == 0) {
		h->change.url = NULL;
		write_change(c);
		return;
	}
	ALWAYS(str_parse_uuid(h->id, strlen(h->id), id) == 0);
	if (webhook_keys_open(c->conf->keyring, id, v[0].secret, v[0].secret_len, &h->keys, &f) == 0) {
		start_check(c, on_update_checked);
		return;
	}
	log_error("api.webhook_keys", K_FAULT(&f));
	api_fail(c, API_INTERNAL, "the secret of the endpoint cannot be opened; the log says why");
}

void api_do_hook_update(struct api_call *c)
{
	struct hook_call *h = hook_call_new(c);
	if (!api_hook_id(c, h->id) || !take_body(c, h, false))
		return;
	if (h->change.url == NULL) {
		write_change(c);
		return;
	}
	int e = store_hook_get(c->api->parts.store, c->application, h->id, on_update_got, c);
	if (e != 0)
		api_fail_store(c, e);
}

/* ---------------------------------------------------------------- rotate */

static bool take_rotation(struct api_call *c, struct hook_call *h)
{
	struct import_problems p = {.n = 0};
	int64_t overlap_s = OVERLAP_DEFAULT_S;
	struct json_object *body = api_body(c, true);
	if (body == NULL)
		return false;
	h->body = body;
	struct json_object *v = api_hook_member(h->body, "overlap_seconds");
	h->secret = take_text(h->body, "secret", TEXT_MAX, &p);
	if (v != NULL && json_object_get_type(v) == json_type_int)
		overlap_s = json_object_get_int64(v);
	if ((v != NULL && json_object_get_type(v) != json_type_int) || overlap_s < 0 ||
		overlap_s > OVERLAP_MAX_S)
		api_problem(&p, "overlap_seconds", "must be a whole number from 0 to %d", OVERLAP_MAX_S);
	h->overlap_us = overlap_s * US_PER_S;
	if (p.n == 0)
		return true;
	api_fail_fields(c, API_BAD_REQUEST, "the rotation is not valid", &p);
	return false;
}

void api_do_hook_rotate(struct api_call *c)
{
	struct hook_call *h = hook_call_new(c);
	if (!api_hook_id(c, h->id) || !take_rotation(c, h) || !make_keys(c, h))
		return;
	int e = store_hook_rotate(c->api->parts.store, c->application, h->id, &h->sealed,
		buf_str(&h->public_key), h->overlap_us, on_changed, c);
	if (e != 0)
		api_fail_store(c, e);
}
