/*
 * webhook - delivers the outbox: fan out, claim, sign, POST, retry, switch off.
 *
 * At least once; the id of an event is stable over its retries. Every endpoint has its own in-flight limit and its
 * own queue, so a dead receiver delays nobody; deliveries never share a connection pool with refreshes. Addresses are
 * checked at connect time (netcheck) unless the endpoint allows private ones.
 */
#ifndef REFRESHD_SERVICE_WEBHOOK_H
#define REFRESHD_SERVICE_WEBHOOK_H

#include "io/httpc.h"
#include "io/loop.h"
#include "model/conf.h"
#include "service/store_webhook.h"
#include "service/webhook_keys.h"

struct webhook;

/* All three are borrowed; `h` is for webhooks alone and takes at least delivery.max_in_flight requests at once. */
int webhook_new(struct loop *l, struct store *s, struct httpc *h, struct webhook **out, struct fault *f) MUST_USE;
/* Attempts in flight are cut off (their leases run out). Not while the store may still call back: free that first. */
void webhook_free(struct webhook *w);
/* Takes its own reference; attempts in flight keep the one they started with. */
void webhook_set_conf(struct webhook *w, struct conf *c);
void webhook_start(struct webhook *w);
void webhook_kick(struct webhook *w); /* an event was committed */
void webhook_poll(struct webhook *w); /* every poll interval: other daemons' events and endpoints, due retries */
void webhook_changed(struct webhook *w); /* endpoints of the API, or their deliveries, were changed in the database */
/* Attempts in flight end and are recorded, claims that were not sent are given back; then fn, in a later turn. */
void webhook_drain(struct webhook *w, loop_fn *fn, void *arg);

/* Posts a signed refreshd.webhook.test. fn gets the status (0: no answer) and, unless it is 2xx, a word of a closed set; exactly
 * once, in a later turn, or with "canceled" from inside webhook_end_checks and webhook_free. Everything is borrowed for the
 * call. ST_FULL: too many at once; ST_INVALID. */
typedef void webhook_checked_fn(void *arg, int status, const char *error);
int webhook_check(struct webhook *w, struct conf *c, const char *endpoint_id, const char *application, const char *url,
	const struct webhook_keys *keys, webhook_checked_fn *fn, void *arg, struct fault *f) MUST_USE;
void webhook_end_checks(struct webhook *w);
unsigned webhook_in_flight(const struct webhook *w); /* claimed and not recorded yet */

#endif
