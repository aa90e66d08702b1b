/*
 * httpc_url - keeps what taking a URL apart gave, by ours and by libcurl's rules.
 *
 * Why here: libcurl parses, writes out and takes apart the same few URLs for every request, letter by letter, which costs as much as
 * sealing its tokens. Given a parsed one it copies the pieces. What the options of a handle would refuse is refused here: nothing is
 * guessed, and no name or password is in a URL. It must not keep a URL that holds a secret: who asks says so.
 */
#include "io/httpc_url.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define AS_IT_IS (CURLU_PATH_AS_IS | CURLU_DISALLOW_USER)

void httpc_url_unref(struct httpc_url *u)
{
	if (u == NULL || --u->refs > 0)
		return;
	mem_wipe(u->text, strlen(u->text));
	mem_free(u->text);
	url_fini(&u->parts);
	curl_url_cleanup(u->parsed);
	mem_free(u);
}

static int url_new(const char *text, struct httpc_url **out, struct fault *f)
{
	struct url parts;
	int rc = url_parse(text, &parts, f);
	if (rc != 0)
		return rc == ST_SYNTAX ? fault_wrap(f, ST_INVALID, "URL") : rc;
	CURLU *parsed = curl_url();
	ALWAYS(parsed != NULL);
	if (curl_url_set(parsed, CURLUPART_URL, text, AS_IT_IS) != CURLUE_OK) {
		url_fini(&parts);
		curl_url_cleanup(parsed);
		return fault_set(f, ST_INVALID, "URL: libcurl does not take it");
	}
	struct httpc_url *u = mem_alloc(sizeof *u);
	u->refs = 1;
	u->text = mem_strdup(text);
	u->parts = parts;
	u->parsed = parsed;
	*out = u;
	return 0;
}

static unsigned place_of(const char *s)
{
	uint32_t h = str_hash(STR_HASH, s);
	return (h ^ h >> 16) % HTTPC_URLS_KEPT;
}

int httpc_url_get(struct httpc_urls *k, const char *text, bool keep, struct httpc_url **out, struct fault *f)
{
	if (!keep)
		return url_new(text, out, f);
	struct httpc_url **place = &k->kept[place_of(text)];
	if (*place == NULL || strcmp((*place)->text, text) != 0) {
		struct httpc_url *u;
		int rc = url_new(text, &u, f);
		if (rc != 0)
			return rc;
		httpc_url_unref(*place);
		*place = u;
	}
	(*place)->refs++;
	*out = *place;
	return 0;
}

void httpc_urls_fini(struct httpc_urls *k)
{
	for (size_t i = 0; i < HTTPC_URLS_KEPT; i++) {
		httpc_url_unref(k->kept[i]);
		k->kept[i] = NULL;
	}
}
