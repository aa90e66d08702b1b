/*
 * mem - allocation that aborts instead of failing, and the assertion that stays on.
 *
 * The last words go straight to stderr with write(2): neither the log nor stdio can be trusted when
 * memory is gone or an invariant is broken. Nothing here may be called with a size from outside.
 */
#include "base/mem.h"

#include <errno.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SMALL ((size_t)1024)
#define KEPT_BYTES (8 << 20)

static _Noreturn void die(const char *text, size_t n)
{
	while (n > 0) {
		ssize_t w = write(STDERR_FILENO, text, n);
		if (w < 0 && errno != EINTR)
			break;
		if (w > 0) {
			text += w;
			n -= (size_t)w;
		}
	}
	abort();
}

static _Noreturn void die_no_memory(void)
{
	static const char text[] = "refreshd: out of memory\n";

	die(text, sizeof(text) - 1);
}

_Noreturn void always_failed(const char *expr, const char *file, int line, const char *func)
{
	char text[512];
	int n = snprintf(
		text, sizeof(text), "refreshd: %s:%d: %s: broken invariant: %s\n", file, line, func, expr);

	n = n > 0 ? n : 0;
	if ((size_t)n >= sizeof(text)) {
		n = sizeof(text) - 1;
		text[n - 1] = '\n';
	}
	die(text, (size_t)n);
}

void *mem_alloc(size_t size)
{
	return mem_calloc(1, size);
}

void *mem_raw(size_t size)
{
	void *p = malloc(size > 0 ? size : 1);

	if (p == NULL)
		die_no_memory();
	return p;
}

void *mem_calloc(size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		die_no_memory();
	/* glibc's calloc passes by the thread's cache of freed blocks: twice the price for the small ones. */
	if (bytes <= SMALL)
		return memset(mem_raw(bytes), 0, bytes);
	void *p = calloc(n, size);
	if (p == NULL)
		die_no_memory();
	return p;
}

void *mem_realloc(void *p, size_t n, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes))
		die_no_memory();
	void *q = realloc(p, bytes > 0 ? bytes : 1);
	if (q == NULL)
		die_no_memory();
	return q;
}

char *mem_strdup(const char *s)
{
	return mem_strndup(s, strlen(s));
}

char *mem_strndup(const char *s, size_t n)
{
	size_t len = strnlen(s, n);
	char *copy = mem_raw(len + 1);

	memcpy(copy, s, len);
	copy[len] = '\0';
	return copy;
}

char *mem_printf(const char *fmt, ...)
{
	va_list ap;
	char *s = NULL;

	va_start(ap, fmt);
	int n = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (n < 0 || s == NULL)
		die_no_memory();
	return s;
}

void mem_keep_freed(void)
{
#ifdef M_TRIM_THRESHOLD
	/* glibc gives back what is beyond 128 kB at the top, and a batch of requests makes it ask for that again, page by page. Told one
	 * limit, it stops to adapt the other to what it sees: so that is said as well. Another allocator in its place, a sanitizer's or
	 * one that was preloaded, need not take the advice. */
	(void)mallopt(M_TRIM_THRESHOLD, KEPT_BYTES);
	(void)mallopt(M_MMAP_THRESHOLD, KEPT_BYTES / 2);
#endif
}

void mem_free(void *p)
{
	free(p);
}

void mem_wipe(void *p, size_t n)
{
	if (n > 0)
		explicit_bzero(p, n);
}
