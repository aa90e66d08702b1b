/*
 * vault_import_priv - what the two halves of an import share: the rows of the present chunk, and how they become parameters.
 */
#ifndef REFRESHD_SERVICE_VAULT_IMPORT_PRIV_H
#define REFRESHD_SERVICE_VAULT_IMPORT_PRIV_H

#include "service/vault_import.h"

#include "model/event.h"

struct row {
	uint8_t id[16];
	size_t item; /* in the caller's array */
	int64_t version;
	bool done, applied, created, due_now;
	bool lacks; /* a required setting, after the import */
	bool enabled;
	enum conn_state state; /* before the import */
	enum conn_health health;
	int64_t created_at, last_failed_at;
	struct import_times times;
	struct conn_change to;
};

struct vault_importer {
	struct pgsync *pg;
	const struct conf *conf; /* borrowed */
	struct keyring *keyring; /* owned */
	const struct vault_import_turn *turn; /* borrowed; NULL: nobody imports beside it */
	bool in_transaction;
	int64_t last_version;
	struct buf sealed[3]; /* access token, refresh token, settings */
	struct buf shown;
	struct buf entity;
	struct row *rows;
	size_t n, cap;
	const struct vault_item *items; /* of the present chunk */
	int64_t now;
};

typedef bool pick_fn(const struct row *r);

static inline bool is_update(const struct row *r)
{
	return !r->done && r->applied && !r->created;
}

/* One array parameter: the rest runs for each row that is picked, as `r`. */
#define COLUMN(type_, pick_, ...)                          \
	do {                                               \
		pgargs_array(a, (type_));                  \
		for (size_t i = 0; i < m->n; i++) {        \
			const struct row *r = &m->rows[i]; \
			if (!pick_(r))                     \
				continue;                  \
			__VA_ARGS__;                       \
		}                                          \
		pgargs_array_end(a);                       \
	} while (0)

/* Everything but the schedule, of the rows that it took: what was there is updated, what is new is copied, events are told. */
int vault_import_write(struct vault_importer *m, struct fault *f) MUST_USE;

#endif
