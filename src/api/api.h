/*
 * api - the Vault API over HTTP: routes, keys, limits, and what each call does.
 *
 * The wire contract is docs/openapi.json. A request costs the loop no waiting: every statement is asynchronous, imports are
 * grouped, and calls that wait for a refresh share one poll. A key sees its own application and nothing else; that is said
 * again in every statement. Must not: decide a state (connection_apply does), present a token (refresh does), or log
 * anything that came in.
 */
#ifndef REFRESHD_SERVICE_API_H
#define REFRESHD_SERVICE_API_H

#include <stdint.h>

#include "io/loop.h"
#include "model/conf.h"
#include "service/scheduler.h"
#include "service/store.h"
#include "service/webhook.h"

struct api;

struct api_parts { /* all outlive the API but the store, which may go first */
	struct store *store;
	struct scheduler *scheduler;
	struct webhook *webhook;
	void (*outbox)(void *arg); /* an event was committed */
	void *arg;
};

/* Listens at api.listen, or at the socket that the service manager hands over under the name "api". Until api_start every
 * call that needs the database is answered 503. */
int api_new(struct loop *l, const struct api_parts *p, struct conf *c, struct api **out, struct fault *f) MUST_USE;
void api_free(struct api *a); /* NULL is fine; after the store: whoever waits for it is told first */
void api_start(struct api *a);
void api_drain(struct api *a); /* what is under way ends, what comes is told to come again elsewhere */
/* Nothing is refreshed any more: whoever still waits for that is told so. fn when no call is under way. */
void api_finish(struct api *a, loop_fn *fn, void *arg);
/* Takes its own reference; the certificate files are read again. A fault: the old certificate stays in use. */
int api_set_conf(struct api *a, struct conf *c, struct fault *f) MUST_USE;
uint16_t api_port(const struct api *a); /* 0 for a unix socket */

#endif
