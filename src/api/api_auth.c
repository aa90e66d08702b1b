/*
 * api_auth - who calls: the key of a request, out of memory or out of the database.
 *
 * All who come with one key while it is looked up wait for that one look-up: a client that opens a hundred connections with a new key
 * is no flood. Look-ups of keys that nobody has used lately are few at a time, so that invented ones do not queue before the claims
 * in the database. Must not keep a key, only its hash.
 */
#include "api/api_key.h"

#include <string.h>

#include "base/crypto.h"
#include "base/mem.h"
#include "base/str.h"

#define KEY_MAX 512
#define STRANGERS_MAX 64

struct waiter {
	struct api_call *call;
	api_fn *again; /* NULL: the call begins */
};

struct api_asking {
	struct api_asking *next;
	struct api *api;
	uint8_t hash[32];
	bool stranger; /* it was not good lately */
	struct waiter *v;
	size_t n;
};

static void refuse_key(struct api_call *c)
{
	httpd_reply_header(c->req, "WWW-Authenticate", "Bearer");
	api_fail(c, API_UNAUTHORIZED, "the API key is missing, unknown or revoked");
}

static void go_on(const struct waiter *w, const char *app, unsigned scopes)
{
	struct api_call *c = w->call;
	if (w->again == NULL)
		api_authorized(c, app, scopes);
	else if (strcmp(app, c->application) == 0 && (c->route->scopes & scopes) != 0)
		w->again(c);
	else
		api_fail(c, API_UNAUTHORIZED, "the API key lacks the scope that this call needs");
}

/* What was found holds for all of them, however long it takes to go on with so many: a key is not trusted for long. */
static void answer(struct api *a, const struct api_asking *x, int code, const struct store_key *k)
{
	bool good = code == 0 && k != NULL && !k->revoked;
	unsigned scopes = good ? api_keys_put(a->keys, x->hash, k->application_id, k->scopes) : 0;
	if (code == 0 && !good)
		api_keys_drop(a->keys, x->hash);
	for (size_t i = 0; i < x->n; i++) {
		if (code != 0)
			api_fail_store(x->v[i].call, code);
		else if (!good)
			refuse_key(x->v[i].call);
		else
			go_on(&x->v[i], k->application_id, scopes);
	}
}

static void take_out(struct api *a, struct api_asking *x)
{
	struct api_asking **at = &a->asking;
	while (*at != x)
		at = &(*at)->next;
	*at = x->next;
}

static void on_key(void *arg, int code, const struct store_key *k)
{
	struct api_asking *x = arg;
	take_out(x->api, x); /* whoever asks from now on asks anew */
	answer(x->api, x, code, k);
	mem_free(x->v);
	mem_free(x);
}

static void join(struct api_asking *x, struct api_call *c, api_fn *again)
{
	x->v = mem_realloc(x->v, x->n + 1, sizeof *x->v);
	x->v[x->n++] = (struct waiter){ .call = c, .again = again };
}

static unsigned strangers(const struct api *a)
{
	unsigned n = 0;
	for (const struct api_asking *x = a->asking; x != NULL; x = x->next)
		n += x->stranger;
	return n;
}

static void ask(struct api_call *c, api_fn *again)
{
	struct api *a = c->api;
	for (struct api_asking *x = a->asking; x != NULL; x = x->next) {
		if (crypto_equal(x->hash, c->key_hash, sizeof x->hash)) {
			join(x, c, again);
			return;
		}
	}
	bool stranger = !api_keys_known(a->keys, c->key_hash);
	if (stranger && strangers(a) >= STRANGERS_MAX) {
		api_retry_after(c, 1);
		api_fail(c, API_UNAVAILABLE, "too many keys that are not known are being looked up");
		return;
	}
	struct api_asking *x = mem_alloc(sizeof *x);
	*x = (struct api_asking){ .next = a->asking, .api = a, .stranger = stranger };
	memcpy(x->hash, c->key_hash, sizeof x->hash);
	/* Who has waited for a refresh is served to the end, also while we end. */
	bool may_ask = again != NULL || api_can_ask(a);
	if (!may_ask || store_key_of(a->parts.store, x->hash, on_key, x) != 0) {
		mem_free(x);
		api_fail_away(c);
		return;
	}
	a->asking = x;
	join(x, c, again);
}

void api_auth_again(struct api_call *c, api_fn *again)
{
	const char *app;
	unsigned scopes;
	if (api_keys_find(c->api->keys, c->key_hash, &app, &scopes) == 0)
		go_on(&(struct waiter){ .call = c, .again = again }, app, scopes);
	else
		ask(c, again);
}

void api_authenticate(struct api_call *c)
{
	const char *given = httpd_header(c->req, "authorization");
	size_t n = given != NULL ? strlen(given) : 0;
	if (n <= 7 || n > KEY_MAX || !str_eq_nocase(given, 7, "bearer ")) {
		refuse_key(c);
		return;
	}
	given += 7 + strspn(given + 7, " ");
	crypto_sha256(given, strlen(given), c->key_hash);
	api_auth_again(c, NULL);
}
