/*
 * budget - limits, token buckets and breakers.
 *
 * A provider's breaker opens after FAULTS_TO_OPEN answers in a row that are faults of the provider (or of the way to it),
 * a client's breaker with the first client_broken. Open means: nothing starts until the pause is over, then one canary; if
 * that fails, the pause doubles up to its cap. Of several daemons each keeps its own part: rates are divided exactly, numbers
 * of requests to the last one (the first daemons get the remainder), but never to nothing, because connections that nobody else
 * looks after would wait for ever: a limit below the number of daemons becomes one for each.
 * Must not: mark a connection, do I/O, or look at the wall clock.
 */
#include "service/budget.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"
#include "model/policy.h"

#define FAULTS_TO_OPEN 5
#define PROVIDER_PAUSE_US (US_PER_S)
#define PROVIDER_PAUSE_CAP_US (60 * US_PER_S)
#define CLIENT_PAUSE_US (30 * US_PER_S)
#define CLIENT_PAUSE_CAP_US (30 * 60 * US_PER_S)

struct breaker {
	bool open;
	bool canary; /* the one probe is out */
	unsigned faults; /* in a row */
	unsigned openings; /* pauses in a row */
	int64_t until_us;
};

struct site { /* one provider */
	struct site *next;
	char *key;
	bool known;
	unsigned max_in_flight, in_flight;
	double rate, tokens, burst;
	int64_t filled_us;
	int64_t hold_until_us; /* Retry-After of a 429 */
	struct breaker breaker;
};

struct gate { /* one (provider, client); client_app NULL: nobody is configured for it */
	struct gate *next;
	struct site *site;
	char *application; /* that asked */
	bool has_client;
	struct breaker *breaker; /* shared by all gates of one client */
	bool canary_site, canary_client; /* what the one in flight was let through as */
};

struct client_breaker {
	struct client_breaker *next;
	char *provider, *application; /* the client's, "*" included */
	struct breaker breaker;
};

#define BUCKETS 1024

struct budget {
	struct site *sites;
	struct gate *gates[BUCKETS];
	struct client_breaker *clients;
	struct conf *conf;
	struct budget_share share;
};

struct budget *budget_new(void)
{
	struct budget *b = mem_alloc(sizeof *b);
	b->share.of = 1;
	return b;
}

void budget_free(struct budget *b)
{
	if (b == NULL)
		return;
	for (unsigned i = 0; i < BUCKETS; i++) {
		while (b->gates[i] != NULL) {
			struct gate *g = b->gates[i];
			b->gates[i] = g->next;
			mem_free(g->application);
			mem_free(g);
		}
	}
	while (b->sites != NULL) {
		struct site *s = b->sites;
		b->sites = s->next;
		mem_free(s->key);
		mem_free(s);
	}
	while (b->clients != NULL) {
		struct client_breaker *c = b->clients;
		b->clients = c->next;
		mem_free(c->provider);
		mem_free(c->application);
		mem_free(c);
	}
	conf_unref(b->conf);
	mem_free(b);
}

/* ---------------------------------------------------------------- definitions */

static void define_site(const struct budget *b, struct site *s)
{
	const struct provider *p = b->conf != NULL ? conf_provider(b->conf, s->key) : NULL;
	s->known = p != NULL && p->auth_type == AUTH_OAUTH2;
	if (!s->known)
		return;
	unsigned of = b->share.of, share = p->max_in_flight / of + (b->share.rank < p->max_in_flight % of);
	s->max_in_flight = share > 0 ? share : 1;
	s->rate = p->rate_per_s / of;
	/* One second's worth may go at once; a slow rate still lets a whole request through. */
	s->burst = s->rate > 1 ? s->rate : 1;
	if (s->tokens > s->burst)
		s->tokens = s->burst;
}

static void define_gate(struct budget *b, struct gate *g)
{
	const struct client *c = b->conf != NULL ? conf_client(b->conf, g->application, g->site->key) : NULL;
	g->has_client = c != NULL;
	if (c == NULL)
		return;
	struct client_breaker *k = b->clients;
	while (k != NULL && (strcmp(k->provider, c->provider) != 0 || strcmp(k->application, c->application) != 0))
		k = k->next;
	if (k == NULL) {
		k = mem_alloc(sizeof *k);
		k->provider = mem_strdup(c->provider);
		k->application = mem_strdup(c->application);
		k->next = b->clients;
		b->clients = k;
	}
	if (g->breaker != &k->breaker && g->canary_client) { /* the probe is another client's now; its end cannot tell this one */
		g->breaker->canary = false;
		g->canary_client = false;
	}
	g->breaker = &k->breaker;
}

void budget_set(struct budget *b, struct conf *c, struct budget_share share)
{
	ALWAYS(share.of > 0 && share.rank < share.of);
	struct conf *old = b->conf;
	bool changed = old != c;
	b->conf = conf_ref(c);
	b->share = share;
	for (struct site *s = b->sites; s != NULL; s = s->next)
		define_site(b, s);
	for (unsigned i = 0; i < BUCKETS && changed; i++) {
		for (struct gate *g = b->gates[i]; g != NULL; g = g->next)
			define_gate(b, g);
	}
	/* A new configuration may have mended the client: let the next canary go at once. */
	for (struct client_breaker *k = b->clients; k != NULL && changed; k = k->next)
		k->breaker.until_us = 0;
	conf_unref(old);
}

static struct site *get_site(struct budget *b, const char *key)
{
	for (struct site *s = b->sites; s != NULL; s = s->next) {
		if (strcmp(s->key, key) == 0)
			return s;
	}
	struct site *s = mem_alloc(sizeof *s);
	s->key = mem_strdup(key);
	s->filled_us = sys_mono_us();
	define_site(b, s);
	/* Daemons that start together do not all send their first request of a slow provider at once. */
	s->tokens = s->burst > 1 ? s->burst : 1 - (double)b->share.rank / b->share.of;
	s->next = b->sites;
	b->sites = s;
	return s;
}

static unsigned hash(const char *application, const char *service_id)
{
	uint32_t h = str_hash(STR_HASH, application);
	return str_hash(str_hash(h, "\xff"), service_id) % BUCKETS; /* a byte that is in neither */
}

struct gate *budget_gate(struct budget *b, const char *application, const char *service_id)
{
	unsigned i = hash(application, service_id);
	for (struct gate *g = b->gates[i]; g != NULL; g = g->next) {
		if (strcmp(g->application, application) == 0 && strcmp(g->site->key, service_id) == 0)
			return g;
	}
	struct gate *g = mem_alloc(sizeof *g);
	g->site = get_site(b, service_id);
	g->application = mem_strdup(application);
	define_gate(b, g);
	g->next = b->gates[i];
	b->gates[i] = g;
	return g;
}

enum gate_lack gate_lack(const struct gate *g)
{
	if (!g->site->known)
		return GATE_NO_PROVIDER;
	return g->has_client ? GATE_FINE : GATE_NO_CLIENT;
}

/* ---------------------------------------------------------------- may it go? */

static void fill(struct site *s, int64_t now_us)
{
	if (now_us <= s->filled_us)
		return;
	s->tokens += s->rate * (double)(now_us - s->filled_us) / (double)US_PER_S;
	if (s->tokens > s->burst)
		s->tokens = s->burst;
	s->filled_us = now_us;
}

static int64_t breaker_when(const struct breaker *k)
{
	if (!k->open)
		return 0;
	return k->canary ? BUDGET_UNKNOWN : k->until_us;
}

static int64_t later(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

int64_t gate_when(struct gate *g, int64_t now_us)
{
	struct site *s = g->site;
	if (gate_lack(g) != GATE_FINE || s->in_flight >= s->max_in_flight)
		return BUDGET_UNKNOWN;
	int64_t when = later(breaker_when(&s->breaker), breaker_when(g->breaker));
	when = later(when, s->hold_until_us);
	if (s->rate <= 0 || when == BUDGET_UNKNOWN)
		return when;
	fill(s, now_us);
	if (s->tokens >= 1)
		return when;
	int64_t wait = (int64_t)((1 - s->tokens) / s->rate * (double)US_PER_S) + 1;
	return later(when, now_us + wait);
}

void gate_take(struct gate *g, int64_t now_us)
{
	struct site *s = g->site;
	fill(s, now_us);
	s->in_flight++;
	if (s->rate > 0)
		s->tokens -= 1;
	if (s->breaker.open) {
		s->breaker.canary = true;
		g->canary_site = true;
	}
	if (g->breaker->open) {
		g->breaker->canary = true;
		g->canary_client = true;
	}
}

/* Who holds the canary is not told apart from others of the same gate that were in flight before the breaker opened:
 * the first of them to end frees it, which at worst sends one more probe. */
static void canary_back(struct gate *g)
{
	if (g->canary_site)
		g->site->breaker.canary = g->canary_site = false;
	if (g->canary_client)
		g->breaker->canary = g->canary_client = false;
}

void gate_give_back(struct gate *g)
{
	ALWAYS(g->site->in_flight > 0);
	g->site->in_flight--;
	if (g->site->rate > 0)
		g->site->tokens += 1;
	canary_back(g);
}

/* ---------------------------------------------------------------- what came of it */

static void pause_breaker(struct breaker *k, int64_t base, int64_t cap, int64_t now_us)
{
	k->openings++;
	k->until_us = now_us + policy_backoff_us(k->openings, base, cap, sys_random_unit());
	k->canary = false;
}

/* True when it opened just now. */
static bool fault_seen(struct breaker *k, unsigned needed, int64_t base, int64_t cap, int64_t now_us)
{
	k->faults++;
	if (k->open) {
		if (now_us >= k->until_us) /* a canary failed; stragglers from before do not lengthen the pause */
			pause_breaker(k, base, cap, now_us);
		return false;
	}
	if (k->faults < needed)
		return false;
	k->open = true;
	pause_breaker(k, base, cap, now_us);
	return true;
}

/* True when it closed just now. */
static bool success_seen(struct breaker *k)
{
	bool was_open = k->open;
	memset(k, 0, sizeof *k);
	return was_open;
}

static enum gate_change on_answer(struct gate *g)
{
	/* Any answer to a well-formed request, even a refusal of this one grant, shows that provider and client work. */
	bool site = success_seen(&g->site->breaker), client = success_seen(g->breaker);
	if (client)
		return GATE_CLIENT_CLOSED;
	return site ? GATE_PROVIDER_CLOSED : GATE_SAME;
}

enum gate_change gate_done(struct gate *g, enum outcome o, int64_t retry_after_us, int64_t now_us)
{
	struct site *s = g->site;
	ALWAYS(s->in_flight > 0);
	s->in_flight--;
	canary_back(g);
	switch (o) {
	case OUTCOME_REFRESHED:
	case OUTCOME_GRANT_DEAD:
		return on_answer(g);
	case OUTCOME_CLIENT_BROKEN:
		return fault_seen(g->breaker, 1, CLIENT_PAUSE_US, CLIENT_PAUSE_CAP_US, now_us) ? GATE_CLIENT_OPENED : GATE_SAME;
	case OUTCOME_RATE_LIMITED:
		/* One that asks for less does not take back what another one was told. */
		s->hold_until_us = later(s->hold_until_us, now_us + (retry_after_us > 0 ? retry_after_us : US_PER_S));
		return GATE_SAME;
	case OUTCOME_TRANSIENT:
	case OUTCOME_NEVER_SENT:
	case OUTCOME_IN_DOUBT:
	case OUTCOME_MALFORMED:
	case OUTCOME_COUNT:
		break;
	}
	return fault_seen(&s->breaker, FAULTS_TO_OPEN, PROVIDER_PAUSE_US, PROVIDER_PAUSE_CAP_US, now_us) ? GATE_PROVIDER_OPENED : GATE_SAME;
}

bool gate_is_open(const struct gate *g)
{
	return g->site->breaker.open || (g->breaker != NULL && g->breaker->open);
}

double gate_rate(const struct gate *g)
{
	return g->site->rate;
}

unsigned gate_in_flight(const struct gate *g)
{
	return g->site->in_flight;
}

const char *gate_provider(const struct gate *g)
{
	return g->site->key;
}
