/*
 * dns - a name server of a few fixed names, for what a resolver can do to a client.
 *
 * UDP, one question a datagram, answers with TTL 0: *.test is loopback, hang.test never answers, nx.test
 * does not exist, private.test is 10.0.0.1, rebind.test alternates, everything else is refused.
 */
#include "provider/simulator.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#include <arpa/inet.h>

#include "base/mem.h"
#include "base/url.h"

#define DNS_HEAD 12
#define TYPE_A 1
#define CLASS_IN 1
#define RCODE_FORMAT 1
#define RCODE_NAME 3
#define RCODE_REFUSED 5

struct dns {
	struct event *readable;
	evutil_socket_t fd;
	uint16_t port;
	uint64_t queries;
	unsigned rebinds;
};

/* The question's name as lower-case text; returns the offset behind it, or 0. */
static size_t read_name(const uint8_t *p, size_t n, char *out, size_t cap)
{
	size_t at = DNS_HEAD, len = 0;
	while (at < n && p[at] != 0) {
		size_t label = p[at];
		if (label > 63 || at + 1 + label >= n || len + label + 2 > cap)
			return 0;
		if (len > 0)
			out[len++] = '.';
		for (size_t i = 1; i <= label; i++) {
			char ch = (char)p[at + i];
			out[len++] = ch >= 'A' && ch <= 'Z' ? (char)(ch - 'A' + 'a') : ch;
		}
		at += label + 1;
	}
	out[len] = '\0';
	return at < n ? at + 1 : 0;
}

static bool ends_with(const char *s, const char *tail)
{
	size_t n = strlen(s), t = strlen(tail);
	return n >= t && strcmp(s + n - t, tail) == 0;
}

/* 0 and an address, or an rcode; -1 = say nothing. */
static int look_up(struct dns *d, const char *name, bool is_a, const char **address)
{
	*address = "127.0.0.1";
	if (strcmp(name, "hang.test") == 0)
		return -1;
	if (strcmp(name, "nx.test") == 0)
		return RCODE_NAME;
	if (strcmp(name, "private.test") == 0)
		*address = "10.0.0.1";
	else if (strcmp(name, "rebind.test") == 0 && is_a)
		*address = d->rebinds++ % 2 == 0 ? "127.0.0.1" : "10.0.0.1";
	else if (!ends_with(name, ".test"))
		return RCODE_REFUSED;
	return 0;
}

/* Builds the answer over the question; returns its length, 0 = none. */
static size_t respond(struct dns *d, uint8_t *p, size_t n, size_t cap)
{
	char name[256];
	const char *address = NULL;
	if (n < DNS_HEAD || (p[2] & 0x80) != 0)
		return 0;
	d->queries++;
	size_t end = p[4] == 0 && p[5] == 1 ? read_name(p, n, name, sizeof name) : 0;
	int rcode = RCODE_FORMAT;
	bool is_a = false;
	if (end != 0 && end + 4 <= n && end + 20 <= cap) {
		is_a = p[end] == 0 && p[end + 1] == TYPE_A && p[end + 2] == 0 && p[end + 3] == CLASS_IN;
		rcode = look_up(d, name, is_a, &address);
		end += 4;
	} else {
		end = DNS_HEAD;
		p[5] = 0;
	}
	if (rcode < 0)
		return 0;
	p[2] = (uint8_t)(0x84 | (p[2] & 0x79)); /* response, authoritative; opcode and RD as asked */
	p[3] = (uint8_t)rcode;
	memset(p + 6, 0, 6);
	if (rcode != 0 || !is_a)
		return end;
	static const uint8_t record[] = {0xc0, DNS_HEAD, 0, TYPE_A, 0, CLASS_IN, 0, 0, 0, 0, 0, 4};
	p[7] = 1;
	memcpy(p + end, record, sizeof record);
	end += sizeof record;
	ALWAYS(inet_pton(AF_INET, address, p + end) == 1);
	return end + 4;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	struct dns *d = arg;
	uint8_t packet[1500];
	struct sockaddr_storage from;
	(void)what;
	for (;;) {
		socklen_t len = sizeof from;
		ssize_t n = recvfrom(
			fd, packet, sizeof packet - 32, MSG_DONTWAIT, (struct sockaddr *)&from, &len);
		if (n < 0)
			return;
		size_t out = respond(d, packet, (size_t)n, sizeof packet);
		if (out > 0 && sendto(fd, packet, out, MSG_DONTWAIT, (struct sockaddr *)&from, len) < 0)
			return; /* as lossy as UDP is */
	}
}

int dns_start(struct sim *s, const char *listen, struct fault *f)
{
	struct listen_addr at;
	struct sockaddr_in in = {.sin_family = AF_INET};
	socklen_t len = sizeof in;
	int rc = listen_addr_parse(listen, &at, f);
	if (rc != 0)
		return rc;
	if (at.is_unix || inet_pton(AF_INET, at.host, &in.sin_addr) != 1)
		return fault_set(f, ST_INVALID, "--dns %s: want an IPv4 address and a port", listen);
	in.sin_port = htons(at.port);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&in, sizeof in) != 0 ||
		getsockname(fd, (struct sockaddr *)&in, &len) != 0) {
		rc = fault_set(f, ST_IO, "--dns %s: %s", listen, strerror(errno));
		if (fd >= 0)
			close(fd);
		return rc;
	}
	struct dns *d = mem_alloc(sizeof *d);
	d->fd = fd;
	d->port = ntohs(in.sin_port);
	d->readable = event_new(s->base, fd, EV_READ | EV_PERSIST, on_readable, d);
	ALWAYS(d->readable != NULL);
	put(event_add(d->readable, NULL));
	s->dns = d;
	return 0;
}

void dns_stop(struct sim *s)
{
	if (s->dns == NULL)
		return;
	event_free(s->dns->readable);
	close(s->dns->fd);
	mem_free(s->dns);
	s->dns = NULL;
}

uint16_t dns_port(const struct sim *s)
{
	return s->dns != NULL ? s->dns->port : 0;
}

uint64_t dns_queries(const struct sim *s)
{
	return s->dns != NULL ? s->dns->queries : 0;
}
