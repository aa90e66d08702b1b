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
/* ST_SYNTAX with a reason: no scheme, userinfo, fragment, control bytes, spaces, bad port, empty host. */
int url_parse(const char *s, struct url *out, struct fault *f) MUST_USE;
void url_fini(struct url *u);
bool url_is_loopback(const struct url *u); /* 127/8, ::1, localhost */

/* "addr:port", "[v6]:port", "unix:/path". */
struct listen_addr {
	bool is_unix;
	char host[64];
	uint16_t port;
	char path[108];
};
int listen_addr_parse(const char *s, struct listen_addr *out, struct fault *f) MUST_USE;

#endif
