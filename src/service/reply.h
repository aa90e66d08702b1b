/*
 * reply - one provider's answer as a journal record: written before it is parsed, read back after a crash.
 *
 * Form: 0x01 | connection id (16) | attempt id (8) | token version (8) | sealed part. Connection and attempt are the
 * associated data of the sealed part (seal: journal.reply), whose plain form is the token version again, when the settings had
 * changed last, what was presented, flags, status, times, content type, retry-after, body: nothing in the clear can be changed unnoticed.
 */
#ifndef REFRESHD_SERVICE_REPLY_H
#define REFRESHD_SERVICE_REPLY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/crypto.h"

#define REPLY_BODY_MAX ((size_t)1024 * 1024)

struct reply {
	uint8_t id[16];
	int64_t attempt_id, token_version;
	int64_t settings_at;   /* the connection's updated_at when it was claimed: what the request was built from */
	uint8_t presented[32]; /* SHA-256 of the refresh token that was presented; zeros: none was */
	bool complete;
	int status;
	int64_t start_wall_us, end_wall_us;
	char content_type[96], retry_after[64];
	struct buf body; /* secret */
};

void reply_init(struct reply *r);
void reply_fini(struct reply *r);
void reply_present(struct reply *r, const struct buf *refresh_token); /* empty: none */
/* Is this the very token that was presented? */
bool reply_presented(const struct reply *r, const struct buf *refresh_token);
/* Appends the record. */
int reply_encode(const struct reply *r, struct keyring *k, struct buf *out) MUST_USE;
/* ST_SYNTAX (no such record), ST_NO_KEY, ST_CRYPTO. `out` must be initialised. */
int reply_decode(const void *p, size_t n, struct keyring *k, struct reply *out) MUST_USE;
/* The clear part alone, for refreshctl journal. */
int reply_peek(const void *p, size_t n, uint8_t id[16], int64_t *attempt_id, int64_t *token_version) MUST_USE;

#endif
