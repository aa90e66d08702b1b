/*
 * pgsync - blocking libpq for programs that have nothing else to do meanwhile.
 *
 * Here names may be resolved by libpq and a migration may take its time, so there are no session timeouts.
 * Faults hold SQLSTATE and primary message, never DETAIL or the connection string.
 */
#include "io/pgsync.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>

#include <libpq-fe.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "base/mem.h"
#include "base/sys.h"
#include "io/pgerror.h"

#define SYNC_MAGIC 0x50475359u
#define COPY_CHUNK (64u * 1024)
#define COPY_MAX (256u * 1024 * 1024)

struct pgsync {
	unsigned magic;
	PGconn *pg;
	struct buf copy; /* rows not yet given to libpq */
	bool copying;
};

static void drop_notice(void *arg, const PGresult *res)
{
	(void)arg;
	(void)res;
}

static int connection_fault(const PGconn *pg, int code, struct fault *f)
{
	char line[320];
	pgerror_line(PQerrorMessage(pg), line, sizeof(line));
	return fault_set(f, code, "%s", line);
}

/* What went wrong with a statement, or with the connection under it. */
static int result_fault(const struct pgsync *p, const PGresult *res, char sqlstate[6], struct fault *f)
{
	char state[6], constraint[64], table[64], line[256];
	pgerror_read(res, state, constraint, table);
	if (sqlstate != NULL)
		memcpy(sqlstate, state, sizeof(state));
	if (state[0] == '\0')
		return connection_fault(p->pg, ST_CLOSED, f);
	const char *primary = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	pgerror_line(primary != NULL ? primary : "", line, sizeof(line));
	int code = ST_INVALID;
	switch (pgerror_class(state)) {
	case PG_CLASS_CONNECTION:
	case PG_CLASS_UNKNOWN:
		code = ST_CLOSED;
		break;
	case PG_CLASS_RETRY:
		code = ST_AGAIN;
		break;
	case PG_CLASS_RESOURCES:
		code = ST_NO_SPACE;
		break;
	case PG_CLASS_OK:
	case PG_CLASS_READ_ONLY:
	case PG_CLASS_BUG:
		break;
	}
	if (strncmp(state, "23", 2) == 0)
		code = ST_CONFLICT;
	else if (strcmp(state, "42501") == 0)
		code = ST_DENIED;
	return fault_set(f, code, "%s (SQLSTATE %s)", line, state);
}

int pgsync_connect(const char *url, const char *application_name, struct pgsync **out, struct fault *f)
{
	char *message = NULL;
	PQconninfoOption *parsed = PQconninfoParse(url, &message);
	if (message != NULL)
		PQfreemem(message); /* quotes the URL, which may hold a password */
	if (parsed == NULL)
		return fault_set(
			f, ST_SYNTAX, "database URL: neither a libpq URI nor a list of keyword=value");
	PQconninfoFree(parsed);
	/* The defaults come before dbname, whose expansion overrides what it names. */
	const char *const keywords[] = {"gssencmode", "keepalives_idle", "keepalives_interval",
		"keepalives_count", "tcp_user_timeout", "connect_timeout", "dbname", "client_encoding",
		"fallback_application_name", NULL};
	const char *const values[] = {
		"disable", "10", "5", "3", "15000", "10", url, "UTF8", application_name, NULL};
	PGconn *pg = PQconnectdbParams(keywords, values, 1);
	ALWAYS(pg != NULL);
	if (PQstatus(pg) != CONNECTION_OK) {
		int code = connection_fault(pg, ST_UNAVAILABLE, f);
		PQfinish(pg);
		return code;
	}
	(void)PQsetNoticeReceiver(pg, drop_notice, NULL);
	struct pgsync *p = mem_alloc(sizeof(*p));
	p->magic = SYNC_MAGIC;
	p->pg = pg;
	buf_init_secret(&p->copy, COPY_MAX);
	*out = p;
	return 0;
}

void pgsync_free(struct pgsync *p)
{
	if (p == NULL)
		return;
	MAGIC_CHECK(p, SYNC_MAGIC);
	PQfinish(p->pg);
	buf_fini(&p->copy);
	p->magic = 0;
	mem_free(p);
}

int pgsync_exec(struct pgsync *p, const char *sql, struct fault *f)
{
	MAGIC_CHECK(p, SYNC_MAGIC);
	PGresult *res = PQexec(p->pg, sql);
	ExecStatusType st = PQresultStatus(res);
	int rc = 0;
	if (st != PGRES_COMMAND_OK && st != PGRES_TUPLES_OK && st != PGRES_EMPTY_QUERY)
		rc = result_fault(p, res, NULL, f);
	PQclear(res);
	return rc;
}

int pgsync_query(struct pgsync *p, const struct pgstmt *s, struct pgargs *args, struct pgresult *out,
	char sqlstate[6], struct fault *f)
{
	MAGIC_CHECK(p, SYNC_MAGIC);
	const Oid *oids = NULL;
	const char *const *values = NULL;
	const int *lengths = NULL, *formats = NULL;
	int n = 0;
	if (args != NULL) {
		n = (int)pgargs_count(args);
		pgargs_vectors(args, &oids, &values, &lengths, &formats);
	}
	PGresult *res = PQexecParams(p->pg, s->sql, n, oids, values, lengths, formats, 1);
	pgargs_free(args);
	ExecStatusType st = PQresultStatus(res);
	if (st != PGRES_COMMAND_OK && st != PGRES_TUPLES_OK && st != PGRES_EMPTY_QUERY) {
		int rc = result_fault(p, res, sqlstate, f);
		PQclear(res);
		return rc;
	}
	out->res = res;
	return 0;
}

void pgsync_clear(struct pgresult *r)
{
	PQclear(r->res);
	r->res = NULL;
}

/* ---- COPY FROM STDIN, binary */

/* Signature, flags, length of the header extension. */
static const char copy_header[19] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0";
static const char copy_trailer[2] = {'\377', '\377'};

/* Not libpq's words: they may quote the server on a row. */
static int copy_lost(struct fault *f)
{
	return fault_set(f, ST_CLOSED, "COPY: the connection to the database server was lost");
}

static int push_copy(struct pgsync *p, struct fault *f)
{
	if (p->copy.len == 0)
		return 0;
	int rc = PQputCopyData(p->pg, (const char *)p->copy.data, (int)p->copy.len);
	buf_reset(&p->copy);
	return rc == 1 ? 0 : copy_lost(f);
}

int pgsync_copy_begin(struct pgsync *p, const char *sql, struct fault *f)
{
	MAGIC_CHECK(p, SYNC_MAGIC);
	ALWAYS(!p->copying);
	PGresult *res = PQexec(p->pg, sql);
	ExecStatusType st = PQresultStatus(res);
	int rc = 0;
	if (st == PGRES_COPY_IN && PQbinaryTuples(res) != 1) {
		rc = fault_set(f, ST_INVALID, "COPY is not in binary format");
		(void)PQputCopyEnd(p->pg, "not binary");
	} else if (st != PGRES_COPY_IN) {
		rc = result_fault(p, res, NULL, f);
	}
	PQclear(res);
	if (rc != 0) {
		while ((res = PQgetResult(p->pg)) != NULL)
			PQclear(res);
		return rc;
	}
	p->copying = true;
	buf_reset(&p->copy);
	ALWAYS(buf_append(&p->copy, copy_header, sizeof(copy_header)) == 0);
	return 0;
}

static int append_be(struct buf *b, uint32_t v, unsigned bytes)
{
	uint8_t be[4];
	bytes_put_be32(be, v);
	return buf_append(b, be + 4 - bytes, bytes);
}

static int append_row(struct buf *b, const struct pgargs *row)
{
	const Oid *oids;
	const char *const *values;
	const int *lengths, *formats;
	unsigned n = pgargs_count(row);
	ALWAYS(n <= INT16_MAX);
	pgargs_vectors(row, &oids, &values, &lengths, &formats);
	int rc = append_be(b, n, 2);
	for (unsigned i = 0; rc == 0 && i < n; i++) {
		rc = append_be(b, values[i] != NULL ? (uint32_t)lengths[i] : UINT32_MAX, 4);
		if (rc == 0 && values[i] != NULL)
			rc = buf_append(b, values[i], (size_t)lengths[i]);
	}
	return rc;
}

int pgsync_copy_row(struct pgsync *p, struct pgargs *row, struct fault *f)
{
	MAGIC_CHECK(p, SYNC_MAGIC);
	ALWAYS(p->copying);
	size_t before = p->copy.len;
	int rc = append_row(&p->copy, row);
	pgargs_free(row);
	if (rc != 0) {
		buf_truncate(&p->copy, before);
		return fault_set(f, rc, "COPY: a row is larger than %u bytes", COPY_MAX);
	}
	return p->copy.len >= COPY_CHUNK ? push_copy(p, f) : 0;
}

int pgsync_copy_end(struct pgsync *p, struct fault *f)
{
	MAGIC_CHECK(p, SYNC_MAGIC);
	ALWAYS(p->copying);
	p->copying = false;
	ALWAYS(buf_append(&p->copy, copy_trailer, sizeof(copy_trailer)) == 0);
	int rc = push_copy(p, f);
	if (rc != 0)
		return rc;
	if (PQputCopyEnd(p->pg, NULL) != 1)
		return copy_lost(f);
	PGresult *res;
	while ((res = PQgetResult(p->pg)) != NULL) {
		if (rc == 0 && PQresultStatus(res) != PGRES_COMMAND_OK)
			rc = result_fault(p, res, NULL, f);
		PQclear(res);
	}
	return rc;
}

/* ---- notifications */

static bool take_notify(struct pgsync *p)
{
	PGnotify *n = PQnotifies(p->pg);
	if (n == NULL)
		return false;
	PQfreemem(n);
	return true;
}

static int poll_ms(int64_t us)
{
	int64_t ms = (us + US_PER_MS - 1) / US_PER_MS;
	return ms > INT_MAX ? INT_MAX : (int)ms;
}

int pgsync_wait_notify(struct pgsync *p, int64_t timeout_us, struct fault *f)
{
	MAGIC_CHECK(p, SYNC_MAGIC);
	int64_t end_us = sys_mono_us() + timeout_us;
	for (;;) {
		if (PQconsumeInput(p->pg) != 1)
			return connection_fault(p->pg, ST_CLOSED, f);
		if (take_notify(p))
			return 0;
		int64_t left_us = end_us - sys_mono_us();
		if (left_us <= 0)
			return fault_set(f, ST_TIMEOUT, "no notification came in time");
		struct pollfd pfd = {.fd = PQsocket(p->pg), .events = POLLIN};
		if (poll(&pfd, 1, poll_ms(left_us)) < 0 && errno != EINTR)
			return fault_set(f, ST_IO, "poll: %s", strerror(errno));
	}
}
