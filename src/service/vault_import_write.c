/*
 * vault_import_write - the half of an import that has tokens in it: seals, binds, copies and updates.
 *
 * Sealing happens right before a row is sent, because the version is part of what is sealed. Must not decide anything: which rows
 * are new and what becomes of each is settled when it is called.
 */
#include "service/vault_import_priv.h"

#include "base/mem.h"
#include "base/sys.h"
#include "service/seal.h"
#include "service/upsert.h"
#include "service/vault.h"

/* ---------------------------------------------------------------- statements */

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

/* ---------------------------------------------------------------- sealing and COPY */

static int seal_access(struct vault_importer *m, const struct row *r)
{
	return seal_buf(m->keyring, SEAL_ACCESS_TOKEN, r->id, r->version, &m->items[r->item].import->access_token, &m->sealed[0]);
}

static int seal_refresh(struct vault_importer *m, const struct row *r)
{
	return seal_buf(m->keyring, SEAL_REFRESH_TOKEN, r->id, r->version, &m->items[r->item].import->refresh_token, &m->sealed[1]);
}

static int seal_settings(struct vault_importer *m, const struct row *r)
{
	return seal_buf(m->keyring, SEAL_SETTINGS, r->id, 0, &m->items[r->item].import->settings, &m->sealed[2]);
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

static bool is_new(const struct row *r)
{
	return !r->done && r->applied && r->created;
}

static bool has_event(const struct row *r)
{
	return !r->done && r->applied && r->to.event != EVENT_NONE;
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
	sys_uuid7(id);
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

int vault_import_write(struct vault_importer *m, struct fault *f)
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
