/*
 * dev - builds a throwaway vault around the ordinary daemon: folder, Postgres, schema, keys, configuration.
 *
 * Everything is done with the parts that production uses; only where they come from is special. The
 * configuration is written to a file and read back, so that refreshctl and SIGHUP see what the daemon sees.
 * Must not: hold a way of working that the daemon does not have without --dev.
 */
#include "dev.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base64.h"
#include "base/buf.h"
#include "base/mem.h"
#include "base/sys.h"
#include "daemon.h"
#include "dev_postgres.h"
#include "io/pgsync.h"
#include "model/conf.h"
#include "service/migrations.h"
#include "service/vault.h"

#define APPLICATION "dev"
#define DATABASE "refreshd"
#define METRICS_PORT 9464
#define API_PORT 8090
#define PORTS 100 /* tried from these on */
#define LOCK_NAME "refreshd-dev.lock"
#define EXAMPLE "providers.d/example.yaml"

struct dev {
	char *home;
	bool keep; /* --dir was given */
	int lock;
	struct dev_postgres *postgres;
	char *url, *config;
	uint16_t metrics_port, api_port;
	bool application_new;
	struct buf key; /* the API key, when it was made just now */
};

/* ---------------------------------------------------------------- the folder */

/* A path that Postgres and refreshctl understand from anywhere. */
static char *absolute(const char *dir)
{
	char here[PATH_MAX];
	bool relative = dir[0] != '/' && getcwd(here, sizeof here) != NULL;
	char *path = relative ? mem_printf("%s/%s", here, dir) : mem_strdup(dir);
	size_t n = strlen(path);
	while (n > 1 && path[n - 1] == '/')
		path[--n] = '\0';
	return path;
}

static bool is_empty(const char *dir)
{
	DIR *d = opendir(dir);
	bool empty = d != NULL;
	for (struct dirent *e; empty && (e = readdir(d)) != NULL;)
		empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
	if (d != NULL)
		(void)closedir(d);
	return empty;
}

/* Others may pass through where Postgres runs as another user; its own subfolder and our files are closed. */
static mode_t home_mode(void)
{
	return geteuid() == 0 ? 0711 : 0700;
}

static int make_temporary(struct dev *d, struct fault *f)
{
	const char *tmp = getenv("TMPDIR");
	d->home = mem_printf("%s/refreshd-dev-XXXXXX", tmp != NULL && tmp[0] == '/' ? tmp : "/tmp");
	int e = dev_postgres_home_check(d->home, f);
	if (e != 0)
		return e;
	if (mkdtemp(d->home) == NULL || chmod(d->home, home_mode()) != 0)
		return fault_set(f, ST_IO, "%s: %s", d->home, strerror(errno));
	return 0;
}

static int use_given(struct dev *d, const char *dir, struct fault *f)
{
	d->home = absolute(dir);
	int e = dev_postgres_home_check(d->home, f);
	if (e != 0)
		return e;
	if (mkdir(d->home, 0700) == 0)
		return chmod(d->home, home_mode()) == 0
			       ? 0
			       : fault_set(f, ST_IO, "%s: %s", d->home, strerror(errno));
	if (errno != EEXIST)
		return fault_set(f, ST_IO, "%s: %s", d->home, strerror(errno));
	char *lock = mem_printf("%s/" LOCK_NAME, d->home);
	if (access(lock, F_OK) != 0 && !is_empty(d->home))
		e = fault_set(f, ST_EXISTS,
			"%s: it must be a new or empty folder, or one that refreshd --dev made", d->home);
	mem_free(lock);
	return e;
}

/* One at a time. The keeper of Postgres inherits the lock, so that it is held until the server is down. */
static int lock_folder(struct dev *d, struct fault *f)
{
	char *path = mem_printf("%s/" LOCK_NAME, d->home);
	int e = 0;
	d->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (d->lock < 0)
		e = fault_set(f, ST_IO, "%s: %s", path, strerror(errno));
	else if (flock(d->lock, LOCK_EX | LOCK_NB) != 0)
		e = fault_set(f, ST_EXISTS, "%s: another refreshd --dev uses it", d->home);
	mem_free(path);
	return e;
}

static int make_subfolder(const struct dev *d, const char *name, struct fault *f)
{
	char *path = mem_printf("%s/%s", d->home, name);
	int e = mkdir(path, 0700) == 0 || errno == EEXIST
			? 0
			: fault_set(f, ST_IO, "%s: %s", path, strerror(errno));
	mem_free(path);
	return e;
}

/* `flags`: O_EXCL keeps what is there, O_TRUNC does not. */
static int write_file(
	const struct dev *d, const char *name, int flags, const struct buf *text, struct fault *f)
{
	char *path = mem_printf("%s/%s", d->home, name);
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, 0600), e = 0;
	if (fd < 0 && errno == EEXIST)
		e = ST_EXISTS;
	else if (fd < 0 || write(fd, text->data, text->len) != (ssize_t)text->len)
		e = fault_set(f, ST_IO, "%s: %s", path, strerror(errno));
	if (fd >= 0 && close(fd) != 0 && e == 0)
		e = fault_set(f, ST_IO, "%s: %s", path, strerror(errno));
	mem_free(path);
	return e;
}

/* ---------------------------------------------------------------- keys */

/* Without the keyring that sealed them, the tokens in a kept database are lost: never make another one for
 * them. */
static int make_keyring(const struct dev *d, struct fault *f)
{
	char *data = mem_printf("%s/postgres/data", d->home), *keyring = mem_printf("%s/keyring", d->home);
	uint8_t raw[32];
	struct buf text;
	int e = 0;
	buf_init_secret(&text, 256);
	sys_random(raw, sizeof raw);
	if (access(keyring, F_OK) != 0 && access(data, F_OK) == 0)
		e = fault_set(f, ST_NOT_FOUND,
			"%s is missing, without which the tokens of this folder's database cannot be opened: "
			"bring it back, or remove %s",
			keyring, d->home);
	if (e == 0)
		e = buf_puts(&text, "dev-1 ");
	if (e == 0)
		e = base64_encode(&text, raw, sizeof raw);
	if (e == 0)
		e = buf_putc(&text, '\n');
	if (e == 0)
		e = write_file(d, "keyring", O_EXCL, &text, f);
	mem_wipe(raw, sizeof raw);
	buf_fini(&text);
	mem_free(data);
	mem_free(keyring);
	return e == ST_EXISTS ? 0 : e;
}

static int make_api_key(struct dev *d, struct pgsync *pg, struct fault *f)
{
#define X(word) word,
	static const char *const scopes[] = {VAULT_SCOPE_LIST(X)};
#undef X
	uint8_t hash[32];
	char id[VAULT_KEY_ID_BYTES];
	vault_key_new(&d->key);
	vault_key_hash(buf_str(&d->key), d->key.len, hash);
	return vault_key_add(pg, APPLICATION, hash, scopes, sizeof scopes / sizeof *scopes, id, f);
}

/* ---------------------------------------------------------------- the database */

static int connect_to(const struct dev *d, const char *database, struct pgsync **pg, struct fault *f)
{
	char *url = dev_postgres_url(d->postgres, database);
	int e = pgsync_connect(url, "refreshd --dev", pg, f);
	mem_free(url);
	return e;
}

static int make_database(const struct dev *d, struct fault *f)
{
	static const struct pgstmt exists = {
		"dev_database", "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = '" DATABASE "')"};
	struct pgsync *pg = NULL;
	struct pgresult r;
	int e = connect_to(d, "postgres", &pg, f);
	if (e != 0)
		return e;
	e = pgsync_query(pg, &exists, NULL, &r, NULL, f);
	if (e == 0) {
		bool there = pgresult_bool(&r, 0, 0);
		pgsync_clear(&r);
		if (!there)
			e = pgsync_exec(pg, "CREATE DATABASE " DATABASE, f);
	}
	pgsync_free(pg);
	return e;
}

/* Application and key in one transaction: an application that is there had its key shown. */
static int make_application(struct dev *d, struct pgsync *pg, struct fault *f)
{
	int e = pgsync_exec(pg, "BEGIN", f);
	if (e == 0)
		e = vault_app_add(pg, APPLICATION, &d->application_new, f);
	if (e == 0 && d->application_new)
		e = make_api_key(d, pg, f);
	if (e == 0)
		e = pgsync_exec(pg, "COMMIT", f);
	return e;
}

static int prepare_database(struct dev *d, struct fault *f)
{
	struct pgsync *pg = NULL;
	struct migrations_state from = { 0 };
	int e = make_database(d, f);
	if (e == 0)
		e = connect_to(d, DATABASE, &pg, f);
	if (e == 0)
		e = migrations_apply(pg, &from, f);
	if (e == 0)
		e = make_application(d, pg, f);
	pgsync_free(pg);
	return e;
}

/* ---------------------------------------------------------------- the configuration */

static bool port_is_free(uint16_t port)
{
	struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	bool free = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
		    bind(fd, (const struct sockaddr *)&sin, sizeof sin) == 0 && listen(fd, 1) == 0;
	if (fd >= 0)
		(void)close(fd);
	return free;
}

static int find_port(const char *what, uint16_t from, uint16_t *out, struct fault *f)
{
	for (uint16_t port = from; port < from + PORTS; port++) {
		if (port_is_free(port)) {
			*out = port;
			return 0;
		}
	}
	return fault_set(
		f, ST_EXISTS, "no free port for %s on 127.0.0.1 from %d to %d", what, from, from + PORTS - 1);
}

static const char example[] =
	"# A provider for `refreshd --dev`. Take the \"# \" away, fill in your own values, put the client's "
	"secret into the file\n"
	"# (chmod 600), and tell the running refreshd with SIGHUP. Every option: man refreshd.yaml\n"
	"#\n"
	"# providers:\n"
	"#   xero:\n"
	"#     name: Xero\n"
	"#     unified_apis: [accounting]\n"
	"#     token_url: https://identity.xero.com/connect/token\n"
	"#     client_auth: client_secret_basic\n"
	"#     rotation: grace\n"
	"#     rotation_grace: 30m\n"
	"#\n"
	"# clients:\n"
	"#   - application: " APPLICATION "\n"
	"#     provider: xero\n"
	"#     client_id: 0A1B2C\n"
	"#     client_secret_file: %s/xero-secret\n";

static int write_example(const struct dev *d, struct fault *f)
{
	struct buf text;
	buf_init(&text, 64 * 1024);
	int e = buf_printf(&text, example, d->home);
	if (e == 0)
		e = write_file(d, EXAMPLE, O_EXCL, &text, f);
	buf_fini(&text);
	return e == ST_EXISTS ? 0 : e;
}

static int write_config(const struct dev *d, struct fault *f)
{
	struct buf text;
	buf_init(&text, 64 * 1024);
	int e = buf_printf(&text,
		"# Written by every start of `refreshd --dev`: changes here are lost. Yours go to "
		"providers.d/.\n"
		"instance: dev\n"
		"state_dir: %s/state\n"
		"insecure_http: loopback\n"
		"include: [providers.d/*.yaml]\n"
		"database: {url: \"%s\"}\n"
		"keyring_file: %s/keyring\n"
		"metrics: {listen: \"127.0.0.1:%u\"}\n"
		"api: {listen: \"127.0.0.1:%u\"}\n",
		d->home, d->url, d->home, d->metrics_port, d->api_port);
	if (e == 0)
		e = write_file(d, "refreshd.yaml", O_TRUNC, &text, f);
	buf_fini(&text);
	return e;
}

/* ---------------------------------------------------------------- all of it */

/* Up to where somebody is there who cleans up after us. */
static int build_folder(struct dev *d, const char *dir, struct fault *f)
{
	int e = dir != NULL ? use_given(d, dir, f) : make_temporary(d, f);
	if (e == 0)
		e = lock_folder(d, f);
	if (e == 0)
		e = make_subfolder(d, "state", f);
	if (e == 0)
		e = make_subfolder(d, "providers.d", f);
	if (e == 0)
		e = make_keyring(d, f);
	if (e == 0)
		e = write_example(d, f);
	const struct dev_postgres_params p = {.home = d->home, .keep = d->keep};
	if (e == 0)
		e = dev_postgres_start(&p, &d->postgres, f);
	return e;
}

static int build(struct dev *d, struct fault *f)
{
	int e = dev_postgres_ready(d->postgres, f);
	if (e != 0)
		return e;
	d->url = dev_postgres_url(d->postgres, DATABASE);
	d->config = mem_printf("%s/refreshd.yaml", d->home);
	e = prepare_database(d, f);
	if (e == 0)
		e = find_port("metrics", METRICS_PORT, &d->metrics_port, f);
	if (e == 0)
		e = find_port("the API", API_PORT, &d->api_port, f);
	if (e == 0)
		e = write_config(d, f);
	return e;
}

/* As this very program was called, so that the lines can be copied; refreshctl lies beside it until it is
 * installed. */
static char *refreshctl_path(void)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	char *slash = n > 0 ? (self[n] = '\0', strrchr(self, '/')) : NULL;
	if (slash != NULL) {
		*slash = '\0';
		char *beside = mem_printf("%s/refreshctl", self);
		if (access(beside, X_OK) == 0)
			return beside;
		mem_free(beside);
	}
	return mem_strdup("refreshctl");
}

static void explain(const struct dev *d)
{
	char *ctl = refreshctl_path();
	printf("\n"
	       "  *** refreshd --dev: NOT FOR PRODUCTION ***\n"
	       "  *** a throwaway vault: its keys lie beside its data%s ***\n\n",
		d->keep ? "" : ", and all of it is deleted when this ends");
	printf("  folder     %s (%s)\n", d->home,
		d->keep ? "kept; the next start with this --dir goes on with it" : "removed at the end");
	printf("  database   psql \"%s\"\n", d->url);
	printf("  provider   put yours into %s/" EXAMPLE ", then: kill -HUP %d\n", d->home, (int)getpid());
	printf("  import     %s -c %s import FILE.jsonl\n", ctl, d->config);
	printf("             a line of it: {\"application_id\":\"" APPLICATION
	       "\",\"consumer_id\":\"c1\",\"unified_api\":\"accounting\","
	       "\"service_id\":\"xero\",\n             "
	       "\"credentials\":{\"access_token\":\"...\",\"refresh_token\":\"...\","
	       "\"issued_at\":\"2026-01-31T12:00:00Z\",\"expires_in\":1800}}\n");
	printf("  look       %s -c %s list\n", ctl, d->config);
	printf("  metrics    curl http://127.0.0.1:%u/metrics\n", d->metrics_port);
	if (d->key.len > 0)
		printf("  API key    %s   (application \"" APPLICATION "\"; shown this once)\n",
			buf_str(&d->key));
	else
		printf("  API key    shown at the first start; for another: %s -c %s key add " APPLICATION
		       "\n",
			ctl, d->config);
	printf("  API        curl -H \"Authorization: Bearer %s\" -H \"x-apideck-app-id: " APPLICATION
	       "\" http://127.0.0.1:%u/vault/connections\n",
		d->key.len > 0 ? buf_str(&d->key) : "YOUR_KEY", d->api_port);
	printf("  stop       Ctrl-C\n\n");
	(void)fflush(stdout);
	mem_free(ctl);
}

static int run(struct dev *d)
{
	struct conf *conf = NULL;
	struct conf_errors errors = {0};
	int e = conf_load(d->config, &conf, &errors);
	if (e != 0)
		conf_errors_print(&errors, stderr);
	conf_errors_fini(&errors);
	if (e != 0)
		return EXIT_FAILURE;
	explain(d);
	buf_fini(&d->key); /* shown; not needed any more */
	int code = daemon_run(conf);
	conf_unref(conf);
	return code;
}

static void remove_unused(const struct dev *d)
{
	static const char *const names[] = {EXAMPLE, "providers.d", "state", "keyring", LOCK_NAME, ""};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char *path = mem_printf("%s/%s", d->home, names[i]);
		(void)remove(path);
		mem_free(path);
	}
}

int dev_run(const char *dir)
{
	struct dev d = {.keep = dir != NULL, .lock = -1, .key = BUF_INIT_SECRET(256)};
	struct fault f = {0};
	int code = EXIT_FAILURE;
	sigset_t ends, before;
	(void)sigemptyset(&ends);
	(void)sigaddset(&ends, SIGINT);
	(void)sigaddset(&ends, SIGTERM);
	(void)sigaddset(&ends, SIGHUP);
	(void)sigprocmask(SIG_BLOCK, &ends, &before);
	int e = build_folder(&d, dir, &f);
	bool started = e == 0;
	if (!started && !d.keep && d.home != NULL)
		remove_unused(&d);
	/* From here on a signal may end us at once: the keeper sees it. */
	(void)sigprocmask(SIG_SETMASK, &before, NULL);
	if (e == 0)
		e = build(&d, &f);
	if (e == 0)
		code = run(&d);
	else
		fprintf(stderr, "refreshd: --dev: %s\n", f.code != 0 ? f.text : status_text(e));
	struct fault g = {0};
	if (dev_postgres_stop(d.postgres, &g) != 0) {
		fprintf(stderr, "refreshd: --dev: %s\n", g.text);
		code = EXIT_FAILURE;
	} else if (started && e == 0) {
		fprintf(stderr, "refreshd: --dev: Postgres is stopped, %s %s\n", d.home,
			d.keep ? "is kept" : "is removed");
	}
	if (d.lock >= 0)
		(void)close(d.lock);
	buf_fini(&d.key);
	mem_free(d.url);
	mem_free(d.config);
	mem_free(d.home);
	return code;
}
