/*
 * vault_webhook - the statements behind `refreshctl webhook`, and the unpacking of their rows.
 *
 * What the API does as well is the same statement (store_webhook_sql.h). Must not: open a sealed secret, wait
 * for a delivery, or touch what stands in the configuration.
 */
#include "service/vault_webhook.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/event.h"
#include "service/store_webhook.h"
#include "service/store_webhook_sql.h"
#include "service/vault.h"
#include "service/webhook_rules.h"

/* ---------------------------------------------------------------- statements */

#define HOW                                                                                                  \
	"w.endpoint_id IS NOT NULL, w.failing_since, w.last_success_at, w.last_failure_at,"                  \
	" w.disabled_at, coalesce(w.disabled_reason, ''),"                                                   \
	" (SELECT count(*) FROM refreshd.delivery d WHERE d.endpoint_id = w.endpoint_id AND d.done_at IS "   \
	"NULL)"
enum { H_KNOWN, H_FAILING, H_SUCCESS, H_FAILURE, H_DISABLED, H_REASON, H_WAITING, H_COLUMNS };

/* A configured endpoint has deliveries before it has a row. */
static const struct pgstmt SQL_ENDPOINT = {
	"vault_endpoint",
	"SELECT " HOW
	", (SELECT count(*) FROM refreshd.delivery d WHERE d.endpoint_id = $1 AND d.done_at IS NULL)"
	" FROM (SELECT 1) one LEFT JOIN refreshd.webhook_endpoint w ON w.endpoint_id = $1",
};
static const struct pgstmt SQL_HOOKS = {
	"vault_hooks",
	"SELECT " HOW ", w.endpoint_id, w.application_id, w.url, w.description,"
	" array_to_string(w.events, ' '), w.created_at FROM refreshd.webhook_endpoint w"
	" WHERE w.application_id IS NOT NULL AND ($1::text IS NULL OR w.endpoint_id = $1)"
	" ORDER BY w.application_id, w.created_at, w.endpoint_id",
};
static const struct pgstmt SQL_ENABLE = {
	"vault_endpoint_enable",
	"UPDATE refreshd.webhook_endpoint w SET disabled_at = NULL, disabled_reason = NULL,"
	" failing_since = NULL,"
	" updated_at = CASE WHEN w.application_id IS NOT NULL THEN " STORE_HOOK_SQL_LATER " END"
	" WHERE w.endpoint_id = $1 AND w.disabled_at IS NOT NULL",
};
static const struct pgstmt SQL_TEST = {
	"vault_endpoint_test",
	"INSERT INTO refreshd.event (event_id, application_id, event_type, entity_id, entity_type, entity,"
	" occurred_at) VALUES ($1, $2, $3, $4, '" STORE_ENTITY_ENDPOINT "', $5, now())",
};
static const struct pgstmt SQL_DELIVERY = {
	"vault_delivery",
	"SELECT e.fanned_out_at IS NOT NULL, d.event_id IS NOT NULL, d.done_at IS NOT NULL,"
	" coalesce(d.delivered, false), coalesce(d.attempt, 0), coalesce(d.last_status, 0),"
	" coalesce(d.last_error, '') FROM refreshd.event e"
	" LEFT JOIN refreshd.delivery d ON d.event_id = e.event_id AND d.endpoint_id = $2"
	" WHERE e.event_id = $1",
};
static const struct pgstmt SQL_ADDING = { "vault_hook_adding", STORE_HOOK_SQL_ADDING };
static const struct pgstmt SQL_ADD = {
	"vault_hook_add",
	STORE_HOOK_SQL_INSERT " SELECT count(*) FROM w",
};
static const struct pgstmt SQL_REMOVE = {
	"vault_hook_remove",
	STORE_HOOK_SQL_DELETE,
};

/* ---------------------------------------------------------------- helpers */

/* The one number that a statement returns. */
static int run_count(struct pgsync *pg, const struct pgstmt *s, struct pgargs *a, int64_t *n, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, s, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	*n = pgresult_int(&r, 0, 0);
	pgsync_clear(&r);
	return 0;
}

static void unpack_how(const struct pgresult *r, int i, struct vault_endpoint *out)
{
	*out = (struct vault_endpoint){
		.known = pgresult_bool(r, i, H_KNOWN),
		.failing_since = pgresult_time_or_0(r, i, H_FAILING),
		.last_success_at = pgresult_time_or_0(r, i, H_SUCCESS),
		.last_failure_at = pgresult_time_or_0(r, i, H_FAILURE),
		.disabled_at = pgresult_time_or_0(r, i, H_DISABLED),
		.waiting = pgresult_int(r, i, H_WAITING),
	};
	(void)snprintf(
		out->disabled_reason, sizeof out->disabled_reason, "%s", pgresult_text(r, i, H_REASON, NULL));
}

/* ---------------------------------------------------------------- any endpoint */

int vault_endpoint(struct pgsync *pg, const char *endpoint_id, struct vault_endpoint *out, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_text(a, endpoint_id);
	int rc = pgsync_query(pg, &SQL_ENDPOINT, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	unpack_how(&r, 0, out);
	out->waiting = pgresult_int(&r, 0, H_COLUMNS);
	pgsync_clear(&r);
	return 0;
}

int vault_endpoint_enable(struct pgsync *pg, const char *endpoint_id, bool *was_disabled, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	int64_t rows = 0;
	pgargs_text(a, endpoint_id);
	int rc = vault_run(pg, &SQL_ENABLE, a, &rows, f);
	if (rc == 0)
		*was_disabled = rows == 1;
	return rc;
}

int vault_endpoint_test(struct pgsync *pg, const char *endpoint_id, const char *application,
	const char *entity, uint8_t event_id[16], struct fault *f)
{
	uint8_t id[16];
	struct pgargs *a = pgargs_new();
	sys_uuid7(id);
	pgargs_uuid(a, id);
	pgargs_text(a, application);
	pgargs_text(a, event_type_word(EVENT_TEST));
	pgargs_text(a, endpoint_id);
	pgargs_text(a, entity);
	int rc = vault_run(pg, &SQL_TEST, a, NULL, f);
	if (rc == 0)
		memcpy(event_id, id, sizeof id);
	return rc;
}

int vault_delivery(struct pgsync *pg, const uint8_t event_id[16], const char *endpoint_id,
	struct vault_delivery *out, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_uuid(a, event_id);
	pgargs_text(a, endpoint_id);
	int rc = pgsync_query(pg, &SQL_DELIVERY, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	if (pgresult_rows(&r) == 0) {
		pgsync_clear(&r);
		return fault_set(f, ST_NOT_FOUND, "the event is not there any more");
	}
	*out = (struct vault_delivery){
		.fanned_out = pgresult_bool(&r, 0, 0),
		.exists = pgresult_bool(&r, 0, 1),
		.done = pgresult_bool(&r, 0, 2),
		.delivered = pgresult_bool(&r, 0, 3),
		.attempt = pgresult_int(&r, 0, 4),
		.status = pgresult_int(&r, 0, 5),
	};
	(void)snprintf(out->error, sizeof out->error, "%s", pgresult_text(&r, 0, 6, NULL));
	pgsync_clear(&r);
	return 0;
}

/* ---------------------------------------------------------------- endpoints of the API */

int vault_hooks(struct pgsync *pg, const char *endpoint_id, vault_hook_fn *fn, void *arg, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_text(a, endpoint_id);
	int rc = pgsync_query(pg, &SQL_HOOKS, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; rc == 0 && i < pgresult_rows(&r); i++) {
		struct vault_hook h = {
			.endpoint_id = pgresult_text(&r, i, H_COLUMNS, NULL),
			.application_id = pgresult_text(&r, i, H_COLUMNS + 1, NULL),
			.url = pgresult_text(&r, i, H_COLUMNS + 2, NULL),
			.description = pgresult_text(&r, i, H_COLUMNS + 3, NULL),
			.events = pgresult_text(&r, i, H_COLUMNS + 4, NULL),
			.created_at = pgresult_time(&r, i, H_COLUMNS + 5),
		};
		unpack_how(&r, i, &h.how);
		rc = fn(arg, &h);
	}
	pgsync_clear(&r);
	return rc;
}

/* In one transaction with the lock. */
static int add_locked(struct pgsync *pg, const char *application_id, struct pgargs *a, int64_t *n, struct fault *f)
{
	struct pgargs *adding = pgargs_new();
	int64_t ignored;
	pgargs_text(adding, application_id);
	int rc = run_count(pg, &SQL_ADDING, adding, &ignored, f);
	if (rc != 0) {
		pgargs_free(a);
		return rc;
	}
	return run_count(pg, &SQL_ADD, a, n, f);
}

static int add_alone(struct pgsync *pg, const char *application_id, struct pgargs *a, int64_t *n, struct fault *f)
{
	int rc = pgsync_exec(pg, "BEGIN", f);
	if (rc != 0) {
		pgargs_free(a);
		return rc;
	}
	rc = add_locked(pg, application_id, a, n, f);
	if (rc == 0)
		return pgsync_exec(pg, "COMMIT", f);
	struct fault ignored; /* the first one is told */
	(void)!pgsync_exec(pg, "ROLLBACK", &ignored);
	return rc;
}

int vault_hook_add(struct pgsync *pg, const struct vault_hook_new *h, struct fault *f)
{
	bool exists = false;
	int64_t n = 0;
	int rc = vault_app_exists(pg, h->application_id, &exists, f);
	if (rc != 0)
		return rc;
	if (!exists)
		return fault_set(f, ST_NOT_FOUND,
			"there is no application '%.80s': refreshctl app add makes it", h->application_id);
	struct pgargs *a = pgargs_new();
	pgargs_text(a, h->endpoint_id);
	pgargs_text(a, h->application_id);
	pgargs_text(a, h->url);
	pgargs_text(a, h->unified_api);
	pgargs_text(a, h->description);
	pgargs_text(a, h->events);
	pgargs_text(a, h->public_key);
	pgargs_bytes(a, h->secret->data, h->secret->len);
	pgargs_i64(a, WEBHOOK_ENDPOINTS_MAX);
	rc = add_alone(pg, h->application_id, a, &n, f);
	if (rc == 0 && n == 0)
		return fault_set(f, ST_FULL,
			"the application has %u webhook endpoints already, which is the most",
			WEBHOOK_ENDPOINTS_MAX);
	return rc;
}

int vault_hook_remove(struct pgsync *pg, const char *application_id, const char *endpoint_id, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	int64_t n = 0;
	pgargs_text(a, application_id);
	pgargs_text(a, endpoint_id);
	int rc = run_count(pg, &SQL_REMOVE, a, &n, f);
	if (rc == 0 && n == 0)
		return fault_set(f, ST_NOT_FOUND, "someone else removed the endpoint meanwhile");
	return rc;
}
