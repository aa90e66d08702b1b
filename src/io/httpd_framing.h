/*
 * httpd_framing - where one HTTP/1.1 request begins and ends, strictly (RFC 9112). Pure: bytes in, no socket.
 *
 * Accepted: HTTP/1.0 and 1.1; origin-form targets only (absolute-form, authority-form and "*" are for proxies
 * and refused); CRLF line ends only; one Host (optional for 1.0); one Content-Length of digits, or one
 * Transfer-Encoding that is "chunked" (1.1 only), never both; chunk sizes of 1 to 8 hex digits, no extensions,
 * no trailers; one Authorization, Content-Type, Content-Encoding. Everything else is a status to answer before closing.
 */
#ifndef REFRESHD_IO_HTTPD_FRAMING_H
#define REFRESHD_IO_HTTPD_FRAMING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "io/httpd.h"

#define HTTPD_FRAMING_MAX_FIELDS 100 /* more: 431 */

struct httpd_field {
	const char *name, *value;
};

struct httpd_framing {
	int state;
	size_t max_body;
	struct buf head; /* secret; cut into strings once it is whole */
	struct buf body; /* secret */
	size_t line_start;
	uint64_t left; /* bytes of the body or of the chunk still to come */
	unsigned digits;
	/* valid when the head is whole */
	enum httpd_method method;
	bool http10, close, expect_continue;
	const char *path, *query;
	struct httpd_field fields[HTTPD_FRAMING_MAX_FIELDS];
	size_t n_fields;
};

void httpd_framing_init(struct httpd_framing *p, size_t max_head, size_t max_body);
void httpd_framing_fini(struct httpd_framing *p);

#define HTTPD_FRAMING_MORE 0
#define HTTPD_FRAMING_DONE 1
/* Takes bytes up to the end of the request. MORE, DONE, or the status (400 and above) to refuse it with. */
int httpd_framing_feed(struct httpd_framing *p, const uint8_t *data, size_t n, size_t *used) MUST_USE;
bool httpd_framing_in_body(const struct httpd_framing *p); /* the head is whole, the body is not */
const char *httpd_framing_field(const struct httpd_framing *p, const char *name); /* the first; NULL when absent */
const char *httpd_framing_only(const struct httpd_framing *p, const char *name, unsigned *n); /* the last of *n */

#endif
