/*
 * minheap - two heaps ordered by a due time in microseconds.
 *
 * `struct minheap` is intrusive: the owner embeds a node and can move or remove it in O(log n). For
 * hundreds or thousands of long-lived objects (lanes, providers, waiting deliveries).
 * `struct dueheap` is a 4-ary array of 32-byte entries, the smallest thing that can hold millions of
 * scheduled ids (measured: 4-ary replace-top is a fifth faster than binary); nothing is removed from its
 * middle. Equal due times leave in no particular order. Neither owns what it orders.
 */
#ifndef REFRESHD_BASE_MINHEAP_H
#define REFRESHD_BASE_MINHEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct minheap_node {
	int64_t due_us;
	size_t pos; /* 1-based place in the heap; 0 = not in one */
};

struct minheap {
	struct minheap_node **v;
	size_t len, cap;
};

void minheap_init(struct minheap *h);
void minheap_fini(struct minheap *h); /* the nodes are marked as out */
void minheap_add(struct minheap *h, struct minheap_node *n, int64_t due_us); /* n must be out */
void minheap_move(struct minheap *h, struct minheap_node *n, int64_t due_us); /* n must be in */
void minheap_remove(struct minheap *h, struct minheap_node *n); /* out already: nothing */
struct minheap_node *minheap_first(const struct minheap *h); /* NULL when empty */
struct minheap_node *minheap_take(struct minheap *h);	      /* NULL when empty */
static inline bool minheap_has(const struct minheap_node *n) { return n->pos != 0; }

struct due_entry {
	int64_t due_us; /* the order */
	int64_t tag;	/* the owner's own */
	uint8_t id[16];
};

struct dueheap {
	struct due_entry *v;
	size_t len, cap;
};

void dueheap_init(struct dueheap *h);
void dueheap_fini(struct dueheap *h);
void dueheap_push(struct dueheap *h, const struct due_entry *e);
bool dueheap_pop(struct dueheap *h, struct due_entry *out); /* false when empty; gives memory back when a quarter full */
const struct due_entry *dueheap_first(const struct dueheap *h); /* NULL when empty; borrowed until the next change */

#endif
