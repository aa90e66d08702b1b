/*
 * refresh_drain - the end: when nothing is in our hands any more, or nothing that would be lost with us.
 *
 * Nothing new is claimed by then; what is out is waited for, and so is the database as long as it can be written. Must not give up an
 * answer that the journal does not have: whoever called decides how long that may take.
 */
#include "service/refresh_priv.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"

#define DRAIN_LOOK_US (US_PER_S / 2)
#define DRAIN_PATIENCE_US (5 * US_PER_S)

static bool is_idle(const struct refresh *r)
{
	return r->drain_left || (r->in_hand == 0 && r->events == NULL);
}

void refresh_check_idle(struct refresh *r)
{
	if (replay_is_through(r))
		loop_defer(r->loop, &r->replayed_task);
	if (r->draining && is_idle(r))
		loop_defer(r->loop, &r->drained_task);
}

static void on_drained(void *arg)
{
	struct refresh *r = arg;
	if (r->draining && is_idle(r) && r->drained != NULL) {
		loop_fn *fn = r->drained;
		r->drained = NULL;
		fn(r->drained_arg);
	}
}

void refresh_drain(struct refresh *r, loop_fn *fn, void *arg)
{
	r->draining = true;
	r->drained = fn;
	r->drained_arg = arg;
	refresh_end_refused(r, INT64_MAX);
	persist_end_held(r);
	loop_timer_after(r->drain_look, DRAIN_LOOK_US);
	refresh_check_idle(r);
}

/* Is there nothing to it that memory alone knows? */
static bool is_safe(const struct attempt *a)
{
	switch (a->state) {
	case AT_CLAIMING: /* nothing is sent any more */
	case AT_RELEASING:
	case AT_REFUSED:
	case AT_DONE:
		return true;
	case AT_LOADING:
	case AT_SETTLING:
	case AT_PERSISTING:
	case AT_MERGING:
	case AT_HELD:
		return a->seq != 0;
	case AT_SENDING:
	case AT_JOURNALLING:
		break;
	}
	return false;
}

static bool all_safe(const struct refresh *r)
{
	for (unsigned b = 0; b < HAND_BUCKETS; b++) {
		for (const struct attempt *a = r->hand[b]; a != NULL; a = a->hash_next) {
			if (!is_safe(a))
				return false;
		}
	}
	return true;
}

/* Without a database, what the journal has is as well off there as here: the next start replays it. */
static void drain_look(void *arg)
{
	struct refresh *r = arg;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	int64_t now = sys_mono_us();
	if (store_writable(r->store))
		r->drain_away_us = 0;
	else if (r->drain_away_us == 0)
		r->drain_away_us = now;
	if (r->drain_away_us == 0 || now - r->drain_away_us < DRAIN_PATIENCE_US || !all_safe(r)) {
		loop_timer_after(r->drain_look, DRAIN_LOOK_US);
		return;
	}
	log_notice("refresh.left_in_journal", K_COUNT(journal_open_records(r->journal)));
	r->drain_left = true;
	refresh_check_idle(r);
}

void drain_init(struct refresh *r)
{
	loop_task_init(&r->drained_task, on_drained, r);
	r->drain_look = loop_timer_new(r->loop, drain_look, r);
}

void drain_fini(struct refresh *r)
{
	loop_timer_free(r->drain_look);
	loop_undefer(r->loop, &r->drained_task);
}
