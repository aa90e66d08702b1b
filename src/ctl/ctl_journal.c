/*
 * ctl_journal - a look at the answers on this machine's disk. Opens none of them and changes nothing.
 *
 * Replaying is the daemon's: only it holds the journal's lock and knows what it has in its hands.
 */
#include "ctl/ctl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "io/journal.h"
#include "service/reply.h"

struct records {
	struct ctl_listing l;
	bool listing;
	uint64_t open, done, foreign;
	unsigned damaged; /* segments */
};

static void show_record(struct ctl_listing *l, uint64_t seq, bool done, size_t n, bool known, const uint8_t id[16], int64_t attempt)
{
	char uuid[STR_UUID_BYTES] = "?";
	if (known)
		str_format_uuid(id, uuid);
	if (l->table != NULL) {
		ctl_table_cell(l->table, "%" PRIu64, seq);
		ctl_table_cell(l->table, "%s", uuid);
		ctl_table_cell(l->table, "%" PRId64, attempt);
		ctl_table_cell(l->table, "%zu", n);
		ctl_table_cell(l->table, "%s", done ? "done" : "open");
		return;
	}
	ctl_json_element_begin(&l->json);
	jsonw_object(&l->json.w, NULL);
	jsonw_int(&l->json.w, "seq", (int64_t)seq);
	jsonw_str(&l->json.w, "connection_id", known ? uuid : NULL);
	jsonw_int(&l->json.w, "attempt_id", attempt);
	jsonw_int(&l->json.w, "bytes", (int64_t)n);
	jsonw_bool(&l->json.w, "done", done);
	jsonw_object_end(&l->json.w);
	if (ctl_json_element_end(&l->json) != CTL_OK)
		ctl_note("journal: record %" PRIu64 " could not be shown", seq);
}

static int on_record(void *arg, uint64_t seq, bool done, const void *p, size_t n)
{
	struct records *r = arg;
	uint8_t id[16];
	int64_t attempt = 0, version = 0;
	bool known = reply_peek(p, n, id, &attempt, &version) == 0;
	r->foreign += !known;
	if (done)
		r->done++;
	else
		r->open++;
	if (r->listing)
		show_record(&r->l, seq, done, n, known, id, attempt);
	return 0;
}

static void on_damage(void *arg, const struct fault *what)
{
	struct records *r = arg;
	r->damaged++;
	ctl_note("journal: %s", what->text);
}

static int complain_of_damage(const char *command, unsigned segments)
{
	return ctl_complain("%s: %u segment%s damaged: an answer may be lost there; keep the files", command, segments,
		segments == 1 ? " is" : "s are");
}

static int journal_list(struct ctl *c, const char *dir)
{
	static const char *const headers[] = { "SEQ", "CONNECTION", "ATTEMPT", "BYTES", "STATE" };
	struct records r = { .listing = true };
	struct fault f = { 0 };
	ctl_listing_begin(&r.l, c, headers, 5);
	int rc = journal_inspect(dir, on_record, on_damage, &r, &f);
	ctl_listing_end(&r.l);
	if (rc != 0)
		return ctl_fail("journal list", &f);
	if (!c->json)
		printf("%" PRIu64 " open, %" PRIu64 " done\n", r.open, r.done);
	if (r.damaged > 0)
		return complain_of_damage("journal list", r.damaged);
	if (r.foreign > 0)
		return ctl_complain("journal list: %" PRIu64 " records are of a form that this program does not know", r.foreign);
	return CTL_OK;
}

/* Is the journal's lock held? Tried shared and given back at once. */
static int lock_held(const char *dir, bool *held, struct fault *f)
{
	char *path = mem_printf("%s/lock", dir);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	int rc = 0;
	*held = false;
	if (fd < 0 && errno != ENOENT)
		rc = fault_set(f, ST_IO, "%s: %s", path, strerror(errno));
	if (fd >= 0) {
		*held = flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
		(void)close(fd);
	}
	mem_free(path);
	return rc;
}

static int journal_replay_(const struct ctl *c, const char *dir)
{
	struct records r = { .listing = false };
	struct fault f = { 0 };
	bool held = false;
	int rc = lock_held(dir, &held, &f);
	if (rc == 0)
		rc = journal_inspect(dir, on_record, on_damage, &r, &f);
	if (rc != 0)
		return ctl_fail("journal replay", &f);
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		jsonw_object(&j.w, NULL);
		jsonw_int(&j.w, "open", (int64_t)r.open);
		jsonw_bool(&j.w, "in_use", held);
		jsonw_int(&j.w, "damaged_segments", (int64_t)r.damaged);
		jsonw_object_end(&j.w);
		int status = ctl_json_end(&j);
		return status == CTL_OK && ((r.open > 0 && !held) || r.damaged > 0) ? CTL_FAILURE : status;
	}
	puts("The daemon replays its journal itself, at every start, before it refreshes anything.");
	printf("%s: %" PRIu64 " open records\n", dir, r.open);
	if (held) {
		puts("A daemon holds this journal: its open records are being worked on.");
		return r.damaged > 0 ? complain_of_damage("journal replay", r.damaged) : CTL_OK;
	}
	puts("No daemon holds this journal.");
	if (r.damaged > 0)
		(void)complain_of_damage("journal replay", r.damaged);
	if (r.open > 0)
		return ctl_complain("journal replay: start refreshd with this state_dir: it will replay %" PRIu64 " records", r.open);
	return r.damaged > 0 ? CTL_FAILURE : CTL_OK;
}

int ctl_journal(struct ctl *c, int argc, char **argv)
{
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 1, 1));
	const char *what = c->words[0];
	bool list = strcmp(what, "list") == 0;
	if (!list && strcmp(what, "replay") != 0)
		return ctl_usage(c, "journal: '%.40s' is neither list nor replay", what);
	CTL_TRY(ctl_load(c));
	char *dir = mem_printf("%s/journal", c->conf->state_dir);
	int status = list ? journal_list(c, dir) : journal_replay_(c, dir);
	mem_free(dir);
	return status;
}
