/*
 * slots - who looks after which part of the table.
 *
 * Every connection lies in one of 1024 slots (conn_slot_of), and the slots are divided among the daemons that are alive.
 * A pure function of their names: daemons that see the same names agree without talking to each other.
 */
#ifndef REFRESHD_MODEL_SLOTS_H
#define REFRESHD_MODEL_SLOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLOTS_N 1024
#define SLOTS_BYTES (SLOTS_N / 8)

struct slots {
	uint8_t bits[SLOTS_BYTES]; /* slot s is bit s % 8 of byte s / 8, as get_bit() of Postgres counts */
	unsigned n;
};

void slots_none(struct slots *s);
void slots_all(struct slots *s);
void slots_add(struct slots *s, unsigned slot);
bool slots_has(const struct slots *s, unsigned slot);
bool slots_same(const struct slots *a, const struct slots *b);
void slots_merge(struct slots *into, const struct slots *more);
/* What `a` has and `b` has not. `out` may be either. */
void slots_minus(const struct slots *a, const struct slots *b, struct slots *out);

/* The part of names[self] among n >= 1 different names, in any order. *rank, when asked for, is its place in the order of the
 * names (0..n-1), by which remainders are shared out. */
void slots_divide(const char *const *names, size_t n, size_t self, struct slots *out, size_t *rank);

#endif
