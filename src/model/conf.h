/*
 * conf - the configuration as an immutable, reference-counted snapshot, built from YAML against one typed table.
 *
 * One row of options.def per option gives parser, defaults, --dump-config, the sample file and the man page.
 * A load reports every mistake at once (file:line:column: message) and yields a snapshot only when there is none;
 * a reload builds a new snapshot and the old one stays whole for whoever still holds it. Secrets come by file
 * path; conf_load opens those files, conf_dump shows their paths.
 */
#ifndef REFRESHD_MODEL_CONF_H
#define REFRESHD_MODEL_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/crypto.h"
#include "base/log.h"
#include "base/status.h"
#include "base/url.h"
#include "model/event.h"
#include "model/provider.h"

enum insecure_http { INSECURE_HTTP_NO, INSECURE_HTTP_LOOPBACK };

struct conf_webhook {
	char *name;
	char *application; /* "*": all */
	char *url;
	char *secret_file;
	struct event_secret secret;
	struct strlist events; /* patterns */
	bool allow_private;
	unsigned line;
	char *file;
};

struct conf {
	unsigned refs;
	char *path; /* the file it came from */

	char *instance;
	char *state_dir;
	enum insecure_http insecure_http;
	struct {
		enum log_format format;
		enum log_level level;
	} log;
	struct {
		char *url;
		unsigned pool_size;
		bool pooler_transaction;
		int64_t statement_timeout_us; /* default 15 s */
	} database;
	char *keyring_file;
	struct keyring *keyring;
	struct {
		bool on;
		struct listen_addr listen;
		char *cert_file, *key_file; /* NULL: no TLS */
		double rate_per_s;	    /* of one key; default 100/s; 0: unlimited */
	} api;
	struct {
		bool on;
		struct listen_addr listen;
	} metrics;
	struct {
		char *resolv_conf;  /* default /etc/resolv.conf */
		int64_t timeout_us; /* default 5 s */
	} dns;
	struct {
		int64_t poll_interval_us, horizon_us, margin_us;
		double margin_fraction;
		int64_t lease_us, timeout_us, connect_timeout_us, takeover_delay_us;
		unsigned max_in_flight;
		int64_t retry_window_us;
		bool journal_sync;
		uint64_t journal_max_bytes; /* default 256M */
	} refresh;
	struct {
		int64_t timeout_us;	 /* default 20 s */
		unsigned max_in_flight;	 /* default 64; per endpoint 4 */
		char *ca_file;		 /* NULL: the system bundle */
	} delivery;
	struct conf_webhook *webhooks;
	size_t n_webhooks;
	struct provider **providers; /* sorted by key */
	size_t n_providers;
	struct client **clients;
	size_t n_clients;
};

/* All mistakes of one load, in file and line order. */
struct conf_error {
	char *file;
	unsigned line, column; /* 0: about the whole file */
	char *text;
};
struct conf_errors {
	struct conf_error *v;
	size_t n;
};
void conf_errors_fini(struct conf_errors *e);
void conf_errors_print(const struct conf_errors *e, FILE *to); /* "file:line:column: message", one a line */

/* ST_INVALID with at least one error, or 0 with *out (one reference). Opens key and secret files, touches nothing else. */
int conf_load(const char *path, struct conf **out, struct conf_errors *errors) MUST_USE;
struct conf *conf_ref(struct conf *c);
void conf_unref(struct conf *c); /* NULL is fine */

const struct provider *conf_provider(const struct conf *c, const char *key); /* NULL: unknown */
/* The application's own client for the provider, else the "*" one, else NULL. */
const struct client *conf_client(const struct conf *c, const char *application, const char *provider);

/* The effective configuration as YAML that loads again to the same; secrets as file paths. */
int conf_dump(const struct conf *c, struct buf *out) MUST_USE;
/* The commented sample file, and the OPTIONS part of refreshd.yaml(5) in mdoc: both from the table. */
int conf_sample(struct buf *out) MUST_USE;
int conf_man(struct buf *out) MUST_USE;
/* Names of options whose change needs a restart and which differ ("database.url"), one a line in `out`. */
int conf_diff_restart(const struct conf *a, const struct conf *b, struct buf *out) MUST_USE;

#endif
