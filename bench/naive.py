"""What a script does instead: Node with undici and pg, 64 in flight or one after the other, in turns with the daemon.

Node and npm are needed; the packages of naive/package-lock.json are fetched once into the build folder.
"""
import os
import shutil
import subprocess

import parts
import refreshes
from parts import HERE, Meter, load_json, output, ratio, say, spread

FOLDER = os.path.join(parts.w.BUILD, "bench", "npm")
TABLE = """DROP TABLE IF EXISTS naive_token; CREATE TABLE naive_token (id bigint PRIMARY KEY, access_token text, refresh_token text,
	due_at timestamptz); CREATE INDEX ON naive_token (due_at)"""


def install():
	"""None, or why it cannot be measured."""
	for program in ("node", "npm"):
		if shutil.which(program) is None:
			return "%s is not installed" % program
	os.makedirs(FOLDER, exist_ok=True)
	for name in ("package.json", "package-lock.json", "naive.mjs"):
		shutil.copyfile(os.path.join(HERE, "naive", name), os.path.join(FOLDER, name))
	if os.path.isdir(os.path.join(FOLDER, "node_modules", "undici")):
		return None
	done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=FOLDER, stdin=subprocess.DEVNULL,
		stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
	return None if done.returncode == 0 else "npm ci failed: " + done.stdout[-800:]


def script(place, width, form, run):
	realm = "n%d-%d" % (width, run)
	place.realm(realm)
	place.pg.psql(TABLE)
	lines = place.sim.mint(realm, 40000 if width > 1 else 10000)
	place.pg.psql("COPY naive_token FROM stdin;\n" + "".join("%d\t%s\t%s\t2020-01-01\n" % (i, x["credentials"]["access_token"],
		x["credentials"]["refresh_token"]) for i, x in enumerate(lines)) + "\\.\nVACUUM ANALYZE naive_token")
	place.settle()
	meter = Meter(postgres=place.pg_cpu)
	url = "postgresql://postgres@localhost/postgres?host=%s&port=%d" % (place.pg.sock, place.pg.port)
	d = load_json(output(["node", "naive.mjs", str(width), str(form.naive_s), place.sim.url(realm), place.tls["ca"], "client",
		parts.w.CLIENT_SECRET, url], cwd=FOLDER))
	return dict(d, postgres_cpu_us=meter.stop()["postgres"] / d["n"])


def table(rows, ours):
	return {"per_s": spread([r["per_s"] for r in rows], 0), "cpu_us": spread([r["cpu_us"] for r in rows]),
		"postgres_cpu_us": spread([r["postgres_cpu_us"] for r in rows]),
		"ratio": ratio([r["per_s"] for r in ours], [r["per_s"] for r in rows], 1),
		"ratio_cpu": ratio([r["cpu_us"] for r in rows], [r["daemon_cpu_us"] for r in ours], 1)}


def measure(form):
	why = install()
	if why:
		say("not measured: " + why)
		return {"node_undici": {"skipped": why}, "node_sequential": {"skipped": why}}
	many, one, ours = [], [], []
	with parts.Place("naive") as place:
		for run in range(form.runs):
			many.append(script(place, 64, form, run))
			ours.append(refreshes.daemon(place, form, run))
			one.append(script(place, 1, form, run))
			say("undici 64 in flight: %.0f/s, one after the other: %.0f/s, refreshd: %.0f/s" % (many[-1]["per_s"], one[-1]["per_s"],
				ours[-1]["per_s"]))
	return {"node_undici": dict(table(many, ours), in_flight=64), "node_sequential": table(one, ours)}
