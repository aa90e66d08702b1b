#!/usr/bin/env python3
"""The documents say what the code says: metrics, events, reasons, states, log events, commands, links.

What is generated (the sample file, refreshd.yaml.5) is checked by docs_in_step.sh.
"""
import os
import re
import subprocess

from lintlib import TOP, Tap, bare_c, files, read, xmacro

NOT_METRICS = {"refreshd_owner"}  # a database role
BUILD = os.environ.get("TOP_BUILDDIR") or TOP


def metrics():
	return {name: kind for kind, name in re.findall(r'^METRIC\(\w+, (\w+), "(\w+)"', read("src/base/metrics.def"), re.M)}


def series():
	"""Every name that /metrics can show."""
	names = set()
	for name, kind in metrics().items():
		full = "refreshd_" + name
		names |= {full + s for s in ("_bucket", "_sum", "_count")} if kind == "HISTOGRAM" else {full}
	return names


def metric_docs():
	described = set(re.findall(r"^\| `(refreshd_\w+)", read("docs/metrics.md"), re.M))
	have = {"refreshd_" + n for n in metrics()}
	yield from ("%s is not in docs/metrics.md" % n for n in sorted(have - described))
	yield from ("docs/metrics.md describes %s, which is not there" % n for n in sorted(described - have))


def used_metrics():
	known = series() | {"refreshd_" + n for n in metrics()}
	for path in ("conf/alerts.yaml", "README.md", *files("docs", ext=(".md",))):
		for name in sorted(set(re.findall(r"\brefreshd_[a-z_]+\b", read(path))) - known - NOT_METRICS):
			yield "%s: %s is no metric" % (path, name)


def words_in(doc, macros):
	text = read(doc)
	for path, name in macros:
		for _, word in xmacro(path, name):
			if word and "`%s`" % word not in text:
				yield "%s: `%s` (%s) is missing" % (doc, word, name)


def log_events():
	"""Dotted names given to the log as constants."""
	found = {}
	for path in files("src", ext=(".c",)):
		text = bare_c(read(path), keep_strings=True)
		for m in re.finditer(r'\blog_(?:at|error|warning|notice|info|debug)\(\s*(?:[^",]+,\s*)?"([a-z_]+\.[a-z_.]+)"', text):
			found.setdefault(m.group(1), path)
	return found


def log_docs():
	events = log_events()
	section = read("docs/operating.md").split("## Troubleshooting by log event", 1)[1]
	described = {e for cell in re.findall(r"^\| (`[^|]*) \|", section, re.M) for e in re.findall(r"`([a-z_]+\.[a-z_.]+)`", cell)}
	yield from ("%s (%s) is not in docs/operating.md" % (e, p) for e, p in sorted(events.items()) if e not in described)
	yield from ("docs/operating.md describes %s, which is never logged" % e for e in sorted(described - set(events)))


def run(program, *args):
	done = subprocess.run([os.path.join(BUILD, program), *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
	if done.returncode != 0:
		raise SystemExit("Bail out! %s %s: exit %d" % (program, " ".join(args), done.returncode))
	return done.stdout


def options_in_manual(program, manual):
	page = read(manual)
	for option in sorted(set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", run(program, "--help")))):
		if not re.search(r"Fl (?:\w )?-?-?%s\b|Fl -%s\b" % (option, option), page):
			yield "%s: --%s is missing" % (manual, option)
	for option in sorted(set(re.findall(r"\bFl -([a-z][a-z-]+)", page)) - set(re.findall(r"--([a-z][a-z-]+)", run(program, "--help")))):
		yield "%s: --%s is not an option of %s" % (manual, option, program)


def commands_in_manual():
	page = read("docs/refreshctl.1")
	listed = re.findall(r"^  ([a-z]+)\b", run("refreshctl", "--help"), re.M)
	yield from ("refreshctl.1: command %s is missing" % c for c in sorted(set(listed)) if not re.search(r"^\.(It|Ic|Nm|Cm)?\s*.*\bCm %s\b" % c, page, re.M))


def links():
	for path in ["README.md", "CONTRIBUTING.md", "NEWS.md", *files("docs", "tests", ext=(".md",))]:
		here = os.path.dirname(path)
		for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", read(path)):
			if "://" not in target and not os.path.exists(os.path.join(TOP, here, target)):
				yield "%s: %s is not there" % (path, target)


def main():
	tap = Tap()
	tap.check("every metric is described, and no other", metric_docs())
	tap.check("every metric that is spoken of exists", used_metrics())
	tap.check("docs/webhooks.md names every event and reason", words_in("docs/webhooks.md",
		[("src/model/event.h", "EVENT_LIST"), ("src/model/connection.h", "REASON_LIST")]))
	tap.check("docs/design.md names every state and outcome", words_in("docs/design.md", [
		("src/service/refresh_priv.h", "ATTEMPT_STATE_LIST"), ("src/model/grant.h", "OUTCOME_LIST"), ("src/service/store.h", "STORE_STATE_LIST")]))
	tap.check("docs/operating.md names every state and phase", words_in("docs/operating.md", [
		("src/model/connection.h", "CONN_STATE_LIST"), ("src/model/connection.h", "CONN_HEALTH_LIST"),
		("src/service/store.h", "STORE_STATE_LIST"), ("src/daemon_priv.h", "PHASE_LIST")]))
	tap.check("every log event is described, and no other", log_docs())
	tap.check("refreshd(8) has every option", options_in_manual("refreshd", "docs/refreshd.8"))
	tap.check("refreshctl(1) has every option", options_in_manual("refreshctl", "docs/refreshctl.1"))
	tap.check("refreshctl(1) has every command", commands_in_manual())
	tap.check("every relative link leads somewhere", links())
	tap.end()


main()
