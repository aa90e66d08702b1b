/*
 * fault - scripted misbehaviour of a realm, one rule at a time.
 *
 * A rule says what goes wrong, how often and for whom. FAULT_HEAD and FAULT_BEFORE answer without spending
 * the token; FAULT_AFTER spoils the answer to a token that was spent, and is used up only by a grant. Every
 * firing is in the ledger as outcome "fault:<kind>".
 */
#include "provider/simulator.h"

#include <string.h>
#include <time.h>

#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define HUGE_DEFAULT ((int64_t)10 << 20)
#define DEEP_DEFAULT 100000

static int64_t number_or(const struct fault_rule *f, int64_t fallback)
{
	return f->number >= 0 ? f->number : fallback;
}

/* --- before: nothing is spent */

static void say_error(struct realm *realm, struct reply *r, int status, const char *code)
{
	reply_reset(r, status, "application/json");
	put(buf_printf(&r->body, "{\"error\":\"%s\"}", code));
	if (status == 401)
		put(buf_printf(&r->headers, "WWW-Authenticate: Basic realm=\"%s\"\r\n", realm->name));
	realm_count_error(realm, code);
}

static void apply_error(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	int64_t status = 0;
	put(str_parse_i64(f->arg, 3, &status)); /* checked when the rule was made */
	say_error(f->realm, r, (int)status, f->arg + 4);
}

static void apply_empty_401(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	(void)f;
	reply_reset(r, 401, NULL);
}

static void apply_empty_200(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	(void)f;
	reply_reset(r, 200, "application/json");
}

static void apply_ok_with_error(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	say_error(f->realm, r, 200, f->arg[0] != '\0' ? f->arg : "invalid_grant");
}

static void apply_not_json(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	(void)f;
	reply_reset(r, 200, "text/html; charset=utf-8");
	put(buf_puts(&r->body, "<!doctype html><html><body><h1>We will be right back</h1></body></html>\n"));
}

static void apply_redirect(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	reply_reset(r, 307, NULL);
	put(buf_printf(&r->headers, "Location: /%s/redirected\r\n", f->realm->name));
}

static void apply_429(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	say_error(f->realm, r, 429, "slow_down");
	int64_t n = number_or(f, 1);
	if (strncmp(f->arg, "garbage", 7) == 0) {
		put(buf_puts(&r->headers, "Retry-After: soon, \"maybe\" -5\r\n"));
	} else if (strncmp(f->arg, "date", 4) == 0) {
		char text[40];
		struct tm tm;
		time_t at = (time_t)(sys_wall_us() / US_PER_S + n);
		if (gmtime_r(&at, &tm) == NULL ||
			strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm) == 0)
			always_failed("a date can be written", __FILE__, __LINE__, __func__);
		put(buf_printf(&r->headers, "Retry-After: %s\r\n", text));
	} else if (strncmp(f->arg, "none", 4) != 0) {
		put(buf_printf(&r->headers, "Retry-After: %lld\r\n", (long long)n));
	}
}

static void apply_nothing(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	(void)f;
	(void)r;
}

/* --- after: the token is spent, the answer is spoiled */

struct pieces {
	const char *at, *type, *expires, *rt; /* JSON texts; NULL = absent */
};

static void write_pieces(struct reply *r, const struct pieces *p)
{
	const char *names[] = {"access_token", "token_type", "expires_in", "refresh_token"};
	const char *texts[] = {p->at, p->type, p->expires, p->rt};
	char sep = '{';
	buf_truncate(&r->body, 0);
	for (unsigned i = 0; i < 4; i++) {
		if (texts[i] == NULL)
			continue;
		put(buf_printf(&r->body, "%c\"%s\":%s", sep, names[i], texts[i]));
		sep = ',';
	}
	put(buf_putc(&r->body, '}'));
}

enum { P_AT, P_TYPE, P_EXPIRES, P_RT };

static const struct wrong_type {
	const char *name, *text; /* text NULL = absent */
	int piece;
} wrong_types[] = {
	{"expires_string", "\"3600\"", P_EXPIRES},
	{"expires_float", "3599.5", P_EXPIRES},
	{"expires_negative", "-1", P_EXPIRES},
	{"expires_zero", "0", P_EXPIRES},
	{"expires_huge", "1e400", P_EXPIRES},
	{"expires_null", "null", P_EXPIRES},
	{"expires_ms", "3600000", P_EXPIRES},
	{"expires_text", "\"soon\"", P_EXPIRES},
	{"expires_absent", NULL, P_EXPIRES},
	{"token_type_missing", NULL, P_TYPE},
	{"access_token_number", "12345", P_AT},
	{"access_token_null", "null", P_AT},
	{"access_token_missing", NULL, P_AT},
	{"access_token_empty", "\"\"", P_AT},
	{"refresh_token_number", "12345", P_RT},
	{"refresh_token_object", "{\"value\":\"x\"}", P_RT},
	{"refresh_token_absent", NULL, P_RT},
	{"refresh_token_null", "null", P_RT},
	{"refresh_token_empty", "\"\"", P_RT},
};

static const struct wrong_type *find_type(const char *name)
{
	for (size_t i = 0; i < sizeof wrong_types / sizeof wrong_types[0]; i++)
		if (strcmp(wrong_types[i].name, name) == 0)
			return &wrong_types[i];
	return NULL;
}

static void spoil_type(struct conn *c, struct reply *r, const char *name)
{
	const struct granted *g = &c->sim->granted;
	const struct wrong_type *w = find_type(name);
	char *at = mem_printf("\"%s\"", g->at), *rt = mem_printf("\"%s\"", g->rt);
	char *expires = mem_printf("%lld", (long long)g->expires_in);
	struct pieces p = {at, "\"Bearer\"", expires, g->has_rt ? rt : NULL};
	const char **slot[] = {&p.at, &p.type, &p.expires, &p.rt};
	*slot[w->piece] = w->text;
	write_pieces(r, &p);
	mem_free(at);
	mem_free(rt);
	mem_free(expires);
}

static void apply_wrong_types(struct conn *c, struct fault_rule *f, struct reply *r)
{
	spoil_type(c, r, f->arg[0] != '\0' ? f->arg : "expires_string");
}

static void apply_rt_absent(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)f;
	spoil_type(c, r, "refresh_token_absent");
}

static void apply_rt_null(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)f;
	spoil_type(c, r, "refresh_token_null");
}

static void apply_rt_empty(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)f;
	spoil_type(c, r, "refresh_token_empty");
}

static void apply_form_body(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)f;
	const struct granted *g = &c->sim->granted;
	r->type = "application/x-www-form-urlencoded; charset=utf-8";
	buf_truncate(&r->body, 0);
	put(buf_printf(&r->body, "access_token=%s&expires_in=%lld&token_type=bearer", g->at,
		(long long)g->expires_in));
	if (g->has_rt)
		put(buf_printf(&r->body, "&refresh_token=%s", g->rt));
}

/* Takes the closing brace away, so that members can follow. */
static void reopen(struct reply *r)
{
	buf_truncate(&r->body, r->body.len - 1);
}

static void repeat(struct buf *b, char ch, int64_t n)
{
	char block[4096];
	memset(block, ch, sizeof block);
	while (n > 0) {
		size_t k = n < (int64_t)sizeof block ? (size_t)n : sizeof block;
		put(buf_append(b, block, k));
		n -= (int64_t)k;
	}
}

static void apply_huge_body(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	int64_t n = number_or(f, HUGE_DEFAULT);
	reopen(r);
	put(buf_puts(&r->body, ",\"padding\":\""));
	repeat(&r->body, 'x', n);
	put(buf_puts(&r->body, "\"}"));
}

static void apply_deep_json(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	int64_t n = number_or(f, DEEP_DEFAULT);
	reopen(r);
	put(buf_puts(&r->body, ",\"deep\":"));
	repeat(&r->body, '[', n);
	repeat(&r->body, ']', n);
	put(buf_putc(&r->body, '}'));
}

static void apply_dup_keys(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	(void)f;
	reopen(r);
	put(buf_puts(&r->body, ",\"access_token\":\"duplicate-access-token\",\"refresh_token\":\"duplicate-"
			       "refresh-token\"}"));
}

static void apply_bad_utf8(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	(void)f;
	reopen(r);
	put(buf_puts(&r->body, ",\"note\":\"\xff\xfe\xc0\xaf\"}"));
}

static void apply_chunked(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	(void)f;
	r->chunked = true;
}

static void apply_wrong_length(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)c;
	r->extra = (size_t)number_or(f, 100);
}

static void apply_race(struct conn *c, struct fault_rule *f, struct reply *r)
{
	(void)r;
	c->race = true;
	c->race_reset = strcmp(f->arg, "rst") == 0;
}

/* --- what becomes of the bytes */

static void finish_cut(struct conn *c, const struct fault_rule *f, size_t head)
{
	(void)head;
	(void)f;
	c->act = ACT_CUT;
	c->cut = 0;
}

static void finish_reset(struct conn *c, const struct fault_rule *f, size_t head)
{
	(void)head;
	c->act = ACT_RESET;
	c->cut = (size_t)number_or(f, 0);
}

static void finish_hang(struct conn *c, const struct fault_rule *f, size_t head)
{
	(void)head;
	(void)f;
	c->act = ACT_HANG;
}

static void finish_half(struct conn *c, const struct fault_rule *f, size_t head)
{
	(void)head;
	size_t len = c->sim->wire.len;
	int64_t k = number_or(f, (int64_t)(len / 2));
	c->act = ACT_CUT;
	c->cut = (size_t)k < len ? (size_t)k : len - 1;
}

static void finish_close(struct conn *c, const struct fault_rule *f, size_t head)
{
	(void)head;
	(void)f;
	c->act = ACT_CUT;
	c->cut = SIZE_MAX;
}

static void finish_drip(struct conn *c, const struct fault_rule *f, size_t head)
{
	(void)head;
	c->act = ACT_DRIP;
	c->cut = SIZE_MAX;
	c->step_us = number_or(f, 10) * US_PER_MS;
}

static void finish_slow_headers(struct conn *c, const struct fault_rule *f, size_t head)
{
	finish_drip(c, f, head);
	c->cut = head;
}

static const struct fault_kind kinds[] = {
	{"early_answer", FAULT_HEAD, ARG_STATUS, apply_error, NULL},
	{"die_before", FAULT_BEFORE, ARG_NONE, apply_nothing, finish_cut},
	{"rst_before", FAULT_BEFORE, ARG_NONE, apply_nothing, finish_reset},
	{"hang", FAULT_BEFORE, ARG_NONE, apply_nothing, finish_hang},
	{"error", FAULT_BEFORE, ARG_STATUS, apply_error, NULL},
	{"empty_401", FAULT_BEFORE, ARG_NONE, apply_empty_401, NULL},
	{"empty_200", FAULT_BEFORE, ARG_NONE, apply_empty_200, NULL},
	{"ok_with_error", FAULT_BEFORE, ARG_CODE, apply_ok_with_error, NULL},
	{"not_json", FAULT_BEFORE, ARG_NONE, apply_not_json, NULL},
	{"redirect_307", FAULT_BEFORE, ARG_NONE, apply_redirect, NULL},
	{"429", FAULT_BEFORE, ARG_RETRY, apply_429, NULL},
	{"die_after", FAULT_AFTER, ARG_NONE, apply_nothing, finish_cut},
	{"rst_after", FAULT_AFTER, ARG_NUMBER, apply_nothing, finish_reset},
	{"hang_after", FAULT_AFTER, ARG_NONE, apply_nothing, finish_hang},
	{"half_reply", FAULT_AFTER, ARG_NUMBER, apply_nothing, finish_half},
	{"drip", FAULT_AFTER, ARG_NUMBER, apply_nothing, finish_drip},
	{"slow_headers", FAULT_AFTER, ARG_NUMBER, apply_nothing, finish_slow_headers},
	{"keepalive_close", FAULT_AFTER, ARG_RACE, apply_race, NULL},
	{"wrong_types", FAULT_AFTER, ARG_TYPES, apply_wrong_types, NULL},
	{"form_body", FAULT_AFTER, ARG_NONE, apply_form_body, NULL},
	{"huge_body", FAULT_AFTER, ARG_NUMBER, apply_huge_body, NULL},
	{"deep_json", FAULT_AFTER, ARG_NUMBER, apply_deep_json, NULL},
	{"dup_keys", FAULT_AFTER, ARG_NONE, apply_dup_keys, NULL},
	{"bad_utf8", FAULT_AFTER, ARG_NONE, apply_bad_utf8, NULL},
	{"rt_absent", FAULT_AFTER, ARG_NONE, apply_rt_absent, NULL},
	{"rt_null", FAULT_AFTER, ARG_NONE, apply_rt_null, NULL},
	{"rt_empty", FAULT_AFTER, ARG_NONE, apply_rt_empty, NULL},
	{"chunked", FAULT_AFTER, ARG_NONE, apply_chunked, NULL},
	{"wrong_length", FAULT_AFTER, ARG_NUMBER, apply_wrong_length, finish_close},
};

/* --- rules */

static bool is_code(const char *s)
{
	return *s != '\0' &&
	       s[strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")] == '\0';
}

static int check_status(struct fault_rule *rule, const struct fault_kind *k, struct fault *f)
{
	int64_t status;
	if (rule->arg[0] == '\0')
		strcpy(rule->arg,
			k->when == FAULT_HEAD ? "503:temporarily_unavailable" : "400:invalid_grant");
	if (strlen(rule->arg) < 5 || rule->arg[3] != ':' || str_parse_i64(rule->arg, 3, &status) != 0 ||
		status < 200 || !is_code(rule->arg + 4))
		return fault_set(
			f, ST_INVALID, "kind %s: arg is STATUS:code, e.g. 400:invalid_grant", k->name);
	return 0;
}

static int check_arg(struct fault_rule *rule, const struct fault_kind *k, struct fault *f)
{
	const char *a = rule->arg;
	size_t n = strlen(a);
	const char *colon = strchr(a, ':');
	switch (k->arg) {
	case ARG_NONE:
		return n == 0 ? 0 : fault_set(f, ST_INVALID, "kind %s takes no arg", k->name);
	case ARG_NUMBER:
		if (n > 0 && (str_parse_i64(a, n, &rule->number) != 0 || rule->number < 0 ||
				     rule->number > (int64_t)BODY_MAX - 65536))
			return fault_set(
				f, ST_RANGE, "kind %s: arg is a number up to %zu", k->name, BODY_MAX - 65536);
		return 0;
	case ARG_STATUS:
		return check_status(rule, k, f);
	case ARG_TYPES:
		return n == 0 || find_type(a) != NULL
			       ? 0
			       : fault_set(f, ST_INVALID, "wrong_types: no type called %s", a);
	case ARG_RETRY:
		if (colon != NULL &&
			(str_parse_i64(colon + 1, strlen(colon + 1), &rule->number) != 0 || rule->number < 0))
			return fault_set(f, ST_INVALID, "429: want delta:S or date:S");
		if (n > 0 && strncmp(a, "delta", 5) != 0 && strncmp(a, "date", 4) != 0 &&
			strcmp(a, "garbage") != 0 && strcmp(a, "none") != 0)
			return fault_set(f, ST_INVALID, "429: arg is delta[:S], date[:S], garbage or none");
		return 0;
	case ARG_CODE:
		return n == 0 || is_code(a)
			       ? 0
			       : fault_set(f, ST_INVALID, "kind %s: arg is an error code", k->name);
	case ARG_RACE:
		return n == 0 || strcmp(a, "rst") == 0
			       ? 0
			       : fault_set(f, ST_INVALID, "kind %s: arg is rst", k->name);
	}
	return 0;
}

int fault_add(struct realm *r, const struct form *q, struct fault *f)
{
	const char *name = form_get(q, "kind", NULL), *arg = form_get(q, "arg", NULL);
	const struct fault_kind *kind = NULL;
	int64_t n, every, family;
	for (size_t i = 0; name != NULL && i < sizeof kinds / sizeof kinds[0]; i++)
		if (strcmp(kinds[i].name, name) == 0)
			kind = &kinds[i];
	if (kind == NULL)
		return fault_set(f, ST_NOT_FOUND, "no fault kind is called %.60s",
			name != NULL ? name : "(kind is missing)");
	if (form_i64(q, "n", 1, &n) != 0 || form_i64(q, "every", 1, &every) != 0 ||
		form_i64(q, "family", -1, &family) != 0 || n < 0 || every < 1 || family < -1 ||
		family >= UNKNOWN_FAMILY)
		return fault_set(f, ST_INVALID,
			"n is 0 (for ever) or a count, every is at least 1, family is a number");
	if (arg != NULL && strlen(arg) >= sizeof((struct fault_rule *)0)->arg)
		return fault_set(f, ST_INVALID, "arg is too long");
	struct fault_rule rule = {
		.kind = kind, .realm = r, .left = (uint64_t)n, .every = (uint64_t)every, .number = -1};
	rule.for_ever = n == 0;
	rule.family = family < 0 ? UNKNOWN_FAMILY : (uint32_t)family;
	if (arg != NULL)
		strcpy(rule.arg, arg);
	int rc = check_arg(&rule, kind, f);
	if (rc != 0)
		return rc;
	struct fault_rule *made = mem_alloc(sizeof *made);
	*made = rule;
	TAILQ_INSERT_TAIL(&r->rules, made, link);
	return 0;
}

unsigned fault_clear(struct realm *r)
{
	unsigned n = 0;
	struct fault_rule *f;
	while ((f = TAILQ_FIRST(&r->rules)) != NULL) {
		TAILQ_REMOVE(&r->rules, f, link);
		mem_free(f);
		n++;
	}
	return n;
}

void faults_free(struct realm *r)
{
	(void)fault_clear(r);
}

struct fault_rule *fault_pick(struct realm *r, uint32_t family, bool head, bool body)
{
	struct fault_rule *f;
	TAILQ_FOREACH(f, &r->rules, link)
	{
		if (f->kind->when == FAULT_HEAD ? !head : !body)
			continue;
		if (!f->for_ever && f->left == 0)
			continue;
		if (f->family != UNKNOWN_FAMILY && f->family != family)
			continue;
		if (++f->seen % f->every == 0)
			return f;
	}
	return NULL;
}

void fault_fire(struct realm *r, struct fault_rule *f)
{
	r->stats.faults++;
	f->fired++;
	if (!f->for_ever)
		f->left--;
}

void fault_list(const struct realm *r, struct buf *out)
{
	struct jsonw w;
	struct fault_rule *f;
	jsonw_init(&w, out);
	jsonw_array(&w, NULL);
	TAILQ_FOREACH(f, &r->rules, link)
	{
		jsonw_object(&w, NULL);
		jsonw_str(&w, "kind", f->kind->name);
		jsonw_str(&w, "arg", f->arg);
		if (f->for_ever)
			jsonw_null(&w, "left");
		else
			jsonw_int(&w, "left", (int64_t)f->left);
		jsonw_int(&w, "every", (int64_t)f->every);
		if (f->family == UNKNOWN_FAMILY)
			jsonw_null(&w, "family");
		else
			jsonw_int(&w, "family", f->family);
		jsonw_int(&w, "seen", (int64_t)f->seen);
		jsonw_int(&w, "fired", (int64_t)f->fired);
		jsonw_object_end(&w);
	}
	jsonw_array_end(&w);
	put(jsonw_end(&w));
}
