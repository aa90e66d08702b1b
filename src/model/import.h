/*
 * import - one connection with its tokens as it comes in from outside: a line of JSON, or a request's body.
 *
 * Everything that is wrong is named at once, field by field, and never quoted: a value in the wrong place may be a
 * secret. What is missing here is decided against the service's definition by import_check. Pure.
 */
#ifndef REFRESHD_MODEL_IMPORT_H
#define REFRESHD_MODEL_IMPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <json-c/json.h>

#include "base/buf.h"
#include "base/status.h"
#include "model/connection.h"
#include "model/policy.h"
#include "model/provider.h"

#define IMPORT_LINE_MAX ((size_t)1024 * 1024) /* bytes of a line, or of a body */
#define IMPORT_TOKEN_MAX ((size_t)64 * 1024)
#define IMPORT_SETTINGS_MAX ((size_t)64 * 1024)  /* of the JSON text; metadata the same */
#define IMPORT_EXPIRES_IN_MAX INT64_C(10000000000) /* seconds */

struct import {
	char *application_id, *consumer_id, *unified_api, *service_id; /* NULL until set: a body does not carry them */
	struct buf access_token, refresh_token; /* secret; empty: none */
	int64_t issued_at;			/* wall us; 0: missing or null */
	int64_t expires_in_us;			/* -1: missing or null */
	bool has_settings, has_metadata;	/* objects; null counts as not given */
	struct buf settings, metadata;		/* compact JSON; settings secret */
};

/* What is wrong, a field each: `field` as a path ("credentials.access_token", "" for the whole), `text` a sentence. */
#define IMPORT_PROBLEMS_MAX 16
struct import_problems {
	struct {
		char field[72];
		char text[128];
	} v[IMPORT_PROBLEMS_MAX];
	size_t n;
	bool more; /* there were more than fit */
};
/* "field: text; field: text" */
int import_problems_text(const struct import_problems *p, struct buf *out) MUST_USE;

void import_init(struct import *i);
void import_fini(struct import *i); /* wipes */

/* A whole line or body: UTF-8, one JSON object. ST_SYNTAX or ST_INVALID with at least one problem; `out` must be
 * initialised and fresh. `with_key`: the four parts of the key are members too, and required. */
int import_parse(const char *s, size_t n, bool with_key, struct import *out, struct import_problems *p) MUST_USE;
/* Against the service: does it serve the unified API, and is there what its auth type needs? `provider` NULL: not
 * configured. Adds to `p`; ST_INVALID when anything was added. */
int import_check(const struct import *i, const struct provider *provider, struct import_problems *p) MUST_USE;

/* What the import is to the connection: it brings tokens (or needs none), or they are to be fetched. */
enum conn_event import_event(const struct import *i, const struct provider *p);

struct import_times { /* wall us; 0: unknown, INT64_MAX: never */
	int64_t issued_at, expires_at, refresh_issued_at, refresh_expires_at, due_at;
	bool due_now;
};
/* Without issued_at or expires_in, or with an expiry that is past: due now. Nothing to renew
 * it with: due at the expiry. No access token: due now, and no expiry. */
void import_plan(const struct import *i, const struct provider *p, const struct policy_margin *m, int64_t now, double unit,
	struct import_times *out);

/* The settings as they may be shown: every value of a secret kind is "********", unless it is empty. Secret is what the provider lists as
 * sensitive, and for apiKey and basic everything. */
int import_mask_settings(const char *settings_json, size_t n, const struct provider *p, struct buf *out) MUST_USE;

/* A tree of grant_parse as compact JSON, in place of what `out` held, and with no copy of it anywhere else. ST_FULL: longer than `out` may be, and
 * so with its numbers written out as the database does it; ST_RANGE: a number that was not kept as it came, or that the database would not take. */
int import_write_json(struct json_object *o, struct buf *out) MUST_USE;
/* Are the settings that the provider needs there and not empty? apiKey and basic need one at least. NULL: there are none. */
bool import_settings_complete(struct json_object *settings_or_null, const struct provider *p);
/* Will a connection of oauth2 lack one after the import? `shown`: its settings as they may be shown, which stay where the import brings
 * none; NULL: it is new. */
bool import_lacks_settings(const struct import *i, const struct provider *p, const char *shown_or_null);

#endif
