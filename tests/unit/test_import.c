/*
 * import - one connection from outside: everything wrong is named at once, nothing is quoted, and when it is due.
 */
#include "unit/unit.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/grant_parse.h"
#include "model/import.h"

#define NOW SYS_VIRTUAL_WALL_US
#define KEY "\"application_id\":\"app1\",\"consumer_id\":\"c1\",\"unified_api\":\"accounting\",\"service_id\":\"xero\""
#define TOKENS "\"credentials\":{\"access_token\":\"at-1\",\"refresh_token\":\"rt-1\",\"issued_at\":\"2026-01-01T00:00:00Z\",\"expires_in\":1800}"

static struct import im;
static struct import_problems problems;
static struct provider xero, keyed;
static char *apis[] = { (char *)(uintptr_t)"accounting", (char *)(uintptr_t)"crm" };
static char *secrets[] = { (char *)(uintptr_t)"api_key" };
static const struct policy_margin margin = { .margin_us = 300 * US_PER_S, .fraction = 0.2 };

static void setup(void)
{
	import_init(&im);
	problems = (struct import_problems){ .n = 0 };
	xero = (struct provider){ .key = (char *)(uintptr_t)"xero", .auth_type = AUTH_OAUTH2, .unified_apis = { apis, 2 },
		.access_token_overlap = true, .sensitive_settings = { secrets, 1 } };
	keyed = (struct provider){ .key = (char *)(uintptr_t)"keyed", .auth_type = AUTH_API_KEY, .required_settings = { secrets, 1 } };
}

static void teardown(void)
{
	import_fini(&im);
}

static int parse(const char *line)
{
	import_fini(&im);
	problems.n = 0;
	problems.more = false;
	return import_parse(line, strlen(line), true, &im, &problems);
}

static bool named(const char *field)
{
	for (size_t i = 0; i < problems.n; i++)
		if (strcmp(problems.v[i].field, field) == 0)
			return true;
	return false;
}

static bool quotes(const char *text)
{
	struct buf all = BUF_INIT(16384);
	ck_ok(import_problems_text(&problems, &all));
	bool found = strstr(buf_str(&all), text) != NULL;
	buf_fini(&all);
	return found;
}

START_TEST(a_whole_line_is_read)
{
	ck_ok(parse("{" KEY "," TOKENS ",\"settings\":{\"url\":\"https://a/b\"},\"metadata\":{\"n\":1},\"more\":[1,2]}"));
	ck_assert_str_eq(im.application_id, "app1");
	ck_assert_str_eq(im.service_id, "xero");
	ck_assert_str_eq(buf_str(&im.access_token), "at-1");
	ck_assert_str_eq(buf_str(&im.refresh_token), "rt-1");
	ck_assert_int_eq(im.issued_at, NOW);
	ck_assert_int_eq(im.expires_in_us, 1800 * US_PER_S);
	ck_assert_str_eq(buf_str(&im.settings), "{\"url\":\"https://a/b\"}");
	ck_assert_str_eq(buf_str(&im.metadata), "{\"n\":1}");
	ck_ok(import_check(&im, &xero, &problems));
}
END_TEST

START_TEST(nulls_count_as_not_given)
{
	ck_ok(parse("{" KEY ",\"credentials\":{\"access_token\":\"a\",\"refresh_token\":null,\"issued_at\":null,\"expires_in\":null},"
		    "\"settings\":null,\"metadata\":null}"));
	ck_assert_uint_eq(im.refresh_token.len, 0);
	ck_assert_int_eq(im.issued_at, 0);
	ck_assert_int_eq(im.expires_in_us, -1);
	ck_assert(!im.has_settings && !im.has_metadata);
	ck_ok(import_check(&im, &xero, &problems));
}
END_TEST

START_TEST(a_body_needs_no_key)
{
	const char *body = "{\"consumer_id\":7," TOKENS "}";
	ck_ok(import_parse(body, strlen(body), false, &im, &problems));
	ck_assert_ptr_null(im.application_id);
	ck_assert_str_eq(buf_str(&im.access_token), "at-1");
}
END_TEST

START_TEST(every_mistake_is_named_at_once)
{
	ck_assert_int_eq(parse("{\"application_id\":1,\"unified_api\":\"accounting\",\"service_id\":\"xero\",\"settings\":[],\"metadata\":\"x\","
			       "\"credentials\":{\"access_token\":5,\"refresh_token\":\"\",\"issued_at\":\"yesterday\",\"expires_in\":\"1800\",\"scope\":\"x\"}}"),
		ST_INVALID);
	ck_assert(named("application_id") && named("consumer_id") && named("settings") && named("metadata"));
	ck_assert(named("credentials.access_token") && named("credentials.refresh_token"));
	ck_assert(named("credentials.issued_at") && named("credentials.expires_in") && named("credentials.scope"));
	ck_assert_uint_eq(problems.n, 9);
}
END_TEST

START_TEST(no_value_comes_back_in_a_message)
{
	static const char *const lines[] = {
		"{" KEY ",\"credentials\":{\"access_token\":\"sEcReT\\t1\"}}",
		"{" KEY ",\"credentials\":{\"access_token\":\"a\",\"sEcReT0123456789012345678901234567890\":1}}",
		"{" KEY ",\"credentials\":{\"access_token\":\"a\",\"sEcReT 1\":1}}",
		"{" KEY ",\"credentials\":\"sEcReT\"}",
		"{" KEY ",\"credentials\":{\"access_token\":\"a\",\"issued_at\":\"sEcReT\",\"expires_in\":\"sEcReT\"}}",
		"{" KEY ",\"settings\":\"sEcReT\"}",
		"{" KEY ",\"credentials\":{\"access_token\":\"sEcReT",
	};
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		ck_assert_int_lt(parse(lines[i]), 0);
		ck_assert_uint_ge(problems.n, 1);
		ck_assert_msg(!quotes("sEcReT"), "line %zu", i);
	}
}
END_TEST

START_TEST(what_is_no_json_object_is_refused)
{
	static const char *const lines[] = { "", "[]", "null", "{", "{} {}", "{" KEY "," KEY "}", "{'a':1}", "{\"a\":\"\\u0000\"}", "{\"a\":\"\xff\"}" };
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		ck_assert_int_eq(parse(lines[i]), ST_SYNTAX);
		ck_assert_uint_eq(problems.n, 1);
	}
	char *big = mem_alloc(IMPORT_LINE_MAX + 2);
	memset(big, ' ', IMPORT_LINE_MAX + 1);
	ck_assert_int_eq(parse(big), ST_SYNTAX);
	mem_free(big);
}
END_TEST

START_TEST(problems_beyond_the_room_are_counted_as_more)
{
	struct buf line = BUF_INIT(4096);
	ck_ok(buf_puts(&line, "{" KEY ",\"credentials\":{"));
	for (int i = 0; i < IMPORT_PROBLEMS_MAX + 4; i++)
		ck_ok(buf_printf(&line, "%s\"x%c\":1", i == 0 ? "" : ",", 'a' + i));
	ck_ok(buf_puts(&line, "}}"));
	ck_assert_int_eq(parse(buf_str(&line)), ST_INVALID);
	ck_assert_uint_eq(problems.n, IMPORT_PROBLEMS_MAX);
	ck_assert(problems.more && quotes("and more"));
	buf_fini(&line);
}
END_TEST

START_TEST(the_service_decides_what_is_needed)
{
	ck_ok(parse("{" KEY "}"));
	ck_assert_int_eq(import_check(&im, &xero, &problems), ST_INVALID);
	ck_assert(named("credentials.access_token"));
	problems.n = 0;
	ck_assert_int_eq(import_check(&im, &keyed, &problems), ST_INVALID);
	ck_assert(named("settings.api_key"));
	problems.n = 0;
	ck_assert_int_eq(import_check(&im, NULL, &problems), ST_INVALID);
	ck_assert(named("service_id") && quotes("xero"));
	xero.unified_apis.v = apis + 1;
	xero.unified_apis.n = 1;
	problems.n = 0;
	ck_assert_int_eq(import_check(&im, &xero, &problems), ST_INVALID);
	ck_assert(named("unified_api") && named("credentials.access_token"));
	ck_ok(parse("{" KEY "," TOKENS ",\"settings\":{\"api_key\":\"\"}}"));
	ck_assert_int_eq(import_check(&im, &keyed, &problems), ST_INVALID);
	ck_assert(named("settings.api_key") && named("credentials"));
	ck_ok(parse("{" KEY ",\"settings\":{\"api_key\":\"k\"}}"));
	ck_ok(import_check(&im, &keyed, &problems));
}
END_TEST

START_TEST(a_grant_of_its_own_needs_no_tokens)
{
	struct import_times t;
	ck_ok(parse("{" KEY "}"));
	ck_assert_int_eq(import_event(&im, &keyed), CE_IMPORTED);
	for (int g = GRANT_CLIENT; g <= GRANT_PASSWORD; g++) {
		xero.grant = (enum grant)g;
		ck_ok(parse("{" KEY "}"));
		ck_ok(import_check(&im, &xero, &problems));
		ck_assert_int_eq(import_event(&im, &xero), CE_ADDED);
		import_plan(&im, &xero, &margin, NOW, 0.0, &t);
		ck_assert(t.due_now && t.due_at == NOW);
		ck_assert_int_eq(t.expires_at, 0);
		ck_assert_int_eq(t.refresh_issued_at, 0);
		/* With a token that lives it is renewed before its end, without a refresh token, too. */
		ck_ok(parse("{" KEY ",\"credentials\":{\"access_token\":\"a\",\"issued_at\":\"2026-01-01T00:00:00Z\",\"expires_in\":3600}}"));
		ck_ok(import_check(&im, &xero, &problems));
		ck_assert_int_eq(import_event(&im, &xero), CE_IMPORTED);
		import_plan(&im, &xero, &margin, NOW, 0.0, &t);
		ck_assert_int_eq(t.due_at, NOW + 3300 * US_PER_S);
		ck_assert_int_eq(t.refresh_issued_at, 0);
		ck_ok(parse("{" KEY "," TOKENS "}"));
		ck_assert_int_eq(import_check(&im, &xero, &problems), g == GRANT_CLIENT ? ST_INVALID : 0);
		ck_assert(g != GRANT_CLIENT || named("credentials.refresh_token"));
	}
}
END_TEST

static struct import_times plan(const char *credentials)
{
	struct import_times t;
	char *line = mem_printf("{" KEY ",\"credentials\":{\"access_token\":\"a\"%s}}", credentials);
	ck_ok(parse(line));
	mem_free(line);
	import_plan(&im, &xero, &margin, NOW, 0.0, &t);
	return t;
}

START_TEST(what_is_known_is_planned)
{
	struct import_times t = plan(",\"refresh_token\":\"r\",\"issued_at\":\"2026-01-01T00:00:00Z\",\"expires_in\":3600");
	ck_assert_int_eq(t.expires_at, NOW + 3600 * US_PER_S);
	ck_assert_int_eq(t.due_at, NOW + 3300 * US_PER_S);
	ck_assert(!t.due_now);
	ck_assert_int_eq(t.refresh_issued_at, NOW);
	ck_assert_int_eq(t.refresh_expires_at, 0);
}
END_TEST

START_TEST(missing_or_past_times_are_due_now)
{
	static const char *const credentials[] = {
		",\"refresh_token\":\"r\"",
		",\"refresh_token\":\"r\",\"issued_at\":\"2026-01-01T00:00:00Z\"",
		",\"refresh_token\":\"r\",\"issued_at\":\"2026-01-01T00:00:00Z\",\"expires_in\":null",
		",\"refresh_token\":\"r\",\"expires_in\":3600",
		",\"refresh_token\":\"r\",\"issued_at\":\"2025-12-31T00:00:00Z\",\"expires_in\":3600",
		",\"refresh_token\":\"r\",\"issued_at\":\"2026-01-01T00:00:00Z\",\"expires_in\":0",
	};
	for (size_t i = 0; i < sizeof(credentials) / sizeof(credentials[0]); i++) {
		struct import_times t = plan(credentials[i]);
		ck_assert_msg(t.due_now && t.due_at == NOW, "%s", credentials[i]);
	}
}
END_TEST

START_TEST(without_a_refresh_token_it_is_due_at_its_end)
{
	struct import_times t = plan(",\"issued_at\":\"2026-01-01T00:00:00Z\",\"expires_in\":3600");
	ck_assert_int_eq(t.due_at, NOW + 3600 * US_PER_S);
	t = plan(",\"issued_at\":\"2025-12-01T00:00:00Z\",\"expires_in\":3600");
	ck_assert_int_eq(t.due_at, NOW);
}
END_TEST

START_TEST(what_is_not_oauth_is_never_due)
{
	struct import_times t;
	ck_ok(parse("{" KEY ",\"settings\":{\"api_key\":\"k\"}}"));
	import_plan(&im, &keyed, &margin, NOW, 0.0, &t);
	ck_assert_int_eq(t.due_at, INT64_MAX);
	ck_assert_int_eq(t.expires_at, 0);
	ck_assert(!t.due_now);
}
END_TEST

START_TEST(required_settings_are_the_imports_or_stay)
{
	char shop[] = "shop", *names[] = { shop };
	ck_ok(parse("{" KEY "," TOKENS "}"));
	ck_assert(!import_lacks_settings(&im, &xero, NULL)); /* it requires none */
	struct provider p = xero;
	p.required_settings = (struct strlist){ .v = names, .n = 1 };
	ck_ok(import_check(&im, &p, &problems));
	ck_assert(import_lacks_settings(&im, &p, NULL));
	ck_assert(import_lacks_settings(&im, &p, "{}"));
	ck_assert(!import_lacks_settings(&im, &p, "{\"shop\":\"********\"}"));
	ck_ok(parse("{" KEY "," TOKENS ",\"settings\":{\"shop\":\"\"}}"));
	ck_assert(import_lacks_settings(&im, &p, "{\"shop\":\"s\"}"));
	ck_ok(parse("{" KEY "," TOKENS ",\"settings\":{\"shop\":\"s\"}}"));
	ck_assert(!import_lacks_settings(&im, &p, NULL));
	ck_assert(!import_lacks_settings(&im, &keyed, NULL)); /* not of oauth2: import_check refuses it */
}
END_TEST

START_TEST(odd_numbers_are_judged)
{
	static const char *const bad[] = { "-1", "1.5", "10000000001", "1e300", "true" };
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char *line = mem_printf("{" KEY ",\"credentials\":{\"access_token\":\"a\",\"expires_in\":%s}}", bad[i]);
		ck_assert_int_eq(parse(line), ST_INVALID);
		ck_assert(named("credentials.expires_in"));
		mem_free(line);
	}
	ck_ok(parse("{" KEY ",\"credentials\":{\"access_token\":\"a\",\"expires_in\":3600.0}}"));
	ck_assert_int_eq(im.expires_in_us, 3600 * US_PER_S);
}
END_TEST

START_TEST(secret_settings_are_masked)
{
	static const char text[] = "{\"url\":\"https://a\",\"api_key\":\"sEcReT\",\"n\":null}", empty[] = "{\"api_key\":\"\"}";
	struct buf out = BUF_INIT(4096);
	ck_ok(import_mask_settings(text, strlen(text), &xero, &out));
	ck_assert_str_eq(buf_str(&out), "{\"url\":\"https://a\",\"api_key\":\"********\",\"n\":null}");
	ck_ok(import_mask_settings(text, strlen(text), &keyed, &out));
	ck_assert_str_eq(buf_str(&out), "{\"url\":\"********\",\"api_key\":\"********\",\"n\":null}");
	/* What is missing is seen as well behind the mask. */
	ck_ok(import_mask_settings(empty, strlen(empty), &keyed, &out));
	ck_assert_str_eq(buf_str(&out), empty);
	ck_assert_int_eq(import_mask_settings("[]", 2, &xero, &out), ST_SYNTAX);
	buf_fini(&out);
}
END_TEST

START_TEST(json_is_written_as_it_came)
{
	static const char *const same[] = { "{}", "{\"a\":[],\"b\":{},\"c\":[null,true,false,0,-1,1.50,1e22,-2.5E-7]}",
		"{\"big\":18446744073709551614,\"small\":-9223372036854775807}", "{\"s\":\"\\\"\\\\/\\n\\u0001\xc3\xa9\"}",
		"{\"e\":1e-300}" };
	static const char *const lossy[] = { "{\"a\":18446744073709551616}", "{\"a\":[-9223372036854775809]}", "{\"a\":1e-1001}",
		"{\"a\":1e-99999999999999999999}", "{\"a\":{\"b\":123456789012345678901234567890}}" };
	for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
		struct buf out = BUF_INIT_SECRET(1000);
		struct json_object *o = grant_parse_json(same[i], strlen(same[i]));
		ck_assert_ptr_nonnull(o);
		ck_ok(import_write_json(o, &out));
		ck_assert_str_eq(buf_str(&out), same[i]);
		grant_parse_free(o);
		buf_fini(&out);
	}
	for (size_t i = 0; i < sizeof(lossy) / sizeof(lossy[0]); i++) {
		struct buf out = BUF_INIT(1000);
		struct json_object *o = grant_parse_json(lossy[i], strlen(lossy[i]));
		ck_assert_ptr_nonnull(o);
		ck_assert_int_eq(import_write_json(o, &out), ST_RANGE);
		ck_assert_uint_eq(out.len, 0);
		grant_parse_free(o);
		buf_fini(&out);
	}
	/* Short as text, long where it is kept. */
	static const char grows[] = "{\"a\":[1e300,1e300,1e300,1e-300]}";
	struct json_object *o = grant_parse_json(grows, strlen(grows));
	for (size_t max = 20; max < 2000; max++) {
		struct buf out = BUF_INIT(max);
		ck_assert_int_eq(import_write_json(o, &out), max < strlen(grows) + 1200 ? ST_FULL : 0);
		buf_fini(&out);
	}
	grant_parse_free(o);
}
END_TEST

START_TEST(settings_are_complete)
{
	static const struct {
		enum auth_type type;
		const char *required, *settings;
		bool complete;
	} cases[] = {
		{ AUTH_OAUTH2, NULL, NULL, true }, { AUTH_NONE, NULL, NULL, true }, { AUTH_CUSTOM, NULL, NULL, true },
		{ AUTH_API_KEY, NULL, NULL, false }, { AUTH_BASIC, NULL, "{}", false }, { AUTH_BASIC, NULL, "{\"u\":1}", true },
		{ AUTH_API_KEY, "k", NULL, false }, { AUTH_API_KEY, "k", "{\"u\":1}", false }, { AUTH_OAUTH2, "k", "{\"k\":null}", false },
		{ AUTH_OAUTH2, "k", "{\"k\":\"\"}", false }, { AUTH_OAUTH2, "k", "{\"k\":\"x\"}", true }, { AUTH_CUSTOM, "k", "{\"k\":0}", true },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *names[] = { (char *)(uintptr_t)cases[i].required };
		struct provider p = { .auth_type = cases[i].type, .required_settings = { names, cases[i].required != NULL } };
		struct json_object *o = cases[i].settings != NULL ? grant_parse_json(cases[i].settings, strlen(cases[i].settings)) : NULL;
		ck_assert_msg(import_settings_complete(o, &p) == cases[i].complete, "case %zu", i);
		grant_parse_free(o);
	}
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("import");
	TCase *t = tcase_create("import");
	tcase_add_checked_fixture(t, setup, teardown);
	unit_add(t, a_whole_line_is_read);
	unit_add(t, nulls_count_as_not_given);
	unit_add(t, a_body_needs_no_key);
	unit_add(t, every_mistake_is_named_at_once);
	unit_add(t, no_value_comes_back_in_a_message);
	unit_add(t, what_is_no_json_object_is_refused);
	unit_add(t, problems_beyond_the_room_are_counted_as_more);
	unit_add(t, the_service_decides_what_is_needed);
	unit_add(t, a_grant_of_its_own_needs_no_tokens);
	unit_add(t, what_is_known_is_planned);
	unit_add(t, missing_or_past_times_are_due_now);
	unit_add(t, without_a_refresh_token_it_is_due_at_its_end);
	unit_add(t, what_is_not_oauth_is_never_due);
	unit_add(t, required_settings_are_the_imports_or_stay);
	unit_add(t, odd_numbers_are_judged);
	unit_add(t, secret_settings_are_masked);
	unit_add(t, json_is_written_as_it_came);
	unit_add(t, settings_are_complete);
	suite_add_tcase(s, t);
	return s;
}
