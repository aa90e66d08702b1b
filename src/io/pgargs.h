/*
 * pgargs - bind parameters and results in Postgres' binary format, arrays included.
 *
 * Every value goes to the server as a parameter, none as SQL text. Times are int64_t microseconds of the
 * Unix epoch on our side. A result accessor on NULL or on a column of another type is a bug of ours and
 * asserts; ask pgresult_null first where NULL is possible.
 */
#ifndef REFRESHD_IO_PGARGS_H
#define REFRESHD_IO_PGARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

struct pg_result; /* libpq's PGresult */

struct pgstmt {
	const char *name; /* unique over the program; the name of the prepared statement */
	const char *sql;
};

enum pgtype { PGT_BOOL, PGT_I16, PGT_I32, PGT_I64, PGT_F64, PGT_TEXT, PGT_BYTES, PGT_UUID, PGT_TIME, PGT_JSONB };

struct pgargs; /* heap object; wiped on free, because sealed or masked bytes are still nobody's business */
struct pgargs *pgargs_new(void);
void pgargs_free(struct pgargs *a);
void pgargs_null(struct pgargs *a, enum pgtype t);
void pgargs_bool(struct pgargs *a, bool v);
void pgargs_i16(struct pgargs *a, int16_t v);
void pgargs_i32(struct pgargs *a, int32_t v);
void pgargs_i64(struct pgargs *a, int64_t v);
void pgargs_f64(struct pgargs *a, double v);
void pgargs_text(struct pgargs *a, const char *s); /* NULL: SQL null */
void pgargs_textn(struct pgargs *a, const char *s, size_t n);
void pgargs_bytes(struct pgargs *a, const void *p, size_t n); /* p NULL: SQL null */
void pgargs_uuid(struct pgargs *a, const uint8_t v[16]);
void pgargs_time(struct pgargs *a, int64_t wall_us); /* INT64_MAX: infinity */
void pgargs_jsonb(struct pgargs *a, const char *json);
void pgargs_time_or_null(struct pgargs *a, int64_t wall_us); /* 0: SQL null */
void pgargs_buf(struct pgargs *a, const struct buf *b);	     /* NULL or empty: SQL null */

/* One-dimensional arrays: begin, then exactly one item call per element (null included), then end. */
void pgargs_array(struct pgargs *a, enum pgtype t);
void pgargs_array_end(struct pgargs *a);
/* Inside an array the plain calls above add an element of the array's type. */

/* A column of the `n_` elements of `v_` as an array: the rest runs for each of them, as `x`, and adds one item. */
#define PGARGS_COLUMN(a_, type_, v_, n_, ...)                \
	do {                                                 \
		pgargs_array((a_), (type_));                 \
		for (size_t i_ = 0; i_ < (n_); i_++) {       \
			__typeof__(&(v_)[0]) x = &(v_)[i_];  \
			__VA_ARGS__;                         \
		}                                            \
		pgargs_array_end(a_);                        \
	} while (0)

unsigned pgargs_count(const struct pgargs *a);
/* For io/: the vectors that libpq wants; valid until the next change. Types are real type oids. */
void pgargs_vectors(const struct pgargs *a, const unsigned **oids, const char *const **values, const int **lengths, const int **formats);

struct pgresult {
	struct pg_result *res;
};
int pgresult_rows(const struct pgresult *r);
int64_t pgresult_affected(const struct pgresult *r);
bool pgresult_null(const struct pgresult *r, int row, int col);
bool pgresult_bool(const struct pgresult *r, int row, int col);
int64_t pgresult_int(const struct pgresult *r, int row, int col); /* int2, int4 or int8 */
double pgresult_f64(const struct pgresult *r, int row, int col);
const char *pgresult_text(const struct pgresult *r, int row, int col, size_t *n); /* text, varchar, name, json, jsonb (without its version byte); n may be NULL */
const void *pgresult_bytes(const struct pgresult *r, int row, int col, size_t *n);
const uint8_t *pgresult_uuid(const struct pgresult *r, int row, int col);
int64_t pgresult_time(const struct pgresult *r, int row, int col); /* infinity: INT64_MAX, -infinity: INT64_MIN */
/* The same where NULL is possible: 0, NULL, and NULL with *n 0. */
int64_t pgresult_time_or_0(const struct pgresult *r, int row, int col);
const char *pgresult_text_or_null(const struct pgresult *r, int row, int col);
const void *pgresult_bytes_or_null(const struct pgresult *r, int row, int col, size_t *n);

#endif
