/*
 * httpd - an HTTP/1.1 server on the loop: libevent's listener and bufferevents, and a request parser of our own
 * (httpd_framing) because evhttp has neither the limits nor the strictness.
 *
 * Caps on connections, header and body size; a deadline for the whole request however slowly it drips;
 * strict framing: more than one Content-Length, one that is not digits, any Transfer-Encoding but a single
 * "chunked" with plain hex sizes, a missing or doubled Host on HTTP/1.1, NUL or control bytes, bare LF are
 * answered 400 and closed; so are absolute-form targets, chunk extensions and trailers. Requests that come on
 * one connection without waiting are served in order, one at a time. The process must ignore SIGPIPE. Never logs.
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
	unsigned max_connections;    /* beyond it a new one takes the place of the kept one that has idled for longest, or waits in the kernel's queue; 0: 1024 */
	size_t max_header_bytes;     /* 0: 16 KiB */
	size_t max_body_bytes;	     /* 0: 64 KiB; beyond: 413 */
	size_t max_held_bytes;	     /* of all bodies together, until they are answered; beyond: 503. 0: 64 of the largest */
	int64_t request_deadline_us; /* first byte to last byte of a request; 0: 10 s. Three times that to take the reply */
	int64_t idle_timeout_us;     /* kept-alive connections without a request; 0: 60 s. A new one has the request deadline */
	const char *tls_cert_file, *tls_key_file; /* both or neither */
};

enum httpd_method { HTTPD_GET = 1, HTTPD_POST = 2, HTTPD_PATCH = 4, HTTPD_DELETE = 8, HTTPD_HEAD = 16, HTTPD_PUT = 32 };

/* The handler answers now or later, exactly once, with httpd_reply (HEAD is answered as GET without the body). */
typedef void httpd_fn(void *arg, struct httpd_request *r);

/*
 * ST_EXISTS (address in use), ST_DENIED, ST_INVALID, ST_IO, and of the TLS files ST_NOT_FOUND or ST_CRYPTO. A unix socket gets
 * mode 0660; a stale one is replaced. An inherited socket belongs to the server from success on.
 */
int httpd_new(struct loop *l, const struct httpd_params *p, httpd_fn *fn, void *arg, struct httpd **out, struct fault *f) MUST_USE;
/* Stops listening at once; requests whose handler still owes a reply are dropped, their later httpd_reply is a no-op. */
void httpd_free(struct httpd *h);
void httpd_accept(struct httpd *h, bool on); /* off: what comes waits in the kernel's queue, for us or for whoever has the socket next */
/* The end is near: kept connections that idle are closed, and every further reply closes its own. */
void httpd_close_after(struct httpd *h);
uint16_t httpd_port(const struct httpd *h); /* the real port when 0 was asked for */
unsigned httpd_connections(const struct httpd *h);
/* New certificate files, taken over by new connections; on failure the old ones stay. */
int httpd_reload_tls(struct httpd *h, const char *cert_file, const char *key_file, struct fault *f) MUST_USE;

/* Borrowed until the reply. */
enum httpd_method httpd_method(const struct httpd_request *r);
const char *httpd_path(const struct httpd_request *r);  /* raw, still percent-encoded, without the query */
const char *httpd_query(const struct httpd_request *r); /* raw, "" when absent */
const char *httpd_header(const struct httpd_request *r, const char *name); /* any case; NULL when absent, "" when empty */
unsigned httpd_header_count(const struct httpd_request *r, const char *name); /* httpd_header is the first of so many */
const void *httpd_body(const struct httpd_request *r, size_t *n);
void httpd_peer(const struct httpd_request *r, char out[64]);

/* Before httpd_reply. A name or value with control bytes, or too much of them (4 KiB), turns the reply into a 500. */
void httpd_reply_header(struct httpd_request *r, const char *name, const char *value);
/* Sends and releases r. The body is moved (NULL: none). 4xx framing errors never reach the handler. */
void httpd_reply(struct httpd_request *r, int status, const char *content_type, struct buf *body);
/*
 * For counting what httpd answered by itself (400, 408, 413, 417, 431, 501, 503, 505), and for saying it in one's own way: `headers`
 * takes whole lines, `body` JSON, each of 2 KiB at most. Both NULL: nothing is answered, a connection could not be accepted for lack of
 * descriptors (503; it waits). fn must not free the server.
 */
typedef void httpd_refused_fn(void *arg, int status, struct buf *headers, struct buf *body);
void httpd_on_refused(struct httpd *h, httpd_refused_fn *fn, void *arg);

#endif
