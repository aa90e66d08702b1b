#!/usr/bin/env python3
"""How many instructions a refresh costs the daemon, against what it cost when the baseline was taken.

	guard.py            fails when a figure is more than a tenth above that of bench/guard.json
	guard.py --update   writes bench/guard.json
	guard.py --keep F   leaves callgrind's output in F, for callgrind_annotate

Time on a shared machine hides a loss of 10 % in its noise; instructions do not. A real daemon under callgrind refreshes a fixed number of
connections against the simulator over TLS, with a real Postgres. Counted is what it executes outside of the kernel between two moments
at which nothing is due, with the connections to the provider open already. Left out: the kernel, Postgres, the provider and
handshakes. What is left to chance is how many answers come in one turn of the loop: more on a busy
machine, which is up to 8 % of the allocations less. So the baseline is of one that does nothing else.

Libraries differ between systems, so with others than those of the baseline only our own code and the number of allocations count.
"""
import argparse
import json
import os
import re
import shutil
import sys
import time

import parts
from parts import HERE, output, say, wait_until

BASELINE = os.path.join(HERE, "guard.json")
WARM, COUNTED, IN_FLIGHT = 200, 1000, 16
DELAY_MS = 50  # of the provider, so that all that may be in flight are, and have their connections from the start
TOLERANCE = 1.10
COMPONENTS = ["refreshd", "libc", "libcurl", "libcrypto", "libssl", "libjson-c", "libpq", "libevent"]


# What a refresh is made of: functions that none of the others calls, with all that is below them.
STEPS = (
	("the row's tokens are opened", ["settle_facts_init"]),
	("the request is built", ["grant_build"]),
	("the request is set up in libcurl", ["httpc_start"]),
	("libcurl, TLS and sockets", ["curl_multi_socket_action"]),
	("the answer is sealed for the journal", ["reply_encode"]),
	("the journal writes it", ["journal_store_stage", "journal_store_flush"]),
	("the answer is read", ["grant_classify"]),
	("decided, and the new tokens sealed", ["settle_answer"]),
	("statements are put together and sent", ["store_claim", "store_persist", "pgconn_submit"]),
	("libpq reads what the database answers", ["PQconsumeInput", "PQgetResult", "PQisBusy"]),
)


def component(path):
	name = os.path.basename(path)
	return next((c for c in COMPONENTS if re.match(re.escape(c) + r"($|[-_.])", name)), "other")


class Profile:
	"""What was executed by object and by function, and calls by function, out of a callgrind file."""

	KINDS = {"ob": "ob", "cob": "ob", "fn": "fn", "cfn": "fn", "fl": "fl", "fi": "fl", "fe": "fl", "cfi": "fl", "cfl": "fl"}

	def __init__(self, path):
		self.objects, self.calls, self.inclusive, self.paths, self.names = {}, {}, {}, set(), {}
		obj = fn = callee = None
		with open(path, errors="replace") as f:
			for line in f:
				key, eq, value = line.rstrip("\n").partition("=")
				if eq and key in self.KINDS:
					name = self.name(self.KINDS[key], value)
					if key == "ob":
						obj = component(name)
						self.paths.add(name)
					elif key == "fn":
						fn = name
					elif key == "cfn":
						callee = name
				elif eq and key == "calls":
					self.calls[callee] = self.calls.get(callee, 0) + int(value.split()[0])
					cost = int(next(f).split()[1])  # of all below the call: as a cost of its own it is counted where it was spent
					self.inclusive[callee] = self.inclusive.get(callee, 0) + cost
				elif line[:1] in set("0123456789+-*") and fn is not None:
					cost = int(line.split()[1])
					self.objects[obj] = self.objects.get(obj, 0) + cost

	def name(self, kind, text):
		"""A name is written out once and is a number from then on."""
		m = re.match(r"\((\d+)\)(?: (.*))?$", text)
		if not m:
			return text
		if m.group(2) is not None:
			self.names[kind, m.group(1)] = m.group(2)
		return self.names[kind, m.group(1)]

	def allocations(self):
		return sum(n for name, n in self.calls.items() if re.match(r"(malloc|calloc|realloc)(@|'|$)", name))

	def libraries(self):
		"""Their files; another build has another size."""
		paths = {os.path.realpath(p) for p in self.paths if component(p) not in ("refreshd", "other")}
		return sorted("%s, %d bytes" % (os.path.basename(p), os.path.getsize(p)) for p in paths)


def instrument(v, state):
	output(["callgrind_control", "--instr=" + state, str(v.proc.pid)], 60)


def work(place, v, realm, n, total):
	"""All of n more connections, which are due at once, and back to rest. The daemon is not asked how far it is: that would be counted."""
	v.import_lines(place.sim.mint(realm, n, expires_in=1, issued_ago=3600))
	wait_until("%d refreshes" % total, lambda: v.sql("SELECT sum(refreshes) FROM refreshd.credential") == str(total), 300)
	s = place.sim.stats(realm)
	if s["refresh_ok"] != total:
		raise RuntimeError("%d refreshes instead of %d" % (s["refresh_ok"], total))
	return s["connections_accepted"]


def attempt(place, run, out, counted):
	"""None: a connection was lost and made again meanwhile."""
	realm = "guard%d" % run
	place.realm(realm, at_ttl=86400, delay_ms=DELAY_MS)
	v = place.vault(realm, realm, {"max_in_flight": IN_FLIGHT}, refresh={"max_in_flight": IN_FLIGHT, "poll_interval": "1s"})
	v.conf["log"]["level"] = "warning"
	v.write_conf()
	v.wrap = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=" + out]
	v.start(timeout_s=120)
	before = work(place, v, realm, WARM, WARM)
	instrument(v, "on")
	after = work(place, v, realm, counted, WARM + counted)
	instrument(v, "off")
	v.stop()
	return Profile(out) if before == after else None


def measure(keep=None, counted=COUNTED):
	"""A profile of so many refreshes."""
	with parts.Place("guard") as place:
		for run in range(3):
			found = attempt(place, run, keep or os.path.join(place.dir, "callgrind.out.%d" % run), counted)
			if found is not None:
				return found
			say("a connection was lost; once more")
	raise RuntimeError("connections to the provider do not stay open")


def figures(p, counted=COUNTED):
	per = {c: round(p.objects.get(c, 0) / counted) for c in COMPONENTS + ["other"]}
	return {"instructions": per, "total": sum(per.values()), "allocations": round(p.allocations() / counted, 1), "libraries": p.libraries()}


def profile(form):
	"""For the report: where the instructions of a refresh go."""
	if shutil.which("valgrind") is None:
		return {"profile": {"skipped": "valgrind is not installed"}}
	counted = COUNTED if form.name != "smoke" else COUNTED // 10
	p = measure(counted=counted)
	d = figures(p, counted)
	steps = {step: round(sum(p.inclusive.get(fn, 0) for fn in functions) / counted) for step, functions in STEPS}
	steps["everything else"] = d["total"] - sum(steps.values())
	return {"profile": {"instructions": d["instructions"], "steps": steps, "allocations": d["allocations"], "total": d["total"], "refreshes": counted}}


def compare(new, old):
	"""Lines about each figure, and whether one is too large."""
	same = new["libraries"] == old["libraries"]
	rows = [("own code", new["instructions"]["refreshd"], old["instructions"]["refreshd"]), ("allocations", new["allocations"], old["allocations"])]
	if same:
		rows.append(("with libraries", new["total"], old["total"]))
	bad = [r for r in rows if r[1] > r[2] * TOLERANCE]
	for r in rows:
		say("%s: %s, baseline %s (%+.1f %%)%s" % (r[0], r[1], r[2], (r[1] / r[2] - 1) * 100, ": too many" if r in bad else ""))
	if not same:
		say("other libraries than those of the baseline: their instructions are not compared")
	return not bad


def main():
	ap = argparse.ArgumentParser(description="Instructions of a refresh against the baseline.")
	ap.add_argument("--update", action="store_true", help="write the baseline")
	ap.add_argument("--keep", metavar="FILE", help="leave callgrind's output there")
	a = ap.parse_args()
	began = time.monotonic()
	p = measure(a.keep)
	new = figures(p)
	say("a refresh takes %d instructions and %.1f allocations (%.0f s)" % (new["total"], new["allocations"], time.monotonic() - began))
	for c, n in sorted(new["instructions"].items(), key=lambda kv: -kv[1]):
		say("  %-10s %7d" % (c, n))
	if a.update:
		with open(BASELINE, "w") as f:
			json.dump(new, f, indent=1, sort_keys=True)
			f.write("\n")
		return 0
	with open(BASELINE) as f:
		return 0 if compare(new, json.load(f)) else 1


if __name__ == "__main__":
	sys.exit(main())
