/*
 * grant - the request byte for byte, in every format, and everything that must be refused.
 */
#include "unit/unit.h"

#include <json-c/json.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/grant.h"
#include "model/grant_parse.h"

#define SEED 424242

struct fixture {
	struct provider *p;
	struct client c;
	struct grant_input in;
	struct grant_request req;
	struct fault f;
};

static struct template *tmpl(const char *text)
{
	struct template *t = NULL;
	struct fault f = {0};

	ck_assert_msg(template_parse(text, &t, &f) == 0, "%s", f.text);
	return t;
}

static void add_named(struct named_template **v, size_t *n, const char *name, const char *text)
{
	*v = mem_realloc(*v, *n + 1, sizeof(**v));
	(*v)[*n] = (struct named_template){.name = mem_strdup(name), .value = tmpl(text)};
	++*n;
}

#define PARAM(x, name, text) add_named(&(x)->p->params, &(x)->p->n_params, (name), (text))
#define RENAME(x, name, text) add_named(&(x)->p->rename_params, &(x)->p->n_rename_params, (name), (text))
#define HEADER(x, name, text) add_named(&(x)->p->headers, &(x)->p->n_headers, (name), (text))

static void setup(struct fixture *x, const char *url, enum client_auth auth)
{
	static char app[] = "*", key[] = "acme", id[] = "id 1";

	*x = (struct fixture){.c = {.application = app, .provider = key, .client_id = id, .auth = auth}};
	x->p = mem_alloc(sizeof(*x->p));
	x->p->key = mem_strdup(key);
	x->p->token_url = tmpl(url);
	x->p->grant_type = mem_strdup("refresh_token");
	buf_init_secret(&x->c.secret, 1024);
	ck_ok(buf_puts(&x->c.secret, "s&t"));
	x->in = (struct grant_input){
		.provider = x->p, .client = &x->c, .refresh_token = "R+T/=", .refresh_token_len = 5};
}

static void done(struct fixture *x)
{
	grant_request_fini(&x->req);
	provider_free(x->p);
	buf_fini(&x->c.secret);
	json_object_put(x->in.vars.settings);
}

static const char *header(const struct fixture *x, const char *name)
{
	for (size_t i = 0; i < x->req.n_headers; i++)
		if (strcmp(x->req.headers[i].name, name) == 0)
			return buf_str(&x->req.headers[i].value);
	return "";
}

static void build(struct fixture *x)
{
	grant_request_fini(&x->req);
	int rc = grant_build(&x->in, &x->req, &x->f);
	ck_assert_msg(rc == 0, "%d %s", rc, x->f.text);
}

/* A failure with its words; the secrets must not be among them. */
static void refused(struct fixture *x, int code, const char *what)
{
	struct grant_request untouched = x->req;

	ck_assert_int_eq(grant_build(&x->in, &x->req, &x->f), code);
	ck_assert_msg(strstr(x->f.text, what) != NULL && strstr(x->f.text, "acme") != NULL, "%s", x->f.text);
	ck_assert_ptr_null(strstr(x->f.text, "R+T"));
	ck_assert_ptr_null(strstr(x->f.text, "s&t"));
	ck_assert_int_eq(memcmp(&untouched, &x->req, sizeof(untouched)), 0);
}

START_TEST(form_with_basic)
{
	struct fixture x;

	setup(&x, "https://as.example/token?tenant=1", CLIENT_AUTH_BASIC);
	build(&x);
	ck_assert(x.req.post);
	ck_assert_str_eq(buf_str(&x.req.url), "https://as.example/token?tenant=1");
	ck_assert_str_eq(buf_str(&x.req.body), "grant_type=refresh_token&refresh_token=R%2BT%2F%3D");
	ck_assert_str_eq(header(&x, "Accept"), "application/json");
	ck_assert_str_eq(header(&x, "Content-Type"), "application/x-www-form-urlencoded");
	ck_assert_str_eq(header(&x, "Authorization"), "Basic aWQrMTpzJTI2dA==");
	ck_assert_uint_eq(x.req.n_headers, 3);
	ck_assert(x.req.url.secret && x.req.body.secret && x.req.headers[0].value.secret);
	done(&x);
}
END_TEST

START_TEST(form_with_post)
{
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_POST);
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.body),
		"grant_type=refresh_token&refresh_token=R%2BT%2F%3D&client_id=id+1&client_secret=s%26t");
	ck_assert_str_eq(header(&x, "Authorization"), "");
	done(&x);
}
END_TEST

START_TEST(json_body)
{
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_POST);
	x.p->body_format = BODY_JSON;
	x.in.refresh_token = "R\"\\/\xc3\xa9";
	x.in.refresh_token_len = strlen(x.in.refresh_token);
	PARAM(&x, "audience", "api");
	PARAM(&x, "empty", "");
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.body), "{\"grant_type\":\"refresh_token\",\"refresh_token\":"
					       "\"R\\\"\\\\/\xc3\xa9\",\"client_id\":\"id 1\","
					       "\"client_secret\":\"s&t\",\"audience\":\"api\"}");
	ck_assert_str_eq(header(&x, "Content-Type"), "application/json");
	done(&x);
}
END_TEST

START_TEST(query_and_get)
{
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	x.p->body_format = BODY_QUERY;
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.url),
		"https://as.example/token?grant_type=refresh_token&refresh_token=R%2BT%2F%3D&client_id=id+1");
	ck_assert_uint_eq(x.req.body.len, 0);
	ck_assert(x.req.post);
	ck_assert_str_eq(header(&x, "Content-Type"), "application/x-www-form-urlencoded");
	done(&x);

	setup(&x, "https://as.example/token?a=1", CLIENT_AUTH_NONE);
	x.p->method_get = true;
	x.p->body_format = BODY_JSON;
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.url),
		"https://as.example/"
		"token?a=1&grant_type=refresh_token&refresh_token=R%2BT%2F%3D&client_id=id+1");
	ck_assert(!x.req.post);
	ck_assert_uint_eq(x.req.body.len, 0);
	ck_assert_str_eq(header(&x, "Content-Type"), "");
	done(&x);
}
END_TEST

START_TEST(query_never_repeats_the_urls_own)
{
	struct fixture x;

	setup(&x, "https://as.example/token?a=1&client_id=x", CLIENT_AUTH_NONE);
	x.p->body_format = BODY_QUERY;
	refused(&x, ST_INVALID, "\"client_id\" is in the URL already");
	done(&x);
	setup(&x, "https://as.example/token?refresh_token", CLIENT_AUTH_NONE);
	x.p->body_format = BODY_QUERY;
	refused(&x, ST_INVALID, "\"refresh_token\" is in the URL already");
	done(&x);
	setup(&x, "https://as.example/token?client_ids=1&xclient_id=2&", CLIENT_AUTH_NONE);
	x.p->body_format = BODY_QUERY;
	build(&x);
	ck_assert_ptr_nonnull(strstr(buf_str(&x.req.url), "&xclient_id=2&grant_type="));
	done(&x);
}
END_TEST

START_TEST(params_omit_and_rename)
{
	struct fixture x;

	/* Basecamp's way: type=refresh, no grant_type; TikTok's: client_key. */
	setup(&x, "https://as.example/token", CLIENT_AUTH_POST);
	strlist_add(&x.p->omit_params, "grant_type");
	PARAM(&x, "type", "refresh");
	RENAME(&x, "client_id", "client_key");
	RENAME(&x, "refresh_token", "rt");
	build(&x);
	ck_assert_str_eq(
		buf_str(&x.req.body), "rt=R%2BT%2F%3D&client_key=id+1&client_secret=s%26t&type=refresh");
	done(&x);

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	mem_free(x.p->grant_type);
	x.p->grant_type = mem_strdup("");
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.body), "refresh_token=R%2BT%2F%3D&client_id=id+1");
	mem_free(x.p->grant_type);
	x.p->grant_type = NULL;
	build(&x);
	ck_assert_str_eq(
		buf_str(&x.req.body), "grant_type=refresh_token&refresh_token=R%2BT%2F%3D&client_id=id+1");
	done(&x);
}
END_TEST

START_TEST(configured_params_replace_and_never_repeat)
{
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	PARAM(&x, "client_id", "other");
	PARAM(&x, "x", "1");
	PARAM(&x, "x", "2");
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.body),
		"grant_type=refresh_token&refresh_token=R%2BT%2F%3D&client_id=other&x=2");
	PARAM(&x, "client_id", "");
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.body), "grant_type=refresh_token&refresh_token=R%2BT%2F%3D&x=2");
	done(&x);

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	RENAME(&x, "client_id", "refresh_token");
	refused(&x, ST_INVALID, "\"refresh_token\" would be sent twice");
	done(&x);
}
END_TEST

START_TEST(scope_rules)
{
	static char literal[] = "  a  b c ", comma[] = ",", none[] = "";
	static const struct {
		enum send_scope how;
		const char *stored;
		char *literal, *separator;
		const char *want;
	} rows[] = {
		{SEND_SCOPE_NEVER, "x y", literal, NULL, ""},
		{SEND_SCOPE_STORED, "x y", literal, NULL, "&scope=x+y"},
		{SEND_SCOPE_STORED, NULL, literal, NULL, ""},
		{SEND_SCOPE_STORED, "", literal, NULL, ""},
		{SEND_SCOPE_STORED, "   ", literal, NULL, ""},
		{SEND_SCOPE_STORED, "x,y", literal, comma, "&scope=x%2Cy"},
		{SEND_SCOPE_LITERAL, "x y", literal, NULL, "&scope=a+b+c"},
		{SEND_SCOPE_LITERAL, "x y", literal, none, "&scope=a+b+c"},
		{SEND_SCOPE_LITERAL, "x y", literal, comma, "&scope=a%2Cb%2Cc"},
		{SEND_SCOPE_LITERAL, "x y", NULL, NULL, ""},
	};
	struct fixture x;
	char want[128];

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		setup(&x, "https://as.example/token", CLIENT_AUTH_BASIC);
		x.p->send_scope = rows[i].how;
		x.p->scope = rows[i].literal == NULL ? NULL : mem_strdup(rows[i].literal);
		x.p->scope_separator = rows[i].separator == NULL ? NULL : mem_strdup(rows[i].separator);
		x.in.scope = rows[i].stored;
		build(&x);
		snprintf(want, sizeof(want), "grant_type=refresh_token&refresh_token=R%%2BT%%2F%%3D%s",
			rows[i].want);
		ck_assert_msg(
			strcmp(buf_str(&x.req.body), want) == 0, "row %zu: %s", i, buf_str(&x.req.body));
		done(&x);
	}
}
END_TEST

START_TEST(templates_in_url_params_and_headers)
{
	struct fixture x;

	setup(&x, "https://{settings.subdomain}.example/token", CLIENT_AUTH_NONE);
	PARAM(&x, "company", "{settings.company}");
	HEADER(&x, "X-Tenant", "t-{settings.subdomain}");
	refused(&x, ST_NOT_FOUND, "subdomain");
	x.in.vars.settings = json_tokener_parse("{\"subdomain\":\"a1\"}");
	refused(&x, ST_NOT_FOUND, "company");
	json_object_put(x.in.vars.settings);
	x.in.vars.settings = json_tokener_parse("{\"subdomain\":\"a1\",\"company\":\"Ge & Co\"}");
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.url), "https://a1.example/token");
	ck_assert_ptr_nonnull(strstr(buf_str(&x.req.body), "&company=Ge+%26+Co"));
	ck_assert_str_eq(header(&x, "X-Tenant"), "t-a1");
	json_object_put(x.in.vars.settings);
	x.in.vars.settings = json_tokener_parse("{\"subdomain\":\"evil.example/\",\"company\":\"x\"}");
	grant_request_fini(&x.req);
	refused(&x, ST_NOT_FOUND, "URL");
	json_object_put(x.in.vars.settings);
	x.in.vars.settings = json_tokener_parse("{\"subdomain\":\"a\",\"company\":\"x\\r\\ny\"}");
	refused(&x, ST_NOT_FOUND, "company");
	done(&x);
}
END_TEST

/* ST_INVALID would be a fault of the definition, and stop all others of the provider. */
START_TEST(a_url_that_a_value_breaks_is_that_connections_trouble)
{
	static const char *const bad[] = {"{\"subdomain\":\"-a\"}",
		"{\"subdomain\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}"};
	char token[9000];
	struct fixture x;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		setup(&x, "https://{settings.subdomain}.example.com/token", CLIENT_AUTH_NONE);
		x.in.vars.settings = json_tokener_parse(bad[i]);
		refused(&x, ST_NOT_FOUND, "URL");
		done(&x);
	}
	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	x.p->body_format = BODY_QUERY;
	memset(token, 'r', sizeof(token));
	x.in.refresh_token = token;
	x.in.refresh_token_len = sizeof(token);
	refused(&x, ST_NOT_FOUND, "URL");
	done(&x);
}
END_TEST

START_TEST(refresh_url_goes_before_token_url)
{
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	x.p->refresh_url = tmpl("https://as.example/refresh?x=1");
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.url), "https://as.example/refresh?x=1");
	done(&x);
}
END_TEST

START_TEST(client_credentials_in_every_way)
{
	static const char form[] = "grant_type=client_credentials";
	static const struct {
		enum client_auth auth;
		const char *rest, *authorization;
	} cases[] = {
		{CLIENT_AUTH_BASIC, "", "Basic aWQrMTpzJTI2dA=="},
		{CLIENT_AUTH_POST, "&client_id=id+1&client_secret=s%26t", ""},
		{CLIENT_AUTH_TLS, "&client_id=id+1", ""},
		{CLIENT_AUTH_NONE, "&client_id=id+1", ""},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (int token = 0; token < 2; token++) {
			struct fixture x;
			setup(&x, "https://as.example/token", cases[i].auth);
			x.p->grant = GRANT_CLIENT;
			x.p->refresh_url = tmpl("https://as.example/refresh");
			mem_free(x.p->grant_type);
			x.p->grant_type = NULL;
			if (token == 0)
				x.in.refresh_token_len = 0; /* and one that is there is not sent */
			build(&x);
			ck_assert_str_eq(buf_str(&x.req.url), "https://as.example/token");
			ck_assert_int_eq(strncmp(buf_str(&x.req.body), form, strlen(form)), 0);
			ck_assert_str_eq(buf_str(&x.req.body) + strlen(form), cases[i].rest);
			ck_assert_str_eq(header(&x, "Authorization"), cases[i].authorization);
			done(&x);
		}
	}
}
END_TEST

static struct signer *new_signer(void)
{
	char path[] = "/tmp/test-grant-XXXXXX";
	FILE *file = fdopen(mkstemp(path), "w");
	EVP_PKEY *key = EVP_EC_gen("P-256");
	struct signer *signer = NULL;
	struct fault f = {0};

	ck_assert_int_eq(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
	ck_assert_int_eq(fclose(file), 0);
	EVP_PKEY_free(key);
	int rc = signer_load(path, SIGN_ES256, &signer, &f);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_msg(rc == 0, "%s", f.text);
	return signer;
}

START_TEST(other_grants_with_an_assertion)
{
	static const char settings[] = "{\"username\":\"u\",\"password\":\"p\"}";
	static const char *const begins[] = {[GRANT_CLIENT] = "grant_type=client_credentials&client_id=id+1&",
		[GRANT_PASSWORD] = "grant_type=password&username=u&password=p&client_id=id+1&"};
	struct signer *signer = new_signer();

	for (int g = GRANT_CLIENT; g <= GRANT_PASSWORD; g++) {
		struct fixture x;
		setup(&x, "https://as.example/token", CLIENT_AUTH_JWT);
		x.c.signer = signer;
		x.c.alg = SIGN_ES256;
		x.p->grant = (enum grant)g;
		mem_free(x.p->grant_type);
		x.p->grant_type = NULL;
		x.in.refresh_token_len = 0;
		x.in.vars.settings = grant_parse_json(settings, strlen(settings));
		build(&x);
		const char *body = buf_str(&x.req.body);
		ck_assert_msg(strncmp(body, begins[g], strlen(begins[g])) == 0, "%.200s", body);
		ck_assert_ptr_nonnull(strstr(body, "client_assertion_type=urn%3Aietf%3A"));
		ck_assert_ptr_nonnull(strstr(body, "&client_assertion=ey"));
		ck_assert_str_eq(header(&x, "Authorization"), "");
		done(&x);
	}
	signer_unref(signer);
}
END_TEST

START_TEST(client_credentials_with_scope_params_and_a_word_of_its_own)
{
	static char scope[] = "a b";
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_POST);
	x.p->grant = GRANT_CLIENT;
	mem_free(x.p->grant_type);
	x.p->grant_type = mem_strdup("account_credentials");
	x.p->send_scope = SEND_SCOPE_LITERAL;
	x.p->scope = mem_strdup(scope);
	x.p->body_format = BODY_JSON;
	x.in.refresh_token_len = 0;
	x.in.vars.settings = grant_parse_json("{\"id\":\"theirs\"}", 15);
	PARAM(&x, "client_id", "{settings.id}");
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.body), "{\"grant_type\":\"account_credentials\",\"scope\":\"a b\","
					       "\"client_id\":\"theirs\",\"client_secret\":\"s&t\"}");
	done(&x);
}
END_TEST

START_TEST(password_is_sent_until_there_is_a_refresh_token)
{
	static const struct {
		enum client_auth auth;
		const char *rest, *authorization;
	} cases[] = {
		{CLIENT_AUTH_BASIC, "", "Basic aWQrMTpzJTI2dA=="},
		{CLIENT_AUTH_POST, "&client_id=id+1&client_secret=s%26t", ""},
		{CLIENT_AUTH_TLS, "&client_id=id+1", ""},
		{CLIENT_AUTH_NONE, "&client_id=id+1", ""},
	};
	static const char login[] = "grant_type=password&username=m%C3%A9&password=p%26w+%3D";
	static const char renewal[] = "grant_type=refresh_token&refresh_token=R%2BT%2F%3D";
	static const char settings[] = "{\"username\":\"m\xc3\xa9\",\"password\":\"p&w =\"}";

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fixture x;
		setup(&x, "https://as.example/token", cases[i].auth);
		x.p->grant = GRANT_PASSWORD;
		x.p->refresh_url = tmpl("https://as.example/refresh");
		x.in.vars.settings = grant_parse_json(settings, strlen(settings));
		build(&x);
		ck_assert_str_eq(buf_str(&x.req.url), "https://as.example/refresh");
		ck_assert_int_eq(strncmp(buf_str(&x.req.body), renewal, strlen(renewal)), 0);
		ck_assert_str_eq(buf_str(&x.req.body) + strlen(renewal), cases[i].rest);
		x.in.refresh_token_len = 0;
		build(&x);
		ck_assert_str_eq(buf_str(&x.req.url), "https://as.example/token");
		ck_assert_int_eq(strncmp(buf_str(&x.req.body), login, strlen(login)), 0);
		ck_assert_str_eq(buf_str(&x.req.body) + strlen(login), cases[i].rest);
		ck_assert_str_eq(header(&x, "Authorization"), cases[i].authorization);
		ck_assert(x.req.body.secret);
		done(&x);
	}
}
END_TEST

START_TEST(what_a_grant_needs_is_named)
{
	static const char *const settings[] = {"{\"username\":\"u\"}", "{\"username\":\"u\",\"password\":\"\"}",
		"{\"username\":\"u\",\"password\":7}"};
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_BASIC);
	x.in.refresh_token_len = 0;
	refused(&x, ST_INVALID, "no refresh token");
	x.p->grant = GRANT_PASSWORD;
	refused(&x, ST_NOT_FOUND, "\"username\" is missing");
	for (size_t i = 0; i < 3; i++) {
		x.in.vars.settings = grant_parse_json(settings[i], strlen(settings[i]));
		refused(&x, ST_NOT_FOUND, "\"password\" is missing");
		grant_parse_free(x.in.vars.settings);
	}
	x.in.vars.settings = NULL;
	done(&x);
}
END_TEST

START_TEST(headers_are_guarded)
{
	static const struct {
		const char *name, *value, *what;
	} rows[] = {
		{"Host", "evil.example", "cannot be set"},
		{"content-length", "0", "cannot be set"},
		{"Transfer-Encoding", "chunked", "cannot be set"},
		{"keep-alive", "1", "cannot be set"},
		{"Proxy-Connection", "close", "cannot be set"},
		{"X Y", "1", "cannot be set"},
		{"X:Y", "1", "cannot be set"},
		{"", "1", "cannot be set"},
		{"authorization", "Bearer x", "sent twice"},
	};
	struct fixture x;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		setup(&x, "https://as.example/token", CLIENT_AUTH_BASIC);
		HEADER(&x, rows[i].name, rows[i].value);
		refused(&x, ST_INVALID, rows[i].what);
		done(&x);
	}
	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	HEADER(&x, "accept", "application/vnd.acme+json");
	HEADER(&x, "Authorization", "Token abc");
	HEADER(&x, "X-{settings.a}", "{settings.missing}");
	refused(&x, ST_NOT_FOUND, "header");
	done(&x);
	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	HEADER(&x, "accept", "application/vnd.acme+json");
	HEADER(&x, "Authorization", "Token abc");
	build(&x);
	ck_assert_str_eq(header(&x, "accept"), "application/vnd.acme+json");
	ck_assert_str_eq(header(&x, "Accept"), "");
	ck_assert_str_eq(header(&x, "Authorization"), "Token abc");
	done(&x);
}
END_TEST

START_TEST(limits)
{
	struct fixture x;
	char name[16];

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	for (int i = 0; i < 70; i++) {
		snprintf(name, sizeof(name), "p%d", i);
		PARAM(&x, name, "1");
	}
	refused(&x, ST_FULL, "more than 64 parameters");
	done(&x);
	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	for (int i = 0; i < 30; i++) {
		snprintf(name, sizeof(name), "X-%d", i);
		HEADER(&x, name, "1");
	}
	refused(&x, ST_FULL, "more than 24 headers");
	done(&x);

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	char *big = mem_alloc(300001);
	memset(big, 'a', 300000);
	x.in.refresh_token = big;
	x.in.refresh_token_len = 300000;
	refused(&x, ST_FULL, "refresh_token");
	x.in.refresh_token_len = 0;
	refused(&x, ST_INVALID, "no refresh token");
	x.in.refresh_token_len = 5;
	x.p->send_scope = SEND_SCOPE_STORED;
	x.in.scope = big;
	refused(&x, ST_FULL, "scope");
	mem_free(big);
	done(&x);

	setup(&x, "https://as.example/token", CLIENT_AUTH_POST);
	buf_reset(&x.c.secret);
	refused(&x, ST_INVALID, "no secret");
	done(&x);
}
END_TEST

START_TEST(bytes_that_json_cannot_carry_are_refused)
{
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
	x.p->body_format = BODY_JSON;
	x.in.refresh_token = "R\xff";
	x.in.refresh_token_len = 2;
	refused(&x, ST_INVALID, "request body");
	x.p->body_format = BODY_FORM;
	build(&x);
	ck_assert_str_eq(buf_str(&x.req.body), "grant_type=refresh_token&refresh_token=R%FF&client_id=id+1");
	done(&x);
}
END_TEST

START_TEST(missing_key_for_an_assertion_is_a_fault)
{
	struct fixture x;

	setup(&x, "https://as.example/token", CLIENT_AUTH_JWT);
	refused(&x, ST_INVALID, "no private key");
	done(&x);
}
END_TEST

static void random_token(char *out, size_t n)
{
	for (size_t i = 0; i < n; i++)
		out[i] = (char)(0x20 + sys_random_below(0x5f));
	out[n] = '\0';
}

/* The value of a form field, decoded; the reading is not the code that wrote it. */
static void form_field(const char *body, const char *name, struct buf *out)
{
	char key[32];

	snprintf(key, sizeof(key), "&%s=", name);
	const char *s = strstr(body, key);
	ck_assert_ptr_nonnull(s);
	s += strlen(key);
	ck_ok(str_percent_decode(out, s, strcspn(s, "&"), true));
}

START_TEST(any_refresh_token_arrives_byte_for_byte)
{
	sys_set(sys_virtual(SEED));
	for (int i = 0; i < 2000; i++) {
		struct fixture x;
		char token[301];
		size_t n = 1 + (size_t)sys_random_below(300);
		random_token(token, n);
		setup(&x, "https://as.example/token", CLIENT_AUTH_NONE);
		x.in.refresh_token = token;
		x.in.refresh_token_len = n;
		build(&x);
		struct buf got = BUF_INIT_SECRET(1024);
		form_field(buf_str(&x.req.body), "refresh_token", &got);
		ck_assert_msg(buf_equals(&got, token, n), "seed %d round %d", SEED, i);
		x.p->body_format = BODY_JSON;
		build(&x);
		struct json_object *o = grant_parse_json(buf_str(&x.req.body), x.req.body.len), *rt = NULL;
		ck_assert(json_object_object_get_ex(o, "refresh_token", &rt));
		ck_assert_msg(strcmp(json_object_get_string(rt), token) == 0, "seed %d round %d", SEED, i);
		grant_parse_free(o);
		buf_fini(&got);
		done(&x);
	}
	sys_set(NULL);
}
END_TEST

START_TEST(words)
{
	ck_assert_str_eq(outcome_word(OUTCOME_REFRESHED), "refreshed");
	ck_assert_str_eq(outcome_word(OUTCOME_MALFORMED), "malformed");
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("grant");
	TCase *t = tcase_create("grant");

	tcase_set_timeout(t, 60);
	unit_add(t, form_with_basic);
	unit_add(t, form_with_post);
	unit_add(t, json_body);
	unit_add(t, query_and_get);
	unit_add(t, query_never_repeats_the_urls_own);
	unit_add(t, params_omit_and_rename);
	unit_add(t, configured_params_replace_and_never_repeat);
	unit_add(t, scope_rules);
	unit_add(t, templates_in_url_params_and_headers);
	unit_add(t, a_url_that_a_value_breaks_is_that_connections_trouble);
	unit_add(t, refresh_url_goes_before_token_url);
	unit_add(t, client_credentials_in_every_way);
	unit_add(t, other_grants_with_an_assertion);
	unit_add(t, client_credentials_with_scope_params_and_a_word_of_its_own);
	unit_add(t, password_is_sent_until_there_is_a_refresh_token);
	unit_add(t, what_a_grant_needs_is_named);
	unit_add(t, headers_are_guarded);
	unit_add(t, limits);
	unit_add(t, bytes_that_json_cannot_carry_are_refused);
	unit_add(t, missing_key_for_an_assertion_is_a_fault);
	unit_add(t, any_refresh_token_arrives_byte_for_byte);
	unit_add(t, words);
	suite_add_tcase(s, t);
	return s;
}
