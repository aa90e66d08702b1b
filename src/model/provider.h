/*
 * provider - a token endpoint's definition and its quirks, as plain data; and the clients that we are there.
 *
 * Filled by conf_build from the configuration, immutable afterwards. Times in microseconds. What providers
 * really do is in docs/providers.md; nothing here is guessed from a live token (never probe with one).
 */
#ifndef REFRESHD_MODEL_PROVIDER_H
#define REFRESHD_MODEL_PROVIDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/signer.h"
#include "model/connection.h"
#include "model/template.h"

#define CLIENT_AUTH_LIST(X)                                                                                \
	X(CLIENT_AUTH_BASIC, "client_secret_basic") X(CLIENT_AUTH_POST, "client_secret_post")              \
	X(CLIENT_AUTH_JWT, "private_key_jwt") X(CLIENT_AUTH_TLS, "tls_client_auth") X(CLIENT_AUTH_NONE, "none")
#define GRANT_LIST(X) \
	X(GRANT_CODE, "authorization_code") X(GRANT_CLIENT, "client_credentials") X(GRANT_PASSWORD, "password")
#define ROTATION_LIST(X) X(ROTATION_NONE, "none") X(ROTATION_GRACE, "grace") X(ROTATION_STRICT, "strict")
#define BODY_FORMAT_LIST(X) X(BODY_FORM, "form") X(BODY_JSON, "json") X(BODY_QUERY, "query")
#define SEND_SCOPE_LIST(X) X(SEND_SCOPE_NEVER, "never") X(SEND_SCOPE_STORED, "stored") X(SEND_SCOPE_LITERAL, "literal")
#define TIME_UNIT_LIST(X) X(UNIT_S, "s") X(UNIT_MS, "ms")
enum client_auth {
#define X(id, word) id,
	CLIENT_AUTH_LIST(X)
#undef X
};
enum grant {
#define X(id, word) id,
	GRANT_LIST(X)
#undef X
};
enum rotation {
#define X(id, word) id,
	ROTATION_LIST(X)
#undef X
};
enum body_format {
#define X(id, word) id,
	BODY_FORMAT_LIST(X)
#undef X
};
enum send_scope {
#define X(id, word) id,
	SEND_SCOPE_LIST(X)
#undef X
};
enum time_unit {
#define X(id, word) id,
	TIME_UNIT_LIST(X)
#undef X
};
const char *client_auth_word(enum client_auth a);
const char *grant_word(enum grant g);
const char *rotation_word(enum rotation r);
const char *body_format_word(enum body_format b);
const char *send_scope_word(enum send_scope s);

struct strlist {
	char **v;
	size_t n;
};
struct named_template {
	char *name;
	struct template *value;
};
struct named_pointer {
	char *name;
	struct strlist pointers; /* JSON pointers (RFC 6901), tried in order */
};

struct provider {
	char *key;  /* [a-z0-9][a-z0-9_-]*; the service_id of its connections */
	char *name; /* for people */
	char *website;
	struct strlist unified_apis;
	enum auth_type auth_type;
	enum grant grant;
	struct template *token_url;   /* NULL unless oauth2 */
	struct template *refresh_url; /* NULL: token_url */
	bool method_get;
	enum client_auth client_auth;
	bool basic_raw; /* do not form-encode id and secret before base64 (off: RFC 6749 2.3.1) */
	enum body_format body_format;
	char *grant_type; /* default "refresh_token", of a client_credentials grant that word; "" leaves it out */
	struct named_template *params;
	size_t n_params;
	struct strlist omit_params;
	struct named_template *rename_params; /* from name -> to (constant) */
	size_t n_rename_params;
	struct named_template *headers;
	size_t n_headers;
	enum send_scope send_scope;
	char *scope; /* the literal */
	char *scope_separator;
	char *audience; /* of a client assertion; NULL: the URL that is called */

	enum rotation rotation;
	int64_t rotation_grace_us;
	int64_t refresh_token_idle_ttl_us; /* 0: none */
	int64_t refresh_token_ttl_us;	   /* 0: none; fixed life from its issue */
	bool access_token_overlap;	   /* false: the old access token dies at a refresh, so refresh late */
	double not_before_fraction;	   /* share of the life before which a refresh is refused; 0: none */

	struct strlist at_access_token, at_refresh_token, at_expires_in, at_expires_at, at_refresh_expires_in, at_error, at_scope;
	enum time_unit expires_in_unit;
	int64_t default_expires_in_us; /* 0: none */
	int64_t max_expires_in_us;     /* 0: one year */
	struct strlist grant_dead_errors, transient_errors; /* beside the standard ones */
	struct named_pointer *capture;
	size_t n_capture;
	struct strlist required_settings, sensitive_settings;

	double rate_per_s;	/* 0: unlimited */
	unsigned max_in_flight;
	int64_t timeout_us, connect_timeout_us; /* 0: refresh.timeout, 10 s */
	char *ca_file;
	unsigned line; /* where it was defined */
	char *file;
};

struct client {
	char *application; /* "*" serves all that have none of their own */
	char *provider;	   /* key */
	char *client_id;
	enum client_auth auth;
	struct buf secret;	/* secret; empty without one */
	struct signer *signer;	/* private_key_jwt */
	enum sign_alg alg;
	char *key_id;		/* kid, or NULL */
	char *secret_file, *private_key_file, *cert_file; /* for --dump-config and mutual TLS */
	unsigned line;
	char *file;
};

void provider_free(struct provider *p); /* NULL is fine */
void client_free(struct client *c);
void named_templates_free(struct named_template *v, size_t n);
void named_pointers_free(struct named_pointer *v, size_t n);
void strlist_add(struct strlist *l, const char *s);
bool strlist_has(const struct strlist *l, const char *s);
void strlist_fini(struct strlist *l);
/* Can tokens be had without a person: by a refresh token, or by a grant that needs none? p NULL: not configured. */
bool provider_renews(const struct provider *p, bool has_refresh_token);
/* The URL template a refresh goes to. */
const struct template *provider_refresh_url(const struct provider *p);

#endif
