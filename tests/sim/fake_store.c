/*
 * fake_store - rows in memory. Kept as literal as the SQL of store_refresh.c, so that a rule broken in a service shows here.
 */
#include "sim/fake_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/seal.h"

struct answer { /* one callback that is due in a later turn */
	struct answer *next;
	struct loop_task task;
	struct loop_timer *timer; /* instead of the task, when answers take time */
	struct store *store;
	void (*run)(struct answer *a);
	void *fn, *arg;
	int code;
	enum pg_class class;
	size_t n;
	struct store_claimed *claimed;
	enum store_verdict *verdicts;
	struct store_due *due;
	uint8_t *sealed; /* as it was when the row was read */
};

struct store {
	struct loop *loop;
	struct keyring *keyring;
	bool writable, closed;
	int64_t delay_us, epoch, previous_epoch, ready_since;
	uint64_t attempts;
	struct fake_row rows[FAKE_ROWS];
	size_t n_rows; /* used from the front */
	struct answer *open;
	unsigned fail_persist, fail_claim;
	enum pg_class persist_class, claim_class;
	bool releases_blamed, merges_blamed, persist_executed, claim_executed, poisoned, quarantine_poisoned, hold_poisoned, claim_poisoned;
	unsigned disturbed;
	uint8_t poison[16], claim_poison[16];
	struct fake_store_counts counts;
};

#define FIRST_EPOCH 7

/* ---------------------------------------------------------------- answers */

static void run_answer(void *arg)
{
	struct answer *a = arg;
	struct answer **at = &a->store->open;
	while (*at != a)
		at = &(*at)->next;
	*at = a->next;
	loop_undefer(a->store->loop, &a->task);
	loop_timer_free(a->timer);
	a->run(a);
	mem_free(a->claimed);
	mem_free(a->verdicts);
	mem_free(a->due);
	mem_free(a->sealed);
	mem_free(a);
}

static struct answer *answer_new(struct store *s, void (*run)(struct answer *a), void *arg)
{
	struct answer *a = mem_alloc(sizeof *a);
	a->store = s;
	a->run = run;
	a->arg = arg;
	a->next = s->open;
	s->open = a;
	loop_task_init(&a->task, run_answer, a);
	if (s->delay_us > 0) {
		a->timer = loop_timer_new(s->loop, run_answer, a);
		loop_timer_after(a->timer, s->delay_us);
	} else {
		loop_defer(s->loop, &a->task);
	}
	return a;
}

static void run_poll(struct answer *a)
{
	store_poll_fn *fn;
	memcpy(&fn, &a->fn, sizeof fn);
	fn(a->arg, a->code, a->due, a->n);
}

static void run_claim(struct answer *a)
{
	store_claim_fn *fn;
	memcpy(&fn, &a->fn, sizeof fn);
	fn(a->arg, a->code, a->class, a->claimed, a->n);
}

static void run_persist(struct answer *a)
{
	store_persist_fn *fn;
	memcpy(&fn, &a->fn, sizeof fn);
	fn(a->arg, a->code, a->class, a->verdicts, a->n);
}

#define SET_FN(a_, fn_)                                     \
	do {                                                \
		__typeof__(fn_) tmp_ = (fn_);               \
		memcpy(&(a_)->fn, &tmp_, sizeof((a_)->fn)); \
	} while (0)

/* ---------------------------------------------------------------- rows */

static struct fake_row *find(struct store *s, const uint8_t id[16])
{
	for (size_t i = 0; i < s->n_rows; i++) {
		if (s->rows[i].used && memcmp(s->rows[i].id, id, 16) == 0)
			return &s->rows[i];
	}
	return NULL;
}

struct fake_row *fake_store_row(struct store *s, const uint8_t id[16])
{
	return find(s, id);
}

static void seal_into(struct store *s, enum seal_column col, const struct fake_row *r, int64_t version, const char *text, uint8_t *to, size_t *n)
{
	struct buf b;
	buf_init(&b, 2048);
	ALWAYS(seal_column(s->keyring, col, r->id, version, text, strlen(text), &b) == 0);
	memcpy(to, b.data, b.len);
	*n = b.len;
	buf_fini(&b);
}

struct fake_row *fake_store_add(struct store *s, const char *application, const char *consumer, const char *service, int64_t due_at,
	int64_t expires_at)
{
	const struct conn_key k = { .application_id = application, .consumer_id = consumer, .unified_api = "accounting", .service_id = service };
	ALWAYS(s->n_rows < FAKE_ROWS);
	struct fake_row *r = &s->rows[s->n_rows++];
	r->used = r->enabled = r->current = true;
	conn_id_of(&k, r->id);
	(void)snprintf(r->application, sizeof r->application, "%s", application);
	(void)snprintf(r->consumer, sizeof r->consumer, "%s", consumer);
	(void)snprintf(r->service, sizeof r->service, "%s", service);
	r->version = 100;
	r->updated_at = 1;
	r->due_at = due_at;
	r->expires_at = expires_at;
	r->issued_at = sys_wall_us();
	r->state = CONN_CALLABLE;
	r->health = HEALTH_OK;
	char token[128];
	(void)snprintf(token, sizeof token, "rt-%s-0", consumer);
	seal_into(s, SEAL_REFRESH_TOKEN, r, r->version, token, r->refresh, &r->refresh_len);
	return r;
}

static void open_token(struct store *s, const struct fake_row *r, enum seal_column col, const uint8_t *sealed, size_t n, char out[256])
{
	struct buf b;
	out[0] = '\0';
	if (n == 0)
		return;
	buf_init_secret(&b, 255);
	ALWAYS(seal_open(s->keyring, col, r->id, r->version, sealed, n, &b) == 0);
	memcpy(out, buf_str(&b), b.len + 1);
	buf_fini(&b);
}

void fake_row_refresh_token(struct store *s, const struct fake_row *r, char out[256])
{
	open_token(s, r, SEAL_REFRESH_TOKEN, r->refresh, r->refresh_len, out);
}

void fake_row_previous_token(struct store *s, const struct fake_row *r, char out[256])
{
	open_token(s, r, SEAL_PREVIOUS_REFRESH_TOKEN, r->previous, r->previous_len, out);
}

/* ---------------------------------------------------------------- store.h */

struct store *fake_store_new(struct loop *l, struct keyring *k)
{
	struct store *s = mem_alloc(sizeof *s);
	s->loop = l;
	s->keyring = k;
	s->writable = true;
	s->epoch = FIRST_EPOCH;
	s->ready_since = sys_mono_us();
	return s;
}

/* As the real one when it is freed: whoever waits is told, whatever became of the statement. */
void fake_store_shut(struct store *s)
{
	s->closed = true;
	while (s->open != NULL) {
		struct answer *a = s->open;
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_UNKNOWN;
		a->n = 0;
		run_answer(a);
	}
}

void fake_store_reopen(struct store *s)
{
	ALWAYS(s->closed && s->open == NULL);
	s->closed = false;
	s->previous_epoch = s->epoch++;
	s->ready_since = sys_mono_us();
	s->attempts = 0;
}

void fake_store_free(struct store *s)
{
	fake_store_shut(s);
	mem_free(s);
}

void fake_store_set_delay(struct store *s, int64_t us)
{
	s->delay_us = us;
}

void fake_store_import(struct store *s, struct fake_row *r, const char *token, int64_t due_at, int64_t expires_at)
{
	r->version = sys_wall_us() > r->version ? sys_wall_us() : r->version + 1;
	r->imports++;
	fake_store_change(r);
	r->attempt = 0; /* the lease stays: a request may be out */
	r->due_at = due_at;
	r->issued_at = sys_wall_us();
	r->expires_at = expires_at;
	r->doubts = r->failures = 0;
	r->first_failed_at = r->last_failed_at = 0;
	r->state = CONN_CALLABLE;
	r->health = HEALTH_OK;
	r->reason = REASON_NONE;
	r->previous_len = 0;
	seal_into(s, SEAL_REFRESH_TOKEN, r, r->version, token, r->refresh, &r->refresh_len);
}

void fake_store_change(struct fake_row *r)
{
	r->updated_at = sys_wall_us() > r->updated_at ? sys_wall_us() : r->updated_at + 1;
}

void fake_store_merge(struct store *s, struct fake_row *r, const char *token, int64_t due_at)
{
	r->version++;
	r->attempt = 0; /* the lease stays: a request may be out */
	r->doubts = 0;
	r->due_at = due_at;
	r->previous_len = 0;
	seal_into(s, SEAL_REFRESH_TOKEN, r, r->version, token, r->refresh, &r->refresh_len);
}

void fake_store_take_over(struct fake_row *r, int64_t lease_us)
{
	r->doubts += r->owner != 0 && r->attempt != 0;
	r->attempt = 1;
	r->owner = 1;
	r->lease_until = sys_wall_us() + lease_us;
}

enum store_state store_state(const struct store *s)
{
	if ((s->releases_blamed || s->merges_blamed) && s->writable)
		return STORE_CHECKING;
	return s->writable && !s->closed ? STORE_READY : STORE_CONNECTING;
}

bool store_writable(const struct store *s)
{
	return store_state(s) == STORE_READY;
}

int64_t store_epoch(const struct store *s)
{
	return s->epoch;
}

int64_t store_ready_since(const struct store *s)
{
	return s->writable && !s->closed ? s->ready_since : INT64_MAX;
}

int64_t store_next_attempt(struct store *s)
{
	return s->epoch << 40 | (int64_t)++s->attempts;
}

void fake_store_set_writable(struct store *s, bool writable)
{
	if (writable && !s->writable)
		s->ready_since = sys_mono_us();
	s->writable = writable;
}

void fake_store_fail_persist(struct store *s, unsigned n, enum pg_class class, bool executed)
{
	s->fail_persist = n;
	s->persist_class = class;
	s->persist_executed = executed;
}

void fake_store_fail_claim(struct store *s, unsigned n, enum pg_class class, bool executed)
{
	s->fail_claim = n;
	s->claim_class = class;
	s->claim_executed = executed;
}

void fake_store_poison(struct store *s, const uint8_t id[16])
{
	s->poisoned = id != NULL;
	if (id != NULL)
		memcpy(s->poison, id, 16);
}

void fake_store_poison_more(struct store *s, bool quarantine, bool hold)
{
	s->quarantine_poisoned = quarantine;
	s->hold_poisoned = hold;
}

void fake_store_blame_releases(struct store *s)
{
	s->releases_blamed = true;
}

void fake_store_blame_merges(struct store *s)
{
	s->merges_blamed = true;
}

void fake_store_poison_claim(struct store *s, const uint8_t id[16])
{
	s->claim_poisoned = id != NULL;
	if (id != NULL)
		memcpy(s->claim_poison, id, 16);
}

void fake_store_disturb(struct store *s, unsigned n)
{
	s->disturbed = n;
}

const struct fake_store_counts *fake_store_counts(const struct store *s)
{
	return &s->counts;
}

/* ---------------------------------------------------------------- poll */

static int by_due(const void *a, const void *b)
{
	const struct store_due *x = a, *y = b;
	if (x->due_at != y->due_at)
		return x->due_at < y->due_at ? -1 : 1;
	return memcmp(x->id, y->id, 16);
}

static bool lease_free(const struct fake_row *r)
{
	return r->lease_until == 0 || r->lease_until <= sys_wall_us();
}

/* As FOREIGN of store_refresh.c. */
static bool is_foreign(const struct store *s, const struct fake_row *r)
{
	return r->owner != 0 && r->owner != s->epoch && r->owner != FAKE_NOBODY && r->attempt != 0;
}

static void add_due(struct answer *a, const struct fake_row *r)
{
	struct store_due *d = &a->due[a->n++];
	memcpy(d->id, r->id, 16);
	d->application_id = r->application;
	d->service_id = r->service;
	d->due_at = r->due_at;
	d->foreign_until = is_foreign(a->store, r) ? r->lease_until : 0;
}

int store_poll(struct store *s, const struct store_cursor *from, int64_t until, unsigned limit, const struct slots *only, store_poll_fn *fn,
	void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	s->counts.polls++;
	struct answer *a = answer_new(s, run_poll, arg);
	SET_FN(a, fn);
	a->code = s->writable ? 0 : ST_UNAVAILABLE;
	a->due = mem_calloc(s->n_rows + 1, sizeof *a->due);
	for (size_t i = 0; s->writable && i < s->n_rows; i++) {
		const struct fake_row *r = &s->rows[i];
		bool after = r->due_at > from->due_at || (r->due_at == from->due_at && memcmp(r->id, from->id, 16) > 0);
		if (r->used && r->due_at != TIME_NEVER && after && r->due_at <= until && lease_free(r) &&
			slots_has(only, (unsigned)conn_slot_of(r->id)))
			add_due(a, r);
	}
	qsort(a->due, a->n, sizeof *a->due, by_due);
	if (a->n > limit)
		a->n = limit;
	return 0;
}

int store_due_of(struct store *s, const uint8_t id[16], store_poll_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	struct answer *a = answer_new(s, run_poll, arg);
	SET_FN(a, fn);
	a->due = mem_calloc(1, sizeof *a->due);
	a->code = s->writable ? 0 : ST_UNAVAILABLE;
	const struct fake_row *r = find(s, id);
	if (s->writable && r != NULL && r->due_at != TIME_NEVER && lease_free(r))
		add_due(a, r);
	return 0;
}

/* ---------------------------------------------------------------- claim */

static void describe(const struct fake_row *r, struct store_claimed *c)
{
	memcpy(c->id, r->id, 16);
	c->attempt_id = r->attempt;
	c->token_version = r->version;
	c->due_at = r->due_at;
	c->doubts = r->doubts;
	c->key = (struct conn_key){ .application_id = r->application, .consumer_id = r->consumer, .unified_api = "accounting", .service_id = r->service };
	c->auth_type = AUTH_OAUTH2;
	c->enabled = r->enabled;
	c->state = r->state;
	c->health = r->health;
	c->reason = r->reason;
	c->failures = r->failures;
	c->created_at = 1;
	c->updated_at = r->updated_at;
	c->first_failed_at = r->first_failed_at;
	c->last_failed_at = r->last_failed_at;
	c->issued_at = r->issued_at;
	c->expires_at = r->expires_at;
	c->refresh_issued_at = r->refresh_issued_at;
	c->refresh_expires_at = r->refresh_expires_at;
	c->current = r->current;
	c->scope = r->scope[0] != '\0' ? r->scope : NULL;
	c->metadata = "{}";
	c->refresh_token = r->refresh_len > 0 ? r->refresh : NULL;
	c->refresh_token_len = r->refresh_len;
}

static void claim_one(struct store *s, struct answer *a, const struct store_want *w, int64_t lease_us)
{
	struct fake_row *r = find(s, w->id);
	if (r == NULL || r->due_at > w->due_at || r->due_at == TIME_NEVER || !lease_free(r))
		return;
	if (is_foreign(s, r) && r->lease_until + w->takeover_us > sys_wall_us())
		return;
	r->doubts += r->owner != 0 && r->attempt != 0;
	r->attempt = w->attempt_id;
	r->owner = s->epoch;
	r->lease_until = sys_wall_us() + lease_us;
	describe(r, &a->claimed[a->n++]);
}

int store_claim(struct store *s, const struct store_want *v, size_t n, int64_t lease_us, int64_t timeout_us, store_claim_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	(void)timeout_us;
	s->counts.claims++;
	struct answer *a = answer_new(s, run_claim, arg);
	SET_FN(a, fn);
	a->claimed = mem_calloc(n, sizeof *a->claimed);
	bool bug = false;
	for (size_t i = 0; i < n && s->claim_poisoned; i++)
		bug = bug || memcmp(v[i].id, s->claim_poison, 16) == 0;
	bool fails = s->fail_claim > 0 || !s->writable || bug;
	if (fails) {
		a->code = ST_UNAVAILABLE;
		a->class = s->fail_claim > 0 ? s->claim_class : bug && s->writable ? PG_CLASS_BUG : PG_CLASS_CONNECTION;
		s->fail_claim -= s->fail_claim > 0;
	}
	for (size_t i = 0; i < n && !bug && (!fails || (s->writable && s->claim_executed)); i++)
		claim_one(s, a, &v[i], lease_us);
	s->counts.claimed_rows += (unsigned)a->n;
	if (fails)
		a->n = 0;
	return 0;
}

int store_load(struct store *s, const uint8_t id[16], store_claim_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	s->counts.loads++;
	struct answer *a = answer_new(s, run_claim, arg);
	SET_FN(a, fn);
	a->claimed = mem_calloc(1, sizeof *a->claimed);
	const struct fake_row *r = find(s, id);
	if (!s->writable) {
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_CONNECTION;
	} else if (r != NULL) {
		describe(r, a->claimed);
		a->n = 1;
		a->sealed = mem_alloc(sizeof r->refresh);
		memcpy(a->sealed, r->refresh, sizeof r->refresh);
		if (a->claimed->refresh_token != NULL)
			a->claimed->refresh_token = a->sealed;
	}
	return 0;
}

/* ---------------------------------------------------------------- persist */

static void copy_sealed(const struct buf *from, uint8_t *to, size_t *n)
{
	*n = from != NULL ? from->len : 0;
	if (*n > 0)
		memcpy(to, from->data, *n);
}

static void write_tokens(const struct store_result *x, struct fake_row *r)
{
	r->version++;
	r->refreshes++;
	r->issued_at = x->issued_at;
	r->refresh_issued_at = x->refresh_issued_at;
	r->refresh_expires_at = x->refresh_expires_at;
	r->expires_at = x->expires_at;
	copy_sealed(x->access_token, r->access, &r->access_len);
	copy_sealed(x->refresh_token, r->refresh, &r->refresh_len);
	copy_sealed(x->previous_refresh_token, r->previous, &r->previous_len);
}

static void write_state(const struct store_result *x, struct fake_row *r)
{
	r->state = x->state;
	r->health = x->health;
	r->reason = x->reason;
	r->failures = x->failures;
	r->first_failed_at = x->first_failed_at;
	r->last_failed_at = x->last_failed_at;
	r->updated_at = x->updated_at;
	if (x->event != EVENT_NONE && r->n_events < sizeof r->events / sizeof *r->events)
		r->events[r->n_events++] = x->event;
}

static enum store_verdict persist_one(const struct store *s, const struct store_result *x, struct fake_row *r)
{
	/* One orphan for an attempt and kind: what is sent again changes nothing. */
	if (x->raw_reply != NULL && r->raw_attempt != x->attempt_id) {
		r->raws++;
		r->raw_attempt = x->attempt_id;
	}
	if (r->attempt != x->attempt_id || r->version != x->token_version || r->owner == 0) {
		if (r->attempt == x->attempt_id && r->version == x->token_version + x->has_token && r->owner == 0)
			return STORE_ALREADY;
		if (x->has_token && r->orphan_attempt != x->attempt_id) {
			r->orphans++;
			r->orphan_attempt = x->attempt_id;
		}
		if (r->attempt == 0 && r->owner == s->epoch) { /* an import or a merge came in between: its lease was ours */
			r->owner = r->lease_until = 0;
			if (x->touch && x->health == HEALTH_NEEDS_AUTH && r->version == x->token_version + 1)
				r->due_at = sys_wall_us();
		}
		return STORE_LOST;
	}
	bool stale = (x->touch || x->due_at == TIME_NEVER) && r->updated_at != x->seen_at;
	r->due_at = stale ? sys_wall_us() : x->due_at;
	if (!stale || x->has_token || x->doubts > r->doubts)
		r->doubts = x->doubts;
	r->owner = r->lease_until = 0;
	if (x->has_token)
		write_tokens(x, r);
	if (x->touch && !stale)
		write_state(x, r);
	return stale ? STORE_STALE : STORE_APPLIED;
}

static enum store_verdict merge_one(const struct store_result *x, int64_t orphan, struct fake_row *r)
{
	if (r->attempt != x->attempt_id || r->version != x->token_version)
		return r->merged_attempt == orphan ? STORE_ALREADY : STORE_LOST;
	bool stale = x->touch && r->updated_at != x->seen_at;
	r->due_at = stale ? sys_wall_us() : x->due_at;
	r->doubts = 0;
	r->attempt = 0;
	if (r->lease_until <= sys_wall_us())
		r->owner = r->lease_until = 0;
	write_tokens(x, r);
	if (x->touch && !stale)
		write_state(x, r);
	r->merges++;
	r->merged_attempt = orphan;
	return stale ? STORE_STALE : STORE_APPLIED;
}

/* One row, with the troubles of store_persist. */
static struct answer *one_answer(struct store *s, store_persist_fn *fn, void *arg, bool *execute)
{
	struct answer *a = answer_new(s, run_persist, arg);
	SET_FN(a, fn);
	a->verdicts = mem_calloc(1, sizeof *a->verdicts);
	a->n = 1;
	*execute = s->writable;
	if (!s->writable) {
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_CONNECTION;
	} else if (s->fail_persist > 0) {
		s->fail_persist--;
		*execute = s->persist_executed;
		a->code = ST_UNAVAILABLE;
		a->class = s->persist_class;
	} else if (s->disturbed > 0) {
		s->disturbed--;
		*execute = false;
		a->verdicts[0] = STORE_AGAIN;
	}
	return a;
}

int store_merge(struct store *s, const struct store_result *x, int64_t orphan, store_persist_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	s->counts.merges++;
	bool execute;
	struct answer *a = one_answer(s, fn, arg, &execute);
	if (s->merges_blamed) {
		execute = false;
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_BUG;
	}
	struct fake_row *r = find(s, x->id);
	if (execute)
		a->verdicts[0] = r != NULL ? merge_one(x, orphan, r) : STORE_LOST;
	return 0;
}

int store_close_orphan(struct store *s, const uint8_t id[16], int64_t orphan, const char *resolution, store_persist_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	(void)orphan, (void)resolution;
	bool execute;
	(void)one_answer(s, fn, arg, &execute);
	struct fake_row *r = find(s, id);
	if (execute && r != NULL)
		r->closed++;
	return 0;
}

int store_persist(struct store *s, const struct store_result *v, size_t n, store_persist_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	s->counts.persists++;
	if (n > s->counts.biggest_batch)
		s->counts.biggest_batch = (unsigned)n;
	struct answer *a = answer_new(s, run_persist, arg);
	SET_FN(a, fn);
	a->verdicts = mem_calloc(n, sizeof *a->verdicts);
	a->n = n;
	bool execute = s->writable;
	if (!s->writable) {
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_CONNECTION;
	} else if (s->fail_persist > 0) {
		s->fail_persist--;
		execute = s->persist_executed;
		a->code = ST_UNAVAILABLE;
		a->class = s->persist_class;
	}
	for (size_t i = 0; i < n && s->poisoned; i++) {
		if (memcmp(v[i].id, s->poison, 16) == 0) {
			execute = false;
			a->code = ST_UNAVAILABLE;
			a->class = PG_CLASS_BUG;
		}
	}
	for (size_t i = 0; i < n && execute; i++) {
		struct fake_row *r = find(s, v[i].id);
		if (s->disturbed > 0) {
			s->disturbed--;
			a->verdicts[i] = STORE_AGAIN;
			continue;
		}
		a->verdicts[i] = r != NULL ? persist_one(s, &v[i], r) : STORE_LOST;
		s->counts.persisted_rows++;
	}
	return 0;
}

int store_release(struct store *s, const struct store_release *v, size_t n, store_persist_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	s->counts.releases++;
	struct answer *a = answer_new(s, run_persist, arg);
	SET_FN(a, fn);
	if (!s->writable) {
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_CONNECTION;
		return 0;
	}
	if (s->releases_blamed) {
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_BUG;
		return 0;
	}
	for (size_t i = 0; i < n; i++) {
		struct fake_row *r = find(s, v[i].id);
		bool ours = r != NULL && r->attempt == v[i].attempt_id;
		bool voided = r != NULL && r->attempt == 0 && r->owner == s->epoch;
		if (r == NULL || r->owner == 0 || (!ours && !voided))
			continue;
		r->owner = r->lease_until = 0;
		if (ours && v[i].due_at != 0)
			r->due_at = v[i].due_at;
	}
	return 0;
}

/* A row under the fence of `attempt_id`; NULL: there is none, or the statement fails. */
static struct fake_row *fenced_row(struct store *s, const uint8_t id[16], int64_t attempt_id, bool refused, struct answer *a)
{
	struct fake_row *r = find(s, id);
	if (r == NULL || r->attempt != attempt_id || r->owner == 0)
		r = NULL;
	refused = refused && r != NULL && s->poisoned && memcmp(id, s->poison, 16) == 0;
	if (s->writable && !refused)
		return r;
	a->code = ST_UNAVAILABLE;
	a->class = s->writable ? PG_CLASS_BUG : PG_CLASS_CONNECTION;
	return NULL;
}

int store_quarantine(struct store *s, const uint8_t id[16], int64_t attempt_id, store_persist_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	s->counts.quarantines++;
	struct answer *a = answer_new(s, run_persist, arg);
	SET_FN(a, fn);
	struct fake_row *r = fenced_row(s, id, attempt_id, s->quarantine_poisoned, a);
	if (r != NULL)
		r->due_at = TIME_NEVER;
	return 0;
}

int store_hold(struct store *s, const uint8_t id[16], int64_t attempt_id, int64_t lease_us, store_persist_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	s->counts.holds++;
	struct answer *a = answer_new(s, run_persist, arg);
	SET_FN(a, fn);
	struct fake_row *r = fenced_row(s, id, attempt_id, s->hold_poisoned, a);
	if (r != NULL) {
		r->owner = s->epoch;
		r->lease_until = sys_wall_us() + lease_us;
	}
	return 0;
}

static void run_recover(struct answer *a)
{
	void (*fn)(void *arg, int code, int64_t rows);
	memcpy(&fn, &a->fn, sizeof fn);
	fn(a->arg, a->code, (int64_t)a->n);
}

int store_recover(struct store *s, void (*fn)(void *arg, int code, int64_t rows), void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	struct answer *a = answer_new(s, run_recover, arg);
	SET_FN(a, fn);
	a->code = s->writable ? 0 : ST_UNAVAILABLE;
	int64_t now = sys_wall_us();
	for (size_t i = 0; s->writable && i < s->n_rows; i++) {
		struct fake_row *r = &s->rows[i];
		if (r->used && r->due_at <= now + 3600 * US_PER_S && r->owner == s->previous_epoch && r->owner != 0) {
			r->owner = s->epoch;
			r->lease_until = r->lease_until < now ? r->lease_until : now;
			a->n++;
		}
	}
	return 0;
}

int store_event(struct store *s, enum event_type type, const uint8_t event_id[16], const char *application_id, const char *entity_id,
	const char *entity_type, const char *entity, const char *reason, store_persist_fn *fn, void *arg)
{
	if (s->closed)
		return ST_CLOSED;
	(void)event_id, (void)application_id, (void)entity_id, (void)entity_type, (void)entity;
	struct answer *a = answer_new(s, run_persist, arg);
	SET_FN(a, fn);
	if (!s->writable) {
		a->code = ST_UNAVAILABLE;
		a->class = PG_CLASS_CONNECTION;
		return 0;
	}
	s->counts.provider_events++;
	s->counts.last_provider_event = type;
	(void)snprintf(s->counts.last_provider_reason, sizeof s->counts.last_provider_reason, "%s", reason != NULL ? reason : "");
	return 0;
}

/* ---------------------------------------------------------------- configuration */

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");
	ALWAYS(f != NULL && fputs(text, f) >= 0 && fclose(f) == 0);
	ALWAYS(chmod(path, 0600) == 0);
}

struct conf *fake_conf(const char *provider_extra, const char *refresh_extra)
{
	return fake_conf_with(provider_extra, refresh_extra, true);
}

struct conf *fake_conf_with(const char *provider_extra, const char *refresh_extra, bool other_client)
{
	char dir[] = "/tmp/refreshd-sim-XXXXXX";
	ALWAYS(mkdtemp(dir) != NULL);
	char *yaml = mem_printf("%s/c.yaml", dir), *ring = mem_printf("%s/keyring", dir), *secret = mem_printf("%s/secret", dir);
	char *text = mem_printf("instance: sim\nstate_dir: %s\ndatabase: {url: \"postgresql:///x\"}\nkeyring_file: %s\n"
				"refresh: {poll_interval: 5s, %s}\n"
				"providers:\n"
				"  sim: {name: Sim, unified_apis: [accounting], auth_type: oauth2, token_url: \"https://sim.test/token\","
				" client_auth: client_secret_basic, %s}\n"
				"  other: {name: Other, unified_apis: [accounting], auth_type: oauth2, token_url: \"https://other.test/token\","
				" client_auth: client_secret_basic}\n"
				"clients:\n"
				"  - {application: \"*\", provider: sim, client_id: me, client_secret_file: %s}\n"
				"  - {application: \"%s\", provider: other, client_id: me, client_secret_file: %s}\n",
		dir, ring, refresh_extra, provider_extra, secret, other_client ? "*" : "nobody", secret);
	write_file(ring, "k1 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
	write_file(secret, "hush\n");
	write_file(yaml, text);
	struct conf *c = NULL;
	struct conf_errors errors = { 0 };
	if (conf_load(yaml, &c, &errors) != 0)
		conf_errors_print(&errors, stderr);
	ALWAYS(c != NULL);
	conf_errors_fini(&errors);
	ALWAYS(unlink(yaml) == 0 && unlink(ring) == 0 && unlink(secret) == 0 && rmdir(dir) == 0);
	mem_free(yaml);
	mem_free(ring);
	mem_free(secret);
	mem_free(text);
	return c;
}
