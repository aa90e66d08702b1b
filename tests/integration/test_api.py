#!/usr/bin/env python3
"""The Vault API against the real daemon, a private Postgres and the provider simulator: every route, every row of the error table,
two applications that must not see each other, and some hundred requests that must be refused exactly so."""
import concurrent.futures
import datetime
import json
import os
import subprocess
import sys
import time
import uuid

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from apiclient import Client, connection_path
from openapi import document
from world import CLIENT_SECRET, Tap, World, free_port, wait_until

SCOPES = ("connections:read", "connections:write", "credentials:read", "webhooks:write")
OBJECT = {"id", "service_id", "name", "tag_line", "unified_api", "state", "integration_state", "auth_type", "oauth_grant_type", "status",
	"enabled", "website", "icon", "logo", "authorize_url", "revoke_url", "settings", "metadata", "form_fields", "configuration",
	"configurable_resources", "resource_schema_support", "resource_settings_support", "validation_support", "schema_support",
	"settings_required_for_authorization", "subscriptions", "has_guide", "custom_mappings", "consent_state", "consents", "health",
	"credentials_expire_at", "last_refresh_failed_at", "last_downstream_error_at", "created_at", "updated_at"}
ERROR = {"status_code", "error", "type_name", "message", "detail", "ref"}


def iso(offset_s=0):
	t = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=offset_s)
	return t.isoformat(timespec="seconds").replace("+00:00", "Z")


def new_key(vault, app, scopes=SCOPES):
	args = ["--json", "key", "add", app]
	for s in scopes:
		args += ["--scope", s]
	return json.loads(vault.ctl(*args).stdout)["key"]


def open_vault(world, name, providers=None, api=None, listen=None, apps=("app",), **sections):
	port = free_port()
	providers = providers or {"a": {}, "key": {"auth_type": "apiKey", "token_url": None, "client_auth": None, "rotation": None,
		"required_settings": ["api_key"], "sensitive_settings": ["api_key"], "unified_apis": ["accounting", "crm"]}}
	v = world.vault(name, providers={k: p for k, p in providers.items() if p.get("auth_type") is None}, migrate=False,
		api=dict({"listen": listen or "127.0.0.1:%d" % port}, **(api or {})), **sections)
	for k, p in providers.items():
		if p.get("auth_type") is not None:
			v.conf["providers"][k] = {n: x for n, x in dict(p, name=k.capitalize()).items() if x is not None}
	v.write_conf()
	v.migrate()
	v.api_port = port
	v.keys = {}
	for app in apps:
		v.ctl("app", "add", app)
		v.keys[app] = new_key(v, app)
	v.start()
	return v, Client(port, v.keys[apps[0]], apps[0])


def tokens(world, realm="a", n=1, **more):
	lines = world.sim.mint(realm, n, **more)
	return [dict(x["credentials"], family=int(x["consumer_id"][1:])) for x in lines]


def body_of(token, **changes):
	c = {k: token[k] for k in ("access_token", "refresh_token", "issued_at", "expires_in")}
	c.update(changes)
	return {"credentials": {k: v for k, v in c.items() if v is not Ellipsis}}


def is_error(tap, name, a, status, type_name):
	good = a.status == status and a.headers.get("content-type") == "application/json"
	if good and a.body:
		e = a.json
		good = (set(e) == ERROR and e["status_code"] == status and e["type_name"] == type_name and
			e["ref"].endswith("#" + type_name.lower()) and "request-id" in a.headers)
	return tap.check(name, good, a)


# ---------------------------------------------------------------- the ordinary life

def life(tap, world):
	v, c = open_vault(world, "life")
	t = tokens(world)[0]
	path = connection_path("a")
	a = c.get(path)
	tap.equal("a configured service that is not connected is available", (a.status, a.data["state"], a.data["enabled"]), (200, "available", False))
	a = c.post(path + "/import", dict(body_of(t), consumer_id="c1", settings={"region": "eu"}, metadata={"plan": 1.5, "é": "ü"}))
	tap.equal("import answers 200", a.status, 200)
	tap.equal("the envelope", {k: x for k, x in a.json.items() if k != "data"}, {"status_code": 200, "status": "OK"})
	d = a.data
	tap.equal("the whole object", set(d), OBJECT)
	tap.equal("its words", (d["id"], d["state"], d["health"], d["auth_type"], d["enabled"], d["settings"], d["metadata"]),
		("accounting+a", "callable", "ok", "oauth2", True, {"region": "eu"}, {"plan": 1.5, "é": "ü"}))
	tap.check("times are Unix milliseconds", all(isinstance(d[k], int) and abs(d[k] / 1000 - time.time()) < 4000
		for k in ("created_at", "updated_at", "credentials_expire_at")), d)
	tap.check("no answer echoes a credential", t["access_token"] not in a.body and t["refresh_token"] not in a.body)
	tap.check("Request-Id is a UUID", uuid.UUID(a.headers["request-id"]))
	tap.equal("get gives the same", c.get(path).data, d)
	tap.equal("so does list", c.get("/vault/connections").data, [d])
	again = c.post(path + "/import", body_of(tokens(world)[0])).data
	tap.equal("a second import keeps created_at, settings and metadata", (again["created_at"], again["settings"], again["metadata"]),
		(d["created_at"], d["settings"], d["metadata"]))
	a = c.patch(path, {"metadata": {"x": 1}, "settings": {"region": None, "k": "v"}, "id": "no", "state": "invalid", "created_at": "x"})
	tap.equal("patch merges settings, replaces metadata, ignores the rest", (a.status, a.data["metadata"], a.data["settings"], a.data["state"]),
		(200, {"x": 1}, {"k": "v"}, "callable"))
	a = c.get(path + "/credentials")
	tap.equal("credentials", (a.status, set(a.data), a.data["token_type"], a.headers["cache-control"]),
		(200, {"access_token", "token_type", "expires_at"}, "Bearer", "no-store"))
	old = a.data["access_token"]
	for empty in (None, b"", {}):
		a = c.post(path + "/validate", empty, headers={"Content-Type": "application/json"})
		tap.equal("validate with %r" % (empty,), (a.status, a.data if a.status == 200 else a.body), (200, {"id": "accounting+a", "state": "callable"}))
	fresh = c.get(path + "/credentials").data
	tap.check("validate has refreshed", fresh["access_token"] != old)
	tap.equal("credentials do not refresh without need", c.get(path + "/credentials?min_ttl=600").data, fresh)
	a = c.patch(path, {"enabled": False})
	tap.equal("disable", (a.status, a.data["enabled"]), (200, False))
	is_error(tap, "a disabled connection hands out nothing", c.get(path + "/credentials"), 422, "ConnectionSettingsError")
	tap.equal("it is not scheduled", v.sql("SELECT due_at FROM refreshd.schedule"), "infinity")
	tap.equal("enable", c.patch(path, {"enabled": True}).data["enabled"], True)
	tap.check("it is scheduled again", v.sql("SELECT due_at FROM refreshd.schedule") != "infinity")
	a = c.but(consumer=None).get("/vault/consumers")
	tap.equal("consumers", (a.status, [x["consumer_id"] for x in a.data], a.data[0]["services"]), (200, ["c1"], ["a"]))
	a = c.get("/vault/consumers/c1")
	tap.equal("consumer", (a.status, a.data["consumer_id"], a.data["connections"][0]["service_id"]), (200, "c1", "a"))
	a = c.delete(path)
	tap.equal("delete is 204 without a body", (a.status, a.body), (204, ""))
	tap.equal("it is available again", (c.get(path).data["state"], c.get("/vault/connections").data), ("available", []))
	is_error(tap, "a second delete", c.delete(path), 404, "ConnectionNotFoundError")
	left = [v.count("refreshd." + x) for x in ("connection", "credential", "schedule", "orphan_token")]
	tap.equal("nothing of it is left", left, [0, 0, 0, 0])
	names = [e[0].split("connection.")[1] for e in v.events()]
	tap.equal("the events in order", names, ["created", "updated", "updated", "disabled", "updated", "deleted"])
	logs = c.get("/vault/logs").data
	tap.equal("the log, newest first", [x["operation"]["id"].split("connection.")[1] for x in logs], names[::-1])
	secrets_stay_inside(tap, v, [t["access_token"], t["refresh_token"], old, fresh["access_token"], c.key])


def secrets_stay_inside(tap, v, words):
	text = v.log_text() + v.sql("SELECT entity FROM refreshd.event") + v.get("/metrics")[1]
	tap.check("no token and no key in log, events and metrics", not any(w in text for w in words))


def paging(tap, world):
	v, c = open_vault(world, "paging")
	for i, t in enumerate(tokens(world, n=7)):
		c.but(consumer="p%d" % i).post(connection_path("a", tail="/import"), dict(body_of(t), metadata={"n": i}))
	app = c.but(consumer=None)
	for path, limit, key in (("/vault/connections", 3, lambda x: x["metadata"]["n"]), ("/vault/consumers", 2, lambda x: x["consumer_id"]),
		("/vault/logs", 3, lambda x: x["id"])):
		seen, cursor, pages = [], "", 0
		while cursor is not None and pages < 9:
			a = app.get("%s?limit=%d&cursor=%s" % (path, limit, cursor))
			seen += [key(x) for x in a.data]
			cursor, pages = a.json["meta"]["cursors"]["next"], pages + 1
		tap.equal("%s in pages: each once" % path, (len(seen), len(set(seen)), pages), (7, 7, -(-7 // limit)))
	tap.equal("list of the application", len(app.get("/vault/connections").data), 7)
	tap.equal("filter by API", len(app.get("/vault/connections?api=crm").data), 0)
	tap.equal("configured=true", len(app.get("/vault/connections?configured=true").data), 7)
	tap.equal("configured=false of a consumer: what could be connected", [x["id"] for x in
		c.but(consumer="p1").get("/vault/connections?configured=false").data], ["accounting+key", "crm+key"])
	tap.equal("log of a consumer", [x["consumer_id"] for x in c.but(consumer="p3").get("/vault/logs").data], ["p3"])
	tap.equal("forget a consumer", c.delete("/vault/consumers/p3").data, {"consumer_id": "p3"})
	tap.equal("it is gone", (c.get("/vault/consumers/p3").status, len(app.get("/vault/connections").data)), (404, 6))


# ---------------------------------------------------------------- import

def imports(tap, world):
	v, c = open_vault(world, "imports")
	path = connection_path("a")
	cases = {"past": {"issued_at": iso(-7200), "expires_in": 3600}, "no_issued": {"issued_at": None}, "no_expires": {"expires_in": None},
		"absent": {"issued_at": Ellipsis, "expires_in": Ellipsis}}
	for name, changes in cases.items():
		t = tokens(world)[0]
		one = c.but(consumer=name)
		began = time.monotonic()
		tap.equal("%s: 200" % name, one.post(path + "/import", body_of(t, **changes)).status, 200)
		wait_until("the refresh", lambda: v.rows()[name]["refreshes"] == 1, 10)
		tap.check("%s: refreshed within two seconds" % name, time.monotonic() - began < 2, time.monotonic() - began)
	t = tokens(world)[0]
	tap.equal("a healthy one is left alone", c.post(path + "/import", body_of(t)).status, 200)
	row = v.rows()["c1"]
	tap.check("due before the margin", 0 < row["due_in"] < row["expires_in"] and row["refreshes"] == 0, row)
	tap.equal("sealed as it came", v.token(row), t["refresh_token"].encode())
	a = c.but(consumer="a b/c+d%é").post(path + "/import", body_of(tokens(world)[0]))
	tap.equal("free-form consumer ids", (a.status, c.get("/vault/consumers/a%20b%2Fc%2Bd%25%C3%A9").data["consumer_id"]), (200, "a b/c+d%é"))
	k = c.post(connection_path("key", tail="/import"), {"settings": {"api_key": "canary-api-key", "region": "eu"}})
	tap.equal("apiKey: settings masked", (k.status, k.data["settings"], "canary" in k.body), (200, {"api_key": "********", "region": "********"}, False))
	k = c.patch(connection_path("key"), {"settings": {"api_key": "********", "more": "x"}})
	tap.equal("apiKey: a mask that comes back changes nothing", sorted(k.data["settings"]), ["api_key", "more", "region"])
	tap.equal("apiKey: validate", c.post(connection_path("key", tail="/validate")).status, 200)
	k = c.patch(connection_path("key"), {"settings": {"api_key": None}})
	tap.equal("apiKey: without its key", (k.data["health"], "api_key" in k.data["settings"]), ("missing_settings", False))
	is_error(tap, "apiKey: validate without its key", c.post(connection_path("key", tail="/validate")), 422, "ConnectionSettingsError")
	tap.equal("apiKey: with it again", c.patch(connection_path("key"), {"settings": {"api_key": "k2"}}).data["state"], "callable")
	is_error(tap, "apiKey has no access token", c.get(connection_path("key", tail="/credentials")), 422, "ConnectionSettingsError")


def import_wins(tap, world):
	v, c = open_vault(world, "wins")
	path = connection_path("a")
	c.post(path + "/import", body_of(tokens(world)[0]))
	world.sim.realm("a", delay_ms=1200, commit="early")
	with concurrent.futures.ThreadPoolExecutor(2) as pool:
		answer = pool.submit(c.post, path + "/validate")
		wait_until("the request to be out", lambda: world.sim.stats("a")["in_flight"] > 0)
		newer = tokens(world)[0]
		tap.equal("import while a refresh is out", c.post(path + "/import", body_of(newer)).status, 200)
		tap.equal("validate sees newer tokens", answer.result().status, 200)
		tap.equal("another one waits until the late answer is over", c.post(path + "/validate").status, 200)
		newer = tokens(world)[0]
		answer = pool.submit(c.post, path + "/validate")
		wait_until("the request to be out", lambda: world.sim.stats("a")["in_flight"] > 0)
		c.post(path + "/import", body_of(newer))
		answer.result()
	world.sim.realm("a", delay_ms=0)
	wait_until("the late answer to settle", lambda: v.quiet() and not v.rows()["c1"]["leased"])
	tap.equal("the imported token stands", v.token(v.rows()["c1"]), newer["refresh_token"].encode())
	tap.equal("late ones are kept as orphans", v.count("refreshd.orphan_token"), 2)
	tap.equal("it still works", c.post(path + "/validate").status, 200)
	world.sim.realm("a", delay_ms=1200)
	with concurrent.futures.ThreadPoolExecutor(2) as pool:
		answer = pool.submit(c.post, path + "/validate")
		wait_until("the request to be out", lambda: world.sim.stats("a")["in_flight"] > 0)
		tap.equal("delete while a refresh is out", (c.delete(path).status, world.sim.stats("a")["in_flight"]), (204, 0))
		tap.check("validate of what was deleted", answer.result().status in (200, 404), answer.result())
	world.sim.realm("a", delay_ms=0)
	wait_until("the late answer to settle", v.quiet)
	tap.equal("the late answer does not bring it back", (c.get(path).data["state"], v.count("refreshd.connection"), v.count("refreshd.credential")),
		("available", 0, 0))
	tap.equal("and is forgotten with it", v.count("refreshd.orphan_token"), 0)


def one_key_at_once(tap, world):
	v, c = open_vault(world, "once", api={"rate": "unlimited"})
	path = connection_path("a", tail="/import")
	given = tokens(world, n=60)
	with concurrent.futures.ThreadPoolExecutor(20) as pool:
		answers = list(pool.map(lambda t: c.post(path, body_of(t)), given))
	tap.equal("60 imports of one key: all are answered 200", {a.status for a in answers}, {200})
	tap.equal("one row", v.count("refreshd.connection"), 1)
	tap.equal("one created_at", len({a.data["created_at"] for a in answers}), 1)
	tap.check("its token is one of those", v.token(v.rows()["c1"]) in {t["refresh_token"].encode() for t in given})
	tap.equal("created once", v.event_counts()["created"], 1)
	tap.equal("versions only grow", v.count("watch.shrunk"), 0)
	with concurrent.futures.ThreadPoolExecutor(20) as pool:
		patches = pool.map(lambda i: c.patch(connection_path("a"), {"settings": {"s%d" % i: i}}).status, range(20))
		statuses = set(patches)
	merged = c.get(connection_path("a")).data["settings"]
	tap.check("patches at once: each is in, or was told of the conflict", statuses <= {200, 409} and len(merged) >= 6, (statuses, merged))
	before = world.sim.stats("a")["requests"]
	with concurrent.futures.ThreadPoolExecutor(20) as pool:
		world.sim.realm("a", delay_ms=400)
		results = list(pool.map(lambda i: c.post(connection_path("a", tail="/validate")).status, range(20)))
	world.sim.realm("a", delay_ms=0)
	tap.check("20 validates at once are few requests", set(results) == {200} and world.sim.stats("a")["requests"] - before <= 2,
		(results, world.sim.stats("a")["requests"] - before))


# ---------------------------------------------------------------- refreshing by request

def dead_and_pending(tap, world):
	v, c = open_vault(world, "dead")
	path = connection_path("a")
	t = tokens(world)[0]
	c.post(path + "/import", body_of(t))
	world.sim.fault("a", "error", arg="503:temporarily_unavailable", n=1)
	a = c.post(path + "/validate")
	is_error(tap, "a provider with a fault of its own", a, 502, "ConnectorExecutionError")
	tap.equal("its detail", set(a.json["detail"]), {"type", "reason", "attempts"})
	tap.equal("the token is handed out while it lives", c.get(path + "/credentials").status, 200)
	wait_until("recovery", lambda: v.rows()["c1"]["health"] == "ok", 20)
	world.sim.revoke("a", t["family"])
	a = c.post(path + "/validate")
	is_error(tap, "the provider refuses: 401", a, 401, "UnauthorizedError")
	tap.equal("detail says so", (a.json["detail"]["type"], a.json["detail"]["reason"]), ("refresh_token_connector_error", "invalid_grant"))
	d = c.get(path).data
	tap.equal("the connection says so", (d["state"], d["health"], d["last_refresh_failed_at"] > 0), ("invalid", "needs_auth", True))
	is_error(tap, "no credentials of a dead grant", c.get(path + "/credentials"), 401, "UnauthorizedError")
	n = world.sim.stats("a")["requests"]
	is_error(tap, "validate tries again all the same", c.post(path + "/validate"), 401, "UnauthorizedError")
	tap.equal("one request", world.sim.stats("a")["requests"] - n, 1)
	d = c.post(path + "/import", body_of(tokens(world)[0])).data
	tap.equal("an import revives it", (d["state"], d["health"]), ("callable", "ok"))
	tap.equal("and is told", v.events()[-1][0], "vault.connection.callable")
	c.post(path + "/import", body_of(tokens(world)[0], expires_in=60, issued_at=iso(-20)))
	before = c.get(path + "/credentials").data["access_token"]
	a = c.get(path + "/credentials?min_ttl=45")
	tap.check("min_ttl refreshes first", a.status == 200 and a.data["access_token"] != before and a.data["expires_at"] / 1000 - time.time() > 45, a)
	c.but(consumer="norefresh").post(path + "/import", body_of(tokens(world)[0], refresh_token=None, issued_at=iso(-7200)))
	is_error(tap, "expired and nothing to refresh with", c.but(consumer="norefresh").get(path + "/credentials"), 401, "UnauthorizedError")


# ---------------------------------------------------------------- grants that need nobody

def grant_world(world, name, **options):
	for realm, login in (("cc", "client_credentials"), ("pw", "password")):
		world.sim.realm(realm, login=login, client_secret=CLIENT_SECRET, at_ttl=3600, auth="basic")
	providers = {"a": {}, "cc": {"grant": "client_credentials", "rotation": "none"}, "pw": {"grant": "password"}}
	return open_vault(world, name, providers=providers, **options)


def client_grant(tap, world):
	v, c = grant_world(world, "client_grant", api={"rate": "unlimited"})
	path = connection_path("cc")
	tap.equal("available", (c.get(path).data["state"], c.get(path).data["oauth_grant_type"]), ("available", "client_credentials"))
	for i, empty in enumerate((None, b"", {})):
		a = c.but(consumer="e%d" % i).post(path + "/token", empty, headers={"Content-Type": "application/json"})
		tap.check("token with %r: made and fetched" % (empty,), a.status == 200 and set(a.data) == OBJECT, a)
	d = a.data
	tap.equal("its words", (d["id"], d["state"], d["health"], d["oauth_grant_type"], d["enabled"]),
		("accounting+cc", "callable", "ok", "client_credentials", True))
	tap.check("it expires in an hour", abs(d["credentials_expire_at"] / 1000 - time.time() - 3600) < 30, d)
	e = c.but(consumer="e1")
	row = v.rows()["e1"]
	tap.check("no refresh token, due before the margin", row["rt"] is None and 0 < row["due_in"] < row["expires_in"] - 200, row)
	old = e.get(path + "/credentials").data["access_token"]
	tap.equal("the token is a live one", json.loads(world.sim.call("verify", body=json.dumps({"access_token": old}).encode()))["active"], True)
	tap.equal("token again", e.post(path + "/token").status, 200)
	tap.check("is another one", e.get(path + "/credentials").data["access_token"] != old)
	tap.equal("validate", e.post(path + "/validate").data, {"id": "accounting+cc", "state": "callable"})
	tap.check("credentials fetch one first", e.get(path + "/credentials?min_ttl=86400").status == 200)
	v.sql("UPDATE refreshd.credential SET expires_at = now() - interval '1 hour'; UPDATE refreshd.schedule SET due_at = now()")
	wait_until("all to be renewed", lambda: all(r["expires_in"] > 3000 for r in v.rows().values()), 20)
	tap.equal("all by themselves, though they had expired", {(r["state"], r["health"]) for r in v.rows().values()}, {("callable", "ok")})
	n = world.sim.stats("cc")["logins"]
	world.sim.realm("cc", delay_ms=400)
	with concurrent.futures.ThreadPoolExecutor(10) as pool:
		got = list(pool.map(lambda _: c.but(consumer="many").post(path + "/token"), range(10)))
	world.sim.realm("cc", delay_ms=0)
	tap.check("ten at once: one row, few requests", {a.status for a in got} == {200} and len({a.data["created_at"] for a in got}) == 1 and
		world.sim.stats("cc")["logins"] - n <= 2, [a.status for a in got])
	i = c.but(consumer="imported")
	a = i.post(path + "/import", {"metadata": {"k": 1}})
	tap.equal("import without credentials", (a.status, a.data["state"], a.data["metadata"]), (200, "added", {"k": 1}))
	wait_until("its token", lambda: i.get(path).data["state"] == "callable", 10)
	a = c.but(consumer="given").post(path + "/import", {"credentials": {"access_token": "at-given", "issued_at": iso(), "expires_in": 3600}})
	tap.equal("import with a token that lives", (a.status, a.data["state"]), (200, "callable"))
	tap.equal("which is handed out", c.but(consumer="given").get(path + "/credentials").data["access_token"], "at-given")
	is_error(tap, "a refresh token is refused", c.post(path + "/import", body_of(tokens(world)[0])), 400, "RequestValidationError")
	is_error(tap, "authorization_code has nothing to run", c.post(connection_path("a", tail="/token")), 400, "RequestValidationError")
	is_error(tap, "unknown service", c.post(connection_path("none", tail="/token")), 404, "ConnectorNotFoundError")
	is_error(tap, "no JSON object", c.post(path + "/token", [1]), 400, "RequestValidationError")
	i.patch(path, {"enabled": False})
	is_error(tap, "disabled", i.post(path + "/token"), 422, "ConnectionSettingsError")
	tap.equal("enabled it is renewed at its time", (i.patch(path, {"enabled": True}).status, v.rows()["imported"]["due_in"] > 0), (200, True))
	lost = c.but(consumer="lost")
	world.sim.fault("cc", "die_after", n=1)
	a = lost.post(path + "/token")
	is_error(tap, "a lost answer", a, 502, "ConnectorExecutionError")
	d = lost.get(path).data
	tap.equal("it has no token yet", (d["state"], d["health"]), ("added", "pending_refresh"))
	wait_until("the ordinary retry", lambda: lost.get(path).data["state"] == "callable", 20)
	tap.equal("no doubt was counted", v.rows()["lost"]["doubts"], 0)
	tap.equal("the line of import makes one, too", v.import_lines([{"application_id": "app", "consumer_id": "bulk", "unified_api": "accounting",
		"service_id": "cc"}]).returncode, 0)
	wait_until("its token", lambda: v.rows()["bulk"]["state"] == "callable", 10)
	tap.check("refreshctl refresh", "refreshed" in v.ctl("refresh", v.rows()["bulk"]["id"]).stdout)
	world.sim.realm("cc", client_secret="another")
	began = time.monotonic()
	a = c.but(consumer="refused").post(path + "/token")
	is_error(tap, "a client that is refused", a, 502, "ConnectorExecutionError")
	tap.check("is told at once", time.monotonic() - began < 10, time.monotonic() - began)
	tap.equal("kills no connection", {r["state"] for r in v.rows().values()}, {"callable", "added"})
	tap.equal("nobody was told that a token is gone", [e for e in v.events() if e[0].endswith("failed")], [])
	secrets_stay_inside(tap, v, [old, CLIENT_SECRET])


def password_grant(tap, world):
	v, c = grant_world(world, "password_grant")
	path = connection_path("pw")
	login = {"username": "user", "password": "password"}
	is_error(tap, "without its settings", c.post(path + "/token"), 422, "ConnectionSettingsError")
	tap.equal("nothing was made", v.count("refreshd.connection"), 0)
	a = c.post(path + "/import", {"settings": dict(login, password="wrong")})
	tap.equal("settings come by import, and are masked", (a.status, a.data["state"], a.data["settings"]),
		(200, "added", {"username": "********", "password": "********"}))
	a = c.post(path + "/token")
	is_error(tap, "a wrong password", a, 401, "UnauthorizedError")
	tap.equal("says so", a.json["detail"]["reason"], "invalid_grant")
	d = c.get(path).data
	tap.equal("and so does the connection", (d["state"], d["health"]), ("invalid", "needs_auth"))
	a = c.patch(path, {"settings": {"password": "password"}})
	wait_until("the right one to be tried", lambda: c.get(path).data["state"] == "callable", 10)
	tap.check("the answer's refresh token is kept", v.rows()["c1"]["rt"] is not None)
	n = world.sim.stats("pw")
	a = c.post(path + "/token")
	tap.equal("token", (a.status, a.data["oauth_grant_type"], a.data["state"]), (200, "password", "callable"))
	m = world.sim.stats("pw")
	tap.equal("was a refresh", (m["rotated"] - n["rotated"], m["logins"] - n["logins"]), (1, 0))
	for f in world.sim.live("pw"):
		world.sim.revoke("pw", f)
	a = c.post(path + "/token")
	tap.check("with a dead refresh token the password is sent again", a.status == 200 and a.data["health"] == "ok", a)
	tap.equal("once", (world.sim.stats("pw")["logins"] - m["logins"], v.rows()["c1"]["reason"]), (1, "none"))
	tap.equal("the new refresh token works", (c.post(path + "/validate").status, world.sim.stats("pw")["logins"] - m["logins"]), (200, 1))
	world.sim.realm("pw", login_rt="no")
	o = c.but(consumer="plain")
	o.post(path + "/import", {"settings": login})
	wait_until("its token", lambda: o.get(path).data["state"] == "callable", 10)
	row = v.rows()["plain"]
	tap.check("no refresh token, and due before its end", row["rt"] is None and 0 < row["due_in"] < row["expires_in"] - 200, row)
	n = world.sim.stats("pw")["logins"]
	tap.equal("renewed by the password", (o.post(path + "/validate").status, world.sim.stats("pw")["logins"] - n), (200, 1))
	a = o.patch(path, {"settings": {"password": None}})
	is_error(tap, "token without its password", o.post(path + "/token"), 422, "ConnectionSettingsError")
	tap.check("renewal without its password", v.sql("UPDATE refreshd.schedule SET due_at = now()") or
		wait_until("it to be told", lambda: o.get(path).data["health"] == "missing_settings", 10))
	before = v.rows()["plain"]["version"]
	o.patch(path, {"settings": {"password": "password"}})
	wait_until("the password to be used", lambda: v.rows()["plain"]["version"] > before and not v.rows()["plain"]["leased"], 10)
	world.sim.realm("pw", password="changed")
	a = o.post(path + "/token")
	is_error(tap, "a password that was changed", a, 401, "UnauthorizedError")
	tap.equal("is told", v.event_counts()["failed"], 2)
	names = [e[0].split("connection.")[1] for e in v.events() if e[2] == "app+plain"]
	tap.equal("the events in order", names, ["created", "callable", "updated", "callable", "token_refresh.failed"])
	text = v.log_text() + v.sql("SELECT row_to_json(c) FROM refreshd.connection c") + c.but(consumer=None).get("/vault/logs").body
	tap.check("no password in clear anywhere", '"password": "password"' not in text and "changed" not in text)


# ---------------------------------------------------------------- errors

def routes_of(service="a"):
	p = connection_path(service)
	return [("POST", p + "/import", {"credentials": {}}, True), ("GET", "/vault/connections", None, False), ("GET", p, None, True),
		("PATCH", p, {"metadata": {}}, True), ("DELETE", p, None, True), ("POST", p + "/validate", None, True),
		("GET", p + "/credentials", None, True), ("GET", "/vault/consumers", None, False), ("GET", "/vault/consumers/c1", None, False),
		("DELETE", "/vault/consumers/c1", None, False), ("GET", "/vault/logs", None, False)]


def keys_and_headers(tap, world):
	v, c = open_vault(world, "keys", apps=("app", "other"))
	revoked = json.loads(v.ctl("--json", "key", "add", "app", "--scope", "connections:read").stdout)
	for method, path, body, consumer in routes_of() + [("POST", connection_path("a") + "/token", None, True)]:
		where = "%s %s" % (method, path)
		is_error(tap, where + " without a key", c.but(key=None).call(method, path, body), 401, "UnauthorizedError")
		for bad in ("x", "rfd_" + "A" * 49, c.key[:-1], c.key + "x", "é"):
			is_error(tap, where + " with a key that is none", c.but(key=bad).call(method, path, body), 401, "UnauthorizedError")
		is_error(tap, where + " with another application's key", c.but(key=v.keys["other"]).call(method, path, body), 401, "UnauthorizedError")
		is_error(tap, where + " without the application", c.but(app=None).call(method, path, body), 400, "RequestHeadersValidationError")
		is_error(tap, where + " with an empty application", c.but(app="").call(method, path, body), 400, "RequestHeadersValidationError")
		if consumer:
			is_error(tap, where + " without a consumer", c.but(consumer=None).call(method, path, body), 400, "RequestHeadersValidationError")
			is_error(tap, where + " with an empty consumer", c.but(consumer="").call(method, path, body), 400, "RequestHeadersValidationError")
	need = {"GET": "connections:read", "POST": "connections:write", "PATCH": "connections:write", "DELETE": "connections:write"}
	for method, path, body, _ in routes_of():
		scope = "credentials:read" if path.endswith("/credentials") else need[method]
		poor = new_key(v, "app", [s for s in SCOPES if s != scope and not (scope == "connections:read" and s == "connections:write")])
		is_error(tap, "%s %s without the scope %s" % (method, path, scope), c.but(key=poor).call(method, path, body), 401, "UnauthorizedError")
	r = c.but(key=revoked["key"])
	tap.equal("a key works", r.get("/vault/connections").status, 200)
	v.ctl("key", "revoke", revoked["key_id"])
	wait_until("the revocation to be seen", lambda: r.get("/vault/connections").status == 401, 10)
	tap.equal("other authentication schemes are refused", c.call("GET", "/vault/connections", headers={"Authorization": "Basic " + c.key}).status, 401)
	tap.equal("the scheme's case does not matter", c.call("GET", "/vault/connections", headers={"Authorization": "bEaReR " + c.key}).status, 200)
	tap.equal("empty optional headers", c.call("GET", "/vault/connections", headers={"cookie": "", "x-apideck-service-id": "", "x-apideck-consumer-id": ""}).status, 200)


def isolation(tap, world):
	v, c = open_vault(world, "isolation", apps=("app", "other"))
	other = c.but(key=v.keys["other"], app="other")
	t = tokens(world)[0]
	path = connection_path("a")
	c.post(path + "/import", dict(body_of(t), metadata={"mine": True}))
	before = v.rows()["c1"]
	tap.equal("get", other.get(path).data["state"], "available")
	tap.equal("list", (other.get("/vault/connections").data, other.but(consumer=None).get("/vault/connections").data), ([], []))
	is_error(tap, "patch", other.patch(path, {"enabled": False}), 404, "ConnectionNotFoundError")
	is_error(tap, "delete", other.delete(path), 404, "ConnectionNotFoundError")
	is_error(tap, "validate", other.post(path + "/validate"), 404, "ConnectionNotFoundError")
	is_error(tap, "credentials", other.get(path + "/credentials"), 404, "ConnectionNotFoundError")
	is_error(tap, "consumer", other.get("/vault/consumers/c1"), 404, "NotFoundError")
	is_error(tap, "forget the consumer", other.delete("/vault/consumers/c1"), 404, "NotFoundError")
	tap.equal("consumers", other.get("/vault/consumers").data, [])
	tap.equal("logs", (other.get("/vault/logs").data, other.but(consumer=None).get("/vault/logs").data), ([], []))
	cursor = c.but(consumer=None).get("/vault/logs?limit=1").json["meta"]["cursors"]["next"]
	tap.equal("a foreign cursor", other.get("/vault/logs?cursor=%s" % (cursor or "")).data, [])
	tap.equal("import under the same names", other.post(path + "/import", body_of(tokens(world)[0])).status, 200)
	tap.equal("makes another row", v.count("refreshd.connection"), 2)
	tap.equal("each deletes its own", (other.delete("/vault/consumers/c1").status, v.count("refreshd.connection")), (200, 1))
	after = v.rows()["c1"]
	tap.equal("nothing of the first has changed", {k: x for k, x in after.items() if not k.endswith("_in")},
		{k: x for k, x in before.items() if not k.endswith("_in")})


def limits(tap, world):
	v, c = open_vault(world, "limits", api={"rate": "5/s"})
	answers = [c.get("/vault/connections") for _ in range(30)]
	refused = [a for a in answers if a.status == 429]
	tap.check("a burst of two seconds' worth passes, then 429", 8 <= len(answers) - len(refused) <= 20 and refused, [a.status for a in answers])
	is_error(tap, "429", refused[0], 429, "RequestLimitError")
	tap.equal("with Retry-After", refused[0].headers.get("retry-after"), "1")
	wait_until("room again", lambda: c.get("/vault/connections").status == 200, 5)


def database_away(tap, world):
	v, c = open_vault(world, "away")
	path = connection_path("a")
	t = tokens(world)[0]
	c.post(path + "/import", body_of(t))
	world.pg.stop("immediate")
	for method, p, body, _ in routes_of():
		a = c.call(method, p, body_of(t) if body and "credentials" in body else body)
		is_error(tap, "%s %s: 503" % (method, p), a, 503, "ServiceUnavailableError")
		tap.check("%s %s: Retry-After" % (method, p), int(a.headers.get("retry-after", "0")) >= 1, a.headers)
	world.pg.start()
	wait_until("the database to be back", lambda: c.get(path).status == 200, 60)
	wait_until("writing", lambda: c.post(path + "/import", body_of(t)).status == 200, 60)
	tap.equal("the row is there once", v.count("refreshd.connection"), 1)


def drain(tap, world):
	v, c = open_vault(world, "drain")
	path = connection_path("a")
	c.post(path + "/import", body_of(tokens(world)[0]))
	world.sim.realm("a", delay_ms=1500)
	with concurrent.futures.ThreadPoolExecutor(2) as pool:
		answer = pool.submit(c.post, path + "/validate")
		wait_until("the request to be out", lambda: world.sim.stats("a")["in_flight"] > 0)
		v.signal(15)
		wait_until("the drain", lambda: any(x.get("phase") == "draining" for x in v.logged("daemon.phase")))
		is_error(tap, "a new call while draining", c.get(path), 503, "ServiceUnavailableError")
		a = answer.result()
		tap.check("the one that waits is answered", a.status in (200, 503), a)
	tap.equal("the daemon ends well", v.wait(), 0)
	world.sim.realm("a", delay_ms=0)
	tap.equal("what was answered is stored", v.rows()["c1"]["refreshes"], 1)
	token_while_draining(tap, world)
	v, c = open_vault(world, "cut")
	c.post(path + "/import", body_of(tokens(world)[0]))
	world.sim.realm("a", delay_ms=1000)
	with concurrent.futures.ThreadPoolExecutor(2) as pool:
		answer = pool.submit(c.post, path + "/validate")
		wait_until("the request to be out", lambda: world.sim.stats("a")["in_flight"] > 0)
		world.pg.stop("immediate")
		world.pg.start()
		tap.equal("a wait outlives the database", answer.result().status, 200)
	world.sim.realm("a", delay_ms=0)


def token_while_draining(tap, world):
	"""Its key has to be asked for again: the wait is longer than a key is trusted without."""
	v, c = open_vault(world, "last")
	path = connection_path("a")
	world.sim.realm("a", delay_ms=4500)
	tap.equal("imported", c.post(path + "/import", body_of(tokens(world)[0], expires_in=60, issued_at=iso(-7200))).status, 200)
	with concurrent.futures.ThreadPoolExecutor(1) as pool:
		answer = pool.submit(c.get, path + "/credentials")
		wait_until("the request to be out", lambda: world.sim.stats("a")["in_flight"] > 0)
		v.signal(15)
		a = answer.result()
		tap.equal("who waited for a token through the drain gets it", (a.status, a.json.get("message")), (200, None))
	tap.equal("the daemon ends well behind it", v.wait(), 0)
	world.sim.realm("a", delay_ms=0)


# ---------------------------------------------------------------- transport, contract, figures

def transports(tap, world):
	sock = os.path.join(world.dir, "api.sock")
	v, c = open_vault(world, "unix", listen="unix:" + sock)
	tap.equal("a unix socket", c.but(unix=sock).get("/vault/connections").status, 200)
	v.stop()

	def certificate(name, cn):
		subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-keyout",
			os.path.join(world.dir, "tls.key"), "-out", os.path.join(world.dir, name), "-subj", "/CN=" + cn, "-addext",
			"subjectAltName=DNS:localhost"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
		return os.path.join(world.dir, name)
	first = certificate("first.crt", "first")
	live = os.path.join(world.dir, "tls.crt")
	with open(first) as f, open(live, "w") as g:
		g.write(f.read())
	v, c = open_vault(world, "tls", api={"tls": {"cert_file": live, "key_file": os.path.join(world.dir, "tls.key")}})
	tap.equal("TLS", c.but(tls_ca=first).get("/vault/connections").status, 200)
	second = certificate("second.crt", "second")
	with open(second) as f, open(live, "w") as g:
		g.write(f.read())
	v.signal(1)

	def renewed():
		try:
			return c.but(tls_ca=second).get("/vault/connections").status == 200
		except OSError:
			return False
	tap.check("SIGHUP takes a new certificate", wait_until("the new certificate", renewed, 15))
	with open(live, "w") as g:
		g.write("broken")
	v.signal(1)
	wait_until("the complaint", lambda: v.logged("api.certificate_kept"), 15)
	tap.check("a broken one is said, and the old one kept", renewed())


def contract(tap, world):
	v, c = open_vault(world, "contract")
	a = c.but(key=None, app=None, consumer=None).get("/openapi.json")
	doc = a.json
	tap.equal("/openapi.json needs no key", (a.status, doc["openapi"][:3]), (200, "3.1"))
	with open(os.path.join(os.environ.get("TOP_SRCDIR", "."), "docs/openapi.json")) as f:
		tap.equal("it is docs/openapi.json", doc, json.load(f))
	labels = {dict(l)["route"] for (n, l), _ in v.metrics().samples.items() if n == "refreshd_api_requests_total"}
	said = {(m.upper(), p) for p, item in doc["paths"].items() for m in item if m in ("get", "post", "patch", "delete", "put")}
	with open(os.path.join(os.environ.get("TOP_SRCDIR", "."), "src/api/api_route.c")) as f:
		source = f.read().replace('CONNECTION "', '"/vault/connections/{unified_api}/{service_id}').replace("CONNECTION,",
			'"/vault/connections/{unified_api}/{service_id}",')
	import re
	rows = re.findall(r'\{ "(\w+)", HTTPD_(\w+), "([^"]*)"', source)
	tap.equal("the document says every route and no other", said, {(m, p) for _, m, p in rows})
	tap.check("every route has its series from the start", {n for n, _, _ in rows} <= labels, labels)
	missing = []

	def walk(x):
		if isinstance(x, dict):
			if "$ref" in x:
				at = doc
				for part in x["$ref"][2:].split("/"):
					at = at.get(part, {})
				if not at:
					missing.append(x["$ref"])
			for y in x.values():
				walk(y)
		elif isinstance(x, list):
			for y in x:
				walk(y)
	walk(doc)
	tap.equal("every reference leads somewhere", missing, [])
	for method, path in sorted(said):
		p = path.replace("{unified_api}", "accounting").replace("{service_id}", "a").replace("{id}", "c1")
		a = c.call("PUT", p, {})
		is_error(tap, "PUT %s: 405" % p, a, 405, "MethodNotAllowedError")
		tap.check("Allow names %s" % method, method in a.headers["allow"].split(", "), a.headers)
	a = c.call("HEAD", "/vault/connections")
	tap.equal("HEAD is GET without a body", (a.status, a.body), (200, ""))
	tap.equal("requests are counted", v.metrics().get("api_requests_total", route="list", code="200"), 1)
	tap.equal("a drain ends well", v.stop(), 0)


SCENARIOS = [life, paging, imports, import_wins, one_key_at_once, dead_and_pending, client_grant, password_grant, keys_and_headers, isolation, limits, database_away, drain, transports, contract]


def main():
	tap = Tap()
	with World("api", realms=["a:mode=strict,at_ttl=3600,client_secret=" + CLIENT_SECRET]) as world:
		tap.run(SCENARIOS, world)
	if not sys.argv[1:]:
		left = document.unseen("/vault/")
		tap.equal("every route's success was seen and is as docs/openapi.json says", left, [])
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
