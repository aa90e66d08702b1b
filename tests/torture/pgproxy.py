"""A TCP proxy that understands enough of Postgres' protocol to take away the answer to a COMMIT.

	with PgProxy(pg.sock, pg.port, seed=1) as p:
		p.rule = Rule("refresh_persist", share=0.3, modes=("after", "partial", "before", "stall"))
		daemon("host=127.0.0.1 port=%d sslmode=disable" % p.port)

The unit is what ends with one Sync: an implicit transaction of a pipeline. When all of it went to the server the rule may
cut: `before` the server has answered (committed or not: nobody knows), `after` it has (certainly committed, and not a byte of it
passes), `partial` (the rows and CommandComplete pass, ReadyForQuery does not: libpq must not believe in that commit), or `stall` (the
answer is swallowed and the connection stays open until the client gives up). It counts what it did, by kind and statement, and the
verdicts of the refresh results that did pass. Standard library only, threads of its own.
"""
import collections
import os
import random
import re
import select
import socket
import struct
import threading

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102

# A word of the SQL that only this statement has, because behind a pooler statements have no names.
KINDS = (
	("claim", re.compile(r"AS MATERIALIZED .*sent_deadline = now\(\)", re.S)),
	("persist", re.compile(r"AS verdict", re.S)),
	("release", re.compile(r"UPDATE refreshd\.schedule s SET lease_owner = NULL", re.S)),
	("heartbeat", re.compile(r"SET heartbeat_at = now\(\) WHERE", re.S)),
	("webhook", re.compile(r"refreshd\.delivery", re.S)),
)


def kind_of(sql):
	for kind, pattern in KINDS:
		if pattern.search(sql):
			return kind
	return "other"


class Rule:
	def __init__(self, kinds, share, modes, limit=None):
		self.kinds, self.share, self.modes, self.limit = set(kinds), share, tuple(modes), limit


class Unit:
	"""What one Sync closes."""

	def __init__(self):
		self.kinds = []
		self.mode = None


class Link:
	"""One client and its server session. One thread: what comes from either side is looked at in order."""

	def __init__(self, proxy, client, server):
		self.proxy, self.client, self.server = proxy, client, server
		self.names, self.unit, self.waiting = {}, Unit(), collections.deque()
		self.greeted = self.ready = False
		self.from_client, self.from_server = bytearray(), bytearray()

	def close(self, reset):
		for s in (self.client, self.server):
			if reset:
				s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
			s.close()

	def run(self):
		try:
			while self.turn():
				pass
		except OSError:
			pass
		self.close(False)

	def turn(self):
		readable, _, _ = select.select([self.client, self.server], [], [], 0.5)
		if self.proxy.closed:
			return False
		for s in readable:
			data = s.recv(1 << 18)
			if not data:
				return False
			if s is self.client:
				self.from_client += data
				going = self.client_messages()
			else:
				self.from_server += data
				going = self.server_messages()
			if not going:
				return False
		return True

	# --- client to server

	def client_messages(self):
		buf, at = self.from_client, 0
		while True:
			head = 0 if not self.greeted else 1
			if len(buf) - at < head + 4:
				break
			size = struct.unpack_from(">I", buf, at + head)[0] + head
			if len(buf) - at < size:
				break
			message = bytes(buf[at:at + size])
			at += size
			if not self.client_message(message):
				return False
		del buf[:at]
		return True

	def client_message(self, m):
		if not self.greeted:
			code = struct.unpack_from(">I", m, 4)[0]
			if code in (SSL_REQUEST, GSS_REQUEST):
				self.client.sendall(b"N")
				return True
			self.server.sendall(m)
			self.greeted = code != CANCEL_REQUEST
			return True
		kind = m[:1]
		if kind == b"P":
			name, sql = m[5:].split(b"\0", 2)[:2]
			self.names[name] = kind_of(sql.decode())
		elif kind == b"B":
			_, name = m[5:].split(b"\0", 2)[:2]
			self.unit.kinds.append(self.names.get(name, "other"))
		elif kind == b"Q":
			self.unit.kinds.append("query")
		if kind not in (b"S", b"Q"):
			self.server.sendall(m)
			return True
		unit, self.unit = self.unit, Unit()
		unit.mode = self.proxy.decide(unit)
		self.waiting.append(unit)
		self.server.sendall(m)
		if unit.mode == "before":
			self.proxy.cut(self, unit)
			return False
		return True

	# --- server to client

	def server_messages(self):
		buf, at, out = self.from_server, 0, bytearray()
		going = True
		while going and len(buf) - at >= 5:
			size = struct.unpack_from(">I", buf, at + 1)[0] + 1
			if len(buf) - at < size:
				break
			m = bytes(buf[at:at + size])
			at += size
			going = self.server_message(m, out)
		del buf[:at]
		if out:
			self.client.sendall(out)
		if not going:
			self.proxy.cut(self, self.waiting[0])
		return going

	def server_message(self, m, out):
		kind = m[:1]
		if not self.ready:  # greetings and the password's handshake
			self.ready = kind == b"Z"
			out += m
			return True
		unit = self.waiting[0] if self.waiting else Unit()
		if kind == b"Z" and unit.mode in ("after", "partial"):
			return False
		if unit.mode in ("after", "stall") or (unit.mode == "partial" and kind == b"Z"):
			if kind == b"Z":  # stall: from here on nobody hears anything of this session
				self.proxy.note(unit)
				unit.kinds, unit.mode = [], "deaf"
			return True
		if unit.mode == "deaf":
			return True
		out += m
		if kind == b"D" and "persist" in unit.kinds:
			self.proxy.saw_verdict(struct.unpack_from(">hii", m, 5)[2])
		elif kind == b"Z" and self.waiting:
			self.waiting.popleft()
		return True


class PgProxy:
	def __init__(self, sock_dir, server_port, seed):
		self.target = os.path.join(sock_dir, ".s.PGSQL.%d" % server_port)
		self.random = random.Random(seed)
		self.rule = None
		self.cuts = collections.Counter()      # (kind, mode)
		self.verdicts = collections.Counter()  # of refresh results, as the client got them
		self.closed = False
		self.lock = threading.Lock()
		self.listener = socket.create_server(("127.0.0.1", 0))
		self.port = self.listener.getsockname()[1]
		threading.Thread(target=self.accept, daemon=True).start()

	def accept(self):
		while True:
			try:
				client, _ = self.listener.accept()
			except OSError:
				return
			server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
			try:
				server.connect(self.target)
			except OSError:
				client.close()
				server.close()
				continue
			client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
			threading.Thread(target=Link(self, client, server).run, daemon=True).start()

	def decide(self, unit):
		with self.lock:
			rule = self.rule
			if rule is None or not rule.kinds & set(unit.kinds) or self.random.random() >= rule.share:
				return None
			if rule.limit is not None:
				if rule.limit <= 0:
					return None
				rule.limit -= 1
			return self.random.choice(rule.modes)

	def note(self, unit):
		with self.lock:
			for kind in set(unit.kinds):
				self.cuts[kind, unit.mode] += 1

	def cut(self, link, unit):
		self.note(unit)
		with self.lock:
			reset = self.random.random() < 0.5
		link.close(reset)

	def saw_verdict(self, v):
		with self.lock:
			self.verdicts[v] += 1

	def total(self):
		with self.lock:
			return sum(self.cuts.values())

	def close(self):
		self.closed = True
		self.listener.close()

	def __enter__(self):
		return self

	def __exit__(self, *exc):
		self.close()
