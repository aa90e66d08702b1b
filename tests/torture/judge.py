#!/usr/bin/env python3
"""The judge: what a run did, against what must never happen. Offline and pure: it sees evidence and no daemon.

	verdict = judge(evidence)          # a dict of plain lists, see FIELDS; evidence.py collects it
	verdict.violations                 # [Violation(invariant, what, about)]
	python3 judge.py evidence.json     # the same for a file

I1  no refresh token is presented again after its answer was fully delivered
I2  no two presentations of one token overlap
I3  after quiesce the stored token is the provider's live one, or the connection is known to be in doubt or lost, with its cause
I4  no healthy connection expired
I5  every transition has its event, delivered, with one id, and signed
I8  token versions only grow

An answer that was delivered may be asked for again in three cases only, and each is proved from the evidence, never taken from a daemon:
the process that had claimed it died and neither its journal nor the database has the answer (window: the time from the delivery to
the death is the measured width, and it is bounded); that process was stopped for longer than its lease (lease); or the network
between it and the provider was cut just then (cut).
"""
import base64
import bisect
import collections
import hashlib
import hmac
import json
import sys

# What judge() reads. Times are wall-clock microseconds; absent lists are empty, absent figures have these values.
FIELDS = {
	"realm": "",            # the provider's name, for the words of a violation
	"mode": "strict",       # strict, grace or none: what presenting a spent token does
	"ledger": [],           # the simulator's lines of this realm
	"live": {},             # family -> the simulator's facts, with rt_sha256 and revoked
	"rows": [],             # {id, family, state, health, reason, doubts, rt_sha256, expires_us, orphans}
	"claims": [],           # {id, attempt, owner, t_us}: every claim, by trigger
	"writes": [],           # {id, t_us}: every token written, by trigger
	"owners": {},           # epoch -> instance name
	"spans": [],            # faults: {kind, from_us, to_us, instance}, see below
	"transitions": [],      # {xid, id, was: [state, health], now: [state, health], t_us}, by trigger
	"events": [],           # {xid, event_id, id, type}, by trigger
	"sink": [],             # what the webhook receiver got
	"webhook_secret": "",   # its secret; "" when no webhook is configured
	"shrunk": [],           # versions that did not grow, by trigger
	"late": [],             # {id, expired_us, refreshed_us}, by trigger
	"unfinished": [],       # [id, attempt] of what is open in the journals after quiesce
	"revoked": [],          # families that were revoked on purpose
	"life_us": 0,           # how long each access token lives, by the provider: I4 also from the ledger's times. 0: not known
	"now_us": 0,            # when the rows were read
	"lease_us": 0,          # the daemons' lease; 0: no excuse by it
	"window_limit_us": 1000000,  # a delivered answer must be durable by then; a loaded machine included
}
# Kinds of spans. `instance` may be absent: then it is about all of them.
#   death   the process ended by SIGKILL: to_us is when it was reaped; journal: [[id, attempt]] of all that its journal held then
#   stop    SIGSTOP to SIGCONT
#   cut     packets between the daemon and the provider were lost
#   outage  nobody could refresh (database, all daemons or the provider gone): a token may expire
GOOD = ("rotated", "reused_in_grace")

Violation = collections.namedtuple("Violation", "invariant what about")


class Verdict:
	def __init__(self):
		self.violations = []
		self.excused = []   # {kind, family, width_us, since_rotation_us}
		self.figures = {}

	def bad(self, invariant, what, about=None):
		self.violations.append(Violation(invariant, what, about))

	def named(self):
		return sorted({v.invariant for v in self.violations})

	def text(self, limit=12):
		return "\n".join("%s: %s: %s" % (v.invariant, v.what, json.dumps(v.about, default=str)[:1500]) for v in self.violations[:limit])


class Case:
	"""The evidence with its indexes."""

	def __init__(self, evidence):
		unknown = set(evidence) - set(FIELDS)
		if unknown:
			raise ValueError("not evidence: %s" % ", ".join(sorted(unknown)))
		for key, default in FIELDS.items():
			setattr(self, key, evidence.get(key, default))
		self.live = {int(k): v for k, v in self.live.items()}
		self.owners = {int(k): v for k, v in self.owners.items()}
		self.family_of = {r["id"]: r["family"] for r in self.rows}
		self.id_of = {r["family"]: r["id"] for r in self.rows}
		self.claims_of = self._by_id(self.claims)
		self.writes_of = self._by_id(self.writes)
		self.spans = sorted(self.spans, key=lambda s: s["to_us"])
		for s in self.spans:
			if s["kind"] == "death":
				s["held"] = {tuple(x) for x in s.get("journal", [])}
		self.tokens = collections.defaultdict(list)
		for x in sorted(self.ledger, key=lambda x: x["t_recv_us"]):
			self.tokens[x["rt"]].append(x)

	@staticmethod
	def _by_id(rows):
		out = collections.defaultdict(list)
		for x in sorted(rows, key=lambda x: x["t_us"]):
			out[x["id"]].append(x)
		return out

	def claim(self, x):
		"""The claim that a presentation was made under, or None."""
		found = self.claims_of.get(self.id_of.get(x["family"]), [])
		i = bisect.bisect_right([c["t_us"] for c in found], x["t_recv_us"])
		return found[i - 1] if i > 0 else None

	def instance(self, claim):
		return self.owners.get(claim["owner"]) if claim else None

	def about(self, kind, instance):
		return [s for s in self.spans if s["kind"] == kind and s.get("instance") in (None, instance)]

	def stopped_us(self, instance, since, to):
		return sum(max(0, min(to, s["to_us"]) - max(since, s["from_us"])) for s in self.about("stop", instance))

	def written(self, x):
		"""Did the database get new tokens of this connection after x was answered and before its next presentation?"""
		after = [w["t_us"] for w in self.writes_of.get(self.id_of.get(x["family"]), []) if w["t_us"] >= x["t_recv_us"]]
		rest = [y["t_recv_us"] for y in self.tokens[x["rt"]] if y["t_recv_us"] > x["t_recv_us"]]
		return bool(after) and (not rest or after[0] < rest[0])


def answered(x):
	return x["outcome"] in GOOD and x["delivered"]


def excuse(case, x):
	"""Why the delivered answer x may be missing: {kind, width_us, ...}, or the words that say why there is no excuse."""
	claim = case.claim(x)
	instance = case.instance(claim)
	if claim is None:
		return "no claim was committed before it was sent"
	for s in case.about("cut", instance):
		if s["from_us"] - case.window_limit_us <= x["t_done_us"] <= s["to_us"]:
			return {"kind": "cut", "width_us": 0}
	if case.written(x):
		return "its answer is in the database"
	stopped = [s for s in case.about("stop", instance) if s["from_us"] <= x["t_done_us"] + case.window_limit_us and case.lease_us > 0 and
		s["to_us"] >= claim["t_us"] + case.lease_us]
	deaths = [s for s in case.about("death", instance) if s["to_us"] >= x["t_done_us"]]
	if stopped and not (deaths and deaths[0]["to_us"] < claim["t_us"] + case.lease_us):
		return {"kind": "lease", "width_us": 0}
	if not deaths:
		return "the process that had it (%s) did not die" % instance
	death = deaths[0]
	if (claim["id"], claim["attempt"]) in death["held"]:
		return "its answer was in the journal when the process died"
	width = death["to_us"] - x["t_done_us"] - case.stopped_us(instance, x["t_done_us"], death["to_us"])
	if width > case.window_limit_us:
		return "the process lived for %.1f ms with its answer and had not journalled it" % (width / 1000)
	return {"kind": "window", "width_us": width, "since_rotation_us": death["to_us"] - x["t_recv_us"]}


def judge_again(case, v):
	"""I1. Returns the presentations whose answer is excused."""
	missing = []
	if case.mode == "none":
		return missing
	for line in case.tokens.values():
		for i, x in enumerate(line):
			again = [y for y in line[i + 1:] if y["t_recv_us"] >= x["t_done_us"]] if answered(x) else []
			if not again:
				continue
			why = excuse(case, x)
			if isinstance(why, str):
				v.bad("I1", "a refresh token was presented again although %s" % why,
					{"answered": x, "again": again[0], "claims": [case.claim(x), case.claim(again[0])]})
			else:
				missing.append(x)
				v.excused.append(dict(why, family=x["family"]))
	return missing


def judge_overlap(case, v):
	"""I2, from the times of each token, and from the simulator's own flag, which covers all tokens of a family."""
	forgiven = set()
	for line in case.tokens.values():
		for a, b in zip(line, line[1:]):
			if b["t_recv_us"] >= a["t_done_us"]:
				continue
			why = excuse(case, a)
			if not isinstance(why, str) and why["kind"] in ("lease", "cut"):
				forgiven.add(a["family"])
			else:
				v.bad("I2", "two presentations of one token overlap", [a, b])
				forgiven.add(a["family"])
	for x in case.ledger:
		if x["overlap"] and x["family"] not in forgiven:
			v.bad("I2", "two presentations of one grant overlap", x)
			forgiven.add(x["family"])


def lost_with_cause(case, family, missing):
	"""Was an answer of this family lost where it may be? Used up at the provider, and it did not reach us whole."""
	if any(x["family"] == family for x in missing):
		return True
	return any(x["family"] == family and x["rotated"] and not x["delivered"] for x in case.ledger)


def judge_tokens(case, v, missing):
	"""I3."""
	count = collections.Counter()
	unfinished = {i for i, _ in case.unfinished}
	for row in case.rows:
		facts = case.live.get(row["family"])
		if facts is None:
			v.bad("I3", "the provider does not know this connection", row)
			continue
		good = row["rt_sha256"] == facts["rt_sha256"] and not facts["revoked"]
		brief = {k: row.get(k) for k in ("id", "family", "state", "health", "reason", "doubts", "orphans")}
		if row["state"] == "invalid":
			judge_marked(case, v, row, good, brief, missing, count)
		elif row["id"] in unfinished:
			v.bad("I3", "an answer lies in the journal and did not reach the database", brief)
		elif good:
			count["good"] += 1
		elif row["family"] in case.revoked and row["health"] != "ok":
			count["revoked"] += 1
		elif row["doubts"] > 0:
			count["in_doubt"] += 1
		else:
			v.bad("I3", "the stored token is not the live one and nothing says so", [brief, facts])
	v.figures["tokens"] = dict(count)


def judge_marked(case, v, row, good, brief, missing, count):
	count["lost"] += row["family"] not in case.revoked
	if row["family"] in case.revoked:
		count["revoked"] += 1
	elif good:
		v.bad("I3", "marked as lost, and its stored token is the live one", brief)
	elif row["reason"] != "rotation_lost":
		v.bad("I3", "lost, and the reason is not rotation_lost", brief)
	elif case.mode != "strict":
		v.bad("I3", "lost although the provider has a grace window", brief)
	elif not lost_with_cause(case, row["family"], missing):
		v.bad("I3", "lost, and every answer had reached us", brief)
	elif any(x["family"] == row["family"] for x in missing):
		count["lost_in_window"] += 1


def judge_expiry(case, v):
	"""I4: refreshes that came after the end (by trigger), and rows that are past it now."""
	def excused(family, since, to):
		if any(s["from_us"] <= to and s["to_us"] >= since for s in case.spans if s["kind"] == "outage"):
			return True
		# In the hands of a process that was stopped: its lease keeps everybody else away, and must.
		claims = [c for c in case.claims_of.get(case.id_of.get(family), []) if c["t_us"] <= to]
		if claims and case.stopped_us(case.instance(claims[-1]), claims[-1]["t_us"], to) > 0 and not any(
				w["t_us"] > claims[-1]["t_us"] and w["t_us"] <= to for w in case.writes_of.get(claims[-1]["id"], [])):
			return True
		# Not a healthy connection: an attempt of its last life was not answered with new tokens.
		return any(x["family"] == family and since <= x["t_recv_us"] <= to and not answered(x) for x in case.ledger)

	lives = {r["id"]: r.get("life_us") or 0 for r in case.rows}
	judge_gaps(case, v, excused)
	for x in case.late:
		life = lives.get(x["id"], 0)
		if not excused(case.family_of.get(x["id"]), x["expired_us"] - life, x["expired_us"]):
			v.bad("I4", "a token had expired %.1f s before its successor came" % ((x["refreshed_us"] - x["expired_us"]) / 1e6), x)
	for r in case.rows:
		if r["state"] == "callable" and r["health"] == "ok" and r["expires_us"] is not None and r["expires_us"] < case.now_us:
			if not excused(r["family"], r["expires_us"] - lives[r["id"]], r["expires_us"]):
				v.bad("I4", "a healthy connection has expired", {k: r[k] for k in ("id", "family", "expires_us")})


def judge_gaps(case, v, excused):
	"""I4 once more, by no clock but the provider's: between two new tokens, and from the last one until now, there was no life's time."""
	if case.life_us == 0:
		return
	ends = collections.defaultdict(list)
	for x in case.ledger:
		if answered(x):
			ends[x["family"]].append(x["t_done_us"])
	well = {r["family"] for r in case.rows if r["state"] == "callable" and r["health"] == "ok"}
	for family, times in ends.items():
		times = sorted(times) + ([case.now_us] if family in well else [])
		for a, b in zip(times, times[1:]):
			if b - a > case.life_us and not excused(family, a, a + case.life_us):
				v.bad("I4", "a token lived for %.1f s and its successor came after %.1f s" % (case.life_us / 1e6, (b - a) / 1e6), {"family": family, "from_us": a})


def wanted_events(was, now):
	"""The types that may tell of this change of (state, health); an empty set: it is silent."""
	state, health = now
	prefix = "vault.connection."
	if health == "pending_refresh":
		return {prefix + "token_refresh.pending"}
	if health == "revoked":
		return {prefix + "revoked"}
	if state == "invalid":
		return {prefix + "token_refresh.failed"}
	if health == "missing_settings":
		return {prefix + "updated"}
	if state == "callable" and health == "ok":
		return {prefix + "token_refresh.recovered", prefix + "callable"} if was[0] != "added" or was[1] != "ok" else {prefix + "callable"}
	return {prefix + "updated", prefix + "created", prefix + "disabled"}


def signature_fits(secret, record):
	h = record["headers"]
	key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
	body = record["body"].encode() if "body" in record else base64.b64decode(record["body_base64"])
	signed = ("%s.%s." % (h.get("webhook-id", ""), h.get("webhook-timestamp", ""))).encode() + body
	good = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
	return good in h.get("webhook-signature", "").split(" ")


def judge_events(case, v):
	"""I5."""
	told = collections.defaultdict(set)
	for e in case.events:
		told[e["xid"], e["id"]].add(e["type"])
	for t in case.transitions:
		want = wanted_events(t["was"], t["now"])
		if want and not want & told[t["xid"], t["id"]]:
			v.bad("I5", "a transition has no event", t)
	if not case.webhook_secret:
		return
	got = collections.defaultdict(list)
	for record in case.sink:
		got[record["headers"].get("webhook-id")].append(record)
	known = {e["event_id"]: e for e in case.events}
	for e in case.events:
		records = got.get(e["event_id"], [])
		if not any(200 <= r["status"] < 300 for r in records):
			v.bad("I5", "an event was not delivered", {"event": e, "tries": len(records)})
	for event_id, records in got.items():
		judge_deliveries(case, v, event_id, records, known.get(event_id))
	v.figures["events"], v.figures["deliveries"] = len(case.events), len(case.sink)


def judge_deliveries(case, v, event_id, records, event):
	bodies = set()
	for r in records:
		payload = json.loads(r["body"])["payload"]
		if not signature_fits(case.webhook_secret, r):
			v.bad("I5", "a delivery is not signed by us", r)
		if payload["event_id"] != event_id:
			v.bad("I5", "header and body have different event ids", r)
		if event is None and payload["event_type"] != "refreshd.webhook.test":
			v.bad("I5", "a delivery tells of an event that is not in the database", r)
		if event is not None and payload["event_type"] != event["type"]:
			v.bad("I5", "a delivery tells of another event than the database", [r, event])
		payload.pop("execution_attempt", None)
		bodies.add(json.dumps(payload, sort_keys=True))
	if len(bodies) > 1:
		v.bad("I5", "deliveries of one event differ", sorted(bodies))


def judge(evidence):
	case, v = Case(evidence), Verdict()
	missing = judge_again(case, v)
	judge_overlap(case, v)
	judge_tokens(case, v, missing)
	judge_expiry(case, v)
	judge_events(case, v)
	for x in case.shrunk:
		v.bad("I8", "a token version did not grow", x)
	v.figures.update(presentations=len(case.ledger), rotated=sum(1 for x in case.ledger if x["rotated"]),
		lost=v.figures["tokens"].get("lost", 0),
		lost_in_window=v.figures["tokens"].get("lost_in_window", 0), again=len(missing))
	return v


def main():
	with open(sys.argv[1]) as f:
		verdict = judge(json.load(f))
	print(verdict.text(1000))
	print(json.dumps(dict(verdict.figures, violations=len(verdict.violations), excused=len(verdict.excused))))
	return 1 if verdict.violations else 0


if __name__ == "__main__":
	sys.exit(main())
