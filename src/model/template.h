/*
 * template - text with {settings.x}, {metadata.x} and {capture.x} in it, for URLs, parameters and headers.
 *
 * A value that goes into a URL's host or path may only hold [A-Za-z0-9._-] (no '/', '@', ':', '?', '#'), or a
 * customer's setting could send our client secret elsewhere. A missing value is ST_NOT_FOUND ("needs
 * settings"), not a failed refresh. "{{" and "}}" are literal braces. Pure.
 */
#ifndef REFRESHD_MODEL_TEMPLATE_H
#define REFRESHD_MODEL_TEMPLATE_H

#include <json-c/json.h>
#include <stdbool.h>

#include "base/buf.h"
#include "base/status.h"

struct template;

struct template_vars { /* JSON objects, or NULL; borrowed */
	struct json_object *settings, *metadata, *capture;
};

/* ST_SYNTAX for an unknown source, a bad name, an open brace. */
int template_parse(const char *text, struct template **out, struct fault *f) MUST_USE;
void template_free(struct template *t);
const char *template_text(const struct template *t); /* as written */
bool template_is_constant(const struct template *t);
/* The i-th variable's name, borrowed, with *source "settings", "metadata" or "capture"; NULL past the last one. */
const char *template_variable(const struct template *t, size_t i, const char **source);
/* Appends the text with `stand_in` for every variable: lets a URL's form be checked before there are values. ST_FULL. */
int template_outline(const struct template *t, const char *stand_in, struct buf *out) MUST_USE;

enum template_use { TEMPLATE_URL, TEMPLATE_VALUE };
/* Appends. ST_NOT_FOUND: the fault names the missing variable. ST_INVALID: a value has a character that is not allowed
 * there (the value itself is not repeated); in a URL also a dot at either end or two in a row. TEMPLATE_VALUE refuses
 * control bytes only. Strings, integers and booleans serve as values; an empty string counts as missing. ST_FULL. */
int template_expand(const struct template *t, const struct template_vars *v, enum template_use use, struct buf *out, struct fault *f) MUST_USE;

#endif
