#!/usr/bin/env python3
"""Thousands of slow clients on the API: half of them drip a head, half a body, and none ever comes to an end. What others ask is
answered about as fast as before, refreshes come about as punctually, and the slow ones are sent away.

Quiet and attack follow each other in pairs, and only the two of a pair are compared: a machine that does other things, too, is
slow in both. One good pair of several is enough, for a server that is held up is held up in each of them. TAP on stdout.
"""
import errno
import http.client
import os
import resource
import selectors
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from apiclient import connection_path
from test_api import open_vault
from world import Tap, World, wait_until

MANY = 2000
PAIRS = 6
PHASE_S = 1.5
TIMES, MORE_S = 2.0, 0.02
LATE_MORE_S = 0.05
REFRESHED = 200
LIFE_S = 8


# ---------------------------------------------------------------- the slow ones, in a process of their own

class Slow:
	"""A connection that says its request a byte at a time."""

	def __init__(self, port, n):
		self.sock = socket.socket()
		self.sock.setblocking(False)
		code = self.sock.connect_ex(("127.0.0.1", port))
		if code not in (0, errno.EINPROGRESS):
			raise OSError(code, os.strerror(code))
		head = "POST /vault/connections/accounting/a/import HTTP/1.1\r\nHost: slow\r\n"
		self.text = head + ("X-%d: " % n + "y" * 4000 if n % 2 else "Content-Length: 4000\r\n\r\n" + "z" * 4000)
		self.at = 0
		self.first = len(head) + (6 if n % 2 else 24)

	def drip(self):
		"""False: the server does not want us any more."""
		end = self.first if self.at == 0 else self.at + 1
		try:
			self.at += self.sock.send(self.text[self.at:end].encode())
		except BlockingIOError:
			pass
		except OSError:
			return False
		return True


def be_slow(port, n):
	"""n connections, each a byte every two seconds or so, again and again until standard input ends."""
	waiting = selectors.DefaultSelector()
	waiting.register(sys.stdin, selectors.EVENT_READ)
	slow = [None] * n
	at = 0
	while True:
		for key, _ in waiting.select(0.02):
			if key.data is None:
				return 0
			i = key.data
			waiting.unregister(slow[i].sock)
			slow[i].sock.close()
			slow[i] = None
		for _ in range(max(1, n // 100)):
			at = (at + 1) % n
			if slow[at] is None:
				slow[at] = Slow(port, at)
				waiting.register(slow[at].sock, selectors.EVENT_READ, at)
			elif not slow[at].drip():
				waiting.unregister(slow[at].sock)
				slow[at].sock.close()
				slow[at] = None


class Attack:
	def __init__(self, vault, n):
		self.vault, self.n = vault, n

	def __enter__(self):
		before = descriptors(self.vault)
		self.proc = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", sys.executable, __file__, "--slow", str(self.vault.api_port),
			str(self.n)], stdin=subprocess.PIPE)
		# All of them, or as many as it takes at all.
		wait_until("the slow clients to be there", lambda: descriptors(self.vault) >= before + min(self.n, 1000) * 0.95, 60)
		return self

	def __exit__(self, *exc):
		self.proc.stdin.close()
		self.proc.wait(30)
		wait_until("the slow clients to be gone", lambda: descriptors(self.vault) < 100, 60)


def descriptors(vault):
	return len(os.listdir("/proc/%d/fd" % vault.proc.pid))


# ---------------------------------------------------------------- what the others see

def p99(seconds):
	return sorted(seconds)[len(seconds) * 99 // 100]


def lateness(vault):
	m = vault.metrics()
	return m.get("refresh_lateness_seconds_sum"), m.get("refresh_lateness_seconds_count")


def ask(vault, client, kept):
	"""p99 of ordinary requests for a while, one after the other, and how late refreshes were meanwhile."""
	headers, path, took = client.headers(), connection_path("a"), []
	late, end = lateness(vault), time.monotonic() + PHASE_S
	while time.monotonic() < end or len(took) < 200 or lateness(vault)[1] - late[1] < 20:
		c = kept or http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
		for _ in range(20 if kept else 1):
			began = time.monotonic()
			c.request("GET", path, headers=headers)
			r = c.getresponse()
			r.read()
			took.append(time.monotonic() - began)
			if r.status != 200:
				raise RuntimeError("an ordinary request was answered %d" % r.status)
		if not kept:
			c.close()
	now = lateness(vault)
	return p99(took), (now[0] - late[0]) / (now[1] - late[1])


def pairs(tap, vault, client, n, kept):
	"""Ends with the first pair that is good in both; else both are judged by their best."""
	answers, delays = [], []
	for _ in range(PAIRS):
		quiet = ask(vault, client, kept)
		with Attack(vault, n):
			busy = ask(vault, client, kept)
		tap.note("%d slow clients: p99 %.1f ms, without them %.1f ms; refreshes late by %.1f ms, without them %.1f ms"
			% (n, busy[0] * 1e3, quiet[0] * 1e3, busy[1] * 1e3, quiet[1] * 1e3))
		answers.append(busy[0] <= TIMES * quiet[0] + MORE_S)
		delays.append(busy[1] <= TIMES * quiet[1] + LATE_MORE_S)
		if answers[-1] and delays[-1]:
			break
	kind = "on a kept connection" if kept else "on connections of their own"
	tap.check("%d slow clients do not slow down ordinary requests %s" % (n, kind), any(answers), answers)
	tap.check("nor do refreshes come later", any(delays), delays)


def turned_away(vault):
	return vault.metrics().total("api_requests_total", code="408")


def slow_clients(tap, world):
	v, c = open_vault(world, "slow", providers={"a": {}}, api={"rate": "unlimited"}, apps=("app",))
	v.import_lines(world.sim.mint("a", REFRESHED, expires_in=LIFE_S))
	kept = http.client.HTTPConnection("127.0.0.1", c.port, timeout=30)
	pairs(tap, v, c, MANY, kept)
	pairs(tap, v, c, MANY, None)
	kept.close()
	with Attack(v, MANY):
		before = turned_away(v)
		wait_until("slow clients to be turned away", lambda: turned_away(v) >= before + MANY // 2, 90)
	tap.check("the slow ones are turned away with 408", True)
	tap.check("no refresh failed", set(v.outcomes("a")) <= {"refreshed"}, v.outcomes("a"))
	tap.equal("it stops cleanly", v.stop(), 0)


def main():
	if sys.argv[1:2] == ["--slow"]:
		return be_slow(int(sys.argv[2]), int(sys.argv[3]))
	hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
	if hard != resource.RLIM_INFINITY and hard < MANY + 500:
		print("1..0 # SKIP %d descriptors are needed, the limit is %d" % (MANY + 500, hard))
		return 0
	resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if hard != resource.RLIM_INFINITY else (65536, hard))
	tap = Tap()
	with World("slow", realms=["a:mode=strict,at_ttl=%d,client_secret=canary-client-secret-Zq8" % LIFE_S]) as world:
		tap.run([slow_clients], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
