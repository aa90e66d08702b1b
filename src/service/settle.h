/*
 * settle - from an outcome to what is written: next state, next due time, sealed tokens, the event.
 *
 * The decisions of docs/design.md "After the answer" in one place, as functions of facts, configuration and the
 * clock; no I/O, so that every branch can be tested in virtual time.
 */
#ifndef REFRESHD_SERVICE_SETTLE_H
#define REFRESHD_SERVICE_SETTLE_H

#include "model/conf.h"
#include "model/grant.h"
#include "service/store_refresh.h"

/* What is known about one connection while it is in our hands: an owned copy of the claimed row, opened. */
struct settle_facts {
	uint8_t id[16];
	int64_t attempt_id, token_version, due_at;
	int doubts;
	char *text; /* one block for the names and the scope */
	const char *application_id, *consumer_id, *unified_api, *service_id;
	enum auth_type auth_type;
	bool enabled;
	enum conn_state state;
	enum conn_health health;
	enum reason reason;
	int failures;
	int64_t created_at, updated_at, first_failed_at, last_failed_at;
	int64_t issued_at, expires_at, refresh_issued_at, refresh_expires_at;
	const char *scope; /* NULL: not known */
	bool opened; /* what was sealed is here: the next line and the captured fields */
	struct buf refresh_token; /* secret, plain; empty: none */
	struct json_object *settings, *captured, *metadata; /* NULL: none */
};

/* Copies and opens. ST_NO_KEY or ST_CRYPTO: the sealed text cannot be opened; the fault says which. */
int settle_facts_init(struct settle_facts *x, struct keyring *k, const struct store_claimed *c, struct fault *f) MUST_USE;
/* The same without what is sealed: for a row whose sealed part cannot be opened. */
void settle_facts_plain(struct settle_facts *x, const struct store_claimed *c);
void settle_facts_fini(struct settle_facts *x);

/* What is to be persisted; owns what store_result points to. */
struct settle_record {
	struct store_result result;
	struct buf access_token, refresh_token, previous_refresh_token, captured, raw_reply; /* sealed */
	struct buf entity, entity_id;
	char token_type[32];
	char *scope;
};
void settle_record_init(struct settle_record *r);
void settle_record_fini(struct settle_record *r);

/* Is the refresh token what the next request presents? Not where the grant knows none, and not where it was refused and the grant can
 * do without. `p` not NULL. */
bool settle_uses_refresh_token(const struct settle_facts *x, const struct provider *p);

/* An answer (or its absence). `started_at`: wall time the request was sent. `raw`: the body of a reply that could not be
 * read, kept sealed; NULL otherwise. ST_CRYPTO or ST_FULL when sealing fails (a bug or a broken library: nothing is lost, the
 * journal still has the reply). */
int settle_answer(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g, int64_t started_at,
	const struct buf *raw, int64_t now, struct settle_record *out) MUST_USE;

/* An answer whose fence was lost, and whose token is known to be the newer one: like settle_answer, from the row `x` as it is now. */
int settle_merge(const struct settle_facts *x, const struct conf *c, const struct provider *p, const struct grant_result *g, int64_t started_at,
	int64_t now, struct settle_record *out) MUST_USE;

/* What can be said without sending. */
enum settle_verdict {
	SETTLE_SEND,	/* go on */
	SETTLE_RECORD,	/* `out` is to be persisted instead */
	SETTLE_RELEASE, /* give the claim back with *due_at (0: unchanged) */
};
/* Checks before a send: enabled, oauth2, a provider and a client, a refresh token where the grant needs one. */
enum settle_verdict settle_before_send(const struct settle_facts *x, const struct provider *p, const struct client *c, int64_t now,
	struct settle_record *out, int64_t *due_at);
/* What is sealed cannot be opened (a key is missing from the keyring, or the bytes were damaged): failing, not dead, until the retry
 * window is over. */
int settle_unsealable(const struct settle_facts *x, const struct conf *c, const struct provider *p, int64_t now, struct settle_record *out) MUST_USE;
/* The request could not be built because a setting is missing. */
void settle_missing_settings(const struct settle_facts *x, const struct provider *p, int64_t now, struct settle_record *out);

#endif
