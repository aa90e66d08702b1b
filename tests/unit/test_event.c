/*
 * event - bodies byte for byte, patterns, secrets, and both signatures against published vectors.
 */
#include "unit/unit.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base64.h"
#include "base/crypto.h"
#include "base/mem.h"
#include "base/sys.h"
#include "model/event.h"

/* Standard Webhooks' own vector. */
#define STD_SECRET "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
#define STD_ID "msg_p5jXN8AQM9LWM0D4loKWxJek"
#define STD_TIME 1614265330
#define STD_BODY "{\"test\": 2432232314}"
#define STD_SIG "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

static const char apideck_body[] =
	"{\"payload\":{\"entity\":{\"auth_type\":\"oauth2\",\"consumer_id\":\"c1\","
	"\"created_at\":\"2020-09-19T12:18:37.071Z\",\"enabled\":true,\"health\":\"needs_auth\",\"icon\":"
	"\"\","
	"\"id\":\"app1+c1\",\"last_refresh_failed_at\":\"2026-11-23T10:00:00.000Z\",\"logo\":\"\","
	"\"name\":\"Salesforce\",\"service_id\":\"salesforce\",\"state\":\"added\",\"tag_line\":\"\","
	"\"unified_api\":\"crm\",\"updated_at\":\"2026-11-23T10:00:00.000Z\","
	"\"website\":\"https://"
	"www.salesforce.com\"},\"entity_id\":\"app1+c1\",\"entity_type\":\"Connection\","
	"\"event_id\":\"9755c355-56c3-4a2f-a2da-86ff4411fccb\","
	"\"event_type\":\"vault.connection.token_refresh.failed\",\"execution_attempt\":1,"
	"\"occurred_at\":\"2026-11-23T10:00:00.000Z\",\"service_id\":\"apideck-vault\"}}";

static const uint8_t an_id[16] = {
	0x97, 0x55, 0xc3, 0x55, 0x56, 0xc3, 0x4a, 0x2f, 0xa2, 0xda, 0x86, 0xff, 0x44, 0x11, 0xfc, 0xcb};
#define TEN_OCLOCK (INT64_C(1795428000) * US_PER_S) /* 2026-11-23T10:00:00Z */

static struct event_entity salesforce(void)
{
	return (struct event_entity){.application_id = "app1",
		.consumer_id = "c1",
		.unified_api = "crm",
		.service_id = "salesforce",
		.name = "Salesforce",
		.website = "https://www.salesforce.com",
		.auth_type = "oauth2",
		.state = "added",
		.health = "needs_auth",
		.enabled = true,
		.created_at = INT64_C(1600517917071000),
		.updated_at = TEN_OCLOCK,
		.last_refresh_failed_at = TEN_OCLOCK};
}

static struct event_secret secret_of(const char *text)
{
	struct event_secret s;
	struct fault f = {0};

	ck_assert_msg(event_secret_parse(text, strlen(text), &s, &f) == 0, "%s", f.text);
	return s;
}

START_TEST(types_parse_back)
{
	enum event_type t = EVENT_TEST;

	for (unsigned i = EVENT_NONE + 1; i < EVENT_TYPE_COUNT; i++) {
		ck_ok(event_type_parse(event_type_word((enum event_type)i), &t));
		ck_assert_uint_eq(t, i);
	}
	t = EVENT_TEST;
	ck_assert_int_eq(event_type_parse("", &t), ST_NOT_FOUND);
	ck_assert_int_eq(event_type_parse("vault.connection", &t), ST_NOT_FOUND);
	ck_assert_int_eq(t, EVENT_TEST);
}
END_TEST

START_TEST(patterns)
{
	static const struct {
		const char *pattern;
		enum event_type t;
		bool want;
	} rows[] = {
		{"*", EVENT_REFRESH_FAILED, true},
		{"*", EVENT_PROVIDER_FAILING, true},
		{"*", EVENT_NONE, false},
		{"vault.connection.*", EVENT_CREATED, true},
		{"vault.connection.*", EVENT_REFRESH_FAILED, true},
		{"vault.connection.*", EVENT_PROVIDER_FAILING, false},
		{"vault.*", EVENT_UPDATED, true},
		{"vault.connection.token_refresh.*", EVENT_REFRESH_PENDING, true},
		{"vault.connection.token_refresh.*", EVENT_UPDATED, false},
		{"vault.connection.updated", EVENT_UPDATED, true},
		{"vault.connection.update", EVENT_UPDATED, false},
		{"vault.connection.upd*", EVENT_UPDATED, false},
		{"", EVENT_UPDATED, false},
		{"", EVENT_NONE, false},
		{".*", EVENT_UPDATED, false},
		{"Vault.*", EVENT_UPDATED, false},
		{"refreshd.webhook.test", EVENT_TEST, true},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		ck_assert_msg(
			event_type_matches(&rows[i].pattern, 1, rows[i].t) == rows[i].want, "row %zu", i);
	ck_assert(!event_type_matches(NULL, 0, EVENT_CREATED));
	const char *two[] = {"refreshd.*", "vault.connection.created"};
	ck_assert(event_type_matches(two, 2, EVENT_CREATED));
	ck_assert(!event_type_matches(two, 2, EVENT_UPDATED));
}
END_TEST

START_TEST(entity_byte_for_byte)
{
	struct event_entity e = salesforce();
	struct buf out = BUF_INIT(4096);

	ck_ok(event_entity_build(&e, &out));
	/* The entity inside the published vector. */
	const char *in = strstr(apideck_body, "{\"auth_type\"");
	ck_assert_uint_eq(out.len, (size_t)(strstr(in, ",\"entity_id\"") - in));
	ck_assert_int_eq(memcmp(out.data, in, out.len), 0);
	buf_fini(&out);
}
END_TEST

START_TEST(entity_without_failure_and_with_odd_text)
{
	struct event_entity e = {
		.application_id = "a\"b", .consumer_id = "\xc3\xa9/\xe2\x82\xac", .state = "callable"};
	struct buf out = BUF_INIT(4096);

	ck_ok(event_entity_build(&e, &out));
	ck_assert_str_eq(buf_str(&out), "{\"auth_type\":\"\",\"consumer_id\":\"\xc3\xa9/"
					"\xe2\x82\xac\",\"created_at\":\"1970-01-01T00:00:00.000Z\","
					"\"enabled\":false,\"health\":\"\",\"icon\":\"\",\"id\":\"a\\\"b+"
					"\xc3\xa9/\xe2\x82\xac\",\"logo\":\"\","
					"\"name\":\"\",\"service_id\":\"\",\"state\":\"callable\",\"tag_"
					"line\":\"\",\"unified_api\":\"\","
					"\"updated_at\":\"1970-01-01T00:00:00.000Z\",\"website\":\"\"}");
	buf_fini(&out);
}
END_TEST

START_TEST(provider_entity)
{
	struct buf out = BUF_INIT(4096);

	ck_ok(event_provider_entity_build("xero", "Xero", "app1", &out));
	ck_assert_str_eq(buf_str(&out),
		"{\"application_id\":\"app1\",\"id\":\"xero\",\"name\":\"Xero\",\"service_id\":\"xero\"}");
	buf_fini(&out);
}
END_TEST

static struct event_body failed_body(const char *entity)
{
	return (struct event_body){.entity_json = entity,
		.entity_id = "app1+c1",
		.entity_type = "Connection",
		.event_id = an_id,
		.type = EVENT_REFRESH_FAILED,
		.occurred_at = TEN_OCLOCK,
		.execution_attempt = 1};
}

START_TEST(body_is_the_published_one_with_our_name)
{
	struct event_entity e = salesforce();
	struct buf entity = BUF_INIT(4096), out = BUF_INIT(4096), want = BUF_INIT(4096);

	ck_ok(event_entity_build(&e, &entity));
	struct event_body b = failed_body(buf_str(&entity));
	ck_ok(event_body_build(&b, &out));
	size_t head = (size_t)(strstr(apideck_body, "apideck-vault") - apideck_body);
	ck_ok(buf_append(&want, apideck_body, head));
	ck_ok(buf_puts(&want, "refreshd\"}}"));
	ck_assert_str_eq(buf_str(&out), buf_str(&want));
	buf_fini(&entity);
	buf_fini(&out);
	buf_fini(&want);
}
END_TEST

START_TEST(body_with_reason_and_attempts)
{
	struct buf out = BUF_INIT(4096);
	struct event_body b = failed_body("{}");

	b.reason = "invalid_grant";
	b.attempts = 7;
	b.execution_attempt = 3;
	ck_ok(event_body_build(&b, &out));
	ck_assert_str_eq(buf_str(&out),
		"{\"payload\":{\"attempts\":7,\"entity\":{},\"entity_id\":\"app1+c1\",\"entity_type\":"
		"\"Connection\","
		"\"event_id\":\"9755c355-56c3-4a2f-a2da-86ff4411fccb\","
		"\"event_type\":\"vault.connection.token_refresh.failed\",\"execution_attempt\":3,"
		"\"occurred_at\":\"2026-11-23T10:00:00.000Z\",\"reason\":\"invalid_grant\",\"service_id\":"
		"\"refreshd\"}}");
	buf_fini(&out);
}
END_TEST

START_TEST(too_large_or_broken_leaves_the_output_alone)
{
	static char big[30001], mid[19001];
	struct buf out = BUF_INIT(65536), small = BUF_INIT(16);
	struct event_entity e = salesforce();

	memset(big, 'x', 30000);
	memset(mid, 'x', 19000);
	ck_ok(buf_puts(&out, "before"));
	e.name = big;
	ck_assert_int_eq(event_entity_build(&e, &out), ST_FULL);
	e.name = "bad \xff";
	ck_assert_int_eq(event_entity_build(&e, &out), ST_INVALID);
	e.name = "";
	e.consumer_id = big;
	ck_assert_int_eq(event_entity_build(&e, &out), ST_FULL);
	ck_assert_int_eq(event_provider_entity_build(big, "x", "a", &out), ST_FULL);
	struct event_body b = failed_body("{}");
	b.entity_id = big;
	ck_assert_int_eq(event_body_build(&b, &out), ST_FULL);
	ck_assert_str_eq(buf_str(&out), "before");
	b.entity_id = mid;
	ck_ok(event_body_build(&b, &out));
	b.entity_id = "x";
	ck_assert_int_eq(event_body_build(&b, &small), ST_FULL);
	ck_assert_uint_eq(small.len, 0);
	buf_fini(&out);
	buf_fini(&small);
}
END_TEST

START_TEST(apideck_vector)
{
	struct event_secret s = secret_of("sk_test_key_pad!");
	struct buf out = BUF_INIT(128);

	ck_assert_uint_eq(strlen(apideck_body), 647);
	/* The published secret is shorter than we accept for a new endpoint, so it is put in by hand. */
	ck_ok(buf_set(&s.text, "sk_test_key", 11));
	ck_ok(event_sign_apideck(&s, apideck_body, strlen(apideck_body), &out));
	ck_assert_str_eq(buf_str(&out), "a223f52057e67c3c66e77e3a2356d2a71f03f30f318aa1409a40c1951d334fe9");
	buf_fini(&out);
	event_secret_fini(&s);
}
END_TEST

static int sign_std(const struct event_secret *const *v, size_t n, struct signer *key, struct buf *out)
{
	return event_sign_standard(v, n, key, STD_ID, STD_TIME, STD_BODY, strlen(STD_BODY), out);
}

START_TEST(standard_webhooks_vector)
{
	struct event_secret s = secret_of(STD_SECRET);
	const struct event_secret *v[] = {&s};
	struct buf out = BUF_INIT(256);

	ck_ok(sign_std(v, 1, NULL, &out));
	ck_assert_str_eq(buf_str(&out), STD_SIG);
	buf_fini(&out);
	event_secret_fini(&s);
}
END_TEST

START_TEST(old_and_new_secret_give_two_signatures)
{
	struct event_secret s = secret_of(STD_SECRET), raw = secret_of("sixteen bytes ok");
	const struct event_secret *v[] = {&raw, &s};
	struct buf out = BUF_INIT(256), want = BUF_INIT(256);
	uint8_t mac[32];

	crypto_hmac_sha256("sixteen bytes ok", 16, STD_ID ".1614265330." STD_BODY,
		strlen(STD_ID ".1614265330." STD_BODY), mac);
	ck_ok(buf_puts(&want, "v1,"));
	ck_ok(base64_encode(&want, mac, 32));
	ck_ok(buf_puts(&want, " " STD_SIG));
	ck_ok(sign_std(v, 2, NULL, &out));
	ck_assert_str_eq(buf_str(&out), buf_str(&want));
	buf_fini(&out);
	buf_fini(&want);
	event_secret_fini(&s);
	event_secret_fini(&raw);
}
END_TEST

START_TEST(ed25519_signature_verifies)
{
	char path[] = "/tmp/test-event-XXXXXX";
	EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
	FILE *file = fdopen(mkstemp(path), "w");
	ck_assert_int_eq(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
	fclose(file);

	struct signer *signer = NULL;
	struct fault f = {0};
	int rc = signer_load(path, SIGN_ED25519, &signer, &f);
	unlink(path);
	ck_assert_msg(rc == 0, "%s", f.text);
	struct event_secret s = secret_of(STD_SECRET);
	const struct event_secret *v[] = {&s};
	struct buf out = BUF_INIT(512), sig = BUF_INIT(64);
	ck_ok(sign_std(v, 1, signer, &out));
	ck_assert_int_eq(strncmp(buf_str(&out), STD_SIG " v1a,", strlen(STD_SIG) + 5), 0);
	const char *b64 = buf_str(&out) + strlen(STD_SIG) + 5;
	ck_ok(base64_decode(&sig, b64, strlen(b64)));
	const char text[] = STD_ID ".1614265330." STD_BODY;
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	ck_assert_int_eq(EVP_DigestVerifyInit(md, NULL, NULL, NULL, key), 1);
	ck_assert_int_eq(
		EVP_DigestVerify(md, sig.data, sig.len, (const unsigned char *)text, strlen(text)), 1);
	EVP_MD_CTX_free(md);

	buf_reset(&out);
	ck_ok(sign_std(NULL, 0, signer, &out));
	ck_assert_int_eq(strncmp(buf_str(&out), "v1a,", 4), 0);
	buf_fini(&out);
	buf_fini(&sig);
	event_secret_fini(&s);
	signer_unref(signer);
	EVP_PKEY_free(key);
}
END_TEST

START_TEST(ambiguous_signatures_are_refused)
{
	struct event_secret s = secret_of(STD_SECRET);
	const struct event_secret *v[] = {&s};
	struct buf out = BUF_INIT(256), tiny = BUF_INIT(8);
	static char big[50000];

	ck_assert_int_eq(sign_std(NULL, 0, NULL, &out), ST_INVALID);
	ck_assert_int_eq(event_sign_standard(v, 1, NULL, "a.b", 1, "x", 1, &out), ST_INVALID);
	ck_assert_int_eq(event_sign_standard(v, 1, NULL, "", 1, "x", 1, &out), ST_INVALID);
	ck_assert_int_eq(event_sign_standard(v, 1, NULL, "a", 1, big, sizeof(big), &out), ST_FULL);
	ck_assert_uint_eq(out.len, 0);
	ck_assert_int_eq(sign_std(v, 1, NULL, &tiny), ST_FULL);
	buf_fini(&out);
	event_secret_fini(&s);
}
END_TEST

START_TEST(secrets_good)
{
	struct event_secret s = secret_of(STD_SECRET);

	ck_assert_uint_eq(s.key.len, 24);
	ck_assert_str_eq(buf_str(&s.text), STD_SECRET);
	ck_assert(s.key.secret && s.text.secret);
	event_secret_fini(&s);
	s = secret_of("0123456789abcdef");
	ck_assert(buf_equals(&s.key, "0123456789abcdef", 16));
	event_secret_fini(&s);
	s = secret_of("WHSEC_0123456789"); /* not the prefix: raw */
	ck_assert_uint_eq(s.key.len, 16);
	event_secret_fini(&s);
}
END_TEST

START_TEST(secrets_bad)
{
	static const struct {
		const char *text;
		int code;
		const char *what;
	} rows[] = {
		{"", ST_INVALID, "0 bytes"},
		{"0123456789abcde", ST_INVALID, "15 bytes"},
		{"0123456789abcdef\n", ST_INVALID, "control"},
		{"whsec_", ST_INVALID, "0 bytes"},
		{"whsec_AAAA", ST_INVALID, "3 bytes"},
		{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS", ST_SYNTAX, "base64"},
		{"whsec_not base64 at all, though long", ST_SYNTAX, "base64"},
		{"whsec_"
		 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
			ST_INVALID, "65 bytes"},
	};
	struct event_secret s = {.text = BUF_INIT_SECRET(9), .key = BUF_INIT_SECRET(9)};
	struct fault f;
	char longer[1026];

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int rc = event_secret_parse(rows[i].text, strlen(rows[i].text), &s, &f);
		ck_assert_msg(
			rc == rows[i].code && strstr(f.text, rows[i].what), "row %zu: %d %s", i, rc, f.text);
		ck_assert_uint_eq(s.text.max, 9);
	}
	memset(longer, 'x', 1025);
	ck_assert_int_eq(event_secret_parse(longer, 1025, &s, &f), ST_INVALID);
	ck_assert_int_eq(event_secret_parse("a\0b4567890123456", 16, &s, &f), ST_INVALID);
	ck_ok(event_secret_parse(longer, 1024, &s, &f));
	event_secret_fini(&s);
}
END_TEST

START_TEST(new_secrets_are_good_and_differ)
{
	struct buf a = BUF_INIT_SECRET(100), b = BUF_INIT_SECRET(100), tiny = BUF_INIT_SECRET(10);

	ck_ok(event_secret_new(&a));
	ck_ok(event_secret_new(&b));
	ck_assert_str_ne(buf_str(&a), buf_str(&b));
	struct event_secret s = secret_of(buf_str(&a));
	ck_assert_uint_eq(s.key.len, 32);
	event_secret_fini(&s);
	ck_assert_int_eq(event_secret_new(&tiny), ST_FULL);
	buf_fini(&a);
	buf_fini(&b);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("event");
	TCase *t = tcase_create("event");

	unit_add(t, types_parse_back);
	unit_add(t, patterns);
	unit_add(t, entity_byte_for_byte);
	unit_add(t, entity_without_failure_and_with_odd_text);
	unit_add(t, provider_entity);
	unit_add(t, body_is_the_published_one_with_our_name);
	unit_add(t, body_with_reason_and_attempts);
	unit_add(t, too_large_or_broken_leaves_the_output_alone);
	unit_add(t, apideck_vector);
	unit_add(t, standard_webhooks_vector);
	unit_add(t, old_and_new_secret_give_two_signatures);
	unit_add(t, ed25519_signature_verifies);
	unit_add(t, ambiguous_signatures_are_refused);
	unit_add(t, secrets_good);
	unit_add(t, secrets_bad);
	unit_add(t, new_secrets_are_good_and_differ);
	suite_add_tcase(s, t);
	return s;
}
