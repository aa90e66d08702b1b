/*
 * journal_writer - the journal's one writer thread, and the jobs it takes.
 *
 * It takes everything that waits, writes and syncs it as one group and hands the jobs back through an eventfd. It alone changes
 * the store, and it publishes what the loop may know (room, bytes, the fault) with each group. Must not call back into the loop's
 * side, and must not hold the loop's lock while the disk works.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "io/journal_priv.h"

void journal_jobs_init(struct journal_jobs *l)
{
	l->first = NULL;
	l->tail = &l->first;
}

void journal_jobs_add(struct journal_jobs *l, struct journal_job *j)
{
	j->next = NULL;
	*l->tail = j;
	l->tail = &j->next;
}

void journal_jobs_join(struct journal_jobs *to, struct journal_jobs *from)
{
	if (from->first == NULL)
		return;
	*to->tail = from->first;
	to->tail = from->tail;
	journal_jobs_init(from);
}

void journal_jobs_free(struct journal_jobs *l)
{
	while (l->first) {
		struct journal_job *j = l->first;
		l->first = j->next;
		mem_free(j);
	}
	journal_jobs_init(l);
}

struct journal_job *journal_job_new(enum journal_job_kind kind, uint64_t seq, const void *p, size_t n)
{
	struct journal_job *b = mem_alloc(sizeof(*b) + n);
	b->kind = kind;
	b->seq = seq;
	b->n = n;
	b->size = journal_record_size(n);
	if (n > 0)
		memcpy(b->p, p, n);
	return b;
}

static int stage(struct journal *j, const struct journal_job *b)
{
	if (b->kind == JOB_DATA)
		return journal_store_stage(&j->store, b->seq, b->p, b->n);
	return journal_store_done(&j->store, b->seq);
}

void journal_take_notes(struct journal *j, struct journal_jobs *reports)
{
	for (const struct fault *f = journal_store_note(&j->store); f != NULL; f = journal_store_note(&j->store))
		journal_jobs_add(reports, journal_job_new(JOB_NOTE, 0, f, sizeof(*f)));
}

/* The file that failed is not touched again, and what it was to take goes into the next one, once. */
static int flush_elsewhere(struct journal *j, const struct journal_job *from, const struct journal_job *to, int code)
{
	struct journal_store *s = &j->store;
	for (const struct journal_job *b = from; b != to; b = b->next)
		if (b->kind == JOB_DATA && !b->settled)
			journal_store_forget(s, b->seq);
	if (journal_store_rotate(s) != 0)
		return code;
	for (const struct journal_job *b = from; b != to; b = b->next)
		if (!b->settled && stage(j, b) != 0)
			return code;
	return journal_store_flush(s);
}

/* Flushes the stage and settles the jobs from `from` up to, not including, `to`, which it held. */
static void settle(struct journal *j, struct journal_job *from, const struct journal_job *to, struct journal_jobs *reports)
{
	struct journal_store *s = &j->store;
	int code = journal_store_flush(s);
	if (code != 0)
		code = flush_elsewhere(j, from, to, code);
	journal_take_notes(j, reports);
	for (struct journal_job *b = from; b != to; b = b->next) {
		if (b->kind != JOB_DATA || b->settled)
			continue;
		b->settled = true;
		b->code = code;
		if (code != 0)
			journal_store_forget(s, b->seq);
	}
	if (s->last_sync_us >= 0) {
		struct journal_job *r = journal_job_new(JOB_SYNCED, 0, NULL, 0);
		r->sync_us = s->last_sync_us;
		journal_jobs_add(reports, r);
	}
}

static void write_group(struct journal *j, struct journal_jobs *group, struct journal_jobs *reports)
{
	struct journal_job *from = group->first;
	for (struct journal_job *b = group->first; b; b = b->next) {
		int code = stage(j, b);
		if (code == ST_AGAIN || code == ST_UNAVAILABLE) {
			settle(j, from, b, reports);
			from = b;
			code = journal_store_rotate(&j->store);
			if (code == 0)
				code = stage(j, b);
		}
		if (code == 0)
			continue;
		b->settled = true;
		b->code = code;
		journal_store_forget(&j->store, b->seq);
	}
	settle(j, from, NULL, reports);
}

void journal_publish(struct journal *j)
{
	const struct journal_store *s = &j->store;
	j->view.room = journal_store_room(s);
	j->view.bytes = journal_store_bytes(s);
	j->view.open = s->index.n;
	j->view.healthy = s->current != NULL;
	j->view.spare = s->spare_fd >= 0;
	j->view.waiting = s->waiting;
	j->view.fault = s->fault;
}

void journal_wake_loop(struct journal *j)
{
	uint64_t one = 1;
	ssize_t k = write(j->wake_fd, &one, sizeof(one));
	ALWAYS(k == sizeof(one) || errno == EAGAIN);
}

/* Hands a group back. Called with the lock held. */
static void give_back(struct journal *j, struct journal_jobs *group, struct journal_jobs *reports)
{
	for (const struct journal_job *b = group->first; b; b = b->next)
		j->view.queued -= b->size;
	journal_publish(j);
	if (group->first == NULL && reports->first == NULL)
		return;
	journal_jobs_join(&j->finished, group);
	journal_jobs_join(&j->finished, reports);
	journal_wake_loop(j);
}

/* What the tending changed, or that a retry is over (the loop plans the next). Called with the lock held. */
static void report_change(struct journal *j, bool retried)
{
	struct journal_view old = j->view;
	journal_publish(j);
	const struct journal_view *v = &j->view;
	if (retried || v->healthy != old.healthy || v->spare != old.spare || v->waiting != old.waiting || v->bytes != old.bytes)
		journal_wake_loop(j);
}

static void *writer(void *arg)
{
	struct journal *j = arg;
	struct journal_jobs group, reports;
	journal_jobs_init(&group);
	journal_jobs_init(&reports);
	pthread_mutex_lock(&j->mu);
	while (!j->stop || j->queue.first) {
		if (!j->queue.first && !j->retry) {
			pthread_cond_wait(&j->work, &j->mu);
			continue;
		}
		bool retry = j->retry;
		j->retry = false;
		journal_jobs_join(&group, &j->queue);
		pthread_mutex_unlock(&j->mu);

		pthread_mutex_lock(&j->store_mu);
		write_group(j, &group, &reports);
		pthread_mutex_lock(&j->mu);
		give_back(j, &group, &reports); /* before the tending, which may take as long as a sync */
		pthread_mutex_unlock(&j->mu);
		journal_store_tend(&j->store, retry);
		pthread_mutex_unlock(&j->store_mu);

		pthread_mutex_lock(&j->mu);
		report_change(j, retry);
	}
	pthread_mutex_unlock(&j->mu);
	return NULL;
}

int journal_writer_start(struct journal *j, struct fault *f)
{
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the loop's */
	int err = pthread_create(&j->thread, NULL, writer, j);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (err != 0)
		return fault_set(f, ST_UNAVAILABLE, "%s: thread: %s", j->store.dir.path, strerror(err));
	return 0;
}
