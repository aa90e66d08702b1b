/*
 * minheap - the intrusive binary heap and the 4-ary array heap.
 *
 * Both move a hole instead of swapping, so that one entry is written a level. Room comes from mem:
 * how many objects there are is our own decision, never a peer's. Nothing here reads a clock; due times
 * are plain numbers, negative ones included.
 */
#include "base/minheap.h"

#include "base/mem.h"

#define MIN_CAP ((size_t)16)
#define ARITY ((size_t)4)

void minheap_init(struct minheap *h)
{
	*h = (struct minheap){ .v = NULL };
}

void minheap_fini(struct minheap *h)
{
	for (size_t i = 0; i < h->len; i++)
		h->v[i]->pos = 0;
	mem_free(h->v);
	minheap_init(h);
}

static void put_node(struct minheap *h, size_t i, struct minheap_node *n)
{
	h->v[i] = n;
	n->pos = i + 1;
}

/* Put n at the hole i or above it. */
static void node_up(struct minheap *h, size_t i, struct minheap_node *n)
{
	while (i > 0) {
		size_t parent = (i - 1) / 2;
		if (h->v[parent]->due_us <= n->due_us)
			break;
		put_node(h, i, h->v[parent]);
		i = parent;
	}
	put_node(h, i, n);
}

/* Put n at the hole i or below it. */
static void node_down(struct minheap *h, size_t i, struct minheap_node *n)
{
	for (;;) {
		size_t child = 2 * i + 1;
		if (child >= h->len)
			break;
		if (child + 1 < h->len && h->v[child + 1]->due_us < h->v[child]->due_us)
			child++;
		if (h->v[child]->due_us >= n->due_us)
			break;
		put_node(h, i, h->v[child]);
		i = child;
	}
	put_node(h, i, n);
}

static void node_settle(struct minheap *h, size_t i, struct minheap_node *n)
{
	if (i > 0 && h->v[(i - 1) / 2]->due_us > n->due_us)
		node_up(h, i, n);
	else
		node_down(h, i, n);
}

void minheap_add(struct minheap *h, struct minheap_node *n, int64_t due_us)
{
	ALWAYS(n->pos == 0);
	if (h->len == h->cap) {
		h->cap = h->cap > 0 ? h->cap * 2 : MIN_CAP;
		h->v = mem_realloc(h->v, h->cap, sizeof(struct minheap_node *));
	}
	n->due_us = due_us;
	node_up(h, h->len++, n);
}

static size_t index_of(const struct minheap *h, const struct minheap_node *n)
{
	ALWAYS(n->pos > 0 && n->pos <= h->len && h->v[n->pos - 1] == n);
	return n->pos - 1;
}

void minheap_move(struct minheap *h, struct minheap_node *n, int64_t due_us)
{
	size_t i = index_of(h, n);

	n->due_us = due_us;
	node_settle(h, i, n);
}

void minheap_remove(struct minheap *h, struct minheap_node *n)
{
	if (n->pos == 0)
		return;
	size_t i = index_of(h, n);
	struct minheap_node *last = h->v[--h->len];

	n->pos = 0;
	if (last != n)
		node_settle(h, i, last);
}

struct minheap_node *minheap_first(const struct minheap *h)
{
	return h->len > 0 ? h->v[0] : NULL;
}

struct minheap_node *minheap_take(struct minheap *h)
{
	struct minheap_node *n = minheap_first(h);

	if (n != NULL)
		minheap_remove(h, n);
	return n;
}

void dueheap_init(struct dueheap *h)
{
	*h = (struct dueheap){ .v = NULL };
}

void dueheap_fini(struct dueheap *h)
{
	mem_free(h->v);
	dueheap_init(h);
}

static void due_resize(struct dueheap *h, size_t cap)
{
	h->v = mem_realloc(h->v, cap, sizeof(struct due_entry));
	h->cap = cap;
}

void dueheap_push(struct dueheap *h, const struct due_entry *e)
{
	/* By value: e may point at the first entry, and the block may move. */
	struct due_entry entry = *e;

	if (h->len == h->cap)
		due_resize(h, h->cap > 0 ? h->cap * 2 : MIN_CAP);
	size_t i = h->len++;
	while (i > 0) {
		size_t parent = (i - 1) / ARITY;
		if (h->v[parent].due_us <= entry.due_us)
			break;
		h->v[i] = h->v[parent];
		i = parent;
	}
	h->v[i] = entry;
}

static size_t earliest_child(const struct dueheap *h, size_t first)
{
	size_t end = h->len - first < ARITY ? h->len : first + ARITY;
	size_t best = first;

	for (size_t c = first + 1; c < end; c++)
		if (h->v[c].due_us < h->v[best].due_us)
			best = c;
	return best;
}

static void due_down(struct dueheap *h, struct due_entry entry)
{
	size_t i = 0;

	for (;;) {
		size_t first = ARITY * i + 1;
		if (first >= h->len)
			break;
		size_t child = earliest_child(h, first);
		if (h->v[child].due_us >= entry.due_us)
			break;
		h->v[i] = h->v[child];
		i = child;
	}
	h->v[i] = entry;
}

bool dueheap_pop(struct dueheap *h, struct due_entry *out)
{
	if (h->len == 0)
		return false;
	*out = h->v[0];
	h->len--;
	if (h->len > 0)
		due_down(h, h->v[h->len]);
	if (h->cap > MIN_CAP && h->len <= h->cap / 4)
		due_resize(h, h->cap / 2);
	return true;
}

const struct due_entry *dueheap_first(const struct dueheap *h)
{
	return h->len > 0 ? &h->v[0] : NULL;
}
