/*
 * signer - private keys that sign: client assertions (RFC 7523) and Ed25519 webhooks.
 */
#ifndef REFRESHD_BASE_SIGNER_H
#define REFRESHD_BASE_SIGNER_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

/* A private key for JWT assertions (PEM, PKCS#8 or traditional). Reference-counted. */
struct signer;
enum sign_alg { SIGN_ES256, SIGN_RS256, SIGN_ED25519 };
/* Refuses a key that does not fit the algorithm (P-256; RSA of at least 2048 bits; Ed25519), naming the path. */
int signer_load(const char *path, enum sign_alg alg, struct signer **out, struct fault *f) MUST_USE;
/* An Ed25519 key from its seed (RFC 8032). ST_CRYPTO. */
#define SIGNER_ED25519_BYTES 32
int signer_from_seed(const uint8_t seed[SIGNER_ED25519_BYTES], struct signer **out) MUST_USE;
/* The public half of an Ed25519 key. ST_INVALID for a key of another kind. */
int signer_public(const struct signer *s, uint8_t out[SIGNER_ED25519_BYTES]) MUST_USE;
struct signer *signer_ref(struct signer *s);
void signer_unref(struct signer *s);
/* Appends the raw signature (ES256: r||s, 64 bytes). */
int signer_sign(struct signer *s, const void *p, size_t n, struct buf *out) MUST_USE;

#endif
