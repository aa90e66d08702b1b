"""docs/benchmarks.md and its pictures from the results: targets, tables, and how to read them. Pure functions: the same results always
give the same files, and a test holds the files in git against that.
"""
import plots

INF = float("inf")
# What issue after issue relies on: every one has a spread, or says why it was not measured.
REQUIRED = ("refresh_tls.per_s", "refresh_tls.daemon_cpu_us", "refresh_tls.ratio_to_bare_loop", "node_undici.ratio", "latency_200ms.daemon_cpu_us",
	"lateness_half_rate.p99_ms", "rss_mb.1m", "rss_mb.10m", "first_refresh_s.10m", "cost_ratio.10m_to_10k", "idle.wakeups_per_s",
	"tls_connect.cpu_us", "webhooks.per_s", "import_api.per_s", "import_file.per_s")
PLAIN = ("machine", "date", "commit", "form")
LEAST, MOST = "≥", "≤"
# what, key, which way, bound, unit
TARGETS = (
	("sustained refreshes, endpoint at 0 ms", "refresh_tls.per_s", LEAST, 12000, "/s"),
	("the same over the bare loop", "refresh_tls.ratio_to_bare_loop", LEAST, 0.65, "×"),
	("the daemon's own CPU for a refresh", "refresh_tls.daemon_cpu_us", MOST, 60, "µs"),
	("over the Node script (undici, 64 in flight)", "node_undici.ratio", LEAST, 5, "×"),
	("CPU for a refresh at 200 ms and 50 providers over that at 0 ms", "latency_200ms.ratio_to_0ms", MOST, 1.5, "×"),
	("memory of a TLS connection in flight", "tls_connect.kb_in_flight", MOST, 110, "kB"),
	("HTTP/2, tokens presented again", "http2.presented_again", MOST, 0, ""),
	("lateness p99 at half of the maximum rate", "lateness_half_rate.p99_ms", MOST, 250, "ms"),
	("lateness p99 at a tenth of it", "lateness_tenth_rate.p99_ms", MOST, 50, "ms"),
	("an hour in compressed time: expired", "compressed_hour.expired", MOST, 0, ""),
	("an hour in compressed time: late beyond the margin", "compressed_hour.late_beyond_margin", MOST, 0, ""),
	("memory with 1 M connections in the table", "rss_mb.1m", MOST, 40, "MB"),
	("memory with 10 M connections in the table", "rss_mb.10m", MOST, 120, "MB"),
	("from exec to the first refresh at 10 M connections", "first_refresh_s.10m", MOST, 2, "s"),
	("cost of a refresh among 10 M connections over 10 k", "cost_ratio.10m_to_10k", MOST, 1.25, "×"),
	("idle, wake-ups", "idle.wakeups_per_s", MOST, 1, "/s"),
	("idle, CPU", "idle.cpu_percent", MOST, 0.1, "%"),
	("a new TLS connection, certificate verified", "tls_connect.cpu_us", MOST, 1000, "µs"),
	("webhooks delivered to one receiver while refreshing at half rate", "webhooks.per_s", LEAST, 3000, "/s"),
	("import by the API, 32 clients", "import_api.per_s", LEAST, 10000, "/s"),
	("the same over a trivial HTTP server", "import_api.ratio_to_trivial", LEAST, 0.25, "×"),
	("import by `refreshctl import`, lines", "import_file.per_s", LEAST, 50000, "/s"),
	("Postgres after a run at full rate: tables over their start", "postgres.tables_factor", MOST, 1.5, "×"),
	("the same, indexes", "postgres.indexes_factor", MOST, 1.5, "×"),
	("claims that are HOT updates", "postgres.hot_claims_percent", LEAST, 60, "%"),
	("cost of a claim at the end over the beginning", "postgres.claim_cost_ratio", MOST, 1.2, "×"),
)

BUDGET = ("A third of it is what a bare POST by libcurl over TLS costs, kernel included, and the profile below has no single large part left: libcurl, TLS and sockets two fifths, the allocator a sixth "
	"(mostly libcurl's small blocks), the kernel a third of the time. Done: headers and body in one write, one statement of few parameters for a plain renewal, arrays "
	"unnested in the select list, room on each page so that updates stay there, no JIT, batches for claims, journal and results, URLs and headers and libcurl's handles kept from one request to the next. Tried without gain: "
	"jemalloc and mimalloc (4 % of the daemon), more blocks for each thread's cache (nothing), waiting for larger batches of claims or results (they are 70 to 80 rows already: nothing), 64 instead of 256 "
	"requests in flight (within the noise).")
# What is to be said where a target is not reached: what was tried, and what stands in the way.
SHORT_OF = {
	"refresh_tls.per_s": BUDGET,
	"refresh_tls.daemon_cpu_us": BUDGET,
	"refresh_tls.ratio_to_bare_loop": "The bare loop needs less than half of the CPU of refreshd for a refresh, in its own process and in Postgres: a lease that is committed before anything is sent is one more UPDATE, "
		"the schedule is one more row, and the sealed reply goes through a journal and its own fdatasync first. None of it can be left out without breaking a promise. With both cores busy the rates are as the CPU times.",
	"node_undici.ratio": "With both cores busy, rates are as the CPU of all processes together for one operation. The provider's and Postgres' part of a refresh alone is a fifth of what the script takes with everything, so that five times "
		"its rate would leave the daemon nothing. The script writes no lease and no journal, seals nothing, and loses a token when it is killed.",
	"latency_200ms.ratio_to_0ms": "With two thousand requests in flight the memory of their connections, in the daemon and in the kernel, is many times the processor's caches, libcurl looks through all connections of a provider for a free one, and at a lower rate an answer "
		"more often has a turn of the loop for itself. Four thousand in flight cost more still. What was saved for each request makes the side without latency cheaper by more than this one.",
	"idle.wakeups_per_s": "Polls, heartbeats, upkeep of webhooks and gauges, each in its own time. Some of them share a wake-up when they fall together.",
	"webhooks.per_s": "Beside refreshes at half rate, on the same two cores: a delivery costs a claim, a signed POST, and a record. One receiver gets four requests at once, up to sixteen while it answers quickly; with fewer cores than "
		"processes each round through all of them takes milliseconds. Alone they are three to four times as many.",
	"import_api.ratio_to_trivial": "A trivial server does a fifth of the work: an import is read strictly, sealed, and written to four tables with seven indexes, and its answer waits for the commit. The next group is sealed while the database works and sent before the last one is answered, "
		"so what is left is Postgres: about 35 CPU-us a row and 160 a statement. Two groups at once are no faster, as each is smaller.",
	"import_file.per_s": "Postgres: more than two thirds of the CPU time of a line are its, and the bare COPY of the same rows into the same tables takes most of that as well; an import has to find out first what is there already.",
	"cost_ratio.10m_to_10k": "Nearly all of it is Postgres, whose table is some forty times its shared_buffers here. The rows that are due lie each on pages of its own on purpose, and in the order of the time they are due as in no other: each "
		"poll, claim and result reads pages in and evicts others. Postgres' part doubles, the daemon's grows by a fifth. While what is due within the horizon is loaded after a start it is twice as much again; that is over before the window begins.",
}


# ---------------------------------------------------------------- values

def find(r, key):
	"""What stands at a path of keys; a reason why it was not measured counts for all that is below it. None: nothing."""
	for part in key.split("."):
		if not isinstance(r, dict):
			return None
		if "skipped" in r:
			return r
		r = r.get(part)
	return r


def is_spread(x):
	return isinstance(x, dict) and {"min", "median", "max", "n"} <= set(x) and x["min"] <= x["median"] <= x["max"] and x["n"] >= 1


def is_skipped(x):
	return isinstance(x, dict) and isinstance(x.get("skipped"), str)


def fill_missing(r):
	"""Every key is there: what was never measured says so."""
	for key in REQUIRED:
		if find(r, key) is None:
			place, parts = r, key.split(".")
			for part in parts[:-1]:
				place = place.setdefault(part, {})
			place[parts[-1]] = {"skipped": "not measured yet"}


def problems(r):
	"""What is wrong with results, in words."""
	out = ["%s is missing" % k for k in PLAIN if not isinstance(r.get(k), str)]
	out += ["%s is neither a spread (min, median, max, n) nor says why not" % k for k in REQUIRED if not is_spread(find(r, k)) and not is_skipped(find(r, k))]
	for name, m in r.get("measured", {}).items():
		out += ["measured.%s has no %s" % (name, k) for k in ("date", "commit", "form") if k not in m]
	if not r.get("measured"):
		out.append("measured is missing")
	return out


def middle(x):
	return x["median"] if is_spread(x) else x


def number(x):
	if x in (INF, None):
		return "-"
	return "{:,.0f}".format(x) if abs(x) >= 100 else "{:,.3g}".format(x)


def cell(s):
	"""middle (smallest to largest)"""
	if is_skipped(s):
		return s["skipped"].split("\n")[0]
	if s is None:
		return "not measured yet"
	return "%s (%s to %s)" % (number(s["median"]), number(s["min"]), number(s["max"])) if is_spread(s) else number(s)


def table(head, rows):
	out = ["| %s |" % " | ".join(head), "|%s|" % "|".join("---" for _ in head)]
	return out + ["| %s |" % " | ".join(row) for row in rows] + [""]


def cells(d, *keys):
	return [cell(d.get(k)) for k in keys]


# ---------------------------------------------------------------- sections

INTRO = """# Benchmarks

Generated by `make bench` from `bench/results.json`; do not edit.

How to read it: a figure is the middle of several runs, with the smallest and the largest in brackets. A rate depends on the machine
and on what else it does; a **ratio** compares two things that ran in turns within minutes on the same machine, so that is what can be
held against another machine or an older version. **CPU-µs** is the processor time that one operation takes in one process: it is steadier
than the rate, and 1,000,000 divided by it is what one core could do if it did nothing else. Everything runs on one machine, so the
daemon, Postgres, the provider and the load client share its cores. Postgres is durable (`fsync`, `full_page_writes` and
`synchronous_commit` are on); the provider is the simulator of the tests, over TLS with a certificate that is verified, and answers at once
where nothing else is said.
"""


def verdict(target, x):
	_, _, way, bound, _ = target
	if x is None or is_skipped(x):
		return "not measured"
	x = middle(x)
	return "yes" if (x >= bound if way == LEAST else x <= bound) else "**no**"


def targets(r):
	rows = []
	for t in TARGETS:
		what, key, way, bound, unit = t
		x = find(r, key)
		rows.append([what, "%s %s %s" % (way, number(bound) if bound else "0", unit), cell(x), verdict(t, x), "`%s`" % key])
	return ["## Targets", "", "Reached says what the middle of the runs does. Nothing is switched off for any of them.", ""] + table(
		["what", "target", "measured", "reached", "key"], rows) + ["![each figure over its target](benchmarks-targets.svg)", ""] + short_of(r)


def short_of(r):
	said = {}
	for t in TARGETS:
		if verdict(t, find(r, t[1])) == "**no**" and t[1] in SHORT_OF:
			said.setdefault(SHORT_OF[t[1]], []).append("`%s`" % t[1])
	if not said:
		return []
	return ["What was not reached, and what stands in the way:", ""] + ["- %s: %s" % (", ".join(keys), why) for why, keys in said.items()] + [""]


def noise(r):
	out = ["## The machine", "", "%s." % r["machine"], "",
		"How busy it was: the load average (processes that run or want to, one minute) before and after each measurement, of which the measurement's own work is a part "
		"only afterwards, and the share of the time that the hypervisor took away meanwhile. On %d cores a load of more than about a half before a "
		"measurement means that its rates are too small; its ratios and CPU times suffer less." % (r.get("cores") or 2), ""]
	rows = []
	for k, m in sorted(r["measured"].items(), key=lambda x: x[1]["date"]):
		rows.append([k, m["date"], "`%s`" % m["commit"][:12] + (" with changes" if m["commit"].endswith("changes") else ""), m["form"],
			number(m.get("seconds")), *(number(m[x][0]) if x in m else "-" for x in ("load_before", "load_after")),
			number(m["stolen_percent"]) if "stolen_percent" in m else "-"])
	return out + table(["measurement", "date", "commit", "form", "took s", "load before", "after", "stolen %"], rows)


def refreshes(r):
	d = r["refresh_tls"]
	b, ends = d.get("bare_loop") or {}, d.get("bare_pieces") or {}
	out = ["## Refresh", "",
		"%s connections that are due all the time, at most %d in flight." % (number(d["connections"]), d["in_flight"]), "",
		"The **bare loop** (`bench/bare_loop.c`%s) is a refresh without any care, over as many rows with tokens as long, on the same Postgres and against the same "
		"provider. On one loop it claims rows by a SELECT, opens their refresh tokens, POSTs them, parses the answers, seals both new tokens and writes them back by one UPDATE "
		"a batch, committed to disk. What it leaves out is what refreshd is for: a lease and a fence against others, the journal that saves an answer which the database did not take, "
		"the schedule in the database, outbox and webhooks, budgets, retries, metrics, logs, a resolver, checks of addresses, several providers and clients. It ends at the first "
		"thing that goes wrong. %sEvery answer has to be a 200 with a rotated token, every row written, and the provider has to have counted as many." % (in_flight(b), tried(b)), "",
		"The **pieces** are its two ends alone, side by side: one program only POSTs tokens by libcurl and throws the answers away%s; the other only writes rows of the same size, 256 in a "
		"transaction. Nothing is claimed, opened, parsed or sealed there, and neither waits for the other: a ceiling, not a rival." % in_flight(ends), ""]
	out += table(["", "rate /s", "own CPU-µs", "Postgres CPU-µs", "provider CPU-µs"], [
		["refreshd", *cells(d, "per_s", "daemon_cpu_us", "postgres_cpu_us", "simulator_cpu_us")],
		["bare loop", *cells(b, "per_s", "cpu_us", "postgres_cpu_us", "simulator_cpu_us")],
		["**refreshd / bare loop**", "**%s**" % cell(d.get("ratio_to_bare_loop")), "", "", ""],
		["pieces: only POSTs beside only writes", cell(ends.get("per_s")), "%s + %s" % (cell(ends["post_cpu_us"]), cell(ends["write_cpu_us"])) if ends else cell(None),
			*cells(ends, "postgres_cpu_us", "simulator_cpu_us")],
		["refreshd / pieces", cell(d.get("ratio_to_bare_pieces")), "", "", ""]])
	return out + ["![CPU time of one refresh, by process](benchmarks-cpu.svg)", ""]


def tried(d):
	all_of_them = ", ".join("%s gave %s /s" % (n, cell(x)) for n, x in sorted(d.get("tried", {}).items(), key=lambda x: int(x[0])))
	return "Of the numbers in flight the fastest counts: %s. " % all_of_them if all_of_them else ""


def in_flight(d):
	return ", %d in flight" % d["in_flight"] if "in_flight" in d else ""


def profile(r):
	d = r["profile"]

	def rows(figures):
		return [[k, number(n), "%.0f %%" % (100 * n / d["total"])] for k, n in sorted(figures.items(), key=lambda x: -x[1])]
	out = ["## Where it goes", "", "Instructions of the daemon for one refresh, its libraries included, counted by callgrind over %s refreshes on connections that are "
		"open already. What the kernel does for it is not in them: at a full rate that is about a quarter of the daemon's CPU time more. `make guard` holds "
		"the sum against a recorded one. %s allocations are among them." % (number(d["refreshes"]), number(d["allocations"])), ""]
	out += table(["step, with all that is below it", "instructions", ""], rows(d["steps"]))
	return out + table(["by file", "instructions", ""], rows(d["instructions"]))


def latency(r):
	d = r["latency_200ms"]
	q = d["at_0ms"]
	out = ["## Providers that take their time", "",
		"%d providers, each under a name of its own. In flight is what the configuration allows: %s when they answer after 200 ms, 256 when they answer at once. "
		"%s of the daemon's memory is one TLS connection in flight (the difference of both, by connection)." % (d["providers"],
			number(d["allowed_in_flight"]), cell(find(r, "tls_connect.kb_in_flight")) + " kB"), ""]
	keys = ("per_s", "daemon_cpu_us", "postgres_cpu_us", "in_flight", "connections")
	return out + table(["", "rate /s", "own CPU-µs", "Postgres CPU-µs", "in flight", "connections"], [
		["at 200 ms", *cells(d, *keys)], ["at 0 ms", *cells(q, *keys)],
		["**200 ms / 0 ms**", "", "**%s**" % cell(d["ratio_to_0ms"]), "", "", ""]])


def peers(r):
	h, t = r["http2"], r["tls_connect"]
	if is_skipped(h):
		return ["## HTTP/2 and new connections", "", "Not measured: %s." % h["skipped"], ""]
	out = ["## HTTP/2 and new connections", "",
		"nginx in front of the simulator, because that speaks HTTP/1.1 only. nginx ends a connection after %s requests (GOAWAY), and in one round it was also reloaded %d times under load. "
		"Of %s presentations that the provider's ledger has for HTTP/2, **%d** were of a token that had been answered already or was presented elsewhere at that moment; %d refreshes of "
		"the round with reloads had to be tried again later." % (number(h["stream_life"]), h["reloads"], number(h["presented"]), h["presented_again"],
			h["churn_other_outcomes"]), "",
		"A new TLS connection for each request (no keep-alive, nothing to resume, the system's roots in the bundle) takes %s CPU-µs more of the daemon "
		"than a kept one: connecting, the handshake and the certificate." % cell(t["cpu_us"]), ""]
	keys = ("per_s", "daemon_cpu_us", "postgres_cpu_us", "peer_cpu_us", "connections")
	return out + table(["", "rate /s", "own CPU-µs", "Postgres CPU-µs", "nginx and provider CPU-µs", "connections"], [
		["HTTP/2", *cells(h, *keys)], ["HTTP/1.1, kept", *cells(h["h1"], *keys)], ["HTTP/1.1, new each time", *cells(t["new"], *keys)],
		["**HTTP/2 / HTTP/1.1**", "**%s**" % cell(h["ratio_to_h1"]), "**%s**" % cell(h["cpu_ratio_to_h1"]), "", "", ""]])


def lateness(r):
	half, tenth, hooks = r["lateness_half_rate"], r["lateness_tenth_rate"], r["webhooks"]
	out = ["## Lateness and webhooks", "",
		"Connections that come due evenly, each once, at half and at a tenth of the rate that was measured a moment before (%s/s). Late is the time from its due "
		"time as it stood in the table before the start to the commit of the new token, by Postgres' own record of the transaction; \"answered\" is by the provider's ledger; "
		"the daemon's is the same percentile of its own histogram, which has few steps. In the last row events for one receiver wait in the outbox all the time; webhooks "
		"are counted by their records in the window." % cell(half["most_per_s"]), ""]
	keys = ("p50_ms", "p99_ms", "max_ms", "answered_p99_ms", "own_p99_ms", "daemon_cpu_us", "postgres_cpu_us")
	out += table(["", "refreshes /s", "p50 ms", "p99 ms", "max ms", "answered p99 ms", "p99 by the daemon", "own CPU-µs a refresh", "Postgres CPU-µs", "webhooks /s"], [
		["a tenth", cell(tenth["per_s"]), *cells(tenth, *keys), ""], ["half", cell(half["per_s"]), *cells(half, *keys), ""],
		["half, with webhooks", cell(hooks["refreshes_per_s"]), *cells(hooks, *keys), "**%s**" % cell(hooks["per_s"])]])
	return out + ["With webhooks the 99th percentile is %s times what it is without, in the same round." % cell(hooks["lateness_p99_ratio"]), "",
		"![how late refreshes are](benchmarks-lateness.svg)", ""]


def hour(r):
	d = r["compressed_hour"]
	out = ["## An hour of many connections", "",
		"%s connections with lives of %d s and a margin of %d s, over %d s: what is compressed is the life (%s times), not the clock, so the load is as many times that of "
		"real hours, and an answer, a commit or a poll is as many times larger against the margin. %s were to be expected to come due." % (number(d["connections"]), d["life_s"],
			d["margin_s"], d["seconds"], number(d["compressed"]), number(d["expected"])), ""]
	return out + table(["", ""], [
		["refreshes", number(d["refreshes"])], ["rate /s", cell(d["per_s"])], ["tokens that had ended when their successor was committed", cell(d["late_beyond_margin"])],
		["rows that had ended, at the end", cell(d["expired"])], ["least that was left of a life when its successor was handed out, %", cell(d["least_life_left_percent"])],
		["committed within a second of being due, %", cell(d["within_1s_percent"])], ["own CPU-µs", cell(d["daemon_cpu_us"])], ["Postgres CPU-µs", cell(d["postgres_cpu_us"])],
		["resident memory, MB", cell(d["rss_mb"])]])


def tables(r):
	names = [n for n in ("1m", "10m") if n in r.get("cost", {})]
	out = ["## Large tables", "",
		"The connections of the table are due evenly over an hour; what of it lies within the default horizon of five minutes (a twelfth) is in memory. The start is from exec to the first answer "
		"that the provider gave. The cost of a refresh is that of the daemon and of Postgres, with 10,000 connections due all the time that lie scattered among the others, "
		"in turns with a table that holds these alone; each of them had been written since the checkpoint, so images of whole pages in the log are not part of it.", ""]
	head, rows = ["connections", "in memory", "resident MB", "first refresh s", "CPU-µs daemon + Postgres", "the same among 10 k", "ratio"], []
	for n in names:
		c = r["cost"][n]
		rows.append([{"1m": "1,000,000", "10m": "10,000,000"}[n], cell(r["loaded_at_start"][n]), cell(r["rss_mb"][n]), cell(r["first_refresh_s"][n]),
			cell(c["large"]["both_cpu_us"]), cell(c["small"]["both_cpu_us"]), "**%s**" % cell(r["cost_ratio"]["%s_to_10k" % n])])
	return out + table(head, rows)


def postgres(r):
	d = r["postgres"]
	out = ["## Postgres after a run at full rate", "",
		"%s connections, refreshed for %d s as fast as it goes: each row was rewritten %s times. The start is a table without any room but that of its fillfactor (VACUUM FULL). "
		"autovacuum_naptime is %d s: scaled by the rows, so that autovacuum looks as often a rewrite as it would in a table of a million. A claim is the only HOT update of `schedule`: the other one "
		"moves the due time, which is indexed." % (number(d["rows"]), d["seconds"], cell(d["rewritten"]), d["naptime_s"]), ""]
	out += table(["", ""], [["all tables over their start", cell(d["tables_factor"])], ["all indexes over their start", cell(d["indexes_factor"])],
		["claims that were HOT, %", cell(d["hot_claims_percent"])], ["updates of `credential` that were HOT, %", cell(d["hot_credential_percent"])],
		["a claimed row in the last sixth, µs in Postgres", cell(d["claim_us"])], ["the same over the first sixth", cell(d["claim_cost_ratio"])],
		["pages that a claimed row touches, last over first sixth", cell(d["claim_blocks_ratio"])]])
	return out + table(["relation (of 1 MB and more at the start)", "largest size over the start"], [["`%s`" % k, cell(x)] for k, x in sorted(d["factors"].items())])


def imports(r):
	a, f = r["import_api"], r["import_file"]
	t = a["trivial"]
	out = ["## Import", "",
		"%s connections into empty tables, each answered after its commit, by %d clients that keep their connection. The trivial server is libevent's own HTTP "
		"server, which reads the same bodies and answers a few words." % (number(a["connections"]), a["clients"]), ""]
	out += table(["", "rate /s", "server CPU-µs", "Postgres CPU-µs", "p50 ms", "p99 ms"], [
		["API", *cells(a, "per_s", "daemon_cpu_us", "postgres_cpu_us", "p50_ms", "p99_ms")],
		["trivial server", *cells(t, "per_s", "server_cpu_us"), "", *cells(t, "p50_ms", "p99_ms")],
		["**API / trivial**", "**%s**" % cell(a["ratio_to_trivial"]), "", "", "", ""],
		["`refreshctl import`, lines", *cells(f, "per_s", "ctl_cpu_us", "postgres_cpu_us"), "", ""]] +
		([["bare `COPY` of its rows", *cells(f["bare_copy"], "per_s"), "", *cells(f["bare_copy"], "postgres_cpu_us"), "", ""],
			["**import / bare `COPY`**", "**%s**" % cell(f["ratio_to_bare_copy"]), "", "", "", ""]] if "bare_copy" in f else []))
	return out + ["By its own CPU time `refreshctl import` could read %s lines/s; the rest is Postgres. The bare `COPY` puts the same rows into "
		"four tables of the same shape with the same indexes, and has nothing to find out first%s." % (cell(f["own_per_s"]),
		"; half of them over each of %d connections, as the import" % f["bare_copy"]["connections"] if "connections" in f.get("bare_copy", {}) else ""), ""]


def naive(r):
	rows = []
	out = ["## Against a script", "",
		"Node with undici and pg: select what is due, POST, UPDATE by id, over one plain table without lease, fence, journal or sealing. The ratio is "
		"refreshd's rate over the script's in the same round; the CPU ratio is the script's CPU time over the daemon's.", ""]
	for key, name in (("node_undici", "64 in flight"), ("node_sequential", "one after the other")):
		d = r[key]
		if is_skipped(d):
			rows.append([name, "not measured: " + d["skipped"].split("\n")[0], "", "", "", ""])
		else:
			rows.append([name, *cells(d, "per_s", "cpu_us", "postgres_cpu_us"), "**%s**" % cell(d["ratio"]), "**%s**" % cell(d["ratio_cpu"])])
	return out + table(["", "rate /s", "CPU-µs", "Postgres CPU-µs", "refreshd is so many times faster", "and takes so many times less CPU"], rows)


def idle(r):
	i = r["idle"]
	return ["## Nothing to do", "", "%s connections in the table, none of them due for a while; %s s at rest." % (number(r.get("rows", 0)), number(i["seconds"])), ""] + table(["", ""], [
		["wake-ups a second, all threads", cell(i["wakeups_per_s"])], ["CPU, % of a core", cell(i["cpu_percent"])]])


# In the order of the page: what has to be there for it, and who writes it.
SECTIONS = (("refresh_tls.connections", refreshes), ("profile.steps", profile), ("node_sequential", naive), ("latency_200ms.at_0ms", latency), ("http2", peers), ("lateness_half_rate.most_per_s", lateness),
	("compressed_hour", hour), ("cost", tables), ("idle.seconds", idle), ("import_api.trivial", imports), ("postgres", postgres))


def page(r):
	out = [INTRO] + targets(r)
	for key, section in SECTIONS:
		if find(r, key) is not None and not (is_skipped(find(r, key)) and section not in (naive, peers)):
			out += section(r)
	return "\n".join(out + noise(r)).rstrip("\n") + "\n"


def files(r):
	"""Path below the top folder -> text."""
	return {"docs/benchmarks.md": page(r), "docs/benchmarks-targets.svg": plots.targets([(t[0], t[2], t[3], t[4], find(r, t[1])) for t in TARGETS
		if t[3] and is_spread(find(r, t[1]))]), "docs/benchmarks-cpu.svg": plots.cpu(bars(r)), "docs/benchmarks-lateness.svg": plots.lateness(curves(r))}


def bars(r):
	"""(name, [(process, CPU-us)])"""
	out = []
	d = r.get("refresh_tls", {})
	for p, name, own in ((d, "refreshd", "daemon_cpu_us"), (d.get("bare_loop", {}), "bare loop", "cpu_us")):
		if {own, "postgres_cpu_us", "simulator_cpu_us"} <= p.keys():
			out.append((name, [("own", middle(p[own])), ("Postgres", middle(p["postgres_cpu_us"])), ("provider", middle(p["simulator_cpu_us"]))]))
	for key, name in (("node_undici", "Node, 64 in flight"),):
		if {"cpu_us", "postgres_cpu_us"} <= r.get(key, {}).keys():
			out.append((name, [("own", middle(r[key]["cpu_us"])), ("Postgres", middle(r[key]["postgres_cpu_us"]))]))
	return out


def curves(r):
	"""(name, [[percentile, ms]], the target of its 99th percentile or None)"""
	named = (("lateness_tenth_rate", "a tenth of the rate", 50), ("lateness_half_rate", "half of the rate", 250), ("webhooks", "half, with webhooks", None))
	return [(name, r[key]["curve_ms"], bound) for key, name, bound in named if "curve_ms" in r.get(key, {})]
