/*
 * str and base64: every parser with its edges, its overflow and what it must refuse; RFC vectors.
 *
 * A parser's input is put into a block of exactly its size, so that the address sanitizer sees a read
 * past the end, and a refused input must leave the output alone.
 */
#include "unit/unit.h"

#include <inttypes.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base64.h"
#include "base/mem.h"
#include "base/header.h"
#include "base/str.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* A copy without a NUL behind it. */
static char *exact(const char *s, size_t n)
{
	char *copy = malloc(n > 0 ? n : 1);

	ck_assert_ptr_nonnull(copy);
	memcpy(copy, s, n);
	return copy;
}

#define DEFINE_PARSE(name, type, canary)                                                                     \
	static int try_##name(const char *s, type *out)                                                      \
	{                                                                                                    \
		size_t n = strlen(s);                                                                        \
		char *copy = exact(s, n);                                                                    \
		type v = (canary);                                                                           \
		int rc = str_parse_##name(copy, n, &v);                                                      \
		if (rc < 0)                                                                                  \
			ck_assert_msg(v == (canary), "\"%s\" changed the output", s);                        \
		*out = v;                                                                                    \
		free(copy);                                                                                  \
		return rc;                                                                                   \
	}

DEFINE_PARSE(i64, int64_t, -77)
DEFINE_PARSE(u64, uint64_t, 77)
DEFINE_PARSE(duration_us, int64_t, -77)
DEFINE_PARSE(size, uint64_t, 77)
DEFINE_PARSE(rate, double, -77)
DEFINE_PARSE(decimal, double, -77)
DEFINE_PARSE(rfc3339, int64_t, -77)
DEFINE_PARSE(http_date, int64_t, -77)

#define CHECK_GOOD(name, type, text, value)                                                                  \
	do {                                                                                                 \
		type got_;                                                                                   \
		ck_assert_msg(try_##name(text, &got_) == 0, "\"%s\" refused", text);                         \
		ck_assert_msg(got_ == (value), "\"%s\" misread", text);                                      \
	} while (0)

#define CHECK_BAD(name, type, text, code)                                                                    \
	do {                                                                                                 \
		type got_;                                                                                   \
		int rc_ = try_##name(text, &got_);                                                           \
		ck_assert_msg(rc_ == (code), "\"%s\" gives %s", text, status_text(rc_));                     \
	} while (0)

/* --- numbers */

/* The vectors of the algorithm's authors. */
START_TEST(a_hash_is_fnv_1a_and_goes_on)
{
	ck_assert_uint_eq(str_hash(STR_HASH, ""), 0x811c9dc5);
	ck_assert_uint_eq(str_hash(STR_HASH, "a"), 0xe40c292c);
	ck_assert_uint_eq(str_hash(STR_HASH, "foobar"), 0xbf9cf968);
	ck_assert_uint_eq(str_hash(str_hash(STR_HASH, "foo"), "bar"), 0xbf9cf968);
}
END_TEST

START_TEST(integers)
{
	static const char *const bad[] = {
		"", "-", "+1", " 1", "1 ", "0x10", "1.0", "1e3", "--1", "a", "1a", "- 1"};

	CHECK_GOOD(u64, uint64_t, "0", 0);
	CHECK_GOOD(u64, uint64_t, "007", 7);
	CHECK_GOOD(u64, uint64_t, "18446744073709551615", UINT64_MAX);
	CHECK_BAD(u64, uint64_t, "18446744073709551616", ST_RANGE);
	CHECK_BAD(u64, uint64_t, "99999999999999999999", ST_RANGE);
	CHECK_BAD(u64, uint64_t, "-1", ST_SYNTAX);
	CHECK_BAD(u64, uint64_t, "99999999999999999999x", ST_SYNTAX);
	CHECK_GOOD(i64, int64_t, "-0", 0);
	CHECK_GOOD(i64, int64_t, "-1", -1);
	CHECK_GOOD(i64, int64_t, "9223372036854775807", INT64_MAX);
	CHECK_GOOD(i64, int64_t, "-9223372036854775808", INT64_MIN);
	CHECK_BAD(i64, int64_t, "9223372036854775808", ST_RANGE);
	CHECK_BAD(i64, int64_t, "-9223372036854775809", ST_RANGE);
	CHECK_BAD(i64, int64_t, "99999999999999999999", ST_RANGE);
	for (size_t i = 0; i < COUNT(bad); i++) {
		CHECK_BAD(u64, uint64_t, bad[i], ST_SYNTAX);
		CHECK_BAD(i64, int64_t, bad[i], ST_SYNTAX);
	}
	uint64_t v;
	ck_assert_int_eq(str_parse_u64(NULL, 0, &v), ST_SYNTAX);
	ck_assert_int_eq(str_parse_u64("1\0002", 3, &v), ST_SYNTAX);
}
END_TEST

START_TEST(booleans)
{
	static const char *const yes[] = {"yes", "true", "on"}, *const no[] = {"no", "false", "off"};
	static const char *const bad[] = {"", "Yes", "TRUE", "1", "0", "y", "n", "yes ", "tru", "truee"};
	bool v;

	for (size_t i = 0; i < COUNT(yes); i++) {
		v = false;
		ck_ok(str_parse_bool(yes[i], strlen(yes[i]), &v));
		ck_assert(v);
		ck_ok(str_parse_bool(no[i], strlen(no[i]), &v));
		ck_assert(!v);
	}
	for (size_t i = 0; i < COUNT(bad); i++)
		ck_assert_int_eq(str_parse_bool(bad[i], strlen(bad[i]), &v), ST_SYNTAX);
}
END_TEST

START_TEST(durations)
{
	static const char *const bad[] = {"", "00", "5", "m", "ms", "-5m", "+5m", "5 m", "5m ", " 5m",
		"1h30m", "1.5h", "5M", "5S", "5min", "5w", "5mss", "5sm"};
	static const struct {
		const char *text;
		int64_t us;
	} good[] = {
		{"0", 0},
		{"1us", 1},
		{"250ms", 250000},
		{"90s", 90000000},
		{"5m", 300000000},
		{"2h", INT64_C(7200000000)},
		{"30d", INT64_C(2592000000000)},
		{"106751991d", INT64_C(106751991) * 86400 * 1000000},
		{"9223372036854775807us", INT64_MAX},
	};
	char text[32];

	for (size_t i = 0; i < COUNT(good); i++) {
		CHECK_GOOD(duration_us, int64_t, good[i].text, good[i].us);
		str_format_duration(good[i].us, text);
		ck_assert_str_eq(text, good[i].text);
	}
	for (size_t i = 0; i < COUNT(bad); i++)
		CHECK_BAD(duration_us, int64_t, bad[i], ST_SYNTAX);
	CHECK_GOOD(duration_us, int64_t, "0s", 0);
	CHECK_GOOD(duration_us, int64_t, "007s", 7000000);
	CHECK_BAD(duration_us, int64_t, "106751992d", ST_RANGE);
	CHECK_BAD(duration_us, int64_t, "9223372036854775808us", ST_RANGE);
	CHECK_BAD(duration_us, int64_t, "99999999999999999999d", ST_RANGE);
	str_format_duration(60000000, text);
	ck_assert_str_eq(text, "1m");
	str_format_duration(1500000, text);
	ck_assert_str_eq(text, "1500ms");
	str_format_duration(INT64_C(86400) * 1000000, text);
	ck_assert_str_eq(text, "1d");
	str_format_duration(-300000000, text);
	ck_assert_str_eq(text, "-5m");
	str_format_duration(INT64_MIN, text);
	ck_assert_str_eq(text, "-9223372036854775808us");
}
END_TEST

START_TEST(sizes)
{
	static const char *const bad[] = {
		"", "k", "64K", "1m", "1g", "1T", "1kB", "1 k", "-1", "1.5k", "1kk"};
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"512", 512},
		{"1023", 1023},
		{"1k", 1024},
		{"1025", 1025},
		{"64k", 65536},
		{"1M", 1048576},
		{"1025k", 1049600},
		{"2G", UINT64_C(2) << 30},
		{"17179869183G", UINT64_C(17179869183) << 30},
		{"18446744073709551615", UINT64_MAX},
	};
	char text[32];

	for (size_t i = 0; i < COUNT(good); i++) {
		CHECK_GOOD(size, uint64_t, good[i].text, good[i].bytes);
		str_format_size(good[i].bytes, text);
		ck_assert_str_eq(text, good[i].text);
	}
	for (size_t i = 0; i < COUNT(bad); i++)
		CHECK_BAD(size, uint64_t, bad[i], ST_SYNTAX);
	CHECK_BAD(size, uint64_t, "17179869184G", ST_RANGE);
	CHECK_BAD(size, uint64_t, "18446744073709551616", ST_RANGE);
	CHECK_BAD(size, uint64_t, "99999999999999999999k", ST_RANGE);
}
END_TEST

START_TEST(decimals_and_rates)
{
	static const char *const bad[] = {
		"", ".", ".5", "5.", "-1", "+1", "1e3", "1,5", "1.2.3", "inf", "nan", "0x1", " 1", "1 "};
	static const char *const bad_rates[] = {
		"", "/s", "10", "10/", "10/d", "10s", "10 /s", "10/ s", "10//s", "-1/s", "10/ms", "1e3/s"};

	CHECK_GOOD(decimal, double, "0", 0);
	CHECK_GOOD(decimal, double, "0.25", 0.25);
	CHECK_GOOD(decimal, double, "12.5", 12.5);
	CHECK_GOOD(decimal, double, "0.1", 0.1);
	CHECK_GOOD(decimal, double, "0.30000000000000004", 0.1 + 0.2);
	CHECK_GOOD(decimal, double, "0012.500", 12.5);
	CHECK_BAD(decimal, double, "1111111111111111111111111111111111111111111111111111111111111111",
		ST_RANGE);
	CHECK_GOOD(decimal, double, "100000000000000000000000000000000000000000000000000000000000000", 1e62);
	for (size_t i = 0; i < COUNT(bad); i++)
		CHECK_BAD(decimal, double, bad[i], ST_SYNTAX);
	CHECK_GOOD(rate, double, "10/s", 10);
	CHECK_GOOD(rate, double, "600/m", 10);
	CHECK_GOOD(rate, double, "1000/h", 1000.0 / 3600);
	CHECK_GOOD(rate, double, "2.5/s", 2.5);
	CHECK_GOOD(rate, double, "0/s", 0);
	for (size_t i = 0; i < COUNT(bad_rates); i++)
		CHECK_BAD(rate, double, bad_rates[i], ST_SYNTAX);
	CHECK_BAD(
		rate, double, "1111111111111111111111111111111111111111111111111111111111111111/s", ST_RANGE);
}
END_TEST

START_TEST(decimals_do_not_follow_the_locale)
{
	const char *chosen = setlocale(LC_NUMERIC, "de_DE.UTF-8");

	/* Where the locale is not installed this is the plain case once more. */
	CHECK_GOOD(decimal, double, "0.25", 0.25);
	CHECK_BAD(decimal, double, "0,25", ST_SYNTAX);
	if (chosen != NULL)
		setlocale(LC_NUMERIC, "C");
}
END_TEST

/* --- times */

static const struct {
	const char *text;
	int64_t us;
} iso_times[] = {
	{"1970-01-01T00:00:00.000Z", 0},
	{"2000-02-29T12:34:56.789Z", INT64_C(951827696789000)},
	{"2026-11-23T10:00:00.000Z", INT64_C(1795428000000000)},
	{"2100-02-28T23:59:59.999Z", INT64_C(4107542399999000)},
	{"2100-03-01T00:00:00.000Z", INT64_C(4107542400000000)},
	{"9999-12-31T23:59:59.999Z", INT64_C(253402300799999000)},
};

START_TEST(iso_times_both_ways)
{
	char text[STR_ISO_BYTES];

	for (size_t i = 0; i < COUNT(iso_times); i++) {
		CHECK_GOOD(rfc3339, int64_t, iso_times[i].text, iso_times[i].us);
		str_format_iso_ms(iso_times[i].us, text);
		ck_assert_str_eq(text, iso_times[i].text);
	}
	str_format_iso_ms(1999, text);
	ck_assert_str_eq(text, "1970-01-01T00:00:00.001Z");
	str_format_iso_ms(-1, text);
	ck_assert_str_eq(text, "1969-12-31T23:59:59.999Z");
	str_format_iso_ms(INT64_C(253402300800000000), text);
	ck_assert_str_eq(text, "+010000-01-01T00:00:00.000Z");
	str_format_iso_ms(INT64_C(-62167219200000000), text);
	ck_assert_str_eq(text, "0000-01-01T00:00:00.000Z");
	str_format_iso_ms(INT64_C(-62167219200000001), text);
	ck_assert_str_eq(text, "-000001-12-31T23:59:59.999Z");
	str_format_iso_ms(INT64_MAX, text);
	ck_assert_str_eq(text, "+294247-01-10T04:00:54.775Z");
	str_format_iso_ms(INT64_MIN, text);
	ck_assert_str_eq(text, "-290308-12-21T19:59:05.224Z");
}
END_TEST

START_TEST(every_day_both_ways)
{
	char text[STR_ISO_BYTES];

	for (int64_t day = 0; day < 2932897; day += 13) {
		int64_t us = day * INT64_C(86400000000), back = -1;
		str_format_iso_ms(us, text);
		ck_ok(str_parse_rfc3339(text, strlen(text), &back));
		ck_assert_int_eq(back, us);
	}
}
END_TEST

START_TEST(rfc3339_forms)
{
	/* RFC 3339 5.8 */
	CHECK_GOOD(rfc3339, int64_t, "1985-04-12T23:20:50.52Z", INT64_C(482196050520000));
	CHECK_GOOD(rfc3339, int64_t, "1996-12-19T16:39:57-08:00", INT64_C(851042397000000));
	CHECK_GOOD(rfc3339, int64_t, "1990-12-31T23:59:60Z", INT64_C(662687999999999));
	CHECK_GOOD(rfc3339, int64_t, "1990-12-31T15:59:60-08:00", INT64_C(662687999999999));
	CHECK_GOOD(rfc3339, int64_t, "1990-12-31T23:59:60.5Z", INT64_C(662687999999999));
	CHECK_BAD(rfc3339, int64_t, "1937-01-01T12:00:27.87+00:20", ST_RANGE);
	CHECK_GOOD(rfc3339, int64_t, "1970-01-01t00:00:01z", 1000000);
	CHECK_GOOD(rfc3339, int64_t, "1970-01-01T00:00:01-00:00", 1000000);
	CHECK_GOOD(rfc3339, int64_t, "1970-01-01T00:00:00.000001Z", 1);
	CHECK_GOOD(rfc3339, int64_t, "1970-01-01T00:00:00.0000019999999999999999999Z", 1);
	CHECK_GOOD(rfc3339, int64_t, "1970-01-01T23:59:00+23:59", 0);
	CHECK_GOOD(rfc3339, int64_t, "1969-12-31T23:00:00-01:00", 0);
	CHECK_GOOD(rfc3339, int64_t, "9999-12-31T23:59:59.999999Z", INT64_C(253402300799999999));
	CHECK_GOOD(rfc3339, int64_t, "2000-02-29T00:00:00Z", INT64_C(951782400000000));
}
END_TEST

START_TEST(rfc3339_out_of_range)
{
	static const char *const bad[] = {"1969-12-31T23:59:59Z", "1970-01-01T00:00:00+00:01",
		"9999-12-31T23:59:59-00:01", "0000-01-01T00:00:00Z", "2026-00-01T00:00:00Z",
		"2026-13-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-32T00:00:00Z",
		"2026-04-31T00:00:00Z", "2026-02-29T00:00:00Z", "2100-02-29T00:00:00Z",
		"2000-02-30T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z",
		"2026-01-01T00:00:61Z", "2026-01-01T00:00:60Z", "2026-01-01T23:58:60Z",
		"2026-01-01T23:59:60+01:00", "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+00:60"};

	for (size_t i = 0; i < COUNT(bad); i++)
		CHECK_BAD(rfc3339, int64_t, bad[i], ST_RANGE);
}
END_TEST

START_TEST(rfc3339_malformed)
{
	static const char *const bad[] = {"", "2026", "2026-01-01", "2026-01-01T00:00:00",
		"2026-01-01T00:00Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00 Z", "2026-01-01T00:00:00ZZ",
		" 2026-01-01T00:00:00Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00,5Z",
		"2026-01-01T00:00:00+0000", "2026-01-01T00:00:00+00", "2026-01-01T00:00:00+00:0",
		"2026-01-01T00:00:00*00:00", "2026-1-01T00:00:00Z", "2026-01-1T00:00:00Z",
		"+2026-01-01T00:00:00Z", "12026-01-01T00:00:00Z", "2026/01/01T00:00:00Z",
		"2026-01-01T0:00:00Z", "2026-01-01T-1:00:00Z", "20260101T000000Z", "2026-01-01T00:00:00UTC",
		"2026-01-01T00:00:00+24:00x", "2026-01-01T00:00:00.5"};

	for (size_t i = 0; i < COUNT(bad); i++)
		CHECK_BAD(rfc3339, int64_t, bad[i], ST_SYNTAX);
	/* Every cut of a good text. */
	const char *good = "2026-11-23T10:00:00.123456+01:30";
	int64_t v;
	ck_ok(try_rfc3339(good, &v));
	for (size_t n = 0; n < strlen(good); n++) {
		char *copy = exact(good, n);
		ck_assert_int_eq(str_parse_rfc3339(copy, n, &v), ST_SYNTAX);
		free(copy);
	}
}
END_TEST

START_TEST(http_dates)
{
	/* RFC 9110 5.6.7 */
	const int64_t expected = INT64_C(784111777000000);

	CHECK_GOOD(http_date, int64_t, "Sun, 06 Nov 1994 08:49:37 GMT", expected);
	CHECK_GOOD(http_date, int64_t, "Sunday, 06-Nov-94 08:49:37 GMT", expected);
	CHECK_GOOD(http_date, int64_t, "Sun Nov  6 08:49:37 1994", expected);
	CHECK_GOOD(http_date, int64_t, "Wed Nov 16 08:49:37 1994", expected + 10 * INT64_C(86400000000));
	CHECK_GOOD(http_date, int64_t, "Thu, 01 Jan 1970 00:00:00 GMT", 0);
	CHECK_GOOD(http_date, int64_t, "Thursday, 01-Jan-70 00:00:00 GMT", 0);
	CHECK_GOOD(http_date, int64_t, "Tuesday, 31-Dec-69 00:00:00 GMT", INT64_C(3155673600000000));
	CHECK_GOOD(http_date, int64_t, "Mon, 23 Nov 2026 10:00:00 GMT", INT64_C(1795428000000000));
	CHECK_GOOD(http_date, int64_t, "Sat, 31 Dec 2016 23:59:60 GMT", INT64_C(1483228799999999));
}
END_TEST

START_TEST(http_dates_refused)
{
	static const char *const bad[] = {"", "Sun", "Sun,", "Sun, 06 Nov 1994 08:49:37",
		"Sun, 06 Nov 1994 08:49:37 UTC", "sun, 06 Nov 1994 08:49:37 GMT",
		"Sun, 06 nov 1994 08:49:37 GMT", "Sun, 6 Nov 1994 08:49:37 GMT",
		"Sun, 06 Nov 94 08:49:37 GMT", "Sun, 06 Nov 1994 8:49:37 GMT", "Sun,06 Nov 1994 08:49:37 GMT",
		"Sun, 06 Nov 1994 08:49:37 GMT ", " Sun, 06 Nov 1994 08:49:37 GMT",
		"Sun, 06-Nov-94 08:49:37 GMT", "Sunday, 06 Nov 1994 08:49:37 GMT",
		"Sunday, 06-Nov-1994 08:49:37 GMT", "Sun Nov 6 08:49:37 1994", "Sun Nov 06 08:49:37 94",
		"Sun Nov  6 08:49:37 1994 GMT", "Xyz, 06 Nov 1994 08:49:37 GMT",
		"Sun, 06 Xyz 1994 08:49:37 GMT", "1994-11-06T08:49:37Z", "120",
		/* The name of the day does not fit. */
		"Mon, 06 Nov 1994 08:49:37 GMT", "Monday, 06-Nov-94 08:49:37 GMT",
		"Sat Nov  6 08:49:37 1994"};
	static const char *const range[] = {"Sun, 32 Nov 1994 08:49:37 GMT", "Sun, 00 Nov 1994 08:49:37 GMT",
		"Sun, 06 Nov 1994 24:49:37 GMT", "Sun, 06 Nov 1994 08:60:37 GMT",
		"Sun, 06 Nov 1994 08:49:61 GMT", "Sun, 06 Nov 1994 08:49:60 GMT",
		"Wed, 31 Dec 1969 23:59:59 GMT", "Sun, 06 Nov 0000 08:49:37 GMT", "Sun Nov  0 08:49:37 1994",
		"Sunday, 29-Feb-94 08:49:37 GMT"};

	for (size_t i = 0; i < COUNT(bad); i++)
		CHECK_BAD(http_date, int64_t, bad[i], ST_SYNTAX);
	for (size_t i = 0; i < COUNT(range); i++)
		CHECK_BAD(http_date, int64_t, range[i], ST_RANGE);
}
END_TEST

/* --- UUIDs and hex */

START_TEST(uuids)
{
	static const char *const bad[] = {"", "00112233-4455-6677-8899-aabbccddeef",
		"00112233-4455-6677-8899-aabbccddeefff", "001122334455-6677-8899-aabbccddeeff-",
		"0011223-34455-6677-8899-aabbccddeeff", "{0112233-4455-6677-8899-aabbccddeef}",
		"00112233-4455-6677-8899-aabbccddeefg", "00112233_4455-6677-8899-aabbccddeeff",
		"00112233-4455-6677-8899 aabbccddeeff", "00112233445566778899aabbccddeeff"};
	const uint8_t expected[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb,
		0xcc, 0xdd, 0xee, 0xff};
	const char *text = "00112233-4455-6677-8899-aabbccddeeff",
		   *upper = "00112233-4455-6677-8899-AABBCCDDEEFF";
	uint8_t id[16];
	char out[STR_UUID_BYTES];

	ck_ok(str_parse_uuid(text, 36, id));
	ck_assert_mem_eq(id, expected, 16);
	memset(id, 0, sizeof(id));
	ck_ok(str_parse_uuid(upper, 36, id));
	ck_assert_mem_eq(id, expected, 16);
	str_format_uuid(id, out);
	ck_assert_str_eq(out, text);
	for (size_t i = 0; i < COUNT(bad); i++) {
		char *copy = exact(bad[i], strlen(bad[i]));
		ck_assert_int_eq(str_parse_uuid(copy, strlen(bad[i]), id), ST_SYNTAX);
		ck_assert_mem_eq(id, expected, 16);
		free(copy);
	}
}
END_TEST

START_TEST(hex)
{
	struct buf b = BUF_INIT(10);
	uint8_t out[3] = {9, 9, 9};

	ck_ok(str_hex_append(&b, "\x00\x7f\xff", 3));
	ck_assert_str_eq(buf_str(&b), "007fff");
	ck_ok(str_hex_append(&b, "", 0));
	ck_assert_int_eq(str_hex_append(&b, "abc", 3), ST_FULL);
	ck_assert_int_eq(str_hex_append(&b, "abc", SIZE_MAX), ST_FULL);
	ck_ok(str_hex_append(&b, "\xab\x01", 2));
	ck_assert_str_eq(buf_str(&b), "007fffab01");
	buf_fini(&b);

	ck_assert_int_eq(str_hex_parse("0a0b0", 5, out, 3), ST_SYNTAX);
	ck_assert_int_eq(str_hex_parse("0a0b0c0", 7, out, 3), ST_SYNTAX);
	ck_assert_int_eq(str_hex_parse("0a0b0g", 6, out, 3), ST_SYNTAX);
	ck_assert_int_eq(str_hex_parse("0a0b", 4, out, 3), ST_SYNTAX);
	ck_assert_int_eq(out[0], 9);
	ck_ok(str_hex_parse("0aFf9C", 6, out, 3));
	ck_assert_mem_eq(out, "\x0a\xff\x9c", 3);
	ck_ok(str_hex_parse("", 0, out, 0));
}
END_TEST

/* --- percent-encoding */

START_TEST(form_encoding)
{
	struct buf b = BUF_INIT(1000);
	/* RFC 6749 appendix B */
	const char *text = " %&+\xc2\xa3\xe2\x82\xac";

	ck_ok(str_form_encode(&b, text, strlen(text)));
	ck_assert_str_eq(buf_str(&b), "+%25%26%2B%C2%A3%E2%82%AC");
	buf_reset(&b);
	ck_ok(str_form_encode(&b, "azAZ09-._*~/\0\n", 14));
	ck_assert_str_eq(buf_str(&b), "azAZ09-._*%7E%2F%00%0A");
	buf_reset(&b);
	ck_ok(str_form_encode(&b, NULL, 0));
	ck_assert_uint_eq(b.len, 0);
	buf_fini(&b);
}
END_TEST

START_TEST(percent_encoding)
{
	struct buf b = BUF_INIT(1000);

	ck_ok(str_percent_encode(&b, "az AZ09-._~*+/?", 15));
	ck_assert_str_eq(buf_str(&b), "az%20AZ09-._~%2A%2B%2F%3F");
	buf_fini(&b);
}
END_TEST

START_TEST(encoders_stop_at_the_maximum)
{
	struct buf b = BUF_INIT(10);

	ck_ok(buf_puts(&b, "ab"));
	ck_assert_int_eq(str_form_encode(&b, "///", 3), ST_FULL);
	ck_assert_int_eq(str_percent_encode(&b, "   ", 3), ST_FULL);
	ck_assert_int_eq(str_percent_encode(&b, "x", SIZE_MAX / 2), ST_FULL);
	ck_assert_int_eq(str_percent_decode(&b, "123456789", 9, false), ST_FULL);
	ck_assert_str_eq(buf_str(&b), "ab");
	ck_ok(str_form_encode(&b, "//  ", 4));
	ck_assert_str_eq(buf_str(&b), "ab%2F%2F++");
	buf_fini(&b);
}
END_TEST

START_TEST(percent_decoding)
{
	static const char *const bad[] = {
		"%", "%4", "a%", "a%4", "%zz", "%4z", "%z4", "%00", "a%00b", "%%41", "% 41"};
	struct buf b = BUF_INIT(100);

	ck_ok(str_percent_decode(&b, "a+b%20c%2F%c3%A9", 16, false));
	ck_assert_str_eq(buf_str(&b), "a+b c/\xc3\xa9");
	buf_reset(&b);
	ck_ok(str_percent_decode(&b, "a+b%2Bc", 7, true));
	ck_assert_str_eq(buf_str(&b), "a b+c");
	ck_ok(str_percent_decode(&b, "", 0, true));
	for (size_t i = 0; i < COUNT(bad); i++) {
		char *copy = exact(bad[i], strlen(bad[i]));
		ck_assert_int_eq(str_percent_decode(&b, copy, strlen(bad[i]), false), ST_SYNTAX);
		free(copy);
	}
	ck_assert_int_eq(str_percent_decode(&b, "a\0b", 3, false), ST_SYNTAX);
	ck_assert_str_eq(buf_str(&b), "a b+c");
	buf_fini(&b);
}
END_TEST

START_TEST(every_byte_survives_encoding)
{
	struct buf encoded = BUF_INIT(2000), back = BUF_INIT(2000);
	char bytes[255];

	for (int i = 0; i < 255; i++)
		bytes[i] = (char)(i + 1);
	for (int form = 0; form < 2; form++) {
		buf_reset(&encoded);
		buf_reset(&back);
		ck_ok(form ? str_form_encode(&encoded, bytes, 255)
			   : str_percent_encode(&encoded, bytes, 255));
		ck_ok(str_percent_decode(&back, buf_str(&encoded), encoded.len, form));
		ck_assert(buf_equals(&back, bytes, 255));
	}
	buf_fini(&encoded);
	buf_fini(&back);
}
END_TEST

/* --- character classes */

START_TEST(utf8)
{
	static const char *const good[] = {"", "abc", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80",
		"\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf",
		"a\xc3\xa9\xe2\x82\xac\xf0\x9f\x94\x91z"};
	static const char *const bad[] = {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x7f",
		"\xc2\xc0", "\xe0\x9f\xbf", "\xe2\x82", "\xe2\x82\x7f", "\xed\xa0\x80", "\xed\xbf\xbf",
		"\xf0\x8f\xbf\xbf", "\xf0\x9f\x94", "\xf0\x9f\x94\x20", "\xf4\x90\x80\x80",
		"\xf5\x80\x80\x80", "\xff", "abc\xfe", "\xf8\x88\x80\x80\x80"};

	for (size_t i = 0; i < COUNT(good); i++) {
		char *copy = exact(good[i], strlen(good[i]));
		ck_assert_msg(str_is_utf8(copy, strlen(good[i])), "good %zu", i);
		free(copy);
	}
	for (size_t i = 0; i < COUNT(bad); i++) {
		char *copy = exact(bad[i], strlen(bad[i]));
		ck_assert_msg(!str_is_utf8(copy, strlen(bad[i])), "bad %zu", i);
		free(copy);
	}
	ck_assert(str_is_utf8("a\0b", 3));
	ck_assert_uint_eq(str_utf8_char("", 0), 0);
	ck_assert_uint_eq(str_utf8_char("\xe2\x82\xac!", 4), 3);
}
END_TEST

START_TEST(utf8_agrees_with_the_code_points)
{
	uint8_t c[4];

	for (uint32_t p = 0x80; p < 0x110000; p++) {
		size_t n = p < 0x800 ? 2 : p < 0x10000 ? 3 : 4;
		for (size_t i = n; i-- > 1;)
			c[i] = (uint8_t)(0x80 | (p >> (6 * (n - 1 - i)) & 63));
		c[0] = (uint8_t)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | p >> (6 * (n - 1)));
		size_t expected = p >= 0xd800 && p <= 0xdfff ? 0 : n;
		if (str_utf8_char(c, n) != expected || str_utf8_char(c, n - 1) != 0)
			ck_abort_msg("U+%04" PRIX32, p);
	}
}
END_TEST

/* Eight bytes are looked at together: each value in each place has to be seen. */
START_TEST(each_byte_in_each_place)
{
	for (unsigned c = 0; c < 256; c++) {
		for (size_t at = 0; at < 19; at++) {
			uint8_t text[19];
			memset(text, 'a', sizeof text);
			text[at] = (uint8_t)c;
			ck_assert_int_eq(str_is_vschar(text, sizeof text), c >= 0x20 && c <= 0x7e);
			ck_assert_int_eq(str_is_utf8(text, sizeof text), c < 0x80);
			bool plain = c >= 0x20 && c != '"' && c != '\\';
			ck_assert_uint_eq(str_json_run(text, sizeof text), plain ? sizeof text : at);
		}
	}
}
END_TEST

START_TEST(vschar_and_controls)
{
	ck_assert(str_is_vschar(" ~", 2));
	ck_assert(!str_is_vschar("", 0));
	ck_assert(!str_is_vschar("a\x1f", 2));
	ck_assert(!str_is_vschar("a\x7f", 2));
	ck_assert(!str_is_vschar("a\x80", 2));
	ck_assert(!str_is_vschar("a\0", 2));
	ck_assert(!str_has_ctl("", 0));
	ck_assert(!str_has_ctl(" ~\x80\xff", 4));
	ck_assert(str_has_ctl("a\x1f", 2));
	ck_assert(str_has_ctl("a\x7f", 2));
	ck_assert(str_has_ctl("a\0", 2));
}
END_TEST

START_TEST(header_names)
{
	static const char *const good[] = { "a", "X-Y_z", "!#$%&'*+-.^_`|~09" };
	static const char *const bad[] = { "", " ", "a b", "a:", "a\x01", "\xc3\xa9", "a(", "a/", "\"a\"", "a\x7f", "[", "a=", "{}" };
	static const char *const transport[] = { "host", "CONTENT-LENGTH", "Transfer-Encoding", "te", "Connection", "expect", "Trailer",
		"upgrade", "keep-alive", "proxy-connection" };
	static const char *const free_ones[] = { "", "x-host", "hos", "content-type", "authorization", "te2" };

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		ck_assert(header_is_name(good[i]));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(!header_is_name(bad[i]), "%s", bad[i]);
	for (size_t i = 0; i < sizeof(transport) / sizeof(transport[0]); i++)
		ck_assert_msg(header_is_transport(transport[i]), "%s", transport[i]);
	for (size_t i = 0; i < sizeof(free_ones) / sizeof(free_ones[0]); i++)
		ck_assert_msg(!header_is_transport(free_ones[i]), "%s", free_ones[i]);
}
END_TEST

START_TEST(eq_nocase)
{
	ck_assert(str_eq_nocase("Content-Type", 12, "content-type"));
	ck_assert(str_eq_nocase("", 0, ""));
	ck_assert(!str_eq_nocase("abc", 2, "abc"));
	ck_assert(!str_eq_nocase("abc", 3, "ab"));
	ck_assert(!str_eq_nocase("abd", 3, "abc"));
	/* '@' and '`', '[' and '{' are 32 apart as well. */
	ck_assert(!str_eq_nocase("@", 1, "`"));
	ck_assert(!str_eq_nocase("[", 1, "{"));
	ck_assert(!str_eq_nocase("\xc9", 1, "\xe9"));
}
END_TEST

/* --- base64 */

START_TEST(base64_vectors)
{
	/* RFC 4648 10 */
	static const char *const vectors[][3] = {{"", "", ""}, {"f", "Zg==", "Zg"}, {"fo", "Zm8=", "Zm8"},
		{"foo", "Zm9v", "Zm9v"}, {"foob", "Zm9vYg==", "Zm9vYg"}, {"fooba", "Zm9vYmE=", "Zm9vYmE"},
		{"foobar", "Zm9vYmFy", "Zm9vYmFy"}, {"\xfb\xff\xfe", "+//+", "-__-"}};
	struct buf b = BUF_INIT(100);

	for (size_t i = 0; i < COUNT(vectors); i++) {
		const char *plain = vectors[i][0], *std = vectors[i][1], *url = vectors[i][2];
		ck_ok(base64_encode(&b, plain, strlen(plain)));
		ck_assert_str_eq(buf_str(&b), std);
		buf_reset(&b);
		ck_ok(base64url_encode(&b, plain, strlen(plain)));
		ck_assert_str_eq(buf_str(&b), url);
		buf_reset(&b);
		char *copy = exact(std, strlen(std));
		ck_ok(base64_decode(&b, copy, strlen(std)));
		free(copy);
		ck_assert_str_eq(buf_str(&b), plain);
		buf_reset(&b);
		copy = exact(url, strlen(url));
		ck_ok(base64url_decode(&b, copy, strlen(url)));
		free(copy);
		ck_assert_str_eq(buf_str(&b), plain);
		buf_reset(&b);
	}
	ck_ok(base64url_decode(&b, "Zg==", 4));
	ck_assert_str_eq(buf_str(&b), "f");
	buf_fini(&b);
}
END_TEST

START_TEST(base64_malformed)
{
	static const char *const both[] = {"Z", "Z===", "====", "=",
		"==", "Zm9v=", "Zm9v==", "Zm9v====", "Zg=", "Zm8==", "Zg==Zg==", "Z=g=", "Zm 9v", "Zm9v\n",
		" Zm9v", "Zm9*", "Zh==", "Zm9=", "Zm9vY", "\xff\xff\xff\xff", "Zm=v"};
	static const char *const std[] = {"Zg", "Zm8", "-__-"}, *const url[] = {"+//+", "Zh", "Zm9"};
	struct buf b = BUF_INIT(100);

	ck_ok(buf_puts(&b, "kept"));
	for (size_t i = 0; i < COUNT(both); i++) {
		ck_assert_msg(base64_decode(&b, both[i], strlen(both[i])) == ST_SYNTAX, "%s", both[i]);
		ck_assert_msg(base64url_decode(&b, both[i], strlen(both[i])) == ST_SYNTAX, "%s", both[i]);
	}
	for (size_t i = 0; i < COUNT(std); i++)
		ck_assert_int_eq(base64_decode(&b, std[i], strlen(std[i])), ST_SYNTAX);
	for (size_t i = 0; i < COUNT(url); i++)
		ck_assert_int_eq(base64url_decode(&b, url[i], strlen(url[i])), ST_SYNTAX);
	ck_assert_int_eq(base64_decode(&b, "Zm\0v", 4), ST_SYNTAX);
	ck_assert_str_eq(buf_str(&b), "kept");
	buf_fini(&b);
}
END_TEST

START_TEST(base64_stops_at_the_maximum)
{
	struct buf b = BUF_INIT(8);

	ck_ok(buf_puts(&b, "kept"));
	ck_assert_int_eq(base64_encode(&b, "abcd", 4), ST_FULL);
	ck_assert_int_eq(base64_encode(&b, "abcd", SIZE_MAX), ST_FULL);
	ck_assert_int_eq(base64url_encode(&b, "abcd", 4), ST_FULL);
	ck_assert_int_eq(base64_decode(&b, "Zm9vYmE=", 8), ST_FULL);
	ck_assert_str_eq(buf_str(&b), "kept");
	ck_ok(base64_encode(&b, "foo", 3));
	ck_assert_str_eq(buf_str(&b), "keptZm9v");
	buf_fini(&b);
}
END_TEST

START_TEST(base64_every_length_both_ways)
{
	struct buf text = BUF_INIT(1000), back = BUF_INIT(1000);
	uint8_t bytes[300];

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 151 + 7);
	for (size_t n = 0; n <= sizeof(bytes); n++) {
		for (int url = 0; url < 2; url++) {
			buf_reset(&text);
			buf_reset(&back);
			ck_ok(url ? base64url_encode(&text, bytes, n) : base64_encode(&text, bytes, n));
			ck_ok(url ? base64url_decode(&back, buf_str(&text), text.len)
				  : base64_decode(&back, buf_str(&text), text.len));
			ck_assert(buf_equals(&back, bytes, n));
		}
	}
	buf_fini(&text);
	buf_fini(&back);
}
END_TEST

static void add_tests(Suite *s)
{
	TCase *tc = tcase_create("numbers");
	unit_add(tc, a_hash_is_fnv_1a_and_goes_on);
	unit_add(tc, integers);
	unit_add(tc, booleans);
	unit_add(tc, durations);
	unit_add(tc, sizes);
	unit_add(tc, decimals_and_rates);
	unit_add(tc, decimals_do_not_follow_the_locale);
	suite_add_tcase(s, tc);

	tc = tcase_create("times");
	unit_add(tc, iso_times_both_ways);
	unit_add(tc, every_day_both_ways);
	unit_add(tc, rfc3339_forms);
	unit_add(tc, rfc3339_out_of_range);
	unit_add(tc, rfc3339_malformed);
	unit_add(tc, http_dates);
	unit_add(tc, http_dates_refused);
	suite_add_tcase(s, tc);

	tc = tcase_create("encodings");
	unit_add(tc, uuids);
	unit_add(tc, hex);
	unit_add(tc, form_encoding);
	unit_add(tc, percent_encoding);
	unit_add(tc, encoders_stop_at_the_maximum);
	unit_add(tc, percent_decoding);
	unit_add(tc, every_byte_survives_encoding);
	suite_add_tcase(s, tc);

	tc = tcase_create("characters");
	unit_add(tc, utf8);
	unit_add(tc, utf8_agrees_with_the_code_points);
	unit_add(tc, each_byte_in_each_place);
	unit_add(tc, vschar_and_controls);
	unit_add(tc, eq_nocase);
	unit_add(tc, header_names);
	suite_add_tcase(s, tc);

	tc = tcase_create("base64");
	unit_add(tc, base64_vectors);
	unit_add(tc, base64_malformed);
	unit_add(tc, base64_stops_at_the_maximum);
	unit_add(tc, base64_every_length_both_ways);
	suite_add_tcase(s, tc);
}

Suite *unit_suite(void)
{
	Suite *s = suite_create("str");

	add_tests(s);
	return s;
}
