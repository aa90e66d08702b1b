/*
 * journal_store - the journal's segments: recovery, writing in groups, rotation, compaction, bounds.
 *
 * Single-threaded: the writer thread owns it, the loop only looks under the journal's lock. Segments leave
 * oldest first, so a done record never goes before the record it belongs to. After any failed write or
 * sync the current segment is closed for good. The next segment is there, named and open, before it is needed: going on in it
 * asks nothing of the directory, which may be full or not ours any more by then. While there is no segment,
 * journal_store_tend opens one.
 */
#ifndef REFRESHD_IO_JOURNAL_STORE_H
#define REFRESHD_IO_JOURNAL_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "io/journal_file.h"
#include "io/journal_index.h"

struct journal_segment {
	struct journal_name name;
	uint64_t bytes;	     /* of the file */
	uint64_t live, live_bytes; /* open records */
	bool broken;	     /* a write or sync failed, or it cannot be read: not recycled, not compacted */
	struct journal_segment *next;
};

struct journal_move { /* a record on its way into the current segment */
	uint64_t seq, offset;
	struct journal_segment *segment;
};

#define JOURNAL_NOTES 16

struct journal_store {
	struct journal_dir dir;
	int lock_fd;
	uint64_t segment_bytes;
	uint64_t max_bytes;
	bool sync;
	struct journal_segment *first, *last;
	struct journal_segment *current; /* the last one, or NULL while none can be written */
	int fd;
	uint64_t at;	 /* where the stage will be written */
	struct buf stage; /* records not yet written */
	bool stage_needs_sync;
	int spare_fd;	 /* of the next segment, empty; -1: there is none */
	struct journal_segment *spare;
	bool waiting;	 /* making a file failed: not again before a retry, or before room was given back */
	uint64_t files_bytes; /* all segments, without the spare */
	struct journal_index index;
	uint64_t next_number, next_seq;
	struct journal_move *moves; /* not yet durable */
	size_t n_moves, cap_moves;
	struct fault fault; /* why the store is not whole; code 0: it is */
	struct fault notes[JOURNAL_NOTES]; /* what a person should know of: damage that was found, files that were given up */
	unsigned n_notes, notes_lost;	   /* lost: there was no room for it here */
	int64_t last_sync_us; /* duration of the last flush's sync; -1: it had none */
};

/* Opens, locks and recovers. Without room for a segment it opens only when there are records to replay. */
int journal_store_open(struct journal_store *s, const char *dir, uint64_t segment_bytes, uint64_t max_bytes, bool sync, struct fault *f) MUST_USE;
void journal_store_close(struct journal_store *s); /* writes what is staged */

/* ST_AGAIN: it does not fit behind what is staged; flush, rotate and stage again. ST_UNAVAILABLE: no segment. */
int journal_store_stage(struct journal_store *s, uint64_t seq, const void *p, size_t n) MUST_USE;
/* For a record that is not open: nothing. ST_AGAIN as above; without a segment it is only forgotten (recovery finds it again). */
int journal_store_done(struct journal_store *s, uint64_t seq) MUST_USE;
/* Writes and syncs the stage. On failure the current segment is closed and the caller forgets what it staged. */
int journal_store_flush(struct journal_store *s) MUST_USE;
void journal_store_forget(struct journal_store *s, uint64_t seq);
/* The next note, NULL when all were taken. */
const struct fault *journal_store_note(struct journal_store *s);
int journal_store_rotate(struct journal_store *s) MUST_USE; /* the next segment; the fault in s->fault */
/* Gives finished segments back, makes what is missing, compacts. With `retry` also what failed before. */
void journal_store_tend(struct journal_store *s, bool retry);

uint64_t journal_store_room(const struct journal_store *s);  /* bytes left in the current segment */
uint64_t journal_store_bytes(const struct journal_store *s); /* on disk */

#endif
