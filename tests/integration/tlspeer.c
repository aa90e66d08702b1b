/*
 * tlspeer - see the header. Bufferevents on the loop of the test; the part of HTTP/2 that is needed is
 * written out by hand, since it must break the rules at exact places.
 */
#include "integration/tlspeer.h"

#include <check.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/mem.h"

#define BIG_BYTES 100000

struct tlspeer_ca {
	EVP_PKEY *key;
	X509 *cert;
	char file[64], client_file[64];
};

struct conn {
	struct tlspeer *peer;
	struct bufferevent *bev;
	struct conn *next, *prev;
	bool hold, h2, h2_preface, closing;
	struct event *later; /* asks to keep the rest of the request on h2_stream */
	uint32_t h2_stream;
};

struct tlspeer {
	SSL_CTX *ctx;
	struct evconnlistener *listener;
	uint16_t port;
	const char *h2;
	struct conn *conns;
	struct tlspeer_seen seen;
};

/* --- certificates */

static X509 *make_cert(EVP_PKEY *key, const char *name, const char *san, X509 *issuer, EVP_PKEY *issuer_key, bool expired)
{
	static long serial = 1;
	X509 *cert = X509_new();
	X509V3_CTX ctx;
	ck_assert_ptr_nonnull(cert);
	X509_set_version(cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(cert), serial++);
	X509_gmtime_adj(X509_getm_notBefore(cert), -3600L * 48);
	X509_gmtime_adj(X509_getm_notAfter(cert), expired ? -3600L : 3600L * 48);
	X509_set_pubkey(cert, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
	X509_set_issuer_name(cert, X509_get_subject_name(issuer != NULL ? issuer : cert));
	X509V3_set_ctx(&ctx, issuer != NULL ? issuer : cert, cert, NULL, NULL, 0);
	X509_EXTENSION *ext = san != NULL ? X509V3_EXT_conf_nid(NULL, &ctx, NID_subject_alt_name, san) :
					    X509V3_EXT_conf_nid(NULL, &ctx, NID_basic_constraints, "critical,CA:TRUE");
	ck_assert_ptr_nonnull(ext);
	X509_add_ext(cert, ext, -1);
	X509_EXTENSION_free(ext);
	ck_assert_int_gt(X509_sign(cert, issuer_key, EVP_sha256()), 0);
	return cert;
}

static FILE *temp_file(char path[64], const char *what)
{
	snprintf(path, 64, "/tmp/tlspeer-%s-XXXXXX", what);
	int fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	FILE *file = fdopen(fd, "w");
	ck_assert_ptr_nonnull(file);
	return file;
}

struct tlspeer_ca *tlspeer_ca_new(void)
{
	struct tlspeer_ca *ca = mem_alloc(sizeof *ca);
	ca->key = EVP_EC_gen("P-256");
	ca->cert = make_cert(ca->key, "test CA", NULL, NULL, ca->key, false);
	FILE *file = temp_file(ca->file, "ca");
	ck_assert_int_eq(PEM_write_X509(file, ca->cert), 1);
	ck_assert_int_eq(fclose(file), 0);
	return ca;
}

void tlspeer_ca_free(struct tlspeer_ca *ca)
{
	unlink(ca->file);
	if (ca->client_file[0] != '\0')
		unlink(ca->client_file);
	X509_free(ca->cert);
	EVP_PKEY_free(ca->key);
	mem_free(ca);
}

const char *tlspeer_ca_file(const struct tlspeer_ca *ca)
{
	return ca->file;
}

const char *tlspeer_ca_client(struct tlspeer_ca *ca)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = make_cert(key, "client", "DNS:client.test", ca->cert, ca->key, false);
	FILE *file = temp_file(ca->client_file, "client");
	ck_assert_int_eq(PEM_write_X509(file, cert), 1);
	ck_assert_int_eq(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
	ck_assert_int_eq(fclose(file), 0);
	X509_free(cert);
	EVP_PKEY_free(key);
	return ca->client_file;
}

static int select_h2(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
	unsigned in_len, void *arg)
{
	static const unsigned char offer[] = "\x02h2";
	(void)ssl;
	(void)arg;
	return SSL_select_next_proto((unsigned char **)(uintptr_t)out, out_len, offer, sizeof offer - 1, in, in_len) ==
				OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

static SSL_CTX *make_ctx(const struct tlspeer_opts *o)
{
	char san[128];
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
	EVP_PKEY *key = EVP_EC_gen("P-256");
	snprintf(san, sizeof san, "DNS:%s", o->name);
	X509 *cert = make_cert(key, o->name, san, o->ca->cert, o->ca->key, o->expired);
	ck_assert_int_eq(SSL_CTX_use_certificate(ctx, cert), 1);
	ck_assert_int_eq(SSL_CTX_use_PrivateKey(ctx, key), 1);
	X509_free(cert);
	EVP_PKEY_free(key);
	if (o->want_client_cert) {
		SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
		ck_assert_int_eq(SSL_CTX_load_verify_locations(ctx, o->ca->file, NULL), 1);
	}
	if (o->h2 != NULL)
		SSL_CTX_set_alpn_select_cb(ctx, select_h2, NULL);
	SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"t", 1);
	return ctx;
}

/* --- connections */

static void conn_free(struct conn *c)
{
	*(c->prev != NULL ? &c->prev->next : &c->peer->conns) = c->next;
	if (c->next != NULL)
		c->next->prev = c->prev;
	event_free(c->later);
	bufferevent_free(c->bev);
	mem_free(c);
}

static void on_written(struct bufferevent *bev, void *arg)
{
	struct conn *c = arg;
	(void)bev;
	if (c->closing)
		conn_free(c);
}

static void say(struct conn *c, const char *text)
{
	bufferevent_write(c->bev, text, strlen(text));
}

/* Answer, then hang up without a word of TLS: what a cut connection looks like. */
static void say_and_cut(struct conn *c, const char *text)
{
	c->closing = true;
	say(c, text);
}

static void say_big(struct conn *c, size_t header_bytes)
{
	char *big = mem_alloc(BIG_BYTES + 1);
	memset(big, 'x', BIG_BYTES);
	say(c, "HTTP/1.1 200 OK\r\n");
	if (header_bytes > 0) {
		big[header_bytes] = '\0';
		say(c, "X-Big: ");
		say(c, big);
		say(c, "\r\nContent-Length: 0\r\n\r\n");
	} else {
		say(c, "Transfer-Encoding: chunked\r\n\r\n186a0\r\n");
		say(c, big);
		say(c, "\r\n0\r\n\r\n");
	}
	mem_free(big);
}

static const struct {
	const char *path, *text;
	bool cut;
} answers[] = {
	{ "/ok", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"ok\": true}\n", false },
	{ "/later", "HTTP/1.1 429 Slow\r\nRetry-After:  120 \r\ncontent-length: 0\r\n\r\n", false },
	{ "/odd", "HTTP/1.1 200 OK\r\nContent-Type: a\001b\r\nContent-Length: 0\r\n\r\n", false },
	{ "/chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n"
		      "Retry-After: 9\r\n\r\n", false },
	{ "/chunked-cut", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\nde", true },
	{ "/partial", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", true },
	{ "/until-close", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it", true },
	{ "/headers-cut", "HTTP/1.1 200 OK\r\nContent-Le", true },
	{ "/moved", "HTTP/1.1 307 Go\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n", false },
	{ "/continue", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nRetry-After: 7\r\n\r\n"
		       "HTTP/1.1 201 Made\r\nContent-Length: 2\r\n\r\nhi", false },
	{ "/continue-cut", "HTTP/1.1 100 Continue\r\n\r\n", true },
	{ "/gzip", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x01", false },
	{ "/nine", "what is this", true },
	{ "/die", "", true },
};

static void answer(struct conn *c, const char *path)
{
	if (strcmp(path, "/hang") == 0)
		return;
	if (strcmp(path, "/hold") == 0) {
		c->hold = true;
		c->peer->seen.held++;
		return;
	}
	if (strcmp(path, "/big") == 0 || strcmp(path, "/big-header") == 0) {
		say_big(c, path[4] == '-' ? 70000 : 0);
		return;
	}
	for (size_t i = 0; i < sizeof answers / sizeof answers[0]; i++) {
		if (strcmp(path, answers[i].path) != 0)
			continue;
		if (answers[i].text[0] == '\0')
			conn_free(c);
		else if (answers[i].cut)
			say_and_cut(c, answers[i].text);
		else
			say(c, answers[i].text);
		return;
	}
	say(c, "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n");
}

/* --- a small HTTP/2: enough to answer early, late or not to the end */

static void frame(struct conn *c, int type, int flags, uint32_t stream, const void *data, size_t n)
{
	uint8_t head[9] = { (uint8_t)(n >> 16), (uint8_t)(n >> 8), (uint8_t)n, (uint8_t)type, (uint8_t)flags,
		(uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream };
	bufferevent_write(c->bev, head, sizeof head);
	if (n > 0)
		bufferevent_write(c->bev, data, n);
}

enum { H2_DATA, H2_HEADERS, H2_RST = 3, H2_SETTINGS };

/* ":status: 200" is one byte of HPACK's static table. */
static void h2_answer(struct conn *c, uint32_t stream, bool reset)
{
	frame(c, H2_HEADERS, 4, stream, "\x88", 1);
	frame(c, H2_DATA, reset ? 0 : 1, stream, "{\"ok\": true}\n", 13);
	if (reset)
		frame(c, H2_RST, 0, stream, "\0\0\0\x02", 4);
}

/* RFC 9113 8.1: NO_ERROR after a whole answer asks the client to keep the rest of its request. */
static void on_later(evutil_socket_t fd, short what, void *arg)
{
	struct conn *c = arg;
	(void)fd;
	(void)what;
	frame(c, H2_RST, 0, c->h2_stream, "\0\0\0\0", 4);
}

/* False: the connection is gone. */
static bool h2_body(struct conn *c, uint32_t stream)
{
	const char *mode = c->peer->h2;
	bool second = ++c->peer->seen.bodies == 2;
	if (second && strcmp(mode, "die") == 0) {
		conn_free(c);
		return false;
	}
	if (second && strcmp(mode, "refuse") == 0)
		frame(c, H2_RST, 0, stream, "\0\0\0\x07", 4);
	else if (strcmp(mode, "early") != 0)
		h2_answer(c, stream, strcmp(mode, "reset") == 0);
	return true;
}

static bool h2_frame(struct conn *c, int type, int flags, uint32_t stream)
{
	bool last = (flags & 1) != 0;
	if (type == H2_SETTINGS && !last)
		frame(c, H2_SETTINGS, 1, 0, NULL, 0);
	if (type == H2_HEADERS) {
		c->peer->seen.requests++;
		if (last || strcmp(c->peer->h2, "early") == 0)
			h2_answer(c, stream, false);
		c->h2_stream = stream;
		if (!last && strcmp(c->peer->h2, "early") == 0)
			event_add(c->later, &(struct timeval){ .tv_usec = 20000 });
	}
	return type != H2_DATA || !last || h2_body(c, stream);
}

static void h2_read(struct conn *c)
{
	struct evbuffer *in = bufferevent_get_input(c->bev);
	if (!c->h2_preface) {
		if (evbuffer_get_length(in) < 24)
			return;
		evbuffer_drain(in, 24);
		c->h2_preface = true;
		/* A window of nothing keeps the bodies of later requests back until we allow them: never. */
		bool early = strcmp(c->peer->h2, "early") == 0;
		frame(c, H2_SETTINGS, 0, 0, early ? "\0\x04\0\0\0\0" : NULL, early ? 6 : 0);
	}
	uint8_t *head;
	while (evbuffer_get_length(in) >= 9 && (head = evbuffer_pullup(in, 9)) != NULL) {
		size_t n = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
		if (evbuffer_get_length(in) < 9 + n)
			return;
		head = evbuffer_pullup(in, (ssize_t)(9 + n));
		uint32_t stream = (uint32_t)head[5] << 24 | (uint32_t)head[6] << 16 | (uint32_t)head[7] << 8 | head[8];
		int type = head[3], flags = head[4];
		evbuffer_drain(in, 9 + n);
		if (!h2_frame(c, type, flags, stream))
			return;
	}
}

/* --- HTTP/1.1 */

static size_t content_length(const char *head)
{
	const char *at = strcasestr(head, "\r\ncontent-length:");
	return at != NULL ? strtoul(at + strlen("\r\ncontent-length:"), NULL, 10) : 0;
}

static void on_readable(struct bufferevent *bev, void *arg)
{
	struct conn *c = arg;
	struct evbuffer *in = bufferevent_get_input(bev);
	if (c->h2) {
		h2_read(c);
		return;
	}
	struct evbuffer_ptr end = evbuffer_search(in, "\r\n\r\n", 4, NULL);
	if (end.pos < 0)
		return;
	struct tlspeer_seen *seen = &c->peer->seen;
	size_t head = (size_t)end.pos + 4;
	ck_assert_uint_lt(head, sizeof seen->last);
	char text[sizeof seen->last];
	evbuffer_copyout(in, text, head);
	text[head] = '\0';
	size_t body = content_length(text);
	ck_assert_uint_lt(head + body, sizeof seen->last);
	if (evbuffer_get_length(in) < head + body)
		return;
	evbuffer_remove(in, text, head + body);
	text[head + body] = '\0';
	memcpy(seen->last, text, head + body + 1);
	seen->requests++;
	char *path = strchr(text, ' ') + 1;
	path[strcspn(path, " ?")] = '\0';
	answer(c, path);
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
	struct conn *c = arg;
	if (what & BEV_EVENT_CONNECTED) {
		const unsigned char *proto;
		unsigned len;
		c->peer->seen.handshakes++;
		SSL_get0_alpn_selected(bufferevent_openssl_get_ssl(bev), &proto, &len);
		c->h2 = len == 2;
		return;
	}
	conn_free(c);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *sa, int len, void *arg)
{
	struct tlspeer *p = arg;
	struct event_base *base = evconnlistener_get_base(listener);
	struct conn *c = mem_alloc(sizeof *c);
	(void)sa;
	(void)len;
	p->seen.connections++;
	c->peer = p;
	c->bev = p->ctx == NULL ? bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE) :
				  bufferevent_openssl_socket_new(base, fd, SSL_new(p->ctx),
					  BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE);
	ck_assert_ptr_nonnull(c->bev);
	c->later = event_new(base, -1, 0, on_later, c);
	c->next = p->conns;
	if (c->next != NULL)
		c->next->prev = c;
	p->conns = c;
	bufferevent_setcb(c->bev, on_readable, on_written, on_event, c);
	bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

struct tlspeer *tlspeer_new(struct loop *l, const struct tlspeer_opts *o)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof sin;
	struct tlspeer *p = mem_alloc(sizeof *p);
	p->h2 = o->h2;
	if (o->ca != NULL)
		p->ctx = make_ctx(o);
	p->listener = evconnlistener_new_bind(loop_base(l), on_accept, p,
		LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 1024, (struct sockaddr *)&sin, sizeof sin);
	ck_assert_ptr_nonnull(p->listener);
	ck_assert_int_eq(getsockname(evconnlistener_get_fd(p->listener), (struct sockaddr *)&sin, &len), 0);
	p->port = ntohs(sin.sin_port);
	return p;
}

void tlspeer_free(struct tlspeer *p)
{
	if (p == NULL)
		return;
	tlspeer_close_idle(p);
	evconnlistener_free(p->listener);
	SSL_CTX_free(p->ctx);
	mem_free(p);
}

uint16_t tlspeer_port(const struct tlspeer *p)
{
	return p->port;
}

void tlspeer_close_idle(struct tlspeer *p)
{
	while (p->conns != NULL)
		conn_free(p->conns);
}

void tlspeer_release(struct tlspeer *p)
{
	for (struct conn *c = p->conns; c != NULL; c = c->next) {
		if (c->hold)
			answer(c, "/ok");
		c->hold = false;
	}
}

const struct tlspeer_seen *tlspeer_seen(const struct tlspeer *p)
{
	return &p->seen;
}
