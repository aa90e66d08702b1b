/*
 * fuzz_grant - any reply of a token endpoint: "<status> <content type>\n<body>", read for two providers.
 */
#include "fuzz/fuzz.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/grant.h"

#define START (INT64_C(1795428000) * US_PER_S)

static void check(const struct grant_reply *in, const struct grant_result *out)
{
	bool refreshed = out->outcome == OUTCOME_REFRESHED;

	ALWAYS((unsigned)out->outcome < OUTCOME_COUNT);
	ALWAYS(refreshed == (out->access_token.len > 0));
	ALWAYS(refreshed || out->refresh_token.len == 0);
	ALWAYS(!refreshed || (in->status < 300 && str_is_vschar(out->access_token.data, out->access_token.len)));
	ALWAYS(in->complete || refreshed || out->outcome == OUTCOME_IN_DOUBT);
	if (out->outcome == OUTCOME_GRANT_DEAD)
		ALWAYS(in->status < 300 || in->status == 400 || in->status == 401 || in->status == 403);
	ALWAYS(out->expires_at_us == 0 || out->expires_at_us > in->start_wall_us);
	ALWAYS(out->refresh_expires_at_us == 0 || out->refresh_expires_at_us > in->start_wall_us);
	ALWAYS(out->retry_after_us >= 0 && out->retry_after_us <= 3600 * US_PER_S);
	(void)grant_jwt_exp((const char *)out->access_token.data, out->access_token.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char at_token[] = "/data/token", at_error[] = "/data/code", at_date[] = "/expires_at", at_url[] = "/url";
	static char *token[] = { at_token }, *error[] = { at_error }, *date[] = { at_date }, *url[] = { at_url };
	static char key[] = "acme", name[] = "url";
	static struct named_pointer capture = { .name = name, .pointers = { url, 1 } };
	const struct provider providers[] = { { .key = key },
		{ .key = key, .at_access_token = { token, 1 }, .at_refresh_token = { token, 1 }, .at_error = { error, 1 },
			.at_expires_at = { date, 1 }, .grant_dead_errors = { error, 1 }, .expires_in_unit = UNIT_MS,
			.capture = &capture, .n_capture = 1 } };
	const uint8_t *end = size < 5 ? NULL : memchr(data, '\n', size);
	int64_t status;

	if (end == NULL || end - data < 4 || end - data > 90 || str_parse_i64((const char *)data, 3, &status) != 0)
		return 0;
	char *type = mem_strndup((const char *)data + 4, (size_t)(end - data) - 4);
	struct grant_reply in = { .sent = true, .status = (int)status, .content_type = type,
		.retry_after = type, .body = end + 1, .body_len = size - (size_t)(end + 1 - data), .start_wall_us = START,
		.now_wall_us = START + US_PER_S };
	for (size_t i = 0; i < 4; i++) {
		struct grant_result out;
		in.complete = i < 2;
		grant_classify(&providers[i % 2], &in, &out);
		check(&in, &out);
		grant_result_fini(&out);
	}
	mem_free(type);
	return 0;
}
