/*
 * budget - how much may run at once and how fast, for each provider; and the breakers.
 *
 * One gate for each (provider, client): it holds the provider's in-flight limit and token bucket, the provider's
 * breaker (faults of the provider: unreachable, 5xx, no answers) and the client's breaker (client_broken). An
 * open breaker lets one canary through after a while; its success closes it. Nothing here marks a connection.
 * Arithmetic on sys_mono_us only; no I/O.
 */
#ifndef REFRESHD_SERVICE_BUDGET_H
#define REFRESHD_SERVICE_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

#include "model/conf.h"
#include "model/grant.h"

struct budget;
struct gate;

#define BUDGET_UNKNOWN INT64_MAX /* when something in flight ends */

struct budget *budget_new(void);
void budget_free(struct budget *b);
/* Our part of every limit: we are number `rank` (from 0) of `of` daemons. */
struct budget_share {
	unsigned rank, of;
};
/* Takes over the definitions (with a reference of its own). Gates stay valid. */
void budget_set(struct budget *b, struct conf *c, struct budget_share share);

/* The gate for an application's connections to a provider; stable for the life of the budget. */
struct gate *budget_gate(struct budget *b, const char *application, const char *service_id);
/* Is there a provider and a client at all? */
enum gate_lack { GATE_FINE, GATE_NO_PROVIDER, GATE_NO_CLIENT };
enum gate_lack gate_lack(const struct gate *g);

/* When one more may start: now or past = at once; a later mono time; BUDGET_UNKNOWN = after something ends. */
int64_t gate_when(struct gate *g, int64_t now_us);
void gate_take(struct gate *g, int64_t now_us);	  /* only after gate_when allowed it */
void gate_give_back(struct gate *g);		  /* taken, and nothing was sent */

enum gate_change { GATE_SAME, GATE_PROVIDER_OPENED, GATE_PROVIDER_CLOSED, GATE_CLIENT_OPENED, GATE_CLIENT_CLOSED };
/* The end of one that was taken. */
enum gate_change gate_done(struct gate *g, enum outcome o, int64_t retry_after_us, int64_t now_us);
bool gate_is_open(const struct gate *g); /* either breaker is not closed */
double gate_rate(const struct gate *g);	 /* our share, per second; 0: unlimited */
unsigned gate_in_flight(const struct gate *g);
const char *gate_provider(const struct gate *g);

#endif
