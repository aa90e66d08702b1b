"""Fifty providers, each under a name of its own: what a refresh costs when they answer after 200 ms, against the same when they answer
at once. In flight is what the configuration allows and nothing else: what the rate needs at that latency. The memory of a connection in flight is the
difference of both, connection by connection.
"""
import parts
from parts import ratio, say, spread, spreads, status_of

PROVIDERS = parts.NAMES
DELAY_MS = 200
LIFE_S = 4
IN_FLIGHT = {0: 256, DELAY_MS: 2000}  # 2000 in flight, answered after 0.2 s, are 10,000 a second at most


def make(place, name, delay_ms, connections):
	names = ["%s-%d" % (name, i) for i in range(PROVIDERS)]
	for n in names:
		place.realm(n, at_ttl=LIFE_S, delay_ms=delay_ms)
	v = place.vault(name, names, {"max_in_flight": max(1, IN_FLIGHT[delay_ms] // PROVIDERS)}, refresh={"max_in_flight": IN_FLIGHT[delay_ms]},
		dns={"resolv_conf": place.resolv_conf})
	for i, n in enumerate(names):
		v.conf["providers"][n]["token_url"] = "https://%s:%d/%s/token" % (parts.host_name(i), place.sim.port, n)
	v.conf["log"]["level"] = "warning"
	v.write_conf()
	lines = []
	for n in names:
		lines += place.sim.mint(n, connections // PROVIDERS, expires_in=1, issued_ago=3600)
	v.import_lines(lines)
	parts.as_an_old_table(v)
	place.settle()
	return v


def round_of(place, name, delay_ms, form):
	v = make(place, name, delay_ms, form.connections)
	most = {"in_flight": 0, "connections": 0, "rss_kb": 0}

	def watch():
		most["in_flight"] = max(most["in_flight"], v.metrics().get("refresh_in_flight"))
		most["connections"] = max(most["connections"], place.sim.stats()["connections_open"] - others)
		most["rss_kb"] = max(most["rss_kb"], status_of(v.proc.pid, "VmRSS"))

	others = place.sim.stats()["connections_open"]
	v.start()
	# Not before the connections are made: a handshake costs as much as many refreshes.
	d = parts.flood(v, max(form.connections / 10, 3 * IN_FLIGHT[delay_ms]), form.window_s, {"postgres": place.pg_cpu, "simulator": place.sim_cpu}, watch)
	parts.must_be_well(v)
	v.stop()
	return dict(d, **most)


def measure(form):
	rows = {delay: [] for delay in IN_FLIGHT}
	with parts.Place("latency", dns=True) as place:
		for run in range(form.runs):
			for delay in sorted(IN_FLIGHT, reverse=run % 2 == 1):
				r = round_of(place, "l%d-%d" % (delay, run), delay, form)
				rows[delay].append(r)
				say("%d providers at %d ms: %.0f/s at %.1f CPU-us, %d in flight over %d connections, %.0f MB" % (PROVIDERS, delay, r["per_s"],
					r["daemon_cpu_us"], r["in_flight"], r["connections"], r["rss_kb"] / 1024))
	slow, quick = rows[DELAY_MS], rows[0]
	each = [(s["rss_kb"] - q["rss_kb"]) / (s["connections"] - q["connections"]) for s, q in zip(slow, quick)
		if s["connections"] > q["connections"]]
	out = {"latency_200ms": dict(spreads(slow), ratio_to_0ms=ratio([s["daemon_cpu_us"] for s in slow], [q["daemon_cpu_us"] for q in quick], 2),
		at_0ms=spreads(quick), providers=PROVIDERS, allowed_in_flight=IN_FLIGHT[DELAY_MS])}
	if each:
		out["tls_connect"] = {"kb_in_flight": spread(each)}
	return out
