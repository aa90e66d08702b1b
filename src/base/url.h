/*
 * url - absolute http(s) URLs and listen addresses, split and checked. Pure; resolves nothing.
 */
#ifndef REFRESHD_BASE_URL_H
#define REFRESHD_BASE_URL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* An absolute http(s) URL, split and checked; the pieces are copies in one block. */
struct url {
	char *scheme;	/* "http" or "https" */
	char *host;	/* lower case; an IPv6 literal without brackets */
	uint16_t port;	/* explicit or the scheme's default */
	char *path;	/* "/" at least; with "?query" when there is one */
	bool host_is_ip;
};
/*
 * ST_SYNTAX with a reason and its place (never the text: a query may hold a key): no scheme, userinfo,
 * fragment, control bytes, spaces, what RFC 3986 does not allow, bad port (1..65535), empty host. A host is a
 * DNS name of ASCII labels, an IPv6 literal in brackets, or four decimal numbers; "127.1" and "0x7f000001",
 * which a resolver would take for an address, are refused. ST_RANGE past URL_MAX_BYTES.
 */
#define URL_MAX_BYTES 8192
int url_parse(const char *s, struct url *out, struct fault *f) MUST_USE;
void url_fini(struct url *u);
bool url_is_loopback(const struct url *u); /* 127/8, ::1, localhost */

/*
 * "addr:port", "[v6]:port", "unix:/path". The address is an IP literal or "localhost"; port 0 lets the kernel
 * choose. ST_SYNTAX, or ST_RANGE for a path that does not fit a socket address.
 */
struct listen_addr {
	bool is_unix;
	char host[64];	/* without brackets; "" when is_unix */
	uint16_t port;
	char path[108]; /* absolute; "" unless is_unix */
};
int listen_addr_parse(const char *s, struct listen_addr *out, struct fault *f) MUST_USE;

#endif
