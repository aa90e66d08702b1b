/*
 * template - text with {settings.x}, {metadata.x} and {capture.x} in it.
 *
 * Parsed once when the configuration is read, expanded for every request. The check of what a value may hold
 * is here, at the one place where a customer's words enter a URL, so that no caller can forget it. It must
 * not repeat a value in a fault: settings may be secrets.
 */
#include "model/template.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define MAX_NAME 64

enum source { LITERAL, SETTINGS, METADATA, CAPTURE };
static const char *const source_words[] = { "", "settings", "metadata", "capture" };
#define N_SOURCES (sizeof(source_words) / sizeof(source_words[0]))

struct part {
	enum source source;
	char *text; /* the literal, braces already single; or the variable's name */
};

struct template
{
	char *text;
	struct part *parts;
	size_t n;
};

static void add_part(struct template *t, enum source source, const char *s, size_t n)
{
	struct part *last = t->n > 0 ? &t->parts[t->n - 1] : NULL;

	if (source == LITERAL && last != NULL && last->source == LITERAL) {
		char *joined = mem_printf("%s%.*s", last->text, (int)n, s);
		mem_free(last->text);
		last->text = joined;
		return;
	}
	t->parts = mem_realloc(t->parts, t->n + 1, sizeof(*t->parts));
	t->parts[t->n++] = (struct part){ .source = source, .text = mem_strndup(s, n) };
}

static bool is_name(const char *s, size_t n)
{
	static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";

	return n > 0 && n <= MAX_NAME && strspn(s, chars) >= n;
}

/* `s` is behind the opening brace; *used counts what was read, the closing brace included. */
static int parse_variable(struct template *t, const char *s, size_t *used, struct fault *f)
{
	const char *end = strchr(s, '}');
	const char *dot = strchr(s, '.');

	if (end == NULL)
		return fault_set(f, ST_SYNTAX, "a \"{\" is not closed (\"{{\" is a literal brace)");
	int shown = end - s < MAX_NAME ? (int)(end - s) : MAX_NAME;
	if (dot == NULL || dot > end)
		return fault_set(f, ST_SYNTAX,
			"\"{%.*s}\" is not {settings.name}, {metadata.name} or {capture.name}", shown, s);
	enum source source = SETTINGS;
	size_t n = (size_t)(dot - s);
	while (source < N_SOURCES &&
		(strlen(source_words[source]) != n || memcmp(source_words[source], s, n) != 0))
		source++;
	if (source == N_SOURCES)
		return fault_set(
			f, ST_SYNTAX, "\"{%.*s}\": a variable is of settings, metadata or capture", shown, s);
	if (!is_name(dot + 1, (size_t)(end - dot) - 1))
		return fault_set(f, ST_SYNTAX,
			"\"{%.*s}\": a name has 1 to %d letters, digits, \"_\" or \"-\"", shown, s, MAX_NAME);
	add_part(t, source, dot + 1, (size_t)(end - dot) - 1);
	*used = (size_t)(end - s) + 1;
	return 0;
}

static int parse_into(struct template *t, struct fault *f)
{
	const char *s = t->text;

	while (*s != '\0') {
		size_t plain = strcspn(s, "{}"), used = 0;
		if (plain > 0)
			add_part(t, LITERAL, s, plain);
		s += plain;
		if (*s == '\0')
			break;
		if (s[0] == s[1]) {
			add_part(t, LITERAL, s, 1);
			s += 2;
			continue;
		}
		if (*s == '}')
			return fault_set(f, ST_SYNTAX, "a \"}\" was not opened (\"}}\" is a literal brace)");
		int rc = parse_variable(t, s + 1, &used, f);
		if (rc < 0)
			return rc;
		s += 1 + used;
	}
	return 0;
}

int template_parse(const char *text, struct template **out, struct fault *f)
{
	struct template *t = mem_alloc(sizeof(*t));

	t->text = mem_strdup(text);
	int rc = parse_into(t, f);
	if (rc < 0) {
		template_free(t);
		return rc;
	}
	*out = t;
	return 0;
}

void template_free(struct template *t)
{
	if (t == NULL)
		return;
	for (size_t i = 0; i < t->n; i++)
		mem_free(t->parts[i].text);
	mem_free(t->parts);
	mem_free(t->text);
	mem_free(t);
}

const char *template_text(const struct template *t)
{
	return t->text;
}

bool template_is_constant(const struct template *t)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->parts[i].source != LITERAL)
			return false;
	return true;
}

const char *template_variable(const struct template *t, size_t i, const char **source)
{
	for (size_t k = 0; k < t->n; k++) {
		if (t->parts[k].source == LITERAL || i-- > 0)
			continue;
		*source = source_words[t->parts[k].source];
		return t->parts[k].text;
	}
	return NULL;
}

int template_outline(const struct template *t, const char *stand_in, struct buf *out)
{
	size_t before = out->len;

	for (size_t i = 0; i < t->n; i++) {
		int rc = buf_puts(out, t->parts[i].source == LITERAL ? t->parts[i].text : stand_in);
		if (rc < 0) {
			buf_truncate(out, before);
			return rc;
		}
	}
	return 0;
}

/* A dot at either end, or two in a row, would make other path segments or an empty host label of it. */
static bool is_url_safe(const char *s, size_t n)
{
	static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

	if (strspn(s, chars) != n || s[0] == '.' || s[n - 1] == '.')
		return false;
	return strstr(s, "..") == NULL;
}

static struct json_object *find_value(const struct part *p, const struct template_vars *v)
{
	struct json_object *from = p->source == SETTINGS   ? v->settings
				   : p->source == METADATA ? v->metadata
							   : v->capture;
	struct json_object *value = NULL;

	if (from == NULL || !json_object_is_type(from, json_type_object))
		return NULL;
	json_object_object_get_ex(from, p->text, &value);
	return value;
}

static int expand_variable(const struct part *p, const struct template_vars *v, enum template_use use,
	struct buf *out, struct fault *f)
{
	const char *source = source_words[p->source];
	struct json_object *value = find_value(p, v);
	enum json_type type = json_object_get_type(value);

	if (type == json_type_null)
		return fault_set(f, ST_NOT_FOUND, "%s.%s is not set", source, p->text);
	if (type != json_type_string && type != json_type_int && type != json_type_boolean)
		return fault_set(
			f, ST_INVALID, "%s.%s is not a string, an integer or a boolean", source, p->text);
	const char *s = json_object_get_string(value);
	size_t n = type == json_type_string ? (size_t)json_object_get_string_len(value) : strlen(s);
	if (n == 0)
		return fault_set(f, ST_NOT_FOUND, "%s.%s is empty", source, p->text);
	if (use == TEMPLATE_URL && !is_url_safe(s, n))
		return fault_set(
			f, ST_INVALID, "%s.%s has characters that may not go into a URL", source, p->text);
	if (str_has_ctl(s, n))
		return fault_set(f, ST_INVALID, "%s.%s has control characters", source, p->text);
	return buf_append(out, s, n);
}

int template_expand(const struct template *t, const struct template_vars *v, enum template_use use,
	struct buf *out, struct fault *f)
{
	size_t before = out->len;

	for (size_t i = 0; i < t->n; i++) {
		const struct part *p = &t->parts[i];
		int rc = p->source == LITERAL ? buf_puts(out, p->text) : expand_variable(p, v, use, out, f);
		if (rc == ST_FULL)
			fault_set(f, rc, "the expanded text is longer than %zu bytes", out->max);
		if (rc < 0) {
			buf_truncate(out, before);
			return rc;
		}
	}
	return 0;
}
