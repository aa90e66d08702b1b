/*
 * api_openapi - GET /openapi.json: the contract itself, compiled in from docs/openapi.json.
 */
#include "api/api_priv.h"

#include <string.h>

static const char text[] =
#include "src/api/openapi.inc"
	;

void api_do_openapi(struct api_call *c)
{
	struct buf body = BUF_INIT(sizeof text);
	int e = buf_append(&body, text, sizeof text - 1);
	api_call_end(c, e == 0 ? 200 : 500, &body);
	buf_fini(&body);
}
