/*
 * httpd_priv - what httpd.c and httpd_conn.c share. For these two only.
 */
#ifndef REFRESHD_IO_HTTPD_PRIV_H
#define REFRESHD_IO_HTTPD_PRIV_H

#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "io/httpd.h"
#include "io/httpd_framing.h"
#include "io/httpd_socket.h"

enum httpd_conn_state {
	CONN_HANDSHAKE, /* TLS not yet up */
	CONN_IDLE,	/* no byte of a request yet */
	CONN_READING,
	CONN_HANDLING, /* the handler owes a reply */
	CONN_WRITING,
	CONN_LINGER, /* our side is shut, waiting for the peer's */
};

struct httpd_conn {
	unsigned magic;
	struct httpd *httpd;
	struct httpd_conn *next, *prev;
	struct httpd_conn *idle_next, *idle_prev;
	enum httpd_conn_state state;
	struct bufferevent *bev;
	struct loop_timer *timer;
	struct httpd_request *request; /* READING, HANDLING */
	bool close_after, in_handler, dead;
	bool kept; /* it has had a reply */
	bool idles; /* kept, and without a request: in the list of those */
	bool eof; /* the peer's side is shut; what came before still gets its replies */
	bool continued; /* 100 was sent for this request */
	size_t holds;	/* bytes of its body, counted in httpd.held */
	char peer[64];
};

struct httpd_request {
	unsigned magic;
	struct httpd_conn *conn; /* NULL once the connection is gone */
	struct httpd_framing in;
	struct buf headers; /* of the reply */
	bool bad_header;
	char peer[64];
};

struct httpd {
	unsigned magic;
	struct loop *loop;
	struct httpd_params p; /* the strings are not ours */
	httpd_fn *fn;
	void *arg;
	httpd_refused_fn *on_refused;
	void *on_refused_arg;
	struct httpd_socket sock;
	struct evconnlistener *listener;
	struct loop_timer *accept_timer; /* ends a pause after a failed accept */
	SSL_CTX *tls;
	struct httpd_conn *conns;
	struct httpd_conn *idle_first, *idle_last; /* who has idled for longest comes first */
	unsigned n_conns;
	size_t held; /* bytes of bodies, of all connections */
	bool ending, deaf; /* replies close; nothing is accepted */
};

/* httpd.c */
void httpd_resume_accept(struct httpd *h); /* unless it is deaf, in a pause, or full of connections that do not idle */
void httpd_stop_when_full(struct httpd *h);

/* httpd_conn.c */
void httpd_conn_new(struct httpd *h, int fd, const struct sockaddr *sa); /* takes the descriptor; counts itself in n_conns */
void httpd_conn_free(struct httpd_conn *c);

#endif
