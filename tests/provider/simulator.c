/*
 * simulator - command line, readiness, and the end.
 *
 * Builds the loop and the parts, says where it listens, and on SIGTERM writes out what the logs still hold
 * before it exits. Everything that a test can change later goes through the control plane.
 */
#include "provider/simulator.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"

#define EXIT_USAGE 2
#define FLUSH_MS 100
#define MAX_REALM_OPTIONS 256

struct options {
	const char *listen, *cert, *key, *ca, *ready_file, *ledger, *sink_log, *dns;
	const char *realms[MAX_REALM_OPTIONS];
	unsigned realm_count;
};

static const char usage[] =
	"Usage: simulator [OPTION]...\n"
	"A token endpoint with a ledger, scripted faults and a webhook sink, for tests.\n\n"
	"  --listen ADDR:PORT      where to listen (127.0.0.1:0; port 0 = any)\n"
	"  --tls-cert FILE         serve TLS with this certificate chain (PEM) ...\n"
	"  --tls-key FILE          ... and this private key\n"
	"  --tls-client-ca FILE    ask for client certificates of this CA (realms with auth=tls)\n"
	"  --ready-file FILE       write the readiness line here as well, by rename\n"
	"  --ledger FILE           append one JSON line per presented refresh token\n"
	"  --sink-log FILE         append one JSON line per received webhook\n"
	"  --dns ADDR:PORT         answer DNS queries for *.test (UDP)\n"
	"  --realm NAME:KEY=VALUE,...  make a provider; see tests/provider/README.md\n"
	"  --help, --version\n";

int sim_flush(struct sim *s)
{
	int rc = ledger_flush(&s->ledger);
	int rc2 = sinks_flush(s->sinks);
	return rc != 0 ? rc : rc2;
}

static void on_flush(evutil_socket_t fd, short what, void *arg)
{
	struct sim *s = arg;
	(void)fd;
	(void)what;
	if (sim_flush(s) != 0)
		(void)event_base_loopbreak(s->base); /* a judge without a ledger must not go on */
}

static void on_signal(evutil_socket_t fd, short what, void *arg)
{
	struct sim *s = arg;
	(void)fd;
	(void)what;
	(void)event_base_loopexit(s->base, NULL);
}

static int sim_init(struct sim *s, struct fault *f)
{
	struct event_config *cfg = event_config_new();
	struct timeval every = {.tv_sec = 0, .tv_usec = FLUSH_MS * 1000};
	ALWAYS(cfg != NULL);
	put(event_config_set_flag(cfg, EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST));
	s->base = event_base_new_with_config(cfg);
	event_config_free(cfg);
	if (s->base == NULL)
		return fault_set(f, ST_IO, "cannot make an event loop");
	s->flush_timer = event_new(s->base, -1, EV_PERSIST, on_flush, s);
	s->sigterm = evsignal_new(s->base, SIGTERM, on_signal, s);
	s->sigint = evsignal_new(s->base, SIGINT, on_signal, s);
	ALWAYS(s->flush_timer != NULL && s->sigterm != NULL && s->sigint != NULL);
	put(event_add(s->flush_timer, &every));
	put(evsignal_add(s->sigterm, NULL));
	put(evsignal_add(s->sigint, NULL));
	TAILQ_INIT(&s->conns);
	s->ledger.fd = -1;
	s->sinks = sinks_new();
	s->start_us = sys_mono_us();
	sys_random(s->secret, sizeof s->secret);
	form_init(&s->form);
	form_init(&s->query);
	buf_init(&s->reply.headers, 65536);
	buf_init(&s->reply.body, 2 * BODY_MAX);
	buf_init(&s->wire, 3 * BODY_MAX);
	buf_init(&s->tmp, 65536);
	return 0;
}

static void sim_fini(struct sim *s)
{
	server_stop(s);
	dns_stop(s);
	realms_free(s);
	ledger_close(&s->ledger);
	sinks_free(s->sinks);
	form_fini(&s->form);
	form_fini(&s->query);
	buf_fini(&s->reply.headers);
	buf_fini(&s->reply.body);
	buf_fini(&s->wire);
	buf_fini(&s->tmp);
	event_free(s->flush_timer);
	event_free(s->sigterm);
	event_free(s->sigint);
	event_base_free(s->base);
}

static int write_ready_file(const char *path, const char *line, struct fault *f)
{
	char *tmp = mem_printf("%s.%ld", path, (long)getpid());
	FILE *file = fopen(tmp, "we");
	bool ok = file != NULL && fputs(line, file) >= 0;
	if (file != NULL && fclose(file) != 0)
		ok = false;
	ok = ok && rename(tmp, path) == 0;
	int rc = ok ? 0 : fault_set(f, ST_IO, "ready file %s: %s", path, strerror(errno));
	mem_free(tmp);
	return rc;
}

static int announce(struct sim *s, const struct options *o, struct fault *f)
{
	char dns[32] = "", *line;
	if (s->dns != NULL)
		(void)snprintf(dns, sizeof dns, ",\"dns_port\":%u", dns_port(s));
	line = mem_printf("{\"event\":\"ready\",\"port\":%u,\"tls\":%s%s,\"pid\":%ld}\n", s->port,
		s->tls != NULL ? "true" : "false", dns, (long)getpid());
	int rc = o->ready_file != NULL ? write_ready_file(o->ready_file, line, f) : 0;
	if (rc == 0 && (fputs(line, stdout) < 0 || fflush(stdout) != 0))
		rc = fault_set(f, ST_IO, "stdout: %s", strerror(errno));
	mem_free(line);
	return rc;
}

static int start(struct sim *s, const struct options *o, struct fault *f)
{
	int rc = 0;
	for (unsigned i = 0; rc == 0 && i < o->realm_count; i++)
		rc = realm_parse(s, o->realms[i], f);
	if (rc == 0 && o->ledger != NULL)
		rc = ledger_open(&s->ledger, o->ledger, f);
	if (rc == 0 && o->sink_log != NULL)
		rc = sinks_open_log(s->sinks, o->sink_log, f);
	if (rc == 0 && o->dns != NULL)
		rc = dns_start(s, o->dns, f);
	if (rc == 0)
		rc = server_start(s, o->listen, o->cert, o->key, o->ca, f);
	return rc == 0 ? announce(s, o, f) : rc;
}

static void raise_file_limit(void)
{
	struct rlimit lim;
	if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
		lim.rlim_cur = lim.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &lim); /* fewer connections then, and accept says so */
	}
}

/* -1 = go on; otherwise the exit code. */
static int read_options(int argc, char **argv, struct options *o)
{
	static const struct option longs[] = {{"listen", required_argument, NULL, 'l'},
		{"tls-cert", required_argument, NULL, 'c'}, {"tls-key", required_argument, NULL, 'k'},
		{"tls-client-ca", required_argument, NULL, 'a'}, {"ready-file", required_argument, NULL, 'f'},
		{"ledger", required_argument, NULL, 'j'}, {"sink-log", required_argument, NULL, 's'},
		{"dns", required_argument, NULL, 'd'}, {"realm", required_argument, NULL, 'r'},
		{"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, {NULL, 0, NULL, 0}};
	int opt;
	while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (opt) {
		case 'l':
			o->listen = optarg;
			break;
		case 'c':
			o->cert = optarg;
			break;
		case 'k':
			o->key = optarg;
			break;
		case 'a':
			o->ca = optarg;
			break;
		case 'f':
			o->ready_file = optarg;
			break;
		case 'j':
			o->ledger = optarg;
			break;
		case 's':
			o->sink_log = optarg;
			break;
		case 'd':
			o->dns = optarg;
			break;
		case 'r':
			if (o->realm_count == MAX_REALM_OPTIONS) {
				fprintf(stderr, "simulator: more than %d realms\n", MAX_REALM_OPTIONS);
				return EXIT_USAGE;
			}
			o->realms[o->realm_count++] = optarg;
			break;
		case 'h':
			return fputs(usage, stdout) < 0 || fflush(stdout) != 0;
		case 'V':
			return printf("simulator (refreshd) %s\n", PACKAGE_VERSION) < 0 ||
			       fflush(stdout) != 0;
		default:
			fputs("Try 'simulator --help'.\n", stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc || (o->cert == NULL) != (o->key == NULL) || (o->ca != NULL && o->cert == NULL)) {
		fputs("simulator: wrong use: --tls-cert and --tls-key go together, and there are no "
		      "arguments\n",
			stderr);
		return EXIT_USAGE;
	}
	return -1;
}

int main(int argc, char **argv)
{
	struct options o = {.listen = "127.0.0.1:0"};
	struct fault f = {0};
	static struct sim s;
	int code = read_options(argc, argv, &o);
	if (code >= 0)
		return code;
	(void)signal(SIGPIPE, SIG_IGN);
	raise_file_limit();
	int rc = sim_init(&s, &f);
	if (rc == 0)
		rc = start(&s, &o, &f);
	if (rc == 0 && event_base_dispatch(s.base) < 0)
		rc = fault_set(&f, ST_IO, "the event loop failed");
	if (rc == 0) {
		server_stop(&s); /* open presentations end here, before the last flush */
		rc = sim_flush(&s);
		if (rc != 0)
			fault_set(&f, ST_IO, "a log could not be written: %s", strerror(s.ledger.error));
	}
	if (rc != 0)
		fprintf(stderr, "simulator: %s\n", f.text);
	if (s.base != NULL)
		sim_fini(&s);
	return rc == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
