/*
 * The HTTP client against peers that break things at exact places, on the same loop: what was presented
 * and how often, what is an answer and what is not, and that nothing ever holds up the loop.
 */
#include "unit/unit.h"

#include <arpa/inet.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/sys.h"
#include "integration/tlspeer.h"
#include "io/httpc.h"
#include "io/httpc_call.h"
#include "io/loop.h"
#include "io/resolver.h"

#define BODY "grant_type=refresh_token&refresh_token=RT-1"

static struct loop *l;
static struct resolver *r;
static struct httpc *h;
static struct tlspeer_ca *ca;
static struct tlspeer *peer, *plain;
static int silent_dns;
static char resolv_conf[64], hosts_file[64];
static int64_t longest_us;

static void on_stall(int64_t us, void *arg)
{
	(void)arg;
	if (us > longest_us)
		longest_us = us;
}

static void write_file(char *path, const char *what, const char *text)
{
	snprintf(path, 64, "/tmp/httpc-%s-XXXXXX", what);
	int fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

/* A name server that is there and says nothing. */
static void start_silent_dns(void)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof sin;
	char text[64];
	silent_dns = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ck_ok(bind(silent_dns, (struct sockaddr *)&sin, sizeof sin));
	ck_ok(getsockname(silent_dns, (struct sockaddr *)&sin, &len));
	snprintf(text, sizeof text, "nameserver 127.0.0.1:%u\n", ntohs(sin.sin_port));
	write_file(resolv_conf, "conf", text);
	write_file(hosts_file, "hosts", "127.0.0.1 good.test wrong.test\n127.0.0.2 two.test\n127.0.0.1 two.test\n");
}

static void client_start(unsigned max)
{
	struct fault f;
	struct httpc_params p = { .max_connections = max, .ca_file = tlspeer_ca_file(ca), .user_agent = "refreshd-test",
		.idle_timeout_us = 60 * US_PER_S, .max_lifetime_us = 600 * US_PER_S };
	int rc = httpc_new(l, r, &p, &h, &f);
	ck_assert_msg(rc == 0, "%s", f.text);
}

static void setup(void)
{
	struct fault f;
	ck_ok(loop_new(&l, &f));
	ca = tlspeer_ca_new();
	start_silent_dns();
	struct resolver_params rp = { .resolv_conf = resolv_conf, .hosts_file = hosts_file, .timeout_us = 5 * US_PER_S };
	ck_ok(resolver_new(l, &rp, &r, &f));
	peer = tlspeer_new(l, &(struct tlspeer_opts){ .ca = ca, .name = "good.test" });
	plain = tlspeer_new(l, &(struct tlspeer_opts){ .ca = NULL });
	client_start(400);
	longest_us = 0;
	loop_on_stall(l, on_stall, NULL);
}

static void teardown(void)
{
	httpc_free(h);
	h = NULL;
	tlspeer_free(peer);
	tlspeer_free(plain);
	resolver_free(r);
	tlspeer_ca_free(ca);
	loop_free(l);
	close(silent_dns);
	unlink(resolv_conf);
	unlink(hosts_file);
}

/* --- asking */

struct outcome {
	int calls;
	struct httpc_reply r; /* without its body */
	char body[256];
	size_t body_len;
	struct httpc_call *call;
};

static void on_done(void *arg, struct httpc_reply *reply)
{
	struct outcome *o = arg;
	o->calls++;
	o->call = NULL;
	o->r = *reply;
	o->body_len = reply->body.len;
	ck_assert(reply->body.secret);
	snprintf(o->body, sizeof o->body, "%s", buf_str(&reply->body));
}

struct ask {
	const char *scheme, *host, *path, *method, *body;
	struct tlspeer *to;
	uint16_t port; /* 0: that of `to` */
	struct httpc_request req;
};

static struct ask ask_of(const char *path)
{
	return (struct ask){ .scheme = "https", .host = "good.test", .path = path, .method = "POST", .body = BODY, .to = peer,
		.req = { .timeout_us = 10 * US_PER_S, .connect_timeout_us = 5 * US_PER_S, .max_reply_bytes = 64 << 10 } };
}

static int try_start(struct outcome *o, struct ask *a, struct fault *f)
{
	char url[256];
	struct buf body;
	snprintf(url, sizeof url, "%s://%s:%u%s", a->scheme, a->host, a->port != 0 ? a->port : tlspeer_port(a->to), a->path);
	buf_init_secret(&body, 4096);
	memset(o, 0, sizeof *o);
	a->req.url = url;
	a->req.method = a->method;
	if (a->body != NULL) {
		ck_ok(buf_puts(&body, a->body));
		a->req.body = &body;
	}
	int rc = httpc_start(h, &a->req, on_done, o, &o->call, f);
	/* Moved on success, left on failure. */
	ck_assert_uint_eq(body.len, rc != 0 && a->body != NULL ? strlen(a->body) : 0);
	ck_assert_int_eq(o->calls, 0);
	buf_fini(&body);
	return rc;
}

static void start(struct outcome *o, struct ask a)
{
	struct fault f = { .text = "" };
	int rc = try_start(o, &a, &f);
	ck_assert_msg(rc == 0, "%s", f.text);
}

static void wait_for(const int *counter, int value)
{
	int64_t deadline = sys_mono_us() + 60 * US_PER_S;
	while (*counter < value) {
		ck_assert_int_lt(sys_mono_us(), deadline);
		loop_once(l, 100 * US_PER_MS);
	}
}

static struct outcome fetch(struct ask a)
{
	struct outcome o;
	start(&o, a);
	wait_for(&o.calls, 1);
	return o;
}

static void expect(struct outcome o, enum httpc_result result, enum httpc_error error, int status)
{
	static const char *const words[] = { "complete", "never sent", "cut" };
	ck_assert_msg(o.r.result == result && o.r.error == error && o.r.status == status, "%s, %s, status %d, body \"%s\"",
		words[o.r.result], httpc_error_word(o.r.error), o.r.status, o.body);
}

static void expect_ok(struct outcome o)
{
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 200);
	ck_assert_str_eq(o.body, "{\"ok\": true}\n");
}

static struct tlspeer *swap_peer(const struct tlspeer_opts *o)
{
	tlspeer_free(peer);
	peer = tlspeer_new(l, o);
	return peer;
}

/* --- what is an answer */

START_TEST(a_whole_answer_and_what_goes_out)
{
	struct httpc_header headers[] = { { "Authorization", "Basic c2VjcmV0" }, { "X-Empty", "" },
		{ "Content-Type", "application/x-www-form-urlencoded" } };
	struct ask a = ask_of("/ok?a=b");
	a.req.headers = headers;
	a.req.n_headers = 3;
	int64_t before = sys_wall_us();
	struct outcome o = fetch(a);
	expect_ok(o);
	ck_assert_str_eq(o.r.content_type, "application/json");
	ck_assert_str_eq(o.r.retry_after, "");
	ck_assert(!o.r.reused_connection);
	ck_assert_int_ge(o.r.start_wall_us, before);
	ck_assert_int_gt(o.r.connect_us, 0);
	ck_assert_int_ge(o.r.duration_us, o.r.connect_us / 2);
	const char *last = tlspeer_seen(peer)->last;
	ck_assert_ptr_eq(strstr(last, "POST /ok?a=b HTTP/1.1\r\n"), last);
	ck_assert_ptr_nonnull(strstr(last, "\r\nAuthorization: Basic c2VjcmV0\r\n"));
	ck_assert_ptr_nonnull(strstr(last, "\r\nX-Empty:\r\n"));
	ck_assert_ptr_nonnull(strstr(last, "\r\nUser-Agent: refreshd-test\r\n"));
	ck_assert_ptr_nonnull(strstr(last, "\r\n\r\n" BODY));
	ck_assert_ptr_null(strstr(last, "Expect"));
	ck_assert_ptr_null(strstr(last, "Accept-Encoding"));
	ck_assert_ptr_null(strstr(last, "chunked"));
	o = fetch(ask_of("/ok"));
	expect_ok(o);
	ck_assert(o.r.reused_connection);
	ck_assert_int_eq(o.r.connect_us, 0);
	ck_assert_int_eq(tlspeer_seen(peer)->connections, 1);
	ck_assert_uint_eq(httpc_in_flight(h), 0);
}
END_TEST

START_TEST(statuses_and_the_two_headers_are_told)
{
	struct outcome o = fetch(ask_of("/later"));
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 429);
	ck_assert_str_eq(o.r.retry_after, "120");
	o = fetch(ask_of("/odd"));
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 200);
	ck_assert_str_eq(o.r.content_type, "");
	o = fetch(ask_of("/moved"));
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 307);
	ck_assert_ptr_nonnull(strstr(tlspeer_seen(peer)->last, "/moved"));
	/* Interim answers are no answers, and a trailer is no header. */
	o = fetch(ask_of("/continue"));
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 201);
	ck_assert_str_eq(o.body, "hi");
	ck_assert_str_eq(o.r.retry_after, "");
	o = fetch(ask_of("/chunked"));
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 200);
	ck_assert_str_eq(o.body, "abcdefg");
	ck_assert_str_eq(o.r.retry_after, "");
	o = fetch(ask_of("/gzip"));
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 200);
	ck_assert_uint_eq(o.body_len, 4);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 6);
}
END_TEST

START_TEST(a_get_and_an_empty_post_work)
{
	struct ask a = ask_of("/ok");
	a.method = "GET";
	a.body = NULL;
	expect_ok(fetch(a));
	ck_assert_ptr_eq(strstr(tlspeer_seen(peer)->last, "GET /ok "), tlspeer_seen(peer)->last);
	a.method = "POST";
	expect_ok(fetch(a));
	ck_assert_ptr_nonnull(strstr(tlspeer_seen(peer)->last, "\r\nContent-Length: 0\r\n"));
	a.body = "";
	expect_ok(fetch(a));
}
END_TEST

START_TEST(half_an_answer_is_kept_but_is_no_answer)
{
	struct outcome o = fetch(ask_of("/partial"));
	expect(o, HTTPC_CUT, HTTPC_E_CLOSED, 200);
	ck_assert_str_eq(o.body, "half");
	o = fetch(ask_of("/chunked-cut"));
	expect(o, HTTPC_CUT, HTTPC_E_CLOSED, 200);
	ck_assert_str_eq(o.body, "abcde");
	/* Without a length the end of the connection is the end of the body, as servers do not always end
	 * TLS properly: who reads it has to tell a whole one from a cut one. */
	o = fetch(ask_of("/until-close"));
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 200);
	ck_assert_str_eq(o.body, "all of it");
	expect(fetch(ask_of("/headers-cut")), HTTPC_CUT, HTTPC_E_PROTOCOL, 200);
	expect(fetch(ask_of("/continue-cut")), HTTPC_CUT, HTTPC_E_CLOSED, 0);
	expect(fetch(ask_of("/nine")), HTTPC_CUT, HTTPC_E_PROTOCOL, 0);
}
END_TEST

START_TEST(an_answer_that_is_too_large_is_cut)
{
	struct outcome o = fetch(ask_of("/big"));
	expect(o, HTTPC_CUT, HTTPC_E_TOO_LARGE, 200);
	ck_assert_uint_le(o.body_len, 64 << 10);
	expect(fetch(ask_of("/big-header")), HTTPC_CUT, HTTPC_E_TOO_LARGE, 200);
	struct ask a = ask_of("/big");
	a.req.max_reply_bytes = 100000;
	o = fetch(a);
	expect(o, HTTPC_COMPLETE, HTTPC_E_NONE, 200);
	ck_assert_uint_eq(o.body_len, 100000);
}
END_TEST

/* --- presented once */

START_TEST(a_kept_connection_that_dies_presents_the_body_once)
{
	expect_ok(fetch(ask_of("/ok")));
	struct outcome o = fetch(ask_of("/die"));
	expect(o, HTTPC_CUT, HTTPC_E_CLOSED, 0);
	ck_assert(o.r.reused_connection);
	for (int i = 0; i < 10; i++)
		loop_once(l, 10 * US_PER_MS);
	/* libcurl opens a second connection before it finds that it cannot rewind: nothing is said on it. */
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 2);
	ck_assert_int_eq(o.calls, 1);
}
END_TEST

START_TEST(a_fresh_connection_that_dies_presents_the_body_once)
{
	struct outcome o = fetch(ask_of("/die"));
	expect(o, HTTPC_CUT, HTTPC_E_CLOSED, 0);
	ck_assert(!o.r.reused_connection);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 1);
	expect_ok(fetch(ask_of("/ok")));
	struct ask a = ask_of("/die");
	a.req.fresh_connection = true;
	o = fetch(a);
	expect(o, HTTPC_CUT, HTTPC_E_CLOSED, 0);
	ck_assert(!o.r.reused_connection);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 3);
}
END_TEST

START_TEST(a_request_without_a_body_is_not_sent_again_either)
{
	struct ask a = ask_of("/ok");
	a.method = "GET";
	a.body = NULL;
	expect_ok(fetch(a));
	a.path = "/die";
	expect(fetch(a), HTTPC_CUT, HTTPC_E_CLOSED, 0);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 2);
}
END_TEST

START_TEST(a_kept_connection_that_was_closed_is_not_used)
{
	expect_ok(fetch(ask_of("/ok")));
	tlspeer_close_idle(peer);
	loop_once(l, 10 * US_PER_MS);
	struct outcome o = fetch(ask_of("/ok"));
	expect_ok(o);
	ck_assert(!o.r.reused_connection);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 2);
}
END_TEST

START_TEST(http2_answers_and_is_shared)
{
	struct outcome o[20];
	swap_peer(&(struct tlspeer_opts){ .ca = ca, .name = "good.test", .h2 = "ok" });
	for (int i = 0; i < 20; i++)
		start(&o[i], ask_of("/any"));
	for (int i = 0; i < 20; i++) {
		wait_for(&o[i].calls, 1);
		expect_ok(o[i]);
	}
	ck_assert_int_eq(tlspeer_seen(peer)->connections, 1);
}
END_TEST

START_TEST(an_http2_answer_before_the_body_is_an_answer)
{
	/* libcurl 7.88 ends some of these with error 92 although everything has arrived. */
	swap_peer(&(struct tlspeer_opts){ .ca = ca, .name = "good.test", .h2 = "early" });
	for (int i = 0; i < 30; i++)
		expect_ok(fetch(ask_of("/any")));
}
END_TEST

START_TEST(an_http2_stream_that_is_reset_is_cut)
{
	swap_peer(&(struct tlspeer_opts){ .ca = ca, .name = "good.test", .h2 = "reset" });
	struct outcome o = fetch(ask_of("/any"));
	/* Whether the status was seen depends on how the frames arrive. */
	expect(o, HTTPC_CUT, HTTPC_E_PROTOCOL, o.r.status);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 1);
}
END_TEST

static void expect_h2_presented_once(const char *second)
{
	swap_peer(&(struct tlspeer_opts){ .ca = ca, .name = "good.test", .h2 = second });
	expect_ok(fetch(ask_of("/any")));
	struct outcome o = fetch(ask_of("/any"));
	expect(o, HTTPC_CUT, HTTPC_E_CLOSED, 0);
	ck_assert(o.r.reused_connection);
	for (int i = 0; i < 10; i++)
		loop_once(l, 10 * US_PER_MS);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 2);
	ck_assert_int_eq(tlspeer_seen(peer)->bodies, 2);
}

START_TEST(http2_presents_the_body_once_too)
{
	expect_h2_presented_once("die");
	expect_h2_presented_once("refuse");
}
END_TEST

/* --- time */

START_TEST(a_hanging_name_server_never_holds_up_the_loop)
{
	enum { N = 40 };
	static struct outcome o[N];
	static char host[N][32];
	int64_t began = sys_mono_us();
	expect_ok(fetch(ask_of("/ok"))); /* the first one reads the roots */
	longest_us = 0;
	for (int i = 0; i < N; i++) {
		struct ask a = ask_of("/ok");
		snprintf(host[i], sizeof host[i], "hang%d.test", i);
		a.host = host[i];
		a.req.timeout_us = 500 * US_PER_MS;
		start(&o[i], a);
	}
	expect_ok(fetch(ask_of("/ok")));
	for (int i = 0; i < N; i++) {
		wait_for(&o[i].calls, 1);
		expect(o[i], HTTPC_NEVER_SENT, HTTPC_E_TIMEOUT, 0);
	}
	ck_assert_int_ge(sys_mono_us() - began, 500 * US_PER_MS);
	ck_assert_int_lt(sys_mono_us() - began, 4 * US_PER_S);
	ck_assert_int_lt(longest_us, 100 * US_PER_MS);
}
END_TEST

START_TEST(a_peer_that_hangs_is_cut_at_the_timeout)
{
	struct ask a = ask_of("/hang");
	a.req.timeout_us = 300 * US_PER_MS;
	int64_t began = sys_mono_us();
	expect(fetch(a), HTTPC_CUT, HTTPC_E_TIMEOUT, 0);
	ck_assert_int_ge(sys_mono_us() - began, 290 * US_PER_MS);
	ck_assert_int_lt(sys_mono_us() - began, 3 * US_PER_S);
}
END_TEST

/* As after SIGSTOP, or when the machine slept: the answer came in time, and nobody looked until the time was over. */
START_TEST(an_answer_in_the_socket_counts_when_the_time_is_over)
{
	for (int tls = 0; tls < 2; tls++) {
		struct ask a = ask_of("/hold");
		struct outcome o;
		a.to = tls ? peer : plain;
		a.scheme = tls ? "https" : "http";
		a.req.allow_http = !tls;
		a.req.timeout_us = US_PER_S;
		int64_t began = sys_mono_us();
		start(&o, a);
		wait_for(&tlspeer_seen(a.to)->held, 1);
		tlspeer_release(a.to);
		while (sys_mono_us() < began + 3 * US_PER_S / 2)
			;
		wait_for(&o.calls, 1);
		expect_ok(o);
	}
}
END_TEST

static struct httpc_call *sleeper;

/* While the connection is made the machine sleeps for longer than the time-out, and libcurl's clock with it. */
static bool sleep_while_connecting(const struct sockaddr *sa, void *arg)
{
	(void)sa;
	(void)arg;
	sleeper->start_mono_us -= sleeper->timeout_us;
	return true;
}

START_TEST(after_a_sleep_longer_than_the_timeout_nothing_is_sent)
{
	struct ask a = ask_of("/ok");
	struct outcome o;
	a.req.addr_allowed = sleep_while_connecting;
	start(&o, a);
	sleeper = o.call;
	wait_for(&o.calls, 1);
	expect(o, HTTPC_NEVER_SENT, HTTPC_E_TIMEOUT, 0);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 0);
	expect_ok(fetch(ask_of("/ok")));
	start(&o, a); /* on the connection that is kept */
	sleeper = o.call;
	wait_for(&o.calls, 1);
	expect(o, HTTPC_NEVER_SENT, HTTPC_E_TIMEOUT, 0);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 1);
}
END_TEST

START_TEST(what_cannot_be_reached_was_never_sent)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof sin;
	/* Bound, but nobody listens: the port is ours and refuses. */
	int closed = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_ok(bind(closed, (struct sockaddr *)&sin, sizeof sin));
	ck_ok(getsockname(closed, (struct sockaddr *)&sin, &len));
	struct ask a = ask_of("/");
	a.port = ntohs(sin.sin_port);
	expect(fetch(a), HTTPC_NEVER_SENT, HTTPC_E_CONNECT, 0);
	close(closed);
	/* Accepted by the kernel, but nobody speaks TLS: the connect timeout ends it. */
	int mute = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	sin.sin_port = 0;
	ck_ok(bind(mute, (struct sockaddr *)&sin, sizeof sin));
	ck_ok(listen(mute, 5));
	ck_ok(getsockname(mute, (struct sockaddr *)&sin, &len));
	a.port = ntohs(sin.sin_port);
	a.req.connect_timeout_us = 200 * US_PER_MS;
	expect(fetch(a), HTTPC_NEVER_SENT, HTTPC_E_TIMEOUT, 0);
	close(mute);
}
END_TEST

/* --- whom to talk to */

START_TEST(certificates_are_checked)
{
	struct ask a = ask_of("/ok");
	a.host = "wrong.test";
	expect(fetch(a), HTTPC_NEVER_SENT, HTTPC_E_TLS, 0);
	a.host = "127.0.0.1";
	expect(fetch(a), HTTPC_NEVER_SENT, HTTPC_E_TLS, 0);
	struct tlspeer_ca *foreign = tlspeer_ca_new();
	a = ask_of("/ok");
	a.req.ca_file = tlspeer_ca_file(foreign);
	expect(fetch(a), HTTPC_NEVER_SENT, HTTPC_E_TLS, 0);
	swap_peer(&(struct tlspeer_opts){ .ca = ca, .name = "good.test", .expired = true });
	expect(fetch(ask_of("/ok")), HTTPC_NEVER_SENT, HTTPC_E_TLS, 0);
	swap_peer(&(struct tlspeer_opts){ .ca = foreign, .name = "good.test" });
	expect(fetch(ask_of("/ok")), HTTPC_NEVER_SENT, HTTPC_E_TLS, 0);
	a = ask_of("/ok");
	a.req.ca_file = tlspeer_ca_file(foreign);
	expect_ok(fetch(a));
	/* A connection that other roots vouched for is not used for a request without them. */
	expect(fetch(ask_of("/ok")), HTTPC_NEVER_SENT, HTTPC_E_TLS, 0);
	tlspeer_ca_free(foreign);
}
END_TEST

START_TEST(a_client_certificate_is_shown_when_there_is_one)
{
	swap_peer(&(struct tlspeer_opts){ .ca = ca, .name = "good.test", .want_client_cert = true });
	struct ask a = ask_of("/ok");
	a.req.cert_file = a.req.key_file = tlspeer_ca_client(ca);
	expect_ok(fetch(a));
	struct outcome o = fetch(ask_of("/ok"));
	ck_assert_int_ne(o.r.result, HTTPC_COMPLETE);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 1);
}
END_TEST

static int judged;
static uint32_t refused_ip;

static bool addr_allowed(const struct sockaddr *sa, void *arg)
{
	const struct sockaddr_in *sin = (const struct sockaddr_in *)(const void *)sa;
	(void)arg;
	judged++;
	ck_assert_int_eq(sa->sa_family, AF_INET);
	ck_assert_uint_eq(ntohs(sin->sin_port), tlspeer_port(peer));
	return ntohl(sin->sin_addr.s_addr) != refused_ip;
}

START_TEST(a_refused_address_is_not_used_fresh_or_kept)
{
	struct ask a = ask_of("/ok");
	a.req.addr_allowed = addr_allowed;
	refused_ip = INADDR_LOOPBACK;
	expect(fetch(a), HTTPC_NEVER_SENT, HTTPC_E_REFUSED_ADDR, 0);
	ck_assert_int_eq(tlspeer_seen(peer)->connections, 0);
	expect_ok(fetch(ask_of("/ok")));
	judged = 0;
	struct outcome o = fetch(a);
	expect(o, HTTPC_NEVER_SENT, HTTPC_E_REFUSED_ADDR, 0);
	ck_assert_int_ge(judged, 1);
	ck_assert_int_eq(tlspeer_seen(peer)->requests, 1);
	refused_ip = 0;
	expect_ok(fetch(a));
	a.host = "127.0.0.1";
	refused_ip = INADDR_LOOPBACK;
	expect(fetch(a), HTTPC_NEVER_SENT, HTTPC_E_REFUSED_ADDR, 0);
}
END_TEST

START_TEST(of_several_addresses_the_allowed_one_is_used)
{
	struct ask a = ask_of("/ok");
	a.host = "two.test";
	a.req.addr_allowed = addr_allowed;
	refused_ip = 0x7f000002;
	tlspeer_free(peer);
	peer = tlspeer_new(l, &(struct tlspeer_opts){ .ca = ca, .name = "two.test" });
	a.to = peer;
	expect_ok(fetch(a));
}
END_TEST

/* --- what is not started */

static void expect_invalid(struct ask a, const char *word)
{
	struct outcome o;
	struct fault f = { .text = "" };
	ck_assert_int_eq(try_start(&o, &a, &f), ST_INVALID);
	ck_assert_msg(strstr(f.text, word) != NULL, "\"%s\" does not say \"%s\"", f.text, word);
	ck_assert_uint_eq(httpc_in_flight(h), 0);
}

/* --- wiping, seen through the allocator: free() of glibc is looked at before it runs */

#if defined(__GLIBC__) && !defined(WITH_SANITIZERS)
#define CAN_WATCH_FREE 1
extern void __libc_free(void *p);

static char *watched; /* the block, and the place in it that must be zero when it is freed */
static const char *watched_place;
static int watched_state; /* 1: freed and wiped, -1: freed with its bytes */

/* Replaces the allocator's for this program only. */
void free(void *p)
{
	if (p != NULL && p == watched) {
		watched_state = *watched_place == '\0' ? 1 : -1;
		watched = NULL;
	}
	__libc_free(p);
}

static int state_after_free(struct httpc_call *c, char *block, const char *place)
{
	watched = block;
	watched_place = place;
	watched_state = 0;
	httpc_call_free(c);
	return watched_state;
}

START_TEST(a_query_is_wiped_after_use)
{
	static const char url[] = "https://a.example/token?refresh_token=SECRET";
	const struct httpc_request req = { .method = "POST", .url = url, .timeout_us = US_PER_S, .max_reply_bytes = 10 };
	struct httpc_call_env env = { .ca_file = "" };
	struct httpc_call *c;
	ck_ok(httpc_call_new(&req, &env, &c, NULL));
	ck_assert_int_eq(state_after_free(c, c->url->text, strstr(c->url->text, "SECRET")), 1);
	ck_ok(httpc_call_new(&req, &env, &c, NULL));
	ck_assert_int_eq(state_after_free(c, c->url->parts.scheme, strstr(c->url->parts.path, "SECRET")), 1);
}
END_TEST
#endif

static unsigned times(const char *text, const char *what)
{
	unsigned n = 0;
	for (const char *s = text; (s = strcasestr(s, what)) != NULL; s++)
		n++;
	return n;
}

/* The handle is the same, and keeps what all requests share. */
START_TEST(nothing_of_a_request_is_left_for_the_next)
{
	struct httpc_header headers[] = { { "Authorization", "Basic c2VjcmV0" }, { "user-agent", "mine" }, { "X-Mine", "1" },
		{ "Content-Type", "application/x-www-form-urlencoded" } };
	struct ask a = ask_of("/ok?a=b");
	a.req.headers = headers;
	a.req.n_headers = 4;
	a.req.keep_url = true;
	const char *last = tlspeer_seen(peer)->last;
	expect_ok(fetch(a));
	ck_assert_uint_eq(times(last, "\r\nuser-agent: "), 1);
	ck_assert_uint_eq(times(last, "\r\nuser-agent: mine\r\n"), 1);
	ck_assert_uint_eq(times(last, "\r\ncontent-type: "), 1);
	ck_assert_uint_eq(times(last, "\r\ncontent-type: application/x-www-form-urlencoded\r\n"), 1);
	a = ask_of("/ok");
	a.method = "GET";
	a.body = NULL;
	struct outcome o = fetch(a);
	expect_ok(o);
	ck_assert(o.r.reused_connection);
	last = tlspeer_seen(peer)->last;
	ck_assert_ptr_eq(strstr(last, "GET /ok HTTP/1.1\r\n"), last);
	ck_assert_uint_eq(times(last, "\r\nuser-agent: refreshd-test\r\n"), 1);
	ck_assert_uint_eq(times(last, "authorization") + times(last, "x-mine") + times(last, "content-") + times(last, BODY), 0);
	headers[3].value = "application/json";
	a = ask_of("/ok?a=b");
	a.req.headers = headers + 3;
	a.req.n_headers = 1;
	a.req.keep_url = true;
	expect_ok(fetch(a));
	last = tlspeer_seen(peer)->last;
	ck_assert_ptr_eq(strstr(last, "POST /ok?a=b HTTP/1.1\r\n"), last);
	ck_assert_uint_eq(times(last, "\r\ncontent-type: "), 1);
	ck_assert_uint_eq(times(last, "\r\ncontent-type: application/json\r\n"), 1);
	ck_assert_ptr_nonnull(strstr(last, "\r\n\r\n" BODY));
}
END_TEST

/* More URLs than are kept, in flight at the same time and again afterwards: each request goes where it was meant to. */
START_TEST(urls_that_are_kept_are_told_apart)
{
	enum { N = 2 * HTTPC_URLS_KEPT };
	struct httpc_urls kept = { .kept = { NULL } };
	struct httpc_url *u[N], *again;
	char text[N][64];
	for (int i = 0; i < N; i++) {
		snprintf(text[i], sizeof text[i], "https://h%d.example:%d/t/%d?x=%d", i, 1000 + i, i, i);
		ck_ok(httpc_url_get(&kept, text[i], true, &u[i], NULL));
	}
	for (int i = 0; i < N; i++) {
		ck_ok(httpc_url_get(&kept, text[i], true, &again, NULL));
		char *whole;
		ck_assert_int_eq(curl_url_get(again->parsed, CURLUPART_URL, &whole, 0), CURLUE_OK);
		ck_assert_str_eq(whole, text[i]);
		curl_free(whole);
		ck_assert_str_eq(u[i]->text, text[i]);
		ck_assert_uint_eq(again->parts.port, 1000 + i);
		httpc_url_unref(again);
	}
	ck_ok(httpc_url_get(&kept, text[0], true, &again, NULL));
	struct httpc_url *same, *own;
	ck_ok(httpc_url_get(&kept, text[0], true, &same, NULL));
	ck_ok(httpc_url_get(&kept, text[0], false, &own, NULL));
	ck_assert_ptr_eq(again, same);
	ck_assert_ptr_ne(again, own);
	ck_assert_uint_eq(own->refs, 1);
	ck_assert_int_ne(httpc_url_get(&kept, "https://user@h.example/", true, &own, NULL), 0);
	httpc_url_unref(own);
	httpc_url_unref(again);
	httpc_url_unref(same);
	for (int i = 0; i < N; i++)
		httpc_url_unref(u[i]);
	httpc_urls_fini(&kept);
}
END_TEST

START_TEST(bad_requests_are_refused_with_a_reason)
{
	static const char *const values[] = { "a\r\nX-Evil: 1", "a\nb", "a\rb", "a\001b", "\177" };
	struct ask a = ask_of("/ok");
	a.req.n_headers = 1;
	for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
		a.req.headers = &(struct httpc_header){ "X-Mine", values[i] };
		expect_invalid(a, "X-Mine");
	}
	static const char *const names[] = { "", "X Mine", "X:Mine", "X\r\nEvil", "X\303\244" };
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		a.req.headers = &(struct httpc_header){ names[i], "v" };
		expect_invalid(a, "header name");
	}
	a.req.headers = &(struct httpc_header){ "transfer-encoding", "chunked" };
	expect_invalid(a, "transfer-encoding");
	a = ask_of("/ok");
	a.method = "PUT";
	expect_invalid(a, "PUT");
	a.method = "GET";
	expect_invalid(a, "body");
	a = ask_of("/o k");
	expect_invalid(a, "URL");
	a = ask_of("/ok");
	a.scheme = "ftp";
	expect_invalid(a, "URL");
	a.scheme = "http";
	expect_invalid(a, "https");
	a = ask_of("/ok");
	a.req.timeout_us = 0;
	expect_invalid(a, "timeout");
	a = ask_of("/ok");
	a.req.cert_file = "/x";
	expect_invalid(a, "key");
}
END_TEST

START_TEST(http_is_spoken_only_when_allowed)
{
	struct ask a = ask_of("/ok");
	a.scheme = "http";
	a.to = plain;
	expect_invalid(a, "https");
	a.req.allow_http = true;
	expect_ok(fetch(a));
	ck_assert_int_eq(tlspeer_seen(plain)->requests, 1);
	a.path = "/die";
	expect(fetch(a), HTTPC_CUT, HTTPC_E_CLOSED, 0);
	ck_assert_int_eq(tlspeer_seen(plain)->requests, 2);
}
END_TEST

START_TEST(a_client_that_cannot_work_is_not_made)
{
	struct fault f = { .text = "" };
	struct httpc *other;
	struct httpc_params p = { .max_connections = 1, .ca_file = "/nonexistent/ca", .user_agent = "x" };
	ck_assert_int_eq(httpc_new(l, r, &p, &other, &f), ST_NOT_FOUND);
	ck_assert_ptr_nonnull(strstr(f.text, "/nonexistent/ca"));
	p.max_connections = 0;
	ck_assert_int_eq(httpc_new(l, r, &p, &other, &f), ST_INVALID);
	httpc_free(NULL);
	httpc_cancel(NULL);
}
END_TEST

START_TEST(the_environment_does_not_matter)
{
	char keys[64];
	write_file(keys, "keys", "");
	httpc_free(h);
	setenv("SSLKEYLOGFILE", keys, 1);
	setenv("https_proxy", "http://127.0.0.1:1", 1);
	setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
	client_start(10);
	expect_ok(fetch(ask_of("/ok")));
	FILE *file = fopen(keys, "r");
	ck_assert_ptr_nonnull(file);
	ck_assert_int_eq(fgetc(file), EOF);
	fclose(file);
	unlink(keys);
	unsetenv("https_proxy");
	unsetenv("ALL_PROXY");
}
END_TEST

/* --- many, and ends at awkward times */

START_TEST(three_hundred_at_once)
{
	enum { N = 300 };
	static struct outcome o[N];
	for (int i = 0; i < N; i++)
		start(&o[i], ask_of("/hold"));
	wait_for(&tlspeer_seen(peer)->held, N);
	ck_assert_uint_eq(httpc_in_flight(h), N);
	tlspeer_release(peer);
	for (int i = 0; i < N; i++) {
		wait_for(&o[i].calls, 1);
		expect_ok(o[i]);
	}
	int handshakes = tlspeer_seen(peer)->handshakes;
	for (int i = 0; i < N; i++)
		start(&o[i], ask_of("/ok"));
	for (int i = 0; i < N; i++) {
		wait_for(&o[i].calls, 1);
		expect_ok(o[i]);
	}
	ck_assert_int_eq(tlspeer_seen(peer)->handshakes, handshakes);
	ck_assert_uint_eq(httpc_in_flight(h), 0);
}
END_TEST

START_TEST(more_than_the_limit_is_refused)
{
	struct outcome a, b, c;
	struct fault f = { .text = "" };
	struct ask ask = ask_of("/ok");
	httpc_free(h);
	client_start(2);
	start(&a, ask);
	start(&b, ask);
	ck_assert_int_eq(try_start(&c, &ask, &f), ST_FULL);
	wait_for(&a.calls, 1);
	wait_for(&b.calls, 1);
	expect_ok(fetch(ask));
}
END_TEST

static struct outcome first, second, third;

static void cancel_second(void *arg, struct httpc_reply *reply)
{
	on_done(arg, reply);
	httpc_cancel(second.call);
	second.call = NULL;
	start(&third, ask_of("/ok"));
}

static void free_client(void *arg, struct httpc_reply *reply)
{
	on_done(arg, reply);
	httpc_free(h);
	h = NULL;
}

static void start_with(struct outcome *o, const char *path, httpc_fn *fn)
{
	char url[128];
	struct fault f;
	struct ask a = ask_of(path);
	snprintf(url, sizeof url, "https://good.test:%u%s", tlspeer_port(peer), path);
	a.req.url = url;
	a.req.method = "GET";
	memset(o, 0, sizeof *o);
	ck_ok(httpc_start(h, &a.req, fn, o, &o->call, &f));
}

START_TEST(a_completion_may_cancel_and_start_others)
{
	start_with(&first, "/hold", cancel_second);
	start_with(&second, "/hold", on_done);
	wait_for(&tlspeer_seen(peer)->held, 2);
	/* Both answers are on their way when the first one is told. */
	tlspeer_release(peer);
	wait_for(&first.calls, 1);
	wait_for(&third.calls, 1);
	expect_ok(third);
	ck_assert_int_eq(first.calls, 1);
	/* The second one was told before the first, or never. */
	ck_assert(second.calls == 0 || second.call == NULL);
	ck_assert_uint_eq(httpc_in_flight(h), 0);
}
END_TEST

START_TEST(a_canceled_call_is_not_told)
{
	struct outcome o, hanging;
	start(&o, ask_of("/ok"));
	httpc_cancel(o.call);
	struct ask a = ask_of("/ok");
	a.host = "hang.test";
	start(&hanging, a);
	loop_once(l, 0);
	httpc_cancel(hanging.call);
	start(&hanging, ask_of("/hang"));
	wait_for(&tlspeer_seen(peer)->requests, 1);
	httpc_cancel(hanging.call);
	expect_ok(fetch(ask_of("/ok")));
	ck_assert_int_eq(o.calls + hanging.calls, 0);
}
END_TEST

START_TEST(a_client_may_be_freed_with_calls_in_flight)
{
	struct outcome o[4];
	struct ask a = ask_of("/ok");
	start(&o[0], a);
	a.host = "hang.test";
	start(&o[1], a);
	start(&o[2], ask_of("/hang"));
	start(&o[3], ask_of("/hold"));
	wait_for(&tlspeer_seen(peer)->held, 1);
	o[0].calls = 0;
	httpc_free(h);
	h = NULL;
	loop_once(l, 20 * US_PER_MS);
	ck_assert_int_eq(o[0].calls + o[1].calls + o[2].calls + o[3].calls, 0);
}
END_TEST

START_TEST(a_completion_may_free_the_client)
{
	start_with(&second, "/hang", on_done);
	start_with(&first, "/ok", free_client);
	wait_for(&first.calls, 1);
	loop_once(l, 20 * US_PER_MS);
	ck_assert_ptr_null(h);
	ck_assert_int_eq(second.calls, 0);
}
END_TEST

START_TEST(a_quiet_client_keeps_nothing_awake)
{
	expect_ok(fetch(ask_of("/ok")));
	tlspeer_close_idle(peer);
	for (int i = 0; i < 20; i++)
		loop_once(l, 10 * US_PER_MS);
	/* The two listeners are left. */
	ck_assert_int_eq(event_base_get_num_events(loop_base(l), EVENT_BASE_COUNT_ADDED), 2);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("httpc");
	TCase *t = tcase_create("httpc");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	unit_add(t, a_whole_answer_and_what_goes_out);
	unit_add(t, statuses_and_the_two_headers_are_told);
	unit_add(t, a_get_and_an_empty_post_work);
	unit_add(t, half_an_answer_is_kept_but_is_no_answer);
	unit_add(t, an_answer_that_is_too_large_is_cut);
	unit_add(t, a_kept_connection_that_dies_presents_the_body_once);
	unit_add(t, a_fresh_connection_that_dies_presents_the_body_once);
	unit_add(t, a_request_without_a_body_is_not_sent_again_either);
	unit_add(t, a_kept_connection_that_was_closed_is_not_used);
	unit_add(t, http2_answers_and_is_shared);
	unit_add(t, an_http2_answer_before_the_body_is_an_answer);
	unit_add(t, an_http2_stream_that_is_reset_is_cut);
	unit_add(t, http2_presents_the_body_once_too);
	unit_add(t, a_hanging_name_server_never_holds_up_the_loop);
	unit_add(t, a_peer_that_hangs_is_cut_at_the_timeout);
	unit_add(t, an_answer_in_the_socket_counts_when_the_time_is_over);
	unit_add(t, after_a_sleep_longer_than_the_timeout_nothing_is_sent);
	unit_add(t, what_cannot_be_reached_was_never_sent);
	unit_add(t, certificates_are_checked);
	unit_add(t, a_client_certificate_is_shown_when_there_is_one);
	unit_add(t, a_refused_address_is_not_used_fresh_or_kept);
	unit_add(t, of_several_addresses_the_allowed_one_is_used);
#ifdef CAN_WATCH_FREE
	unit_add(t, a_query_is_wiped_after_use);
#endif
	unit_add(t, nothing_of_a_request_is_left_for_the_next);
	unit_add(t, urls_that_are_kept_are_told_apart);
	unit_add(t, bad_requests_are_refused_with_a_reason);
	unit_add(t, http_is_spoken_only_when_allowed);
	unit_add(t, a_client_that_cannot_work_is_not_made);
	unit_add(t, the_environment_does_not_matter);
	unit_add(t, three_hundred_at_once);
	unit_add(t, more_than_the_limit_is_refused);
	unit_add(t, a_completion_may_cancel_and_start_others);
	unit_add(t, a_canceled_call_is_not_told);
	unit_add(t, a_client_may_be_freed_with_calls_in_flight);
	unit_add(t, a_completion_may_free_the_client);
	unit_add(t, a_quiet_client_keeps_nothing_awake);
	suite_add_tcase(s, t);
	return s;
}
