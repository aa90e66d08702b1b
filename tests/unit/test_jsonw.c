/*
 * jsonw: the exact bytes that JSON.stringify gives for the same values.
 */
#include "unit/unit.h"

#include <float.h>
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsonw.h"
#include "base/sys.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct buf out;

static void begin(void)
{
	buf_init(&out, 100000);
}

static void end(void)
{
	buf_fini(&out);
}

START_TEST(nested_values)
{
	struct jsonw w;

	ck_ok(buf_puts(&out, "before:"));
	jsonw_init(&w, &out);
	jsonw_object(&w, NULL);
	jsonw_str(&w, "a", "x");
	jsonw_array(&w, "b");
	jsonw_int(&w, NULL, 1);
	jsonw_array(&w, NULL);
	jsonw_array_end(&w);
	jsonw_object(&w, NULL);
	jsonw_object_end(&w);
	jsonw_bool(&w, NULL, true);
	jsonw_bool(&w, NULL, false);
	jsonw_null(&w, NULL);
	jsonw_array_end(&w);
	jsonw_object(&w, "c");
	jsonw_str(&w, "d", NULL);
	jsonw_object_end(&w);
	jsonw_raw(&w, "e", "[1,{}]", 6);
	jsonw_strn(&w, "f", "abc", 2);
	jsonw_double(&w, "g", 0.5);
	jsonw_object_end(&w);
	ck_ok(jsonw_end(&w));
	ck_assert_str_eq(buf_str(&out), "before:{\"a\":\"x\",\"b\":[1,[],{},true,false,null],\"c\":{\"d\":"
					"null},\"e\":[1,{}],\"f\":\"ab\",\"g\":0.5}");
}
END_TEST

START_TEST(top_level_scalars)
{
	struct jsonw w;

	jsonw_init(&w, &out);
	jsonw_str(&w, NULL, "");
	ck_ok(jsonw_end(&w));
	ck_assert_str_eq(buf_str(&out), "\"\"");
	buf_reset(&out);
	jsonw_init(&w, &out);
	jsonw_strn(&w, NULL, NULL, 0);
	ck_ok(jsonw_end(&w));
	ck_assert_str_eq(buf_str(&out), "\"\"");
}
END_TEST

static void check_string(const char *s, size_t n, const char *expected, int code)
{
	struct jsonw w;

	buf_reset(&out);
	jsonw_init(&w, &out);
	jsonw_strn(&w, NULL, s, n);
	ck_assert_int_eq(jsonw_end(&w), code);
	ck_assert_str_eq(buf_str(&out), expected);
}

START_TEST(escapes)
{
	check_string("\"\\/", 3, "\"\\\"\\\\/\"", 0);
	check_string("\b\t\n\f\r", 5, "\"\\b\\t\\n\\f\\r\"", 0);
	check_string("\0\x01\x07\x0b\x0e\x1f", 6, "\"\\u0000\\u0001\\u0007\\u000b\\u000e\\u001f\"", 0);
	check_string("\x7f <>&'", 6, "\"\x7f <>&'\"", 0);
	check_string(
		"\xc3\xa9\xe2\x82\xac\xf0\x9f\x94\x91", 9, "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x94\x91\"", 0);
	/* U+2028 and U+2029 are plain since ES2019. */
	check_string("\xe2\x80\xa8\xe2\x80\xa9", 6, "\"\xe2\x80\xa8\xe2\x80\xa9\"", 0);
	check_string("ab\ncd\"ef", 8, "\"ab\\ncd\\\"ef\"", 0);
}
END_TEST

START_TEST(keys_are_escaped)
{
	struct jsonw w;

	jsonw_init(&w, &out);
	jsonw_object(&w, NULL);
	jsonw_int(&w, "a\"b\n", 1);
	jsonw_int(&w, "", 2);
	jsonw_object_end(&w);
	ck_ok(jsonw_end(&w));
	ck_assert_str_eq(buf_str(&out), "{\"a\\\"b\\n\":1,\"\":2}");
}
END_TEST

START_TEST(text_that_is_not_utf8)
{
	check_string("a\xff"
		     "b",
		3,
		"\"a\xef\xbf\xbd"
		"b\"",
		ST_INVALID);
	check_string("\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"", ST_INVALID);
	check_string("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"", ST_INVALID);
	check_string("\xc3\xa9\xc3", 3, "\"\xc3\xa9\xef\xbf\xbd\"", ST_INVALID);
}
END_TEST

START_TEST(integers)
{
	struct jsonw w;

	jsonw_init(&w, &out);
	jsonw_array(&w, NULL);
	jsonw_int(&w, NULL, 0);
	jsonw_int(&w, NULL, INT64_MIN);
	jsonw_int(&w, NULL, INT64_MAX);
	jsonw_array_end(&w);
	ck_ok(jsonw_end(&w));
	ck_assert_str_eq(buf_str(&out), "[0,-9223372036854775808,9223372036854775807]");
}
END_TEST

static const char *double_text(double v)
{
	struct jsonw w;

	buf_reset(&out);
	jsonw_init(&w, &out);
	jsonw_double(&w, NULL, v);
	ck_ok(jsonw_end(&w));
	return buf_str(&out);
}

START_TEST(doubles)
{
	static const struct {
		double v;
		const char *text;
	} cases[] = {
		{0.0, "0"},
		{-0.0, "0"},
		{1.0, "1"},
		{-1.5, "-1.5"},
		{0.1, "0.1"},
		{0.1 + 0.2, "0.30000000000000004"},
		{1.0 / 3, "0.3333333333333333"},
		{123456.789, "123456.789"},
		{100.0, "100"},
		{9007199254740991.0, "9007199254740991"},
		{9007199254740992.0, "9007199254740992"},
		{9007199254740993.0, "9007199254740992"},
		{1e20, "100000000000000000000"},
		{1.5e20, "150000000000000000000"},
		{123456789012345680000.0, "123456789012345680000"},
		{1e21, "1e+21"},
		{1.5e21, "1.5e+21"},
		{-1e22, "-1e+22"},
		{0.000001, "0.000001"},
		{0.00000123, "0.00000123"},
		{1e-7, "1e-7"},
		{1.5e-7, "1.5e-7"},
		{5e-324, "5e-324"},
		{DBL_MIN, "2.2250738585072014e-308"},
		{DBL_MAX, "1.7976931348623157e+308"},
		{4.35, "4.35"},
		{2.5e-5, "0.000025"},
		{9.5e-7, "9.5e-7"},
		{0.95, "0.95"},
		{99999999.99, "99999999.99"},
		/* Powers of two whose shortest form is not the nearest of its length. */
		{0x1p-44, "5.684341886080802e-14"},
		{0x1p-1022, "2.2250738585072014e-308"},
		{9.5367431640625e-7, "9.5367431640625e-7"},
	};

	for (size_t i = 0; i < COUNT(cases); i++)
		ck_assert_str_eq(double_text(cases[i].v), cases[i].text);
	ck_assert_str_eq(double_text((double)NAN), "null");
	ck_assert_str_eq(double_text((double)INFINITY), "null");
	ck_assert_str_eq(double_text(-(double)INFINITY), "null");
}
END_TEST

START_TEST(doubles_round_trip)
{
	const uint64_t seed = 20261123;

	sys_set(sys_virtual(seed));
	for (int i = 0; i < 5000; i++) {
		double v;
		do
			sys_random(&v, sizeof(v));
		while (!isfinite(v));
		const char *text = double_text(v);
		ck_assert_msg(strtod(text, NULL) == v, "%a as %s, seed %" PRIu64, v, text, seed);
		ck_assert_msg(strlen(text) <= 25, "%s, seed %" PRIu64, text, seed);
	}
	/* Every power of two: never longer than what 17 digits give. */
	for (int e = -1074; e < 1024; e++) {
		double v = ldexp(1.0, e);
		ck_assert_msg(strtod(double_text(v), NULL) == v, "2^%d", e);
	}
	sys_set(NULL);
}
END_TEST

START_TEST(doubles_do_not_follow_the_locale)
{
	/* Where the locale is not installed this is the plain case once more. */
	const char *chosen = setlocale(LC_NUMERIC, "de_DE.UTF-8");

	ck_assert_str_eq(double_text(0.25), "0.25");
	ck_assert_str_eq(double_text(1.5e-9), "1.5e-9");
	if (chosen != NULL)
		setlocale(LC_NUMERIC, "C");
}
END_TEST

static void write_sample(struct jsonw *w, struct buf *b)
{
	jsonw_init(w, b);
	jsonw_object(w, NULL);
	jsonw_str(w, "key", "v\xff\n");
	jsonw_double(w, "d", 0.25);
	jsonw_array(w, "list");
	jsonw_int(w, NULL, -5);
	jsonw_array_end(w);
	jsonw_object_end(w);
}

START_TEST(a_full_buffer_leaves_nothing_behind)
{
	struct jsonw w;
	size_t whole;

	write_sample(&w, &out);
	ck_assert_int_eq(jsonw_end(&w), ST_INVALID);
	whole = out.len;
	for (size_t max = 3; max < whole + 3; max++) {
		struct buf b = BUF_INIT(max);
		ck_ok(buf_puts(&b, "abc"));
		write_sample(&w, &b);
		ck_assert_int_eq(jsonw_end(&w), ST_FULL);
		ck_assert_str_eq(buf_str(&b), "abc");
		buf_fini(&b);
	}
	struct buf b = BUF_INIT(whole);
	write_sample(&w, &b);
	ck_assert_int_eq(jsonw_end(&w), ST_INVALID);
	ck_assert_str_eq(buf_str(&b), "{\"key\":\"v\xef\xbf\xbd\\n\",\"d\":0.25,\"list\":[-5]}");
	buf_fini(&b);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("jsonw");
	TCase *tc = tcase_create("jsonw");

	tcase_add_checked_fixture(tc, begin, end);
	unit_add(tc, nested_values);
	unit_add(tc, top_level_scalars);
	unit_add(tc, escapes);
	unit_add(tc, keys_are_escaped);
	unit_add(tc, text_that_is_not_utf8);
	unit_add(tc, integers);
	unit_add(tc, doubles);
	unit_add(tc, doubles_round_trip);
	unit_add(tc, doubles_do_not_follow_the_locale);
	unit_add(tc, a_full_buffer_leaves_nothing_behind);
	suite_add_tcase(s, tc);
	return s;
}
