/*
 * control - the JSON control plane under /_sim/ for tests: make realms, mint, break, look.
 *
 * Long lists (mint, live) are streamed, so ten million families need no more memory than their structs.
 * It shares the port with the realms on purpose: one address is all that a test has to know.
 */
#include "provider/simulator.h"

#include <inttypes.h>
#include <string.h>

#include "base/crypto.h"
#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define PIECE_BYTES ((size_t)65536)
#define MINT_MAX 50000000

struct ask {
	struct conn *c;
	struct sim *s;
	const struct request *r;
	const struct form *q;
	struct realm *realm; /* of ?realm=, when the path needs one */
};

static void say_fault(struct conn *c, const struct fault *f)
{
	conn_reply_error(c, f->code == ST_NOT_FOUND ? 404 : 400, "%s", f->text);
}

static void say_ok(struct conn *c)
{
	conn_reply_text(c, 200, "{\"ok\":true}\n");
}

static bool get_number(
	struct ask *a, const char *name, int64_t fallback, int64_t min, int64_t max, int64_t *out)
{
	if (form_i64(a->q, name, fallback, out) == 0 &&
		(form_get(a->q, name, NULL) == NULL || (*out >= min && *out <= max)))
		return true;
	conn_reply_error(a->c, 400, "%s: want a whole number from %" PRId64 " to %" PRId64, name, min, max);
	return false;
}

static bool get_family(struct ask *a, uint32_t *family)
{
	int64_t v;
	if (!get_number(a, "family", -1, 0, UNKNOWN_FAMILY - 1, &v))
		return false;
	if (v < 0 || v >= a->realm->family_count) {
		conn_reply_error(a->c, 404, "realm %s has no such family", a->realm->name);
		return false;
	}
	*family = (uint32_t)v;
	return true;
}

static void handle_realm(struct ask *a)
{
	const char *name = form_get(a->q, "name", NULL);
	struct fault f = {0};
	struct realm *r = NULL;
	int rc = realm_open(a->s, name != NULL ? name : "", &r, &f);
	const char *text = buf_str(&a->q->text);
	for (unsigned i = 0; rc == 0 && i < a->q->count; i++)
		if (strcmp(text + a->q->pair[i].name, "name") != 0)
			rc = realm_set(r, text + a->q->pair[i].name, text + a->q->pair[i].value, &f);
	if (rc != 0)
		say_fault(a->c, &f);
	else
		say_ok(a->c);
}

/* --- mint */

struct mint {
	struct stream st;
	struct sim *s;
	struct realm *r;
	uint32_t at, end;
	int64_t expires_in, issued_us;
	bool import;
	char *application, *consumer_prefix, *unified_api, *service_id;
	char rt[TOKEN_MAX + 1], access[TOKEN_MAX + 1];
};

static void mint_credentials(struct mint *m, struct jsonw *w)
{
	char issued[STR_ISO_BYTES];
	str_format_iso_ms(m->issued_us, issued);
	jsonw_str(w, "access_token", m->access);
	jsonw_str(w, "refresh_token", m->rt);
	jsonw_str(w, "issued_at", issued);
	jsonw_int(w, "expires_in", m->expires_in);
}

static void mint_line(struct mint *m, struct buf *out)
{
	struct jsonw w;
	token_make(m->s, m->r, m->at, 1, 1, m->rt, m->access);
	jsonw_init(&w, out);
	jsonw_object(&w, NULL);
	if (!m->import) {
		jsonw_int(&w, "family", m->at);
		mint_credentials(m, &w);
	} else {
		char *consumer = mem_printf("%s%" PRIu32, m->consumer_prefix, m->at);
		jsonw_str(&w, "application_id", m->application);
		jsonw_str(&w, "consumer_id", consumer);
		jsonw_str(&w, "unified_api", m->unified_api);
		jsonw_str(&w, "service_id", m->service_id);
		jsonw_object(&w, "credentials");
		mint_credentials(m, &w);
		jsonw_object_end(&w);
		jsonw_object(&w, "settings");
		jsonw_object_end(&w);
		jsonw_object(&w, "metadata");
		jsonw_object_end(&w);
		mem_free(consumer);
	}
	jsonw_object_end(&w);
	put(jsonw_end(&w));
	put(buf_putc(out, '\n'));
}

static bool mint_fill(struct stream *st, struct buf *out)
{
	struct mint *m = (struct mint *)st;
	while (m->at < m->end && out->len < PIECE_BYTES) {
		mint_line(m, out);
		m->at++;
	}
	return m->at < m->end;
}

static void mint_fini(struct stream *st)
{
	struct mint *m = (struct mint *)st;
	mem_free(m->application);
	mem_free(m->consumer_prefix);
	mem_free(m->unified_api);
	mem_free(m->service_id);
	mem_free(m);
}

static char *text_or(struct ask *a, const char *name, const char *fallback)
{
	const char *v = form_get(a->q, name, NULL);
	return mem_strdup(v != NULL ? v : fallback);
}

static void handle_mint(struct ask *a)
{
	int64_t n, expires_in, ago;
	const char *format = form_get(a->q, "format", NULL);
	struct fault f = {0};
	uint32_t first;
	if (!get_number(a, "n", 1, 1, MINT_MAX, &n) ||
		!get_number(a, "expires_in", a->realm->at_ttl_s, 0, 315360000, &expires_in) ||
		!get_number(a, "issued_ago", 0, 0, 315360000, &ago))
		return;
	if (format != NULL && strcmp(format, "import") != 0 && strcmp(format, "raw") != 0) {
		conn_reply_error(a->c, 400, "format: want raw or import");
		return;
	}
	int64_t issued_us = sys_wall_us() - ago * US_PER_S;
	if (realm_mint(a->realm, (uint32_t)n, issued_us + expires_in * US_PER_S, &first, &f) != 0) {
		say_fault(a->c, &f);
		return;
	}
	struct mint *m = mem_alloc(sizeof *m);
	m->st = (struct stream){mint_fill, mint_fini};
	m->s = a->s;
	m->r = a->realm;
	m->at = first;
	m->end = first + (uint32_t)n;
	m->expires_in = expires_in;
	m->issued_us = issued_us;
	m->import = format != NULL && strcmp(format, "import") == 0;
	m->application = text_or(a, "application", "app1");
	m->consumer_prefix = text_or(a, "consumer_prefix", "c");
	m->unified_api = text_or(a, "unified_api", "accounting");
	m->service_id = text_or(a, "service_id", a->realm->name);
	conn_stream(a->c, &m->st, "application/x-ndjson");
}

/* --- families */

static void hash_hex(const char *text, char out[65])
{
	static const char hex[] = "0123456789abcdef";
	uint8_t digest[32];
	crypto_sha256(text, strlen(text), digest);
	for (unsigned i = 0; i < 32; i++) {
		out[2 * i] = hex[digest[i] >> 4];
		out[2 * i + 1] = hex[digest[i] & 15];
	}
	out[64] = '\0';
}

static void family_json(struct sim *s, struct realm *r, uint32_t family, bool clear, struct buf *out)
{
	const struct family *fa = &r->families[family];
	struct granted *g = &s->granted;
	char hash[65];
	struct jsonw w;
	token_make(s, r, family, family_live(r, family), fa->gen, g->rt, g->at);
	jsonw_init(&w, out);
	jsonw_object(&w, NULL);
	jsonw_int(&w, "family", family);
	jsonw_int(&w, "live_gen", family_live(r, family));
	jsonw_int(&w, "first_live_gen", fa->first);
	jsonw_int(&w, "parent_gen", fa->parent);
	jsonw_int(&w, "at_gen", fa->gen);
	jsonw_bool(&w, "revoked", fa->revoked);
	jsonw_int(&w, "held", fa->held);
	hash_hex(g->rt, hash);
	jsonw_str(&w, "rt_sha256", hash);
	hash_hex(g->at, hash);
	jsonw_str(&w, "at_sha256", hash);
	jsonw_int(&w, "at_expires_us", fa->at_expires_us);
	if (clear) {
		jsonw_str(&w, "refresh_token", g->rt);
		jsonw_str(&w, "access_token", g->at);
	}
	jsonw_object_end(&w);
	put(jsonw_end(&w));
	put(buf_putc(out, '\n'));
}

static void handle_family(struct ask *a)
{
	uint32_t family;
	if (!get_family(a, &family))
		return;
	reply_reset(&a->s->reply, 200, "application/json");
	family_json(a->s, a->realm, family, true, &a->s->reply.body);
	conn_reply(a->c, &a->s->reply);
}

static void handle_revoke(struct ask *a)
{
	uint32_t family;
	if (!get_family(a, &family))
		return;
	family_revoke(a->realm, family);
	say_ok(a->c);
}

struct live {
	struct stream st;
	struct sim *s;
	struct realm *r;
	uint32_t at;
};

static bool live_fill(struct stream *st, struct buf *out)
{
	struct live *l = (struct live *)st;
	while (l->at < l->r->family_count && out->len < PIECE_BYTES)
		family_json(l->s, l->r, l->at++, false, out);
	return l->at < l->r->family_count;
}

static void live_fini(struct stream *st)
{
	mem_free(st);
}

static void handle_live(struct ask *a)
{
	struct live *l = mem_alloc(sizeof *l);
	l->st = (struct stream){live_fill, live_fini};
	l->s = a->s;
	l->r = a->realm;
	conn_stream(a->c, &l->st, "application/x-ndjson");
}

/* --- verify: what an API that trusts this provider would say of an access token */

static void verify_line(struct sim *s, const char *line, size_t n, struct buf *out)
{
	struct jsonw w;
	struct realm *r;
	uint32_t family, gen;
	size_t len;
	form_reset(&s->form);
	const char *at =
		form_parse_json(&s->form, line, n) == 0 ? form_get(&s->form, "access_token", &len) : NULL;
	jsonw_init(&w, out);
	jsonw_object(&w, NULL);
	if (at == NULL || token_read(s, TOKEN_ACCESS, at, len, &r, &family, &gen) != 0) {
		jsonw_bool(&w, "known", false);
		jsonw_bool(&w, "active", false);
	} else {
		const struct family *fa = &r->families[family];
		bool newest = gen == fa->gen, expired = newest && fa->at_expires_us <= sys_wall_us();
		jsonw_bool(&w, "known", true);
		jsonw_bool(&w, "active", !fa->revoked && !expired && (newest || r->at_overlap));
		jsonw_str(&w, "realm", r->name);
		jsonw_int(&w, "family", family);
		jsonw_int(&w, "gen", gen);
		jsonw_bool(&w, "newest", newest);
		jsonw_bool(&w, "expired", expired);
		jsonw_bool(&w, "revoked", fa->revoked);
		jsonw_int(&w, "newest_expires_us", fa->at_expires_us);
	}
	jsonw_object_end(&w);
	put(jsonw_end(&w));
	put(buf_putc(out, '\n'));
}

static void handle_verify(struct ask *a)
{
	const char *p = a->r->body.p, *end = p + a->r->body.n;
	reply_reset(&a->s->reply, 200, "application/x-ndjson");
	while (p < end) {
		const char *eol = memchr(p, '\n', (size_t)(end - p));
		size_t n = (size_t)((eol != NULL ? eol : end) - p);
		if (n > 0)
			verify_line(a->s, p, n, &a->s->reply.body);
		p += n + 1;
	}
	conn_reply(a->c, &a->s->reply);
}

/* --- faults, down, stats */

static void handle_fault(struct ask *a)
{
	struct fault f = {0};
	if (slice_is(a->r->method, "GET")) {
		reply_reset(&a->s->reply, 200, "application/json");
		fault_list(a->realm, &a->s->reply.body);
		conn_reply(a->c, &a->s->reply);
	} else if (fault_add(a->realm, a->q, &f) != 0) {
		say_fault(a->c, &f);
	} else {
		say_ok(a->c);
	}
}

static void handle_fault_clear(struct ask *a)
{
	(void)fault_clear(a->realm);
	say_ok(a->c);
}

static void handle_down(struct ask *a)
{
	const char *name = form_get(a->q, "realm", NULL);
	int64_t ms, s, status;
	if (!get_number(a, "s", 0, 0, 864000, &s) || !get_number(a, "ms", 0, 0, 864000000, &ms) ||
		!get_number(a, "status", 0, 400, 599, &status))
		return;
	int64_t until_us = sys_mono_us() + s * US_PER_S + ms * US_PER_MS;
	if (name != NULL && strcmp(name, "*") == 0) {
		a->s->down_until_us = until_us;
		say_ok(a->c);
		return;
	}
	struct realm *r = name != NULL ? realm_find(a->s, name, strlen(name)) : NULL;
	if (r == NULL) {
		conn_reply_error(a->c, 404, "no such realm");
		return;
	}
	r->down_until_us = until_us;
	r->down_status = (int)status;
	say_ok(a->c);
}

static void realm_stats_json(struct jsonw *w, const struct realm *r)
{
	const struct realm_stats *st = &r->stats;
	const struct {
		const char *name;
		uint64_t v;
	} rows[] = {
		{"families", r->family_count},
		{"requests", st->requests},
		{"refresh_ok", st->refresh_ok},
		{"logins", st->logins},
		{"rotated", st->rotated},
		{"reused_in_grace", st->reused_in_grace},
		{"static_ok", st->static_ok},
		{"reuse_detected", st->reuse_detected},
		{"families_revoked", st->families_revoked},
		{"overlaps", st->overlaps},
		{"unknown_tokens", st->unknown_tokens},
		{"client_refused", st->client_refused},
		{"rate_limited", st->rate_limited},
		{"faults", st->faults},
		{"down_refused", st->down_refused},
		{"not_delivered", st->not_delivered},
		{"redirect_followed", st->redirect_followed},
		{"redirect_secret_seen", st->redirect_secret_seen},
		{"in_flight", st->in_flight},
		{"max_in_flight", st->max_in_flight},
		{"connections_open", st->conns_open},
		{"connections_accepted", st->conns_accepted},
		{"connections_max", st->conns_max},
	};
	jsonw_object(w, r->name);
	for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
		jsonw_int(w, rows[i].name, (int64_t)rows[i].v);
	jsonw_object(w, "errors");
	for (unsigned i = 0; i < ERROR_CODES && st->errors[i].code[0] != '\0'; i++)
		jsonw_int(w, st->errors[i].code, (int64_t)st->errors[i].n);
	jsonw_object_end(w);
	jsonw_object_end(w);
}

static void handle_stats(struct ask *a)
{
	struct sim *s = a->s;
	const char *only = form_get(a->q, "realm", NULL);
	struct jsonw w;
	reply_reset(&s->reply, 200, "application/json");
	jsonw_init(&w, &s->reply.body);
	jsonw_object(&w, NULL);
	jsonw_int(&w, "requests", (int64_t)s->requests);
	jsonw_int(&w, "connections_open", (int64_t)s->conns_open);
	jsonw_int(&w, "connections_accepted", (int64_t)s->conn_serial);
	jsonw_int(&w, "connections_max", (int64_t)s->conns_max);
	jsonw_int(&w, "dns_queries", (int64_t)dns_queries(s));
	jsonw_object(&w, "realms");
	for (unsigned i = 0; i < s->realm_count; i++)
		if (only == NULL || strcmp(only, s->realms[i]->name) == 0)
			realm_stats_json(&w, s->realms[i]);
	jsonw_object_end(&w);
	jsonw_object_end(&w);
	put(jsonw_end(&w));
	put(buf_putc(&s->reply.body, '\n'));
	conn_reply(a->c, &s->reply);
}

static void handle_stats_reset(struct ask *a)
{
	for (unsigned i = 0; i < a->s->realm_count; i++) {
		struct realm_stats *st = &a->s->realms[i]->stats;
		struct realm_stats kept = {.in_flight = st->in_flight,
			.max_in_flight = st->in_flight,
			.conns_open = st->conns_open,
			.conns_max = st->conns_open};
		*st = kept;
	}
	say_ok(a->c);
}

static void handle_flush(struct ask *a)
{
	if (sim_flush(a->s) == 0)
		say_ok(a->c);
	else
		conn_reply_error(a->c, 500, "a log cannot be written");
}

static void handle_sink_ctl(struct ask *a)
{
	sink_control(a->c, a->q);
}

static void handle_sink_log(struct ask *a)
{
	sink_log(a->c, a->q);
}

void control_handle(struct conn *c, struct request *r)
{
	static const struct {
		const char *path, *method;
		bool realm;
		void (*fn)(struct ask *a);
	} routes[] = {
		{"/_sim/realm", "POST", false, handle_realm},
		{"/_sim/mint", "POST", true, handle_mint},
		{"/_sim/revoke", "POST", true, handle_revoke},
		{"/_sim/fault", NULL, true, handle_fault},
		{"/_sim/fault/clear", "POST", true, handle_fault_clear},
		{"/_sim/down", "POST", false, handle_down},
		{"/_sim/stats", "GET", false, handle_stats},
		{"/_sim/stats/reset", "POST", false, handle_stats_reset},
		{"/_sim/family", "GET", true, handle_family},
		{"/_sim/live", "GET", true, handle_live},
		{"/_sim/verify", "POST", false, handle_verify},
		{"/_sim/flush", NULL, false, handle_flush},
		{"/_sink_ctl", "POST", false, handle_sink_ctl},
		{"/_sink_log", "GET", false, handle_sink_log},
	};
	struct sim *s = c->sim;
	struct ask a = {.c = c, .s = s, .r = r, .q = &s->query};
	form_reset(&s->query);
	if (form_parse(&s->query, r->query.p, r->query.n) != 0) {
		conn_reply_error(c, 400, "unreadable query, or a name given twice");
		return;
	}
	for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
		if (!slice_is(r->path, routes[i].path))
			continue;
		if (routes[i].method != NULL && !slice_is(r->method, routes[i].method)) {
			conn_reply_error(c, 405, "%s wants %s", routes[i].path, routes[i].method);
			return;
		}
		const char *name = form_get(&s->query, "realm", NULL);
		a.realm = name != NULL ? realm_find(s, name, strlen(name)) : NULL;
		if (routes[i].realm && a.realm == NULL)
			conn_reply_error(c, 404, "no such realm: give realm=NAME");
		else
			routes[i].fn(&a);
		return;
	}
	conn_reply_error(c, 404, "no such path");
}
