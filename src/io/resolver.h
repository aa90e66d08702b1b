/*
 * resolver - host names to addresses without ever blocking the loop (libevent's evdns).
 *
 * getaddrinfo in a thread stalls curl's whole multi when it hangs (measured: 5.5 s), so curl and libpq
 * only ever see addresses that were resolved here. Numeric hosts and localhost need no query. Answers are
 * kept 60 s; a stale answer up to an hour old serves when the name servers do not answer, because
 * refreshing late is worse than using yesterday's address. Never logs.
 */
#ifndef REFRESHD_IO_RESOLVER_H
#define REFRESHD_IO_RESOLVER_H

#include <stdint.h>
#include <sys/socket.h>

#include "base/status.h"
#include "io/loop.h"

struct resolver;
struct resolver_query;

#define RESOLVER_MAX_ADDRS 8

struct resolver_addrs {
	unsigned n; /* 1..RESOLVER_MAX_ADDRS; ports are 0 */
	struct sockaddr_storage addr[RESOLVER_MAX_ADDRS];
	socklen_t len[RESOLVER_MAX_ADDRS];
};

struct resolver_params {
	const char *resolv_conf; /* NULL: /etc/resolv.conf; a missing file means 127.0.0.1 */
	const char *hosts_file;	 /* NULL: /etc/hosts */
	int64_t timeout_us;	 /* for the whole question, all servers and tries; 0: 5 s */
};

int resolver_new(struct loop *l, const struct resolver_params *p, struct resolver **out, struct fault *f) MUST_USE;
void resolver_free(struct resolver *r); /* open questions are canceled without a call */
/* Read resolv.conf and hosts again and forget cached answers (on reload). */
int resolver_reload(struct resolver *r, struct fault *f) MUST_USE;

/* code: 0 with addrs, ST_NOT_FOUND (the name does not exist), ST_TIMEOUT or ST_UNAVAILABLE. */
typedef void resolver_fn(void *arg, int code, const struct resolver_addrs *addrs);
/* Exactly one call of fn, never from inside this one, unless canceled. Equal questions share one query. Never NULL. */
struct resolver_query *resolver_lookup(struct resolver *r, const char *host, resolver_fn *fn, void *arg);
void resolver_cancel(struct resolver_query *q);
/* The cached, fresh answer or NULL; borrowed until the next turn. Lets the hot path skip a callback. */
const struct resolver_addrs *resolver_cached(struct resolver *r, const char *host);

#endif
