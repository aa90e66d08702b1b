/*
 * reply - an answer as data, and its bytes.
 *
 * Handlers fill one reusable `struct reply`; faults bend it before it is rendered. Nothing here sends.
 */
#include "provider/simulator.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/jsonw.h"
#include "base/mem.h"
#include "base/sys.h"

void put(int rc)
{
	ALWAYS(rc == 0);
}

/* The answer's hot path: buf_printf would cost several times as much. */
void put_number(struct buf *b, int64_t v)
{
	char text[24];
	int n = snprintf(text, sizeof text, "%lld", (long long)v);
	put(buf_append(b, text, (size_t)n));
}

static const char *reason(int status)
{
	static const struct {
		int status;
		const char *text;
	} known[] = {{200, "OK"}, {201, "Created"}, {204, "No Content"}, {301, "Moved Permanently"},
		{302, "Found"}, {307, "Temporary Redirect"}, {308, "Permanent Redirect"},
		{400, "Bad Request"}, {401, "Unauthorized"}, {403, "Forbidden"}, {404, "Not Found"},
		{405, "Method Not Allowed"}, {408, "Request Timeout"}, {409, "Conflict"}, {410, "Gone"},
		{411, "Length Required"}, {413, "Content Too Large"}, {415, "Unsupported Media Type"},
		{429, "Too Many Requests"}, {500, "Internal Server Error"}, {502, "Bad Gateway"},
		{503, "Service Unavailable"}, {504, "Gateway Timeout"}, {505, "HTTP Version Not Supported"}};
	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
		if (known[i].status == status)
			return known[i].text;
	return "Status";
}

static const char *http_date(struct sim *s)
{
	time_t now = (time_t)(sys_wall_us() / US_PER_S);
	struct tm tm;
	if (now != s->date_s && gmtime_r(&now, &tm) != NULL) {
		(void)strftime(s->date, sizeof s->date, "%a, %d %b %Y %H:%M:%S GMT", &tm);
		s->date_s = now;
	}
	return s->date;
}

void reply_reset(struct reply *r, int status, const char *type)
{
	r->status = status;
	r->type = type;
	r->chunked = false;
	r->extra = 0;
	buf_truncate(&r->headers, 0);
	if (r->body.cap > ((size_t)1 << 20))
		buf_fini(&r->body);
	else
		buf_truncate(&r->body, 0);
}

static void render_chunks(const struct buf *body, struct buf *wire)
{
	size_t done = 0;
	for (size_t step = 1; done < body->len; step = step < 64 ? step * 3 : step) {
		size_t n = body->len - done < step ? body->len - done : step;
		put(buf_printf(wire, "%zx\r\n", n));
		put(buf_append(wire, body->data + done, n));
		put(buf_puts(wire, "\r\n"));
		done += n;
	}
	put(buf_puts(wire, "0\r\n\r\n"));
}

size_t reply_render(struct sim *s, const struct reply *r, bool last, struct buf *wire)
{
	buf_truncate(wire, 0);
	put(buf_puts(wire, "HTTP/1.1 "));
	put_number(wire, r->status);
	put(buf_putc(wire, ' '));
	put(buf_puts(wire, reason(r->status)));
	put(buf_puts(wire, "\r\nDate: "));
	put(buf_puts(wire, http_date(s)));
	if (r->type != NULL) {
		put(buf_puts(wire, "\r\nContent-Type: "));
		put(buf_puts(wire, r->type));
	}
	put(buf_puts(wire, "\r\n"));
	put(buf_append(wire, r->headers.data, r->headers.len));
	if (last)
		put(buf_puts(wire, "Connection: close\r\n"));
	if (r->chunked) {
		put(buf_puts(wire, "Transfer-Encoding: chunked\r\n\r\n"));
	} else if (r->status == 204) {
		put(buf_puts(wire, "\r\n"));
	} else {
		put(buf_puts(wire, "Content-Length: "));
		put_number(wire, (int64_t)(r->body.len + r->extra));
		put(buf_puts(wire, "\r\n\r\n"));
	}
	size_t head = wire->len;
	if (r->chunked)
		render_chunks(&r->body, wire);
	else if (r->status != 204)
		put(buf_append(wire, r->body.data, r->body.len));
	return head;
}

void conn_reply(struct conn *c, struct reply *r)
{
	(void)reply_render(c->sim, r, c->last, &c->sim->wire);
	conn_perform(c, &c->sim->wire);
}

void conn_reply_text(struct conn *c, int status, const char *json)
{
	struct reply *r = &c->sim->reply;
	reply_reset(r, status, "application/json");
	put(buf_puts(&r->body, json));
	conn_reply(c, r);
}

void conn_reply_error(struct conn *c, int status, const char *fmt, ...)
{
	struct reply *r = &c->sim->reply;
	struct buf text = BUF_INIT(1024);
	struct jsonw w;
	va_list ap;
	va_start(ap, fmt);
	if (buf_vprintf(&text, fmt, ap) != 0)
		put(buf_set(&text, "error", 5));
	va_end(ap);
	reply_reset(r, status, "application/json");
	jsonw_init(&w, &r->body);
	jsonw_object(&w, NULL);
	jsonw_strn(&w, "error", buf_str(&text), text.len);
	jsonw_object_end(&w);
	if (jsonw_end(&w) != 0)
		put(buf_set(&r->body, "{}", 2));
	buf_fini(&text);
	conn_reply(c, r);
}
