/*
 * idset - a set of 16-byte ids in 8 bytes each: is this one in memory already?
 *
 * Keeps a 64-bit fingerprint, so two ids may be taken for one (about n^2 / 2^65). Whoever asks must be able to live with
 * "yes" for an id that is not there, until the other one leaves. Open addressing with backward-shift deletion.
 */
#ifndef REFRESHD_BASE_IDSET_H
#define REFRESHD_BASE_IDSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct idset {
	uint64_t *v;
	size_t len, cap; /* cap: 0 or a power of two */
};

void idset_init(struct idset *s);
void idset_fini(struct idset *s);
bool idset_add(struct idset *s, const uint8_t id[16]); /* false: it was there */
bool idset_has(const struct idset *s, const uint8_t id[16]);
bool idset_remove(struct idset *s, const uint8_t id[16]); /* false: it was not there */

#endif
