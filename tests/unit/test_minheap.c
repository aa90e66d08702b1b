/*
 * Both heaps against plain arrays: random work with a printed seed, and the promises of the header.
 */
#include "unit/unit.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/minheap.h"
#include "base/sys.h"

#define NODES ((size_t)200)

/* UNIT_SEED repeats a failure. */
static void seed_random(void)
{
	const char *env = getenv("UNIT_SEED");
	uint64_t seed;

	sys_set(NULL);
	sys_random(&seed, sizeof(seed));
	if (env != NULL)
		seed = strtoull(env, NULL, 10);
	printf("# seed %" PRIu64 "\n", seed);
	sys_set(sys_virtual(seed));
}

static void restore(void)
{
	sys_set(NULL);
}

static int64_t random_due(void)
{
	/* A small range makes equal due times frequent. */
	return (int64_t)sys_random_below(60) - 20;
}

static void check_heap(const struct minheap *h)
{
	for (size_t i = 0; i < h->len; i++) {
		ck_assert_uint_eq(h->v[i]->pos, i + 1);
		if (i > 0)
			ck_assert_int_le(h->v[(i - 1) / 2]->due_us, h->v[i]->due_us);
	}
}

static void random_step(struct minheap *h, struct minheap_node *n)
{
	int64_t due = random_due();

	switch (sys_random_below(4)) {
	case 0:
		minheap_remove(h, n);
		ck_assert(!minheap_has(n));
		break;
	case 1:
		n = minheap_take(h);
		ck_assert(n == NULL || !minheap_has(n));
		break;
	default:
		if (minheap_has(n))
			minheap_move(h, n, due);
		else
			minheap_add(h, n, due);
		ck_assert(minheap_has(n) && n->due_us == due);
	}
}

START_TEST(random_work_keeps_the_order)
{
	struct minheap_node nodes[NODES] = { 0 };
	struct minheap h;

	minheap_init(&h);
	for (int step = 0; step < 20000; step++) {
		random_step(&h, &nodes[sys_random_below(NODES)]);
		if (step % 50 == 0)
			check_heap(&h);
		size_t in = 0;
		int64_t least = INT64_MAX;
		for (size_t i = 0; i < NODES; i++) {
			if (!minheap_has(&nodes[i]))
				continue;
			in++;
			least = nodes[i].due_us < least ? nodes[i].due_us : least;
		}
		ck_assert_uint_eq(h.len, in);
		ck_assert(in == 0 ? minheap_first(&h) == NULL : minheap_first(&h)->due_us == least);
	}
	minheap_fini(&h);
	for (size_t i = 0; i < NODES; i++)
		ck_assert(!minheap_has(&nodes[i]));
}
END_TEST

START_TEST(taking_all_gives_ascending_times)
{
	static const int64_t due[] = { 5, INT64_MAX, -1, 0, 5, INT64_MIN, 7, 5 };
	struct minheap_node nodes[8] = { 0 };
	struct minheap h;

	minheap_init(&h);
	ck_assert_ptr_null(minheap_first(&h));
	ck_assert_ptr_null(minheap_take(&h));
	for (size_t i = 0; i < 8; i++)
		minheap_add(&h, &nodes[i], due[i]);
	int64_t before = INT64_MIN;
	for (size_t i = 0; i < 8; i++) {
		struct minheap_node *n = minheap_take(&h);
		ck_assert_ptr_nonnull(n);
		ck_assert_int_ge(n->due_us, before);
		before = n->due_us;
	}
	ck_assert_int_eq(before, INT64_MAX);
	ck_assert_ptr_null(minheap_take(&h));
	minheap_fini(&h);
}
END_TEST

START_TEST(removing_what_is_out_does_nothing)
{
	struct minheap_node a = { 0 }, b = { 0 };
	struct minheap h;

	minheap_init(&h);
	minheap_remove(&h, &a);
	minheap_add(&h, &a, 1);
	minheap_remove(&h, &b);
	ck_assert_ptr_eq(minheap_first(&h), &a);
	minheap_remove(&h, &a);
	minheap_remove(&h, &a);
	ck_assert_uint_eq(h.len, 0);
	minheap_add(&h, &a, 2);
	minheap_fini(&h);
	ck_assert(!minheap_has(&a));
	minheap_fini(&h);
}
END_TEST

static struct due_entry entry_of(int64_t due_us, uint32_t number)
{
	struct due_entry e;

	/* Every byte beside the time says which entry it is. */
	memset(&e, (int)(number % 251), sizeof(e));
	e.due_us = due_us;
	memcpy(e.id, &number, sizeof(number));
	return e;
}

static uint32_t number_of(const struct due_entry *e)
{
	uint32_t number;

	memcpy(&number, e->id, sizeof(number));
	return number;
}

START_TEST(due_entries_leave_in_order_and_whole)
{
	enum { COUNT = 20000 };
	int64_t *due = mem_calloc(COUNT, sizeof(*due));
	bool *seen = mem_calloc(COUNT, sizeof(*seen));
	struct dueheap h;
	struct due_entry e;

	dueheap_init(&h);
	for (uint32_t i = 0; i < COUNT; i++) {
		due[i] = (int64_t)sys_random_below(COUNT) - COUNT / 2;
		e = entry_of(due[i], i);
		dueheap_push(&h, &e);
	}
	ck_assert_uint_eq(h.len, COUNT);
	int64_t before = INT64_MIN;
	for (uint32_t i = 0; i < COUNT; i++) {
		const struct due_entry *first = dueheap_first(&h);
		ck_assert_ptr_nonnull(first);
		uint32_t expected = number_of(first);
		ck_assert(dueheap_pop(&h, &e));
		uint32_t number = number_of(&e);
		ck_assert_uint_eq(number, expected);
		ck_assert(number < COUNT && !seen[number]);
		seen[number] = true;
		struct due_entry whole = entry_of(due[number], number);
		ck_assert_int_eq(memcmp(&e, &whole, sizeof(e)), 0);
		ck_assert_int_ge(e.due_us, before);
		before = e.due_us;
	}
	ck_assert(!dueheap_pop(&h, &e));
	dueheap_fini(&h);
	mem_free(due);
	mem_free(seen);
}
END_TEST

START_TEST(random_pushes_and_pops_match_an_array)
{
	int64_t model[512];
	size_t len = 0;
	struct dueheap h;
	struct due_entry e;

	dueheap_init(&h);
	for (int step = 0; step < 20000; step++) {
		if (len < 512 && sys_random_below(5) < 3) {
			model[len++] = random_due();
			e = entry_of(model[len - 1], 0);
			dueheap_push(&h, &e);
		} else if (dueheap_pop(&h, &e)) {
			size_t least = 0;
			for (size_t i = 1; i < len; i++)
				least = model[i] < model[least] ? i : least;
			ck_assert_int_eq(e.due_us, model[least]);
			model[least] = model[--len];
		}
		ck_assert_uint_eq(h.len, len);
	}
	dueheap_fini(&h);
}
END_TEST

START_TEST(a_drained_heap_gives_memory_back)
{
	struct dueheap h;
	struct due_entry e;

	dueheap_init(&h);
	ck_assert_ptr_null(dueheap_first(&h));
	for (uint32_t i = 0; i < 100000; i++) {
		e = entry_of((int64_t)sys_random_below(1000), i);
		dueheap_push(&h, &e);
	}
	size_t full = h.cap;
	while (h.len > 1000)
		ck_assert(dueheap_pop(&h, &e));
	ck_assert_uint_le(h.cap, 4 * 1000);
	while (dueheap_pop(&h, &e))
		ck_assert_uint_ge(h.cap, h.len);
	ck_assert_uint_le(h.cap, 16);
	ck_assert_uint_ge(full, 100000);
	/* And it is usable again. */
	e = entry_of(1, 1);
	dueheap_push(&h, &e);
	ck_assert_uint_eq(number_of(dueheap_first(&h)), 1);
	dueheap_fini(&h);
	ck_assert_ptr_null(dueheap_first(&h));
}
END_TEST

START_TEST(the_first_entry_can_be_pushed_again)
{
	struct dueheap h;
	struct due_entry e = entry_of(3, 42);

	dueheap_init(&h);
	dueheap_push(&h, &e);
	/* Far enough to move the block several times. */
	for (int i = 0; i < 100; i++)
		dueheap_push(&h, dueheap_first(&h));
	for (int i = 0; i < 101; i++) {
		ck_assert(dueheap_pop(&h, &e));
		ck_assert(e.due_us == 3 && number_of(&e) == 42);
	}
	dueheap_fini(&h);
}
END_TEST

START_TEST(an_entry_is_small)
{
	/* Half a cache line: millions of them are held. */
	ck_assert_uint_le(sizeof(struct due_entry), 32);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("minheap");
	TCase *tc = tcase_create("minheap");

	tcase_add_checked_fixture(tc, seed_random, restore);
	unit_add(tc, random_work_keeps_the_order);
	unit_add(tc, taking_all_gives_ascending_times);
	unit_add(tc, removing_what_is_out_does_nothing);
	unit_add(tc, due_entries_leave_in_order_and_whole);
	unit_add(tc, random_pushes_and_pops_match_an_array);
	unit_add(tc, a_drained_heap_gives_memory_back);
	unit_add(tc, the_first_entry_can_be_pushed_again);
	unit_add(tc, an_entry_is_small);
	suite_add_tcase(s, tc);
	return s;
}
