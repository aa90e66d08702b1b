#!/usr/bin/env python3
"""The real refreshd while its database and its journal's disk fail in every way they can: nothing may be lost, nothing sent twice,
nothing sent while results could not be kept, and every message must say what and where. TAP on stdout."""
import os
import pwd
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import world as w
from world import wait_until
from test_daemon import clean_log, due_now, make_ca, make_cert

LIFE_S = 12  # refreshed every 6 s


def loaded(world, realm, n=90, realm_options=None, life=LIFE_S, **more):
	"""A daemon that refreshes n strict connections steadily."""
	world.sim.realm(realm, **dict({"mode": "strict", "at_ttl": life, "auth": "basic", "client_secret": w.CLIENT_SECRET, "delay_ms": 30,
		"jitter_ms": 60}, **(realm_options or {})))
	v = world.vault(realm, {realm: {}}, **more)
	lines = world.sim.mint(realm, n)
	for i, x in enumerate(lines):  # spread over one cycle, so that there is always work
		if i % 2:
			due_now([x])
	v.import_lines(lines)
	v.start()
	wait_until("the first refreshes", lambda: world.sim.stats(realm)["rotated"] >= n // 3, 30)
	return v


def why_not_ready(v):
	try:
		status, text = v.get("/readyz")
	except OSError:
		return ""
	return text if status == 503 else ""


def presentations(world, realm):
	return world.sim.stats(realm)["requests"]


def nothing_is_sent(tap, world, v, realm, seconds=1.5):
	"""Waits until what was in flight has been answered, then watches."""
	wait_until("requests in flight to be answered", lambda: world.sim.stats(realm)["in_flight"] == 0, 10)
	before, began = presentations(world, realm), time.monotonic()
	wait_until("a while", lambda: time.monotonic() - began > seconds)
	tap.equal("no token is presented meanwhile", presentations(world, realm) - before, 0)


def well_again(tap, world, v, realm, timeout_s=20):
	"""Everybody has been refreshed since now, and is well; then the judge."""
	wait_until("ready again", v.ready, timeout_s)
	now = v.sql("SELECT now()")
	wait_until("all to be refreshed again", lambda: v.count("refreshd.credential k JOIN refreshd.connection c USING (slot, connection_id)"
		" WHERE refreshed_at IS NULL OR refreshed_at < '%s' OR c.health <> 'ok'" % now) == 0, LIFE_S + timeout_s)
	tap.equal("it stops with 0", v.stop(), 0)
	w.judge_ledger(tap, world.sim, realm)
	w.judge_tokens(tap, world.sim, v, realm)
	tap.equal("no rotation was lost", v.count("refreshd.connection WHERE reason = 'rotation_lost'"), 0)
	tap.equal("no token is left beside its row", v.count("refreshd.orphan_token WHERE kind <> 'unreadable'"), 0)
	clean_log(tap, v)


def states(v):
	return [x["state"] for x in v.logged("database.state")]


# ---------------------------------------------------------------- away

class Manager:
	"""What the service manager would be told."""

	def __init__(self, v):
		path = os.path.join(v.dir, "notify")
		self.heard = []
		self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
		self.sock.bind(path)
		self.sock.setblocking(False)
		os.environ["NOTIFY_SOCKET"] = path

	def start(self, v, **more):
		try:
			v.start(**more)
		finally:
			del os.environ["NOTIFY_SOCKET"]

	def has(self, word):
		while True:
			try:
				self.heard += self.sock.recv(4096).decode().split("\n")
			except BlockingIOError:
				return any(x.startswith(word) for x in self.heard)


def reload_while_away(tap, world):
	world.sim.realm("early", mode="strict", auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("early", {"early": {}})
	world.pg.stop()
	manager = Manager(v)
	manager.start(v, ready=False)
	wait_until("a word about it", lambda: why_not_ready(v) and states(v), 15)
	v.signal(signal.SIGHUP)
	wait_until("the reload", lambda: v.logged("config.applied"), 15)
	if not manager.has("STATUS="):
		tap.note("built without libsystemd: nobody is told anything")
		return
	tap.check("a reload before the start is over does not say that it is ready", not manager.has("READY="), manager.heard)
	world.pg.start()
	v.wait_ready(15)
	wait_until("the word that it is ready", lambda: manager.has("READY=1"), 10)
	v.signal(signal.SIGHUP)
	wait_until("the word that it reloads", lambda: manager.has("RELOADING=1"), 10)
	tap.equal("it stops with 0", v.stop(), 0)


def crowd_in_front(tap, world):
	"""Far more rows than one round of pages holds are overdue for a provider that is gone: the others do not wait for the next round."""
	world.sim.realm("behind", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("behind", {"behind": {}}, refresh={"poll_interval": "1m"})
	v.import_lines(due_now(world.sim.mint("behind", 5)))
	v.sql("INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)"
		" SELECT 1, gen_random_uuid(), 1, now() - interval '1 h', 'app', 'gone' FROM generate_series(1, 120000)")
	v.start()
	wait_until("the others to be refreshed", lambda: v.count("refreshd.credential WHERE refreshes = 1") == 5, 20)
	tap.equal("they are refreshed in the first round", v.count("refreshd.credential WHERE refreshes = 1"), 5)
	v.sql("DELETE FROM refreshd.schedule WHERE service_id = 'gone'")
	w.judge_tokens(tap, world.sim, v, "behind")
	tap.equal("it stops with 0", v.stop(), 0)


def rare_polls(tap, world):
	"""However rarely it polls: an instance without a heartbeat is dead to the others after 20 s."""
	world.sim.realm("rare", mode="strict", auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("rare", {"rare": {}}, refresh={"poll_interval": "5m"})
	v.start()
	wait_until("a heartbeat", lambda: v.count("refreshd.instance WHERE heartbeat_at > started_at + interval '1 s'") == 1, 12)
	tap.check("it goes on writing that it is alive", v.ready())
	tap.equal("it stops with 0", v.stop(), 0)


def away_at_start(tap, world):
	world.sim.realm("away", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("away", {"away": {}})
	v.import_lines(due_now(world.sim.mint("away", 10)))
	world.pg.stop()
	v.start(ready=False)
	wait_until("a word about it", lambda: why_not_ready(v) and states(v), 15)
	wait_until("the server's place in the reason", lambda: world.pg.sock in why_not_ready(v), 10)
	tap.check("readyz says that the database is away and where it should be", why_not_ready(v).startswith("database connecting: ") and
		str(world.pg.port) in why_not_ready(v), why_not_ready(v))
	tap.equal("healthz is fine: a restart would not help", v.get("/healthz"), (200, "ok\n"))
	tap.check("the log says so once", 1 <= states(v).count("connecting") <= 2, states(v))
	tap.equal("nothing is sent", presentations(world, "away"), 0)
	world.pg.start()
	began = time.monotonic()
	v.wait_ready(15)
	tap.check("it is ready within 10 s of the database (%.1f s)" % (time.monotonic() - began), time.monotonic() - began < 10, "")
	wait_until("all to be refreshed", lambda: v.count("refreshd.credential WHERE refreshes = 1") == 10, 15)
	w.judge_ledger(tap, world.sim, "away")
	w.judge_tokens(tap, world.sim, v, "away")
	tap.equal("it stops with 0", v.stop(), 0)


def restarted_under_load(tap, world):
	v = loaded(world, "restart")
	for how in ("kill9", "fast", "immediate", "kill9"):
		before = presentations(world, "restart")
		if how == "kill9":
			world.pg.kill9()
		else:
			world.pg.stop(how)
		wait_until("the daemon to notice", lambda: why_not_ready(v), 10)
		world.pg.start()
		began = time.monotonic()
		wait_until("ready again after %s" % how, v.ready, 20)
		tap.check("%s: ready within 10 s of the database" % how, time.monotonic() - began < 10, time.monotonic() - began)
		wait_until("it to work again", lambda: presentations(world, "restart") > before, 10)
	tap.equal("it stayed one process with one epoch", len(v.logged("daemon.start")), 1)
	well_again(tap, world, v, "restart")


def down_with_answers_out(tap, world):
	"""The database goes while sixty answers are on their way: they are kept, and committed when it is back."""
	v = loaded(world, "slowdb", n=60, realm_options={"delay_ms": 1500, "jitter_ms": 300})
	wait_until("requests in flight", lambda: world.sim.stats("slowdb")["in_flight"] >= 15, 20)
	world.pg.kill9()
	wait_until("the answers", lambda: world.sim.stats("slowdb")["in_flight"] == 0, 10)
	wait_until("the journal to hold them", lambda: v.metrics().get("journal_records") >= 10, 10)
	tap.note("%d answers wait in the journal" % v.metrics().get("journal_records"))
	nothing_is_sent(tap, world, v, "slowdb", 1)
	world.pg.start()
	wait_until("the journal to be empty", lambda: v.metrics().get("journal_records") == 0, 20)
	well_again(tap, world, v, "slowdb")


def died_with_answers_out(tap, world):
	"""The same, and the daemon is killed as well: the next one replays its journal before it sends anything."""
	v = loaded(world, "bothdie", n=60, realm_options={"delay_ms": 1500, "jitter_ms": 300})
	wait_until("requests in flight", lambda: world.sim.stats("bothdie")["in_flight"] >= 15, 20)
	world.pg.kill9()
	wait_until("the answers", lambda: world.sim.stats("bothdie")["in_flight"] == 0, 10)
	wait_until("the journal to hold them", lambda: v.metrics().get("journal_records") >= 10, 10)
	held = int(v.metrics().get("journal_records"))
	v.kill()
	world.pg.start()
	v.start()
	replayed = sum(x["count"] for x in v.logged("daemon.replayed"))
	tap.check("all %d answers of the journal are replayed (%d records)" % (held, replayed), replayed >= held, replayed)
	well_again(tap, world, v, "bothdie")


def backends_terminated(tap, world):
	v = loaded(world, "term")
	killed, end = 0, time.monotonic() + 5
	while time.monotonic() < end:
		killed += int(world.pg.psql("SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
			" WHERE datname = '%s' AND application_name LIKE 'refreshd%%'" % v.dbname))
		wait_until("a moment", lambda t=time.monotonic(): time.monotonic() - t > 0.15)
	tap.check("many backends were ended (%d)" % killed, killed > 20, killed)
	well_again(tap, world, v, "term")


# ---------------------------------------------------------------- there, and not usable

def read_only(tap, world):
	v = loaded(world, "ro")
	world.pg.psql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()")
	try:
		wait_until("the daemon to notice", lambda: "read-only" in why_not_ready(v), 15)
		tap.check("readyz says that the database is read-only", "database read_only" in why_not_ready(v), why_not_ready(v))
		nothing_is_sent(tap, world, v, "ro")
		tap.check("the log says so", "read_only" in states(v), states(v))
	finally:
		world.pg.psql("BEGIN; SET TRANSACTION READ WRITE; COMMIT; ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()")
	well_again(tap, world, v, "ro")


def wrong_schema(tap, world):
	world.sim.realm("schema", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("schema", {"schema": {}}, migrate=False)
	v.start(ready=False)
	wait_until("a word about it", lambda: "refreshctl migrate" in why_not_ready(v), 15)
	tap.check("without a schema it says what to run", "version 0" in why_not_ready(v) and "wrong_schema" in states(v), why_not_ready(v))
	v.migrate()
	v.wait_ready(15)
	tap.check("after the migration it is ready by itself", True)
	v.import_lines(due_now(world.sim.mint("schema", 3)))
	wait_until("a refresh", lambda: v.count("refreshd.credential WHERE refreshes = 1") == 3, 15)
	v.sql("INSERT INTO refreshd.schema_version (version) VALUES (99)")
	v.stop()
	v.start(ready=False)
	wait_until("a word about it", lambda: "version 99" in why_not_ready(v), 15)
	tap.check("a newer schema asks for a newer program", "use a newer refreshd" in why_not_ready(v), why_not_ready(v))
	done = v.ctl("migrate", good=False)
	tap.check("refreshctl says the same and changes nothing", done.returncode == 1 and "99" in done.stderr, done.stderr)
	v.sql("DELETE FROM refreshd.schema_version WHERE version = 99")
	v.wait_ready(15)
	w.judge_tokens(tap, world.sim, v, "schema")
	tap.equal("it stops with 0", v.stop(), 0)


def lost_rights(tap, world):
	world.pg.psql("CREATE ROLE vaultuser LOGIN")
	world.sim.realm("rights", mode="strict", at_ttl=LIFE_S, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=1200, jitter_ms=300)
	v = world.vault("rights", {"rights": {}})
	v.sql("GRANT USAGE ON SCHEMA refreshd TO vaultuser; GRANT ALL ON ALL TABLES IN SCHEMA refreshd TO vaultuser;"
		" GRANT ALL ON ALL SEQUENCES IN SCHEMA refreshd TO vaultuser")
	v.import_lines(due_now(world.sim.mint("rights", 40)))
	v.conf["database"]["url"] = world.pg.url(v.dbname, user="vaultuser")
	v.write_conf()
	v.start()
	wait_until("requests in flight", lambda: world.sim.stats("rights")["in_flight"] >= 20, 20)
	v.sql("REVOKE ALL ON ALL TABLES IN SCHEMA refreshd FROM vaultuser; REVOKE USAGE ON SCHEMA refreshd FROM vaultuser")
	wait_until("the daemon to notice", lambda: "database user" in why_not_ready(v), 20)
	tap.check("readyz says that rights are missing, and on what", "rights" in why_not_ready(v) and "refreshd" in why_not_ready(v), why_not_ready(v))
	nothing_is_sent(tap, world, v, "rights")
	v.sql("GRANT USAGE ON SCHEMA refreshd TO vaultuser; GRANT ALL ON ALL TABLES IN SCHEMA refreshd TO vaultuser")
	well_again(tap, world, v, "rights")


FULL = """CREATE FUNCTION watch.full_disk() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN RAISE EXCEPTION USING ERRCODE = ''disk_full'', MESSAGE = ''could not extend file: No space left on device''; END';
	CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON refreshd.%s FOR EACH ROW EXECUTE FUNCTION watch.full_disk();"""


def disk_full(tap, world):
	"""The server's own error for a full disk, first for the results of refreshes, then for everything."""
	v = loaded(world, "full")
	v.sql(FULL % "credential")
	wait_until("the daemon to notice", lambda: "full" in states(v), 15)
	wait_until("answers to wait", lambda: v.metrics().get("journal_records") > 0, 15)
	v.sql("CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON refreshd.instance FOR EACH ROW EXECUTE FUNCTION watch.full_disk()")
	wait_until("not ready", lambda: "no space" in why_not_ready(v), 20)
	tap.check("readyz says that the server is full", "database full" in why_not_ready(v), why_not_ready(v))
	nothing_is_sent(tap, world, v, "full")
	v.sql("DROP TRIGGER full_disk ON refreshd.credential; DROP TRIGGER full_disk ON refreshd.instance")
	well_again(tap, world, v, "full")


def locked(tap, world):
	"""Somebody locks the table of tokens for longer than a statement may take."""
	v = loaded(world, "lock", database={"statement_timeout": "1s"})
	locker = subprocess.Popen([os.path.join(world.pg.bindir, "psql"), "-X", "-q", "-d", world.pg.url(v.dbname), "-c",
		"BEGIN; LOCK TABLE refreshd.credential IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(4); COMMIT"], env=w.clean_env(), stdout=subprocess.DEVNULL)
	wait_until("statements to be given up", lambda: v.metrics().total("db_errors_total") > 0, 15)
	locker.wait(20)
	tap.check("a statement that waits is given up by class", v.metrics().get("db_errors_total", **{"class": "retry"}) > 0,
		{k: x for k, x in v.metrics().samples.items() if "db_errors" in k[0]})
	well_again(tap, world, v, "lock")


def pgbouncer(tap, world):
	world.sim.realm("pool", mode="strict", at_ttl=LIFE_S, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=30)
	v = world.vault("pool", {"pool": {}})
	world.pg.start_bouncer(pool_size=2)
	passfile = v.write("passfile", "*:*:*:*:%s\n" % world.pg.PASSWORD)
	v.conf["database"] = {"url": "host=127.0.0.1 port=%d user=postgres dbname=%s passfile=%s" % (world.pg.bouncer_port, v.dbname, passfile),
		"pooler": "transaction"}
	v.write_conf()
	v.import_lines(due_now(world.sim.mint("pool", 60)))
	v.start()
	wait_until("two rounds of refreshes through the pooler", lambda: v.count("refreshd.credential WHERE refreshes < 2") == 0, 30)
	world.pg.stop_bouncer()
	wait_until("the daemon to notice", lambda: str(world.pg.bouncer_port) in why_not_ready(v), 15)
	tap.check("readyz names the pooler's place", "127.0.0.1" in why_not_ready(v), why_not_ready(v))
	world.pg.start_bouncer(pool_size=2, port=world.pg.bouncer_port)
	well_again(tap, world, v, "pool")
	world.pg.stop_bouncer()


# ---------------------------------------------------------------- over TLS, to one of several hosts

def tls_to_database(tap, world):
	"""sslmode=verify-full by a private authority, over several hosts; another authority, another name or no TLS at all is refused in words."""
	folder = os.path.join(world.dir, "pgtls-files")
	os.mkdir(folder, 0o755)
	ca, other = make_ca(folder, "database-ca"), make_ca(folder, "other-ca")
	leaf = make_cert(folder, "database", ca, "DNS:db.test")
	if os.getuid() == 0:
		user = pwd.getpwnam("postgres")
		os.chown(leaf[0], user.pw_uid, user.pw_gid)
	os.chmod(leaf[0], 0o600)
	plain = world.pg
	world.pg = w.PgCluster(settings={"ssl": "on", "ssl_cert_file": leaf[1], "ssl_key_file": leaf[0]}, tcp=True).start()
	try:
		with open(os.path.join(world.dir, "resolv.pg"), "w") as f:
			f.write("nameserver 127.0.0.1:%d\n" % world.sim.dns_port)
		world.sim.realm("pgtls", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
		v = world.vault("pgtls", {"pgtls": {}}, dns={"resolv_conf": f.name})
		v.import_lines(due_now(world.sim.mint("pgtls", 5)))
		passfile = v.write("passfile", "*:*:*:*:%s\n" % world.pg.PASSWORD)
		dead = w.free_port()

		def url(host, root, mode="verify-full"):
			v.conf["database"]["url"] = "host=%s,%s port=%d,%d user=postgres dbname=%s passfile=%s sslmode=%s sslrootcert=%s connect_timeout=5" % (
				host, host, dead, world.pg.port, v.dbname, passfile, mode, root)
			v.write_conf()

		url("db.test", ca[1])
		v.start()
		wait_until("refreshes over TLS, past a host that is not there", lambda: v.count("refreshd.credential WHERE refreshes = 1") == 5, 20)
		tap.equal("every session is encrypted", v.sql("SELECT count(*) FILTER (WHERE NOT ssl), count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
			" WHERE application_name LIKE 'refreshd%'"), "0|t")
		tap.equal("it stops with 0", v.stop(), 0)
		for what, host, root, words in (("another authority", "db.test", other[1], "certificate verify failed"),
				("another name", "other.test", ca[1], "does not match host name"), ("no file of authorities", "db.test", ca[1] + "x", "does not exist")):
			url(host, root)
			v.start(ready=False)
			wait_until("the refusal", lambda: words in why_not_ready(v), 20)
			tap.check("%s is refused, and readyz says why" % what, v.count("refreshd.instance WHERE NOT gone") == 0, why_not_ready(v))
			tap.check("and the log does", any(words in x.get("error", "") for x in v.logged("database.state")), v.log_text()[-500:])
			v.kill()
		url("db.test", ca[1])
		world.pg.settings["ssl"] = "off"
		world.pg.restart()
		v.start(ready=False)
		wait_until("the refusal", lambda: "does not support SSL" in why_not_ready(v), 20)
		tap.check("a server without TLS is refused", True)
		w.judge_tokens(tap, world.sim, v, "pgtls")
	finally:
		world.end_vaults()
		world.pg.close()
		world.pg = plain


# ---------------------------------------------------------------- the journal's disk

def as_somebody(v):
	"""Root may write everywhere, so the daemon runs as the server's user then. The arguments for setpriv."""
	if os.getuid() != 0:
		return []
	user = pwd.getpwnam("postgres")
	for folder, _, names in os.walk(v.dir):
		os.chown(folder, user.pw_uid, user.pw_gid)
		for n in names:
			os.chown(os.path.join(folder, n), user.pw_uid, user.pw_gid)
	return ["--reuid=postgres", "--regid=postgres", "--init-groups"]


def journal_refused_at_start(tap, world):
	world.sim.realm("jstart", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("jstart", {"jstart": {}})
	v.import_lines(due_now(world.sim.mint("jstart", 3)))
	os.mkdir(v.state_dir, 0o755)
	v.wrap = as_somebody(v)
	os.chmod(v.state_dir, 0o500)
	v.start(ready=False)
	tap.equal("it does not start without a journal", v.wait(20), 1)
	tap.check("and says which directory and why", v.state_dir in v.log_text() and "Permission denied" in v.log_text(), v.log_text())
	os.chmod(v.state_dir, 0o700)
	v.start()
	second = w.Vault.__new__(w.Vault)
	second.__dict__.update(v.__dict__, log_file=v.log_file + "2", proc=None)
	second.conf = dict(v.conf, metrics={"listen": "127.0.0.1:%d" % w.free_port()}, instance="second")
	second.conf_file = v.write("second.yaml", w.json.dumps(second.conf), 0o644)
	second.start(ready=False)
	tap.equal("a second daemon on the same journal does not start", second.wait(20), 1)
	tap.check("and says so", v.state_dir in second.log_text() and ("use" in second.log_text()), second.log_text())
	wait_until("refreshes", lambda: v.count("refreshd.credential WHERE refreshes = 1") == 3, 15)
	w.judge_ledger(tap, world.sim, "jstart")
	tap.equal("the first goes on and stops with 0", v.stop(), 0)


def journal_gate(tap, world, v, realm, close, open_again, words):
	"""Runs until the journal cannot be written, watches the gate, opens it again."""
	close()
	wait_until("the gate to close", lambda: "journal" in why_not_ready(v), 60)
	tap.equal("the gauge says so", v.metrics().get("journal_writable"), 0)
	refused = v.logged("journal.not_writable")
	tap.check("the log names the directory and the reason", refused and v.state_dir in refused[-1]["error"] and
		any(x in refused[-1]["error"] for x in words), refused)
	nothing_is_sent(tap, world, v, realm)
	tap.equal("every reply to what was out had its place", v.metrics().get("journal_skipped_total"), 0)
	open_again()
	began = time.monotonic()
	wait_until("it to work again by itself", lambda: v.metrics().get("journal_writable") == 1 and v.ready(), 30)
	tap.note("writable again after %.1f s" % (time.monotonic() - began))
	tap.check("the log says that it works again", len(v.logged("journal.writable")) >= 1, "")


def journal_denied(tap, world):
	"""The directory can no longer be written: the present segment and its spare are used up first, then the gate closes."""
	world.sim.realm("jdeny", mode="strict", at_ttl=4, at_len=8000, rt_len=200, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("jdeny", {"jdeny": {"max_in_flight": 64}})
	v.import_lines(world.sim.mint("jdeny", 300))
	os.mkdir(v.state_dir, 0o700)
	v.wrap = as_somebody(v)
	v.start()
	folder = os.path.join(v.state_dir, "journal")
	journal_gate(tap, world, v, "jdeny", lambda: os.chmod(folder, 0o500), lambda: os.chmod(folder, 0o700), ["Permission denied"])
	well_again(tap, world, v, "jdeny")


def journal_disk_full(tap, world):
	"""A file system of its own for the journal, with room for one segment and no second."""
	world.sim.realm("jfull", mode="strict", at_ttl=4, at_len=8000, rt_len=200, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("jfull", {"jfull": {"max_in_flight": 64}})
	os.mkdir(v.state_dir, 0o700)

	def mount(*options):
		return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", v.state_dir], stdout=subprocess.PIPE,
			stderr=subprocess.STDOUT, text=True)

	done = mount("size=6m")
	if done.returncode != 0:
		tap.note("no file system can be mounted here (%s): the journal's full disk is tested in test_journal only" % done.stdout.strip())
		return
	try:
		v.import_lines(world.sim.mint("jfull", 300))
		v.start()
		journal_gate(tap, world, v, "jfull", lambda: None, lambda: mount("remount", "size=40m"), ["No space left"])
		well_again(tap, world, v, "jfull")
	finally:
		if v.alive():
			v.kill()
		subprocess.run(["umount", v.state_dir], check=True)


SCENARIOS = [away_at_start, reload_while_away, crowd_in_front, rare_polls, restarted_under_load, down_with_answers_out, died_with_answers_out, backends_terminated, read_only, wrong_schema,
	lost_rights, disk_full, locked, pgbouncer, tls_to_database, journal_refused_at_start, journal_denied, journal_disk_full]


def main():
	tap = w.Tap()
	with w.World("database", tcp=True, dns=True) as world:
		tap.run(SCENARIOS, world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
