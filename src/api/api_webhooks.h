/*
 * api_webhooks - the handlers of /webhook: endpoints of an application, and what was delivered to them.
 */
#ifndef REFRESHD_SERVICE_API_WEBHOOKS_H
#define REFRESHD_SERVICE_API_WEBHOOKS_H

#include "api/api_priv.h"
#include "service/store_webhook_endpoint.h"
#include "service/webhook.h"
#include "service/webhook_rules.h"

api_fn api_do_hook_create, api_do_hook_list, api_do_hook_get, api_do_hook_update, api_do_hook_delete,
	api_do_hook_rotate;
api_fn api_do_hook_redeliver, api_do_hook_logs; /* api_webhook_log.c */

/* The id in the path, as it is stored; false: answered already. */
bool api_hook_id(struct api_call *c, char id[STR_UUID_BYTES]) MUST_USE;
void api_hook_missing(struct api_call *c);
void api_hook_time(struct jsonw *w, const char *name, int64_t wall_us); /* RFC 3339; left out when 0 */
/* A member of the body; NULL: not there, or null. */
struct json_object *api_hook_member(struct json_object *body, const char *name);
#define API_HOOK_PAGE 20
#define API_HOOK_PAGE_MAX 200

#endif
