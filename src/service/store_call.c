/*
 * store_call - what every statement of store_*.c needs around its own columns: the waiting callback, the code, the key.
 *
 * Here, because each of them would else be written again beside each statement. Must not know any statement.
 */
#include "service/store_call.h"

#include <string.h>

#include "base/mem.h"
#include "model/connection.h"

int store_send_call(struct store *s, struct pgtx *t, int64_t wait_us, pgtx_fn *fn, const void *call, size_t size)
{
	void *copy = mem_alloc(size);
	memcpy(copy, call, size);
	int e = store_send(s, t, wait_us, fn, copy);
	if (e != 0)
		mem_free(copy);
	return e;
}

int store_send_stmt(struct store *s, const struct pgstmt *stmt, struct pgargs *a, int64_t wait_us, pgtx_fn *fn, const void *call,
	size_t size)
{
	struct pgtx *t = pgtx_new();
	pgtx_add(t, stmt, a);
	return store_send_call(s, t, wait_us, fn, call, size);
}

int store_code_of(const struct pgtx_result *r)
{
	switch (r->class) {
	case PG_CLASS_OK:
		return 0;
	case PG_CLASS_RETRY:
		return ST_AGAIN;
	case PG_CLASS_BUG:
		return ST_INVALID;
	case PG_CLASS_CONNECTION:
	case PG_CLASS_RESOURCES:
	case PG_CLASS_READ_ONLY:
	case PG_CLASS_UNKNOWN:
		return ST_UNAVAILABLE;
	}
	return ST_UNAVAILABLE;
}

void store_add_keys(struct pgargs *a, const uint8_t *first_id, size_t stride, size_t n)
{
	pgargs_array(a, PGT_I16);
	for (size_t i = 0; i < n; i++)
		pgargs_i16(a, conn_slot_of(first_id + i * stride));
	pgargs_array_end(a);
	pgargs_array(a, PGT_UUID);
	for (size_t i = 0; i < n; i++)
		pgargs_uuid(a, first_id + i * stride);
	pgargs_array_end(a);
}

struct pgargs *store_args_of(const uint8_t id[16])
{
	struct pgargs *a = pgargs_new();
	pgargs_i16(a, conn_slot_of(id));
	pgargs_uuid(a, id);
	return a;
}
