/*
 * grant_value - numbers, spans and moments in the many shapes that token endpoints write them.
 *
 * One place for "what is this number", because a wrong reading is a token that is refreshed never or always.
 * What cannot be read, or makes no sense, is unknown (0): policy has a better guess than we have.
 */
#include "model/grant_value.h"

#include <string.h>

#include "base/str.h"
#include "base/sys.h"

/* A lifetime beyond this is no lifetime. */
#define LIFE_MAX_S 3155760000.0
/* Below: seconds since 1970 (until the year 5138); above: milliseconds. */
#define SECONDS_MAX 1e11
#define MILLIS_MAX 1e14

bool grant_value_number(struct json_object *o, double *out)
{
	switch (json_object_get_type(o)) {
	case json_type_int:
		*out = (double)json_object_get_int64(o);
		return true;
	case json_type_double:
		*out = json_object_get_double(o);
		return true;
	case json_type_string:
		return str_parse_decimal(
			       json_object_get_string(o), (size_t)json_object_get_string_len(o), out) == 0;
	default:
		return false;
	}
}

int64_t grant_value_span_us(struct json_object *o, enum time_unit unit)
{
	double v;

	if (!grant_value_number(o, &v))
		return 0;
	double seconds = unit == UNIT_MS ? v / 1000 : v;
	return seconds > 0 && seconds <= LIFE_MAX_S ? (int64_t)(seconds * (double)US_PER_S) : 0;
}

/* ISO 8601 is wider than RFC 3339: an offset may lack its colon, or be missing altogether, which is read as
 * UTC. */
static int parse_iso(const char *s, size_t n, int64_t *out)
{
	char text[48];

	if (str_parse_rfc3339(s, n, out) == 0)
		return 0;
	if (n < 10 || n + 2 > sizeof(text))
		return ST_SYNTAX;
	memcpy(text, s, n);
	text[n] = 'Z';
	if (str_parse_rfc3339(text, n + 1, out) == 0)
		return 0;
	memcpy(text + n - 2, ":", 1);
	memcpy(text + n - 1, s + n - 2, 2);
	return str_parse_rfc3339(text, n + 1, out);
}

int64_t grant_value_moment_us(struct json_object *o, int64_t after)
{
	int64_t t = 0;
	double v;

	if (grant_value_number(o, &v)) {
		if (v > 0 && v < SECONDS_MAX)
			t = (int64_t)(v * (double)US_PER_S);
		else if (v >= SECONDS_MAX && v < MILLIS_MAX)
			t = (int64_t)(v * (double)US_PER_MS);
	} else if (json_object_is_type(o, json_type_string)) {
		if (parse_iso(json_object_get_string(o), (size_t)json_object_get_string_len(o), &t) < 0)
			t = 0;
	}
	return t > after ? t : 0;
}
