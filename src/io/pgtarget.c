/*
 * pgtarget - parses a database URL, resolves its hosts, and builds libpq's parameter lists.
 *
 * Everything that the URL does not say and that keeps a daemon alive is added here: keepalives, a bound on
 * unacknowledged data, statement and lock timeouts, UTC and UTF-8. Values of the URL win over all of them.
 * Values live in wiped memory because one of them is the password; no fault may repeat any of them but
 * host names.
 */
#include "io/pgtarget.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "io/loop.h"

#define TARGET_MAGIC 0x50475447u
#define QUERY_MAGIC 0x50475451u
#define HOSTS_MAX 16u
#define OPTIONS_MAX 80u
#define VALUE_MAX 16384u
#define CONNECT_TIMEOUT_US (10 * US_PER_S)

struct option {
	const char *keyword; /* libpq's own constant */
	struct buf value;
};

struct host {
	char *name;    /* "": the default socket; starts with / or @: a socket */
	char *address; /* hostaddr of the URL, or "" */
	char *port;    /* "" : the default */
	int code;      /* of the last look-up */
};

struct pgtarget {
	unsigned magic;
	struct option options[OPTIONS_MAX]; /* all but host, hostaddr and port */
	unsigned n_options;
	struct host hosts[HOSTS_MAX];
	unsigned n_hosts;
	int64_t connect_timeout_us;
};

struct slot {
	struct pgtarget_query *q;
	struct resolver_query *rq;
	struct resolver_addrs addrs; /* n = 0: none, or none needed */
};

struct pgtarget_query {
	unsigned magic;
	struct pgtarget *t;
	struct loop *loop;
	unsigned rotate;
	unsigned waiting;
	struct slot slots[HOSTS_MAX];
	struct loop_task task;
	pgtarget_fn *fn;
	void *arg;
};

/* ---- parsing */

static struct option *find_option(struct pgtarget *t, const char *keyword)
{
	for (unsigned i = 0; i < t->n_options; i++)
		if (strcmp(t->options[i].keyword, keyword) == 0)
			return &t->options[i];
	return NULL;
}

static int set_option(struct pgtarget *t, const char *keyword, const char *value, struct fault *f)
{
	struct option *o = find_option(t, keyword);
	if (o == NULL) {
		ALWAYS(t->n_options < OPTIONS_MAX);
		o = &t->options[t->n_options++];
		o->keyword = keyword;
		buf_init_secret(&o->value, VALUE_MAX);
	}
	if (buf_set(&o->value, value, strlen(value)) != 0)
		return fault_set(f, ST_FULL, "database URL: %s is longer than %u bytes", keyword, VALUE_MAX);
	return 0;
}

static int add_default(struct pgtarget *t, const char *keyword, const char *value, struct fault *f)
{
	return find_option(t, keyword) != NULL ? 0 : set_option(t, keyword, value, f);
}

/* The i-th element of a comma list; false past the end. "" has one, empty, element. */
static bool list_item(const char *list, unsigned i, const char **s, size_t *n)
{
	while (i > 0) {
		list = strchr(list, ',');
		if (list == NULL)
			return false;
		list++;
		i--;
	}
	*s = list;
	*n = strcspn(list, ",");
	return true;
}

static unsigned list_length(const char *list)
{
	unsigned n = 1;
	for (; *list != '\0'; list++)
		n += *list == ',';
	return n;
}

static char *dup_item(const char *list, unsigned i)
{
	const char *s = "";
	size_t n = 0;
	(void)list_item(list, i, &s, &n);
	return mem_strndup(s, n);
}

static int check_port(const char *port, struct fault *f)
{
	uint64_t v;
	if (port[0] == '\0')
		return 0;
	if (str_parse_u64(port, strlen(port), &v) != 0 || v < 1 || v > 65535)
		return fault_set(f, ST_INVALID, "database URL: port must be a number from 1 to 65535");
	return 0;
}

static int set_hosts(
	struct pgtarget *t, const char *hosts, const char *addrs, const char *ports, struct fault *f)
{
	bool by_addr = addrs[0] != '\0';
	unsigned n = list_length(by_addr ? addrs : hosts);
	unsigned n_ports = list_length(ports);
	if (n > HOSTS_MAX)
		return fault_set(f, ST_FULL, "database URL: more than %u hosts", HOSTS_MAX);
	if (by_addr && hosts[0] != '\0' && list_length(hosts) != n)
		return fault_set(f, ST_INVALID, "database URL: %u host names do not match %u hostaddr values",
			list_length(hosts), n);
	if (n_ports != 1 && n_ports != n)
		return fault_set(f, ST_INVALID, "database URL: %u ports do not match %u hosts", n_ports, n);
	for (unsigned i = 0; i < n; i++) {
		struct host *h = &t->hosts[t->n_hosts++];
		h->name = dup_item(hosts, i);
		h->address = dup_item(addrs, i);
		h->port = dup_item(ports, n_ports == 1 ? 0 : i);
		int rc = check_port(h->port, f);
		if (rc != 0)
			return rc;
	}
	return 0;
}

/* What libpq would take from the environment for the three lists that are built here. */
static const char *value_of(
	const PQconninfoOption *given, const PQconninfoOption *defaults, const char *keyword)
{
	for (const PQconninfoOption *o = given; o->keyword != NULL; o++)
		if (strcmp(o->keyword, keyword) == 0 && o->val != NULL)
			return o->val;
	for (const PQconninfoOption *o = defaults; o->keyword != NULL; o++)
		if (strcmp(o->keyword, keyword) == 0 && o->val != NULL)
			return o->val;
	return "";
}

static bool is_address_keyword(const char *k)
{
	return strcmp(k, "host") == 0 || strcmp(k, "hostaddr") == 0 || strcmp(k, "port") == 0;
}

static int take_options(struct pgtarget *t, const PQconninfoOption *given, struct fault *f)
{
	for (const PQconninfoOption *o = given; o->keyword != NULL; o++) {
		if (o->val == NULL || is_address_keyword(o->keyword))
			continue;
		if (strcmp(o->keyword, "service") == 0)
			return fault_set(
				f, ST_INVALID, "database URL: service= is not supported, name the host");
		int rc = set_option(t, o->keyword, o->val, f);
		if (rc != 0)
			return rc;
	}
	return 0;
}

static int take_connect_timeout(struct pgtarget *t, struct fault *f)
{
	t->connect_timeout_us = CONNECT_TIMEOUT_US;
	const struct option *o = find_option(t, "connect_timeout");
	if (o == NULL)
		return 0;
	int64_t s;
	if (str_parse_i64(buf_str(&o->value), o->value.len, &s) != 0 || s > 3600)
		return fault_set(
			f, ST_INVALID, "database URL: connect_timeout must be whole seconds up to 3600");
	if (s > 0)
		t->connect_timeout_us = (s < 2 ? 2 : s) * US_PER_S;
	return 0;
}

static void wipe_conninfo(PQconninfoOption *options)
{
	if (options == NULL)
		return;
	for (PQconninfoOption *o = options; o->keyword != NULL; o++)
		if (o->val != NULL)
			mem_wipe(o->val, strlen(o->val));
	PQconninfoFree(options);
}

/* ---- what the URL leaves open */

static int add_session_options(struct pgtarget *t, const struct pgtarget_params *p, struct fault *f)
{
	const struct option *given = find_option(t, "options");
	struct buf b = BUF_INIT_SECRET(VALUE_MAX);
	/* No statement of ours runs for as long as compiling it would take. All of them go by a key or in the order of an index: the planner,
	 * without statistics of a table that grew a moment ago, would rather collect all of it by bitmaps and sort. And what is said to be
	 * committed must outlive a crash, whatever the default of the role or the database is: a journal's record is done then. */
	int rc = buf_puts(&b, "-c timezone=UTC -c jit=off -c enable_bitmapscan=off -c synchronous_commit=on");
	if (rc == 0 && p->statement_timeout_us > 0) {
		int64_t ms = p->statement_timeout_us / US_PER_MS;
		ms = ms > 0 ? ms : 1;
		/* Half for the lock, so that a blocked statement is told apart from a slow one. */
		rc = buf_printf(&b,
			" -c statement_timeout=%lld -c lock_timeout=%lld"
			" -c idle_in_transaction_session_timeout=%lld",
			(long long)ms, (long long)(ms / 2 > 0 ? ms / 2 : 1), (long long)ms + 1000);
	}
	if (rc == 0 && given != NULL)
		rc = buf_printf(&b, " %s", buf_str(&given->value)); /* last one wins */
	if (rc == 0)
		rc = set_option(t, "options", buf_str(&b), f);
	else
		(void)fault_set(f, rc, "database URL: options is longer than %u bytes", VALUE_MAX);
	buf_fini(&b);
	return rc;
}

static int add_defaults(struct pgtarget *t, const struct pgtarget_params *p, struct fault *f)
{
	static const char *const defaults[][2] = {
		{"gssencmode", "disable"},
		{"keepalives", "1"},
		{"keepalives_idle", "10"},
		{"keepalives_interval", "5"},
		{"keepalives_count", "3"},
		{"tcp_user_timeout", "15000"},
	};
	/* A host that went dark has a successor among the others: look sooner. */
	static const char *const among_several[][2] = {
		{"keepalives_idle", "5"},
		{"keepalives_interval", "2"},
		{"tcp_user_timeout", "5000"},
	};
	int rc = 0;
	for (size_t i = 0; rc == 0 && t->n_hosts > 1 && i < sizeof(among_several) / sizeof(among_several[0]); i++)
		rc = add_default(t, among_several[i][0], among_several[i][1], f);
	for (size_t i = 0; rc == 0 && i < sizeof(defaults) / sizeof(defaults[0]); i++)
		rc = add_default(t, defaults[i][0], defaults[i][1], f);
	if (rc == 0)
		rc = set_option(t, "client_encoding", "UTF8", f);
	if (rc == 0 && p->application_name != NULL)
		rc = add_default(t, "application_name", p->application_name, f);
	if (rc == 0 && t->n_hosts > 1) /* a standby is of no use to a writer */
		rc = add_default(t, "target_session_attrs", "read-write", f);
	if (rc == 0 && !p->pooler_transaction)
		rc = add_session_options(t, p, f);
	return rc;
}

static int parse(struct pgtarget *t, const struct pgtarget_params *p, struct fault *f)
{
	char *message = NULL;
	PQconninfoOption *given = PQconninfoParse(p->url, &message);
	if (message != NULL)
		PQfreemem(message); /* quotes parts of the URL: not ours to repeat */
	if (given == NULL)
		return fault_set(
			f, ST_SYNTAX, "database URL: neither a libpq URI nor a list of keyword=value");
	PQconninfoOption *defaults = PQconndefaults();
	ALWAYS(defaults != NULL);
	int rc = take_options(t, given, f);
	if (rc == 0)
		rc = set_hosts(t, value_of(given, defaults, "host"), value_of(given, defaults, "hostaddr"),
			value_of(given, defaults, "port"), f);
	if (rc == 0)
		rc = take_connect_timeout(t, f);
	if (rc == 0)
		rc = add_defaults(t, p, f);
	wipe_conninfo(given);
	wipe_conninfo(defaults);
	return rc;
}

int pgtarget_new(const struct pgtarget_params *p, struct pgtarget **out, struct fault *f)
{
	struct pgtarget *t = mem_alloc(sizeof(*t));
	t->magic = TARGET_MAGIC;
	int rc = parse(t, p, f);
	if (rc != 0) {
		pgtarget_free(t);
		return rc;
	}
	*out = t;
	return 0;
}

void pgtarget_free(struct pgtarget *t)
{
	if (t == NULL)
		return;
	MAGIC_CHECK(t, TARGET_MAGIC);
	for (unsigned i = 0; i < t->n_options; i++)
		buf_fini(&t->options[i].value);
	for (unsigned i = 0; i < t->n_hosts; i++) {
		mem_free(t->hosts[i].name);
		mem_free(t->hosts[i].address);
		mem_free(t->hosts[i].port);
	}
	t->magic = 0;
	mem_free(t);
}

unsigned pgtarget_hosts(const struct pgtarget *t)
{
	return t->n_hosts;
}

int64_t pgtarget_connect_timeout_us(const struct pgtarget *t)
{
	return t->connect_timeout_us;
}

/* ---- resolving */

static bool needs_lookup(const struct host *h)
{
	return h->address[0] == '\0' && h->name[0] != '\0' && h->name[0] != '/' && h->name[0] != '@';
}

struct triple {
	const char *host;
	const char *port;
	char address[NI_MAXHOST];
};

static unsigned gather(const struct pgtarget_query *q, struct triple *v)
{
	unsigned n = 0;
	for (unsigned i = 0; i < q->t->n_hosts; i++) {
		const struct host *h = &q->t->hosts[i];
		const struct resolver_addrs *a = &q->slots[i].addrs;
		if (!needs_lookup(h)) {
			snprintf(v[n].address, sizeof(v[n].address), "%s", h->address);
			v[n].host = h->name;
			v[n++].port = h->port;
			continue;
		}
		for (unsigned k = 0; k < a->n; k++) {
			if (getnameinfo((const struct sockaddr *)&a->addr[k], a->len[k], v[n].address,
				    sizeof(v[n].address), NULL, 0, NI_NUMERICHOST) != 0)
				continue;
			v[n].host = h->name;
			v[n++].port = h->port;
		}
	}
	return n;
}

static void append(struct buf *b, unsigned i, const char *s)
{
	ALWAYS((i == 0 || buf_putc(b, ',') == 0) && buf_puts(b, s) == 0);
}

static void answer_found(
	struct pgtarget_query *q, const struct triple *v, unsigned n, struct pgtarget_answer *a)
{
	const struct pgtarget *t = q->t;
	const char *keywords[OPTIONS_MAX + 4];
	const char *values[OPTIONS_MAX + 4];
	/* Bounded by the URL's own options: at most 16 hosts of 8 addresses. */
	struct buf hosts = BUF_INIT(4u * 1024 * 1024), addrs = hosts, ports = hosts;
	bool any_host = false, any_addr = false, any_port = false;
	for (unsigned i = 0; i < n; i++) {
		const struct triple *e = &v[(i + q->rotate) % n];
		append(&hosts, i, e->host);
		append(&addrs, i, e->address);
		append(&ports, i, e->port);
		any_host |= e->host[0] != '\0';
		any_addr |= e->address[0] != '\0';
		any_port |= e->port[0] != '\0';
	}
	unsigned k = 0;
	for (; k < t->n_options; k++) {
		keywords[k] = t->options[k].keyword;
		values[k] = buf_str(&t->options[k].value);
	}
	/* A list that is empty altogether means libpq's default, which is not the same as an empty element.
	 */
	keywords[k] = "host";
	values[k++] = any_host ? buf_str(&hosts) : NULL;
	keywords[k] = "hostaddr";
	values[k++] = any_addr ? buf_str(&addrs) : NULL;
	keywords[k] = "port";
	values[k++] = any_port ? buf_str(&ports) : NULL;
	keywords[k] = NULL;
	values[k] = NULL;
	a->keywords = keywords;
	a->values = values;
	q->fn(q->arg, a);
	buf_fini(&hosts);
	buf_fini(&addrs);
	buf_fini(&ports);
}

static void say_unresolved(const struct pgtarget *t, struct fault *f)
{
	char names[300] = "";
	size_t n = 0;
	for (unsigned i = 0; i < t->n_hosts && n < sizeof(names) - 1; i++) {
		int w = snprintf(names + n, sizeof(names) - n, "%s%s (%s)", i > 0 ? ", " : "",
			t->hosts[i].name, status_text(t->hosts[i].code));
		n += w > 0 ? (size_t)w : 0;
	}
	(void)fault_set(f, ST_UNAVAILABLE, "no database host has an address: %s", names);
}

static void finish(void *arg)
{
	struct pgtarget_query *q = arg;
	MAGIC_CHECK(q, QUERY_MAGIC);
	struct triple *v = mem_calloc(HOSTS_MAX * RESOLVER_MAX_ADDRS, sizeof(*v));
	struct pgtarget_answer a = {.code = 0};
	unsigned n = gather(q, v);
	if (n > 0) {
		answer_found(q, v, n, &a);
	} else {
		a.code = ST_UNAVAILABLE;
		say_unresolved(q->t, &a.why);
		q->fn(q->arg, &a);
	}
	mem_free(v);
	q->magic = 0;
	mem_free(q);
}

static void on_resolved(void *arg, int code, const struct resolver_addrs *addrs)
{
	struct slot *s = arg;
	struct pgtarget_query *q = s->q;
	MAGIC_CHECK(q, QUERY_MAGIC);
	s->rq = NULL;
	q->t->hosts[s - q->slots].code = code;
	if (code == 0)
		s->addrs = *addrs;
	if (--q->waiting == 0)
		loop_defer(q->loop, &q->task);
}

struct pgtarget_query *pgtarget_resolve(
	struct pgtarget *t, struct loop *l, struct resolver *r, unsigned rotate, pgtarget_fn *fn, void *arg)
{
	MAGIC_CHECK(t, TARGET_MAGIC);
	struct pgtarget_query *q = mem_alloc(sizeof(*q));
	q->magic = QUERY_MAGIC;
	q->t = t;
	q->loop = l;
	q->rotate = rotate;
	q->fn = fn;
	q->arg = arg;
	loop_task_init(&q->task, finish, q);
	for (unsigned i = 0; i < t->n_hosts; i++) {
		q->slots[i].q = q;
		if (!needs_lookup(&t->hosts[i]))
			continue;
		q->waiting++;
		q->slots[i].rq = resolver_lookup(r, t->hosts[i].name, on_resolved, &q->slots[i]);
	}
	if (q->waiting == 0)
		loop_defer(l, &q->task);
	return q;
}

void pgtarget_cancel(struct pgtarget_query *q)
{
	if (q == NULL)
		return;
	MAGIC_CHECK(q, QUERY_MAGIC);
	for (unsigned i = 0; i < q->t->n_hosts; i++)
		if (q->slots[i].rq != NULL)
			resolver_cancel(q->slots[i].rq);
	loop_undefer(q->loop, &q->task);
	q->magic = 0;
	mem_free(q);
}
