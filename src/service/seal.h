/*
 * seal - which bytes are sealed under which associated data: the one place that knows the AAD of every column.
 *
 * AAD = "refreshd" | table.column | connection id | token version, so that a sealed value cannot be moved to
 * another row or column, nor rolled back to an older version of its own row (crypto adds the key id).
 */
#ifndef REFRESHD_SERVICE_SEAL_H
#define REFRESHD_SERVICE_SEAL_H

#include "base/buf.h"
#include "base/crypto.h"

#define SEAL_COLUMN_LIST(X)                                              \
	X(SEAL_ACCESS_TOKEN, "credential.access_token")                  \
	X(SEAL_REFRESH_TOKEN, "credential.refresh_token")                \
	X(SEAL_PREVIOUS_REFRESH_TOKEN, "credential.previous_refresh_token") \
	X(SEAL_CAPTURED, "credential.captured")                          \
	X(SEAL_SETTINGS, "connection.settings")                          \
	X(SEAL_RAW_REPLY, "orphan_token.raw_reply")                      \
	X(SEAL_JOURNAL, "journal.reply")                                 \
	X(SEAL_WEBHOOK_SECRET, "webhook_endpoint.secret")
enum seal_column {
#define X(id, name) id,
	SEAL_COLUMN_LIST(X)
#undef X
};

#define SEAL_COLUMN_MAX ((size_t)256 * 1024) /* of one column */

/* `version` is the row's token version; 0 for what has none (settings, webhook secrets). Appends to `out`. */
int seal_column(struct keyring *k, enum seal_column col, const uint8_t id[16], int64_t version, const void *plain, size_t n, struct buf *out) MUST_USE;
/* In place of what `out` held; nothing where there is nothing. */
int seal_buf(struct keyring *k, enum seal_column col, const uint8_t id[16], int64_t version, const struct buf *plain, struct buf *out) MUST_USE;
/* Appends to `out`, a secret buffer. ST_NO_KEY, ST_CRYPTO, ST_FULL. */
int seal_open(struct keyring *k, enum seal_column col, const uint8_t id[16], int64_t version, const void *sealed, size_t n, struct buf *out) MUST_USE;

#endif
