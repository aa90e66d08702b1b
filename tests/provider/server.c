/*
 * server - connections: accept, read one request at a time, send bytes the way the answer wants it.
 *
 * Reading is a bufferevent's (plain or TLS); an answer goes straight to send() when nothing waits before
 * it, which is what makes tens of thousands of requests a second possible. Pipelined requests wait in the
 * input until the one before is over. Not evhttp: faults are about single bytes, and it hides them.
 */
#include "provider/simulator.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/listener.h>
#include <openssl/err.h>

#include "base/mem.h"
#include "base/sys.h"
#include "base/url.h"

#define CONN_MAGIC 0x51c0u
#define BACKLOG 4096

static void conn_close(struct conn *c)
{
	struct sim *s = c->sim;
	if (c->state == CONN_CLOSED)
		return;
	presentation_end(s, &c->p, c->serial, c->req, false);
	if (c->counted && c->realm != NULL)
		c->realm->stats.in_flight--;
	c->counted = false;
	conn_set_realm(c, NULL);
	if (c->stream != NULL)
		c->stream->fini(c->stream);
	c->stream = NULL;
	c->state = CONN_CLOSED;
	c->late = false;
	if (c->bev != NULL)
		bufferevent_free(c->bev);
	c->bev = NULL;
	c->ssl = NULL;
	s->conns_open--;
	evtimer_del(&c->timer);
	event_active(&c->timer, EV_TIMEOUT, 1); /* the memory goes when no caller is left on the stack */
}

static void conn_free(struct conn *c)
{
	TAILQ_REMOVE(&c->sim->conns, c, link);
	event_del(&c->timer);
	buf_fini(&c->out);
	mem_free(c);
}

static void conn_reset(struct conn *c)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};
	if (c->bev != NULL)
		(void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	conn_close(c);
}

static bool peer_is_there(const struct conn *c)
{
	struct pollfd pfd = {.fd = c->fd, .events = POLLRDHUP};
	return c->bev != NULL && poll(&pfd, 1, 0) == 0;
}

/* The request is over: the next one may begin. */
static void conn_finish(struct conn *c, bool delivered)
{
	struct evbuffer *in = bufferevent_get_input(c->bev);
	presentation_end(c->sim, &c->p, c->serial, c->req, delivered);
	if (c->counted && c->realm != NULL)
		c->realm->stats.in_flight--;
	c->counted = false;
	if (c->out.cap > 65536)
		buf_fini(&c->out);
	else
		buf_truncate(&c->out, 0);
	(void)evbuffer_drain(in, c->need);
	c->need = 0;
	c->early = c->continued = false;
	c->state = CONN_READING;
	if (!c->last)
		return;
	if (c->ssl != NULL)
		(void)SSL_shutdown(c->ssl);
	conn_close(c);
}

/* All that was given to the kernel so far is taken: what now? */
static void conn_sent(struct conn *c, bool peer_was_there)
{
	switch (c->act) {
	case ACT_CUT:
		conn_close(c);
		return;
	case ACT_RESET:
		conn_reset(c);
		return;
	case ACT_DRIP:
		if (c->sent < c->out.len)
			return; /* the timer goes on */
		conn_finish(c, peer_was_there);
		return;
	case ACT_SEND:
		conn_finish(c, peer_was_there);
		return;
	case ACT_HANG:
		return;
	}
}

bool conn_put(struct conn *c, const uint8_t *p, size_t n)
{
	size_t done = 0;
	if (c->ssl == NULL && evbuffer_get_length(bufferevent_get_output(c->bev)) == 0) {
		ssize_t k = n > 0 ? send(c->fd, p, n, MSG_NOSIGNAL) : 0;
		done = k > 0 ? (size_t)k : 0;
		if (done == n)
			return true;
	}
	put(bufferevent_write(c->bev, p + done, n - done));
	return false;
}

static void hand_over(struct conn *c, const uint8_t *p, size_t n, bool peer_was_there)
{
	if (conn_put(c, p, n))
		conn_sent(c, peer_was_there);
	else
		c->flushing = true;
}

static void drip_step(struct conn *c)
{
	size_t n = c->sent < c->cut ? 1 : c->out.len - c->sent;
	bool there = peer_is_there(c);
	size_t at = c->sent;
	c->sent += n;
	if (c->sent < c->out.len)
		conn_wait(c, c->sent < c->cut ? c->step_us : 0, drip_step);
	hand_over(c, c->out.data + at, n, there);
}

void conn_perform(struct conn *c, const struct buf *wire)
{
	c->state = CONN_BUSY;
	if (c->bev == NULL) { /* the peer left while the answer was being made */
		conn_close(c);
		return;
	}
	bool there = c->p.realm == NULL || peer_is_there(c);
	switch (c->act) {
	case ACT_HANG:
		return;
	case ACT_DRIP:
		if (wire != &c->out)
			put(buf_set(&c->out, wire->data, wire->len));
		c->sent = 0;
		drip_step(c);
		return;
	case ACT_CUT:
	case ACT_RESET:
		hand_over(c, wire->data, c->cut < wire->len ? c->cut : wire->len, there);
		return;
	case ACT_SEND:
		hand_over(c, wire->data, wire->len, there);
		return;
	}
}

static void perform_waiting(struct conn *c)
{
	conn_perform(c, &c->out);
}

void conn_perform_later(struct conn *c, const struct buf *wire, int64_t delay_us)
{
	put(buf_set(&c->out, wire->data, wire->len));
	conn_wait(c, delay_us, perform_waiting);
}

void conn_wait(struct conn *c, int64_t delay_us, void (*fn)(struct conn *c))
{
	struct timeval tv = {.tv_sec = delay_us / US_PER_S, .tv_usec = delay_us % US_PER_S};
	c->state = CONN_BUSY;
	c->on_timer = fn;
	put(evtimer_add(&c->timer, &tv));
}

static void stream_pump(struct conn *c)
{
	static const char tail[] = "0\r\n\r\n";
	struct evbuffer *out = bufferevent_get_output(c->bev);
	struct buf *piece = &c->sim->wire;
	buf_truncate(piece, 0);
	bool more = c->stream->fill(c->stream, piece);
	c->flushing = true;
	if (piece->len > 0) {
		put(evbuffer_add_printf(out, "%zx\r\n", piece->len) > 0 ? 0 : -1);
		put(evbuffer_add(out, piece->data, piece->len));
		put(evbuffer_add(out, "\r\n", 2));
	}
	if (more)
		return;
	put(evbuffer_add(out, tail, sizeof tail - 1));
	c->stream->fini(c->stream);
	c->stream = NULL;
}

void conn_stream(struct conn *c, struct stream *st, const char *ctype)
{
	c->state = CONN_BUSY;
	c->act = ACT_SEND;
	c->stream = st;
	put(evbuffer_add_printf(bufferevent_get_output(c->bev),
		    "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n", ctype) > 0
			? 0
			: -1);
	stream_pump(c);
}

int conn_request(struct conn *c, struct request *r)
{
	const char *p = buf_str(&c->out);
	size_t have = c->out.len;
	if (c->bev != NULL) {
		struct evbuffer *in = bufferevent_get_input(c->bev);
		have = evbuffer_get_length(in);
		size_t want = c->need > 0 ? c->need : HEAD_MAX;
		want = want < have ? want : have;
		p = (const char *)evbuffer_pullup(in, (ev_ssize_t)want);
		have = want;
	}
	int rc = request_parse(r, p, have);
	if (rc == 0 && r->content_length <= have - r->head_len)
		r->body = (struct slice){p + r->head_len, r->content_length};
	return rc;
}

void conn_set_realm(struct conn *c, struct realm *r)
{
	if (c->realm == r)
		return;
	if (c->realm != NULL)
		c->realm->stats.conns_open--;
	c->realm = r;
	if (r == NULL)
		return;
	r->stats.conns_accepted++;
	if (++r->stats.conns_open > r->stats.conns_max)
		r->stats.conns_max = r->stats.conns_open;
}

static void reject(struct conn *c, int rc)
{
	c->req++;
	c->last = true;
	if (rc == ST_FULL)
		conn_reply_error(c, 413, "the request is too large");
	else if (rc == ST_VERSION)
		conn_reply_error(c, 505, "HTTP/1.1 only");
	else if (rc == ST_INVALID)
		conn_reply_error(c, 411, "Transfer-Encoding is not read here: send Content-Length");
	else
		conn_reply_error(c, 400, "not a strict HTTP/1.1 request");
}

/* "/REALM/token" and "/REALM/redirected"; *leaf is what follows the name. */
static struct realm *route_realm(struct sim *s, struct slice path, struct slice *leaf)
{
	const char *slash = path.n > 1 ? memchr(path.p + 1, '/', path.n - 1) : NULL;
	if (slash == NULL)
		return NULL;
	*leaf = (struct slice){slash, (size_t)(path.p + path.n - slash)};
	return realm_find(s, path.p + 1, (size_t)(slash - path.p - 1));
}

static void dispatch(struct conn *c, struct request *r)
{
	struct slice leaf = {"", 0};
	struct realm *realm;
	c->act = ACT_SEND;
	c->last = r->close;
	c->sim->requests++;
	if (slice_starts(r->path, "/_sim/"))
		control_handle(c, r);
	else if (slice_starts(r->path, "/_sink/"))
		sink_handle(c, r);
	else if (slice_starts(r->path, "/_sink_"))
		control_handle(c, r);
	else if ((realm = route_realm(c->sim, r->path, &leaf)) == NULL)
		conn_reply_error(c, 404, "no such realm or path");
	else if (slice_is(leaf, "/token"))
		token_handle(c, realm, r);
	else if (slice_is(leaf, "/redirected"))
		token_redirected(c, realm, r);
	else
		conn_reply_error(c, 404, "no such path in this realm");
}

/* The head is here, the body is not. */
static void on_head(struct conn *c, const struct request *r)
{
	static const uint8_t go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
	struct slice leaf = {"", 0};
	struct realm *realm = route_realm(c->sim, r->path, &leaf);
	if (realm != NULL && slice_is(leaf, "/token"))
		c->early = token_early(c, realm);
	if (r->expect_continue && !c->continued && !c->early)
		(void)conn_put(c, go_on, sizeof go_on - 1);
	c->continued = true;
}

static bool conn_step(struct conn *c)
{
	size_t have = evbuffer_get_length(bufferevent_get_input(c->bev));
	if (have == 0 || have < c->need)
		return false;
	if (c->race) {
		c->req++;
		token_raced(c);
		if (c->race_reset)
			conn_reset(c);
		else
			conn_close(c);
		return false;
	}
	struct request r;
	int rc = conn_request(c, &r);
	if (rc == ST_AGAIN)
		return false;
	if (rc != 0) {
		reject(c, rc);
		return false;
	}
	size_t total = r.head_len + r.content_length;
	if (have < total) {
		bool first = c->need == 0;
		c->need = total;
		if (first)
			on_head(c, &r);
		return false;
	}
	c->need = total;
	if (r.body.n < r.content_length && conn_request(c, &r) != 0)
		always_failed("a request that parsed once parses twice", __FILE__, __LINE__, __func__);
	c->req++;
	if (c->early) {
		c->last = r.close;
		token_after_early(c, &r);
		conn_finish(c, peer_is_there(c));
	} else {
		dispatch(c, &r);
	}
	return c->state == CONN_READING;
}

void conn_process(struct conn *c)
{
	while (c->state == CONN_READING && conn_step(c))
		;
}

static void on_read(struct bufferevent *bev, void *arg)
{
	(void)bev;
	struct conn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	conn_process(c);
}

static void on_write(struct bufferevent *bev, void *arg)
{
	struct conn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	if (!c->flushing || evbuffer_get_length(bufferevent_get_output(bev)) > 0)
		return;
	c->flushing = false;
	if (c->stream != NULL) {
		stream_pump(c);
		return;
	}
	if (c->state != CONN_BUSY)
		return; /* a 100 Continue or an early answer has left */
	conn_sent(c, peer_is_there(c));
	conn_process(c);
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
	struct conn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	if ((what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) == 0)
		return;
	while (ERR_get_error() != 0)
		;
	if (!c->late || c->state != CONN_BUSY) {
		conn_close(c);
		return;
	}
	/* The provider has the request and goes on with it: keep its bytes and let the socket go. */
	buf_truncate(&c->out, 0);
	put(buf_append(&c->out, evbuffer_pullup(bufferevent_get_input(bev), (ev_ssize_t)c->need), c->need));
	bufferevent_free(bev);
	c->bev = NULL;
	c->ssl = NULL;
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	struct conn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	if (c->state == CONN_CLOSED) {
		conn_free(c);
		return;
	}
	c->on_timer(c);
	conn_process(c);
}

static struct bufferevent *wrap_socket(struct sim *s, evutil_socket_t fd, SSL **ssl)
{
	*ssl = NULL;
	if (s->tls == NULL)
		return bufferevent_socket_new(s->base, fd, BEV_OPT_CLOSE_ON_FREE);
	*ssl = SSL_new(s->tls);
	if (*ssl == NULL)
		return NULL;
	struct bufferevent *bev = bufferevent_openssl_socket_new(
		s->base, fd, *ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
	if (bev != NULL)
		bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
	return bev;
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *a, int n, void *arg)
{
	(void)l;
	(void)a;
	(void)n;
	struct sim *s = arg;
	int one = 1;
	SSL *ssl = NULL;
	struct bufferevent *bev = NULL;
	if (s->down_until_us > sys_mono_us()) {
		struct linger now = {.l_onoff = 1, .l_linger = 0};
		(void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	} else {
		bev = wrap_socket(s, fd, &ssl);
	}
	if (bev == NULL) {
		evutil_closesocket(fd);
		return;
	}
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	struct conn *c = mem_alloc(sizeof *c);
	c->magic = CONN_MAGIC;
	c->sim = s;
	c->bev = bev;
	c->ssl = ssl;
	c->fd = fd;
	c->serial = ++s->conn_serial;
	buf_init(&c->out, 2 * BODY_MAX);
	put(evtimer_assign(&c->timer, s->base, on_timer, c));
	TAILQ_INSERT_TAIL(&s->conns, c, link);
	if (++s->conns_open > s->conns_max)
		s->conns_max = s->conns_open;
	bufferevent_setcb(bev, on_read, on_write, on_event, c);
	bufferevent_setwatermark(bev, EV_READ, 0, BODY_MAX + HEAD_MAX);
	put(bufferevent_enable(bev, EV_READ | EV_WRITE));
}

static int tls_start(struct sim *s, const char *cert, const char *key, const char *ca, struct fault *f)
{
	s->tls = SSL_CTX_new(TLS_server_method());
	if (s->tls == NULL)
		return fault_set(f, ST_CRYPTO, "cannot make a TLS context");
	if (SSL_CTX_use_certificate_chain_file(s->tls, cert) != 1)
		return fault_set(f, ST_IO, "%s: cannot load the certificate", cert);
	if (SSL_CTX_use_PrivateKey_file(s->tls, key, SSL_FILETYPE_PEM) != 1)
		return fault_set(f, ST_IO, "%s: cannot load the private key, or it does not fit", key);
	if (ca == NULL)
		return 0;
	if (SSL_CTX_load_verify_file(s->tls, ca) != 1)
		return fault_set(f, ST_IO, "%s: cannot load the client CA", ca);
	SSL_CTX_set_verify(s->tls, SSL_VERIFY_PEER, NULL);
	/* Without it OpenSSL refuses every resumed session of a server that asks for certificates. */
	static const unsigned char id[] = "simulator";
	if (SSL_CTX_set_session_id_context(s->tls, id, sizeof(id) - 1) != 1)
		return fault_set(f, ST_CRYPTO, "libcrypto takes no session id context");
	s->tls_client_ca = true;
	return 0;
}

int server_start(
	struct sim *s, const char *listen, const char *cert, const char *key, const char *ca, struct fault *f)
{
	struct listen_addr at;
	struct sockaddr_storage ss = {0};
	struct sockaddr_in *in = (struct sockaddr_in *)&ss;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&ss;
	int rc = listen_addr_parse(listen, &at, f);
	if (rc == 0 && cert != NULL)
		rc = tls_start(s, cert, key, ca, f);
	if (rc != 0)
		return rc;
	socklen_t len = sizeof *in;
	if (!at.is_unix && inet_pton(AF_INET, at.host, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(at.port);
	} else if (!at.is_unix && inet_pton(AF_INET6, at.host, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(at.port);
		len = sizeof *in6;
	} else {
		return fault_set(f, ST_INVALID, "--listen %s: want an IP address and a port", listen);
	}
	s->listener = evconnlistener_new_bind(s->base, on_accept, s,
		LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE, BACKLOG,
		(struct sockaddr *)&ss, (int)len);
	if (s->listener == NULL)
		return fault_set(f, ST_IO, "cannot listen on %s: %s", listen, strerror(errno));
	len = sizeof ss;
	if (getsockname(evconnlistener_get_fd(s->listener), (struct sockaddr *)&ss, &len) != 0)
		return fault_set(f, ST_IO, "getsockname: %s", strerror(errno));
	s->port = ntohs(ss.ss_family == AF_INET ? in->sin_port : in6->sin6_port);
	return 0;
}

void server_stop(struct sim *s)
{
	struct conn *c;
	TAILQ_FOREACH(c, &s->conns, link)
	conn_close(c);
	while ((c = TAILQ_FIRST(&s->conns)) != NULL)
		conn_free(c);
	if (s->listener != NULL)
		evconnlistener_free(s->listener);
	s->listener = NULL;
	SSL_CTX_free(s->tls);
	s->tls = NULL;
}
