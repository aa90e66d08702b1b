/*
 * sys: the real clock and randomness within what can be said about them, and the virtual pair exactly.
 *
 * The two system calls below are this program's own, so that the clock asked for is seen (on a machine that
 * never slept two of them agree) and the kernel can be made to interrupt and to give too little.
 */
#include "unit/unit.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/sys.h"

static clockid_t asked;
static unsigned random_calls;
static bool random_is_lame; /* every other call interrupted, the rest three bytes at most */

int clock_gettime(clockid_t id, struct timespec *ts)
{
	asked = id;
	return (int)syscall(SYS_clock_gettime, id, ts);
}

ssize_t getrandom(void *p, size_t n, unsigned flags)
{
	random_calls++;
	if (random_is_lame && random_calls % 2 == 1) {
		errno = EINTR;
		return -1;
	}
	return syscall(SYS_getrandom, p, random_is_lame && n > 3 ? 3 : n, flags);
}

static void restore(void)
{
	sys_set(NULL);
}

static int64_t clock_us(clockid_t id)
{
	struct timespec ts;

	ck_ok(clock_gettime(id, &ts));
	return (int64_t)ts.tv_sec * US_PER_S + ts.tv_nsec / 1000;
}

START_TEST(real_clocks_are_the_right_ones)
{
	int64_t before = clock_us(CLOCK_REALTIME);
	int64_t wall = sys_wall_us();
	ck_assert_int_eq(asked, CLOCK_REALTIME);
	ck_assert_int_le(before, wall);
	ck_assert_int_le(wall, clock_us(CLOCK_REALTIME));

	before = clock_us(CLOCK_BOOTTIME);
	int64_t mono = sys_mono_us();
	ck_assert_int_eq(asked, CLOCK_BOOTTIME);
	ck_assert_int_le(before, mono);
	ck_assert_int_le(mono, clock_us(CLOCK_BOOTTIME));
}
END_TEST

START_TEST(a_wall_clock_counts_while_it_agrees_with_the_trusted_one)
{
	static const int64_t offs[] = { 0, US_PER_S, -US_PER_S, 3600 * US_PER_S, -3600 * US_PER_S, 86400 * US_PER_S };

	for (size_t i = 0; i < sizeof offs / sizeof *offs; i++) {
		bool counts = offs[i] > -SYS_CLOCK_TOLERANCE_US && offs[i] < SYS_CLOCK_TOLERANCE_US;
		sys_wall_trust(clock_us(CLOCK_REALTIME) - offs[i], clock_us(CLOCK_BOOTTIME));
		int64_t off = sys_wall_off(), by = sys_wall_us() - clock_us(CLOCK_REALTIME) + (counts ? 0 : offs[i]);
		ck_assert_int_lt(counts ? llabs(off) : llabs(off - offs[i]), counts ? 1 : US_PER_S);
		ck_assert_int_lt(llabs(by), US_PER_S);
	}
}
END_TEST

START_TEST(real_random_fills_every_size)
{
	static const size_t sizes[] = {1, 7, 16, 255, 256, 257, 512, 513, 5000};
	static uint8_t bytes[5002];

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		size_t n = sizes[i];
		uint8_t seen[5000] = {0};
		memset(bytes, 0xa5, sizeof(bytes));
		/* Every byte has to change at some time: 64 draws leave one alone with 2^-512. */
		for (int k = 0; k < 64; k++) {
			sys_random(bytes + 1, n);
			for (size_t j = 0; j < n; j++)
				seen[j] |= (uint8_t)(bytes[j + 1] ^ 0xa5);
		}
		for (size_t j = 0; j < n; j++)
			ck_assert_uint_ne(seen[j], 0);
		ck_assert_uint_eq(bytes[0], 0xa5);
		ck_assert_uint_eq(bytes[n + 1], 0xa5);
	}
	sys_random(NULL, 0);
}
END_TEST

START_TEST(real_random_goes_on_after_a_signal)
{
	uint8_t bytes[300], seen[300] = {0};

	random_is_lame = true;
	random_calls = 0;
	for (int k = 0; k < 64; k++) {
		memset(bytes, 0xa5, sizeof(bytes));
		sys_random(bytes, sizeof(bytes));
		for (size_t j = 0; j < sizeof(bytes); j++)
			seen[j] |= (uint8_t)(bytes[j] ^ 0xa5);
	}
	random_is_lame = false;
	ck_assert_uint_eq(random_calls, 64 * 2 * 100);
	for (size_t j = 0; j < sizeof(bytes); j++)
		ck_assert_uint_ne(seen[j], 0);
}
END_TEST

START_TEST(small_draws_share_a_system_call)
{
	uint8_t id[16];

	random_calls = 0;
	for (int i = 0; i < 320; i++)
		sys_random(id, sizeof(id));
	ck_assert_uint_ge(random_calls, 10);
	ck_assert_uint_le(random_calls, 11);
}
END_TEST

START_TEST(real_random_does_not_repeat)
{
	static uint8_t drawn[1000][16];

	for (size_t i = 0; i < 1000; i++) {
		sys_random(drawn[i], 16);
		for (size_t k = 0; k < i; k++)
			ck_assert_int_ne(memcmp(drawn[i], drawn[k], 16), 0);
	}
}
END_TEST

START_TEST(virtual_clock_moves_only_when_told)
{
	sys_set(sys_virtual(1));
	ck_assert_int_eq(sys_wall_us(), SYS_VIRTUAL_WALL_US);
	ck_assert_int_eq(sys_mono_us(), SYS_VIRTUAL_MONO_US);
	sys_virtual_advance(90 * US_PER_S);
	ck_assert_int_eq(sys_wall_us(), SYS_VIRTUAL_WALL_US + 90 * US_PER_S);
	ck_assert_int_eq(sys_mono_us(), SYS_VIRTUAL_MONO_US + 90 * US_PER_S);
	sys_virtual_advance(0);
	/* The wall clock may jump while the other goes on. */
	sys_virtual_set(5, sys_mono_us() + 1);
	ck_assert_int_eq(sys_wall_us(), 5);
	ck_assert_int_eq(sys_mono_us(), SYS_VIRTUAL_MONO_US + 90 * US_PER_S + 1);
	sys_set(sys_virtual(1));
	ck_assert_int_eq(sys_wall_us(), SYS_VIRTUAL_WALL_US);
}
END_TEST

START_TEST(virtual_random_is_repeatable)
{
	uint8_t a[100], b[100], c[100];

	sys_set(sys_virtual(42));
	sys_random(a, sizeof(a));
	sys_set(sys_virtual(42));
	sys_random(b, sizeof(b));
	ck_assert_mem_eq(a, b, sizeof(a));
	sys_random(b, sizeof(b));
	ck_assert_mem_ne(a, b, sizeof(a));
	sys_set(sys_virtual(43));
	sys_random(c, sizeof(c));
	ck_assert_mem_ne(a, c, sizeof(a));
	sys_random(NULL, 0);
}
END_TEST

START_TEST(virtual_random_is_splitmix64)
{
	/* The reference implementation's first outputs for seed 1234567. */
	static const uint64_t expected[] = {UINT64_C(6457827717110365317), UINT64_C(3203168211198807973),
		UINT64_C(9817491932198370423), UINT64_C(4593380528125082431)};
	uint8_t bytes[8];

	sys_set(sys_virtual(1234567));
	for (size_t i = 0; i < 4; i++) {
		uint64_t v = 0;
		sys_random(bytes, sizeof(bytes));
		for (size_t k = 8; k-- > 0;)
			v = v << 8 | bytes[k];
		ck_assert_uint_eq(v, expected[i]);
	}
}
END_TEST

START_TEST(restoring_gives_the_real_clock)
{
	sys_set(sys_virtual(1));
	sys_virtual_set(0, 0);
	ck_assert_int_eq(sys_wall_us(), 0);
	sys_set(NULL);
	ck_assert_int_gt(sys_wall_us(), SYS_VIRTUAL_WALL_US / 2);
}
END_TEST

START_TEST(random_below_is_uniform)
{
	enum { SIDES = 6, DRAWS = 60000 };
	unsigned count[SIDES] = {0};

	sys_set(sys_virtual(7));
	for (int i = 0; i < DRAWS; i++) {
		uint64_t v = sys_random_below(SIDES);
		ck_assert_uint_lt(v, SIDES);
		count[v]++;
	}
	/* Mean 10000, standard deviation 91. */
	for (int i = 0; i < SIDES; i++) {
		ck_assert_uint_gt(count[i], 9500);
		ck_assert_uint_lt(count[i], 10500);
	}
	for (int i = 0; i < 100; i++)
		ck_assert_uint_eq(sys_random_below(1), 0);
	for (int i = 0; i < 100; i++)
		ck_assert_uint_lt(sys_random_below(UINT64_MAX), UINT64_MAX);
}
END_TEST

static unsigned draws;

/* 2^64 mod (2^63 + 1) = 2^63 - 1: everything below has to be drawn again. */
static void scripted_random(void *p, size_t n)
{
	static const uint64_t values[] = {0, (UINT64_C(1) << 63) - 2, (UINT64_C(1) << 63) - 1};

	ck_assert_uint_eq(n, sizeof(uint64_t));
	memcpy(p, &values[draws], n);
	draws++;
}

START_TEST(random_below_draws_again_for_the_uneven_rest)
{
	const struct sys_ops ops = {.random = scripted_random};

	draws = 0;
	sys_set(&ops);
	ck_assert_uint_eq(sys_random_below((UINT64_C(1) << 63) + 1), (UINT64_C(1) << 63) - 1);
	ck_assert_uint_eq(draws, 3);
}
END_TEST

static uint8_t constant;

static void constant_random(void *p, size_t n)
{
	memset(p, constant, n);
}

START_TEST(random_unit_stays_below_one)
{
	const struct sys_ops ops = {.random = constant_random};
	double sum = 0;

	sys_set(&ops);
	constant = 0x00;
	ck_assert(sys_random_unit() == 0.0);
	constant = 0xff;
	ck_assert(sys_random_unit() < 1.0);
	ck_assert(sys_random_unit() == 1.0 - 0x1.0p-53);

	sys_set(sys_virtual(9));
	for (int i = 0; i < 10000; i++) {
		double v = sys_random_unit();
		ck_assert(v >= 0 && v < 1);
		sum += v;
	}
	ck_assert(sum > 4800 && sum < 5200);
}
END_TEST

START_TEST(uuid4_has_version_and_variant)
{
	const struct sys_ops ops = {.random = constant_random};
	uint8_t id[16], expected[16];

	sys_set(&ops);
	constant = 0xff;
	sys_uuid4(id);
	memset(expected, 0xff, 16);
	expected[6] = 0x4f;
	expected[8] = 0xbf;
	ck_assert_mem_eq(id, expected, 16);
	constant = 0x00;
	sys_uuid4(id);
	memset(expected, 0, 16);
	expected[6] = 0x40;
	expected[8] = 0x80;
	ck_assert_mem_eq(id, expected, 16);
}
END_TEST

START_TEST(uuid7_begins_with_the_time)
{
	static const uint8_t start[6] = { 0x01, 0x7f, 0x22, 0xe2, 0x79, 0xb0 };
	uint8_t id[16], next[16];

	sys_set(sys_virtual(1));
	sys_virtual_set(INT64_C(1645557742000123), 0); /* the example of RFC 9562, appendix A.6 */
	sys_uuid7(id);
	ck_assert_mem_eq(id, start, 6);
	ck_assert_int_eq(id[6] >> 4, 7);
	ck_assert_int_eq(id[8] >> 6, 2);
	sys_virtual_advance(US_PER_MS);
	sys_uuid7(next);
	ck_assert_int_lt(memcmp(id, next, 16), 0);
	sys_uuid7_first(sys_wall_us(), id);
	ck_assert_int_lt(memcmp(id, next, 16), 0);
	sys_uuid7_first(sys_wall_us() + US_PER_MS, id);
	ck_assert_int_gt(memcmp(id, next, 16), 0);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("sys");
	TCase *tc = tcase_create("sys");

	tcase_add_checked_fixture(tc, NULL, restore);
	unit_add(tc, real_clocks_are_the_right_ones);
	unit_add(tc, a_wall_clock_counts_while_it_agrees_with_the_trusted_one);
	unit_add(tc, real_random_fills_every_size);
	unit_add(tc, real_random_goes_on_after_a_signal);
	unit_add(tc, small_draws_share_a_system_call);
	unit_add(tc, real_random_does_not_repeat);
	unit_add(tc, virtual_clock_moves_only_when_told);
	unit_add(tc, virtual_random_is_repeatable);
	unit_add(tc, virtual_random_is_splitmix64);
	unit_add(tc, restoring_gives_the_real_clock);
	unit_add(tc, random_below_is_uniform);
	unit_add(tc, random_below_draws_again_for_the_uneven_rest);
	unit_add(tc, random_unit_stays_below_one);
	unit_add(tc, uuid4_has_version_and_variant);
	unit_add(tc, uuid7_begins_with_the_time);
	suite_add_tcase(s, tc);
	return s;
}
