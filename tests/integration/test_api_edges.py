#!/usr/bin/env python3
"""The Vault API where its parts meet: large bodies over TLS, forged cursors, headers given twice, changes that come together with
others, keys that are revoked and connections that are disabled while a call waits, and settings that lack what the connector needs."""
import base64
import collections
import concurrent.futures
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from apiclient import connection_path
from test_api import body_of, is_error, iso, new_key, open_vault, tokens
from world import CLIENT_SECRET, Tap, World, free_port, wait_until

PATH = connection_path("a")


# ---------------------------------------------------------------- TLS

def certificate(world):
	crt, key = os.path.join(world.dir, "edge.crt"), os.path.join(world.dir, "edge.key")
	subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-keyout", key,
		"-out", crt, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, stdout=subprocess.DEVNULL,
		stderr=subprocess.DEVNULL)
	return crt, key


def read_answer(s):
	"""(status, body) of the next answer on a socket."""
	data = b""
	while b"\r\n\r\n" not in data:
		more = s.recv(65536)
		if not more:
			return 0, data
		data += more
	head, body = data.split(b"\r\n\r\n", 1)
	length = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
	while length and len(body) < length[0]:
		body += s.recv(65536)
	return int(head.split(b" ")[1]), body


def large_bodies_over_tls(tap, world):
	crt, key = certificate(world)
	v, c = open_vault(world, "tlsbig", api={"tls": {"cert_file": crt, "key_file": key}, "rate": "unlimited"})
	context = ssl.create_default_context(cafile=crt)

	def connect():
		s = context.wrap_socket(socket.create_connection(("127.0.0.1", v.api_port)), server_hostname="localhost")
		s.settimeout(8)
		return s

	def post(n):
		body = b" " * (n - 2) + b"{}"
		return ("POST %s/import HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nx-apideck-app-id: app\r\n"
			"x-apideck-consumer-id: c1\r\nContent-Length: %d\r\n\r\n" % (PATH, c.key, len(body))).encode() + body
	slow = []
	for n in (1000, 16384, 65536, 65537, 70000, 81920, 100000, 131072, 200000, 300001, 400000, 500000):
		with connect() as s:
			try:
				s.sendall(post(n))
				status = read_answer(s)[0]
			except OSError as e:
				status = str(e)
		if status != 400:
			slow.append((n, status))
	tap.equal("bodies of every size are taken whole", slow, [])
	with connect() as s:
		s.sendall(post(90000) + post(120000) + post(3000))
		tap.equal("pipelined ones are answered in order", [read_answer(s)[0] for _ in range(3)], [400, 400, 400])


# ---------------------------------------------------------------- cursors

def cursor(*parts):
	return base64.urlsafe_b64encode(b"".join(p if isinstance(p, bytes) else p.encode() + b"\0" for p in parts)).decode().rstrip("=")


def forged_cursors(tap, world):
	v, c = open_vault(world, "cursors")
	c.post(PATH + "/import", body_of(tokens(world)[0]))
	zero = "00000000-0000-0000-0000-000000000000"
	times = ("0", "-1", "9223372036854775807", "9223372036854775806", "-9223372036854775808", "9223372036854775000", "-9000000000000000000",
		"253402300800000000", "9224318015999999000", "9224318016000000000", "-210866803200000000", "-210866803200000001")
	wrong = []
	for at in times:
		for path, parts in (("/vault/logs", (at, zero)), ("/webhook/logs", (at, zero, "x")), ("/webhook/webhooks", (at, zero))):
			a = c.get("%s?cursor=%s" % (path, cursor(*parts)))
			if a.status not in (200, 400):
				wrong.append((path, at, a))
	odd = (b"", b"\0", b"\0\0", b"\0\0\0", b"\0\0\0\0", b"\xff\0\0\0", b"a\0b\0c", b"a\0b\0c\0d\0", b"x" * 3000 + b"\0", b"\x01\0\x02\0\x03\0",
		"\U0010ffff\0\u0085\0\u2028\0".encode(), b"' OR 1=1 --\0\0\0")
	for raw in odd:
		for path in ("/vault/connections", "/vault/consumers", "/vault/logs", "/webhook/logs", "/webhook/webhooks"):
			a = c.get("%s?cursor=%s" % (path, cursor(raw)))
			if a.status not in (200, 400):
				wrong.append((path, raw, a))
	tap.equal("forged cursors are refused or lead nowhere", wrong, [])
	for i in range(3):
		c.but(consumer="é" * 99 + str(i)).post(PATH + "/import", body_of(tokens(world)[0]))
	a = c.but(consumer=None).get("/vault/connections?limit=1")
	seen, n = [], 0
	while a.status == 200 and n < 9:
		seen += [x["id"] for x in a.data]
		n += 1
		at = a.json["meta"]["cursors"]["next"]
		if at is None:
			break
		a = c.but(consumer=None).get("/vault/connections?limit=1&cursor=" + at)
	tap.equal("a cursor of the longest names is taken back", (a.status, len(seen)), (200, 4))


# ---------------------------------------------------------------- a list that is too large for one page

def large_list(tap, world):
	v, c = open_vault(world, "largelist", api={"rate": "unlimited"})
	big = {"m": "x" * 65000}
	a = c.post(PATH + "/import", dict(body_of(tokens(world)[0]), metadata=big, settings={"s": "y" * 65000}))
	n = 1000
	v.sql("""
		INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state, health,
			created_at, updated_at, metadata, settings_public)
		SELECT n, gen_random_uuid(), application_id, 'l' || to_char(n, 'FM0000'), unified_api, service_id, auth_type, state, health, now(), now(),
			metadata, settings_public FROM refreshd.connection, generate_series(1, %d) n;""" % n)
	def peak(what="VmHWM"):
		with open("/proc/%d/status" % v.proc.pid) as f:
			return int([x for x in f if x.startswith(what)][0].split()[1]) // 1024
	before = peak()
	app, seen, pages, cursor = c.but(consumer=None), [], [], ""
	while cursor is not None and len(pages) < 20:
		a = app.get("/vault/connections?cursor=" + cursor)
		if a.status != 200:
			break
		pages.append(len(a.body))
		seen += [x["metadata"] == big for x in a.data]
		cursor = a.json["meta"]["cursors"]["next"]
	tap.equal("a thousand large connections, without a limit: each once, by pages", (a.status, len(seen), all(seen), len(pages)), (200, n + 1, True, 8))
	tap.check("none larger than it may be", max(pages) < 17 * 1024 * 1024, pages)
	if peak("VmPeak") < 2 ** 20:  # a sanitizer has terabytes, and keeps what was freed
		tap.check("nor is more than one of them held", peak() - before < 96, (before, peak()))
	a = c.but(consumer="l0001").get("/vault/connections?limit=1")
	tap.equal("a page of one is a page of one", (len(a.data), a.json["meta"]["cursors"]["next"]), (1, None))


# ---------------------------------------------------------------- headers

def headers_given_twice(tap, world):
	v, c = open_vault(world, "twice")
	for name, second in (("x-apideck-app-id", "other"), ("x-apideck-consumer-id", "c2"), ("x-apideck-consumer-id", "c1")):
		with socket.create_connection(("127.0.0.1", v.api_port)) as s:
			s.settimeout(8)
			lines = ["GET %s HTTP/1.1" % PATH, "Host: x"] + ["%s: %s" % x for x in c.headers().items()] + ["%s: %s" % (name.title(), second)]
			s.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
			status, body = read_answer(s)
		tap.equal("%s twice, the second %r" % (name, second), (status, json.loads(body)["type_name"] if status == 400 else body),
			(400, "RequestHeadersValidationError"))
	a = c.get(PATH, headers={"x-apideck-consumer-id": b"\xff\xfe"})
	is_error(tap, "a consumer that is not UTF-8", a, 400, "RequestHeadersValidationError")
	is_error(tap, "a consumer of 5,000 bytes", c.but(consumer="x" * 5000).get(PATH), 400, "RequestHeadersValidationError")


# ---------------------------------------------------------------- numbers

def numbers_that_grow(tap, world):
	v, c = open_vault(world, "numbers")
	good = tokens(world)[0]
	many = {"n": [1e307] * 9000}
	a = c.post(PATH + "/import", dict(body_of(good), metadata=many))
	is_error(tap, "metadata whose numbers are larger written out", a, 400, "RequestValidationError")
	a = c.post(PATH + "/import", dict(body_of(good), metadata={"x": 12345678901234567890123}))
	is_error(tap, "a whole number that cannot be kept exactly", a, 400, "RequestValidationError")
	for text in ("1e-99999999999999999999", "1e-20000", "0." + "0" * 20000 + "1", "-18446744073709551616", "1" + "0" * 400, "5e-324e"):
		a = c.post(PATH + "/import", json.dumps(dict(body_of(good), metadata={"x": "NUMBER"})).replace('"NUMBER"', text).encode())
		is_error(tap, "metadata with %.30s" % text, a, 400, "RequestValidationError")
	kept = {"a": 18446744073709551614, "b": -9223372036854775807, "c": 1e22, "d": 1.5e-7, "e": 0.1, "f": [1, None, True, "\"\\/\u2028é\U0001f600"], "g": {}}
	a = c.post(PATH + "/import", dict(body_of(good), metadata=kept, settings=kept))
	tap.equal("what can be kept is kept", (a.status, a.data["metadata"], a.data["settings"]) if a.status == 200 else a, (200, kept, kept))
	is_error(tap, "patch with such metadata", c.patch(PATH, {"metadata": many}), 400, "RequestValidationError")
	is_error(tap, "patch with such settings", c.patch(PATH, {"settings": many}), 400, "RequestValidationError")
	is_error(tap, "patch with such a number", c.patch(PATH, {"settings": {"x": -12345678901234567890123}}), 400, "RequestValidationError")
	tap.equal("all is as it was", c.get(PATH).data["metadata"], kept)


# ---------------------------------------------------------------- changes together

def names_of(v):
	return [e[0].split("connection.")[1] for e in v.events()]


def changes_together(tap, world):
	v, c = open_vault(world, "together")
	path = connection_path("key")
	tap.equal("import", c.post(path + "/import", {"settings": {"api_key": "k1"}}).data["state"], "callable")
	a = c.patch(path, {"settings": {"api_key": None}})
	tap.equal("without its key it is not callable", (a.data["state"], a.data["health"]), ("authorized", "missing_settings"))
	a = c.patch(path, {"enabled": False, "settings": {"api_key": "k2"}})
	tap.equal("mended and disabled at once", (a.status, a.data["enabled"], a.data["state"]), (200, False, "callable"))
	tap.equal("the event says that it is disabled", names_of(v)[-1], "disabled")
	n = len(names_of(v))
	c.patch(path, {"enabled": True})
	tap.equal("and that it is enabled", names_of(v)[n:], ["updated"])
	a = c.patch(path, {"settings": {"api_key": "********"}, "metadata": {"m": 1}})
	tap.equal("a mask that comes back changes nothing", (a.status, a.data["state"]), (200, "callable"))
	tap.equal("an empty patch tells nothing", (c.patch(path, {}).status, len(names_of(v))), (200, n + 2))


def settings_missing(tap, world):
	plain = {"auth_type": "basic", "token_url": None, "client_auth": None, "rotation": None, "unified_apis": ["accounting"]}
	v, c = open_vault(world, "missing", providers={"a": {"required_settings": ["shop"]}, "plain": plain})
	a = c.post(PATH + "/import", body_of(tokens(world)[0]))
	words = lambda d: (d["state"], d["health"])
	lacks, whole = ("authorized", "missing_settings"), ("callable", "ok")
	tap.equal("tokens without a required setting are taken, and not called with", (a.status, words(a.data), v.rows()["c1"]["reason"]),
		(200, lacks, "missing_settings"))
	is_error(tap, "cannot be validated", c.post(PATH + "/validate"), 422, "ConnectionSettingsError")
	is_error(tap, "and no token is handed out", c.get(PATH + "/credentials"), 422, "ConnectionSettingsError")
	tap.equal("the same again, with another setting and an empty one", words(c.post(PATH + "/import", dict(body_of(tokens(world)[0]), settings={"x": 1,
		"shop": ""})).data), lacks)
	v.sql("UPDATE refreshd.schedule SET due_at = now()")
	wait_until("a refresh", lambda: v.rows()["c1"]["refreshes"] == 1, 20)
	row = v.rows()["c1"]
	tap.equal("it is refreshed like any other, and stays what it is", (words(row), row["reason"], row["due_in"] > 0), (lacks, "missing_settings", True))
	n = len(names_of(v))
	a = c.patch(PATH, {"settings": {"shop": "s1"}})
	tap.equal("the setting makes it whole at once", (a.status, words(a.data), v.rows()["c1"]["reason"]), (200, whole, "none"))
	tap.equal("without a refresh of its own", (v.rows()["c1"]["due_in"] > 0, c.get(PATH + "/credentials").status), (True, 200))
	tap.equal("a refresh leaves it so", (c.post(PATH + "/validate").status, words(c.get(PATH).data)), (200, whole))
	tap.equal("told once", names_of(v)[n:], ["callable"])
	tap.equal("an import without settings keeps them", words(c.post(PATH + "/import", body_of(tokens(world)[0])).data), whole)
	tap.equal("one with others does not", words(c.post(PATH + "/import", dict(body_of(tokens(world)[0]), settings={"x": 2})).data), lacks)
	tap.equal("one that brings it", words(c.post(PATH + "/import", dict(body_of(tokens(world)[0]), settings={"shop": "s2"})).data), whole)
	tap.equal("a change that takes it away", words(c.patch(PATH, {"settings": {"shop": None}}).data), lacks)
	tap.equal("all was told", names_of(v)[n:], ["callable", "updated", "updated", "callable", "updated"])
	lines = [dict(application_id="app", consumer_id=x, unified_api="accounting", service_id="a", **dict(body_of(tokens(world)[0]), **more))
		for x, more in (("c1", {}), ("bulk", {}), ("bulkwhole", {"settings": {"shop": "b"}}))]
	for again in range(2):
		tap.equal("refreshctl import", v.import_lines(lines).returncode, 0)
		tap.equal("the same there", {x: (words(r), r["reason"]) for x, r in v.rows().items()}, {"c1": (lacks, "missing_settings"),
			"bulk": (lacks, "missing_settings"), "bulkwhole": (whole, "none")})
		for x in lines:
			x.update(body_of(tokens(world)[0]))
		lines[2].pop("settings", None)
	tap.equal("and a change makes that whole, too", words(c.but(consumer="bulk").patch(PATH, {"settings": {"shop": "s"}}).data), whole)
	path = connection_path("plain")
	is_error(tap, "basic needs settings", c.post(path + "/import", {"settings": {}}), 400, "RequestValidationError")
	tap.equal("basic", c.post(path + "/import", {"settings": {"user": "u"}}).data["state"], "callable")
	a = c.patch(path, {"settings": {"user": None}})
	tap.equal("basic without any", (a.data["state"], c.post(path + "/validate").status), ("authorized", 422))


# ---------------------------------------------------------------- deleted while a request is out

def deleted_while_out(tap, world):
	world.sim.realm("g", mode="strict", at_ttl=3600, client_secret=CLIENT_SECRET)
	v, a = open_vault(world, "gone-a", providers={"g": {}})
	path, port = connection_path("g"), free_port()
	w = world.vault("gone-b", {"g": {}}, beside=v, api={"listen": "127.0.0.1:%d" % port})
	w.start()
	b = a.but(port=port)
	given = tokens(world, "g")[0]
	for name, forget in (("delete", lambda: b.delete(path)), ("forget the consumer", lambda: b.delete("/vault/consumers/c1"))):
		world.sim.realm("g", delay_ms=0)
		a.post(path + "/import", body_of(given))
		world.sim.realm("g", delay_ms=1500, commit="early")
		n = world.sim.stats("g")["requests"]
		with concurrent.futures.ThreadPoolExecutor(2) as pool:
			answer = pool.submit(a.post, path + "/validate")
			wait_until("the request to be out", lambda: world.sim.stats("g")["in_flight"] > 0)
			done = forget()
			out = world.sim.stats("g")["in_flight"]
			tap.equal("%s at another daemon waits until the request is over" % name, (done.status in (200, 204), out), (True, 0))
			b.post(path + "/import", body_of(given, issued_at=iso(-7200)))
			tap.check("whoever waited for it is told", answer.result().status in (200, 404), answer.result())
		wait_until("the same token to be presented again", lambda: world.sim.stats("g")["requests"] == n + 2, 20)
		world.sim.realm("g", delay_ms=0)
		wait_until("quiet", lambda: v.quiet() and w.quiet(), 30)
		tap.equal("what was there before is forgotten", (v.count("refreshd.connection WHERE consumer_id = 'c1'"), v.count("refreshd.orphan_token")), (1, 0))
		given = tokens(world, "g")[0]
	tap.equal("no presentation beside another one", world.sim.stats("g")["max_in_flight"], 1)


# ---------------------------------------------------------------- while a call waits

def while_a_call_waits(tap, world):
	v, c = open_vault(world, "waits", apps=("app", "other"))
	c.post(PATH + "/import", body_of(tokens(world)[0], issued_at=iso(-30), expires_in=100))
	for act in ("revoke", "disable"):
		key = new_key(v, "app")
		reader = c.but(key=key)
		reader.get(PATH)
		world.sim.realm("a", delay_ms=5000)
		with concurrent.futures.ThreadPoolExecutor(1) as pool:
			answer = pool.submit(reader.get, PATH + "/credentials?min_ttl=79")
			wait_until("the request to be out", lambda: world.sim.stats("a")["in_flight"] > 0)
			if act == "revoke":
				hashed = v.sql("SELECT encode(key_sha256, 'hex') FROM refreshd.api_key WHERE revoked_at IS NULL ORDER BY created_at DESC LIMIT 1")
				v.sql("UPDATE refreshd.api_key SET revoked_at = now() WHERE encode(key_sha256, 'hex') = '%s'" % hashed)
				is_error(tap, "a key that was revoked meanwhile gets no token", answer.result(), 401, "UnauthorizedError")
			else:
				c.patch(PATH, {"enabled": False})
				is_error(tap, "of what was disabled meanwhile nothing is handed out", answer.result(), 422, "ConnectionSettingsError")
		world.sim.realm("a", delay_ms=0)
		wait_until("quiet", v.quiet)
		c.post(PATH + "/import", body_of(tokens(world)[0], issued_at=iso(-30), expires_in=100))


# ---------------------------------------------------------------- a socket of the service manager

HAND_OVER = """
import fcntl, os, sys
high = [fcntl.fcntl(int(x), fcntl.F_DUPFD, 100) for x in sys.argv[1].split(",")]
for i, fd in enumerate(high):
	os.dup2(fd, 3 + i, inheritable=True)
	os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)))
if sys.argv[2] != "-":
	os.environ["LISTEN_FDNAMES"] = sys.argv[2]
os.execv(sys.argv[3], sys.argv[3:])
"""


def hand_over(v, sockets, names):
	"""As systemd does it: descriptors from 3 on, and their names in the environment of that very process."""
	v.wrap = [sys.executable, "-c", HAND_OVER, ",".join(str(s.fileno()) for s in sockets), names]
	return tuple(s.fileno() for s in sockets)


def listener(port=0):
	s = socket.socket()
	s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
	s.bind(("127.0.0.1", port))
	s.listen(128)
	return s


def handed_over(tap, world):
	v, c = open_vault(world, "handed")
	c.post(PATH + "/import", body_of(tokens(world)[0]))
	tap.equal("it stops", v.stop(), 0)
	with listener() as s:
		c = c.but(port=s.getsockname()[1])
		v.start(pass_fds=hand_over(v, [s], "api"))
		tap.equal("served at the socket that was handed over", c.get(PATH).status, 200)
		tap.equal("and told its port", v.logged("daemon.start")[-1]["api_port"], c.port)
		try:
			socket.create_connection(("127.0.0.1", v.api_port), 1).close()
			tap.check("not at api.listen", False)
		except OSError:
			tap.check("not at api.listen", True)
		statuses, errors, stop = [], [], []

		def ask():
			while not stop:
				try:
					statuses.append(c.get(PATH, timeout_s=30).status)
				except OSError as e:
					errors.append(repr(e))
		with concurrent.futures.ThreadPoolExecutor(6) as pool:
			for _ in range(4):
				pool.submit(ask)
			for n in range(2):
				before = len(statuses)
				wait_until("requests", lambda: len(statuses) > before + 50)
				tap.equal("restart %d" % n, v.stop(), 0)
				waiting = [pool.submit(c.get, PATH) for _ in range(2)]
				v.start(pass_fds=(s.fileno(),))
				tap.equal("who came in between is answered", [x.result().status for x in waiting], [200, 200])
			stop.append(True)
		tap.equal("no connection is refused, cut or sent away by a restart", (set(statuses), errors), ({200}, []))
		tap.equal("it stops", v.stop(), 0)


def refused_to_start(v, sockets, names):
	v.start(ready=False, pass_fds=hand_over(v, sockets, names))
	code = v.wait(20)
	return code != 0, [x.get("error", "") for x in v.log_lines() if x["level"] == "error"][-1:]


def handed_over_wrongly(tap, world):
	v, c = open_vault(world, "wrongly")
	v.stop()
	plain = socket.socket()
	plain.bind(("127.0.0.1", 0))
	datagram = socket.socket(type=socket.SOCK_DGRAM)
	datagram.bind(("127.0.0.1", 0))
	pair = socket.socketpair()
	with listener() as s, open(os.devnull) as null:
		for name, sockets, names, words in (
				("a socket that does not listen", [plain], "api", "not a listening stream socket"),
				("a datagram socket", [datagram], "api", "not a listening stream socket"),
				("a connected socket", [pair[0]], "api", "not a listening stream socket"),
				("a file", [null], "api", "inherited descriptor 3"),
				("a name that is not known", [s], "web", "'web'"),
				("no name", [s], "-", "'unknown'"),
				("fewer names than sockets", [s, plain], "api", "LISTEN_FDNAMES"),
				("a second one that is not known", [s, plain], "api:other", "'other'")):
			failed, said = refused_to_start(v, sockets, names)
			tap.check("%s is refused with the reason" % name, failed and said and words in said[0], (failed, said, v.log_text()[-600:]))
		del v.conf["api"]
		v.write_conf()
		failed, said = refused_to_start(v, [s], "api")
		tap.check("a socket without api.listen is refused", failed and said and "api.listen" in said[0], (failed, said, v.log_text()[-600:]))
	for x in (plain, datagram) + pair:
		x.close()


# ---------------------------------------------------------------- all at once

ALLOWED = {"import": {200}, "patch": {200, 404, 409}, "delete": {204, 404}, "validate": {200, 404, 422, 401, 502}, "credentials": {200, 404, 422, 401, 502},
	"get": {200}, "consumer": {200, 404, 409}}


def life_is_told(events):
	"""Does what was told of one connection make sense? created and deleted by turns, and nothing of what is not there."""
	there = False
	for name in events:
		if name == "created" and there or name != "created" and not there:
			return False
		there = name != "deleted"
	return there


def all_at_once(tap, world):
	v, c = open_vault(world, "all", api={"rate": "unlimited"}, refresh={"poll_interval": "100ms"})
	# The row is locked by whoever tells of it, so the order of the inserts is the order of what happened.
	v.sql("""
		CREATE TABLE watch.told (n bigserial, entity_id text, event_type text);
		CREATE FUNCTION watch.note_told() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN INSERT INTO watch.told (entity_id, event_type) VALUES (NEW.entity_id, NEW.event_type); RETURN NULL; END';
		CREATE TRIGGER told AFTER INSERT ON refreshd.event FOR EACH ROW EXECUTE FUNCTION watch.note_told();""")
	seed = int(os.environ.get("REFRESHD_SEED", str(random.randrange(10 ** 9))))
	tap.note("seed %d" % seed)
	given = tokens(world, n=400)
	consumers = ["r%d" % i for i in range(4)]
	wrong, done = [], collections.Counter()

	def act(n):
		rng = random.Random(seed * 1000 + n)
		for i in range(60):
			me, what = c.but(consumer=rng.choice(consumers)), rng.choice(list(ALLOWED) + ["import", "patch"])
			if what == "import":
				a = me.post(PATH + "/import", body_of(rng.choice(given[n * 50:n * 50 + 50]), expires_in=rng.choice((1, 3600)), issued_at=iso(-2)))
			elif what == "patch":
				a = me.patch(PATH, rng.choice(({"enabled": False}, {"enabled": True}, {"metadata": {"n": n}}, {"settings": {"s%d" % n: i}})))
			elif what == "delete":
				a = me.delete(PATH)
			elif what == "consumer":
				a = me.delete("/vault/consumers/" + me.consumer)
			elif what == "get":
				a = me.get(PATH)
			else:
				a = me.post(PATH + "/validate") if what == "validate" else me.get(PATH + "/credentials?min_ttl=100")
			done["%s %d" % (what, a.status)] += 1
			if a.status not in ALLOWED[what]:
				wrong.append((what, a))
	with concurrent.futures.ThreadPoolExecutor(8) as pool:
		list(pool.map(act, range(8)))
	tap.note(str(dict(done)))
	tap.equal("every answer is one of those that fit", wrong, [])
	wait_until("quiet", v.quiet, 30)
	for consumer in consumers:
		told = v.sql("SELECT event_type FROM watch.told WHERE entity_id = 'app+%s' ORDER BY n" % consumer).split()
		told = [x.split("connection.")[1] for x in told]
		there = v.count("refreshd.connection WHERE consumer_id = '%s'" % consumer) == 1
		tap.check("%s: %d events make a life, and its end is what is there" % (consumer, len(told)), life_is_told(told) == there, (there, told))
	left = [v.count("refreshd.%s x LEFT JOIN refreshd.connection c USING (slot, connection_id) WHERE c.slot IS NULL" % t)
		for t in ("schedule", "credential", "orphan_token")]
	tap.equal("nothing is left of what was deleted", left[:2], [0, 0])
	tap.equal("versions only grew", v.count("watch.shrunk"), 0)
	tap.equal("a drain ends well", v.stop(), 0)


def groups_in_order(tap, world):
	"""Two daemons, or a daemon and somebody else, that make the same rows wait for each other and never for ever: each makes them in order."""
	v, c = open_vault(world, "order", api={"rate": "unlimited"})
	v.sql("""CREATE TABLE watch.made (n bigserial, xid bigint DEFAULT txid_current(), slot int, connection_id uuid);
		CREATE FUNCTION watch.note_made() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN INSERT INTO watch.made (slot, connection_id) VALUES (NEW.slot, NEW.connection_id); RETURN NEW; END';
		CREATE TRIGGER made BEFORE INSERT ON refreshd.schedule FOR EACH ROW EXECUTE FUNCTION watch.note_made();""")
	given = tokens(world, n=60)
	c.get(PATH)
	held = hold(world, v, "LOCK TABLE refreshd.schedule")
	with concurrent.futures.ThreadPoolExecutor(60) as pool:
		before = accepted(v.api_port)
		answers = [pool.submit(c.but(consumer="o%d" % i).post, PATH + "/import", body_of(t)) for i, t in enumerate(given)]
		wait_until("all to be there", lambda: accepted(v.api_port) >= before + 60, 10)
		held.communicate("COMMIT;\n", timeout=10)
		tap.equal("all are imported", {a.result().status for a in answers}, {200})
	largest = int(v.sql("SELECT max(n) FROM (SELECT count(*) AS n FROM watch.made GROUP BY xid) x"))
	tap.check("the largest group has %d" % largest, largest >= 10)
	tap.equal("each group is made in the order of its keys", v.count("(SELECT (slot, connection_id) < lag((slot, connection_id)) OVER"
		" (PARTITION BY xid ORDER BY n) AS back FROM watch.made) x WHERE back"), 0)


def deleted_while_it_queues(tap, world):
	"""What is made long behind a deletion is told as later than that, however early it was asked for."""
	v, c = open_vault(world, "queues", api={"rate": "unlimited"}, database={"pool_size": 8})
	names, given = ["b0", "b1", "b2", "z"], tokens(world, n=8)
	for name, t in zip(names, given):
		c.but(consumer=name).post(PATH + "/import", body_of(t))
	held = hold(world, v, "DELETE FROM refreshd.schedule s USING refreshd.connection c WHERE c.connection_id = s.connection_id AND c.consumer_id <> 'z'")
	with concurrent.futures.ThreadPoolExecutor(4) as pool:
		answers = []
		for i, name in enumerate(names[:3]):  # nothing more is sent than three groups, and each of them waits
			answers.append(pool.submit(c.but(consumer=name).post, PATH + "/import", body_of(given[4 + i])))
			wait_until("group %d to wait" % i, lambda: v.count("pg_stat_activity WHERE wait_event_type = 'Lock'") == i + 1, 8)
		before = accepted(v.api_port)
		answers.append(pool.submit(c.but(consumer="z").post, PATH + "/import", body_of(given[7])))
		wait_until("it to queue", lambda: accepted(v.api_port) > before, 8)
		for _ in range(10):
			c.get(PATH)
		tap.equal("it is deleted meanwhile", c.but(consumer="z").delete(PATH).status, 204)
		gone = time.monotonic()
		wait_until("longer than a group may take", lambda: time.monotonic() - gone > 0.1, 8)  # before that it is told as of when it came
		held.communicate("ROLLBACK;\n", timeout=10)
		tap.equal("all are imported", {a.result().status for a in answers}, {200})
	tap.equal("the last that is told of it is that it is there", v.sql("SELECT event_type FROM refreshd.event WHERE entity_id = 'app+z'"
		" ORDER BY occurred_at DESC LIMIT 1"), "vault.connection.created")


# ---------------------------------------------------------------- invented keys

def lock_keys(world, v):
	"""Nobody can look up a key until .communicate("COMMIT;")."""
	return hold(world, v, "LOCK TABLE refreshd.api_key")


def hold(world, v, what):
	session = subprocess.Popen([os.path.join(world.pg.bindir, "psql"), "-X", "-q", "-A", "-t", "-d", world.pg.url(v.dbname)], stdin=subprocess.PIPE,
		stdout=subprocess.PIPE, text=True)
	session.stdin.write("BEGIN; %s; SELECT 'held';\n" % what)
	session.stdin.flush()
	while "held" not in session.stdout.readline():
		pass
	return session


def invented_keys(tap, world):
	v, c = open_vault(world, "invented", api={"rate": "unlimited"})
	c.post(PATH + "/import", body_of(tokens(world)[0]))
	held = lock_keys(world, v)
	with concurrent.futures.ThreadPoolExecutor(100) as pool:
		answers = [pool.submit(c.but(key="invented-%d" % i).get, PATH) for i in range(100)]
		wait_until("most to be sent away", lambda: sum(a.done() for a in answers) >= 36, 10)
		held.communicate("COMMIT;\n", timeout=10)
		counts = collections.Counter(a.result().status for a in answers)
	tap.check("no more than 64 are looked up at once, the others come again later", counts[503] >= 36 and set(counts) <= {401, 503}, counts)
	tap.equal("a good key goes on", c.get(PATH).status, 200)
	tap.equal("and another one is looked up", c.but(key=new_key(v, "app")).get(PATH).status, 200)
	counts = collections.Counter(c.but(key="invented-%d" % i).get(PATH).status for i in range(150))
	tap.equal("one after the other all are told", counts, {401: 150})


def accepted(port):
	"""Established connections to the port."""
	with open("/proc/net/tcp") as f:
		return sum(x.split()[1].endswith(":%04X" % port) and x.split()[3] == "01" for x in f.readlines()[1:])


def one_new_key(tap, world):
	"""A client that begins with a hundred connections at once is no flood: they wait for one look-up."""
	v, c = open_vault(world, "newkey", api={"rate": "unlimited"})
	c.post(PATH + "/import", body_of(tokens(world)[0]))
	one, poor = new_key(v, "app"), new_key(v, "app", ["webhooks:write"])
	held = lock_keys(world, v)
	with concurrent.futures.ThreadPoolExecutor(120) as pool:
		answers = [pool.submit(c.but(key=one).get, PATH) for _ in range(100)]
		refused = [pool.submit(c.but(key=k).get, PATH) for k in ["invented"] * 10 + [poor] * 10]
		wait_until("all to be there", lambda: accepted(v.api_port) >= 120, 10)
		held.communicate("COMMIT;\n", timeout=10)
		counts = collections.Counter(a.result().status for a in answers)
		others = collections.Counter(a.result().status for a in refused)
	tap.equal("all of them are served", counts, {200: 100})
	tap.equal("what is refused is refused to each", others, {401: 20})


def waiting_for(pool, v, key, n, c):
	"""n calls with one key, all of which have been heard."""
	before = accepted(v.api_port)
	answers = [pool.submit(c.but(key=key).get, PATH) for _ in range(n)]
	wait_until("all to be there", lambda: accepted(v.api_port) >= before + n, 10)
	return answers


def look_ups_that_end_otherwise(tap, world):
	"""Who waits goes away, the key is revoked meanwhile, the database goes, and so does the daemon."""
	v, c = open_vault(world, "otherwise", api={"rate": "unlimited"})
	c.post(PATH + "/import", body_of(tokens(world)[0]))
	gone, revoked, away, last = (new_key(v, "app") for _ in range(4))
	held = lock_keys(world, v)
	with concurrent.futures.ThreadPoolExecutor(60) as pool:
		left = []
		for _ in range(50):
			s = socket.create_connection(("127.0.0.1", v.api_port))
			s.sendall(("GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nx-apideck-app-id: app\r\nx-apideck-consumer-id: c1\r\n\r\n"
				% (PATH, gone)).encode())
			left.append(s)
		stays = waiting_for(pool, v, gone, 3, c)
		for s in left:
			s.close()
		answers = waiting_for(pool, v, revoked, 20, c)
		held.communicate("UPDATE refreshd.api_key SET revoked_at = now() WHERE key_sha256 = sha256(convert_to('%s', 'UTF8')); COMMIT;\n" % revoked, timeout=10)
		tap.equal("of many with one key those who stayed are served", [a.result().status for a in stays], [200] * 3)
		tap.equal("a key that is revoked during its look-up is refused to all", {a.result().status for a in answers}, {401})
		held = lock_keys(world, v)
		answers = waiting_for(pool, v, away, 20, c)
		world.pg.stop("immediate")
		held.communicate()
		tap.equal("a look-up that the database takes with it: all are told", {a.result().status for a in answers}, {503})
		world.pg.start()
		wait_until("the database to be back", lambda: c.but(key=away).get(PATH).status == 200, 60)
		held = lock_keys(world, v)
		answers = waiting_for(pool, v, last, 20, c)
		v.signal(15)
		held.communicate("COMMIT;\n", timeout=10)
		tap.check("a look-up that ends in the drain: all are told", {a.result().status for a in answers} <= {200, 503}, [a.result() for a in answers[:1]])
	tap.equal("and the daemon ends well", v.wait(), 0)


def a_provider_that_hangs(tap, world):
	world.sim.realm("b", mode="strict", at_ttl=3600, client_secret=CLIENT_SECRET)
	v, c = open_vault(world, "hangs", providers={"a": {}, "b": {}}, api={"rate": "unlimited"})
	n = 140
	given = tokens(world, n=n)
	with concurrent.futures.ThreadPoolExecutor(16) as pool:
		list(pool.map(lambda i: c.but(consumer="h%d" % i).post(PATH + "/import", body_of(given[i])), range(n)))
	c.post(connection_path("b", tail="/import"), body_of(tokens(world, "b")[0]))
	world.sim.realm("a", delay_ms=4000)
	with concurrent.futures.ThreadPoolExecutor(n) as pool:
		answers = [pool.submit(c.but(consumer="h%d" % i).post, PATH + "/validate") for i in range(n)]
		wait_until("some to be sent away", lambda: sum(a.done() for a in answers) >= n - 128, 20)
		began = time.monotonic()
		tap.equal("a call for another connector", c.post(connection_path("b", tail="/validate")).status, 200)
		tap.check("does not wait for it", time.monotonic() - began < 2, time.monotonic() - began)
		world.sim.realm("a", delay_ms=0)
		counts = collections.Counter(a.result().status for a in answers)
	tap.equal("of those that waited all are answered, and the rest was told to come again", counts, {200: 128, 503: n - 128})


SCENARIOS = [deleted_while_out, large_list, a_provider_that_hangs, all_at_once, groups_in_order, deleted_while_it_queues, invented_keys, one_new_key, look_ups_that_end_otherwise, handed_over, handed_over_wrongly, large_bodies_over_tls, forged_cursors, headers_given_twice, numbers_that_grow, changes_together, settings_missing, while_a_call_waits]


def main():
	tap = Tap()
	with World("edges", realms=["a:mode=strict,at_ttl=3600,client_secret=" + CLIENT_SECRET]) as world:
		tap.run(SCENARIOS, world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
