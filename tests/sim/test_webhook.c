/*
 * test_webhook - the webhook service in virtual time: real webhook*.c and model, an outbox in memory,
 * scripted receivers.
 *
 * Every receiver is told apart by its host name; what it answers is set by the test, what it got is kept.
 */
#include "service/webhook.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/policy.h"
#include "sim/fake.h"
#include "sim/fake_outbox.h"
#include "unit/unit.h"

#define SECRET "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
#define HOUR_US (3600 * US_PER_S)
#define DAY_US (24 * HOUR_US)
#define GOT_MAX 4096

struct got { /* one request */
	char host[64], id[64], type[64], signature[200], apideck[80], key[64];
	char body[1024];
	int64_t wall_us, mono_us, timestamp;
};

static struct {
	struct loop *loop;
	struct store *store;
	struct httpc *httpc;
	struct webhook *webhook;
	struct conf *conf;
	struct got got[GOT_MAX];
	unsigned n_got;
	char dead[64];             /* hosts that begin so hang */
	struct fake_answer answer; /* of the others */
	bool scripted;
	unsigned drained;
	char log[200][400];
	unsigned n_log;
} t;

/* ---------------------------------------------------------------- world */

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");
	ck_assert(f != NULL && fputs(text, f) >= 0 && fclose(f) == 0);
	ck_ok(chmod(path, 0600));
}

/* `hooks` is the YAML of the webhooks list, with SECRET for the path of the secret. */
static struct conf *make_conf(const char *options, const char *hooks)
{
	char dir[] = "/tmp/refreshd-webhook-XXXXXX";
	ck_assert(mkdtemp(dir) != NULL);
	char *yaml = mem_printf("%s/c.yaml", dir), *ring = mem_printf("%s/keyring", dir),
	     *secret = mem_printf("%s/secret", dir);
	struct buf text = BUF_INIT(100000);
	ck_ok(buf_printf(&text,
		"instance: sim\nstate_dir: %s\ndatabase: {url: \"postgresql:///x\"}\nkeyring_file: %s\n%s\nwebhooks:\n",
		dir, ring, options));
	for (const char *s = hooks; *s != '\0';) {
		const char *at = strstr(s, "SECRET");
		size_t n = at == NULL ? strlen(s) : (size_t)(at - s);
		ck_ok(buf_append(&text, s, n));
		s += n;
		if (at != NULL) {
			ck_ok(buf_puts(&text, secret));
			s += strlen("SECRET");
		}
	}
	write_file(ring, "k1 AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n");
	write_file(secret, SECRET);
	write_file(yaml, buf_str(&text));
	struct conf *c = NULL;
	struct conf_errors errors = {0};
	if (conf_load(yaml, &c, &errors) != 0)
		conf_errors_print(&errors, stderr);
	ck_assert(c != NULL);
	conf_errors_fini(&errors);
	ck_assert(unlink(yaml) == 0 && unlink(ring) == 0 && unlink(secret) == 0 && rmdir(dir) == 0);
	buf_fini(&text);
	mem_free(yaml);
	mem_free(ring);
	mem_free(secret);
	return c;
}

static void copy_header(char *to, size_t cap, const struct fake_request *q, const char *name)
{
	const char *v = fake_request_header(q, name);
	ck_assert_msg(v != NULL, "header %s is missing", name);
	snprintf(to, cap, "%s", v);
}

static void on_request(void *arg, const struct fake_request *q, struct fake_answer *a)
{
	(void)arg;
	ck_assert_uint_lt(t.n_got, GOT_MAX);
	struct got *g = &t.got[t.n_got++];
	const char *host = strstr(q->url, "://") + 3;
	snprintf(g->host, sizeof g->host, "%.*s", (int)strcspn(host, "/:"), host);
	copy_header(g->id, sizeof g->id, q, "webhook-id");
	copy_header(g->type, sizeof g->type, q, "x-apideck-event-type");
	copy_header(g->signature, sizeof g->signature, q, "webhook-signature");
	copy_header(g->apideck, sizeof g->apideck, q, "x-apideck-signature");
	copy_header(g->key, sizeof g->key, q, "x-apideck-idempotency-key");
	ck_assert_str_eq(fake_request_header(q, "content-type"), "application/json");
	ck_assert_str_eq(q->method, "POST");
	ck_ok(str_parse_i64(fake_request_header(q, "webhook-timestamp"),
		strlen(fake_request_header(q, "webhook-timestamp")), &g->timestamp));
	snprintf(g->body, sizeof g->body, "%s", q->body);
	g->wall_us = sys_wall_us();
	g->mono_us = sys_mono_us();
	if (t.scripted)
		*a = t.answer;
	if (t.dead[0] != '\0' && strncmp(g->host, t.dead, strlen(t.dead)) == 0)
		a->hang = true;
}

static void on_log(enum log_level level, const char *line, void *arg)
{
	(void)level;
	(void)arg;
	snprintf(t.log[t.n_log++ % 200], sizeof t.log[0], "%s", line);
}

static unsigned logged(const char *event, const char *with)
{
	unsigned n = 0;
	for (unsigned i = 0; i < t.n_log && i < 200; i++)
		n += strstr(t.log[i], event) != NULL && strstr(t.log[i], with) != NULL;
	return n;
}

static void on_drained(void *arg)
{
	(void)arg;
	t.drained++;
}

static void setup(void)
{
	memset(&t, 0, sizeof t);
	fake_clock_start(20261123);
	metrics_reset();
	log_setup(LOG_FORMAT_LOGFMT, LOG_LEVEL_DEBUG);
	log_set_sink(on_log, NULL);
	struct fault f = {0};
	ck_ok(loop_new(&t.loop, &f));
	t.store = fake_outbox_new(t.loop);
	const struct httpc_params p = {.max_connections = 64, .user_agent = "sim"};
	ck_ok(httpc_new(t.loop, NULL, &p, &t.httpc, &f));
	fake_httpc_on_request(t.httpc, on_request, NULL);
	ck_ok(webhook_new(t.loop, t.store, t.httpc, &t.webhook, &f));
	t.answer = (struct fake_answer){.result = HTTPC_COMPLETE, .status = 200, .after_us = US_PER_MS};
}

static void teardown(void)
{
	fake_outbox_free(t.store);
	webhook_free(t.webhook);
	httpc_free(t.httpc);
	loop_free(t.loop);
	conf_unref(t.conf);
	log_set_sink(NULL, NULL);
	sys_set(NULL);
}

static void use(const char *options, const char *hooks)
{
	struct conf *old = t.conf;
	t.conf = make_conf(options, hooks);
	webhook_set_conf(t.webhook, t.conf);
	conf_unref(old);
}

static void start(const char *options, const char *hooks)
{
	use(options, hooks);
	webhook_start(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
}

#define ONE "  - {name: one, url: \"https://one.test/hook\", secret_file: SECRET}\n"
#define TWO "  - {name: two, url: \"https://two.test/hook\", secret_file: SECRET}\n"

static unsigned post(enum event_type type, const char *application)
{
	unsigned e = fake_outbox_event(t.store, type, application);
	webhook_kick(t.webhook);
	return e;
}

static void answer_status(int status)
{
	t.scripted = true;
	t.answer.status = status;
}

static double outcomes(const char *outcome)
{
	return series_value(metrics_get(M_WEBHOOK_DELIVERIES, outcome, NULL));
}

static unsigned got_by(const char *host)
{
	unsigned n = 0;
	for (unsigned i = 0; i < t.n_got; i++)
		n += strcmp(t.got[i].host, host) == 0;
	return n;
}

/* ---------------------------------------------------------------- one delivery */

static void check_signatures(const struct got *g)
{
	struct fault f = {0};
	struct event_secret secret;
	ck_ok(event_secret_parse(SECRET, strlen(SECRET), &secret, &f));
	const struct event_secret *const secrets[] = {&secret};
	struct buf want = BUF_INIT(1000);
	ck_ok(event_sign_standard(secrets, 1, NULL, g->id, g->timestamp, g->body, strlen(g->body), &want));
	ck_assert_str_eq(g->signature, buf_str(&want));
	buf_reset(&want);
	ck_ok(event_sign_apideck(&secret, g->body, strlen(g->body), &want));
	ck_assert_str_eq(g->apideck, buf_str(&want));
	buf_fini(&want);
	event_secret_fini(&secret);
}

START_TEST(an_event_is_delivered_signed_and_then_nothing_wakes_us)
{
	start("", ONE);
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	fake_loop_run_for(t.loop, 10 * US_PER_MS);
	ck_assert_uint_eq(t.n_got, 1);
	const struct got *g = &t.got[0];
	char id[STR_UUID_BYTES];
	str_format_uuid(fake_outbox_get_event(t.store, e)->id, id);
	ck_assert_str_eq(g->id, id);
	ck_assert_str_eq(g->key, id);
	ck_assert_str_eq(g->type, "vault.connection.token_refresh.failed");
	ck_assert_int_eq(g->timestamp, g->wall_us / US_PER_S);
	ck_assert(strstr(g->body, "\"execution_attempt\":1,") != NULL);
	ck_assert(strstr(g->body, "\"attempts\":3") != NULL);
	check_signatures(g);
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	ck_assert(d != NULL && d->done && d->delivered && d->status == 200 && d->error == NULL);
	ck_assert(outcomes("delivered") == 1 && outcomes("failed") == 0);
	ck_assert_uint_eq(logged("webhook.delivered", "one"), 1);
	ck_assert(series_value(metrics_get(M_WEBHOOK_DURATION, NULL, NULL)) == 1);

	fake_loop_run_for(t.loop, US_PER_S);
	uint64_t turns = fake_loop_turns(t.loop);
	fake_loop_run_for(t.loop, DAY_US);
	ck_assert_uint_eq(fake_loop_turns(t.loop), turns);
}
END_TEST

START_TEST(a_kick_fans_out_in_the_same_turn)
{
	start("", ONE);
	unsigned before = fake_outbox_calls(t.store)->fanouts;
	post(EVENT_CREATED, "app1");
	post(EVENT_UPDATED, "app1");
	ck_assert_uint_eq(fake_outbox_calls(t.store)->fanouts, before);
	loop_once(t.loop, 0);
	ck_assert_uint_eq(fake_outbox_calls(t.store)->fanouts, before + 1);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(t.n_got, 2);
}
END_TEST

START_TEST(retries_follow_the_schedule_and_end)
{
	static const int64_t delays_s[] = {5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400};
	start("", ONE);
	answer_status(500);
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	fake_loop_run_for(t.loop, 10 * DAY_US); /* without a single poll */
	ck_assert_uint_eq(t.n_got, 10);
	for (unsigned i = 0; i < 9; i++) {
		double waited = (double)(t.got[i + 1].mono_us - t.got[i].mono_us) / (double)US_PER_S;
		ck_assert_msg(
			waited >= 0.8 * (double)delays_s[i] && waited <= 1.2 * (double)delays_s[i] + 1.1,
			"retry %u after %f s", i + 2, waited);
		ck_assert_str_eq(t.got[i + 1].id, t.got[0].id);
		ck_assert_str_eq(t.got[i + 1].key, t.got[0].key);
		ck_assert_int_eq(t.got[i + 1].timestamp, t.got[i + 1].wall_us / US_PER_S);
		char want[40];
		snprintf(want, sizeof want, "\"execution_attempt\":%u,", i + 2);
		ck_assert(strstr(t.got[i + 1].body, want) != NULL);
		check_signatures(&t.got[i + 1]);
	}
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	ck_assert(d->done && !d->delivered && d->status == 500 && d->attempt == 10);
	ck_assert_str_eq(d->error, "http_status");
	ck_assert(outcomes("failed") == 9 && outcomes("gave_up") == 1);
	ck_assert_uint_eq(logged("webhook.failed", "endpoint=one"), 9);
	ck_assert_uint_eq(logged("webhook.gave_up", "attempt=10"), 1);
	uint64_t turns = fake_loop_turns(t.loop);
	fake_loop_run_for(t.loop, DAY_US);
	ck_assert_uint_eq(fake_loop_turns(t.loop), turns);
}
END_TEST

static const struct {
	struct fake_answer answer;
	int status;
	const char *error;
	const char *outcome;
	double wait_min_s, wait_max_s; /* until the second attempt */
} failures[] = {
	{{.result = HTTPC_COMPLETE, .status = 301}, 301, "redirect", "failed", 4, 7.1},
	{{.result = HTTPC_COMPLETE, .status = 404}, 404, "http_status", "failed", 4, 7.1},
	{{.result = HTTPC_COMPLETE, .status = 500, .retry_after = "100"}, 500, "http_status", "failed", 4,
		7.1},
	{{.result = HTTPC_COMPLETE, .status = 429, .retry_after = "100"}, 429, "http_status", "failed", 100,
		101.1},
	{{.result = HTTPC_COMPLETE, .status = 503, .retry_after = "100"}, 503, "http_status", "failed", 100,
		101.1},
	{{.result = HTTPC_COMPLETE, .status = 503, .retry_after = "2"}, 503, "http_status", "failed", 4, 7.1},
	{{.result = HTTPC_COMPLETE, .status = 429, .retry_after = "soon"}, 429, "http_status", "failed", 4,
		7.1},
	{{.result = HTTPC_COMPLETE, .status = 503, .retry_after = "99999999"}, 503, "http_status", "failed",
		86400, 86402},
	{{.result = HTTPC_NEVER_SENT, .error = HTTPC_E_CONNECT}, 0, "connect", "failed", 4, 7.1},
	{{.result = HTTPC_NEVER_SENT, .error = HTTPC_E_TLS}, 0, "tls", "failed", 4, 7.1},
	{{.result = HTTPC_CUT, .error = HTTPC_E_CLOSED, .status = 200}, 200, "closed", "failed", 4, 7.1},
	{{.result = HTTPC_CUT, .error = HTTPC_E_TOO_LARGE, .status = 500}, 500, "http_status", "failed", 4,
		7.1},
	{{.hang = true}, 0, "timeout", "failed", 24, 27.1}, /* with its own 20 s */
	{{.address = "127.0.0.1"}, 0, "address_refused", "refused", 4, 7.1},
	{{.address = "169.254.169.254"}, 0, "address_refused", "refused", 4, 7.1},
	{{.address = "::ffff:10.0.0.1"}, 0, "address_refused", "refused", 4, 7.1},
};

START_TEST(a_failure_is_told_and_tried_again)
{
	start("", ONE);
	t.scripted = true;
	t.answer = failures[_i].answer;
	t.answer.after_us = US_PER_MS;
	unsigned e = post(EVENT_REFRESH_FAILED, "app1");
	fake_loop_run_for(t.loop, 21 * US_PER_S - (failures[_i].answer.hang ? 0 : 19 * US_PER_S));
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	ck_assert(d != NULL && !d->done && d->attempt == 1);
	ck_assert_int_eq(d->status, failures[_i].status);
	ck_assert_str_eq(d->error, failures[_i].error);
	ck_assert(outcomes(failures[_i].outcome) == 1);
	ck_assert(outcomes("delivered") == 0);
	t.answer = (struct fake_answer){.result = HTTPC_COMPLETE, .status = 204, .after_us = 1};
	fake_loop_run_for(t.loop, 2 * DAY_US);
	ck_assert_uint_eq(t.n_got, 2);
	double waited = (double)(t.got[1].mono_us - t.got[0].mono_us) / (double)US_PER_S;
	ck_assert_msg(waited >= failures[_i].wait_min_s && waited <= failures[_i].wait_max_s, "waited %f s",
		waited);
	ck_assert(d->done && d->delivered);
}
END_TEST

START_TEST(a_long_answer_is_an_answer)
{
	start("", ONE);
	t.scripted = true;
	t.answer = (struct fake_answer){
		.result = HTTPC_CUT, .error = HTTPC_E_TOO_LARGE, .status = 200, .after_us = 1};
	unsigned e = post(EVENT_CREATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, "config:one")->delivered);
}
END_TEST

START_TEST(private_addresses_need_to_be_allowed)
{
	start("insecure_http: loopback",
		"  - {name: a, url: \"https://a.test/\", secret_file: SECRET, allow_private: yes}\n"
		"  - {name: b, url: \"http://localhost:80/\", secret_file: SECRET, allow_private: yes}\n"
		"  - {name: c, url: \"https://c.test/\", secret_file: SECRET}\n");
	t.scripted = true;
	t.answer.address = "10.1.2.3";
	unsigned e = post(EVENT_CREATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, "config:a")->delivered);
	ck_assert(!fake_outbox_delivery(t.store, e, "config:b")->delivered); /* plain http: loopback alone */
	ck_assert(!fake_outbox_delivery(t.store, e, "config:c")->delivered);
	t.answer.address = "127.0.0.1";
	fake_loop_run_for(t.loop, 10 * US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, "config:b")->delivered);
	ck_assert(!fake_outbox_delivery(t.store, e, "config:c")->delivered);
	t.answer.address = "8.8.8.8";
	fake_loop_run_for(t.loop, 600 * US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, "config:c")->delivered);
}
END_TEST

START_TEST(a_body_that_cannot_be_sent_is_given_up_aloud)
{
	start("", ONE);
	static char huge[30000];
	memset(huge, 'x', sizeof huge - 1);
	unsigned e = fake_outbox_event(t.store, EVENT_CREATED, "app1");
	fake_outbox_get_event(t.store, e)->entity = huge;
	unsigned fine = post(EVENT_CREATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	ck_assert(d->done && !d->delivered);
	ck_assert_str_eq(d->error, "not_sendable");
	ck_assert_uint_eq(logged("webhook.not_sendable", "one"), 1);
	ck_assert(fake_outbox_delivery(t.store, fine, "config:one")->delivered);
	ck_assert_uint_eq(t.n_got, 1);
}
END_TEST

/* ---------------------------------------------------------------- who gets what */

START_TEST(events_go_to_those_that_want_them)
{
	start("",
		"  - {name: all, url: \"https://all.test/\", secret_file: SECRET}\n"
		"  - {name: app, application: app1, url: \"https://app.test/\", secret_file: SECRET}\n"
		"  - {name: few, url: \"https://few.test/\", secret_file: SECRET, events: [vault.connection.token_refresh.*]}\n"
		"  - {name: single, url: \"https://single.test/\", secret_file: SECRET, events: [vault.connection.deleted]}\n");
	post(EVENT_CREATED, "app1");
	post(EVENT_REFRESH_FAILED, "app2");
	post(EVENT_PROVIDER_FAILING, "*");
	post(EVENT_DELETED, "app1");
	fake_outbox_test_event(t.store, "config:single");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(got_by("all.test"), 4);
	ck_assert_uint_eq(got_by("app.test"), 2);
	ck_assert_uint_eq(got_by("few.test"), 1);
	ck_assert_uint_eq(
		got_by("single.test"), 2); /* the test event is not of its types, and for it alone */
}
END_TEST

START_TEST(many_events_go_in_batches)
{
	start("", ONE);
	for (unsigned i = 0; i < 450; i++)
		post(EVENT_UPDATED, "app1");
	unsigned before = fake_outbox_calls(t.store)->fanouts;
	fake_loop_run_for(t.loop, 10 * US_PER_S);
	ck_assert_uint_eq(fake_outbox_calls(t.store)->fanouts, before + 3);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:one", true), 450);
	ck_assert_uint_eq(t.n_got, 450);
	ck_assert_uint_le(fake_httpc_peak(t.httpc), 16);
}
END_TEST

/* ---------------------------------------------------------------- claimed ahead */

static void post_many(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		post(EVENT_UPDATED, "app1");
}

START_TEST(a_quick_receiver_is_claimed_for_in_large_batches)
{
	start("", ONE);
	fake_outbox_set_delay(t.store, 5 * US_PER_MS);
	unsigned before = fake_outbox_calls(t.store)->claims;
	post_many(1500);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:one", true), 1500);
	ck_assert_uint_le(fake_outbox_calls(t.store)->claims - before, 60);
	ck_assert_uint_eq(fake_httpc_peak(t.httpc), 16);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 0);
}
END_TEST

START_TEST(claims_of_a_backlog_leave_most_of_the_time_to_others)
{
	start("", ONE);
	post_many(1500);
	fake_outbox_set_delay(t.store, 20 * US_PER_MS);
	fake_loop_run_for(t.loop, 500 * US_PER_MS); /* by now claims are large */
	ck_assert_uint_lt(fake_outbox_count(t.store, "config:one", true), 1000);
	unsigned before = fake_outbox_calls(t.store)->claims;
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_ge(fake_outbox_calls(t.store)->claims - before, 5);
	ck_assert_uint_le(fake_outbox_calls(t.store)->claims - before, 12); /* 20 ms each, and 80 ms of rest */
}
END_TEST

START_TEST(a_slow_receiver_is_not_claimed_for_ahead)
{
	start("", ONE);
	t.scripted = true;
	t.answer.after_us = 2 * US_PER_S;
	post_many(100);
	for (unsigned i = 0; i < 20; i++) {
		fake_loop_run_for(t.loop, US_PER_S);
		ck_assert_uint_le(webhook_in_flight(t.webhook), 4);
	}
	ck_assert_uint_ge(t.n_got, 36);
	ck_assert_uint_eq(fake_httpc_peak(t.httpc), 4);
}
END_TEST

START_TEST(what_was_claimed_ahead_for_one_that_dies_is_given_back)
{
	start("", ONE TWO);
	post_many(400);
	fake_loop_run_for(t.loop, 30 * US_PER_MS);
	strcpy(t.dead, "two");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:one", true), 400); /* delays nobody */
	ck_assert_uint_gt(webhook_in_flight(t.webhook), 4);                     /* or this shows nothing */
	fake_loop_run_for(t.loop, 22 * US_PER_S);
	ck_assert_uint_le(webhook_in_flight(t.webhook), 1);
	ck_assert_uint_ge(fake_outbox_calls(t.store)->releases, 1);
	t.dead[0] = '\0';
	fake_loop_run_for(t.loop, 120 * US_PER_S);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:two", true), 400);
	for (unsigned e = 0; e < 400; e++) /* only what was sent is counted as an attempt */
		ck_assert_int_le(fake_outbox_delivery(t.store, e, "config:two")->attempt, 2);
}
END_TEST

START_TEST(what_was_claimed_ahead_goes_where_a_reload_says)
{
	start("", ONE);
	post_many(400);
	fake_loop_run_for(t.loop, 30 * US_PER_MS);
	unsigned old = t.n_got;
	ck_assert(old > 8 && webhook_in_flight(t.webhook) > 8);
	use("", "  - {name: one, url: \"https://moved.test/hook\", secret_file: SECRET}\n");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_le(got_by("one.test"), old + 4);
	ck_assert_uint_eq(got_by("one.test") + got_by("moved.test"), 400);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:one", true), 400);
}
END_TEST

START_TEST(a_drain_gives_back_what_was_claimed_ahead)
{
	start("", ONE);
	post_many(400);
	fake_loop_run_for(t.loop, 30 * US_PER_MS);
	ck_assert_uint_gt(webhook_in_flight(t.webhook), 8);
	unsigned before = t.n_got;
	webhook_drain(t.webhook, on_drained, NULL);
	fake_loop_run_for(t.loop, 100 * US_PER_MS);
	ck_assert_uint_eq(t.drained, 1);
	ck_assert_uint_eq(t.n_got, before);
	for (unsigned e = 0; e < 400; e++) {
		const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
		ck_assert(d == NULL || (d->lease_until == 0 && d->attempt == (d->delivered ? 1 : 0)));
	}
}
END_TEST

START_TEST(no_more_at_once_than_configured_and_each_gets_its_turn)
{
	struct buf hooks = BUF_INIT(20000);
	for (unsigned i = 0; i < 6; i++)
		ck_ok(buf_printf(&hooks, "  - {name: h%u, url: \"https://h%u.test/\", secret_file: SECRET}\n", i, i));
	start("delivery: {max_in_flight: 5}", buf_str(&hooks));
	buf_fini(&hooks);
	post_many(300);
	fake_loop_run_for(t.loop, 100 * US_PER_MS);
	ck_assert_uint_eq(fake_httpc_peak(t.httpc), 5);
	unsigned least = UINT_MAX, most = 0;
	for (unsigned i = 0; i < 6; i++) {
		char host[16];
		snprintf(host, sizeof host, "h%u.test", i);
		unsigned n = got_by(host);
		least = n < least ? n : least;
		most = n > most ? n : most;
	}
	ck_assert_msg(least > 0 && most <= 3 * least, "%u to %u", least, most);
	fake_loop_run_for(t.loop, 10 * US_PER_S);
	ck_assert_uint_eq(t.n_got, 6 * 300);
}
END_TEST

/* ---------------------------------------------------------------- dead receivers */

/* How long others wait is set by how many places it has at the moment when it begins to hang. */
START_TEST(a_quick_receiver_that_hangs_leaves_places_where_there_are_few)
{
	start("delivery: {max_in_flight: 16}", TWO ONE);
	post_many(600);
	fake_loop_run_for(t.loop, 10 * US_PER_S);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:two", true), 600);
	strcpy(t.dead, "two");
	post_many(50);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:one", true), 650);
	for (unsigned i = 0; i < 19; i++) {
		post_many(1);
		fake_loop_run_for(t.loop, US_PER_S);
		ck_assert_uint_eq(fake_outbox_count(t.store, "config:one", true), 651 + i);
	}
}
END_TEST

START_TEST(a_dead_receiver_delays_nobody)
{
	start("", ONE TWO);
	strcpy(t.dead, "two");
	for (unsigned i = 0; i < 100; i++) {
		int64_t asked = sys_mono_us();
		post(EVENT_UPDATED, "app1");
		fake_loop_run_for(t.loop, US_PER_S);
		ck_assert_uint_eq(got_by("one.test"), i + 1);
		for (unsigned j = t.n_got; j-- > 0;) {
			if (strcmp(t.got[j].host, "one.test") == 0) {
				ck_assert_int_lt(t.got[j].mono_us - asked, 50 * US_PER_MS);
				break;
			}
		}
	}
	/* four at once, then one at a time, 20 s each */
	ck_assert_uint_ge(got_by("two.test"), 6);
	ck_assert_uint_le(got_by("two.test"), 10);
	ck_assert_uint_le(fake_httpc_peak(t.httpc), 5);
}
END_TEST

START_TEST(many_dead_receivers_leave_places_for_the_living)
{
	struct buf hooks = BUF_INIT(20000);
	ck_ok(buf_puts(&hooks, ONE));
	for (unsigned i = 0; i < 60; i++)
		ck_ok(buf_printf(&hooks,
			"  - {name: d%u, url: \"https://dead%u.test/\", secret_file: SECRET}\n", i, i));
	start("delivery: {max_in_flight: 64}", buf_str(&hooks));
	buf_fini(&hooks);
	strcpy(t.dead, "dead");
	for (unsigned i = 0; i < 12; i++)
		post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 150 * US_PER_S); /* until all of them are known to be dead */
	for (unsigned i = 0; i < 20; i++) {
		unsigned before = got_by("one.test");
		post(EVENT_UPDATED, "app1");
		fake_loop_run_for(t.loop, 100 * US_PER_MS);
		ck_assert_uint_eq(got_by("one.test"), before + 1);
		fake_loop_run_for(t.loop, US_PER_S);
	}
	ck_assert_uint_le(fake_httpc_peak(t.httpc), 64);
	ck_assert_uint_le(httpc_in_flight(t.httpc), 16);
}
END_TEST

START_TEST(a_receiver_that_comes_back_gets_its_places_back)
{
	start("", TWO);
	strcpy(t.dead, "two");
	for (unsigned i = 0; i < 60; i++)
		post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 60 * US_PER_S);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 1);
	t.dead[0] = '\0';
	fake_loop_run_for(t.loop, 60 * US_PER_S);
	ck_assert_uint_ge(fake_outbox_count(t.store, "config:two", true), 50);
	fake_loop_run_for(t.loop, 600 * US_PER_S);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:two", true), 60);
}
END_TEST

START_TEST(gone_switches_the_endpoint_off)
{
	start("", ONE TWO);
	answer_status(410);
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert(fake_outbox_is_disabled(t.store, "config:one"));
	ck_assert(fake_outbox_delivery(t.store, e, "config:one")->done);
	ck_assert_uint_eq(logged("webhook.disabled", "endpoint=one"), 1);
	ck_assert(outcomes("refused") == 2);
	answer_status(200);
	post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, DAY_US);
	ck_assert_uint_eq(t.n_got, 2);

	fake_outbox_set_disabled(t.store, "config:one", false); /* an operator */
	fake_loop_run_for(t.loop, 2 * 60 * US_PER_S);
	webhook_poll(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(logged("webhook.enabled", "endpoint=one"), 1);
	post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(got_by("one.test"), 2);
}
END_TEST

START_TEST(five_days_of_only_failures_switch_off)
{
	start("", ONE TWO);
	t.scripted = true;
	t.answer = (struct fake_answer){.result = HTTPC_NEVER_SENT, .error = HTTPC_E_CONNECT, .after_us = 1};
	for (unsigned hour = 0; hour < 5 * 24 + 2; hour++) {
		ck_assert(hour >= 5 * 24 || !fake_outbox_is_disabled(t.store, "config:one"));
		post(EVENT_UPDATED, "app1");
		fake_loop_run_for(t.loop, HOUR_US);
		if (hour == 60) {
			answer_status(200); /* one success begins anew, for both */
			t.answer.result = HTTPC_COMPLETE;
			post(EVENT_UPDATED, "app1");
			fake_loop_run_for(t.loop, US_PER_S);
			t.answer.result = HTTPC_NEVER_SENT;
			t.answer.status = 0;
		}
	}
	ck_assert(!fake_outbox_is_disabled(t.store, "config:one"));
	for (unsigned hour = 0; hour < 62; hour++) {
		post(EVENT_UPDATED, "app1");
		fake_loop_run_for(t.loop, HOUR_US);
	}
	ck_assert(fake_outbox_is_disabled(t.store, "config:one"));
	ck_assert_uint_eq(logged("webhook.disabled", "endpoint=one"), 1);
	unsigned got = t.n_got;
	fake_loop_run_for(t.loop, DAY_US);
	ck_assert_uint_eq(t.n_got, got);
}
END_TEST

/* ---------------------------------------------------------------- the database */

START_TEST(without_the_database_nothing_spins)
{
	start("", ONE);
	fake_outbox_fail(t.store, ST_UNAVAILABLE, false);
	unsigned e = post(EVENT_UPDATED, "app1");
	unsigned before = fake_outbox_statements(t.store);
	for (unsigned i = 0; i < 60; i++) {
		webhook_poll(t.webhook);
		fake_loop_run_for(t.loop, 5 * US_PER_S);
	}
	unsigned tried = fake_outbox_statements(t.store) - before;
	ck_assert_uint_ge(tried, 20);
	ck_assert_uint_le(tried, 300);
	ck_assert_uint_eq(t.n_got, 0);
	ck_assert_uint_eq(logged("webhook.outbox_unavailable", ""), 1);
	fake_outbox_fail(t.store, 0, false);
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, "config:one")->delivered);
	ck_assert_uint_eq(logged("webhook.outbox_back", ""), 1);
}
END_TEST

START_TEST(nothing_is_claimed_before_the_store_is_ready)
{
	fake_outbox_set_state(t.store, STORE_CHECKING);
	start("", ONE);
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 60 * US_PER_S);
	ck_assert_uint_eq(fake_outbox_statements(t.store), 0);
	fake_outbox_set_state(t.store, STORE_READY);
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, "config:one")->delivered);
}
END_TEST

START_TEST(a_result_is_kept_until_it_is_recorded)
{
	start("", ONE);
	t.scripted = true;
	t.answer.after_us = 10 * US_PER_S;
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(t.n_got, 1);
	fake_outbox_fail(t.store, ST_UNAVAILABLE, false);
	fake_loop_run_for(t.loop, 30 * US_PER_S);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 1);
	fake_outbox_fail(t.store, 0, false);
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 0);
	ck_assert(fake_outbox_delivery(t.store, e, "config:one")->delivered);
	ck_assert_uint_eq(t.n_got, 1);
}
END_TEST

START_TEST(a_record_whose_answer_was_lost_is_written_again)
{
	start("", ONE);
	t.scripted = true;
	t.answer.after_us = 10 * US_PER_S;
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	fake_outbox_fail(t.store, ST_UNAVAILABLE, true);
	fake_loop_run_for(t.loop, 9500 * US_PER_MS);
	fake_outbox_fail(t.store, 0, false);
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, e, "config:one")->delivered);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 0);
	ck_assert_uint_eq(t.n_got, 1);
}
END_TEST

START_TEST(a_claim_whose_answer_was_lost_is_sent_after_its_lease)
{
	start("", ONE);
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 500);
	fake_outbox_fail(t.store, ST_UNAVAILABLE, true); /* fanned out already, not claimed yet */
	fake_loop_run_for(t.loop, 5 * US_PER_S);
	fake_outbox_fail(t.store, 0, false);
	for (unsigned i = 0; i < 30; i++) {
		webhook_poll(t.webhook);
		fake_loop_run_for(t.loop, 5 * US_PER_S);
	}
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	ck_assert(d->delivered && d->attempt == 2);
	ck_assert_uint_eq(t.n_got, 1);
}
END_TEST

START_TEST(one_record_that_is_refused_does_not_hold_the_others)
{
	start("", ONE TWO);
	t.scripted = true;
	t.answer.after_us = US_PER_S;
	unsigned bad = post(EVENT_UPDATED, "app1"), good = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 100 * US_PER_MS);
	fake_outbox_delivery(t.store, bad, "config:one")->poisoned = true;
	fake_loop_run_for(t.loop, 30 * US_PER_S);
	ck_assert(fake_outbox_delivery(t.store, bad, "config:two")->delivered);
	ck_assert(fake_outbox_delivery(t.store, good, "config:one")->delivered);
	ck_assert(fake_outbox_delivery(t.store, good, "config:two")->delivered);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 0);
	ck_assert_uint_eq(logged("webhook.not_recordable", "endpoint=one"), 1);
	fake_outbox_delivery(t.store, bad, "config:one")->poisoned = false;
	for (unsigned i = 0; i < 30; i++) {
		webhook_poll(t.webhook);
		fake_loop_run_for(t.loop, 5 * US_PER_S);
	}
	ck_assert(fake_outbox_delivery(t.store, bad, "config:one")->delivered);
}
END_TEST

START_TEST(a_claim_that_took_too_long_is_given_back_unsent)
{
	start("", ONE);
	unsigned e = fake_outbox_event(t.store, EVENT_UPDATED, "app1");
	webhook_kick(t.webhook);
	fake_loop_run_for(t.loop, 1500); /* fanned out, the claim not sent yet answered */
	fake_outbox_set_delay(t.store, 50 * US_PER_S);
	fake_outbox_event(t.store, EVENT_UPDATED, "app1");
	webhook_kick(t.webhook);
	fake_loop_run_for(t.loop, 99 * US_PER_S);
	fake_outbox_set_delay(t.store, US_PER_MS);
	fake_loop_run_for(t.loop, 10 * US_PER_S);
	ck_assert_uint_ge(fake_outbox_calls(t.store)->releases, 1);
	fake_loop_run_for(t.loop, 100 * US_PER_S);
	ck_assert_uint_eq(fake_outbox_count(t.store, "config:one", true), 2);
	ck_assert_int_eq(fake_outbox_delivery(t.store, e, "config:one")->attempt, 1);
	ck_assert_uint_eq(t.n_got, 2);
}
END_TEST

START_TEST(a_full_client_gives_back_and_waits)
{
	start("", ONE);
	t.scripted = true;
	t.answer.start_code = ST_FULL;
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert_uint_le(t.n_got, 21); /* once a second */
	ck_assert_uint_ge(t.n_got, 10);
	t.answer.start_code = 0;
	fake_loop_run_for(t.loop, 2 * US_PER_S);
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	ck_assert(d->delivered && d->attempt == 1);
}
END_TEST

START_TEST(what_another_daemon_is_about_to_take_is_not_asked_for_in_a_loop)
{
	start("", ONE);
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 500);
	struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	d->locked = true;
	unsigned before = fake_outbox_calls(t.store)->claims;
	fake_loop_run_for(t.loop, 20 * US_PER_S);
	ck_assert_uint_le(fake_outbox_calls(t.store)->claims - before, 21);
	ck_assert_uint_ge(fake_outbox_calls(t.store)->claims - before, 10);
	d->locked = false;
	fake_loop_run_for(t.loop, 2 * US_PER_S);
	ck_assert(d->delivered);
}
END_TEST

START_TEST(a_poll_finds_what_others_left)
{
	start("", ONE);
	fake_outbox_event(t.store, EVENT_UPDATED, "app1"); /* another daemon's, without a kick */
	fake_loop_run_for(t.loop, HOUR_US);
	ck_assert_uint_eq(t.n_got, 0);
	webhook_poll(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(t.n_got, 1);
}
END_TEST

START_TEST(upkeep_runs_at_its_pace)
{
	start("", ONE);
	for (unsigned i = 0; i < 3600 / 5; i++) {
		webhook_poll(t.webhook);
		fake_loop_run_for(t.loop, 5 * US_PER_S);
	}
	const struct fake_outbox_calls *c = fake_outbox_calls(t.store);
	ck_assert_uint_eq(c->purges, 1);
	ck_assert_int_le(c->purge_older_than, SYS_VIRTUAL_WALL_US - 30 * DAY_US + US_PER_S);
	ck_assert_uint_ge(c->lists, 55);
	ck_assert_uint_le(c->lists, 62);
	ck_assert_uint_le(c->counts, 242);
	fake_loop_run_for(t.loop, 10 * US_PER_S);
	webhook_poll(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(c->purges, 2);
}
END_TEST

START_TEST(the_backlog_is_counted)
{
	start("", ONE);
	strcpy(t.dead, "one");
	for (unsigned i = 0; i < 10; i++)
		post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 15 * US_PER_S);
	webhook_poll(t.webhook);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert(series_value(metrics_get(M_WEBHOOK_BACKLOG, NULL, NULL)) == 6);
}
END_TEST

/* ---------------------------------------------------------------- reload, drain, end */

START_TEST(a_reload_changes_the_endpoints)
{
	start("", ONE TWO);
	strcpy(t.dead, "one");
	post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	use("", TWO "  - {name: three, url: \"https://three.test/\", secret_file: SECRET}\n");
	post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(got_by("one.test"), 1);
	ck_assert_uint_eq(got_by("two.test"), 2);
	ck_assert_uint_eq(got_by("three.test"), 1);
	fake_loop_run_for(t.loop, 30 * US_PER_S); /* what was in flight ends and is recorded */
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 0);
	ck_assert_str_eq(fake_outbox_delivery(t.store, 0, "config:one")->error, "timeout");
	fake_loop_run_for(t.loop, HOUR_US);
	ck_assert_uint_eq(got_by("one.test"), 1);
}
END_TEST

START_TEST(a_reload_during_a_claim_is_survived)
{
	start("", ONE TWO);
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 1500); /* fanned out, the claim is under way */
	ck_assert(fake_outbox_delivery(t.store, e, "config:one") != NULL);
	ck_assert_uint_eq(t.n_got, 0);
	use("", TWO);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(got_by("one.test"), 0);
	ck_assert_uint_eq(got_by("two.test"), 1);
	ck_assert_int_eq(fake_outbox_delivery(t.store, e, "config:one")->attempt, 0); /* given back */
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 0);
}
END_TEST

START_TEST(drain_waits_for_attempts_and_starts_no_new_ones)
{
	start("", ONE TWO);
	t.scripted = true;
	t.answer.after_us = 5 * US_PER_S;
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(webhook_in_flight(t.webhook), 2);
	webhook_drain(t.webhook, on_drained, NULL);
	ck_assert_uint_eq(t.drained, 0);
	post(EVENT_UPDATED, "app1");
	webhook_poll(t.webhook);
	fake_loop_run_for(t.loop, 3 * US_PER_S);
	ck_assert_uint_eq(t.drained, 0);
	fake_loop_run_for(t.loop, 2 * US_PER_S);
	ck_assert_uint_eq(t.drained, 1);
	ck_assert(fake_outbox_delivery(t.store, e, "config:one")->delivered);
	ck_assert(fake_outbox_delivery(t.store, e, "config:two")->delivered);
	fake_loop_run_for(t.loop, DAY_US);
	ck_assert_uint_eq(t.drained, 1);
	ck_assert_uint_eq(t.n_got, 2);
}
END_TEST

START_TEST(a_claim_that_arrives_while_draining_is_given_back)
{
	start("", ONE);
	unsigned e = post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, 1500);
	webhook_drain(t.webhook, on_drained, NULL);
	fake_loop_run_for(t.loop, US_PER_S);
	ck_assert_uint_eq(t.drained, 1);
	ck_assert_uint_eq(t.n_got, 0);
	const struct fake_delivery *d = fake_outbox_delivery(t.store, e, "config:one");
	ck_assert(d->attempt == 0 && d->lease_until == 0);
}
END_TEST

START_TEST(an_idle_drain_is_over_at_once_but_not_inside)
{
	start("", ONE);
	webhook_drain(t.webhook, on_drained, NULL);
	ck_assert_uint_eq(t.drained, 0);
	fake_loop_settle(t.loop);
	ck_assert_uint_eq(t.drained, 1);
}
END_TEST

START_TEST(freeing_with_everything_in_flight_leaks_nothing)
{
	start("", ONE TWO);
	strcpy(t.dead, "one");
	t.scripted = true;
	t.answer.after_us = 999 * US_PER_MS;
	for (unsigned i = 0; i < 20; i++)
		post(EVENT_UPDATED, "app1");
	fake_loop_run_for(t.loop, US_PER_S);
	webhook_kick(t.webhook);
	ck_assert_uint_gt(webhook_in_flight(t.webhook), 4);
	/* the rest is up to teardown and the sanitizers */
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("webhook");
	TCase *c = tcase_create("webhook");
	tcase_add_checked_fixture(c, setup, teardown);
	tcase_set_timeout(c, 60);
	unit_add(c, an_event_is_delivered_signed_and_then_nothing_wakes_us);
	unit_add(c, a_kick_fans_out_in_the_same_turn);
	unit_add(c, retries_follow_the_schedule_and_end);
	tcase_add_loop_test(c, a_failure_is_told_and_tried_again, 0, sizeof failures / sizeof *failures);
	unit_add(c, a_long_answer_is_an_answer);
	unit_add(c, private_addresses_need_to_be_allowed);
	unit_add(c, a_body_that_cannot_be_sent_is_given_up_aloud);
	unit_add(c, events_go_to_those_that_want_them);
	unit_add(c, many_events_go_in_batches);
	unit_add(c, a_quick_receiver_is_claimed_for_in_large_batches);
	unit_add(c, claims_of_a_backlog_leave_most_of_the_time_to_others);
	unit_add(c, a_slow_receiver_is_not_claimed_for_ahead);
	unit_add(c, what_was_claimed_ahead_for_one_that_dies_is_given_back);
	unit_add(c, what_was_claimed_ahead_goes_where_a_reload_says);
	unit_add(c, a_drain_gives_back_what_was_claimed_ahead);
	unit_add(c, no_more_at_once_than_configured_and_each_gets_its_turn);
	unit_add(c, a_dead_receiver_delays_nobody);
	unit_add(c, many_dead_receivers_leave_places_for_the_living);
	unit_add(c, a_quick_receiver_that_hangs_leaves_places_where_there_are_few);
	unit_add(c, a_receiver_that_comes_back_gets_its_places_back);
	unit_add(c, gone_switches_the_endpoint_off);
	unit_add(c, five_days_of_only_failures_switch_off);
	unit_add(c, without_the_database_nothing_spins);
	unit_add(c, nothing_is_claimed_before_the_store_is_ready);
	unit_add(c, a_result_is_kept_until_it_is_recorded);
	unit_add(c, a_record_whose_answer_was_lost_is_written_again);
	unit_add(c, a_claim_whose_answer_was_lost_is_sent_after_its_lease);
	unit_add(c, one_record_that_is_refused_does_not_hold_the_others);
	unit_add(c, a_claim_that_took_too_long_is_given_back_unsent);
	unit_add(c, a_full_client_gives_back_and_waits);
	unit_add(c, what_another_daemon_is_about_to_take_is_not_asked_for_in_a_loop);
	unit_add(c, a_poll_finds_what_others_left);
	unit_add(c, upkeep_runs_at_its_pace);
	unit_add(c, the_backlog_is_counted);
	unit_add(c, a_reload_changes_the_endpoints);
	unit_add(c, a_reload_during_a_claim_is_survived);
	unit_add(c, drain_waits_for_attempts_and_starts_no_new_ones);
	unit_add(c, a_claim_that_arrives_while_draining_is_given_back);
	unit_add(c, an_idle_drain_is_over_at_once_but_not_inside);
	unit_add(c, freeing_with_everything_in_flight_leaks_nothing);
	suite_add_tcase(s, c);
	return s;
}
