/*
 * conf_yaml - YAML as a plain tree in which every node knows its place.
 *
 * libyaml gives events with positions; the strict reading of them is here. Its own document loader is not
 * used: it accepts duplicate keys and resolves aliases, which let a small file grow without bound. It must
 * not know what an option is.
 */
#include "model/conf_yaml.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/mem.h"
#include "base/str.h"

struct reader {
	yaml_parser_t parser;
	const char *file;
	const char *text;
	size_t text_len;
	struct conf_errors *errors;
	unsigned depth, nodes;
	bool stopped; /* nothing after this point can be read */
	bool failed;  /* at least one error was reported */
};

/* --- errors */

static void clean_text(char *s)
{
	size_t n = strlen(s);

	for (size_t i = 0; i < n;) {
		size_t len = str_utf8_char(s + i, n - i);
		if (len == 0 || (len == 1 && str_has_ctl(s + i, 1)))
			s[i] = '?';
		i += len > 0 ? len : 1;
	}
}

static void add_error(struct conf_errors *e, const char *file, unsigned line, unsigned column, char *text)
{
	if (e->n >= CONF_MAX_ERRORS) {
		mem_free(text);
		return;
	}
	if (e->n == CONF_MAX_ERRORS - 1) {
		mem_free(text);
		text = mem_strdup("too many errors; the rest is not shown");
	}
	clean_text(text);
	e->v = mem_realloc(e->v, e->n + 1, sizeof(*e->v));
	e->v[e->n++] =
		(struct conf_error){ .file = mem_strdup(file), .line = line, .column = column, .text = text };
}

static char *format_text(const char *fmt, va_list ap) PRINTF_LIKE(1, 0);
static char *format_text(const char *fmt, va_list ap)
{
	struct buf b = BUF_INIT(4096);

	if (buf_vprintf(&b, fmt, ap) < 0)
		ALWAYS(buf_puts(&b, "(a message that is too long)") == 0);
	char *text = mem_strdup(buf_str(&b));
	buf_fini(&b);
	return text;
}

void conf_error_add(
	struct conf_errors *e, const char *file, unsigned line, unsigned column, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	char *text = format_text(fmt, ap);
	va_end(ap);
	add_error(e, file, line, column, text);
}

void conf_error_at(struct conf_errors *e, const struct conf_node *n, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	char *text = format_text(fmt, ap);
	va_end(ap);
	add_error(e, n->file, n->line, n->column, text);
}

static unsigned one_based(size_t v)
{
	return v < UINT32_MAX ? (unsigned)v + 1 : UINT32_MAX;
}

static void refuse(struct reader *r, yaml_mark_t at, const char *text)
{
	r->failed = true;
	conf_error_add(r->errors, r->file, one_based(at.line), one_based(at.column), "%s", text);
}

static void give_up(struct reader *r, yaml_mark_t at, const char *text)
{
	r->stopped = true;
	refuse(r, at, text);
}

/* Line and column, as libyaml counts them, of a byte. */
static yaml_mark_t mark_of(const char *text, size_t at)
{
	yaml_mark_t m = { .index = at, .line = 0, .column = 0 };

	for (size_t i = 0; i < at; i++) {
		if (text[i] == '\n') {
			m.line++;
			m.column = 0;
		} else if (((uint8_t)text[i] & 0xc0) != 0x80) {
			m.column++;
		}
	}
	return m;
}

/* --- nodes */

struct conf_node *conf_node_new(enum conf_kind kind)
{
	struct conf_node *n = mem_alloc(sizeof(*n));

	n->kind = kind;
	n->file = "";
	return n;
}

struct conf_node *conf_node_scalar(const char *text)
{
	struct conf_node *n = conf_node_new(CONF_SCALAR);

	n->text = mem_strdup(text);
	return n;
}

/* Arrays grow by doubling; their size follows from n, so that a node needs no capacity of its own. */
static void grow(struct conf_node ***v, size_t n)
{
	if (n == 0 || (n & (n - 1)) == 0)
		*v = mem_realloc(*v, n == 0 ? 1 : 2 * n, sizeof(struct conf_node *));
}

static void add_pair(struct conf_node *to, struct conf_node *key, struct conf_node *value)
{
	grow(&to->values, to->n);
	if (key != NULL) {
		grow(&to->keys, to->n);
		to->keys[to->n] = key;
	}
	to->values[to->n++] = value;
}

void conf_node_add(struct conf_node *to, const char *key, struct conf_node *value)
{
	add_pair(to, key != NULL ? conf_node_scalar(key) : NULL, value);
}

void conf_node_free(struct conf_node *n)
{
	if (n == NULL)
		return;
	for (size_t i = 0; i < n->n; i++) {
		if (n->keys != NULL)
			conf_node_free(n->keys[i]);
		conf_node_free(n->values[i]);
	}
	mem_free(n->keys);
	mem_free(n->values);
	mem_free(n->text);
	mem_free(n);
}

struct conf_node *conf_node_get(const struct conf_node *map, const char *key)
{
	if (map->kind != CONF_MAP)
		return NULL;
	for (size_t i = 0; i < map->n; i++)
		if (strcmp(map->keys[i]->text, key) == 0)
			return map->values[i];
	return NULL;
}

/* --- events to nodes */

static bool next_event(struct reader *r, yaml_event_t *ev)
{
	if (yaml_parser_parse(&r->parser, ev) != 0)
		return true;
	const yaml_parser_t *p = &r->parser;
	const char *problem = p->problem != NULL ? p->problem : "cannot be read";
	if (p->error == YAML_READER_ERROR)
		give_up(r,
			mark_of(r->text, p->problem_offset < r->text_len ? p->problem_offset : r->text_len),
			problem);
	else
		give_up(r, p->problem_mark, problem);
	return false;
}

static struct conf_node *node_at(struct reader *r, enum conf_kind kind, yaml_mark_t at)
{
	struct conf_node *n = conf_node_new(kind);

	n->file = r->file;
	n->line = one_based(at.line);
	n->column = one_based(at.column);
	if (++r->nodes > CONF_MAX_NODES && !r->stopped)
		give_up(r, at, "too many nodes");
	return n;
}

static struct conf_node *read_node(struct reader *r, const yaml_event_t *ev);

static struct conf_node *read_scalar(struct reader *r, const yaml_event_t *ev)
{
	const char *text = (const char *)ev->data.scalar.value;
	bool has_nul = memchr(text, '\0', ev->data.scalar.length) != NULL;
	struct conf_node *n = node_at(r, has_nul ? CONF_BAD : CONF_SCALAR, ev->start_mark);

	n->text = mem_strdup(text);
	if (has_nul)
		refuse(r, ev->start_mark, "a NUL character is not allowed");
	return n;
}

static void read_list(struct reader *r, struct conf_node *list)
{
	while (!r->stopped) {
		yaml_event_t ev;
		if (!next_event(r, &ev))
			return;
		bool end = ev.type == YAML_SEQUENCE_END_EVENT;
		if (!end)
			add_pair(list, NULL, read_node(r, &ev));
		yaml_event_delete(&ev);
		if (end)
			return;
	}
}

static int by_text(const void *a, const void *b)
{
	const struct conf_node *const *x = a, *const *y = b;
	int c = strcmp((*x)->text, (*y)->text);

	if (c != 0)
		return c;
	if ((*x)->line != (*y)->line)
		return (*x)->line < (*y)->line ? -1 : 1;
	return (*x)->column < (*y)->column ? -1 : 1;
}

/* Sorted look-up instead of comparing each with each: a hostile file may have a hundred thousand keys in one
 * map. */
static void find_duplicates(struct reader *r, struct conf_node *map)
{
	if (map->n < 2)
		return;
	struct conf_node **sorted = mem_calloc(map->n, sizeof(struct conf_node *));
	memcpy(sorted, map->keys, map->n * sizeof(struct conf_node *));
	qsort(sorted, map->n, sizeof(struct conf_node *), by_text);
	const struct conf_node *first = sorted[0];
	for (size_t i = 1; i < map->n; i++) {
		if (strcmp(sorted[i]->text, first->text) != 0) {
			first = sorted[i];
			continue;
		}
		r->failed = true;
		conf_error_at(r->errors, sorted[i], "duplicate key \"%.60s\"; the first is in line %u",
			first->text, first->line);
		sorted[i]->kind = CONF_BAD;
	}
	mem_free(sorted);
}

static void drop_bad_keys(struct conf_node *map)
{
	size_t kept = 0;

	for (size_t i = 0; i < map->n; i++) {
		if (map->keys[i]->kind == CONF_BAD) {
			conf_node_free(map->keys[i]);
			conf_node_free(map->values[i]);
			continue;
		}
		map->keys[kept] = map->keys[i];
		map->values[kept++] = map->values[i];
	}
	map->n = kept;
}

/* A key that is no scalar is reported and its value read over. */
static struct conf_node *read_key(struct reader *r, const yaml_event_t *ev)
{
	struct conf_node *key = read_node(r, ev);

	if (key->kind == CONF_LIST || key->kind == CONF_MAP) {
		refuse(r, ev->start_mark, "a key must be plain text");
		key->kind = CONF_BAD;
	}
	if (key->text == NULL)
		key->text = mem_strdup("");
	return key;
}

static void read_map(struct reader *r, struct conf_node *map)
{
	while (!r->stopped) {
		yaml_event_t ev;
		if (!next_event(r, &ev))
			break;
		if (ev.type == YAML_MAPPING_END_EVENT) {
			yaml_event_delete(&ev);
			break;
		}
		struct conf_node *key = read_key(r, &ev);
		yaml_event_delete(&ev);
		if (r->stopped || !next_event(r, &ev)) {
			conf_node_free(key);
			break;
		}
		add_pair(map, key, read_node(r, &ev));
		yaml_event_delete(&ev);
	}
	find_duplicates(r, map);
	drop_bad_keys(map);
}

static void check_plain(
	struct reader *r, const yaml_event_t *ev, const yaml_char_t *anchor, const yaml_char_t *tag)
{
	if (anchor != NULL)
		refuse(r, ev->start_mark, "anchors are not allowed");
	if (tag != NULL)
		refuse(r, ev->start_mark, "tags are not allowed");
}

static struct conf_node *read_collection(struct reader *r, const yaml_event_t *ev, enum conf_kind kind)
{
	struct conf_node *n = node_at(r, kind, ev->start_mark);

	if (r->depth >= CONF_MAX_DEPTH) {
		give_up(r, ev->start_mark, "nested too deeply");
		return n;
	}
	r->depth++;
	if (kind == CONF_LIST)
		read_list(r, n);
	else
		read_map(r, n);
	r->depth--;
	return n;
}

static struct conf_node *read_node(struct reader *r, const yaml_event_t *ev)
{
	switch (ev->type) {
	case YAML_SCALAR_EVENT:
		check_plain(r, ev, ev->data.scalar.anchor, ev->data.scalar.tag);
		return read_scalar(r, ev);
	case YAML_SEQUENCE_START_EVENT:
		check_plain(r, ev, ev->data.sequence_start.anchor, ev->data.sequence_start.tag);
		return read_collection(r, ev, CONF_LIST);
	case YAML_MAPPING_START_EVENT:
		check_plain(r, ev, ev->data.mapping_start.anchor, ev->data.mapping_start.tag);
		return read_collection(r, ev, CONF_MAP);
	default:
		refuse(r, ev->start_mark, "aliases are not allowed");
		return node_at(r, CONF_BAD, ev->start_mark);
	}
}

static void check_document(struct reader *r, const yaml_event_t *ev, bool second)
{
	const yaml_tag_directive_t *tags = ev->data.document_start.tag_directives.start;

	if (second)
		give_up(r, ev->start_mark, "only one document is allowed");
	else if (ev->data.document_start.version_directive != NULL ||
		 tags != ev->data.document_start.tag_directives.end)
		refuse(r, ev->start_mark, "directives are not allowed");
}

static struct conf_node *read_stream(struct reader *r)
{
	struct conf_node *root = NULL;
	bool end = false;

	while (!end && !r->stopped) {
		yaml_event_t ev;
		if (!next_event(r, &ev))
			break;
		if (ev.type == YAML_DOCUMENT_START_EVENT)
			check_document(r, &ev, root != NULL);
		else if (ev.type == YAML_STREAM_END_EVENT)
			end = true;
		else if (ev.type != YAML_STREAM_START_EVENT && ev.type != YAML_DOCUMENT_END_EVENT)
			root = read_node(r, &ev);
		yaml_event_delete(&ev);
	}
	return root;
}

/* --- a whole file */

static bool check_utf8(struct reader *r)
{
	size_t at = 0;

	while (at < r->text_len) {
		size_t n = str_utf8_char(r->text + at, r->text_len - at);
		if (n == 0) {
			refuse(r, mark_of(r->text, at), "not UTF-8");
			return false;
		}
		at += n;
	}
	return true;
}

static bool is_nothing(const struct conf_node *n)
{
	return n->kind == CONF_SCALAR && n->text[0] == '\0';
}

int conf_yaml_parse(
	const char *file, const void *p, size_t n, struct conf_errors *errors, struct conf_node **out)
{
	struct reader r = { .file = file, .text = p, .text_len = n, .errors = errors };

	if (n >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0) {
		r.text += 3;
		r.text_len -= 3;
	}
	if (!check_utf8(&r))
		return ST_INVALID;
	ALWAYS(yaml_parser_initialize(&r.parser) != 0);
	yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&r.parser, (const unsigned char *)r.text, r.text_len);
	struct conf_node *root = read_stream(&r);
	yaml_parser_delete(&r.parser);

	/* After a syntax error the rest is unknown: complaints about what seems to be missing would mislead.
	 */
	if (r.stopped) {
		conf_node_free(root);
		return ST_INVALID;
	}
	if (root == NULL || is_nothing(root)) {
		conf_node_free(root);
		root = node_at(&r, CONF_MAP, (yaml_mark_t){ .line = 0 });
	}
	*out = root;
	return r.failed ? ST_INVALID : 0;
}

int conf_yaml_read(const char *file, struct conf_errors *errors, struct conf_node **out)
{
	struct buf text = BUF_INIT(CONF_FILE_BYTES);
	struct fault f = { .code = 0 };

	int rc = buf_read_file(&text, file, &f);
	if (rc < 0) {
		/* The fault names the path, and so does the error's place. */
		size_t skip = strncmp(f.text, file, strlen(file)) == 0 ? strlen(file) : 0;
		const char *reason = f.text + skip + (skip > 0 ? strspn(f.text + skip, ": ") : 0);
		conf_error_add(errors, file, 0, 0, "%s", reason);
		rc = ST_INVALID;
	} else {
		rc = conf_yaml_parse(file, buf_str(&text), text.len, errors, out);
	}
	buf_fini(&text);
	return rc;
}
