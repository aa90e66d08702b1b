#!/usr/bin/env python3
"""Webhook endpoints through the API, against the real daemon, a private Postgres and receivers over TLS under a private CA: the check before
they are stored, both kinds of signatures (Ed25519 by the openssl lines of docs/webhooks.md), rotation, switching off and on,
redelivery, the log, what refreshctl makes, and two applications that must not see each other."""
import base64
import collections
import concurrent.futures
import hashlib
import hmac
import http.client
import http.server
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import uuid

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from apiclient import Client, connection_path
from openapi import document
from world import Tap, World, free_port, wait_until

HOOKS = "/webhook/webhooks"
DOC = os.path.join(os.environ.get("TOP_SRCDIR", "."), "docs/webhooks.md")


def openssl(*args):
	subprocess.run(["openssl"] + list(args), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Sink:
	"""An HTTPS receiver: what came is kept by path, what is answered is set by path."""

	def __init__(self, folder):
		self.ca, self.got, self.status, self.lock = os.path.join(folder, "ca.crt"), {}, {}, threading.Lock()
		self.closing = threading.Event()
		key, crt = os.path.join(folder, "sink.key"), os.path.join(folder, "sink.crt")
		openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", crt,
			"-days", "2", "-subj", "/CN=sink", "-addext", "subjectAltName=IP:127.0.0.1")
		os.replace(crt, self.ca)
		sink = self

		class Handler(http.server.BaseHTTPRequestHandler):
			protocol_version = "HTTP/1.1"

			def do_POST(self):
				body = self.rfile.read(int(self.headers["content-length"]))
				with sink.lock:
					sink.got.setdefault(self.path, []).append((dict(self.headers), body))
					status = sink.status.get(self.path, 200)
				if status == "hang":
					sink.closing.wait(60)
					return
				self.send_response(status)
				self.send_header("content-length", "0")
				self.end_headers()

			def log_message(self, *args):
				pass

		self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
		self.server.daemon_threads = True
		context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
		context.load_cert_chain(self.ca, key)
		self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
		threading.Thread(target=self.server.serve_forever, daemon=True).start()
		self.base = "https://127.0.0.1:%d" % self.server.server_address[1]

	def of(self, path, event_type=None):
		with self.lock:
			return [(h, b) for h, b in self.got.get(path, []) if event_type in (None, h["x-apideck-event-type"])]

	def close(self):
		self.closing.set()
		self.server.shutdown()
		self.server.server_close()


def new_key(vault, app, *scopes):
	args = ["--json", "key", "add", app]
	for s in scopes:
		args += ["--scope", s]
	return json.loads(vault.ctl(*args).stdout)["key"]


def open_vault(world, name, sink):
	port = free_port()
	v = world.vault(name, providers={"a": {}}, api={"listen": "127.0.0.1:%d" % port}, delivery={"ca_file": sink.ca})
	clients = {}
	for app in ("app", "other"):
		v.ctl("app", "add", app)
		clients[app] = Client(port, new_key(v, app, "connections:read", "connections:write", "webhooks:write"), app)
	v.start()
	return v, clients["app"], clients["other"]


def connect(world, client, consumer):
	"""Imports a connection: vault.connection.created for the client's application."""
	line = world.sim.mint("a", 1)[0]
	a = client.but(consumer=consumer).post(connection_path("a") + "/import", {"credentials": line["credentials"]})
	assert a.status == 200, a


def signed_text(headers, body):
	return ("%s.%s." % (headers["webhook-id"], headers["webhook-timestamp"])).encode() + body


def signatures(headers, version):
	return [s.split(",", 1)[1] for s in headers["webhook-signature"].split(" ") if s.startswith(version + ",")]


def hmac_fits(request, secret):
	key = base64.b64decode(secret[len("whsec_"):])
	want = base64.b64encode(hmac.new(key, signed_text(*request), hashlib.sha256).digest()).decode()
	return want in signatures(request[0], "v1")


def apideck_fits(request, secret):
	return request[0]["x-apideck-signature"] == hmac.new(secret.encode(), request[1], hashlib.sha256).hexdigest()


def documented_lines():
	with open(DOC) as f:
		block = re.search(r"\*\*Ed25519\*\*.*?\n\n((?:    [^\n]*\n)+)", f.read(), re.S).group(1)
	return "set -e -o pipefail\n" + re.sub(r"^    ", "", block, flags=re.M)


def ed25519_fits(world, request, public_key):
	folder = os.path.join(world.dir, "v1a-" + uuid.uuid4().hex)
	os.mkdir(folder)
	with open(os.path.join(folder, "body"), "wb") as f:
		f.write(request[1])
	for s in signatures(request[0], "v1a"):
		env = dict(os.environ, public_key=public_key, signature=s, webhook_id=request[0]["webhook-id"],
			webhook_timestamp=request[0]["webhook-timestamp"])
		if subprocess.run(["bash", "-c", documented_lines()], cwd=folder, env=env, stdout=subprocess.DEVNULL,
				stderr=subprocess.DEVNULL).returncode == 0:
			return True
	return False


def create(client, sink, path, events=("*",), **more):
	return client.post(HOOKS, dict({"delivery_url": sink.base + path, "events": list(events), "unified_api": "vault", "status": "enabled"}, **more))


def wait_events(sink, path, n, event_type="vault.connection.created"):
	wait_until("%d events at %s" % (n, path), lambda: len(sink.of(path, event_type)) >= n, 20)
	return sink.of(path, event_type)


def wait_recorded(client):
	"""What the receiver has seen is written down a moment later."""
	wait_until("the outcomes to be written", lambda: not any(x["retry_scheduled"] for x in client.get("/webhook/logs?limit=200").data), 20)


# ---------------------------------------------------------------- made, and delivered to

def life(tap, world):
	sink = world.sink
	v, c, other = open_vault(world, "life", sink)
	a = create(c, sink, "/life", description="first")
	tap.equal("an endpoint is made with 201", (a.status, a.json["status_code"], a.json["status"]), (201, 201, "Created"))
	hook = a.data
	tap.check("its secret and its public key are shown", hook["secret"].startswith("whsec_") and hook["public_key"].startswith("whpk_"), a)
	tap.equal("what was asked for", (hook["delivery_url"], hook["events"], hook["description"], hook["unified_api"], hook["status"],
		hook["disabled_reason"]), (sink.base + "/life", ["*"], "first", "vault", "enabled", "none"))
	tests = sink.of("/life")
	tap.equal("it was asked by one test event", [h["x-apideck-event-type"] for h, _ in tests], ["refreshd.webhook.test"])
	tap.check("which was signed: HMAC, Ed25519, Apideck's", hmac_fits(tests[0], hook["secret"]) and
		ed25519_fits(world, tests[0], hook["public_key"]) and apideck_fits(tests[0], hook["secret"]), tests)
	payload = json.loads(tests[0][1])["payload"]
	tap.equal("and names the endpoint and its application", (payload["entity"]["id"], payload["entity"]["application_id"]), (hook["id"], "app"))
	for method, path in (("GET", HOOKS + "/" + hook["id"]), ("GET", HOOKS)):
		b = c.call(method, path)
		tap.check("the secret is not shown again: " + path.replace(hook["id"], "{id}"), b.status == 200 and "secret\"" not in b.body and "whsec_" not in b.body
			and hook["id"] in b.body and hook["public_key"] in b.body, b)
	tap.equal("and the database does not know it", v.sql("SELECT count(*) FROM refreshd.webhook_endpoint w WHERE w::text LIKE '%%%s%%' OR"
		" position('\\x%s'::bytea in secret) > 0" % (hook["secret"][6:20], hook["secret"].encode().hex())), "0")

	theirs = create(other, sink, "/theirs").data
	connect(world, c, "c1")
	got = wait_events(sink, "/life", 1)
	tap.check("an event comes, signed in all three ways", hmac_fits(got[0], hook["secret"]) and apideck_fits(got[0], hook["secret"]) and
		ed25519_fits(world, got[0], hook["public_key"]), got)
	tap.check("a changed body does not pass", not ed25519_fits(world, (got[0][0], got[0][1] + b" "), hook["public_key"]))
	tap.check("nor another endpoint's key", not ed25519_fits(world, got[0], theirs["public_key"]))
	connect(world, other, "c1")
	wait_events(sink, "/theirs", 1)
	tap.equal("each application gets its own events", (len(sink.of("/life", "vault.connection.created")),
		len(sink.of("/theirs", "vault.connection.created"))), (1, 1))

	tap.equal("another application's endpoint is not there", [c.call(m, HOOKS + "/" + theirs["id"] + tail, body).status for m, tail, body in (
		("GET", "", None), ("PATCH", "", {"description": "x"}), ("DELETE", "", None), ("POST", "/rotate-secret", {}),
		("POST", "/redeliver", {"from": 0}))], [404] * 5)
	tap.equal("nor in the list or the log", (theirs["id"] in c.get(HOOKS).body, theirs["id"] in c.get("/webhook/logs").body), (False, False))
	reader = c.but(key=new_key(v, "app", "connections:read", "connections:write"))
	tap.equal("a key without webhooks:write is refused", [reader.get(HOOKS).status, create(reader, sink, "/x").status], [401, 401])

	v.stop()
	v.start()
	connect(world, c, "c2")
	wait_events(sink, "/life", 2)
	tap.check("after a restart it is served from the database", hmac_fits(sink.of("/life")[-1], hook["secret"]))

	b = c.patch(HOOKS + "/" + hook["id"], {"events": ["vault.connection.deleted"], "description": "second"})
	tap.equal("events are changed", (b.status, b.data["events"], b.data["description"]), (200, ["vault.connection.deleted"], "second"))
	connect(world, c, "c3")
	c.but(consumer="c3").delete(connection_path("a"))
	wait_events(sink, "/life", 1, "vault.connection.deleted")
	tap.equal("and only those come then", len(sink.of("/life", "vault.connection.created")), 2)
	b = c.delete(HOOKS + "/" + hook["id"])
	tap.equal("it is deleted", (b.status, b.data, c.get(HOOKS + "/" + hook["id"]).status, c.delete(HOOKS + "/" + hook["id"]).status),
		(200, {"id": hook["id"]}, 404, 404))
	tap.check("no secret is in the log", "whsec_" not in v.log_text() and "whsk_" not in v.log_text())


# ---------------------------------------------------------------- refused

def refused(tap, world):
	sink = world.sink
	v, c, _ = open_vault(world, "refused", sink)
	sink.status.update({"/500": 500, "/302": 302, "/404": 404})
	for path in ("/500", "/302", "/404"):
		a = create(c, sink, path)
		tap.check("an endpoint that answers %s is refused" % path[1:], a.status == 400 and a.json["type_name"] == "RequestValidationError" and
			path[1:] in a.json["detail"]["delivery_url"], a)
	for name, url in (("a private address", "https://10.0.0.1/"), ("link-local", "https://169.254.169.254/"), ("plain http", "http://8.8.8.8/"),
			("no URL", "hello"), ("a password", "https://a:b@hooks.example.com/"), ("another certificate", "https://localhost:%s/" % sink.base.rsplit(":", 1)[1])):
		a = c.post(HOOKS, {"delivery_url": url, "events": ["*"]})
		tap.check("%s is refused" % name, a.status == 400 and "delivery_url" in a.json["detail"], a)
	good = {"delivery_url": sink.base + "/refused", "events": ["*"]}
	for name, change, field in (("no URL at all", {"delivery_url": None}, "delivery_url"), ("no events", {"events": None}, "events"),
			("an empty list", {"events": []}, "events"), ("events as text", {"events": "*"}, "events"),
			("an unknown event", {"events": ["crm.contact.created"]}, "events[0]"), ("a number", {"events": ["*", 7]}, "events[1]"),
			("a disabled one", {"status": "disabled"}, "status"), ("a short secret", {"secret": "whsec_aGVsbG8="}, "secret"),
			("a secret of another kind", {"secret": "0123456789abcdef0123456789"}, "secret"), ("a description that is none", {"description": []}, "description")):
		a = c.post(HOOKS, dict(good, **change))
		tap.check(name + " is refused", a.status == 400 and field in a.json["detail"] and "aGVsbG8" not in a.body, a)
	tap.equal("wrong bodies", [c.call("POST", HOOKS, b).status for b in (b"", b"[]", b"{", b'{"events":1,"events":2}')], [400] * 4)
	tap.equal("nothing of it was stored", v.count("refreshd.webhook_endpoint"), 0)
	tap.equal("nothing but test events was sent", [h["x-apideck-event-type"] for h, _ in sink.of("/refused") if h["x-apideck-event-type"] != "refreshd.webhook.test"], [])
	tap.equal("ids that are none", [c.get(HOOKS + "/" + i).status for i in ("x", str(uuid.uuid4()), "config:ops")], [404] * 3)

	own = "whsec_" + base64.b64encode(b"a secret of our own, 32 bytes!!!").decode()
	a = c.post(HOOKS, dict(good, secret=own))
	tap.check("a secret of one's own is taken and not told back", a.status == 201 and "secret" not in a.data and own not in a.body, a)
	tap.check("it signs the very first event", hmac_fits(sink.of("/refused")[-1], own))
	b = c.patch(HOOKS + "/" + a.data["id"], {"delivery_url": sink.base + "/500"})
	tap.equal("a new URL must agree, too", (b.status, c.get(HOOKS + "/" + a.data["id"]).data["delivery_url"]), (400, sink.base + "/refused"))
	n = len(sink.of("/refused2"))
	b = c.patch(HOOKS + "/" + a.data["id"], {"delivery_url": sink.base + "/refused2"})
	tap.check("and is taken when it does", b.status == 200 and len(sink.of("/refused2")) == n + 1 and hmac_fits(sink.of("/refused2")[-1], own), b)
	made = [c.post(HOOKS, good).status for _ in range(44)]
	tap.equal("many endpoints", set(made), {201})
	# Between the count and the row that makes it wrong.
	v.sql("CREATE FUNCTION watch.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END';"
		" CREATE TRIGGER slow BEFORE INSERT ON refreshd.webhook_endpoint FOR EACH ROW EXECUTE FUNCTION watch.slow()")
	with concurrent.futures.ThreadPoolExecutor(4) as pool:  # as many as are checked at once
		made = collections.Counter(pool.map(lambda _: c.post(HOOKS, good).status, range(20)))
	tap.equal("fifty are the most, however many are made at once", (made, c.post(HOOKS, good).status), ({201: 5, 409: 15}, 409))
	v.sql("DROP TRIGGER slow ON refreshd.webhook_endpoint")
	pages, cursor = [], ""
	while cursor is not None:
		a = c.get(HOOKS + "?limit=20&cursor=" + cursor)
		pages.append([h["id"] for h in a.data])
		cursor = a.json["meta"]["cursors"]["next"]
	tap.equal("pages of the list", ([len(p) for p in pages], len(set(sum(pages, [])))), ([20, 20, 10], 50))
	tap.equal("a cursor of our own making is refused", [c.get(p + "?cursor=abc").status for p in (HOOKS, "/webhook/logs")], [400, 400])


# ---------------------------------------------------------------- rotation

def rotation(tap, world):
	sink = world.sink
	_, c, _ = open_vault(world, "rotation", sink)
	old = create(c, sink, "/rotation").data
	path = HOOKS + "/" + old["id"]
	a = c.post(path + "/rotate-secret")
	new = a.data
	tap.check("a rotation shows the new keys", a.status == 200 and new["secret"] not in (None, old["secret"]) and new["public_key"] != old["public_key"], a)
	tap.check("and when the old ones end", "previous_secret_ends_at" in new, a)
	connect(world, c, "c1")
	got = wait_events(sink, "/rotation", 1)[0]
	tap.check("old and new sign side by side", hmac_fits(got, new["secret"]) and hmac_fits(got, old["secret"]) and
		ed25519_fits(world, got, new["public_key"]) and ed25519_fits(world, got, old["public_key"]), got)
	tap.check("Apideck's signature keeps to the old one meanwhile", apideck_fits(got, old["secret"]))
	a = c.post(path + "/rotate-secret", {"overlap_seconds": 1})
	last = a.data
	wait_until("the overlap to end", lambda: "previous_secret_ends_at" not in c.get(path).data, 10)
	connect(world, c, "c2")
	got = wait_events(sink, "/rotation", 2)[-1]
	tap.check("after the overlap only the last one signs", hmac_fits(got, last["secret"]) and not hmac_fits(got, new["secret"]) and
		not hmac_fits(got, old["secret"]) and apideck_fits(got, last["secret"]) and ed25519_fits(world, got, last["public_key"]) and
		not ed25519_fits(world, got, new["public_key"]) and len(signatures(got[0], "v1")) == 1, got)
	a = c.post(path + "/rotate-secret", {"overlap_seconds": 0})
	tap.check("without an overlap the old one ends at once", a.status == 200 and "previous_secret_ends_at" not in a.data, a)
	connect(world, c, "c3")
	got = wait_events(sink, "/rotation", 3)[-1]
	tap.check("and does not sign any more", hmac_fits(got, a.data["secret"]) and not hmac_fits(got, last["secret"]), got)
	tap.equal("wrong overlaps", [c.post(path + "/rotate-secret", {"overlap_seconds": x}).status for x in (-1, 1.5, "1", 30 * 86400 + 1)], [400] * 4)


# ---------------------------------------------------------------- off, on, once more, the log

def again(tap, world):
	sink = world.sink
	v, c, _ = open_vault(world, "again", sink)
	hook = create(c, sink, "/again", ["vault.connection.created"]).data
	path = HOOKS + "/" + hook["id"]
	connect(world, c, "c1")
	first = wait_events(sink, "/again", 1)[0][0]["webhook-id"]
	sink.status["/again"] = 410
	connect(world, c, "c2")
	wait_until("the endpoint to be off", lambda: c.get(path).data["status"] == "disabled", 20)
	a = c.get(path).data
	tap.equal("410 switches it off and says why", (a["disabled_reason"], a["disabled_cause"], "disabled_at" in a), ("retry_limit", "gone", True))
	connect(world, c, "c3")
	wait_recorded(c)
	wait_until("the event to be fanned out", lambda: v.count("refreshd.event WHERE fanned_out_at IS NULL") == 0, 20)
	tap.equal("an endpoint that is off takes no redelivery", c.post(path + "/redeliver", {"from": 0}).status, 409)
	sink.status["/again"] = 200
	a = c.patch(path, {"status": "enabled"})
	tap.check("it is switched on", a.status == 200 and a.data["status"] == "enabled" and a.data["disabled_reason"] == "none" and "disabled_cause" not in a.data, a)
	a = c.post(path + "/redeliver", {"from": 0})
	tap.equal("what did not arrive is sent, also what happened while it was off", (a.status, a.data, a.json["meta"]["cursors"]["next"]),
		(200, {"id": hook["id"], "queued": 2}, None))
	got = wait_events(sink, "/again", 4) # c1, the refused c2, and two more
	wait_recorded(c)
	tap.equal("three consumers were told of", sorted({json.loads(b)["payload"]["entity"]["consumer_id"] for _, b in got}), ["c1", "c2", "c3"])
	tap.equal("again, nothing is left", c.post(path + "/redeliver", {"from": 0}).data["queued"], 0)
	a = c.post(path + "/redeliver", {"event_id": first})
	tap.equal("one event is sent once more", (a.status, a.data["queued"]), (200, 1))
	got = wait_events(sink, "/again", 5)
	wait_recorded(c)
	tap.equal("under its own id", got[-1][0]["webhook-id"], first)
	a = c.post(path + "/redeliver", {"from": 0, "all": True})
	tap.equal("all of a time range", a.data["queued"], 3)
	wait_events(sink, "/again", 8)
	tap.equal("an event of long ago", c.post(path + "/redeliver", {"event_id": str(uuid.uuid4())}).status, 404)
	tap.equal("wrong wishes", [c.post(path + "/redeliver", b).status for b in ({}, {"from": "yesterday"}, {"from": 5, "to": 5}, {"event_id": "x"},
		{"event_id": first, "from": 0}, {"from": 0, "all": 1}, {"from": 0, "cursor": "x"})], [400] * 7)
	wait_recorded(c)
	seen, cursor = [], ""
	while cursor is not None:
		a = c.get("/webhook/logs?limit=1&cursor=" + cursor)
		seen += a.data
		cursor = a.json["meta"]["cursors"]["next"]
	tap.equal("the log in pages of one, newest first", (len(seen), seen[-1]["id"], sorted((x["timestamp"] for x in seen), reverse=True) ==
		[x["timestamp"] for x in seen]), (3, first, True))
	tap.equal("an entry", {k: seen[0][k] for k in ("webhook_id", "success", "status_code", "event_type", "http_method", "retry_scheduled", "endpoint")},
		{"webhook_id": hook["id"], "success": True, "status_code": 200, "event_type": "vault.connection.created", "http_method": "POST",
			"retry_scheduled": False, "endpoint": sink.base + "/again"})
	sink.status["/again"] = 500
	connect(world, c, "c4")
	wait_until("a failure in the log", lambda: len(c.get("/webhook/logs?failed=true").data) == 1, 20)
	a = c.get("/webhook/logs?failed=true&webhook_id=" + hook["id"]).data[0]
	tap.equal("a failure that is tried again", (a["success"], a["status_code"], a["error"], a["retry_scheduled"], "next_attempt_at" in a),
		(False, 500, "http_status", True, True))
	tap.equal("another endpoint's log is empty", c.get("/webhook/logs?webhook_id=" + str(uuid.uuid4())).data, [])
	a = c.patch(path, {"status": "disabled"})
	tap.equal("it can be switched off by hand", (a.data["status"], a.data["disabled_reason"], a.data["disabled_cause"]), ("disabled", "none", "requested"))
	hanging = create(c, sink, "/again2").data
	tap.equal("and forgotten", c.delete(HOOKS + "/" + hanging["id"]).status, 200)
	tap.equal("the daemon ends well", v.stop(), 0)


def rekeyed(tap, world):
	sink = world.sink
	v, c, _ = open_vault(world, "rekeyed", sink)
	old = create(c, sink, "/rekeyed").data
	new = c.post(HOOKS + "/" + old["id"] + "/rotate-secret").data
	v.stop()
	fresh = "k9 " + base64.b64encode(os.urandom(32)).decode() + "\n"
	v.write("keyring", fresh + v.keyring)
	v.ctl("rekey")
	v.write("keyring", fresh)
	tap.equal("both secrets are under the first key", v.sql("SELECT count(*) FROM refreshd.webhook_endpoint WHERE"
		" substring(secret FROM 1 FOR 4) = '\\x01026b39' AND substring(previous_secret FROM 1 FOR 4) = '\\x01026b39'"), "1")
	v.start()
	connect(world, c, "c1")
	got = wait_events(sink, "/rekeyed", 1)[0]
	tap.check("and sign without the old key", hmac_fits(got, old["secret"]) and hmac_fits(got, new["secret"]) and
		ed25519_fits(world, got, old["public_key"]) and ed25519_fits(world, got, new["public_key"]), got)


def by_operator(tap, world):
	sink = world.sink
	v, c, _ = open_vault(world, "operator", sink)
	made = json.loads(v.ctl("--json", "webhook", "add", "--app", "app", "--url", sink.base + "/operator").stdout)
	tap.equal("an endpoint that refreshctl makes is not asked", sink.of("/operator"), [])
	out = v.ctl("webhook", "test", made["id"])
	got = sink.of("/operator", "refreshd.webhook.test")
	tap.check("refreshctl webhook test sends it one event", len(got) == 1 and "delivered" in out.stdout, out)
	tap.check("signed by what was printed", hmac_fits(got[0], made["secret"]) and ed25519_fits(world, got[0], made["public_key"]), got)
	connect(world, c, "c1")
	wait_events(sink, "/operator", 1)
	shown = [x for x in c.get(HOOKS).data if x["id"] == made["id"]]
	tap.check("the application sees it among its own", len(shown) == 1 and shown[0]["public_key"] == made["public_key"]
		and shown[0]["delivery_url"] == made["url"] and "secret" not in shown[0], shown)
	sink.status["/operator"] = 410
	out = v.ctl("webhook", "test", made["id"], good=False)
	tap.check("a test that is answered with 410", out.returncode == 1 and "410" in out.stderr, out)
	wait_until("the endpoint to be off", lambda: json.loads(v.ctl("--json", "webhook", "list").stdout)[-1]["state"] == "switched off", 20)
	sink.status["/operator"] = 200
	v.ctl("webhook", "enable", made["id"])
	out = v.ctl("webhook", "test", made["id"])
	tap.check("refreshctl webhook enable, and it arrives again", "delivered" in out.stdout, out)
	v.ctl("webhook", "remove", made["id"])
	connect(world, c, "c2")
	tap.equal("refreshctl webhook remove, and the application has none", c.get(HOOKS).data, [])
	tap.equal("the daemon ends well", v.stop(), 0)
	tap.equal("what came after reached nobody", len(sink.of("/operator", "vault.connection.created")), 1)


def stopped(tap, world):
	sink = world.sink
	v, c, _ = open_vault(world, "stopped", sink)
	sink.status["/hang"] = "hang"
	answers = []

	def ask():
		try:
			answers.append(create(c, sink, "/hang").status)
		except OSError as e:
			answers.append(type(e).__name__)
		except http.client.HTTPException as e:
			answers.append(type(e).__name__)
	askers = [threading.Thread(target=ask) for _ in range(10)]
	for t in askers:
		t.start()
	wait_until("the checks to be under way", lambda: len(sink.of("/hang")) >= 4 and len(answers) >= 6, 20)
	tap.equal("four checks at once are the most of one application", answers, [429] * 6)
	tap.equal("the daemon ends well in the middle of them", v.stop(), 0)
	for t in askers:
		t.join()
	tap.check("and nobody was told that it was made", len(answers) == 10 and 201 not in answers, answers)
	tap.equal("nor was it", v.count("refreshd.webhook_endpoint"), 0)


def main():
	tap = Tap()
	with World("subs", realms=["a"]) as world:
		world.sink = Sink(world.dir)
		try:
			tap.run([life, refused, rotation, again, rekeyed, by_operator, stopped], world)
		finally:
			world.sink.close()
	if not sys.argv[1:]:
		left = document.unseen("/webhook/")
		tap.equal("every route's success was seen and is as docs/openapi.json says", left, [])
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
