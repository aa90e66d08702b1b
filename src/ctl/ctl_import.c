/*
 * ctl_import - lines of JSON into the vault: read, check, report, and hand over in chunks.
 *
 * Lines are split by hand, so that a line without end costs a megabyte and no more. A bad line is told by its number
 * and its fields, never by its content. What is committed is said exactly, also after Ctrl-C or an error, because the
 * operator has to know where to go on.
 */
#include "ctl/ctl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/import.h"
#include "service/vault.h"
#include "service/vault_import.h"
#include "service/vault_lanes.h"
#include "service/vault_ops.h"

#define READ_BYTES ((size_t)256 * 1024)
#define BAD_SHOWN 20
#define PROGRESS_US (US_PER_S / 10)

struct job {
	struct ctl *c;
	bool dry_run, strict, create_apps, verbose;
	const char *name; /* of the file, for messages */
	int fd;
	uint64_t size, read; /* bytes; size 0: unknown */
	struct buf line;     /* secret: what was read of the present line */
	bool too_long, at_end;

	struct vault_lanes_chunk chunk;
	uint64_t line_no, chunk_end; /* the last line that was read; that is committed */
	uint64_t lines, bad;	     /* lines: without the empty ones */
	struct vault_importer *importer;
	struct vault_lanes *lanes; /* from the first full chunk on, for what is committed chunk by chunk */
	struct vault_import_counts counts;
	bool rolled_back; /* --strict met a bad line: from here on it is only checked */

	char **apps; /* sorted */
	size_t n_apps, apps_cap;
	int64_t shown_at;
};

/* ---------------------------------------------------------------- applications */

static int app_order(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool has_app(const struct job *j, const char *name)
{
	return j->n_apps > 0 && bsearch(&name, j->apps, j->n_apps, sizeof(*j->apps), app_order) != NULL;
}

static void remember_app(struct job *j, const char *name)
{
	if (j->n_apps == j->apps_cap) {
		j->apps_cap = j->apps_cap == 0 ? 16 : 2 * j->apps_cap;
		j->apps = mem_realloc(j->apps, j->apps_cap, sizeof(*j->apps));
	}
	j->apps[j->n_apps++] = mem_strdup(name);
	qsort(j->apps, j->n_apps, sizeof(*j->apps), app_order);
}

/* 0, ST_NOT_FOUND, or the database's fault. */
static int check_app(struct job *j, const char *name, struct fault *f)
{
	bool exists = false;
	if (has_app(j, name))
		return 0;
	int rc = vault_app_exists(j->c->pg, name, &exists, f);
	if (rc == 0 && !exists && j->create_apps) {
		rc = vault_app_check(name, f);
		if (rc != 0)
			return ST_NOT_FOUND;
		if (!j->dry_run && !j->rolled_back)
			rc = vault_app_add(j->c->pg, name, &exists, f);
		exists = true;
	}
	if (rc != 0)
		return rc;
	if (!exists)
		return fault_set(f, ST_NOT_FOUND, "there is no such application (refreshctl app add, or --create-apps)");
	remember_app(j, name);
	return 0;
}

/* ---------------------------------------------------------------- progress and complaints */

static void clear_progress(struct job *j)
{
	if (j->shown_at != 0)
		fputs("\r\033[K", stderr);
	j->shown_at = 0;
}

static void show_progress(struct job *j)
{
	int64_t now = sys_mono_us();
	if (!j->c->err_tty || (j->shown_at != 0 && now - j->shown_at < PROGRESS_US))
		return;
	j->shown_at = now;
	if (j->size == 0) {
		fprintf(stderr, "\r\033[K%" PRIu64 " lines", j->line_no);
		return;
	}
	char bar[41];
	unsigned done = j->read >= j->size ? 40 : (unsigned)(j->read * 40 / j->size);
	memset(bar, '.', 40);
	memset(bar, '#', done);
	bar[40] = '\0';
	fprintf(stderr, "\r\033[K[%s] %3u%%  %" PRIu64 " lines", bar, (unsigned)(j->read * 100 / j->size), j->line_no);
}

static void tell_bad(struct job *j, const char *why)
{
	j->bad++;
	if (!j->verbose && j->bad > BAD_SHOWN)
		return;
	clear_progress(j);
	fprintf(stderr, "%s:%" PRIu64 ": %s\n", j->name, j->line_no, why);
	if (!j->verbose && j->bad == BAD_SHOWN)
		fprintf(stderr, "%s: further bad lines are only counted; --verbose shows all\n", j->name);
}

/* The first bad line of a strict import undoes all; the rest is read for its mistakes only. */
static int line_is_bad(struct job *j, const char *why, struct fault *f)
{
	tell_bad(j, why);
	if (!j->strict || j->rolled_back || j->dry_run)
		return 0;
	j->rolled_back = true;
	return pgsync_exec(j->c->pg, "ROLLBACK", f);
}

/* ---------------------------------------------------------------- chunks */

/* Only what is too long for a single chunk is worth connections of its own. */
static int send_chunk(struct job *j, bool last, struct fault *f)
{
	int rc = 0;
	j->chunk.last_line = j->line_no;
	if (j->lanes == NULL && !last)
		rc = vault_lanes_new(j->c->conf, &j->lanes, f);
	if (rc == 0 && j->lanes != NULL)
		return vault_lanes_send(j->lanes, &j->chunk, f);
	if (rc == 0)
		rc = vault_import_chunk(j->importer, j->chunk.items, j->chunk.n, &j->counts, f);
	if (rc == 0)
		j->chunk_end = j->line_no;
	return rc;
}

static int flush_chunk(struct job *j, bool last, struct fault *f)
{
	struct vault_lanes_chunk *k = &j->chunk;
	int rc = 0;
	if (j->dry_run)
		rc = vault_import_preview(j->importer, k->items, k->n, &j->counts, f);
	else if (!j->strict)
		rc = send_chunk(j, last, f);
	else if (!j->rolled_back)
		rc = vault_import_chunk(j->importer, k->items, k->n, &j->counts, f);
	vault_lanes_chunk_empty(k);
	return rc;
}

/* Until now nobody knows what is committed of what was sent. Once only. */
static int finish_chunks(struct job *j, struct fault *f)
{
	if (j->lanes == NULL)
		return 0;
	int rc = vault_lanes_finish(j->lanes, f);
	j->chunk_end = vault_lanes_done(j->lanes, &j->counts);
	vault_lanes_free(j->lanes);
	j->lanes = NULL;
	return rc;
}

static int take_import(struct job *j, const char *s, size_t n, struct fault *f)
{
	struct import_problems p = { .n = 0 };
	struct import *i = &j->chunk.imports[j->chunk.n];
	struct fault why = { 0 };
	const struct provider *provider = NULL;
	import_init(i);
	int rc = import_parse(s, n, true, i, &p);
	bool parsed = rc == 0;
	if (parsed) {
		provider = conf_provider(j->c->conf, i->service_id);
		rc = import_check(i, provider, &p);
	}
	int app = parsed ? check_app(j, i->application_id, &why) : 0;
	if (app != 0 && app != ST_NOT_FOUND) {
		import_fini(i);
		return fault_set(f, app, "%s", why.text);
	}
	if (rc == 0 && app == 0) {
		j->chunk.items[j->chunk.n] = (struct vault_item){ .import = i, .provider = provider };
		j->chunk.n++;
		j->chunk.bytes += n;
		return 0;
	}
	struct buf text = BUF_INIT(8192);
	int built = import_problems_text(&p, &text);
	if (built == 0 && app != 0)
		built = buf_printf(&text, "%sapplication_id: %s", text.len > 0 ? "; " : "", why.text);
	import_fini(i);
	rc = line_is_bad(j, built == 0 ? buf_str(&text) : "many mistakes", f);
	buf_fini(&text);
	return rc;
}

static bool is_blank_line(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (s[i] != ' ' && s[i] != '\t')
			return false;
	return true;
}

static int take_line(struct job *j, struct fault *f)
{
	const char *s = buf_str(&j->line);
	size_t n = j->line.len;
	int rc = 0;
	j->line_no++;
	if (j->line_no == 1 && n >= 3 && memcmp(s, "\xef\xbb\xbf", 3) == 0) {
		s += 3;
		n -= 3;
	}
	if (n > 0 && s[n - 1] == '\r')
		n--;
	if (j->too_long) {
		j->lines++;
		rc = line_is_bad(j, "longer than 1 MiB", f);
	} else if (!is_blank_line(s, n)) {
		j->lines++;
		rc = take_import(j, s, n, f);
	}
	j->too_long = false;
	buf_reset(&j->line);
	if (rc == 0 && (j->chunk.n == VAULT_LANES_CHUNK || j->chunk.bytes >= VAULT_LANES_CHUNK_BYTES))
		rc = flush_chunk(j, false, f);
	return rc;
}

/* ---------------------------------------------------------------- reading */

static int take_bytes(struct job *j, const char *p, size_t n, struct fault *f)
{
	int rc = 0;
	while (rc == 0 && n > 0 && !ctl_interrupted) {
		const char *nl = memchr(p, '\n', n);
		size_t len = nl != NULL ? (size_t)(nl - p) : n;
		if (!j->too_long && buf_append(&j->line, p, len) != 0) {
			j->too_long = true;
			buf_reset(&j->line);
		}
		if (nl != NULL)
			rc = take_line(j, f);
		len += nl != NULL;
		p += len;
		n -= len;
	}
	return rc;
}

static int read_all(struct job *j, struct fault *f)
{
	char *block = mem_alloc(READ_BYTES);
	int rc = 0;
	while (rc == 0 && !ctl_interrupted && !j->at_end) {
		ssize_t n = read(j->fd, block, READ_BYTES);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			rc = fault_set(f, ST_IO, "reading: %s", strerror(errno));
		} else if (n == 0) {
			j->at_end = true;
			if (j->line.len > 0 || j->too_long)
				rc = take_line(j, f);
		} else {
			j->read += (uint64_t)n;
			rc = take_bytes(j, block, (size_t)n, f);
			show_progress(j);
		}
	}
	mem_wipe(block, READ_BYTES);
	mem_free(block);
	return rc;
}

static int open_input(struct job *j, const char *path)
{
	struct stat st;
	if (strcmp(path, "-") == 0) {
		j->fd = STDIN_FILENO;
		j->name = "stdin";
		return CTL_OK;
	}
	j->name = path;
	j->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (j->fd < 0)
		return ctl_complain("import: %s: %s", path, strerror(errno));
	if (fstat(j->fd, &st) == 0 && S_ISDIR(st.st_mode))
		return ctl_complain("import: %s: is a directory", path);
	if (fstat(j->fd, &st) == 0 && S_ISREG(st.st_mode))
		j->size = (uint64_t)st.st_size;
	return CTL_OK;
}

/* ---------------------------------------------------------------- the end */

static int print_summary(const struct job *j)
{
	const struct vault_import_counts *k = &j->counts;
	bool written = !j->dry_run && !j->rolled_back;
	if (j->c->json) {
		struct ctl_json out;
		ctl_json_begin(&out);
		jsonw_object(&out.w, NULL);
		jsonw_int(&out.w, "lines", (int64_t)j->lines);
		jsonw_bool(&out.w, "written", written);
		jsonw_int(&out.w, "created", j->rolled_back ? 0 : (int64_t)k->created);
		jsonw_int(&out.w, "updated", j->rolled_back ? 0 : (int64_t)k->updated);
		jsonw_int(&out.w, "duplicates", (int64_t)k->duplicates);
		jsonw_int(&out.w, "refused", (int64_t)k->refused);
		jsonw_int(&out.w, "bad", (int64_t)j->bad);
		jsonw_int(&out.w, "due_now", j->rolled_back ? 0 : (int64_t)k->due_now);
		jsonw_object_end(&out.w);
		return ctl_json_end(&out);
	}
	if (j->rolled_back) {
		printf("%" PRIu64 " lines, %" PRIu64 " bad: nothing was written (--strict)\n", j->lines, j->bad);
		return CTL_OK;
	}
	printf("%" PRIu64 " lines: %s%" PRIu64 " created, %" PRIu64 " updated", j->lines, j->dry_run ? "would be " : "", k->created, k->updated);
	if (k->duplicates > 0)
		printf(", %" PRIu64 " repeated (the last one counts)", k->duplicates);
	if (k->refused > 0)
		printf(", %" PRIu64 " refused (newer tokens kept coming in)", k->refused);
	printf(", %" PRIu64 " bad", j->bad);
	if (k->due_now > 0)
		printf("; %" PRIu64 " due now", k->due_now);
	puts(j->dry_run ? "; nothing was written (--dry-run)" : "");
	return CTL_OK;
}

static int stopped(struct job *j, const struct fault *f)
{
	struct fault late = { 0 };
	int rc = finish_chunks(j, &late);
	clear_progress(j);
	if (f != NULL)
		(void)ctl_fail("import", f);
	if (rc != 0 && (f == NULL || strcmp(f->text, late.text) != 0))
		(void)ctl_fail("import", &late);
	if (f == NULL && rc == 0)
		ctl_note("import: interrupted");
	if (j->dry_run || j->strict)
		return ctl_complain("import: nothing was written");
	return ctl_complain("import: lines 1 to %" PRIu64 " are committed (%" PRIu64 " created, %" PRIu64 " updated); go on with line %" PRIu64,
		j->chunk_end, j->counts.created, j->counts.updated, j->chunk_end + 1);
}

static int run_import(struct job *j)
{
	struct fault f = { 0 };
	int rc = 0;
	ctl_catch_interrupt();
	j->importer = vault_importer_new(j->c->pg, j->c->conf, j->strict);
	if (j->strict && !j->dry_run)
		rc = pgsync_exec(j->c->pg, "BEGIN", &f);
	if (rc == 0)
		rc = read_all(j, &f);
	if (rc == 0 && ctl_interrupted)
		return stopped(j, NULL);
	if (rc == 0)
		rc = flush_chunk(j, true, &f);
	if (rc == 0)
		rc = finish_chunks(j, &f);
	if (rc == 0 && j->strict && !j->dry_run && !j->rolled_back)
		rc = pgsync_exec(j->c->pg, "COMMIT", &f);
	if (rc != 0)
		return stopped(j, &f);
	clear_progress(j);
	if (!j->dry_run && !j->rolled_back && j->counts.due_now > 0 && vault_notify(j->c->pg, NULL, &f) != 0)
		ctl_note("import: the daemons were not told (%s); they find out by themselves", f.text);
	int status = print_summary(j);
	return status == CTL_OK && j->bad + j->counts.refused > 0 ? CTL_FAILURE : status;
}

int ctl_import(struct ctl *c, int argc, char **argv)
{
	struct job j = { .c = c, .fd = -1 };
	const struct ctl_opt opts[] = { { "dry-run", CTL_FLAG, &j.dry_run }, { "strict", CTL_FLAG, &j.strict },
		{ "create-apps", CTL_FLAG, &j.create_apps }, { "verbose", CTL_FLAG, &j.verbose } };
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 1, 1));
	int status = ctl_load(c);
	if (status == CTL_OK)
		status = open_input(&j, c->words[0]);
	if (status == CTL_OK)
		status = ctl_connect(c);
	if (status == CTL_OK) {
		buf_init_secret(&j.line, IMPORT_LINE_MAX + 8); /* the mark at its start, the CR at its end */
		vault_lanes_chunk_init(&j.chunk);
		status = run_import(&j);
		vault_lanes_chunk_fini(&j.chunk);
		buf_fini(&j.line);
		vault_importer_free(j.importer);
	}
	for (size_t i = 0; i < j.n_apps; i++)
		mem_free(j.apps[i]);
	mem_free(j.apps);
	if (j.fd > STDERR_FILENO)
		(void)close(j.fd);
	return status;
}
