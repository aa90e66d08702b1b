/*
 * status - the error codes of the whole program, and a fault that a person can read.
 *
 * Every function that can fail returns 0 or one of the negative codes below, leaves its outputs
 * untouched on failure and, where it takes a `struct fault *` (always last, may be NULL), says there
 * what was wrong. What a provider answers is a value, never one of these.
 * A fault text never holds a secret: callers pass names, positions and numbers, not values read from
 * key files or replies.
 */
#ifndef REFRESHD_BASE_STATUS_H
#define REFRESHD_BASE_STATUS_H

#define STATUS_LIST(X)                                                       \
	X(ST_OK, 0, "ok")                                                    \
	X(ST_INVALID, -1, "invalid value")                                   \
	X(ST_RANGE, -2, "out of range")                                      \
	X(ST_SYNTAX, -3, "syntax error")                                     \
	X(ST_NOT_FOUND, -4, "not found")                                     \
	X(ST_EXISTS, -5, "already there")                                    \
	X(ST_FULL, -6, "limit reached")                                      \
	X(ST_IO, -7, "input/output error")                                   \
	X(ST_NO_SPACE, -8, "no space left")                                  \
	X(ST_TIMEOUT, -9, "timed out")                                       \
	X(ST_CLOSED, -10, "closed")                                          \
	X(ST_AGAIN, -11, "try again later")                                  \
	X(ST_CRYPTO, -12, "cryptographic check failed")                      \
	X(ST_NO_KEY, -13, "key not in the keyring")                          \
	X(ST_DENIED, -14, "not allowed")                                     \
	X(ST_CONFLICT, -15, "changed by someone else")                       \
	X(ST_VERSION, -16, "wrong version")                                  \
	X(ST_CANCELED, -17, "canceled")                                      \
	X(ST_UNAVAILABLE, -18, "not available now")

enum status {
#define X(name, value, text) name = (value),
	STATUS_LIST(X)
#undef X
};

#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))

struct fault {
	int code;	/* one of enum status; 0 = nothing happened yet */
	char text[400]; /* one line, no newline, NUL-terminated, truncated if need be */
};

/* Fill `f` (NULL: nothing) and return `code`, so that `return fault_set(f, ST_X, "...")` reads well. */
int fault_set(struct fault *f, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Put "<context>: " before the text that is there already; returns f->code (or `code` when f is NULL). */
int fault_wrap(struct fault *f, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* The short text of a code, "unknown status" for a foreign number. Never NULL. */
const char *status_text(int code);

/* What an errno of files and sockets means to the program; ST_IO for all that is not told apart. */
int status_of_errno(int err);

#endif
