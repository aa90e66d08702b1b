/*
 * pgconn - one connection in pipeline mode: transactions go in, outcomes come out in the same order.
 *
 * Several transactions are in flight at once, each closed by its own Sync. Statements are prepared on first
 * use inside the transaction that needs them, unless a pooler stands between. When the connection dies
 * each transaction is either certain (its error was read, or the server cannot have seen its Sync) or
 * unknown.
 */
#ifndef REFRESHD_IO_PGCONN_H
#define REFRESHD_IO_PGCONN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/minheap.h"
#include "base/status.h"
#include "io/loop.h"
#include "io/pgargs.h"
#include "io/pgpool.h"

struct pg_conn; /* libpq's PGconn */
struct pgconn;

#define PGCONN_DEPTH 8u /* transactions in flight on one connection */

struct pgtx_stmt {
	const struct pgstmt *stmt;
	struct pgargs *args; /* NULL: no parameters */
	unsigned generation; /* of the prepared statement that was run */
	bool prepare;        /* a Parse went ahead of it */
};

struct pgtx {
	unsigned magic;
	struct pgtx_stmt *stmts;
	struct pgresult *results;
	unsigned n, room;
	pgtx_fn *fn;
	void *arg;
	struct pgtx *next;        /* in the one list that holds it */
	struct minheap_node wait; /* deadline while queued */
	int64_t queued_us;
	struct pgtx_result out; /* filled while it runs */

	unsigned cursor;    /* statement whose results are read; n: the Sync */
	bool preparing;     /* its Parse comes first */
	bool got_result;    /* the NULL that ends a result is due */
	bool failed;        /* the server reported an error */
	bool fatal;         /* and ended the session with it */
	unsigned failed_at; /* cursor at that time */
	bool flushed;       /* all of it was given to the kernel */
	bool retried;       /* a second start is spent */
};

void pgtx_reset(struct pgtx *t); /* forget results and errors, ready to run again */
void pgtx_release(struct pgtx *t);

struct pgconn_events {
	void (*done)(
		void *owner, struct pgconn *c, struct pgtx *t); /* outcome in t->out; t goes to the owner */
	void (*again)(void *owner, struct pgconn *c,
		struct pgtx *t);   /* certainly not executed: run it again, before the others */
	void (*room)(void *owner); /* what was handed over has left us: pgconn_has_room may be true again */
	void (*lost)(void *owner, struct pgconn *c,
		const struct fault *why); /* nothing is in flight any more; the owner frees c */
};

struct pgconn_params {
	bool prepare;     /* named prepared statements */
	int64_t stall_us; /* no progress for that long: the connection is dropped. 0: never */
};

/* Takes conn, also on failure. The events never come from inside a call of this file. */
int pgconn_new(struct loop *l, struct pg_conn *conn, const struct pgconn_params *p,
	const struct pgconn_events *ev, void *owner, struct pgconn **out, struct fault *f) MUST_USE;
void pgconn_free(struct pgconn *c); /* what is in flight is released without an event */

/* What is in flight, one by one, NULL at the end: before pgconn_free, by an owner who tells its callers. */
struct pgtx *pgconn_take_unfinished(struct pgconn *c);

bool pgconn_has_room(const struct pgconn *c); /* takes one more transaction */
unsigned pgconn_in_flight(const struct pgconn *c);
/* Takes t on success. On failure (the connection is broken, `lost` follows) t stays with the caller, not
 * executed. */
int pgconn_submit(struct pgconn *c, struct pgtx *t) MUST_USE;

/* True once each time that the connection is twice as old, and every ten minutes from then on: its plans may be of tables that were
 * small, and the server keeps them until somebody analyses these. Never without prepared statements. */
bool pgconn_wants_plans(struct pgconn *c, int64_t now_us);

bool pgconn_is_proven(const struct pgconn *c);    /* has committed something, or lived for ten seconds */
bool pgconn_is_silent(const struct pgconn *c);    /* it ended without last words of the server */
bool pgconn_is_read_only(const struct pgconn *c); /* the server refused to write (25006) */

#endif
