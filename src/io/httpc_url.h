/*
 * httpc_url - URLs as libcurl takes them: checked and taken apart once, used by many calls. Private to httpc.
 */
#ifndef REFRESHD_IO_HTTPC_URL_H
#define REFRESHD_IO_HTTPC_URL_H

#include <curl/curl.h>

#include "base/status.h"
#include "base/url.h"

struct httpc_url {
	unsigned refs;
	char *text;
	struct url parts;
	CURLU *parsed;
};

#define HTTPC_URLS_KEPT 256
struct httpc_urls {
	struct httpc_url *kept[HTTPC_URLS_KEPT]; /* by the hash of the text; the last one stays */
};

/* *out is the caller's until httpc_url_unref, which wipes it with its last user. Kept: it is no secret, and wanted again. ST_INVALID. */
int httpc_url_get(struct httpc_urls *k, const char *text, bool keep, struct httpc_url **out, struct fault *f) MUST_USE;
void httpc_url_unref(struct httpc_url *u); /* NULL is fine */
void httpc_urls_fini(struct httpc_urls *k);

#endif
