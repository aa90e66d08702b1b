/*
 * conf_option - the table of options as data, and what goes for all of them.
 *
 * The rows are in options.def; the words of its choices are here, where the enums are known. What a value
 * looks like is its type's business (conf_type.c, conf_type_list.c).
 */
#include "model/conf_type.h"

#include <string.h>

#include "base/mem.h"
#include "model/conf_type_impl.h"

#define WORD_ROW(id, word) { word, id },
static const struct conf_word insecure_http_words[] = { { "no", INSECURE_HTTP_NO },
	{ "loopback", INSECURE_HTTP_LOOPBACK }, { NULL, 0 } };
static const struct conf_word log_format_words[] = { { "logfmt", LOG_FORMAT_LOGFMT },
	{ "json", LOG_FORMAT_JSON }, { NULL, 0 } };
static const struct conf_word log_level_words[] = { { "error", LOG_LEVEL_ERROR },
	{ "warning", LOG_LEVEL_WARNING }, { "notice", LOG_LEVEL_NOTICE }, { "info", LOG_LEVEL_INFO },
	{ "debug", LOG_LEVEL_DEBUG }, { NULL, 0 } };
static const struct conf_word pooler_words[] = { { "none", false }, { "transaction", true }, { NULL, 0 } };
static const struct conf_word journal_sync_words[] = { { "group", true }, { "off", false }, { NULL, 0 } };
static const struct conf_word method_words[] = { { "POST", false }, { "GET", true }, { NULL, 0 } };
static const struct conf_word alg_words[] = { { "ES256", SIGN_ES256 }, { "RS256", SIGN_RS256 }, { NULL, 0 } };
static const struct conf_word auth_type_words[] = { AUTH_TYPE_LIST(WORD_ROW){ NULL, 0 } };
static const struct conf_word client_auth_words[] = { CLIENT_AUTH_LIST(WORD_ROW){ NULL, 0 } };
static const struct conf_word grant_words[] = { GRANT_LIST(WORD_ROW){ NULL, 0 } };
static const struct conf_word rotation_words[] = { ROTATION_LIST(WORD_ROW){ NULL, 0 } };
static const struct conf_word body_format_words[] = { BODY_FORMAT_LIST(WORD_ROW){ NULL, 0 } };
static const struct conf_word send_scope_words[] = { SEND_SCOPE_LIST(WORD_ROW){ NULL, 0 } };
static const struct conf_word time_unit_words[] = { TIME_UNIT_LIST(WORD_ROW){ NULL, 0 } };

const char conf_required[] = "(required)";

#define FIELD(type_, field_) offsetof(struct type_, field_), sizeof(((struct type_ *)NULL)->field_)
#define NONE 0, 0
#define REQUIRED conf_required
#define OPTION(                                                                                              \
	scope_, field_, path_, type_, words_, default_, min_, max_, unit_, apply_, show_, example_, doc_)    \
	{ SCOPE_##scope_, path_, &conf_type_##type_, field_, words_, default_, min_, max_, unit_, apply_,    \
		show_, example_, doc_ },
const struct conf_option conf_options[] = {
#include "model/options.def"
};
#undef OPTION
const size_t conf_n_options = sizeof(conf_options) / sizeof(conf_options[0]);

/* --- any option */

static void *field_of(const struct conf_option *o, void *record)
{
	return (char *)record + o->offset;
}

static const char *kind_word(const struct conf_node *n)
{
	switch (n->kind) {
	case CONF_LIST:
		return "a list";
	case CONF_MAP:
		return "a map";
	default:
		return n->text != NULL && n->text[0] != '\0' ? "plain text" : "nothing";
	}
}

bool conf_expect(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, enum conf_kind kind)
{
	if (n->kind == kind)
		return true;
	if (n->kind != CONF_BAD)
		conf_error_at(e, n, "%s: expected %s, found %s", o->path, o->type->name, kind_word(n));
	return false;
}

void conf_option_read(
	const struct conf_option *o, struct conf_errors *e, const struct conf_node *n, void *record)
{
	if (conf_expect(e, o, n, o->type->kind))
		o->type->read(e, o, n, field_of(o, record));
}

/* The default of a list is its items with a space between. */
static struct conf_node *default_node(const struct conf_option *o)
{
	if (o->type->kind != CONF_LIST)
		return conf_node_scalar(o->default_text);
	struct conf_node *list = conf_node_new(CONF_LIST);
	const char *s = o->default_text;
	while (*s != '\0') {
		size_t n = strcspn(s, " ");
		char *item = mem_strndup(s, n);
		conf_node_add(list, NULL, conf_node_scalar(item));
		mem_free(item);
		s += n + strspn(s + n, " ");
	}
	return list;
}

void conf_option_default(const struct conf_option *o, void *record)
{
	struct conf_errors none = { .v = NULL, .n = 0 };

	if (o->default_text == NULL || o->default_text == conf_required)
		return;
	struct conf_node *n = default_node(o);
	conf_option_read(o, &none, n, record);
	conf_node_free(n);
	ALWAYS(none.n == 0);
}

struct conf_node *conf_option_node(const struct conf_option *o, const void *record)
{
	return o->size > 0 ? o->type->node_of(o, (const char *)record + o->offset) : NULL;
}

/* --- "did you mean" */

#define NEAR_BYTES 64

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* Levenshtein's distance, with two swapped neighbours as one slip; three rows at a time. */
static size_t distance(const char *a, const char *b)
{
	size_t rows[3][NEAR_BYTES + 1], na = strlen(a), nb = strlen(b);

	for (size_t j = 0; j <= nb; j++)
		rows[0][j] = j;
	for (size_t i = 1; i <= na; i++) {
		size_t *row = rows[i % 3];
		const size_t *above = rows[(i + 2) % 3], *above_that = rows[(i + 1) % 3];
		row[0] = i;
		for (size_t j = 1; j <= nb; j++) {
			row[j] =
				least(above[j - 1] + (a[i - 1] != b[j - 1]), least(above[j], row[j - 1]) + 1);
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				row[j] = least(row[j], above_that[j - 2] + 1);
		}
	}
	return rows[na % 3][nb];
}

const char *conf_near(const char *word, const char *const *candidates, size_t n)
{
	size_t len = strlen(word);
	size_t best = (len + 1) / 3 + 1;
	const char *found = NULL;

	if (len == 0 || len > NEAR_BYTES)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		if (strlen(candidates[i]) > NEAR_BYTES)
			continue;
		size_t d = distance(word, candidates[i]);
		/* What only lacks its end is as near as one slip. */
		if (len >= 4 && strncmp(candidates[i], word, len) == 0 && d > 1)
			d = 1;
		if (d < best && d < strlen(candidates[i])) {
			best = d;
			found = candidates[i];
		}
	}
	return found;
}
