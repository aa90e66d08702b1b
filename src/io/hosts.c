/*
 * hosts - the hosts file as a hash table, read once and again on reload.
 *
 * evdns has a reader of its own, but uses it only inside its getaddrinfo, which the resolver cannot use.
 * Names in the file are compared without case, like the C library does. Asks nobody, never blocks on
 * more than one small file.
 */
#include "io/hosts.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"

#define N_BUCKETS 1024
#define MAX_BYTES (4U << 20)

struct line {
	struct line *next;
	char *name;
	struct sockaddr_storage addr;
	socklen_t len;
};

struct hosts {
	struct line *table[N_BUCKETS];
};

static unsigned bucket_of(const char *s)
{
	return str_hash(STR_HASH, s) % N_BUCKETS;
}

void hosts_lower(char *s)
{
	for (; *s != '\0'; s++) {
		if (*s >= 'A' && *s <= 'Z')
			*s = (char)(*s - 'A' + 'a');
	}
}

static void add_addr(struct resolver_addrs *a, const void *sa, socklen_t len)
{
	if (a->n == RESOLVER_MAX_ADDRS)
		return;
	memcpy(&a->addr[a->n], sa, len);
	a->len[a->n] = len;
	a->n++;
}

void hosts_add_raw(struct resolver_addrs *a, enum hosts_family family, const void *raw)
{
	struct sockaddr_in sin = { .sin_family = AF_INET };
	struct sockaddr_in6 sin6 = { .sin6_family = AF_INET6 };
	if (family == HOSTS_V4) {
		memcpy(&sin.sin_addr, raw, sizeof sin.sin_addr);
		add_addr(a, &sin, sizeof sin);
	} else {
		memcpy(&sin6.sin6_addr, raw, sizeof sin6.sin6_addr);
		add_addr(a, &sin6, sizeof sin6);
	}
}

void hosts_merge(struct resolver_addrs *out, const struct resolver_addrs *v4, const struct resolver_addrs *v6)
{
	unsigned half = RESOLVER_MAX_ADDRS / 2;
	unsigned n6 = v6->n < half ? v6->n : half;
	for (unsigned i = 0; i < v4->n && out->n < RESOLVER_MAX_ADDRS - n6; i++)
		add_addr(out, &v4->addr[i], v4->len[i]);
	for (unsigned i = 0; i < v6->n; i++)
		add_addr(out, &v6->addr[i], v6->len[i]);
}

static bool numeric(const char *host, struct resolver_addrs *out)
{
	uint8_t raw[16];
	if (inet_pton(AF_INET, host, raw) == 1) {
		hosts_add_raw(out, HOSTS_V4, raw);
		return true;
	}
	if (inet_pton(AF_INET6, host, raw) == 1) {
		hosts_add_raw(out, HOSTS_V6, raw);
		return true;
	}
	return false;
}

/* RFC 6761 section 6.3: localhost and everything below it is the loopback, whatever a name server says. */
static bool is_localhost(const char *host)
{
	size_t n = strlen(host), tail = strlen("localhost");
	if (n < tail || strcmp(host + n - tail, "localhost") != 0)
		return false;
	return n == tail || host[n - tail - 1] == '.';
}

static void add_line(struct hosts *hosts, const char *name, const struct resolver_addrs *a)
{
	struct line *h = mem_alloc(sizeof *h);
	h->name = mem_strdup(name);
	hosts_lower(h->name);
	h->addr = a->addr[0];
	h->len = a->len[0];
	struct line **end = &hosts->table[bucket_of(h->name)];
	while (*end != NULL)
		end = &(*end)->next;
	*end = h;
}

/* hosts(5). A line that cannot be read is not an error there either: the C library skips it as well. */
static void parse(struct hosts *hosts, char *text)
{
	char *line_state;
	for (char *line = strtok_r(text, "\n", &line_state); line != NULL;
		line = strtok_r(NULL, "\n", &line_state)) {
		char *word_state;
		line[strcspn(line, "#")] = '\0';
		char *word = strtok_r(line, " \t\r", &word_state);
		struct resolver_addrs a = { .n = 0 };
		if (word == NULL || !numeric(word, &a))
			continue;
		while ((word = strtok_r(NULL, " \t\r", &word_state)) != NULL)
			add_line(hosts, word, &a);
	}
}

int hosts_load(const char *path, struct hosts **out, struct fault *f)
{
	struct buf b;
	buf_init(&b, MAX_BYTES);
	int rc = buf_read_file(&b, path, f);
	if (rc != 0 && rc != ST_NOT_FOUND) {
		buf_fini(&b);
		return rc;
	}
	struct hosts *h = mem_alloc(sizeof *h);
	if (b.len > 0)
		parse(h, (char *)b.data);
	buf_fini(&b);
	*out = h;
	return 0;
}

void hosts_free(struct hosts *h)
{
	if (h == NULL)
		return;
	for (unsigned i = 0; i < N_BUCKETS; i++) {
		while (h->table[i] != NULL) {
			struct line *line = h->table[i];
			h->table[i] = line->next;
			mem_free(line->name);
			mem_free(line);
		}
	}
	mem_free(h);
}

bool hosts_find(const struct hosts *h, const char *host, struct resolver_addrs *out)
{
	struct resolver_addrs v4 = { .n = 0 }, v6 = { .n = 0 };
	if (is_localhost(host)) {
		(void)numeric("127.0.0.1", &v4);
		(void)numeric("::1", &v6);
	} else if (!numeric(host, &v4)) {
		for (const struct line *line = h->table[bucket_of(host)]; line != NULL; line = line->next) {
			if (strcmp(line->name, host) == 0)
				add_addr(line->addr.ss_family == AF_INET ? &v4 : &v6, &line->addr, line->len);
		}
	}
	if (v4.n + v6.n == 0)
		return false;
	out->n = 0;
	hosts_merge(out, &v4, &v6);
	return true;
}
