/*
 * pgbackoff - the pause before the next attempt to connect: 100 ms doubling to 10 s, jittered.
 */
#ifndef REFRESHD_IO_PGBACKOFF_H
#define REFRESHD_IO_PGBACKOFF_H

#include <stdint.h>

#include "base/sys.h"

#define PGBACKOFF_FIRST_US (100 * US_PER_MS)
#define PGBACKOFF_MAX_US (4 * US_PER_S)

/* Doubles *step (0: the first) and returns a pause between half of it and all of it. */
static inline int64_t pgbackoff_next(int64_t *step)
{
	if (*step == 0)
		*step = PGBACKOFF_FIRST_US;
	else
		*step = *step * 2 < PGBACKOFF_MAX_US ? *step * 2 : PGBACKOFF_MAX_US;
	return *step / 2 + (int64_t)sys_random_below((uint64_t)(*step / 2) + 1);
}

#endif
