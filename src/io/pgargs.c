/*
 * pgargs - bind parameters and results in Postgres' binary wire format.
 *
 * All values of one parameter list lie in one growing block and arrays are built in place, because the hot
 * path binds arrays of hundreds of sealed tokens: one allocation that doubles, none per value. The old
 * block is wiped whenever it moves. Must not interpret what it carries; the server does.
 */
#include "io/pgargs.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#include "base/bytes.h"
#include "base/mem.h"

#define ARGS_MAGIC 0x50474152u
#define FIRST_BLOCK 512u
#define GROWTH 4u /* each step copies and wipes: few steps to the size of a batch */
#define BLOCK_MAX (1024u * 1024 * 1024 - 64 * 1024) /* the server refuses messages of 1 GiB */
#define PARAMS_MAX 65535u                           /* a 16-bit count on the wire */

/* Microseconds from the Unix epoch to 2000-01-01, where the server counts from. */
#define PG_EPOCH_US INT64_C(946684800000000)

enum {
	OID_BOOL = 16,
	OID_BYTEA = 17,
	OID_NAME = 19,
	OID_INT8 = 20,
	OID_INT2 = 21,
	OID_INT4 = 23,
	OID_TEXT = 25,
	OID_JSON = 114,
	OID_FLOAT8 = 701,
	OID_VARCHAR = 1043,
	OID_TIMESTAMPTZ = 1184,
	OID_UUID = 2950,
	OID_JSONB = 3802
};

static const struct {
	unsigned oid;
	unsigned array_oid;
} types[] = {
	[PGT_BOOL] = {OID_BOOL, 1000},
	[PGT_I16] = {OID_INT2, 1005},
	[PGT_I32] = {OID_INT4, 1007},
	[PGT_I64] = {OID_INT8, 1016},
	[PGT_F64] = {OID_FLOAT8, 1022},
	[PGT_TEXT] = {OID_TEXT, 1009},
	[PGT_BYTES] = {OID_BYTEA, 1001},
	[PGT_UUID] = {OID_UUID, 2951},
	[PGT_TIME] = {OID_TIMESTAMPTZ, 1185},
	[PGT_JSONB] = {OID_JSONB, 3807},
};
#define N_TYPES (sizeof(types) / sizeof(types[0]))

struct pgargs {
	unsigned magic;
	uint8_t *data;
	size_t len;
	size_t used; /* the most that len ever was: what must be wiped */
	size_t cap;

	unsigned n;
	unsigned room;
	unsigned *oids;
	const char **values; /* into data; NULL: SQL null */
	int *lengths;
	int *formats;

	bool in_array;
	enum pgtype array_type;
	size_t array_start;
	uint32_t array_count;
	bool array_nulls;
};

struct pgargs *pgargs_new(void)
{
	struct pgargs *a = mem_alloc(sizeof(*a));
	a->magic = ARGS_MAGIC;
	a->cap = FIRST_BLOCK;
	a->data = mem_realloc(NULL, a->cap, 1);
	return a;
}

void pgargs_free(struct pgargs *a)
{
	if (a == NULL)
		return;
	MAGIC_CHECK(a, ARGS_MAGIC);
	mem_wipe(a->data, a->used);
	mem_free(a->data);
	mem_free(a->oids);
	mem_free(a->values);
	mem_free(a->lengths);
	mem_free(a->formats);
	a->magic = 0;
	mem_free(a);
}

static void grow_block(struct pgargs *a, size_t n)
{
	ALWAYS(n <= BLOCK_MAX && a->len <= BLOCK_MAX - n);
	size_t cap = a->cap;
	while (cap - a->len < n)
		cap *= GROWTH;
	uint8_t *data = mem_realloc(NULL, cap, 1);
	memcpy(data, a->data, a->len);
	for (unsigned i = 0; i < a->n; i++)
		if (a->values[i] != NULL)
			a->values[i] = (const char *)data + ((const uint8_t *)a->values[i] - a->data);
	mem_wipe(a->data, a->used);
	mem_free(a->data);
	a->data = data;
	a->cap = cap;
}

static uint8_t *room_for(struct pgargs *a, size_t n)
{
	if (a->cap - a->len < n)
		grow_block(a, n);
	uint8_t *p = a->data + a->len;
	a->len += n;
	if (a->used < a->len)
		a->used = a->len;
	return p;
}

static void add_param(struct pgargs *a, unsigned oid, const uint8_t *value, size_t n)
{
	ALWAYS(a->n < PARAMS_MAX);
	if (a->n == a->room) {
		a->room = a->room ? a->room * 2 : 32;
		a->oids = mem_realloc(a->oids, a->room, sizeof(*a->oids));
		a->values = mem_realloc(a->values, a->room, sizeof(*a->values));
		a->lengths = mem_realloc(a->lengths, a->room, sizeof(*a->lengths));
		a->formats = mem_realloc(a->formats, a->room, sizeof(*a->formats));
	}
	a->oids[a->n] = oid;
	a->values[a->n] = (const char *)value;
	a->lengths[a->n] = (int)n;
	a->formats[a->n] = 1;
	a->n++;
}

/* Room for the n bytes of a value of type t, as the next parameter or the next array element. */
static uint8_t *add_value(struct pgargs *a, enum pgtype t, size_t n)
{
	MAGIC_CHECK(a, ARGS_MAGIC);
	ALWAYS(n <= BLOCK_MAX);
	if (a->in_array) {
		ALWAYS(a->array_type == t);
		uint8_t *p = room_for(a, 4 + n);
		bytes_put_be32(p, (uint32_t)n);
		a->array_count++;
		return p + 4;
	}
	uint8_t *p = room_for(a, n);
	add_param(a, types[t].oid, p, n);
	return p;
}

void pgargs_null(struct pgargs *a, enum pgtype t)
{
	MAGIC_CHECK(a, ARGS_MAGIC);
	ALWAYS((unsigned)t < N_TYPES);
	if (!a->in_array) {
		add_param(a, types[t].oid, NULL, 0);
		return;
	}
	ALWAYS(a->array_type == t);
	bytes_put_be32(room_for(a, 4), UINT32_MAX);
	a->array_count++;
	a->array_nulls = true;
}

void pgargs_bool(struct pgargs *a, bool v)
{
	*add_value(a, PGT_BOOL, 1) = v ? 1 : 0;
}

void pgargs_i16(struct pgargs *a, int16_t v)
{
	uint8_t *p = add_value(a, PGT_I16, 2);
	p[0] = (uint8_t)((uint16_t)v >> 8);
	p[1] = (uint8_t)v;
}

void pgargs_i32(struct pgargs *a, int32_t v)
{
	bytes_put_be32(add_value(a, PGT_I32, 4), (uint32_t)v);
}

void pgargs_i64(struct pgargs *a, int64_t v)
{
	bytes_put_be64(add_value(a, PGT_I64, 8), (uint64_t)v);
}

void pgargs_f64(struct pgargs *a, double v)
{
	uint64_t bits;
	memcpy(&bits, &v, sizeof(bits));
	bytes_put_be64(add_value(a, PGT_F64, 8), bits);
}

void pgargs_textn(struct pgargs *a, const char *s, size_t n)
{
	if (s == NULL) {
		pgargs_null(a, PGT_TEXT);
		return;
	}
	memcpy(add_value(a, PGT_TEXT, n), s, n);
}

void pgargs_text(struct pgargs *a, const char *s)
{
	pgargs_textn(a, s, s != NULL ? strlen(s) : 0);
}

void pgargs_bytes(struct pgargs *a, const void *p, size_t n)
{
	if (p == NULL) {
		pgargs_null(a, PGT_BYTES);
		return;
	}
	memcpy(add_value(a, PGT_BYTES, n), p, n);
}

void pgargs_uuid(struct pgargs *a, const uint8_t v[16])
{
	memcpy(add_value(a, PGT_UUID, 16), v, 16);
}

void pgargs_time(struct pgargs *a, int64_t wall_us)
{
	int64_t v;
	if (wall_us == INT64_MAX)
		v = INT64_MAX;
	else if (__builtin_sub_overflow(wall_us, PG_EPOCH_US, &v))
		v = INT64_MIN;
	bytes_put_be64(add_value(a, PGT_TIME, 8), (uint64_t)v);
}

void pgargs_time_or_null(struct pgargs *a, int64_t wall_us)
{
	if (wall_us == 0)
		pgargs_null(a, PGT_TIME);
	else
		pgargs_time(a, wall_us);
}

void pgargs_buf(struct pgargs *a, const struct buf *b)
{
	if (b == NULL || b->len == 0)
		pgargs_null(a, PGT_BYTES);
	else
		pgargs_bytes(a, b->data, b->len);
}

void pgargs_jsonb(struct pgargs *a, const char *json)
{
	if (json == NULL) {
		pgargs_null(a, PGT_JSONB);
		return;
	}
	size_t n = strlen(json);
	uint8_t *p = add_value(a, PGT_JSONB, n + 1);
	p[0] = 1; /* jsonb's only wire version */
	memcpy(p + 1, json, n);
}

/* Array on the wire: dimensions, has-nulls, element oid, then per dimension its length and lower bound. */
#define ARRAY_HEAD 20u
#define ARRAY_HEAD_EMPTY 12u

void pgargs_array(struct pgargs *a, enum pgtype t)
{
	MAGIC_CHECK(a, ARGS_MAGIC);
	ALWAYS(!a->in_array);
	ALWAYS((unsigned)t < N_TYPES);
	a->array_start = a->len;
	a->array_type = t;
	a->array_count = 0;
	a->array_nulls = false;
	(void)room_for(a, ARRAY_HEAD);
	a->in_array = true;
}

void pgargs_array_end(struct pgargs *a)
{
	MAGIC_CHECK(a, ARGS_MAGIC);
	ALWAYS(a->in_array);
	a->in_array = false;
	uint8_t *head = a->data + a->array_start;
	bytes_put_be32(head, a->array_count > 0 ? 1 : 0);
	bytes_put_be32(head + 4, a->array_nulls ? 1 : 0);
	bytes_put_be32(head + 8, types[a->array_type].oid);
	if (a->array_count == 0) {
		a->len = a->array_start + ARRAY_HEAD_EMPTY;
	} else {
		bytes_put_be32(head + 12, a->array_count);
		bytes_put_be32(head + 16, 1);
	}
	add_param(a, types[a->array_type].array_oid, head, a->len - a->array_start);
}

unsigned pgargs_count(const struct pgargs *a)
{
	MAGIC_CHECK(a, ARGS_MAGIC);
	return a->n;
}

void pgargs_vectors(const struct pgargs *a, const unsigned **oids, const char *const **values,
	const int **lengths, const int **formats)
{
	MAGIC_CHECK(a, ARGS_MAGIC);
	ALWAYS(!a->in_array);
	*oids = a->oids;
	*values = (const char *const *)a->values;
	*lengths = a->lengths;
	*formats = a->formats;
}

/* ---- results */

/* The bytes of one value after checking that it is there, not null, binary, and n bytes long (n < 0: any). */
static const uint8_t *value_of(const struct pgresult *r, int row, int col, int n)
{
	ALWAYS(row >= 0 && row < PQntuples(r->res));
	ALWAYS(col >= 0 && col < PQnfields(r->res));
	ALWAYS(PQfformat(r->res, col) == 1);
	ALWAYS(!PQgetisnull(r->res, row, col));
	ALWAYS(n < 0 || PQgetlength(r->res, row, col) == n);
	return (const uint8_t *)PQgetvalue(r->res, row, col);
}

static void expect_type(const struct pgresult *r, int col, Oid oid)
{
	ALWAYS(col >= 0 && col < PQnfields(r->res));
	ALWAYS(PQftype(r->res, col) == oid);
}

static uint64_t get_be(const uint8_t *p, int n)
{
	uint64_t v = 0;
	for (int i = 0; i < n; i++)
		v = v << 8 | p[i];
	return v;
}

int pgresult_rows(const struct pgresult *r)
{
	return PQntuples(r->res);
}

int64_t pgresult_affected(const struct pgresult *r)
{
	PGresult *res = r->res; /* libpq takes it unqualified, and only reads */
	return strtoll(PQcmdTuples(res), NULL, 10);
}

bool pgresult_null(const struct pgresult *r, int row, int col)
{
	ALWAYS(row >= 0 && row < PQntuples(r->res));
	ALWAYS(col >= 0 && col < PQnfields(r->res));
	return PQgetisnull(r->res, row, col) != 0;
}

bool pgresult_bool(const struct pgresult *r, int row, int col)
{
	expect_type(r, col, OID_BOOL);
	return value_of(r, row, col, 1)[0] != 0;
}

int64_t pgresult_int(const struct pgresult *r, int row, int col)
{
	ALWAYS(col >= 0 && col < PQnfields(r->res));
	switch (PQftype(r->res, col)) {
	case OID_INT2:
		return (int16_t)get_be(value_of(r, row, col, 2), 2);
	case OID_INT4:
		return (int32_t)get_be(value_of(r, row, col, 4), 4);
	case OID_INT8:
		return (int64_t)get_be(value_of(r, row, col, 8), 8);
	default:
		always_failed("column is an integer", __FILE__, __LINE__, __func__);
	}
}

double pgresult_f64(const struct pgresult *r, int row, int col)
{
	expect_type(r, col, OID_FLOAT8);
	uint64_t bits = get_be(value_of(r, row, col, 8), 8);
	double v;
	memcpy(&v, &bits, sizeof(v));
	return v;
}

const char *pgresult_text(const struct pgresult *r, int row, int col, size_t *n)
{
	ALWAYS(col >= 0 && col < PQnfields(r->res));
	const char *s = (const char *)value_of(r, row, col, -1);
	size_t len = (size_t)PQgetlength(r->res, row, col);
	switch (PQftype(r->res, col)) {
	case OID_TEXT:
	case OID_VARCHAR:
	case OID_NAME:
	case OID_JSON:
		break;
	case OID_JSONB:
		ALWAYS(len >= 1);
		s++;
		len--;
		break;
	default:
		always_failed("column is a text", __FILE__, __LINE__, __func__);
	}
	if (n != NULL)
		*n = len;
	return s;
}

const void *pgresult_bytes(const struct pgresult *r, int row, int col, size_t *n)
{
	expect_type(r, col, OID_BYTEA);
	const void *p = value_of(r, row, col, -1);
	*n = (size_t)PQgetlength(r->res, row, col);
	return p;
}

const uint8_t *pgresult_uuid(const struct pgresult *r, int row, int col)
{
	expect_type(r, col, OID_UUID);
	return value_of(r, row, col, 16);
}

int64_t pgresult_time(const struct pgresult *r, int row, int col)
{
	expect_type(r, col, OID_TIMESTAMPTZ);
	int64_t v = (int64_t)get_be(value_of(r, row, col, 8), 8);
	if (v == INT64_MAX || v == INT64_MIN)
		return v;
	int64_t wall_us;
	if (__builtin_add_overflow(v, PG_EPOCH_US, &wall_us))
		return INT64_MAX - 1; /* the last 30 years that the server knows and we cannot count */
	return wall_us;
}

int64_t pgresult_time_or_0(const struct pgresult *r, int row, int col)
{
	return pgresult_null(r, row, col) ? 0 : pgresult_time(r, row, col);
}

const char *pgresult_text_or_null(const struct pgresult *r, int row, int col)
{
	return pgresult_null(r, row, col) ? NULL : pgresult_text(r, row, col, NULL);
}

const void *pgresult_bytes_or_null(const struct pgresult *r, int row, int col, size_t *n)
{
	*n = 0;
	return pgresult_null(r, row, col) ? NULL : pgresult_bytes(r, row, col, n);
}
