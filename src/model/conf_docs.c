/*
 * conf_docs - the commented sample file and the OPTIONS part of refreshd.yaml(5), both from the table.
 *
 * The files in the source tree are this output, kept in step by a test. Everything that a person is told
 * about an option is in its row; only headings and layout are here.
 */
#include "model/conf.h"

#include <ctype.h>
#include <stdarg.h>
#include <string.h>

#include "base/mem.h"
#include "model/conf_type.h"

#define DOCS_BYTES ((size_t)1024 * 1024)
#define WIDTH 100

struct writer {
	struct buf *out;
	int rc;
};

static void put(struct writer *w, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void put(struct writer *w, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (w->rc == 0)
		w->rc = buf_vprintf(w->out, fmt, ap);
	va_end(ap);
}

/* --- shared */

static const char *apply_text(const struct conf_option *o)
{
	return o->scope == SCOPE_ROOT && o->apply == RESTART ? "A change needs a restart." : "";
}

/* "error, warning, info" */
static char *words_text(const struct conf_option *o)
{
	struct buf b = BUF_INIT(1000);

	for (const struct conf_word *word = o->words; word->word != NULL; word++)
		ALWAYS(buf_printf(&b, "%s%s", word == o->words ? "" : ", ", word->word) == 0);
	char *text = mem_strdup(buf_str(&b));
	buf_fini(&b);
	return text;
}

static bool is_number(const struct conf_option *o)
{
	return o->type->kind == CONF_SCALAR && o->min != NULL && o->max != NULL &&
	       o->type != &conf_type_TEXT && o->type != &conf_type_WORD;
}

/* Values and bounds: "one of ...; 1s to 10m"; owned by the caller. */
static char *values_text(const struct conf_option *o)
{
	if (o->words != NULL) {
		char *words = words_text(o);
		char *text = mem_printf("One of %s.", words);
		mem_free(words);
		return text;
	}
	if (is_number(o))
		return mem_printf("From %s to %s%s%s.", o->min, o->max, o->unit != NULL ? " " : "",
			o->unit != NULL ? o->unit : "");
	return mem_strdup("");
}

/* The default as YAML; NULL: none. */
static const char *default_yaml(const struct conf_option *o)
{
	if (o->default_text == NULL || o->default_text == conf_required)
		return NULL;
	if (o->type->kind == CONF_LIST)
		return o->default_text[0] == '\0'     ? NULL
		       : o->type == &conf_type_EVENTS ? "[\"*\"]"
						      : o->example;
	if (strcmp(o->default_text, " ") == 0)
		return "\" \"";
	return strcmp(o->default_text, "*") == 0 ? "\"*\"" : o->default_text;
}

/* --- the sample */

/* One comment, wrapped at words. */
static void put_comment(struct writer *w, unsigned column, const char *text)
{
	size_t left = 0;

	while (*text != '\0') {
		size_t n = strcspn(text, " ");
		if (n + 1 > left) {
			put(w, "%s%*s#", left > 0 ? "\n" : "", (int)column, "");
			left = WIDTH - column - 1;
		}
		put(w, " %.*s", (int)n, text);
		left = left > n + 1 ? left - n - 1 : 0;
		/* A line that is exactly full still has to be ended. */
		left = left > 0 ? left : 1;
		text += n + strspn(text + n, " ");
	}
	put(w, "\n");
}

static void put_option_comment(struct writer *w, const struct conf_option *o, unsigned column)
{
	char *values = values_text(o);
	const char *fallback = default_yaml(o);
	bool shown = o->show == SHOWN && o->example == NULL;
	char *text = mem_printf("%s%s%s%s%s%s%s%s", o->doc, values[0] != '\0' ? " " : "", values,
		fallback != NULL && !shown ? " Default: " : "", fallback != NULL && !shown ? fallback : "",
		fallback != NULL && !shown ? "." : "", o->default_text == conf_required ? " Required." : "",
		apply_text(o)[0] != '\0' ? " " : "");
	char *whole = mem_printf("%s%s", text, apply_text(o));

	put_comment(w, column, whole);
	mem_free(whole);
	mem_free(text);
	mem_free(values);
}

/* Does anything below this prefix stand in the sample as it is? */
static bool has_shown(enum conf_scope scope, const char *prefix, size_t n)
{
	for (size_t i = 0; i < conf_n_options; i++)
		if (conf_options[i].scope == scope && conf_options[i].show == SHOWN &&
			strncmp(conf_options[i].path, prefix, n) == 0)
			return true;
	return false;
}

struct sample {
	struct writer w;
	enum conf_scope scope;
	unsigned column;     /* of the record's keys */
	const char *section; /* the path whose section is open, up to section_len */
	size_t section_len;
	bool first; /* the next key begins a list item */
};

/* A commented line keeps its own indentation behind the "#", so that uncommenting is deleting one character.
 */
static void put_line(struct sample *s, unsigned column, bool shown, const char *key, const char *value)
{
	const char *dash = s->first && shown ? "- " : "";

	if (s->first && shown)
		column -= 2;
	s->first = s->first && !shown;
	put(&s->w, "%s%*s%s%s:%s%s\n", shown ? "" : "#", (int)column, "", dash, key, value != NULL ? " " : "",
		value != NULL ? value : "");
}

/* Open the sections that lead to this option. */
static unsigned open_sections(struct sample *s, const struct conf_option *o)
{
	unsigned column = s->column;
	const char *dot;

	for (const char *from = o->path; (dot = strchr(from, '.')) != NULL; from = dot + 1) {
		size_t n = (size_t)(dot - o->path) + 1;
		bool open = s->section != NULL && s->section_len >= n && strncmp(s->section, o->path, n) == 0;
		if (!open) {
			char *name = mem_strndup(from, (size_t)(dot - from));
			if (from == o->path && s->scope == SCOPE_ROOT)
				put(&s->w, "\n");
			put_line(s, column, has_shown(s->scope, o->path, n), name, NULL);
			mem_free(name);
		}
		column += 2;
	}
	const char *last = strrchr(o->path, '.');
	s->section = o->path;
	s->section_len = last != NULL ? (size_t)(last - o->path) + 1 : 0;
	return column;
}

static void put_records(struct sample *s, enum conf_scope scope);

static void put_option(struct sample *s, const struct conf_option *o)
{
	bool was_open = s->section_len > 0;
	unsigned column = open_sections(s, o);
	const char *name = strrchr(o->path, '.') != NULL ? strrchr(o->path, '.') + 1 : o->path;
	const char *value = o->example != NULL ? o->example : default_yaml(o);

	if (s->scope == SCOPE_ROOT && (o->size == 0 || (was_open && s->section_len == 0)))
		put(&s->w, "\n");
	put_option_comment(&s->w, o, column);
	put_line(s, column, o->show == SHOWN, name, value);
	if (strcmp(o->path, "webhooks") == 0)
		put_records(s, SCOPE_WEBHOOK);
	else if (strcmp(o->path, "clients") == 0)
		put_records(s, SCOPE_CLIENT);
	else if (o->scope == SCOPE_ROOT && strcmp(o->path, "providers") == 0)
		put_records(s, SCOPE_PROVIDER);
}

static void put_scope(struct sample *s)
{
	for (size_t i = 0; i < conf_n_options; i++)
		if (conf_options[i].scope == s->scope)
			put_option(s, &conf_options[i]);
}

/* One record as an example. */
static void put_records(struct sample *s, enum conf_scope scope)
{
	struct sample inner = { .w = s->w, .scope = scope, .column = 4, .first = scope != SCOPE_PROVIDER };

	if (scope == SCOPE_PROVIDER)
		put(&inner.w, "  xero:\n");
	put_scope(&inner);
	s->w = inner.w;
}

int conf_sample(struct buf *out)
{
	struct buf text = BUF_INIT(DOCS_BYTES);
	struct sample s = { .w = { .out = &text, .rc = 0 }, .scope = SCOPE_ROOT };

	put(&s.w,
		"# refreshd.yaml - configuration of refreshd; see refreshd.yaml(5).\n"
		"#\n"
		"# Durations: 250ms 90s 5m 2h 30d. Sizes: 512 64k 1M 2G. Rates: 10/s 600/m 1000/h.\n"
		"# ${NAME} is replaced from the environment, in file paths only. Secrets are always files.\n"
		"# \"refreshd --check-config -c FILE\" tells every mistake at once.\n\n");
	put_scope(&s);
	if (s.w.rc == 0)
		s.w.rc = buf_append(out, buf_str(&text), text.len);
	buf_fini(&text);
	return s.w.rc;
}

/* --- the manual */

/* A sentence a line; what mdoc would take for a request or an escape is masked. */
static void put_sentences(struct writer *w, const char *text)
{
	bool at_start = true;

	for (const char *s = text; *s != '\0'; s++) {
		if (at_start && (*s == '.' || *s == '\''))
			put(w, "\\&");
		if (*s == '\\')
			put(w, "\\e");
		else
			put(w, "%c", *s);
		at_start = false;
		bool ends = s[0] == '.' && s[1] == ' ' && isupper((unsigned char)s[2]) &&
			    (s == text || s[-1] != '.');
		if (ends) {
			put(w, "\n");
			at_start = true;
			s++;
		}
	}
	put(w, "\n");
}

static void put_man_option(struct writer *w, const struct conf_option *o)
{
	const char *fallback = default_yaml(o);
	char *values = values_text(o);

	put(w, ".It Cm %s : No %s\n", o->path, o->type->name);
	put_sentences(w, o->doc);
	if (values[0] != '\0')
		put_sentences(w, values);
	if (o->default_text == conf_required)
		put(w, "Required.\n");
	else if (fallback != NULL) {
		char *text = mem_printf("Default: %s", fallback);
		put_sentences(w, text);
		mem_free(text);
	}
	if (apply_text(o)[0] != '\0')
		put(w, "%s\n", apply_text(o));
	mem_free(values);
}

static void put_man_scope(struct writer *w, enum conf_scope scope, const char *title, const char *intro)
{
	put(w, ".Ss %s\n%s\n.Bl -tag -width Ds\n", title, intro);
	for (size_t i = 0; i < conf_n_options; i++)
		if (conf_options[i].scope == scope)
			put_man_option(w, &conf_options[i]);
	put(w, ".El\n");
}

int conf_man(struct buf *out)
{
	struct buf text = BUF_INIT(DOCS_BYTES);
	struct writer w = { .out = &text, .rc = 0 };

	put(&w, ".Sh OPTIONS\nA dot stands for a level: the option a.b is the key b in the map a.\n");
	put_man_scope(&w, SCOPE_ROOT, "Top level", "These may be given once, in whichever file.");
	put_man_scope(&w, SCOPE_WEBHOOK, "An item of webhooks", "Each item of the list is a map of these.");
	put_man_scope(&w, SCOPE_PROVIDER, "A provider",
		"Each value in the map is a map of these.\nThe key names the provider.");
	put_man_scope(&w, SCOPE_CLIENT, "An item of clients", "Each item of the list is a map of these.");
	if (w.rc == 0)
		w.rc = buf_append(out, buf_str(&text), text.len);
	buf_fini(&text);
	return w.rc;
}
