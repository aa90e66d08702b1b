/*
 * pgcluster - starts and breaks a private Postgres for the tests.
 *
 * The postmaster is our own child, so that it can be killed and awaited by its pid. Must never touch a
 * process that it did not start.
 */
#include "integration/pgcluster.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "base/mem.h"
#include "base/sys.h"

#define START_DEADLINE_US (60 * US_PER_S)

struct pgcluster {
	char dir[64];
	char sock[80];
	char data[80];
	char log[80];
	const char *bindir;
	uint16_t port;
	pid_t postmaster;
	char url[512];
	char value[1024];

	pid_t bouncer;
	uint16_t bouncer_port;
	char bouncer_url[256];
};

static _Noreturn void die(const char *what, const char *detail)
{
	fprintf(stderr, "pgcluster: %s: %s\n", what, detail);
	abort();
}

static void pause_ms(int ms)
{
	(void)poll(NULL, 0, ms);
}

uint16_t pgcluster_free_port(void)
{
	for (unsigned tries = 0; tries < 200; tries++) {
		uint16_t port = (uint16_t)(20000 + sys_random_below(12000));
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(port)};
		sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		int rc = bind(fd, (struct sockaddr *)&sin, sizeof(sin));
		close(fd);
		if (rc == 0)
			return port;
	}
	die("no free port", "20000..31999");
}

static const char *find_bindir(void)
{
	static const char *const places[] = {"/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/16/bin",
		"/usr/lib/postgresql/15/bin", "/usr/local/pgsql/bin"};
	const char *given = getenv("PG_BINDIR");
	if (given != NULL)
		return given;
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		char path[128];
		snprintf(path, sizeof(path), "%s/initdb", places[i]);
		if (access(path, X_OK) == 0)
			return places[i];
	}
	die("no PostgreSQL server programs", "set PG_BINDIR");
}

/* Runs a program as the server's user, in the cluster's folder, output to its log. */
static pid_t spawn(const struct pgcluster *c, const char *const *args)
{
	const char *argv[48] = {"setpriv", "--pdeathsig", "KILL"};
	unsigned n = 3;
	if (getuid() == 0) {
		argv[n++] = "--reuid=postgres";
		argv[n++] = "--regid=postgres";
		argv[n++] = "--init-groups";
	}
	for (; *args != NULL; args++)
		argv[n++] = *args;
	argv[n] = NULL;
	ALWAYS(n < sizeof(argv) / sizeof(argv[0]));
	fflush(NULL);
	pid_t pid = fork();
	if (pid < 0)
		die("fork", strerror(errno));
	if (pid > 0)
		return pid;
	char *const env[] = {mem_printf("PATH=%s:/usr/sbin:/usr/bin:/sbin:/bin", c->bindir),
		mem_strdup("LC_ALL=C.UTF-8"), NULL};
	int in = open("/dev/null", O_RDONLY), out = open(c->log, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (in < 0 || out < 0 || chdir(c->dir) != 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 ||
		dup2(out, 2) < 0)
		_exit(126);
	execvpe("setpriv", (char *const *)(uintptr_t)argv, env);
	_exit(127);
}

static void run(const struct pgcluster *c, const char *const *args)
{
	int status = 0;
	pid_t pid = spawn(c, args);
	if (waitpid(pid, &status, 0) != pid || status != 0) {
		char cmd[160];
		snprintf(cmd, sizeof(cmd), "cat %s >&2", c->log);
		(void)!system(cmd);
		die("failed", args[0]);
	}
}

static void own(const struct pgcluster *c, const char *path)
{
	(void)c;
	if (getuid() != 0)
		return;
	const struct passwd *pw = getpwnam("postgres");
	if (pw == NULL || chown(path, pw->pw_uid, pw->pw_gid) != 0)
		die("chown to postgres", path);
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");
	if (f == NULL || fputs(text, f) < 0 || fclose(f) != 0)
		die("write", path);
}

static void init_database(struct pgcluster *c)
{
	char program[128], pwfile[96], pwarg[112];
	snprintf(program, sizeof(program), "%s/initdb", c->bindir);
	snprintf(pwfile, sizeof(pwfile), "%s/pwfile", c->dir);
	snprintf(pwarg, sizeof(pwarg), "--pwfile=%s", pwfile);
	write_file(pwfile, PGCLUSTER_PASSWORD "\n");
	run(c, (const char *const[]){program, "-D", c->data, "-U", "postgres", "--auth-local=trust",
		       "--auth-host=scram-sha-256", pwarg, "-E", "UTF8", "--locale=C", "--no-sync",
		       "--no-instructions", NULL});
}

struct pgcluster *pgcluster_new(void)
{
	struct pgcluster *c = mem_alloc(sizeof(*c));
	snprintf(c->dir, sizeof(c->dir), "/tmp/pgc-XXXXXX");
	if (mkdtemp(c->dir) == NULL || chmod(c->dir, 0755) != 0)
		die("mkdtemp", c->dir);
	snprintf(c->sock, sizeof(c->sock), "%s/s", c->dir);
	snprintf(c->data, sizeof(c->data), "%s/data", c->dir);
	snprintf(c->log, sizeof(c->log), "%s/server.log", c->dir);
	if (mkdir(c->sock, 0755) != 0)
		die("mkdir", c->sock);
	own(c, c->dir);
	own(c, c->sock);
	c->bindir = find_bindir();
	c->port = pgcluster_free_port();
	init_database(c);
	pgcluster_start(c);
	return c;
}

/* The last line of postmaster.pid says how far the postmaster of that pid is. */
static bool is_ready(const struct pgcluster *c)
{
	char path[96], line[128] = "";
	snprintf(path, sizeof(path), "%s/postmaster.pid", c->data);
	FILE *f = fopen(path, "r");
	if (f == NULL)
		return false;
	bool ours = false, ready = false;
	for (unsigned i = 0; fgets(line, sizeof(line), f) != NULL; i++) {
		if (i == 0)
			ours = atoi(line) == (int)c->postmaster;
		if (i == 7)
			ready = strncmp(line, "ready", 5) == 0;
	}
	fclose(f);
	return ours && ready;
}

static void spawn_server(struct pgcluster *c)
{
	char program[128], dirs[128], port[32];
	snprintf(program, sizeof(program), "%s/postgres", c->bindir);
	snprintf(dirs, sizeof(dirs), "unix_socket_directories=%s", c->sock);
	snprintf(port, sizeof(port), "port=%u", c->port);
	c->postmaster = spawn(c, (const char *const[]){program, "-D", c->data, "-c", dirs, "-c", port, "-c",
					 "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c",
					 "full_page_writes=off", "-c", "shared_buffers=32MB", "-c",
					 "max_connections=60", "-c", "log_min_messages=warning", NULL});
}

void pgcluster_start(struct pgcluster *c)
{
	int64_t end_us = sys_mono_us() + START_DEADLINE_US;
	if (c->postmaster != 0)
		return;
	spawn_server(c);
	while (!is_ready(c)) {
		if (sys_mono_us() > end_us)
			die("the server does not start", c->log);
		/* After a kill of the postmaster the old backends hold the shared memory for a moment. */
		if (waitpid(c->postmaster, NULL, WNOHANG) == c->postmaster)
			spawn_server(c);
		pause_ms(10);
	}
}

void pgcluster_stop(struct pgcluster *c, int signo)
{
	if (c->postmaster == 0)
		return;
	if (kill(c->postmaster, signo) != 0 || waitpid(c->postmaster, NULL, 0) != c->postmaster)
		die("stopping the server", strerror(errno));
	c->postmaster = 0;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	(void)st;
	(void)kind;
	(void)at;
	return remove(path);
}

void pgcluster_free(struct pgcluster *c)
{
	if (c == NULL)
		return;
	pgcluster_bouncer_stop(c);
	pgcluster_stop(c, SIGQUIT);
	(void)nftw(c->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
	mem_free(c);
}

const char *pgcluster_url(struct pgcluster *c, const char *more)
{
	snprintf(c->url, sizeof(c->url), "host=%s port=%u user=postgres dbname=postgres %s", c->sock, c->port,
		more);
	return c->url;
}

const char *pgcluster_sock(const struct pgcluster *c)
{
	return c->sock;
}

uint16_t pgcluster_port(const struct pgcluster *c)
{
	return c->port;
}

static void drop_notice(void *arg, const char *message)
{
	(void)arg;
	(void)message;
}

const char *pgcluster_sql(struct pgcluster *c, const char *sql)
{
	char url[256];
	snprintf(url, sizeof(url),
		"host=%s port=%u user=postgres dbname=postgres application_name=pgcluster "
		"options='-c default_transaction_read_only=off'",
		c->sock, c->port);
	PGconn *pg = PQconnectdb(url);
	if (PQstatus(pg) != CONNECTION_OK)
		die("connecting", PQerrorMessage(pg));
	(void)PQsetNoticeProcessor(pg, drop_notice, NULL);
	PGresult *res = PQexec(pg, sql);
	if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK)
		die(sql, PQerrorMessage(pg));
	snprintf(c->value, sizeof(c->value), "%s", PQntuples(res) > 0 ? PQgetvalue(res, 0, 0) : "");
	PQclear(res);
	PQfinish(pg);
	return c->value;
}

static bool listens(uint16_t port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in sin = {.sin_family = AF_INET, .sin_port = htons(port)};
	sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	bool up = connect(fd, (struct sockaddr *)&sin, sizeof(sin)) == 0;
	close(fd);
	return up;
}

const char *pgcluster_bouncer_start(struct pgcluster *c)
{
	char ini[96], users[96], text[1024];
	snprintf(ini, sizeof(ini), "%s/pgbouncer.ini", c->dir);
	snprintf(users, sizeof(users), "%s/users.txt", c->dir);
	c->bouncer_port = pgcluster_free_port();
	write_file(users, "\"postgres\" \"" PGCLUSTER_PASSWORD "\"\n");
	snprintf(text, sizeof(text),
		"[databases]\n* = host=%s port=%u\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %u\n"
		"unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = %s\npool_mode = transaction\n"
		"default_pool_size = 2\nmax_client_conn = 100\n",
		c->sock, c->port, c->bouncer_port, users);
	write_file(ini, text);
	c->bouncer = spawn(c, (const char *const[]){"pgbouncer", ini, NULL});
	int64_t end_us = sys_mono_us() + START_DEADLINE_US;
	while (!listens(c->bouncer_port)) {
		if (sys_mono_us() > end_us || waitpid(c->bouncer, NULL, WNOHANG) == c->bouncer)
			die("pgbouncer does not start", c->log);
		pause_ms(10);
	}
	snprintf(c->bouncer_url, sizeof(c->bouncer_url),
		"host=127.0.0.1 port=%u user=postgres dbname=postgres password=" PGCLUSTER_PASSWORD,
		c->bouncer_port);
	return c->bouncer_url;
}

void pgcluster_bouncer_stop(struct pgcluster *c)
{
	if (c->bouncer == 0)
		return;
	(void)kill(c->bouncer, SIGKILL);
	(void)waitpid(c->bouncer, NULL, 0);
	c->bouncer = 0;
}
