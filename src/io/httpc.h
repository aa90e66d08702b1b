/*
 * httpc - HTTP requests through curl multi on the loop. One request, one completion, never re-sent.
 *
 * libcurl re-sends a POST by itself when a reused connection dies before the first reply byte; a refresh
 * token must not be presented twice, so each try has to pass a callback that ends the call when a byte of it
 * was sent before (CURLOPT_PREREQFUNCTION). Redirects, proxies, cookies, netrc,
 * alt-svc, HSTS and content encodings are off; TLS is verified with roots loaded once (CAPATH must be
 * NULL or every connection parses the bundle again); names are resolved by `resolver` only.
 */
#ifndef REFRESHD_IO_HTTPC_H
#define REFRESHD_IO_HTTPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/status.h"
#include "io/loop.h"
#include "io/resolver.h"

struct httpc;
struct httpc_call;

struct httpc_params {
	unsigned max_connections;   /* kept open in all; also the most requests in flight (then ST_FULL) */
	/* Connections per host, 0: no limit. A request over the limit waits inside its own timeout, so set it
	 * only where every host speaks HTTP/2; over HTTP/1.1 it is the concurrency. */
	unsigned max_host_streams;
	const char *ca_file;	    /* NULL: the system bundle */
	const char *user_agent;
	int64_t idle_timeout_us;    /* connections idle for longer are not used again */
	int64_t max_lifetime_us;    /* nor those older than this */
};

/* Fails (ST_VERSION) on a libcurl older than 7.88.1 and (ST_NOT_FOUND) when no CA bundle can be read. */
int httpc_new(struct loop *l, struct resolver *r, const struct httpc_params *p, struct httpc **out, struct fault *f) MUST_USE;
void httpc_free(struct httpc *h); /* calls in flight are dropped without a completion */
unsigned httpc_in_flight(const struct httpc *h);

struct httpc_header {
	const char *name;
	const char *value; /* no CR, LF or NUL: ST_INVALID */
};

struct httpc_request {
	const char *method;	/* "POST" or "GET" */
	const char *url;	/* https://, or http:// with allow_http */
	bool allow_http;
	const struct httpc_header *headers; /* borrowed for the call of httpc_start */
	size_t n_headers;
	struct buf *body;	/* NULL: none. Moved out of the caller's buffer on success, wiped after use */
	int64_t timeout_us;	/* whole request, name resolution included */
	int64_t connect_timeout_us;
	size_t max_reply_bytes; /* body cap; headers are capped at 64 KiB in all */
	/* These live until the completion. */
	const char *ca_file;	/* NULL: the client's */
	const char *cert_file, *key_file; /* mutual TLS, or NULL */
	/* Asked for every address before a connection to it is used (also a reused one); NULL: all allowed.
	 * Runs inside libcurl: it may only judge, not start or cancel calls. */
	bool (*addr_allowed)(const struct sockaddr *sa, void *arg);
	void *addr_arg;		/* must live until the completion */
	bool fresh_connection;	/* do not reuse a kept connection */
	bool keep_url;		/* it is no secret and will come again: what it is made of is kept */
#ifdef REFRESHD_TORTURE
	bool watched;		/* its bytes count for the points of base/failpoint.h */
#endif
};

enum httpc_result {
	HTTPC_COMPLETE,	  /* status and the whole body are there (even when libcurl also reported an error, rule: 7.88 with
			   * HTTP/2). A body without a length ends with the connection: parse it before trusting it */
	HTTPC_NEVER_SENT, /* no byte of the request body (or, without a body, of the request) left us */
	HTTPC_CUT,	  /* sent, and no complete answer: the peer may have acted on it */
};

/* Closed set of reasons for anything but HTTPC_COMPLETE; the word is for logs and metrics. */
#define HTTPC_ERROR_LIST(X)                                                                     \
	X(HTTPC_E_NONE, "none") X(HTTPC_E_RESOLVE, "resolve") X(HTTPC_E_CONNECT, "connect")      \
	X(HTTPC_E_TLS, "tls") X(HTTPC_E_TIMEOUT, "timeout") X(HTTPC_E_CLOSED, "closed")          \
	X(HTTPC_E_REFUSED_ADDR, "address_refused") X(HTTPC_E_TOO_LARGE, "too_large")             \
	X(HTTPC_E_PROTOCOL, "protocol") X(HTTPC_E_INTERNAL, "internal")
enum httpc_error {
#define X(id, word) id,
	HTTPC_ERROR_LIST(X)
#undef X
};
const char *httpc_error_word(enum httpc_error e);

struct httpc_reply {
	enum httpc_result result;
	enum httpc_error error;
	int status;		  /* 0 when no status line came */
	struct buf body;	  /* secret; may be partial with HTTPC_CUT. The callback may buf_move it out */
	char content_type[96];	  /* "" when absent or too long; as received, printable ASCII only */
	char retry_after[64];	  /* likewise */
	int64_t start_wall_us;	  /* when the request was handed to the network */
	int64_t duration_us;	  /* from then to the last byte or the error */
	int64_t connect_us;	  /* name, TCP and TLS; 0 on a reused connection */
	bool reused_connection;
};

typedef void httpc_fn(void *arg, struct httpc_reply *r);

/* Exactly one call of fn in a later turn, never after httpc_cancel. ST_INVALID (bad URL, header, http not
 * allowed), ST_FULL. On failure the body stays with the caller. */
int httpc_start(struct httpc *h, const struct httpc_request *req, httpc_fn *fn, void *arg, struct httpc_call **out, struct fault *f) MUST_USE;
void httpc_cancel(struct httpc_call *c);

#endif
