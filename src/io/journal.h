/*
 * journal - replies that must survive us: append-only, checksummed, fdatasync'ed in groups.
 *
 * The hole between a provider's rotation and our commit is closed here: a reply is on disk before it is
 * parsed. All I/O happens in one writer thread; records handed over while it syncs make the next group,
 * so a slow disk delays replies but never the loop. Segments are preallocated (a full disk shows before a
 * token is spent), each file and the directory are fsync'ed at creation, a torn tail is ignored. After a
 * failed write or sync the segment is never touched again (the kernel may have dropped the pages): a
 * new one is opened, and until one works the journal is not writable and nothing may be sent.
 * The payload is opaque here; callers seal it. Knows nothing of tokens. Never logs.
 */
#ifndef REFRESHD_IO_JOURNAL_H
#define REFRESHD_IO_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "io/loop.h"

struct journal;

struct journal_params {
	const char *dir;	/* made (0700) when missing; locked against a second process (ST_EXISTS) */
	uint64_t segment_bytes; /* 0: 4 MiB */
	uint64_t max_bytes;	/* total bound; beyond it the journal is not writable. 0: 256 MiB */
	bool sync;		/* false: no fdatasync (refresh.journal_sync: off) */
};

#define JOURNAL_RECORD_MAX (2u * 1024 * 1024) /* payload bytes */

/* Opens, recovers and starts the writer. ST_DENIED, ST_NO_SPACE, ST_IO, ST_EXISTS (in use), with the path. */
int journal_open(struct loop *l, const struct journal_params *p, struct journal **out, struct fault *f) MUST_USE;
void journal_close(struct journal *j); /* waits for the writer; callbacks not yet called are dropped; open records stay on disk */

/* Every record that is not done, oldest first; before the first append. A negative return stops and is returned. */
int journal_replay(struct journal *j, int (*fn)(void *arg, uint64_t seq, const void *p, size_t n), void *arg) MUST_USE;

/* Copies the payload, returns its sequence number in *seq (numbers only grow, over restarts too). `fn` comes exactly
 * once, in a later turn: 0 when the record is durable, else ST_IO or ST_NO_SPACE (the record may or may not be on disk).
 * ST_UNAVAILABLE when not writable, ST_FULL for a payload over the maximum. */
typedef void journal_fn(void *arg, int code);
int journal_append(struct journal *j, const void *p, size_t n, journal_fn *fn, void *arg, uint64_t *seq) MUST_USE;
/* The record is no longer needed. Recorded lazily: a crash may forget it, replay must be idempotent. */
void journal_done(struct journal *j, uint64_t seq);

bool journal_writable(const struct journal *j);
void journal_on_state(struct journal *j, void (*fn)(void *arg, bool writable, const struct fault *why), void *arg);
uint64_t journal_open_records(const struct journal *j);
uint64_t journal_bytes(const struct journal *j);
/* Duration of each group's fdatasync, called in the loop. */
void journal_on_sync(struct journal *j, void (*fn)(void *arg, int64_t us), void *arg);

/* Read-only look at a directory that may be in use by a daemon: for refreshctl journal. Calls fn for every
 * valid record, done or not. */
int journal_inspect(const char *dir, int (*fn)(void *arg, uint64_t seq, bool done, const void *p, size_t n), void *arg, struct fault *f) MUST_USE;

#endif
