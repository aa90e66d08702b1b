/*
 * scheduler - what becomes due, held in memory as hints; hands due work to `refresh` within every budget.
 *
 * A lane for each (application, service) holds its entries in a due-ordered heap; lanes whose gate is shut wait aside,
 * so that one sick provider holds up nobody else. One timer. Polls slices: forward to the horizon, and again whatever
 * is overdue (imports, expired leases). Entries are hints: a stale one costs an empty claim, never a wrong refresh.
 * Only rows of our slots are loaded; an explicit act is served here whatever its slot.
 */
#ifndef REFRESHD_SERVICE_SCHEDULER_H
#define REFRESHD_SERVICE_SCHEDULER_H

#include <stdint.h>

#include "io/loop.h"
#include "model/conf.h"
#include "service/budget.h"
#include "service/refresh.h"
#include "service/store_refresh.h"

struct scheduler;

int scheduler_new(struct loop *l, struct store *s, struct budget *b, struct scheduler **out, struct fault *f) MUST_USE;
void scheduler_free(struct scheduler *s);
void scheduler_set_conf(struct scheduler *s, struct conf *c);
void scheduler_set_refresh(struct scheduler *s, struct refresh *r);
/* Which part of the table is ours from now on; all of it until the first call. What was gained is loaded at once, what was
 * lost is dropped when its turn comes. */
void scheduler_set_slots(struct scheduler *s, const struct slots *own);

void scheduler_start(struct scheduler *s); /* first poll */
void scheduler_stop(struct scheduler *s);  /* no more polls, no more claims */
/* Something may have changed: the database is back, a gate has room, the clock jumped. */
void scheduler_kick(struct scheduler *s);
void scheduler_poll(struct scheduler *s); /* rows may have become due that memory does not know */
void scheduler_replan(struct scheduler *s); /* forget what is in memory and load it again (clock jump, reload) */

/* One entry, e.g. after a refresh or an import; beyond the horizon it is left to the poll, and to whoever has its slot when that
 * is another and it is not due before that one looks. */
void scheduler_add(struct scheduler *s, const char *application_id, const char *service_id, const uint8_t id[16], int64_t due_at);
/* The connection `id` was changed by someone: look at its row. */
void scheduler_look_at(struct scheduler *s, const uint8_t id[16]);
bool scheduler_owns(const struct scheduler *s, const uint8_t id[16]);
/* Wire to refresh_events.done and .gate. */
void scheduler_on_done(struct scheduler *s, const struct refresh_done *d);
void scheduler_on_gate(struct scheduler *s, const char *provider);

struct scheduler_figures {
	uint64_t entries, due;
	double oldest_due_age_s;
};
void scheduler_figures(const struct scheduler *s, struct scheduler_figures *out);

#endif
