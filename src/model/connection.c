/*
 * connection - identity, words, and the one table of what may happen to a connection.
 *
 * The table is keyed by health, because health tells how the last refreshes went; the state only adds two
 * rules that hold for every row (see connection_apply). It decides and never acts: it knows no row, no clock
 * and no token. Every row has its reason beside it, and the documentation is checked against the rows.
 */
#include "model/connection.h"

#include <string.h>

#include "base/bytes.h"
#include "base/crypto.h"
#include "base/mem.h"
#include "base/str.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

static const char *const state_words[] = {
#define X(id, word) [id] = (word),
	CONN_STATE_LIST(X)
#undef X
};
static const char *const health_words[] = {
#define X(id, word) [id] = (word),
	CONN_HEALTH_LIST(X)
#undef X
};
static const char *const auth_words[] = {
#define X(id, word) [id] = (word),
	AUTH_TYPE_LIST(X)
#undef X
};
static const char *const reason_words[] = {
#define X(id, word, text) [id] = (word),
	REASON_LIST(X)
#undef X
};
static const char *const reason_texts[] = {
#define X(id, word, text) [id] = (text),
	REASON_LIST(X)
#undef X
};

static const char *word_of(const char *const *words, size_t n, unsigned i)
{
	ALWAYS(i < n);
	return words[i];
}

static int find_word(const char *const *words, size_t n, const char *s, unsigned *out)
{
	for (unsigned i = 0; i < n; i++) {
		if (strcmp(words[i], s) == 0) {
			*out = i;
			return 0;
		}
	}
	return ST_NOT_FOUND;
}

const char *conn_state_word(enum conn_state s)
{
	return word_of(state_words, N(state_words), s);
}

const char *conn_health_word(enum conn_health h)
{
	return word_of(health_words, N(health_words), h);
}

const char *auth_type_word(enum auth_type t)
{
	return word_of(auth_words, N(auth_words), t);
}

const char *reason_word(enum reason r)
{
	return word_of(reason_words, N(reason_words), r);
}

const char *reason_text(enum reason r)
{
	return word_of(reason_texts, N(reason_texts), r);
}

int conn_state_parse(const char *s, enum conn_state *out)
{
	unsigned i;
	int rc = find_word(state_words, N(state_words), s, &i);
	if (rc == 0)
		*out = (enum conn_state)i;
	return rc;
}

int conn_health_parse(const char *s, enum conn_health *out)
{
	unsigned i;
	int rc = find_word(health_words, N(health_words), s, &i);
	if (rc == 0)
		*out = (enum conn_health)i;
	return rc;
}

int auth_type_parse(const char *s, enum auth_type *out)
{
	unsigned i;
	int rc = find_word(auth_words, N(auth_words), s, &i);
	if (rc == 0)
		*out = (enum auth_type)i;
	return rc;
}

int reason_parse(const char *s, enum reason *out)
{
	unsigned i;
	int rc = find_word(reason_words, N(reason_words), s, &i);
	if (rc == 0)
		*out = (enum reason)i;
	return rc;
}

#define ID_PART_MAX 200
#define NAME_PART_MAX 64
/* The four parts at their longest, each behind its length in four bytes, big-endian. */
#define KEY_TEXT_MAX (2 * (4 + ID_PART_MAX) + 2 * (4 + NAME_PART_MAX))

static void put_part(struct buf *b, const char *part)
{
	size_t n = strlen(part);
	uint8_t len[4];

	bytes_put_be32(len, (uint32_t)n);
	/* conn_key_check comes first everywhere, so a part that does not fit is a fault of ours. */
	ALWAYS(buf_append(b, len, sizeof(len)) == 0);
	ALWAYS(buf_append(b, part, n) == 0);
}

void conn_id_of(const struct conn_key *k, uint8_t id[16])
{
	struct buf text = BUF_INIT(KEY_TEXT_MAX);
	uint8_t hash[32];

	put_part(&text, k->application_id);
	put_part(&text, k->consumer_id);
	put_part(&text, k->unified_api);
	put_part(&text, k->service_id);
	crypto_sha256(text.data, text.len, hash);
	buf_fini(&text);
	memcpy(id, hash, 16);
	id[6] = (uint8_t)((id[6] & 0x0f) | 0x80);
	id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
}

int16_t conn_slot_of(const uint8_t id[16])
{
	return (int16_t)(((unsigned)id[0] << 2) | ((unsigned)id[1] >> 6));
}

static int check_id_part(const char *name, const char *s, struct fault *f)
{
	size_t n = s == NULL ? 0 : strlen(s);

	if (n == 0)
		return fault_set(f, ST_INVALID, "%s is empty", name);
	if (n > ID_PART_MAX)
		return fault_set(f, ST_INVALID, "%s is longer than %d bytes", name, ID_PART_MAX);
	if (!str_is_utf8(s, n))
		return fault_set(f, ST_INVALID, "%s is not UTF-8", name);
	if (str_has_ctl(s, n))
		return fault_set(f, ST_INVALID, "%s holds a control character", name);
	return 0;
}

static int check_name_part(const char *name, const char *s, struct fault *f)
{
	static const char first[] = "abcdefghijklmnopqrstuvwxyz0123456789";
	static const char rest[] = "abcdefghijklmnopqrstuvwxyz0123456789_-";
	size_t n = s == NULL ? 0 : strlen(s);

	if (n == 0)
		return fault_set(f, ST_INVALID, "%s is empty", name);
	if (n > NAME_PART_MAX)
		return fault_set(f, ST_INVALID, "%s is longer than %d bytes", name, NAME_PART_MAX);
	if (strchr(first, s[0]) == NULL || strspn(s, rest) != n)
		return fault_set(f, ST_INVALID,
			"%s must be a-z, 0-9, '_' or '-', and start with a letter or digit", name);
	return 0;
}

int conn_key_check(const struct conn_key *k, struct fault *f)
{
	int rc = check_id_part("application_id", k->application_id, f);
	if (rc == 0)
		rc = check_id_part("consumer_id", k->consumer_id, f);
	if (rc == 0)
		rc = check_name_part("unified_api", k->unified_api, f);
	if (rc == 0)
		rc = check_name_part("service_id", k->service_id, f);
	return rc;
}

#define TO(s, h, e)                                                                                          \
	{                                                                                                    \
		.state = (s), .health = (h), .event = (e)                                                    \
	}
#define WELL(e) TO(CONN_CALLABLE, HEALTH_OK, e)
#define BLANK(e) TO(CONN_ADDED, HEALTH_OK, e)
#define PENDING(e) TO(CONN_CALLABLE, HEALTH_PENDING, e)
#define DEAD(e) TO(CONN_INVALID, HEALTH_NEEDS_AUTH, e)
#define UNSET(e) TO(CONN_AUTHORIZED, HEALTH_MISSING_SETTINGS, e)
#define REVOKED(e) TO(CONN_INVALID, HEALTH_REVOKED, e)

/* clang-format off */
static const struct conn_rule rules[] = {
	{ HEALTH_OK, CE_IMPORTED, WELL(EVENT_NONE),
	  "newer tokens for a connection that works; the importer tells created from updated" },
	{ HEALTH_OK, CE_REFRESHED, WELL(EVENT_NONE),
	  "the ordinary case is silent" },
	{ HEALTH_OK, CE_FAILED, PENDING(EVENT_REFRESH_PENDING),
	  "the first failure is told once; the tokens are kept and retried" },
	{ HEALTH_OK, CE_DEAD, DEAD(EVENT_REFRESH_FAILED),
	  "a grant that is dead at the first try skips pending, which is for what may recover" },
	{ HEALTH_OK, CE_SETTINGS_MISSING, UNSET(EVENT_UPDATED),
	  "the state changes and no narrower event names it, so a receiver that mirrors states hears "
	  "updated; it is no failed refresh, for nothing was sent" },
	{ HEALTH_OK, CE_REVOKED, REVOKED(EVENT_REVOKED),
	  "its owner took the grant back" },
	{ HEALTH_OK, CE_ADDED, BLANK(EVENT_NONE),
	  "the importer tells created from updated; callable comes with the tokens" },
	{ HEALTH_OK, CE_SETTINGS_FILLED, WELL(EVENT_NONE),
	  "nothing was missing" },

	{ HEALTH_PENDING, CE_IMPORTED, WELL(EVENT_REFRESH_RECOVERED),
	  "new tokens end the failure cycle that a receiver was told of" },
	{ HEALTH_PENDING, CE_REFRESHED, WELL(EVENT_REFRESH_RECOVERED),
	  "a success ends the cycle" },
	{ HEALTH_PENDING, CE_FAILED, PENDING(EVENT_NONE),
	  "pending is told once in a cycle" },
	{ HEALTH_PENDING, CE_DEAD, DEAD(EVENT_REFRESH_FAILED),
	  "the grant is dead or the retry window is over" },
	{ HEALTH_PENDING, CE_SETTINGS_MISSING, UNSET(EVENT_UPDATED),
	  "the missing setting is what a person has to see; retrying cannot help" },
	{ HEALTH_PENDING, CE_REVOKED, REVOKED(EVENT_REVOKED),
	  "its owner took the grant back" },
	{ HEALTH_PENDING, CE_ADDED, BLANK(EVENT_UPDATED),
	  "it begins anew: what was failing was another grant's" },
	{ HEALTH_PENDING, CE_SETTINGS_FILLED, PENDING(EVENT_NONE),
	  "a setting ends no failure; what can be called now is told as callable" },

	{ HEALTH_NEEDS_AUTH, CE_IMPORTED, WELL(EVENT_CALLABLE),
	  "a person logged in again" },
	{ HEALTH_NEEDS_AUTH, CE_REFRESHED, WELL(EVENT_REFRESH_RECOVERED),
	  "a refresh by hand proved the grant alive after all" },
	{ HEALTH_NEEDS_AUTH, CE_FAILED, DEAD(EVENT_NONE),
	  "a failed try by hand proves nothing new" },
	{ HEALTH_NEEDS_AUTH, CE_DEAD, DEAD(EVENT_NONE),
	  "dead is told once" },
	{ HEALTH_NEEDS_AUTH, CE_SETTINGS_MISSING, DEAD(EVENT_NONE),
	  "a setting does not bring back a dead grant" },
	{ HEALTH_NEEDS_AUTH, CE_REVOKED, REVOKED(EVENT_REVOKED),
	  "revoking is its owner's word and stronger than our finding" },
	{ HEALTH_NEEDS_AUTH, CE_ADDED, BLANK(EVENT_UPDATED),
	  "its owner added it again" },
	{ HEALTH_NEEDS_AUTH, CE_SETTINGS_FILLED, DEAD(EVENT_NONE),
	  "a setting does not bring back a dead grant" },

	{ HEALTH_MISSING_SETTINGS, CE_IMPORTED, WELL(EVENT_CALLABLE),
	  "it came with its settings" },
	{ HEALTH_MISSING_SETTINGS, CE_REFRESHED, WELL(EVENT_CALLABLE),
	  "the settings are there now" },
	{ HEALTH_MISSING_SETTINGS, CE_FAILED, PENDING(EVENT_REFRESH_PENDING),
	  "a request was built, so the settings are there: the first failure of a new cycle" },
	{ HEALTH_MISSING_SETTINGS, CE_DEAD, DEAD(EVENT_REFRESH_FAILED),
	  "the settings are there now and the grant is dead" },
	{ HEALTH_MISSING_SETTINGS, CE_SETTINGS_MISSING, UNSET(EVENT_NONE),
	  "told already" },
	{ HEALTH_MISSING_SETTINGS, CE_REVOKED, REVOKED(EVENT_REVOKED),
	  "its owner took the grant back" },
	{ HEALTH_MISSING_SETTINGS, CE_ADDED, BLANK(EVENT_UPDATED),
	  "it brings its settings; a request that still misses one says so again" },
	{ HEALTH_MISSING_SETTINGS, CE_SETTINGS_FILLED, WELL(EVENT_UPDATED),
	  "told as callable where there are tokens" },

	{ HEALTH_REVOKED, CE_IMPORTED, WELL(EVENT_CALLABLE),
	  "its owner connected again" },
	{ HEALTH_REVOKED, CE_REFRESHED, REVOKED(EVENT_NONE),
	  "a late success does not undo its owner's word" },
	{ HEALTH_REVOKED, CE_FAILED, REVOKED(EVENT_NONE),
	  "nothing is expected to work" },
	{ HEALTH_REVOKED, CE_DEAD, REVOKED(EVENT_NONE),
	  "a revoked grant is dead by design" },
	{ HEALTH_REVOKED, CE_SETTINGS_MISSING, REVOKED(EVENT_NONE),
	  "a setting does not bring back a revoked grant" },
	{ HEALTH_REVOKED, CE_REVOKED, REVOKED(EVENT_NONE),
	  "told already" },
	{ HEALTH_REVOKED, CE_ADDED, BLANK(EVENT_UPDATED),
	  "its owner added it again" },
	{ HEALTH_REVOKED, CE_SETTINGS_FILLED, REVOKED(EVENT_NONE),
	  "a setting does not bring back a revoked grant" },
};
/* clang-format on */

const struct conn_rule *connection_rule(unsigned i)
{
	return i < N(rules) ? &rules[i] : NULL;
}

static const struct conn_rule *rule_for(enum conn_health health, enum conn_event ev)
{
	for (size_t i = 0; i < N(rules); i++)
		if (rules[i].from == health && rules[i].ev == ev)
			return &rules[i];
	return NULL;
}

/* Tokens without what the service needs: kept and refreshed like any others, and not called with. */
static struct conn_change without_settings(enum conn_state state, enum conn_health health, struct conn_change to)
{
	to.state = CONN_AUTHORIZED;
	if (to.health == HEALTH_OK)
		to.health = HEALTH_MISSING_SETTINGS;
	if (to.state == state && to.health == health)
		to.event = EVENT_NONE;
	else if (to.event == EVENT_NONE || to.event == EVENT_CALLABLE)
		to.event = EVENT_UPDATED;
	return to;
}

struct conn_change connection_apply(enum conn_state state, enum conn_health health, enum conn_event ev, bool lacks)
{
	bool brings_tokens = ev == CE_IMPORTED || ev == CE_REFRESHED;

	/* What is not there cannot fail or be revoked. */
	if (state == CONN_AVAILABLE && !brings_tokens && ev != CE_ADDED)
		return (struct conn_change){.state = state, .health = health, .event = EVENT_NONE};

	const struct conn_rule *r = rule_for(health, ev);
	ALWAYS(r != NULL);
	struct conn_change to = r->to;
	if (state == CONN_ADDED && !brings_tokens && to.state != CONN_INVALID)
		to.state = CONN_ADDED;
	if (lacks && to.state == CONN_CALLABLE)
		return without_settings(state, health, to);
	bool becomes_callable = to.state == CONN_CALLABLE && state != CONN_CALLABLE && (brings_tokens || ev == CE_SETTINGS_FILLED);
	if (becomes_callable && (ev != CE_REFRESHED || to.event == EVENT_NONE))
		to.event = EVENT_CALLABLE;
	return to;
}
