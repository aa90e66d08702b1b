#!/usr/bin/env python3
"""Calls that have no place in this code, or only one place.

A rule is (name, what, where not, where all the same with the reason). It looks at C with comments and literals taken
out, so that a word in a comment is no call. Every rule is shown to work on a made-up line first.
"""
import re

from lintlib import Tap, bare_c, files, read

ALLOC = "malloc calloc realloc reallocarray free strdup strndup asprintf vasprintf aligned_alloc posix_memalign alloca"
OUTPUT = "printf vprintf fprintf vfprintf dprintf puts fputs putchar fputc perror psignal warn warnx err errx"

# (name, calls, folders it holds for, {file: reason})
RULES = [
	("no unbounded or locale-bound text", "strcpy strcat stpcpy sprintf vsprintf gets scanf sscanf fscanf strtok strerror_l atoi atol atoll atof "
		"strtol strtoll strtoul strtoull strtod asctime ctime gmtime localtime setlocale strcasecmp strncasecmp tolower toupper isalpha "
		"isdigit isspace isalnum isprint", ["src"], {
		"src/base/str.c": "the place where text becomes numbers",
		"src/base/jsonw.c": "reads back the digits that it printed itself", "src/base/metrics.c": "the same",
		"src/io/pgargs.c": "the row count of libpq",
		}),
	("randomness only from base/sys", "rand srand rand_r random srandom drand48 lrand48 arc4random getrandom getentropy RAND_bytes",
		["src"], {"src/base/sys.c": "the seam"}),
	("the clock only from base/sys", "time gettimeofday clock_gettime clock ftime timespec_get", ["src"], {
		"src/base/sys.c": "the seam",
		"src/io/notify.c": "the notify protocol asks for CLOCK_MONOTONIC by name",
		}),
	("memory only from base/mem and base/buf", ALLOC, ["src"], {
		"src/base/mem.c": "the seam",
		"src/io/notify.c": "frees what libsystemd allocated",
		}),
	("names only through the resolver", "getaddrinfo gethostbyname gethostbyname2 gethostbyaddr getnameinfo res_query res_search",
		["src"], {"src/io/pgtarget.c": "getnameinfo with NI_NUMERICHOST: an address to its text, no look-up"}),
	("no blocking wait", "sleep usleep nanosleep clock_nanosleep pause select poll ppoll epoll_wait", ["src"], {
		"src/io/pgsync.c": "the blocking connection of the command line",
		"src/ctl/ctl.c": "a command line may wait", "src/ctl/ctl_status.c": "top redraws", "src/ctl/ctl_connection.c": "refresh waits for its outcome",
		"src/dev_postgres.c": "waits for the Postgres that it started",
		}),
	("output only from the command lines and the log", OUTPUT, ["src"], {
		"src/main.c": "command line", "src/dev.c": "command line",
		"src/base/log.c": "the log", "src/base/mem.c": "last words before abort",
		"src/model/conf.c": "conf_errors_print writes to the stream it is given",
		}),
	("base, model and io do not log", "log_at log_error log_warning log_notice log_info log_debug",
		["src/base", "src/model", "src/io"], {"src/base/log.c": "the log", "src/base/log.h": "the log"}),
	("the end of the process only where it began", "exit _exit _Exit quick_exit abort atexit assert", ["src"], {
		"src/base/mem.c": "ALWAYS and out of memory",
		"src/main.c": "command line", "src/dev_postgres.c": "the child that becomes Postgres",
		}),
	("no shell and no process", "system popen fork vfork execl execlp execle execv execve execvp posix_spawn posix_spawnp", ["src"], {
		"src/dev_postgres.c": "starts a private Postgres",
		}),
	("no temporary name that can be guessed", "mktemp tmpnam tempnam tmpfile", ["src", "tests"], {}),
	("no sleep in tests", "sleep usleep", ["tests"], {}),
]


def allowed(path, also):
	"""src/dev.c stands for its parts, too; src/main.c as a command line for all of src/ctl."""
	whole = re.sub(r"^src/dev_\w+\.[ch]$", "src/dev.c", path)
	if path.startswith("src/ctl/") and (also.get("src/main.c") == "command line" or "src/ctl/ctl.c" in also):
		return True
	return path in also or whole in also


def offences(path, bare, calls, also):
	if allowed(path, also):
		return
	pattern = re.compile(r"(?<![\w.>])(%s)\s*\(" % "|".join(calls.split()))
	for n, line in enumerate(bare.split("\n"), 1):
		for m in pattern.finditer(line):
			yield "%s:%d: %s()" % (path, n, m.group(1))


def script_sleeps(path, text):
	"""A script may nap between two looks at a condition (a tenth of a second at most), never wait for time to pass."""
	for n, line in enumerate(text.split("\n"), 1):
		code = line.split("#", 1)[0]
		for m in re.finditer(r"\btime\.sleep\(([^)]*)\)|(?:^|[;&|]|\bdo|\bthen)\s*sleep\s+(\S+)", code):
			length = (m.group(1) or m.group(2) or "").rstrip(";)")
			if not re.fullmatch(r"0?\.\d+", length) or float(length) > 0.1:
				yield "%s:%d: %s" % (path, n, code.strip())


def prove():
	sample = 'int f(void)\n{\n\t/* strcpy(a, b) */\n\treturn g("atoi(x)") + x->free(p) + my_time(0) + strcpy(a, b);\n}\n'
	found = [o for _, calls, _, _ in RULES for o in offences("src/x/y.c", bare_c(sample), calls, {})]
	if found != ["src/x/y.c:4: strcpy()"]:
		yield "found %s" % found
	if len(list(script_sleeps("t.py", "time.sleep(5)\ntime.sleep(0.05)\n"))) != 1 or len(list(script_sleeps("t.sh", "do sleep 1; done\nsleep 0.1"))) != 1:
		yield "sleeps of scripts are not found"


def machine_paths():
	"""No path of the machine that something was written on."""
	pattern = re.compile("/" + r"(?:work|home|root|Users)/\w")
	for path in files(".", ext=("",)):
		if path.startswith((".git/", "tests/conformance/package-lock")) or re.search(r"\.(o|a|log|trs|gcno|gcda|status|cache|m4|xz)$|(^|/)(configure~?|Makefile(\.in)?|config\.\w+~?)$", path):
			continue
		try:
			text = read(path)
		except (UnicodeDecodeError, IsADirectoryError):
			continue
		for n, line in enumerate(text.split("\n"), 1):
			if pattern.search(line):
				yield "%s:%d: %s" % (path, n, line.strip()[:100])


def main():
	tap = Tap()
	tap.check("the rules find what they look for", prove())
	text = {p: bare_c(read(p)) for p in files("src", "tests", ext=(".c", ".h"))}
	for name, calls, folders, also in RULES:
		tap.check(name, [o for p, bare in text.items() if p.startswith(tuple(f + "/" for f in folders))
			for o in offences(p, bare, calls, also)])
	scripts = [p for p in files("tests", ext=(".py", ".sh")) if p != "tests/lint/banned.py"]
	tap.check("no sleep in scripted tests", [o for p in scripts for o in script_sleeps(p, read(p))])
	tap.check("no path of a machine", machine_paths())
	tap.end()


main()
