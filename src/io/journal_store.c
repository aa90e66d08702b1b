/*
 * journal_store - the order in which the journal's segments are made, filled, compacted and given back.
 * All durability rules live here: a record counts only after the flush that held it; a segment is never
 * written again after an error; the next segment is allocated before it is needed, so that a full disk
 * shows while there is still room for the replies that are under way. Must not call back into the journal.
 */
#include "io/journal_store.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "io/journal.h"

/* Numbers handed out before a crash may be on no disk at all; this step is more than can be under way. */
#define SEQ_STEP (UINT64_C(1) << 20)
/* A number beyond this was not written by us. */
#define NUMBER_MAX (UINT64_MAX / 2)

static void add_segment(struct journal_store *s, struct journal_segment *seg)
{
	if (s->last)
		s->last->next = seg;
	else
		s->first = seg;
	s->last = seg;
	s->files_bytes += seg->bytes;
}

/* The index and the counters of the segments, always together. */
static void place(struct journal_store *s, const struct journal_place *p)
{
	journal_store_forget(s, p->seq);
	journal_index_put(&s->index, p);
	p->segment->live++;
	p->segment->live_bytes += p->bytes;
}

void journal_store_forget(struct journal_store *s, uint64_t seq)
{
	struct journal_place *p = journal_index_find(&s->index, seq);
	if (p == NULL)
		return;
	p->segment->live--;
	p->segment->live_bytes -= p->bytes;
	journal_index_remove(&s->index, seq);
}

static void note(struct journal_store *s, const struct fault *f)
{
	if (s->n_notes < JOURNAL_NOTES)
		s->notes[s->n_notes++] = *f;
	else
		s->notes_lost++;
}

const struct fault *journal_store_note(struct journal_store *s)
{
	if (s->n_notes == 0 && s->notes_lost > 0) {
		fault_set(&s->notes[0], ST_IO, "%s: %u more", s->dir.path, s->notes_lost);
		s->notes_lost = 0;
		return &s->notes[0];
	}
	return s->n_notes > 0 ? &s->notes[--s->n_notes] : NULL;
}

/* --- recovery */

struct recovery {
	struct journal_store *store;
	struct journal_segment *segment;
};

static int recover_record(void *arg, const struct journal_record *r)
{
	struct recovery *rc = arg;
	struct journal_store *s = rc->store;
	if (r->seq == 0 || r->seq > NUMBER_MAX)
		return 0;
	if (r->seq >= s->next_seq)
		s->next_seq = r->seq + 1;
	if (r->type == JOURNAL_DONE) {
		journal_store_forget(s, r->seq);
		return 0;
	}
	place(s, &(struct journal_place){ .seq = r->seq,
			 .segment = rc->segment,
			 .offset = r->offset,
			 .bytes = (uint32_t)journal_record_size(r->n) });
	return 0;
}

static int recover_segment(struct journal_store *s, const struct journal_name *name, struct fault *f)
{
	if (name->number > NUMBER_MAX || name->first_seq > NUMBER_MAX)
		return fault_set(f, ST_INVALID, "%s/%s: number out of range in the file's name", s->dir.path, name->name);
	uint64_t bytes;
	int code = journal_segment_bytes(&s->dir, name->name, &bytes, f);
	if (code != 0)
		return code;
	struct journal_segment *seg = mem_alloc(sizeof(*seg));
	seg->name = *name;
	seg->bytes = bytes;
	add_segment(s, seg);
	if (name->number >= s->next_number)
		s->next_number = name->number + 1;
	if (name->first_seq > s->next_seq)
		s->next_seq = name->first_seq;
	struct journal_damage damage = { .n = 0 };
	struct fault found;
	code = journal_segment_scan(&s->dir, name, recover_record, &(struct recovery){ .store = s, .segment = seg }, &damage, f);
	if (damage.n > 0) {
		journal_damage_describe(&s->dir, name, &damage, &found);
		note(s, &found);
	}
	return code;
}

static int recover(struct journal_store *s, struct fault *f)
{
	struct journal_name *v;
	size_t n;
	int code = journal_dir_list(&s->dir, &v, &n, f);
	if (code != 0)
		return code;
	for (size_t i = 0; i < n && code == 0; i++)
		code = recover_segment(s, &v[i], f);
	mem_free(v);
	if (n > 0)
		s->next_seq += SEQ_STEP;
	return code;
}

int journal_store_open(struct journal_store *s, const char *dir, uint64_t segment_bytes, uint64_t max_bytes, bool sync, struct fault *f)
{
	*s = (struct journal_store){ .lock_fd = -1, .fd = -1, .spare_fd = -1, .segment_bytes = segment_bytes,
		.max_bytes = max_bytes, .sync = sync, .next_number = 1, .next_seq = 1, .last_sync_us = -1 };
	buf_init(&s->stage, segment_bytes);
	int code = journal_dir_open(dir, true, &s->dir, f);
	if (code == 0)
		code = journal_dir_lock(&s->dir, &s->lock_fd, f);
	if (code == 0)
		code = recover(s, f);
	if (code == 0) {
		journal_store_tend(s, true);
		if (s->current == NULL && s->index.n == 0)
			code = fault_set(f, s->fault.code, "%s", s->fault.text);
	}
	if (code != 0)
		journal_store_close(s);
	return code;
}

void journal_store_close(struct journal_store *s)
{
	/* What fails here is found open by the next recovery. */
	s->stage_needs_sync = true;
	(void)!(s->current && journal_store_flush(s));
	if (s->fd >= 0)
		close(s->fd);
	if (s->spare_fd >= 0)
		close(s->spare_fd);
	mem_free(s->spare);
	while (s->first) {
		struct journal_segment *seg = s->first;
		s->first = seg->next;
		mem_free(seg);
	}
	journal_index_fini(&s->index);
	buf_fini(&s->stage);
	mem_free(s->moves);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
	journal_dir_close(&s->dir);
	*s = (struct journal_store){ .lock_fd = -1, .fd = -1, .spare_fd = -1 };
}

/* --- writing */

uint64_t journal_store_room(const struct journal_store *s)
{
	return s->current ? s->segment_bytes - s->at - s->stage.len : 0;
}

uint64_t journal_store_bytes(const struct journal_store *s)
{
	return s->files_bytes + (s->spare_fd >= 0 ? s->segment_bytes : 0);
}

static int stage_record(struct journal_store *s, enum journal_type type, uint64_t seq, const void *p, size_t n)
{
	if (s->current == NULL)
		return ST_UNAVAILABLE;
	if (journal_record_size(n) > journal_store_room(s))
		return ST_AGAIN;
	return journal_record_append(&s->stage, s->current->name.number, type, seq, p, n);
}

int journal_store_stage(struct journal_store *s, uint64_t seq, const void *p, size_t n)
{
	uint64_t offset = s->at + s->stage.len;
	int code = stage_record(s, JOURNAL_DATA, seq, p, n);
	if (code != 0)
		return code;
	s->stage_needs_sync = true;
	if (seq >= s->next_seq)
		s->next_seq = seq + 1;
	place(s, &(struct journal_place){
			 .seq = seq, .segment = s->current, .offset = offset, .bytes = (uint32_t)journal_record_size(n) });
	return 0;
}

int journal_store_done(struct journal_store *s, uint64_t seq)
{
	if (journal_index_find(&s->index, seq) == NULL)
		return 0;
	if (stage_record(s, JOURNAL_DONE, seq, NULL, 0) == ST_AGAIN)
		return ST_AGAIN;
	journal_store_forget(s, seq);
	return 0;
}

static void close_current(struct journal_store *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
	s->current = NULL;
}

static int write_stage(struct journal_store *s)
{
	const char *name = s->current->name.name;
	int code = journal_write(&s->dir, name, s->fd, s->stage.data, s->stage.len, s->at, &s->fault);
	if (code != 0 || !s->sync || !s->stage_needs_sync)
		return code;
	int64_t start = sys_mono_us();
	code = journal_datasync(&s->dir, name, s->fd, &s->fault);
	s->last_sync_us = sys_mono_us() - start;
	return code;
}

/* Records that were being moved are where they were before. */
static void undo_moves(struct journal_store *s)
{
	for (size_t i = 0; i < s->n_moves; i++) {
		const struct journal_move *m = &s->moves[i];
		const struct journal_place *p = journal_index_find(&s->index, m->seq);
		ALWAYS(p != NULL);
		place(s, &(struct journal_place){
				 .seq = m->seq, .segment = m->segment, .offset = m->offset, .bytes = p->bytes });
	}
	s->n_moves = 0;
}

int journal_store_flush(struct journal_store *s)
{
	int code = 0;
	s->last_sync_us = -1;
	if (s->stage.len > 0 || (s->stage_needs_sync && s->current))
		code = write_stage(s);
	if (code != 0) {
		s->current->broken = true;
		note(s, &s->fault);
		close_current(s);
		undo_moves(s);
	} else {
		s->at += s->stage.len;
		s->n_moves = 0;
	}
	buf_reset(&s->stage);
	s->stage_needs_sync = false;
	return code;
}

/* --- segments */

static bool fits_bound(const struct journal_store *s)
{
	return journal_store_bytes(s) + s->segment_bytes <= s->max_bytes;
}

static void make_spare(struct journal_store *s)
{
	if (s->spare_fd >= 0 || s->waiting)
		return;
	if (!fits_bound(s)) {
		fault_set(&s->fault, ST_FULL, "%s: %" PRIu64 " of %" PRIu64 " bytes are in use by %zu open records",
			s->dir.path, journal_store_bytes(s), s->max_bytes, s->index.n);
		return;
	}
	int fd;
	s->waiting = journal_spare_make(&s->dir, s->segment_bytes, &fd, &s->fault) != 0;
	if (s->waiting)
		return;
	struct journal_segment *seg = mem_alloc(sizeof(*seg));
	journal_name_make(s->next_number++, s->next_seq, &seg->name);
	seg->bytes = s->segment_bytes;
	s->waiting = journal_spare_activate(&s->dir, fd, &seg->name, &s->fault) != 0;
	if (s->waiting) {
		close(fd);
		mem_free(seg);
		return;
	}
	s->spare = seg;
	s->spare_fd = fd;
}

int journal_store_rotate(struct journal_store *s)
{
	ALWAYS(s->stage.len == 0);
	make_spare(s);
	if (s->spare_fd < 0)
		return s->fault.code != 0 ? s->fault.code : ST_UNAVAILABLE;
	close_current(s);
	add_segment(s, s->spare);
	s->current = s->spare;
	s->fd = s->spare_fd;
	s->spare = NULL;
	s->spare_fd = -1;
	s->at = JOURNAL_FILE_HEADER;
	return 0;
}

/* Takes the oldest segment, which has no open record, off the disk. */
static int drop_first(struct journal_store *s)
{
	struct journal_segment *seg = s->first;
	bool recycle = s->spare_fd < 0 && !seg->broken && seg->bytes == s->segment_bytes;
	int code = recycle ? journal_segment_to_spare(&s->dir, seg->name.name, &s->fault) :
			     journal_segment_remove(&s->dir, seg->name.name, &s->fault);
	if (code != 0) {
		seg->broken = true; /* removed, not recycled, the next time */
		s->waiting = true;
		return code;
	}
	s->files_bytes -= seg->bytes;
	s->first = seg->next;
	if (s->first == NULL)
		s->last = NULL;
	mem_free(seg);
	s->waiting = false; /* room came back */
	make_spare(s);
	return 0;
}

static void drop_finished(struct journal_store *s)
{
	while (s->first && s->first != s->current && s->first->live == 0)
		if (drop_first(s) != 0)
			return;
}

/* --- compaction */

static int move_record(void *arg, const struct journal_record *r)
{
	struct journal_store *s = arg;
	struct journal_segment *from = s->first;
	const struct journal_place *p = journal_index_find(&s->index, r->seq);
	if (r->type != JOURNAL_DATA || p == NULL || p->segment != from || p->offset != r->offset)
		return 0;
	if (s->n_moves == s->cap_moves) {
		s->cap_moves = s->cap_moves ? s->cap_moves * 2 : 64;
		s->moves = mem_realloc(s->moves, s->cap_moves, sizeof(*s->moves));
	}
	struct journal_move m = { .seq = r->seq, .offset = r->offset, .segment = from };
	int code = journal_store_stage(s, r->seq, r->p, r->n);
	if (code == ST_AGAIN) {
		code = journal_store_flush(s);
		if (code == 0)
			code = journal_store_rotate(s);
		if (code == 0)
			code = journal_store_stage(s, r->seq, r->p, r->n);
	}
	if (code == 0)
		s->moves[s->n_moves++] = m;
	return code;
}

/*
 * Is it worth moving the oldest segment's open records? When it is nearly empty and no longer one of the last
 * few, or when the bound is near and something can be won.
 */
static bool worth_moving(const struct journal_store *s)
{
	const struct journal_segment *seg = s->first;
	if (s->current == NULL || seg == s->current || seg->broken)
		return false;
	if (seg->live_bytes > journal_store_room(s) && s->spare_fd < 0)
		return false;
	if (!fits_bound(s) || s->spare_fd < 0)
		return seg->live_bytes <= s->segment_bytes / 4 * 3;
	return seg->live_bytes <= s->segment_bytes / 4 && s->files_bytes >= 4 * s->segment_bytes;
}

static void compact(struct journal_store *s)
{
	while (worth_moving(s)) {
		struct journal_segment *seg = s->first;
		int code = journal_segment_scan(&s->dir, &seg->name, move_record, s, NULL, &s->fault);
		int flushed = journal_store_flush(s);
		if (flushed != 0 || s->current == NULL || s->waiting)
			return;
		if (code != 0 || seg->live > 0) {
			seg->broken = true; /* the rest cannot be read any more; it stays until it is done */
			return;
		}
		drop_finished(s);
		if (s->first == seg)
			return;
	}
}

void journal_store_tend(struct journal_store *s, bool retry)
{
	if (retry)
		s->waiting = false;
	if (!s->waiting)
		s->fault.code = 0;
	drop_finished(s);
	if (s->current == NULL)
		(void)!journal_store_rotate(s);
	make_spare(s);
	compact(s);
	/* Old ones that were kept alive only until the current one existed. */
	drop_finished(s);
	if (s->current != NULL && s->spare_fd >= 0 && !s->waiting)
		s->fault.code = 0;
}
