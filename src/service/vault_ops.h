/*
 * vault_ops - what an operator does and asks: refresh now, status, providers, orphans.
 */
#ifndef REFRESHD_SERVICE_VAULT_OPS_H
#define REFRESHD_SERVICE_VAULT_OPS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "io/pgsync.h"
#include "model/conf.h"

/* NOTIFY refreshd_due; NULL: an empty payload, something in general is due. */
int vault_notify(struct pgsync *pg, const uint8_t *id, struct fault *f) MUST_USE;
/* Daemons with a heartbeat of the last 20 s. */
int vault_live_daemons(struct pgsync *pg, int64_t *n, struct fault *f) MUST_USE;

/* ---- refresh now ---- */
struct vault_watch { /* where one connection's refreshing stands */
	bool enabled, has_refresh_token, leased;
	char service_id[72];
	char auth_type[12], state[16], health[20], reason[24];
	int64_t token_version, refreshes, last_failed_at, attempt_id, due_at, expires_at;
};
int vault_watch(struct pgsync *pg, const uint8_t id[16], struct vault_watch *out, struct fault *f) MUST_USE; /* ST_NOT_FOUND */
/* due_at = now, for a dead connection as well, and the NOTIFY in the same transaction. ST_NOT_FOUND. */
int vault_refresh_now(struct pgsync *pg, const uint8_t id[16], struct fault *f) MUST_USE;

/* ---- status ---- */
struct vault_instance {
	const char *name, *version, *presence; /* presence as the daemon said it: STORE_PRESENCE_LIST, or a newer word */
	int64_t epoch, started_at, heartbeat_at;
	bool gone, alive;
};
typedef int vault_instance_fn(void *arg, const struct vault_instance *i);
int vault_instances(struct pgsync *pg, vault_instance_fn *fn, void *arg, struct fault *f) MUST_USE;
/* Removes an instance that is not alive; what it left unresolved may be taken over at once. ST_NOT_FOUND, ST_DENIED (it is alive). */
int vault_instance_forget(struct pgsync *pg, const char *name, int64_t *leases, struct fault *f) MUST_USE;
struct vault_status {
	int64_t due;		  /* due, not leased, and to be had */
	int64_t overdue;	  /* so for more than a minute */
	int64_t oldest_due_at;	  /* 0: none */
	int64_t left_to_owner;	  /* due; the daemon that claimed it is silent and may hold the answer (refresh.takeover_delay) */
	int64_t in_flight;	  /* leased now */
	int64_t orphans;
	int64_t events_waiting, deliveries_waiting;
	int64_t oldest_waiting_at; /* of the outbox; 0: none */
	int64_t endpoints_disabled;
	bool counted; /* the rest needs whole tables, and is -1 otherwise */
	int64_t by_state[5], in_doubt, expired;
	int64_t unknown_state; /* words of a newer program */
};
int vault_status(struct pgsync *pg, const struct conf *c, bool count_all, struct vault_status *out, struct fault *f) MUST_USE;

/* ---- providers ---- */
struct vault_service_count {
	const char *service_id, *state, *health, *reason;
	int64_t n;
};
typedef int vault_service_fn(void *arg, const struct vault_service_count *c);
int vault_service_counts(struct pgsync *pg, const char *service_or_null, vault_service_fn *fn, void *arg, struct fault *f) MUST_USE;

/* ---- orphans ---- */
struct vault_orphan { /* borrowed; 0: no such time */
	uint8_t id[16];
	const char *application_id, *consumer_id, *unified_api, *service_id; /* NULL: the connection is gone */
	int64_t attempt_id, token_version, current_version;		     /* current_version 0: gone */
	const char *kind, *resolution;
	int64_t created_at, issued_at, expires_at, resolved_at;
	const void *access_token, *refresh_token, *raw_reply; /* sealed; NULL: none */
	size_t access_token_len, refresh_token_len, raw_reply_len;
};
typedef int vault_orphan_fn(void *arg, const struct vault_orphan *o);
/* Newest first; `id` NULL: of all connections. */
int vault_orphans(struct pgsync *pg, const uint8_t *id, bool resolved_too, vault_orphan_fn *fn, void *arg, struct fault *f) MUST_USE;
/* Inside a transaction: takes the row lock that orders all writers. ST_NOT_FOUND. */
int vault_lock(struct pgsync *pg, const uint8_t id[16], int64_t *token_version, struct fault *f) MUST_USE;
int vault_orphan_resolve(struct pgsync *pg, const uint8_t id[16], int64_t attempt_id, const char *kind, const char *resolution, struct fault *f) MUST_USE;
/* Keeps a refresh token that was replaced by hand, sealed for `version`. */
int vault_keep_previous(struct pgsync *pg, const uint8_t id[16], int64_t version, const struct buf *sealed, struct fault *f) MUST_USE;
/* The present refresh token, sealed; appended to `out` (empty: none). */
int vault_refresh_token(struct pgsync *pg, const uint8_t id[16], struct buf *out, struct fault *f) MUST_USE;

#endif
