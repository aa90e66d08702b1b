/*
 * sys - the one seam to clock and randomness.
 *
 * Everything that asks the time or draws a random number asks here, so that a test can run hours in
 * milliseconds and repeat a failure from its seed. Durable times are wall-clock, waits are on the
 * boot-time clock (it goes on during suspend).
 */
#ifndef REFRESHD_BASE_SYS_H
#define REFRESHD_BASE_SYS_H

#include <stddef.h>
#include <stdint.h>

#define US_PER_MS INT64_C(1000)
#define US_PER_S INT64_C(1000000)

struct sys_ops {
	int64_t (*wall_us)(void);		/* CLOCK_REALTIME */
	int64_t (*mono_us)(void);		/* CLOCK_BOOTTIME */
	void (*random)(void *p, size_t n);	/* cryptographically strong, cannot fail */
};

int64_t sys_wall_us(void);
int64_t sys_mono_us(void);
/*
 * A clock that all who share something go by said `wall_us` when ours for waits said `mono_us`. From then on the wall clock of this
 * machine counts only while it agrees to within SYS_CLOCK_TOLERANCE_US; while it does not, sys_wall_us follows the other one.
 */
#define SYS_CLOCK_TOLERANCE_US (2 * US_PER_S)
void sys_wall_trust(int64_t wall_us, int64_t mono_us);
int64_t sys_wall_off(void); /* by how much the machine's clock is ahead of the trusted one; 0 while it counts */
void sys_random(void *p, size_t n);
uint64_t sys_random_below(uint64_t n); /* uniform in [0, n); n > 0 */
double sys_random_unit(void);	       /* uniform in [0, 1) */
void sys_uuid4(uint8_t out[16]);
/* Sorts by time, to the millisecond (RFC 9562): the index of a table that only grows is written at its end. */
void sys_uuid7(uint8_t out[16]);
void sys_uuid7_first(int64_t wall_us, uint8_t out[16]); /* not after any that is made from then on */

/* Replace the seam; NULL restores the real one. For tests and the simulator only. */
void sys_set(const struct sys_ops *ops);

/*
 * A ready virtual clock and a seeded generator for tests: sys_set(sys_virtual(seed)). Each call starts both
 * anew; the clocks stand still until they are moved.
 */
#define SYS_VIRTUAL_WALL_US (INT64_C(1767225600) * US_PER_S) /* 2026-01-01T00:00:00Z */
#define SYS_VIRTUAL_MONO_US (INT64_C(1000) * US_PER_S)
const struct sys_ops *sys_virtual(uint64_t seed);
void sys_virtual_set(int64_t wall_us, int64_t mono_us);
void sys_virtual_advance(int64_t us); /* both clocks; us >= 0 */

#endif
