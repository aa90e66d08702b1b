#!/usr/bin/env python3
"""Three daemons on one Postgres: who refreshes what, and what happens when one comes, leaves, dies or stands still. TAP on stdout.

A trigger of the test writes down who claims what; the provider's ledger says what was presented, and the database what came of it.
"""
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import world as w
from world import wait_until

NAMES = ("alfa", "bravo", "charlie")
SLOTS = 1024


class Fleet:
	"""Daemons that share a database, and a log of every claim: connection, epoch, was the row leased by another, when."""

	def __init__(self, world, realm, n, refresh=None, provider=None, names=NAMES):
		conf = {"poll_interval": "200ms"}
		conf.update(refresh or {})
		self.world, self.realm, self.all = world, realm, []
		for name in names:
			first = self.all[0] if self.all else None
			self.all.append(world.vault("%s-%s" % (realm, name), {realm: dict(provider or {})}, beside=first, refresh=dict(conf)))
		self.db = self.all[0]
		self.db.sql("""
			CREATE TABLE watch.claim (connection_id uuid, slot smallint, epoch bigint, was bigint, at timestamptz DEFAULT clock_timestamp());
			CREATE FUNCTION watch.note_claim() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
				INSERT INTO watch.claim VALUES (NEW.connection_id, NEW.slot, NEW.lease_owner, OLD.lease_owner); RETURN NULL; END';
			CREATE TRIGGER claim AFTER UPDATE ON refreshd.schedule FOR EACH ROW
				WHEN (NEW.lease_owner > 0 AND NEW.attempt_id <> OLD.attempt_id) EXECUTE FUNCTION watch.note_claim();
			GRANT INSERT ON watch.claim TO PUBLIC;""")
		lines = self.world.sim.mint(realm, n)
		for x in lines:  # without a life they are due at once
			x["credentials"].pop("expires_in", None)
			x["credentials"].pop("issued_at", None)
		self.db.import_lines(lines)
		self.n = n

	def start(self):
		for v in self.all:
			v.start()
		self.wait_shared(self.all)
		wait_until("the first refreshes", lambda: self.db.count("refreshd.credential WHERE refreshes >= 1") == self.n, 30)

	def make_due(self):
		self.db.sql("UPDATE refreshd.schedule SET due_at = now() WHERE lease_owner IS NULL")

	def busy(self, v, n=3):
		"""Requests of this one are out."""
		self.make_due()
		wait_until("requests to be out", lambda: v.metrics().get("refresh_in_flight") >= n, 20)

	def epoch(self, v):
		return int(self.db.sql("SELECT epoch FROM refreshd.instance WHERE name = '%s'" % v.conf["instance"]))

	def wait_shared(self, daemons, timeout_s=10):
		wait_until("%d daemons to share the slots" % len(daemons), lambda: shares(daemons) is not None, timeout_s)

	def claims(self, more=""):
		"""[(connection, epoch)], in their order."""
		lines = self.db.sql("SELECT connection_id, epoch FROM watch.claim WHERE true %s ORDER BY at" % more).splitlines()
		return [(a, int(b)) for a, b in (line.split("|") for line in lines)]

	def now(self):
		return self.db.sql("SELECT clock_timestamp()")

	def refreshed_since(self, then):
		return self.db.count("refreshd.credential WHERE refreshed_at > '%s'" % then)

	def stop(self, tap):
		for v in self.all:
			if v.alive():
				wait_until("%s to be quiet" % v.name, v.quiet, 20)
				tap.equal("%s stops with 0" % v.name, v.stop(), 0)


def shares(daemons):
	"""The number of slots of each, once together they have all of them and agree how many they are; else None."""
	found = []
	for v in daemons:
		m = v.metrics()
		if m.get("instances") != len(daemons):
			return None
		found.append(int(m.get("slots")))
	return found if sum(found) == SLOTS else None


def realm(world, name, life_s=8, **more):
	options = dict(mode="strict", at_ttl=life_s, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=10, jitter_ms=30)
	options.update(more)
	world.sim.realm(name, **options)


def division(tap, world):
	realm(world, "div", 6)
	f = Fleet(world, "div", 300)
	f.start()
	found = shares(f.all)
	tap.check("the slots are shared evenly: %s" % found, max(found) - min(found) <= 1, found)
	then = f.now()
	wait_until("everybody to be refreshed twice", lambda: f.db.count("refreshd.credential WHERE refreshes >= 3") == 300, 40)
	owners, rows = {}, {}
	for connection, epoch in f.claims("AND at > '%s'" % then):
		owners.setdefault(connection, set()).add(epoch)
	for epochs in owners.values():
		for e in epochs:
			rows[e] = rows.get(e, 0) + 1
	tap.equal("each connection is claimed by one daemon alone", [c for c, e in owners.items() if len(e) > 1], [])
	tap.check("all three have their part: %s" % sorted(rows.values()), len(rows) == 3 and min(rows.values()) > 70, rows)
	status = json.loads(f.db.ctl("--json", "status", good=False).stdout)
	tap.equal("status shows who has how much", sorted(d["slots"] for d in status["daemons"]), sorted(found))
	tap.equal("and that they run", {d["presence"] for d in status["daemons"]}, {"running"})
	one = next(iter(owners))
	before = len(f.claims("AND connection_id = '%s'" % one))
	f.db.ctl("refresh", one)
	claims = f.claims("AND connection_id = '%s'" % one)
	tap.equal("refresh now is done by its owner", {e for _, e in claims[before - 1:]}, owners[one])
	w.judge_ledger(tap, world.sim, "div")
	w.judge_expiry(tap, f.db)
	f.stop(tap)
	w.judge_tokens(tap, world.sim, f.db, "div")


def handover(tap, world):
	"""SIGTERM while requests are out: the others have the slots within a second, and what is out is finished."""
	realm(world, "hand", 24, delay_ms=1500, jitter_ms=10)
	f = Fleet(world, "hand", 240, provider={"max_in_flight": 150})
	f.start()
	leaving, others = f.all[1], [f.all[0], f.all[2]]
	for round_no in range(2):
		f.busy(leaving, 5)
		epoch, began = f.epoch(leaving), time.monotonic()
		leaving.signal(signal.SIGTERM)
		f.wait_shared(others, 5)
		took = time.monotonic() - began
		draining = leaving.alive()
		tap.check("the others have all slots within a second: %.3f s" % took, took < 1.0)
		tap.check("while it still drains", draining)
		claimed = f.now()
		tap.equal("it ends with 0", leaving.wait(20), 0)
		tap.equal("it claimed nothing after that", f.claims("AND at > '%s' AND epoch = %d" % (claimed, epoch)), [])
		tap.equal("nothing of it stays claimed", f.db.count("refreshd.schedule WHERE lease_owner = %d" % epoch), 0)
		began = time.monotonic()
		leaving.start()
		f.wait_shared(f.all, 5)
		tap.check("when it is back it has its part at once: %.3f s" % (time.monotonic() - began), time.monotonic() - began < 3)
	then = f.now()
	f.make_due()
	wait_until("everybody to be refreshed", lambda: f.refreshed_since(then) == 240, 30)
	w.judge_ledger(tap, world.sim, "hand")
	w.judge_expiry(tap, f.db)
	f.stop(tap)
	w.judge_tokens(tap, world.sim, f.db, "hand")


def crash(tap, world):
	"""kill -9: unclaimed rows are taken over as soon as the heartbeat is too old; claimed ones wait for the delay."""
	realm(world, "crash", 56, delay_ms=300, jitter_ms=600)
	f = Fleet(world, "crash", 240, {"takeover_delay": "5s"})
	started = time.monotonic()
	f.start()
	dead, others = f.all[2], f.all[:2]
	f.busy(dead)
	epoch, began = f.epoch(dead), time.monotonic()
	dead.kill()
	left = f.db.count("refreshd.schedule WHERE lease_owner = %d" % epoch)
	tap.check("it leaves claims behind: %d" % left, left > 0)
	f.wait_shared(others, 30)
	took = time.monotonic() - began
	tap.check("the others take its slots when its heartbeat is 20 s old: %.1f s" % took, 18 < took < 21.5)
	status = f.db.ctl("status", good=False)
	tap.check("status says so, and what to do", "instance forget" in status.stdout and status.returncode == 1, status.stdout)
	refused = f.db.ctl("instance", "forget", others[0].conf["instance"], good=False)
	tap.check("one that is alive cannot be forgotten", refused.returncode == 1 and "alive" in refused.stderr, refused.stderr)
	# The lease would last two minutes: end it now.
	f.db.sql("UPDATE refreshd.schedule SET lease_until = now() WHERE lease_owner = %d" % epoch)
	ended, up = f.now(), time.monotonic() - started
	taken = "AND was = %d" % epoch
	wait_until("half of them to be taken over", lambda: len(f.claims(taken)) >= left // 2, 20)
	waited = float(f.db.sql("SELECT extract(epoch FROM min(at) - '%s') FROM watch.claim WHERE true %s" % (ended, taken)))
	# Not before the first half minute of the others, either.
	tap.check("claimed rows wait for refresh.takeover_delay: %.1f s" % waited, max(4.9, 29.5 - up) < waited < max(5, 31 - up) + 3)
	wait_until("the rest of them", lambda: len(f.claims(taken)) >= left, 30)
	tap.equal("each was taken over once", len(set(f.claims(taken))), left)
	began = time.monotonic()
	dead.start()
	f.wait_shared(f.all, 5)
	tap.check("when it is back the work is divided anew", time.monotonic() - began < 5)
	w.judge_expiry(tap, f.db)
	f.stop(tap)


def forgotten(tap, world):
	realm(world, "forget", 60, delay_ms=1500, jitter_ms=10)
	f = Fleet(world, "forget", 120, {"takeover_delay": "1d"}, names=NAMES[:2])
	f.start()
	dead, other = f.all[1], f.all[0]
	f.busy(dead)
	epoch, name = f.epoch(dead), dead.conf["instance"]
	dead.kill()
	f.db.sql("UPDATE refreshd.schedule SET lease_until = now() WHERE lease_owner = %d" % epoch)
	f.db.sql("UPDATE refreshd.instance SET heartbeat_at = now() - interval '30 s' WHERE epoch = %d" % epoch)
	f.wait_shared([other], 5)
	left = f.db.count("refreshd.schedule WHERE lease_owner = %d" % epoch)
	tap.equal("they wait", f.claims("AND was = %d" % epoch), [])
	done = json.loads(f.db.ctl("--json", "instance", "forget", name).stdout)
	tap.equal("forget says how many there are", done, {"name": name, "leases": left})
	wait_until("them to be taken over", lambda: len(f.claims("AND was = 0")) == left, 5)
	tap.check("they are taken over at once: %d" % left, left > 0)
	tap.equal("each with its doubt", f.db.count("watch.claim c JOIN refreshd.schedule s USING (connection_id) WHERE c.was = 0"
		" AND s.lease_owner IS NOT NULL AND s.doubts = 0"), 0)
	gone = f.db.ctl("instance", "forget", name, good=False)
	tap.check("again is an error", gone.returncode == 1 and "there is no instance" in gone.stderr, gone.stderr)
	f.stop(tap)


def standstill(tap, world):
	"""SIGSTOP and CONT: short, and longer than the others wait for a heartbeat. Nothing is sent on an old claim."""
	realm(world, "stand", 48, delay_ms=200, jitter_ms=400)
	f = Fleet(world, "stand", 300)
	f.start()
	zombie, others = f.all[0], f.all[1:]
	for seconds in (8, 23):
		f.busy(zombie)
		zombie.signal(signal.SIGSTOP)
		end = time.monotonic() + seconds
		wait_until("%d s" % seconds, lambda: time.monotonic() > end, seconds + 5)
		if seconds > 20:
			f.wait_shared(others, 5)
		else:
			tap.equal("a short stop moves nothing", shares(others), None)
		zombie.signal(signal.SIGCONT)
		f.wait_shared(f.all, 10)
	then = f.now()
	wait_until("everybody to be refreshed once more", lambda: f.refreshed_since(then) == 300, 60)
	w.judge_ledger(tap, world.sim, "stand")
	w.judge_expiry(tap, f.db)
	f.stop(tap)
	w.judge_tokens(tap, world.sim, f.db, "stand")


def upgrade(tap, world):
	"""A newer schema that says that programs of this version may go on."""
	realm(world, "newer", 8)
	f = Fleet(world, "newer", 60, names=NAMES[:2])
	f.all[0].start()
	f.db.sql("ALTER TABLE refreshd.connection ADD flavour text NOT NULL DEFAULT 'plain';"
		"INSERT INTO refreshd.schema_version (version, compatible_from) VALUES (2, 1)")
	f.all[1].start()
	f.wait_shared(f.all)
	then = f.now()
	wait_until("everybody to be refreshed", lambda: f.refreshed_since(then) == 60, 30)
	tap.check("daemons go on beside a compatible newer schema", all(v.ready() for v in f.all))
	done = f.db.ctl("migrate")
	tap.check("migrate of the old program leaves it alone", "nothing to do" in done.stdout and "newer" in done.stdout, done.stdout)
	tap.check("refreshctl works", '"well"' in f.db.ctl("--json", "status", good=False).stdout)
	f.db.sql("INSERT INTO refreshd.schema_version (version, compatible_from) VALUES (3, 2)")
	wait_until("the daemons to notice while they are connected", lambda: not any(v.ready() for v in f.all), 10)
	why = f.all[0].get("/readyz")[1]
	tap.check("one that is not compatible asks for a newer program", "version 3" in why and "use a newer refreshd" in why, why)
	wait_until("them to leave the work to newer ones", lambda: f.db.count("refreshd.instance WHERE presence = 'paused'") == 2, 10)
	f.db.sql("DELETE FROM refreshd.schema_version WHERE version = 3")
	f.wait_shared(f.all, 15)
	tap.check("and they come back by themselves", True)
	f.stop(tap)


def main():
	tap = w.Tap()
	with w.World("many") as world:
		tap.run([division, handover, crash, forgotten, standstill, upgrade], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
