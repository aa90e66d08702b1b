/*
 * webhook_keys - makes, seals and opens the signing keys of an endpoint of the API.
 *
 * Everything in between lives in secret buffers. Must not: show or log any part but the public one, nor
 * accept a secret of another form than whsec_: what a receiver's library cannot read is of no use to it.
 */
#include "service/webhook_keys.h"

#include <string.h>

#include "base/base64.h"
#include "base/mem.h"
#include "base/sys.h"
#include "service/seal.h"

#define TEXT_MAX 512
#define SECRET_PREFIX "whsec_"
#define PRIVATE_PREFIX "whsk_"
#define PUBLIC_PREFIX "whpk_"

void webhook_keys_fini(struct webhook_keys *k)
{
	event_secret_fini(&k->hmac);
	buf_fini(&k->seed);
	signer_unref(k->ed25519);
	k->ed25519 = NULL;
}

/* `seed` is taken over on success. */
static int build(const char *secret, size_t n, struct buf *seed, struct webhook_keys *out, struct fault *f)
{
	struct webhook_keys made = {.ed25519 = NULL};
	if (n < strlen(SECRET_PREFIX) || memcmp(secret, SECRET_PREFIX, strlen(SECRET_PREFIX)) != 0)
		return fault_set(f, ST_SYNTAX,
			"the webhook secret must be " SECRET_PREFIX " and base64 of 24 to 64 bytes");
	int e = event_secret_parse(secret, n, &made.hmac, f);
	if (e != 0)
		return e;
	e = signer_from_seed(seed->data, &made.ed25519);
	if (e != 0) {
		event_secret_fini(&made.hmac);
		return fault_set(f, e, "the Ed25519 key: %s", status_text(e));
	}
	buf_move(&made.seed, seed);
	*out = made;
	return 0;
}

int webhook_keys_new(const char *given, struct webhook_keys *out, struct fault *f)
{
	struct buf secret = BUF_INIT_SECRET(TEXT_MAX), seed = BUF_INIT_SECRET(SIGNER_ED25519_BYTES);
	uint8_t raw[SIGNER_ED25519_BYTES];
	size_t n = given != NULL ? strlen(given) : 0;
	sys_random(raw, sizeof raw);
	ALWAYS(buf_set(&seed, raw, sizeof raw) == 0);
	mem_wipe(raw, sizeof raw);
	int e = 0;
	if (given == NULL) {
		e = event_secret_new(&secret);
		given = buf_str(&secret);
		n = secret.len;
	}
	if (e == 0)
		e = build(given, n, &seed, out, f);
	buf_fini(&secret);
	buf_fini(&seed);
	return e;
}

int webhook_keys_public(const struct webhook_keys *k, struct buf *out)
{
	uint8_t raw[SIGNER_ED25519_BYTES];
	int e = signer_public(k->ed25519, raw);
	if (e == 0)
		e = buf_puts(out, PUBLIC_PREFIX);
	return e == 0 ? base64_encode(out, raw, sizeof raw) : e;
}

int webhook_keys_seal(
	const struct webhook_keys *k, struct keyring *ring, const uint8_t id[16], struct buf *out)
{
	struct buf text = BUF_INIT_SECRET(TEXT_MAX);
	int e = buf_append(&text, k->hmac.text.data, k->hmac.text.len);
	if (e == 0)
		e = buf_puts(&text, " " PRIVATE_PREFIX);
	if (e == 0)
		e = base64_encode(&text, k->seed.data, k->seed.len);
	if (e == 0)
		e = seal_column(ring, SEAL_WEBHOOK_SECRET, id, 0, text.data, text.len, out);
	buf_fini(&text);
	return e;
}

static int parse(const struct buf *text, struct webhook_keys *out, struct fault *f)
{
	struct buf seed = BUF_INIT_SECRET(SIGNER_ED25519_BYTES);
	const char *s = buf_str(text), *mark = strstr(s, " " PRIVATE_PREFIX);
	if (mark == NULL)
		return fault_set(f, ST_SYNTAX, "the sealed webhook secret has no Ed25519 key");
	const char *key = mark + strlen(" " PRIVATE_PREFIX);
	int e = base64_decode(&seed, key, strlen(key));
	if (e != 0 || seed.len != SIGNER_ED25519_BYTES)
		e = fault_set(f, ST_SYNTAX, "the sealed webhook secret has a broken Ed25519 key");
	else
		e = build(s, (size_t)(mark - s), &seed, out, f);
	buf_fini(&seed);
	return e;
}

int webhook_keys_open(struct keyring *ring, const uint8_t id[16], const void *sealed, size_t n,
	struct webhook_keys *out, struct fault *f)
{
	struct buf text = BUF_INIT_SECRET(TEXT_MAX);
	int e = seal_open(ring, SEAL_WEBHOOK_SECRET, id, 0, sealed, n, &text);
	if (e != 0)
		e = fault_set(f, e, "the webhook secret cannot be opened: %s", status_text(e));
	else
		e = parse(&text, out, f);
	buf_fini(&text);
	return e;
}
