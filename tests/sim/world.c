/*
 * world - builds services over the fakes and plays the provider.
 */
#include "sim/world.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "unit/unit.h"

/* ---------------------------------------------------------------- the provider */

struct family *world_family(struct world *w, const char *consumer)
{
	for (size_t i = 0; i < w->n_families; i++) {
		if (strcmp(w->families[i].consumer, consumer) == 0)
			return &w->families[i];
	}
	ck_assert_uint_lt(w->n_families, FAMILIES);
	struct family *f = &w->families[w->n_families++];
	(void)snprintf(f->consumer, sizeof f->consumer, "%s", consumer);
	f->answered = -1;
	return f;
}

static void fault(struct world *w, const char *what, const char *token)
{
	w->faults++;
	if (!w->faults_ok)
		(void)fprintf(stderr, "# the provider saw: %s (%s) at %lld\n", what, token, (long long)sys_mono_us());
}

/* who=<consumer>: a grant without a refresh token, which says who it is for by a parameter of the test. */
static struct family *parse_who(struct world *w, const char *who, int *n, char text[64])
{
	(void)snprintf(text, 64, "%.*s", (int)strcspn(who, "&"), who);
	struct family *f = world_family(w, text);
	*n = f->live;
	return f;
}

/* refresh_token=rt-<consumer>-<n> */
static struct family *parse_token(struct world *w, const char *body, int *n, char text[64])
{
	const char *who = strstr(body, "&who=");
	if (who != NULL && strstr(body, "refresh_token=") == NULL)
		return parse_who(w, who + strlen("&who="), n, text);
	const char *p = strstr(body, "refresh_token=rt-");
	ck_assert_ptr_nonnull(p);
	p += strlen("refresh_token=");
	size_t len = strcspn(p, "&");
	ck_assert_uint_lt(len, 64);
	memcpy(text, p, len);
	text[len] = '\0';
	char *last = strrchr(text, '-');
	*n = atoi(last + 1);
	char consumer[64];
	memcpy(consumer, text + 3, (size_t)(last - text - 3));
	consumer[last - text - 3] = '\0';
	return world_family(w, consumer);
}

static struct fake_row *row_of(struct world *w, const char *consumer, const char *service)
{
	const struct conn_key k = { .application_id = "app", .consumer_id = consumer, .unified_api = "accounting", .service_id = service };
	uint8_t id[16];
	conn_id_of(&k, id);
	return fake_store_row(w->store, id);
}

static void judge(struct world *w, const struct fake_request *q, const struct family *f, int n, const char *token, const char *service)
{
	int64_t now = sys_mono_us();
	const struct fake_row *r = row_of(w, f->consumer, service);
	if (r == NULL || r->owner != store_epoch(w->store))
		fault(w, "a request without a committed claim", token);
	else if (r->lease_until < sys_wall_us() + q->timeout_us + SECONDS(10))
		fault(w, "a request that the lease may not outlast", token);
	if (f->busy_until > now)
		fault(w, "two presentations at one time", token);
	if (n <= f->answered && now >= f->answered_at && w->rotation != ROTATION_NONE)
		fault(w, "an answered token again", token);
	if (!journal_writable(w->journal))
		fault(w, "a request without a journal", token);
	if (!store_writable(w->store))
		fault(w, "a request without a database", token);
}

/* Works on the request as the provider would; false: refused. */
static bool work_on(struct world *w, struct family *f, int n)
{
	int64_t now = sys_mono_us();
	if (f->revoked)
		return false;
	if (w->rotation == ROTATION_NONE)
		return n == f->live;
	bool in_grace = w->rotation == ROTATION_GRACE && n == f->live - 1 && now - f->rotated_at <= w->grace_us;
	if (in_grace)
		return true;
	if (n != f->live) {
		f->revoked = true;
		return false;
	}
	f->live++;
	f->rotated_at = now;
	return true;
}

static const char *const DEAD_BODY = "{\"error\":\"invalid_grant\"}";

static void answer_tokens(struct world *w, struct family *f, int n, enum mode m, struct fake_answer *a)
{
	static char body[512];
	if (!work_on(w, f, n)) {
		a->status = 400;
		a->body = DEAD_BODY;
		return;
	}
	if (m == ANSWER_CUT_AFTER) {
		a->result = HTTPC_CUT;
		a->error = HTTPC_E_CLOSED;
		a->status = 0;
		return;
	}
	f->answered = n;
	f->answered_at = sys_mono_us() + a->after_us + w->journal_delay_us;
	if (m == ANSWER_MALFORMED) {
		a->body = "<html>all is well</html>";
		a->content_type = "text/html";
		return;
	}
	f->access_until = sys_wall_us() + SECONDS(w->expires_in);
	if (m == ANSWER_OK_NO_RT || w->rotation == ROTATION_NONE)
		(void)snprintf(body, sizeof body, "{\"access_token\":\"at-%s-%d\",\"token_type\":\"bearer\",\"expires_in\":%d}", f->consumer, f->live,
			w->expires_in);
	else
		(void)snprintf(body, sizeof body, "{\"access_token\":\"at-%s-%d\",\"token_type\":\"bearer\",\"expires_in\":%d,\"refresh_token\":\"rt-%s-%d\"}",
			f->consumer, f->live, w->expires_in, f->consumer, f->live);
	a->body = body;
}

static enum mode next_mode(struct world *w, struct family *f, bool other)
{
	if (w->choose != NULL)
		return w->choose(w, f, other);
	if (other)
		return ANSWER_OK;
	if (w->n_script > 0) {
		enum mode m = w->script[0];
		w->n_script--;
		memmove(w->script, w->script + 1, w->n_script * sizeof *w->script);
		return m;
	}
	return w->only[0] == '\0' || strcmp(w->only, f->consumer) == 0 ? w->mode : ANSWER_OK;
}

static void on_request(void *arg, const struct fake_request *q, struct fake_answer *a)
{
	struct world *w = arg;
	bool other = strstr(q->url, "other.test") != NULL;
	int n;
	char token[64];
	struct family *f = parse_token(w, q->body, &n, token);
	judge(w, q, f, n, token, other ? "other" : "sim");
	w->sent++;
	w->sent_other += other;
	w->last_sent_mono = sys_mono_us();
	if (w->sent == 1)
		memcpy(w->first_sent, token, sizeof token);
	memcpy(w->last_sent, token, sizeof token);
	f->presented++;
	a->after_us = w->latency_us;
	a->content_type = "application/json";
	enum mode m = next_mode(w, f, other);
	switch (m) {
	case ANSWER_OK:
	case ANSWER_OK_NO_RT:
	case ANSWER_CUT_AFTER:
	case ANSWER_MALFORMED:
		answer_tokens(w, f, n, m, a);
		break;
	case ANSWER_DEAD:
		a->status = 400;
		a->body = DEAD_BODY;
		f->revoked = true;
		break;
	case ANSWER_BAD_CLIENT:
		a->status = 401;
		a->body = "{\"error\":\"invalid_client\"}";
		break;
	case ANSWER_500:
		a->status = 500;
		a->body = "{}";
		break;
	case ANSWER_502:
		a->status = 502;
		a->body = "bad gateway";
		break;
	case ANSWER_429:
		a->status = 429;
		a->retry_after = "30";
		break;
	case ANSWER_CUT_BEFORE:
		a->result = HTTPC_CUT;
		a->error = HTTPC_E_CLOSED;
		a->status = 0;
		break;
	case ANSWER_HANG:
		a->hang = true;
		a->status = 0;
		break;
	case ANSWER_NEVER_SENT:
		a->result = HTTPC_NEVER_SENT;
		a->error = HTTPC_E_CONNECT;
		a->status = 0;
		break;
	}
	f->busy_until = sys_mono_us() + (a->hang ? q->timeout_us : a->after_us);
}

/* ---------------------------------------------------------------- what refresh tells */

static void on_done(void *arg, const struct refresh_done *d)
{
	struct world *w = arg;
	w->done++;
	w->claimed += d->claimed;
	w->refreshed += d->refreshed;
	w->last = *d;
	w->last.id = NULL;
	w->last.application_id = w->last.service_id = NULL;
	if (w->scheduler != NULL)
		scheduler_on_done(w->scheduler, d);
}

static void on_outbox(void *arg)
{
	struct world *w = arg;
	w->outbox++;
}

static void on_gate(void *arg, const char *provider)
{
	struct world *w = arg;
	w->gates++;
	if (w->scheduler != NULL)
		scheduler_on_gate(w->scheduler, provider);
}

/* ---------------------------------------------------------------- life */

static void start_services(struct world *w, bool scheduler)
{
	struct fault f = { 0 };
	const struct httpc_params hp = { .max_connections = 4096 };
	const struct journal_params jp = { .dir = "/", .sync = true };
	const struct refresh_events ev = { .done = on_done, .outbox = on_outbox, .gate = on_gate, .arg = w };
	ck_ok(httpc_new(w->loop, NULL, &hp, &w->httpc, &f));
	fake_httpc_on_request(w->httpc, on_request, w);
	ck_ok(journal_open(w->loop, &jp, &w->journal, &f));
	w->budget = budget_new();
	budget_set(w->budget, w->conf, w->share);
	ck_ok(refresh_new(w->loop, w->store, w->httpc, w->journal, &ev, &w->refresh, &f));
	refresh_set_conf(w->refresh, w->conf);
	if (!scheduler)
		return;
	ck_ok(scheduler_new(w->loop, w->store, w->budget, &w->scheduler, &f));
	scheduler_set_conf(w->scheduler, w->conf);
	scheduler_set_refresh(w->scheduler, w->refresh);
}

static void on_line(enum log_level level, const char *line, void *arg)
{
	struct world *w = arg;
	if (getenv("SIM_LOG") != NULL)
		(void)fprintf(stderr, "# %lld %s\n", (long long)(sys_mono_us() - SYS_VIRTUAL_MONO_US), line);
	if (level <= LOG_LEVEL_NOTICE && buf_puts(&w->log, line) != 0)
		buf_reset(&w->log);
}

unsigned world_logged(const struct world *w, const char *word)
{
	unsigned n = 0;
	for (const char *p = buf_str(&w->log); (p = strstr(p, word)) != NULL; p += strlen(word))
		n++;
	return n;
}

struct world *world_new(uint64_t seed, const char *provider_extra, const char *refresh_extra, bool scheduler)
{
	struct world *w = mem_alloc(sizeof *w);
	struct fault f = { 0 };
	fake_clock_start(seed);
	fake_journal_wipe();
	log_setup(LOG_FORMAT_LOGFMT, getenv("SIM_LOG") != NULL ? LOG_LEVEL_DEBUG : LOG_LEVEL_NOTICE);
	buf_init(&w->log, 1024 * 1024);
	log_set_sink(on_line, w);
	w->conf = fake_conf(provider_extra, refresh_extra);
	w->first_conf = conf_ref(w->conf);
	w->rotation = conf_provider(w->conf, "sim")->rotation;
	w->grace_us = conf_provider(w->conf, "sim")->rotation_grace_us;
	w->expires_in = 3600;
	w->latency_us = 50 * US_PER_MS;
	w->share.of = 1;
	ck_ok(loop_new(&w->loop, &f));
	w->store = fake_store_new(w->loop, w->conf->keyring);
	start_services(w, scheduler);
	return w;
}

static void stop_services(struct world *w)
{
	if (w->scheduler != NULL)
		scheduler_stop(w->scheduler);
	fake_store_shut(w->store);
	refresh_free(w->refresh);
	scheduler_free(w->scheduler);
	budget_free(w->budget);
	httpc_free(w->httpc);
	journal_close(w->journal);
}

void world_end(struct world *w)
{
	if (!w->faults_ok)
		ck_assert_uint_eq(w->faults, 0);
	stop_services(w);
	fake_store_free(w->store);
	loop_free(w->loop);
	conf_unref(w->conf);
	conf_unref(w->first_conf);
	fake_journal_wipe();
	metrics_reset();
	log_set_sink(NULL, NULL);
	buf_fini(&w->log);
	sys_set(NULL);
	mem_free(w);
}

/* What had not reached us, or was not durable yet, cannot be held against the next life. */
static void forgive_lost_answers(struct world *w)
{
	int64_t now = sys_mono_us();
	for (size_t i = 0; i < w->n_families; i++) {
		struct family *f = &w->families[i];
		if (f->answered_at >= now)
			f->answered = -1;
		if (f->busy_until > now)
			f->busy_until = now;
	}
}

static void on_recovered(void *arg, int code, int64_t rows)
{
	struct world *w = arg;
	(void)rows;
	ck_ok(code);
	if (w->scheduler != NULL)
		scheduler_start(w->scheduler);
}

static void on_replayed(void *arg, uint64_t n)
{
	struct world *w = arg;
	w->replays++;
	w->replayed = n;
	w->all_replayed += (unsigned)n;
	ck_ok(store_recover(w->store, on_recovered, w));
}

void world_replay(struct world *w)
{
	struct fault f = { 0 };
	ck_ok(refresh_replay(w->refresh, on_replayed, w, &f));
}

void world_kill(struct world *w, bool replay)
{
	bool scheduler = w->scheduler != NULL;
	forgive_lost_answers(w);
	stop_services(w);
	w->scheduler = NULL;
	fake_store_reopen(w->store);
	start_services(w, scheduler);
	if (replay)
		world_replay(w);
}

void world_conf(struct world *w, struct conf *c)
{
	conf_unref(w->conf);
	w->conf = c;
	budget_set(w->budget, c, w->share);
	refresh_set_conf(w->refresh, c);
	if (w->scheduler != NULL) {
		scheduler_set_conf(w->scheduler, c);
		scheduler_replan(w->scheduler);
	}
}

/* ---------------------------------------------------------------- rows */

struct fake_row *world_add_to(struct world *w, const char *service, const char *consumer, int64_t due_in, int64_t expires_in)
{
	(void)world_family(w, consumer);
	int64_t now = sys_wall_us();
	return fake_store_add(w->store, "app", consumer, service, now + due_in, now + expires_in);
}

struct fake_row *world_add(struct world *w, const char *consumer, int64_t due_in, int64_t expires_in)
{
	return world_add_to(w, "sim", consumer, due_in, expires_in);
}

bool world_claim(struct world *w, struct fake_row *r)
{
	struct refresh_want want = { .due_at = r->due_at, .gate = budget_gate(w->budget, r->application, r->service) };
	memcpy(want.id, r->id, 16);
	if (refresh_room(w->refresh) == 0 || refresh_has(w->refresh, r->id) || gate_when(want.gate, sys_mono_us()) > sys_mono_us())
		return false;
	gate_take(want.gate, sys_mono_us());
	refresh_claim(w->refresh, &want, 1);
	return true;
}

void world_settle(struct world *w)
{
	fake_loop_run_for(w->loop, w->latency_us + w->journal_delay_us + 5 * US_PER_MS);
}

struct gone {
	struct refresh *refresh;
	const struct fake_row *row;
};

static bool is_gone(void *arg)
{
	const struct gone *g = arg;
	return !refresh_has(g->refresh, g->row->id);
}

void world_wait_gone(struct world *w, const struct fake_row *r)
{
	struct gone g = { .refresh = w->refresh, .row = r };
	ck_assert(fake_loop_run_while_not(w->loop, is_gone, &g, MINUTES(5)));
}

void world_refresh(struct world *w, struct fake_row *r)
{
	int64_t wait = r->due_at - sys_wall_us();
	ck_assert_int_lt(wait, HOURS(24 * 60));
	fake_loop_run_for(w->loop, wait > 0 ? wait : 0);
	ck_assert(world_claim(w, r));
	world_wait_gone(w, r);
}

bool world_token_is_live(struct world *w, const struct fake_row *r)
{
	char have[256], want[64];
	const struct family *f = world_family(w, r->consumer);
	fake_row_refresh_token(w->store, r, have);
	(void)snprintf(want, sizeof want, "rt-%s-%d", f->consumer, f->live);
	return !f->revoked && strcmp(have, want) == 0;
}

unsigned world_events(const struct fake_row *r, enum event_type e)
{
	unsigned n = 0;
	for (unsigned i = 0; i < r->n_events; i++)
		n += r->events[i] == e;
	return n;
}
