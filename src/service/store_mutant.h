/*
 * store_mutant - the statements of a refresh without their fence, for the torture tests; otherwise the statements themselves.
 */
#ifndef REFRESHD_SERVICE_STORE_MUTANT_H
#define REFRESHD_SERVICE_STORE_MUTANT_H

#include "io/pgargs.h"

#ifdef REFRESHD_TORTURE
const struct pgstmt *store_mutant(const struct pgstmt *stmt);
#define STORE_MUTANT(stmt) store_mutant(stmt)
#else
#define STORE_MUTANT(stmt) (stmt)
#endif

#endif
