/*
 * grant_value - numbers, spans and moments in the many shapes that token endpoints write them.
 *
 * Private to grant_reply.c. NULL stands for a value that is absent or null.
 */
#ifndef REFRESHD_MODEL_GRANT_VALUE_H
#define REFRESHD_MODEL_GRANT_VALUE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "model/provider.h"

/* An integer, a float, or a decimal number as text. */
bool grant_value_number(struct json_object *o, double *out);
/* A span in microseconds; 0 for what is absent, zero, negative or absurd (over a hundred years). */
int64_t grant_value_span_us(struct json_object *o, enum time_unit unit);
/* A moment as wall-clock microseconds: ISO 8601, or Unix seconds or milliseconds by size. 0 when it is none,
 * or not after `after`. */
int64_t grant_value_moment_us(struct json_object *o, int64_t after);

#endif
