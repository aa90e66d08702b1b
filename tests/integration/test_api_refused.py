#!/usr/bin/env python3
"""Requests that must be refused, each with exactly the status and error that it deserves; and afterwards nothing has changed and
the daemon is well. Framing is tried by raw sockets, bodies and paths by crafted requests, and a random part prints its seed."""
import json
import os
import random
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from apiclient import connection_path
from test_api import body_of, is_error, iso, open_vault, tokens
from world import CLIENT_SECRET, Tap, World

CANARY = "canary-Tf9xQ"
IMPORT = connection_path("a", tail="/import")


def refused(tap, name, a, status, type_name):
	good = is_error(tap, name, a, status, type_name)
	if CANARY in a.body:
		tap.check(name + ": repeats what was sent", False, a)
	return good


# ---------------------------------------------------------------- bodies

NOT_JSON = [b"", b" ", b"{", b"}", b"nul", b"null", b"[]", b"1", b'"x"', b"true", b"{}{}", b"{} x", b"{'a':1}", b"{a:1}", b'{"a":1,}', b'{"a" 1}',
	b'{"a":}', b'{"a":01}', b'{"a":+1}', b'{"a":.5}', b'{"a":0x10}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":"\n"}', b'{"a":"\\x"}',
	b'{"a":"\\u12"}', b'{"a":1,"a":2}', b'{"a":{"b":1,"b":2}}', b'{"credentials":{},"credentials":{}}',
	b'{"a":"\xff"}', b'{"a":"\xc0\xaf"}', b'{"a":"\xed\xa0\x80"}', b"\xff\xfe{\x00}\x00", b'{"a":"\x00"}', b'{"a":1}\x00', b"/* */{}", b"// x\n{}",
	b'{"a":1e999}', b"[" * 100000, b'{"a":' * 40 + b"1" + b"}" * 40, b'{"a":[' * 20 + b"1" + b"]}" * 20, b'{"\xc3":1}', b"access_token=x&refresh_token=y"]


def bodies(tap, world):
	v, c = open_vault(world, "bodies", api={"rate": "unlimited"})
	good = tokens(world)[0]
	for body in NOT_JSON:
		refused(tap, "import of %r" % body[:40], c.post(IMPORT, body), 400, "RequestValidationError")
	c.but(consumer="there").post(IMPORT, body_of(good))
	there = c.but(consumer="there")
	for body in NOT_JSON:
		refused(tap, "patch with %r" % body[:40], there.patch(connection_path("a"), body), 400, "RequestValidationError")
		if body.strip() not in (b"",):
			refused(tap, "validate with %r" % body[:40], there.post(connection_path("a", tail="/validate"), body), 400, "RequestValidationError")
	tap.equal("the one that was there is as it was", there.get(connection_path("a")).data["settings"], {})


def wrong_fields():
	"""(name, body, fields that detail must name)"""
	good = {"access_token": "at", "refresh_token": "rt", "issued_at": iso(), "expires_in": 3600}

	def credentials(**changes):
		return {"credentials": dict(good, **changes)}
	out = [("no credentials", {}, ["credentials.access_token"]), ("null credentials", {"credentials": None}, ["credentials.access_token"]),
		("empty credentials", {"credentials": {}}, ["credentials.access_token"]), ("several at once", {"credentials": {"access_token": 1,
			"refresh_token": [], "issued_at": 5, "expires_in": "x", "more": 1}, "settings": 1, "metadata": []},
			["credentials.access_token", "credentials.refresh_token", "credentials.issued_at", "credentials.expires_in", "credentials.more",
				"settings", "metadata"])]
	for wrong in (1, True, [], {}, CANARY, 1.5):
		out.append(("credentials %r" % (wrong,), {"credentials": wrong}, ["credentials" if wrong != {} else "credentials.access_token"]))
		if not isinstance(wrong, dict):
			out.append(("settings %r" % (wrong,), dict(credentials(), settings=wrong), ["settings"]))
			out.append(("metadata %r" % (wrong,), dict(credentials(), metadata=wrong), ["metadata"]))
		if not isinstance(wrong, str):
			out.append(("access_token %r" % (wrong,), credentials(access_token=wrong), ["credentials.access_token"]))
			out.append(("refresh_token %r" % (wrong,), credentials(refresh_token=wrong), ["credentials.refresh_token"]))
		out.append(("issued_at %r" % (wrong,), credentials(issued_at=wrong), ["credentials.issued_at"]))
		if wrong != 1:
			out.append(("expires_in %r" % (wrong,), credentials(expires_in=wrong), ["credentials.expires_in"]))
	for wrong in ("", CANARY + "\n", CANARY + "é", "\u007f", "x" * 65537, CANARY + "\t"):
		out.append(("access_token %r" % wrong[:20], credentials(access_token=wrong), ["credentials.access_token"]))
		out.append(("refresh_token %r" % wrong[:20], credentials(refresh_token=wrong), ["credentials.refresh_token"]))
	for wrong in ("", "now", "2026-11-23", "2026-11-23 10:00", "2026-02-30T00:00:00Z", "2026-11-23T25:00:00Z", "2026-11-23T10:00:00", "1700000000", "20261123T100000Z"):
		out.append(("issued_at %r" % wrong, credentials(issued_at=wrong), ["credentials.issued_at"]))
	for wrong in (-1, 0.5, 10 ** 11, 10 ** 30, "3600", -10 ** 30):
		out.append(("expires_in %r" % wrong, credentials(expires_in=wrong), ["credentials.expires_in"]))
	for name in ("token", "client_secret", "id_token", "AccessToken", CANARY * 5, "a b"):
		out.append(("unknown credentials.%s" % name[:20], credentials(**{name: CANARY}), None))
	out.append(("settings too large", dict(credentials(), settings={"x": "y" * 70000}), ["settings"]))
	return out


def fields(tap, world):
	v, c = open_vault(world, "fields", api={"rate": "unlimited"})
	for name, body, named in wrong_fields():
		a = c.post(IMPORT, body)
		if refused(tap, "import: " + name, a, 400, "RequestValidationError") and named is not None:
			tap.check("import: %s: detail names them all" % name, set(named) <= set(a.json["detail"]), a)
	refused(tap, "apiKey without settings", c.post(connection_path("key", tail="/import"), {}), 400, "RequestValidationError")
	refused(tap, "apiKey with an empty key", c.post(connection_path("key", tail="/import"), {"settings": {"api_key": ""}}), 400, "RequestValidationError")
	refused(tap, "apiKey with tokens", c.post(connection_path("key", tail="/import"), dict(body_of(tokens(world)[0]), settings={"api_key": "k"})),
		400, "RequestValidationError")
	tap.equal("nothing was imported", v.count("refreshd.connection"), 0)
	c.post(IMPORT, body_of(tokens(world)[0]))
	for name, body in (("enabled 1", {"enabled": 1}), ("enabled null", {"enabled": None}), ("enabled text", {"enabled": "true"}),
			("settings list", {"settings": []}), ("settings text", {"settings": CANARY}), ("metadata number", {"metadata": 1}),
			("settings too large", {"settings": {"x": "y" * 70000}}), ("metadata too large", {"metadata": {"x": "y" * 70000}})):
		refused(tap, "patch: " + name, c.patch(connection_path("a"), body), 400, "RequestValidationError")
	refused(tap, "import of more than the limit", c.post(IMPORT, b'{"x":"' + b"y" * (520 * 1024) + b'"}'), 413, "RequestValidationError")
	refused(tap, "patch of more than the limit", c.patch(connection_path("a"), b" " * (600 * 1024)), 413, "RequestValidationError")
	tap.equal("far beyond the limit", raw(v, b"POST " + IMPORT.encode() +
		b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"), 413)


# ---------------------------------------------------------------- paths, queries, headers

def paths(tap, world):
	v, c = open_vault(world, "paths", api={"rate": "unlimited"})
	for path in ("/", "/vault", "/vault/", "/vault/connections/", "/vault/connections/accounting", "/vault/connections/accounting/", "/vault/connections//a",
			"/vault/connections/accounting/a/", "/vault/connections/accounting/a/none", "/vault/connections/accounting/a/import/x", "//vault/connections",
			"/Vault/connections", "/vault/../connections", "/vault/consumers/", "/vault/consumers/c1/x", "/vault%2Fconnections", "/openapi", "/metrics",
			"/vault/connections/accounting/a%2Fimport/x/y"):
		refused(tap, "no such path: %s" % path, c.get(path), 404, "NotFoundError")
	for api, service in (("accounting", "none"), ("crm", "a"), ("none", "a"), ("accounting", "A"), ("ACCOUNTING", "a"), ("accounting", "a b"), ("accounting", "a/b"),
			("accounting", "é"), ("accounting", "x" * 100), ("accounting", ".."), ("accounting", "a'--"), ("accounting", "a\"")):
		p = connection_path(service, api)
		refused(tap, "get %s %s" % (api, service[:20]), c.get(p), 404, "ConnectorNotFoundError")
		refused(tap, "import %s %s" % (api, service[:20]), c.post(p + "/import", body_of(tokens(world)[0])), 404, "ConnectorNotFoundError")
		refused(tap, "delete %s %s" % (api, service[:20]), c.delete(p), 404, "ConnectorNotFoundError")
	for method, tail in (("PATCH", ""), ("DELETE", ""), ("POST", "/validate"), ("GET", "/credentials")):
		refused(tap, "%s of none" % (tail or method), c.call(method, connection_path("a", tail=tail), {} if method == "PATCH" else None), 404, "ConnectionNotFoundError")
	for bad in ("%", "%4", "%zz"):
		tap.equal("a target with %s" % bad, c.get("/vault/consumers/" + bad).status, 400)
	for bad in ("%00", "%ff", "%c3%28", "%ed%a0%80"):
		refused(tap, "a part %s" % bad, c.get("/vault/connections/accounting/" + bad), 400, "RequestValidationError")
		refused(tap, "a consumer %s" % bad, c.get("/vault/consumers/" + bad), 400, "RequestValidationError")
	refused(tap, "a consumer that is too long", c.get("/vault/consumers/" + "x" * 201), 400, "RequestValidationError")
	refused(tap, "a consumer with a line break", c.get("/vault/consumers/a%0Ab"), 400, "RequestValidationError")
	for q in ("limit=0", "limit=-1", "limit=x", "limit=5001", "limit=1.5", "limit=99999999999999999999", "limit=%00", "cursor=x", "cursor=%ff", "cursor=YWJj",
			"cursor=YQBiAA", "configured=maybe", "api=%ff", "api=%0a"):
		refused(tap, "list?%s" % q, c.get("/vault/connections?" + q), 400, "RequestValidationError")
	for q in ("limit=201", "limit=0", "cursor=x", "cursor=YWJjAA", "cursor=LTEAeAA", "limit=+1"):
		refused(tap, "logs?%s" % q, c.get("/vault/logs?" + q), 400, "RequestValidationError")
	c.post(IMPORT, body_of(tokens(world)[0]))
	for q in ("-1", "x", "86401", "1e3", "5m", "%20", "999999999999999999999"):
		refused(tap, "min_ttl=%s" % q, c.get(connection_path("a", tail="/credentials?min_ttl=" + q)), 400, "RequestValidationError")
	for consumer in ("x" * 201, "\xff"):
		a = c.call("GET", "/vault/connections", headers={"x-apideck-consumer-id": consumer.encode("latin-1")})
		refused(tap, "consumer %r" % consumer[:10], a, 400, "RequestHeadersValidationError")
	for app in ("x" * 201, "APP", "app ", "*", "app'"):
		a = c.call("GET", "/vault/connections", headers={"x-apideck-app-id": app})
		tap.check("application %r: refused" % app[:10], a.status == 401 or (app == "app " and a.status == 200), a)


# ---------------------------------------------------------------- framing

def raw(v, data):
	"""Status of the first answer to these bytes; 0: closed without one."""
	with socket.create_connection(("127.0.0.1", v.api_port), 20) as s:
		s.sendall(data)
		got = b""
		while b"\r\n" not in got:
			piece = s.recv(65536)
			if not piece:
				break
			got += piece
	return int(got.split(b" ")[1]) if got.startswith(b"HTTP/1.1 ") else 0


def framing(tap, world):
	v, c = open_vault(world, "framing")
	head = b"POST " + IMPORT.encode() + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + c.key.encode() + b"\r\nx-apideck-app-id: app\r\nx-apideck-consumer-id: c1\r\n"
	cases = [("two lengths", head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400), ("length and chunked", head +
			b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400), ("a length of letters", head + b"Content-Length: x\r\n\r\n", 400),
		("a negative length", head + b"Content-Length: -1\r\n\r\n", 400), ("an unknown coding", head + b"Transfer-Encoding: gzip\r\n\r\n", 400),
		("no Host", b"GET /vault/connections HTTP/1.1\r\n\r\n", 400), ("two Hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
		("an absolute target", b"GET http://x/vault/connections HTTP/1.1\r\nHost: x\r\n\r\n", 400), ("a NUL", head + b"X: a\0b\r\n\r\n", 400),
		("bare line feeds", b"GET / HTTP/1.1\nHost: x\n\n", 400), ("a folded header", head + b"X: a\r\n b\r\n\r\n", 400),
		("a header without a name", head + b": x\r\n\r\n", 400), ("an unknown version", b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
		("too long a head", head + b"X: " + b"y" * 70000 + b"\r\n\r\n", 431), ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
		("chunked is fine", head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400)]
	for name, data, status in cases:
		tap.equal("%s: %d" % (name, status), raw(v, data), status)


def noise(tap, world):
	"""Random bytes, and a good request with random bytes changed: never a 5xx, never a crash."""
	seed = int.from_bytes(os.urandom(4), "little")
	tap.note("seed %d" % seed)
	rng = random.Random(seed)
	v, c = open_vault(world, "noise", api={"rate": "unlimited"})
	body = json.dumps(body_of(tokens(world)[0])).encode()
	seen = {}
	for _ in range(400):
		b = bytearray(body)
		for _ in range(rng.randrange(1, 6)):
			b[rng.randrange(len(b))] = rng.randrange(256)
		status = c.post(IMPORT, bytes(b)).status
		seen[status] = seen.get(status, 0) + 1
	tap.check("changed imports are taken or refused: %s" % seen, set(seen) <= {200, 400}, seen)
	tap.equal("the daemon is well", c.get("/vault/connections").status, 200)
	tap.equal("and ends well", v.stop(), 0)


def main():
	tap = Tap()
	with World("refused", realms=["a:mode=strict,at_ttl=3600,client_secret=" + CLIENT_SECRET]) as world:
		tap.run([bodies, fields, paths, framing, noise], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
