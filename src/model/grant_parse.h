/*
 * grant_parse - a token endpoint's reply as a tree, strictly read and wiped after use.
 *
 * Private to grant_reply.c and its tests.
 */
#ifndef REFRESHD_MODEL_GRANT_PARSE_H
#define REFRESHD_MODEL_GRANT_PARSE_H

#include <json-c/json.h>
#include <stddef.h>

#define GRANT_PARSE_MAX ((size_t)1024 * 1024)

/* JSON (one object or array), or a form when the content type allows it: then a flat object of strings. NULL:
 * unreadable, which is more than JSON's grammar says: a name given twice, a byte that is no UTF-8, a NUL, a
 * number beyond a double, more than 32 levels, anything behind the end. Give it back to grant_parse_free
 * only. */
struct json_object *grant_parse(const void *body, size_t n, const char *content_type);
struct json_object *grant_parse_json(const char *s, size_t n);
void grant_parse_free(struct json_object *root); /* wipes every string; NULL is fine */

#endif
