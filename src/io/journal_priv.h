/*
 * journal_priv - what journal.c, journal_writer.c and journal_replay.c share. For these three only.
 *
 * Two locks: `mu` for what is handed over and told, held for moments; `store_mu` for the store, held while the disk works.
 */
#ifndef REFRESHD_IO_JOURNAL_PRIV_H
#define REFRESHD_IO_JOURNAL_PRIV_H

#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "io/journal.h"
#include "io/journal_store.h"

#define JOURNAL_MAGIC 0x6a6f7572u

enum journal_job_kind { JOB_DATA, JOB_DONE, JOB_SYNCED, JOB_NOTE };

struct journal_job {
	struct journal_job *next;
	enum journal_job_kind kind;
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

struct journal_jobs {
	struct journal_job *first, **tail;
};

/* What the loop may know of the store. */
struct journal_view {
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
	struct journal_jobs queue, finished;
	struct journal_view view;
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

/* journal_writer.c */
void journal_jobs_init(struct journal_jobs *l);
void journal_jobs_add(struct journal_jobs *l, struct journal_job *j);
void journal_jobs_join(struct journal_jobs *to, struct journal_jobs *from); /* behind what is there; `from` is empty then */
void journal_jobs_free(struct journal_jobs *l);
struct journal_job *journal_job_new(enum journal_job_kind kind, uint64_t seq, const void *p, size_t n);
void journal_take_notes(struct journal *j, struct journal_jobs *reports);
void journal_publish(struct journal *j); /* with the lock held, once there is a thread */
void journal_wake_loop(struct journal *j);
int journal_writer_start(struct journal *j, struct fault *f) MUST_USE; /* runs until `stop` is set and the queue is empty */

/* journal_replay.c */
void journal_replay_end(struct journal *j); /* the next one begins again */

#endif
