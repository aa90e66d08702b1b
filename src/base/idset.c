/*
 * idset - open addressing at a load of at most 3/4; shrinks at 1/8. Zero marks a free place.
 */
#include "base/idset.h"

#include <string.h>

#include "base/mem.h"

#define MIN_CAP ((size_t)64)

void idset_init(struct idset *s)
{
	*s = (struct idset){ .v = NULL };
}

void idset_fini(struct idset *s)
{
	mem_free(s->v);
	idset_init(s);
}

/* Both halves count: ids from elsewhere may share either. */
static uint64_t fingerprint(const uint8_t id[16])
{
	uint64_t a, b;
	memcpy(&a, id, 8);
	memcpy(&b, id + 8, 8);
	uint64_t x = (a ^ (b << 29 | b >> 35)) * UINT64_C(0x9e3779b97f4a7c15);
	x ^= x >> 32;
	return x != 0 ? x : 1;
}

/* The place of x, or the free place where it belongs. */
static size_t place(const struct idset *s, uint64_t x)
{
	size_t i = (size_t)x & (s->cap - 1);
	while (s->v[i] != 0 && s->v[i] != x)
		i = (i + 1) & (s->cap - 1);
	return i;
}

static void resize(struct idset *s, size_t cap)
{
	struct idset old = *s;
	s->v = mem_calloc(cap, sizeof *s->v);
	s->cap = cap;
	for (size_t i = 0; i < old.cap; i++) {
		if (old.v[i] != 0)
			s->v[place(s, old.v[i])] = old.v[i];
	}
	mem_free(old.v);
}

bool idset_has(const struct idset *s, const uint8_t id[16])
{
	return s->cap != 0 && s->v[place(s, fingerprint(id))] != 0;
}

bool idset_add(struct idset *s, const uint8_t id[16])
{
	if (s->len + 1 > s->cap / 4 * 3)
		resize(s, s->cap == 0 ? MIN_CAP : s->cap * 2);
	size_t i = place(s, fingerprint(id));
	if (s->v[i] != 0)
		return false;
	s->v[i] = fingerprint(id);
	s->len++;
	return true;
}

/* Later members of the run move up, unless that would put them before their own first place. */
static void close_gap(struct idset *s, size_t hole)
{
	size_t mask = s->cap - 1;
	for (size_t i = (hole + 1) & mask; s->v[i] != 0; i = (i + 1) & mask) {
		size_t home = (size_t)s->v[i] & mask;
		if (((i - home) & mask) >= ((i - hole) & mask)) {
			s->v[hole] = s->v[i];
			s->v[i] = 0;
			hole = i;
		}
	}
}

bool idset_remove(struct idset *s, const uint8_t id[16])
{
	if (s->cap == 0)
		return false;
	size_t i = place(s, fingerprint(id));
	if (s->v[i] == 0)
		return false;
	s->v[i] = 0;
	s->len--;
	close_gap(s, i);
	if (s->cap > MIN_CAP && s->len < s->cap / 8)
		resize(s, s->cap / 2);
	return true;
}
