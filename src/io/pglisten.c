/*
 * pglisten - notifications, apart from the pipeline.
 *
 * In pipeline mode notifications arrive only between results, and a connection that waits for nothing else is
 * simple to watch: readable means news. After each LISTEN everyone is told that something may have been
 * missed.
 */
#include "io/pglisten.h"

#include <string.h>

#include <event2/event.h>
#include <libpq-fe.h>

#include "base/buf.h"
#include "base/mem.h"
#include "io/pgbackoff.h"
#include "io/pgdial.h"

#define LISTEN_MAGIC 0x50474c49u

struct channel {
	struct channel *next;
	char *name;
	void (*fn)(void *arg, const char *payload);
	void *arg;
	bool requested; /* part of the LISTEN that runs */
	bool told;      /* of the connection as it is now */
};

struct pglisten {
	unsigned magic;
	struct loop *loop;
	struct resolver *resolver;
	struct pgtarget *target;
	struct channel *channels;
	struct pgdial *dial;
	PGconn *pg;
	struct event *readable, *writable;
	struct loop_timer *retry;
	struct loop_task step; /* delivers, and sends the next LISTEN */
	int64_t backoff_us;
	int64_t since_us;
	unsigned rotate;
	bool may_connect;
	bool lost;      /* seen while reading */
	bool listening; /* a LISTEN runs */
	bool in_callback;
	bool freed;
};

static void connect_now(struct pglisten *p);

static void close_connection(struct pglisten *p)
{
	if (p->pg == NULL)
		return;
	event_free(p->readable);
	event_free(p->writable);
	p->readable = p->writable = NULL;
	PQfinish(p->pg);
	p->pg = NULL;
	p->listening = p->lost = false;
	for (struct channel *c = p->channels; c != NULL; c = c->next)
		c->requested = c->told = false;
}

/* libpq may have closed the socket: let go of it before its number is used again. */
static void mark_lost(struct pglisten *p)
{
	p->lost = true;
	event_del(p->readable);
	event_del(p->writable);
}

static void try_later(struct pglisten *p)
{
	loop_timer_after(p->retry, pgbackoff_next(&p->backoff_us));
}

static void flush(struct pglisten *p)
{
	int rc = PQflush(p->pg);
	if (rc > 0)
		ALWAYS(event_add(p->writable, NULL) == 0);
	else if (rc < 0)
		mark_lost(p);
}

/* One LISTEN for all channels that lack it. */
static void send_listen(struct pglisten *p)
{
	struct buf sql = BUF_INIT(64u * 1024);
	for (struct channel *c = p->channels; c != NULL; c = c->next) {
		char *name = c->told ? NULL : PQescapeIdentifier(p->pg, c->name, strlen(c->name));
		if (name == NULL)
			continue;
		ALWAYS(buf_printf(&sql, "LISTEN %s;", name) == 0);
		PQfreemem(name);
		c->requested = true;
	}
	if (sql.len > 0) {
		p->listening = PQsendQuery(p->pg, buf_str(&sql)) == 1;
		p->lost |= !p->listening;
		if (!p->lost)
			flush(p);
	}
	buf_fini(&sql);
}

/* False when the owner freed us meanwhile. */
static bool tell(struct pglisten *p, struct channel *c, const char *payload)
{
	p->in_callback = true;
	c->fn(c->arg, payload);
	p->in_callback = false;
	return !p->freed;
}

static bool tell_listened(struct pglisten *p)
{
	for (struct channel *c = p->channels; c != NULL; c = c->next) {
		if (!c->requested || c->told)
			continue;
		c->told = true;
		if (!tell(p, c, NULL))
			return false;
	}
	return true;
}

static bool tell_payloads(struct pglisten *p)
{
	PGnotify *n;
	bool alive = true;
	while (alive && (n = PQnotifies(p->pg)) != NULL) {
		for (struct channel *c = p->channels; alive && c != NULL; c = c->next)
			if (strcmp(c->name, n->relname) == 0)
				alive = tell(p, c, n->extra);
		PQfreemem(n);
	}
	return alive;
}

/* Reads the answer to LISTEN; true when it has come in full and was good. */
static bool finish_listen(struct pglisten *p)
{
	while (p->listening && !PQisBusy(p->pg)) {
		PGresult *res = PQgetResult(p->pg);
		if (res == NULL) {
			p->listening = false;
			return !p->lost;
		}
		if (PQresultStatus(res) != PGRES_COMMAND_OK)
			p->lost = true; /* a standby, or a pooler: try again, later and elsewhere */
		PQclear(res);
	}
	return false;
}

static void release(struct pglisten *p)
{
	close_connection(p);
	while (p->channels != NULL) {
		struct channel *c = p->channels;
		p->channels = c->next;
		mem_free(c->name);
		mem_free(c);
	}
	p->magic = 0;
	mem_free(p);
}

static void lose(struct pglisten *p)
{
	bool was_good = sys_mono_us() - p->since_us > PGBACKOFF_MAX_US;
	close_connection(p);
	if (was_good)
		p->backoff_us = 0;
	if (p->may_connect)
		try_later(p);
}

static void on_step(void *arg)
{
	struct pglisten *p = arg;
	MAGIC_CHECK(p, LISTEN_MAGIC);
	if (p->pg == NULL)
		return;
	bool done = finish_listen(p);
	bool alive = (!done || tell_listened(p)) && tell_payloads(p);
	if (!alive) {
		release(p);
		return;
	}
	if (!p->lost && !p->listening)
		send_listen(p);
	if (p->lost)
		lose(p);
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct pglisten *p = arg;
	(void)fd;
	(void)what;
	MAGIC_CHECK(p, LISTEN_MAGIC);
	loop_enter(p->loop);
	if (PQconsumeInput(p->pg) != 1)
		mark_lost(p);
	(void)PQisBusy(p->pg); /* parses */
	loop_defer(p->loop, &p->step);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	struct pglisten *p = arg;
	(void)fd;
	(void)what;
	MAGIC_CHECK(p, LISTEN_MAGIC);
	loop_enter(p->loop);
	flush(p);
	if (p->lost)
		loop_defer(p->loop, &p->step);
}

static void on_dial(void *arg, int code, struct pg_conn *conn, const struct fault *why)
{
	struct pglisten *p = arg;
	(void)why; /* the pool reports the same of its own connections */
	MAGIC_CHECK(p, LISTEN_MAGIC);
	p->dial = NULL;
	if (code != 0) {
		p->rotate += code == ST_TIMEOUT;
		if (p->may_connect)
			try_later(p);
		return;
	}
	p->pg = conn;
	p->since_us = sys_mono_us();
	p->readable = event_new(loop_base(p->loop), PQsocket(conn), EV_READ | EV_PERSIST, on_readable, p);
	p->writable = event_new(loop_base(p->loop), PQsocket(conn), EV_WRITE, on_writable, p);
	ALWAYS(p->readable != NULL && p->writable != NULL && event_add(p->readable, NULL) == 0);
	loop_defer(p->loop, &p->step);
}

static void connect_now(struct pglisten *p)
{
	if (p->may_connect && p->pg == NULL && p->dial == NULL && p->channels != NULL)
		p->dial = pgdial_start(p->target, p->loop, p->resolver, p->rotate, on_dial, p);
}

static void on_retry(void *arg)
{
	struct pglisten *p = arg;
	MAGIC_CHECK(p, LISTEN_MAGIC);
	connect_now(p);
}

struct pglisten *pglisten_new(struct loop *l, struct resolver *r, struct pgtarget *t)
{
	struct pglisten *p = mem_alloc(sizeof(*p));
	p->magic = LISTEN_MAGIC;
	p->loop = l;
	p->resolver = r;
	p->target = t;
	p->retry = loop_timer_new(l, on_retry, p);
	loop_task_init(&p->step, on_step, p);
	return p;
}

void pglisten_free(struct pglisten *p)
{
	if (p == NULL)
		return;
	MAGIC_CHECK(p, LISTEN_MAGIC);
	pgdial_cancel(p->dial);
	p->dial = NULL;
	loop_undefer(p->loop, &p->step);
	loop_timer_free(p->retry);
	p->retry = NULL;
	if (p->in_callback)
		p->freed = true; /* on_step releases when the callback is back */
	else
		release(p);
}

void pglisten_add(
	struct pglisten *p, const char *channel, void (*fn)(void *arg, const char *payload), void *arg)
{
	MAGIC_CHECK(p, LISTEN_MAGIC);
	struct channel **at = &p->channels;
	while (*at != NULL)
		at = &(*at)->next;
	struct channel *c = mem_alloc(sizeof(*c));
	c->name = mem_strdup(channel);
	c->fn = fn;
	c->arg = arg;
	*at = c;
	connect_now(p);
	loop_defer(p->loop, &p->step);
}

void pglisten_may_connect(struct pglisten *p, bool may)
{
	MAGIC_CHECK(p, LISTEN_MAGIC);
	p->may_connect = may;
	if (may && !loop_timer_is_set(p->retry))
		connect_now(p);
}
