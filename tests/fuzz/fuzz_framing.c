/*
 * fuzz_framing - requests of the HTTP server. A request must mean the same however its bytes arrive.
 */
#include "fuzz/fuzz.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "io/httpd_framing.h"

#define MAX_HEAD 2048
#define MAX_BODY 512

/* Feeds steps of at most `step` bytes; the status, and what was used. */
static int feed(struct httpd_framing *p, const uint8_t *data, size_t size, size_t step, size_t *used)
{
	int status = HTTPD_FRAMING_MORE;
	size_t at = 0, taken;

	for (; status == HTTPD_FRAMING_MORE && at < size; at += taken) {
		size_t n = size - at < step ? size - at : step;
		status = httpd_framing_feed(p, data + at, n, &taken);
		ALWAYS(taken <= n && (taken == n || status != HTTPD_FRAMING_MORE));
	}
	*used = at;
	return status;
}

static void check_done(const struct httpd_framing *p)
{
	ALWAYS(p->path[0] == '/' && strchr(p->path, ' ') == NULL && p->body.len <= MAX_BODY);
	ALWAYS(p->n_fields <= HTTPD_FRAMING_MAX_FIELDS && (p->http10 || httpd_framing_field(p, "HOST") != NULL));
	for (size_t i = 0; i < p->n_fields; i++) {
		const char *value = p->fields[i].value;
		ALWAYS(p->fields[i].name[0] != '\0' && strpbrk(p->fields[i].name, " \t\r\n") == NULL);
		ALWAYS(strpbrk(value, "\r\n") == NULL && httpd_framing_field(p, p->fields[i].name) != NULL);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct httpd_framing whole, drip;
	size_t used_whole, used_drip;

	httpd_framing_init(&whole, MAX_HEAD, MAX_BODY);
	httpd_framing_init(&drip, MAX_HEAD, MAX_BODY);
	int status = feed(&whole, data, size, size, &used_whole);
	ALWAYS(feed(&drip, data, size, 1, &used_drip) == status && used_drip == used_whole);
	ALWAYS(status == HTTPD_FRAMING_MORE || status == HTTPD_FRAMING_DONE || (status >= 400 && status <= 599));
	ALWAYS(httpd_framing_in_body(&whole) == httpd_framing_in_body(&drip));
	if (status == HTTPD_FRAMING_DONE) {
		check_done(&whole);
		ALWAYS(whole.method == drip.method && whole.close == drip.close && strcmp(whole.path, drip.path) == 0);
		ALWAYS(buf_equals(&whole.body, buf_str(&drip.body), drip.body.len));
	}
	httpd_framing_fini(&whole);
	httpd_framing_fini(&drip);
	return 0;
}
