/*
 * store_call - one way to send a transaction whose outcome goes to somebody's callback. For store_*.c.
 *
 * A caller's function and argument wait in a heap object of the sender's own type, so that every callback keeps its own signature.
 */
#ifndef REFRESHD_SERVICE_STORE_CALL_H
#define REFRESHD_SERVICE_STORE_CALL_H

#include "service/store.h"

/* As store_send. fn gets a copy of the `size` bytes at `call` and frees it (mem_free). */
int store_send_call(struct store *s, struct pgtx *t, int64_t wait_us, pgtx_fn *fn, const void *call, size_t size) MUST_USE;
/* A transaction of one statement. */
int store_send_stmt(struct store *s, const struct pgstmt *stmt, struct pgargs *a, int64_t wait_us, pgtx_fn *fn, const void *call,
	size_t size) MUST_USE;
/* The last two arguments of both. */
#define STORE_CALL(type_, ...) &(struct type_){ __VA_ARGS__ }, sizeof(struct type_)

/* 0, ST_AGAIN, ST_INVALID (a bug of ours), or ST_UNAVAILABLE (away, or not known whether it was done). */
int store_code_of(const struct pgtx_result *r);

/* Slots and ids of rows that begin `stride` bytes apart, as two array parameters. */
void store_add_keys(struct pgargs *a, const uint8_t *first_id, size_t stride, size_t n);
/* One row by its key, as the first two parameters. */
struct pgargs *store_args_of(const uint8_t id[16]);

#endif
