/*
 * ctl_admin - migrate, app, key: what makes a vault ready for use.
 *
 * A new key is printed once, alone on stdout, so that a script can take it; all words about it go to stderr.
 * Postgres gets its SHA-256 only.
 */
#include "ctl/ctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "service/migrations.h"
#include "service/vault.h"

/* ---------------------------------------------------------------- migrate */

static void print_steps(const struct migrations_state *from)
{
	if (from->version == SCHEMA_VERSION) {
		printf("schema version %d: nothing to do\n", SCHEMA_VERSION);
		return;
	}
	if (from->version > SCHEMA_VERSION) {
		printf("schema version %d is newer than this program's %d and good for it: nothing to do\n", from->version, SCHEMA_VERSION);
		return;
	}
	printf("schema version %d -> %d\n", from->version, SCHEMA_VERSION);
	for (int v = from->version + 1; v <= SCHEMA_VERSION; v++)
		printf("  %d: %s\n", v, migrations_what(v));
	int oldest = migrations_compatible_from(SCHEMA_VERSION);
	if (from->version > 0)
		printf("daemons that were made for %s go on; restart them one after the other\n",
			from->version >= oldest ? "the version before" : "it");
	if (from->version > 0 && from->version < oldest)
		printf("older daemons have stopped refreshing: replace them now\n");
}

int ctl_migrate(struct ctl *c, int argc, char **argv)
{
	struct fault f = { 0 };
	struct migrations_state from = { 0 };
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 0, 0));
	CTL_TRY(ctl_connect_any(c));
	if (migrations_apply(c->pg, &from, &f) != 0)
		return ctl_fail("migrate", &f);
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_int(&j.w, "from", from.version);
		jsonw_int(&j.w, "to", from.version > SCHEMA_VERSION ? from.version : SCHEMA_VERSION);
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	print_steps(&from);
	return CTL_OK;
}

/* ---------------------------------------------------------------- app */

static int app_add(struct ctl *c, const char *name)
{
	struct fault f = { 0 };
	bool added = false;
	if (vault_app_check(name, &f) != 0)
		return ctl_usage(c, "app add: %s", f.text);
	CTL_TRY(ctl_connect(c));
	if (vault_app_add(c->pg, name, &added, &f) != 0)
		return ctl_fail("app add", &f);
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "application_id", name);
		jsonw_bool(&j.w, "added", added);
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	fputs("application ", stdout);
	ctl_print_text(name);
	puts(added ? " added" : " was there already");
	return CTL_OK;
}

static int on_app(void *arg, const struct vault_app *a)
{
	struct ctl_listing *l = arg;
	char when[CTL_TIME_BYTES];
	if (l->table != NULL) {
		ctl_table_cell(l->table, "%s", a->name);
		ctl_table_cell(l->table, "%" PRId64, a->connections);
		ctl_table_cell(l->table, "%" PRId64, a->keys);
		ctl_table_cell(l->table, "%s", ctl_time(a->created_at, when));
		return 0;
	}
	struct jsonw *w = &l->json.w;
	ctl_json_element_begin(&l->json);
	jsonw_object(w, NULL);
	jsonw_str(w, "application_id", a->name);
	jsonw_int(w, "connections", a->connections);
	jsonw_int(w, "live_keys", a->keys);
	ctl_json_time(w, "created_at", a->created_at);
	jsonw_object_end(w);
	return ctl_json_element_end(&l->json) == CTL_OK ? 0 : ST_IO;
}

static int app_list(struct ctl *c)
{
	static const char *const headers[] = { "APPLICATION", "CONNECTIONS", "KEYS", "CREATED" };
	struct fault f = { 0 };
	struct ctl_listing l;
	CTL_TRY(ctl_connect(c));
	ctl_listing_begin(&l, c, headers, 4);
	int rc = vault_app_list(c->pg, on_app, &l, &f);
	ctl_listing_end(&l);
	return rc == 0 ? CTL_OK : ctl_fail("app list", &f);
}

int ctl_app(struct ctl *c, int argc, char **argv)
{
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 1, 2));
	if (strcmp(c->words[0], "add") == 0)
		return c->n_words == 2 ? app_add(c, c->words[1]) : ctl_usage(c, "app add: the NAME is missing");
	if (strcmp(c->words[0], "list") == 0)
		return c->n_words == 1 ? app_list(c) : ctl_usage(c, "app list: takes no name");
	return ctl_usage(c, "app: '%.40s' is neither add nor list", c->words[0]);
}

/* ---------------------------------------------------------------- key */

static int print_key(const struct ctl *c, const struct buf *key, const char *key_id, const char *app)
{
	if (!c->json) {
		ctl_note("key %s for application %s; it is shown this once and cannot be shown again:", key_id, app);
		return ctl_print_secret(key, true);
	}
	/* Never through a plain buffer: only the key's characters go between the quotes, and none needs escaping. */
	struct buf text = BUF_INIT_SECRET(512);
	ALWAYS(buf_printf(&text, "{\"key_id\":\"%s\",\"key\":\"%s\"}", key_id, buf_str(key)) == 0);
	int status = ctl_print_secret(&text, true);
	buf_fini(&text);
	return status;
}

static int key_add(struct ctl *c, const char *app, const struct ctl_list *scopes)
{
	static const char *const default_scopes[] = { "connections:read", "connections:write" };
	struct fault f = { 0 };
	char key_id[VAULT_KEY_ID_BYTES] = "";
	uint8_t hash[32];
	for (size_t i = 0; i < scopes->n; i++)
		if (!vault_scope_known(scopes->v[i]))
			return ctl_usage(c, "key add: there is no scope '%.40s'", scopes->v[i]);
	CTL_TRY(ctl_connect(c));
	struct buf key = BUF_INIT_SECRET(128);
	vault_key_new(&key);
	vault_key_hash(buf_str(&key), key.len, hash);
	int rc = scopes->n > 0 ? vault_key_add(c->pg, app, hash, scopes->v, scopes->n, key_id, &f)
			       : vault_key_add(c->pg, app, hash, default_scopes, 2, key_id, &f);
	int status = rc == 0 ? print_key(c, &key, key_id, app) : ctl_fail("key add", &f);
	buf_fini(&key);
	return status;
}

static int on_key(void *arg, const struct vault_key *k)
{
	struct ctl_listing *l = arg;
	char created[CTL_TIME_BYTES], revoked[CTL_TIME_BYTES];
	if (l->table != NULL) {
		ctl_table_cell(l->table, "%s", k->key_id);
		ctl_table_cell(l->table, "%s", k->application_id);
		ctl_table_cell(l->table, "%s", k->scopes);
		ctl_table_cell(l->table, "%s", ctl_time(k->created_at, created));
		ctl_table_cell(l->table, "%s", ctl_time(k->revoked_at, revoked));
		return 0;
	}
	struct jsonw *w = &l->json.w;
	ctl_json_element_begin(&l->json);
	jsonw_object(w, NULL);
	jsonw_str(w, "key_id", k->key_id);
	jsonw_str(w, "application_id", k->application_id);
	jsonw_array(w, "scopes");
	for (const char *p = k->scopes; *p != '\0';) {
		size_t n = strcspn(p, " ");
		jsonw_strn(w, NULL, p, n);
		p += n + (p[n] == ' ');
	}
	jsonw_array_end(w);
	ctl_json_time(w, "created_at", k->created_at);
	ctl_json_time(w, "revoked_at", k->revoked_at);
	jsonw_object_end(w);
	return ctl_json_element_end(&l->json) == CTL_OK ? 0 : ST_IO;
}

static int key_list(struct ctl *c, const char *app)
{
	static const char *const headers[] = { "KEY ID", "APPLICATION", "SCOPES", "CREATED", "REVOKED" };
	struct fault f = { 0 };
	struct ctl_listing l;
	bool exists = true;
	CTL_TRY(ctl_connect(c));
	if (app != NULL && vault_app_exists(c->pg, app, &exists, &f) != 0)
		return ctl_fail("key list", &f);
	if (!exists)
		return ctl_complain("key list: there is no application '%.80s'", app);
	ctl_listing_begin(&l, c, headers, 5);
	int rc = vault_key_list(c->pg, app, on_key, &l, &f);
	ctl_listing_end(&l);
	return rc == 0 ? CTL_OK : ctl_fail("key list", &f);
}

static int key_revoke(struct ctl *c, const char *key_id)
{
	struct fault f = { 0 };
	bool was_live = false;
	CTL_TRY(ctl_connect(c));
	if (vault_key_revoke(c->pg, key_id, &was_live, &f) != 0)
		return ctl_fail("key revoke", &f);
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_str(&j.w, "key_id", key_id);
		jsonw_bool(&j.w, "was_live", was_live);
		jsonw_object_end(&j.w);
		return ctl_json_end(&j);
	}
	printf("key %s %s\n", key_id, was_live ? "revoked" : "was revoked already");
	return CTL_OK;
}

int ctl_key(struct ctl *c, int argc, char **argv)
{
	struct ctl_list scopes = { .n = 0 };
	const struct ctl_opt opts[] = { { "scope", CTL_LIST, &scopes } };
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 1, 2));
	const char *what = c->words[0], *name = c->n_words == 2 ? c->words[1] : NULL;
	if (scopes.n > 0 && strcmp(what, "add") != 0)
		return ctl_usage(c, "key: --scope belongs to key add");
	if (strcmp(what, "add") == 0)
		return name != NULL ? key_add(c, name, &scopes) : ctl_usage(c, "key add: the APP is missing");
	if (strcmp(what, "list") == 0)
		return key_list(c, name);
	if (strcmp(what, "revoke") == 0)
		return name != NULL ? key_revoke(c, name) : ctl_usage(c, "key revoke: the KEYID is missing");
	return ctl_usage(c, "key: '%.40s' is neither add, list nor revoke", what);
}
