/*
 * store_mutant - takes the fence out of the statements of a refresh, for REFRESHD_MUTANT=fence_off.
 *
 * Linked into tests/torture/refreshd only. The pieces are cut out of the very statements that are in use; one that is not found
 * ends the process, so that a changed statement cannot quietly keep its fence.
 */
#include "service/store_mutant.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/mem.h"

#define CUTS_MAX 8

static const struct {
	const char *statement, *what, *instead;
} cuts[] = {
	{ "refresh_poll", " AND (s.lease_until IS NULL OR s.lease_until <= now())", "" },
	{ "refresh_poll", " CASE WHEN (s.lease_owner NOT IN ($6, 0) AND s.attempt_id <> 0) THEN s.lease_until END", " NULL::timestamptz" },
	{ "refresh_claim", " AND ((s.lease_owner NOT IN ($5, 0) AND s.attempt_id <> 0)"
		" AND s.lease_until + w.takeover_us * interval '1 microsecond' > now()) IS NOT TRUE", "" },
	{ "refresh_claim", " AND (s.lease_until IS NULL OR s.lease_until <= now())", "" },
	{ "refresh_persist", " WHERE s.attempt_id = r.attempt_id AND s.token_version = r.token_version AND s.lease_owner IS NOT NULL FOR NO KEY",
		" FOR NO KEY" },
	{ "refresh_persist", "token_version = s.token_version + r.has_token::int FROM",
		"token_version = CASE WHEN r.has_token THEN r.token_version + 1 ELSE s.token_version END FROM" },
	{ "refresh_renew", " WHERE s.attempt_id = r.attempt_id AND s.token_version = r.token_version AND s.lease_owner IS NOT NULL FOR NO KEY",
		" FOR NO KEY" },
	{ "refresh_renew", "token_version = s.token_version + 1 FROM", "token_version = r.token_version + 1 FROM" },
};

/* What replaces a whole statement must live as long as the connections that have prepared it. */
static struct {
	const struct pgstmt *of;
	struct pgstmt without;
} made[CUTS_MAX];
static size_t n_made;

static char *cut(const char *sql, const char *what, const char *instead)
{
	const char *at = strstr(sql, what);
	ALWAYS(at != NULL);
	return mem_printf("%.*s%s%s", (int)(at - sql), sql, instead, at + strlen(what));
}

static const struct pgstmt *without_fence(const struct pgstmt *stmt)
{
	char *sql = NULL;
	for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
		if (strcmp(cuts[i].statement, stmt->name) != 0)
			continue;
		char *next = cut(sql != NULL ? sql : stmt->sql, cuts[i].what, cuts[i].instead);
		mem_free(sql);
		sql = next;
	}
	if (sql == NULL)
		return stmt;
	ALWAYS(n_made < CUTS_MAX);
	made[n_made].of = stmt;
	made[n_made].without = (struct pgstmt){ .name = stmt->name, .sql = sql };
	return &made[n_made++].without;
}

const struct pgstmt *store_mutant(const struct pgstmt *stmt)
{
	if (!MUTANT(fence_off))
		return stmt;
	for (size_t i = 0; i < n_made; i++) {
		if (made[i].of == stmt)
			return &made[i].without;
	}
	return without_fence(stmt);
}
