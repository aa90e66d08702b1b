#!/usr/bin/env python3
"""`refreshd --dev` as a person uses it: what it prints is true, and however it ends nothing stays behind.
TAP on stdout; nothing but the standard library."""
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import urllib.error
import urllib.request

sys.path.insert(0, os.path.join(os.environ.get("TOP_SRCDIR", "."), "tests/integration"))
from pgcluster import pg_bindir, wait_until  # noqa: E402

REFRESHD = os.path.join(os.environ.get("TOP_BUILDDIR", "."), "refreshd")
results = []
started = []


def check(name, good, detail=""):
	results.append(bool(good))
	print("%s %d - %s" % ("ok" if good else "not ok", len(results), name))
	if not good:
		print("# got: %s" % str(detail).replace("\n", "\n# "))
	sys.stdout.flush()


def processes_with(text):
	"""(pid, user id) of every living process whose command line holds the text."""
	found = []
	for pid in filter(str.isdigit, os.listdir("/proc")):
		try:
			with open("/proc/%s/cmdline" % pid, "rb") as f:
				line = f.read().replace(b"\0", b" ").decode(errors="replace")
			if text in line and int(pid) != os.getpid():
				found.append((int(pid), os.stat("/proc/" + pid).st_uid))
		except OSError:
			continue
	return found


def as_from_a_terminal():
	"""What runs in the background of a script is deaf to Ctrl-C, and would hand that on."""
	signal.signal(signal.SIGINT, signal.SIG_DFL)


class Dev:
	"""One `refreshd --dev` in a session of its own, so that it can get a terminal's Ctrl-C."""

	def __init__(self, tmp, *options, env=None):
		self.out_path = os.path.join(tmp, "out-%d" % len(started))
		self.err_path = os.path.join(tmp, "err-%d" % len(started))
		self.home = None
		with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
			self.p = subprocess.Popen([REFRESHD, "--dev"] + list(options), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
				env=dict(os.environ, TMPDIR=tmp, **(env or {})), start_new_session=True, preexec_fn=as_from_a_terminal)
		started.append(self.p)

	def out(self):
		with open(self.out_path) as f:
			return f.read()

	def err(self):
		with open(self.err_path) as f:
			return f.read()

	def find(self, pattern):
		m = re.search(pattern, self.out())
		return m.group(1) if m else None

	def ready(self):
		wait_until("READY:\n" + self.err(), lambda: "daemon.ready" in self.err() or self.p.poll() is not None, 60)
		self.home = self.find(r"folder +(\S+)")
		return self

	def answer(self, path):
		base = self.find(r"curl (http://\S+)/metrics")
		with urllib.request.urlopen(base + path, timeout=10) as r:
			return r.status, r.read().decode()

	def call_api(self, key):
		"""As the curl line says, with another key perhaps."""
		line = next(l for l in self.out().splitlines() if l.startswith("  API ") and "curl" in l)
		headers = dict(h.split(": ", 1) for h in re.findall(r'-H "([^"]+)"', line))
		headers["Authorization"] = "Bearer " + key
		try:
			with urllib.request.urlopen(urllib.request.Request(line.split(" ")[-1], headers=headers), timeout=10) as r:
				return r.status, r.read().decode()
		except urllib.error.HTTPError as e:
			return e.code, e.read().decode()

	def psql(self, sql):
		url = self.find(r'psql "([^"]+)"')
		return subprocess.run([os.path.join(pg_bindir(), "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql], check=True,
			stdout=subprocess.PIPE, text=True).stdout.strip()

	def end(self, signo=signal.SIGINT):
		"""To the whole group, as a terminal does."""
		os.killpg(self.p.pid, signo)
		return self.p.wait(60)


def nothing_left(name, home):
	try:
		wait_until("an end", lambda: not os.path.exists(home) and not processes_with(home), 30)
		check(name, True)
	except TimeoutError:
		check(name, False, "folder there: %s, processes: %s" % (os.path.exists(home), processes_with(home)))


def test_throwaway(tmp):
	d = Dev(tmp).ready()
	text = d.out()
	check("it warns that it is not for production", "NOT FOR PRODUCTION" in text, text + d.err())
	check("its folder is where temporary files go", d.home is not None and d.home.startswith(tmp + "/"), text)
	check("the metrics line works", "refreshd_build_info" in d.answer("/metrics")[1])
	check("it is ready", d.answer("/readyz")[0] == 200)
	check("the schema is there", d.psql("select max(version) from refreshd.schema_version") == "1")
	key = d.find(r"API key +(rfd_\S+)") or ""
	stored = d.psql("select application_id || ' ' || encode(key_sha256, 'hex') from refreshd.api_key")
	check("the API key that it prints is the one of application dev", stored == "dev " + hashlib.sha256(key.encode()).hexdigest(), stored)
	check("nothing of the key is in the log or the configuration", key not in d.err() and key not in open(os.path.join(d.home, "refreshd.yaml")).read())
	status, body = d.call_api(key)
	check("the API line works", status == 200 and json.loads(body)["data"] == [], body)
	check("a wrong key does not", d.call_api(key[:-1] + ("a" if key[-1] != "a" else "b"))[0] == 401)
	owners = {uid for _, uid in processes_with(os.path.join(d.home, "postgres/data"))}
	check("Postgres runs, and not as root", owners and 0 not in owners, owners)
	check("Postgres listens on a unix socket alone", d.psql("show listen_addresses") == "")
	check("others cannot reach it", os.stat(os.path.join(d.home, "postgres")).st_mode & 0o077 == 0)
	check("others cannot read the keyring", os.stat(os.path.join(d.home, "keyring")).st_mode & 0o077 == 0)
	done = subprocess.run([REFRESHD, "--check-config", "-c", os.path.join(d.home, "refreshd.yaml")], stdout=subprocess.PIPE, text=True)
	check("its configuration is one that refreshd takes", done.returncode == 0, done.stdout)
	check("Ctrl-C ends it well", d.end() == 0, d.err())
	check("the daemon had its database to the end", "daemon.stopped" in d.err() and "unavailable" not in d.err(), d.err())
	nothing_left("after Ctrl-C nothing is left", d.home)


def test_kill9(tmp):
	d = Dev(tmp).ready()
	os.kill(d.p.pid, signal.SIGKILL)
	d.p.wait(60)
	nothing_left("after kill -9 nothing is left", d.home)

	d = Dev(tmp).ready()
	server = processes_with(os.path.join(d.home, "postgres/data"))[0][0]
	with open("/proc/%d/stat" % server) as f:
		keeper = int(f.read().rsplit(")", 1)[1].split()[1])
	os.kill(keeper, signal.SIGKILL)
	try:
		wait_until("Postgres to end", lambda: not processes_with(os.path.join(d.home, "postgres/data")), 30)
		check("Postgres does not outlive its keeper", True)
	except TimeoutError:
		check("Postgres does not outlive its keeper", False, processes_with(d.home))
	code = d.end(signal.SIGKILL)
	check("that is the end of refreshd, too", code == -signal.SIGKILL, code)
	shutil.rmtree(d.home, ignore_errors=True)


def test_interrupted_start(tmp):
	for marker in ("", "keyring", "postgres/data.new", "postgres/data.new/base/1"):
		d = Dev(tmp)
		home = wait_until("a folder", lambda: [e for e in os.listdir(tmp) if e.startswith("refreshd-dev-")] or d.p.poll() is not None)[0]
		home = os.path.join(tmp, home)
		wait_until(marker, lambda: os.path.exists(os.path.join(home, marker)) or d.p.poll() is not None)
		d.end()
		nothing_left("after Ctrl-C at the sight of %s nothing is left" % (marker or "the folder"), home)


def test_kept(tmp):
	home = os.path.join(tmp, "vault")
	d = Dev(tmp, "--dir", home).ready()
	check("--dir is used", d.home == home, d.out() + d.err())
	d.psql("insert into refreshd.application values ('mine')")
	with open(os.path.join(home, "keyring")) as f:
		keyring = f.read()
	with open(os.path.join(home, "providers.d/mine.yaml"), "w") as f:
		f.write("providers:\n  acme: {token_url: 'https://acme.example/token'}\n")
	other = Dev(tmp, "--dir", home)
	check("a second one is refused", other.p.wait(60) == 1 and "another refreshd --dev" in other.err(), other.err())
	check("and the first goes on", d.answer("/readyz")[0] == 200)
	check("SIGTERM ends it well", d.end(signal.SIGTERM) == 0, d.err())
	check("Postgres is stopped, the folder is kept", os.path.isdir(home) and not processes_with(home), processes_with(home))

	d = Dev(tmp, "--dir", home).ready()
	check("the database is the same", d.psql("select count(*) from refreshd.application where application_id = 'mine'") == "1")
	with open(os.path.join(home, "keyring")) as f:
		check("the keyring is the same", f.read() == keyring)
	check("the key is not shown twice", d.find(r"(rfd_)") is None and "key add dev" in d.out(), d.out())
	check("own providers are kept", "provider=\"acme\"" in d.answer("/metrics")[1])
	os.kill(d.p.pid, signal.SIGKILL)
	d.p.wait(60)
	wait_until("Postgres to end", lambda: not processes_with(home))
	check("kill -9 leaves the folder", os.path.isdir(os.path.join(home, "postgres/data")))

	d = Dev(tmp, "--dir", home).ready()
	check("which still works", d.psql("select count(*) from refreshd.application where application_id = 'mine'") == "1", d.err())
	d.end()
	os.unlink(os.path.join(home, "keyring"))
	d = Dev(tmp, "--dir", home)
	check("a database without its keyring is not given another", d.p.wait(60) == 1 and "keyring" in d.err() and
		not os.path.exists(os.path.join(home, "keyring")), d.err())


def refused(tmp, name, words, *options, env=None):
	before = sorted(os.listdir(tmp))
	d = Dev(tmp, *options, env=env)
	code = d.p.wait(60)
	check(name, code == 1 and words in d.err(), "exit %s: %s" % (code, d.err()))
	left = set(os.listdir(tmp)) - set(before) - {os.path.basename(d.out_path), os.path.basename(d.err_path)}
	check(name + ", and leaves nothing", not left, left)


def test_refusals(tmp):
	empty = os.path.join(tmp, "empty")
	os.mkdir(empty)
	if not os.path.isdir("/usr/lib/postgresql"):
		refused(tmp, "without Postgres it says how to get it", "apt-get install postgresql", env={"PG_BINDIR": "", "PATH": empty})
	refused(tmp, "a wrong PG_BINDIR is named", "PG_BINDIR", env={"PG_BINDIR": empty})
	old = os.path.join(tmp, "old")
	os.mkdir(old)
	for name in ("initdb", "postgres"):
		with open(os.path.join(old, name), "w") as f:
			f.write("#!/bin/sh\necho 'postgres (PostgreSQL) 14.11'\n")
		os.chmod(os.path.join(old, name), 0o755)
	refused(tmp, "an old Postgres is refused", "version 14", env={"PG_BINDIR": old})
	with open(os.path.join(old, "postgres"), "w") as f:
		f.write("#!/bin/sh\necho 'postgres (PostgreSQL) 16.1'\n")
	with open(os.path.join(old, "initdb"), "w") as f:
		f.write("#!/bin/sh\necho 'no disk in this machine' >&2\nexit 1\n")
	refused(tmp, "initdb's own words are shown", "no disk in this machine", env={"PG_BINDIR": old})
	full = os.path.join(tmp, "full")
	os.mkdir(full)
	with open(os.path.join(full, "letters"), "w") as f:
		f.write("mine")
	refused(tmp, "somebody's folder is refused", "new or empty", "--dir", full)
	check("and left alone", os.listdir(full) == ["letters"], os.listdir(full))
	refused(tmp, "a path that would need quoting is refused", "letters, digits", "--dir", os.path.join(tmp, "it's"))
	refused(tmp, "a path too long for a socket is refused", "too long", "--dir", os.path.join(tmp, "x" * 90))
	refused(tmp, "a folder that cannot be made is named", "nowhere", "--dir", os.path.join(tmp, "nowhere/vault"))


def test_unreachable(tmp):
	if os.getuid() != 0:
		return  # Postgres runs as ourselves
	closed = os.path.join(tmp, "closed")
	os.mkdir(closed, 0o700)
	d = Dev(tmp, "--dir", os.path.join(closed, "vault"))
	check("a folder out of Postgres' reach is explained", d.p.wait(60) == 1 and "cannot reach" in d.err(), d.err())


def test_port(tmp):
	with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
		s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
		try:
			s.bind(("127.0.0.1", 9464))
			s.listen(1)
		except OSError:
			pass  # somebody has it already, which is just as good
		d = Dev(tmp).ready()
		check("a taken metrics port is passed over", d.find(r"curl http://127.0.0.1:(\d+)/") not in (None, "9464"), d.out() + d.err())
		check("and the next one serves", d.answer("/healthz")[0] == 200)
		d.end()


def main():
	tmp = tempfile.mkdtemp(prefix="refreshd-test-")
	os.chmod(tmp, 0o711)
	try:
		for test in (test_throwaway, test_kill9, test_interrupted_start, test_kept, test_refusals, test_unreachable, test_port):
			try:
				test(tmp)
			except Exception:
				check("%s runs" % test.__name__, False, traceback.format_exc())
	finally:
		for p in started:
			if p.poll() is None:
				p.kill()
				p.wait()
		wait_until("every Postgres to end", lambda: not processes_with(tmp), 30)
		shutil.rmtree(tmp, ignore_errors=True)
	print("1..%d" % len(results))
	return 0 if all(results) else 1


sys.exit(main())
