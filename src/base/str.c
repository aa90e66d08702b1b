/*
 * str - numbers, sizes, rates, UUIDs, hex, percent-encoding and character classes.
 *
 * Hand-written instead of strtol and friends: those skip white space, take signs and prefixes and
 * stop at the first odd byte without a word. Nothing here looks at the locale. Encoders check all
 * of their input before they write, so a failure leaves the output as it was.
 */
#include "base/str.h"

#include <inttypes.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static char lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static size_t count_digits(const char *s, size_t n)
{
	size_t i = 0;

	while (i < n && is_digit(s[i]))
		i++;
	return i;
}

int str_parse_u64(const char *s, size_t n, uint64_t *out)
{
	uint64_t v = 0;

	if (n == 0 || count_digits(s, n) != n)
		return ST_SYNTAX;
	for (size_t i = 0; i < n; i++) {
		if (__builtin_mul_overflow(v, UINT64_C(10), &v) ||
			__builtin_add_overflow(v, (uint64_t)(s[i] - '0'), &v))
			return ST_RANGE;
	}
	*out = v;
	return 0;
}

int str_parse_i64(const char *s, size_t n, int64_t *out)
{
	bool negative = n > 0 && s[0] == '-';
	uint64_t v;

	int rc = negative ? str_parse_u64(s + 1, n - 1, &v) : str_parse_u64(s, n, &v);
	if (rc < 0)
		return rc;
	if (v > (uint64_t)INT64_MAX + (negative ? 1 : 0))
		return ST_RANGE;
	/* The detour over v - 1 keeps INT64_MIN within the type. */
	*out = negative && v > 0 ? -(int64_t)(v - 1) - 1 : (int64_t)v;
	return 0;
}

static bool equals(const char *s, size_t n, const char *word)
{
	return strlen(word) == n && memcmp(s, word, n) == 0;
}

int str_parse_bool(const char *s, size_t n, bool *out)
{
	static const struct {
		const char *word;
		bool value;
	} words[] = {
		{"yes", true},
		{"no", false},
		{"true", true},
		{"false", false},
		{"on", true},
		{"off", false},
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (!equals(s, n, words[i].word))
			continue;
		*out = words[i].value;
		return 0;
	}
	return ST_SYNTAX;
}

int str_parse_size(const char *s, size_t n, uint64_t *out)
{
	uint64_t v;
	unsigned shift = 0;

	if (n > 0 && !is_digit(s[n - 1])) {
		n--;
		switch (s[n]) {
		case 'k':
			shift = 10;
			break;
		case 'M':
			shift = 20;
			break;
		case 'G':
			shift = 30;
			break;
		default:
			return ST_SYNTAX;
		}
	}
	int rc = str_parse_u64(s, n, &v);
	if (rc < 0)
		return rc;
	if (v > UINT64_MAX >> shift)
		return ST_RANGE;
	*out = v << shift;
	return 0;
}

int str_parse_decimal(const char *s, size_t n, double *out)
{
	char text[64];
	size_t whole = count_digits(s, n);

	if (whole == 0)
		return ST_SYNTAX;
	if (whole < n) {
		size_t fraction = n - whole - 1;
		if (s[whole] != '.' || fraction == 0 || count_digits(s + whole + 1, fraction) != fraction)
			return ST_SYNTAX;
	}
	if (n >= sizeof(text))
		return ST_RANGE;
	memcpy(text, s, n);
	text[n] = '\0';

	locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
	ALWAYS(c_locale != (locale_t)0);
	*out = strtod_l(text, NULL, c_locale);
	freelocale(c_locale);
	return 0;
}

int str_parse_rate(const char *s, size_t n, double *per_s)
{
	double per_unit, seconds;

	if (n < 3 || s[n - 2] != '/')
		return ST_SYNTAX;
	switch (s[n - 1]) {
	case 's':
		seconds = 1;
		break;
	case 'm':
		seconds = 60;
		break;
	case 'h':
		seconds = 3600;
		break;
	default:
		return ST_SYNTAX;
	}
	int rc = str_parse_decimal(s, n - 2, &per_unit);
	if (rc < 0)
		return rc;
	*per_s = per_unit / seconds;
	return 0;
}

void str_format_size(uint64_t bytes, char out[32])
{
	const char *unit = "";

	if (bytes != 0 && bytes % (UINT64_C(1) << 30) == 0) {
		bytes >>= 30;
		unit = "G";
	} else if (bytes != 0 && bytes % (UINT64_C(1) << 20) == 0) {
		bytes >>= 20;
		unit = "M";
	} else if (bytes != 0 && bytes % (UINT64_C(1) << 10) == 0) {
		bytes >>= 10;
		unit = "k";
	}
	snprintf(out, 32, "%" PRIu64 "%s", bytes, unit);
}

static int hex_value(char c)
{
	if (is_digit(c))
		return c - '0';
	c = lower(c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool is_hex(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (hex_value(s[i]) < 0)
			return false;
	}
	return true;
}

static void hex_read(const char *s, uint8_t *out, size_t out_len)
{
	for (size_t i = 0; i < out_len; i++)
		out[i] = (uint8_t)(hex_value(s[2 * i]) << 4 | hex_value(s[2 * i + 1]));
}

static char *hex_write(char *o, const uint8_t *p, size_t n)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < n; i++) {
		*o++ = digits[p[i] >> 4];
		*o++ = digits[p[i] & 15];
	}
	return o;
}

/* Bytes of each group between the hyphens. */
static const uint8_t uuid_groups[] = {4, 2, 2, 2, 6};

int str_parse_uuid(const char *s, size_t n, uint8_t out[16])
{
	uint8_t id[16];
	size_t at = 0, done = 0;

	if (n != STR_UUID_BYTES - 1)
		return ST_SYNTAX;
	for (size_t g = 0; g < sizeof(uuid_groups); g++) {
		size_t bytes = uuid_groups[g];
		if (g > 0 && s[at++] != '-')
			return ST_SYNTAX;
		if (!is_hex(s + at, 2 * bytes))
			return ST_SYNTAX;
		hex_read(s + at, id + done, bytes);
		at += 2 * bytes;
		done += bytes;
	}
	memcpy(out, id, sizeof(id));
	return 0;
}

void str_format_uuid(const uint8_t id[16], char out[STR_UUID_BYTES])
{
	for (size_t g = 0; g < sizeof(uuid_groups); g++) {
		if (g > 0)
			*out++ = '-';
		out = hex_write(out, id, uuid_groups[g]);
		id += uuid_groups[g];
	}
	*out = '\0';
}

int str_hex_append(struct buf *out, const void *p, size_t n)
{
	if (n > SIZE_MAX / 2)
		return ST_FULL;
	int rc = buf_reserve(out, 2 * n);
	if (rc < 0)
		return rc;
	hex_write((char *)out->data + out->len, p, n);
	buf_added(out, 2 * n);
	return 0;
}

int str_hex_parse(const char *s, size_t n, uint8_t *out, size_t out_len)
{
	if (n % 2 != 0 || n / 2 != out_len || !is_hex(s, n))
		return ST_SYNTAX;
	hex_read(s, out, out_len);
	return 0;
}

/* What stays as it is. A URI: RFC 3986 2.3. A form: HTML 4.01 17.13.4.1 with the set that browsers leave alone; the space is handled
 * apart. */
enum plain_set { IN_URI = 1, IN_FORM = 2 };

static bool is_plain(enum plain_set set, char c)
{
	static const uint8_t sets[256] = {
		['0' ... '9'] = IN_URI | IN_FORM,
		['A' ... 'Z'] = IN_URI | IN_FORM,
		['a' ... 'z'] = IN_URI | IN_FORM,
		['-'] = IN_URI | IN_FORM,
		['.'] = IN_URI | IN_FORM,
		['_'] = IN_URI | IN_FORM,
		['~'] = IN_URI,
		['*'] = IN_FORM,
	};

	return (sets[(uint8_t)c] & set) != 0;
}

static size_t plain_run(enum plain_set set, const char *p, size_t n)
{
	size_t i = 0;

	while (i < n && is_plain(set, p[i]))
		i++;
	return i;
}

static int escape(struct buf *out, const char *p, size_t n, enum plain_set plain, bool plus)
{
	static const char digits[] = "0123456789ABCDEF";
	size_t len = plain_run(plain, p, n);

	if (len == n) /* as most are */
		return buf_append(out, p, n);
	if (n > SIZE_MAX / 3)
		return ST_FULL;
	for (size_t i = len; i < n; i++)
		len += is_plain(plain, p[i]) || (plus && p[i] == ' ') ? 1 : 3;
	int rc = buf_reserve(out, len);
	if (rc < 0)
		return rc;

	char *o = (char *)out->data + out->len;
	for (size_t i = 0; i < n; i++) {
		uint8_t c = (uint8_t)p[i];
		if (is_plain(plain, p[i])) {
			*o++ = p[i];
		} else if (plus && p[i] == ' ') {
			*o++ = '+';
		} else {
			*o++ = '%';
			*o++ = digits[c >> 4];
			*o++ = digits[c & 15];
		}
	}
	buf_added(out, len);
	return 0;
}

int str_form_encode(struct buf *out, const char *p, size_t n)
{
	return escape(out, p, n, IN_FORM, true);
}

int str_percent_encode(struct buf *out, const char *p, size_t n)
{
	return escape(out, p, n, IN_URI, false);
}

/* The decoded length, or ST_SYNTAX. */
static int check_escapes(const char *p, size_t n, size_t *len)
{
	size_t count = 0;

	for (size_t i = 0; i < n; i++, count++) {
		if (p[i] == '\0')
			return ST_SYNTAX;
		if (p[i] != '%')
			continue;
		if (n - i < 3 || !is_hex(p + i + 1, 2) || memcmp(p + i, "%00", 3) == 0)
			return ST_SYNTAX;
		i += 2;
	}
	*len = count;
	return 0;
}

int str_percent_decode(struct buf *out, const char *p, size_t n, bool plus)
{
	size_t len;

	int rc = check_escapes(p, n, &len);
	if (rc == 0)
		rc = buf_reserve(out, len);
	if (rc < 0)
		return rc;

	uint8_t *o = out->data + out->len;
	for (size_t i = 0; i < n; i++) {
		if (p[i] == '%') {
			hex_read(p + i + 1, o++, 1);
			i += 2;
		} else {
			*o++ = plus && p[i] == '+' ? ' ' : (uint8_t)p[i];
		}
	}
	buf_added(out, len);
	return 0;
}

/* RFC 3629 4: the second byte's range is what rules out overlong forms, surrogates and > U+10FFFF. */
size_t str_utf8_char(const void *p, size_t n)
{
	const uint8_t *b = p;
	uint8_t low = 0x80, high = 0xbf;
	size_t len;

	if (n == 0)
		return 0;
	if (b[0] < 0x80)
		return 1;
	if (b[0] < 0xc2 || b[0] > 0xf4)
		return 0;
	len = b[0] < 0xe0 ? 2 : b[0] < 0xf0 ? 3 : 4;
	if (b[0] == 0xe0)
		low = 0xa0;
	else if (b[0] == 0xed)
		high = 0x9f;
	else if (b[0] == 0xf0)
		low = 0x90;
	else if (b[0] == 0xf4)
		high = 0x8f;
	if (n < len || b[1] < low || b[1] > high)
		return 0;
	for (size_t i = 2; i < len; i++) {
		if ((b[i] & 0xc0) != 0x80)
			return 0;
	}
	return len;
}

/* ---- sixteen bytes at a time: a comparison fills the lanes where it holds with ones */

typedef uint8_t lanes __attribute__((vector_size(16)));

static lanes lanes_at(const uint8_t *b)
{
	lanes x;

	memcpy(&x, b, sizeof(x));
	return x;
}

static bool any(lanes found)
{
	uint64_t halves[2];

	memcpy(halves, &found, sizeof(halves));
	return (halves[0] | halves[1]) != 0;
}

size_t str_json_run(const void *p, size_t n)
{
	const uint8_t *b = p;
	size_t i = 0;

	for (; n - i >= sizeof(lanes); i += sizeof(lanes)) {
		lanes x = lanes_at(b + i);
		if (any((lanes)((x < 0x20) | (x == '"') | (x == '\\'))))
			break;
	}
	while (i < n && b[i] >= 0x20 && b[i] != '"' && b[i] != '\\')
		i++;
	return i;
}

bool str_is_utf8(const void *p, size_t n)
{
	const uint8_t *b = p;

	for (size_t i = 0, len; i < n; i += len) {
		len = sizeof(lanes);
		if (n - i >= len && !any(lanes_at(b + i) & 0x80))
			continue;
		len = str_utf8_char(b + i, n - i);
		if (len == 0)
			return false;
	}
	return true;
}

bool str_is_vschar(const void *p, size_t n)
{
	const uint8_t *b = p;
	size_t i = 0;

	for (; n - i >= sizeof(lanes); i += sizeof(lanes)) {
		lanes x = lanes_at(b + i);
		if (any((lanes)((x < 0x20) | (x > 0x7e))))
			return false;
	}
	for (; i < n; i++) {
		if (b[i] < 0x20 || b[i] > 0x7e)
			return false;
	}
	return n > 0;
}

bool str_has_ctl(const void *p, size_t n)
{
	const uint8_t *b = p;
	size_t i = 0;

	for (; n - i >= sizeof(lanes); i += sizeof(lanes)) {
		lanes x = lanes_at(b + i);
		if (any((lanes)((x < 0x20) | (x == 0x7f))))
			return true;
	}
	for (; i < n; i++) {
		if (b[i] < 0x20 || b[i] == 0x7f)
			return true;
	}
	return false;
}

uint32_t str_hash(uint32_t h, const char *s)
{
	for (; *s != '\0'; s++)
		h = (h ^ (uint8_t)*s) * UINT32_C(16777619);
	return h;
}

bool str_eq_nocase(const char *a, size_t an, const char *b)
{
	for (size_t i = 0; i < an; i++) {
		if (b[i] == '\0' || lower(a[i]) != lower(b[i]))
			return false;
	}
	return b[an] == '\0';
}
