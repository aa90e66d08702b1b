/*
 * The registry by its rendered text: what stands there, in which order, and that nothing is there twice.
 */
#include "unit/unit.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/metrics.h"

static struct buf text = BUF_INIT(1 << 20);

static void start(void)
{
	metrics_reset();
	buf_init(&text, 1 << 20);
}

static void finish(void)
{
	metrics_reset();
	buf_fini(&text);
}

static const char *render(void)
{
	buf_reset(&text);
	ck_ok(metrics_render(&text));
	return buf_str(&text);
}

/* Where a whole line starts; NULL when it is not there. */
static const char *line_at(const char *all, const char *line)
{
	size_t n = strlen(line);

	for (const char *p = strstr(all, line); p != NULL; p = strstr(p + 1, line))
		if ((p == all || p[-1] == '\n') && p[n] == '\n')
			return p;
	return NULL;
}

static void check_line(const char *line)
{
	const char *all = render();
	const char *p = line_at(all, line);

	ck_assert_msg(p != NULL, "no line '%s' in\n%s", line, all);
	ck_assert_msg(line_at(p + 1, line) == NULL, "twice: '%s'", line);
}

static void check_no_text(const char *part)
{
	ck_assert_ptr_null(strstr(render(), part));
}

/* The table as the test sees it. */
static const struct {
	const char *name, *l1, *type;
} table[] = {
#define METRIC(id, type, name, l1, l2, buckets, help) { (name), (l1), #type },
#include "base/metrics.def"
#undef METRIC
};

static const char *lower_type(const char *type)
{
	if (strcmp(type, "COUNTER") == 0)
		return "counter";
	return strcmp(type, "GAUGE") == 0 ? "gauge" : "histogram";
}

START_TEST(metrics_without_labels_are_there_before_anyone_asked)
{
	const char *all = render(), *before = all;

	for (size_t i = 0; i < METRIC_COUNT; i++) {
		char line[200];
		snprintf(line, sizeof(line), "# TYPE refreshd_%s %s", table[i].name,
			lower_type(table[i].type));
		const char *p = line_at(all, line);
		ck_assert_msg(p != NULL, "no '%s'", line);
		ck_assert_msg(p >= before, "'%s' is not in table order", line);
		before = p;
		snprintf(line, sizeof(line), "\n# HELP refreshd_%s ", table[i].name);
		ck_assert(i == 0 || strstr(all, line) != NULL);
		snprintf(line, sizeof(line), "refreshd_%s%s 0", table[i].name,
			strcmp(table[i].type, "HISTOGRAM") == 0 ? "_count" : "");
		ck_assert_msg((line_at(all, line) != NULL) == (table[i].l1 == NULL), "wrong: '%s'", line);
	}
	check_no_text("{provider");
}
END_TEST

START_TEST(a_series_starts_at_zero_and_counts)
{
	struct series *s = metrics_get(M_REFRESHES, "acme", "ok");

	check_line("refreshd_refreshes_total{provider=\"acme\",outcome=\"ok\"} 0");
	series_add(s, 3);
	metrics_inc(M_REFRESHES, "acme", "ok");
	ck_assert_ptr_eq(metrics_get(M_REFRESHES, "acme", "ok"), s);
	check_line("refreshd_refreshes_total{provider=\"acme\",outcome=\"ok\"} 4");
	ck_assert_double_eq(series_value(s), 4);
	series_add(s, UINT64_C(9007199254740993));
	check_line("refreshd_refreshes_total{provider=\"acme\",outcome=\"ok\"} 9007199254740997");
}
END_TEST

START_TEST(labels_are_copied_and_kept_apart)
{
	char provider[] = "a", outcome[] = "bc";
	struct series *s = metrics_get(M_REFRESHES, provider, outcome);

	provider[0] = 'x';
	outcome[0] = 'x';
	ck_assert_ptr_eq(metrics_get(M_REFRESHES, "a", "bc"), s);
	ck_assert_ptr_ne(metrics_get(M_REFRESHES, "ab", "c"), s);
	ck_assert_ptr_ne(metrics_get(M_REFRESHES, "bc", "a"), s);
	ck_assert_ptr_ne(metrics_get(M_API_REQUESTS, "a", "bc"), s);
	ck_assert_ptr_ne(metrics_get(M_REFRESHES, "", ""), metrics_get(M_REFRESHES, "a", ""));
	check_line("refreshd_refreshes_total{provider=\"a\",outcome=\"bc\"} 0");
	check_line("refreshd_refreshes_total{provider=\"\",outcome=\"\"} 0");
}
END_TEST

START_TEST(gauges_render_any_number)
{
	static const struct {
		double v;
		const char *text;
	} cases[] = {
		{0, "0"},
		{1, "1"},
		{-12.5, "-12.5"},
		{0.1, "0.1"},
		{1e21, "1e+21"},
		{1.0 / 3, "0.3333333333333333"},
		{123456789, "123456789"},
		{NAN, "NaN"},
		{INFINITY, "+Inf"},
		{-INFINITY, "-Inf"},
		{5e-324, "4.94065645841247e-324"},
	};
	struct series *s = metrics_get(M_MIN_TO_EXPIRY, NULL, NULL);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char line[100];
		series_set(s, cases[i].v);
		snprintf(line, sizeof(line), "refreshd_min_seconds_to_expiry %s", cases[i].text);
		check_line(line);
	}
	metrics_set(M_MIN_TO_EXPIRY, NULL, NULL, 7);
	ck_assert_double_eq(series_value(s), 7);
}
END_TEST

START_TEST(every_gauge_reads_back_exactly)
{
	struct series *s = metrics_get(M_HEAP_ENTRIES, NULL, NULL);
	uint64_t bits = 88172645463325252;

	for (int i = 0; i < 200; i++) {
		double v;
		bits ^= bits << 13;
		bits ^= bits >> 7;
		bits ^= bits << 17;
		memcpy(&v, &bits, sizeof(v));
		if (!isfinite(v))
			continue;
		series_set(s, v);
		const char *p = strstr(render(), "\nrefreshd_heap_entries ");
		ck_assert_ptr_nonnull(p);
		ck_assert(strtod(p + strlen("\nrefreshd_heap_entries "), NULL) == v);
	}
}
END_TEST

START_TEST(label_values_are_escaped)
{
	metrics_set(M_CIRCUIT_OPEN, "a\\b\"c\nd", NULL, 1);
	metrics_set(M_CIRCUIT_OPEN, "m\xc3\xbcnze", NULL, 1);
	metrics_set(M_CIRCUIT_OPEN, "bad\xff", NULL, 1);
	check_line("refreshd_provider_circuit_open{provider=\"a\\\\b\\\"c\\nd\"} 1");
	check_line("refreshd_provider_circuit_open{provider=\"m\xc3\xbcnze\"} 1");
	check_line("refreshd_provider_circuit_open{provider=\"bad\\\\xff\"} 1");
}
END_TEST

START_TEST(series_are_sorted_by_labels)
{
	static const char *const in[][2] = {{"b", "y"}, {"a", "z"}, {"c", "a"}, {"b", "x"}, {"a", "a"}};
	static const char *const sorted[][2] = {{"a", "a"}, {"a", "z"}, {"b", "x"}, {"b", "y"}, {"c", "a"}};

	for (size_t i = 0; i < 5; i++)
		metrics_inc(M_REFRESHES, in[i][0], in[i][1]);
	const char *all = render(), *before = all;
	for (size_t i = 0; i < 5; i++) {
		char line[200];
		snprintf(line, sizeof(line), "refreshd_refreshes_total{provider=\"%s\",outcome=\"%s\"} 1",
			sorted[i][0], sorted[i][1]);
		const char *p = line_at(all, line);
		ck_assert_ptr_nonnull(p);
		ck_assert(p > before);
		before = p;
	}
	/* And twice the same. */
	char *first = mem_strdup(all);
	ck_assert_str_eq(first, render());
	mem_free(first);
}
END_TEST

START_TEST(a_histogram_is_cumulative)
{
	struct series *s = metrics_get(M_REFRESH_DURATION, "acme", NULL);

	series_observe(s, 0.001); /* a bound belongs to its bucket */
	series_observe(s, 0.0011);
	series_observe(s, 0.2);
	series_observe(s, 60);
	series_observe(s, 61);
	series_observe(s, -1);
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"acme\",le=\"0.001\"} 2");
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"acme\",le=\"0.0025\"} 3");
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"acme\",le=\"0.1\"} 3");
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"acme\",le=\"0.25\"} 4");
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"acme\",le=\"30\"} 4");
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"acme\",le=\"60\"} 5");
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"acme\",le=\"+Inf\"} 6");
	check_line("refreshd_refresh_duration_seconds_sum{provider=\"acme\"} 120.2021");
	check_line("refreshd_refresh_duration_seconds_count{provider=\"acme\"} 6");
	ck_assert_double_eq(series_value(s), 6);
}
END_TEST

START_TEST(odd_observations_do_not_spoil_the_sum)
{
	struct series *s = metrics_get(M_REFRESH_LATENESS, NULL, NULL);

	series_observe(s, NAN);
	series_observe(s, INFINITY);
	series_observe(s, -INFINITY);
	series_observe(s, 2);
	check_line("refreshd_refresh_lateness_seconds_bucket{le=\"0.001\"} 1");
	check_line("refreshd_refresh_lateness_seconds_bucket{le=\"3600\"} 2");
	check_line("refreshd_refresh_lateness_seconds_bucket{le=\"+Inf\"} 4");
	check_line("refreshd_refresh_lateness_seconds_sum 2");
	check_line("refreshd_refresh_lateness_seconds_count 4");
}
END_TEST

START_TEST(cleared_series_are_gone_until_they_are_touched)
{
	struct series *a = metrics_get(M_CIRCUIT_OPEN, "a", NULL),
		      *b = metrics_get(M_CIRCUIT_OPEN, "b", NULL);
	struct series *h = metrics_get(M_REFRESH_DURATION, "a", NULL);

	series_set(a, 1);
	series_set(b, 1);
	series_observe(h, 5);
	metrics_set(M_HEAP_ENTRIES, NULL, NULL, 9);
	metrics_clear(M_CIRCUIT_OPEN);
	metrics_clear(M_REFRESH_DURATION);
	check_no_text("provider_circuit_open{");
	check_no_text("duration_seconds_count{");
	check_line("refreshd_heap_entries 9");

	ck_assert_ptr_eq(metrics_get(M_CIRCUIT_OPEN, "a", NULL), a);
	series_set(b, 2);
	series_observe(h, 1);
	check_line("refreshd_provider_circuit_open{provider=\"a\"} 0");
	check_line("refreshd_provider_circuit_open{provider=\"b\"} 2");
	check_line("refreshd_refresh_duration_seconds_count{provider=\"a\"} 1");
	check_line("refreshd_refresh_duration_seconds_bucket{provider=\"a\",le=\"5\"} 1");
	check_line("refreshd_refresh_duration_seconds_sum{provider=\"a\"} 1");

	metrics_clear(M_HEAP_ENTRIES);
	metrics_clear(M_DB_ERRORS);
	check_line("refreshd_heap_entries 0");
}
END_TEST

START_TEST(hundreds_of_series_are_found_again)
{
	enum { SIDE = 30 };
	static struct series *made[SIDE][SIDE];
	char l1[16], l2[16], line[200];

	for (int round = 0; round < 2; round++)
		for (int i = 0; i < SIDE; i++)
			for (int j = 0; j < SIDE; j++) {
				snprintf(l1, sizeof(l1), "p%d", i);
				snprintf(l2, sizeof(l2), "o%d", j);
				struct series *s = metrics_get(M_REFRESHES, l1, l2);
				ck_assert(round == 0 || made[i][j] == s);
				made[i][j] = s;
				series_add(s, (uint64_t)(i * SIDE + j));
			}
	const char *all = render();
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			snprintf(line, sizeof(line),
				"refreshd_refreshes_total{provider=\"p%d\",outcome=\"o%d\"} %d", i, j,
				2 * (i * SIDE + j));
			ck_assert_msg(line_at(all, line) != NULL, "no '%s'", line);
		}
}
END_TEST

START_TEST(a_full_buffer_is_left_as_it_was)
{
	struct buf small = BUF_INIT(1000);

	ck_ok(buf_puts(&small, "kept"));
	ck_assert_int_eq(metrics_render(&small), ST_FULL);
	ck_assert_str_eq(buf_str(&small), "kept");
	buf_fini(&small);
}
END_TEST

START_TEST(rendering_appends)
{
	ck_ok(buf_puts(&text, "before\n"));
	ck_ok(metrics_render(&text));
	ck_assert_int_eq(strncmp(buf_str(&text), "before\n# HELP refreshd_refreshes_total ", 39), 0);
	ck_assert_int_eq(text.data[text.len - 1], '\n');
}
END_TEST

START_TEST(a_reset_forgets_everything)
{
	metrics_inc(M_REFRESHES, "a", "b");
	metrics_inc(M_IN_DOUBT, NULL, NULL);
	metrics_reset();
	metrics_reset();
	check_no_text("refreshes_total{");
	check_line("refreshd_in_doubt_total 0");
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("metrics");
	TCase *tc = tcase_create("metrics");

	tcase_add_checked_fixture(tc, start, finish);
	unit_add(tc, metrics_without_labels_are_there_before_anyone_asked);
	unit_add(tc, a_series_starts_at_zero_and_counts);
	unit_add(tc, labels_are_copied_and_kept_apart);
	unit_add(tc, gauges_render_any_number);
	unit_add(tc, every_gauge_reads_back_exactly);
	unit_add(tc, label_values_are_escaped);
	unit_add(tc, series_are_sorted_by_labels);
	unit_add(tc, a_histogram_is_cumulative);
	unit_add(tc, odd_observations_do_not_spoil_the_sum);
	unit_add(tc, cleared_series_are_gone_until_they_are_touched);
	unit_add(tc, hundreds_of_series_are_found_again);
	unit_add(tc, a_full_buffer_is_left_as_it_was);
	unit_add(tc, rendering_appends);
	unit_add(tc, a_reset_forgets_everything);
	suite_add_tcase(s, tc);
	return s;
}
