"""What the torture scenarios share: a fleet of daemons on one database under load, faults that leave a span behind, and the evidence.

	fleet = Fleet(world, "stop", "strict", daemons=3, connections=150)
	fleet.start()
	fleet.kill(fleet.vaults[0]); fleet.vaults[0].start()
	fleet.quiesce()
	verdict = fleet.judge(tap, "kill -9 at random", runs=1)

Triggers of our own write down every claim, every token, every transition and every event, so that the judge needs no daemon's word.
TORTURE=long runs the long forms; TORTURE_SEED repeats the moments.
"""
import hashlib
import json
import os
import random
import select
import signal
import statistics
import sys
import time

TOP = os.environ.get("TOP_SRCDIR") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(TOP, "tests", "integration"))
sys.path.insert(0, os.path.join(TOP, "tests", "torture"))
import judge as j
import world as w
from world import wait_until

LONG = os.environ.get("TORTURE", "") == "long"
SEED = int(os.environ.get("TORTURE_SEED") or int.from_bytes(os.urandom(4), "little"))
TORTURED = os.path.join(w.BUILD, "tests/torture/refreshd")
CREDENTIAL = "refreshd.credential k JOIN refreshd.connection c USING (slot, connection_id)"

WATCH = """
	CREATE TABLE watch.claimed (connection_id uuid, attempt_id bigint, owner bigint, at timestamptz DEFAULT clock_timestamp());
	CREATE TABLE watch.written (connection_id uuid, at timestamptz DEFAULT clock_timestamp());
	CREATE TABLE watch.changed (xid xid8 DEFAULT pg_current_xact_id(), connection_id uuid, was text[], became text[],
		at timestamptz DEFAULT clock_timestamp());
	CREATE TABLE watch.told (xid xid8 DEFAULT pg_current_xact_id(), event_id uuid, connection_id uuid, event_type text);
	CREATE TABLE watch.epoch (epoch bigint, name text);
	CREATE FUNCTION watch.note() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		CASE TG_ARGV[0]
		WHEN 'claimed' THEN INSERT INTO watch.claimed VALUES (NEW.connection_id, NEW.attempt_id, NEW.lease_owner);
		WHEN 'written' THEN INSERT INTO watch.written VALUES (NEW.connection_id);
		WHEN 'changed' THEN INSERT INTO watch.changed (connection_id, was, became)
			VALUES (NEW.connection_id, ARRAY[OLD.state, OLD.health], ARRAY[NEW.state, NEW.health]);
		WHEN 'told' THEN INSERT INTO watch.told (event_id, connection_id, event_type) VALUES (NEW.event_id, NEW.connection_id, NEW.event_type);
		WHEN 'epoch' THEN INSERT INTO watch.epoch VALUES (NEW.epoch, NEW.name);
		END CASE;
		RETURN NULL;
	END $$;
	CREATE TRIGGER note_claimed AFTER UPDATE ON refreshd.schedule FOR EACH ROW
		WHEN (NEW.lease_owner IS NOT NULL AND NEW.attempt_id IS DISTINCT FROM OLD.attempt_id) EXECUTE FUNCTION watch.note('claimed');
	CREATE TRIGGER note_written AFTER UPDATE ON refreshd.credential FOR EACH ROW
		WHEN (NEW.refreshes > OLD.refreshes) EXECUTE FUNCTION watch.note('written');
	CREATE TRIGGER note_changed AFTER UPDATE ON refreshd.connection FOR EACH ROW
		WHEN (NEW.state <> OLD.state OR NEW.health <> OLD.health) EXECUTE FUNCTION watch.note('changed');
	CREATE TRIGGER note_told AFTER INSERT ON refreshd.event FOR EACH ROW EXECUTE FUNCTION watch.note('told');
	CREATE TRIGGER note_epoch AFTER INSERT OR UPDATE ON refreshd.instance FOR EACH ROW EXECUTE FUNCTION watch.note('epoch');
	GRANT USAGE ON SCHEMA watch TO PUBLIC; GRANT INSERT ON ALL TABLES IN SCHEMA watch TO PUBLIC;"""


def now_us():
	return time.time_ns() // 1000


def pause(seconds):
	"""Lets the load run: a wait for a moment, not for a condition."""
	moment = time.monotonic() + seconds
	wait_until("the moment", lambda: time.monotonic() > moment, seconds + 60)


def ended(v, timeout_s):
	"""Waits for the process to end by itself, without polling: when it died is measured. The exit code."""
	fd = os.pidfd_open(v.proc.pid)
	try:
		waiting = select.poll()
		waiting.register(fd, select.POLLIN)
		if not waiting.poll(timeout_s * 1000):
			raise TimeoutError("%s has not ended in %d s" % (v.name, timeout_s))
	finally:
		os.close(fd)
	return v.wait()


def rows_of(v, text):
	"""Rows of a query as dicts."""
	return [json.loads(line) for line in v.sql("SELECT row_to_json(x) FROM (%s) x" % text).splitlines()]


def us_of(column):
	return "(extract(epoch FROM nullif(%s, 'infinity')) * 1000000)::bigint" % column


def journal_of(v):
	"""[connection, attempt] of every record in a daemon's journal, done or not; and of the open ones."""
	found = json.loads(v.ctl("--json", "journal", "list").stdout)
	return ([[x["connection_id"], x["attempt_id"]] for x in found],
		[[x["connection_id"], x["attempt_id"]] for x in found if not x["done"]])


def evidence(sim, vaults, realm, mode, spans, now=None, lease_us=0, webhook=None, revoked=(), unfinished=None, life_us=0):
	"""What judge.judge() reads, of one realm whose connections are in the database of `vaults`. webhook: the sink's name; unfinished: the
	open records of all journals, when somebody has read them already."""
	v = vaults[0]
	opener = w.Unseal(v.keyring)
	orphans = {x["id"]: x["n"] for x in rows_of(v, "SELECT connection_id AS id, count(*) AS n FROM refreshd.orphan_token WHERE resolved_at IS NULL GROUP BY 1")}
	ends = {x["id"]: x for x in rows_of(v, "SELECT connection_id AS id, %s AS e, %s - %s AS life FROM refreshd.credential" % (
		us_of("expires_at"), us_of("expires_at"), us_of("issued_at")))}
	rows = []
	for r in v.rows(realm).values():
		stored = opener.open("credential.refresh_token", r["id"], r["version"], bytes.fromhex(r["rt"]))
		rows.append({"id": r["id"], "family": int(r["consumer"][1:]), "state": r["state"], "health": r["health"], "reason": r["reason"],
			"doubts": r["doubts"], "rt_sha256": hashlib.sha256(stored).hexdigest(), "expires_us": ends[r["id"]]["e"],
			"life_us": ends[r["id"]]["life"], "orphans": orphans.get(r["id"], 0)})
	mine = {r["id"] for r in rows}

	def watched(text):
		return [x for x in rows_of(v, text) if x["id"] in mine]
	return {
		"realm": realm, "mode": mode, "ledger": sim.ledger(realm), "live": sim.live(realm), "rows": rows, "spans": spans,
		"claims": watched("SELECT connection_id AS id, attempt_id AS attempt, owner, %s AS t_us FROM watch.claimed" % us_of("at")),
		"writes": watched("SELECT connection_id AS id, %s AS t_us FROM watch.written" % us_of("at")),
		"owners": {x["epoch"]: x["name"] for x in rows_of(v, "SELECT DISTINCT epoch, name FROM watch.epoch")},
		"transitions": watched("SELECT xid::text AS xid, connection_id AS id, was, became AS now, %s AS t_us FROM watch.changed" % us_of("at")),
		"events": watched("SELECT xid::text AS xid, event_id, connection_id AS id, event_type AS type FROM watch.told") +
			rows_of(v, "SELECT xid::text AS xid, event_id, connection_id AS id, event_type AS type FROM watch.told WHERE connection_id IS NULL"),
		"sink": sim.sink(webhook) if webhook else [], "webhook_secret": w.WEBHOOK_SECRET if webhook else "",
		"shrunk": watched("SELECT connection_id AS id, was, became FROM watch.shrunk"),
		"late": watched("SELECT connection_id AS id, %s AS expired_us, %s AS refreshed_us FROM watch.late" % (
			us_of("expired_at"), us_of("refreshed_at"))),
		"unfinished": [x for one in vaults for x in journal_of(one)[1] if x[0] in mine],
		"revoked": list(revoked), "now_us": now or now_us(), "lease_us": lease_us, "life_us": life_us,
	}


class Fleet:
	"""`daemons` daemons, each with a journal of its own, that share a database, a keyring and one provider."""

	def __init__(self, world, name, mode, daemons=1, connections=120, life_s=8, program=None, delay_ms=15, jitter_ms=60, provider=None,
			refresh=None, **sections):
		self.world, self.realm, self.mode, self.spans, self.revoked = world, name, mode, [], []
		self.life_s = life_s
		self.rng = random.Random("%d-%s" % (SEED, name))
		world.sim.realm(name, mode=mode if mode != "none" else "static", grace_s=60, at_ttl=life_s, auth="basic",
			client_secret=w.CLIENT_SECRET, delay_ms=delay_ms, jitter_ms=jitter_ms)
		options = {"rotation": mode, "max_in_flight": 64}
		if mode == "grace":
			options["rotation_grace"] = "60s"
		options.update(provider or {})
		refresh = dict({"poll_interval": "200ms"}, **(refresh or {}))
		world.sim.sink_set(name, secret=w.WEBHOOK_SECRET)
		hook = [{"name": "hook", "url": world.sim.sink_url(name), "secret_file": self._secret(world), "allow_private": True}]
		self.vaults = []
		for i in range(daemons):
			first = self.vaults[0] if self.vaults else None
			v = world.vault("%s-%s" % (name, "abcdefgh"[i]), {name: dict(options)}, refresh=dict(refresh), webhooks=hook, migrate=first is None,
				db_url=first.conf["database"]["url"] if first else None, **sections)
			v.program = program
			if first:
				v.dbname, v.keyring, v.conf["keyring_file"] = first.dbname, first.keyring, first.conf["keyring_file"]
				v.write_conf()
			else:
				v.sql(WATCH)
			self.vaults.append(v)
		self.first = self.vaults[0]
		self.lease_us = {"s": 10**6, "m": 6 * 10**7}[refresh.get("lease", "120s")[-1]] * int(refresh.get("lease", "120s")[:-1])
		# Lives of different length, so that the load does not come as one herd in each cycle.
		parts = 8 if life_s < 20 else 1
		lines = [x for i in range(parts) for x in world.sim.mint(name, connections // parts + (i < connections % parts),
			expires_in=max(2, life_s // 2 + life_s * i // parts) if parts > 1 else life_s)]
		self.first.import_lines(lines)

	@staticmethod
	def _secret(world):
		path = os.path.join(world.dir, "webhook-secret")
		if not os.path.exists(path):
			with open(path, "w") as f:
				os.fchmod(f.fileno(), 0o600)
				f.write(w.WEBHOOK_SECRET + "\n")
		return path

	def load(self, spread_s):
		"""Everybody is due within so many seconds, however long the tokens live."""
		self.first.sql("UPDATE refreshd.schedule SET due_at = least(due_at, now() + random() * interval '%f s') WHERE lease_owner IS NULL"
			" AND due_at < 'infinity'" % spread_s)

	def start(self, spread_s=1.0):
		for v in self.vaults:
			v.start()
		if self.life_s >= 20:
			self.load(spread_s)
		wait_until("the first refreshes", lambda: self.world.sim.stats(self.realm)["rotated"] > 10, 30)

	# --- faults. Each leaves a span.

	def span(self, kind, v=None, since=None, **more):
		s = dict({"kind": kind, "from_us": since or now_us(), "to_us": now_us()}, **more)
		if v is not None:
			s["instance"] = v.conf["instance"]
		self.spans.append(s)
		return s

	def died(self, v, since, to, **more):
		"""The process is gone and reaped: what its journal has is read before anybody starts on it."""
		self.span("death", v, since, journal=journal_of(v)[0], **more)["to_us"] = to

	def kill(self, v):
		since = now_us()
		v.kill()
		self.died(v, since, now_us())

	def stop(self, v):
		"""SIGSTOP; returns the span, which is open until cont()."""
		s = self.span("stop", v)
		v.signal(signal.SIGSTOP)
		s["to_us"] = 1 << 60
		return s

	def cont(self, v, s):
		v.signal(signal.SIGCONT)
		s["to_us"] = now_us()

	def presumed_dead(self, v):
		"""To the others, one that is stopped has been silent for long: its heartbeat is aged, not waited for."""
		self.first.sql("UPDATE refreshd.instance SET heartbeat_at = heartbeat_at - interval '1 minute' WHERE name = '%s'" % v.conf["instance"])

	def stumble(self, n=1):
		"""The provider is out of order for n requests: it makes a connection pending and recovered, so that there are events."""
		self.world.sim.fault(self.realm, "error", n=n, arg="503:temporarily_unavailable")

	# --- the end

	def quiesce(self, timeout_s=60):
		"""Everybody has been refreshed once more or is marked, and every event is delivered. What is under way ends with the daemons."""
		self.world.sim.clear_faults(self.realm)
		v, since = self.first, self.first.sql("SELECT now()")
		if self.life_s >= 20:
			self.load(1.0)
		late = CREDENTIAL + " WHERE c.state = 'callable' AND (refreshed_at IS NULL OR refreshed_at < '%s' OR c.health <> 'ok')" % since
		try:
			wait_until("everybody to be refreshed once more, or to be marked", lambda: v.count(late) == 0, timeout_s)
		except TimeoutError as e:
			raise TimeoutError("%s; %d are left: %s" % (e, v.count(late), rows_of(v, "SELECT c.connection_id, c.slot, c.health, k.refreshed_at, s.due_at,"
				" s.attempt_id, s.lease_owner, s.lease_until, s.doubts, now() FROM %s LIMIT 3" % late.replace(" WHERE",
				" JOIN refreshd.schedule s USING (slot, connection_id) WHERE")))) from e
		wait_until("every event to be delivered", lambda: v.count("refreshd.delivery WHERE done_at IS NULL") == 0 and
			v.count("refreshd.event WHERE fanned_out_at IS NULL") == 0, timeout_s)

	def judge(self, tap, fault, runs, stop=True, show=True):
		"""Stops the daemons and gives the verdict: a check for each invariant, and a line for the table."""
		now = now_us()
		if stop:
			codes = [v.stop() for v in self.vaults if v.alive()]
			tap.equal("they stop with 0", codes, [0] * len(codes))
		e = evidence(self.world.sim, self.vaults, self.realm, self.mode, self.spans, now, self.lease_us, self.realm, self.revoked,
			life_us=self.life_s * 1000000)
		keep(e, self.realm)
		self.evidence = e
		verdict = j.judge(e)
		if show:
			report(verdict, tap, fault, self.mode, runs, again_after(e))
		self.world.vaults = [v for v in self.world.vaults if v not in self.vaults or v.alive()]
		return verdict


def keep(e, name):
	"""TORTURE_KEEP=folder keeps the evidence, for judge.py by hand."""
	folder = os.environ.get("TORTURE_KEEP")
	if folder:
		with open(os.path.join(folder, "%s-%d.json" % (name, os.getpid())), "w") as f:
			json.dump(e, f, default=sorted)


def again_after(e):
	"""Seconds from the end of each fault to the next answered refresh."""
	ends = sorted(x["t_done_us"] for x in e["ledger"] if j.answered(x))
	out = []
	for s in e["spans"]:
		later = [t for t in ends if t > s["to_us"]]
		if later:
			out.append((later[0] - s["to_us"]) / 1e6)
	return out


def widths(e, journalled):
	"""Milliseconds from the delivery of each answer until it was durable, sorted; and how many never were. journalled: (id, attempt) -> us"""
	case, out, unseen = j.Case(e), [], 0
	for x in e["ledger"]:
		claim = case.claim(x) if j.answered(x) else None
		if claim and (claim["id"], claim["attempt"]) in journalled:
			out.append((journalled[claim["id"], claim["attempt"]] - x["t_done_us"]) / 1000)
		else:
			unseen += j.answered(x)
	return sorted(out), unseen


INVARIANTS = {
	"I1": "no refresh token is presented again after its answer was delivered",
	"I2": "no two presentations overlap",
	"I3": "every stored token is the live one, or its connection is known to be in doubt or lost, with a cause",
	"I4": "no healthy connection expired",
	"I5": "every transition has its event, delivered and signed",
	"I8": "token versions only grow",
}


def report(verdict, tap, fault, mode, runs, again):
	for name, words in INVARIANTS.items():
		mine = [v for v in verdict.violations if v.invariant == name]
		tap.check("%s: %s" % (name, words), not mine, "seed %d\n" % SEED + "\n".join(
			"%s: %s" % (v.what, json.dumps(v.about, default=str)[:1500]) for v in mine[:5]))
	widths = [x["width_us"] / 1000 for x in verdict.excused if x["kind"] == "window"]
	row = dict({"fault": fault, "mode": mode, "runs": runs, "violations": len(verdict.violations), "seed": SEED}, **verdict.figures)
	row["window"] = {"n": len(widths), "median_ms": round(statistics.median(widths), 1) if widths else 0, "max_ms": round(max(widths), 1) if widths else 0}
	row["other_excuses"] = sum(x["kind"] != "window" for x in verdict.excused)
	row["again_s"] = {"median": round(statistics.median(again), 2), "max": round(max(again), 2)} if again else {}
	tap.note("torture: " + json.dumps(row))
