/*
 * webhook_rules - what an endpoint of the API may be, whoever makes it: the application or an operator for
 * it.
 */
#ifndef REFRESHD_SERVICE_WEBHOOK_RULES_H
#define REFRESHD_SERVICE_WEBHOOK_RULES_H

#include <stdbool.h>

#include "base/status.h"
#include "model/conf.h"

#define WEBHOOK_ENDPOINTS_MAX 50u /* of one application */
#define WEBHOOK_EVENTS_MAX 64
#define WEBHOOK_URL_MAX 2000
#define WEBHOOK_DESCRIPTION_MAX 500
#define WEBHOOK_UNIFIED_API "vault" /* unless another is said */

/* https, or, with insecure_http: loopback, also http to a loopback host. */
int webhook_check_url(const struct conf *c, const char *url, struct fault *f) MUST_USE;
/* A name of an event, prefix.* or *, that covers some event? */
bool webhook_event_known(const char *pattern);

#endif
