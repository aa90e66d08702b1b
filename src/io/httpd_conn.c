/*
 * httpd_conn - one connection of the HTTP server: its requests, one at a time, deadlines, replies.
 *
 * One timer covers every phase but the handler's. A connection is closed in two steps, so that the peer can read the last reply: no
 * more from us, then up to a second for its end. Must not call the handler for anything that is not one whole, unambiguous request.
 */
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "io/httpd_priv.h"
#include "io/httpd_words.h"

#define CONN_MAGIC 0x68636f6eu
#define REQUEST_MAGIC 0x68726571u
#define MAX_REPLY_HEADERS 4096u
#define REFUSAL_BYTES 2048u
#define INPUT_BYTES 65536u
#define LINGER_US US_PER_S
#define REPLY_DEADLINES 3

/* --- its life */

static void request_free(struct httpd_request *r)
{
	httpd_framing_fini(&r->in);
	buf_fini(&r->headers);
	r->magic = 0;
	mem_free(r);
}

static void conn_holds(struct httpd_conn *c, size_t n)
{
	c->httpd->held += n;
	c->httpd->held -= c->holds;
	c->holds = n;
}

static void conn_drop_request(struct httpd_conn *c)
{
	if (c->request == NULL)
		return;
	conn_holds(c, 0);
	if (c->state == CONN_HANDLING)
		c->request->conn = NULL; /* the handler still has it; httpd_reply frees it */
	else
		request_free(c->request);
	c->request = NULL;
}

/* What nobody will read may hold a token or a key all the same. */
static void drop_input(struct httpd_conn *c)
{
	struct evbuffer *in = bufferevent_get_input(c->bev);
	struct evbuffer_iovec v;
	while (evbuffer_peek(in, -1, NULL, &v, 1) > 0 && v.iov_len > 0) {
		mem_wipe(v.iov_base, v.iov_len);
		evbuffer_drain(in, v.iov_len);
	}
}

static void idle_begin(struct httpd_conn *c)
{
	struct httpd *h = c->httpd;
	c->idles = true;
	c->idle_next = NULL;
	c->idle_prev = h->idle_last;
	*(h->idle_last ? &h->idle_last->idle_next : &h->idle_first) = c;
	h->idle_last = c;
	if (h->n_conns >= h->p.max_connections)
		httpd_resume_accept(h); /* who knocks takes its place */
}

static void idle_end(struct httpd_conn *c)
{
	struct httpd *h = c->httpd;
	if (!c->idles)
		return;
	c->idles = false;
	*(c->idle_prev ? &c->idle_prev->idle_next : &h->idle_first) = c->idle_next;
	*(c->idle_next ? &c->idle_next->idle_prev : &h->idle_last) = c->idle_prev;
	httpd_stop_when_full(h);
}

void httpd_conn_free(struct httpd_conn *c)
{
	struct httpd *h = c->httpd;
	idle_end(c);
	conn_drop_request(c);
	if (c->prev)
		c->prev->next = c->next;
	else
		h->conns = c->next;
	if (c->next)
		c->next->prev = c->prev;
	drop_input(c);
	bufferevent_free(c->bev);
	loop_timer_free(c->timer);
	h->n_conns--;
	c->dead = true;
	if (!c->in_handler) {
		c->magic = 0;
		mem_free(c);
	}
	httpd_resume_accept(h);
}

static void conn_linger(struct httpd_conn *c)
{
	c->state = CONN_LINGER;
	SSL *ssl = bufferevent_openssl_get_ssl(c->bev);
	if (ssl) {
		SSL_shutdown(ssl);
		ERR_clear_error();
	}
	int fd = bufferevent_getfd(c->bev);
	if (fd < 0 || shutdown(fd, SHUT_WR) != 0) {
		httpd_conn_free(c);
		return;
	}
	drop_input(c);
	bufferevent_enable(c->bev, EV_READ);
	loop_timer_after(c->timer, LINGER_US);
}

/* --- replies */

static void free_body(const void *data, size_t n, void *arg)
{
	struct buf *b = arg;
	(void)data, (void)n;
	buf_fini(b);
	mem_free(b);
}

static void add_body(struct evbuffer *out, struct buf *body)
{
	struct buf *kept = mem_alloc(sizeof(*kept));
	buf_move(kept, body);
	ALWAYS(evbuffer_add_reference(out, kept->data, kept->len, free_body, kept) == 0);
}

static void conn_reply(struct httpd_conn *c, int status, const char *type, const char *headers, struct buf *body, bool head_only)
{
	struct evbuffer *out = bufferevent_get_output(c->bev);
	size_t n = body ? body->len : 0;
	bool no_body = status == 204 || status == 304;
	char date[32];
	httpd_date(date);
	int ok = evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, httpd_reason(status), date);
	if (ok >= 0 && type && n > 0 && !no_body)
		ok = evbuffer_add_printf(out, "Content-Type: %s\r\n", type);
	if (ok >= 0 && !no_body)
		ok = evbuffer_add_printf(out, "Content-Length: %zu\r\n", n);
	if (ok >= 0)
		ok = evbuffer_add_printf(out, "Connection: %s\r\n%s\r\n", c->close_after ? "close" : "keep-alive", headers);
	ALWAYS(ok >= 0);
	if (n > 0 && !head_only && !no_body)
		add_body(out, body);
	c->state = CONN_WRITING;
	loop_timer_after(c->timer, REPLY_DEADLINES * c->httpd->p.request_deadline_us);
}

/* A refusal of our own: said, counted, closed. */
static void conn_refuse(struct httpd_conn *c, int status)
{
	struct httpd *h = c->httpd;
	struct buf text = BUF_INIT(REFUSAL_BYTES), headers = BUF_INIT(REFUSAL_BYTES);
	if (status == 503)
		ALWAYS(buf_puts(&headers, "Retry-After: 1\r\n") == 0);
	if (h->on_refused)
		h->on_refused(h->on_refused_arg, status, &headers, &text);
	bool json = text.len > 0;
	if (!json)
		ALWAYS(buf_printf(&text, "%d %s\n", status, httpd_reason(status)) == 0);
	bool head_only = c->request && c->request->in.method == HTTPD_HEAD;
	bufferevent_disable(c->bev, EV_READ);
	conn_drop_request(c);
	c->close_after = true;
	conn_reply(c, status, json ? "application/json" : "text/plain; charset=utf-8", buf_str(&headers), &text, head_only);
	buf_fini(&text);
	buf_fini(&headers);
}

/* --- requests */

static void conn_wait(struct httpd_conn *c, int64_t timeout_us)
{
	c->state = CONN_IDLE;
	bufferevent_enable(c->bev, EV_READ);
	loop_timer_after(c->timer, timeout_us);
}

static void conn_begin(struct httpd_conn *c)
{
	struct httpd_request *r = mem_alloc(sizeof(*r));
	idle_end(c);
	r->magic = REQUEST_MAGIC;
	r->conn = c;
	httpd_framing_init(&r->in, c->httpd->p.max_header_bytes, c->httpd->p.max_body_bytes);
	buf_init(&r->headers, MAX_REPLY_HEADERS);
	memcpy(r->peer, c->peer, sizeof(r->peer));
	c->request = r;
	c->continued = false;
	c->state = CONN_READING;
	loop_timer_after(c->timer, c->httpd->p.request_deadline_us);
}

/* Calls the handler. The connection, and the server, may be gone when it returns. */
static void conn_handle(struct httpd_conn *c)
{
	struct httpd *h = c->httpd;
	c->state = CONN_HANDLING;
	c->close_after = c->request->in.close;
	bufferevent_disable(c->bev, EV_READ);
	loop_timer_stop(c->timer);
	c->in_handler = true;
	h->fn(h->arg, c->request);
	c->in_handler = false;
	if (c->dead) {
		c->magic = 0;
		mem_free(c);
	}
}

static void conn_say_continue(struct httpd_conn *c)
{
	const struct httpd_framing *in = &c->request->in;
	if (c->continued || !in->expect_continue || !httpd_framing_in_body(in))
		return;
	c->continued = true;
	bufferevent_write(c->bev, "HTTP/1.1 100 Continue\r\n\r\n", 25);
}

/* Feeds what has arrived. At most one request: its reply has to be written before the next is looked at. */
static void conn_read(struct httpd_conn *c)
{
	struct evbuffer *in = bufferevent_get_input(c->bev);
	int status = HTTPD_FRAMING_MORE;
	struct evbuffer_iovec v;
	while (status == HTTPD_FRAMING_MORE && evbuffer_peek(in, -1, NULL, &v, 1) > 0 && v.iov_len > 0) {
		if (c->state == CONN_IDLE)
			conn_begin(c);
		size_t used;
		status = httpd_framing_feed(&c->request->in, v.iov_base, v.iov_len, &used);
		mem_wipe(v.iov_base, used);
		evbuffer_drain(in, used);
		conn_holds(c, c->request->in.body.len);
	}
	bool full = c->httpd->held > c->httpd->p.max_held_bytes;
	if (status < 400 && full)
		conn_refuse(c, 503); /* who came last, so that those who were first get through */
	else if (status == HTTPD_FRAMING_DONE)
		conn_handle(c);
	else if (status != HTTPD_FRAMING_MORE)
		conn_refuse(c, status);
	else if (c->state == CONN_READING)
		conn_say_continue(c);
}

static void on_read(struct bufferevent *bev, void *arg)
{
	struct httpd_conn *c = arg;
	(void)bev;
	MAGIC_CHECK(c, CONN_MAGIC);
	loop_enter(c->httpd->loop);
	if (c->state == CONN_IDLE || c->state == CONN_READING) {
		conn_read(c);
	} else if (c->state == CONN_LINGER) {
		drop_input(c);
	}
}

static void on_written(struct bufferevent *bev, void *arg)
{
	struct httpd_conn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	loop_enter(c->httpd->loop);
	/* A call that was put off may come when there is a reply to write again. */
	if (c->state != CONN_WRITING || evbuffer_get_length(bufferevent_get_output(bev)) > 0)
		return;
	if (c->close_after || (c->eof && evbuffer_get_length(bufferevent_get_input(bev)) == 0)) {
		conn_linger(c);
		return;
	}
	c->kept = true;
	conn_wait(c, c->httpd->p.idle_timeout_us);
	idle_begin(c);
	conn_read(c); /* what came meanwhile */
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
	struct httpd_conn *c = arg;
	(void)bev;
	MAGIC_CHECK(c, CONN_MAGIC);
	loop_enter(c->httpd->loop);
	if (what & BEV_EVENT_CONNECTED) {
		if (c->state == CONN_HANDSHAKE)
			conn_wait(c, c->httpd->p.request_deadline_us);
		return;
	}
	ERR_clear_error();
	/* The peer has shut its side but still waits for our reply. */
	if ((what & BEV_EVENT_EOF) && (c->state == CONN_HANDLING || c->state == CONN_WRITING)) {
		c->eof = true;
		return;
	}
	httpd_conn_free(c);
}

static void on_timer(void *arg)
{
	struct httpd_conn *c = arg;
	MAGIC_CHECK(c, CONN_MAGIC);
	if (c->state == CONN_READING)
		conn_refuse(c, 408);
	else
		httpd_conn_free(c);
}

/* --- its beginning */

static void name_peer(const struct sockaddr *sa, char out[64])
{
	char host[INET6_ADDRSTRLEN];
	if (sa->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(out, 64, "%s:%u", host, (unsigned)ntohs(in->sin_port));
	} else if (sa->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)(const void *)sa;
		inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof(host));
		snprintf(out, 64, "[%s]:%u", host, (unsigned)ntohs(in->sin6_port));
	} else {
		snprintf(out, 64, "unix");
	}
}

static struct bufferevent *make_bev(struct httpd *h, int fd)
{
	struct event_base *base = loop_base(h->loop);
	int options = BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS;
	if (h->tls == NULL)
		return bufferevent_socket_new(base, fd, options);
	SSL *ssl = SSL_new(h->tls);
	ALWAYS(ssl != NULL);
	struct bufferevent *bev = bufferevent_openssl_socket_new(base, fd, ssl, BUFFEREVENT_SSL_ACCEPTING, options);
	if (bev)
		bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
	else
		SSL_free(ssl);
	return bev;
}

void httpd_conn_new(struct httpd *h, int fd, const struct sockaddr *sa)
{
	struct httpd_conn *c = mem_alloc(sizeof(*c));
	c->magic = CONN_MAGIC;
	c->httpd = h;
	c->bev = make_bev(h, fd);
	ALWAYS(c->bev != NULL);
	c->timer = loop_timer_new(h->loop, on_timer, c);
	name_peer(sa, c->peer);
	c->next = h->conns;
	if (c->next)
		c->next->prev = c;
	h->conns = c;
	h->n_conns++;
	bufferevent_setwatermark(c->bev, EV_READ, 0, INPUT_BYTES);
	bufferevent_setcb(c->bev, on_read, on_written, on_event, c);
	bufferevent_enable(c->bev, EV_READ | EV_WRITE);
	c->state = h->tls ? CONN_HANDSHAKE : CONN_IDLE;
	loop_timer_after(c->timer, h->p.request_deadline_us); /* only who has asked once may idle */
}

/* --- what the handler sees */

enum httpd_method httpd_method(const struct httpd_request *r)
{
	return r->in.method;
}

const char *httpd_path(const struct httpd_request *r)
{
	return r->in.path;
}

const char *httpd_query(const struct httpd_request *r)
{
	return r->in.query;
}

const char *httpd_header(const struct httpd_request *r, const char *name)
{
	return httpd_framing_field(&r->in, name);
}

unsigned httpd_header_count(const struct httpd_request *r, const char *name)
{
	unsigned n;
	(void)httpd_framing_only(&r->in, name, &n);
	return n;
}

const void *httpd_body(const struct httpd_request *r, size_t *n)
{
	*n = r->in.body.len;
	return buf_str(&r->in.body);
}

void httpd_peer(const struct httpd_request *r, char out[64])
{
	memcpy(out, r->peer, 64);
}

void httpd_reply_header(struct httpd_request *r, const char *name, const char *value)
{
	MAGIC_CHECK(r, REQUEST_MAGIC);
	if (str_has_ctl(name, strlen(name)) || str_has_ctl(value, strlen(value)) ||
		buf_printf(&r->headers, "%s: %s\r\n", name, value) != 0)
		r->bad_header = true;
}

void httpd_reply(struct httpd_request *r, int status, const char *content_type, struct buf *body)
{
	MAGIC_CHECK(r, REQUEST_MAGIC);
	ALWAYS(status >= 200 && status <= 599);
	struct httpd_conn *c = r->conn;
	if (c) {
		ALWAYS(c->state == CONN_HANDLING && c->request == r);
		c->request = NULL;
		c->close_after = c->close_after || c->httpd->ending;
		conn_holds(c, 0);
		if (r->bad_header)
			conn_reply(c, 500, NULL, "", NULL, false);
		else
			conn_reply(c, status, content_type, buf_str(&r->headers), body, r->in.method == HTTPD_HEAD);
	}
	if (body)
		buf_fini(body);
	request_free(r);
}
