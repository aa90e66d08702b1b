/*
 * dev_postgres - finds the server programs, makes a cluster, and a keeper that holds it.
 *
 * The keeper reads from a pipe of which refreshd alone has the other end: end of file means that refreshd is
 * gone, by return, Ctrl-C or kill -9, and the kernel cannot fail to tell. Should the keeper be killed itself,
 * the server gets a signal for its parent's death. Must not: print (the keeper's words go through a second
 * pipe as a struct fault), touch a process that it did not start, or be used once there are threads, which a
 * fork would lose.
 */
#include "dev_postgres.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define OLDEST_MAJOR 15
#define SOCKET_TAIL "/postgres/.s.PGSQL.5432"
#define START_LIMIT_US (60 * US_PER_S)
#define INITDB_LIMIT_US (120 * US_PER_S)
#define STOP_LIMIT_US (20 * US_PER_S)
#define LOOK_EVERY_MS 20
#define HOW_TO_GET                                                                                           \
	"on Debian: apt-get install postgresql; elsewhere set PG_BINDIR to the folder of initdb and "        \
	"postgres"

/* What a child could not do before it became another program. */
enum child_exit { EXIT_CREDENTIALS = 120, EXIT_FOLDER, EXIT_OUTPUT, EXIT_EXEC };

struct dev_postgres {
	char *home;
	pid_t keeper;
	int control,
		words; /* our ends: closing the first ends the keeper; its faults come out of the second */
};

struct place { /* of the server, as the keeper sees it */
	const char *home;
	bool keep;
	char *dir, *data, *log; /* dir: home/postgres, socket and log included */
	char *initdb, *postgres;
	bool switch_user;
	char user[64];
	uid_t uid;
	gid_t gid;
	int control; /* end of file: refreshd is gone; -1: nobody to listen to */
	pid_t server;
};

/* ---------------------------------------------------------------- where things are */

int dev_postgres_home_check(const char *home, struct fault *f)
{
	static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._+@~-";
	if (home[strspn(home, plain)] != '\0')
		return fault_set(
			f, ST_INVALID, "%s: the path may hold letters, digits and / . _ + @ ~ - only", home);
	size_t room = sizeof((struct sockaddr_un *)NULL)->sun_path - sizeof SOCKET_TAIL;
	if (strlen(home) > room)
		return fault_set(f, ST_RANGE,
			"%s: the path is too long for a socket in it, %zu bytes at most", home, room);
	return 0;
}

static bool has_programs(struct place *p, const char *dir)
{
	char *initdb = mem_printf("%s/initdb", dir), *postgres = mem_printf("%s/postgres", dir);
	if (access(initdb, X_OK) != 0 || access(postgres, X_OK) != 0) {
		mem_free(initdb);
		mem_free(postgres);
		return false;
	}
	p->initdb = initdb;
	p->postgres = postgres;
	return true;
}

static unsigned major_of(const char *path, const char *before)
{
	uint64_t n = 0;
	const char *s = path + strlen(before);
	if (str_parse_u64(s, strspn(s, "0123456789"), &n) != 0 || n > 1000)
		return 0;
	return (unsigned)n;
}

/* Debian keeps every major version in a folder of its own, outside PATH: the newest. */
static bool find_debian(struct place *p)
{
	static const char before[] = "/usr/lib/postgresql/";
	glob_t found;
	if (glob("/usr/lib/postgresql/*/bin", GLOB_NOSORT, NULL, &found) != 0)
		return false;
	bool ok = false;
	for (unsigned best = UINT_MAX; !ok && best > 0;) {
		unsigned next = 0;
		const char *dir = NULL;
		for (size_t i = 0; i < found.gl_pathc; i++) {
			unsigned major = major_of(found.gl_pathv[i], before);
			if (major < best && major > next) {
				next = major;
				dir = found.gl_pathv[i];
			}
		}
		best = next;
		ok = dir != NULL && has_programs(p, dir);
	}
	globfree(&found);
	return ok;
}

static bool find_in_path(struct place *p)
{
	const char *path = getenv("PATH");
	while (path != NULL && *path != '\0') {
		size_t n = strcspn(path, ":");
		char *dir = mem_strndup(path, n);
		bool ok = n > 0 && has_programs(p, dir);
		mem_free(dir);
		if (ok)
			return true;
		path += n + (path[n] == ':');
	}
	return false;
}

static int find_programs(struct place *p, struct fault *f)
{
	const char *given = getenv("PG_BINDIR");
	if (given != NULL && given[0] != '\0') {
		if (has_programs(p, given))
			return 0;
		return fault_set(
			f, ST_NOT_FOUND, "PG_BINDIR is %s, but initdb and postgres are not there", given);
	}
	if (find_debian(p) || find_in_path(p))
		return 0;
	return fault_set(
		f, ST_NOT_FOUND, "no PostgreSQL server programs here (initdb, postgres); " HOW_TO_GET);
}

static int find_user(struct place *p, struct fault *f)
{
	if (geteuid() != 0)
		return 0;
	const struct passwd *pw = getpwnam("postgres");
	if (pw == NULL)
		pw = getpwnam("nobody");
	if (pw == NULL || pw->pw_uid == 0)
		return fault_set(f, ST_NOT_FOUND,
			"Postgres does not run as root, and there is neither a user postgres nor nobody to "
			"run it as");
	p->switch_user = true;
	p->uid = pw->pw_uid;
	p->gid = pw->pw_gid;
	(void)snprintf(p->user, sizeof p->user, "%s", pw->pw_name);
	return 0;
}

/* ---------------------------------------------------------------- children */

/* In the child: another user, another session, gone with its parent, output to `out`. */
static _Noreturn void become(const struct place *p, const char *const *argv, int out, pid_t parent)
{
	static const char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C", "TZ=UTC", NULL};
	sigset_t none;
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)setsid();
	(void)signal(SIGINT, SIG_DFL);
	(void)signal(SIGTERM, SIG_DFL);
	(void)signal(SIGHUP, SIG_DFL);
	(void)signal(SIGPIPE, SIG_DFL);
	(void)umask(077);
	if (p->switch_user &&
		(initgroups(p->user, p->gid) != 0 || setgid(p->gid) != 0 || setuid(p->uid) != 0))
		_exit(EXIT_CREDENTIALS);
	/* After the change of user, which clears it. SIGINT is Postgres' fast shutdown. */
	if (prctl(PR_SET_PDEATHSIG, SIGINT) != 0 || getppid() != parent)
		_exit(EXIT_CREDENTIALS);
	if (chdir(p->dir) != 0)
		_exit(EXIT_FOLDER);
	int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (out < 0)
		out = open(p->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(EXIT_OUTPUT);
	(void)execve(argv[0], (char *const *)(uintptr_t)argv, (char *const *)(uintptr_t)env);
	_exit(EXIT_EXEC);
}

/* out: -1 for the log. */
static int spawn(const struct place *p, const char *const *argv, int out, pid_t *pid, struct fault *f)
{
	pid_t parent = getpid(), child = fork();
	if (child < 0)
		return fault_set(f, ST_IO, "cannot start %s: %s", argv[0], strerror(errno));
	if (child == 0)
		become(p, argv, out, parent);
	*pid = child;
	return 0;
}

/* 0 when the child ended, ST_TIMEOUT, ST_CANCELED when refreshd is gone. */
static int await(const struct place *p, pid_t pid, int limit_ms, int *status)
{
	int64_t end = sys_mono_us() + limit_ms * US_PER_MS;
	int fd = pidfd_open(pid, 0);
	if (fd < 0)
		return ST_IO;
	int e = ST_AGAIN;
	while (e == ST_AGAIN) {
		int64_t left = (end - sys_mono_us()) / US_PER_MS;
		struct pollfd v[2] = {{.fd = fd, .events = POLLIN}, {.fd = p->control, .events = POLLIN}};
		int n = poll(v, 2, left > 0 ? (int)left : 0);
		if (n > 0 && v[0].revents != 0)
			e = waitpid(pid, status, 0) == pid ? 0 : ST_IO;
		else if (n > 0)
			e = ST_CANCELED;
		else if (n == 0 && sys_mono_us() >= end)
			e = ST_TIMEOUT;
	}
	(void)close(fd);
	return e;
}

/* Asks nicely, then not. `p->control` is not listened to. */
static void end_child(const struct place *p, pid_t pid)
{
	static const int signals[] = {SIGINT, SIGQUIT, SIGKILL};
	struct place deaf = *p;
	int status;
	deaf.control = -1;
	for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
		if (kill(pid, signals[i]) != 0 ||
			await(&deaf, pid, (int)(STOP_LIMIT_US / US_PER_MS), &status) == 0)
			return;
	}
}

/* The last line of the server's log: its own words for what went wrong. */
static void last_words(const struct place *p, char *out, size_t n)
{
	struct buf text;
	buf_init(&text, (size_t)1024 * 1024);
	(void)snprintf(out, n, "see %s", p->log);
	if (buf_read_file(&text, p->log, NULL) == 0) {
		while (text.len > 0 && text.data[text.len - 1] == '\n')
			buf_truncate(&text, text.len - 1);
		const char *s = buf_str(&text), *line = strrchr(s, '\n');
		line = line != NULL ? line + 1 : s;
		if (*line != '\0')
			(void)snprintf(out, n, "%s", line);
	}
	buf_fini(&text);
}

static int ended_badly(const struct place *p, const char *what, int status, struct fault *f)
{
	char words[240];
	switch (WIFEXITED(status) ? WEXITSTATUS(status) : 0) {
	case EXIT_CREDENTIALS:
		return fault_set(f, ST_DENIED, "cannot become user %s to run %s", p->user, what);
	case EXIT_FOLDER:
		return fault_set(f, ST_DENIED,
			"user %s, who runs Postgres, cannot reach %s: choose a folder that others may enter, "
			"e.g. below /var/tmp",
			p->switch_user ? p->user : "", p->dir);
	case EXIT_OUTPUT:
		return fault_set(f, ST_IO, "%s cannot be written", p->log);
	case EXIT_EXEC:
		return fault_set(f, ST_IO, "%s cannot be run", what);
	default:
		last_words(p, words, sizeof words);
		return fault_set(f, ST_IO, "%s failed: %s", what, words);
	}
}

/* ---------------------------------------------------------------- the cluster */

static int read_version(const struct place *p, struct buf *text, struct fault *f)
{
	const char *const argv[] = {p->postgres, "--version", NULL};
	int ends[2], status = 0;
	pid_t pid;
	if (pipe2(ends, O_CLOEXEC) != 0)
		return fault_set(f, ST_IO, "pipe: %s", strerror(errno));
	int e = spawn(p, argv, ends[1], &pid, f);
	(void)close(ends[1]);
	if (e == 0) {
		char some[256];
		ssize_t n = read(ends[0], some, sizeof some);
		e = await(p, pid, (int)(START_LIMIT_US / US_PER_MS), &status);
		if (e != 0)
			end_child(p, pid);
		else if (status != 0 || n <= 0 || buf_append(text, some, (size_t)n) != 0)
			e = ended_badly(p, p->postgres, status, f);
	}
	(void)close(ends[0]);
	return e;
}

static int check_version(const struct place *p, struct fault *f)
{
	static const char before[] = "postgres (PostgreSQL) ";
	struct buf text;
	buf_init(&text, 256);
	int e = read_version(p, &text, f);
	if (e == 0) {
		const char *s = buf_str(&text);
		unsigned major = strncmp(s, before, strlen(before)) == 0 ? major_of(s, before) : 0;
		if (major < OLDEST_MAJOR)
			e = fault_set(f, ST_VERSION,
				"%s is of version %u, but refreshd needs %d or newer; " HOW_TO_GET,
				p->postgres, major, OLDEST_MAJOR);
	}
	buf_fini(&text);
	return e;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	(void)st, (void)kind, (void)at;
	return remove(path);
}

/* Everything of it, itself included; what is not there is removed already. */
static int remove_tree(const char *path, struct fault *f)
{
	if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) == 0 || errno == ENOENT)
		return 0;
	return fault_set(f, ST_IO, "%s cannot be removed: %s", path, strerror(errno));
}

static int make_folder(const struct place *p, struct fault *f)
{
	if (mkdir(p->dir, 0700) != 0 && errno != EEXIST)
		return fault_set(f, ST_IO, "%s: %s", p->dir, strerror(errno));
	if (p->switch_user && chown(p->dir, p->uid, p->gid) != 0)
		return fault_set(
			f, ST_IO, "%s cannot be given to user %s: %s", p->dir, p->user, strerror(errno));
	return 0;
}

/* Made under another name and moved, so that a cluster is whole or not there. */
static int make_cluster(const struct place *p, struct fault *f)
{
	char *fresh = mem_printf("%s.new", p->data);
	const char *const argv[] = {p->initdb, "-D", fresh, "-U", "refreshd", "--auth-local=trust",
		"--auth-host=reject", "-E", "UTF8", "--locale=C", "--no-instructions",
		p->keep ? NULL : "--no-sync", NULL};
	struct stat st;
	pid_t pid;
	int status = 0, e = 0;
	if (stat(p->data, &st) != 0) {
		e = remove_tree(fresh, f);
		if (e == 0)
			e = spawn(p, argv, -1, &pid, f);
		if (e == 0) {
			e = await(p, pid, (int)(INITDB_LIMIT_US / US_PER_MS), &status);
			if (e != 0) {
				end_child(p, pid);
				(void)fault_set(f, e, "initdb: %s", status_text(e));
			} else if (status != 0) {
				e = ended_badly(p, p->initdb, status, f);
			} else if (rename(fresh, p->data) != 0) {
				e = fault_set(f, ST_IO, "%s: %s", p->data, strerror(errno));
			}
		}
	}
	mem_free(fresh);
	return e;
}

/* The eighth line of postmaster.pid says how far the postmaster of the first one is. */
static bool is_ready(const struct place *p)
{
	char *path = mem_printf("%s/postmaster.pid", p->data), pid[24];
	struct buf text;
	buf_init(&text, 4096);
	bool ready = false;
	(void)snprintf(pid, sizeof pid, "%d\n", (int)p->server);
	if (buf_read_file(&text, path, NULL) == 0 && strncmp(buf_str(&text), pid, strlen(pid)) == 0) {
		const char *s = buf_str(&text);
		for (unsigned i = 0; i < 7 && s != NULL; i++) {
			s = strchr(s, '\n');
			s = s != NULL ? s + 1 : NULL;
		}
		ready = s != NULL && strncmp(s, "ready", 5) == 0;
	}
	buf_fini(&text);
	mem_free(path);
	return ready;
}

static int start_server(struct place *p, struct fault *f)
{
	char *sockets = mem_printf("unix_socket_directories=%s", p->dir);
	/* What is thrown away needs no disk; what is kept gets Postgres' own care. */
	const char *const argv[] = {p->postgres, "-D", p->data, "-c", sockets, "-c",
		"listen_addresses=", "-c", "port=5432", "-c", "unix_socket_permissions=0700", "-c",
		"max_connections=40", "-c", "shared_buffers=32MB", "-c", "wal_level=minimal", "-c",
		"max_wal_senders=0", "-c", "max_wal_size=128MB", "-c", "jit=off", "-c",
		"log_min_messages=warning", "-c", p->keep ? "fsync=on" : "fsync=off", "-c",
		p->keep ? "full_page_writes=on" : "full_page_writes=off", NULL};
	int64_t end = sys_mono_us() + START_LIMIT_US;
	int status = 0;
	pid_t pid = 0;
	int e = spawn(p, argv, -1, &pid, f);
	mem_free(sockets);
	if (e != 0)
		return e;
	p->server = pid;
	e = ST_TIMEOUT;
	while (e == ST_TIMEOUT && !is_ready(p) && sys_mono_us() < end)
		e = await(p, pid, LOOK_EVERY_MS, &status);
	if (e == ST_TIMEOUT && is_ready(p))
		return 0;
	if (e == 0)
		return ended_badly(p, p->postgres, status, f);
	end_child(p, pid);
	return fault_set(f, e, "Postgres does not start: %s",
		e == ST_TIMEOUT ? "no answer within a minute" : status_text(e));
}

/* ---------------------------------------------------------------- the keeper */

static int bring_up(struct place *p, struct fault *f)
{
	int e = find_programs(p, f);
	if (e == 0)
		e = find_user(p, f);
	if (e == 0)
		e = make_folder(p, f);
	if (e == 0)
		e = check_version(p, f);
	if (e == 0)
		e = make_cluster(p, f);
	if (e == 0)
		e = start_server(p, f);
	return e;
}

static void say(int words, const struct fault *f)
{
	/* Nobody may be left to listen. Shorter than PIPE_BUF: whole or not at all. */
	(void)!write(words, f, sizeof *f);
}

/* A closed pipe is all that it waits for; the server may end meanwhile, which refreshd sees by itself. */
static void wait_for_end(int control)
{
	char byte;
	ssize_t n;
	do
		n = read(control, &byte, 1);
	while (n > 0 || (n < 0 && errno == EINTR));
}

static void mute(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int fd = 0; null >= 0 && fd <= 2; fd++)
		(void)dup2(null, fd);
}

static _Noreturn void keep(const struct dev_postgres_params *params, int control, int words)
{
	struct fault f = {0};
	struct place p = {.home = params->home, .keep = params->keep, .control = control};
	p.dir = mem_printf("%s/postgres", p.home);
	p.data = mem_printf("%s/data", p.dir);
	p.log = mem_printf("%s/postgres.log", p.dir);
	(void)setsid();
	(void)signal(SIGINT, SIG_IGN);
	(void)signal(SIGTERM, SIG_IGN);
	(void)signal(SIGHUP, SIG_IGN);
	(void)signal(SIGPIPE, SIG_IGN);
	mute();
	int e = bring_up(&p, &f);
	say(words, &f);
	if (e == 0) {
		wait_for_end(control);
		end_child(&p, p.server);
	}
	f = (struct fault){0};
	if (!p.keep && remove_tree(p.home, &f) != 0)
		e = f.code;
	say(words, &f);
	_exit(e == 0 ? 0 : EXIT_FAILURE);
}

/* ---------------------------------------------------------------- our side */

static int listen_to(int words, struct fault *f)
{
	struct fault said;
	ssize_t n;
	do
		n = read(words, &said, sizeof said);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof said)
		return fault_set(f, ST_CLOSED, "the process that holds Postgres ended without a word");
	if (said.code == 0)
		return 0;
	return fault_set(f, said.code, "%s", said.text);
}

int dev_postgres_start(const struct dev_postgres_params *p, struct dev_postgres **out, struct fault *f)
{
	int control[2], words[2];
	if (pipe2(control, O_CLOEXEC) != 0)
		return fault_set(f, ST_IO, "pipe: %s", strerror(errno));
	if (pipe2(words, O_CLOEXEC) != 0) {
		(void)close(control[0]);
		(void)close(control[1]);
		return fault_set(f, ST_IO, "pipe: %s", strerror(errno));
	}
	pid_t keeper = fork();
	if (keeper == 0) {
		(void)close(control[1]);
		(void)close(words[0]);
		keep(p, control[0], words[1]);
	}
	int why = errno;
	(void)close(control[0]);
	(void)close(words[1]);
	if (keeper < 0) {
		(void)close(control[1]);
		(void)close(words[0]);
		return fault_set(f, ST_IO, "fork: %s", strerror(why));
	}
	struct dev_postgres *d = mem_alloc(sizeof *d);
	*d = (struct dev_postgres){
		.home = mem_strdup(p->home), .keeper = keeper, .control = control[1], .words = words[0]};
	*out = d;
	return 0;
}

int dev_postgres_ready(struct dev_postgres *d, struct fault *f)
{
	return listen_to(d->words, f);
}

int dev_postgres_stop(struct dev_postgres *d, struct fault *f)
{
	if (d == NULL)
		return 0;
	int status;
	(void)close(d->control);
	int e = listen_to(d->words, f);
	(void)close(d->words);
	while (waitpid(d->keeper, &status, 0) < 0 && errno == EINTR)
		;
	mem_free(d->home);
	mem_free(d);
	return e;
}

char *dev_postgres_url(const struct dev_postgres *d, const char *database)
{
	return mem_printf("host=%s/postgres user=refreshd dbname=%s", d->home, database);
}
