/*
 * vault_rekey - seal again, under the first key of the keyring, whatever is sealed under another one.
 *
 * In batches, each its own transaction; what is done is not found again, so it may be stopped and started at any time.
 * A value changes only while its row is as it was read, and rows with a request out are left to that request.
 */
#ifndef REFRESHD_SERVICE_VAULT_REKEY_H
#define REFRESHD_SERVICE_VAULT_REKEY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/crypto.h"
#include "io/pgsync.h"

struct vault_rekey_counts {
	uint64_t rows;	     /* written */
	uint64_t values;     /* sealed again */
	uint64_t busy;	     /* rows left alone: leased, or changed under our eyes */
	uint64_t unopenable; /* values whose key is not in the keyring, or that are damaged */
};
/* Called after every batch; a negative return stops and is handed on. */
typedef int vault_rekey_fn(void *arg, const struct vault_rekey_counts *so_far);
/* One pass over all tables. `busy` and `unopenable` are of this pass alone. */
int vault_rekey(struct pgsync *pg, struct keyring *k, vault_rekey_fn *fn, void *arg, struct vault_rekey_counts *counts, struct fault *f) MUST_USE;

struct vault_sealed_count {
	const char *column, *key_id; /* key_id "?": no sealed text */
	int64_t n;
};
typedef int vault_sealed_fn(void *arg, const struct vault_sealed_count *c);
int vault_sealed_counts(struct pgsync *pg, vault_sealed_fn *fn, void *arg, struct fault *f) MUST_USE;

#endif
