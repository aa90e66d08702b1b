/*
 * header - names of HTTP header fields: what may be one, and which are not for setting.
 *
 * Requests are read, built and configured in different rooms; whether a name is one must be the same answer everywhere.
 */
#ifndef REFRESHD_BASE_HEADER_H
#define REFRESHD_BASE_HEADER_H

#include <stdbool.h>

bool header_is_name(const char *s);	  /* a token, RFC 9110 5.6.2: at least one character */
bool header_is_transport(const char *name); /* decides where a message ends or goes: the HTTP client's own; any case */

#endif
