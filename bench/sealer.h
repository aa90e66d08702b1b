/*
 * sealer - tokens sealed by AES-256-GCM under a key that ends with the process: the name of the key, a nonce,
 * the text, a tag.
 */
#ifndef REFRESHD_BENCH_SEALER_H
#define REFRESHD_BENCH_SEALER_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>

#include "pgwire.h"

#define TOKEN_MAX 2048
#define SEALER_KEY                                                                                           \
	"bare-loop-key-0000001" /* with its NUL a sealed token is as long as the daemon's with a short key   \
				   id */
#define SEALER_NONCE 12
#define SEALER_TAG 16
#define SEALER_NONCES 512 /* drawn at once */
#define SEALED_MAX (sizeof SEALER_KEY + SEALER_NONCE + TOKEN_MAX + SEALER_TAG)

struct sealer {
	EVP_CIPHER_CTX *sealing, *opening;
	unsigned char nonces[SEALER_NONCES * SEALER_NONCE];
	unsigned used;
};

void sealer_init(struct sealer *s);
void sealer_fini(struct sealer *s);
/* Into an array, bound to the row and the column. */
void seal(struct sealer *s, int64_t id, int column, const char *text, size_t n, struct array *out);
size_t unseal(struct sealer *s, int64_t id, int column, const char *sealed, size_t n, char out[TOKEN_MAX]);

#endif
