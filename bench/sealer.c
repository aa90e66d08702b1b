/*
 * sealer - what keeping tokens sealed costs at the least.
 *
 * The cipher is fetched and its key set once for each direction, nonces are drawn many at a time: what
 * measured fastest. A token that cannot be opened ends the program.
 */
#include "sealer.h"

#include <openssl/rand.h>

#include "common.h"

struct place { /* what a sealed token is bound to */
	int64_t id, column;
};

void sealer_init(struct sealer *s)
{
	unsigned char key[32];
	EVP_CIPHER *aes = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	s->sealing = need(EVP_CIPHER_CTX_new());
	s->opening = need(EVP_CIPHER_CTX_new());
	if (aes == NULL || RAND_bytes(key, sizeof key) != 1 ||
		EVP_EncryptInit_ex2(s->sealing, aes, key, NULL, NULL) != 1 ||
		EVP_DecryptInit_ex2(s->opening, aes, key, NULL, NULL) != 1)
		die("libcrypto cannot begin");
	EVP_CIPHER_free(aes);
	s->used = SEALER_NONCES;
}

void seal(struct sealer *s, int64_t id, int column, const char *text, size_t n, struct array *out)
{
	const struct place place = { id, column };
	int got = 0, rest = 0;
	if (s->used == SEALER_NONCES) {
		if (RAND_bytes(s->nonces, sizeof s->nonces) != 1)
			die("no randomness");
		s->used = 0;
	}
	const unsigned char *nonce = s->nonces + SEALER_NONCE * s->used++;
	put32(out, (uint32_t)(sizeof SEALER_KEY + SEALER_NONCE + n + SEALER_TAG));
	unsigned char *to = (unsigned char *)out->data + out->len;
	memcpy(to, SEALER_KEY, sizeof SEALER_KEY);
	memcpy(to + sizeof SEALER_KEY, nonce, SEALER_NONCE);
	to += sizeof SEALER_KEY + SEALER_NONCE;
	if (EVP_EncryptInit_ex2(s->sealing, NULL, NULL, nonce, NULL) != 1 ||
		EVP_EncryptUpdate(s->sealing, NULL, &got, (const void *)&place, sizeof place) != 1 ||
		EVP_EncryptUpdate(s->sealing, to, &got, (const void *)text, (int)n) != 1 ||
		EVP_EncryptFinal_ex(s->sealing, to + got, &rest) != 1 ||
		EVP_CIPHER_CTX_ctrl(s->sealing, EVP_CTRL_AEAD_GET_TAG, SEALER_TAG, to + n) != 1)
		die("a token cannot be sealed");
	out->len += sizeof SEALER_KEY + SEALER_NONCE + n + SEALER_TAG;
}

size_t unseal(struct sealer *s, int64_t id, int column, const char *sealed, size_t n, char out[TOKEN_MAX])
{
	const size_t head = sizeof SEALER_KEY + SEALER_NONCE;
	const struct place place = { id, column };
	int got = 0, rest = 0;
	if (n < head + SEALER_TAG || n > SEALED_MAX || memcmp(sealed, SEALER_KEY, sizeof SEALER_KEY) != 0)
		die("row %lld holds no sealed token", (long long)id);
	const size_t text = n - head - SEALER_TAG;
	if (EVP_DecryptInit_ex2(s->opening, NULL, NULL, (const void *)(sealed + sizeof SEALER_KEY), NULL) != 1 ||
		EVP_DecryptUpdate(s->opening, NULL, &got, (const void *)&place, sizeof place) != 1 ||
		EVP_DecryptUpdate(s->opening, (void *)out, &got, (const void *)(sealed + head), (int)text) != 1 ||
		EVP_CIPHER_CTX_ctrl(s->opening, EVP_CTRL_AEAD_SET_TAG, SEALER_TAG,
			(void *)(uintptr_t)(sealed + head + text)) != 1 ||
		EVP_DecryptFinal_ex(s->opening, (void *)(out + got), &rest) != 1)
		die("the token of row %lld cannot be opened", (long long)id);
	return text;
}

void sealer_fini(struct sealer *s)
{
	EVP_CIPHER_CTX_free(s->sealing);
	EVP_CIPHER_CTX_free(s->opening);
}
