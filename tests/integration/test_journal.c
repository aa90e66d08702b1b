/*
 * The journal against a real directory. What a disk can do to us (full, broken, short writes) is injected
 * below the file operations; the writer thread, the loop and the files are the real ones.
 */
#include "unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/crypto.h"
#include "base/mem.h"
#include "base/sys.h"
#include "io/journal.h"
#include "io/journal_file.h"
#include "io/journal_store.h"

#define SEG 8192u
#define WAIT_US (20 * US_PER_S)

static struct loop *loop;
static char dir[64];

/* --- a disk that can break */

static atomic_int fail_names, fail_fallocate, fail_sync, fail_fsync, fail_write, short_writes; /* errno to give, 0: none */
static atomic_int n_sync, n_write, bad_fd_writes;
static atomic_int sync_delay_us;
static atomic_ulong poisoned_ino; /* the file whose sync failed */

static unsigned long ino_of(int fd)
{
	struct stat st;
	ck_assert(fstat(fd, &st) == 0);
	return st.st_ino;
}

static int t_fallocate(int fd, off_t o, off_t n)
{
	int e = fail_fallocate;
	return e ? e : journal_file_real_ops.fallocate(fd, o, n);
}

static ssize_t t_pwrite(int fd, const void *p, size_t n, off_t o)
{
	int e = fail_write;
	n_write++;
	if (poisoned_ino && ino_of(fd) == poisoned_ino)
		bad_fd_writes++;
	if (e) {
		errno = e;
		return -1;
	}
	if (short_writes && n > 7)
		n = 7;
	return journal_file_real_ops.pwrite(fd, p, n, o);
}

static int t_fdatasync(int fd)
{
	int e = fail_sync;
	n_sync++;
	if (poisoned_ino && ino_of(fd) == poisoned_ino)
		bad_fd_writes++;
	if (e) {
		fail_sync = 0;
		poisoned_ino = ino_of(fd);
		errno = e;
		return -1;
	}
	if (sync_delay_us) {
		struct timespec ts = { 0, sync_delay_us * 1000L };
		nanosleep(&ts, NULL);
	}
	return journal_file_real_ops.fdatasync(fd);
}

static int t_fsync(int fd)
{
	int e = fail_fsync;
	if (e) {
		errno = e;
		return -1;
	}
	return journal_file_real_ops.fsync(fd);
}

/* What needs rights in the directory. */
static int t_openat(int dirfd, const char *name, int flags, mode_t mode)
{
	errno = fail_names;
	return errno ? -1 : journal_file_real_ops.openat(dirfd, name, flags, mode);
}

static int t_rename(int dirfd, const char *from, const char *to)
{
	errno = fail_names;
	return errno ? -1 : journal_file_real_ops.rename(dirfd, from, to);
}

static int t_unlink(int dirfd, const char *name)
{
	errno = fail_names;
	return errno ? -1 : journal_file_real_ops.unlink(dirfd, name);
}

static void use_test_disk(void)
{
	static struct journal_ops ops;
	ops = journal_file_real_ops;
	ops.fallocate = t_fallocate;
	ops.pwrite = t_pwrite;
	ops.fdatasync = t_fdatasync;
	ops.fsync = t_fsync;
	ops.openat = t_openat;
	ops.rename = t_rename;
	ops.unlink = t_unlink;
	fail_names = fail_fallocate = fail_sync = fail_fsync = fail_write = short_writes = 0;
	n_sync = n_write = bad_fd_writes = sync_delay_us = 0;
	poisoned_ino = 0;
	journal_file_set_ops(&ops);
}

/* --- helpers */

static int rm_one(const char *path, const struct stat *st, int flag, struct FTW *w)
{
	(void)st, (void)flag, (void)w;
	return remove(path);
}

static void setup(void)
{
	ck_ok(loop_new(&loop, NULL));
	snprintf(dir, sizeof(dir), "/tmp/test_journal.XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	use_test_disk();
}

static void teardown(void)
{
	journal_file_set_ops(NULL);
	loop_free(loop);
	nftw(dir, rm_one, 16, FTW_DEPTH | FTW_PHYS);
}

static struct journal *open_with(uint64_t segment, uint64_t max)
{
	struct fault f = { .code = 0 };
	struct journal *j = NULL;
	int code = journal_open(loop, &(struct journal_params){ .dir = dir, .segment_bytes = segment, .max_bytes = max, .sync = true }, &j, &f);
	ck_assert_msg(code == 0, "journal_open: %s", f.text);
	return j;
}

static struct journal *open_small(void)
{
	return open_with(SEG, 64 * SEG);
}

#define wait_for(cond)                                                                        \
	do {                                                                                  \
		int64_t end_ = sys_mono_us() + WAIT_US;                                       \
		while (!(cond)) {                                                             \
			ck_assert_msg(sys_mono_us() < end_, "no end of waiting for %s", #cond); \
			loop_once(loop, 20 * US_PER_MS);                                      \
		}                                                                             \
	} while (0)

struct ack {
	int calls, code;
};

static void on_ack(void *arg, int code)
{
	struct ack *a = arg;
	a->calls++;
	a->code = code;
}

static uint64_t put(struct journal *j, const void *p, size_t n)
{
	struct ack a = { 0 };
	uint64_t seq;
	ck_ok(journal_append(j, p, n, on_ack, &a, &seq));
	ck_assert_int_eq(a.calls, 0);
	wait_for(a.calls);
	ck_assert_int_eq(a.code, 0);
	return seq;
}

static uint64_t put_str(struct journal *j, const char *s)
{
	return put(j, s, strlen(s));
}

/* Makes sure that the writer has seen everything so far. */
static void settle(struct journal *j)
{
	journal_done(j, put_str(j, "fence"));
	journal_done(j, put_str(j, "fence"));
}

#define MAX_SEEN 4096
struct seen {
	int n;
	uint64_t seq[MAX_SEEN];
	char text[MAX_SEEN][24];
	size_t len[MAX_SEEN];
};
static struct seen seen;

static int on_record(void *arg, uint64_t seq, const void *p, size_t n)
{
	struct seen *s = arg;
	ck_assert_int_lt(s->n, MAX_SEEN);
	s->seq[s->n] = seq;
	s->len[s->n] = n;
	snprintf(s->text[s->n], sizeof(s->text[0]), "%.*s", (int)(n < 23 ? n : 23), (const char *)p);
	s->n++;
	return 0;
}

static int replay(struct journal *j)
{
	seen.n = 0;
	ck_ok(journal_replay(j, on_record, &seen));
	for (int i = 1; i < seen.n; i++)
		ck_assert_uint_lt(seen.seq[i - 1], seen.seq[i]);
	return seen.n;
}

static int list_segments(struct journal_name out[64])
{
	struct journal_dir d;
	struct journal_name *v;
	size_t n;
	ck_ok(journal_dir_open(dir, false, &d, NULL));
	ck_ok(journal_dir_list(&d, &v, &n, NULL));
	for (size_t i = 0; i < n && i < 64; i++)
		out[i] = v[i];
	mem_free(v);
	journal_dir_close(&d);
	return (int)n;
}

static void path_of(char out[256], const char *name)
{
	snprintf(out, 256, "%s/%s", dir, name);
}

/* --- the life of records */

START_TEST(append_replay_done)
{
	struct journal *j = open_small();
	ck_assert(journal_writable(j));
	ck_assert_int_eq(replay(j), 0);
	uint64_t a = put_str(j, "first"), b = put_str(j, "second"), c = put(j, "", 0);
	ck_assert_uint_lt(a, b);
	ck_assert_uint_lt(b, c);
	ck_assert_uint_eq(journal_open_records(j), 3);
	ck_assert_uint_eq(journal_bytes(j), 2 * SEG);
	journal_done(j, b);
	journal_done(j, b);
	journal_done(j, 12345678);
	wait_for(journal_open_records(j) == 2);
	journal_close(j);

	j = open_small();
	ck_assert_int_eq(replay(j), 2);
	ck_assert_uint_eq(seen.seq[0], a);
	ck_assert_str_eq(seen.text[0], "first");
	ck_assert_uint_eq(seen.seq[1], c);
	ck_assert_uint_eq(seen.len[1], 0);
	uint64_t d = put_str(j, "third");
	ck_assert_uint_gt(d, c);
	journal_done(j, a);
	journal_done(j, c);
	journal_done(j, d);
	journal_close(j);

	/* Everything done: numbers grow all the same. */
	for (int i = 0; i < 3; i++) {
		j = open_small();
		ck_assert_int_eq(replay(j), 0);
		ck_assert_uint_eq(journal_bytes(j), 2 * SEG);
		uint64_t e = put_str(j, "x");
		ck_assert_uint_gt(e, d);
		journal_done(j, e);
		d = e;
		journal_close(j);
	}
}
END_TEST

START_TEST(callback_only_after_the_sync)
{
	struct journal *j = open_small();
	struct ack a = { 0 };
	uint64_t seq;
	for (int i = 0; i < 20; i++) {
		int before = n_sync;
		a.calls = 0;
		ck_ok(journal_append(j, "x", 1, on_ack, &a, &seq));
		wait_for(a.calls);
		ck_assert_int_gt(n_sync, before);
	}
	/* Those handed over in one turn, and those that come during a sync, share one. */
	sync_delay_us = 20000;
	int before = n_sync;
	struct ack many = { 0 };
	for (int i = 0; i < 60; i++)
		ck_ok(journal_append(j, "y", 1, on_ack, &many, &seq));
	wait_for(many.calls == 60);
	ck_assert_int_eq(n_sync, before + 1);
	journal_close(j);
}
END_TEST

static int n_sync_reports;
static void on_sync(void *arg, int64_t us)
{
	(void)arg;
	ck_assert_int_ge(us, 0);
	n_sync_reports++;
}

START_TEST(sync_durations_are_told)
{
	struct journal *j = open_small();
	n_sync_reports = 0;
	journal_on_sync(j, on_sync, NULL);
	put_str(j, "x");
	put_str(j, "x");
	ck_assert_int_ge(n_sync_reports, 1);
	journal_close(j);
}
END_TEST

START_TEST(without_sync)
{
	struct journal *j;
	ck_ok(journal_open(loop, &(struct journal_params){ .dir = dir, .sync = false }, &j, NULL));
	put_str(j, "x");
	journal_close(j);
	ck_assert_int_eq(n_sync, 0);
	j = open_small();
	ck_assert_int_eq(replay(j), 1);
	journal_close(j);
}
END_TEST

START_TEST(close_drops_callbacks_and_keeps_records)
{
	struct journal *j = open_small();
	struct ack a = { 0 };
	uint64_t seq;
	ck_ok(journal_append(j, "kept", 4, on_ack, &a, &seq));
	journal_close(j);
	loop_once(loop, 0);
	ck_assert_int_eq(a.calls, 0);
	j = open_small();
	ck_assert_int_eq(replay(j), 1);
	ck_assert_str_eq(seen.text[0], "kept");
	journal_close(j);
}
END_TEST

static struct journal *to_close;
static int closes;
static void on_ack_close(void *arg, int code)
{
	(void)arg, (void)code;
	closes++;
	journal_close(to_close);
}

START_TEST(close_inside_a_callback)
{
	uint64_t seq;
	closes = 0;
	to_close = open_small();
	for (int i = 0; i < 3; i++)
		ck_ok(journal_append(to_close, "x", 1, on_ack_close, NULL, &seq));
	wait_for(closes);
	loop_once(loop, 0);
	ck_assert_int_eq(closes, 1);
}
END_TEST

START_TEST(payload_limits)
{
	struct journal *j = open_with(4u << 20, 16u << 20);
	struct ack a = { 0 };
	uint64_t seq = 77;
	char *p = malloc(JOURNAL_RECORD_MAX + 1);
	memset(p, 'z', JOURNAL_RECORD_MAX + 1);
	ck_assert_int_eq(journal_append(j, p, JOURNAL_RECORD_MAX + 1, on_ack, &a, &seq), ST_FULL);
	ck_assert_uint_eq(seq, 77);
	put(j, p, JOURNAL_RECORD_MAX);
	put(j, p, JOURNAL_RECORD_MAX);
	journal_close(j);
	j = open_with(4u << 20, 16u << 20);
	ck_assert_int_eq(replay(j), 2);
	ck_assert_uint_eq(seen.len[1], JOURNAL_RECORD_MAX);
	journal_close(j);

	j = open_with(SEG, 64u << 20);
	ck_assert_int_eq(journal_append(j, p, SEG, on_ack, &a, &seq), ST_FULL);
	put(j, p, SEG - JOURNAL_FILE_HEADER - JOURNAL_FILE_RECORD);
	journal_close(j);
	free(p);
}
END_TEST

static int done_each(void *arg, uint64_t seq, const void *p, size_t n)
{
	(void)p, (void)n;
	journal_done(arg, seq);
	return 0;
}

static int stop_at_once(void *arg, uint64_t seq, const void *p, size_t n)
{
	(void)seq, (void)p, (void)n;
	(*(int *)arg)++;
	return ST_CANCELED;
}

START_TEST(replay_may_be_stopped_and_may_finish_records)
{
	char big[1000] = { 0 };
	struct journal *j = open_small();
	for (int i = 0; i < 100; i++)
		put(j, big, sizeof(big));
	journal_close(j);
	j = open_small();
	int calls = 0;
	ck_assert_int_eq(journal_replay(j, stop_at_once, &calls), ST_CANCELED);
	ck_assert_int_eq(calls, 1);
	ck_assert_uint_gt(journal_bytes(j), 13 * SEG);
	ck_ok(journal_replay(j, done_each, j));
	wait_for(journal_open_records(j) == 0);
	wait_for(journal_bytes(j) <= 3 * SEG);
	journal_close(j);
	j = open_small();
	ck_assert_int_eq(replay(j), 0);
	journal_close(j);
}
END_TEST

/* --- damage */

START_TEST(tail_cut_at_every_byte)
{
	struct journal_name v[64];
	struct journal *j = open_small();
	put_str(j, "one");
	put_str(j, "two");
	uint64_t last = put_str(j, "the last record");
	journal_close(j);
	ck_assert_int_eq(list_segments(v), 2); /* the next one is there already */
	char path[256], keep[256];
	path_of(path, v[0].name);
	int fd = open(path, O_RDWR);
	static uint8_t whole[SEG], cut[SEG];
	ck_assert_int_eq(pread(fd, whole, SEG, 0), SEG);
	close(fd);
	size_t start = JOURNAL_FILE_HEADER + 2 * journal_record_size(3), end = start + JOURNAL_FILE_RECORD + 15;
	snprintf(keep, sizeof(keep), "%s", v[0].name);
	for (size_t at = start; at <= end; at++) {
		for (int truncated = 0; truncated < 2; truncated++) {
			while (list_segments(v) > 0) {
				char p[256];
				path_of(p, v[0].name);
				ck_ok(unlink(p));
			}
			memset(cut, 0, SEG);
			memcpy(cut, whole, at);
			fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
			ck_assert_int_eq(pwrite(fd, cut, truncated ? at : SEG, 0), truncated ? at : SEG);
			close(fd);
			j = open_small();
			ck_assert_int_eq(replay(j), at == end ? 3 : 2);
			ck_assert_str_eq(seen.text[1], "two");
			/* never behind the torn tail, and never a number that was given before */
			ck_assert_uint_gt(put_str(j, "new"), last);
			ck_assert_int_eq(list_segments(v), 3);
			ck_assert_str_eq(v[0].name, keep);
			journal_close(j);
			j = open_small();
			ck_assert_int_eq(replay(j), at == end ? 4 : 3);
			ck_assert_str_eq(seen.text[seen.n - 1], "new");
			journal_close(j);
		}
	}
}
END_TEST

START_TEST(any_damaged_byte)
{
	struct journal_name v[64];
	struct journal *j = open_small();
	static const char *const text[] = { "alpha", "beta", "gamma", "delta", "epsilon" };
	uint64_t seq[5];
	for (int i = 0; i < 5; i++)
		seq[i] = put_str(j, text[i]);
	journal_done(j, seq[1]);
	settle(j);
	journal_close(j);
	ck_assert_int_eq(list_segments(v), 2); /* the next one is there already */
	char path[256];
	path_of(path, v[0].name);
	static uint8_t whole[SEG], bad[SEG];
	int fd = open(path, O_RDWR);
	ck_assert_int_eq(pread(fd, whole, SEG, 0), SEG);
	close(fd);
	unsigned seed = (unsigned)time(NULL);
	printf("# seed %u\n", seed);
	srandom(seed);
	for (int round = 0; round < 600; round++) {
		memcpy(bad, whole, SEG);
		size_t at = round < 450 ? (size_t)round : (size_t)random() % SEG;
		int n = round < 450 ? 1 : 1 + (int)(random() % 30);
		for (int i = 0; i < n; i++, at = (size_t)random() % 450)
			bad[at] ^= (uint8_t)(1 + random() % 255);
		while (list_segments(v) > 0) {
			char p[256];
			path_of(p, v[0].name);
			ck_ok(unlink(p));
		}
		fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
		ck_assert_int_eq(pwrite(fd, bad, SEG, 0), SEG);
		close(fd);
		j = open_small();
		replay(j);
		for (int i = 0; i < seen.n; i++) {
			if (strcmp(seen.text[i], "fence") == 0)
				continue;
			int k = 0;
			while (k < 5 && seq[k] != seen.seq[i])
				k++;
			ck_assert_int_lt(k, 5);
			ck_assert_str_eq(seen.text[i], text[k]);
		}
		if (round < (int)JOURNAL_FILE_HEADER)
			ck_assert_int_eq(seen.n, 4); /* a damaged header hides nothing */
		journal_close(j);
	}
}
END_TEST

START_TEST(a_damaged_record_hides_no_other)
{
	struct journal_name v[64];
	char big[1000];
	memset(big, 'b', sizeof(big));
	struct journal *j = open_small();
	for (int i = 0; i < 40; i++)
		put(j, big, sizeof(big));
	journal_close(j);
	int n = list_segments(v);
	ck_assert_int_ge(n, 5);
	char path[256];
	path_of(path, v[1].name);
	int fd = open(path, O_RDWR);
	ck_assert_int_eq(pwrite(fd, "XX", 2, (off_t)(JOURNAL_FILE_HEADER + 2 * journal_record_size(1000) + 50)), 2);
	close(fd);
	j = open_small();
	ck_assert_int_eq(replay(j), 40 - 1);
	journal_close(j);
}
END_TEST

START_TEST(length_beyond_the_segment_and_foreign_files)
{
	struct journal_name v[64];
	char path[256];
	struct journal *j = open_small();
	put_str(j, "one");
	journal_close(j);
	ck_assert_int_eq(list_segments(v), 2); /* the next one is there already */
	path_of(path, v[0].name);
	int fd = open(path, O_RDWR);
	static const uint8_t huge[24] = { 0x52, 0x46, 0x4a, 0x31, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0x1f, 0 };
	ck_assert_int_eq(pwrite(fd, huge, sizeof(huge), (off_t)(JOURNAL_FILE_HEADER + journal_record_size(3))), sizeof(huge));
	close(fd);
	static const char *const foreign[] = { "notes.txt", "0000000000000001.seg", "g000000000000001-0000000000000001.seg" };
	for (int i = 0; i < 3; i++) {
		path_of(path, foreign[i]);
		close(open(path, O_RDWR | O_CREAT, 0600));
	}
	j = open_small();
	ck_assert_int_eq(replay(j), 1);
	journal_done(j, seen.seq[0]);
	journal_close(j);
	for (int i = 0; i < 3; i++) {
		path_of(path, foreign[i]);
		ck_ok(access(path, F_OK));
	}
	path_of(path, "ffffffffffffffff-0000000000000001.seg");
	close(open(path, O_RDWR | O_CREAT, 0600));
	struct fault f;
	ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = dir, .sync = true }, &j, &f), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(f.text, "ffffffffffffffff"));
}
END_TEST

START_TEST(newer_format_is_refused)
{
	struct journal_name v[64];
	char path[256];
	struct journal *j = open_small();
	put_str(j, "one");
	journal_close(j);
	ck_assert_int_eq(list_segments(v), 2); /* the next one is there already */
	path_of(path, v[0].name);
	uint8_t h[JOURNAL_FILE_HEADER];
	int fd = open(path, O_RDWR);
	ck_assert_int_eq(pread(fd, h, sizeof(h), 0), sizeof(h));
	h[8] = 2;
	uint32_t crc = crypto_crc32c(0, h, 36);
	memcpy(h + 36, &crc, 4);
	ck_assert_int_eq(pwrite(fd, h, sizeof(h), 0), sizeof(h));
	close(fd);
	struct fault f;
	ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = dir, .sync = true }, &j, &f), ST_VERSION);
	ck_assert_ptr_nonnull(strstr(f.text, v[0].name));
}
END_TEST

/* --- size */

START_TEST(size_stays_bounded)
{
	struct journal *j = open_with(SEG, 8 * SEG);
	char p[500] = { 0 };
	uint64_t last = 0;
	for (int i = 0; i < 1000; i++) {
		uint64_t seq = put(j, p, sizeof(p));
		if (last)
			journal_done(j, last);
		last = seq;
		ck_assert_uint_le(journal_bytes(j), 4 * SEG);
	}
	ck_assert(journal_writable(j));
	journal_close(j);
	struct journal_name v[64];
	ck_assert_int_le(list_segments(v), 3);
}
END_TEST

START_TEST(few_open_records_are_moved)
{
	struct journal *j = open_with(SEG, 8 * SEG);
	char p[500] = { 0 };
	uint64_t keep[3], prev[3] = { 0 };
	keep[0] = put_str(j, "keep one");
	keep[1] = put_str(j, "keep two");
	for (int i = 0; i < 400; i++) {
		uint64_t seq = put(j, p, sizeof(p));
		if (i == 200)
			keep[2] = put_str(j, "keep three");
		if (prev[i % 3])
			journal_done(j, prev[i % 3]);
		prev[i % 3] = seq;
		ck_assert_uint_le(journal_bytes(j), 6 * SEG);
	}
	for (int i = 0; i < 3; i++)
		journal_done(j, prev[i]);
	settle(j);
	wait_for(journal_open_records(j) <= 4);
	journal_close(j);
	j = open_with(SEG, 8 * SEG);
	ck_assert_int_eq(replay(j), 3);
	ck_assert_uint_eq(seen.seq[0], keep[0]);
	ck_assert_str_eq(seen.text[0], "keep one");
	ck_assert_str_eq(seen.text[2], "keep three");
	ck_assert_uint_eq(seen.seq[2], keep[2]);
	for (int i = 0; i < 3; i++)
		journal_done(j, keep[i]);
	wait_for(journal_open_records(j) == 0);
	journal_close(j);
	j = open_with(SEG, 8 * SEG);
	ck_assert_int_eq(replay(j), 0);
	journal_close(j);
}
END_TEST

struct state {
	int calls;
	bool writable;
	struct fault why;
};

static void on_state(void *arg, bool writable, const struct fault *why)
{
	struct state *s = arg;
	s->calls++;
	s->writable = writable;
	s->why = why ? *why : (struct fault){ .code = 0 };
	ck_assert_int_eq(writable, why == NULL);
}

/* Appends until refused; all that were taken must succeed. Returns how many. */
static int fill(struct journal *j, uint64_t *seqs, int max, int *while_writable)
{
	char p[700] = { 0 };
	int n = 0;
	*while_writable = 0;
	for (; n < max; n++) {
		struct ack a = { 0 };
		*while_writable += journal_writable(j);
		if (journal_append(j, p, sizeof(p), on_ack, &a, &seqs[n]) != 0)
			return n;
		wait_for(a.calls);
		ck_assert_int_eq(a.code, 0);
	}
	return n;
}

START_TEST(total_bound)
{
	struct journal *j = open_with(SEG, 4 * SEG);
	struct state st = { 0 };
	static uint64_t seqs[200];
	journal_on_state(j, on_state, &st);
	int good, n = fill(j, seqs, 200, &good);
	ck_assert_int_ge(n, 4 * 11 - 3);
	ck_assert_int_lt(good, n);
	ck_assert_uint_le(journal_bytes(j), 4 * SEG);
	wait_for(st.calls == 1);
	ck_assert(!journal_writable(j));
	ck_assert_int_eq(st.why.code, ST_FULL);
	ck_assert_ptr_nonnull(strstr(st.why.text, dir));
	journal_close(j);

	/* At the bound it opens for replay and makes room by done. */
	j = open_with(SEG, 4 * SEG);
	st = (struct state){ 0 };
	journal_on_state(j, on_state, &st);
	ck_assert(!journal_writable(j));
	ck_assert_int_eq(replay(j), n);
	wait_for(st.calls == 1);
	ck_assert(!st.writable);
	for (int i = 0; i < n; i++)
		journal_done(j, seqs[i]);
	wait_for(st.calls == 2);
	ck_assert(journal_writable(j));
	put_str(j, "again");
	journal_close(j);
}
END_TEST

/* --- disks that break */

START_TEST(disk_full_shows_before_anything_is_lost)
{
	struct journal *j = open_with(SEG, 64 * SEG);
	struct state st = { 0 };
	static uint64_t seqs[100];
	journal_on_state(j, on_state, &st);
	put_str(j, "x");
	fail_fallocate = ENOSPC;
	int good, n = fill(j, seqs, 100, &good);
	/* the current and the spare were still filled; the gate closed a quarter of a segment before */
	ck_assert_int_ge(n, 20);
	ck_assert_int_le(good, n - 2);
	wait_for(st.calls == 1);
	ck_assert(!st.writable);
	ck_assert_int_eq(st.why.code, ST_NO_SPACE);
	ck_assert_ptr_nonnull(strstr(st.why.text, dir));
	fail_fallocate = 0;
	wait_for(st.calls == 2);
	ck_assert(st.writable && journal_writable(j));
	put_str(j, "y");
	journal_close(j);
	j = open_small();
	ck_assert_int_eq(replay(j), n + 2);
	journal_close(j);
}
END_TEST

START_TEST(done_gives_room_back_on_a_full_disk)
{
	struct journal *j = open_with(SEG, 64 * SEG);
	static uint64_t seqs[100];
	fail_fallocate = ENOSPC;
	int good, n = fill(j, seqs, 100, &good);
	/* Removing the first segment must not need a new allocation; a recycled file has its blocks. */
	fail_fallocate = 0;
	for (int i = 0; i < n; i++)
		journal_done(j, seqs[i]);
	wait_for(journal_writable(j));
	put_str(j, "y");
	journal_close(j);
}
END_TEST

struct notes {
	int calls;
	struct fault last;
};

static void on_note(void *arg, const struct fault *what)
{
	struct notes *n = arg;
	n->calls++;
	n->last = *what;
}

START_TEST(a_file_whose_sync_failed_is_never_touched_again)
{
	struct notes notes = { 0 };
	struct journal *j = open_small();
	struct ack a = { 0 };
	uint64_t seq;
	put_str(j, "before");
	fail_sync = EIO;
	journal_on_note(j, on_note, &notes);
	ck_ok(journal_append(j, "again", 5, on_ack, &a, &seq));
	wait_for(a.calls);
	ck_assert_int_eq(a.code, 0); /* in the next file, which was open already */
	ck_assert(poisoned_ino != 0);
	wait_for(journal_writable(j));
	put_str(j, "after");
	ck_assert_uint_eq(journal_open_records(j), 3);
	settle(j);
	ck_assert_int_eq(notes.calls, 1);
	ck_assert_int_eq(notes.last.code, ST_IO);
	ck_assert_ptr_nonnull(strstr(notes.last.text, dir));
	ck_assert_int_eq(bad_fd_writes, 0);
	journal_close(j);
	ck_assert_int_eq(bad_fd_writes, 0);
	ck_assert_int_eq(a.calls, 1);
	j = open_small();
	replay(j);
	ck_assert_int_eq(seen.n, 3);
	ck_assert_str_eq(seen.text[0], "before");
	ck_assert_str_eq(seen.text[1], "again");
	ck_assert_str_eq(seen.text[2], "after");
	journal_close(j);
}
END_TEST

/* What was marked done in the group that failed is not open again in the next file. */
START_TEST(a_group_that_moves_on_takes_its_marks_along)
{
	struct journal *j = open_small();
	struct ack a[2] = { { 0 } };
	uint64_t first, second;
	put_str(j, "x");
	fail_sync = EIO;
	ck_ok(journal_append(j, "first", 5, on_ack, &a[0], &first));
	ck_ok(journal_append(j, "second", 6, on_ack, &a[1], &second));
	journal_done(j, first);
	wait_for(a[1].calls);
	ck_assert_int_eq(a[1].code, 0);
	settle(j);
	wait_for(journal_open_records(j) == 2);
	journal_close(j);
	j = open_small();
	ck_assert_int_eq(replay(j), 2);
	ck_assert_str_eq(seen.text[1], "second");
	journal_close(j);
}
END_TEST

/* The directory is not ours any more while requests are out: the gate shuts while there is still room for all of their replies. */
START_TEST(rights_that_go_close_the_gate_before_a_reply_has_no_place)
{
	enum { OUT = 6, BYTES = 300 };
	struct journal *j = open_with(SEG, 64 * SEG);
	struct state st = { 0 };
	struct ack acks[OUT] = { { 0 } };
	static char p[BYTES];
	int appended = 0, out = 0;
	uint64_t seq;
	journal_on_state(j, on_state, &st);
	put_str(j, "x");
	fail_names = EACCES;
	while (st.calls == 0 || out > 0) {
		ck_assert_int_lt(appended, 1000);
		while (out < OUT && journal_writable(j) && journal_room(j) >= (uint64_t)(out + 1) * journal_record_size(BYTES))
			out++; /* sent */
		int n = out;
		for (int i = 0; i < n; i++)
			ck_ok(journal_append(j, p, BYTES, on_ack, &acks[i], &seq)); /* answered */
		for (int i = 0; i < n; i++) {
			wait_for(acks[i].calls);
			ck_assert_int_eq(acks[i].code, 0);
			acks[i] = (struct ack){ 0 };
		}
		appended += n;
		out = 0;
		loop_once(loop, US_PER_MS);
	}
	ck_assert_int_ge(appended, 20); /* this segment and the next */
	ck_assert_int_eq(st.why.code, ST_DENIED);
	fail_names = 0;
	wait_for(st.calls == 2);
	ck_assert(journal_writable(j));
	put_str(j, "y");
	journal_close(j);
	j = open_small();
	ck_assert_int_eq(replay(j), appended + 2);
	journal_close(j);
}
END_TEST

static struct journal_name first_segment(void)
{
	struct journal_name name;
	journal_name_make(1, 1, &name);
	return name;
}

/* A byte within the second record of the first segment; where that record begins. Its records hold `len` bytes each. */
static off_t damage_second(size_t len)
{
	char *path = mem_printf("%s/%s", dir, first_segment().name);
	int fd = open(path, O_RDWR);
	const off_t second = JOURNAL_FILE_HEADER + (off_t)journal_record_size(len);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(pwrite(fd, "#", 1, second + JOURNAL_FILE_RECORD), 1);
	close(fd);
	mem_free(path);
	return second;
}

START_TEST(damage_is_told_once_with_file_and_offset)
{
	struct journal *j = open_small();
	struct notes notes = { 0 };
	for (int i = 0; i < 3; i++)
		put_str(j, "twelve bytes");
	journal_close(j);
	j = open_small();
	journal_on_note(j, on_note, &notes);
	settle(j);
	ck_assert_int_eq(notes.calls, 0); /* what is behind the last record is none */
	journal_close(j);
	const off_t second = damage_second(12);
	j = open_small();
	notes = (struct notes){ 0 };
	journal_on_note(j, on_note, &notes);
	wait_for(notes.calls);
	char *want = mem_printf("%s: damaged in 1 place, the first at offset %ld, %zu bytes in all", first_segment().name, (long)second, journal_record_size(12));
	ck_assert_int_eq(notes.last.code, ST_SYNTAX);
	ck_assert_msg(strstr(notes.last.text, want) != NULL, "%s", notes.last.text);
	mem_free(want);
	ck_assert_int_eq(replay(j), 2);
	settle(j);
	ck_assert_int_eq(notes.calls, 1);
	journal_close(j);
}
END_TEST

START_TEST(replay_goes_on_where_it_stopped)
{
	struct journal *j = open_small();
	struct buf b;
	uint64_t seq[4], got;
	for (int i = 0; i < 4; i++)
		seq[i] = put_str(j, "x");
	buf_init(&b, SEG);
	ck_assert_int_eq(journal_replay_next(j, &got, &b), 1);
	ck_assert_uint_eq(got, seq[0]);
	journal_done(j, seq[1]);
	settle(j); /* what came later is not part of it */
	ck_assert_int_eq(journal_replay_next(j, &got, &b), 1);
	ck_assert_uint_eq(got, seq[2]);
	ck_assert_int_eq(journal_replay_next(j, &got, &b), 1);
	ck_assert_uint_eq(got, seq[3]);
	ck_assert_int_eq(journal_replay_next(j, &got, &b), 0);
	ck_assert_int_eq(journal_replay_next(j, &got, &b), 1); /* and then it begins anew */
	ck_assert_uint_eq(got, seq[0]);
	buf_fini(&b);
	journal_close(j);
}
END_TEST

START_TEST(write_errors_and_recovery_by_itself)
{
	static const int errs[] = { EIO, ENOSPC };
	for (int i = 0; i < 2; i++) {
		struct journal *j = open_small();
		struct state st = { 0 };
		struct ack a[3] = { { 0 } };
		uint64_t seq;
		journal_on_state(j, on_state, &st);
		put_str(j, "before");
		fail_write = errs[i];
		for (int k = 0; k < 3; k++)
			ck_ok(journal_append(j, "lost", 4, on_ack, &a[k], &seq));
		wait_for(a[2].calls);
		for (int k = 0; k < 3; k++)
			ck_assert_int_eq(a[k].code, errs[i] == EIO ? ST_IO : ST_NO_SPACE);
		wait_for(st.calls == 1);
		ck_assert_int_eq(st.why.code, errs[i] == EIO ? ST_IO : ST_NO_SPACE);
		ck_assert_int_eq(journal_append(j, "no", 2, on_ack, &a[0], &seq), ST_UNAVAILABLE);
		/* it goes on trying, slower and slower */
		int before = n_write;
		int64_t end = sys_mono_us() + 700 * US_PER_MS;
		while (sys_mono_us() < end)
			loop_once(loop, 50 * US_PER_MS);
		ck_assert_int_ge(n_write - before, 2);
		ck_assert_int_le(n_write - before, 8);
		fail_write = 0;
		wait_for(st.calls == 2);
		put_str(j, "after");
		journal_close(j);
		j = open_small();
		ck_assert_int_eq(replay(j), 2 * (i + 1));
		journal_close(j);
	}
}
END_TEST

START_TEST(failing_fsync_of_new_files)
{
	struct journal *j;
	struct fault f;
	fail_fsync = EIO;
	ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = dir, .sync = true }, &j, &f), ST_IO);
	ck_assert_ptr_nonnull(strstr(f.text, dir));
	fail_fsync = 0;
	fail_fallocate = ENOSPC;
	ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = dir, .sync = true }, &j, &f), ST_NO_SPACE);
	fail_fallocate = 0;
	j = open_small();
	put_str(j, "x");
	journal_close(j);
	/* With something to replay it opens all the same. */
	fail_fallocate = ENOSPC;
	j = open_small();
	ck_assert(!journal_writable(j));
	ck_assert_int_eq(replay(j), 1);
	fail_fallocate = 0;
	wait_for(journal_writable(j));
	journal_close(j);
}
END_TEST

START_TEST(short_writes_are_finished)
{
	short_writes = 1;
	struct journal *j = open_small();
	for (int i = 0; i < 20; i++)
		put_str(j, "a record that needs several writes");
	journal_close(j);
	short_writes = 0;
	j = open_small();
	ck_assert_int_eq(replay(j), 20);
	journal_close(j);
}
END_TEST

static int count_record(void *arg, const struct journal_record *r)
{
	ck_assert_uint_eq(r->seq, 20);
	(*(int *)arg)++;
	return 0;
}

START_TEST(a_recycled_file_shows_nothing_of_its_past)
{
	struct journal_dir d;
	struct journal_name name;
	struct buf b;
	int fd, n = 0;
	ck_ok(journal_dir_open(dir, true, &d, NULL));
	for (uint64_t round = 1; round <= 2; round++) {
		ck_ok(journal_spare_make(&d, SEG, &fd, NULL));
		journal_name_make(round, 1, &name);
		ck_ok(journal_spare_activate(&d, fd, &name, NULL));
		buf_init(&b, SEG);
		for (uint64_t i = 0; i < (round == 1 ? 5 : 1); i++)
			ck_ok(journal_record_append(&b, round, JOURNAL_DATA, 10 * round + i, "same size", 9));
		ck_ok(journal_write(&d, name.name, fd, b.data, b.len, JOURNAL_FILE_HEADER, NULL));
		buf_fini(&b);
		close(fd);
		if (round == 1)
			ck_ok(journal_segment_to_spare(&d, name.name, NULL));
	}
	ck_ok(journal_segment_scan(&d, &name, count_record, &n, NULL, NULL));
	ck_assert_int_eq(n, 1);
	journal_dir_close(&d);
}
END_TEST

static void check_kept(struct journal_store *s, bool moved)
{
	struct buf b;
	const struct journal_place *p = journal_index_find(&s->index, 1);
	buf_init(&b, SEG);
	ck_assert_ptr_nonnull(p);
	ck_assert_int_eq(p->segment->name.number != 1, moved);
	ck_ok(journal_segment_read(&s->dir, &p->segment->name, p->offset, 1, &b));
	ck_assert_str_eq(buf_str(&b), "keep");
	buf_fini(&b);
}

START_TEST(a_move_that_fails_leaves_the_record_where_it_was)
{
	struct journal_store s;
	char p[1000] = { 0 };
	ck_ok(journal_store_open(&s, dir, SEG, 64 * SEG, true, NULL));
	ck_ok(journal_store_stage(&s, 1, "keep", 4));
	for (uint64_t seq = 2; s.files_bytes < 5 * SEG; seq++) {
		if (journal_store_stage(&s, seq, p, sizeof(p)) == ST_AGAIN) {
			ck_ok(journal_store_flush(&s));
			ck_ok(journal_store_rotate(&s));
		}
		journal_store_forget(&s, seq);
	}
	ck_ok(journal_store_flush(&s));
	fail_sync = EIO;
	journal_store_tend(&s, false);
	ck_assert_int_eq(fail_sync, 0);
	check_kept(&s, false);
	journal_store_tend(&s, false);
	check_kept(&s, true);
	ck_assert_uint_le(journal_store_bytes(&s), 3 * SEG);
	journal_store_close(&s);
	struct journal *j = open_small();
	ck_assert_int_ge(replay(j), 1);
	ck_assert_uint_eq(seen.seq[0], 1);
	ck_assert_str_eq(seen.text[0], "keep");
	journal_close(j);
}
END_TEST

/* The same on a real file system that is full, where we may make one. */
START_TEST(really_full_disk)
{
	char data[64] = "size=200k,mode=0700";
	if (mount("none", dir, "tmpfs", 0, data) != 0) {
		printf("# no right to mount a small disk (%s); the injected errors above are the test\n", strerror(errno));
		return;
	}
	struct journal *j = open_with(SEG, 64 * SEG);
	struct state st = { 0 };
	static uint64_t seqs[1000];
	journal_on_state(j, on_state, &st);
	int good, n = fill(j, seqs, 1000, &good);
	ck_assert_int_lt(good, n);
	wait_for(st.calls == 1);
	ck_assert_int_eq(st.why.code, ST_NO_SPACE);
	for (int i = 0; i < n / 2; i++)
		journal_done(j, seqs[i]);
	wait_for(journal_writable(j));
	put_str(j, "again");
	journal_close(j);
	j = open_with(SEG, 64 * SEG);
	ck_assert_int_ge(replay(j), n - n / 2 + 1);
	journal_close(j);
	ck_ok(umount(dir));
}
END_TEST

/* --- rights, locks, parameters */

START_TEST(second_opener)
{
	struct journal *j = open_small(), *k = NULL;
	struct fault f;
	ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = dir, .sync = true }, &k, &f), ST_EXISTS);
	ck_assert_ptr_nonnull(strstr(f.text, dir));
	journal_close(j);
	j = open_small();
	journal_close(j);
}
END_TEST

START_TEST(rights)
{
	struct stat st;
	char sub[128], path[256];
	struct journal_name v[64];
	struct fault f;
	struct journal *j;
	ck_ok(chmod(dir, 0755));
	j = open_small();
	put_str(j, "x");
	ck_ok(stat(dir, &st));
	ck_assert_uint_eq(st.st_mode & 07777, 0700);
	ck_assert_int_eq(list_segments(v), 2); /* the next one is there already */
	path_of(path, v[0].name);
	ck_ok(stat(path, &st));
	ck_assert_uint_eq(st.st_mode & 07777, 0600);
	journal_close(j);

	snprintf(sub, sizeof(sub), "%s/made", dir);
	ck_ok(journal_open(loop, &(struct journal_params){ .dir = sub, .sync = true }, &j, NULL));
	ck_ok(stat(sub, &st));
	ck_assert_uint_eq(st.st_mode & 07777, 0700);
	journal_close(j);

	ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = "/dev/null", .sync = true }, &j, &f), ST_IO);
	ck_assert_ptr_nonnull(strstr(f.text, "/dev/null"));
	ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = "/nonexistent/a/b", .sync = true }, &j, &f), ST_IO);
	if (geteuid() == 0) {
		ck_ok(chown(sub, 12345, 12345));
		ck_assert_int_eq(journal_open(loop, &(struct journal_params){ .dir = sub, .sync = true }, &j, &f), ST_DENIED);
		ck_assert_ptr_nonnull(strstr(f.text, "12345"));
	}
}
END_TEST

START_TEST(parameters)
{
	struct journal *j;
	struct fault f;
	static const struct journal_params bad[] = {
		{ .segment_bytes = 4095 }, { .segment_bytes = 4100 }, { .segment_bytes = UINT64_C(1) << 31 }, { .max_bytes = 1 << 20 },
	};
	for (int i = 0; i < 4; i++) {
		struct journal_params p = bad[i];
		p.dir = dir;
		ck_assert_int_eq(journal_open(loop, &p, &j, &f), ST_RANGE);
		ck_assert_ptr_nonnull(strstr(f.text, dir));
	}
}
END_TEST

/* --- inspect */

struct found {
	int n, done;
	uint64_t last;
};

static int on_inspect(void *arg, uint64_t seq, bool done, const void *p, size_t n)
{
	struct found *x = arg;
	ck_assert_uint_gt(seq, x->last);
	ck_assert_uint_eq(n, 4);
	ck_assert_mem_eq(p, "data", 4);
	x->last = seq;
	x->n++;
	x->done += done;
	return 0;
}

static int ignore_inspected(void *arg, uint64_t seq, bool done, const void *p, size_t n)
{
	(void)arg, (void)seq, (void)done, (void)p, (void)n;
	return 0;
}

static int inspect_stop(void *arg, uint64_t seq, bool done, const void *p, size_t n)
{
	(void)arg, (void)seq, (void)done, (void)p, (void)n;
	return ST_CANCELED;
}

START_TEST(inspect_while_in_use)
{
	struct journal *j = open_small();
	uint64_t seq = 0;
	for (int i = 0; i < 10; i++)
		seq = put_str(j, "data");
	journal_done(j, seq);
	wait_for(journal_open_records(j) == 9);
	struct found x = { 0 };
	struct fault f;
	ck_ok(journal_inspect(dir, on_inspect, NULL, &x, &f));
	ck_assert_int_eq(x.n, 10);
	ck_assert_int_eq(x.done, 1);
	ck_assert_int_eq(journal_inspect(dir, inspect_stop, NULL, NULL, &f), ST_CANCELED);
	put_str(j, "still works");
	journal_close(j);
	ck_assert_int_eq(journal_inspect("/nonexistent", on_inspect, NULL, &x, &f), ST_NOT_FOUND);
	ck_assert_ptr_nonnull(strstr(f.text, "/nonexistent"));
}
END_TEST

static void on_damaged(void *arg, const struct fault *what)
{
	struct notes *x = arg;
	x->calls++;
	x->last = *what;
}

START_TEST(inspect_tells_damage_before_the_records)
{
	struct journal *j = open_small();
	struct notes notes = { 0 };
	struct fault f;
	for (int i = 0; i < 3; i++)
		put_str(j, "data");
	journal_close(j);
	struct found x = { 0 };
	ck_ok(journal_inspect(dir, ignore_inspected, on_damaged, &notes, &f)); /* what is behind the last record is none */
	ck_assert_int_eq(notes.calls, 0);
	const off_t second = damage_second(4);
	ck_ok(journal_inspect(dir, ignore_inspected, on_damaged, &notes, &f));
	ck_assert_int_eq(notes.calls, 1);
	char *want = mem_printf("%s: damaged in 1 place, the first at offset %ld, %zu bytes in all", first_segment().name, (long)second, journal_record_size(4));
	ck_assert_int_eq(notes.last.code, ST_SYNTAX);
	ck_assert_msg(strstr(notes.last.text, want) != NULL, "%s", notes.last.text);
	ck_ok(journal_inspect(dir, on_inspect, NULL, &x, &f));
	ck_assert_int_eq(x.n, 2);
	mem_free(want);
}
END_TEST

/* --- volume and crashes */

START_TEST(hundred_thousand_records)
{
	struct journal *j = open_with(0, 0);
	enum { N = 100000, WINDOW = 2000 };
	struct ack a = { 0 };
	char p[300];
	memset(p, 'p', sizeof(p));
	int64_t start = sys_mono_us();
	static uint64_t seqs[N];
	int sent = 0, done = 0;
	while (a.calls < N) {
		for (; sent < N && sent - a.calls < WINDOW; sent++)
			ck_ok(journal_append(j, p, sizeof(p), on_ack, &a, &seqs[sent]));
		loop_once(loop, 100 * US_PER_MS);
		for (; done < a.calls - 100; done++)
			journal_done(j, seqs[done]);
	}
	ck_assert_int_eq(a.code, 0);
	double s = (double)(sys_mono_us() - start) / 1e6;
	printf("# %d records in %.2f s: %.0f/s, %d syncs, %.1f MiB on disk\n", N, s, N / s, (int)n_sync,
		(double)journal_bytes(j) / 1048576);
	ck_assert_double_lt(s, 60);
	journal_close(j);
	j = open_with(0, 0);
	int n = replay(j);
	ck_assert_int_ge(n, 1);
	ck_assert_int_le(n, 101);
	journal_close(j);
}
END_TEST

struct child {
	struct journal *j;
	int fd;
};

struct child_ack {
	struct child *c;
	uint64_t seq;
	uint32_t value;
};

static void on_child_ack(void *arg, int code)
{
	struct child_ack *a = arg;
	struct {
		uint64_t seq;
		uint32_t value, zero;
	} m = { a->seq, a->value, 0 };
	if (code != 0 || write(a->c->fd, &m, sizeof(m)) != sizeof(m))
		_exit(3);
	free(a);
}

/* Appends for ever, a few in each turn, of varying size, none done. */
static void child_main(int fd, unsigned seed)
{
	struct child c = { .fd = fd };
	srandom(seed);
	ck_ok(loop_new(&loop, NULL));
	c.j = open_with(65536, 64u << 20);
	for (uint32_t v = 1;; v++) {
		struct child_ack *a = malloc(sizeof(*a));
		uint8_t p[2000];
		size_t n = 8 + (size_t)(random() % 1900);
		memset(p, (int)(v & 0xff), n);
		memcpy(p, &v, 4);
		uint32_t len = (uint32_t)n;
		memcpy(p + 4, &len, 4);
		a->c = &c;
		a->value = v;
		int code;
		while ((code = journal_append(c.j, p, n, on_child_ack, a, &a->seq)) == ST_UNAVAILABLE)
			loop_once(loop, 2000); /* faster than the disk */
		if (code != 0)
			_exit(4);
		if (random() % 8 == 0)
			loop_once(loop, (random() % 2) ? 0 : 2000);
	}
}

static uint32_t values[1 << 16];
static uint64_t value_seq[1 << 16];
static int n_values;

static int check_child_record(void *arg, uint64_t seq, const void *p, size_t n)
{
	(void)arg;
	const uint8_t *b = p;
	uint32_t v, len;
	ck_assert_uint_ge(n, 8);
	memcpy(&v, b, 4);
	memcpy(&len, b + 4, 4);
	ck_assert_uint_eq(len, n);
	for (size_t i = 8; i < n; i++)
		ck_assert_uint_eq(b[i], v & 0xff);
	ck_assert_int_lt(n_values, 1 << 16);
	values[n_values] = v;
	value_seq[n_values++] = seq;
	return 0;
}

START_TEST(killed_in_the_middle)
{
	journal_file_set_ops(NULL);
	unsigned seed = (unsigned)time(NULL);
	printf("# seed %u\n", seed);
	for (int round = 0; round < 8; round++) {
		int fds[2];
		ck_ok(pipe(fds));
		pid_t pid = fork();
		if (pid == 0) {
			close(fds[0]);
			child_main(fds[1], seed + (unsigned)round);
			_exit(0);
		}
		close(fds[1]);
		struct {
			uint64_t seq;
			uint32_t value, zero;
		} m;
		static uint64_t acked_seq[1 << 16];
		static uint32_t acked_value[1 << 16];
		int acked = 0, target = 20 + round * 37;
		while (read(fds[0], &m, sizeof(m)) == sizeof(m)) {
			ck_assert_int_lt(acked, 1 << 16);
			acked_seq[acked] = m.seq;
			acked_value[acked++] = m.value;
			if (acked == target)
				kill(pid, SIGKILL);
		}
		close(fds[0]);
		int ws;
		ck_assert_int_eq(waitpid(pid, &ws, 0), pid);
		ck_assert(WIFSIGNALED(ws) && WTERMSIG(ws) == SIGKILL);
		ck_assert_int_ge(acked, target);
		struct journal *j = open_with(65536, 64u << 20);
		n_values = 0;
		ck_ok(journal_replay(j, check_child_record, NULL));
		for (int i = 0, k = 0; i < acked; i++) {
			while (k < n_values && value_seq[k] < acked_seq[i])
				k++;
			ck_assert_msg(k < n_values && value_seq[k] == acked_seq[i], "acknowledged record %d is gone", i);
			ck_assert_uint_eq(values[k], acked_value[i]);
		}
		for (int i = 0; i < n_values; i++)
			journal_done(j, value_seq[i]);
		wait_for(journal_open_records(j) == 0);
		journal_close(j);
	}
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("journal");
	TCase *t = tcase_create("journal");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	unit_add(t, append_replay_done);
	unit_add(t, callback_only_after_the_sync);
	unit_add(t, sync_durations_are_told);
	unit_add(t, without_sync);
	unit_add(t, close_drops_callbacks_and_keeps_records);
	unit_add(t, close_inside_a_callback);
	unit_add(t, payload_limits);
	unit_add(t, replay_may_be_stopped_and_may_finish_records);
	unit_add(t, tail_cut_at_every_byte);
	unit_add(t, any_damaged_byte);
	unit_add(t, a_damaged_record_hides_no_other);
	unit_add(t, length_beyond_the_segment_and_foreign_files);
	unit_add(t, newer_format_is_refused);
	unit_add(t, size_stays_bounded);
	unit_add(t, few_open_records_are_moved);
	unit_add(t, total_bound);
	unit_add(t, disk_full_shows_before_anything_is_lost);
	unit_add(t, done_gives_room_back_on_a_full_disk);
	unit_add(t, a_file_whose_sync_failed_is_never_touched_again);
	unit_add(t, a_group_that_moves_on_takes_its_marks_along);
	unit_add(t, rights_that_go_close_the_gate_before_a_reply_has_no_place);
	unit_add(t, damage_is_told_once_with_file_and_offset);
	unit_add(t, replay_goes_on_where_it_stopped);
	unit_add(t, write_errors_and_recovery_by_itself);
	unit_add(t, failing_fsync_of_new_files);
	unit_add(t, short_writes_are_finished);
	unit_add(t, a_recycled_file_shows_nothing_of_its_past);
	unit_add(t, a_move_that_fails_leaves_the_record_where_it_was);
	unit_add(t, really_full_disk);
	unit_add(t, second_opener);
	unit_add(t, rights);
	unit_add(t, parameters);
	unit_add(t, inspect_while_in_use);
	unit_add(t, inspect_tells_damage_before_the_records);
	unit_add(t, hundred_thousand_records);
	unit_add(t, killed_in_the_middle);
	suite_add_tcase(s, t);
	return s;
}
