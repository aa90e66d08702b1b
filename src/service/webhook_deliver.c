/*
 * webhook_deliver - one attempt to deliver one event, and what its answer means.
 *
 * The receiver's answer decides and is never kept: of its body nothing is read, of its headers Retry-After
 * alone. Must not follow a redirect.
 */
#include "service/webhook_priv.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/policy.h"

#define RETRY_AFTER_MAX_US (24 * 3600 * US_PER_S)

/* Outcomes of one attempt, for the metric. */
#define ATTEMPT_OUTCOME_LIST(X)                                                                              \
	X(OUT_DELIVERED, "delivered")                                                                        \
	X(OUT_FAILED, "failed") X(OUT_REFUSED, "refused") X(OUT_GAVE_UP, "gave_up")
enum out {
#define X(id, word) id,
	ATTEMPT_OUTCOME_LIST(X)
#undef X
};
static const char *const outcome_words[] = {
#define X(id, word) [id] = word,
	ATTEMPT_OUTCOME_LIST(X)
#undef X
};

void delivery_count_outcomes(void)
{
	for (size_t i = 0; i < sizeof outcome_words / sizeof *outcome_words; i++)
		(void)metrics_get(M_WEBHOOK_DELIVERIES, outcome_words[i], NULL);
}

/* ---------------------------------------------------------------- the answer */

static void log_failure(const struct delivery *d, bool final)
{
	const struct store_attempt *a = &d->attempt;
	char event[STR_UUID_BYTES];
	str_format_uuid(a->event_id, event);
	if (final) {
		log_warning("webhook.gave_up", K_WORD("endpoint", d->target->name), K_WORD("event", event),
			K_WORD("type", event_type_word(d->type)), K_INT("attempt", a->attempt),
			K_INT("status", a->status), K_WORD("error", a->error));
		return;
	}
	log_info("webhook.failed", K_WORD("endpoint", d->target->name), K_WORD("event", event),
		K_WORD("type", event_type_word(d->type)), K_INT("attempt", a->attempt),
		K_INT("status", a->status), K_WORD("error", a->error),
		K_INT("next_s", (a->next_due_at - sys_wall_us()) / US_PER_S));
}

static void delivered(struct delivery *d)
{
	struct store_attempt *a = &d->attempt;
	char event[STR_UUID_BYTES];
	str_format_uuid(a->event_id, event);
	a->delivered = true;
	a->next_due_at = TIME_NEVER;
	d->target->failures = 0;
	metrics_inc(M_WEBHOOK_DELIVERIES, outcome_words[OUT_DELIVERED], NULL);
	log_debug("webhook.delivered", K_WORD("endpoint", d->target->name), K_WORD("event", event),
		K_WORD("type", event_type_word(d->type)), K_INT("attempt", a->attempt),
		K_INT("status", a->status), K_MS(a->duration_us / US_PER_MS));
}

static void failed(struct delivery *d, const char *error, enum out outcome, int64_t retry_after_us)
{
	struct store_attempt *a = &d->attempt;
	a->error = error;
	d->target->failures++;
	int64_t wait = -1;
	if (!a->gone)
		wait = policy_webhook_retry_us((unsigned)a->attempt + 1, retry_after_us, sys_random_unit());
	bool final = wait < 0;
	a->next_due_at = final ? TIME_NEVER : sys_wall_us() + wait;
	if (final && !a->gone)
		outcome = OUT_GAVE_UP;
	metrics_inc(M_WEBHOOK_DELIVERIES, outcome_words[outcome], NULL);
	log_failure(d, final);
}

/* The endpoint has got another address since: what the old one says of itself is not said of the new one. */
static bool has_moved(const struct delivery *d)
{
	const struct endpoint *now = d->target->endpoint;
	return now != NULL && strcmp(now->url, d->endpoint->url) != 0;
}

static void judge_status(struct delivery *d, const struct httpc_reply *r)
{
	int status = r->status;
	d->attempt.status = status;
	if (status >= 200 && status <= 299) {
		delivered(d);
	} else if (status == 410 && !has_moved(d)) {
		d->attempt.gone = true;
		failed(d, "gone", OUT_REFUSED, 0);
	} else if (status >= 300 && status <= 399) {
		failed(d, "redirect", OUT_FAILED, 0);
	} else {
		bool asks = status == 429 || status == 503;
		failed(d, "http_status", OUT_FAILED,
			asks ? policy_retry_after_us(r->retry_after, sys_wall_us(), RETRY_AFTER_MAX_US) : 0);
	}
}

static void on_reply(void *arg, struct httpc_reply *r)
{
	struct delivery *d = arg;
	MAGIC_CHECK(d, DELIVERY_MAGIC);
	d->call = NULL;
	d->attempt.duration_us = r->duration_us;
	if (r->result != HTTPC_NEVER_SENT)
		series_observe(metrics_get(M_WEBHOOK_DURATION, NULL, NULL),
			(double)r->duration_us / (double)US_PER_S);
	/* An answer that is longer than we care to read is an answer all the same. */
	if (r->result == HTTPC_COMPLETE || (r->error == HTTPC_E_TOO_LARGE && r->status != 0)) {
		judge_status(d, r);
	} else {
		d->attempt.status = r->status;
		failed(d, httpc_error_word(r->error),
			r->error == HTTPC_E_REFUSED_ADDR ? OUT_REFUSED : OUT_FAILED, 0);
	}
	webhook_answered(d);
}

void delivery_refuse(struct delivery *d, const struct fault *f)
{
	char event[STR_UUID_BYTES];
	str_format_uuid(d->attempt.event_id, event);
	log_error("webhook.not_sendable", K_WORD("endpoint", d->target->name), K_WORD("event", event),
		K_FAULT(f));
	d->attempt.error = "not_sendable";
	d->attempt.next_due_at = TIME_NEVER;
	metrics_inc(M_WEBHOOK_DELIVERIES, outcome_words[OUT_GAVE_UP], NULL);
	webhook_answered(d);
}

/* ---------------------------------------------------------------- the request */

int delivery_send(struct delivery *d, const struct store_delivery *s, struct fault *f)
{
	const struct endpoint *e = d->endpoint;
	bool both = e->previous.ed25519 != NULL && sys_wall_us() < e->previous_until;
	const struct event_body body = {
		.entity_json = s->entity,
		.entity_id = s->entity_id,
		.entity_type = s->entity_type,
		.event_id = s->event_id,
		.type = s->type,
		.reason = s->reason,
		.attempts = s->failures,
		.occurred_at = s->occurred_at,
		.execution_attempt = s->attempt,
	};
	const struct webhook_message m = {
		.body = &body,
		.url = e->url,
		.secret = e->secret,
		.ed25519 = e->keys.ed25519,
		.previous = both ? &e->previous : NULL,
		.of_api = e->of_api,
		.allow_private = e->allow_private,
	};
	FAILPOINT(before_webhook);
	return webhook_post(d->owner->httpc, d->conf, &m, on_reply, d, &d->call, f);
}
