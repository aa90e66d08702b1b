/*
 * load - POSTs the lines of a file over keep-alive connections, each as fast as its answers come.
 *
 *	load [-c CONNECTIONS] [-H HEADER]... [-L NAME] HOST:PORT PATH FILE
 *
 * Every line is a body; with -L it is VALUE<TAB>BODY and the request carries the header NAME: VALUE. All requests are
 * built before the clock starts. Prints one JSON line: rate, latencies, statuses, CPU of its own. Any answer that is not HTTP/1.1
 * with a Content-Length, or a connection that ends, ends the program: a figure over a broken run is worth nothing.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"

#define ANSWER_MAX 65536

struct request {
	const char *text; /* in one block of all requests */
	size_t len;
};

struct load {
	struct event_base *base;
	char *block;
	struct request *requests;
	int64_t *latency; /* microseconds, by request */
	size_t n, next, done;
	uint64_t statuses[600];
};

struct client {
	struct load *l;
	int fd;
	struct event *readable, *writable;
	size_t current, sent, got;
	int64_t began;
	char answer[ANSWER_MAX];
};

/* ---------------------------------------------------------------- the requests */

static char *read_file(const char *path, size_t *len)
{
	struct stat st;
	int fd = open(path, O_RDONLY);
	if (fd < 0 || fstat(fd, &st) != 0)
		die("%s: %s", path, strerror(errno));
	char *text = need(malloc((size_t)st.st_size + 1));
	size_t at = 0;
	while (at < (size_t)st.st_size) {
		ssize_t n = read(fd, text + at, (size_t)st.st_size - at);
		if (n <= 0)
			die("%s: %s", path, n < 0 ? strerror(errno) : "shorter than it was");
		at += (size_t)n;
	}
	close(fd);
	text[at] = '\0';
	*len = at;
	return text;
}

static size_t put_request(char *out, size_t room, const char *head, const char *name, char *line)
{
	char *body = line;
	int n;
	if (name != NULL) {
		body = strchr(line, '\t');
		if (body == NULL)
			die("a line without a tab");
		*body++ = '\0';
		n = snprintf(out, room, "%s%s: %s\r\nContent-Length: %zu\r\n\r\n%s", head, name, line, strlen(body), body);
	} else {
		n = snprintf(out, room, "%sContent-Length: %zu\r\n\r\n%s", head, strlen(body), body);
	}
	if (n < 0 || (size_t)n >= room)
		die("a request of %d bytes has no room", n);
	return (size_t)n;
}

static void build(struct load *l, const char *path, const char *head, const char *name)
{
	size_t len, used = 0, lines = 0;
	char *text = read_file(path, &len);
	for (size_t i = 0; i < len; i++)
		lines += text[i] == '\n';
	size_t room = len + (strlen(head) + (name != NULL ? strlen(name) : 0) + 64) * (lines + 1);
	l->block = need(malloc(room));
	l->requests = need(calloc(lines + 1, sizeof *l->requests));
	l->latency = need(calloc(lines + 1, sizeof *l->latency));
	for (char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
		*end = '\0';
		struct request *r = &l->requests[l->n++];
		r->text = l->block + used;
		r->len = put_request(l->block + used, room - used, head, name, at);
		used += r->len;
	}
	free(text);
	if (l->n == 0)
		die("%s holds no line", path);
}

/* ---------------------------------------------------------------- one connection */

static void flush(struct client *c)
{
	const struct request *r = &c->l->requests[c->current];
	while (c->sent < r->len) {
		ssize_t n = send(c->fd, r->text + c->sent, r->len - c->sent, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN) {
			event_add(c->writable, NULL);
			return;
		}
		if (n < 0)
			die("send: %s", strerror(errno));
		c->sent += (size_t)n;
	}
}

static void begin(struct client *c)
{
	if (c->l->next == c->l->n) {
		event_del(c->readable);
		return;
	}
	c->current = c->l->next++;
	c->sent = c->got = 0;
	c->began = now_us();
	flush(c);
}

/* Bytes of the whole answer; 0: not whole yet. */
static size_t answer_size(const struct client *c, unsigned *status)
{
	const char *end = memmem(c->answer, c->got, "\r\n\r\n", 4);
	if (end == NULL)
		return 0;
	if (c->got < 13 || memcmp(c->answer, "HTTP/1.1 ", 9) != 0)
		die("not an HTTP/1.1 answer");
	*status = (unsigned)strtoul(c->answer + 9, NULL, 10);
	for (const char *at = memchr(c->answer, '\n', c->got); at != NULL && at < end;
		at = memchr(at + 1, '\n', (size_t)(end - at))) {
		if (strncasecmp(at + 1, "content-length:", 15) == 0)
			return (size_t)(end - c->answer) + 4 + strtoul(at + 16, NULL, 10);
	}
	die("an answer without Content-Length");
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct client *c = arg;
	unsigned status = 0;
	(void)what;
	ssize_t n = recv(fd, c->answer + c->got, sizeof c->answer - c->got - 1, 0);
	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0)
		die("the server ended a connection: %s", n < 0 ? strerror(errno) : "end of file");
	c->got += (size_t)n;
	c->answer[c->got] = '\0';
	size_t size = answer_size(c, &status);
	if (size == 0 || c->got < size) {
		if (c->got >= sizeof c->answer - 1)
			die("an answer larger than %d bytes", ANSWER_MAX);
		return;
	}
	if (c->got > size || c->sent < c->l->requests[c->current].len || status >= 600)
		die("an answer that does not fit its request");
	c->l->latency[c->current] = now_us() - c->began;
	c->l->statuses[status]++;
	c->l->done++;
	begin(c);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	flush(arg);
}

static void client_open(struct client *c, struct load *l, const struct sockaddr_in *to)
{
	int one = 1;
	c->l = l;
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)to, sizeof *to) != 0)
		die("connect: %s", strerror(errno));
	if (setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 || evutil_make_socket_nonblocking(c->fd) != 0)
		die("socket options: %s", strerror(errno));
	c->readable = need(event_new(l->base, c->fd, EV_READ | EV_PERSIST, on_readable, c));
	c->writable = need(event_new(l->base, c->fd, EV_WRITE, on_writable, c));
	event_add(c->readable, NULL);
}

static void client_close(struct client *c)
{
	event_free(c->readable);
	event_free(c->writable);
	close(c->fd);
}

/* ---------------------------------------------------------------- all of it */

static int by_size(const void *a, const void *b)
{
	const int64_t *x = a, *y = b;
	return (*x > *y) - (*x < *y);
}

static void report(struct load *l, int64_t wall_us, int64_t cpu)
{
	const char *comma = "";
	qsort(l->latency, l->n, sizeof *l->latency, by_size);
	printf("{\"n\":%zu,\"seconds\":%.6f,\"per_s\":%.1f,\"p50_us\":%" PRId64 ",\"p99_us\":%" PRId64 ",\"max_us\":%" PRId64
	       ",\"cpu_us\":%.3f,\"statuses\":{",
		l->n, (double)wall_us / 1e6, (double)l->n * 1e6 / (double)wall_us, l->latency[l->n / 2],
		l->latency[l->n - 1 - l->n / 100], l->latency[l->n - 1], (double)cpu / (double)l->n);
	for (unsigned i = 0; i < 600; i++) {
		if (l->statuses[i] > 0) {
			printf("%s\"%u\":%" PRIu64, comma, i, l->statuses[i]);
			comma = ",";
		}
	}
	printf("}}\n");
}

static void run(struct load *l, const struct sockaddr_in *to, size_t connections)
{
	struct client *clients = need(calloc(connections, sizeof *clients));
	l->base = need(event_base_new());
	for (size_t i = 0; i < connections; i++)
		client_open(&clients[i], l, to);
	int64_t began = now_us(), cpu = cpu_us();
	for (size_t i = 0; i < connections; i++)
		begin(&clients[i]);
	event_base_dispatch(l->base);
	if (l->done != l->n)
		die("%zu of %zu answers came", l->done, l->n);
	report(l, now_us() - began, cpu_us() - cpu);
	for (size_t i = 0; i < connections; i++)
		client_close(&clients[i]);
	event_base_free(l->base);
	free(clients);
}

int main(int argc, char **argv)
{
	static const char usage[] = "usage: load [-c CONNECTIONS] [-H HEADER]... [-L NAME] HOST:PORT PATH FILE";
	struct load l = { 0 };
	struct sockaddr_in to = { 0 };
	const char *name = NULL;
	unsigned long connections = 32;
	int size = sizeof to, opt;
	char extra[2048] = "", head[4096];
	while ((opt = getopt(argc, argv, "c:H:L:")) != -1) {
		size_t at = strlen(extra);
		if (opt == 'c')
			connections = strtoul(optarg, NULL, 10);
		else if (opt == 'L')
			name = optarg;
		else if (opt != 'H' || (size_t)snprintf(extra + at, sizeof extra - at, "%s\r\n", optarg) >= sizeof extra - at)
			die("%s", usage);
	}
	if (argc - optind != 3 || connections < 1 || connections > 10000)
		die("%s", usage);
	if (evutil_parse_sockaddr_port(argv[optind], (struct sockaddr *)&to, &size) != 0 || to.sin_family != AF_INET)
		die("%s is no IPv4 address with a port", argv[optind]);
	if ((size_t)snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n%s", argv[optind + 1],
		    argv[optind], extra) >= sizeof head)
		die("too many headers");
	build(&l, argv[optind + 2], head, name);
	run(&l, &to, connections);
	free(l.block);
	free(l.requests);
	free(l.latency);
	return 0;
}
