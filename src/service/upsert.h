/*
 * upsert - the SQL by which tokens come in from outside, shared by the bulk import and the API.
 *
 * Both bring their rows as a relation `a` of one statement (columns as below, as far as a part needs them). An import voids an
 * attempt that is out (attempt_id 0) but leaves its lease while it runs, so that no two presentations overlap; the late answer
 * loses its fence. A token version only ever grows.
 *
 * a: slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, token_version, due_at, issued_at,
 * expires_at, refresh_issued_at, refresh_expires_at, access_token, refresh_token, settings, settings_public (jsonb), metadata
 * (jsonb), created, state, health, event_type, event_id, entity_id, entity, wanted (the event is for the fan-out). `now_`: the parameter that holds the wall clock.
 */
#ifndef REFRESHD_SERVICE_UPSERT_H
#define REFRESHD_SERVICE_UPSERT_H

/* Tokens without a required setting are the one thing that can be wrong with a connection that was just imported. */
#define UPSERT_REASON(health_) "CASE WHEN " health_ " = 'missing_settings' THEN 'missing_settings' ELSE 'none' END"

/* What becomes of a schedule row `s` that is there; `from_` is the relation with the new values. */
#define UPSERT_SCHEDULE_SET(from_)                                                       \
	"token_version = " from_ ".token_version, due_at = " from_ ".due_at,"            \
	" attempt_id = 0, doubts = 0,"                                                   \
	" lease_owner = CASE WHEN s.lease_until > now() THEN s.lease_owner END,"         \
	" sent_deadline = CASE WHEN s.lease_until > now() THEN s.sent_deadline END,"     \
	" lease_until = CASE WHEN s.lease_until > now() THEN s.lease_until END"

#define UPSERT_CONNECTION_INSERT(now_)                                                                                  \
	"INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id,"    \
	" auth_type, state, health, reason, created_at, updated_at, metadata, settings_public, settings)"                \
	" SELECT slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state, health, "  \
	UPSERT_REASON("health") ", " now_ ", " now_ ", coalesce(metadata, '{}'), coalesce(settings_public, '{}'), settings FROM a WHERE created"

#define UPSERT_CONNECTION_UPDATE(now_)                                                                                  \
	"UPDATE refreshd.connection c SET auth_type = a.auth_type, state = a.state, health = a.health,"                \
	" reason = " UPSERT_REASON("a.health") ","                                                                         \
	" failures = 0, first_failed_at = NULL, updated_at = " now_ ", metadata = coalesce(a.metadata, c.metadata),"     \
	" settings_public = coalesce(a.settings_public, c.settings_public), settings = coalesce(a.settings, c.settings)" \
	" FROM a WHERE NOT a.created AND c.slot = a.slot AND c.connection_id = a.connection_id"

/* Where the rows are known to be there and locked: by ON CONFLICT, which needs no plan. settings, settings_public and metadata are
 * what shall stand there afterwards, and `a` has created_at. */
#define UPSERT_CONNECTION_RENEW(now_)                                                                                     \
	"INSERT INTO refreshd.connection AS c (slot, connection_id, application_id, consumer_id, unified_api, service_id," \
	" auth_type, state, health, created_at, updated_at, metadata, settings_public, settings)"                          \
	" SELECT slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state, health,"     \
	" created_at, " now_ ", metadata, settings_public, settings FROM a"                                                \
	" ON CONFLICT (slot, connection_id) DO UPDATE SET auth_type = excluded.auth_type, state = excluded.state,"         \
	" health = excluded.health, reason = " UPSERT_REASON("excluded.health") ", failures = 0, first_failed_at = NULL, updated_at = excluded.updated_at," \
	" metadata = excluded.metadata, settings_public = excluded.settings_public, settings = excluded.settings"

#define UPSERT_CREDENTIAL_INSERT                                                                                              \
	"INSERT INTO refreshd.credential (slot, connection_id, token_version, issued_at, expires_at, refresh_issued_at,"      \
	" refresh_expires_at, access_token, refresh_token)"                                                                   \
	" SELECT slot, connection_id, token_version, issued_at, expires_at, refresh_issued_at, refresh_expires_at, access_token," \
	" refresh_token FROM a"
#define UPSERT_CREDENTIAL                                                                                                     \
	UPSERT_CREDENTIAL_INSERT                                                                                              \
	" ON CONFLICT (slot, connection_id) DO UPDATE SET token_version = excluded.token_version, issued_at = excluded.issued_at," \
	" expires_at = excluded.expires_at, refresh_issued_at = excluded.refresh_issued_at,"                                  \
	" refresh_expires_at = excluded.refresh_expires_at, access_token = excluded.access_token,"                            \
	" refresh_token = excluded.refresh_token, previous_refresh_token = NULL, scope = NULL, token_type = NULL"

/* What nobody wants is born as if it had been fanned out, to nobody: the fan-out rewrites every row that it meets. */
#define UPSERT_EVENT(now_)                                                                                                \
	"INSERT INTO refreshd.event (event_id, application_id, connection_id, event_type, entity_id, entity_type, entity," \
	" occurred_at, fanned_out_at) SELECT event_id, application_id, connection_id, event_type, entity_id, 'Connection'," \
	" entity, " now_ ", CASE WHEN NOT wanted THEN " now_ " END FROM a WHERE event_type IS NOT NULL"

#endif
