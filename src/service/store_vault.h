/*
 * store_vault - the SQL of the API: keys, connections and what is done to them, consumers, the log of events.
 *
 * Every statement is bound to one application, in the statement itself and not by its caller's care. What is written
 * locks `schedule` first, like every writer. Tokens and settings are ciphertext here.
 */
#ifndef REFRESHD_SERVICE_STORE_VAULT_H
#define REFRESHD_SERVICE_STORE_VAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/connection.h"
#include "model/import.h"
#include "service/store_call.h"

/* In every callback `code` is 0; ST_AGAIN: the server asked for the same again; ST_UNAVAILABLE: the database is away, or it is not
 * known whether it was done; ST_INVALID: the statement itself was refused, a bug of ours. Rows are borrowed for the callback. */

/* ---- keys ---- */
struct store_key {
	const char *application_id, *scopes; /* scopes separated by blanks */
	bool revoked;
};
typedef void store_key_fn(void *arg, int code, const struct store_key *k_or_null);
int store_key_of(struct store *s, const uint8_t sha256[32], store_key_fn *fn, void *arg) MUST_USE;

/* ---- connections ---- */
struct store_connection { /* times: wall us, 0 none */
	uint8_t id[16];
	struct conn_key key;
	const char *auth_type, *state, *health, *reason; /* words; a newer daemon may have written unknown ones */
	bool enabled;
	int failures;
	int64_t last_failed_at, created_at, updated_at;
	const char *metadata, *settings_public; /* JSON */
	int64_t token_version, issued_at, expires_at, refresh_issued_at, refresh_expires_at;
	bool has_refresh_token;
	const char *token_type; /* NULL: unknown */
	int64_t attempt_id, due_at;
	bool leased;
	const void *settings, *access_token; /* sealed; only when asked for; NULL: none */
	size_t settings_len, access_token_len;
};
typedef void store_connections_fn(void *arg, int code, const struct store_connection *v, size_t n);

struct store_conn_id {
	const char *application_id;
	uint8_t id[16];
};
/* Those that are there, in no order. */
int store_connections(struct store *s, const struct store_conn_id *v, size_t n, bool sealed, store_connections_fn *fn, void *arg) MUST_USE;

struct store_conn_list {
	const char *application_id;
	const char *consumer_id, *unified_api; /* NULL: all */
	struct conn_key after;		       /* the last three parts: exclusive start; "" for the first page */
	unsigned limit;
	size_t bytes; /* of settings and metadata: the last but one row is the one that reaches so many */
};
/* In the order of consumer, unified API, service. */
int store_connections_list(struct store *s, const struct store_conn_list *w, store_connections_fn *fn, void *arg) MUST_USE;

/* ---- import ---- */
struct store_upsert { /* pointers borrowed for the call */
	uint8_t id[16];
	struct conn_key key;
	enum auth_type auth_type;
	int64_t token_version;
	int64_t now; /* updated_at, the time of its event, and of one that is made created_at */
	int64_t seen_at; /* store_renew: updated_at of the row that `to` and the event were decided from */
	const struct import_times *times;
	const struct buf *access_token, *refresh_token, *settings; /* sealed; empty: null */
	const char *settings_public, *metadata;			   /* JSON; NULL: keep what is there */
	enum conn_state state;
	enum conn_health health;
	enum event_type event;
	const char *entity_id, *entity;
};
/* One that was taken, as it now is where that is not as it was given. */
struct store_written {
	uint8_t id[16];
	const char *metadata, *settings_public; /* JSON in the database's own words */
	bool wanted;				/* an event of the group waits for the fan-out */
};
typedef void store_written_fn(void *arg, int code, const struct store_written *v, size_t n);
/* Both: ids distinct and ascending; the callback gets those that were taken, in no order. `wanted`: there are receivers of events whom
 * the database does not know; when nobody is known to either, the events are written as fanned out already. */
/* What is not there is made; what is there is not touched. */
int store_create(struct store *s, const struct store_upsert *v, size_t n, bool wanted, store_written_fn *fn, void *arg) MUST_USE;
/* What is there as it was seen, and with an older token version, is written over. */
int store_renew(struct store *s, const struct store_upsert *v, size_t n, bool wanted, store_written_fn *fn, void *arg) MUST_USE;

/* ---- change and forget ---- */
struct store_change {
	uint8_t id[16];
	const char *application_id;
	int64_t seen_at, updated_at; /* taken only if the row still has updated_at = seen_at */
	bool enabled;
	enum conn_state state;
	enum conn_health health;
	enum reason reason;
	const struct buf *settings;		/* sealed; NULL: keep */
	const char *settings_public, *metadata; /* NULL: keep */
	int64_t due_at;				/* 0: keep; INT64_MAX: never */
	enum event_type event;
	const char *entity_id, *entity;
};
/* The row as it is afterwards: it was taken if its updated_at is the one given. */
int store_change(struct store *s, const struct store_change *c, store_connections_fn *fn, void *arg) MUST_USE;

struct store_forget {
	uint8_t id[16];
	const char *application_id, *entity_id, *entity;
};
typedef void store_count_fn(void *arg, int code, int64_t n);
/* Ids ascending. n: how many were there. Their tokens and orphans go with them. What is leased is left alone: its request may be out, and
 * the lease is what keeps an import of the same tokens from presenting them beside it. */
int store_forget(struct store *s, const struct store_forget *v, size_t n, int64_t now, store_count_fn *fn, void *arg) MUST_USE;

/* Makes it due now, unless an attempt is out or its tokens are not those of `token_version` any more. */
int store_due_now(struct store *s, const struct store_conn_id *c, int64_t token_version, store_count_fn *fn, void *arg) MUST_USE;

/* ---- consumers ---- */
struct store_consumer {
	const char *consumer_id;
	const char *services; /* JSON array of text */
	int64_t created_at, updated_at;
};
typedef void store_consumers_fn(void *arg, int code, const struct store_consumer *v, size_t n);
int store_consumers(struct store *s, const char *application_id, const char *after, unsigned limit, store_consumers_fn *fn, void *arg) MUST_USE;

/* ---- what happened ---- */
struct store_happened {
	uint8_t event_id[16];
	const char *event_type, *entity_type, *entity, *reason; /* reason NULL: none */
	int failures;
	int64_t occurred_at;
};
typedef void store_log_fn(void *arg, int code, const struct store_happened *v, size_t n);
struct store_log {
	const char *application_id;
	const char *entity_id; /* NULL: all */
	int64_t before;	       /* exclusive start, newest first; INT64_MAX for the first page */
	uint8_t before_id[16];
	unsigned limit;
};
int store_log(struct store *s, const struct store_log *w, store_log_fn *fn, void *arg) MUST_USE;

/* For store_vault_write.c. */
#define VAULT_CONNECTION_COLUMNS(sealed_)                                                                                     \
	"SELECT n.connection_id, n.application_id, n.consumer_id, n.unified_api, n.service_id, n.auth_type, n.state, n.health," \
	" n.reason, n.enabled, n.failures, n.last_failed_at, n.created_at, n.updated_at, n.metadata, n.settings_public,"    \
	" coalesce(s.token_version, 0), k.issued_at, k.expires_at, k.refresh_issued_at, k.refresh_expires_at,"              \
	" k.refresh_token IS NOT NULL, k.token_type, coalesce(s.attempt_id, 0), coalesce(s.due_at, 'infinity'),"            \
	" coalesce(s.lease_until > now(), false), CASE WHEN " sealed_ " THEN n.settings END,"  \
	" CASE WHEN " sealed_ " THEN k.access_token END "
#define VAULT_CONNECTION_JOINS                                                            \
	" LEFT JOIN refreshd.credential k ON k.slot = n.slot AND k.connection_id = n.connection_id" \
	" LEFT JOIN refreshd.schedule s ON s.slot = n.slot AND s.connection_id = n.connection_id "
/* One row at a time and by the primary key: LIMIT keeps the planner from making a join of it, which it would plan by what it
 * believes of the table's size when the statement is prepared - nothing, on the day of the first import. */
#define VAULT_ROW_OF(table_) \
	"(SELECT * FROM refreshd." table_ " x WHERE x.slot = t.slot AND x.connection_id = t.connection_id LIMIT 1)"
#define VAULT_CONNECTIONS_FROM                                                                                 \
	" JOIN LATERAL " VAULT_ROW_OF("connection") " n ON n.application_id = t.application_id"           \
	" LEFT JOIN LATERAL " VAULT_ROW_OF("credential") " k ON true"                                     \
	" LEFT JOIN LATERAL " VAULT_ROW_OF("schedule") " s ON true"
#define VAULT_CONNECTIONS_OF                                                                                  \
	VAULT_CONNECTION_COLUMNS("$1")                                                                         \
	"FROM unnest($2::smallint[], $3::uuid[], $4::text[]) AS t (slot, connection_id, application_id)"      \
	VAULT_CONNECTIONS_FROM
/* First in a transaction: by key means by the index, also where the plan is made while the table fits a page and used ever after. */
void vault_by_index(struct pgtx *t);
struct vault_rows_call {
	store_connections_fn *fn;
	void *arg;
};
void vault_on_rows(void *arg, const struct pgtx_result *r); /* of the last statement; frees its vault_rows_call */
struct pgargs *vault_ids_args(const struct store_conn_id *v, size_t n, bool sealed);
extern const struct pgstmt vault_connections_of;

#endif
