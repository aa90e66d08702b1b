/*
 * clientauth - puts one proof of who we are into a request, and only one.
 *
 * The method is the client's own setting; the provider only tells how basic is encoded. Nothing here tries a
 * second method: a probe with a live refresh token could use the token up. Secrets pass through secret
 * buffers and the sink only.
 */
#include "model/clientauth.h"

#include <string.h>

#include "base/base64.h"
#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define SECRET_MAX ((size_t)64 * 1024)
#define ASSERTION_MAX ((size_t)16 * 1024)
#define ASSERTION_LIFE_S 60
#define ASSERTION_TYPE "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

static int need_secret(const struct client *c, struct fault *f)
{
	if (c->secret.len == 0)
		return fault_set(f, ST_INVALID, "client %s for %s has no secret, which %s needs",
			c->application, c->provider, client_auth_word(c->auth));
	return 0;
}

static int put_basic_pair(const struct client *c, bool raw, struct buf *pair)
{
	const char *secret = buf_str(&c->secret);
	size_t id_len = strlen(c->client_id);

	int rc = raw ? buf_append(pair, c->client_id, id_len) : str_form_encode(pair, c->client_id, id_len);
	if (rc == 0)
		rc = buf_putc(pair, ':');
	if (rc == 0)
		rc = raw ? buf_append(pair, secret, c->secret.len)
			 : str_form_encode(pair, secret, c->secret.len);
	return rc;
}

static int apply_basic(
	const struct provider *p, const struct client *c, const struct clientauth_sink *sink, struct fault *f)
{
	struct buf pair = BUF_INIT_SECRET(SECRET_MAX), value = BUF_INIT_SECRET(SECRET_MAX * 2);

	int rc = need_secret(c, f);
	if (rc < 0)
		return rc;
	/* Unencoded, the first colon would end the id somewhere else. */
	if (p->basic_raw && strchr(c->client_id, ':') != NULL)
		return fault_set(f, ST_INVALID, "client %s for %s: an id with ':' cannot be sent unencoded",
			c->application, c->provider);

	rc = put_basic_pair(c, p->basic_raw, &pair);
	if (rc == 0)
		rc = buf_puts(&value, "Basic ");
	if (rc == 0)
		rc = base64_encode(&value, pair.data, pair.len);
	if (rc < 0)
		fault_set(f, rc, "client %s for %s: id and secret are too long", c->application, c->provider);
	else
		rc = sink->header(sink->arg, "Authorization", buf_str(&value), value.len);
	buf_fini(&pair);
	buf_fini(&value);
	return rc;
}

static int put_client_id(const struct client *c, const struct clientauth_sink *sink)
{
	return sink->param(sink->arg, "client_id", c->client_id, strlen(c->client_id));
}

static int apply_post(const struct client *c, const struct clientauth_sink *sink, struct fault *f)
{
	int rc = need_secret(c, f);
	if (rc == 0)
		rc = put_client_id(c, sink);
	if (rc == 0)
		rc = sink->param(sink->arg, "client_secret", buf_str(&c->secret), c->secret.len);
	return rc;
}

static int apply_jwt(
	const struct client *c, const char *audience, const struct clientauth_sink *sink, struct fault *f)
{
	struct buf jwt = BUF_INIT_SECRET(ASSERTION_MAX);

	int rc = clientauth_assertion(c, audience, &jwt, f);
	/* RFC 7521 4.2 makes client_id optional here; there are servers that find the key by it. */
	if (rc == 0)
		rc = put_client_id(c, sink);
	if (rc == 0)
		rc = sink->param(sink->arg, "client_assertion_type", ASSERTION_TYPE, strlen(ASSERTION_TYPE));
	if (rc == 0)
		rc = sink->param(sink->arg, "client_assertion", buf_str(&jwt), jwt.len);
	buf_fini(&jwt);
	return rc;
}

int clientauth_apply(const struct provider *p, const struct client *c, const char *audience,
	const struct clientauth_sink *sink, struct fault *f)
{
	switch (c->auth) {
	case CLIENT_AUTH_BASIC:
		return apply_basic(p, c, sink, f);
	case CLIENT_AUTH_POST:
		return apply_post(c, sink, f);
	case CLIENT_AUTH_JWT:
		return apply_jwt(c, audience, sink, f);
	case CLIENT_AUTH_TLS: /* RFC 8705 2: the certificate proves, the id says who */
	case CLIENT_AUTH_NONE:
		return put_client_id(c, sink);
	}
	return fault_set(f, ST_INVALID, "client %s for %s: unknown authentication method", c->application,
		c->provider);
}

static const char *alg_word(enum sign_alg alg)
{
	switch (alg) {
	case SIGN_ES256:
		return "ES256";
	case SIGN_RS256:
		return "RS256";
	case SIGN_ED25519:
		return "EdDSA";
	}
	return NULL;
}

static int put_encoded(struct jsonw *w, const struct buf *json, struct buf *jwt)
{
	int rc = jsonw_end(w);
	return rc == 0 ? base64url_encode(jwt, json->data, json->len) : rc;
}

static int put_header(const struct client *c, struct buf *jwt)
{
	struct buf json = BUF_INIT(ASSERTION_MAX);
	struct jsonw w;

	jsonw_init(&w, &json);
	jsonw_object(&w, NULL);
	jsonw_str(&w, "alg", alg_word(c->alg));
	if (c->key_id != NULL)
		jsonw_str(&w, "kid", c->key_id);
	jsonw_str(&w, "typ", "JWT");
	jsonw_object_end(&w);
	int rc = put_encoded(&w, &json, jwt);
	buf_fini(&json);
	return rc;
}

static int put_claims(const struct client *c, const char *audience, struct buf *jwt)
{
	struct buf json = BUF_INIT(ASSERTION_MAX);
	char jti_text[STR_UUID_BYTES];
	uint8_t jti[16];
	struct jsonw w;
	int64_t now_s = sys_wall_us() / US_PER_S;

	sys_uuid4(jti);
	str_format_uuid(jti, jti_text);
	jsonw_init(&w, &json);
	jsonw_object(&w, NULL);
	jsonw_str(&w, "aud", audience);
	jsonw_int(&w, "exp", now_s + ASSERTION_LIFE_S);
	jsonw_int(&w, "iat", now_s);
	jsonw_str(&w, "iss", c->client_id);
	jsonw_str(&w, "jti", jti_text);
	jsonw_int(&w, "nbf", now_s);
	jsonw_str(&w, "sub", c->client_id);
	jsonw_object_end(&w);
	int rc = put_encoded(&w, &json, jwt);
	buf_fini(&json);
	return rc;
}

static int put_signature(const struct client *c, struct buf *jwt)
{
	struct buf raw = BUF_INIT(2048);

	int rc = signer_sign(c->signer, jwt->data, jwt->len, &raw);
	if (rc == 0)
		rc = buf_putc(jwt, '.');
	if (rc == 0)
		rc = base64url_encode(jwt, raw.data, raw.len);
	buf_fini(&raw);
	return rc;
}

int clientauth_assertion(const struct client *c, const char *audience, struct buf *out, struct fault *f)
{
	struct buf jwt = BUF_INIT_SECRET(ASSERTION_MAX);

	if (c->signer == NULL)
		return fault_set(f, ST_INVALID,
			"client %s for %s has no private key, which private_key_jwt needs", c->application,
			c->provider);
	int rc = put_header(c, &jwt);
	if (rc == 0)
		rc = buf_putc(&jwt, '.');
	if (rc == 0)
		rc = put_claims(c, audience, &jwt);
	if (rc == 0)
		rc = put_signature(c, &jwt);
	if (rc == 0)
		rc = buf_append(out, jwt.data, jwt.len);
	buf_fini(&jwt);
	if (rc < 0)
		return fault_set(f, rc, "client %s for %s: the assertion cannot be made: %s", c->application,
			c->provider, status_text(rc));
	return 0;
}
