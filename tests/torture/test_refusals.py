#!/usr/bin/env python3
"""The real refreshd and a database that is there and refuses: no connection left, rows that others lock, deadlocks, serialization
failures, statements that take too long, a full disk, one poisoned row, and a pooler that loses its server. Each class of
SQLSTATE has its own answer; what is common is that nothing is lost, nothing is sent twice, and nobody else waits. TAP on stdout.
"""
import os
import pwd
import random
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "integration")]
import world as w
from test_database import loaded, nothing_is_sent, presentations, states, well_again, why_not_ready
from world import wait_until

LIFE = 6  # refreshed every three seconds
LONG = os.environ.get("TORTURE") == "long"
SEED = int(os.environ.get("REFRESHD_SEED", str(int.from_bytes(os.urandom(4), "little"))))


class Session:
	"""Another session of the server, with a transaction that stays open."""

	def __init__(self, pg, dbname, url=None):
		self.proc = subprocess.Popen([os.path.join(pg.bindir, "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d",
			url or pg.url(dbname)], env=w.clean_env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

	def run(self, sql):
		"""Waits until it is done; what it printed."""
		self.proc.stdin.write(sql + ";\n\\echo done\n")
		self.proc.stdin.flush()
		lines = []
		while True:
			line = self.proc.stdout.readline()
			if line in ("", "done\n"):
				return "".join(lines).rstrip("\n")
			lines.append(line)

	def close(self):
		self.proc.kill()
		self.proc.wait()
		self.proc.stdin.close()
		self.proc.stdout.close()


def refreshed_since(v, when, but=""):
	"""How many have not been refreshed since then."""
	return v.count("refreshd.credential k JOIN refreshd.connection c USING (slot, connection_id) WHERE (refreshed_at IS NULL OR refreshed_at < '%s')"
		" AND c.connection_id::text <> '%s'" % (when, but))


def others_go_on(tap, v, but, timeout_s=LIFE + 20):
	when = v.sql("SELECT now()")
	wait_until("all the others to be refreshed", lambda: refreshed_since(v, when, but) == 0, timeout_s)
	tap.check("all the others are refreshed meanwhile", True)


def errors(v, kind):
	return v.metrics().get("db_errors_total", **{"class": kind}) or 0


# ---------------------------------------------------------------- no place for another session

def too_many_connections(tap, world):
	"""53300: a server without a free place is a server that is not there."""
	world.pg.psql("CREATE ROLE crowded LOGIN; GRANT pg_read_all_data, pg_write_all_data TO crowded")
	v = loaded(world, "rcrowd", life=LIFE, n=60)
	v.stop()
	v.sql("GRANT USAGE ON SCHEMA refreshd, watch TO crowded; GRANT ALL ON ALL TABLES IN SCHEMA refreshd TO crowded;"
		" GRANT ALL ON ALL SEQUENCES IN SCHEMA refreshd TO crowded")
	v.conf["database"]["url"] = world.pg.url(v.dbname, user="crowded")
	v.write_conf()
	v.start()
	world.pg.psql("ALTER ROLE crowded CONNECTION LIMIT 0")
	world.pg.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'crowded'")
	wait_until("the reason", lambda: "too many connections" in why_not_ready(v), 20)
	nothing_is_sent(tap, world, v, "rcrowd")
	world.pg.psql("ALTER ROLE crowded CONNECTION LIMIT -1")
	began = time.monotonic()
	wait_until("ready again", v.ready, 20)
	tap.check("it is back within 10 s of a free place (%.1f s)" % (time.monotonic() - began), time.monotonic() - began < 10)
	well_again(tap, world, v, "rcrowd")


# ---------------------------------------------------------------- locks and aborted transactions

def rows_locked(tap, world):
	"""55P03: somebody sits on one row of each table for long; the statements that need it are given up, the others go on."""
	v = loaded(world, "rlocked", life=LIFE, database={"statement_timeout": "1s"})
	ids = v.sql("SELECT connection_id FROM refreshd.credential ORDER BY connection_id LIMIT 3").split()
	for table, row in zip(("schedule", "credential", "connection"), ids):
		s = Session(world.pg, v.dbname)
		try:
			s.run("BEGIN; SELECT 1 FROM refreshd.%s WHERE connection_id = '%s' FOR UPDATE" % (table, row))
			if table == "connection":  # written on a change of state only
				s.run("SELECT 1 FROM refreshd.credential WHERE connection_id = '%s' FOR UPDATE" % row)
			others_go_on(tap, v, row)
			if table == "credential":  # a locked row of the schedule is passed by, one of these is waited for
				wait_until("statements to be given up by the class of locks", lambda: errors(v, "retry") > 0, LIFE + 20)
		finally:
			s.close()
	well_again(tap, world, v, "rlocked")


def deadlocks(tap, world):
	"""40P01 for real: sessions that take the rows in the other order, and who of the two dies is the server's choice."""
	v = loaded(world, "rdeadlock", life=LIFE)
	rng, ids = random.Random(SEED), v.sql("SELECT connection_id FROM refreshd.credential").split()
	crowd, end = [], time.monotonic() + (30 if LONG else 6)
	try:
		before = deadlocks_seen(world, v)
		while time.monotonic() < end or deadlocks_seen(world, v) == before:
			for row in rng.sample(ids, 4):
				crowd.append(subprocess.Popen([os.path.join(world.pg.bindir, "psql"), "-X", "-q", "-d", world.pg.url(v.dbname), "-c",
					"BEGIN; SELECT 1 FROM refreshd.credential WHERE connection_id = '%s' FOR UPDATE; SELECT pg_sleep(0.4);"
					" UPDATE refreshd.schedule SET due_at = due_at WHERE connection_id = '%s'; COMMIT" % (row, row)],
					env=w.clean_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
			for p in crowd:
				p.wait(20)
			if time.monotonic() > end + 60:
				break
	finally:
		for p in crowd:
			if p.poll() is None:
				p.kill()
				p.wait()
	tap.check("the server found deadlocks (%d)" % (deadlocks_seen(world, v) - before), deadlocks_seen(world, v) > before)
	well_again(tap, world, v, "rdeadlock")


def deadlocks_seen(world, v):
	return int(world.pg.psql("SELECT deadlocks FROM pg_stat_database WHERE datname = '%s'" % v.dbname))


def strict_isolation(tap, world):
	"""40001 for real: the operator's default is serializable, and others write the same rows."""
	v = loaded(world, "rserial", life=LIFE)
	v.stop()
	v.sql("ALTER DATABASE %s SET default_transaction_isolation = 'serializable'" % v.dbname)
	v.start()
	writer = subprocess.Popen([os.path.join(world.pg.bindir, "pgbench"), "-n", "-c", "2", "-T", str(30 if LONG else 5), "-f", "-", "--max-tries=1000",
		world.pg.url(v.dbname)], env=w.clean_env(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
	try:
		writer.stdin.write("UPDATE refreshd.schedule SET due_at = least(due_at, now()) WHERE connection_id IN (SELECT connection_id FROM"
			" refreshd.schedule WHERE random() < 0.1);\n")
		writer.stdin.close()
		wait_until("transactions to be refused", lambda: errors(v, "retry") > 0, 60)
	finally:
		writer.kill()
		writer.wait()
	tap.note("%d statements were refused and sent again" % errors(v, "retry"))
	well_again(tap, world, v, "rserial")


def too_slow(tap, world):
	"""57014: one row's write takes longer than a statement may; the others do not wait for it."""
	v = loaded(world, "rslow", life=LIFE, database={"statement_timeout": "1s"})
	row = v.sql("SELECT connection_id FROM refreshd.credential LIMIT 1")
	v.sql("CREATE FUNCTION watch.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(3); RETURN NEW; END';"
		"CREATE TRIGGER slow BEFORE UPDATE ON refreshd.credential FOR EACH ROW WHEN (OLD.connection_id = '%s') EXECUTE FUNCTION watch.slow()" % row)
	wait_until("statements to be canceled", lambda: errors(v, "retry") > 0, 30)
	others_go_on(tap, v, row)
	v.sql("DROP TRIGGER slow ON refreshd.credential")
	well_again(tap, world, v, "rslow")


# ---------------------------------------------------------------- a row that cannot be written

POISON = """CREATE FUNCTION watch.poison() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN RAISE EXCEPTION USING ERRCODE = ''%s'', MESSAGE = ''no''; END';
	CREATE TRIGGER poison BEFORE UPDATE ON refreshd.%s FOR EACH ROW WHEN (OLD.connection_id = '%s' AND %s) EXECUTE FUNCTION watch.poison();"""


def poisoned(tap, world):
	"""23xxx, 42xxx, 22xxx for the result of one row: it leaves the schedule alone, once, with its answer kept; nothing loops."""
	for code in ("23514", "42703", "22P02") if LONG else ("23514", "42703"):
		realm = "rp" + code.lower()
		v = loaded(world, realm, life=LIFE)
		row = v.sql("SELECT connection_id FROM refreshd.credential LIMIT 1")
		v.sql(POISON % (code, "credential", row, "true"))
		wait_until("the row to be set aside", lambda: v.logged("refresh.quarantined"), LIFE + 10)
		tap.equal("%s: the row left the schedule" % code, v.count("refreshd.schedule WHERE due_at = 'infinity' AND connection_id = '%s'" % row), 1)
		family = int(v.sql("SELECT substr(consumer_id, 2) FROM refreshd.connection WHERE connection_id = '%s'" % row))
		used = len([x for x in world.sim.ledger(realm) if x["family"] == family])
		others_go_on(tap, v, row)
		tap.equal("%s: only that row" % code, [x["connection"] for x in v.logged("refresh.quarantined")], [row])
		tap.equal("%s: its token is not presented again" % code, len([x for x in world.sim.ledger(realm) if x["family"] == family]), used)
		tap.check("%s: the statements that failed are few (%d)" % (code, errors(v, "bug")), errors(v, "bug") <= 20, errors(v, "bug"))
		v.sql("DROP TRIGGER poison ON refreshd.credential")
		tap.equal("it stops with 0", v.stop(), 0)
		v.start()
		wait_until("the kept answer to be written after a restart", lambda: v.count("refreshd.schedule WHERE due_at < 'infinity' AND connection_id = '%s'"
			% row) == 1, 20)
		well_again(tap, world, v, realm)


BLOCK = """CREATE FUNCTION watch.block() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN RAISE EXCEPTION USING ERRCODE = ''%s'', MESSAGE = ''no''; END';
	CREATE TRIGGER block BEFORE UPDATE ON refreshd.schedule FOR EACH ROW WHEN (OLD.connection_id = '%s' AND OLD.lease_owner IS NOT NULL AND %s)
	EXECUTE FUNCTION watch.block();"""


def held(tap, world):
	"""A row that takes neither its result nor its quarantine: nobody presents its token again, whatever becomes of its lease."""
	some, all_of_them = "(NEW.lease_owner IS NULL OR NEW.due_at = 'infinity')", "true"
	for name, code, when in (("rheld", "42703", some), ("rstone", "42703", all_of_them)) + (
			(("rheld2", "23514", some), ("rstone2", "23514", all_of_them)) if LONG else ()):
		v = loaded(world, name, life=LIFE)
		row = v.sql("SELECT connection_id FROM refreshd.credential LIMIT 1")
		family = int(v.sql("SELECT substr(consumer_id, 2) FROM refreshd.connection WHERE connection_id = '%s'" % row))
		v.sql(BLOCK % (code, row, when))
		wait_until("the row to be held", lambda: v.logged("refresh.held"), LIFE + 10)
		used = presented(world, name, family)
		if when == some:
			renewed_and_left_alone(tap, v, row)
		else:  # not even its lease can be renewed: it ran out
			run_out(v, row)
		others_go_on(tap, v, row)
		tap.equal("%s: its token is not presented again" % name, presented(world, name, family), used)
		tap.equal("%s: it stops with 0" % name, v.stop(), 0)
		v.start()
		wait_until("it to be held again after a restart", lambda: len(v.logged("refresh.held")) == 2, 20)
		others_go_on(tap, v, row)
		tap.equal("%s: nor after a restart" % name, presented(world, name, family), used)
		tap.equal("%s: what cannot be freed is told, and kept nobody from starting" % name, len(v.logged("daemon.recover_refused")), int(when == all_of_them))
		v.sql("DROP TRIGGER block ON refreshd.schedule")
		wait_until("its answer to be written without a restart", lambda: v.count("refreshd.schedule WHERE connection_id = '%s'"
			" AND lease_owner IS NULL" % row) == 1, 40)
		well_again(tap, world, v, name, 30)


def presented(world, realm, family):
	return len([x for x in world.sim.ledger(realm) if x["family"] == family])


def run_out(v, row):
	v.sql("ALTER TABLE refreshd.schedule DISABLE TRIGGER block; UPDATE refreshd.schedule SET lease_until = now() - interval '1 s' WHERE connection_id = '%s';"
		" ALTER TABLE refreshd.schedule ENABLE TRIGGER block" % row)


def renewed_and_left_alone(tap, v, row):
	run_out(v, row)
	wait_until("its lease to be renewed", lambda: v.count("refreshd.schedule WHERE connection_id = '%s' AND lease_until > now()" % row) == 1, 45)
	tap.check("its lease is renewed", True)


def unreadable(tap, world):
	"""One row cannot even be claimed: XX001, a damaged page; 42501, a trigger that lacks a right. The rest of its batch is, and the row is
	not asked for all the time."""
	for realm, code in (("rdamaged", "data_corrupted"), ("rdenied", "42501")):
		unclaimable(tap, world, realm, code)


def unclaimable(tap, world, realm, code):
	v = loaded(world, realm, life=LIFE)
	row = v.sql("SELECT connection_id FROM refreshd.credential LIMIT 1")
	v.sql(POISON % (code, "schedule", row, "NEW.lease_owner IS NOT NULL"))
	wait_until("a claim to fail", lambda: errors(v, "bug") > 0, LIFE + 10)
	others_go_on(tap, v, row)
	before, began = errors(v, "bug"), time.monotonic()
	others_go_on(tap, v, row)
	rate = (errors(v, "bug") - before) / (time.monotonic() - began)
	tap.check("the row is not asked for all the time (%.1f failures a second)" % rate, rate < 1, rate)
	v.sql("DROP TRIGGER poison ON refreshd.schedule")
	tap.equal("it stops with 0", v.stop(), 0)  # or wait five minutes
	v.start()
	well_again(tap, world, v, realm)


# ---------------------------------------------------------------- the server's disk

def server_disk_full(tap, world):
	"""53100 for real: the tables live on a small file system, and somebody else fills it."""
	if os.getuid() != 0:
		tap.note("skipped: only root can mount a small file system")
		return
	folder = tempfile.mkdtemp(prefix="rd-space-")
	done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700,uid=%d" % pwd.getpwnam("postgres").pw_uid, "none", folder],
		stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
	os.chmod(os.path.dirname(folder), os.stat(os.path.dirname(folder)).st_mode)
	if done.returncode != 0:
		tap.check("a file system can be mounted", False, done.stdout)
		return
	try:
		world.pg.psql("CREATE TABLESPACE small LOCATION '%s'" % folder)
		v = loaded(world, "rfull", life=LIFE)
		v.sql("ALTER TABLE refreshd.credential SET TABLESPACE small; ALTER TABLE refreshd.instance SET TABLESPACE small;"
			" ALTER TABLE refreshd.credential SET (autovacuum_enabled = off, fillfactor = 100); ALTER TABLE refreshd.instance SET (autovacuum_enabled = off)")
		v.sql("VACUUM FULL refreshd.credential")  # no room for an update on any page
		v.sql("CREATE TABLE watch.filler (t text) TABLESPACE small; ALTER TABLE watch.filler ALTER t SET STORAGE PLAIN")
		try:
			while True:
				v.sql("INSERT INTO watch.filler SELECT repeat('x', 7900) FROM generate_series(1, 50)")
		except RuntimeError as e:
			tap.check("the disk is full", "No space left" in str(e), e)
		fill_up(v)
		wait_until("the daemon to notice", lambda: "full" in states(v), 60)
		nothing_is_sent_while_full(tap, world, v, "rfull")
		v.sql("DROP TABLE watch.filler")
		well_again(tap, world, v, "rfull", 30)
		v.sql("ALTER TABLE refreshd.credential SET TABLESPACE pg_default; ALTER TABLE refreshd.instance SET TABLESPACE pg_default")
		world.pg.psql("DROP TABLESPACE small")
	finally:
		world.end_vaults()
		world.pg.stop("immediate")
		subprocess.run(["umount", "-l", folder], check=True)
		os.rmdir(folder)
		world.pg.start()


def fill_up(v):
	"""The last pages too."""
	for _ in range(200):
		try:
			v.sql("INSERT INTO watch.filler SELECT repeat('x', 7900)")
		except RuntimeError:
			return


def nothing_is_sent_while_full(tap, world, v, realm):
	"""Space inside the tables may still be found for some rows; when a result has none, it waits in the journal."""
	wait_until("answers to wait", lambda: v.metrics().get("journal_records") > 0 or not v.ready(), 60)
	tap.check("what is answered is kept (%d in the journal)" % v.metrics().get("journal_records"), True)


# ---------------------------------------------------------------- a pooler between

def bouncer(tap, world):
	"""PgBouncer in transaction mode loses its server, makes clients wait too long, and is restarted, under load."""
	world.sim.realm("rpool", mode="strict", at_ttl=LIFE, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=30)
	hook = {"name": "pool", "application": "*", "url": world.sim.sink_url("rpool"), "allow_private": True}
	v = world.vault("rpool", {"rpool": {}})
	settings = {"query_wait_timeout": 2, "server_login_retry": 1}
	world.pg.start_bouncer(pool_size=2, **settings)
	passfile = v.write("passfile", "*:*:*:*:%s\n" % world.pg.PASSWORD)
	v.conf["database"] = {"url": "host=127.0.0.1 port=%d user=postgres dbname=%s passfile=%s" % (world.pg.bouncer_port, v.dbname, passfile),
		"pooler": "transaction"}
	v.conf["webhooks"] = [dict(hook, secret_file=v.write("hook", w.WEBHOOK_SECRET + "\n"))]
	v.write_conf()
	v.import_lines(world.sim.mint("rpool", 90))
	v.start()
	wait_until("the first refreshes", lambda: world.sim.stats("rpool")["rotated"] >= 30, 30)
	for _ in range(20 if LONG else 4):
		server_side_killed(world, v)
	tap.check("sessions behind the pooler were killed", True)
	for how in ("immediate", "kill9"):
		world.pg.kill9() if how == "kill9" else world.pg.stop(how)
		world.pg.start()
		began, before = time.monotonic(), presentations(world, "rpool")
		wait_until("refreshes after the server came back", lambda: presentations(world, "rpool") > before, 30)
		tap.check("%s behind the pooler: refreshing again within 10 s (%.1f s)" % (how, time.monotonic() - began), time.monotonic() - began < 10)
	waited_too_long(tap, world, v)
	world.pg.stop_bouncer()
	world.pg.start_bouncer(pool_size=2, port=world.pg.bouncer_port, **settings)
	began, before = time.monotonic(), presentations(world, "rpool")
	wait_until("refreshes after the pooler came back", lambda: presentations(world, "rpool") > before, 30)
	tap.check("the pooler's restart: refreshing again within 10 s (%.1f s)" % (time.monotonic() - began), time.monotonic() - began < 10)
	tap.equal("nothing was set aside", v.logged("refresh.quarantined"), [])
	world.sim.revoke("rpool", int(v.sql("SELECT substr(consumer_id, 2) FROM refreshd.connection LIMIT 1")))
	wait_until("the event of a revoked one", lambda: [x for x in world.sim.sink("rpool") if "token_refresh.failed" in x["body"]], LIFE + 20)
	tap.check("events reach their receiver through the pooler", True)
	v.sql("DELETE FROM refreshd.connection WHERE state = 'invalid'; DELETE FROM refreshd.schedule s WHERE NOT EXISTS (SELECT 1 FROM refreshd.connection c"
		" WHERE c.connection_id = s.connection_id); DELETE FROM refreshd.credential s WHERE NOT EXISTS (SELECT 1 FROM refreshd.connection c"
		" WHERE c.connection_id = s.connection_id)")
	well_again(tap, world, v, "rpool")
	world.pg.stop_bouncer()


def server_side_killed(world, v):
	mine = world.pg.backends("datname = '%s' AND state = 'active'" % v.dbname) or world.pg.backends("datname = '%s'" % v.dbname)
	if not mine:
		return
	world.pg.kill_backend(mine[0])
	before = presentations(world, "rpool")
	wait_until("refreshes again", lambda: presentations(world, "rpool") > before, 30)


def waited_too_long(tap, world, v):
	"""Others hold every server session of the pool: PgBouncer ends who has waited for query_wait_timeout."""
	url = "host=127.0.0.1 port=%d user=postgres dbname=%s password=%s" % (world.pg.bouncer_port, v.dbname, world.pg.PASSWORD)
	crowd = [Session(world.pg, v.dbname, url) for _ in range(2)]
	try:
		for s in crowd:
			s.run("BEGIN; SELECT 1")
		wait_until("the pooler to send the daemon away", lambda: not v.ready() or errors(v, "unknown") + errors(v, "connection") > 0, 30)
		tap.equal("being sent away is no bug of ours", errors(v, "bug"), 0)
	finally:
		for s in crowd:
			s.close()
	wait_until("ready again", v.ready, 20)


SCENARIOS = [too_many_connections, rows_locked, deadlocks, strict_isolation, too_slow, poisoned, held, unreadable, server_disk_full, bouncer]


def main():
	tap = w.Tap()
	with w.World("refusals", tcp=True, pg_settings={"deadlock_timeout": "100ms"}) as world:
		tap.run(SCENARIOS, world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
