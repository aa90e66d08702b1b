/*
 * refresh_persist - writes what was decided, until it is written: results, releases, provider events.
 *
 * Results leave in batches of one statement; while one is on its way the next fills up by itself. A batch that failed for the
 * database's sake goes back to the front of the queue and is tried again with backoff; persist is idempotent, so an
 * unknown COMMIT is simply sent again. A batch that failed for our own sake (a bug) is taken apart until the one row that
 * cannot be written is alone, and that row leaves the schedule instead of looping; when not even that can be written, it stays in
 * our hands and under its lease. One whose rows others keep locked is taken apart too, so that they wait alone.
 */
#include "service/refresh_priv.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "model/policy.h"

#define BLAMES 3

struct persist_batch {
	struct refresh *owner;
	size_t n;
	struct attempt *v[REFRESH_BATCH];
};

static void flush(void *arg);

/* ---------------------------------------------------------------- trying again */

static void try_again(struct refresh *r)
{
	unsigned n = ++r->failures_in_a_row;
	loop_timer_after(r->retry, policy_backoff_us(n, US_PER_S / 10, 5 * US_PER_S, sys_random_unit()));
}

void persist_kick(struct refresh *r)
{
	if (!loop_timer_is_set(r->retry))
		loop_defer(r->loop, &r->flush);
}

static void worked(struct refresh *r)
{
	r->failures_in_a_row = 0;
	persist_kick(r);
}

/* When the schema or our rights are gone every one of them fails, and what is to be written
 * must wait until they are back: a result that is given up then is a token lost. */
bool persist_is_bug(const struct refresh *r, enum pg_class class)
{
	return class == PG_CLASS_BUG && store_state(r->store) == STORE_READY;
}

/* A row may be blamed on the schema by something of its own (a trigger, a damaged value). The schema is whole again and again, and takes the
 * results of others meanwhile: then it is the row. */
static bool is_poisoned(const struct refresh *r, struct attempt *a)
{
	if (a->blames++ == 0)
		a->written_before = r->written;
	return a->blames >= BLAMES && r->written != a->written_before;
}

static void on_probed(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct refresh *r = arg;
	(void)class, (void)v, (void)n;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	r->persisting--;
	if (code == 0)
		r->written++;
}

/* Nobody else may have anything to write, as at a start. So the same is written of a connection that nobody has: nothing, if the schema is whole. */
static void probe(struct refresh *r, const struct attempt *a)
{
	struct store_result x = a->record.result;
	sys_uuid4(x.id);
	if (store_persist(r->store, &x, 1, on_probed, r) == 0)
		r->persisting++;
}

/* The statement is at fault, or this row. */
static bool is_refused(struct refresh *r, struct attempt *a, enum pg_class class)
{
	if (persist_is_bug(r, class))
		return true;
	if (class != PG_CLASS_BUG)
		return false;
	if (is_poisoned(r, a))
		return true;
	if (a->blames >= BLAMES)
		probe(r, a);
	return false;
}

/* ---------------------------------------------------------------- results */

static void put_back(struct persist_batch *b, bool alone)
{
	struct refresh *r = b->owner;
	struct attempt_queue front = { 0 };
	for (size_t i = 0; i < b->n; i++) {
		attempt_set_state(b->v[i], AT_SETTLING);
		b->v[i]->alone = b->v[i]->alone || alone;
		queue_push(&front, b->v[i]);
	}
	for (struct attempt *a = queue_take(&r->settling); a != NULL; a = queue_take(&r->settling))
		queue_push(&front, a);
	r->settling = front;
}

static void report(struct attempt *a, enum store_verdict verdict)
{
	const struct store_result *x = &a->record.result;
	double late_s = (double)(sys_wall_us() - a->due_at) / (double)US_PER_S;
	if (verdict == STORE_STALE) {
		log_notice("refresh.settings_changed", K_ID(a->id), K_WORD("outcome", outcome_word(a->outcome)));
		a->record.result.due_at = sys_wall_us();
	}
	if (verdict == STORE_LOST) {
		/* Someone changed the row: have a look at once, the claim decides. */
		a->record.result.due_at = sys_wall_us() + US_PER_S / 10;
		log_warning("refresh.fence_lost", K_ID(a->id), K_WORD("outcome", outcome_word(a->outcome)), K_BOOL("orphaned", x->has_token));
		return;
	}
	bool told = x->event != EVENT_NONE && verdict != STORE_STALE;
	if (told && a->owner->ev.outbox != NULL)
		a->owner->ev.outbox(a->owner->ev.arg);
	if (told && x->reason == REASON_ROTATION_LOST && x->event == EVENT_REFRESH_FAILED) {
		metrics_inc(M_ROTATION_LOST, NULL, NULL);
		log_error("refresh.rotation_lost", K_ID(a->id), K_PROVIDER(a->facts.service_id));
	}
	if (!a->answered || a->outcome != OUTCOME_REFRESHED)
		return;
	if (!a->replayed)
		series_observe(metrics_get(M_REFRESH_LATENESS, NULL, NULL), late_s > 0 ? late_s : 0);
	log_debug("refresh.done", K_ID(a->id), K_PROVIDER(a->facts.service_id), K_DOUBLE("late_s", late_s),
		K_DOUBLE("expires_in_s", (double)(x->expires_at - sys_wall_us()) / (double)US_PER_S));
}

static void finish(struct attempt *a, enum store_verdict verdict)
{
	FAILPOINT_IF(a->has_reply && verdict <= STORE_ALREADY, committed);
	if (a->was_held)
		a->owner->held_rounds = 0;
	if (!a->quarantine)
		report(a, verdict);
	if (verdict == STORE_LOST && !a->quarantine && a->record.result.has_token)
		attempt_merge(a);
	else
		attempt_finish(a);
}

void attempt_finish(struct attempt *a)
{
	a->owner->unsettled--;
	if (a->seq != 0 && !a->quarantine)
		journal_done(a->owner->journal, a->seq);
	attempt_end(a, true);
}

/* The database did not take it now: later. */
static bool to_be_sent_again(struct attempt *a, int code, enum pg_class class)
{
	struct refresh *r = a->owner;
	if (code == 0 || persist_is_bug(r, class))
		return false;
	attempt_set_state(a, AT_SETTLING);
	queue_push(&r->settling, a);
	try_again(r);
	return true;
}

/* ---- a row that takes neither its result nor that it is set aside: its token was answered, and nobody may present it. Or one whose
 * answer is nowhere else. */

#define HELD_PAUSE_US US_PER_S
#define HELD_PAUSE_MAX_US (30 * US_PER_S)

void persist_end_held(struct refresh *r)
{
	struct attempt_queue stays = { 0 };
	for (struct attempt *a = queue_take(&r->held); a != NULL; a = queue_take(&r->held)) {
		if (a->seq == 0 && a->reply.status != 0) {
			queue_push(&stays, a);
			continue;
		}
		r->unsettled--;
		attempt_end(a, true);
	}
	r->held = stays;
}

/* Each time from the beginning: whatever stood in the way may be gone, and the token of the answer is worth more than its quarantine. */
static void on_held_over(void *arg)
{
	struct refresh *r = arg;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	for (struct attempt *a = queue_take(&r->held); a != NULL; a = queue_take(&r->held)) {
		a->quarantine = !a->has_result;
		attempt_set_state(a, AT_SETTLING);
		queue_push(&r->settling, a);
	}
	persist_kick(r);
}

/* In our hands we do not claim it; that the others do not is up to its lease, which therefore must not end before it is renewed. */
static void wait_held(struct attempt *a)
{
	struct refresh *r = a->owner;
	attempt_set_state(a, AT_HELD);
	queue_push(&r->held, a);
	replay_leave(a);
	if (r->draining)
		persist_end_held(r);
	refresh_check_idle(r);
	if (r->held.first == NULL || loop_timer_is_set(r->held_over))
		return;
	int64_t pause = policy_backoff_us(++r->held_rounds, HELD_PAUSE_US, HELD_PAUSE_MAX_US, sys_random_unit());
	int64_t most = r->conf->refresh.lease_us / 3;
	loop_timer_after(r->held_over, pause < most ? pause : most);
}

static void on_held(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct attempt *a = arg;
	struct refresh *r = a->owner;
	(void)v, (void)n;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	r->persisting--;
	if (!a->was_held)
		log_error("refresh.held", K_ID(a->id), K_WORD("lease", code == 0 ? "renewed" : pg_class_word(class)),
			K_TEXT("hint", "the database refuses to write its result: look at its log; the answer is kept"));
	a->was_held = true;
	wait_held(a);
	persist_kick(r);
}

static void hold(struct attempt *a)
{
	struct refresh *r = a->owner;
	a->alone = true;
	if (store_hold(r->store, a->id, a->attempt_id, r->conf->refresh.lease_us, on_held, a) == 0)
		r->persisting++;
	else
		wait_held(a);
	persist_kick(r);
}

static void on_quarantined(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct attempt *a = arg;
	struct refresh *r = a->owner;
	(void)v, (void)n;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	r->persisting--;
	if (code != 0 && is_refused(r, a, class)) {
		hold(a);
		return;
	}
	if (to_be_sent_again(a, code, class))
		return;
	if (a->seq == 0 && a->record.result.has_token) { /* the journal did not take it: here is the only copy */
		hold(a);
		return;
	}
	log_error("refresh.quarantined", K_ID(a->id), K_TEXT("hint", "its result cannot be written; the reply is kept in the journal"));
	a->record.result.due_at = TIME_NEVER;
	finish(a, STORE_LOST);
	worked(r);
}

/* Another transaction has the row: a pause of its own, so that the others are neither kept nor asked for all the time. */
static void wait_for_row(struct attempt *a)
{
	struct refresh *r = a->owner;
	if (a->state == AT_PERSISTING)
		attempt_set_state(a, AT_SETTLING);
	queue_push(&r->busy, a);
	if (!loop_timer_is_set(r->busy_over))
		loop_timer_after(r->busy_over, policy_backoff_us(++r->busy_rounds, US_PER_S / 20, 2 * US_PER_S, sys_random_unit()));
}

static void on_merged(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct attempt *a = arg;
	struct refresh *r = a->owner;
	(void)n;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	r->persisting--;
	bool refused = code != 0 && is_refused(r, a, class);
	if (!refused && to_be_sent_again(a, code, class))
		return;
	if (refused)
		attempt_unmergeable(a);
	else if (v[0] == STORE_AGAIN)
		wait_for_row(a);
	else
		attempt_merged(a, v[0]);
	worked(r);
}

static void on_busy_over(void *arg)
{
	struct refresh *r = arg;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	for (struct attempt *a = queue_take(&r->busy); a != NULL; a = queue_take(&r->busy))
		queue_push(a->state == AT_RELEASING ? &r->releasing : &r->settling, a);
	persist_kick(r);
}

static void on_persisted(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct persist_batch *b = arg;
	struct refresh *r = b->owner;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	r->persisting--;
	if (code == 0) {
		ALWAYS(n == b->n);
		bool busy = false;
		r->written++;
		for (size_t i = 0; i < n; i++) {
			busy = busy || v[i] == STORE_AGAIN;
			if (v[i] == STORE_AGAIN)
				wait_for_row(b->v[i]);
			else
				finish(b->v[i], v[i]);
		}
		if (!busy && r->busy.first == NULL)
			r->busy_rounds = 0;
		worked(r);
		mem_free(b);
		return;
	}
	bool bug = persist_is_bug(r, class);
	if (r->failures_in_a_row == 0 || bug)
		log_warning("refresh.persist_failed", K_COUNT(b->n), K_WORD("class", pg_class_word(class)));
	if (class == PG_CLASS_RETRY && b->n == 1) {
		wait_for_row(b->v[0]);
		worked(r);
		mem_free(b);
		return;
	}
	if (b->n == 1 && is_refused(r, b->v[0], class))
		b->v[0]->quarantine = b->v[0]->has_result = true;
	/* Locks and time-outs that last: one row is enough to keep a batch, so each goes by itself. */
	put_back(b, class == PG_CLASS_BUG || (class == PG_CLASS_RETRY && r->failures_in_a_row > 0));
	if (bug)
		persist_kick(r);
	else
		try_again(r);
	mem_free(b);
}

static size_t gather(struct refresh *r, struct persist_batch *b)
{
	while (b->n < REFRESH_BATCH && r->settling.first != NULL) {
		const struct attempt *next = r->settling.first;
		bool single = next->alone || next->quarantine || next->merging;
		if (single && b->n > 0)
			break;
		struct attempt *a = queue_take(&r->settling);
		attempt_set_state(a, AT_PERSISTING);
		b->v[b->n++] = a;
		if (single)
			break;
	}
	return b->n;
}

static int send_results(struct refresh *r)
{
	struct persist_batch *b = mem_alloc(sizeof *b);
	b->owner = r;
	size_t n = gather(r, b);
	struct attempt *first = b->v[0];
	int e;
	if (first->quarantine) {
		e = store_quarantine(r->store, first->id, first->attempt_id, on_quarantined, first);
	} else if (first->merging) {
		e = store_merge(r->store, &first->record.result, first->attempt_id, on_merged, first);
	} else {
		struct store_result *v = mem_calloc(n, sizeof *v);
		for (size_t i = 0; i < n; i++)
			v[i] = b->v[i]->record.result;
		e = store_persist(r->store, v, n, on_persisted, b);
		mem_free(v);
	}
	if (e == 0)
		r->persisting++;
	else
		put_back(b, false);
	if (e != 0 || first->quarantine || first->merging)
		mem_free(b);
	return e;
}

/* ---------------------------------------------------------------- releases */

struct release_batch {
	struct refresh *owner;
	size_t n;
	struct attempt *v[REFRESH_BATCH];
};

static void on_released(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct release_batch *b = arg;
	struct refresh *r = b->owner;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	r->releases_sent--;
	/* Again and again the schema is blamed: by one of them perhaps. Nothing was sent, and leases end by themselves. */
	r->release_blames = code != 0 && class == PG_CLASS_BUG ? r->release_blames + 1 : 0;
	if (code != 0 && !persist_is_bug(r, class) && r->release_blames < BLAMES) {
		for (size_t i = 0; i < b->n; i++)
			queue_push(&r->releasing, b->v[i]);
		try_again(r);
	} else {
		for (size_t i = 0; i < b->n; i++) {
			if (i < n && v[i] == STORE_AGAIN)
				wait_for_row(b->v[i]);
			else
				attempt_end(b->v[i], true);
		}
		worked(r);
	}
	mem_free(b);
}

static int send_releases(struct refresh *r)
{
	struct release_batch *b = mem_alloc(sizeof *b);
	struct store_release v[REFRESH_BATCH];
	b->owner = r;
	while (b->n < REFRESH_BATCH && r->releasing.first != NULL) {
		struct attempt *a = queue_take(&r->releasing);
		memcpy(v[b->n].id, a->id, 16);
		v[b->n].attempt_id = a->attempt_id;
		v[b->n].due_at = a->release_due_at;
		b->v[b->n++] = a;
	}
	int e = store_release(r->store, v, b->n, on_released, b);
	if (e == 0) {
		r->releases_sent++;
		return 0;
	}
	for (size_t i = 0; i < b->n; i++)
		queue_push(&r->releasing, b->v[i]);
	mem_free(b);
	return e;
}

/* ---------------------------------------------------------------- provider events */

static void free_event(struct pending_event *p)
{
	buf_fini(&p->entity);
	mem_free(p->application);
	mem_free(p->entity_id);
	mem_free(p);
}

static void on_event_written(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct pending_event *p = arg;
	struct refresh *r = p->owner;
	(void)v, (void)n;
	p->sending = false;
	if (code != 0 && !persist_is_bug(r, class)) {
		try_again(r);
		return;
	}
	if (code != 0)
		log_error("provider.event_lost", K_WORD("event", event_type_word(p->type)), K_WORD("class", pg_class_word(class)));
	struct pending_event **at = &r->events;
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	free_event(p);
	if (r->ev.outbox != NULL)
		r->ev.outbox(r->ev.arg);
	refresh_check_idle(r);
}

static int send_events(struct refresh *r)
{
	for (struct pending_event *p = r->events; p != NULL; p = p->next) {
		if (p->sending)
			continue;
		int e = store_event(r->store, p->type, p->event_id, p->application, p->entity_id, "Provider", buf_str(&p->entity), p->reason,
			on_event_written, p);
		if (e != 0)
			return e;
		p->sending = true;
	}
	return 0;
}

void persist_event(struct refresh *r, enum event_type type, const struct gate *g, const struct attempt *a, enum reason why)
{
	struct pending_event *p = mem_alloc(sizeof *p);
	p->owner = r;
	p->type = type;
	sys_uuid7(p->event_id);
	p->application = mem_strdup(a->client->application);
	p->entity_id = mem_strdup(gate_provider(g));
	p->reason = type == EVENT_PROVIDER_FAILING ? reason_word(why) : NULL;
	buf_init(&p->entity, 8 * 1024);
	int e = event_provider_entity_build(a->provider->key, a->provider->name, a->client->application, &p->entity);
	if (e != 0) {
		log_error("provider.event_lost", K_WORD("event", event_type_word(type)), K_STATUS(e));
		free_event(p);
		return;
	}
	p->next = r->events;
	r->events = p;
	persist_kick(r);
}

/* ---------------------------------------------------------------- the turn's end */

static void flush(void *arg)
{
	struct refresh *r = arg;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	int e = 0;
	while (e == 0 && r->settling.first != NULL && r->persisting < PERSISTS_AT_ONCE)
		e = send_results(r);
	if (e == 0 && r->releasing.first != NULL && r->releases_sent == 0)
		e = send_releases(r);
	if (e == 0)
		e = send_events(r);
	if (e != 0)
		try_again(r);
}

void persist_init(struct refresh *r)
{
	loop_task_init(&r->flush, flush, r);
	r->retry = loop_timer_new(r->loop, flush, r);
	r->busy_over = loop_timer_new(r->loop, on_busy_over, r);
	r->held_over = loop_timer_new(r->loop, on_held_over, r);
}

void persist_fini(struct refresh *r)
{
	loop_undefer(r->loop, &r->flush);
	loop_timer_free(r->retry);
	loop_timer_free(r->busy_over);
	loop_timer_free(r->held_over);
	while (r->events != NULL) {
		struct pending_event *p = r->events;
		r->events = p->next;
		free_event(p);
	}
}
