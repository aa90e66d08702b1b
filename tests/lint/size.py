#!/usr/bin/env python3
"""Sizes that a reader can hold in mind: lines of a source file, of a header and of a function in src/.

What is too long is cut where it has two subjects, not where the limit falls. It proves itself on made-up files first.
"""
from lintlib import Tap, files, read

SOURCE, HEADER, FUNCTION = 600, 220, 60
# Being cut; none may be added.
LONGER = {}


def too_long(path, text):
	limit = LONGER.get(path, SOURCE) if path.endswith(".c") else HEADER
	n = text.count("\n")
	if n > limit:
		yield "%s: %d lines, more than %d" % (path, n, limit)


def long_functions(path, text):
	"""A body is what stands between a brace alone at the margin and the next one."""
	lines = text.split("\n")
	begin = None
	for n, line in enumerate(lines, 1):
		if line == "{":
			begin = n
		elif line == "}" and begin is not None:
			if n - begin - 1 > FUNCTION:
				yield "%s:%d: %d lines, more than %d: %s" % (path, begin - 1, n - begin - 1, FUNCTION, lines[begin - 2].strip())
			begin = None


def prove():
	body = lambda n: "int f(void)\n{\n" + "\tg();\n" * n + "}\n"
	if list(too_long("src/a.c", "\n" * SOURCE)) or list(too_long("src/a.h", "\n" * HEADER)):
		yield "a file at its limit is refused"
	if not list(too_long("src/a.c", "\n" * (SOURCE + 1))) or not list(too_long("src/a.h", "\n" * (HEADER + 1))):
		yield "a file over its limit passes"
	found = list(long_functions("src/a.c", body(FUNCTION) + "\n" + body(FUNCTION + 1)))
	if len(found) != 1 or ":%d: " % (FUNCTION + 5) not in found[0]:
		yield "a long function is not told from a short one: %s" % found


def main():
	tap = Tap()
	src = {p: read(p) for p in files("src", ext=(".c", ".h"))}
	tap.check("the checks find what they look for", prove())
	tap.check("no file is too long", [x for p, text in src.items() for x in too_long(p, text)])
	tap.check("no function is too long", [x for p, text in src.items() for x in long_functions(p, text)])
	tap.end()


main()
