/*
 * fuzz_time - Retry-After, dates and durations: nothing out of bounds, and what is written again is read as the same.
 */
#include "fuzz/fuzz.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/policy.h"

#define NOW (INT64_C(1795428000) * US_PER_S)
#define END (INT64_C(253402300800) * US_PER_S) /* the year 10000 */

static void check_date(int (*parse)(const char *s, size_t n, int64_t *wall_us), const char *s, size_t n)
{
	int64_t t = -1, again;
	char text[STR_ISO_BYTES];

	if (parse(s, n, &t) != 0) {
		ALWAYS(t == -1);
		return;
	}
	ALWAYS(t >= 0 && t < END);
	str_format_iso_ms(t, text);
	ALWAYS(str_parse_rfc3339(text, strlen(text), &again) == 0 && again == t - t % US_PER_MS);
}

static void check_duration(const char *s, size_t n)
{
	int64_t us, again;
	char text[32];

	if (str_parse_duration_us(s, n, &us) != 0)
		return;
	ALWAYS(us >= 0);
	str_format_duration(us, text);
	ALWAYS(str_parse_duration_us(text, strlen(text), &again) == 0 && again == us);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *s = (const char *)data;
	char *text = mem_strndup(s, size);
	double rate;

	int64_t wait = policy_retry_after_us(text, NOW, 3600 * US_PER_S);
	ALWAYS(wait >= 0 && wait <= 3600 * US_PER_S);
	ALWAYS(policy_retry_us(3, wait, 1) >= wait);
	check_date(str_parse_rfc3339, s, size);
	check_date(str_parse_http_date, s, size);
	check_duration(s, size);
	ALWAYS(str_parse_rate(s, size, &rate) != 0 || rate >= 0);
	mem_free(text);
	return 0;
}
