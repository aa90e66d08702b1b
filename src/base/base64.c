/*
 * base64 - the two RFC 4648 alphabets.
 *
 * The decoder is strict (RFC 4648 3.3, 3.5): two texts that mean the same bytes would let a
 * signature or a key id be written in two ways. Input is checked in full before the first byte is
 * written, so a failure leaves the output alone; nothing is kept in local memory but one group.
 */
#include "base/base64.h"

#include <stdint.h>
#include <string.h>

struct alphabet {
	const char *chars;
	bool pad;        /* written when encoding */
	bool pad_needed; /* required when decoding */
};

static const struct alphabet standard = {
	.chars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
	.pad = true,
	.pad_needed = true,
};

static const struct alphabet url_safe = {
	.chars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
	.pad = false,
	.pad_needed = false,
};

static int encode(struct buf *out, const uint8_t *p, size_t n, const struct alphabet *a)
{
	if (n / 3 >= (SIZE_MAX - 4) / 4)
		return ST_FULL;
	size_t rest = n % 3;
	size_t tail = rest == 0 ? 0 : a->pad ? 4 : rest + 1;
	size_t len = n / 3 * 4 + tail;
	int rc = buf_reserve(out, len);
	if (rc < 0)
		return rc;

	char *o = (char *)out->data + out->len;
	for (size_t i = 0; i + 2 < n; i += 3) {
		uint32_t v = (uint32_t)p[i] << 16 | (uint32_t)p[i + 1] << 8 | p[i + 2];
		*o++ = a->chars[v >> 18];
		*o++ = a->chars[v >> 12 & 63];
		*o++ = a->chars[v >> 6 & 63];
		*o++ = a->chars[v & 63];
	}
	if (rest > 0) {
		uint32_t v = (uint32_t)p[n - rest] << 16 | (rest == 2 ? (uint32_t)p[n - 1] << 8 : 0);
		const char group[4] = {
			a->chars[v >> 18],
			a->chars[v >> 12 & 63],
			rest == 2 ? a->chars[v >> 6 & 63] : '=',
			'=',
		};
		memcpy(o, group, tail);
	}
	buf_added(out, len);
	return 0;
}

/* The six bits of a character, or -1. */
static int value_of(char c, const struct alphabet *a)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	if (c == a->chars[62])
		return 62;
	return c == a->chars[63] ? 63 : -1;
}

/* Check the whole text; *chars becomes the number of characters without the padding. */
static int check(const char *s, size_t n, const struct alphabet *a, size_t *chars)
{
	size_t data = n;

	while (data > 0 && n - data < 2 && s[data - 1] == '=')
		data--;
	if ((a->pad_needed || data < n) && n % 4 != 0)
		return ST_SYNTAX;
	if (data % 4 == 1)
		return ST_SYNTAX;
	for (size_t i = 0; i < data; i++) {
		if (value_of(s[i], a) < 0)
			return ST_SYNTAX;
	}
	/* Bits that belong to no byte must be zero. */
	int spare = data % 4 == 2 ? 15 : data % 4 == 3 ? 3 : 0;
	if (spare != 0 && (value_of(s[data - 1], a) & spare) != 0)
		return ST_SYNTAX;
	*chars = data;
	return 0;
}

static int decode(struct buf *out, const char *s, size_t n, const struct alphabet *a)
{
	size_t chars;
	int rc = check(s, n, a, &chars);

	if (rc < 0)
		return rc;
	size_t len = chars / 4 * 3 + chars % 4 * 3 / 4;
	rc = buf_reserve(out, len);
	if (rc < 0)
		return rc;

	uint8_t *o = out->data + out->len;
	uint32_t acc = 0;
	unsigned bits = 0;
	for (size_t i = 0; i < chars; i++) {
		acc = (acc << 6 | (uint32_t)value_of(s[i], a)) & 0xffff;
		bits += 6;
		if (bits >= 8) {
			bits -= 8;
			*o++ = (uint8_t)(acc >> bits);
		}
	}
	buf_added(out, len);
	return 0;
}

int base64_encode(struct buf *out, const void *p, size_t n)
{
	return encode(out, p, n, &standard);
}

int base64url_encode(struct buf *out, const void *p, size_t n)
{
	return encode(out, p, n, &url_safe);
}

int base64_decode(struct buf *out, const char *s, size_t n)
{
	return decode(out, s, n, &standard);
}

int base64url_decode(struct buf *out, const char *s, size_t n)
{
	return decode(out, s, n, &url_safe);
}
