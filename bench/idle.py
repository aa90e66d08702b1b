"""A million connections: what a daemon costs that has nothing to do, and how soon after its start it refreshes.

The rows are generated in the database. Only the few that are due have tokens that can be opened; nobody looks at the others.
"""
import time

import parts
from parts import say, spread, status_of, wait_until

DUE = 10
REST = 1.5  # so many windows behind a start, which leaves checks and first gauges for later
GENERATE = """
	INSERT INTO refreshd.application VALUES ('app') ON CONFLICT DO NOTHING;
	CREATE TEMP TABLE made AS SELECT n, md5('connection ' || n)::uuid AS id, now() + interval '10 min' + random() * interval '1 h' AS due
		FROM generate_series(1, {rows}) n;
	ALTER TABLE made ADD slot smallint;
	UPDATE made SET slot = ('x' || left(replace(id::text, '-', ''), 4))::bit(16)::int >> 6;
	INSERT INTO refreshd.connection (slot, connection_id, application_id, consumer_id, unified_api, service_id, auth_type, state, health,
		created_at, updated_at) SELECT slot, id, 'app', 'g' || n, 'accounting', 'many', 'oauth2', 'callable', 'ok', now(), now() FROM made;
	INSERT INTO refreshd.credential (slot, connection_id, token_version, issued_at, expires_at, access_token, refresh_token)
		SELECT slot, id, 1, now(), due + interval '5 min', substring(decode(repeat(md5(n::text), {at}), 'hex') for {access}),
		substring(decode(repeat(md5(n::text), {at}), 'hex') for {refresh}) FROM made;
	INSERT INTO refreshd.schedule (slot, connection_id, token_version, due_at, application_id, service_id)
		SELECT slot, id, 1, due, 'app', 'many' FROM made;"""


def fill(place, rows):
	v = place.vault("many", "many", api={"listen": "127.0.0.1:%d" % parts.free_port()})
	v.sql(GENERATE.format(rows=rows, at=parts.AT_BYTES // 16 + 4, access=parts.AT_BYTES + 50, refresh=parts.RT_BYTES + 50))
	v.sql("VACUUM ANALYZE")
	place.settle()
	return v


def answered(place):
	return place.sim.stats("many")["refresh_ok"]


def first_refresh(place, v):
	"""Seconds from exec to the first answer that the provider gave, by the provider's own clock."""
	v.import_lines(place.sim.mint("many", DUE, expires_in=1, issued_ago=3600))
	before, began = answered(place), time.time()
	v.start(ready=False)
	wait_until("a refresh of each that is due", lambda: answered(place) >= before + DUE, 120)
	mine = [x["t_done_us"] / 1e6 - began for x in place.sim.ledger("many") if x["t_recv_us"] / 1e6 > began]
	return min(mine), max(mine)


def at_rest(v, seconds):
	"""Wake-ups a second and CPU in percent of one core, all threads; nothing is due meanwhile."""
	def quiet():
		return v.metrics().get("due_backlog") == 0 and v.quiet()
	wait_until("nothing to do", quiet, 60)
	time.sleep(REST * seconds)
	meter = parts.Meter(cpu=lambda: parts.cpu_us(v.proc.pid), wakeups=lambda: parts.switches(v.proc.pid))
	time.sleep(seconds)
	used = meter.stop()
	return used["wakeups"] / meter.seconds, used["cpu"] / meter.seconds / 1e4


def measure(form):
	first, all_due, wakeups, cpu, rss = [], [], [], [], []
	with parts.Place("idle") as place:
		place.realm("many", at_ttl=7200)
		say("making %d connections" % form.rows)
		v = fill(place, form.rows)
		for _ in range(form.runs):
			a, b = first_refresh(place, v)
			n, percent = at_rest(v, form.idle_s)
			first.append(a)
			all_due.append(b)
			wakeups.append(n)
			cpu.append(percent)
			rss.append(status_of(v.proc.pid, "VmRSS") / 1024)
			say("first refresh after %.2f s; at rest %.1f wake-ups/s, %.2f %% of a core, %.0f MB" % (a, n, percent, rss[-1]))
			v.stop()
	return {
		"first_refresh_s": {"1m": spread(first, 3), "1m_all_%d_due" % DUE: spread(all_due, 3)},
		"idle": {"wakeups_per_s": spread(wakeups), "cpu_percent": spread(cpu, 2), "seconds": form.idle_s},
		"rss_mb": {"1m": spread(rss)}, "rows": form.rows,
	}
