/*
 * webhook - the outbox at work: when to fan out, whose deliveries to claim, and writing down what came of
 * them.
 *
 * Nothing is sent without a committed claim whose lease outlasts the whole request. Every endpoint has its
 * own few places; one whose attempts all fail gets a single one, and all such together a quarter of the
 * whole, so that dead receivers cannot take the places of the living. One database statement of a kind at a
 * time; after a failed one everything pauses. Nothing here wakes the process but a poll, a kick, an answer,
 * the next due retry or the end of a pause.
 */
#include "service/webhook.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "model/policy.h"
#include "service/webhook_priv.h"

#define FANOUT_BATCH 200
#define RECORD_BATCH 256
#define CLAIM_BATCH 256 /* no refresh waits for long behind it on its connection */
#define MANY 32         /* in one claim: there is a backlog */
#define CLAIM_REST 4    /* so many times as long as it took no other follows: refreshes go first, and the busier they are the longer it takes */
#define LEASE_MARGIN_US (60 * US_PER_S) /* of the lease over the request: for recording it */
#define AGAIN_US US_PER_S               /* the shortest wait for what is due already and could not be had */
#define PAUSE_BASE_US (500 * US_PER_MS)
#define PAUSE_CAP_US (10 * US_PER_S)
#define DISABLE_AFTER_US (5 * INT64_C(86400) * US_PER_S)

/* ---------------------------------------------------------------- deliveries in hand */

static void delivery_free(struct delivery *d)
{
	d->target->in_hand--;
	d->owner->in_hand--;
	if (d->call != NULL)
		httpc_cancel(d->call);
	endpoint_unref(d->endpoint);
	conf_unref(d->conf);
	webhook_queue_forget(d);
	d->magic = 0;
	mem_free(d);
}

static void free_all(struct delivery_list *l)
{
	while (l->first != NULL) {
		struct delivery *d = l->first;
		webhook_queue_remove(l, d);
		delivery_free(d);
	}
}

static void kick(struct webhook *w)
{
	loop_defer(w->loop, &w->run);
}

void webhook_answered(struct delivery *d)
{
	struct webhook *w = d->owner;
	d->target->in_flight--;
	webhook_queue_judge(d->target, &d->attempt);
	webhook_queue_remove(&w->sending, d);
	webhook_queue_push(&w->answered, d);
	kick(w);
}

/* ---------------------------------------------------------------- the database's answers */

static bool is_paused(const struct webhook *w)
{
	return w->paused_until_us > sys_mono_us();
}

/* True: go on. After a failure nothing is tried before the pause is over. */
static bool went_well(struct webhook *w, int code, const char *what)
{
	if (code == 0) {
		/* A statement of before the failure does not end the pause. */
		if (w->failures > 0 && !is_paused(w)) {
			log_info("webhook.outbox_back", K_UINT("failures", w->failures));
			w->failures = 0;
		}
		return true;
	}
	w->failures++;
	if (code == ST_INVALID)
		log_error("webhook.statement_refused", K_WORD("statement", what));
	else if (w->failures == 1)
		log_warning("webhook.outbox_unavailable", K_WORD("statement", what), K_STATUS(code));
	w->paused_until_us = sys_mono_us() +
			     policy_backoff_us(w->failures, PAUSE_BASE_US, PAUSE_CAP_US, sys_random_unit());
	return false;
}

bool webhook_call_started(struct webhook *w, int code, const char *what)
{
	if (code != 0)
		return went_well(w, code, what);
	w->calls++;
	return true;
}

bool webhook_call_ended(struct webhook *w, int code, const char *what)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	w->calls--;
	kick(w);
	return went_well(w, code, what);
}

/* What was refused as it is waits for the next poll: the data may be other then. */
static bool may_retry(int code)
{
	return code != 0 && code != ST_INVALID;
}

/* ---------------------------------------------------------------- fan-out */

static void on_fanned_out(void *arg, int code, size_t n)
{
	struct webhook *w = arg;
	w->fanning = false;
	bool well = webhook_call_ended(w, code, "fanout");
	if (may_retry(code) || (well && n == FANOUT_BATCH))
		w->want_fanout = true;
	if (well && n > 0)
		w->want_claim = true;
}

static void fan_out(struct webhook *w)
{
	struct store_endpoint *v = mem_calloc(targets_count(w) + 1, sizeof *v);
	size_t n = 0;
	for (const struct target *t = w->targets; t != NULL; t = t->next) {
		if (t->endpoint == NULL || t->of_api)
			continue;
		v[n++] = (struct store_endpoint){
			.endpoint_id = t->id,
			.application = t->endpoint->application,
			.events = t->events,
			.n_events = t->n_events,
		};
	}
	w->want_fanout = false;
	w->fanning = webhook_call_started(
		w, store_fanout(w->store, v, n, FANOUT_BATCH, on_fanned_out, w), "fanout");
	w->want_fanout = !w->fanning;
	mem_free(v);
}

/* ---------------------------------------------------------------- claim */

void webhook_give_back(struct delivery *d)
{
	struct webhook *w = d->owner;
	webhook_queue_push(&w->unsent, d);
	if (w->due_us > sys_mono_us() + AGAIN_US)
		w->due_us = sys_mono_us() + AGAIN_US;
}

static void take(struct webhook *w, const struct store_delivery *s)
{
	struct target *t = target_find(w, s->endpoint_id);
	/* An endpoint that was asked for stays in the list while its claim is under way. */
	ALWAYS(t != NULL);
	struct delivery *d = mem_alloc(sizeof *d);
	d->magic = DELIVERY_MAGIC;
	d->owner = w;
	d->target = t;
	d->type = s->type;
	memcpy(d->attempt.event_id, s->event_id, sizeof d->attempt.event_id);
	d->attempt.endpoint_id = t->id;
	d->attempt.attempt = s->attempt;
	w->in_hand++;
	t->in_hand++;
	d->lease_end_us = w->claim_sent_us + w->claim_lease_us;
	webhook_queue_wait(d, s);
}

static void on_claimed(void *arg, int code, const struct store_delivery *v, size_t n, int64_t next_due_at)
{
	struct webhook *w = arg;
	w->claiming = false;
	if (!webhook_call_ended(w, code, "claim")) {
		w->want_claim = may_retry(code);
	} else {
		int64_t wait = next_due_at == TIME_NEVER ? 0 : next_due_at - sys_wall_us();
		w->due_us = next_due_at == TIME_NEVER ? INT64_MAX
						      : sys_mono_us() + (wait > AGAIN_US ? wait : AGAIN_US);
		for (size_t i = 0; i < n; i++)
			take(w, &v[i]);
		w->want_claim = w->want_claim || n == CLAIM_BATCH; /* others may still have room */
		int64_t now = sys_mono_us(), rest = CLAIM_REST * (now - w->claim_sent_us);
		if (n >= MANY)
			w->rest_until_us = now + (rest < AGAIN_US ? rest : AGAIN_US);
	}
	targets_drop(w);
}

static size_t rooms(const struct webhook *w, struct store_room *v, unsigned *ailing_limit)
{
	unsigned ailing_in_hand = 0, share = w->conf->delivery.max_in_flight / PLACES_SHARE;
	if (share == 0)
		share = 1;
	for (const struct target *t = w->targets; t != NULL; t = t->next) {
		if (webhook_queue_ailing(t))
			ailing_in_hand += t->in_hand;
	}
	*ailing_limit = ailing_in_hand < share ? share - ailing_in_hand : 0;
	size_t n = 0;
	for (const struct target *t = w->targets; t != NULL; t = t->next) {
		bool ailing = webhook_queue_ailing(t);
		unsigned room = webhook_queue_room(w, t);
		if (!target_usable(t) || t->disabled || room == 0 || (ailing && *ailing_limit == 0))
			continue;
		v[n++] = (struct store_room){.endpoint_id = t->id, .room = room, .ailing = ailing};
	}
	return n;
}

static void claim(struct webhook *w)
{
	w->want_claim = false;
	w->due_us = INT64_MAX;
	unsigned most = w->conf->delivery.max_in_flight, begun = w->in_hand - w->ahead;
	if (begun >= most)
		return; /* the next record claims again */
	if (w->ahead < AHEAD_MAX)
		most += AHEAD_MAX - w->ahead;
	unsigned limit = most - begun < CLAIM_BATCH ? most - begun : CLAIM_BATCH, ailing_limit;
	struct store_room *v = mem_calloc(targets_count(w) + 1, sizeof *v);
	size_t n = rooms(w, v, &ailing_limit);
	if (n > 0) {
		w->claim_sent_us = sys_mono_us();
		w->claim_lease_us = w->conf->delivery.timeout_us + LEASE_MARGIN_US;
		int e = store_claim_deliveries(
			w->store, v, n, limit, ailing_limit, w->claim_lease_us, on_claimed, w);
		w->claiming = webhook_call_started(w, e, "claim");
		w->want_claim = !w->claiming;
	}
	mem_free(v);
}

/* ---------------------------------------------------------------- record, release */

static struct store_attempt *attempts_of(const struct delivery_list *l)
{
	struct store_attempt *v = mem_calloc(l->n, sizeof *v);
	size_t i = 0;
	for (const struct delivery *d = l->first; d != NULL; d = d->next)
		v[i++] = d->attempt;
	return v;
}

static void on_recorded(void *arg, int code, size_t n)
{
	struct webhook *w = arg;
	bool alone = w->recording.n == 1;
	if (code == ST_INVALID && alone) {
		/* It is tried again when its lease has run out. */
		log_error("webhook.not_recordable", K_WORD("endpoint", w->recording.first->target->name));
		free_all(&w->recording);
	}
	if (webhook_call_ended(w, code, "record")) {
		free_all(&w->recording);
		w->want_claim = true;
		w->want_list = w->want_list || n > 0;
	} else {
		w->record_singly = w->record_singly || code == ST_INVALID;
		webhook_queue_move(&w->answered, &w->recording, SIZE_MAX);
	}
	if (w->answered.n == 0)
		w->record_singly = false;
	targets_drop(w);
}

static void record(struct webhook *w)
{
	webhook_queue_move(&w->recording, &w->answered, w->record_singly ? 1 : RECORD_BATCH);
	struct store_attempt *v = attempts_of(&w->recording);
	int e = store_record_attempts(w->store, v, w->recording.n, DISABLE_AFTER_US, on_recorded, w);
	if (!webhook_call_started(w, e, "record"))
		webhook_queue_move(&w->answered, &w->recording, SIZE_MAX);
	mem_free(v);
}

static void on_released(void *arg, int code, size_t n)
{
	struct webhook *w = arg;
	(void)n;
	/* Not given back: then the lease runs out by itself. */
	(void)!webhook_call_ended(w, code, "release");
	free_all(&w->releasing);
	targets_drop(w);
}

static void release(struct webhook *w)
{
	webhook_queue_move(&w->releasing, &w->unsent, RECORD_BATCH);
	struct store_attempt *v = attempts_of(&w->releasing);
	int e = store_release_deliveries(w->store, v, w->releasing.n, on_released, w);
	if (!webhook_call_started(w, e, "release"))
		webhook_queue_move(&w->unsent, &w->releasing, SIZE_MAX);
	mem_free(v);
}

/* ---------------------------------------------------------------- what is to be done now */

static bool may_claim(const struct webhook *w)
{
	return w->want_claim && !w->claiming && sys_mono_us() >= w->rest_until_us;
}

static bool is_wanted(const struct webhook *w)
{
	if ((w->answered.n > 0 && w->recording.n == 0) || (w->unsent.n > 0 && w->releasing.n == 0))
		return true;
	if (w->draining || !w->started || w->conf == NULL)
		return false;
	return (w->want_fanout && !w->fanning) || may_claim(w) ||
	       (w->want_load && !w->loading) || (w->want_list && !w->listing) ||
	       (w->want_count && !w->counting) || (w->want_purge && !w->purging);
}

/* One step: a failure of any of them pauses the rest. */
static void step(struct webhook *w)
{
	if (w->answered.n > 0 && w->recording.n == 0)
		record(w);
	else if (w->unsent.n > 0 && w->releasing.n == 0)
		release(w);
	else if (w->want_load && !w->loading)
		targets_load(w);
	else if (w->want_fanout && !w->fanning)
		fan_out(w);
	else if (may_claim(w))
		claim(w);
	else if (w->want_list && !w->listing)
		webhook_list_disabled(w);
	else if (w->want_count && !w->counting)
		webhook_count_backlog(w);
	else
		webhook_purge(w);
}

static void set_timer(struct webhook *w)
{
	int64_t at = INT64_MAX;
	if (is_wanted(w) || (w->ahead > 0 && is_paused(w)))
		at = w->paused_until_us;
	if (w->want_claim && !w->claiming && w->started && !w->draining && w->rest_until_us < at)
		at = w->rest_until_us > w->paused_until_us ? w->rest_until_us : w->paused_until_us;
	if (w->started && !w->draining && w->due_us < at)
		at = w->due_us > w->paused_until_us ? w->due_us : w->paused_until_us;
	if (at == INT64_MAX)
		loop_timer_stop(w->timer);
	else
		loop_timer_at(w->timer, at);
}

static void check_drained(struct webhook *w)
{
	if (w->drained != NULL && w->in_hand == 0 && w->calls == 0)
		loop_defer(w->loop, &w->drained_task);
}

static void run(void *arg)
{
	struct webhook *w = arg;
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	if (w->due_us <= sys_mono_us()) {
		w->due_us = INT64_MAX;
		w->want_claim = true;
	}
	if (!is_paused(w) && is_wanted(w) && store_state(w->store) != STORE_READY)
		(void)!went_well(w, ST_UNAVAILABLE, store_state_word(store_state(w->store)));
	if (!is_paused(w))
		webhook_queue_send(w);
	while (!is_paused(w) && is_wanted(w))
		step(w);
	set_timer(w);
	check_drained(w);
}

static void on_drained(void *arg)
{
	struct webhook *w = arg;
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	loop_fn *fn = w->drained;
	w->drained = NULL;
	if (fn != NULL)
		fn(w->drained_arg);
}

/* ---------------------------------------------------------------- life */

int webhook_new(struct loop *l, struct store *s, struct httpc *h, struct webhook **out, struct fault *f)
{
	(void)f;
	struct webhook *w = mem_alloc(sizeof *w);
	w->magic = WEBHOOK_MAGIC;
	w->loop = l;
	w->store = s;
	w->httpc = h;
	w->due_us = INT64_MAX;
	w->timer = loop_timer_new(l, run, w);
	loop_task_init(&w->run, run, w);
	loop_task_init(&w->drained_task, on_drained, w);
	delivery_count_outcomes();
	*out = w;
	return 0;
}

void webhook_free(struct webhook *w)
{
	if (w == NULL)
		return;
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	checks_cancel(w);
	for (struct target *t = w->targets; t != NULL; t = t->next)
		free_all(&t->waiting);
	free_all(&w->sending);
	free_all(&w->answered);
	free_all(&w->recording);
	free_all(&w->unsent);
	free_all(&w->releasing);
	targets_free(w);
	loop_undefer(w->loop, &w->run);
	loop_undefer(w->loop, &w->drained_task);
	loop_timer_free(w->timer);
	conf_unref(w->conf);
	w->magic = 0;
	mem_free(w);
}

void webhook_set_conf(struct webhook *w, struct conf *c)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	struct conf *old = w->conf;
	w->conf = conf_ref(c);
	conf_unref(old);
	targets_set_conf(w, w->conf);
	targets_drop(w);
	w->want_list = true;
	w->want_load = true;
	w->load_all = true; /* the keyring may be another */
	w->want_claim = true;
	kick(w);
}

void webhook_start(struct webhook *w)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	w->started = true;
	webhook_poll(w);
}

void webhook_kick(struct webhook *w)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	w->want_fanout = true;
	kick(w);
}

void webhook_poll(struct webhook *w)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	int64_t now = sys_mono_us();
	w->want_load = true;
	w->want_fanout = true;
	w->want_claim = true;
	w->want_list = w->want_list || now >= w->next_list_us;
	w->want_count = w->want_count || now >= w->next_count_us;
	w->want_purge = w->want_purge || now >= w->next_purge_us;
	kick(w);
}

void webhook_changed(struct webhook *w)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	w->want_load = true;
	w->want_fanout = true;
	w->want_claim = true;
	kick(w);
}

void webhook_drain(struct webhook *w, loop_fn *fn, void *arg)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	w->draining = true;
	w->drained = fn;
	w->drained_arg = arg;
	kick(w);
}

unsigned webhook_in_flight(const struct webhook *w)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	return w->in_hand;
}
