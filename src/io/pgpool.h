/*
 * pgpool - non-blocking libpq on the loop: a few connections, pipeline mode, one transaction per Sync.
 *
 * A `pgtx` is one or more statements that commit together; it is committed only when its callback says 0
 * (libpq: never assume a COMMIT before its result arrived). A transaction whose outcome is unknown because
 * the connection died reports PG_CLASS_UNKNOWN: the caller re-reads. Only bind parameters, binary both
 * ways. With `pooler_transaction` no session state is used: no prepared statements, no SET, no LISTEN.
 * Host names are resolved by `resolver` (libpq would block) and the right one among several hosts is
 * found by target_session_attrs. Reconnects with capped, jittered backoff. Never logs.
 */
#ifndef REFRESHD_IO_PGPOOL_H
#define REFRESHD_IO_PGPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "io/loop.h"
#include "io/pgargs.h"
#include "io/resolver.h"

struct pgpool;

struct pgpool_params {
	const char *url;	 /* libpq connection string or URI */
	const char *application_name;
	unsigned size;		 /* connections */
	bool pooler_transaction;
	int64_t statement_timeout_us; /* also the client's own deadline (plus a second), after which the connection is dropped */
	unsigned max_queued;	 /* transactions waiting in all; 0: 10000 */
};

/* SQLSTATE classes as the services treat them. */
#define PG_CLASS_LIST(X)                                                                                  \
	X(PG_CLASS_OK, "ok")                                                                              \
	X(PG_CLASS_CONNECTION, "connection")   /* 08, 57P0x, 53300, 25006, 25P03: reconnect, then retry */ \
	X(PG_CLASS_RETRY, "retry")	       /* 40001 40P01 55P03 57014: same again after a pause */     \
	X(PG_CLASS_RESOURCES, "resources")     /* 53100 53200 53400: stop claiming, retry later */         \
	X(PG_CLASS_READ_ONLY, "read_only")     /* 25006 on every host */                                   \
	X(PG_CLASS_UNKNOWN, "unknown")	       /* the connection died after Sync was sent: it may have committed */ \
	X(PG_CLASS_BUG, "bug")		       /* 22 23 42 and the rest: ours; never retried unchanged */
enum pg_class {
#define X(id, word) id,
	PG_CLASS_LIST(X)
#undef X
};
const char *pg_class_word(enum pg_class c);

struct pgtx_result {
	enum pg_class class;	  /* PG_CLASS_OK: committed */
	char sqlstate[6];	  /* "" when the server said nothing */
	char constraint[64];	  /* names from the server's error, "" when absent; never a value */
	char table[64];
	unsigned n;		  /* results, one per statement, when committed */
	struct pgresult *results; /* borrowed for the callback */
	int64_t wait_us;	  /* time spent waiting for a connection */
};

typedef void pgtx_fn(void *arg, const struct pgtx_result *r);

int pgpool_new(struct loop *l, struct resolver *r, const struct pgpool_params *p, struct pgpool **out, struct fault *f) MUST_USE;
/* Whoever still waits is told first, from inside this call: UNKNOWN for what is in flight, CONNECTION for what is
 * queued; a pgpool_send from there is refused (ST_UNAVAILABLE). */
void pgpool_free(struct pgpool *p);

struct pgtx *pgtx_new(void);
void pgtx_free(struct pgtx *t); /* only when it was not sent */
/* Adds a statement; `args` is moved in. The statement must outlive the pool (a constant). */
void pgtx_add(struct pgtx *t, const struct pgstmt *s, struct pgargs *args);
/* Takes t; exactly one callback in a later turn. It waits while no connection is up, at most `wait_us`
 * (0: as long as it takes), then reports PG_CLASS_CONNECTION (certainly not executed). ST_FULL or ST_UNAVAILABLE (being freed) leave t with the caller. */
int pgpool_send(struct pgpool *p, struct pgtx *t, int64_t wait_us, pgtx_fn *fn, void *arg) MUST_USE;

bool pgpool_is_up(const struct pgpool *p); /* at least one connection is ready */
unsigned pgpool_connected(const struct pgpool *p);
/* Why the last attempt failed or the last connection was lost, also while others are up; code 0: nothing has failed yet. Borrowed. */
const struct fault *pgpool_last_fault(const struct pgpool *p);
/* fn on each change of is_up, and when the first attempt of all fails; code and fault say why it went down (no secret,
 * no statement text). */
void pgpool_on_state(struct pgpool *p, void (*fn)(void *arg, bool up, const struct fault *why), void *arg);

/* LISTEN on a connection of its own; fn gets each payload. fn with NULL after a (re)connection: something
 * may have been missed. Does nothing with pooler_transaction. */
void pgpool_listen(struct pgpool *p, const char *channel, void (*fn)(void *arg, const char *payload), void *arg);

#endif
