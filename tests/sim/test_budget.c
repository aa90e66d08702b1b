/*
 * test_budget - limits, buckets and breakers, on a clock that stands still.
 */
#include <check.h>

#include "base/sys.h"
#include "service/budget.h"
#include "sim/world.h"
#include "unit/unit.h"

static const struct budget_share ALONE = { 0, 1 };

struct bench {
	struct conf *conf;
	struct budget *b;
	struct gate *g;
};

static struct bench start(const char *provider)
{
	fake_clock_start(11);
	struct bench t = { .conf = fake_conf(provider, ""), .b = budget_new() };
	budget_set(t.b, t.conf, ALONE);
	t.g = budget_gate(t.b, "app", "sim");
	return t;
}

static void stop(struct bench *t)
{
	budget_free(t->b);
	conf_unref(t->conf);
	sys_set(NULL);
}

static bool open_now(struct gate *g)
{
	return gate_when(g, sys_mono_us()) <= sys_mono_us();
}

static enum gate_change one(struct gate *g, enum outcome o)
{
	ck_assert(open_now(g));
	gate_take(g, sys_mono_us());
	return gate_done(g, o, 0, sys_mono_us());
}

static void wait_for(struct gate *g)
{
	int64_t when = gate_when(g, sys_mono_us());
	ck_assert_int_ne(when, BUDGET_UNKNOWN);
	if (when > sys_mono_us())
		sys_virtual_advance(when - sys_mono_us());
}

START_TEST(gate_is_the_same_for_the_same_pair)
{
	struct bench t = start("");
	ck_assert_ptr_eq(budget_gate(t.b, "app", "sim"), t.g);
	ck_assert_ptr_ne(budget_gate(t.b, "app", "other"), t.g);
	ck_assert_str_eq(gate_provider(t.g), "sim");
	stop(&t);
}
END_TEST

START_TEST(lack_of_provider_and_client_is_told)
{
	struct bench t = start("");
	ck_assert_int_eq(gate_lack(t.g), GATE_FINE);
	struct gate *none = budget_gate(t.b, "app", "nobody");
	ck_assert_int_eq(gate_lack(none), GATE_NO_PROVIDER);
	ck_assert_int_eq(gate_when(none, sys_mono_us()), BUDGET_UNKNOWN);
	ck_assert(!gate_is_open(none));
	struct conf *less = fake_conf_with("", "", false);
	struct gate *other = budget_gate(t.b, "app", "other");
	ck_assert_int_eq(gate_lack(other), GATE_FINE);
	budget_set(t.b, less, ALONE);
	ck_assert_int_eq(gate_lack(other), GATE_NO_CLIENT);
	ck_assert_int_eq(gate_when(other, sys_mono_us()), BUDGET_UNKNOWN);
	budget_set(t.b, t.conf, ALONE);
	ck_assert_int_eq(gate_lack(other), GATE_FINE);
	conf_unref(less);
	stop(&t);
}
END_TEST

START_TEST(in_flight_is_limited_for_the_provider_over_all_applications)
{
	struct bench t = start("max_in_flight: 3");
	struct gate *second = budget_gate(t.b, "app2", "sim");
	gate_take(t.g, sys_mono_us());
	gate_take(t.g, sys_mono_us());
	gate_take(second, sys_mono_us());
	ck_assert_int_eq(gate_when(t.g, sys_mono_us()), BUDGET_UNKNOWN);
	ck_assert_int_eq(gate_when(second, sys_mono_us()), BUDGET_UNKNOWN);
	ck_assert(open_now(budget_gate(t.b, "app", "other")));
	gate_give_back(second);
	ck_assert(open_now(t.g));
	ck_assert_uint_eq(gate_in_flight(t.g), 2);
	stop(&t);
}
END_TEST

/* How many requests daemon `rank` of `of` has out at once. */
static unsigned at_once(const char *provider, unsigned rank, unsigned of)
{
	struct bench t = start(provider);
	budget_set(t.b, t.conf, (struct budget_share){ rank, of });
	unsigned n = 0;
	while (gate_when(t.g, sys_mono_us()) <= sys_mono_us()) {
		gate_take(t.g, sys_mono_us());
		n++;
	}
	stop(&t);
	return n;
}

START_TEST(share_divides_rate_exactly)
{
	struct bench t = start("max_in_flight: 3, rate: 30/s");
	budget_set(t.b, t.conf, (struct budget_share){ 9, 10 });
	ck_assert(gate_rate(t.g) > 2.99 && gate_rate(t.g) < 3.01);
	stop(&t);
}
END_TEST

START_TEST(shares_of_a_limit_add_up_to_it_and_none_is_nothing)
{
	for (unsigned of = 1; of <= 8; of++) {
		unsigned sum = 0;
		for (unsigned rank = 0; rank < of; rank++) {
			unsigned n = at_once("max_in_flight: 8", rank, of);
			ck_assert_uint_ge(n, 8 / of);
			ck_assert_uint_le(n, 8 / of + 1);
			sum += n;
		}
		ck_assert_uint_eq(sum, 8);
	}
	/* Fewer than daemons: one each, because what one looks after nobody else does. */
	for (unsigned rank = 0; rank < 3; rank++)
		ck_assert_uint_eq(at_once("max_in_flight: 2", rank, 3), 1);
}
END_TEST

/* Three daemons on ten a minute: together they send as many as one alone would, from the first minute on. */
START_TEST(daemons_that_start_together_keep_a_slow_rate_together)
{
	unsigned sent = 0, first = 0;
	for (unsigned rank = 0; rank < 3; rank++) {
		fake_clock_start(11);
		struct conf *c = fake_conf("rate: 10/m", "");
		struct budget *b = budget_new();
		budget_set(b, c, (struct budget_share){ rank, 3 });
		struct gate *g = budget_gate(b, "app", "sim");
		first += open_now(g);
		for (int64_t end = sys_mono_us() + MINUTES(10); sys_mono_us() < end; sys_virtual_advance(US_PER_S / 10)) {
			if (!open_now(g))
				continue;
			(void)one(g, OUTCOME_REFRESHED);
			sent++;
		}
		budget_free(b);
		conf_unref(c);
		sys_set(NULL);
	}
	ck_assert_uint_eq(first, 1);
	ck_assert_uint_ge(sent, 98);
	ck_assert_uint_le(sent, 103);
}
END_TEST

START_TEST(rate_lets_one_second_go_at_once_and_then_one_by_one)
{
	struct bench t = start("rate: 10/s");
	for (int i = 0; i < 10; i++)
		(void)one(t.g, OUTCOME_REFRESHED);
	int64_t when = gate_when(t.g, sys_mono_us());
	ck_assert_int_ge(when, sys_mono_us() + US_PER_S / 10);
	ck_assert_int_le(when, sys_mono_us() + US_PER_S / 10 + 2);
	unsigned n = 0;
	for (int64_t end = sys_mono_us() + SECONDS(100); sys_mono_us() < end; n++) {
		wait_for(t.g);
		(void)one(t.g, OUTCOME_REFRESHED);
	}
	ck_assert_uint_ge(n, 999);
	ck_assert_uint_le(n, 1001);
	stop(&t);
}
END_TEST

START_TEST(what_was_not_sent_costs_no_rate)
{
	struct bench t = start("rate: 1/m");
	gate_take(t.g, sys_mono_us());
	ck_assert(!open_now(t.g));
	gate_give_back(t.g);
	ck_assert(open_now(t.g));
	stop(&t);
}
END_TEST

START_TEST(provider_breaker_opens_after_five_faults_in_a_row)
{
	struct bench t = start("");
	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(one(t.g, OUTCOME_TRANSIENT), GATE_SAME);
	ck_assert_int_eq(one(t.g, OUTCOME_REFRESHED), GATE_SAME); /* not in a row */
	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(one(t.g, i % 2 ? OUTCOME_IN_DOUBT : OUTCOME_NEVER_SENT), GATE_SAME);
	ck_assert(!gate_is_open(t.g));
	ck_assert_int_eq(one(t.g, OUTCOME_MALFORMED), GATE_PROVIDER_OPENED);
	ck_assert(gate_is_open(t.g));
	ck_assert(!open_now(t.g));
	ck_assert(!open_now(budget_gate(t.b, "app2", "sim")));
	ck_assert(open_now(budget_gate(t.b, "app", "other")));
	ck_assert_int_le(gate_when(t.g, sys_mono_us()), sys_mono_us() + SECONDS(1));
	ck_assert_int_ge(gate_when(t.g, sys_mono_us()), sys_mono_us() + SECONDS(1) / 2);
	stop(&t);
}
END_TEST

START_TEST(breaker_lets_one_canary_through_and_doubles_its_pause)
{
	struct bench t = start("");
	for (int i = 0; i < 5; i++)
		(void)one(t.g, OUTCOME_TRANSIENT);
	int64_t longest = 0;
	for (int i = 0; i < 12; i++) {
		int64_t before = sys_mono_us();
		wait_for(t.g);
		longest = sys_mono_us() - before;
		gate_take(t.g, sys_mono_us());
		ck_assert_int_eq(gate_when(t.g, sys_mono_us()), BUDGET_UNKNOWN);
		ck_assert_int_eq(gate_done(t.g, OUTCOME_TRANSIENT, 0, sys_mono_us()), GATE_SAME);
	}
	ck_assert_int_ge(longest, SECONDS(30));
	ck_assert_int_le(longest, SECONDS(60));
	wait_for(t.g);
	ck_assert_int_eq(one(t.g, OUTCOME_REFRESHED), GATE_PROVIDER_CLOSED);
	ck_assert(open_now(t.g));
	for (int i = 0; i < 4; i++) /* it starts from the beginning */
		ck_assert_int_eq(one(t.g, OUTCOME_TRANSIENT), GATE_SAME);
	stop(&t);
}
END_TEST

START_TEST(canary_that_was_not_sent_leaves_its_place)
{
	struct bench t = start("");
	for (int i = 0; i < 5; i++)
		(void)one(t.g, OUTCOME_TRANSIENT);
	wait_for(t.g);
	gate_take(t.g, sys_mono_us());
	gate_give_back(t.g);
	ck_assert(open_now(t.g));
	stop(&t);
}
END_TEST

START_TEST(stragglers_do_not_lengthen_the_pause)
{
	struct bench t = start("");
	for (int i = 0; i < 20; i++)
		gate_take(t.g, sys_mono_us());
	unsigned opened = 0;
	for (int i = 0; i < 20; i++)
		opened += gate_done(t.g, OUTCOME_TRANSIENT, 0, sys_mono_us()) == GATE_PROVIDER_OPENED;
	ck_assert_uint_eq(opened, 1);
	ck_assert_int_le(gate_when(t.g, sys_mono_us()), sys_mono_us() + SECONDS(1));
	stop(&t);
}
END_TEST

START_TEST(dead_grant_shows_that_the_provider_works)
{
	struct bench t = start("");
	for (int i = 0; i < 5; i++)
		(void)one(t.g, OUTCOME_TRANSIENT);
	wait_for(t.g);
	ck_assert_int_eq(one(t.g, OUTCOME_GRANT_DEAD), GATE_PROVIDER_CLOSED);
	stop(&t);
}
END_TEST

START_TEST(client_breaker_opens_at_once_for_all_its_applications)
{
	struct bench t = start("");
	ck_assert_int_eq(one(t.g, OUTCOME_CLIENT_BROKEN), GATE_CLIENT_OPENED);
	ck_assert(!open_now(t.g));
	ck_assert(!open_now(budget_gate(t.b, "app2", "sim"))); /* the same client "*" */
	ck_assert(open_now(budget_gate(t.b, "app", "other")));
	ck_assert_int_ge(gate_when(t.g, sys_mono_us()), sys_mono_us() + SECONDS(15));
	ck_assert_int_le(gate_when(t.g, sys_mono_us()), sys_mono_us() + SECONDS(30));
	int64_t longest = 0;
	for (int i = 0; i < 10; i++) {
		int64_t before = sys_mono_us();
		wait_for(t.g);
		longest = sys_mono_us() - before;
		ck_assert_int_eq(one(t.g, OUTCOME_CLIENT_BROKEN), GATE_SAME);
	}
	ck_assert_int_ge(longest, MINUTES(15));
	ck_assert_int_le(longest, MINUTES(30));
	wait_for(t.g);
	ck_assert_int_eq(one(t.g, OUTCOME_REFRESHED), GATE_CLIENT_CLOSED);
	stop(&t);
}
END_TEST

START_TEST(new_configuration_lets_the_canary_go_at_once)
{
	struct bench t = start("");
	(void)one(t.g, OUTCOME_CLIENT_BROKEN);
	ck_assert(!open_now(t.g));
	struct conf *fresh = fake_conf("", "");
	budget_set(t.b, fresh, ALONE);
	ck_assert(gate_is_open(t.g));
	ck_assert(open_now(t.g));
	gate_take(t.g, sys_mono_us());
	ck_assert(!open_now(t.g));
	(void)gate_done(t.g, OUTCOME_REFRESHED, 0, sys_mono_us());
	conf_unref(fresh);
	stop(&t);
}
END_TEST

START_TEST(retry_after_holds_the_provider)
{
	struct bench t = start("");
	gate_take(t.g, sys_mono_us());
	ck_assert_int_eq(gate_done(t.g, OUTCOME_RATE_LIMITED, SECONDS(90), sys_mono_us()), GATE_SAME);
	ck_assert_int_eq(gate_when(t.g, sys_mono_us()), sys_mono_us() + SECONDS(90));
	ck_assert(!gate_is_open(t.g));
	stop(&t);
}
END_TEST

START_TEST(later_answer_that_asks_for_less_does_not_shorten_the_hold)
{
	struct bench t = start("");
	gate_take(t.g, sys_mono_us());
	gate_take(t.g, sys_mono_us());
	int64_t until = sys_mono_us() + SECONDS(90);
	(void)gate_done(t.g, OUTCOME_RATE_LIMITED, SECONDS(90), sys_mono_us());
	sys_virtual_advance(SECONDS(1));
	(void)gate_done(t.g, OUTCOME_RATE_LIMITED, 0, sys_mono_us());
	ck_assert_int_eq(gate_when(t.g, sys_mono_us()), until);
	stop(&t);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("budget");
	TCase *t = tcase_create("budget");
	unit_add(t, gate_is_the_same_for_the_same_pair);
	unit_add(t, lack_of_provider_and_client_is_told);
	unit_add(t, in_flight_is_limited_for_the_provider_over_all_applications);
	unit_add(t, share_divides_rate_exactly);
	unit_add(t, shares_of_a_limit_add_up_to_it_and_none_is_nothing);
	unit_add(t, daemons_that_start_together_keep_a_slow_rate_together);
	unit_add(t, rate_lets_one_second_go_at_once_and_then_one_by_one);
	unit_add(t, what_was_not_sent_costs_no_rate);
	unit_add(t, provider_breaker_opens_after_five_faults_in_a_row);
	unit_add(t, breaker_lets_one_canary_through_and_doubles_its_pause);
	unit_add(t, canary_that_was_not_sent_leaves_its_place);
	unit_add(t, stragglers_do_not_lengthen_the_pause);
	unit_add(t, dead_grant_shows_that_the_provider_works);
	unit_add(t, client_breaker_opens_at_once_for_all_its_applications);
	unit_add(t, new_configuration_lets_the_canary_go_at_once);
	unit_add(t, retry_after_holds_the_provider);
	unit_add(t, later_answer_that_asks_for_less_does_not_shorten_the_hold);
	suite_add_tcase(s, t);
	return s;
}
