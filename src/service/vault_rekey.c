/*
 * vault_rekey - the statements of re-sealing, and the loop over their batches.
 *
 * A sealed text starts with 0x01, the length of its key id and the id, so that the server can pick the rows that are
 * not under the first key without opening anything. Plain text lives in one secret buffer for the moment between
 * two seals. Must not skip a value silently: everything that is not written is counted.
 */
#include "service/vault_rekey.h"

#include <string.h>

#include "base/mem.h"
#include "service/seal.h"
#include "service/vault.h"

#define BATCH 200
#define SEALED_MAX ((size_t)4 * 1024 * 1024)
#define MAX_COLUMNS 4
#define MAX_UNDONE 10

/* ---------------------------------------------------------------- statements */

#define OTHER_KEY(col) "(" col " IS NOT NULL AND substring(" col " FROM 1 FOR octet_length($3)) <> $3)"

static const struct pgstmt SQL_CREDENTIALS = {
	"rekey_credentials",
	"SELECT k.slot, k.connection_id, k.token_version, coalesce(s.lease_until > now(), false), k.token_version, ''::text,"
	" k.access_token, k.refresh_token, k.previous_refresh_token, k.captured"
	" FROM refreshd.credential k JOIN refreshd.schedule s USING (slot, connection_id)"
	" WHERE (k.slot, k.connection_id) > ($1, $2) AND (" OTHER_KEY("k.access_token") " OR " OTHER_KEY("k.refresh_token")
	" OR " OTHER_KEY("k.previous_refresh_token") " OR " OTHER_KEY("k.captured") ")"
	" ORDER BY k.slot, k.connection_id LIMIT $4",
};
/* schedule first, and only where its version is the one that was read: then the credential cannot move under us. */
static const struct pgstmt SQL_PUT_CREDENTIALS = {
	"rekey_put_credentials",
	"WITH r AS MATERIALIZED (SELECT * FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[],"
	" $6::bytea[], $7::bytea[], $8::bytea[], $9::bytea[]) AS t (slot, connection_id, token_version, unused, unused2, a, b, c, d)),"
	" l AS MATERIALIZED (SELECT s.slot, s.connection_id FROM refreshd.schedule s JOIN r ON s.slot = r.slot"
	" AND s.connection_id = r.connection_id WHERE s.token_version = r.token_version"
	" AND (s.lease_until IS NULL OR s.lease_until <= now()) FOR NO KEY UPDATE OF s SKIP LOCKED)"
	" UPDATE refreshd.credential k SET access_token = coalesce(r.a, k.access_token),"
	" refresh_token = coalesce(r.b, k.refresh_token), previous_refresh_token = coalesce(r.c, k.previous_refresh_token),"
	" captured = coalesce(r.d, k.captured) FROM l JOIN r USING (slot, connection_id)"
	" WHERE k.slot = r.slot AND k.connection_id = r.connection_id AND k.token_version = r.token_version",
};
static const struct pgstmt SQL_SETTINGS = {
	"rekey_settings",
	"SELECT n.slot, n.connection_id, 0::bigint, false, 0::bigint, ''::text, n.settings FROM refreshd.connection n"
	" WHERE (n.slot, n.connection_id) > ($1, $2) AND " OTHER_KEY("n.settings") " ORDER BY n.slot, n.connection_id LIMIT $4",
};
/* Settings carry no version: they are fenced by the very bytes that were read. */
static const struct pgstmt SQL_PUT_SETTINGS = {
	"rekey_put_settings",
	"UPDATE refreshd.connection n SET settings = r.a"
	" FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::bytea[], $7::bytea[])"
	" AS r (slot, connection_id, unused, unused2, unused3, a, was)"
	" WHERE n.slot = r.slot AND n.connection_id = r.connection_id AND n.settings = r.was AND r.a IS NOT NULL",
};
/* An endpoint has no slot. A rotation changes the secret and the previous one together, so the bytes of the first fence both. */
static const struct pgstmt SQL_HOOKS = {
	"rekey_hooks",
	"WITH w AS MATERIALIZED (SELECT * FROM refreshd.webhook_endpoint w WHERE w.application_id IS NOT NULL"
	" AND (" OTHER_KEY("w.secret") " OR " OTHER_KEY("w.previous_secret") "))"
	" SELECT 0::smallint, w.endpoint_id::uuid, 0::bigint, false, 0::bigint, ''::text, w.secret, w.previous_secret FROM w"
	" WHERE (0::smallint, w.endpoint_id::uuid) > ($1::smallint, $2::uuid) ORDER BY w.endpoint_id::uuid LIMIT $4",
};
static const struct pgstmt SQL_PUT_HOOKS = {
	"rekey_put_hooks",
	"UPDATE refreshd.webhook_endpoint w SET secret = coalesce(r.a, w.secret), previous_secret = coalesce(r.b, w.previous_secret)"
	" FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::bytea[], $7::bytea[], $8::bytea[])"
	" AS r (slot, endpoint_id, unused, unused2, unused3, a, b, was)"
	" WHERE w.endpoint_id = r.endpoint_id::text AND w.secret = r.was",
};
static const struct pgstmt SQL_ORPHANS = {
	"rekey_orphans",
	"SELECT o.slot, o.connection_id, o.token_version, false, o.attempt_id, o.kind, o.access_token, o.refresh_token, o.raw_reply"
	" FROM refreshd.orphan_token o WHERE (o.slot, o.connection_id, o.attempt_id, o.kind) > ($1, $2, $5, $6)"
	" AND (" OTHER_KEY("o.access_token") " OR " OTHER_KEY("o.refresh_token") " OR " OTHER_KEY("o.raw_reply") ")"
	" ORDER BY o.slot, o.connection_id, o.attempt_id, o.kind LIMIT $4",
};
/* An orphan never changes but for its resolution. */
static const struct pgstmt SQL_PUT_ORPHANS = {
	"rekey_put_orphans",
	"UPDATE refreshd.orphan_token o SET access_token = coalesce(r.a, o.access_token),"
	" refresh_token = coalesce(r.b, o.refresh_token), raw_reply = coalesce(r.c, o.raw_reply)"
	" FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::bigint[], $5::text[], $6::bytea[], $7::bytea[], $8::bytea[])"
	" AS r (slot, connection_id, token_version, attempt_id, kind, a, b, c)"
	" WHERE o.slot = r.slot AND o.connection_id = r.connection_id AND o.attempt_id = r.attempt_id AND o.kind = r.kind",
};
enum { C_SLOT, C_ID, C_VERSION, C_LEASED, C_ATTEMPT, C_KIND, C_FIRST };

#define COUNT_OF(table, col)                                                                                            \
	"SELECT '" table "." col "' AS col, CASE WHEN get_byte(" col ", 0) = 1 THEN"                                    \
	" encode(substring(" col " FROM 3 FOR get_byte(" col ", 1)), 'escape') ELSE '?' END AS key FROM refreshd." table \
	" WHERE octet_length(" col ") > 2"
static const struct pgstmt SQL_COUNTS = {
	"rekey_counts",
	"SELECT col, key, count(*) FROM (" COUNT_OF("credential", "access_token") " UNION ALL "
	COUNT_OF("credential", "refresh_token") " UNION ALL " COUNT_OF("credential", "previous_refresh_token") " UNION ALL "
	COUNT_OF("credential", "captured") " UNION ALL " COUNT_OF("connection", "settings") " UNION ALL "
	COUNT_OF("orphan_token", "access_token") " UNION ALL " COUNT_OF("orphan_token", "refresh_token") " UNION ALL "
	COUNT_OF("orphan_token", "raw_reply") " UNION ALL " COUNT_OF("webhook_endpoint", "secret") " UNION ALL "
	COUNT_OF("webhook_endpoint", "previous_secret") ") x GROUP BY col, key ORDER BY col, key",
};

struct target {
	const struct pgstmt *get, *put;
	bool fence_by_bytes; /* the old value of column 0 goes along */
	bool long_cursor;    /* attempt id and kind are part of the key */
	size_t n;
	struct {
		enum seal_column col;
		bool versioned;
	} columns[MAX_COLUMNS];
};
static const struct target targets[] = {
	{ &SQL_CREDENTIALS, &SQL_PUT_CREDENTIALS, false, false, 4,
		{ { SEAL_ACCESS_TOKEN, true }, { SEAL_REFRESH_TOKEN, true }, { SEAL_PREVIOUS_REFRESH_TOKEN, true }, { SEAL_CAPTURED, false } } },
	{ &SQL_SETTINGS, &SQL_PUT_SETTINGS, true, false, 1, { { SEAL_SETTINGS, false } } },
	{ &SQL_HOOKS, &SQL_PUT_HOOKS, true, false, 2, { { SEAL_WEBHOOK_SECRET, false }, { SEAL_WEBHOOK_SECRET, false } } },
	/* An orphan's tokens were sealed to become the credential's. */
	{ &SQL_ORPHANS, &SQL_PUT_ORPHANS, false, true, 3,
		{ { SEAL_ACCESS_TOKEN, true }, { SEAL_REFRESH_TOKEN, true }, { SEAL_RAW_REPLY, true } } },
};

/* ---------------------------------------------------------------- one batch */

struct run {
	struct pgsync *pg;
	struct keyring *keyring;
	struct buf prefix; /* how a text under the first key starts */
	struct buf plain;  /* secret */
	struct buf sealed[BATCH * MAX_COLUMNS];
	struct vault_rekey_counts *counts;
};

struct cursor {
	int16_t slot;
	uint8_t id[16];
	int64_t attempt_id;
	char kind[32];
};

static bool under_first_key(const struct run *x, const void *p, size_t n)
{
	return n >= x->prefix.len && memcmp(p, x->prefix.data, x->prefix.len) == 0;
}

/* The value of column `c` in row `i`, sealed again into `out`; left empty when nothing is to be done or can be done. */
static int reseal(struct run *x, const struct target *t, const struct pgresult *r, int i, size_t c, struct buf *out)
{
	int col = C_FIRST + (int)c;
	size_t n;
	buf_reset(out);
	if (pgresult_null(r, i, col))
		return 0;
	const void *p = pgresult_bytes(r, i, col, &n);
	if (under_first_key(x, p, n))
		return 0;
	const uint8_t *id = pgresult_uuid(r, i, C_ID);
	int64_t version = t->columns[c].versioned ? pgresult_int(r, i, C_VERSION) : 0;
	buf_reset(&x->plain);
	if (seal_open(x->keyring, t->columns[c].col, id, version, p, n, &x->plain) != 0) {
		x->counts->unopenable++;
		return 0;
	}
	int rc = seal_column(x->keyring, t->columns[c].col, id, version, x->plain.data, x->plain.len, out);
	buf_reset(&x->plain);
	return rc;
}

/* *take[i]: the row has something to write. */
static int reseal_rows(struct run *x, const struct target *t, const struct pgresult *r, bool *take, size_t *values, struct fault *f)
{
	*values = 0;
	for (int i = 0; i < pgresult_rows(r); i++) {
		take[i] = false;
		if (pgresult_bool(r, i, C_LEASED)) {
			x->counts->busy++;
			continue;
		}
		for (size_t c = 0; c < t->n; c++) {
			struct buf *out = &x->sealed[(size_t)i * MAX_COLUMNS + c];
			int rc = reseal(x, t, r, i, c, out);
			if (rc != 0)
				return fault_set(f, rc, "sealing: %s", status_text(rc));
			*values += out->len > 0;
			take[i] = take[i] || out->len > 0;
		}
	}
	return 0;
}

/* One array parameter: the rest runs for each row `i` that is taken. */
#define COLUMN(type_, ...)                                           \
	do {                                                         \
		pgargs_array(a, (type_));                            \
		for (int i = 0; i < pgresult_rows(r); i++)           \
			if (take[i]) {                               \
				__VA_ARGS__;                         \
			}                                            \
		pgargs_array_end(a);                                 \
	} while (0)

static int put_rows(struct run *x, const struct target *t, const struct pgresult *r, const bool *take, int64_t *written, struct fault *f)
{
	struct pgargs *a = pgargs_new();
	struct pgresult done;
	size_t n;
	COLUMN(PGT_I16, pgargs_i16(a, (int16_t)pgresult_int(r, i, C_SLOT)));
	COLUMN(PGT_UUID, pgargs_uuid(a, pgresult_uuid(r, i, C_ID)));
	COLUMN(PGT_I64, pgargs_i64(a, pgresult_int(r, i, C_VERSION)));
	COLUMN(PGT_I64, pgargs_i64(a, pgresult_int(r, i, C_ATTEMPT)));
	COLUMN(PGT_TEXT, pgargs_text(a, pgresult_text(r, i, C_KIND, NULL)));
	for (size_t c = 0; c < t->n; c++)
		COLUMN(PGT_BYTES, pgargs_buf(a, &x->sealed[(size_t)i * MAX_COLUMNS + c]));
	if (t->fence_by_bytes)
		COLUMN(PGT_BYTES, const void *p = pgresult_bytes(r, i, C_FIRST, &n); pgargs_bytes(a, p, n));
	int rc = pgsync_query(x->pg, t->put, a, &done, NULL, f);
	if (rc != 0)
		return rc;
	*written = pgresult_affected(&done);
	pgsync_clear(&done);
	return 0;
}

static int one_batch(struct run *x, const struct target *t, struct cursor *at, bool *last, struct fault *f)
{
	bool take[BATCH];
	size_t values = 0;
	struct pgresult r;
	struct pgargs *a = pgargs_new();
	pgargs_i16(a, at->slot);
	pgargs_uuid(a, at->id);
	pgargs_bytes(a, x->prefix.data, x->prefix.len);
	pgargs_i64(a, BATCH);
	if (t->long_cursor) {
		pgargs_i64(a, at->attempt_id);
		pgargs_text(a, at->kind);
	}
	int rc = pgsync_query(x->pg, t->get, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	int n = pgresult_rows(&r);
	rc = reseal_rows(x, t, &r, take, &values, f);
	uint64_t taken = 0;
	int64_t written = 0;
	for (int i = 0; rc == 0 && i < n; i++)
		taken += take[i];
	if (rc == 0 && taken > 0)
		rc = put_rows(x, t, &r, take, &written, f);
	if (rc == 0) {
		x->counts->rows += (uint64_t)written;
		x->counts->values += taken == (uint64_t)written ? values : (uint64_t)written;
		x->counts->busy += taken - (uint64_t)written;
		*last = n < BATCH;
	}
	if (rc == 0 && n > 0) {
		at->slot = (int16_t)pgresult_int(&r, n - 1, C_SLOT);
		memcpy(at->id, pgresult_uuid(&r, n - 1, C_ID), sizeof(at->id));
		at->attempt_id = pgresult_int(&r, n - 1, C_ATTEMPT);
		strncpy(at->kind, pgresult_text(&r, n - 1, C_KIND, NULL), sizeof(at->kind) - 1);
	}
	pgsync_clear(&r);
	return rc;
}

static int one_target(struct run *x, const struct target *t, vault_rekey_fn *fn, void *arg, struct fault *f)
{
	struct cursor at = { .slot = -1, .attempt_id = INT64_MIN };
	bool last = false;
	int rc = 0;
	for (int undone = 0; rc == 0 && !last;) {
		struct vault_rekey_counts before = *x->counts;
		rc = one_batch(x, t, &at, &last, f);
		if (rc == ST_AGAIN && ++undone < MAX_UNDONE) {
			*x->counts = before; /* the server undid the batch: the same one once more */
			rc = 0;
			continue;
		}
		undone = 0;
		if (rc == 0)
			rc = fn(arg, x->counts);
	}
	return rc;
}

int vault_rekey(struct pgsync *pg, struct keyring *k, vault_rekey_fn *fn, void *arg, struct vault_rekey_counts *counts, struct fault *f)
{
	const char *first = keyring_first_id(k);
	struct run *x = mem_alloc(sizeof(*x));
	*x = (struct run){ .pg = pg, .keyring = k, .counts = counts };
	buf_init(&x->prefix, 64);
	buf_init_secret(&x->plain, SEALED_MAX);
	for (size_t i = 0; i < BATCH * MAX_COLUMNS; i++)
		buf_init(&x->sealed[i], SEALED_MAX);
	ALWAYS(buf_putc(&x->prefix, 1) == 0 && buf_putc(&x->prefix, (char)strlen(first)) == 0 && buf_puts(&x->prefix, first) == 0);
	counts->busy = counts->unopenable = 0;
	int rc = 0;
	for (size_t i = 0; rc == 0 && i < sizeof(targets) / sizeof(targets[0]); i++)
		rc = one_target(x, &targets[i], fn, arg, f);
	for (size_t i = 0; i < BATCH * MAX_COLUMNS; i++)
		buf_fini(&x->sealed[i]);
	buf_fini(&x->plain);
	buf_fini(&x->prefix);
	mem_free(x);
	return rc;
}

int vault_sealed_counts(struct pgsync *pg, vault_sealed_fn *fn, void *arg, struct fault *f)
{
	struct pgresult r;
	int rc = pgsync_query(pg, &SQL_COUNTS, NULL, &r, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; rc == 0 && i < pgresult_rows(&r); i++) {
		const struct vault_sealed_count c = {
			.column = pgresult_text(&r, i, 0, NULL),
			.key_id = pgresult_text(&r, i, 1, NULL),
			.n = pgresult_int(&r, i, 2),
		};
		rc = fn(arg, &c);
	}
	pgsync_clear(&r);
	return rc;
}
