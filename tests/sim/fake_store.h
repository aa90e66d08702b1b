/*
 * fake_store - service/store.h and service/store_refresh.h over rows in memory, with the same fences as the SQL.
 *
 * Answers come in a later turn. The test can look at rows, change them (an import, another daemon), take the database
 * away, and lose the answer of a commit that took place.
 */
#ifndef REFRESHD_TESTS_SIM_FAKE_STORE_H
#define REFRESHD_TESTS_SIM_FAKE_STORE_H

#include "model/conf.h"
#include "service/store_refresh.h"

#define FAKE_ROWS 4096
#define FAKE_NOBODY (-1) /* the owner that the database knows as 0: an operator gave the lease up */

struct fake_row {
	bool used;
	uint8_t id[16];
	char application[32], consumer[32], service[32];
	int64_t version, due_at, attempt, owner, lease_until;
	int doubts;
	enum conn_state state;
	enum conn_health health;
	enum reason reason;
	int failures;
	int64_t first_failed_at, last_failed_at, issued_at, expires_at, refresh_issued_at, refresh_expires_at;
	int64_t raw_attempt, orphan_attempt; /* the last that left one */
	int64_t merged_attempt;
	char scope[32]; /* "": unknown */
	bool enabled, current;
	uint8_t access[2048], refresh[2048], previous[2048]; /* sealed */
	size_t access_len, refresh_len, previous_len;
	int64_t updated_at;
	int refreshes, imports, orphans, raws, merges, closed; /* orphans: all that were left; merges, closed: those that were resolved */
	enum event_type events[16];
	unsigned n_events;
};

struct store *fake_store_new(struct loop *l, struct keyring *k);
void fake_store_free(struct store *s); /* whoever waits is told PG_CLASS_UNKNOWN */
/* The same of a process that dies: rows stay, nothing is taken any more. reopen: the next life, with the next epoch. */
void fake_store_shut(struct store *s);
void fake_store_reopen(struct store *s);
void fake_store_set_delay(struct store *s, int64_t us); /* from a statement, which is executed at once, to its answer */
/* Newer tokens from outside: voids an attempt, leaves its lease. */
void fake_store_import(struct store *s, struct fake_row *r, const char *token, int64_t due_at, int64_t expires_at);

/* Somebody changes its settings. */
void fake_store_change(struct fake_row *r);
/* Another daemon merges a token that it had got before. */
void fake_store_merge(struct store *s, struct fake_row *r, const char *token, int64_t due_at);
/* Another daemon has it: its lease ended unnoticed by us. Its claim counts the doubt. */
void fake_store_take_over(struct fake_row *r, int64_t lease_us);

/* A callable connection whose refresh token is "rt-<consumer>-0". */
struct fake_row *fake_store_add(struct store *s, const char *application, const char *consumer, const char *service, int64_t due_at,
	int64_t expires_at);
struct fake_row *fake_store_row(struct store *s, const uint8_t id[16]); /* NULL: no such row */
/* Opens a sealed token of a row into `out`; "" when there is none. */
void fake_row_refresh_token(struct store *s, const struct fake_row *r, char out[256]);
void fake_row_previous_token(struct store *s, const struct fake_row *r, char out[256]);

void fake_store_set_writable(struct store *s, bool writable);
/* The next n persists: executed or not, their answer is this class (PG_CLASS_UNKNOWN after a commit that took place). */
void fake_store_fail_persist(struct store *s, unsigned n, enum pg_class class, bool executed);
void fake_store_fail_claim(struct store *s, unsigned n, enum pg_class class, bool executed);
/* From now on every release fails for what looks like a fault of the schema. */
void fake_store_blame_releases(struct store *s);
void fake_store_blame_merges(struct store *s);
/* The next n results meet someone who writes their row at this very moment. */
void fake_store_disturb(struct store *s, unsigned n);
/* A persist that contains this row fails as our own bug; NULL: no more. */
void fake_store_poison(struct store *s, const uint8_t id[16]);
/* So does its quarantine, and the renewal of its lease. */
void fake_store_poison_more(struct store *s, bool quarantine, bool hold);
/* The same of a claim; NULL: no more. */
void fake_store_poison_claim(struct store *s, const uint8_t id[16]);

struct fake_store_counts {
	unsigned polls, claims, claimed_rows, persists, persisted_rows, releases, quarantines, holds, loads, merges, provider_events, biggest_batch;
	enum event_type last_provider_event;
	char last_provider_reason[32];
};
const struct fake_store_counts *fake_store_counts(const struct store *s);

/* A configuration of one provider "sim" (and "other"), client for "*": `extra` goes into provider sim, `refresh` into the refresh section. */
struct conf *fake_conf(const char *provider_extra, const char *refresh_extra);
struct conf *fake_conf_with(const char *provider_extra, const char *refresh_extra, bool other_client); /* false: "other" has no client for us */

#endif
