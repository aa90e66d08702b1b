/*
 * vault - applications, API keys and connections as an operator sees them, over one blocking connection.
 *
 * The daemon never calls this; refreshctl does. Callbacks get borrowed values and may stop by a negative
 * return, which is handed on. Nothing here opens a sealed value.
 */
#ifndef REFRESHD_SERVICE_VAULT_H
#define REFRESHD_SERVICE_VAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "io/pgsync.h"
#include "model/connection.h"

/* ---- applications ---- */
int vault_app_check(const char *name, struct fault *f) MUST_USE;			       /* fit for an application id? */
int vault_app_add(struct pgsync *pg, const char *name, bool *added, struct fault *f) MUST_USE; /* false: it was there */
int vault_app_exists(struct pgsync *pg, const char *name, bool *exists, struct fault *f) MUST_USE;
struct vault_app {
	const char *name;
	int64_t created_at, keys, connections;
};
typedef int vault_app_fn(void *arg, const struct vault_app *a);
int vault_app_list(struct pgsync *pg, vault_app_fn *fn, void *arg, struct fault *f) MUST_USE;

/* ---- API keys: "rfd_" + base64url of 32 random bytes + base64url of a CRC-32C over that text ---- */
#define VAULT_KEY_CHARS 53
#define VAULT_SCOPE_LIST(X) X("connections:write") X("connections:read") X("credentials:read") X("webhooks:write")
bool vault_scope_known(const char *scope);
void vault_key_new(struct buf *out);		      /* appends to a secret buffer */
bool vault_key_plausible(const char *key, size_t n);  /* form and checksum: a typing mistake needs no database */
void vault_key_hash(const char *key, size_t n, uint8_t out[32]);
/* ST_NOT_FOUND: no such application. `key_id` gets the name by which the key is revoked. */
#define VAULT_KEY_ID_BYTES 20
int vault_key_add(struct pgsync *pg, const char *app, const uint8_t hash[32], const char *const *scopes, size_t n,
	char key_id[VAULT_KEY_ID_BYTES], struct fault *f) MUST_USE;
struct vault_key {
	const char *key_id, *application_id, *scopes; /* scopes: separated by blanks */
	int64_t created_at, revoked_at;		      /* 0: not revoked */
};
typedef int vault_key_fn(void *arg, const struct vault_key *k);
int vault_key_list(struct pgsync *pg, const char *app_or_null, vault_key_fn *fn, void *arg, struct fault *f) MUST_USE;
int vault_key_revoke(struct pgsync *pg, const char *key_id, bool *was_live, struct fault *f) MUST_USE; /* ST_NOT_FOUND */

/* ---- connections ---- */
struct vault_connection { /* 0: no such time; INT64_MAX: never */
	uint8_t id[16];
	const char *application_id, *consumer_id, *unified_api, *service_id, *auth_type;
	bool enabled;
	const char *state, *health, *reason;
	int64_t failures, first_failed_at, last_failed_at, created_at, updated_at;
	const char *metadata, *settings_public; /* JSON; not NUL-terminated beyond libpq's own NUL */
	bool has_settings;
	int64_t token_version, issued_at, expires_at, refresh_issued_at, refresh_expires_at, refreshed_at, refreshes;
	const char *token_type, *scope; /* NULL: unknown */
	bool has_access_token, has_refresh_token, has_captured;
	int64_t due_at, attempt_id, doubts, lease_until;
	bool leased; /* a request is out, as far as the lease tells */
	int64_t orphans;
};
typedef int vault_connection_fn(void *arg, const struct vault_connection *c);
struct vault_filter {
	const char *state, *health, *application_id; /* NULL: all */
	int64_t limit;				     /* 0: no limit */
	bool in_doubt;				     /* only those whose token was presented without an answer, and those that were lost by it */
};
/* In the order of application, consumer, unified API, service. *more: the limit cut it. */
int vault_list(struct pgsync *pg, const struct vault_filter *w, vault_connection_fn *fn, void *arg, bool *more, struct fault *f) MUST_USE;
int vault_show(struct pgsync *pg, const uint8_t id[16], vault_connection_fn *fn, void *arg, struct fault *f) MUST_USE; /* ST_NOT_FOUND */

/* The access token, still sealed, for the one who may open it. Copies into `sealed`. ST_NOT_FOUND. */
struct vault_token {
	bool enabled;
	char state[16], health[20], reason[24], auth_type[12], token_type[32];
	int64_t token_version, expires_at;
	struct buf sealed; /* empty: there is none; buf_fini by the caller */
};
int vault_token(struct pgsync *pg, const uint8_t id[16], struct vault_token *out, struct fault *f) MUST_USE;

/* ---- helpers of the vault's files ---- */
/* A statement that returns nothing of interest; *rows: how many it touched, may be NULL. */
int vault_run(struct pgsync *pg, const struct pgstmt *s, struct pgargs *a, int64_t *rows, struct fault *f) MUST_USE;
void vault_add_id(struct pgargs *a, const uint8_t id[16]);	       /* slot and id */

#endif
