/*
 * api - one request from its first look to its answer: route, key, limits, headers; then the handler.
 *
 * The order is fixed: what costs nothing comes first, and nothing is told to a caller without a key. Must
 * not: know what any route does (the api_*.c files do), or hold a lock on anything while it waits.
 */
#include "api/api_priv.h"

#include <stdio.h>
#include <string.h>

#include "api/api_key.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "io/notify.h"
#include "model/grant_parse.h"

/* Many more than ordinary clients need: slow ones hold theirs until their deadline, and must not keep others out. */
#define CONNECTIONS_MAX 8192
#define MAGIC UINT32_C(0x61706930)
#define CALL_MAGIC UINT32_C(0x61706963)
/* httpd refuses beyond this without a word of ours; between our own limit and this we can say it properly. */
#define HTTPD_BODY_MAX ((size_t)4 * 1024 * 1024)
#define QUEUE_PATIENCE_US (5 * US_PER_S)
#define LATE_US (300 * US_PER_MS)
#define LATE_LOOK_US (10 * US_PER_MS)

/* ---------------------------------------------------------------- the call */

static struct api_call *call_new(struct api *a, struct httpd_request *req)
{
	struct api_call *c = mem_alloc(sizeof *c);
	uint8_t id[16];
	*c = (struct api_call){.magic = CALL_MAGIC,
		.api = a,
		.req = req,
		.conf = conf_ref(a->conf),
		.began_us = sys_mono_us()};
	api_match_init(&c->match);
	sys_uuid4(id);
	str_format_uuid(id, c->request_id);
	c->next = a->calls;
	if (c->next != NULL)
		c->next->prev = c;
	a->calls = c;
	return c;
}

static void call_free(struct api_call *c)
{
	if (c->prev != NULL)
		c->prev->next = c->next;
	else
		c->api->calls = c->next;
	if (c->next != NULL)
		c->next->prev = c->prev;
	if (c->api->calls == NULL && c->api->on_finish != NULL)
		loop_defer(c->api->loop, &c->api->finished);
	if (c->state != NULL)
		c->free_state(c->state);
	api_match_fini(&c->match);
	mem_free(c->application);
	mem_free(c->consumer);
	conf_unref(c->conf);
	c->magic = 0;
	mem_free(c);
}

void api_call_end(struct api_call *c, int status, struct buf *body)
{
	MAGIC_CHECK(c, CALL_MAGIC);
	char code[8];
	const char *route = c->route != NULL ? c->route->name : "other";
	(void)snprintf(code, sizeof code, "%d", status);
	metrics_inc(M_API_REQUESTS, route, code);
	/* While the database is away everyone is told so: that is said once by others. */
	enum log_level level = status < 500 || status == 503 ? LOG_LEVEL_DEBUG
			       : status == 500               ? LOG_LEVEL_WARNING
							     : LOG_LEVEL_INFO;
	log_at(level, "api.request", K_WORD("route", route), K_INT("code", status),
		K_TEXT("request", c->request_id), K_MS((sys_mono_us() - c->began_us) / US_PER_MS));
	httpd_reply_header(c->req, "Request-Id", c->request_id);
	if (c->route == NULL || c->route->scopes != API_OPEN)
		httpd_reply_header(c->req, "Cache-Control", "no-store");
	httpd_reply(c->req, status, "application/json", body);
	call_free(c);
}

const struct provider *api_provider(const struct api_call *c)
{
	const struct provider *p = conf_provider(c->conf, c->key.service_id);
	if (p == NULL || (p->unified_apis.n > 0 && !strlist_has(&p->unified_apis, c->key.unified_api)))
		return NULL;
	return p;
}

void api_conn_id(const struct api_call *c, struct store_conn_id *out)
{
	out->application_id = c->application;
	conn_id_of(&c->key, out->id);
}

/* ---------------------------------------------------------------- what came along */

int api_query(const struct api_call *c, const char *name, struct buf *out)
{
	size_t n = strlen(name);
	for (const char *s = httpd_query(c->req); *s != '\0';) {
		size_t len = strcspn(s, "&");
		if (len > n && s[n] == '=' && memcmp(s, name, n) == 0) {
			buf_reset(out);
			int e = str_percent_decode(out, s + n + 1, len - n - 1, true);
			return e == 0 && str_is_utf8(out->data, out->len) && !str_has_ctl(out->data, out->len)
				       ? 0
				       : ST_SYNTAX;
		}
		s += len + (s[len] == '&');
	}
	return ST_NOT_FOUND;
}

int api_query_int(
	struct api_call *c, const char *name, int64_t missing, int64_t min, int64_t max, int64_t *out)
{
	struct buf text = BUF_INIT(64);
	int64_t v = missing;
	int e = api_query(c, name, &text);
	if (e == 0 && text.len > 0)
		e = str_parse_i64(buf_str(&text), text.len, &v);
	buf_fini(&text);
	if ((e == 0 || e == ST_NOT_FOUND) && v >= min && v <= max) {
		*out = v;
		return 0;
	}
	api_fail(c, API_BAD_REQUEST, "query parameter %s must be a whole number from %lld to %lld", name,
		(long long)min, (long long)max);
	return ST_INVALID;
}

struct json_object *api_body(struct api_call *c, bool may_be_empty)
{
	size_t n;
	const char *body = httpd_body(c->req, &n);
	if (n == 0 && may_be_empty)
		return grant_parse_json("{}", 2);
	struct json_object *root = n > 0 && str_is_utf8(body, n) ? grant_parse_json(body, n) : NULL;
	if (root != NULL && json_object_get_type(root) == json_type_object)
		return root;
	grant_parse_free(root);
	api_fail(c, API_BAD_REQUEST,
		"the body must be one JSON object in UTF-8, not nested deeply, with no name given twice");
	return NULL;
}

/* ---------------------------------------------------------------- checks, in order */

/* Is there a database to ask? What can only be read is answered to those who only read. */
bool api_can_ask(const struct api *a)
{
	enum store_state s = store_state(a->parts.store);
	return a->running && !a->draining && (s == STORE_READY || s == STORE_READ_ONLY || s == STORE_FULL);
}

void api_fail_away(struct api_call *c)
{
	api_retry_after(c, c->api->draining ? 1 : 2);
	api_fail(
		c, API_UNAVAILABLE, c->api->draining ? "shutting down" : "the database is not available now");
}

static void run(struct api_call *c)
{
	struct api *a = c->api;
	size_t n;
	(void)httpd_body(c->req, &n);
	if (n > API_BODY_MAX && !c->route->empty_body) {
		api_fail(c, API_TOO_LARGE, "the body is larger than %zu bytes", API_BODY_MAX);
	} else if (!api_can_ask(a)) {
		api_fail_away(c);
	} else if (c->route->method != HTTPD_GET && !store_writable(a->parts.store)) {
		api_retry_after(c, 2);
		api_fail(c, API_UNAVAILABLE, "the database cannot be written now");
	} else {
		c->route->fn(c);
	}
}

/* True: the header is there; an empty one counts as missing. */
static bool take_header(struct api_call *c, const char *name, char **out)
{
	const char *value = httpd_header(c->req, name);
	if (value == NULL || value[0] == '\0')
		return false;
	*out = mem_strdup(value);
	return true;
}

/* Two of these would let whoever stands before us see another owner than we do. Or answered. */
static bool check_single(struct api_call *c)
{
	static const char *const names[] = {"x-apideck-app-id", "x-apideck-consumer-id"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		if (httpd_header_count(c->req, names[i]) < 2)
			continue;
		api_fail(c, API_BAD_HEADERS, "header %s is there more than once", names[i]);
		return false;
	}
	return true;
}

static bool check_names(struct api_call *c)
{
	struct fault f = {0};
	const struct conn_key owner = {c->application, c->consumer != NULL ? c->consumer : "x", "x", "x"};
	if (conn_key_check(&owner, &f) != 0) {
		api_fail(c, API_BAD_HEADERS, "%s", f.text);
		return false;
	}
	const struct conn_key connector = {"x", "x", c->key.unified_api, c->key.service_id};
	if (c->match.service_id.len > 0 && conn_key_check(&connector, &f) != 0) {
		api_fail(c, API_NO_CONNECTOR, "there is no connector of this unified_api and service_id");
		return false;
	}
	return true;
}

void api_authorized(struct api_call *c, const char *app, unsigned scopes)
{
	int64_t wait = api_keys_take(c->api->keys, c->key_hash, c->conf->api.rate_per_s);
	if (wait > 0) {
		api_retry_after(c, (wait + US_PER_S - 1) / US_PER_S);
		api_fail(c, API_TOO_MANY, "more requests than this key may send (api.rate)");
		return;
	}
	if (!check_single(c))
		return;
	if (!take_header(c, "x-apideck-app-id", &c->application)) {
		api_fail(c, API_BAD_HEADERS, "header x-apideck-app-id is missing or empty");
		return;
	}
	bool consumer = c->route->consumer != API_NO_CONSUMER &&
			take_header(c, "x-apideck-consumer-id", &c->consumer);
	if (strcmp(app, c->application) != 0) {
		api_fail(c, API_UNAUTHORIZED,
			"the API key is not one of the application that header x-apideck-app-id names");
	} else if ((c->route->scopes & scopes) == 0) {
		api_fail(c, API_UNAUTHORIZED, "the API key lacks the scope that this call needs");
	} else if (c->route->consumer == API_CONSUMER && !consumer) {
		api_fail(c, API_BAD_HEADERS, "header x-apideck-consumer-id is missing or empty");
	} else {
		c->key = (struct conn_key){c->application, c->consumer, buf_str(&c->match.unified_api),
			buf_str(&c->match.service_id)};
		if (check_names(c))
			run(c);
	}
}

static void refuse_method(struct api_call *c)
{
	static const struct {
		enum httpd_method method;
		const char *word;
	} words[] = {{HTTPD_GET, "GET, HEAD"}, {HTTPD_POST, "POST"}, {HTTPD_PATCH, "PATCH"},
		{HTTPD_DELETE, "DELETE"}};
	struct buf allow = BUF_INIT(128);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		if ((c->match.allowed & words[i].method) != 0)
			ALWAYS(buf_printf(&allow, "%s%s", allow.len > 0 ? ", " : "", words[i].word) == 0);
	}
	httpd_reply_header(c->req, "Allow", buf_str(&allow));
	buf_fini(&allow);
	api_fail(c, API_BAD_METHOD, "this path does not have that method");
}

static void on_request(void *arg, struct httpd_request *req)
{
	struct api *a = arg;
	MAGIC_CHECK(a, MAGIC);
	struct api_call *c = call_new(a, req);
	int e = api_match(httpd_path(req), httpd_method(req), &c->match);
	c->route = c->match.route;
	if (c->match.allowed == 0)
		api_fail(c, API_NOT_FOUND, "there is no such path");
	else if (c->route == NULL)
		refuse_method(c);
	else if (e != 0)
		api_fail(c, API_BAD_REQUEST, "a part of the path is not percent-encoded UTF-8");
	else if (c->route->scopes == API_OPEN)
		c->route->fn(c);
	else
		api_authenticate(c);
}

static void on_refused(void *arg, int status, struct buf *headers, struct buf *body)
{
	char code[8], request[STR_UUID_BYTES];
	uint8_t id[16];
	(void)arg;
	sys_uuid4(id);
	str_format_uuid(id, request);
	if (body != NULL) {
		api_write_refusal(body, status);
		ALWAYS(buf_printf(headers, "Request-Id: %s\r\n", request) == 0);
		log_debug("api.request", K_WORD("route", "other"), K_INT("code", status), K_TEXT("request", request));
	}
	(void)snprintf(code, sizeof code, "%d", status);
	metrics_inc(M_API_REQUESTS, "other", code);
}

/* ---------------------------------------------------------------- life */

/* Every series that can come is there from the start. */
static void declare(void)
{
	static const char *const codes[] = {"200", "400", "401", "404", "429", "500", "503"};
	static const char *const refused[] = {
		"400", "404", "405", "408", "413", "417", "431", "501", "503", "505"};
	for (size_t i = 0; i < api_n_routes; i++) {
		for (size_t k = 0; k < sizeof codes / sizeof *codes; k++)
			(void)metrics_get(M_API_REQUESTS, api_routes[i].name, codes[k]);
	}
	for (size_t k = 0; k < sizeof refused / sizeof *refused; k++)
		(void)metrics_get(M_API_REQUESTS, "other", refused[k]);
	(void)metrics_get(M_API_REQUESTS, "delete", "204");
	(void)metrics_get(M_API_REQUESTS, "import", "413");
	(void)metrics_get(M_API_REQUESTS, "hook_create", "201");
	(void)metrics_get(M_API_REQUESTS, "hook_create", "409");
	(void)metrics_get(M_API_REQUESTS, "hook_redeliver", "409");
	(void)metrics_get(M_API_REQUESTS, "update", "413");
	(void)metrics_get(M_API_REQUESTS, "update", "409");
	(void)metrics_get(M_API_REQUESTS, "consumer_delete", "409");
	for (int k = 0; k < 3; k++) {
		static const char *const waited[] = {"422", "502", "504"};
		(void)metrics_get(M_API_REQUESTS, "validate", waited[k]);
		(void)metrics_get(M_API_REQUESTS, "credentials", waited[k]);
	}
}

static void start_listening(void *arg)
{
	struct api *a = arg;
	MAGIC_CHECK(a, MAGIC);
	loop_timer_stop(a->patience);
	httpd_accept(a->httpd, true);
}

static void stop_listening(struct api *a)
{
	loop_timer_stop(a->patience);
	httpd_accept(a->httpd, false);
}

static int listen_on(struct api *a, struct fault *f)
{
	const struct httpd_params p = {
		.listen = a->conf->api.listen,
		.listen_fd = notify_listen_fd("api"),
		.max_connections = CONNECTIONS_MAX,
		.max_body_bytes = HTTPD_BODY_MAX,
		.tls_cert_file = a->conf->api.cert_file,
		.tls_key_file = a->conf->api.key_file,
	};
	int e = httpd_new(a->loop, &p, on_request, a, &a->httpd, f);
	if (e != 0)
		return fault_wrap(f, e, "api.listen");
	a->inherited = p.listen_fd >= 0;
	if (a->inherited) { /* those who queue through a restart need not hear that we are not ready, unless it takes long */
		httpd_accept(a->httpd, false);
		loop_timer_after(a->patience, QUEUE_PATIENCE_US);
	}
	httpd_on_refused(a->httpd, on_refused, a);
	return 0;
}

static void on_finished(void *arg)
{
	struct api *a = arg;
	MAGIC_CHECK(a, MAGIC);
	loop_fn *fn = a->on_finish;
	a->on_finish = NULL; /* a late call does not finish it again */
	if (fn != NULL)
		fn(a->on_finish_arg);
}

/* Who connected before the drain and has not asked yet is heard for a moment. */
static bool is_late(struct api *a)
{
	if (!a->inherited || a->draining || httpd_connections(a->httpd) == 0 || sys_mono_us() >= a->finish_until)
		return false;
	loop_timer_after(a->late, LATE_LOOK_US);
	return true;
}

static void finish(void *arg)
{
	struct api *a = arg;
	MAGIC_CHECK(a, MAGIC);
	if (is_late(a))
		return;
	a->draining = true;
	a->on_finish = a->on_finish_later;
	api_room_close(a->room);
	webhook_end_checks(a->parts.webhook);
	if (a->calls == NULL)
		loop_defer(a->loop, &a->finished);
}

int api_new(struct loop *l, const struct api_parts *p, struct conf *c, struct api **out, struct fault *f)
{
	struct api *a = mem_alloc(sizeof *a);
	*a = (struct api){.magic = MAGIC, .loop = l, .parts = *p, .conf = conf_ref(c)};
	a->keys = api_keys_new();
	a->imports = api_imports_new(a);
	loop_task_init(&a->finished, on_finished, a);
	a->room = api_room_new(a);
	a->patience = loop_timer_new(l, start_listening, a);
	a->late = loop_timer_new(l, finish, a);
	declare();
	int e = listen_on(a, f);
	if (e != 0) {
		api_free(a);
		return e;
	}
	*out = a;
	return 0;
}

void api_free(struct api *a)
{
	if (a == NULL)
		return;
	MAGIC_CHECK(a, MAGIC);
	a->draining = true;
	a->on_finish = NULL;
	loop_undefer(a->loop, &a->finished);
	api_room_free(a->room);
	api_imports_free(a->imports);
	webhook_end_checks(a->parts.webhook);
	ALWAYS(a->calls == NULL);
	loop_timer_free(a->patience);
	loop_timer_free(a->late);
	httpd_free(a->httpd);
	api_keys_free(a->keys);
	conf_unref(a->conf);
	a->magic = 0;
	mem_free(a);
}

void api_start(struct api *a)
{
	a->running = true;
	start_listening(a);
}

void api_drain(struct api *a)
{
	/* On a socket of our own, who comes must be told; one that outlives us keeps them for our successor, and who is in already is served. */
	a->draining = !a->inherited;
	if (a->inherited)
		stop_listening(a);
	httpd_close_after(a->httpd);
}

void api_finish(struct api *a, loop_fn *fn, void *arg)
{
	a->on_finish_later = fn;
	a->on_finish_arg = arg;
	a->finish_until = sys_mono_us() + LATE_US;
	finish(a);
}

int api_set_conf(struct api *a, struct conf *c, struct fault *f)
{
	conf_ref(c);
	conf_unref(a->conf);
	a->conf = c;
	if (c->api.cert_file == NULL || c->api.key_file == NULL)
		return 0;
	int e = httpd_reload_tls(a->httpd, c->api.cert_file, c->api.key_file, f);
	return e == 0 ? 0 : fault_wrap(f, e, "api.tls");
}

uint16_t api_port(const struct api *a)
{
	return httpd_port(a->httpd);
}
