/*
 * fake_journal - io/journal.h in memory: durable after a set delay, failing on request.
 *
 * The disk is one list for the whole test, so that a test can close the journal, open it again and replay. A
 * record that is not durable when the journal is closed is lost, as by a crash.
 */
#include "sim/fake.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"

#define JOURNAL_MAGIC UINT32_C(0x666b6a6c)

struct record {
	uint64_t seq;
	void *p;
	size_t n;
	bool durable, done;
	journal_fn *fn; /* NULL once called */
	void *arg;
	struct record *next;
};

struct journal {
	uint32_t magic;
	struct loop *loop;
	struct loop_timer *sync, *state;
	bool writable, told, dispatching, closed;
	struct fault why;
	void (*on_state)(void *arg, bool writable, const struct fault *why);
	void *state_arg;
	void (*on_sync)(void *arg, int64_t us);
	void *sync_arg;
	void (*on_note)(void *arg, const struct fault *what);
	void *on_note_arg;
	uint64_t replay_at;
};

static struct {
	struct record *first;
	uint64_t last_seq;
	int64_t delay_us;
	int append_code, sync_code;
	uint64_t room; /* 0: enough for everybody */
	unsigned appended, syncs, done_since; /* done since the last time that records were thrown away */
	bool in_use;
} disk;

static void record_free(struct record *r)
{
	mem_free(r->p);
	mem_free(r);
}

static void drop_if(bool (*unwanted)(const struct record *r))
{
	struct record **at = &disk.first;
	while (*at != NULL) {
		struct record *r = *at;
		if (unwanted(r)) {
			*at = r->next;
			record_free(r);
		} else {
			at = &r->next;
		}
	}
}

static bool any(const struct record *r)
{
	(void)r;
	return true;
}

static bool is_lost(const struct record *r)
{
	return !r->durable || r->done;
}

static bool is_done(const struct record *r)
{
	return r->done;
}

static struct record *record_add(const void *p, size_t n)
{
	if (disk.done_since > 64) {
		drop_if(is_done);
		disk.done_since = 0;
	}
	struct record *r = mem_alloc(sizeof *r);
	r->seq = ++disk.last_seq;
	r->p = mem_alloc(n + 1);
	if (n > 0)
		memcpy(r->p, p, n);
	r->n = n;
	struct record **at = &disk.first;
	while (*at != NULL)
		at = &(*at)->next;
	*at = r;
	return r;
}

void fake_journal_wipe(void)
{
	ALWAYS(!disk.in_use);
	drop_if(any);
	memset(&disk, 0, sizeof disk);
}

uint64_t fake_journal_put(const void *p, size_t n)
{
	struct record *r = record_add(p, n);
	r->durable = true;
	return r->seq;
}

void fake_journal_set_delay(int64_t us)
{
	disk.delay_us = us;
}

void fake_journal_fail_append(int code)
{
	disk.append_code = code;
}

void fake_journal_fail_sync(int code)
{
	disk.sync_code = code;
}

unsigned fake_journal_appended(void)
{
	return disk.appended;
}

unsigned fake_journal_syncs(void)
{
	return disk.syncs;
}

const void *fake_journal_open_record(unsigned i, uint64_t *seq, size_t *n)
{
	for (const struct record *r = disk.first; r != NULL; r = r->next) {
		if (!r->durable || r->done || i-- > 0)
			continue;
		if (seq != NULL)
			*seq = r->seq;
		if (n != NULL)
			*n = r->n;
		return r->p;
	}
	return NULL;
}

/* ---------------------------------------------------------------- io/journal.h */

static void really_free(struct journal *j)
{
	j->magic = 0;
	mem_free(j);
}

static struct record *next_waiting(uint64_t after, uint64_t upto)
{
	struct record *r = disk.first;
	while (r != NULL && (r->fn == NULL || r->seq <= after || r->seq > upto))
		r = r->next;
	return r;
}

/* One group: everything that was appended until now. */
static void on_sync(void *arg)
{
	struct journal *j = arg;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	uint64_t upto = disk.last_seq, seq = 0;
	int code = disk.sync_code;
	j->dispatching = true;
	disk.syncs++;
	if (j->on_sync != NULL)
		j->on_sync(j->sync_arg, disk.delay_us);
	for (struct record *r; !j->closed && (r = next_waiting(seq, upto)) != NULL;) {
		seq = r->seq;
		journal_fn *fn = r->fn;
		r->fn = NULL;
		r->durable = code == 0;
		r->done = code != 0;
		fn(r->arg, code);
	}
	j->dispatching = false;
	if (j->closed) {
		really_free(j);
		return;
	}
	if (next_waiting(0, UINT64_MAX) != NULL && !loop_timer_is_set(j->sync))
		loop_timer_after(j->sync, disk.delay_us);
}

static void on_state(void *arg)
{
	struct journal *j = arg;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	if (j->on_state == NULL || j->told == j->writable)
		return;
	j->told = j->writable;
	j->on_state(j->state_arg, j->writable, j->writable ? NULL : &j->why);
}

int journal_open(struct loop *l, const struct journal_params *p, struct journal **out, struct fault *f)
{
	(void)p;
	if (disk.in_use)
		return fault_set(f, ST_EXISTS, "the journal is in use");
	struct journal *j = mem_alloc(sizeof *j);
	j->magic = JOURNAL_MAGIC;
	j->loop = l;
	j->writable = true;
	j->told = true;
	j->sync = loop_timer_new(l, on_sync, j);
	j->state = loop_timer_new(l, on_state, j);
	fault_set(&j->why, ST_NO_SPACE, "the test says so");
	disk.in_use = true;
	*out = j;
	return 0;
}

void journal_close(struct journal *j)
{
	if (j == NULL)
		return;
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	loop_timer_free(j->sync);
	loop_timer_free(j->state);
	drop_if(is_lost);
	disk.in_use = false;
	j->closed = true;
	if (!j->dispatching)
		really_free(j);
}

int journal_replay(struct journal *j, int (*fn)(void *arg, uint64_t seq, const void *p, size_t n), void *arg)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	for (const struct record *r = disk.first; r != NULL; r = r->next) {
		if (!r->durable || r->done)
			continue;
		int e = fn(arg, r->seq, r->p, r->n);
		if (e < 0)
			return e;
	}
	return 0;
}

int journal_replay_next(struct journal *j, uint64_t *seq, struct buf *out)
{
	size_t n;
	for (unsigned i = 0;; i++) {
		const void *p = fake_journal_open_record(i, seq, &n);
		if (p == NULL) {
			j->replay_at = 0;
			return 0;
		}
		if (*seq <= j->replay_at)
			continue;
		j->replay_at = *seq;
		ALWAYS(buf_set(out, p, n) == 0);
		return 1;
	}
}

void journal_on_note(struct journal *j, void (*fn)(void *arg, const struct fault *what), void *arg)
{
	j->on_note = fn;
	j->on_note_arg = arg;
}

uint64_t journal_room(const struct journal *j)
{
	uint64_t room = disk.room != 0 ? disk.room : UINT64_MAX;
	return journal_writable(j) ? room : 0;
}

void fake_journal_set_room(uint64_t bytes)
{
	disk.room = bytes;
}

void fake_journal_tell(struct journal *j, const struct fault *what)
{
	j->on_note(j->on_note_arg, what);
}

int journal_append(struct journal *j, const void *p, size_t n, journal_fn *fn, void *arg, uint64_t *seq)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	if (n > JOURNAL_RECORD_MAX)
		return ST_FULL;
	if (disk.append_code != 0)
		return disk.append_code;
	struct record *r = record_add(p, n);
	r->fn = fn;
	r->arg = arg;
	disk.appended++;
	if (!j->dispatching && !loop_timer_is_set(j->sync))
		loop_timer_after(j->sync, disk.delay_us);
	*seq = r->seq;
	return 0;
}

void journal_done(struct journal *j, uint64_t seq)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	struct record *r = disk.first;
	while (r != NULL && r->seq != seq)
		r = r->next;
	ALWAYS(r != NULL && r->durable);
	r->done = true;
	disk.done_since++;
}

bool journal_writable(const struct journal *j)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	return j->writable;
}

void journal_on_state(
	struct journal *j, void (*fn)(void *arg, bool writable, const struct fault *why), void *arg)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	j->on_state = fn;
	j->state_arg = arg;
}

void fake_journal_set_writable(struct journal *j, bool writable)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	j->writable = writable;
	loop_timer_after(j->state, 0);
}

uint64_t journal_open_records(const struct journal *j)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	uint64_t n = 0;
	while (fake_journal_open_record((unsigned)n, NULL, NULL) != NULL)
		n++;
	return n;
}

uint64_t journal_bytes(const struct journal *j)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	uint64_t total = 0;
	for (const struct record *r = disk.first; r != NULL; r = r->next)
		total += r->n;
	return total;
}

void journal_on_sync(struct journal *j, void (*fn)(void *arg, int64_t us), void *arg)
{
	MAGIC_CHECK(j, JOURNAL_MAGIC);
	j->on_sync = fn;
	j->sync_arg = arg;
}

int journal_inspect(const char *dir, int (*fn)(void *arg, uint64_t seq, bool done, const void *p, size_t n),
	void (*damaged)(void *arg, const struct fault *what), void *arg, struct fault *f)
{
	(void)dir, (void)damaged;
	for (const struct record *r = disk.first; r != NULL; r = r->next) {
		int e = r->durable ? fn(arg, r->seq, r->done, r->p, r->n) : 0;
		if (e < 0)
			return fault_set(f, e, "stopped at record %llu", (unsigned long long)r->seq);
	}
	return 0;
}
