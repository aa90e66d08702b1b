/*
 * api_route - which handler a method and a path lead to, and what they need. One row each; nothing else knows a path.
 *
 * Parts are split first and decoded after, each exactly once, so that a service or consumer may hold any character and an
 * encoded slash never becomes a separator.
 */
#include "api/api_priv.h"

#include <string.h>

#include "base/mem.h"
#include "api/api_webhooks.h"

#define PART_MAX 600

#define CONNECTION "/vault/connections/{unified_api}/{service_id}"
const struct api_route api_routes[] = {
	{ "import", HTTPD_POST, CONNECTION "/import", API_WRITE, API_CONSUMER, api_do_import, false },
	{ "list", HTTPD_GET, "/vault/connections", API_READ, API_CONSUMER_OPTIONAL, api_do_list, true },
	{ "get", HTTPD_GET, CONNECTION, API_READ, API_CONSUMER, api_do_get, true },
	{ "update", HTTPD_PATCH, CONNECTION, API_WRITE, API_CONSUMER, api_do_update, false },
	{ "delete", HTTPD_DELETE, CONNECTION, API_WRITE, API_CONSUMER, api_do_delete, true },
	{ "validate", HTTPD_POST, CONNECTION "/validate", API_WRITE, API_CONSUMER, api_do_validate, false },
	{ "token", HTTPD_POST, CONNECTION "/token", API_WRITE, API_CONSUMER, api_do_token, false },
	{ "credentials", HTTPD_GET, CONNECTION "/credentials", API_CREDENTIALS, API_CONSUMER, api_do_credentials, true },
	{ "consumers", HTTPD_GET, "/vault/consumers", API_READ, API_NO_CONSUMER, api_do_consumers, true },
	{ "consumer", HTTPD_GET, "/vault/consumers/{id}", API_READ, API_NO_CONSUMER, api_do_consumer, true },
	{ "consumer_delete", HTTPD_DELETE, "/vault/consumers/{id}", API_WRITE, API_NO_CONSUMER, api_do_consumer_delete, true },
	{ "logs", HTTPD_GET, "/vault/logs", API_READ, API_CONSUMER_OPTIONAL, api_do_logs, true },
	{ "hook_create", HTTPD_POST, "/webhook/webhooks", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_create, false },
	{ "hook_list", HTTPD_GET, "/webhook/webhooks", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_list, true },
	{ "hook", HTTPD_GET, "/webhook/webhooks/{id}", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_get, true },
	{ "hook_update", HTTPD_PATCH, "/webhook/webhooks/{id}", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_update, false },
	{ "hook_delete", HTTPD_DELETE, "/webhook/webhooks/{id}", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_delete, true },
	{ "hook_rotate", HTTPD_POST, "/webhook/webhooks/{id}/rotate-secret", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_rotate, false },
	{ "hook_redeliver", HTTPD_POST, "/webhook/webhooks/{id}/redeliver", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_redeliver, false },
	{ "hook_logs", HTTPD_GET, "/webhook/logs", API_WEBHOOKS, API_NO_CONSUMER, api_do_hook_logs, true },
	{ "openapi", HTTPD_GET, "/openapi.json", API_OPEN, API_NO_CONSUMER, api_do_openapi, true },
};
const size_t api_n_routes = sizeof api_routes / sizeof *api_routes;

void api_match_init(struct api_match *m)
{
	*m = (struct api_match){ .route = NULL };
	buf_init(&m->unified_api, PART_MAX);
	buf_init(&m->service_id, PART_MAX);
	buf_init(&m->id, PART_MAX);
}

void api_match_fini(struct api_match *m)
{
	buf_fini(&m->unified_api);
	buf_fini(&m->service_id);
	buf_fini(&m->id);
}

static struct buf *slot_of(struct api_match *m, const char *name, size_t n)
{
	if (n == 13 && memcmp(name, "{unified_api}", n) == 0)
		return &m->unified_api;
	if (n == 12 && memcmp(name, "{service_id}", n) == 0)
		return &m->service_id;
	ALWAYS(n == 4 && memcmp(name, "{id}", n) == 0);
	return &m->id;
}

/* Does `path` have the shape of `pattern`? Part by part; with `m` the variable ones are decoded on the way. */
static bool fits(const char *pattern, const char *path, struct api_match *m, int *error)
{
	while (*pattern != '\0' || *path != '\0') {
		if (*pattern != '/' || *path != '/')
			return false;
		pattern++;
		path++;
		size_t want = strcspn(pattern, "/"), have = strcspn(path, "/");
		if (pattern[0] == '{') {
			if (have == 0)
				return false;
			struct buf *slot = m != NULL ? slot_of(m, pattern, want) : NULL;
			if (slot != NULL && str_percent_decode(slot, path, have, false) != 0)
				*error = ST_SYNTAX;
			else if (slot != NULL && !str_is_utf8(slot->data, slot->len))
				*error = ST_SYNTAX;
		} else if (want != have || memcmp(pattern, path, want) != 0) {
			return false;
		}
		pattern += want;
		path += have;
	}
	return true;
}

int api_match(const char *path, enum httpd_method method, struct api_match *m)
{
	int error = 0;
	if (method == HTTPD_HEAD)
		method = HTTPD_GET;
	for (size_t i = 0; i < api_n_routes; i++) {
		if (!fits(api_routes[i].path, path, NULL, NULL))
			continue;
		m->allowed |= api_routes[i].method;
		if (api_routes[i].method != method)
			continue;
		m->route = &api_routes[i];
		(void)fits(api_routes[i].path, path, m, &error);
	}
	return error;
}
