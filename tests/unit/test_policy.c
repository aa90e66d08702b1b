/*
 * policy - due times and waits: the rules one by one, then properties over seeded random facts.
 */
#include "unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "model/policy.h"

#define S US_PER_S
#define MIN (60 * S)
#define HOUR (60 * MIN)
#define DAY (24 * HOUR)
#define T0 (INT64_C(1800000000) * S)
#define SEED 20261123

static const struct policy_margin usual = {.margin_us = 5 * MIN, .fraction = 0.2};

static struct provider plain(void)
{
	return (struct provider){.access_token_overlap = true};
}

START_TEST(expiry_takes_the_best_known_fact)
{
	struct provider p = plain();
	struct policy_life l = {.now = T0 + 5 * S, .issued_at = T0};

	ck_assert_int_eq(policy_expiry(&p, &l), T0 + HOUR);
	l.last_lifetime_us = 2 * HOUR;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + 2 * HOUR);
	l.jwt_exp = T0 + 3 * HOUR;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + 3 * HOUR);
	p.default_expires_in_us = 4 * HOUR;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + 4 * HOUR);
	l.expires_in_us = 30 * MIN;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + 30 * MIN);
	l.issued_at = 0;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + 5 * S + 30 * MIN);
}
END_TEST

START_TEST(expiry_is_capped)
{
	struct provider p = plain();
	struct policy_life l = {.now = T0, .issued_at = T0, .expires_in_us = INT64_MAX};

	ck_assert_int_eq(policy_expiry(&p, &l), T0 + 365 * DAY);
	p.max_expires_in_us = DAY;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + DAY);
	l.expires_in_us = 0;
	l.jwt_exp = INT64_MAX;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + DAY);
	l.jwt_exp = 0;
	l.last_lifetime_us = INT64_MAX;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + DAY);
	p.default_expires_in_us = INT64_MAX;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + DAY);
	l.issued_at = INT64_MAX - 1;
	ck_assert_int_eq(policy_expiry(&p, &l), INT64_MAX);
}
END_TEST

START_TEST(zero_and_negative_lifetimes_are_unknown)
{
	struct provider p = plain();
	struct policy_life l = {
		.now = T0, .issued_at = T0, .expires_in_us = -5, .last_lifetime_us = INT64_MIN};

	ck_assert_int_eq(policy_expiry(&p, &l), T0 + HOUR);
	p.default_expires_in_us = -1;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 + HOUR);
}
END_TEST

START_TEST(jwt_exp_before_the_issue_is_a_broken_clock)
{
	struct provider p = plain();
	struct policy_life l = {.now = T0, .issued_at = T0, .jwt_exp = T0 - 1};

	ck_assert_int_eq(policy_expiry(&p, &l), T0 + HOUR);
	/* Imported without a date of issue: then it simply has expired. */
	l.issued_at = 0;
	ck_assert_int_eq(policy_expiry(&p, &l), T0 - 1);
}
END_TEST

static int64_t due_for(const struct provider *p, int64_t life, double unit)
{
	struct policy_due d = {.now = T0, .issued_at = T0, .expires_at = T0 + life};
	return policy_due_at(p, &usual, &d, unit) - T0;
}

START_TEST(due_keeps_the_smaller_margin)
{
	struct provider p = plain();

	ck_assert_int_eq(due_for(&p, HOUR, 0), 55 * MIN);
	ck_assert_int_eq(due_for(&p, 8 * HOUR, 0), 8 * HOUR - 5 * MIN);
	ck_assert_int_eq(due_for(&p, 20 * MIN, 0), 16 * MIN);
	ck_assert_int_eq(due_for(&p, 10 * MIN, 0), 8 * MIN);
	ck_assert_int_eq(due_for(&p, 10 * MIN - 1, 0), (10 * MIN - 1) / 2);
	ck_assert_int_eq(due_for(&p, 5 * MIN, 0), 150 * S);
	ck_assert_int_eq(due_for(&p, 1, 0), 0);
}
END_TEST

START_TEST(due_is_pulled_forward_by_a_tenth_of_the_margin)
{
	struct provider p = plain();

	ck_assert_int_eq(due_for(&p, HOUR, 0.5), 55 * MIN - 15 * S);
	ck_assert_int_eq(due_for(&p, HOUR, 0.999999999), 55 * MIN - 30 * S + 1);
	ck_assert_int_eq(due_for(&p, 5 * MIN, 0.5), 150 * S - 7500 * US_PER_MS);
	ck_assert_int_eq(due_for(&p, HOUR, (double)NAN), 55 * MIN);
	ck_assert_int_eq(due_for(&p, HOUR, -3), 55 * MIN);
	ck_assert_int_eq(due_for(&p, HOUR, 7), 55 * MIN - 30 * S);
}
END_TEST

START_TEST(no_overlap_means_late)
{
	struct provider p = {.access_token_overlap = false};

	ck_assert_int_eq(due_for(&p, 8 * HOUR, 0), 8 * HOUR - 30 * S);
	ck_assert_int_eq(due_for(&p, 8 * HOUR, 0.5), 8 * HOUR - 30 * S - 1500 * US_PER_MS);
	ck_assert_int_eq(due_for(&p, 5 * MIN, 0), 5 * MIN - 15 * S);
}
END_TEST

START_TEST(never_before_not_before)
{
	struct provider p = plain();

	p.not_before_fraction = 0.98;
	ck_assert_int_eq(due_for(&p, 10 * MIN, 0), 588 * S);
	p.not_before_fraction = 0.5;
	ck_assert_int_eq(due_for(&p, HOUR, 0), 55 * MIN);
	p.not_before_fraction = 5;
	ck_assert_int_eq(due_for(&p, HOUR, 0.7), HOUR);
	p.not_before_fraction = 0.9;
	p.refresh_token_idle_ttl_us = 10 * MIN;
	ck_assert_int_eq(due_for(&p, HOUR, 0.7), 54 * MIN);
}
END_TEST

START_TEST(past_expiry_is_due_now)
{
	struct provider p = plain();
	struct policy_due d = {.now = T0, .issued_at = T0 - HOUR, .expires_at = T0};

	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0.9), T0);
	d.expires_at = 0;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0.9), T0);
	d.expires_at = INT64_MIN;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0.9), T0);
	d.expires_at = T0 + MIN; /* inside the margin */
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0);
}
END_TEST

START_TEST(idle_refresh_token_is_kept_alive)
{
	struct provider p = plain();
	struct policy_due d = {.now = T0, .issued_at = T0, .expires_at = T0 + 90 * DAY};

	p.refresh_token_idle_ttl_us = 30 * DAY;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0 + 15 * DAY);
	d.refresh_issued_at = T0 - 10 * DAY;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0 + 5 * DAY);
	d.refresh_issued_at = T0 - 20 * DAY;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0);
}
END_TEST

START_TEST(hard_end_of_the_refresh_token_is_met_once)
{
	struct provider p = plain();
	struct policy_due d = {.now = T0, .issued_at = T0, .expires_at = T0 + 60 * DAY};

	d.refresh_expires_at = T0 + 10 * DAY;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0 + 10 * DAY - 5 * MIN);
	/* Refreshed inside the last margin, and the end did not move: no second time before the token's own
	 * due. */
	d.refresh_expires_at = T0 + 2 * MIN;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0 + 60 * DAY - 5 * MIN);
	/* Issued earlier: the last chance has come. */
	d.issued_at = T0 - DAY;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0);
	/* Past: nothing is gained by hurrying. */
	d.refresh_expires_at = T0 - 1;
	ck_assert_int_gt(policy_due_at(&p, &usual, &d, 0), T0 + 59 * DAY);
}
END_TEST

START_TEST(issue_in_the_future_counts_as_now)
{
	struct provider p = plain();
	struct policy_due d = {.now = T0, .issued_at = T0 + 30 * MIN, .expires_at = T0 + HOUR};

	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0 + 55 * MIN);
	d.issued_at = 0;
	ck_assert_int_eq(policy_due_at(&p, &usual, &d, 0), T0 + 55 * MIN);
}
END_TEST

START_TEST(backoff_doubles_and_stops)
{
	ck_assert_int_eq(policy_backoff_us(1, S, MIN, 0), S / 2);
	ck_assert_int_eq(policy_backoff_us(0, S, MIN, 0), S / 2);
	ck_assert_int_eq(policy_backoff_us(4, S, MIN, 0), 4 * S);
	ck_assert_int_eq(policy_backoff_us(4, S, MIN, 0.5), 6 * S);
	ck_assert_int_eq(policy_backoff_us(4, S, MIN, 1), 8 * S);
	ck_assert_int_eq(policy_backoff_us(40, S, MIN, 0), 30 * S);
	ck_assert_int_eq(policy_backoff_us(~0u, S, INT64_MAX, 1), INT64_MAX);
	ck_assert_int_eq(policy_backoff_us(~0u, 0, MIN, 0.5), 0);
	ck_assert_int_eq(policy_backoff_us(3, -S, MIN, 0.5), 0);
	ck_assert_int_eq(policy_backoff_us(3, S, -1, 0.5), 0);
}
END_TEST

START_TEST(retry_honours_the_provider)
{
	ck_assert_int_eq(policy_retry_us(1, 0, 0), S / 2);
	ck_assert_int_eq(policy_retry_us(30, 0, 1), 15 * MIN);
	ck_assert_int_eq(policy_retry_us(~0u, -1, 0), 450 * S);
	ck_assert_int_eq(policy_retry_us(1, 2 * MIN, 0), 2 * MIN);
	ck_assert_int_eq(policy_retry_us(1, 2 * MIN, 0.5), 126 * S);
	ck_assert_int_eq(policy_retry_us(30, S, 0), 450 * S);
	ck_assert_int_eq(policy_retry_us(1, INT64_MAX, 0.9), INT64_MAX);
}
END_TEST

START_TEST(webhook_schedule)
{
	static const int64_t base[] = {
		5 * S, 5 * MIN, 30 * MIN, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR};

	for (unsigned i = 0; i < 9; i++) {
		ck_assert_int_eq(policy_webhook_retry_us(i + 2, 0, 0.5), base[i]);
		ck_assert_int_eq(policy_webhook_retry_us(i + 2, 0, 0), base[i] - base[i] / 5);
		ck_assert_int_le(policy_webhook_retry_us(i + 2, 0, 0.999999), base[i] + base[i] / 5);
		ck_assert_int_gt(policy_webhook_retry_us(i + 2, 0, 0.999999), base[i] + base[i] / 6);
	}
	ck_assert_int_eq(policy_webhook_retry_us(11, 0, 0), -1);
	ck_assert_int_eq(policy_webhook_retry_us(~0u, HOUR, 0), -1);
	ck_assert_int_eq(policy_webhook_retry_us(0, 0, 0), 0);
	ck_assert_int_eq(policy_webhook_retry_us(1, 0, 0), 0);
	ck_assert_int_eq(policy_webhook_retry_us(2, HOUR, 0), HOUR);
	ck_assert_int_eq(policy_webhook_retry_us(2, INT64_MAX, 0), DAY);
	ck_assert_int_eq(policy_webhook_retry_us(2, INT64_MIN, 0), 4 * S);
}
END_TEST

START_TEST(retry_after_forms)
{
	const int64_t now = INT64_C(784111777) * S; /* Sun, 06 Nov 1994 08:49:37 GMT */
	static const struct {
		const char *value;
		int64_t want;
	} rows[] = {
		{"120", 120 * S},
		{"0", 0},
		{" 7 ", 7 * S},
		{"\t7", 7 * S},
		{"3600", HOUR},
		{"3601", HOUR},
		{"99999999999999999999999999", HOUR},
		{"9223372036854775807", HOUR},
		{"-5", 0},
		{"+5", 0},
		{"1.5", 0},
		{"soon", 0},
		{"", 0},
		{"   ", 0},
		{"12 0", 0},
		{"0x10", 0},
		{"Sun, 06 Nov 1994 08:50:37 GMT", MIN},
		{"Sunday, 06-Nov-94 08:50:37 GMT", MIN},
		{"Sun Nov  6 08:50:37 1994", MIN},
		{"Sun, 06 Nov 1994 08:49:36 GMT", 0},
		{"Thu, 01 Jan 1970 00:00:00 GMT", 0},
		{"Fri, 31 Dec 9999 23:59:59 GMT", HOUR},
		{"Sun, 06 Nov 1994 08:50:37 PST", 0},
		{"Mon, 06 Nov 1994 08:50:37 GMT", 0},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		ck_assert_msg(policy_retry_after_us(rows[i].value, now, HOUR) == rows[i].want, "\"%s\"",
			rows[i].value);
	ck_assert_int_eq(policy_retry_after_us(NULL, now, HOUR), 0);
	ck_assert_int_eq(policy_retry_after_us("5", now, 0), 0);
	ck_assert_int_eq(policy_retry_after_us("5", now, -1), 0);
	ck_assert_int_eq(policy_retry_after_us("9223372036854775807", now, INT64_MAX), INT64_MAX);
	ck_assert_int_eq(
		policy_retry_after_us("Fri, 31 Dec 9999 23:59:59 GMT", INT64_MIN, INT64_MAX), INT64_MAX);
}
END_TEST

/* Huge, negative and ordinary numbers, all of them likely. */
static int64_t wild(void)
{
	static const int64_t odd[] = {0, 1, -1, INT64_MAX, INT64_MIN, INT64_MAX - 1, T0, -T0};
	uint64_t bits;

	sys_random(&bits, sizeof(bits));
	switch (sys_random_below(4)) {
	case 0:
		return odd[sys_random_below(8)];
	case 1:
		return (int64_t)bits;
	case 2:
		return (int64_t)(bits % (uint64_t)(400 * DAY));
	default:
		return T0 + (int64_t)(bits % (uint64_t)(400 * DAY)) - 200 * DAY;
	}
}

static struct provider wild_provider(void)
{
	return (struct provider){
		.access_token_overlap = sys_random_below(2) != 0,
		.not_before_fraction = sys_random_below(3) == 0 ? sys_random_unit() * 1.2 : 0,
		.refresh_token_idle_ttl_us = sys_random_below(3) == 0 ? wild() : 0,
		.default_expires_in_us = sys_random_below(3) == 0 ? wild() : 0,
		.max_expires_in_us = sys_random_below(3) == 0 ? wild() : 0,
	};
}

static struct policy_due wild_due(void)
{
	return (struct policy_due){.now = wild(),
		.issued_at = wild(),
		.expires_at = wild(),
		.refresh_issued_at = wild(),
		.refresh_expires_at = wild()};
}

START_TEST(any_facts_give_a_due_time_inside_its_bounds)
{
	sys_set(sys_virtual(SEED));
	for (int i = 0; i < 200000; i++) {
		struct provider p = wild_provider();
		struct policy_margin m = {.margin_us = wild(), .fraction = sys_random_unit() * 1.5 - 0.2};
		struct policy_due d = wild_due();
		int64_t due = policy_due_at(&p, &m, &d, sys_random_unit());
		int64_t latest = d.expires_at > d.now ? d.expires_at : d.now;
		ck_assert_msg(due >= d.now && due <= latest, "seed %d round %d", SEED, i);
	}
	sys_set(NULL);
}
END_TEST

START_TEST(due_time_is_monotone)
{
	sys_set(sys_virtual(SEED + 1));
	for (int i = 0; i < 100000; i++) {
		struct provider p = wild_provider();
		struct policy_due d = {.now = T0, .issued_at = T0 - (int64_t)sys_random_below(DAY)};
		d.expires_at = T0 + (int64_t)sys_random_below(90 * DAY);
		d.refresh_expires_at = sys_random_below(2) ? T0 + (int64_t)sys_random_below(90 * DAY) : 0;
		double unit = sys_random_unit(), other = sys_random_unit();
		int64_t due = policy_due_at(&p, &usual, &d, unit);
		/* More jitter is never later. */
		int64_t jittered = policy_due_at(&p, &usual, &d, other);
		ck_assert_msg(
			other >= unit ? jittered <= due : jittered >= due, "seed %d round %d", SEED + 1, i);
		/* A token that lives longer is not due sooner, as long as the refresh token does not press.
		 */
		struct policy_due longer = d;
		longer.refresh_expires_at = d.refresh_expires_at = 0;
		longer.expires_at += (int64_t)sys_random_below(DAY);
		ck_assert_msg(policy_due_at(&p, &usual, &longer, unit) >= policy_due_at(&p, &usual, &d, unit),
			"seed %d round %d", SEED + 1, i);
	}
	sys_set(NULL);
}
END_TEST

START_TEST(healthy_tokens_keep_a_lead)
{
	struct provider p = plain();

	sys_set(sys_virtual(SEED + 2));
	for (int i = 0; i < 100000; i++) {
		int64_t life = 1 + (int64_t)sys_random_below(90 * DAY);
		int64_t lead = life - due_for(&p, life, sys_random_unit());
		int64_t least = life < 10 * MIN ? life / 2 : life / 5 < 5 * MIN ? life / 5 : 5 * MIN;
		ck_assert_msg(
			lead >= least && lead <= least + least / 10 + 2, "seed %d round %d", SEED + 2, i);
	}
	sys_set(NULL);
}
END_TEST

START_TEST(any_facts_give_an_expiry_and_a_wait)
{
	sys_set(sys_virtual(SEED + 3));
	for (int i = 0; i < 200000; i++) {
		struct provider p = wild_provider();
		struct policy_life l = {.now = wild(),
			.issued_at = wild(),
			.expires_in_us = wild(),
			.jwt_exp = wild(),
			.last_lifetime_us = wild()};
		int64_t expiry = policy_expiry(&p, &l);
		if (l.issued_at > 0)
			ck_assert_msg(
				expiry > l.issued_at || expiry == INT64_MAX, "seed %d round %d", SEED + 3, i);
		unsigned n = (unsigned)sys_random_below(70);
		double unit = sys_random_unit();
		int64_t after = wild(), wait = policy_retry_us(n, after, unit);
		ck_assert_msg(wait >= S / 2 && wait >= after, "seed %d round %d", SEED + 3, i);
		ck_assert_msg(after > 0 || wait <= 15 * MIN, "seed %d round %d", SEED + 3, i);
		ck_assert_msg(policy_retry_us(n + 1, 0, unit) >= policy_retry_us(n, 0, unit),
			"seed %d round %d", SEED + 3, i);
		ck_assert_int_ge(policy_backoff_us(n, wild(), wild(), unit), 0);
		ck_assert_int_ge(policy_webhook_retry_us(n % 12, wild(), unit), n % 12 > 10 ? -1 : 0);
	}
	sys_set(NULL);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("policy");
	TCase *t = tcase_create("policy");

	unit_add(t, expiry_takes_the_best_known_fact);
	unit_add(t, expiry_is_capped);
	unit_add(t, zero_and_negative_lifetimes_are_unknown);
	unit_add(t, jwt_exp_before_the_issue_is_a_broken_clock);
	unit_add(t, due_keeps_the_smaller_margin);
	unit_add(t, due_is_pulled_forward_by_a_tenth_of_the_margin);
	unit_add(t, no_overlap_means_late);
	unit_add(t, never_before_not_before);
	unit_add(t, past_expiry_is_due_now);
	unit_add(t, idle_refresh_token_is_kept_alive);
	unit_add(t, hard_end_of_the_refresh_token_is_met_once);
	unit_add(t, issue_in_the_future_counts_as_now);
	unit_add(t, backoff_doubles_and_stops);
	unit_add(t, retry_honours_the_provider);
	unit_add(t, webhook_schedule);
	unit_add(t, retry_after_forms);
	unit_add(t, any_facts_give_a_due_time_inside_its_bounds);
	unit_add(t, due_time_is_monotone);
	unit_add(t, healthy_tokens_keep_a_lead);
	unit_add(t, any_facts_give_an_expiry_and_a_wait);
	suite_add_tcase(s, t);
	return s;
}
