/*
 * jsonw - writes JSON as JSON.stringify would.
 *
 * A webhook signature covers these bytes, so the form never varies: no spaces, short escapes where
 * there are any, lower-case \u00xx for the other control bytes, everything else as it is. Writing
 * goes straight into the caller's buffer, so that what a secret buffer holds stays in it.
 */
#include "base/jsonw.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

/* The largest double below which every integer is exact. */
#define EXACT_INT 9007199254740992.0

static void fail(struct jsonw *w, int rc)
{
	/* A cut document outweighs a replaced byte. */
	if (rc < 0 && w->error != ST_FULL)
		w->error = rc;
}

static void put(struct jsonw *w, const void *p, size_t n)
{
	if (w->error != ST_FULL)
		fail(w, buf_append(w->out, p, n));
}

static void put_text(struct jsonw *w, const char *s)
{
	put(w, s, strlen(s));
}

void jsonw_init(struct jsonw *w, struct buf *out)
{
	*w = (struct jsonw){.out = out, .start = out->len};
}

int jsonw_end(struct jsonw *w)
{
	ALWAYS(w->depth == 0);
	if (w->error == ST_FULL)
		buf_truncate(w->out, w->start);
	return w->error;
}

static void put_escape(struct jsonw *w, uint8_t c)
{
	static const char digits[] = "0123456789abcdef";
	static const char letters[] = "btn?fr"; /* 0x08..0x0d; 0x0b has none */
	char text[6] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15]};

	if (c == '"' || c == '\\')
		text[1] = (char)c;
	else if (c >= 0x08 && c <= 0x0d && c != 0x0b)
		text[1] = letters[c - 0x08];
	put(w, text, text[1] == 'u' ? 6 : 2);
}

/* How many bytes from p on can be written as they are. */
static size_t plain_run(const uint8_t *p, size_t n)
{
	size_t i = 0;

	while (i < n) {
		while (i < n && p[i] >= 0x20 && p[i] < 0x80 && p[i] != '"' && p[i] != '\\')
			i++;
		if (i == n || p[i] < 0x80)
			break;
		size_t len = str_utf8_char(p + i, n - i);
		if (len == 0)
			break;
		i += len;
	}
	return i;
}

static void put_string(struct jsonw *w, const char *s, size_t n)
{
	const uint8_t *p = (const uint8_t *)s;

	if (w->error != ST_FULL && plain_run(p, n) == n && buf_reserve(w->out, n + 2) == 0) {
		uint8_t *at = w->out->data + w->out->len;
		at[0] = '"';
		if (n > 0)
			memcpy(at + 1, p, n);
		at[n + 1] = '"';
		buf_added(w->out, n + 2);
		return;
	}
	put(w, "\"", 1);
	for (size_t i = 0; i < n;) {
		size_t run = plain_run(p + i, n - i);
		if (run > 0) {
			put(w, p + i, run);
			i += run;
		} else if (p[i] < 0x80) {
			put_escape(w, p[i++]);
		} else {
			put(w, "\xef\xbf\xbd", 3);
			fail(w, ST_INVALID);
			i++;
		}
	}
	put(w, "\"", 1);
}

/* The comma and a key that is as plain as nearly all are, in one go. False: not done. */
static bool begin_plain(struct jsonw *w, const char *key)
{
	size_t n = strlen(key);

	if (w->error == ST_FULL || plain_run((const uint8_t *)key, n) < n || buf_reserve(w->out, n + 4) != 0)
		return false;
	uint8_t *at = w->out->data + w->out->len;
	if (w->comma)
		*at++ = ',';
	*at++ = '"';
	memcpy(at, key, n);
	at[n] = '"';
	at[n + 1] = ':';
	buf_added(w->out, n + (w->comma ? 4 : 3));
	w->comma = true;
	return true;
}

/* What stands before every value: the comma and the key. */
static void begin(struct jsonw *w, const char *key)
{
	if (key != NULL && begin_plain(w, key))
		return;
	if (w->comma)
		put(w, ",", 1);
	w->comma = true;
	if (key == NULL)
		return;
	put_string(w, key, strlen(key));
	put(w, ":", 1);
}

static void open_level(struct jsonw *w, const char *key, const char *bracket)
{
	begin(w, key);
	put_text(w, bracket);
	w->depth++;
	w->comma = false;
}

static void close_level(struct jsonw *w, const char *bracket)
{
	ALWAYS(w->depth > 0);
	w->depth--;
	put_text(w, bracket);
	w->comma = true;
}

void jsonw_object(struct jsonw *w, const char *key)
{
	open_level(w, key, "{");
}

void jsonw_object_end(struct jsonw *w)
{
	close_level(w, "}");
}

void jsonw_array(struct jsonw *w, const char *key)
{
	open_level(w, key, "[");
}

void jsonw_array_end(struct jsonw *w)
{
	close_level(w, "]");
}

void jsonw_str(struct jsonw *w, const char *key, const char *s)
{
	if (s == NULL)
		jsonw_null(w, key);
	else
		jsonw_strn(w, key, s, strlen(s));
}

void jsonw_strn(struct jsonw *w, const char *key, const char *s, size_t n)
{
	begin(w, key);
	put_string(w, s, n);
}

void jsonw_int(struct jsonw *w, const char *key, int64_t v)
{
	char text[24];
	int n = snprintf(text, sizeof(text), "%lld", (long long)v);

	begin(w, key);
	put(w, text, (size_t)n);
}

/* A positive finite number as 0.DIGITS * 10^point. */
struct decimal {
	char digits[20];
	int count;
	int point;
};

static bool reads_back(const struct decimal *d, double v)
{
	char text[40];

	snprintf(text, sizeof(text), "0.%se%d", d->digits, d->point);
	return strtod(text, NULL) == v;
}

/* The next decimal of the same length. */
static void count_up(struct decimal *d)
{
	int i = d->count - 1;

	while (i >= 0 && d->digits[i] == '9')
		d->digits[i--] = '0';
	if (i >= 0) {
		d->digits[i]++;
		return;
	}
	d->digits[0] = '1';
	d->point++;
}

/* v correctly rounded to `count` digits. */
static void round_to(struct decimal *d, double v, int count)
{
	char text[40];

	snprintf(text, sizeof(text), "%.*e", count - 1, v);
	d->count = 0;
	const char *s = text;
	for (; *s != 'e'; s++) {
		if (*s != '.')
			d->digits[d->count++] = *s;
	}
	d->digits[d->count] = '\0';
	d->point = (int)strtol(s + 1, NULL, 10) + 1;
}

/*
 * Just above a power of two the doubles are wider apart than below it: there the nearest decimal may
 * miss while the next one up, though farther away, still reads back.
 */
static void shortest(struct decimal *d, double v)
{
	for (int count = 1; count < 17; count++) {
		round_to(d, v, count);
		if (reads_back(d, v))
			break;
		count_up(d);
		if (reads_back(d, v))
			break;
	}
	if (!reads_back(d, v))
		round_to(d, v, 17);
}

/* ECMA-262 Number::toString. */
static int notation(const struct decimal *d, char text[40])
{
	const char *digits = d->digits;
	int point = d->point;

	if (point >= d->count && point <= 21)
		return snprintf(text, 40, "%s%.*s", digits, point - d->count, "000000000000000000000");
	if (point > 0 && point <= 21)
		return snprintf(text, 40, "%.*s.%s", point, digits, digits + point);
	if (point > -6 && point <= 0)
		return snprintf(text, 40, "0.%.*s%s", -point, "000000", digits);
	return snprintf(text, 40, "%c%s%se%+d", digits[0], d->count > 1 ? "." : "", digits + 1, point - 1);
}

static void put_double(struct jsonw *w, double v)
{
	struct decimal d;
	char text[40];
	locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);

	ALWAYS(c_locale != (locale_t)0);
	/* Of this thread only; a decimal comma would be broken JSON. */
	locale_t before = uselocale(c_locale);
	shortest(&d, fabs(v));
	int n = notation(&d, text);
	uselocale(before);
	freelocale(c_locale);
	if (v < 0)
		put(w, "-", 1);
	put(w, text, (size_t)n);
}

void jsonw_double(struct jsonw *w, const char *key, double v)
{
	if (!isfinite(v)) {
		jsonw_null(w, key);
		return;
	}
	if (v == trunc(v) && fabs(v) < EXACT_INT) {
		jsonw_int(w, key, (int64_t)v);
		return;
	}
	begin(w, key);
	put_double(w, v);
}

void jsonw_bool(struct jsonw *w, const char *key, bool v)
{
	begin(w, key);
	put_text(w, v ? "true" : "false");
}

void jsonw_null(struct jsonw *w, const char *key)
{
	begin(w, key);
	put_text(w, "null");
}

void jsonw_raw(struct jsonw *w, const char *key, const char *json, size_t n)
{
	begin(w, key);
	put(w, json, n);
}
