/*
 * import - strict reading of one connection from outside.
 *
 * Texts name fields and never quote values, not even names that nobody knows unless they look like names: a
 * token pasted into the wrong place must not come back in an error message. The tree is read by grant_parse,
 * which refuses what json-c lets pass (a name twice, NUL) and wipes after itself.
 */
#include "model/import.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/grant.h"
#include "model/grant_parse.h"

#define MASK "********"
#define NUMBER_MAX 1000 /* digits or exponent; the database's limits are some way beyond */
#define EXACT_DOUBLE 9007199254740992.0 /* 2^53 */

static void problem(struct import_problems *p, const char *field, const char *fmt, ...) PRINTF_LIKE(3, 4);

static void problem(struct import_problems *p, const char *field, const char *fmt, ...)
{
	if (p->n == IMPORT_PROBLEMS_MAX) {
		p->more = true;
		return;
	}
	(void)snprintf(p->v[p->n].field, sizeof(p->v[p->n].field), "%s", field);
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(p->v[p->n].text, sizeof(p->v[p->n].text), fmt, ap);
	va_end(ap);
	p->n++;
}

int import_problems_text(const struct import_problems *p, struct buf *out)
{
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < p->n; i++)
		rc = buf_printf(out, "%s%s%s%s", i == 0 ? "" : "; ", p->v[i].field, p->v[i].field[0] != '\0' ? ": " : "",
			p->v[i].text);
	if (rc == 0 && p->more)
		rc = buf_puts(out, "; and more");
	return rc;
}

void import_init(struct import *i)
{
	*i = (struct import){ .expires_in_us = -1 };
	buf_init_secret(&i->access_token, IMPORT_TOKEN_MAX);
	buf_init_secret(&i->refresh_token, IMPORT_TOKEN_MAX);
	buf_init_secret(&i->settings, IMPORT_SETTINGS_MAX);
	buf_init(&i->metadata, IMPORT_SETTINGS_MAX);
}

void import_fini(struct import *i)
{
	mem_free(i->application_id);
	mem_free(i->consumer_id);
	mem_free(i->unified_api);
	mem_free(i->service_id);
	buf_fini(&i->access_token);
	buf_fini(&i->refresh_token);
	buf_fini(&i->settings);
	buf_fini(&i->metadata);
	import_init(i);
}

/* ---- members */

static bool given(struct json_object *o, const char *name, struct json_object **v)
{
	return json_object_object_get_ex(o, name, v) && *v != NULL;
}

static char *take_part(struct json_object *o, const char *name, struct import_problems *p)
{
	struct json_object *v;
	if (!given(o, name, &v)) {
		problem(p, name, "missing");
		return NULL;
	}
	if (json_object_get_type(v) != json_type_string) {
		problem(p, name, "must be a string");
		return NULL;
	}
	return mem_strndup(json_object_get_string(v), (size_t)json_object_get_string_len(v));
}

static void take_key(struct json_object *o, struct import *out, struct import_problems *p)
{
	size_t before = p->n;
	out->application_id = take_part(o, "application_id", p);
	out->consumer_id = take_part(o, "consumer_id", p);
	out->unified_api = take_part(o, "unified_api", p);
	out->service_id = take_part(o, "service_id", p);
	if (p->n != before)
		return;
	const struct conn_key key = { out->application_id, out->consumer_id, out->unified_api, out->service_id };
	struct fault f = { 0 };
	if (conn_key_check(&key, &f) != 0)
		problem(p, "", "%s", f.text); /* names the part itself */
}

static void take_token(struct json_object *v, const char *field, struct buf *out, struct import_problems *p)
{
	if (v == NULL)
		return;
	if (json_object_get_type(v) != json_type_string) {
		problem(p, field, "must be a string");
		return;
	}
	const char *s = json_object_get_string(v);
	size_t n = (size_t)json_object_get_string_len(v);
	if (n == 0)
		problem(p, field, "is empty");
	else if (n > IMPORT_TOKEN_MAX)
		problem(p, field, "is longer than %zu bytes", IMPORT_TOKEN_MAX);
	else if (!str_is_vschar(s, n))
		problem(p, field, "holds a character that no token has (printable ASCII only)");
	else if (buf_set(out, s, n) != 0)
		problem(p, field, "is too long");
}

static void take_issued_at(struct json_object *v, struct import *out, struct import_problems *p)
{
	static const char field[] = "credentials.issued_at";
	if (v == NULL)
		return;
	if (json_object_get_type(v) != json_type_string ||
		str_parse_rfc3339(json_object_get_string(v), (size_t)json_object_get_string_len(v), &out->issued_at) != 0)
		problem(p, field, "must be an RFC 3339 date-time, like 2026-11-23T10:00:00Z");
}

static void take_expires_in(struct json_object *v, struct import *out, struct import_problems *p)
{
	static const char field[] = "credentials.expires_in";
	int64_t seconds = -1;
	if (v == NULL)
		return;
	if (json_object_get_type(v) == json_type_int) {
		seconds = json_object_get_int64(v); /* saturates */
	} else if (json_object_get_type(v) == json_type_double) {
		double d = json_object_get_double(v);
		if (d >= 0 && d < EXACT_DOUBLE && floor(d) >= d)
			seconds = (int64_t)d;
	}
	if (seconds < 0)
		problem(p, field, "must be a whole number of seconds, not negative");
	else if (seconds > IMPORT_EXPIRES_IN_MAX)
		problem(p, field, "is too large; it counts seconds");
	else
		out->expires_in_us = seconds * US_PER_S;
}

/* Only what looks like a name is repeated. */
static bool looks_like_name(const char *s)
{
	size_t n = strlen(s);
	return n > 0 && n <= 24 && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-.") == n;
}

static void take_credentials(struct json_object *o, struct import *out, struct import_problems *p)
{
	if (json_object_get_type(o) != json_type_object) {
		problem(p, "credentials", "must be an object");
		return;
	}
	json_object_object_foreach(o, name, v)
	{
		char field[72];
		if (strcmp(name, "access_token") == 0) {
			take_token(v, "credentials.access_token", &out->access_token, p);
		} else if (strcmp(name, "refresh_token") == 0) {
			take_token(v, "credentials.refresh_token", &out->refresh_token, p);
		} else if (strcmp(name, "issued_at") == 0) {
			take_issued_at(v, out, p);
		} else if (strcmp(name, "expires_in") == 0) {
			take_expires_in(v, out, p);
		} else {
			(void)snprintf(field, sizeof(field), "credentials.%s", looks_like_name(name) ? name : "?");
			problem(p, field, "unknown field (access_token, refresh_token, issued_at and expires_in are known)");
		}
	}
}

static bool take_object(struct json_object *v, const char *field, struct buf *out, struct import_problems *p)
{
	if (json_object_get_type(v) != json_type_object) {
		problem(p, field, "must be an object");
		return false;
	}
	int rc = import_write_json(v, out);
	if (rc == ST_RANGE)
		problem(p, field, "holds a number that cannot be kept as it is: write it as a string");
	else if (rc != 0)
		problem(p, field, "is longer than %zu bytes", IMPORT_SETTINGS_MAX);
	return rc == 0;
}

static void take_members(struct json_object *o, bool with_key, struct import *out, struct import_problems *p)
{
	struct json_object *v;
	if (with_key)
		take_key(o, out, p);
	if (given(o, "credentials", &v))
		take_credentials(v, out, p);
	if (given(o, "settings", &v))
		out->has_settings = take_object(v, "settings", &out->settings, p);
	if (given(o, "metadata", &v))
		out->has_metadata = take_object(v, "metadata", &out->metadata, p);
}

int import_parse(const char *s, size_t n, bool with_key, struct import *out, struct import_problems *p)
{
	size_t before = p->n;
	if (n > IMPORT_LINE_MAX) {
		problem(p, "", "longer than %zu bytes", IMPORT_LINE_MAX);
		return ST_SYNTAX;
	}
	if (!str_is_utf8(s, n)) {
		problem(p, "", "not valid UTF-8");
		return ST_SYNTAX;
	}
	struct json_object *root = grant_parse_json(s, n);
	if (root == NULL || json_object_get_type(root) != json_type_object) {
		problem(p, "", root != NULL ? "not a JSON object"
					    : "not one JSON object (broken, nested too deeply, or with a name given twice)");
		grant_parse_free(root);
		return ST_SYNTAX;
	}
	take_members(root, with_key, out, p);
	grant_parse_free(root);
	return p->n == before ? 0 : ST_INVALID;
}

/* ---- JSON without json-c's own copies */

struct writing {
	struct jsonw w;
	size_t zeros; /* that the database will write for what is short with an exponent */
	bool lossy;
};

/* json-c keeps the text of a number that it has read, and so do we. */
static void write_double(struct writing *x, const char *name, struct json_object *o)
{
	const char *text = json_object_get_userdata(o);
	int64_t exponent = 0;
	if (text == NULL) {
		jsonw_double(&x->w, name, json_object_get_double(o));
		return;
	}
	const char *e = strpbrk(text, "eE");
	if (e != NULL) {
		e += 1 + (e[1] == '+');
		x->lossy = x->lossy || str_parse_i64(e, strlen(e), &exponent) != 0;
	}
	if (strlen(text) > NUMBER_MAX || exponent > NUMBER_MAX || exponent < -NUMBER_MAX)
		x->lossy = true;
	else
		x->zeros += (size_t)(exponent < 0 ? -exponent : exponent);
	jsonw_raw(&x->w, name, text, strlen(text));
}

static void write_int(struct writing *x, const char *name, struct json_object *o)
{
	char text[24];
	int64_t v = json_object_get_int64(o);
	uint64_t u = json_object_get_uint64(o);
	x->lossy = x->lossy || v == INT64_MIN || u == UINT64_MAX;
	int n = v < 0 ? snprintf(text, sizeof(text), "%" PRId64, v) : snprintf(text, sizeof(text), "%" PRIu64, u);
	jsonw_raw(&x->w, name, text, (size_t)n);
}

/* The depth was bounded when the tree was read. */
static void write_value(struct writing *x, const char *name, struct json_object *o)
{
	switch (json_object_get_type(o)) {
	case json_type_null:
		jsonw_null(&x->w, name);
		return;
	case json_type_boolean:
		jsonw_bool(&x->w, name, json_object_get_boolean(o));
		return;
	case json_type_int:
		write_int(x, name, o);
		return;
	case json_type_double:
		write_double(x, name, o);
		return;
	case json_type_string:
		jsonw_strn(&x->w, name, json_object_get_string(o), (size_t)json_object_get_string_len(o));
		return;
	case json_type_array:
		jsonw_array(&x->w, name);
		for (size_t i = 0; i < json_object_array_length(o); i++)
			write_value(x, NULL, json_object_array_get_idx(o, i));
		jsonw_array_end(&x->w);
		return;
	case json_type_object:
		jsonw_object(&x->w, name);
		json_object_object_foreach(o, key, v)
		{
			write_value(x, key, v);
		}
		jsonw_object_end(&x->w);
		return;
	}
}

int import_write_json(struct json_object *o, struct buf *out)
{
	struct writing x = { .zeros = 0 };
	buf_reset(out);
	jsonw_init(&x.w, out);
	write_value(&x, NULL, o);
	int rc = jsonw_end(&x.w);
	if (rc == 0 && x.lossy)
		rc = ST_RANGE;
	if (rc == 0 && x.zeros > out->max - out->len)
		rc = ST_FULL;
	if (rc != 0)
		buf_reset(out);
	return rc;
}

/* ---- against the service */

/* There, and not an empty string. */
static bool is_filled(struct json_object *settings, const char *name)
{
	struct json_object *v;
	return settings != NULL && given(settings, name, &v) &&
	       (json_object_get_type(v) != json_type_string || json_object_get_string_len(v) > 0);
}

static bool holds_the_secret(const struct provider *p)
{
	return p->auth_type == AUTH_API_KEY || p->auth_type == AUTH_BASIC;
}

bool import_settings_complete(struct json_object *settings, const struct provider *p)
{
	for (size_t i = 0; i < p->required_settings.n; i++)
		if (!is_filled(settings, p->required_settings.v[i]))
			return false;
	return p->required_settings.n > 0 || !holds_the_secret(p) || (settings != NULL && json_object_object_length(settings) > 0);
}

bool import_lacks_settings(const struct import *i, const struct provider *p, const char *shown)
{
	struct json_object *o = NULL;
	if (p->auth_type != AUTH_OAUTH2 || p->required_settings.n == 0)
		return false;
	if (i->has_settings)
		o = grant_parse_json(buf_str(&i->settings), i->settings.len);
	else if (shown != NULL)
		o = grant_parse_json(shown, strlen(shown));
	bool complete = import_settings_complete(o, p);
	grant_parse_free(o);
	return !complete;
}

static void check_settings(const struct import *i, const struct provider *provider, struct import_problems *p)
{
	struct json_object *o = i->has_settings ? grant_parse_json(buf_str(&i->settings), i->settings.len) : NULL;
	if (provider->required_settings.n == 0 && !import_settings_complete(o, provider))
		problem(p, "settings", "missing: with auth_type %s they hold the secret", auth_type_word(provider->auth_type));
	for (size_t n = 0; n < provider->required_settings.n; n++) {
		char field[72];
		(void)snprintf(field, sizeof(field), "settings.%s", provider->required_settings.v[n]);
		if (!is_filled(o, provider->required_settings.v[n]))
			problem(p, field, "missing or empty");
	}
	grant_parse_free(o);
}

static void check_needs(const struct import *i, const struct provider *provider, struct import_problems *p)
{
	switch (provider->auth_type) {
	case AUTH_OAUTH2:
		if (i->access_token.len == 0 && provider->grant == GRANT_CODE)
			problem(p, "credentials.access_token", "missing");
		if (i->refresh_token.len > 0 && provider->grant == GRANT_CLIENT)
			problem(p, "credentials.refresh_token", "the service has grant client_credentials, which knows none");
		return;
	case AUTH_API_KEY:
	case AUTH_BASIC:
		if (i->access_token.len + i->refresh_token.len > 0)
			problem(p, "credentials", "the service has auth_type %s: its secret belongs into settings",
				auth_type_word(provider->auth_type));
		check_settings(i, provider, p);
		return;
	case AUTH_CUSTOM:
		check_settings(i, provider, p);
		return;
	case AUTH_NONE:
		return;
	}
}

int import_check(const struct import *i, const struct provider *provider, struct import_problems *p)
{
	size_t before = p->n;
	if (provider == NULL) {
		problem(p, "service_id", "'%.64s' is no provider of the configuration", i->service_id != NULL ? i->service_id : "");
		return ST_INVALID;
	}
	if (provider->unified_apis.n > 0 && !strlist_has(&provider->unified_apis, i->unified_api))
		problem(p, "unified_api", "provider %.48s does not serve '%.48s'", provider->key, i->unified_api);
	check_needs(i, provider, p);
	return p->n == before ? 0 : ST_INVALID;
}

/* ---- when */

enum conn_event import_event(const struct import *i, const struct provider *p)
{
	return p->auth_type == AUTH_OAUTH2 && i->access_token.len == 0 ? CE_ADDED : CE_IMPORTED;
}

void import_plan(const struct import *i, const struct provider *p, const struct policy_margin *m, int64_t now, double unit,
	struct import_times *out)
{
	*out = (struct import_times){ .due_at = INT64_MAX };
	if (p->auth_type != AUTH_OAUTH2)
		return;
	bool known = i->issued_at > 0 && i->expires_in_us >= 0;
	const struct policy_life life = {
		.now = now,
		.issued_at = i->issued_at,
		.expires_in_us = i->expires_in_us,
		.jwt_exp = grant_jwt_exp(buf_str(&i->access_token), i->access_token.len),
	};
	if (i->refresh_token.len > 0)
		out->refresh_issued_at = i->issued_at > 0 ? i->issued_at : now;
	if (i->refresh_token.len > 0 && p->refresh_token_ttl_us > 0)
		out->refresh_expires_at = out->refresh_issued_at + p->refresh_token_ttl_us;
	if (i->access_token.len == 0) {
		out->due_at = now;
		out->due_now = true;
		return;
	}
	out->issued_at = i->issued_at;
	/* Said to be worth nothing is not the same as not said, which policy_expiry would make of a zero. */
	out->expires_at = known && i->expires_in_us == 0 ? i->issued_at : policy_expiry(p, &life);
	if (!provider_renews(p, i->refresh_token.len > 0)) {
		out->due_at = out->expires_at > now ? out->expires_at : now;
		out->due_now = out->due_at <= now;
		return;
	}
	const struct policy_due due = {
		.now = now,
		.issued_at = out->issued_at,
		.expires_at = out->expires_at,
		.refresh_issued_at = out->refresh_issued_at,
		.refresh_expires_at = out->refresh_expires_at,
	};
	out->due_at = known ? policy_due_at(p, m, &due, unit) : now;
	out->due_now = out->due_at <= now;
}

/* ---- masking */

int import_mask_settings(const char *settings_json, size_t n, const struct provider *p, struct buf *out)
{
	bool all = holds_the_secret(p);
	struct json_object *o = grant_parse_json(settings_json, n);
	if (o == NULL || json_object_get_type(o) != json_type_object) {
		grant_parse_free(o);
		return ST_SYNTAX;
	}
	struct json_object *shown = json_object_new_object();
	ALWAYS(shown != NULL);
	json_object_object_foreach(o, name, v)
	{
		bool mask = is_filled(o, name) && (all || strlist_has(&p->sensitive_settings, name));
		(void)json_object_object_add(shown, name, mask ? json_object_new_string(MASK) : json_object_get(v));
	}
	int rc = import_write_json(shown, out);
	json_object_put(shown);
	grant_parse_free(o);
	return rc;
}
