/*
 * api_key - API keys that were seen lately, by their hash: whose they are, what they may do, how fast they
 * may ask.
 *
 * A cache of fixed size, so that no caller can make it grow. What it holds is trusted for a few seconds only,
 * because a key may be revoked at any time. Only hashes are here, never a key. The bucket outlives the trust,
 * so that re-reading grants nothing.
 */
#include "api/api_key.h"

#include <string.h>

#include "base/crypto.h"
#include "base/mem.h"
#include "base/sys.h"

#define SETS 512
#define WAYS 4
#define TRUST_US (3 * US_PER_S)
/* A burst is what so many seconds allow. */
#define BURST_S 2.0

struct key_entry {
	uint8_t hash[32];
	char *application; /* NULL: empty */
	unsigned scopes;
	int64_t trusted_until, used_at; /* mono */
	double tokens;
	int64_t filled_at;
};

struct api_keys {
	struct key_entry set[SETS][WAYS];
};

struct api_keys *api_keys_new(void)
{
	return mem_alloc(sizeof(struct api_keys));
}

static void empty(struct key_entry *e)
{
	mem_free(e->application);
	mem_wipe(e, sizeof *e);
}

void api_keys_free(struct api_keys *k)
{
	if (k == NULL)
		return;
	for (size_t i = 0; i < SETS; i++) {
		for (size_t w = 0; w < WAYS; w++)
			empty(&k->set[i][w]);
	}
	mem_free(k);
}

static struct key_entry *set_of(struct api_keys *k, const uint8_t hash[32])
{
	return k->set[(hash[0] | (unsigned)hash[1] << 8) % SETS];
}

static struct key_entry *find(struct api_keys *k, const uint8_t hash[32])
{
	struct key_entry *set = set_of(k, hash), *found = NULL;
	for (size_t w = 0; w < WAYS; w++) {
		bool same = crypto_equal(set[w].hash, hash, 32);
		if (same && set[w].application != NULL)
			found = &set[w];
	}
	return found;
}

int api_keys_find(struct api_keys *k, const uint8_t hash[32], const char **app, unsigned *scopes)
{
	struct key_entry *e = find(k, hash);
	int64_t now = sys_mono_us();
	if (e == NULL || now >= e->trusted_until)
		return ST_NOT_FOUND;
	e->used_at = now;
	*app = e->application;
	*scopes = e->scopes;
	return 0;
}

bool api_keys_known(struct api_keys *k, const uint8_t hash[32])
{
	return find(k, hash) != NULL;
}

static unsigned scopes_of(const char *words)
{
	static const struct {
		const char *word;
		unsigned scopes;
	} known[] = {
		/* Who may write a connection is shown it in the answer anyway. */
		{"connections:write", API_WRITE | API_READ},
		{"connections:read", API_READ},
		{"credentials:read", API_CREDENTIALS},
		{"webhooks:write", API_WEBHOOKS},
	};
	unsigned scopes = 0;
	for (const char *s = words; *s != '\0';) {
		size_t n = strcspn(s, " ");
		for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
			if (strlen(known[i].word) == n && memcmp(known[i].word, s, n) == 0)
				scopes |= known[i].scopes;
		}
		s += n + strspn(s + n, " ");
	}
	return scopes;
}

static struct key_entry *oldest(struct key_entry *set)
{
	struct key_entry *old = &set[0];
	for (size_t w = 1; w < WAYS; w++) {
		if (set[w].used_at < old->used_at)
			old = &set[w];
	}
	return old;
}

unsigned api_keys_put(struct api_keys *k, const uint8_t hash[32], const char *app, const char *scopes)
{
	struct key_entry *e = find(k, hash);
	int64_t now = sys_mono_us();
	if (e == NULL) {
		e = oldest(set_of(k, hash));
		empty(e);
		memcpy(e->hash, hash, 32);
		e->tokens = -1;
	}
	char *name = mem_strdup(app);
	mem_free(e->application);
	e->application = name;
	e->scopes = scopes_of(scopes);
	e->trusted_until = now + TRUST_US;
	e->used_at = now;
	return e->scopes;
}

void api_keys_drop(struct api_keys *k, const uint8_t hash[32])
{
	struct key_entry *e = find(k, hash);
	if (e != NULL)
		empty(e);
}

int64_t api_keys_take(struct api_keys *k, const uint8_t hash[32], double rate_per_s)
{
	struct key_entry *e = find(k, hash);
	if (e == NULL || rate_per_s <= 0)
		return 0;
	int64_t now = sys_mono_us();
	double burst = rate_per_s * BURST_S < 1 ? 1 : rate_per_s * BURST_S;
	double gained = (double)(now - e->filled_at) / (double)US_PER_S * rate_per_s;
	e->tokens = e->tokens < 0 || e->tokens + gained > burst ? burst : e->tokens + gained;
	e->filled_at = now;
	if (e->tokens >= 1) {
		e->tokens -= 1;
		return 0;
	}
	return (int64_t)((1 - e->tokens) / rate_per_s * (double)US_PER_S) + 1;
}
