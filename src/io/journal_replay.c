/*
 * journal_replay - reads the records that are still open, at the start of the daemon.
 *
 * The numbers that were open when the replay began are remembered, and each record is read only when its turn comes: records may be
 * appended and done meanwhile, and nothing but one record is in memory. Reads files in the loop, which nothing else here does.
 */
#include "base/mem.h"
#include "io/journal_priv.h"

/* The record's bytes, 0 when it is not open any more, or ST_IO. */
static int replay_read(struct journal *j, uint64_t seq, struct buf *b, bool *open)
{
	pthread_mutex_lock(&j->store_mu);
	const struct journal_place *p = journal_index_find(&j->store.index, seq);
	*open = p != NULL;
	int code = p ? journal_segment_read(&j->store.dir, &p->segment->name, p->offset, seq, b) : 0;
	pthread_mutex_unlock(&j->store_mu);
	return code;
}

static void replay_begin(struct journal *j)
{
	pthread_mutex_lock(&j->store_mu);
	j->replay_n = j->store.index.n;
	j->replay = journal_index_seqs(&j->store.index);
	pthread_mutex_unlock(&j->store_mu);
	j->replay_at = 0;
	j->replaying = true;
}

void journal_replay_end(struct journal *j)
{
	mem_free(j->replay);
	j->replay = NULL;
	j->replaying = false;
}

int journal_replay_next(struct journal *j, uint64_t *seq, struct buf *out)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	if (!j->replaying)
		replay_begin(j);
	while (j->replay_at < j->replay_n) {
		bool open;
		*seq = j->replay[j->replay_at++];
		int e = replay_read(j, *seq, out, &open);
		if (e < 0)
			return e;
		if (open)
			return 1;
	}
	journal_replay_end(j);
	return 0;
}

int journal_replay(struct journal *j, int (*fn)(void *arg, uint64_t seq, const void *p, size_t n), void *arg)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	struct buf b;
	buf_init(&b, JOURNAL_RECORD_MAX);
	int code = 0, unread = 0, got;
	uint64_t seq;
	while (code >= 0 && (got = journal_replay_next(j, &seq, &b)) != 0) {
		if (got < 0)
			unread = got;
		else
			code = fn(arg, seq, b.data, b.len);
	}
	if (code < 0)
		journal_replay_end(j);
	buf_fini(&b);
	return code < 0 ? code : unread;
}
