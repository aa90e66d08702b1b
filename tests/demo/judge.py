"""The verdict after the daemon is gone: the provider's ledger, the provider's live tokens and the database, side by side."""
import collections
import concurrent.futures
import hashlib

from parts import Wrong


def presented_again(ledger):
	"""Presentations of a refresh token that had been exchanged already, with the answer delivered."""
	answered, again = set(), []
	for line in sorted(ledger, key=lambda x: x["t_recv_us"]):
		token = (line["realm"], line["rt"])
		if token in answered:
			again.append(line)
		if line["rotated"] and line["delivered"] and line["status"] == 200:
			answered.add(token)
	return again


def overlaps(ledger):
	return [x for x in ledger if x["overlap"]]


def exchanges(ledger):
	"""(realm, family) -> how many times its refresh token was exchanged for a new one."""
	count = collections.Counter()
	for x in ledger:
		if x["rotated"]:
			count[(x["realm"], x["family"])] += 1
	return count


def stored_access_tokens(ctl, names):
	"""SHA-256 of the access token that refreshctl unseals, by name."""
	def one(name):
		return name, hashlib.sha256(ctl("token", name, "--force").strip().encode()).hexdigest()
	with concurrent.futures.ThreadPoolExecutor(4) as pool:
		return dict(pool.map(one, names))


def compare(live, stored, rows, count, dead):
	"""Sentences about every family whose stored tokens are not the provider's live ones.

	The refresh token itself never leaves its seal. A refresh writes both tokens and its count in one statement, so the access
	token of the newest generation, with as many refreshes counted as the provider made exchanges, has the newest refresh token beside it."""
	for (realm, family), at in live.items():
		if (realm, family) == dead:
			continue
		name, refreshes = rows[(realm, family)]
		if at["revoked"]:
			yield "%s: its provider has revoked it" % name
		if stored[name] != at["at_sha256"]:
			yield "%s: the stored access token is not the newest that the provider gave" % name
		if not refreshes == count[(realm, family)] == at["live_gen"] - 1:
			yield "%s: %d refreshes stored, %d exchanges in the ledger, generation %d at the provider" % (
				name, refreshes, count[(realm, family)], at["live_gen"])


def judge(show, sim, ctl, rows, dead):
	"""rows: (realm, family) -> (name for refreshctl, refreshes counted in the database). Returns figures."""
	sim.call("GET", "/_sim/flush")
	ledger = sim.read_ledger()
	again, at_once = presented_again(ledger), overlaps(ledger)
	if again:
		raise Wrong("%d refresh tokens were presented after their answer had been delivered, the first: %s" % (len(again), again[0]))
	show.good("The providers saw %d refresh tokens. None was presented again after its answer had been delivered." % len(ledger))
	if at_once:
		raise Wrong("%d presentations of one grant overlapped, the first: %s" % (len(at_once), at_once[0]))
	show.good("No grant was ever in two requests at the same time.")

	live = {(realm, x["family"]): x for realm in sorted({r for r, _ in rows}) for x in sim.lines("GET", "/_sim/live", realm=realm)}
	if set(live) != set(rows):
		raise Wrong("the database has %d connections and the providers have %d grants" % (len(rows), len(live)))
	stored = stored_access_tokens(ctl, [name for key, (name, _) in rows.items() if key != dead])
	count = exchanges(ledger)
	wrong = list(compare(live, stored, rows, count, dead))
	if wrong:
		raise Wrong("%d stored tokens are not the live ones: %s" % (len(wrong), "; ".join(wrong[:3])))
	show.good("%d of %d connections hold exactly the newest tokens of their provider; the other one is the one that was taken back."
		% (len(stored), len(rows)))
	return {"presented": len(ledger), "exchanged": sum(count.values()), "checked": len(stored)}
