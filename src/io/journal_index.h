/*
 * journal_index - where each open record is: sequence number to segment and offset.
 * A hash table with open addressing; no I/O, no threads.
 */
#ifndef REFRESHD_IO_JOURNAL_INDEX_H
#define REFRESHD_IO_JOURNAL_INDEX_H

#include <stddef.h>
#include <stdint.h>

struct journal_segment;

struct journal_place {
	uint64_t seq; /* 0: no record */
	struct journal_segment *segment;
	uint64_t offset;
	uint32_t bytes; /* on disk */
};

struct journal_index {
	struct journal_place *v;
	size_t n, cap; /* cap is 0 or a power of two */
};

void journal_index_fini(struct journal_index *x);
void journal_index_put(struct journal_index *x, const struct journal_place *p); /* replaces; seq > 0 */
struct journal_place *journal_index_find(const struct journal_index *x, uint64_t seq); /* NULL when absent; until the next change */
void journal_index_remove(struct journal_index *x, uint64_t seq); /* absent: nothing */
/* All sequence numbers in ascending order; the array is the caller's to mem_free, NULL when empty. */
uint64_t *journal_index_seqs(const struct journal_index *x);

#endif
