/*
 * pgerror - what an error of the server means for the caller, and what of it may be passed on.
 *
 * A server's message can hold column values (rulebook: constraint violations print the row), so of a
 * statement only the SQLSTATE and the names of table and constraint leave io/. Messages about connecting
 * hold hosts, database and role names, never the password, and are passed on as one line.
 */
#ifndef REFRESHD_IO_PGERROR_H
#define REFRESHD_IO_PGERROR_H

#include <stdbool.h>
#include <stddef.h>

#include "io/pgpool.h"

enum pg_class pgerror_class(const char *sqlstate); /* never PG_CLASS_OK; "" counts as a lost connection */

/* SQLSTATE, constraint and table of an error result; missing fields become "". */
void pgerror_read(const struct pg_result *res, char sqlstate[6], char constraint[64], char table[64]);
/* The session is over after this error: severity FATAL or PANIC. */
bool pgerror_is_fatal(const struct pg_result *res);
/* PgBouncer ended the session by itself, and does not know what became of any statement. */
bool pgerror_is_pooler(const struct pg_result *res);

/* libpq's message as one line of printable characters, white space folded; cut to fit. */
void pgerror_line(const char *message, char *out, size_t room);

#endif
