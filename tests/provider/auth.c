/*
 * auth - is this the realm's client, and did it say so in exactly one way?
 *
 * RFC 6749 2.3.1 (basic with form-encoded parts, post), RFC 7523 (ES256 and RS256 assertions, replay of a
 * jti refused), RFC 8705 (a certificate that the listener verified), or public. Strict on purpose.
 */
#include "provider/simulator.h"

#include <stdio.h>
#include <string.h>

#include <event2/bufferevent_ssl.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "base/base64.h"
#include "base/crypto.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define JTI_CAP 65536 /* a power of two; the oldest of a full slot run is forgotten only after its exp */
#define ASSERTION_TYPE "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
#define ASSERTION_MAX_LIFE_S 3600

struct jti {
	uint64_t hash[2];
	int64_t exp_s; /* 0 = free */
};

struct jti_set {
	struct jti *v;
	size_t cap, used;
};

static void jti_put(struct jti_set *set, const struct jti *j)
{
	size_t i = j->hash[0] & (set->cap - 1);
	while (set->v[i].exp_s != 0)
		i = (i + 1) & (set->cap - 1);
	set->v[i] = *j;
	set->used++;
}

static void jti_grow(struct jti_set *set, int64_t now_s)
{
	struct jti_set old = *set;
	size_t alive = 0;
	for (size_t i = 0; i < old.cap; i++)
		alive += old.v[i].exp_s > now_s;
	set->cap = old.cap == 0 ? JTI_CAP : alive > old.cap / 4 ? old.cap * 2 : old.cap;
	set->used = 0;
	set->v = mem_calloc(set->cap, sizeof *set->v);
	for (size_t i = 0; i < old.cap; i++)
		if (old.v[i].exp_s > now_s)
			jti_put(set, &old.v[i]);
	mem_free(old.v);
}

/* False when it was seen before. */
static bool jti_is_new(struct realm *r, const char *id, size_t n, int64_t exp_s, int64_t now_s)
{
	uint8_t digest[32];
	struct jti j = {.exp_s = exp_s};
	if (r->jtis == NULL)
		r->jtis = mem_alloc(sizeof *r->jtis);
	if (r->jtis->used * 2 >= r->jtis->cap)
		jti_grow(r->jtis, now_s);
	crypto_sha256(id, n, digest);
	memcpy(j.hash, digest, sizeof j.hash);
	for (size_t i = j.hash[0] & (r->jtis->cap - 1); r->jtis->v[i].exp_s != 0;
		i = (i + 1) & (r->jtis->cap - 1))
		if (memcmp(r->jtis->v[i].hash, j.hash, sizeof j.hash) == 0)
			return false;
	jti_put(r->jtis, &j);
	return true;
}

int auth_load_key(struct realm *r, const char *path, struct fault *f)
{
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return fault_set(f, ST_IO, "jwt_key=%s: cannot open it", path);
	EVP_PKEY *key = PEM_read_PUBKEY(file, NULL, NULL, NULL);
	(void)fclose(file);
	if (key == NULL)
		return fault_set(f, ST_SYNTAX, "jwt_key=%s: not a PEM public key", path);
	int type = EVP_PKEY_get_base_id(key);
	if (type != EVP_PKEY_EC && type != EVP_PKEY_RSA) {
		EVP_PKEY_free(key);
		return fault_set(f, ST_INVALID, "jwt_key=%s: neither an EC nor an RSA key", path);
	}
	EVP_PKEY_free(r->jwt_key);
	r->jwt_key = key;
	return 0;
}

void auth_free(struct realm *r)
{
	EVP_PKEY_free(r->jwt_key);
	if (r->jtis != NULL)
		mem_free(r->jtis->v);
	mem_free(r->jtis);
}

/* JWS carries r||s, OpenSSL wants DER. */
static unsigned char *ecdsa_der(const uint8_t *raw, int *len)
{
	unsigned char *der = NULL;
	ECDSA_SIG *sig = ECDSA_SIG_new();
	BIGNUM *r = BN_bin2bn(raw, 32, NULL), *s = BN_bin2bn(raw + 32, 32, NULL);
	if (sig == NULL || r == NULL || s == NULL || ECDSA_SIG_set0(sig, r, s) != 1) {
		BN_free(r);
		BN_free(s);
	} else {
		*len = i2d_ECDSA_SIG(sig, &der);
	}
	ECDSA_SIG_free(sig);
	return der;
}

static bool signature_fits(EVP_PKEY *key, bool ec, const struct buf *sig, const char *text, size_t n)
{
	const unsigned char *p = sig->data;
	unsigned char *der = NULL;
	int len = (int)sig->len;
	if (ec) {
		der = sig->len == 64 ? ecdsa_der(sig->data, &len) : NULL;
		p = der;
	}
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	bool ok = p != NULL && ctx != NULL && EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, key) == 1 &&
		  EVP_DigestVerify(ctx, p, (size_t)len, (const unsigned char *)text, n) == 1;
	EVP_MD_CTX_free(ctx);
	OPENSSL_free(der);
	return ok;
}

static struct json_object *decode_part(const char *p, size_t n)
{
	struct buf text = BUF_INIT(65536);
	struct json_object *o = NULL;
	if (base64url_decode(&text, p, n) == 0) {
		struct json_tokener *tok = json_tokener_new();
		o = json_tokener_parse_ex(tok, buf_str(&text), (int)text.len);
		json_tokener_free(tok);
	}
	buf_fini(&text);
	return o;
}

static const char *member(struct json_object *o, const char *key)
{
	struct json_object *v;
	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string))
		return NULL;
	return json_object_get_string(v);
}

static bool audience_is(
	const char *aud, const struct conn *c, const struct realm *realm, const struct request *r)
{
	char want[1200];
	if (aud == NULL)
		return false;
	if (realm->jwt_aud != NULL)
		return strcmp(aud, realm->jwt_aud) == 0;
	(void)snprintf(want, sizeof want, "%s://%.*s/%s", c->ssl != NULL ? "https" : "http",
		(int)(r->host.n < 1000 ? r->host.n : 1000), r->host.p, realm->name);
	size_t n = strlen(want);
	return strncmp(aud, want, n) == 0 && (aud[n] == '\0' || strcmp(aud + n, "/token") == 0);
}

static bool audience_fits(
	struct json_object *claims, const struct conn *c, const struct realm *realm, const struct request *r)
{
	struct json_object *aud;
	if (!json_object_object_get_ex(claims, "aud", &aud))
		return false;
	if (!json_object_is_type(aud, json_type_array))
		return audience_is(member(claims, "aud"), c, realm, r);
	for (size_t i = 0; i < json_object_array_length(aud); i++) {
		struct json_object *one = json_object_array_get_idx(aud, i);
		if (json_object_is_type(one, json_type_string) &&
			audience_is(json_object_get_string(one), c, realm, r))
			return true;
	}
	return false;
}

static const char *claims_problem(
	struct json_object *claims, struct conn *c, struct realm *realm, const struct request *r)
{
	const char *iss = member(claims, "iss"), *sub = member(claims, "sub"), *jti = member(claims, "jti");
	int64_t now_s = sys_wall_us() / US_PER_S;
	struct json_object *v;
	if (iss == NULL || sub == NULL || strcmp(iss, realm->client_id) != 0 ||
		strcmp(sub, realm->client_id) != 0)
		return "iss and sub must both be the client_id";
	if (!audience_fits(claims, c, realm, r))
		return "aud is not this token endpoint";
	if (!json_object_object_get_ex(claims, "exp", &v) || !json_object_is_type(v, json_type_int))
		return "exp is missing";
	int64_t exp_s = json_object_get_int64(v);
	if (exp_s <= now_s || exp_s > now_s + ASSERTION_MAX_LIFE_S)
		return "exp is over or too far away";
	if (json_object_object_get_ex(claims, "nbf", &v) && json_object_get_int64(v) > now_s + 60)
		return "nbf is in the future";
	if (json_object_object_get_ex(claims, "iat", &v) && json_object_get_int64(v) > now_s + 60)
		return "iat is in the future";
	if (jti == NULL || *jti == '\0')
		return "jti is missing";
	if (!jti_is_new(realm, jti, strlen(jti), exp_s, now_s))
		return "jti was used before";
	return NULL;
}

static const char *assertion_problem(
	const char *jwt, struct conn *c, struct realm *realm, const struct request *r)
{
	const char *dot = strchr(jwt, '.'), *dot2 = dot != NULL ? strchr(dot + 1, '.') : NULL;
	struct buf sig = BUF_INIT(4096);
	if (realm->jwt_key == NULL)
		return "the realm has no jwt_key";
	if (dot2 == NULL || base64url_decode(&sig, dot2 + 1, strlen(dot2 + 1)) != 0) {
		buf_fini(&sig);
		return "not a signed JWT";
	}
	bool ec = EVP_PKEY_get_base_id(realm->jwt_key) == EVP_PKEY_EC;
	struct json_object *head = decode_part(jwt, (size_t)(dot - jwt));
	struct json_object *claims = decode_part(dot + 1, (size_t)(dot2 - dot - 1));
	const char *alg = member(head, "alg"), *why = NULL;
	if (alg == NULL || strcmp(alg, ec ? "ES256" : "RS256") != 0)
		why = "alg does not fit the key";
	else if (!signature_fits(realm->jwt_key, ec, &sig, jwt, (size_t)(dot2 - jwt)))
		why = "the signature is wrong";
	else
		why = claims_problem(claims, c, realm, r);
	json_object_put(head);
	json_object_put(claims);
	buf_fini(&sig);
	return why;
}

static const char *basic_problem(const struct request *r, const struct realm *realm)
{
	struct buf text = BUF_INIT_SECRET(16384), id = BUF_INIT_SECRET(8192), secret = BUF_INIT_SECRET(8192);
	const char *why = "malformed Basic credentials";
	struct slice a = r->authorization;
	const char *colon = NULL;
	if (a.n > 6 && slice_is((struct slice){a.p, 6}, "Basic ") &&
		base64_decode(&text, a.p + 6, a.n - 6) == 0)
		colon = memchr(buf_str(&text), ':', text.len);
	if (colon != NULL &&
		str_percent_decode(&id, buf_str(&text), (size_t)(colon - buf_str(&text)), true) == 0 &&
		str_percent_decode(
			&secret, colon + 1, text.len - (size_t)(colon + 1 - buf_str(&text)), true) == 0)
		why = strcmp(buf_str(&id), realm->client_id) == 0 &&
				      strcmp(buf_str(&secret), realm->client_secret) == 0
			      ? NULL
			      : "wrong client or secret";
	buf_fini(&text);
	buf_fini(&id);
	buf_fini(&secret);
	return why;
}

static bool has_certificate(const struct conn *c)
{
	return c->ssl != NULL && c->sim->tls_client_ca && SSL_get0_peer_certificate(c->ssl) != NULL &&
	       SSL_get_verify_result(c->ssl) == X509_V_OK;
}

static const char *check_used(struct conn *c, struct realm *realm, const struct request *r, enum auth used,
	const char *id, const char *secret, const char *assertion)
{
	bool id_fits = id != NULL && strcmp(id, realm->client_id) == 0;
	switch (used) {
	case AUTH_BASIC:
		return id != NULL && !id_fits ? "client_id differs from the Basic user"
					      : basic_problem(r, realm);
	case AUTH_POST:
		return id_fits && strcmp(secret, realm->client_secret) == 0 ? NULL : "wrong client or secret";
	case AUTH_JWT:
		return id != NULL && !id_fits ? "client_id differs from the assertion"
					      : assertion_problem(assertion, c, realm, r);
	case AUTH_TLS:
		return !id_fits ? "wrong client" : has_certificate(c) ? NULL : "no client certificate";
	default:
		return id_fits || (id == NULL && realm->auth == AUTH_ANY) ? NULL : "wrong client";
	}
}

const char *auth_check(struct conn *c, struct realm *realm, const struct request *r, const struct form *form,
	int *status, const char **why)
{
	const char *id = form_get(form, "client_id", NULL), *secret = form_get(form, "client_secret", NULL);
	const char *assertion = form_get(form, "client_assertion", NULL);
	const char *type = form_get(form, "client_assertion_type", NULL);
	enum auth used = r->authorization.n > 0    ? AUTH_BASIC
			 : assertion != NULL       ? AUTH_JWT
			 : secret != NULL          ? AUTH_POST
			 : realm->auth == AUTH_TLS ? AUTH_TLS
						   : AUTH_NONE;
	*status = 400;
	if ((r->authorization.n > 0) + (secret != NULL) + (assertion != NULL) > 1) {
		*why = "more than one way of client authentication";
		return "invalid_request";
	}
	if (assertion != NULL && (type == NULL || strcmp(type, ASSERTION_TYPE) != 0)) {
		*why = "client_assertion_type is not jwt-bearer";
		return "invalid_request";
	}
	*status = 401;
	if (realm->auth != AUTH_ANY && realm->auth != used) {
		*why = "not the client authentication of this realm";
		return "invalid_client";
	}
	*why = check_used(c, realm, r, used, id, secret, assertion);
	return *why != NULL ? "invalid_client" : NULL;
}
