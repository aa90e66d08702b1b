/*
 * migrations - the schema as numbered steps; never edited after a release, only added to.
 */
#ifndef REFRESHD_SERVICE_MIGRATIONS_H
#define REFRESHD_SERVICE_MIGRATIONS_H

#include "base/status.h"
#include "io/pgsync.h"

#define SCHEMA_VERSION 1

/* Brings the schema to SCHEMA_VERSION in one transaction under an advisory lock; idempotent. *from is the version that was
 * found (0: none). ST_VERSION when the database is newer than this program. */
int migrations_apply(struct pgsync *pg, int *from, struct fault *f) MUST_USE;
/* The version of the database, 0 when there is no schema. */
int migrations_version(struct pgsync *pg, int *version, struct fault *f) MUST_USE;

#endif
