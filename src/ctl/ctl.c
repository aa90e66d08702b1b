/*
 * ctl - the command line of refreshctl: dispatch, help, options, exit status.
 *
 * Exit status: 0 fine, 1 failure, 2 wrong use, 78 bad configuration. What is asked of a database is asked only when this
 * program may run on its schema, except by migrate and status.
 */
#include "ctl/ctl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/str.h"
#include "model/connection.h"
#include "service/migrations.h"

volatile sig_atomic_t ctl_interrupted;

static const struct ctl_command commands[] = {
	{ "migrate", "", "bring the database's schema to this program's version", "", ctl_migrate },
	{ "app", "add NAME | list", "applications", "", ctl_app },
	{ "key", "add APP [--scope S]... | list [APP] | revoke KEYID", "API keys of an application",
		"Scopes: connections:write connections:read credentials:read webhooks:write; without --scope a key gets\n"
		"connections:read and connections:write. The key is printed once, alone on stdout.\n", ctl_key },
	{ "import", "FILE|- [--dry-run] [--strict] [--create-apps] [--verbose]", "connections with their tokens, a JSON object a line",
		"A line: {\"application_id\":..,\"consumer_id\":..,\"unified_api\":..,\"service_id\":..,\"credentials\":{\"access_token\":..,\n"
		"\"refresh_token\":..,\"issued_at\":..,\"expires_in\":..},\"settings\":{..},\"metadata\":{..}}\n"
		"Bad lines are reported and skipped; with --strict nothing is written when there is one. --dry-run checks\n"
		"everything and writes nothing. --create-apps makes applications that are not there. --verbose shows every bad\n"
		"line instead of the first 20.\n", ctl_import },
	{ "list", "[--state S] [--health H] [--app A] [--in-doubt] [--limit N]", "connections",
		"--in-doubt shows those whose refresh token was presented without an answer that reached us, and those that were lost by it.\n"
		"--limit 0 shows all; the default is 100.\n", ctl_list },
	{ "show", "ID", "one connection, without its secrets", "", ctl_show },
	{ "refresh", "ID [--timeout 60s]", "refresh a connection now and wait for the outcome",
		"Also tries a connection whose grant was found dead. Exit status 0 only when it was refreshed.\n", ctl_refresh },
	{ "token", "ID [--force]", "print the access token, for scripts",
		"Refused when it is expired or the connection is not callable, unless --force is given.\n", ctl_token },
	{ "webhook", "list | add --app APP --url URL [--event E]... [--description D] | test NAME|ID [--timeout 30s]"
		" | enable NAME|ID | remove ID", "webhook endpoints",
		"An endpoint of the configuration is named by its NAME, one of the API by its ID. add makes one of the API for an\n"
		"application and prints its secret, once, and its public key; without --event it gets all events.\n", ctl_webhook },
	{ "status", "", "is everything well? exit status 1 when not", "", ctl_status },
	{ "instance", "forget NAME", "give up a daemon that will never come back",
		"What it had asked a provider and never wrote down may then be asked again by the others at once, instead of after\n"
		"refresh.takeover_delay. Its answers are lost only if it really never comes back. Refused while it is alive.\n", ctl_instance },
	{ "top", "", "status again and again, on a terminal; q leaves", "", ctl_top },
	{ "providers", "[NAME]", "providers of the configuration and how their connections are", "", ctl_providers },
	{ "rekey", "[--check]", "seal everything under the first key of the keyring",
		"May be stopped and started again at any time. --check only counts values by key.\n", ctl_rekey },
	{ "journal", "list | replay", "answers that are on disk", "", ctl_journal },
	{ "orphans", "list [--all] | merge ID [--attempt N] [--force]", "tokens that could not be written, because theirs had moved on", "",
		ctl_orphans },
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

/* ---------------------------------------------------------------- complaints */

static void complain(const char *fmt, va_list ap) PRINTF_LIKE(1, 0);

static void complain(const char *fmt, va_list ap)
{
	char text[1024];
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	fputs("refreshctl: ", stderr);
	for (const char *p = text; *p != '\0'; p++) {
		unsigned char b = (unsigned char)*p;
		(void)fputc(b < 0x20 || b == 0x7f ? '?' : b, stderr);
	}
	(void)fputc('\n', stderr);
}

void ctl_note(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	complain(fmt, ap);
	va_end(ap);
}

int ctl_complain(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	complain(fmt, ap);
	va_end(ap);
	return CTL_FAILURE;
}

int ctl_fail(const char *what, const struct fault *f)
{
	return ctl_complain("%s: %s", what, f->text);
}

int ctl_usage(const struct ctl *c, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	complain(fmt, ap);
	va_end(ap);
	if (c != NULL && c->command != NULL)
		fprintf(stderr, "Usage: refreshctl [-c FILE] [--json] %s %s\n", c->command->name, c->command->synopsis);
	else
		fputs("Try 'refreshctl --help'.\n", stderr);
	return CTL_USAGE;
}

/* ---------------------------------------------------------------- help */

static void print_help(void)
{
	fputs("Usage: refreshctl [-c FILE] [--json] COMMAND ...\n\n"
	      "Looks after refreshd's vault of OAuth 2.0 connections.\n\n",
		stdout);
	for (size_t i = 0; i < N_COMMANDS; i++) {
		printf("  %-10s %s\n", commands[i].name, commands[i].summary);
		if (commands[i].synopsis[0] != '\0')
			printf("  %-10s   %s %s\n", "", commands[i].name, commands[i].synopsis);
	}
	fputs("\n  -c, --config FILE  the configuration; default " SYSCONFDIR "/refreshd/refreshd.yaml\n"
	      "      --json         results as JSON\n"
	      "  -h, --help         this text, or a command's\n"
	      "  -V, --version      the version\n\n"
	      "ID is a connection's UUID or APP/CONSUMER/UNIFIED_API/SERVICE, with '/' inside of a part as %2F and '%' as %25.\n"
	      "Exit status: 0 fine, 1 failure, 2 wrong use, 78 bad configuration. See refreshctl(1), refreshd.yaml(5).\n",
		stdout);
}

static void print_command_help(const struct ctl_command *k)
{
	printf("Usage: refreshctl [-c FILE] [--json] %s %s\n\n%s\n", k->name, k->synopsis, k->summary);
	if (k->details[0] != '\0')
		printf("\n%s", k->details);
}

/* ---------------------------------------------------------------- options */

static int take_value(struct ctl *c, const struct ctl_opt *o, const char *value)
{
	switch (o->kind) {
	case CTL_VALUE:
		*(const char **)o->to = value;
		return CTL_OK;
	case CTL_NUMBER:
		if (str_parse_i64(value, strlen(value), o->to) != 0 || *(int64_t *)o->to < 0)
			return ctl_usage(c, "--%s: '%.40s' is not a whole number", o->name, value);
		return CTL_OK;
	case CTL_DURATION:
		if (str_parse_duration_us(value, strlen(value), o->to) != 0)
			return ctl_usage(c, "--%s: '%.40s' is not a duration like 30s or 5m", o->name, value);
		return CTL_OK;
	case CTL_LIST: {
		struct ctl_list *l = o->to;
		if (l->n == sizeof(l->v) / sizeof(l->v[0]))
			return ctl_usage(c, "--%s: given too often", o->name);
		l->v[l->n++] = value;
		return CTL_OK;
	}
	case CTL_FLAG:
		break;
	}
	*(bool *)o->to = true;
	return CTL_OK;
}

static const struct ctl_opt *find_option(const struct ctl_opt *opts, size_t n, const char *name, size_t len)
{
	for (size_t i = 0; i < n; i++)
		if (strlen(opts[i].name) == len && memcmp(opts[i].name, name, len) == 0)
			return &opts[i];
	return NULL;
}

/* The option at argv[*i]; moves *i over its value. */
static int take_option(struct ctl *c, int argc, char **argv, int *i, const struct ctl_opt *opts, size_t n_opts)
{
	const struct ctl_opt common[] = { { "config", CTL_VALUE, &c->config }, { "json", CTL_FLAG, &c->json } };
	const char *word = argv[*i];
	bool dash_c = strncmp(word, "-c", 2) == 0;
	const char *name = dash_c ? "config" : word + 2;
	const char *eq = dash_c ? NULL : strchr(name, '=');
	size_t len = eq != NULL ? (size_t)(eq - name) : strlen(name);
	const struct ctl_opt *o = NULL;
	if (dash_c || word[1] == '-') {
		o = find_option(common, 2, name, len);
		if (o == NULL)
			o = find_option(opts, n_opts, name, len);
	}
	if (o == NULL)
		return ctl_usage(c, "unknown option '%.40s'", word);
	const char *value = eq != NULL ? eq + 1 : NULL;
	if (dash_c && word[2] != '\0')
		value = word + 2;
	if (o->kind == CTL_FLAG)
		return value == NULL ? take_value(c, o, NULL) : ctl_usage(c, "--%s takes no value", o->name);
	if (value == NULL) {
		if (*i + 1 >= argc)
			return ctl_usage(c, "--%s needs a value", o->name);
		value = argv[++*i];
	}
	return take_value(c, o, value);
}

int ctl_options(struct ctl *c, int argc, char **argv, const struct ctl_opt *opts, size_t n_opts, int min_words, int max_words)
{
	bool options_over = false;
	c->n_words = 0;
	for (int i = 0; i < argc; i++) {
		char *word = argv[i];
		if (options_over || word[0] != '-' || word[1] == '\0') {
			c->words[c->n_words++] = word;
		} else if (strcmp(word, "--") == 0) {
			options_over = true;
		} else if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
			print_command_help(c->command);
			return -1;
		} else {
			int status = take_option(c, argc, argv, &i, opts, n_opts);
			if (status != CTL_OK)
				return status;
		}
	}
	if (c->n_words < min_words)
		return ctl_usage(c, "%s: something is missing", c->command->name);
	if (c->n_words > max_words)
		return ctl_usage(c, "%s: '%.60s' is one word too many", c->command->name, c->words[max_words]);
	return CTL_OK;
}

/* ---------------------------------------------------------------- configuration, database */

int ctl_load(struct ctl *c)
{
	struct conf_errors errors = { NULL, 0 };
	if (c->conf != NULL)
		return CTL_OK;
	int rc = conf_load(c->config, &c->conf, &errors);
	if (rc != 0) {
		ctl_note("%s: the configuration cannot be used", c->config);
		conf_errors_print(&errors, stderr);
	}
	conf_errors_fini(&errors);
	return rc == 0 ? CTL_OK : CTL_CONFIG;
}

int ctl_connect_any(struct ctl *c)
{
	struct fault f = { 0 };
	CTL_TRY(ctl_load(c));
	if (pgsync_connect(c->conf->database.url, "refreshctl", &c->pg, &f) != 0)
		return ctl_fail("database", &f);
	return CTL_OK;
}

int ctl_connect(struct ctl *c)
{
	struct fault f = { 0 };
	struct migrations_state schema;
	CTL_TRY(ctl_connect_any(c));
	if (migrations_look(c->pg, &schema, &f) != 0)
		return ctl_fail("database", &f);
	if (!migrations_fit(&schema)) {
		(void)migrations_refuse(&schema, "refreshctl", &f);
		return ctl_fail("database", &f);
	}
	return CTL_OK;
}

/* ---------------------------------------------------------------- small things for all commands */

int ctl_connection_id(const struct ctl *c, const char *text, uint8_t id[16])
{
	struct fault f = { 0 };
	struct buf parts[4];
	int n = 0, rc = 0;
	if (str_parse_uuid(text, strlen(text), id) == 0)
		return CTL_OK;
	for (int i = 0; i < 4; i++)
		buf_init(&parts[i], 4096);
	for (const char *p = text; p != NULL && rc == 0; n++) {
		const char *slash = strchr(p, '/');
		size_t len = slash != NULL ? (size_t)(slash - p) : strlen(p);
		if (n < 4)
			rc = str_percent_decode(&parts[n], p, len, false);
		p = slash != NULL ? slash + 1 : NULL;
	}
	const struct conn_key key = { buf_str(&parts[0]), buf_str(&parts[1]), buf_str(&parts[2]), buf_str(&parts[3]) };
	int status = CTL_OK;
	if (rc != 0)
		status = ctl_usage(c, "'%.200s': a broken %%-escape ('%%' itself is %%25)", text);
	else if (n != 4)
		status = ctl_usage(c, "'%.200s': neither a UUID nor APP/CONSUMER/UNIFIED_API/SERVICE", text);
	else if (conn_key_check(&key, &f) != 0)
		status = ctl_usage(c, "'%.200s': %s", text, f.text);
	else
		conn_id_of(&key, id);
	for (int i = 0; i < 4; i++)
		buf_fini(&parts[i]);
	return status;
}

static void on_interrupt(int signo)
{
	ctl_interrupted = signo;
}

void ctl_catch_interrupt(void)
{
	struct sigaction a = { .sa_handler = on_interrupt }; /* no SA_RESTART: a read from a pipe must return */
	(void)sigemptyset(&a.sa_mask);
	(void)sigaction(SIGINT, &a, NULL);
	(void)sigaction(SIGTERM, &a, NULL);
}

/* ---------------------------------------------------------------- main */

static void harden(void)
{
	const struct rlimit none = { 0, 0 };
	(void)setrlimit(RLIMIT_CORE, &none);
#ifndef WITH_SANITIZERS /* the leak checker attaches to its own process */
	(void)prctl(PR_SET_DUMPABLE, 0);
#endif
}

/* Options before the command. CTL_OK with *at on the command, -1 when all is done, or a status. */
static int leading_options(struct ctl *c, int argc, char **argv, int *at)
{
	for (*at = 1; *at < argc && argv[*at][0] == '-'; ++*at) {
		const char *word = argv[*at];
		if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
			print_help();
			return -1;
		}
		if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0) {
			puts("refreshctl " PACKAGE_VERSION);
			return -1;
		}
		int status = take_option(c, argc, argv, at, NULL, 0);
		if (status != CTL_OK)
			return status;
	}
	return *at < argc ? CTL_OK : ctl_usage(c, "no command");
}

static int run(struct ctl *c, int argc, char **argv)
{
	int at;
	int status = leading_options(c, argc, argv, &at);
	if (status != CTL_OK)
		return status < 0 ? CTL_OK : status;
	if (strcmp(argv[at], "help") == 0) {
		print_help();
		return CTL_OK;
	}
	for (size_t i = 0; i < N_COMMANDS; i++) {
		if (strcmp(argv[at], commands[i].name) == 0) {
			c->command = &commands[i];
			return commands[i].run(c, argc - at - 1, argv + at + 1);
		}
	}
	return ctl_usage(c, "unknown command '%.40s'", argv[at]);
}

int main(int argc, char **argv)
{
	struct ctl c = {
		.config = SYSCONFDIR "/refreshd/refreshd.yaml",
		.out_tty = isatty(STDOUT_FILENO) == 1,
		.err_tty = isatty(STDERR_FILENO) == 1,
	};
	harden();
	c.words = mem_calloc((size_t)argc + 1, sizeof(*c.words));
	int status = run(&c, argc, argv);
	if ((fflush(stdout) != 0 || ferror(stdout)) && status == CTL_OK)
		status = ctl_complain("standard output: it cannot be written");
	pgsync_free(c.pg);
	conf_unref(c.conf);
	mem_free(c.words);
	return status;
}
