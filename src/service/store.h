/*
 * store - the daemon's door to Postgres: pool, instance, schema check, and whether writing is possible now.
 *
 * Every SQL statement of the daemon lives in store*.c, as a named constant beside the function that binds it.
 * Postgres only ever sees sealed tokens, and only as bind parameters.
 */
#ifndef REFRESHD_SERVICE_STORE_H
#define REFRESHD_SERVICE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "io/loop.h"
#include "io/pgpool.h"
#include "model/conf.h"

struct store;

/* What the others know of us. Only who is `running` takes part in the division of the work. */
#define STORE_PRESENCE_LIST(X)                                                                 \
	X(STORE_STARTING, "starting") /* not refreshing yet */                                 \
	X(STORE_RUNNING, "running")                                                            \
	X(STORE_PAUSED, "paused")     /* alive, and cannot refresh: the journal cannot be written */ \
	X(STORE_DRAINING, "draining") /* finishes what it has */
enum store_presence {
#define X(id, word) id,
	STORE_PRESENCE_LIST(X)
#undef X
};
/* The running instances as of the last heartbeat; borrowed for the callback. `self` is n when we are none of them. */
struct store_live {
	const char *const *names;
	size_t n, self;
};
typedef void store_live_fn(void *arg, const struct store_live *l);

#define STORE_STATE_LIST(X)                                                                            \
	X(STORE_CONNECTING, "connecting")   /* no connection yet, or none any more */                  \
	X(STORE_CHECKING, "checking")	    /* connected; schema and instance not confirmed yet */     \
	X(STORE_READY, "ready")		    /* schema fits, the instance row is ours, writes succeed */ \
	X(STORE_READ_ONLY, "read_only")	    /* connected, and the last write was refused */            \
	X(STORE_FULL, "full")		    /* the server has no space or memory */                    \
	X(STORE_WRONG_SCHEMA, "wrong_schema") /* missing, older or newer: `refreshctl migrate` */      \
	X(STORE_FENCED, "fenced")	    /* another process took our instance name */
enum store_state {
#define X(id, word) id,
	STORE_STATE_LIST(X)
#undef X
};
const char *store_state_word(enum store_state s);

/* Called in a later turn on every change; `why` is a sentence for a person. */
typedef void store_state_fn(void *arg, enum store_state s, const struct fault *why);

/* `home` names the journal (16 bytes kept beside it): an instance that comes back with the same home may recover its own
 * in-doubt rows at once. */
int store_new(struct loop *l, struct resolver *r, const struct conf *c, const uint8_t home[16], struct store **out, struct fault *f) MUST_USE;
void store_free(struct store *s);
void store_on_state(struct store *s, store_state_fn *fn, void *arg);
enum store_state store_state(const struct store *s);
const char *store_why(const struct store *s); /* the sentence that went with the last change; "" when READY */
/* READY, and a heartbeat was confirmed within the last three: no token is spent otherwise. */
bool store_writable(const struct store *s);
int64_t store_epoch(const struct store *s);	     /* ours; 0 before READY */
bool store_has_former(const struct store *s);	     /* leases of earlier epochs of our home may be left: store_recover */
int64_t store_ready_since(const struct store *s);    /* mono us of the last change to READY; INT64_MAX while it is not */
/* How often a heartbeat is due at least: others take an instance for dead after 20 s. */
#define STORE_HEARTBEAT_US (5 * US_PER_S)
/* Also the proof of writability, and the question who else is alive. */
void store_heartbeat(struct store *s);
/* When the next one is due, from now: sooner than usual when somebody's heartbeat is about to be too old. */
int64_t store_heartbeat_in(const struct store *s);
/* Called after a heartbeat, when who is running has changed (and after the first). */
void store_on_live(struct store *s, store_live_fn *fn, void *arg);
/* Tells the others at once, if they listen; else they find it with their next heartbeat. */
void store_set_presence(struct store *s, enum store_presence p);
/* On SIGTERM: tells the others that we are gone, so that they take over at once. Then fn. */
void store_goodbye(struct store *s, loop_fn *fn, void *arg);
void store_set_pool_waits(struct store *s, void (*fn)(void *arg, int64_t us), void *arg);

/* For store_*.c: sends, and watches the outcome for the state above. On failure t is freed and nothing is called. */
struct pgpool *store_pool(struct store *s);
int store_send(struct store *s, struct pgtx *t, int64_t wait_us, pgtx_fn *fn, void *arg) MUST_USE;
const char *store_instance(const struct store *s);
int64_t store_next_attempt(struct store *s); /* epoch << 40 | counter: unique over all daemons, grows within one */

#endif
