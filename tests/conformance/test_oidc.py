#!/usr/bin/env python3
"""refreshd against a certified OAuth server and a webhook library that others made: 1,000 connections with access tokens of 60 s over
every client authentication. No spent refresh token may come again, no access token in the database may expire, every webhook must
verify. REFRESHD_OIDC_SECONDS=300 for the long form. TAP on stdout.

Node and npm are needed; the packages of package-lock.json are fetched once into the build folder. REFRESHD_OFFLINE=1 says that
there is no network on purpose. "test_oidc.py --install" only fetches them.
"""
import json
import os
import random
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
import npmlib
import world as w
from apiclient import Client, connection_path
from world import wait_until

SECONDS = int(os.environ.get("REFRESHD_OIDC_SECONDS", "75"))
CONNECTIONS = int(os.environ.get("REFRESHD_OIDC_CONNECTIONS", "1000"))
LIFE_S = 60
FOLDER = os.path.join(w.BUILD, "tests/conformance/npm")
FILES = ["package.json", "package-lock.json", "server.mjs", "verify.mjs"]
# service -> client id, secret, authentication, more for the client
CLIENTS = {
	"basic": ("basic", "basic-secret", "client_secret_basic", {}),
	"odd": ("odd:client/1 %+", "p@ss w/%+&=:~", "client_secret_basic", {}),
	"post": ("post", "post-secret&=+%", "client_secret_post", {}),
	"pkjwt-es": ("pkjwt-es", None, "private_key_jwt", {"assertion_alg": "ES256", "key_id": "client-es"}),
	"pkjwt-rs": ("pkjwt-rs", None, "private_key_jwt", {"assertion_alg": "RS256"}),
	"public": ("public", None, "none", {}),
}


class Server:
	"""The OAuth server, as a process of our own."""

	def __init__(self, folder):
		ready = os.path.join(folder, "oidc-ready")
		self.keys = os.path.join(folder, "oidc-keys")
		self.log = open(os.path.join(folder, "oidc-log"), "w+")
		if os.path.exists(ready):
			os.remove(ready) # of a server before this one, at another port
		self.proc = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "node", "server.mjs", "--ready-file", ready, "--keys-dir", self.keys,
			"--at-ttl", str(LIFE_S)], cwd=FOLDER, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
		wait_until("the OAuth server", lambda: os.path.exists(ready) or self.proc.poll() is not None, 60)
		if self.proc.poll() is not None:
			self.log.seek(0)
			raise RuntimeError("the OAuth server ended:\n" + self.log.read())
		with open(ready) as f:
			facts = json.load(f)
		self.issuer, self.token_url = facts["issuer"], facts["token_endpoint"]

	def call(self, path, data=None):
		try:
			status, text = w.http(self.issuer + path, data, 60)
		except OSError as e:
			self.log.seek(0)
			raise RuntimeError("%s: %s; the OAuth server (exit status %s) said:\n%s" % (path, e, self.proc.poll(), self.log.read()[-2000:]))
		if status != 200:
			raise RuntimeError("%s: %d %s" % (path, status, text))
		return text

	def mint(self, client, n):
		text = self.call("/_test/mint?client=%s&n=%d" % (w.urllib.parse.quote(client), n), b"")
		return [json.loads(line) for line in text.splitlines()]

	def stats(self):
		return json.loads(self.call("/_test/stats"))

	def close(self):
		self.proc.terminate()
		self.proc.wait(20)
		self.log.close()


def make_vault(world, server):
	providers, clients = {}, []
	for service, (_, _, auth, _) in CLIENTS.items():
		providers[service] = {"token_url": server.token_url, "client_auth": auth}
	providers["pkjwt-es"]["audience"] = server.issuer
	v = world.vault("oidc", providers, migrate=False)
	for service, (client_id, secret, auth, more) in CLIENTS.items():
		c = dict(more, application="*", provider=service, client_id=client_id)
		if secret is not None:
			c["client_secret_file"] = v.write("secret-" + service, secret + "\n")
		elif auth == "private_key_jwt":
			c["private_key_file"] = os.path.join(server.keys, service.split("-")[1] + ".pem")
		clients.append(c)
	v.conf["clients"] = clients
	v.conf["webhooks"] = [{"name": "hooks", "application": "*", "url": world.sim.sink_url("hooks"),
		"secret_file": v.write("webhook-secret", w.WEBHOOK_SECRET + "\n"), "allow_private": True}]
	v.write_conf()
	v.migrate()
	return v


def import_all(v, server):
	"""Returns a few grants to revoke later: (consumer, grant)."""
	rng, lines, spare, now = random.Random(1), [], [], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
	for service, (client_id, *_) in CLIENTS.items():
		for i, x in enumerate(server.mint(client_id, CONNECTIONS // len(CLIENTS) + 1)):
			consumer = "%s-%d" % (service, i)
			lines.append({"application_id": "app", "consumer_id": consumer, "unified_api": "accounting", "service_id": service,
				"credentials": {"access_token": "imported-%s" % consumer, "refresh_token": x["refresh_token"], "issued_at": now,
					"expires_in": rng.randint(20, LIFE_S)}})
			if i < 2:
				spare.append((consumer, x["grant_id"]))
	v.import_lines(lines)
	return len(lines), spare


def oidc(tap, world):
	server = Server(world.dir)
	try:
		v = make_vault(world, server)
		n, spare = import_all(v, server)
		v.start()
		began, worst = time.monotonic(), []
		tick = 0
		while time.monotonic() - began < SECONDS:
			tick += 1
			wait_until("the next second", lambda: time.monotonic() - began >= tick, 10)
			expired = v.sql("SELECT count(*), coalesce(max(extract(epoch FROM now() - expires_at)), 0) FROM refreshd.credential WHERE expires_at < now()")
			if expired.split("|")[0] != "0":
				worst.append((tick, expired))
		tap.check("no access token in the database was expired in any of %d samples" % tick, not worst, worst[:5])
		rounds = min(r["refreshes"] for r in v.all_rows())
		tap.check("every one of %d connections was refreshed, again and again (%d times at least)" % (n, rounds), rounds >= SECONDS // LIFE_S + 1, rounds)
		stats = server.stats()
		tap.equal("no spent refresh token came again", stats["reuse_detected"], 0)
		tap.equal("nothing was refused", stats["errors"], {})
		tap.equal("every client authentication worked", sorted(stats["by_client"]), sorted(c[0] for c in CLIENTS.values()))
		for consumer, grant in spare:
			server.call("/_test/revoke?grant=" + grant, b"")
		for consumer, _ in spare:
			service = consumer.rsplit("-", 1)[0]
			v.ctl("refresh", "app/%s/accounting/%s" % (consumer, service), good=False)
		dead = sorted(r["consumer"] for r in v.all_rows() if r["state"] == "invalid")
		tap.equal("revoked grants are found out, and only those", dead, sorted(c for c, _ in spare))

		def told():
			return {json.loads(h["body"])["payload"]["entity_id"] for h in world.sim.sink("hooks") if "token_refresh.failed" in h["body"]}

		wait_until("a webhook for each", lambda: told() >= {"app+" + c for c, _ in spare}, 30)
		verify_hooks(tap, v, world.sim.sink("hooks"))
		v.stop()
		stats = server.stats()
		tap.equal("at the end too, no spent refresh token came again", stats["reuse_detected"], 0)
		tap.equal("token versions only grew", v.count("watch.shrunk"), 0)
		tap.note("%d refreshes in %.0f s: %s" % (stats["refresh_ok"], time.monotonic() - began, stats["by_client"]))
	finally:
		server.close()


def verify_hooks(tap, v, hooks):
	text = "".join(json.dumps({"arrived_us": h["t_us"], "headers": h["headers"], "body": h["body"]}) + "\n" for h in hooks)
	forged = json.dumps({"arrived_us": hooks[0]["t_us"], "headers": hooks[0]["headers"], "body": hooks[0]["body"].replace("app", "apq", 1)}) + "\n"
	done = subprocess.run(["node", "verify.mjs", os.path.join(v.dir, "webhook-secret")], cwd=FOLDER, input=text + forged, stdout=subprocess.PIPE,
		stderr=subprocess.PIPE, text=True)
	said = done.stdout.splitlines()
	tap.equal("npm standardwebhooks verifies each of %d webhooks" % len(hooks), said[:-1], ["ok"] * len(hooks))
	tap.check("and refuses one that was changed", said and said[-1].startswith("bad"), said[-1:] + [done.stderr])


# service -> client id, secret, authentication, more for the client
OWN = {
	"own-basic": ("own:basic/1 %", "own p@ss&=+%", "client_secret_basic", {}),
	"own-post": ("own-post", "own-post-secret", "client_secret_post", {}),
	"own-pkjwt": ("own-pkjwt", None, "private_key_jwt", {"assertion_alg": "ES256", "key_id": "client-es"}),
	"own-wrong": ("own-post", "not the secret", "client_secret_post", {}),
}


def client_credentials(tap, world):
	"""POST .../token: no import, no person; the server's own word on every token."""
	server = Server(world.dir)
	try:
		providers = {service: {"token_url": server.token_url, "client_auth": auth, "grant": "client_credentials", "rotation": "none",
			"scope": "api:read", "send_scope": "literal"} for service, (_, _, auth, _) in OWN.items()}
		v = world.vault("own", providers, migrate=False, api={"listen": "127.0.0.1:%d" % w.free_port()})
		v.conf["clients"] = []
		for service, (client_id, secret, _, more) in OWN.items():
			c = dict(more, application="*", provider=service, client_id=client_id)
			c["private_key_file" if secret is None else "client_secret_file"] = (os.path.join(server.keys, "es.pem") if secret is None
				else v.write("secret-" + service, secret + "\n"))
			v.conf["clients"].append(c)
		v.conf["providers"]["own-pkjwt"]["audience"] = server.issuer
		v.write_conf()
		v.migrate()
		v.ctl("app", "add", "app")
		key = json.loads(v.ctl("--json", "key", "add", "app", "--scope", "connections:write", "--scope", "credentials:read").stdout)["key"]
		v.start()
		client = Client(int(v.conf["api"]["listen"].split(":")[1]), key)

		def inspect(service):
			a = client.get(connection_path(service, tail="/credentials"))
			token = a.data["access_token"] if a.status == 200 else ""
			return dict(json.loads(server.call("/_test/inspect", token.encode())), token=token, said=a)
		first = {}
		for service in [s for s in OWN if s != "own-wrong"]:
			a = client.post(connection_path(service, tail="/token"))
			tap.equal("%s: POST token" % service, (a.status, a.data["state"], a.data["oauth_grant_type"]) if a.status == 200 else a,
				(200, "callable", "client_credentials"))
			first[service] = inspect(service)
			tap.equal("%s: the server knows the token as this client's" % service, (first[service].get("client"), first[service].get("scope")),
				(OWN[service][0], "api:read"))
			tap.check("%s: it ends when we say" % service, abs(first[service]["exp"] - first[service]["said"].data["expires_at"] / 1000) < 2, first[service])
			tap.equal("%s: there is no refresh token" % service, v.rows(service)["c1"]["rt"], None)
		a = client.post(connection_path("own-wrong", tail="/token"))
		tap.equal("a wrong secret: 502, and why", (a.status, a.json["type_name"], a.json["detail"]["type"]),
			(502, "ConnectorExecutionError", "refresh_token_connector_error"))
		for service in first:
			wait_until("%s: renewals of its own" % service, lambda: v.rows(service)["c1"]["refreshes"] >= 3, 40)
			now = inspect(service)
			tap.check("%s: renewed without being asked, and never expired" % service, now["token"] not in ("", first[service]["token"])
				and now["client"] == OWN[service][0], now)
			a = client.post(connection_path(service, tail="/token"))
			tap.check("%s: POST token again gets another" % service, a.status == 200 and inspect(service)["token"] != now["token"], a)
		tap.equal("the server refused nobody but the wrong one", set(server.stats()["errors"]), {"invalid_client"})
		tap.equal("a drain ends well", v.stop(), 0)
	finally:
		server.close()


def main():
	tap = w.Tap()
	why = npmlib.install(HERE, FOLDER, FILES)
	if sys.argv[1:] == ["--install"]:
		if why is not None:
			print(why, file=sys.stderr)
		return 0 if why is None else 1
	if why is not None and os.environ.get("REFRESHD_OFFLINE") == "1":
		print("1..0 # SKIP REFRESHD_OFFLINE is set: %s" % why.split("\n")[0])
		return 0
	if why is not None:
		tap.check("node and the packages are there", False, why)
		return tap.finish()
	with w.World("oidc") as world:
		tap.run([client_credentials, oidc], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
