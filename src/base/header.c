/*
 * header - names of HTTP header fields.
 *
 * One list for everybody who checks a name, so that none is let in by one and taken for something else by
 * another. Must not know values.
 */
#include "base/header.h"

#include <stddef.h>
#include <string.h>

#include "base/str.h"

bool header_is_name(const char *s)
{
	static const char marks[] = "!#$%&'*+-.^_`|~";
	for (const char *p = s; *p != '\0'; p++) {
		char small = (char)(*p | 0x20);
		bool alnum = (*p >= '0' && *p <= '9') || (small >= 'a' && small <= 'z');
		if (!alnum && *p != '-' && strchr(marks, *p) == NULL)
			return false;
	}
	return s[0] != '\0';
}

bool header_is_transport(const char *name)
{
	static const char *const words[] = { "Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Connection", "TE",
		"Trailer", "Transfer-Encoding", "Upgrade" };
	size_t n = strlen(name);
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if ((name[0] | 0x20) == (words[i][0] | 0x20) && str_eq_nocase(name, n, words[i]))
			return true;
	}
	return false;
}
