/*
 * store_refresh - the statements of one refresh: poll, claim, persist, release, load; and the gauges.
 *
 * The claim is the committed intent: one statement takes a batch by id and commits before anything is sent.
 * A result is written only while attempt id and token version are still ours; what lost its fence goes to
 * orphan_token in the same statement. Everything here is idempotent: after an unknown outcome, send it again.
 */
#ifndef REFRESHD_SERVICE_STORE_REFRESH_H
#define REFRESHD_SERVICE_STORE_REFRESH_H

#include <stdbool.h>
#include <stdint.h>

#include "model/connection.h"
#include "model/event.h"
#include "model/grant.h"
#include "model/slots.h"
#include "service/store.h"

#define TIME_NEVER INT64_MAX /* due_at = infinity */

/* ---- poll: hints of what becomes due ---- */
struct store_due {
	uint8_t id[16];
	const char *application_id, *service_id; /* the lane; borrowed for the callback */
	int64_t due_at;				 /* wall us */
	/* 0, or when the lease of another instance ran out that was never resolved: its owner may still hold the answer. */
	int64_t foreign_until;
};
struct store_cursor { /* exclusive start of the next page */
	int64_t due_at;
	uint8_t id[16];
};
/* Rows of these slots with cursor < (due_at, id) and due_at <= until, lease free or run out, in order, at most limit. `code` 0 or
 * ST_UNAVAILABLE. */
typedef void store_poll_fn(void *arg, int code, const struct store_due *v, size_t n);
int store_poll(struct store *s, const struct store_cursor *from, int64_t until, unsigned limit, const struct slots *only, store_poll_fn *fn,
	void *arg) MUST_USE;

/* ---- claim ---- */
struct store_want {
	uint8_t id[16];
	int64_t attempt_id; /* from store_next_attempt */
	int64_t due_at;	    /* what the entry said: a row that was moved later is not taken */
	int64_t takeover_us; /* a lease of another instance that was never resolved is left to it this much longer */
};
struct store_claimed { /* all pointers borrowed for the callback */
	uint8_t id[16];
	int64_t attempt_id, token_version, due_at;
	int doubts; /* presentations of the present refresh token without a complete answer, before this one */
	struct conn_key key;
	enum auth_type auth_type;
	bool enabled;
	enum conn_state state;
	enum conn_health health;
	enum reason reason;
	int failures;
	int64_t created_at, updated_at, first_failed_at, last_failed_at; /* 0: none */
	int64_t issued_at, expires_at, refresh_issued_at, refresh_expires_at; /* 0: unknown */
	bool current; /* false: the credential changed while we claimed; release it */
	const char *scope;	  /* NULL unknown */
	const char *metadata;	  /* JSON */
	const void *refresh_token; size_t refresh_token_len; /* sealed; NULL: none */
	const void *captured; size_t captured_len;	     /* sealed */
	const void *settings; size_t settings_len;	     /* sealed */
};
typedef void store_claim_fn(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n);
/* n >= 1. After PG_CLASS_UNKNOWN the leases may be held although nothing was sent: release them. */
int store_claim(struct store *s, const struct store_want *v, size_t n, int64_t lease_us, int64_t timeout_us, store_claim_fn *fn, void *arg) MUST_USE;
/* One row as it is now, whoever holds it, for the replay of a journalled reply: n is 0 when the connection is gone. */
int store_load(struct store *s, const uint8_t id[16], store_claim_fn *fn, void *arg) MUST_USE;

/* ---- persist ---- */
struct store_result { /* pointers borrowed for the call */
	uint8_t id[16];
	int64_t attempt_id, token_version;
	int64_t due_at;	 /* TIME_NEVER: no further refresh by itself */
	int doubts;
	bool has_token;	 /* the next four groups count */
	const struct buf *access_token, *refresh_token, *previous_refresh_token, *captured; /* sealed for token_version + 1; NULL or empty: SQL null */
	int64_t issued_at, expires_at, refresh_issued_at, refresh_expires_at; /* 0: null */
	const char *token_type, *scope; /* NULL: keep */
	const struct buf *raw_reply;	/* sealed; kept as an orphan of kind raw_reply (malformed 2xx); NULL: none */
	bool touch;	 /* state, health ... changed */
	int64_t seen_at; /* the connection's updated_at that they follow from */
	enum conn_state state;
	enum conn_health health;
	enum reason reason;
	int failures;
	int64_t first_failed_at, last_failed_at, updated_at;
	enum event_type event; /* EVENT_NONE: none */
	uint8_t event_id[16];
	const char *application_id; /* of the event */
	const char *entity_id, *entity; /* JSON from event_entity_build */
};
#define STORE_VERDICT_LIST(X) \
	X(STORE_APPLIED, "applied") X(STORE_ALREADY, "already") X(STORE_LOST, "lost") \
	X(STORE_AGAIN, "again") /* nothing was done: another transaction has the row at this moment; send it again */ \
	X(STORE_STALE, "stale") /* applied, but for the state and its event: the settings changed meanwhile; due now */
enum store_verdict {
#define X(id, word) id,
	STORE_VERDICT_LIST(X)
#undef X
};
/* Verdicts in the order of v, when code is 0. */
typedef void store_persist_fn(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n);
int store_persist(struct store *s, const struct store_result *v, size_t n, store_persist_fn *fn, void *arg) MUST_USE;

/*
 * Writes a token whose fence was lost over the one that the row has: x is settled from the row as store_load gave it, so its attempt
 * and version are the row's; `orphan` is the attempt that brought the token. Any attempt that is out is voided, as by an import, and
 * the orphan is resolved. One verdict: LOST means that the row has changed since it was read.
 */
int store_merge(struct store *s, const struct store_result *x, int64_t orphan, store_persist_fn *fn, void *arg) MUST_USE;
/* The orphan is not wanted any more: resolved with a word, and kept. */
int store_close_orphan(struct store *s, const uint8_t id[16], int64_t orphan, const char *resolution, store_persist_fn *fn, void *arg) MUST_USE;

/* Gives back claims that were not sent; due_at 0 keeps the row's own, and so does an import that voided the attempt. Rows whose
 * lease is not ours any more are left alone. Verdict AGAIN: another transaction has the row, perhaps the very claim. */
struct store_release {
	uint8_t id[16];
	int64_t attempt_id;
	int64_t due_at;
};
int store_release(struct store *s, const struct store_release *v, size_t n, store_persist_fn *fn, void *arg) MUST_USE;
/* Takes a row whose answer is there and cannot be written (or read) out of the schedule, so that its token is not presented again.
 * Rows that the attempt does not hold any more are left alone. Until its answer is written or new tokens come, nobody who asks for
 * it makes it due: a deadline that never ends tells it from what is only not due. */
#define STORE_SET_ASIDE "((s.attempt_id <> 0 AND s.lease_owner IS NOT NULL AND s.sent_deadline = 'infinity') IS TRUE)"
int store_quarantine(struct store *s, const uint8_t id[16], int64_t attempt_id, store_persist_fn *fn, void *arg) MUST_USE;
/* Not even that can be written: nobody else is to claim it for so long from now. */
int store_hold(struct store *s, const uint8_t id[16], int64_t attempt_id, int64_t lease_us, store_persist_fn *fn, void *arg) MUST_USE;
/* Frees the leases that earlier epochs of this home left behind; they come back by poll with their doubt counted. The journal has
 * been replayed: what is still leased then has no answer that anybody will ever write, or is held. ST_DENIED: refused for a fault
 * that is no outage, one row's perhaps. */
int store_recover(struct store *s, void (*fn)(void *arg, int code, int64_t rows), void *arg) MUST_USE;
/* The second part of it, beside the work: what was started up to so much before it was due. It may read the whole table; where that takes
 * longer than a statement may, those few leases run out by themselves, and the next start tries again. */
int store_recover_early(struct store *s, int64_t early_us, void (*fn)(void *arg, int code, int64_t rows), void *arg) MUST_USE;

/* An event about something that is no connection (provider faults, tests). */
int store_event(struct store *s, enum event_type type, const uint8_t event_id[16], const char *application_id, const char *entity_id, const char *entity_type,
	const char *entity, const char *reason, store_persist_fn *fn, void *arg) MUST_USE;

/* ---- gauges ---- */
struct store_gauges {
	int64_t expired;	   /* healthy, enabled and past expiry */
	bool have_min;
	double min_seconds_to_expiry;
	int64_t orphans;
	int64_t by_state[5];	   /* indexed by enum conn_state; -1: not counted this time (the table is large: counted rarely) */
};
typedef void store_gauges_fn(void *arg, int code, const struct store_gauges *g);
int store_gauges(struct store *s, bool count_states, store_gauges_fn *fn, void *arg) MUST_USE;

/* NOTIFY refreshd_due, '<uuid>': rare operator acts (refresh now); without a payload: many rows (an import). */
struct store_notice {
	void (*fn)(void *arg, const uint8_t *id); /* NULL: several, or something may have been missed */
	void *arg;
};
void store_on_notice(struct store *s, struct store_notice *w); /* w lives as long as the store */
/* The schedule row of one connection, as a one-row poll (n 0: unknown or leased). */
int store_due_of(struct store *s, const uint8_t id[16], store_poll_fn *fn, void *arg) MUST_USE;

#endif
