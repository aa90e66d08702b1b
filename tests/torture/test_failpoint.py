#!/usr/bin/env python3
"""The places where the torture tests kill the daemon are really passed, and nothing of them is in the daemon that is installed.

Every name of FAILPOINT_LIST (src/base/failpoint.h): a daemon that is told to die there dies there, of SIGKILL, and not before; what
it left behind says where it was. Every name of MUTANT_LIST: the judge of tests/integration/world.py sees what is broken. TAP on stdout.
"""
import os
import re
import signal
import subprocess
import sys

TOP = os.environ.get("TOP_SRCDIR") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(TOP, "tests", "integration"))
import world as w
from world import wait_until

TORTURED = os.path.join(w.BUILD, "tests/torture/refreshd")
HEADER = os.path.join(TOP, "src/base/failpoint.h")


def names(macro):
	with open(HEADER) as f:
		text = re.search(r"#define %s\(X\)(.*?[^\\])\n" % macro, f.read(), re.S).group(1)
	return re.findall(r"X\((\w+)\)", text)


# name -> what is there when the process is dead: presentations in the ledger, open records in the journal
LEFT = {
	"before_intent": (0, 0),
	"after_intent": (0, 0),
	"sent": (1, 0),
	"half_reply": (1, 0),
	"whole_reply": (1, 0),
	"journalled": (1, 1),
	"committed": (1, 1),
	"before_webhook": None,  # the import has an event as well
}


def end_with(v, **env):
	"""Starts the tortured daemon with these variables set."""
	v.wrap = ["env"] + ["REFRESHD_%s=%s" % kv for kv in env.items()]
	v.start(ready=False)


def import_due(v, lines):
	"""Without a life an imported token is due at once."""
	for x in lines:
		x["credentials"].pop("expires_in", None)
		x["credentials"].pop("issued_at", None)
	v.import_lines(lines)


def open_records(v):
	return sum(line.split()[-1] == "open" for line in v.ctl("journal", "list").stdout.splitlines() if line[:1].isdigit() and len(line.split()) > 4)


def points(tap, world):
	tap.equal("every point has its check", sorted(names("FAILPOINT_LIST")), sorted(LEFT))
	for name in names("FAILPOINT_LIST"):
		realm = name.replace("_", "-")
		world.sim.realm(realm, mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
		v = world.vault("p-" + realm, {realm: {}}, webhooks=[{"name": "hook", "url": world.sim.sink_url(realm), "secret_file":
			os.path.join(world.dir, "hook"), "allow_private": True}])
		import_due(v, world.sim.mint(realm, 1))
		end_with(v, FAILPOINT="%s:1" % name)
		tap.equal("%s: killed there" % name, v.wait(30), -signal.SIGKILL)
		if LEFT[name] is None:
			tap.equal("%s: claimed" % name, v.count("refreshd.delivery WHERE lease_owner IS NOT NULL AND done_at IS NULL") > 0, True)
			tap.equal("%s: and not posted" % name, world.sim.sink(realm), [])
			continue
		presented, records = LEFT[name]
		wait_until("%s: the ledger" % name, lambda: len(world.sim.ledger(realm)) >= presented, 10)
		tap.equal("%s: presentations" % name, len(world.sim.ledger(realm)), presented)
		tap.equal("%s: open records in the journal" % name, open_records(v), records)
		leased = v.count("refreshd.schedule WHERE lease_owner IS NOT NULL")
		tap.equal("%s: the intent" % name, leased, 0 if name in ("before_intent", "committed") else 1)
		tap.equal("%s: the result" % name, v.count("refreshd.credential WHERE refreshes = 1"), int(name == "committed"))


def nth(tap, world):
	world.sim.realm("nth", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("nth", {"nth": {"max_in_flight": 1}})
	import_due(v, world.sim.mint("nth", 5))
	end_with(v, FAILPOINT="sent:3")
	tap.equal("the third time", v.wait(30), -signal.SIGKILL)
	wait_until("the ledger", lambda: len(world.sim.ledger("nth")) >= 3, 10)
	tap.equal("after the third request", len(world.sim.ledger("nth")), 3)


def wrong_words(tap, world):
	v = world.vault("wrong", {})
	for env in ({"FAILPOINT": "nowhere:1"}, {"FAILPOINT": "sent"}, {"FAILPOINT": "sent:0"}, {"MUTANT": "nothing"}):
		end_with(v, **env)
		tap.equal("a word that is not known ends it: %s" % env, v.wait(30), -signal.SIGABRT)


def mutants(tap, world):
	tap.equal("every mutant is tried", names("MUTANT_LIST"), ["journal_off", "fence_off", "resend"])
	world.sim.realm("resend", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("resend", {"resend": {}})
	import_due(v, world.sim.mint("resend", 1))
	end_with(v, MUTANT="resend")
	wait_until("the second presentation", lambda: len(world.sim.ledger("resend")) == 2, 20)
	tap.equal("resend: the judge sees it", len(w.presented_again(world.sim.ledger("resend"))), 1)

	world.sim.realm("unjournalled", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("unjournalled", {"unjournalled": {}})
	import_due(v, world.sim.mint("unjournalled", 1))
	end_with(v, MUTANT="journal_off", FAILPOINT="committed:1")
	tap.equal("journal_off: killed after the commit", v.wait(30), -signal.SIGKILL)
	tap.equal("journal_off: without a record", v.ctl("journal", "list").stdout.splitlines()[-1], "0 open, 0 done")

	# The row gets another token while our request is out: what we were told must not be written, unless the fence is off.
	for name, env in (("fenced", {"FAILPOINT": "committed:9"}), ("unfenced", {"MUTANT": "fence_off"})):
		world.sim.realm(name, mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=1500)
		v = world.vault(name, {name: {}})
		import_due(v, world.sim.mint(name, 1))
		end_with(v, **env)
		wait_until("the request", lambda: v.count("refreshd.schedule WHERE lease_owner IS NOT NULL") == 1, 20)
		v.sql("UPDATE refreshd.schedule SET attempt_id = 1, lease_owner = -1, lease_until = now() + interval '1 hour', token_version = token_version + 7;"
			" UPDATE refreshd.credential SET token_version = token_version + 7")
		wait_until("the result", lambda: v.count("refreshd.credential WHERE refreshes = 1") + v.count("refreshd.orphan_token") == 1, 20)
		tap.equal("%s: written over the other's attempt" % name, v.count("refreshd.credential WHERE refreshes = 1"), int(name == "unfenced"))


def no_trace(tap, world):
	del world
	for program in ("refreshd", "refreshctl"):
		with open(os.path.join(w.BUILD, program), "rb") as f:
			found = re.findall(rb"REFRESHD_FAILPOINT|REFRESHD_MUTANT|failpoint|before_intent|journal_off|fence_off|store_mutant", f.read())
		tap.equal("no trace of it in %s" % program, found, [])
	with open(TORTURED, "rb") as f:
		tap.check("and the same look finds it in the tortured one", b"REFRESHD_FAILPOINT" in f.read())
	tap.equal("the tortured one says its version like any other",
		subprocess.run([TORTURED, "--version"], stdout=subprocess.PIPE, text=True).stdout[:9], "refreshd ")


def main():
	tap = w.Tap()
	w.REFRESHD = TORTURED
	with w.World("failpoint") as world:
		with open(os.path.join(world.dir, "hook"), "w") as f:
			f.write(w.WEBHOOK_SECRET + "\n")
			os.fchmod(f.fileno(), 0o600)
		tap.run([points, nth, wrong_words, mutants, no_trace], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
