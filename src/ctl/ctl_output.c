/*
 * ctl_output - tables for people, JSON for machines, times that can be read.
 *
 * Names come from outside: a cell loses its control characters, so that nobody's consumer id can drive an operator's
 * terminal. Must not be given a secret, except by ctl_print_secret, which keeps no copy.
 */
#include "ctl/ctl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

/* ---------------------------------------------------------------- text and times */

static bool is_printable(const char *p, size_t n)
{
	unsigned char b = (unsigned char)p[0];
	if (n == 1)
		return b >= 0x20 && b != 0x7f;
	if (n == 2 && b == 0xc2 && (unsigned char)p[1] < 0xa0)
		return false; /* C1 controls */
	/* Marks that turn the direction of what follows: U+202A..202E, U+2066..2069. */
	return !(n == 3 && b == 0xe2 &&
		 ((p[1] == '\x80' && (unsigned char)p[2] >= 0xaa && (unsigned char)p[2] <= 0xae) ||
			 (p[1] == '\x81' && (unsigned char)p[2] >= 0xa6 && (unsigned char)p[2] <= 0xa9)));
}

/* Calls put for every character that may be shown, "?" for the others; returns how many there were. */
static size_t each_char(const char *s, void (*put)(const char *p, size_t n, void *arg), void *arg)
{
	size_t shown = 0;
	for (const char *p = s; *p != '\0'; shown++) {
		size_t n = str_utf8_char(p, strlen(p));
		if (n > 0 && is_printable(p, n))
			put(p, n, arg);
		else
			put("?", 1, arg);
		p += n > 0 ? n : 1;
	}
	return shown;
}

static void put_stdout(const char *p, size_t n, void *arg)
{
	(void)arg;
	(void)fwrite(p, 1, n, stdout);
}

void ctl_print_text(const char *s)
{
	(void)each_char(s, put_stdout, NULL);
}

static void span_text(int64_t us, char out[32])
{
	static const struct {
		int64_t s;
		const char *unit;
	} units[] = { { 86400, "d" }, { 3600, "h" }, { 60, "min" }, { 1, "s" } };
	int64_t s = us / US_PER_S;
	for (size_t i = 0; i < 4; i++) {
		/* Two of a unit before it is used: 90 min says more than 1 h. */
		if (s >= 2 * units[i].s || i == 3) {
			(void)snprintf(out, 32, "%" PRId64 " %s", s / units[i].s, units[i].unit);
			return;
		}
	}
}

const char *ctl_ago(int64_t wall_us, char out[CTL_TIME_BYTES])
{
	char span[32];
	int64_t now = sys_wall_us();
	if (wall_us == 0 || wall_us == INT64_MAX || wall_us == INT64_MIN) {
		(void)snprintf(out, CTL_TIME_BYTES, "%s", wall_us == INT64_MAX ? "never" : "-");
		return out;
	}
	bool ahead = wall_us > now;
	span_text(ahead ? wall_us - now : now - wall_us, span);
	if (strncmp(span, "0 s", 3) == 0)
		(void)snprintf(out, CTL_TIME_BYTES, "now");
	else
		(void)snprintf(out, CTL_TIME_BYTES, ahead ? "in %s" : "%s ago", span);
	return out;
}

const char *ctl_time(int64_t wall_us, char out[CTL_TIME_BYTES])
{
	char iso[STR_ISO_BYTES], ago[CTL_TIME_BYTES];
	(void)ctl_ago(wall_us, ago);
	if (wall_us == 0 || wall_us == INT64_MAX || wall_us == INT64_MIN) {
		(void)snprintf(out, CTL_TIME_BYTES, "%s", ago);
		return out;
	}
	str_format_iso_ms(wall_us, iso);
	if (strlen(iso) == 24) { /* the usual case: to the second, with a blank */
		iso[10] = ' ';
		memcpy(iso + 19, "Z", 2);
	}
	(void)snprintf(out, CTL_TIME_BYTES, "%.30s (%.28s)", iso, ago);
	return out;
}

/* ---------------------------------------------------------------- tables */

struct cell {
	struct buf text;
	size_t width;
};

struct ctl_table {
	size_t columns;
	bool bold;
	struct cell *v; /* the first row holds the headers */
	size_t n, cap;
};

static void put_buf(const char *p, size_t n, void *arg)
{
	ALWAYS(buf_append(arg, p, n) == 0);
}

static void add_cell(struct ctl_table *t, const char *s)
{
	if (t->n == t->cap) {
		t->cap = t->cap == 0 ? 64 : 2 * t->cap;
		t->v = mem_realloc(t->v, t->cap, sizeof(*t->v));
	}
	struct cell *x = &t->v[t->n++];
	buf_init(&x->text, CTL_OUTPUT_MAX);
	x->width = each_char(s, put_buf, &x->text);
}

struct ctl_table *ctl_table_new(const struct ctl *c, const char *const *headers, size_t n)
{
	struct ctl_table *t = mem_alloc(sizeof(*t));
	*t = (struct ctl_table){ .columns = n, .bold = c->out_tty };
	for (size_t i = 0; i < n; i++)
		add_cell(t, headers[i]);
	return t;
}

void ctl_table_cell(struct ctl_table *t, const char *fmt, ...)
{
	struct buf text = BUF_INIT(CTL_OUTPUT_MAX);
	va_list ap;
	va_start(ap, fmt);
	int rc = buf_vprintf(&text, fmt, ap);
	va_end(ap);
	add_cell(t, rc == 0 ? buf_str(&text) : "?");
	buf_fini(&text);
}

size_t ctl_table_rows(const struct ctl_table *t)
{
	return t->n / t->columns - 1;
}

static void print_row(const struct ctl_table *t, size_t row, const size_t *widths)
{
	bool bold = row == 0 && t->bold;
	if (bold)
		fputs("\033[1m", stdout);
	for (size_t i = 0; i < t->columns; i++) {
		const struct cell *x = &t->v[row * t->columns + i];
		fputs(buf_str(&x->text), stdout);
		if (i + 1 < t->columns)
			printf("%*s", (int)(widths[i] - x->width + 2), "");
	}
	fputs(bold ? "\033[0m\n" : "\n", stdout);
}

void ctl_table_print(struct ctl_table *t)
{
	ALWAYS(t->n % t->columns == 0);
	size_t *widths = mem_calloc(t->columns, sizeof(*widths));
	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].width > widths[i % t->columns])
			widths[i % t->columns] = t->v[i].width;
	for (size_t row = 0; row < t->n / t->columns; row++)
		print_row(t, row, widths);
	for (size_t i = 0; i < t->n; i++)
		buf_fini(&t->v[i].text);
	mem_free(widths);
	mem_free(t->v);
	mem_free(t);
}

/* ---------------------------------------------------------------- JSON */

void ctl_json_begin(struct ctl_json *j)
{
	*j = (struct ctl_json){ .stream = false };
	buf_init(&j->text, CTL_OUTPUT_MAX);
	jsonw_init(&j->w, &j->text);
}

static int print_value(struct ctl_json *j, const char *end)
{
	int rc = jsonw_end(&j->w);
	/* Text that is no UTF-8 is shown with U+FFFD: the document is whole all the same. */
	if (rc != 0 && rc != ST_INVALID)
		return ctl_complain("output: %s", status_text(rc));
	(void)fwrite(j->text.data, 1, j->text.len, stdout);
	fputs(end, stdout);
	return CTL_OK;
}

int ctl_json_end(struct ctl_json *j)
{
	int status = print_value(j, "\n");
	buf_fini(&j->text);
	return status;
}

void ctl_json_stream_begin(struct ctl_json *j)
{
	ctl_json_begin(j);
	j->stream = true;
	fputs("[", stdout);
}

void ctl_json_element_begin(struct ctl_json *j)
{
	buf_reset(&j->text);
	jsonw_init(&j->w, &j->text);
}

int ctl_json_element_end(struct ctl_json *j)
{
	fputs(j->any ? ",\n" : "\n", stdout);
	j->any = true;
	return print_value(j, "");
}

void ctl_json_stream_end(struct ctl_json *j)
{
	fputs(j->any ? "\n]\n" : "]\n", stdout);
	buf_fini(&j->text);
}

void ctl_json_time(struct jsonw *w, const char *key, int64_t wall_us)
{
	char iso[STR_ISO_BYTES];
	if (wall_us == 0 || wall_us == INT64_MAX || wall_us == INT64_MIN) {
		jsonw_null(w, key);
		return;
	}
	str_format_iso_ms(wall_us, iso);
	jsonw_str(w, key, iso);
}

void ctl_json_id(struct jsonw *w, const char *key, const uint8_t id[16])
{
	char text[STR_UUID_BYTES];
	str_format_uuid(id, text);
	jsonw_str(w, key, text);
}

void ctl_listing_begin(struct ctl_listing *l, const struct ctl *c, const char *const *headers, size_t n)
{
	*l = (struct ctl_listing){ .table = NULL };
	if (c->json)
		ctl_json_stream_begin(&l->json);
	else
		l->table = ctl_table_new(c, headers, n);
}

void ctl_listing_end(struct ctl_listing *l)
{
	if (l->table != NULL)
		ctl_table_print(l->table);
	else
		ctl_json_stream_end(&l->json);
}

/* ---------------------------------------------------------------- secrets */

static int write_all(const uint8_t *p, size_t n)
{
	while (n > 0) {
		ssize_t done = write(STDOUT_FILENO, p, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return ctl_complain("standard output: %s", strerror(errno));
		p += done;
		n -= (size_t)done;
	}
	return CTL_OK;
}

int ctl_print_secret(const struct buf *secret, bool newline)
{
	(void)fflush(stdout);
	int status = write_all(secret->data, secret->len);
	return status == CTL_OK && newline ? write_all((const uint8_t *)"\n", 1) : status;
}
