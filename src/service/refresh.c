/*
 * refresh - what is in our hands: the states of an attempt, claims, room.
 *
 * The order is the promise: committed claim (here), then send, then journal, then parse (refresh_send.c), then write
 * (refresh_persist.c); refresh_replay.c feeds in the answers of an earlier life, refresh_drain.c lets all of it come to an end.
 */
#include "service/refresh.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "service/refresh_priv.h"

/* ---------------------------------------------------------------- states */

static const struct {
	enum attempt_state from, to;
	const char *why;
} transitions[] = {
	{ AT_CLAIMING, AT_DONE, "the row was not ours to take, or the claim failed" },
	{ AT_CLAIMING, AT_SENDING, "claimed, and everything needed is at hand" },
	{ AT_CLAIMING, AT_SETTLING, "claimed, and decided without a request" },
	{ AT_CLAIMING, AT_RELEASING, "claimed, and nothing can be sent now" },
	{ AT_CLAIMING, AT_REFUSED, "the claim of this row alone fails by a fault that is no outage" },
	{ AT_REFUSED, AT_DONE, "its pause is over" },
	{ AT_LOADING, AT_SETTLING, "the row of a journalled reply is known" },
	{ AT_LOADING, AT_DONE, "its connection is gone" },
	{ AT_SENDING, AT_JOURNALLING, "answered" },
	{ AT_SENDING, AT_SETTLING, "no answer, or the journal cannot take it" },
	{ AT_JOURNALLING, AT_SETTLING, "the reply is durable" },
	{ AT_SETTLING, AT_PERSISTING, "its statement was sent" },
	{ AT_PERSISTING, AT_SETTLING, "the statement failed, or another has the row: again" },
	{ AT_PERSISTING, AT_DONE, "committed, or the fence was lost" },
	{ AT_PERSISTING, AT_MERGING, "the fence was lost, and there is a token in hand" },
	{ AT_PERSISTING, AT_HELD, "neither its result nor its quarantine can be written" },
	{ AT_HELD, AT_SETTLING, "its pause is over" },
	{ AT_HELD, AT_DONE, "we end, and the journal has its reply" },
	{ AT_MERGING, AT_SETTLING, "the row still has the token that it was exchanged for" },
	{ AT_MERGING, AT_DONE, "the row has another one, or is gone" },
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

void refresh_tell_gate(struct refresh *r, const char *provider)
{
	if (r->ev.gate != NULL)
		r->ev.gate(r->ev.arg, provider);
}

void attempt_drop_gate(struct attempt *a)
{
	if (a->gate == NULL)
		return;
	gate_give_back(a->gate);
	refresh_tell_gate(a->owner, gate_provider(a->gate));
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
	attempt_drop_gate(a);
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
	replay_leave(a);
	if (r->ev.done != NULL)
		r->ev.done(r->ev.arg, &d);
	attempt_free(a);
	refresh_check_idle(r);
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

void attempt_release(struct attempt *a, int64_t due_at)
{
	a->release_due_at = due_at;
	attempt_drop_gate(a);
	attempt_set_state(a, AT_RELEASING);
	leave_flight(a);
	queue_push(&a->owner->releasing, a);
	persist_kick(a->owner);
}

/* ---------------------------------------------------------------- claim */

struct batch {
	struct refresh *owner;
	struct batch *next;
	bool at_fault; /* the same claim of nobody works */
	size_t n;
	struct store_want want[];
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

/* ---- one row that makes its claim fail, as a damaged page does, must not keep the others of its batch */

#define REFUSED_MAX 64
#define REFUSED_PAUSE_US (5 * 60 * US_PER_S)

void refresh_end_refused(struct refresh *r, int64_t until_us)
{
	while (r->refused.first != NULL && r->refused.first->again_us <= until_us)
		attempt_end(queue_take(&r->refused), false);
	if (r->refused.first != NULL)
		loop_timer_at(r->refused_over, r->refused.first->again_us);
	else
		loop_timer_stop(r->refused_over);
}

static void on_refused_over(void *arg)
{
	refresh_end_refused(arg, sys_mono_us());
}

/* It stays in our hands for a pause, so that it is not asked for with every poll. */
static void refuse(struct refresh *r, const uint8_t id[16])
{
	struct attempt *a = attempt_find(r, id);
	ALWAYS(a != NULL);
	attempt_drop_gate(a);
	attempt_set_state(a, AT_REFUSED);
	leave_flight(a);
	log_error("refresh.claim_refused", K_ID(id), K_TEXT("hint", "its row cannot be read or written; it is left alone for five minutes"));
	a->again_us = sys_mono_us() + REFUSED_PAUSE_US;
	queue_push(&r->refused, a);
	refresh_end_refused(r, r->draining ? INT64_MAX : 0);
}

static void send_claim(struct refresh *r, struct batch *b);

static struct batch *part_of(const struct batch *b, size_t from, size_t n)
{
	struct batch *part = mem_alloc(sizeof *part + n * sizeof *part->want);
	part->owner = b->owner;
	part->at_fault = b->at_fault;
	part->n = n;
	memcpy(part->want, b->want + from, n * sizeof *part->want);
	return part;
}

/* True when it was taken care of: halved until the row that is at fault is alone. */
static bool take_apart(struct batch *b, enum pg_class class)
{
	struct refresh *r = b->owner;
	if (class != PG_CLASS_BUG || (store_state(r->store) != STORE_READY && !b->at_fault) || r->refused.n >= REFUSED_MAX)
		return false;
	if (b->n == 1) {
		refuse(r, b->want[0].id);
		return true;
	}
	struct batch *second = part_of(b, b->n / 2, b->n - b->n / 2);
	struct batch *first = part_of(b, 0, b->n / 2);
	second->next = r->claims;
	first->next = second;
	r->claims = first;
	return true;
}

static void next_claim(struct refresh *r)
{
	struct batch *b = r->claims;
	if (b != NULL) {
		r->claims = b->next;
		send_claim(r, b);
		return;
	}
	r->claiming = false;
	refresh_tell_gate(r, NULL);
}

static void claim_failed(struct batch *b, enum pg_class class)
{
	struct refresh *r = b->owner;
	if (!take_apart(b, class))
		fail_batch(b, class);
	mem_free(b);
	next_claim(r);
}

static void on_probed(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n)
{
	struct batch *b = arg;
	(void)class, (void)v, (void)n;
	b->at_fault = code == 0;
	claim_failed(b, PG_CLASS_BUG);
}

/* Is it the schema, or does a row only say so, by a trigger that lacks a right? */
static bool probe(struct batch *b, enum pg_class class)
{
	const struct refresh *r = b->owner;
	if (class != PG_CLASS_BUG || b->at_fault || store_state(r->store) == STORE_READY)
		return false;
	struct store_want nobody = b->want[0];
	sys_uuid4(nobody.id);
	return store_claim(r->store, &nobody, 1, r->conf->refresh.lease_us, r->conf->refresh.timeout_us, on_probed, b) == 0;
}

static void on_claimed(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n)
{
	struct batch *b = arg;
	struct refresh *r = b->owner;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	if (code != 0) {
		log_warning("refresh.claim_failed", K_COUNT(b->n), K_WORD("class", pg_class_word(class)));
		if (!probe(b, class))
			claim_failed(b, class);
		return;
	}
	bool more = r->claims != NULL;
	if (!more)
		next_claim(r);
	for (size_t i = 0; i < n; i++) {
		struct attempt *a = attempt_find(r, v[i].id);
		ALWAYS(a != NULL && a->state == AT_CLAIMING);
		a->due_at = v[i].due_at;
		FAILPOINT(after_intent);
		attempt_begin(a, &v[i]);
	}
	for (size_t i = 0; i < b->n; i++) {
		struct attempt *a = attempt_find(r, b->want[i].id);
		if (a != NULL && a->state == AT_CLAIMING)
			attempt_end(a, false);
	}
	mem_free(b);
	if (more)
		next_claim(r);
}

static void send_claim(struct refresh *r, struct batch *b)
{
	r->claiming = true;
	FAILPOINT(before_intent);
	int e = store_claim(r->store, b->want, b->n, r->conf->refresh.lease_us, r->conf->refresh.timeout_us, on_claimed, b);
	if (e == 0)
		return;
	fail_batch(b, PG_CLASS_UNKNOWN); /* by the release queue: no callback from inside this call */
	mem_free(b);
	while ((b = r->claims) != NULL) {
		r->claims = b->next;
		fail_batch(b, PG_CLASS_UNKNOWN);
		mem_free(b);
	}
	r->claiming = false;
}

bool refresh_has(struct refresh *r, const uint8_t id[16])
{
	return attempt_find(r, id) != NULL;
}

void refresh_claim(struct refresh *r, const struct refresh_want *v, size_t n)
{
	ALWAYS(n >= 1 && n <= REFRESH_BATCH && r->conf != NULL);
	struct batch *b = mem_alloc(sizeof *b + n * sizeof *b->want);
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
		w->takeover_us = v[i].takeover_us;
	}
	send_claim(r, b);
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
	/* Each of them has its place on the disk already, whatever becomes of the disk. */
	uint64_t places = journal_room(r->journal) / r->reply_bytes;
	if (places < max)
		max = (unsigned)places;
	return busy < max ? max - busy : 0;
}

static void on_journal_note(void *arg, const struct fault *what)
{
	struct refresh *r = arg;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	metrics_inc(M_JOURNAL_FAULTS, what->code == ST_SYNTAX ? "damage" : "io", NULL);
	if (what->code == ST_SYNTAX)
		log_error("journal.damaged", K_FAULT(what));
	else
		log_error("journal.file_given_up", K_FAULT(what));
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
	r->reply_bytes = JOURNAL_REPLY_BYTES;
	r->ev = *ev;
	r->refused_over = loop_timer_new(l, on_refused_over, r);
	drain_init(r);
	replay_init(r);
	persist_init(r);
	journal_on_note(j, on_journal_note, r);
	merge_count_fates();
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
	while (r->claims != NULL) {
		struct batch *next = r->claims->next;
		mem_free(r->claims);
		r->claims = next;
	}
	loop_timer_free(r->refused_over);
	persist_fini(r);
	replay_fini(r);
	drain_fini(r);
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
