/*
 * http - the strict reading of a request: HTTP/1.1 only, CRLF only, one Content-Length, no folding, no
 * transfer coding. Pure: slices into the caller's bytes, no I/O. A client that bends the grammar gets an
 * error here instead of a lucky guess, because the simulator judges clients.
 */
#include "provider/simulator.h"

#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "base/str.h"

bool slice_is(struct slice s, const char *text)
{
	return str_eq_nocase(s.p, s.n, text);
}

bool slice_starts(struct slice s, const char *text)
{
	size_t n = strlen(text);
	return s.n >= n && memcmp(s.p, text, n) == 0;
}

static bool is_token(const char *p, size_t n)
{
	static const char extra[] = "!#$%&'*+-.^_`|~";
	for (size_t i = 0; i < n; i++) {
		char c = p[i];
		bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
		if (!alnum && (c == '\0' || strchr(extra, c) == NULL))
			return false;
	}
	return n > 0;
}

static int parse_line(struct request *r, const char *p, const char *end)
{
	const char *sp = memchr(p, ' ', (size_t)(end - p));
	if (sp == NULL || !is_token(p, (size_t)(sp - p)))
		return ST_SYNTAX;
	r->method = (struct slice){p, (size_t)(sp - p)};
	const char *target = sp + 1;
	sp = memchr(target, ' ', (size_t)(end - target));
	if (sp == NULL || *target != '/' || str_has_ctl(target, (size_t)(sp - target)))
		return ST_SYNTAX;
	const char *mark = memchr(target, '?', (size_t)(sp - target));
	r->path = (struct slice){target, (size_t)((mark != NULL ? mark : sp) - target)};
	r->query = mark != NULL ? (struct slice){mark + 1, (size_t)(sp - mark - 1)} : (struct slice){"", 0};
	if (end - sp != 9 || memcmp(sp, " HTTP/", 6) != 0)
		return ST_SYNTAX;
	return memcmp(sp, " HTTP/1.1", 9) == 0 ? 0 : ST_VERSION;
}

static int note_header(struct request *r, const struct header *h, bool *has_length)
{
	switch (h->name.n) {
	case 4:
		if (slice_is(h->name, "Host"))
			r->host = h->value;
		break;
	case 6:
		if (slice_is(h->name, "Expect"))
			r->expect_continue = slice_is(h->value, "100-continue");
		break;
	case 10:
		if (slice_is(h->name, "Connection"))
			r->close = slice_is(h->value, "close");
		break;
	case 12:
		if (slice_is(h->name, "Content-Type"))
			r->content_type = h->value;
		break;
	case 13:
		if (slice_is(h->name, "Authorization"))
			r->authorization = h->value;
		break;
	case 14: {
		uint64_t length;
		if (!slice_is(h->name, "Content-Length"))
			break;
		if (*has_length || str_parse_u64(h->value.p, h->value.n, &length) != 0)
			return ST_SYNTAX;
		if (length > BODY_MAX)
			return ST_FULL;
		r->content_length = length;
		*has_length = true;
		break;
	}
	case 17:
		if (slice_is(h->name, "Transfer-Encoding"))
			return ST_INVALID;
		break;
	default:
		break;
	}
	return 0;
}

static int parse_header(struct request *r, const char *p, const char *end, bool *has_length)
{
	const char *colon = memchr(p, ':', (size_t)(end - p));
	if (colon == NULL || !is_token(p, (size_t)(colon - p)))
		return ST_SYNTAX;
	if (r->header_count == HEADER_MAX)
		return ST_FULL;
	struct header *h = &r->headers[r->header_count++];
	h->name = (struct slice){p, (size_t)(colon - p)};
	const char *v = colon + 1;
	while (v < end && (*v == ' ' || *v == '\t'))
		v++;
	while (end > v && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	h->value = (struct slice){v, (size_t)(end - v)};
	for (const char *q = v; q < end; q++)
		if ((unsigned char)*q < 0x20 && *q != '\t')
			return ST_SYNTAX;
	return note_header(r, h, has_length);
}

int request_parse(struct request *r, const char *p, size_t n)
{
	const char *stop = memmem(p, n < HEAD_MAX ? n : HEAD_MAX, "\r\n\r\n", 4);
	if (stop == NULL)
		return n >= HEAD_MAX ? ST_FULL : ST_AGAIN;
	r->header_count = 0;
	r->content_length = 0;
	r->close = r->expect_continue = false;
	r->host = r->content_type = r->authorization = r->body = (struct slice){"", 0};
	r->head_len = (size_t)(stop - p) + 4;
	const char *eol = memmem(p, (size_t)(stop - p) + 2, "\r\n", 2);
	int rc = parse_line(r, p, eol);
	bool has_length = false;
	while (rc == 0 && eol < stop) {
		const char *line = eol + 2;
		eol = memmem(line, (size_t)(stop - line) + 2, "\r\n", 2);
		rc = parse_header(r, line, eol, &has_length);
	}
	return rc != 0 ? rc : r->host.n == 0 ? ST_SYNTAX : 0;
}

void form_init(struct form *f)
{
	buf_init_secret(&f->text, 2 * BODY_MAX + 1024);
	f->count = 0;
}

void form_fini(struct form *f)
{
	buf_fini(&f->text);
	f->count = 0;
}

void form_reset(struct form *f)
{
	buf_truncate(&f->text, 0);
	f->count = 0;
}

static int form_add(struct form *f, size_t name, size_t value)
{
	if (f->count == FORM_MAX)
		return ST_FULL;
	const char *text = buf_str(&f->text);
	for (unsigned i = 0; i < f->count; i++)
		if (strcmp(text + f->pair[i].name, text + name) == 0)
			return ST_EXISTS;
	f->pair[f->count].name = name;
	f->pair[f->count].value = value;
	f->pair[f->count].len = strlen(text + value);
	f->count++;
	return 0;
}

static int form_piece(struct form *f, const char *p, size_t n, size_t *at)
{
	*at = f->text.len;
	int rc = str_percent_decode(&f->text, p, n, true);
	return rc != 0 ? rc : buf_putc(&f->text, '\0');
}

int form_parse(struct form *f, const char *p, size_t n)
{
	const char *end = p + n;
	while (p < end) {
		const char *amp = memchr(p, '&', (size_t)(end - p));
		const char *stop = amp != NULL ? amp : end;
		const char *eq = memchr(p, '=', (size_t)(stop - p));
		const char *name_end = eq != NULL ? eq : stop;
		size_t name, value;
		int rc = form_piece(f, p, (size_t)(name_end - p), &name);
		if (rc == 0)
			rc = form_piece(f, eq != NULL ? eq + 1 : stop,
				eq != NULL ? (size_t)(stop - eq - 1) : 0, &value);
		if (rc == 0)
			rc = form_add(f, name, value);
		if (rc != 0)
			return rc;
		p = stop + 1;
	}
	return 0;
}

int form_parse_json(struct form *f, const char *p, size_t n)
{
	struct json_tokener *tok = json_tokener_new_ex(8);
	if (tok == NULL)
		return ST_FULL;
	json_tokener_set_flags(tok, JSON_TOKENER_STRICT);
	struct json_object *o = json_tokener_parse_ex(tok, p, (int)n);
	int rc = o != NULL && json_object_is_type(o, json_type_object) && json_tokener_get_parse_end(tok) == n
			 ? 0
			 : ST_SYNTAX;
	if (rc == 0) {
		json_object_object_foreach(o, key, val)
		{
			size_t name = f->text.len, value;
			if (rc != 0 || json_object_is_type(val, json_type_null))
				continue;
			rc = buf_append(&f->text, key, strlen(key) + 1);
			value = f->text.len;
			const char *text = json_object_get_string(val);
			if (rc == 0)
				rc = buf_append(&f->text, text, strlen(text) + 1);
			if (rc == 0)
				rc = form_add(f, name, value);
		}
	}
	json_object_put(o);
	json_tokener_free(tok);
	return rc;
}

const char *form_get(const struct form *f, const char *name, size_t *n)
{
	const char *text = buf_str(&f->text);
	for (unsigned i = 0; i < f->count; i++) {
		if (strcmp(text + f->pair[i].name, name) != 0)
			continue;
		if (n != NULL)
			*n = f->pair[i].len;
		return text + f->pair[i].value;
	}
	return NULL;
}

int form_i64(const struct form *f, const char *name, int64_t fallback, int64_t *out)
{
	size_t n;
	const char *v = form_get(f, name, &n);
	if (v == NULL) {
		*out = fallback;
		return 0;
	}
	return str_parse_i64(v, n, out);
}
