/*
 * ledger - one JSON line per presentation of a refresh token.
 *
 * A line is written when the presentation is over (answer handed to the kernel, or connection gone), so
 * its order is the order of ends; the times are what checkers compare. Lines gather in memory and go to
 * the file every 100 ms, on request and at the end: a disk never slows a measured answer.
 */
#include "provider/simulator.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/crypto.h"
#include "base/mem.h"
#include "base/sys.h"

#define LEDGER_BUFFER ((size_t)256 << 20)
#define LEDGER_PIECE ((size_t)1 << 20)

int ledger_open(struct ledger *l, const char *path, struct fault *f)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return fault_set(f, ST_IO, "ledger %s: %s", path, strerror(errno));
	l->fd = fd;
	l->path = mem_strdup(path);
	buf_init(&l->out, LEDGER_BUFFER);
	return 0;
}

int ledger_flush(struct ledger *l)
{
	if (l->error != 0)
		return ST_IO;
	if (l->fd < 0)
		return 0;
	size_t done = 0;
	while (done < l->out.len) {
		ssize_t n = write(l->fd, l->out.data + done, l->out.len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			l->error = errno;
			return ST_IO;
		}
		done += (size_t)n;
	}
	buf_truncate(&l->out, 0);
	return 0;
}

void ledger_close(struct ledger *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
	mem_free(l->path);
	l->path = NULL;
	buf_fini(&l->out);
}

void presentation_begin(
	struct presentation *p, struct realm *r, uint32_t family, uint32_t gen, const char *rt, size_t n)
{
	static const char hex[] = "0123456789abcdef";
	uint8_t digest[32];
	crypto_sha256(rt, n, digest);
	for (unsigned i = 0; i < 8; i++) {
		p->rt16[2 * i] = hex[digest[i] >> 4];
		p->rt16[2 * i + 1] = hex[digest[i] & 15];
	}
	p->rt16[16] = '\0';
	p->realm = r;
	p->family = family;
	p->gen = gen;
	p->outcome = "unknown_token";
	p->fault = NULL;
	p->status = 0;
	p->rotated = false;
	if (family == UNKNOWN_FAMILY)
		return;
	struct family *f = &r->families[family];
	if (f->held == UINT16_MAX)
		return;
	if (++f->held > 1) {
		r->stats.overlaps++;
		f->overlapped = true;
	}
}

static void write_line(struct ledger *l, const struct presentation *p, uint64_t conn, uint32_t req,
	bool delivered, bool overlap, int64_t done_us)
{
	struct realm *r = p->realm;
	bool known = p->family != UNKNOWN_FAMILY;
	char line[640];
	/* Into the stack first: formatting into a growing buffer measures every line twice. */
	int n = snprintf(line, sizeof line,
		"{\"realm\":\"%s\",\"family\":%lld,\"gen\":%u,\"rt\":\"%s\",\"conn\":%llu,\"req\":%u,\"t_"
		"recv_us\":%lld,"
		"\"t_done_us\":%lld,\"outcome\":\"%s%s\",\"rotated\":%s,\"status\":%d,\"delivered\":%s,"
		"\"overlap\":%s,"
		"\"live_gen\":%u,\"revoked\":%s}\n",
		r->name, known ? (long long)p->family : -1LL, p->gen, p->rt16, (unsigned long long)conn, req,
		(long long)p->t_recv_us, (long long)done_us, p->fault != NULL ? "fault:" : "",
		p->fault != NULL ? p->fault : p->outcome, p->rotated ? "true" : "false", p->status,
		delivered ? "true" : "false", overlap ? "true" : "false",
		known ? family_live(r, p->family) : 0,
		known && r->families[p->family].revoked ? "true" : "false");
	ALWAYS(n > 0 && (size_t)n < sizeof line);
	put(buf_append(&l->out, line, (size_t)n));
}

void presentation_end(struct sim *s, struct presentation *p, uint64_t conn, uint32_t req, bool delivered)
{
	struct realm *r = p->realm;
	bool overlap = false;
	if (r == NULL)
		return;
	if (!delivered)
		r->stats.not_delivered++;
	if (p->family != UNKNOWN_FAMILY) {
		struct family *f = &r->families[p->family];
		overlap = f->overlapped;
		if (f->held > 0 && --f->held == 0)
			f->overlapped = false;
	}
	if (s->ledger.fd >= 0 && s->ledger.error == 0) {
		write_line(&s->ledger, p, conn, req, delivered, overlap, sys_wall_us());
		if (s->ledger.out.len > LEDGER_PIECE && ledger_flush(&s->ledger) != 0)
			event_base_loopbreak(s->base);
	}
	p->realm = NULL;
}
