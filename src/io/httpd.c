/*
 * httpd - the HTTP server: accepting under a cap, its certificate, its end. Connections are in httpd_conn.c.
 *
 * Not evhttp: 2.1 decides where a request ends before anyone can look (httpd_framing says what it lets pass), has no cap on
 * connections and no deadline for a whole request. Must not read or write on a connection itself.
 */
#include "io/httpd.h"

#include <event2/event.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "base/sys.h"
#include "io/httpd_priv.h"

#define HTTPD_MAGIC 0x68747064u
#define ACCEPT_PAUSE_US (100 * US_PER_MS)

/* --- accepting */

static bool is_full(const struct httpd *h)
{
	return h->n_conns >= h->p.max_connections && h->idle_first == NULL;
}

void httpd_resume_accept(struct httpd *h)
{
	if (h->listener && !h->deaf && !is_full(h) && !loop_timer_is_set(h->accept_timer))
		evconnlistener_enable(h->listener);
}

void httpd_stop_when_full(struct httpd *h)
{
	if (h->listener && is_full(h))
		evconnlistener_disable(h->listener);
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *sa, int len, void *arg)
{
	struct httpd *h = arg;
	(void)l, (void)len;
	MAGIC_CHECK(h, HTTPD_MAGIC);
	loop_enter(h->loop);
	int on = 1;
	if (sa->sa_family != AF_UNIX)
		(void)!setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* only a matter of speed */
	httpd_conn_new(h, fd, sa);
	if (h->n_conns > h->p.max_connections && h->idle_first != NULL)
		httpd_conn_free(h->idle_first);
	httpd_stop_when_full(h);
}

/* No descriptor or no memory for one more: the socket stays readable, so look away for a moment. */
static void on_accept_error(struct evconnlistener *l, void *arg)
{
	struct httpd *h = arg;
	MAGIC_CHECK(h, HTTPD_MAGIC);
	loop_enter(h->loop);
	evconnlistener_disable(l);
	loop_timer_after(h->accept_timer, ACCEPT_PAUSE_US);
	if (h->on_refused)
		h->on_refused(h->on_refused_arg, 503, NULL, NULL);
}

static void on_accept_timer(void *arg)
{
	struct httpd *h = arg;
	MAGIC_CHECK(h, HTTPD_MAGIC);
	httpd_resume_accept(h);
}

/* --- the server */

static void set_defaults(struct httpd_params *p)
{
	if (p->max_connections == 0)
		p->max_connections = 1024;
	if (p->max_header_bytes == 0)
		p->max_header_bytes = 16 * 1024;
	if (p->max_body_bytes == 0)
		p->max_body_bytes = 64 * 1024;
	if (p->max_held_bytes == 0)
		p->max_held_bytes = 64 * p->max_body_bytes;
	if (p->request_deadline_us == 0)
		p->request_deadline_us = 10 * US_PER_S;
	if (p->idle_timeout_us == 0)
		p->idle_timeout_us = 60 * US_PER_S;
	p->tls_cert_file = p->tls_key_file = NULL;
}

int httpd_new(struct loop *l, const struct httpd_params *p, httpd_fn *fn, void *arg, struct httpd **out, struct fault *f)
{
	SSL_CTX *tls = NULL;
	struct httpd_socket sock;
	if ((p->tls_cert_file == NULL) != (p->tls_key_file == NULL))
		return fault_set(f, ST_INVALID, "TLS needs a certificate file and a key file");
	int code = p->tls_cert_file ? httpd_tls_new(p->tls_cert_file, p->tls_key_file, &tls, f) : 0;
	if (code == 0)
		code = httpd_socket_open(&p->listen, p->listen_fd, &sock, f);
	if (code != 0) {
		SSL_CTX_free(tls);
		return code;
	}
	struct httpd *h = mem_alloc(sizeof(*h));
	h->magic = HTTPD_MAGIC;
	h->loop = l;
	h->p = *p;
	set_defaults(&h->p);
	h->fn = fn;
	h->arg = arg;
	h->sock = sock;
	h->tls = tls;
	h->accept_timer = loop_timer_new(l, on_accept_timer, h);
	/* Backlog 0: it listens already. */
	h->listener = evconnlistener_new(loop_base(l), on_accept, h, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, sock.fd);
	ALWAYS(h->listener != NULL);
	evconnlistener_set_error_cb(h->listener, on_accept_error);
	*out = h;
	return 0;
}

void httpd_free(struct httpd *h)
{
	if (h == NULL)
		return;
	MAGIC_CHECK(h, HTTPD_MAGIC);
	httpd_socket_unlink(&h->sock);
	evconnlistener_free(h->listener);
	h->listener = NULL;
	while (h->conns)
		httpd_conn_free(h->conns);
	loop_timer_free(h->accept_timer);
	SSL_CTX_free(h->tls);
	h->magic = 0;
	mem_free(h);
}

void httpd_accept(struct httpd *h, bool on)
{
	h->deaf = !on;
	if (on)
		httpd_resume_accept(h);
	else
		evconnlistener_disable(h->listener);
}

void httpd_close_after(struct httpd *h)
{
	h->ending = true;
	for (struct httpd_conn *c = h->conns, *next; c != NULL; c = next) {
		next = c->next;
		if (c->state == CONN_IDLE && c->kept)
			httpd_conn_free(c);
	}
}

uint16_t httpd_port(const struct httpd *h)
{
	return h->sock.port;
}

unsigned httpd_connections(const struct httpd *h)
{
	return h->n_conns;
}

int httpd_reload_tls(struct httpd *h, const char *cert_file, const char *key_file, struct fault *f)
{
	if (h->tls == NULL)
		return fault_set(f, ST_INVALID, "the server was started without TLS");
	SSL_CTX *tls;
	int code = httpd_tls_new(cert_file, key_file, &tls, f);
	if (code != 0)
		return code;
	SSL_CTX_free(h->tls); /* open connections hold theirs */
	h->tls = tls;
	return 0;
}

void httpd_on_refused(struct httpd *h, httpd_refused_fn *fn, void *arg)
{
	h->on_refused = fn;
	h->on_refused_arg = arg;
}
