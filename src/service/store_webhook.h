/*
 * store_webhook - the outbox: fan out events, claim due deliveries, record attempts, switch endpoints off.
 *
 * A state change inserts its event in its own transaction (store_persist); here events become one delivery per
 * endpoint, and deliveries are claimed with the same shape as refreshes: a lease, committed before anything is sent.
 * Callbacks get code 0, ST_UNAVAILABLE (try again later) or ST_INVALID (the statement was refused as it is: never again
 * unchanged); everything else they get is valid with code 0 only.
 */
#ifndef REFRESHD_SERVICE_STORE_WEBHOOK_H
#define REFRESHD_SERVICE_STORE_WEBHOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "model/event.h"
#include "service/store.h"

/* Entity type of an event for one endpoint alone: its entity_id is the endpoint's id. */
#define STORE_ENTITY_ENDPOINT "Endpoint"

/* An endpoint of the configuration as the fan-out sees it. Ids: "config:<name>" for the configuration file, a UUID text for the API's. */
struct store_endpoint {
	const char *endpoint_id;
	const char *application;   /* "*": all */
	const char *const *events; /* full names of event types */
	size_t n_events;
};

typedef void store_outbox_fn(void *arg, int code, size_t n);
/* Takes up to `limit` events that were not fanned out yet and inserts their deliveries for the given endpoints, and for those of
 * the API as they stand in the database, in one transaction; n is the number of events taken (== limit: call again). An event that no endpoint wants is done at once;
 * one of a type that this program does not know is left to a newer one. An endpoint that is off gets nothing. */
int store_fanout(struct store *s, const struct store_endpoint *v, size_t n, unsigned limit, store_outbox_fn *fn, void *arg)
	MUST_USE;

struct store_delivery { /* borrowed for the callback */
	uint8_t event_id[16];
	const char *endpoint_id;
	int attempt; /* 1 for the first */
	enum event_type type;
	const char *entity, *entity_id, *entity_type;
	const char *reason; /* NULL: none */
	int64_t failures;   /* 0: not said */
	int64_t occurred_at;
};
struct store_room { /* how much of an endpoint's waiting deliveries may be claimed */
	const char *endpoint_id;
	unsigned room;
	bool ailing; /* claimed behind the others, at most ailing_limit in all */
};
typedef void store_deliveries_fn(void *arg, int code, const struct store_delivery *v, size_t n, int64_t next_due_at);
/* Claims up to `limit` due deliveries: every endpoint's oldest, then every endpoint's second ... Each claim counts its
 * attempt. next_due_at is the wall time of the first one that waits beyond these (past: more are due now; TIME_NEVER: none). */
int store_claim_deliveries(struct store *s, const struct store_room *v, size_t n, unsigned limit, unsigned ailing_limit,
	int64_t lease_us, store_deliveries_fn *fn, void *arg) MUST_USE;

struct store_attempt {
	uint8_t event_id[16];
	const char *endpoint_id;
	int attempt;
	int status;	      /* HTTP status, 0: none came */
	const char *error;    /* word of a closed set, NULL on success */
	bool delivered;
	int64_t next_due_at;  /* TIME_NEVER: no further try */
	int64_t duration_us;
	bool gone;	      /* 410: switch the endpoint off */
};
/* Records attempts (n >= 1), counts the endpoints' failing time and switches off after `disable_after_us` of only
 * failures or on 410; fn's n is the number of endpoints that were switched off by it. An attempt whose lease went to
 * someone else leaves the delivery alone, unless it delivered. Idempotent. */
int store_record_attempts(struct store *s, const struct store_attempt *v, size_t n, int64_t disable_after_us,
	store_outbox_fn *fn, void *arg) MUST_USE;
/* Gives back claims that were not sent (n >= 1): due again at once, the attempt not counted. Uses event_id, endpoint_id
 * and attempt only. */
int store_release_deliveries(struct store *s, const struct store_attempt *v, size_t n, store_outbox_fn *fn, void *arg) MUST_USE;

/* Endpoints that are switched off, by id; for skipping them. */
typedef void store_disabled_fn(void *arg, int code, const char *const *endpoint_ids, size_t n);
int store_disabled_endpoints(struct store *s, store_disabled_fn *fn, void *arg) MUST_USE;
/* Events fanned out before older_than with all their deliveries (what still waits then belongs to an endpoint that is off
 * or gone), at most `limit` at a time; n == limit: call again. */
int store_purge_events(struct store *s, int64_t older_than, unsigned limit, store_outbox_fn *fn, void *arg) MUST_USE;
/* Deliveries of these endpoints that are due and that nobody has claimed. */
int store_webhook_backlog(struct store *s, const char *const *endpoint_ids, size_t n, store_outbox_fn *fn, void *arg) MUST_USE;

#endif
