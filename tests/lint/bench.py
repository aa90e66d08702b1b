#!/usr/bin/env python3
"""The results of make bench in git are whole, and its page and pictures are what these results give.

The report is tried on results that are broken on purpose, too: a check that lets everything pass is none.
"""
import copy
import json
import os
import sys

from lintlib import TOP, Tap, read

sys.path.insert(0, os.path.join(TOP, "bench"))
import report  # noqa: E402


def without(results, key):
	broken = copy.deepcopy(results)
	place = broken
	for part in key.split(".")[:-1]:
		place = place[part]
	del place[key.split(".")[-1]]
	return broken


def main():
	tap = Tap()
	results = json.loads(read("bench/results.json"))
	tap.check("bench/results.json is whole", report.problems(results))
	for path, text in report.files(results).items():
		tap.check("%s is what the results give" % path, [] if read(path) == text else ["run bench/bench.py --report"])
	tap.check("every key is missed when it is not there", [k for k in report.REQUIRED if not report.problems(without(results, k))])
	other = copy.deepcopy(results)
	other["refresh_tls"]["per_s"] = {"min": 4.0, "median": 2.0, "max": 3.0, "n": 3}
	tap.check("a spread that is upside down is none", [] if report.problems(other) else ["nobody minds"])
	other["refresh_tls"]["per_s"]["min"] = 1.0
	tap.check("another figure gives another page", [] if report.page(other) != report.page(results) else ["they are the same"])
	tap.end()


if __name__ == "__main__":
	main()
