/*
 * api_priv - what the files of the API share: one call, its reply, the routes, the waiting room.
 */
#ifndef REFRESHD_SERVICE_API_PRIV_H
#define REFRESHD_SERVICE_API_PRIV_H

#include "api/api.h"

#include <json-c/json.h>

#include "base/jsonw.h"
#include "base/str.h"
#include "io/httpd.h"
#include "model/import.h"
#include "service/store_vault.h"

#define API_BODY_MAX ((size_t)512 * 1024)
#define API_PAGE_MAX 5000

/* ---- routes: a row each; a new one is a row in api_route.c, a handler, and its words in docs/openapi.json ---- */
enum api_scope { API_OPEN = 0, API_READ = 1, API_WRITE = 2, API_CREDENTIALS = 4, API_WEBHOOKS = 8 };
enum api_need { API_NO_CONSUMER, API_CONSUMER_OPTIONAL, API_CONSUMER };

struct api_call;
typedef void api_fn(struct api_call *c);
struct api_route {
	const char *name; /* the metric's label */
	enum httpd_method method;
	const char *path; /* {unified_api}, {service_id} and {id} are one part each, decoded */
	unsigned scopes;  /* any of them suffices; API_OPEN: no key at all */
	enum api_need consumer;
	api_fn *fn;
	bool empty_body; /* nothing is read from the body */
};
extern const struct api_route api_routes[];
extern const size_t api_n_routes;

struct api_match {
	const struct api_route *route; /* NULL: none */
	unsigned allowed;	       /* methods that the path has; 0: no such path */
	struct buf unified_api, service_id, id;
};
/* ST_SYNTAX: a part that does not decode to UTF-8. */
int api_match(const char *path, enum httpd_method method, struct api_match *m) MUST_USE;
void api_match_init(struct api_match *m);
void api_match_fini(struct api_match *m);

/* ---- one call ---- */
struct api_call {
	uint32_t magic;
	struct api *api;
	struct api_call *prev, *next;
	struct httpd_request *req;
	struct conf *conf; /* the one it began with */
	const struct api_route *route;
	struct api_match match;
	struct conn_key key; /* application always; consumer, unified API and service as the route has them; borrowed from below */
	char *application, *consumer;
	uint8_t key_hash[32];
	char request_id[STR_UUID_BYTES];
	int64_t began_us; /* mono */
	void *state;	  /* the handler's own, freed by: */
	void (*free_state)(void *state);
	api_fn *then; /* of api_forget_later */
};
const struct provider *api_provider(const struct api_call *c); /* serves the unified API; NULL: no such connector */
void api_conn_id(const struct api_call *c, struct store_conn_id *out);
/* A parameter of the query, decoded into `out`. ST_NOT_FOUND, ST_SYNTAX. */
int api_query(const struct api_call *c, const char *name, struct buf *out) MUST_USE;
/* A decimal within bounds; `missing` when absent. ST_INVALID: answered already. */
int api_query_int(struct api_call *c, const char *name, int64_t missing, int64_t min, int64_t max, int64_t *out) MUST_USE;

/* ---- answers: each ends the call ---- */
#define API_ERROR_LIST(X)                                                    \
	X(API_BAD_REQUEST, 400, "RequestValidationError")                    \
	X(API_BAD_HEADERS, 400, "RequestHeadersValidationError")             \
	X(API_UNAUTHORIZED, 401, "UnauthorizedError")                        \
	X(API_NO_CONNECTOR, 404, "ConnectorNotFoundError")                   \
	X(API_NO_CONNECTION, 404, "ConnectionNotFoundError")                 \
	X(API_NOT_FOUND, 404, "NotFoundError")                               \
	X(API_BAD_METHOD, 405, "MethodNotAllowedError")                      \
	X(API_CONFLICT, 409, "ConflictError")                                \
	X(API_TOO_LARGE, 413, "RequestValidationError")                      \
	X(API_SETTINGS, 422, "ConnectionSettingsError")                      \
	X(API_TOO_MANY, 429, "RequestLimitError")                            \
	X(API_INTERNAL, 500, "InternalServerError")                          \
	X(API_CONNECTOR_FAILED, 502, "ConnectorExecutionError")              \
	X(API_UNAVAILABLE, 503, "ServiceUnavailableError")                   \
	X(API_TIMEOUT, 504, "ConnectorTimeoutError")
enum api_error {
#define X(id, status, word) id,
	API_ERROR_LIST(X)
#undef X
};
void api_fail(struct api_call *c, enum api_error e, const char *fmt, ...) PRINTF_LIKE(3, 4);
void api_fail_fields(struct api_call *c, enum api_error e, const char *message, const struct import_problems *p);
/* The provider did not refresh: detail says so in a closed set of words. */
void api_fail_refresh(struct api_call *c, enum api_error e, const char *reason, int attempts, const char *fmt, ...) PRINTF_LIKE(5, 6);
void api_fail_store(struct api_call *c, int code); /* of a store callback, or of a send that was refused */
void api_fail_missing(struct api_call *c);	   /* there is no such connection, or not even a connector */
void api_retry_after(struct api_call *c, int64_t seconds);
void api_write_refusal(struct buf *out, int status); /* of a request that never became a call */

void api_call_end(struct api_call *c, int status, struct buf *body); /* body moved; NULL: none */

struct api_reply {
	struct api_call *call;
	struct buf body;
	struct jsonw w;
};
/* The envelope up to "data": write that, then send. `max`: bytes; `secret`: the body holds a token. */
void api_reply_begin(struct api_reply *r, struct api_call *c, size_t max, bool secret);
void api_reply_send(struct api_reply *r);
void api_reply_empty(struct api_call *c); /* 204 */
void api_reply_connection(struct api_call *c, const struct store_connection *k);
/* `name`: the key it goes under; NULL in an array. */
void api_write_connection(struct jsonw *w, const char *name, const struct conf *c, const struct store_connection *k);
void api_write_available(struct jsonw *w, const char *name, const struct api_call *c, const struct provider *p, const char *unified_api);

/* ---- pages (api_page.c). A cursor is an opaque word of the parts that a page ended with. ---- */
#define API_CURSOR_PARTS 3
#define API_CURSOR_MAX 2048 /* bytes in clear: three of the longest ids */
struct api_page { /* what was asked for: the parts are "" on the first page */
	unsigned limit;
	bool first;
	struct buf plain;
	const char *parts[API_CURSOR_PARTS];
};
void api_page_fini(struct api_page *p);
/* `limit` and a cursor of `n` parts out of the query. 0, or answered; to be given back in both cases. */
int api_page_take(struct api_call *c, struct api_page *p, unsigned missing, unsigned most, size_t n) MUST_USE;
int api_cursor_write(struct buf *out, const char *const *parts, size_t n) MUST_USE;
/* Exactly n parts, NUL-terminated, in `plain`; ST_SYNTAX. */
int api_cursor_read(const char *text, size_t len, struct buf *plain, const char **parts, size_t n) MUST_USE;
/* Time and id, as the first two parts. */
int api_cursor_write_at(struct buf *out, int64_t wall_us, const uint8_t id[16], const char *third_or_null) MUST_USE;
int api_cursor_read_time(const char *part, int64_t *wall_us) MUST_USE; /* ST_SYNTAX: not one that the database can hold */

struct api_list {
	size_t max; /* bytes; the page ends early, with a cursor, where half of it is reached */
	unsigned limit; /* items; one more than it among those given tells that there is a next page */
	bool (*write)(struct api_reply *r, const void *items, size_t i); /* false: left out */
	void (*cursor)(struct buf *next, const void *items, size_t last);
	size_t (*more)(struct api_reply *r, const void *items, size_t n); /* behind the last page, how many; NULL: nothing */
};
void api_reply_list(struct api_call *c, const struct api_list *l, const void *items, size_t n);
void api_reply_page(struct api_reply *r, size_t items, const struct buf *next); /* meta; next empty: the last page */

/* ---- who calls (api_auth.c) ---- */
void api_authenticate(struct api_call *c); /* goes on with api_authorized, or answers */
/* After a wait: does the key of the call still hold? fn, now or later; or answered. */
void api_auth_again(struct api_call *c, api_fn *fn);
/* The key is known to be good, and to belong to `app`. */
void api_authorized(struct api_call *c, const char *app, unsigned scopes);
bool api_can_ask(const struct api *a); /* the database */
void api_fail_away(struct api_call *c);

/* ---- import queue (api_import.c), waiting room (api_wait.c) ---- */
struct api_imports;
struct api_imports *api_imports_new(struct api *a);
void api_imports_free(struct api_imports *q);
/* The connection of the call without tokens, for its grant to fetch them: made unless it is there by now. `fn` gets the row; the call's
 * state is taken until then and empty in `fn`. */
typedef void api_row_fn(struct api_call *c, const struct store_connection *k);
void api_imports_make(struct api_imports *q, struct api_call *c, const struct provider *p, api_row_fn *fn);
struct api_room;
struct api_room *api_room_new(struct api *a);
void api_room_close(struct api_room *r); /* one more look; whoever would wait on is answered 503 */
void api_room_free(struct api_room *r); /* whoever waits is answered 503 */
struct api_baseline { /* a row as it was when the call came */
	int64_t token_version, attempt_id;
	bool leased, lease_only; /* an attempt was out: its end is what is waited for; whatever comes of it */
};
/* Waits until the refresh of the call's connection has ended. `fn` gets the row as it is then (sealed token included), and `code`
 * ST_TIMEOUT, ST_NOT_FOUND or ST_UNAVAILABLE. `ended_well`: there are newer tokens. ST_FULL: nobody more may wait. */
bool api_wait_is_over(const struct api_call *c); /* it has waited as long as anybody may */
typedef void api_wait_fn(struct api_call *c, int code, bool ended_well, const struct store_connection *k);
int api_wait(struct api_room *r, struct api_call *c, const struct api_baseline *seen, api_wait_fn *fn) MUST_USE;

struct api {
	uint32_t magic;
	struct loop *loop;
	struct api_parts parts;
	struct conf *conf;
	struct httpd *httpd;
	bool running, draining;
	bool inherited; /* the socket is the service manager's */
	struct loop_timer *patience; /* how long it is not listened at before api_start */
	struct api_call *calls;
	struct api_keys *keys;
	struct api_asking *asking; /* look-ups of keys that are out */
	struct api_imports *imports;
	struct api_room *room;
	struct loop_task finished; /* runs on_finish */
	loop_fn *on_finish;	   /* NULL: api_finish was not called, or it listens to the last ones */
	loop_fn *on_finish_later;
	struct loop_timer *late;
	int64_t finish_until; /* mono */
	void *on_finish_arg;
};

/* ---- handlers ---- */
api_fn api_do_import, api_do_list, api_do_get, api_do_update, api_do_delete, api_do_validate, api_do_token, api_do_credentials, api_do_consumers,
	api_do_consumer, api_do_consumer_delete, api_do_logs, api_do_openapi;

/* The tree of a body that must be one object; {} when it is empty and that is allowed. NULL: answered already. grant_parse_free. */
struct json_object *api_body(struct api_call *c, bool may_be_empty);
/* An event about `k` as `state`, `health` and `enabled` will be. */
int api_build_event(const struct conf *c, const struct store_connection *k, const char *state, const char *health, bool enabled,
	int64_t updated_at, struct buf *entity, struct buf *entity_id) MUST_USE;
void api_forget_later(struct api_call *c, api_fn *fn); /* its connection is leased: fn once it is not, or answered */
void api_problem(struct import_problems *p, const char *field, const char *fmt, ...) PRINTF_LIKE(3, 4);

#endif
