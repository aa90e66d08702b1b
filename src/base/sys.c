/*
 * sys - clock and randomness: the real ones, and a virtual pair for tests.
 *
 * Randomness comes from getrandom(2) through a small pool, as one jitter value or request id per
 * refresh is not worth a system call. Bytes are wiped from the pool when they are handed out. The
 * virtual generator is reproducible and thus no source of secrets.
 */
#include "base/sys.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/bytes.h"
#include "base/mem.h"

#define POOL_BYTES 512

static int64_t clock_us(clockid_t id)
{
	struct timespec ts;

	ALWAYS(clock_gettime(id, &ts) == 0);
	return (int64_t)ts.tv_sec * US_PER_S + ts.tv_nsec / 1000;
}

/* The trusted clock minus CLOCK_BOOTTIME. Atomic: the journal's thread may ask the time as well. */
#define NOBODY_TRUSTED INT64_MIN
static _Atomic int64_t trusted_us = NOBODY_TRUSTED;

static int64_t off_us(int64_t own_us, int64_t *told_us)
{
	int64_t offset = trusted_us;
	if (offset == NOBODY_TRUSTED)
		return 0;
	*told_us = clock_us(CLOCK_BOOTTIME) + offset;
	int64_t off = own_us - *told_us;
	return off > SYS_CLOCK_TOLERANCE_US || off < -SYS_CLOCK_TOLERANCE_US ? off : 0;
}

static int64_t real_wall_us(void)
{
	int64_t own = clock_us(CLOCK_REALTIME), told = 0;
	return off_us(own, &told) == 0 ? own : told;
}

void sys_wall_trust(int64_t wall_us, int64_t mono_us)
{
	trusted_us = wall_us - mono_us;
}

int64_t sys_wall_off(void)
{
	int64_t told;
	return off_us(clock_us(CLOCK_REALTIME), &told);
}

static int64_t real_mono_us(void)
{
	return clock_us(CLOCK_BOOTTIME);
}

static void fill_random(uint8_t *p, size_t n)
{
	while (n > 0) {
		ssize_t got = getrandom(p, n, 0);
		if (got < 0) {
			/* Anything but a signal means a kernel without getrandom: no safe way on. */
			ALWAYS(errno == EINTR);
			continue;
		}
		p += got;
		n -= (size_t)got;
	}
}

static void real_random(void *p, size_t n)
{
	static _Thread_local uint8_t pool[POOL_BYTES];
	static _Thread_local size_t left;

	if (n > POOL_BYTES / 2) {
		fill_random(p, n);
		return;
	}
	if (n > left) {
		fill_random(pool, POOL_BYTES);
		left = POOL_BYTES;
	}
	if (n == 0)
		return;
	left -= n;
	memcpy(p, pool + left, n);
	mem_wipe(pool + left, n);
}

static const struct sys_ops real_ops = {
	.wall_us = real_wall_us,
	.mono_us = real_mono_us,
	.random = real_random,
};

static const struct sys_ops *current = &real_ops;

void sys_set(const struct sys_ops *ops)
{
	current = ops != NULL ? ops : &real_ops;
}

int64_t sys_wall_us(void)
{
	return current->wall_us();
}

int64_t sys_mono_us(void)
{
	return current->mono_us();
}

void sys_random(void *p, size_t n)
{
	current->random(p, n);
}

static uint64_t random_u64(void)
{
	uint64_t v;

	sys_random(&v, sizeof(v));
	return v;
}

uint64_t sys_random_below(uint64_t n)
{
	uint64_t v;

	ALWAYS(n > 0);
	/* The lowest 2^64 mod n values would make the small results likelier. */
	uint64_t skip = (0 - n) % n;
	do
		v = random_u64();
	while (v < skip);
	return v % n;
}

double sys_random_unit(void)
{
	return (double)(random_u64() >> 11) * 0x1.0p-53;
}

void sys_uuid4(uint8_t out[16])
{
	sys_random(out, 16);
	out[6] = (uint8_t)((out[6] & 0x0f) | 0x40);
	out[8] = (uint8_t)((out[8] & 0x3f) | 0x80);
}

static void put_ms(int64_t wall_us, uint8_t out[6])
{
	uint64_t ms = wall_us > 0 ? (uint64_t)(wall_us / US_PER_MS) : 0;
	uint8_t whole[8];
	bytes_put_be64(whole, ms << 16);
	memcpy(out, whole, 6);
}

void sys_uuid7(uint8_t out[16])
{
	sys_uuid4(out);
	put_ms(sys_wall_us(), out);
	out[6] = (uint8_t)((out[6] & 0x0f) | 0x70);
}

void sys_uuid7_first(int64_t wall_us, uint8_t out[16])
{
	memset(out, 0, 16);
	put_ms(wall_us, out);
}

static struct {
	int64_t wall_us;
	int64_t mono_us;
	uint64_t state;
} virt;

static int64_t virtual_wall_us(void)
{
	return virt.wall_us;
}

static int64_t virtual_mono_us(void)
{
	return virt.mono_us;
}

/* SplitMix64 (Steele, Lea, Flood 2014): every seed is a good seed. */
static uint64_t virtual_next(void)
{
	uint64_t z = virt.state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static void virtual_random(void *p, size_t n)
{
	uint8_t *out = p;
	uint64_t word = 0;

	for (size_t i = 0; i < n; i++) {
		if (i % sizeof(word) == 0)
			word = virtual_next();
		out[i] = (uint8_t)word;
		word >>= 8;
	}
}

const struct sys_ops *sys_virtual(uint64_t seed)
{
	static const struct sys_ops ops = {
		.wall_us = virtual_wall_us,
		.mono_us = virtual_mono_us,
		.random = virtual_random,
	};

	virt.state = seed;
	sys_virtual_set(SYS_VIRTUAL_WALL_US, SYS_VIRTUAL_MONO_US);
	return &ops;
}

void sys_virtual_set(int64_t wall_us, int64_t mono_us)
{
	virt.wall_us = wall_us;
	virt.mono_us = mono_us;
}

void sys_virtual_advance(int64_t us)
{
	ALWAYS(us >= 0);
	ALWAYS(!__builtin_add_overflow(virt.wall_us, us, &virt.wall_us));
	ALWAYS(!__builtin_add_overflow(virt.mono_us, us, &virt.mono_us));
}
