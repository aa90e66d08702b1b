/*
 * Published vectors, the sealed form taken apart by hand, every flipped bit, and keys made on the spot.
 */
#include "unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include "base/buf.h"
#include "base/crypto.h"
#include "base/mem.h"
#include "base/signer.h"
#include "base/str.h"
#include "base/sys.h"

/* 32 bytes of 0x00.., 0x11.., 0x22.. */
#define KEY_0 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
#define KEY_1 "ERERERERERERERERERERERERERERERERERERERERERE="
#define KEY_2 "IiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiI="
#define RING "k1 " KEY_1 "\nk2 " KEY_2 "\n"

static char dir[] = "/tmp/refreshd-crypto-XXXXXX";
static char path[sizeof(dir) + 64];

static void start(void)
{
	sys_set(NULL);
	memcpy(dir + sizeof(dir) - 7, "XXXXXX", 6);
	ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void finish(void)
{
	sys_set(NULL);
	unlink(path);
	ck_ok(rmdir(dir));
}

/* The one file of a test. */
static const char *file_path(void)
{
	snprintf(path, sizeof(path), "%s/file", dir);
	return path;
}

static void write_file(const char *text, size_t n)
{
	FILE *f = fopen(file_path(), "w");

	ck_assert_ptr_nonnull(f);
	ck_assert_uint_eq(fwrite(text, 1, n, f), n);
	ck_ok(fclose(f));
}

static struct keyring *ring_of(const char *text)
{
	struct keyring *k = NULL;
	struct fault f = { .code = 0 };

	ck_assert_msg(keyring_parse("ring", text, strlen(text), &k, &f) == 0, "%s", f.text);
	return k;
}

static void check_hex(const uint8_t *p, size_t n, const char *hex)
{
	struct buf b = BUF_INIT(10000);

	ck_ok(str_hex_append(&b, p, n));
	ck_assert_str_eq(buf_str(&b), hex);
	buf_fini(&b);
}

START_TEST(sha256_vectors)
{
	uint8_t out[32];

	/* FIPS 180-4 examples */
	crypto_sha256("abc", 3, out);
	check_hex(out, 32, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	crypto_sha256("", 0, out);
	check_hex(out, 32, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	crypto_sha256(NULL, 0, out);
	check_hex(out, 32, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}
END_TEST

START_TEST(hmac_vectors)
{
	uint8_t key[131], out[32];

	/* RFC 4231 4.2, 4.3, 4.7 */
	memset(key, 0x0b, 20);
	crypto_hmac_sha256(key, 20, "Hi There", 8, out);
	check_hex(out, 32, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
	crypto_hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, out);
	check_hex(out, 32, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
	memset(key, 0xaa, sizeof(key));
	crypto_hmac_sha256(
		key, sizeof(key), "Test Using Larger Than Block-Size Key - Hash Key First", 54, out);
	check_hex(out, 32, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
	crypto_hmac_sha256("", 0, "", 0, out);
	check_hex(out, 32, "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad");
}
END_TEST

START_TEST(equal_compares_all_bytes)
{
	ck_assert(crypto_equal("abc", "abc", 3));
	ck_assert(!crypto_equal("abc", "abd", 3));
	ck_assert(!crypto_equal("abc", "bbc", 3));
	ck_assert(crypto_equal("abc", "abd", 2));
	ck_assert(crypto_equal("", "x", 0));
}
END_TEST

/* Bit by bit, as RFC 3720 appendix B.4 defines it. */
static uint32_t slow_crc32c(const uint8_t *p, size_t n)
{
	uint32_t crc = UINT32_MAX;

	for (size_t i = 0; i < n; i++) {
		crc ^= p[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? (crc >> 1) ^ UINT32_C(0x82f63b78) : crc >> 1;
	}
	return ~crc;
}

START_TEST(crc32c_vectors)
{
	static const uint8_t read_command[48] = {0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14,
		0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0,
		0, 0, 0, 0, 0};
	uint8_t b[32];

	memset(b, 0, sizeof(b));
	ck_assert_uint_eq(crypto_crc32c(0, b, 32), 0x8a9136aa);
	memset(b, 0xff, sizeof(b));
	ck_assert_uint_eq(crypto_crc32c(0, b, 32), 0x62a8ab43);
	for (int i = 0; i < 32; i++)
		b[i] = (uint8_t)i;
	ck_assert_uint_eq(crypto_crc32c(0, b, 32), 0x46dd794e);
	for (int i = 0; i < 32; i++)
		b[i] = (uint8_t)(31 - i);
	ck_assert_uint_eq(crypto_crc32c(0, b, 32), 0x113fdb5c);
	ck_assert_uint_eq(crypto_crc32c(0, read_command, 48), 0xd9963a56);
	ck_assert_uint_eq(crypto_crc32c(0, "123456789", 9), 0xe3069283);
	ck_assert_uint_eq(crypto_crc32c(0, "", 0), 0);
	ck_assert_uint_eq(crypto_crc32c(0x1234, NULL, 0), 0x1234);
}
END_TEST

START_TEST(crc32c_goes_on_at_any_place)
{
	uint8_t b[200];

	sys_random(b, sizeof(b));
	for (size_t from = 0; from < 9; from++)
		for (size_t n = 0; n < 100; n++)
			ck_assert_uint_eq(crypto_crc32c(0, b + from, n), slow_crc32c(b + from, n));
	for (size_t cut = 0; cut <= sizeof(b); cut++)
		ck_assert_uint_eq(crypto_crc32c(crypto_crc32c(0, b, cut), b + cut, sizeof(b) - cut),
			slow_crc32c(b, sizeof(b)));
}
END_TEST

START_TEST(a_keyring_is_read_in_order)
{
	static const char text[] =
		"# first\n\n \t\r\nnew.key-1_A\t " KEY_0 " \t\r\n#old\nk1 " KEY_1 "\nk2   " KEY_2;
	struct keyring *k = ring_of(text);

	ck_assert_str_eq(keyring_first_id(k), "new.key-1_A");
	ck_assert(keyring_has(k, "new.key-1_A") && keyring_has(k, "k1") && keyring_has(k, "k2"));
	ck_assert(!keyring_has(k, "k") && !keyring_has(k, "k3") && !keyring_has(k, ""));
	ck_assert_ptr_eq(keyring_ref(k), k);
	keyring_unref(k);
	ck_assert(keyring_has(k, "k1"));
	keyring_unref(k);
	keyring_unref(NULL);
}
END_TEST

START_TEST(a_copy_of_a_keyring_stands_alone)
{
	struct keyring *k = ring_of("new " KEY_1 "\nold " KEY_0 "\n"), *copy = NULL;
	struct buf by_one = BUF_INIT(1000), by_other = BUF_INIT(1000), opened = BUF_INIT_SECRET(1000);

	ck_ok(keyring_copy(k, &copy));
	ck_assert_str_eq(keyring_first_id(copy), "new");
	ck_assert(keyring_has(copy, "old"));
	ck_ok(crypto_seal(k, "aad", 3, "text", 4, &by_one));
	ck_ok(crypto_seal(copy, "aad", 3, "text", 4, &by_other));
	ck_assert_mem_ne(by_one.data + 5, by_other.data + 5, 16); /* the salts, behind format, length and "new" */
	ck_ok(crypto_open(k, "aad", 3, by_other.data, by_other.len, &opened));
	keyring_unref(k);
	ck_ok(crypto_open(copy, "aad", 3, by_one.data, by_one.len, &opened));
	ck_assert_str_eq(buf_str(&opened), "texttext");
	keyring_unref(copy);
	buf_fini(&by_one);
	buf_fini(&by_other);
	buf_fini(&opened);
}
END_TEST

START_TEST(a_keyring_takes_many_keys)
{
	struct buf text = BUF_INIT(1 << 20);
	struct fault f = {.code = 0};

	for (int i = 0; i < 2048; i++)
		ck_ok(buf_printf(&text, "key%d " KEY_1 "\n", i));
	struct keyring *k = ring_of(buf_str(&text));
	ck_assert(keyring_has(k, "key0") && keyring_has(k, "key2047") && !keyring_has(k, "key2048"));
	keyring_unref(k);
	ck_ok(buf_puts(&text, "key2048 " KEY_1 "\n"));
	ck_assert_int_eq(keyring_parse("ring", buf_str(&text), text.len, &k, &f), ST_FULL);
	ck_assert_str_eq(f.text, "ring:2049: more than 2048 keys");
	buf_fini(&text);
}
END_TEST

#define ID_31 "abcdefghijklmnopqrstuvwxyz12345"
#define BAD_ID ": a line starts with a key id of 1 to 31 characters out of A-Z a-z 0-9 . _ -"

START_TEST(a_wrong_keyring_names_the_line)
{
	static const struct {
		const char *text;
		int code;
		const char *fault;
	} cases[] = {
		{"", ST_INVALID, "ring: no key"},
		{"# nothing\n\n", ST_INVALID, "ring: no key"},
		{"k1 " KEY_1 "\n\nk1 " KEY_2, ST_EXISTS, "ring:3: key id k1 is already on line 1"},
		{"k1\n", ST_SYNTAX, "ring:1: no key after the key id"},
		{"k1 \t\n", ST_SYNTAX, "ring:1: no key after the key id"},
		{"#\nk1 AAAA", ST_INVALID, "ring:2: the key has 3 bytes, it must have 32"},
		{"k1 " KEY_1 "AA==", ST_SYNTAX, "ring:1: the key is not valid base64"},
		{"k1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", ST_INVALID,
			"ring:1: the key has 33 bytes, it must have 32"},
		{"k1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", ST_SYNTAX,
			"ring:1: the key is not valid base64"},
		{"k1 " KEY_1 " trailing", ST_SYNTAX, "ring:1: the key is not valid base64"},
		{"k1 !!!!", ST_SYNTAX, "ring:1: the key is not valid base64"},
		{KEY_1 " k1", ST_SYNTAX, "ring:1" BAD_ID},
		{KEY_1, ST_SYNTAX, "ring:1" BAD_ID},
		{" k1 " KEY_1, ST_SYNTAX, "ring:1" BAD_ID},
		{"k/1 " KEY_1, ST_SYNTAX, "ring:1" BAD_ID},
		{"k\xc3\xbc " KEY_1, ST_SYNTAX, "ring:1" BAD_ID},
		{ID_31 "6 " KEY_1, ST_SYNTAX, "ring:1" BAD_ID},
	};
	struct keyring *untouched = (struct keyring *)&untouched, *k = untouched;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fault f = { .code = 0 };
		ck_assert_int_eq(
			keyring_parse("ring", cases[i].text, strlen(cases[i].text), &k, &f), cases[i].code);
		ck_assert_str_eq(f.text, cases[i].fault);
		ck_assert_int_eq(f.code, cases[i].code);
		ck_assert_ptr_eq(k, untouched);
	}
	/* NUL bytes are no white space. */
	ck_assert_int_eq(keyring_parse("ring", "k1\0 " KEY_1, 48, &k, NULL), ST_SYNTAX);
	k = ring_of(ID_31 " " KEY_1);
	ck_assert_str_eq(keyring_first_id(k), ID_31);
	keyring_unref(k);
}
END_TEST

START_TEST(a_keyring_file_is_loaded)
{
	struct keyring *k = NULL;
	struct fault f = { .code = 0 };
	char expected[200];

	ck_assert_int_eq(keyring_load(file_path(), &k, &f), ST_NOT_FOUND);
	ck_assert_ptr_nonnull(strstr(f.text, path));
	ck_assert_int_eq(keyring_load(dir, &k, &f), ST_INVALID);
	write_file("", 0);
	ck_assert_int_eq(keyring_load(path, &k, &f), ST_INVALID);
	snprintf(expected, sizeof(expected), "%s: no key", path);
	ck_assert_str_eq(f.text, expected);
	write_file("bad\n", 4);
	ck_assert_int_eq(keyring_load(path, &k, &f), ST_SYNTAX);
	snprintf(expected, sizeof(expected), "%s:1: no key after the key id", path);
	ck_assert_str_eq(f.text, expected);
	ck_assert_ptr_null(k);

	char *big = mem_calloc(65537, 1);
	memset(big, '#', 65537);
	write_file(big, 65537);
	ck_assert_int_eq(keyring_load(path, &k, &f), ST_FULL);
	mem_free(big);

	write_file(RING, strlen(RING));
	ck_ok(keyring_load(path, &k, &f));
	ck_assert_str_eq(keyring_first_id(k), "k1");
	keyring_unref(k);
}
END_TEST

START_TEST(what_was_sealed_opens)
{
	static const size_t sizes[] = { 0, 1, 15, 16, 17, 1000, 70000 };
	struct keyring *k = ring_of(RING);
	uint8_t *plain = mem_calloc(70000, 1);

	sys_random(plain, 70000);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct buf sealed = BUF_INIT(1 << 20), opened = BUF_INIT_SECRET(1 << 20);
		char id[KEYRING_ID_BYTES] = "";
		size_t n = sizes[i];

		/* Both append. */
		ck_ok(buf_puts(&sealed, "head"));
		ck_ok(buf_puts(&opened, "kept"));
		ck_ok(crypto_seal(k, "aad", 3, n > 0 ? plain : NULL, n, &sealed));
		ck_assert_uint_eq(sealed.len, 4 + 2 + 2 + 16 + 12 + n + 16);
		ck_assert_int_eq(memcmp(sealed.data, "head\x01\x02k1", 8), 0);
		ck_ok(crypto_sealed_key(sealed.data + 4, sealed.len - 4, id));
		ck_assert_str_eq(id, "k1");
		ck_ok(crypto_open(k, "aad", 3, sealed.data + 4, sealed.len - 4, &opened));
		ck_assert_uint_eq(opened.len, 4 + n);
		ck_assert_int_eq(memcmp(opened.data, "kept", 4), 0);
		ck_assert(n == 0 || memcmp(opened.data + 4, plain, n) == 0);
		buf_fini(&sealed);
		buf_fini(&opened);
	}
	mem_free(plain);
	keyring_unref(k);
}
END_TEST

START_TEST(the_aad_may_be_empty)
{
	struct keyring *k = ring_of(RING);
	struct buf sealed = BUF_INIT(1000), opened = BUF_INIT_SECRET(1000);

	ck_ok(crypto_seal(k, NULL, 0, "text", 4, &sealed));
	ck_ok(crypto_open(k, "", 0, sealed.data, sealed.len, &opened));
	ck_assert_str_eq(buf_str(&opened), "text");
	ck_assert_int_eq(crypto_open(k, "x", 1, sealed.data, sealed.len, &opened), ST_CRYPTO);
	buf_fini(&sealed);
	buf_fini(&opened);
	keyring_unref(k);
}
END_TEST

/* RFC 5869 with one block out, by the HMAC that has its own vectors. */
static void hkdf(const uint8_t key[32], const uint8_t salt[16], uint8_t out[32])
{
	uint8_t prk[32], one = 1;

	crypto_hmac_sha256(salt, 16, key, 32, prk);
	crypto_hmac_sha256(prk, 32, &one, 1, out);
}

START_TEST(the_sealed_form_is_as_documented)
{
	struct keyring *k = ring_of(RING);
	struct buf sealed = BUF_INIT(1000);
	uint8_t key[32], data_key[32], plain[5];
	int len;

	ck_ok(crypto_seal(k, "row 7", 5, "hello", 5, &sealed));
	const size_t header = 2 + 2 + 16 + 12;
	memset(key, 0x11, sizeof(key));
	hkdf(key, sealed.data + 4, data_key);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	ck_assert_int_eq(EVP_DecryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, data_key, sealed.data + 20), 1);
	ck_assert_int_eq(EVP_DecryptUpdate(ctx, NULL, &len, sealed.data, (int)header), 1);
	ck_assert_int_eq(EVP_DecryptUpdate(ctx, NULL, &len, (const uint8_t *)"row 7", 5), 1);
	ck_assert_int_eq(EVP_DecryptUpdate(ctx, plain, &len, sealed.data + header, 5), 1);
	ck_assert_int_eq(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_GCM_SET_TAG, 16, sealed.data + header + 5), 1);
	ck_assert_int_eq(EVP_DecryptFinal_ex(ctx, plain, &len), 1);
	ck_assert_int_eq(memcmp(plain, "hello", 5), 0);
	EVP_CIPHER_CTX_free(ctx);
	buf_fini(&sealed);
	keyring_unref(k);
}
END_TEST

START_TEST(a_sealed_text_of_the_first_version_still_opens)
{
	/* Never to be changed: it stands for what lies in databases. */
	static const char hex[] =
		"01026b312059640bc0f09f7dbf3d80557ec04be727f0d92d5e224d2607eb4fc8038b87e4"
		"4a8143fd13bf3741e41685b28602c951431b924bfdf7c344d7b178";
	struct keyring *k = ring_of("k0 " KEY_0 "\n" RING);
	struct buf opened = BUF_INIT_SECRET(1000);
	uint8_t sealed[sizeof(hex) / 2];

	ck_ok(str_hex_parse(hex, strlen(hex), sealed, sizeof(sealed)));
	ck_ok(crypto_open(k, "connection", 10, sealed, sizeof(sealed), &opened));
	ck_assert_str_eq(buf_str(&opened), "a refresh token");
	buf_fini(&opened);
	keyring_unref(k);
}
END_TEST

/* Opening must fail and leave nothing behind, not even after the end of the buffer. */
static void check_refused(struct keyring *k, const void *aad, size_t aad_len, const uint8_t *p, size_t n)
{
	struct buf out = BUF_INIT_SECRET(1000);

	ck_ok(buf_puts(&out, "kept"));
	ck_ok(buf_reserve(&out, 500));
	memset(out.data + out.len, 0, out.cap - out.len);
	int rc = crypto_open(k, aad, aad_len, p, n, &out);
	ck_assert(rc == ST_CRYPTO || rc == ST_NO_KEY);
	ck_assert_str_eq(buf_str(&out), "kept");
	for (size_t i = out.len; i < out.cap; i++)
		ck_assert_uint_eq(out.data[i], 0);
	buf_fini(&out);
}

START_TEST(no_bit_can_be_changed)
{
	struct keyring *k = ring_of(RING);
	struct buf sealed = BUF_INIT(1000), opened = BUF_INIT_SECRET(1000);
	uint8_t aad[] = "credential.access 7 3";

	ck_ok(crypto_seal(k, aad, sizeof(aad), "a token of thirty-two characters", 32, &sealed));
	for (size_t bit = 0; bit < sealed.len * 8; bit++) {
		sealed.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		check_refused(k, aad, sizeof(aad), sealed.data, sealed.len);
		sealed.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t bit = 0; bit < sizeof(aad) * 8; bit++) {
		aad[bit / 8] ^= (uint8_t)(1 << bit % 8);
		check_refused(k, aad, sizeof(aad), sealed.data, sealed.len);
		aad[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t n = 0; n < sealed.len; n++)
		check_refused(k, aad, sizeof(aad), sealed.data, n);
	for (size_t n = 0; n < sizeof(aad); n++)
		check_refused(k, aad, n, sealed.data, sealed.len);
	size_t len = sealed.len;
	ck_ok(buf_putc(&sealed, 0));
	check_refused(k, aad, sizeof(aad), sealed.data, sealed.len);
	ck_ok(crypto_open(k, aad, sizeof(aad), sealed.data, len, &opened));
	buf_fini(&sealed);
	buf_fini(&opened);
	keyring_unref(k);
}
END_TEST

START_TEST(no_byte_moves_between_header_and_aad)
{
	/* Two ids of which one is the start of the other, with the same key. */
	struct keyring *k = ring_of("k1 " KEY_1 "\nk " KEY_1 "\n");
	struct buf sealed = BUF_INIT(1000);

	ck_ok(crypto_seal(k, "aad", 3, "text", 4, &sealed));
	memmove(sealed.data + 3, sealed.data + 4, sealed.len - 4);
	sealed.data[1] = 1;
	check_refused(k, "aad", 3, sealed.data, sealed.len - 1);
	check_refused(k, "1aad", 4, sealed.data, sealed.len - 1);
	buf_fini(&sealed);
	keyring_unref(k);
}
END_TEST

START_TEST(keys_rotate)
{
	struct keyring *old = ring_of("k1 " KEY_1), *both = ring_of("k2 " KEY_2 "\nk1 " KEY_1);
	struct keyring *new = ring_of("k2 " KEY_2), *other = ring_of("k1 " KEY_2);
	struct buf a = BUF_INIT(1000), b = BUF_INIT(1000), out = BUF_INIT_SECRET(1000);

	ck_ok(crypto_seal(old, "x", 1, "first", 5, &a));
	ck_ok(crypto_seal(both, "x", 1, "second", 6, &b));
	ck_ok(crypto_open(both, "x", 1, a.data, a.len, &out));
	ck_ok(crypto_open(both, "x", 1, b.data, b.len, &out));
	ck_ok(crypto_open(new, "x", 1, b.data, b.len, &out));
	ck_assert_str_eq(buf_str(&out), "firstsecondsecond");
	ck_assert_int_eq(crypto_open(new, "x", 1, a.data, a.len, &out), ST_NO_KEY);
	ck_assert_int_eq(crypto_open(old, "x", 1, b.data, b.len, &out), ST_NO_KEY);
	ck_assert_int_eq(crypto_open(other, "x", 1, a.data, a.len, &out), ST_CRYPTO);
	ck_assert_str_eq(buf_str(&out), "firstsecondsecond");
	buf_fini(&a);
	buf_fini(&b);
	buf_fini(&out);
	keyring_unref(old);
	keyring_unref(both);
	keyring_unref(new);
	keyring_unref(other);
}
END_TEST

/* Salt and nonce of the sealed texts of RING. */
static const uint8_t *salt_of(const struct buf *sealed)
{
	return sealed->data + 4;
}

START_TEST(salts_last_and_nonces_do_not)
{
	struct keyring *k = ring_of(RING), *again = ring_of(RING);
	struct buf a = BUF_INIT(1000), b = BUF_INIT(1000), c = BUF_INIT(1000);

	ck_ok(crypto_seal(k, "", 0, "same", 4, &a));
	ck_ok(crypto_seal(k, "", 0, "same", 4, &b));
	ck_ok(crypto_seal(again, "", 0, "same", 4, &c));
	ck_assert_int_eq(memcmp(salt_of(&a), salt_of(&b), 16), 0);
	ck_assert_int_ne(memcmp(salt_of(&a) + 16, salt_of(&b) + 16, 12), 0);
	ck_assert_int_ne(memcmp(salt_of(&a), salt_of(&c), 16), 0);

	keyring_set_seals_per_salt(k, 3);
	for (int i = 0; i < 12; i++) {
		buf_reset(&b);
		ck_ok(crypto_seal(k, "", 0, "same", 4, &b));
		bool same = memcmp(salt_of(&a), salt_of(&b), 16) == 0;
		ck_assert_int_eq(same, i % 3 != 0);
		ck_ok(buf_set(&a, b.data, b.len));
	}
	buf_fini(&a);
	buf_fini(&b);
	buf_fini(&c);
	keyring_unref(k);
	keyring_unref(again);
}
END_TEST

START_TEST(more_salts_than_the_cache_holds_open)
{
	enum { COUNT = 150 };
	struct keyring *k = ring_of(RING), *other = ring_of("k2 " KEY_2 "\nk1 " KEY_1);
	struct buf sealed[COUNT], out = BUF_INIT_SECRET(1000);
	char text[32];

	keyring_set_seals_per_salt(k, 1);
	for (int i = 0; i < COUNT; i++) {
		buf_init(&sealed[i], 1000);
		snprintf(text, sizeof(text), "text %d", i);
		ck_ok(crypto_seal(i % 2 == 0 ? k : other, "x", 1, text, strlen(text), &sealed[i]));
	}
	for (int i = 0; i < 3 * COUNT; i++) {
		/* A stretch of few, then all of them around. */
		int pick = i < COUNT ? i % 10 : i % COUNT;
		snprintf(text, sizeof(text), "text %d", pick);
		buf_reset(&out);
		ck_ok(crypto_open(k, "x", 1, sealed[pick].data, sealed[pick].len, &out));
		ck_assert_str_eq(buf_str(&out), text);
	}
	for (int i = 0; i < COUNT; i++)
		buf_fini(&sealed[i]);
	buf_fini(&out);
	keyring_unref(k);
	keyring_unref(other);
}
END_TEST

START_TEST(two_keys_may_share_a_salt)
{
	struct keyring *k = ring_of(RING), *other = ring_of("k2 " KEY_2);
	struct buf a = BUF_INIT(1000), b = BUF_INIT(1000), out = BUF_INIT_SECRET(1000);

	sys_set(sys_virtual(7));
	ck_ok(crypto_seal(k, "x", 1, "one", 3, &a));
	sys_set(sys_virtual(7));
	ck_ok(crypto_seal(other, "x", 1, "two", 3, &b));
	ck_assert_int_eq(memcmp(salt_of(&a), salt_of(&b), 16), 0);
	ck_ok(crypto_open(k, "x", 1, a.data, a.len, &out));
	ck_ok(crypto_open(k, "x", 1, b.data, b.len, &out));
	ck_ok(crypto_open(k, "x", 1, a.data, a.len, &out));
	ck_assert_str_eq(buf_str(&out), "onetwoone");
	buf_fini(&a);
	buf_fini(&b);
	buf_fini(&out);
	keyring_unref(k);
	keyring_unref(other);
}
END_TEST

START_TEST(full_buffers_are_left_alone)
{
	struct keyring *k = ring_of(RING);
	struct buf small = BUF_INIT(51), right = BUF_INIT(52), out = BUF_INIT_SECRET(3),
		   fits = BUF_INIT_SECRET(4);

	ck_assert_int_eq(crypto_seal(k, "", 0, "text", 4, &small), ST_FULL);
	ck_assert_uint_eq(small.len, 0);
	ck_ok(crypto_seal(k, "", 0, "text", 4, &right));
	ck_assert_int_eq(crypto_open(k, "", 0, right.data, right.len, &out), ST_FULL);
	ck_assert_uint_eq(out.len, 0);
	ck_ok(crypto_open(k, "", 0, right.data, right.len, &fits));
	/* Sizes that libcrypto could not count. The bytes are never looked at. */
	ck_assert_int_eq(crypto_seal(k, "", 0, "text", (size_t)INT32_MAX, &small), ST_FULL);
	ck_assert_int_eq(crypto_seal(k, "", (size_t)INT32_MAX + 1, "text", 4, &small), ST_FULL);
	ck_assert_int_eq(crypto_seal(k, "", 0, "text", SIZE_MAX, &small), ST_FULL);
	ck_assert_int_eq(crypto_open(k, "", (size_t)INT32_MAX + 1, right.data, right.len, &fits), ST_CRYPTO);
	buf_fini(&small);
	buf_fini(&right);
	buf_fini(&out);
	buf_fini(&fits);
	keyring_unref(k);
}
END_TEST

START_TEST(only_sealed_texts_have_a_key_id)
{
	uint8_t text[2 + 31 + 16 + 12 + 16] = { 1, 31 };
	char id[KEYRING_ID_BYTES] = "before";

	memset(text + 2, 'a', 31);
	ck_assert_int_eq(crypto_sealed_key(text, 0, id), ST_SYNTAX);
	ck_assert_int_eq(crypto_sealed_key(text, 1, id), ST_SYNTAX);
	ck_assert_int_eq(crypto_sealed_key(text, sizeof(text) - 1, id), ST_SYNTAX);
	text[5] = ' ';
	ck_assert_int_eq(crypto_sealed_key(text, sizeof(text), id), ST_SYNTAX);
	text[5] = 'b';
	text[1] = 0;
	ck_assert_int_eq(crypto_sealed_key(text, sizeof(text), id), ST_SYNTAX);
	text[1] = 32;
	ck_assert_int_eq(crypto_sealed_key(text, sizeof(text), id), ST_SYNTAX);
	text[1] = 255;
	ck_assert_int_eq(crypto_sealed_key(text, sizeof(text), id), ST_SYNTAX);
	text[1] = 31;
	text[0] = 2;
	ck_assert_int_eq(crypto_sealed_key(text, sizeof(text), id), ST_SYNTAX);
	ck_assert_str_eq(id, "before");
	text[0] = 1;
	ck_ok(crypto_sealed_key(text, sizeof(text), id));
	ck_assert_str_eq(id, "aaabaaaaaaaaaaaaaaaaaaaaaaaaaaa");
}
END_TEST

/* Makes libcrypto find no algorithm, as a broken installation would. */
static void break_libcrypto(bool broken)
{
	ck_assert_int_eq(EVP_set_default_properties(NULL, broken ? "provider=none" : ""), 1);
}

START_TEST(a_failing_libcrypto_is_reported)
{
	struct keyring *k = ring_of(RING), *none = NULL;
	struct buf sealed = BUF_INIT(1000), other = BUF_INIT(1000), out = BUF_INIT_SECRET(1000);
	struct fault f = { .code = 0 };

	struct keyring *sealer = ring_of(RING);
	ck_ok(crypto_seal(sealer, "", 0, "text", 4, &sealed));
	break_libcrypto(true);
	ck_assert_int_eq(keyring_parse("ring", RING, strlen(RING), &none, &f), ST_CRYPTO);
	ck_assert_str_eq(f.text, "ring: libcrypto offers no AES-256-GCM or no HKDF");
	ck_assert_int_eq(crypto_seal(k, "", 0, "text", 4, &other), ST_CRYPTO);
	ck_assert_uint_eq(other.len, 0);
	ck_assert_int_eq(crypto_open(k, "", 0, sealed.data, sealed.len, &out), ST_CRYPTO);
	break_libcrypto(false);
	/* And it recovers. */
	ck_ok(crypto_seal(k, "", 0, "text", 4, &other));
	ck_ok(crypto_open(k, "", 0, sealed.data, sealed.len, &out));
	buf_fini(&sealed);
	buf_fini(&other);
	buf_fini(&out);
	keyring_unref(k);
	keyring_unref(sealer);
}
END_TEST

static EVP_PKEY *new_key(const char *type, const char *group, size_t bits)
{
	EVP_PKEY *key = group != NULL ? EVP_PKEY_Q_keygen(NULL, NULL, type, group) :
			bits > 0      ? EVP_PKEY_Q_keygen(NULL, NULL, type, bits) :
					EVP_PKEY_Q_keygen(NULL, NULL, type);

	ck_assert_ptr_nonnull(key);
	return key;
}

enum pem_form { PEM_PKCS8, PEM_TRADITIONAL, PEM_ENCRYPTED, PEM_PUBLIC };

static void write_key(const EVP_PKEY *key, enum pem_form form)
{
	static const unsigned char pass[] = "secret";
	FILE *f = fopen(file_path(), "w");
	int ok = 0;

	ck_assert_ptr_nonnull(f);
	switch (form) {
	case PEM_PKCS8:
		ok = PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
		break;
	case PEM_TRADITIONAL: {
		BIO *bio = BIO_new_fp(f, BIO_NOCLOSE);
		ok = PEM_write_bio_PrivateKey_traditional(bio, key, NULL, NULL, 0, NULL, NULL);
		BIO_free(bio);
		break;
	}
	case PEM_ENCRYPTED:
		ok = PEM_write_PrivateKey(f, key, EVP_aes_256_cbc(), pass, 6, NULL, NULL);
		break;
	case PEM_PUBLIC:
		ok = PEM_write_PUBKEY(f, key);
		break;
	}
	ck_assert_int_eq(ok, 1);
	ck_ok(fclose(f));
}

static struct signer *load(enum sign_alg alg)
{
	struct signer *s = NULL;
	struct fault f = { .code = 0 };

	ck_assert_msg(signer_load(path, alg, &s, &f) == 0, "%s", f.text);
	return s;
}

/* `what` follows the path in the fault. */
static void check_load_fails(enum sign_alg alg, int code, const char *what)
{
	struct signer *s = NULL;
	struct fault f = { .code = 0 };
	char expected[400];

	ck_assert_int_eq(signer_load(path, alg, &s, &f), code);
	snprintf(expected, sizeof(expected), "%s: %s", path, what);
	ck_assert_str_eq(f.text, expected);
	ck_assert_ptr_null(s);
	ck_assert_int_eq(signer_load(path, alg, &s, NULL), code);
}

static bool verify(EVP_PKEY *key, const char *digest, const void *p, size_t n, const uint8_t *sig, size_t len)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();

	ck_assert_int_eq(EVP_DigestVerifyInit_ex(ctx, NULL, digest, NULL, NULL, key, NULL), 1);
	bool ok = EVP_DigestVerify(ctx, sig, len, p, n) == 1;
	EVP_MD_CTX_free(ctx);
	return ok;
}

static bool verify_raw(EVP_PKEY *key, const void *p, size_t n, const uint8_t *raw)
{
	ECDSA_SIG *sig = ECDSA_SIG_new();
	unsigned char *der = NULL;

	ck_assert_int_eq(ECDSA_SIG_set0(sig, BN_bin2bn(raw, 32, NULL), BN_bin2bn(raw + 32, 32, NULL)), 1);
	int len = i2d_ECDSA_SIG(sig, &der);
	ck_assert_int_gt(len, 0);
	bool ok = verify(key, "SHA256", p, n, der, (size_t)len);
	OPENSSL_free(der);
	ECDSA_SIG_free(sig);
	return ok;
}

START_TEST(es256_signatures_are_raw)
{
	EVP_PKEY *key = new_key("EC", "P-256", 0);
	struct buf out = BUF_INIT(1000);
	int short_parts = 0;

	for (int form = PEM_PKCS8; form <= PEM_TRADITIONAL; form++) {
		write_key(key, (enum pem_form)form);
		struct signer *s = load(SIGN_ES256);
		/* Enough for parts that start with a zero byte, which DER leaves out. */
		for (int i = 0; i < 600; i++) {
			char text[32];
			snprintf(text, sizeof(text), "claims %d", i);
			ck_ok(buf_set(&out, "head", 4));
			ck_ok(signer_sign(s, text, strlen(text), &out));
			ck_assert_uint_eq(out.len, 4 + 64);
			ck_assert(verify_raw(key, text, strlen(text), out.data + 4));
			short_parts += out.data[4] == 0 || out.data[36] == 0;
		}
		ck_assert(!verify_raw(key, "other", 5, out.data + 4));
		signer_unref(s);
	}
	printf("# %d signatures with a short part\n", short_parts);
	buf_fini(&out);
	EVP_PKEY_free(key);
}
END_TEST

START_TEST(rs256_signs)
{
	EVP_PKEY *key = new_key("RSA", NULL, 2048);
	struct buf out = BUF_INIT(1000);

	for (int form = PEM_PKCS8; form <= PEM_TRADITIONAL; form++) {
		write_key(key, (enum pem_form)form);
		struct signer *s = load(SIGN_RS256);
		buf_reset(&out);
		ck_ok(signer_sign(s, "claims", 6, &out));
		ck_assert_uint_eq(out.len, 256);
		ck_assert(verify(key, "SHA256", "claims", 6, out.data, out.len));
		ck_assert(!verify(key, "SHA256", "claimz", 6, out.data, out.len));
		signer_unref(s);
	}
	check_load_fails(SIGN_ES256, ST_INVALID,
		"ES256 needs an EC key on P-256, this is a key of RSA with 2048 bits");
	check_load_fails(SIGN_ED25519, ST_INVALID, "Ed25519 needs an Ed25519 key, this is a key of RSA");
	buf_fini(&out);
	EVP_PKEY_free(key);
}
END_TEST

START_TEST(ed25519_signs)
{
	EVP_PKEY *key = new_key("ED25519", NULL, 0);
	struct buf out = BUF_INIT(127);

	write_key(key, PEM_PKCS8);
	struct signer *s = load(SIGN_ED25519);
	ck_assert_ptr_eq(signer_ref(s), s);
	signer_unref(s);
	ck_ok(signer_sign(s, "body", 4, &out));
	ck_assert_uint_eq(out.len, 64);
	ck_assert(verify(key, NULL, "body", 4, out.data, 64));
	ck_assert_int_eq(signer_sign(s, "body", 4, &out), ST_FULL);
	ck_assert_uint_eq(out.len, 64);
	signer_unref(s);
	signer_unref(NULL);
	check_load_fails(SIGN_ES256, ST_INVALID,
		"ES256 needs an EC key on P-256, this is a key of ED25519 with 256 bits");
	check_load_fails(SIGN_RS256, ST_INVALID, "RS256 needs an RSA key, this is a key of ED25519");
	buf_fini(&out);
	EVP_PKEY_free(key);
}
END_TEST

/* RFC 8032 7.1, test 1 */
START_TEST(ed25519_from_a_seed_signs_as_the_rfc_says)
{
	uint8_t seed[32], want_public[32], want[64], public[32];
	struct signer *s = NULL;
	struct buf out = BUF_INIT(64);

	ck_ok(str_hex_parse("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", 64, seed, 32));
	ck_ok(str_hex_parse("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", 64,
		want_public, 32));
	ck_ok(str_hex_parse("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bac"
			    "c61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
		128, want, 64));
	ck_ok(signer_from_seed(seed, &s));
	ck_ok(signer_public(s, public));
	ck_assert_mem_eq(public, want_public, 32);
	ck_ok(signer_sign(s, "", 0, &out));
	ck_assert_uint_eq(out.len, 64);
	ck_assert_mem_eq(out.data, want, 64);
	signer_unref(s);
	buf_fini(&out);
	EVP_PKEY *key = new_key("EC", "P-256", 0);
	write_key(key, PEM_PKCS8);
	s = load(SIGN_ES256);
	ck_assert_int_eq(signer_public(s, public), ST_INVALID);
	signer_unref(s);
	EVP_PKEY_free(key);
}
END_TEST

START_TEST(keys_that_do_not_fit_are_refused)
{
	EVP_PKEY *key = new_key("EC", "P-384", 0);
	write_key(key, PEM_PKCS8);
	EVP_PKEY_free(key);
	check_load_fails(
		SIGN_ES256, ST_INVALID, "ES256 needs an EC key on P-256, this is a key of EC with 384 bits");

	key = new_key("EC", "secp256k1", 0);
	write_key(key, PEM_PKCS8);
	EVP_PKEY_free(key);
	check_load_fails(
		SIGN_ES256, ST_INVALID, "ES256 needs an EC key on P-256, this is a key of EC with 256 bits");

	key = new_key("RSA", NULL, 1024);
	write_key(key, PEM_PKCS8);
	EVP_PKEY_free(key);
	check_load_fails(SIGN_RS256, ST_INVALID, "the RSA key has 1024 bits, RS256 needs at least 2048");

	key = new_key("X25519", NULL, 0);
	write_key(key, PEM_PKCS8);
	EVP_PKEY_free(key);
	check_load_fails(SIGN_ED25519, ST_INVALID, "Ed25519 needs an Ed25519 key, this is a key of X25519");
	check_load_fails((enum sign_alg)77, ST_INVALID, "unknown signature algorithm 77");
}
END_TEST

START_TEST(files_without_a_usable_private_key_are_refused)
{
	static const char garbage[] = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
	EVP_PKEY *key = new_key("EC", "P-256", 0);

	write_key(key, PEM_ENCRYPTED);
	check_load_fails(
		SIGN_ES256, ST_INVALID, "the private key is encrypted; store it without a passphrase");
	write_key(key, PEM_PUBLIC);
	check_load_fails(SIGN_ES256, ST_SYNTAX, "not a private key in PEM form");
	write_file(garbage, strlen(garbage));
	check_load_fails(SIGN_ES256, ST_SYNTAX, "not a private key in PEM form");
	write_file("", 0);
	check_load_fails(SIGN_ES256, ST_SYNTAX, "not a private key in PEM form");
	unlink(path);
	check_load_fails(SIGN_ES256, ST_NOT_FOUND, "cannot open: No such file or directory");
	EVP_PKEY_free(key);
}
END_TEST

START_TEST(a_signature_that_fails_leaves_the_buffer)
{
	EVP_PKEY *key = new_key("EC", "P-256", 0);
	struct buf out = BUF_INIT(1000);

	write_key(key, PEM_PKCS8);
	struct signer *s = load(SIGN_ES256);
	ck_ok(buf_puts(&out, "kept"));
	break_libcrypto(true);
	ck_assert_int_eq(signer_sign(s, "claims", 6, &out), ST_CRYPTO);
	break_libcrypto(false);
	ck_assert_str_eq(buf_str(&out), "kept");
	ck_ok(signer_sign(s, "claims", 6, &out));
	signer_unref(s);
	buf_fini(&out);
	EVP_PKEY_free(key);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("crypto");
	TCase *tc = tcase_create("crypto");

	tcase_add_checked_fixture(tc, start, finish);
	tcase_set_timeout(tc, 60);
	unit_add(tc, sha256_vectors);
	unit_add(tc, hmac_vectors);
	unit_add(tc, equal_compares_all_bytes);
	unit_add(tc, crc32c_vectors);
	unit_add(tc, crc32c_goes_on_at_any_place);
	unit_add(tc, a_keyring_is_read_in_order);
	unit_add(tc, a_copy_of_a_keyring_stands_alone);
	unit_add(tc, a_keyring_takes_many_keys);
	unit_add(tc, a_wrong_keyring_names_the_line);
	unit_add(tc, a_keyring_file_is_loaded);
	unit_add(tc, what_was_sealed_opens);
	unit_add(tc, the_aad_may_be_empty);
	unit_add(tc, the_sealed_form_is_as_documented);
	unit_add(tc, a_sealed_text_of_the_first_version_still_opens);
	unit_add(tc, no_bit_can_be_changed);
	unit_add(tc, no_byte_moves_between_header_and_aad);
	unit_add(tc, keys_rotate);
	unit_add(tc, salts_last_and_nonces_do_not);
	unit_add(tc, more_salts_than_the_cache_holds_open);
	unit_add(tc, two_keys_may_share_a_salt);
	unit_add(tc, full_buffers_are_left_alone);
	unit_add(tc, only_sealed_texts_have_a_key_id);
	unit_add(tc, a_failing_libcrypto_is_reported);
	unit_add(tc, es256_signatures_are_raw);
	unit_add(tc, rs256_signs);
	unit_add(tc, ed25519_signs);
	unit_add(tc, ed25519_from_a_seed_signs_as_the_rfc_says);
	unit_add(tc, keys_that_do_not_fit_are_refused);
	unit_add(tc, files_without_a_usable_private_key_are_refused);
	unit_add(tc, a_signature_that_fails_leaves_the_buffer);
	suite_add_tcase(s, tc);
	return s;
}
