/*
 * refresh_replay - answers that an earlier life of this process journalled and did not see committed.
 *
 * Each one goes the same way as a fresh answer: read the row, classify, decide, write under the attempt id and the
 * token version of its record. Whoever committed it already, or took the row over, is found out by the fence.
 */
#include "service/refresh_priv.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"

#define LOAD_RETRY_US (US_PER_S)
#define REPLAY_AT_ONCE REFRESH_BATCH

static void load(struct attempt *a);

/* The record stays in the journal for a start that can read it; until then nobody may claim the row, because its token was answered. */
static void keep_aside(struct attempt *a, const char *why)
{
	log_error("replay.kept", K_ID(a->id), K_TEXT("why", why), K_TEXT("hint", "mend that and restart: the reply is kept in the journal"));
	a->quarantine = true;
	attempt_settle(a);
}

static void answer_from_row(struct attempt *a, const struct store_claimed *row)
{
	struct fault f = { 0 };
	struct store_claimed c = *row;
	/* The fence of the record, not of the row; a row that moved on cannot be opened with the old version either way. */
	if (settle_facts_init(&a->facts, a->conf->keyring, &c, &f) != 0) {
		keep_aside(a, f.text);
		return;
	}
	a->opened = true;
	a->facts.attempt_id = a->reply.attempt_id;
	a->facts.token_version = a->reply.token_version;
	a->facts.updated_at = a->reply.settings_at;
	a->due_at = c.due_at;
	a->provider = conf_provider(a->conf, a->facts.service_id);
	a->client = a->provider != NULL ? conf_client(a->conf, a->facts.application_id, a->facts.service_id) : NULL;
	if (a->provider == NULL) {
		keep_aside(a, "its provider is not configured any more");
		return;
	}
	a->sent = true;
	attempt_answer(a);
}

static void on_loaded(void *arg, int code, enum pg_class class, const struct store_claimed *v, size_t n)
{
	struct attempt *a = arg;
	MAGIC_CHECK(a, ATTEMPT_MAGIC);
	/* Without schema or rights nothing can be read: that is not the row's fault. */
	if (code != 0 && (class != PG_CLASS_BUG || store_state(a->owner->store) != STORE_READY)) {
		loop_timer_after(a->again, LOAD_RETRY_US);
		return;
	}
	if (code != 0) {
		keep_aside(a, "its row cannot be read");
	} else if (n == 0) {
		log_notice("replay.connection_gone", K_ID(a->id));
		journal_done(a->owner->journal, a->seq);
		attempt_end(a, false);
	} else {
		answer_from_row(a, &v[0]);
	}
}

static void load_again(void *arg)
{
	load(arg);
}

static void load(struct attempt *a)
{
	if (store_load(a->owner->store, a->id, on_loaded, a) != 0)
		loop_timer_after(a->again, LOAD_RETRY_US);
}

static void begin_record(struct refresh *r, uint64_t seq, const struct reply *reply)
{
	struct attempt *a = attempt_new(r, reply->id);
	a->state = AT_LOADING;
	a->replayed = a->in_replay = true;
	a->has_reply = true;
	a->seq = seq;
	a->reply = *reply;
	a->attempt_id = reply->attempt_id;
	a->again = loop_timer_new(r->loop, load_again, a);
	load(a);
}

/* There is room for the next one. */
void replay_leave(struct attempt *a)
{
	struct refresh *r = a->owner;
	if (!a->in_replay)
		return;
	a->in_replay = false;
	r->replaying--;
	r->replayed_total++;
	if (r->replay_running)
		loop_defer(r->loop, &r->replay_task);
}

void replay_fini(struct refresh *r)
{
	loop_undefer(r->loop, &r->replay_task);
	buf_fini(&r->replay_record);
	reply_fini(&r->put_off.reply);
}

/* Whose it is stands in clear. */
static void keep_unreadable(struct refresh *r, uint64_t seq, const void *p, size_t n, int code)
{
	uint8_t id[16];
	int64_t attempt_id, version;
	log_error("replay.unreadable", K_UINT("record", seq), K_STATUS(code));
	if (reply_peek(p, n, id, &attempt_id, &version) != 0 || attempt_find(r, id) != NULL)
		return;
	struct attempt *a = attempt_new(r, id);
	a->state = AT_LOADING;
	a->replayed = a->in_replay = true;
	a->seq = seq;
	a->attempt_id = attempt_id;
	r->replaying++;
	keep_aside(a, "it cannot be opened with the present keyring");
}

/* Two open records of one connection (the mark of the first was lost): one after the other, the newest may hold the only copy of the
 * token that works. What comes behind waits as well. */
static void put_off(struct refresh *r, uint64_t seq, const struct reply *reply)
{
	r->put_off.seq = seq;
	r->put_off.reply = *reply;
}

static void on_record(struct refresh *r, uint64_t seq)
{
	struct reply reply;
	reply_init(&reply);
	int e = reply_decode(r->replay_record.data, r->replay_record.len, r->conf->keyring, &reply);
	if (e != 0) {
		reply_fini(&reply);
		keep_unreadable(r, seq, r->replay_record.data, r->replay_record.len, e);
		return;
	}
	r->replaying++;
	if (attempt_find(r, reply.id) != NULL)
		put_off(r, seq, &reply);
	else
		begin_record(r, seq, &reply);
}

/* The one before it is held, for who knows how long: a start cannot wait for that. */
static void leave_put_off(struct refresh *r)
{
	log_error("replay.kept", K_ID(r->put_off.reply.id), K_TEXT("why", "an older answer of its connection cannot be written"),
		K_TEXT("hint", "mend that and restart: the reply is kept in the journal"));
	r->put_off.seq = 0;
	reply_fini(&r->put_off.reply);
	reply_init(&r->put_off.reply);
	r->replaying--;
	r->replayed_total++;
}

static void take_up(struct refresh *r)
{
	const struct attempt *before = r->put_off.seq != 0 ? attempt_find(r, r->put_off.reply.id) : NULL;
	if (before != NULL && !before->in_replay)
		leave_put_off(r);
	if (r->put_off.seq == 0 || before != NULL)
		return;
	struct reply reply = r->put_off.reply;
	uint64_t seq = r->put_off.seq;
	r->put_off.seq = 0;
	reply_init(&r->put_off.reply);
	begin_record(r, seq, &reply);
}

/* So many at a time as may be in memory: a journal can hold far more than that. */
static void feed(void *arg)
{
	struct refresh *r = arg;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	take_up(r);
	while (!r->replay_read && r->put_off.seq == 0 && r->replaying < REPLAY_AT_ONCE) {
		uint64_t seq;
		int got = journal_replay_next(r->journal, &seq, &r->replay_record);
		if (got > 0)
			on_record(r, seq);
		else if (got == 0)
			r->replay_read = true;
		else /* what could be read is on its way; not starting would help nobody */
			log_error("replay.disk_error", K_UINT("record", seq), K_STATUS(got));
	}
	refresh_check_idle(r);
}

static void replay_settled(void *arg)
{
	struct refresh *r = arg;
	MAGIC_CHECK(r, REFRESH_MAGIC);
	if (!replay_is_through(r))
		return;
	r->replay_running = false;
	r->replay_over = true;
	r->replayed(r->replayed_arg, r->replayed_total);
}

bool replay_is_through(const struct refresh *r)
{
	return r->replay_running && r->replay_read && r->replaying == 0;
}

void replay_init(struct refresh *r)
{
	loop_task_init(&r->replay_task, feed, r);
	loop_task_init(&r->replayed_task, replay_settled, r);
	buf_init_secret(&r->replay_record, JOURNAL_RECORD_MAX);
	reply_init(&r->put_off.reply);
}

int refresh_replay(struct refresh *r, void (*fn)(void *arg, uint64_t replayed), void *arg, struct fault *f)
{
	(void)f;
	r->replay_running = true;
	r->replayed = fn;
	r->replayed_arg = arg;
	r->replay_read = MUTANT(journal_off);
	feed(r);
	return 0;
}

bool refresh_replayed(const struct refresh *r)
{
	return r->replay_over;
}
