#!/usr/bin/env python3
"""Answers that come when the row is not theirs any more, with the real daemon, database and provider. TAP on stdout.

The provider rotates strictly and takes its time; meanwhile the row is taken over, imported again, or given other settings. What is
believed at the end is the provider's own view. tests/sim/test_fence.c has the cases one by one.
"""
import copy
import json
import sys
import time

import world as w
from world import wait_until


def due_now(lines):
	for x in lines:
		x["credentials"].pop("expires_in", None)
		x["credentials"].pop("issued_at", None)
	return lines


def in_flight(world, name, revoked=False):
	"""A daemon with one request that is out for a second; and the line that was imported."""
	world.sim.realm(name, mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=1000)
	v = world.vault(name, {name: {}})
	lines = due_now(world.sim.mint(name, 1))
	v.import_lines(copy.deepcopy(lines))
	if revoked:
		world.sim.revoke(name, 0)
	v.start()
	wait_until("the request", lambda: world.sim.stats(name)["requests"] == 1 or len(world.sim.ledger(name)) == 1 or
		v.count("refreshd.schedule WHERE lease_owner IS NOT NULL") == 1, 20)
	return v, lines


def orphan(v, resolution):
	return "SELECT count(*) FROM refreshd.orphan_token WHERE %s" % ("resolution = '%s'" % resolution if resolution else "resolved_at IS NULL")


def taken_over(tap, world):
	v, _ = in_flight(world, "taken")
	v.sql("UPDATE refreshd.schedule SET attempt_id = 1, lease_owner = -1, lease_until = now() + interval '1 hour'")
	wait_until("the merge", lambda: v.sql(orphan(v, "merged")) == "1", 20)
	w.judge_tokens(tap, world.sim, v, "taken")
	tap.equal("counted", v.metrics().get("orphans_total", fate="merged"), 1)
	wait_until("quiet", v.quiet, 10)
	tap.equal("the other keeps its lease, its attempt is void", v.count("refreshd.schedule WHERE attempt_id = 0 AND lease_owner = -1"), 1)
	tap.equal("told", len(v.logged("refresh.merged")), 1)
	tap.equal("an operator has nothing to do", v.ctl("orphans", "list").stdout.count("\n"), v.ctl("orphans", "list", "--all").stdout.count("\n") - 1)
	tap.equal("stops with 0", v.stop(), 0)


def imported_again(tap, world):
	v, lines = in_flight(world, "again")
	v.import_lines(copy.deepcopy(lines))
	wait_until("the merge", lambda: v.sql(orphan(v, "merged")) == "1", 20)
	w.judge_ledger(tap, world.sim, "again")
	w.judge_tokens(tap, world.sim, v, "again")
	tap.equal("stops with 0", v.stop(), 0)


def imported_another(tap, world):
	v, lines = in_flight(world, "another")
	other = copy.deepcopy(lines)
	other[0]["credentials"]["refresh_token"] = world.sim.mint("another", 1)[0]["credentials"]["refresh_token"]
	other[0]["credentials"]["expires_in"] = 3600
	other[0]["credentials"]["issued_at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
	v.import_lines(other)
	wait_until("the orphan", lambda: v.sql(orphan(v, "")) == "1", 20)
	wait_until("the verdict", lambda: v.metrics().get("orphans_total", fate="kept") == 1, 20)
	tap.equal("it is not written", v.count("refreshd.credential WHERE refreshes > 0"), 0)
	tap.equal("the alarm says so", len(v.logged("refresh.orphaned")), 1)
	tap.equal("stops with 0", v.stop(), 0)


def killed_before_the_merge(tap, world):
	"""The database is away when the answer comes; the daemon dies; another one has taken the row over when it is back."""
	v, _ = in_flight(world, "dead")
	world.pg.stop()
	wait_until("the answer in the journal", lambda: v.metrics().get("journal_records") == 1, 20)
	v.kill()
	world.pg.start()
	v.sql("UPDATE refreshd.schedule SET attempt_id = 1, lease_owner = -1, lease_until = now() + interval '1 hour'")
	v.start()
	wait_until("the merge", lambda: v.sql(orphan(v, "merged")) == "1", 20)
	w.judge_tokens(tap, world.sim, v, "dead")
	tap.equal("one presentation", len(world.sim.ledger("dead")), 1)
	tap.equal("stops with 0", v.stop(), 0)


def settings_changed(tap, world):
	v, _ = in_flight(world, "changed", revoked=True)
	v.sql("UPDATE refreshd.connection SET updated_at = now()")
	wait_until("the verdict not taken", lambda: v.logged("refresh.settings_changed"), 20)
	tap.equal("the connection is as it was", v.count("refreshd.connection WHERE state = 'callable' AND health = 'ok'"), 1)
	wait_until("the verdict with the new settings", lambda: v.count("refreshd.connection WHERE health = 'needs_auth'") == 1, 20)
	tap.equal("two presentations", len(world.sim.ledger("changed")), 2)
	tap.equal("one event", v.event_counts().get("failed"), 1)
	tap.equal("stops with 0", v.stop(), 0)


def in_doubt(tap, world):
	"""The provider rotates and its answer is cut: in doubt, then lost; its own reason, counter, event, and place in the list."""
	world.sim.realm("doubt", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	world.sim.fault("doubt", "die_after", family=0)
	world.sim.fault("doubt", "error", family=0, n=2, arg="503:temporarily_unavailable")
	v = world.vault("doubt", {"doubt": {}})
	v.import_lines(due_now(world.sim.mint("doubt", 1)) + due_now(world.sim.mint("doubt", 1)))
	v.start()
	wait_until("one in doubt", lambda: v.count("refreshd.schedule WHERE doubts = 1") == 1, 20)
	rows = json.loads(v.ctl("--json", "list", "--in-doubt").stdout)
	tap.equal("it is listed", [(x["doubts"], x["rotation"], x["reason"] != "none", x["due_at"] is not None, x["first_failed_at"] is not None)
		for x in rows], [(1, "strict", True, True, True)])
	wait_until("lost", lambda: v.count("refreshd.connection WHERE reason = 'rotation_lost'") == 1, 60)
	tap.equal("counted", v.metrics().get("rotation_lost_total"), 1)
	tap.equal("logged", len(v.logged("refresh.rotation_lost")), 1)
	tap.equal("told", [e[:2] for e in v.events() if e[1] == "rotation_lost"], [("vault.connection.token_refresh.failed", "rotation_lost")])
	text = v.ctl("list", "--in-doubt").stdout
	tap.check("and listed to the end", "rotation_lost" in text and "strict" in text and len(text.splitlines()) == 2, text)
	w.judge_tokens(tap, world.sim, v, "doubt", all_good=False)
	tap.equal("stops with 0", v.stop(), 0)


def main():
	tap = w.Tap()
	with w.World("fence") as world:
		tap.run([taken_over, imported_again, imported_another, killed_before_the_merge, settings_changed, in_doubt], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
