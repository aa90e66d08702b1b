/*
 * grant - builds the one request of a refresh: URL, headers, body.
 *
 * All parameters are gathered first, by name, and written once at the end in the provider's format: so none
 * is ever sent twice (RFC 6749 3.2) and a rename or an omission works the same for form, JSON and query. The
 * refresh token is passed through byte for byte. Everything gathered is secret and wiped; a fault names
 * parameters, never values.
 */
#include "model/grant.h"

#include <string.h>

#include "base/header.h"
#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/url.h"
#include "model/clientauth.h"

#define MAX_PARAMS 64
#define MAX_BYTES ((size_t)1024 * 1024)
#define MAX_VALUE ((size_t)128 * 1024)

struct param {
	const char *name; /* borrowed from the provider or a constant */
	struct buf value;
};

struct builder {
	const struct grant_input *in;
	struct grant_request req;
	struct param params[MAX_PARAMS];
	size_t n_params;
	struct fault *f;
};

static int too_long(struct builder *b, int rc, const char *what)
{
	return rc < 0 ? fault_set(
				b->f, rc, "provider %s: %s: %s", b->in->provider->key, what, status_text(rc))
		      : 0;
}

static struct param *find_param(struct builder *b, const char *name)
{
	for (size_t i = 0; i < b->n_params; i++)
		if (strcmp(b->params[i].name, name) == 0)
			return &b->params[i];
	return NULL;
}

static int new_param(struct builder *b, const char *name, struct param **out)
{
	if (b->n_params == MAX_PARAMS)
		return fault_set(b->f, ST_FULL, "provider %s: more than %d parameters", b->in->provider->key,
			MAX_PARAMS);
	struct param *p = &b->params[b->n_params++];
	p->name = name;
	buf_init_secret(&p->value, MAX_VALUE);
	*out = p;
	return 0;
}

/* The constant that a standard parameter is called by this provider. */
static const char *wire_name(const struct provider *p, const char *name)
{
	for (size_t i = 0; i < p->n_rename_params; i++)
		if (strcmp(p->rename_params[i].name, name) == 0)
			return template_text(p->rename_params[i].value);
	return name;
}

/* A parameter of the protocol's own: may be left out or renamed. An empty value counts as left out. */
static int add_standard(struct builder *b, const char *name, const char *value, size_t n)
{
	const struct provider *p = b->in->provider;
	struct param *param = NULL;

	if (n == 0 || strlist_has(&p->omit_params, name))
		return 0;
	const char *wire = wire_name(p, name);
	if (find_param(b, wire) != NULL)
		return fault_set(
			b->f, ST_INVALID, "provider %s: parameter \"%s\" would be sent twice", p->key, wire);
	int rc = new_param(b, wire, &param);
	return rc == 0 ? too_long(b, buf_append(&param->value, value, n), wire) : rc;
}

/* A value that cannot be used is the trouble of the one connection that holds it, like one that is missing. The
 * definition is not at fault, for which the caller would stop every connection. */
static int blame_connection(struct builder *b, int rc)
{
	if (rc < 0 && b->f != NULL)
		b->f->code = ST_NOT_FOUND;
	return rc < 0 ? ST_NOT_FOUND : 0;
}

static int expand(struct builder *b, const struct template *t, enum template_use use, struct buf *out)
{
	return blame_connection(b, template_expand(t, &b->in->vars, use, out, b->f));
}

/* A configured parameter: the operator's word replaces the protocol's own value. */
static int add_configured(struct builder *b, const struct named_template *t)
{
	struct param *param = find_param(b, t->name);
	struct buf value = BUF_INIT_SECRET(MAX_VALUE);

	int rc = expand(b, t->value, TEMPLATE_VALUE, &value);
	if (rc < 0) {
		buf_fini(&value);
		return fault_wrap(b->f, rc, "provider %s: parameter \"%s\"", b->in->provider->key, t->name);
	}
	if (param == NULL && value.len > 0)
		rc = new_param(b, t->name, &param);
	if (rc == 0 && param != NULL)
		buf_move(&param->value, &value);
	buf_fini(&value);
	return rc;
}

/* Scope words stand apart by blanks with us, and by what the provider wants on the wire. */
static int add_scope(struct builder *b, const char *scope)
{
	const struct provider *p = b->in->provider;
	const char *separator =
		p->scope_separator == NULL || p->scope_separator[0] == '\0' ? " " : p->scope_separator;
	struct buf joined = BUF_INIT_SECRET(MAX_VALUE);
	int rc = 0;

	for (const char *s = scope + strspn(scope, " "); rc == 0 && *s != '\0';) {
		size_t n = strcspn(s, " ");
		if (joined.len > 0)
			rc = buf_puts(&joined, separator);
		if (rc == 0)
			rc = buf_append(&joined, s, n);
		s += n;
		s += strspn(s, " ");
	}
	rc = too_long(b, rc, "scope");
	if (rc == 0)
		rc = add_standard(b, "scope", buf_str(&joined), joined.len);
	buf_fini(&joined);
	return rc;
}

static bool sends_refresh_token(const struct grant_input *in)
{
	return in->refresh_token_len > 0 && in->provider->grant != GRANT_CLIENT;
}

/* The configured word is that of the request which renews; a login by password is always called so. */
static const char *grant_type_of(const struct grant_input *in)
{
	const struct provider *p = in->provider;

	if (p->grant == GRANT_PASSWORD && !sends_refresh_token(in))
		return grant_word(GRANT_PASSWORD);
	if (p->grant_type != NULL)
		return p->grant_type;
	return p->grant == GRANT_CLIENT ? grant_word(GRANT_CLIENT) : "refresh_token";
}

static int add_setting(struct builder *b, const char *name)
{
	struct json_object *settings = b->in->vars.settings, *v = NULL;

	if (settings == NULL || !json_object_object_get_ex(settings, name, &v) ||
		json_object_get_type(v) != json_type_string || json_object_get_string_len(v) == 0)
		return fault_set(b->f, ST_NOT_FOUND, "provider %s: the setting \"%s\" is missing",
			b->in->provider->key, name);
	return add_standard(b, name, json_object_get_string(v), (size_t)json_object_get_string_len(v));
}

/* RFC 6749: 6, 4.3.2 and 4.4.2. */
static int add_what_proves(struct builder *b)
{
	const struct grant_input *in = b->in;

	if (sends_refresh_token(in))
		return add_standard(b, "refresh_token", in->refresh_token, in->refresh_token_len);
	switch (in->provider->grant) {
	case GRANT_CODE:
		break;
	case GRANT_CLIENT:
		return 0;
	case GRANT_PASSWORD: {
		int rc = add_setting(b, "username");
		return rc == 0 ? add_setting(b, "password") : rc;
	}
	}
	return fault_set(
		b->f, ST_INVALID, "provider %s: there is no refresh token to send", in->provider->key);
}

static int add_grant(struct builder *b)
{
	const struct grant_input *in = b->in;
	const struct provider *p = in->provider;
	const char *type = grant_type_of(in);
	const char *scope = p->send_scope == SEND_SCOPE_LITERAL ? p->scope : in->scope;

	int rc = add_standard(b, "grant_type", type, strlen(type));
	if (rc == 0)
		rc = add_what_proves(b);
	if (rc == 0 && p->send_scope != SEND_SCOPE_NEVER && scope != NULL)
		rc = add_scope(b, scope);
	return rc;
}

static bool header_is_set(const struct builder *b, const char *name)
{
	for (size_t i = 0; i < b->req.n_headers; i++)
		if (str_eq_nocase(b->req.headers[i].name, strlen(b->req.headers[i].name), name))
			return true;
	return false;
}

static int add_header(struct builder *b, const char *name, const char *value, size_t n)
{
	const char *key = b->in->provider->key;

	if (!header_is_name(name) || header_is_transport(name))
		return fault_set(b->f, ST_INVALID, "provider %s: header \"%s\" cannot be set", key, name);
	if (header_is_set(b, name))
		return fault_set(
			b->f, ST_INVALID, "provider %s: header \"%s\" would be sent twice", key, name);
	if (b->req.n_headers == GRANT_MAX_HEADERS)
		return fault_set(b->f, ST_FULL, "provider %s: more than %d headers", key, GRANT_MAX_HEADERS);
	/* A line end in a value would start a header of its own. */
	if (str_has_ctl(value, n))
		return fault_set(b->f, ST_INVALID,
			"provider %s: header \"%s\" would hold a control character", key, name);

	size_t i = b->req.n_headers++;
	b->req.headers[i].name = name;
	buf_init_secret(&b->req.headers[i].value, MAX_VALUE);
	return too_long(b, buf_append(&b->req.headers[i].value, value, n), name);
}

static int add_configured_headers(struct builder *b)
{
	const struct provider *p = b->in->provider;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < p->n_headers; i++) {
		struct buf value = BUF_INIT_SECRET(MAX_VALUE);
		rc = expand(b, p->headers[i].value, TEMPLATE_VALUE, &value);
		if (rc < 0)
			fault_wrap(b->f, rc, "provider %s: header \"%s\"", p->key, p->headers[i].name);
		else
			rc = add_header(b, p->headers[i].name, buf_str(&value), value.len);
		buf_fini(&value);
	}
	return rc;
}

/* Only where the configuration did not choose: a provider may want a media type of its own. */
static int add_default_header(struct builder *b, const char *name, const char *value)
{
	return header_is_set(b, name) ? 0 : add_header(b, name, value, strlen(value));
}

static int on_auth_param(void *arg, const char *name, const char *value, size_t n)
{
	return add_standard(arg, name, value, n);
}

static int on_auth_header(void *arg, const char *name, const char *value, size_t n)
{
	return add_header(arg, name, value, n);
}

static int add_client_auth(struct builder *b)
{
	const struct provider *p = b->in->provider;
	struct clientauth_sink sink = {.param = on_auth_param, .header = on_auth_header, .arg = b};
	const char *audience = p->audience == NULL ? buf_str(&b->req.url) : p->audience;

	return clientauth_apply(p, b->in->client, audience, &sink, b->f);
}

static int write_form(struct builder *b, struct buf *out)
{
	size_t room = 0;

	for (size_t i = 0; i < b->n_params; i++)
		room += strlen(b->params[i].name) + b->params[i].value.len + strlen("=&");
	int rc = buf_reserve(out, room);
	for (size_t i = 0; rc == 0 && i < b->n_params; i++) {
		const struct param *p = &b->params[i];
		if (p->value.len == 0)
			continue;
		if (out->len > 0 && out->data[out->len - 1] != '?' && out->data[out->len - 1] != '&')
			rc = buf_putc(out, '&');
		if (rc == 0)
			rc = str_form_encode(out, p->name, strlen(p->name));
		if (rc == 0)
			rc = buf_putc(out, '=');
		if (rc == 0)
			rc = str_form_encode(out, buf_str(&p->value), p->value.len);
	}
	return rc;
}

static int write_json(struct builder *b, struct buf *out)
{
	struct jsonw w;

	jsonw_init(&w, out);
	jsonw_object(&w, NULL);
	for (size_t i = 0; i < b->n_params; i++)
		if (b->params[i].value.len > 0)
			jsonw_strn(
				&w, b->params[i].name, buf_str(&b->params[i].value), b->params[i].value.len);
	jsonw_object_end(&w);
	return jsonw_end(&w);
}

/* Does the query of the provider's own URL hold this name already? */
static bool query_has(const char *query, const char *name)
{
	size_t len = strlen(name);

	for (const char *s = query; *s != '\0';) {
		size_t n = strcspn(s, "&");
		size_t name_len = strcspn(s, "=&");
		if (name_len == len && memcmp(s, name, len) == 0)
			return true;
		s += n;
		s += *s == '&';
	}
	return false;
}

static int write_query(struct builder *b)
{
	struct buf *url = &b->req.url;
	const char *query = strchr(buf_str(url), '?');

	for (size_t i = 0; query != NULL && i < b->n_params; i++)
		if (b->params[i].value.len > 0 && query_has(query + 1, b->params[i].name))
			return fault_set(b->f, ST_INVALID,
				"provider %s: parameter \"%s\" is in the URL already", b->in->provider->key,
				b->params[i].name);
	if (query == NULL && buf_putc(url, '?') < 0)
		return too_long(b, ST_FULL, "the URL");
	return too_long(b, write_form(b, url), "the URL");
}

static bool in_query(const struct provider *p)
{
	return p->method_get || p->body_format == BODY_QUERY;
}

static int write_params(struct builder *b)
{
	const struct provider *p = b->in->provider;

	if (in_query(p))
		return write_query(b);
	int rc = p->body_format == BODY_JSON ? write_json(b, &b->req.body) : write_form(b, &b->req.body);
	return too_long(b, rc, "the request body");
}

static int add_default_headers(struct builder *b)
{
	int rc = add_default_header(b, "Accept", "application/json");

	if (rc == 0 && b->req.post)
		rc = add_default_header(b, "Content-Type",
			b->in->provider->body_format == BODY_JSON ? "application/json"
								  : "application/x-www-form-urlencoded");
	return rc;
}

/* The configuration has checked the form; what is wrong now came in with a value: its length, or where it stands. */
static int check_url(struct builder *b)
{
	struct url u;

	if (b->req.url_is_constant)
		return 0;
	int rc = blame_connection(b, url_parse(buf_str(&b->req.url), &u, b->f));
	if (rc < 0)
		return fault_wrap(b->f, rc, "provider %s: URL", b->in->provider->key);
	url_fini(&u);
	return 0;
}

static int build(struct builder *b)
{
	const struct provider *p = b->in->provider;
	const struct template *url = sends_refresh_token(b->in) ? provider_refresh_url(p) : p->token_url;

	int rc = expand(b, url, TEMPLATE_URL, &b->req.url);
	if (rc < 0)
		return fault_wrap(b->f, rc, "provider %s: URL", p->key);
	b->req.url_is_constant = template_is_constant(url) && !in_query(p);
	rc = add_grant(b);
	if (rc == 0)
		rc = add_client_auth(b);
	for (size_t i = 0; rc == 0 && i < p->n_params; i++)
		rc = add_configured(b, &p->params[i]);
	if (rc == 0)
		rc = add_configured_headers(b);
	if (rc == 0)
		rc = add_default_headers(b);
	if (rc == 0)
		rc = write_params(b);
	return rc == 0 ? check_url(b) : rc;
}

int grant_build(const struct grant_input *in, struct grant_request *out, struct fault *f)
{
	struct builder b = {.in = in, .f = f};

	b.req.post = !in->provider->method_get;
	buf_init_secret(&b.req.url, MAX_BYTES);
	buf_init_secret(&b.req.body, MAX_BYTES);
	int rc = build(&b);
	for (size_t i = 0; i < b.n_params; i++)
		buf_fini(&b.params[i].value);
	if (rc < 0) {
		grant_request_fini(&b.req);
		return rc;
	}
	*out = b.req;
	return 0;
}

void grant_request_fini(struct grant_request *r)
{
	buf_fini(&r->url);
	buf_fini(&r->body);
	for (size_t i = 0; i < r->n_headers; i++)
		buf_fini(&r->headers[i].value);
	r->n_headers = 0;
}
