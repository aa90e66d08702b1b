/*
 * pgpool - the queue in front of a few pipeline connections, and keeping those connected.
 *
 * Everything that runs code of the owner (outcomes, changes of state) happens in deferred calls of this file
 * with no other frame of ours on the stack, so the owner may send, or free the pool, from any callback.
 * Connections are made one at a time: a database that comes back is not met by a stampede. Must never retry
 * what may have been executed.
 */
#include "io/pgpool.h"

#include <string.h>

#include "base/mem.h"
#include "base/minheap.h"
#include "base/sys.h"
#include "io/pgbackoff.h"
#include "io/pgconn.h"
#include "io/pgdial.h"
#include "io/pglisten.h"
#include "io/pgtarget.h"

#define POOL_MAGIC 0x5047504fu
#define QUEUE_DEFAULT 10000u
#define GRACE_US US_PER_S /* the server's own timeout comes first */
#define ROTATE_PAUSE_US (10 * US_PER_S)

struct txlist {
	struct pgtx *first, *last;
};

enum reported { REPORTED_NOTHING, REPORTED_DOWN, REPORTED_UP };

struct pgpool {
	unsigned magic;
	struct loop *loop;
	struct resolver *resolver;
	struct pgtarget *target;
	struct pgconn_params conn_params;

	struct pgconn **conns;
	unsigned n_conns, size;
	struct pgdial *dial;
	struct loop_timer *retry;
	int64_t backoff_us;
	unsigned rotate;           /* addresses that swallowed an attempt, or went silent */
	int64_t rotated_us;        /* mono, for the latter */
	unsigned read_only_streak; /* connections lost in a row because they could not write */
	struct pglisten *listen;

	struct txlist queue;
	unsigned n_queued, max_queued;
	struct minheap waits;
	struct loop_timer *wait_timer;
	struct txlist done;
	struct loop_task dispatch, deliver, tell;

	enum reported reported;
	bool failed_once;
	struct fault why;
	void (*on_state)(void *arg, bool up, const struct fault *why);
	void *state_arg;

	bool closing; /* being freed: nothing new */
	bool in_callback;
	bool freed;
};

/* ---- lists of transactions */

static void push_back(struct txlist *l, struct pgtx *t)
{
	t->next = NULL;
	if (l->last != NULL)
		l->last->next = t;
	else
		l->first = t;
	l->last = t;
}

static struct pgtx *pop_front(struct txlist *l)
{
	struct pgtx *t = l->first;
	if (t == NULL)
		return NULL;
	l->first = t->next;
	if (l->first == NULL)
		l->last = NULL;
	t->next = NULL;
	return t;
}

static void take_out(struct txlist *l, struct pgtx *t)
{
	struct pgtx *before = NULL, *at = l->first;
	while (at != t) {
		before = at;
		at = at->next;
	}
	if (before != NULL)
		before->next = t->next;
	else
		l->first = t->next;
	if (l->last == t)
		l->last = before;
	t->next = NULL;
}

/* ---- outcomes */

static void finish(struct pgpool *p, struct pgtx *t)
{
	push_back(&p->done, t);
	loop_defer(p->loop, &p->deliver);
}

static void release(struct pgpool *p)
{
	mem_free(p->conns);
	p->magic = 0;
	mem_free(p);
}

/* True when the owner freed the pool in its callback: nothing of it may be touched any more. */
static bool leave_callback(struct pgpool *p)
{
	p->in_callback = false;
	if (!p->freed)
		return false;
	release(p);
	return true;
}

static void on_deliver(void *arg)
{
	struct pgpool *p = arg;
	struct pgtx *t;
	MAGIC_CHECK(p, POOL_MAGIC);
	while ((t = pop_front(&p->done)) != NULL) {
		p->in_callback = true;
		t->fn(t->arg, &t->out);
		pgtx_release(t);
		if (leave_callback(p))
			return;
	}
}

static void arm_wait_timer(struct pgpool *p)
{
	const struct minheap_node *first = minheap_first(&p->waits);
	if (first != NULL)
		loop_timer_at(p->wait_timer, first->due_us);
	else
		loop_timer_stop(p->wait_timer);
}

static void give_up_waiting(struct pgpool *p, struct pgtx *t)
{
	t->out = (struct pgtx_result){.class = PG_CLASS_CONNECTION, .wait_us = sys_mono_us() - t->queued_us};
	finish(p, t);
}

static void on_wait_timer(void *arg)
{
	struct pgpool *p = arg;
	MAGIC_CHECK(p, POOL_MAGIC);
	int64_t now = sys_mono_us();
	struct minheap_node *first;
	while ((first = minheap_first(&p->waits)) != NULL && first->due_us <= now) {
		minheap_remove(&p->waits, first);
		struct pgtx *t = (struct pgtx *)(void *)((char *)first - offsetof(struct pgtx, wait));
		take_out(&p->queue, t);
		p->n_queued--;
		give_up_waiting(p, t);
	}
	arm_wait_timer(p);
}

/* ---- from the queue to a connection */

static void on_plans_forgotten(void *arg, const struct pgtx_result *r)
{
	(void)arg;
	(void)r; /* without it the old plans go on */
}

static void forget_plans(struct pgconn *c)
{
	static const struct pgstmt forget = {"forget_plans", "DISCARD PLANS"};
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &forget, NULL);
	t->fn = on_plans_forgotten;
	if (pgconn_submit(c, t) != 0)
		pgtx_release(t);
}

/* Looked at while it is looked for, not by a timer: a connection that has nothing to do needs no plans. */
static struct pgconn *least_busy(const struct pgpool *p)
{
	struct pgconn *best = NULL;
	int64_t now_us = sys_mono_us();
	for (unsigned i = 0; i < p->n_conns; i++) {
		if (pgconn_has_room(p->conns[i]) && pgconn_wants_plans(p->conns[i], now_us))
			forget_plans(p->conns[i]);
		if (!pgconn_has_room(p->conns[i]))
			continue;
		if (best == NULL || pgconn_in_flight(p->conns[i]) < pgconn_in_flight(best))
			best = p->conns[i];
	}
	return best;
}

/* Back to the head of the queue; its own deadline goes on. */
static void requeue(struct pgpool *p, struct pgtx *t, int64_t due_us)
{
	t->next = p->queue.first;
	p->queue.first = t;
	if (p->queue.last == NULL)
		p->queue.last = t;
	p->n_queued++;
	if (due_us != 0)
		minheap_add(&p->waits, &t->wait, due_us);
	arm_wait_timer(p);
}

static void on_dispatch(void *arg)
{
	struct pgpool *p = arg;
	struct pgconn *c;
	struct pgtx *t;
	MAGIC_CHECK(p, POOL_MAGIC);
	while ((c = least_busy(p)) != NULL && (t = pop_front(&p->queue)) != NULL) {
		p->n_queued--;
		minheap_remove(&p->waits, &t->wait);
		t->out.wait_us = sys_mono_us() - t->queued_us;
		if (pgconn_submit(c, t) == 0)
			continue;
		if (t->retried) { /* it is the transaction that libpq will not take */
			give_up_waiting(p, t);
			continue;
		}
		t->retried = true;
		requeue(p, t, t->wait.due_us);
	}
	arm_wait_timer(p);
}

int pgpool_send(struct pgpool *p, struct pgtx *t, int64_t wait_us, pgtx_fn *fn, void *arg)
{
	MAGIC_CHECK(p, POOL_MAGIC);
	ALWAYS(fn != NULL && t->fn == NULL && t->n > 0);
	if (p->closing)
		return ST_UNAVAILABLE;
	if (p->n_queued >= p->max_queued)
		return ST_FULL;
	t->fn = fn;
	t->arg = arg;
	t->queued_us = sys_mono_us();
	push_back(&p->queue, t);
	p->n_queued++;
	if (wait_us > 0) {
		minheap_add(&p->waits, &t->wait, t->queued_us + wait_us);
		arm_wait_timer(p);
	}
	on_dispatch(p); /* at once: the server can work while the caller goes on */
	return 0;
}

/* ---- connections */

static void connect_more(struct pgpool *p);

static void note_state(struct pgpool *p)
{
	loop_defer(p->loop, &p->tell);
	if (p->listen != NULL)
		pglisten_may_connect(p->listen, p->n_conns > 0);
}

static void on_tell(void *arg)
{
	struct pgpool *p = arg;
	MAGIC_CHECK(p, POOL_MAGIC);
	enum reported now = p->n_conns > 0 ? REPORTED_UP : REPORTED_DOWN;
	if (p->on_state == NULL || now == p->reported || (now == REPORTED_DOWN && !p->failed_once))
		return;
	p->reported = now;
	struct fault why = {.code = 0};
	if (now == REPORTED_DOWN)
		why = p->why;
	p->in_callback = true;
	p->on_state(p->state_arg, now == REPORTED_UP, &why);
	(void)leave_callback(p);
}

static void on_tx_done(void *owner, struct pgconn *c, struct pgtx *t)
{
	struct pgpool *p = owner;
	if (t->out.class == PG_CLASS_OK)
		p->backoff_us = 0;
	if (pgconn_is_read_only(c) && strcmp(t->out.sqlstate, "25006") == 0 &&
		p->read_only_streak + 1 >= pgtarget_hosts(p->target))
		t->out.class = PG_CLASS_READ_ONLY;
	finish(p, t);
	if (p->queue.first != NULL)
		loop_defer(p->loop, &p->dispatch);
}

static void on_tx_again(void *owner, struct pgconn *c, struct pgtx *t)
{
	struct pgpool *p = owner;
	(void)c;
	pgtx_reset(t);
	requeue(p, t, t->wait.due_us);
	loop_defer(p->loop, &p->dispatch);
}

/* The host that went silent is asked last by the next attempt. Its connections go one after the other and count once. */
static void ask_another_first(struct pgpool *p)
{
	int64_t now = sys_mono_us();
	if (p->rotated_us != 0 && now - p->rotated_us < ROTATE_PAUSE_US)
		return;
	p->rotated_us = now;
	p->rotate++;
}

static void on_lost(void *owner, struct pgconn *c, const struct fault *why)
{
	struct pgpool *p = owner;
	unsigned i = 0;
	while (p->conns[i] != c)
		i++;
	p->conns[i] = p->conns[--p->n_conns];
	bool flapping = pgconn_is_read_only(c) || !pgconn_is_proven(c);
	p->read_only_streak = pgconn_is_read_only(c) ? p->read_only_streak + 1 : 0;
	if (pgconn_is_silent(c))
		ask_another_first(p);
	pgconn_free(c);
	p->why = *why;
	p->failed_once = true;
	if (flapping && !loop_timer_is_set(p->retry))
		loop_timer_after(p->retry, pgbackoff_next(&p->backoff_us));
	connect_more(p);
	note_state(p);
}

static void on_room(void *owner)
{
	struct pgpool *p = owner;
	if (p->queue.first != NULL)
		loop_defer(p->loop, &p->dispatch);
}

static const struct pgconn_events conn_events = {
	.done = on_tx_done,
	.again = on_tx_again,
	.room = on_room,
	.lost = on_lost,
};

static void try_later(struct pgpool *p, const struct fault *why)
{
	p->why = *why;
	p->failed_once = true;
	loop_timer_after(p->retry, pgbackoff_next(&p->backoff_us));
	note_state(p);
}

static void on_dial(void *arg, int code, struct pg_conn *conn, const struct fault *why)
{
	struct pgpool *p = arg;
	struct fault f = {.code = 0};
	MAGIC_CHECK(p, POOL_MAGIC);
	p->dial = NULL;
	if (code != 0) {
		p->rotate += code == ST_TIMEOUT;
		try_later(p, why);
		return;
	}
	struct pgconn *c;
	if (pgconn_new(p->loop, conn, &p->conn_params, &conn_events, p, &c, &f) != 0) {
		try_later(p, &f);
		return;
	}
	p->conns[p->n_conns++] = c;
	connect_more(p);
	note_state(p);
	loop_defer(p->loop, &p->dispatch);
}

static void connect_more(struct pgpool *p)
{
	if (p->n_conns < p->size && p->dial == NULL && !loop_timer_is_set(p->retry))
		p->dial = pgdial_start(p->target, p->loop, p->resolver, p->rotate, on_dial, p);
}

static void on_retry(void *arg)
{
	struct pgpool *p = arg;
	MAGIC_CHECK(p, POOL_MAGIC);
	connect_more(p);
}

/* ---- the pool */

int pgpool_new(struct loop *l, struct resolver *r, const struct pgpool_params *params, struct pgpool **out,
	struct fault *f)
{
	const struct pgtarget_params tp = {
		.url = params->url,
		.application_name = params->application_name,
		.pooler_transaction = params->pooler_transaction,
		.statement_timeout_us = params->statement_timeout_us,
	};
	struct pgtarget *target;
	if (params->size == 0)
		return fault_set(f, ST_INVALID, "a database pool needs at least one connection");
	int rc = pgtarget_new(&tp, &target, f);
	if (rc != 0)
		return rc;
	struct pgpool *p = mem_alloc(sizeof(*p));
	p->magic = POOL_MAGIC;
	p->loop = l;
	p->resolver = r;
	p->target = target;
	p->size = params->size;
	p->conns = mem_calloc(p->size, sizeof(struct pgconn *));
	p->max_queued = params->max_queued ? params->max_queued : QUEUE_DEFAULT;
	p->conn_params.prepare = !params->pooler_transaction;
	if (params->statement_timeout_us > 0)
		p->conn_params.stall_us = params->statement_timeout_us + GRACE_US;
	minheap_init(&p->waits);
	p->retry = loop_timer_new(l, on_retry, p);
	p->wait_timer = loop_timer_new(l, on_wait_timer, p);
	loop_task_init(&p->dispatch, on_dispatch, p);
	loop_task_init(&p->deliver, on_deliver, p);
	loop_task_init(&p->tell, on_tell, p);
	if (!params->pooler_transaction)
		p->listen = pglisten_new(l, r, target);
	connect_more(p);
	*out = p;
	return 0;
}

/* The last word to whoever still waits; there is no later turn. */
static void abandon(struct pgtx *t, enum pg_class class)
{
	t->out = (struct pgtx_result){.class = class};
	t->fn(t->arg, &t->out);
	pgtx_release(t);
}

static void abandon_all(struct pgpool *p)
{
	struct pgtx *t;
	p->closing = true;
	while ((t = pop_front(&p->done)) != NULL) {
		t->fn(t->arg, &t->out);
		pgtx_release(t);
	}
	for (unsigned i = 0; i < p->n_conns; i++) {
		while ((t = pgconn_take_unfinished(p->conns[i])) != NULL)
			abandon(t, PG_CLASS_UNKNOWN);
	}
	while ((t = pop_front(&p->queue)) != NULL) {
		minheap_remove(&p->waits, &t->wait);
		abandon(t, PG_CLASS_CONNECTION);
	}
}

void pgpool_free(struct pgpool *p)
{
	if (p == NULL)
		return;
	MAGIC_CHECK(p, POOL_MAGIC);
	ALWAYS(!p->freed);
	abandon_all(p);
	pglisten_free(p->listen);
	pgdial_cancel(p->dial);
	loop_undefer(p->loop, &p->dispatch);
	loop_undefer(p->loop, &p->deliver);
	loop_undefer(p->loop, &p->tell);
	loop_timer_free(p->retry);
	loop_timer_free(p->wait_timer);
	for (unsigned i = 0; i < p->n_conns; i++)
		pgconn_free(p->conns[i]);
	minheap_fini(&p->waits);
	pgtarget_free(p->target);
	if (p->in_callback)
		p->freed = true;
	else
		release(p);
}

bool pgpool_is_up(const struct pgpool *p)
{
	MAGIC_CHECK(p, POOL_MAGIC);
	return p->n_conns > 0;
}

unsigned pgpool_connected(const struct pgpool *p)
{
	MAGIC_CHECK(p, POOL_MAGIC);
	return p->n_conns;
}

void pgpool_on_state(struct pgpool *p, void (*fn)(void *arg, bool up, const struct fault *why), void *arg)
{
	MAGIC_CHECK(p, POOL_MAGIC);
	p->on_state = fn;
	p->state_arg = arg;
	loop_defer(p->loop, &p->tell);
}

const struct fault *pgpool_last_fault(const struct pgpool *p)
{
	MAGIC_CHECK(p, POOL_MAGIC);
	return &p->why;
}

void pgpool_listen(
	struct pgpool *p, const char *channel, void (*fn)(void *arg, const char *payload), void *arg)
{
	MAGIC_CHECK(p, POOL_MAGIC);
	if (p->listen == NULL)
		return;
	pglisten_add(p->listen, channel, fn, arg);
	pglisten_may_connect(p->listen, p->n_conns > 0);
}
