/*
 * pglink - a connection to Postgres on the loop, in pipeline mode, for one prepared statement that runs again
 * and again.
 */
#ifndef REFRESHD_BENCH_PGLINK_H
#define REFRESHD_BENCH_PGLINK_H

#include <event2/event.h>
#include <libpq-fe.h>
#include <stdbool.h>

#include "pgwire.h"

#define PGLINK_ARGS 4 /* of a statement, at most */

struct pglink {
	struct event_base *base;
	PGconn *pg;
	struct event *in, *out;
	PGresult *result;
	bool busy;
	void (*committed)(void *arg, PGresult *r);
	void *arg;
};

/* Connected, and for pglink_sql() and libpq's own waiting calls. committed owns the result that it is given.
 */
void pglink_init(struct pglink *k, const char *conninfo, struct event_base *base,
	void (*committed)(void *arg, PGresult *r), void *arg);
void pglink_sql(struct pglink *k, const char *text);
void pglink_exec(struct pglink *k, const char *statement, const struct array *v, int n);
void pglink_start(struct pglink *k, const char *statement); /* from here on it is for pglink_ask() */
void pglink_ask(struct pglink *k, const struct array *v, int n);
void pglink_stop(struct pglink *k); /* as after pglink_init() */
void pglink_fini(struct pglink *k);

#endif
