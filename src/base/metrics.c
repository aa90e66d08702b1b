/*
 * metrics - the table of metrics.def filled with series, and the text that Prometheus scrapes.
 *
 * Series are found by a hash of metric and labels, as counting happens several times a refresh, and
 * are kept sorted per metric, so that two scrapes differ in numbers only. A cleared series is hidden and
 * not freed: somebody may hold its handle, and the label sets are closed, so the memory is bounded.
 * Labels are our own words; nothing here may be fed with an id or with text of a peer.
 */
#include "base/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define PREFIX "refreshd_"
#define MIN_SLOTS ((size_t)64)
#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))

enum kind { COUNTER, GAUGE, HISTOGRAM };
enum bounds { NONE, SECONDS, LATENESS };

static const char *const kind_names[] = {
	[COUNTER] = "counter",
	[GAUGE] = "gauge",
	[HISTOGRAM] = "histogram",
};

static const double seconds_bounds[] = {
	0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
};
static const double lateness_bounds[] = {
	0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600,
};

static const struct {
	const double *v;
	size_t n;
} bound_sets[] = {
	[NONE] = { NULL, 0 },
	[SECONDS] = { seconds_bounds, COUNT_OF(seconds_bounds) },
	[LATENESS] = { lateness_bounds, COUNT_OF(lateness_bounds) },
};

struct metric_row {
	const char *name;
	const char *l1, *l2; /* label names, or NULL */
	const char *help;
	enum kind kind;
	enum bounds bounds;
};

static const struct metric_row rows[METRIC_COUNT] = {
#define METRIC(id, type, name_, l1_, l2_, buckets, help_) \
	[id] = { (name_), (l1_), (l2_), (help_), (type), (buckets) },
#include "base/metrics.def"
#undef METRIC
};

struct series {
	struct series *next; /* in its hash slot */
	uint32_t hash;
	enum metric metric;
	bool hidden;
	char *l1, *l2;
	uint64_t count;	  /* counter value; observations of a histogram */
	double value;	  /* gauge value; sum of a histogram */
	uint64_t *buckets; /* per bound, not cumulative, the last one for +Inf; NULL unless a histogram */
};

static struct {
	struct series **slots;
	size_t slots_len; /* a power of two, or 0 */
	size_t count;
	struct {
		struct series **v; /* sorted by labels */
		size_t len, cap;
	} by_metric[METRIC_COUNT];
} registry;

/* The labels are ours, nobody can aim at a slot. */
static uint32_t hash_label(uint32_t h, const char *s)
{
	return str_hash(s != NULL ? str_hash(h, s) : h, "\xff");
}

static int compare_labels(const struct series *s, const char *l1, const char *l2)
{
	int c = l1 != NULL ? strcmp(s->l1, l1) : 0;

	return c == 0 && l2 != NULL ? strcmp(s->l2, l2) : c;
}

static struct series *find(uint32_t hash, enum metric m, const char *l1, const char *l2)
{
	if (registry.slots_len == 0)
		return NULL;
	struct series *s = registry.slots[hash & (registry.slots_len - 1)];
	while (s != NULL && (s->hash != hash || s->metric != m || compare_labels(s, l1, l2) != 0))
		s = s->next;
	return s;
}

static void grow_slots(void)
{
	size_t len = registry.slots_len > 0 ? registry.slots_len * 2 : MIN_SLOTS;
	struct series **slots = mem_calloc(len, sizeof(struct series *));

	for (size_t i = 0; i < registry.slots_len; i++) {
		struct series *next;
		for (struct series *s = registry.slots[i]; s != NULL; s = next) {
			next = s->next;
			s->next = slots[s->hash & (len - 1)];
			slots[s->hash & (len - 1)] = s;
		}
	}
	mem_free(registry.slots);
	registry.slots = slots;
	registry.slots_len = len;
}

static void insert_hash(struct series *s)
{
	if (registry.count >= registry.slots_len)
		grow_slots();
	size_t slot = s->hash & (registry.slots_len - 1);
	s->next = registry.slots[slot];
	registry.slots[slot] = s;
	registry.count++;
}

static void insert_sorted(struct series *s)
{
	size_t len = registry.by_metric[s->metric].len;

	if (len == registry.by_metric[s->metric].cap) {
		size_t cap = len > 0 ? len * 2 : 4;
		registry.by_metric[s->metric].v =
			mem_realloc(registry.by_metric[s->metric].v, cap, sizeof(struct series *));
		registry.by_metric[s->metric].cap = cap;
	}
	struct series **v = registry.by_metric[s->metric].v;
	size_t i = len;
	for (; i > 0 && compare_labels(v[i - 1], s->l1, s->l2) > 0; i--)
		v[i] = v[i - 1];
	v[i] = s;
	registry.by_metric[s->metric].len = len + 1;
}

static struct series *make(uint32_t hash, enum metric m, const char *l1, const char *l2)
{
	struct series *s = mem_alloc(sizeof(*s));

	s->hash = hash;
	s->metric = m;
	s->l1 = l1 != NULL ? mem_strdup(l1) : NULL;
	s->l2 = l2 != NULL ? mem_strdup(l2) : NULL;
	if (rows[m].kind == HISTOGRAM)
		s->buckets = mem_calloc(bound_sets[rows[m].bounds].n + 1, sizeof(uint64_t));
	insert_hash(s);
	insert_sorted(s);
	return s;
}

struct series *metrics_get(enum metric m, const char *l1, const char *l2)
{
	ALWAYS((unsigned)m < METRIC_COUNT);
	ALWAYS((l1 != NULL) == (rows[m].l1 != NULL) && (l2 != NULL) == (rows[m].l2 != NULL));
	uint32_t hash = hash_label(hash_label(STR_HASH ^ (uint32_t)m, l1), l2);
	struct series *s = find(hash, m, l1, l2);

	if (s == NULL)
		s = make(hash, m, l1, l2);
	s->hidden = false;
	return s;
}

void series_add(struct series *s, uint64_t n)
{
	ALWAYS(rows[s->metric].kind == COUNTER);
	s->hidden = false;
	s->count += n;
}

void series_set(struct series *s, double v)
{
	ALWAYS(rows[s->metric].kind == GAUGE);
	s->hidden = false;
	s->value = v;
}

void series_observe(struct series *s, double v)
{
	ALWAYS(rows[s->metric].kind == HISTOGRAM);
	const double *bounds = bound_sets[rows[s->metric].bounds].v;
	size_t n = bound_sets[rows[s->metric].bounds].n, i = 0;

	/* Negated, so that a NaN falls through to +Inf. */
	while (i < n && !(v <= bounds[i]))
		i++;
	s->hidden = false;
	s->buckets[i]++;
	s->count++;
	if (isfinite(v))
		s->value += v;
}

double series_value(const struct series *s)
{
	return rows[s->metric].kind == GAUGE ? s->value : (double)s->count;
}

/* Appends stick to the first failure, so that the writers below need no checks of their own. */
struct text {
	struct buf *out;
	int rc;
};

static void put(struct text *t, const char *s, size_t n)
{
	if (t->rc == 0)
		t->rc = buf_append(t->out, s, n);
}

static void puts_text(struct text *t, const char *s)
{
	put(t, s, strlen(s));
}

static void put_double(struct text *t, double v)
{
	char s[40] = "NaN";

	if (isinf(v)) {
		snprintf(s, sizeof(s), "%s", v > 0 ? "+Inf" : "-Inf");
	} else if (!isnan(v)) {
		/* The shortest form that reads back to the same number. */
		for (int digits = 15; digits <= 17; digits++) {
			snprintf(s, sizeof(s), "%.*g", digits, v);
			if (strtod(s, NULL) == v)
				break;
		}
	}
	puts_text(t, s);
}

static void put_u64(struct text *t, uint64_t v)
{
	char s[24];

	snprintf(s, sizeof(s), "%" PRIu64, v);
	puts_text(t, s);
}

static void put_label_value(struct text *t, const char *s)
{
	/* A scrape with one byte that is not UTF-8 is refused whole. */
	bool utf8 = str_is_utf8(s, strlen(s));

	for (; *s != '\0'; s++) {
		char hex[8];
		if (*s == '\\' || *s == '"')
			put(t, (const char[]){ '\\', *s }, 2);
		else if (*s == '\n')
			puts_text(t, "\\n");
		else if (!utf8 && (uint8_t)*s >= 0x80)
			put(t, hex, (size_t)snprintf(hex, sizeof(hex), "\\\\x%02x", (unsigned)(uint8_t)*s));
		else
			put(t, s, 1);
	}
}

static void put_label(struct text *t, char *sep, const char *name, const char *value)
{
	if (name == NULL)
		return;
	put(t, sep, 1);
	puts_text(t, name);
	puts_text(t, "=\"");
	put_label_value(t, value);
	puts_text(t, "\"");
	*sep = ',';
}

/* "refreshd_name_suffix{l1="..",l2="..",le=".."} ", without braces when there is no label. */
static void put_sample(struct text *t, const struct series *s, const char *suffix, const char *le)
{
	const struct metric_row *row = &rows[s->metric];
	char sep = '{';

	puts_text(t, PREFIX);
	puts_text(t, row->name);
	puts_text(t, suffix);
	put_label(t, &sep, row->l1, s->l1);
	put_label(t, &sep, row->l2, s->l2);
	put_label(t, &sep, le != NULL ? "le" : NULL, le);
	puts_text(t, sep == ',' ? "} " : " ");
}

static void put_histogram(struct text *t, const struct series *s)
{
	const double *bounds = bound_sets[rows[s->metric].bounds].v;
	size_t n = bound_sets[rows[s->metric].bounds].n;
	uint64_t below = 0;

	for (size_t i = 0; i <= n; i++) {
		char le[32] = "+Inf";
		if (i < n)
			snprintf(le, sizeof(le), "%g", bounds[i]);
		below += s->buckets[i];
		put_sample(t, s, "_bucket", le);
		put_u64(t, below);
		puts_text(t, "\n");
	}
	put_sample(t, s, "_sum", NULL);
	put_double(t, s->value);
	puts_text(t, "\n");
	put_sample(t, s, "_count", NULL);
	put_u64(t, s->count);
	puts_text(t, "\n");
}

static void put_series(struct text *t, const struct series *s)
{
	if (s->hidden)
		return;
	if (rows[s->metric].kind == HISTOGRAM) {
		put_histogram(t, s);
		return;
	}
	put_sample(t, s, "", NULL);
	if (rows[s->metric].kind == COUNTER)
		put_u64(t, s->count);
	else
		put_double(t, s->value);
	puts_text(t, "\n");
}

static void put_head(struct text *t, const struct metric_row *row)
{
	puts_text(t, "# HELP " PREFIX);
	puts_text(t, row->name);
	puts_text(t, " ");
	puts_text(t, row->help);
	puts_text(t, "\n# TYPE " PREFIX);
	puts_text(t, row->name);
	puts_text(t, " ");
	puts_text(t, kind_names[row->kind]);
	puts_text(t, "\n");
}

int metrics_render(struct buf *out)
{
	struct text t = { .out = out };
	size_t before = out->len;

	for (unsigned m = 0; m < METRIC_COUNT && t.rc == 0; m++) {
		/* A metric without labels is there at zero before anyone has touched it. */
		if (rows[m].l1 == NULL)
			metrics_get((enum metric)m, NULL, NULL);
		put_head(&t, &rows[m]);
		for (size_t i = 0; i < registry.by_metric[m].len; i++)
			put_series(&t, registry.by_metric[m].v[i]);
	}
	if (t.rc < 0)
		buf_truncate(out, before);
	return t.rc;
}

void metrics_clear(enum metric m)
{
	ALWAYS((unsigned)m < METRIC_COUNT);
	for (size_t i = 0; i < registry.by_metric[m].len; i++) {
		struct series *s = registry.by_metric[m].v[i];
		s->hidden = true;
		s->count = 0;
		s->value = 0;
		if (s->buckets != NULL)
			memset(s->buckets, 0, (bound_sets[rows[m].bounds].n + 1) * sizeof(uint64_t));
	}
}

static void series_free(struct series *s)
{
	mem_free(s->l1);
	mem_free(s->l2);
	mem_free(s->buckets);
	mem_free(s);
}

void metrics_reset(void)
{
	for (unsigned m = 0; m < METRIC_COUNT; m++) {
		for (size_t i = 0; i < registry.by_metric[m].len; i++)
			series_free(registry.by_metric[m].v[i]);
		mem_free(registry.by_metric[m].v);
	}
	mem_free(registry.slots);
	memset(&registry, 0, sizeof(registry));
}
