/*
 * The resolver against a name server of our own on loopback, on the same loop: it answers, refuses,
 * stays silent, or answers one family only, by the name that is asked.
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
#include "io/loop.h"
#include "io/resolver.h"

#define TYPE_A 1
#define TYPE_AAAA 28
#define RCODE_SERVFAIL 2
#define RCODE_NXDOMAIN 3
#define RCODE_REFUSED 5

static struct loop *l;
static struct resolver *r;
static char resolv_conf[64], hosts_file[64];

/* --- the name server */

static int dns_fd;
static struct event *dns_event;
static int asked;	/* questions seen */
static bool silent;	/* answers nothing at all */

static size_t put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
	return 2;
}

static size_t read_name(const uint8_t *q, size_t n, char *out)
{
	size_t at = 12, len = 0;
	while (at < n && q[at] != 0) {
		for (unsigned i = 0; i < q[at]; i++)
			out[len++] = (char)(q[at + 1 + i] | 0x20);
		out[len++] = '.';
		at += q[at] + 1U;
	}
	out[len > 0 ? len - 1 : 0] = '\0';
	return at + 1;
}

static size_t put_answer(uint8_t *p, unsigned type, unsigned i)
{
	size_t at = put16(p, 0xc00c), size = type == TYPE_A ? 4 : 16;
	at += put16(p + at, type);
	at += put16(p + at, 1);
	at += put16(p + at, 0);
	at += put16(p + at, 300);
	at += put16(p + at, (unsigned)size);
	memset(p + at, 0, size);
	if (type == TYPE_A)
		memcpy(p + at, "\xc0\x00\x02", 3);
	else
		memcpy(p + at, "\x20\x01\x0d\xb8", 4);
	p[at + size - 1] = (uint8_t)(i + 1);
	return at + size;
}

/* How many addresses a name has; -1: no answer comes; below -10: an error code. */
static int rule(const char *name, unsigned type)
{
	if (strncmp(name, "hang", 4) == 0)
		return -1;
	if (strcmp(name, "half.test") == 0)
		return type == TYPE_A ? 1 : -1;
	if (strcmp(name, "four.test") == 0)
		return type == TYPE_A ? 1 : 0;
	if (strcmp(name, "six.test") == 0)
		return type == TYPE_A ? 0 : 1;
	if (strcmp(name, "many.test") == 0)
		return type == TYPE_A ? 20 : 2;
	if (strcmp(name, "empty.test") == 0)
		return 0;
	if (strcmp(name, "broken.test") == 0)
		return -RCODE_SERVFAIL - 10;
	if (strcmp(name, "refused.test") == 0)
		return -RCODE_REFUSED - 10;
	if (strncmp(name, "both", 4) == 0 || strcmp(name, "short.corp.test") == 0)
		return 1;
	return -RCODE_NXDOMAIN - 10;
}

static void on_question(evutil_socket_t fd, short what, void *arg)
{
	uint8_t q[512], a[1024];
	char name[256];
	struct sockaddr_in from;
	socklen_t from_len = sizeof from;
	(void)what;
	(void)arg;
	ssize_t n = recvfrom(fd, q, sizeof q, 0, (struct sockaddr *)&from, &from_len);
	if (n < 17)
		return;
	size_t end = read_name(q, (size_t)n, name);
	unsigned type = (unsigned)(q[end] << 8 | q[end + 1]);
	asked++;
	int count = rule(name, type);
	if (silent || count == -1)
		return;
	memcpy(a, q, end + 4);
	unsigned rcode = count < 0 ? (unsigned)(-10 - count) : 0;
	put16(a + 2, 0x8180 | rcode);
	put16(a + 6, count > 0 ? (unsigned)count : 0);
	put16(a + 8, 0);
	put16(a + 10, 0);
	size_t at = end + 4;
	for (int i = 0; i < count; i++)
		at += put_answer(a + at, type, (unsigned)i);
	ck_assert_int_eq(sendto(fd, a, at, 0, (struct sockaddr *)&from, from_len), (ssize_t)at);
}

/* --- the fixture */

static int64_t ahead_us; /* how far the tested clock is ahead of the real one */

static int64_t real_mono(void)
{
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64_t)now.tv_sec * US_PER_S + now.tv_nsec / 1000 + ahead_us;
}

static int64_t fixed_wall(void)
{
	return 0;
}

static void write_file(char *path, const char *what, const char *text)
{
	snprintf(path, 64, "/tmp/resolver-%s-XXXXXX", what);
	int fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

static void resolver_start(int64_t timeout_us)
{
	struct fault f;
	struct resolver_params p = { .resolv_conf = resolv_conf, .hosts_file = hosts_file, .timeout_us = timeout_us };
	ck_ok(resolver_new(l, &p, &r, &f));
}

static void setup(void)
{
	static const struct sys_ops ops = { .wall_us = fixed_wall, .mono_us = real_mono, .random = NULL };
	struct fault f;
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof sin;
	char text[128];
	ahead_us = 0;
	asked = 0;
	silent = false;
	sys_set(&ops);
	ck_ok(loop_new(&l, &f));
	dns_fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	ck_ok(bind(dns_fd, (struct sockaddr *)&sin, sizeof sin));
	ck_ok(getsockname(dns_fd, (struct sockaddr *)&sin, &len));
	dns_event = event_new(loop_base(l), dns_fd, EV_READ | EV_PERSIST, on_question, NULL);
	ck_ok(event_add(dns_event, NULL));
	snprintf(text, sizeof text, "search corp.test\nnameserver 127.0.0.1:%u\n", ntohs(sin.sin_port));
	write_file(resolv_conf, "conf", text);
	write_file(hosts_file, "hosts", "# a comment\n192.0.2.77 Box.Example box # tail\n\n"
					"2001:db8::77\tbox\nnonsense line\n192.0.2.78 box\n10.9.9.9 localhost\n");
	resolver_start(US_PER_S);
}

static void teardown(void)
{
	resolver_free(r);
	r = NULL;
	event_free(dns_event);
	close(dns_fd);
	loop_free(l);
	sys_set(NULL);
	unlink(resolv_conf);
	unlink(hosts_file);
}

struct outcome {
	int calls;
	int code;
	struct resolver_addrs addrs;
	struct resolver_query *q;
};

static void on_outcome(void *arg, int code, const struct resolver_addrs *addrs)
{
	struct outcome *o = arg;
	o->calls++;
	o->code = code;
	ck_assert_int_eq(code == 0, addrs != NULL);
	if (addrs != NULL)
		o->addrs = *addrs;
}

static void ask(struct outcome *o, const char *host)
{
	memset(o, 0, sizeof *o);
	o->q = resolver_lookup(r, host, on_outcome, o);
	ck_assert_ptr_nonnull(o->q);
	ck_assert_int_eq(o->calls, 0);
}

static void wait_for(const int *counter, int value)
{
	int64_t deadline = sys_mono_us() + 20 * US_PER_S;
	while (*counter < value) {
		ck_assert_int_lt(sys_mono_us(), deadline);
		loop_once(l, 100 * US_PER_MS);
	}
}

static struct outcome resolve(const char *host)
{
	struct outcome o;
	ask(&o, host);
	wait_for(&o.calls, 1);
	return o;
}

static const char *text_of(const struct resolver_addrs *a)
{
	static char out[512];
	out[0] = '\0';
	for (unsigned i = 0; i < a->n; i++) {
		char one[64];
		const struct sockaddr_in *sin = (const struct sockaddr_in *)&a->addr[i];
		const struct sockaddr_in6 *sin6 = (const struct sockaddr_in6 *)&a->addr[i];
		bool v4 = sin->sin_family == AF_INET;
		ck_assert_uint_eq(a->len[i], v4 ? sizeof *sin : sizeof *sin6);
		ck_assert_ptr_nonnull(inet_ntop(sin->sin_family, v4 ? (const void *)&sin->sin_addr :
									(const void *)&sin6->sin6_addr,
			one, sizeof one));
		ck_assert(strlen(out) + strlen(one) + 2 < sizeof out);
		strcat(strcat(out, i > 0 ? " " : ""), one);
	}
	return out;
}

static void expect(const char *host, const char *addrs)
{
	struct outcome o = resolve(host);
	ck_assert_msg(o.code == 0, "%s: %s", host, status_text(o.code));
	ck_assert_str_eq(text_of(&o.addrs), addrs);
}

/* --- the checks */

START_TEST(numbers_localhost_and_the_hosts_file_ask_nobody)
{
	expect("192.0.2.9", "192.0.2.9");
	expect("2001:db8::9", "2001:db8::9");
	expect("localhost", "127.0.0.1 ::1");
	expect("LocalHost.", "127.0.0.1 ::1");
	expect("db.localhost", "127.0.0.1 ::1");
	expect("box", "192.0.2.77 192.0.2.78 2001:db8::77");
	expect("BOX.example", "192.0.2.77");
	ck_assert_int_eq(asked, 0);
	ck_assert_ptr_nonnull(resolver_cached(r, "box"));
	ck_assert_ptr_nonnull(resolver_cached(r, "127.0.0.1"));
	ck_assert_ptr_null(resolver_cached(r, "notlocalhost"));
}
END_TEST

START_TEST(both_families_are_asked_and_merged)
{
	expect("four.test", "192.0.2.1");
	expect("six.test", "2001:db8::1");
	expect("both.test", "192.0.2.1 2001:db8::1");
	expect("many.test", "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 192.0.2.5 192.0.2.6 2001:db8::1 2001:db8::2");
}
END_TEST

START_TEST(the_search_list_is_used_unless_the_name_ends_in_a_dot)
{
	expect("short", "192.0.2.1 2001:db8::1");
	struct outcome o = resolve("short.");
	ck_assert_int_eq(o.code, ST_NOT_FOUND);
}
END_TEST

START_TEST(absent_names_and_broken_servers_are_told_apart)
{
	static char long_label[80], long_name[300];
	memset(long_label, 'a', sizeof long_label - 1);
	memset(long_name, 'a', sizeof long_name - 1);
	ck_assert_int_eq(resolve("none.test").code, ST_NOT_FOUND);
	ck_assert_int_eq(resolve("empty.test.").code, ST_NOT_FOUND);
	ck_assert_int_eq(resolve("refused.test.").code, ST_UNAVAILABLE);
	/* SERVFAIL may pass: the question is repeated until its deadline. */
	ck_assert_int_eq(resolve("broken.test.").code, ST_TIMEOUT);
	ck_assert_int_eq(resolve("").code, ST_NOT_FOUND);
	ck_assert_int_eq(resolve(".").code, ST_NOT_FOUND);
	ck_assert_int_eq(resolve(long_name).code, ST_NOT_FOUND);
	ck_assert_int_eq(resolve(long_label).code, ST_NOT_FOUND);
}
END_TEST

START_TEST(equal_questions_share_one_query_and_the_answer_is_kept)
{
	struct outcome o[20];
	for (int i = 0; i < 20; i++)
		ask(&o[i], i % 2 == 0 ? "both.test" : "BOTH.test");
	for (int i = 0; i < 20; i++)
		wait_for(&o[i].calls, 1);
	ck_assert_int_eq(asked, 2);
	expect("both.test", "192.0.2.1 2001:db8::1");
	ck_assert_ptr_nonnull(resolver_cached(r, "both.test"));
	ck_assert_int_eq(asked, 2);
	ahead_us += 61 * US_PER_S;
	ck_assert_ptr_null(resolver_cached(r, "both.test"));
	expect("both.test", "192.0.2.1 2001:db8::1");
	ck_assert_int_eq(asked, 4);
	for (int i = 0; i < 20; i++)
		ck_assert_int_eq(o[i].calls, 1);
}
END_TEST

START_TEST(a_stale_answer_serves_for_an_hour_when_nobody_answers)
{
	expect("both.test", "192.0.2.1 2001:db8::1");
	silent = true;
	ahead_us += 120 * US_PER_S;
	expect("both.test", "192.0.2.1 2001:db8::1");
	/* The silent server is not asked again at once. */
	int before = asked;
	expect("both.test", "192.0.2.1 2001:db8::1");
	ck_assert_int_eq(asked, before);
	ahead_us += 3600 * US_PER_S;
	ck_assert_int_eq(resolve("both.test").code, ST_TIMEOUT);
	silent = false;
	expect("both.test", "192.0.2.1 2001:db8::1");
}
END_TEST

START_TEST(a_question_ends_at_its_deadline)
{
	int64_t start = sys_mono_us();
	struct outcome o = resolve("hang.test");
	ck_assert_int_eq(o.code, ST_TIMEOUT);
	ck_assert_int_ge(sys_mono_us() - start, US_PER_S);
	ck_assert_int_lt(sys_mono_us() - start, 5 * US_PER_S);
	/* Sent again within the deadline: two families, two tries at the least. */
	ck_assert_int_ge(asked, 4);
}
END_TEST

START_TEST(one_family_does_not_wait_long_for_the_other)
{
	int64_t start = sys_mono_us();
	expect("half.test", "192.0.2.1");
	ck_assert_int_lt(sys_mono_us() - start, 800 * US_PER_MS);
}
END_TEST

START_TEST(hanging_names_do_not_hold_up_others)
{
	enum { N = 100 }; /* evdns by itself would let 64 questions out */
	static struct outcome hanging[N];
	for (int i = 0; i < N; i++) {
		char name[32];
		snprintf(name, sizeof name, "hang%d.test", i);
		ask(&hanging[i], name);
	}
	int64_t start = sys_mono_us();
	expect("both.test", "192.0.2.1 2001:db8::1");
	ck_assert_int_lt(sys_mono_us() - start, 900 * US_PER_MS);
	for (int i = 0; i < N; i++) {
		wait_for(&hanging[i].calls, 1);
		ck_assert_int_eq(hanging[i].code, ST_TIMEOUT);
	}
}
END_TEST

START_TEST(a_canceled_question_is_not_answered)
{
	struct outcome a, b, c;
	ask(&a, "both.test");
	ask(&b, "both.test");
	ask(&c, "localhost");
	resolver_cancel(a.q);
	resolver_cancel(c.q);
	wait_for(&b.calls, 1);
	loop_once(l, 0);
	ck_assert_int_eq(a.calls, 0);
	ck_assert_int_eq(c.calls, 0);
	resolver_cancel(NULL);
}
END_TEST

static void cancel_other(void *arg, int code, const struct resolver_addrs *addrs)
{
	struct outcome *other = arg;
	(void)code;
	(void)addrs;
	resolver_cancel(other->q);
	other->q = NULL;
	other[1].calls++;
}

static void free_resolver(void *arg, int code, const struct resolver_addrs *addrs)
{
	struct outcome *o = arg;
	o->calls++;
	resolver_free(r);
	r = NULL;
	/* Still ours until this call returns. */
	ck_assert_int_eq(code, 0);
	ck_assert_str_eq(text_of(addrs), "192.0.2.1 2001:db8::1");
}

START_TEST(an_answer_may_cancel_another_or_free_the_resolver)
{
	struct outcome o[2] = { { .calls = 0 } }, end = { .calls = 0 }, never;
	ck_assert_ptr_nonnull(resolver_lookup(r, "both.test", cancel_other, &o[0]));
	o[0].q = resolver_lookup(r, "both.test", on_outcome, &o[0]);
	wait_for(&o[1].calls, 1);
	loop_once(l, 0);
	ck_assert_int_eq(o[0].calls, 0);
	ck_assert_ptr_nonnull(resolver_lookup(r, "both2.test", free_resolver, &end));
	ask(&never, "both2.test");
	wait_for(&end.calls, 1);
	loop_once(l, 10 * US_PER_MS);
	ck_assert_int_eq(never.calls, 0);
}
END_TEST

START_TEST(free_with_open_questions_calls_nobody)
{
	struct outcome o[3];
	ask(&o[0], "hang1.test");
	ask(&o[1], "both.test");
	ask(&o[2], "localhost");
	resolver_free(r);
	r = NULL;
	loop_once(l, 50 * US_PER_MS);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(o[i].calls, 0);
	resolver_free(NULL);
}
END_TEST

static void rewrite(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");
	ck_assert_ptr_nonnull(file);
	fputs(text, file);
	ck_ok(fclose(file));
}

START_TEST(reload_reads_both_files_and_carries_open_questions_over)
{
	struct fault f;
	struct outcome open;
	expect("box", "192.0.2.77 192.0.2.78 2001:db8::77");
	expect("both.test", "192.0.2.1 2001:db8::1");
	silent = true;
	ask(&open, "both3.test");
	wait_for(&asked, 4);
	rewrite(hosts_file, "192.0.2.99 box\n");
	silent = false;
	ck_ok(resolver_reload(r, &f));
	ck_assert_ptr_null(resolver_cached(r, "both.test"));
	expect("box", "192.0.2.99");
	wait_for(&open.calls, 1);
	ck_assert_int_eq(open.code, 0);
	/* What cannot be read leaves the old state whole. */
	unlink(hosts_file);
	ck_assert_int_eq(mkdtemp(strcpy(hosts_file, "/tmp/resolver-hosts-XXXXXX")) == NULL, 0);
	rmdir(hosts_file);
	ck_ok(resolver_reload(r, &f));
	ck_assert_int_eq(resolve("box.").code, ST_NOT_FOUND);
}
END_TEST

START_TEST(files_that_cannot_be_read_are_named)
{
	struct fault f = { .code = 0 };
	struct resolver *other;
	struct resolver_params p = { .resolv_conf = "/dev/null/resolv.conf", .hosts_file = hosts_file };
	ck_assert_int_eq(resolver_new(l, &p, &other, &f), ST_IO);
	ck_assert_ptr_nonnull(strstr(f.text, "/dev/null/resolv.conf"));
	p = (struct resolver_params){ .resolv_conf = resolv_conf, .hosts_file = "/tmp" };
	ck_assert_int_ne(resolver_new(l, &p, &other, &f), 0);
	ck_assert_ptr_nonnull(strstr(f.text, "/tmp"));
	p = (struct resolver_params){ .resolv_conf = "/nonexistent/r", .hosts_file = "/nonexistent/h" };
	ck_ok(resolver_new(l, &p, &other, &f));
	resolver_free(other);
}
END_TEST

START_TEST(the_cache_is_bounded_and_answers_can_be_borrowed_for_the_turn)
{
	const struct resolver_addrs *first = NULL;
	for (unsigned i = 0; i < 5000; i++) {
		char host[32];
		snprintf(host, sizeof host, "10.1.%u.%u", i / 256, i % 256);
		const struct resolver_addrs *a = resolver_cached(r, host);
		ck_assert_ptr_nonnull(a);
		if (i == 0)
			first = a;
	}
	ck_assert_str_eq(text_of(first), "10.1.0.0");
	ck_assert_int_eq(asked, 0);
}
END_TEST

START_TEST(an_idle_resolver_keeps_nothing_awake)
{
	(void)resolve("both.test");
	(void)resolve("hang.test");
	for (int i = 0; i < 5; i++)
		loop_once(l, 0);
	/* Only the name server's own socket is left. */
	ck_assert_int_eq(event_base_get_num_events(loop_base(l), EVENT_BASE_COUNT_ADDED), 1);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("resolver");
	TCase *t = tcase_create("resolver");
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 120);
	unit_add(t, numbers_localhost_and_the_hosts_file_ask_nobody);
	unit_add(t, both_families_are_asked_and_merged);
	unit_add(t, the_search_list_is_used_unless_the_name_ends_in_a_dot);
	unit_add(t, absent_names_and_broken_servers_are_told_apart);
	unit_add(t, equal_questions_share_one_query_and_the_answer_is_kept);
	unit_add(t, a_stale_answer_serves_for_an_hour_when_nobody_answers);
	unit_add(t, a_question_ends_at_its_deadline);
	unit_add(t, one_family_does_not_wait_long_for_the_other);
	unit_add(t, hanging_names_do_not_hold_up_others);
	unit_add(t, a_canceled_question_is_not_answered);
	unit_add(t, an_answer_may_cancel_another_or_free_the_resolver);
	unit_add(t, free_with_open_questions_calls_nobody);
	unit_add(t, reload_reads_both_files_and_carries_open_questions_over);
	unit_add(t, files_that_cannot_be_read_are_named);
	unit_add(t, the_cache_is_bounded_and_answers_can_be_borrowed_for_the_turn);
	unit_add(t, an_idle_resolver_keeps_nothing_awake);
	suite_add_tcase(s, t);
	return s;
}
