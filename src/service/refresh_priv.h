/*
 * refresh_priv - what the files of `refresh` share: the attempt, its states and their table. For refresh*.c only.
 */
#ifndef REFRESHD_SERVICE_REFRESH_PRIV_H
#define REFRESHD_SERVICE_REFRESH_PRIV_H

#include "service/refresh.h"
#include "service/reply.h"
#include "service/settle.h"

#define ATTEMPT_STATE_LIST(X)                                                                  \
	X(AT_CLAIMING, "claiming")     /* the claim is on its way to the database */           \
	X(AT_LOADING, "loading")       /* replay: the row of a journalled reply is being read */ \
	X(AT_SENDING, "sending")       /* the request is with httpc; the token may be presented */ \
	X(AT_JOURNALLING, "journalling") /* answered; the reply is on its way to the disk */   \
	X(AT_SETTLING, "settling")     /* decided; waits for its turn to be written */         \
	X(AT_PERSISTING, "persisting") /* in a statement that was sent */                      \
	X(AT_MERGING, "merging")       /* the fence was lost with a token in hand: is it the live one? */ \
	X(AT_RELEASING, "releasing")   /* nothing was sent; the claim is being given back */   \
	X(AT_REFUSED, "refused")       /* its claim fails by a fault that is no outage: left alone for a pause */ \
	X(AT_HELD, "held")	       /* its result cannot be written, and it cannot be set aside either: tried again after a pause */ \
	X(AT_DONE, "done")
enum attempt_state {
#define X(id, word) id,
	ATTEMPT_STATE_LIST(X)
#undef X
};

struct attempt {
	uint32_t magic;
	struct refresh *owner;
	enum attempt_state state;
	uint8_t id[16];
	int64_t attempt_id;
	int64_t due_at;
	int64_t claimed_mono_us; /* before the claim was sent: the lease cannot have begun earlier */
	struct attempt *hash_next;
	struct attempt *next; /* in one queue at a time */
	struct gate *gate;    /* NULL once given back or done, and in a replay */
	struct conf *conf;    /* the snapshot it started with */
	bool counted;	      /* in owner->in_flight */
	bool opened;	      /* facts are set */
	struct settle_facts facts;
	const struct provider *provider;
	const struct client *client;
	struct httpc_call *call;
	struct reply reply;
	bool has_reply;
	bool sent;
	uint64_t seq; /* journal record; 0: none */
	enum outcome outcome;
	bool answered; /* outcome is set */
	struct settle_record record;
	bool recorded;
	int64_t release_due_at;
	bool quarantine; /* cannot be written: take it out of the schedule, the journal keeps the reply */
	bool has_result; /* quarantine: there is something to write, should the database take it one day */
	bool was_held; /* told */
	bool merging; /* its record is to be written over the row that was read, whoever has it */
	bool alone; /* write it in a statement of its own: a batch with it failed */
	unsigned blames; /* times that the schema was blamed for it alone */
	uint64_t written_before; /* owner->written at the first of them */
	int64_t again_us; /* mono; refused: when the pause is over */
	bool replayed;
	bool in_replay; /* the replay is not over before this is */
	struct loop_timer *again; /* the row could not be read yet */
};

struct attempt_queue {
	struct attempt *first, *last;
	unsigned n;
};

struct pending_event {
	struct pending_event *next;
	bool sending;
	enum event_type type;
	uint8_t event_id[16];
	char *application, *entity_id;
	struct buf entity;
	const char *reason;
	struct refresh *owner;
};

#define HAND_BUCKETS 4096
#define PERSISTS_AT_ONCE 2

struct refresh {
	uint32_t magic;
	struct loop *loop;
	struct store *store;
	struct httpc *httpc;
	struct journal *journal;
	struct refresh_events ev;
	struct conf *conf;
	struct attempt *hand[HAND_BUCKETS];
	unsigned in_hand, in_flight, unsettled;
	struct attempt_queue settling, releasing;
	struct attempt_queue busy; /* another transaction had the row: settled, and sent again after a pause */
	struct loop_timer *busy_over;
	unsigned busy_rounds;
	struct attempt_queue held;
	struct loop_timer *held_over;
	unsigned held_rounds;
	unsigned persisting, releases_sent;
	unsigned release_blames; /* of the schema, in a row */
	uint64_t written; /* statements with results that the database took */
	struct loop_task flush;
	struct loop_timer *retry;
	unsigned failures_in_a_row; /* of writing to the database */
	struct pending_event *events;
	bool draining, claiming;
	struct batch *claims; /* the parts of one that failed, still to be sent */
	struct attempt_queue refused; /* the one whose pause ends first in front */
	struct loop_timer *refused_over;
	struct loop_timer *drain_look;
	int64_t drain_away_us; /* mono: since when the database has been away while we drained; 0: it is not */
	bool drain_left; /* what is in hand stays in the journal */
	size_t reply_bytes; /* of the journal for one reply: the largest of late, at least JOURNAL_REPLY_BYTES */
	bool unjournalled; /* the journal took a reply not: told once */
	loop_fn *drained;
	void *drained_arg;
	struct loop_task drained_task;
	/* replay */
	uint64_t replaying, replayed_total;
	struct { /* a record whose connection has an older one in hand */
		uint64_t seq; /* 0: none */
		struct reply reply;
	} put_off;
	struct buf replay_record;
	bool replay_running, replay_read, replay_over; /* read: no more records come from the journal */
	struct loop_task replay_task;
	void (*replayed)(void *arg, uint64_t n);
	void *replayed_arg;
	struct loop_task replayed_task;
};

#define REFRESH_MAGIC UINT32_C(0x72667273)
#define ATTEMPT_MAGIC UINT32_C(0x61747074)

/* refresh.c */
struct attempt *attempt_new(struct refresh *r, const uint8_t id[16]);
struct attempt *attempt_find(struct refresh *r, const uint8_t id[16]);
void attempt_set_state(struct attempt *a, enum attempt_state to);
/* Leaves our hands: tells the caller, frees. */
void attempt_end(struct attempt *a, bool claimed);
/* Nothing was sent: give the claim back (due_at 0: unchanged). */
void attempt_release(struct attempt *a, int64_t due_at);
void attempt_settle(struct attempt *a);
void refresh_end_refused(struct refresh *r, int64_t until_us); /* those whose pause is over by then */

void attempt_drop_gate(struct attempt *a); /* nothing was sent */
void refresh_tell_gate(struct refresh *r, const char *provider);

/* refresh_send.c */
void attempt_begin(struct attempt *a, const struct store_claimed *c); /* claimed: send it, or decide without */
/* Classify what a->reply holds, decide, queue for writing. */
void attempt_answer(struct attempt *a);
void attempt_classify(const struct attempt *a, struct grant_result *out);

/* refresh_persist.c: everything that is written, and what is tried again */
void persist_init(struct refresh *r);
void persist_fini(struct refresh *r);
void persist_kick(struct refresh *r);
/* We end: what is held is as well off in the journal; an answer that only memory knows stays. */
void persist_end_held(struct refresh *r);
/* Is the statement itself at fault? */
bool persist_is_bug(const struct refresh *r, enum pg_class class);
/* Written, or nothing more can be: the journal's record is done, and it leaves our hands. */
void attempt_finish(struct attempt *a);
void persist_event(struct refresh *r, enum event_type type, const struct gate *g, const struct attempt *a, enum reason why);

/* refresh_merge.c */
void merge_count_fates(void);
void attempt_merge(struct attempt *a); /* lost its fence, and its token is in orphan_token */
void attempt_merged(struct attempt *a, enum store_verdict verdict);
void attempt_unmergeable(struct attempt *a);

/* refresh_drain.c */
void drain_init(struct refresh *r);
void drain_fini(struct refresh *r);
void refresh_check_idle(struct refresh *r); /* is the replay through, the drain over? */

/* refresh_replay.c */
void replay_init(struct refresh *r);
void replay_fini(struct refresh *r);
void replay_leave(struct attempt *a); /* its record is over, or the replay need not wait for it */
bool replay_is_through(const struct refresh *r);

void queue_push(struct attempt_queue *q, struct attempt *a);
struct attempt *queue_take(struct attempt_queue *q);

#endif
