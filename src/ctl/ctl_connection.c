/*
 * ctl_connection - list, show, providers: connections as they are, without a secret in sight.
 *
 * The rows that are shown carry no sealed value at all. Settings are shown as their masked copy.
 */
#include "ctl/ctl.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "service/vault.h"
#include "service/vault_ops.h"

/* ---------------------------------------------------------------- one connection */

static void json_connection(struct jsonw *w, const struct vault_connection *n, const char *rotation)
{
	jsonw_object(w, NULL);
	ctl_json_id(w, "connection_id", n->id);
	jsonw_str(w, "application_id", n->application_id);
	jsonw_str(w, "consumer_id", n->consumer_id);
	jsonw_str(w, "unified_api", n->unified_api);
	jsonw_str(w, "service_id", n->service_id);
	jsonw_str(w, "auth_type", n->auth_type);
	jsonw_bool(w, "enabled", n->enabled);
	jsonw_str(w, "state", n->state);
	jsonw_str(w, "health", n->health);
	jsonw_str(w, "reason", n->reason);
	jsonw_int(w, "failures", n->failures);
	ctl_json_time(w, "first_failed_at", n->first_failed_at);
	ctl_json_time(w, "last_failed_at", n->last_failed_at);
	ctl_json_time(w, "created_at", n->created_at);
	ctl_json_time(w, "updated_at", n->updated_at);
	jsonw_bool(w, "has_access_token", n->has_access_token);
	jsonw_bool(w, "has_refresh_token", n->has_refresh_token);
	jsonw_str(w, "token_type", n->token_type);
	jsonw_str(w, "scope", n->scope);
	jsonw_int(w, "token_version", n->token_version);
	ctl_json_time(w, "issued_at", n->issued_at);
	ctl_json_time(w, "expires_at", n->expires_at);
	ctl_json_time(w, "refresh_issued_at", n->refresh_issued_at);
	ctl_json_time(w, "refresh_expires_at", n->refresh_expires_at);
	ctl_json_time(w, "refreshed_at", n->refreshed_at);
	jsonw_int(w, "refreshes", n->refreshes);
	ctl_json_time(w, "due_at", n->due_at);
	jsonw_bool(w, "in_flight", n->leased);
	jsonw_int(w, "doubts", n->doubts);
	if (rotation != NULL)
		jsonw_str(w, "rotation", rotation);
	jsonw_int(w, "orphans", n->orphans);
	jsonw_raw(w, "settings", n->settings_public, strlen(n->settings_public));
	jsonw_raw(w, "metadata", n->metadata, strlen(n->metadata));
	jsonw_object_end(w);
}

static void line(const char *name, const char *value)
{
	printf("%-18s ", name);
	ctl_print_text(value);
	(void)putchar('\n');
}

static void time_line(const char *name, int64_t t)
{
	char text[CTL_TIME_BYTES];
	if (t != 0)
		line(name, ctl_time(t, text));
}

static void number_line(const char *name, int64_t n)
{
	if (n != 0)
		printf("%-18s %" PRId64 "\n", name, n);
}

static void print_health(const struct vault_connection *n)
{
	enum reason r;
	line("state", n->state);
	line("health", n->health);
	if (reason_parse(n->reason, &r) != 0)
		line("reason", n->reason);
	else if (r != REASON_NONE)
		line("reason", reason_text(r));
	number_line("failures in a row", n->failures);
	time_line("failing since", n->first_failed_at);
	time_line("last failure", n->last_failed_at);
}

static void print_tokens(const struct ctl *c, const struct vault_connection *n)
{
	bool renews = provider_renews(conf_provider(c->conf, n->service_id), n->has_refresh_token);
	line("access token", n->has_access_token ? "there, sealed" : "none");
	line("refresh token", n->has_refresh_token ? "there, sealed" : renews ? "none: its grant needs none" : "none: it can only expire");
	if (n->token_type != NULL)
		line("token type", n->token_type);
	if (n->scope != NULL)
		line("scope", n->scope);
	time_line("issued", n->issued_at);
	time_line("expires", n->expires_at);
	time_line("refresh token ends", n->refresh_expires_at);
	time_line("last refreshed", n->refreshed_at);
	number_line("refreshes", n->refreshes);
	number_line("token version", n->token_version);
	time_line("refresh due", n->due_at);
	if (n->leased)
		time_line("in flight until", n->lease_until);
	number_line("unanswered tries", n->doubts);
	number_line("open orphans", n->orphans);
}

static int on_show(void *arg, const struct vault_connection *n)
{
	struct ctl *c = arg;
	char id[STR_UUID_BYTES];
	if (c->json) {
		struct ctl_json j;
		ctl_json_begin(&j);
		json_connection(&j.w, n, NULL);
		return ctl_json_end(&j) == CTL_OK ? 0 : ST_IO;
	}
	str_format_uuid(n->id, id);
	line("connection", id);
	line("application", n->application_id);
	line("consumer", n->consumer_id);
	line("unified API", n->unified_api);
	line("service", n->service_id);
	line("auth type", n->auth_type);
	if (!n->enabled)
		line("enabled", "no");
	print_health(n);
	if (strcmp(n->auth_type, "oauth2") == 0)
		print_tokens(c, n);
	time_line("created", n->created_at);
	time_line("updated", n->updated_at);
	if (n->has_settings)
		line("settings", n->settings_public);
	if (strcmp(n->metadata, "{}") != 0)
		line("metadata", n->metadata);
	return 0;
}

int ctl_show(struct ctl *c, int argc, char **argv)
{
	struct fault f = { 0 };
	uint8_t id[16];
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 1, 1));
	CTL_TRY(ctl_connection_id(c, c->words[0], id));
	CTL_TRY(ctl_connect(c));
	return vault_show(c->pg, id, on_show, c, &f) == 0 ? CTL_OK : ctl_fail("show", &f);
}

/* ---------------------------------------------------------------- list */

struct list {
	struct ctl_listing l;
	const struct conf *conf;
	bool in_doubt;
};

static void table_in_doubt(struct ctl_table *t, const struct vault_connection *n, const char *rotation)
{
	char since[CTL_TIME_BYTES], due[CTL_TIME_BYTES], id[STR_UUID_BYTES];
	str_format_uuid(n->id, id);
	ctl_table_cell(t, "%s", id);
	ctl_table_cell(t, "%s", n->application_id);
	ctl_table_cell(t, "%s", n->consumer_id);
	ctl_table_cell(t, "%s/%s", n->unified_api, n->service_id);
	ctl_table_cell(t, "%s", rotation != NULL ? rotation : "not configured");
	ctl_table_cell(t, "%" PRId64, n->doubts);
	ctl_table_cell(t, "%s", n->health);
	ctl_table_cell(t, "%s", strcmp(n->reason, "none") == 0 ? "-" : n->reason);
	ctl_table_cell(t, "%s", ctl_ago(n->first_failed_at, since));
	ctl_table_cell(t, "%s", n->leased ? "now" : ctl_ago(n->due_at, due));
}

static int on_list(void *arg, const struct vault_connection *n)
{
	struct list *list = arg;
	struct ctl_listing *l = &list->l;
	const struct provider *p = list->in_doubt ? conf_provider(list->conf, n->service_id) : NULL;
	char expires[CTL_TIME_BYTES], due[CTL_TIME_BYTES], id[STR_UUID_BYTES];
	if (l->table == NULL) {
		ctl_json_element_begin(&l->json);
		json_connection(&l->json.w, n, p != NULL ? rotation_word(p->rotation) : NULL);
		return ctl_json_element_end(&l->json) == CTL_OK ? 0 : ST_IO;
	}
	if (list->in_doubt) {
		table_in_doubt(l->table, n, p != NULL ? rotation_word(p->rotation) : NULL);
		return 0;
	}
	str_format_uuid(n->id, id);
	ctl_table_cell(l->table, "%s", id);
	ctl_table_cell(l->table, "%s", n->application_id);
	ctl_table_cell(l->table, "%s", n->consumer_id);
	ctl_table_cell(l->table, "%s/%s", n->unified_api, n->service_id);
	ctl_table_cell(l->table, "%s%s", n->state, n->enabled ? "" : " (off)");
	ctl_table_cell(l->table, "%s", n->health);
	ctl_table_cell(l->table, "%s", strcmp(n->reason, "none") == 0 ? "-" : n->reason);
	ctl_table_cell(l->table, "%s", ctl_ago(n->expires_at, expires));
	ctl_table_cell(l->table, "%s", ctl_ago(n->due_at, due));
	return 0;
}

static int check_filter(struct ctl *c, const struct vault_filter *w)
{
	enum conn_state s;
	enum conn_health h;
	if (w->state != NULL && conn_state_parse(w->state, &s) != 0)
		return ctl_usage(c, "list: there is no state '%.40s' (available added authorized callable invalid)", w->state);
	if (w->health != NULL && conn_health_parse(w->health, &h) != 0)
		return ctl_usage(c, "list: there is no health '%.40s' (ok pending_refresh needs_auth missing_settings revoked)", w->health);
	return CTL_OK;
}

int ctl_list(struct ctl *c, int argc, char **argv)
{
	static const char *const headers[] = { "CONNECTION", "APPLICATION", "CONSUMER", "SERVICE", "STATE", "HEALTH", "REASON", "EXPIRES", "DUE" };
	static const char *const doubt_headers[] = { "CONNECTION", "APPLICATION", "CONSUMER", "SERVICE", "ROTATION", "UNANSWERED", "HEALTH",
		"REASON", "FAILING SINCE", "NEXT TRY" };
	struct vault_filter w = { .limit = 100 };
	const struct ctl_opt opts[] = { { "state", CTL_VALUE, &w.state }, { "health", CTL_VALUE, &w.health },
		{ "app", CTL_VALUE, &w.application_id }, { "limit", CTL_NUMBER, &w.limit },
		{ "in-doubt", CTL_FLAG, &w.in_doubt } };
	struct fault f = { 0 };
	struct list l = { .conf = NULL };
	bool more = false;
	CTL_TRY(CTL_OPTIONS(c, argc, argv, opts, 0, 0));
	CTL_TRY(check_filter(c, &w));
	CTL_TRY(ctl_connect(c));
	l.conf = c->conf;
	l.in_doubt = w.in_doubt;
	ctl_listing_begin(&l.l, c, w.in_doubt ? doubt_headers : headers, w.in_doubt ? 10 : 9);
	int rc = vault_list(c->pg, &w, on_list, &l, &more, &f);
	ctl_listing_end(&l.l);
	if (rc != 0)
		return ctl_fail("list", &f);
	if (more)
		ctl_note("list: only the first %" PRId64 " are shown (--limit 0 shows all)", w.limit);
	return CTL_OK;
}

/* ---------------------------------------------------------------- providers */

struct count {
	char *service_id, *state, *health, *reason;
	int64_t n;
};
struct counts {
	struct count *v;
	size_t n;
};

static int on_count(void *arg, const struct vault_service_count *x)
{
	struct counts *k = arg;
	k->v = mem_realloc(k->v, k->n + 1, sizeof(*k->v));
	k->v[k->n++] = (struct count){ mem_strdup(x->service_id), mem_strdup(x->state), mem_strdup(x->health), mem_strdup(x->reason), x->n };
	return 0;
}

static void counts_fini(struct counts *k)
{
	for (size_t i = 0; i < k->n; i++) {
		mem_free(k->v[i].service_id);
		mem_free(k->v[i].state);
		mem_free(k->v[i].health);
		mem_free(k->v[i].reason);
	}
	mem_free(k->v);
}

static int64_t count_of(const struct counts *k, const char *service, const char *health)
{
	int64_t n = 0;
	for (size_t i = 0; i < k->n; i++)
		if (strcmp(k->v[i].service_id, service) == 0 && (health == NULL || strcmp(k->v[i].health, health) == 0))
			n += k->v[i].n;
	return n;
}

static unsigned clients_of(const struct conf *c, const char *provider)
{
	unsigned n = 0;
	for (size_t i = 0; i < c->n_clients; i++)
		n += strcmp(c->clients[i]->provider, provider) == 0;
	return n;
}

static void table_provider(struct ctl_table *t, const struct conf *conf, const char *key, const struct provider *p, const struct counts *k)
{
	int64_t all = count_of(k, key, NULL), ok = count_of(k, key, "ok"), pending = count_of(k, key, "pending_refresh"),
		needs = count_of(k, key, "needs_auth");
	ctl_table_cell(t, "%s", key);
	ctl_table_cell(t, "%s", p != NULL ? auth_type_word(p->auth_type) : "not configured");
	ctl_table_cell(t, "%s", p != NULL && p->auth_type == AUTH_OAUTH2 ? rotation_word(p->rotation) : "-");
	ctl_table_cell(t, "%u", clients_of(conf, key));
	ctl_table_cell(t, "%" PRId64, all);
	ctl_table_cell(t, "%" PRId64, ok);
	ctl_table_cell(t, "%" PRId64, pending);
	ctl_table_cell(t, "%" PRId64, needs);
	ctl_table_cell(t, "%" PRId64, all - ok - pending - needs);
}

static void json_provider(struct jsonw *w, const struct conf *conf, const char *key, const struct provider *p, const struct counts *k)
{
	jsonw_object(w, NULL);
	jsonw_str(w, "provider", key);
	jsonw_bool(w, "configured", p != NULL);
	if (p != NULL) {
		jsonw_str(w, "name", p->name);
		jsonw_str(w, "auth_type", auth_type_word(p->auth_type));
		jsonw_array(w, "unified_apis");
		for (size_t i = 0; i < p->unified_apis.n; i++)
			jsonw_str(w, NULL, p->unified_apis.v[i]);
		jsonw_array_end(w);
		jsonw_str(w, "grant", grant_word(p->grant));
		jsonw_str(w, "rotation", rotation_word(p->rotation));
		jsonw_double(w, "rate_per_second", p->rate_per_s);
		jsonw_int(w, "max_in_flight", p->max_in_flight);
	}
	jsonw_int(w, "clients", clients_of(conf, key));
	jsonw_int(w, "connections", count_of(k, key, NULL));
	jsonw_array(w, "by");
	for (size_t i = 0; i < k->n; i++) {
		if (strcmp(k->v[i].service_id, key) != 0)
			continue;
		jsonw_object(w, NULL);
		jsonw_str(w, "state", k->v[i].state);
		jsonw_str(w, "health", k->v[i].health);
		jsonw_str(w, "reason", k->v[i].reason);
		jsonw_int(w, "connections", k->v[i].n);
		jsonw_object_end(w);
	}
	jsonw_array_end(w);
	jsonw_object_end(w);
}

static void one_provider(struct ctl_listing *l, const struct conf *conf, const char *key, const struct provider *p, const struct counts *k)
{
	if (l->table != NULL) {
		table_provider(l->table, conf, key, p, k);
		return;
	}
	ctl_json_element_begin(&l->json);
	json_provider(&l->json.w, conf, key, p, k);
	if (ctl_json_element_end(&l->json) != CTL_OK)
		ctl_note("providers: %s could not be shown", key);
}

static void print_detail(const struct counts *k, const char *key)
{
	puts("");
	for (size_t i = 0; i < k->n; i++)
		if (strcmp(k->v[i].service_id, key) == 0)
			printf("%8" PRId64 "  %s, %s, %s\n", k->v[i].n, k->v[i].state, k->v[i].health, k->v[i].reason);
}

int ctl_providers(struct ctl *c, int argc, char **argv)
{
	static const char *const headers[] = { "PROVIDER", "AUTH", "ROTATION", "CLIENTS", "CONNECTIONS", "OK", "PENDING", "NEEDS AUTH", "OTHER" };
	struct fault f = { 0 };
	struct counts k = { NULL, 0 };
	struct ctl_listing l;
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 0, 1));
	CTL_TRY(ctl_connect(c));
	const char *only = c->n_words == 1 ? c->words[0] : NULL;
	if (vault_service_counts(c->pg, only, on_count, &k, &f) != 0) {
		counts_fini(&k);
		return ctl_fail("providers", &f);
	}
	if (only != NULL && conf_provider(c->conf, only) == NULL && k.n == 0)
		return ctl_complain("providers: there is no provider '%.80s' in the configuration, and no connection of it", only);
	ctl_listing_begin(&l, c, headers, 9);
	for (size_t i = 0; i < c->conf->n_providers; i++) {
		const struct provider *p = c->conf->providers[i];
		if (only == NULL || strcmp(only, p->key) == 0)
			one_provider(&l, c->conf, p->key, p, &k);
	}
	/* Connections of providers that went out of the configuration: counts come sorted by service. */
	for (size_t i = 0; i < k.n; i++)
		if (conf_provider(c->conf, k.v[i].service_id) == NULL && (i == 0 || strcmp(k.v[i].service_id, k.v[i - 1].service_id) != 0))
			one_provider(&l, c->conf, k.v[i].service_id, NULL, &k);
	ctl_listing_end(&l);
	if (only != NULL && !c->json)
		print_detail(&k, only);
	counts_fini(&k);
	return CTL_OK;
}
