/*
 * test_subscription - endpoints of the API in the webhook service, in virtual time: who gets what, both kinds
 * of signatures, rotation, which addresses are reached, changes by another daemon, and the check of a new
 * endpoint.
 *
 * Signatures are verified with libcrypto from the public key alone, not by the code that made them.
 */
#include "service/webhook.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "base/base64.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/str.h"
#include "base/sys.h"
#include "service/webhook_rules.h"
#include "sim/fake.h"
#include "sim/fake_outbox.h"
#include "unit/unit.h"

#define ID "3f0d0f5c-6d1e-4f6a-9a55-0b8d2f1c7a01"
#define OTHER_ID "3f0d0f5c-6d1e-4f6a-9a55-0b8d2f1c7a02"
#define DAY_US (24 * 3600 * US_PER_S)

static struct {
	struct loop *loop;
	struct store *store;
	struct httpc *httpc;
	struct webhook *webhook;
	struct conf *conf;
	unsigned n_got;
	char url[200], id[64], type[64], standard[800], apideck[80], body[1024];
	int64_t timestamp;
	struct fake_answer answer;
	struct webhook_keys keys, old;
	struct buf sealed, sealed_old;
	unsigned checked;
	int status;
	const char *error;
	char log[100][400];
	unsigned n_log;
} t;

/* ---------------------------------------------------------------- world */

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");
	ck_assert(f != NULL && fputs(text, f) >= 0 && fclose(f) == 0);
	ck_ok(chmod(path, 0600));
}

static struct conf *make_conf(const char *options)
{
	char dir[] = "/tmp/refreshd-hooks-XXXXXX";
	ck_assert(mkdtemp(dir) != NULL);
	char *yaml = mem_printf("%s/c.yaml", dir), *ring = mem_printf("%s/keyring", dir);
	char *text = mem_printf(
		"instance: sim\nstate_dir: %s\ndatabase: {url: \"postgresql:///x\"}\nkeyring_file: %s\n%s\n",
		dir, ring, options);
	write_file(ring, "k1 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
	write_file(yaml, text);
	struct conf *c = NULL;
	struct conf_errors errors = {0};
	if (conf_load(yaml, &c, &errors) != 0)
		conf_errors_print(&errors, stderr);
	ck_assert(c != NULL);
	conf_errors_fini(&errors);
	ck_assert(unlink(yaml) == 0 && unlink(ring) == 0 && rmdir(dir) == 0);
	mem_free(yaml);
	mem_free(ring);
	mem_free(text);
	return c;
}

static void copy_header(char *to, size_t cap, const struct fake_request *q, const char *name)
{
	const char *v = fake_request_header(q, name);
	ck_assert_msg(v != NULL, "header %s is missing", name);
	ck_assert_uint_lt(strlen(v), cap);
	snprintf(to, cap, "%s", v);
}

static void on_request(void *arg, const struct fake_request *q, struct fake_answer *a)
{
	(void)arg;
	t.n_got++;
	snprintf(t.url, sizeof t.url, "%s", q->url);
	copy_header(t.id, sizeof t.id, q, "webhook-id");
	copy_header(t.type, sizeof t.type, q, "x-apideck-event-type");
	copy_header(t.standard, sizeof t.standard, q, "webhook-signature");
	copy_header(t.apideck, sizeof t.apideck, q, "x-apideck-signature");
	const char *at = fake_request_header(q, "webhook-timestamp");
	ck_ok(str_parse_i64(at, strlen(at), &t.timestamp));
	snprintf(t.body, sizeof t.body, "%s", q->body);
	*a = t.answer;
}

static void on_log(enum log_level level, const char *line, void *arg)
{
	(void)level;
	(void)arg;
	snprintf(t.log[t.n_log++ % 100], sizeof t.log[0], "%s", line);
}

static unsigned logged(const char *event)
{
	unsigned n = 0;
	for (unsigned i = 0; i < t.n_log && i < 100; i++)
		n += strstr(t.log[i], event) != NULL;
	return n;
}

static void use(const char *options)
{
	struct conf *old = t.conf;
	t.conf = make_conf(options);
	webhook_set_conf(t.webhook, t.conf);
	conf_unref(old);
}

static void make_keys(struct webhook_keys *keys, struct buf *sealed)
{
	struct fault f = {0};
	uint8_t id[16];
	ck_ok(str_parse_uuid(ID, strlen(ID), id));
	ck_ok(webhook_keys_new(NULL, keys, &f));
	buf_init(sealed, 1000);
	ck_ok(webhook_keys_seal(keys, t.conf->keyring, id, sealed));
}

static void setup(void)
{
	memset(&t, 0, sizeof t);
	fake_clock_start(20261124);
	metrics_reset();
	log_setup(LOG_FORMAT_LOGFMT, LOG_LEVEL_DEBUG);
	log_set_sink(on_log, NULL);
	struct fault f = {0};
	ck_ok(loop_new(&t.loop, &f));
	t.store = fake_outbox_new(t.loop);
	const struct httpc_params p = {.max_connections = 64, .user_agent = "sim"};
	ck_ok(httpc_new(t.loop, NULL, &p, &t.httpc, &f));
	fake_httpc_on_request(t.httpc, on_request, NULL);
	ck_ok(webhook_new(t.loop, t.store, t.httpc, &t.webhook, &f));
	t.answer = (struct fake_answer){
		.result = HTTPC_COMPLETE, .status = 200, .after_us = US_PER_MS, .address = "8.8.8.8"};
	use("");
	make_keys(&t.keys, &t.sealed);
	make_keys(&t.old, &t.sealed_old);
	webhook_start(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
}

static void teardown(void)
{
	fake_outbox_free(t.store);
	webhook_free(t.webhook);
	httpc_free(t.httpc);
	loop_free(t.loop);
	conf_unref(t.conf);
	webhook_keys_fini(&t.keys);
	webhook_keys_fini(&t.old);
	buf_fini(&t.sealed);
	buf_fini(&t.sealed_old);
	log_set_sink(NULL, NULL);
	sys_set(NULL);
}

static struct store_hook hook_of(const char *url)
{
	return (struct store_hook){
		.endpoint_id = ID,
		.application_id = "app1",
		.url = url,
		.unified_api = "vault",
		.description = "",
		.events = "vault.connection.token_refresh.*",
		.public_key = "",
		.secret = t.sealed.data,
		.secret_len = t.sealed.len,
	};
}

static void subscribe(const char *url)
{
	const struct store_hook h = hook_of(url);
	fake_outbox_set_hook(t.store, &h);
}

static void poll_now(void)
{
	webhook_poll(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
}

static unsigned post(enum event_type type, const char *application)
{
	unsigned e = fake_outbox_event(t.store, type, application);
	webhook_kick(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
	return e;
}

/* ---------------------------------------------------------------- signatures */

static bool has_signature(const char *one)
{
	size_t n = strlen(one);
	for (const char *s = t.standard; s != NULL; s = strchr(s, ' ')) {
		s += *s == ' ';
		if (strncmp(s, one, n) == 0 && (s[n] == ' ' || s[n] == '\0'))
			return true;
	}
	return false;
}

static bool hmac_fits(const struct webhook_keys *k)
{
	const struct event_secret *const secrets[] = {&k->hmac};
	struct buf want = BUF_INIT(1000);
	ck_ok(event_sign_standard(secrets, 1, NULL, t.id, t.timestamp, t.body, strlen(t.body), &want));
	bool fits = has_signature(buf_str(&want));
	buf_fini(&want);
	return fits;
}

static bool apideck_fits(const struct webhook_keys *k)
{
	struct buf want = BUF_INIT(1000);
	ck_ok(event_sign_apideck(&k->hmac, t.body, strlen(t.body), &want));
	bool fits = strcmp(t.apideck, buf_str(&want)) == 0;
	buf_fini(&want);
	return fits;
}

static bool verify(const uint8_t public_key[32], const struct buf *sig, const char *text)
{
	EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, public_key, 32);
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	ck_assert(key != NULL && EVP_DigestVerifyInit(md, NULL, NULL, NULL, key) == 1);
	bool good = EVP_DigestVerify(md, sig->data, sig->len, (const unsigned char *)text, strlen(text)) == 1;
	EVP_MD_CTX_free(md);
	EVP_PKEY_free(key);
	return good;
}

/* As a receiver does it: from the shown public key, any of the v1a signatures. */
static bool ed25519_fits(const struct webhook_keys *k)
{
	struct buf public_key = BUF_INIT(100), raw = BUF_INIT(100), sig = BUF_INIT(200);
	ck_ok(webhook_keys_public(k, &public_key));
	ck_assert(strncmp(buf_str(&public_key), "whpk_", 5) == 0);
	ck_ok(base64_decode(&raw, buf_str(&public_key) + 5, public_key.len - 5));
	ck_assert_uint_eq(raw.len, 32);
	char *text = mem_printf("%s.%lld.%s", t.id, (long long)t.timestamp, t.body);
	bool fits = false;
	for (const char *s = strstr(t.standard, "v1a,"); s != NULL; s = strstr(s + 1, "v1a,")) {
		buf_reset(&sig);
		ck_ok(base64_decode(&sig, s + 4, strcspn(s + 4, " ")));
		fits = fits || verify(raw.data, &sig, text);
	}
	mem_free(text);
	buf_fini(&public_key);
	buf_fini(&raw);
	buf_fini(&sig);
	return fits;
}

START_TEST(its_application_s_events_come_with_both_signatures)
{
	subscribe("https://a.test/hook");
	poll_now();
	unsigned other = post(EVENT_REFRESH_FAILED, "app2"), unwanted = post(EVENT_CREATED, "app1"),
		 all = post(EVENT_PROVIDER_FAILING, "*");
	ck_assert_uint_eq(t.n_got, 0);
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_uint_eq(t.n_got, 1);
	ck_assert_str_eq(t.url, "https://a.test/hook");
	ck_assert(hmac_fits(&t.keys) && ed25519_fits(&t.keys) && apideck_fits(&t.keys));
	ck_assert(!hmac_fits(&t.old) && !ed25519_fits(&t.old));
	ck_assert(fake_outbox_delivery(t.store, e, ID)->delivered);
	ck_assert(fake_outbox_delivery(t.store, other, ID) == NULL &&
		  fake_outbox_delivery(t.store, unwanted, ID) == NULL);
	ck_assert(fake_outbox_delivery(t.store, all, ID) == NULL);
}
END_TEST

START_TEST(during_a_rotation_both_secrets_sign)
{
	struct store_hook h = hook_of("https://a.test/hook");
	h.previous_secret = t.sealed_old.data;
	h.previous_secret_len = t.sealed_old.len;
	h.previous_until = sys_wall_us() + DAY_US;
	fake_outbox_set_hook(t.store, &h);
	poll_now();
	post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_uint_eq(t.n_got, 1);
	ck_assert(hmac_fits(&t.keys) && ed25519_fits(&t.keys) && hmac_fits(&t.old) && ed25519_fits(&t.old));
	ck_assert(apideck_fits(&t.old));
	fake_loop_run_for(t.loop, DAY_US); /* without a look at the database in between */
	post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_uint_eq(t.n_got, 2);
	ck_assert(hmac_fits(&t.keys) && ed25519_fits(&t.keys) && apideck_fits(&t.keys));
	ck_assert(!hmac_fits(&t.old) && !ed25519_fits(&t.old));
}
END_TEST

/* ---------------------------------------------------------------- addresses */

static const struct {
	const char *options, *url, *address;
	bool reached;
} addresses[] = {
	{"", "https://a.test/", "8.8.8.8", true},
	{"", "https://a.test/", "10.0.0.1", false},
	{"", "https://a.test/", "169.254.169.254", false},
	{"", "https://a.test/", "127.0.0.1", false},
	{"", "https://a.test/", "::ffff:127.0.0.1", false},
	{"insecure_http: loopback", "https://a.test/", "127.0.0.1", true},
	{"insecure_http: loopback", "https://a.test/", "::1", true},
	{"insecure_http: loopback", "https://a.test/", "8.8.8.8", true},
	{"insecure_http: loopback", "https://a.test/", "192.168.1.1", false},
	{"insecure_http: loopback", "http://localhost:99/", "127.0.0.1", true},
	{"insecure_http: loopback", "http://localhost:99/", "8.8.8.8", false},
	{"insecure_http: loopback", "http://localhost:99/", "10.0.0.1", false},
};

START_TEST(private_addresses_are_never_reached)
{
	use(addresses[_i].options);
	t.answer.address = addresses[_i].address;
	subscribe(addresses[_i].url);
	poll_now();
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, ID);
	ck_assert(d != NULL && d->delivered == addresses[_i].reached);
	if (!addresses[_i].reached)
		ck_assert_str_eq(d->error, "address_refused");
}
END_TEST

START_TEST(urls_must_be_https)
{
	static const struct {
		const char *url;
		bool safe, tests;
	} urls[] = {
		{"https://a.test/x?y=1", true, true},
		{"http://a.test/", false, false},
		{"http://127.0.0.1:80/", false, true},
		{"http://localhost/", false, true},
		{"http://10.0.0.1/", false, false},
		{"ftp://a.test/", false, false},
		{"https://user:pass@a.test/", false, false},
		{"", false, false},
	};
	struct conf *tests = make_conf("insecure_http: loopback");
	for (size_t i = 0; i < sizeof urls / sizeof *urls; i++) {
		struct fault f = {0};
		ck_assert_msg(
			(webhook_check_url(t.conf, urls[i].url, &f) == 0) == urls[i].safe, "%s", urls[i].url);
		ck_assert_msg(
			(webhook_check_url(tests, urls[i].url, &f) == 0) == urls[i].tests, "%s", urls[i].url);
	}
	conf_unref(tests);
}
END_TEST

/* ---------------------------------------------------------------- changes */

START_TEST(changes_are_seen_at_a_poll_and_nothing_is_read_without_one)
{
	subscribe("https://a.test/1");
	poll_now();
	ck_assert_uint_eq(fake_outbox_calls(t.store)->hooks_told, 1);
	for (unsigned i = 0; i < 10; i++)
		poll_now();
	ck_assert_uint_eq(fake_outbox_calls(t.store)->hooks_told, 1);
	ck_assert_uint_ge(fake_outbox_calls(t.store)->loads, 11);
	subscribe("https://a.test/2"); /* another daemon */
	poll_now();
	post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_str_eq(t.url, "https://a.test/2");
	subscribe("https://a.test/3"); /* ourselves */
	webhook_changed(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
	post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_str_eq(t.url, "https://a.test/3");
}
END_TEST

START_TEST(an_attempt_ends_as_it_began_and_a_deleted_endpoint_gets_nothing)
{
	subscribe("https://a.test/hook");
	poll_now();
	t.answer.after_us = 10 * US_PER_S;
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_uint_eq(t.n_got, 1);
	fake_outbox_remove_hook(t.store, ID);
	poll_now();
	unsigned late = post(EVENT_REFRESH_FAILED, "app1");
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, ID)->delivered);
	ck_assert(fake_outbox_delivery(t.store, late, ID) == NULL);
	ck_assert_uint_eq(t.n_got, 1);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 0);
}
END_TEST

START_TEST(an_endpoint_that_is_off_gets_nothing_until_it_is_on)
{
	subscribe("https://a.test/hook");
	poll_now();
	t.answer.status = 410;
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	ck_assert(fake_outbox_is_disabled(t.store, ID));
	ck_assert(fake_outbox_delivery(t.store, e, ID)->done);
	ck_assert_uint_eq(logged("webhook.disabled"), 1);
	post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_uint_eq(t.n_got, 1);
	t.answer.status = 200;
	fake_outbox_set_disabled(t.store, ID, false);
	subscribe("https://a.test/hook"); /* enabling moves the mark */
	poll_now();
	post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_uint_eq(t.n_got, 2);
}
END_TEST

START_TEST(gone_from_an_address_that_is_not_its_any_more)
{
	subscribe("https://a.test/old");
	poll_now();
	t.answer.status = 410;
	t.answer.after_us = 10 * US_PER_S;
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_str_eq(t.url, "https://a.test/old");
	subscribe("https://a.test/new");
	webhook_changed(t.webhook);
	t.answer.status = 200;
	t.answer.after_us = US_PER_MS;
	fake_loop_run_for(t.loop, 60 * US_PER_S);
	ck_assert(!fake_outbox_is_disabled(t.store, ID));
	ck_assert_str_eq(t.url, "https://a.test/new");
	ck_assert(fake_outbox_delivery(t.store, e, ID)->delivered);
}
END_TEST

START_TEST(a_secret_that_cannot_be_opened_lets_events_wait)
{
	struct store_hook h = hook_of("https://a.test/hook");
	h.endpoint_id = OTHER_ID; /* sealed for another endpoint */
	fake_outbox_set_hook(t.store, &h);
	poll_now();
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	fake_loop_run_for(t.loop, DAY_US);
	ck_assert_uint_eq(t.n_got, 0);
	ck_assert(!fake_outbox_delivery(t.store, e, OTHER_ID)->done);
	ck_assert_uint_eq(logged("webhook.endpoint_unusable"), 1);
	use(""); /* with another keyring it may open: it is tried again, although nothing changed in the
		    database */
	poll_now();
	ck_assert_uint_eq(logged("webhook.endpoint_unusable"), 2);
}
END_TEST

START_TEST(a_failed_load_is_repeated)
{
	subscribe("https://a.test/hook");
	fake_outbox_fail(t.store, ST_UNAVAILABLE, false);
	poll_now();
	fake_outbox_fail(t.store, 0, false);
	fake_loop_run_for(t.loop, 20 * US_PER_S); /* without a poll */
	post(EVENT_REFRESH_FAILED, "app1");
	ck_assert_uint_eq(t.n_got, 1);
	unsigned told = fake_outbox_calls(t.store)->hooks_told;
	fake_outbox_fail(t.store, ST_UNAVAILABLE, false);
	use(""); /* all of them are asked for, changed or not */
	fake_loop_run_for(t.loop, US_PER_S);
	fake_outbox_fail(t.store, 0, false);
	unsigned failed = fake_outbox_calls(t.store)->hooks_told;
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert_uint_gt(failed, told); /* the fake counts what it would have told */
	ck_assert_uint_eq(fake_outbox_calls(t.store)->hooks_told, failed + 1);
}
END_TEST

/* ---------------------------------------------------------------- the check of a new one */

static void on_checked(void *arg, int status, const char *error)
{
	ck_assert_ptr_eq(arg, &t);
	t.checked++;
	t.status = status;
	t.error = error;
}

static int check_of(const char *application, const char *url)
{
	struct fault f = {0};
	return webhook_check(t.webhook, t.conf, ID, application, url, &t.keys, on_checked, &t, &f);
}

static int check(const char *url)
{
	return check_of("app1", url);
}

static const struct {
	struct fake_answer answer;
	int status;
	const char *error; /* NULL: accepted */
} checks[] = {
	{{.result = HTTPC_COMPLETE, .status = 200}, 200, NULL},
	{{.result = HTTPC_COMPLETE, .status = 204}, 204, NULL},
	{{.result = HTTPC_COMPLETE, .status = 302}, 302, "redirect"},
	{{.result = HTTPC_COMPLETE, .status = 404}, 404, "http_status"},
	{{.result = HTTPC_COMPLETE, .status = 410}, 410, "http_status"},
	{{.result = HTTPC_CUT, .error = HTTPC_E_TOO_LARGE, .status = 200}, 200, NULL},
	{{.result = HTTPC_CUT, .error = HTTPC_E_CLOSED, .status = 200}, 200, "closed"},
	{{.result = HTTPC_NEVER_SENT, .error = HTTPC_E_TLS}, 0, "tls"},
	{{.hang = true}, 0, "timeout"},
	{{.address = "10.0.0.1"}, 0, "address_refused"},
	{{.address = "127.0.0.1"}, 0, "address_refused"},
};

START_TEST(a_new_endpoint_is_asked_first)
{
	t.answer = checks[_i].answer;
	t.answer.after_us = US_PER_MS;
	ck_ok(check("https://new.test/hook"));
	ck_assert_uint_eq(t.checked, 0);
	fake_loop_run_for(t.loop, 60 * US_PER_S);
	ck_assert_uint_eq(t.checked, 1);
	ck_assert_int_eq(t.status, checks[_i].status);
	if (checks[_i].error == NULL)
		ck_assert_ptr_null(t.error);
	else
		ck_assert_str_eq(t.error, checks[_i].error);
	ck_assert_str_eq(t.type, "refreshd.webhook.test");
	ck_assert(hmac_fits(&t.keys) && ed25519_fits(&t.keys));
	ck_assert(strstr(t.body, "\"entity_type\":\"Endpoint\"") != NULL && strstr(t.body, ID) != NULL);
	ck_assert(strstr(t.body, "whsec_") == NULL && strstr(t.body, "whsk_") == NULL);
}
END_TEST

START_TEST(checks_are_few_at_once_and_end_when_told)
{
	t.answer.hang = true;
	unsigned n = 0;
	for (unsigned app = 0; app < 6; app++) {
		char name[16];
		unsigned own = 0;
		snprintf(name, sizeof name, "app%u", app);
		while (check_of(name, "https://new.test/hook") == 0 && own < 100)
			own++;
		ck_assert_uint_eq(own, app < 4 ? 4 : 0); /* nobody gets all of them */
		n += own;
	}
	ck_assert_uint_eq(n, 16);
	ck_assert_int_eq(check("https://new.test/hook"), ST_FULL);
	webhook_end_checks(t.webhook);
	ck_assert_uint_eq(t.checked, 16);
	ck_assert_str_eq(t.error, "canceled");
	ck_ok(check("https://new.test/hook")); /* the last one ends with the service */
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("subscription");
	TCase *c = tcase_create("subscription");
	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_test(c, its_application_s_events_come_with_both_signatures);
	tcase_add_test(c, during_a_rotation_both_secrets_sign);
	tcase_add_loop_test(c, private_addresses_are_never_reached, 0, sizeof addresses / sizeof *addresses);
	tcase_add_test(c, urls_must_be_https);
	tcase_add_test(c, changes_are_seen_at_a_poll_and_nothing_is_read_without_one);
	tcase_add_test(c, an_attempt_ends_as_it_began_and_a_deleted_endpoint_gets_nothing);
	tcase_add_test(c, an_endpoint_that_is_off_gets_nothing_until_it_is_on);
	tcase_add_test(c, gone_from_an_address_that_is_not_its_any_more);
	tcase_add_test(c, a_secret_that_cannot_be_opened_lets_events_wait);
	tcase_add_test(c, a_failed_load_is_repeated);
	tcase_add_loop_test(c, a_new_endpoint_is_asked_first, 0, sizeof checks / sizeof *checks);
	tcase_add_test(c, checks_are_few_at_once_and_end_when_told);
	suite_add_tcase(s, c);
	return s;
}
