/*
 * health - answers the probes and keeps the gauges.
 *
 * What memory knows is set when somebody asks (/metrics); what only the database knows is asked for once a poll, and
 * the count by state (a scan of the table) rarely, the larger the table the rarer. Must not: delay a probe for the database.
 */
#include "service/health.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"

#define MAGIC UINT32_C(0x6865616c)
#define METRICS_MAX ((size_t)16 * 1024 * 1024)
#define COUNT_EVERY_US (60 * US_PER_S)
/* A count that took t is repeated after 1000 t: a thousandth of one core at most. */
#define COUNT_SHARE 1000
/* One that failed, perhaps because the table has outgrown what a statement may take, is tried now and then. */
#define COUNT_FAILED_MAX_US (3600 * US_PER_S)

struct health {
	uint32_t magic;
	struct loop *loop;
	const struct health_parts *parts;
	struct httpd *httpd;
	bool draining, asking, asked_last_time, counting;
	int64_t count_at, asked_at; /* mono */
	bool counted;
	char why[512];
};

/* ---------------------------------------------------------------- ready? */

const char *health_why_not_ready(const struct health *h)
{
	struct health *w = (struct health *)(uintptr_t)h; /* only the text is changed */
	const struct health_parts *p = h->parts;
	if (h->draining)
		return "shutting down";
	if (p->journal != NULL && !journal_writable(p->journal))
		return "the journal cannot be written";
	if (p->store == NULL || p->journal == NULL)
		return "starting";
	if (store_writable(p->store))
		return p->scheduler != NULL ? NULL : "starting: the journal of an earlier run comes first";
	const char *text = store_why(p->store);
	(void)snprintf(w->why, sizeof w->why, "database %s%s%s", store_state_word(store_state(p->store)), text[0] != '\0' ? ": " : "", text);
	return w->why;
}

/* ---------------------------------------------------------------- gauges */

static void plan_count(struct health *h, bool failed)
{
	int64_t now = sys_mono_us(), pause = (now - h->asked_at) * COUNT_SHARE;
	if (failed && pause > COUNT_FAILED_MAX_US)
		pause = COUNT_FAILED_MAX_US;
	h->count_at = now + (pause > COUNT_EVERY_US ? pause : COUNT_EVERY_US);
}

static void on_gauges(void *arg, int code, const struct store_gauges *g)
{
	struct health *h = arg;
	MAGIC_CHECK(h, MAGIC);
	h->asking = false;
	/* Also after a failure: the others come in the same answer, and would fail with it for ever. */
	if (h->counting)
		plan_count(h, code != 0);
	if (code != 0)
		return;
	metrics_set(M_EXPIRED, NULL, NULL, (double)g->expired);
	metrics_set(M_ORPHANS, NULL, NULL, (double)g->orphans);
	if (g->have_min)
		metrics_set(M_MIN_TO_EXPIRY, NULL, NULL, g->min_seconds_to_expiry);
	if (g->by_state[0] < 0)
		return;
	for (int s = CONN_AVAILABLE; s <= CONN_INVALID; s++)
		metrics_set(M_CONNECTIONS, conn_state_word((enum conn_state)s), NULL, (double)g->by_state[s]);
}

void health_poll(struct health *h)
{
	if (h->asking || h->parts->store == NULL || store_state(h->parts->store) != STORE_READY)
		return;
	/* Every other time: alerts do not need more, and each answer wakes the process up. */
	h->asked_last_time = !h->asked_last_time;
	if (!h->asked_last_time)
		return;
	h->asked_at = sys_mono_us();
	h->counting = h->asked_at >= h->count_at;
	h->asking = store_gauges(h->parts->store, h->counting, on_gauges, h) == 0;
}

static void set_memory_gauges(const struct health_parts *p)
{
	if (p->scheduler != NULL) {
		struct scheduler_figures f;
		scheduler_figures(p->scheduler, &f);
		metrics_set(M_HEAP_ENTRIES, NULL, NULL, (double)f.entries);
		metrics_set(M_DUE_BACKLOG, NULL, NULL, (double)f.due);
		metrics_set(M_OLDEST_DUE_AGE, NULL, NULL, f.oldest_due_age_s);
	}
	if (p->refresh != NULL)
		metrics_set(M_REFRESH_IN_FLIGHT, NULL, NULL, refresh_in_flight(p->refresh));
	if (p->journal != NULL) {
		metrics_set(M_JOURNAL_RECORDS, NULL, NULL, (double)journal_open_records(p->journal));
		metrics_set(M_JOURNAL_WRITABLE, NULL, NULL, journal_writable(p->journal) ? 1 : 0);
	}
	if (p->store != NULL)
		metrics_set(M_DB_CONNECTED, NULL, NULL, pgpool_connected(store_pool(p->store)));
}

/* ---------------------------------------------------------------- routes */

static void answer(struct httpd_request *r, const char *route, int status, const char *text)
{
	char code[8];
	struct buf body;
	(void)snprintf(code, sizeof code, "%d", status);
	metrics_inc(M_API_REQUESTS, route, code);
	buf_init(&body, 1024);
	int e = buf_printf(&body, "%s\n", text);
	httpd_reply(r, status, "text/plain; charset=utf-8", e == 0 ? &body : NULL);
	buf_fini(&body);
}

static void answer_metrics(struct health *h, struct httpd_request *r)
{
	struct buf body;
	set_memory_gauges(h->parts);
	metrics_inc(M_API_REQUESTS, "metrics", "200");
	buf_init(&body, METRICS_MAX);
	int e = metrics_render(&body);
	if (e == 0)
		httpd_reply(r, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
	else
		httpd_reply(r, 500, "text/plain; charset=utf-8", NULL);
	buf_fini(&body);
}

static void on_request(void *arg, struct httpd_request *r)
{
	struct health *h = arg;
	MAGIC_CHECK(h, MAGIC);
	const char *path = httpd_path(r);
	enum httpd_method m = httpd_method(r);
	bool known = strcmp(path, "/metrics") == 0 || strcmp(path, "/healthz") == 0 || strcmp(path, "/readyz") == 0;
	if (!known) {
		answer(r, "other", 404, "not found: /metrics, /healthz and /readyz are here");
	} else if (m != HTTPD_GET && m != HTTPD_HEAD) {
		httpd_reply_header(r, "Allow", "GET, HEAD");
		answer(r, "other", 405, "only GET and HEAD");
	} else if (strcmp(path, "/metrics") == 0) {
		answer_metrics(h, r);
	} else if (strcmp(path, "/healthz") == 0) {
		answer(r, "healthz", 200, "ok");
	} else {
		const char *why = health_why_not_ready(h);
		answer(r, "readyz", why == NULL ? 200 : 503, why == NULL ? "ready" : why);
	}
}

/* ---------------------------------------------------------------- life */

static void declare(void)
{
	static const char *const routes[][2] = {
		{ "metrics", "200" }, { "healthz", "200" }, { "readyz", "200" }, { "readyz", "503" }, { "other", "404" }, { "other", "405" },
	};
	for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
		(void)metrics_get(M_API_REQUESTS, routes[i][0], routes[i][1]);
	for (int s = CONN_AVAILABLE; s <= CONN_INVALID; s++)
		(void)metrics_get(M_CONNECTIONS, conn_state_word((enum conn_state)s), NULL);
	for (int c = PG_CLASS_CONNECTION; c <= PG_CLASS_BUG; c++)
		(void)metrics_get(M_DB_ERRORS, pg_class_word((enum pg_class)c), NULL);
	(void)metrics_get(M_CONFIG_RELOADS, "applied", NULL);
	(void)metrics_get(M_CONFIG_RELOADS, "refused", NULL);
	metrics_set(M_BUILD_INFO, PACKAGE_VERSION, NULL, 1);
}

void health_set_conf(struct health *h, const struct conf *c)
{
	(void)h;
	for (size_t i = 0; i < c->n_providers; i++) {
		const char *key = c->providers[i]->key;
		for (int o = 0; o < OUTCOME_COUNT; o++)
			(void)metrics_get(M_REFRESHES, key, outcome_word((enum outcome)o));
		(void)metrics_get(M_REFRESH_DURATION, key, NULL);
		(void)metrics_get(M_CIRCUIT_OPEN, key, NULL);
	}
}

struct health *health_new(struct loop *l, const struct health_parts *p)
{
	struct health *h = mem_alloc(sizeof *h);
	h->magic = MAGIC;
	h->loop = l;
	h->parts = p;
	declare();
	return h;
}

void health_free(struct health *h)
{
	if (h == NULL)
		return;
	MAGIC_CHECK(h, MAGIC);
	httpd_free(h->httpd);
	h->magic = 0;
	mem_free(h);
}

int health_listen(struct health *h, const struct conf *c, struct fault *f)
{
	if (!c->metrics.on)
		return 0;
	const struct httpd_params p = {
		.listen = c->metrics.listen,
		.listen_fd = -1,
		.max_connections = 64,
		.max_body_bytes = 4096,
	};
	int e = httpd_new(h->loop, &p, on_request, h, &h->httpd, f);
	return e == 0 ? 0 : fault_wrap(f, e, "metrics.listen");
}

uint16_t health_port(const struct health *h)
{
	return h->httpd != NULL ? httpd_port(h->httpd) : 0;
}

void health_set_draining(struct health *h)
{
	h->draining = true;
}
