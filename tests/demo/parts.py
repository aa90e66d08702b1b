"""The real parts of the demo: the simulator, refreshd, refreshctl, curl, the webhook sink, and openssl as a second opinion."""
import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

TOP_SRCDIR = os.environ.get("TOP_SRCDIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
TOP_BUILDDIR = os.environ.get("TOP_BUILDDIR", TOP_SRCDIR)
sys.path.insert(0, os.path.join(TOP_SRCDIR, "tests/integration"))
from pgcluster import PgCluster, clean_env, free_port, wait_until  # noqa: E402,F401


class Wrong(Exception):
	"""Something that the demo promised did not come true."""


def program(name):
	path = os.path.join(TOP_BUILDDIR, name)
	if not os.access(path, os.X_OK):
		raise Wrong("%s is not built; run make first" % path)
	return path


def start(argv, log):
	"""In a session of its own (Ctrl-C is for the demo, which ends its parts in order) and gone when the demo is."""
	with open(log, "ab") as out:
		return subprocess.Popen(["setpriv", "--pdeathsig", "KILL"] + argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
			env=clean_env(), start_new_session=True)


def end(process, signo=signal.SIGKILL, timeout_s=30):
	if process is None:
		return None
	if process.poll() is None:
		process.send_signal(signo)
		try:
			process.wait(timeout_s)
		except subprocess.TimeoutExpired:
			process.kill()
			process.wait()
	return process.returncode


class Simulator:
	"""The token endpoints of the demo's providers and the webhook sink, in one process that judges its callers."""

	def __init__(self, folder, realms):
		self.ledger_path = os.path.join(folder, "ledger.jsonl")
		ready = os.path.join(folder, "simulator.ready")
		argv = [program("tests/provider/simulator"), "--ledger", self.ledger_path, "--ready-file", ready]
		for realm in realms:
			argv += ["--realm", realm]
		self.process = start(argv, os.path.join(folder, "simulator.log"))
		wait_until("the simulator to listen", lambda: os.path.exists(ready) or self.process.poll() is not None)
		if self.process.poll() is not None:
			raise Wrong("the provider simulator ended at once, see simulator.log")
		with open(ready) as f:
			self.port = json.load(f)["port"]
		self.offset = 0
		self.ledger = []

	def url(self, path):
		return "http://127.0.0.1:%d%s" % (self.port, path)

	def call(self, method, path, **query):
		request = urllib.request.Request(self.url(path) + ("?" + urllib.parse.urlencode(query) if query else ""), method=method,
			data=b"" if method == "POST" else None)
		try:
			with urllib.request.urlopen(request, timeout=30) as r:
				return r.read().decode()
		except urllib.error.HTTPError as e:
			raise Wrong("the simulator refused %s %s: %s" % (method, path, e.read().decode(errors="replace")))

	def lines(self, method, path, **query):
		return [json.loads(line) for line in self.call(method, path, **query).splitlines()]

	def read_ledger(self):
		"""All presentations of refresh tokens so far."""
		with open(self.ledger_path, "rb") as f:
			f.seek(self.offset)
			text = f.read()
		whole = text[:text.rfind(b"\n") + 1]
		self.offset += len(whole)
		self.ledger += [json.loads(line) for line in whole.splitlines()]
		return self.ledger

	def hooks(self):
		return [Hook(r) for r in self.lines("GET", "/_sink_log", name="demo")]


class Hook:
	"""One webhook as the receiver got it."""

	def __init__(self, record):
		self.record = record
		self.headers = record["headers"]
		self.body = record["body"].encode()
		payload = json.loads(record["body"])["payload"]
		self.type = payload["event_type"]
		self.event_id = payload["event_id"]
		self.entity = payload["entity"]
		self.entity_id = payload["entity_id"]
		self.reason = payload.get("reason")

	def by_openssl(self, secret):
		"""(Standard Webhooks signature good, x-apideck-signature good), computed by the openssl program."""
		stamp = ("%s.%s." % (self.headers["webhook-id"], self.headers["webhook-timestamp"])).encode()
		key = base64.b64decode(secret[len("whsec_"):])
		standard = "v1," + base64.b64encode(openssl_hmac(key, stamp + self.body)).decode()
		old = openssl_hmac(secret.encode(), self.body).hex()
		return standard in self.headers["webhook-signature"].split(" "), old == self.headers["x-apideck-signature"]

	def by_sink(self):
		verified = self.record.get("verified", {})
		return verified.get("standard") is True, verified.get("apideck") is True


def openssl_hmac(key, data):
	done = subprocess.run(["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", "hexkey:" + key.hex()], input=data,
		stdout=subprocess.PIPE, stderr=subprocess.PIPE)
	m = re.search(rb"= ?([0-9a-f]{64})\s*$", done.stdout)
	if done.returncode != 0 or m is None:
		raise Wrong("the openssl program cannot compute an HMAC: %s" % done.stderr.decode(errors="replace").strip())
	return bytes.fromhex(m.group(1).decode())


def shell(lines):
	"""Runs what the reader is shown, as the reader would; gives its standard output."""
	try:
		done = subprocess.run(["sh", "-c", "\n".join(lines)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
			env=clean_env({"no_proxy": "127.0.0.1"}), timeout=30)
	except subprocess.TimeoutExpired:
		raise Wrong("this took longer than 30 s: %s" % lines[0])
	if done.returncode != 0:
		raise Wrong("`%s ...` ended with %d: %s" % (lines[0].rstrip(" \\"), done.returncode, (done.stdout + done.stderr).strip()))
	return done.stdout


class Ctl:
	def __init__(self, config):
		self.argv = [program("refreshctl"), "-c", config]

	def run(self, *args):
		return subprocess.run(self.argv + list(args), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
			env=clean_env(), timeout=60)

	def __call__(self, *args):
		done = self.run(*args)
		if done.returncode != 0:
			raise Wrong("`refreshctl %s` ended with %d: %s" % (" ".join(args), done.returncode, (done.stderr or done.stdout).strip()))
		return done.stdout


class Daemon:
	def __init__(self, config, port, log):
		self.log = log
		self.port = port
		self.process = start([program("refreshd"), "-c", config], log)

	def get(self, path):
		with urllib.request.urlopen("http://127.0.0.1:%d%s" % (self.port, path), timeout=10) as r:
			return r.read().decode()

	def is_ready(self):
		if self.process.poll() is not None:
			raise Wrong("refreshd ended at once with exit status %d" % self.process.returncode)
		try:
			return self.get("/readyz") == "ready\n"
		except OSError:
			return False

	def metrics(self):
		"""name{labels} -> value; raises Wrong when the daemon is gone."""
		try:
			text = self.get("/metrics")
		except OSError as e:
			raise Wrong("refreshd does not answer /metrics: %s" % e)
		pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
		return {name: float(value) for name, value in pairs}

	def tail(self, n=25):
		try:
			with open(self.log, errors="replace") as f:
				return f.read().splitlines()[-n:]
		except OSError:
			return []
