/*
 * httpd_framing - a small strict request parser, in place of evhttp's: that one accepts a doubled
 * Content-Length, "0x3" and "+3", NUL bytes, bare LF and HTTP/1.1 without Host, has no hook before it has
 * decided where a request ends, and no deadline for a request that drips. What two parsers could read in two
 * ways is refused here, not repaired. Must not know sockets, time or the handler.
 */
#include "io/httpd_framing.h"

#include <string.h>

#include "base/header.h"
#include "base/mem.h"
#include "base/str.h"

enum framing_state { IN_HEAD, IN_BODY, CHUNK_SIZE, CHUNK_SIZE_LF, CHUNK_DATA, CHUNK_CR, CHUNK_LF, LAST_CR, LAST_LF, COMPLETE };

void httpd_framing_init(struct httpd_framing *p, size_t max_head, size_t max_body)
{
	memset(p, 0, sizeof(*p));
	p->state = IN_HEAD;
	p->max_body = max_body;
	buf_init_secret(&p->head, max_head);
	buf_init_secret(&p->body, max_body);
}

void httpd_framing_fini(struct httpd_framing *p)
{
	buf_fini(&p->head);
	buf_fini(&p->body);
}

bool httpd_framing_in_body(const struct httpd_framing *p)
{
	return p->state != IN_HEAD && p->state != COMPLETE;
}

const char *httpd_framing_field(const struct httpd_framing *p, const char *name)
{
	for (size_t i = 0; i < p->n_fields; i++)
		if (str_eq_nocase(p->fields[i].name, strlen(p->fields[i].name), name))
			return p->fields[i].value;
	return NULL;
}

static bool is_alnum(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int hex_digit(uint8_t c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* --- the request line */

static int parse_method(struct httpd_framing *p, const char *s)
{
	static const struct {
		const char *name;
		enum httpd_method method;
	} methods[] = {
		{ "GET", HTTPD_GET }, { "HEAD", HTTPD_HEAD }, { "POST", HTTPD_POST },
		{ "PUT", HTTPD_PUT }, { "PATCH", HTTPD_PATCH }, { "DELETE", HTTPD_DELETE },
	};
	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
		if (strcmp(s, methods[i].name) == 0) {
			p->method = methods[i].method;
			return 0;
		}
	}
	return header_is_name(s) ? 501 : 400; /* a method is a token, too */
}

/* RFC 3986: pchar, '/' and '?', with whole percent escapes. */
static bool is_target(const char *s)
{
	if (*s != '/')
		return false;
	for (; *s; s++) {
		if (*s == '%' && (hex_digit((uint8_t)s[1]) < 0 || hex_digit((uint8_t)s[2]) < 0))
			return false;
		if (!is_alnum(*s) && strchr("-._~!$&'()*+,;=:@/?%", *s) == NULL)
			return false;
	}
	return true;
}

static int parse_version(struct httpd_framing *p, const char *s)
{
	if (strlen(s) != 8 || memcmp(s, "HTTP/", 5) != 0 || s[5] < '0' || s[5] > '9' || s[6] != '.' || s[7] < '0' || s[7] > '9')
		return 400;
	if (s[5] != '1' || s[7] > '1')
		return 505;
	p->http10 = s[7] == '0';
	p->close = p->http10;
	return 0;
}

static int parse_request_line(struct httpd_framing *p, char *line)
{
	char *target = strchr(line, ' ');
	if (target == NULL)
		return 400;
	*target++ = '\0';
	char *version = strchr(target, ' ');
	if (version == NULL)
		return 400;
	*version++ = '\0';
	int status = parse_version(p, version);
	if (status == 0)
		status = parse_method(p, line);
	if (status != 0)
		return status;
	if (!is_target(target))
		return 400;
	char *query = strchr(target, '?');
	if (query)
		*query++ = '\0';
	p->path = target;
	p->query = query ? query : "";
	return 0;
}

/* --- fields */

static int parse_field(struct httpd_framing *p, char *line)
{
	char *value = strchr(line, ':');
	if (value == NULL)
		return 400;
	*value++ = '\0';
	/* Refuses a fold (the name would begin with a space) and a space before the colon as well. */
	if (!header_is_name(line))
		return 400;
	if (p->n_fields == HTTPD_FRAMING_MAX_FIELDS)
		return 431;
	value += strspn(value, " \t");
	size_t n = strlen(value);
	while (n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t'))
		value[--n] = '\0';
	p->fields[p->n_fields++] = (struct httpd_field){ .name = line, .value = value };
	return 0;
}

const char *httpd_framing_only(const struct httpd_framing *p, const char *name, unsigned *n)
{
	const char *value = NULL;
	*n = 0;
	for (size_t i = 0; i < p->n_fields; i++) {
		if (!str_eq_nocase(p->fields[i].name, strlen(p->fields[i].name), name))
			continue;
		value = p->fields[i].value;
		(*n)++;
	}
	return value;
}

/* uri-host [":" port], RFC 9110 7.2; no empty host. */
static bool is_host(const char *s)
{
	const char *end;
	if (*s == '[') {
		end = s + 1 + strspn(s + 1, "0123456789abcdefABCDEF:.");
		if (end == s + 1 || *end != ']')
			return false;
		end++;
	} else {
		for (end = s; *end && *end != ':'; end++)
			if (!is_alnum(*end) && strchr("-._~", *end) == NULL)
				return false;
		if (end == s)
			return false;
	}
	if (*end == '\0')
		return true;
	return *end == ':' && strspn(end + 1, "0123456789") == strlen(end + 1) && strlen(end + 1) <= 5;
}

static int check_host(const struct httpd_framing *p)
{
	unsigned n;
	const char *host = httpd_framing_only(p, "host", &n);
	if (n > 1 || (n == 0 && !p->http10))
		return 400;
	return n == 1 && !is_host(host) ? 400 : 0;
}

static bool has_word(const char *list, const char *word)
{
	while (*list) {
		list += strspn(list, " \t,");
		size_t n = strcspn(list, " \t,");
		if (str_eq_nocase(list, n, word))
			return true;
		list += n;
	}
	return false;
}

/* Two of these would let two readers see two different requests. */
static int check_single(const struct httpd_framing *p)
{
	static const char *const names[] = { "authorization", "content-type", "content-encoding" };
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		unsigned n;
		(void)httpd_framing_only(p, names[i], &n);
		if (n > 1)
			return 400;
	}
	return 0;
}

static int check_connection(struct httpd_framing *p)
{
	bool keep = false, close = false;
	for (size_t i = 0; i < p->n_fields; i++) {
		if (!str_eq_nocase(p->fields[i].name, strlen(p->fields[i].name), "connection"))
			continue;
		keep = keep || has_word(p->fields[i].value, "keep-alive");
		close = close || has_word(p->fields[i].value, "close");
	}
	p->close = close || (p->http10 && !keep);

	unsigned n;
	const char *expect = httpd_framing_only(p, "expect", &n);
	if (n > 1 || (n == 1 && !str_eq_nocase(expect, strlen(expect), "100-continue")))
		return 417;
	p->expect_continue = n == 1 && !p->http10;
	return 0;
}

static int check_length(struct httpd_framing *p)
{
	unsigned n_te, n_cl;
	const char *te = httpd_framing_only(p, "transfer-encoding", &n_te), *cl = httpd_framing_only(p, "content-length", &n_cl);
	if (n_te + n_cl > 1)
		return 400;
	if (n_te == 1) {
		if (p->http10 || !str_eq_nocase(te, strlen(te), "chunked"))
			return 400;
		p->state = CHUNK_SIZE;
		return 0;
	}
	if (n_cl == 0) {
		p->state = COMPLETE;
		return 0;
	}
	int code = str_parse_u64(cl, strlen(cl), &p->left);
	if (code == ST_SYNTAX)
		return 400;
	if (code != 0 || p->left > p->max_body)
		return 413;
	p->state = p->left > 0 ? IN_BODY : COMPLETE;
	return 0;
}

static int parse_head(struct httpd_framing *p)
{
	char *line = (char *)p->head.data, *end = line + p->head.len - 2; /* without the empty line */
	int status = 0;
	for (bool first = true; line < end && status == 0; first = false) {
		char *lf = memchr(line, '\n', (size_t)(end - line));
		ALWAYS(lf != NULL && lf[-1] == '\r');
		lf[-1] = '\0';
		status = first ? parse_request_line(p, line) : parse_field(p, line);
		line = lf + 1;
	}
	if (status == 0)
		status = check_host(p);
	if (status == 0)
		status = check_single(p);
	if (status == 0)
		status = check_connection(p);
	return status == 0 ? check_length(p) : status;
}

/* --- bytes in */

/* One byte of the head: 0, 1 when it was the last one, or a status. */
static int feed_head(struct httpd_framing *p, uint8_t c)
{
	uint8_t prev = p->head.len > 0 ? p->head.data[p->head.len - 1] : 0;
	if ((prev == '\r') != (c == '\n'))
		return 400;
	if ((c < 0x20 && c != '\t' && c != '\r' && c != '\n') || c == 0x7f)
		return 400;
	if (buf_putc(&p->head, (char)c) != 0)
		return 431;
	if (c != '\n')
		return 0;
	bool empty = p->head.len - p->line_start == 2;
	if (empty && p->line_start == 0)
		return 400; /* empty lines before a request are not skipped */
	p->line_start = p->head.len;
	return empty;
}

/* As many bytes as are nothing but text, within a line and within the bound: what stops them is told by feed_head. */
static size_t feed_head_text(struct httpd_framing *p, const uint8_t *data, size_t n)
{
	size_t i = 0, room = p->head.max - p->head.len;
	if (p->head.len > 0 && p->head.data[p->head.len - 1] == '\r')
		return 0;
	while (i < n && i < room && data[i] >= 0x20 && data[i] != 0x7f)
		i++;
	ALWAYS(buf_append(&p->head, data, i) == 0);
	return i;
}

static int feed_chunk_size(struct httpd_framing *p, uint8_t c)
{
	int d = hex_digit(c);
	if (d >= 0) {
		if (p->digits++ == 8)
			return 400;
		p->left = p->left << 4 | (uint64_t)d;
		return 0;
	}
	if (c != '\r' || p->digits == 0)
		return 400;
	if (p->left > p->max_body - p->body.len)
		return 413;
	p->state = CHUNK_SIZE_LF;
	return 0;
}

static int feed_chunk_frame(struct httpd_framing *p, uint8_t c)
{
	static const struct {
		uint8_t want;
		int next;
	} step[] = {
		[CHUNK_CR] = { '\r', CHUNK_LF },
		[CHUNK_LF] = { '\n', CHUNK_SIZE },
		[LAST_CR] = { '\r', LAST_LF },
		[LAST_LF] = { '\n', COMPLETE },
	};
	if (p->state == CHUNK_SIZE)
		return feed_chunk_size(p, c);
	if (p->state == CHUNK_SIZE_LF) {
		if (c != '\n')
			return 400;
		p->state = p->left > 0 ? CHUNK_DATA : LAST_CR;
		p->digits = 0;
		return 0;
	}
	if (c != step[p->state].want)
		return 400;
	p->state = step[p->state].next;
	return 0;
}

/* As much of a body or chunk as is there. */
static size_t feed_data(struct httpd_framing *p, const uint8_t *data, size_t n)
{
	if (n > p->left)
		n = (size_t)p->left;
	ALWAYS(buf_append(&p->body, data, n) == 0); /* the length was checked against the maximum */
	p->left -= n;
	if (p->left == 0)
		p->state = p->state == IN_BODY ? COMPLETE : CHUNK_CR;
	return n;
}

int httpd_framing_feed(struct httpd_framing *p, const uint8_t *data, size_t n, size_t *used)
{
	size_t i = 0;
	int status = 0;
	while (i < n && p->state != COMPLETE && status == 0) {
		if (p->state == IN_BODY || p->state == CHUNK_DATA) {
			i += feed_data(p, data + i, n - i);
		} else if (p->state == IN_HEAD) {
			i += feed_head_text(p, data + i, n - i);
			if (i < n)
				status = feed_head(p, data[i++]);
			if (status == 1)
				status = parse_head(p);
		} else {
			status = feed_chunk_frame(p, data[i++]);
		}
	}
	*used = i;
	if (status != 0)
		return status;
	return p->state == COMPLETE ? HTTPD_FRAMING_DONE : HTTPD_FRAMING_MORE;
}
