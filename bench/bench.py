#!/usr/bin/env python3
"""make bench: measures, writes bench/results.json, docs/benchmarks.md and its pictures. BENCH=long for the long form,
BENCH=smoke to see whether all of it runs.

	bench.py [NAME]...      these measurements only; the others keep what the results hold
	bench.py --missing      those that the results do not have of this form and commit: goes on where an earlier run ended
	bench.py --list         their names, and how long they take
	bench.py --report       only writes the page and the pictures again
	bench.py --check        whether the results are whole, and page and pictures are what they give
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
import traceback

import bloat
import guard
import hour
import idle
import imports
import lateness
import latency
import naive
import parts
import peers
import refreshes
import report
import tables
from parts import TOP, say
from pgcluster import pg_bindir

IN_TREE = os.path.join("bench", "results.json")
MILLION, TEN_MILLION = 1000000, 10000000
Measure = collections.namedtuple("Measure", "name fn keys short_s long_s")
# keys: what it may write of the results. Seconds: on a quiet machine of two cores; short_s None: in the short form only by its name.
MEASURES = [
	Measure("refreshes", refreshes.measure, ("refresh_tls",), 100, 1000),
	Measure("profile", guard.profile, ("profile",), 30, 30),
	Measure("naive", naive.measure, ("node_undici", "node_sequential"), 100, 500),
	Measure("imports", imports.measure, ("import_api", "import_file"), 60, 400),
	Measure("latency", latency.measure, ("latency_200ms", "tls_connect"), 120, 600),
	Measure("peers", peers.measure, ("http2", "tls_connect"), 150, 800),
	Measure("lateness", lateness.measure, ("lateness_half_rate", "lateness_tenth_rate", "webhooks"), 240, 1000),
	Measure("idle", idle.measure, ("idle", "rows"), 90, 400),
	Measure("tables", lambda form: tables.measure(form, (SMOKE_ROWS if form.name == "smoke" else MILLION,)), tables.KEYS, 240, 800),
	Measure("hour", hour.measure, ("compressed_hour",), 110, 1200),
	Measure("postgres", bloat.measure, ("postgres",), 100, 720),
	Measure("tables_10m", lambda form: tables.measure(form, (TEN_MILLION,)), tables.KEYS, None, 2700),
]
Form = collections.namedtuple("Form", "name runs imports connections window_s naive_s idle_s rows paced_s events hour_rows hour_life_s hour_s "
	"bloat_rows bloat_s bloat_runs")
FORMS = {
	"short": Form("short", 3, 100000, 40000, 5, 3, 20, 1000000, 8, 150000, 40000, 60, 75, 40000, 60, 1),
	"long": Form("long", 5, 100000, 200000, 30, 15, 60, 1000000, 30, 500000, 1000000, 600, 660, 100000, 600, 1),
	# Whether everything runs: figures of it are worth nothing and stay in the build folder.
	"smoke": Form("smoke", 1, 1000, 8000, 1, 1, 2, 20000, 2, 40000, 4000, 20, 20, 6000, 12, 1),
}
SMOKE_ROWS = 50000


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


def read_results(top):
	try:
		with open(os.path.join(top, IN_TREE)) as f:
			return json.load(f)
	except FileNotFoundError:
		return {}


def write(path, text):
	with open(path + ".tmp", "w") as f:
		f.write(text)
	os.replace(path + ".tmp", path)


def save(results, top):
	report.fill_missing(results)
	write(os.path.join(top, IN_TREE), json.dumps(results, indent=1, sort_keys=True) + "\n")
	for path, text in report.files(results).items():
		write(os.path.join(top, path), text)


def where(form):
	"""The folder whose bench/ and docs/ are written."""
	if form.name != "smoke":
		return TOP
	top = os.path.join(parts.w.BUILD, "bench", "smoke")
	for name in ("bench", "docs"):
		os.makedirs(os.path.join(top, name), exist_ok=True)
	return top


def merge(into, new):
	"""Below its top key a measurement replaces only what it has measured: two may share one. A spread is one value."""
	for k, x in new.items():
		both = isinstance(x, dict) and isinstance(into.get(k), dict)
		if both and not any(report.is_spread(d) or "skipped" in d for d in (x, into[k])):
			merge(into[k], x)
		else:
			into[k] = x


# ---------------------------------------------------------------- one measurement

def stolen():
	"""Ticks of all cores, and of them those that the hypervisor took."""
	with open("/proc/stat") as f:
		ticks = [int(x) for x in f.readline().split()[1:9]]
	return sum(ticks), ticks[7]


def now():
	return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def run(m, form, results):
	"""False: it failed, and the results are as they were."""
	began, load, ticks = time.monotonic(), os.getloadavg(), stolen()
	say("%s (load %.2f)" % (m.name, load[0]))
	try:
		found = m.fn(form)
	except Exception:
		traceback.print_exc()
		say("%s failed; the results keep what they had of it" % m.name)
		return False
	all_ticks, taken = (b - a for a, b in zip(ticks, stolen()))
	merge(results, {k: x for k, x in found.items() if k in m.keys})
	results.update({"machine": machine(), "cores": os.cpu_count(), "date": now(), "commit": commit(), "form": form.name})
	results.setdefault("measured", {})[m.name] = {"date": results["date"], "commit": results["commit"], "form": form.name,
		"seconds": round(time.monotonic() - began), "load_before": [round(x, 2) for x in load],
		"load_after": [round(x, 2) for x in os.getloadavg()], "stolen_percent": round(100 * taken / max(1, all_ticks), 2)}
	save(results, where(form))
	return True


def takes(m, form, results):
	"""Seconds: as many as the last time, or as many as on the machine that it was written on."""
	last = results.get("measured", {}).get(m.name, {})
	if last.get("form") == form.name and "seconds" in last:
		return last["seconds"]
	return {"long": m.long_s, "smoke": 25}.get(form.name, m.short_s or m.long_s // 2)


def minutes(seconds):
	return "%d s" % seconds if seconds < 100 else "%.0f minutes" % (seconds / 60)


def is_done(m, form, results):
	last = results.get("measured", {}).get(m.name, {})
	return last.get("form") == form.name and last.get("commit") == commit()


def choose(wanted, form, results):
	usual = [m for m in MEASURES if form.name == "long" or m.short_s is not None]
	if wanted == ["--missing"]:
		return [m for m in usual if not is_done(m, form, results)]
	return [m for m in MEASURES if m.name in wanted] if wanted else usual


def check(results):
	bad = report.problems(results)
	for path, text in report.files(results).items():
		try:
			with open(os.path.join(TOP, path)) as f:
				if f.read() != text:
					bad.append("%s is not what the results give: run bench/bench.py --report" % path)
		except FileNotFoundError:
			bad.append("%s is missing" % path)
	for text in bad:
		print("bench: " + text, file=sys.stderr)
	return 1 if bad else 0


def main():
	signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was begun is cleaned up
	signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has it ignored
	wanted = sys.argv[1:]
	if wanted in (["-h"], ["--help"]):
		print(__doc__.strip())
		return 0
	if wanted == ["--report"]:
		save(read_results(TOP), TOP)
		return 0
	if wanted == ["--check"]:
		return check(read_results(TOP))
	names = [m.name for m in MEASURES]
	form = FORMS.get(os.environ.get("BENCH") or "short")
	if form is None:
		print("bench: BENCH is one of: %s" % ", ".join(FORMS), file=sys.stderr)
		return 2
	results = read_results(where(form))
	unknown = [x for x in wanted if x not in names and wanted not in (["--missing"], ["--list"])]
	if unknown:
		print("bench: %s is not one of: %s" % (", ".join(unknown), ", ".join(names)), file=sys.stderr)
		return 2
	chosen = choose([] if wanted == ["--list"] else wanted, form, results)
	for m in chosen if wanted == ["--list"] else []:
		print("%-12s %s" % (m.name, minutes(takes(m, form, results))))
	if wanted == ["--list"]:
		return 0
	say("the %s form of %s takes about %s on a machine that does nothing else" % (form.name, ", ".join(m.name for m in chosen) or "nothing",
		minutes(sum(takes(m, form, results) or m.long_s for m in chosen))))
	if any(m.name == "tables_10m" for m in chosen):
		tables.room_for(TEN_MILLION, parts.tempfile.gettempdir())
	began = time.monotonic()
	failed = [m.name for m in chosen if not run(m, form, results)]
	say("%s; results in %s" % (minutes(time.monotonic() - began), os.path.relpath(os.path.join(where(form), IN_TREE))))
	if failed:
		say("failed: " + ", ".join(failed))
	return 1 if failed else 0


if __name__ == "__main__":
	try:
		sys.exit(main())
	except KeyboardInterrupt:
		sys.exit(130)
