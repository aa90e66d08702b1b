/*
 * journal_index - a linear-probing hash table from sequence number to place. Removal shifts the run back
 * instead of leaving marks, so that years of put and remove do not slow it down. It never shrinks below the
 * largest number of records that were open at once: that is bounded by the journal's size.
 */
#include "io/journal_index.h"

#include <stdlib.h>

#include "base/mem.h"

#define MIN_CAP 64u

static size_t home(const struct journal_index *x, uint64_t seq)
{
	return (size_t)((seq * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (x->cap - 1);
}

void journal_index_fini(struct journal_index *x)
{
	mem_free(x->v);
	*x = (struct journal_index){ .v = NULL, .n = 0, .cap = 0 };
}

/* The slot that holds seq, or the free one where it belongs. */
static struct journal_place *slot_of(const struct journal_index *x, uint64_t seq)
{
	size_t i = home(x, seq);
	while (x->v[i].seq != 0 && x->v[i].seq != seq)
		i = (i + 1) & (x->cap - 1);
	return &x->v[i];
}

static void grow(struct journal_index *x)
{
	struct journal_index bigger = { .v = NULL, .n = x->n, .cap = x->cap ? x->cap * 2 : MIN_CAP };
	bigger.v = mem_calloc(bigger.cap, sizeof(*bigger.v));
	for (size_t i = 0; i < x->cap; i++)
		if (x->v[i].seq != 0)
			*slot_of(&bigger, x->v[i].seq) = x->v[i];
	mem_free(x->v);
	*x = bigger;
}

void journal_index_put(struct journal_index *x, const struct journal_place *p)
{
	ALWAYS(p->seq != 0);
	if (x->n >= x->cap / 4 * 3)
		grow(x);
	struct journal_place *s = slot_of(x, p->seq);
	if (s->seq == 0)
		x->n++;
	*s = *p;
}

struct journal_place *journal_index_find(const struct journal_index *x, uint64_t seq)
{
	if (x->n == 0 || seq == 0)
		return NULL;
	struct journal_place *s = slot_of(x, seq);
	return s->seq == seq ? s : NULL;
}

void journal_index_remove(struct journal_index *x, uint64_t seq)
{
	struct journal_place *s = journal_index_find(x, seq);
	if (s == NULL)
		return;
	size_t mask = x->cap - 1, hole = (size_t)(s - x->v);
	for (size_t i = (hole + 1) & mask; x->v[i].seq != 0; i = (i + 1) & mask) {
		/* An entry may move into the hole unless its home lies behind it. */
		if (((i - home(x, x->v[i].seq)) & mask) >= ((i - hole) & mask)) {
			x->v[hole] = x->v[i];
			hole = i;
		}
	}
	x->v[hole] = (struct journal_place){ .seq = 0 };
	x->n--;
}

static int seq_order(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

uint64_t *journal_index_seqs(const struct journal_index *x)
{
	if (x->n == 0)
		return NULL;
	uint64_t *v = mem_calloc(x->n, sizeof(*v));
	size_t n = 0;
	for (size_t i = 0; i < x->cap; i++)
		if (x->v[i].seq != 0)
			v[n++] = x->v[i].seq;
	qsort(v, n, sizeof(*v), seq_order);
	return v;
}
