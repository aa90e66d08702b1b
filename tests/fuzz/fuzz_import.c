/*
 * fuzz_import - a line of an import and the body of a request, parsed, checked, planned and masked.
 */
#include "fuzz/fuzz.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/import.h"

#define NOW (INT64_C(1795428000) * US_PER_S)

static void check_parsed(const struct import *i, const struct provider *p)
{
	const struct policy_margin margin = { .margin_us = 300 * US_PER_S, .fraction = 0.2 };
	struct import_problems problems = { .n = 0 };
	struct import_times t;
	struct buf shown = BUF_INIT(IMPORT_SETTINGS_MAX * 8);

	ALWAYS(i->access_token.len == 0 || str_is_vschar(i->access_token.data, i->access_token.len));
	ALWAYS(i->refresh_token.len == 0 || str_is_vschar(i->refresh_token.data, i->refresh_token.len));
	ALWAYS((import_check(i, p, &problems) == 0) == (problems.n == 0));
	import_plan(i, p, &margin, NOW, 0.5, &t);
	ALWAYS(t.due_at >= NOW && t.due_now == (t.due_at <= NOW));
	if (i->has_settings)
		ALWAYS(import_mask_settings(buf_str(&i->settings), i->settings.len, p, &shown) == 0 && shown.len > 0);
	buf_fini(&shown);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char key[] = "acme", api[] = "crm", setting[] = "api_key";
	static char *apis[] = { api }, *settings[] = { setting };
	const struct provider providers[] = { { .key = key, .auth_type = AUTH_OAUTH2, .refresh_token_ttl_us = 3650 * 86400 * US_PER_S },
		{ .key = key, .auth_type = AUTH_API_KEY, .unified_apis = { apis, 1 }, .required_settings = { settings, 1 } },
		{ .key = key, .auth_type = AUTH_CUSTOM, .sensitive_settings = { settings, 1 } } };

	for (int with_key = 0; with_key < 2; with_key++) {
		struct import_problems problems = { .n = 0 };
		struct buf text = BUF_INIT(8192);
		struct import i;
		import_init(&i);
		int rc = import_parse((const char *)data, size, with_key != 0, &i, &problems);
		ALWAYS((rc == 0) == (problems.n == 0));
		ALWAYS(import_problems_text(&problems, &text) == 0 && str_is_utf8(buf_str(&text), text.len));
		for (size_t k = 0; rc == 0 && with_key != 0 && k < 3; k++)
			check_parsed(&i, &providers[k]);
		import_fini(&i);
		buf_fini(&text);
	}
	return 0;
}
