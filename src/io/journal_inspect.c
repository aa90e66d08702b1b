/*
 * journal_inspect - a look at a journal without its lock, while a daemon may be writing, moving and removing
 * segments under our eyes. First all records are listed, which may have to start over when a segment
 * goes away; then each is read once more and given out. Must not change anything on disk.
 */
#include "io/journal.h"

#include <stdlib.h>

#include "base/mem.h"
#include "io/journal_file.h"

#define MAX_LISTINGS 10

struct seen {
	uint64_t seq, offset;
	uint32_t segment; /* in the array of names */
	uint32_t order;	  /* as read: of two copies the later one is good */
	bool done;
};

struct listing {
	struct seen *v;
	size_t n, cap;
	uint32_t segment;
	bool *hurt; /* by segment */
	size_t n_segments;
};

static int ignore_record(void *arg, const struct journal_record *r)
{
	(void)arg, (void)r;
	return 0;
}

/* A daemon may have been writing there just then: what is damage now is so at the second look as well. */
static int tell_damage(const struct journal_dir *d, const struct journal_name *name, void (*damaged)(void *arg, const struct fault *what),
	void *arg, struct fault *f)
{
	struct journal_damage damage = { .n = 0 };
	struct fault what = { 0 };
	int code = journal_segment_scan(d, name, ignore_record, NULL, &damage, f);
	if (code == ST_NOT_FOUND) /* all done, and removed */
		return 0;
	if (code != 0 || damage.n == 0)
		return code;
	journal_damage_describe(d, name, &damage, &what);
	damaged(arg, &what);
	return 0;
}

static int list_record(void *arg, const struct journal_record *r)
{
	struct listing *l = arg;
	if (l->n == l->cap) {
		l->cap = l->cap ? l->cap * 2 : 256;
		l->v = mem_realloc(l->v, l->cap, sizeof(*l->v));
	}
	l->v[l->n] = (struct seen){ .seq = r->seq, .offset = r->offset, .segment = l->segment,
		.order = (uint32_t)l->n, .done = r->type == JOURNAL_DONE };
	l->n++;
	return 0;
}

static int seen_order(const void *a, const void *b)
{
	const struct seen *x = a, *y = b;
	if (x->seq != y->seq)
		return x->seq < y->seq ? -1 : 1;
	return x->order < y->order ? -1 : x->order > y->order;
}

static int list_all(const struct journal_dir *d, struct journal_name **names, struct listing *l, struct fault *f)
{
	size_t n;
	int code = journal_dir_list(d, names, &n, f);
	if (code != 0)
		return code;
	l->n = 0;
	mem_free(l->hurt);
	l->hurt = mem_calloc(n + 1, sizeof(*l->hurt));
	l->n_segments = n;
	for (size_t i = 0; i < n && code == 0; i++) {
		struct journal_damage damage = { .n = 0 };
		l->segment = (uint32_t)i;
		code = journal_segment_scan(d, &(*names)[i], list_record, l, &damage, f);
		l->hurt[i] = damage.n > 0;
	}
	if (code != 0) {
		mem_free(*names);
		*names = NULL;
		return code;
	}
	if (l->n > 0)
		qsort(l->v, l->n, sizeof(*l->v), seen_order);
	return 0;
}

/* One run of equal numbers: the last data record in it, and whether a done came with it. */
static int give_run(const struct journal_dir *d, const struct journal_name *names, const struct seen *v, size_t n, struct buf *b,
	int (*fn)(void *arg, uint64_t seq, bool done, const void *p, size_t n), void *arg)
{
	const struct seen *data = NULL;
	bool done = false;
	for (size_t i = 0; i < n; i++) {
		if (v[i].done)
			done = true;
		else
			data = &v[i];
	}
	if (data == NULL || journal_segment_read(d, &names[data->segment], data->offset, data->seq, b) != 0)
		return 0;
	return fn(arg, data->seq, done, b->data, b->len);
}

int journal_inspect(const char *dir, int (*fn)(void *arg, uint64_t seq, bool done, const void *p, size_t n),
	void (*damaged)(void *arg, const struct fault *what), void *arg, struct fault *f)
{
	struct journal_dir d;
	int code = journal_dir_open(dir, false, &d, f);
	if (code != 0)
		return code;
	struct journal_name *names = NULL;
	struct listing l = { .v = NULL };
	code = ST_NOT_FOUND;
	for (int i = 0; i < MAX_LISTINGS && code == ST_NOT_FOUND; i++)
		code = list_all(&d, &names, &l, f);
	for (size_t i = 0; code == 0 && damaged != NULL && i < l.n_segments; i++)
		if (l.hurt[i])
			code = tell_damage(&d, &names[i], damaged, arg, f);
	struct buf b;
	buf_init(&b, JOURNAL_RECORD_MAX);
	for (size_t i = 0, end; code == 0 && i < l.n; i = end) {
		for (end = i + 1; end < l.n && l.v[end].seq == l.v[i].seq; end++)
			;
		code = give_run(&d, names, &l.v[i], end - i, &b, fn, arg);
		if (code < 0)
			fault_set(f, code, "%s: stopped by the caller", dir);
		else
			code = 0;
	}
	buf_fini(&b);
	mem_free(l.v);
	mem_free(l.hurt);
	mem_free(names);
	journal_dir_close(&d);
	return code;
}
