#!/usr/bin/env python3
"""What a connection costs where it is kept: bytes on the database's disk, write-ahead log of a refresh, bytes of the daemon's memory.

	TOP_BUILDDIR=. python3 bench/rows.py [CONNECTIONS]      # 200,000; prints the table of docs/scaling.md

The connections are imported, refreshed once without and once with images of whole pages in the log (what a checkpoint costs), and
loaded by a daemon whose horizon takes all of them. Tokens are 1,000 and 100 bytes long.
"""
import json
import os
import shutil
import sys
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "integration"))
import world as w
from world import wait_until

TABLES = ("connection", "credential", "schedule", "event")


def mint(world, realm, n, path):
	query = urllib.parse.urlencode({"realm": realm, "n": n, "format": "import", "application": "app", "consumer_prefix": "customer-", "unified_api":
		"accounting", "service_id": realm, "expires_in": 1})
	with w.NO_PROXY.open("%s/_sim/mint?%s" % (world.sim.base, query), data=b"", timeout=600) as r, open(path, "wb") as f:
		shutil.copyfileobj(r, f)


def sizes(v):
	return {t: tuple(int(x) for x in v.sql("SELECT pg_table_size('refreshd.%s'), pg_indexes_size('refreshd.%s')" % (t, t)).split("|")) for t in TABLES}


def hot(v):
	return {line.split("|")[0]: tuple(int(x) for x in line.split("|")[1:]) for line in v.sql("SELECT relname, n_tup_upd, n_tup_hot_upd FROM"
		" pg_stat_user_tables WHERE schemaname = 'refreshd' AND relname IN ('credential', 'schedule', 'connection')").splitlines()}


def one_pass(v, n, refreshes, timeout_s=900):
	"""Everybody is refreshed once; bytes of log for each, and the share of updates that stayed on their page."""
	v.sql("CHECKPOINT")
	lsn, before = v.sql("SELECT pg_current_wal_insert_lsn()"), hot(v)
	v.start()
	wait_until("all to be refreshed", lambda: v.count("refreshd.credential WHERE refreshes >= %d" % refreshes) == n, timeout_s)
	v.stop()
	log = int(v.sql("SELECT pg_current_wal_insert_lsn() - '%s'::pg_lsn" % lsn))
	wait_until("the statistics", lambda: hot(v)["credential"][0] >= before["credential"][0] + n, 30)
	after = hot(v)
	return log / n, {t: (after[t][1] - before[t][1]) / max(1, after[t][0] - before[t][0]) for t in ("credential", "schedule")}


def sparse(v, n, refreshes, few):
	"""The same where the refreshes between two checkpoints are few: nearly each is the first to touch its pages."""
	v.sql("UPDATE refreshd.schedule SET due_at = now() WHERE connection_id IN (SELECT connection_id FROM refreshd.schedule ORDER BY random() LIMIT %d)" % few)
	v.sql("VACUUM ANALYZE")
	v.sql("CHECKPOINT")
	lsn = v.sql("SELECT pg_current_wal_insert_lsn()")
	v.start()
	wait_until("the few to be refreshed", lambda: v.count("refreshd.credential WHERE refreshes > %d" % refreshes) == few, 300)
	v.stop()
	return int(v.sql("SELECT pg_current_wal_insert_lsn() - '%s'::pg_lsn" % lsn)) / few


def resident(v):
	with open("/proc/%d/status" % v.proc.pid) as f:
		return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmRSS"))


def main():
	n = int(sys.argv[1]) if len(sys.argv) > 1 else 200000
	with w.World("rows", pg_settings={"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "1h"}) as world:
		world.sim.realm("rows", mode="strict", at_ttl=3600, at_len=1000, rt_len=100, auth="basic", client_secret=w.CLIENT_SECRET)
		v = world.vault("rows", {"rows": {"max_in_flight": 256}}, refresh={"poll_interval": "1s"}, migrate=False)
		v.ctl("migrate")
		path = os.path.join(world.dir, "lines")
		mint(world, "rows", n, path)
		lsn = v.sql("SELECT pg_current_wal_insert_lsn()")
		v.ctl("import", path, "--create-apps", "--strict", timeout_s=1200)
		out = {"connections": n, "import_wal": int(v.sql("SELECT pg_current_wal_insert_lsn() - '%s'::pg_lsn" % lsn)) / n}
		v.sql("VACUUM ANALYZE")
		out["imported"] = {t: (a / n, b / n) for t, (a, b) in sizes(v).items()}
		out["wal_without_images"], out["hot_1"] = one_pass(v, n, 1)
		out["refreshed"] = {t: (a / n, b / n) for t, (a, b) in sizes(v).items()}
		world.pg.settings["full_page_writes"] = "on"
		world.pg.restart()
		v.sql("VACUUM ANALYZE")
		v.sql("UPDATE refreshd.schedule SET due_at = now()")
		v.sql("VACUUM ANALYZE")
		out["wal_with_images"], out["hot_2"] = one_pass(v, n, 2)
		out["refreshed_twice"] = {t: (a / n, b / n) for t, (a, b) in sizes(v).items()}
		out["wal_sparse"] = sparse(v, n, 2, n // 100)
		v.conf["refresh"]["horizon"] = "2s"
		v.write_conf()
		v.start()
		small = resident(v)
		v.stop()
		v.conf["refresh"]["horizon"] = "2h"
		v.write_conf()
		v.start()
		wait_until("all to be in memory", lambda: v.metrics().get("heap_entries") == n, 300)
		out["entry_bytes"] = (resident(v) - small) / n
		out["resident_small"] = small
		v.stop()
	print(json.dumps(out, indent=1))
	return 0


if __name__ == "__main__":
	sys.exit(main())
