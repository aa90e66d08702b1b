/*
 * crypto - sealing and hashing, all by OpenSSL's libcrypto.
 *
 * Sealed form: 0x01 | key id length (1) | key id | salt (16) | nonce (12) | ciphertext | tag (16).
 * The data key is HKDF-SHA256(key, salt); the sealer draws a new salt per process and every 2^24 seals, so
 * random nonces stay far below the 2^32 bound of SP 800-38D 8.3 whatever the number of rows. Opened data
 * keys are cached. AES-256-GCM; the caller's AAD (table, column, connection id, token version) is
 * extended by the header itself, so the key id is bound as well.
 */
#ifndef REFRESHD_BASE_CRYPTO_H
#define REFRESHD_BASE_CRYPTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

#define KEYRING_ID_BYTES 32 /* longest key id, with its NUL */

/* A keyring: the first key seals, all open. Reference-counted; its keys never change. For one thread. */
struct keyring;
/*
 * Lines "<key id> <base64 of 32 bytes>", '#' comments and blank lines allowed; a key id is 1..31 of A-Z a-z 0-9 . _ -
 * ST_SYNTAX, ST_EXISTS (key id twice), ST_INVALID (wrong length, no key at all), ST_FULL (over 2048 keys), ST_CRYPTO;
 * the fault gives `name`:line.
 */
int keyring_parse(const char *name, const char *text, size_t n, struct keyring **out, struct fault *f) MUST_USE;
int keyring_load(const char *path, struct keyring **out, struct fault *f) MUST_USE;
struct keyring *keyring_ref(struct keyring *k);
/* The same keys for another thread, which seals under a salt of its own. ST_CRYPTO. */
int keyring_copy(const struct keyring *k, struct keyring **out) MUST_USE;
void keyring_unref(struct keyring *k); /* NULL is fine; the last one wipes the keys */
const char *keyring_first_id(const struct keyring *k);
bool keyring_has(const struct keyring *k, const char *id);
void keyring_set_seals_per_salt(struct keyring *k, uint32_t n); /* 1..2^24, 2^24 at first; a test sets less */

/* Appends the sealed form to `out`, which must not hold `plain`. ST_FULL, ST_CRYPTO. */
int crypto_seal(struct keyring *k, const void *aad, size_t aad_len, const void *plain, size_t n, struct buf *out) MUST_USE;
/* Appends the plain text to `out` (a secret buffer). ST_NO_KEY, ST_CRYPTO (wrong AAD, torn or forged bytes), ST_FULL. */
int crypto_open(struct keyring *k, const void *aad, size_t aad_len, const void *sealed, size_t n, struct buf *out) MUST_USE;
/* The key id of a sealed text, without opening it. ST_SYNTAX when it is no sealed text. */
int crypto_sealed_key(const void *sealed, size_t n, char id[KEYRING_ID_BYTES]) MUST_USE;

void crypto_sha256(const void *p, size_t n, uint8_t out[32]);
void crypto_thread_fini(void); /* what crypto_sha256 keeps for the calling thread, which is about to end */
void crypto_hmac_sha256(const void *key, size_t key_len, const void *p, size_t n, uint8_t out[32]);
bool crypto_equal(const void *a, const void *b, size_t n); /* constant time */
uint32_t crypto_crc32c(uint32_t seed, const void *p, size_t n); /* Castagnoli; seed 0 to start */

#endif
