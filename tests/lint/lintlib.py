"""What the lint scripts share: the files of the project, C without its comments and strings, and TAP."""
import os
import re
import sys

TOP = os.environ.get("TOP_SRCDIR") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def read(path):
	with open(os.path.join(TOP, path), encoding="utf-8") as f:
		return f.read()


def files(*folders, ext):
	"""Paths relative to the top folder, sorted; no build products, nothing that npm fetched."""
	found = []
	for folder in folders:
		for here, dirs, names in os.walk(os.path.join(TOP, folder)):
			dirs[:] = sorted(d for d in dirs if d not in ("node_modules", ".tools", "__pycache__", "autom4te.cache", ".deps"))
			found += [os.path.relpath(os.path.join(here, n), TOP) for n in sorted(names) if n.endswith(tuple(ext))]
	return found


def bare_c(text, keep_strings=False):
	"""C with comments (and string and character literals) blanked; line numbers stay."""
	def blank(m):
		s = m.group(0)
		if s[0] == "/":
			return re.sub(r"[^\n]", " ", s)
		return s if keep_strings else s[0] + s[0]
	return re.sub(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, text, flags=re.S)


def xmacro(path, name):
	"""The (id, word) pairs of `#define NAME(X) X(ID, "word") ...`."""
	m = re.search(r"#define %s\(X\)(.*?[^\\])\n" % name, read(path), re.S)
	if not m:
		raise SystemExit("Bail out! no %s in %s" % (name, path))
	return re.findall(r'X\((\w+),\s*"([^"]*)"', m.group(1))


class Tap:
	def __init__(self):
		self.n = 0
		self.failed = 0

	def check(self, name, problems):
		"""ok when there are no problems; they become diagnostics."""
		problems = list(problems)
		self.n += 1
		self.failed += bool(problems)
		print("%s %d - %s" % ("not ok" if problems else "ok", self.n, name))
		for p in problems[:50]:
			print("#   %s" % p)

	def end(self):
		print("1..%d" % self.n)
		sys.exit(1 if self.failed else 0)
