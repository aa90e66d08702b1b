#!/usr/bin/env python3
"""kill -9 at random moments, and at each named point of a refresh, under load, again and again; then the judge. TAP on stdout.

With a grace window nothing may be lost. With strict rotation a connection may be lost only between the provider's rotation and our
journal: that window is physics, and its width is printed. What was in the journal must be in the database.
TORTURE=long for 2,000 kills at random and 200 at each point; TORTURE_KILLS and TORTURE_POINT_KILLS for other numbers.
"""
import json
import os
import signal
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene
import world as w
from scene import Fleet, pause
from world import wait_until

KILLS = int(os.environ.get("TORTURE_KILLS") or (2000 if scene.LONG else 16))
POINT_KILLS = int(os.environ.get("TORTURE_POINT_KILLS") or (200 if scene.LONG else 3))
POINTS = ("before_intent", "after_intent", "sent", "half_reply", "whole_reply", "journalled", "committed", "before_webhook")
# A connection is lost for good with strict rotation: a new set of them comes after so many deaths, or there would be none left to lose.
KILLS_A_FLEET = 50


def at_random(tap, world, mode, kills):
	left, part = kills, 0
	while left > 0:
		part, now = part + 1, min(left, KILLS_A_FLEET)
		left -= now
		fleet = Fleet(world, "random-%s-%d" % (mode, part), mode, life_s=400)
		fleet.start()
		for _ in range(now):
			fleet.load(1.0)
			pause(fleet.rng.uniform(0.02, 1.2))
			fleet.stumble()
			fleet.kill(fleet.first)
			fleet.first.start()
		fleet.quiesce()
		replayed = sum(x["count"] for x in fleet.first.logged("daemon.replayed"))
		fleet.judge(tap, "kill -9 at random", now)
		tap.check("the kills found work under way (%d replies replayed)" % replayed, replayed > 0 or now < 10, replayed)


def die_at(world, fleet, point):
	"""One start that ends at the point. The exit code, and whether the journal was empty then."""
	v = fleet.first
	nth = fleet.rng.randint(1, 2 if point == "before_webhook" else 25)
	v.wrap = ["env", "REFRESHD_FAILPOINT=%s:%d" % (point, nth)]
	fleet.load(3.0)
	fleet.stumble(2)
	since = scene.now_us()
	v.start(ready=False)
	if point == "half_reply":  # so that the body is really not there yet
		world.sim.fault(fleet.realm, "drip", n=2, every=2, arg=2)
	for _ in range(30):
		try:
			code = scene.ended(v, 2)
			break
		except TimeoutError:  # there was not enough to do
			fleet.load(3.0)
			fleet.stumble(2)
	else:
		raise TimeoutError("%s was not passed %d times" % (point, nth))
	fleet.died(v, since, scene.now_us(), point=point)
	return code, not fleet.spans[-1]["journal"]


def at_points(tap, world, mode, kills):
	"""The long form has fleets and lines of its own for each point; the short one takes them all in turn."""
	for points in ([[x] for x in POINTS] if scene.LONG else [POINTS]):
		name = points[0] if len(points) == 1 else "each point"
		left, part = kills, 0
		while left > 0:
			part, now = part + 1, min(left, KILLS_A_FLEET)
			left -= now
			fleet = Fleet(world, "%s-%s-%d" % (name.replace("_", "-").replace(" ", "-"), mode, part), mode, program=scene.TORTURED,
				connections=300 if scene.LONG else 160, life_s=400, delay_ms=5, jitter_ms=20, provider={"max_in_flight": 4})
			deaths = [(point,) + die_at(world, fleet, point) for _ in range(now) for point in points]
			fleet.first.wrap = []
			fleet.first.start()
			# What was being delivered is freed at the start: nobody waits for the lease of the dead, which is over a minute.
			fleet.quiesce(40)
			tap.equal("%s: killed there" % name, [x for x in deaths if x[1] != -signal.SIGKILL], [])
			fleet.judge(tap, "kill -9 at " + name, len(deaths))
			tap.equal("an answer that was journalled is in the journal", [x for x in deaths if x[0] in ("journalled", "committed") and x[2]], [])


def window(tap, world):
	"""Nobody is killed: how long is an answer in memory only? From its last byte in the kernel to the journal's fdatasync, as the loop sees
	it, at a steady 60 refreshes a second, and in a herd of all of them within one."""
	n = 1500 if scene.LONG else 240
	fleet = Fleet(world, "window", "strict", program=scene.TORTURED, connections=n, life_s=400)
	trace = os.path.join(fleet.first.dir, "trace")
	fleet.first.wrap = ["env", "REFRESHD_TRACE=" + trace]
	fleet.start(n / 60)
	wait_until("everybody to have had a turn", lambda: fleet.first.count(scene.CREDENTIAL + " WHERE refreshed_at IS NULL") == 0, 60 + n / 60)
	herd = scene.now_us()
	fleet.quiesce()
	fleet.judge(tap, "none", 0)
	with open(trace) as f:
		at = {(x[2], int(x[3])): int(x[0]) for x in (line.split() for line in f)}
	for name, mine in (("steady", lambda x: x["t_recv_us"] < herd), ("herd", lambda x: x["t_recv_us"] >= herd)):
		widths, unseen = scene.widths(dict(fleet.evidence, ledger=[x for x in fleet.evidence["ledger"] if mine(x)]), at)
		tap.equal("every answer was journalled before it was written", unseen, 0)
		tap.note("window: " + json.dumps({"load": name, "n": len(widths), "mean_ms": round(statistics.mean(widths), 2), "median_ms": round(statistics.median(widths), 2),
			"p99_ms": round(widths[len(widths) * 99 // 100], 2), "max_ms": round(widths[-1], 2)}))


def random_grace(tap, world):
	at_random(tap, world, "grace", KILLS // 2)


def random_strict(tap, world):
	at_random(tap, world, "strict", KILLS - KILLS // 2)


def points_strict(tap, world):
	at_points(tap, world, "strict", POINT_KILLS - POINT_KILLS // 3)


def points_grace(tap, world):
	at_points(tap, world, "grace", POINT_KILLS // 3)


def main():
	tap = w.Tap()
	with w.World("kill") as world:
		tap.run([window, random_grace, random_strict, points_strict, points_grace], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
