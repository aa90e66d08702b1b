/*
 * journal - the loop's side of the journal.
 *
 * The loop copies a record into a job and hands it over under a lock to the writer (journal_writer.c), whose eventfd brings the jobs
 * back. A place where nothing can be written is tried again by a loop timer with capped, jittered backoff. Must not do file I/O in
 * the loop; only the opening and closing here, and the replay, do.
 */
#include "io/journal.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "io/journal_priv.h"

#define SEGMENT_BYTES_DEFAULT (UINT64_C(4) << 20)
#define SEGMENT_BYTES_MIN 4096u
#define SEGMENT_BYTES_MAX (UINT64_C(1) << 30)
#define MAX_BYTES_DEFAULT (UINT64_C(256) << 20)
/* Handed over and not yet on disk: four segments, or the memory would grow with a disk that hangs. */
#define QUEUE_SEGMENTS 4
#define RETRY_FIRST_US (100 * US_PER_MS)
#define RETRY_MAX_US (10 * US_PER_S)

static bool view_writable(const struct journal *j)
{
	const struct journal_view *v = &j->view;
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
	const struct journal_view *v = &j->view;
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

static void explain(const struct journal *j, const struct journal_view *v, struct fault *why)
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
	struct journal_view v = j->view;
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
	journal_jobs_free(&j->queue);
	journal_jobs_free(&j->finished);
	journal_replay_end(j);
	pthread_cond_destroy(&j->work);
	pthread_mutex_destroy(&j->mu);
	pthread_mutex_destroy(&j->store_mu);
	j->magic = 0;
	mem_free(j);
}

static void run_job(struct journal *j, const struct journal_job *b)
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

	struct journal_jobs finished;
	journal_jobs_init(&finished);
	pthread_mutex_lock(&j->mu);
	journal_jobs_join(&finished, &j->finished);
	bool waiting = j->view.waiting;
	pthread_mutex_unlock(&j->mu);
	plan_retry(j, waiting);
	loop_defer(j->loop, &j->state_task);

	j->in_wake = true;
	while (finished.first && !j->closed) {
		struct journal_job *b = finished.first;
		finished.first = b->next;
		run_job(j, b);
		mem_free(b);
	}
	j->in_wake = false;
	journal_jobs_free(&finished);
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
	const struct journal_view *v = &j->view;
	bool fits = v->healthy && (v->queued + size <= v->room ||
					  (v->spare && v->queued + size <= QUEUE_SEGMENTS * j->segment_bytes));
	if (!fits) {
		pthread_mutex_unlock(&j->mu);
		return ST_UNAVAILABLE;
	}
	struct journal_job *b = journal_job_new(JOB_DATA, j->next_seq++, p, n);
	b->fn = fn;
	b->arg = arg;
	journal_jobs_add(&j->queue, b);
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
	struct journal_job *b = journal_job_new(JOB_DONE, seq, NULL, 0);
	pthread_mutex_lock(&j->mu);
	journal_jobs_add(&j->queue, b);
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

/* --- opening and closing */

static int start(struct journal *j, struct fault *f)
{
	j->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (j->wake_fd < 0)
		return fault_set(f, ST_UNAVAILABLE, "%s: eventfd: %s", j->store.dir.path, strerror(errno));
	j->wake = event_new(loop_base(j->loop), j->wake_fd, EV_READ | EV_PERSIST, on_wake, j);
	ALWAYS(j->wake != NULL && event_add(j->wake, NULL) == 0);
	j->retry_timer = loop_timer_new(j->loop, on_retry, j);
	journal_publish(j);
	j->announced = true;
	loop_defer(j->loop, &j->state_task);
	plan_retry(j, j->view.waiting);
	journal_take_notes(j, &j->finished);
	if (j->finished.first != NULL)
		journal_wake_loop(j);
	return journal_writer_start(j, f);
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
	journal_jobs_init(&j->queue);
	journal_jobs_init(&j->finished);
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
