/*
 * journal - the loop's side of the journal and its one writer thread.
 *
 * The loop copies a record into a job and hands it over under a lock; the writer takes everything that waits,
 * writes and syncs it as one group and hands the jobs back through an eventfd. The writer alone touches the
 * store; it publishes what the loop may know (room, bytes, the fault) with each group. A place where nothing
 * can be written is tried again by a loop timer with capped, jittered backoff. Must not do file I/O in the
 * loop, except for replay at the start.
 */
#include "io/journal.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "io/journal_store.h"

#define JOURNAL_MAGIC 0x6a6f7572u
#define SEGMENT_BYTES_DEFAULT (UINT64_C(4) << 20)
#define SEGMENT_BYTES_MIN 4096u
#define SEGMENT_BYTES_MAX (UINT64_C(1) << 30)
#define MAX_BYTES_DEFAULT (UINT64_C(256) << 20)
/* Handed over and not yet on disk: four segments, or the memory would grow with a disk that hangs. */
#define QUEUE_SEGMENTS 4
#define RETRY_FIRST_US (100 * US_PER_MS)
#define RETRY_MAX_US (10 * US_PER_S)

enum job_kind { JOB_DATA, JOB_DONE, JOB_SYNCED, JOB_NOTE };

struct job {
	struct job *next;
	enum job_kind kind;
	int code;
	bool settled;
	uint64_t seq;
	int64_t sync_us;
	journal_fn *fn;
	void *arg;
	size_t size; /* on disk */
	size_t n;
	uint8_t p[];
};

struct job_list {
	struct job *first, **tail;
};

/* What the loop may know of the store. */
struct view {
	uint64_t room, bytes, open;
	uint64_t queued; /* bytes handed over and not yet settled */
	bool healthy, spare;
	bool waiting; /* for a retry: something could not be made */
	struct fault fault;
};

struct journal {
	unsigned magic;
	struct loop *loop;
	struct event *wake;
	int wake_fd;
	pthread_t thread;
	pthread_mutex_t mu; /* guards queue, finished, view and the two flags */
	pthread_cond_t work;
	struct job_list queue, finished;
	struct view view;
	bool stop, retry;
	pthread_mutex_t store_mu; /* held by the writer during a group, by replay during a read */
	struct journal_store store;

	/* the loop's own */
	uint64_t next_seq;
	uint64_t segment_bytes;
	size_t max_payload;
	struct loop_task kick, state_task;
	struct loop_timer *retry_timer;
	int64_t backoff_us;
	bool announced; /* the state that was last told */
	bool in_wake, closed; /* closed in one of its own callbacks: freed when that returns */
	void (*on_state)(void *arg, bool writable, const struct fault *why);
	void *on_state_arg;
	void (*on_sync)(void *arg, int64_t us);
	void *on_sync_arg;
	void (*on_note)(void *arg, const struct fault *what);
	void *on_note_arg;
	uint64_t *replay; /* the numbers that were open when the replay began */
	size_t replay_n, replay_at;
	bool replaying;
};

static void list_init(struct job_list *l)
{
	l->first = NULL;
	l->tail = &l->first;
}

static void list_add(struct job_list *l, struct job *j)
{
	j->next = NULL;
	*l->tail = j;
	l->tail = &j->next;
}

static void list_join(struct job_list *to, struct job_list *from)
{
	if (from->first == NULL)
		return;
	*to->tail = from->first;
	to->tail = from->tail;
	list_init(from);
}

static void list_free(struct job_list *l)
{
	while (l->first) {
		struct job *j = l->first;
		l->first = j->next;
		mem_free(j);
	}
	list_init(l);
}

static struct job *job_new(enum job_kind kind, uint64_t seq, const void *p, size_t n)
{
	struct job *b = mem_alloc(sizeof(*b) + n);
	b->kind = kind;
	b->seq = seq;
	b->n = n;
	b->size = journal_record_size(n);
	if (n > 0)
		memcpy(b->p, p, n);
	return b;
}

/* --- the writer thread */

static int stage(struct journal *j, const struct job *b)
{
	if (b->kind == JOB_DATA)
		return journal_store_stage(&j->store, b->seq, b->p, b->n);
	return journal_store_done(&j->store, b->seq);
}

static void take_notes(struct journal *j, struct job_list *reports)
{
	for (const struct fault *f = journal_store_note(&j->store); f != NULL; f = journal_store_note(&j->store))
		list_add(reports, job_new(JOB_NOTE, 0, f, sizeof(*f)));
}

/* The file that failed is not touched again, and what it was to take goes into the next one, once. */
static int flush_elsewhere(struct journal *j, const struct job *from, const struct job *to, int code)
{
	struct journal_store *s = &j->store;
	for (const struct job *b = from; b != to; b = b->next)
		if (b->kind == JOB_DATA && !b->settled)
			journal_store_forget(s, b->seq);
	if (journal_store_rotate(s) != 0)
		return code;
	for (const struct job *b = from; b != to; b = b->next)
		if (!b->settled && stage(j, b) != 0)
			return code;
	return journal_store_flush(s);
}

/* Flushes the stage and settles the jobs from `from` up to, not including, `to`, which it held. */
static void settle(struct journal *j, struct job *from, const struct job *to, struct job_list *reports)
{
	struct journal_store *s = &j->store;
	int code = journal_store_flush(s);
	if (code != 0)
		code = flush_elsewhere(j, from, to, code);
	take_notes(j, reports);
	for (struct job *b = from; b != to; b = b->next) {
		if (b->kind != JOB_DATA || b->settled)
			continue;
		b->settled = true;
		b->code = code;
		if (code != 0)
			journal_store_forget(s, b->seq);
	}
	if (s->last_sync_us >= 0) {
		struct job *r = job_new(JOB_SYNCED, 0, NULL, 0);
		r->sync_us = s->last_sync_us;
		list_add(reports, r);
	}
}

static void write_group(struct journal *j, struct job_list *group, struct job_list *reports)
{
	struct job *from = group->first;
	for (struct job *b = group->first; b; b = b->next) {
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

static void publish(struct journal *j)
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

static void wake_loop(struct journal *j)
{
	uint64_t one = 1;
	ssize_t k = write(j->wake_fd, &one, sizeof(one));
	ALWAYS(k == sizeof(one) || errno == EAGAIN);
}

/* Hands a group back. Called with the lock held. */
static void give_back(struct journal *j, struct job_list *group, struct job_list *reports)
{
	for (const struct job *b = group->first; b; b = b->next)
		j->view.queued -= b->size;
	publish(j);
	if (group->first == NULL && reports->first == NULL)
		return;
	list_join(&j->finished, group);
	list_join(&j->finished, reports);
	wake_loop(j);
}

/* What the tending changed, or that a retry is over (the loop plans the next). Called with the lock held. */
static void report_change(struct journal *j, bool retried)
{
	struct view old = j->view;
	publish(j);
	const struct view *v = &j->view;
	if (retried || v->healthy != old.healthy || v->spare != old.spare || v->waiting != old.waiting || v->bytes != old.bytes)
		wake_loop(j);
}

static void *writer(void *arg)
{
	struct journal *j = arg;
	struct job_list group, reports;
	list_init(&group);
	list_init(&reports);
	pthread_mutex_lock(&j->mu);
	while (!j->stop || j->queue.first) {
		if (!j->queue.first && !j->retry) {
			pthread_cond_wait(&j->work, &j->mu);
			continue;
		}
		bool retry = j->retry;
		j->retry = false;
		list_join(&group, &j->queue);
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

/* --- the loop's side */

static bool view_writable(const struct journal *j)
{
	const struct view *v = &j->view;
	if (!v->healthy || v->queued > j->segment_bytes)
		return false;
	return v->spare || (v->room > v->queued && v->room - v->queued >= j->segment_bytes / 4);
}

/* The view belongs to the writer as well; a const journal is const to the caller only. */
static void lock(const struct journal *j)
{
	pthread_mutex_lock((pthread_mutex_t *)(uintptr_t)&j->mu);
}

static void unlock(const struct journal *j)
{
	pthread_mutex_unlock((pthread_mutex_t *)(uintptr_t)&j->mu);
}

uint64_t journal_room(const struct journal *j)
{
	lock(j);
	const struct view *v = &j->view;
	uint64_t room = v->healthy ? v->room + (v->spare ? j->segment_bytes - JOURNAL_FILE_HEADER : 0) : 0;
	room = room > v->queued ? room - v->queued : 0;
	unlock(j);
	return room;
}

bool journal_writable(const struct journal *j)
{
	lock(j);
	bool w = view_writable(j);
	unlock(j);
	return w;
}

uint64_t journal_open_records(const struct journal *j)
{
	lock(j);
	uint64_t n = j->view.open;
	unlock(j);
	return n;
}

uint64_t journal_bytes(const struct journal *j)
{
	lock(j);
	uint64_t n = j->view.bytes;
	unlock(j);
	return n;
}

/* Hands over at the end of the turn, so that all records of one turn share a sync. */
static void kick(void *arg)
{
	struct journal *j = arg;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	pthread_mutex_lock(&j->mu);
	pthread_cond_signal(&j->work);
	pthread_mutex_unlock(&j->mu);
}

static void plan_retry(struct journal *j, bool needed)
{
	if (!needed) {
		j->backoff_us = RETRY_FIRST_US;
		loop_timer_stop(j->retry_timer);
		return;
	}
	if (loop_timer_is_set(j->retry_timer))
		return;
	int64_t half = j->backoff_us / 2;
	loop_timer_after(j->retry_timer, half + (int64_t)sys_random_below((uint64_t)half + 1));
	j->backoff_us = j->backoff_us * 2 < RETRY_MAX_US ? j->backoff_us * 2 : RETRY_MAX_US;
}

static void on_retry(void *arg)
{
	struct journal *j = arg;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	pthread_mutex_lock(&j->mu);
	j->retry = true;
	pthread_cond_signal(&j->work);
	pthread_mutex_unlock(&j->mu);
}

static void explain(const struct journal *j, const struct view *v, struct fault *why)
{
	if (v->fault.code != 0)
		*why = v->fault;
	else
		fault_set(why, ST_UNAVAILABLE, "%s: %" PRIu64 " bytes wait for a slow disk", j->store.dir.path, v->queued);
}

static void tell_state(void *arg)
{
	struct journal *j = arg;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	pthread_mutex_lock(&j->mu);
	bool writable = view_writable(j);
	struct view v = j->view;
	pthread_mutex_unlock(&j->mu);
	if (writable == j->announced)
		return;
	j->announced = writable;
	struct fault why = { .code = 0 };
	if (!writable)
		explain(j, &v, &why);
	if (j->on_state)
		j->on_state(j->on_state_arg, writable, writable ? NULL : &why);
}

static void discard(struct journal *j)
{
	loop_undefer(j->loop, &j->kick);
	loop_undefer(j->loop, &j->state_task);
	loop_timer_free(j->retry_timer);
	if (j->wake)
		event_free(j->wake);
	if (j->wake_fd >= 0)
		close(j->wake_fd);
	journal_store_close(&j->store);
	list_free(&j->queue);
	list_free(&j->finished);
	mem_free(j->replay);
	pthread_cond_destroy(&j->work);
	pthread_mutex_destroy(&j->mu);
	pthread_mutex_destroy(&j->store_mu);
	j->magic = 0;
	mem_free(j);
}

static void run_job(struct journal *j, const struct job *b)
{
	if (b->kind == JOB_DATA)
		b->fn(b->arg, b->code);
	else if (b->kind == JOB_SYNCED && j->on_sync)
		j->on_sync(j->on_sync_arg, b->sync_us);
	else if (b->kind == JOB_NOTE && j->on_note) {
		struct fault f;
		memcpy(&f, b->p, sizeof(f));
		j->on_note(j->on_note_arg, &f);
	}
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
	struct journal *j = arg;
	(void)what;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	loop_enter(j->loop);
	uint64_t count;
	ssize_t k = read(fd, &count, sizeof(count));
	ALWAYS(k == sizeof(count) || errno == EAGAIN || errno == EINTR);

	struct job_list finished;
	list_init(&finished);
	pthread_mutex_lock(&j->mu);
	list_join(&finished, &j->finished);
	bool waiting = j->view.waiting;
	pthread_mutex_unlock(&j->mu);
	plan_retry(j, waiting);
	loop_defer(j->loop, &j->state_task);

	j->in_wake = true;
	while (finished.first && !j->closed) {
		struct job *b = finished.first;
		finished.first = b->next;
		run_job(j, b);
		mem_free(b);
	}
	j->in_wake = false;
	list_free(&finished);
	if (j->closed)
		discard(j);
}

int journal_append(struct journal *j, const void *p, size_t n, journal_fn *fn, void *arg, uint64_t *seq)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	if (n > j->max_payload)
		return ST_FULL;
	size_t size = journal_record_size(n);
	pthread_mutex_lock(&j->mu);
	const struct view *v = &j->view;
	bool fits = v->healthy && (v->queued + size <= v->room ||
					  (v->spare && v->queued + size <= QUEUE_SEGMENTS * j->segment_bytes));
	if (!fits) {
		pthread_mutex_unlock(&j->mu);
		return ST_UNAVAILABLE;
	}
	struct job *b = job_new(JOB_DATA, j->next_seq++, p, n);
	b->fn = fn;
	b->arg = arg;
	list_add(&j->queue, b);
	j->view.queued += size;
	if (view_writable(j) != j->announced)
		loop_defer(j->loop, &j->state_task);
	pthread_mutex_unlock(&j->mu);
	loop_defer(j->loop, &j->kick);
	*seq = b->seq;
	return 0;
}

void journal_done(struct journal *j, uint64_t seq)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	struct job *b = job_new(JOB_DONE, seq, NULL, 0);
	pthread_mutex_lock(&j->mu);
	list_add(&j->queue, b);
	j->view.queued += b->size;
	pthread_mutex_unlock(&j->mu);
	loop_defer(j->loop, &j->kick);
}

void journal_on_state(struct journal *j, void (*fn)(void *arg, bool writable, const struct fault *why), void *arg)
{
	j->on_state = fn;
	j->on_state_arg = arg;
}

void journal_on_sync(struct journal *j, void (*fn)(void *arg, int64_t us), void *arg)
{
	j->on_sync = fn;
	j->on_sync_arg = arg;
}

void journal_on_note(struct journal *j, void (*fn)(void *arg, const struct fault *what), void *arg)
{
	j->on_note = fn;
	j->on_note_arg = arg;
}

/* The record's bytes, 0 when it is not open any more, or ST_IO. */
static int replay_read(struct journal *j, uint64_t seq, struct buf *b, bool *open)
{
	pthread_mutex_lock(&j->store_mu);
	const struct journal_place *p = journal_index_find(&j->store.index, seq);
	*open = p != NULL;
	int code = p ? journal_segment_read(&j->store.dir, &p->segment->name, p->offset, seq, b) : 0;
	pthread_mutex_unlock(&j->store_mu);
	return code;
}

static void replay_begin(struct journal *j)
{
	pthread_mutex_lock(&j->store_mu);
	j->replay_n = j->store.index.n;
	j->replay = journal_index_seqs(&j->store.index);
	pthread_mutex_unlock(&j->store_mu);
	j->replay_at = 0;
	j->replaying = true;
}

int journal_replay_next(struct journal *j, uint64_t *seq, struct buf *out)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	if (!j->replaying)
		replay_begin(j);
	while (j->replay_at < j->replay_n) {
		bool open;
		*seq = j->replay[j->replay_at++];
		int e = replay_read(j, *seq, out, &open);
		if (e < 0)
			return e;
		if (open)
			return 1;
	}
	mem_free(j->replay);
	j->replay = NULL;
	j->replaying = false;
	return 0;
}

int journal_replay(struct journal *j, int (*fn)(void *arg, uint64_t seq, const void *p, size_t n), void *arg)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	struct buf b;
	buf_init(&b, JOURNAL_RECORD_MAX);
	int code = 0, unread = 0, got;
	uint64_t seq;
	while (code >= 0 && (got = journal_replay_next(j, &seq, &b)) != 0) {
		if (got < 0)
			unread = got;
		else
			code = fn(arg, seq, b.data, b.len);
	}
	if (code < 0) { /* stopped: the next one begins again */
		mem_free(j->replay);
		j->replay = NULL;
		j->replaying = false;
	}
	buf_fini(&b);
	return code < 0 ? code : unread;
}

/* --- opening and closing */

static int start_writer(struct journal *j, struct fault *f)
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

static int start(struct journal *j, struct fault *f)
{
	j->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (j->wake_fd < 0)
		return fault_set(f, ST_UNAVAILABLE, "%s: eventfd: %s", j->store.dir.path, strerror(errno));
	j->wake = event_new(loop_base(j->loop), j->wake_fd, EV_READ | EV_PERSIST, on_wake, j);
	ALWAYS(j->wake != NULL && event_add(j->wake, NULL) == 0);
	j->retry_timer = loop_timer_new(j->loop, on_retry, j);
	publish(j);
	j->announced = true;
	loop_defer(j->loop, &j->state_task);
	plan_retry(j, j->view.waiting);
	take_notes(j, &j->finished);
	if (j->finished.first != NULL)
		wake_loop(j);
	return start_writer(j, f);
}

static int check_params(const struct journal_params *p, uint64_t segment, uint64_t max, struct fault *f)
{
	if (segment < SEGMENT_BYTES_MIN || segment > SEGMENT_BYTES_MAX || segment % 8 != 0)
		return fault_set(f, ST_RANGE, "%s: segment of %" PRIu64 " bytes: must be a multiple of 8 from %u to %" PRIu64,
			p->dir, segment, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
	if (max / 3 < segment)
		return fault_set(f, ST_RANGE, "%s: bound of %" PRIu64 " bytes: must hold three segments of %" PRIu64 " bytes",
			p->dir, max, segment);
	return 0;
}

int journal_open(struct loop *l, const struct journal_params *p, struct journal **out, struct fault *f)
{
	uint64_t segment = p->segment_bytes ? p->segment_bytes : SEGMENT_BYTES_DEFAULT;
	uint64_t max = p->max_bytes ? p->max_bytes : MAX_BYTES_DEFAULT;
	int code = check_params(p, segment, max, f);
	if (code != 0)
		return code;
	struct journal *j = mem_alloc(sizeof(*j));
	j->magic = JOURNAL_MAGIC;
	j->loop = l;
	j->wake_fd = -1;
	j->segment_bytes = segment;
	j->backoff_us = RETRY_FIRST_US;
	j->max_payload = segment - JOURNAL_FILE_HEADER - JOURNAL_FILE_RECORD;
	if (j->max_payload > JOURNAL_RECORD_MAX)
		j->max_payload = JOURNAL_RECORD_MAX;
	list_init(&j->queue);
	list_init(&j->finished);
	pthread_mutex_init(&j->mu, NULL);
	pthread_mutex_init(&j->store_mu, NULL);
	pthread_cond_init(&j->work, NULL);
	loop_task_init(&j->kick, kick, j);
	loop_task_init(&j->state_task, tell_state, j);
	code = journal_store_open(&j->store, p->dir, segment, max, p->sync, f);
	if (code == 0) {
		j->next_seq = j->store.next_seq;
		code = start(j, f);
	}
	if (code != 0) {
		discard(j);
		return code;
	}
	*out = j;
	return 0;
}

void journal_close(struct journal *j)
{
	if (j == NULL)
		return;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	pthread_mutex_lock(&j->mu);
	j->stop = true;
	pthread_cond_signal(&j->work);
	pthread_mutex_unlock(&j->mu);
	pthread_join(j->thread, NULL);
	j->closed = true;
	if (!j->in_wake)
		discard(j);
}
