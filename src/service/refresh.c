/*
 * refresh - claim, send, journal, classify: one attempt from a want to a decision.
 *
 * The order is the promise: committed claim, then send, then journal, then parse, then write. refresh_persist.c writes
 * what was decided here, refresh_replay.c feeds answers of an earlier life in at AT_JOURNALLING's end.
 * Must not: send with less lease left than the request may take; parse a reply before it is durable (unless the
 * journal has just failed: then memory is all there is, and the gate is shut); drop an answer.
 */
#include "service/refresh.h"

#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "model/netcheck.h"
#include "service/refresh_priv.h"

/* A lease must outlast the whole request by this much. */
#define LEASE_MARGIN_US (10 * US_PER_S)

/* ---------------------------------------------------------------- states */

static const struct {
	enum attempt_state from, to;
	const char *why;
} transitions[] = {
	{ AT_CLAIMING, AT_DONE, "the row was not ours to take, or the claim failed" },
	{ AT_CLAIMING, AT_SENDING, "claimed, and everything needed is at hand" },
	{ AT_CLAIMING, AT_SETTLING, "claimed, and decided without a request" },
	{ AT_CLAIMING, AT_RELEASING, "claimed, and nothing can be sent now" },
	{ AT_LOADING, AT_SETTLING, "the row of a journalled reply is known" },
	{ AT_LOADING, AT_DONE, "its connection is gone" },
	{ AT_SENDING, AT_JOURNALLING, "answered" },
	{ AT_SENDING, AT_SETTLING, "no answer, or the journal cannot take it" },
	{ AT_JOURNALLING, AT_SETTLING, "the reply is durable" },
	{ AT_SETTLING, AT_PERSISTING, "its statement was sent" },
	{ AT_PERSISTING, AT_SETTLING, "the statement failed: again" },
	{ AT_PERSISTING, AT_DONE, "committed, or the fence was lost" },
	{ AT_RELEASING, AT_DONE, "given back" },
};

static const char *state_word(enum attempt_state s)
{
	switch (s) {
#define X(id, word)  \
	case id:     \
		return word;
		ATTEMPT_STATE_LIST(X)
#undef X
	}
	return "unknown";
}

void attempt_set_state(struct attempt *a, enum attempt_state to)
{
	for (size_t i = 0; i < sizeof transitions / sizeof *transitions; i++) {
		if (transitions[i].from == a->state && transitions[i].to == to) {
			a->state = to;
			return;
		}
	}
	log_error("refresh.impossible_transition", K_ID(a->id), K_WORD("from", state_word(a->state)), K_WORD("to", state_word(to)));
	ALWAYS(!"no such transition");
}

/* ---------------------------------------------------------------- what is in our hands */

void queue_push(struct attempt_queue *q, struct attempt *a)
{
	a->next = NULL;
	if (q->last != NULL)
		q->last->next = a;
	else
		q->first = a;
	q->last = a;
	q->n++;
}

struct attempt *queue_take(struct attempt_queue *q)
{
	struct attempt *a = q->first;
	if (a == NULL)
		return NULL;
	q->first = a->next;
	if (q->first == NULL)
		q->last = NULL;
	a->next = NULL;
	q->n--;
	return a;
}

/* Ids are hashes already: their last bytes are as good as any. */
static unsigned bucket_of(const uint8_t id[16])
{
	return ((unsigned)id[14] << 8 | id[15]) % HAND_BUCKETS;
}

struct attempt *attempt_find(struct refresh *r, const uint8_t id[16])
{
	struct attempt *a = r->hand[bucket_of(id)];
	while (a != NULL && memcmp(a->id, id, 16) != 0)
		a = a->hash_next;
	return a;
}

struct attempt *attempt_new(struct refresh *r, const uint8_t id[16])
{
	struct attempt *a = mem_alloc(sizeof *a);
	a->magic = ATTEMPT_MAGIC;
	a->owner = r;
	a->state = AT_CLAIMING;
	memcpy(a->id, id, sizeof a->id);
	a->conf = conf_ref(r->conf);
	reply_init(&a->reply);
	settle_record_init(&a->record);
	unsigned b = bucket_of(id);
	a->hash_next = r->hand[b];
	r->hand[b] = a;
	r->in_hand++;
	return a;
}

static void attempt_free(struct attempt *a)
{
	struct attempt **at = &a->owner->hand[bucket_of(a->id)];
	while (*at != a)
		at = &(*at)->hash_next;
	*at = a->hash_next;
	a->owner->in_hand--;
	if (a->call != NULL)
		httpc_cancel(a->call);
	if (a->opened)
		settle_facts_fini(&a->facts);
	loop_timer_free(a->again);
	reply_fini(&a->reply);
	settle_record_fini(&a->record);
	conf_unref(a->conf);
	a->magic = 0;
	mem_free(a);
}

static void tell_gate(struct refresh *r, const char *provider)
{
	if (r->ev.gate != NULL)
		r->ev.gate(r->ev.arg, provider);
}

static void drop_gate(struct attempt *a)
{
	if (a->gate == NULL)
		return;
	gate_give_back(a->gate);
	tell_gate(a->owner, gate_provider(a->gate));
	a->gate = NULL;
}

/* In flight: claimed and without a decision. What waits for the database is `unsettled`. */
static void leave_flight(struct attempt *a)
{
	if (a->counted)
		a->owner->in_flight--;
	a->counted = false;
}

/* What was given back unsent is not asked for again at once. */
static int64_t next_due(const struct attempt *a, bool claimed)
{
	if (a->recorded)
		return a->record.result.due_at;
	if (!claimed)
		return TIME_NEVER;
	int64_t soonest = sys_wall_us() + US_PER_S;
	int64_t due = a->release_due_at != 0 ? a->release_due_at : a->due_at;
	return due > soonest ? due : soonest;
}

void attempt_end(struct attempt *a, bool claimed)
{
	struct refresh *r = a->owner;
	drop_gate(a);
	attempt_set_state(a, AT_DONE);
	const struct refresh_done d = {
		.id = a->id,
		.application_id = a->opened ? a->facts.application_id : NULL,
		.service_id = a->opened ? a->facts.service_id : NULL,
		.claimed = claimed,
		.refreshed = a->answered && a->outcome == OUTCOME_REFRESHED,
		.outcome = a->answered ? a->outcome : OUTCOME_NEVER_SENT,
		.reason = a->recorded ? a->record.result.reason : REASON_NONE,
		.health = a->recorded ? a->record.result.health : HEALTH_OK,
		.next_due_at = next_due(a, claimed),
	};
	leave_flight(a);
	if (a->replayed) {
		r->replaying--;
		r->replayed_total++;
	}
	if (r->ev.done != NULL)
		r->ev.done(r->ev.arg, &d);
	bool replayed = a->replayed;
	uint8_t id[16];
	memcpy(id, a->id, sizeof id);
	attempt_free(a);
	if (replayed)
		replay_next(r, id);
	refresh_check_idle(r);
}

void refresh_check_idle(struct refresh *r)
{
	if (r->replay_running && r->replaying == 0)
		loop_defer(r->loop, &r->replayed_task);
	if (r->draining && r->in_hand == 0 && r->events == NULL)
		loop_defer(r->loop, &r->drained_task);
}

/* ---------------------------------------------------------------- after the answer */

static void count_outcome(const struct attempt *a, const struct grant_result *g)
{
	metrics_inc(M_REFRESHES, a->provider->key, outcome_word(g->outcome));
	if (g->outcome == OUTCOME_IN_DOUBT)
		metrics_inc(M_IN_DOUBT, NULL, NULL);
}

static void log_failure(const struct attempt *a, const struct grant_result *g)
{
	const struct store_result *r = &a->record.result;
	log_at(r->event == EVENT_REFRESH_FAILED ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "refresh.failed", K_ID(a->id), K_PROVIDER(a->provider->key),
		K_WORD("outcome", outcome_word(g->outcome)), K_WORD("reason", reason_word(g->reason)), K_WORD("code", g->error),
		K_INT("status", a->reply.status), K_INT("failures", r->failures), K_WORD("health", conn_health_word(r->health)));
}

static void end_gate(struct attempt *a, const struct grant_result *g)
{
	if (a->gate == NULL)
		return;
	struct gate *gate = a->gate;
	a->gate = NULL;
	enum gate_change change = gate_done(gate, g->outcome, g->retry_after_us, sys_mono_us());
	if (change == GATE_PROVIDER_OPENED || change == GATE_CLIENT_OPENED) {
		log_error("provider.held_back", K_PROVIDER(a->provider->key), K_WORD("why", change == GATE_CLIENT_OPENED ? "client" : "provider"),
			K_WORD("outcome", outcome_word(g->outcome)), K_WORD("reason", reason_word(g->reason)), K_INT("status", a->reply.status));
		persist_event(a->owner, EVENT_PROVIDER_FAILING, gate, a, g->reason);
	} else if (change == GATE_PROVIDER_CLOSED || change == GATE_CLIENT_CLOSED) {
		log_notice("provider.recovered", K_PROVIDER(a->provider->key));
		persist_event(a->owner, EVENT_PROVIDER_RECOVERED, gate, a, REASON_NONE);
	}
	metrics_set(M_CIRCUIT_OPEN, a->provider->key, NULL, gate_is_open(gate) ? 1 : 0);
	tell_gate(a->owner, a->provider->key);
}

void attempt_settle(struct attempt *a)
{
	struct refresh *r = a->owner;
	attempt_set_state(a, AT_SETTLING);
	leave_flight(a);
	a->recorded = true;
	r->unsettled++;
	queue_push(&r->settling, a);
	persist_kick(r);
}

void attempt_answer(struct attempt *a)
{
	const struct grant_reply in = {
		.sent = a->sent,
		.complete = a->reply.complete,
		.status = a->reply.status,
		.content_type = a->reply.content_type,
		.retry_after = a->reply.retry_after,
		.body = a->reply.body.data,
		.body_len = a->reply.body.len,
		.start_wall_us = a->reply.start_wall_us,
		.now_wall_us = a->reply.end_wall_us,
	};
	struct grant_result g;
	grant_classify(a->provider, &in, &g);
	a->outcome = g.outcome;
	a->answered = true;
	bool keep_raw = a->reply.status >= 200 && a->reply.status < 300 && (g.outcome == OUTCOME_MALFORMED || g.outcome == OUTCOME_IN_DOUBT);
	int e = settle_answer(&a->facts, a->conf, a->provider, &g, a->reply.start_wall_us, keep_raw ? &a->reply.body : NULL,
		sys_wall_us(), &a->record);
	count_outcome(a, &g);
	if (e != 0) /* sealing failed: the journal keeps the reply, the row keeps its lease, an operator must look */
		log_error("refresh.cannot_seal", K_ID(a->id), K_STATUS(e));
	if (g.outcome != OUTCOME_REFRESHED)
		log_failure(a, &g);
	end_gate(a, &g);
	grant_result_fini(&g);
	a->quarantine = e != 0;
	attempt_settle(a);
}

static void on_journalled(void *arg, int code)
{
	struct attempt *a = arg;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	if (code != 0) { /* still in memory, and the journal has shut the gate: go on to the database at once */
		log_error("journal.append_failed", K_ID(a->id), K_STATUS(code));
		a->seq = 0;
	}
	attempt_answer(a);
}

/* Durable first. A reply that cannot be journalled is still in memory: the database is its other chance. */
static void journal_reply(struct attempt *a)
{
	struct buf record;
	buf_init(&record, JOURNAL_RECORD_MAX);
	int e = reply_encode(&a->reply, a->conf->keyring, &record);
	if (e == 0) {
		attempt_set_state(a, AT_JOURNALLING);
		e = journal_append(a->owner->journal, record.data, record.len, on_journalled, a, &a->seq);
		if (e != 0)
			a->state = AT_SENDING;
	}
	buf_fini(&record);
	if (e == 0)
		return;
	a->seq = 0;
	log_error("journal.append_failed", K_ID(a->id), K_STATUS(e));
	attempt_answer(a);
}

static void on_reply(void *arg, struct httpc_reply *h)
{
	struct attempt *a = arg;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	a->call = NULL;
	a->sent = h->result != HTTPC_NEVER_SENT;
	a->has_reply = true;
	memcpy(a->reply.id, a->id, 16);
	a->reply.attempt_id = a->facts.attempt_id;
	a->reply.token_version = a->facts.token_version;
	a->reply.complete = h->result == HTTPC_COMPLETE;
	a->reply.status = h->status;
	a->reply.start_wall_us = h->start_wall_us;
	a->reply.end_wall_us = sys_wall_us();
	memcpy(a->reply.content_type, h->content_type, sizeof a->reply.content_type);
	memcpy(a->reply.retry_after, h->retry_after, sizeof a->reply.retry_after);
	buf_move(&a->reply.body, &h->body);
	series_observe(metrics_get(M_REFRESH_DURATION, a->provider->key, NULL), (double)h->duration_us / (double)US_PER_S);
	if (h->error != HTTPC_E_NONE)
		log_info("refresh.transport", K_ID(a->id), K_PROVIDER(a->provider->key), K_WORD("error", httpc_error_word(h->error)),
			K_BOOL("sent", a->sent), K_BOOL("complete", a->reply.complete), K_MS(h->duration_us / US_PER_MS));
	if (a->sent && a->reply.status != 0)
		journal_reply(a);
	else
		attempt_answer(a);
}

/* ---------------------------------------------------------------- send */

static bool only_loopback(const struct sockaddr *sa, void *arg)
{
	(void)arg;
	return netcheck_is_loopback(sa);
}

static int start_request(struct attempt *a, struct grant_request *q, struct fault *f)
{
	struct httpc_header headers[GRANT_MAX_HEADERS];
	for (size_t i = 0; i < q->n_headers; i++)
		headers[i] = (struct httpc_header){ .name = q->headers[i].name, .value = buf_str(&q->headers[i].value) };
	const struct provider *p = a->provider;
	bool http = strncmp(buf_str(&q->url), "http://", 7) == 0;
	bool tls_auth = a->client->auth == CLIENT_AUTH_TLS;
	const struct httpc_request req = {
		.method = q->post ? "POST" : "GET",
		.url = buf_str(&q->url),
		.allow_http = a->conf->insecure_http == INSECURE_HTTP_LOOPBACK,
		.addr_allowed = http ? only_loopback : NULL,
		.headers = headers,
		.n_headers = q->n_headers,
		.body = q->post ? &q->body : NULL,
		.timeout_us = p->timeout_us != 0 ? p->timeout_us : a->conf->refresh.timeout_us,
		.connect_timeout_us = p->connect_timeout_us != 0 ? p->connect_timeout_us : a->conf->refresh.connect_timeout_us,
		.max_reply_bytes = REPLY_BODY_MAX,
		.ca_file = p->ca_file,
		.cert_file = tls_auth ? a->client->cert_file : NULL,
		.key_file = tls_auth ? a->client->private_key_file : NULL,
	};
	return httpc_start(a->owner->httpc, &req, on_reply, a, &a->call, f);
}

/* A request that cannot even be started is a fault of the definition, not of the connection. */
static void refuse_request(struct attempt *a, const struct fault *f)
{
	log_error("refresh.cannot_send", K_ID(a->id), K_PROVIDER(a->provider->key), K_FAULT(f));
	struct grant_result g = { .outcome = OUTCOME_CLIENT_BROKEN, .reason = REASON_CLIENT_REFUSED };
	a->outcome = g.outcome;
	a->answered = true;
	int e = settle_answer(&a->facts, a->conf, a->provider, &g, sys_wall_us(), NULL, sys_wall_us(), &a->record);
	ALWAYS(e == 0); /* nothing is sealed on this path */
	count_outcome(a, &g);
	end_gate(a, &g);
	attempt_settle(a);
}

static void send_request(struct attempt *a)
{
	struct grant_request q;
	struct fault f = { 0 };
	const struct grant_input in = {
		.provider = a->provider,
		.client = a->client,
		.refresh_token = buf_str(&a->facts.refresh_token),
		.refresh_token_len = a->facts.refresh_token.len,
		.scope = a->facts.scope,
		.vars = { .settings = a->facts.settings, .metadata = a->facts.metadata, .capture = a->facts.captured },
	};
	int e = grant_build(&in, &q, &f);
	if (e == ST_NOT_FOUND) {
		log_warning("refresh.missing_settings", K_ID(a->id), K_PROVIDER(a->provider->key), K_FAULT(&f));
		settle_missing_settings(&a->facts, a->provider, sys_wall_us(), &a->record);
		drop_gate(a);
		attempt_settle(a);
		return;
	}
	bool built = e == 0;
	if (built) {
		e = start_request(a, &q, &f);
		grant_request_fini(&q);
	}
	if (built && e == ST_FULL) /* fewer connections than max_in_flight, which was raised by a reload: wait */
		attempt_release(a, 0);
	else if (e != 0)
		refuse_request(a, &f);
	else
		attempt_set_state(a, AT_SENDING);
}

void attempt_release(struct attempt *a, int64_t due_at)
{
	a->release_due_at = due_at;
	drop_gate(a);
	attempt_set_state(a, AT_RELEASING);
	leave_flight(a);
	queue_push(&a->owner->releasing, a);
	persist_kick(a->owner);
}

static bool lease_suffices(const struct attempt *a)
{
	int64_t timeout = a->provider->timeout_us != 0 ? a->provider->timeout_us : a->conf->refresh.timeout_us;
	int64_t left = a->conf->refresh.lease_us - (sys_mono_us() - a->claimed_mono_us);
	return left >= timeout + LEASE_MARGIN_US;
}

static void mark_sealed(struct attempt *a, const struct store_claimed *c)
{
	settle_facts_plain(&a->facts, c);
	a->opened = true;
	a->provider = conf_provider(a->conf, a->facts.service_id);
	drop_gate(a);
	/* Nothing is sealed on this path, and the entity's words are bounded. */
	ALWAYS(settle_unsealable(&a->facts, a->conf, a->provider, sys_wall_us(), &a->record) == 0);
	attempt_settle(a);
}

static void begin_attempt(struct attempt *a, const struct store_claimed *c)
{
	struct fault f = { 0 };
	struct refresh *r = a->owner;
	if (!c->current || r->draining || !journal_writable(r->journal) || !store_writable(r->store)) {
		attempt_release(a, 0);
		return;
	}
	if (settle_facts_init(&a->facts, a->conf->keyring, c, &f) != 0) {
		log_error("refresh.sealed", K_ID(a->id), K_FAULT(&f));
		mark_sealed(a, c);
		return;
	}
	a->opened = true;
	a->provider = conf_provider(a->conf, a->facts.service_id);
	a->client = a->provider != NULL ? conf_client(a->conf, a->facts.application_id, a->facts.service_id) : NULL;
	int64_t due_at = 0;
	switch (settle_before_send(&a->facts, a->provider, a->client, sys_wall_us(), &a->record, &due_at)) {
	case SETTLE_RECORD:
		drop_gate(a);
		attempt_settle(a);
		return;
	case SETTLE_RELEASE:
		attempt_release(a, due_at);
		return;
	case SETTLE_SEND:
		break;
	}
	if (lease_suffices(a))
		send_request(a);
	else
		attempt_release(a, 0);
}

/* ---------------------------------------------------------------- claim */

struct batch {
	struct refresh *owner;
	size_t n;
	struct store_want want[REFRESH_BATCH];
};

/* After an unknown COMMIT the leases may be held: give them back, they were not sent. */
static void fail_batch(struct batch *b, enum pg_class class)
{
	for (size_t i = 0; i < b->n; i++) {
		struct attempt *a = attempt_find(b->owner, b->want[i].id);
		if (class == PG_CLASS_UNKNOWN)
			attempt_release(a, 0);
		else
			attempt_end(a, false);
	}
}

static void on_claimed(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n)
{
	struct batch *b = arg;
	struct refresh *r = b->owner;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	r->claiming = false;
	tell_gate(r, NULL);
	if (code != 0) {
		log_warning("refresh.claim_failed", K_COUNT(b->n), K_WORD("class", pg_class_word(class)));
		fail_batch(b, class);
		mem_free(b);
		return;
	}
	for (size_t i = 0; i < n; i++) {
		struct attempt *a = attempt_find(r, v[i].id);
		ALWAYS(a != NULL && a->state == AT_CLAIMING);
		a->due_at = v[i].due_at;
		begin_attempt(a, &v[i]);
	}
	for (size_t i = 0; i < b->n; i++) {
		struct attempt *a = attempt_find(r, b->want[i].id);
		if (a != NULL && a->state == AT_CLAIMING)
			attempt_end(a, false);
	}
	mem_free(b);
}

bool refresh_has(struct refresh *r, const uint8_t id[16])
{
	return attempt_find(r, id) != NULL;
}

void refresh_claim(struct refresh *r, const struct refresh_want *v, size_t n)
{
	ALWAYS(n >= 1 && n <= REFRESH_BATCH && r->conf != NULL);
	struct batch *b = mem_alloc(sizeof *b);
	b->owner = r;
	int64_t now = sys_mono_us();
	for (size_t i = 0; i < n; i++) {
		ALWAYS(!refresh_has(r, v[i].id));
		struct attempt *a = attempt_new(r, v[i].id);
		a->gate = v[i].gate;
		a->attempt_id = store_next_attempt(r->store);
		a->claimed_mono_us = now;
		a->counted = true;
		r->in_flight++;
		struct store_want *w = &b->want[b->n++];
		memcpy(w->id, v[i].id, 16);
		w->attempt_id = a->attempt_id;
		w->due_at = v[i].due_at;
	}
	r->claiming = true;
	int e = store_claim(r->store, b->want, b->n, r->conf->refresh.lease_us, r->conf->refresh.timeout_us, on_claimed, b);
	if (e != 0) {
		r->claiming = false;
		fail_batch(b, PG_CLASS_UNKNOWN); /* by the release queue: no callback from inside this call */
		mem_free(b);
	}
}

/* ---------------------------------------------------------------- life */

unsigned refresh_room(const struct refresh *r)
{
	/* One claim at a time: what becomes due while it runs makes the next batch. */
	if (r->draining || r->claiming || r->conf == NULL || r->replay_running || !store_writable(r->store) || !journal_writable(r->journal))
		return 0;
	/* Answers that wait for the database count as well: they are memory, and more would only wait behind them. */
	unsigned busy = r->in_flight + r->unsettled / 8;
	unsigned max = r->conf->refresh.max_in_flight;
	return busy < max ? max - busy : 0;
}

static void on_drained(void *arg)
{
	struct refresh *r = arg;
	if (r->draining && r->in_hand == 0 && r->events == NULL && r->drained != NULL) {
		loop_fn *fn = r->drained;
		r->drained = NULL;
		fn(r->drained_arg);
	}
}

void refresh_drain(struct refresh *r, loop_fn *fn, void *arg)
{
	r->draining = true;
	r->drained = fn;
	r->drained_arg = arg;
	refresh_check_idle(r);
}

int refresh_new(struct loop *l, struct store *s, struct httpc *h, struct journal *j, const struct refresh_events *ev, struct refresh **out,
	struct fault *f)
{
	(void)f;
	struct refresh *r = mem_alloc(sizeof *r);
	r->magic = REFRESH_MAGIC;
	r->loop = l;
	r->store = s;
	r->httpc = h;
	r->journal = j;
	r->ev = *ev;
	loop_task_init(&r->drained_task, on_drained, r);
	loop_task_init(&r->replayed_task, replay_settled, r);
	persist_init(r);
	*out = r;
	return 0;
}

void refresh_free(struct refresh *r)
{
	if (r == NULL)
		return;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	for (unsigned b = 0; b < HAND_BUCKETS; b++) {
		while (r->hand[b] != NULL)
			attempt_free(r->hand[b]);
	}
	persist_fini(r);
	replay_fini(r);
	loop_undefer(r->loop, &r->drained_task);
	loop_undefer(r->loop, &r->replayed_task);
	conf_unref(r->conf);
	r->magic = 0;
	mem_free(r);
}

void refresh_set_conf(struct refresh *r, struct conf *c)
{
	struct conf *old = r->conf;
	r->conf = conf_ref(c);
	conf_unref(old);
}

unsigned refresh_in_flight(const struct refresh *r)
{
	return r->in_flight;
}

unsigned refresh_unsettled(const struct refresh *r)
{
	return r->unsettled;
}
