/*
 * journal - replies that must survive us: append-only, checksummed, fdatasync'ed in groups.
 *
 * The hole between a provider's rotation and our commit is closed here: a reply is on disk before it is
 * parsed. All I/O happens in one writer thread; records handed over while it syncs make the next group,
 * so a slow disk delays replies but never the loop. Segments are preallocated (a full disk shows before a
 * token is spent), each file and the directory are fsync'ed at creation, a torn tail is ignored. After a
 * failed write or sync the segment is never touched again (the kernel may have dropped the pages): what it was to take
 * goes into the next one, which is open already, and until one works the journal is not writable and nothing may be sent.
 * The payload is opaque here; callers seal it. Knows nothing of tokens. Never logs.
 */
#ifndef REFRESHD_IO_JOURNAL_H
#define REFRESHD_IO_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "io/loop.h"

struct journal;

struct journal_params {
	const char *dir;	/* made (0700) when missing, tightened to 0700; locked against a second process (ST_EXISTS) */
	uint64_t segment_bytes; /* 0: 4 MiB; at least 4 KiB. A record must fit into one segment */
	uint64_t max_bytes;	/* total bound; beyond it the journal is not writable. 0: 256 MiB; at least 3 segments */
	bool sync;		/* false: no fdatasync (refresh.journal_sync: off) */
};

#define JOURNAL_RECORD_MAX (2u * 1024 * 1024) /* payload bytes */

/*
 * Opens, recovers and starts the writer. ST_DENIED (also: the directory belongs to another user), ST_NO_SPACE, ST_IO,
 * ST_EXISTS (in use), ST_RANGE (parameters), ST_VERSION, with the path. When there are records to replay, a full disk
 * does not stop it: it is open and not writable, so that replay and done can make room.
 */
int journal_open(struct loop *l, const struct journal_params *p, struct journal **out, struct fault *f) MUST_USE;
/* Waits for the writer; callbacks not yet called are dropped; open records stay on disk. Fine inside a callback. */
void journal_close(struct journal *j);

/*
 * Every record that is not done, oldest first; before the first append. A negative return stops and is returned.
 * A record that can no longer be read is passed over: the others come, then its code (ST_IO) is returned. fn may
 * call journal_done.
 */
int journal_replay(struct journal *j, int (*fn)(void *arg, uint64_t seq, const void *p, size_t n), void *arg) MUST_USE;

/*
 * The same, one record a call: 1 with its number and payload (`out` is replaced), 0 when there are no more, ST_IO when it can no
 * longer be read: it is passed over.
 */
int journal_replay_next(struct journal *j, uint64_t *seq, struct buf *out) MUST_USE;

/*
 * Copies the payload, returns its sequence number in *seq (numbers only grow, with gaps, over restarts too). `fn` comes
 * exactly once, in a later turn: 0 when the record is durable, else ST_IO, ST_DENIED, ST_NO_SPACE, ST_FULL (the total bound)
 * or ST_UNAVAILABLE; the record may or may not be on disk then, is not open and needs no done.
 * ST_UNAVAILABLE when there is no place for it, ST_FULL for a payload over the maximum (or over a segment).
 */
typedef void journal_fn(void *arg, int code);
int journal_append(struct journal *j, const void *p, size_t n, journal_fn *fn, void *arg, uint64_t *seq) MUST_USE;
/* The record is no longer needed. Recorded lazily: a crash may forget it, replay must be idempotent. */
void journal_done(struct journal *j, uint64_t seq);

/*
 * The gate before a request is sent: false as soon as the next segment cannot be allocated and the current one is three
 * quarters full, or the disk lags a segment behind, or no segment works. What it keeps back is for the replies to requests
 * that are under way: journal_append still takes them while they fit.
 */
bool journal_writable(const struct journal *j);
/* Bytes that can be appended although no further file could be made: for the replies to everything that is under way. */
uint64_t journal_room(const struct journal *j);
#define JOURNAL_REPLY_BYTES 4096 /* what an ordinary reply takes at most */
/* A sentence for each thing that somebody should look at: damage that was found in a segment (ST_SYNTAX, with file and offset), a file
 * that was given up after a failed write or sync (any other code). In a later turn; set it before the loop runs. */
void journal_on_note(struct journal *j, void (*fn)(void *arg, const struct fault *what), void *arg);
/* fn comes in a later turn, after each change; `why` (NULL when writable) is valid during the call. */
void journal_on_state(struct journal *j, void (*fn)(void *arg, bool writable, const struct fault *why), void *arg);
uint64_t journal_open_records(const struct journal *j); /* durable and not done, as of the last group */
uint64_t journal_bytes(const struct journal *j);	 /* on disk, the spare segment included, as of the last group */
/* Duration of each group's fdatasync, called in the loop. */
void journal_on_sync(struct journal *j, void (*fn)(void *arg, int64_t us), void *arg);

/*
 * Read-only look at a directory that may be in use by a daemon: for refreshctl journal. Takes no lock. Calls fn once for
 * every record that is on disk, oldest first, done or not; what is moved or dropped meanwhile may be missed. Before them, `damaged` (NULL:
 * nobody wants to know) hears of every segment with bytes that are no record in front of one that is; a tail that a crash tore is none.
 */
int journal_inspect(const char *dir, int (*fn)(void *arg, uint64_t seq, bool done, const void *p, size_t n),
	void (*damaged)(void *arg, const struct fault *what), void *arg, struct fault *f) MUST_USE;

#endif
