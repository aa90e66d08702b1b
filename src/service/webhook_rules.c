/*
 * webhook_rules - checks of what is asked for before an endpoint of the API is made.
 *
 * A name in a URL is not resolved here: which addresses may be reached is decided when the connection is made
 * (webhook_request). Must not: know where the endpoint comes from.
 */
#include "service/webhook_rules.h"

#include <string.h>

#include "base/url.h"
#include "model/event.h"

int webhook_check_url(const struct conf *c, const char *url, struct fault *f)
{
	struct url u;
	int e = url_parse(url, &u, f);
	if (e != 0)
		return e;
	bool http = strcmp(u.scheme, "https") != 0;
	bool allowed = !http || (c->insecure_http == INSECURE_HTTP_LOOPBACK && url_is_loopback(&u));
	url_fini(&u);
	return allowed ? 0 : fault_set(f, ST_DENIED, "must be https://");
}

bool webhook_event_known(const char *pattern)
{
	for (int t = EVENT_NONE + 1; t < EVENT_TYPE_COUNT; t++) {
		if (event_type_matches(&pattern, 1, (enum event_type)t))
			return true;
	}
	return false;
}
