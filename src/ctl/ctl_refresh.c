/*
 * ctl_refresh - refresh, token: the two commands that ask for a working access token.
 *
 * refresh makes the connection due, wakes the daemons and watches the row: this program itself never talks to a
 * provider. token opens the sealed access token and writes it to stdout, and nowhere else.
 */
#include "ctl/ctl.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/connection.h"
#include "service/seal.h"
#include "service/vault.h"
#include "service/vault_ops.h"

#define LOOK_US (US_PER_S / 5)

/* ---------------------------------------------------------------- refresh */

enum outcome { WAITING, REFRESHED, IMPORTED, FAILED, POSTPONED };

static enum outcome compare(const struct vault_watch *was, const struct vault_watch *is)
{
	if (is->refreshes > was->refreshes)
		return REFRESHED;
	if (is->token_version != was->token_version)
		return IMPORTED;
	if (is->last_failed_at != was->last_failed_at)
		return FAILED;
	/* Claimed and given back without a mark: the provider stands in the way; or nothing will be tried any more. */
	if (is->attempt_id != was->attempt_id && !is->leased)
		return is->due_at == INT64_MAX ? FAILED : POSTPONED;
	return WAITING;
}

static const char *reason_sentence(const char *word)
{
	enum reason r;
	return reason_parse(word, &r) == 0 ? reason_text(r) : word;
}

static int print_outcome(const struct ctl *c, enum outcome o, const struct vault_watch *x)
{
	static const char *const words[] = { "waiting", "refreshed", "imported", "failed", "postponed" };
	char when[CTL_TIME_BYTES];
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "outcome", words[o]);
		jsonw_str(&j.w, "state", x->state);
		jsonw_str(&j.w, "health", x->health);
		jsonw_str(&j.w, "reason", x->reason);
		ctl_json_time(&j.w, "expires_at", x->expires_at);
		ctl_json_time(&j.w, "due_at", x->due_at);
		jsonw_object_end(&j.w);
		int status = ctl_json_end(&j);
		return status == CTL_OK && o != REFRESHED ? CTL_FAILURE : status;
	}
	switch (o) {
	case REFRESHED:
		printf("refreshed; expires %s\n", ctl_time(x->expires_at, when));
		return CTL_OK;
	case IMPORTED:
		return ctl_complain("refresh: new tokens were imported meanwhile");
	case FAILED:
		return ctl_complain("refresh: failed: %s; the connection is %s, %s", reason_sentence(x->reason), x->state, x->health);
	case POSTPONED:
		return ctl_complain("refresh: not done: the provider refuses our client or asked us to wait; the next try is %s", ctl_ago(x->due_at, when));
	case WAITING:
		break;
	}
	return ctl_complain("refresh: no outcome in time; the connection stays due");
}

static int check_refreshable(const struct ctl *c, const struct vault_watch *x)
{
	if (strcmp(x->auth_type, auth_type_word(AUTH_OAUTH2)) != 0)
		return ctl_complain("refresh: the connection has auth_type %s, which is not refreshed", x->auth_type);
	if (!x->enabled)
		return ctl_complain("refresh: the connection is not enabled");
	if (!provider_renews(conf_provider(c->conf, x->service_id), x->has_refresh_token))
		return ctl_complain("refresh: there is no refresh token to refresh with");
	return CTL_OK;
}

static int wait_outcome(struct ctl *c, const uint8_t id[16], const struct vault_watch *was, int64_t timeout_us)
{
	struct vault_watch is = *was;
	struct fault f = { 0 };
	enum outcome o = WAITING;
	int64_t end = sys_mono_us() + timeout_us;
	while (o == WAITING && !ctl_interrupted && sys_mono_us() < end) {
		int rc = pgsync_wait_notify(c->pg, LOOK_US, &f);
		if (rc != 0 && rc != ST_TIMEOUT)
			return ctl_fail("refresh", &f);
		if (vault_watch(c->pg, id, &is, &f) != 0)
			return ctl_fail("refresh", &f);
		o = compare(was, &is);
	}
	return print_outcome(c, o, &is);
}

int ctl_refresh(struct ctl *c, int argc, char **argv)
{
	int64_t timeout_us = 60 * US_PER_S, live = 0;
	const struct ctl_opt opts[] = { { "timeout", CTL_DURATION, &timeout_us } };
	struct vault_watch was;
	struct fault f = { 0 };
	uint8_t id[16];
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 1, 1));
	CTL_TRY(ctl_connection_id(c, c->words[0], id));
	CTL_TRY(ctl_connect(c));
	ctl_catch_interrupt();
	if (vault_watch(c->pg, id, &was, &f) != 0)
		return ctl_fail("refresh", &f);
	CTL_TRY(check_refreshable(c, &was));
	if (vault_live_daemons(c->pg, &live, &f) != 0 || vault_refresh_now(c->pg, id, &f) != 0)
		return ctl_fail("refresh", &f);
	if (live == 0)
		ctl_note("refresh: no daemon seems to be alive; the connection is due and waits for one");
	return wait_outcome(c, id, &was, timeout_us);
}

/* ---------------------------------------------------------------- token */

static int check_usable(const struct vault_token *t)
{
	char when[CTL_TIME_BYTES];
	if (!t->enabled)
		return ctl_complain("token: refused: the connection is not enabled (--force prints it all the same)");
	if (strcmp(t->state, conn_state_word(CONN_CALLABLE)) != 0)
		return ctl_complain("token: refused: the connection is %s: %s (--force prints it all the same)", t->state, reason_sentence(t->reason));
	if (t->expires_at != 0 && t->expires_at <= sys_wall_us())
		return ctl_complain("token: refused: it expired %s (--force prints it all the same)", ctl_ago(t->expires_at, when));
	return CTL_OK;
}

static int print_token(const struct ctl *c, const struct vault_token *t, const struct buf *plain)
{
	if (!c->json)
		return ctl_print_secret(plain, true);
	struct buf text = BUF_INIT_SECRET((size_t)1024 * 1024);
	struct jsonw w;
	jsonw_init(&w, &text);
	jsonw_object(&w, NULL);
	jsonw_strn(&w, "access_token", buf_str(plain), plain->len);
	jsonw_str(&w, "token_type", t->token_type[0] != '\0' ? t->token_type : NULL);
	ctl_json_time(&w, "expires_at", t->expires_at);
	jsonw_object_end(&w);
	int status = jsonw_end(&w) == 0 ? ctl_print_secret(&text, true) : ctl_complain("token: it cannot be written as JSON");
	buf_fini(&text);
	return status;
}

static int open_and_print(const struct ctl *c, const uint8_t id[16], const struct vault_token *t)
{
	struct buf plain = BUF_INIT_SECRET((size_t)512 * 1024);
	int rc = seal_open(c->conf->keyring, SEAL_ACCESS_TOKEN, id, t->token_version, t->sealed.data, t->sealed.len, &plain);
	int status = rc == 0 ? print_token(c, t, &plain) : ctl_complain("token: it cannot be opened: %s", status_text(rc));
	buf_fini(&plain);
	return status;
}

int ctl_token(struct ctl *c, int argc, char **argv)
{
	bool force = false;
	const struct ctl_opt opts[] = { { "force", CTL_FLAG, &force } };
	struct vault_token t = { .sealed = BUF_INIT(0) };
	struct fault f = { 0 };
	uint8_t id[16];
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 1, 1));
	CTL_TRY(ctl_connection_id(c, c->words[0], id));
	CTL_TRY(ctl_connect(c));
	if (vault_token(c->pg, id, &t, &f) != 0) {
		buf_fini(&t.sealed);
		return ctl_fail("token", &f);
	}
	int status = force ? CTL_OK : check_usable(&t);
	if (status == CTL_OK && t.sealed.len == 0)
		status = ctl_complain("token: the connection has no access token (auth_type %s)", t.auth_type);
	if (status == CTL_OK)
		status = open_and_print(c, id, &t);
	buf_fini(&t.sealed);
	return status;
}
