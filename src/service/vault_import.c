/*
 * vault_import - the SQL of an import. Read the statements first; the C below sorts, seals, binds.
 *
 * The schedule decides which rows are new; those are copied straight into the other tables, the rest is updated by one
 * statement. Rows go in the order of their ids, so that two importers cannot deadlock, and what the server undoes all the
 * same is sent again. A token version is the wall clock, and grows by one at least from row to row. Sealing happens right
 * before a row is sent, because the version is part of what is sealed. Must not log or print.
 */
#include "service/vault_import.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/event.h"
#include "service/seal.h"
#include "service/upsert.h"
#include "service/vault.h"

#define SEALED_MAX ((size_t)256 * 1024)
#define ENTITY_MAX ((size_t)32 * 1024)
#define MAX_TRIES 4

/* ---------------------------------------------------------------- statements */

/* A deadline that was never set tells the new rows from the others, whose update takes it away; a partitioned table does not tell it by
 * xmax. */
static const struct pgstmt SQL_SCHEDULE = {
	"vault_import_schedule",
	"INSERT INTO refreshd.schedule AS s (slot, connection_id, token_version, due_at, application_id, service_id, sent_deadline)"
	" SELECT *, '-infinity'::timestamptz FROM unnest($1::smallint[], $2::uuid[], $3::bigint[], $4::timestamptz[], $5::text[], $6::text[])"
	" AS t (slot, connection_id, token_version, due_at, application_id, service_id) ORDER BY slot, connection_id"
	" ON CONFLICT (slot, connection_id) DO UPDATE SET " UPSERT_SCHEDULE_SET("excluded")
	" WHERE s.token_version < excluded.token_version"
	" RETURNING s.connection_id, s.sent_deadline IS NOT DISTINCT FROM '-infinity'",
};
/* After the schedule's locks are ours: what is read here cannot change any more. */
static const struct pgstmt SQL_EXISTING = {
	"vault_import_existing",
	"SELECT c.connection_id, c.state, c.health, c.enabled, c.created_at, c.last_failed_at, CASE WHEN t.needed THEN c.settings_public END"
	" FROM unnest($1::smallint[], $2::uuid[], $3::boolean[]) AS t (slot, connection_id, needed)"
	" JOIN refreshd.connection c USING (slot, connection_id)",
};
static const struct pgstmt SQL_VERSIONS = {
	"vault_import_versions",
	"SELECT count(*), coalesce(max(s.token_version), 0)"
	" FROM unnest($1::smallint[], $2::uuid[]) AS t (slot, connection_id) JOIN refreshd.schedule s USING (slot, connection_id)",
};
/* What is new goes straight to where it stays: nothing takes many rows as cheaply as COPY. */
static const char SQL_COPY_CONNECTION[] =
	"COPY refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state,"
	" health, reason, created_at, updated_at, metadata, settings_public, settings) FROM STDIN (FORMAT binary)";
static const char SQL_COPY_CREDENTIAL[] =
	"COPY refreshd.credential (slot, connection_id, token_version, issued_at, expires_at, refresh_issued_at, refresh_expires_at,"
	" access_token, refresh_token) FROM STDIN (FORMAT binary)";
static const char SQL_COPY_EVENT[] =
	"COPY refreshd.event (event_id, application_id, connection_id, event_type, entity_id, entity_type, entity, occurred_at)"
	" FROM STDIN (FORMAT binary)";
/* What was there. The limit takes nothing away: it tells the planner how few rows these are. */
static const struct pgstmt SQL_UPDATE = {
	"vault_import_update",
	"WITH a AS MATERIALIZED (SELECT t.slot, t.connection_id, t.auth_type, t.token_version, t.issued_at, t.expires_at,"
	" t.refresh_issued_at, t.refresh_expires_at, t.access_token, t.refresh_token, t.settings,"
	" t.settings_public::jsonb, t.metadata::jsonb, t.state, t.health, false AS created"
	" FROM unnest($1::smallint[], $2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],"
	" $8::timestamptz[], $9::bytea[], $10::bytea[], $11::bytea[], $12::text[], $13::text[], $14::text[], $15::text[])"
	" AS t (slot, connection_id, auth_type, token_version, issued_at, expires_at, refresh_issued_at, refresh_expires_at,"
	" access_token, refresh_token, settings, settings_public, metadata, state, health) LIMIT $17),"
	" u AS (" UPSERT_CONNECTION_UPDATE("$16") ") "
	UPSERT_CREDENTIAL,
};

/* ---------------------------------------------------------------- rows */

struct row {
	uint8_t id[16];
	size_t item; /* in the caller's array */
	int64_t version;
	bool done, applied, created, due_now;
	bool lacks; /* a required setting, after the import */
	bool enabled;
	enum conn_state state; /* before the import */
	enum conn_health health;
	int64_t created_at, last_failed_at;
	struct import_times times;
	struct conn_change to;
};

struct vault_importer {
	struct pgsync *pg;
	const struct conf *conf; /* borrowed */
	bool in_transaction;
	int64_t last_version;
	struct buf sealed[3]; /* access token, refresh token, settings */
	struct buf shown;
	struct buf entity;
	struct row *rows;
	size_t n, cap;
	const struct vault_item *items; /* of the present chunk */
	int64_t now;
};

struct vault_importer *vault_importer_new(struct pgsync *pg, const struct conf *c, bool in_transaction)
{
	struct vault_importer *m = mem_alloc(sizeof(*m));
	*m = (struct vault_importer){ .pg = pg, .conf = c, .in_transaction = in_transaction };
	for (int i = 0; i < 3; i++)
		buf_init(&m->sealed[i], SEALED_MAX);
	buf_init(&m->shown, SEALED_MAX);
	buf_init(&m->entity, ENTITY_MAX);
	return m;
}

void vault_importer_free(struct vault_importer *m)
{
	if (m == NULL)
		return;
	for (int i = 0; i < 3; i++)
		buf_fini(&m->sealed[i]);
	buf_fini(&m->shown);
	buf_fini(&m->entity);
	mem_free(m->rows);
	mem_free(m);
}

int64_t vault_importer_version(const struct vault_importer *m)
{
	return m->last_version;
}

static int row_order(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	int by_id = memcmp(x->id, y->id, sizeof(x->id));
	if (by_id != 0)
		return by_id;
	return x->item < y->item ? -1 : x->item > y->item;
}

static struct row *find_row(struct vault_importer *m, const uint8_t id[16])
{
	size_t low = 0, high = m->n;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		int by_id = memcmp(m->rows[mid].id, id, 16);
		if (by_id == 0)
			return &m->rows[mid];
		if (by_id < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

/* Sorted by id, of each id the last one that came. */
static void gather(struct vault_importer *m, const struct vault_item *v, size_t n, uint64_t *duplicates)
{
	if (m->cap < n) {
		m->rows = mem_realloc(m->rows, n, sizeof(*m->rows));
		m->cap = n;
	}
	m->items = v;
	for (size_t i = 0; i < n; i++) {
		const struct conn_key key = { v[i].import->application_id, v[i].import->consumer_id, v[i].import->unified_api,
			v[i].import->service_id };
		m->rows[i] = (struct row){ .item = i };
		conn_id_of(&key, m->rows[i].id);
	}
	if (n > 1)
		qsort(m->rows, n, sizeof(*m->rows), row_order);
	m->n = 0;
	for (size_t i = 0; i < n; i++) {
		if (i + 1 < n && memcmp(m->rows[i].id, m->rows[i + 1].id, 16) == 0)
			++*duplicates;
		else
			m->rows[m->n++] = m->rows[i];
	}
}

/* ---------------------------------------------------------------- sealing and COPY */

static int seal_access(struct vault_importer *m, const struct row *r)
{
	return seal_buf(m->conf->keyring, SEAL_ACCESS_TOKEN, r->id, r->version, &m->items[r->item].import->access_token, &m->sealed[0]);
}

static int seal_refresh(struct vault_importer *m, const struct row *r)
{
	return seal_buf(m->conf->keyring, SEAL_REFRESH_TOKEN, r->id, r->version, &m->items[r->item].import->refresh_token, &m->sealed[1]);
}

static int seal_settings(struct vault_importer *m, const struct row *r)
{
	return seal_buf(m->conf->keyring, SEAL_SETTINGS, r->id, 0, &m->items[r->item].import->settings, &m->sealed[2]);
}

static int mask_settings(struct vault_importer *m, const struct row *r)
{
	const struct vault_item *x = &m->items[r->item];
	const struct buf *plain = &x->import->settings;
	buf_reset(&m->shown);
	return x->import->has_settings ? import_mask_settings(buf_str(plain), plain->len, x->provider, &m->shown) : 0;
}

static const char *shown_of(const struct vault_importer *m)
{
	return m->shown.len > 0 ? buf_str(&m->shown) : NULL;
}

static const char *metadata_of(const struct vault_item *x)
{
	return x->import->has_metadata ? buf_str(&x->import->metadata) : NULL;
}

/* Fills a row of a COPY, from the sealed values too. */
typedef int bind_fn(struct vault_importer *m, const struct row *r, struct pgargs *a);

static int bind_connection(struct vault_importer *m, const struct row *r, struct pgargs *a)
{
	const struct vault_item *x = &m->items[r->item];
	int rc = seal_settings(m, r);
	if (rc == 0)
		rc = mask_settings(m, r);
	if (rc != 0)
		return rc;
	vault_add_id(a, r->id);
	pgargs_text(a, x->import->application_id);
	pgargs_text(a, x->import->consumer_id);
	pgargs_text(a, x->import->unified_api);
	pgargs_text(a, x->import->service_id);
	pgargs_text(a, auth_type_word(x->provider->auth_type));
	pgargs_text(a, conn_state_word(r->to.state));
	pgargs_text(a, conn_health_word(r->to.health));
	pgargs_text(a, reason_word(r->to.health == HEALTH_MISSING_SETTINGS ? REASON_MISSING_SETTINGS : REASON_NONE));
	pgargs_time(a, m->now);
	pgargs_time(a, m->now);
	pgargs_jsonb(a, metadata_of(x) != NULL ? metadata_of(x) : "{}");
	pgargs_jsonb(a, shown_of(m) != NULL ? shown_of(m) : "{}");
	pgargs_buf(a, &m->sealed[2]);
	return 0;
}

static int bind_credential(struct vault_importer *m, const struct row *r, struct pgargs *a)
{
	int rc = seal_access(m, r);
	if (rc == 0)
		rc = seal_refresh(m, r);
	if (rc != 0)
		return rc;
	vault_add_id(a, r->id);
	pgargs_i64(a, r->version);
	pgargs_time_or_null(a, r->times.issued_at);
	pgargs_time_or_null(a, r->times.expires_at);
	pgargs_time_or_null(a, r->times.refresh_issued_at);
	pgargs_time_or_null(a, r->times.refresh_expires_at);
	pgargs_buf(a, &m->sealed[0]);
	pgargs_buf(a, &m->sealed[1]);
	return 0;
}

typedef bool pick_fn(const struct row *r);

static int copy_rows(struct vault_importer *m, const char *sql, pick_fn *pick, bind_fn *bind, struct fault *f)
{
	int rc = pgsync_copy_begin(m->pg, sql, f);
	if (rc != 0)
		return rc;
	for (size_t i = 0; rc == 0 && i < m->n; i++) {
		if (!pick(&m->rows[i]))
			continue;
		struct pgargs *a = pgargs_new();
		int built = bind(m, &m->rows[i], a);
		if (built != 0) {
			/* The rows before it are dropped with the transaction. */
			struct fault ignored;
			pgargs_free(a);
			(void)!pgsync_copy_end(m->pg, &ignored);
			return fault_set(f, built, "sealing, or building an event: %s", status_text(built));
		}
		rc = pgsync_copy_row(m->pg, a, f);
	}
	return rc == 0 ? pgsync_copy_end(m->pg, f) : rc;
}

/* ---------------------------------------------------------------- the transaction */

/* One array parameter: the rest runs for each row that is picked, as `r`. */
#define COLUMN(type_, pick_, ...)                          \
	do {                                               \
		pgargs_array(a, (type_));                  \
		for (size_t i = 0; i < m->n; i++) {        \
			const struct row *r = &m->rows[i]; \
			if (!pick_(r))                     \
				continue;                  \
			__VA_ARGS__;                       \
		}                                          \
		pgargs_array_end(a);                       \
	} while (0)

static bool is_open(const struct row *r)
{
	return !r->done;
}

static void plan_rows(struct vault_importer *m)
{
	const struct policy_margin margin = { .margin_us = m->conf->refresh.margin_us, .fraction = m->conf->refresh.margin_fraction };
	for (size_t i = 0; i < m->n; i++) {
		struct row *r = &m->rows[i];
		const struct vault_item *x = &m->items[r->item];
		if (r->done)
			continue;
		r->applied = false;
		r->version = m->now > m->last_version ? m->now : m->last_version + 1;
		m->last_version = r->version;
		import_plan(x->import, x->provider, &margin, m->now, sys_random_unit(), &r->times);
		r->due_now = r->times.due_now;
	}
}

static int write_schedule(struct vault_importer *m, struct fault *f)
{
	struct pgresult res;
	struct pgargs *a = pgargs_new();
	COLUMN(PGT_I16, is_open, pgargs_i16(a, conn_slot_of(r->id)));
	COLUMN(PGT_UUID, is_open, pgargs_uuid(a, r->id));
	COLUMN(PGT_I64, is_open, pgargs_i64(a, r->version));
	COLUMN(PGT_TIME, is_open, pgargs_time(a, r->times.due_at));
	COLUMN(PGT_TEXT, is_open, pgargs_text(a, m->items[r->item].import->application_id));
	COLUMN(PGT_TEXT, is_open, pgargs_text(a, m->items[r->item].import->service_id));
	int rc = pgsync_query(m->pg, &SQL_SCHEDULE, a, &res, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; i < pgresult_rows(&res); i++) {
		struct row *row = find_row(m, pgresult_uuid(&res, i, 0));
		ALWAYS(row != NULL);
		row->applied = true;
		row->created = pgresult_bool(&res, i, 1);
		row->lacks = import_lacks_settings(m->items[row->item].import, m->items[row->item].provider, NULL);
		row->state = CONN_AVAILABLE;
		row->health = HEALTH_OK;
		row->enabled = true;
		row->created_at = m->now;
		row->last_failed_at = 0;
	}
	pgsync_clear(&res);
	return 0;
}

static bool is_update(const struct row *r)
{
	return !r->done && r->applied && !r->created;
}

static bool is_new(const struct row *r)
{
	return !r->done && r->applied && r->created;
}

static bool has_event(const struct row *r)
{
	return !r->done && r->applied && r->to.event != EVENT_NONE;
}

static bool is_refused(const struct row *r)
{
	return !r->done && !r->applied;
}

static bool is_any(const struct row *r)
{
	(void)r;
	return true;
}

static struct pgargs *bind_ids(struct vault_importer *m, pick_fn *pick, size_t *picked)
{
	struct pgargs *a = pgargs_new();
	*picked = 0;
	pgargs_array(a, PGT_I16);
	for (size_t i = 0; i < m->n; i++)
		if (pick(&m->rows[i]))
			pgargs_i16(a, conn_slot_of(m->rows[i].id));
	pgargs_array_end(a);
	pgargs_array(a, PGT_UUID);
	for (size_t i = 0; i < m->n; i++) {
		if (pick(&m->rows[i])) {
			pgargs_uuid(a, m->rows[i].id);
			++*picked;
		}
	}
	pgargs_array_end(a);
	return a;
}

static int read_existing(struct vault_importer *m, struct fault *f)
{
	size_t picked;
	struct pgargs *a = bind_ids(m, is_update, &picked);
	struct pgresult res;
	if (picked == 0) {
		pgargs_free(a);
		return 0;
	}
	COLUMN(PGT_BOOL, is_update, pgargs_bool(a, r->lacks));
	int rc = pgsync_query(m->pg, &SQL_EXISTING, a, &res, NULL, f);
	if (rc != 0)
		return rc;
	for (int i = 0; i < pgresult_rows(&res); i++) {
		struct row *row = find_row(m, pgresult_uuid(&res, i, 0));
		ALWAYS(row != NULL);
		/* Words of a newer program: treated as well, which tells nothing. */
		if (conn_state_parse(pgresult_text(&res, i, 1, NULL), &row->state) != 0)
			row->state = CONN_CALLABLE;
		if (conn_health_parse(pgresult_text(&res, i, 2, NULL), &row->health) != 0)
			row->health = HEALTH_OK;
		row->enabled = pgresult_bool(&res, i, 3);
		row->created_at = pgresult_time(&res, i, 4);
		row->last_failed_at = pgresult_time_or_0(&res, i, 5);
		if (!pgresult_null(&res, i, 6))
			row->lacks = import_lacks_settings(m->items[row->item].import, m->items[row->item].provider, pgresult_text(&res, i, 6, NULL));
	}
	pgsync_clear(&res);
	return 0;
}

static void decide(const struct vault_importer *m, struct row *r)
{
	const struct vault_item *x = &m->items[r->item];
	r->to = connection_apply(r->state, r->health, import_event(x->import, x->provider), r->lacks);
	if (r->created)
		r->to.event = EVENT_CREATED;
}

static int build_entity(struct vault_importer *m, const struct row *r)
{
	const struct vault_item *x = &m->items[r->item];
	const struct event_entity e = {
		.application_id = x->import->application_id,
		.consumer_id = x->import->consumer_id,
		.unified_api = x->import->unified_api,
		.service_id = x->import->service_id,
		.name = x->provider->name != NULL ? x->provider->name : x->import->service_id,
		.website = x->provider->website,
		.auth_type = auth_type_word(x->provider->auth_type),
		.state = conn_state_word(r->to.state),
		.health = conn_health_word(r->to.health),
		.enabled = r->enabled,
		.created_at = r->created_at,
		.updated_at = m->now,
		.last_refresh_failed_at = r->last_failed_at,
	};
	buf_reset(&m->entity);
	return event_entity_build(&e, &m->entity);
}

static int bind_event(struct vault_importer *m, const struct row *r, struct pgargs *a)
{
	const struct import *x = m->items[r->item].import;
	uint8_t id[16];
	sys_uuid4(id);
	pgargs_uuid(a, id);
	pgargs_text(a, x->application_id);
	pgargs_uuid(a, r->id);
	pgargs_text(a, event_type_word(r->to.event));
	buf_reset(&m->entity);
	/* Two ids of at most 200 bytes each. */
	ALWAYS(buf_printf(&m->entity, "%s+%s", x->application_id, x->consumer_id) == 0);
	pgargs_textn(a, buf_str(&m->entity), m->entity.len);
	pgargs_text(a, "Connection");
	int rc = build_entity(m, r);
	if (rc != 0)
		return rc;
	pgargs_textn(a, buf_str(&m->entity), m->entity.len);
	pgargs_time(a, m->now);
	return 0;
}

static struct pgargs *update_args(struct vault_importer *m, size_t n, int *rc)
{
	struct pgargs *a = pgargs_new();
#define SEALED(seal_, value_) COLUMN(PGT_BYTES, is_update, *rc = *rc != 0 ? *rc : seal_(m, r); pgargs_buf(a, (value_)))
	COLUMN(PGT_I16, is_update, pgargs_i16(a, conn_slot_of(r->id)));
	COLUMN(PGT_UUID, is_update, pgargs_uuid(a, r->id));
	COLUMN(PGT_TEXT, is_update, pgargs_text(a, auth_type_word(m->items[r->item].provider->auth_type)));
	COLUMN(PGT_I64, is_update, pgargs_i64(a, r->version));
	COLUMN(PGT_TIME, is_update, pgargs_time_or_null(a, r->times.issued_at));
	COLUMN(PGT_TIME, is_update, pgargs_time_or_null(a, r->times.expires_at));
	COLUMN(PGT_TIME, is_update, pgargs_time_or_null(a, r->times.refresh_issued_at));
	COLUMN(PGT_TIME, is_update, pgargs_time_or_null(a, r->times.refresh_expires_at));
	SEALED(seal_access, &m->sealed[0]);
	SEALED(seal_refresh, &m->sealed[1]);
	SEALED(seal_settings, &m->sealed[2]);
	COLUMN(PGT_TEXT, is_update, *rc = *rc != 0 ? *rc : mask_settings(m, r); pgargs_text(a, shown_of(m)));
	COLUMN(PGT_TEXT, is_update, pgargs_text(a, metadata_of(&m->items[r->item])));
	COLUMN(PGT_TEXT, is_update, pgargs_text(a, conn_state_word(r->to.state)));
	COLUMN(PGT_TEXT, is_update, pgargs_text(a, conn_health_word(r->to.health)));
#undef SEALED
	pgargs_time(a, m->now);
	pgargs_i64(a, (int64_t)n);
	return a;
}

static int write_updates(struct vault_importer *m, size_t n, struct fault *f)
{
	struct pgresult res;
	int rc = 0;
	if (n == 0)
		return 0;
	struct pgargs *a = update_args(m, n, &rc);
	if (rc != 0) {
		pgargs_free(a);
		return fault_set(f, rc, "sealing: %s", status_text(rc));
	}
	rc = pgsync_query(m->pg, &SQL_UPDATE, a, &res, NULL, f);
	if (rc == 0)
		pgsync_clear(&res);
	return rc;
}

static size_t count(const struct vault_importer *m, pick_fn *pick)
{
	size_t n = 0;
	for (size_t i = 0; i < m->n; i++)
		n += pick(&m->rows[i]);
	return n;
}

static int write_rest(struct vault_importer *m, struct fault *f)
{
	int rc = write_updates(m, count(m, is_update), f);
	if (rc == 0 && count(m, is_new) > 0)
		rc = copy_rows(m, SQL_COPY_CONNECTION, is_new, bind_connection, f);
	if (rc == 0 && count(m, is_new) > 0)
		rc = copy_rows(m, SQL_COPY_CREDENTIAL, is_new, bind_credential, f);
	if (rc == 0 && count(m, has_event) > 0)
		rc = copy_rows(m, SQL_COPY_EVENT, has_event, bind_event, f);
	return rc;
}

static int run_statements(struct vault_importer *m, struct fault *f)
{
	int rc = write_schedule(m, f);
	if (rc == 0)
		rc = read_existing(m, f);
	for (size_t i = 0; rc == 0 && i < m->n; i++)
		if (!m->rows[i].done && m->rows[i].applied)
			decide(m, &m->rows[i]);
	return rc == 0 ? write_rest(m, f) : rc;
}

static int one_try(struct vault_importer *m, struct fault *f)
{
	m->now = sys_wall_us();
	plan_rows(m);
	int rc = m->in_transaction ? 0 : pgsync_exec(m->pg, "BEGIN", f);
	if (rc == 0)
		rc = run_statements(m, f);
	if (rc == 0 && !m->in_transaction)
		rc = pgsync_exec(m->pg, "COMMIT", f);
	if (rc != 0 && !m->in_transaction) {
		struct fault ignored;
		(void)!pgsync_exec(m->pg, "ROLLBACK", &ignored);
	}
	return rc;
}

/* What was applied is done. For what was refused: the version that has to be exceeded. */
static int settle_try(struct vault_importer *m, struct vault_import_counts *counts, size_t *left, struct fault *f)
{
	struct pgresult r;
	for (size_t i = 0; i < m->n; i++) {
		struct row *x = &m->rows[i];
		if (x->done || !x->applied)
			continue;
		x->done = true;
		counts->created += x->created;
		counts->updated += !x->created;
		counts->due_now += x->due_now;
	}
	struct pgargs *a = bind_ids(m, is_refused, left);
	if (*left == 0) {
		pgargs_free(a);
		return 0;
	}
	int rc = pgsync_query(m->pg, &SQL_VERSIONS, a, &r, NULL, f);
	if (rc != 0)
		return rc;
	int64_t newest = pgresult_int(&r, 0, 1);
	if (newest > m->last_version && newest < INT64_MAX / 2)
		m->last_version = newest;
	pgsync_clear(&r);
	return 0;
}

int vault_import_chunk(struct vault_importer *m, const struct vault_item *v, size_t n, struct vault_import_counts *counts, struct fault *f)
{
	size_t left = 0;
	if (n == 0)
		return 0;
	gather(m, v, n, &counts->duplicates);
	left = m->n;
	for (int i = 0; left > 0 && i < MAX_TRIES; i++) {
		int rc = one_try(m, f);
		if (rc == ST_AGAIN && !m->in_transaction && i + 1 < MAX_TRIES)
			continue;
		if (rc == 0)
			rc = settle_try(m, counts, &left, f);
		if (rc != 0)
			return rc;
	}
	counts->refused += left;
	return 0;
}

int vault_import_preview(struct vault_importer *m, const struct vault_item *v, size_t n, struct vault_import_counts *counts, struct fault *f)
{
	const struct policy_margin margin = { .margin_us = m->conf->refresh.margin_us, .fraction = m->conf->refresh.margin_fraction };
	size_t picked;
	struct pgresult r;
	if (n == 0)
		return 0;
	gather(m, v, n, &counts->duplicates);
	int rc = pgsync_query(m->pg, &SQL_VERSIONS, bind_ids(m, is_any, &picked), &r, NULL, f);
	if (rc != 0)
		return rc;
	uint64_t there = (uint64_t)pgresult_int(&r, 0, 0);
	pgsync_clear(&r);
	counts->updated += there;
	counts->created += m->n - there;
	m->now = sys_wall_us();
	for (size_t i = 0; i < m->n; i++) {
		struct import_times t;
		import_plan(v[m->rows[i].item].import, v[m->rows[i].item].provider, &margin, m->now, 0.0, &t);
		counts->due_now += t.due_now;
	}
	return 0;
}
