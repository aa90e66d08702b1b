/*
 * journal_file - format and file operations of the journal. Knows nothing of threads, groups or what is
 * still open; every call that changes the disk goes through one table, so that a test can make it fail.
 * Reading trusts nothing: no length beyond the file, no record whose sum does not fit, no header.
 * Must not retry a failed sync and must not write into a file twice at one place.
 */
#include "io/journal_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/crypto.h"
#include "base/mem.h"
#include "io/journal.h"

#define SEGMENT_MAGIC "RFDJRNL1"
#define SEGMENT_VERSION 1u
#define RECORD_MAGIC 0x314a4652u /* "RFJ1" */
#define WINDOW_BYTES ((size_t)64 * 1024)

static int real_openat(int dirfd, const char *name, int flags, mode_t mode)
{
	return openat(dirfd, name, flags, mode);
}

static int real_rename(int dirfd, const char *from, const char *to)
{
	return renameat(dirfd, from, dirfd, to);
}

static int real_unlink(int dirfd, const char *name)
{
	return unlinkat(dirfd, name, 0);
}

const struct journal_ops journal_file_real_ops = {
	.openat = real_openat,
	.fallocate = posix_fallocate,
	.pwrite = pwrite,
	.fdatasync = fdatasync,
	.fsync = fsync,
	.rename = real_rename,
	.unlink = real_unlink,
};

static const struct journal_ops *ops = &journal_file_real_ops;

void journal_file_set_ops(const struct journal_ops *o)
{
	ops = o ? o : &journal_file_real_ops;
}

static int file_fault(struct fault *f, const struct journal_dir *d, const char *name, const char *what, int err)
{
	return fault_set(f, status_of_errno(err), "%s/%s: %s: %s", d->path, name, what, strerror(err));
}

/* --- the directory */

static int sync_dir(const struct journal_dir *d, struct fault *f)
{
	if (ops->fsync(d->fd) != 0)
		return file_fault(f, d, ".", "fsync", errno);
	return 0;
}

/* A directory that was just made is durable only when its parent is. */
static int sync_parent(const struct journal_dir *d, struct fault *f)
{
	int fd = ops->openat(d->fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	if (fd < 0)
		return file_fault(f, d, "..", "open", errno);
	int code = ops->fsync(fd) != 0 ? file_fault(f, d, "..", "fsync", errno) : 0;
	close(fd);
	return code;
}

static int own_dir(const struct journal_dir *d, struct fault *f)
{
	struct stat st;
	if (fstat(d->fd, &st) != 0)
		return file_fault(f, d, ".", "stat", errno);
	if (st.st_uid != geteuid())
		return fault_set(f, ST_DENIED, "%s: belongs to user %u, not to user %u that runs this program", d->path,
			(unsigned)st.st_uid, (unsigned)geteuid());
	if ((st.st_mode & 077) != 0 && fchmod(d->fd, 0700) != 0)
		return file_fault(f, d, ".", "chmod to 0700", errno);
	return 0;
}

int journal_dir_open(const char *path, bool own, struct journal_dir *out, struct fault *f)
{
	bool made = own && mkdir(path, 0700) == 0;
	if (own && !made && errno != EEXIST)
		return fault_set(f, status_of_errno(errno) == ST_NOT_FOUND ? ST_IO : status_of_errno(errno), "%s: mkdir: %s",
			path, strerror(errno));
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return fault_set(f, status_of_errno(errno), "%s: open directory: %s", path, strerror(errno));
	struct journal_dir d = { .fd = fd, .path = mem_strdup(path) };
	int code = own ? own_dir(&d, f) : 0;
	if (code == 0 && made)
		code = sync_parent(&d, f);
	if (code != 0) {
		journal_dir_close(&d);
		return code;
	}
	*out = d;
	return 0;
}

void journal_dir_close(struct journal_dir *d)
{
	if (d->path == NULL)
		return;
	close(d->fd);
	mem_free(d->path);
	*d = (struct journal_dir){ .fd = -1, .path = NULL };
}

int journal_dir_lock(const struct journal_dir *d, int *out, struct fault *f)
{
	int fd = openat(d->fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return file_fault(f, d, "lock", "open", errno);
	if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
		int err = errno;
		close(fd);
		if (err == EWOULDBLOCK)
			return fault_set(f, ST_EXISTS, "%s: in use by another process", d->path);
		return file_fault(f, d, "lock", "flock", err);
	}
	*out = fd;
	return 0;
}

void journal_name_make(uint64_t number, uint64_t first_seq, struct journal_name *out)
{
	out->number = number;
	out->first_seq = first_seq;
	snprintf(out->name, sizeof(out->name), "%016" PRIx64 "-%016" PRIx64 ".seg", number, first_seq);
}

static bool parse_hex16(const char *s, uint64_t *out)
{
	uint64_t v = 0;
	for (int i = 0; i < 16; i++) {
		char c = s[i];
		if (c >= '0' && c <= '9')
			v = v << 4 | (uint64_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			v = v << 4 | (uint64_t)(c - 'a' + 10);
		else
			return false;
	}
	*out = v;
	return true;
}

static bool parse_name(const char *s, struct journal_name *out)
{
	uint64_t number, first_seq;
	if (strlen(s) != 37 || s[16] != '-' || strcmp(s + 33, ".seg") != 0)
		return false;
	if (!parse_hex16(s, &number) || !parse_hex16(s + 17, &first_seq))
		return false;
	journal_name_make(number, first_seq, out);
	return true;
}

static int name_order(const void *a, const void *b)
{
	const struct journal_name *x = a, *y = b;
	return x->number < y->number ? -1 : x->number > y->number;
}

int journal_dir_list(const struct journal_dir *d, struct journal_name **out, size_t *out_n, struct fault *f)
{
	int fd = openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (dir == NULL) {
		int err = errno;
		if (fd >= 0)
			close(fd);
		return file_fault(f, d, ".", "open directory", err);
	}
	struct journal_name *v = NULL;
	size_t n = 0, cap = 0;
	struct dirent *e;
	while ((errno = 0, e = readdir(dir)) != NULL) {
		struct journal_name name;
		if (!parse_name(e->d_name, &name))
			continue;
		if (n == cap) {
			cap = cap ? cap * 2 : 16;
			v = mem_realloc(v, cap, sizeof(*v));
		}
		v[n++] = name;
	}
	int err = errno;
	closedir(dir);
	if (err != 0) {
		mem_free(v);
		return file_fault(f, d, ".", "read directory", err);
	}
	if (n > 0)
		qsort(v, n, sizeof(*v), name_order);
	*out = v;
	*out_n = n;
	return 0;
}

/* --- making and removing segments */

static int fill_spare(const struct journal_dir *d, int fd, uint64_t bytes, struct fault *f)
{
	int err = ops->fallocate(fd, 0, (off_t)bytes);
	if (err != 0)
		return file_fault(f, d, JOURNAL_FILE_SPARE, "allocate", err);
	if (ftruncate(fd, (off_t)bytes) != 0)
		return file_fault(f, d, JOURNAL_FILE_SPARE, "truncate", errno);
	if (ops->fsync(fd) != 0)
		return file_fault(f, d, JOURNAL_FILE_SPARE, "fsync", errno);
	return sync_dir(d, f);
}

int journal_spare_make(const struct journal_dir *d, uint64_t bytes, int *out, struct fault *f)
{
	int fd = ops->openat(d->fd, JOURNAL_FILE_SPARE, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return file_fault(f, d, JOURNAL_FILE_SPARE, "open", errno);
	int code = fill_spare(d, fd, bytes, f);
	if (code != 0) {
		close(fd);
		/* Gives its blocks back; should this fail too, the next attempt takes the file over. */
		ops->unlink(d->fd, JOURNAL_FILE_SPARE);
		return code;
	}
	*out = fd;
	return 0;
}

static int activate(const struct journal_dir *d, int fd, const struct journal_name *name, struct fault *f)
{
	uint8_t h[JOURNAL_FILE_HEADER] = { 0 };
	memcpy(h, SEGMENT_MAGIC, 8);
	bytes_put_le32(h + 8, SEGMENT_VERSION);
	bytes_put_le64(h + 16, name->number);
	bytes_put_le64(h + 24, name->first_seq);
	bytes_put_le32(h + 36, crypto_crc32c(0, h, 36));
	int code = journal_write(d, JOURNAL_FILE_SPARE, fd, h, sizeof(h), 0, f);
	if (code != 0)
		return code;
	if (ops->fsync(fd) != 0)
		return file_fault(f, d, JOURNAL_FILE_SPARE, "fsync", errno);
	if (ops->rename(d->fd, JOURNAL_FILE_SPARE, name->name) != 0)
		return file_fault(f, d, name->name, "rename from spare", errno);
	return sync_dir(d, f);
}

int journal_spare_activate(const struct journal_dir *d, int fd, const struct journal_name *name, struct fault *f)
{
	int code = activate(d, fd, name, f);
	if (code != 0) {
		/* Whatever name it has now: it holds nothing. What stays is an empty segment, removed at the next start. */
		ops->unlink(d->fd, JOURNAL_FILE_SPARE);
		ops->unlink(d->fd, name->name);
	}
	return code;
}

int journal_segment_remove(const struct journal_dir *d, const char *name, struct fault *f)
{
	if (ops->unlink(d->fd, name) != 0 && errno != ENOENT)
		return file_fault(f, d, name, "unlink", errno);
	return sync_dir(d, f);
}

int journal_segment_to_spare(const struct journal_dir *d, const char *name, struct fault *f)
{
	if (ops->rename(d->fd, name, JOURNAL_FILE_SPARE) != 0)
		return file_fault(f, d, name, "rename to spare", errno);
	return 0;
}

/* --- records */

size_t journal_record_size(size_t n)
{
	return (JOURNAL_FILE_RECORD + n + 7) & ~(size_t)7;
}

static uint32_t record_sum(uint64_t number, const uint8_t head[20], const void *p, size_t n)
{
	uint8_t num[8];
	bytes_put_le64(num, number);
	uint32_t crc = crypto_crc32c(0, num, sizeof(num));
	crc = crypto_crc32c(crc, head, 20);
	return n > 0 ? crypto_crc32c(crc, p, n) : crc;
}

int journal_record_append(struct buf *out, uint64_t number, enum journal_type type, uint64_t seq, const void *p, size_t n)
{
	static const uint8_t zeros[8];
	uint8_t h[JOURNAL_FILE_RECORD];
	size_t pad = journal_record_size(n) - JOURNAL_FILE_RECORD - n;
	ALWAYS(n <= JOURNAL_RECORD_MAX);
	bytes_put_le32(h, RECORD_MAGIC);
	bytes_put_le32(h + 4, (uint32_t)type);
	bytes_put_le64(h + 8, seq);
	bytes_put_le32(h + 16, (uint32_t)n);
	bytes_put_le32(h + 20, record_sum(number, h, p, n));
	int code = buf_reserve(out, journal_record_size(n));
	if (code == 0)
		code = buf_append(out, h, sizeof(h));
	if (code == 0 && n > 0)
		code = buf_append(out, p, n);
	if (code == 0 && pad > 0)
		code = buf_append(out, zeros, pad);
	return code;
}

int journal_write(const struct journal_dir *d, const char *name, int fd, const void *p, size_t n, uint64_t offset, struct fault *f)
{
	const uint8_t *at = p;
	while (n > 0) {
		ssize_t k = ops->pwrite(fd, at, n, (off_t)offset);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return file_fault(f, d, name, "write", k < 0 ? errno : EIO);
		at += k;
		offset += (uint64_t)k;
		n -= (size_t)k;
	}
	return 0;
}

int journal_datasync(const struct journal_dir *d, const char *name, int fd, struct fault *f)
{
	if (ops->fdatasync(fd) != 0)
		return file_fault(f, d, name, "fdatasync", errno);
	return 0;
}

/* --- reading */

/* Up to n bytes: fewer only at the end of the file. Negative with errno on failure. */
static ssize_t read_at(int fd, void *p, size_t n, uint64_t offset)
{
	size_t got = 0;
	while (got < n) {
		ssize_t k = pread(fd, (uint8_t *)p + got, n - got, (off_t)(offset + got));
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return -1;
		if (k == 0)
			break;
		got += (size_t)k;
	}
	return (ssize_t)got;
}

/* 1: a valid record, 0: none here, -1: errno. The payload is put into `body`. */
static int read_record(int fd, uint64_t number, uint64_t offset, uint64_t size, struct buf *body, struct journal_record *r)
{
	uint8_t h[JOURNAL_FILE_RECORD];
	if (offset > size || size - offset < sizeof(h))
		return 0;
	ssize_t k = read_at(fd, h, sizeof(h), offset);
	if (k != (ssize_t)sizeof(h))
		return k < 0 ? -1 : 0;
	uint32_t type = bytes_get_le32(h + 4), n = bytes_get_le32(h + 16);
	if (bytes_get_le32(h) != RECORD_MAGIC || (type != JOURNAL_DATA && type != JOURNAL_DONE) || n > JOURNAL_RECORD_MAX)
		return 0;
	if (n > size - offset - sizeof(h))
		return 0;
	buf_reset(body);
	if (buf_reserve(body, n) != 0)
		return 0;
	k = n > 0 ? read_at(fd, body->data, n, offset + sizeof(h)) : 0;
	if (k != (ssize_t)n)
		return k < 0 ? -1 : 0;
	buf_added(body, n);
	if (record_sum(number, h, body->data, n) != bytes_get_le32(h + 20))
		return 0;
	*r = (struct journal_record){ .type = (enum journal_type)type, .seq = bytes_get_le64(h + 8), .offset = offset, .p = body->data, .n = n };
	return 1;
}

static int open_segment(const struct journal_dir *d, const char *name, int *out, uint64_t *size, struct fault *f)
{
	struct stat st;
	int fd = openat(d->fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return file_fault(f, d, name, "open", errno);
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return fault_set(f, ST_IO, "%s/%s: not a regular file", d->path, name);
	}
	*out = fd;
	*size = (uint64_t)st.st_size;
	return 0;
}

/* A damaged header is no reason to lose the records behind it; an intact one of another version is. */
static int check_version(const struct journal_dir *d, const char *name, int fd, struct fault *f)
{
	uint8_t h[JOURNAL_FILE_HEADER];
	ssize_t k = read_at(fd, h, sizeof(h), 0);
	if (k < 0)
		return file_fault(f, d, name, "read", errno);
	if (k != (ssize_t)sizeof(h) || memcmp(h, SEGMENT_MAGIC, 8) != 0 || bytes_get_le32(h + 36) != crypto_crc32c(0, h, 36))
		return 0;
	if (bytes_get_le32(h + 8) != SEGMENT_VERSION)
		return fault_set(f, ST_VERSION, "%s/%s: format version %" PRIu32 ", this program reads %u", d->path, name,
			bytes_get_le32(h + 8), SEGMENT_VERSION);
	return 0;
}

/* A part of the segment in which the next record is looked for. */
struct window {
	uint8_t *data; /* WINDOW_BYTES, made when there is damage to get over */
	uint64_t from, n;
};

/* Moves *offset to the next place behind it where a record may begin: 1, 0: there is none, -1: errno. */
static int skip_damage(int fd, struct window *w, uint64_t *offset)
{
	if (w->data == NULL)
		w->data = mem_alloc(WINDOW_BYTES);
	for (uint64_t at = *offset + 8;; at += 8) {
		if (at < w->from || at + 8 > w->from + w->n) {
			ssize_t k = read_at(fd, w->data, WINDOW_BYTES, at);
			if (k < 0)
				return -1;
			w->from = at;
			w->n = (uint64_t)k;
			if (k < 8)
				return 0;
		}
		if (bytes_get_le32(w->data + (at - w->from)) != RECORD_MAGIC)
			continue;
		*offset = at;
		return 1;
	}
}

static void note_damage(struct journal_damage *d, uint64_t from, uint64_t to)
{
	if (d == NULL)
		return;
	if (d->n++ == 0)
		d->offset = from;
	d->bytes += to - from;
}

static int scan_records(int fd, const struct journal_dir *d, const struct journal_name *name, uint64_t size, journal_scan_fn *fn,
	void *arg, struct journal_damage *damage, struct fault *f)
{
	struct window w = { .data = NULL };
	struct buf body;
	buf_init(&body, JOURNAL_RECORD_MAX);
	uint64_t offset = JOURNAL_FILE_HEADER, good = offset; /* good: behind the last record that was one */
	int code = 0, got = 1;
	while (code == 0 && got > 0) {
		struct journal_record r;
		got = read_record(fd, name->number, offset, size, &body, &r);
		if (got > 0) {
			if (offset > good)
				note_damage(damage, good, offset);
			good = offset += journal_record_size(r.n);
			code = fn(arg, &r);
		} else if (got == 0) {
			/* A damaged record must not hide the good ones behind it: each may be all that is left of a token. */
			got = skip_damage(fd, &w, &offset);
		}
		if (got < 0)
			code = file_fault(f, d, name->name, "read", errno);
	}
	mem_free(w.data);
	buf_fini(&body);
	return code;
}

int journal_segment_scan(const struct journal_dir *d, const struct journal_name *name, journal_scan_fn *fn, void *arg,
	struct journal_damage *damage, struct fault *f)
{
	int fd;
	uint64_t size;
	int code = open_segment(d, name->name, &fd, &size, f);
	if (code != 0)
		return code;
	code = check_version(d, name->name, fd, f);
	if (code == 0)
		code = scan_records(fd, d, name, size, fn, arg, damage, f);
	close(fd);
	return code;
}

void journal_damage_describe(const struct journal_dir *d, const struct journal_name *name, const struct journal_damage *damage,
	struct fault *out)
{
	(void)fault_set(out, ST_SYNTAX, "%s/%s: damaged in %u place%s, the first at offset %" PRIu64 ", %" PRIu64 " bytes in all", d->path,
		name->name, damage->n, damage->n == 1 ? "" : "s", damage->offset, damage->bytes);
}

int journal_segment_read(const struct journal_dir *d, const struct journal_name *name, uint64_t offset, uint64_t seq, struct buf *out)
{
	int fd;
	uint64_t size;
	int code = open_segment(d, name->name, &fd, &size, NULL);
	if (code != 0)
		return ST_IO;
	struct journal_record r;
	bool ok = read_record(fd, name->number, offset, size, out, &r) == 1 && r.seq == seq && r.type == JOURNAL_DATA;
	close(fd);
	return ok ? 0 : ST_IO;
}

int journal_segment_bytes(const struct journal_dir *d, const char *name, uint64_t *out, struct fault *f)
{
	struct stat st;
	if (fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
		return file_fault(f, d, name, "stat", errno);
	*out = (uint64_t)st.st_size;
	return 0;
}
