/*
 * conf_type_list - the types of options that are lists or maps: names, event patterns, JSON pointers,
 * templates.
 *
 * Every item is checked on its own and reported at its own place. A list or map with a bad item is not stored
 * at all: nothing is used while there is an error anywhere.
 */
#include "model/conf_type.h"

#include <string.h>

#include "base/header.h"
#include "base/mem.h"
#include "base/str.h"
#include "model/conf_type_impl.h"

#define MAX_ITEM 500 /* bytes of a name or pointer */
#define MAX_KEY 128  /* libyaml reads keys of at most 1024 bytes, and a dump may write six for two */

/* The arrays of struct provider are a pointer with the count right behind it. */
#define COUNT_FOLLOWS(v_, n_)                                                                                \
	_Static_assert(offsetof(struct provider, n_) == offsetof(struct provider, v_) + sizeof(void *),      \
		#n_ " follows " #v_)
COUNT_FOLLOWS(params, n_params);
COUNT_FOLLOWS(rename_params, n_rename_params);
COUNT_FOLLOWS(headers, n_headers);
COUNT_FOLLOWS(capture, n_capture);

static size_t *count_of(void *field)
{
	return (size_t *)(void *)((char *)field + sizeof(void *));
}

static size_t count_at(const void *field)
{
	size_t n;

	memcpy(&n, (const char *)field + sizeof(void *), sizeof(n));
	return n;
}

/* --- one item */

typedef bool item_check(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n);

static bool check_item(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	if (n->kind != CONF_SCALAR) {
		if (n->kind != CONF_BAD)
			conf_error_at(e, n, "%s: expected plain text", o->path);
		return false;
	}
	if (n->text[0] == '\0')
		conf_error_at(e, n, "%s: an item must not be empty", o->path);
	else if (strlen(n->text) > MAX_ITEM)
		conf_error_at(e, n, "%s: an item is longer than %d bytes", o->path, MAX_ITEM);
	else if (str_has_ctl(n->text, strlen(n->text)))
		conf_error_at(e, n, "%s: control characters are not allowed", o->path);
	else
		return true;
	return false;
}

static bool check_slug(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	if (!check_item(e, o, n))
		return false;
	if (!conf_is_slug(n->text))
		conf_error_at(e, n, "%s: \"%.60s\" is not 1 to 64 lower-case letters, digits, \"_\" or \"-\"",
			o->path, n->text);
	return conf_is_slug(n->text);
}

/* A JSON pointer, RFC 6901: empty or "/"-led, "~" only as "~0" and "~1". The empty one is no place for a
 * value. */
static bool check_pointer(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	if (!check_item(e, o, n))
		return false;
	bool good = n->text[0] == '/';
	for (const char *t = strchr(n->text, '~'); t != NULL && good; t = strchr(t + 1, '~'))
		good = t[1] == '0' || t[1] == '1';
	if (!good)
		conf_error_at(e, n, "%s: \"%.60s\" is not a JSON pointer like /data/access_token", o->path,
			n->text);
	return good;
}

static bool check_event(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	const char *words[EVENT_TYPE_COUNT];
	size_t count = 0;

	if (!check_item(e, o, n))
		return false;
	const char *const pattern[] = { n->text };
	for (int t = EVENT_NONE + 1; t < EVENT_TYPE_COUNT; t++) {
		if (event_type_matches(pattern, 1, (enum event_type)t))
			return true;
		words[count++] = event_type_word((enum event_type)t);
	}
	const char *near = conf_near(n->text, words, count);
	conf_error_at(e, n, "%s: \"%.60s\" matches no event%s%s%s", o->path, n->text,
		near != NULL ? " (did you mean " : "", near != NULL ? near : "", near != NULL ? "?)" : "");
	return false;
}

/* --- lists */

static bool check_count(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	if (conf_count_fits(o, n->n))
		return true;
	conf_error_at(e, n, "%s: has %zu items; allowed are %s to %s", o->path, n->n, o->min, o->max);
	return false;
}

static bool read_items(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n,
	item_check *check, struct strlist *out)
{
	struct strlist list = { .v = NULL, .n = 0 };
	bool good = true;

	for (size_t i = 0; i < n->n; i++) {
		if (!check(e, o, n->values[i])) {
			good = false;
			continue;
		}
		if (strlist_has(&list, n->values[i]->text)) {
			conf_error_at(e, n->values[i], "%s: \"%.60s\" is there already", o->path,
				n->values[i]->text);
			good = false;
			continue;
		}
		strlist_add(&list, n->values[i]->text);
	}
	if (good)
		*out = list;
	else
		strlist_fini(&list);
	return good;
}

static void read_list(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n,
	item_check *check, void *field)
{
	struct strlist list;

	if (check_count(e, o, n) && read_items(e, o, n, check, &list))
		memcpy(field, &list, sizeof(list));
}

static void read_slugs(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	read_list(e, o, n, check_slug, field);
}

static void read_texts(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	read_list(e, o, n, check_item, field);
}

static void read_events(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	read_list(e, o, n, check_event, field);
}

static void read_pointers(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	read_list(e, o, n, check_pointer, field);
}

static struct conf_node *node_of_strlist(const struct strlist *list)
{
	struct conf_node *n = conf_node_new(CONF_LIST);

	for (size_t i = 0; i < list->n; i++)
		conf_node_add(n, NULL, conf_node_scalar(list->v[i]));
	return n;
}

static struct conf_node *node_of_list(const struct conf_option *o, const void *field)
{
	(void)o;
	return node_of_strlist(field);
}

/* --- templates */

static struct template *read_template(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	struct template *t = NULL;
	struct fault f = { .code = 0 };

	if (n->kind != CONF_SCALAR) {
		if (n->kind != CONF_BAD)
			conf_error_at(e, n, "%s: expected plain text", o->path);
		return NULL;
	}
	if (str_has_ctl(n->text, strlen(n->text)))
		conf_error_at(e, n, "%s: control characters are not allowed", o->path);
	else if (strlen(n->text) > 4000)
		conf_error_at(e, n, "%s: longer than 4000 bytes", o->path);
	else if (template_parse(n->text, &t, &f) < 0)
		conf_error_at(e, n, "%s: %s", o->path, f.text);
	return t;
}

/* The last two labels of a host name, or all of it. */
static const char *domain_of(const char *host)
{
	const char *last = strrchr(host, '.');
	const char *p = last;

	while (p != NULL && p > host && p[-1] != '.')
		p--;
	return p != NULL ? p : host;
}

/* A setting comes from a customer: it may choose a name below a domain, never the domain that our client secret is sent to. Two
 * stand-ins of different shape show whether a variable reaches that far. */
static bool domain_is_constant(const struct template *t, const struct url *u)
{
	struct buf outline = BUF_INIT(8000);
	struct url other;
	bool same = false;

	if (template_outline(t, "y.z", &outline) == 0 && url_parse(buf_str(&outline), &other, NULL) == 0) {
		same = u->host_is_ip ? strcmp(u->host, other.host) == 0 : strcmp(domain_of(u->host), domain_of(other.host)) == 0;
		url_fini(&other);
	}
	buf_fini(&outline);
	return same;
}

/* The form is checked with a stand-in for each variable; scheme, domain and port cannot be variable. */
static void read_url_template(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	struct buf outline = BUF_INIT(8000);
	struct fault f = { .code = 0 };
	struct template **to = field;
	struct url u;
	struct template *t = read_template(e, o, n);

	if (t == NULL)
		return;
	int rc = template_outline(t, "x", &outline);
	if (rc == 0)
		rc = url_parse(buf_str(&outline), &u, &f);
	if (rc < 0) {
		conf_error_at(e, n, "%s: %s", o->path, f.text);
		template_free(t);
	} else if (!domain_is_constant(t, &u)) {
		conf_error_at(e, n, "%s: a variable may not reach into the last two labels of the host name", o->path);
		template_free(t);
		url_fini(&u);
	} else {
		url_fini(&u);
		*to = t;
	}
	buf_fini(&outline);
}

static struct conf_node *node_of_template(const struct conf_option *o, const void *field)
{
	struct template *const *t = field;

	(void)o;
	return *t != NULL ? conf_node_scalar(template_text(*t)) : NULL;
}

/* --- maps of templates: parameters, headers, new names */

typedef bool key_check(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *map, size_t i);

static bool check_param(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *map, size_t i)
{
	const struct conf_node *key = map->keys[i];

	if (strlen(key->text) <= MAX_KEY)
		return check_item(e, o, key);
	conf_error_at(e, key, "%s: a name is longer than %d bytes", o->path, MAX_KEY);
	return false;
}

static bool check_header(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *map, size_t i)
{
	const struct conf_node *key = map->keys[i];
	size_t n = strlen(key->text);

	if (n > MAX_KEY || !header_is_name(key->text)) {
		conf_error_at(e, key, "%s: \"%.60s\" is not a header name", o->path, key->text);
		return false;
	}
	if (header_is_transport(key->text)) {
		conf_error_at(e, key, "%s: \"%s\" cannot be set", o->path, key->text);
		return false;
	}
	for (size_t k = 0; k < i; k++) {
		if (!str_eq_nocase(key->text, n, map->keys[k]->text))
			continue;
		conf_error_at(e, key, "%s: \"%.60s\" is there already", o->path, key->text);
		return false;
	}
	return true;
}

/* The name that a parameter gets: constant text, kept as a template for the sake of one kind of map. */
static struct template *read_constant(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n)
{
	if (!check_item(e, o, n))
		return NULL;
	if (strpbrk(n->text, "{}") == NULL)
		return read_template(e, o, n);
	conf_error_at(e, n, "%s: a name cannot hold braces", o->path);
	return NULL;
}

typedef struct template *value_reader(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n);

static void read_map(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n,
	key_check *check, value_reader *read_value, void *field)
{
	struct named_template **to = field;
	bool good = true;
	size_t count = 0;

	if (!check_count(e, o, n))
		return;
	struct named_template *v = mem_calloc(n->n + 1, sizeof(*v));
	for (size_t i = 0; i < n->n; i++) {
		bool key_good = check(e, o, n, i);
		struct template *t = read_value(e, o, n->values[i]);
		if (!key_good || t == NULL) {
			good = false;
			template_free(t);
			continue;
		}
		v[count++] = (struct named_template){ .name = mem_strdup(n->keys[i]->text), .value = t };
	}
	if (!good) {
		named_templates_free(v, count);
		return;
	}
	*to = v;
	*count_of(field) = count;
}

static void read_templates(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	read_map(e, o, n, check_param, read_template, field);
}

static void read_headers(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	read_map(e, o, n, check_header, read_template, field);
}

static void read_renames(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	read_map(e, o, n, check_param, read_constant, field);
}

static struct conf_node *node_of_map(const struct conf_option *o, const void *field)
{
	struct named_template *const *v = field;
	size_t n = count_at(field);

	(void)o;
	if (n == 0)
		return NULL;
	struct conf_node *map = conf_node_new(CONF_MAP);
	for (size_t i = 0; i < n; i++)
		conf_node_add(map, (*v)[i].name, conf_node_scalar(template_text((*v)[i].value)));
	return map;
}

/* --- captured fields: a name and its pointers */

static bool check_capture(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *map, size_t i)
{
	static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
	const char *name = map->keys[i]->text;
	const struct conf_node *value = map->values[i];

	if (name[0] == '\0' || strlen(name) > 64 || strspn(name, chars) != strlen(name)) {
		conf_error_at(e, map->keys[i], "%s: \"%.60s\" is not 1 to 64 letters, digits, \"_\" or \"-\"",
			o->path, name);
		return false;
	}
	if (value->kind == CONF_LIST && value->n >= 1 && value->n <= 16)
		return true;
	if (value->kind != CONF_BAD)
		conf_error_at(e, value, "%s: expected a list of 1 to 16 JSON pointers", o->path);
	return false;
}

static void read_capture(
	struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field)
{
	struct named_pointer **to = field;
	bool good = true;
	size_t count = 0;

	if (!check_count(e, o, n))
		return;
	struct named_pointer *v = mem_calloc(n->n + 1, sizeof(*v));
	for (size_t i = 0; i < n->n; i++) {
		if (!check_capture(e, o, n, i) ||
			!read_items(e, o, n->values[i], check_pointer, &v[count].pointers)) {
			good = false;
			continue;
		}
		v[count++].name = mem_strdup(n->keys[i]->text);
	}
	if (!good) {
		named_pointers_free(v, count);
		return;
	}
	*to = v;
	*count_of(field) = count;
}

static struct conf_node *node_of_capture(const struct conf_option *o, const void *field)
{
	struct named_pointer *const *v = field;
	size_t n = count_at(field);

	(void)o;
	if (n == 0)
		return NULL;
	struct conf_node *map = conf_node_new(CONF_MAP);
	for (size_t i = 0; i < n; i++)
		conf_node_add(map, (*v)[i].name, node_of_strlist(&(*v)[i].pointers));
	return map;
}

#define TYPE(id_, kind_, name_, read_, node_of_)                                                             \
	const struct conf_type conf_type_##id_ = {                                                           \
		.name = (name_), .kind = (kind_), .read = (read_), .node_of = (node_of_)                     \
	};
TYPE(INCLUDE, CONF_LIST, "a list of file names", NULL, NULL)
TYPE(RECORDS, CONF_LIST, "a list of maps", NULL, NULL)
TYPE(PROVIDERS, CONF_MAP, "a map of providers", NULL, NULL)
TYPE(SLUGS, CONF_LIST, "a list of names", read_slugs, node_of_list)
TYPE(TEXTS, CONF_LIST, "a list of texts", read_texts, node_of_list)
TYPE(EVENTS, CONF_LIST, "a list of events", read_events, node_of_list)
TYPE(POINTERS, CONF_LIST, "a list of JSON pointers", read_pointers, node_of_list)
TYPE(URL_TEMPLATE, CONF_SCALAR, "a URL", read_url_template, node_of_template)
TYPE(TEMPLATES, CONF_MAP, "a map of texts", read_templates, node_of_map)
TYPE(HEADERS, CONF_MAP, "a map of texts", read_headers, node_of_map)
TYPE(RENAMES, CONF_MAP, "a map of texts", read_renames, node_of_map)
TYPE(CAPTURE, CONF_MAP, "a map of lists of JSON pointers", read_capture, node_of_capture)
