/*
 * base64 - RFC 4648 encodings; strict on the way in.
 */
#ifndef REFRESHD_BASE_BASE64_H
#define REFRESHD_BASE_BASE64_H

#include <stddef.h>

#include "base/buf.h"

/* Decoding: ST_SYNTAX on anything odd (foreign bytes, wrong padding, set trailing bits); `out` unchanged then. */
int base64_encode(struct buf *out, const void *p, size_t n) MUST_USE;	    /* RFC 4648 4, padded */
int base64url_encode(struct buf *out, const void *p, size_t n) MUST_USE;    /* RFC 4648 5, no padding */
int base64_decode(struct buf *out, const char *s, size_t n) MUST_USE;	    /* strict: padding required, no white space */
int base64url_decode(struct buf *out, const char *s, size_t n) MUST_USE;    /* padding optional */

#endif
