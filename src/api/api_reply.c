/*
 * api_reply - what goes out: the envelope, the error shape, the connection object, pages.
 *
 * Field by field from what is named here; no message repeats a value that came in, but for words of ours (a
 * header's or a field's name). Each function that answers ends the call.
 */
#include "api/api_priv.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"

#define ERROR_MAX ((size_t)16 * 1024)
#define CONNECTION_MAX ((size_t)512 * 1024)
#define JSON_TYPE "application/json"

/* ---------------------------------------------------------------- errors */

static const struct {
	int status;
	const char *type;
} errors[] = {
#define X(id, status, word) {status, word},
	API_ERROR_LIST(X)
#undef X
};

static const char *status_words(int status)
{
	switch (status) {
	case 400:
		return "Bad Request";
	case 401:
		return "Unauthorized";
	case 404:
		return "Not Found";
	case 405:
		return "Method Not Allowed";
	case 409:
		return "Conflict";
	case 408:
		return "Request Timeout";
	case 413:
		return "Payload Too Large";
	case 417:
		return "Expectation Failed";
	case 422:
		return "Unprocessable Entity";
	case 429:
		return "Too Many Requests";
	case 431:
		return "Request Header Fields Too Large";
	case 501:
		return "Not Implemented";
	case 502:
		return "Bad Gateway";
	case 503:
		return "Service Unavailable";
	case 504:
		return "Gateway Timeout";
	case 505:
		return "HTTP Version Not Supported";
	default:
		return "Internal Server Error";
	}
}

/* The error up to its detail. */
static void write_error(struct jsonw *w, int status, const char *type, const char *message)
{
	jsonw_object(w, NULL);
	jsonw_int(w, "status_code", status);
	jsonw_str(w, "error", status_words(status));
	jsonw_str(w, "type_name", type);
	jsonw_str(w, "message", message);
}

static int write_error_end(struct jsonw *w, const char *type)
{
	char ref[96] = "/openapi.json#";
	size_t n = strlen(ref);
	for (const char *s = type; *s != '\0' && n < sizeof ref - 1; s++)
		ref[n++] = *s >= 'A' && *s <= 'Z' ? (char)(*s - 'A' + 'a') : *s;
	ref[n] = '\0';
	jsonw_str(w, "ref", ref);
	jsonw_object_end(w);
	return jsonw_end(w);
}

void api_write_refusal(struct buf *out, int status)
{
	static const struct {
		int status;
		const char *type, *message;
	} refusals[] = {
		{400, "RequestValidationError", "the request is not HTTP/1.1 that can be read in one way only"},
		{408, "RequestTimeoutError", "the request took too long to arrive"},
		{413, "RequestValidationError", "the body is too large"},
		{417, "RequestHeadersValidationError", "the only expectation known is 100-continue"},
		{431, "RequestHeadersValidationError", "the headers are too large"},
		{501, "MethodNotAllowedError", "there is no such method"},
		{503, "ServiceUnavailableError", "too many bodies are being received; try again"},
		{505, "RequestValidationError", "the version of HTTP is not 1.0 or 1.1"},
	};
	size_t i = 0;
	while (i < sizeof refusals / sizeof *refusals - 1 && refusals[i].status != status)
		i++;
	struct jsonw w;
	jsonw_init(&w, out);
	write_error(&w, status, refusals[i].type, refusals[i].message);
	jsonw_str(&w, "detail", refusals[i].message);
	ALWAYS(write_error_end(&w, refusals[i].type) == 0);
}

static void error_begin(struct api_reply *r, struct api_call *c, enum api_error e, const char *message)
{
	r->call = c;
	buf_init(&r->body, ERROR_MAX);
	jsonw_init(&r->w, &r->body);
	write_error(&r->w, errors[e].status, errors[e].type, message);
}

static void error_send(struct api_reply *r, enum api_error e)
{
	int rc = write_error_end(&r->w, errors[e].type);
	api_call_end(r->call, errors[e].status, rc != ST_FULL ? &r->body : NULL);
	buf_fini(&r->body);
}

void api_fail(struct api_call *c, enum api_error e, const char *fmt, ...)
{
	char text[512];
	struct api_reply r;
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	error_begin(&r, c, e, text);
	jsonw_str(&r.w, "detail", text);
	error_send(&r, e);
}

void api_fail_fields(
	struct api_call *c, enum api_error e, const char *message, const struct import_problems *p)
{
	struct api_reply r;
	error_begin(&r, c, e, message);
	jsonw_object(&r.w, "detail");
	for (size_t i = 0; i < p->n; i++) {
		bool again = false;
		for (size_t j = 0; j < i; j++)
			again = again || strcmp(p->v[i].field, p->v[j].field) == 0;
		if (!again)
			jsonw_str(&r.w, p->v[i].field[0] != '\0' ? p->v[i].field : "body", p->v[i].text);
	}
	if (p->more)
		jsonw_str(&r.w, "more", "there are further wrong fields");
	jsonw_object_end(&r.w);
	error_send(&r, e);
}

void api_fail_refresh(
	struct api_call *c, enum api_error e, const char *reason, int attempts, const char *fmt, ...)
{
	char text[512];
	struct api_reply r;
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	error_begin(&r, c, e, text);
	jsonw_object(&r.w, "detail");
	jsonw_str(&r.w, "type", "refresh_token_connector_error");
	jsonw_str(&r.w, "reason", reason);
	jsonw_int(&r.w, "attempts", attempts);
	jsonw_object_end(&r.w);
	error_send(&r, e);
}

void api_retry_after(struct api_call *c, int64_t seconds)
{
	char text[24];
	(void)snprintf(text, sizeof text, "%lld", (long long)(seconds < 1 ? 1 : seconds));
	httpd_reply_header(c->req, "Retry-After", text);
}

void api_fail_store(struct api_call *c, int code)
{
	if (code == ST_INVALID) {
		log_error("api.statement_refused", K_WORD("route", c->route->name),
			K_TEXT("request", c->request_id));
		api_fail(c, API_INTERNAL,
			"the request could not be carried out; the log has it under its Request-Id");
		return;
	}
	api_retry_after(c, 2);
	api_fail(c, API_UNAVAILABLE,
		"the database is not available now; nothing is known to have been changed");
}

void api_fail_missing(struct api_call *c)
{
	if (api_provider(c) == NULL)
		api_fail(c, API_NO_CONNECTOR, "there is no connector of this unified_api and service_id");
	else
		api_fail(c, API_NO_CONNECTION, "the consumer has no such connection");
}

void api_problem(struct import_problems *p, const char *field, const char *fmt, ...)
{
	if (p->n == IMPORT_PROBLEMS_MAX) {
		p->more = true;
		return;
	}
	(void)snprintf(p->v[p->n].field, sizeof p->v[p->n].field, "%s", field);
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(p->v[p->n].text, sizeof p->v[p->n].text, fmt, ap);
	va_end(ap);
	p->n++;
}

/* ---------------------------------------------------------------- success */

void api_reply_begin(struct api_reply *r, struct api_call *c, size_t max, bool secret)
{
	r->call = c;
	if (secret)
		buf_init_secret(&r->body, max);
	else
		buf_init(&r->body, max);
	jsonw_init(&r->w, &r->body);
	jsonw_object(&r->w, NULL);
	jsonw_int(&r->w, "status_code", 200);
	jsonw_str(&r->w, "status", "OK");
}

void api_reply_send(struct api_reply *r)
{
	jsonw_object_end(&r->w);
	int rc = jsonw_end(&r->w);
	if (rc == ST_FULL)
		api_fail(
			r->call, API_INTERNAL, "the answer is larger than it may be; ask for a smaller page");
	else
		api_call_end(r->call, 200, &r->body);
	buf_fini(&r->body);
}

void api_reply_empty(struct api_call *c)
{
	api_call_end(c, 204, NULL);
}

/* ---------------------------------------------------------------- the connection object */

static void write_list(struct jsonw *w, const char *name)
{
	jsonw_array(w, name);
	jsonw_array_end(w);
}

struct shown {
	const char *unified_api, *service_id, *state, *health, *auth_type;
	bool enabled, configured;
	const struct provider *provider; /* NULL: not in the configuration any more */
	const char *settings, *metadata; /* JSON */
	int64_t expires_at, last_failed_at, created_at, updated_at;
};

static int64_t ms(int64_t wall_us)
{
	return wall_us == INT64_MAX ? 0 : wall_us / US_PER_MS;
}

static void write_identity(struct jsonw *w, const struct shown *x)
{
	char id[160];
	(void)snprintf(id, sizeof id, "%s+%s", x->unified_api, x->service_id);
	jsonw_str(w, "id", id);
	jsonw_str(w, "service_id", x->service_id);
	jsonw_str(w, "name", x->provider != NULL ? x->provider->name : x->service_id);
	jsonw_str(w, "tag_line", "");
	jsonw_str(w, "unified_api", x->unified_api);
	jsonw_str(w, "state", x->state);
	jsonw_str(w, "integration_state", x->configured ? "configured" : "needs_configuration");
	jsonw_str(w, "auth_type", x->auth_type);
	if (strcmp(x->auth_type, "oauth2") == 0)
		jsonw_str(w, "oauth_grant_type", grant_word(x->provider != NULL ? x->provider->grant : GRANT_CODE));
	jsonw_str(w, "status", "live");
	jsonw_bool(w, "enabled", x->enabled);
	jsonw_str(w, "website",
		x->provider != NULL && x->provider->website != NULL ? x->provider->website : "");
	jsonw_str(w, "icon", "");
	jsonw_str(w, "logo", "");
	jsonw_null(w, "authorize_url");
	jsonw_null(w, "revoke_url");
}

static void write_required(struct jsonw *w, const struct provider *p)
{
	jsonw_array(w, "settings_required_for_authorization");
	for (size_t i = 0; p != NULL && i < p->required_settings.n; i++)
		jsonw_str(w, NULL, p->required_settings.v[i]);
	jsonw_array_end(w);
}

static void write_shown(struct jsonw *w, const char *name, const struct shown *x)
{
	jsonw_object(w, name);
	write_identity(w, x);
	jsonw_raw(w, "settings", x->settings, strlen(x->settings));
	jsonw_raw(w, "metadata", x->metadata, strlen(x->metadata));
	write_list(w, "form_fields");
	write_list(w, "configuration");
	write_list(w, "configurable_resources");
	write_list(w, "resource_schema_support");
	write_list(w, "resource_settings_support");
	jsonw_bool(w, "validation_support", true);
	jsonw_bool(w, "schema_support", false);
	write_required(w, x->provider);
	write_list(w, "subscriptions");
	jsonw_bool(w, "has_guide", false);
	write_list(w, "custom_mappings");
	jsonw_str(w, "consent_state", "implicit");
	write_list(w, "consents");
	jsonw_str(w, "health", x->health);
	jsonw_int(w, "credentials_expire_at", ms(x->expires_at));
	jsonw_int(w, "last_refresh_failed_at", ms(x->last_failed_at));
	jsonw_int(w, "last_downstream_error_at", 0);
	if (x->created_at != 0) {
		jsonw_int(w, "created_at", ms(x->created_at));
		jsonw_int(w, "updated_at", ms(x->updated_at));
	}
	jsonw_object_end(w);
}

static bool configured(const struct conf *c, const char *application, const struct provider *p)
{
	return p != NULL && (p->auth_type != AUTH_OAUTH2 || conf_client(c, application, p->key) != NULL);
}

void api_write_connection(
	struct jsonw *w, const char *name, const struct conf *c, const struct store_connection *k)
{
	const struct provider *p = conf_provider(c, k->key.service_id);
	const struct shown x = {
		.unified_api = k->key.unified_api,
		.service_id = k->key.service_id,
		.state = k->state,
		.health = k->health,
		.auth_type = k->auth_type,
		.enabled = k->enabled,
		.configured = configured(c, k->key.application_id, p),
		.provider = p,
		.settings = k->settings_public,
		.metadata = k->metadata,
		.expires_at = k->expires_at,
		.last_failed_at = k->last_failed_at,
		.created_at = k->created_at,
		.updated_at = k->updated_at,
	};
	write_shown(w, name, &x);
}

void api_write_available(struct jsonw *w, const char *name, const struct api_call *c,
	const struct provider *p, const char *unified_api)
{
	const struct shown x = {
		.unified_api = unified_api,
		.service_id = p->key,
		.state = conn_state_word(CONN_AVAILABLE),
		.health = conn_health_word(HEALTH_OK),
		.auth_type = auth_type_word(p->auth_type),
		.configured = configured(c->conf, c->application, p),
		.provider = p,
		.settings = "{}",
		.metadata = "{}",
	};
	write_shown(w, name, &x);
}

void api_reply_connection(struct api_call *c, const struct store_connection *k)
{
	struct api_reply r;
	api_reply_begin(&r, c, CONNECTION_MAX, false);
	api_write_connection(&r.w, "data", c->conf, k);
	api_reply_send(&r);
}
