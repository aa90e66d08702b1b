#!/usr/bin/env python3
"""The judge is judged: crafted evidence with one wrong thing in each, and three daemons that are broken on purpose. TAP on stdout.

Each must be found and named by its invariant, and the same without the fault must be clean. See judge.py and, for the mutants,
src/base/failpoint.h.
"""
import copy
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import judge as j
import scene
import world as w
from scene import Fleet, pause
from world import clean_env, wait_until

S = 1000000
SECRET = "whsec_" + "c2VjcmV0LXRoYXQtaXMtbG9uZy1lbm91Z2g="


# ---------------------------------------------------------------- crafted evidence

def line(family, rt, recv, done, outcome="rotated", **more):
	return dict({"realm": "r", "family": family, "rt": rt, "t_recv_us": recv, "t_done_us": done, "outcome": outcome, "status": 200,
		"rotated": outcome == "rotated", "delivered": True, "overlap": False}, **more)


def delivery(event_id, kind, attempt=1, **more):
	body = json.dumps({"payload": dict({"event_id": event_id, "event_type": kind, "execution_attempt": attempt}, **more)})
	record = {"status": 200, "body": body, "headers": {"webhook-id": event_id, "webhook-timestamp": "1000"}}
	key = j.base64.b64decode(SECRET[6:])
	mac = j.hmac.new(key, ("%s.1000.%s" % (event_id, body)).encode(), j.hashlib.sha256).digest()
	record["headers"]["webhook-signature"] = "v1," + j.base64.b64encode(mac).decode()
	return record


def history():
	"""Three connections of instance a: one refreshed twice, one that stumbled and recovered, one that was lost in the window."""
	pending, recovered, failed = ("vault.connection.token_refresh." + x for x in ("pending", "recovered", "failed"))
	return {
		"realm": "r", "mode": "strict", "lease_us": 60 * S, "now_us": 100 * S, "webhook_secret": SECRET,
		"owners": {"7": "a", "8": "a", "9": "b"},
		"ledger": [
			line(1, "rt1", 10 * S, 10 * S + 500), line(1, "rt2", 20 * S, 20 * S + 500),
			line(2, "rt3", 11 * S, 11 * S + 500, "fault:error", status=503), line(2, "rt3", 12 * S, 12 * S + 500),
			line(3, "rt4", 29 * S, 30 * S - 2000), line(3, "rt4", 31 * S, 31 * S + 500, "reuse_revoked", status=400),
		],
		"live": {"1": {"rt_sha256": "x1", "revoked": False}, "2": {"rt_sha256": "x2", "revoked": False}, "3": {"rt_sha256": "x3", "revoked": True}},
		"rows": [
			{"id": "c1", "family": 1, "state": "callable", "health": "ok", "reason": "none", "doubts": 0, "rt_sha256": "x1", "expires_us": 120 * S, "life_us": 20 * S},
			{"id": "c2", "family": 2, "state": "callable", "health": "ok", "reason": "none", "doubts": 0, "rt_sha256": "x2", "expires_us": 120 * S, "life_us": 20 * S},
			{"id": "c3", "family": 3, "state": "invalid", "health": "needs_auth", "reason": "rotation_lost", "doubts": 1, "rt_sha256": "old", "expires_us": 40 * S, "life_us": 20 * S},
		],
		"claims": [
			{"id": "c1", "attempt": 1, "owner": 7, "t_us": 9 * S}, {"id": "c1", "attempt": 2, "owner": 7, "t_us": 19 * S},
			{"id": "c2", "attempt": 1, "owner": 7, "t_us": 10 * S}, {"id": "c2", "attempt": 2, "owner": 7, "t_us": 11 * S + 600},
			{"id": "c3", "attempt": 5, "owner": 7, "t_us": 28 * S}, {"id": "c3", "attempt": 6, "owner": 8, "t_us": 30 * S + 900000},
		],
		"writes": [{"id": "c1", "t_us": 10 * S + 900}, {"id": "c1", "t_us": 20 * S + 900}, {"id": "c2", "t_us": 12 * S + 900}],
		"spans": [{"kind": "death", "instance": "a", "from_us": 30 * S - 1000, "to_us": 30 * S, "journal": [["c1", 2]]}],
		"transitions": [
			{"xid": "1", "id": "c2", "was": ["callable", "ok"], "now": ["callable", "pending_refresh"], "t_us": 11 * S + 800},
			{"xid": "2", "id": "c2", "was": ["callable", "pending_refresh"], "now": ["callable", "ok"], "t_us": 12 * S + 900},
			{"xid": "3", "id": "c3", "was": ["callable", "ok"], "now": ["invalid", "needs_auth"], "t_us": 31 * S + 900},
		],
		"events": [{"xid": "1", "event_id": "e1", "id": "c2", "type": pending}, {"xid": "2", "event_id": "e2", "id": "c2", "type": recovered},
			{"xid": "3", "event_id": "e3", "id": "c3", "type": failed}],
		"sink": [delivery("e1", pending), delivery("e2", recovered), delivery("e2", recovered, 2), delivery("e3", failed)],
	}


def presented_twice(e):
	e["ledger"].append(line(1, "rt1", 15 * S, 15 * S + 500, "reuse_revoked", status=400))


def journalled_and_again(e):
	e["spans"][0]["journal"].append(["c3", 5])


def slow_to_journal(e):
	e["ledger"][4]["t_done_us"] = 28 * S + 500000


def nobody_died(e):
	e["spans"] = []


def died_elsewhere(e):
	e["spans"][0]["instance"] = "b"


def committed_and_again(e):
	e["writes"].append({"id": "c3", "t_us": 30 * S - 500})


def short_stop(e):
	e["spans"] = [{"kind": "stop", "instance": "a", "from_us": 29 * S, "to_us": 32 * S}]


def at_once(e):
	e["ledger"][1:2] = [line(1, "rt2", 20 * S, 20 * S + 500), line(1, "rt2", 20 * S + 300, 20 * S + 900, "reuse_revoked", status=400)]


def flagged(e):
	e["ledger"][3]["overlap"] = True


def stale_token(e):
	e["rows"][0]["rt_sha256"] = "older"


def revoked_unseen(e):
	e["live"]["1"]["revoked"] = True


def marked_alive(e):
	e["live"]["3"] = {"rt_sha256": "old", "revoked": False}


def wrong_reason(e):
	e["rows"][2]["reason"] = "invalid_grant"


def lost_in_grace(e):
	e["mode"] = "grace"


def lost_without_cause(e):
	e["ledger"] = [x for x in e["ledger"] if x["family"] != 3]


def left_in_journal(e):
	e["unfinished"] = [["c1", 2]]


def unknown_family(e):
	del e["live"]["2"]


def refreshed_late(e):
	e["late"] = [{"id": "c1", "expired_us": 19 * S, "refreshed_us": 20 * S}]


def expired_row(e):
	e["rows"][0]["expires_us"] = 99 * S


def too_long_between(e):
	e["life_us"] = 9 * S


def no_event(e):
	del e["events"][0], e["sink"][0]


def wrong_event(e):
	e["events"][0]["type"] = "vault.connection.updated"
	e["sink"][0] = delivery("e1", "vault.connection.updated")


def other_transaction(e):
	e["events"][0]["xid"] = "9"


def undelivered(e):
	e["sink"][0]["status"] = 500


def forged(e):
	e["sink"][0]["body"] += " "


def changed_id(e):
	e["sink"][2] = delivery("e9", "vault.connection.token_refresh.recovered", 2)


def changed_body(e):
	e["sink"][2] = delivery("e2", "vault.connection.token_refresh.recovered", 2, reason="else")


def shrank(e):
	e["shrunk"] = [{"id": "c1", "was": 5, "became": 4}]


BROKEN = {
	"I1": [presented_twice, journalled_and_again, slow_to_journal, nobody_died, died_elsewhere, committed_and_again, short_stop],
	"I2": [at_once, flagged],
	"I3": [stale_token, revoked_unseen, marked_alive, wrong_reason, lost_in_grace, lost_without_cause, left_in_journal, unknown_family],
	"I4": [refreshed_late, expired_row, too_long_between],
	"I5": [no_event, wrong_event, other_transaction, undelivered, forged, changed_id, changed_body],
	"I8": [shrank],
}


def long_stop(e):
	e["spans"] = [{"kind": "stop", "instance": "a", "from_us": 29 * S, "to_us": 95 * S}]
	e["ledger"][5].update(t_recv_us=89 * S, t_done_us=89 * S + 500)
	e["claims"][5].update(owner=9, t_us=88 * S + 500000)
	e["transitions"][2]["t_us"] = 90 * S


def cut_off(e):
	e["spans"] = [{"kind": "cut", "instance": "a", "from_us": 29 * S, "to_us": 30 * S}]


def outage(e):
	refreshed_late(e)
	e["spans"].append({"kind": "outage", "from_us": 17 * S, "to_us": 18 * S})


def held_by_the_stopped(e):
	e["late"] = [{"id": "c1", "expired_us": 19 * S + 500000, "refreshed_us": 20 * S}]
	e["spans"].append({"kind": "stop", "instance": "a", "from_us": 19 * S + 1000, "to_us": 19 * S + 900000})


def failing(e):
	e["late"] = [{"id": "c2", "expired_us": 11 * S + 900, "refreshed_us": 12 * S}]


def in_doubt(e):
	e["rows"][1].update(rt_sha256="older", doubts=1)


def revoked_on_purpose(e):
	e["revoked"] = [1]
	e["live"]["1"]["revoked"] = True
	e["rows"][0].update(state="invalid", health="needs_auth", reason="invalid_grant")


def crafted(tap, world):
	del world
	verdict = j.judge(history())
	tap.equal("a good history is clean", verdict.text(), "")
	tap.equal("its one loss is in the window, with its width", [(x["kind"], x["width_us"], x["since_rotation_us"]) for x in verdict.excused],
		[("window", 2000, S)])
	for name, faults in BROKEN.items():
		for break_it in faults:
			e = copy.deepcopy(history())
			break_it(e)
			got = j.judge(e)
			tap.check("%s: %s" % (name, break_it.__name__.replace("_", " ")), name in got.named(), got.named())
	for change in (long_stop, cut_off, outage, held_by_the_stopped, failing, in_doubt, revoked_on_purpose):
		e = copy.deepcopy(history())
		change(e)
		tap.equal("no violation: %s" % change.__name__.replace("_", " "), j.judge(e).text(), "")
	try:
		j.judge({"legder": []})
		tap.check("a misspelt field is refused", False)
	except ValueError:
		tap.check("a misspelt field is refused", True)


# ---------------------------------------------------------------- real daemons, broken

def fleet_of(world, name, mutant, **more):
	fleet = Fleet(world, name, "strict", program=scene.TORTURED, connections=60, life_s=400, **more)
	if mutant:
		for v in fleet.vaults:
			v.wrap = ["env", "REFRESHD_MUTANT=" + mutant]
	fleet.start()
	return fleet


def verdict_of(fleet, mutant):
	"""A broken one need not come to rest: it is judged by what is there after a while."""
	if mutant:
		fleet.load(1.0)
		pause(4)
	else:
		fleet.quiesce(30)
	for v in fleet.vaults:
		v.stop()
	return fleet.judge(None, "", 0, stop=False, show=False)


def ordinary(world, name, mutant):
	"""resend: nothing happens but refreshes."""
	fleet = fleet_of(world, name, mutant)
	pause(1)
	fleet.load(1.0)
	pause(1)
	return verdict_of(fleet, mutant)


def held_database(world, name, mutant):
	"""journal_off: answers wait for the database, and the process dies."""
	fleet = fleet_of(world, name, mutant)
	lock = subprocess.Popen([os.path.join(world.pg.bindir, "psql"), "-X", "-q", "-d", world.pg.url(fleet.first.dbname), "-c",
		"BEGIN; SET application_name = 'holder'; LOCK TABLE refreshd.credential IN EXCLUSIVE MODE; SELECT pg_sleep(60)"],
		env=clean_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
	sim = world.sim
	fleet.load(1.0)
	seen = sim.stats(fleet.realm)["rotated"]
	wait_until("answers that cannot be written", lambda: sim.stats(fleet.realm)["rotated"] >= seen + 10, 20)
	pause(1.5)
	fleet.kill(fleet.first)
	# What the dead one had sent must not be committed after it; then the lock goes.
	others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
	fleet.first.sql("SELECT pg_terminate_backend(pid) %s" % others)
	wait_until("its sessions to end", lambda: fleet.first.sql("SELECT count(*) %s" % others) == "0")
	lock.wait()
	fleet.first.start()
	return verdict_of(fleet, mutant)


def zombie(world, name, mutant):
	"""fence_off: one of two is stopped with requests out, is taken for dead by the other, and comes back."""
	fleet = fleet_of(world, name, mutant, daemons=2, delay_ms=1500, jitter_ms=500)
	v = fleet.first
	wait_until("requests of both", lambda: all(x.metrics().get("refresh_in_flight") > 0 for x in fleet.vaults), 20)
	stopped = fleet.stop(v)
	fleet.presumed_dead(v)
	wait_until("the other to have all slots", lambda: fleet.vaults[1].metrics().get("slots") == 1024, 20)
	pause(5)
	fleet.cont(v, stopped)
	pause(3)
	return verdict_of(fleet, mutant)


def mutant_of(tap, world, run, mutant, names):
	clean = run(world, "whole-" + mutant.replace("_", "-"), None)
	tap.equal("%s: the same without it is clean (%d presentations)" % (mutant, clean.figures["presentations"]), clean.text(), "")
	broken = run(world, mutant.replace("_", "-"), mutant)
	tap.check("%s: is caught, as %s" % (mutant, " or ".join(names)), set(names) & set(broken.named()), broken.named())
	tap.note("%s: %d violations of %s in %d presentations" % (mutant, len(broken.violations), broken.named(), broken.figures["presentations"]))


def mutant_resend(tap, world):
	mutant_of(tap, world, ordinary, "resend", ["I1"])


def mutant_journal_off(tap, world):
	mutant_of(tap, world, held_database, "journal_off", ["I1"])


def mutant_fence_off(tap, world):
	mutant_of(tap, world, zombie, "fence_off", ["I1", "I2"])


def main():
	tap = w.Tap()
	with w.World("judge") as world:
		tap.run([crafted, mutant_resend, mutant_journal_off, mutant_fence_off], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
