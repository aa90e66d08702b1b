#!/usr/bin/env python3
"""The wall clock of a daemon's machine jumps by an hour or a day, ahead and back, under load; then the judge. TAP on stdout.

The daemons run under libfaketime, which reads how far off it shall be from a file at every look; the provider and Postgres keep the right
time. So one of two daemons, and then both, live with a clock that differs from the database's. No token may expire, and nobody may be
refreshed more often than usual: I4 is judged by the provider's clock alone. TORTURE=long for 50 jumps; TORTURE_JUMPS for another number.
"""
import glob
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene
import world as w
from scene import Fleet, pause
from world import wait_until

JUMPS = int(os.environ.get("TORTURE_JUMPS") or (50 if scene.LONG else 5))
OFFSETS = ("+1h", "-1h", "+1d", "-1d", "+0")
LIFE_S = 16
HALF_S = LIFE_S / 2


def preload():
	found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
	if not found:
		raise RuntimeError("libfaketime is not installed: ./bootstrap packages ci")
	return found[0]


def set_clock(v, offset):
	"""By rename: a half written file is no time."""
	path = os.path.join(v.dir, "faketime")
	with open(path + ".new", "w") as f:
		f.write(offset + "\n")
	os.chmod(path + ".new", 0o644)
	os.rename(path + ".new", path)


def fake(v):
	set_clock(v, "+0")
	v.wrap = ["env", "LD_PRELOAD=" + preload(), "FAKETIME_TIMESTAMP_FILE=" + os.path.join(v.dir, "faketime"), "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1"]


def presented(world, fleet, since, to):
	return sum(since <= x["t_recv_us"] < to for x in world.sim.ledger(fleet.realm))


def jumps(tap, world):
	fleet = Fleet(world, "clock", "strict", daemons=2, connections=120, life_s=LIFE_S)
	for v in fleet.vaults:
		fake(v)
	fleet.start()
	wait_until("everybody to have had a turn", lambda: fleet.first.count(scene.CREDENTIAL + " WHERE refreshed_at IS NULL") == 0, 30)
	rates = []
	for i in range(JUMPS):
		offset = OFFSETS[i % len(OFFSETS)]
		who = fleet.vaults if i % 3 == 2 or offset == "+0" else [fleet.vaults[i % 2]]
		since = scene.now_us()
		for v in who:
			set_clock(v, offset)
		pause(5 if not scene.LONG else HALF_S)
		to = scene.now_us()
		# In half a life everybody has one turn, a tenth of it early; a herd at the edge counts for once more.
		rates.append((presented(world, fleet, since, to), (to - since) / 1e6))
	for v in fleet.vaults:
		set_clock(v, "+0")
	wait_until("the clocks to be right again", lambda: all(v.metrics().get("clock_off_seconds") == 0 for v in fleet.vaults), 20)
	fleet.quiesce()
	verdict = fleet.judge(tap, "wall clock +-1 h, +-1 d", JUMPS)
	most = max(n / s for n, s in rates)
	usual = 120 / (HALF_S * 0.9)
	tap.check("no storm: at most %.1f refreshes a second in the time after a jump, where %.1f are usual" % (most, usual), most <= 2 * usual, rates)
	tap.equal("nothing is lost, and nothing had to be excused", (verdict.figures["lost"], verdict.excused), (0, []))
	told = [len(v.logged("daemon.clock_off")) for v in fleet.vaults]
	tap.check("each told that its clock is off (%s)" % told, all(told), told)


def main():
	tap = w.Tap()
	with w.World("clock") as world:
		tap.run([jumps], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
