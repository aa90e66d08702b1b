/*
 * grant_reply - what a reply means for the tokens: the closed set of outcomes.
 *
 * Three mistakes cost customers their connections: to call a fault of the provider's or of our own client a
 * dead grant, to overlook a rotated token, and to present a token again that may be used up. So dead needs a
 * word and a fitting status, a reply that contradicts itself is kept as unreadable, and doubt is an outcome
 * of its own. Words and numbers of the reply leave here only through the fields of struct grant_result.
 */
#include "model/grant.h"

#include <string.h>

#include "base/base64.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/grant_parse.h"
#include "model/grant_value.h"
#include "model/policy.h"

#define TOKEN_MAX ((size_t)64 * 1024)
#define SCOPE_MAX ((size_t)16 * 1024)
#define CAPTURE_MAX 1024
#define RETRY_AFTER_MAX_US (3600 * US_PER_S)

enum meaning { MEANS_NOTHING, MEANS_DEAD, MEANS_CLIENT, MEANS_TRANSIENT, MEANS_SLOWER };

/* Registered words (RFC 6749, 6750, 7009, 8628, 8707, 9449, OpenID Connect) and the few of vendors that leave
 * no doubt. */
static const struct {
	const char *word;
	enum meaning meaning;
} words[] = {
	{"invalid_grant", MEANS_DEAD},
	{"bad_refresh_token", MEANS_DEAD},
	{"invalid_refresh_token", MEANS_DEAD},
	{"invalid_code", MEANS_DEAD},
	{"invalid_client", MEANS_CLIENT},
	{"unauthorized_client", MEANS_CLIENT},
	{"unsupported_grant_type", MEANS_CLIENT},
	{"invalid_scope", MEANS_CLIENT},
	{"invalid_request", MEANS_CLIENT},
	{"invalid_target", MEANS_CLIENT},
	{"use_dpop_nonce", MEANS_CLIENT},
	{"invalid_dpop_proof", MEANS_CLIENT},
	{"incorrect_client_credentials", MEANS_CLIENT},
	{"bad_client_secret", MEANS_CLIENT},
	{"invalid_client_id", MEANS_CLIENT},
	{"temporarily_unavailable", MEANS_TRANSIENT},
	{"server_error", MEANS_TRANSIENT},
	{"internal_failure", MEANS_TRANSIENT},
	{"slow_down", MEANS_SLOWER},
	{"access_denied", MEANS_NOTHING},
	{"invalid_token", MEANS_NOTHING},
	{"insufficient_scope", MEANS_NOTHING},
	{"expired_token", MEANS_NOTHING},
	{"authorization_pending", MEANS_NOTHING},
	{"unsupported_token_type", MEANS_NOTHING},
	{"interaction_required", MEANS_NOTHING},
	{"login_required", MEANS_NOTHING},
	{"consent_required", MEANS_NOTHING},
};

static const char *const outcome_words[] = {
#define X(id, word) [id] = (word),
	OUTCOME_LIST(X)
#undef X
};

const char *outcome_word(enum outcome o)
{
	ALWAYS((unsigned)o < OUTCOME_COUNT);
	return outcome_words[o];
}

/* RFC 6749's places, for a provider that names none. */
static const struct {
	const char *access_token[1], *refresh_token[1], *expires_in[1], *error[1], *scope[1],
		*refresh_expires_in[3];
} usual = {
	.access_token = {"/access_token"},
	.refresh_token = {"/refresh_token"},
	.expires_in = {"/expires_in"},
	.error = {"/error"},
	.scope = {"/scope"},
	.refresh_expires_in = {"/refresh_token_expires_in", "/x_refresh_token_expires_in",
		"/refresh_expires_in"},
};

struct places {
	const char *const *v;
	size_t n;
};

static struct places places_of(const struct strlist *configured, const char *const *fallback, size_t n)
{
	if (configured->n > 0)
		return (struct places){(const char *const *)configured->v, configured->n};
	return (struct places){fallback, n};
}
#define PLACES(p, what) places_of(&(p)->at_##what, usual.what, sizeof(usual.what) / sizeof(usual.what[0]))

/* NULL: not there, or null. */
static struct json_object *at(struct json_object *root, const char *pointer)
{
	struct json_object *found = NULL;

	/* One step into an object, as nearly all are, needs no copy of the pointer. */
	if (pointer[0] == '/' && pointer[1 + strcspn(pointer + 1, "/~")] == '\0' && json_object_is_type(root, json_type_object))
		return json_object_object_get_ex(root, pointer + 1, &found) ? found : NULL;
	return json_pointer_get(root, pointer, &found) == 0 ? found : NULL;
}

/* --- lifetimes */

static int64_t first_span(struct json_object *root, struct places where, enum time_unit unit)
{
	for (size_t i = 0; i < where.n; i++) {
		int64_t us = grant_value_span_us(at(root, where.v[i]), unit);
		if (us > 0)
			return us;
	}
	return 0;
}

static int64_t first_moment(struct json_object *root, struct places where, int64_t after)
{
	for (size_t i = 0; i < where.n; i++) {
		int64_t t = grant_value_moment_us(at(root, where.v[i]), after);
		if (t > 0)
			return t;
	}
	return 0;
}

static int64_t read_expiry(const struct provider *p, struct json_object *root, int64_t start)
{
	int64_t life = first_span(root, PLACES(p, expires_in), p->expires_in_unit);

	if (life > 0)
		return start + life;
	return first_moment(
		root, (struct places){(const char *const *)p->at_expires_at.v, p->at_expires_at.n}, start);
}

/* The same places may hold a date: there are providers that only send one. */
static int64_t read_refresh_expiry(const struct provider *p, struct json_object *root, int64_t start)
{
	struct places where = PLACES(p, refresh_expires_in);

	for (size_t i = 0; i < where.n; i++) {
		struct json_object *o = at(root, where.v[i]);
		int64_t life = grant_value_span_us(o, p->expires_in_unit);
		if (life > 0)
			return start + life;
		double number;
		int64_t t = grant_value_number(o, &number) ? 0 : grant_value_moment_us(o, start);
		if (t > 0)
			return t;
	}
	return 0;
}

/* --- the error member */

/* null, false, "", 0, {} and [] are ways to say that there is no error. */
static bool says_error(struct json_object *o)
{
	switch (json_object_get_type(o)) {
	case json_type_null:
		return false;
	case json_type_boolean:
		return json_object_get_boolean(o);
	case json_type_string:
		return json_object_get_string_len(o) > 0;
	case json_type_int:
		return json_object_get_int64(o) != 0;
	case json_type_object:
		return json_object_object_length(o) > 0;
	case json_type_array:
		return json_object_array_length(o) > 0;
	default:
		return true;
	}
}

struct error {
	bool there;
	const char *word; /* borrowed from the tree or the table; NULL: none that is text */
	enum meaning meaning;
	bool known; /* may be shown */
};

static void judge_word(const struct provider *p, struct error *e)
{
	bool transient = strlist_has(&p->transient_errors, e->word),
	     dead = strlist_has(&p->grant_dead_errors, e->word);

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (strcmp(words[i].word, e->word) == 0) {
			e->known = true;
			e->meaning = words[i].meaning;
		}
	}
	/* The operator knows the provider better than the standard does; of two readings the mild one counts.
	 */
	if (transient)
		e->meaning = MEANS_TRANSIENT;
	else if (dead)
		e->meaning = MEANS_DEAD;
	e->known = e->known || transient || dead;
}

static struct error read_error(const struct provider *p, struct json_object *root)
{
	struct places where = PLACES(p, error);
	struct error e = {0};

	for (size_t i = 0; i < where.n; i++) {
		struct json_object *o = at(root, where.v[i]);
		if (!says_error(o))
			continue;
		e.there = true;
		if (e.word == NULL && json_object_is_type(o, json_type_string))
			e.word = json_object_get_string(o);
	}
	struct json_object *ok = at(root, "/ok");
	if (json_object_is_type(ok, json_type_boolean) && !json_object_get_boolean(ok))
		e.there = true;
	if (e.word != NULL)
		judge_word(p, &e);
	return e;
}

/* --- tokens */

static struct json_object *first_token(struct json_object *root, struct places where)
{
	for (size_t i = 0; i < where.n; i++) {
		struct json_object *o = at(root, where.v[i]);
		if (json_object_is_type(o, json_type_string) && json_object_get_string_len(o) > 0)
			return o;
	}
	return NULL;
}

static int take_token(struct json_object *o, struct buf *out)
{
	const char *s = json_object_get_string(o);
	size_t n = (size_t)json_object_get_string_len(o);

	return str_is_vschar(s, n) ? buf_set(out, s, n) : ST_INVALID;
}

/* Absent, null, false and "" keep the old refresh token. Anything else that is no token may be a rotation in
 * a shape that we do not know, and must not pass for "none". */
static int take_refresh_token(const struct provider *p, struct json_object *root, struct buf *out)
{
	struct places where = PLACES(p, refresh_token);
	struct json_object *token = first_token(root, where);

	if (token != NULL)
		return take_token(token, out);
	for (size_t i = 0; i < where.n; i++) {
		struct json_object *o = at(root, where.v[i]);
		bool empty = o == NULL || json_object_is_type(o, json_type_string) ||
			     (json_object_is_type(o, json_type_boolean) && !json_object_get_boolean(o));
		if (!empty)
			return ST_INVALID;
	}
	return 0;
}

static void take_word(struct json_object *o, char *out, size_t size)
{
	if (!json_object_is_type(o, json_type_string))
		return;
	size_t n = (size_t)json_object_get_string_len(o);
	if (n < size && str_is_vschar(json_object_get_string(o), n))
		memcpy(out, json_object_get_string(o), n + 1);
}

static int put_scope_word(struct json_object *o, const char *separator, struct buf *out)
{
	if (!json_object_is_type(o, json_type_string))
		return ST_INVALID;
	const char *s = json_object_get_string(o);
	size_t n = (size_t)json_object_get_string_len(o);
	if (!str_is_vschar(s, n))
		return ST_INVALID;
	int rc = out->len > 0 ? buf_puts(out, separator) : 0;
	return rc == 0 ? buf_append(out, s, n) : rc;
}

/* A text, or a list of words. What cannot be read leaves the scope as it was: it decides nothing. */
static void take_scope(const struct provider *p, struct json_object *root, struct buf *out)
{
	struct places where = PLACES(p, scope);
	const char *separator =
		p->scope_separator == NULL || p->scope_separator[0] == '\0' ? " " : p->scope_separator;

	for (size_t i = 0; i < where.n && out->len == 0; i++) {
		struct json_object *o = at(root, where.v[i]);
		bool list = json_object_is_type(o, json_type_array);
		size_t n = list ? json_object_array_length(o) : 1;
		int rc = 0;
		for (size_t j = 0; rc == 0 && j < n; j++)
			rc = put_scope_word(list ? json_object_array_get_idx(o, j) : o, separator, out);
		if (rc < 0)
			buf_reset(out);
	}
}

/* A copy of a small scalar that is neither token; NULL when it is something else. */
static struct json_object *copy_scalar(struct json_object *o, const struct grant_result *r)
{
	switch (json_object_get_type(o)) {
	case json_type_int:
		return json_object_new_int64(json_object_get_int64(o));
	case json_type_double:
		return json_object_new_double(json_object_get_double(o));
	case json_type_boolean:
		return json_object_new_boolean(json_object_get_boolean(o));
	case json_type_string: {
		const char *s = json_object_get_string(o);
		size_t n = (size_t)json_object_get_string_len(o);
		bool is_token = buf_equals(&r->access_token, s, n) || buf_equals(&r->refresh_token, s, n);
		if (n > CAPTURE_MAX || is_token || str_has_ctl(s, n))
			return NULL;
		return json_object_new_string_len(s, (int)n);
	}
	default:
		return NULL;
	}
}

static void take_captures(const struct provider *p, struct json_object *root, struct grant_result *out)
{
	for (size_t i = 0; i < p->n_capture; i++) {
		const struct named_pointer *c = &p->capture[i];
		struct json_object *value = NULL;
		for (size_t j = 0; value == NULL && j < c->pointers.n; j++)
			value = copy_scalar(at(root, c->pointers.v[j]), out);
		if (value == NULL)
			continue;
		if (out->captured == NULL)
			out->captured = json_object_new_object();
		ALWAYS(out->captured != NULL);
		ALWAYS(json_object_object_add(out->captured, c->name, value) == 0);
	}
}

/* --- outcomes */

static void decide(struct grant_result *out, enum outcome outcome, enum reason reason)
{
	out->outcome = outcome;
	out->reason = reason;
}

static void take_success(const struct provider *p, const struct grant_reply *in, struct json_object *root,
	struct json_object *token, struct grant_result *out)
{
	if (take_token(token, &out->access_token) < 0 ||
		take_refresh_token(p, root, &out->refresh_token) < 0) {
		buf_reset(&out->access_token);
		buf_reset(&out->refresh_token);
		decide(out, OUTCOME_MALFORMED, REASON_BAD_REPLY);
		return;
	}
	take_word(at(root, "/token_type"), out->token_type, sizeof(out->token_type));
	take_scope(p, root, &out->scope);
	out->expires_at_us = read_expiry(p, root, in->start_wall_us);
	out->refresh_expires_at_us = read_refresh_expiry(p, root, in->start_wall_us);
	take_captures(p, root, out);
	decide(out, OUTCOME_REFRESHED, REASON_NONE);
}

/* By the word alone; false when the word says nothing. */
static bool decide_by_word(enum meaning m, struct grant_result *out)
{
	switch (m) {
	case MEANS_DEAD:
		decide(out, OUTCOME_GRANT_DEAD, REASON_INVALID_GRANT);
		return true;
	case MEANS_CLIENT:
		decide(out, OUTCOME_CLIENT_BROKEN, REASON_CLIENT_REFUSED);
		return true;
	case MEANS_TRANSIENT:
		decide(out, OUTCOME_TRANSIENT, REASON_PROVIDER_ERROR);
		return true;
	case MEANS_SLOWER:
		decide(out, OUTCOME_RATE_LIMITED, REASON_RATE_LIMITED);
		return true;
	case MEANS_NOTHING:
		break;
	}
	return false;
}

static void classify_2xx(const struct provider *p, const struct grant_reply *in, struct json_object *root,
	const struct error *e, struct grant_result *out)
{
	struct json_object *token = root == NULL ? NULL : first_token(root, PLACES(p, access_token));

	/* A token next to an error may be a rotation all the same: keep the reply and decide nothing by its
	 * words. */
	if (root == NULL || (token == NULL) != e->there)
		decide(out, OUTCOME_MALFORMED, REASON_BAD_REPLY);
	else if (token != NULL)
		take_success(p, in, root, token, out);
	else if (!decide_by_word(e->meaning, out))
		decide(out, OUTCOME_TRANSIENT, REASON_CLIENT_REFUSED);
}

static void classify_5xx(int status, const struct error *e, struct grant_result *out)
{
	/* A gateway that gave up waiting may have cut an answered request; a known word is the provider's own
	 * answer. */
	if ((status == 502 || status == 504) && e->meaning == MEANS_NOTHING)
		decide(out, OUTCOME_IN_DOUBT, REASON_NO_ANSWER);
	else if (e->meaning == MEANS_SLOWER)
		decide(out, OUTCOME_RATE_LIMITED, REASON_RATE_LIMITED);
	else
		decide(out, OUTCOME_TRANSIENT, REASON_PROVIDER_ERROR);
}

/* The endpoint is not what we think it is, or does not take what we send. */
static bool status_blames_request(int status, bool readable)
{
	switch (status) {
	case 404:
	case 405:
	case 407:
	case 410:
	case 411:
	case 415:
		return true;
	case 401:
		return !readable;
	default:
		return false;
	}
}

static void classify_4xx(int status, bool readable, const struct error *e, struct grant_result *out)
{
	bool may_be_dead = status == 400 || status == 401 || status == 403;
	enum meaning m = e->meaning == MEANS_DEAD && !may_be_dead ? MEANS_NOTHING : e->meaning;

	if (status == 429)
		decide(out, OUTCOME_RATE_LIMITED, REASON_RATE_LIMITED);
	else if (status == 408 || status == 425)
		decide(out, OUTCOME_TRANSIENT, REASON_PROVIDER_ERROR);
	else if (decide_by_word(m, out))
		return;
	/* A dead grant under a status that does not fit it is still about this one connection, not about all. */
	else if (e->meaning != MEANS_DEAD && status_blames_request(status, readable))
		decide(out, OUTCOME_CLIENT_BROKEN, REASON_CLIENT_REFUSED);
	else
		decide(out, OUTCOME_TRANSIENT, REASON_CLIENT_REFUSED);
}

static void classify_complete(
	const struct provider *p, const struct grant_reply *in, struct grant_result *out)
{
	struct json_object *root = grant_parse(in->body, in->body_len, in->content_type);
	struct error e = {0};

	if (root != NULL)
		e = read_error(p, root);
	if (e.known && strlen(e.word) < sizeof(out->error))
		memcpy(out->error, e.word, strlen(e.word) + 1);
	if (in->status < 300)
		classify_2xx(p, in, root, &e, out);
	else if (in->status < 400)
		decide(out, OUTCOME_CLIENT_BROKEN, REASON_CLIENT_REFUSED);
	else if (in->status < 500)
		classify_4xx(in->status, root != NULL, &e, out);
	else
		classify_5xx(in->status, &e, out);
	grant_parse_free(root);
}

/* The transport says that bytes are missing; a JSON object that is whole says that none of it are, and it may be the only copy of
 * a rotated token. Anything but a success stays in doubt, and so does a form, whose end nobody can see. */
static void classify_cut(const struct provider *p, const struct grant_reply *in, struct grant_result *out)
{
	struct json_object *root = in->status < 300 ? grant_parse_json(in->body, in->body_len) : NULL;
	if (root == NULL)
		return;
	struct error e = read_error(p, root);
	struct json_object *token = json_object_is_type(root, json_type_object) ? first_token(root, PLACES(p, access_token)) : NULL;

	if (token != NULL && !e.there)
		take_success(p, in, root, token, out);
	if (out->outcome != OUTCOME_REFRESHED)
		decide(out, OUTCOME_IN_DOUBT, REASON_NO_ANSWER);
	grant_parse_free(root);
}

void grant_classify(const struct provider *p, const struct grant_reply *in, struct grant_result *out)
{
	*out = (struct grant_result){.outcome = OUTCOME_IN_DOUBT, .reason = REASON_NO_ANSWER};
	buf_init_secret(&out->access_token, TOKEN_MAX);
	buf_init_secret(&out->refresh_token, TOKEN_MAX);
	buf_init(&out->scope, SCOPE_MAX);
	if (!in->sent) {
		decide(out, OUTCOME_NEVER_SENT, REASON_UNREACHABLE);
		return;
	}
	/* A final status that HTTP does not know is no answer either. */
	if (in->status < 200 || in->status > 599)
		return;
	if (!in->complete) {
		classify_cut(p, in, out);
		return;
	}
	out->retry_after_us = policy_retry_after_us(in->retry_after, in->now_wall_us, RETRY_AFTER_MAX_US);
	classify_complete(p, in, out);
}

void grant_result_fini(struct grant_result *r)
{
	buf_fini(&r->access_token);
	buf_fini(&r->refresh_token);
	buf_fini(&r->scope);
	json_object_put(r->captured);
	r->captured = NULL;
}

/* The payload of a compact JWS: exactly three parts, the middle one JSON. */
static struct json_object *jwt_payload(const char *token, size_t n)
{
	const char *first = memchr(token, '.', n), *end = token + n;
	const char *second = first == NULL ? NULL : memchr(first + 1, '.', (size_t)(end - first - 1));

	if (second == NULL || memchr(second + 1, '.', (size_t)(end - second - 1)) != NULL)
		return NULL;
	struct buf json = BUF_INIT_SECRET(TOKEN_MAX);
	struct json_object *payload = NULL;
	if (base64url_decode(&json, first + 1, (size_t)(second - first - 1)) == 0)
		payload = grant_parse_json(buf_str(&json), json.len);
	buf_fini(&json);
	return payload;
}

int64_t grant_jwt_exp(const char *token, size_t n)
{
	struct json_object *payload = n == 0 ? NULL : jwt_payload(token, n);
	int64_t us = payload == NULL ? 0 : grant_value_moment_us(at(payload, "/exp"), 0);

	grant_parse_free(payload);
	return us;
}
