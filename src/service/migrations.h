/*
 * migrations - the schema as numbered steps; never edited after a release, only added to.
 */
#ifndef REFRESHD_SERVICE_MIGRATIONS_H
#define REFRESHD_SERVICE_MIGRATIONS_H

#include <stdbool.h>

#include "base/status.h"
#include "io/pgsync.h"

#define SCHEMA_VERSION 1

/* What the database says of itself. Programs that were made for a version from compatible_from on may run on it. */
struct migrations_state {
	int version; /* 0: there is no schema */
	int compatible_from;
};
bool migrations_fit(const struct migrations_state *s);
/* Why it does not fit; `program` is who should be newer, e.g. "refreshd". */
int migrations_refuse(const struct migrations_state *s, const char *program, struct fault *f);
int migrations_look(struct pgsync *pg, struct migrations_state *out, struct fault *f) MUST_USE;

/* Brings the schema to SCHEMA_VERSION in one transaction under an advisory lock; idempotent. *from is what was found: a newer one
 * that we may run on is left alone. ST_VERSION when we may not. */
int migrations_apply(struct pgsync *pg, struct migrations_state *from, struct fault *f) MUST_USE;
/* What the step to `version` (1..SCHEMA_VERSION) does, in a few words, and which programs may run beside it. */
const char *migrations_what(int version);
int migrations_compatible_from(int version);

#endif
