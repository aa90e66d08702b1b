/*
 * vault_webhook - webhook endpoints as an operator sees them: those of the configuration and those of the
 * API.
 *
 * Ids: "config:<name>" for the configuration, a UUID text for the API.
 */
#ifndef REFRESHD_SERVICE_VAULT_WEBHOOK_H
#define REFRESHD_SERVICE_VAULT_WEBHOOK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "io/pgsync.h"

struct vault_endpoint { /* how it does; 0: no such time */
	bool known;     /* there is a row: of a configured one only after something was sent */
	int64_t failing_since, last_success_at, last_failure_at, disabled_at, waiting;
	char disabled_reason[64];
};
int vault_endpoint(
	struct pgsync *pg, const char *endpoint_id, struct vault_endpoint *out, struct fault *f) MUST_USE;
/* Clears why and since when, if it was off. */
int vault_endpoint_enable(
	struct pgsync *pg, const char *endpoint_id, bool *was_disabled, struct fault *f) MUST_USE;
/* An event for this endpoint alone. */
int vault_endpoint_test(struct pgsync *pg, const char *endpoint_id, const char *application,
	const char *entity, uint8_t event_id[16], struct fault *f) MUST_USE;
struct vault_delivery {
	bool fanned_out, exists, done, delivered;
	int64_t attempt, status; /* status 0: no answer */
	char error[64];
};
int vault_delivery(struct pgsync *pg, const uint8_t event_id[16], const char *endpoint_id,
	struct vault_delivery *out, struct fault *f) MUST_USE;

/* ---- endpoints of the API ---- */
struct vault_hook { /* borrowed */
	const char *endpoint_id, *application_id, *url, *description;
	const char *events; /* patterns, separated by blanks */
	int64_t created_at;
	struct vault_endpoint how;
};
typedef int vault_hook_fn(void *arg, const struct vault_hook *h);
/* In the order of application and age; `endpoint_id`: that one alone, NULL: all. */
int vault_hooks(
	struct pgsync *pg, const char *endpoint_id, vault_hook_fn *fn, void *arg, struct fault *f) MUST_USE;

struct vault_hook_new {
	const char *endpoint_id, *application_id, *url, *unified_api, *description, *events, *public_key;
	const struct buf *secret; /* sealed */
};
/* ST_NOT_FOUND: no such application; ST_FULL: it has WEBHOOK_ENDPOINTS_MAX already. */
int vault_hook_add(struct pgsync *pg, const struct vault_hook_new *h, struct fault *f) MUST_USE;
/* With what waits for it. ST_NOT_FOUND. */
int vault_hook_remove(
	struct pgsync *pg, const char *application_id, const char *endpoint_id, struct fault *f) MUST_USE;

#endif
