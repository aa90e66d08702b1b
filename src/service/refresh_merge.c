/*
 * refresh_merge - a token whose fence was lost: is it the live one?
 *
 * The database keeps it as an orphan already, and the journal's record stays open until this is over, so nothing can be lost
 * here. What is provable is in docs/design.md "Fence": the row still holds the very token that was presented for this one - by its
 * version, or, when an import brought the old token back, by its fingerprint. Anything else is an operator's to decide. Must not
 * believe memory: the row is read, and what is written is fenced by what was read.
 */
#include "service/refresh_priv.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"

#define READ_AGAIN_US (US_PER_S)

static const char *const fate_words[] = { "merged", "superseded", "kept" };
enum fate { FATE_MERGED, FATE_SUPERSEDED, FATE_KEPT };

void merge_count_fates(void)
{
	for (size_t i = 0; i < sizeof fate_words / sizeof *fate_words; i++)
		(void)metrics_get(M_ORPHANED, fate_words[i], NULL);
}

static void over(struct attempt *a, enum fate fate, const char *why)
{
	metrics_inc(M_ORPHANED, fate_words[fate], NULL);
	if (fate == FATE_KEPT)
		log_error("refresh.orphaned", K_ID(a->id), K_PROVIDER(a->facts.service_id), K_TEXT("why", why),
			K_TEXT("hint", "refreshctl orphans list"));
	else
		log_notice("refresh.merged", K_ID(a->id), K_PROVIDER(a->facts.service_id), K_WORD("fate", fate_words[fate]), K_TEXT("why", why));
	attempt_finish(a);
}

/* ---------------------------------------------------------------- what the row says */

static void read_row(struct attempt *a);

static void read_again(void *arg)
{
	read_row(arg);
}

static void later(struct attempt *a)
{
	if (a->again == NULL)
		a->again = loop_timer_new(a->owner->loop, read_again, a);
	loop_timer_after(a->again, READ_AGAIN_US);
}

static void on_closed(void *arg, int code, enum pg_class class, const enum store_verdict *v, size_t n)
{
	struct attempt *a = arg;
	(void)v, (void)n;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	if (code != 0 && !persist_is_bug(a->owner, class))
		later(a);
	else
		over(a, FATE_SUPERSEDED, "it brought no refresh token that the connection does not have");
}

/* Is there anything in it that the row lacks? An answer without a new refresh token used nothing up. */
static bool brings_nothing(const struct attempt *a, const struct grant_result *g)
{
	const struct buf *stored = &a->facts.refresh_token;
	return g->refresh_token.len == 0 || reply_presented(&a->reply, &g->refresh_token) ||
	       buf_equals(stored, g->refresh_token.data, g->refresh_token.len);
}

static void decide(struct attempt *a, bool same_version, const struct grant_result *g)
{
	if (same_version || reply_presented(&a->reply, &a->facts.refresh_token)) {
		settle_record_fini(&a->record);
		settle_record_init(&a->record);
		int e = settle_merge(&a->facts, a->conf, a->provider, g, a->reply.start_wall_us, sys_wall_us(), &a->record);
		if (e != 0) {
			over(a, FATE_KEPT, "it cannot be sealed");
			return;
		}
		a->merging = true;
		attempt_set_state(a, AT_SETTLING);
		queue_push(&a->owner->settling, a);
		persist_kick(a->owner);
	} else if (!brings_nothing(a, g)) {
		over(a, FATE_KEPT, "the connection has another token than the one that it was exchanged for");
	} else if (store_close_orphan(a->owner->store, a->id, a->attempt_id, fate_words[FATE_SUPERSEDED], on_closed, a) != 0) {
		later(a);
	}
}

static void on_row(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n)
{
	struct attempt *a = arg;
	struct fault f = { 0 };
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	if (code != 0 && !persist_is_bug(a->owner, class)) {
		later(a);
		return;
	}
	if (code == 0 && n == 0) { /* deleted, and its orphans with it: that was asked for */
		attempt_finish(a);
		return;
	}
	struct settle_facts now;
	if (code != 0 || settle_facts_init(&now, a->conf->keyring, &v[0], &f) != 0) {
		over(a, FATE_KEPT, code != 0 ? "its row cannot be read" : f.text);
		return;
	}
	settle_facts_fini(&a->facts);
	a->facts = now;
	struct grant_result g;
	attempt_classify(a, &g);
	decide(a, v[0].token_version == a->reply.token_version, &g);
	grant_result_fini(&g);
}

static void read_row(struct attempt *a)
{
	if (store_load(a->owner->store, a->id, on_row, a) != 0)
		later(a);
}

void attempt_merge(struct attempt *a)
{
	attempt_set_state(a, AT_MERGING);
	a->merging = false;
	read_row(a);
}

/* ---------------------------------------------------------------- what became of it */

void attempt_merged(struct attempt *a, enum store_verdict verdict)
{
	if (verdict == STORE_LOST) { /* changed since it was read */
		attempt_merge(a);
		return;
	}
	const struct store_result *x = &a->record.result;
	if (verdict == STORE_STALE)
		a->record.result.due_at = sys_wall_us();
	else if (x->event != EVENT_NONE && a->owner->ev.outbox != NULL)
		a->owner->ev.outbox(a->owner->ev.arg);
	over(a, FATE_MERGED, "the connection still had the token that it was exchanged for");
}

void attempt_unmergeable(struct attempt *a)
{
	over(a, FATE_KEPT, "it cannot be written");
}
