"""Refreshes a second under a backlog that does not end, against two bare loops: one that only asks the provider, and beside it one
that only writes tokens back. Both sides speak TLS with a verified certificate. The daemon counts a refresh as in flight from its claim to
its commit, so it is allowed more of them than the bare loop, which is fastest with 64.
"""
import os
import time

import parts
from parts import AT_BYTES, RT_BYTES, Meter, cpu_us, load_json, ratio, say, spawn, spread, tool, wait_until

IN_FLIGHT, BARE_IN_FLIGHT = 256, 64
SEALED_EXTRA = 50  # what sealing adds to a token
LIFE_S = 4         # due again after half of it: more than any machine refreshes


def refreshed(v):
	return v.metrics().get("refreshes_total", provider="tls", outcome="refreshed") or 0


def daemon(place, form, run):
	"""Refreshes in a window of seconds while everything is due all the time."""
	place.realm("tls", at_ttl=LIFE_S)
	v = place.vault("tls%d" % run, "tls", {"max_in_flight": IN_FLIGHT}, refresh={"max_in_flight": IN_FLIGHT})
	v.conf["log"]["level"] = "warning"  # a line for each would be about the log
	v.write_conf()
	v.import_lines(place.sim.mint("tls", form.connections, expires_in=1, issued_ago=3600))
	# As a table that has been there for an hour: what the import had to tell is told, and the planner knows its size.
	v.sql("DELETE FROM refreshd.event")
	v.sql("VACUUM ANALYZE")
	place.settle()
	v.start()
	wait_until("the first tenth", lambda: refreshed(v) > form.connections / 10, 120)
	began = refreshed(v)
	meter = Meter(daemon=lambda: cpu_us(v.proc.pid), postgres=place.pg_cpu, simulator=place.sim_cpu)
	time.sleep(form.window_s)
	n = refreshed(v) - began
	used = meter.stop()
	others = {k: c for k, c in v.outcomes("tls").items() if k != "refreshed"}
	v.stop()
	if others:
		raise RuntimeError("not every refresh went well: %s" % others)
	return dict({k + "_cpu_us": us / n for k, us in used.items()}, per_s=n / meter.seconds)


def bare(place, form, run):
	"""Both loops at once, until both are through; their rate is that of the slower one."""
	n = form.connections
	realm, path = "bare%d" % run, os.path.join(place.dir, "tokens")
	place.realm(realm)
	with open(path, "w") as f:
		for x in place.sim.mint(realm, n):
			f.write(x["credentials"]["refresh_token"] + "\n")
	pipes = {"stdin": parts.subprocess.PIPE, "stdout": parts.subprocess.PIPE}
	loops = {
		"write": spawn([tool("bare_write"), place.pg.url(), str(n), "256", str(AT_BYTES + SEALED_EXTRA), str(RT_BYTES + SEALED_EXTRA)], **pipes),
		"post": spawn([tool("bare_post"), str(BARE_IN_FLIGHT), place.tls["ca"], place.sim.url(realm), "client:" + parts.w.CLIENT_SECRET, path],
			**pipes),
	}
	try:
		for name, p in loops.items():
			if p.stdout.readline() != "ready\n":
				raise RuntimeError("bare_%s does not get ready" % name)
		place.settle()
		meter = Meter(postgres=place.pg_cpu, simulator=place.sim_cpu)
		for p in loops.values():
			p.stdin.write("\n")
			p.stdin.flush()
		said = {name: p.stdout.readline() for name, p in loops.items()}
		for name, p in loops.items():
			if p.wait(600) != 0 or not said[name]:
				raise RuntimeError("bare_%s ended with %d" % (name, p.returncode))
	finally:
		for p in loops.values():
			p.kill()
			p.wait()
			p.stdin.close()
			p.stdout.close()
	used = meter.stop()
	figures = {name: load_json(text) for name, text in said.items()}
	return dict({k + "_cpu_us": us / n for k, us in used.items()}, post_per_s=figures["post"]["per_s"],
		write_per_s=figures["write"]["per_s"], post_cpu_us=figures["post"]["cpu_us"], write_cpu_us=figures["write"]["cpu_us"],
		per_s=n / max(f["seconds"] for f in figures.values()))


def table(rows):
	return {k: spread([r[k] for r in rows], 0 if k.endswith("per_s") else 1) for k in sorted(rows[0])}


def measure(form):
	ours, limits = [], []
	with parts.Place("refresh") as place:
		for run in range(form.runs):
			limits.append(bare(place, form, run))
			ours.append(daemon(place, form, run))
			say("%.0f refreshes/s at %.1f CPU-us of the daemon; bare loops: %.0f/s" % (ours[-1]["per_s"], ours[-1]["daemon_cpu_us"],
				limits[-1]["per_s"]))
	return {"refresh_tls": dict(table(ours), connections=form.connections, in_flight=IN_FLIGHT, bare_in_flight=BARE_IN_FLIGHT, bare=table(limits),
		ratio_to_bare_loop=ratio([r["per_s"] for r in ours], [r["per_s"] for r in limits]))}
