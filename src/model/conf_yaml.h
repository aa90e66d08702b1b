/*
 * conf_yaml - YAML as a plain tree in which every node knows its place.
 *
 * The subset that a configuration needs: scalars, lists and maps with scalar keys. Anchors, aliases, tags,
 * directives, further documents, duplicate keys and anything but UTF-8 are refused, each with its place; a tree is
 * given all the same where one can be made of the rest, so that one run finds all mistakes.
 */
#ifndef REFRESHD_MODEL_CONF_YAML_H
#define REFRESHD_MODEL_CONF_YAML_H

#include <stddef.h>

#include "base/status.h"
#include "model/conf.h"

#define CONF_FILE_BYTES (1024 * 1024)
#define CONF_MAX_DEPTH 16
#define CONF_MAX_NODES 100000
#define CONF_MAX_ERRORS 1000 /* kept of one load; a last one says that there are more */

enum conf_kind { CONF_SCALAR, CONF_LIST, CONF_MAP, CONF_BAD /* refused and reported already */ };

struct conf_node {
	enum conf_kind kind;
	const char *file; /* borrowed: outlives the tree */
	unsigned line, column;
	char *text; /* of a scalar, NUL-terminated; without NUL inside */
	struct conf_node **keys; /* of a map: scalars */
	struct conf_node **values; /* of a map or a list */
	size_t n;
};

/*
 * 0 with *out, or ST_INVALID with at least one error more. *out is set whenever there is a tree, also with errors;
 * an empty file is an empty map. `file` is how the errors name it and is borrowed by every node.
 */
int conf_yaml_read(const char *file, struct conf_errors *errors, struct conf_node **out) MUST_USE;
int conf_yaml_parse(const char *file, const void *p, size_t n, struct conf_errors *errors,
	struct conf_node **out) MUST_USE;

struct conf_node *conf_node_new(enum conf_kind kind);
struct conf_node *conf_node_scalar(const char *text);
void conf_node_add(struct conf_node *to, const char *key, struct conf_node *value); /* owns value; key NULL in a list */
void conf_node_free(struct conf_node *n); /* NULL is fine */
struct conf_node *conf_node_get(const struct conf_node *map, const char *key); /* NULL: not there, or no map */

/* A text goes in without control bytes and as UTF-8, whatever was passed. */
void conf_error_add(struct conf_errors *e, const char *file, unsigned line, unsigned column, const char *fmt, ...)
	PRINTF_LIKE(5, 6);
void conf_error_at(struct conf_errors *e, const struct conf_node *n, const char *fmt, ...) PRINTF_LIKE(3, 4);

#endif
