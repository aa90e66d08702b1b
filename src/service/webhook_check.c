/*
 * webhook_check - asks a new endpoint whether it wants to be one: a signed test event that it must answer
 * with 2xx.
 *
 * Nobody may subscribe an address that does not agree to it. The check is under no lease and leaves nothing
 * behind; its number is limited, so that it is no way to make us call out at will. Must not: tell more of the
 * answer than its status.
 */
#include "service/webhook_priv.h"

#include <string.h>

#include "base/jsonw.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"

#define CHECK_MAGIC UINT32_C(0x7768636b)
#define CHECKS_MAX 16
#define CHECKS_OF_ONE 4 /* an application whose receivers hang must not keep the others from making theirs */
#define ENTITY_MAX 4096

struct webhook_check {
	uint32_t magic;
	struct webhook *owner;
	struct webhook_check *next, *prev;
	struct httpc_call *call; /* NULL: ended */
	char *application;
	webhook_checked_fn *fn;
	void *arg;
};

static void check_free(struct webhook_check *k)
{
	if (k->next != NULL)
		k->next->prev = k->prev;
	if (k->prev != NULL)
		k->prev->next = k->next;
	else
		k->owner->checks = k->next;
	if (k->call != NULL)
		httpc_cancel(k->call);
	mem_free(k->application);
	k->magic = 0;
	mem_free(k);
}

/* The last thing that is done with it: fn may do anything. */
static void end(struct webhook_check *k, int status, const char *error)
{
	webhook_checked_fn *fn = k->fn;
	void *arg = k->arg;
	check_free(k);
	fn(arg, status, error);
}

static void on_reply(void *arg, struct httpc_reply *r)
{
	struct webhook_check *k = arg;
	MAGIC_CHECK(k, CHECK_MAGIC);
	k->call = NULL;
	bool answered = r->result == HTTPC_COMPLETE || (r->error == HTTPC_E_TOO_LARGE && r->status != 0);
	if (!answered)
		end(k, r->status, httpc_error_word(r->error));
	else if (r->status >= 200 && r->status <= 299)
		end(k, r->status, NULL);
	else
		end(k, r->status, r->status >= 300 && r->status <= 399 ? "redirect" : "http_status");
}

static int build_entity(const char *endpoint_id, const char *application, struct buf *out, struct fault *f)
{
	struct jsonw w;
	jsonw_init(&w, out);
	jsonw_object(&w, NULL);
	jsonw_str(&w, "application_id", application);
	jsonw_str(&w, "id", endpoint_id);
	jsonw_object_end(&w);
	int e = jsonw_end(&w);
	return e == 0 ? 0 : fault_set(f, e, "the test event cannot be built: %s", status_text(e));
}

static int start(struct webhook_check *k, struct conf *c, const char *endpoint_id, const char *entity,
	const char *url, const struct webhook_keys *keys, struct fault *f)
{
	uint8_t event_id[16];
	sys_uuid7(event_id);
	const struct event_body body = {
		.entity_json = entity,
		.entity_id = endpoint_id,
		.entity_type = STORE_ENTITY_ENDPOINT,
		.event_id = event_id,
		.type = EVENT_TEST,
		.occurred_at = sys_wall_us(),
		.execution_attempt = 1,
	};
	const struct webhook_message m = {
		.body = &body, .url = url, .secret = &keys->hmac, .ed25519 = keys->ed25519, .of_api = true};
	return webhook_post(k->owner->httpc, c, &m, on_reply, k, &k->call, f);
}

int webhook_check(struct webhook *w, struct conf *c, const char *endpoint_id, const char *application,
	const char *url, const struct webhook_keys *keys, webhook_checked_fn *fn, void *arg, struct fault *f)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	unsigned n = 0, own = 0;
	for (const struct webhook_check *k = w->checks; k != NULL; k = k->next) {
		n++;
		own += strcmp(k->application, application) == 0;
	}
	if (n >= CHECKS_MAX || own >= CHECKS_OF_ONE)
		return fault_set(f, ST_FULL, "%u new endpoints are being checked already", n);
	struct buf entity = BUF_INIT(ENTITY_MAX);
	struct webhook_check *k = mem_alloc(sizeof *k);
	*k = (struct webhook_check){
		.magic = CHECK_MAGIC, .owner = w, .next = w->checks, .application = mem_strdup(application), .fn = fn, .arg = arg};
	if (k->next != NULL)
		k->next->prev = k;
	w->checks = k;
	int e = build_entity(endpoint_id, application, &entity, f);
	if (e == 0)
		e = start(k, c, endpoint_id, buf_str(&entity), url, keys, f);
	if (e != 0)
		check_free(k);
	buf_fini(&entity);
	return e;
}

void checks_cancel(struct webhook *w)
{
	while (w->checks != NULL)
		end(w->checks, 0, "canceled");
}

void webhook_end_checks(struct webhook *w)
{
	MAGIC_CHECK(w, WEBHOOK_MAGIC);
	checks_cancel(w);
}
