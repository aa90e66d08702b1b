/*
 * conf_build - node trees of all files to one struct conf.
 *
 * Walks the trees by the table of options: unknown, missing and doubled keys are found here, values are the
 * types' business. Included files add to the main one; nothing overrides anything, so the order of files
 * never matters. It must not look at what values mean together: that is conf_check's.
 */
#include "model/conf_build.h"

#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/conf_type_impl.h"

#define MAX_FILES 1000

static void read_file(struct conf_build *b, const char *file, const struct conf_node *from);

/* --- one level of keys */

struct level {
	struct conf_build *b;
	enum conf_scope scope;
	void *record;
	const struct conf_node **seen; /* by option */
};

/* The next component of an option's path behind `prefix`, or NULL when it is elsewhere; owned by the caller.
 */
static char *component_of(const struct conf_option *o, enum conf_scope scope, const char *prefix)
{
	size_t n = strlen(prefix);

	if (o->scope != scope || strncmp(o->path, prefix, n) != 0)
		return NULL;
	return mem_strndup(o->path + n, strcspn(o->path + n, "."));
}

static void report_unknown(const struct level *l, const struct conf_node *key, const char *prefix)
{
	char **names = mem_calloc(conf_n_options, sizeof(*names));
	size_t n = 0;

	for (size_t i = 0; i < conf_n_options; i++) {
		char *name = component_of(&conf_options[i], l->scope, prefix);
		if (name != NULL)
			names[n++] = name;
	}
	const char *near = conf_near(key->text, (const char *const *)names, n);
	conf_error_at(l->b->errors, key, "unknown key \"%s%.60s\"%s%s%s", prefix, key->text,
		near != NULL ? "; did you mean \"" : "", near != NULL ? near : "", near != NULL ? "\"?" : "");
	for (size_t i = 0; i < n; i++)
		mem_free(names[i]);
	mem_free(names);
}

static void read_special(struct conf_build *b, const struct conf_option *o, const struct conf_node *n);

static void read_option(
	const struct level *l, size_t index, const struct conf_node *key, const struct conf_node *value)
{
	const struct conf_option *o = &conf_options[index];
	const struct conf_node *first = l->seen[index];

	l->seen[index] = value;
	if (o->size == 0)
		read_special(l->b, o, value);
	else if (first != NULL)
		conf_error_at(
			l->b->errors, key, "%s is set already in %s:%u", o->path, first->file, first->line);
	else
		conf_option_read(o, l->b->errors, value, l->record);
}

static void read_level(const struct level *l, const struct conf_node *map, const char *prefix);

static void read_key(
	const struct level *l, const struct conf_node *key, const struct conf_node *value, const char *prefix)
{
	char *path = mem_printf("%s%s", prefix, key->text);
	size_t n = strlen(path);
	bool is_section = false;

	/* A dot in the key itself is not the way into a section. */
	bool dotted = strchr(key->text, '.') != NULL;
	for (size_t i = 0; i < conf_n_options && !dotted; i++) {
		const struct conf_option *o = &conf_options[i];
		if (o->scope != l->scope || strncmp(o->path, path, n) != 0)
			continue;
		if (o->path[n] == '\0') {
			read_option(l, i, key, value);
			mem_free(path);
			return;
		}
		is_section = is_section || o->path[n] == '.';
	}
	if (!is_section) {
		report_unknown(l, key, prefix);
	} else if (value->kind != CONF_MAP) {
		if (value->kind != CONF_BAD)
			conf_error_at(l->b->errors, value, "%s: expected a map of options", path);
	} else {
		char *deeper = mem_printf("%s.", path);
		read_level(l, value, deeper);
		mem_free(deeper);
	}
	mem_free(path);
}

static void read_level(const struct level *l, const struct conf_node *map, const char *prefix)
{
	for (size_t i = 0; i < map->n; i++)
		read_key(l, map->keys[i], map->values[i], prefix);
}

/* Defaults, and what must be there; `at` NULL: without complaints about that. */
static void complete_level(const struct level *l, const struct conf_node *at)
{
	for (size_t i = 0; i < conf_n_options; i++) {
		const struct conf_option *o = &conf_options[i];
		if (o->scope != l->scope || l->seen[i] != NULL)
			continue;
		if (o->default_text == conf_required && at != NULL)
			conf_error_at(l->b->errors, at, "missing key \"%s\"", o->path);
		conf_option_default(o, l->record);
	}
}

/* --- records */

static void add_record(
	struct conf_records *to, void *record, const struct conf_node *n, const struct conf_node *key)
{
	to->v = mem_realloc(to->v, to->n + 1, sizeof(*to->v));
	to->v[to->n] = (struct conf_record){ .record = record, .node = n, .key = key, .order = to->n };
	to->n++;
}

static void read_record(struct conf_build *b, enum conf_scope scope, const struct conf_node *n, void *record)
{
	struct level l = { .b = b, .scope = scope, .record = record };

	l.seen = mem_calloc(conf_n_options, sizeof(*l.seen));
	read_level(&l, n, "");
	complete_level(&l, n);
	mem_free(l.seen);
}

static bool expect_map(struct conf_build *b, const struct conf_node *n, const char *what)
{
	if (n->kind == CONF_MAP)
		return true;
	if (n->kind != CONF_BAD)
		conf_error_at(b->errors, n, "%s: expected a map of options", what);
	return false;
}

static void read_webhooks(struct conf_build *b, const struct conf_node *list)
{
	for (size_t i = 0; i < list->n; i++) {
		const struct conf_node *n = list->values[i];
		if (!expect_map(b, n, "webhooks"))
			continue;
		struct conf_webhook *w = mem_alloc(sizeof(*w));
		w->line = n->line;
		w->file = mem_strdup(n->file);
		read_record(b, SCOPE_WEBHOOK, n, w);
		add_record(&b->webhooks, w, n, NULL);
	}
}

static void read_clients(struct conf_build *b, const struct conf_node *list)
{
	for (size_t i = 0; i < list->n; i++) {
		const struct conf_node *n = list->values[i];
		if (!expect_map(b, n, "clients"))
			continue;
		struct client *c = mem_alloc(sizeof(*c));
		buf_init_secret(&c->secret, 64 * 1024);
		c->line = n->line;
		c->file = mem_strdup(n->file);
		read_record(b, SCOPE_CLIENT, n, c);
		add_record(&b->clients, c, n, NULL);
	}
}

static void read_providers(struct conf_build *b, const struct conf_node *map)
{
	for (size_t i = 0; i < map->n; i++) {
		const struct conf_node *key = map->keys[i], *n = map->values[i];
		if (!conf_is_slug(key->text))
			conf_error_at(b->errors, key,
				"provider key \"%.60s\" is not 1 to 64 lower-case letters, digits, \"_\" or "
				"\"-\"",
				key->text);
		if (!expect_map(b, n, key->text))
			continue;
		struct provider *p = mem_alloc(sizeof(*p));
		p->key = mem_strdup(key->text);
		p->line = key->line;
		p->file = mem_strdup(key->file);
		read_record(b, SCOPE_PROVIDER, n, p);
		add_record(&b->providers, p, n, key);
	}
}

static void read_special(struct conf_build *b, const struct conf_option *o, const struct conf_node *n)
{
	if (!conf_expect(b->errors, o, n, o->type->kind))
		return;
	if (strcmp(o->path, "webhooks") == 0)
		read_webhooks(b, n);
	else if (strcmp(o->path, "clients") == 0)
		read_clients(b, n);
	else if (strcmp(o->path, "providers") == 0)
		read_providers(b, n);
	else if (b->n_sources > 1)
		conf_error_at(b->errors, n, "include: an included file cannot include");
}

/* --- files */

static int by_bytes(const void *a, const void *b)
{
	const char *const *x = a, *const *y = b;

	return strcmp(*x, *y);
}

static bool is_pattern(const char *s)
{
	return strpbrk(s, "*?[") != NULL;
}

/* A folder that is not there matches nothing; one that cannot be read may hide something. */
static int on_glob_error(const char *path, int error)
{
	(void)path;
	return error != ENOENT && error != ENOTDIR;
}

static void include_matches(struct conf_build *b, const struct conf_node *n, const char *pattern)
{
	glob_t g = { .gl_pathc = 0 };

	int rc = glob(pattern, GLOB_NOSORT, on_glob_error, &g);
	if (rc == 0) {
		/* By bytes and not by locale: the order of errors is the same everywhere. */
		qsort(g.gl_pathv, g.gl_pathc, sizeof(*g.gl_pathv), by_bytes);
		for (size_t i = 0; i < g.gl_pathc; i++)
			read_file(b, g.gl_pathv[i], n);
	} else if (rc != GLOB_NOMATCH) {
		conf_error_at(b->errors, n, "include: %s: the folder cannot be read", pattern);
		b->incomplete = true;
	}
	globfree(&g);
}

static void include_one(struct conf_build *b, const struct conf_option *o, const struct conf_node *n)
{
	struct buf path = BUF_INIT(2 * PATH_MAX);

	if (n->kind != CONF_SCALAR || n->text[0] == '\0') {
		conf_error_at(b->errors, n, "include: expected a file name or a pattern");
	} else if (conf_expand_path(b->errors, o, n, &path)) {
		const char *s = buf_str(&path);
		char *folder = conf_folder_of(n->file);
		char *whole = s[0] == '/'                    ? mem_strdup(s)
			      : strchr(n->file, '/') == NULL ? mem_strdup(s)
							     : mem_printf("%s/%s", folder, s);
		if (is_pattern(n->text))
			include_matches(b, n, whole);
		else
			read_file(b, whole, n);
		mem_free(whole);
		mem_free(folder);
	} else {
		b->incomplete = true;
	}
	buf_fini(&path);
}

static size_t option_index(const char *path)
{
	size_t i = 0;

	while (i < conf_n_options &&
		(conf_options[i].scope != SCOPE_ROOT || strcmp(conf_options[i].path, path) != 0))
		i++;
	ALWAYS(i < conf_n_options);
	return i;
}

static void read_includes(struct conf_build *b)
{
	size_t index = option_index("include");
	const struct conf_node *list = b->seen[index];

	if (list == NULL || list->kind != CONF_LIST)
		return;
	for (size_t i = 0; i < list->n; i++)
		include_one(b, &conf_options[index], list->values[i]);
}

static bool is_read_already(const struct conf_build *b, const char *real)
{
	for (size_t i = 0; i < b->n_sources; i++)
		if (b->sources[i].real != NULL && strcmp(b->sources[i].real, real) == 0)
			return true;
	return false;
}

/* `from` is the include that names it; NULL for the main file. */
static void read_file(struct conf_build *b, const char *file, const struct conf_node *from)
{
	char real[PATH_MAX];
	const char *resolved = realpath(file, real);
	size_t before = b->errors->n;

	if (from != NULL && resolved != NULL && is_read_already(b, resolved)) {
		conf_error_at(b->errors, from, "include: %s is read already", file);
		return;
	}
	if (b->n_sources >= MAX_FILES) {
		conf_error_at(b->errors, from, "include: more than %d files", MAX_FILES);
		return;
	}
	b->sources = mem_realloc(b->sources, b->n_sources + 1, sizeof(*b->sources));
	struct conf_source *s = &b->sources[b->n_sources++];
	*s = (struct conf_source){ .file = mem_strdup(file),
		.real = resolved != NULL ? mem_strdup(resolved) : NULL };
	if (resolved == NULL && from != NULL)
		conf_error_at(b->errors, from, "include: %s: there is no such file", file);
	else if (conf_yaml_read(s->file, b->errors, &s->root) < 0)
		ALWAYS(b->errors->n > before || before >= CONF_MAX_ERRORS);
	b->incomplete = b->incomplete || s->root == NULL;
	if (s->root == NULL)
		return;
	struct level l = { .b = b, .scope = SCOPE_ROOT, .record = b->conf, .seen = b->seen };
	if (expect_map(b, s->root, "the file"))
		read_level(&l, s->root, "");
}

/* --- all together */

static int by_provider_key(const void *a, const void *b)
{
	const struct conf_record *x = a, *y = b;
	const struct provider *p = x->record, *q = y->record;
	int c = strcmp(p->key, q->key);

	return c != 0 ? c : x->order < y->order ? -1 : 1;
}

static int compare_clients(const struct client *c, const struct client *d)
{
	/* Half-read ones have NULLs. */
	const char *const a[] = { c->provider, c->application }, *const b[] = { d->provider, d->application };
	int r = 0;

	for (size_t i = 0; i < 2 && r == 0; i++)
		r = strcmp(a[i] != NULL ? a[i] : "", b[i] != NULL ? b[i] : "");
	return r;
}

static int by_client(const void *a, const void *b)
{
	const struct conf_record *x = a, *y = b;
	int r = compare_clients(x->record, y->record);

	return r != 0 ? r : x->order < y->order ? -1 : 1;
}

static void sort_records(struct conf_records *r, int (*compare)(const void *, const void *))
{
	if (r->n > 1)
		qsort(r->v, r->n, sizeof(*r->v), compare);
}

/* The conf takes the records over. */
static void settle(struct conf_build *b)
{
	struct conf *c = b->conf;

	sort_records(&b->providers, by_provider_key);
	sort_records(&b->clients, by_client);
	c->webhooks = mem_calloc(b->webhooks.n + 1, sizeof(*c->webhooks));
	c->providers = mem_calloc(b->providers.n + 1, sizeof(*c->providers));
	c->clients = mem_calloc(b->clients.n + 1, sizeof(*c->clients));
	for (size_t i = 0; i < b->webhooks.n; i++) {
		c->webhooks[i] = *(struct conf_webhook *)b->webhooks.v[i].record;
		mem_free(b->webhooks.v[i].record);
		b->webhooks.v[i].record = &c->webhooks[i];
	}
	for (size_t i = 0; i < b->providers.n; i++)
		c->providers[i] = b->providers.v[i].record;
	for (size_t i = 0; i < b->clients.n; i++)
		c->clients[i] = b->clients.v[i].record;
	c->n_webhooks = b->webhooks.n;
	c->n_providers = b->providers.n;
	c->n_clients = b->clients.n;
}

void conf_build_read(struct conf_build *b, const char *path)
{
	b->seen = mem_calloc(conf_n_options, sizeof(*b->seen));
	read_file(b, path, NULL);
	read_includes(b);
	struct level l = { .b = b, .scope = SCOPE_ROOT, .record = b->conf, .seen = b->seen };
	struct conf_node whole = { .kind = CONF_MAP, .file = b->sources[0].file };
	complete_level(&l, b->incomplete ? NULL : &whole);
	settle(b);
}

void conf_build_fini(struct conf_build *b)
{
	for (size_t i = 0; i < b->n_sources; i++) {
		mem_free(b->sources[i].file);
		mem_free(b->sources[i].real);
		conf_node_free(b->sources[i].root);
	}
	mem_free(b->sources);
	mem_free(b->seen);
	mem_free(b->webhooks.v);
	mem_free(b->providers.v);
	mem_free(b->clients.v);
}

const struct conf_node *conf_build_where(const struct conf_build *b, const char *path)
{
	return b->seen[option_index(path)];
}
