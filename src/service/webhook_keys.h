/*
 * webhook_keys - what an endpoint of the API signs with: a whsec_ secret (HMAC) and an Ed25519 key (whsk_),
 * always in one.
 *
 * Both are one text, "whsec_... whsk_...", sealed as one value under the endpoint's id, so that a rotation
 * moves them together and neither can be put in the other's place. Only the whsec_ part is ever shown, once;
 * of the Ed25519 key its public half.
 */
#ifndef REFRESHD_SERVICE_WEBHOOK_KEYS_H
#define REFRESHD_SERVICE_WEBHOOK_KEYS_H

#include "base/crypto.h"
#include "base/signer.h"
#include "model/event.h"

struct webhook_keys {
	struct event_secret hmac;
	struct buf seed;        /* secret; of: */
	struct signer *ed25519; /* NULL: there are no keys */
};

/* New ones; `given`: the caller's own whsec_ secret instead of a random one, or NULL. ST_INVALID, ST_SYNTAX,
 * ST_CRYPTO. */
int webhook_keys_new(const char *given, struct webhook_keys *out, struct fault *f) MUST_USE;
void webhook_keys_fini(struct webhook_keys *k); /* wipes; an empty one is fine */
int webhook_keys_public(const struct webhook_keys *k, struct buf *out) MUST_USE; /* appends whpk_... */

int webhook_keys_seal(
	const struct webhook_keys *k, struct keyring *ring, const uint8_t id[16], struct buf *out) MUST_USE;
int webhook_keys_open(struct keyring *ring, const uint8_t id[16], const void *sealed, size_t n,
	struct webhook_keys *out, struct fault *f) MUST_USE;

#endif
