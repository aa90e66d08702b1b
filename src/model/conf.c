/*
 * conf - the snapshot's life: load, share, look up, free.
 *
 * A snapshot is either whole or not there: conf_load builds and checks it on the side and hands it out only
 * when no error was found. Nothing here may change one that was handed out.
 */
#include "model/conf.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/conf_build.h"

/* --- errors */

void conf_errors_fini(struct conf_errors *e)
{
	for (size_t i = 0; i < e->n; i++) {
		mem_free(e->v[i].file);
		mem_free(e->v[i].text);
	}
	mem_free(e->v);
	*e = (struct conf_errors){ .v = NULL, .n = 0 };
}

void conf_errors_print(const struct conf_errors *e, FILE *to)
{
	for (size_t i = 0; i < e->n; i++) {
		const struct conf_error *x = &e->v[i];
		if (x->line > 0)
			fprintf(to, "%s:%u:%u: %s\n", x->file, x->line, x->column, x->text);
		else
			fprintf(to, "%s: %s\n", x->file, x->text);
	}
}

struct ranked {
	struct conf_error error;
	size_t file; /* in the order of reading */
	size_t order;
};

static int compare_sizes(size_t a, size_t b)
{
	return a < b ? -1 : a > b;
}

static int by_place(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;
	int c = compare_sizes(x->file, y->file);

	if (c == 0)
		c = compare_sizes(x->error.line, y->error.line);
	if (c == 0)
		c = compare_sizes(x->error.column, y->error.column);
	return c != 0 ? c : compare_sizes(x->order, y->order);
}

static void sort_errors(struct conf_errors *e, const struct conf_build *b)
{
	/* When errors were cut, the last one says so and stays last. */
	size_t n = e->n < CONF_MAX_ERRORS ? e->n : e->n - 1;
	struct ranked *v = mem_calloc(n + 1, sizeof(*v));

	for (size_t i = 0; i < n; i++) {
		v[i] = (struct ranked){ .error = e->v[i], .order = i };
		while (v[i].file < b->n_sources && strcmp(b->sources[v[i].file].file, e->v[i].file) != 0)
			v[i].file++;
	}
	qsort(v, n, sizeof(*v), by_place);
	for (size_t i = 0; i < n; i++)
		e->v[i] = v[i].error;
	mem_free(v);
}

/* --- the snapshot */

int conf_load(const char *path, struct conf **out, struct conf_errors *errors)
{
	struct conf *c = mem_alloc(sizeof(*c));
	struct conf_build b = { .conf = c, .errors = errors };
	size_t before = errors->n;

	c->refs = 1;
	c->path = mem_strdup(path);
	conf_build_read(&b, path);
	if (b.sources[0].root != NULL && b.sources[0].root->kind == CONF_MAP)
		conf_check(&b);
	if (errors->n > before)
		sort_errors(errors, &b);
	conf_build_fini(&b);
	if (errors->n > before) {
		conf_unref(c);
		return ST_INVALID;
	}
	*out = c;
	return 0;
}

struct conf *conf_ref(struct conf *c)
{
	ALWAYS(c->refs > 0);
	c->refs++;
	return c;
}

static void webhook_fini(struct conf_webhook *w)
{
	mem_free(w->name);
	mem_free(w->application);
	mem_free(w->url);
	mem_free(w->secret_file);
	event_secret_fini(&w->secret);
	strlist_fini(&w->events);
	mem_free(w->file);
}

void conf_unref(struct conf *c)
{
	if (c == NULL)
		return;
	ALWAYS(c->refs > 0);
	if (--c->refs > 0)
		return;
	char *texts[] = { c->path, c->instance, c->state_dir, c->database.url, c->keyring_file,
		c->api.cert_file, c->api.key_file, c->dns.resolv_conf, c->delivery.ca_file };
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		mem_free(texts[i]);
	keyring_unref(c->keyring);
	for (size_t i = 0; i < c->n_webhooks; i++)
		webhook_fini(&c->webhooks[i]);
	for (size_t i = 0; i < c->n_providers; i++)
		provider_free(c->providers[i]);
	for (size_t i = 0; i < c->n_clients; i++)
		client_free(c->clients[i]);
	mem_free(c->webhooks);
	mem_free(c->providers);
	mem_free(c->clients);
	mem_free(c);
}

/* --- looking up */

static int key_against_provider(const void *key, const void *item)
{
	const struct provider *const *p = item;

	return strcmp(key, (*p)->key);
}

const struct provider *conf_provider(const struct conf *c, const char *key)
{
	struct provider **p = NULL;

	if (c->n_providers > 0)
		p = bsearch(key, c->providers, c->n_providers, sizeof(*c->providers), key_against_provider);
	return p != NULL ? *p : NULL;
}

struct client_key {
	const char *provider, *application;
};

static int key_against_client(const void *key, const void *item)
{
	const struct client_key *k = key;
	const struct client *const *x = item;
	int c = strcmp(k->provider, (*x)->provider);

	return c != 0 ? c : strcmp(k->application, (*x)->application);
}

static const struct client *find_client(const struct conf *c, const char *application, const char *provider)
{
	struct client_key key = { .provider = provider, .application = application };
	struct client **x = NULL;

	if (c->n_clients > 0)
		x = bsearch(&key, c->clients, c->n_clients, sizeof(*c->clients), key_against_client);
	return x != NULL ? *x : NULL;
}

const struct client *conf_client(const struct conf *c, const char *application, const char *provider)
{
	const struct client *own = find_client(c, application, provider);

	return own != NULL ? own : find_client(c, "*", provider);
}
