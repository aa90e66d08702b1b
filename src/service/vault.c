/*
 * vault - applications, keys, connections: statements and the unpacking of their rows.
 *
 * Lists are read in pages by key, so that a table of millions never lies in memory. Words that are unknown (a newer
 * daemon wrote them) are shown as they are. Must not write to a connection.
 */
#include "service/vault.h"

#include <stdio.h>
#include <string.h>

#include "base/base64.h"
#include "base/bytes.h"
#include "base/crypto.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define PAGE 1000

/* ---------------------------------------------------------------- statements */

static const struct pgstmt SQL_APP_ADD = {
	"vault_app_add",
	"INSERT INTO refreshd.application (application_id) VALUES ($1) ON CONFLICT DO NOTHING",
};
static const struct pgstmt SQL_APP_EXISTS = {
	"vault_app_exists",
	"SELECT EXISTS (SELECT 1 FROM refreshd.application WHERE application_id = $1)",
};
static const struct pgstmt SQL_APP_LIST = {
	"vault_app_list",
	"SELECT a.application_id, a.created_at,"
	" (SELECT count(*) FROM refreshd.api_key k WHERE k.application_id = a.application_id AND k.revoked_at IS NULL),"
	" (SELECT count(*) FROM refreshd.connection c WHERE c.application_id = a.application_id)"
	" FROM refreshd.application a ORDER BY a.application_id",
};
static const struct pgstmt SQL_KEY_ADD = {
	"vault_key_add",
	"INSERT INTO refreshd.api_key (key_id, application_id, key_sha256, scopes)"
	" SELECT $1, a.application_id, $3, $4 FROM refreshd.application a WHERE a.application_id = $2",
};
static const struct pgstmt SQL_KEY_LIST = {
	"vault_key_list",
	"SELECT key_id, application_id, array_to_string(scopes, ' '), created_at, revoked_at FROM refreshd.api_key"
	" WHERE $1::text IS NULL OR application_id = $1 ORDER BY application_id, created_at, key_id",
};
static const struct pgstmt SQL_KEY_REVOKE = {
	"vault_key_revoke",
	"WITH old AS (SELECT key_id, revoked_at FROM refreshd.api_key WHERE key_id = $1 FOR UPDATE)"
	" UPDATE refreshd.api_key k SET revoked_at = coalesce(k.revoked_at, now()) FROM old WHERE k.key_id = old.key_id"
	" RETURNING old.revoked_at IS NULL",
};

#define CONNECTION_COLUMNS                                                                                          \
	"SELECT n.connection_id, n.application_id, n.consumer_id, n.unified_api, n.service_id, n.auth_type, n.enabled," \
	" n.state, n.health, n.reason, n.failures, n.first_failed_at, n.last_failed_at, n.created_at, n.updated_at,"    \
	" n.metadata, n.settings_public, n.settings IS NOT NULL, k.token_version, k.issued_at, k.expires_at,"           \
	" k.refresh_issued_at, k.refresh_expires_at, k.refreshed_at, coalesce(k.refreshes, 0), k.token_type, k.scope,"  \
	" k.access_token IS NOT NULL, k.refresh_token IS NOT NULL, k.captured IS NOT NULL,"                             \
	" s.due_at, s.attempt_id, s.doubts, s.lease_until, coalesce(s.lease_until > now(), false),"                     \
	" (SELECT count(*) FROM refreshd.orphan_token o WHERE o.slot = n.slot AND o.connection_id = n.connection_id"    \
	" AND o.resolved_at IS NULL)"                                                                                   \
	" FROM refreshd.connection n LEFT JOIN refreshd.credential k USING (slot, connection_id)"                       \
	" LEFT JOIN refreshd.schedule s USING (slot, connection_id) "
enum {
	C_ID, C_APP, C_CONSUMER, C_API, C_SERVICE, C_AUTH, C_ENABLED, C_STATE, C_HEALTH, C_REASON, C_FAILURES, C_FIRST_FAILED,
	C_LAST_FAILED, C_CREATED, C_UPDATED, C_METADATA, C_SETTINGS_PUBLIC, C_HAS_SETTINGS, C_VERSION, C_ISSUED, C_EXPIRES,
	C_R_ISSUED, C_R_EXPIRES, C_REFRESHED, C_REFRESHES, C_TOKEN_TYPE, C_SCOPE, C_HAS_ACCESS, C_HAS_REFRESH, C_HAS_CAPTURED,
	C_DUE, C_ATTEMPT, C_DOUBTS, C_LEASE_UNTIL, C_LEASED, C_ORPHANS
};

static const struct pgstmt SQL_LIST = {
	"vault_list",
	CONNECTION_COLUMNS
	"WHERE ($1::text IS NULL OR n.state = $1) AND ($2::text IS NULL OR n.health = $2)"
	" AND ($3::text IS NULL OR n.application_id = $3) AND (NOT $9::boolean OR s.doubts > 0 OR n.reason = 'rotation_lost')"
	" AND (n.application_id, n.consumer_id, n.unified_api, n.service_id) > ($4, $5, $6, $7)"
	" ORDER BY n.application_id, n.consumer_id, n.unified_api, n.service_id LIMIT $8",
};
static const struct pgstmt SQL_SHOW = {
	"vault_show",
	CONNECTION_COLUMNS "WHERE n.slot = $1 AND n.connection_id = $2",
};
static const struct pgstmt SQL_TOKEN = {
	"vault_token",
	"SELECT n.enabled, n.state, n.health, n.reason, n.auth_type, coalesce(k.token_type, ''), k.token_version, k.expires_at,"
	" k.access_token FROM refreshd.connection n JOIN refreshd.credential k USING (slot, connection_id)"
	" WHERE n.slot = $1 AND n.connection_id = $2",
};

/* ---------------------------------------------------------------- helpers */

int vault_run(struct pgsync *pg, const struct pgstmt *s, struct pgargs *a, int64_t *rows, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, s, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	if (rows != NULL)
		*rows = pgresult_affected(&r);
	pgsync_clear(&r);
	return 0;
}

void vault_add_id(struct pgargs *a, const uint8_t id[16])
{
	pgargs_i16(a, conn_slot_of(id));
	pgargs_uuid(a, id);
}

static int64_t int_or_0(const struct pgresult *r, int row, int col)
{
	return pgresult_null(r, row, col) ? 0 : pgresult_int(r, row, col);
}

/* ---------------------------------------------------------------- applications */

int vault_app_check(const char *name, struct fault *f)
{
	const struct conn_key key = { name, "x", "x", "x" };
	int rc = conn_key_check(&key, f);
	if (rc == 0 && strcmp(name, "*") == 0)
		return fault_set(f, ST_INVALID, "'*' stands for all applications and cannot be the name of one");
	return rc;
}

int vault_app_add(struct pgsync *pg, const char *name, bool *added, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_text(a, name);
	int rc = pgsync_query(pg, &SQL_APP_ADD, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	*added = pgresult_affected(&r) == 1;
	pgsync_clear(&r);
	return 0;
}

int vault_app_exists(struct pgsync *pg, const char *name, bool *exists, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_text(a, name);
	int rc = pgsync_query(pg, &SQL_APP_EXISTS, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	*exists = pgresult_bool(&r, 0, 0);
	pgsync_clear(&r);
	return 0;
}

int vault_app_list(struct pgsync *pg, vault_app_fn *fn, void *arg, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_APP_LIST, NULL, &r, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; rc == 0 && i < pgresult_rows(&r); i++) {
		const struct vault_app a = {
			.name = pgresult_text(&r, i, 0, NULL),
			.created_at = pgresult_time(&r, i, 1),
			.keys = pgresult_int(&r, i, 2),
			.connections = pgresult_int(&r, i, 3),
		};
		rc = fn(arg, &a);
	}
	pgsync_clear(&r);
	return rc;
}

/* ---------------------------------------------------------------- keys */

#define KEY_PREFIX "rfd_"
#define KEY_RANDOM 32

bool vault_scope_known(const char *scope)
{
#define X(word)                        \
	if (strcmp(scope, word) == 0) \
		return true;
	VAULT_SCOPE_LIST(X)
#undef X
	return false;
}

/* Six characters over the text before them. */
static void put_checksum(struct buf *out, const char *text, size_t n)
{
	uint32_t crc = crypto_crc32c(0, text, n);
	uint8_t be[4];
	bytes_put_be32(be, crc);
	ALWAYS(base64url_encode(out, be, sizeof(be)) == 0);
}

void vault_key_new(struct buf *out)
{
	uint8_t key[KEY_RANDOM];
	size_t start = out->len;
	sys_random(key, sizeof(key));
	ALWAYS(buf_reserve(out, VAULT_KEY_CHARS) == 0);
	ALWAYS(buf_puts(out, KEY_PREFIX) == 0);
	ALWAYS(base64url_encode(out, key, sizeof(key)) == 0);
	mem_wipe(key, sizeof(key));
	put_checksum(out, buf_str(out) + start, out->len - start);
	ALWAYS(out->len - start == VAULT_KEY_CHARS);
}

bool vault_key_plausible(const char *key, size_t n)
{
	const size_t body = VAULT_KEY_CHARS - 6;
	if (n != VAULT_KEY_CHARS || memcmp(key, KEY_PREFIX, strlen(KEY_PREFIX)) != 0)
		return false;
	struct buf sum = BUF_INIT(16);
	put_checksum(&sum, key, body);
	bool same = buf_equals(&sum, key + body, 6);
	buf_fini(&sum);
	return same;
}

void vault_key_hash(const char *key, size_t n, uint8_t out[32])
{
	crypto_sha256(key, n, out);
}

int vault_key_add(struct pgsync *pg, const char *app, const uint8_t hash[32], const char *const *scopes, size_t n,
	char key_id[VAULT_KEY_ID_BYTES], struct fault *f)
{
	uint8_t raw[8];
	char id[VAULT_KEY_ID_BYTES] = "k_";
	struct pgresult r;
	sys_random(raw, sizeof(raw));
	for (size_t i = 0; i < sizeof(raw); i++)
		(void)snprintf(id + 2 + 2 * i, 3, "%02x", raw[i]);
	struct pgargs *a = pgargs_new();
	pgargs_text(a, id);
	pgargs_text(a, app);
	pgargs_bytes(a, hash, 32);
	pgargs_array(a, PGT_TEXT);
	for (size_t i = 0; i < n; i++)
		pgargs_text(a, scopes[i]);
	pgargs_array_end(a);
	int rc = pgsync_query(pg, &SQL_KEY_ADD, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	bool added = pgresult_affected(&r) == 1;
	pgsync_clear(&r);
	if (!added)
		return fault_set(f, ST_NOT_FOUND, "there is no application '%.80s': refreshctl app add makes it", app);
	memcpy(key_id, id, sizeof(id));
	return 0;
}

int vault_key_list(struct pgsync *pg, const char *app_or_null, vault_key_fn *fn, void *arg, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_text(a, app_or_null);
	int rc = pgsync_query(pg, &SQL_KEY_LIST, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; rc == 0 && i < pgresult_rows(&r); i++) {
		const struct vault_key k = {
			.key_id = pgresult_text(&r, i, 0, NULL),
			.application_id = pgresult_text(&r, i, 1, NULL),
			.scopes = pgresult_text(&r, i, 2, NULL),
			.created_at = pgresult_time(&r, i, 3),
			.revoked_at = pgresult_time_or_0(&r, i, 4),
		};
		rc = fn(arg, &k);
	}
	pgsync_clear(&r);
	return rc;
}

int vault_key_revoke(struct pgsync *pg, const char *key_id, bool *was_live, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	pgargs_text(a, key_id);
	int rc = pgsync_query(pg, &SQL_KEY_REVOKE, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	if (pgresult_rows(&r) == 0)
		rc = fault_set(f, ST_NOT_FOUND, "there is no key with the id '%.40s': refreshctl key list shows them", key_id);
	else
		*was_live = pgresult_bool(&r, 0, 0);
	pgsync_clear(&r);
	return rc;
}

/* ---------------------------------------------------------------- connections */

static void unpack(const struct pgresult *r, int i, struct vault_connection *c)
{
	*c = (struct vault_connection){
		.application_id = pgresult_text(r, i, C_APP, NULL),
		.consumer_id = pgresult_text(r, i, C_CONSUMER, NULL),
		.unified_api = pgresult_text(r, i, C_API, NULL),
		.service_id = pgresult_text(r, i, C_SERVICE, NULL),
		.auth_type = pgresult_text(r, i, C_AUTH, NULL),
		.enabled = pgresult_bool(r, i, C_ENABLED),
		.state = pgresult_text(r, i, C_STATE, NULL),
		.health = pgresult_text(r, i, C_HEALTH, NULL),
		.reason = pgresult_text(r, i, C_REASON, NULL),
		.failures = pgresult_int(r, i, C_FAILURES),
		.first_failed_at = pgresult_time_or_0(r, i, C_FIRST_FAILED),
		.last_failed_at = pgresult_time_or_0(r, i, C_LAST_FAILED),
		.created_at = pgresult_time_or_0(r, i, C_CREATED),
		.updated_at = pgresult_time_or_0(r, i, C_UPDATED),
		.metadata = pgresult_text(r, i, C_METADATA, NULL),
		.settings_public = pgresult_text(r, i, C_SETTINGS_PUBLIC, NULL),
		.has_settings = pgresult_bool(r, i, C_HAS_SETTINGS),
		.token_version = int_or_0(r, i, C_VERSION),
		.issued_at = pgresult_time_or_0(r, i, C_ISSUED),
		.expires_at = pgresult_time_or_0(r, i, C_EXPIRES),
		.refresh_issued_at = pgresult_time_or_0(r, i, C_R_ISSUED),
		.refresh_expires_at = pgresult_time_or_0(r, i, C_R_EXPIRES),
		.refreshed_at = pgresult_time_or_0(r, i, C_REFRESHED),
		.refreshes = pgresult_int(r, i, C_REFRESHES),
		.token_type = pgresult_text_or_null(r, i, C_TOKEN_TYPE),
		.scope = pgresult_text_or_null(r, i, C_SCOPE),
		.has_access_token = pgresult_bool(r, i, C_HAS_ACCESS),
		.has_refresh_token = pgresult_bool(r, i, C_HAS_REFRESH),
		.has_captured = pgresult_bool(r, i, C_HAS_CAPTURED),
		.due_at = pgresult_time_or_0(r, i, C_DUE),
		.attempt_id = int_or_0(r, i, C_ATTEMPT),
		.doubts = int_or_0(r, i, C_DOUBTS),
		.lease_until = pgresult_time_or_0(r, i, C_LEASE_UNTIL),
		.leased = pgresult_bool(r, i, C_LEASED),
		.orphans = pgresult_int(r, i, C_ORPHANS),
	};
	memcpy(c->id, pgresult_uuid(r, i, C_ID), sizeof(c->id));
}

struct cursor {
	char *part[4];
};

static void cursor_set(struct cursor *c, const char *app, const char *consumer, const char *api, const char *service)
{
	const char *parts[4] = { app, consumer, api, service };
	for (int i = 0; i < 4; i++) {
		mem_free(c->part[i]);
		c->part[i] = parts[i] != NULL ? mem_strdup(parts[i]) : NULL;
	}
}

static int query_page(struct pgsync *pg, const struct vault_filter *w, const struct cursor *from, int64_t limit,
	struct pgresult *r, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	pgargs_text(a, w->state);
	pgargs_text(a, w->health);
	pgargs_text(a, w->application_id);
	for (int i = 0; i < 4; i++)
		pgargs_text(a, from->part[i]);
	pgargs_i64(a, limit);
	pgargs_bool(a, w->in_doubt);
	return pgsync_query(pg, &SQL_LIST, a, r, NULL, f);
}

int vault_list(struct pgsync *pg, const struct vault_filter *w, vault_connection_fn *fn, void *arg, bool *more, struct fault *f)
{
	struct cursor from = { { NULL } };
	int64_t left = w->limit == 0 ? INT64_MAX : w->limit;
	int rc = 0;
	*more = false;
	cursor_set(&from, "", "", "", "");
	for (bool last = false; rc == 0 && !last;) {
		int64_t want = left <= PAGE ? left + 1 : PAGE; /* one more tells whether there is more */
		struct pgresult r;
		rc = query_page(pg, w, &from, want, &r, f);
		if (rc != 0)
			break;
		int n = pgresult_rows(&r);
		for (int i = 0; rc == 0 && i < n && left > 0; i++, left--) {
			struct vault_connection c;
			unpack(&r, i, &c);
			rc = fn(arg, &c);
			if (i == n - 1)
				cursor_set(&from, c.application_id, c.consumer_id, c.unified_api, c.service_id);
		}
		last = n < want || left == 0;
		*more = left == 0 && n == want;
		pgsync_clear(&r);
	}
	cursor_set(&from, NULL, NULL, NULL, NULL);
	return rc;
}

static int no_such_connection(struct fault *f)
{
	return fault_set(f, ST_NOT_FOUND, "there is no such connection: refreshctl list shows them");
}

int vault_show(struct pgsync *pg, const uint8_t id[16], vault_connection_fn *fn, void *arg, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	vault_add_id(a, id);
	int rc = pgsync_query(pg, &SQL_SHOW, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	if (pgresult_rows(&r) == 0) {
		rc = no_such_connection(f);
	} else {
		struct vault_connection c;
		unpack(&r, 0, &c);
		rc = fn(arg, &c);
	}
	pgsync_clear(&r);
	return rc;
}

static void copy_word(char *to, size_t size, const struct pgresult *r, int col)
{
	(void)snprintf(to, size, "%s", pgresult_text(r, 0, col, NULL));
}

int vault_token(struct pgsync *pg, const uint8_t id[16], struct vault_token *out, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult r;
	vault_add_id(a, id);
	int rc = pgsync_query(pg, &SQL_TOKEN, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	if (pgresult_rows(&r) == 0) {
		pgsync_clear(&r);
		return no_such_connection(f);
	}
	*out = (struct vault_token){
		.enabled = pgresult_bool(&r, 0, 0),
		.token_version = pgresult_int(&r, 0, 6),
		.expires_at = pgresult_time_or_0(&r, 0, 7),
		.sealed = BUF_INIT((size_t)1024 * 1024),
	};
	copy_word(out->state, sizeof(out->state), &r, 1);
	copy_word(out->health, sizeof(out->health), &r, 2);
	copy_word(out->reason, sizeof(out->reason), &r, 3);
	copy_word(out->auth_type, sizeof(out->auth_type), &r, 4);
	copy_word(out->token_type, sizeof(out->token_type), &r, 5);
	if (!pgresult_null(&r, 0, 8)) {
		size_t n;
		const void *p = pgresult_bytes(&r, 0, 8, &n);
		rc = buf_set(&out->sealed, p, n);
		if (rc != 0)
			(void)fault_set(f, rc, "the sealed access token is larger than any token can be");
	}
	pgsync_clear(&r);
	return rc;
}
