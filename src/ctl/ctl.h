/*
 * ctl - what the commands of refreshctl share: options, configuration and database, faults, output.
 *
 * A command gets its own words only and returns the exit status. Every complaint is "refreshctl: what: why" on stderr;
 * stdout carries results alone, as tables for people or as JSON. A secret goes to stdout by ctl_print_secret only.
 */
#ifndef REFRESHD_CTL_H
#define REFRESHD_CTL_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/jsonw.h"
#include "base/status.h"
#include "io/pgsync.h"
#include "model/conf.h"

enum { CTL_OK = 0, CTL_FAILURE = 1, CTL_USAGE = 2, CTL_CONFIG = 78 };

struct ctl {
	const char *config;
	bool json;
	bool out_tty, err_tty;
	const struct ctl_command *command;
	struct conf *conf; /* after ctl_load */
	struct pgsync *pg; /* after ctl_connect */
	char **words;	   /* the words that are no options, after ctl_options */
	int n_words;
};

struct ctl_command {
	const char *name, *synopsis, *summary, *details; /* details: "" or lines for --help */
	int (*run)(struct ctl *c, int argc, char **argv);
};

/* ---- options ---- */
enum ctl_opt_kind { CTL_FLAG, CTL_VALUE, CTL_NUMBER, CTL_DURATION, CTL_LIST };
struct ctl_list {
	const char *v[16];
	size_t n;
};
struct ctl_opt {
	const char *name; /* without the dashes */
	enum ctl_opt_kind kind;
	void *to; /* bool, const char *, int64_t, int64_t (us), struct ctl_list */
};
/* Options anywhere, -c and --json included; "--" ends them, "-" is a word. CTL_OK, CTL_USAGE, or -1: help was printed. */
int ctl_options(struct ctl *c, int argc, char **argv, const struct ctl_opt *opts, size_t n_opts, int min_words, int max_words) MUST_USE;
#define CTL_OPTIONS(c, argc, argv, opts, min, max) ctl_options((c), (argc), (argv), (opts), sizeof(opts) / sizeof((opts)[0]), (min), (max))
/* In a command, right at its start: returns when there is nothing to run. */
#define CTL_TRY(expr)                                   \
	do {                                            \
		int status_ = (expr);                   \
		if (status_ != CTL_OK)                  \
			return status_ < 0 ? 0 : status_; \
	} while (0)

int ctl_load(struct ctl *c) MUST_USE;	 /* the configuration: CTL_OK or CTL_CONFIG, all mistakes printed */
int ctl_connect(struct ctl *c) MUST_USE; /* ctl_load, and a database with the right schema: or CTL_FAILURE */
int ctl_connect_any(struct ctl *c) MUST_USE; /* the same whatever the schema */

/* ---- complaints ---- */
int ctl_usage(const struct ctl *c, const char *fmt, ...) PRINTF_LIKE(2, 3); /* CTL_USAGE */
int ctl_fail(const char *what, const struct fault *f);			    /* CTL_FAILURE */
int ctl_complain(const char *fmt, ...) PRINTF_LIKE(1, 2);		    /* CTL_FAILURE */
void ctl_note(const char *fmt, ...) PRINTF_LIKE(1, 2);			    /* "refreshctl: ..." on stderr */

/* A UUID, or APP/CONSUMER/UNIFIED_API/SERVICE with what is special percent-encoded. CTL_OK or CTL_USAGE. */
int ctl_connection_id(const struct ctl *c, const char *text, uint8_t id[16]) MUST_USE;

/* SIGINT and SIGTERM set the flag from now on, instead of ending the program. */
extern volatile sig_atomic_t ctl_interrupted;
void ctl_catch_interrupt(void);

/* ---- output (ctl_output.c) ---- */
#define CTL_OUTPUT_MAX ((size_t)64 * 1024 * 1024)
#define CTL_TIME_BYTES 64
/* "2026-11-23 10:00:00Z (in 5 min)"; 0 is "-", INT64_MAX "never". */
const char *ctl_time(int64_t wall_us, char out[CTL_TIME_BYTES]);
const char *ctl_ago(int64_t wall_us, char out[CTL_TIME_BYTES]); /* "in 5 min", "3 h ago" */
void ctl_print_text(const char *s); /* what came from outside, on stdout, without control characters */

struct ctl_table;
struct ctl_table *ctl_table_new(const struct ctl *c, const char *const *headers, size_t n);
void ctl_table_cell(struct ctl_table *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
size_t ctl_table_rows(const struct ctl_table *t);
void ctl_table_print(struct ctl_table *t); /* prints and frees */

struct ctl_json { /* one value, or a stream of the elements of one array */
	struct buf text;
	struct jsonw w;
	bool stream, any;
};
void ctl_json_begin(struct ctl_json *j);
int ctl_json_end(struct ctl_json *j) MUST_USE; /* prints; CTL_OK or CTL_FAILURE */
void ctl_json_stream_begin(struct ctl_json *j); /* "[" */
void ctl_json_element_begin(struct ctl_json *j);
int ctl_json_element_end(struct ctl_json *j) MUST_USE;
void ctl_json_stream_end(struct ctl_json *j);
void ctl_json_time(struct jsonw *w, const char *key, int64_t wall_us); /* ISO; null for none or never */
void ctl_json_id(struct jsonw *w, const char *key, const uint8_t id[16]);

struct ctl_listing { /* a table or a stream of JSON, whichever was asked for */
	struct ctl_json json;
	struct ctl_table *table; /* NULL: JSON */
};
void ctl_listing_begin(struct ctl_listing *l, const struct ctl *c, const char *const *headers, size_t n);
void ctl_listing_end(struct ctl_listing *l);

/* Straight to the file descriptor: stdio would keep a copy. */
int ctl_print_secret(const struct buf *secret, bool newline) MUST_USE;

/* ---- the commands ---- */
int ctl_migrate(struct ctl *c, int argc, char **argv);
int ctl_app(struct ctl *c, int argc, char **argv);
int ctl_key(struct ctl *c, int argc, char **argv);
int ctl_import(struct ctl *c, int argc, char **argv);
int ctl_list(struct ctl *c, int argc, char **argv);
int ctl_show(struct ctl *c, int argc, char **argv);
int ctl_refresh(struct ctl *c, int argc, char **argv);
int ctl_token(struct ctl *c, int argc, char **argv);
int ctl_webhook(struct ctl *c, int argc, char **argv);
int ctl_status(struct ctl *c, int argc, char **argv);
int ctl_instance(struct ctl *c, int argc, char **argv);
int ctl_top(struct ctl *c, int argc, char **argv);
int ctl_providers(struct ctl *c, int argc, char **argv);
int ctl_rekey(struct ctl *c, int argc, char **argv);
int ctl_journal(struct ctl *c, int argc, char **argv);
int ctl_orphans(struct ctl *c, int argc, char **argv);

#endif
