"""An hour of many connections with one-hour lives, in compressed time: did any token end before its successor was there?

What is compressed is the life: with lives of ten minutes and a margin of 50 s instead of an hour and five minutes, a million connections
need in ten minutes what they would in an hour, six times as fast (the long form; the short one has fewer connections with lives of
a minute, which are renewed at half of it, at about the same rate). Nothing else is scaled: provider, database and clock run as ever. So the
load is harder than that of the real hour, and what takes time (an answer, a commit, a poll) is six times as large against the margin.

The judge is a trigger in the database, which writes down each refresh that came after the end of the token before it; the rows at
the end; and the provider's ledger, which says how much of the life was left when the answer was sent.
"""
import json
import time

import parts
from parts import Meter, cpu_us, say, spread, status_of, wait_until

REAL_LIFE_S, REAL_MARGIN_S = 3600, 300
HALF_BELOW_S = 600  # shorter lives are renewed at half of them
IMPORT_AT_ONCE = 50000
LEAD_S = 5
AGES = """
	CREATE TABLE public.aged AS SELECT slot, connection_id, to_timestamp(%(first)f) - random() * interval '%(due)f s' AS issued FROM refreshd.schedule;
	CREATE INDEX ON public.aged (slot, connection_id); ANALYZE public.aged;
	UPDATE refreshd.credential k SET issued_at = a.issued, expires_at = a.issued + interval '%(life)d s' FROM public.aged a
		WHERE (a.slot, a.connection_id) = (k.slot, k.connection_id);
	UPDATE refreshd.schedule s SET due_at = a.issued + interval '%(due)f s' FROM public.aged a
		WHERE (a.slot, a.connection_id) = (s.slot, s.connection_id);
	DROP TABLE public.aged"""


def left_of_life(path, life_s):
	"""Smallest share of a life that was left when its successor was handed out, over the ledger; and how many were handed out."""
	before, least, n = {}, 1.0, 0
	with open(path) as f:
		for line in f:
			x = json.loads(line)
			if not x["rotated"]:
				continue
			n += 1
			last = before.get(x["family"])
			if last is not None:
				least = min(least, 1 - (x["t_done_us"] - last) / 1e6 / life_s)
			before[x["family"]] = x["t_done_us"]
	return least, n


def prepare(place, form):
	life = form.hour_life_s
	margin = max(1, round(REAL_MARGIN_S * life / REAL_LIFE_S))
	place.realm("hour", at_ttl=life)
	v = place.vault("hour", "hour", {"max_in_flight": 256}, refresh={"max_in_flight": 256, "margin": "%ds" % margin,
		"horizon": "%ds" % max(10, round(300 * life / REAL_LIFE_S)), "poll_interval": "5s"})
	v.conf["log"]["level"] = "warning"
	v.write_conf()
	for at in range(0, form.hour_rows, IMPORT_AT_ONCE):
		v.import_lines(place.sim.mint("hour", min(IMPORT_AT_ONCE, form.hour_rows - at), expires_in=life))
	v.watch()
	due = life / 2 if life < HALF_BELOW_S else life - margin
	parts.as_an_old_table(v)
	took = time.monotonic()
	lead = LEAD_S + form.hour_rows / 10000  # what the two updates and the VACUUM behind them may take
	first = time.time() + lead
	v.sql(AGES % {"first": first, "due": due, "life": life})
	v.sql("VACUUM ANALYZE")
	place.settle()
	say("%d connections with lives of %d s are there; the tables took %.0f s" % (form.hour_rows, life, time.monotonic() - took))
	return v, first, due, margin


def measure(form):
	with parts.Place("hour") as place:
		v, first, due, margin = prepare(place, form)
		v.start()
		if time.time() > first:
			raise RuntimeError("the first was due %.0f s before the daemon was ready" % (time.time() - first))
		time.sleep(max(0, first - time.time()))
		meter = Meter(daemon=lambda: cpu_us(v.proc.pid), postgres=place.pg_cpu)
		n = parts.refreshed(v)
		time.sleep(form.hour_s)
		n = parts.refreshed(v) - n
		used = meter.stop()
		rss = status_of(v.proc.pid, "VmRSS") / 1024
		expired_now = v.count("refreshd.credential WHERE expires_at < now()")
		wait_until("nothing to be in flight", v.quiet, 60)
		late = v.count("watch.late")
		bad = parts.failures(v)
		shrunk = v.count("watch.shrunk")
		m = v.metrics()
		v.stop()
		place.sim.call("flush", post=False)
		least, handed_out = left_of_life(place.sim.ledger_file, form.hour_life_s)
	if bad or shrunk or n == 0:
		raise RuntimeError("%d refreshed, others %s, %d versions shrank" % (n, bad, shrunk))
	expected = form.hour_rows * form.hour_s / due
	say("%d refreshes in %d s (%.0f were to be expected): %d after the end of the token before, %d expired at the end; least left of a life %.1f %%" % (
		n, form.hour_s, expected, late, expired_now, 100 * least))
	return {"compressed_hour": {
		"connections": form.hour_rows, "life_s": form.hour_life_s, "margin_s": margin, "seconds": form.hour_s,
		"compressed": round(REAL_LIFE_S / form.hour_life_s, 1), "refreshes": int(n), "expected": round(expected), "handed_out": handed_out,
		"expired": spread([expired_now], 0), "late_beyond_margin": spread([late], 0), "least_life_left_percent": spread([100 * least], 1),
		"within_1s_percent": spread([100 * within(m, 1.0)], 2), "per_s": spread([n / meter.seconds], 0), "rss_mb": spread([rss]),
		"daemon_cpu_us": spread([used["daemon"] / n]), "postgres_cpu_us": spread([used["postgres"] / n])}}


def within(m, seconds):
	"""Share of refreshes that the daemon's histogram has below a bound that it knows."""
	name = "refresh_lateness_seconds"
	bounds = {float(dict(l)["le"]): x for (n, l), x in m.samples.items() if n == "refreshd_%s_bucket" % name}
	return bounds[min(b for b in bounds if b >= seconds)] / m.get(name + "_count")
