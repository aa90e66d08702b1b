"""Large tables: what a daemon keeps in memory of them, how soon after its start it refreshes, and what a refresh costs among ten million
connections against among ten thousand.

The rows are generated in the database; those with real tokens are scattered among them. The generated ones are due evenly over one hour that lies ahead; so that as much of it is loaded as by default (five minutes' worth, a twelfth), the horizon
reaches five minutes into it. They hold bytes of the right size that nobody looks at.
"""
import shutil
import time

import parts
from parts import ratio, say, spread, spreads, status_of, wait_until

DUE = 10
KEYS = ("rss_mb", "first_refresh_s", "loaded_at_start", "cost", "cost_ratio")
ACTIVE = 10000       # with real tokens, due all the time
LIFE_S = 4
IN_FLIGHT = 256
HORIZON_S, HOUR_S = 300, 3600
AHEAD_S = {1000000: 3600, 10000000: 4 * 3600}  # until the hour of the generated begins: long enough for everything that is measured
BYTES_A_ROW = 4500   # of disk, with indexes, WAL that is not skipped, and sorting
SMALL = 10000
# No WAL for the filling: the tables are emptied in the transaction that fills them.
PG = {"wal_level": "minimal", "max_wal_senders": "0", "maintenance_work_mem": "512MB", "work_mem": "256MB"}
# One row with a real token behind each chunk of generated ones, so that each lies in a page of its own.
FILL = """
	BEGIN;
	CREATE TEMP TABLE kept_n ON COMMIT DROP AS SELECT * FROM refreshd.connection;
	CREATE TEMP TABLE kept_k ON COMMIT DROP AS SELECT * FROM refreshd.credential;
	CREATE TEMP TABLE kept_s ON COMMIT DROP AS SELECT * FROM refreshd.schedule;
	CREATE TEMP TABLE place ON COMMIT DROP AS SELECT row_number() OVER () - 1 AS chunk, slot, connection_id FROM kept_s;
	CREATE INDEX ON place (chunk);
	CREATE INDEX ON kept_n (connection_id); CREATE INDEX ON kept_k (connection_id); CREATE INDEX ON kept_s (connection_id);
	TRUNCATE refreshd.connection, refreshd.credential, refreshd.schedule;
	DROP INDEX refreshd.schedule_due, refreshd.connection_of_application, refreshd.connection_not_callable;
	CREATE TEMP TABLE made ON COMMIT DROP AS SELECT (row_number() OVER (ORDER BY slot, id) - 1) * {active} / {rows} AS chunk, slot, id, n,
		to_timestamp({first}) + random() * interval '{hour} s' AS due
		FROM (SELECT n, (('x' || left(id, 4))::bit(16)::int >> 6)::smallint AS slot, id::uuid AS id
		FROM (SELECT n, md5('connection ' || n) AS id FROM generate_series(1, {generated}) n) x) y;
	CREATE INDEX ON made (chunk);
	ANALYZE made; ANALYZE place; ANALYZE kept_n; ANALYZE kept_k; ANALYZE kept_s;
	DO $$ BEGIN FOR c IN 0..{active} - 1 LOOP
		INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state, health,
			created_at, updated_at) SELECT slot, id, 'app', 'g' || n, 'accounting', 'many', 'oauth2', 'callable', 'ok', now(), now()
			FROM made WHERE chunk = c;
		INSERT INTO refreshd.credential (slot, connection_id, token_version, issued_at, expires_at, access_token, refresh_token)
			SELECT slot, id, 1, now(), due + interval '5 min', substring(decode(repeat(md5(n::text), {at}), 'hex') for {access}),
			substring(decode(repeat(md5(n::text), {at}), 'hex') for {refresh}) FROM made WHERE chunk = c;
		INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)
			SELECT slot, id, 1, due, 'app', 'many' FROM made WHERE chunk = c;
		INSERT INTO refreshd.connection SELECT k.* FROM kept_n k JOIN place p USING (connection_id) WHERE chunk = c;
		INSERT INTO refreshd.credential SELECT k.* FROM kept_k k JOIN place p USING (connection_id) WHERE chunk = c;
		INSERT INTO refreshd.schedule SELECT k.* FROM kept_s k JOIN place p USING (connection_id) WHERE chunk = c;
	END LOOP; END $$;
	{indexes};
	COMMIT;"""


def room_for(rows, where):
	need, free = rows * BYTES_A_ROW, shutil.disk_usage(where).free
	say("%d rows take about %.0f GB of disk while they are made; %.0f GB are free" % (rows, need / 1e9, free / 1e9))
	return free > need * 1.2


def make(place, name, rows, active, life_s=LIFE_S):
	"""A daemon, not started, over a table of so many rows, `active` of which have real tokens."""
	v = place.vault(name, "many", {"max_in_flight": IN_FLIGHT}, refresh={"max_in_flight": IN_FLIGHT})
	v.conf["log"]["level"] = "warning"
	place.realm("many", at_ttl=life_s)
	first = time.time() + AHEAD_S.get(rows, 3600)
	v.import_lines(place.sim.mint("many", active, expires_in=1, issued_ago=3600))
	began = time.monotonic()
	indexes = v.sql("SELECT string_agg(pg_get_indexdef(i::regclass), ';') FROM unnest(array['refreshd.schedule_due', "
		"'refreshd.connection_of_application', 'refreshd.connection_not_callable']) i")
	v.sql(FILL.format(rows=rows, generated=rows - active, active=active, first=first, hour=HOUR_S, at=parts.AT_BYTES // 16 + 4, access=parts.AT_BYTES + 50,
		refresh=parts.RT_BYTES + 50, indexes=indexes))
	parts.as_an_old_table(v)
	place.settle()
	v.write_conf()
	say("%d rows in %.0f s" % (rows, time.monotonic() - began))
	return v, first if rows > active else None


def horizon(v, first):
	"""As far ahead as five minutes into the hour of the generated rows."""
	if first is None:
		return  # nothing was generated
	left = first - time.time()
	if left < 60:
		raise RuntimeError("the generated connections come due too soon: %d s" % left)
	v.conf["refresh"]["horizon"] = "%ds" % (left + HORIZON_S)
	v.write_conf()


def park(v):
	"""Nobody with a real token is due for a day."""
	v.sql("UPDATE refreshd.schedule SET due_at = now() + interval '30 h' WHERE due_at < now() + interval '20 min'")


def started(place, v, first):
	"""Seconds from exec to the first answer, by the provider's clock; then what it holds in memory."""
	park(v)
	v.import_lines(place.sim.mint("many", DUE, expires_in=1, issued_ago=3600))
	before = place.sim.stats("many")["refresh_ok"]
	horizon(v, first)
	began = time.time()
	v.start(ready=False)
	wait_until("a refresh of each that is due", lambda: place.sim.stats("many")["refresh_ok"] >= before + DUE, 180)
	seconds = min(x["t_done_us"] / 1e6 - began for x in place.sim.ledger("many") if x["t_recv_us"] / 1e6 > began)
	wait_until("the slice to be loaded", lambda: v.metrics().get("heap_entries") > 0 and v.metrics().get("due_backlog") == 0, 120)
	time.sleep(2)
	d = {"seconds": seconds, "rss_mb": status_of(v.proc.pid, "VmRSS") / 1024, "peak_mb": status_of(v.proc.pid, "VmHWM") / 1024,
		"loaded": int(v.metrics().get("heap_entries"))}
	v.stop()
	say("first refresh after %.2f s; %.1f MB with %d of the table in memory" % (d["seconds"], d["rss_mb"], d["loaded"]))
	return d


def loaded(v):
	"""The slice is in memory: for ten seconds it did not grow any more, in which what is refreshed came back into Postgres' memory."""
	before, steady = 0, 0
	while steady < 5:
		time.sleep(2)
		now = v.metrics().get("heap_entries")
		steady = steady + 1 if abs(now - before) <= now / 100 else 0
		before = now


def cost(place, v, first, seconds):
	"""What a refresh costs while the active ones are due all the time; loading what is due in the horizon is over."""
	v.sql("UPDATE refreshd.schedule SET due_at = now() WHERE due_at < now() + interval '20 min' OR due_at > now() + interval '29 h'")
	v.sql("VACUUM ANALYZE refreshd.schedule")
	place.settle()
	horizon(v, first)
	v.start()
	loaded(v)
	# Each row was written since the checkpoint: images of whole pages are not part of it.
	d = parts.flood(v, 2 * ACTIVE, seconds, {"postgres": place.pg_cpu})
	parts.must_be_well(v)
	v.stop()
	return dict(d, both_cpu_us=d["daemon_cpu_us"] + d["postgres_cpu_us"])


def label(rows):
	return "%dm" % (rows // 1000000) if rows >= 1000000 else "%dk" % (rows // 1000)


def measure(form, sizes):
	out = {"rss_mb": {}, "first_refresh_s": {}, "loaded_at_start": {}, "cost": {}}
	with parts.Place("tables", pg=PG) as place:
		for rows in sizes:
			if not room_for(rows, place.pg.dir):
				raise RuntimeError("not enough disk below %s for %d rows" % (place.pg.dir, rows))
		small, nothing = make(place, "small", SMALL, ACTIVE)
		for rows in sizes:
			name = label(rows)
			v, first = make(place, name, rows, ACTIVE, LIFE_S)
			ours, theirs = [], []
			for run in range(form.runs):
				for side, daemon, hour in ((theirs, small, nothing), (ours, v, first)) if run % 2 == 0 else ((ours, v, first), (theirs, small, nothing)):
					side.append(cost(place, daemon, hour, form.window_s))
				say("a refresh costs %.0f CPU-us of daemon and Postgres among %d rows, %.0f among %d" % (ours[-1]["both_cpu_us"], rows,
					theirs[-1]["both_cpu_us"], SMALL))
			starts = [started(place, v, first) for _ in range(form.runs)]
			out["rss_mb"][name] = spread([s["rss_mb"] for s in starts])
			out["rss_mb"][name + "_peak"] = spread([s["peak_mb"] for s in starts])
			out["first_refresh_s"][name] = spread([s["seconds"] for s in starts], 3)
			out["loaded_at_start"][name] = spread([s["loaded"] for s in starts], 0)
			out["cost"][name] = {"large": spreads(ours), "small": spreads(theirs)}
			out.setdefault("cost_ratio", {})["%s_to_%s" % (name, label(SMALL))] = ratio([r["both_cpu_us"] for r in ours],
				[r["both_cpu_us"] for r in theirs], 2)
			for side in ("daemon", "postgres"):
				out["cost_ratio"]["%s_to_%s_%s" % (name, label(SMALL), side)] = ratio([r[side + "_cpu_us"] for r in ours],
					[r[side + "_cpu_us"] for r in theirs], 2)
			v.world.pg.psql('DROP DATABASE "%s"' % v.dbname)
	return out
