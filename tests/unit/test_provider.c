/*
 * provider and template: words, lists, freeing, and the strict expansion of variables.
 */
#include "unit/unit.h"

#include <string.h>

#include "base/mem.h"
#include "model/provider.h"

static struct template *parsed(const char *text)
{
	struct template *t = NULL;
	struct fault f = { .code = 0 };

	ck_assert_msg(template_parse(text, &t, &f) == 0, "%s: %s", text, f.text);
	return t;
}

struct vars {
	struct template_vars v;
};

static struct vars vars_of(const char *settings, const char *metadata, const char *capture)
{
	struct vars x = { .v = { .settings = settings != NULL ? json_tokener_parse(settings) : NULL,
				  .metadata = metadata != NULL ? json_tokener_parse(metadata) : NULL,
				  .capture = capture != NULL ? json_tokener_parse(capture) : NULL } };

	return x;
}

static void vars_fini(struct vars *x)
{
	json_object_put(x->v.settings);
	json_object_put(x->v.metadata);
	json_object_put(x->v.capture);
}

START_TEST(a_constant_is_given_back_as_written)
{
	struct template *t = parsed("https://id.example.com/token?a={{b}}");
	struct buf out = BUF_INIT(100);
	struct template_vars none = { .settings = NULL };

	ck_assert(template_is_constant(t));
	ck_assert_str_eq(template_text(t), "https://id.example.com/token?a={{b}}");
	ck_ok(template_expand(t, &none, TEMPLATE_URL, &out, NULL));
	ck_assert_str_eq(buf_str(&out), "https://id.example.com/token?a={b}");
	buf_fini(&out);
	template_free(t);
	t = parsed("");
	ck_assert(template_is_constant(t));
	ck_ok(template_expand(t, &none, TEMPLATE_URL, &out, NULL));
	ck_assert_uint_eq(out.len, 0);
	template_free(t);
	template_free(NULL);
}
END_TEST

START_TEST(variables_of_all_three_sources_expand)
{
	struct template *t = parsed("{settings.sub}|{metadata.n}|{capture.flag}.{settings.sub}");
	struct vars x = vars_of("{\"sub\":\"ac-me\"}", "{\"n\":-42}", "{\"flag\":true}");
	struct buf out = BUF_INIT(100);
	const char *source;

	ck_assert(!template_is_constant(t));
	ck_ok(buf_puts(&out, ">"));
	ck_ok(template_expand(t, &x.v, TEMPLATE_URL, &out, NULL));
	ck_assert_str_eq(buf_str(&out), ">ac-me|-42|true.ac-me");
	ck_assert_str_eq(template_variable(t, 0, &source), "sub");
	ck_assert_str_eq(source, "settings");
	ck_assert_str_eq(template_variable(t, 2, &source), "flag");
	ck_assert_str_eq(source, "capture");
	ck_assert_ptr_null(template_variable(t, 4, &source));
	buf_reset(&out);
	ck_ok(template_outline(t, "x", &out));
	ck_assert_str_eq(buf_str(&out), "x|x|x.x");
	buf_fini(&out);
	vars_fini(&x);
	template_free(t);
}
END_TEST

START_TEST(bad_templates_are_refused_with_the_reason)
{
	static const struct {
		const char *text, *says;
	} bad[] = {
		{ "a{settings.x", "not closed" },
		{ "{", "not closed" },
		{ "a}b", "not opened" },
		{ "}", "not opened" },
		{ "{settings}", "is not {settings.name}" },
		{ "{}.", "is not {settings.name}" },
		{ "{env.x}", "settings, metadata or capture" },
		{ "{setting.x}", "settings, metadata or capture" },
		{ "{.x}", "settings, metadata or capture" },
		{ "{settings.}", "a name has" },
		{ "{settings.a b}", "a name has" },
		{ "{settings.a.b}", "a name has" },
		{ "{settings.{settings.x}}", "a name has" },
		{ "{settings.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}",
			"a name has" },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct template *t = NULL;
		struct fault f = { .code = 0 };
		ck_assert_msg(template_parse(bad[i].text, &t, &f) == ST_SYNTAX, "%s", bad[i].text);
		ck_assert_ptr_null(t);
		ck_assert_msg(strstr(f.text, bad[i].says) != NULL, "%s: %s", bad[i].text, f.text);
	}
}
END_TEST

START_TEST(a_missing_value_is_not_found_and_named)
{
	static const char *const settings[] = { NULL, "{}", "{\"sub\":null}", "{\"sub\":\"\"}", "[1]" };
	struct template *t = parsed("https://{settings.sub}.example.com/");

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		struct vars x = vars_of(settings[i], NULL, NULL);
		struct fault f = { .code = 0 };
		struct buf out = BUF_INIT(100);
		ck_ok(buf_puts(&out, "kept"));
		ck_assert_int_eq(template_expand(t, &x.v, TEMPLATE_URL, &out, &f), ST_NOT_FOUND);
		ck_assert_ptr_nonnull(strstr(f.text, "settings.sub"));
		ck_assert_str_eq(buf_str(&out), "kept");
		buf_fini(&out);
		vars_fini(&x);
	}
	template_free(t);
}
END_TEST

START_TEST(a_setting_cannot_lead_a_url_elsewhere)
{
	static const char *const evil[] = { "evil.com/", "a@evil.com", "evil:1", "a?b", "a#b", "a b", "a%2f",
		"..", ".", "a..b", ".a", "a.", "a\\u0000b", "\\u00e9", "a\\\\b", "\\r\\nX: y" };
	struct template *t = parsed("https://{settings.sub}.example.com/{settings.sub}/token");

	for (size_t i = 0; i < sizeof(evil) / sizeof(evil[0]); i++) {
		char *json = mem_printf("{\"sub\":\"%s\"}", evil[i]);
		struct vars x = vars_of(json, NULL, NULL);
		struct fault f = { .code = 0 };
		struct buf out = BUF_INIT(100);
		ck_assert_ptr_nonnull(x.v.settings);
		ck_assert_msg(template_expand(t, &x.v, TEMPLATE_URL, &out, &f) == ST_INVALID, "%s", evil[i]);
		ck_assert_ptr_null(strstr(f.text, "evil"));
		ck_assert_uint_eq(out.len, 0);
		buf_fini(&out);
		vars_fini(&x);
		mem_free(json);
	}
	template_free(t);
}
END_TEST

START_TEST(a_value_may_hold_anything_but_control_bytes)
{
	struct template *t = parsed("{settings.v}");
	struct vars good = vars_of("{\"v\":\"a b/@:?#\xc3\xa9%\"}", NULL, NULL);
	struct vars bad = vars_of("{\"v\":\"a\\nb\"}", NULL, NULL);
	struct vars nested = vars_of("{\"v\":{\"a\":1}}", NULL, NULL);
	struct vars fraction = vars_of("{\"v\":1.5}", NULL, NULL);
	struct buf out = BUF_INIT(100), small = BUF_INIT(3);
	struct fault f = { .code = 0 };

	ck_ok(template_expand(t, &good.v, TEMPLATE_VALUE, &out, NULL));
	ck_assert_str_eq(buf_str(&out), "a b/@:?#\xc3\xa9%");
	ck_assert_int_eq(template_expand(t, &bad.v, TEMPLATE_VALUE, &out, &f), ST_INVALID);
	ck_assert_int_eq(template_expand(t, &nested.v, TEMPLATE_VALUE, &out, NULL), ST_INVALID);
	ck_assert_int_eq(template_expand(t, &fraction.v, TEMPLATE_VALUE, &out, NULL), ST_INVALID);
	ck_assert_int_eq(template_expand(t, &good.v, TEMPLATE_VALUE, &small, &f), ST_FULL);
	ck_assert_ptr_nonnull(strstr(f.text, "longer than 3 bytes"));
	ck_assert_int_eq(template_outline(t, "long", &small), ST_FULL);
	ck_assert_uint_eq(small.len, 0);
	buf_fini(&out);
	buf_fini(&small);
	vars_fini(&good);
	vars_fini(&bad);
	vars_fini(&nested);
	vars_fini(&fraction);
	template_free(t);
}
END_TEST

START_TEST(words_are_those_of_the_configuration)
{
	ck_assert_str_eq(client_auth_word(CLIENT_AUTH_BASIC), "client_secret_basic");
	ck_assert_str_eq(client_auth_word(CLIENT_AUTH_POST), "client_secret_post");
	ck_assert_str_eq(client_auth_word(CLIENT_AUTH_JWT), "private_key_jwt");
	ck_assert_str_eq(client_auth_word(CLIENT_AUTH_TLS), "tls_client_auth");
	ck_assert_str_eq(client_auth_word(CLIENT_AUTH_NONE), "none");
	ck_assert_str_eq(client_auth_word((enum client_auth)99), "unknown");
	ck_assert_str_eq(rotation_word(ROTATION_NONE), "none");
	ck_assert_str_eq(rotation_word(ROTATION_GRACE), "grace");
	ck_assert_str_eq(rotation_word(ROTATION_STRICT), "strict");
	ck_assert_str_eq(rotation_word((enum rotation)99), "unknown");
	ck_assert_str_eq(body_format_word(BODY_FORM), "form");
	ck_assert_str_eq(body_format_word(BODY_JSON), "json");
	ck_assert_str_eq(body_format_word(BODY_QUERY), "query");
	ck_assert_str_eq(body_format_word((enum body_format)99), "unknown");
	ck_assert_str_eq(grant_word(GRANT_CODE), "authorization_code");
	ck_assert_str_eq(grant_word(GRANT_CLIENT), "client_credentials");
	ck_assert_str_eq(grant_word(GRANT_PASSWORD), "password");
	ck_assert_str_eq(send_scope_word(SEND_SCOPE_NEVER), "never");
	ck_assert_str_eq(send_scope_word(SEND_SCOPE_STORED), "stored");
	ck_assert_str_eq(send_scope_word(SEND_SCOPE_LITERAL), "literal");
	ck_assert_str_eq(send_scope_word((enum send_scope)99), "unknown");
}
END_TEST

START_TEST(lists_copy_find_and_free)
{
	struct strlist l = { .v = NULL, .n = 0 };
	char word[] = "one";

	ck_assert(!strlist_has(&l, "one"));
	strlist_add(&l, word);
	word[0] = 'X';
	strlist_add(&l, "two");
	ck_assert(strlist_has(&l, "one"));
	ck_assert(strlist_has(&l, "two"));
	ck_assert(!strlist_has(&l, "tw"));
	strlist_fini(&l);
	ck_assert_uint_eq(l.n, 0);
	ck_assert_ptr_null(l.v);
	strlist_fini(&l);
}
END_TEST

START_TEST(half_filled_ones_are_freed_and_the_refresh_url_falls_back)
{
	struct provider *p = mem_alloc(sizeof(*p));
	struct client *c = mem_alloc(sizeof(*c));

	provider_free(NULL);
	client_free(NULL);
	client_free(c);
	ck_assert_ptr_null(provider_refresh_url(p));
	p->token_url = parsed("https://a.example/t");
	ck_assert_ptr_eq(provider_refresh_url(p), p->token_url);
	p->refresh_url = parsed("https://a.example/r");
	ck_assert_ptr_eq(provider_refresh_url(p), p->refresh_url);
	p->params = mem_calloc(1, sizeof(*p->params));
	p->params[p->n_params++] =
		(struct named_template){ .name = mem_strdup("a"), .value = parsed("{settings.a}") };
	p->capture = mem_calloc(1, sizeof(*p->capture));
	p->capture[0].name = mem_strdup("host");
	strlist_add(&p->capture[0].pointers, "/host");
	p->n_capture = 1;
	provider_free(p);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("provider");
	TCase *t = tcase_create("template");
	TCase *p = tcase_create("provider");

	unit_add(t, a_constant_is_given_back_as_written);
	unit_add(t, variables_of_all_three_sources_expand);
	unit_add(t, bad_templates_are_refused_with_the_reason);
	unit_add(t, a_missing_value_is_not_found_and_named);
	unit_add(t, a_setting_cannot_lead_a_url_elsewhere);
	unit_add(t, a_value_may_hold_anything_but_control_bytes);
	suite_add_tcase(s, t);
	unit_add(p, words_are_those_of_the_configuration);
	unit_add(p, lists_copy_find_and_free);
	unit_add(p, half_filled_ones_are_freed_and_the_refresh_url_falls_back);
	suite_add_tcase(s, p);
	return s;
}
