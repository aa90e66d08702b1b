/*
 * ctl_orphans - tokens and replies whose connection had moved on when they came: look, and install one by hand.
 *
 * Merging is an import of the orphan's tokens under the row's lock. The refresh token that it replaces is kept
 * beside it, and the orphan itself stays in its table, marked: nothing is discarded.
 */
#include "ctl/ctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/import.h"
#include "service/seal.h"
#include "service/vault_import.h"
#include "service/vault_ops.h"

#define SEALED_MAX ((size_t)1024 * 1024)

/* ---------------------------------------------------------------- list */

static const char *what_is_it(const struct vault_orphan *o)
{
	if (o->current_version == 0)
		return "the connection is gone";
	if (strcmp(o->kind, "token") != 0)
		return "an unreadable reply";
	return o->token_version > o->current_version ? "newer than the present token" : "older than the present token";
}

static int on_orphan(void *arg, const struct vault_orphan *o)
{
	struct ctl_listing *l = arg;
	char id[STR_UUID_BYTES], when[CTL_TIME_BYTES];
	str_format_uuid(o->id, id);
	if (l->table != NULL) {
		ctl_table_cell(l->table, "%s", id);
		ctl_table_cell(l->table, "%" PRId64, o->attempt_id);
		ctl_table_cell(l->table, "%s", o->kind);
		ctl_table_cell(l->table, "%s", o->service_id != NULL ? o->service_id : "-");
		ctl_table_cell(l->table, "%s", ctl_ago(o->created_at, when));
		ctl_table_cell(l->table, "%s", o->resolution != NULL ? o->resolution : what_is_it(o));
		return 0;
	}
	struct jsonw *w = &l->json.w;
	ctl_json_element_begin(&l->json);
	jsonw_object(w, NULL);
	jsonw_str(w, "connection_id", id);
	jsonw_int(w, "attempt_id", o->attempt_id);
	jsonw_str(w, "kind", o->kind);
	jsonw_str(w, "application_id", o->application_id);
	jsonw_str(w, "consumer_id", o->consumer_id);
	jsonw_str(w, "unified_api", o->unified_api);
	jsonw_str(w, "service_id", o->service_id);
	jsonw_int(w, "token_version", o->token_version);
	jsonw_int(w, "current_version", o->current_version);
	ctl_json_time(w, "created_at", o->created_at);
	ctl_json_time(w, "expires_at", o->expires_at);
	ctl_json_time(w, "resolved_at", o->resolved_at);
	jsonw_str(w, "resolution", o->resolution);
	jsonw_object_end(w);
	return ctl_json_element_end(&l->json) == CTL_OK ? 0 : ST_IO;
}

static int orphans_list(struct ctl *c, bool all)
{
	static const char *const headers[] = { "CONNECTION", "ATTEMPT", "KIND", "SERVICE", "SINCE", "WHAT" };
	struct fault f = { 0 };
	struct ctl_listing l;
	CTL_TRY(ctl_connect(c));
	ctl_listing_begin(&l, c, headers, 6);
	int rc = vault_orphans(c->pg, NULL, all, on_orphan, &l, &f);
	ctl_listing_end(&l);
	return rc == 0 ? CTL_OK : ctl_fail("orphans list", &f);
}

/* ---------------------------------------------------------------- merge */

struct merge {
	struct ctl *c;
	uint8_t id[16];
	int64_t attempt; /* 0: the newest */
	bool force;
	bool found, unreadable_only;
	int64_t attempt_id, token_version;
	struct import tokens;
};

static int open_token(struct merge *m, enum seal_column col, const struct vault_orphan *o, const void *sealed, size_t n, struct buf *out)
{
	if (sealed == NULL)
		return 0;
	return seal_open(m->c->conf->keyring, col, o->id, o->token_version, sealed, n, out);
}

/* The first one that fits is taken: they come newest first. */
static int on_candidate(void *arg, const struct vault_orphan *o)
{
	struct merge *m = arg;
	if (m->found || (m->attempt != 0 && o->attempt_id != m->attempt))
		return 0;
	if (strcmp(o->kind, "token") != 0 || o->application_id == NULL) {
		m->unreadable_only = true;
		return 0;
	}
	int rc = open_token(m, SEAL_ACCESS_TOKEN, o, o->access_token, o->access_token_len, &m->tokens.access_token);
	if (rc == 0)
		rc = open_token(m, SEAL_REFRESH_TOKEN, o, o->refresh_token, o->refresh_token_len, &m->tokens.refresh_token);
	if (rc != 0)
		return rc;
	m->found = true;
	m->attempt_id = o->attempt_id;
	m->token_version = o->token_version;
	m->tokens.application_id = mem_strdup(o->application_id);
	m->tokens.consumer_id = mem_strdup(o->consumer_id);
	m->tokens.unified_api = mem_strdup(o->unified_api);
	m->tokens.service_id = mem_strdup(o->service_id);
	m->tokens.issued_at = o->issued_at;
	if (o->expires_at != 0 && o->issued_at != 0 && o->expires_at >= o->issued_at)
		m->tokens.expires_in_us = o->expires_at - o->issued_at;
	return 0;
}

static int find_orphan(struct merge *m, struct fault *f)
{
	int rc = vault_orphans(m->c->pg, m->id, false, on_candidate, m, f);
	if (rc == ST_NO_KEY || rc == ST_CRYPTO)
		return fault_set(f, rc, "the orphan's tokens cannot be opened: %s", status_text(rc));
	if (rc != 0)
		return rc;
	if (m->found)
		return 0;
	return fault_set(f, ST_NOT_FOUND, m->unreadable_only ? "there are only unreadable replies, which cannot be installed"
							     : "there is no open orphan of this connection");
}

/* Seals the refresh token that is about to be replaced for the version that replaces it. */
static int keep_old(struct merge *m, const struct buf *plain, int64_t version, struct fault *f)
{
	struct buf sealed = BUF_INIT(SEALED_MAX);
	if (plain->len == 0)
		return 0;
	int rc = seal_column(m->c->conf->keyring, SEAL_PREVIOUS_REFRESH_TOKEN, m->id, version, plain->data, plain->len, &sealed);
	if (rc != 0)
		(void)fault_set(f, rc, "sealing the old refresh token: %s", status_text(rc));
	else
		rc = vault_keep_previous(m->c->pg, m->id, version, &sealed, f);
	buf_fini(&sealed);
	return rc;
}

static int read_old(struct merge *m, int64_t version, struct buf *plain, struct fault *f)
{
	struct buf sealed = BUF_INIT(SEALED_MAX);
	int rc = vault_refresh_token(m->c->pg, m->id, &sealed, f);
	if (rc == 0 && sealed.len > 0) {
		rc = seal_open(m->c->conf->keyring, SEAL_REFRESH_TOKEN, m->id, version, sealed.data, sealed.len, plain);
		/* One that cannot be opened is of no use to anybody; with --force it may go. */
		if (rc != 0 && m->force)
			rc = 0;
		else if (rc != 0)
			(void)fault_set(f, rc, "the present refresh token cannot be opened, and would be lost (--force)");
	}
	buf_fini(&sealed);
	return rc;
}

static int merge_locked(struct merge *m, const struct provider *p, struct fault *f)
{
	struct buf old = BUF_INIT_SECRET(SEALED_MAX);
	struct vault_import_counts counts = { 0 };
	const struct vault_item item = { .import = &m->tokens, .provider = p };
	int64_t current = 0;
	int rc = vault_lock(m->c->pg, m->id, &current, f);
	if (rc == 0 && m->token_version <= current && !m->force)
		rc = fault_set(f, ST_CONFLICT, "the present token is newer than the orphan; --force installs the orphan all the same");
	if (rc == 0)
		rc = read_old(m, current, &old, f);
	struct vault_importer *im = vault_importer_new(m->c->pg, m->c->conf, true);
	if (rc == 0)
		rc = vault_import_chunk(im, &item, 1, &counts, f);
	if (rc == 0 && counts.updated != 1)
		rc = fault_set(f, ST_CONFLICT, "the connection changed meanwhile");
	if (rc == 0)
		rc = keep_old(m, &old, vault_importer_version(im), f);
	if (rc == 0)
		rc = vault_orphan_resolve(m->c->pg, m->id, m->attempt_id, "token", "merged", f);
	vault_importer_free(im);
	buf_fini(&old);
	return rc;
}

static int merge_in_transaction(struct merge *m, struct fault *f)
{
	const struct provider *p = conf_provider(m->c->conf, m->tokens.service_id);
	struct fault ignored;
	if (p == NULL)
		return fault_set(f, ST_NOT_FOUND, "its provider '%.64s' is not in the configuration", m->tokens.service_id);
	int rc = pgsync_exec(m->c->pg, "BEGIN", f);
	if (rc != 0)
		return rc;
	rc = merge_locked(m, p, f);
	if (rc == 0)
		return pgsync_exec(m->c->pg, "COMMIT", f);
	(void)!pgsync_exec(m->c->pg, "ROLLBACK", &ignored);
	return rc;
}

static int orphans_merge(struct ctl *c, const char *text, int64_t attempt, bool force)
{
	struct merge m = { .c = c, .attempt = attempt, .force = force };
	struct fault f = { 0 };
	CTL_TRY(ctl_connection_id(c, text, m.id));
	CTL_TRY(ctl_connect(c));
	import_init(&m.tokens);
	int rc = find_orphan(&m, &f);
	if (rc == 0)
		rc = merge_in_transaction(&m, &f);
	import_fini(&m.tokens);
	if (rc != 0)
		return ctl_fail("orphans merge", &f);
	if (vault_notify(c->pg, m.id, &f) != 0)
		ctl_note("orphans merge: the daemons were not told (%s); they find out by themselves", f.text);
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		ctl_json_id(&j.w, "connection_id", m.id);
		jsonw_int(&j.w, "attempt_id", m.attempt_id);
		jsonw_str(&j.w, "resolution", "merged");
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	printf("merged: the tokens of attempt %" PRId64 " are the connection's now\n", m.attempt_id);
	return CTL_OK;
}

int ctl_orphans(struct ctl *c, int argc, char **argv)
{
	bool all = false, force = false;
	int64_t attempt = 0;
	const struct ctl_opt opts[] = { { "all", CTL_FLAG, &all }, { "force", CTL_FLAG, &force }, { "attempt", CTL_NUMBER, &attempt } };
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 1, 2));
	if (strcmp(c->words[0], "list") == 0)
		return c->n_words == 1 && !force && attempt == 0 ? orphans_list(c, all) : ctl_usage(c, "orphans list: takes --all only");
	if (strcmp(c->words[0], "merge") != 0)
		return ctl_usage(c, "orphans: '%.40s' is neither list nor merge", c->words[0]);
	if (c->n_words != 2 || all)
		return ctl_usage(c, "orphans merge: takes one ID, --attempt and --force");
	return orphans_merge(c, c->words[1], attempt, force);
}
