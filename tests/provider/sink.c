/*
 * sink - a webhook receiver that remembers what came, answers as it is told and checks signatures.
 *
 * Verification is the receiver's reading of two schemes: Standard Webhooks 1.0 (webhook-id.timestamp.body,
 * HMAC-SHA256, base64, several signatures in one header) and the lower-case hex HMAC-SHA256 over the raw
 * body. It shares only the HMAC with the program under test.
 */
#include "provider/simulator.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/base64.h"
#include "base/crypto.h"
#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define KEEP_DEFAULT 100000
#define TOLERANCE_S 300

struct record {
	STAILQ_ENTRY(record) link;
	size_t len;
	char line[];
};

struct sink {
	struct sink *next;
	char *name;
	STAILQ_HEAD(, record) records;
	uint64_t count, kept, keep;
	int status, fail_status;
	uint64_t fail_first, failed;
	int64_t delay_us;
	char *retry_after, *location, *secret, *apideck_secret;
	bool hang;
};

struct sinks {
	struct sink *first;
	struct ledger log;
	struct buf line;
};

struct sinks *sinks_new(void)
{
	struct sinks *k = mem_alloc(sizeof *k);
	k->log.fd = -1;
	buf_init(&k->line, 8 * BODY_MAX);
	return k;
}

static void sink_forget(struct sink *s)
{
	struct record *r;
	while ((r = STAILQ_FIRST(&s->records)) != NULL) {
		STAILQ_REMOVE_HEAD(&s->records, link);
		mem_free(r);
	}
	s->count = s->kept = s->failed = 0;
}

void sinks_free(struct sinks *k)
{
	if (k == NULL)
		return;
	for (struct sink *s = k->first, *next; s != NULL; s = next) {
		next = s->next;
		sink_forget(s);
		mem_free(s->name);
		mem_free(s->retry_after);
		mem_free(s->location);
		mem_free(s->secret);
		mem_free(s->apideck_secret);
		mem_free(s);
	}
	ledger_close(&k->log);
	buf_fini(&k->line);
	mem_free(k);
}

int sinks_open_log(struct sinks *k, const char *path, struct fault *f)
{
	return ledger_open(&k->log, path, f);
}

int sinks_flush(struct sinks *k)
{
	return ledger_flush(&k->log);
}

static struct sink *sink_find(struct sinks *k, const char *name, size_t n)
{
	for (struct sink *s = k->first; s != NULL; s = s->next)
		if (strlen(s->name) == n && memcmp(s->name, name, n) == 0)
			return s;
	struct sink *s = mem_alloc(sizeof *s);
	s->name = mem_strndup(name, n);
	s->status = 200;
	s->fail_status = 503;
	s->keep = KEEP_DEFAULT;
	STAILQ_INIT(&s->records);
	s->next = k->first;
	k->first = s;
	return s;
}

static struct slice header_get(const struct request *r, const char *name)
{
	for (unsigned i = 0; i < r->header_count; i++)
		if (slice_is(r->headers[i].name, name))
			return r->headers[i].value;
	return (struct slice){"", 0};
}

/* A secret "whsec_<base64>" stands for its decoded bytes; any other is its own bytes. */
static void secret_key(const char *secret, struct buf *key)
{
	if (strncmp(secret, "whsec_", 6) == 0 && base64_decode(key, secret + 6, strlen(secret + 6)) == 0)
		return;
	put(buf_puts(key, secret));
}

static bool verify_standard(const struct sink *s, const struct request *r)
{
	struct slice id = header_get(r, "webhook-id"), ts = header_get(r, "webhook-timestamp");
	struct slice sigs = header_get(r, "webhook-signature");
	struct buf key = BUF_INIT_SECRET(4096), text = BUF_INIT(BODY_MAX + 4096), want = BUF_INIT(128);
	int64_t at;
	uint8_t mac[32];
	bool ok = false;
	if (id.n == 0 || id.n > 1024 || memchr(id.p, '.', id.n) != NULL ||
		str_parse_i64(ts.p, ts.n, &at) != 0)
		return false;
	int64_t skew_s = sys_wall_us() / US_PER_S - at;
	if (skew_s > TOLERANCE_S || skew_s < -TOLERANCE_S)
		return false;
	secret_key(s->secret, &key);
	put(buf_printf(&text, "%.*s.%.*s.", (int)id.n, id.p, (int)ts.n, ts.p));
	put(buf_append(&text, r->body.p, r->body.n));
	crypto_hmac_sha256(key.data, key.len, text.data, text.len, mac);
	put(buf_puts(&want, "v1,"));
	put(base64_encode(&want, mac, sizeof mac));
	for (const char *p = sigs.p, *end = sigs.p + sigs.n; p < end;) {
		const char *sp = memchr(p, ' ', (size_t)(end - p));
		size_t n = (size_t)((sp != NULL ? sp : end) - p);
		ok = ok || (n == want.len && memcmp(p, want.data, n) == 0);
		p += n + 1;
	}
	buf_fini(&key);
	buf_fini(&text);
	buf_fini(&want);
	return ok;
}

static bool verify_apideck(const struct sink *s, const struct request *r)
{
	const char *secret = s->apideck_secret != NULL ? s->apideck_secret : s->secret;
	struct slice sig = header_get(r, "x-apideck-signature");
	uint8_t mac[32], sent[32];
	if (str_hex_parse(sig.p, sig.n, sent, sizeof sent) != 0)
		return false;
	for (size_t i = 0; i < sig.n; i++)
		if (sig.p[i] >= 'A' && sig.p[i] <= 'F')
			return false;
	crypto_hmac_sha256(secret, strlen(secret), r->body.p, r->body.n, mac);
	return memcmp(mac, sent, sizeof mac) == 0;
}

static void write_headers(struct jsonw *w, const struct request *r)
{
	jsonw_object(w, "headers");
	for (unsigned i = 0; i < r->header_count; i++) {
		char *name = mem_strndup(r->headers[i].name.p, r->headers[i].name.n);
		for (char *p = name; *p != '\0'; p++)
			if (*p >= 'A' && *p <= 'Z')
				*p = (char)(*p - 'A' + 'a');
		jsonw_strn(w, name, r->headers[i].value.p, r->headers[i].value.n);
		mem_free(name);
	}
	jsonw_object_end(w);
}

static void write_record(struct sinks *k, const struct sink *s, const struct request *r, int status)
{
	struct jsonw w;
	buf_truncate(&k->line, 0);
	jsonw_init(&w, &k->line);
	jsonw_object(&w, NULL);
	jsonw_str(&w, "sink", s->name);
	jsonw_int(&w, "n", (int64_t)s->count);
	jsonw_int(&w, "t_us", sys_wall_us());
	jsonw_strn(&w, "method", r->method.p, r->method.n);
	jsonw_strn(&w, "path", r->path.p, r->path.n);
	jsonw_int(&w, "status", status);
	write_headers(&w, r);
	if (str_is_utf8(r->body.p, r->body.n)) {
		jsonw_strn(&w, "body", r->body.p, r->body.n);
	} else {
		struct buf b64 = BUF_INIT(2 * BODY_MAX);
		put(base64_encode(&b64, r->body.p, r->body.n));
		jsonw_strn(&w, "body_base64", buf_str(&b64), b64.len);
		buf_fini(&b64);
	}
	if (s->secret != NULL) {
		jsonw_object(&w, "verified");
		jsonw_bool(&w, "standard", verify_standard(s, r));
		jsonw_bool(&w, "apideck", verify_apideck(s, r));
		jsonw_object_end(&w);
	}
	jsonw_object_end(&w);
	int rc = jsonw_end(&w); /* ST_INVALID: a header was not UTF-8 and reads U+FFFD now */
	ALWAYS(rc == 0 || rc == ST_INVALID);
	put(buf_putc(&k->line, '\n'));
}

static void keep_record(struct sinks *k, struct sink *s)
{
	if (k->log.fd >= 0)
		put(buf_append(&k->log.out, k->line.data, k->line.len));
	s->count++;
	if (s->keep == 0)
		return;
	struct record *r = mem_alloc(sizeof *r + k->line.len);
	r->len = k->line.len;
	memcpy(r->line, k->line.data, k->line.len);
	STAILQ_INSERT_TAIL(&s->records, r, link);
	if (++s->kept <= s->keep)
		return;
	struct record *old = STAILQ_FIRST(&s->records);
	STAILQ_REMOVE_HEAD(&s->records, link);
	mem_free(old);
	s->kept--;
}

void sink_handle(struct conn *c, struct request *r)
{
	struct sinks *k = c->sim->sinks;
	struct slice name = {r->path.p + strlen("/_sink/"), r->path.n - strlen("/_sink/")};
	const char *slash = memchr(name.p, '/', name.n);
	if (slash != NULL)
		name.n = (size_t)(slash - name.p);
	if (name.n == 0) {
		conn_reply_error(c, 404, "a sink has a name: /_sink/NAME");
		return;
	}
	struct sink *s = sink_find(k, name.p, name.n);
	int status = s->status;
	if (s->failed < s->fail_first) {
		status = s->fail_status;
		s->failed++;
	}
	write_record(k, s, r, s->hang ? 0 : status);
	keep_record(k, s);
	struct reply *reply = &c->sim->reply;
	reply_reset(reply, status, "application/json");
	if (s->retry_after != NULL && status >= 400)
		put(buf_printf(&reply->headers, "Retry-After: %s\r\n", s->retry_after));
	if (s->location != NULL)
		put(buf_printf(&reply->headers, "Location: %s\r\n", s->location));
	put(buf_puts(&reply->body, "{}"));
	(void)reply_render(c->sim, reply, c->last, &c->sim->wire);
	if (s->hang)
		c->act = ACT_HANG;
	if (s->delay_us > 0)
		conn_perform_later(c, &c->sim->wire, s->delay_us);
	else
		conn_perform(c, &c->sim->wire);
}

static void set_text(char **slot, const char *v)
{
	mem_free(*slot);
	*slot = *v != '\0' && !str_has_ctl(v, strlen(v)) ? mem_strdup(v) : NULL;
}

static bool set_one(struct sink *s, const char *key, const char *v)
{
	int64_t n = 0;
	bool numeric = str_parse_i64(v, strlen(v), &n) == 0 && n >= 0;
	if (strcmp(key, "retry_after") == 0)
		set_text(&s->retry_after, v);
	else if (strcmp(key, "location") == 0)
		set_text(&s->location, v);
	else if (strcmp(key, "secret") == 0)
		set_text(&s->secret, v);
	else if (strcmp(key, "apideck_secret") == 0)
		set_text(&s->apideck_secret, v);
	else if (strcmp(key, "reset") == 0 && numeric)
		sink_forget(s);
	else if (strcmp(key, "hang") == 0 && numeric)
		s->hang = n != 0;
	else if (strcmp(key, "keep") == 0 && numeric)
		s->keep = (uint64_t)n;
	else if (strcmp(key, "delay_ms") == 0 && numeric && n <= 3600000)
		s->delay_us = n * US_PER_MS;
	else if (strcmp(key, "status") == 0 && numeric && n >= 200 && n <= 599)
		s->status = (int)n;
	else if (strcmp(key, "fail_status") == 0 && numeric && n >= 200 && n <= 599)
		s->fail_status = (int)n;
	else if (strcmp(key, "fail_first") == 0 && numeric)
		s->fail_first = (uint64_t)n, s->failed = 0;
	else
		return false;
	return true;
}

void sink_control(struct conn *c, const struct form *q)
{
	size_t n = 0;
	const char *name = form_get(q, "name", &n), *text = buf_str(&q->text);
	if (n == 0) {
		conn_reply_error(c, 400, "name is missing");
		return;
	}
	struct sink *s = sink_find(c->sim->sinks, name, n);
	for (unsigned i = 0; i < q->count; i++) {
		const char *key = text + q->pair[i].name, *v = text + q->pair[i].value;
		if (strcmp(key, "name") == 0 || set_one(s, key, v))
			continue;
		conn_reply_error(c, 400, "%.60s: unknown, or not a value for it", key);
		return;
	}
	conn_reply_text(c, 200, "{\"ok\":true}\n");
}

struct replay {
	struct stream st;
	struct sink *s;
	uint64_t number; /* of the next record to write */
};

static bool replay_fill(struct stream *st, struct buf *out)
{
	struct replay *p = (struct replay *)st;
	struct sink *s = p->s;
	uint64_t number = s->count - s->kept;
	struct record *r;
	STAILQ_FOREACH(r, &s->records, link)
	{
		if (number++ < p->number)
			continue;
		put(buf_append(out, r->line, r->len));
		p->number = number;
		if (out->len > 65536)
			return true;
	}
	return false;
}

static void replay_fini(struct stream *st)
{
	mem_free(st);
}

void sink_log(struct conn *c, const struct form *q)
{
	size_t n = 0;
	const char *name = form_get(q, "name", &n);
	int64_t from;
	if (n == 0 || form_i64(q, "from", 0, &from) != 0 || from < 0) {
		conn_reply_error(c, 400, "want name=SINK and, if at all, from=NUMBER");
		return;
	}
	struct replay *p = mem_alloc(sizeof *p);
	p->st = (struct stream){replay_fill, replay_fini};
	p->s = sink_find(c->sim->sinks, name, n);
	p->number = (uint64_t)from;
	conn_stream(c, &p->st, "application/x-ndjson");
}
