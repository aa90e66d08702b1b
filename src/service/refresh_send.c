/*
 * refresh_send - one claimed attempt: build, send, journal, classify, decide.
 *
 * Must not: send with less lease left than the request may take; parse a reply before it is durable (unless the
 * journal has just failed: then memory is all there is, and the gate is shut); drop an answer.
 */
#include "service/refresh_priv.h"

#include <string.h>
#include <sys/socket.h>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "model/netcheck.h"

/* A lease must outlast the whole request by this much. */
#define LEASE_MARGIN_US (10 * US_PER_S)

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
	refresh_tell_gate(a->owner, a->provider->key);
}

void attempt_classify(const struct attempt *a, struct grant_result *out)
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
	grant_classify(a->provider, &in, out);
}

void attempt_answer(struct attempt *a)
{
	struct grant_result g;
	attempt_classify(a, &g);
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

/* Said once until the journal takes one again: a disk that breaks under load is one event. */
static void not_journalled(struct attempt *a, int code)
{
	struct refresh *r = a->owner;
	a->seq = 0;
	metrics_inc(M_JOURNAL_SKIPPED, NULL, NULL);
	if (!r->unjournalled)
		log_error("journal.append_failed", K_ID(a->id), K_STATUS(code));
	r->unjournalled = true;
}

static void on_journalled(void *arg, int code)
{
	struct attempt *a = arg;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	FAILPOINT_NOTE("journalled", a->id, a->facts.attempt_id);
	FAILPOINT_IF(code == 0, journalled);
	if (code != 0) /* still in memory, and the journal has shut the gate: go on to the database at once */
		not_journalled(a, code);
	else
		a->owner->unjournalled = false;
	attempt_answer(a);
}

/* One that is larger than the others of its time is forgotten after a few hundred. */
static void learn_size(struct refresh *r, size_t n)
{
	r->reply_bytes -= r->reply_bytes / 64;
	if (r->reply_bytes < JOURNAL_REPLY_BYTES)
		r->reply_bytes = JOURNAL_REPLY_BYTES;
	if (r->reply_bytes < n)
		r->reply_bytes = n;
}

/* Durable first. A reply that cannot be journalled is still in memory: the database is its other chance. */
static void journal_reply(struct attempt *a)
{
	FAILPOINT_IF(a->reply.complete, whole_reply);
	if (settle_uses_refresh_token(&a->facts, a->provider))
		reply_present(&a->reply, &a->facts.refresh_token);
	if (MUTANT(journal_off)) {
		attempt_answer(a);
		return;
	}
	struct buf record;
	buf_init(&record, JOURNAL_RECORD_MAX);
	int e = reply_encode(&a->reply, a->conf->keyring, &record);
	if (e == 0) {
		learn_size(a->owner, record.len);
		attempt_set_state(a, AT_JOURNALLING);
		e = journal_append(a->owner->journal, record.data, record.len, on_journalled, a, &a->seq);
		if (e != 0)
			a->state = AT_SENDING;
	}
	buf_fini(&record);
	if (e == 0)
		return;
	not_journalled(a, e);
	attempt_answer(a);
}

#ifdef REFRESHD_TORTURE
static void send_request(struct attempt *a);

/* The mutant `resend`: the answer is dropped, and the same token presented once more. */
static bool send_again(struct attempt *a)
{
	if (!MUTANT(resend) || !a->sent || a->has_reply)
		return false;
	a->has_reply = true;
	a->state = AT_CLAIMING;
	send_request(a);
	return true;
}
#else
#define send_again(a) false
#endif

static void on_reply(void *arg, struct httpc_reply *h)
{
	struct attempt *a = arg;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	a->call = NULL;
	a->sent = h->result != HTTPC_NEVER_SENT;
	if (send_again(a))
		return;
	a->has_reply = true;
	memcpy(a->reply.id, a->id, 16);
	a->reply.attempt_id = a->facts.attempt_id;
	a->reply.token_version = a->facts.token_version;
	a->reply.settings_at = a->facts.updated_at;
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
		.keep_url = q->url_is_constant,
		.allow_http = a->conf->insecure_http == INSECURE_HTTP_LOOPBACK,
		.addr_allowed = http ? only_loopback : NULL,
		.headers = headers,
		.n_headers = q->n_headers,
		.body = q->post ? &q->body : NULL,
		.timeout_us = p->timeout_us != 0 ? p->timeout_us : a->conf->refresh.timeout_us,
		.connect_timeout_us = p->connect_timeout_us != 0 ? p->connect_timeout_us : a->conf->refresh.connect_timeout_us,
		.max_reply_bytes = REPLY_BODY_MAX,
#ifdef REFRESHD_TORTURE
		.watched = true,
#endif
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
		.refresh_token_len = settle_uses_refresh_token(&a->facts, a->provider) ? a->facts.refresh_token.len : 0,
		.scope = a->facts.scope,
		.vars = { .settings = a->facts.settings, .metadata = a->facts.metadata, .capture = a->facts.captured },
	};
	int e = grant_build(&in, &q, &f);
	if (e == ST_NOT_FOUND) {
		log_warning("refresh.missing_settings", K_ID(a->id), K_PROVIDER(a->provider->key), K_FAULT(&f));
		settle_missing_settings(&a->facts, a->provider, sys_wall_us(), &a->record);
		attempt_drop_gate(a);
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
	attempt_drop_gate(a);
	/* Nothing is sealed on this path, and the entity's words are bounded. */
	ALWAYS(settle_unsealable(&a->facts, a->conf, a->provider, sys_wall_us(), &a->record) == 0);
	attempt_settle(a);
}

void attempt_begin(struct attempt *a, const struct store_claimed *c)
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
		attempt_drop_gate(a);
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
