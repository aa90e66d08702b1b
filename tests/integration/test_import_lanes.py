#!/usr/bin/env python3
"""A long `refreshctl import` writes two chunks at once. Seen from outside it is one after the other all the same: of a key that comes again
the last line wins, what is committed is always the beginning of the file, several imports of the same keys get by, and what blocks one
chunk blocks nothing for good."""
import json
import os
import random
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from world import CLIENT_SECRET, REFRESHCTL, Tap, World, clean_env, wait_until

CHUNK = 4000
SEED = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4), "little"))
OURS = "application_name = 'refreshctl' AND datname = current_database()"


def line(consumer, tag):
	return json.dumps({"application_id": "app", "consumer_id": consumer, "unified_api": "accounting", "service_id": "a",
		"credentials": {"access_token": "at-" + tag, "refresh_token": "rt-" + tag, "issued_at": "2026-01-01T00:00:00Z", "expires_in": 10**9}})


def vault(world, name):
	v = world.vault(name, {"a": {}})
	v.ctl("app", "add", "app")
	return v


def begin(v, path):
	return subprocess.Popen([REFRESHCTL, "-c", v.conf_file, "import", path], env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(proc):
	out, err = proc.communicate(timeout=120)
	return proc.returncode, out, err


def are_there(v, want):
	"""Exactly these consumers, and a hundred of them with the access token of that tag. want: consumer -> tag."""
	rows = v.rows()
	return set(rows) == set(want) and all(v.token(rows[k], "access_token").decode() == "at-" + want[k]
		for k in random.Random(SEED).sample(sorted(rows), min(100, len(rows))))


class Session:
	"""A psql that stays, for what it locks."""

	def __init__(self, v):
		pg = v.world.pg
		self.proc = subprocess.Popen([os.path.join(pg.bindir, "psql"), "-X", "-q", "-A", "-t", "-d", pg.url(v.dbname)], env=clean_env(),
			stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

	def tell(self, sql):
		self.proc.stdin.write(sql + ";\n")
		self.proc.stdin.flush()

	def ask(self, sql):
		self.tell(sql)
		self.tell("SELECT 'done'")
		while self.proc.stdout.readline().strip() != "done":
			pass

	def close(self):
		self.proc.stdin.close()
		self.proc.wait()
		self.proc.stdout.close()


def the_last_line_wins(tap, world):
	"""Every chunk has keys of the one before it, and some keys are in all of them."""
	v = vault(world, "last")
	keys = ["k%d" % (i % 2700) if i % 100 else "often" for i in range(5 * CHUNK + 500)]
	rng = random.Random(SEED)
	rng.shuffle(keys)
	want = {k: str(i) for i, k in enumerate(keys)}
	path = v.write("lines", "".join(line(k, str(i)) + "\n" for i, k in enumerate(keys)))
	code, out, err = end(begin(v, path))
	tap.equal("it succeeds", (code, err), (0, ""))
	tap.check("it counts each once", "%d lines: %d created" % (len(keys), len(want)) in out, out)
	tap.check("each key has the token of its last line", are_there(v, want))
	tap.equal("versions agree", v.count("refreshd.schedule s JOIN refreshd.credential k USING (slot, connection_id) WHERE s.token_version = k.token_version"), len(want))
	tap.equal("one event for each", v.count("refreshd.event WHERE event_type = 'vault.connection.created'"), len(want))
	# A clock that is ahead: the first chunk has to begin anew, while the second one wants the same rows.
	v.sql("UPDATE refreshd.schedule SET token_version = token_version + 3600000000 WHERE slot % 7 = 0")
	code, out, err = end(begin(v, path))
	tap.equal("again, over versions from a clock ahead", (code, err), (0, ""))
	tap.check("the last line wins again", are_there(v, want))


def several_at_once(tap, world):
	v = vault(world, "several")
	rng = random.Random(SEED)
	procs = []
	for who in range(3):
		keys = ["k%d" % i for i in range(3 * CHUNK)]
		rng.shuffle(keys)
		procs.append(begin(v, v.write("lines%d" % who, "".join(line(k, "%d-%s" % (who, k)) + "\n" for k in keys))))
	done = [end(p) for p in procs]
	tap.check("none fails", all(code == 0 and "0 bad" in out and "refused" not in out for code, out, err in done), done)
	tap.equal("each key is there once, and whole", v.count("refreshd.schedule s JOIN refreshd.credential k USING (slot, connection_id)"
		" JOIN refreshd.connection c USING (slot, connection_id) WHERE s.token_version = k.token_version"), 3 * CHUNK)
	tap.check("with a token of its own", all(v.token(r, "access_token").decode().endswith("-" + r["consumer"]) for r in v.all_rows()[:100]))
	tap.equal("each was created once", v.count("refreshd.event WHERE event_type = 'vault.connection.created'"), 3 * CHUNK)


def beginning(v, told):
	"""The number of lines that it says are committed, if exactly those are there."""
	there = v.count("refreshd.connection")
	good = "lines 1 to %d are committed (%d created, 0 updated); go on with line %d" % (there, there, there + 1) in told
	return there if good and are_there(v, {"k%d" % i: str(i) for i in range(there)}) else None


def stopped_in_the_middle(tap, world):
	"""By a signal, or because one of its database connections ends: what is there is the beginning, as it says."""
	rng = random.Random(SEED)
	n = 10 * CHUNK
	text = "".join(line("k%d" % i, str(i)) + "\n" for i in range(n))
	for how in ("SIGINT", "COPY", "INSERT", "COPY"):
		v = vault(world, "stop%d" % len(world.vaults))
		path = v.write("lines", text)
		proc = begin(v, path)
		at = rng.randrange(1, 4) * CHUNK
		wait_until("%d lines" % at, lambda: v.count("refreshd.connection") >= at)
		if how == "SIGINT":
			proc.send_signal(signal.SIGINT)
		else:
			wait_until("a %s" % how, lambda: v.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE %s AND state = 'active' AND query LIKE '%s%%' LIMIT 1"
				% (OURS, how)) == "t")
		code, out, err = end(proc)
		there = beginning(v, err)
		tap.check("%s: it says exactly what is there" % how, code == 1 and there is not None and at <= there < n, "%s; %d are there: %s" % (at, v.count("refreshd.connection"), err))
		code, out, err = end(begin(v, v.write("rest", "".join(text.splitlines(True)[there or 0:]))))
		tap.check("%s: with the rest it is whole" % how, code == 0 and "%d created, 0 updated" % (n - (there or 0)) in out and
			v.count("refreshd.connection") == n, (out, err))


def held_up(v, row):
	"""An import whose first chunk waits for a row that a session holds, and whose second chunk waits for its turn."""
	end(begin(v, v.write("old", line("k0", "old") + "\n")))
	path = v.write("lines", "".join(line("k%d" % i, str(i)) + "\n" for i in range(3 * CHUNK)))
	row.ask("BEGIN; SELECT 1 FROM refreshd.connection WHERE consumer_id = 'k0' FOR UPDATE")
	proc = begin(v, path)
	wait_until("the first chunk to wait for a row, the second for its turn", lambda: v.sql(
		"SELECT count(*) FILTER (WHERE wait_event_type = 'Lock'), count(*) FILTER (WHERE state = 'idle in transaction') FROM pg_stat_activity WHERE " + OURS) == "1|1")
	return proc


def the_first_chunk_fails(tap, world):
	"""The second one is whole already, and must not be there either."""
	v = vault(world, "first")
	row = Session(v)
	proc = held_up(v, row)
	v.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE %s AND wait_event_type = 'Lock'" % OURS)
	code, out, err = end(proc)
	row.close()
	tap.check("it says so", code == 1 and "lines 1 to 0 are committed (0 created, 0 updated); go on with line 1" in err, err)
	tap.check("why is told once", err.count("terminating connection") == 1 and err.count("\n") == 2, err)
	tap.check("nothing is there but what was", are_there(v, {"k0": "old"}))


def a_queue_for_a_table(tap, world):
	"""The first chunk waits for a table, behind one who waits for the second chunk, which waits for the first."""
	v = vault(world, "queue")
	row, table = Session(v), Session(v)
	proc = held_up(v, row)
	table.tell("BEGIN; LOCK TABLE refreshd.event")
	wait_until("the lock to be queued for", lambda: v.count("pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'refreshd.event'::regclass") == 1)
	row.ask("COMMIT")
	table.ask("COMMIT")  # which is answered once it has the lock
	code, out, err = end(proc)
	tap.equal("it gets by", (code, err), (0, ""))
	tap.check("everything is written", "%d created, 1 updated" % (3 * CHUNK - 1) in out, out)
	tap.check("and is what the file says", are_there(v, {"k%d" % i: str(i) for i in range(3 * CHUNK)}))
	row.close()
	table.close()


def main():
	tap = Tap()
	tap.note("SEED=%d" % SEED)
	with World("lanes", realms=["a:mode=strict,client_secret=" + CLIENT_SECRET]) as world:
		tap.run([the_last_line_wins, several_at_once, stopped_in_the_middle, the_first_chunk_fails, a_queue_for_a_table], world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
