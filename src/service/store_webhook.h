/*
 * store_webhook - the outbox: fan out events, claim due deliveries, record attempts, switch endpoints off.
 *
 * A state change inserts its event in its own transaction (store_refresh); here events become one delivery per
 * endpoint, and deliveries are claimed with the same shape as refreshes: a lease, committed before anything is sent.
 */
#ifndef REFRESHD_SERVICE_STORE_WEBHOOK_H
#define REFRESHD_SERVICE_STORE_WEBHOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "model/event.h"
#include "service/store.h"

/* An endpoint as the fan-out sees it. Ids: "config:<name>" for the configuration file, a UUID text for the API's. */
struct store_endpoint {
	const char *endpoint_id;
	const char *application; /* "*": all */
	const char *const *events;
	size_t n_events;
};

typedef void store_outbox_fn(void *arg, int code, size_t n);
/* Takes up to `limit` events that were not fanned out yet and inserts their deliveries for the given endpoints, in one
 * transaction; n is the number of events taken (== limit: call again). An event that no endpoint wants is done at once. */
int store_fanout(struct store *s, const struct store_endpoint *v, size_t n, unsigned limit, store_outbox_fn *fn, void *arg) MUST_USE;

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
typedef void store_deliveries_fn(void *arg, int code, const struct store_delivery *v, size_t n, int64_t next_due_at);
/* Claims up to `limit` due deliveries of the named endpoints (at most per_endpoint each), oldest first; next_due_at is the wall time of the
 * first one that waits beyond these (TIME_NEVER: none). */
int store_claim_deliveries(struct store *s, const char *const *endpoint_ids, size_t n, unsigned per_endpoint, unsigned limit, int64_t lease_us,
	store_deliveries_fn *fn, void *arg) MUST_USE;

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
/* Records attempts, counts the endpoint's failing time and switches it off after `disable_after_us` of only failures or on 410;
 * fn's n is the number of endpoints that were switched off by it. */
int store_record_attempts(struct store *s, const struct store_attempt *v, size_t n, int64_t disable_after_us, store_outbox_fn *fn, void *arg) MUST_USE;

/* Endpoints that are switched off, by id; for skipping them. */
typedef void store_disabled_fn(void *arg, int code, const char *const *endpoint_ids, size_t n);
int store_disabled_endpoints(struct store *s, store_disabled_fn *fn, void *arg) MUST_USE;
/* Old finished events and deliveries, at most `limit` rows at a time. */
int store_purge_events(struct store *s, int64_t older_than, unsigned limit, store_outbox_fn *fn, void *arg) MUST_USE;
int store_webhook_backlog(struct store *s, store_outbox_fn *fn, void *arg) MUST_USE;

#endif
