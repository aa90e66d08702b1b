/*
 * vault_import - the SQL of an import. Read the statements first; the C below sorts and decides.
 *
 * The schedule decides which rows are new; those are copied straight into the other tables, the rest is updated by one
 * statement. Rows go in the order of their ids, so that two importers cannot deadlock, and what the server undoes all the
 * same is sent again. A token version is the wall clock, and grows by one at least from row to row. What has tokens in it
 * is written by vault_import_write. Must not log or print.
 */
#include "service/vault_import_priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/seal.h"
#include "service/upsert.h"

#define MAX_TRIES 5 /* one of them may be given up for the chunk before */

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
/* ---------------------------------------------------------------- rows */

struct vault_importer *vault_importer_new_beside(struct pgsync *pg, const struct conf *c, struct keyring *keyring,
	const struct vault_import_turn *turn)
{
	struct vault_importer *m = mem_alloc(sizeof(*m));
	*m = (struct vault_importer){ .pg = pg, .conf = c, .keyring = keyring, .turn = turn };
	for (int i = 0; i < 3; i++)
		buf_init(&m->sealed[i], SEAL_COLUMN_MAX);
	buf_init(&m->shown, SEAL_COLUMN_MAX);
	buf_init(&m->entity, EVENT_ENTITY_MAX);
	return m;
}

struct vault_importer *vault_importer_new(struct pgsync *pg, const struct conf *c, bool in_transaction)
{
	struct vault_importer *m = vault_importer_new_beside(pg, c, keyring_ref(c->keyring), NULL);
	m->in_transaction = in_transaction;
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
	keyring_unref(m->keyring);
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

/* ---------------------------------------------------------------- the transaction */

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

static int run_statements(struct vault_importer *m, struct fault *f)
{
	int rc = write_schedule(m, f);
	if (rc == 0 && m->turn != NULL)
		m->turn->locked(m->turn->arg);
	if (rc == 0)
		rc = read_existing(m, f);
	for (size_t i = 0; rc == 0 && i < m->n; i++)
		if (!m->rows[i].done && m->rows[i].applied)
			decide(m, &m->rows[i]);
	return rc == 0 ? vault_import_write(m, f) : rc;
}

static int turn_fault(int rc, struct fault *f)
{
	return rc == 0 ? 0 : fault_set(f, rc, "a chunk before this one: %s", status_text(rc));
}

static int one_try(struct vault_importer *m, bool again, struct fault *f)
{
	int rc = m->turn != NULL ? turn_fault(m->turn->enter(m->turn->arg, again), f) : 0;
	if (rc != 0)
		return rc;
	m->now = sys_wall_us();
	plan_rows(m);
	rc = m->in_transaction ? 0 : pgsync_exec(m->pg, "BEGIN", f);
	if (rc == 0)
		rc = run_statements(m, f);
	if (rc == 0 && m->turn != NULL)
		rc = turn_fault(m->turn->leave(m->turn->arg), f);
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
		int rc = one_try(m, i > 0, f);
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
