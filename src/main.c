/*
 * main - the command line of refreshd.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/status.h"
#include "daemon.h"
#include "dev.h"
#include "model/conf.h"

#define EXIT_USAGE_ 2
#define DUMP_MAX ((size_t)16 * 1024 * 1024)

static const char help[] =
	"Usage: refreshd -c FILE [--check-config | --dump-config]\n"
	"       refreshd --dev [--dir DIR]\n"
	"\n"
	"Keeps OAuth 2.0 connections alive: refreshes their tokens before they expire and tells when it cannot.\n"
	"\n"
	"  -c, --config FILE   the configuration (refreshd.yaml(5)); default " SYSCONFDIR "/refreshd/refreshd.yaml\n"
	"      --check-config  report every mistake as file:line:column: message, touch nothing\n"
	"      --dump-config   print the effective configuration; secrets are shown as their file paths\n"
	"      --dev           a whole throwaway vault on this machine, for trying things out; not for production\n"
	"      --dir DIR       with --dev: keep its files in DIR instead of a temporary folder\n"
	"  -h, --help          this text\n"
	"  -V, --version       the version\n"
	"\n"
	"Signals: SIGHUP reads the configuration again (a bad one changes nothing), SIGTERM finishes what was sent and exits.\n"
	"Exit status: 0 fine, 1 failure, 2 wrong use, 78 bad configuration. See refreshd(8), refreshctl(1).\n";

struct call {
	const char *config;
	bool check, dump, dev;
	const char *dir;
};

static int usage(const char *message)
{
	fprintf(stderr, "refreshd: %s\nTry 'refreshd --help'.\n", message);
	return EXIT_USAGE_;
}

/* -1: go on. */
static int parse(int argc, char **argv, struct call *c)
{
	static const struct option options[] = {
		{ "config", required_argument, NULL, 'c' }, { "check-config", no_argument, NULL, 'k' }, { "dump-config", no_argument, NULL, 'd' },
		{ "dev", no_argument, NULL, 'v' },	    { "dir", required_argument, NULL, 'D' },	{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },	    { NULL, 0, NULL, 0 },
	};
	for (int o; (o = getopt_long(argc, argv, "c:hV", options, NULL)) != -1;) {
		switch (o) {
		case 'c':
			c->config = optarg;
			break;
		case 'k':
			c->check = true;
			break;
		case 'd':
			c->dump = true;
			break;
		case 'v':
			c->dev = true;
			break;
		case 'D':
			c->dir = optarg;
			break;
		case 'h':
			fputs(help, stdout);
			return 0;
		case 'V':
			puts("refreshd " PACKAGE_VERSION);
			return 0;
		default:
			return usage("that is not an option of refreshd");
		}
	}
	if (optind < argc)
		return usage("it takes no arguments besides options");
	if (c->dev && (c->config != NULL || c->check || c->dump))
		return usage("--dev makes its own configuration: it goes with --dir only");
	if (c->dir != NULL && !c->dev)
		return usage("--dir goes with --dev");
	if (c->check && c->dump)
		return usage("--check-config or --dump-config, not both");
	return -1;
}

static int dump(const struct conf *c)
{
	struct buf out;
	buf_init(&out, DUMP_MAX);
	int e = conf_dump(c, &out);
	if (e == 0)
		fputs(buf_str(&out), stdout);
	else
		fprintf(stderr, "refreshd: %s\n", status_text(e));
	buf_fini(&out);
	return e == 0 ? 0 : EXIT_FAILURE;
}

static int with_config(const struct call *c)
{
	const char *path = c->config != NULL ? c->config : SYSCONFDIR "/refreshd/refreshd.yaml";
	struct conf *conf = NULL;
	struct conf_errors errors = { 0 };
	if (conf_load(path, &conf, &errors) != 0) {
		conf_errors_print(&errors, stderr);
		fprintf(stderr, "refreshd: %zu mistake%s in the configuration\n", errors.n, errors.n == 1 ? "" : "s");
		conf_errors_fini(&errors);
		return c->check ? EXIT_FAILURE : EX_CONFIG;
	}
	conf_errors_fini(&errors);
	int code = 0;
	if (c->check)
		printf("%s: fine (%zu providers, %zu clients, %zu webhooks)\n", path, conf->n_providers, conf->n_clients, conf->n_webhooks);
	else if (c->dump)
		code = dump(conf);
	else
		code = daemon_run(conf);
	conf_unref(conf);
	return code;
}

int main(int argc, char **argv)
{
	struct call c = { 0 };
	mem_keep_freed();
	int code = parse(argc, argv, &c);
	if (code >= 0)
		return code;
	return c.dev ? dev_run(c.dir) : with_config(&c);
}
