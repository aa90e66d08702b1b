/*
 * metrics - counters, gauges and histograms from one table (metrics.def), Prometheus text out.
 *
 * A metric has at most two labels, both from closed sets (provider, outcome, state, class, route,
 * code): never an id. A series is made once by metrics_get (which puts it at zero, so that it exists
 * from the start) and then touched through its handle, which stays valid until metrics_reset().
 * Process-wide, single-threaded by design.
 */
#ifndef REFRESHD_BASE_METRICS_H
#define REFRESHD_BASE_METRICS_H

#include <stdint.h>

#include "base/buf.h"

enum metric {
#define METRIC(id, type, name, l1, l2, buckets, help) id,
#include "base/metrics.def"
#undef METRIC
	METRIC_COUNT
};

struct series; /* opaque; never freed before metrics_reset */

/* Labels that the metric does not have are NULL. The strings are copied. */
struct series *metrics_get(enum metric m, const char *l1, const char *l2);

void series_add(struct series *s, uint64_t n);	/* counter */
void series_set(struct series *s, double v);	/* gauge */
void series_observe(struct series *s, double v);/* histogram; NaN and infinity count in +Inf and stay out of the sum */
double series_value(const struct series *s);	/* counter or gauge value; a histogram's count. For tests and STATUS. */

#define metrics_inc(m, l1, l2) series_add(metrics_get((m), (l1), (l2)), 1)
#define metrics_set(m, l1, l2, v) series_set(metrics_get((m), (l1), (l2)), (v))

/*
 * Appends the text exposition format 0.0.4, with HELP and TYPE for every metric, series in stable order (table, then
 * labels). Metrics without labels are always there. ST_FULL.
 */
int metrics_render(struct buf *out) MUST_USE;
/*
 * Drop all series of one metric (gauges of things that are gone), or everything. After a clear handles are still
 * valid: the series is back, from zero, once it is got or touched again. After a reset none is.
 */
void metrics_clear(enum metric m);
void metrics_reset(void);

#endif
