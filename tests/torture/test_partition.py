#!/usr/bin/env python3
"""The real refreshd and a network that is cut: between one of three daemons and the database, between one and the providers, to one
provider of fifty, to the name server; once silently (DROP) and once with a refusal (REJECT). The judge decides; beside it, the healthy
providers must be as punctual as before and no turn of an event loop may take long. TAP on stdout.

Everything runs in network namespaces of its own, which end with it: this script in one (with the database and the simulator), each daemon
in another, and a router between them that cuts by rules. Needs root. TORTURE=long runs the long form.

	test's namespace: 10.77.0.1 us, .3 and .4 databases, .10 to .59 providers  <->  router  <->  10.77.N.1 daemon N
"""
import os
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "integration")]
import judge as j
import scene
import world as w
from pgcluster import PgCluster
from scene import LONG, SEED, pause
from test_daemon import make_ca, make_cert
from world import wait_until

MARK = "REFRESHD_OWN_NETWORK"
US, DATABASE, STANDBY, PROVIDERS, FIRST_PROVIDER = "10.77.0.1", "10.77.0.3", "10.77.0.4", 50, 10
LIFE_S = 20 if LONG else 10  # refreshed every half of it
CONNECTIONS = 4      # of each provider
BASE_S, CUT_S = (45, 75) if LONG else (5, 4)
LATE_BY_S = 1.0


# ---------------------------------------------------------------- the network

class Network:
	"""Namespaces live as long as the processes that sit in them."""

	def __init__(self, daemons):
		self.sitting = []
		self.daemons = [self.namespace() for _ in range(daemons)]
		self.router = self.namespace()
		self.ip(None, "link set lo up")
		for address in [US, DATABASE, STANDBY] + [provider_address(i) for i in range(PROVIDERS)]:
			self.ip(None, "addr add %s/32 dev lo" % address)
		self.link(None, "up0", "10.77.0.250/24", "r0", "10.77.0.254/24")
		self.ip(None, "route add 10.77.0.0/16 via 10.77.0.254 src %s" % US)
		for i, pid in enumerate(self.daemons, 1):
			self.link(pid, "up0", "10.77.%d.1/24" % i, "r%d" % i, "10.77.%d.254/24" % i)
			self.ip(pid, "route add default via 10.77.%d.254" % i)
		for address in [US, DATABASE, STANDBY] + [provider_address(i) for i in range(PROVIDERS)]:
			self.ip(self.router, "route add %s/32 via 10.77.0.250" % address)
		self.run(self.router, ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
		self.cuts = {}

	def namespace(self):
		p = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "sh", "-c", "echo in; exec sleep infinity"],
			stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
		if p.stdout.readline() != "in\n":
			raise RuntimeError("no network namespace can be made")
		self.sitting.append(p)
		return p.pid

	@staticmethod
	def run(pid, argv):
		where = ["nsenter", "-t", str(pid), "-n"] if pid else []
		done = subprocess.run(where + argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
		if done.returncode != 0:
			raise RuntimeError("%s: %s" % (" ".join(argv), done.stdout))

	def ip(self, pid, text):
		self.run(pid, ["ip"] + text.split())

	def link(self, pid, name, address, router_name, router_address):
		"""A cable between a namespace and the router."""
		self.ip(None, "link add %s-a type veth peer name %s" % (router_name, router_name))
		self.ip(None, "link set %s netns %d" % (router_name, self.router))
		if pid:
			self.ip(None, "link set %s-a netns %d" % (router_name, pid))
			self.ip(pid, "link set lo up")
		self.ip(pid, "link set %s-a name %s" % (router_name, name))
		for where, link, at in ((pid, name, address), (self.router, router_name, router_address)):
			self.ip(where, "addr add %s dev %s" % (at, link))
			self.ip(where, "link set %s up" % link)

	def cut(self, how, a, b):
		"""how: drop or reject what goes from a to b and from b to a (addresses or networks)."""
		action = {"drop": "blackhole", "reject": "prohibit"}[how]
		for x, y in ((a, b), (b, a)):
			self.ip(self.router, "rule add pref 10 from %s to %s %s" % (x, y, action))
		self.cuts[a, b] = action

	def heal(self):
		for (a, b), action in self.cuts.items():
			for x, y in ((a, b), (b, a)):
				self.ip(self.router, "rule del pref 10 from %s to %s %s" % (x, y, action))
		self.cuts = {}

	def close(self):
		for p in self.sitting:
			p.kill()
			p.wait()
			p.stdout.close()


def provider_address(i):
	return "10.77.0.%d" % (FIRST_PROVIDER + i)


# ---------------------------------------------------------------- who lives in it

LATENESS = """
	CREATE TABLE watch.lateness (service_id text, due_at timestamptz, at timestamptz DEFAULT clock_timestamp());
	CREATE FUNCTION watch.note_lateness() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN INSERT INTO watch.lateness VALUES (NEW.service_id, OLD.due_at); RETURN NULL; END';
	CREATE TRIGGER note_lateness AFTER UPDATE ON refreshd.schedule FOR EACH ROW
		WHEN (NEW.token_version = OLD.token_version + 1 AND NEW.lease_owner IS NULL) EXECUTE FUNCTION watch.note_lateness();
	GRANT INSERT ON ALL TABLES IN SCHEMA watch TO PUBLIC;"""


class Whole:
	"""All realms of a simulator, or all rows of a vault, as if they were one realm's: families are numbered through."""

	def __init__(self, one, realms):
		self.one, self.number = one, {realm: i * 100000 for i, realm in enumerate(realms)}

	def __getattr__(self, name):
		return getattr(self.one, name)

	def ledger(self, _):
		return [dict(x, family=self.number[x["realm"]] + x["family"]) for x in self.one.ledger() if x["realm"] in self.number]

	def live(self, _):
		return {n + family: facts for realm, n in self.number.items() for family, facts in self.one.live(realm).items()}

	def rows(self, _):
		rows = [dict(x, consumer="c%d" % (self.number[x["service"]] + int(x["consumer"][1:]))) for x in self.one.all_rows()]
		return {x["consumer"]: x for x in rows}


class Hiccups(threading.Thread):
	"""Counts how often a process that wants next to nothing waits for 80 ms to be run: that is no fault of an event loop."""

	def __init__(self):
		super().__init__(daemon=True)
		self.seen, self.over = 0, threading.Event()
		self.start()

	def run(self):
		before = time.monotonic()
		while not self.over.wait(0.01):
			now = time.monotonic()
			self.seen += now - before > 0.09
			before = now

	def end(self):
		self.over.set()
		self.join()
		return self.seen


class Town:
	"""Three daemons on one database, fifty providers (realms p0 to p49 of one simulator, at an address each)."""

	def __init__(self, world, net, name, daemons, names=None):
		"""names: provider number -> host name in its URL instead of its address."""
		self.world, self.net, self.name, self.spans, self.vaults = world, net, name, [], []
		self.realms = ["%s%d" % (name, i) for i in range(PROVIDERS)]
		providers, began = {}, scene.now_us()
		for i, realm in enumerate(self.realms):
			world.sim.realm(realm, mode="strict", at_ttl=LIFE_S, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=200, jitter_ms=300)
			host = (names or {}).get(i, provider_address(i))
			providers[realm] = {"token_url": world.sim.url(realm, host), "ca_file": world.ca}
		for i in range(daemons):
			self.vaults.append(self.daemon(i, providers))
		lines = [x for realm in self.realms for n in range(CONNECTIONS)
			for x in world.sim.mint(realm, 1, expires_in=LIFE_S // 2 + (LIFE_S // 2) * n // CONNECTIONS)]
		self.vaults[0].import_lines(lines)
		for v in self.vaults:
			v.start()
		wait_until("everybody to be refreshed once", lambda: self.vaults[0].count("refreshd.credential WHERE refreshes = 0") == 0, LIFE_S + 20)
		span(self, "outage", began)  # nobody ran while they were minted
		self.hiccups = Hiccups()

	def daemon(self, i, providers):
		first = self.vaults[0] if self.vaults else None
		v = self.world.vault("%s-%d" % (self.name, i + 1), providers, wrap=["nsenter", "-t", str(self.net.daemons[i]), "-n"], migrate=first is None,
			db_url=first.conf["database"]["url"] if first else None, refresh={"poll_interval": "200ms", "timeout": "30s", "lease": "60s",
			"connect_timeout": "2s"}, dns={"resolv_conf": self.world.resolv, "timeout": "2s"})
		v.conf["metrics"]["listen"] = "0.0.0.0:%d" % v.port
		v.metrics_base = "http://10.77.%d.1:%d" % (i + 1, v.port)
		if first:
			v.dbname, v.keyring, v.conf["keyring_file"] = first.dbname, first.keyring, first.conf["keyring_file"]
		else:
			v.sql(scene.WATCH + LATENESS)
		v.write_conf()
		if not first:
			v.conf["database"]["url"] = "%s user=postgres dbname=%s passfile=%s" % (self.world.database, v.dbname, self.world.passfile)
			v.write_conf()
		return v

	# --- what is measured

	def now(self):
		return self.vaults[0].sql("SELECT clock_timestamp()")

	def p99(self, since, but=()):
		"""Seconds from being due to being committed, of what was committed since then."""
		out = self.vaults[0].sql("SELECT coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY extract(epoch FROM at - due_at)), 0), count(*)"
			" FROM watch.lateness WHERE at > '%s' AND service_id <> ALL (string_to_array('%s', ','))" % (since, ",".join(but)))
		worst, n = out.split("|")
		return float(worst), int(n)

	def stalls(self):
		"""Turns of all event loops, and how many of them took more than 100 ms."""
		turns = slow = 0
		for v in self.vaults:
			m = v.metrics()
			turns += m.get("loop_stall_seconds_count")
			slow += m.get("loop_stall_seconds_count") - m.get("loop_stall_seconds_bucket", le="0.1")
		return turns, slow

	def base(self, tap):
		self.turns, self.slow = self.stalls()
		since = self.now()
		pause(BASE_S)
		self.base_p99, n = self.p99(since)
		tap.check("%s: refreshes before anything is cut (%d)" % (self.name, n), n >= PROVIDERS * CONNECTIONS * BASE_S // LIFE_S, n)

	def punctual(self, tap, what, since, but=()):
		p99, n = self.p99(since, but)
		tap.note("%s: p99 lateness of the others %.2f s (%d refreshes), %.2f s before" % (what, p99, n, self.base_p99))
		tap.check("%s: the others are as punctual as before" % what, n > 0 and p99 < self.base_p99 + LATE_BY_S, (p99, self.base_p99, n))

	def nothing_stalled(self, tap):
		turns, slow = self.stalls()
		machine = self.hiccups.end()
		tap.note("%d turns of event loops, %d of them longer than 100 ms; %d times the machine gave this test no turn for as long" % (
			turns - self.turns, slow - self.slow, machine))
		tap.check("no turn of an event loop took 100 ms, unless the whole machine did", slow - self.slow <= machine * len(self.vaults), slow - self.slow)

	def judge(self, tap, fault, runs):
		v = self.vaults[0]
		since = v.sql("SELECT now()")
		# After a long cut a connection's own backoff is minutes.
		wait_until("everybody to be refreshed once more, or to be marked", lambda: v.count(scene.CREDENTIAL + " WHERE c.state = 'callable' AND"
			" (refreshed_at IS NULL OR refreshed_at < '%s' OR c.health <> 'ok')" % since) == 0, 1200 if LONG else 120)
		now = scene.now_us()
		tap.equal("they stop with 0", [x.stop() for x in self.vaults], [0] * len(self.vaults))
		e = scene.evidence(Whole(self.world.sim, self.realms), [Whole(self.vaults[0], self.realms)] + self.vaults[1:], self.name, "strict", self.spans,
			now, 60 * 10**6)
		e["window_limit_us"] = 3 * 10**6
		scene.report(j.judge(e), tap, fault, "strict", runs, scene.again_after(e))
		self.world.vaults = [x for x in self.world.vaults if x not in self.vaults]


def span(town, kind, since, v=None):
	s = {"kind": kind, "from_us": since, "to_us": scene.now_us()}
	if v is not None:
		s["instance"] = v.conf["instance"]
	town.spans.append(s)


# ---------------------------------------------------------------- what is cut

def one_of_three_daemons(tap, world, net):
	town = Town(world, net, "d", 3)
	town.base(tap)
	daemon_from_database(tap, town, net)
	daemon_from_providers(town, net)
	town.nothing_stalled(tap)
	town.judge(tap, "partition daemon-database and daemon-provider", 4)


def cut_with_answers(town, net, how):
	"""Cuts the first daemon from the database while the provider works on its requests; how many answers it holds then."""
	v = town.vaults[0]
	wait_until("requests of the daemon in flight", lambda: v.metrics().get("refresh_in_flight") > 0, 30)
	net.cut(how, "10.77.1.1", DATABASE)
	wait_until("the answers", lambda: v.metrics().get("refresh_in_flight") == 0 or v.metrics().get("journal_records") > 0, 30)
	return v.metrics().get("journal_records")


def daemon_from_database(tap, town, net):
	"""One of three is cut off with answers in hand: they wait in its journal; the others work on and leave its leased rows alone."""
	cut_off = town.vaults[0]
	for how in ("drop", "reject"):
		since, began, before = town.now(), scene.now_us(), town.world.sim.stats()["requests"]
		for _ in range(20):
			held = cut_with_answers(town, net, how)
			if held > 0:
				break
			net.heal()
			wait_until("it to be ready", cut_off.ready, 40)
		pause(CUT_S)
		wait_until("the others to go on", lambda: town.world.sim.stats()["requests"] > before + 10, 30)
		net.heal()
		span(town, "outage", began)  # of its share of the rows: who takes them over waits for its heartbeat to age
		wait_until("its answers to be written", lambda: cut_off.metrics().get("journal_records") == 0, 40)
		wait_until("it to be ready", cut_off.ready, 40)
		span(town, "outage", began)
		tap.check("%s: %d answers waited in its journal and were written" % (how, held), held > 0)
		tap.check("%s: nothing of it is left as an orphan" % how, cut_off.count("refreshd.orphan_token") == 0, cut_off.sql(
			"SELECT kind, count(*) FROM refreshd.orphan_token GROUP BY 1"))
		tap.check("%s: the others were refreshing meanwhile (%d)" % (how, town.p99(since)[1]), town.p99(since)[1] > 0)


def daemon_from_providers(town, net):
	"""One of three reaches no provider: what it has sent is in doubt, and nobody else presents it."""
	lonely = town.vaults[0]
	for how in ("drop", "reject"):
		wait_until("requests of the daemon in flight", lambda: lonely.metrics().get("refresh_in_flight") > 0, 30)
		began = scene.now_us()
		for i in range(PROVIDERS):
			net.cut(how, "10.77.1.1", provider_address(i))
		pause(CUT_S)
		net.heal()
		span(town, "cut", began, lonely)
		span(town, "outage", began)
		wait_until("it to refresh again", lambda: lonely.metrics().get("refresh_in_flight") == 0 or lonely.metrics().total("refreshes_total",
			outcome="refreshed") > 0, 60)


def one_provider_of_fifty(tap, world, net):
	town = Town(world, net, "f", 1)
	town.base(tap)
	one_provider_dead(tap, town, net)
	names_that_hang(tap, town, net)
	town.nothing_stalled(tap)
	town.judge(tap, "one provider of fifty dead, DNS hang", 4)


def one_provider_dead(tap, town, net):
	"""The forty-nine others notice nothing, whether the dead one is silent or refuses."""
	for how in ("drop", "reject"):
		began, since = scene.now_us(), town.now()
		net.cut(how, "10.77.1.0/24", provider_address(7))
		pause(max(CUT_S, LIFE_S // 2))
		net.heal()
		span(town, "outage", began)
		span(town, "cut", began)
		town.punctual(tap, "one provider of fifty dead (%s)" % how, since, [town.realms[7]])


def names_that_hang(tap, town, net):
	"""One provider's name is never answered, and then no name at all: who needs none is not delayed."""
	v, world = town.vaults[0], town.world
	v.conf["providers"][town.realms[7]]["token_url"] = world.sim.url(town.realms[7], "hang.test")
	v.write_conf()
	began, since = scene.now_us(), town.now()
	v.signal(w.signal.SIGHUP)
	pause(max(CUT_S, LIFE_S // 2))
	town.punctual(tap, "a name that hangs", since, [town.realms[7]])
	since = town.now()
	net.cut("drop", "10.77.1.0/24", US + "/32 ipproto udp dport %d" % world.sim.dns_port)
	pause(CUT_S)
	town.punctual(tap, "no name server", since, [town.realms[7]])
	tap.check("look-ups were given up", v.metrics().get("refreshes_total", provider=town.realms[7], outcome="never_sent") > 0)
	net.heal()
	v.conf["providers"][town.realms[7]]["token_url"] = world.sim.url(town.realms[7], provider_address(7))
	v.write_conf()
	v.signal(w.signal.SIGHUP)
	span(town, "outage", began)


def primary_goes_dark(tap, world, net):
	"""The worst way for a primary to go: no word, no reset, nothing. Its standby is promoted; the daemon has to find out by itself."""
	primary = PgCluster(tcp=True, listen=DATABASE)
	let_in(primary)
	primary.start()
	standby = PgCluster(tcp=True, listen=STANDBY, standby_of=primary).start()
	kept, world.pg = (world.pg, world.database), primary
	world.database = "host=%s,%s port=%d,%d target_session_attrs=read-write" % (DATABASE, STANDBY, primary.port, standby.port)
	try:
		primary.require_standby(standby)
		town = Town(world, net, "h", 1)
		began = scene.now_us()
		net.cut("drop", "10.77.1.0/24", DATABASE)
		primary.kill9()
		standby.promote()
		world.pg = standby
		promoted, since = time.monotonic(), town.now()
		wait_until("refreshes at the promoted one", lambda: town.p99(since)[1] >= 5, 90)
		took = time.monotonic() - promoted
		span(town, "outage", began)
		tap.note("refreshing again %.1f s after the promotion of the standby" % took)
		tap.check("refreshing again within 10 s of the promotion", took < 10, took)
		town.judge(tap, "primary goes dark, standby promoted", 1)
	finally:
		world.end_vaults()
		net.heal()
		world.pg, world.database = kept
		primary.close()
		standby.close()


SCENARIOS = [one_of_three_daemons, one_provider_of_fifty, primary_goes_dark]


def main():
	tap = w.Tap()
	if os.getuid() != 0:
		print("1..0 # SKIP network namespaces need root")
		return 0
	if MARK not in os.environ:
		os.execvpe("unshare", ["unshare", "-n", "--", sys.executable, os.path.abspath(__file__)] + sys.argv[1:], dict(os.environ, **{MARK: "1"}))
	net = Network(3)
	try:
		with w.World("partition", tcp=True, pg_settings={"listen_addresses": "127.0.0.1,%s" % DATABASE}) as world:
			furnish(world)
			for fn in SCENARIOS:
				here = lambda t, x, fn=fn: fn(t, x, net)
				here.__name__ = fn.__name__
				tap.run([here], world)
				net.heal()
	finally:
		net.close()
	return tap.finish()


def let_in(pg):
	with open(os.path.join(pg.data, "pg_hba.conf"), "a") as f:
		f.write("host all all 10.77.0.0/16 scram-sha-256\n")


def furnish(world):
	"""A simulator that speaks TLS at all addresses, a database that lets the daemons' addresses in."""
	folder = os.path.join(world.dir, "net")
	os.mkdir(folder, 0o755)
	ca = make_ca(folder, "ca")
	leaf = make_cert(folder, "provider", ca, ",".join(["IP:127.0.0.1"] + ["IP:" + provider_address(i) for i in range(PROVIDERS)]))
	world.sim.close()
	world.sim = w.Simulator(os.path.join(folder, "sim"), tls={"cert": leaf[1], "key": leaf[0], "ca": ca[1]}, dns="%s:0" % US, listen="0.0.0.0:0")
	world.ca = ca[1]
	world.resolv = os.path.join(folder, "resolv.conf")
	with open(world.resolv, "w") as f:
		f.write("nameserver %s:%d\n" % (US, world.sim.dns_port))
	let_in(world.pg)
	world.pg.psql("SELECT pg_reload_conf()")
	world.database = "host=%s port=%d" % (DATABASE, world.pg.port)
	world.passfile = os.path.join(folder, "passfile")
	with open(world.passfile, "w") as f:
		os.fchmod(f.fileno(), 0o600)
		f.write("*:*:*:*:%s\n" % world.pg.PASSWORD)


if __name__ == "__main__":
	sys.exit(main())
