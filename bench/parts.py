"""What the measurements share: a private Postgres that is as careful as a real one, the simulator behind TLS, daemons, and CPU meters.

Nothing is hidden in it: every rate that is compared is measured several times, the two sides in turns, and goes into the results
with its smallest, middle and largest value.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.environ.get("TOP_SRCDIR") or os.path.join(HERE, "..")
sys.path.insert(0, os.path.join(TOP, "tests", "integration"))
import world as w  # noqa: E402
from pgcluster import PgCluster, clean_env, free_port, wait_until  # noqa: E402

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
# As a small real server: durable, and no checkpoint in the middle of a run of seconds.
PG_SETTINGS = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "shared_buffers": "1GB", "max_wal_size": "16GB",
	"checkpoint_timeout": "30min", "wal_buffers": "16MB"}
# Tokens as they come from providers whose access tokens are JWTs.
AT_BYTES, RT_BYTES = 1000, 200


def say(text):
	print("bench: " + text, flush=True)


def tool(name):
	return os.path.join(w.BUILD, "bench", name)


# ---------------------------------------------------------------- numbers

def spread(values, digits=1):
	"""What the results hold of one figure."""
	return {"min": round(min(values), digits), "median": round(statistics.median(values), digits), "max": round(max(values), digits),
		"n": len(values)}


def spreads(rows, digits=1):
	"""The same for every key of equal dicts, one a run; rates are whole numbers."""
	return {k: spread([r[k] for r in rows], 0 if k.endswith("per_s") else digits) for k in sorted(rows[0])}


def percentile(ordered, share):
	return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratio(ours, theirs, digits=3):
	"""Run by run, never a rate of one minute over that of another."""
	return spread([a / b for a, b in zip(ours, theirs)], digits)


def cpu_us(pid, dead_children=False):
	"""User and system time of a whole process so far, in microseconds; ticks of 10 ms."""
	with open("/proc/%d/stat" % pid) as f:
		fields = f.read().rsplit(")", 1)[1].split()
	return sum(int(x) for x in fields[11:15 if dead_children else 13]) * TICK_US


def children(pid):
	try:
		with open("/proc/%d/task/%d/children" % (pid, pid)) as f:
			return [int(x) for x in f.read().split()]
	except FileNotFoundError:
		return []


def cpu_tree_us(pid):
	"""The same with its children, those that are over included: all of a Postgres."""
	total = cpu_us(pid, dead_children=True)
	for child in children(pid):
		with contextlib.suppress(FileNotFoundError, ProcessLookupError):
			total += cpu_us(child)
	return total


def status_of(pid, name):
	with open("/proc/%d/status" % pid) as f:
		return int(re.search(r"^%s:\s+(\d+)" % name, f.read(), re.M).group(1))


def switches(pid):
	"""Times that any thread went to sleep by itself, which is how often it had been woken up."""
	total = 0
	for task in os.listdir("/proc/%d/task" % pid):
		with open("/proc/%d/task/%s/status" % (pid, task)) as f:
			total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", f.read(), re.M).group(1))
	return total


class Meter:
	"""CPU of named processes between start and stop, in microseconds."""

	def __init__(self, **readers):
		self.readers = readers
		self.began = {k: r() for k, r in readers.items()}
		self.clock = time.monotonic()

	def stop(self):
		self.seconds = time.monotonic() - self.clock
		return {k: r() - self.began[k] for k, r in self.readers.items()}


# ---------------------------------------------------------------- processes

def spawn(argv, **more):
	return subprocess.Popen(["setpriv", "--pdeathsig", "KILL"] + argv, env=clean_env(more.pop("env", None)), text=True, **more)


@contextlib.contextmanager
def undisturbed():
	"""Signals wait: a second Ctrl-C, or one that comes at the end of a measurement, must not leave half of it behind."""
	before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
	try:
		yield
	finally:
		signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def running(argv, **more):
	proc = spawn(argv, **more)
	try:
		yield proc
	finally:
		if proc.poll() is None:
			proc.kill()
		proc.wait()
		for pipe in (proc.stdin, proc.stdout):
			if pipe:
				pipe.close()


def output(argv, timeout_s=900, **more):
	"""Standard output of a program that must succeed."""
	done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout_s, env=clean_env(), **more)
	if done.returncode != 0:
		raise RuntimeError("%s: exit %d\n%s%s" % (" ".join(argv), done.returncode, done.stdout[-2000:], done.stderr[-2000:]))
	return done.stdout


NAMES = 50  # of this machine, with Place(dns=True)


def host_name(i):
	return "p%d.test" % i


def openssl(*args):
	output(["openssl"] + list(args))


def make_certificates(folder):
	"""A CA and a certificate of 127.0.0.1 by it."""
	path = {k: os.path.join(folder, k + ".pem") for k in ("ca", "ca_key", "cert", "key", "csr")}
	ext = os.path.join(folder, "ext")
	with open(ext, "w") as f:
		# Every name for itself: libraries do not take a star before a single label.
		f.write("subjectAltName=IP:127.0.0.1,%s\nbasicConstraints=CA:FALSE\n" % ",".join("DNS:" + host_name(i) for i in range(NAMES)))
	key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
	openssl("req", "-x509", *key, "-keyout", path["ca_key"], "-out", path["ca"], "-days", "2", "-subj", "/CN=bench CA")
	openssl("req", *key, "-keyout", path["key"], "-out", path["csr"], "-subj", "/CN=127.0.0.1")
	openssl("x509", "-req", "-in", path["csr"], "-CA", path["ca"], "-CAkey", path["ca_key"], "-CAcreateserial", "-out", path["cert"],
		"-days", "2", "-extfile", ext)
	return path


class Place:
	"""A folder, a Postgres and a simulator behind TLS; daemons as vaults. Everything goes with it."""

	def __init__(self, name, pg=None, dns=False):
		"""pg: more settings of Postgres; dns: host_name(0) to host_name(NAMES - 1) are this machine, by resolv_conf."""
		for program in (w.SIMULATOR, w.REFRESHD, w.REFRESHCTL):
			if not os.access(program, os.X_OK):
				raise SystemExit("%s is not there: run make first" % program)
		self.dir = tempfile.mkdtemp(prefix="refreshd-bench-%s-" % name)
		os.chmod(self.dir, 0o755)
		self.sim, self.pg, self.vaults = None, None, []
		try:
			self.tls = make_certificates(self.dir)
			self.sim = w.Simulator(os.path.join(self.dir, "sim"), tls=self.tls, dns=dns)
			self.resolv_conf = os.path.join(self.dir, "resolv.conf")
			if dns:
				with open(self.resolv_conf, "w") as f:
					f.write("nameserver 127.0.0.1:%d\n" % self.sim.dns_port)
			self.pg = PgCluster(settings=dict(PG_SETTINGS, **(pg or {})))
			self.pg.start()
		except BaseException:
			self.close()
			raise

	def realm(self, name, **options):
		self.sim.realm(name, **dict({"at_len": AT_BYTES, "rt_len": RT_BYTES, "client_secret": w.CLIENT_SECRET, "auth": "basic"}, **options))

	def vault(self, name, service, provider=None, **sections):
		"""A migrated database and a daemon for it, not started. provider: options, for each of several services alike."""
		p = dict({"ca_file": self.tls["ca"], "max_in_flight": 64}, **(provider or {}))
		services = [service] if isinstance(service, str) else service
		v = w.Vault(self, name, {s: dict(p) for s in services}, migrate=False, **sections)
		del v.conf["refresh"]["poll_interval"]  # tests are in a hurry; here everything is as it is by default
		v.write_conf()
		v.ctl("migrate")
		self.vaults.append(v)
		return v

	def pg_cpu(self):
		return cpu_tree_us(self.pg.proc.pid)

	def sim_cpu(self):
		return cpu_us(self.sim.proc.pid)

	def settle(self):
		"""Leaves no dirty page of the last run to the next one."""
		self.pg.psql("CHECKPOINT")

	def close(self):
		with undisturbed(), contextlib.ExitStack() as last:  # all of it, from the last to the first, whatever one of them says
			last.callback(shutil.rmtree, self.dir, ignore_errors=True)
			for thing in (self.pg, self.sim):
				if thing is not None:
					last.callback(thing.close)
			for v in self.vaults:
				if v.alive():
					last.callback(v.kill)

	def __enter__(self):
		return self

	def __exit__(self, *exc):
		self.close()


def refreshed(v):
	return v.metrics().total("refreshes_total", outcome="refreshed")


def flood(v, warm, seconds, readers, watch=None):
	"""Figures of a window of seconds in which everything is due all the time: rate, CPU a refresh by name of reader. `warm` refreshes go
	before it. watch is called about twice a second."""
	try:
		wait_until("the first %d refreshes" % warm, lambda: refreshed(v) >= warm, 120)
	except TimeoutError as e:
		raise RuntimeError("%s; there were %d; other outcomes %s; the log ends:\n%s" % (e, refreshed(v), failures(v), v.log_text()[-1500:])) from e
	began = refreshed(v)
	meter = Meter(daemon=lambda: cpu_us(v.proc.pid), **readers)
	while time.monotonic() < meter.clock + seconds:
		time.sleep(min(0.5, max(0, meter.clock + seconds - time.monotonic())))
		if watch:
			watch()
	n = refreshed(v) - began
	used = meter.stop()
	if n == 0:
		raise RuntimeError("nothing was refreshed in %d s" % seconds)
	return dict({k + "_cpu_us": us / n for k, us in used.items()}, per_s=n / meter.seconds)


def failures(v):
	"""Outcomes that are not refreshes, by provider and outcome."""
	return {(dict(l)["provider"], dict(l)["outcome"]): int(x) for (n, l), x in v.metrics().samples.items()
		if n == "refreshd_refreshes_total" and x > 0 and dict(l)["outcome"] != "refreshed"}


def must_be_well(v):
	if failures(v):
		raise RuntimeError("not every refresh went well: %s" % failures(v))


def as_an_old_table(v):
	"""What the import had to tell is told, and the planner knows the size."""
	v.sql("DELETE FROM refreshd.event")
	v.sql("VACUUM ANALYZE")


def load_json(text):
	return json.loads(text.strip().splitlines()[-1])
