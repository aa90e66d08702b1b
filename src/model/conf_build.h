/*
 * conf_build - node trees of all files to one struct conf; conf_check - what only the whole can tell.
 *
 * Both report and go on, so that one run shows all mistakes; a conf with errors is filled as far as it goes and
 * good for nothing but to be freed.
 */
#ifndef REFRESHD_MODEL_CONF_BUILD_H
#define REFRESHD_MODEL_CONF_BUILD_H

#include <stdbool.h>
#include <stddef.h>

#include "model/conf.h"
#include "model/conf_yaml.h"

struct conf_source {
	char *file;
	char *real; /* resolved; tells whether two names are one file */
	struct conf_node *root; /* NULL: unreadable */
};

/* A webhook, provider or client with the node that it was read from. */
struct conf_record {
	void *record;
	const struct conf_node *node;
	const struct conf_node *key; /* of a provider; NULL in a list */
	size_t order; /* of reading */
};
struct conf_records {
	struct conf_record *v;
	size_t n;
};

struct conf_build {
	struct conf *conf;
	struct conf_errors *errors;
	struct conf_source *sources; /* the main file first */
	size_t n_sources;
	const struct conf_node **seen; /* by index into conf_options: where a root option is set */
	struct conf_records webhooks, providers, clients; /* the last two sorted as in struct conf; borrowed from it */
	bool incomplete; /* a file could not be read: what seems to be missing may be there */
};

/* Reads `path` and what it includes into b->conf and the arrays. */
void conf_build_read(struct conf_build *b, const char *path);
void conf_build_fini(struct conf_build *b); /* all but conf and errors */

/* Consistency over options, references, and the files that are named; opens secrets and keys into the conf. */
void conf_check(struct conf_build *b);

/* Where a root option stands; NULL: it is not set. */
const struct conf_node *conf_build_where(const struct conf_build *b, const char *path);

#endif
