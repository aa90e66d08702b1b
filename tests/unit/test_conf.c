/*
 * conf: good files give what they say, bad ones every mistake with its place; what is printed loads again.
 *
 * Each test has a folder of its own with a keyring, secrets and keys. The mutation test prints its seed;
 * REFRESHD_TEST_SEED repeats one.
 */
#include "unit/unit.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/conf.h"
#include "model/conf_type.h"
#include "model/conf_yaml.h"

#define BASE "database: {url: \"postgresql:///x\"}\nkeyring_file: keyring\n"
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static char folder[64];
static struct conf *loaded;
static char *errors_text;

/* --- a folder with files */

static char *path_of(const char *name)
{
	return mem_printf("%s/%s", folder, name);
}

static void put_bytes(const char *name, const void *p, size_t n, mode_t mode)
{
	char *path = path_of(name);
	FILE *f = fopen(path, "w");

	ck_assert_ptr_nonnull(f);
	ck_assert_uint_eq(fwrite(p, 1, n, f), n);
	ck_assert_int_eq(fclose(f), 0);
	ck_assert_int_eq(chmod(path, mode), 0);
	mem_free(path);
}

static void put_file(const char *name, const char *text, mode_t mode)
{
	put_bytes(name, text, strlen(text), mode);
}

static void put_key(const char *name)
{
	char *path = path_of(name);
	FILE *f = fopen(path, "w");
	EVP_PKEY *key = EVP_EC_gen("P-256");

	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
	ck_assert_int_eq(fclose(f), 0);
	ck_assert_int_eq(chmod(path, 0600), 0);
	EVP_PKEY_free(key);
	mem_free(path);
}

static void set_up(void)
{
	strcpy(folder, "/tmp/refreshd-conf-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	put_file("keyring", "k1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", 0600);
	put_file("secret", "s3cr3t\n", 0400);
	put_file("app1-xero", "hunter2\r\n", 0440);
	put_file("webhook-ops", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", 0600);
	put_file("tls.crt", "certificate\n", 0644);
	put_file("tls.key", "key\n", 0600);
	put_key("app1.pem");
	ck_assert_int_eq(setenv("CREDENTIALS_DIRECTORY", folder, 1), 0);
	ck_assert_int_eq(unsetenv("REFRESHD_UNSET"), 0);
}

static void forget(void)
{
	conf_unref(loaded);
	loaded = NULL;
	free(errors_text);
	errors_text = NULL;
}

static void tear_down(void)
{
	char *command = mem_printf("rm -rf '%s'", folder);

	forget();
	ck_assert_int_eq(system(command), 0);
	mem_free(command);
}

/* Errors become text, the folder's name left out. */
static void keep_errors(const struct conf_errors *e)
{
	size_t n, skip = strlen(folder) + 1;
	FILE *f = open_memstream(&errors_text, &n);

	ck_assert_ptr_nonnull(f);
	conf_errors_print(e, f);
	ck_assert_int_eq(fclose(f), 0);
	for (char *at; (at = strstr(errors_text, folder)) != NULL && at[skip - 1] == '/';)
		memmove(at, at + skip, strlen(at + skip) + 1);
}

static int load_file(const char *name)
{
	struct conf_errors e = { .v = NULL, .n = 0 };
	char *path = path_of(name);

	forget();
	int rc = conf_load(path, &loaded, &e);
	keep_errors(&e);
	ck_assert_int_eq(rc<0, e.n> 0);
	ck_assert_int_eq(rc < 0, loaded == NULL);
	conf_errors_fini(&e);
	mem_free(path);
	return rc;
}

static int load_text(const char *text)
{
	put_file("c.yaml", text, 0644);
	return load_file("c.yaml");
}

static void expect_good(const char *text)
{
	int rc = load_text(text);

	ck_assert_msg(rc == 0, "%.1500s\n-- of:\n%.1500s", errors_text, text);
}

struct bad {
	const char *text, *says; /* `says` is the beginning of an error line, without the file */
};

static bool has_line(const char *begins)
{
	char *want = mem_printf("c.yaml:%s", begins), *after = mem_printf("\n%s", want);
	bool found = strncmp(errors_text, want, strlen(want)) == 0 || strstr(errors_text, after) != NULL;

	mem_free(want);
	mem_free(after);
	return found;
}

/* Each gives exactly one error. */
static void expect_bad(const char *before, const struct bad *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		char *text = mem_printf("%s%s", before, v[i].text);
		int rc = load_text(text);
		const char *newline = errors_text != NULL ? strchr(errors_text, '\n') : NULL;
		ck_assert_msg(rc == ST_INVALID, "accepted:\n%.1500s", text);
		ck_assert_msg(has_line(v[i].says), "want %s, got\n%.1000s-- of:\n%.1000s", v[i].says,
			errors_text, text);
		ck_assert_msg(newline != NULL && newline[1] == '\0',
			"one error wanted, got\n%.1000s-- of:\n%.1000s", errors_text, text);
		mem_free(text);
	}
}

static char *dump_of(const struct conf *c)
{
	struct buf out = BUF_INIT(1 << 20);

	ck_ok(conf_dump(c, &out));
	char *text = mem_strdup(buf_str(&out));
	buf_fini(&out);
	return text;
}

static void expect_round_trip(void)
{
	char *first = dump_of(loaded);

	put_file("dump.yaml", first, 0644);
	ck_assert_msg(load_file("dump.yaml") == 0, "%.1500s-- of:\n%.1500s", errors_text, first);
	char *second = dump_of(loaded);
	size_t same = 0;
	while (first[same] != '\0' && first[same] == second[same])
		same++;
	ck_assert_msg(first[same] == second[same], "a dump differs from its dump:\n%.300s\n-- and\n%.300s",
		first + same, second + same);
	mem_free(first);
	mem_free(second);
}

/* --- what good files give */

START_TEST(the_smallest_file_has_all_defaults)
{
	expect_good(BASE);
	const struct conf *c = loaded;
	ck_assert_str_eq(c->database.url, "postgresql:///x");
	ck_assert_uint_eq(c->database.pool_size, 4);
	ck_assert(!c->database.pooler_transaction);
	ck_assert_int_eq(c->database.statement_timeout_us, 15 * US_PER_S);
	ck_assert_str_eq(c->state_dir, "/var/lib/refreshd");
	ck_assert_str_ne(c->instance, "");
	ck_assert_int_eq(c->insecure_http, INSECURE_HTTP_NO);
	ck_assert_int_eq(c->log.format, LOG_FORMAT_LOGFMT);
	ck_assert_int_eq(c->log.level, LOG_LEVEL_INFO);
	ck_assert_str_eq(keyring_first_id(c->keyring), "k1");
	ck_assert(!c->api.on && !c->metrics.on);
	ck_assert_ptr_null(c->api.cert_file);
	ck_assert_str_eq(c->dns.resolv_conf, "/etc/resolv.conf");
	ck_assert_int_eq(c->dns.timeout_us, 5 * US_PER_S);
	ck_assert_int_eq(c->refresh.poll_interval_us, 5 * US_PER_S);
	ck_assert_int_eq(c->refresh.horizon_us, 300 * US_PER_S);
	ck_assert_int_eq(c->refresh.margin_us, 300 * US_PER_S);
	ck_assert_double_eq(c->refresh.margin_fraction, 0.2);
	ck_assert_int_eq(c->refresh.lease_us, 120 * US_PER_S);
	ck_assert_int_eq(c->refresh.timeout_us, 60 * US_PER_S);
	ck_assert_int_eq(c->refresh.connect_timeout_us, 10 * US_PER_S);
	ck_assert_uint_eq(c->refresh.max_in_flight, 256);
	ck_assert_int_eq(c->refresh.retry_window_us, 48 * 3600 * US_PER_S);
	ck_assert(c->refresh.journal_sync);
	ck_assert_uint_eq(c->refresh.journal_max_bytes, UINT64_C(256) << 20);
	ck_assert_int_eq(c->delivery.timeout_us, 20 * US_PER_S);
	ck_assert_uint_eq(c->delivery.max_in_flight, 64);
	ck_assert_uint_eq(c->n_webhooks + c->n_providers + c->n_clients, 0);
	ck_assert_ptr_null(conf_provider(c, "xero"));
	ck_assert_ptr_null(conf_client(c, "a", "xero"));
	expect_round_trip();
}
END_TEST

START_TEST(a_plain_provider_has_all_defaults)
{
	expect_good(BASE "providers: {p: {token_url: \"https://a.example/t\"}}\n");
	const struct provider *p = conf_provider(loaded, "p");
	ck_assert_ptr_nonnull(p);
	ck_assert_str_eq(p->name, "p");
	ck_assert_ptr_null(p->website);
	ck_assert_int_eq(p->auth_type, AUTH_OAUTH2);
	ck_assert_str_eq(template_text(provider_refresh_url(p)), "https://a.example/t");
	ck_assert(!p->method_get && !p->basic_raw && p->access_token_overlap);
	ck_assert_int_eq(p->client_auth, CLIENT_AUTH_BASIC);
	ck_assert_int_eq(p->body_format, BODY_FORM);
	ck_assert_int_eq(p->rotation, ROTATION_STRICT);
	ck_assert_int_eq(p->send_scope, SEND_SCOPE_NEVER);
	ck_assert_str_eq(p->grant_type, "refresh_token");
	ck_assert_str_eq(p->scope_separator, " ");
	ck_assert_ptr_null(p->audience);
	ck_assert_double_eq(p->rate_per_s, 0);
	ck_assert_uint_eq(p->max_in_flight, 32);
	ck_assert_int_eq(p->timeout_us, 0);
	ck_assert_int_eq(p->connect_timeout_us, 10 * US_PER_S);
	ck_assert_int_eq(p->max_expires_in_us, INT64_C(365) * 86400 * US_PER_S);
	ck_assert_uint_eq(p->at_access_token.n, 1);
	ck_assert_str_eq(p->at_access_token.v[0], "/access_token");
	ck_assert_str_eq(p->at_refresh_token.v[0], "/refresh_token");
	ck_assert_str_eq(p->at_expires_in.v[0], "/expires_in");
	ck_assert_uint_eq(p->at_expires_at.n, 0);
	ck_assert_uint_eq(p->at_refresh_expires_in.n, 3);
	ck_assert_str_eq(p->at_refresh_expires_in.v[1], "/x_refresh_token_expires_in");
	ck_assert_str_eq(p->at_error.v[0], "/error");
	ck_assert_str_eq(p->at_scope.v[0], "/scope");
	ck_assert_uint_eq(p->line, 3);
	expect_round_trip();
}
END_TEST

START_TEST(a_grant_settles_other_options)
{
	expect_good(BASE "refresh: {timeout: 10s}\n"
			 "providers:\n"
			 "  c: {token_url: \"https://a.example/t\", grant: client_credentials}\n"
			 "  z: {token_url: \"https://a.example/t\", grant: client_credentials, grant_type: account_credentials}\n"
			 "  w: {token_url: \"https://a.example/t\", grant: password, rotation: none, required_settings: [site, username]}\n");
	const struct provider *p = conf_provider(loaded, "c");
	ck_assert_int_eq(p->grant, GRANT_CLIENT);
	ck_assert_int_eq(p->rotation, ROTATION_NONE);
	ck_assert_str_eq(p->grant_type, "client_credentials");
	ck_assert(provider_renews(p, false));
	ck_assert_str_eq(conf_provider(loaded, "z")->grant_type, "account_credentials");
	p = conf_provider(loaded, "w");
	ck_assert_int_eq(p->grant, GRANT_PASSWORD);
	ck_assert_str_eq(p->grant_type, "refresh_token");
	ck_assert_uint_eq(p->required_settings.n, 3);
	ck_assert_str_eq(p->required_settings.v[2], "password");
	ck_assert(strlist_has(&p->sensitive_settings, "username") && strlist_has(&p->sensitive_settings, "password"));
	expect_round_trip();
}
END_TEST

START_TEST(a_grant_refuses_what_it_cannot_use)
{
	static const struct bad bad[] = {
		{ "grant: implicit}\n", "4:48: grant: \"implicit\" is not one of authorization_code, client_credentials, password" },
		{ "grant: client_credentials, rotation: strict}\n", "4:78: rotation: is of no use with grant client_credentials" },
		{ "grant: client_credentials, refresh_token_ttl: 1d}\n", "4:87: refresh_token_ttl: is of no use with grant" },
		{ "grant: client_credentials, refresh_token_idle_ttl: 1d}\n", "4:92: refresh_token_idle_ttl: is of no use with grant" },
		{ "grant: client_credentials, refresh_url: \"https://a.example/r\"}\n", "4:81: refresh_url: is of no use with grant" },
		{ "grant: password, auth_type: basic}\n", "4:48: grant: goes with auth_type oauth2 only" },
	};
	expect_bad(BASE "providers:\n  p: {token_url: \"https://a.example/t\", ", bad, sizeof(bad) / sizeof(bad[0]));
}
END_TEST

START_TEST(every_option_is_read)
{
	static const char text[] =
		"instance: node-a\nstate_dir: state\ninsecure_http: loopback\nlog: {format: json, level: debug}\n"
		"database:\n  url: host=/run/pg dbname=x\n  pool_size: 8\n  pooler: transaction\n  statement_timeout: 5s\n"
		"keyring_file: ${CREDENTIALS_DIRECTORY}/keyring\n"
		"api: {listen: \"[::1]:8090\", tls: {cert_file: tls.crt, key_file: tls.key}}\n"
		"metrics: {listen: \"unix:${CREDENTIALS_DIRECTORY}/m.sock\"}\n"
		"dns: {resolv_conf: /tmp/resolv, timeout: 2s}\n"
		"refresh: {poll_interval: 1s, horizon: 2m, margin: 3m, margin_fraction: 0.9, lease: 200s, timeout: 70s,\n"
		"  connect_timeout: 4s, max_in_flight: 5, retry_window: 2h, journal_sync: off, journal_max_bytes: 2M}\n"
		"delivery: {timeout: 9s, max_in_flight: 3}\n"
		"webhooks:\n"
		"  - {name: w1, application: app1, url: \"http://127.0.0.1:99/h\", secret_file: webhook-ops,\n"
		"     events: [\"vault.connection.*\", refreshd.provider.failing], allow_private: yes}\n"
		"providers:\n"
		"  zz: {auth_type: apiKey, unified_apis: [crm]}\n"
		"  all:\n"
		"    name: \"All: of \\\"it\\\" \\\\ \\u00e9\"\n"
		"    website: https://all.example\n"
		"    unified_apis: [crm, accounting]\n"
		"    token_url: https://{settings.sub}.all.example/token?x={metadata.y}\n"
		"    refresh_url: http://localhost:99/{capture.host}\n"
		"    method: GET\n    body_format: query\n    client_auth: private_key_jwt\n    basic_raw: on\n"
		"    grant_type: \"\"\n"
		"    params: {a: \"{settings.a}\", \"b:\": \"{{\"}\n"
		"    omit_params: [client_id]\n"
		"    rename_params: {refresh_token: rt}\n"
		"    headers: {X-A: \"v {settings.a}\", x-b: \"\"}\n"
		"    send_scope: literal\n    scope: a b\n    scope_separator: \",\"\n    audience: aud\n"
		"    rotation: grace\n    rotation_grace: 10s\n    refresh_token_idle_ttl: 60d\n    refresh_token_ttl: 365d\n"
		"    access_token_overlap: no\n    not_before: 0.95\n"
		"    response:\n"
		"      access_token: [/data/a~1b, /a~0]\n      refresh_token: []\n      expires_in: [/e]\n      expires_at: [/ea]\n"
		"      refresh_token_expires_in: []\n      error: [/err]\n      scope: []\n"
		"    expires_in_unit: ms\n    default_expires_in: 1h\n    max_expires_in: 2h\n"
		"    grant_dead_errors: [gone]\n    transient_errors: [busy, later]\n"
		"    capture: {host: [/h, /i], b-1: [/b]}\n"
		"    required_settings: [sub]\n    sensitive_settings: [a]\n"
		"    rate: 1000/h\n    max_in_flight: 2\n    timeout: 33s\n    connect_timeout: 3s\n    ca_file: tls.crt\n"
		"clients:\n"
		"  - {application: \"*\", provider: all, client_id: any, client_auth: none}\n"
		"  - {application: b, provider: all, client_id: idb, private_key_file: app1.pem, key_id: k7, assertion_alg: ES256}\n"
		"  - {application: a, provider: all, client_id: ida, client_auth: client_secret_post, client_secret_file: app1-xero}\n"
		"  - {application: t, provider: all, client_id: idt, client_auth: tls_client_auth, cert_file: tls.crt, private_key_file: tls.key}\n";

	for (int round = 0; round < 2; round++) {
		if (round == 0)
			expect_good(text);
		const struct conf *c = loaded;
		char *state = path_of("state"), *keyring = path_of("keyring"), *sock = path_of("m.sock");
		ck_assert_str_eq(c->instance, "node-a");
		ck_assert_str_eq(c->state_dir, state);
		ck_assert_str_eq(c->keyring_file, keyring);
		ck_assert_int_eq(c->insecure_http, INSECURE_HTTP_LOOPBACK);
		ck_assert_int_eq(c->log.format, LOG_FORMAT_JSON);
		ck_assert_int_eq(c->log.level, LOG_LEVEL_DEBUG);
		ck_assert_str_eq(c->database.url, "host=/run/pg dbname=x");
		ck_assert(c->database.pooler_transaction);
		ck_assert(c->api.on && !c->api.listen.is_unix);
		ck_assert_str_eq(c->api.listen.host, "::1");
		ck_assert_uint_eq(c->api.listen.port, 8090);
		ck_assert(c->metrics.on && c->metrics.listen.is_unix);
		ck_assert_str_eq(c->metrics.listen.path, sock);
		ck_assert(!c->refresh.journal_sync);
		ck_assert_uint_eq(c->refresh.journal_max_bytes, 2 << 20);
		ck_assert_uint_eq(c->n_webhooks, 1);
		ck_assert_str_eq(c->webhooks[0].name, "w1");
		ck_assert_uint_eq(c->webhooks[0].events.n, 2);
		ck_assert(c->webhooks[0].allow_private);
		ck_assert_uint_eq(c->webhooks[0].secret.key.len, 24);
		ck_assert_uint_eq(c->n_providers, 2);
		ck_assert_str_eq(c->providers[0]->key, "all");
		ck_assert_int_eq(conf_provider(c, "zz")->auth_type, AUTH_API_KEY);

		const struct provider *p = conf_provider(c, "all");
		ck_assert_str_eq(p->name, "All: of \"it\" \\ \xc3\xa9");
		ck_assert(p->method_get && p->basic_raw && !p->access_token_overlap);
		ck_assert_str_eq(p->grant_type, "");
		ck_assert_uint_eq(p->n_params, 2);
		ck_assert_str_eq(p->params[1].name, "b:");
		ck_assert_str_eq(template_text(p->params[1].value), "{{");
		ck_assert_str_eq(template_text(p->rename_params[0].value), "rt");
		ck_assert_uint_eq(p->n_headers, 2);
		ck_assert_str_eq(p->scope, "a b");
		ck_assert_str_eq(p->scope_separator, ",");
		ck_assert_int_eq(p->rotation_grace_us, 10 * US_PER_S);
		ck_assert_double_eq(p->not_before_fraction, 0.95);
		ck_assert_str_eq(p->at_access_token.v[1], "/a~0");
		ck_assert_uint_eq(p->at_refresh_token.n, 0);
		ck_assert_int_eq(p->expires_in_unit, UNIT_MS);
		ck_assert_uint_eq(p->n_capture, 2);
		ck_assert_str_eq(p->capture[0].pointers.v[1], "/i");
		ck_assert_double_eq(p->rate_per_s, 1000.0 / 3600);
		ck_assert_int_eq(p->connect_timeout_us, 3 * US_PER_S);
		ck_assert_str_eq(
			template_text(provider_refresh_url(p)), "http://localhost:99/{capture.host}");

		ck_assert_str_eq(conf_client(c, "a", "all")->client_id, "ida");
		ck_assert_str_eq(buf_str(&conf_client(c, "a", "all")->secret), "hunter2");
		ck_assert_int_eq(conf_client(c, "a", "all")->auth, CLIENT_AUTH_POST);
		ck_assert_str_eq(conf_client(c, "b", "all")->key_id, "k7");
		ck_assert_ptr_nonnull(conf_client(c, "b", "all")->signer);
		ck_assert_int_eq(conf_client(c, "b", "all")->auth, CLIENT_AUTH_JWT);
		ck_assert_int_eq(conf_client(c, "t", "all")->auth, CLIENT_AUTH_TLS);
		ck_assert_str_eq(conf_client(c, "other", "all")->client_id, "any");
		ck_assert_ptr_null(conf_client(c, "a", "zz"));
		mem_free(state);
		mem_free(keyring);
		mem_free(sock);
		if (round == 0)
			expect_round_trip();
	}
	char *dump = dump_of(loaded);
	ck_assert_ptr_null(strstr(dump, "hunter2"));
	mem_free(dump);
}
END_TEST

static char *sample_text(void)
{
	struct buf out = BUF_INIT(1 << 20);

	ck_ok(conf_sample(&out));
	char *text = mem_strdup(buf_str(&out));
	buf_fini(&out);
	return text;
}

START_TEST(the_sample_is_good_and_so_are_its_commented_lines)
{
	char *text = sample_text();

	expect_good(text);
	ck_assert_str_eq(conf_client(loaded, "app1", "xero")->client_id, "0A1B2C");
	expect_round_trip();

	/* Every commented option is one that is known, in its place, and its value is of the right kind. */
	for (char *s = text; s != NULL; s = strchr(s, '\n') != NULL ? strchr(s, '\n') + 1 : NULL)
		if (s[0] == '#' && s[1] != '\0' && strspn(s + 1, " ") != 1)
			memmove(s, s + 1, strlen(s));
	int rc = load_text(text);
	ck_assert_int_eq(rc, ST_INVALID);
	static const char *const wrong[] = { "unknown", "expected", "is not one of", "missing" };
	for (size_t i = 0; i < COUNT(wrong); i++)
		ck_assert_msg(strstr(errors_text, wrong[i]) == NULL, "%.1500s", errors_text);
	mem_free(text);
}
END_TEST

START_TEST(the_manual_names_every_option)
{
	struct buf out = BUF_INIT(1 << 20), small = BUF_INIT(100);

	ck_ok(conf_man(&out));
	for (size_t i = 0; i < conf_n_options; i++) {
		char *item = mem_printf(".It Cm %s :", conf_options[i].path);
		ck_assert_msg(strstr(buf_str(&out), item) != NULL, "%s", item);
		mem_free(item);
	}
	ck_assert_int_eq(conf_man(&small), ST_FULL);
	ck_assert_int_eq(conf_sample(&small), ST_FULL);
	ck_assert_uint_eq(small.len, 0);
	expect_good(BASE);
	ck_assert_int_eq(conf_dump(loaded, &small), ST_FULL);
	ck_assert_uint_eq(small.len, 0);
	buf_fini(&out);
}
END_TEST

START_TEST(a_snapshot_lives_as_long_as_someone_holds_it)
{
	expect_good(BASE);
	struct conf *c = conf_ref(loaded);
	forget();
	ck_assert_str_eq(c->database.url, "postgresql:///x");
	conf_unref(c);
	conf_unref(NULL);
}
END_TEST

START_TEST(a_restart_is_asked_for_what_a_reload_cannot_change)
{
	struct buf out = BUF_INIT(1000), small = BUF_INIT(5);

	expect_good(BASE "instance: a\nrefresh: {margin: 2m}\n");
	struct conf *a = conf_ref(loaded);
	ck_ok(conf_diff_restart(a, a, &out));
	ck_assert_uint_eq(out.len, 0);
	expect_good(
		"database: {url: \"postgresql:///y\"}\nkeyring_file: keyring\ninstance: a\napi: {listen: \"127.0.0.1:1\"}\n"
		"refresh: {margin: 3m, journal_sync: off}\nproviders: {p: {token_url: \"https://a.example/t\"}}\n");
	ck_ok(conf_diff_restart(a, loaded, &out));
	ck_assert_str_eq(buf_str(&out), "database.url\napi.listen\nrefresh.journal_sync\n");
	ck_assert_int_eq(conf_diff_restart(a, loaded, &small), ST_FULL);
	ck_assert_uint_eq(small.len, 0);
	conf_unref(a);
	buf_fini(&out);
	buf_fini(&small);
}
END_TEST

START_TEST(rates_and_shares_are_printed_exactly)
{
	static const char *const rates[] = { "10/s", "600/m", "1000/h", "2.5/s", "0.1/s", "1/h", "7/m",
		"unlimited", "3.3333333333333333333333/s", "99999.123456789/s" };

	for (size_t i = 0; i < COUNT(rates); i++) {
		char *text = mem_printf(BASE
			"providers: {p: {token_url: \"https://a.example/t\", rate: %s, not_before: 0.%zu3000000000001}}\n",
			rates[i], i);
		expect_good(text);
		double rate = loaded->providers[0]->rate_per_s;
		expect_round_trip();
		ck_assert_double_eq(loaded->providers[0]->rate_per_s, rate);
		mem_free(text);
	}
}
END_TEST

/* --- bad YAML */

START_TEST(yaml_beyond_the_subset_is_refused_in_place)
{
	static const struct bad v[] = {
		{ "log: &a {level: info}\n", "3:6: anchors are not allowed" },
		{ "log: {level: *a}\n", "3:14: aliases are not allowed" },
		{ "log: {level: !!str info}\n", "3:14: tags are not allowed" },
		{ "log: !foo {level: info}\n", "3:6: tags are not allowed" },
		{ "include: !x []\n", "3:10: tags are not allowed" },
		{ "? [a, b]\n: c\n", "3:3: a key must be plain text" },
		{ "? {a: b}\n: c\n", "3:3: a key must be plain text" },
		{ "log: {level: info, format: json, level: debug}\n",
			"3:34: duplicate key \"level\"; the first is in line 3" },
		{ "keyring_file: keyring\n", "3:1: duplicate key \"keyring_file\"; the first is in line 2" },
		{ "---\nlog: {}\n", "3:1: only one document is allowed" },
		{ "log: {level: \"in\\0fo\"}\n", "3:14: a NUL character is not allowed" },
		{ "log: [\n", "4:1: " },
		{ "log: {level: info\n", "4:1: " },
		{ "\tlog: 1\n", "3:1: " },
		{ "log: {level: \"\x01\"}\n", "3:15: control characters are not allowed" },
		{ "log: {level: \"\xc3\xa9\xff\"}\n", "3:16: not UTF-8" },
		{ "log: \xc0\x80\n", "3:6: not UTF-8" },
		{ "log: [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]\n", "3:21: nested too deeply" },
	};
	struct buf text = BUF_INIT(4 << 20);

	expect_bad(BASE, v, COUNT(v));
	ck_assert_int_eq(load_text("%YAML 1.1\n---\n" BASE), ST_INVALID);
	ck_assert(has_line("1:1: directives are not allowed"));
	ck_assert_int_eq(load_text("%TAG ! tag:x,2000:\n---\n" BASE), ST_INVALID);
	ck_assert(has_line("1:1: directives are not allowed"));
	expect_good("---\n" BASE "...\n");
	expect_good("\xef\xbb\xbf" BASE);
	expect_good("database: {url: \"postgresql:///x\"}\r\nkeyring_file: keyring\r\n");
	ck_ok(buf_puts(&text, BASE "include: ["));
	for (int i = 0; i < CONF_MAX_NODES; i++)
		ck_ok(buf_puts(&text, "a,"));
	ck_ok(buf_puts(&text, "]\n"));
	ck_assert_int_eq(load_text(buf_str(&text)), ST_INVALID);
	ck_assert(strstr(errors_text, ": too many nodes\n") != NULL);
	for (int i = 0; i < CONF_FILE_BYTES / 16; i++)
		ck_ok(buf_puts(&text, "# 3456789012345\n"));
	ck_assert_int_eq(load_text(buf_str(&text)), ST_INVALID);
	ck_assert(has_line(" larger than 1048576 bytes"));
	buf_fini(&text);
}
END_TEST

START_TEST(files_that_are_no_files_are_told_plainly)
{
	ck_assert_int_eq(load_file("none.yaml"), ST_INVALID);
	ck_assert_str_eq(errors_text, "none.yaml: cannot open: No such file or directory\n");
	ck_assert_int_eq(load_text(""), ST_INVALID);
	ck_assert_str_eq(
		errors_text, "c.yaml: missing key \"database.url\"\nc.yaml: missing key \"keyring_file\"\n");
	ck_assert_int_eq(load_text("# nothing\n"), ST_INVALID);
	ck_assert_int_eq(load_text("words\n"), ST_INVALID);
	ck_assert(has_line("1:1: the file: expected a map of options"));
	ck_assert_int_eq(load_text("[1]\n"), ST_INVALID);
	ck_assert(has_line("1:1: the file: expected a map of options"));
	put_file("sub.yaml", "", 0644);
	ck_assert_int_eq(load_file("."), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(errors_text, "not a regular file"));
}
END_TEST

START_TEST(a_flood_of_errors_is_cut)
{
	struct buf text = BUF_INIT(1 << 20);

	ck_ok(buf_puts(&text, BASE));
	for (int i = 0; i < 3 * CONF_MAX_ERRORS; i++)
		ck_ok(buf_printf(&text, "unknown%d: 1\n", i));
	ck_assert_int_eq(load_text(buf_str(&text)), ST_INVALID);
	int lines = 0;
	for (const char *s = errors_text; *s != '\0'; s++)
		lines += *s == '\n';
	ck_assert_int_eq(lines, CONF_MAX_ERRORS);
	ck_assert_ptr_nonnull(strstr(errors_text, "too many errors; the rest is not shown\n"));
	buf_fini(&text);
}
END_TEST

/* --- bad options */

START_TEST(mistakes_at_the_top_are_told_with_their_place)
{
	static const struct bad v[] = {
		{ "lgo: {}\n", "3:1: unknown key \"lgo\"; did you mean \"log\"?" },
		{ "zzzzzzzz: 1\n", "3:1: unknown key \"zzzzzzzz\"\n" },
		{ "api.listen: 127.0.0.1:1\n", "3:1: unknown key \"api.listen\"" },
		{ "refresh: {marginn: 5m}\n",
			"3:11: unknown key \"refresh.marginn\"; did you mean \"margin\"?" },
		{ "api: {tls: {cert: a}}\n",
			"3:13: unknown key \"api.tls.cert\"; did you mean \"cert_file\"?" },
		{ "\"\": 1\n", "3:1: unknown key \"\"" },
		{ "log: info\n", "3:6: log: expected a map of options" },
		{ "log:\n", "3:5: log: expected a map of options" },
		{ "log: {level: [info]}\n", "3:14: log.level: expected a word, found a list" },
		{ "log: {level: {}}\n", "3:14: log.level: expected a word, found a map" },
		{ "include: x.yaml\n", "3:10: include: expected a list of file names, found plain text" },
		{ "include:\n", "3:9: include: expected a list of file names, found nothing" },
		{ "webhooks: {}\n", "3:11: webhooks: expected a list of maps, found a map" },
		{ "webhooks: [a]\n", "3:12: webhooks: expected a map of options" },
		{ "clients: [[]]\n", "3:11: clients: expected a map of options" },
		{ "providers: []\n", "3:12: providers: expected a map of providers, found a list" },
		{ "providers: {x: 1}\n", "3:16: x: expected a map of options" },
		{ "log: {level: warnin}\n",
			"3:14: log.level: \"warnin\" is not one of error, warning, notice, info, debug (did you mean warning?)" },
		{ "log: {level: \"\"}\n",
			"3:14: log.level: \"\" is not one of error, warning, notice, info, debug\n" },
		{ "instance: a b\n", "3:11: instance: \"a b\" has other characters" },
		{ "instance: -a\n", "3:11: instance: \"-a\" has other characters" },
		{ "instance: \"\"\n", "3:11: instance: must not be empty" },
		{ "instance: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n",
			"3:11: instance: longer than 63 bytes" },
		{ "instance: \"a\\x1b[1m\"\n", "3:11: instance: control characters are not allowed" },
		{ "insecure_http: yes\n", "3:16: insecure_http: \"yes\" is not one of no, loopback" },
		{ "state_dir: ${REFRESHD_UNSET}/x\n",
			"3:12: state_dir: the variable REFRESHD_UNSET is not set" },
		{ "state_dir: ${}/x\n", "3:12: state_dir: a variable is written ${NAME}" },
		{ "state_dir: ${A-B}/x\n", "3:12: state_dir: a variable is written ${NAME}" },
		{ "state_dir: \"${PATH\"\n", "3:12: state_dir: a variable is written ${NAME}" },
		{ "api: {listen: 127.0.0.1}\n", "3:15: api.listen: " },
		{ "api: {listen: \"\"}\n", "3:15: api.listen: must not be empty" },
		{ "api: {listen: \"unix:${REFRESHD_UNSET}\"}\n", "3:15: api.listen: the variable" },
		{ "api: {listen: 127.0.0.1:1}\nmetrics: {listen: 127.0.0.1:1}\n",
			"4:19: metrics.listen: is api.listen's address" },
		{ "api: {listen: \"unix:/a\"}\nmetrics: {listen: \"unix:/a\"}\n",
			"4:19: metrics.listen: is api.listen's address" },
		{ "api: {listen: 127.0.0.1:1, tls: {cert_file: tls.crt}}\n",
			"3:45: api.tls.cert_file: needs api.tls.key_file" },
		{ "api: {listen: 127.0.0.1:1, tls: {key_file: tls.key}}\n",
			"3:44: api.tls.key_file: needs api.tls.cert_file" },
		{ "api: {tls: {cert_file: tls.crt, key_file: tls.key}}\n",
			"3:24: api.tls.cert_file: needs api.listen" },
		{ "api: {listen: 127.0.0.1:1, tls: {cert_file: none, key_file: tls.key}}\n",
			"3:45: api.tls.cert_file: none: cannot open" },
		{ "api: {listen: 127.0.0.1:1, tls: {cert_file: tls.crt, key_file: tls.crt}}\n",
			"3:64: api.tls.key_file: tls.crt has mode 0644" },
		{ "refresh: {margin: 5}\n",
			"3:19: refresh.margin: \"5\" is not a duration (like 250ms, 90s, 5m, 2h or 30d); allowed are 1s to 24h" },
		{ "refresh: {margin: 25h}\n", "3:19: refresh.margin: 25h is not within 1s and 24h" },
		{ "refresh: {margin: 0}\n", "3:19: refresh.margin: 0 is not within 1s and 24h" },
		{ "refresh: {margin: 99999999999999999999d}\n",
			"3:19: refresh.margin: 99999999999999999999d is not within" },
		{ "refresh: {margin_fraction: 0}\n", "3:28: refresh.margin_fraction: 0 is not within" },
		{ "refresh: {margin_fraction: 0.91}\n", "3:28: refresh.margin_fraction: 0.91 is not within" },
		{ "refresh: {margin_fraction: x}\n", "3:28: refresh.margin_fraction: \"x\" is not a share" },
		{ "refresh: {max_in_flight: 0}\n",
			"3:26: refresh.max_in_flight: 0 is not within 1 and 10000" },
		{ "refresh: {max_in_flight: 4294967297}\n",
			"3:26: refresh.max_in_flight: 4294967297 is not within" },
		{ "refresh: {max_in_flight: -1}\n",
			"3:26: refresh.max_in_flight: \"-1\" is not a number (digits)" },
		{ "refresh: {journal_max_bytes: 1K}\n",
			"3:30: refresh.journal_max_bytes: \"1K\" is not a size" },
		{ "refresh: {lease: 89s}\n",
			"3:18: refresh.timeout: refresh.lease (89s) must be at least this and 30s more (90s)" },
		{ "refresh: {timeout: 100s}\n",
			"3:20: refresh.timeout: refresh.lease (2m) must be at least" },
		{ "refresh: {connect_timeout: 61s}\n", "3:28: refresh.connect_timeout: must not be longer" },
		{ "refresh: {poll_interval: 1m, horizon: 59s}\n",
			"3:39: refresh.horizon: must not be shorter" },
	};

	expect_bad(BASE, v, COUNT(v));
	expect_good(BASE "refresh: {lease: 90s}\n");
}
END_TEST

START_TEST(variables_must_hold_plain_paths)
{
	static const char *const values[] = { "a\nb", "a${b", "\xff", "" };

	for (size_t i = 0; i < COUNT(values); i++) {
		ck_assert_int_eq(setenv("REFRESHD_ODD", values[i], 1), 0);
		ck_assert_int_eq(load_text(BASE "state_dir: ${REFRESHD_ODD}/x\n"), ST_INVALID);
		ck_assert_msg(
			has_line("3:12: state_dir: the variable REFRESHD_ODD "), "%.1500s", errors_text);
	}
	char *big = mem_printf("/%05000d", 0);
	ck_assert_int_eq(setenv("REFRESHD_ODD", big, 1), 0);
	ck_assert_int_eq(load_text(BASE "state_dir: ${REFRESHD_ODD}/x\n"), ST_INVALID);
	ck_assert(has_line("3:12: state_dir: the path is too long"));
	ck_assert_int_eq(load_text(BASE "state_dir: ${REFRESHD_ODD}${REFRESHD_ODD}\n"), ST_INVALID);
	ck_assert(has_line("3:12: state_dir: the path is too long"));
	ck_assert_int_eq(setenv("REFRESHD_ODD", "/odd $x", 1), 0);
	expect_good(BASE "state_dir: ${REFRESHD_ODD}/$y\n");
	ck_assert_str_eq(loaded->state_dir, "/odd $x/$y");
	expect_round_trip();
	mem_free(big);
	unsetenv("REFRESHD_ODD");
}
END_TEST

START_TEST(the_database_url_holds_no_password)
{
	static const struct bad v[] = {
		{ "postgresql://u:p@h/d\"}\n", "2:17: database.url: must not hold a password" },
		{ "postgres://h/d?password=p\"}\n", "2:17: database.url: must not hold a password" },
		{ "host=h password = p\"}\n", "2:17: database.url: must not hold a password" },
		{ "host=h password   =p\"}\n", "2:17: database.url: must not hold a password" },
		{ "mysql://h/d?a=b\"}\n", "2:17: database.url: expected postgresql://" },
		{ "mydb\"}\n", "2:17: database.url: expected postgresql://" },
		{ "\"}\n", "2:17: database.url: must not be empty" },
	};

	expect_bad("keyring_file: keyring\ndatabase: {url: \"", v, COUNT(v));
	expect_good(
		"keyring_file: keyring\ndatabase: {url: \"postgresql://u@h1:1,h2:2/d?target_session_attrs=read-write\"}\n");
}
END_TEST

START_TEST(mistakes_of_a_provider_are_told_with_their_place)
{
	static const struct bad v[] = {
		{ "website: x", "4:80: website: " },
		{ "nmae: x", "4:71: unknown key \"nmae\"; did you mean \"name\"?" },
		{ "unified_apis: [A]", "4:86: unified_apis: \"A\" is not 1 to 64 lower-case letters" },
		{ "unified_apis: [[]]", "4:86: unified_apis: expected plain text" },
		{ "unified_apis: [a, a]", "4:89: unified_apis: \"a\" is there already" },
		{ "omit_params: [\"\"]", "4:85: omit_params: an item must not be empty" },
		{ "omit_params: [\"a\\n\"]", "4:85: omit_params: control characters" },
		{ "client_auth: basic", "4:84: client_auth: \"basic\" is not one of client_secret_basic, " },
		{ "refresh_url: x", "4:84: refresh_url: " },
		{ "refresh_url: \"http://localhost/\"", "4:84: refresh_url: must be https://" },
		{ "refresh_url: \"https://{settings.x/\"", "4:84: refresh_url: a \"{\" is not closed" },
		{ "refresh_url: \"{settings.x}://a/\"", "4:84: refresh_url: " },
		{ "refresh_url: \"https://start.exact.{settings.tld}/\"",
			"4:84: refresh_url: a variable may not reach into the last two labels" },
		{ "refresh_url: \"https://a.{settings.b}c.com/\"",
			"4:84: refresh_url: a variable may not reach into the last two labels" },
		{ "refresh_url: \"https://{settings.host}/\"",
			"4:84: refresh_url: a variable may not reach into the last two labels" },
		{ "refresh_url: [a]", "4:84: refresh_url: expected a URL, found a list" },
		{ "refresh_url: \"https://a.example/{capture.x}\"",
			"4:84: refresh_url: {capture.x} is not among" },
		{ "params: [a]", "4:79: params: expected a map of texts, found a list" },
		{ "params: {a: [b]}", "4:83: params: expected plain text" },
		{ "params: {\"\": b}", "4:80: params: an item must not be empty" },
		{ "params: {a: \"{x}\"}", "4:83: params: \"{x}\" is not {settings.name}" },
		{ "params: {a: \"{capture.q}\"}", "4:79: params: {capture.q} is not among" },
		{ "params: {a: \"\\x7f\"}", "4:83: params: control characters" },
		{ "headers: {a b: c}", "4:81: headers: \"a b\" is not a header name" },
		{ "headers: {a: \"b\\r\\nX: y\"}", "4:84: headers: control characters" },
		{ "headers: {a: b, A: c}", "4:87: headers: \"A\" is there already" },
		{ "headers: {Content-Length: 1}", "4:81: headers: \"Content-Length\" cannot be set" },
		{ "headers: {Keep-Alive: 1}", "4:81: headers: \"Keep-Alive\" cannot be set" },
		{ "headers: {proxy-connection: 1}", "4:81: headers: \"proxy-connection\" cannot be set" },
		{ "headers: {x: \"{capture.h}\"}", "4:80: headers: {capture.h} is not among" },
		{ "rename_params: {a: \"{settings.x}\"}", "4:90: rename_params: a name cannot hold braces" },
		{ "rename_params: {a: []}", "4:90: rename_params: expected plain text" },
		{ "capture: {\"a b\": [/x]}", "4:81: capture: \"a b\" is not 1 to 64 letters" },
		{ "capture: {a: /x}", "4:84: capture: expected a list of 1 to 16 JSON pointers" },
		{ "capture: {a: []}", "4:84: capture: expected a list of 1 to 16 JSON pointers" },
		{ "capture: {a: [x]}", "4:85: capture: \"x\" is not a JSON pointer" },
		{ "response: {access_token: []}",
			"4:96: response.access_token: has 0 items; allowed are 1 to 16" },
		{ "response: {error: [/a~2]}", "4:90: response.error: \"/a~2\" is not a JSON pointer" },
		{ "response: {eror: [/a]}", "4:82: unknown key \"response.eror\"; did you mean \"error\"?" },
		{ "rotation: grace", "4:42: rotation grace needs rotation_grace" },
		{ "rotation: grace, rotation_grace: 0", "4:104: rotation_grace: must be longer than 0" },
		{ "rotation_grace: 5m", "4:87: rotation_grace: goes with rotation grace only" },
		{ "send_scope: literal", "4:42: send_scope literal needs scope" },
		{ "scope: a", "4:78: scope: goes with send_scope literal only" },
		{ "scope_separator: \"\"", "4:88: scope_separator: must not be empty" },
		{ "method: GET", "4:79: method: GET needs body_format query" },
		{ "not_before: 0.96", "4:83: not_before: 0.96 is not within 0 and 0.95" },
		{ "rate: 10",
			"4:77: rate: \"10\" is not a rate (like 10/s, 600/m or 1000/h); allowed are 1/h to 100000/s" },
		{ "rate: 0/s", "4:77: rate: 0/s is not within" },
		{ "timeout: 29s", "4:80: rotation strict needs a timeout of at least 30s" },
		{ "timeout: 91s",
			"4:80: timeout: refresh.lease (2m) must be at least this and 30s more (121s)" },
		{ "timeout: 40s, connect_timeout: 41s", "4:102: connect_timeout: must not be longer" },
		{ "default_expires_in: 2h, max_expires_in: 1h",
			"4:91: default_expires_in: must not be longer" },
		{ "access_token_overlap: maybe",
			"4:93: access_token_overlap: \"maybe\" is neither yes nor no" },
		{ "ca_file: none.pem", "4:80: ca_file: none.pem: cannot open" },
		{ "ca_file: empty", "4:80: ca_file: empty is empty" },
	};

	put_file("empty", "", 0600);
	for (size_t i = 0; i < COUNT(v); i++) {
		char *text = mem_printf("%s}}\n", v[i].text);
		struct bad one = { text, v[i].says };
		expect_bad(BASE "\nproviders:                           {p: {token_url: 'https://a.b/c', ",
			&one, 1);
		mem_free(text);
	}
	expect_good(BASE
		"providers: {p: {token_url: 'https://a.b/{capture.x}', capture: {x: [/x]}, rotation: none, timeout: 5s}}\n");
	ck_assert_int_eq(loaded->providers[0]->connect_timeout_us, 5 * US_PER_S);
}
END_TEST

START_TEST(a_provider_needs_a_key_and_a_place)
{
	static const struct bad v[] = {
		{ "providers: {X: {token_url: 'https://a.b/c'}}\n",
			"3:13: provider key \"X\" is not 1 to 64 lower-case" },
		{ "providers: {_x: {token_url: 'https://a.b/c'}}\n", "3:13: provider key \"_x\" is not" },
		{ "providers: {x: {}}\n", "3:16: missing key \"token_url\" (auth_type is oauth2)" },
		{ "insecure_http: loopback\nproviders: {x: {token_url: 'http://a.b/c'}}\n",
			"4:28: token_url: http:// is allowed to loopback" },
		{ "insecure_http: loopback\nproviders: {x: {token_url: 'http://127.0.0.1.{settings.x}/c'}}\n",
			"4:28: token_url: a variable may not reach" },
		{ "refresh: {timeout: 20s}\nproviders: {x: {token_url: 'https://a.b/c'}}\n",
			"4:16: rotation strict needs a refresh.timeout" },
		{ "providers: {x: {token_url: *a}}\n", "3:28: aliases are not allowed" },
	};

	expect_bad(BASE, v, COUNT(v));
	expect_good(BASE "providers: {x: {auth_type: none}}\n");
}
END_TEST

START_TEST(mistakes_of_a_client_are_told_with_their_place)
{
	static const struct bad v[] = {
		{ "{application: a, provider: p, client_secret_file: secret}",
			"5:4: missing key \"client_id\"" },
		{ "{provider: p, client_id: i, client_secret_file: secret}",
			"5:4: missing key \"application\"" },
		{ "{application: a, provider: pp, client_id: i, client_secret_file: secret}",
			"5:31: provider: there is no provider \"pp\"\n" },
		{ "{application: a, provider: nonee, client_id: i, client_secret_file: secret}",
			"5:31: provider: there is no provider \"nonee\"; did you mean \"none\"?" },
		{ "{application: a, provider: zzz, client_id: i, client_secret_file: secret}",
			"5:31: provider: there is no provider \"zzz\"\n" },
		{ "{application: a, provider: none, client_id: i, client_auth: none}",
			"5:31: provider: \"none\" is not of auth_type oauth2" },
		{ "{application: a, provider: raw, client_id: 'i:', client_secret_file: secret}",
			"5:47: client_id: cannot hold \":\"" },
		{ "{application: a, provider: p, client_id: i, client_auth: none, client_secret: x}",
			"5:67: unknown key \"client_secret\"; did you mean \"client_secret_file\"?" },
		{ "{application: a, provider: p, client_id: i}",
			"5:4: client_auth client_secret_basic needs client_secret_file" },
		{ "{application: a, provider: p, client_id: i, client_auth: client_secret_post}",
			"5:4: client_auth client_secret_post needs client_secret_file" },
		{ "{application: a, provider: p, client_id: i, client_auth: private_key_jwt}",
			"5:4: client_auth private_key_jwt needs private_key_file" },
		{ "{application: a, provider: p, client_id: i, client_auth: tls_client_auth, cert_file: tls.crt}",
			"5:4: client_auth tls_client_auth needs private_key_file" },
		{ "{application: a, provider: p, client_id: i, client_auth: tls_client_auth, private_key_file: tls.key}",
			"5:4: client_auth tls_client_auth needs cert_file" },
		{ "{application: a, provider: p, client_id: i, client_auth: none, client_secret_file: secret}",
			"5:87: client_secret_file: is of no use with client_auth none" },
		{ "{application: a, provider: p, client_id: i, client_auth: none, key_id: k}",
			"5:75: key_id: is of no use" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: missing}",
			"5:68: client_secret_file: missing: cannot open: No such" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: empty}",
			"5:68: client_secret_file: empty is empty" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: newline}",
			"5:68: client_secret_file: newline is empty" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: lines}",
			"5:68: client_secret_file: lines has more than one line" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: nul}",
			"5:68: client_secret_file: nul has more than one line" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: open}",
			"5:68: client_secret_file: open has mode 0644: others must" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: group}",
			"5:68: client_secret_file: group has mode 0620: others must" },
		{ "{application: a, provider: p, client_id: i, client_secret_file: /tmp}",
			"5:68: client_secret_file: /tmp: not a regular file" },
		{ "{application: a, provider: p, client_id: i, client_auth: private_key_jwt, private_key_file: tls.key}",
			"5:96: private_key_file: tls.key" },
		{ "{application: a, provider: p, client_id: i, client_auth: private_key_jwt, private_key_file: app1.pem, assertion_alg: RS256}",
			"5:96: private_key_file: app1.pem" },
		{ "{application: a, provider: p, client_id: i, client_auth: private_key_jwt, private_key_file: open}",
			"5:96: private_key_file: open has mode" },
	};

	put_file("empty", "", 0600);
	put_file("newline", "\n", 0600);
	put_file("lines", "a\nb\n", 0600);
	put_bytes("nul", "a\0b", 3, 0600);
	put_file("open", "x", 0644);
	put_file("group", "x", 0620);
	for (size_t i = 0; i < COUNT(v); i++) {
		char *text = mem_printf("%s]\n", v[i].text);
		struct bad one = { text, v[i].says };
		expect_bad(BASE
			"providers: {none: {auth_type: none}, p: {token_url: 'https://a.b/c'}, raw: {token_url: 'https://a.b/c', basic_raw: yes}}\n"
			"clients:\n  [",
			&one, 1);
		mem_free(text);
	}
	ck_assert_int_eq(
		load_text(BASE
			"providers: {p: {token_url: 'https://a.b/c', client_auth: none}}\nclients:\n"
			"  - {application: a, provider: p, client_id: i}\n  - {application: a, provider: p, client_id: j}\n"),
		ST_INVALID);
	ck_assert_msg(
		has_line(
			"6:5: a client of application \"a\" for provider \"p\" is defined already in c.yaml:5\n"),
		"%s", errors_text);
}
END_TEST

START_TEST(mistakes_of_a_webhook_are_told_with_their_place)
{
	static const struct bad v[] = {
		{ "{name: w, url: 'https://a.b/c'}", "3:12: missing key \"secret_file\"" },
		{ "{name: a/b, url: 'https://a.b/c', secret_file: webhook-ops}",
			"3:19: name: \"a/b\" has other characters" },
		{ "{name: w, url: 'https://a.b/c#f', secret_file: webhook-ops}", "3:27: url: " },
		{ "{name: w, url: 'http://127.0.0.1/c', secret_file: webhook-ops}",
			"3:27: url: must be https://" },
		{ "{name: w, url: 'https://a.b/c', secret_file: secret}", "3:57: secret_file: secret: " },
		{ "{name: w, url: 'https://a.b/c', secret_file: missing}",
			"3:57: secret_file: missing: cannot open" },
		{ "{name: w, url: 'https://a.b/c', secret_file: webhook-ops, events: []}",
			"3:78: events: has 0 items" },
		{ "{name: w, url: 'https://a.b/c', secret_file: webhook-ops, events: [vault.connection.token_refresh.fail]}",
			"3:79: events: \"vault.connection.token_refresh.fail\" matches no event (did you mean vault.connection.token_refresh.failed?)" },
		{ "{name: w, url: 'https://a.b/c', secret_file: webhook-ops, events: [zz.*]}",
			"3:79: events: \"zz.*\" matches no event\n" },
	};

	for (size_t i = 0; i < COUNT(v); i++) {
		char *text = mem_printf("%s]\n", v[i].text);
		struct bad one = { text, v[i].says };
		expect_bad(BASE "webhooks: [", &one, 1);
		mem_free(text);
	}
	ck_assert_int_eq(
		load_text(BASE "webhooks:\n  - {name: w, url: 'https://a.b/c', secret_file: webhook-ops}\n"
			       "  - {name: w, url: 'https://a.b/c', secret_file: webhook-ops}\n"),
		ST_INVALID);
	ck_assert_msg(
		has_line("5:12: webhook \"w\" is defined already in c.yaml:4\n"), "%.1500s", errors_text);
}
END_TEST

START_TEST(the_keyring_must_be_usable_and_private)
{
	put_file("keyring", "k1 short\n", 0600);
	ck_assert_int_eq(load_text(BASE), ST_INVALID);
	ck_assert_msg(has_line("2:15: keyring_file: keyring:1: "), "%.1500s", errors_text);
	put_file("keyring", "k1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n", 0604);
	ck_assert_int_eq(load_text(BASE), ST_INVALID);
	ck_assert(has_line("2:15: keyring_file: keyring has mode 0604: others must have no access"));
}
END_TEST

START_TEST(all_mistakes_of_all_files_come_in_order)
{
	put_file("b.yaml",
		"providers:\n  xero: {token_url: 'https://a.b/c'}\n  q: {token_url: x}\nlog: {level: info}\n",
		0644);
	put_file("a.yaml", "x: [\n", 0644);
	char *inc = path_of("inc");
	ck_assert_int_eq(mkdir(inc, 0700), 0);
	mem_free(inc);
	put_file("inc/2.yaml",
		"clients: [{application: a, provider: b, client_id: c, client_auth: none, bad: 1}]\n", 0644);
	put_file("inc/1.yaml", "include: [x]\nwebhooks: [1]\n", 0644);
	ck_assert_int_eq(
		load_text(
			"log: {level: debug, format: xml}\ninclude: [b.yaml, inc/*.yaml, a.yaml, none.yaml, none-*.yaml, b.yaml, [1]]\n"
			"providers:\n  xero: {token_url: 'https://a.b/d'}\nfoo: 1\n"),
		ST_INVALID);
	ck_assert_str_eq(errors_text, "c.yaml:1:29: log.format: \"xml\" is not one of logfmt, json\n"
				      "c.yaml:2:39: include: none.yaml: there is no such file\n"
				      "c.yaml:2:63: include: b.yaml is read already\n"
				      "c.yaml:2:71: include: expected a file name or a pattern\n"
				      "c.yaml:5:1: unknown key \"foo\"\n"
				      "b.yaml:2:3: provider \"xero\" is defined already in c.yaml:4\n"
				      "b.yaml:3:18: token_url: no http:// or https:// in front (at byte 1)\n"
				      "b.yaml:4:7: log.level is set already in c.yaml:1\n"
				      "inc/1.yaml:1:10: include: an included file cannot include\n"
				      "inc/1.yaml:2:12: webhooks: expected a map of options\n"
				      "inc/2.yaml:1:74: unknown key \"bad\"\n"
				      "a.yaml:2:1: did not find expected node content\n");
}
END_TEST

START_TEST(included_files_add_up)
{
	char *sub = path_of("sub");

	ck_assert_int_eq(mkdir(sub, 0700), 0);
	put_file("sub/one.yaml",
		"providers: {a: {token_url: 'https://a.b/c', ca_file: ../tls.crt}}\nlog: {level: error}\n",
		0644);
	put_file("sub/two.yaml", "", 0644);
	put_file("sub/three.yaml",
		"clients: [{application: x, provider: a, client_id: i, client_auth: none}]\ndatabase: {url: 'postgresql:///z'}\n",
		0644);
	expect_good(
		"keyring_file: keyring\ninclude: [\"${CREDENTIALS_DIRECTORY}/sub/t*.yaml\", sub/one.yaml, nothing/*]\nlog: {format: json}\n");
	ck_assert_int_eq(loaded->log.level, LOG_LEVEL_ERROR);
	ck_assert_int_eq(loaded->log.format, LOG_FORMAT_JSON);
	ck_assert_str_eq(loaded->database.url, "postgresql:///z");
	ck_assert_str_eq(conf_client(loaded, "x", "a")->client_id, "i");
	ck_assert_uint_eq(loaded->n_providers, 1);
	ck_assert_ptr_nonnull(strstr(loaded->providers[0]->file, "sub/one.yaml"));
	expect_round_trip();
	ck_assert_int_eq(load_text(BASE "include: [\"${REFRESHD_UNSET}/x\"]\n"), ST_INVALID);
	ck_assert(has_line("3:11: include: the variable REFRESHD_UNSET is not set"));
	ck_assert_int_eq(load_text(BASE "include: [c.yaml]\n"), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(errors_text, "c.yaml is read already"));
	mem_free(sub);
}
END_TEST

START_TEST(a_file_in_the_current_folder_is_found)
{
	struct conf_errors e = { .v = NULL, .n = 0 };
	char *before = getcwd(NULL, 0);

	put_file("c.yaml", BASE "include: [i.yaml]\n", 0644);
	put_file("i.yaml", "state_dir: s\n", 0644);
	ck_assert_int_eq(chdir(folder), 0);
	int rc = conf_load("c.yaml", &loaded, &e);
	ck_assert_int_eq(chdir(before), 0);
	ck_assert_int_eq(rc, 0);
	char *want = path_of("s");
	ck_assert_str_eq(loaded->state_dir, want);
	mem_free(want);
	free(before);
}
END_TEST

START_TEST(near_words_are_found_and_far_ones_not)
{
	static const char *const words[] = { "timeout", "margin", "rotation_grace", "url" };
	char big[200];

	memset(big, 'a', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	ck_assert_str_eq(conf_near("timeuot", words, 4), "timeout");
	ck_assert_str_eq(conf_near("rotation", words, 4), "rotation_grace");
	ck_assert_ptr_null(conf_near("zzzzzz", words, 4));
	ck_assert_ptr_null(conf_near("", words, 4));
	ck_assert_ptr_null(conf_near(big, words, 4));
	const char *const one[] = { big };
	ck_assert_ptr_null(conf_near("aaaa", one, 1));
	ck_assert_str_eq(conf_near("ur", words, 4), "url");
}
END_TEST

START_TEST(odd_texts_survive_a_dump)
{
	expect_good(BASE "providers:\n  p:\n    token_url: https://a.b/c\n"
			 "    name: \"- a: #b {c} \xf0\x9f\x98\x80 \\u0085 \\u2028 \\ufeff \\u00a0 'x'\"\n"
			 "    audience: \"?x\"\n    grant_type: \" \"\n"
			 "    params: {\"- k: \\u0085\": \"'\", \"yes\": \"no\", \"a#\": \": \"}\n");
	ck_assert_ptr_nonnull(strstr(loaded->providers[0]->name, "\xef\xbb\xbf"));
	expect_round_trip();
	ck_assert_ptr_nonnull(strstr(loaded->providers[0]->name, "\xf0\x9f\x98\x80 \xc2\x85 "));
}
END_TEST

/* --- mutations */

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void mutate(struct buf *b, uint64_t *r)
{
	static const char *const bits[] = { "[", "]", "{", "}", ": ", "- ", "\n", "\n  ", "&a ", "*a",
		"!!str ", "${", "}", "\t", "\"", "'", "\xff", "\xc3\xa9", "|", ">", "%", "---\n", "...", "0",
		"99999999999", "-1", "{settings.a}", "{capture.b}", "~", "#", "? ", "<<: ", "\\0", "../", "*",
		"/", ",", "\r\n", "private_key_jwt", "grace", "GET", "literal", "http://127.0.0.1/", "/tmp" };
	size_t at = next_random(r) % (b->len + 1);
	size_t n = next_random(r) % 40;
	struct buf out = BUF_INIT(1 << 20);

	n = n < b->len - at ? n : b->len - at;
	ck_ok(buf_append(&out, buf_str(b), at));
	switch (next_random(r) % 5) {
	case 0: /* leave out */
		ck_ok(buf_append(&out, buf_str(b) + at + n, b->len - at - n));
		break;
	case 1: /* twice */
		ck_ok(buf_append(&out, buf_str(b) + at, n));
		ck_ok(buf_append(&out, buf_str(b) + at, b->len - at));
		break;
	case 2: /* one byte */
		ck_ok(buf_append(&out, buf_str(b) + at, b->len - at));
		if (at < out.len)
			out.data[at] = (uint8_t)next_random(r);
		break;
	case 3: { /* uncomment the next commented line */
		ck_ok(buf_append(&out, buf_str(b) + at, b->len - at));
		char *hash = strstr((char *)out.data + (out.len > 0 ? at : 0), "\n#");
		if (hash != NULL)
			memmove(hash + 1, hash + 2, strlen(hash + 2) + 1);
		out.len = strlen(buf_str(&out));
		break;
	}
	default:
		ck_ok(buf_puts(&out, bits[next_random(r) % COUNT(bits)]));
		ck_ok(buf_append(&out, buf_str(b) + at, b->len - at));
	}
	buf_move(b, &out);
}

START_TEST(no_mutation_of_the_sample_breaks_the_reader)
{
	const char *given = getenv("REFRESHD_TEST_SEED");
	uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : 0;
	char *sample = sample_text();
	unsigned good = 0;

	if (seed == 0)
		sys_random(&seed, sizeof(seed));
	seed |= 1;
	printf("# mutation seed %llu\n", (unsigned long long)seed);
	for (int i = 0; i < 3000; i++) {
		struct buf b = BUF_INIT(1 << 20);
		ck_ok(buf_puts(&b, sample));
		for (uint64_t k = next_random(&seed) % 4 + 1; k > 0; k--)
			mutate(&b, &seed);
		put_bytes("c.yaml", buf_str(&b), b.len, 0644);
		int rc = load_file("c.yaml");
		ck_assert(rc == 0 || rc == ST_INVALID);
		if (rc == 0) {
			good++;
			expect_round_trip();
		}
		buf_fini(&b);
	}
	/* Both kinds must be among them, or the mutations are no good. */
	ck_assert_uint_gt(good, 100);
	ck_assert_uint_lt(good, 2900);
	mem_free(sample);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("conf");
	TCase *t = tcase_create("conf");

	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_set_timeout(t, 120);
	unit_add(t, the_smallest_file_has_all_defaults);
	unit_add(t, a_plain_provider_has_all_defaults);
	unit_add(t, a_grant_settles_other_options);
	unit_add(t, a_grant_refuses_what_it_cannot_use);
	unit_add(t, every_option_is_read);
	unit_add(t, the_sample_is_good_and_so_are_its_commented_lines);
	unit_add(t, the_manual_names_every_option);
	unit_add(t, a_snapshot_lives_as_long_as_someone_holds_it);
	unit_add(t, a_restart_is_asked_for_what_a_reload_cannot_change);
	unit_add(t, rates_and_shares_are_printed_exactly);
	unit_add(t, yaml_beyond_the_subset_is_refused_in_place);
	unit_add(t, files_that_are_no_files_are_told_plainly);
	unit_add(t, a_flood_of_errors_is_cut);
	unit_add(t, mistakes_at_the_top_are_told_with_their_place);
	unit_add(t, variables_must_hold_plain_paths);
	unit_add(t, the_database_url_holds_no_password);
	unit_add(t, mistakes_of_a_provider_are_told_with_their_place);
	unit_add(t, a_provider_needs_a_key_and_a_place);
	unit_add(t, mistakes_of_a_client_are_told_with_their_place);
	unit_add(t, mistakes_of_a_webhook_are_told_with_their_place);
	unit_add(t, the_keyring_must_be_usable_and_private);
	unit_add(t, all_mistakes_of_all_files_come_in_order);
	unit_add(t, included_files_add_up);
	unit_add(t, a_file_in_the_current_folder_is_found);
	unit_add(t, near_words_are_found_and_far_ones_not);
	unit_add(t, odd_texts_survive_a_dump);
	unit_add(t, no_mutation_of_the_sample_breaks_the_reader);
	suite_add_tcase(s, t);
	return s;
}
