#!/usr/bin/env python3
"""The journal's disk breaks under load and is mended, with the real daemon: write and sync errors (a shim below libc), a limit on the
size of files, and a stop without a database. Nothing may be presented while the gate is shut, nothing lost or presented again, it
recovers by itself, and each event is one line of the log. TORTURE=long for 52 faults; TORTURE_DISKS for so many of each kind. TAP on stdout.

A file system that is really full, and rights that go: tests/integration/test_database.py. Damaged files: test_journal.
"""
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import world as w
from world import wait_until

ROUNDS = int(os.environ.get("TORTURE_DISKS") or (13 if os.environ.get("TORTURE") == "long" else 1))
SHIM = os.path.join(w.BUILD, "tests/torture/diskfault.so")
CONNECTIONS = 150


def under_load(world, name, at_len=200, preload=True):
	"""A daemon that refreshes all the time; and a function that breaks its disk."""
	world.sim.realm(name, mode="strict", at_ttl=4, at_len=at_len, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=20, jitter_ms=60)
	v = world.vault(name, {name: {"max_in_flight": 64}})
	control = v.write("disk", "")
	if preload:
		v.wrap = ["env", "LD_PRELOAD=" + SHIM, "DISKFAULT_CONTROL=" + control]
	v.import_lines(world.sim.mint(name, CONNECTIONS))
	v.start()
	wait_until("the first refreshes", lambda: world.sim.stats(name)["rotated"] > 50, 30)
	return v, lambda word: v.write("disk", word)


def settle(tap, world, v, name, fault=None):
	failed = tap.failed
	now = v.sql("SELECT now()")
	wait_until("everybody to be refreshed once more", lambda: v.count("refreshd.credential WHERE refreshed_at IS NULL OR refreshed_at < '%s'" % now) == 0, 60)
	wait_until("quiet", v.quiet, 20)
	tap.equal("it stops with 0", v.stop(), 0)
	w.judge_ledger(tap, world.sim, name)
	w.judge_tokens(tap, world.sim, v, name)
	tap.equal("no token is left beside its row", v.count("refreshd.orphan_token"), 0)
	tap.check("every line of the log is JSON", v.log_lines())
	if fault:  # a row of the table of make torture
		tap.note("torture: " + json.dumps({"fault": fault, "mode": "strict", "runs": ROUNDS, "violations": tap.failed - failed,
			"presentations": presentations(world, name), "lost": v.count("refreshd.connection WHERE reason = 'rotation_lost'"),
			"window": {"n": 0, "max_ms": 0}, "again_s": {}}))


def presentations(world, name):
	s = world.sim.stats(name)
	return s["requests"]


def nothing_while_shut(tap, world, v, name, seconds=1.5):
	wait_until("the gate to shut", lambda: v.metrics().get("journal_writable") == 0, 60)
	wait_until("what was out to come back", lambda: v.metrics().get("refresh_in_flight") == 0, 20)
	before, end = presentations(world, name), time.monotonic() + seconds
	wait_until("a while", lambda: time.monotonic() > end, 20)
	tap.equal("nothing is presented while the gate is shut", presentations(world, name), before)


def sync_error_once(tap, world):
	v, disk = under_load(world, "once")
	for _ in range(ROUNDS):
		given_up = len(v.logged("journal.file_given_up"))
		disk("fsync-once")
		wait_until("the file to be given up", lambda: len(v.logged("journal.file_given_up")) > given_up, 20)
		disk("")
		rotated = world.sim.stats("once")["rotated"]
		wait_until("refreshes again", lambda: world.sim.stats("once")["rotated"] > rotated + 50, 30)
	tap.equal("told once for each", len(v.logged("journal.file_given_up")), ROUNDS)
	m = v.metrics()
	tap.equal("counted", m.get("journal_faults_total", kind="io"), ROUNDS)
	tap.equal("what the file was to take went into the next one", m.get("journal_skipped_total"), 0)
	settle(tap, world, v, "once", "journal: one sync fails")


def broken(tap, world, name, word):
	v, disk = under_load(world, name)
	for i in range(ROUNDS):
		rotated = world.sim.stats(name)["rotated"]
		disk(word)
		nothing_while_shut(tap, world, v, name)
		disk("")
		wait_until("it to be writable again", lambda: v.metrics().get("journal_writable") == 1, 30)
		wait_until("refreshes again", lambda: world.sim.stats(name)["rotated"] > rotated + 50, 30)
		tap.equal("shut and open are a line each", (len(v.logged("journal.not_writable")), len(v.logged("journal.writable"))), (i + 1, i + 1))
	skipped, told = v.metrics().get("journal_skipped_total"), len(v.logged("journal.append_failed"))
	tap.check("replies without a place are told once a time (%d replies, %d lines)" % (skipped, told), told <= ROUNDS and (told > 0) == (skipped > 0))
	settle(tap, world, v, name, "journal: every %s fails" % {"fsync": "sync", "write": "write"}[word])


def sync_error(tap, world):
	broken(tap, world, "sync", "fsync")


def write_error(tap, world):
	broken(tap, world, "write", "write")


def limit_on_files(tap, world):
	"""A file may not be written any further: an error like any other, and not the signal that would end the process."""
	v, _ = under_load(world, "limit", at_len=8000, preload=False)

	def limit(soft):
		subprocess.run(["prlimit", "--pid", str(v.proc.pid), "--fsize=%s:" % soft], check=True)

	for _ in range(ROUNDS):
		limit(1 << 20)
		nothing_while_shut(tap, world, v, "limit")
		limit("unlimited")
		wait_until("it to be writable again", lambda: v.metrics().get("journal_writable") == 1, 30)
	tap.check("told once a time", len(v.logged("journal.append_failed")) <= ROUNDS)
	settle(tap, world, v, "limit", "journal: no file may grow")


def stop_without_database(tap, world):
	v, _ = under_load(world, "alone", preload=False)
	world.pg.stop()
	wait_until("answers in hand", lambda: v.metrics().get("journal_records") > 0, 20)
	wait_until("nothing out", lambda: v.metrics().get("refresh_in_flight") == 0, 20)
	kept, began = v.metrics().get("journal_records"), time.monotonic()
	tap.equal("it stops with 0", v.stop(40), 0)
	took = time.monotonic() - began
	tap.check("at once, as there is nothing to wait for (%.1f s)" % took, took < 15)
	tap.equal("and says what it leaves", [x["count"] for x in v.logged("refresh.left_in_journal")], [kept])
	tap.equal("not at the deadline", v.logged("daemon.drain_deadline"), [])
	world.pg.start()
	v.start()
	tap.equal("the next start brings it in", [x["count"] for x in v.logged("daemon.replayed")], [kept])
	settle(tap, world, v, "alone")


def main():
	tap = w.Tap()
	with w.World("disk") as world:
		tap.run([sync_error_once, sync_error, write_error, limit_on_files, stop_without_database], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
