/*
 * world - everything that a refresh needs, built over the fakes, and a provider with a memory.
 *
 * The provider knows each family of refresh tokens ("rt-<consumer>-<n>"), rotates them, and judges every presentation
 * by itself: was it claimed, does the lease outlast it, is another one of that family out, was it answered before? What it
 * finds is counted in `faults`, which every test checks at its end (world_end).
 */
#ifndef REFRESHD_TESTS_SIM_WORLD_H
#define REFRESHD_TESTS_SIM_WORLD_H

#include "service/budget.h"
#include "service/refresh.h"
#include "service/scheduler.h"
#include "sim/fake.h"
#include "sim/fake_store.h"

#define SECONDS(n) ((int64_t)(n) * US_PER_S)
#define MINUTES(n) (60 * SECONDS(n))
#define HOURS(n) (60 * MINUTES(n))
#define FAMILIES 1024

enum mode {
	ANSWER_OK,
	ANSWER_OK_NO_RT,     /* a new access token, the refresh token stays */
	ANSWER_DEAD,	     /* invalid_grant */
	ANSWER_BAD_CLIENT,   /* 401 invalid_client */
	ANSWER_500,
	ANSWER_502,
	ANSWER_429,	     /* Retry-After: 30 */
	ANSWER_MALFORMED,    /* rotated, and a 200 that nobody can read */
	ANSWER_CUT_BEFORE,   /* the connection dies before the provider works on it */
	ANSWER_CUT_AFTER,    /* rotated, and the answer is lost */
	ANSWER_HANG,	     /* never worked on, never answered */
	ANSWER_NEVER_SENT,   /* no connection */
};

struct family {
	char consumer[32];
	int live;		  /* the token that works */
	int64_t rotated_at;	  /* mono */
	bool revoked;		  /* by reuse or by the test */
	int64_t busy_until;	  /* a presentation is out until then, mono */
	int answered;		  /* the newest token with a whole answer; -1: none */
	int64_t answered_at;	  /* when that answer was with us and durable, mono */
	unsigned presented;
	int64_t access_until;	  /* wall: the access token that we were given works until then */
};

struct world {
	struct loop *loop;
	struct httpc *httpc;
	struct journal *journal;
	struct store *store;
	struct budget *budget;
	struct refresh *refresh;
	struct scheduler *scheduler; /* NULL unless asked for */
	struct budget_share share;
	struct conf *conf, *first_conf; /* the store keeps the keyring of the first */
	/* the provider */
	struct family families[FAMILIES];
	size_t n_families;
	enum rotation rotation;
	int64_t grace_us;
	int expires_in;
	int64_t latency_us, journal_delay_us;
	enum mode mode;		/* when nothing is scripted */
	enum mode script[16];
	unsigned n_script;
	enum mode (*choose)(struct world *w, struct family *f, bool other); /* NULL: script, then mode */
	char only[32];		/* the mode is for this consumer alone; "": for all */
	bool faults_ok;		/* the test breaks the rules on purpose */
	unsigned faults;
	unsigned sent, sent_other;
	int64_t last_sent_mono;
	char first_sent[64], last_sent[64];
	struct buf log; /* every line from notice up; SIM_LOG in the environment shows all */
	/* what refresh told */
	unsigned done, claimed, refreshed, outbox, gates, replays;
	uint64_t replayed; /* at the last start */
	unsigned all_replayed;
	struct refresh_done last;
	bool drained;
	unsigned drains;
};

struct world *world_new(uint64_t seed, const char *provider_extra, const char *refresh_extra, bool scheduler);
/* Checks that the provider found nothing wrong, then frees. */
void world_end(struct world *w);
/* The process dies here and a new one starts: memory is gone, disk and rows stay. `replay` runs the start of the daemon. */
void world_kill(struct world *w, bool replay);
void world_replay(struct world *w);
void world_conf(struct world *w, struct conf *c); /* a reload; takes over the reference */

struct fake_row *world_add(struct world *w, const char *consumer, int64_t due_in, int64_t expires_in);
struct fake_row *world_add_to(struct world *w, const char *service, const char *consumer, int64_t due_in, int64_t expires_in);
struct family *world_family(struct world *w, const char *consumer);
bool world_claim(struct world *w, struct fake_row *r);	 /* hands it over now; false when the gate or refresh has no room */
void world_settle(struct world *w);			 /* runs for a few milliseconds, without reaching a time-out */
void world_refresh(struct world *w, struct fake_row *r); /* waits for its due time, claims, and runs until it left our hands */
void world_wait_gone(struct world *w, const struct fake_row *r);
bool world_token_is_live(struct world *w, const struct fake_row *r);
unsigned world_logged(const struct world *w, const char *word); /* how often it stands in the log */
unsigned world_events(const struct fake_row *r, enum event_type e);

#endif
