/*
 * failpoint - counts the places that are passed and ends the process at the one that was asked for.
 *
 * Linked into tests/torture/refreshd only. A word that is not in the tables ends the process at once: a torture run that kills
 * nobody, or breaks nothing, must not look like one that went well. Must not be called from the journal's thread.
 */
#include "base/failpoint.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

static const char *const point_words[FAILPOINTS] = {
#define X(name) [FAILPOINT_##name] = #name,
	FAILPOINT_LIST(X)
#undef X
};
static const char *const mutant_words[MUTANTS] = {
#define X(name) [MUTANT_##name] = #name,
	MUTANT_LIST(X)
#undef X
};

static struct {
	bool read, due;
	int trace; /* -1: none */
	int point, mutant; /* -1: none */
	int64_t left;	   /* how many more times the point is passed */
} plan = { .trace = -1, .point = -1, .mutant = -1 };

static int find(const char *const *words, int n, const char *word, size_t len)
{
	for (int i = 0; i < n; i++) {
		if (strlen(words[i]) == len && memcmp(words[i], word, len) == 0)
			return i;
	}
	return -1;
}

static void read_plan(void)
{
	if (plan.read)
		return;
	plan.read = true;
	const char *p = getenv("REFRESHD_FAILPOINT"), *m = getenv("REFRESHD_MUTANT"), *t = getenv("REFRESHD_TRACE");
	if (p != NULL && *p != '\0') {
		const char *colon = strchr(p, ':');
		ALWAYS(colon != NULL);
		plan.point = find(point_words, FAILPOINTS, p, (size_t)(colon - p));
		ALWAYS(plan.point >= 0);
		ALWAYS(str_parse_i64(colon + 1, strlen(colon + 1), &plan.left) == 0 && plan.left > 0);
	}
	if (m != NULL && *m != '\0') {
		plan.mutant = find(mutant_words, MUTANTS, m, strlen(m));
		ALWAYS(plan.mutant >= 0);
	}
	if (t != NULL && *t != '\0') {
		plan.trace = open(t, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		ALWAYS(plan.trace >= 0);
	}
}

static void end(void)
{
	(void)raise(SIGKILL);
}

void failpoint_pass(enum failpoint p, bool now)
{
	read_plan();
	if ((int)p != plan.point || --plan.left != 0)
		return;
	if (now)
		end();
	plan.due = true;
}

void failpoint_due(void)
{
	if (plan.due)
		end();
}

bool failpoint_mutant(enum mutant m)
{
	read_plan();
	return (int)m == plan.mutant;
}

void failpoint_note(const char *what, const uint8_t id[16], int64_t attempt)
{
	char uuid[STR_UUID_BYTES];
	read_plan();
	if (plan.trace < 0)
		return;
	str_format_uuid(id, uuid);
	char *line = mem_printf("%" PRId64 " %s %s %" PRId64 "\n", sys_wall_us(), what, uuid, attempt);
	ALWAYS(write(plan.trace, line, strlen(line)) == (ssize_t)strlen(line));
	mem_free(line);
}
