#!/usr/bin/env python3
"""refreshd over tables that are partitioned by slot: the daemon does its whole work there, and no statement that is executed for single
connections touches another partition than theirs. Partitions stand for the shards of a distributed database (docs/scaling.md). What counts
is the plan of each execution with its real parameters, as auto_explain writes it into the server's log. TAP on stdout."""
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "torture")]
import world as w
from pgproxy import PgProxy, Rule
from world import wait_until

PARTS, ROWS, OTHERS = 8, 120, 40000
EXPLAIN = {"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0", "auto_explain.log_analyze": "on",
	"auto_explain.log_timing": "off", "auto_explain.log_format": "json"}
TABLES = ("connection", "credential", "schedule", "orphan_token")
PART = re.compile(r"^(%s)_p\d+$" % "|".join(TABLES))

# What runs for connections that are known: it has to go to their partitions alone. By words that only this statement has.
BY_SLOT = {
	"claim": r"WITH want AS MATERIALIZED", "persist": r"\bv\.verdict FROM v\b", "release": r"^WITH t AS MATERIALIZED .*lease_owner = NULL",
	"load": r"FROM refreshd\.schedule u JOIN", "due now": r"ELSE now\(\) END WHERE slot = ",
	"due of one": r"^SELECT s\.connection_id.* WHERE s\.slot = \$1 AND s\.connection_id = \$2",
	"quarantine": r"SET due_at = 'infinity'",
}
# What asks for the earliest of all, or for all of one owner: every partition has its share of the answer.
FANS_OUT = {"poll": r"get_bit\(", "recover": r"lease_owner = ANY \(ARRAY\(", "gauges": r"^WITH first AS MATERIALIZED"}


def partition(v):
	"""Makes the tables anew, partitioned by slot, with the keys, indexes and settings of the plain ones. They are empty still."""
	for t in TABLES:
		indexes = v.sql("SELECT indexdef FROM pg_indexes WHERE schemaname = 'refreshd' AND tablename = '%s' AND indexname NOT LIKE '%%_pkey'" % t).splitlines()
		key = v.sql("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'refreshd.%s'::regclass AND contype = 'p'" % t)
		settings = v.sql("SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = 'refreshd.%s'::regclass" % t)
		v.sql("BEGIN; ALTER TABLE refreshd.{0} RENAME TO plain;"
			" CREATE TABLE refreshd.{0} (LIKE refreshd.plain INCLUDING DEFAULTS INCLUDING STORAGE) PARTITION BY HASH (slot);"
			" DROP TABLE refreshd.plain; ALTER TABLE refreshd.{0} ADD {1};".format(t, key) +
			"".join("CREATE TABLE refreshd.%s_p%d PARTITION OF refreshd.%s FOR VALUES WITH (MODULUS %d, REMAINDER %d)%s;" % (
				t, i, t, PARTS, i, " WITH (%s)" % settings if settings else "") for i in range(PARTS)) +
			";".join(indexes) + "; COMMIT")
	# The planner does not count on pruning while a join runs, and would rather read everything than look into every partition.
	for how in ("hashjoin", "mergejoin", "seqscan"):
		v.sql("ALTER DATABASE %s SET enable_%s = off" % (v.dbname, how))


FILL = """
	CREATE TEMP TABLE f AS SELECT (n %% 1024)::smallint AS slot, gen_random_uuid() AS id, n FROM generate_series(1, %d) n;
	INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)
		SELECT slot, id, 1, now() + interval '2 h', 'other', 'parts' FROM f;
	INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state, health,
		created_at, updated_at) SELECT slot, id, 'other', 'c' || n, 'accounting', 'parts', 'oauth2', 'callable', 'ok', now(), now() FROM f;
	INSERT INTO refreshd.credential (slot, connection_id, token_version, access_token, expires_at) SELECT slot, id, 1, '\\x00', now() + interval '3 h' FROM f;
	ANALYZE refreshd.schedule, refreshd.connection, refreshd.credential;
"""


# ---------------------------------------------------------------- plans

def executions(log):
	"""(statement, plan tree) of everything that ran."""
	for entry in re.split(r"\n(?=\d{4}-\d\d-\d\d [\d:.]+ )", log):
		head, _, body = entry.partition(" plan:\n")
		if body:
			tree = json.loads(body[:body.rindex("}") + 1])
			yield tree["Query Text"], tree["Plan"]


def nodes(plan, above=()):
	yield plan, above
	for child in plan.get("Plans", ()):
		yield from nodes(child, above + (plan,))


def name_of(text, names):
	return next((name for name, words in names.items() if re.search(words, text, re.S)), None)


def touched(plan):
	"""table -> the partitions of it that were read."""
	out = {}
	for node, _ in nodes(plan):
		table = PART.match(node.get("Relation Name", ""))
		if table and node.get("Actual Loops", 0) > 0 and "Scan" in node["Node Type"]:
			out.setdefault(table.group(1), set()).add(node["Relation Name"])
	return out


def faults(plan):
	"""What a plan of connections that are known must not do: read a whole partition, or look for one connection in several."""
	bad = []
	for node, above in nodes(plan):
		ran = node.get("Actual Loops", 0)
		if PART.match(node.get("Relation Name", "")) and ran > 0 and "Scan" in node["Node Type"]:
			if node["Node Type"] not in ("Index Scan", "Index Only Scan") or "slot = " not in node.get("Index Cond", ""):
				bad.append("%s of %s: %s" % (node["Node Type"], node["Relation Name"], node.get("Index Cond")))
		if node["Node Type"] == "Append" and any(PART.match(c.get("Relation Name", "")) for c in node["Plans"]):
			probes = sum(c.get("Actual Loops", 0) for c in node["Plans"])
			if probes > ran:
				bad.append("%d look-ups went to %d partitions (%s)" % (ran, probes, node["Plans"][0].get("Relation Name")))
	return bad


# ---------------------------------------------------------------- life on partitions

def everything(tap, world):
	world.sim.realm("parts", mode="strict", at_ttl=6, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=200, jitter_ms=100)
	v = world.vault("parts", {"parts": {}}, migrate=False)
	v.ctl("migrate")
	partition(v)
	v.watch()
	v.import_lines(world.sim.mint("parts", ROWS))
	v.sql(FILL % OTHERS)
	mark = len(world.pg.log_text())
	with PgProxy(world.pg.sock, world.pg.port, 1) as proxy:
		v.conf["database"]["url"] = "host=127.0.0.1 port=%d user=postgres dbname=%s sslmode=disable" % (proxy.port, v.dbname)
		v.write_conf()
		v.start()
		live(tap, world, v, proxy)
	judge_life(tap, world, v, mark)


def live(tap, world, v, proxy):
	wait_until("two rounds of refreshes", lambda: v.count("refreshd.credential WHERE refreshes >= 2") == ROWS, 60)
	replayed_and_recovered(tap, world, v)
	given_back(proxy)
	by_hand(v)
	set_aside(v)
	wait_until("quiet", v.quiet, 30)
	tap.equal("it stops with 0", v.stop(), 0)


def judge_life(tap, world, v, mark):
	seen = judge_plans(tap, world.pg.log_text()[mark:])
	tap.equal("every statement was seen", sorted((set(BY_SLOT) | set(FANS_OUT)) - set(seen)), [])
	v.sql("DELETE FROM refreshd.connection WHERE application_id = 'other'")
	w.judge_ledger(tap, world.sim, "parts")
	w.judge_tokens(tap, world.sim, v, "parts")
	spread = v.sql("SELECT count(*) FROM refreshd.credential WHERE refreshes > 0 GROUP BY tableoid").split()
	tap.equal("its connections lie in all partitions: %s" % spread, len(spread), PARTS)


FULL = """CREATE FUNCTION watch.full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION USING ERRCODE = ''disk_full''; END';
	CREATE TRIGGER full_disk BEFORE UPDATE ON refreshd.credential FOR EACH ROW EXECUTE FUNCTION watch.full_disk();"""
NO_CLAIM = """CREATE FUNCTION watch.no_claim() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
	CREATE TRIGGER no_claim BEFORE UPDATE ON refreshd.schedule FOR EACH ROW WHEN (NEW.attempt_id <> OLD.attempt_id)
	EXECUTE FUNCTION watch.no_claim();"""
# Takes no lock that the daemon could wait for.
HARMLESS = "CREATE OR REPLACE FUNCTION watch.%s() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"


def replayed_and_recovered(tap, world, v):
	"""Answers that only the journal has, and leases of an earlier life."""
	v.sql(FULL)
	wait_until("answers to wait in the journal", lambda: v.metrics().get("journal_records") > 0, 30)
	v.sql(NO_CLAIM)
	# What is answered and not yet in the journal dies with a process: no request may be out, and no answer on its way.
	wait_until("every answer to be in the journal", lambda: world.sim.stats("parts")["in_flight"] == 0 and
		v.metrics().get("journal_records") == v.count("refreshd.schedule WHERE lease_owner IS NOT NULL"), 30)
	v.kill()
	v.sql(HARMLESS % "full_disk" + ";" + HARMLESS % "no_claim")
	v.start()
	tap.note("%d answers replayed" % sum(x["count"] for x in v.logged("daemon.replayed")))


def given_back(proxy):
	"""Claims whose answer never comes are released."""
	proxy.rule = Rule(("claim",), 1, ("after",), limit=3)
	wait_until("claims to be unheard of", lambda: proxy.rule.limit == 0, 30)
	proxy.rule = None


def by_hand(v):
	row = v.sql("SELECT connection_id FROM refreshd.connection WHERE application_id = 'app' LIMIT 1")
	v.ctl("refresh", row)


def set_aside(v):
	"""A result that cannot be written, for one connection; then it can."""
	row = v.sql("SELECT connection_id FROM refreshd.connection WHERE application_id = 'app' LIMIT 1")
	v.sql("CREATE FUNCTION watch.no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION USING ERRCODE = ''check_violation''; END';"
		"CREATE TRIGGER no BEFORE UPDATE ON refreshd.credential FOR EACH ROW WHEN (OLD.connection_id = '%s') EXECUTE FUNCTION watch.no()" % row)
	wait_until("the row to leave the schedule", lambda: v.logged("refresh.quarantined"), 30)
	v.sql(HARMLESS % "no")
	v.stop()
	v.start()
	wait_until("its answer to be written", lambda: v.count("refreshd.schedule WHERE connection_id = '%s' AND due_at < 'infinity'" % row) == 1, 30)


def judge_plans(tap, log):
	seen, bad, spans = {}, {}, {}
	for text, plan in executions(log):
		name = name_of(text, BY_SLOT) or name_of(text, FANS_OUT)
		if name is None:
			continue
		seen[name] = seen.get(name, 0) + 1
		found = faults(plan) if name in BY_SLOT else [x for x in faults(plan) if x.startswith("Seq Scan of schedule")]
		bad.setdefault(name, []).extend(found)
		spans[name] = max([spans.get(name, 0)] + [len(x) for x in touched(plan).values()])
	for name in sorted(seen):
		tap.check("%s: %s (%d executions, at most %d of %d partitions in one)" % (name, "goes to the partitions of its connections alone"
			if name in BY_SLOT else "asks all, by the index of due times", seen[name], spans[name], PARTS), not bad[name], "\n".join(bad[name][:5]))
	return seen


def main():
	tap = w.Tap()
	with w.World("parts", pg_settings=EXPLAIN) as world:
		tap.run([everything], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
