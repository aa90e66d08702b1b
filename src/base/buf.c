/*
 * buf - growing bytes with a hard maximum.
 *
 * The one place where bytes from outside are gathered, so the limit is enforced here and nowhere
 * else. Growth never uses realloc: a secret's old block has to be wiped before it goes back to the
 * allocator, and one path for both kinds keeps that true.
 */
#include "base/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

#define MIN_CAP ((size_t)64)
#define READ_CHUNK ((size_t)4096)

void buf_init(struct buf *b, size_t max)
{
	*b = (struct buf)BUF_INIT(max);
}

void buf_init_secret(struct buf *b, size_t max)
{
	*b = (struct buf)BUF_INIT_SECRET(max);
}

static void drop_block(struct buf *b)
{
	if (b->secret)
		mem_wipe(b->data, b->cap);
	mem_free(b->data);
	b->data = NULL;
	b->cap = 0;
}

void buf_fini(struct buf *b)
{
	drop_block(b);
	b->len = 0;
}

void buf_reset(struct buf *b)
{
	b->len = 0;
	if (b->data == NULL)
		return;
	/* The whole block: a reader may have written behind len without counting it. */
	if (b->secret)
		mem_wipe(b->data, b->cap);
	b->data[0] = '\0';
}

/* One byte is kept back from the address space for the NUL. */
static size_t limit_of(const struct buf *b)
{
	return b->max < PTRDIFF_MAX ? b->max : PTRDIFF_MAX - 1;
}

/* How many bytes still fit. */
static size_t room_left(const struct buf *b)
{
	size_t limit = limit_of(b);

	return b->len < limit ? limit - b->len : 0;
}

int buf_reserve(struct buf *b, size_t n)
{
	if (n > room_left(b))
		return ST_FULL;
	size_t need = b->len + n + 1;
	if (need <= b->cap)
		return 0;

	size_t cap = b->cap < PTRDIFF_MAX / 2 ? b->cap * 2 : need;
	if (cap < MIN_CAP)
		cap = MIN_CAP;
	if (cap - 1 > b->max)
		cap = b->max + 1;
	if (cap < need)
		cap = need;
	uint8_t *block = mem_raw(cap);
	if (b->len > 0)
		memcpy(block, b->data, b->len);
	block[b->len] = '\0';
	drop_block(b);
	b->data = block;
	b->cap = cap;
	return 0;
}

void buf_added(struct buf *b, size_t n)
{
	if (n == 0 && b->data == NULL)
		return;
	ALWAYS(n < b->cap - b->len);
	b->len += n;
	b->data[b->len] = '\0';
}

static bool is_inside(const struct buf *b, const void *p)
{
	return b->data != NULL && (uintptr_t)p >= (uintptr_t)b->data &&
	       (uintptr_t)p < (uintptr_t)b->data + b->cap;
}

int buf_append(struct buf *b, const void *p, size_t n)
{
	if (n > 0 && n <= room_left(b) && n < b->cap - b->len) {
		memmove(b->data + b->len, p, n);
		b->len += n;
		b->data[b->len] = '\0';
		return 0;
	}
	bool inside = is_inside(b, p);
	size_t offset = inside ? (size_t)((const uint8_t *)p - b->data) : 0;

	int rc = buf_reserve(b, n);
	if (rc < 0 || n == 0)
		return rc;
	memmove(b->data + b->len, inside ? b->data + offset : p, n);
	buf_added(b, n);
	return 0;
}

int buf_puts(struct buf *b, const char *s)
{
	return buf_append(b, s, strlen(s));
}

int buf_putc(struct buf *b, char c)
{
	return buf_append(b, &c, 1);
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	int rc = buf_vprintf(b, fmt, ap);
	va_end(ap);
	return rc;
}

int buf_vprintf(struct buf *b, const char *fmt, va_list ap)
{
	va_list again;

	va_copy(again, ap);
	int n = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	/* The only failure left is a text beyond INT_MAX bytes. */
	int rc = n < 0 ? ST_FULL : buf_reserve(b, (size_t)n);
	if (rc < 0)
		return rc;
	vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, ap);
	b->len += (size_t)n;
	return 0;
}

int buf_set(struct buf *b, const void *p, size_t n)
{
	if (is_inside(b, p)) {
		size_t offset = (size_t)((const uint8_t *)p - b->data);
		ALWAYS(offset <= b->len && n <= b->len - offset);
		memmove(b->data, p, n);
		buf_truncate(b, n);
		return 0;
	}
	if (n > limit_of(b))
		return ST_FULL;
	buf_reset(b);
	return buf_append(b, p, n);
}

void buf_truncate(struct buf *b, size_t len)
{
	ALWAYS(len <= b->len);
	if (b->data == NULL)
		return;
	if (b->secret)
		mem_wipe(b->data + len, b->cap - len);
	b->len = len;
	b->data[len] = '\0';
}

void buf_consume(struct buf *b, size_t n)
{
	ALWAYS(n <= b->len);
	if (n == 0)
		return;
	memmove(b->data, b->data + n, b->len - n);
	buf_truncate(b, b->len - n);
}

void buf_move(struct buf *to, struct buf *from)
{
	if (to == from)
		return;
	buf_fini(to);
	*to = *from;
	from->data = NULL;
	from->len = 0;
	from->cap = 0;
}

const char *buf_str(const struct buf *b)
{
	return b->data != NULL ? (const char *)b->data : "";
}

/* The compiler must not see that the loop could end early. */
static uint64_t hidden(uint64_t v)
{
	__asm__("" : "+r"(v));
	return v;
}

bool buf_equals(const struct buf *b, const void *p, size_t n)
{
	const uint8_t *bytes = p;
	uint64_t diff = 0;
	size_t i = 0;

	if (b->len != n)
		return false;
	for (; n - i >= sizeof(diff); i += sizeof(diff)) {
		uint64_t x, y;
		memcpy(&x, b->data + i, sizeof(x));
		memcpy(&y, bytes + i, sizeof(y));
		diff = hidden(diff | (x ^ y));
	}
	for (; i < n; i++)
		diff = hidden(diff | (uint64_t)(b->data[i] ^ bytes[i]));
	return diff == 0;
}

/* The part of the block that can be read into, grown while the maximum allows; 0 when it is full. */
static size_t spare_for_read(struct buf *b)
{
	size_t room = room_left(b);

	if (b->cap - b->len <= 1)
		ALWAYS(buf_reserve(b, room < READ_CHUNK ? room : READ_CHUNK) == 0);
	return b->cap - b->len - 1;
}

/* Read on until the end of the file; one byte beyond max is asked for, to tell "fits" from "cut". */
static int read_all(int fd, struct buf *b, const char *path, struct fault *f)
{
	for (;;) {
		uint8_t probe;
		size_t spare = spare_for_read(b);
		ssize_t n = spare > 0 ? read(fd, b->data + b->len, spare) : read(fd, &probe, 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fault_set(f, ST_IO, "%s: cannot read: %s", path, strerror(errno));
		if (n == 0)
			return 0;
		if (spare == 0) {
			mem_wipe(&probe, 1);
			return fault_set(f, ST_FULL, "%s: larger than %zu bytes", path, b->max);
		}
		buf_added(b, (size_t)n);
	}
}

static int read_regular(int fd, struct buf *b, const char *path, struct fault *f)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return fault_set(f, ST_IO, "%s: cannot stat: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return fault_set(f, ST_INVALID, "%s: not a regular file", path);
	if (st.st_size > 0 && (uintmax_t)st.st_size > b->max)
		return fault_set(f, ST_FULL, "%s: larger than %zu bytes", path, b->max);
	/* One more than the size, so that the end is seen without growing again. */
	size_t expect = (size_t)st.st_size + 1;
	size_t room = room_left(b);
	ALWAYS(buf_reserve(b, expect < room ? expect : room) == 0);
	return read_all(fd, b, path, f);
}

int buf_read_file(struct buf *b, const char *path, struct fault *f)
{
	/* O_NONBLOCK: a fifo in place of the file must not hang the daemon at start. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct buf whole = {.max = b->max, .secret = b->secret};

	if (fd < 0)
		return fault_set(f, errno == ENOTDIR ? ST_NOT_FOUND : status_of_errno(errno), "%s: cannot open: %s", path, strerror(errno));
	int rc = read_regular(fd, &whole, path, f);
	close(fd);
	if (rc == 0)
		buf_move(b, &whole);
	buf_fini(&whole);
	return rc;
}
