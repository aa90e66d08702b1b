/*
 * daemon_priv - what the files of `daemon` share. For daemon*.c only.
 */
#ifndef REFRESHD_DAEMON_PRIV_H
#define REFRESHD_DAEMON_PRIV_H

#include "api/api.h"
#include "io/httpc.h"
#include "io/journal.h"
#include "io/loop.h"
#include "io/resolver.h"
#include "service/budget.h"
#include "service/health.h"
#include "service/refresh.h"
#include "service/scheduler.h"
#include "service/store.h"
#include "service/webhook.h"

#define DAEMON_MAGIC UINT32_C(0x6461656d)

#define PHASE_LIST(X)                                                            \
	X(PHASE_WAITING, "waiting for the database")                             \
	X(PHASE_REPLAYING, "replaying the journal")                              \
	X(PHASE_RECOVERING, "taking back what an earlier run left behind")       \
	X(PHASE_RUNNING, "running")                                              \
	X(PHASE_DRAINING, "draining")
enum phase {
#define X(id, word) id,
	PHASE_LIST(X)
#undef X
};

struct daemon {
	uint32_t magic;
	struct loop *loop;
	struct conf *conf;
	struct resolver *resolver;
	struct httpc *token_http, *webhook_http;
	struct journal *journal;
	struct store *store;
	struct budget *budget;
	struct refresh *refresh;
	struct scheduler *scheduler;
	struct webhook *webhook;
	struct api *api; /* NULL: none is configured */
	struct health *health;
	struct health_parts parts;
	struct store_notice notice;
	struct loop_timer *tick, *beat, *watchdog, *drain_deadline;
	enum phase phase;
	struct budget_share share; /* ours among the daemons that run */
	uint8_t home[16];
	int64_t wall_offset_us; /* wall minus mono, at the last look */
	bool clock_off;		/* and the machine's clock did not count then */
	unsigned recover_refusals; /* in a row, at this start */
	bool recover_early;	/* to be sent again when the database is back */
};

/* daemon_reload.c */
void daemon_use_conf(struct daemon *d); /* d->conf becomes everybody's */
void daemon_on_reload(void *arg);	/* SIGHUP */

/* daemon_home.c: who this journal belongs to, kept beside it */
int daemon_home(const char *dir, uint8_t home[16], struct fault *f) MUST_USE;

#endif
