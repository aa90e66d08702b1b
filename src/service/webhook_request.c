/*
 * webhook_request - one signed POST: body, both kinds of signatures, headers, and which addresses it may go
 * to.
 *
 * An endpoint of the API is its owner's idea of an address, and owners are many: it never reaches an address
 * that is not public, unless the operator has opened loopback for tests. During a rotation both secrets sign;
 * the one signature that has room for one secret alone keeps to the previous one until it ends, so that
 * nobody is cut off in between.
 */
#include "service/webhook_priv.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/str.h"
#include "base/sys.h"
#include "model/netcheck.h"

#define BODY_MAX (32u * 1024)
#define SIGNATURE_MAX 1024
#define REPLY_MAX (64u * 1024)
#define CONNECT_TIMEOUT_US (10 * US_PER_S)

typedef bool addr_fn(const struct sockaddr *sa, void *arg);

static bool public_only(const struct sockaddr *sa, void *arg)
{
	(void)arg;
	return netcheck_is_public(sa);
}

static bool loopback_only(const struct sockaddr *sa, void *arg)
{
	(void)arg;
	return netcheck_is_loopback(sa);
}

static bool public_or_loopback(const struct sockaddr *sa, void *arg)
{
	(void)arg;
	return netcheck_is_public(sa) || netcheck_is_loopback(sa);
}

/* NULL: any address. */
static addr_fn *reach_of(const struct conf *c, const struct webhook_message *m, bool http)
{
	bool tests = c->insecure_http == INSECURE_HTTP_LOOPBACK;
	if (http)
		return m->allow_private || m->of_api ? loopback_only : public_only;
	if (m->of_api)
		return tests ? public_or_loopback : public_only;
	return m->allow_private ? NULL : public_only;
}

/* ---------------------------------------------------------------- signatures */

struct signed_message {
	char id[STR_UUID_BYTES];
	char timestamp[24];
	struct buf body, standard, apideck;
};

static int sign(const struct webhook_message *m, int64_t now_s, struct signed_message *s)
{
	const struct event_secret *const secrets[] = {
		m->secret, m->previous != NULL ? &m->previous->hmac : NULL};
	const struct buf *body = &s->body;
	int e = event_sign_standard(secrets, m->previous != NULL ? 2 : 1, m->ed25519, s->id, now_s,
		body->data, body->len, &s->standard);
	if (e == 0 && m->previous != NULL) {
		e = buf_putc(&s->standard, ' ');
		if (e == 0)
			e = event_sign_standard(NULL, 0, m->previous->ed25519, s->id, now_s, body->data,
				body->len, &s->standard);
	}
	if (e == 0)
		e = event_sign_apideck(m->previous != NULL ? &m->previous->hmac : m->secret, body->data,
			body->len, &s->apideck);
	return e;
}

static int build(const struct webhook_message *m, int64_t now_s, struct signed_message *s, struct fault *f)
{
	str_format_uuid(m->body->event_id, s->id);
	snprintf(s->timestamp, sizeof s->timestamp, "%lld", (long long)now_s);
	int e = event_body_build(m->body, &s->body);
	if (e != 0)
		return fault_set(f, e, "the body cannot be built: %s", status_text(e));
	e = sign(m, now_s, s);
	return e == 0 ? 0 : fault_set(f, e, "the body cannot be signed: %s", status_text(e));
}

/* ---------------------------------------------------------------- the request */

static int post(struct httpc *h, const struct conf *c, const struct webhook_message *m,
	struct signed_message *s, httpc_fn *fn, void *arg, struct httpc_call **out, struct fault *f)
{
	const struct httpc_header headers[] = {
		{"content-type", "application/json"},
		{"x-apideck-event-type", event_type_word(m->body->type)},
		{"x-apideck-signature", buf_str(&s->apideck)},
		{"x-apideck-idempotency-key", s->id},
		{"webhook-id", s->id},
		{"webhook-timestamp", s->timestamp},
		{"webhook-signature", buf_str(&s->standard)},
	};
	int64_t timeout_us = c->delivery.timeout_us;
	const struct httpc_request q = {
		.method = "POST",
		.url = m->url,
		.allow_http = c->insecure_http == INSECURE_HTTP_LOOPBACK,
		.headers = headers,
		.n_headers = sizeof headers / sizeof *headers,
		.body = &s->body,
		.timeout_us = timeout_us,
		.connect_timeout_us = timeout_us < CONNECT_TIMEOUT_US ? timeout_us : CONNECT_TIMEOUT_US,
		.max_reply_bytes = REPLY_MAX,
		.addr_allowed = reach_of(c, m, strncmp(m->url, "http://", 7) == 0),
	};
	return httpc_start(h, &q, fn, arg, out, f);
}

int webhook_post(struct httpc *h, const struct conf *c, const struct webhook_message *m, httpc_fn *fn,
	void *arg, struct httpc_call **out, struct fault *f)
{
	struct signed_message s = {.body = BUF_INIT(BODY_MAX),
		.standard = BUF_INIT(SIGNATURE_MAX),
		.apideck = BUF_INIT(SIGNATURE_MAX)};
	int e = build(m, sys_wall_us() / US_PER_S, &s, f);
	/* A body that is too large must not look like a client that is full. */
	if (e == ST_FULL)
		e = ST_RANGE;
	if (e == 0)
		e = post(h, c, m, &s, fn, arg, out, f);
	buf_fini(&s.body);
	buf_fini(&s.standard);
	buf_fini(&s.apideck);
	return e;
}
