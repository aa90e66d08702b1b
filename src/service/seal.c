/*
 * seal - builds the associated data of every sealed column, so that no two places can disagree about it.
 */
#include "service/seal.h"

#include <string.h>

#include "base/mem.h"

#define AAD_PREFIX "refreshd"
#define AAD_MAX 96

static const char *column_name(enum seal_column col)
{
	switch (col) {
#define X(id, name)   \
	case id:      \
		return name;
		SEAL_COLUMN_LIST(X)
#undef X
	}
	ALWAYS(!"a column without a name");
	return "";
}

static size_t build_aad(uint8_t aad[AAD_MAX], enum seal_column col, const uint8_t id[16], int64_t version)
{
	const char *name = column_name(col);
	size_t prefix = sizeof AAD_PREFIX, len = strlen(name) + 1;
	ALWAYS(prefix + len + 16 + 8 <= AAD_MAX);
	memcpy(aad, AAD_PREFIX, prefix);
	memcpy(aad + prefix, name, len);
	memcpy(aad + prefix + len, id, 16);
	for (int i = 0; i < 8; i++)
		aad[prefix + len + 16 + i] = (uint8_t)((uint64_t)version >> (56 - 8 * i));
	return prefix + len + 16 + 8;
}

int seal_column(struct keyring *k, enum seal_column col, const uint8_t id[16], int64_t version, const void *plain,
	size_t n, struct buf *out)
{
	uint8_t aad[AAD_MAX];
	size_t len = build_aad(aad, col, id, version);
	return crypto_seal(k, aad, len, plain, n, out);
}

int seal_buf(struct keyring *k, enum seal_column col, const uint8_t id[16], int64_t version, const struct buf *plain, struct buf *out)
{
	buf_reset(out);
	return plain->len > 0 ? seal_column(k, col, id, version, plain->data, plain->len, out) : 0;
}

int seal_open(struct keyring *k, enum seal_column col, const uint8_t id[16], int64_t version, const void *sealed,
	size_t n, struct buf *out)
{
	uint8_t aad[AAD_MAX];
	size_t len = build_aad(aad, col, id, version);
	return crypto_open(k, aad, len, sealed, n, out);
}
