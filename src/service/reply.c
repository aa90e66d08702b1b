/*
 * reply - encodes and decodes journal records. Integers are big-endian; lengths are checked against what is there.
 */
#include "service/reply.h"

#include <string.h>

#include "base/bytes.h"
#include "service/seal.h"

#define FORMAT 0x01
#define CLEAR_BYTES (1 + 16 + 8 + 8)
#define PLAIN_BYTES (9 * 8 + 32) /* of the sealed part, beside content type, retry-after and body */
#define SEAL_BYTES 128		 /* what sealing adds is less */

void reply_init(struct reply *r)
{
	memset(r, 0, sizeof *r);
	buf_init_secret(&r->body, REPLY_BODY_MAX);
}

void reply_fini(struct reply *r)
{
	buf_fini(&r->body);
}

void reply_present(struct reply *r, const struct buf *refresh_token)
{
	if (refresh_token->len > 0)
		crypto_sha256(refresh_token->data, refresh_token->len, r->presented);
	else
		memset(r->presented, 0, sizeof r->presented);
}

bool reply_presented(const struct reply *r, const struct buf *refresh_token)
{
	uint8_t sum[32];
	if (refresh_token->len == 0)
		return false;
	crypto_sha256(refresh_token->data, refresh_token->len, sum);
	return crypto_equal(sum, r->presented, sizeof sum);
}

static int add64(struct buf *b, int64_t v)
{
	uint8_t raw[8];
	bytes_put_be64(raw, (uint64_t)v);
	return buf_append(b, raw, sizeof raw);
}

static int add_bytes(struct buf *b, const void *p, size_t n)
{
	int e = add64(b, (int64_t)n);
	return e != 0 ? e : buf_append(b, p, n);
}

static int encode_plain(const struct reply *r, struct buf *plain)
{
	int e = add64(plain, r->token_version); /* its clear copy is not under the seal */
	if (e == 0)
		e = add64(plain, r->settings_at);
	if (e == 0)
		e = buf_append(plain, r->presented, sizeof r->presented);
	if (e == 0)
		e = add64(plain, r->complete ? 1 : 0);
	if (e == 0)
		e = add64(plain, r->status);
	if (e == 0)
		e = add64(plain, r->start_wall_us);
	if (e == 0)
		e = add64(plain, r->end_wall_us);
	if (e == 0)
		e = add_bytes(plain, r->content_type, strlen(r->content_type));
	if (e == 0)
		e = add_bytes(plain, r->retry_after, strlen(r->retry_after));
	if (e == 0)
		e = add_bytes(plain, r->body.data, r->body.len);
	return e;
}

int reply_encode(const struct reply *r, struct keyring *k, struct buf *out)
{
	uint8_t clear[CLEAR_BYTES] = { FORMAT };
	memcpy(clear + 1, r->id, 16);
	bytes_put_be64(clear + 17, (uint64_t)r->attempt_id);
	bytes_put_be64(clear + 25, (uint64_t)r->token_version);
	struct buf plain;
	buf_init_secret(&plain, REPLY_BODY_MAX + 1024);
	int e = buf_reserve(&plain, PLAIN_BYTES + strlen(r->content_type) + strlen(r->retry_after) + r->body.len);
	if (e == 0)
		e = encode_plain(r, &plain);
	if (e == 0)
		e = buf_reserve(out, sizeof clear + plain.len + SEAL_BYTES);
	if (e == 0)
		e = buf_append(out, clear, sizeof clear);
	if (e == 0)
		e = seal_column(k, SEAL_JOURNAL, r->id, r->attempt_id, plain.data, plain.len, out);
	buf_fini(&plain);
	return e;
}

struct cursor {
	const uint8_t *p;
	size_t left;
	bool bad;
};

static int64_t take64(struct cursor *c)
{
	if (c->left < 8) {
		c->bad = true;
		return 0;
	}
	int64_t v = (int64_t)bytes_get_be64(c->p);
	c->p += 8;
	c->left -= 8;
	return v;
}

static void take_fixed(struct cursor *c, void *to, size_t n)
{
	if (c->left < n) {
		c->bad = true;
		memset(to, 0, n);
		return;
	}
	memcpy(to, c->p, n);
	c->p += n;
	c->left -= n;
}

static const void *take_bytes(struct cursor *c, size_t max, size_t *n)
{
	int64_t len = take64(c);
	if (c->bad || len < 0 || (uint64_t)len > c->left || (uint64_t)len > max) {
		c->bad = true;
		*n = 0;
		return "";
	}
	const void *p = c->p;
	*n = (size_t)len;
	c->p += len;
	c->left -= (size_t)len;
	return p;
}

static void take_text(struct cursor *c, char *to, size_t room)
{
	size_t n;
	const void *p = take_bytes(c, room - 1, &n);
	memcpy(to, p, n);
	to[n] = '\0';
}

int reply_peek(const void *p, size_t n, uint8_t id[16], int64_t *attempt_id, int64_t *token_version)
{
	const uint8_t *b = p;
	if (n <= CLEAR_BYTES || b[0] != FORMAT)
		return ST_SYNTAX;
	memcpy(id, b + 1, 16);
	*attempt_id = (int64_t)bytes_get_be64(b + 17);
	*token_version = (int64_t)bytes_get_be64(b + 25);
	return 0;
}

static int decode_plain(const struct buf *plain, int64_t version, struct reply *out)
{
	struct cursor c = { .p = plain->data, .left = plain->len };
	if (take64(&c) != version)
		return ST_CRYPTO;
	int64_t settings_at = take64(&c);
	uint8_t presented[sizeof out->presented];
	take_fixed(&c, presented, sizeof presented);
	bool complete = take64(&c) == 1;
	int status = (int)take64(&c);
	int64_t start = take64(&c), end = take64(&c);
	char type[sizeof out->content_type], retry[sizeof out->retry_after];
	take_text(&c, type, sizeof type);
	take_text(&c, retry, sizeof retry);
	size_t n;
	const void *body = take_bytes(&c, REPLY_BODY_MAX, &n);
	if (c.bad || c.left != 0)
		return ST_SYNTAX;
	int e = buf_set(&out->body, body, n);
	if (e != 0)
		return e;
	out->settings_at = settings_at;
	memcpy(out->presented, presented, sizeof presented);
	out->complete = complete;
	out->status = status;
	out->start_wall_us = start;
	out->end_wall_us = end;
	memcpy(out->content_type, type, sizeof type);
	memcpy(out->retry_after, retry, sizeof retry);
	return 0;
}

int reply_decode(const void *p, size_t n, struct keyring *k, struct reply *out)
{
	uint8_t id[16];
	int64_t attempt, version;
	int e = reply_peek(p, n, id, &attempt, &version);
	if (e != 0)
		return e;
	struct buf plain;
	buf_init_secret(&plain, REPLY_BODY_MAX + 1024);
	e = seal_open(k, SEAL_JOURNAL, id, attempt, (const uint8_t *)p + CLEAR_BYTES, n - CLEAR_BYTES, &plain);
	if (e == 0)
		e = decode_plain(&plain, version, out);
	buf_fini(&plain);
	if (e != 0)
		return e;
	memcpy(out->id, id, sizeof id);
	out->attempt_id = attempt;
	out->token_version = version;
	return 0;
}
