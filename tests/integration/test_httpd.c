/*
 * The HTTP server by raw sockets on loopback: what it takes, what it refuses and how, its clocks and caps.
 * Client and server share one loop and one thread.
 */
#include "unit/unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "io/httpd.h"
#include "io/httpd_framing.h"

#define WAIT_US (20 * US_PER_S)

static struct loop *loop;
static struct httpd *server;
static struct httpd_request *held[16]; /* requests that the handler keeps */
static int n_held, n_handled, refused[8], n_refused;
static char last_path[256], last_query[256], last_body[256], last_header[256], last_peer[64];
static size_t last_body_len;
static enum httpd_method last_method;
static bool hold, free_in_handler;

#define wait_for(cond)                                                                        \
	do {                                                                                  \
		int64_t end_ = sys_mono_us() + WAIT_US;                                       \
		while (!(cond)) {                                                             \
			ck_assert_msg(sys_mono_us() < end_, "no end of waiting for %s", #cond); \
			loop_once(loop, 10 * US_PER_MS);                                      \
		}                                                                             \
	} while (0)

static void answer(struct httpd_request *r)
{
	struct buf b;
	buf_init_secret(&b, 1 << 20);
	ck_ok(buf_printf(&b, "hello %s", httpd_path(r)));
	if (strcmp(httpd_path(r), "/big") == 0)
		for (int i = 0; i < 1000; i++)
			ck_ok(buf_printf(&b, "%0500d", i));
	httpd_reply_header(r, "X-Test", "yes");
	if (strcmp(httpd_path(r), "/inject") == 0)
		httpd_reply_header(r, "X-Bad", "a\r\nSet-Cookie: x");
	if (strcmp(httpd_path(r), "/none") == 0) {
		httpd_reply(r, 204, NULL, NULL);
		buf_fini(&b);
		return;
	}
	httpd_reply(r, 200, "text/plain", &b);
	ck_assert_ptr_null(b.data);
}

static void on_request(void *arg, struct httpd_request *r)
{
	(void)arg;
	size_t n;
	const char *body = httpd_body(r, &n);
	n_handled++;
	last_body_len = n;
	last_method = httpd_method(r);
	snprintf(last_path, sizeof(last_path), "%s", httpd_path(r));
	snprintf(last_query, sizeof(last_query), "%s", httpd_query(r));
	snprintf(last_body, sizeof(last_body), "%.*s", (int)(n > 200 ? 200 : n), body);
	const char *h = httpd_header(r, "x-Thing");
	snprintf(last_header, sizeof(last_header), "%s", h ? h : "(none)");
	httpd_peer(r, last_peer);
	if (free_in_handler) {
		httpd_free(server);
		server = NULL;
	}
	if (hold)
		held[n_held++] = r;
	else
		answer(r);
}

static void on_refused(void *arg, int status, struct buf *headers, struct buf *body)
{
	(void)arg;
	if (headers != NULL)
		ck_ok(buf_puts(headers, "X-Refused: yes\r\n"));
	if (status == 408 && body != NULL)
		ck_ok(buf_puts(body, "{\"slow\":true}"));
	refused[n_refused++ % 8] = status;
}

static struct httpd_params params(void)
{
	return (struct httpd_params){ .listen = { .host = "127.0.0.1", .port = 0 }, .listen_fd = -1 };
}

static void start(const struct httpd_params *p)
{
	struct fault f = { .code = 0 };
	int code = httpd_new(loop, p, on_request, NULL, &server, &f);
	ck_assert_msg(code == 0, "httpd_new: %s", f.text);
	httpd_on_refused(server, on_refused, NULL);
}

static void setup(void)
{
	signal(SIGPIPE, SIG_IGN);
	ck_ok(loop_new(&loop, NULL));
	server = NULL;
	n_held = n_handled = n_refused = 0;
	hold = free_in_handler = false;
}

static void teardown(void)
{
	httpd_free(server);
	for (int i = 0; i < n_held; i++)
		answer(held[i]);
	loop_once(loop, 0);
	loop_free(loop);
}

/* --- a client */

struct client {
	int fd;
	SSL *ssl;
	char in[1 << 20];
	size_t n;
	bool eof, reset;
};
static struct client clients[8];

static int tcp(uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_ge(fd, 0);
	ck_ok(connect(fd, (struct sockaddr *)&a, sizeof(a)));
	ck_ok(fcntl(fd, F_SETFL, O_NONBLOCK));
	return fd;
}

static struct client *attach(int i, int fd)
{
	struct client *c = &clients[i];
	memset(c, 0, offsetof(struct client, in));
	c->fd = fd;
	c->n = 0;
	c->eof = c->reset = false;
	return c;
}

static struct client *dial(int i)
{
	return attach(i, tcp(httpd_port(server)));
}

static void hang_up(struct client *c)
{
	SSL_free(c->ssl);
	c->ssl = NULL;
	close(c->fd);
	c->fd = -1;
}

static void transmit(struct client *c, const char *p, size_t n)
{
	int64_t end = sys_mono_us() + WAIT_US;
	while (n > 0) {
		ck_assert(sys_mono_us() < end);
		ssize_t k = c->ssl ? SSL_write(c->ssl, p, (int)n) : send(c->fd, p, n, 0);
		if (k > 0) {
			p += k;
			n -= (size_t)k;
			continue;
		}
		if (!c->ssl && errno != EAGAIN)
			return; /* the server has closed; the reading side tells */
		loop_once(loop, US_PER_MS);
	}
}

static void say(struct client *c, const char *text)
{
	transmit(c, text, strlen(text));
}

static void receive(struct client *c)
{
	while (!c->eof && c->n < sizeof(c->in) - 1) {
		size_t room = sizeof(c->in) - 1 - c->n;
		ssize_t k = c->ssl ? SSL_read(c->ssl, c->in + c->n, (int)room) : recv(c->fd, c->in + c->n, room, 0);
		if (k > 0) {
			c->n += (size_t)k;
		} else if (c->ssl) {
			int e = SSL_get_error(c->ssl, (int)k);
			ERR_clear_error();
			if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE)
				break;
			c->eof = true;
		} else {
			if (k < 0 && errno == EAGAIN)
				break;
			c->eof = true;
			c->reset = k < 0;
		}
	}
	c->in[c->n] = '\0';
}

/* How many bytes the first answer in c->in has, 0 while it is not whole. */
static size_t answer_bytes(const struct client *c, bool head_only)
{
	const char *end = strstr(c->in, "\r\n\r\n");
	if (!end)
		return 0;
	size_t head = (size_t)(end + 4 - c->in), body = 0;
	const char *cl = strstr(c->in, "Content-Length: ");
	if (cl && cl < end && !head_only)
		body = strtoul(cl + 16, NULL, 10);
	return c->n >= head + body ? head + body : 0;
}

static int status_of(const struct client *c)
{
	return strncmp(c->in, "HTTP/1.1 ", 9) == 0 ? atoi(c->in + 9) : -1;
}

static size_t await_n(struct client *c, bool head_only)
{
	size_t n;
	wait_for((receive(c), (n = answer_bytes(c, head_only)) > 0 || c->eof));
	return n;
}

/* Waits for one answer, gives its status and takes it from the input: the text stays in `text`. 0: closed without. */
static char text[1 << 20];
static int await(struct client *c)
{
	size_t n = await_n(c, false);
	if (n == 0)
		return 0;
	int status = status_of(c);
	memcpy(text, c->in, n);
	text[n] = '\0';
	memmove(c->in, c->in + n, c->n - n + 1);
	c->n -= n;
	return status;
}

static void await_eof(struct client *c)
{
	wait_for((receive(c), c->eof));
}

/* --- framing */

struct framed {
	const char *what;
	const char *request;
	size_t n; /* 0: strlen */
	int status;
};

#define H "Host: x\r\n"
#define S(s) s, sizeof(s) - 1
static const struct framed cases[] = {
	{ "plain GET", "GET / HTTP/1.1\r\n" H "\r\n", 0, 200 },
	{ "query", "GET /a/b?c=d&e=%20 HTTP/1.1\r\n" H "\r\n", 0, 200 },
	{ "DELETE", "DELETE /a HTTP/1.1\r\n" H "\r\n", 0, 200 },
	{ "Host with port", "GET / HTTP/1.1\r\nHost: ex-1.example:8090\r\n\r\n", 0, 200 },
	{ "Host IPv6", "GET / HTTP/1.1\r\nhOST:[::1]:80\r\n\r\n", 0, 200 },
	{ "no space after the colon", "GET / HTTP/1.1\r\nHost:x\r\nA:b\r\n\r\n", 0, 200 },
	{ "empty value", "GET / HTTP/1.1\r\n" H "A:\r\n\r\n", 0, 200 },
	{ "tab and obs-text in a value", "GET / HTTP/1.1\r\n" H "A: b\tc \xc3\xa4\r\n\r\n", 0, 200 },
	{ "length", "POST / HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc", 0, 200 },
	{ "length with zeros in front", "POST / HTTP/1.1\r\n" H "Content-Length: 003\r\n\r\nabc", 0, 200 },
	{ "length zero", "POST / HTTP/1.1\r\n" H "Content-Length: 0\r\n\r\n", 0, 200 },
	{ "chunked", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 0, 200 },
	{ "Chunked, hex sizes", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: Chunked\r\n\r\n00A\r\n0123456789\r\na\r\n0123456789\r\n000\r\n\r\n", 0, 200 },
	{ "1.0 without Host", "GET / HTTP/1.0\r\n\r\n", 0, 200 },

	{ "two lengths", "POST / HTTP/1.1\r\n" H "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 0, 400 },
	{ "two different lengths", "POST / HTTP/1.1\r\n" H "Content-Length: 3\r\ncontent-length: 5\r\n\r\nabcde", 0, 400 },
	{ "length list", "POST / HTTP/1.1\r\n" H "Content-Length: 3, 3\r\n\r\nabc", 0, 400 },
	{ "length +3", "POST / HTTP/1.1\r\n" H "Content-Length: +3\r\n\r\nabc", 0, 400 },
	{ "length -1", "POST / HTTP/1.1\r\n" H "Content-Length: -1\r\n\r\n", 0, 400 },
	{ "length 0x3", "POST / HTTP/1.1\r\n" H "Content-Length: 0x3\r\n\r\nabc", 0, 400 },
	{ "length 3 with text", "POST / HTTP/1.1\r\n" H "Content-Length: 3 x\r\n\r\nabc", 0, 400 },
	{ "empty length", "POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\n", 0, 400 },
	{ "length 3.0", "POST / HTTP/1.1\r\n" H "Content-Length: 3.0\r\n\r\nabc", 0, 400 },
	{ "length too large", "POST / HTTP/1.1\r\n" H "Content-Length: 65537\r\n\r\n", 0, 413 },
	{ "length beyond 64 bits", "POST / HTTP/1.1\r\n" H "Content-Length: 99999999999999999999999\r\n\r\n", 0, 413 },
	{ "length and chunked", "POST / HTTP/1.1\r\n" H "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "chunked and length", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "two codings", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "coding list", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "chunked twice", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "coding identity", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: identity\r\n\r\n", 0, 400 },
	{ "coding xchunked", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "coding with parameter", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "empty coding", "POST / HTTP/1.1\r\n" H "Transfer-Encoding:\r\n\r\n", 0, 400 },
	{ "coding with vertical tab", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: \x0b" "chunked\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "coding in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 400 },
	{ "space before the colon", "POST / HTTP/1.1\r\n" H "Content-Length : 3\r\n\r\nabc", 0, 400 },
	{ "chunk size 0x3", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 0, 400 },
	{ "chunk size +3", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", 0, 400 },
	{ "chunk size with space", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", 0, 400 },
	{ "chunk size missing", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n\r\nabc", 0, 400 },
	{ "chunk size of nine digits", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n000000003\r\nabc\r\n0\r\n\r\n", 0, 400 },
	{ "chunk size too large", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", 0, 413 },
	{ "chunk extension", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n", 0, 400 },
	{ "chunk without its end", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n", 0, 400 },
	{ "chunk size ended by LF", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", 0, 400 },
	{ "chunk ended by LF", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n", 0, 400 },
	{ "trailer", "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n", 0, 400 },
	{ "1.1 without Host", "GET / HTTP/1.1\r\n\r\n", 0, 400 },
	{ "two Hosts", "GET / HTTP/1.1\r\n" H H "\r\n", 0, 400 },
	{ "two Hosts in 1.0", "GET / HTTP/1.0\r\n" H H "\r\n", 0, 400 },
	{ "empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 0, 400 },
	{ "Host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 0, 400 },
	{ "Host with user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 0, 400 },
	{ "Host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 0, 400 },
	{ "Host with bad port", "GET / HTTP/1.1\r\nHost: a:8o\r\n\r\n", 0, 400 },
	{ "two Authorizations", "GET / HTTP/1.1\r\n" H "Authorization: a\r\nauthorization: b\r\n\r\n", 0, 400 },
	{ "NUL in a value", S("GET / HTTP/1.1\r\n" H "A: b\0c\r\n\r\n"), 400 },
	{ "NUL in a name", S("GET / HTTP/1.1\r\n" H "A\0B: c\r\n\r\n"), 400 },
	{ "NUL in the target", S("GET /\0 HTTP/1.1\r\n" H "\r\n"), 400 },
	{ "control byte", "GET / HTTP/1.1\r\n" H "A: b\x01\r\n\r\n", 0, 400 },
	{ "DEL", "GET / HTTP/1.1\r\n" H "A: b\x7f\r\n\r\n", 0, 400 },
	{ "bare LF", "GET / HTTP/1.1\n" H "\r\n", 0, 400 },
	{ "bare LF in fields", "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 0, 400 },
	{ "bare LF at the end", "GET / HTTP/1.1\r\n" H "\n", 0, 400 },
	{ "bare CR", "GET / HTTP/1.1\r\n" H "A: b\rc\r\n\r\n", 0, 400 },
	{ "CR CR LF", "GET / HTTP/1.1\r\r\n" H "\r\n", 0, 400 },
	{ "fold", "GET / HTTP/1.1\r\n" H "A: b\r\n c\r\n\r\n", 0, 400 },
	{ "fold by tab", "GET / HTTP/1.1\r\n" H "A: b\r\n\tc\r\n\r\n", 0, 400 },
	{ "fold in front", "GET / HTTP/1.1\r\n Host: x\r\n\r\n", 0, 400 },
	{ "no colon", "GET / HTTP/1.1\r\n" H "Abc\r\n\r\n", 0, 400 },
	{ "no name", "GET / HTTP/1.1\r\n" H ": b\r\n\r\n", 0, 400 },
	{ "name with a space", "GET / HTTP/1.1\r\n" H "A b: c\r\n\r\n", 0, 400 },
	{ "name with a slash", "GET / HTTP/1.1\r\n" H "A/b: c\r\n\r\n", 0, 400 },
	{ "name beyond ASCII", "GET / HTTP/1.1\r\n" H "\xc3\xa4: c\r\n\r\n", 0, 400 },
	{ "empty line first", "\r\nGET / HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "absolute form", "GET http://x/ HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "target *", "GET * HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "target without slash", "GET a HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "fragment", "GET /a#b HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "broken escape", "GET /%2 HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "foreign byte in the target", "GET /\xc3\xa4 HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "two spaces", "GET  / HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "space at the end", "GET / HTTP/1.1 \r\n" H "\r\n", 0, 400 },
	{ "tab for space", "GET\t/\tHTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "no version", "GET /\r\n" H "\r\n", 0, 400 },
	{ "lower case version", "GET / http/1.1\r\n" H "\r\n", 0, 400 },
	{ "version 1.10", "GET / HTTP/1.10\r\n" H "\r\n", 0, 400 },
	{ "version 2.0", "GET / HTTP/2.0\r\n" H "\r\n", 0, 505 },
	{ "version 1.2", "GET / HTTP/1.2\r\n" H "\r\n", 0, 505 },
	{ "HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, 505 },
	{ "method OPTIONS", "OPTIONS / HTTP/1.1\r\n" H "\r\n", 0, 501 },
	{ "method in lower case", "get / HTTP/1.1\r\n" H "\r\n", 0, 501 },
	{ "method CONNECT", "CONNECT x:443 HTTP/1.1\r\n" H "\r\n", 0, 501 },
	{ "method with odd bytes", "G(T / HTTP/1.1\r\n" H "\r\n", 0, 400 },
	{ "TLS hello on a plain port", S("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400 },
	{ "unknown expectation", "POST / HTTP/1.1\r\n" H "Expect: miracle\r\n\r\n", 0, 417 },
};
#define N_CASES (sizeof(cases) / sizeof(cases[0]))

static void one_case(const struct framed *k, size_t piece)
{
	struct client *c = dial(0);
	size_t n = k->n ? k->n : strlen(k->request);
	int before = n_handled, refused_before = n_refused;
	for (size_t at = 0; at < n; at += piece) {
		transmit(c, k->request + at, n - at < piece ? n - at : piece);
		if (piece < n)
			loop_once(loop, 0);
	}
	int status = await(c);
	ck_assert_msg(status == k->status, "%s (in pieces of %zu): %d, not %d", k->what, piece, status, k->status);
	ck_assert_int_eq(n_handled - before, status == 200);
	ck_assert_int_eq(n_refused - refused_before, status != 200);
	if (status != 200) {
		ck_assert_int_eq(refused[(n_refused - 1) % 8], status);
		ck_assert_msg(strstr(text, "Connection: close\r\n") != NULL, "%s", k->what);
		await_eof(c);
		ck_assert_msg(!c->reset, "%s", k->what);
	}
	hang_up(c);
	wait_for(httpd_connections(server) == 0);
}

START_TEST(crafted_requests)
{
	struct httpd_params p = params();
	start(&p);
	ck_assert_uint_ge(N_CASES, 60);
	for (size_t i = 0; i < N_CASES; i++) {
		one_case(&cases[i], 1 << 20);
		one_case(&cases[i], 1);
	}
}
END_TEST

/* Every prefix of every case through the parser alone, and random damage: no crash, no early answer. */
START_TEST(framing_of_damaged_requests)
{
	unsigned seed = (unsigned)time(NULL);
	printf("# seed %u\n", seed);
	srandom(seed);
	for (int round = 0; round < 20000; round++) {
		const struct framed *k = &cases[(size_t)random() % N_CASES];
		size_t n = k->n ? k->n : strlen(k->request), used;
		uint8_t *copy = malloc(n);
		memcpy(copy, k->request, n);
		for (int i = (int)(random() % 4); i > 0; i--)
			copy[(size_t)random() % n] = (uint8_t)random();
		struct httpd_framing f;
		httpd_framing_init(&f, 512, 64);
		int status = 0;
		for (size_t at = 0; at < n && status == 0; at += used) {
			size_t m = 1 + (size_t)random() % (n - at);
			status = httpd_framing_feed(&f, copy + at, m, &used);
			ck_assert_uint_le(used, m);
			ck_assert(status >= 400 || status == HTTPD_FRAMING_DONE || used == m);
		}
		ck_assert(status == 0 || status == 1 || (status >= 400 && status <= 505));
		httpd_framing_fini(&f);
		free(copy);
	}
}
END_TEST

START_TEST(caps_of_header_and_body)
{
	struct httpd_params p = params();
	p.max_header_bytes = 1000;
	p.max_body_bytes = 100;
	start(&p);
	static char big[4000];
	for (int over = 0; over < 2; over++) {
		static const char front[] = "GET / HTTP/1.1\r\n" H "A: ";
		size_t fill = 1000 - (sizeof(front) - 1) - 4 + (size_t)over;
		memset(big, 'a', sizeof(big));
		memcpy(big, front, sizeof(front) - 1);
		memcpy(big + sizeof(front) - 1 + fill, "\r\n\r\n", 5);
		struct client *c = dial(0);
		say(c, big);
		ck_assert_int_eq(await(c), over ? 431 : 200);
		hang_up(c);
		c = dial(0);
		int n = snprintf(big, sizeof(big), "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n32\r\n%050d\r\n%x\r\n%0*d\r\n0\r\n\r\n",
			7, 50 + over, 50 + over, 7);
		transmit(c, big, (size_t)n);
		ck_assert_int_eq(await(c), over ? 413 : 200);
		hang_up(c);
		c = dial(0);
		n = snprintf(big, sizeof(big), "POST / HTTP/1.1\r\n" H "Content-Length: %d\r\n\r\n%0*d", 100 + over, 100 + over, 7);
		transmit(c, big, (size_t)n);
		ck_assert_int_eq(await(c), over ? 413 : 200);
		hang_up(c);
	}
	/* a line without end, and too many fields */
	memset(big, 'a', sizeof(big));
	struct client *c = dial(0);
	transmit(c, big, sizeof(big));
	ck_assert_int_eq(await(c), 431);
	hang_up(c);
	c = dial(0);
	say(c, "GET / HTTP/1.1\r\n" H);
	for (int i = 0; i < 101; i++)
		say(c, "A:\r\n");
	say(c, "\r\n");
	ck_assert_int_eq(await(c), 431);
	hang_up(c);
}
END_TEST

START_TEST(bodies_of_all_connections_are_bounded)
{
	struct httpd_params p = params();
	p.max_body_bytes = 1000;
	p.max_held_bytes = 2000;
	start(&p);
	static char part[1000];
	memset(part, 'a', sizeof(part));
	for (int i = 0; i < 2; i++) {
		say(dial(i), "POST /x HTTP/1.1\r\n" H "Content-Length: 1000\r\n\r\n");
		transmit(&clients[i], part, 990);
	}
	for (int i = 0; i < 20; i++)
		loop_once(loop, US_PER_MS);
	ck_assert_int_eq(n_refused, 0);
	struct client *c = dial(2);
	say(c, "POST /x HTTP/1.1\r\n" H "Content-Length: 100\r\n\r\n");
	transmit(c, part, 90);
	ck_assert_int_eq(await(c), 503);
	ck_assert_ptr_nonnull(strstr(text, "Retry-After: 1\r\n"));
	hang_up(c);
	hold = true; /* a body counts until it is answered */
	transmit(&clients[0], part, 10);
	wait_for(n_held == 1);
	c = dial(2);
	say(c, "POST /x HTTP/1.1\r\n" H "Content-Length: 11\r\n\r\n");
	transmit(c, part, 11);
	ck_assert_int_eq(await(c), 503);
	hang_up(c);
	hold = false;
	answer(held[0]);
	n_held = 0;
	ck_assert_int_eq(await(&clients[0]), 200);
	c = dial(2);
	say(c, "POST /x HTTP/1.1\r\n" H "Content-Length: 1000\r\n\r\n");
	transmit(c, part, 1000);
	ck_assert_int_eq(await(c), 200);
	hang_up(&clients[1]); /* what is cut off counts no longer */
	wait_for(httpd_connections(server) == 2);
	for (int i = 0; i < 3; i++) {
		say(c, "POST /x HTTP/1.1\r\n" H "Content-Length: 1000\r\n\r\n");
		transmit(c, part, 1000);
		ck_assert_int_eq(await(c), 200);
	}
	hang_up(c);
	hang_up(&clients[0]);
}
END_TEST

/* --- answers */

START_TEST(what_the_handler_sees_and_sends)
{
	struct httpd_params p = params();
	start(&p);
	struct client *c = dial(0);
	say(c, "PATCH /a%2Fb/c?x=1&y HTTP/1.1\r\n" H "X-THING: \t some thing \t\r\nContent-Length: 5\r\n\r\n12345");
	ck_assert_int_eq(await(c), 200);
	ck_assert_int_eq(last_method, HTTPD_PATCH);
	ck_assert_str_eq(last_path, "/a%2Fb/c");
	ck_assert_str_eq(last_query, "x=1&y");
	ck_assert_str_eq(last_header, "some thing");
	ck_assert_str_eq(last_body, "12345");
	ck_assert_ptr_nonnull(strstr(last_peer, "127.0.0.1:"));
	ck_assert_ptr_nonnull(strstr(text, "\r\nContent-Type: text/plain\r\n"));
	ck_assert_ptr_nonnull(strstr(text, "\r\nContent-Length: 14\r\n"));
	ck_assert_ptr_nonnull(strstr(text, "\r\nConnection: keep-alive\r\n"));
	ck_assert_ptr_nonnull(strstr(text, "\r\nX-Test: yes\r\n"));
	ck_assert_ptr_nonnull(strstr(text, "\r\n\r\nhello /a%2Fb/c"));
	const char *date = strstr(text, "\r\nDate: ");
	ck_assert_ptr_nonnull(date);
	struct tm tm = { 0 };
	ck_assert_ptr_nonnull(strptime(date + 8, "%a, %d %b %Y %H:%M:%S GMT\r\n", &tm));
	ck_assert_int_le(llabs((long long)(timegm(&tm) - time(NULL))), 5);

	say(c, "HEAD /h HTTP/1.1\r\n" H "\r\n");
	await_n(c, true);
	ck_assert_int_eq(status_of(c), 200);
	ck_assert_int_eq(last_method, HTTPD_HEAD);
	ck_assert_ptr_nonnull(strstr(c->in, "\r\nContent-Length: 8\r\n"));
	ck_assert_str_eq(c->in + c->n - 4, "\r\n\r\n");
	c->n = 0;
	say(c, "GET /none HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 204);
	ck_assert_ptr_null(strstr(text, "Content-Length"));
	say(c, "GET /inject HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 500);
	ck_assert_ptr_null(strstr(text, "Set-Cookie"));
	say(c, "GET /big HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 200);
	ck_assert_uint_gt(strlen(text), 500000);
	hang_up(c);
}
END_TEST

START_TEST(keep_alive_and_close)
{
	static const struct {
		const char *request;
		bool stays;
	} k[] = {
		{ "GET / HTTP/1.1\r\n" H "\r\n", true },
		{ "GET / HTTP/1.1\r\n" H "Connection: keep-alive\r\n\r\n", true },
		{ "GET / HTTP/1.1\r\n" H "Connection: foo, Close\r\n\r\n", false },
		{ "GET / HTTP/1.1\r\n" H "Connection: keep-alive\r\nConnection: close\r\n\r\n", false },
		{ "GET / HTTP/1.0\r\n\r\n", false },
		{ "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true },
	};
	struct httpd_params p = params();
	start(&p);
	for (size_t i = 0; i < sizeof(k) / sizeof(k[0]); i++) {
		struct client *c = dial(0);
		for (int round = 0; round < (k[i].stays ? 5 : 1); round++) {
			say(c, k[i].request);
			ck_assert_int_eq(await(c), 200);
			ck_assert_msg((strstr(text, "Connection: keep-alive\r\n") != NULL) == k[i].stays, "%zu", i);
		}
		if (!k[i].stays)
			await_eof(c);
		hang_up(c);
		wait_for(httpd_connections(server) == 0);
	}
}
END_TEST

START_TEST(pipelined_requests_are_served_in_order)
{
	struct httpd_params p = params();
	start(&p);
	hold = true;
	struct client *c = dial(0);
	say(c, "GET /1 HTTP/1.1\r\n" H "\r\nPOST /2 HTTP/1.1\r\n" H "Content-Length: 2\r\n\r\nxyGET /3 HTTP/1.1\r\n" H "\r\nGET /4 HTTP/2.2\r\n\r\n");
	shutdown(c->fd, SHUT_WR);
	for (int i = 1; i <= 3; i++) {
		char want[16];
		wait_for(n_held == 1);
		for (int k = 0; k < 3; k++)
			loop_once(loop, US_PER_MS);
		ck_assert_int_eq(n_handled, i); /* the next one waits for this reply */
		snprintf(want, sizeof(want), "/%d", i);
		ck_assert_str_eq(last_path, want);
		answer(held[--n_held]);
		ck_assert_int_eq(await(c), 200);
		ck_assert_ptr_nonnull(strstr(text, want));
	}
	ck_assert_int_eq(await(c), 505);
	await_eof(c);
	ck_assert_int_eq(n_handled, 3);
	hang_up(c);
}
END_TEST

START_TEST(expect_continue)
{
	struct httpd_params p = params();
	start(&p);
	struct client *c = dial(0);
	say(c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	ck_assert_int_eq(await(c), 100);
	say(c, "abc");
	ck_assert_int_eq(await(c), 200);
	ck_assert_str_eq(last_body, "abc");
	say(c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc");
	ck_assert_int_eq(await(c), 200);
	hang_up(c);
	c = dial(0);
	say(c, "POST / HTTP/1.1\r\n" H "Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n");
	ck_assert_int_eq(await(c), 413);
	hang_up(c);
}
END_TEST

START_TEST(a_refusal_reaches_a_client_that_goes_on_sending)
{
	struct httpd_params p = params();
	start(&p);
	struct client *c = dial(0);
	static char much[300000];
	memset(much, 'x', sizeof(much));
	say(c, "POST / HTTP/1.1\r\n" H "Content-Length: 300000\r\n\r\n");
	transmit(c, much, sizeof(much));
	ck_assert_int_eq(await(c), 413);
	hang_up(c);
}
END_TEST

/* --- clocks */

static void drip(const char *front, const char *piece, int want)
{
	struct client *c = dial(0);
	int64_t began = sys_mono_us(), next = 0;
	say(c, front);
	while (receive(c), !c->eof && answer_bytes(c, false) == 0) {
		ck_assert_int_lt(sys_mono_us() - began, 5 * US_PER_S);
		if (sys_mono_us() >= next) {
			say(c, piece);
			next = sys_mono_us() + 20 * US_PER_MS;
		}
		loop_once(loop, 5 * US_PER_MS);
	}
	int64_t took = sys_mono_us() - began;
	ck_assert_int_eq(await(c), want);
	ck_assert_ptr_nonnull(strstr(text, "Content-Type: application/json\r\n")); /* as on_refused says it */
	ck_assert_ptr_nonnull(strstr(text, "\r\nX-Refused: yes\r\n\r\n{\"slow\":true}"));
	ck_assert_int_ge(took, 250 * US_PER_MS);
	ck_assert_int_le(took, 2 * US_PER_S);
	hang_up(c);
	wait_for(httpd_connections(server) == 0);
}

START_TEST(dripping_requests_end_at_the_deadline)
{
	struct httpd_params p = params();
	p.request_deadline_us = 300 * US_PER_MS;
	start(&p);
	drip("GET / HTTP/1.1\r\n", "A: b\r\n", 408);
	drip("GET /", "a", 408);
	drip("POST / HTTP/1.1\r\n" H "Content-Length: 60000\r\n\r\n", "a", 408);
	drip("POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", 408);
	ck_assert_int_eq(n_handled, 0);
	/* silence from the start is closed without a word */
	struct client *c = dial(0);
	await_eof(c);
	ck_assert_uint_eq(c->n, 0);
	hang_up(c);
}
END_TEST

START_TEST(idle_connections_end)
{
	struct httpd_params p = params();
	p.idle_timeout_us = 200 * US_PER_MS;
	start(&p);
	struct client *c = dial(0);
	say(c, "GET / HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 200);
	int64_t began = sys_mono_us();
	await_eof(c);
	ck_assert_int_ge(sys_mono_us() - began, 150 * US_PER_MS);
	ck_assert_int_le(sys_mono_us() - began, 2 * US_PER_S);
	ck_assert_uint_eq(c->n, 0);
	hang_up(c);
	/* a handler may take longer than any of these clocks */
	hold = true;
	c = dial(0);
	say(c, "GET /slow HTTP/1.1\r\n" H "\r\n");
	wait_for(n_held == 1);
	began = sys_mono_us();
	wait_for(sys_mono_us() - began > 400 * US_PER_MS);
	answer(held[--n_held]);
	ck_assert_int_eq(await(c), 200);
	hang_up(c);
}
END_TEST

START_TEST(a_client_that_does_not_take_its_reply)
{
	struct httpd_params p = params();
	p.request_deadline_us = 100 * US_PER_MS;
	start(&p);
	int fd = socket(AF_INET, SOCK_STREAM, 0), small = 4096;
	ck_ok(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)));
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(httpd_port(server)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	ck_ok(connect(fd, (struct sockaddr *)&a, sizeof(a)));
	struct client *c = attach(0, fd);
	for (int i = 0; i < 12; i++)
		say(c, "GET /big HTTP/1.1\r\n" H "\r\n");
	wait_for(n_handled > 0);
	wait_for(httpd_connections(server) == 0);
	ck_assert_int_lt(n_handled, 12);
	hang_up(c);
}
END_TEST

/* --- connections */

START_TEST(connection_cap)
{
	struct httpd_params p = params();
	p.max_connections = 3;
	start(&p);
	for (int i = 0; i < 6; i++)
		say(dial(i), i < 3 ? "GET /x HTTP/1.1\r\n" H : "GET /x HTTP/1.1\r\n" H "\r\n");
	int64_t began = sys_mono_us();
	wait_for(sys_mono_us() - began > 50 * US_PER_MS);
	ck_assert_uint_eq(httpd_connections(server), 3);
	ck_assert_int_eq(n_handled, 0);
	for (int i = 0; i < 3; i++) {
		hang_up(&clients[i]);
		ck_assert_int_eq(await(&clients[i + 3]), 200);
		ck_assert_uint_le(httpd_connections(server), 3);
	}
	for (int i = 3; i < 6; i++)
		hang_up(&clients[i]);
	wait_for(httpd_connections(server) == 0);
}
END_TEST

static void served(struct client *c)
{
	say(c, "GET /x HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 200);
}

START_TEST(idle_connections_make_room)
{
	struct httpd_params p = params();
	p.max_connections = 3;
	start(&p);
	for (int i = 0; i < 3; i++)
		served(dial(i));
	served(&clients[0]); /* 1 has idled for longest now */
	served(dial(3));
	ck_assert_int_eq(await(&clients[1]), 0);
	ck_assert_uint_eq(httpd_connections(server), 3);
	served(&clients[0]);
	/* Who asks is not closed, who idles is; and where nobody idles, they wait. */
	for (int i = 0; i < 4; i += 3)
		say(&clients[i], "GET /x HTTP/1.1\r\n" H);
	int64_t began = sys_mono_us();
	wait_for(sys_mono_us() - began > 20 * US_PER_MS);
	say(dial(4), "GET /x HTTP/1.1\r\n" H);
	ck_assert_int_eq(await(&clients[2]), 0);
	say(dial(5), "GET /x HTTP/1.1\r\n" H "\r\n");
	began = sys_mono_us();
	int before = n_handled;
	wait_for(sys_mono_us() - began > 50 * US_PER_MS);
	ck_assert_int_eq(n_handled, before);
	ck_assert_uint_eq(httpd_connections(server), 3);
	say(&clients[4], "\r\n");
	ck_assert_int_eq(await(&clients[4]), 200);
	ck_assert_int_eq(await(&clients[5]), 200); /* in the place of 4, which idles now */
	ck_assert_int_eq(await(&clients[4]), 0);
	for (int i = 0; i < 6; i++)
		hang_up(&clients[i]);
	wait_for(httpd_connections(server) == 0);
}
END_TEST

START_TEST(without_descriptors_connections_wait)
{
	struct httpd_params p = params();
	struct rlimit old, tight;
	start(&p);
	loop_once(loop, 0);
	struct client *c = dial(0);
	ck_ok(getrlimit(RLIMIT_NOFILE, &old));
	tight = old;
	tight.rlim_cur = (rlim_t)c->fd + 1;
	ck_ok(setrlimit(RLIMIT_NOFILE, &tight));
	say(c, "GET / HTTP/1.1\r\n" H "\r\n");
	wait_for(n_refused == 2); /* tried again after a pause */
	ck_assert_int_eq(refused[0], 503);
	ck_assert_int_eq(n_handled, 0);
	ck_ok(setrlimit(RLIMIT_NOFILE, &old));
	ck_assert_int_eq(await(c), 200);
	hang_up(c);
}
END_TEST

START_TEST(replies_after_the_client_or_the_server_has_gone)
{
	struct httpd_params p = params();
	start(&p);
	hold = true;
	struct linger hard = { 1, 0 };
	for (int i = 0; i < 4; i++) {
		struct client *c = dial(i);
		say(c, "GET /big HTTP/1.1\r\n" H "\r\n");
		wait_for(n_held == i + 1);
		if (i % 2)
			ck_ok(setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard)));
		if (i < 2)
			hang_up(c);
	}
	for (int i = 0; i < 5; i++)
		loop_once(loop, US_PER_MS);
	answer(held[0]);
	answer(held[1]);
	wait_for(httpd_connections(server) == 2);
	httpd_free(server);
	server = NULL;
	answer(held[2]);
	answer(held[3]);
	n_held = 0;
	for (int i = 2; i < 4; i++) {
		await_eof(&clients[i]);
		ck_assert_uint_eq(clients[i].n, 0);
		hang_up(&clients[i]);
	}
}
END_TEST

START_TEST(the_server_freed_by_its_handler)
{
	for (int round = 0; round < 2; round++) {
		struct httpd_params p = params();
		start(&p);
		hold = round == 1;
		free_in_handler = true;
		struct client *c = dial(0);
		say(c, "GET / HTTP/1.1\r\n" H "\r\nGET / HTTP/1.1\r\n" H "\r\n");
		await_eof(c);
		ck_assert_uint_eq(c->n, 0);
		hang_up(c);
		ck_assert_ptr_null(server);
		ck_assert_int_eq(n_handled, round + 1);
	}
}
END_TEST

START_TEST(freed_in_every_phase)
{
	struct httpd_params p = params();
	start(&p);
	say(dial(0), "GET / HT");
	dial(1);
	say(dial(2), "GET / HTTP/9.9\r\n\r\n");
	ck_assert_int_eq(await(&clients[2]), 505);
	say(dial(3), "GET /big HTTP/1.1\r\n" H "\r\n");
	wait_for(n_handled == 1);
	wait_for(httpd_connections(server) == 4);
	httpd_free(server);
	server = NULL;
	for (int i = 0; i < 4; i++)
		hang_up(&clients[i]);
}
END_TEST

/* --- sockets */

START_TEST(unix_socket)
{
	char dir[] = "/tmp/test_httpd.XXXXXX";
	ck_assert_ptr_nonnull(mkdtemp(dir));
	struct httpd_params p = { .listen = { .is_unix = true }, .listen_fd = -1 };
	snprintf(p.listen.path, sizeof(p.listen.path), "%s/api.sock", dir);
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	memcpy(un.sun_path, p.listen.path, sizeof(un.sun_path));
	/* a stale one, as a crash leaves it */
	int stale = socket(AF_UNIX, SOCK_STREAM, 0);
	ck_ok(bind(stale, (struct sockaddr *)&un, sizeof(un)));
	close(stale);
	start(&p);
	struct stat st;
	ck_ok(stat(p.listen.path, &st));
	ck_assert_uint_eq(st.st_mode & 07777, 0660);
	ck_assert_uint_eq(httpd_port(server), 0);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	ck_ok(connect(fd, (struct sockaddr *)&un, sizeof(un)));
	struct client *c = attach(0, fd);
	say(c, "GET /u HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 200);
	ck_assert_str_eq(last_peer, "unix");
	hang_up(c);

	struct httpd *second = NULL;
	struct fault f;
	ck_assert_int_eq(httpd_new(loop, &p, on_request, NULL, &second, &f), ST_EXISTS);
	ck_assert_ptr_nonnull(strstr(f.text, p.listen.path));
	httpd_free(server);
	server = NULL;
	ck_assert_int_eq(access(p.listen.path, F_OK), -1);
	close(open(p.listen.path, O_CREAT | O_WRONLY, 0600));
	ck_assert_int_eq(httpd_new(loop, &p, on_request, NULL, &second, &f), ST_EXISTS);
	ck_ok(access(p.listen.path, F_OK));
	unlink(p.listen.path);
	rmdir(dir);
}
END_TEST

START_TEST(addresses_and_inherited_sockets)
{
	struct httpd_params p = params();
	struct httpd *second = NULL;
	struct fault f;
	start(&p);
	ck_assert_uint_ne(httpd_port(server), 0);
	p.listen.port = httpd_port(server);
	ck_assert_int_eq(httpd_new(loop, &p, on_request, NULL, &second, &f), ST_EXISTS);
	ck_assert_ptr_nonnull(strstr(f.text, "127.0.0.1:"));
	snprintf(p.listen.host, sizeof(p.listen.host), "203.0.113.7");
	ck_assert_int_eq(httpd_new(loop, &p, on_request, NULL, &second, &f), ST_INVALID);
	httpd_free(server);
	server = NULL;

	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	p = params();
	p.listen_fd = socket(AF_INET, SOCK_STREAM, 0);
	ck_ok(bind(p.listen_fd, (struct sockaddr *)&a, sizeof(a)));
	ck_assert_int_eq(httpd_new(loop, &p, on_request, NULL, &second, &f), ST_INVALID);
	ck_ok(listen(p.listen_fd, 5));
	start(&p);
	struct client *c = dial(0);
	say(c, "GET / HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 200);
	hang_up(c);
	p.listen_fd = open("/dev/null", O_RDONLY);
	ck_assert_int_eq(httpd_new(loop, &p, on_request, NULL, &second, &f), ST_INVALID);
	close(p.listen_fd);
	p = params();
	p.tls_cert_file = "/x";
	ck_assert_int_eq(httpd_new(loop, &p, on_request, NULL, &second, &f), ST_INVALID);
	ck_assert_int_eq(httpd_reload_tls(server, "/x", "/x", &f), ST_INVALID);
}
END_TEST

/* --- TLS */

static char tls_dir[64];

static void make_certificate(const char *name, long serial)
{
	char path[128];
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *x = X509_new();
	ck_assert(key && x);
	ASN1_INTEGER_set(X509_get_serialNumber(x), serial);
	X509_gmtime_adj(X509_getm_notBefore(x), -3600);
	X509_gmtime_adj(X509_getm_notAfter(x), 86400);
	X509_set_pubkey(x, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
	X509_set_issuer_name(x, X509_get_subject_name(x));
	ck_assert_int_gt(X509_sign(x, key, EVP_sha256()), 0);
	snprintf(path, sizeof(path), "%s/%s.crt", tls_dir, name);
	FILE *f = fopen(path, "w");
	ck_assert(f && PEM_write_X509(f, x) == 1);
	fclose(f);
	snprintf(path, sizeof(path), "%s/%s.key", tls_dir, name);
	f = fopen(path, "w");
	ck_assert(f && PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) == 1);
	fclose(f);
	X509_free(x);
	EVP_PKEY_free(key);
}

/* A handshake; the serial number of the server's certificate, 0 when it failed. */
static long handshake(struct client *c, SSL_CTX *ctx)
{
	c->ssl = SSL_new(ctx);
	SSL_set_fd(c->ssl, c->fd);
	int64_t end = sys_mono_us() + WAIT_US;
	int k;
	while ((k = SSL_connect(c->ssl)) != 1) {
		int e = SSL_get_error(c->ssl, k);
		if (e != SSL_ERROR_WANT_READ && e != SSL_ERROR_WANT_WRITE) {
			ERR_clear_error();
			return 0;
		}
		ck_assert(sys_mono_us() < end);
		loop_once(loop, US_PER_MS);
	}
	X509 *x = SSL_get1_peer_certificate(c->ssl);
	long serial = ASN1_INTEGER_get(X509_get0_serialNumber(x));
	X509_free(x);
	return serial;
}

START_TEST(tls)
{
	char crt[2][128], key[2][128], bad[128];
	struct fault f;
	snprintf(tls_dir, sizeof(tls_dir), "/tmp/test_httpd.XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(tls_dir));
	for (int i = 0; i < 2; i++) {
		char name[2] = { (char)('a' + i), '\0' };
		make_certificate(name, 11 + i);
		snprintf(crt[i], sizeof(crt[i]), "%s/%s.crt", tls_dir, name);
		snprintf(key[i], sizeof(key[i]), "%s/%s.key", tls_dir, name);
	}
	snprintf(bad, sizeof(bad), "%s/bad.crt", tls_dir);
	close(open(bad, O_CREAT | O_WRONLY, 0600));
	struct httpd_params p = params();
	p.tls_cert_file = crt[0];
	p.tls_key_file = key[0];
	p.request_deadline_us = 500 * US_PER_MS;
	start(&p);

	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
	struct client *c = dial(0);
	ck_assert_int_eq(handshake(c, ctx), 11);
	for (int i = 0; i < 3; i++) {
		say(c, "POST /tls HTTP/1.1\r\n" H "Content-Length: 3\r\n\r\nabc");
		ck_assert_int_eq(await(c), 200);
	}
	say(c, "GET /big HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 200);
	ck_assert_uint_gt(strlen(text), 500000);
	say(c, "GET /a HTTP/1.1\r\n" H "\r\nGET /b HTTP/1.1\r\n" H "\r\n");
	ck_assert_int_eq(await(c), 200);
	ck_assert_int_eq(await(c), 200);

	/* new files for new connections; failures keep the old ones */
	ck_assert_int_eq(httpd_reload_tls(server, crt[1], key[0], &f), ST_CRYPTO);
	ck_assert_int_eq(httpd_reload_tls(server, bad, key[0], &f), ST_CRYPTO);
	ck_assert_ptr_nonnull(strstr(f.text, bad));
	ck_assert_int_eq(httpd_reload_tls(server, "/nonexistent", key[0], &f), ST_NOT_FOUND);
	struct client *d = dial(1);
	ck_assert_int_eq(handshake(d, ctx), 11);
	hang_up(d);
	ck_ok(httpd_reload_tls(server, crt[1], key[1], &f));
	d = dial(1);
	ck_assert_int_eq(handshake(d, ctx), 12);
	say(d, "GET / HTTP/1.1\r\n" H "Connection: close\r\n\r\n");
	ck_assert_int_eq(await(d), 200);
	await_eof(d);
	hang_up(d);
	say(c, "GET / HTTP/1.0\r\n\r\n"); /* the old connection lives on */
	ck_assert_int_eq(await(c), 200);
	await_eof(c);
	hang_up(c);

	/* refusals, old protocols, plain text, silence */
	d = dial(1);
	ck_assert_int_eq(handshake(d, ctx), 12);
	say(d, "GET / HTTP/1.1\r\n\r\n");
	ck_assert_int_eq(await(d), 400);
	await_eof(d);
	hang_up(d);
	SSL_CTX *old = SSL_CTX_new(TLS_client_method());
	SSL_CTX_set_security_level(old, 0);
	SSL_CTX_set_min_proto_version(old, TLS1_VERSION);
	SSL_CTX_set_max_proto_version(old, TLS1_1_VERSION);
	d = dial(1);
	ck_assert_int_eq(handshake(d, old), 0);
	hang_up(d);
	SSL_CTX_free(old);
	d = dial(1);
	say(d, "GET / HTTP/1.1\r\n" H "\r\n");
	await_eof(d);
	hang_up(d);
	d = dial(1);
	await_eof(d);
	hang_up(d);
	wait_for(httpd_connections(server) == 0);
	/* gone in the middle, with a reply owed */
	hold = true;
	d = dial(1);
	ck_assert_int_eq(handshake(d, ctx), 12);
	say(d, "GET /big HTTP/1.1\r\n" H "\r\n");
	wait_for(n_held == 1);
	hang_up(d);
	answer(held[--n_held]);
	wait_for(httpd_connections(server) == 0);
	SSL_CTX_free(ctx);
	ck_assert_int_ge(snprintf(bad, sizeof(bad), "rm -r %s", tls_dir), 0);
	ck_ok(system(bad));
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("httpd");
	TCase *t = tcase_create("httpd");
	tcase_set_timeout(t, 120);
	tcase_add_checked_fixture(t, setup, teardown);
	unit_add(t, crafted_requests);
	unit_add(t, framing_of_damaged_requests);
	unit_add(t, caps_of_header_and_body);
	unit_add(t, bodies_of_all_connections_are_bounded);
	unit_add(t, what_the_handler_sees_and_sends);
	unit_add(t, keep_alive_and_close);
	unit_add(t, pipelined_requests_are_served_in_order);
	unit_add(t, expect_continue);
	unit_add(t, a_refusal_reaches_a_client_that_goes_on_sending);
	unit_add(t, dripping_requests_end_at_the_deadline);
	unit_add(t, idle_connections_end);
	unit_add(t, a_client_that_does_not_take_its_reply);
	unit_add(t, connection_cap);
	unit_add(t, idle_connections_make_room);
	unit_add(t, without_descriptors_connections_wait);
	unit_add(t, replies_after_the_client_or_the_server_has_gone);
	unit_add(t, the_server_freed_by_its_handler);
	unit_add(t, freed_in_every_phase);
	unit_add(t, unix_socket);
	unit_add(t, addresses_and_inherited_sockets);
	unit_add(t, tls);
	suite_add_tcase(s, t);
	return s;
}
