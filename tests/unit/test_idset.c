/* idset against a plain list: adding, finding, removing in any order. */
#include "unit/unit.h"

#include <stdlib.h>
#include <string.h>

#include "base/idset.h"
#include "base/sys.h"

static void make_id(uint8_t id[16], uint32_t n)
{
	memset(id, 0, 16);
	memcpy(id, &n, sizeof n);
	id[15] = (uint8_t)(n * 7);
}

START_TEST(an_empty_set_has_nothing)
{
	struct idset s;
	uint8_t id[16] = { 1 };
	idset_init(&s);
	ck_assert(!idset_has(&s, id));
	ck_assert(!idset_remove(&s, id));
	idset_fini(&s);
}
END_TEST

START_TEST(an_id_is_there_once)
{
	struct idset s;
	uint8_t id[16] = { 0 };
	idset_init(&s);
	ck_assert(idset_add(&s, id));
	ck_assert(!idset_add(&s, id));
	ck_assert_uint_eq(s.len, 1);
	ck_assert(idset_has(&s, id));
	ck_assert(idset_remove(&s, id));
	ck_assert(!idset_has(&s, id));
	idset_fini(&s);
}
END_TEST

START_TEST(random_work_agrees_with_a_plain_list)
{
	enum { N = 20000 };
	static bool in[N];
	struct idset s;
	uint64_t seed = 20260101;
	size_t count = 0;
	sys_set(sys_virtual(seed));
	idset_init(&s);
	memset(in, 0, sizeof in);
	for (int i = 0; i < 400000; i++) {
		uint32_t n = (uint32_t)sys_random_below(N);
		uint8_t id[16];
		make_id(id, n);
		/* Grow in the first half, shrink in the second. */
		if (sys_random_below(10) < (i < 200000 ? 7u : 2u)) {
			ck_assert_msg(idset_add(&s, id) == !in[n], "seed %lu step %d", (unsigned long)seed, i);
			count += !in[n];
			in[n] = true;
		} else {
			ck_assert_msg(idset_remove(&s, id) == in[n], "seed %lu step %d", (unsigned long)seed, i);
			count -= in[n];
			in[n] = false;
		}
		ck_assert_uint_eq(s.len, count);
	}
	for (uint32_t n = 0; n < N; n++) {
		uint8_t id[16];
		make_id(id, n);
		ck_assert(idset_has(&s, id) == in[n]);
	}
	idset_fini(&s);
	sys_set(NULL);
}
END_TEST

START_TEST(memory_follows_the_content)
{
	struct idset s;
	uint8_t id[16];
	idset_init(&s);
	for (uint32_t n = 0; n < 100000; n++) {
		make_id(id, n);
		ck_assert(idset_add(&s, id));
	}
	size_t large = s.cap;
	for (uint32_t n = 0; n < 100000; n++) {
		make_id(id, n);
		ck_assert(idset_remove(&s, id));
	}
	ck_assert_uint_eq(s.len, 0);
	ck_assert_uint_lt(s.cap, large / 100);
	idset_fini(&s);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("idset");
	TCase *t = tcase_create("idset");
	unit_add(t, an_empty_set_has_nothing);
	unit_add(t, an_id_is_there_once);
	unit_add(t, random_work_agrees_with_a_plain_list);
	unit_add(t, memory_follows_the_content);
	suite_add_tcase(s, t);
	return s;
}
