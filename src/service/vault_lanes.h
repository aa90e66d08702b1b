/*
 * vault_lanes - a long import over two connections: while the database works at one chunk, the next is sealed and on its way.
 *
 * Chunks are committed in the order in which they came, so that what is committed is always the beginning of the input, and of a key that
 * comes again the last line wins. Each is a transaction of its own.
 */
#ifndef REFRESHD_SERVICE_VAULT_LANES_H
#define REFRESHD_SERVICE_VAULT_LANES_H

#include "service/vault_import.h"

#define VAULT_LANES_CHUNK 4000
#define VAULT_LANES_CHUNK_BYTES ((size_t)16 * 1024 * 1024) /* three chunks are in memory at most */

struct vault_lanes_chunk { /* owns its imports; the caller fills in one after the other */
	struct import *imports; /* VAULT_LANES_CHUNK of them */
	struct vault_item *items;
	size_t n, bytes;
	uint64_t last_line; /* of the input, to which it reaches */
};
void vault_lanes_chunk_init(struct vault_lanes_chunk *c);
void vault_lanes_chunk_empty(struct vault_lanes_chunk *c); /* wipes */
void vault_lanes_chunk_fini(struct vault_lanes_chunk *c);

struct vault_lanes;
/* Connects. `c` is borrowed, and must not change meanwhile. */
int vault_lanes_new(const struct conf *c, struct vault_lanes **out, struct fault *f) MUST_USE;
void vault_lanes_free(struct vault_lanes *l); /* waits as vault_lanes_finish */

/* Takes what is in `c` and leaves it empty; waits until there is a lane for it. A fault may be of an earlier chunk: none that was sent
 * after that one is written. */
int vault_lanes_send(struct vault_lanes *l, struct vault_lanes_chunk *c, struct fault *f) MUST_USE;
/* Waits until everything that was sent is committed, or something failed. */
int vault_lanes_finish(struct vault_lanes *l, struct fault *f) MUST_USE;
/* Of what is committed, after vault_lanes_finish: adds to `counts`; the last_line of the last chunk, 0: none. */
uint64_t vault_lanes_done(const struct vault_lanes *l, struct vault_import_counts *counts);

#endif
