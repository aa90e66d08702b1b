#!/usr/bin/env python3
"""The real refreshd while Postgres dies, fails over, forgets to answer and refuses, again and again; the provider's ledger and the
database are the judge. TAP on stdout.

TORTURE=long runs the long counts, REFRESHD_SEED repeats the moments. A measured time "until it refreshes again" begins when the
database takes connections again and ends with the first token request that reaches the provider.
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
from test_database import loaded, presentations, well_again, why_not_ready
from world import wait_until

LONG = os.environ.get("TORTURE") == "long"
SEED = int(os.environ.get("REFRESHD_SEED", str(int.from_bytes(os.urandom(4), "little"))))
AGAIN_S = 10
LIFE = 6  # refreshed every three seconds


def times(short, long):
	return long if LONG else short


def pause(seconds):
	"""A moment of chance, not a wait for something."""
	end = time.monotonic() + seconds
	wait_until("the moment", lambda: time.monotonic() > end, seconds + 30)


class Recovery:
	"""How long it takes until tokens are presented again."""

	def __init__(self, world, realm):
		self.world, self.realm, self.took = world, realm, []

	def watch(self):
		"""Called when the database is back."""
		began, before = time.monotonic(), presentations(self.world, self.realm)
		wait_until("refreshes after the database came back", lambda: presentations(self.world, self.realm) > before, 60)
		self.took.append(time.monotonic() - began)

	def judge(self, tap):
		worst, middle = max(self.took), sorted(self.took)[len(self.took) // 2]
		tap.note("%d times back: refreshing again after %.2f s in the middle, %.2f s at worst" % (len(self.took), middle, worst))
		tap.check("refreshing again within %d s of the database" % AGAIN_S, worst < AGAIN_S, self.took)


def no_event_is_wrong(tap, v):
	"""Outages of the database are nobody's failure: no connection may have changed its state, and no owner been told so."""
	tap.equal("no connection was reported as failed", v.event_counts().get("failed", 0), 0)


# ---------------------------------------------------------------- processes die

def backends_killed(tap, world):
	"""SIGKILL of one session: the postmaster restarts all of them, with crash recovery."""
	rng, v = random.Random("%d-backends" % SEED), loaded(world, "tbackends", life=LIFE)
	again, killed = Recovery(world, "tbackends"), times(4, 200)
	for _ in range(killed):
		pause(rng.uniform(0.05, 0.6))
		mine = wait_until("a session of the daemon", lambda: world.pg.backends("datname = '%s'" % v.dbname), 30)
		world.pg.kill_backend(rng.choice(mine))
		again.watch()
	tap.note("%d backends killed, seed %d" % (killed, SEED))
	again.judge(tap)
	well_again(tap, world, v, "tbackends")
	no_event_is_wrong(tap, v)


def postmaster_killed(tap, world):
	rng, v = random.Random("%d-postmaster" % SEED), loaded(world, "tmaster", life=LIFE)
	again, killed = Recovery(world, "tmaster"), times(3, 50)
	for _ in range(killed):
		pause(rng.uniform(0.05, 0.6))
		world.pg.kill9()
		pause(rng.choice((0, rng.uniform(0, 4 if LONG else 1))))
		world.pg.start()
		again.watch()
	tap.note("%d postmasters killed, seed %d" % (killed, SEED))
	again.judge(tap)
	well_again(tap, world, v, "tmaster")
	no_event_is_wrong(tap, v)


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
	rng, pair = random.Random("%d-promoted" % SEED), Pair(world)
	try:
		world_of_pair = pair.world
		v = loaded(world_of_pair, "tpair", life=LIFE)
		v.stop()
		v.conf["database"]["url"] = pair.url(v.dbname)
		v.write_conf()
		v.start()
		again, done = Recovery(world, "tpair"), times(3, 30)
		for i in range(done):
			how = ("killed", "read-only", "demoted")[i % 3]
			pause(rng.uniform(0.1, 1.0))
			pair.end(how, rng)
			pause(rng.choice((0, rng.uniform(0, 2))))
			pair.swap(how)
			again.watch()
			pair.mend(how)
			wait_until("ready with both", v.ready, 30)
		tap.note("%d promotions, seed %d" % (done, SEED))
		again.judge(tap)
		well_again(tap, world_of_pair, v, "tpair")
		no_event_is_wrong(tap, v)
	finally:
		world.end_vaults()
		pair.close()


def standby_gone(tap, world):
	"""Without its standby a primary confirms no commit any more: nothing may be sent on an intent that hangs."""
	pair = Pair(world)
	try:
		v = loaded(pair.world, "tsync", life=LIFE, database={"statement_timeout": "2s"})
		pair.standby.kill9()
		wait_until("the daemon to notice", lambda: not v.ready(), 40)
		before = presentations(world, "tsync")
		pause(2)
		tap.equal("no token is presented while no commit is confirmed", presentations(world, "tsync") - before, 0)
		pair.standby.start()
		again = Recovery(world, "tsync")
		again.watch()
		again.judge(tap)
		well_again(tap, pair.world, v, "tsync")
		no_event_is_wrong(tap, v)
	finally:
		world.end_vaults()
		pair.close()


# ---------------------------------------------------------------- answers that never come

def commit_reply_dropped(tap, world):
	v = loaded(world, "tcommit", life=LIFE, n=120)
	v.stop()
	wanted = times(30, 300)
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
		tap.note("taken away, seed %d: %s" % (SEED, ", ".join("%s %s %d" % (k + (n,)) for k, n in sorted(proxy.cuts.items()))))
		tap.note("verdicts of results: %d written now, %d already, %d fence lost, %d asked again" % tuple(proxy.verdicts[i] for i in range(4)))
		kinds = {k for (k, _), n in proxy.cuts.items() if n}
		tap.check("claims and results were among them: %s" % sorted(kinds), {"claim", "persist"} <= kinds, proxy.cuts)
		tap.equal("no result that was written counts as a lost fence", proxy.verdicts[2], 0)
		well_again(tap, world, v, "tcommit")
		no_event_is_wrong(tap, v)
		tap.equal("no refresh is counted twice in the row", v.count("refreshd.credential k JOIN refreshd.connection c USING (slot, connection_id)"
			" WHERE k.refreshes > 0 AND k.refreshed_at IS NULL"), 0)


SCENARIOS = [backends_killed, postmaster_killed, promoted, standby_gone, commit_reply_dropped]


def main():
	tap = w.Tap()
	with w.World("tpg", tcp=True) as world:
		tap.run(SCENARIOS, world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
