/*
 * migrations - the steps themselves, and their one-transaction application.
 *
 * Shapes that matter: `schedule` is narrow and only due_at is indexed, so that a claim (which writes lease columns) stays
 * a HOT update; half of each of its pages is kept free, because neighbours fall due together and each needs room for a second
 * version before the first can be pruned. `credential` is wide and rewritten once per refresh with no index on anything a
 * refresh changes; sealed columns are STORAGE EXTERNAL (they do not compress). Every hot table starts with `slot`, so that
 * it can be distributed by it. Keys are compared as bytes (COLLATE "C"): it is quicker, and no change of the C library's order can
 * spoil an index. Enumerations are text without CHECK constraints: a CHECK violation would print the row.
 */
#include "service/migrations.h"

#include "base/mem.h"

static const char MIGRATION_1[] =
	"CREATE SCHEMA refreshd;"
	"CREATE TABLE refreshd.schema_version ("
	" version integer PRIMARY KEY,"
	" compatible_from integer," /* null: itself alone */
	" applied_at timestamptz NOT NULL DEFAULT now());"

	"CREATE TABLE refreshd.application ("
	" application_id text COLLATE \"C\" PRIMARY KEY,"
	" created_at timestamptz NOT NULL DEFAULT now());"

	"CREATE TABLE refreshd.api_key ("
	" key_id text COLLATE \"C\" PRIMARY KEY,"
	" application_id text COLLATE \"C\" NOT NULL REFERENCES refreshd.application,"
	" key_sha256 bytea NOT NULL,"
	" scopes text[] NOT NULL,"
	" created_at timestamptz NOT NULL DEFAULT now(),"
	" revoked_at timestamptz);"
	"CREATE UNIQUE INDEX api_key_sha256 ON refreshd.api_key (key_sha256);"

	"CREATE TABLE refreshd.connection ("
	" slot smallint NOT NULL,"
	" connection_id uuid NOT NULL,"
	" application_id text COLLATE \"C\" NOT NULL,"
	" consumer_id text COLLATE \"C\" NOT NULL,"
	" unified_api text COLLATE \"C\" NOT NULL,"
	" service_id text COLLATE \"C\" NOT NULL,"
	" auth_type text NOT NULL,"
	" enabled boolean NOT NULL DEFAULT true,"
	" state text COLLATE \"C\" NOT NULL,"
	" health text NOT NULL,"
	" reason text NOT NULL DEFAULT 'none',"
	" failures integer NOT NULL DEFAULT 0,"
	" first_failed_at timestamptz,"
	" last_failed_at timestamptz,"
	" created_at timestamptz NOT NULL,"
	" updated_at timestamptz NOT NULL,"
	" metadata jsonb NOT NULL DEFAULT '{}',"
	" settings_public jsonb NOT NULL DEFAULT '{}',"
	" settings bytea,"
	" PRIMARY KEY (slot, connection_id)) WITH (fillfactor = 90);"
	"ALTER TABLE refreshd.connection ALTER settings SET STORAGE EXTERNAL;"
	"CREATE INDEX connection_of_application ON refreshd.connection (application_id, consumer_id);"
	"CREATE INDEX connection_not_callable ON refreshd.connection (state, updated_at) WHERE state <> 'callable' OR health <> 'ok';"

	"CREATE TABLE refreshd.credential ("
	" slot smallint NOT NULL,"
	" connection_id uuid NOT NULL,"
	" token_version bigint NOT NULL,"
	" issued_at timestamptz,"
	" expires_at timestamptz,"
	" refresh_issued_at timestamptz,"
	" refresh_expires_at timestamptz,"
	" refreshed_at timestamptz,"
	" refreshes bigint NOT NULL DEFAULT 0,"
	" token_type text,"
	" scope text,"
	" captured bytea,"
	" access_token bytea,"
	" refresh_token bytea,"
	" previous_refresh_token bytea,"
	" PRIMARY KEY (slot, connection_id))"
	" WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);"
	"ALTER TABLE refreshd.credential ALTER access_token SET STORAGE EXTERNAL,"
	" ALTER refresh_token SET STORAGE EXTERNAL, ALTER previous_refresh_token SET STORAGE EXTERNAL,"
	" ALTER captured SET STORAGE EXTERNAL;"

	"CREATE TABLE refreshd.schedule ("
	" slot smallint NOT NULL,"
	" connection_id uuid NOT NULL,"
	" doubts smallint NOT NULL DEFAULT 0,"
	" token_version bigint NOT NULL,"
	" due_at timestamptz NOT NULL,"
	" attempt_id bigint NOT NULL DEFAULT 0,"
	" lease_owner bigint,"
	" lease_until timestamptz,"
	" sent_deadline timestamptz,"
	" application_id text COLLATE \"C\" NOT NULL,"
	" service_id text COLLATE \"C\" NOT NULL,"
	" PRIMARY KEY (slot, connection_id))"
	" WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 1);"
	"CREATE INDEX schedule_due ON refreshd.schedule (due_at) WHERE due_at < 'infinity';"

	"CREATE SEQUENCE refreshd.epoch AS bigint;"
	"CREATE TABLE refreshd.instance ("
	" name text COLLATE \"C\" PRIMARY KEY,"
	" home uuid NOT NULL,"
	" epoch bigint NOT NULL,"
	/* Earlier epochs of this home, whose leases have not been looked through yet. */
	" former_epochs bigint[] NOT NULL DEFAULT '{}',"
	" presence text NOT NULL DEFAULT 'starting',"
	" version text NOT NULL,"
	" started_at timestamptz NOT NULL,"
	" heartbeat_at timestamptz NOT NULL,"
	" gone boolean NOT NULL DEFAULT false) WITH (fillfactor = 50);"

	"CREATE TABLE refreshd.orphan_token ("
	" slot smallint NOT NULL,"
	" connection_id uuid NOT NULL,"
	" attempt_id bigint NOT NULL,"
	" kind text COLLATE \"C\" NOT NULL,"
	" token_version bigint NOT NULL,"
	" created_at timestamptz NOT NULL DEFAULT now(),"
	" issued_at timestamptz,"
	" expires_at timestamptz,"
	" resolved_at timestamptz,"
	" resolution text,"
	" access_token bytea,"
	" refresh_token bytea,"
	" raw_reply bytea,"
	" PRIMARY KEY (slot, connection_id, attempt_id, kind));"
	"CREATE INDEX orphan_open ON refreshd.orphan_token (created_at) WHERE resolved_at IS NULL;"

	"CREATE TABLE refreshd.event ("
	" event_id uuid PRIMARY KEY,"
	" application_id text COLLATE \"C\" NOT NULL,"
	" connection_id uuid,"
	" event_type text COLLATE \"C\" NOT NULL,"
	" entity_id text COLLATE \"C\" NOT NULL,"
	" entity_type text NOT NULL,"
	" entity text NOT NULL,"
	" reason text,"
	" failures integer NOT NULL DEFAULT 0,"
	" occurred_at timestamptz NOT NULL,"
	" fanned_out_at timestamptz);"
	"CREATE INDEX event_pending ON refreshd.event (occurred_at) WHERE fanned_out_at IS NULL;"
	"CREATE INDEX event_of_application ON refreshd.event (application_id, occurred_at, event_id);"

	/* "config:<name>" is an endpoint of the configuration and has only its fortunes here; the others are whole. */
	"CREATE TABLE refreshd.webhook_endpoint ("
	" endpoint_id text COLLATE \"C\" PRIMARY KEY,"
	" application_id text COLLATE \"C\","
	" url text,"
	" unified_api text,"
	" description text,"
	" events text[],"
	" public_key text,"
	" secret bytea,"
	" previous_secret bytea,"
	" previous_until timestamptz,"
	" created_at timestamptz,"
	" updated_at timestamptz,"
	" failing_since timestamptz,"
	" last_success_at timestamptz,"
	" last_failure_at timestamptz,"
	" disabled_at timestamptz,"
	" disabled_reason text);"
	"CREATE INDEX webhook_endpoint_of_application ON refreshd.webhook_endpoint (application_id, created_at)"
	" WHERE application_id IS NOT NULL;"

	"CREATE TABLE refreshd.delivery ("
	" event_id uuid NOT NULL REFERENCES refreshd.event ON DELETE CASCADE,"
	" endpoint_id text COLLATE \"C\" NOT NULL,"
	" attempt integer NOT NULL DEFAULT 0,"
	" due_at timestamptz NOT NULL,"
	" lease_owner bigint,"
	" lease_until timestamptz,"
	" done_at timestamptz,"
	" delivered boolean,"
	" last_status integer,"
	" last_error text,"
	" last_duration_ms integer,"
	" PRIMARY KEY (event_id, endpoint_id)) WITH (fillfactor = 80);"
	"CREATE INDEX delivery_waiting ON refreshd.delivery (endpoint_id, due_at) WHERE done_at IS NULL;";

/* compatible_from: the oldest program that may go on while the new ones come, one after the other. It may be older than the step
 * itself only when the step leaves everything that such a program reads and writes as it was: new tables, new columns with a
 * default. */
static const struct step {
	const char *sql;
	int compatible_from;
	const char *what;
} steps[SCHEMA_VERSION] = {
	{ MIGRATION_1, 1, "tables for connections, credentials, their schedule, events, webhooks and instances" },
};

static const struct pgstmt SQL_HAS_SCHEMA = {
	"migrations_has_schema",
	"SELECT to_regclass('refreshd.schema_version') IS NOT NULL",
};
static const struct pgstmt SQL_VERSION = {
	"migrations_version",
	"SELECT version, coalesce(compatible_from, version) FROM refreshd.schema_version ORDER BY version DESC LIMIT 1",
};
static const struct pgstmt SQL_RECORD = {
	"migrations_record",
	"INSERT INTO refreshd.schema_version (version, compatible_from) VALUES ($1, $2)",
};

bool migrations_fit(const struct migrations_state *s)
{
	return s->version == SCHEMA_VERSION || (s->version > SCHEMA_VERSION && s->compatible_from <= SCHEMA_VERSION);
}

int migrations_refuse(const struct migrations_state *s, const char *program, struct fault *f)
{
	if (s->version == 0)
		return fault_set(f, ST_VERSION, "the database has no schema of refreshd yet (version 0, this program needs %d): run `refreshctl migrate`",
			SCHEMA_VERSION);
	if (s->version < SCHEMA_VERSION)
		return fault_set(f, ST_VERSION, "the database has schema version %d, this program needs %d: run `refreshctl migrate`", s->version,
			SCHEMA_VERSION);
	return fault_set(f, ST_VERSION, "the database has schema version %d, for programs that know version %d; this one knows %d: use a newer %s",
		s->version, s->compatible_from, SCHEMA_VERSION, program);
}

const char *migrations_what(int version)
{
	ALWAYS(version >= 1 && version <= SCHEMA_VERSION);
	return steps[version - 1].what;
}

int migrations_compatible_from(int version)
{
	ALWAYS(version >= 1 && version <= SCHEMA_VERSION);
	return steps[version - 1].compatible_from;
}

int migrations_look(struct pgsync *pg, struct migrations_state *out, struct fault *f)
{
	struct pgresult r;
	struct migrations_state s = { 0 };
	int e = pgsync_query(pg, &SQL_HAS_SCHEMA, NULL, &r, NULL, f);
	if (e != 0)
		return e;
	bool has = pgresult_bool(&r, 0, 0);
	pgsync_clear(&r);
	if (has) {
		e = pgsync_query(pg, &SQL_VERSION, NULL, &r, NULL, f);
		if (e != 0)
			return e;
		if (pgresult_rows(&r) == 1) {
			s.version = (int)pgresult_int(&r, 0, 0);
			s.compatible_from = (int)pgresult_int(&r, 0, 1);
		}
		pgsync_clear(&r);
	}
	*out = s;
	return 0;
}

static int apply_one(struct pgsync *pg, int version, struct fault *f)
{
	int e = pgsync_exec(pg, steps[version - 1].sql, f);
	if (e != 0)
		return fault_wrap(f, e, "migration %d", version);
	struct pgargs *a = pgargs_new();
	pgargs_i32(a, version);
	pgargs_i32(a, steps[version - 1].compatible_from);
	struct pgresult r;
	e = pgsync_query(pg, &SQL_RECORD, a, &r, NULL, f);
	if (e == 0)
		pgsync_clear(&r);
	return e;
}

static int apply_all(struct pgsync *pg, struct migrations_state *from, struct fault *f)
{
	/* Two migrations at once: the second waits here and then finds nothing to do. */
	int e = pgsync_exec(pg, "SELECT pg_advisory_xact_lock(7236281337)", f);
	if (e == 0)
		e = migrations_look(pg, from, f);
	if (e == 0 && from->version > SCHEMA_VERSION && !migrations_fit(from))
		e = migrations_refuse(from, "refreshd", f);
	for (int version = from->version; e == 0 && version < SCHEMA_VERSION;)
		e = apply_one(pg, ++version, f);
	return e;
}

int migrations_apply(struct pgsync *pg, struct migrations_state *from, struct fault *f)
{
	struct migrations_state found = { 0 };
	int e = pgsync_exec(pg, "BEGIN", f);
	if (e != 0)
		return e;
	e = apply_all(pg, &found, f);
	if (e != 0) {
		/* The first fault is the one to show; a failing ROLLBACK ends with the connection anyway. */
		struct fault ignored = { 0 };
		(void)!pgsync_exec(pg, "ROLLBACK", &ignored);
		return e;
	}
	e = pgsync_exec(pg, "COMMIT", f);
	if (e == 0)
		*from = found;
	return e;
}
