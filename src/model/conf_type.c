/*
 * conf_type - the types of single values: each has its reader and its way back to text.
 *
 * Lists and maps are in conf_type_list.c. Readers must not open what a path names: that is conf_check's.
 */
#include "model/conf_type.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/conf_type_impl.h"

/* --- text */

static bool is_within(const char *s, const char *chars)
{
	return strspn(s, chars) == strlen(s);
}

bool conf_is_slug(const char *s)
{
	static const char chars[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";

	return s[0] != '\0' && s[0] != '_' && s[0] != '-' && strlen(s) <= 64 && is_within(s, chars);
}

bool conf_count_fits(const struct conf_option *o, uint64_t n)
{
	uint64_t low = 0, high = UINT64_MAX;

	if (o->min != NULL)
		ALWAYS(str_parse_u64(o->min, strlen(o->min), &low) == 0);
	if (o->max != NULL)
		ALWAYS(str_parse_u64(o->max, strlen(o->max), &high) == 0);
	return n >= low && n <= high;
}

bool conf_text_fits(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	size_t len = strlen(n->text);

	if (len == 0 && (o->min == NULL || strcmp(o->min, "0") != 0)) {
		conf_error_at(e, n, "%s: must not be empty", o->path);
		return false;
	}
	if (!conf_count_fits(o, len)) {
		conf_error_at(e, n, "%s: longer than %s bytes", o->path, o->max);
		return false;
	}
	if (str_has_ctl(n->text, len)) {
		conf_error_at(e, n, "%s: control characters are not allowed", o->path);
		return false;
	}
	return true;
}

static void set_text(void *field, const char *s)
{
	char **text = field;

	mem_free(*text);
	*text = mem_strdup(s);
}

static struct conf_node *node_of_text(const struct conf_option *o, const void *field)
{
	char *const *text = field;

	(void)o;
	return *text != NULL ? conf_node_scalar(*text) : NULL;
}

static void read_text(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	if (conf_text_fits(e, o, n))
		set_text(field, n->text);
}

bool conf_is_word(const char *s)
{
	static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

	return s[0] != '\0' && strchr("._-", s[0]) == NULL && is_within(s, chars);
}

static void read_word(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	if (!conf_text_fits(e, o, n))
		return;
	if (!conf_is_word(n->text))
		conf_error_at(e, n,
			"%s: \"%.60s\" has other characters than letters, digits, \".\", \"_\" and \"-\", or "
			"begins with one of the last three",
			o->path, n->text);
	else
		set_text(field, n->text);
}

/* --- paths: variables expanded, relative ones from the folder of the file */

static bool is_plain_path(const char *s)
{
	/* "${" would be taken for a variable when a dump is read again. */
	return !str_has_ctl(s, strlen(s)) && str_is_utf8(s, strlen(s)) && strstr(s, "${") == NULL;
}

/* ST_INVALID when it was reported, ST_FULL when it was not. */
static int expand_variable(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n,
	const char **s, struct buf *out)
{
	static const char chars[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
	const char *name = *s + 2;
	size_t len = strspn(name, chars);
	int rc = ST_INVALID;

	if (len == 0 || name[len] != '}') {
		conf_error_at(e, n, "%s: a variable is written ${NAME}", o->path);
		return rc;
	}
	char *key = mem_strndup(name, len);
	const char *value = getenv(key);
	if (value == NULL || value[0] == '\0')
		conf_error_at(e, n, "%s: the variable %s is not set", o->path, key);
	else if (!is_plain_path(value))
		conf_error_at(e, n, "%s: the variable %s does not hold a plain path", o->path, key);
	else
		rc = buf_puts(out, value);
	mem_free(key);
	*s = name + len + 1;
	return rc;
}

bool conf_expand_path(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, struct buf *out)
{
	const char *s = n->text;
	int rc = 0;

	while (*s != '\0' && rc == 0)
		rc = strncmp(s, "${", 2) == 0 ? expand_variable(e, o, n, &s, out) : buf_putc(out, *s++);
	if (rc == ST_FULL || (rc == 0 && out->len >= PATH_MAX)) {
		conf_error_at(e, n, "%s: the path is too long", o->path);
		rc = ST_INVALID;
	}
	return rc == 0;
}

char *conf_folder_of(const char *file)
{
	const char *slash = strrchr(file, '/');

	if (slash == NULL)
		return mem_strdup(".");
	return slash == file ? mem_strdup("/") : mem_strndup(file, (size_t)(slash - file));
}

/* An absolute one, so that a dump means the same wherever it is read. */
static char *absolute_path(const char *file, const char *path)
{
	char real[PATH_MAX];

	if (path[0] == '/')
		return mem_strdup(path);
	char *folder = conf_folder_of(file);
	const char *base = realpath(folder, real) != NULL ? real : folder;
	char *whole = mem_printf("%s/%s", strcmp(base, "/") == 0 ? "" : base, path);
	mem_free(folder);
	return whole;
}

static void read_path(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	struct buf path = BUF_INIT(2 * PATH_MAX);

	if (conf_text_fits(e, o, n) && conf_expand_path(e, o, n, &path)) {
		char *whole = absolute_path(n->file, buf_str(&path));
		set_text(field, whole);
		mem_free(whole);
	}
	buf_fini(&path);
}

/* --- URLs and addresses */

static void read_url(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	struct url u;
	struct fault f = { .code = 0 };

	if (url_parse(n->text, &u, &f) < 0) {
		conf_error_at(e, n, "%s: %s", o->path, f.text);
		return;
	}
	url_fini(&u);
	set_text(field, n->text);
}

/* A password would end up in every dump and backup of the file. */
static bool has_password(const char *s)
{
	const char *scheme = strstr(s, "://");
	const char *user = scheme != NULL ? scheme + 3 : s;
	size_t authority = strcspn(user, "/?");
	const char *at = memchr(user, '@', authority);
	const char *colon = memchr(user, ':', authority);

	if (scheme != NULL && at != NULL && colon != NULL && colon < at)
		return true;
	for (const char *p = strstr(s, "password"); p != NULL; p = strstr(p + 1, "password"))
		if (p[8 + strspn(p + 8, " ")] == '=') /* as libpq reads keyword strings */
			return true;
	return false;
}

static void read_db_url(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	bool is_url = strncmp(n->text, "postgresql://", 13) == 0 || strncmp(n->text, "postgres://", 11) == 0;

	if (!conf_text_fits(e, o, n))
		return;
	if (!is_url && (strstr(n->text, "://") != NULL || strchr(n->text, '=') == NULL))
		conf_error_at(e, n, "%s: expected postgresql://... or \"host=... dbname=...\"", o->path);
	else if (has_password(n->text))
		conf_error_at(e, n, "%s: must not hold a password; use passfile=... or peer authentication",
			o->path);
	else
		set_text(field, n->text);
}

static void read_listen(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	struct fault f = { .code = 0 };
	struct listen_addr a;
	struct buf text = BUF_INIT(2 * PATH_MAX);

	if (conf_text_fits(e, o, n) && conf_expand_path(e, o, n, &text)) {
		if (listen_addr_parse(buf_str(&text), &a, &f) < 0)
			conf_error_at(e, n, "%s: %s", o->path, f.text);
		else
			memcpy(field, &a, sizeof(a));
	}
	buf_fini(&text);
}

static struct conf_node *node_of_listen(const struct conf_option *o, const void *field)
{
	const struct listen_addr *a = field;
	char *text = NULL;

	(void)o;
	if (a->is_unix)
		text = mem_printf("unix:%s", a->path);
	else if (a->host[0] != '\0')
		text = mem_printf(
			strchr(a->host, ':') != NULL ? "[%s]:%u" : "%s:%u", a->host, (unsigned)a->port);
	struct conf_node *n = text != NULL ? conf_node_scalar(text) : NULL;
	mem_free(text);
	return n;
}

/* --- numbers: one check of the bounds for all of them */

static void out_of_range(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	conf_error_at(e, n, "%s: %.60s is not within %s and %s", o->path, n->text, o->min, o->max);
}

static void malformed(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, const char *like)
{
	conf_error_at(e, n, "%s: \"%.60s\" is not %s (%s); allowed are %s to %s", o->path, n->text,
		o->type->name, like, o->min, o->max);
}

/* Parses text and bounds with one parser and stores what fits; `like` shows the notation. */
#define NUMBER_READER(fn_, value_, parse_, like_)                                                            \
	static void fn_(                                                                                     \
		struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)  \
	{                                                                                                    \
		value_ v = 0, low, high;                                                                     \
		int rc = parse_(n->text, strlen(n->text), &v);                                               \
		ALWAYS(parse_(o->min, strlen(o->min), &low) == 0 &&                                          \
			parse_(o->max, strlen(o->max), &high) == 0);                                         \
		if (rc == ST_SYNTAX)                                                                         \
			malformed(e, o, n, like_);                                                           \
		else if (rc < 0 || v < low || v > high)                                                      \
			out_of_range(e, o, n);                                                               \
		else                                                                                         \
			memcpy(field, &v, sizeof(v));                                                        \
	}

static int parse_count(const char *s, size_t n, unsigned *out)
{
	uint64_t v;
	int rc = str_parse_u64(s, n, &v);

	if (rc == 0 && v > UINT_MAX)
		rc = ST_RANGE;
	if (rc == 0)
		*out = (unsigned)v;
	return rc;
}

NUMBER_READER(read_count, unsigned, parse_count, "digits")
NUMBER_READER(read_size, uint64_t, str_parse_size, "like 512, 64k, 1M or 2G")
NUMBER_READER(read_duration, int64_t, str_parse_duration_us, "like 250ms, 90s, 5m, 2h or 30d")
NUMBER_READER(read_exact_share, double, str_parse_decimal, "like 0.2")
NUMBER_READER(read_limited_rate, double, str_parse_rate, "like 10/s, 600/m or 1000/h")

static void read_rate(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	const double unlimited = 0;

	if (strcmp(n->text, "unlimited") == 0)
		memcpy(field, &unlimited, sizeof(unlimited));
	else
		read_limited_rate(e, o, n, field);
}

static struct conf_node *node_of_count(const struct conf_option *o, const void *field)
{
	const unsigned *v = field;
	char text[32];

	(void)o;
	snprintf(text, sizeof(text), "%u", *v);
	return conf_node_scalar(text);
}

static struct conf_node *node_of_size(const struct conf_option *o, const void *field)
{
	const uint64_t *v = field;
	char text[32];

	(void)o;
	str_format_size(*v, text);
	return conf_node_scalar(text);
}

static struct conf_node *node_of_duration(const struct conf_option *o, const void *field)
{
	const int64_t *v = field;
	char text[32];

	(void)o;
	str_format_duration(*v, text);
	return conf_node_scalar(text);
}

/* The shortest decimal that is read back as the same number: 24 places hold 17 digits of all that the table
 * allows. */
static void format_decimal(double v, char text[64])
{
	double back = -1;

	for (int places = 0; places <= 24 && back != v; places++) {
		snprintf(text, 64, "%.*f", places, v);
		ALWAYS(str_parse_decimal(text, strlen(text), &back) == 0);
	}
}

static void read_share(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	double v;

	read_exact_share(e, o, n, field);
	/* Six places are plenty, and then a dump is exact. */
	memcpy(&v, field, sizeof(v));
	v = round(v * 1e6) / 1e6;
	memcpy(field, &v, sizeof(v));
}

static struct conf_node *node_of_share(const struct conf_option *o, const void *field)
{
	const double *v = field;
	char text[64];

	(void)o;
	format_decimal(*v, text);
	return conf_node_scalar(text);
}

static struct conf_node *node_of_rate(const struct conf_option *o, const void *field)
{
	static const struct {
		const char *unit;
		double seconds;
	} units[] = { { "/s", 1 }, { "/m", 60 }, { "/h", 3600 } };
	const double *v = field;
	char best[80] = "unlimited", text[80], number[64];

	(void)o;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]) && *v > 0; i++) {
		double back;
		format_decimal(*v * units[i].seconds, number);
		snprintf(text, sizeof(text), "%s%s", number, units[i].unit);
		if (str_parse_rate(text, strlen(text), &back) == 0 && back == *v &&
			(i == 0 || strlen(text) < strlen(best)))
			memcpy(best, text, sizeof(best));
	}
	return conf_node_scalar(best);
}

/* --- words */

static void read_bool(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	bool v;

	if (str_parse_bool(n->text, strlen(n->text), &v) < 0)
		conf_error_at(e, n, "%s: \"%.60s\" is neither yes nor no", o->path, n->text);
	else
		memcpy(field, &v, sizeof(v));
}

static struct conf_node *node_of_bool(const struct conf_option *o, const void *field)
{
	const bool *v = field;

	(void)o;
	return conf_node_scalar(*v ? "yes" : "no");
}

_Static_assert(sizeof(enum client_auth) == sizeof(int), "a choice is an int or a bool");

static void read_choice(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	struct buf all = BUF_INIT(1000);
	const char *candidates[16];
	size_t count = 0;

	for (const struct conf_word *w = o->words; w->word != NULL; w++) {
		bool as_bool = w->value != 0;
		if (strcmp(w->word, n->text) == 0) {
			memcpy(field,
				o->size == sizeof(bool) ? (const void *)&as_bool : (const void *)&w->value,
				o->size);
			buf_fini(&all);
			return;
		}
		candidates[count++] = w->word;
		ALWAYS(count < sizeof(candidates) / sizeof(candidates[0]));
		ALWAYS(buf_printf(&all, "%s%s", count > 1 ? ", " : "", w->word) == 0);
	}
	const char *near = conf_near(n->text, candidates, count);
	conf_error_at(e, n, "%s: \"%.60s\" is not one of %s%s%s%s", o->path, n->text, buf_str(&all),
		near != NULL ? " (did you mean " : "", near != NULL ? near : "", near != NULL ? "?)" : "");
	buf_fini(&all);
}

static struct conf_node *node_of_choice(const struct conf_option *o, const void *field)
{
	bool as_bool = false;
	int value = 0;

	if (o->size == sizeof(bool)) {
		memcpy(&as_bool, field, sizeof(as_bool));
		value = as_bool;
	} else {
		memcpy(&value, field, sizeof(value));
	}
	const struct conf_word *w = o->words;
	while (w->word != NULL && w->value != value)
		w++;
	ALWAYS(w->word != NULL);
	return conf_node_scalar(w->word);
}

#define SCALAR(id_, name_, read_, node_of_)                                                                  \
	const struct conf_type conf_type_##id_ = {                                                           \
		.name = (name_), .kind = CONF_SCALAR, .read = (read_), .node_of = (node_of_)                 \
	};
SCALAR(TEXT, "a text", read_text, node_of_text)
SCALAR(WORD, "a name", read_word, node_of_text)
SCALAR(PATH, "a file path", read_path, node_of_text)
SCALAR(URL, "a URL", read_url, node_of_text)
SCALAR(DB_URL, "a database URL", read_db_url, node_of_text)
SCALAR(LISTEN, "an address", read_listen, node_of_listen)
SCALAR(BOOL, "yes or no", read_bool, node_of_bool)
SCALAR(COUNT, "a number", read_count, node_of_count)
SCALAR(SIZE, "a size", read_size, node_of_size)
SCALAR(DURATION, "a duration", read_duration, node_of_duration)
SCALAR(SHARE, "a share", read_share, node_of_share)
SCALAR(RATE, "a rate", read_rate, node_of_rate)
SCALAR(CHOICE, "a word", read_choice, node_of_choice)
