/*
 * resolver - A and AAAA questions through evdns, shared, cached and bounded.
 *
 * One entry per name carries the cached answer, the open questions and everyone who waits for them.
 * evdns sends and repeats; the deadline over all tries is ours, because evdns has none. evdns answers
 * even a canceled question later: what it holds is a small `ask` of its own, never an entry. Its getaddrinfo
 * is not used: it touches its base after a cancel, so a base could not be replaced on reload. Must not
 * block and must not log: evdns' own messages are switched off.
 */
#include "io/resolver.h"

#include <errno.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "io/hosts.h"

#define RESOLVER_MAGIC 0x72736c76U
#define QUERY_MAGIC 0x72736c71U
#define FRESH_US (60 * US_PER_S)
#define STALE_US (3600 * US_PER_S)
/* Name servers that did not answer are left alone this long when a stale answer can serve. */
#define STALE_RETRY_US (10 * US_PER_S)
/* Addresses of one family do not wait longer for the other one. */
#define FAMILY_SKEW_US (300 * US_PER_MS)
#define DEFAULT_TIMEOUT_US (5 * US_PER_S)
#define MAX_CACHED 4096
#define N_BUCKETS 1024
#define MAX_NAME 253
/* Questions on the wire at once: a name server that hangs must not hold up other names. */
#define MAX_INFLIGHT "8192"
#define TRIES 3

/* Shared by the cache and the waiting; freed at the end of a turn, so that it can be borrowed for one. */
struct answer {
	unsigned refs;
	struct loop *loop;
	struct loop_task bury;
	struct resolver_addrs addrs;
};

struct entry;

/* What evdns holds. It belongs to nobody once `entry` is NULL, and ends in its callback. */
struct ask {
	struct entry *entry;
	enum hosts_family family;
	struct evdns_request *request;
};

struct entry {
	struct resolver *resolver;
	char *host; /* lower case, no final dot */
	bool absolute; /* was written with a final dot: no search list */
	struct entry *hash_next;
	struct entry *older, *newer;
	struct answer *answer; /* cached, NULL: none */
	int64_t fresh_until_us, stale_until_us;
	/* the open question */
	bool asking;
	int64_t deadline_us;
	struct loop_timer *timer;
	struct ask *ask[HOSTS_FAMILIES];
	int dns_error[HOSTS_FAMILIES];
	struct resolver_addrs found[HOSTS_FAMILIES];
	struct resolver_query *waiting;
};

struct resolver_query {
	unsigned magic;
	struct resolver *resolver;
	struct entry *entry; /* NULL once answered */
	struct resolver_query *next, *prev; /* in entry->waiting, then in resolver->answered */
	resolver_fn *fn;
	void *arg;
	struct loop_task deliver;
	int code;
	struct answer *answer;
};

struct resolver {
	unsigned magic;
	struct loop *loop;
	char *resolv_conf, *hosts_file;
	int64_t timeout_us;
	struct evdns_base *dns;
	struct hosts *hosts;
	struct entry *table[N_BUCKETS];
	struct entry *oldest, *newest;
	unsigned n_entries;
	struct resolver_query *answered;
};

static unsigned bucket_of(const char *s)
{
	return str_hash(STR_HASH, s) % N_BUCKETS;
}

static void no_log(int is_warning, const char *msg)
{
	(void)is_warning;
	(void)msg;
}

/* --- answers */

static void bury(void *arg)
{
	mem_free(arg);
}

static struct answer *answer_new(struct loop *l)
{
	struct answer *a = mem_alloc(sizeof *a);
	a->refs = 1;
	a->loop = l;
	loop_task_init(&a->bury, bury, a);
	return a;
}

static void answer_release(struct answer *a)
{
	if (a != NULL && --a->refs == 0)
		loop_defer(a->loop, &a->bury);
}

/* NULL when a name server has to be asked. */
static struct answer *answer_locally(struct resolver *r, const char *host)
{
	struct resolver_addrs found = { .n = 0 };
	if (!hosts_find(r->hosts, host, &found))
		return NULL;
	struct answer *a = answer_new(r->loop);
	a->addrs = found;
	return a;
}

/* --- evdns */

static int dns_new(struct resolver *r, struct evdns_base **out, struct fault *f)
{
	/* evdns cannot tell a missing file (fine: the local server) from one that may not be read. */
	int fd = open(r->resolv_conf, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0 && errno != ENOENT)
		return fault_set(f, ST_IO, "%s: %s", r->resolv_conf, strerror(errno));
	if (fd >= 0)
		close(fd);
	struct evdns_base *dns = evdns_base_new(loop_base(r->loop), EVDNS_BASE_DISABLE_WHEN_INACTIVE);
	if (dns == NULL)
		return fault_set(f, ST_IO, "the name resolver could not be set up");
	int rc = evdns_base_resolv_conf_parse(dns, DNS_OPTION_SEARCH | DNS_OPTION_NAMESERVERS | DNS_OPTION_MISC,
		r->resolv_conf);
	/* 1: no file, 6: no server in it; the local server is asked then. The others: size, memory, short read. */
	if (rc != 0 && rc != 1 && rc != 6) {
		evdns_base_free(dns, 0);
		return fault_set(f, ST_IO, "%s: cannot be read (evdns code %d)", r->resolv_conf, rc);
	}
	/* The last try runs past our own deadline, which therefore is the one that ends a question. */
	char timeout[32];
	int64_t try_us = r->timeout_us / TRIES + US_PER_MS;
	snprintf(timeout, sizeof timeout, "%" PRIi64 ".%06" PRIi64, try_us / US_PER_S, try_us % US_PER_S);
	ALWAYS(evdns_base_set_option(dns, "timeout:", timeout) == 0);
	ALWAYS(evdns_base_set_option(dns, "attempts:", "3") == 0);
	ALWAYS(evdns_base_set_option(dns, "max-inflight:", MAX_INFLIGHT) == 0);
	*out = dns;
	return 0;
}

/* --- entries */

static void lru_unlink(struct entry *e)
{
	struct resolver *r = e->resolver;
	*(e->older != NULL ? &e->older->newer : &r->oldest) = e->newer;
	*(e->newer != NULL ? &e->newer->older : &r->newest) = e->older;
	e->older = NULL;
	e->newer = NULL;
}

static void lru_append(struct entry *e)
{
	struct resolver *r = e->resolver;
	e->older = r->newest;
	e->newer = NULL;
	*(r->newest != NULL ? &r->newest->newer : &r->oldest) = e;
	r->newest = e;
}

static void forget_asks(struct entry *e)
{
	for (int i = 0; i < HOSTS_FAMILIES; i++) {
		struct ask *ask = e->ask[i];
		if (ask == NULL)
			continue;
		e->ask[i] = NULL;
		ask->entry = NULL;
		evdns_cancel_request(e->resolver->dns, ask->request);
	}
}

static void entry_free(struct entry *e)
{
	struct resolver *r = e->resolver;
	forget_asks(e);
	struct entry **at = &r->table[bucket_of(e->host)];
	while (*at != e)
		at = &(*at)->hash_next;
	*at = e->hash_next;
	lru_unlink(e);
	r->n_entries--;
	answer_release(e->answer);
	loop_timer_free(e->timer);
	mem_free(e->host);
	mem_free(e);
}

static struct entry *entry_find(struct resolver *r, const char *host, bool absolute)
{
	for (struct entry *e = r->table[bucket_of(host)]; e != NULL; e = e->hash_next) {
		if (e->absolute == absolute && strcmp(e->host, host) == 0)
			return e;
	}
	return NULL;
}

static void evict(struct resolver *r)
{
	for (struct entry *e = r->oldest; e != NULL && r->n_entries >= MAX_CACHED;) {
		struct entry *next = e->newer;
		if (!e->asking)
			entry_free(e);
		e = next;
	}
}

static struct entry *entry_new(struct resolver *r, const char *host, bool absolute)
{
	evict(r);
	struct entry *e = mem_alloc(sizeof *e);
	e->resolver = r;
	e->host = mem_strdup(host);
	e->absolute = absolute;
	unsigned b = bucket_of(host);
	e->hash_next = r->table[b];
	r->table[b] = e;
	lru_append(e);
	r->n_entries++;
	return e;
}

static void entry_store(struct entry *e, struct answer *a)
{
	int64_t now = sys_mono_us();
	answer_release(e->answer);
	e->answer = a;
	e->fresh_until_us = now + FRESH_US;
	e->stale_until_us = now + FRESH_US + STALE_US;
}

/* --- those who wait */

static void query_unlink(struct resolver_query *q)
{
	struct resolver_query **head = q->entry != NULL ? &q->entry->waiting : &q->resolver->answered;
	*(q->prev != NULL ? &q->prev->next : head) = q->next;
	if (q->next != NULL)
		q->next->prev = q->prev;
}

static void query_link(struct resolver_query *q, struct resolver_query **head)
{
	q->prev = NULL;
	q->next = *head;
	if (q->next != NULL)
		q->next->prev = q;
	*head = q;
}

static void query_free(struct resolver_query *q)
{
	query_unlink(q);
	loop_undefer(q->resolver->loop, &q->deliver);
	answer_release(q->answer);
	q->magic = 0;
	mem_free(q);
}

static void deliver(void *arg)
{
	struct resolver_query *q = arg;
	MAGIC_CHECK(q, QUERY_MAGIC);
	resolver_fn *fn = q->fn;
	void *fn_arg = q->arg;
	int code = q->code;
	struct answer *a = q->answer;
	q->answer = NULL;
	query_free(q);
	/* The callback may free the resolver. */
	fn(fn_arg, code, a != NULL ? &a->addrs : NULL);
	answer_release(a);
}

static void query_answer(struct resolver_query *q, int code, struct answer *a)
{
	if (q->entry != NULL)
		query_unlink(q);
	q->entry = NULL;
	query_link(q, &q->resolver->answered);
	q->code = code;
	q->answer = a;
	if (a != NULL)
		a->refs++;
	loop_defer(q->resolver->loop, &q->deliver);
}

/* --- one question */

static int failure_of(const struct entry *e)
{
	bool absent = true;
	for (int i = 0; i < HOSTS_FAMILIES; i++) {
		if (e->dns_error[i] == DNS_ERR_TIMEOUT)
			return ST_TIMEOUT;
		absent = absent && (e->dns_error[i] == DNS_ERR_NOTEXIST || e->dns_error[i] == DNS_ERR_NODATA);
	}
	return absent ? ST_NOT_FOUND : ST_UNAVAILABLE;
}

static void drop_answer(struct entry *e)
{
	answer_release(e->answer);
	e->answer = NULL;
}

static void entry_finish(struct entry *e, int code)
{
	int64_t now = sys_mono_us();
	forget_asks(e);
	e->asking = false;
	loop_timer_stop(e->timer);
	if (code == 0) {
		struct answer *a = answer_new(e->resolver->loop);
		hosts_merge(&a->addrs, &e->found[HOSTS_V4], &e->found[HOSTS_V6]);
		entry_store(e, a);
	} else if (code == ST_NOT_FOUND || (e->answer != NULL && now >= e->stale_until_us)) {
		drop_answer(e);
	} else if (e->answer != NULL) {
		code = 0;
		e->fresh_until_us = now + STALE_RETRY_US;
	}
	/* The list is in reverse order of arrival. */
	struct resolver_query *q = e->waiting;
	while (q != NULL && q->next != NULL)
		q = q->next;
	while (q != NULL) {
		struct resolver_query *prev = q->prev;
		query_answer(q, code, code == 0 ? e->answer : NULL);
		q = prev;
	}
	if (e->answer == NULL)
		entry_free(e);
}

static void entry_check(struct entry *e)
{
	bool found = e->found[HOSTS_V4].n + e->found[HOSTS_V6].n > 0;
	if (e->ask[HOSTS_V4] == NULL && e->ask[HOSTS_V6] == NULL) {
		entry_finish(e, found ? 0 : failure_of(e));
		return;
	}
	int64_t skew = sys_mono_us() + FAMILY_SKEW_US;
	loop_timer_at(e->timer, found && skew < e->deadline_us ? skew : e->deadline_us);
}

static void on_deadline(void *arg)
{
	struct entry *e = arg;
	entry_finish(e, e->found[HOSTS_V4].n + e->found[HOSTS_V6].n > 0 ? 0 : ST_TIMEOUT);
}

static void on_dns(int result, char type, int count, int ttl, void *addresses, void *arg)
{
	struct ask *ask = arg;
	struct entry *e = ask->entry;
	enum hosts_family family = ask->family;
	(void)type;
	(void)ttl;
	mem_free(ask);
	if (e == NULL)
		return;
	loop_enter(e->resolver->loop);
	e->ask[family] = NULL;
	e->dns_error[family] = result == DNS_ERR_NONE && count == 0 ? DNS_ERR_NODATA : result;
	size_t each = family == HOSTS_V4 ? sizeof(struct in_addr) : sizeof(struct in6_addr);
	for (int i = 0; result == DNS_ERR_NONE && i < count; i++)
		hosts_add_raw(&e->found[family], family, (const uint8_t *)addresses + (size_t)i * each);
	entry_check(e);
}

static void entry_send(struct entry *e)
{
	struct evdns_base *dns = e->resolver->dns;
	int flags = e->absolute ? DNS_QUERY_NO_SEARCH : 0;
	for (int i = 0; i < HOSTS_FAMILIES; i++) {
		struct ask *ask = mem_alloc(sizeof *ask);
		ask->entry = e;
		ask->family = (enum hosts_family)i;
		ask->request = i == HOSTS_V4 ? evdns_base_resolve_ipv4(dns, e->host, flags, on_dns, ask) :
					 evdns_base_resolve_ipv6(dns, e->host, flags, on_dns, ask);
		memset(&e->found[i], 0, sizeof e->found[i]);
		e->dns_error[i] = DNS_ERR_NONE;
		e->ask[i] = ask;
		if (ask->request != NULL)
			continue;
		/* Not a name that can be put into a question. */
		e->ask[i] = NULL;
		e->dns_error[i] = DNS_ERR_NOTEXIST;
		mem_free(ask);
	}
}

static void entry_ask(struct entry *e)
{
	if (e->asking)
		return;
	e->asking = true;
	e->deadline_us = sys_mono_us() + e->resolver->timeout_us;
	if (e->timer == NULL)
		e->timer = loop_timer_new(e->resolver->loop, on_deadline, e);
	entry_send(e);
	entry_check(e);
}

/* --- the face */

int resolver_new(struct loop *l, const struct resolver_params *p, struct resolver **out, struct fault *f)
{
	evdns_set_log_fn(no_log);
	struct resolver *r = mem_alloc(sizeof *r);
	r->magic = RESOLVER_MAGIC;
	r->loop = l;
	r->resolv_conf = mem_strdup(p->resolv_conf != NULL ? p->resolv_conf : "/etc/resolv.conf");
	r->hosts_file = mem_strdup(p->hosts_file != NULL ? p->hosts_file : "/etc/hosts");
	r->timeout_us = p->timeout_us > 0 ? p->timeout_us : DEFAULT_TIMEOUT_US;
	int rc = dns_new(r, &r->dns, f);
	if (rc == 0)
		rc = hosts_load(r->hosts_file, &r->hosts, f);
	if (rc != 0) {
		resolver_free(r);
		return rc;
	}
	*out = r;
	return 0;
}

void resolver_free(struct resolver *r)
{
	if (r == NULL)
		return;
	MAGIC_CHECK(r, RESOLVER_MAGIC);
	while (r->answered != NULL)
		query_free(r->answered);
	while (r->oldest != NULL) {
		struct entry *e = r->oldest;
		while (e->waiting != NULL)
			query_free(e->waiting);
		entry_free(e);
	}
	if (r->dns != NULL)
		evdns_base_free(r->dns, 1);
	hosts_free(r->hosts);
	mem_free(r->resolv_conf);
	mem_free(r->hosts_file);
	r->magic = 0;
	mem_free(r);
}

int resolver_reload(struct resolver *r, struct fault *f)
{
	MAGIC_CHECK(r, RESOLVER_MAGIC);
	struct evdns_base *dns;
	struct hosts *hosts = NULL;
	int rc = hosts_load(r->hosts_file, &hosts, f);
	if (rc == 0)
		rc = dns_new(r, &dns, f);
	if (rc != 0) {
		hosts_free(hosts);
		return rc;
	}
	hosts_free(r->hosts);
	r->hosts = hosts;
	for (struct entry *e = r->oldest; e != NULL; e = e->newer)
		forget_asks(e);
	evdns_base_free(r->dns, 1);
	r->dns = dns;
	/* Open questions go to the new servers, within their old deadline. */
	for (struct entry *e = r->oldest, *next; e != NULL; e = next) {
		next = e->newer;
		drop_answer(e);
		if (!e->asking) {
			entry_free(e);
			continue;
		}
		entry_send(e);
		entry_check(e);
	}
	return 0;
}

/* The name as it is kept: lower case, without the final dot. False when it is too long or empty. */
static bool normalize(const char *host, char out[MAX_NAME + 1], bool *absolute)
{
	size_t n = strlen(host);
	*absolute = n > 0 && host[n - 1] == '.';
	if (*absolute)
		n--;
	if (n == 0 || n > MAX_NAME)
		return false;
	memcpy(out, host, n);
	out[n] = '\0';
	hosts_lower(out);
	return true;
}

/* The entry with a fresh answer, or NULL. Local names are put into the cache like any other. */
static struct entry *fresh_entry(struct resolver *r, const char *host, bool absolute)
{
	struct entry *e = entry_find(r, host, absolute);
	if (e == NULL || e->answer == NULL || sys_mono_us() >= e->fresh_until_us) {
		struct answer *local = answer_locally(r, host);
		if (local == NULL)
			return NULL;
		if (e == NULL)
			e = entry_new(r, host, absolute);
		entry_store(e, local);
	}
	lru_unlink(e);
	lru_append(e);
	return e;
}

const struct resolver_addrs *resolver_cached(struct resolver *r, const char *host)
{
	char name[MAX_NAME + 1];
	bool absolute;
	MAGIC_CHECK(r, RESOLVER_MAGIC);
	if (!normalize(host, name, &absolute))
		return NULL;
	struct entry *e = fresh_entry(r, name, absolute);
	return e != NULL ? &e->answer->addrs : NULL;
}

struct resolver_query *resolver_lookup(struct resolver *r, const char *host, resolver_fn *fn, void *arg)
{
	char name[MAX_NAME + 1];
	bool absolute;
	MAGIC_CHECK(r, RESOLVER_MAGIC);
	struct resolver_query *q = mem_alloc(sizeof *q);
	q->magic = QUERY_MAGIC;
	q->resolver = r;
	q->fn = fn;
	q->arg = arg;
	loop_task_init(&q->deliver, deliver, q);
	if (!normalize(host, name, &absolute)) {
		query_answer(q, ST_NOT_FOUND, NULL);
		return q;
	}
	struct entry *e = fresh_entry(r, name, absolute);
	if (e != NULL) {
		query_answer(q, 0, e->answer);
		return q;
	}
	e = entry_find(r, name, absolute);
	if (e == NULL)
		e = entry_new(r, name, absolute);
	q->entry = e;
	query_link(q, &e->waiting);
	entry_ask(e);
	return q;
}

void resolver_cancel(struct resolver_query *q)
{
	if (q == NULL)
		return;
	MAGIC_CHECK(q, QUERY_MAGIC);
	query_free(q);
}
