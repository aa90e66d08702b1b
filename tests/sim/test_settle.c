/*
 * test_settle - the decisions after an answer, one by one, as functions of facts and the clock.
 */
#include <check.h>
#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/seal.h"
#include "service/settle.h"
#include "sim/world.h"
#include "unit/unit.h"

struct bench {
	struct conf *conf;
	const struct provider *p;
	struct settle_facts x;
	struct settle_record out;
	struct grant_result g;
};

static void start(struct bench *t, const char *provider)
{
	fake_clock_start(21);
	memset(t, 0, sizeof *t);
	t->conf = fake_conf(provider, "");
	t->p = conf_provider(t->conf, "sim");
	const struct conn_key k = { .application_id = "app", .consumer_id = "c", .unified_api = "accounting", .service_id = "sim" };
	struct store_claimed c = { .attempt_id = 5, .token_version = 100, .due_at = sys_wall_us(), .key = k, .auth_type = AUTH_OAUTH2,
		.enabled = true, .state = CONN_CALLABLE, .health = HEALTH_OK, .created_at = 1, .updated_at = 1, .metadata = "{}",
		.issued_at = sys_wall_us() - SECONDS(3000), .expires_at = sys_wall_us() + SECONDS(600), .current = true };
	conn_id_of(&k, c.id);
	struct buf sealed = BUF_INIT(1024);
	ck_ok(seal_column(t->conf->keyring, SEAL_REFRESH_TOKEN, c.id, 100, "old", 3, &sealed));
	c.refresh_token = sealed.data;
	c.refresh_token_len = sealed.len;
	ck_ok(settle_facts_init(&t->x, t->conf->keyring, &c, NULL));
	buf_fini(&sealed);
	settle_record_init(&t->out);
	buf_init_secret(&t->g.access_token, 1000);
	buf_init_secret(&t->g.refresh_token, 1000);
	buf_init(&t->g.scope, 1000);
}

static struct store_result *answer(struct bench *t, enum outcome o, enum reason why)
{
	t->g.outcome = o;
	t->g.reason = why;
	settle_record_fini(&t->out);
	settle_record_init(&t->out);
	ck_ok(settle_answer(&t->x, t->conf, t->p, &t->g, sys_wall_us(), NULL, sys_wall_us(), &t->out));
	return &t->out.result;
}

static void stop(struct bench *t)
{
	settle_facts_fini(&t->x);
	settle_record_fini(&t->out);
	grant_result_fini(&t->g);
	conf_unref(t->conf);
	sys_set(NULL);
}

static void opens_to(struct bench *t, enum seal_column col, const struct buf *sealed, const char *want)
{
	struct buf plain = BUF_INIT_SECRET(1000);
	ck_ok(seal_open(t->conf->keyring, col, t->x.id, 101, sealed->data, sealed->len, &plain));
	ck_assert_str_eq(buf_str(&plain), want);
	buf_fini(&plain);
}

START_TEST(rotated_token_is_sealed_for_the_next_version_with_the_previous_one)
{
	struct bench t;
	start(&t, "rotation: strict");
	ck_ok(buf_puts(&t.g.access_token, "at"));
	ck_ok(buf_puts(&t.g.refresh_token, "new"));
	t.g.expires_at_us = sys_wall_us() + SECONDS(3600);
	const struct store_result *r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_assert(r->has_token && !r->touch);
	ck_assert_int_eq(r->token_version, 100);
	opens_to(&t, SEAL_ACCESS_TOKEN, r->access_token, "at");
	opens_to(&t, SEAL_REFRESH_TOKEN, r->refresh_token, "new");
	opens_to(&t, SEAL_PREVIOUS_REFRESH_TOKEN, r->previous_refresh_token, "old");
	ck_assert_int_eq(r->expires_at, sys_wall_us() + SECONDS(3600));
	ck_assert_int_le(r->due_at, r->expires_at - SECONDS(300));
	ck_assert_int_ge(r->due_at, r->expires_at - SECONDS(330));
	stop(&t);
}
END_TEST

START_TEST(same_token_back_is_no_rotation)
{
	struct bench t;
	start(&t, "rotation: none");
	ck_ok(buf_puts(&t.g.access_token, "at"));
	ck_ok(buf_puts(&t.g.refresh_token, "old"));
	const struct store_result *r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	opens_to(&t, SEAL_REFRESH_TOKEN, r->refresh_token, "old");
	ck_assert_uint_eq(r->previous_refresh_token->len, 0);
	stop(&t);
}
END_TEST

START_TEST(unknown_life_is_the_last_one)
{
	struct bench t;
	start(&t, "rotation: none");
	ck_ok(buf_puts(&t.g.access_token, "at"));
	const struct store_result *r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_assert_int_eq(r->expires_at, sys_wall_us() + SECONDS(3600));
	stop(&t);
}
END_TEST

START_TEST(success_ends_a_failure_cycle)
{
	struct bench t;
	start(&t, "rotation: strict");
	t.x.health = HEALTH_PENDING;
	t.x.failures = 7;
	t.x.doubts = 2;
	t.x.reason = REASON_NO_ANSWER;
	t.x.first_failed_at = sys_wall_us() - SECONDS(50);
	ck_ok(buf_puts(&t.g.access_token, "at"));
	const struct store_result *r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_assert(r->touch);
	ck_assert_int_eq(r->failures, 0);
	ck_assert_int_eq(r->doubts, 0);
	ck_assert_int_eq(r->first_failed_at, 0);
	ck_assert_int_eq(r->reason, REASON_NONE);
	ck_assert_int_eq(r->event, EVENT_REFRESH_RECOVERED);
	ck_assert_str_eq(r->entity_id, "app+c");
	ck_assert_ptr_null(strstr(r->entity, "old"));
	stop(&t);
}
END_TEST

START_TEST(dead_grant_is_named_by_its_doubts)
{
	static const struct {
		const char *provider;
		int doubts;
		enum reason want;
	} cases[] = {
		{ "rotation: strict", 0, REASON_INVALID_GRANT },
		{ "rotation: strict", 1, REASON_ROTATION_LOST },
		{ "rotation: grace, rotation_grace: 30s", 2, REASON_ROTATION_LOST },
		{ "rotation: none", 2, REASON_INVALID_GRANT },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct bench t;
		start(&t, cases[i].provider);
		t.x.doubts = cases[i].doubts;
		const struct store_result *r = answer(&t, OUTCOME_GRANT_DEAD, REASON_INVALID_GRANT);
		ck_assert_int_eq(r->reason, cases[i].want);
		ck_assert_int_eq(r->state, CONN_INVALID);
		ck_assert_int_eq(r->health, HEALTH_NEEDS_AUTH);
		ck_assert_int_eq(r->event, EVENT_REFRESH_FAILED);
		ck_assert_int_eq(r->due_at, TIME_NEVER);
		stop(&t);
	}
}
END_TEST

START_TEST(doubts_are_counted_by_outcome_and_rotation)
{
	static const struct {
		enum outcome o;
		int strict, none;
	} cases[] = {
		{ OUTCOME_IN_DOUBT, 4, 3 }, { OUTCOME_MALFORMED, 4, 3 }, { OUTCOME_TRANSIENT, 3, 3 }, { OUTCOME_NEVER_SENT, 3, 3 },
		{ OUTCOME_RATE_LIMITED, 3, 3 }, { OUTCOME_CLIENT_BROKEN, 3, 3 },
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct bench t;
		start(&t, "rotation: strict");
		t.x.doubts = 3;
		ck_assert_int_eq(answer(&t, cases[i].o, REASON_NO_ANSWER)->doubts, cases[i].strict);
		stop(&t);
		start(&t, "rotation: none");
		t.x.doubts = 3;
		ck_assert_int_eq(answer(&t, cases[i].o, REASON_NO_ANSWER)->doubts, cases[i].none);
		stop(&t);
	}
}
END_TEST

START_TEST(pace_of_trying_again_in_doubt)
{
	struct bench t;
	start(&t, "rotation: strict");
	for (int doubts = 0; doubts < 12; doubts++) {
		t.x.doubts = t.x.failures = doubts;
		int64_t wait = answer(&t, OUTCOME_IN_DOUBT, REASON_NO_ANSWER)->due_at - sys_wall_us();
		ck_assert_int_ge(wait, US_PER_S / 4);
		ck_assert_int_le(wait, doubts == 0 ? US_PER_S / 2 : SECONDS(900));
		if (doubts > 0)
			ck_assert_int_ge(wait, SECONDS(1)); /* never a plain loop */
	}
	stop(&t);
	start(&t, "rotation: grace, rotation_grace: 8s");
	t.x.doubts = 2;
	t.x.failures = 9;
	ck_assert_int_le(answer(&t, OUTCOME_IN_DOUBT, REASON_NO_ANSWER)->due_at - sys_wall_us(), SECONDS(2));
	stop(&t);
}
END_TEST

START_TEST(retry_window_ends_in_failed)
{
	struct bench t;
	start(&t, "rotation: strict");
	t.x.health = HEALTH_PENDING;
	t.x.failures = 200;
	t.x.first_failed_at = sys_wall_us() - HOURS(48) + 1;
	ck_assert_int_eq(answer(&t, OUTCOME_TRANSIENT, REASON_PROVIDER_ERROR)->health, HEALTH_PENDING);
	t.x.first_failed_at--;
	const struct store_result *r = answer(&t, OUTCOME_TRANSIENT, REASON_PROVIDER_ERROR);
	ck_assert_int_eq(r->reason, REASON_RETRY_WINDOW_OVER);
	ck_assert_int_eq(r->event, EVENT_REFRESH_FAILED);
	/* A doubt of long ago is no proof of a lost rotation; an answer that is missing at the end is the best there is. */
	t.x.doubts = 2;
	ck_assert_int_eq(answer(&t, OUTCOME_NEVER_SENT, REASON_UNREACHABLE)->reason, REASON_RETRY_WINDOW_OVER);
	ck_assert_int_eq(answer(&t, OUTCOME_IN_DOUBT, REASON_NO_ANSWER)->reason, REASON_ROTATION_LOST);
	stop(&t);
}
END_TEST

START_TEST(what_cannot_be_opened_is_failing_and_says_so)
{
	struct bench t;
	start(&t, "rotation: strict");
	settle_record_fini(&t.out);
	settle_record_init(&t.out);
	ck_ok(settle_unsealable(&t.x, t.conf, t.p, sys_wall_us(), &t.out));
	const struct store_result *r = &t.out.result;
	ck_assert_int_eq(r->reason, REASON_SEALED);
	ck_assert_int_eq(r->health, HEALTH_PENDING);
	ck_assert_int_eq(r->event, EVENT_REFRESH_PENDING);
	ck_assert(!r->has_token);
	ck_assert_int_ge(r->due_at, sys_wall_us() + SECONDS(300));
	ck_assert_int_le(r->due_at, sys_wall_us() + SECONDS(330));
	stop(&t);
}
END_TEST

START_TEST(refused_client_touches_nothing_and_comes_back_before_expiry)
{
	struct bench t;
	start(&t, "rotation: strict");
	const struct store_result *r = answer(&t, OUTCOME_CLIENT_BROKEN, REASON_CLIENT_REFUSED);
	ck_assert(!r->touch && !r->has_token);
	ck_assert_int_eq(r->event, EVENT_NONE);
	ck_assert_int_ge(r->due_at, sys_wall_us() + SECONDS(150));
	ck_assert_int_le(r->due_at, sys_wall_us() + SECONDS(188));
	t.x.expires_at = sys_wall_us() + SECONDS(12); /* a short life, or a late refusal */
	r = answer(&t, OUTCOME_CLIENT_BROKEN, REASON_CLIENT_REFUSED);
	ck_assert_int_ge(r->due_at, sys_wall_us() + SECONDS(3));
	ck_assert_int_lt(r->due_at, sys_wall_us() + SECONDS(4));
	t.x.expires_at = sys_wall_us() - 1;
	r = answer(&t, OUTCOME_CLIENT_BROKEN, REASON_CLIENT_REFUSED);
	ck_assert_int_ge(r->due_at, sys_wall_us() + MINUTES(10));
	stop(&t);
}
END_TEST

START_TEST(before_a_send)
{
	struct bench t;
	int64_t due;
	start(&t, "rotation: strict");
	const struct client *c = conf_client(t.conf, "app", "sim");
	ck_assert_int_eq(settle_before_send(&t.x, t.p, c, sys_wall_us(), &t.out, &due), SETTLE_SEND);
	ck_assert_int_eq(settle_before_send(&t.x, NULL, NULL, sys_wall_us(), &t.out, &due), SETTLE_RELEASE);
	ck_assert_int_gt(due, sys_wall_us());
	ck_assert_int_eq(settle_before_send(&t.x, t.p, NULL, sys_wall_us(), &t.out, &due), SETTLE_RELEASE);
	t.x.enabled = false;
	ck_assert_int_eq(settle_before_send(&t.x, t.p, c, sys_wall_us(), &t.out, &due), SETTLE_RECORD);
	ck_assert_int_eq(t.out.result.due_at, TIME_NEVER);
	ck_assert(!t.out.result.touch);
	t.x.enabled = true;
	t.x.auth_type = AUTH_API_KEY;
	ck_assert_int_eq(settle_before_send(&t.x, t.p, c, sys_wall_us(), &t.out, &due), SETTLE_RECORD);
	t.x.auth_type = AUTH_OAUTH2;
	buf_reset(&t.x.refresh_token);
	ck_assert_int_eq(settle_before_send(&t.x, t.p, c, sys_wall_us(), &t.out, &due), SETTLE_RELEASE);
	ck_assert_int_eq(due, t.x.expires_at); /* it can only expire */
	t.x.expires_at = sys_wall_us();
	ck_assert_int_eq(settle_before_send(&t.x, t.p, c, sys_wall_us(), &t.out, &due), SETTLE_RECORD);
	ck_assert_int_eq(t.out.result.reason, REASON_NO_REFRESH_TOKEN);
	ck_assert_int_eq(t.out.result.event, EVENT_REFRESH_FAILED);
	stop(&t);
}
END_TEST

START_TEST(client_credentials_go_without_a_refresh_token)
{
	struct bench t;
	int64_t due;
	start(&t, "grant: client_credentials");
	const struct client *c = conf_client(t.conf, "app", "sim");
	ck_assert(!settle_uses_refresh_token(&t.x, t.p));
	buf_reset(&t.x.refresh_token);
	t.x.expires_at = sys_wall_us() - 1;
	ck_assert_int_eq(settle_before_send(&t.x, t.p, c, sys_wall_us(), &t.out, &due), SETTLE_SEND);
	ck_ok(buf_puts(&t.g.access_token, "at"));
	ck_ok(buf_puts(&t.g.refresh_token, "unasked"));
	t.g.expires_at_us = sys_wall_us() + SECONDS(3600);
	const struct store_result *r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	opens_to(&t, SEAL_ACCESS_TOKEN, r->access_token, "at");
	ck_assert_uint_eq(r->refresh_token->len, 0);
	ck_assert_uint_eq(r->previous_refresh_token->len, 0);
	ck_assert_int_eq(r->refresh_issued_at, 0);
	ck_assert_int_le(r->due_at, r->expires_at - SECONDS(300));
	ck_assert_int_ge(r->due_at, r->expires_at - SECONDS(330));
	/* Nothing rotates: no doubt is counted, and a refusal is that of the grant. */
	r = answer(&t, OUTCOME_IN_DOUBT, REASON_NO_ANSWER);
	ck_assert_int_eq(r->doubts, 0);
	ck_assert_int_eq(r->event, EVENT_REFRESH_PENDING);
	t.x.doubts = 3;
	r = answer(&t, OUTCOME_GRANT_DEAD, REASON_INVALID_GRANT);
	ck_assert_int_eq(r->reason, REASON_INVALID_GRANT);
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	stop(&t);
}
END_TEST

START_TEST(a_refused_refresh_token_leaves_the_password)
{
	struct bench t;
	start(&t, "grant: password, rotation: strict");
	t.x.settings = json_tokener_parse("{\"username\":\"u\",\"password\":\"p\"}");
	t.x.doubts = 1;
	ck_assert(settle_uses_refresh_token(&t.x, t.p));
	const struct store_result *r = answer(&t, OUTCOME_GRANT_DEAD, REASON_INVALID_GRANT);
	ck_assert_int_eq(r->due_at, sys_wall_us());
	ck_assert(r->touch);
	ck_assert_int_eq(r->reason, REASON_INVALID_GRANT);
	ck_assert_int_eq(r->health, HEALTH_OK);
	ck_assert_int_eq(r->event, EVENT_NONE);
	ck_assert_int_eq(r->doubts, 0);
	t.x.reason = r->reason;
	t.x.doubts = 0;
	ck_assert(!settle_uses_refresh_token(&t.x, t.p));
	/* Unanswered, it is an ordinary failure; refused, the connection is dead. */
	r = answer(&t, OUTCOME_IN_DOUBT, REASON_NO_ANSWER);
	ck_assert_int_eq(r->doubts, 0);
	r = answer(&t, OUTCOME_GRANT_DEAD, REASON_INVALID_GRANT);
	ck_assert_int_eq(r->due_at, TIME_NEVER);
	ck_assert_int_eq(r->event, EVENT_REFRESH_FAILED);
	/* The dead token is forgotten with the success of the password, and its end with it. */
	t.x.refresh_expires_at = sys_wall_us() + SECONDS(400);
	ck_ok(buf_puts(&t.g.access_token, "at"));
	t.g.expires_at_us = sys_wall_us() + SECONDS(3600);
	r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_assert_uint_eq(r->refresh_token->len, 0);
	ck_assert_int_eq(r->refresh_expires_at, 0);
	ck_assert_int_eq(r->reason, REASON_NONE);
	ck_assert_int_eq(r->event, EVENT_NONE);
	ck_assert_int_ge(r->due_at, r->expires_at - SECONDS(330));
	ck_assert_int_le(r->due_at, r->expires_at - SECONDS(300));
	ck_ok(buf_puts(&t.g.refresh_token, "new"));
	r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	opens_to(&t, SEAL_REFRESH_TOKEN, r->refresh_token, "new");
	stop(&t);
}
END_TEST

START_TEST(missing_settings_wait_for_a_change)
{
	struct bench t;
	start(&t, "rotation: strict");
	settle_missing_settings(&t.x, t.p, sys_wall_us(), &t.out);
	ck_assert_int_eq(t.out.result.due_at, TIME_NEVER);
	ck_assert_int_eq(t.out.result.health, HEALTH_MISSING_SETTINGS);
	ck_assert_int_eq(t.out.result.state, CONN_AUTHORIZED);
	stop(&t);
}
END_TEST

START_TEST(without_a_required_setting_it_is_refreshed_and_not_callable)
{
	struct bench t;
	start(&t, "rotation: strict, required_settings: [shop]");
	t.x.state = CONN_AUTHORIZED;
	t.x.health = HEALTH_MISSING_SETTINGS;
	t.x.reason = REASON_MISSING_SETTINGS;
	ck_ok(buf_puts(&t.g.access_token, "at"));
	t.g.expires_at_us = sys_wall_us() + SECONDS(3600);
	const struct store_result *r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_assert(r->has_token && !r->touch && r->event == EVENT_NONE);
	ck_assert_int_lt(r->due_at, r->expires_at);
	r = answer(&t, OUTCOME_TRANSIENT, REASON_PROVIDER_ERROR);
	ck_assert(r->state == CONN_AUTHORIZED && r->health == HEALTH_PENDING && r->event == EVENT_REFRESH_PENDING);
	t.x.health = HEALTH_PENDING;
	t.x.reason = REASON_PROVIDER_ERROR;
	t.x.failures = 1;
	r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_assert(r->state == CONN_AUTHORIZED && r->health == HEALTH_MISSING_SETTINGS && r->event == EVENT_REFRESH_RECOVERED);
	ck_assert(r->reason == REASON_MISSING_SETTINGS && r->failures == 0);
	t.x.settings = json_tokener_parse("{\"shop\":\"s\"}");
	r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_assert(r->state == CONN_CALLABLE && r->health == HEALTH_OK && r->reason == REASON_NONE);
	/* What cannot be opened says nothing of the settings. */
	t.x.opened = false;
	t.x.state = CONN_CALLABLE;
	json_object_put(t.x.settings);
	t.x.settings = NULL;
	settle_record_fini(&t.out);
	settle_record_init(&t.out);
	ck_ok(settle_unsealable(&t.x, t.conf, t.p, sys_wall_us(), &t.out));
	ck_assert_int_eq(t.out.result.state, CONN_CALLABLE);
	stop(&t);
}
END_TEST

START_TEST(a_field_that_an_answer_leaves_out_stays_captured)
{
	struct bench t;
	struct buf plain = BUF_INIT_SECRET(1000);
	start(&t, "rotation: none");
	t.x.captured = json_tokener_parse("{\"api\":\"https://old.example\",\"org\":\"7\"}");
	t.g.captured = json_tokener_parse("{\"api\":\"https://new.example\"}");
	ck_ok(buf_puts(&t.g.access_token, "at"));
	const struct store_result *r = answer(&t, OUTCOME_REFRESHED, REASON_NONE);
	ck_ok(seal_open(t.conf->keyring, SEAL_CAPTURED, t.x.id, 0, r->captured->data, r->captured->len, &plain));
	struct json_object *o = json_tokener_parse(buf_str(&plain));
	ck_assert_int_eq(json_object_object_length(o), 2);
	ck_assert_str_eq(json_object_get_string(json_object_object_get(o, "api")), "https://new.example");
	ck_assert_str_eq(json_object_get_string(json_object_object_get(o, "org")), "7");
	json_object_put(o);
	buf_fini(&plain);
	stop(&t);
}
END_TEST

START_TEST(settings_are_wiped_with_the_facts)
{
	static const char settings[] = "{\"api_key\":\"very secret\"}";
	struct bench t;
	struct buf sealed = BUF_INIT(1024);
	struct settle_facts y;
	start(&t, "rotation: none");
	struct store_claimed c = { .token_version = 100, .key = { "app", "c", "accounting", "sim" }, .metadata = "{}" };
	memcpy(c.id, t.x.id, 16);
	ck_ok(seal_column(t.conf->keyring, SEAL_SETTINGS, c.id, 0, settings, strlen(settings), &sealed));
	c.settings = sealed.data;
	c.settings_len = sealed.len;
	ck_ok(settle_facts_init(&y, t.conf->keyring, &c, NULL));
	struct json_object *key = json_object_get(json_object_object_get(y.settings, "api_key"));
	ck_assert_str_eq(json_object_get_string(key), "very secret");
	settle_facts_fini(&y);
	for (size_t i = 0; i < strlen("very secret"); i++)
		ck_assert_int_eq(json_object_get_string(key)[i], 0);
	json_object_put(key);
	buf_fini(&sealed);
	stop(&t);
}
END_TEST

START_TEST(sealed_text_of_another_row_or_version_does_not_open)
{
	struct bench t;
	start(&t, "rotation: strict");
	struct store_claimed c = { .token_version = 101, .key = { "app", "c", "accounting", "sim" }, .metadata = "{}" };
	memcpy(c.id, t.x.id, 16);
	struct buf sealed = BUF_INIT(1024);
	ck_ok(seal_column(t.conf->keyring, SEAL_REFRESH_TOKEN, c.id, 100, "old", 3, &sealed));
	c.refresh_token = sealed.data;
	c.refresh_token_len = sealed.len;
	struct settle_facts y;
	struct fault f = { 0 };
	ck_assert_int_eq(settle_facts_init(&y, t.conf->keyring, &c, &f), ST_CRYPTO);
	ck_assert_ptr_nonnull(strstr(f.text, "refresh token"));
	c.token_version = 100;
	c.id[3] ^= 1;
	ck_assert_int_eq(settle_facts_init(&y, t.conf->keyring, &c, &f), ST_CRYPTO);
	buf_fini(&sealed);
	stop(&t);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("settle");
	TCase *t = tcase_create("settle");
	unit_add(t, rotated_token_is_sealed_for_the_next_version_with_the_previous_one);
	unit_add(t, same_token_back_is_no_rotation);
	unit_add(t, unknown_life_is_the_last_one);
	unit_add(t, success_ends_a_failure_cycle);
	unit_add(t, dead_grant_is_named_by_its_doubts);
	unit_add(t, doubts_are_counted_by_outcome_and_rotation);
	unit_add(t, pace_of_trying_again_in_doubt);
	unit_add(t, retry_window_ends_in_failed);
	unit_add(t, what_cannot_be_opened_is_failing_and_says_so);
	unit_add(t, refused_client_touches_nothing_and_comes_back_before_expiry);
	unit_add(t, before_a_send);
	unit_add(t, client_credentials_go_without_a_refresh_token);
	unit_add(t, a_refused_refresh_token_leaves_the_password);
	unit_add(t, missing_settings_wait_for_a_change);
	unit_add(t, without_a_required_setting_it_is_refreshed_and_not_callable);
	unit_add(t, a_field_that_an_answer_leaves_out_stays_captured);
	unit_add(t, settings_are_wiped_with_the_facts);
	unit_add(t, sealed_text_of_another_row_or_version_does_not_open);
	suite_add_tcase(s, t);
	return s;
}
