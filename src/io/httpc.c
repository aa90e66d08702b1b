/*
 * httpc - libcurl's multi_socket interface on the loop, and the life of a call around it.
 *
 * resolve -> add to the multi -> completion read once per turn. libcurl reports sockets and one timer;
 * its callbacks only register events, and libcurl is driven from the loop's callbacks alone, never from
 * within its own. A completion may start and cancel calls and free the client. Easy handles are
 * used again with the options that all calls share: a new one costs TLS resumption and some microseconds.
 */
#include "io/httpc.h"

#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/mem.h"
#include "base/sys.h"
#include "io/httpc_call.h"

#define HTTPC_MAGIC 0x68747063U
#define CALL_MAGIC 0x68747071U
#define MAX_POOLED 256
#define MIN_CURL 0x075801 /* 7.88.1 */
#define LAST_LOOK_US (50 * US_PER_MS)
#define MAX_STREAMS 1000L /* of one HTTP/2 connection; the peer has its own limit */

struct sock {
	struct httpc *httpc;
	struct event ev;
	struct sock *next, *prev;
};

struct httpc {
	unsigned magic;
	struct loop *loop;
	struct resolver *resolver;
	CURLM *multi;
	CURLSH *share;
	struct loop_timer *timer;
	struct loop_task drain;
	struct sock *socks;
	struct httpc_call *calls;
	unsigned n_calls, max_calls;
	CURL *pool[MAX_POOLED];
	unsigned n_pool;
	char *ca_file;
	struct httpc_call_env env;
	bool at_once; /* the timer is set, and due */
	bool draining, dead;
};

const char *httpc_error_word(enum httpc_error e)
{
	switch (e) {
#define X(id, word) \
	case id: \
		return word;
		HTTPC_ERROR_LIST(X)
#undef X
	}
	return "unknown";
}

unsigned httpc_in_flight(const struct httpc *h)
{
	return h->n_calls;
}

/* --- sockets and the timer */

/* An error here would leave every transfer undefined; only a broken call of ours or no memory gives one. */
static void act(struct httpc *h, curl_socket_t fd, int what)
{
	int running;
	ALWAYS(curl_multi_socket_action(h->multi, fd, what, &running) == CURLM_OK);
	FAILPOINT_DUE();
	loop_defer(h->loop, &h->drain);
}

static void on_socket_event(evutil_socket_t fd, short what, void *arg)
{
	struct sock *s = arg;
	struct httpc *h = s->httpc;
	MAGIC_CHECK(h, HTTPC_MAGIC);
	loop_enter(h->loop);
	act(h, fd, ((what & EV_READ) ? CURL_CSELECT_IN : 0) | ((what & EV_WRITE) ? CURL_CSELECT_OUT : 0));
}

static void on_timer(void *arg)
{
	struct httpc *h = arg;
	MAGIC_CHECK(h, HTTPC_MAGIC);
	h->at_once = false;
	act(h, CURL_SOCKET_TIMEOUT, 0);
}

static int on_curl_timer(CURLM *multi, long timeout_ms, void *arg)
{
	struct httpc *h = arg;
	(void)multi;
	/* Asked for with every request that is added, and one turn serves them all. */
	if (timeout_ms == 0 && h->at_once)
		return 0;
	h->at_once = timeout_ms == 0;
	if (timeout_ms < 0)
		loop_timer_stop(h->timer);
	else
		loop_timer_after(h->timer, (int64_t)timeout_ms * US_PER_MS);
	return 0;
}

static void sock_free(struct sock *s)
{
	event_del(&s->ev);
	*(s->prev != NULL ? &s->prev->next : &s->httpc->socks) = s->next;
	if (s->next != NULL)
		s->next->prev = s->prev;
	mem_free(s);
}

static struct sock *sock_new(struct httpc *h)
{
	struct sock *s = mem_alloc(sizeof *s);
	s->httpc = h;
	s->next = h->socks;
	if (s->next != NULL)
		s->next->prev = s;
	h->socks = s;
	return s;
}

static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *sock_arg)
{
	struct httpc *h = arg;
	struct sock *s = sock_arg;
	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		if (s != NULL)
			sock_free(s);
		ALWAYS(curl_multi_assign(h->multi, fd, NULL) == CURLM_OK);
		return 0;
	}
	if (s == NULL) {
		s = sock_new(h);
		ALWAYS(curl_multi_assign(h->multi, fd, s) == CURLM_OK);
	} else {
		event_del(&s->ev);
	}
	short events = EV_PERSIST;
	if (what & CURL_POLL_IN)
		events |= EV_READ;
	if (what & CURL_POLL_OUT)
		events |= EV_WRITE;
	ALWAYS(event_assign(&s->ev, loop_base(h->loop), fd, events, on_socket_event, s) == 0);
	ALWAYS(event_add(&s->ev, NULL) == 0);
	return 0;
}

/* --- calls */

static void call_link(struct httpc *h, struct httpc_call *c)
{
	c->next = h->calls;
	if (c->next != NULL)
		c->next->prev = c;
	h->calls = c;
	h->n_calls++;
}

static CURL *easy_take(struct httpc *h)
{
	if (h->n_pool > 0)
		return h->pool[--h->n_pool];
	CURL *easy = curl_easy_init();
	ALWAYS(easy != NULL);
	ALWAYS(curl_easy_setopt(easy, CURLOPT_SHARE, h->share) == CURLE_OK);
	ALWAYS(httpc_call_prepare(easy, &h->env) == 0);
	return easy;
}

static void easy_put(struct httpc *h, struct httpc_call *c)
{
	if (httpc_call_strip(c) && h->n_pool < MAX_POOLED)
		h->pool[h->n_pool++] = c->easy;
	else
		curl_easy_cleanup(c->easy);
	c->easy = NULL;
}

/* Take a call out of everything that could still touch it. */
static void call_detach(struct httpc_call *c)
{
	struct httpc *h = c->httpc;
	resolver_cancel(c->query);
	c->query = NULL;
	loop_timer_free(c->timer);
	c->timer = NULL;
	loop_undefer(h->loop, &c->ending);
	if (c->easy != NULL) {
		ALWAYS(curl_multi_remove_handle(h->multi, c->easy) == CURLM_OK);
		easy_put(h, c);
	}
	*(c->prev != NULL ? &c->prev->next : &h->calls) = c->next;
	if (c->next != NULL)
		c->next->prev = c->prev;
	c->next = NULL;
	c->prev = NULL;
	h->n_calls--;
}

/* The completion. The client may be gone afterwards. */
static void call_finish(struct httpc_call *c)
{
	call_detach(c);
	c->magic = 0;
	c->fn(c->arg, &c->reply);
	httpc_call_free(c);
}

static void call_fail(struct httpc_call *c, enum httpc_error error)
{
	c->reply.result = HTTPC_NEVER_SENT;
	c->reply.error = error;
	call_finish(c);
}

/*
 * The time for the answer is over. A process that was stopped, or whose machine slept, learns of that together with the answer that
 * came meanwhile, and that may be the only copy of a rotated token: so the sockets are looked at once more before the end. libcurl's
 * own timeout would drop it unread.
 */
static void on_timeout(void *arg)
{
	struct httpc_call *c = arg;
	MAGIC_CHECK(c, CALL_MAGIC);
	if (!c->overdue) {
		c->overdue = true;
		loop_timer_after(c->timer, LAST_LOOK_US);
		return;
	}
	loop_defer(c->httpc->loop, &c->ending); /* behind the completions of this turn */
}

static void on_ending(void *arg)
{
	struct httpc_call *c = arg;
	MAGIC_CHECK(c, CALL_MAGIC);
	httpc_call_judge(c, CURLE_OPERATION_TIMEDOUT);
	c->reply.duration_us = sys_mono_us() - c->run_mono_us;
	call_finish(c);
}

/* 0 once libcurl has the call. */
static int call_run(struct httpc_call *c)
{
	struct httpc *h = c->httpc;
	c->run_mono_us = sys_mono_us();
	c->reply.start_wall_us = sys_wall_us();
	c->easy = easy_take(h);
	int rc = httpc_call_setup(c, &h->env);
	if (rc == 0 && curl_easy_setopt(c->easy, CURLOPT_PRIVATE, c) == CURLE_OK &&
		curl_multi_add_handle(h->multi, c->easy) == CURLM_OK) {
		c->timer = loop_timer_new(h->loop, on_timeout, c);
		loop_timer_at(c->timer, c->start_mono_us + c->timeout_us);
		return 0;
	}
	easy_put(h, c);
	return ST_INVALID;
}

static void on_resolved(void *arg, int code, const struct resolver_addrs *addrs)
{
	struct httpc_call *c = arg;
	MAGIC_CHECK(c, CALL_MAGIC);
	c->query = NULL;
	if (code != 0) {
		call_fail(c, HTTPC_E_RESOLVE);
		return;
	}
	loop_timer_free(c->timer);
	c->timer = NULL;
	if (sys_mono_us() - c->start_mono_us >= c->timeout_us) {
		call_fail(c, HTTPC_E_TIMEOUT);
		return;
	}
	httpc_call_pin(c, addrs);
	if (call_run(c) != 0)
		call_fail(c, HTTPC_E_INTERNAL);
}

static void on_resolve_timeout(void *arg)
{
	struct httpc_call *c = arg;
	MAGIC_CHECK(c, CALL_MAGIC);
	call_fail(c, HTTPC_E_TIMEOUT);
}

/* Only a call that failed to start at once comes here with neither a query nor a handle. */
static int call_start(struct httpc_call *c, struct fault *f)
{
	struct httpc *h = c->httpc;
	const struct resolver_addrs *cached = NULL;
	if (!c->url->parts.host_is_ip)
		cached = resolver_cached(h->resolver, c->url->parts.host);
	if (cached != NULL)
		httpc_call_pin(c, cached);
	if (c->url->parts.host_is_ip || cached != NULL)
		return call_run(c) == 0 ? 0 : fault_set(f, ST_INVALID, "libcurl does not take this request");
	c->reply.start_wall_us = sys_wall_us();
	c->timer = loop_timer_new(h->loop, on_resolve_timeout, c);
	loop_timer_after(c->timer, c->timeout_us);
	c->query = resolver_lookup(h->resolver, c->url->parts.host, on_resolved, c);
	return 0;
}

int httpc_start(struct httpc *h, const struct httpc_request *req, httpc_fn *fn, void *arg,
	struct httpc_call **out, struct fault *f)
{
	struct httpc_call *c;
	MAGIC_CHECK(h, HTTPC_MAGIC);
	ALWAYS(!h->dead);
	if (h->n_calls >= h->max_calls)
		return fault_set(f, ST_FULL, "%u requests are in flight", h->n_calls);
	int rc = httpc_call_new(req, &h->env, &c, f);
	if (rc != 0)
		return rc;
	c->magic = CALL_MAGIC;
	c->httpc = h;
	c->fn = fn;
	c->arg = arg;
	c->start_mono_us = sys_mono_us();
	loop_task_init(&c->ending, on_ending, c);
	call_link(h, c);
	rc = call_start(c, f);
	if (rc != 0) {
		if (req->body != NULL)
			buf_move(req->body, &c->body);
		call_detach(c);
		httpc_call_free(c);
		return rc;
	}
	*out = c;
	return 0;
}

void httpc_cancel(struct httpc_call *c)
{
	if (c == NULL)
		return;
	MAGIC_CHECK(c, CALL_MAGIC);
	call_detach(c);
	httpc_call_free(c);
}

/* --- completions */

static void on_drain(void *arg)
{
	struct httpc *h = arg;
	MAGIC_CHECK(h, HTTPC_MAGIC);
	CURLMsg *msg;
	int left;
	h->draining = true;
	while (!h->dead && (msg = curl_multi_info_read(h->multi, &left)) != NULL) {
		if (msg->msg != CURLMSG_DONE)
			continue;
		CURLcode rc = msg->data.result;
		char *private = NULL;
		ALWAYS(curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &private) == CURLE_OK);
		struct httpc_call *c = (struct httpc_call *)(void *)private;
		MAGIC_CHECK(c, CALL_MAGIC);
		httpc_call_judge(c, rc);
		call_finish(c);
	}
	h->draining = false;
	if (h->dead)
		mem_free(h);
}

/* --- the client */

static int find_ca(const char *asked, char **out, struct fault *f)
{
	static const char *const usual[] = { "/etc/ssl/certs/ca-certificates.crt",
		"/etc/pki/tls/certs/ca-bundle.crt",
		"/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem" };
	const char *found = NULL;
	if (asked != NULL) {
		if (access(asked, R_OK) != 0)
			return fault_set(f, ST_NOT_FOUND, "CA bundle %s: cannot be read", asked);
		found = asked;
	}
	for (size_t i = 0; found == NULL && i < sizeof usual / sizeof usual[0]; i++) {
		if (access(usual[i], R_OK) == 0)
			found = usual[i];
	}
	if (found == NULL)
		return fault_set(f, ST_NOT_FOUND, "no CA bundle found (%s and others)", usual[0]);
	*out = mem_strdup(found);
	return 0;
}

static void multi_new(struct httpc *h, const struct httpc_params *p)
{
	h->multi = curl_multi_init();
	h->share = curl_share_init();
	ALWAYS(h->multi != NULL && h->share != NULL);
	ALWAYS(curl_share_setopt(h->share, CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION) == CURLSHE_OK);
	bool ok = curl_multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket) == CURLM_OK;
	ok = ok && curl_multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h) == CURLM_OK;
	ok = ok && curl_multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer) == CURLM_OK;
	ok = ok && curl_multi_setopt(h->multi, CURLMOPT_TIMERDATA, h) == CURLM_OK;
	ok = ok && curl_multi_setopt(h->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_MULTIPLEX) == CURLM_OK;
	ok = ok && curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, (long)h->max_calls) == CURLM_OK;
	ok = ok && curl_multi_setopt(h->multi, CURLMOPT_MAX_CONCURRENT_STREAMS, MAX_STREAMS) == CURLM_OK;
	ok = ok && curl_multi_setopt(h->multi, CURLMOPT_MAX_HOST_CONNECTIONS,
			   (long)p->max_host_streams) == CURLM_OK;
	ALWAYS(ok);
}

static long seconds_of(int64_t us)
{
	return us <= 0 ? 0 : (long)((us + US_PER_S - 1) / US_PER_S);
}

static char no_expect[] = "Expect:"; /* libcurl's way to leave out a header of its own */

int httpc_new(struct loop *l, struct resolver *r, const struct httpc_params *p, struct httpc **out,
	struct fault *f)
{
	char *ca_file = NULL;
	if (p->max_connections == 0 || p->user_agent == NULL || p->user_agent[0] == '\0')
		return fault_set(f, ST_INVALID, "an HTTP client needs a number of connections and a user agent");
	int rc = find_ca(p->ca_file, &ca_file, f);
	if (rc != 0)
		return rc;
	/* libcurl writes the keys of every TLS session to this file. It looks once, in its global set-up. */
	unsetenv("SSLKEYLOGFILE");
	ALWAYS(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK);
	const curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);
	if (v->version_num < MIN_CURL) {
		rc = fault_set(f, ST_VERSION, "libcurl %s is too old, 7.88.1 is needed", v->version);
		mem_free(ca_file);
		curl_global_cleanup();
		return rc;
	}
	struct httpc *h = mem_alloc(sizeof *h);
	h->magic = HTTPC_MAGIC;
	h->loop = l;
	h->resolver = r;
	h->max_calls = p->max_connections;
	h->ca_file = ca_file;
	h->env.ca_file = h->ca_file;
	h->env.user_agent = (struct curl_slist){ .data = mem_printf("User-Agent: %s", p->user_agent), .next = &h->env.no_expect };
	h->env.no_expect = (struct curl_slist){ .data = no_expect };
	h->env.max_idle_s = seconds_of(p->idle_timeout_us);
	h->env.max_lifetime_s = seconds_of(p->max_lifetime_us);
	h->timer = loop_timer_new(l, on_timer, h);
	loop_task_init(&h->drain, on_drain, h);
	multi_new(h, p);
	*out = h;
	return 0;
}

void httpc_free(struct httpc *h)
{
	if (h == NULL)
		return;
	MAGIC_CHECK(h, HTTPC_MAGIC);
	while (h->calls != NULL)
		httpc_cancel(h->calls);
	while (h->n_pool > 0)
		curl_easy_cleanup(h->pool[--h->n_pool]);
	ALWAYS(curl_multi_cleanup(h->multi) == CURLM_OK);
	ALWAYS(curl_share_cleanup(h->share) == CURLSHE_OK);
	curl_global_cleanup();
	while (h->socks != NULL)
		sock_free(h->socks);
	loop_timer_free(h->timer);
	loop_undefer(h->loop, &h->drain);
	mem_free(h->ca_file);
	mem_free(h->env.user_agent.data);
	httpc_urls_fini(&h->env.urls);
	h->magic = 0;
	h->dead = true;
	if (!h->draining)
		mem_free(h);
}
