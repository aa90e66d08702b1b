/*
 * grant_parse - strict reading of replies on top of json-c.
 *
 * json-c takes more than JSON (quotes of either kind, NaN, control bytes, a name twice: the last one wins),
 * and which of two tokens is meant must never be a guess. So the bytes are scanned first and the tree is
 * checked after. json-c knows no secrets: its one growing buffer is made large enough before the first byte,
 * so that it leaves no copies behind, and is wiped, as is every string of the tree.
 */
#include "model/grant_parse.h"

#include <json-c/printbuf.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"

#define MAX_DEPTH 32
#define MAX_FIELDS 256
#define SHORT_DEPTH 8
#define MAX_DIGITS 18 /* any of them fits */

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void trim(const char **s, size_t *n)
{
	while (*n > 0 && is_blank((*s)[0])) {
		(*s)++;
		(*n)--;
	}
	while (*n > 0 && is_blank((*s)[*n - 1]))
		(*n)--;
}

/* What json-c lets pass. Also counts the members: outside of strings every colon stands for one. */
static bool scan(const char *s, size_t n, size_t *members)
{
	bool in_string = false;

	*members = 0;
	for (size_t i = 0; i < n; i++) {
		if (in_string)
			i += str_json_run(s + i, n - i - 1);
		unsigned char c = (unsigned char)s[i];
		if (in_string) {
			if (c < 0x20)
				return false;
			if (c == '\\') {
				/* A NUL would end a name or a word early for whoever reads it as a C string.
				 */
				if (n - i > 5 && memcmp(s + i, "\\u0000", 6) == 0)
					return false;
				i++;
			} else if (c == '"')
				in_string = false;
			continue;
		}
		if (c == '\'' || (c < 0x20 && !is_blank((char)c)))
			return false;
		in_string = c == '"';
		*members += c == ':';
	}
	return true;
}

/* Counts the members that are left in the tree; false for a number that is none. Depth is bounded by the
 * parser. */
static bool check_tree(struct json_object *o, size_t *members)
{
	switch (json_object_get_type(o)) {
	case json_type_double:
		return isfinite(json_object_get_double(o));
	case json_type_array:
		for (size_t i = 0; i < json_object_array_length(o); i++)
			if (!check_tree(json_object_array_get_idx(o, i), members))
				return false;
		return true;
	case json_type_object: {
		struct json_object_iterator it = json_object_iter_begin(o), end = json_object_iter_end(o);
		for (; !json_object_iter_equal(&it, &end); json_object_iter_next(&it)) {
			++*members;
			if (!check_tree(json_object_iter_peek_value(&it), members))
				return false;
		}
		return true;
	}
	default:
		return true;
	}
}

static void wipe_string(struct json_object *o)
{
	/* For a string this is the object's own storage, which json-c only lends as const. */
	mem_wipe((void *)(uintptr_t)json_object_get_string(o), (size_t)json_object_get_string_len(o));
}

static void wipe_tree(struct json_object *o)
{
	switch (json_object_get_type(o)) {
	case json_type_string:
		wipe_string(o);
		break;
	case json_type_array:
		for (size_t i = 0; i < json_object_array_length(o); i++)
			wipe_tree(json_object_array_get_idx(o, i));
		break;
	case json_type_object: {
		struct json_object_iterator it = json_object_iter_begin(o), end = json_object_iter_end(o);
		for (; !json_object_iter_equal(&it, &end); json_object_iter_next(&it))
			wipe_tree(json_object_iter_peek_value(&it));
		break;
	}
	default:
		break;
	}
}

void grant_parse_free(struct json_object *root)
{
	wipe_tree(root);
	json_object_put(root);
}

/* What a parse that broke off had built so far: one open object or array a level. */
static void wipe_unfinished(struct json_tokener *tok)
{
	for (int i = 0; i <= tok->depth; i++)
		wipe_tree(tok->stack[i].current);
}

static struct json_object *run_parser(const char *s, size_t n)
{
	struct json_tokener *tok = json_tokener_new_ex(MAX_DEPTH);

	ALWAYS(tok != NULL);
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT);
	/* No decoded string is longer than the text, so this is the last growth. */
	ALWAYS(printbuf_memset(tok->pb, 0, 0, (int)n + 1) == 0);
	printbuf_reset(tok->pb);
	struct json_object *root = json_tokener_parse_ex(tok, s, (int)n);
	bool whole =
		json_tokener_get_error(tok) == json_tokener_success && json_tokener_get_parse_end(tok) == n;
	mem_wipe(tok->pb->buf, (size_t)tok->pb->size);
	wipe_unfinished(tok);
	json_tokener_free(tok);
	if (!whole) {
		grant_parse_free(root);
		return NULL;
	}
	return root;
}

/* --- the short way: a text without an escape, a fraction or a sign, which is what nearly every reply is */

struct reader {
	const char *s, *end;
};

static void skip_blanks(struct reader *r)
{
	while (r->s < r->end && is_blank(*r->s))
		r->s++;
}

static bool take_char(struct reader *r, char c)
{
	skip_blanks(r);
	if (r->s == r->end || *r->s != c)
		return false;
	r->s++;
	return true;
}

/* Behind the opening quote; up to a backslash at most. */
static bool take_string(struct reader *r, const char **out, size_t *n)
{
	*out = r->s;
	*n = str_json_run(r->s, (size_t)(r->end - r->s));
	r->s += *n;
	if (r->s == r->end || *r->s != '"')
		return false;
	r->s++;
	return true;
}

static bool take_number(struct reader *r, struct json_object **out)
{
	const char *begin = r->s;
	int64_t v = 0;

	for (; r->s < r->end && *r->s >= '0' && *r->s <= '9' && r->s - begin < MAX_DIGITS; r->s++)
		v = v * 10 + (*r->s - '0');
	bool whole = r->s < r->end && (is_blank(*r->s) || *r->s == ',' || *r->s == '}' || *r->s == ']');
	if (r->s == begin || !whole || (*begin == '0' && r->s - begin > 1))
		return false;
	*out = json_object_new_int64(v);
	return true;
}

static bool take_word(struct reader *r, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(r->end - r->s) < n || memcmp(r->s, word, n) != 0)
		return false;
	r->s += n;
	return true;
}

static bool take_value(struct reader *r, unsigned depth, struct json_object **out);

/* The name in storage that json-c may point to for ever; NULL: not one of those that nearly every reply has. */
static const char *usual_name(const char *name, size_t n)
{
	static const char *const usual[] = {"access_token", "refresh_token", "expires_in", "token_type", "scope"};

	for (size_t i = 0; i < sizeof(usual) / sizeof(usual[0]); i++)
		if (strncmp(name, usual[i], n) == 0 && usual[i][n] == '\0')
			return usual[i];
	return NULL;
}

static bool take_member(struct reader *r, unsigned depth, struct json_object *to)
{
	const char *name;
	size_t n;
	char key[64];
	struct json_object *value = NULL;

	if (!take_char(r, '"') || !take_string(r, &name, &n) || n >= sizeof(key) || !take_char(r, ':'))
		return false;
	memcpy(key, name, n);
	key[n] = '\0';
	bool ok = !json_object_object_get_ex(to, key, NULL) && take_value(r, depth, &value);
	if (!ok) {
		grant_parse_free(value);
		return false;
	}
	const char *usual = usual_name(name, n);
	unsigned how = JSON_C_OBJECT_ADD_KEY_IS_NEW | (usual != NULL ? JSON_C_OBJECT_ADD_CONSTANT_KEY : 0);
	ALWAYS(json_object_object_add_ex(to, usual != NULL ? usual : key, value, how) == 0);
	return true;
}

static bool take_element(struct reader *r, unsigned depth, struct json_object *to)
{
	struct json_object *value = NULL;

	if (!take_value(r, depth, &value)) {
		grant_parse_free(value);
		return false;
	}
	ALWAYS(json_object_array_add(to, value) == 0);
	return true;
}

/* Behind the opening bracket. */
static bool take_members(struct reader *r, unsigned depth, char close, struct json_object *to)
{
	bool (*take)(struct reader *, unsigned, struct json_object *) = close == '}' ? take_member : take_element;

	if (take_char(r, close))
		return true;
	do {
		if (!take(r, depth, to))
			return false;
	} while (take_char(r, ','));
	return take_char(r, close);
}

/* What was begun is in *out, whatever comes back. */
static bool take_value(struct reader *r, unsigned depth, struct json_object **out)
{
	const char *s;
	size_t n;

	skip_blanks(r);
	if (r->s == r->end || depth == SHORT_DEPTH)
		return false;
	switch (*r->s) {
	case '"':
		r->s++;
		if (!take_string(r, &s, &n))
			return false;
		*out = json_object_new_string_len(s, (int)n);
		return true;
	case '{':
		r->s++;
		*out = json_object_new_object();
		return take_members(r, depth + 1, '}', *out);
	case '[':
		r->s++;
		*out = json_object_new_array();
		return take_members(r, depth + 1, ']', *out);
	case 't':
		*out = json_object_new_boolean(true);
		return take_word(r, "true");
	case 'f':
		*out = json_object_new_boolean(false);
		return take_word(r, "false");
	case 'n':
		return take_word(r, "null");
	default:
		return take_number(r, out);
	}
}

/* NULL: not one of those, which says nothing about it. What it takes, json-c takes, and reads as the same. */
static struct json_object *parse_short(const char *s, size_t n)
{
	struct reader r = {.s = s, .end = s + n};
	struct json_object *root = NULL;

	if (take_value(&r, 0, &root) && r.s == r.end)
		return root;
	grant_parse_free(root);
	return NULL;
}

struct json_object *grant_parse_json(const char *s, size_t n)
{
	static const char bom[] = "\xef\xbb\xbf";
	size_t written, read = 0;

	if (n >= 3 && memcmp(s, bom, 3) == 0) {
		s += 3;
		n -= 3;
	}
	trim(&s, &n);
	if (n == 0 || n > GRANT_PARSE_MAX || (s[0] != '{' && s[0] != '['))
		return NULL;
	if (!str_is_utf8(s, n))
		return NULL;
	struct json_object *root = parse_short(s, n);
	if (root != NULL || !scan(s, n, &written))
		return root;
	root = run_parser(s, n);
	if (root != NULL && (!check_tree(root, &read) || read != written)) {
		grant_parse_free(root);
		return NULL;
	}
	return root;
}

/* One name=value; false when it is not one, or the name was there before. */
static bool take_field(struct json_object *root, const char *s, size_t n)
{
	struct buf name = BUF_INIT(GRANT_PARSE_MAX), value = BUF_INIT_SECRET(GRANT_PARSE_MAX);
	const char *eq = memchr(s, '=', n);
	bool ok = eq != NULL && eq != s;

	if (ok)
		ok = str_percent_decode(&name, s, (size_t)(eq - s), true) == 0 &&
		     str_percent_decode(&value, eq + 1, (size_t)(s + n - eq - 1), true) == 0 &&
		     str_is_utf8(name.data, name.len) && str_is_utf8(value.data, value.len) &&
		     !json_object_object_get_ex(root, buf_str(&name), NULL);
	if (ok)
		json_object_object_add(
			root, buf_str(&name), json_object_new_string_len(buf_str(&value), (int)value.len));
	buf_fini(&name);
	buf_fini(&value);
	return ok;
}

static struct json_object *parse_form(const char *s, size_t n)
{
	struct json_object *root = json_object_new_object();
	size_t fields = 0;
	bool ok = n > 0 && n <= GRANT_PARSE_MAX;

	ALWAYS(root != NULL);
	/* A page of text is no form, and no honest reply has hundreds of fields. */
	for (size_t i = 0; ok && i < n; i++) {
		fields += s[i] == '&';
		ok = !is_blank(s[i]) && s[i] != '<' && fields < MAX_FIELDS;
	}
	while (ok && n > 0) {
		const char *amp = memchr(s, '&', n);
		size_t len = amp == NULL ? n : (size_t)(amp - s);
		ok = take_field(root, s, len);
		len += amp != NULL;
		s += len;
		n -= len;
	}
	if (!ok) {
		grant_parse_free(root);
		return NULL;
	}
	return root;
}

static bool may_be_form(const char *content_type)
{
	size_t n = strcspn(content_type, "; \t");

	return str_eq_nocase(content_type, n, "application/x-www-form-urlencoded") ||
	       str_eq_nocase(content_type, n, "text/plain");
}

struct json_object *grant_parse(const void *body, size_t n, const char *content_type)
{
	const char *s = body;

	if (n == 0)
		return NULL;
	/* There are endpoints that call their JSON a form or plain text; the first byte does not lie. */
	trim(&s, &n);
	bool looks_json = n > 0 && (s[0] == '{' || s[0] == '[' || s[0] == '\xef');
	if (!looks_json && content_type != NULL && may_be_form(content_type))
		return parse_form(s, n);
	return grant_parse_json(s, n);
}
