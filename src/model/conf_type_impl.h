/*
 * conf_type_impl - what conf_type.c and conf_type_list.c share; for nobody else but conf_build.
 */
#ifndef REFRESHD_MODEL_CONF_TYPE_IMPL_H
#define REFRESHD_MODEL_CONF_TYPE_IMPL_H

#include <stdbool.h>
#include <stdint.h>

#include "model/conf_type.h"

/* Is the node of that kind? Reports it if not. */
bool conf_expect(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, enum conf_kind kind);
bool conf_count_fits(const struct conf_option *o, uint64_t n);
/* Length and control characters of a scalar; reports. */
bool conf_text_fits(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n);
bool conf_is_word(const char *s); /* letters, digits, "._-"; the first a letter or digit */
/* Appends the text with ${NAME} replaced from the environment; reports. */
bool conf_expand_path(struct conf_errors *e, const struct conf_option *o, const struct conf_node *n, struct buf *out);
char *conf_folder_of(const char *file); /* owned by the caller */

#endif
