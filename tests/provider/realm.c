/*
 * realm - providers by name and their options.
 *
 * The command line ("NAME:key=value,...") and the control plane set the same options through
 * realm_set(), one at a time, so a bad value always names itself. Nothing here touches a family.
 */
#include "provider/simulator.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

struct choice {
	const char *name;
	int value;
};

static int choose(const struct choice *c, const char *key, const char *value, int *out, struct fault *f)
{
	for (; c->name != NULL; c++) {
		if (strcmp(c->name, value) == 0) {
			*out = c->value;
			return 0;
		}
	}
	return fault_set(f, ST_INVALID, "%s=%s: not one of its values", key, value);
}

static int number(const char *key, const char *value, int64_t min, int64_t max, int64_t *out, struct fault *f)
{
	int64_t v;
	if (str_parse_i64(value, strlen(value), &v) != 0 || v < min || v > max)
		return fault_set(f, ST_RANGE, "%s=%s: want a whole number from %lld to %lld", key, value,
			(long long)min, (long long)max);
	*out = v;
	return 0;
}

static int set_choice(struct realm *r, const char *key, const char *value, struct fault *f)
{
	static const struct choice modes[] = {
		{"strict", MODE_STRICT}, {"grace", MODE_GRACE}, {"static", MODE_STATIC}, {NULL, 0}};
	static const struct choice auths[] = {{"basic", AUTH_BASIC}, {"post", AUTH_POST}, {"jwt", AUTH_JWT},
		{"none", AUTH_NONE}, {"any", AUTH_ANY}, {"tls", AUTH_TLS}, {NULL, 0}};
	static const struct choice replies[] = {{"absent", STATIC_ABSENT}, {"null", STATIC_NULL},
		{"empty", STATIC_EMPTY}, {"same", STATIC_SAME}, {NULL, 0}};
	static const struct choice bodies[] = {{"any", BODY_ANY}, {"form", BODY_FORM}, {"json", BODY_JSON},
		{"query", BODY_QUERY}, {NULL, 0}};
	static const struct choice logins[] = {{"none", LOGIN_NONE}, {"client_credentials", LOGIN_CLIENT},
		{"password", LOGIN_PASSWORD}, {NULL, 0}};
	static const struct choice yes_no[] = {{"no", 0}, {"yes", 1}, {NULL, 0}};
	static const struct choice commits[] = {{"early", 0}, {"late", 1}, {NULL, 0}};
	int v = 0, rc;
	if (strcmp(key, "mode") == 0) {
		if ((rc = choose(modes, key, value, &v, f)) == 0)
			r->mode = (enum mode)v;
	} else if (strcmp(key, "auth") == 0) {
		if ((rc = choose(auths, key, value, &v, f)) == 0)
			r->auth = (enum auth)v;
	} else if (strcmp(key, "static_reply") == 0) {
		if ((rc = choose(replies, key, value, &v, f)) == 0)
			r->static_reply = (enum static_reply)v;
	} else if (strcmp(key, "body") == 0) {
		if ((rc = choose(bodies, key, value, &v, f)) == 0)
			r->body = (enum body_kind)v;
	} else if (strcmp(key, "login") == 0) {
		if ((rc = choose(logins, key, value, &v, f)) == 0)
			r->login = (enum login)v;
	} else if (strcmp(key, "login_rt") == 0) {
		if ((rc = choose(yes_no, key, value, &v, f)) == 0)
			r->login_rt = v == 1;
	} else if (strcmp(key, "commit") == 0) {
		if ((rc = choose(commits, key, value, &v, f)) == 0)
			r->commit_late = v == 1;
	} else {
		return ST_NOT_FOUND;
	}
	return rc;
}

static int set_number(struct realm *r, const char *key, const char *value, struct fault *f)
{
	int64_t v = 0;
	int rc;
	if (strcmp(key, "grace_s") == 0) {
		if ((rc = number(key, value, 0, 30 * 86400, &v, f)) == 0)
			r->grace_us = v * US_PER_S;
	} else if (strcmp(key, "grace_ms") == 0) {
		if ((rc = number(key, value, 0, 86400000, &v, f)) == 0)
			r->grace_us = v * US_PER_MS;
	} else if (strcmp(key, "at_ttl") == 0) {
		if ((rc = number(key, value, 0, 86400 * 3650, &v, f)) == 0)
			r->at_ttl_s = v;
	} else if (strcmp(key, "delay_ms") == 0) {
		if ((rc = number(key, value, 0, 3600000, &v, f)) == 0)
			r->delay_us = v * US_PER_MS;
	} else if (strcmp(key, "jitter_ms") == 0) {
		if ((rc = number(key, value, 0, 3600000, &v, f)) == 0)
			r->jitter_us = v * US_PER_MS;
	} else if (strcmp(key, "rt_len") == 0) {
		if ((rc = number(key, value, TOKEN_MIN, TOKEN_MAX, &v, f)) == 0)
			r->rt_len = (size_t)v;
	} else if (strcmp(key, "at_len") == 0) {
		if ((rc = number(key, value, TOKEN_MIN, TOKEN_MAX, &v, f)) == 0)
			r->at_len = (size_t)v;
	} else if (strcmp(key, "rate") == 0) {
		if ((rc = number(key, value, 0, 10000000, &v, f)) == 0)
			r->rate = r->burst = r->tokens = (double)v;
	} else if (strcmp(key, "burst") == 0) {
		if ((rc = number(key, value, 1, 10000000, &v, f)) == 0)
			r->burst = r->tokens = (double)v;
	} else {
		return ST_NOT_FOUND;
	}
	return rc;
}

static int set_text(struct realm *r, const char *key, const char *value, struct fault *f)
{
	char **slot = NULL;
	if (strcmp(key, "client_id") == 0)
		slot = &r->client_id;
	else if (strcmp(key, "client_secret") == 0)
		slot = &r->client_secret;
	else if (strcmp(key, "jwt_aud") == 0)
		slot = &r->jwt_aud;
	else if (strcmp(key, "grant") == 0)
		slot = &r->grant;
	else if (strcmp(key, "rt_param") == 0)
		slot = &r->rt_param;
	else if (strcmp(key, "scope") == 0)
		slot = &r->scope;
	else if (strcmp(key, "username") == 0)
		slot = &r->username;
	else if (strcmp(key, "password") == 0)
		slot = &r->password;
	else if (strcmp(key, "jwt_key") == 0)
		return auth_load_key(r, value, f);
	else
		return ST_NOT_FOUND;
	mem_free(*slot);
	*slot = mem_strdup(value);
	return 0;
}

int realm_set(struct realm *r, const char *key, const char *value, struct fault *f)
{
	int rc = set_choice(r, key, value, f);
	if (rc == ST_NOT_FOUND)
		rc = set_number(r, key, value, f);
	if (rc == ST_NOT_FOUND)
		rc = set_text(r, key, value, f);
	if (rc == ST_NOT_FOUND && strcmp(key, "at_overlap") == 0)
		return str_parse_bool(value, strlen(value), &r->at_overlap) == 0
			       ? 0
			       : fault_set(f, ST_INVALID, "at_overlap=%s: want yes or no", value);
	if (rc == ST_NOT_FOUND)
		return fault_set(f, ST_NOT_FOUND, "no realm option is called %s", key);
	return rc;
}

struct realm *realm_find(struct sim *s, const char *name, size_t n)
{
	for (unsigned i = 0; i < s->realm_count; i++)
		if (strncmp(s->realms[i]->name, name, n) == 0 && s->realms[i]->name[n] == '\0')
			return s->realms[i];
	return NULL;
}

static bool name_is_fine(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.");
	return n > 0 && n < REALM_NAME_BYTES && name[n] == '\0';
}

int realm_open(struct sim *s, const char *name, struct realm **out, struct fault *f)
{
	if (!name_is_fine(name))
		return fault_set(f, ST_INVALID, "realm name \"%.80s\": letters, digits, - and ., at most %d",
			name, REALM_NAME_BYTES - 1);
	struct realm *r = realm_find(s, name, strlen(name));
	if (r == NULL) {
		if (s->realm_count > UINT16_MAX)
			return fault_set(f, ST_FULL, "too many realms");
		r = mem_alloc(sizeof *r);
		r->index = s->realm_count;
		memcpy(r->name, name, strlen(name));
		r->mode = MODE_STRICT;
		r->auth = AUTH_ANY;
		r->at_ttl_s = 3600;
		r->rt_len = 64;
		r->at_len = 200;
		r->grace_us = 60 * US_PER_S;
		r->at_overlap = true;
		r->client_id = mem_strdup("client");
		r->client_secret = mem_strdup("secret");
		r->username = mem_strdup("user");
		r->password = mem_strdup("password");
		r->login_rt = true;
		r->grant = mem_strdup("refresh_token");
		r->rt_param = mem_strdup("refresh_token");
		TAILQ_INIT(&r->rules);
		s->realms = mem_realloc(s->realms, s->realm_count + 1, sizeof(struct realm *));
		s->realms[s->realm_count++] = r;
	}
	*out = r;
	return 0;
}

int realm_parse(struct sim *s, const char *text, struct fault *f)
{
	const char *colon = strchr(text, ':');
	char *name = mem_strndup(text, colon != NULL ? (size_t)(colon - text) : strlen(text));
	struct realm *r;
	int rc = realm_open(s, name, &r, f);
	mem_free(name);
	char *copy = mem_strdup(colon != NULL ? colon + 1 : "");
	char *save = NULL;
	for (char *p = strtok_r(copy, ",", &save); rc == 0 && p != NULL; p = strtok_r(NULL, ",", &save)) {
		char *eq = strchr(p, '=');
		if (eq == NULL) {
			rc = fault_set(f, ST_SYNTAX, "realm %s: \"%s\" is not key=value", r->name, p);
			break;
		}
		*eq = '\0';
		rc = realm_set(r, p, eq + 1, f);
		if (rc != 0)
			fault_wrap(f, rc, "realm %s", r->name);
	}
	mem_free(copy);
	return rc;
}

void realm_count_error(struct realm *r, const char *code)
{
	for (unsigned i = 0; i < ERROR_CODES; i++) {
		struct error_count *e = &r->stats.errors[i];
		if (e->code[0] == '\0' || i == ERROR_CODES - 1) {
			const char *name = i == ERROR_CODES - 1 ? "other" : code;
			size_t n = strlen(name);
			n = n < sizeof e->code ? n : sizeof e->code - 1;
			memcpy(e->code, name, n);
			e->code[n] = '\0';
		}
		if (strncmp(e->code, code, sizeof e->code - 1) == 0 || i == ERROR_CODES - 1) {
			e->n++;
			return;
		}
	}
}

void realms_free(struct sim *s)
{
	for (unsigned i = 0; i < s->realm_count; i++) {
		struct realm *r = s->realms[i];
		faults_free(r);
		auth_free(r);
		mem_free(r->families);
		mem_free(r->client_id);
		mem_free(r->client_secret);
		mem_free(r->username);
		mem_free(r->password);
		mem_free(r->jwt_aud);
		mem_free(r->grant);
		mem_free(r->rt_param);
		mem_free(r->scope);
		mem_free(r);
	}
	mem_free(s->realms);
	s->realms = NULL;
	s->realm_count = 0;
}
