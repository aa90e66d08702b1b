#!/usr/bin/env python3
"""The real refreshd while Postgres dies, fails over, forgets to answer and refuses, again and again; the provider's ledger and the
database are the judge. TAP on stdout.

TORTURE=long runs the long counts, TORTURE_SEED repeats the moments. A measured time "until it refreshes again" begins when the
database takes connections again and ends with the first claim that is committed there.
"""
import copy
import os
import random
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "integration")]
import world as w
from pgcluster import PgCluster
from pgproxy import PgProxy, Rule
from scene import LONG, SEED, Fleet, now_us, pause
from test_daemon import clean_log
from world import wait_until

AGAIN_S = 10


def times(short, long):
	return long if LONG else short


def presentations(world, realm):
	return world.sim.stats(realm)["requests"]


def load(world, name, connections=96, life_s=8, **sections):
	fleet = Fleet(world, name, "strict", connections=connections, life_s=life_s, **sections)
	fleet.start()
	return fleet


def judged(tap, fleet, fault, runs):
	"""The judge's verdict, and: outages of the database are nobody's failure."""
	fleet.quiesce(90)
	verdict = fleet.judge(tap, fault, runs)
	v = fleet.first
	tap.equal("nothing was lost", verdict.figures["tokens"].get("lost", 0), 0)
	tap.equal("no token is left beside its row", v.count("refreshd.orphan_token WHERE kind <> 'unreadable'"), 0)
	tap.equal("no connection was reported as failed", v.event_counts().get("failed", 0), 0)
	clean_log(tap, v)


class Recovery:
	"""How long it takes until something is claimed again, which is to be sent at once."""

	def __init__(self, fleet):
		self.fleet, self.took = fleet, []

	def watch(self):
		"""Called when the database is back."""
		began, v = time.monotonic(), self.fleet.first
		since = v.sql("SELECT clock_timestamp()")
		wait_until("refreshes after the database came back", lambda: v.count("watch.claimed WHERE at > '%s'" % since) > 0, 60)
		self.took.append(time.monotonic() - began)

	def judge(self, tap):
		worst, middle = max(self.took), sorted(self.took)[len(self.took) // 2]
		tap.note("%d times back: refreshing again after %.2f s in the middle, %.2f s at worst" % (len(self.took), middle, worst))
		tap.check("refreshing again within %d s of the database" % AGAIN_S, worst < AGAIN_S, self.took)


# ---------------------------------------------------------------- processes die

def backends_killed(tap, world):
	"""SIGKILL of one session: the postmaster restarts all of them, with crash recovery."""
	fleet = load(world, "tbackends")
	again, killed, v = Recovery(fleet), times(4, 200), fleet.first
	for _ in range(killed):
		pause(fleet.rng.uniform(0.05, 0.6))
		mine = wait_until("a session of the daemon", lambda: world.pg.backends("datname = '%s'" % v.dbname), 30)
		since = now_us()
		world.pg.kill_backend(fleet.rng.choice(mine))
		again.watch()
		fleet.span("outage", since=since)
	again.judge(tap)
	judged(tap, fleet, "SIGKILL of Postgres backends", killed)


def postmaster_killed(tap, world):
	fleet = load(world, "tmaster")
	again, killed = Recovery(fleet), times(3, 50)
	for _ in range(killed):
		pause(fleet.rng.uniform(0.05, 0.6))
		since = now_us()
		world.pg.kill9()
		pause(fleet.rng.choice((0, fleet.rng.uniform(0, 4 if LONG else 1))))
		world.pg.start()
		again.watch()
		fleet.span("outage", since=since)
	again.judge(tap)
	judged(tap, fleet, "SIGKILL of the postmaster", killed)


# ---------------------------------------------------------------- fail-over

class Pair:
	"""A primary and its synchronous standby, both named in the daemon's URL; they change places."""

	def __init__(self, world):
		self.world = copy.copy(world)
		self.primary = PgCluster(tcp=True).start()
		self.standby = PgCluster(tcp=True, standby_of=self.primary).start()
		self.world.pg = self.primary
		self.primary.require_standby(self.standby)
		self.passfile = os.path.join(world.dir, "pair.passfile")
		with open(self.passfile, "w") as f:
			f.write("*:*:*:*:%s\n" % PgCluster.PASSWORD)
		os.chmod(self.passfile, 0o600)

	def url(self, dbname):
		hosts = [self.primary, self.standby]
		return "host=%s port=%s user=postgres dbname=%s passfile=%s target_session_attrs=read-write" % (
			",".join("127.0.0.1" for _ in hosts), ",".join(str(x.port) for x in hosts), dbname, self.passfile)

	def end(self, how, rng):
		"""The primary goes: killed, demoted, or first read-only for everybody, as fail-over managers do it."""
		if how == "killed":
			self.primary.kill9()
		elif how == "demoted":
			self.primary.stop("fast")
		else:
			self.primary.psql("ALTER SYSTEM SET default_transaction_read_only = on")
			self.primary.psql("SELECT pg_reload_conf()")
			pause(rng.uniform(0.2, 0.8))
			self.primary.stop("fast")

	def swap(self, how):
		"""The standby takes over; returns when it takes writes."""
		self.standby.promote()
		self.primary, self.standby = self.standby, self.primary
		self.world.pg = self.primary
		self.primary.psql("ALTER SYSTEM RESET default_transaction_read_only")
		self.primary.psql("SELECT pg_reload_conf()")

	def mend(self, how):
		"""The old primary comes back behind the new one, from scratch where it may be ahead of it."""
		self.standby.follow(self.primary, afresh=how == "killed").start()
		self.primary.require_standby(self.standby)

	def close(self):
		self.primary.close()
		self.standby.close()


def promoted(tap, world):
	pair = Pair(world)
	try:
		fleet = load(pair.world, "tpair")
		v, rng = fleet.first, fleet.rng
		v.stop()
		v.conf["database"]["url"] = pair.url(v.dbname)
		v.write_conf()
		v.start()
		again, done = Recovery(fleet), times(3, 30)
		for i in range(done):
			how = ("killed", "read-only", "demoted")[i % 3]
			pause(rng.uniform(0.1, 1.0))
			since = now_us()
			pair.end(how, rng)
			pause(rng.choice((0, rng.uniform(0, 2))))
			pair.swap(how)
			again.watch()
			fleet.span("outage", since=since)
			pair.mend(how)
			wait_until("ready with both", v.ready, 30)
		again.judge(tap)
		judged(tap, fleet, "promotion of a synchronous standby", done)
	finally:
		world.end_vaults()
		pair.close()


def standby_gone(tap, world):
	"""Without its standby a primary confirms no commit any more: nothing may be sent on an intent that hangs."""
	pair = Pair(world)
	try:
		fleet = load(pair.world, "tsync", database={"statement_timeout": "2s"})
		since = now_us()
		pair.standby.kill9()
		wait_until("the daemon to notice", lambda: not fleet.first.ready(), 40)
		before = presentations(world, "tsync")
		pause(2)
		tap.equal("no token is presented while no commit is confirmed", presentations(world, "tsync") - before, 0)
		pair.standby.start()
		again = Recovery(fleet)
		again.watch()
		fleet.span("outage", since=since)
		again.judge(tap)
		judged(tap, fleet, "synchronous standby away", 1)
	finally:
		world.end_vaults()
		pair.close()


# ---------------------------------------------------------------- answers that never come

def commit_reply_dropped(tap, world):
	fleet = load(world, "tcommit", connections=120, life_s=24)  # no outage here: nobody may expire
	v, wanted = fleet.first, times(30, 300)
	v.stop()
	with PgProxy(world.pg.sock, world.pg.port, SEED) as proxy:
		v.conf["database"]["url"] = "host=127.0.0.1 port=%d user=postgres dbname=%s sslmode=disable" % (proxy.port, v.dbname)
		v.conf["database"]["statement_timeout"] = "1s"
		v.write_conf()
		v.start()
		proxy.rule = Rule(("claim", "persist", "release", "webhook", "heartbeat"), 0.35,
			("after", "after", "after", "partial", "partial", "before", "before", "stall"))
		wait_until("%d answers to be taken away" % wanted, lambda: proxy.total() >= wanted, 60 + 3 * wanted)
		proxy.rule = Rule(("persist",), 1, ("after",), limit=3)  # whatever chance did: these are committed and unheard of
		wait_until("three results to be committed unheard", lambda: proxy.rule.limit == 0, 30)
		proxy.rule = None
		wait_until("the verdict that it was written already", lambda: proxy.verdicts[1] > 0, 30)
		tap.note("taken away: %s" % ", ".join("%s %s %d" % (k + (n,)) for k, n in sorted(proxy.cuts.items())))
		tap.note("verdicts of results: %d written now, %d already, %d fence lost, %d asked again" % tuple(proxy.verdicts[i] for i in range(4)))
		kinds = {k for (k, _), n in proxy.cuts.items() if n}
		tap.check("claims and results were among them: %s" % sorted(kinds), {"claim", "persist"} <= kinds, proxy.cuts)
		tap.equal("no result that was written counts as a lost fence", proxy.verdicts[2], 0)
		judged(tap, fleet, "COMMIT reply dropped", proxy.total())


SCENARIOS = [backends_killed, postmaster_killed, promoted, standby_gone, commit_reply_dropped]


def main():
	tap = w.Tap()
	with w.World("tpg", tcp=True) as world:
		tap.run(SCENARIOS, world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
