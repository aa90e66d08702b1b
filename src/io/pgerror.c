/*
 * pgerror - SQLSTATE to class, and error fields without values.
 *
 * The classes are the ones that change what a caller does next; everything that nobody expects is ours to
 * fix (PG_CLASS_BUG) and is never retried unchanged. Must never copy a DETAIL or a primary message of a
 * statement.
 */
#include "io/pgerror.h"

#include <stdio.h>
#include <string.h>

#include <libpq-fe.h>

#include "base/mem.h"

const char *pg_class_word(enum pg_class c)
{
	static const char *const words[] = {
#define X(id, word) [id] = word,
		PG_CLASS_LIST(X)
#undef X
	};
	ALWAYS((size_t)c < sizeof(words) / sizeof(words[0]));
	return words[c];
}

/* The longest matching prefix decides, so the exact codes come before their class. */
static const struct {
	const char *prefix;
	enum pg_class class;
} rules[] = {
	{"08007", PG_CLASS_UNKNOWN},    /* transaction_resolution_unknown */
	{"40003", PG_CLASS_UNKNOWN},    /* statement_completion_unknown */
	{"08P01", PG_CLASS_BUG},        /* protocol_violation */
	{"08", PG_CLASS_CONNECTION},    /* connection_exception */
	{"57P01", PG_CLASS_CONNECTION}, /* admin_shutdown */
	{"57P02", PG_CLASS_CONNECTION}, /* crash_shutdown */
	{"57P03", PG_CLASS_CONNECTION}, /* cannot_connect_now */
	{"57P04", PG_CLASS_CONNECTION}, /* database_dropped */
	{"57P05", PG_CLASS_CONNECTION}, /* idle_session_timeout */
	{"53300", PG_CLASS_CONNECTION}, /* too_many_connections */
	{"25006", PG_CLASS_CONNECTION}, /* read_only_sql_transaction */
	{"25P03", PG_CLASS_CONNECTION}, /* idle_in_transaction_session_timeout */
	{"40", PG_CLASS_RETRY},         /* serialization, deadlock and other forced rollbacks */
	{"55P03", PG_CLASS_RETRY},      /* lock_not_available */
	{"57014", PG_CLASS_RETRY},      /* query_canceled */
	{"53", PG_CLASS_RESOURCES},     /* disk full, out of memory, configured limits */
	{"58030", PG_CLASS_RESOURCES},  /* io_error */
};

enum pg_class pgerror_class(const char *sqlstate)
{
	if (sqlstate[0] == '\0')
		return PG_CLASS_CONNECTION;
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (strncmp(sqlstate, rules[i].prefix, strlen(rules[i].prefix)) == 0)
			return rules[i].class;
	return PG_CLASS_BUG;
}

static void copy_field(const PGresult *res, int field, char *out, size_t room)
{
	const char *s = PQresultErrorField(res, field);
	snprintf(out, room, "%s", s != NULL ? s : "");
}

void pgerror_read(const struct pg_result *res, char sqlstate[6], char constraint[64], char table[64])
{
	copy_field(res, PG_DIAG_SQLSTATE, sqlstate, 6);
	copy_field(res, PG_DIAG_CONSTRAINT_NAME, constraint, 64);
	copy_field(res, PG_DIAG_TABLE_NAME, table, 64);
}

bool pgerror_is_fatal(const struct pg_result *res)
{
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
	return severity != NULL && (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0);
}

/* Every server since 9.6 says its severity twice, the second time untranslated; PgBouncer does not. */
bool pgerror_is_pooler(const struct pg_result *res)
{
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	return sqlstate != NULL && strcmp(sqlstate, "08P01") == 0 &&
	       (pgerror_is_fatal(res) || PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED) == NULL);
}

void pgerror_line(const char *message, char *out, size_t room)
{
	size_t n = 0;
	bool gap = false;
	for (const char *p = message; *p != '\0' && n + 4 < room; p++) {
		unsigned char c = (unsigned char)*p;
		if (c == '\n' || c == '\r' || c == '\t' || c == ' ') {
			gap = n > 0;
			continue;
		}
		if (gap)
			out[n++] = ' ';
		gap = false;
		out[n++] = c < 0x20 || c == 0x7f ? '?' : (char)c;
	}
	out[n] = '\0';
}
