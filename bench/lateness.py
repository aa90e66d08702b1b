"""How late refreshes are when they come due evenly, at half of the rate that this machine can do and at a tenth; the half once more
while webhooks go out as fast as one receiver takes them.

Nothing of it is the daemon's word: when a connection is due is read from the table before the daemon starts, each is refreshed once,
and when it was done is the time of the transaction that committed its new token, by Postgres' own record (track_commit_timestamp).
The provider's ledger says when it had answered. What the daemon's histogram says is set beside it.
"""
import os
import time

import parts
import refreshes
from parts import Meter, cpu_us, percentile, say, spread, spreads, wait_until

IN_FLIGHT = 256
LEAD_S = 6           # from the start of the daemon to the first that is due
SHARES = {"half_rate": 0.5, "tenth_rate": 0.1}
CURVE = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
HOOK_SECRET = parts.w.WEBHOOK_SECRET
# Events as they are stored, enough for the whole time; told to the outbox as any change of state would. Their ids begin with the time.
EVENTS = """INSERT INTO refreshd.event (event_id, application_id, connection_id, event_type, entity_id, entity_type, entity, occurred_at)
	SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || lpad(to_hex(n), 20, '0'))::uuid, e.application_id, e.connection_id, e.event_type, e.entity_id, e.entity_type, e.entity, now()
	FROM (SELECT * FROM refreshd.event LIMIT 1) e, generate_series(1, %d) n"""


def receiver(place):
	"""A webhook receiver in a process of its own, over TLS."""
	return parts.w.Simulator(os.path.join(place.dir, "receiver-%d" % time.monotonic_ns()), tls=place.tls)


def hook_sections(place, v_dir, sink):
	secret = os.path.join(v_dir, "hook-secret")
	with open(secret, "w") as f:
		f.write(HOOK_SECRET + "\n")
	os.chmod(secret, 0o600)
	return {"delivery": {"ca_file": place.tls["ca"]}, "webhooks": [{"name": "sink", "application": "*", "url": sink.sink_url("sink"),
		"secret_file": secret, "allow_private": True}]}


def prepare(place, name, rate, seconds, events, sink):
	"""A daemon that is not started, and when the first of its connections is due."""
	place.realm(name)
	v = place.vault(name, name, {"max_in_flight": IN_FLIGHT}, refresh={"max_in_flight": IN_FLIGHT},
		**(hook_sections(place, place.dir, sink) if sink else {}))
	v.conf["log"]["level"] = "warning"
	v.write_conf()
	v.import_lines(place.sim.mint(name, max(200, round(rate * seconds))))
	if events:
		v.sql(EVENTS % events)
	else:
		v.sql("DELETE FROM refreshd.event")
	v.sql("CREATE TABLE public.due AS SELECT slot, connection_id, now() AS due_at FROM refreshd.schedule")
	v.sql("VACUUM ANALYZE")
	place.settle()
	first = time.time() + LEAD_S
	v.sql("UPDATE public.due SET due_at = to_timestamp(%f) + random() * interval '%f s'" % (first, seconds))
	v.sql("UPDATE refreshd.schedule s SET due_at = d.due_at FROM public.due d WHERE (s.slot, s.connection_id) = (d.slot, d.connection_id)")
	return v, first


def sleep_until(wall):
	left = wall - time.time()
	if left < 0:
		raise RuntimeError("the daemon was not ready in time: %.1f s too late" % -left)
	time.sleep(left)


def measured(place, v, name):
	"""Milliseconds from due to committed and from due to answered, ascending, and how often one was refreshed."""
	answered = {x["family"]: x["t_done_us"] for x in place.sim.ledger(name)}
	text = v.sql("""SELECT n.consumer_id, (extract(epoch FROM d.due_at) * 1e6)::bigint,
		(extract(epoch FROM pg_xact_commit_timestamp(k.xmin)) * 1e6)::bigint FROM public.due d
		JOIN refreshd.connection n USING (slot, connection_id) JOIN refreshd.credential k USING (slot, connection_id) WHERE k.refreshes = 1""")
	committed, replied = [], []
	for line in text.splitlines():
		consumer, due, commit = line.split("|")
		committed.append((int(commit) - int(due)) / 1000)
		replied.append((answered[int(consumer[1:])] - int(due)) / 1000)
	return sorted(committed), sorted(replied)


def histogram_p99(m):
	"""The 99th percentile of the daemon's own histogram, interpolated within its bucket; None: in the last one, which has no end."""
	buckets = sorted((float(dict(l)["le"]), v) for (n, l), v in m.samples.items() if n == "refreshd_refresh_lateness_seconds_bucket")
	want, below, floor = buckets[-1][1] * 0.99, 0, 0.0
	for le, count in buckets:
		if count >= want:
			return None if le == float("inf") else (floor + (le - floor) * (want - below) / max(1, count - below)) * 1000
		below, floor = count, le
	return None


def delivered(v, begin, end):
	"""Deliveries that were written down as done in the window, and its seconds: less when there was nothing left to deliver."""
	n, last, left = v.sql("""SELECT count(*), extract(epoch FROM max(done_at)),
		(SELECT count(*) FROM refreshd.event WHERE fanned_out_at IS NULL) FROM refreshd.delivery WHERE delivered
		AND done_at BETWEEN to_timestamp(%f) AND to_timestamp(%f)""" % (begin, end)).split("|")
	if int(n) == 0:
		raise RuntimeError("no webhook was delivered in the window; %s events were waiting behind it" % left)
	return int(n), end - begin if int(left) > 0 else max(float(last) - begin, 0.001)


def paced(place, name, rate, seconds, events=0):
	"""One round: connections that come due at this rate for so many seconds. Figures of the round."""
	sink = receiver(place) if events else None
	try:
		v, first = prepare(place, name, rate, seconds, events, sink)
		v.start()
		sleep_until(first)
		meter = Meter(daemon=lambda: cpu_us(v.proc.pid), postgres=place.pg_cpu)
		sleep_until(first + seconds)
		used = meter.stop()
		n = v.count("public.due")
		wait_until("all of them to be refreshed", lambda: v.outcomes(name).get("refreshed") == n, 120)
		m = v.metrics()
		hooks = delivered(v, first, first + seconds) if events else None
		if sink and sink.stats()["requests"] == 0:
			raise RuntimeError("the receiver knows of no webhook")
		v.stop()
	finally:
		if sink:
			sink.close()
	committed, replied = measured(place, v, name)
	if len(committed) != n:
		raise RuntimeError("%d of %d were refreshed exactly once" % (len(committed), n))
	out = {"per_s": n / seconds, "p50_ms": percentile(committed, .5), "p99_ms": percentile(committed, .99), "max_ms": committed[-1],
		"answered_p99_ms": percentile(replied, .99), "daemon_cpu_us": used["daemon"] / n, "postgres_cpu_us": used["postgres"] / n,
		"own_p99_ms": histogram_p99(m) or float("inf")}
	if hooks:
		out["webhooks_per_s"] = hooks[0] / hooks[1]
	v.sql("DROP TABLE public.due")
	return out, [percentile(committed, p / 100) for p in CURVE]


def curve(curves):
	"""Middle of the rounds, point by point, for the picture."""
	return [[p, round(parts.statistics.median(c[i] for c in curves), 2)] for i, p in enumerate(CURVE)]


def measure(form):
	rows, curves, most = {}, {}, []
	with parts.Place("lateness", pg={"track_commit_timestamp": "on"}) as place:
		for run in range(form.runs):
			most.append(refreshes.daemon(place, form, run)["per_s"])
			kinds = [(k, s, 0) for k, s in SHARES.items()] + [("half_rate_webhooks", SHARES["half_rate"], form.events)]
			for kind, share, events in kinds if run % 2 == 0 else reversed(kinds):
				r, c = paced(place, "%s-%d" % (kind.replace("_", "-"), run), most[-1] * share, form.paced_s, events)
				rows.setdefault(kind, []).append(r)
				curves.setdefault(kind, []).append(c)
				say("%s of %.0f/s: p50 %.1f ms, p99 %.1f ms late, %.0f CPU-us%s" % (kind, most[-1], r["p50_ms"], r["p99_ms"],
					r["daemon_cpu_us"], "; %.0f webhooks/s" % r["webhooks_per_s"] if events else ""))
	out = {"lateness_" + k: dict(spreads(v), curve_ms=curve(curves[k])) for k, v in rows.items() if k in SHARES}
	hooks = rows["half_rate_webhooks"]
	without = rows["half_rate"]
	out["webhooks"] = dict(spreads([{k: v for k, v in r.items() if k != "webhooks_per_s"} for r in hooks]),
		refreshes_per_s=spread([r["per_s"] for r in hooks], 0), per_s=spread([r["webhooks_per_s"] for r in hooks], 0),
		lateness_p99_ratio=parts.ratio([r["p99_ms"] for r in hooks], [r["p99_ms"] for r in without], 2),
		curve_ms=curve(curves["half_rate_webhooks"]), receivers=1)
	out["lateness_half_rate"]["most_per_s"] = spread(most, 0)
	return out
