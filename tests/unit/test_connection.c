/*
 * connection - words, identity, and every pair of the transition table.
 */
#include "unit/unit.h"

#include <stdio.h>
#include <string.h>

#include "base/crypto.h"
#include "base/str.h"
#include "model/connection.h"

#define N_HEALTHS (HEALTH_REVOKED + 1)
#define N_EVENTS (CE_SETTINGS_FILLED + 1)

START_TEST(words_parse_back)
{
	enum conn_state s;
	enum conn_health h;
	enum auth_type a;
	enum reason r;

	for (unsigned i = 0; i <= CONN_INVALID; i++) {
		ck_ok(conn_state_parse(conn_state_word((enum conn_state)i), &s));
		ck_assert_uint_eq(s, i);
	}
	for (unsigned i = 0; i < N_HEALTHS; i++) {
		ck_ok(conn_health_parse(conn_health_word((enum conn_health)i), &h));
		ck_assert_uint_eq(h, i);
	}
	for (unsigned i = 0; i <= AUTH_NONE; i++) {
		ck_ok(auth_type_parse(auth_type_word((enum auth_type)i), &a));
		ck_assert_uint_eq(a, i);
	}
	for (unsigned i = 0; i <= REASON_REVOKED; i++) {
		ck_ok(reason_parse(reason_word((enum reason)i), &r));
		ck_assert_uint_eq(r, i);
		ck_assert_uint_gt(strlen(reason_text((enum reason)i)), 5);
	}
}
END_TEST

START_TEST(foreign_words_are_not_found)
{
	enum conn_state s = CONN_ADDED;
	enum conn_health h = HEALTH_PENDING;
	enum auth_type a = AUTH_BASIC;
	enum reason r = REASON_SEALED;

	ck_assert_int_eq(conn_state_parse("Callable", &s), ST_NOT_FOUND);
	ck_assert_int_eq(conn_health_parse("", &h), ST_NOT_FOUND);
	ck_assert_int_eq(auth_type_parse("apikey", &a), ST_NOT_FOUND);
	ck_assert_int_eq(reason_parse("none ", &r), ST_NOT_FOUND);
	ck_assert_int_eq(s, CONN_ADDED);
	ck_assert_int_eq(h, HEALTH_PENDING);
	ck_assert_int_eq(a, AUTH_BASIC);
	ck_assert_int_eq(r, REASON_SEALED);
}
END_TEST

static void id_text(const char *a, const char *c, const char *u, const char *s, char out[STR_UUID_BYTES])
{
	struct conn_key k = {a, c, u, s};
	uint8_t id[16];

	conn_id_of(&k, id);
	str_format_uuid(id, out);
}

START_TEST(id_is_the_hash_of_the_length_prefixed_key)
{
	static const char text[] = "\0\0\0\4app1\0\0\0\2c1\0\0\0\3crm\0\0\0\nsalesforce";
	char got[STR_UUID_BYTES], want[STR_UUID_BYTES];
	uint8_t hash[32];

	crypto_sha256(text, sizeof(text) - 1, hash);
	hash[6] = (uint8_t)((hash[6] & 0x0f) | 0x80);
	hash[8] = (uint8_t)((hash[8] & 0x3f) | 0x80);
	str_format_uuid(hash, want);
	id_text("app1", "c1", "crm", "salesforce", got);
	ck_assert_str_eq(got, want);
	/* Frozen: stored rows are found by it. Computed apart with sha256sum. */
	ck_assert_str_eq(got, "f8ffaefb-5976-8905-b26a-779f43393112");
}
END_TEST

START_TEST(parts_do_not_run_into_each_other)
{
	char a[STR_UUID_BYTES], b[STR_UUID_BYTES];

	id_text("ab", "c", "crm", "x", a);
	id_text("a", "bc", "crm", "x", b);
	ck_assert_str_ne(a, b);
	id_text("a", "b", "crmx", "y", a);
	id_text("a", "b", "crm", "xy", b);
	ck_assert_str_ne(a, b);
}
END_TEST

START_TEST(slots_are_in_range_and_even)
{
	unsigned count[CONN_SLOTS] = {0};
	char consumer[16];

	for (int i = 0; i < 40960; i++) {
		struct conn_key k = {"app", consumer, "crm", "x"};
		uint8_t id[16];
		snprintf(consumer, sizeof(consumer), "c%d", i);
		conn_id_of(&k, id);
		ck_assert_int_eq(id[6] >> 4, 8);
		ck_assert_int_eq(id[8] >> 6, 2);
		int16_t slot = conn_slot_of(id);
		ck_assert_int_ge(slot, 0);
		ck_assert_int_lt(slot, CONN_SLOTS);
		count[slot]++;
	}
	for (int i = 0; i < CONN_SLOTS; i++) {
		ck_assert_uint_gt(count[i], 5);
		ck_assert_uint_lt(count[i], 100);
	}
	ck_assert_int_eq(conn_slot_of((const uint8_t[16]){0xff, 0xff}), 1023);
	ck_assert_int_eq(conn_slot_of((const uint8_t[16]){0x00, 0x40}), 1);
	ck_assert_int_eq(conn_slot_of((const uint8_t[16]){0x00, 0x3f, 0xff}), 0);
}
END_TEST

static int check_key(const char *a, const char *c, const char *u, const char *s, struct fault *f)
{
	struct conn_key k = {a, c, u, s};
	return conn_key_check(&k, f);
}

START_TEST(good_keys_pass)
{
	char longest[201], name[65];
	struct fault f = {0};

	memset(longest, 'x', 200);
	longest[200] = '\0';
	memset(name, 'y', 64);
	name[64] = '\0';
	ck_ok(check_key("app1", "c1", "crm", "salesforce", &f));
	ck_ok(check_key("a b/c+d%\xc3\xa9", "\xf0\x9f\x98\x80", "0", "a-b_c", NULL));
	ck_ok(check_key(longest, longest, name, name, &f));
	uint8_t id[16];
	conn_id_of(&(struct conn_key){longest, longest, name, name}, id);
}
END_TEST

START_TEST(bad_keys_name_their_part)
{
	static const struct {
		const char *a, *c, *u, *s, *part, *what;
	} rows[] = {
		{"", "c", "u", "s", "application_id", "empty"},
		{NULL, "c", "u", "s", "application_id", "empty"},
		{"a", "", "u", "s", "consumer_id", "empty"},
		{"a", "c\n", "u", "s", "consumer_id", "control"},
		{"a", "c\x7f", "u", "s", "consumer_id", "control"},
		{"a", "c\xff", "u", "s", "consumer_id", "UTF-8"},
		{"\xed\xa0\x80", "c", "u", "s", "application_id", "UTF-8"},
		{"a", "c", "", "s", "unified_api", "empty"},
		{"a", "c", "CRM", "s", "unified_api", "a-z"},
		{"a", "c", "-crm", "s", "unified_api", "start"},
		{"a", "c", "u", "sales.force", "service_id", "a-z"},
		{"a", "c", "u", "_x", "service_id", "start"},
		{"a", "c", "u", NULL, "service_id", "empty"},
	};
	char longer[202], name[66];
	struct fault f;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		ck_assert_int_eq(check_key(rows[i].a, rows[i].c, rows[i].u, rows[i].s, &f), ST_INVALID);
		ck_assert_msg(strstr(f.text, rows[i].part) && strstr(f.text, rows[i].what), "row %zu: %s", i,
			f.text);
	}
	memset(longer, 'x', 201);
	longer[201] = '\0';
	memset(name, 'y', 65);
	name[65] = '\0';
	ck_assert_int_eq(check_key("a", longer, "u", "s", &f), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(f.text, "longer than 200"));
	ck_assert_int_eq(check_key("a", "c", name, "s", &f), ST_INVALID);
	ck_assert_ptr_nonnull(strstr(f.text, "longer than 64"));
}
END_TEST

START_TEST(table_has_every_pair_once)
{
	unsigned seen[N_HEALTHS][N_EVENTS] = {{0}};
	const struct conn_rule *r;
	unsigned n = 0;

	for (; (r = connection_rule(n)) != NULL; n++) {
		ck_assert_uint_eq(seen[r->from][r->ev]++, 0);
		ck_assert_uint_gt(strlen(r->why), 10);
	}
	ck_assert_uint_eq(n, N_HEALTHS * N_EVENTS);
	ck_assert_ptr_null(connection_rule(n));
	ck_assert_ptr_null(connection_rule(~0u));
}
END_TEST

/* Written out a second time, from the lifecycle as users know it and not from the table. */
#define CALL CONN_CALLABLE
#define AUTH CONN_AUTHORIZED
#define DEAD CONN_INVALID
#define NEEDS HEALTH_NEEDS_AUTH
#define MISS HEALTH_MISSING_SETTINGS
#define PEND HEALTH_PENDING
#define GONE HEALTH_REVOKED
static const struct {
	enum conn_state s;
	enum conn_health h;
	enum conn_event ev;
	enum conn_state to_s;
	enum conn_health to_h;
	enum event_type tell;
} transitions[] = {
	{CALL, HEALTH_OK, CE_IMPORTED, CALL, HEALTH_OK, EVENT_NONE},
	{CALL, HEALTH_OK, CE_REFRESHED, CALL, HEALTH_OK, EVENT_NONE},
	{CALL, HEALTH_OK, CE_FAILED, CALL, PEND, EVENT_REFRESH_PENDING},
	{CALL, HEALTH_OK, CE_DEAD, DEAD, NEEDS, EVENT_REFRESH_FAILED},
	{CALL, HEALTH_OK, CE_SETTINGS_MISSING, AUTH, MISS, EVENT_UPDATED},
	{CALL, HEALTH_OK, CE_REVOKED, DEAD, GONE, EVENT_REVOKED},

	{CALL, PEND, CE_IMPORTED, CALL, HEALTH_OK, EVENT_REFRESH_RECOVERED},
	{CALL, PEND, CE_REFRESHED, CALL, HEALTH_OK, EVENT_REFRESH_RECOVERED},
	{CALL, PEND, CE_FAILED, CALL, PEND, EVENT_NONE},
	{CALL, PEND, CE_DEAD, DEAD, NEEDS, EVENT_REFRESH_FAILED},
	{CALL, PEND, CE_SETTINGS_MISSING, AUTH, MISS, EVENT_UPDATED},
	{CALL, PEND, CE_REVOKED, DEAD, GONE, EVENT_REVOKED},
	{AUTH, PEND, CE_IMPORTED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{AUTH, PEND, CE_REFRESHED, CALL, HEALTH_OK, EVENT_REFRESH_RECOVERED},

	{DEAD, NEEDS, CE_IMPORTED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{DEAD, NEEDS, CE_REFRESHED, CALL, HEALTH_OK, EVENT_REFRESH_RECOVERED},
	{DEAD, NEEDS, CE_FAILED, DEAD, NEEDS, EVENT_NONE},
	{DEAD, NEEDS, CE_DEAD, DEAD, NEEDS, EVENT_NONE},
	{DEAD, NEEDS, CE_SETTINGS_MISSING, DEAD, NEEDS, EVENT_NONE},
	{DEAD, NEEDS, CE_REVOKED, DEAD, GONE, EVENT_REVOKED},

	{AUTH, MISS, CE_IMPORTED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{AUTH, MISS, CE_REFRESHED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{AUTH, MISS, CE_FAILED, CALL, PEND, EVENT_REFRESH_PENDING},
	{AUTH, MISS, CE_DEAD, DEAD, NEEDS, EVENT_REFRESH_FAILED},
	{AUTH, MISS, CE_SETTINGS_MISSING, AUTH, MISS, EVENT_NONE},
	{AUTH, MISS, CE_REVOKED, DEAD, GONE, EVENT_REVOKED},

	{DEAD, GONE, CE_IMPORTED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{DEAD, GONE, CE_REFRESHED, DEAD, GONE, EVENT_NONE},
	{DEAD, GONE, CE_FAILED, DEAD, GONE, EVENT_NONE},
	{DEAD, GONE, CE_DEAD, DEAD, GONE, EVENT_NONE},
	{DEAD, GONE, CE_SETTINGS_MISSING, DEAD, GONE, EVENT_NONE},
	{DEAD, GONE, CE_REVOKED, DEAD, GONE, EVENT_NONE},

	{CONN_ADDED, HEALTH_OK, CE_IMPORTED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{CONN_ADDED, HEALTH_OK, CE_REFRESHED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{CONN_ADDED, HEALTH_OK, CE_FAILED, CONN_ADDED, PEND, EVENT_REFRESH_PENDING},
	{CONN_ADDED, PEND, CE_FAILED, CONN_ADDED, PEND, EVENT_NONE},
	{CONN_ADDED, PEND, CE_REFRESHED, CALL, HEALTH_OK, EVENT_REFRESH_RECOVERED},
	{CONN_ADDED, HEALTH_OK, CE_DEAD, DEAD, NEEDS, EVENT_REFRESH_FAILED},
	{CONN_ADDED, HEALTH_OK, CE_SETTINGS_MISSING, CONN_ADDED, MISS, EVENT_UPDATED},
	{CONN_ADDED, MISS, CE_REFRESHED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{CONN_ADDED, HEALTH_OK, CE_REVOKED, DEAD, GONE, EVENT_REVOKED},
	{CONN_ADDED, HEALTH_OK, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_NONE},
	{CONN_AVAILABLE, HEALTH_OK, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_NONE},
	{CONN_AVAILABLE, HEALTH_OK, CE_FAILED, CONN_AVAILABLE, HEALTH_OK, EVENT_NONE},
	{CALL, HEALTH_OK, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_NONE},
	{CALL, PEND, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_UPDATED},
	{DEAD, NEEDS, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_UPDATED},
	{AUTH, MISS, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_UPDATED},
	{DEAD, GONE, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_UPDATED},
	{CONN_AVAILABLE, HEALTH_OK, CE_IMPORTED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{CONN_AVAILABLE, HEALTH_NEEDS_AUTH, CE_DEAD, CONN_AVAILABLE, HEALTH_NEEDS_AUTH, EVENT_NONE},

	{AUTH, MISS, CE_SETTINGS_FILLED, CALL, HEALTH_OK, EVENT_CALLABLE},
	{AUTH, PEND, CE_SETTINGS_FILLED, CALL, PEND, EVENT_CALLABLE},
	{CALL, HEALTH_OK, CE_SETTINGS_FILLED, CALL, HEALTH_OK, EVENT_NONE},
	{CONN_ADDED, MISS, CE_SETTINGS_FILLED, CONN_ADDED, HEALTH_OK, EVENT_UPDATED},
	{DEAD, NEEDS, CE_SETTINGS_FILLED, DEAD, NEEDS, EVENT_NONE},
	{DEAD, GONE, CE_SETTINGS_FILLED, DEAD, GONE, EVENT_NONE},
};

/* The same where a required setting is missing afterwards. */
static const struct lacking {
	enum conn_state s;
	enum conn_health h;
	enum conn_event ev;
	enum conn_state to_s;
	enum conn_health to_h;
	enum event_type tell;
} lacking[] = {
	{CONN_AVAILABLE, HEALTH_OK, CE_IMPORTED, AUTH, MISS, EVENT_UPDATED},
	{CONN_AVAILABLE, HEALTH_OK, CE_ADDED, CONN_ADDED, HEALTH_OK, EVENT_NONE},
	{CALL, HEALTH_OK, CE_IMPORTED, AUTH, MISS, EVENT_UPDATED},
	{AUTH, MISS, CE_IMPORTED, AUTH, MISS, EVENT_NONE},
	{AUTH, MISS, CE_REFRESHED, AUTH, MISS, EVENT_NONE},
	{AUTH, MISS, CE_FAILED, AUTH, PEND, EVENT_REFRESH_PENDING},
	{AUTH, PEND, CE_FAILED, AUTH, PEND, EVENT_NONE},
	{AUTH, PEND, CE_REFRESHED, AUTH, MISS, EVENT_REFRESH_RECOVERED},
	{AUTH, PEND, CE_IMPORTED, AUTH, MISS, EVENT_REFRESH_RECOVERED},
	{AUTH, MISS, CE_DEAD, DEAD, NEEDS, EVENT_REFRESH_FAILED},
	{DEAD, NEEDS, CE_IMPORTED, AUTH, MISS, EVENT_UPDATED},
	{DEAD, NEEDS, CE_REFRESHED, AUTH, MISS, EVENT_REFRESH_RECOVERED},
	{DEAD, GONE, CE_IMPORTED, AUTH, MISS, EVENT_UPDATED},
	{DEAD, GONE, CE_REFRESHED, DEAD, GONE, EVENT_NONE},
	{CONN_ADDED, HEALTH_OK, CE_REFRESHED, AUTH, MISS, EVENT_UPDATED},
	{CONN_ADDED, HEALTH_OK, CE_FAILED, CONN_ADDED, PEND, EVENT_REFRESH_PENDING},
	{CALL, HEALTH_OK, CE_SETTINGS_MISSING, AUTH, MISS, EVENT_UPDATED},
};

START_TEST(every_transition)
{
	size_t i = (size_t)_i;
	struct conn_change to = connection_apply(transitions[i].s, transitions[i].h, transitions[i].ev, false);

	ck_assert_int_eq(to.state, transitions[i].to_s);
	ck_assert_int_eq(to.health, transitions[i].to_h);
	ck_assert_str_eq(event_type_word(to.event), event_type_word(transitions[i].tell));
}
END_TEST

START_TEST(without_a_required_setting_it_is_never_callable)
{
	const struct lacking *x = &lacking[_i];
	struct conn_change to = connection_apply(x->s, x->h, x->ev, true);

	ck_assert_int_eq(to.state, x->to_s);
	ck_assert_int_eq(to.health, x->to_h);
	ck_assert_str_eq(event_type_word(to.event), event_type_word(x->tell));
	for (int s = 0; s <= CONN_INVALID; s++) {
		for (int h = 0; h < N_HEALTHS; h++) {
			to = connection_apply((enum conn_state)s, (enum conn_health)h, x->ev, true);
			ck_assert_int_ne(to.state, CALL);
		}
	}
}
END_TEST

START_TEST(every_change_is_told_and_nothing_else)
{
	bool lacks = _i == 1;
	for (int s = 0; s <= CONN_INVALID; s++) {
		for (int h = 0; h < N_HEALTHS; h++) {
			for (int e = 0; e < N_EVENTS; e++) {
				struct conn_change to = connection_apply(
					(enum conn_state)s, (enum conn_health)h, (enum conn_event)e, lacks);
				if ((int)to.health != h)
					ck_assert_int_ne(to.event, EVENT_NONE);
				else if ((int)to.state == s)
					ck_assert_int_eq(to.event, EVENT_NONE);
				/* The same event once more has nothing new to say. */
				struct conn_change again =
					connection_apply(to.state, to.health, (enum conn_event)e, lacks);
				ck_assert_int_eq(again.event, EVENT_NONE);
				ck_assert_int_eq(again.state, to.state);
				ck_assert_int_eq(again.health, to.health);
			}
		}
	}
}
END_TEST

START_TEST(a_whole_life)
{
	struct conn_change c = connection_apply(CONN_ADDED, HEALTH_OK, CE_IMPORTED, false);
	static const struct {
		enum conn_event ev;
		enum event_type tell;
	} steps[] = {
		{CE_REFRESHED, EVENT_NONE},
		{CE_FAILED, EVENT_REFRESH_PENDING},
		{CE_FAILED, EVENT_NONE},
		{CE_FAILED, EVENT_NONE},
		{CE_REFRESHED, EVENT_REFRESH_RECOVERED},
		{CE_REFRESHED, EVENT_NONE},
		{CE_FAILED, EVENT_REFRESH_PENDING},
		{CE_DEAD, EVENT_REFRESH_FAILED},
		{CE_DEAD, EVENT_NONE},
		{CE_IMPORTED, EVENT_CALLABLE},
		{CE_DEAD, EVENT_REFRESH_FAILED},
		{CE_IMPORTED, EVENT_CALLABLE},
		{CE_IMPORTED, EVENT_NONE},
		{CE_REVOKED, EVENT_REVOKED},
		{CE_REFRESHED, EVENT_NONE},
	};

	ck_assert_int_eq(c.event, EVENT_CALLABLE);
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		c = connection_apply(c.state, c.health, steps[i].ev, false);
		ck_assert_int_eq(c.event, steps[i].tell);
	}
	ck_assert_int_eq(c.health, HEALTH_REVOKED);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("connection");
	TCase *t = tcase_create("connection");

	unit_add(t, words_parse_back);
	unit_add(t, foreign_words_are_not_found);
	unit_add(t, id_is_the_hash_of_the_length_prefixed_key);
	unit_add(t, parts_do_not_run_into_each_other);
	unit_add(t, slots_are_in_range_and_even);
	unit_add(t, good_keys_pass);
	unit_add(t, bad_keys_name_their_part);
	unit_add(t, table_has_every_pair_once);
	tcase_add_loop_test(t, every_transition, 0, (int)(sizeof(transitions) / sizeof(transitions[0])));
	tcase_add_loop_test(t, without_a_required_setting_it_is_never_callable, 0, (int)(sizeof(lacking) / sizeof(lacking[0])));
	tcase_add_loop_test(t, every_change_is_told_and_nothing_else, 0, 2);
	unit_add(t, a_whole_life);
	suite_add_tcase(s, t);
	return s;
}
