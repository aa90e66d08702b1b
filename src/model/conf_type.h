/*
 * conf_type - the kinds of values an option can have: read from a node, turned back into one.
 *
 * conf_option is one row of options.def. A type's `read` reports what is wrong at the node and then leaves the field
 * as it was; `node_of` gives a tree that `read` turns into the same value again, or NULL when there is none.
 */
#ifndef REFRESHD_MODEL_CONF_TYPE_H
#define REFRESHD_MODEL_CONF_TYPE_H

#include <stdbool.h>
#include <stddef.h>

#include "model/conf.h"
#include "model/conf_yaml.h"

enum conf_scope { SCOPE_ROOT, SCOPE_WEBHOOK, SCOPE_PROVIDER, SCOPE_CLIENT };
enum conf_apply { RELOAD, RESTART };
enum conf_show { SHOWN, HIDDEN }; /* in the sample: as it stands, or commented out */

struct conf_word {
	const char *word;
	int value;
};

struct conf_option {
	enum conf_scope scope;
	const char *path; /* "database.url"; inside a record "response.scope" */
	const struct conf_type *type;
	size_t offset, size;	       /* of the field; size 0: none, conf_build reads it itself */
	const struct conf_word *words; /* of a choice: ends with a NULL word */
	const char *default_text;      /* NULL: none; conf_required: there must be one */
	const char *min, *max;	       /* in the type's own notation; NULL: none */
	const char *unit;	       /* what a bare number counts; NULL: nothing */
	enum conf_apply apply;
	enum conf_show show;
	const char *example; /* for the sample, as YAML; NULL: the default */
	const char *doc;     /* whole sentences */
};

struct conf_type {
	const char *name; /* as the manual calls it */
	enum conf_kind kind;
	void (*read)(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, void *field);
	struct conf_node *(*node_of)(const struct conf_option *o, const void *field);
};

/* The table, and the default text of options that have none because they must be given. */
extern const struct conf_option conf_options[];
extern const size_t conf_n_options;
extern const char conf_required[];

/* Check the node's kind and read it. */
void conf_option_read(const struct conf_option *o, struct conf_errors *e, const struct conf_node *n, void *record);
/* Put the default into the field; does nothing without one. */
void conf_option_default(const struct conf_option *o, void *record);
struct conf_node *conf_option_node(const struct conf_option *o, const void *record);

/* The candidate that `word` was probably meant to be, or NULL. */
const char *conf_near(const char *word, const char *const *candidates, size_t n);
bool conf_is_slug(const char *s); /* [a-z0-9][a-z0-9_-]{0,63} */

#define CONF_TYPE_LIST(X)                                                                                          \
	X(INCLUDE) X(RECORDS) X(PROVIDERS) X(TEXT) X(WORD) X(PATH) X(URL) X(DB_URL) X(LISTEN) X(BOOL) X(COUNT) X(SIZE) \
	X(DURATION) X(SHARE) X(RATE) X(CHOICE) X(SLUGS) X(TEXTS) X(EVENTS) X(POINTERS) X(URL_TEMPLATE) X(TEMPLATES)   \
	X(HEADERS) X(RENAMES) X(CAPTURE)
#define X(id) extern const struct conf_type conf_type_##id;
CONF_TYPE_LIST(X)
#undef X

#endif
