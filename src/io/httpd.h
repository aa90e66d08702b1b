/*
 * httpd - an HTTP server on the loop (evhttp) with the limits that evhttp does not have.
 *
 * Caps on connections, header and body size; a deadline for the whole request however slowly it drips;
 * strict framing: more than one Content-Length, one that is not digits, any Transfer-Encoding but a single
 * "chunked" with plain hex sizes, a missing or doubled Host on HTTP/1.1, NUL or control bytes, bare LF are
 * answered 400 and closed. Never logs.
 */
#ifndef REFRESHD_IO_HTTPD_H
#define REFRESHD_IO_HTTPD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "base/url.h"
#include "io/loop.h"

struct httpd;
struct httpd_request;

struct httpd_params {
	struct listen_addr listen;
	int listen_fd;		     /* >= 0: an inherited socket (systemd), `listen` is then only a name */
	unsigned max_connections;    /* beyond it new ones wait in the kernel's queue; 0: 1024 */
	size_t max_header_bytes;     /* 0: 16 KiB */
	size_t max_body_bytes;	     /* 0: 64 KiB; beyond: 413 */
	int64_t request_deadline_us; /* first byte to last byte of a request; 0: 10 s */
	int64_t idle_timeout_us;     /* kept-alive connections without a request; 0: 60 s */
	const char *tls_cert_file, *tls_key_file; /* both or neither */
};

enum httpd_method { HTTPD_GET = 1, HTTPD_POST = 2, HTTPD_PATCH = 4, HTTPD_DELETE = 8, HTTPD_HEAD = 16, HTTPD_PUT = 32 };

/* The handler answers now or later, exactly once, with httpd_reply (HEAD is answered as GET without the body). */
typedef void httpd_fn(void *arg, struct httpd_request *r);

int httpd_new(struct loop *l, const struct httpd_params *p, httpd_fn *fn, void *arg, struct httpd **out, struct fault *f) MUST_USE;
/* Stops listening at once; requests whose handler still owes a reply are dropped, their later httpd_reply is a no-op. */
void httpd_free(struct httpd *h);
uint16_t httpd_port(const struct httpd *h); /* the real port when 0 was asked for */
unsigned httpd_connections(const struct httpd *h);
/* New certificate files, taken over by new connections; on failure the old ones stay. */
int httpd_reload_tls(struct httpd *h, const char *cert_file, const char *key_file, struct fault *f) MUST_USE;

/* Borrowed until the reply. */
enum httpd_method httpd_method(const struct httpd_request *r);
const char *httpd_path(const struct httpd_request *r);  /* raw, still percent-encoded, without the query */
const char *httpd_query(const struct httpd_request *r); /* raw, "" when absent */
const char *httpd_header(const struct httpd_request *r, const char *name); /* any case; NULL when absent, "" when empty */
const void *httpd_body(const struct httpd_request *r, size_t *n);
void httpd_peer(const struct httpd_request *r, char out[64]);

void httpd_reply_header(struct httpd_request *r, const char *name, const char *value); /* before httpd_reply */
/* Sends and releases r. The body is moved (NULL: none). 4xx framing errors never reach the handler. */
void httpd_reply(struct httpd_request *r, int status, const char *content_type, struct buf *body);
/* For counting what httpd answered by itself (400, 408, 413, 431, 503). */
void httpd_on_refused(struct httpd *h, void (*fn)(void *arg, int status), void *arg);

#endif
