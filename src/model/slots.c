/*
 * slots - rendezvous hashing with quotas.
 *
 * Each (name, slot) has a hash; the highest pair goes first, and a slot goes to the first name that has room left. Plain
 * rendezvous hashing (no quotas) moves the fewest slots when a daemon comes or goes, but of twenty daemons one would carry
 * a third more than its share; the quotas cost a few slots more that move (measured: 1.0 times the fewest for 3 daemons, 1.5 for 20).
 * Must not depend on the order of the names, on byte order, or on anything that two versions could see differently.
 */
#include "model/slots.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

void slots_none(struct slots *s)
{
	memset(s, 0, sizeof *s);
}

void slots_all(struct slots *s)
{
	memset(s->bits, 0xff, sizeof s->bits);
	s->n = SLOTS_N;
}

bool slots_has(const struct slots *s, unsigned slot)
{
	return slot < SLOTS_N && (s->bits[slot / 8] >> (slot % 8) & 1) != 0;
}

void slots_add(struct slots *s, unsigned slot)
{
	if (slot >= SLOTS_N || slots_has(s, slot))
		return;
	s->bits[slot / 8] |= (uint8_t)(1u << (slot % 8));
	s->n++;
}

bool slots_same(const struct slots *a, const struct slots *b)
{
	return memcmp(a->bits, b->bits, sizeof a->bits) == 0;
}

static void count(struct slots *s)
{
	s->n = 0;
	for (size_t i = 0; i < SLOTS_BYTES; i++)
		s->n += (unsigned)__builtin_popcount(s->bits[i]);
}

void slots_merge(struct slots *into, const struct slots *more)
{
	for (size_t i = 0; i < SLOTS_BYTES; i++)
		into->bits[i] |= more->bits[i];
	count(into);
}

void slots_minus(const struct slots *a, const struct slots *b, struct slots *out)
{
	for (size_t i = 0; i < SLOTS_BYTES; i++)
		out->bits[i] = (uint8_t)(a->bits[i] & ~b->bits[i]);
	count(out);
}

/* ---------------------------------------------------------------- dividing */

struct pair {
	uint64_t hash;
	uint32_t rank;
	uint32_t slot;
};

/* The finalizer of splitmix64. */
static uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t hash_name(const char *name)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);
	for (const char *p = name; *p != '\0'; p++)
		h = (h ^ (uint8_t)*p) * UINT64_C(0x100000001b3);
	return h;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Highest hash first; equal ones in an order that everybody knows. */
static int by_hash(const void *a, const void *b)
{
	const struct pair *x = a, *y = b;
	if (x->hash != y->hash)
		return x->hash > y->hash ? -1 : 1;
	if (x->slot != y->slot)
		return x->slot < y->slot ? -1 : 1;
	return x->rank < y->rank ? -1 : x->rank > y->rank;
}

static struct pair *all_pairs(const char *const *sorted, size_t n)
{
	struct pair *v = mem_calloc(n * SLOTS_N, sizeof *v), *p = v;
	for (size_t i = 0; i < n; i++) {
		uint64_t h = hash_name(sorted[i]);
		for (unsigned slot = 0; slot < SLOTS_N; slot++, p++)
			*p = (struct pair){ .hash = mix(h ^ mix(slot)), .rank = (uint32_t)i, .slot = slot };
	}
	qsort(v, n * SLOTS_N, sizeof *v, by_hash);
	return v;
}

void slots_divide(const char *const *names, size_t n, size_t self, struct slots *out, size_t *rank)
{
	ALWAYS(n >= 1 && self < n);
	const char **sorted = mem_calloc(n, sizeof *sorted);
	memcpy(sorted, names, n * sizeof *sorted);
	qsort(sorted, n, sizeof *sorted, by_name);
	size_t me = 0;
	while (strcmp(sorted[me], names[self]) != 0)
		me++;
	struct pair *v = all_pairs(sorted, n);
	unsigned *room = mem_calloc(n, sizeof *room);
	for (size_t i = 0; i < n; i++)
		room[i] = (unsigned)(SLOTS_N / n + (i < SLOTS_N % n));
	struct slots taken;
	slots_none(&taken);
	slots_none(out);
	for (size_t i = 0; i < n * SLOTS_N && taken.n < SLOTS_N; i++) {
		const struct pair *p = &v[i];
		if (room[p->rank] == 0 || slots_has(&taken, p->slot))
			continue;
		room[p->rank]--;
		slots_add(&taken, p->slot);
		if (p->rank == me)
			slots_add(out, p->slot);
	}
	if (rank != NULL)
		*rank = me;
	mem_free(room);
	mem_free(v);
	mem_free(sorted);
}
