#!/usr/bin/env python3
"""The statements of an import find every row by its key, whatever the planner believed when they were prepared: without any statistics,
with those of a table of one row that has grown since, and where each statement is planned anew (behind a pooler). What counts is the plan
of each execution, as auto_explain writes it into the server's log."""
import concurrent.futures
import http.client
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from apiclient import connection_path
from test_api import new_key
from world import CLIENT_SECRET, Tap, World, free_port, wait_until

ROWS, IMPORTS, CLIENTS = 50000, 1000, 24
EXPLAIN = {"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0", "autovacuum": "off"}
OURS = re.compile(r"unnest\(\$[12]::smallint\[\], \$[23]::uuid\[\]")  # the keys of an import; nothing else runs that has such
TABLE = r"(?:connection|credential|schedule)\b"
FILL = """
	CREATE TEMP TABLE f AS SELECT (n %% 1024)::smallint AS slot, gen_random_uuid() AS id, n FROM generate_series(1, %d) n;
	INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)
		SELECT slot, id, 1, 'infinity', 'other', 'a' FROM f;
	INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state, health,
		created_at, updated_at) SELECT slot, id, 'other', 'c' || n, 'accounting', 'a', 'oauth2', 'callable', 'ok', now(), now() FROM f;
	INSERT INTO refreshd.credential (slot, connection_id, token_version, access_token) SELECT slot, id, 1, '\\x00' FROM f;
"""


class Importer:
	"""Some kept connections at once, so that what is written is groups of many: a single row is planned well by anybody."""

	def __init__(self, port, key):
		self.clients = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(CLIENTS)]
		self.head = {"Authorization": "Bearer " + key, "x-apideck-app-id": "app", "Content-Type": "application/json"}

	def one(self, client, lines, consumers):
		seen = set()
		for i in consumers:
			body = json.dumps({"credentials": lines[i % len(lines)]["credentials"]})
			client.request("POST", connection_path("a", tail="/import"), body, dict(self.head, **{"x-apideck-consumer-id": "i%d" % i}))
			answer = client.getresponse()
			answer.read()
			seen.add(answer.status)
		return seen

	def run(self, lines, first, n):
		"""The statuses of imports of the consumers first to first + n."""
		with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
			parts = [pool.submit(self.one, c, lines, range(first + k, first + n, CLIENTS)) for k, c in enumerate(self.clients)]
			return set().union(*(x.result() for x in parts))


def plans(log):
	"""Of the statements of imports."""
	entries = re.split(r"\n(?=\d{4}-\d\d-\d\d [\d:.]+ )", log)
	parts = [e.split("\n", 2) for e in entries if " plan:\n\tQuery Text: " in e]  # the duration, the text, the plan
	return [p[2] for p in parts if OURS.search(p[1])]


def bad_nodes(plan):
	"""Scans of a whole table, be it in the order of an index."""
	return (re.findall(r"Seq Scan on " + TABLE, plan) +
		re.findall(r"Index (?:Only )?Scan(?: Backward)? using \w+ on " + TABLE + r".*\n(?!\s+Index Cond)", plan))


def judge(tap, world, name, with_statistics=False, **sections):
	port = free_port()
	v = world.vault(name, {"a": {}}, migrate=False, api={"listen": "127.0.0.1:%d" % port, "rate": "unlimited"}, **sections)
	v.ctl("migrate")
	v.ctl("app", "add", "app")
	importer = Importer(port, new_key(v, "app"))
	v.start()
	lines = world.sim.mint("a", 20)
	tap.equal("%s: the first one is taken" % name, importer.run(lines, 0, 1), {200})
	if with_statistics:
		v.sql("ANALYZE refreshd.connection, refreshd.credential, refreshd.schedule")
	early = set().union(*(importer.run(lines, 0, 200) for _ in range(8)))  # often enough for plans to be kept
	tap.equal("%s: plans are made while there is next to nothing" % name, early, {200})
	v.sql(FILL % ROWS)
	start = len(world.pg.log_text())
	tap.equal("%s: %d new ones" % (name, IMPORTS), importer.run(lines, 1000, IMPORTS), {200})
	tap.equal("%s: and again" % name, importer.run(lines, 1000, IMPORTS), {200})
	seen = plans(world.pg.log_text()[start:])
	tap.check("%s: the plans are in the log" % name, len(seen) >= 5 * IMPORTS // 128, len(seen))
	tap.check("%s: they go by the key" % name, all("Insert on schedule" in p or "Index Cond: ((slot = " in p for p in seen))
	bad = [p for p in seen if bad_nodes(p)]
	tap.check("%s: no table was read from its beginning" % name, not bad, "%d of %d: %s" % (len(bad), len(seen), "".join(bad[:1])))
	tap.equal("%s: each is there once" % name, v.count("refreshd.connection WHERE application_id = 'app'"), 200 + IMPORTS)
	tap.equal("%s: nothing is left for a fan-out to nobody" % name, v.count("refreshd.event WHERE fanned_out_at IS NULL"), 0)
	v.stop()


def without_statistics(tap, world):
	judge(tap, world, "none")


def statistics_of_a_page(tap, world):
	judge(tap, world, "page", with_statistics=True)


def planned_anew(tap, world):
	judge(tap, world, "anew", with_statistics=True, database={"pooler": "transaction"})


def main():
	tap = Tap()
	with World("plan", realms=["a:mode=strict,at_ttl=3600,client_secret=" + CLIENT_SECRET], pg_settings=EXPLAIN) as world:
		tap.run([without_statistics, statistics_of_a_page, planned_anew], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
