/*
 * pgsync - one blocking connection for the command-line program and for migrations. Never used by the daemon's loop.
 */
#ifndef REFRESHD_IO_PGSYNC_H
#define REFRESHD_IO_PGSYNC_H

#include "base/status.h"
#include "io/pgargs.h"

struct pgsync;

/* Notices are dropped. The fault names host and database, never the password. */
int pgsync_connect(const char *url, const char *application_name, struct pgsync **out, struct fault *f) MUST_USE;
void pgsync_free(struct pgsync *p);
/* Statements that return nothing and take nothing, possibly several separated by ';' (migrations, BEGIN). */
int pgsync_exec(struct pgsync *p, const char *sql, struct fault *f) MUST_USE;
/* Takes args (NULL: none). The result is owned by the caller: pgsync_clear. The fault gives the SQLSTATE and the server's
 * primary message, whose values are ours only where parameters cannot leak (no DETAIL). sqlstate may be NULL. */
int pgsync_query(struct pgsync *p, const struct pgstmt *s, struct pgargs *args, struct pgresult *out, char sqlstate[6], struct fault *f) MUST_USE;
void pgsync_clear(struct pgresult *r);
/* COPY ... FROM STDIN (FORMAT binary): begin, rows, end. Each row is the fields of one pgargs (taken). */
int pgsync_copy_begin(struct pgsync *p, const char *sql, struct fault *f) MUST_USE;
int pgsync_copy_row(struct pgsync *p, struct pgargs *row, struct fault *f) MUST_USE;
int pgsync_copy_end(struct pgsync *p, struct fault *f) MUST_USE;
/* Waits for a notification or the deadline. 0 or ST_TIMEOUT or ST_CLOSED. */
int pgsync_wait_notify(struct pgsync *p, int64_t timeout_us, struct fault *f) MUST_USE;

#endif
