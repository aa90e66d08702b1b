"""What a run at full rate leaves in Postgres: sizes of tables and indexes against their start, how many claims were HOT, and whether a claim costs at
the end what it did at the beginning.

An hour at full rate rewrites each of a million rows some forty times. Here fewer rows are rewritten as often in less time; autovacuum looks
as often a rewrite as it would there (autovacuum_naptime is scaled by the rows), and everything else of it is as it is.
"""
import time

import parts
from parts import say, spread, wait_until

LIFE_S = 4
IN_FLIGHT = 256
SLICES = 6
REAL_ROWS, REAL_NAPTIME_S = 1000000, 60
TABLES = ("connection", "credential", "schedule", "event")
SIZES = """SELECT c.relname, pg_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid
	WHERE n.nspname = 'refreshd' AND coalesce(i.indrelid, c.oid)::regclass::text = ANY(array[%s]) AND c.relkind IN ('r', 'i')""" % (
	", ".join("'refreshd.%s'" % t for t in TABLES))
CLAIM = """SELECT sum(total_exec_time), sum(rows), sum(shared_blks_hit + shared_blks_read) FROM pg_stat_statements s
	JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = current_database() AND query LIKE '%%UPDATE refreshd.schedule%%'
	AND query LIKE '%%sent_deadline = now()%%'"""
HOT = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'refreshd' AND relname = '%s'"


def sizes(v):
	return {name: int(size) for name, size in (line.split("|") for line in v.sql(SIZES).splitlines())}


def numbers(v, query):
	words = v.sql(query).split("|")
	if "" in words:
		raise RuntimeError("Postgres does not count: %s" % query)
	return [float(x) for x in words]


def hot(v, table):
	return numbers(v, HOT % table)


def prepare(place, name, rows):
	place.realm(name, at_ttl=LIFE_S)
	v = place.vault(name, name, {"max_in_flight": IN_FLIGHT}, refresh={"max_in_flight": IN_FLIGHT})
	v.conf["log"]["level"] = "warning"
	v.write_conf()
	v.sql("CREATE EXTENSION pg_stat_statements")
	v.import_lines(place.sim.mint(name, rows, expires_in=1, issued_ago=3600))
	v.sql("DELETE FROM refreshd.event")
	v.sql("VACUUM FULL")  # the smallest that these tables can be, their fillfactor apart
	v.sql("ANALYZE")
	place.settle()
	return v


def round_of(place, name, rows, seconds):
	v = prepare(place, name, rows)
	start = sizes(v)
	v.start()
	wait_until("the first tenth", lambda: parts.refreshed(v) > rows / 10, 120)
	clock, n = time.monotonic(), parts.refreshed(v)
	slices, largest = [], dict(start)
	before, schedule, credential = numbers(v, CLAIM), hot(v, "schedule"), hot(v, "credential")
	begun = before
	for i in range(SLICES):
		time.sleep(max(0, clock + (i + 1) * seconds / SLICES - time.monotonic()))
		now = numbers(v, CLAIM)
		slices.append([(b - a) / max(1, now[1] - before[1]) for a, b in zip((before[0], before[2]), (now[0], now[2]))])
		before = now
		largest = {k: max(x, largest.get(k, 0)) for k, x in sizes(v).items()}
	n, seconds_taken = parts.refreshed(v) - n, time.monotonic() - clock
	parts.must_be_well(v)
	v.stop()
	time.sleep(1)  # backends tell their counts when they end
	updates, hot_updates = [b - a for a, b in zip(schedule, hot(v, "schedule"))]
	wide = [b - a for a, b in zip(credential, hot(v, "credential"))]
	end = {k: max(x, largest[k]) for k, x in sizes(v).items()}
	claims = before[1] - begun[1]
	indexes = [k for k in end if k not in TABLES]
	# An empty table starts with nothing to compare with.
	factor = {k: end[k] / start[k] for k in end if start.get(k, 0) >= 1 << 20}
	return {"per_s": n / seconds_taken, "rewritten": n / rows, "hot_claims_percent": 100 * min(1, hot_updates / claims),
		"hot_credential_percent": 100 * wide[1] / wide[0], "tables_factor": sum(end[t] for t in TABLES) / sum(start[t] for t in TABLES),
		"indexes_factor": sum(end[k] for k in indexes) / sum(start.get(k, 0) for k in indexes),
		"claim_cost_ratio": slices[-1][0] / slices[0][0], "claim_blocks_ratio": slices[-1][1] / slices[0][1],
		"claim_us": 1000 * slices[-1][0], "schedule_updates": updates}, factor, slices


def measure(form):
	naptime = max(1, round(REAL_NAPTIME_S * form.bloat_rows / REAL_ROWS))
	rows, factors = [], {}
	with parts.Place("bloat", pg={"shared_preload_libraries": "pg_stat_statements", "autovacuum_naptime": "%ds" % naptime}) as place:
		for run in range(form.bloat_runs):
			r, factor, slices = round_of(place, "bloat%d" % run, form.bloat_rows, form.bloat_s)
			rows.append(r)
			for k, x in factor.items():
				factors.setdefault(k, []).append(x)
			say("%.0f/s, each row %.1f times: tables %.2f, indexes %.2f of their start; %.0f %% of the claims HOT; a claim %.2f of its first cost" % (
				r["per_s"], r["rewritten"], r["tables_factor"], r["indexes_factor"], r["hot_claims_percent"], r["claim_cost_ratio"]))
	return {"postgres": dict({k: spread([r[k] for r in rows], 0 if k.endswith("per_s") else 2) for k in sorted(rows[0]) if k != "schedule_updates"},
		factors={k: spread(x, 2) for k, x in sorted(factors.items())}, rows=form.bloat_rows, seconds=form.bloat_s, naptime_s=naptime,
		claim_us_by_slice=[round(1000 * x[0], 2) for x in slices])}
