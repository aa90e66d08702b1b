/*
 * fake_httpc - io/httpc.h with scripted answers: no sockets.
 *
 * Every accepted request asks the test's callback at once what will be answered and when; the completion then
 * comes from a timer of the (virtual) loop, never later than the request's own timeout.
 */
#include "sim/fake.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define HTTPC_MAGIC UINT32_C(0x666b6874)
#define CALL_MAGIC UINT32_C(0x666b636c)

struct httpc_call {
	uint32_t magic;
	struct httpc *owner;
	struct loop_timer *timer;
	struct httpc_reply reply;
	httpc_fn *fn;
	void *arg;
	struct httpc_call *next, *prev;
};

struct httpc {
	uint32_t magic;
	struct loop *loop;
	unsigned max_connections, in_flight, peak, started;
	struct httpc_call *calls;
	fake_answer_fn *answer;
	void *answer_arg;
};

const char *httpc_error_word(enum httpc_error e)
{
	switch (e) {
#define X(id, word)                                                                                          \
	case id:                                                                                             \
		return word;
		HTTPC_ERROR_LIST(X)
#undef X
	}
	return "unknown";
}

int httpc_new(
	struct loop *l, struct resolver *r, const struct httpc_params *p, struct httpc **out, struct fault *f)
{
	(void)r;
	if (p->max_connections == 0)
		return fault_set(f, ST_RANGE, "max_connections is 0");
	struct httpc *h = mem_alloc(sizeof *h);
	h->magic = HTTPC_MAGIC;
	h->loop = l;
	h->max_connections = p->max_connections;
	*out = h;
	return 0;
}

/* The callback below may free the client: nothing of it is touched afterwards. */
static void call_free(struct httpc_call *c)
{
	if (c->next != NULL)
		c->next->prev = c->prev;
	if (c->prev != NULL)
		c->prev->next = c->next;
	else
		c->owner->calls = c->next;
	c->owner->in_flight--;
	loop_timer_free(c->timer);
	buf_fini(&c->reply.body);
	c->magic = 0;
	mem_free(c);
}

void httpc_free(struct httpc *h)
{
	if (h == NULL)
		return;
	MAGIC_CHECK(h, HTTPC_MAGIC);
	while (h->calls != NULL)
		call_free(h->calls);
	h->magic = 0;
	mem_free(h);
}

unsigned httpc_in_flight(const struct httpc *h)
{
	MAGIC_CHECK(h, HTTPC_MAGIC);
	return h->in_flight;
}

static void on_timer(void *arg)
{
	struct httpc_call *c = arg;
	MAGIC_CHECK(c, CALL_MAGIC);
	httpc_fn *fn = c->fn;
	void *fn_arg = c->arg;
	struct httpc_reply r = c->reply;
	buf_init_secret(&c->reply.body, 0);
	call_free(c);
	fn(fn_arg, &r);
	buf_fini(&r.body);
}

static bool header_is_clean(const char *s)
{
	return s != NULL && strpbrk(s, "\r\n") == NULL;
}

static int check(const struct httpc_request *q, struct fault *f)
{
	if (strcmp(q->method, "POST") != 0 && strcmp(q->method, "GET") != 0)
		return fault_set(f, ST_INVALID, "method %s", q->method);
	bool https = strncmp(q->url, "https://", 8) == 0;
	if (!https && !(q->allow_http && strncmp(q->url, "http://", 7) == 0))
		return fault_set(f, ST_INVALID, "the URL is not https");
	for (size_t i = 0; i < q->n_headers; i++) {
		if (!header_is_clean(q->headers[i].name) || !header_is_clean(q->headers[i].value))
			return fault_set(f, ST_INVALID, "header %zu", i + 1);
	}
	ALWAYS(q->timeout_us > 0 && q->max_reply_bytes > 0);
	return 0;
}

static bool address_is_allowed(const struct httpc_request *q, const char *address)
{
	if (address == NULL || q->addr_allowed == NULL)
		return true;
	struct sockaddr_in v4 = {.sin_family = AF_INET};
	if (inet_pton(AF_INET, address, &v4.sin_addr) == 1)
		return q->addr_allowed((const struct sockaddr *)&v4, q->addr_arg);
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
	ALWAYS(inet_pton(AF_INET6, address, &v6.sin6_addr) == 1);
	return q->addr_allowed((const struct sockaddr *)&v6, q->addr_arg);
}

static void copy_word(char *to, size_t cap, const char *from)
{
	if (from != NULL && strlen(from) < cap)
		memcpy(to, from, strlen(from) + 1);
}

static void fill_reply(struct httpc_reply *r, const struct httpc_request *q, const struct fake_answer *a)
{
	*r = (struct httpc_reply){.result = a->result, .error = a->error, .status = a->status};
	buf_init_secret(&r->body, q->max_reply_bytes);
	copy_word(r->content_type, sizeof r->content_type, a->content_type);
	copy_word(r->retry_after, sizeof r->retry_after, a->retry_after);
	r->start_wall_us = sys_wall_us();
	r->duration_us = a->after_us;
	if (a->body != NULL &&
		buf_set(&r->body, a->body, a->body_len > 0 ? a->body_len : strlen(a->body)) != 0) {
		r->result = HTTPC_CUT;
		r->error = HTTPC_E_TOO_LARGE;
	}
}

static int ask(struct httpc *h, const struct httpc_request *q, struct fake_answer *a)
{
	struct fake_request seen = {
		.httpc = h,
		.number = h->started + 1,
		.method = q->method,
		.url = q->url,
		.headers = q->headers,
		.n_headers = q->n_headers,
		.body = q->body != NULL ? buf_str(q->body) : "",
		.body_len = q->body != NULL ? q->body->len : 0,
		.timeout_us = q->timeout_us,
		.request = q,
	};
	*a = (struct fake_answer){.result = HTTPC_COMPLETE, .status = 200, .after_us = US_PER_MS};
	if (h->answer != NULL)
		h->answer(h->answer_arg, &seen, a);
	if (a->start_code != 0)
		return a->start_code;
	if (!address_is_allowed(q, a->address)) {
		*a = (struct fake_answer){
			.result = HTTPC_NEVER_SENT, .error = HTTPC_E_REFUSED_ADDR, .after_us = 1};
	} else if (a->hang || a->after_us > q->timeout_us) {
		*a = (struct fake_answer){
			.result = HTTPC_CUT, .error = HTTPC_E_TIMEOUT, .after_us = q->timeout_us};
	}
	ALWAYS(a->after_us >= 0);
	return 0;
}

int httpc_start(struct httpc *h, const struct httpc_request *req, httpc_fn *fn, void *arg,
	struct httpc_call **out, struct fault *f)
{
	MAGIC_CHECK(h, HTTPC_MAGIC);
	int e = check(req, f);
	if (e != 0)
		return e;
	if (h->in_flight == h->max_connections)
		return fault_set(f, ST_FULL, "%u requests are in flight", h->in_flight);
	struct fake_answer a;
	e = ask(h, req, &a);
	if (e != 0)
		return fault_set(f, e, "the test says so");

	struct httpc_call *c = mem_alloc(sizeof *c);
	c->magic = CALL_MAGIC;
	c->owner = h;
	c->fn = fn;
	c->arg = arg;
	fill_reply(&c->reply, req, &a);
	c->next = h->calls;
	if (c->next != NULL)
		c->next->prev = c;
	h->calls = c;
	h->started++;
	if (++h->in_flight > h->peak)
		h->peak = h->in_flight;
	c->timer = loop_timer_new(h->loop, on_timer, c);
	loop_timer_after(c->timer, a.after_us);
	if (req->body != NULL) {
		size_t max = req->body->max;
		bool secret = req->body->secret;
		buf_fini(req->body);
		if (secret)
			buf_init_secret(req->body, max);
		else
			buf_init(req->body, max);
	}
	*out = c;
	return 0;
}

void httpc_cancel(struct httpc_call *c)
{
	MAGIC_CHECK(c, CALL_MAGIC);
	call_free(c);
}

const char *fake_request_header(const struct fake_request *q, const char *name)
{
	for (size_t i = 0; i < q->n_headers; i++) {
		if (strcasecmp(q->headers[i].name, name) == 0)
			return q->headers[i].value;
	}
	return NULL;
}

void fake_httpc_on_request(struct httpc *h, fake_answer_fn *fn, void *arg)
{
	MAGIC_CHECK(h, HTTPC_MAGIC);
	h->answer = fn;
	h->answer_arg = arg;
}

unsigned fake_httpc_started(const struct httpc *h)
{
	MAGIC_CHECK(h, HTTPC_MAGIC);
	return h->started;
}

unsigned fake_httpc_peak(const struct httpc *h)
{
	MAGIC_CHECK(h, HTTPC_MAGIC);
	return h->peak;
}
