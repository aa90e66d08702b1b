/*
 * signer - one private key out of a PEM file, checked once against its algorithm.
 *
 * The check is at load, so that a wrong key is an error of the configuration and not of the first
 * refresh at night. JWS wants ECDSA signatures as r||s (RFC 7518 3.4) where libcrypto writes DER.
 * It never asks for a passphrase: there is nobody at a daemon's terminal.
 */
#include "base/signer.h"

#include <stdbool.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "base/mem.h"

#define FILE_BYTES ((size_t)65536)
#define RSA_MIN_BITS 2048
#define P256_BYTES 32

struct signer {
	unsigned refs;
	enum sign_alg alg;
	EVP_PKEY *key;
	size_t max_len; /* of a signature as libcrypto makes it */
};

static int refuse_passphrase(char *out, int size, int writing, void *arg)
{
	bool *asked = arg;

	(void)out;
	(void)size;
	(void)writing;
	*asked = true;
	return -1;
}

static int read_key(const char *path, const struct buf *pem, EVP_PKEY **out, struct fault *f)
{
	bool asked = false;
	BIO *bio = BIO_new_mem_buf(buf_str(pem), (int)pem->len);

	ALWAYS(bio != NULL);
	EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, refuse_passphrase, &asked);
	BIO_free(bio);
	ERR_clear_error();
	if (asked) {
		EVP_PKEY_free(key);
		return fault_set(f, ST_INVALID,
			"%s: the private key is encrypted; store it without a passphrase", path);
	}
	if (key == NULL)
		return fault_set(f, ST_SYNTAX, "%s: not a private key in PEM form", path);
	*out = key;
	return 0;
}

static bool is_p256(const EVP_PKEY *key)
{
	char group[32];
	size_t len;

	return EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_group_name(key, group, sizeof(group), &len) == 1 &&
		strcmp(group, "prime256v1") == 0;
}

static int check_key(const char *path, const EVP_PKEY *key, enum sign_alg alg, struct fault *f)
{
	const char *name = EVP_PKEY_get0_type_name(key);

	name = name != NULL ? name : "unknown";
	switch (alg) {
	case SIGN_ES256:
		if (!is_p256(key))
			return fault_set(f, ST_INVALID,
				"%s: ES256 needs an EC key on P-256, this is a key of %s with %d bits", path,
				name, EVP_PKEY_get_bits(key));
		return 0;
	case SIGN_RS256:
		if (!EVP_PKEY_is_a(key, "RSA"))
			return fault_set(
				f, ST_INVALID, "%s: RS256 needs an RSA key, this is a key of %s", path, name);
		if (EVP_PKEY_get_bits(key) < RSA_MIN_BITS)
			return fault_set(f, ST_INVALID,
				"%s: the RSA key has %d bits, RS256 needs at least %d", path,
				EVP_PKEY_get_bits(key), RSA_MIN_BITS);
		return 0;
	case SIGN_ED25519:
		if (!EVP_PKEY_is_a(key, "ED25519"))
			return fault_set(f, ST_INVALID,
				"%s: Ed25519 needs an Ed25519 key, this is a key of %s", path, name);
		return 0;
	}
	return fault_set(f, ST_INVALID, "%s: unknown signature algorithm %d", path, (int)alg);
}

static struct signer *signer_of(EVP_PKEY *key, enum sign_alg alg)
{
	struct signer *s = mem_alloc(sizeof(*s));

	*s = (struct signer){ .refs = 1, .alg = alg, .key = key, .max_len = (size_t)EVP_PKEY_get_size(key) };
	return s;
}

int signer_load(const char *path, enum sign_alg alg, struct signer **out, struct fault *f)
{
	struct buf pem = BUF_INIT_SECRET(FILE_BYTES);
	EVP_PKEY *key = NULL;

	int rc = buf_read_file(&pem, path, f);
	if (rc == 0)
		rc = read_key(path, &pem, &key, f);
	buf_fini(&pem);
	if (rc == 0)
		rc = check_key(path, key, alg, f);
	if (rc < 0) {
		EVP_PKEY_free(key);
		return rc;
	}
	*out = signer_of(key, alg);
	return 0;
}

int signer_from_seed(const uint8_t seed[SIGNER_ED25519_BYTES], struct signer **out)
{
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, seed, SIGNER_ED25519_BYTES);

	if (key == NULL) {
		ERR_clear_error();
		return ST_CRYPTO;
	}
	*out = signer_of(key, SIGN_ED25519);
	return 0;
}

int signer_public(const struct signer *s, uint8_t out[SIGNER_ED25519_BYTES])
{
	uint8_t raw[SIGNER_ED25519_BYTES];
	size_t n = sizeof(raw);

	if (s->alg != SIGN_ED25519)
		return ST_INVALID;
	if (EVP_PKEY_get_raw_public_key(s->key, raw, &n) != 1 || n != sizeof(raw)) {
		ERR_clear_error();
		return ST_CRYPTO;
	}
	memcpy(out, raw, sizeof(raw));
	return 0;
}

struct signer *signer_ref(struct signer *s)
{
	s->refs++;
	return s;
}

void signer_unref(struct signer *s)
{
	if (s == NULL || --s->refs > 0)
		return;
	EVP_PKEY_free(s->key);
	mem_free(s);
}

/* Replace the DER signature in `sig` by r||s. */
static bool der_to_raw(uint8_t *sig, size_t *len)
{
	const uint8_t *p = sig;
	ECDSA_SIG *parts = d2i_ECDSA_SIG(NULL, &p, (long)*len);

	bool ok = parts != NULL && BN_bn2binpad(ECDSA_SIG_get0_r(parts), sig, P256_BYTES) == P256_BYTES &&
		BN_bn2binpad(ECDSA_SIG_get0_s(parts), sig + P256_BYTES, P256_BYTES) == P256_BYTES;
	ECDSA_SIG_free(parts);
	*len = 2 * P256_BYTES;
	return ok;
}

static bool sign(const struct signer *s, EVP_MD_CTX *ctx, const void *p, size_t n, uint8_t *sig, size_t *len)
{
	/* Ed25519 hashes by itself. */
	const char *digest = s->alg == SIGN_ED25519 ? NULL : "SHA256";

	return ctx != NULL && EVP_DigestSignInit_ex(ctx, NULL, digest, NULL, NULL, s->key, NULL) == 1 &&
		EVP_DigestSign(ctx, sig, len, p, n) == 1 && (s->alg != SIGN_ES256 || der_to_raw(sig, len));
}

int signer_sign(struct signer *s, const void *p, size_t n, struct buf *out)
{
	size_t len = s->max_len;
	uint8_t *sig = mem_calloc(len, 1);
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();

	int rc = sign(s, ctx, p, n, sig, &len) ? buf_append(out, sig, len) : ST_CRYPTO;
	EVP_MD_CTX_free(ctx);
	if (rc == ST_CRYPTO)
		ERR_clear_error();
	mem_free(sig);
	return rc;
}
