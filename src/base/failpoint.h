/*
 * failpoint - places where the torture tests kill the process, and protections that they take away.
 *
 * Nothing of this is in a program that is built without REFRESHD_TORTURE: the macros are empty and failpoint.c is not
 * linked. tests/torture/refreshd is built with it; there REFRESHD_FAILPOINT=name:n ends the process with SIGKILL when the
 * place is passed for the n-th time, and REFRESHD_MUTANT=name breaks one protection, so that the judge can be judged; REFRESHD_TRACE=file
 * gets a line for every reply that is durable, so that the time until then can be measured.
 */
#ifndef REFRESHD_BASE_FAILPOINT_H
#define REFRESHD_BASE_FAILPOINT_H

#ifdef REFRESHD_TORTURE
#include <stdbool.h>
#include <stdint.h>

#define FAILPOINT_LIST(X)                                                                      \
	X(before_intent)  /* a claim is about to be sent to the database */                    \
	X(after_intent)   /* a row is claimed, nothing is sent yet */                          \
	X(sent)           /* libcurl has written the whole request */                          \
	X(half_reply)     /* status and headers are there, the body is not */                  \
	X(whole_reply)    /* complete, and in memory only */                                   \
	X(journalled)     /* fdatasync has confirmed the reply */                              \
	X(committed)      /* the database has confirmed the result, the journal still has it */ \
	X(before_webhook) /* a delivery is claimed, nothing is posted yet */
enum failpoint {
#define X(name) FAILPOINT_##name,
	FAILPOINT_LIST(X)
#undef X
	FAILPOINTS
};

#define MUTANT_LIST(X)                                                                         \
	X(journal_off) /* a reply goes on without the journal, and nothing is replayed */       \
	X(fence_off)   /* results are written whoever has the row, claims take the leases of others */ \
	X(resend)      /* a request that was sent is sent again with the same token */
enum mutant {
#define X(name) MUTANT_##name,
	MUTANT_LIST(X)
#undef X
	MUTANTS
};

void failpoint_pass(enum failpoint p, bool now);
void failpoint_due(void);
bool failpoint_mutant(enum mutant m);
/* One line in the file REFRESHD_TRACE, if that is set: wall time in us, what, connection, attempt. */
void failpoint_note(const char *what, const uint8_t id[16], int64_t attempt);

#define FAILPOINT(name) failpoint_pass(FAILPOINT_##name, true)
#define FAILPOINT_IF(when, name) ((when) ? FAILPOINT(name) : (void)0)
/* Inside a callback of a library: passed now, and the end comes at the next FAILPOINT_DUE, when the library is done. */
#define FAILPOINT_SOON_IF(when, name) ((when) ? failpoint_pass(FAILPOINT_##name, false) : (void)0)
#define FAILPOINT_DUE() failpoint_due()
#define FAILPOINT_NOTE(what, id, attempt) failpoint_note(what, id, attempt)
#define MUTANT(name) failpoint_mutant(MUTANT_##name)
#else
#define FAILPOINT(name) ((void)0)
#define FAILPOINT_IF(when, name) ((void)0)
#define FAILPOINT_SOON_IF(when, name) ((void)0)
#define FAILPOINT_DUE() ((void)0)
#define FAILPOINT_NOTE(what, id, attempt) ((void)0)
#define MUTANT(name) 0
#endif

#endif
