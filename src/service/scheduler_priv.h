/*
 * scheduler_priv - what the files of `scheduler` share: lanes, pollers, and who may touch them. For scheduler*.c only.
 */
#ifndef REFRESHD_SERVICE_SCHEDULER_PRIV_H
#define REFRESHD_SERVICE_SCHEDULER_PRIV_H

#include "base/idset.h"
#include "base/minheap.h"
#include "service/scheduler.h"

#define SCHEDULER_MAGIC UINT32_C(0x73636865)
#define SCHEDULER_BUCKETS 1024

struct site_park { /* lanes of one provider that wait for something to end there */
	struct site_park *next;
	char *provider;
	struct lane *first, *last;
	int64_t next_start; /* while a page is spread: the start time of the entry after */
};

struct lane {
	struct minheap_node node; /* first: cast back */
	struct lane *hash_next;
	struct lane *park_next;
	bool parked, complained;
	char *application, *service;
	struct dueheap heap; /* due_us: when to start; tag: the row's due_at */
	struct gate *gate;
	struct site_park *site;
};

enum poll_kind { POLL_FORWARD, POLL_OVERDUE, POLL_GAINED };

struct poller {
	struct scheduler *owner;
	enum poll_kind kind;
	const struct slots *slots;
	struct store_cursor at;
	int64_t until;
	unsigned pages; /* left in this round of the overdue poll */
	bool running, whole; /* whole: the last round reached `until` */
	bool outdated;	     /* what is on its way was asked before everything was forgotten */
};

struct scheduler {
	uint32_t magic;
	struct loop *loop;
	struct store *store;
	struct budget *budget;
	struct refresh *refresh;
	struct conf *conf;
	struct lane *lanes[SCHEDULER_BUCKETS];
	struct site_park *sites;
	struct minheap ready;
	struct idset ids;
	struct idset explicit; /* entries of slots that are not ours, asked for here */
	size_t entries;
	bool running;
	struct slots own, to_load; /* to_load: gained, and not loaded yet */
	struct poller forward, overdue, gained;
	struct loop_timer *poll_timer, *due_timer;
	struct loop_task dispatch;
};

/* scheduler.c: lanes and entries */
struct lane *scheduler_lane(struct scheduler *s, const char *application, const char *service);
/* Is there anybody to refresh with? Complains once when not. */
bool scheduler_lane_usable(struct lane *l);
/* False: it is there already, or there is no room. What is put in although its slot is not ours was asked for here. */
bool scheduler_push(struct scheduler *s, struct lane *l, const uint8_t id[16], int64_t start, int64_t row_due);
/* Puts a lane where it belongs, by its first entry and its gate. */
void scheduler_place(struct scheduler *s, struct lane *l, int64_t wall, int64_t mono);
void scheduler_unpark_all(struct scheduler *s);
/* When a row whose foreign lease ran out can start; 0: at once. */
int64_t scheduler_takeover_start(const struct scheduler *s, const struct lane *l, int64_t foreign_until);

/* scheduler_poll.c */
void scheduler_poll_init(struct scheduler *s);
void scheduler_poll_now(struct scheduler *s);
void scheduler_forget_polls(struct scheduler *s); /* the next ones start from the beginning */

#endif
