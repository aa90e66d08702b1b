#!/usr/bin/env python3
"""The demo: refreshd's main job end to end, with real parts, in about a minute.

Two made-up providers with the strictest rotation there is hand out tokens that live for half a minute. The demo imports
connections, lets refreshd keep them alive, breaks things on purpose, and checks every sentence that it prints against the
providers' ledger, the database, the metrics and the webhooks. Exit status 0 only if all of it was true.
Python 3 standard library only; TOP_SRCDIR and TOP_BUILDDIR say where sources and programs are.
"""
import base64
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import judge  # noqa: E402
from parts import Ctl, Daemon, PgCluster, Simulator, Wrong, end, free_port, shell  # noqa: E402
from show import Show  # noqa: E402

EACH = 180  # connections of each provider; their ages are spread over half of a life, so that some fall due at any time
LIFE_S = {"acorn": 30, "birch": 24}
API = {"acorn": "crm", "birch": "accounting"}
NAME = {"acorn": "Acorn CRM", "birch": "Birch Books"}
APP = "demo"
FAILED = "vault.connection.token_refresh.failed"
FAILING, RECOVERED = "refreshd.provider.failing", "refreshd.provider.recovered"
OUTAGE_S = 3
BROKEN_S = 4
BY_CURL = 3  # connections of each provider that come in through the API, one by one

GAUGES = """select count(*) filter (where c.state <> 'invalid' and k.expires_at <= now()),
 count(*) filter (where c.state = 'callable' and c.health = 'ok'),
 count(*) filter (where c.health = 'pending_refresh'), count(*) filter (where c.state = 'invalid'),
 coalesce(extract(epoch from min(k.expires_at) filter (where c.state <> 'invalid') - now()), 0), coalesce(min(k.refreshes) filter
 (where c.state <> 'invalid'), 0) from refreshd.connection c join refreshd.credential k using (slot, connection_id)"""


class Demo:
	def __init__(self, show):
		self.show = show
		self.folder = tempfile.mkdtemp(prefix="refreshd-demo-")
		os.chmod(self.folder, 0o700)
		self.pg = self.sim = self.daemon = self.ctl = None
		self.dead = None  # (realm, family) of the grant that is taken back
		self.samples = 0
		self.closest_s = float("inf")
		self.rates = []
		self.secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
		self.next_look = 0.0
		self.api = self.key = None

	def path(self, name):
		return os.path.join(self.folder, name)

	def write(self, name, text):
		with open(os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
			f.write(text)
		return self.path(name)

	# ---- looking

	def look(self):
		"""One sample of everything; whatever must never happen ends the demo here."""
		expired, ok, pending, invalid, closest, refreshes = self.pg.psql(GAUGES).split("|")
		metrics = self.daemon.metrics()
		now = {"expired": int(expired), "ok": int(ok), "pending": int(pending), "invalid": int(invalid), "closest": float(closest),
			"least_refreshes": int(refreshes), "metrics": metrics,
			"refreshed": sum(v for k, v in metrics.items() if k.startswith("refreshd_refreshes_total") and 'outcome="refreshed"' in k)}
		if now["expired"] != 0 or metrics["refreshd_expired_connections"] != 0:
			raise Wrong("no access token should ever expire, but the database has %d expired ones and the metric says %d" %
				(now["expired"], metrics["refreshd_expired_connections"]))
		if now["invalid"] > (0 if self.dead is None else 1):
			raise Wrong("%d connections are marked as dead, at most %d may be" % (now["invalid"], 0 if self.dead is None else 1))
		self.samples += 1
		if now["ok"] + now["pending"] > 0:
			self.closest_s = min(self.closest_s, now["closest"])
		self.paint(now)
		return now

	def paint(self, now):
		self.rates = [(t, n) for t, n in self.rates if t > time.monotonic() - 3] + [(time.monotonic(), now["refreshed"])]
		span = self.rates[-1][0] - self.rates[0][0]
		rate = (self.rates[-1][1] - self.rates[0][1]) / span if span > 0.5 else 0
		gates = ", ".join("%s %s" % (NAME[r], "HELD BACK" if now["metrics"].get('refreshd_provider_circuit_open{provider="%s"}' % r) else "fine")
			for r in sorted(NAME))
		hooks = now["metrics"].get('refreshd_webhook_deliveries_total{outcome="delivered"}', 0)
		presented = len(self.sim.read_ledger())
		self.show.figures([
			"refreshed %5d   %5.1f a second   seen by the providers %5d" % (now["refreshed"], rate, presented),
			"healthy   %5d   retrying %3d      dead %d      expired %d" % (now["ok"], now["pending"], now["invalid"], now["expired"]),
			"closest to expiry %4.1f s          webhooks delivered %d" % (now["closest"], hooks),
			"providers: " + gates,
		], "%d refreshed, %.1f/s; %d healthy, %d retrying, %d dead, 0 expired; closest to expiry %.1f s; %s" % (
			now["refreshed"], rate, now["ok"], now["pending"], now["invalid"], now["closest"], gates))

	def until(self, what, condition, timeout_s):
		"""Looks at everything twice a second until condition(sample) gives something true."""
		limit = time.monotonic() + timeout_s
		while True:
			if time.monotonic() >= self.next_look:
				self.next_look = time.monotonic() + 0.5
				value = condition(self.look())
				if value:
					return value
			if time.monotonic() > limit:
				raise Wrong("waited %d s for this: %s" % (timeout_s, what))
			time.sleep(0.05)

	def during(self, seconds):
		limit = time.monotonic() + seconds
		self.until("time to pass", lambda now: time.monotonic() >= limit, seconds + 30)

	def hook(self, kind, entity_id, timeout_s=30):
		def find(now):
			return next((h for h in self.sim.hooks() if h.type == kind and h.entity_id == entity_id), None)
		return self.until("the webhook %s about %s" % (kind, entity_id), find, timeout_s)

	# ---- setting up

	def config(self, port, api_port):
		providers = "".join("""  %s:
    name: %s
    unified_apis: [%s]
    token_url: %s
    client_auth: client_secret_basic
    rotation: strict
""" % (r, NAME[r], API[r], self.sim.url("/%s/token" % r)) for r in sorted(NAME))
		clients = "".join("  - {application: %s, provider: %s, client_id: demo-client, client_secret_file: %s}\n" %
			(APP, r, self.write(r + "-secret", r + "-secret-1")) for r in sorted(NAME))
		key = "demo " + base64.b64encode(os.urandom(32)).decode() + "\n"
		return self.write("refreshd.yaml", """instance: demo
state_dir: %s
insecure_http: loopback
database: {url: "%s"}
keyring_file: %s
metrics: {listen: "127.0.0.1:%d"}
api: {listen: "127.0.0.1:%d"}
refresh: {poll_interval: 500ms}
webhooks:
  - name: demo
    application: "*"
    url: %s
    secret_file: %s
    events: [vault.connection.token_refresh.*, refreshd.provider.*]
    allow_private: yes
providers:
%sclients:
%s""" % (self.path("state"), self.pg.url(), self.write("keyring", key), port, api_port, self.sim.url("/_sink/demo"),
			self.write("webhook-secret", self.secret), providers, clients))

	def set_up(self):
		self.show.title("Setting the stage")
		self.pg = PgCluster()
		self.pg.start()
		self.sim = Simulator(self.folder, ["%s:mode=strict,at_ttl=%d,auth=basic,client_id=demo-client,client_secret=%s-secret-1,delay_ms=20,"
			"jitter_ms=60" % (r, LIFE_S[r], r) for r in sorted(NAME)])
		self.sim.call("POST", "/_sink_ctl", name="demo", secret=self.secret)
		port, api_port = free_port(), free_port()
		config = self.config(port, api_port)
		self.api = "http://127.0.0.1:%d" % api_port
		self.ctl = Ctl(config)
		self.ctl("migrate")
		self.ctl("app", "add", APP)
		self.key = self.ctl("key", "add", APP).strip()
		self.daemon = Daemon(config, port, self.path("refreshd.log"))
		self.until_ready()
		self.show.say("A private Postgres, two made-up token endpoints (%s and %s) that keep a ledger of every refresh token they are "
			"shown, a webhook receiver, and refreshd itself are running." % (NAME["acorn"], NAME["birch"]))
		self.show.say("Both providers rotate strictly: a refresh token works once, and showing a used one kills the grant.")

	def until_ready(self):
		limit = time.monotonic() + 30
		while not self.daemon.is_ready():
			if time.monotonic() > limit:
				raise Wrong("refreshd should be ready within 30 s")
			time.sleep(0.05)

	def import_all(self):
		self.show.title("Importing %d connections" % (2 * EACH))
		by_curl, by_file = [], []
		for realm in sorted(NAME):
			ages = LIFE_S[realm] // 2
			for age in range(ages):
				lines = self.sim.call("POST", "/_sim/mint", realm=realm, n=EACH // ages, expires_in=LIFE_S[realm], issued_ago=age,
					format="import", application=APP, consumer_prefix="customer-", unified_api=API[realm], service_id=realm).splitlines()
				if age == 0:
					by_curl += lines[:BY_CURL]
				by_file += lines[BY_CURL if age == 0 else 0:]
		self.import_by_curl([json.loads(line) for line in by_curl])
		self.write("import.jsonl", "".join(line + "\n" for line in by_file))
		self.ctl("import", self.path("import.jsonl"))
		os.unlink(self.path("import.jsonl"))
		n = int(self.pg.psql("select count(*) from refreshd.connection"))
		if n != 2 * EACH:
			raise Wrong("%d connections should be in the database after the import, there are %d" % (2 * EACH, n))
		self.show.good("`refreshctl import` has read the other %d from a file, a line each. Access tokens live for %d and %d seconds." %
			(len(by_file), LIFE_S["acorn"], LIFE_S["birch"]))

	def curl(self, consumer, path, body=None):
		"""The lines of a command that says all there is to a call."""
		lines = ["curl -sS --fail-with-body %s%s" % (self.api, path), "    -H 'Authorization: Bearer %s'" % self.key,
			"    -H 'x-apideck-app-id: %s' -H 'x-apideck-consumer-id: %s'" % (APP, consumer)]
		if body is not None:
			lines += ["    -H 'content-type: application/json'", "    -d %s" % shlex.quote(json.dumps(body, separators=(",", ":")))]
		return [line + " \\" for line in lines[:-1]] + lines[-1:]

	def import_by_curl(self, connections):
		for i, c in enumerate(connections):
			command = self.curl(c["consumer_id"], "/vault/connections/%s/%s/import" % (c["unified_api"], c["service_id"]),
				{"credentials": c["credentials"]})
			if i == 0:
				self.show.say("Connections come in over HTTP, one by one as customers sign in. The first, with the curl program:")
				self.show.command(command)
			self.check_imported(c, shell(command))
		self.show.good("%d connections imported like this; each answer says state callable, and holds none of the tokens." % len(connections))
		self.show.say("These are the paths and headers of Apideck's Vault API: a client of it works here by changing its base URL to %s and its "
			"key. (Copy the line for a vault of your own; in this one its refresh token is used up within seconds.) To look at that "
			"customer from another terminal, as long as this runs:" % self.api)
		look = self.curl(connections[0]["consumer_id"], "/vault/connections")
		self.show.command(look)
		seen = sorted((x["service_id"], x["state"]) for x in json.loads(shell(look))["data"])
		want = sorted((c["service_id"], "callable") for c in connections if c["consumer_id"] == connections[0]["consumer_id"])
		if seen != want:
			raise Wrong("the API should list the connections of that customer, %s, it lists %s" % (want, seen))

	def check_imported(self, c, answer):
		data = json.loads(answer)["data"]
		if (data["unified_api"], data["service_id"], data["state"]) != (c["unified_api"], c["service_id"], "callable"):
			raise Wrong("the import of %s should answer with a callable connection, it says %s" % (c["consumer_id"], answer))
		if any(c["credentials"][t] in answer for t in ("access_token", "refresh_token")):
			raise Wrong("the answer to the import of %s should hold no token" % c["consumer_id"])

	# ---- the story

	def watch_rotation(self):
		self.show.title("Tokens rotate, nobody expires")
		self.show.say("refreshd renews each token at half of its life. Every renewal replaces the refresh token as well.")
		self.until("100 refreshes", lambda now: now["refreshed"] >= 100, 30)
		self.show.good("100 refreshes done. Expired access tokens: 0 by the database, 0 by the metric refreshd_expired_connections.")

	def revoke_one(self):
		self.show.title("One customer takes the access back")
		consumer = self.pg.psql("select c.consumer_id from refreshd.connection c join refreshd.schedule s using (slot, connection_id) where "
			"c.service_id = 'acorn' and s.due_at > now() + interval '2 s' and s.lease_until is null order by s.due_at limit 1")
		if not consumer:
			raise Wrong("a connection that is due in more than two seconds should be there")
		self.dead = ("acorn", int(consumer[len("customer-"):]))
		self.sim.call("POST", "/_sim/revoke", realm="acorn", family=self.dead[1])
		name = self.name_of(self.dead)
		self.show.say("%s disconnects at %s. refreshd learns of it when it refreshes next." % (consumer, NAME["acorn"]))
		hook = self.hook(FAILED, "%s+%s" % (APP, consumer))
		shown = json.loads(self.ctl("--json", "show", name))
		if (shown.get("state"), shown.get("health"), shown.get("reason")) != ("invalid", "needs_auth", "invalid_grant"):
			raise Wrong("`refreshctl show` should say invalid, needs_auth, invalid_grant; it says %s" % shown)
		self.show.good("`refreshctl show %s`: state invalid, health needs_auth, reason invalid_grant." % name)
		self.check_signatures(hook)

	def check_signatures(self, hook):
		if hook.by_openssl(self.secret) != (True, True):
			raise Wrong("the openssl program should agree with both signatures of the webhook, it says %s" % (hook.by_openssl(self.secret),))
		if hook.by_sink() != (True, True):
			raise Wrong("the webhook receiver should agree with both signatures, it says %s" % (hook.by_sink(),))
		self.show.good("The webhook %s has arrived. Both signatures (webhook-signature and x-apideck-signature) are right: "
			"the openssl program says so, and the receiver by its own code." % hook.type)

	def name_of(self, key):
		return "%s/customer-%d/%s/%s" % (APP, key[1], API[key[0]], key[0])

	def break_client(self):
		self.show.title("%s changes our client secret" % NAME["birch"])
		self.show.say("Now it answers invalid_client to everything. That is our fault, not the customers': nobody may be marked.")
		self.sim.call("POST", "/_sim/realm", name="birch", client_secret="birch-secret-2")
		self.hook(FAILING, "birch")
		before = len([x for x in self.sim.read_ledger() if x["realm"] == "birch"])
		self.during(BROKEN_S)
		tries = len([x for x in self.sim.read_ledger() if x["realm"] == "birch"]) - before
		marked = int(self.pg.psql("select count(*) from refreshd.connection where service_id = 'birch' and (state <> 'callable' or "
			"health <> 'ok' or failures <> 0)"))
		if marked != 0:
			raise Wrong("no connection of %s should be marked, but %d are" % (NAME["birch"], marked))
		self.show.good("One webhook %s, and all %d connections of %s are still healthy. In the %d seconds since, it was asked %s." %
			(FAILING, EACH, NAME["birch"], BROKEN_S, "nothing at all" if tries == 0 else "%d times" % tries))
		self.write("birch-secret", "birch-secret-2")
		self.daemon.process.send_signal(signal.SIGHUP)
		self.hook(RECOVERED, "birch")
		self.show.good("The operator writes the new secret into its file and sends SIGHUP: one webhook %s." % RECOVERED)

	def take_provider_away(self):
		self.show.title("%s goes down" % NAME["acorn"])
		before = self.exchanged("birch")
		self.sim.call("POST", "/_sim/down", realm="acorn", s=60)
		self.hook(FAILING, "acorn")
		self.show.say("Every request to it is cut off. After five of them refreshd holds the others back and probes, one at a time.")
		self.during(OUTAGE_S)
		self.sim.call("POST", "/_sim/down", realm="acorn", s=0)
		self.hook(RECOVERED, "acorn")
		others = self.exchanged("birch") - before
		if others == 0:
			raise Wrong("%s should have been served while %s was down" % (NAME["birch"], NAME["acorn"]))
		self.until("every connection but the dead one to be healthy", lambda now: now["ok"] == 2 * EACH - 1, 30)
		self.show.good("It is back, noticed once (%s) and over once (%s). %d tokens of %s were renewed meanwhile: one sick provider does not "
			"delay another." % (FAILING, RECOVERED, others, NAME["birch"]))

	def exchanged(self, realm):
		return len([x for x in self.sim.read_ledger() if x["realm"] == realm and x["rotated"]])

	def settle_down(self):
		self.show.title("A quiet stretch")
		self.until("every connection to have been refreshed twice", lambda now: now["least_refreshes"] >= 2, 60)
		self.show.good("Every connection has been refreshed at least twice, and at none of the %d looks at the database was one expired. The "
			"closest that any came was %.1f seconds." % (self.samples, self.closest_s))

	def drain(self):
		self.show.title("SIGTERM")
		metrics = self.daemon.metrics()
		began = time.monotonic()
		self.show.end_figures()
		code = end(self.daemon.process, signal.SIGTERM, 60)
		if code != 0:
			raise Wrong("refreshd should end with 0 after SIGTERM, it ended with %s" % code)
		took = time.monotonic() - began
		self.show.good("refreshd finished what it had sent, stored the answers and ended with status 0 after %.1f s." % took)
		leases = int(self.pg.psql("select count(*) from refreshd.schedule where lease_until > now()"))
		if leases != 0:
			raise Wrong("no connection should be in hand after the drain, %d are" % leases)
		open_records = [r for r in json.loads(self.ctl("--json", "journal", "list")) if not r["done"]]
		if open_records:
			raise Wrong("no answer should be left in the journal after the drain, %d are" % len(open_records))
		self.show.good("No connection is left claimed, no answer is left in the journal on disk.")
		return metrics

	def check_hooks(self):
		hooks = {h.event_id: h for h in self.sim.hooks()}.values()
		count = {}
		for h in hooks:
			count[(h.type, h.entity_id)] = count.get((h.type, h.entity_id), 0) + 1
		want = {(FAILED, "%s+customer-%d" % (APP, self.dead[1])): 1}
		for realm in NAME:
			want.update({(FAILING, realm): 1, (RECOVERED, realm): 1})
		got = {k: n for k, n in count.items() if k[0] in (FAILED, FAILING, RECOVERED)}
		if got != want:
			raise Wrong("the webhooks should be %s, they are %s" % (want, got))
		paired = {k[1]: n for k, n in count.items() if k[0].endswith("token_refresh.pending")}
		back = {k[1]: n for k, n in count.items() if k[0].endswith("token_refresh.recovered")}
		if paired != back:
			raise Wrong("every connection that was told as pending should be told as recovered: %s against %s" % (paired, back))
		bad = [h.event_id for h in hooks if h.by_sink() != (True, True)]
		if bad:
			raise Wrong("every webhook should be signed rightly, these are not: %s" % bad)
		self.show.good("Webhooks: each provider failing once and recovered once, one connection dead, and %d that were hit by the outage "
			"told as pending and as recovered. All %d signed rightly." % (len(paired), len(hooks)))
		return len(hooks)

	def verdict(self):
		self.show.title("The verdict: ledger, providers and database side by side")
		rows = {}
		for line in self.pg.psql("select c.service_id, c.consumer_id, k.refreshes from refreshd.connection c join refreshd.credential k "
				"using (slot, connection_id)").splitlines():
			realm, consumer, refreshes = line.split("|")
			key = (realm, int(consumer[len("customer-"):]))
			rows[key] = (self.name_of(key), int(refreshes))
		figures = judge.judge(self.show, self.sim, self.ctl, rows, self.dead)
		stats = json.loads(self.sim.call("GET", "/_sim/stats"))["realms"]
		reuse = sum(s["reuse_detected"] for s in stats.values())
		if reuse != 0:
			raise Wrong("no provider should have seen a used refresh token, they saw %d" % reuse)
		return figures

	def run(self):
		self.set_up()
		self.import_all()
		self.watch_rotation()
		self.revoke_one()
		self.break_client()
		self.take_provider_away()
		self.settle_down()
		metrics = self.drain()
		hooks = self.check_hooks()
		figures = self.verdict()
		self.summary(metrics, hooks, figures)

	def summary(self, metrics, hooks, figures):
		self.show.title("What you have seen")
		late = metrics.get("refreshd_refresh_lateness_seconds_sum", 0) / max(metrics.get("refreshd_refresh_lateness_seconds_count", 1), 1)
		for what, value in (
			("connections kept alive", "%d of %d (the other one was taken back by its owner)" % (figures["checked"], 2 * EACH)),
			("refresh tokens presented", figures["presented"]),
			("tokens renewed", figures["exchanged"]),
			("shown again after an answer", 0),
			("two requests of one grant at once", 0),
			("access tokens that expired", 0),
			("closest to expiry", "%.1f s" % self.closest_s),
			("from due to stored, on average", "%.2f s (the outage and the wrong secret included)" % late),
			("webhooks, all rightly signed", hooks),
			("time", "%.0f s" % self.show.elapsed()),
		):
			self.show.say("%-36s %s" % (what, value))

	# ---- the end

	def failed(self, what):
		self.show.end_figures()
		self.show.title("The demo FAILED")
		self.show.bad(what)
		if self.daemon is not None:
			self.show.say("The last lines of refreshd's log:")
			self.show.raw(self.daemon.tail())
		if self.pg is not None:
			with open(self.path("postgres.log"), "w") as f:
				f.write(self.pg.log_text())
		self.show.say("All logs and the providers' ledger are kept in %s" % self.folder)

	def close(self, keep):
		self.show.end_figures()
		end(self.daemon.process if self.daemon else None)
		end(self.sim.process if self.sim else None, signal.SIGTERM, 10)
		if self.pg is not None:
			self.pg.close()
		if keep:
			for name in ("keyring", "webhook-secret", "acorn-secret", "birch-secret"):
				if os.path.exists(self.path(name)):
					os.unlink(self.path(name))
		else:
			shutil.rmtree(self.folder, ignore_errors=True)


def on_signal(signo, frame):
	raise KeyboardInterrupt


def main():
	signal.signal(signal.SIGINT, on_signal)
	signal.signal(signal.SIGTERM, on_signal)
	signal.signal(signal.SIGHUP, on_signal)
	show = Show()
	show.say("refreshd keeps OAuth connections alive: it renews access tokens before they expire, stores the refresh tokens that rotate, and "
		"tells when a customer has to sign in again. In the next minute it does so for %d connections while things break around it. Nothing "
		"is installed, and everything is cleaned up." % (2 * EACH))
	demo = Demo(show)
	code = 1
	try:
		demo.run()
		code = 0
	except Wrong as e:
		demo.failed(str(e))
	except KeyboardInterrupt:
		code = 130
		show.end_figures()
		show.say("Stopped; cleaning up.")
	except Exception:
		demo.failed("the demo itself broke: " + traceback.format_exc())
	finally:
		for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
			signal.signal(signo, signal.SIG_IGN)
		demo.close(keep=code == 1)
	if code == 0:
		show.good("Everything shown was true. Next: ./refreshd --dev for a vault of your own, README.md for the rest.")
	return code


if __name__ == "__main__":
	sys.exit(main())
