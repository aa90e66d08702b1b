/*
 * webhook_upkeep - what is done now and then beside the deliveries: who is switched off, the backlog, old
 * events.
 *
 * All of it is asked for by a poll and none of it is urgent: after a failure the next poll asks again. Which
 * endpoints are off is decided in the database; here it is noticed, said aloud, and spares claims.
 */
#include "service/webhook_priv.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"

#define PURGE_BATCH 500
#define LIST_EVERY_US (60 * US_PER_S)
#define COUNT_EVERY_US (15 * US_PER_S)
#define PURGE_EVERY_US (3600 * US_PER_S)
#define KEEP_US (30 * INT64_C(86400) * US_PER_S)

static bool is_listed(const char *const *ids, size_t n, const char *id)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(ids[i], id) == 0)
			return true;
	}
	return false;
}

static void say_disabled(const struct target *t)
{
	if (t->of_api)
		log_warning("webhook.disabled", K_WORD("endpoint", t->name),
			K_TEXT("hint",
				"nothing more is sent to it until it is enabled again; its owner is told"
				" why by GET /webhook/webhooks/{id}"));
	else
		log_error("webhook.disabled", K_WORD("endpoint", t->name),
			K_TEXT("hint", "it answered 410 or failed for five days; nothing more is sent"
				       " to it until refreshctl webhook enable"));
}

static void on_listed(void *arg, int code, const char *const *ids, size_t n)
{
	struct webhook *w = arg;
	w->listing = false;
	if (!webhook_call_ended(w, code, "disabled"))
		return;
	w->next_list_us = sys_mono_us() + LIST_EVERY_US;
	for (struct target *t = w->targets; t != NULL; t = t->next) {
		bool off = is_listed(ids, n, t->id);
		if (off == t->disabled)
			continue;
		t->disabled = off;
		if (off) {
			say_disabled(t);
			continue;
		}
		log_notice("webhook.enabled", K_WORD("endpoint", t->name));
		t->failures = 0;
		w->want_claim = true;
	}
}

void webhook_list_disabled(struct webhook *w)
{
	w->want_list = false;
	w->next_list_us = 0;
	w->listing = webhook_call_started(w, store_disabled_endpoints(w->store, on_listed, w), "disabled");
}

static void on_counted(void *arg, int code, size_t n)
{
	struct webhook *w = arg;
	w->counting = false;
	if (webhook_call_ended(w, code, "backlog"))
		metrics_set(M_WEBHOOK_BACKLOG, NULL, NULL, (double)n);
}

void webhook_count_backlog(struct webhook *w)
{
	const char **ids = mem_calloc(targets_count(w) + 1, sizeof *ids);
	size_t n = 0;
	for (const struct target *t = w->targets; t != NULL; t = t->next) {
		if (t->endpoint != NULL)
			ids[n++] = t->id;
	}
	w->want_count = false;
	w->next_count_us = sys_mono_us() + COUNT_EVERY_US;
	w->counting =
		webhook_call_started(w, store_webhook_backlog(w->store, ids, n, on_counted, w), "backlog");
	mem_free(ids);
}

static void on_purged(void *arg, int code, size_t n)
{
	struct webhook *w = arg;
	w->purging = false;
	if (!webhook_call_ended(w, code, "purge"))
		return;
	if (n > 0)
		log_debug("webhook.purged", K_COUNT(n));
	/* The rest goes with the next poll: other statements in between. */
	if (n >= PURGE_BATCH)
		w->next_purge_us = 0;
}

void webhook_purge(struct webhook *w)
{
	w->want_purge = false;
	w->next_purge_us = sys_mono_us() + PURGE_EVERY_US;
	int e = store_purge_events(w->store, sys_wall_us() - KEEP_US, PURGE_BATCH, on_purged, w);
	w->purging = webhook_call_started(w, e, "purge");
}
