#!/usr/bin/env python3
"""The Vault clients that Apideck publishes, unmodified but for the base URL, against refreshd: import, list, get, update, validate,
consumers, logs, delete and the errors, with every answer parsed by the client itself.

Node and npm are needed; the packages of sdk/package-lock.json are fetched once into the build folder. REFRESHD_OFFLINE=1 says that
there is no network on purpose. "test_sdk.py --install" only fetches them.
"""
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "integration"))
import npmlib
import world as w
from test_api import open_vault, tokens

FOLDER = os.path.join(w.BUILD, "tests/conformance/npm-sdk")
FILES = ["package.json", "package-lock.json", "run.mjs"]
PACKAGES = ["unify-0.52", "unify-0.39", "unify-0.22", "@apideck/node"]
STEPS = ["import", "list", "get", "update", "validate", "consumers", "consumer", "logs", "not_found", "bad_import", "delete", "deleted", "unauthorized"]


def find(x, *names):
	"""The first member of one of these names, however deep: the clients wrap answers differently."""
	if isinstance(x, dict):
		for n in names:
			if n in x:
				return x[n]
		x = list(x.values())
	if isinstance(x, list):
		for y in x:
			got = find(y, *names)
			if got is not None:
				return got
	return None


def without_meta(x):
	"""Unify's answers carry the raw HTTP exchange along."""
	return {k: v for k, v in x.items() if k not in ("httpMeta", "HttpMeta")} if isinstance(x, dict) else x


def run(tap, vault, client, package, token):
	done = subprocess.run(["node", "run.mjs", package, "http://127.0.0.1:%d" % vault.api_port, client.key, "sdk " + package], cwd=FOLDER,
		input=json.dumps(token), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120)
	said = {}
	for line in done.stdout.splitlines():
		x = json.loads(line)
		said[x["step"]] = x
	if not tap.check("%s: runs to its end" % package, done.returncode == 0 and list(said) == STEPS, done.stdout[-1500:] + done.stderr[-1500:]):
		return
	failing = ("not_found", "bad_import", "unauthorized")
	for step in STEPS:
		if step not in failing:
			tap.check("%s: %s is parsed" % (package, step), "error" not in said[step], said[step])
	good = {s: without_meta(x.get("value")) for s, x in said.items()}
	for step in ("import", "get", "update"):
		d = find(good[step], "data") or {}
		tap.check("%s: %s gives the connection" % (package, step), d.get("id") == "accounting+a" and d.get("state") == "callable" and
			(d.get("serviceId") or d.get("service_id")) == "a" and d.get("health", "ok") == "ok", good[step])
		tap.check("%s: %s has its times as numbers" % (package, step), isinstance(d.get("createdAt") or d.get("created_at"), (int, float)), d)
	# Some types of the clients keep no names of ours: unify 0.52 of metadata, 0.22 of settings.
	tap.equal("%s: metadata is replaced" % package, find(good["update"], "metadata"), {} if package == "unify-0.52" else {"plan": "silver"})
	tap.equal("%s: settings come back" % package, find(good["get"], "settings"), {} if package == "unify-0.22" else {"region": "eu"})
	tap.equal("%s: list" % package, [x["id"] for x in find(good["list"], "data") or []], ["accounting+a"])
	tap.equal("%s: validate" % package, {k: (find(good["validate"], "data") or {}).get(k) for k in ("id", "state")}, {"id": "accounting+a", "state": "callable"})
	tap.check("%s: consumer has its connection" % package, find(good["consumer"], "connections"), good["consumer"])
	tap.check("%s: logs" % package, find(good["logs"], "data"), good["logs"])
	tap.equal("%s: available after the delete" % package, (find(good["deleted"], "data") or {}).get("state"), "available")
	for step, status in (("not_found", 404), ("bad_import", 400), ("unauthorized", 401)):
		e = said[step].get("error", {})
		tap.check("%s: %s is thrown with status %d" % (package, step, status), e.get("status") == status, said[step])


def main():
	why = npmlib.install(os.path.join(HERE, "sdk"), FOLDER, FILES)
	if "--install" in sys.argv[1:]:
		print(why or "installed in " + FOLDER)
		return 1 if why else 0
	if why is not None and os.environ.get("REFRESHD_OFFLINE") == "1":
		print("1..0 # SKIP " + why.split("\n")[0])
		return 0
	tap = w.Tap()
	if not tap.check("the client packages are installed", why is None, why):
		return tap.finish()
	with w.World("sdk", realms=["a:mode=strict,at_ttl=3600,client_secret=" + w.CLIENT_SECRET]) as world:
		vault, client = open_vault(world, "sdk")
		for package in PACKAGES:
			run(tap, vault, client, package, tokens(world)[0])
		tap.equal("the daemon ends well", vault.stop(), 0)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
