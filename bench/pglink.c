/*
 * pglink - a connection to Postgres on the loop.
 *
 * One statement is under way at a time, and a result is handed over when its transaction has been committed,
 * not before. Whatever Postgres minds ends the program.
 */
#include "pglink.h"

#include "common.h"

struct arguments { /* as libpq wants them */
	const char *values[PGLINK_ARGS];
	int lengths[PGLINK_ARGS];
};

static const int binary[PGLINK_ARGS] = { 1, 1, 1, 1 };

static void arguments_from(struct arguments *a, const struct array *v, int n)
{
	for (int i = 0; i < n; i++) {
		a->values[i] = v[i].data;
		a->lengths[i] = (int)v[i].len;
	}
}

static void done(struct pglink *k, const char *what, PGresult *r)
{
	if (PQresultStatus(r) != PGRES_COMMAND_OK)
		die("%s: %s", what, PQerrorMessage(k->pg));
	PQclear(r);
}

void pglink_sql(struct pglink *k, const char *text)
{
	done(k, text, PQexec(k->pg, text));
}

void pglink_exec(struct pglink *k, const char *statement, const struct array *v, int n)
{
	struct arguments a;
	arguments_from(&a, v, n);
	done(k, statement, PQexecParams(k->pg, statement, n, NULL, a.values, a.lengths, binary, 1));
}

static void flush(struct pglink *k)
{
	int left = PQflush(k->pg);
	if (left < 0)
		die("Postgres: %s", PQerrorMessage(k->pg));
	if (left > 0)
		event_add(k->out, NULL);
}

void pglink_ask(struct pglink *k, const struct array *v, int n)
{
	struct arguments a;
	arguments_from(&a, v, n);
	if (PQsendQueryPrepared(k->pg, "it", n, a.values, a.lengths, binary, 1) != 1 ||
		PQpipelineSync(k->pg) != 1)
		die("Postgres: %s", PQerrorMessage(k->pg));
	k->busy = true;
	flush(k);
}

static void on_postgres(evutil_socket_t fd, short what, void *arg)
{
	struct pglink *k = arg;
	(void)fd;
	(void)what;
	if (PQconsumeInput(k->pg) != 1)
		die("Postgres: %s", PQerrorMessage(k->pg));
	flush(k);
	while (k->busy && !PQisBusy(k->pg)) {
		PGresult *r = PQgetResult(k->pg);
		ExecStatusType s = PQresultStatus(r);
		if (r == NULL) /* between a statement and its commit */
			continue;
		if (s == PGRES_PIPELINE_SYNC) {
			PQclear(r);
			k->busy = false;
			k->committed(k->arg, k->result);
		} else if (s == PGRES_TUPLES_OK || s == PGRES_COMMAND_OK) {
			k->result = r;
		} else {
			die("Postgres: %s", PQresultErrorMessage(r));
		}
	}
}

void pglink_init(struct pglink *k, const char *conninfo, struct event_base *base,
	void (*committed)(void *arg, PGresult *r), void *arg)
{
	k->base = base;
	k->arg = arg;
	k->committed = committed;
	k->pg = PQconnectdb(conninfo);
	if (PQstatus(k->pg) != CONNECTION_OK)
		die("%s", PQerrorMessage(k->pg));
	pglink_sql(k, "SET client_min_messages = warning");
	pglink_sql(k, "SET plan_cache_mode = force_generic_plan");
	pglink_sql(k, "SET synchronous_commit = on");
}

void pglink_start(struct pglink *k, const char *statement)
{
	done(k, statement, PQprepare(k->pg, "it", statement, 0, NULL));
	if (PQsetnonblocking(k->pg, 1) != 0 || PQenterPipelineMode(k->pg) != 1)
		die("Postgres: %s", PQerrorMessage(k->pg));
	k->in = need(event_new(k->base, PQsocket(k->pg), EV_READ | EV_PERSIST, on_postgres, k));
	k->out = need(event_new(k->base, PQsocket(k->pg), EV_WRITE, on_postgres, k));
	event_add(k->in, NULL);
}

void pglink_stop(struct pglink *k)
{
	event_free(k->in);
	event_free(k->out);
	if (PQexitPipelineMode(k->pg) != 1 || PQsetnonblocking(k->pg, 0) != 0)
		die("Postgres: %s", PQerrorMessage(k->pg));
}

void pglink_fini(struct pglink *k)
{
	PQfinish(k->pg);
}
