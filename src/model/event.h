/*
 * event - webhook bodies from an allow-list, and their signatures.
 *
 * A body is written field by field from struct event_entity, which has no room for a token, a setting or
 * a provider's words: what is not named here cannot leak. Bodies are compact with sorted keys, so that the raw
 * and the sorted-body reading of the old signature agree. Signatures: Standard Webhooks 1.0.0 (webhook-id,
 * webhook-timestamp, webhook-signature: v1 HMAC-SHA256, v1a Ed25519) and x-apideck-signature. Pure.
 */
#ifndef REFRESHD_MODEL_EVENT_H
#define REFRESHD_MODEL_EVENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/signer.h"
#include "base/status.h"

#define EVENT_LIST(X)                                                              \
	X(EVENT_NONE, "")                                                          \
	X(EVENT_CREATED, "vault.connection.created")                               \
	X(EVENT_UPDATED, "vault.connection.updated")                               \
	X(EVENT_DISABLED, "vault.connection.disabled")                             \
	X(EVENT_DELETED, "vault.connection.deleted")                               \
	X(EVENT_CALLABLE, "vault.connection.callable")                             \
	X(EVENT_REVOKED, "vault.connection.revoked")                               \
	X(EVENT_REFRESH_PENDING, "vault.connection.token_refresh.pending")         \
	X(EVENT_REFRESH_RECOVERED, "vault.connection.token_refresh.recovered")     \
	X(EVENT_REFRESH_FAILED, "vault.connection.token_refresh.failed")           \
	X(EVENT_PROVIDER_FAILING, "refreshd.provider.failing")                     \
	X(EVENT_PROVIDER_RECOVERED, "refreshd.provider.recovered")                 \
	X(EVENT_TEST, "refreshd.webhook.test")
enum event_type {
#define X(id, word) id,
	EVENT_LIST(X)
#undef X
	EVENT_TYPE_COUNT
};
const char *event_type_word(enum event_type t);
int event_type_parse(const char *s, enum event_type *out) MUST_USE; /* ST_NOT_FOUND; never gives EVENT_NONE */
/* Does one of the configured patterns ("*", "vault.connection.*", a full name) cover the type? */
bool event_type_matches(const char *const *patterns, size_t n, enum event_type t);

struct event_entity { /* all borrowed; NULL strings are written as "" */
	const char *application_id, *consumer_id, *unified_api, *service_id, *name, *website, *icon, *logo, *tag_line;
	const char *auth_type, *state, *health;
	bool enabled;
	int64_t created_at, updated_at, last_refresh_failed_at; /* wall us; 0: the last one is left out */
};

/* The `entity` object: compact, keys sorted. It is what the outbox stores. */
#define EVENT_ENTITY_MAX ((size_t)32 * 1024)
#define EVENT_ENTITY_ID_MAX 1024
int event_entity_build(const struct event_entity *e, struct buf *out) MUST_USE;
/* The entity of a provider-wide fault: provider, application, client's configured name only. */
int event_provider_entity_build(const char *provider, const char *name, const char *application_id, struct buf *out) MUST_USE;

struct event_body {
	const char *entity_json; /* from one of the builders above */
	const char *entity_id;	 /* "<application>+<consumer>", or the provider's key */
	const char *entity_type; /* "Connection" or "Provider" */
	const uint8_t *event_id; /* 16 bytes; the id of every retry */
	enum event_type type;
	const char *reason;	 /* a reason_word, or NULL: left out */
	int64_t attempts;	 /* failed refreshes in this cycle; 0: left out */
	int64_t occurred_at;	 /* wall us */
	int64_t execution_attempt; /* 1 for the first delivery */
};
/* {"payload":{...}} as in docs/webhooks.md; ST_FULL over 20 kB. */
int event_body_build(const struct event_body *b, struct buf *out) MUST_USE;

/* A webhook secret: "whsec_" + base64 of 24..64 bytes, or any other text of at least 16 bytes (then the bytes
 * themselves are the key). The old-style signature always uses the text as it stands. */
struct event_secret {
	struct buf text; /* secret */
	struct buf key;	 /* secret */
};
int event_secret_parse(const char *s, size_t n, struct event_secret *out, struct fault *f) MUST_USE;
void event_secret_fini(struct event_secret *s);
/* A new one: whsec_ + 32 random bytes. */
int event_secret_new(struct buf *out) MUST_USE;

/* "v1,<base64>" over id.timestamp.body, appended; several secrets give several, space-separated. */
int event_sign_standard(const struct event_secret *const *secrets, size_t n, struct signer *ed25519_or_null,
	const char *id, int64_t timestamp_s, const void *body, size_t body_len, struct buf *out) MUST_USE;
/* Lower-case hex HMAC-SHA256 of the body. */
int event_sign_apideck(const struct event_secret *s, const void *body, size_t body_len, struct buf *out) MUST_USE;

#endif
