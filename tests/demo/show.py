"""What a person sees: a story that scrolls and, on a terminal, a panel of live figures below it."""
import os
import shutil
import sys
import textwrap
import time

PLAIN_EVERY_S = 5


class Show:
	def __init__(self):
		self.live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
		self.color = self.live and not os.environ.get("NO_COLOR")
		self.panel = []
		self.drawn = 0
		self.began = time.monotonic()
		self.plain_at = 0.0

	def elapsed(self):
		return time.monotonic() - self.began

	def paint(self, code, text):
		return "\033[%sm%s\033[0m" % (code, text) if self.color else text

	def width(self):
		return min(max(shutil.get_terminal_size((100, 24)).columns, 40), 110) if self.live else 100

	def _erase(self):
		if self.drawn:
			sys.stdout.write("\033[%dA\033[J" % self.drawn)
			self.drawn = 0

	def _draw(self):
		if self.live and self.panel:
			width = self.width() - 1
			sys.stdout.write("\n" + "".join(self.paint("36", line[:width]) + "\n" for line in self.panel))
			self.drawn = len(self.panel) + 1

	def _write(self, text):
		self._erase()
		sys.stdout.write(text)
		self._draw()
		sys.stdout.flush()

	def _wrapped(self, first, text, code=None):
		lines = textwrap.wrap(text, self.width() - len(first), break_long_words=False, break_on_hyphens=False) or [""]
		lines = [(first if i == 0 else " " * len(first)) + line for i, line in enumerate(lines)]
		self._write("".join((self.paint(code, line) if code else line) + "\n" for line in lines))

	def title(self, text):
		self._write("\n" + self.paint("1", "%4.0f s  %s" % (self.elapsed(), text)) + "\n")

	def say(self, text):
		self._wrapped("        ", text)

	def good(self, text):
		self._wrapped("     ✓  " if self.utf8() else "    ok  ", text, "32")

	def bad(self, text):
		self._wrapped("     ✗  " if self.utf8() else "WRONG:  ", text, "1;31")

	def raw(self, lines, indent="          "):
		self._write("".join(indent + line[:self.width() * 2] + "\n" for line in lines))

	def command(self, lines):
		"""A shell command over several lines, whole whatever the width, so that it can be copied."""
		self._write("".join("          " + self.paint("1", line) + "\n" for line in lines))

	def utf8(self):
		return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"

	def figures(self, panel, line):
		"""The newest figures: a panel on a terminal, elsewhere a line every few seconds."""
		self.panel = panel
		if self.live:
			self._write("")
		elif time.monotonic() >= self.plain_at:
			self.plain_at = time.monotonic() + PLAIN_EVERY_S
			self._write("%4.0f s  . %s\n" % (self.elapsed(), line))

	def end_figures(self):
		self._erase()
		self.panel = []
		sys.stdout.flush()
