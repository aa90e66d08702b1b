/*
 * status - error codes as text, and filling a fault.
 *
 * A fault goes to a log line or a terminal as it is, so control bytes that came in by an argument are
 * replaced and a cut never leaves half a UTF-8 character. It must not allocate: faults are filled
 * on the paths where something is already wrong.
 */
#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Where to cut at most `n` bytes of s without splitting a UTF-8 character. */
static size_t cut_at(const char *s, size_t n)
{
	if (strnlen(s, n) < n)
		return strnlen(s, n);
	while (n > 0 && ((uint8_t)s[n] & 0xc0) == 0x80)
		n--;
	return n;
}

static void put_text(struct fault *f, const char *text)
{
	size_t n = cut_at(text, sizeof(f->text) - 1);

	for (size_t i = 0; i < n; i++) {
		uint8_t c = (uint8_t)text[i];
		f->text[i] = (char)(c < 0x20 || c == 0x7f ? ' ' : c);
	}
	f->text[n] = '\0';
}

int fault_set(struct fault *f, int code, const char *fmt, ...)
{
	char tmp[sizeof(f->text) + 4]; /* room for the character that straddles the cut */
	va_list ap;

	if (f == NULL)
		return code;
	va_start(ap, fmt);
	if (vsnprintf(tmp, sizeof(tmp), fmt, ap) < 0)
		tmp[0] = '\0';
	va_end(ap);
	f->code = code;
	put_text(f, tmp);
	return code;
}

int fault_wrap(struct fault *f, int code, const char *fmt, ...)
{
	char tmp[2 * sizeof(f->text) + 4];
	size_t room = sizeof(f->text) + 4;
	va_list ap;

	if (f == NULL)
		return code;
	va_start(ap, fmt);
	int n = vsnprintf(tmp, room, fmt, ap);
	va_end(ap);
	n = n > 0 ? n : 0;
	size_t used = (size_t)n < room ? (size_t)n : room - 1;
	bool has_text = f->text[0] != '\0';
	snprintf(tmp + used, sizeof(tmp) - used, "%s%s", has_text ? ": " : "", f->text);
	if (f->code == ST_OK)
		f->code = code;
	put_text(f, tmp);
	return f->code;
}

const char *status_text(int code)
{
	switch (code) {
#define X(name, value, text)                                                                                 \
	case name:                                                                                           \
		return text;
		STATUS_LIST(X)
#undef X
	default:
		return "unknown status";
	}
}

int status_of_errno(int err)
{
	switch (err) {
	case ENOENT:
		return ST_NOT_FOUND;
	case EACCES:
	case EPERM:
	case EROFS:
		return ST_DENIED;
	case ENOSPC:
	case EDQUOT:
	case EFBIG: /* a limit on the size of files */
		return ST_NO_SPACE;
	case EADDRINUSE:
		return ST_EXISTS;
	case EADDRNOTAVAIL:
		return ST_INVALID;
	default:
		return ST_IO;
	}
}
