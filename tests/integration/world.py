"""The world of a scripted test: a private Postgres, the provider simulator, real daemons, and a judge.

	with World("t", realms=["a:mode=strict,at_ttl=20"]) as w:
		v = w.vault("normal", providers={"a": {}})
		v.import_lines(w.sim.mint("a", 10))
		v.start()

Everything has ports and folders of its own, ends with the script, and every wait is a condition with a deadline.
The judge believes only what the simulator's ledger and the database say, never the daemon.
"""
import base64
import collections
import ctypes
import ctypes.util
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__))))
from pgcluster import PgCluster, clean_env, free_port, wait_until

BUILD = os.path.abspath(os.environ.get("TOP_BUILDDIR", "."))
SIMULATOR = os.path.join(BUILD, "tests/provider/simulator")
REFRESHD = os.environ.get("REFRESHD", os.path.join(BUILD, "refreshd"))
REFRESHCTL = os.environ.get("REFRESHCTL", os.path.join(BUILD, "refreshctl"))
CLIENT_SECRET = "canary-client-secret-Zq8"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"canary-webhook-secret-0123456789").decode()
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def http(url, data=None, timeout_s=20):
	"""GET, or POST with data; (status, text), also for error statuses. OSError when there is no answer."""
	try:
		with NO_PROXY.open(urllib.request.Request(url, data=data), timeout=timeout_s) as r:
			return r.status, r.read().decode()
	except urllib.error.HTTPError as e:
		with e:
			return e.code, e.read().decode(errors="replace")


# ---------------------------------------------------------------- TAP

class Tap:
	"""Checks are counted as they come; the plan stands at the end. Scenarios fail alone."""

	def __init__(self):
		self.count = 0
		self.failed = 0
		self.scenario = ""

	def check(self, name, good, detail=""):
		self.count += 1
		if not good:
			self.failed += 1
		print("%s %d - %s%s" % ("ok" if good else "not ok", self.count, self.scenario and self.scenario + ": ", name))
		if not good:
			for line in str(detail).split("\n")[:40]:
				print("# " + line[:2000])
		sys.stdout.flush()
		return good

	def equal(self, name, got, want):
		return self.check(name, got == want, "got %r, wanted %r" % (got, want))

	def note(self, text):
		print("# " + text)
		sys.stdout.flush()

	def run(self, scenarios, world):
		"""Runs functions (tap, world); arguments of the script pick some by a part of the name."""
		wanted = sys.argv[1:]
		for fn in scenarios:
			self.scenario = fn.__name__
			if wanted and not any(w in fn.__name__ for w in wanted):
				continue
			began = time.monotonic()
			try:
				fn(self, world)
			except Exception:
				self.check("runs to its end", False, traceback.format_exc())
				for v in world.vaults:
					self.note("log of %s:\n%s" % (v.name, v.log_text()[-3000:].replace("\n", "\n# ")))
			finally:
				world.end_vaults()
				world.pg.start()
			self.note("%s took %.1f s" % (fn.__name__, time.monotonic() - began))
		self.scenario = ""

	def finish(self):
		print("1..%d" % self.count)
		return 1 if self.failed or self.count == 0 else 0


# ---------------------------------------------------------------- the provider

class Simulator:
	def __init__(self, folder, realms=(), tls=None, dns=False, listen=None):
		"""tls: {"cert", "key", "client_ca"}; realms: command line texts, or dicts with any value by add_realm; dns: also a name
		server, at this address:port if it is a text."""
		os.makedirs(folder, exist_ok=True)
		self.ready_file = os.path.join(folder, "ready")
		self.ledger_file = os.path.join(folder, "ledger")
		argv = [SIMULATOR, "--ready-file", self.ready_file, "--ledger", self.ledger_file]
		if tls:
			argv += ["--tls-cert", tls["cert"], "--tls-key", tls["key"]]
			if tls.get("client_ca"):
				argv += ["--tls-client-ca", tls["client_ca"]]
		if dns:
			argv += ["--dns", "127.0.0.1:0" if dns is True else dns]
		if listen:
			argv += ["--listen", listen]
		for r in realms:
			argv += ["--realm", r]
		self.proc = subprocess.Popen(["setpriv", "--pdeathsig", "KILL"] + argv, stdin=subprocess.DEVNULL,
			stdout=subprocess.DEVNULL)
		wait_until("the simulator", lambda: self.proc.poll() is not None or os.path.exists(self.ready_file))
		if self.proc.poll() is not None:
			raise RuntimeError("the simulator ended with %d: %s" % (self.proc.returncode, argv))
		with open(self.ready_file) as f:
			ready = json.load(f)
		self.tls = tls
		self.port = ready["port"]
		self.dns_port = ready.get("dns_port")
		self.base = "http%s://127.0.0.1:%d" % ("s" if tls else "", self.port)
		self.opener = NO_PROXY
		if tls:
			import ssl
			context = ssl.create_default_context(cafile=tls["ca"])
			if tls.get("client_ca"):
				context.load_cert_chain(tls["client_cert"], tls["client_key"])
			self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
				urllib.request.HTTPSHandler(context=context))

	def call(self, path, post=True, body=b"", **query):
		url = "%s/_sim/%s?%s" % (self.base, path, urllib.parse.urlencode(query))
		try:
			with self.opener.open(urllib.request.Request(url, data=body if post else None), timeout=60) as r:
				return r.read().decode()
		except urllib.error.HTTPError as e:
			raise RuntimeError("%s: %d %s" % (url, e.code, e.read().decode()))

	def url(self, realm, host="127.0.0.1"):
		return "http%s://%s:%d/%s/token" % ("s" if self.tls else "", host, self.port, realm)

	def realm(self, name, **options):
		self.call("realm", name=name, **options)

	def mint(self, realm, n, service=None, **more):
		"""n new grants as import lines: consumer "c<family>" of application "app", API "accounting"."""
		text = self.call("mint", realm=realm, n=n, format="import", application=more.pop("application", "app"),
			consumer_prefix="c", unified_api="accounting", service_id=service or realm, **more)
		return [json.loads(line) for line in text.splitlines()]

	def fault(self, realm, kind, **more):
		self.call("fault", realm=realm, kind=kind, **more)

	def clear_faults(self, realm):
		self.call("fault/clear", realm=realm)

	def down(self, realm, seconds, **more):
		self.call("down", realm=realm, s=seconds, **more)

	def revoke(self, realm, family):
		self.call("revoke", realm=realm, family=family)

	def family(self, realm, family):
		return json.loads(self.call("family", post=False, realm=realm, family=family))

	def live(self, realm):
		"""family number -> facts, with rt_sha256 and at_sha256 of what is good now."""
		text = self.call("live", post=False, realm=realm)
		return {x["family"]: x for x in (json.loads(line) for line in text.splitlines())}

	def stats(self, realm=None):
		d = json.loads(self.call("stats", post=False, **({"realm": realm} if realm else {})))
		return d["realms"][realm] if realm else d

	def ledger(self, realm=None):
		self.call("flush", post=False)
		with open(self.ledger_file) as f:
			lines = [json.loads(line) for line in f]
		return [x for x in lines if realm is None or x["realm"] == realm]

	def sink(self, name):
		"""What webhook receiver `name` was sent."""
		with self.opener.open("%s/_sink_log?name=%s" % (self.base, name), timeout=20) as r:
			return [json.loads(line) for line in r.read().decode().splitlines()]

	def sink_set(self, name, **options):
		url = "%s/_sink_ctl?%s" % (self.base, urllib.parse.urlencode(dict(options, name=name)))
		with self.opener.open(urllib.request.Request(url, data=b""), timeout=20) as r:
			r.read()

	def sink_url(self, name):
		return "%s/_sink/%s" % (self.base, name)

	def close(self):
		self.proc.terminate()
		try:
			self.proc.wait(20)
		except subprocess.TimeoutExpired:
			self.proc.kill()
			self.proc.wait()


# ---------------------------------------------------------------- sealed columns, opened without the product

class Unseal:
	"""Opens sealed columns by libcrypto alone, from the written format (src/base/crypto.h, src/service/seal.h)."""

	def __init__(self, keyring_text):
		self.keys = {}
		for line in keyring_text.splitlines():
			if line and not line.startswith("#"):
				name, b64 = line.split()
				self.keys[name.encode()] = base64.b64decode(b64)
		self.lib = ctypes.CDLL(ctypes.util.find_library("crypto") or "libcrypto.so.3")
		self.lib.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
		self.lib.EVP_aes_256_gcm.restype = ctypes.c_void_p
		self.data_keys = {}

	def _data_key(self, key_id, salt):
		if (key_id, salt) not in self.data_keys:
			prk = hmac.new(salt, self.keys[key_id], hashlib.sha256).digest()
			self.data_keys[key_id, salt] = hmac.new(prk, b"\x01", hashlib.sha256).digest()
		return self.data_keys[key_id, salt]

	def open(self, column, connection_id, version, sealed):
		n = sealed[1]
		head = 2 + n + 16 + 12
		if sealed[0] != 1 or len(sealed) < head + 16:
			raise ValueError("not a sealed text")
		salt, nonce = sealed[2 + n:2 + n + 16], sealed[2 + n + 16:head]
		text, tag = sealed[head:-16], sealed[-16:]
		aad = b"refreshd\0" + column.encode() + b"\0" + uuid.UUID(connection_id).bytes + version.to_bytes(8, "big")
		lib, ctx = self.lib, ctypes.c_void_p(self.lib.EVP_CIPHER_CTX_new())
		out, length = ctypes.create_string_buffer(len(text) + 16), ctypes.c_int(0)
		try:
			good = lib.EVP_DecryptInit_ex(ctx, ctypes.c_void_p(lib.EVP_aes_256_gcm()), None,
				self._data_key(sealed[2:2 + n], salt), nonce) == 1
			for extra in (sealed[:head], aad):
				good = good and lib.EVP_DecryptUpdate(ctx, None, ctypes.byref(length), extra, len(extra)) == 1
			good = good and lib.EVP_DecryptUpdate(ctx, out, ctypes.byref(length), text, len(text)) == 1
			good = good and lib.EVP_CIPHER_CTX_ctrl(ctx, 0x11, 16, tag) == 1
			good = good and lib.EVP_DecryptFinal_ex(ctx, ctypes.create_string_buffer(16), ctypes.byref(length)) == 1
		finally:
			lib.EVP_CIPHER_CTX_free(ctx)
		if not good:
			raise ValueError("cannot be opened")
		return out.raw[:len(text)]


# ---------------------------------------------------------------- metrics

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
NUMBER = re.compile(r'(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?Inf|NaN)$')


class Metrics:
	"""A strict reader of the Prometheus text format 0.0.4: anything odd is a ValueError."""

	def __init__(self, text):
		self.types, self.help, self.samples = {}, {}, {}
		if not text.endswith("\n"):
			raise ValueError("no newline at the end")
		closed, current = set(), None
		for line in text[:-1].split("\n"):
			if line.startswith("#"):
				mark, word, name, rest = (line.split(" ", 3) + [""])[:4]
				store = {"HELP": self.help, "TYPE": self.types}.get(word)
				if store is None or name in store or name in closed:
					raise ValueError("bad or repeated comment: " + line)
				if word == "TYPE" and rest not in ("counter", "gauge", "histogram"):
					raise ValueError("unknown type: " + line)
				store[name] = rest
				if current not in (None, name):
					closed.add(current)
				current = name
				continue
			self._sample(line, current)
		self._check_histograms()

	def _sample(self, line, family):
		m = SAMPLE.match(line)
		if not m or not NUMBER.match(m.group(3)):
			raise ValueError("bad sample: " + line)
		name, labels = m.group(1), m.group(2) or ""
		pairs, at = [], 0
		while at < len(labels):
			l = LABEL.match(labels, at)
			if not l:
				raise ValueError("bad labels: " + line)
			pairs.append((l.group(1), l.group(2)))
			at = l.end()
		base = re.sub(r"_(bucket|sum|count)$", "", name) if self.types.get(name) is None else name
		if base != family or base not in self.types or base not in self.help:
			raise ValueError("sample outside its family: " + line)
		key = (name, tuple(sorted(pairs)))
		if key in self.samples or len(set(p[0] for p in pairs)) != len(pairs):
			raise ValueError("twice: " + line)
		self.samples[key] = float(m.group(3))

	def _check_histograms(self):
		groups = collections.defaultdict(list)
		for (name, labels), value in self.samples.items():
			if name.endswith("_bucket"):
				rest = tuple(p for p in labels if p[0] != "le")
				groups[name[:-7], rest].append((float(dict(labels)["le"]), value))
			if self.types.get(name) == "counter" and (not name.endswith("_total") or value < 0):
				raise ValueError("a counter is named _total and never negative: " + name)
		for (name, rest), buckets in groups.items():
			buckets.sort()
			counts = [b[1] for b in buckets]
			if counts != sorted(counts) or buckets[-1][0] != float("inf"):
				raise ValueError("buckets do not add up: " + name)
			if self.samples[name + "_count", rest] != counts[-1] or (name + "_sum", rest) not in self.samples:
				raise ValueError("count is not the last bucket: " + name)

	def get(self, name, **labels):
		return self.samples.get(("refreshd_" + name, tuple(sorted(labels.items()))))

	def total(self, name, **labels):
		want = set(labels.items())
		return sum(v for (n, l), v in self.samples.items() if n == "refreshd_" + name and want <= set(l))

	def names(self):
		return set(self.types)


# ---------------------------------------------------------------- one daemon over one database

class Vault:
	"""A database, a configuration, and the daemon that runs with it. Paths: dir/refreshd.yaml, dir/state, dir/log."""

	def __init__(self, world, name, providers, clients=None, db_url=None, wrap=None, migrate=True, beside=None, **sections):
		"""beside: another vault, whose database, keyring and clients' secret this daemon shares. providers: key -> options over a default of the realm of that name in world.sim. sections: whole
		top-level sections to merge over the defaults. wrap: arguments for the setpriv that starts the daemon."""
		self.world, self.name, self.wrap = world, name, list(wrap or [])
		self.dir = os.path.join(world.dir, name)
		os.mkdir(self.dir, 0o755)
		self.port = free_port()
		self.metrics_base = "http://127.0.0.1:%d" % self.port
		self.log_file = os.path.join(self.dir, "log")
		self.conf_file = os.path.join(self.dir, "refreshd.yaml")
		self.state_dir = os.path.join(self.dir, "state")
		self.proc = None
		self.program = None  # another build than REFRESHD
		self.dbname = beside.dbname if beside else "v_" + re.sub(r"[^a-z0-9]", "_", name)
		self.keyring = beside.keyring if beside else "k1 %s\n" % base64.b64encode(os.urandom(32)).decode()
		self.secret_file = self.write("client-secret", CLIENT_SECRET + "\n")
		self.conf = {
			"instance": name[:60],
			"state_dir": self.state_dir,
			"insecure_http": "loopback",
			"log": {"format": "json", "level": "info"},
			"database": {"url": beside.conf["database"]["url"] if beside else db_url or world.pg.create_database(self.dbname, "template0")},
			"keyring_file": self.write("keyring", self.keyring),
			"metrics": {"listen": "127.0.0.1:%d" % self.port},
			"refresh": {"poll_interval": "200ms"},
			"providers": {},
			"clients": [],
		}
		for key, options in providers.items():
			self.add_provider(key, options)
		self.conf["clients"] += clients or [{"application": "*", "provider": key, "client_id": "client",
			"client_secret_file": self.secret_file} for key in self.conf["providers"]]
		for section, value in sections.items():
			if isinstance(value, dict) and isinstance(self.conf.get(section), dict):
				self.conf[section].update(value)
			else:
				self.conf[section] = value
		self.write_conf()
		self.watched = False
		if migrate and not beside:
			self.migrate()

	def add_provider(self, key, options):
		p = {"name": key.capitalize(), "unified_apis": ["accounting"], "auth_type": "oauth2",
			"token_url": self.world.sim.url(key), "client_auth": "client_secret_basic", "rotation": "strict",
			"max_in_flight": 64}
		p.update(options)
		self.conf["providers"][key] = p

	def write(self, name, text, mode=0o600):
		path = os.path.join(self.dir, name)
		with open(path, "w") as f:
			f.write(text)
		os.chmod(path, mode)
		return path

	def write_conf(self):
		"""JSON is YAML; one key a line, so that messages have lines to point at."""
		self.write("refreshd.yaml", json.dumps(self.conf, indent=1) + "\n", 0o644)

	# --- refreshctl

	def ctl(self, *args, stdin=None, good=True, timeout_s=120):
		done = subprocess.run([REFRESHCTL, "-c", self.conf_file] + list(args), input=stdin, env=clean_env(),
			stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout_s)
		if good and done.returncode != 0:
			raise RuntimeError("refreshctl %s: exit %d\n%s%s" % (" ".join(args), done.returncode, done.stdout, done.stderr))
		return done

	def migrate(self):
		self.ctl("migrate")
		self.watch()

	def watch(self):
		"""Triggers of our own that write down what must never happen: versions that shrink, refreshes after the end."""
		self.sql("""
			CREATE SCHEMA watch;
			CREATE TABLE watch.shrunk (connection_id uuid, was bigint, became bigint);
			CREATE TABLE watch.late (connection_id uuid, expired_at timestamptz, refreshed_at timestamptz);
			CREATE FUNCTION watch.note_shrunk() RETURNS trigger LANGUAGE plpgsql AS
				'BEGIN INSERT INTO watch.shrunk VALUES (NEW.connection_id, OLD.token_version, NEW.token_version); RETURN NULL; END';
			CREATE FUNCTION watch.note_late() RETURNS trigger LANGUAGE plpgsql AS
				'BEGIN INSERT INTO watch.late VALUES (NEW.connection_id, OLD.expires_at, clock_timestamp()); RETURN NULL; END';
			CREATE TRIGGER shrunk AFTER UPDATE ON refreshd.credential FOR EACH ROW
				WHEN (NEW.token_version < OLD.token_version OR
					(NEW.token_version = OLD.token_version AND NEW.access_token IS DISTINCT FROM OLD.access_token))
				EXECUTE FUNCTION watch.note_shrunk();
			CREATE TRIGGER late AFTER UPDATE ON refreshd.credential FOR EACH ROW
				WHEN (NEW.refreshes > OLD.refreshes AND OLD.expires_at < clock_timestamp())
				EXECUTE FUNCTION watch.note_late();
			GRANT USAGE ON SCHEMA watch TO PUBLIC; GRANT INSERT ON ALL TABLES IN SCHEMA watch TO PUBLIC;""")
		self.watched = True

	def import_lines(self, lines):
		text = "".join(json.dumps(x) + "\n" for x in lines)
		return self.ctl("import", "-", "--create-apps", "--strict", stdin=text)

	# --- the process

	def start(self, ready=True, timeout_s=30, pass_fds=()):
		with open(self.log_file, "ab") as log:
			self.proc = subprocess.Popen(["setpriv", "--pdeathsig", "KILL"] + self.wrap + [self.program or REFRESHD, "-c", self.conf_file],
				env=clean_env(), cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds)
		if ready:
			self.wait_ready(timeout_s)
		return self

	def wait_ready(self, timeout_s=30):
		wait_until("%s to be ready" % self.name, lambda: self.ready() or not self.alive(), timeout_s)
		if not self.alive():
			raise RuntimeError("refreshd ended with %s:\n%s" % (self.proc.returncode, self.log_text()[-3000:]))

	def alive(self):
		return self.proc is not None and self.proc.poll() is None

	def get(self, path):
		return http(self.metrics_base + path, timeout_s=10)

	def ready(self):
		try:
			return self.get("/readyz")[0] == 200
		except OSError:
			return False

	def metrics(self):
		status, text = self.get("/metrics")
		if status != 200:
			raise RuntimeError("/metrics: %d %s" % (status, text))
		return Metrics(text)

	def outcomes(self, provider):
		"""outcome -> count, without the zeros."""
		m = self.metrics()
		return {dict(l)["outcome"]: int(v) for (n, l), v in m.samples.items()
			if n == "refreshd_refreshes_total" and dict(l)["provider"] == provider and v > 0}

	def signal(self, signo):
		self.proc.send_signal(signo)

	def stop(self, timeout_s=60):
		"""SIGTERM and the exit code."""
		self.proc.send_signal(signal.SIGTERM)
		return self.wait(timeout_s)

	def wait(self, timeout_s=60):
		code = self.proc.wait(timeout_s)
		self.proc = None
		return code

	def kill(self):
		self.proc.kill()
		self.proc.wait()
		self.proc = None

	# --- what it wrote

	def log_text(self):
		try:
			with open(self.log_file, errors="replace") as f:
				return f.read()
		except FileNotFoundError:
			return ""

	def log_lines(self):
		"""Every line as JSON; one that is not is a ValueError with the line."""
		out = []
		for line in self.log_text().splitlines():
			text = re.sub(r"^<[0-7]>", "", line)
			try:
				out.append(json.loads(text))
			except ValueError:
				raise ValueError("not JSON: %r" % line)
		return out

	def logged(self, event):
		return [x for x in self.log_lines() if x.get("event") == event]

	# --- what the database says

	def sql(self, text):
		return self.world.pg.psql(text, self.dbname)

	def count(self, text):
		return int(self.sql("SELECT count(*) FROM " + text))

	def rows(self, service=None):
		"""consumer id -> the whole stored truth of a connection, of one service; of all when they share no consumer."""
		return {row["consumer"]: row for row in self.all_rows() if service in (None, row["service"])}

	def all_rows(self):
		text = self.sql("""SELECT json_build_object('id', c.connection_id, 'consumer', c.consumer_id, 'service', c.service_id,
			'state', c.state, 'health', c.health, 'reason', c.reason, 'failures', c.failures, 'version', k.token_version,
			'refreshes', k.refreshes, 'rt', encode(k.refresh_token, 'hex'), 'at', encode(k.access_token, 'hex'),
			'doubts', s.doubts, 'due_in', extract(epoch FROM nullif(s.due_at, 'infinity') - now()), 'leased', s.lease_owner IS NOT NULL,
			'expires_in', extract(epoch FROM nullif(k.expires_at, 'infinity') - now()), 'life', extract(epoch FROM nullif(k.expires_at, 'infinity') - k.issued_at))
			FROM refreshd.connection c JOIN refreshd.credential k USING (slot, connection_id)
			JOIN refreshd.schedule s USING (slot, connection_id)""")
		return [json.loads(line) for line in text.splitlines()]

	def token(self, row, column="refresh_token"):
		"""The stored token in clear."""
		sealed = bytes.fromhex(row["rt" if column == "refresh_token" else "at"])
		return Unseal(self.keyring).open("credential." + column, row["id"], row["version"], sealed)

	def events(self):
		return [tuple(line.split("|")) for line in self.sql(
			"SELECT event_type, coalesce(reason, ''), entity_id, connection_id FROM refreshd.event ORDER BY occurred_at, event_id").splitlines()]

	def event_counts(self):
		return dict(collections.Counter(e[0].rsplit(".", 1)[-1] for e in self.events()))

	def quiet(self):
		"""Nothing in flight and nothing in the journal that the database does not have."""
		m = self.metrics()
		return m.get("refresh_in_flight") == 0 and m.get("journal_records") == 0


# ---------------------------------------------------------------- the judge

def presented_again(ledger, forgiven=()):
	"""I1: presentations of a token after the whole answer that replaced it was delivered. forgiven: spans (from, to) in
	wall microseconds in which a delivered answer may have died with the daemon."""
	spent, bad = {}, []
	for x in sorted(ledger, key=lambda x: x["t_recv_us"]):
		key = (x["realm"], x["rt"])
		if key in spent and x["t_recv_us"] >= spent[key]:
			bad.append(x)
		if x["outcome"] in ("rotated", "reused_in_grace") and x["delivered"]:
			if not any(a <= x["t_done_us"] <= b for a, b in forgiven):
				spent.setdefault(key, x["t_done_us"])
	return bad


def judge_ledger(tap, sim, realm, forgiven=()):
	ledger = sim.ledger(realm)
	again = presented_again(ledger, forgiven)
	tap.check("no refresh token is presented again after its answer was delivered (%d presentations)" % len(ledger),
		not again, "\n".join(map(json.dumps, again[:5])))
	overlaps = [x for x in ledger if x["overlap"]]
	tap.check("no two presentations of one token overlap", not overlaps, "\n".join(map(json.dumps, overlaps[:5])))
	return ledger


def sort_tokens(sim, vault, realm):
	"""I3: each stored refresh token against the provider's live one. Counts, and the wrong rows."""
	live, opener, out = sim.live(realm), Unseal(vault.keyring), collections.Counter()
	wrong = []
	for row in vault.rows(realm).values():
		family = live[int(row["consumer"][1:])]
		stored = opener.open("credential.refresh_token", row["id"], row["version"], bytes.fromhex(row["rt"]))
		good = hashlib.sha256(stored).hexdigest() == family["rt_sha256"] and not family["revoked"]
		if row["state"] == "invalid":
			out["marked_alive" if good else "marked_dead"] += 1
		elif good:
			out["good"] += 1
		elif row["doubts"] > 0 or row["health"] != "ok":
			out["in_doubt"] += 1
		else:
			out["wrong"] += 1
			wrong.append({"row": {k: row[k] for k in ("consumer", "state", "health", "version", "doubts")}, "family": family})
	return out, wrong


def judge_tokens(tap, sim, vault, realm, all_good=True):
	found, wrong = sort_tokens(sim, vault, realm)
	tap.check("every stored token is the provider's live one, or known not to be", not wrong, "\n".join(map(str, wrong[:5])))
	if all_good:
		tap.check("all of them are live and well: %s" % dict(found), set(found) == {"good"}, dict(found))
	tap.equal("token versions only grow", vault.count("watch.shrunk"), 0)
	return found


def judge_expiry(tap, vault):
	"""I4, from the trigger (each refresh that came after the end of the token before it) and the rows as they are."""
	late = vault.sql("SELECT connection_id, refreshed_at - expired_at FROM watch.late LIMIT 5")
	tap.equal("no token had expired when its successor came", late, "")
	tap.equal("no healthy connection has expired", vault.count("refreshd.connection c JOIN refreshd.credential k USING (slot, connection_id)"
		" WHERE c.state = 'callable' AND c.health = 'ok' AND k.expires_at < now()"), 0)


# ---------------------------------------------------------------- all of it

class World:
	def __init__(self, name, realms=(), dns=False, pg_settings=None, tcp=False):
		for program in (SIMULATOR, REFRESHD, REFRESHCTL):
			if not os.access(program, os.X_OK):
				raise SystemExit("%s is not there: run make first (TOP_BUILDDIR is %s)" % (program, BUILD))
		self.dir = tempfile.mkdtemp(prefix="rd-%s-" % name)
		os.chmod(self.dir, 0o755)
		self.vaults = []
		self.made = 0
		self.sim = None
		self.pg = PgCluster(settings=pg_settings, tcp=tcp)
		try:
			self.sim = Simulator(os.path.join(self.dir, "sim"), realms, dns=dns)
			self.pg.start()
		except BaseException:
			self.close()
			raise

	def vault(self, name, providers, **more):
		v = Vault(self, name, providers, **more)
		self.vaults.append(v)
		return v

	def end_vaults(self):
		for v in self.vaults:
			if v.alive():
				v.kill()
		self.vaults = []

	def close(self):
		self.end_vaults()
		if self.sim is not None:
			self.sim.close()
		self.pg.close()
		if not os.environ.get("REFRESHD_KEEP"):
			shutil.rmtree(self.dir, ignore_errors=True)

	def __enter__(self):
		return self

	def __exit__(self, *exc):
		self.close()
