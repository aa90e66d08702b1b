/*
 * api_page - lists by pages: what was asked for, the cursor that leads on, and the answer.
 *
 * A cursor is the key of the last item in base64url, so that a page begins where the last one ended whatever was
 * written in between. It is not signed: whoever makes one up reads no more than with any other, for every statement
 * is bound to the application of the key. What the database could not hold is refused here.
 */
#include "api/api_priv.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/base64.h"
#include "base/mem.h"

#define ENCODED_MAX (API_CURSOR_MAX * 4 / 3 + 4)
#define LAST_TIME_US INT64_C(253402300800000000) /* the end of the year 9999 */

/* ---------------------------------------------------------------- cursors */

int api_cursor_write(struct buf *out, const char *const *parts, size_t n)
{
	struct buf plain = BUF_INIT(API_CURSOR_MAX);
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < n; i++)
		rc = buf_append(&plain, parts[i], strlen(parts[i]) + 1);
	if (rc == 0)
		rc = base64url_encode(out, plain.data, plain.len);
	buf_fini(&plain);
	return rc;
}

int api_cursor_read(const char *text, size_t len, struct buf *plain, const char **parts, size_t n)
{
	buf_reset(plain);
	if (base64url_decode(plain, text, len) != 0 || plain->len == 0 || plain->data[plain->len - 1] != '\0')
		return ST_SYNTAX;
	if (!str_is_utf8(plain->data, plain->len))
		return ST_SYNTAX;
	size_t at = 0, found = 0;
	for (; at < plain->len && found < n; found++) {
		parts[found] = (const char *)plain->data + at;
		at += strlen(parts[found]) + 1;
	}
	return found == n && at == plain->len ? 0 : ST_SYNTAX;
}

int api_cursor_write_at(struct buf *out, int64_t wall_us, const uint8_t id[16], const char *third_or_null)
{
	char time[24], text[STR_UUID_BYTES];
	(void)snprintf(time, sizeof time, "%" PRId64, wall_us);
	str_format_uuid(id, text);
	const char *const parts[] = {time, text, third_or_null};
	return api_cursor_write(out, parts, third_or_null != NULL ? 3 : 2);
}

int api_cursor_read_time(const char *part, int64_t *wall_us)
{
	int64_t v;
	if (str_parse_i64(part, strlen(part), &v) != 0 || v < 0 || v > LAST_TIME_US)
		return ST_SYNTAX;
	*wall_us = v;
	return 0;
}

/* ---------------------------------------------------------------- what was asked for */

void api_page_fini(struct api_page *p)
{
	buf_fini(&p->plain);
}

int api_page_take(struct api_call *c, struct api_page *p, unsigned missing, unsigned most, size_t n)
{
	struct buf text = BUF_INIT(ENCODED_MAX);
	int64_t limit;
	ALWAYS(n <= API_CURSOR_PARTS);
	*p = (struct api_page){.plain = BUF_INIT(API_CURSOR_MAX), .parts = {"", "", ""}};
	int e = api_query(c, "cursor", &text);
	p->first = e == ST_NOT_FOUND || (e == 0 && text.len == 0);
	if (!p->first && e == 0)
		e = api_cursor_read(buf_str(&text), text.len, &p->plain, p->parts, n);
	buf_fini(&text);
	if (!p->first && e != 0) {
		api_fail(c, API_BAD_REQUEST, "query parameter cursor is none that was handed out");
		return ST_INVALID;
	}
	e = api_query_int(c, "limit", missing, 1, most, &limit);
	if (e == 0)
		p->limit = (unsigned)limit;
	return e;
}

/* ---------------------------------------------------------------- the answer */

void api_reply_page(struct api_reply *r, size_t items, const struct buf *next)
{
	jsonw_object(&r->w, "meta");
	jsonw_int(&r->w, "items_on_page", (int64_t)items);
	jsonw_object(&r->w, "cursors");
	jsonw_null(&r->w, "previous");
	jsonw_null(&r->w, "current");
	jsonw_str(&r->w, "next", next->len > 0 ? buf_str(next) : NULL);
	jsonw_object_end(&r->w);
	jsonw_object_end(&r->w);
}

void api_reply_list(struct api_call *c, const struct api_list *l, const void *items, size_t n)
{
	struct buf next = BUF_INIT(ENCODED_MAX);
	struct api_reply r;
	size_t shown = 0, written = 0;
	api_reply_begin(&r, c, l->max, false);
	jsonw_array(&r.w, "data");
	for (; shown < n && shown < l->limit && r.body.len <= l->max / 2; shown++)
		written += l->write(&r, items, shown);
	if (shown == n && l->more != NULL)
		written += l->more(&r, items, n);
	jsonw_array_end(&r.w);
	if (shown < n)
		l->cursor(&next, items, shown - 1);
	api_reply_page(&r, written, &next);
	buf_fini(&next);
	api_reply_send(&r);
}
