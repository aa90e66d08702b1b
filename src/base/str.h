/*
 * str - strict parsing and formatting of the small things: numbers, durations, sizes, rates,
 * times, UUIDs, hex, percent-encoding.
 *
 * Strict means: the whole input or nothing, no leading white space, no sign or base prefix that was
 * not asked for, overflow is an error. Pure: no clock, no locale. Nothing here allocates unless it
 * says so.
 */
#ifndef REFRESHD_BASE_STR_H
#define REFRESHD_BASE_STR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

/* ST_SYNTAX for a malformed text, ST_RANGE for a number that does not fit. */
int str_parse_i64(const char *s, size_t n, int64_t *out) MUST_USE;	/* -?[0-9]+ */
int str_parse_u64(const char *s, size_t n, uint64_t *out) MUST_USE;	/* [0-9]+ */
int str_parse_bool(const char *s, size_t n, bool *out) MUST_USE;	/* yes|no|true|false|on|off */
/* 10us 250ms 90s 5m 2h 30d; "0" alone allowed; no mixing */
int str_parse_duration_us(const char *s, size_t n, int64_t *out) MUST_USE;
int str_parse_size(const char *s, size_t n, uint64_t *out) MUST_USE;	/* 512 64k 1M 2G (powers of 1024) */
int str_parse_rate(const char *s, size_t n, double *per_s) MUST_USE;	/* 10/s 600/m 1000/h 2.5/s */
int str_parse_decimal(const char *s, size_t n, double *out) MUST_USE;	/* 0.25, 1, 12.5; not negative, no exponent */

/* Shortest text that parses back to the same value, e.g. "5m", "250ms", "64k"; a negative duration has a sign. */
void str_format_duration(int64_t us, char out[32]);
void str_format_size(uint64_t bytes, char out[32]);

/*
 * Wall-clock times are int64_t microseconds since the Unix epoch, UTC. ST_RANGE for a date that does not
 * exist. A leap second (23:59:60 UTC, nowhere else) is read as the last microsecond before it. Digits of a
 * fraction beyond the sixth are dropped. A two-digit year (RFC 850 form) is one of 1970..2069; the name of
 * the day must fit the date.
 */
int str_parse_rfc3339(const char *s, size_t n, int64_t *wall_us) MUST_USE; /* any offset, optional fraction, 1970..9999 */
#define STR_ISO_BYTES 32 /* every int64_t fits: a year beyond 0000..9999 gets a sign and six digits */
void str_format_iso_ms(int64_t wall_us, char out[STR_ISO_BYTES]); /* 2026-11-23T10:00:00.000Z */
int str_parse_http_date(const char *s, size_t n, int64_t *wall_us) MUST_USE; /* RFC 9110 5.6.7, all three forms */

/* 16 raw bytes <-> 8-4-4-4-12 lower-case hex (any case is read). */
#define STR_UUID_BYTES 37
int str_parse_uuid(const char *s, size_t n, uint8_t out[16]) MUST_USE;
void str_format_uuid(const uint8_t id[16], char out[STR_UUID_BYTES]);

int str_hex_append(struct buf *out, const void *p, size_t n) MUST_USE; /* lower case */
int str_hex_parse(const char *s, size_t n, uint8_t *out, size_t out_len) MUST_USE; /* exactly out_len bytes */

/* application/x-www-form-urlencoded (space becomes +), RFC 6749 appendix B. */
int str_form_encode(struct buf *out, const char *p, size_t n) MUST_USE;
/* RFC 3986 percent-encoding of everything but unreserved characters (space becomes %20). */
int str_percent_encode(struct buf *out, const char *p, size_t n) MUST_USE;
/* Percent-decoding; `plus` also turns + into a space. ST_SYNTAX on a broken escape. NUL bytes are refused. */
int str_percent_decode(struct buf *out, const char *p, size_t n, bool plus) MUST_USE;

size_t str_utf8_char(const void *p, size_t n);	/* bytes of the UTF-8 character at p, 0 when it is not valid */
bool str_is_utf8(const void *p, size_t n);	/* RFC 3629: no surrogates, no overlong forms */
size_t str_json_run(const void *p, size_t n); /* bytes from p on that a JSON string holds as they are: no control, quote, backslash */
bool str_is_vschar(const void *p, size_t n);	/* 1*VSCHAR, RFC 6749 A.12: %x20-7E, at least one */
bool str_has_ctl(const void *p, size_t n);	/* any byte < 0x20 or 0x7f */
/* FNV-1a of what stands before the end of s, going on from h, which is STR_HASH at first. For tables in memory that nobody aims at. */
#define STR_HASH UINT32_C(2166136261)
uint32_t str_hash(uint32_t h, const char *s);
bool str_eq_nocase(const char *a, size_t an, const char *b); /* ASCII only */

#endif
