#!/usr/bin/env python3
"""The layers of src/: a file includes what lies below it, or its own folder without going in circles.

base < model < io (of these only base) < service < api < daemon, main, ctl and dev. The archives make an upward call a link
error; this makes an upward include a failure, also where nothing is called. It proves itself on made-up trees first.
"""
import collections
import re

from lintlib import Tap, files, read

MAY = {
	"base": {"base"},
	"model": {"base", "model"},
	"io": {"base", "io"},
	"service": {"base", "model", "io", "service"},
	"api": {"base", "model", "io", "service", "api"},
	"ctl": {"base", "model", "io", "service", "ctl"},
	"": {"base", "model", "io", "service", "api", ""},
	"unit": {"base", "model", "unit"},
}


def room(path):
	if path.startswith("tests/unit/"):
		return "unit"
	parts = path.split("/")
	return parts[1] if len(parts) > 2 else ""


def target_room(name):
	name = re.sub("^src/", "", name)  # a generated file, in the build folder
	return name.split("/")[0] if "/" in name else ""


def includes(text):
	return [(n, m.group(1)) for n, line in enumerate(text.split("\n"), 1)
		for m in [re.match(r'\s*#\s*include\s+"([^"]+)"', line)] if m]


def upward(tree):
	for path, text in tree.items():
		for n, name in includes(text):
			if target_room(name) not in MAY[room(path)]:
				yield "%s:%d: %s may not include %s" % (path, n, room(path) or "the top of src", name)


# Modules of several files that call each other; others use them as one.
FAMILIES = [
	(r"pg(conn|dial|error|args|target|pool|listen)$", "pgpool"),
	(r"(hosts|resolver)$", "resolver"),
]


def module(stem, stems):
	"""A part belongs to its whole: journal_file to journal, conf_type_list to conf, where such a file exists."""
	for pattern, name in FAMILIES:
		if re.match(pattern, stem):
			return name
	words = stem.split("_")
	for i in range(1, len(words)):
		if "_".join(words[:i]) in stems:
			return "_".join(words[:i])
	return stem


def circles(tree):
	graph = collections.defaultdict(dict)
	stems = collections.defaultdict(set)
	for path in tree:
		stems[room(path)].add(path.split("/")[-1].rsplit(".", 1)[0])
	for path, text in tree.items():
		here = room(path)
		me = module(path.split("/")[-1].rsplit(".", 1)[0], stems[here])
		for n, name in includes(text):
			other = module(name.split("/")[-1].rsplit(".", 1)[0], stems[here])
			if target_room(name) == here and other != me:
				graph[(here, me)].setdefault((here, other), "%s:%d" % (path, n))
	yield from find_circles(graph)


def find_circles(graph):
	done, trail = set(), []

	def visit(node):
		if node in trail:
			loop = trail[trail.index(node):] + [node]
			yield " -> ".join(m for _, m in loop) + "   (" + ", ".join(
				graph[a][b] for a, b in zip(loop, loop[1:])) + ")"
			return
		if node in done:
			return
		trail.append(node)
		for other in sorted(graph.get(node, ())):
			yield from visit(other)
		trail.pop()
		done.add(node)

	for node in sorted(graph):
		yield from visit(node)


def own_header_first(tree):
	"""Shows that a header stands alone: X.h, or X_priv.h, which begins with it. A part may come without one of its own."""
	for path, text in tree.items():
		header = path[len("src/"):-2] + ".h"
		if path.endswith(".c") and "src/" + header in tree and path.count("/") > 1:
			first = includes(text)[:1]
			before = re.search(r"^\s*#\s*include\s+<", text.split('#include "', 1)[0], re.M)
			private = header[:-2] + "_priv.h"
			start = includes(tree.get("src/" + private, ""))[:1]
			if first and first[0][1] == private and start and start[0][1] == header:
				continue
			if not first or first[0][1] != header or before:
				yield "%s: %s is not the first include" % (path, header)


def prove():
	"""Each finder finds what was put there for it."""
	bad = {"src/base/a.c": '#include "model/b.h"\n', "src/io/c.c": '#include "model/b.h"\n', "src/service/s.h": '#include "daemon.h"\n'}
	good = {"src/base/a.c": '#include "base/b.h"\n', "src/main.c": '#include "service/s.h"\n#include "daemon.h"\n'}
	if len(list(upward(bad))) != 3 or list(upward(good)):
		yield "upward includes are not told from others"
	ring = {"src/io/a.h": '#include "io/b.h"\n', "src/io/b.c": '#include "io/a.h"\n'}
	family = {"src/io/a.h": '#include "io/a_b.h"\n', "src/io/a_b.c": '#include "io/a.h"\n', "src/io/a_b.h": ""}
	if len(list(circles(ring))) != 1 or list(circles(family)):
		yield "circles are not told from families"
	late = {"src/io/a.c": '#include <x.h>\n#include "io/a.h"\n', "src/io/a.h": ""}
	if len(list(own_header_first(late))) != 1:
		yield "a late own header is not found"


def main():
	tap = Tap()
	src = {p: read(p) for p in files("src", ext=(".c", ".h"))}
	unit = {p: read(p) for p in files("tests/unit", ext=(".c", ".h"))}
	tap.check("the checks find what they look for", prove())
	tap.check("no include goes upward", upward(src))
	tap.check("no circle within a folder", circles(src))
	tap.check("a file includes its own header first", own_header_first(src))
	tap.check("unit tests see base and model only", upward(unit))
	tap.check("there are files to check", [] if len(src) > 50 and len(unit) > 10 else ["only %d" % (len(src) + len(unit))])
	tap.end()


main()
