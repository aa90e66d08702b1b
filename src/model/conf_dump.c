/*
 * conf_dump - a snapshot as YAML again, and which options differ between two.
 *
 * Values become nodes by their types and nodes become text here, in one place, so that whatever is printed
 * reads back to the same. Secrets are in the snapshot, but no option's field holds one: they cannot be
 * printed.
 */
#include "model/conf.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/conf_type.h"

#define DUMP_BYTES ((size_t)64 * 1024 * 1024)

/* --- from a record to a tree */

/* The map at a path like "api.tls", made as needed; *last is the option's own name. */
static struct conf_node *section_of(struct conf_node *root, const char *path, const char **last)
{
	const char *dot = strchr(path, '.');

	if (dot == NULL) {
		*last = path;
		return root;
	}
	char *name = mem_strndup(path, (size_t)(dot - path));
	struct conf_node *section = conf_node_get(root, name);
	if (section == NULL) {
		section = conf_node_new(CONF_MAP);
		conf_node_add(root, name, section);
	}
	mem_free(name);
	return section_of(section, dot + 1, last);
}

static struct conf_node *tree_of_record(enum conf_scope scope, const void *record)
{
	struct conf_node *root = conf_node_new(CONF_MAP);

	for (size_t i = 0; i < conf_n_options; i++) {
		const struct conf_option *o = &conf_options[i];
		const char *name;
		if (o->scope != scope)
			continue;
		struct conf_node *value = conf_option_node(o, record);
		if (value == NULL)
			continue;
		struct conf_node *section = section_of(root, o->path, &name);
		conf_node_add(section, name, value);
	}
	return root;
}

static bool is_useless(const struct client *c, const char *key)
{
	return c->auth != CLIENT_AUTH_JWT && strcmp(key, "assertion_alg") == 0;
}

/* Without what a load would refuse as of no use with the client's way to authenticate. */
static struct conf_node *tree_of_client(const struct client *c)
{
	struct conf_node *all = tree_of_record(SCOPE_CLIENT, c), *kept = conf_node_new(CONF_MAP);

	for (size_t i = 0; i < all->n; i++) {
		if (is_useless(c, all->keys[i]->text))
			continue;
		conf_node_add(kept, all->keys[i]->text, all->values[i]);
		all->values[i] = NULL;
	}
	conf_node_free(all);
	return kept;
}

static struct conf_node *tree_of_conf(const struct conf *c)
{
	struct conf_node *root = tree_of_record(SCOPE_ROOT, c);
	struct conf_node *webhooks = conf_node_new(CONF_LIST), *providers = conf_node_new(CONF_MAP),
			 *clients = conf_node_new(CONF_LIST);

	for (size_t i = 0; i < c->n_webhooks; i++)
		conf_node_add(webhooks, NULL, tree_of_record(SCOPE_WEBHOOK, &c->webhooks[i]));
	for (size_t i = 0; i < c->n_providers; i++)
		conf_node_add(
			providers, c->providers[i]->key, tree_of_record(SCOPE_PROVIDER, c->providers[i]));
	for (size_t i = 0; i < c->n_clients; i++)
		conf_node_add(clients, NULL, tree_of_client(c->clients[i]));
	conf_node_add(root, "webhooks", webhooks);
	conf_node_add(root, "providers", providers);
	conf_node_add(root, "clients", clients);
	return root;
}

/* --- from a tree to text; the first failure sticks */

struct writer {
	struct buf *out;
	int rc;
};

static void put(struct writer *w, const char *s, size_t n)
{
	if (w->rc == 0)
		w->rc = buf_append(w->out, s, n);
}

static void puts_to(struct writer *w, const char *s)
{
	put(w, s, strlen(s));
}

static void indent(struct writer *w, unsigned level)
{
	for (unsigned i = 0; i < level; i++)
		put(w, "  ", 2);
}

/* Plain only where no reader could see anything but this text in it. */
static bool is_plain(const char *s)
{
	static const char chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+=&?";
	size_t n = strlen(s);

	if (n == 0 || strchr("-?=&", s[0]) != NULL)
		return false;
	for (size_t i = 0; i < n; i++) {
		bool colon = s[i] == ':' && i > 0 && i + 1 < n;
		if (!colon && strchr(chars, s[i]) == NULL)
			return false;
	}
	return true;
}

/* Characters that YAML or a terminal would not take as they are go by number. */
static bool needs_escape(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0x2028 || c == 0x2029 || c == 0xfeff ||
	       (c >= 0xfffe && c <= 0xffff);
}

static uint32_t code_point(const char *s, size_t n)
{
	static const uint8_t lead[] = { 0, 0x7f, 0x1f, 0x0f, 0x07 };
	uint32_t c = (uint8_t)s[0] & lead[n];

	for (size_t i = 1; i < n; i++)
		c = c << 6 | ((uint8_t)s[i] & 0x3f);
	return c;
}

static void put_scalar(struct writer *w, const char *s)
{
	size_t n = strlen(s), len;
	char escape[16];

	if (is_plain(s)) {
		put(w, s, n);
		return;
	}
	put(w, "\"", 1);
	for (size_t i = 0; i < n; i += len) {
		len = str_utf8_char(s + i, n - i);
		ALWAYS(len > 0);
		uint32_t c = code_point(s + i, len);
		if (c == '"' || c == '\\')
			put(w, "\\", 1);
		if (needs_escape(c))
			snprintf(escape, sizeof(escape), "\\u%04x", (unsigned)c);
		if (needs_escape(c))
			puts_to(w, escape);
		else
			put(w, s + i, len);
	}
	put(w, "\"", 1);
}

static void put_node(struct writer *w, const struct conf_node *n, unsigned level, bool in_item);

static bool is_flat_list(const struct conf_node *n)
{
	return n->kind == CONF_LIST && (n->n == 0 || n->values[0]->kind == CONF_SCALAR);
}

/* What stands behind "key:". */
static void put_value(struct writer *w, const struct conf_node *n, unsigned level)
{
	if (n->kind == CONF_SCALAR) {
		put(w, " ", 1);
		put_scalar(w, n->text);
		put(w, "\n", 1);
	} else if (is_flat_list(n)) {
		put(w, " [", 2);
		for (size_t i = 0; i < n->n; i++) {
			if (i > 0)
				put(w, ", ", 2);
			put_scalar(w, n->values[i]->text);
		}
		put(w, "]\n", 2);
	} else if (n->n == 0) {
		puts_to(w, " {}\n");
	} else {
		put(w, "\n", 1);
		put_node(w, n, level, false);
	}
}

static void put_node(struct writer *w, const struct conf_node *n, unsigned level, bool in_item)
{
	for (size_t i = 0; i < n->n; i++) {
		if (!in_item || i > 0)
			indent(w, level);
		if (n->kind == CONF_LIST) {
			put(w, "- ", 2);
			put_node(w, n->values[i], level + 1, true);
			continue;
		}
		put_scalar(w, n->keys[i]->text);
		put(w, ":", 1);
		put_value(w, n->values[i], level + 1);
	}
}

int conf_dump(const struct conf *c, struct buf *out)
{
	struct buf text = BUF_INIT(DUMP_BYTES);
	struct writer w = { .out = &text, .rc = 0 };
	struct conf_node *root = tree_of_conf(c);

	put_node(&w, root, 0, false);
	conf_node_free(root);
	if (w.rc == 0)
		w.rc = buf_append(out, buf_str(&text), text.len);
	buf_fini(&text);
	return w.rc;
}

/* --- what differs */

/* Only scalars ask for a restart: lists and maps are of records, which a reload swaps whole. */
static bool is_same(const struct conf_option *o, const struct conf *a, const struct conf *b)
{
	struct conf_node *x = conf_option_node(o, a), *y = conf_option_node(o, b);
	bool same = (x == NULL) == (y == NULL) && (x == NULL || strcmp(x->text, y->text) == 0);

	conf_node_free(x);
	conf_node_free(y);
	return same;
}

int conf_diff_restart(const struct conf *a, const struct conf *b, struct buf *out)
{
	size_t before = out->len;

	for (size_t i = 0; i < conf_n_options; i++) {
		const struct conf_option *o = &conf_options[i];
		if (o->scope != SCOPE_ROOT || o->apply != RESTART)
			continue;
		ALWAYS(o->type->kind == CONF_SCALAR);
		if (is_same(o, a, b))
			continue;
		int rc = buf_printf(out, "%s\n", o->path);
		if (rc < 0) {
			buf_truncate(out, before);
			return rc;
		}
	}
	return 0;
}
