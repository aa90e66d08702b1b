/*
 * pgcluster - a private Postgres cluster for Check programs; the same as pgcluster.py.
 *
 * Lives in a temporary directory with a unix socket of its own and ends with the process (the kernel kills
 * the postmaster when its parent dies). As root the server runs as user postgres. What goes wrong in here
 * aborts the test program with a message: without a server there is nothing to test.
 */
#ifndef REFRESHD_TESTS_PGCLUSTER_H
#define REFRESHD_TESTS_PGCLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#define PGCLUSTER_PASSWORD "cluster-test-password"

struct pgcluster;

struct pgcluster *pgcluster_new(void); /* initdb and start; socket, and TCP on 127.0.0.1 with a password */
void pgcluster_free(struct pgcluster *c);

void pgcluster_start(struct pgcluster *c); /* returns when it takes connections; runs already: nothing */
void pgcluster_stop(
	struct pgcluster *c, int signo); /* SIGINT fast, SIGQUIT immediate, SIGKILL the postmaster alone */

/* Borrowed until the next call with the same cluster. `more` is appended, e.g. "dbname=x" (the last one
 * wins). */
const char *pgcluster_url(struct pgcluster *c, const char *more);
const char *pgcluster_sock(const struct pgcluster *c);
uint16_t pgcluster_port(const struct pgcluster *c);
/* Runs SQL on a connection of its own; the first value of the last result or "", borrowed until the next
 * call. */
const char *pgcluster_sql(struct pgcluster *c, const char *sql);

/* PgBouncer, transaction pooling, in front of it; returns the URL, borrowed until stop. */
const char *pgcluster_bouncer_start(struct pgcluster *c);
void pgcluster_bouncer_stop(struct pgcluster *c);

uint16_t pgcluster_free_port(void); /* below the ephemeral range, free a moment ago */

#endif
