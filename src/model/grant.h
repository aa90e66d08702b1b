/*
 * grant - build the refresh request; parse and classify the reply. Bytes in, a decision out.
 *
 * RFC 6749 section 5 and 6, and what providers really do: errors in a 200, form-encoded replies, numbers as text,
 * nested tokens, tokens next to an error of the transport. The whole point is the closed set of outcomes:
 * it decides whether a token may be presented again. Pure.
 */
#ifndef REFRESHD_MODEL_GRANT_H
#define REFRESHD_MODEL_GRANT_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "model/connection.h"
#include "model/provider.h"

struct grant_input { /* borrowed */
	const struct provider *provider;
	const struct client *client;
	const char *refresh_token; /* none: only a grant that needs none can be built */
	size_t refresh_token_len;
	const char *scope; /* granted earlier; NULL unknown */
	struct template_vars vars;
};

#define GRANT_MAX_HEADERS 24
struct grant_request {
	bool post;
	struct buf url; /* secret when the token travels in the query */
	bool url_is_constant; /* that of the provider, with nothing of the connection in it */
	struct buf body; /* secret */
	struct {
		const char *name; /* borrowed from the provider or a constant */
		struct buf value; /* secret */
	} headers[GRANT_MAX_HEADERS];
	size_t n_headers;
};

/* ST_NOT_FOUND: a value of the connection is missing or cannot be sent (the fault names it): no other connection is
 * affected. ST_INVALID, ST_CRYPTO, ST_FULL. A configured parameter
 * replaces the protocol's own of that name, an empty value is left out, and nothing is ever sent twice. Configured
 * headers may replace Accept and Content-Type; those of the transport and a second Authorization are ST_INVALID. */
int grant_build(const struct grant_input *in, struct grant_request *out, struct fault *f) MUST_USE;
void grant_request_fini(struct grant_request *r);

#define OUTCOME_LIST(X)                                                                                                    \
	X(OUTCOME_REFRESHED, "refreshed")	  /* a non-empty access token and no error member */                       \
	X(OUTCOME_GRANT_DEAD, "grant_dead")	  /* invalid_grant and its relatives: a person must log in again */        \
	X(OUTCOME_CLIENT_BROKEN, "client_broken") /* our client or request is refused: every connection is affected, none is dead */ \
	X(OUTCOME_RATE_LIMITED, "rate_limited")	  /* 429, slow_down */                                                     \
	X(OUTCOME_TRANSIENT, "transient")	  /* the provider has a fault of its own and did not use the token */      \
	X(OUTCOME_NEVER_SENT, "never_sent")	  /* nothing reached the provider */                                       \
	X(OUTCOME_IN_DOUBT, "in_doubt")		  /* sent, no complete answer: the token may be used up */                 \
	X(OUTCOME_MALFORMED, "malformed")	  /* a complete 2xx answer that we cannot read: also in doubt, and kept sealed */
enum outcome {
#define X(id, word) id,
	OUTCOME_LIST(X)
#undef X
	OUTCOME_COUNT
};
const char *outcome_word(enum outcome o);

struct grant_reply { /* borrowed */
	bool sent;	/* false: OUTCOME_NEVER_SENT whatever else */
	bool complete;	/* status and whole body are there */
	int status;
	const char *content_type; /* "" unknown */
	const char *retry_after;  /* "" absent */
	const void *body;
	size_t body_len;
	int64_t start_wall_us; /* expires_in counts from here (the conservative reading) */
	int64_t now_wall_us;
};

struct grant_result {
	enum outcome outcome;
	enum reason reason;
	char error[64];		  /* the provider's `error` code when it is one of the registered words or configured; else "" */
	struct buf access_token;  /* secret */
	struct buf refresh_token; /* secret; empty: keep the old one */
	struct buf scope;	  /* empty: unchanged */
	char token_type[32];	  /* as received, "" absent */
	int64_t expires_at_us;	  /* 0: the reply did not say */
	int64_t refresh_expires_at_us; /* 0: did not say */
	int64_t retry_after_us;	  /* from now; 0: did not say; clamped to an hour */
	struct json_object *captured; /* owned; NULL: nothing */
};

/* Never fails: what cannot be read is an outcome. An empty at_* list of the provider means the places of RFC 6749
 * (at_expires_at: nowhere); expires_in_unit also holds for the refresh token's lifetime. A 2xx whose JSON object is whole
 * and has an access token is REFRESHED even when it is not `complete`: the transport's complaint came after the last byte that counts. */
void grant_classify(const struct provider *p, const struct grant_reply *in, struct grant_result *out);
void grant_result_fini(struct grant_result *r);

/* `exp` of a JWT access token, unverified, for scheduling only. 0: not a JWT or no exp. Wall us. */
int64_t grant_jwt_exp(const char *token, size_t n);

#endif
