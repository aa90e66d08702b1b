/*
 * vault_import - connections with their tokens into the tables, a chunk at a time, by COPY.
 *
 * A chunk is one transaction: schedule first (its row lock orders import, claim, persist and delete), then
 * connection, credential and event. An import voids an attempt that is out but leaves its lease, so that no two
 * presentations overlap; the late answer loses its fence.
 */
#ifndef REFRESHD_SERVICE_VAULT_IMPORT_H
#define REFRESHD_SERVICE_VAULT_IMPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "io/pgsync.h"
#include "model/conf.h"
#include "model/import.h"

struct vault_importer;

/* `in_transaction`: the caller begins and commits around the chunks; else each chunk is its own transaction. */
struct vault_importer *vault_importer_new(struct pgsync *pg, const struct conf *c, bool in_transaction);
/* For chunks that are written side by side, which keep to an order by these calls; each may wait. */
struct vault_import_turn {
	void *arg;
	int (*enter)(void *arg, bool again); /* nothing is locked. again: what was held is given up. Not 0: not to be written any more */
	void (*locked)(void *arg);	     /* all rows that it will ever lock */
	int (*leave)(void *arg);	     /* before the commit. ST_AGAIN: to be given up and begun anew; otherwise as above */
};
/* Each chunk is its own transaction. Takes the keyring; pg, c and turn are borrowed. */
struct vault_importer *vault_importer_new_beside(struct pgsync *pg, const struct conf *c, struct keyring *keyring,
	const struct vault_import_turn *turn);
void vault_importer_free(struct vault_importer *m);

struct vault_item { /* both borrowed; checked by import_check */
	const struct import *import;
	const struct provider *provider;
};
struct vault_import_counts {
	uint64_t created, updated;
	uint64_t duplicates; /* of a key that came again in the same chunk: the last one won */
	uint64_t refused;    /* somebody kept writing newer tokens over them */
	uint64_t due_now;
};
/* Adds to `counts`. ST_AGAIN: the server asked to try again, and went on asking. */
int vault_import_chunk(struct vault_importer *m, const struct vault_item *v, size_t n, struct vault_import_counts *counts, struct fault *f) MUST_USE;
/* What a chunk would do; writes nothing. */
int vault_import_preview(struct vault_importer *m, const struct vault_item *v, size_t n, struct vault_import_counts *counts, struct fault *f) MUST_USE;
/* The token version that the last chunk gave to its last row. */
int64_t vault_importer_version(const struct vault_importer *m);

#endif
