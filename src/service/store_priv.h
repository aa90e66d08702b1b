/*
 * store_priv - what store.c and store_instance.c share. For these two only.
 */
#ifndef REFRESHD_SERVICE_STORE_PRIV_H
#define REFRESHD_SERVICE_STORE_PRIV_H

#include "service/migrations.h"
#include "service/store.h"

#define STORE_MAGIC UINT32_C(0x73746f72)

struct store {
	uint32_t magic;
	struct loop *loop;
	struct pgpool *pool;
	struct loop_timer *recheck;
	struct loop_task report;
	char *instance;
	uint8_t home[16];
	enum store_state state;
	struct fault why;
	store_state_fn *on_state;
	void *on_state_arg;
	int64_t epoch;
	bool has_former;
	uint64_t attempts;
	int64_t last_write_us; /* mono, of the last confirmed write */
	int64_t ready_since_us;
	bool schema_fits; /* as of the last check over the present connections */
	bool enrolling, heartbeat_in_flight;
	int64_t asked_us; /* mono, when it (or the enrolment) was sent */
	enum store_presence presence;
	bool announce;	 /* the next heartbeat tells the others to look */
	bool announcing; /* the one in flight does */
	bool beat_again; /* when the one in flight is back */
	char **live;	 /* names */
	size_t n_live;
	bool live_known;
	int64_t stale_at_us; /* mono: somebody's heartbeat is too old then, if no other comes */
	store_live_fn *on_live;
	void *on_live_arg;
	void (*on_wait)(void *arg, int64_t us);
	void *on_wait_arg;
	loop_fn *goodbye;
	void *goodbye_arg;
};

/* store.c */
void store_change_state(struct store *s, enum store_state to, const char *why);
/* Statements and heartbeats that go on failing must not put the next look off for ever. */
void store_look_again(struct store *s);
int store_send_one(struct store *s, const struct pgstmt *stmt, struct pgargs *a, pgtx_fn *fn) MUST_USE;
/* False: wrong_schema, and why. */
bool store_judge_version(struct store *s, const struct migrations_state *found);
struct migrations_state store_schema_of(const struct pgresult *r, int first_column);

/* store_instance.c */
void store_enrol(struct store *s); /* the schema fits: become an instance, or go on being one */
void store_forget_live(struct store *s);
void store_on_announced(void *arg, const char *payload);

#endif
