/*
 * event - webhook bodies and their signatures.
 *
 * Bodies are written field by field, in sorted key order, from structs that have no room for a secret. It
 * must never copy a stored row or a reply into a body. A body is built once and stored or signed as those
 * bytes: whoever parses and prints it again breaks the signature.
 */
#include "model/event.h"

#include <string.h>

#include "base/base64.h"
#include "base/crypto.h"
#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define BODY_MAX 20000 /* Standard Webhooks: below 20 kB */
#define SECRET_PREFIX "whsec_"
#define SECRET_TEXT_MAX 1024
#define SECRET_TEXT_MIN 16
#define SECRET_KEY_MIN 24
#define SECRET_KEY_MAX 64
#define SECRET_NEW_BYTES 32

static const char *const type_words[] = {
#define X(id, word) [id] = (word),
	EVENT_LIST(X)
#undef X
};

const char *event_type_word(enum event_type t)
{
	ALWAYS((unsigned)t < EVENT_TYPE_COUNT);
	return type_words[t];
}

int event_type_parse(const char *s, enum event_type *out)
{
	for (unsigned i = EVENT_NONE + 1; i < EVENT_TYPE_COUNT; i++) {
		if (strcmp(type_words[i], s) == 0) {
			*out = (enum event_type)i;
			return 0;
		}
	}
	return ST_NOT_FOUND;
}

/* A star stands for the rest of the name and only at a dot: "a.b.*" covers "a.b.c.d", not "a.bc". */
static bool pattern_matches(const char *pattern, const char *word)
{
	size_t n = strlen(pattern);

	if (strcmp(pattern, "*") == 0)
		return true;
	if (n > 2 && strcmp(pattern + n - 2, ".*") == 0)
		return strncmp(pattern, word, n - 1) == 0;
	return strcmp(pattern, word) == 0;
}

bool event_type_matches(const char *const *patterns, size_t n, enum event_type t)
{
	const char *word = event_type_word(t);

	if (t == EVENT_NONE)
		return false;
	for (size_t i = 0; i < n; i++)
		if (pattern_matches(patterns[i], word))
			return true;
	return false;
}

static void put_text(struct jsonw *w, const char *key, const char *s)
{
	jsonw_str(w, key, s == NULL ? "" : s);
}

static void put_time(struct jsonw *w, const char *key, int64_t wall_us)
{
	char text[STR_ISO_BYTES];

	str_format_iso_ms(wall_us, text);
	jsonw_str(w, key, text);
}

/* Moves what was built into `out` only when it is whole. */
static int deliver(struct jsonw *w, struct buf *built, struct buf *out)
{
	int rc = jsonw_end(w);

	if (rc == 0)
		rc = buf_append(out, built->data, built->len);
	buf_fini(built);
	return rc;
}

static int put_id(struct buf *id, const struct event_entity *e)
{
	int rc = buf_puts(id, e->application_id == NULL ? "" : e->application_id);
	if (rc == 0)
		rc = buf_putc(id, '+');
	if (rc == 0)
		rc = buf_puts(id, e->consumer_id == NULL ? "" : e->consumer_id);
	return rc;
}

int event_entity_build(const struct event_entity *e, struct buf *out)
{
	struct buf built = BUF_INIT(BODY_MAX), id = BUF_INIT(BODY_MAX);
	struct jsonw w;

	int rc = put_id(&id, e);
	if (rc < 0) {
		buf_fini(&id);
		return rc;
	}
	jsonw_init(&w, &built);
	jsonw_object(&w, NULL);
	put_text(&w, "auth_type", e->auth_type);
	put_text(&w, "consumer_id", e->consumer_id);
	put_time(&w, "created_at", e->created_at);
	jsonw_bool(&w, "enabled", e->enabled);
	put_text(&w, "health", e->health);
	put_text(&w, "icon", e->icon);
	jsonw_strn(&w, "id", buf_str(&id), id.len);
	if (e->last_refresh_failed_at != 0)
		put_time(&w, "last_refresh_failed_at", e->last_refresh_failed_at);
	put_text(&w, "logo", e->logo);
	put_text(&w, "name", e->name);
	put_text(&w, "service_id", e->service_id);
	put_text(&w, "state", e->state);
	put_text(&w, "tag_line", e->tag_line);
	put_text(&w, "unified_api", e->unified_api);
	put_time(&w, "updated_at", e->updated_at);
	put_text(&w, "website", e->website);
	jsonw_object_end(&w);
	buf_fini(&id);
	return deliver(&w, &built, out);
}

int event_provider_entity_build(
	const char *provider, const char *name, const char *application_id, struct buf *out)
{
	struct buf built = BUF_INIT(BODY_MAX);
	struct jsonw w;

	jsonw_init(&w, &built);
	jsonw_object(&w, NULL);
	put_text(&w, "application_id", application_id);
	put_text(&w, "id", provider);
	put_text(&w, "name", name);
	put_text(&w, "service_id", provider);
	jsonw_object_end(&w);
	return deliver(&w, &built, out);
}

int event_body_build(const struct event_body *b, struct buf *out)
{
	struct buf built = BUF_INIT(BODY_MAX);
	char event_id[STR_UUID_BYTES];
	struct jsonw w;

	str_format_uuid(b->event_id, event_id);
	jsonw_init(&w, &built);
	jsonw_object(&w, NULL);
	jsonw_object(&w, "payload");
	if (b->attempts != 0)
		jsonw_int(&w, "attempts", b->attempts);
	jsonw_raw(&w, "entity", b->entity_json, strlen(b->entity_json));
	put_text(&w, "entity_id", b->entity_id);
	put_text(&w, "entity_type", b->entity_type);
	put_text(&w, "event_id", event_id);
	put_text(&w, "event_type", event_type_word(b->type));
	jsonw_int(&w, "execution_attempt", b->execution_attempt);
	put_time(&w, "occurred_at", b->occurred_at);
	if (b->reason != NULL)
		jsonw_str(&w, "reason", b->reason);
	jsonw_str(&w, "service_id", "refreshd");
	jsonw_object_end(&w);
	jsonw_object_end(&w);
	return deliver(&w, &built, out);
}

static int decode_key(const char *s, size_t n, struct buf *key, struct fault *f)
{
	const size_t prefix = strlen(SECRET_PREFIX);

	if (n < prefix || memcmp(s, SECRET_PREFIX, prefix) != 0) {
		if (n < SECRET_TEXT_MIN)
			return fault_set(f, ST_INVALID, "the webhook secret has %zu bytes, fewer than %d", n,
				SECRET_TEXT_MIN);
		return buf_set(key, s, n);
	}
	if (base64_decode(key, s + prefix, n - prefix) < 0)
		return fault_set(f, ST_SYNTAX, "the webhook secret is not base64 after " SECRET_PREFIX);
	if (key->len < SECRET_KEY_MIN || key->len > SECRET_KEY_MAX)
		return fault_set(f, ST_INVALID, "the webhook secret decodes to %zu bytes, not %d to %d",
			key->len, SECRET_KEY_MIN, SECRET_KEY_MAX);
	return 0;
}

int event_secret_parse(const char *s, size_t n, struct event_secret *out, struct fault *f)
{
	struct event_secret made = {
		.text = BUF_INIT_SECRET(SECRET_TEXT_MAX), .key = BUF_INIT_SECRET(SECRET_TEXT_MAX)};

	if (n > SECRET_TEXT_MAX)
		return fault_set(
			f, ST_INVALID, "the webhook secret is longer than %d bytes", SECRET_TEXT_MAX);
	/* A line end that came along from a file would make a key that no receiver has. */
	if (str_has_ctl(s, n))
		return fault_set(f, ST_INVALID, "the webhook secret holds a control character");
	int rc = decode_key(s, n, &made.key, f);
	if (rc == 0)
		rc = buf_set(&made.text, s, n);
	if (rc < 0) {
		event_secret_fini(&made);
		return rc;
	}
	*out = made;
	return 0;
}

void event_secret_fini(struct event_secret *s)
{
	buf_fini(&s->text);
	buf_fini(&s->key);
}

int event_secret_new(struct buf *out)
{
	struct buf text = BUF_INIT_SECRET(SECRET_TEXT_MAX);
	uint8_t key[SECRET_NEW_BYTES];

	sys_random(key, sizeof(key));
	int rc = buf_puts(&text, SECRET_PREFIX);
	if (rc == 0)
		rc = base64_encode(&text, key, sizeof(key));
	mem_wipe(key, sizeof(key));
	if (rc == 0)
		rc = buf_append(out, text.data, text.len);
	buf_fini(&text);
	return rc;
}

/* What the signature covers: id.timestamp.body; a dot inside the id would make two readings of it. */
static int put_signed_text(
	struct buf *b, const char *id, int64_t timestamp_s, const void *body, size_t body_len)
{
	if (id[0] == '\0' || strchr(id, '.') != NULL)
		return ST_INVALID;
	int rc = buf_printf(b, "%s.%lld.", id, (long long)timestamp_s);
	return rc == 0 ? buf_append(b, body, body_len) : rc;
}

static int put_hmac(struct buf *sigs, const struct event_secret *s, const struct buf *text)
{
	uint8_t mac[32];

	crypto_hmac_sha256(s->key.data, s->key.len, text->data, text->len, mac);
	int rc = buf_puts(sigs, sigs->len == 0 ? "v1," : " v1,");
	return rc == 0 ? base64_encode(sigs, mac, sizeof(mac)) : rc;
}

static int put_ed25519(struct buf *sigs, struct signer *signer, const struct buf *text)
{
	struct buf raw = BUF_INIT(256);

	int rc = signer_sign(signer, text->data, text->len, &raw);
	if (rc == 0)
		rc = buf_puts(sigs, sigs->len == 0 ? "v1a," : " v1a,");
	if (rc == 0)
		rc = base64_encode(sigs, raw.data, raw.len);
	buf_fini(&raw);
	return rc;
}

int event_sign_standard(const struct event_secret *const *secrets, size_t n, struct signer *ed25519_or_null,
	const char *id, int64_t timestamp_s, const void *body, size_t body_len, struct buf *out)
{
	struct buf text = BUF_INIT(BODY_MAX * 2), sigs = BUF_INIT(BODY_MAX);

	if (n == 0 && ed25519_or_null == NULL)
		return ST_INVALID;
	int rc = put_signed_text(&text, id, timestamp_s, body, body_len);
	for (size_t i = 0; rc == 0 && i < n; i++)
		rc = put_hmac(&sigs, secrets[i], &text);
	if (rc == 0 && ed25519_or_null != NULL)
		rc = put_ed25519(&sigs, ed25519_or_null, &text);
	if (rc == 0)
		rc = buf_append(out, sigs.data, sigs.len);
	buf_fini(&text);
	buf_fini(&sigs);
	return rc;
}

int event_sign_apideck(const struct event_secret *s, const void *body, size_t body_len, struct buf *out)
{
	uint8_t mac[32];

	crypto_hmac_sha256(s->text.data, s->text.len, body, body_len, mac);
	return str_hex_append(out, mac, sizeof(mac));
}
