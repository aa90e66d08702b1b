/*
 * pgdial - one attempt to connect to Postgres on the loop: resolve, start, poll, deadline.
 *
 * PQconnectPoll ignores connect_timeout and may change its socket between two calls; both are handled here.
 */
#ifndef REFRESHD_IO_PGDIAL_H
#define REFRESHD_IO_PGDIAL_H

#include "base/status.h"
#include "io/loop.h"
#include "io/pgtarget.h"
#include "io/resolver.h"

struct pg_conn; /* libpq's PGconn */
struct pgdial;

/* code 0: conn is connected, non-blocking, silent about notices, and now the callee's. Otherwise ST_TIMEOUT,
 * ST_DENIED (password, role, database or privilege refused) or ST_UNAVAILABLE, `why` says it without the
 * password. */
typedef void pgdial_fn(void *arg, int code, struct pg_conn *conn, const struct fault *why);

/* Exactly one call of fn in a later turn, unless canceled. */
struct pgdial *pgdial_start(
	struct pgtarget *t, struct loop *l, struct resolver *r, unsigned rotate, pgdial_fn *fn, void *arg);
void pgdial_cancel(struct pgdial *d); /* NULL is fine */

#endif
