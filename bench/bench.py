#!/usr/bin/env python3
"""make bench: measures, writes bench/results.json and docs/benchmarks.md. BENCH=long for the long form.

Arguments pick some of the measurements (imports, refreshes, idle, naive); the others keep what the results hold. --report only writes
docs/benchmarks.md again.
"""
import collections
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time

import idle
import imports
import naive
import parts
import refreshes
import report
from parts import TOP, say
from pgcluster import pg_bindir

RESULTS = os.path.join(TOP, "bench", "results.json")
PAGE = os.path.join(TOP, "docs", "benchmarks.md")
MEASURES = [("imports", imports.measure), ("refreshes", refreshes.measure), ("idle", idle.measure), ("naive", naive.measure)]
Form = collections.namedtuple("Form", "name runs imports connections window_s naive_s idle_s rows takes")
FORMS = {
	"short": Form("short", 3, 20000, 40000, 5, 3, 8, 1000000, "4 minutes, on a machine that does nothing else"),
	"long": Form("long", 5, 100000, 200000, 30, 15, 60, 1000000, "20 minutes, on a machine that does nothing else"),
}


def first_line(argv):
	try:
		done = subprocess.run(argv, cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
	except OSError:
		return None
	return done.stdout.split("\n")[0].strip() if done.returncode == 0 else None


def machine():
	"""One line about what it ran on."""
	with open("/proc/cpuinfo") as f:
		model = next((x.split(":", 1)[1].strip() for x in f if x.startswith("model name")), platform.machine())
	memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
	postgres = first_line([os.path.join(pg_bindir(), "postgres"), "--version"])
	return "%d x %s, %.0f GiB, Linux %s, %s" % (os.cpu_count(), model, memory, platform.release(), postgres)


def commit():
	name = first_line(["git", "rev-parse", "HEAD"])
	if name and first_line(["git", "status", "--porcelain", "--untracked-files=no", "--", "src"]):
		name += " with changes"
	return name or "not in git"


def read_results():
	try:
		with open(RESULTS) as f:
			return json.load(f)
	except FileNotFoundError:
		return {}


def write(path, text):
	with open(path + ".tmp", "w") as f:
		f.write(text)
	os.replace(path + ".tmp", path)


def save(results):
	write(RESULTS, json.dumps(results, indent=1, sort_keys=True) + "\n")
	write(PAGE, report.page(results))


def main():
	signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is cleaned up
	wanted = sys.argv[1:]
	results = read_results()
	if wanted == ["--report"]:
		write(PAGE, report.page(results))
		return 0
	unknown = set(wanted) - {name for name, _ in MEASURES}
	form = FORMS.get(os.environ.get("BENCH") or "short")
	if unknown or form is None:
		print("bench: %s is not one of: %s" % (", ".join(sorted(unknown)) or "BENCH", ", ".join(n for n, _ in MEASURES) if unknown
			else ", ".join(FORMS)), file=sys.stderr)
		return 2
	say("the %s form takes about %s" % (form.name, form.takes))
	began = time.monotonic()
	for name, fn in MEASURES:
		if wanted and name not in wanted:
			continue
		say(name)
		results.update(fn(form))
		results.update({"machine": machine(), "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
			"commit": commit(), "form": form.name})
		results.setdefault("measured", {})[name] = {k: results[k] for k in ("date", "commit", "form")}
		save(results)
	say("%.0f s; results in %s and %s" % (time.monotonic() - began, os.path.relpath(RESULTS), os.path.relpath(PAGE)))
	return 0


if __name__ == "__main__":
	sys.exit(main())
