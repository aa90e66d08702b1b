/* slots: every slot has one owner, shares are even, few slots move, and all daemons agree. */
#include "unit/unit.h"

#include <stdio.h>
#include <string.h>

#include "base/sys.h"
#include "model/slots.h"

#define MOST 21

struct hosts {
	char text[MOST][32];
	const char *names[MOST];
};

static void make_names(struct hosts *h, const char *prefix)
{
	for (size_t i = 0; i < MOST; i++) {
		(void)snprintf(h->text[i], sizeof h->text[i], "%s-%zu", prefix, i);
		h->names[i] = h->text[i];
	}
}

/* Who has each slot, by name; every slot exactly one. */
static void divide(const struct hosts *h, size_t n, const char *owner[SLOTS_N])
{
	memset(owner, 0, SLOTS_N * sizeof *owner);
	for (size_t i = 0; i < n; i++) {
		struct slots own;
		unsigned counted = 0;
		slots_divide(h->names, n, i, &own, NULL);
		for (unsigned s = 0; s < SLOTS_N; s++) {
			if (!slots_has(&own, s))
				continue;
			ck_assert_ptr_null(owner[s]);
			owner[s] = h->names[i];
			counted++;
		}
		ck_assert_uint_eq(counted, own.n);
	}
	for (unsigned s = 0; s < SLOTS_N; s++)
		ck_assert_ptr_nonnull(owner[s]);
}

START_TEST(one_alone_has_all)
{
	const char *name = "only";
	struct slots own, all;
	size_t rank = 7;
	slots_all(&all);
	slots_divide(&name, 1, 0, &own, &rank);
	ck_assert(slots_same(&own, &all));
	ck_assert_uint_eq(own.n, SLOTS_N);
	ck_assert_uint_eq(rank, 0);
}
END_TEST

START_TEST(every_slot_has_one_owner_and_shares_are_even)
{
	struct hosts h;
	make_names(&h, "host");
	for (size_t n = 1; n < MOST; n++) {
		const char *owner[SLOTS_N];
		divide(&h, n, owner);
		for (size_t i = 0; i < n; i++) {
			unsigned have = 0;
			for (unsigned s = 0; s < SLOTS_N; s++)
				have += owner[s] == h.names[i];
			ck_assert_uint_ge(have, SLOTS_N / n);
			ck_assert_uint_le(have, SLOTS_N / n + 1);
		}
	}
}
END_TEST

START_TEST(few_slots_move_when_one_comes_or_goes)
{
	static const char *const prefixes[] = { "host", "pod-7f", "10.0.0.1:" };
	for (size_t p = 0; p < sizeof prefixes / sizeof *prefixes; p++) {
		struct hosts h;
		make_names(&h, prefixes[p]);
		for (size_t n = 1; n + 1 < MOST; n++) {
			const char *before[SLOTS_N], *after[SLOTS_N];
			unsigned moved = 0, fewest = SLOTS_N / (unsigned)(n + 1);
			divide(&h, n, before);
			divide(&h, n + 1, after);
			for (unsigned s = 0; s < SLOTS_N; s++)
				moved += before[s] != after[s];
			ck_assert_uint_ge(moved, fewest);
			/* The quotas cost something, the more the smaller a share is. */
			ck_assert_uint_le(moved, n <= 3 ? fewest + fewest / 5 : 2 * fewest);
		}
	}
}
END_TEST

START_TEST(the_order_of_the_names_does_not_matter)
{
	struct hosts h;
	make_names(&h, "h");
	for (unsigned round = 0; round < 10; round++) {
		const char *mixed[7];
		memcpy(mixed, h.names, sizeof mixed);
		for (size_t i = 7; i-- > 1;) {
			size_t j = (size_t)sys_random_below(i + 1);
			const char *x = mixed[i];
			mixed[i] = mixed[j];
			mixed[j] = x;
		}
		for (size_t i = 0; i < 7; i++) {
			struct slots a, b;
			size_t rank_a, rank_b, self = 0;
			while (strcmp(mixed[self], h.names[i]) != 0)
				self++;
			slots_divide(h.names, 7, i, &a, &rank_a);
			slots_divide(mixed, 7, self, &b, &rank_b);
			ck_assert(slots_same(&a, &b));
			ck_assert_uint_eq(rank_a, rank_b);
			ck_assert_uint_eq(rank_a, i);
		}
	}
}
END_TEST

/* Two versions of the program run side by side: what this one computes may never change. */
START_TEST(the_division_is_what_it_always_was)
{
	static const char *const names[] = { "a", "b", "c" };
	struct slots own;
	char first[128] = "";
	slots_divide(names, 3, 1, &own, NULL);
	for (unsigned s = 0, n = 0; n < 12; s++) {
		if (!slots_has(&own, s))
			continue;
		size_t len = strlen(first);
		(void)snprintf(first + len, sizeof first - len, "%u ", s);
		n++;
	}
	ck_assert_str_eq(first, "0 4 9 10 13 14 17 24 38 39 40 41 ");
}
END_TEST

START_TEST(sets_are_added_and_taken_away)
{
	struct slots a, b, c;
	slots_none(&a);
	slots_none(&b);
	slots_add(&a, 0);
	slots_add(&a, 0);
	slots_add(&a, 1023);
	slots_add(&a, 1024);
	slots_add(&b, 1023);
	slots_add(&b, 8);
	ck_assert_uint_eq(a.n, 2);
	ck_assert(!slots_has(&a, 1024));
	slots_minus(&a, &b, &c);
	ck_assert_uint_eq(c.n, 1);
	ck_assert(slots_has(&c, 0));
	slots_merge(&a, &b);
	ck_assert_uint_eq(a.n, 3);
	slots_minus(&a, &a, &a);
	ck_assert_uint_eq(a.n, 0);
	ck_assert_int_eq(b.bits[1], 1); /* bit 0 of byte 1, as get_bit() counts */
	ck_assert_int_eq(b.bits[127], 0x80);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("slots");
	TCase *t = tcase_create("slots");
	unit_add(t, one_alone_has_all);
	unit_add(t, every_slot_has_one_owner_and_shares_are_even);
	unit_add(t, few_slots_move_when_one_comes_or_goes);
	unit_add(t, the_order_of_the_names_does_not_matter);
	unit_add(t, the_division_is_what_it_always_was);
	unit_add(t, sets_are_added_and_taken_away);
	suite_add_tcase(s, t);
	return s;
}
