/*
 * jsonw - writes JSON as JSON.stringify would: compact, raw UTF-8, no "\/".
 *
 * Webhook signatures need one exact byte sequence, and the log and the control program want the same
 * escaping; json-c writes "\/" and its own spacing. Keys come out in the order they are written: whoever
 * signs writes them sorted. Parsing stays json-c's. Errors stick: check jsonw_end once.
 */
#ifndef REFRESHD_BASE_JSONW_H
#define REFRESHD_BASE_JSONW_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

struct jsonw {
	struct buf *out; /* borrowed */
	int error;	 /* first failure, or 0 */
	unsigned depth;
	bool comma;
	size_t start; /* length of out at jsonw_init */
};

void jsonw_init(struct jsonw *w, struct buf *out);
/*
 * 0, ST_FULL (out is cut back to what it held at jsonw_init), or ST_INVALID for text that was not UTF-8
 * (whole JSON, with U+FFFD for every bad byte).
 */
int jsonw_end(struct jsonw *w) MUST_USE;
void jsonw_object(struct jsonw *w, const char *key); /* key NULL inside arrays and at the top */
void jsonw_object_end(struct jsonw *w);
void jsonw_array(struct jsonw *w, const char *key);
void jsonw_array_end(struct jsonw *w);
void jsonw_str(struct jsonw *w, const char *key, const char *s); /* NULL writes null */
void jsonw_strn(struct jsonw *w, const char *key, const char *s, size_t n);
void jsonw_int(struct jsonw *w, const char *key, int64_t v);
/* Shortest round-trip form in ECMAScript's notation; NaN and infinity write null. */
void jsonw_double(struct jsonw *w, const char *key, double v);
void jsonw_bool(struct jsonw *w, const char *key, bool v);
void jsonw_null(struct jsonw *w, const char *key);
void jsonw_raw(struct jsonw *w, const char *key, const char *json, size_t n); /* already JSON */

#endif
