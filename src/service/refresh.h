/*
 * refresh - the life of one refresh as a state machine: claim, send, journal, classify, persist.
 *
 * Owns every connection that is in our hands, from the claim to the committed result, at most one attempt for each
 * (single flight). Rules that must hold here: nothing is sent without a committed claim whose lease outlasts the whole
 * timeout; a complete reply is journalled before it is parsed; a result is kept and retried until it is committed
 * or has lost its fence; nothing is presented twice once it was answered. States and their table are in refresh.c
 * and docs/design.md.
 */
#ifndef REFRESHD_SERVICE_REFRESH_H
#define REFRESHD_SERVICE_REFRESH_H

#include <stdbool.h>
#include <stdint.h>

#include "io/httpc.h"
#include "io/journal.h"
#include "io/loop.h"
#include "model/conf.h"
#include "model/grant.h"
#include "service/budget.h"
#include "service/store_refresh.h"

struct refresh;

#define REFRESH_BATCH 256

struct refresh_want {
	uint8_t id[16];
	int64_t due_at;
	int64_t takeover_us; /* see store_want */
	struct gate *gate; /* taken by the caller; given back or done here */
};

struct refresh_done {
	const uint8_t *id;
	const char *application_id, *service_id;
	bool claimed;	       /* false: the row was not ours to take (stale hint), or the claim failed; nothing else is set */
	bool refreshed;
	enum outcome outcome;  /* OUTCOME_NEVER_SENT when nothing could be sent */
	enum reason reason;
	enum conn_health health;
	int64_t next_due_at;   /* wall; TIME_NEVER: none */
};

struct refresh_events { /* all called in a turn of their own */
	void (*done)(void *arg, const struct refresh_done *d); /* exactly once for every want */
	void (*outbox)(void *arg);			       /* an event was committed */
	void (*gate)(void *arg, const char *provider);	       /* a gate of this provider got room or opened; NULL: there is room in general */
	void *arg;
};

int refresh_new(struct loop *l, struct store *s, struct httpc *h, struct journal *j, const struct refresh_events *ev, struct refresh **out, struct fault *f) MUST_USE;
void refresh_free(struct refresh *r);
void refresh_set_conf(struct refresh *r, struct conf *c); /* takes its own reference; attempts keep the one they started with */

/* How many more wants may be handed over now: 0 while the database or the journal cannot be written, or while draining. */
unsigned refresh_room(const struct refresh *r);
bool refresh_has(struct refresh *r, const uint8_t id[16]); /* in our hands now */
/* 1 <= n <= REFRESH_BATCH and n <= refresh_room(); every id once and none that refresh_has. */
void refresh_claim(struct refresh *r, const struct refresh_want *v, size_t n);

/* Replays the journal (fenced, idempotent); fn when every record is settled or parked for a database that is away. Before the first claim. */
int refresh_replay(struct refresh *r, void (*fn)(void *arg, uint64_t replayed), void *arg, struct fault *f) MUST_USE;
bool refresh_replayed(const struct refresh *r); /* the replay was run and is over */
/* No new sends; what is claimed and not sent is released; fn when nothing is in hand any more. */
void refresh_drain(struct refresh *r, loop_fn *fn, void *arg);
unsigned refresh_in_flight(const struct refresh *r);
unsigned refresh_unsettled(const struct refresh *r); /* answered and not committed yet */

#endif
