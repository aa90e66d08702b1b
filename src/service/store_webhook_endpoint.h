/*
 * store_webhook_endpoint - the SQL of endpoints that were made through the API: made, read, changed, rotated,
 * forgotten, given events once more; and the log of their deliveries.
 *
 * Every statement but the load is bound to one application, in the statement itself. Keys are ciphertext
 * here. In callbacks `code` is 0, ST_AGAIN, ST_UNAVAILABLE (away, or not known whether it was done) or
 * ST_INVALID (a bug of ours); what is given is borrowed for the callback.
 */
#ifndef REFRESHD_SERVICE_STORE_WEBHOOK_ENDPOINT_H
#define REFRESHD_SERVICE_STORE_WEBHOOK_ENDPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "service/store.h"

/* Times are wall us, 0: none. */
struct store_hook {
	const char *endpoint_id; /* a UUID text */
	const char *application_id, *url, *unified_api, *description;
	const char *events;                   /* patterns, separated by blanks */
	const char *public_key;               /* whpk_... */
	const void *secret, *previous_secret; /* sealed; previous NULL: none */
	size_t secret_len, previous_secret_len;
	int64_t previous_until;
	int64_t created_at, updated_at, failing_since, last_success_at, last_failure_at, disabled_at;
	const char *disabled_reason; /* NULL: not disabled */
};
typedef void store_hooks_fn(void *arg, int code, const struct store_hook *v, size_t n);

/* All of every application, if they are not those of `mark` (0: none were known) or `force`; else `changed`
 * is false. */
typedef void store_hooks_load_fn(
	void *arg, int code, bool changed, int64_t mark, const struct store_hook *v, size_t n);
int store_hooks_load(struct store *s, int64_t mark, bool force, store_hooks_load_fn *fn, void *arg) MUST_USE;

/* Identity, words, events, public key and secret of `h` are used. The callback gets the row, or none: the
 * application has `limit` already. */
int store_hook_insert(
	struct store *s, const struct store_hook *h, unsigned limit, store_hooks_fn *fn, void *arg) MUST_USE;
int store_hook_get(struct store *s, const char *application_id, const char *endpoint_id, store_hooks_fn *fn,
	void *arg) MUST_USE;
/* Oldest first, beyond (after_created, after_id); 0 and "" for the first page. */
int store_hook_list(struct store *s, const char *application_id, int64_t after_created, const char *after_id,
	unsigned limit, store_hooks_fn *fn, void *arg) MUST_USE;

struct store_hook_change { /* NULL: keep */
	const char *url, *unified_api, *description, *events;
	const char *status; /* "enabled" clears why and since when; "disabled" */
};
/* The row as it is then, or none: there is none. */
int store_hook_update(struct store *s, const char *application_id, const char *endpoint_id,
	const struct store_hook_change *c, store_hooks_fn *fn, void *arg) MUST_USE;
/* The present secret becomes the previous one until `overlap_us` from now; 0: it ends at once. */
int store_hook_rotate(struct store *s, const char *application_id, const char *endpoint_id,
	const struct buf *secret, const char *public_key, int64_t overlap_us, store_hooks_fn *fn,
	void *arg) MUST_USE;
typedef void store_hook_count_fn(void *arg, int code, int64_t n);
/* With what waits for it. n: 1, or 0 when there was none. */
int store_hook_delete(struct store *s, const char *application_id, const char *endpoint_id,
	store_hook_count_fn *fn, void *arg) MUST_USE;

struct store_redeliver {
	const char *application_id, *endpoint_id;
	const uint8_t *event_id; /* 16 bytes; NULL: by time */
	int64_t from, to;        /* wall us, [from, to) */
	int64_t after;           /* exclusive start within the range, with: */
	uint8_t after_id[16];
	bool delivered_too; /* false: only what did not arrive, or never was to be sent because the endpoint
			       was off */
	unsigned limit;
};
struct store_redelivered {
	bool found, disabled; /* the endpoint; one that is off gets nothing */
	size_t n;             /* == limit: there may be more beyond these: */
	int64_t last;
	uint8_t last_id[16];
};
typedef void store_redeliver_fn(void *arg, int code, const struct store_redelivered *r);
/* Makes deliveries due anew, from their first try. What is under way is left alone. Oldest events first. */
int store_redeliver(
	struct store *s, const struct store_redeliver *q, store_redeliver_fn *fn, void *arg) MUST_USE;

struct store_delivery_logged {
	uint8_t event_id[16];
	const char *endpoint_id, *url, *event_type, *entity_id, *entity_type;
	int64_t occurred_at, due_at, done_at; /* done_at 0: waiting, due_at says for when */
	int attempt, status, duration_ms;
	const char *error; /* NULL: none */
	bool delivered;
};
struct store_delivery_log {
	const char *application_id;
	const char *endpoint_id; /* NULL: all */
	int64_t before;          /* exclusive start, newest first; INT64_MAX for the first page */
	uint8_t before_id[16];
	const char *before_endpoint;
	bool failed_only; /* not delivered, tried at least once */
	unsigned limit;
};
typedef void store_delivery_log_fn(void *arg, int code, const struct store_delivery_logged *v, size_t n);
int store_delivery_log(
	struct store *s, const struct store_delivery_log *q, store_delivery_log_fn *fn, void *arg) MUST_USE;

/* Do the patterns of endpoint `w` cover event `e`? As event_type_matches. For the statements of the outbox.
 */
#define STORE_HOOK_WANTS(w, e)                                                                               \
	"EXISTS (SELECT 1 FROM unnest(" w ".events) AS p (pattern) WHERE pattern IN ('*', " e ".event_type)" \
	" OR (pattern LIKE '%.*' AND starts_with(" e ".event_type, left(pattern, -1))))"

#endif
