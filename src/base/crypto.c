/*
 * crypto - keyrings, sealing with derived data keys, digests and the journal's checksum.
 *
 * A new EVP_CIPHER_CTX with its key costs twice the encryption of a token, so contexts stay keyed: one
 * for sealing and a small cache for opening, found by key and salt. Everything that holds key material
 * is wiped with the keyring. Not thread-safe: a keyring belongs to the loop. Faults say where a
 * keyring is wrong and never repeat what stands there, as a mixed-up line has the key in any place.
 */
#include "base/crypto.h"

#include <endian.h>
#include <limits.h>
#include <string.h>

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <openssl/sha.h>

#include "base/base64.h"
#include "base/mem.h"
#include "base/sys.h"

#define FORMAT_BYTE 0x01
#define KEY_BYTES ((size_t)32)
#define SALT_BYTES ((size_t)16)
#define NONCE_BYTES ((size_t)12)
#define TAG_BYTES ((size_t)16)
#define HEADER_MAX (2 + (KEYRING_ID_BYTES - 1) + SALT_BYTES + NONCE_BYTES)
#define FILE_BYTES ((size_t)65536)
#define KEYS_MAX ((size_t)2048) /* more than a file can hold */
#define CACHE_SIZE ((size_t)64)
#define AAD_AT_ONCE ((size_t)256)
#define SEALS_PER_SALT (UINT32_C(1) << 24)

struct key_row {
	char id[KEYRING_ID_BYTES];
	unsigned line; /* where it was defined */
};

struct opened {
	EVP_CIPHER_CTX *ctx; /* keyed; NULL: unused */
	size_t key;
	uint8_t salt[SALT_BYTES];
	uint64_t used; /* for the least recently used */
};

struct keyring {
	unsigned refs;
	struct key_row *rows;
	size_t len, cap;
	struct buf keys; /* secret; KEY_BYTES for every row */
	EVP_CIPHER *cipher;
	EVP_KDF *kdf;
	EVP_CIPHER_CTX *seal_ctx; /* keyed for seal_salt */
	uint8_t seal_salt[SALT_BYTES];
	uint32_t seals_left; /* with this salt */
	uint32_t seals_per_salt;
	uint64_t clock; /* counts uses of the cache */
	struct opened cache[CACHE_SIZE];
};

/* Where a keyring text is being read. */
struct place {
	const char *name;
	unsigned line;
	struct fault *fault;
};

static bool is_id_char(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
		c == '_' || c == '-';
}

static bool is_key_id(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!is_id_char(s[i]))
			return false;
	return n > 0 && n < KEYRING_ID_BYTES;
}

/* The index of a key, or k->len. */
static size_t find_key(const struct keyring *k, const char *id, size_t n)
{
	size_t i = 0;

	while (i < k->len && !(strlen(k->rows[i].id) == n && memcmp(k->rows[i].id, id, n) == 0))
		i++;
	return i;
}

static int add_key(struct keyring *k, const struct place *at, const char *id, size_t id_len,
	const struct buf *key)
{
	size_t known = find_key(k, id, id_len);

	if (known < k->len)
		return fault_set(at->fault, ST_EXISTS, "%s:%u: key id %s is already on line %u", at->name,
			at->line, k->rows[known].id, k->rows[known].line);
	if (key->len != KEY_BYTES)
		return fault_set(at->fault, ST_INVALID, "%s:%u: the key has %zu bytes, it must have %zu",
			at->name, at->line, key->len, KEY_BYTES);
	int rc = buf_append(&k->keys, key->data, KEY_BYTES);
	if (rc < 0)
		return fault_set(at->fault, rc, "%s:%u: more than %zu keys", at->name, at->line, KEYS_MAX);
	if (k->len == k->cap) {
		k->cap = k->cap > 0 ? k->cap * 2 : 4;
		k->rows = mem_realloc(k->rows, k->cap, sizeof(*k->rows));
	}
	struct key_row *row = &k->rows[k->len++];
	*row = (struct key_row){ .line = at->line };
	memcpy(row->id, id, id_len);
	return 0;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

static int parse_line(struct keyring *k, const struct place *at, const char *s, size_t n)
{
	struct buf key = BUF_INIT_SECRET(FILE_BYTES);
	size_t id_len = 0, key_at;

	while (n > 0 && is_blank(s[n - 1]))
		n--;
	if (n == 0 || s[0] == '#')
		return 0;
	while (id_len < n && !is_blank(s[id_len]))
		id_len++;
	for (key_at = id_len; key_at < n && is_blank(s[key_at]); key_at++)
		;
	if (!is_key_id(s, id_len))
		return fault_set(at->fault, ST_SYNTAX,
			"%s:%u: a line starts with a key id of 1 to %d characters out of A-Z a-z 0-9 . _ -",
			at->name, at->line, KEYRING_ID_BYTES - 1);
	if (key_at == n)
		return fault_set(at->fault, ST_SYNTAX, "%s:%u: no key after the key id", at->name, at->line);
	int rc = base64_decode(&key, s + key_at, n - key_at);
	if (rc < 0)
		fault_set(at->fault, rc, "%s:%u: the key is not valid base64", at->name, at->line);
	else
		rc = add_key(k, at, s, id_len, &key);
	buf_fini(&key);
	return rc;
}

static int parse_lines(struct keyring *k, struct place *at, const char *text, size_t n)
{
	while (n > 0) {
		const char *end = memchr(text, '\n', n);
		size_t len = end != NULL ? (size_t)(end - text) : n;
		at->line++;
		int rc = parse_line(k, at, text, len);
		if (rc < 0)
			return rc;
		len += end != NULL;
		text += len;
		n -= len;
	}
	if (k->len == 0)
		return fault_set(at->fault, ST_INVALID, "%s: no key", at->name);
	return 0;
}

static int fetch_algorithms(struct keyring *k, const char *name, struct fault *f)
{
	k->cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	k->kdf = EVP_KDF_fetch(NULL, OSSL_KDF_NAME_HKDF, NULL);
	if (k->cipher != NULL && k->kdf != NULL)
		return 0;
	ERR_clear_error();
	return fault_set(f, ST_CRYPTO, "%s: libcrypto offers no AES-256-GCM or no HKDF", name);
}

int keyring_parse(const char *name, const char *text, size_t n, struct keyring **out, struct fault *f)
{
	struct place at = { .name = name, .fault = f };
	struct keyring *k = mem_alloc(sizeof(*k));

	k->refs = 1;
	k->seals_per_salt = SEALS_PER_SALT;
	buf_init_secret(&k->keys, KEYS_MAX * KEY_BYTES);
	int rc = parse_lines(k, &at, text, n);
	if (rc == 0)
		rc = fetch_algorithms(k, name, f);
	if (rc == 0)
		*out = k;
	else
		keyring_unref(k);
	return rc;
}

int keyring_load(const char *path, struct keyring **out, struct fault *f)
{
	struct buf text = BUF_INIT_SECRET(FILE_BYTES);
	int rc = buf_read_file(&text, path, f);

	if (rc == 0)
		rc = keyring_parse(path, buf_str(&text), text.len, out, f);
	buf_fini(&text);
	return rc;
}

struct keyring *keyring_ref(struct keyring *k)
{
	k->refs++;
	return k;
}

int keyring_copy(const struct keyring *k, struct keyring **out)
{
	struct keyring *copy = mem_alloc(sizeof(*copy));

	copy->refs = 1;
	copy->seals_per_salt = k->seals_per_salt;
	copy->rows = mem_calloc(k->len, sizeof(*copy->rows));
	memcpy(copy->rows, k->rows, k->len * sizeof(*copy->rows));
	copy->len = copy->cap = k->len;
	buf_init_secret(&copy->keys, KEYS_MAX * KEY_BYTES);
	ALWAYS(buf_append(&copy->keys, k->keys.data, k->keys.len) == 0); /* as many as the other one holds */
	int rc = fetch_algorithms(copy, "", NULL);
	if (rc == 0)
		*out = copy;
	else
		keyring_unref(copy);
	return rc;
}

void keyring_unref(struct keyring *k)
{
	if (k == NULL || --k->refs > 0)
		return;
	/* libcrypto cleanses a cipher context before it frees it. */
	for (size_t i = 0; i < CACHE_SIZE; i++)
		EVP_CIPHER_CTX_free(k->cache[i].ctx);
	EVP_CIPHER_CTX_free(k->seal_ctx);
	EVP_CIPHER_free(k->cipher);
	EVP_KDF_free(k->kdf);
	buf_fini(&k->keys);
	mem_free(k->rows);
	mem_wipe(k, sizeof(*k));
	mem_free(k);
}

const char *keyring_first_id(const struct keyring *k)
{
	return k->rows[0].id;
}

bool keyring_has(const struct keyring *k, const char *id)
{
	return find_key(k, id, strlen(id)) < k->len;
}

void keyring_set_seals_per_salt(struct keyring *k, uint32_t n)
{
	ALWAYS(n > 0 && n <= SEALS_PER_SALT);
	k->seals_per_salt = n;
	k->seals_left = 0;
}

static bool derive(struct keyring *k, size_t key, const uint8_t salt[SALT_BYTES], uint8_t out[KEY_BYTES])
{
	char digest[] = "SHA256";
	uint8_t salt_copy[SALT_BYTES];
	OSSL_PARAM params[] = {
		OSSL_PARAM_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, sizeof(digest) - 1),
		OSSL_PARAM_octet_string(OSSL_KDF_PARAM_KEY, k->keys.data + key * KEY_BYTES, KEY_BYTES),
		OSSL_PARAM_octet_string(OSSL_KDF_PARAM_SALT, salt_copy, sizeof(salt_copy)),
		OSSL_PARAM_END,
	};
	EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(k->kdf);

	memcpy(salt_copy, salt, SALT_BYTES);
	bool ok = ctx != NULL && EVP_KDF_derive(ctx, out, KEY_BYTES, params) == 1;
	EVP_KDF_CTX_free(ctx);
	return ok;
}

/* A context keyed for one salt; NULL when libcrypto fails. */
static EVP_CIPHER_CTX *keyed_ctx(struct keyring *k, size_t key, const uint8_t salt[SALT_BYTES], bool encrypt)
{
	uint8_t data_key[KEY_BYTES];
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

	bool ok = ctx != NULL && derive(k, key, salt, data_key) &&
		EVP_CipherInit_ex2(ctx, k->cipher, data_key, NULL, encrypt, NULL) == 1;
	mem_wipe(data_key, sizeof(data_key));
	if (!ok) {
		EVP_CIPHER_CTX_free(ctx);
		ctx = NULL;
	}
	return ctx;
}

static EVP_CIPHER_CTX *sealing_ctx(struct keyring *k)
{
	if (k->seals_left > 0)
		return k->seal_ctx;
	uint8_t salt[SALT_BYTES];
	sys_random(salt, sizeof(salt));
	EVP_CIPHER_CTX *ctx = keyed_ctx(k, 0, salt, true);
	if (ctx == NULL)
		return NULL;
	EVP_CIPHER_CTX_free(k->seal_ctx);
	k->seal_ctx = ctx;
	memcpy(k->seal_salt, salt, SALT_BYTES);
	k->seals_left = k->seals_per_salt;
	return ctx;
}

static EVP_CIPHER_CTX *opening_ctx(struct keyring *k, size_t key, const uint8_t salt[SALT_BYTES])
{
	struct opened *oldest = &k->cache[0];

	for (size_t i = 0; i < CACHE_SIZE; i++) {
		struct opened *o = &k->cache[i];
		if (o->ctx != NULL && o->key == key && memcmp(o->salt, salt, SALT_BYTES) == 0) {
			o->used = ++k->clock;
			return o->ctx;
		}
		if (o->used < oldest->used)
			oldest = o;
	}
	EVP_CIPHER_CTX *ctx = keyed_ctx(k, key, salt, false);
	if (ctx == NULL)
		return NULL;
	EVP_CIPHER_CTX_free(oldest->ctx);
	*oldest = (struct opened){ .ctx = ctx, .key = key, .used = ++k->clock };
	memcpy(oldest->salt, salt, SALT_BYTES);
	return ctx;
}

/* A sealed text taken apart; all pointers go into it. */
struct sealed {
	const char *id;
	size_t id_len;
	const uint8_t *salt, *nonce, *text, *tag;
	size_t header_len, text_len;
};

static int split(const void *p, size_t n, struct sealed *s)
{
	const uint8_t *b = p;

	if (n < 2 || b[0] != FORMAT_BYTE)
		return ST_SYNTAX;
	size_t header_len = 2 + (size_t)b[1] + SALT_BYTES + NONCE_BYTES;
	if (n < header_len + TAG_BYTES || n > INT_MAX)
		return ST_SYNTAX;
	*s = (struct sealed){
		.id = (const char *)b + 2,
		.id_len = b[1],
		.salt = b + 2 + b[1],
		.nonce = b + 2 + b[1] + SALT_BYTES,
		.text = b + header_len,
		.tag = b + n - TAG_BYTES,
		.header_len = header_len,
		.text_len = n - header_len - TAG_BYTES,
	};
	return is_key_id(s->id, s->id_len) ? 0 : ST_SYNTAX;
}

int crypto_sealed_key(const void *sealed, size_t n, char id[KEYRING_ID_BYTES])
{
	struct sealed s;
	int rc = split(sealed, n, &s);

	if (rc < 0)
		return rc;
	memcpy(id, s.id, s.id_len);
	id[s.id_len] = '\0';
	return 0;
}

/* The header comes first: it tells its own length, so no caller's AAD can stand in for a part of it. */
static bool feed_aad(EVP_CIPHER_CTX *ctx, const uint8_t *header, size_t header_len, const void *aad,
	size_t aad_len)
{
	uint8_t both[AAD_AT_ONCE];
	int len;

	/* One call where two would do the same: each costs as much as sealing half a token. */
	if (header_len <= sizeof(both) && aad_len > 0 && aad_len <= sizeof(both) - header_len) {
		memcpy(both, header, header_len);
		memcpy(both + header_len, aad, aad_len);
		return EVP_CipherUpdate(ctx, NULL, &len, both, (int)(header_len + aad_len)) == 1;
	}
	return EVP_CipherUpdate(ctx, NULL, &len, header, (int)header_len) == 1 &&
		(aad_len == 0 || EVP_CipherUpdate(ctx, NULL, &len, aad, (int)aad_len) == 1);
}

/* A text without a byte has no update: it may be NULL, and libcrypto does not promise to take that. */
static bool run_body(EVP_CIPHER_CTX *ctx, uint8_t *to, const uint8_t *from, size_t n)
{
	int len;

	return n == 0 || (EVP_CipherUpdate(ctx, to, &len, from, (int)n) == 1 && (size_t)len == n);
}

static bool encrypt(EVP_CIPHER_CTX *ctx, uint8_t *at, size_t header_len, const void *aad, size_t aad_len,
	const void *plain, size_t n)
{
	uint8_t *text = at + header_len, *tag = text + n;
	int len;

	return EVP_EncryptInit_ex2(ctx, NULL, NULL, text - NONCE_BYTES, NULL) == 1 &&
		feed_aad(ctx, at, header_len, aad, aad_len) && run_body(ctx, text, plain, n) &&
		EVP_EncryptFinal_ex(ctx, tag, &len) == 1 &&
		EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, (int)TAG_BYTES, tag) == 1;
}

static size_t write_header(const struct keyring *k, uint8_t *at)
{
	size_t id_len = strlen(k->rows[0].id);
	uint8_t *p = at;

	*p++ = FORMAT_BYTE;
	*p++ = (uint8_t)id_len;
	memcpy(p, k->rows[0].id, id_len);
	p += id_len;
	memcpy(p, k->seal_salt, SALT_BYTES);
	p += SALT_BYTES;
	sys_random(p, NONCE_BYTES);
	return (size_t)(p - at) + NONCE_BYTES;
}

int crypto_seal(struct keyring *k, const void *aad, size_t aad_len, const void *plain, size_t n,
	struct buf *out)
{
	size_t total = 2 + strlen(k->rows[0].id) + SALT_BYTES + NONCE_BYTES + n + TAG_BYTES;

	if (aad_len > INT_MAX || n > INT_MAX - HEADER_MAX - TAG_BYTES)
		return ST_FULL;
	int rc = buf_reserve(out, total);
	if (rc < 0)
		return rc;
	EVP_CIPHER_CTX *ctx = sealing_ctx(k);
	if (ctx != NULL) {
		uint8_t *at = out->data + out->len;
		size_t header_len = write_header(k, at);
		k->seals_left--;
		if (encrypt(ctx, at, header_len, aad, aad_len, plain, n)) {
			buf_added(out, total);
			return 0;
		}
	}
	ERR_clear_error();
	return ST_CRYPTO;
}

static bool decrypt(EVP_CIPHER_CTX *ctx, const struct sealed *s, const uint8_t *header, const void *aad,
	size_t aad_len, uint8_t *to)
{
	uint8_t tag[TAG_BYTES];
	int len;

	memcpy(tag, s->tag, TAG_BYTES);
	return EVP_DecryptInit_ex2(ctx, NULL, NULL, s->nonce, NULL) == 1 &&
	       feed_aad(ctx, header, s->header_len, aad, aad_len) &&
	       run_body(ctx, to, s->text, s->text_len) &&
	       EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, (int)TAG_BYTES, tag) == 1 &&
	       EVP_DecryptFinal_ex(ctx, to + s->text_len, &len) == 1;
}

int crypto_open(struct keyring *k, const void *aad, size_t aad_len, const void *sealed, size_t n,
	struct buf *out)
{
	struct sealed s;

	ALWAYS(out->secret);
	if (aad_len > INT_MAX || split(sealed, n, &s) < 0)
		return ST_CRYPTO;
	size_t key = find_key(k, s.id, s.id_len);
	if (key == k->len)
		return ST_NO_KEY;
	int rc = buf_reserve(out, s.text_len);
	if (rc < 0)
		return rc;
	EVP_CIPHER_CTX *ctx = opening_ctx(k, key, s.salt);
	uint8_t *to = out->data + out->len;
	if (ctx != NULL && decrypt(ctx, &s, sealed, aad, aad_len, to)) {
		buf_added(out, s.text_len);
		return 0;
	}
	/* Text that failed its check must not be left behind the end of the buffer. */
	mem_wipe(to, s.text_len);
	ERR_clear_error();
	return ST_CRYPTO;
}

/* SHA256() looks its algorithm up by name and makes a context each time, which is half of the price for a token. */
static _Thread_local EVP_MD_CTX *sha256;

void crypto_sha256(const void *p, size_t n, uint8_t out[32])
{
	EVP_MD_CTX *ctx = sha256;
	unsigned len = 0;

	if (ctx == NULL) {
		ctx = sha256 = EVP_MD_CTX_new();
		EVP_MD *md = EVP_MD_fetch(NULL, "SHA256", NULL);
		ALWAYS(ctx != NULL && md != NULL && EVP_DigestInit_ex2(ctx, md, NULL) == 1);
		EVP_MD_free(md);
	}
	ALWAYS(EVP_DigestInit_ex2(ctx, NULL, NULL) == 1 && EVP_DigestUpdate(ctx, p, n) == 1 && EVP_DigestFinal_ex(ctx, out, &len) == 1 &&
		len == 32);
}

void crypto_thread_fini(void)
{
	EVP_MD_CTX_free(sha256);
	sha256 = NULL;
}

void crypto_hmac_sha256(const void *key, size_t key_len, const void *p, size_t n, uint8_t out[32])
{
	unsigned len = 0;

	ALWAYS(key_len <= INT_MAX);
	ALWAYS(HMAC(EVP_sha256(), key, (int)key_len, p, n, out, &len) != NULL && len == 32);
}

bool crypto_equal(const void *a, const void *b, size_t n)
{
	return CRYPTO_memcmp(a, b, n) == 0;
}

/* Eight tables, so that eight bytes are folded at a time (Kounavis, Berry 2005). */
static uint32_t crc_tables[8][256];

static void make_crc_tables(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int bit = 0; bit < 8; bit++)
			c = (c >> 1) ^ (c & 1 ? UINT32_C(0x82f63b78) : 0);
		crc_tables[0][i] = c;
	}
	for (size_t t = 1; t < 8; t++)
		for (size_t i = 0; i < 256; i++) {
			uint32_t c = crc_tables[t - 1][i];
			crc_tables[t][i] = (c >> 8) ^ crc_tables[0][c & 0xff];
		}
}

#if defined(__x86_64__)
/* The processor has an instruction for this very polynomial. */
__attribute__((target("sse4.2"))) static uint32_t crc_by_instruction(uint32_t crc, const uint8_t *b, size_t n)
{
	uint64_t c = crc;

	for (; n >= 8; n -= 8, b += 8) {
		uint64_t word;
		memcpy(&word, b, sizeof(word));
		c = __builtin_ia32_crc32di(c, word);
	}
	for (; n > 0; n--, b++)
		c = __builtin_ia32_crc32qi((uint32_t)c, *b);
	return (uint32_t)c;
}
#endif

static uint32_t crc_by_tables(uint32_t crc, const uint8_t *b, size_t n)
{
	if (crc_tables[0][1] == 0)
		make_crc_tables();
	for (; n >= 8; n -= 8, b += 8) {
		uint64_t word;
		memcpy(&word, b, sizeof(word));
		word = le64toh(word) ^ crc;
		crc = 0;
		for (unsigned i = 0; i < 8; i++)
			crc ^= crc_tables[7 - i][(word >> (8 * i)) & 0xff];
	}
	for (; n > 0; n--, b++)
		crc = (crc >> 8) ^ crc_tables[0][(crc ^ *b) & 0xff];
	return crc;
}

uint32_t crypto_crc32c(uint32_t seed, const void *p, size_t n)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2"))
		return ~crc_by_instruction(~seed, p, n);
#endif
	return ~crc_by_tables(~seed, p, n);
}
