/*
 * conf_check - what only the whole configuration can tell: references, combinations, and the files that it
 * names.
 *
 * Runs also when values were refused already, to find the rest in the same run: a field may be NULL or zero
 * here and is then passed over. It opens key and secret files and touches nothing else.
 */
#include "model/conf_build.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/conf_type_impl.h"

#define SECOND_US INT64_C(1000000)
#define LEASE_SPARE_US (30 * SECOND_US)
#define STRICT_TIMEOUT_US (30 * SECOND_US)
#define SECRET_BYTES ((size_t)64 * 1024)
#define PEM_BYTES ((size_t)4 * 1024 * 1024)

/* The value of a key of a record, or the record where it is not set. */
static const struct conf_node *value_of(const struct conf_node *record, const char *key)
{
	const struct conf_node *n = conf_node_get(record, key);

	return n != NULL ? n : record;
}

/* The first of two root options that is set, or the main file. */
static const struct conf_node *either(const struct conf_build *b, const char *first, const char *second)
{
	const struct conf_node *n = conf_build_where(b, first);

	if (n == NULL)
		n = conf_build_where(b, second);
	return n != NULL ? n : b->sources[0].root;
}

/* --- files */

/* No one beside the owner and a reading group may know a secret; what cannot be looked at is the opener's to
 * report. */
static bool check_mode(struct conf_build *b, const struct conf_node *at, const char *key, const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode) || (st.st_mode & (S_IWGRP | S_IRWXO)) == 0)
		return true;
	conf_error_at(b->errors, at,
		"%s: %s has mode %04o: others must have no access and the group must not write", key, path,
		(unsigned)(st.st_mode & 07777));
	return false;
}

/* The whole file without the newline at its end; false when it was reported. */
static bool read_secret(
	struct conf_build *b, const struct conf_node *at, const char *key, const char *path, struct buf *out)
{
	struct fault f = { .code = 0 };

	if (!check_mode(b, at, key, path))
		return false;
	if (buf_read_file(out, path, &f) < 0) {
		conf_error_at(b->errors, at, "%s: %s", key, f.text);
		return false;
	}
	if (out->len > 0 && out->data[out->len - 1] == '\n')
		buf_truncate(out, out->len - 1);
	if (out->len > 0 && out->data[out->len - 1] == '\r')
		buf_truncate(out, out->len - 1);
	if (out->len == 0) {
		conf_error_at(b->errors, at, "%s: %s is empty", key, path);
		return false;
	}
	if (str_has_ctl(out->data, out->len)) {
		conf_error_at(
			b->errors, at, "%s: %s has more than one line, or control characters", key, path);
		buf_reset(out);
		return false;
	}
	return true;
}

/* Only that it can be read and is not empty: what is in it is judged by the library that uses it. */
static void check_readable(
	struct conf_build *b, const struct conf_node *at, const char *key, const char *path)
{
	struct buf content = BUF_INIT_SECRET(PEM_BYTES);
	struct fault f = { .code = 0 };

	if (buf_read_file(&content, path, &f) < 0)
		conf_error_at(b->errors, at, "%s: %s", key, f.text);
	else if (content.len == 0)
		conf_error_at(b->errors, at, "%s: %s is empty", key, path);
	buf_fini(&content);
}

/* --- URLs */

static void check_scheme(struct conf_build *b, const struct conf_node *at, const char *key, const char *text)
{
	struct url u;

	if (url_parse(text, &u, NULL) < 0)
		return;
	if (strcmp(u.scheme, "http") == 0) {
		if (b->conf->insecure_http != INSECURE_HTTP_LOOPBACK)
			conf_error_at(b->errors, at,
				"%s: must be https:// (insecure_http: loopback allows http:// to loopback "
				"hosts)",
				key);
		else if (!url_is_loopback(&u))
			conf_error_at(b->errors, at, "%s: http:// is allowed to loopback hosts only", key);
	}
	url_fini(&u);
}

static void check_template_scheme(
	struct conf_build *b, const struct conf_node *at, const char *key, const struct template *t)
{
	struct buf outline = BUF_INIT(8000);

	if (t != NULL && template_outline(t, "x", &outline) == 0)
		check_scheme(b, at, key, buf_str(&outline));
	buf_fini(&outline);
}

/* --- the sections */

static void check_instance(struct conf_build *b)
{
	char host[64] = "";

	if (b->conf->instance != NULL || conf_build_where(b, "instance") != NULL)
		return;
	/* A longer name is cut by the call, which then need not end it. */
	if (gethostname(host, sizeof(host) - 1) < 0 || !conf_is_word(host))
		conf_error_add(b->errors, b->sources[0].file, 0, 0,
			"instance: the host name \"%.60s\" cannot serve as the name; set one", host);
	else
		b->conf->instance = mem_strdup(host);
}

static bool is_set(const struct listen_addr *a)
{
	return a->is_unix || a->host[0] != '\0';
}

static void check_listeners(struct conf_build *b)
{
	struct conf *c = b->conf;
	const struct conf_node *cert = conf_build_where(b, "api.tls.cert_file"),
			       *key = conf_build_where(b, "api.tls.key_file");

	c->api.on = is_set(&c->api.listen);
	c->metrics.on = is_set(&c->metrics.listen);
	bool same = c->api.listen.is_unix ? c->metrics.listen.is_unix &&
						    strcmp(c->api.listen.path, c->metrics.listen.path) == 0
					  : !c->metrics.listen.is_unix && c->api.listen.port != 0 &&
						    c->api.listen.port == c->metrics.listen.port &&
						    strcmp(c->api.listen.host, c->metrics.listen.host) == 0;
	if (c->api.on && c->metrics.on && same)
		conf_error_at(b->errors, conf_build_where(b, "metrics.listen"),
			"metrics.listen: is api.listen's address already");

	if (cert != NULL && key == NULL)
		conf_error_at(b->errors, cert, "api.tls.cert_file: needs api.tls.key_file");
	if (key != NULL && cert == NULL)
		conf_error_at(b->errors, key, "api.tls.key_file: needs api.tls.cert_file");
	if (cert != NULL && conf_build_where(b, "api.listen") == NULL)
		conf_error_at(b->errors, cert, "api.tls.cert_file: needs api.listen");
	if (c->api.cert_file != NULL)
		check_readable(b, cert, "api.tls.cert_file", c->api.cert_file);
	if (c->api.key_file != NULL && check_mode(b, key, "api.tls.key_file", c->api.key_file))
		check_readable(b, key, "api.tls.key_file", c->api.key_file);
}

static void check_keyring(struct conf_build *b)
{
	struct conf *c = b->conf;
	const struct conf_node *at = conf_build_where(b, "keyring_file");
	struct fault f = { .code = 0 };

	if (c->keyring_file == NULL || !check_mode(b, at, "keyring_file", c->keyring_file))
		return;
	if (keyring_load(c->keyring_file, &c->keyring, &f) < 0)
		conf_error_at(b->errors, at, "keyring_file: %s", f.text);
}

/* A lease that ended while the answer was on its way would let a second daemon present the same token. */
static void check_lease(struct conf_build *b, const struct conf_node *at, const char *key, int64_t timeout_us)
{
	char lease[32], need[32];

	if (timeout_us == 0 || b->conf->refresh.lease_us == 0 ||
		b->conf->refresh.lease_us >= timeout_us + LEASE_SPARE_US)
		return;
	str_format_duration(b->conf->refresh.lease_us, lease);
	str_format_duration(timeout_us + LEASE_SPARE_US, need);
	conf_error_at(b->errors, at, "%s: refresh.lease (%s) must be at least this and 30s more (%s)", key,
		lease, need);
}

static void check_refresh(struct conf_build *b)
{
	const struct conf *c = b->conf;

	check_lease(
		b, either(b, "refresh.timeout", "refresh.lease"), "refresh.timeout", c->refresh.timeout_us);
	if (c->refresh.timeout_us != 0 && c->refresh.connect_timeout_us > c->refresh.timeout_us)
		conf_error_at(b->errors, either(b, "refresh.connect_timeout", "refresh.timeout"),
			"refresh.connect_timeout: must not be longer than refresh.timeout");
	if (c->refresh.horizon_us != 0 && c->refresh.horizon_us < c->refresh.poll_interval_us)
		conf_error_at(b->errors, either(b, "refresh.horizon", "refresh.poll_interval"),
			"refresh.horizon: must not be shorter than refresh.poll_interval");
}

/* --- webhooks */

static void check_webhook(struct conf_build *b, size_t i)
{
	struct conf_webhook *w = b->webhooks.v[i].record;
	const struct conf_node *n = b->webhooks.v[i].node;
	struct buf secret = BUF_INIT_SECRET(SECRET_BYTES);
	struct fault f = { .code = 0 };

	for (size_t k = 0; k < i && w->name != NULL; k++) {
		const struct conf_webhook *first = b->webhooks.v[k].record;
		if (first->name == NULL || strcmp(first->name, w->name) != 0)
			continue;
		conf_error_at(b->errors, value_of(n, "name"), "webhook \"%s\" is defined already in %s:%u",
			w->name, first->file, first->line);
		break;
	}
	if (w->url != NULL)
		check_scheme(b, value_of(n, "url"), "url", w->url);
	const struct conf_node *at = value_of(n, "secret_file");
	if (w->secret_file != NULL && read_secret(b, at, "secret_file", w->secret_file, &secret) &&
		event_secret_parse(buf_str(&secret), secret.len, &w->secret, &f) < 0)
		conf_error_at(b->errors, at, "secret_file: %s: %s", w->secret_file, f.text);
	buf_fini(&secret);
}

/* --- providers */

static void check_captures_of(struct conf_build *b, const struct provider *p, const struct conf_node *at,
	const char *key, const struct template *t)
{
	const char *source, *name;

	for (size_t i = 0; t != NULL && (name = template_variable(t, i, &source)) != NULL; i++) {
		bool known = strcmp(source, "capture") != 0;
		for (size_t k = 0; k < p->n_capture && !known; k++)
			known = strcmp(p->capture[k].name, name) == 0;
		if (!known)
			conf_error_at(b->errors, at, "%s: {capture.%s} is not among the provider's captures",
				key, name);
	}
}

static void check_templates(struct conf_build *b, const struct provider *p, const struct conf_node *n)
{
	check_template_scheme(b, value_of(n, "token_url"), "token_url", p->token_url);
	check_template_scheme(b, value_of(n, "refresh_url"), "refresh_url", p->refresh_url);
	const struct conf_node *capture = conf_node_get(n, "capture");
	if (capture != NULL && p->n_capture != capture->n)
		return; /* refused already */
	check_captures_of(b, p, value_of(n, "token_url"), "token_url", p->token_url);
	check_captures_of(b, p, value_of(n, "refresh_url"), "refresh_url", p->refresh_url);
	for (size_t i = 0; i < p->n_params; i++)
		check_captures_of(b, p, value_of(n, "params"), "params", p->params[i].value);
	for (size_t i = 0; i < p->n_headers; i++)
		check_captures_of(b, p, value_of(n, "headers"), "headers", p->headers[i].value);
}

static void check_times(struct conf_build *b, struct provider *p, const struct conf_node *n)
{
	bool own = p->timeout_us != 0;
	int64_t timeout = own ? p->timeout_us : b->conf->refresh.timeout_us;

	if (own)
		check_lease(b, value_of(n, "timeout"), "timeout", timeout);
	if (p->rotation == ROTATION_STRICT && p->auth_type == AUTH_OAUTH2 && timeout != 0 &&
		timeout < STRICT_TIMEOUT_US)
		conf_error_at(b->errors, value_of(n, own ? "timeout" : "rotation"),
			"rotation strict needs %s of at least 30s: giving up on an answer early would lose "
			"tokens",
			own ? "a timeout" : "a refresh.timeout");
	if (p->connect_timeout_us > timeout && timeout != 0)
		conf_error_at(b->errors, value_of(n, "connect_timeout"),
			"connect_timeout: must not be longer than the timeout");
	if (p->connect_timeout_us == 0)
		p->connect_timeout_us = b->conf->refresh.connect_timeout_us < timeout
						? b->conf->refresh.connect_timeout_us
						: timeout;
	if (p->default_expires_in_us > p->max_expires_in_us && p->max_expires_in_us != 0)
		conf_error_at(b->errors, value_of(n, "default_expires_in"),
			"default_expires_in: must not be longer than max_expires_in");
}

/* `at` has a value that is of use only with another one, or the other way round. */
static void check_pair(struct conf_build *b, const struct conf_node *n, bool condition, const char *word,
	bool given, const char *key)
{
	const struct conf_node *value = conf_node_get(n, key);

	if (value != NULL && value->kind == CONF_BAD)
		return;
	if (condition && !given && value == NULL)
		conf_error_at(b->errors, n, "%s needs %s", word, key);
	else if (!condition && given)
		conf_error_at(b->errors, value_of(n, key), "%s: goes with %s only", key, word);
}

/* What has to do with refresh tokens, where there are none. */
static void check_no_refresh(struct conf_build *b, struct provider *p, const struct conf_node *n)
{
	const struct {
		const char *key;
		bool given;
	} rules[] = {
		{ "rotation", conf_node_get(n, "rotation") != NULL && p->rotation != ROTATION_NONE },
		{ "refresh_token_idle_ttl", p->refresh_token_idle_ttl_us > 0 },
		{ "refresh_token_ttl", p->refresh_token_ttl_us > 0 },
		{ "refresh_url", p->refresh_url != NULL },
	};

	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (rules[i].given)
			conf_error_at(b->errors, value_of(n, rules[i].key),
				"%s: is of no use with grant client_credentials, which has no refresh tokens",
				rules[i].key);
	p->rotation = ROTATION_NONE;
	if (conf_node_get(n, "grant_type") == NULL) {
		mem_free(p->grant_type);
		p->grant_type = mem_strdup(grant_word(GRANT_CLIENT));
	}
}

static void add_once(struct strlist *l, const char *s)
{
	if (!strlist_has(l, s))
		strlist_add(l, s);
}

/* What a grant says by itself about other options. */
static void check_grant(struct conf_build *b, struct provider *p, const struct conf_node *n)
{
	static const char *const login[] = { "username", "password" };

	if (p->grant != GRANT_CODE && p->auth_type != AUTH_OAUTH2)
		conf_error_at(b->errors, value_of(n, "grant"), "grant: goes with auth_type oauth2 only");
	if (p->grant == GRANT_CLIENT)
		check_no_refresh(b, p, n);
	for (size_t i = 0; p->grant == GRANT_PASSWORD && i < 2; i++) {
		add_once(&p->required_settings, login[i]);
		add_once(&p->sensitive_settings, login[i]);
	}
}

static void check_provider(struct conf_build *b, size_t i)
{
	struct provider *p = b->providers.v[i].record;
	const struct conf_node *n = b->providers.v[i].node;

	if (i > 0) {
		const struct provider *first = b->providers.v[i - 1].record;
		if (strcmp(first->key, p->key) == 0)
			conf_error_at(b->errors, b->providers.v[i].key,
				"provider \"%s\" is defined already in %s:%u", p->key, first->file,
				first->line);
	}
	if (p->name == NULL && conf_node_get(n, "name") == NULL)
		p->name = mem_strdup(p->key);
	if (p->auth_type == AUTH_OAUTH2 && conf_node_get(n, "token_url") == NULL)
		conf_error_at(b->errors, n, "missing key \"token_url\" (auth_type is oauth2)");
	check_grant(b, p, n);
	check_templates(b, p, n);
	check_times(b, p, n);
	check_pair(b, n, p->rotation == ROTATION_GRACE, "rotation grace", p->rotation_grace_us > 0,
		"rotation_grace");
	check_pair(
		b, n, p->send_scope == SEND_SCOPE_LITERAL, "send_scope literal", p->scope != NULL, "scope");
	if (p->rotation == ROTATION_GRACE && p->rotation_grace_us == 0 &&
		conf_node_get(n, "rotation_grace") != NULL)
		conf_error_at(b->errors, value_of(n, "rotation_grace"),
			"rotation_grace: must be longer than 0 with rotation grace");
	if (p->method_get && p->body_format != BODY_QUERY)
		conf_error_at(b->errors, value_of(n, "method"), "method: GET needs body_format query");
	if (p->ca_file != NULL)
		check_readable(b, value_of(n, "ca_file"), "ca_file", p->ca_file);
}

/* --- clients */

static void report_unknown_provider(struct conf_build *b, const struct client *c, const struct conf_node *n)
{
	const char **keys = mem_calloc(b->conf->n_providers + 1, sizeof(*keys));

	for (size_t i = 0; i < b->conf->n_providers; i++)
		keys[i] = b->conf->providers[i]->key;
	const char *near = conf_near(c->provider, keys, b->conf->n_providers);
	conf_error_at(b->errors, value_of(n, "provider"), "provider: there is no provider \"%s\"%s%s%s",
		c->provider, near != NULL ? "; did you mean \"" : "", near != NULL ? near : "",
		near != NULL ? "\"?" : "");
	mem_free(keys);
}

/* Which of the files each way to authenticate needs; the rest would be dead weight that looks like
 * protection. */
static void check_client_files(struct conf_build *b, const struct client *c, const struct conf_node *n)
{
	const char *word = client_auth_word(c->auth);
	bool jwt = c->auth == CLIENT_AUTH_JWT, tls = c->auth == CLIENT_AUTH_TLS;
	const struct {
		const char *key;
		bool needed, allowed;
	} rules[] = {
		{ "client_secret_file", c->auth == CLIENT_AUTH_BASIC || c->auth == CLIENT_AUTH_POST, false },
		{ "private_key_file", jwt || tls, false },
		{ "cert_file", tls, false },
		{ "key_id", false, jwt },
		{ "assertion_alg", false, jwt },
	};

	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		const struct conf_node *value = conf_node_get(n, rules[i].key);
		if (rules[i].needed && value == NULL)
			conf_error_at(b->errors, n, "client_auth %s needs %s", word, rules[i].key);
		if (!rules[i].needed && !rules[i].allowed && value != NULL)
			conf_error_at(
				b->errors, value, "%s: is of no use with client_auth %s", rules[i].key, word);
	}
}

static void open_client_files(struct conf_build *b, struct client *c, const struct conf_node *n)
{
	const struct conf_node *at = value_of(n, "private_key_file");
	struct fault f = { .code = 0 };

	if (c->secret_file != NULL)
		(void)!read_secret(b, value_of(n, "client_secret_file"), "client_secret_file", c->secret_file,
			&c->secret);
	if (c->cert_file != NULL)
		check_readable(b, value_of(n, "cert_file"), "cert_file", c->cert_file);
	if (c->private_key_file == NULL || !check_mode(b, at, "private_key_file", c->private_key_file))
		return;
	if (c->auth != CLIENT_AUTH_JWT)
		check_readable(b, at, "private_key_file", c->private_key_file);
	else if (signer_load(c->private_key_file, c->alg, &c->signer, &f) < 0)
		conf_error_at(b->errors, at, "private_key_file: %s", f.text);
}

static bool is_same_client(const struct client *c, const struct client *d)
{
	return c->application != NULL && d->application != NULL && c->provider != NULL &&
	       d->provider != NULL && strcmp(c->application, d->application) == 0 &&
	       strcmp(c->provider, d->provider) == 0;
}

static void check_client(struct conf_build *b, size_t i)
{
	struct client *c = b->clients.v[i].record;
	const struct conf_node *n = b->clients.v[i].node;
	const struct conf_node *own = conf_node_get(n, "client_auth");
	const struct provider *p = c->provider != NULL ? conf_provider(b->conf, c->provider) : NULL;
	const struct client *before = i > 0 ? b->clients.v[i - 1].record : NULL;

	if (before != NULL && is_same_client(before, c))
		conf_error_at(b->errors, n,
			"a client of application \"%s\" for provider \"%s\" is defined already in %s:%u",
			c->application, c->provider, before->file, before->line);
	if (c->provider != NULL && p == NULL && !b->incomplete)
		report_unknown_provider(b, c, n);
	if (p != NULL && p->auth_type != AUTH_OAUTH2)
		conf_error_at(b->errors, value_of(n, "provider"),
			"provider: \"%s\" is not of auth_type oauth2 and takes no client", p->key);
	if (p != NULL && own == NULL)
		c->auth = p->client_auth;
	if (p != NULL && p->basic_raw && c->auth == CLIENT_AUTH_BASIC && c->client_id != NULL &&
		strchr(c->client_id, ':') != NULL)
		conf_error_at(b->errors, value_of(n, "client_id"),
			"client_id: cannot hold \":\" with the provider's basic_raw");
	if (p != NULL || own != NULL)
		check_client_files(b, c, n);
	open_client_files(b, c, n);
}

void conf_check(struct conf_build *b)
{
	check_instance(b);
	check_listeners(b);
	check_keyring(b);
	check_refresh(b);
	for (size_t i = 0; i < b->webhooks.n; i++)
		check_webhook(b, i);
	for (size_t i = 0; i < b->providers.n; i++)
		check_provider(b, i);
	for (size_t i = 0; i < b->clients.n; i++)
		check_client(b, i);
}
