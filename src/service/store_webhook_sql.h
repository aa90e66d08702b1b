/*
 * store_webhook_sql - the SQL on endpoints of the API that both the daemon and refreshctl run.
 *
 * An endpoint that an operator adds is no other than one that the application made itself. updated_at always
 * grows: daemons tell by it that something changed.
 */
#ifndef REFRESHD_SERVICE_STORE_WEBHOOK_SQL_H
#define REFRESHD_SERVICE_STORE_WEBHOOK_SQL_H

#define STORE_HOOK_SQL_OF_APPLICATION " WHERE w.application_id = $1 AND w.endpoint_id = $2"
#define STORE_HOOK_SQL_LATER "greatest(now(), w.updated_at + interval '1 microsecond')"

/* Relation `w`: the new row, or none: the application has $9 of them already. In the transaction of the next statement, which goes first:
 * what others add meanwhile has to be counted, and a statement counts only what was there when it began. */
#define STORE_HOOK_SQL_ADDING \
	"SELECT count(*) FROM (SELECT 1 FROM refreshd.application WHERE application_id = $1 FOR NO KEY UPDATE) a"
#define STORE_HOOK_SQL_INSERT                                                                                \
	"WITH w AS (INSERT INTO refreshd.webhook_endpoint (endpoint_id, application_id, url, unified_api,"   \
	" description, events, public_key, secret, created_at, updated_at)"                                  \
	" SELECT $1, $2, $3, $4, $5, string_to_array($6, ' '), $7, $8, now(), now()"                         \
	" WHERE (SELECT count(*) FROM refreshd.webhook_endpoint WHERE application_id = $2) < $9"             \
	" RETURNING *)"

/* What was delivered stays until its event is purged; without the endpoint nobody is shown it. */
#define STORE_HOOK_SQL_DELETE                                                                                \
	"WITH w AS (DELETE FROM refreshd.webhook_endpoint w" STORE_HOOK_SQL_OF_APPLICATION                   \
	" RETURNING w.endpoint_id),"                                                                         \
	" d AS (DELETE FROM refreshd.delivery d USING w"                                                     \
	" WHERE d.endpoint_id = w.endpoint_id AND d.done_at IS NULL)"                                        \
	" SELECT count(*) FROM w"

#endif
