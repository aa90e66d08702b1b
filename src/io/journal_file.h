/*
 * journal_file - the journal's bytes on disk and the file operations under them.
 *
 * A segment is a preallocated file "<number>-<first seq>.seg" (16 hex digits each):
 *   header  40 bytes: magic "RFDJRNL1", version u32, zero u32, number u64, first seq u64, zero u32, crc u32
 *   records 8-byte aligned: magic u32, type u32, seq u64, payload bytes u32, crc u32, payload, zeros to 8
 * All numbers are little-endian, all sums CRC-32C. A record's sum starts with the segment's number, so what a
 * recycled file still holds behind its new end never passes. The name repeats number and first seq: a
 * damaged header costs nothing. The next segment is there already, empty; while it is made it is called "spare".
 */
#ifndef REFRESHD_IO_JOURNAL_FILE_H
#define REFRESHD_IO_JOURNAL_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/status.h"

#define JOURNAL_FILE_HEADER 40u
#define JOURNAL_FILE_RECORD 24u
#define JOURNAL_FILE_NAME 40u /* bytes of a name with its NUL */
#define JOURNAL_FILE_SPARE "spare"

enum journal_type { JOURNAL_DATA = 1, JOURNAL_DONE = 2 };

/* The system calls, as the tests may replace them: to run out of space or to break at the Nth call. */
struct journal_ops {
	int (*openat)(int dirfd, const char *name, int flags, mode_t mode);
	int (*fallocate)(int fd, off_t offset, off_t n); /* 0 or an errno value, as posix_fallocate */
	ssize_t (*pwrite)(int fd, const void *p, size_t n, off_t offset);
	int (*fdatasync)(int fd);
	int (*fsync)(int fd);
	int (*rename)(int dirfd, const char *from, const char *to);
	int (*unlink)(int dirfd, const char *name);
};
extern const struct journal_ops journal_file_real_ops;
void journal_file_set_ops(const struct journal_ops *ops); /* NULL: the real ones. Only while no journal is open */

/* Where a directory is; `path` is for fault texts. */
struct journal_dir {
	int fd;
	char *path;
};
/*
 * Opens DIR; with `own` makes it (0700) when missing and takes the group's and the world's rights away when it has
 * any; ST_DENIED when it belongs to another user. ST_NOT_FOUND without `own`.
 */
int journal_dir_open(const char *path, bool own, struct journal_dir *out, struct fault *f) MUST_USE;
void journal_dir_close(struct journal_dir *d);
int journal_dir_lock(const struct journal_dir *d, int *fd, struct fault *f) MUST_USE; /* ST_EXISTS: another process has it */

struct journal_name {
	uint64_t number, first_seq;
	char name[JOURNAL_FILE_NAME];
};
void journal_name_make(uint64_t number, uint64_t first_seq, struct journal_name *out);
/* All segments in the order of their numbers; the array is the caller's to mem_free. Foreign files are left alone. */
int journal_dir_list(const struct journal_dir *d, struct journal_name **v, size_t *n, struct fault *f) MUST_USE;

/* Makes (or takes over) the spare, `bytes` long with its blocks allocated, durable. A failed one is removed. */
int journal_spare_make(const struct journal_dir *d, uint64_t bytes, int *fd, struct fault *f) MUST_USE;
/* Turns the spare into the segment `name`, durable; on failure it is removed. The spare's descriptor stays the caller's. */
int journal_spare_activate(const struct journal_dir *d, int fd, const struct journal_name *name, struct fault *f) MUST_USE;
int journal_segment_remove(const struct journal_dir *d, const char *name, struct fault *f) MUST_USE; /* durable; missing is fine */
/* Only a rename: journal_spare_make takes the file over and makes that durable. */
int journal_segment_to_spare(const struct journal_dir *d, const char *name, struct fault *f) MUST_USE;

size_t journal_record_size(size_t n); /* on disk, for a payload of n bytes */
int journal_record_append(struct buf *out, uint64_t number, enum journal_type type, uint64_t seq, const void *p, size_t n) MUST_USE;
/* The whole of `p` at `offset`, however short the single writes are. */
int journal_write(const struct journal_dir *d, const char *name, int fd, const void *p, size_t n, uint64_t offset, struct fault *f) MUST_USE;
int journal_datasync(const struct journal_dir *d, const char *name, int fd, struct fault *f) MUST_USE;

struct journal_record {
	enum journal_type type;
	uint64_t seq;
	uint64_t offset; /* of the record in the segment */
	const uint8_t *p; /* borrowed until the next record */
	size_t n;
};
typedef int journal_scan_fn(void *arg, const struct journal_record *r);
struct journal_damage { /* places where bytes that are no record lie before a record that is one */
	unsigned n;
	uint64_t offset, bytes; /* of the first place; of all */
};
/*
 * Every valid record, in order; damage between them is passed over and counted (NULL: not). A negative return of fn stops and is returned. ST_IO
 * when the file cannot be read, ST_NOT_FOUND when it is gone, ST_VERSION when a newer program wrote it.
 */
int journal_segment_scan(const struct journal_dir *d, const struct journal_name *name, journal_scan_fn *fn, void *arg,
	struct journal_damage *damage, struct fault *f) MUST_USE;
/* What was found, in a sentence with file and offset: ST_SYNTAX. */
void journal_damage_describe(const struct journal_dir *d, const struct journal_name *name, const struct journal_damage *damage,
	struct fault *out);
/* The one record at `offset`; ST_IO when it is not there. `out` is replaced. */
int journal_segment_read(const struct journal_dir *d, const struct journal_name *name, uint64_t offset, uint64_t seq, struct buf *out) MUST_USE;
/* The size of a segment's file. */
int journal_segment_bytes(const struct journal_dir *d, const char *name, uint64_t *out, struct fault *f) MUST_USE;

#endif
