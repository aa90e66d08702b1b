"""A private Postgres cluster for scripted tests, Python standard library only.

	with PgCluster() as pg:
		pg.psql("create table t (n int)")
		daemon(pg.url())

The cluster lives in a temporary directory with a unix socket of its own, is fast instead of durable, and
goes away with the process that made it (the kernel kills the postmaster when its parent dies). As root
the server runs as user postgres, because initdb and postgres refuse root. Make and start it in the
main thread: the kernel counts the end of the starting thread as the end of the parent.
"""
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time


def free_port(low=20000, high=32000):
	"""A TCP port of 127.0.0.1 below the ephemeral range, free a moment ago."""
	span = high - low
	start = int.from_bytes(os.urandom(4), "little") % span
	for i in range(span):
		port = low + (start + i) % span
		with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
			s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
			try:
				s.bind(("127.0.0.1", port))
				return port
			except OSError:
				continue
	raise RuntimeError("no free port between %d and %d" % (low, high))


def wait_until(what, condition, timeout_s=30.0):
	"""Polls until condition() is true; its value is returned. A deadline, never a fixed sleep."""
	end = time.monotonic() + timeout_s
	while True:
		value = condition()
		if value:
			return value
		if time.monotonic() > end:
			raise TimeoutError("waited %.0f s for: %s" % (timeout_s, what))
		time.sleep(0.01)


def pg_bindir():
	"""Folder of the server programs: $PG_BINDIR, else Debian's newest major, else $PATH."""
	if os.environ.get("PG_BINDIR"):
		return os.environ["PG_BINDIR"]
	found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[4]))
	if found:
		return found[-1]
	initdb = shutil.which("initdb")
	if initdb:
		return os.path.dirname(os.path.realpath(initdb))
	raise RuntimeError("no PostgreSQL server programs found; set PG_BINDIR")


def clean_env(extra=None):
	"""An environment without PG* variables, which would change what libpq does behind a test's back."""
	env = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
	env.update({"LC_ALL": "C.UTF-8"})
	env.update(extra or {})
	return env


class PgCluster:
	"""start() and stop() may be called again and again; close() removes the files."""

	PASSWORD = "cluster-test-password"

	def __init__(self, settings=None, tcp=False, listen="127.0.0.1", data_dir=None, standby_of=None):
		"""settings: server settings by name; tcp: also listen there (scram password); data_dir: an empty
		directory of the server's user to live in; standby_of: a running cluster to copy and follow."""
		self.bindir = pg_bindir()
		self.settings = dict(settings or {})
		self.dir = tempfile.mkdtemp(prefix="pgc-")
		self.data = data_dir or os.path.join(self.dir, "data")
		self.sock = os.path.join(self.dir, "s")
		self.log = os.path.join(self.dir, "server.log")
		self.port = free_port()
		self.tcp = tcp
		self.listen = listen
		self.proc = None
		self.bouncer = None
		self.bouncer_port = None
		os.chmod(self.dir, 0o755)
		os.mkdir(self.sock, 0o755)
		if os.getuid() == 0:
			user = pwd.getpwnam("postgres")
			for path in (self.dir, self.sock):
				os.chown(path, user.pw_uid, user.pw_gid)
		if standby_of is None:
			self._initdb()
		else:
			self.follow(standby_of)

	def _as_server(self, argv):
		cmd = ["setpriv", "--pdeathsig", "KILL"]
		if os.getuid() == 0:
			cmd += ["--reuid=postgres", "--regid=postgres", "--init-groups"]
		return cmd + argv

	def _initdb(self):
		pwfile = os.path.join(self.dir, "pwfile")
		with open(pwfile, "w") as f:
			f.write(self.PASSWORD + "\n")
		argv = [os.path.join(self.bindir, "initdb"), "-D", self.data, "-U", "postgres", "--auth-local=trust",
			"--auth-host=scram-sha-256", "--pwfile=" + pwfile, "-E", "UTF8", "--locale=C", "--no-sync",
			"--no-instructions"]
		done = subprocess.run(self._as_server(argv), env=clean_env(), cwd=self.dir, stdin=subprocess.DEVNULL,
			stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
		if done.returncode != 0:
			shutil.rmtree(self.dir, ignore_errors=True)
			raise RuntimeError("initdb failed:\n" + done.stdout)

	def start(self, timeout_s=60.0):
		"""Starts the server and returns when it takes connections. Does nothing when it runs."""
		if self.proc is not None and self.proc.poll() is None:
			return self
		settings = {"listen_addresses": self.listen if self.tcp else "", "port": self.port,
			"unix_socket_directories": self.sock, "fsync": "off", "full_page_writes": "off",
			"max_connections": "100", "shared_buffers": "64MB", "log_min_messages": "warning"}
		settings.update(self.settings)
		argv = [os.path.join(self.bindir, "postgres"), "-D", self.data]
		for name, value in settings.items():
			argv += ["-c", "%s=%s" % (name, value)]
		end = time.monotonic() + timeout_s
		while True:
			with open(self.log, "ab") as log:
				self.proc = subprocess.Popen(self._as_server(argv), env=clean_env(), cwd=self.dir,
					stdin=subprocess.DEVNULL, stdout=log, stderr=log)
			if wait_until("the server to be ready", lambda: self._ready() or self.proc.poll() is not None,
					max(0.1, end - time.monotonic())) and self.proc.poll() is None:
				return self
			# After a kill -9 the old backends hold the shared memory for a moment: try again.
			if time.monotonic() > end:
				raise RuntimeError("postgres does not start:\n" + self.log_text()[-2000:])
			time.sleep(0.05)

	def _ready(self):
		try:
			with open(os.path.join(self.data, "postmaster.pid")) as f:
				lines = f.read().split("\n")
		except OSError:
			return False
		return len(lines) > 7 and lines[0].strip() == str(self.proc.pid) and lines[7].strip() in ("ready", "standby")

	def kill_backend(self, pid):
		"""SIGKILL to one session: the postmaster ends all of them and recovers as after a crash. Returns when it has."""
		ready = "database system is ready to accept connections"
		before = self.log_text().count(ready)
		os.kill(pid, signal.SIGKILL)
		wait_until("the server to be back after a crash", lambda: self.log_text().count(ready) > before, 60)

	# --- replication

	def follow(self, primary, afresh=True):
		"""A stopped cluster becomes a standby of a running one: a copy of it, or (afresh=False) what it has,
		which is enough after a stop in which everything was sent."""
		if afresh:
			shutil.rmtree(self.data, ignore_errors=True)
			done = subprocess.run(self._as_server([os.path.join(self.bindir, "pg_basebackup"), "-D", self.data, "-d",
				primary.url("postgres"), "-X", "stream", "-c", "fast", "--no-sync"]), env=clean_env(), cwd=self.dir,
				stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
			if done.returncode != 0:
				raise RuntimeError("pg_basebackup failed:\n" + done.stdout)
		with open(os.path.join(self.data, "standby.signal"), "w"):
			pass
		self.settings["primary_conninfo"] = primary.url("postgres", application_name=self.name())
		return self

	def name(self):
		"""What it calls itself to its primary."""
		return "pg%d" % self.port

	def require_standby(self, standby):
		"""From now on nothing is committed here before `standby` has it on disk."""
		self.psql("ALTER SYSTEM SET synchronous_standby_names = '%s'" % standby.name())
		self.psql("SELECT pg_reload_conf()")
		wait_until("the standby to be synchronous", lambda: self.psql("SELECT sync_state FROM pg_stat_replication WHERE"
			" application_name = '%s'" % standby.name()) == "sync")

	def promote(self, timeout_s=30):
		"""A standby becomes a primary; returns when it takes writes. Nobody has to confirm its commits any more."""
		self.settings.pop("primary_conninfo", None)
		self.psql("ALTER SYSTEM RESET synchronous_standby_names")
		self.psql("SELECT pg_reload_conf()")
		self.psql("SELECT pg_promote(true, %d)" % timeout_s)
		wait_until("the promotion", lambda: self.psql("SELECT pg_is_in_recovery()") == "f", timeout_s)

	def backends(self, where="true"):
		"""Process ids of the server's sessions that fit, without the one that asks."""
		return [int(x) for x in self.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
			" AND pid <> pg_backend_pid() AND %s" % where).split()]

	def stop(self, mode="fast"):
		"""mode: fast (rolls back what runs), immediate (as a crash), smart (waits for clients)."""
		signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
		self._end(signals[mode])

	def kill9(self):
		"""SIGKILL to the postmaster; its backends notice and end by themselves."""
		self._end(signal.SIGKILL)

	def _end(self, signo):
		if self.proc is None:
			return
		if self.proc.poll() is None:
			self.proc.send_signal(signo)
			try:
				self.proc.wait(30)
			except subprocess.TimeoutExpired:
				self.proc.kill()
				self.proc.wait()
		self.proc = None

	def restart(self, mode="fast"):
		self.stop(mode)
		return self.start()

	def url(self, dbname="postgres", user="postgres", tcp=False, **more):
		"""A libpq connection string. tcp: over 127.0.0.1 with the password (needs PgCluster(tcp=True))."""
		if tcp:
			parts = {"host": "127.0.0.1", "password": self.PASSWORD}
		else:
			parts = {"host": self.sock}
		parts.update({"port": self.port, "user": user, "dbname": dbname})
		parts.update(more)
		return " ".join("%s='%s'" % (k, str(v).replace("\\", "\\\\").replace("'", "\\'")) for k, v in parts.items())

	def psql(self, sql, dbname="postgres", url=None):
		"""Runs SQL and returns what it printed: rows as lines, columns separated by |, no trailing newline.
		Raises RuntimeError with the server's words on any error."""
		argv = [os.path.join(self.bindir, "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-",
			"-d", url or self.url(dbname)]
		done = subprocess.run(argv, input=sql, env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
			text=True)
		if done.returncode != 0:
			raise RuntimeError("psql: %s" % done.stderr.strip())
		return done.stdout.rstrip("\n")

	def create_database(self, name, template="template1"):
		"""Another database of the same cluster; a ready one serves as template. Returns its URL."""
		self.psql('create database "%s" template "%s"' % (name, template))
		return self.url(name)

	def start_bouncer(self, pool_size=4, pool_mode="transaction", port=None, **more):
		"""PgBouncer in front of the cluster on 127.0.0.1; returns its connection string. more: its settings."""
		self.bouncer_port = port or free_port()
		folder = os.path.join(self.dir, "b")
		os.makedirs(folder, exist_ok=True)
		with open(os.path.join(folder, "users.txt"), "w") as f:
			f.write('"postgres" "%s"\n' % self.PASSWORD)
		ini = os.path.join(folder, "pgbouncer.ini")
		with open(ini, "w") as f:
			f.write("[databases]\n* = host=%s port=%d\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"
				"unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = %s/users.txt\npool_mode = %s\n"
				"default_pool_size = %d\nmax_client_conn = 200\nadmin_users = postgres\n"
				% (self.sock, self.port, self.bouncer_port, folder, pool_mode, pool_size))
			f.write("".join("%s = %s\n" % x for x in more.items()))
		program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
		with open(os.path.join(folder, "log"), "ab") as log:
			self.bouncer = subprocess.Popen(self._as_server([program, ini]), env=clean_env(), cwd=folder,
				stdin=subprocess.DEVNULL, stdout=log, stderr=log)
		wait_until("pgbouncer to listen", self._bouncer_listens)
		return "host='127.0.0.1' port='%d' user='postgres' dbname='postgres' password='%s'" % (
			self.bouncer_port, self.PASSWORD)

	def _bouncer_listens(self):
		if self.bouncer.poll() is not None:
			with open(os.path.join(self.dir, "b", "log")) as f:
				raise RuntimeError("pgbouncer ended:\n" + f.read())
		with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
			return s.connect_ex(("127.0.0.1", self.bouncer_port)) == 0

	def stop_bouncer(self):
		if self.bouncer is not None:
			self.bouncer.kill()
			self.bouncer.wait()
			self.bouncer = None

	def log_text(self):
		"""What the server has logged so far."""
		try:
			with open(self.log, errors="replace") as f:
				return f.read()
		except FileNotFoundError:
			return ""

	def close(self):
		self.stop_bouncer()
		self.stop("immediate")
		shutil.rmtree(self.dir, ignore_errors=True)

	def __enter__(self):
		return self.start()

	def __exit__(self, *exc):
		self.close()
