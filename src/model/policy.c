/*
 * policy - when to refresh and when to try again. Pure arithmetic on stored facts.
 *
 * Every sum saturates and every share is clamped: the facts come from replies, imports and rows, and a wrong
 * one must give an odd time, never undefined behaviour. It draws no random number and reads no clock.
 */
#include "model/policy.h"

#include <string.h>

#include "base/str.h"
#include "base/sys.h"

#define MINUTE_US (60 * US_PER_S)
#define HOUR_US (60 * MINUTE_US)
#define DAY_US (24 * HOUR_US)
#define YEAR_US (365 * DAY_US)
#define SHORT_LIFE_US (10 * MINUTE_US)
#define LAST_RESORT_US HOUR_US

static int64_t sat_add(int64_t a, int64_t b)
{
	int64_t sum;

	if (__builtin_add_overflow(a, b, &sum))
		return b > 0 ? INT64_MAX : INT64_MIN;
	return sum;
}

static int64_t sat_sub(int64_t a, int64_t b)
{
	int64_t difference;

	if (__builtin_sub_overflow(a, b, &difference))
		return b < 0 ? INT64_MAX : INT64_MIN;
	return difference;
}

static int64_t min_i64(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

static int64_t max_i64(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

/* v * share for v >= 0; a share outside [0, 1] (or not a number) is brought inside. */
static int64_t part_of(int64_t v, double share)
{
	if (v <= 0 || !(share > 0))
		return 0;
	if (share >= 1)
		return v;
	double d = (double)v * share;
	/* (double)INT64_MAX rounds up to 2^63, which does not fit. */
	return d >= 9223372036854775807.0 ? v : (int64_t)d;
}

int64_t policy_expiry(const struct provider *p, const struct policy_life *l)
{
	bool issue_known = l->issued_at > 0;
	int64_t from = issue_known ? l->issued_at : l->now;
	int64_t longest = p->max_expires_in_us > 0 ? p->max_expires_in_us : YEAR_US;
	int64_t life = LAST_RESORT_US;

	/* An exp that lies before the issue is a broken clock, and obeying it would refresh without end. */
	bool jwt_usable = l->jwt_exp > 0 && (!issue_known || l->jwt_exp > from);

	if (l->expires_in_us > 0)
		life = l->expires_in_us;
	else if (p->default_expires_in_us > 0)
		life = p->default_expires_in_us;
	else if (jwt_usable)
		return min_i64(l->jwt_exp, sat_add(from, longest));
	else if (l->last_lifetime_us > 0)
		life = l->last_lifetime_us;
	return sat_add(from, min_i64(life, longest));
}

/* How long before its end a token is replaced, before jitter. */
static int64_t margin_for(const struct policy_margin *m, int64_t life)
{
	if (life < SHORT_LIFE_US)
		return life - life / 2;
	return min_i64(max_i64(m->margin_us, 0), part_of(life, m->fraction));
}

/* The latest moment that keeps the refresh token itself alive; INT64_MAX: no bound. */
static int64_t keep_alive_by(
	const struct provider *p, const struct policy_due *d, int64_t issued_at, int64_t margin)
{
	int64_t by = INT64_MAX;
	int64_t used_at = d->refresh_issued_at > 0 ? d->refresh_issued_at : issued_at;

	if (p->refresh_token_idle_ttl_us > 0)
		by = sat_add(used_at, p->refresh_token_idle_ttl_us / 2);
	/*
	 * A refresh that happened inside the last margin has done all that can be done: where the end is
	 * fixed it would otherwise be due again at once, over and over.
	 */
	int64_t last_chance = sat_sub(d->refresh_expires_at, margin);
	if (d->refresh_expires_at > d->now && last_chance > issued_at)
		by = min_i64(by, last_chance);
	return by;
}

int64_t policy_due_at(
	const struct provider *p, const struct policy_margin *m, const struct policy_due *d, double unit)
{
	if (d->expires_at <= d->now)
		return d->now;

	/* An issue in the future is a clock that was set back. */
	int64_t issued_at = d->issued_at > 0 && d->issued_at <= d->now ? d->issued_at : d->now;
	int64_t life = sat_sub(d->expires_at, issued_at);
	int64_t margin = margin_for(m, life);
	int64_t early = p->access_token_overlap ? margin : margin / 10;

	int64_t due = sat_sub(d->expires_at, sat_add(early, part_of(early / 10, unit)));
	due = min_i64(due, keep_alive_by(p, d, issued_at, margin));
	due = max_i64(due, sat_add(issued_at, part_of(life, p->not_before_fraction)));
	return max_i64(due, d->now);
}

int64_t policy_backoff_us(unsigned n, int64_t base_us, int64_t cap_us, double unit)
{
	int64_t all = max_i64(base_us, 0);

	for (unsigned i = 1; i < n && all > 0 && all < cap_us; i++)
		all = sat_add(all, all);
	all = max_i64(min_i64(all, cap_us), 0);
	int64_t half = all - all / 2;
	return half + part_of(all - half, unit);
}

int64_t policy_retry_us(unsigned failures, int64_t retry_after_us, double unit)
{
	int64_t wait = policy_backoff_us(failures, US_PER_S, 15 * MINUTE_US, unit);

	if (retry_after_us <= 0)
		return wait;
	/* All that were told the same time must not come back in the same moment. */
	return max_i64(wait, sat_add(retry_after_us, part_of(retry_after_us / 10, unit)));
}

int64_t policy_webhook_retry_us(unsigned attempt, int64_t retry_after_us, double unit)
{
	static const int64_t delays[] = {5 * US_PER_S, 5 * MINUTE_US, 30 * MINUTE_US, 2 * HOUR_US,
		5 * HOUR_US, 10 * HOUR_US, 14 * HOUR_US, 20 * HOUR_US, 24 * HOUR_US};
	const unsigned last = sizeof(delays) / sizeof(delays[0]) + 1;

	if (attempt < 2)
		return 0;
	if (attempt > last)
		return -1;
	int64_t delay = delays[attempt - 2];
	int64_t jittered = delay - delay / 5 + part_of(2 * (delay / 5), unit);
	return max_i64(jittered, min_i64(retry_after_us, DAY_US));
}

static const char *skip_blanks(const char *s)
{
	return s + strspn(s, " \t");
}

int64_t policy_retry_after_us(const char *value, int64_t now, int64_t max_us)
{
	if (value == NULL || value[0] == '\0' || max_us <= 0)
		return 0;
	const char *s = skip_blanks(value);
	size_t n = strlen(s);
	while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t'))
		n--;

	uint64_t seconds;
	int rc = str_parse_u64(s, n, &seconds);
	if (rc == 0)
		return seconds > (uint64_t)max_us / (uint64_t)US_PER_S ? max_us : (int64_t)seconds * US_PER_S;
	if (rc == ST_RANGE)
		return max_us;

	int64_t date;
	if (str_parse_http_date(s, n, &date) < 0)
		return 0;
	return min_i64(max_i64(sat_sub(date, now), 0), max_us);
}
