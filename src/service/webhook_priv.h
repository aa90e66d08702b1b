/*
 * webhook_priv - what the files of `webhook` share: the endpoint, the delivery and the service. For
 * webhook*.c only.
 */
#ifndef REFRESHD_SERVICE_WEBHOOK_PRIV_H
#define REFRESHD_SERVICE_WEBHOOK_PRIV_H

#include "service/store_refresh.h" /* TIME_NEVER */
#include "service/store_webhook_endpoint.h"
#include "service/webhook.h"

#define PER_ENDPOINT 4		  /* requests at one receiver at once */
#define PER_QUICK_ENDPOINT 16	  /* at one whose window is full: it has answered a thousand in a row, each within a second */
#define PLACES_SHARE 4		  /* of all places one part in so many: to all ailing endpoints together, and at most to a quick one */
#define AILING_AFTER PER_ENDPOINT /* failures in a row: a full set of places */
#define WINDOW_MAX 1008		  /* claimed for one receiver beyond its places */
#define AHEAD_MAX 4096		  /* waiting, of all receivers, before nobody is claimed for beyond the places */

/* What an endpoint is at one time: never changed, counted, so that an attempt ends as it began. */
struct endpoint {
	unsigned refs;
	const char *application, *url;
	const struct event_secret *secret; /* NULL: its keys cannot be opened; nothing is sent */
	struct conf *conf;		   /* of one of the configuration: holds the above */
	bool of_api, allow_private;
	char *owned_application, *owned_url; /* of one of the API, as all below */
	struct webhook_keys keys, previous;
	int64_t previous_until; /* wall us */
};

struct delivery_list {
	struct delivery *first, *last;
	size_t n;
};

/* An endpoint over time; kept over reloads by its id, and after its removal until nothing of it is in hand. */
struct target {
	struct target *next;
	char *id;                             /* "config:<name>", or a UUID */
	const char *name;                     /* in id */
	struct endpoint *endpoint;            /* as it is now; NULL: not there any more */
	const char *events[EVENT_TYPE_COUNT]; /* of the configuration: full names that its patterns cover */
	size_t n_events;
	bool of_api;
	unsigned in_hand, in_flight;
	unsigned window; /* how many more than may be in flight are claimed */
	struct delivery_list waiting;
	unsigned failures; /* in a row, since we know it */
	bool disabled;
};

/* A claimed delivery, from the claim to its committed record. In one list at a time, but for the time it is
 * sent. */
struct delivery {
	uint32_t magic;
	struct webhook *owner;
	struct target *target;
	struct conf *conf;	   /* the snapshot that it was sent with; NULL: not yet */
	struct endpoint *endpoint; /* the same */
	enum event_type type;
	struct store_attempt attempt; /* its result once it is known */
	struct httpc_call *call;      /* NULL: not being sent */
	int64_t lease_end_us;	      /* mono */
	struct store_delivery what;   /* its texts are these: */
	char *entity, *entity_id, *entity_type, *reason;
	struct delivery *next, *prev;
};

struct webhook {
	uint32_t magic;
	struct loop *loop;
	struct store *store;
	struct httpc *httpc;
	struct conf *conf;
	struct target *targets;
	struct delivery_list sending, answered, recording, unsent, releasing;
	unsigned in_hand; /* in any of these lists, or waiting in that of its target */
	unsigned ahead;	  /* of these: waiting */
	unsigned calls;   /* to the store, not answered yet */
	bool started, draining;
	bool want_fanout, want_claim, want_purge, want_list, want_count, want_load;
	bool fanning, claiming, listing, counting, purging, loading;
	bool load_all;	   /* also if nothing changed: what could not be opened may open now */
	int64_t load_mark; /* of what was loaded last */
	struct webhook_check *checks;
	bool record_singly;                    /* a batch was refused: find out which one it was */
	int64_t claim_sent_us, claim_lease_us; /* mono; length */
	int64_t rest_until_us;		       /* mono: no claim before */
	int64_t due_us;                        /* mono: when the next retry is due; INT64_MAX: none known */
	int64_t paused_until_us;               /* mono: after a failure of the database */
	unsigned failures;                     /* of the database, in a row */
	int64_t next_list_us, next_count_us, next_purge_us; /* mono */
	struct loop_task run;
	struct loop_timer *timer;
	loop_fn *drained;
	void *drained_arg;
	struct loop_task drained_task;
};

#define WEBHOOK_MAGIC UINT32_C(0x77686f6b)
#define DELIVERY_MAGIC UINT32_C(0x77686476)

/* webhook_target.c: who there is */
struct target *target_find(const struct webhook *w, const char *id); /* NULL: none */
void targets_set_conf(struct webhook *w, struct conf *c);
void targets_drop(struct webhook *w); /* those that are gone, once nothing of theirs is in hand */
void targets_free(struct webhook *w);
size_t targets_count(const struct webhook *w);
void targets_load(struct webhook *w); /* those of the API */
bool target_usable(const struct target *t);
void targets_rotate(struct webhook *w, struct target *first);
struct endpoint *endpoint_ref(struct endpoint *e);
void endpoint_unref(struct endpoint *e); /* NULL is fine */

/* webhook_request.c: one request, signed; for deliveries and checks. `keys`: previous may be NULL. */
struct webhook_message {
	const struct event_body *body;
	const char *url;
	const struct event_secret *secret;
	struct signer *ed25519; /* NULL: HMAC alone */
	const struct webhook_keys *previous;
	bool of_api, allow_private;
};
int webhook_post(struct httpc *h, const struct conf *c, const struct webhook_message *m, httpc_fn *fn, void *arg,
	struct httpc_call **out, struct fault *f) MUST_USE;

/* webhook_check.c */
void checks_cancel(struct webhook *w); /* whoever waits is told */

/* webhook_deliver.c: builds, signs and sends. 0, or ST_FULL (no room now), or another code: it can never be
 * sent. */
int delivery_send(struct delivery *d, const struct store_delivery *s, struct fault *f) MUST_USE;
/* Decides what follows when there will be no answer: the delivery cannot be sent at all. */
void delivery_refuse(struct delivery *d, const struct fault *f);
void delivery_count_outcomes(void); /* every outcome's series, at zero */

/* webhook_queue.c: what is claimed and waits, and whose turn it is */
void webhook_queue_push(struct delivery_list *l, struct delivery *d);
void webhook_queue_remove(struct delivery_list *l, struct delivery *d);
void webhook_queue_move(struct delivery_list *to, struct delivery_list *from, size_t max);
bool webhook_queue_ailing(const struct target *t); /* everything of late failed there */
unsigned webhook_queue_room(const struct webhook *w, const struct target *t);
void webhook_queue_judge(struct target *t, const struct store_attempt *a); /* the window follows what came of an attempt */
void webhook_queue_wait(struct delivery *d, const struct store_delivery *s);
void webhook_queue_forget(struct delivery *d); /* frees what webhook_queue_wait copied */
void webhook_queue_send(struct webhook *w);    /* as far as there are places */

/* webhook_upkeep.c: one statement each */
void webhook_list_disabled(struct webhook *w);
void webhook_count_backlog(struct webhook *w);
void webhook_purge(struct webhook *w);

/* webhook.c: the result is in d->attempt; it is to be recorded. */
void webhook_answered(struct delivery *d);
/* In no list, and will not be sent: the claim is given back. */
void webhook_give_back(struct delivery *d);
/* Every call to the store is framed by these two: `code` is what its start returned, or what its callback
 * got. True: it went well. A failure pauses everything for a while and is logged. */
bool webhook_call_started(struct webhook *w, int code, const char *what) MUST_USE;
bool webhook_call_ended(struct webhook *w, int code, const char *what) MUST_USE;

#endif
