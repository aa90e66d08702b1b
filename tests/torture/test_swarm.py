#!/usr/bin/env python3
"""Everything at once: a fleet of three under load, and faults of every kind in an order that a seed decides; then the judge. TAP on stdout.

Kills at random and at named points, stops, restarts, clocks that jump, a provider that is out of order or gone, sessions of the
database that end, users who take their grants back. TORTURE=long for 20 fleets of 60 faults; TORTURE_FAULTS for another number of faults,
TORTURE_SEED to repeat one.
"""
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene
import test_clock as clock
import world as w
from scene import Fleet, pause
from test_kill import POINTS
from world import wait_until

FLEETS = 20 if scene.LONG else 2
FAULTS = int(os.environ.get("TORTURE_FAULTS") or (60 if scene.LONG else 7))
LONGEST_STOP_S = 30 if scene.LONG else 4


def kill(fleet, v):
	fleet.kill(v)
	v.start()


def kill_at_point(fleet, v):
	if v.stop() != 0:
		raise RuntimeError("%s does not stop" % v.name)
	usual, point = v.wrap, fleet.rng.choice([p for p in POINTS if p != "before_webhook"])
	v.wrap = usual + ["REFRESHD_FAILPOINT=%s:%d" % (point, fleet.rng.randint(1, 5))]
	since = scene.now_us()
	v.start(ready=False)
	for _ in range(30):
		fleet.load(1.0)
		try:
			code = scene.ended(v, 2)
			break
		except TimeoutError:  # its part of the table had too little to do
			continue
	else:
		raise TimeoutError("%s was not passed" % point)
	fleet.died(v, since, scene.now_us(), point=point)
	v.wrap = usual
	if code != -signal.SIGKILL:
		raise RuntimeError("%s ended with %d at %s" % (v.name, code, point))
	v.start()


def stop(fleet, v):
	stopped = fleet.stop(v)
	if fleet.rng.random() < 0.5:
		fleet.presumed_dead(v)
	pause(fleet.rng.uniform(0.5, LONGEST_STOP_S))
	fleet.cont(v, stopped)


def restart(fleet, v):
	if v.stop() != 0:
		raise RuntimeError("%s does not stop" % v.name)
	v.start()


def jump(fleet, v):
	clock.set_clock(v, fleet.rng.choice(clock.OFFSETS))


def stumble(fleet, v):
	del v
	fleet.stumble(fleet.rng.randint(1, 4))


def provider_gone(fleet, v):
	del v
	fleet.world.sim.down(fleet.realm, 1)


def end_sessions(fleet, v):
	v.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")


def revoke(fleet, v):
	del v
	family = fleet.rng.choice([f for f in fleet.world.sim.live(fleet.realm) if f not in fleet.revoked])
	fleet.revoked.append(family)
	fleet.world.sim.revoke(fleet.realm, family)


ACTS = [kill, kill_at_point, stop, restart, jump, stumble, provider_gone, end_sessions, revoke]


def swarm(tap, world):
	for i in range(FLEETS):
		mode = ("strict", "grace")[i % 2]
		fleet = Fleet(world, "swarm-%d" % i, mode, daemons=3, connections=300, life_s=400, program=scene.TORTURED, delay_ms=20, jitter_ms=300,
			refresh={"timeout": "30s", "lease": "90s"})
		for v in fleet.vaults:
			clock.fake(v)
		fleet.start()
		done = []
		for _ in range(FAULTS):
			act, v = fleet.rng.choice(ACTS), fleet.rng.choice(fleet.vaults)
			done.append("%s %s" % (act.__name__, v.name[-1]))
			fleet.load(2.0)
			pause(fleet.rng.uniform(0.05, 0.8))
			act(fleet, v)
		tap.note("seed %d: %s" % (scene.SEED, ", ".join(done)))
		for v in fleet.vaults:
			clock.set_clock(v, "+0")
		wait_until("all to be ready", lambda vs=fleet.vaults: all(v.ready() for v in vs), 60)
		fleet.quiesce(120)
		verdict = fleet.judge(tap, "a swarm of all of these", FAULTS)
		if mode == "grace":
			tap.equal("with a grace window nothing is lost", verdict.figures["lost"], 0)


def main():
	tap = w.Tap()
	with w.World("swarm") as world:
		tap.run([swarm], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
