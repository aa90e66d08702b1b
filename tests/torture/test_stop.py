#!/usr/bin/env python3
"""SIGSTOP of one of three daemons, then SIGCONT, again and again under load; then the judge. TAP on stdout.

A stopped process is the worst kind of dead: it comes back in the middle of what it did, with its clock ahead. Nobody may present
a token that it may be presenting, and what it has in its sockets must still count. Short stops, and stops so long that the others take
over what it looked after (its heartbeat is aged then, not waited for). One is stopped for longer than its lease with an answer in the
socket: its token must not be lost, whatever was done meanwhile. TORTURE=long for 300 stops of 5 to 60 s; TORTURE_STOPS for another number.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene
import world as w
from scene import Fleet, pause
from world import wait_until

STOPS = int(os.environ.get("TORTURE_STOPS") or (300 if scene.LONG else 4))
LONGEST_S = float(os.environ.get("TORTURE_STOP_S") or (60 if scene.LONG else 8))
SHORTEST_S = min(5, LONGEST_S / 4)


def stops(tap, world, mode, n, **timeouts):
	# Lives are long enough for the longest stop: what a stopped process holds must wait for it.
	fleet = Fleet(world, "stop-%s" % mode, mode, daemons=3, connections=240, life_s=400, delay_ms=100, jitter_ms=600,
		refresh=dict({"lease": "90s"}, **timeouts))
	fleet.start()
	for i in range(n):
		v = fleet.vaults[i % 3]
		fleet.load(LONGEST_S)
		pause(fleet.rng.uniform(0.1, 1))
		stopped = fleet.stop(v)
		if fleet.rng.random() < 0.5:
			fleet.presumed_dead(v)
		pause(fleet.rng.uniform(SHORTEST_S, LONGEST_S))
		fleet.stumble()
		fleet.cont(v, stopped)
		pause(fleet.rng.uniform(0.1, 2))
	fleet.quiesce()
	verdict = fleet.judge(tap, "SIGSTOP %.0f-%.0f s of one of three" % (SHORTEST_S, LONGEST_S), n)
	tap.equal("nothing is lost, and nothing had to be excused", (verdict.figures["lost"], verdict.excused), (0, []))


def strict(tap, world):
	stops(tap, world, "strict", STOPS - STOPS // 2, timeout="30s")


def grace(tap, world):
	# The timeout is shorter than most stops: the answer is in the socket, and the time for it is over.
	stops(tap, world, "grace", STOPS // 2, timeout="2s", connect_timeout="1s")


def beyond_the_lease(tap, world):
	"""The answer is in the socket, the timeout is over, the lease is over, and the others wait no longer either."""
	fleet = Fleet(world, "lease", "grace", daemons=2, connections=24, life_s=400, delay_ms=1000, jitter_ms=0,
		refresh={"timeout": "1500ms", "connect_timeout": "1s", "lease": "32s", "takeover_delay": "0"})
	fleet.start()
	v = fleet.first
	fleet.load(0.5)
	wait_until("requests of the first", lambda: v.metrics().get("refresh_in_flight") > 0, 20)
	stopped = fleet.stop(v)
	fleet.presumed_dead(v)
	owner = "(SELECT epoch FROM refreshd.instance WHERE name = '%s')" % v.conf["instance"]
	held = [x["id"] for x in scene.rows_of(v, "SELECT connection_id AS id FROM refreshd.schedule WHERE lease_owner = %s" % owner)]
	tap.check("it held requests (%d)" % len(held), held)
	wait_until("the others to take over", lambda: v.count("refreshd.schedule WHERE lease_owner = %s" % owner) == 0, 60)
	wait_until("its connections to be refreshed", lambda: v.count("refreshd.credential WHERE connection_id IN (%s) AND refreshed_at > "
		"to_timestamp(%d)" % (", ".join("'%s'" % x for x in held), stopped["from_us"] // 1000000 + 20)) == len(held), 20)
	fleet.cont(v, stopped)
	wait_until("it to be ready again", v.ready, 20)
	wait_until("what it had to be settled", v.quiet, 20)
	fleet.quiesce()
	verdict = fleet.judge(tap, "SIGSTOP beyond the lease", 1)
	tap.equal("nothing is lost", verdict.figures["lost"], 0)
	tap.equal("the only excuse is the lease", {x["kind"] for x in verdict.excused} - {"lease"}, set())


def main():
	tap = w.Tap()
	with w.World("stop") as world:
		tap.run([strict, grace, beyond_the_lease], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
