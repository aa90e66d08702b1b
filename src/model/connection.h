/*
 * connection - one customer's connection: its identity, its states, and the table of what may happen to it.
 *
 * State and health are Apideck Vault's words, so that its clients understand them. Nothing but
 * connection_apply decides a new state; everything that happens to a connection is one of the events below
 * and the table says what follows and which webhook goes out. Pure.
 */
#ifndef REFRESHD_MODEL_CONNECTION_H
#define REFRESHD_MODEL_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/event.h"

#define CONN_STATE_LIST(X) \
	X(CONN_AVAILABLE, "available") X(CONN_ADDED, "added") X(CONN_AUTHORIZED, "authorized") X(CONN_CALLABLE, "callable") X(CONN_INVALID, "invalid")
#define CONN_HEALTH_LIST(X)                                                                        \
	X(HEALTH_OK, "ok") X(HEALTH_PENDING, "pending_refresh") X(HEALTH_NEEDS_AUTH, "needs_auth") \
	X(HEALTH_MISSING_SETTINGS, "missing_settings") X(HEALTH_REVOKED, "revoked")
#define AUTH_TYPE_LIST(X) \
	X(AUTH_OAUTH2, "oauth2") X(AUTH_API_KEY, "apiKey") X(AUTH_BASIC, "basic") X(AUTH_CUSTOM, "custom") X(AUTH_NONE, "none")

/* Why a connection is not well: the whole set, never a provider's words. */
#define REASON_LIST(X)                                                                                             \
	X(REASON_NONE, "none", "nothing is wrong")                                                                 \
	X(REASON_INVALID_GRANT, "invalid_grant", "the provider refused the refresh token")                         \
	X(REASON_NO_REFRESH_TOKEN, "no_refresh_token", "there is no refresh token to refresh with")                \
	X(REASON_ROTATION_LOST, "rotation_lost", "a rotated token never reached us and the old one is used up")    \
	X(REASON_RETRY_WINDOW_OVER, "retry_window_over", "refreshing failed for the whole retry window")           \
	X(REASON_CLIENT_REFUSED, "client_refused", "the provider refused our client or the request")               \
	X(REASON_RATE_LIMITED, "rate_limited", "the provider asked us to slow down")                               \
	X(REASON_PROVIDER_ERROR, "provider_error", "the provider answered with an error of its own")               \
	X(REASON_UNREACHABLE, "unreachable", "the provider could not be reached")                                  \
	X(REASON_NO_ANSWER, "no_answer", "the request was sent and no complete answer came")                       \
	X(REASON_BAD_REPLY, "bad_reply", "the answer could not be understood")                                     \
	X(REASON_MISSING_SETTINGS, "missing_settings", "a setting that the provider needs is missing")       \
	X(REASON_NO_CLIENT, "no_client", "no client is configured for this application and provider")              \
	X(REASON_SEALED, "sealed", "the stored token cannot be opened with the present keyring")                   \
	X(REASON_REVOKED, "revoked", "the connection was revoked by its owner")

enum conn_state {
#define X(id, word) id,
	CONN_STATE_LIST(X)
#undef X
};
enum conn_health {
#define X(id, word) id,
	CONN_HEALTH_LIST(X)
#undef X
};
enum auth_type {
#define X(id, word) id,
	AUTH_TYPE_LIST(X)
#undef X
};
enum reason {
#define X(id, word, text) id,
	REASON_LIST(X)
#undef X
};
const char *conn_state_word(enum conn_state s);
const char *conn_health_word(enum conn_health h);
const char *auth_type_word(enum auth_type t);
const char *reason_word(enum reason r);
const char *reason_text(enum reason r);
int conn_state_parse(const char *s, enum conn_state *out) MUST_USE; /* ST_NOT_FOUND */
int conn_health_parse(const char *s, enum conn_health *out) MUST_USE;
int auth_type_parse(const char *s, enum auth_type *out) MUST_USE;
int reason_parse(const char *s, enum reason *out) MUST_USE;

/* Identity. The id is derived from the four-part key, so that an upsert needs no look-up and two importers of
 * one key agree: the first 16 bytes of SHA-256 over the length-prefixed parts, marked as UUID version 8.
 * The slot (0..1023), by which work is shared and tables can be distributed, is its first ten bits. */
#define CONN_SLOTS 1024
struct conn_key {
	const char *application_id, *consumer_id, *unified_api, *service_id; /* borrowed */
};
void conn_id_of(const struct conn_key *k, uint8_t id[16]);
int16_t conn_slot_of(const uint8_t id[16]);
/* Application and consumer ids: 1..200 bytes of UTF-8 without control bytes; unified_api and service_id:
 * [a-z0-9][a-z0-9_-]{0,63}. The fault names the part. */
int conn_key_check(const struct conn_key *k, struct fault *f) MUST_USE;

/* What can happen to a connection as far as its tokens are concerned. */
#define CONN_EVENT_LIST(X)                                                                        \
	X(CE_IMPORTED, "imported")	   /* tokens came in from outside */                      \
	X(CE_REFRESHED, "refreshed")	   /* a refresh succeeded */                              \
	X(CE_FAILED, "failed")		   /* a refresh failed and may succeed later */           \
	X(CE_DEAD, "dead")		   /* the grant is dead, lost, or was retried for too long */ \
	X(CE_SETTINGS_MISSING, "settings_missing") /* the request cannot be built */              \
	X(CE_REVOKED, "revoked")	   /* its owner revoked it */                             \
	X(CE_ADDED, "added")		   /* it came in without tokens: they are to be fetched by its grant */ \
	X(CE_SETTINGS_FILLED, "settings_filled") /* what was missing is there now */
enum conn_event {
#define X(id, word) id,
	CONN_EVENT_LIST(X)
#undef X
};

struct conn_change {
	enum conn_state state;
	enum conn_health health;
	enum event_type event; /* EVENT_NONE: nothing to tell */
};

/* The table: (health, event) -> what follows. Total: every pair has an answer. The state adds three rules: nothing
 * but being added or tokens changes what is only AVAILABLE; what is ADDED never had tokens, so it stays so until there are some or its
 * grant is dead; and tokens or settings that make a connection callable that was not are told as EVENT_CALLABLE (a refresh only where
 * the row is silent). `lacks`: a required setting is missing after the event; what would be CALLABLE is AUTHORIZED then. */
struct conn_change connection_apply(enum conn_state state, enum conn_health health, enum conn_event ev, bool lacks);
/* The rows of the table, for the documentation check: NULL past the end. */
struct conn_rule {
	enum conn_health from;
	enum conn_event ev;
	struct conn_change to;
	const char *why;
};
const struct conn_rule *connection_rule(unsigned i);

#endif
