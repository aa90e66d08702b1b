/*
 * provider - words of the enums, and freeing.
 *
 * Providers and clients are filled by conf_build and never change afterwards; the only behaviour here is what
 * plain data needs. It must not know where a value came from.
 */
#include "model/provider.h"

#include <string.h>

#include "base/mem.h"

#define WORD_CASE(id, word)                                                                                  \
	case id:                                                                                             \
		return word;

const char *client_auth_word(enum client_auth a)
{
	switch (a) {
		CLIENT_AUTH_LIST(WORD_CASE)
	}
	return "unknown";
}

const char *grant_word(enum grant g)
{
	switch (g) {
		GRANT_LIST(WORD_CASE)
	}
	return "unknown";
}

const char *rotation_word(enum rotation r)
{
	switch (r) {
		ROTATION_LIST(WORD_CASE)
	}
	return "unknown";
}

const char *body_format_word(enum body_format b)
{
	switch (b) {
		BODY_FORMAT_LIST(WORD_CASE)
	}
	return "unknown";
}

const char *send_scope_word(enum send_scope s)
{
	switch (s) {
		SEND_SCOPE_LIST(WORD_CASE)
	}
	return "unknown";
}

void strlist_add(struct strlist *l, const char *s)
{
	l->v = mem_realloc(l->v, l->n + 1, sizeof(*l->v));
	l->v[l->n++] = mem_strdup(s);
}

bool strlist_has(const struct strlist *l, const char *s)
{
	for (size_t i = 0; i < l->n; i++)
		if (strcmp(l->v[i], s) == 0)
			return true;
	return false;
}

void strlist_fini(struct strlist *l)
{
	for (size_t i = 0; i < l->n; i++)
		mem_free(l->v[i]);
	mem_free(l->v);
	*l = (struct strlist){ .v = NULL, .n = 0 };
}

void named_templates_free(struct named_template *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		mem_free(v[i].name);
		template_free(v[i].value);
	}
	mem_free(v);
}

void named_pointers_free(struct named_pointer *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		mem_free(v[i].name);
		strlist_fini(&v[i].pointers);
	}
	mem_free(v);
}

void provider_free(struct provider *p)
{
	if (p == NULL)
		return;
	char *texts[] = { p->key, p->name, p->website, p->grant_type, p->scope, p->scope_separator,
		p->audience, p->ca_file, p->file };
	struct strlist *lists[] = { &p->unified_apis, &p->omit_params, &p->at_access_token,
		&p->at_refresh_token, &p->at_expires_in, &p->at_expires_at, &p->at_refresh_expires_in,
		&p->at_error, &p->at_scope, &p->grant_dead_errors, &p->transient_errors,
		&p->required_settings, &p->sensitive_settings };

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		mem_free(texts[i]);
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		strlist_fini(lists[i]);
	template_free(p->token_url);
	template_free(p->refresh_url);
	named_templates_free(p->params, p->n_params);
	named_templates_free(p->rename_params, p->n_rename_params);
	named_templates_free(p->headers, p->n_headers);
	named_pointers_free(p->capture, p->n_capture);
	mem_free(p);
}

void client_free(struct client *c)
{
	if (c == NULL)
		return;
	char *texts[] = { c->application, c->provider, c->client_id, c->key_id, c->secret_file,
		c->private_key_file, c->cert_file, c->file };

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		mem_free(texts[i]);
	buf_fini(&c->secret);
	signer_unref(c->signer);
	mem_free(c);
}

bool provider_renews(const struct provider *p, bool has_refresh_token)
{
	return has_refresh_token || (p != NULL && p->grant != GRANT_CODE);
}

const struct template *provider_refresh_url(const struct provider *p)
{
	return p->refresh_url != NULL ? p->refresh_url : p->token_url;
}
