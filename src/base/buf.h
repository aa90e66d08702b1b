/*
 * buf - growing bytes with a hard maximum.
 *
 * Whatever comes from outside is gathered here, so no peer can make us allocate without bound.
 * A secret buffer (buf_init_secret) wipes the old block on every growth, on reset and on free; it is
 * the only place where a token, a client secret or a key may live in memory.
 */
#ifndef REFRESHD_BASE_BUF_H
#define REFRESHD_BASE_BUF_H

#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct buf {
	uint8_t *data; /* NULL while empty; always followed by a NUL byte once set */
	size_t len;    /* bytes */
	size_t cap;    /* bytes in the block, the NUL included */
	size_t max;    /* hard maximum of len, bytes */
	bool secret;
};

#define BUF_INIT(max_bytes) { .data = NULL, .len = 0, .cap = 0, .max = (max_bytes), .secret = false }
#define BUF_INIT_SECRET(max_bytes) { .data = NULL, .len = 0, .cap = 0, .max = (max_bytes), .secret = true }

void buf_init(struct buf *b, size_t max);
void buf_init_secret(struct buf *b, size_t max);
void buf_fini(struct buf *b);  /* frees (wiping a secret); the buffer is empty and reusable after */
void buf_reset(struct buf *b); /* len = 0, keeps the block (wiped when secret) */

/*
 * All appends: 0, or ST_FULL past max with the buffer unchanged. buf_append and buf_set take bytes of the
 * buffer itself, too; the arguments of buf_printf must not point into it.
 */
int buf_append(struct buf *b, const void *p, size_t n) MUST_USE;
int buf_puts(struct buf *b, const char *s) MUST_USE;
int buf_putc(struct buf *b, char c) MUST_USE;
int buf_printf(struct buf *b, const char *fmt, ...) MUST_USE PRINTF_LIKE(2, 3);
int buf_vprintf(struct buf *b, const char *fmt, va_list ap) MUST_USE PRINTF_LIKE(2, 0);
int buf_reserve(struct buf *b, size_t n) MUST_USE; /* room for n more bytes */
void buf_added(struct buf *b, size_t n); /* n bytes were written at data + len, within what was reserved */
int buf_set(struct buf *b, const void *p, size_t n) MUST_USE; /* replace the content */

void buf_truncate(struct buf *b, size_t len); /* len <= b->len; wipes the tail when secret */
void buf_consume(struct buf *b, size_t n);    /* drop n bytes from the front */
void buf_move(struct buf *to, struct buf *from); /* frees `to`, takes block, max and kind of `from` */

const char *buf_str(const struct buf *b); /* NUL-terminated, "" when empty; borrowed, valid until the next change */
bool buf_equals(const struct buf *b, const void *p, size_t n); /* constant time in n */

/*
 * Replace the content by a whole regular file of at most b->max bytes. ST_NOT_FOUND, ST_DENIED, ST_INVALID
 * (not a regular file), ST_FULL, ST_IO; fault names the path. The content is as before on failure.
 */
int buf_read_file(struct buf *b, const char *path, struct fault *f) MUST_USE;

#endif
