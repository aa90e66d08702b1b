#!/usr/bin/env python3
"""refreshctl: every command with right and wrong use, against a private Postgres; no secret gets out.

The daemon is not needed: what it would write (a refresh's outcome, an orphan, a delivery) is written by hand.
"""
import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pgcluster import PgCluster, clean_env, wait_until  # noqa: E402

CTL = os.path.join(os.environ.get("TOP_BUILDDIR", "."), "refreshctl")
count = 0
failed = 0
everything = []  # all that any command printed, but for the two that must print a secret
canaries = set()


def check(ok, name, detail=""):
	global count, failed
	count += 1
	print("%sok %d - %s" % ("" if ok else "not ", count, name), flush=True)
	if not ok:
		failed += 1
		for row in str(detail).split("\n"):
			print("# " + row, flush=True)


class Done:
	def __init__(self, p, out, err):
		self.code, self.out, self.err = p.returncode, out.decode(errors="replace"), err.decode(errors="replace")

	def __repr__(self):
		return "exit %d\nstdout: %s\nstderr: %s" % (self.code, self.out, self.err)

	def json(self):
		return json.loads(self.out)


def secret(name):
	text = "cAnArY-%s-%s" % (name, os.urandom(6).hex())
	canaries.add(text)
	return text


class World:
	def __init__(self, pg):
		self.pg = pg
		self.dir = tempfile.mkdtemp(prefix="ctl-")
		self.keyring("k1")
		self.webhook_secret = secret("webhook")
		self.client_secret = secret("client")
		self.write("hook", self.webhook_secret)
		self.write("client", self.client_secret)
		self.conf = self.write("refreshd.yaml", self.config(pg.url()))

	def write(self, name, text, mode="w"):
		path = os.path.join(self.dir, name)
		with open(path, mode) as f:
			f.write(text)
		os.chmod(path, 0o600)
		return path

	def keyring(self, *ids):
		self.keys = getattr(self, "keys", {})
		for i in ids:
			if i not in self.keys:
				self.keys[i] = base64.b64encode(os.urandom(32)).decode()
				canaries.add(self.keys[i])
		self.write("keyring", "".join("%s %s\n" % (i, self.keys[i]) for i in ids))

	def config(self, url):
		return """
instance: ctl-test
state_dir: %(dir)s
insecure_http: loopback
database: {url: "%(url)s"}
keyring_file: %(dir)s/keyring
webhooks:
  - {name: ops, application: app1, url: "http://127.0.0.1:9/hook", secret_file: %(dir)s/hook, events: ["*"]}
providers:
  xero: {name: Xero, unified_apis: [accounting], auth_type: oauth2, token_url: "http://127.0.0.1:9/t", rotation: grace,
         rotation_grace: 30m, sensitive_settings: [deep_secret]}
  keyed: {name: Keyed, auth_type: apiKey, required_settings: [api_key]}
clients:
  - {application: "*", provider: xero, client_id: abc, client_secret_file: %(dir)s/client}
""" % {"dir": self.dir, "url": url}

	def run(self, *args, stdin=None, conf=None, keep=True):
		argv = [CTL, "-c", conf or self.conf] + list(args)
		p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_env())
		out, err = p.communicate(stdin if isinstance(stdin, bytes) else (stdin or "").encode(), timeout=120)
		done = Done(p, out, err)
		everything.append(done.err + (done.out if keep else ""))
		return done

	def sql(self, text):
		return self.pg.psql(text)


def line(consumer, service="xero", api="accounting", app="app1", **more):
	d = {"application_id": app, "consumer_id": consumer, "unified_api": api, "service_id": service,
		"credentials": {"access_token": secret("at"), "refresh_token": secret("rt"),
			"issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "expires_in": 3600}}
	d.update(more)
	return d


def lines(*dicts):
	return "".join(json.dumps(d) + "\n" for d in dicts)


def test_usage(w):
	d = w.run("--help")
	check(d.code == 0 and "Usage: refreshctl" in d.out and "orphans" in d.out, "--help names the commands", d)
	d = w.run("--version")
	check(d.code == 0 and d.out.startswith("refreshctl "), "--version", d)
	for name in ("migrate", "app", "key", "import", "list", "show", "refresh", "token", "webhook", "status", "top",
			"providers", "rekey", "journal", "orphans"):
		d = w.run(name, "--help")
		check(d.code == 0 and ("Usage: refreshctl [-c FILE] [--json] %s" % name) in d.out, "%s --help" % name, d)
	wrong = [[], ["nonsense"], ["--nonsense", "status"], ["migrate", "x"], ["app"], ["app", "add"], ["app", "drop", "x"],
		["app", "add", "*"], ["app", "add", "a\nb"], ["app", "add", "x" * 201], ["app", "list", "x"], ["key"], ["key", "add"],
		["key", "add", "app1", "--scope", "all"], ["key", "list", "--scope", "x"], ["key", "revoke"], ["import"],
		["import", "a", "b"], ["import", "a", "--nonsense"], ["import", "--dry-run=yes", "a"], ["list", "--state", "sick"],
		["list", "--health", "sick"], ["list", "--limit", "-1"], ["list", "--limit"], ["show"], ["show", "a/b/c"],
		["show", "a/b/c/d/e"], ["show", "a/b/C/d"], ["show", "a%zz/b/c/d"], ["refresh"], ["refresh", "x"],
		["refresh", "a/b/c/d", "--timeout", "soon"], ["token"], ["webhook"], ["webhook", "test"], ["webhook", "enable"],
		["webhook", "list", "x"], ["webhook", "drop"], ["webhook", "add", "https://x"], ["webhook", "remove"],
		["webhook", "add", "--app", "app1"], ["webhook", "add", "--url", "https://x"], ["webhook", "list", "--app", "app1"],
		["webhook", "enable", "x", "--timeout", "1s"], ["webhook", "add", "--app", "a", "--url", "https://x", "--event", "vault.nope"],
		["webhook", "add", "--app", "a", "--url", "https://x/" + "y" * 2000], ["webhook", "add", "--app", "a", "--url", "http://x.example"],
		["webhook", "add", "--app", "a", "--url", "no-url"], ["webhook", "add", "--app", "a", "--url", "https://x", "--description", "a\nb"],
		["status", "x"], ["top"], ["--json", "top"], ["providers", "a", "b"], ["rekey", "x"], ["journal"],
		["journal", "drop"], ["orphans"], ["orphans", "merge"], ["orphans", "list", "--force"], ["orphans", "drop", "x"]]
	for args in wrong:
		d = w.run(*args)
		check(d.code == 2 and d.err.startswith("refreshctl: ") and d.out == "", "wrong use: %r" % " ".join(args)[:60], d)
	d = w.run("status", conf=w.dir + "/missing.yaml")
	check(d.code == 78 and "missing.yaml" in d.err, "a missing configuration is exit 78", d)
	bad = w.write("bad.yaml", "instance: x\nnonsense: 1\n")
	d = w.run("status", conf=bad)
	check(d.code == 78 and "bad.yaml:2" in d.err, "a bad configuration is told by line", d)
	far = w.write("far.yaml", w.config("host=/nowhere dbname=x"))
	d = w.run("app", "list", conf=far)
	check(d.code == 1 and d.err.startswith("refreshctl: database:"), "a database that is away is exit 1", d)


def test_migrate(w):
	d = w.run("app", "list")
	check(d.code == 1 and "refreshctl migrate" in d.err, "without a schema: run migrate", d)
	d = w.run("status")
	check(d.code == 1 and "WRONG" in d.out and "migrate" in d.out, "status without a schema says so", d)
	d = w.run("migrate")
	check(d.code == 0 and "0 -> " in d.out, "migrate says from and to", d)
	d = w.run("--json", "migrate")
	check(d.code == 0 and d.json()["from"] == d.json()["to"], "migrate again does nothing", d)
	w.sql("insert into refreshd.schema_version (version) values (999)")
	check(w.run("migrate").code == 1 and w.run("list").code == 1 and w.run("status").code == 1, "a newer schema is refused")
	w.sql("delete from refreshd.schema_version where version = 999")


def test_apps_and_keys(w):
	check(w.run("app", "add", "app1").code == 0, "app add")
	d = w.run("app", "add", "app1", "--json")
	check(d.code == 0 and d.json() == {"application_id": "app1", "added": False}, "app add again is no mistake", d)
	d = w.run("app", "list")
	check(d.code == 0 and "app1" in d.out, "app list", d)
	check([a["application_id"] for a in w.run("app", "list", "--json").json()] == ["app1"], "app list --json")
	d = w.run("key", "add", "app1", "--scope", "credentials:read", "--scope=webhooks:write", keep=False)
	key = d.out.strip()
	canaries.add(key)
	check(d.code == 0 and key.startswith("rfd_") and len(key) == 53 and d.out.count("\n") == 1 and key not in d.err,
		"key add prints the key alone on stdout", d)
	stored = w.sql("select encode(key_sha256, 'hex') from refreshd.api_key")
	import hashlib
	check(stored == hashlib.sha256(key.encode()).hexdigest(), "a key is stored as its SHA-256")
	d = w.run("key", "add", "nobody", keep=False)
	check(d.code == 1 and "app add" in d.err and d.out == "", "a key for nobody is refused", d)
	d = w.run("key", "add", "app1", "--json", keep=False)
	canaries.add(d.json()["key"])
	second = d.json()["key_id"]
	rows = w.run("key", "list", "--json").json()
	check(len(rows) == 2 and rows[0]["scopes"] == ["credentials:read", "webhooks:write"], "key list", rows)
	check(w.run("key", "list", "app1").code == 0 and w.run("key", "list", "nobody").code == 1, "key list APP")
	check("revoked" in w.run("key", "revoke", second).out and "already" in w.run("key", "revoke", second).out, "key revoke")
	check(w.run("key", "revoke", "k_none").code == 1, "a key that is not there cannot be revoked")


def test_import(w):
	good = [line("c%d" % i) for i in range(3)]
	d = w.run("import", "-", "--dry-run", stdin=lines(*good))
	check(d.code == 0 and "would be 3 created" in d.out and w.sql("select count(*) from refreshd.connection") == "0",
		"--dry-run writes nothing", d)
	d = w.run("import", "-", stdin=lines(*good))
	check(d.code == 0 and "3 created, 0 updated" in d.out, "import creates", d)
	row = w.sql("select state, health, reason, auth_type, c.created_at = c.updated_at, k.token_version = s.token_version,"
		" s.due_at > now() + interval '50 min' and s.due_at < k.expires_at from refreshd.connection c"
		" join refreshd.credential k using (slot, connection_id) join refreshd.schedule s using (slot, connection_id)"
		" where consumer_id = 'c0'")
	check(row == "callable|ok|none|oauth2|t|t|t", "a created row is callable and due before its expiry", row)
	check(w.sql("select string_agg(distinct event_type, ',') || count(*) from refreshd.event") == "vault.connection.created3",
		"a created event for each new row")
	d = w.run("token", "app1/c1/accounting/xero", keep=False)
	check(d.code == 0 and d.out == good[1]["credentials"]["access_token"] + "\n", "the token opens again", d.err)

	path = w.write("bad.jsonl", "\ufeff" + json.dumps(line("bom")) + "\r\n" + "\n   \n" + "{broken\n" +
		lines(line("c9", service="nope"), line("c9", api="crm"), line("c9", app="nobody"),
			line("c9", credentials={"access_token": 5, "refresh_token": secret("bad"), "extra": secret("bad")}),
			line("k1", service="keyed", api="crm", credentials=None)) + "\"\xe9\n")
	with open(path, "ab") as f:
		f.write(b'{"x":"\xff"}\n' + b'{"application_id":"' + b"y" * (1 << 20) + b'"}\n' + json.dumps(line("last")).encode())
	d = w.run("import", path)
	check(d.code == 1 and "2 created" in d.out and "9 bad" in d.out, "bad lines are skipped and counted", d)
	for text in (":4: ", ":5: service_id: 'nope'", ":6: unified_api: provider xero does not serve 'crm'", ":7: application_id",
			":8: credentials.access_token: must be a string; credentials.extra: unknown", ":9: settings.api_key: missing",
			":10: ", ":11: not valid UTF-8", ":12: longer than 1 MiB"):
		check(("bad.jsonl" + text) in d.err, "reported: %s" % text[:50], d.err)
	many = "".join("{\n" for i in range(30))
	d = w.run("import", "-", stdin=many)
	check(d.err.count("stdin:") == 21 and "30 bad" in d.out, "at most 20 bad lines are shown", d)
	check(w.run("import", "-", "--verbose", stdin=many).err.count("stdin:") == 30, "--verbose shows all")
	before = w.sql("select count(*) from refreshd.connection")
	d = w.run("import", "-", "--strict", "--create-apps", stdin=lines(line("s1"), line("s2", app="strict-app")) + "{\n" + lines(line("s3")))
	check(d.code == 1 and "nothing was written" in d.out and w.sql("select count(*) from refreshd.connection") == before
		and w.sql("select count(*) from refreshd.application where application_id = 'strict-app'") == "0",
		"--strict writes nothing when a line is bad", d)
	d = w.run("import", "-", "--strict", stdin=lines(*[line("s%d" % (i % 4100)) for i in range(8200)]))
	check(d.code == 0 and "4100 updated" in d.out, "--strict over several chunks", d)
	d = w.run("import", "-", "--create-apps", stdin=lines(line("n1", app="new-app")))
	check(d.code == 0 and w.sql("select count(*) from refreshd.application where application_id = 'new-app'") == "1",
		"--create-apps makes the application", d)
	check(w.run("import", w.dir + "/none").code == 1 and w.run("import", w.dir).code == 1, "a file that cannot be read")
	d = w.run("import", "-", stdin="")
	check(d.code == 0 and "0 lines" in d.out, "an empty file is fine", d)


def test_upsert(w):
	first, second = line("dup", settings={"a": 1, "deep_secret": secret("setting")}, metadata={"m": 1}), line("dup")
	d = w.run("import", "-", stdin=lines(first, second))
	check(d.code == 0 and "1 created" in d.out and "1 repeated" in d.out, "of one key in a chunk the last counts", d)
	d = w.run("token", "app1/dup/accounting/xero", keep=False)
	check(d.out.strip() == second["credentials"]["access_token"], "the last line's token is there")
	w.run("import", "-", stdin=lines(first))
	old = w.sql("select created_at, metadata, settings_public from refreshd.connection where consumer_id = 'dup'")
	check('{"m": 1}' in old and '"deep_secret": "********"' in old and '"a": 1' in old, "settings are masked in what is shown", old)
	w.sql("update refreshd.connection set health = 'pending_refresh', reason = 'no_answer', failures = 3, first_failed_at = now(),"
		" enabled = false where consumer_id = 'dup'")
	w.sql("update refreshd.credential set previous_refresh_token = 'x', refreshes = 7, scope = 'old' where connection_id ="
		" (select connection_id from refreshd.connection where consumer_id = 'dup')")
	w.sql("update refreshd.schedule set attempt_id = 5, doubts = 2, lease_owner = 9, lease_until = now() + interval '1 min'"
		" where connection_id = (select connection_id from refreshd.connection where consumer_id = 'dup')")
	d = w.run("import", "-", stdin=lines(line("dup")))
	check(d.code == 0 and "1 updated" in d.out, "a second import updates", d)
	check(w.sql("select created_at, metadata, settings_public from refreshd.connection where consumer_id = 'dup'") == old,
		"created_at, settings and metadata stay when they are not given")
	row = w.sql("select health, reason, failures, first_failed_at is null, enabled, previous_refresh_token is null, refreshes, scope,"
		" attempt_id, doubts, lease_owner, lease_until > now() from refreshd.connection join refreshd.credential"
		" using (slot, connection_id) join refreshd.schedule using (slot, connection_id) where consumer_id = 'dup'")
	check(row == "ok|none|0|t|f|t|7||0|0|9|t", "failure state and scope are reset, a live lease stays", row)
	check(w.sql("select event_type from refreshd.event join refreshd.connection using (connection_id) where consumer_id = 'dup'"
		" order by occurred_at desc limit 1") == "vault.connection.token_refresh.recovered", "the transition is told")
	w.sql("update refreshd.schedule set lease_until = now() - interval '1 s' where lease_owner = 9;"
		"update refreshd.connection set state = 'invalid', health = 'needs_auth' where consumer_id = 'dup'")
	w.run("import", "-", stdin=lines(line("dup")))
	check(w.sql("select lease_owner is null and lease_until is null from refreshd.schedule join refreshd.connection"
		" using (slot, connection_id) where consumer_id = 'dup'") == "t", "a lease that ran out goes")
	check(w.sql("select event_type from refreshd.event join refreshd.connection using (connection_id) where consumer_id = 'dup'"
		" order by occurred_at desc limit 1") == "vault.connection.callable", "a dead connection becomes callable")
	w.sql("update refreshd.schedule s set token_version = (extract(epoch from now()) * 1e6)::bigint + 3600000000 from refreshd.connection c"
		" where c.connection_id = s.connection_id and consumer_id = 'dup'")
	mine = line("dup")
	d = w.run("import", "-", stdin=lines(mine))
	check(d.code == 0 and "1 updated" in d.out, "a version from a clock ahead is exceeded", d)
	check(w.run("token", "app1/dup/accounting/xero", "--force", keep=False).out.strip() == mine["credentials"]["access_token"],
		"and what was sealed for it opens")


def test_due(w):
	null = {"access_token": secret("at"), "refresh_token": secret("rt"), "issued_at": None, "expires_in": None}
	past = dict(null, issued_at="2020-01-01T00:00:00Z", expires_in=60)
	only = {"access_token": secret("at"), "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "expires_in": 600}
	d = w.run("import", "-", stdin=lines(line("due-null", credentials=null), line("due-past", credentials=past),
		line("due-only", credentials=only), line("due-key", service="keyed", credentials=None, settings={"api_key": secret("apikey")})))
	check(d.code == 0 and "4 created" in d.out and "2 due now" in d.out, "missing and past times are due now", d)
	rows = w.sql("select consumer_id, s.due_at <= now(), s.due_at = k.expires_at, s.due_at = 'infinity' from refreshd.connection"
		" join refreshd.schedule s using (slot, connection_id) join refreshd.credential k using (slot, connection_id)"
		" where consumer_id like 'due-%' order by 1")
	check(rows == "due-key|f||t\ndue-null|t|f|f\ndue-only|f|t|f\ndue-past|t|f|f", "due times", rows)
	d = w.run("show", "app1/due-key/accounting/keyed")
	check(d.code == 0 and "********" in d.out, "apiKey settings are shown masked", d)


def test_race(w):
	"""Importers of the same keys at once: every row ends whole, and the versions only grow."""
	keys = ["race%d" % i for i in range(300)]
	results = []

	def one():
		for _ in range(3):
			results.append(w.run("import", "-", stdin=lines(*[line(k) for k in keys])))
	threads = [threading.Thread(target=one) for _ in range(3)]
	[t.start() for t in threads]
	[t.join() for t in threads]
	check(all(d.code == 0 for d in results), "importers of one key do not fail each other", [d for d in results if d.code != 0])
	check(w.sql("select count(*) from refreshd.schedule s join refreshd.credential k using (slot, connection_id)"
		" where s.token_version <> k.token_version") == "0", "schedule and credential agree after a race")
	check(w.sql("select count(*) from refreshd.connection where consumer_id like 'race%'") == "300", "one row for a key")
	d = w.run("token", "app1/race7/accounting/xero", keep=False)
	check(d.code == 0 and d.out.strip() in canaries, "what is there after a race opens")


def test_interrupt(w):
	p = subprocess.Popen([CTL, "-c", w.conf, "import", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
		stderr=subprocess.PIPE, env=clean_env())
	p.stdin.write(lines(*[line("int%d" % i) for i in range(4500)]).encode())
	p.stdin.flush()
	wait_until("the first chunk", lambda: w.sql("select count(*) from refreshd.connection where consumer_id like 'int%'") == "4000")
	p.send_signal(2)
	out, err = p.communicate(timeout=30)
	d = Done(p, out, err)
	everything.append(d.out + d.err)
	check(d.code == 1 and "lines 1 to 4000 are committed" in d.err, "an interrupt says what is committed", d)


def test_list_show(w):
	d = w.run("list", "--limit", "5", "--json")
	check(d.code == 0 and len(d.json()) == 5 and "only the first 5" in d.err, "list --limit", d)
	n = int(w.sql("select count(*) from refreshd.connection"))
	rows = w.run("list", "--limit", "0", "--json").json()
	check(len(rows) == n and len({r["connection_id"] for r in rows}) == n, "list pages through everything")
	check(len(w.run("list", "--limit", str(n), "--json").json()) == n and w.run("list", "--limit", str(n)).err == "",
		"a limit that just fits says nothing")
	d = w.run("list", "--app", "new-app")
	check(d.code == 0 and d.out.count("\n") == 2 and "n1" in d.out, "list --app", d)
	check(w.run("list", "--state", "invalid", "--json").json() == [] and w.run("list", "--health", "ok", "--json").code == 0,
		"list --state, --health")
	d = w.run("show", rows[0]["connection_id"])
	check(d.code == 0 and "access token" in d.out and "sealed" in d.out, "show by UUID", d)
	d = w.run("show", "app1/c0/accounting/xero", "--json")
	check(d.code == 0 and d.json()["state"] == "callable" and "expires_at" in d.json(), "show by key as JSON", d)
	check(w.run("show", "app1/nobody/accounting/xero").code == 1, "show what is not there")
	evil = "x\u009b31m\u202ey/%"
	w.run("import", "-", stdin=lines(line(evil)))
	d = w.run("show", "app1/x%C2%9B31m%E2%80%AEy%2F%25/accounting/xero")
	check(d.code == 0 and "\u009b" not in d.out and "\u202e" not in d.out and "x?31m?y/%" in d.out, "names cannot drive the terminal", d)


def test_token(w):
	d = w.run("token", "app1/c0/accounting/xero", "--json", keep=False)
	check(d.code == 0 and d.json()["access_token"] in canaries and d.json()["expires_at"], "token --json")
	d = w.run("token", "app1/due-past/accounting/xero", keep=False)
	check(d.code == 1 and d.out == "" and "expired" in d.err, "an expired token is refused", d)
	check(w.run("token", "app1/due-past/accounting/xero", "--force", keep=False).code == 0, "unless it is forced")
	w.sql("update refreshd.connection set state = 'invalid', reason = 'invalid_grant' where consumer_id = 'c2'")
	d = w.run("token", "app1/c2/accounting/xero", keep=False)
	check(d.code == 1 and d.out == "" and "invalid" in d.err, "a token that is not callable is refused", d)
	check(w.run("token", "app1/due-key/accounting/keyed", keep=False).code == 1, "no access token, nothing printed")
	check(w.run("token", "app1/nobody/accounting/xero", keep=False).code == 1, "no connection, no token")


CID = "(select connection_id from refreshd.connection where consumer_id = '%s')"


def test_refresh(w):
	d = w.run("refresh", "app1/c1/accounting/xero", "--timeout", "300ms")
	check(d.code == 1 and "no daemon seems to be alive" in d.err and "no outcome in time" in d.err, "refresh without a daemon", d)
	check(w.sql("select due_at <= now() from refreshd.schedule where connection_id = " + CID % "c1") == "t", "it stays due")
	w.sql("insert into refreshd.instance (name, home, epoch, version, started_at, heartbeat_at) values"
		" ('d1', gen_random_uuid(), 1, '0.1', now(), now() + interval '1 hour')")

	def outcome(sql, *args):
		box = []
		t = threading.Thread(target=lambda: box.append(w.run("refresh", *args)))
		w.sql("update refreshd.schedule set due_at = 'infinity' where connection_id = " + CID % "c1")
		t.start()
		wait_until("the row to be due", lambda: w.sql("select due_at <= now() from refreshd.schedule where connection_id = " + CID % "c1") == "t")
		w.sql(sql)
		t.join()
		return box[0]
	me = ("app1/c1/accounting/xero", "--timeout", "20s")
	d = outcome("update refreshd.credential set refreshes = refreshes + 1 where connection_id = " + CID % "c1", *me)
	check(d.code == 0 and d.out.startswith("refreshed") and d.err == "", "a refresh is seen", d)
	d = outcome("update refreshd.connection set last_failed_at = now(), reason = 'invalid_grant', state = 'invalid', health = 'needs_auth'"
		" where consumer_id = 'c1'", *me)
	check(d.code == 1 and "refused the refresh token" in d.err, "a failure is told with its reason", d)
	d = outcome("update refreshd.schedule set attempt_id = attempt_id + 1, due_at = now() + interval '5 min' where connection_id = " + CID % "c1",
		*(me + ("--json",)))
	check(d.code == 1 and d.json()["outcome"] == "postponed", "a refresh that was put off", d)
	check(w.run("refresh", "app1/due-key/accounting/keyed").code == 1 and w.run("refresh", "app1/due-only/accounting/xero").code == 1
		and w.run("refresh", "app1/nobody/accounting/xero").code == 1, "what cannot be refreshed is refused")
	w.sql("update refreshd.connection set enabled = false where consumer_id = 'c1'")
	check("not enabled" in w.run("refresh", "app1/c1/accounting/xero").err, "nor is what is not enabled")


def test_status(w):
	d = w.run("status", "--json")
	s = d.json()
	check(d.code == 1 and not s["well"] and s["daemons"][0]["alive"] and s["connections"]["callable"] > 0 and s["expired"] >= 1,
		"status as JSON", d)
	w.sql("update refreshd.schedule set due_at = now() - interval '2 min' where connection_id = " + CID % "c1")
	d = w.run("status")
	check(d.code == 1 and "WRONG" in d.out and "due for more than a minute" in d.out and "d1" in d.out, "status says what is wrong", d)
	clean = w.pg.create_database("clean")
	conf = w.write("clean.yaml", w.config(clean))
	w.run("migrate", conf=conf)
	check("no daemon is alive" in w.run("status", conf=conf).out, "no daemon is wrong")
	w.pg.psql("insert into refreshd.instance (name, home, epoch, version, started_at, heartbeat_at) values"
		" ('d1', gen_random_uuid(), 1, '0.1', now(), now())", dbname="clean")
	d = w.run("status", conf=conf)
	check(d.code == 0 and "everything is well" in d.out, "status of a healthy vault is exit 0", d)
	w.pg.psql("insert into refreshd.schedule (slot, connection_id, token_version, due_at, attempt_id, lease_owner, lease_until, application_id,"
		" service_id) values (0, '00000000-0000-0000-0000-000000000001', 1, now() - interval '5 min', 5, 77, now() - interval '2 min', 'app1', 'xero')",
		dbname="clean")
	d = w.run("status", "--json", conf=conf)
	s = d.json()
	check(d.code == 0 and (s["overdue"], s["due"], s["left_to_owner"], s["oldest_due_at"]) == (0, 0, 1, None),
		"what is left to a silent daemon is not overdue", d)
	for name, change in (("its owner is alive", "lease_owner = 1"), ("it was given up", "lease_owner = 0"), ("its attempt was voided", "attempt_id = 0"),
		("the delay is over", "lease_until = now() - interval '16 min'")):
		w.pg.psql("begin; update refreshd.schedule set attempt_id = 5, lease_owner = 77, lease_until = now() - interval '2 min';"
			" update refreshd.schedule set %s; commit" % change, dbname="clean")
		d = w.run("status", "--json", conf=conf)
		check(d.code == 1 and d.json()["overdue"] == 1 and d.json()["left_to_owner"] == 0, "but it is when " + name, d)
	w.pg.psql("truncate refreshd.schedule", dbname="clean")
	d = w.run("providers")
	check(d.code == 0 and "xero" in d.out and "keyed" in d.out, "providers", d)
	rows = w.run("providers", "xero", "--json").json()
	check(rows[0]["connections"] > 2000 and rows[0]["clients"] == 1 and any(b["reason"] == "invalid_grant" for b in rows[0]["by"]),
		"providers NAME counts by reason", rows)
	check(w.run("providers", "xero").code == 0 and w.run("providers", "nope").code == 1, "an unknown provider is an error")


def test_webhook(w):
	check("ops" in w.run("webhook", "list").out and w.run("webhook", "list", "--json").json()[0]["state"] == "unused", "webhook list")
	check(w.run("webhook", "test", "nope").code == 1 and w.run("webhook", "enable", "nope").code == 1, "an unknown endpoint")
	d = w.run("webhook", "test", "ops", "--timeout", "300ms")
	check(d.code == 1 and "no daemon has taken" in d.err, "a test that nobody takes", d)

	def test(sql):
		w.sql("delete from refreshd.event where event_type = 'refreshd.webhook.test'")
		box = []
		t = threading.Thread(target=lambda: box.append(w.run("webhook", "test", "ops", "--timeout", "20s")))
		t.start()
		wait_until("the event", lambda: w.sql("select count(*) from refreshd.event where event_type = 'refreshd.webhook.test'") == "1")
		w.sql(sql)
		t.join()
		return box[0]
	fan = "update refreshd.event set fanned_out_at = now() where event_type = 'refreshd.webhook.test';"
	put = ("begin;insert into refreshd.delivery (event_id, endpoint_id, attempt, due_at, done_at, delivered, last_status, last_error)"
		" select event_id, entity_id, 1, now(), %s, %s, %s, %s from refreshd.event where event_type = 'refreshd.webhook.test';" + fan + "commit")
	d = test(put % ("now()", "true", "204", "null"))
	check(d.code == 0 and "204" in d.out, "a test that was delivered", d)
	d = test(put % ("null", "false", "500", "'status'"))
	check(d.code == 1 and "500" in d.err, "a test that was not", d)
	d = test(fan)
	check(d.code == 1 and "does not know" in d.err, "a daemon without the endpoint", d)
	w.sql("insert into refreshd.webhook_endpoint (endpoint_id, disabled_at, disabled_reason) values ('config:ops', now(), 'gone')")
	check(w.run("webhook", "list", "--json").json()[0]["state"] == "switched off", "an endpoint that is off")
	check("switched off" in w.run("webhook", "test", "ops").err, "is not tested")
	check("on again" in w.run("webhook", "enable", "ops").out and "was not" in w.run("webhook", "enable", "ops").out, "webhook enable")


def test_webhook_of_api(w):
	url = "https://hooks.example.com/a"
	d = w.run("webhook", "add", "--app", "nobody", "--url", url, keep=False)
	check(d.code == 1 and "app add" in d.err and d.out == "", "an endpoint for nobody is refused", d)
	d = w.run("webhook", "add", "--app", "app1", "--url", url, "--event", "vault.connection.*", "--event=refreshd.provider.failing",
		"--description", "the \"first\"", keep=False)
	rows = d.out.split("\n")
	check(d.code == 0 and len(rows) == 3 and rows[0].startswith("whsec_") and rows[1].startswith("whpk_") and rows[0] not in d.err,
		"webhook add prints the secret and the public key, each on a line of stdout", d)
	canaries.add(rows[0])
	row = w.sql("select endpoint_id, unified_api, description, events, public_key, application_id from refreshd.webhook_endpoint"
		" where url = '%s'" % url).split("|")
	first = row[0]
	check(row[1:] == ["vault", 'the "first"', "{vault.connection.*,refreshd.provider.failing}", rows[1], "app1"], "webhook add stores it", row)
	check("webhook test %s" % first in d.err and "not asked" in d.err and "none is alive" not in d.err, "webhook add says what to do next", d)
	w.sql("delete from refreshd.instance")
	d = w.run("webhook", "add", "--app=app1", "--url=http://127.0.0.1:9/b", "--json", keep=False)
	made = d.json()
	canaries.add(made["secret"])
	check(d.code == 0 and made["events"] == ["*"] and made["secret"] != rows[0] and made["public_key"] != rows[1],
		"without --event it gets all; http to loopback only where the configuration says so", d.err)
	check("none is alive" in d.err, "webhook add says when no daemon is there to send", d.err)
	w.run("app", "add", "app2")
	d = w.run("webhook", "add", "--app=app2", "--url=https://hooks.example.com/c", keep=False)
	canaries.add(d.out.split("\n")[0])

	listed = w.run("webhook", "list", "--json").json()
	check([(x["kind"], x["application_id"]) for x in listed] == [("configuration", "app1"), ("api", "app1"), ("api", "app1"), ("api", "app2")]
		and listed[0]["name"] == "ops" and listed[0]["id"] == "config:ops", "webhook list shows both kinds", listed)
	check(listed[1]["name"] == listed[1]["id"] == first and listed[1]["url"] == url and listed[1]["state"] == "unused"
		and listed[1]["events"] == ["vault.connection.*", "refreshd.provider.failing"] and listed[1]["waiting"] == 0, "and all about them", listed[1])
	w.sql("insert into refreshd.event (event_id, application_id, event_type, entity_id, entity_type, entity, occurred_at, fanned_out_at)"
		" values (gen_random_uuid(), 'app1', 'refreshd.provider.failing', 'x', 'Provider', '{}', now(), now());"
		"insert into refreshd.delivery (event_id, endpoint_id, due_at) select event_id, '%s', now() from refreshd.event"
		" where entity_id = 'x'; update refreshd.webhook_endpoint set failing_since = now() where endpoint_id = '%s'" % (first, first))
	listed = w.run("webhook", "list", "--json").json()
	check(listed[1]["waiting"] == 1 and listed[1]["state"] == "failing" and listed[2]["waiting"] == 0, "and how they do", listed)
	d = w.run("webhook", "list")
	check(first in d.out and url in d.out and "EVENTS" in d.out and "hooks.example.com/c" in d.out, "webhook list as a table", d)

	fan = "update refreshd.event set fanned_out_at = now() where event_type = 'refreshd.webhook.test';"
	w.sql("delete from refreshd.event where event_type = 'refreshd.webhook.test'")
	box = []
	t = threading.Thread(target=lambda: box.append(w.run("webhook", "test", first.upper(), "--timeout", "20s")))
	t.start()
	wait_until("the event", lambda: w.sql("select count(*) from refreshd.event where event_type = 'refreshd.webhook.test'") == "1")
	row = w.sql("select application_id, entity_type, entity_id, entity::json->>'id', entity::json->>'application_id' from refreshd.event"
		" where event_type = 'refreshd.webhook.test'")
	w.sql("begin; insert into refreshd.delivery (event_id, endpoint_id, attempt, due_at, done_at, delivered, last_status)"
		" select event_id, entity_id, 1, now(), now(), true, 200 from refreshd.event where event_type = 'refreshd.webhook.test';" + fan + "commit")
	t.join()
	check(row == "app1|Endpoint|%s|%s|app1" % (first, first), "the test event is for this endpoint alone", row)
	check(box[0].code == 0 and first in box[0].out and "200" in box[0].out, "webhook test ID", box[0])
	w.sql("update refreshd.webhook_endpoint set disabled_at = now(), disabled_reason = 'failing' where endpoint_id = '%s'" % first)
	check("switched off" in w.run("webhook", "test", first).err, "an endpoint that is off is not tested")
	before = w.sql("select updated_at from refreshd.webhook_endpoint where endpoint_id = '%s'" % first)
	check("on again" in w.run("webhook", "enable", first).out and "was not" in w.run("webhook", "enable", first).out, "webhook enable ID")
	check(w.sql("select disabled_at is null and disabled_reason is null and failing_since is null and updated_at > '%s'"
		" from refreshd.webhook_endpoint where endpoint_id = '%s'" % (before, first)) == "t", "clears why, and moves updated_at")
	check(w.sql("select count(*) from refreshd.webhook_endpoint where application_id is null and updated_at is not null") == "0",
		"but not that of a configured one")

	d = w.run("webhook", "remove", "ops")
	check(d.code == 1 and "stands in the configuration" in d.err and "refreshd.yaml:" in d.err, "a configured endpoint is not removed", d)
	d = w.run("webhook", "remove", first)
	check(d.code == 0 and "removed" in d.out and w.sql("select (select count(*) from refreshd.webhook_endpoint where endpoint_id = '%s'),"
		" (select count(*) from refreshd.delivery where endpoint_id = '%s' and done_at is null)" % (first, first)) == "0|0",
		"webhook remove, with what waits", d)
	for what in ("test", "enable", "remove"):
		d = w.run("webhook", what, first)
		check(d.code == 1 and "no endpoint" in d.err, "webhook %s of one that is gone" % what, d)
	w.sql("insert into refreshd.webhook_endpoint (endpoint_id, application_id, url, unified_api, description, events, public_key, secret,"
		" created_at, updated_at) select gen_random_uuid()::text, 'app2', url, unified_api, description, events, public_key, secret,"
		" created_at, updated_at from refreshd.webhook_endpoint, generate_series(1, 49) where application_id = 'app2'")
	d = w.run("webhook", "add", "--app=app2", "--url=" + url)
	check(d.code == 1 and "50 webhook endpoints already" in d.err and d.out == "", "an application has 50 endpoints at most", d)
	w.sql("delete from refreshd.webhook_endpoint where application_id = 'app2'")
	with open("/dev/full", "w") as full:
		p = subprocess.run([CTL, "-c", w.conf, "webhook", "add", "--app=app1", "--url=" + url], stdout=full, stderr=subprocess.PIPE,
			env=clean_env(), timeout=60)
	check(p.returncode == 1 and b"did not get out" in p.stderr, "a secret that nobody got is told", p)


def test_rekey(w):
	sample = ["app1/c0/accounting/xero", "app1/dup/accounting/xero", "app1/race3/accounting/xero"]
	before = [w.run("token", s, "--force", keep=False).out for s in sample]
	rows = w.run("rekey", "--check", "--json").json()
	check({r["key_id"] for r in rows} == {"k1"} and {r["column"] for r in rows} >= {"credential.access_token", "connection.settings"},
		"rekey --check counts", rows)
	w.keyring("k2", "k1")
	w.sql("update refreshd.schedule set lease_owner = 1, lease_until = now() + interval '3 s' where connection_id = " + CID % "c0")
	d = w.run("rekey", "--json")
	check(d.code == 0 and d.json()["values"] > 4000 and d.json()["busy_rows"] == 0, "rekey seals again, and waits for a leased row", d)
	rows = w.run("rekey", "--check", "--json").json()
	check({r["key_id"] for r in rows} == {"k2"}, "nothing is left under the old key", rows)
	check(w.run("rekey", "--json").json()["values"] == 0, "a second time there is nothing to do")
	w.keyring("k2")
	check([w.run("token", s, "--force", keep=False).out for s in sample] == before, "the tokens open without the old key")
	w.keyring("k3")
	d = w.run("rekey")
	check(d.code == 1 and "cannot be opened" in d.err, "a key that is missing is told", d)
	check(w.run("rekey", "--check").code == 1, "rekey --check as well")
	d = w.run("token", "app1/c0/accounting/xero", keep=False)
	check(d.code == 1 and d.out == "", "a token without its key", d)
	w.keyring("k2", "k1")


HEADER, RECORD, PAYLOAD = 40, 24, 40  # bytes


def crc32c(data):
	crc = 0xffffffff
	for byte in data:
		crc ^= byte
		for _ in range(8):
			crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
	return crc ^ 0xffffffff


def segment(directory, n):
	"""A segment with n answers as the daemon writes them, but for the header, whose damage hides nothing."""
	path = "%s/%016x-%016x.seg" % (directory, 1, 1)
	with open(path, "wb") as f:
		f.write(bytes(HEADER))
		for seq in range(1, n + 1):
			payload = b"\x01" + os.urandom(16) + struct.pack(">qq", 7, 1) + bytes(PAYLOAD - 33)
			head = struct.pack("<IIQI", 0x314a4652, 1, seq, len(payload))
			f.write(head + struct.pack("<I", crc32c(struct.pack("<Q", 1) + head + payload)) + payload)
		f.write(bytes(1000))
	return path


def test_journal(w):
	d = w.run("journal", "list")
	check(d.code == 1 and "journal" in d.err, "a journal that is not there", d)
	os.mkdir(w.dir + "/journal", 0o700)
	check(w.run("journal", "list", "--json").json() == [], "an empty journal")
	d = w.run("journal", "replay")
	check(d.code == 0 and "No daemon holds" in d.out, "journal replay explains", d)
	import fcntl
	with open(w.dir + "/journal/lock", "w") as f:
		fcntl.flock(f, fcntl.LOCK_EX)
		check("A daemon holds" in w.run("journal", "replay").out, "a journal in use")
	path = segment(w.dir + "/journal", 3)
	d = w.run("journal", "list")
	check(d.code == 0 and "3 open" in d.out, "three answers", d)
	with open(path, "r+b") as f:
		f.seek(HEADER + RECORD + PAYLOAD + 3)
		f.write(b"#")
	d = w.run("journal", "list", "--json")
	check(d.code == 1 and len(d.json()) == 2 and "damaged in 1 place, the first at offset %d" % (HEADER + RECORD + PAYLOAD) in d.err and path in d.err,
		"damage in a journal is shown with its place", d)
	d = w.run("journal", "replay", "--json")
	check(d.code == 1 and d.json()["damaged_segments"] == 1 and d.json()["open"] == 2, "journal replay says it too", d)
	os.remove(path)


def test_orphans(w):
	check(w.run("orphans", "list", "--json").json() == [], "no orphans")
	check(w.run("orphans", "merge", "app1/c0/accounting/xero").code == 1, "nothing to merge")
	lost, kept = line("orph"), line("orph")
	w.run("import", "-", stdin=lines(lost))
	w.sql("insert into refreshd.orphan_token (slot, connection_id, attempt_id, kind, token_version, issued_at, expires_at, access_token,"
		" refresh_token) select slot, connection_id, 77, 'token', token_version, issued_at, expires_at, access_token, refresh_token"
		" from refreshd.credential where connection_id = " + CID % "orph")
	w.run("import", "-", stdin=lines(kept))
	d = w.run("orphans", "list")
	check(d.code == 0 and "older than the present token" in d.out, "orphans list", d)
	d = w.run("orphans", "merge", "app1/orph/accounting/xero")
	check(d.code == 1 and "--force" in d.err, "an older orphan is not merged", d)
	check(w.run("orphans", "merge", "app1/orph/accounting/xero", "--attempt", "5").code == 1, "nor one that is not there")
	d = w.run("orphans", "merge", "app1/orph/accounting/xero", "--force")
	check(d.code == 0 and "merged" in d.out, "unless it is forced", d)
	d = w.run("token", "app1/orph/accounting/xero", keep=False)
	check(d.out.strip() == lost["credentials"]["access_token"], "the orphan's token is the connection's")
	check(w.sql("select previous_refresh_token is not null from refreshd.credential where connection_id = " + CID % "orph") == "t",
		"the token that it replaced is kept")
	check(w.run("orphans", "list", "--json").json() == [] and w.run("orphans", "list", "--all", "--json").json()[0]["resolution"] == "merged",
		"the orphan stays, resolved")
	w.keyring("k9", "k2", "k1")
	check(w.run("rekey", "--json").json()["unopenable_values"] == 0, "orphans and kept tokens are sealed again, too")
	newer = line("orph")
	w.run("import", "-", stdin=lines(newer))
	w.sql("insert into refreshd.orphan_token (slot, connection_id, attempt_id, kind, token_version, access_token, refresh_token)"
		" select slot, connection_id, 78, 'token', token_version, access_token, refresh_token from refreshd.credential where connection_id = "
		+ CID % "orph" + "; update refreshd.credential set token_version = 5, refresh_token = null where connection_id = " + CID % "orph"
		+ "; update refreshd.schedule set token_version = 5 where connection_id = " + CID % "orph")
	d = w.run("orphans", "merge", "app1/orph/accounting/xero", "--json")
	check(d.code == 0 and d.json()["attempt_id"] == 78, "a newer orphan is merged without force", d)
	w.sql("insert into refreshd.orphan_token (slot, connection_id, attempt_id, kind, token_version, raw_reply)"
		" select slot, connection_id, 79, 'raw_reply', token_version, access_token from refreshd.credential where connection_id = " + CID % "orph")
	check("unreadable" in w.run("orphans", "merge", "app1/orph/accounting/xero").err, "an unreadable reply cannot be merged")


def test_secrets(w):
	dump = subprocess.run([os.path.join(w.pg.bindir, "pg_dump"), "-d", w.pg.url()], stdout=subprocess.PIPE, env=clean_env(), check=True)
	places = {"an output": "".join(everything), "a dump": dump.stdout.decode(errors="replace"),
		"the server's log": w.pg.log_text() + " " * 1000}
	# What all generated secrets start with stands for them; keys have no such start and are few.
	needles = ["cAnArY"] + [c for c in canaries if not c.startswith("cAnArY")]
	for name, text in places.items():
		folded = text.lower()
		found = []
		for c in needles:
			raw = c.encode()
			# Base64 at each of the three alignments, without the characters that its neighbours share.
			b64 = [base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")[(0, 2, 3)[shift]:-1] for shift in range(3)]
			if c in text or raw.hex() in folded or any(b in text for b in b64):
				found.append(c)
		check(not found and len(text) > 1000, "no secret in %s (%d searched, %d bytes)" % (name, len(canaries), len(text)), found[:3])


def main():
	if not os.access(CTL, os.X_OK):
		print("Bail out! %s is not there" % CTL)
		return 1
	with PgCluster() as pg:
		w = World(pg)
		try:
			for test in (test_usage, test_migrate, test_apps_and_keys, test_import, test_upsert, test_due, test_race, test_interrupt,
					test_list_show, test_token, test_refresh, test_status, test_webhook, test_webhook_of_api, test_rekey, test_journal, test_orphans,
					test_secrets):
				try:
					test(w)
				except Exception as e:  # the other commands are still worth a look
					check(False, "%s runs to its end" % test.__name__, repr(e))
		finally:
			shutil.rmtree(w.dir, ignore_errors=True)
	print("1..%d" % count)
	return 1 if failed else 0


if __name__ == "__main__":
	sys.exit(main())
