/*
 * mem - allocation that cannot fail, for small objects of our own making.
 *
 * Out of memory aborts the process: the journal and the committed claim make a crash safe at any
 * point, and a half-handled ENOMEM does not. Sizes that come from outside (replies, request bodies,
 * files) never reach these functions unbounded: they go through `buf`, which has a hard maximum.
 */
#ifndef REFRESHD_BASE_MEM_H
#define REFRESHD_BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

#define RETURNS_NONNULL __attribute__((returns_nonnull, warn_unused_result))

void *mem_alloc(size_t size) RETURNS_NONNULL;			/* zeroed */
void *mem_raw(size_t size) RETURNS_NONNULL;			/* not zeroed */
void *mem_calloc(size_t n, size_t size) RETURNS_NONNULL;	/* zeroed, overflow-checked */
void *mem_realloc(void *p, size_t n, size_t size) RETURNS_NONNULL; /* overflow-checked; new bytes not zeroed */
char *mem_strdup(const char *s) RETURNS_NONNULL;
char *mem_strndup(const char *s, size_t n) RETURNS_NONNULL;
char *mem_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2), returns_nonnull, warn_unused_result));
void mem_free(void *p);						/* NULL is fine */
void mem_wipe(void *p, size_t n);				/* not optimised away */
/* Once, first of all: what a batch gives back stays with the process for the next one, a few megabytes at most. */
void mem_keep_freed(void);

/* An invariant of our own code; stays on in release builds. Never for input, peers, disk or database. */
#define ALWAYS(expr) ((expr) ? (void)0 : always_failed(#expr, __FILE__, __LINE__, __func__))
_Noreturn void always_failed(const char *expr, const char *file, int line, const char *func);

/* First field of every object that is handed to a callback: catches a stale pointer early. */
#define MAGIC_CHECK(obj, value) ALWAYS((obj) != NULL && (obj)->magic == (value))

#endif
