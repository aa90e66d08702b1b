/*
 * str_time - durations and wall-clock times as text.
 *
 * Own calendar arithmetic instead of strptime and timegm: those depend on the locale and the zone,
 * and accept far more than the two RFCs allow. Pure: whoever needs "now" passes it in.
 */
#include "base/str.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SECOND_US INT64_C(1000000)
#define DAY_S INT64_C(86400)

static const struct {
	const char *unit;
	int64_t us;
} units[] = {
	/* Largest first: the first that divides a value gives its shortest text. */
	{"d", 86400 * SECOND_US},
	{"h", 3600 * SECOND_US},
	{"m", 60 * SECOND_US},
	{"s", SECOND_US},
	{"ms", 1000},
	{"us", 1},
};

#define N_UNITS (sizeof(units) / sizeof(units[0]))

static size_t count_digits(const char *s, size_t n)
{
	size_t i = 0;

	while (i < n && s[i] >= '0' && s[i] <= '9')
		i++;
	return i;
}

int str_parse_duration_us(const char *s, size_t n, int64_t *out)
{
	size_t digits = count_digits(s, n), u = 0;
	size_t unit_len = n - digits;
	int64_t v;

	if (n == 1 && s[0] == '0') {
		*out = 0;
		return 0;
	}
	while (u < N_UNITS &&
		(strlen(units[u].unit) != unit_len || memcmp(units[u].unit, s + digits, unit_len) != 0))
		u++;
	if (u == N_UNITS)
		return ST_SYNTAX;
	int rc = str_parse_i64(s, digits, &v);
	if (rc < 0)
		return rc;
	if (__builtin_mul_overflow(v, units[u].us, &v))
		return ST_RANGE;
	*out = v;
	return 0;
}

void str_format_duration(int64_t us, char out[32])
{
	size_t u = 0;

	if (us == 0) {
		memcpy(out, "0", 2);
		return;
	}
	while (us % units[u].us != 0)
		u++;
	snprintf(out, 32, "%" PRId64 "%s", us / units[u].us, units[u].unit);
}

/* --- the calendar: proleptic Gregorian, days counted from 1970-01-01 */

struct civil {
	int64_t year;
	int month, day; /* from 1 */
	int hour, minute, second;
	int64_t us;
	int64_t offset_s; /* east of UTC */
};

static bool is_leap_year(int64_t year)
{
	return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

static int days_in_month(int64_t year, int month)
{
	static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

	return month == 2 && is_leap_year(year) ? 29 : days[month - 1];
}

static int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b < 0 ? 1 : 0);
}

/* Years are counted from March, so that the leap day is the last of a year. */
static int64_t days_from_civil(int64_t year, int month, int day)
{
	int64_t y = month > 2 ? year : year - 1;
	int64_t day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;

	return y * 365 + floor_div(y, 4) - floor_div(y, 100) + floor_div(y, 400) + day_of_year - 719468;
}

static void civil_from_days(int64_t days, struct civil *c)
{
	int64_t z = days + 719468;
	int64_t era = floor_div(z, 146097);
	int64_t doe = z - era * 146097;
	int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	int64_t mp = (5 * doy + 2) / 153;

	c->day = (int)(doy - (153 * mp + 2) / 5 + 1);
	c->month = (int)(mp < 10 ? mp + 3 : mp - 9);
	c->year = yoe + era * 400 + (c->month <= 2 ? 1 : 0);
}

/* Check every field and turn it into a wall-clock time within 1970..9999. */
static int wall_from_civil(const struct civil *c, int64_t *wall_us)
{
	bool leap = c->second == 60;

	if (c->month < 1 || c->month > 12 || c->day < 1 || c->day > days_in_month(c->year, c->month))
		return ST_RANGE;
	if (c->hour > 23 || c->minute > 59 || c->second > 60)
		return ST_RANGE;
	int64_t minutes = days_from_civil(c->year, c->month, c->day) * 1440 + c->hour * 60 + c->minute -
			  c->offset_s / 60;
	if (leap && floor_div(minutes, 1440) * 1440 + 1439 != minutes)
		return ST_RANGE;
	int64_t us = leap ? minutes * 60 * SECOND_US + 60 * SECOND_US - 1
			  : (minutes * 60 + c->second) * SECOND_US + c->us;
	if (us < 0 || us >= days_from_civil(10000, 1, 1) * DAY_S * SECOND_US)
		return ST_RANGE;
	*wall_us = us;
	return 0;
}

/* --- a text and how far it is read; the first mismatch sticks */

struct cursor {
	const char *s;
	size_t left;
	bool bad;
};

static int take_digits(struct cursor *c, size_t n)
{
	int v = 0;

	if (c->bad || c->left < n || count_digits(c->s, n) != n) {
		c->bad = true;
		return 0;
	}
	for (size_t i = 0; i < n; i++)
		v = v * 10 + (c->s[i] - '0');
	c->s += n;
	c->left -= n;
	return v;
}

static bool next_is(const struct cursor *c, char want)
{
	return !c->bad && c->left > 0 && c->s[0] == want;
}

static void take_text(struct cursor *c, const char *want)
{
	size_t n = strlen(want);

	if (c->bad || c->left < n || memcmp(c->s, want, n) != 0) {
		c->bad = true;
		return;
	}
	c->s += n;
	c->left -= n;
}

/* One of two spellings of a letter. */
static void take_letter(struct cursor *c, char upper_case, char lower_case)
{
	const char text[2] = {next_is(c, lower_case) ? lower_case : upper_case, '\0'};

	take_text(c, text);
}

/* The index of the name that stands here, or -1. */
static int take_name(struct cursor *c, const char *const names[], int count)
{
	for (int i = 0; i < count; i++) {
		size_t n = strlen(names[i]);
		if (c->bad || c->left < n || memcmp(c->s, names[i], n) != 0)
			continue;
		c->s += n;
		c->left -= n;
		return i;
	}
	c->bad = true;
	return -1;
}

static void take_time(struct cursor *c, struct civil *t)
{
	t->hour = take_digits(c, 2);
	take_text(c, ":");
	t->minute = take_digits(c, 2);
	take_text(c, ":");
	t->second = take_digits(c, 2);
}

static void take_fraction(struct cursor *c, struct civil *t)
{
	int64_t unit = SECOND_US;

	if (!next_is(c, '.'))
		return;
	take_text(c, ".");
	do {
		unit /= 10;
		t->us += take_digits(c, 1) * unit;
	} while (!c->bad && c->left > 0 && count_digits(c->s, 1) == 1);
}

/* Returns ST_RANGE for an offset no clock can have. */
static int take_offset(struct cursor *c, struct civil *t)
{
	if (next_is(c, 'Z') || next_is(c, 'z')) {
		take_letter(c, 'Z', 'z');
		return 0;
	}
	bool west = next_is(c, '-');
	take_letter(c, '+', '-');
	int hours = take_digits(c, 2);
	take_text(c, ":");
	int minutes = take_digits(c, 2);
	t->offset_s = (west ? -1 : 1) * (hours * INT64_C(3600) + minutes * 60);
	return hours > 23 || minutes > 59 ? ST_RANGE : 0;
}

int str_parse_rfc3339(const char *s, size_t n, int64_t *wall_us)
{
	struct cursor c = {.s = s, .left = n, .bad = false};
	struct civil t = {.us = 0};

	t.year = take_digits(&c, 4);
	take_text(&c, "-");
	t.month = take_digits(&c, 2);
	take_text(&c, "-");
	t.day = take_digits(&c, 2);
	take_letter(&c, 'T', 't');
	take_time(&c, &t);
	take_fraction(&c, &t);
	int rc = take_offset(&c, &t);
	if (c.bad || c.left > 0)
		return ST_SYNTAX;
	return rc < 0 ? rc : wall_from_civil(&t, wall_us);
}

static void put_digits(char **o, int64_t v, int width)
{
	for (int i = width - 1; i >= 0; i--) {
		(*o)[i] = (char)('0' + v % 10);
		v /= 10;
	}
	*o += width;
}

void str_format_iso_ms(int64_t wall_us, char out[STR_ISO_BYTES])
{
	int64_t ms = floor_div(wall_us, 1000);
	int64_t days = floor_div(ms, DAY_S * 1000);
	int64_t rest = ms - days * DAY_S * 1000;
	struct civil t;

	civil_from_days(days, &t);
	bool plain_year = t.year >= 0 && t.year <= 9999;
	if (!plain_year)
		*out++ = t.year < 0 ? '-' : '+';
	put_digits(&out, t.year < 0 ? -t.year : t.year, plain_year ? 4 : 6);
	*out++ = '-';
	put_digits(&out, t.month, 2);
	*out++ = '-';
	put_digits(&out, t.day, 2);
	*out++ = 'T';
	put_digits(&out, rest / 3600000, 2);
	*out++ = ':';
	put_digits(&out, rest / 60000 % 60, 2);
	*out++ = ':';
	put_digits(&out, rest / 1000 % 60, 2);
	*out++ = '.';
	put_digits(&out, rest % 1000, 3);
	*out++ = 'Z';
	*out = '\0';
}

/* --- HTTP dates, RFC 9110 5.6.7 */

static const char *const month_names[] = {
	"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
static const char *const day_names[] = {"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"};
static const char *const long_day_names[] = {
	"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"};

static int take_month(struct cursor *c)
{
	return take_name(c, month_names, 12) + 1;
}

/* Behind the name of the day: "Sun, 06 Nov 1994 08:49:37 GMT". */
static void take_imf(struct cursor *c, struct civil *t)
{
	take_text(c, ", ");
	t->day = take_digits(c, 2);
	take_text(c, " ");
	t->month = take_month(c);
	take_text(c, " ");
	t->year = take_digits(c, 4);
	take_text(c, " ");
	take_time(c, t);
	take_text(c, " GMT");
}

/* "Sunday, 06-Nov-94 08:49:37 GMT" */
static void take_rfc850(struct cursor *c, struct civil *t)
{
	take_text(c, ", ");
	t->day = take_digits(c, 2);
	take_text(c, "-");
	t->month = take_month(c);
	take_text(c, "-");
	t->year = take_digits(c, 2);
	t->year += t->year < 70 ? 2000 : 1900;
	take_text(c, " ");
	take_time(c, t);
	take_text(c, " GMT");
}

/* "Sun Nov  6 08:49:37 1994" */
static void take_asctime(struct cursor *c, struct civil *t)
{
	take_text(c, " ");
	t->month = take_month(c);
	take_text(c, " ");
	if (next_is(c, ' ')) {
		take_text(c, " ");
		t->day = take_digits(c, 1);
	} else {
		t->day = take_digits(c, 2);
	}
	take_text(c, " ");
	take_time(c, t);
	take_text(c, " ");
	t->year = take_digits(c, 4);
}

int str_parse_http_date(const char *s, size_t n, int64_t *wall_us)
{
	struct cursor c = {.s = s, .left = n, .bad = false};
	struct civil t = {.us = 0};
	int64_t us;

	int weekday = take_name(&c, long_day_names, 7);
	if (weekday >= 0) {
		take_rfc850(&c, &t);
	} else {
		c.bad = false;
		weekday = take_name(&c, day_names, 7);
		if (next_is(&c, ','))
			take_imf(&c, &t);
		else
			take_asctime(&c, &t);
	}
	if (c.bad || c.left > 0)
		return ST_SYNTAX;
	int rc = wall_from_civil(&t, &us);
	if (rc < 0)
		return rc;
	/* 1970-01-01 was a Thursday. */
	if ((us / (DAY_S * SECOND_US) + 3) % 7 != weekday)
		return ST_SYNTAX;
	*wall_us = us;
	return 0;
}
