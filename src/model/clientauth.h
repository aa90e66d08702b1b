/*
 * clientauth - how we prove to a token endpoint who we are: basic, post, private_key_jwt, none.
 *
 * Never two methods in one request (RFC 6749 2.3). Basic form-encodes both halves before base64
 * (2.3.1). An assertion (RFC 7523) gets a new jti for every HTTP attempt. Pure but for sys_random and the
 * clock, both through sys.
 */
#ifndef REFRESHD_MODEL_CLIENTAUTH_H
#define REFRESHD_MODEL_CLIENTAUTH_H

#include "base/buf.h"
#include "base/status.h"
#include "model/provider.h"

/* Receives what has to be added; name and value are borrowed, values may be secret. */
struct clientauth_sink {
	int (*param)(void *arg, const char *name, const char *value, size_t n);  /* a body parameter */
	int (*header)(void *arg, const char *name, const char *value, size_t n); /* a request header */
	void *arg;
};

/* `audience`: the assertion's aud. ST_CRYPTO, ST_INVALID (a secret is missing) or the sink's own code. */
int clientauth_apply(const struct provider *p, const struct client *c, const char *audience, const struct clientauth_sink *sink, struct fault *f) MUST_USE;

/* The compact JWT alone (iss=sub=client_id, aud, iat, nbf, exp=+60 s, jti). */
int clientauth_assertion(const struct client *c, const char *audience, struct buf *out, struct fault *f) MUST_USE;

#endif
