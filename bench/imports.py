"""Import of connections: through the API with 32 kept connections, in turns with a trivial server; and by refreshctl."""
import contextlib
import json
import os

import parts
from parts import Meter, cpu_us, free_port, load_json, output, ratio, running, say, spread, tool

CLIENTS = 32


def write_bodies(place, path, run, n):
	"""n lines "consumer<TAB>body", each a connection of its own."""
	lines = place.sim.mint("imp", n)
	with open(path, "w") as f:
		for x in lines:
			body = {"credentials": x["credentials"], "metadata": {"plan": "gold", "run": run}}
			f.write("r%d-%s\t%s\n" % (run, x["consumer_id"], json.dumps(body)))
	return lines


def post(port, path, bodies, key=None):
	head = ["-H", "Authorization: Bearer " + key, "-H", "x-apideck-app-id: app"] if key else []
	d = load_json(output([tool("load"), "-c", str(CLIENTS), "-L", "x-apideck-consumer-id"] + head +
		["127.0.0.1:%d" % port, path, bodies]))
	if set(d["statuses"]) != {"200"}:
		raise RuntimeError("not every import was answered 200: %s" % d["statuses"])
	return d


def measured(run, **readers):
	"""What the client says, with CPU-microseconds a request of the servers."""
	meter = Meter(**readers)
	d = run()
	for name, us in meter.stop().items():
		d[name + "_cpu_us"] = us / d["n"]
	return d


def column(rows, name, digits=1):
	return spread([r[name] for r in rows], digits)


def api(place, runs, n):
	port = free_port()
	v = place.vault("api", "imp", api={"listen": "127.0.0.1:%d" % port, "rate": "unlimited"})
	v.ctl("app", "add", "app")
	key = json.loads(v.ctl("--json", "key", "add", "app", "--scope", "connections:write").stdout)["key"]
	v.start()
	ours, trivial = [], []
	bodies = os.path.join(place.dir, "bodies")
	with running([tool("trivial")], stdout=parts.subprocess.PIPE) as server:
		trivial_port = json.loads(server.stdout.readline())["port"]
		for run in range(runs):
			write_bodies(place, bodies, run, n)
			v.sql("TRUNCATE refreshd.connection, refreshd.credential, refreshd.schedule, refreshd.event, refreshd.delivery")
			place.settle()
			trivial.append(measured(lambda: post(trivial_port, "/trivial", bodies), server=lambda: cpu_us(server.pid)))
			ours.append(measured(lambda: post(port, "/vault/connections/accounting/imp/import", bodies, key),
				server=lambda: cpu_us(v.proc.pid), postgres=place.pg_cpu))
			say("import by the API: %.0f/s, trivial server: %.0f/s" % (ours[-1]["per_s"], trivial[-1]["per_s"]))
			stored = v.count("refreshd.connection")
			if stored != n:
				raise RuntimeError("%d connections are stored, %d were imported" % (stored, n))
	v.stop()
	return {
		"connections": n, "clients": CLIENTS,
		"per_s": column(ours, "per_s", 0),
		"ratio_to_trivial": ratio([r["per_s"] for r in ours], [r["per_s"] for r in trivial]),
		"p50_ms": spread([r["p50_us"] / 1000 for r in ours], 2), "p99_ms": spread([r["p99_us"] / 1000 for r in ours], 2),
		"daemon_cpu_us": column(ours, "server_cpu_us"), "postgres_cpu_us": column(ours, "postgres_cpu_us"),
		"client_cpu_us": column(ours, "cpu_us"),
		"trivial": {"per_s": column(trivial, "per_s", 0), "server_cpu_us": column(trivial, "server_cpu_us"),
			"p50_ms": spread([r["p50_us"] / 1000 for r in trivial], 2), "p99_ms": spread([r["p99_us"] / 1000 for r in trivial], 2)},
	}


TABLES = ("schedule", "connection", "credential", "event")
CONNECTIONS = 2  # as many as the import has for what it writes


class BareCopy:
	"""The least that the same rows cost: a COPY of their bytes into tables of the same shape, with the same indexes, half of them over
	each connection."""

	def __init__(self, place, v):
		self.place, self.v = place, v
		v.sql("CREATE SCHEMA bare;" + "".join("CREATE TABLE bare.%s (LIKE refreshd.%s INCLUDING ALL);" % (t, t) for t in TABLES))

	def psql(self, *commands):
		argv = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1"]
		for c in commands:
			argv += ["-c", c]
		output(argv + [self.v.conf["database"]["url"]])

	def copies(self, k):
		"""Begins the k-th part of each table, one after the other."""
		argv = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", self.v.conf["database"]["url"]]
		return parts.running(argv + [a for t in TABLES for a in ("-c", "\\copy bare.%s FROM '%s' WITH (FORMAT binary)" % (t, self.path(t, k)))])

	def path(self, table, k):
		return os.path.join(self.place.dir, "bare-%s-%d" % (table, k))

	def run(self, run):
		"""The rows of one run of the import, once more; seconds and Postgres' CPU-microseconds."""
		of_run = "connection_id IN (SELECT connection_id FROM refreshd.connection WHERE consumer_id LIKE 'f%d-%%' AND slot %% {} = {})" % run
		# Postgres takes these for a few rows, and a plan for a few takes minutes.
		self.psql("SET enable_nestloop = off", *("\\copy (SELECT * FROM refreshd.%s WHERE %s) TO '%s' WITH (FORMAT binary)" % (t, of_run.format(CONNECTIONS, k), self.path(t, k))
			for t in TABLES for k in range(CONNECTIONS)))
		self.place.settle()
		meter = Meter(postgres=self.place.pg_cpu)
		with contextlib.ExitStack() as all_of_them:
			for p in [all_of_them.enter_context(self.copies(k)) for k in range(CONNECTIONS)]:
				if p.wait() != 0:
					raise RuntimeError("a bare COPY failed")
		used = meter.stop()
		return meter.seconds, used["postgres"]


def by_file(place, runs, n):
	v = place.vault("file", "imp")
	v.ctl("app", "add", "app")
	path = os.path.join(place.dir, "lines")
	bare = BareCopy(place, v)
	rates, own, postgres, bare_rates, bare_postgres = [], [], [], [], []
	for run in range(runs):
		with open(path, "w") as f:
			for x in place.sim.mint("imp", n):
				f.write(json.dumps(dict(x, consumer_id="f%d-%s" % (run, x["consumer_id"]))) + "\n")
		place.settle()
		before = parts.os.times()
		meter = Meter(postgres=place.pg_cpu)
		v.ctl("import", path, timeout_s=600)
		used = meter.stop()
		after = parts.os.times()
		own.append((after.children_user + after.children_system - before.children_user - before.children_system) * 1e6 / n)
		postgres.append(used["postgres"] / n)
		rates.append(n / meter.seconds)
		seconds, us = bare.run(run)
		bare_rates.append(n / seconds)
		bare_postgres.append(us / n)
		say("refreshctl import: %.0f lines/s, %.1f CPU-us a line of its own, %.1f of Postgres; bare COPY: %.0f/s, %.1f of Postgres" %
			(rates[-1], own[-1], postgres[-1], bare_rates[-1], bare_postgres[-1]))
	stored = v.count("refreshd.connection")
	if stored != runs * n or v.count("bare.connection") != stored:
		raise RuntimeError("%d connections are stored, %d were imported" % (stored, runs * n))
	return {"lines": n, "per_s": spread(rates, 0), "own_per_s": spread([1e6 / us for us in own], 0), "ctl_cpu_us": spread(own),
		"postgres_cpu_us": spread(postgres), "ratio_to_bare_copy": ratio(rates, bare_rates),
		"bare_copy": {"connections": CONNECTIONS, "per_s": spread(bare_rates, 0), "postgres_cpu_us": spread(bare_postgres)}}


def measure(form):
	with parts.Place("import") as place:
		place.realm("imp")
		return {"import_api": api(place, form.runs, form.imports), "import_file": by_file(place, form.runs, form.imports)}
