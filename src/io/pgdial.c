/*
 * pgdial - drives PQconnectPoll by socket events and a deadline of its own.
 *
 * The event is made anew for every poll because libpq may have closed the socket and opened another under the
 * same number. Must never call libpq with a host that is not an address (see pgtarget).
 */
#include "io/pgdial.h"

#include <string.h>

#include <event2/event.h>
#include <libpq-fe.h>

#include "base/mem.h"
#include "io/pgerror.h"

#define DIAL_MAGIC 0x50474449u

struct pgdial {
	unsigned magic;
	struct loop *loop;
	struct pgtarget *target;
	struct pgtarget_query *query;
	struct loop_timer *deadline;
	struct loop_task failed; /* carries `why` out of a start that fails at once */
	PGconn *conn;
	struct event *ev;
	struct fault why;
	pgdial_fn *fn;
	void *arg;
};

static void drop_notice(void *arg, const PGresult *res)
{
	(void)arg;
	(void)res;
}

static void release(struct pgdial *d)
{
	pgtarget_cancel(d->query);
	loop_undefer(d->loop, &d->failed);
	loop_timer_free(d->deadline);
	if (d->ev != NULL)
		event_free(d->ev);
	if (d->conn != NULL)
		PQfinish(d->conn);
	d->magic = 0;
	mem_free(d);
}

static void finish(struct pgdial *d, int code, const struct fault *why)
{
	pgdial_fn *fn = d->fn;
	void *arg = d->arg;
	struct fault copy = {.code = 0};
	PGconn *conn = NULL;
	if (code == 0) {
		conn = d->conn;
		d->conn = NULL;
	} else {
		copy = *why;
	}
	release(d);
	fn(arg, code, conn, &copy);
}

static void on_failed(void *arg)
{
	struct pgdial *d = arg;
	MAGIC_CHECK(d, DIAL_MAGIC);
	struct fault why = d->why;
	finish(d, why.code, &why);
}

/* libpq gives no SQLSTATE for a failed start-up, only the server's words. */
static int classify(const char *line)
{
	static const char *const refused[] = {"password authentication failed", "authentication failed",
		"no password supplied", "no pg_hba.conf entry", "does not exist", "permission denied",
		"is not permitted to log in", "no such user", "no such database",
		"SASL authentication failed"};
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		if (strstr(line, "FATAL") != NULL && strstr(line, refused[i]) != NULL)
			return ST_DENIED;
	return strstr(line, "no password supplied") != NULL ? ST_DENIED : ST_UNAVAILABLE;
}

static void fail_with_message(struct pgdial *d)
{
	struct fault why;
	char line[360];
	pgerror_line(PQerrorMessage(d->conn), line, sizeof(line));
	int code = classify(line);
	(void)fault_set(&why, code, "%s", line);
	finish(d, code, &why);
}

static void poll_again(struct pgdial *d, PostgresPollingStatusType want);

static void on_socket(evutil_socket_t fd, short what, void *arg)
{
	struct pgdial *d = arg;
	(void)fd;
	(void)what;
	MAGIC_CHECK(d, DIAL_MAGIC);
	loop_enter(d->loop);
	event_free(d->ev); /* before libpq may close the socket */
	d->ev = NULL;
	PostgresPollingStatusType want = PQconnectPoll(d->conn);
	if (want == PGRES_POLLING_OK && PQsetnonblocking(d->conn, 1) == 0)
		finish(d, 0, NULL);
	else if (want == PGRES_POLLING_READING || want == PGRES_POLLING_WRITING)
		poll_again(d, want);
	else
		fail_with_message(d);
}

static void poll_again(struct pgdial *d, PostgresPollingStatusType want)
{
	short what = want == PGRES_POLLING_READING ? EV_READ : EV_WRITE;
	d->ev = event_new(loop_base(d->loop), PQsocket(d->conn), what, on_socket, d);
	ALWAYS(d->ev != NULL && event_add(d->ev, NULL) == 0);
}

static void on_deadline(void *arg)
{
	struct pgdial *d = arg;
	struct fault why;
	MAGIC_CHECK(d, DIAL_MAGIC);
	const char *host = d->conn != NULL ? PQhost(d->conn) : NULL;
	(void)fault_set(&why, ST_TIMEOUT, "connecting to the database%s%s took longer than %lld s",
		host != NULL ? " at " : "", host != NULL ? host : "",
		(long long)(pgtarget_connect_timeout_us(d->target) / 1000000));
	finish(d, ST_TIMEOUT, &why);
}

static void on_target(void *arg, const struct pgtarget_answer *a)
{
	struct pgdial *d = arg;
	MAGIC_CHECK(d, DIAL_MAGIC);
	d->query = NULL;
	if (a->code != 0) {
		d->why = a->why;
		loop_defer(d->loop, &d->failed);
		return;
	}
	d->conn = PQconnectStartParams(a->keywords, a->values, 0);
	ALWAYS(d->conn != NULL);
	(void)PQsetNoticeReceiver(d->conn, drop_notice, NULL);
	if (PQstatus(d->conn) == CONNECTION_BAD || PQsocket(d->conn) < 0) {
		pgerror_line(PQerrorMessage(d->conn), d->why.text, sizeof(d->why.text));
		d->why.code = classify(d->why.text);
		loop_defer(d->loop, &d->failed);
		return;
	}
	poll_again(d, PGRES_POLLING_WRITING);
}

struct pgdial *pgdial_start(
	struct pgtarget *t, struct loop *l, struct resolver *r, unsigned rotate, pgdial_fn *fn, void *arg)
{
	struct pgdial *d = mem_alloc(sizeof(*d));
	d->magic = DIAL_MAGIC;
	d->loop = l;
	d->target = t;
	d->fn = fn;
	d->arg = arg;
	loop_task_init(&d->failed, on_failed, d);
	d->deadline = loop_timer_new(l, on_deadline, d);
	loop_timer_after(d->deadline, pgtarget_connect_timeout_us(t));
	d->query = pgtarget_resolve(t, l, r, rotate, on_target, d);
	return d;
}

void pgdial_cancel(struct pgdial *d)
{
	if (d == NULL)
		return;
	MAGIC_CHECK(d, DIAL_MAGIC);
	release(d);
}
