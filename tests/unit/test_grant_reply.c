/*
 * grant_reply - the table of replies, the fields that come out, limits, and a seeded mutation run.
 */
#include "unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base64.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/grant.h"
#include "model/grant_parse.h"
#include "unit/grant_replies.h"

#define START (INT64_C(1795428000) * US_PER_S) /* 2026-11-23T10:00:00Z */
#define SEED 987654321

static void list(struct strlist *l, const char *a, const char *b, const char *c)
{
	strlist_add(l, a);
	if (b != NULL)
		strlist_add(l, b);
	if (c != NULL)
		strlist_add(l, c);
}

static struct provider *provider_for(enum fixture_provider kind)
{
	struct provider *p = mem_alloc(sizeof(*p));

	p->key = mem_strdup("acme");
	if (kind == MILLIS)
		p->expires_in_unit = UNIT_MS;
	if (kind == DATES)
		list(&p->at_expires_at, "/missing", "/expires_at", NULL);
	if (kind == NESTED) {
		list(&p->at_access_token, "/authed_user/access_token", "/data/accessToken", "/0/accessToken");
		list(&p->at_refresh_token, "/authed_user/refresh_token", "/data/refreshToken", NULL);
		list(&p->at_expires_in, "/authed_user/expires_in", "not a pointer", NULL);
		list(&p->at_error, "/error", "/data/code", NULL);
	}
	if (kind == WORDS) {
		list(&p->grant_dead_errors, "token_gone", "unauthorized_client", "busy_grant");
		list(&p->transient_errors, "Access Denied", "busy_grant", NULL);
	}
	return p;
}

static struct grant_reply reply_of(int status, const char *type, const char *body, size_t n)
{
	return (struct grant_reply){.sent = true,
		.complete = true,
		.status = status,
		.content_type = type,
		.retry_after = "",
		.body = body,
		.body_len = n,
		.start_wall_us = START,
		.now_wall_us = START + US_PER_S};
}

static void classify(struct provider *p, const char *body, struct grant_result *out)
{
	struct grant_reply r = reply_of(200, J, body, strlen(body));
	grant_classify(p, &r, out);
}

START_TEST(fixture_means_what_it_should)
{
	const struct fixture *x = &fixtures[_i];
	struct provider *p = provider_for(x->provider);
	struct grant_reply r = reply_of(x->status, x->type, x->body, strlen(x->body));
	struct grant_result out;

	grant_classify(p, &r, &out);
	ck_assert_msg(out.outcome == x->outcome, "%d %s: %s", x->status, x->body, outcome_word(out.outcome));
	ck_assert_msg(out.reason == x->reason, "%d %s: %s", x->status, x->body, reason_word(out.reason));
	ck_assert_msg(strcmp(out.error, x->error) == 0, "%s: %s", x->body, out.error);
	ck_assert_msg(strcmp(buf_str(&out.access_token), x->access) == 0, "%s: %s", x->body,
		buf_str(&out.access_token));
	ck_assert_msg(strcmp(buf_str(&out.refresh_token), x->refresh) == 0, "%s: %s", x->body,
		buf_str(&out.refresh_token));
	int64_t life = out.expires_at_us == 0 ? 0 : (out.expires_at_us - START) / US_PER_S;
	ck_assert_msg(life == x->life_s, "%s: %lld", x->body, (long long)life);
	ck_assert(out.access_token.secret && out.refresh_token.secret);
	grant_result_fini(&out);
	provider_free(p);
}
END_TEST

START_TEST(there_are_enough_fixtures)
{
	unsigned seen[OUTCOME_COUNT] = {0};

	ck_assert_uint_ge(N_FIXTURES, 150);
	for (size_t i = 0; i < N_FIXTURES; i++)
		seen[fixtures[i].outcome]++;
	for (unsigned o = 0; o < OUTCOME_COUNT; o++)
		ck_assert_msg(o == OUTCOME_NEVER_SENT || seen[o] >= 3, "%s", outcome_word((enum outcome)o));
}
END_TEST

START_TEST(unsent_and_incomplete_come_before_all_else)
{
	static const char body[] = "{\"access_token\":\"AT\"}";
	struct provider *p = provider_for(PLAIN);
	struct grant_reply r = reply_of(200, J, body, strlen(body));
	struct grant_result out;

	r.sent = false;
	grant_classify(p, &r, &out);
	ck_assert_int_eq(out.outcome, OUTCOME_NEVER_SENT);
	ck_assert_int_eq(out.reason, REASON_UNREACHABLE);
	grant_result_fini(&out);
	r.sent = true;
	r.complete = false;
	r.body_len--;
	grant_classify(p, &r, &out);
	ck_assert_int_eq(out.outcome, OUTCOME_IN_DOUBT);
	ck_assert_int_eq(out.reason, REASON_NO_ANSWER);
	ck_assert_uint_eq(out.access_token.len, 0);
	grant_result_fini(&out);
	grant_result_fini(&out); /* twice is fine */
	r.complete = true;
	r.body_len++;
	r.content_type = NULL;
	r.retry_after = NULL;
	grant_classify(p, &r, &out);
	ck_assert_int_eq(out.outcome, OUTCOME_REFRESHED);
	grant_result_fini(&out);
	provider_free(p);
}
END_TEST

START_TEST(whole_object_counts_although_the_transport_complains)
{
	static const struct {
		int status;
		const char *type, *body;
		enum outcome outcome;
	} v[] = {
		{200, J, "{\"access_token\":\"AT\",\"refresh_token\":\"RT\"}", OUTCOME_REFRESHED},
		{200, "", "{\"access_token\":\"AT\"} ", OUTCOME_REFRESHED},
		{200, J, "{\"access_token\":\"AT\",\"refresh_token\":\"RT\"", OUTCOME_IN_DOUBT},
		{200, J, "{\"access_token\":\"AT\",\"error\":\"x\"}", OUTCOME_IN_DOUBT},
		{200, J, "{\"access_token\":\"A\\tT\"}", OUTCOME_IN_DOUBT},
		{200, J, "{\"error\":\"invalid_grant\"}", OUTCOME_IN_DOUBT},
		{200, J, "[]", OUTCOME_IN_DOUBT},
		{200, J, "", OUTCOME_IN_DOUBT},
		{200, "application/x-www-form-urlencoded", "access_token=AT", OUTCOME_IN_DOUBT},
		{400, J, "{\"error\":\"invalid_grant\"}", OUTCOME_IN_DOUBT},
		{500, J, "{\"access_token\":\"AT\"}", OUTCOME_IN_DOUBT},
	};
	struct provider *p = provider_for(PLAIN);
	for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
		struct grant_reply r = reply_of(v[i].status, v[i].type, v[i].body, strlen(v[i].body));
		struct grant_result out;

		r.complete = false;
		grant_classify(p, &r, &out);
		ck_assert_msg(out.outcome == v[i].outcome, "row %zu: %s", i, outcome_word(out.outcome));
		ck_assert((out.access_token.len > 0) == (v[i].outcome == OUTCOME_REFRESHED));
		grant_result_fini(&out);
	}
	provider_free(p);
}
END_TEST

START_TEST(retry_after_is_read_with_every_outcome)
{
	static const struct {
		int status;
		const char *value;
		int64_t want_s;
	} rows[] = {{429, "30", 30}, {503, "86400", 3600}, {503, "Mon, 23 Nov 2026 10:01:01 GMT", 60},
		{429, "x", 0}, {400, "-1", 0}, {504, "5", 5}, {200, "7", 7}};
	struct provider *p = provider_for(PLAIN);

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct grant_reply r = reply_of(rows[i].status, J, "{}", 2);
		struct grant_result out;
		r.retry_after = rows[i].value;
		grant_classify(p, &r, &out);
		ck_assert_msg(out.retry_after_us == rows[i].want_s * US_PER_S, "row %zu", i);
		grant_result_fini(&out);
	}
	provider_free(p);
}
END_TEST

START_TEST(scope_and_type)
{
	static const struct {
		const char *body, *scope, *type;
	} rows[] = {
		{"{\"access_token\":\"A\",\"scope\":\"a b\",\"token_type\":\"Bearer\"}", "a b", "Bearer"},
		{"{\"access_token\":\"A\",\"scope\":[\"a\",\"b\"],\"token_type\":\"DPoP\"}", "a b", "DPoP"},
		{"{\"access_token\":\"A\",\"scope\":\"\",\"token_type\":\"\"}", "", ""},
		{"{\"access_token\":\"A\",\"scope\":null,\"token_type\":null}", "", ""},
		{"{\"access_token\":\"A\",\"scope\":[],\"token_type\":7}", "", ""},
		{"{\"access_token\":\"A\",\"scope\":[\"a\",1]}", "", ""},
		{"{\"access_token\":\"A\",\"scope\":\"a\\nb\",\"token_type\":\"a\\nb\"}", "", ""},
		{"{\"access_token\":\"A\",\"scope\":{\"a\":1}}", "", ""},
		{"{\"access_token\":\"A\",\"token_type\":\"0123456789012345678901234567890\"}", "",
			"0123456789012345678901234567890"},
		{"{\"access_token\":\"A\",\"token_type\":\"01234567890123456789012345678901\"}", "", ""},
	};
	struct provider *p = provider_for(PLAIN);
	struct grant_result out;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		classify(p, rows[i].body, &out);
		ck_assert_int_eq(out.outcome, OUTCOME_REFRESHED);
		ck_assert_str_eq(buf_str(&out.scope), rows[i].scope);
		ck_assert_str_eq(out.token_type, rows[i].type);
		grant_result_fini(&out);
	}
	p->scope_separator = mem_strdup(",");
	classify(p, "{\"access_token\":\"A\",\"scope\":[\"a\",\"b\"]}", &out);
	ck_assert_str_eq(buf_str(&out.scope), "a,b");
	grant_result_fini(&out);
	provider_free(p);
}
END_TEST

START_TEST(refresh_token_lifetimes)
{
	static const struct {
		const char *body;
		int64_t want_s;
	} rows[] = {
		{"{\"access_token\":\"A\",\"refresh_token_expires_in\":15811200}", 15811200},
		{"{\"access_token\":\"A\",\"x_refresh_token_expires_in\":8726400}", 8726400},
		{"{\"access_token\":\"A\",\"refresh_expires_in\":\"1800\"}", 1800},
		{"{\"access_token\":\"A\",\"refresh_expires_in\":0}", 0},
		{"{\"access_token\":\"A\",\"refresh_token_expires_in\":-1,\"refresh_expires_in\":5}", 5},
		{"{\"access_token\":\"A\",\"refresh_token_expires_in\":\"2026-11-23T10:01:00Z\"}", 60},
		{"{\"access_token\":\"A\",\"refresh_token_expires_in\":\"2020-11-23T10:01:00Z\"}", 0},
		{"{\"access_token\":\"A\"}", 0},
	};
	struct provider *p = provider_for(PLAIN);

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct grant_result out;
		classify(p, rows[i].body, &out);
		int64_t got = out.refresh_expires_at_us == 0 ? 0 : out.refresh_expires_at_us - START;
		ck_assert_msg(got == rows[i].want_s * US_PER_S, "%s", rows[i].body);
		grant_result_fini(&out);
	}
	provider_free(p);
}
END_TEST

static struct provider *capturing(void)
{
	static const char *const names[] = {
		"instance_url", "count", "share", "flag", "object", "missing", "stolen", "long", "line"};
	struct provider *p = provider_for(PLAIN);

	p->n_capture = sizeof(names) / sizeof(names[0]);
	p->capture = mem_calloc(p->n_capture, sizeof(*p->capture));
	for (size_t i = 0; i < p->n_capture; i++) {
		char *pointer = mem_printf("/c/%s", names[i]);
		p->capture[i].name = mem_strdup(names[i]);
		strlist_add(&p->capture[i].pointers, "/nowhere");
		strlist_add(&p->capture[i].pointers,
			strcmp(names[i], "stolen") == 0 ? "/refresh_token" : pointer);
		mem_free(pointer);
	}
	return p;
}

START_TEST(captures_are_small_scalars_and_never_tokens)
{
	struct provider *p = capturing();
	struct grant_result out;
	struct buf body = BUF_INIT(8192);
	char big[1026];

	memset(big, 'x', 1025);
	big[1025] = '\0';
	ck_ok(buf_printf(&body,
		"{\"access_token\":\"AT\",\"refresh_token\":\"RT\",\"c\":{\"instance_url\":\"https://"
		"x.example/\",\"count\":7,"
		"\"share\":0.5,\"flag\":true,\"object\":{\"a\":1},\"other\":1,\"long\":\"%s\",\"line\":"
		"\"a\\nb\"}}",
		big));
	classify(p, buf_str(&body), &out);
	ck_assert_str_eq(json_object_to_json_string_ext(
				 out.captured, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE),
		"{\"instance_url\":\"https://x.example/\",\"count\":7,\"share\":0.5,\"flag\":true}");
	grant_result_fini(&out);
	classify(p, "{\"access_token\":\"AT\"}", &out);
	ck_assert_ptr_null(out.captured);
	grant_result_fini(&out);
	buf_fini(&body);
	provider_free(p);
}
END_TEST

/* A reply whose two tokens have the given lengths. */
static void sized(size_t access, size_t refresh, struct buf *body)
{
	char *a = mem_alloc(access + 1), *r = mem_alloc(refresh + 1);

	memset(a, 'a', access);
	memset(r, 'r', refresh);
	buf_reset(body);
	ck_ok(buf_printf(body, "{\"access_token\":\"%s\",\"refresh_token\":\"%s\"}", a, r));
	mem_free(a);
	mem_free(r);
}

START_TEST(tokens_have_a_size)
{
	struct provider *p = provider_for(PLAIN);
	struct buf body = BUF_INIT(3 * 1024 * 1024);
	struct grant_result out;

	sized(65536, 65536, &body);
	classify(p, buf_str(&body), &out);
	ck_assert_int_eq(out.outcome, OUTCOME_REFRESHED);
	ck_assert_uint_eq(out.access_token.len, 65536);
	ck_assert_uint_eq(out.refresh_token.len, 65536);
	grant_result_fini(&out);
	static const size_t over[][2] = {{65537, 1}, {1, 65537}, {1100000, 1}};
	for (size_t i = 0; i < 3; i++) {
		sized(over[i][0], over[i][1], &body);
		classify(p, buf_str(&body), &out);
		ck_assert_int_eq(out.outcome, OUTCOME_MALFORMED);
		ck_assert_uint_eq(out.access_token.len, 0);
		ck_assert_uint_eq(out.refresh_token.len, 0);
		grant_result_fini(&out);
	}
	buf_fini(&body);
	provider_free(p);
}
END_TEST

START_TEST(depth_is_capped)
{
	struct provider *p = provider_for(PLAIN);

	for (int depth = 1; depth <= 5000; depth = depth < 40 ? depth + 1 : depth * 5) {
		struct buf body = BUF_INIT(65536);
		struct grant_result out;
		ck_ok(buf_puts(&body, "{\"access_token\":\"AT\",\"x\":"));
		for (int i = 1; i < depth; i++)
			ck_ok(buf_putc(&body, '['));
		ck_ok(buf_putc(&body, '1'));
		for (int i = 1; i < depth; i++)
			ck_ok(buf_putc(&body, ']'));
		ck_ok(buf_putc(&body, '}'));
		classify(p, buf_str(&body), &out);
		enum outcome want = depth < 32 ? OUTCOME_REFRESHED : OUTCOME_MALFORMED;
		ck_assert_msg(out.outcome == want, "depth %d", depth);
		grant_result_fini(&out);
		buf_fini(&body);
	}
	provider_free(p);
}
END_TEST

START_TEST(nul_bytes_and_too_many_fields_are_refused)
{
	static const char nul[] = "{\"access_token\":\"AT\"}\0";
	static const char inner[] = "{\"access_token\":\"A\0T\"}";
	struct provider *p = provider_for(PLAIN);
	struct buf form = BUF_INIT(65536);
	struct grant_result out;

	struct grant_reply r = reply_of(200, J, nul, sizeof(nul));
	grant_classify(p, &r, &out);
	ck_assert_int_eq(out.outcome, OUTCOME_MALFORMED);
	grant_result_fini(&out);
	r = reply_of(200, J, inner, sizeof(inner) - 1);
	grant_classify(p, &r, &out);
	ck_assert_int_eq(out.outcome, OUTCOME_MALFORMED);
	grant_result_fini(&out);
	ck_ok(buf_puts(&form, "access_token=AT"));
	for (int i = 0; i < 300; i++)
		ck_ok(buf_printf(&form, "&f%d=1", i));
	r = reply_of(200, FORM, buf_str(&form), form.len);
	grant_classify(p, &r, &out);
	ck_assert_int_eq(out.outcome, OUTCOME_MALFORMED);
	grant_result_fini(&out);
	buf_fini(&form);
	provider_free(p);
}
END_TEST

START_TEST(foreign_error_text_does_not_get_out)
{
	struct provider *p = provider_for(WORDS);
	struct grant_result out;
	char body[128];

	classify(p, "{\"error\":\"secret-RT-echo\"}", &out);
	ck_assert_str_eq(out.error, "");
	grant_result_fini(&out);
	/* A configured word that is too long for the field is obeyed and not shown. */
	char word[80];
	memset(word, 'w', 79);
	word[79] = '\0';
	strlist_add(&p->grant_dead_errors, word);
	snprintf(body, sizeof(body), "{\"error\":\"%s\"}", word);
	classify(p, body, &out);
	ck_assert_int_eq(out.outcome, OUTCOME_GRANT_DEAD);
	ck_assert_str_eq(out.error, "");
	grant_result_fini(&out);
	provider_free(p);
}
END_TEST

static int64_t exp_of(const char *header, const char *payload, const char *tail)
{
	struct buf t = BUF_INIT(4096);

	ck_ok(base64url_encode(&t, header, strlen(header)));
	ck_ok(buf_putc(&t, '.'));
	ck_ok(base64url_encode(&t, payload, strlen(payload)));
	ck_ok(buf_puts(&t, tail));
	int64_t got = grant_jwt_exp(buf_str(&t), t.len);
	buf_fini(&t);
	return got;
}

START_TEST(jwt_exp_is_read_with_tolerance)
{
	static const struct {
		const char *payload, *tail;
		int64_t want_s;
	} rows[] = {
		{"{\"exp\":1795431600}", ".c2ln", 1795431600},
		{"{\"exp\":1795431600}", ".", 1795431600},
		{"{\"exp\":1795431600.0,\"sub\":\"x\"}", ".c2ln", 1795431600},
		{"{\"exp\":\"1795431600\"}", ".c2ln", 1795431600},
		{"{\"exp\":0}", ".c2ln", 0},
		{"{\"exp\":-5}", ".c2ln", 0},
		{"{\"exp\":1e300}", ".c2ln", 0},
		{"{\"exp\":null}", ".c2ln", 0},
		{"{}", ".c2ln", 0},
		{"[]", ".c2ln", 0},
		{"nonsense", ".c2ln", 0},
		{"{\"exp\":1795431600}", "", 0},
		{"{\"exp\":1795431600}", ".a.b", 0},
		{"{\"exp\":1795431600}", ".a.b.c", 0},
		{"{\"exp\":1,\"exp\":2}", ".c2ln", 0},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		ck_assert_msg(exp_of("{\"alg\":\"none\"}", rows[i].payload, rows[i].tail) ==
				      rows[i].want_s * US_PER_S,
			"row %zu", i);
	ck_assert_int_eq(grant_jwt_exp("", 0), 0);
	ck_assert_int_eq(grant_jwt_exp("opaque", 6), 0);
	ck_assert_int_eq(grant_jwt_exp("..", 2), 0);
	ck_assert_int_eq(grant_jwt_exp("a.!!.c", 6), 0);
	/* Padded, as some libraries write it: {"exp":60} */
	ck_assert_int_eq(grant_jwt_exp("e30.eyJleHAiOjYwfQ==.", 21), 60 * US_PER_S);
}
END_TEST

static void mutate(struct buf *b)
{
	static const char tasty[] = "{}[]\",:\\u0'&=%+<\t\0\xff\xef";

	for (uint64_t i = sys_random_below(4) + 1; i > 0 && b->len > 0; i--) {
		size_t at = (size_t)sys_random_below(b->len);
		switch (sys_random_below(5)) {
		case 0:
			b->data[at] ^= (uint8_t)(1u << sys_random_below(8));
			break;
		case 1:
			b->data[at] = (uint8_t)tasty[sys_random_below(sizeof(tasty) - 1)];
			break;
		case 2:
			buf_truncate(b, at);
			break;
		case 3:
			buf_consume(b, at);
			break;
		default:
			ck_ok(buf_append(b, b->data + at, b->len - at));
			break;
		}
	}
}

/* The promises that hold for any bytes whatever. */
static void check_promises(const struct grant_reply *r, const struct grant_result *out, int round)
{
	bool refreshed = out->outcome == OUTCOME_REFRESHED;

	ck_assert_msg((unsigned)out->outcome < OUTCOME_COUNT, "seed %d round %d", SEED, round);
	ck_assert_msg(refreshed == (out->access_token.len > 0), "seed %d round %d", SEED, round);
	ck_assert_msg(refreshed || (out->refresh_token.len == 0 && out->captured == NULL), "seed %d round %d",
		SEED, round);
	ck_assert_msg(!refreshed || (r->status >= 200 && r->status < 300), "seed %d round %d", SEED, round);
	ck_assert_msg((out->reason == REASON_NONE) == refreshed, "seed %d round %d", SEED, round);
	if (out->outcome == OUTCOME_GRANT_DEAD)
		ck_assert_msg(r->status < 300 || r->status == 400 || r->status == 401 || r->status == 403,
			"seed %d round %d", SEED, round);
	ck_assert_msg(out->expires_at_us == 0 || out->expires_at_us > START, "seed %d round %d", SEED, round);
}

START_TEST(mutated_replies_keep_the_promises)
{
	static const int statuses[] = {200, 200, 200, 400, 401, 403, 404, 429, 500, 502};
	static const char *const types[] = {J, FORM, "text/plain", ""};
	const char *rounds_text = getenv("GRANT_FUZZ_ROUNDS");
	int rounds = rounds_text == NULL ? 40000 : atoi(rounds_text);
	struct provider *providers[WORDS + 1];

	sys_set(sys_virtual(SEED));
	for (int k = 0; k <= WORDS; k++)
		providers[k] = provider_for((enum fixture_provider)k);
	for (int i = 0; i < rounds; i++) {
		const struct fixture *x = &fixtures[sys_random_below(N_FIXTURES)];
		struct buf body = BUF_INIT(65536);
		struct grant_result out;
		ck_ok(buf_puts(&body, x->body));
		mutate(&body);
		/* An exact copy, so that the sanitizer sees a read past the end. */
		char *exact = mem_alloc(body.len + (body.len == 0));
		if (body.len > 0)
			memcpy(exact, body.data, body.len);
		struct grant_reply r =
			reply_of(statuses[sys_random_below(10)], types[sys_random_below(4)], exact, body.len);
		grant_classify(providers[x->provider], &r, &out);
		check_promises(&r, &out, i);
		grant_result_fini(&out);
		grant_jwt_exp(exact, body.len);
		mem_free(exact);
		buf_fini(&body);
	}
	for (int k = 0; k <= WORDS; k++)
		provider_free(providers[k]);
	sys_set(NULL);
}
END_TEST

/* --- the short way and the long one */

static void put_blank(struct buf *b)
{
	static const char *const blanks[] = {"", "", "", " ", "\n", "\t ", "\r\n"};
	ck_ok(buf_puts(b, blanks[rand() % 7]));
}

static void put_value(struct buf *b, int depth)
{
	static const char *const plain[] = {"\"\"", "\"Bearer\"", "\"caf\xc3\xa9 / ~\"", "0", "7", "3600", "123456789012345678", "true", "false", "null", "[]", "{}",
		"1.5", "-3", "007", "1e3", "9223372036854775807", "'x'", "nul", "\"\x01\"", "\"\x7f\"", "\"a\xff\""};
	int kind = rand() % 12;
	put_blank(b);
	if (kind < 10 || depth > 9) {
		ck_ok(buf_puts(b, plain[rand() % (rand() % 4 == 0 ? 22 : 12)]));
	} else {
		ck_ok(buf_putc(b, kind == 10 ? '[' : '{'));
		for (int i = 0, n = rand() % 4; i < n; i++) {
			ck_ok(buf_printf(b, "%s", i > 0 ? "," : ""));
			if (kind == 11)
				ck_ok(buf_printf(b, " \"m%d\" :", rand() % 20));
			put_value(b, depth + 1);
		}
		ck_ok(buf_putc(b, kind == 10 ? ']' : '}'));
	}
	put_blank(b);
}

/* An escape anywhere in a text leaves it to json-c: with one more member it must be read as the same, or not at all. */
START_TEST(what_is_read_the_short_way_is_read_the_long_way_too)
{
	unsigned read = 0, refused = 0;
	srand(SEED);
	for (int round = 0; round < 20000; round++) {
		struct buf rest = BUF_INIT(1 << 20), lng = BUF_INIT(1 << 20), shrt = BUF_INIT(1 << 20);
		int n = 1 + rand() % 5;
		for (int i = 0; i < n; i++) {
			ck_ok(buf_printf(&rest, "%s\"k%d\":", i > 0 ? "," : "", rand() % 12));
			put_value(&rest, 0);
		}
		if (rand() % 4 == 0)
			rest.data[rand() % (int)rest.len] = (uint8_t)"{}[],:\"1 x"[rand() % 10];
		ck_ok(buf_printf(&shrt, "{\"extra\": 1, %s}", buf_str(&rest)));
		ck_ok(buf_printf(&lng, "{\"\\u0065xtra\": 1, %s}", buf_str(&rest)));
		struct json_object *a = grant_parse_json(buf_str(&shrt), shrt.len), *b = grant_parse_json(buf_str(&lng), lng.len);
		ck_assert_msg((a == NULL) == (b == NULL) && (a == NULL || json_object_equal(a, b)), "seed %d, round %d: %s", SEED, round, buf_str(&shrt));
		read += a != NULL;
		refused += a == NULL;
		grant_parse_free(a);
		grant_parse_free(b);
		buf_fini(&rest);
		buf_fini(&lng);
		buf_fini(&shrt);
	}
	ck_assert_uint_gt(read, 2000);
	ck_assert_uint_gt(refused, 2000);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("grant_reply");
	TCase *t = tcase_create("grant_reply");

	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, fixture_means_what_it_should, 0, (int)N_FIXTURES);
	unit_add(t, what_is_read_the_short_way_is_read_the_long_way_too);
	unit_add(t, there_are_enough_fixtures);
	unit_add(t, unsent_and_incomplete_come_before_all_else);
	unit_add(t, whole_object_counts_although_the_transport_complains);
	unit_add(t, retry_after_is_read_with_every_outcome);
	unit_add(t, scope_and_type);
	unit_add(t, refresh_token_lifetimes);
	unit_add(t, captures_are_small_scalars_and_never_tokens);
	unit_add(t, tokens_have_a_size);
	unit_add(t, depth_is_capped);
	unit_add(t, nul_bytes_and_too_many_fields_are_refused);
	unit_add(t, foreign_error_text_does_not_get_out);
	unit_add(t, jwt_exp_is_read_with_tolerance);
	unit_add(t, mutated_replies_keep_the_promises);
	suite_add_tcase(s, t);
	return s;
}
