/*
 * token - the token endpoint: refresh_token grants judged and answered.
 *
 * The order is that of a real server: is it up, is the rate kept, who is the client, what does the token
 * say. A realm commits at once and answers after its delay (commit=early), or works through the delay and
 * commits at its end whether the client is still there or not (commit=late).
 */
#include "provider/simulator.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

static void error_body(struct reply *r, int status, const char *code, const char *why)
{
	reply_reset(r, status, "application/json");
	put(buf_puts(&r->headers, "Cache-Control: no-store\r\n"));
	put(buf_printf(&r->body, "{\"error\":\"%s\"", code));
	if (why != NULL)
		put(buf_printf(&r->body, ",\"error_description\":\"%s\"", why));
	put(buf_putc(&r->body, '}'));
}

static void refuse(struct conn *c, struct realm *realm, int status, const char *code, const char *why)
{
	struct reply *r = &c->sim->reply;
	error_body(r, status, code, why);
	if (status == 401 && (realm->auth == AUTH_BASIC || realm->auth == AUTH_ANY))
		put(buf_printf(&r->headers, "WWW-Authenticate: Basic realm=\"%s\"\r\n", realm->name));
	realm_count_error(realm, code);
}

void granted_body(struct sim *s, const struct realm *r, struct buf *out)
{
	struct granted *g = &s->granted;
	put(buf_puts(out, "{\"access_token\":\""));
	put(buf_puts(out, g->at));
	put(buf_puts(out, "\",\"token_type\":\"Bearer\",\"expires_in\":"));
	put_number(out, g->expires_in);
	if (g->has_rt) {
		put(buf_puts(out, ",\"refresh_token\":\""));
		put(buf_puts(out, g->rt));
		put(buf_putc(out, '"'));
	}
	if (!g->has_rt && r->static_reply == STATIC_NULL)
		put(buf_puts(out, ",\"refresh_token\":null"));
	if (!g->has_rt && r->static_reply == STATIC_EMPTY)
		put(buf_puts(out, ",\"refresh_token\":\"\""));
	if (r->scope != NULL)
		put(buf_printf(out, ",\"scope\":\"%s\"", r->scope));
	put(buf_putc(out, '}'));
}

static void grant(struct conn *c, struct realm *realm, uint32_t family, bool with_rt)
{
	struct sim *s = c->sim;
	const struct family *f = &realm->families[family];
	s->granted.has_rt = with_rt;
	s->granted.expires_in = realm->at_ttl_s;
	token_make(s, realm, family, family_live(realm, family), f->gen, s->granted.rt, s->granted.at);
	reply_reset(&s->reply, 200, "application/json");
	put(buf_puts(&s->reply.headers, "Cache-Control: no-store\r\n"));
	granted_body(s, realm, &s->reply.body);
	realm->stats.refresh_ok++;
}

/* Spends the token; true when the answer is a grant. */
static bool judge(struct conn *c, struct realm *realm)
{
	static const struct {
		const char *name, *why;
	} words[] = {
		[OUT_ROTATED] = {"rotated", NULL},
		[OUT_GRACE] = {"reused_in_grace", NULL},
		[OUT_STATIC] = {"static_ok", NULL},
		[OUT_REUSE] = {"reuse_revoked", "refresh token was used before: the family is revoked"},
		[OUT_REVOKED] = {"revoked", "the grant is revoked"},
		[OUT_UNKNOWN] = {"unknown_token", "unknown refresh token"},
	};
	struct presentation *p = &c->p;
	enum outcome o =
		p->family == UNKNOWN_FAMILY ? OUT_UNKNOWN : family_present(c->sim, realm, p->family, p->gen);
	p->outcome = words[o].name;
	p->rotated = o == OUT_ROTATED || o == OUT_GRACE;
	if (o <= OUT_STATIC) {
		realm->stats.rotated += o == OUT_ROTATED;
		realm->stats.reused_in_grace += o == OUT_GRACE;
		realm->stats.static_ok += o == OUT_STATIC;
		grant(c, realm, p->family, realm->mode != MODE_STATIC || realm->static_reply == STATIC_SAME);
		return true;
	}
	realm->stats.reuse_detected += o == OUT_REUSE;
	realm->stats.unknown_tokens += o == OUT_UNKNOWN;
	refuse(c, realm, 400, "invalid_grant", words[o].why);
	return false;
}

/* A grant without a refresh token begins a family; true when the answer is a grant. */
static bool log_in(struct conn *c, struct realm *realm)
{
	const struct form *form = &c->sim->form;
	const char *user = form_get(form, "username", NULL), *password = form_get(form, "password", NULL);
	uint32_t family;
	struct fault f;
	if (realm->login == LOGIN_PASSWORD && (user == NULL || password == NULL)) {
		refuse(c, realm, 400, "invalid_request", "username or password is missing");
		return false;
	}
	if (realm->login == LOGIN_PASSWORD &&
		(strcmp(user, realm->username) != 0 || strcmp(password, realm->password) != 0)) {
		refuse(c, realm, 400, "invalid_grant", "wrong username or password");
		return false;
	}
	if (realm_mint(realm, 1, sys_wall_us() + realm->at_ttl_s * US_PER_S, &family, &f) != 0) {
		refuse(c, realm, 503, "temporarily_unavailable", "too many families");
		return false;
	}
	realm->stats.logins++;
	grant(c, realm, family, realm->login == LOGIN_PASSWORD && realm->login_rt);
	return true;
}

static bool is_login(const struct realm *realm, const char *grant_type)
{
	static const char *const words[] = {
		[LOGIN_NONE] = "", [LOGIN_CLIENT] = "client_credentials", [LOGIN_PASSWORD] = "password"};
	return realm->login != LOGIN_NONE && strcmp(grant_type, words[realm->login]) == 0;
}

static bool decide(struct conn *c, struct realm *realm, const struct request *r)
{
	const struct form *form = &c->sim->form;
	const char *why = NULL, *grant_type = form_get(form, "grant_type", NULL);
	int status = 400;
	const char *code = auth_check(c, realm, r, form, &status, &why);
	if (code != NULL) {
		c->p.outcome = "client_refused";
		realm->stats.client_refused++;
		refuse(c, realm, status, code, why);
		return false;
	}
	c->p.outcome = "bad_request";
	if (grant_type != NULL && c->p.realm == NULL && is_login(realm, grant_type))
		return log_in(c, realm);
	if (grant_type == NULL || c->p.realm == NULL) {
		refuse(c, realm, 400, "invalid_request", "grant_type or refresh_token is missing");
		return false;
	}
	if (strcmp(grant_type, realm->grant) != 0) {
		refuse(c, realm, 400, "unsupported_grant_type", NULL);
		return false;
	}
	return judge(c, realm);
}

static void answer(struct conn *c, struct realm *realm, const struct request *r, int64_t delay_us)
{
	struct reply *reply = &c->sim->reply;
	struct fault_rule *rule =
		fault_pick(realm, c->p.realm != NULL ? c->p.family : UNKNOWN_FAMILY, !c->continued, true);
	c->act = ACT_SEND;
	bool spoil = false;
	if (rule != NULL && rule->kind->when != FAULT_AFTER) {
		reply_reset(reply, 0, "application/json");
		spoil = true;
	} else {
		spoil = decide(c, realm, r) && rule != NULL;
	}
	size_t head = 0;
	if (spoil) {
		c->p.fault = rule->kind->name;
		c->cut = SIZE_MAX;
		c->step_us = 0;
		rule->kind->apply(c, rule, reply);
		fault_fire(realm, rule);
	}
	head = reply_render(c->sim, reply, c->last, &c->sim->wire);
	if (spoil && rule->kind->finish != NULL)
		rule->kind->finish(c, rule, head);
	c->p.status = reply->status;
	if (delay_us > 0)
		conn_perform_later(c, &c->sim->wire, delay_us);
	else
		conn_perform(c, &c->sim->wire);
}

bool token_params(struct realm *realm, const struct request *r, struct form *form)
{
	int rc;
	bool json = r->content_type.n >= 16 &&
		    slice_is((struct slice){r->content_type.p, 16}, "application/json");
	bool urlencoded = r->content_type.n >= 33 && slice_is((struct slice){r->content_type.p, 33},
							     "application/x-www-form-urlencoded");
	form_reset(form);
	if (realm->body == BODY_QUERY)
		rc = form_parse(form, r->query.p, r->query.n);
	else if (json && realm->body != BODY_FORM)
		rc = form_parse_json(form, r->body.p, r->body.n);
	else if (urlencoded && realm->body != BODY_JSON)
		rc = form_parse(form, r->body.p, r->body.n);
	else
		rc = ST_INVALID;
	if (rc != 0)
		form_reset(form);
	return rc == 0;
}

static void present(struct conn *c, struct realm *realm)
{
	size_t n;
	const char *rt = form_get(&c->sim->form, realm->rt_param, &n);
	struct realm *of = NULL;
	uint32_t family = UNKNOWN_FAMILY, gen = 0;
	if (rt == NULL)
		return;
	if (token_read(c->sim, TOKEN_REFRESH, rt, n, &of, &family, &gen) != 0 || of != realm) {
		family = UNKNOWN_FAMILY;
		gen = 0;
	}
	c->p.t_recv_us = sys_wall_us();
	presentation_begin(&c->p, realm, family, gen, rt, n);
}

static void token_late(struct conn *c)
{
	struct request r;
	struct realm *realm = c->realm;
	c->late = false;
	if (conn_request(c, &r) != 0)
		always_failed("a request that parsed once parses twice", __FILE__, __LINE__, __func__);
	(void)token_params(realm, &r, &c->sim->form); /* it did when the request came */
	answer(c, realm, &r, 0);
}

/* Seconds until a request may come again, or 0. */
static int64_t over_rate(struct realm *r)
{
	if (r->rate <= 0)
		return 0;
	int64_t now = sys_mono_us();
	r->tokens += r->rate * (double)(now - r->bucket_us) / 1e6;
	r->bucket_us = now;
	if (r->tokens > r->burst)
		r->tokens = r->burst;
	if (r->tokens >= 1) {
		r->tokens -= 1;
		return 0;
	}
	return 1 + (int64_t)((1 - r->tokens) / r->rate);
}

static bool is_down(struct conn *c, struct realm *realm)
{
	if (realm->down_until_us <= sys_mono_us())
		return false;
	realm->stats.down_refused++;
	c->p.outcome = "down";
	c->act = ACT_SEND;
	if (realm->down_status == 0) {
		c->act = ACT_RESET;
		c->cut = 0;
		reply_reset(&c->sim->reply, 503, NULL);
	} else {
		refuse(c, realm, realm->down_status, "temporarily_unavailable", NULL);
		c->p.status = realm->down_status;
	}
	conn_reply(c, &c->sim->reply);
	return true;
}

static void enter(struct conn *c, struct realm *realm)
{
	conn_set_realm(c, realm);
	realm->stats.requests++;
	c->counted = true;
	if (++realm->stats.in_flight > realm->stats.max_in_flight)
		realm->stats.max_in_flight = realm->stats.in_flight;
}

void token_handle(struct conn *c, struct realm *realm, struct request *r)
{
	enter(c, realm);
	if (!slice_is(r->method, "POST") && realm->body != BODY_QUERY) {
		conn_reply_error(c, 405, "POST only");
		return;
	}
	bool readable = token_params(realm, r, &c->sim->form);
	present(c, realm);
	if (is_down(c, realm))
		return;
	int64_t wait_s = over_rate(realm);
	if (wait_s > 0) {
		realm->stats.rate_limited++;
		c->p.outcome = "rate_limited";
		c->p.status = 429;
		refuse(c, realm, 429, "slow_down", NULL);
		put(buf_printf(&c->sim->reply.headers, "Retry-After: %lld\r\n", (long long)wait_s));
		conn_reply(c, &c->sim->reply);
		return;
	}
	if (!readable) {
		refuse(c, realm, 400, "invalid_request",
			"unreadable body, a name given twice, or the wrong content type");
		conn_reply(c, &c->sim->reply);
		return;
	}
	int64_t delay_us = realm->delay_us;
	if (realm->jitter_us > 0)
		delay_us += (int64_t)sys_random_below((uint64_t)realm->jitter_us);
	if (delay_us == 0 || !realm->commit_late) {
		answer(c, realm, r, delay_us);
		return;
	}
	c->late = true;
	conn_wait(c, delay_us, token_late);
}

bool token_early(struct conn *c, struct realm *realm)
{
	struct fault_rule *rule = fault_pick(realm, UNKNOWN_FAMILY, true, false);
	if (rule == NULL)
		return false;
	reply_reset(&c->sim->reply, 0, "application/json");
	rule->kind->apply(c, rule, &c->sim->reply);
	fault_fire(realm, rule);
	c->p.fault = rule->kind->name;
	c->p.status = c->sim->reply.status;
	(void)reply_render(c->sim, &c->sim->reply, false, &c->sim->wire);
	(void)conn_put(c, c->sim->wire.data, c->sim->wire.len);
	return true;
}

void token_after_early(struct conn *c, struct request *r)
{
	struct slice name = {r->path.p + 1, r->path.n - 1 - strlen("/token")};
	struct realm *realm = realm_find(c->sim, name.p, name.n);
	ALWAYS(realm != NULL);
	const char *fault = c->p.fault;
	int status = c->p.status;
	enter(c, realm);
	if (!token_params(realm, r, &c->sim->form))
		return;
	present(c, realm);
	c->p.fault = fault;
	c->p.status = status;
}

void token_raced(struct conn *c)
{
	struct request r;
	if (conn_request(c, &r) != 0 || r.body.n < r.content_length || c->realm == NULL)
		return;
	if (!token_params(c->realm, &r, &c->sim->form))
		return;
	c->realm->stats.requests++;
	present(c, c->realm);
	c->p.fault = "keepalive_close";
}

void token_redirected(struct conn *c, struct realm *realm, struct request *r)
{
	realm->stats.redirect_followed++;
	bool form = token_params(realm, r, &c->sim->form);
	if (r->authorization.n > 0 || !form || form_get(&c->sim->form, realm->rt_param, NULL) != NULL ||
		form_get(&c->sim->form, "client_secret", NULL) != NULL ||
		form_get(&c->sim->form, "client_assertion", NULL) != NULL)
		realm->stats.redirect_secret_seen++;
	conn_reply_text(
		c, 400, "{\"error\":\"invalid_request\",\"error_description\":\"a redirect was followed\"}");
}
