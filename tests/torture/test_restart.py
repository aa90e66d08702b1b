#!/usr/bin/env python3
"""Rolling restart of three daemons under full load; then the judge. TAP on stdout.

One after the other gets SIGTERM, drains, exits 0 and is started again, while requests are out everywhere. Nothing may be lost, nothing
fail, no connection stumble, and every drain must be over in time. TORTURE=long for 100 restarts; TORTURE_RESTARTS for another number.
"""
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene
import world as w
from scene import Fleet, pause
from world import wait_until

RESTARTS = int(os.environ.get("TORTURE_RESTARTS") or (100 if scene.LONG else 3))
# The longest request takes 1.2 s here; the rest is for the database and a busy machine.
DRAIN_S = 10


def rolling(tap, world, mode, n):
	fleet = Fleet(world, "restart-%s" % mode, mode, daemons=3, connections=300, life_s=400, delay_ms=200, jitter_ms=1000)
	fleet.start()
	codes, drains, busy = [], [], 0
	for i in range(n):
		v = fleet.vaults[i % 3]
		fleet.load(1.5)
		wait_until("requests to be out", lambda: v.metrics().get("refresh_in_flight") > 0, 20)
		busy += v.metrics().get("refresh_in_flight") > 0
		began = time.monotonic()
		codes.append(v.stop(60))
		drains.append(time.monotonic() - began)
		v.start()
		pause(fleet.rng.uniform(0.1, 0.5))
	fleet.quiesce()
	outcomes = {o for v in fleet.vaults for o in v.outcomes(fleet.realm)}
	verdict = fleet.judge(tap, "rolling restart of three", n)
	tap.equal("each of them exits 0", codes, [0] * n)
	tap.check("each of them drains in time (the slowest in %.1f s)" % max(drains), max(drains) < DRAIN_S, drains)
	tap.check("they had work in hand (%d of %d)" % (busy, n), busy >= n // 2, busy)
	tap.equal("nothing is lost, and nothing had to be excused", (verdict.figures["lost"], verdict.excused), (0, []))
	tap.equal("nothing failed", (outcomes, fleet.first.count("watch.changed")), ({"refreshed"}, 0))


def strict(tap, world):
	rolling(tap, world, "strict", RESTARTS)


def main():
	tap = w.Tap()
	with w.World("restart") as world:
		tap.run([strict], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
