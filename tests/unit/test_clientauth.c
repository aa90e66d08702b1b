/*
 * clientauth - one proof in a request; assertions verified with OpenSSL.
 */
#include "unit/unit.h"

#include <openssl/bn.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base64.h"
#include "base/mem.h"
#include "base/sys.h"
#include "model/clientauth.h"

#define AUD "https://as.example/token"

/* Everything that was added, as "param name=value" and "header name=value" lines. */
struct seen {
	struct buf text;
	int refuse_at; /* 0: never */
	int calls;
};

static int note(struct seen *s, const char *kind, const char *name, const char *value, size_t n)
{
	if (++s->calls == s->refuse_at)
		return ST_FULL;
	ck_assert_uint_eq(strlen(value), n);
	return buf_printf(&s->text, "%s %s=%s\n", kind, name, value);
}

static int on_param(void *arg, const char *name, const char *value, size_t n)
{
	return note(arg, "param", name, value, n);
}

static int on_header(void *arg, const char *name, const char *value, size_t n)
{
	return note(arg, "header", name, value, n);
}

static int apply(struct client *c, bool raw, int refuse_at, struct buf *out, struct fault *f)
{
	struct seen seen = {.text = BUF_INIT_SECRET(65536), .refuse_at = refuse_at};
	struct clientauth_sink sink = {on_param, on_header, &seen};
	struct provider p = {.basic_raw = raw};

	int rc = clientauth_apply(&p, c, AUD, &sink, f);
	buf_fini(out);
	buf_move(out, &seen.text);
	return rc;
}

static struct client client_of(enum client_auth auth, const char *id, const char *secret)
{
	static char app[] = "*", provider[] = "acme";
	struct client c = {
		.application = app, .provider = provider, .auth = auth, .secret = BUF_INIT_SECRET(65536)};

	c.client_id = mem_strdup(id);
	ck_ok(buf_puts(&c.secret, secret));
	return c;
}

static void client_done(struct client *c)
{
	mem_free(c->client_id);
	buf_fini(&c->secret);
	signer_unref(c->signer);
}

START_TEST(methods_add_what_they_should)
{
	static const struct {
		enum client_auth auth;
		bool raw;
		const char *id, *secret, *want;
	} rows[] = {
		/* RFC 6749 2.3.1's own pair */
		{CLIENT_AUTH_BASIC, false, "s6BhdRkqt3", "gX1fBat3bV",
			"header Authorization=Basic czZCaGRSa3F0MzpnWDFmQmF0M2JW\n"},
		/* a:b c -> a%3Ab+c, p%w+ö/ -> p%25w%2B%C3%B6%2F */
		{CLIENT_AUTH_BASIC, false, "a:b c", "p%w+\xc3\xb6/",
			"header Authorization=Basic YSUzQWIrYzpwJTI1dyUyQiVDMyVCNiUyRg==\n"},
		{CLIENT_AUTH_BASIC, true, "a b", "p%w+/", "header Authorization=Basic YSBiOnAldysv\n"},
		{CLIENT_AUTH_POST, false, "a:b c", "p%w", "param client_id=a:b c\nparam client_secret=p%w\n"},
		{CLIENT_AUTH_TLS, false, "id", "", "param client_id=id\n"},
		{CLIENT_AUTH_NONE, false, "id", "unused", "param client_id=id\n"},
	};
	struct buf out = BUF_INIT_SECRET(65536);
	struct fault f = {0};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct client c = client_of(rows[i].auth, rows[i].id, rows[i].secret);
		ck_assert_msg(apply(&c, rows[i].raw, 0, &out, &f) == 0, "row %zu: %s", i, f.text);
		ck_assert_msg(strcmp(buf_str(&out), rows[i].want) == 0, "row %zu: %s", i, buf_str(&out));
		client_done(&c);
	}
	buf_fini(&out);
}
END_TEST

START_TEST(what_is_missing_is_named)
{
	static const struct {
		enum client_auth auth;
		bool raw;
		const char *id, *secret, *what;
	} rows[] = {
		{CLIENT_AUTH_BASIC, false, "id", "", "no secret, which client_secret_basic needs"},
		{CLIENT_AUTH_POST, false, "id", "", "no secret, which client_secret_post needs"},
		{CLIENT_AUTH_JWT, false, "id", "s", "no private key"},
		{CLIENT_AUTH_BASIC, true, "a:b", "s", "unencoded"},
		{(enum client_auth)99, false, "id", "s", "unknown"},
	};
	struct buf out = BUF_INIT_SECRET(65536);

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct client c = client_of(rows[i].auth, rows[i].id, rows[i].secret);
		struct fault f = {0};
		ck_assert_int_eq(apply(&c, rows[i].raw, 0, &out, &f), ST_INVALID);
		ck_assert_msg(
			strstr(f.text, rows[i].what) && strstr(f.text, "acme"), "row %zu: %s", i, f.text);
		ck_assert_uint_eq(out.len, 0);
		client_done(&c);
	}
	buf_fini(&out);
}
END_TEST

START_TEST(oversize_secret_is_refused)
{
	struct client c = client_of(CLIENT_AUTH_BASIC, "id", "");
	struct buf out = BUF_INIT_SECRET(65536);
	struct fault f = {0};
	char *big = mem_alloc(60001);

	memset(big, '%', 60000);
	ck_ok(buf_puts(&c.secret, big));
	ck_assert_int_eq(apply(&c, false, 0, &out, &f), ST_FULL);
	ck_assert_ptr_nonnull(strstr(f.text, "too long"));
	mem_free(big);
	client_done(&c);
	buf_fini(&out);
}
END_TEST

/* Writes the key where signer_load can read it; the public half stays with the caller. */
static struct signer *load(EVP_PKEY *key, enum sign_alg alg)
{
	char path[] = "/tmp/test-clientauth-XXXXXX";
	FILE *file = fdopen(mkstemp(path), "w");
	struct signer *signer = NULL;
	struct fault f = {0};

	ck_assert_int_eq(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
	fclose(file);
	int rc = signer_load(path, alg, &signer, &f);
	unlink(path);
	ck_assert_msg(rc == 0, "%s", f.text);
	return signer;
}

static EVP_PKEY *key_for(enum sign_alg alg)
{
	if (alg == SIGN_ES256)
		return EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
	return alg == SIGN_RS256 ? EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)2048)
				 : EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
}

/* r||s back to DER, as OpenSSL verifies it. */
static void to_der(struct buf *sig)
{
	ECDSA_SIG *es = ECDSA_SIG_new();
	unsigned char *der = NULL;

	ck_assert_uint_eq(sig->len, 64);
	ECDSA_SIG_set0(es, BN_bin2bn(sig->data, 32, NULL), BN_bin2bn(sig->data + 32, 32, NULL));
	int n = i2d_ECDSA_SIG(es, &der);
	ck_assert_int_gt(n, 0);
	ck_ok(buf_set(sig, der, (size_t)n));
	OPENSSL_free(der);
	ECDSA_SIG_free(es);
}

static bool verifies(EVP_PKEY *key, enum sign_alg alg, const char *text, size_t n, struct buf *sig)
{
	EVP_MD_CTX *md = EVP_MD_CTX_new();

	if (alg == SIGN_ES256)
		to_der(sig);
	ck_assert_int_eq(
		EVP_DigestVerifyInit(md, NULL, alg == SIGN_ED25519 ? NULL : EVP_sha256(), NULL, key), 1);
	int ok = EVP_DigestVerify(md, sig->data, sig->len, (const unsigned char *)text, n);
	EVP_MD_CTX_free(md);
	return ok == 1;
}

/* Splits a compact JWS in place; the three parts decoded. */
static void split(
	const struct buf *jwt, struct buf *head, struct buf *claims, struct buf *sig, size_t *signed_len)
{
	const char *s = buf_str(jwt), *a = strchr(s, '.'), *b = strchr(a + 1, '.');

	ck_ok(base64url_decode(head, s, (size_t)(a - s)));
	ck_ok(base64url_decode(claims, a + 1, (size_t)(b - a - 1)));
	ck_ok(base64url_decode(sig, b + 1, strlen(b + 1)));
	ck_assert_ptr_null(strpbrk(s, "=+/"));
	*signed_len = (size_t)(b - s);
}

START_TEST(assertion_verifies)
{
	static const struct {
		enum sign_alg alg;
		const char *kid, *head;
	} rows[] = {
		{SIGN_ES256, NULL, "{\"alg\":\"ES256\",\"typ\":\"JWT\"}"},
		{SIGN_RS256, "k\"1", "{\"alg\":\"RS256\",\"kid\":\"k\\\"1\",\"typ\":\"JWT\"}"},
		{SIGN_ED25519, "k2", "{\"alg\":\"EdDSA\",\"kid\":\"k2\",\"typ\":\"JWT\"}"},
	};
	struct buf jwt = BUF_INIT_SECRET(65536), head = BUF_INIT(4096), claims = BUF_INIT(4096),
		   sig = BUF_INIT(4096);
	struct fault f = {0};
	char kid[8], want[512];
	size_t n;

	EVP_PKEY *key = key_for(rows[_i].alg);
	struct client c = client_of(CLIENT_AUTH_JWT, "client-1", "");
	c.signer = load(key, rows[_i].alg);
	c.alg = rows[_i].alg;
	if (rows[_i].kid != NULL) {
		snprintf(kid, sizeof(kid), "%s", rows[_i].kid);
		c.key_id = kid;
	}
	sys_set(sys_virtual(7));
	ck_ok(clientauth_assertion(&c, AUD, &jwt, &f));
	sys_set(NULL);
	split(&jwt, &head, &claims, &sig, &n);
	ck_assert_str_eq(buf_str(&head), rows[_i].head);
	const char *jti = strstr(buf_str(&claims), "\"jti\":\"") + 7;
	snprintf(want, sizeof(want),
		"{\"aud\":\"" AUD
		"\",\"exp\":1767225660,\"iat\":1767225600,\"iss\":\"client-1\",\"jti\":\"%.36s\","
		"\"nbf\":1767225600,\"sub\":\"client-1\"}",
		jti);
	ck_assert_str_eq(buf_str(&claims), want);
	ck_assert(verifies(key, rows[_i].alg, buf_str(&jwt), n, &sig));
	sig.data[sig.len - 1] ^= 1;
	if (rows[_i].alg != SIGN_ES256)
		ck_assert(!verifies(key, rows[_i].alg, buf_str(&jwt), n, &sig));
	EVP_PKEY_free(key);
	client_done(&c);
	buf_fini(&jwt);
	buf_fini(&head);
	buf_fini(&claims);
	buf_fini(&sig);
}
END_TEST

START_TEST(every_attempt_has_its_own_jti_and_one_method)
{
	EVP_PKEY *key = key_for(SIGN_ES256);
	struct client c = client_of(CLIENT_AUTH_JWT, "client-1", "never sent");
	struct buf a = BUF_INIT_SECRET(65536), b = BUF_INIT_SECRET(65536),
		   claims[2] = {BUF_INIT(4096), BUF_INIT(4096)};
	struct buf rest = BUF_INIT(8192);
	struct fault f = {0};

	c.signer = load(key, SIGN_ES256);
	c.alg = SIGN_ES256;
	ck_ok(apply(&c, false, 0, &a, &f));
	ck_ok(apply(&c, false, 0, &b, &f));
	const struct buf *both[] = {&a, &b};
	for (int i = 0; i < 2; i++) {
		const char *head =
			"param client_id=client-1\n"
			"param client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer\n"
			"param client_assertion=";
		ck_assert_int_eq(strncmp(buf_str(both[i]), head, strlen(head)), 0);
		ck_assert_ptr_null(strstr(buf_str(both[i]), "never sent"));
		ck_assert_ptr_null(strstr(buf_str(both[i]), "header"));
		struct buf jwt = BUF_INIT(8192);
		ck_ok(buf_append(&jwt, buf_str(both[i]) + strlen(head), both[i]->len - strlen(head) - 1));
		size_t n;
		split(&jwt, &rest, &claims[i], &rest, &n);
		buf_fini(&jwt);
	}
	ck_assert_str_ne(strstr(buf_str(&claims[0]), "\"jti\""), strstr(buf_str(&claims[1]), "\"jti\""));
	EVP_PKEY_free(key);
	client_done(&c);
	buf_fini(&a);
	buf_fini(&b);
	buf_fini(&claims[0]);
	buf_fini(&claims[1]);
	buf_fini(&rest);
}
END_TEST

START_TEST(a_refusing_sink_stops_everything)
{
	static const enum client_auth auths[] = {
		CLIENT_AUTH_BASIC, CLIENT_AUTH_POST, CLIENT_AUTH_JWT, CLIENT_AUTH_NONE};
	static const int calls[] = {1, 2, 3, 1};
	EVP_PKEY *key = key_for(SIGN_ES256);
	struct buf out = BUF_INIT_SECRET(65536);
	struct fault f = {0};

	for (size_t i = 0; i < 4; i++) {
		struct client c = client_of(auths[i], "id", "secret");
		c.signer = load(key, SIGN_ES256);
		for (int at = 1; at <= calls[i]; at++)
			ck_assert_int_eq(apply(&c, false, at, &out, &f), ST_FULL);
		ck_ok(apply(&c, false, calls[i] + 1, &out, &f));
		client_done(&c);
	}
	EVP_PKEY_free(key);
	buf_fini(&out);
}
END_TEST

START_TEST(assertion_that_does_not_fit_leaves_the_output_alone)
{
	EVP_PKEY *key = key_for(SIGN_ES256);
	struct client c = client_of(CLIENT_AUTH_JWT, "id", "");
	struct buf out = BUF_INIT_SECRET(16), large = BUF_INIT_SECRET(65536);
	struct fault f = {0};
	char *aud = mem_alloc(20001);

	c.signer = load(key, SIGN_ES256);
	ck_ok(buf_puts(&out, "before"));
	ck_assert_int_eq(clientauth_assertion(&c, AUD, &out, &f), ST_FULL);
	ck_assert_ptr_nonnull(strstr(f.text, "assertion cannot be made"));
	ck_assert_str_eq(buf_str(&out), "before");
	memset(aud, 'a', 20000);
	ck_assert_int_eq(clientauth_assertion(&c, aud, &large, &f), ST_FULL);
	ck_assert_int_eq(clientauth_assertion(&c, "bad \xff", &large, &f), ST_INVALID);
	ck_assert_uint_eq(large.len, 0);
	mem_free(aud);
	EVP_PKEY_free(key);
	client_done(&c);
	buf_fini(&out);
	buf_fini(&large);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("clientauth");
	TCase *t = tcase_create("clientauth");

	tcase_set_timeout(t, 60);
	unit_add(t, methods_add_what_they_should);
	unit_add(t, what_is_missing_is_named);
	unit_add(t, oversize_secret_is_refused);
	tcase_add_loop_test(t, assertion_verifies, 0, 3);
	unit_add(t, every_attempt_has_its_own_jti_and_one_method);
	unit_add(t, a_refusing_sink_stops_everything);
	unit_add(t, assertion_that_does_not_fit_leaves_the_output_alone);
	suite_add_tcase(s, t);
	return s;
}
