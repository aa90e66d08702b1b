/*
 * pgconn - the pipeline of one connection: sending, the FIFO of what is in flight, reading, and dying.
 *
 * libpq keeps no account of which result belongs to whom, so the cursor of the oldest transaction does: per
 * statement an optional Parse result, the result, each ended by a NULL, then one PIPELINE_SYNC without. A
 * commit is believed only with that Sync. Must never call its owner from inside a call of the owner, and
 * never pass on a message of the server.
 */
#include "io/pgconn.h"

#include <stdio.h>
#include <string.h>

#include <event2/event.h>
#include <libpq-fe.h>

#include "base/mem.h"
#include "base/sys.h"
#include "io/pgerror.h"

#define CONN_MAGIC 0x5047434eu
#define TX_MAGIC 0x50475458u
#define PROVEN_AFTER_US (10 * US_PER_S)
#define REPLAN_FIRST_US US_PER_S
#define REPLAN_MAX_US (10 * 60 * US_PER_S)

/* A statement known to this connection. After a failure its name is never used again (the server may or may
 * not hold it): the next generation gets a new one. */
struct prepared {
	const struct pgstmt *stmt;
	unsigned generation;
	bool sent;
	bool confirmed; /* its Parse succeeded */
};

struct pgconn {
	unsigned magic;
	struct loop *loop;
	PGconn *pg;
	struct event *readable;
	struct event *writable;
	struct loop_timer *stall;
	struct loop_task bury;
	struct pgconn_params params;
	const struct pgconn_events *ev;
	void *owner;

	struct pgtx *first, **tail;
	unsigned n;
	struct prepared *prepared;
	unsigned n_prepared, room_prepared;

	bool unsent;    /* the kernel takes no more: libpq would move what is left about at every write */
	bool broken;    /* takes and sends nothing any more */
	bool read_only; /* takes nothing any more, reads what is in flight */
	bool committed;
	int64_t since_us;
	int64_t replan_us; /* mono */
	char ended_with[6]; /* SQLSTATE of the server's last words */
	struct fault why;
};

/* ---- transactions */

struct pgtx *pgtx_new(void)
{
	struct pgtx *t = mem_alloc(sizeof(*t));
	t->magic = TX_MAGIC;
	return t;
}

static void clear_results(struct pgtx *t)
{
	for (unsigned i = 0; t->results != NULL && i < t->n; i++) {
		PQclear(t->results[i].res);
		t->results[i].res = NULL;
	}
}

void pgtx_release(struct pgtx *t)
{
	MAGIC_CHECK(t, TX_MAGIC);
	clear_results(t);
	for (unsigned i = 0; i < t->n; i++)
		pgargs_free(t->stmts[i].args);
	mem_free(t->results);
	mem_free(t->stmts);
	t->magic = 0;
	mem_free(t);
}

void pgtx_free(struct pgtx *t)
{
	if (t == NULL)
		return;
	MAGIC_CHECK(t, TX_MAGIC);
	ALWAYS(t->fn == NULL);
	pgtx_release(t);
}

void pgtx_add(struct pgtx *t, const struct pgstmt *s, struct pgargs *args)
{
	MAGIC_CHECK(t, TX_MAGIC);
	ALWAYS(t->fn == NULL);
	if (t->n == t->room) {
		t->room = t->room ? t->room * 2 : 4;
		t->stmts = mem_realloc(t->stmts, t->room, sizeof(*t->stmts));
	}
	t->stmts[t->n++] = (struct pgtx_stmt){.stmt = s, .args = args};
}

void pgtx_reset(struct pgtx *t)
{
	MAGIC_CHECK(t, TX_MAGIC);
	clear_results(t);
	if (t->results == NULL)
		t->results = mem_calloc(t->n, sizeof(*t->results));
	for (unsigned i = 0; i < t->n; i++)
		t->stmts[i].prepare = false;
	t->out = (struct pgtx_result){.class = PG_CLASS_OK, .wait_us = t->out.wait_us};
	t->cursor = 0;
	t->preparing = t->got_result = t->failed = t->fatal = t->flushed = false;
	t->failed_at = 0;
	t->next = NULL;
}

/* ---- sending */

static void break_connection(struct pgconn *c, const char *what)
{
	if (c->broken)
		return;
	c->broken = true;
	event_del(c->readable); /* libpq may have closed the socket: let go before its number is used again */
	event_del(c->writable);
	loop_timer_stop(c->stall);
	(void)fault_set(&c->why, ST_CLOSED, "%s", what);
	loop_defer(c->loop, &c->bury);
}

static struct prepared *prepared_find(struct pgconn *c, const struct pgstmt *s)
{
	for (unsigned i = 0; i < c->n_prepared; i++)
		if (c->prepared[i].stmt == s)
			return &c->prepared[i];
	if (c->n_prepared == c->room_prepared) {
		c->room_prepared = c->room_prepared ? c->room_prepared * 2 : 32;
		c->prepared = mem_realloc(c->prepared, c->room_prepared, sizeof(*c->prepared));
	}
	struct prepared *p = &c->prepared[c->n_prepared++];
	*p = (struct prepared){.stmt = s, .generation = 1};
	return p;
}

static void prepared_forget(struct pgconn *c, const struct pgtx_stmt *ts)
{
	struct prepared *p = prepared_find(c, ts->stmt);
	if (p->generation != ts->generation)
		return; /* someone else in flight noticed first */
	p->generation++;
	p->sent = p->confirmed = false;
}

static void prepared_confirm(struct pgconn *c, const struct pgtx_stmt *ts)
{
	struct prepared *p = prepared_find(c, ts->stmt);
	if (p->generation == ts->generation)
		p->confirmed = true;
}

/* A first try relies on a Parse that another transaction in flight has sent; a second try, whose first may
 * have been ruined by just that, brings its own. */
static int send_prepared(struct pgconn *c, struct pgtx_stmt *ts, bool retried, int n, const Oid *oids,
	const char *const *values, const int *lengths, const int *formats)
{
	struct prepared *p = prepared_find(c, ts->stmt);
	char name[128];
	if (retried && p->sent && !p->confirmed) {
		p->generation++;
		p->sent = false;
	}
	if (p->generation == 1)
		snprintf(name, sizeof(name), "%s", ts->stmt->name);
	else
		snprintf(name, sizeof(name), "%s.%u", ts->stmt->name, p->generation);
	ts->generation = p->generation;
	ts->prepare = !p->sent;
	if (ts->prepare && PQsendPrepare(c->pg, name, ts->stmt->sql, n, oids) != 1)
		return ST_CLOSED;
	p->sent = true;
	return PQsendQueryPrepared(c->pg, name, n, values, lengths, formats, 1) == 1 ? 0 : ST_CLOSED;
}

static int send_statement(struct pgconn *c, struct pgtx_stmt *ts, bool retried)
{
	const Oid *oids = NULL;
	const char *const *values = NULL;
	const int *lengths = NULL, *formats = NULL;
	int n = 0;
	if (ts->args != NULL) {
		n = (int)pgargs_count(ts->args);
		pgargs_vectors(ts->args, &oids, &values, &lengths, &formats);
	}
	if (c->params.prepare)
		return send_prepared(c, ts, retried, n, oids, values, lengths, formats);
	return PQsendQueryParams(c->pg, ts->stmt->sql, n, oids, values, lengths, formats, 1) == 1 ? 0
												  : ST_CLOSED;
}

static void flush(struct pgconn *c)
{
	if (c->broken)
		return;
	int rc = PQflush(c->pg);
	if (rc < 0) {
		break_connection(c, "writing to the database server failed");
	} else if (rc > 0) {
		c->unsent = true;
		ALWAYS(event_add(c->writable, NULL) == 0);
	} else {
		c->unsent = false;
		event_del(c->writable);
		for (struct pgtx *t = c->first; t != NULL; t = t->next)
			t->flushed = true;
	}
}

static void expect_progress(struct pgconn *c)
{
	if (c->params.stall_us <= 0 || c->broken)
		return;
	if (c->first == NULL)
		loop_timer_stop(c->stall);
	else
		loop_timer_after(c->stall, c->params.stall_us);
}

int pgconn_submit(struct pgconn *c, struct pgtx *t)
{
	MAGIC_CHECK(c, CONN_MAGIC);
	MAGIC_CHECK(t, TX_MAGIC);
	ALWAYS(pgconn_has_room(c));
	pgtx_reset(t);
	for (unsigned i = 0; i < t->n; i++) {
		if (send_statement(c, &t->stmts[i], t->retried) != 0) {
			break_connection(c, "a statement could not be handed to the connection");
			return ST_CLOSED;
		}
	}
	t->preparing = t->stmts[0].prepare;
	*c->tail = t;
	c->tail = &t->next;
	if (c->n++ == 0)
		expect_progress(c);
	if (PQpipelineSync(c->pg) != 1) {
		t->flushed = true; /* how much of it left is not known */
		break_connection(c, "writing to the database server failed");
		return 0;
	}
	flush(c);
	return 0;
}

/* ---- reading */

static struct pgtx *take_first(struct pgconn *c)
{
	struct pgtx *t = c->first;
	c->first = t->next;
	if (c->first == NULL)
		c->tail = &c->first;
	c->n--;
	t->next = NULL;
	return t;
}

static bool wants_fresh_plan(const struct pgconn *c, const struct pgtx *t)
{
	if (!c->params.prepare || t->retried || t->failed_at >= t->n)
		return false;
	/* The statement is unknown to this session, or its plan returns other columns since the schema
	 * changed. */
	return strcmp(t->out.sqlstate, "26000") == 0 || strcmp(t->out.sqlstate, "0A000") == 0;
}

static void on_sync(struct pgconn *c)
{
	struct pgtx *t = take_first(c);
	if (!t->failed) {
		c->committed = true;
		t->out.n = t->n;
		t->out.results = t->results;
		c->ev->done(c->owner, c, t);
		return;
	}
	if (wants_fresh_plan(c, t)) {
		prepared_forget(c, &t->stmts[t->failed_at]);
		t->retried = true;
		c->ev->again(c->owner, c, t);
		return;
	}
	t->out.class = pgerror_class(t->out.sqlstate);
	if (strcmp(t->out.sqlstate, "25006") == 0)
		c->read_only = true;
	c->ev->done(c->owner, c, t);
}

static void on_error(struct pgconn *c, struct pgtx *t, const PGresult *res)
{
	char sqlstate[6], constraint[64], table[64];
	pgerror_read(res, sqlstate, constraint, table);
	if (sqlstate[0] ==
		'\0') { /* libpq's own: the connection is gone, nothing is known of the statement */
		break_connection(c, "the connection to the database server was lost");
		return;
	}
	if (t->preparing && t->cursor < t->n)
		prepared_forget(c, &t->stmts[t->cursor]);
	if (pgerror_is_fatal(res) || pgerror_is_pooler(res))
		memcpy(c->ended_with, sqlstate, sizeof(c->ended_with));
	/* PgBouncer's own last words, when it lost its server or let us wait too long: it says nothing of any
	 * statement, and what was sent may have been committed. */
	if (pgerror_is_pooler(res)) {
		break_connection(c, "the connection pooler ended the session");
		return;
	}
	if (t->failed)
		return;
	t->failed = true;
	t->fatal = pgerror_is_fatal(res);
	t->failed_at = t->cursor;
	memcpy(t->out.sqlstate, sqlstate, sizeof(sqlstate));
	memcpy(t->out.constraint, constraint, sizeof(constraint));
	memcpy(t->out.table, table, sizeof(table));
}

static void on_result(struct pgconn *c, struct pgtx *t, PGresult *res)
{
	bool is_statement = t->cursor < t->n;
	t->got_result = true;
	switch (PQresultStatus(res)) {
	case PGRES_TUPLES_OK:
	case PGRES_COMMAND_OK:
	case PGRES_EMPTY_QUERY:
		if (is_statement && !t->preparing && t->results[t->cursor].res == NULL) {
			t->results[t->cursor].res = res;
			return;
		}
		if (is_statement && t->preparing)
			prepared_confirm(c, &t->stmts[t->cursor]);
		break;
	case PGRES_PIPELINE_ABORTED:
		if (is_statement && t->preparing)
			prepared_forget(c, &t->stmts[t->cursor]);
		break;
	case PGRES_FATAL_ERROR:
		on_error(c, t, res);
		break;
	default:
		break_connection(c, "the database server answered out of protocol");
		break;
	}
	PQclear(res);
}

/* The NULL after a result: on to the next Parse, statement, or the Sync. */
static void on_result_end(struct pgtx *t)
{
	if (!t->got_result || t->cursor >= t->n)
		return;
	t->got_result = false;
	if (t->preparing) {
		t->preparing = false;
		return;
	}
	t->cursor++;
	t->preparing = t->cursor < t->n && t->stmts[t->cursor].prepare;
}

/* Takes every result that is complete. */
static bool read_results(struct pgconn *c)
{
	bool progress = false;
	for (unsigned nulls = 0; c->first != NULL && nulls < 3 && !PQisBusy(c->pg);) {
		PGresult *res = PQgetResult(c->pg);
		if (res == NULL) {
			on_result_end(c->first);
			nulls++;
			continue;
		}
		nulls = 0;
		progress = true;
		if (PQresultStatus(res) == PGRES_PIPELINE_SYNC) {
			PQclear(res);
			on_sync(c);
		} else {
			on_result(c, c->first, res);
		}
		if (c->broken && PQstatus(c->pg) == CONNECTION_BAD)
			break; /* libpq would report the loss again and again */
	}
	return progress;
}

static bool read_input(struct pgconn *c)
{
	bool alive = PQconsumeInput(c->pg) == 1;
	bool progress = read_results(c);
	if (c->first == NULL && alive)
		(void)PQisBusy(c->pg); /* parses what comes unasked, notices and last words */
	if (!alive || PQstatus(c->pg) == CONNECTION_BAD)
		break_connection(c, "the connection to the database server was lost");
	if (c->read_only && c->first == NULL)
		break_connection(c, "the database server is read-only (25006)");
	return progress;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct pgconn *c = arg;
	(void)fd;
	(void)what;
	MAGIC_CHECK(c, CONN_MAGIC);
	loop_enter(c->loop);
	bool was_unsent = c->unsent;
	if (read_input(c))
		expect_progress(c);
	flush(c);
	if (was_unsent && pgconn_has_room(c))
		c->ev->room(c->owner);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	struct pgconn *c = arg;
	(void)fd;
	(void)what;
	MAGIC_CHECK(c, CONN_MAGIC);
	loop_enter(c->loop);
	flush(c);
	if (pgconn_has_room(c))
		c->ev->room(c->owner);
}

static void on_stall(void *arg)
{
	struct pgconn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	if (read_input(c)) { /* it was us who slept */
		expect_progress(c);
		return;
	}
	char text[96];
	snprintf(text, sizeof(text), "the database server gave no answer for %lld ms",
		(long long)(c->params.stall_us / US_PER_MS));
	break_connection(c, text);
}

/* ---- dying */

/* What can be said of the oldest transaction when its Sync never came. */
static bool certainly_not_committed(const struct pgtx *t)
{
	if (t->failed) /* past the last statement a FATAL may have hit after the commit */
		return !t->fatal || t->failed_at < t->n;
	return !t->flushed && t->next == NULL; /* the last bytes in our buffer are its Sync */
}

static void hand_back(struct pgconn *c)
{
	struct pgtx *again[PGCONN_DEPTH];
	unsigned n = 0;
	bool session_over = false;
	while (c->first != NULL) {
		bool certain = session_over || certainly_not_committed(c->first);
		struct pgtx *t = take_first(c);
		if (certain && (!t->failed || wants_fresh_plan(c, t))) {
			again[n++] = t;
			continue;
		}
		t->out.class = certain ? pgerror_class(t->out.sqlstate) : PG_CLASS_UNKNOWN;
		session_over |= t->fatal; /* the server works in order: what follows was never looked at */
		c->ev->done(c->owner, c, t);
	}
	while (n > 0) /* each goes to the head of a queue: the oldest last */
		c->ev->again(c->owner, c, again[--n]);
}

static void on_bury(void *arg)
{
	struct pgconn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	hand_back(c);
	struct fault why = c->why;
	if (c->ended_with[0] != '\0')
		(void)fault_set(&why, ST_CLOSED, "the database server ended the session (%s)", c->ended_with);
	c->ev->lost(c->owner, c, &why);
}

/* Only the code of the server's last words is kept. */
static void on_notice(void *arg, const PGresult *res)
{
	struct pgconn *c = arg;
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	if (sqlstate != NULL && (pgerror_is_fatal(res) || strcmp(sqlstate, "57P02") == 0))
		snprintf(c->ended_with, sizeof(c->ended_with), "%s", sqlstate);
}

int pgconn_new(struct loop *l, struct pg_conn *conn, const struct pgconn_params *p,
	const struct pgconn_events *ev, void *owner, struct pgconn **out, struct fault *f)
{
	if (PQisnonblocking(conn) != 1 || PQenterPipelineMode(conn) != 1) {
		PQfinish(conn);
		return fault_set(
			f, ST_CLOSED, "the connection to the database server was lost before its first use");
	}
	struct pgconn *c = mem_alloc(sizeof(*c));
	c->magic = CONN_MAGIC;
	c->loop = l;
	c->pg = conn;
	c->params = *p;
	c->ev = ev;
	c->owner = owner;
	c->tail = &c->first;
	c->since_us = sys_mono_us();
	c->replan_us = c->since_us + REPLAN_FIRST_US;
	(void)PQsetNoticeReceiver(conn, on_notice, c);
	loop_task_init(&c->bury, on_bury, c);
	c->stall = loop_timer_new(l, on_stall, c);
	c->readable = event_new(loop_base(l), PQsocket(conn), EV_READ | EV_PERSIST, on_readable, c);
	c->writable = event_new(loop_base(l), PQsocket(conn), EV_WRITE, on_writable, c);
	ALWAYS(c->readable != NULL && c->writable != NULL && event_add(c->readable, NULL) == 0);
	*out = c;
	return 0;
}

struct pgtx *pgconn_take_unfinished(struct pgconn *c)
{
	MAGIC_CHECK(c, CONN_MAGIC);
	return c->first != NULL ? take_first(c) : NULL;
}

void pgconn_free(struct pgconn *c)
{
	if (c == NULL)
		return;
	MAGIC_CHECK(c, CONN_MAGIC);
	loop_undefer(c->loop, &c->bury);
	loop_timer_free(c->stall);
	event_free(c->readable); /* before libpq closes the socket */
	event_free(c->writable);
	while (c->first != NULL)
		pgtx_release(take_first(c));
	PQfinish(c->pg);
	mem_free(c->prepared);
	c->magic = 0;
	mem_free(c);
}

bool pgconn_has_room(const struct pgconn *c)
{
	MAGIC_CHECK(c, CONN_MAGIC);
	return !c->broken && !c->read_only && !c->unsent && c->n < PGCONN_DEPTH;
}

unsigned pgconn_in_flight(const struct pgconn *c)
{
	return c->n;
}

bool pgconn_is_proven(const struct pgconn *c)
{
	return c->committed || sys_mono_us() - c->since_us > PROVEN_AFTER_US;
}

bool pgconn_wants_plans(struct pgconn *c, int64_t now_us)
{
	if (!c->params.prepare || now_us < c->replan_us)
		return false;
	int64_t age = now_us - c->since_us;
	c->replan_us = now_us + (age < REPLAN_MAX_US ? age : REPLAN_MAX_US);
	return true;
}

bool pgconn_is_silent(const struct pgconn *c)
{
	return c->broken && c->ended_with[0] == '\0';
}

bool pgconn_is_read_only(const struct pgconn *c)
{
	return c->read_only;
}
