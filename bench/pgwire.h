/*
 * pgwire - arrays of one dimension as Postgres' binary format has them. Room for all that is put in is the
 * caller's affair.
 */
#ifndef REFRESHD_BENCH_PGWIRE_H
#define REFRESHD_BENCH_PGWIRE_H

#include <arpa/inet.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INT8_OID 20
#define BYTEA_OID 17
#define ARRAY_HEAD_BYTES 20

struct array {
	char *data;
	size_t len;
};

static inline void put32(struct array *a, uint32_t v)
{
	v = htonl(v);
	memcpy(a->data + a->len, &v, 4);
	a->len += 4;
}

/* What was in it is forgotten; array_end() says how many came. */
static inline void array_begin(struct array *a, uint32_t type)
{
	a->len = 0;
	put32(a, 1); /* dimensions */
	put32(a, 0); /* without NULLs */
	put32(a, type);
	put32(a, 0);
	put32(a, 1); /* first index */
}

static inline void array_end(struct array *a, uint32_t n)
{
	n = htonl(n);
	memcpy(a->data + 12, &n, 4);
}

static inline void put_i64(struct array *a, int64_t v)
{
	put32(a, 8);
	put32(a, (uint32_t)((uint64_t)v >> 32));
	put32(a, (uint32_t)((uint64_t)v & 0xffffffffu));
}

static inline void put_bytes(struct array *a, const char *from, size_t n)
{
	put32(a, (uint32_t)n);
	memcpy(a->data + a->len, from, n);
	a->len += n;
}

static inline int64_t get_i64(const char *from)
{
	uint32_t half[2];
	memcpy(half, from, 8);
	return (int64_t)((uint64_t)ntohl(half[0]) << 32 | ntohl(half[1]));
}

#endif
