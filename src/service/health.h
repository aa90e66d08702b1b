/*
 * health - /metrics, /healthz and /readyz, and the gauges behind them.
 *
 * healthz: the loop turns. readyz: configuration loaded, database writable, journal writable; otherwise 503 and the
 * reason in one line. Every series of interface and docs exists from the start.
 */
#ifndef REFRESHD_SERVICE_HEALTH_H
#define REFRESHD_SERVICE_HEALTH_H

#include "io/httpd.h"
#include "io/journal.h"
#include "io/loop.h"
#include "model/conf.h"
#include "service/refresh.h"
#include "service/scheduler.h"
#include "service/store.h"
#include "service/webhook.h"

struct health;

struct health_parts { /* borrowed for the life of the health object; any may be NULL until set */
	struct store *store;
	struct journal *journal;
	struct scheduler *scheduler;
	struct refresh *refresh;
	struct webhook *webhook;
};

struct health *health_new(struct loop *l, const struct health_parts *p);
void health_free(struct health *h);
void health_set_conf(struct health *h, const struct conf *c); /* declares every provider's series at zero */
/* Opens the listener of metrics.listen; none configured: nothing. */
int health_listen(struct health *h, const struct conf *c, struct fault *f) MUST_USE;
uint16_t health_port(const struct health *h); /* 0: not listening */
/* Asks the database for its gauges; call every poll interval. */
void health_poll(struct health *h);
void health_set_draining(struct health *h);
/* NULL when ready, else why not, in our own words; borrowed until the next turn. */
const char *health_why_not_ready(const struct health *h);

#endif
