/*
 * vault_lanes - two importers side by side, each a thread with its own connection and its own copy of the keyring.
 *
 * A chunk begins to lock when the one before it has all its locks, and commits when that one is committed: so no chunk waits for a row
 * of a later one. Two things could still end in a circle that the database does not see, because one side of it waits here: a chunk that has to
 * begin anew, and a lock on a whole table for which others queue. Then the later chunk gives up what it holds and comes again when its turn has come.
 * What a lane works at is its own; all else here is guarded by the mutex.
 */
#include "service/vault_lanes.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "base/crypto.h"
#include "base/mem.h"
#include "base/sys.h"

#define LANES 2
#define PATIENCE_US (2 * US_PER_S)

enum stage { STAGE_LOCKING, STAGE_WRITING, STAGE_COMMITTING, STAGE_AGAIN /* begins anew */ };

struct lane {
	struct vault_lanes *all;
	pthread_t thread;
	bool started;
	struct pgsync *pg;
	struct vault_importer *importer;
	struct vault_import_turn turn;
	struct vault_lanes_chunk chunk; /* the thread's while seq is not 0 */
	uint64_t seq;			/* of the chunk, from 1; 0: idle */
	enum stage stage;
};

struct vault_lanes {
	pthread_mutex_t mu;
	pthread_cond_t changed; /* any of the rest, or a lane's seq or stage */
	struct lane v[LANES];
	uint64_t sent;
	bool closing;
	int rc; /* of the first chunk that failed; none after it is written */
	struct fault fault;
	struct vault_import_counts counts;
	uint64_t last_line;
};

/* ---------------------------------------------------------------- chunks */

void vault_lanes_chunk_init(struct vault_lanes_chunk *c)
{
	*c = (struct vault_lanes_chunk){ .imports = mem_calloc(VAULT_LANES_CHUNK, sizeof(*c->imports)),
		.items = mem_calloc(VAULT_LANES_CHUNK, sizeof(*c->items)) };
}

void vault_lanes_chunk_empty(struct vault_lanes_chunk *c)
{
	for (size_t i = 0; i < c->n; i++)
		import_fini(&c->imports[i]);
	c->n = 0;
	c->bytes = 0;
}

void vault_lanes_chunk_fini(struct vault_lanes_chunk *c)
{
	vault_lanes_chunk_empty(c);
	mem_free(c->imports);
	mem_free(c->items);
	c->imports = NULL;
	c->items = NULL;
}

/* ---------------------------------------------------------------- taking turns */

/* The lane with the chunk before; NULL: it is committed, or failed. */
static const struct lane *lane_before(const struct lane *w)
{
	for (size_t i = 0; i < LANES; i++) {
		const struct lane *x = &w->all->v[i];
		if (x->seq != 0 && x->seq + 1 == w->seq)
			return x;
	}
	return NULL;
}

static void wait_for_change(struct vault_lanes *l)
{
	pthread_cond_wait(&l->changed, &l->mu);
}

/* By the wall clock, which is what there is; set back meanwhile it waits longer, or until the next change. */
static void wait_until(struct vault_lanes *l, int64_t wall_us)
{
	const struct timespec t = { .tv_sec = (time_t)(wall_us / US_PER_S), .tv_nsec = (long)(wall_us % US_PER_S) * 1000 };
	(void)pthread_cond_timedwait(&l->changed, &l->mu, &t);
}

static void set_stage(struct lane *w, enum stage s)
{
	w->stage = s;
	pthread_cond_broadcast(&w->all->changed);
}

static int on_enter(void *arg, bool again)
{
	struct lane *w = arg;
	const struct lane *before;
	pthread_mutex_lock(&w->all->mu);
	if (again)
		set_stage(w, STAGE_AGAIN);
	while (w->all->rc == 0 && (before = lane_before(w)) != NULL &&
		(again || before->stage == STAGE_LOCKING || before->stage == STAGE_AGAIN))
		wait_for_change(w->all);
	int rc = w->all->rc != 0 ? ST_CANCELED : 0;
	pthread_mutex_unlock(&w->all->mu);
	return rc;
}

static void on_locked(void *arg)
{
	struct lane *w = arg;
	pthread_mutex_lock(&w->all->mu);
	set_stage(w, STAGE_WRITING);
	pthread_mutex_unlock(&w->all->mu);
}

static int on_leave(void *arg)
{
	struct lane *w = arg;
	const struct lane *before;
	int rc = 0;
	int64_t deadline = sys_wall_us() + PATIENCE_US;
	pthread_mutex_lock(&w->all->mu);
	while (rc == 0 && w->all->rc == 0 && (before = lane_before(w)) != NULL) {
		if (before->stage == STAGE_COMMITTING) /* which waits for no lock */
			wait_for_change(w->all);
		else if (before->stage == STAGE_AGAIN || sys_wall_us() >= deadline)
			rc = ST_AGAIN;
		else
			wait_until(w->all, deadline);
	}
	if (w->all->rc != 0)
		rc = ST_CANCELED;
	if (rc == 0)
		set_stage(w, STAGE_COMMITTING);
	pthread_mutex_unlock(&w->all->mu);
	return rc;
}

/* ---------------------------------------------------------------- a lane */

static void write_chunk(struct lane *w)
{
	struct vault_lanes *l = w->all;
	struct vault_import_counts n = { 0 };
	struct fault f = { 0 };
	int rc = vault_import_chunk(w->importer, w->chunk.items, w->chunk.n, &n, &f);
	pthread_mutex_lock(&l->mu);
	while (l->rc == 0 && lane_before(w) != NULL) /* only where this one failed: those before it may go on */
		wait_for_change(l);
	if (l->rc == 0) {
		l->rc = rc;
		l->fault = f;
		l->counts.created += n.created;
		l->counts.updated += n.updated;
		l->counts.duplicates += n.duplicates;
		l->counts.refused += n.refused;
		l->counts.due_now += n.due_now;
		if (rc == 0)
			l->last_line = w->chunk.last_line;
	}
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->mu);
}

static void *run_lane(void *arg)
{
	struct lane *w = arg;
	struct vault_lanes *l = w->all;
	pthread_mutex_lock(&l->mu);
	for (;;) {
		while (w->seq == 0 && !l->closing)
			wait_for_change(l);
		if (w->seq == 0)
			break;
		pthread_mutex_unlock(&l->mu);
		write_chunk(w);
		vault_lanes_chunk_empty(&w->chunk);
		pthread_mutex_lock(&l->mu);
		w->seq = 0;
		pthread_cond_broadcast(&l->changed);
	}
	pthread_mutex_unlock(&l->mu);
	crypto_thread_fini();
	return NULL;
}

static int start_lane(struct lane *w, struct vault_lanes *l, const struct conf *c, struct fault *f)
{
	struct keyring *keyring;
	sigset_t all, old;
	w->all = l;
	w->turn = (struct vault_import_turn){ .arg = w, .enter = on_enter, .locked = on_locked, .leave = on_leave };
	vault_lanes_chunk_init(&w->chunk);
	int rc = pgsync_connect(c->database.url, "refreshctl", &w->pg, f);
	if (rc != 0)
		return rc;
	rc = keyring_copy(c->keyring, &keyring);
	if (rc != 0)
		return fault_set(f, rc, "keyring: %s", status_text(rc));
	w->importer = vault_importer_new_beside(w->pg, c, keyring, &w->turn);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* an interrupt has to end the caller's read */
	int err = pthread_create(&w->thread, NULL, run_lane, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err != 0)
		return fault_set(f, ST_UNAVAILABLE, "thread: %s", strerror(err));
	w->started = true;
	return 0;
}

/* ---------------------------------------------------------------- all of them */

int vault_lanes_new(const struct conf *c, struct vault_lanes **out, struct fault *f)
{
	struct vault_lanes *l = mem_alloc(sizeof(*l));
	int rc = 0;
	ALWAYS(pthread_mutex_init(&l->mu, NULL) == 0 && pthread_cond_init(&l->changed, NULL) == 0);
	for (size_t i = 0; rc == 0 && i < LANES; i++)
		rc = start_lane(&l->v[i], l, c, f);
	if (rc == 0)
		*out = l;
	else
		vault_lanes_free(l);
	return rc;
}

void vault_lanes_free(struct vault_lanes *l)
{
	if (l == NULL)
		return;
	pthread_mutex_lock(&l->mu);
	l->closing = true;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->mu);
	for (size_t i = 0; i < LANES; i++) {
		struct lane *w = &l->v[i];
		if (w->started)
			ALWAYS(pthread_join(w->thread, NULL) == 0);
		vault_importer_free(w->importer);
		pgsync_free(w->pg);
		vault_lanes_chunk_fini(&w->chunk);
	}
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->mu);
	mem_free(l);
}

static struct lane *idle_lane(struct vault_lanes *l)
{
	for (size_t i = 0; i < LANES; i++)
		if (l->v[i].seq == 0)
			return &l->v[i];
	return NULL;
}

static bool all_idle(const struct vault_lanes *l)
{
	for (size_t i = 0; i < LANES; i++)
		if (l->v[i].seq != 0)
			return false;
	return true;
}

int vault_lanes_send(struct vault_lanes *l, struct vault_lanes_chunk *c, struct fault *f)
{
	struct lane *w = NULL;
	pthread_mutex_lock(&l->mu);
	while (l->rc == 0 && (w = idle_lane(l)) == NULL)
		wait_for_change(l);
	int rc = l->rc;
	if (rc == 0) {
		struct vault_lanes_chunk empty = w->chunk;
		w->chunk = *c;
		*c = empty;
		w->seq = ++l->sent;
		set_stage(w, STAGE_LOCKING);
	} else if (f != NULL) {
		*f = l->fault;
	}
	pthread_mutex_unlock(&l->mu);
	return rc;
}

int vault_lanes_finish(struct vault_lanes *l, struct fault *f)
{
	pthread_mutex_lock(&l->mu);
	while (!all_idle(l))
		wait_for_change(l);
	int rc = l->rc;
	if (rc != 0 && f != NULL)
		*f = l->fault;
	pthread_mutex_unlock(&l->mu);
	return rc;
}

uint64_t vault_lanes_done(const struct vault_lanes *l, struct vault_import_counts *counts)
{
	counts->created += l->counts.created;
	counts->updated += l->counts.updated;
	counts->duplicates += l->counts.duplicates;
	counts->refused += l->counts.refused;
	counts->due_now += l->counts.due_now;
	return l->last_line;
}
