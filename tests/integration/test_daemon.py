#!/usr/bin/env python3
"""The real refreshd over a real Postgres against the provider simulator: normal life, refusals, outages, every reply that
token endpoints are known to give, hung DNS, TLS, client authentication, signals, metrics and logs. TAP on stdout."""
import base64
import binascii
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import world as w
from world import wait_until

METRICS = """refreshes_total refresh_duration_seconds refresh_lateness_seconds refresh_in_flight heap_entries due_backlog
	oldest_due_age_seconds min_seconds_to_expiry expired_connections rotation_lost_total in_doubt_total orphan_tokens
	journal_records provider_circuit_open connections webhook_deliveries_total webhook_backlog db_pool_wait_seconds
	db_errors_total loop_stall_seconds api_requests_total build_info""".split()
OUTCOMES = "refreshed grant_dead client_broken rate_limited transient never_sent in_doubt malformed".split()


def settled(v, providers, n=1, timeout_s=25):
	"""Waits until every provider's connections were refreshed or marked, and nothing is on its way."""
	def done():
		m = v.metrics()
		return all(m.total("refreshes_total", provider=p) >= n for p in providers) and v.quiet()
	wait_until("answers from all of %s" % (providers,), done, timeout_s)


def clean_log(tap, v):
	"""Every line is JSON with a time, a level and an event."""
	try:
		lines = v.log_lines()
		tap.check("every line of the log is JSON with level and event (%d lines)" % len(lines),
			lines and all("event" in x and "level" in x for x in lines), lines[:1])
	except ValueError as e:
		tap.check("every line of the log is JSON", False, e)


def due_now(lines):
	"""Without a life an imported token is due at once."""
	for x in lines:
		x["credentials"].pop("expires_in", None)
		x["credentials"].pop("issued_at", None)
	return lines


# ---------------------------------------------------------------- life

def normal_life(tap, world):
	world.sim.realm("life", mode="strict", at_ttl=12, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=20, jitter_ms=60)
	v = world.vault("life", {"life": {}})
	v.import_lines(world.sim.mint("life", 300))
	v.start()
	wait_until("every connection to be refreshed three times",
		lambda: v.count("refreshd.credential WHERE refreshes < 3") == 0, 60)
	m = v.metrics()
	tap.equal("the gauge of expired connections is 0", m.get("expired_connections"), 0)
	tap.equal("SIGTERM ends it with 0", v.stop(), 0)
	w.judge_ledger(tap, world.sim, "life")
	w.judge_tokens(tap, world.sim, v, "life")
	w.judge_expiry(tap, v)
	tap.equal("a connection that works makes no event", [e for e in v.events() if "token_refresh" in e[0]], [])
	rotated = world.sim.stats("life")["rotated"]
	tap.equal("the counter of refreshes is the provider's", m.get("refreshes_total", provider="life", outcome="refreshed") <= rotated, True)
	tap.check("rows are not due before half of the life is over",
		all(x["life"] > 11 for x in v.rows().values()), "")
	clean_log(tap, v)


def due_at_once(tap, world):
	world.sim.realm("once", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("once", {"once": {}})
	unknown = due_now(world.sim.mint("once", 5))
	past = world.sim.mint("once", 5, expires_in=60, issued_ago=600)
	fresh = world.sim.mint("once", 5, expires_in=3600)
	v.import_lines(unknown + past + fresh)
	v.start()
	began = time.monotonic()
	wait_until("ten refreshes", lambda: world.sim.stats("once")["rotated"] >= 10, 15)
	tap.check("unknown and past lives are refreshed within 5 s", time.monotonic() - began < 5, time.monotonic() - began)
	wait_until("quiet", v.quiet)
	rows = v.rows()
	tap.equal("unknown and past are refreshed, once",
		[rows[x["consumer_id"]]["refreshes"] for x in unknown + past], [1] * 10)
	tap.equal("a fresh one is left alone", [rows[x["consumer_id"]]["refreshes"] for x in fresh], [0] * 5)
	w.judge_ledger(tap, world.sim, "once")
	w.judge_tokens(tap, world.sim, v, "once")


def revoked(tap, world):
	world.sim.realm("rev", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("rev", {"rev": {}})
	lines = due_now(world.sim.mint("rev", 6))
	v.import_lines(lines)
	for x in lines[:2]:
		world.sim.revoke("rev", x["consumer_id"][1:])
	v.start()
	settled(v, ["rev"], 6)
	rows = v.rows()
	dead = [rows[x["consumer_id"]] for x in lines[:2]]
	tap.equal("revoked grants are invalid", [(r["state"], r["health"], r["reason"]) for r in dead],
		[("invalid", "needs_auth", "invalid_grant")] * 2)
	tap.equal("the others are callable", [rows[x["consumer_id"]]["state"] for x in lines[2:]], ["callable"] * 4)
	failed = [e for e in v.events() if e[0] == "vault.connection.token_refresh.failed"]
	tap.equal("one failed event each", sorted(e[2] for e in failed), sorted("app+" + x["consumer_id"] for x in lines[:2]))
	tap.equal("they are never due again", v.count("refreshd.schedule WHERE due_at = 'infinity'"), 2)
	tap.equal("outcomes", v.outcomes("rev"), {"refreshed": 4, "grant_dead": 2})
	tap.equal("each was presented once", len(w.judge_ledger(tap, world.sim, "rev")), 6)


def client_refused(tap, world):
	world.sim.realm("cli", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("cli", {"cli": {"max_in_flight": 4}})
	v.write("client-secret", "not-the-right-one-at-all\n")
	v.import_lines(world.sim.mint("cli", 30, expires_in=160, issued_ago=100))
	v.start()
	wait_until("a refusal", lambda: v.metrics().get("refreshes_total", provider="cli", outcome="client_broken") >= 1)
	wait_until("what was in flight to end", v.quiet)
	m = v.metrics()
	refused = m.get("refreshes_total", provider="cli", outcome="client_broken")
	tap.equal("the breaker is open", m.get("provider_circuit_open", provider="cli"), 1)
	tap.check("only what was in flight was tried (%d)" % refused, refused <= 4, refused)
	rows = v.rows().values()
	tap.check("nobody is marked", all(r["state"] == "callable" and r["health"] == "ok" and r["failures"] == 0 for r in rows), "")
	tap.equal("one event says so", len([e for e in v.events() if "provider" in e[0]]), 1)
	held = v.logged("provider.held_back")
	tap.equal("one line in the log, with provider and reason", [(x.get("provider"), x.get("why"), x.get("reason")) for x in held],
		[("cli", "client", "client_refused")])
	v.write("client-secret", w.CLIENT_SECRET + "\n")
	v.signal(signal.SIGHUP)
	wait_until("those that were not tried to be refreshed with the right secret",
		lambda: v.count("refreshd.credential WHERE refreshes = 0") == refused, 25)
	waiting = [r["due_in"] for r in v.rows().values() if r["refreshes"] == 0]
	tap.check("those that were refused follow within a minute", all(0 < x < 60 for x in waiting), waiting)
	tap.equal("the breaker is closed again", v.metrics().get("provider_circuit_open", provider="cli"), 0)
	w.judge_ledger(tap, world.sim, "cli")
	w.judge_tokens(tap, world.sim, v, "cli")
	tap.check("the secret is not in the log", w.CLIENT_SECRET not in v.log_text() and "not-the-right-one" not in v.log_text(), "")


def provider_down(tap, world):
	for realm in ("rst", "busy", "well"):
		world.sim.realm(realm, mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("down", {"rst": {}, "busy": {}, "well": {}})
	for realm in ("rst", "busy", "well"):
		v.import_lines(due_now(world.sim.mint(realm, 20)))
	world.sim.down("rst", 600)
	world.sim.down("busy", 600, status=503)
	v.start()
	wait_until("the well provider's connections", lambda: v.metrics().get("refreshes_total", provider="well", outcome="refreshed") == 20)
	wait_until("both breakers to open", lambda: all(v.metrics().get("provider_circuit_open", provider=p) == 1 for p in ("rst", "busy")))
	wait_until("quiet", v.quiet)
	m = v.metrics()
	tap.equal("the well one is not affected", m.get("provider_circuit_open", provider="well"), 0)
	tap.check("503 is transient", m.get("refreshes_total", provider="busy", outcome="transient") >= 5, v.outcomes("busy"))
	tap.check("a reset is in doubt or never sent", set(v.outcomes("rst")) <= {"in_doubt", "never_sent"}, v.outcomes("rst"))
	states = [(r["state"], r["health"]) for r in v.all_rows()]
	tap.check("those that were tried are pending, none is dead", ("callable", "pending_refresh") in states and
		set(states) <= {("callable", "pending_refresh"), ("callable", "ok")}, states)
	world.sim.down("rst", 0)
	world.sim.down("busy", 0)
	wait_until("all to be refreshed", lambda: v.count("refreshd.credential WHERE refreshes = 0") == 0, 60)
	wait_until("quiet", v.quiet)
	def told(word):
		return sorted(e[3] for e in v.events() if e[0] == "vault.connection.token_refresh." + word)

	tap.check("pending is told once for a connection", told("pending") and len(told("pending")) == len(set(told("pending"))), told("pending"))
	tap.equal("who was pending has recovered, and was told so once", told("recovered"), told("pending"))
	tap.equal("none has failed", told("failed"), [])
	tap.equal("both breakers are closed", [v.metrics().get("provider_circuit_open", provider=p) for p in ("rst", "busy")], [0, 0])
	for realm in ("rst", "busy", "well"):
		w.judge_ledger(tap, world.sim, realm)
		w.judge_tokens(tap, world.sim, v, realm)
	clean_log(tap, v)


def rate_limited(tap, world):
	kinds = {"rldelta": "delta:3", "rldate": "date:3", "rlgarbage": "garbage", "rlnone": "none"}
	v = world.vault("limited", {k: {} for k in kinds})
	for realm, arg in kinds.items():
		world.sim.realm(realm, mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
		world.sim.fault(realm, "429", arg=arg, n=1)
		v.import_lines(world.sim.mint(realm, 1, expires_in=30, issued_ago=20))
	v.start()
	wait_until("all to be refreshed", lambda: v.count("refreshd.credential WHERE refreshes = 0") == 0, 25)
	for realm in kinds:
		tap.equal("%s: held back, then refreshed" % realm, v.outcomes(realm), {"rate_limited": 1, "refreshed": 1})
		tries = sorted(x["t_recv_us"] for x in world.sim.ledger(realm))
		gap = (tries[1] - tries[0]) / 1e6
		tap.check("%s: it waits as it was told (%.1f s)" % (realm, gap), gap >= (2 if realm == "rldate" else 3 if realm == "rldelta" else 0.5), gap)
	tap.equal("nobody is marked and nothing is told", [e for e in v.events() if "refresh" in e[0]], [])
	w.judge_expiry(tap, v)


# ---------------------------------------------------------------- every reply of a token endpoint

OK, LOST, DEAD = ("callable", "ok", "none"), ("invalid", "needs_auth", "rotation_lost"), ("invalid", "needs_auth", "invalid_grant")
AGAIN = {"refreshed": 1}


def then(outcome, more=AGAIN):
	return dict(more, **{outcome: 1})


GONE = {"grant_dead": 1}
# name, fault, argument, outcomes, (state, health, reason), more: {mode, provider options, life: (low, high) seconds}
REPLIES = [
	("early", "early_answer", None, then("transient"), OK),
	("dieb", "die_before", None, then("in_doubt"), OK),
	("rstb", "rst_before", None, then("in_doubt"), OK),
	("hang", "hang", None, then("in_doubt"), OK, {"mode": "grace", "timeout": "1s"}),
	("e400", "error", "400:invalid_grant", GONE, DEAD),
	("e403", "error", "403:invalid_grant", GONE, DEAD),
	("e401", "error", "401:invalid_client", {"client_broken": 1}, OK),
	("escope", "error", "400:invalid_scope", {"client_broken": 1}, OK),
	("eunauth", "error", "400:unauthorized_client", {"client_broken": 1}, OK),
	("e404", "error", "404:not_found", {"client_broken": 1}, OK),
	("e408", "error", "408:request_timeout", then("transient"), OK),
	("eodd", "error", "400:some_vendor_word", then("transient"), OK),
	("e500", "error", "500:server_error", then("transient"), OK),
	("e500g", "error", "500:invalid_grant", then("transient"), OK),
	("e502", "error", "502:bad_gateway", then("in_doubt"), OK),
	("e504", "error", "504:gateway_timeout", then("in_doubt"), OK),
	("e503", "error", "503:temporarily_unavailable", then("transient"), OK),
	("u401", "empty_401", None, {"client_broken": 1}, OK),
	("u200", "empty_200", None, then("malformed"), OK),
	("okerr", "ok_with_error", "invalid_grant", GONE, DEAD),
	("okbad", "ok_with_error", "bad_refresh_token", GONE, DEAD),
	("oktmp", "ok_with_error", "temporarily_unavailable", then("transient"), OK),
	("html", "not_json", None, then("malformed"), OK),
	("r307", "redirect_307", None, {"client_broken": 1}, OK),
	("l429", "429", "delta:1", then("rate_limited"), OK),
	("diea", "die_after", None, then("in_doubt", GONE), LOST),
	("dieg", "die_after", None, then("in_doubt"), OK, {"mode": "grace"}),
	("hanga", "hang_after", None, then("in_doubt"), OK, {"mode": "grace", "timeout": "1s"}),
	("rsta", "rst_after", "0", then("in_doubt", GONE), LOST),
	("rst90", "rst_after", "90", then("in_doubt", GONE), LOST),
	("half", "half_reply", None, then("in_doubt", GONE), LOST),
	("halfg", "half_reply", None, then("in_doubt"), OK, {"mode": "grace"}),
	("drip", "drip", "2", AGAIN, OK),
	("slowh", "slow_headers", "2", AGAIN, OK),
	("chunk", "chunked", None, AGAIN, OK),
	("form", "form_body", None, AGAIN, OK, {"life": (3590, 3600)}),
	("big", "huge_body", "200000", AGAIN, OK),
	("huge", "huge_body", None, then("in_doubt", GONE), LOST),
	("deep", "deep_json", None, then("malformed", GONE), LOST),
	("dup", "dup_keys", None, then("malformed", GONE), LOST),
	("utf8", "bad_utf8", None, then("malformed", GONE), LOST),
	("rtabs", "rt_absent", None, AGAIN, OK),
	("rtnull", "rt_null", None, AGAIN, OK),
	("rtempty", "rt_empty", None, AGAIN, OK),
	("xstr", "wrong_types", "expires_string", AGAIN, OK, {"life": (3590, 3600)}),
	("xfloat", "wrong_types", "expires_float", AGAIN, OK, {"life": (3590, 3601)}),
	("xneg", "wrong_types", "expires_negative", AGAIN, OK, {"life": (3590, 3600)}),
	("xzero", "wrong_types", "expires_zero", AGAIN, OK, {"life": (3590, 3600)}),
	("xnull", "wrong_types", "expires_null", AGAIN, OK, {"life": (3590, 3600)}),
	("xtext", "wrong_types", "expires_text", AGAIN, OK, {"life": (3590, 3600)}),
	("xabs", "wrong_types", "expires_absent", AGAIN, OK, {"life": (3590, 3600)}),
	("xdef", "wrong_types", "expires_absent", AGAIN, OK, {"default_expires_in": "20m", "life": (1190, 1200)}),
	("xhuge", "wrong_types", "expires_huge", then("malformed", GONE), LOST),
	("xms", "wrong_types", "expires_ms", AGAIN, OK, {"expires_in_unit": "ms", "life": (3590, 3600)}),
	("tnone", "wrong_types", "token_type_missing", AGAIN, OK),
	("anum", "wrong_types", "access_token_number", then("malformed", GONE), LOST),
	("anull", "wrong_types", "access_token_null", then("malformed", GONE), LOST),
	("amiss", "wrong_types", "access_token_missing", then("malformed", GONE), LOST),
	("aempty", "wrong_types", "access_token_empty", then("malformed", GONE), LOST),
	("rnum", "wrong_types", "refresh_token_number", then("malformed", GONE), LOST),
	("robj", "wrong_types", "refresh_token_object", then("malformed", GONE), LOST),
	("rabs", "wrong_types", "refresh_token_absent", AGAIN, OK),
]


def replies(tap, world):
	providers = {}
	for name, kind, arg, _, _, *more in REPLIES:
		more = dict(more[0]) if more else {}
		more.pop("life", None)
		mode = more.pop("mode", "strict")
		providers[name] = dict(more, rotation=mode, **({"rotation_grace": "60s"} if mode == "grace" else {}))
		world.sim.realm(name, mode=mode, at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
		world.sim.fault(name, kind, n=1, **({"arg": arg} if arg is not None else {}))
	v = world.vault("replies", providers)
	lines = {name: due_now(world.sim.mint(name, 1)) for name in providers}
	v.import_lines([x for some in lines.values() for x in some])
	v.start()

	def done(name, outcomes):
		got = v.outcomes(name)
		return sum(got.values()) >= sum(outcomes.values())

	for name, _, _, outcomes, *_ in REPLIES:
		try:
			wait_until(name, lambda: done(name, outcomes), 20)
		except TimeoutError:
			pass
	wait_until("quiet", v.quiet)
	rows = {r["service"]: r for r in v.all_rows()}
	for name, kind, arg, outcomes, state, *more in REPLIES:
		label = kind + (" " + arg if arg else "") + (", grace" if more and more[0].get("mode") == "grace" else "")
		r = rows[name]
		tap.equal("%s: outcomes" % label, v.outcomes(name), outcomes)
		tap.equal("%s: state" % label, (r["state"], r["health"], r["reason"]), state)
		if more and "life" in more[0]:
			low, high = more[0]["life"]
			tap.check("%s: life of %.0f s" % (label, r["life"]), low <= r["life"] <= high, r["life"])
	redirect = world.sim.stats("r307")
	tap.equal("a redirect is not followed, no secret is posted again",
		(redirect["redirect_followed"], redirect["redirect_secret_seen"]), (0, 0))
	lost = sum(1 for x in REPLIES if x[4] == LOST)
	tap.equal("lost rotations are counted", v.metrics().get("rotation_lost_total"), lost)
	unreadable = [x[0] for x in REPLIES if "malformed" in x[3]]
	kept = v.sql("SELECT string_agg(DISTINCT c.service_id, ' ' ORDER BY c.service_id) FROM refreshd.orphan_token o"
		" JOIN refreshd.connection c USING (slot, connection_id) WHERE o.raw_reply IS NOT NULL").split()
	tap.check("every unreadable reply with a body is kept sealed", set(unreadable) - {"u200"} <= set(kept), (unreadable, kept))
	ledger = [x for x in world.sim.ledger() if x["realm"] in providers]
	tap.equal("no two presentations overlap", [x for x in ledger if x["overlap"]], [])
	tap.equal("no token is presented again after a good answer", w.presented_again(ledger), [])
	clean_log(tap, v)


def keepalive_race(tap, world):
	"""A kept connection is closed by the provider just as the next request arrives: libcurl must not send it again by itself."""
	vaults = {}
	for realm, arg in (("kafin", None), ("karst", "rst")):
		world.sim.realm(realm, mode="strict", at_ttl=6, auth="basic", client_secret=w.CLIENT_SECRET)
		world.sim.fault(realm, "keepalive_close", n=1, **({"arg": arg} if arg else {}))
		v = vaults[realm] = world.vault(realm, {realm: {}})
		v.import_lines(due_now(world.sim.mint(realm, 1)))
		v.start()
	for realm, v in vaults.items():
		wait_until("three refreshes", lambda: v.count("refreshd.credential WHERE refreshes < 3") == 0, 40)
		v.stop()
		ledger = w.judge_ledger(tap, world.sim, realm)
		# The ledger holds the request that was cut off when its body had come as well; the daemon cannot know, and must doubt.
		raced = [x for x in ledger if x["outcome"] == "fault:keepalive_close" and x["status"] == 0]
		doubts = [x for x in v.logged("refresh.failed") if x["outcome"] == "in_doubt"]
		# Without a doubt the connection was gone before any of the body went out: then it is the first time that a second one takes it.
		tap.check("%s: a token that met a closed connection is in doubt" % realm, len(raced) <= len(doubts) <= 1, (doubts, raced))
		tap.equal("%s: nothing was sent but what the daemon knows of" % realm, len(ledger), 3 + len(raced))
		tap.check("%s: the second try comes after the doubt was written down" % realm, all(y["t_recv_us"] - x["t_done_us"] > 200000
			for x in raced for y in ledger if x["rt"] == y["rt"] and x is not y), ledger)
		w.judge_tokens(tap, world.sim, v, realm)


# ---------------------------------------------------------------- names, TLS, client authentication

def hung_dns(tap, world):
	world.sim.realm("hung", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	world.sim.realm("good", mode="strict", at_ttl=8, auth="basic", client_secret=w.CLIENT_SECRET)
	world.sim.realm("private", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	conf = os.path.join(world.dir, "resolv.conf")
	with open(conf, "w") as f:
		f.write("nameserver 127.0.0.1:%d\n" % world.sim.dns_port)
	v = world.vault("dns", {
		"hung": {"token_url": "https://hang.test:%d/hung/token" % world.sim.port},
		"nx": {"token_url": "https://nx.test:%d/nx/token" % world.sim.port},
		"good": {"token_url": world.sim.url("good")},
	}, dns={"resolv_conf": conf, "timeout": "2s"})
	v.import_lines(due_now(world.sim.mint("hung", 40)))
	v.import_lines(due_now(world.sim.mint("private", 3, service="nx")))
	v.import_lines(world.sim.mint("good", 40))
	v.start()
	before = v.metrics()
	wait_until("hung look-ups to be given up", lambda: v.metrics().get("refreshes_total", provider="hung", outcome="never_sent") >= 5, 30)
	wait_until("the name that is not there", lambda: v.metrics().get("refreshes_total", provider="nx", outcome="never_sent") >= 3, 30)
	wait_until("the good provider to be refreshed twice", lambda: v.count(
		"refreshd.credential k JOIN refreshd.connection c USING (slot, connection_id) WHERE c.service_id = 'good' AND refreshes < 2") == 0, 30)
	m = v.metrics()
	turns = m.get("loop_stall_seconds_count") - before.get("loop_stall_seconds_count")
	quick = m.get("loop_stall_seconds_bucket", le="0.1") - before.get("loop_stall_seconds_bucket", le="0.1")
	tap.check("no turn of the loop took 100 ms (%d turns)" % turns, turns == quick, "%d of %d" % (turns - quick, turns))
	tap.equal("nothing but never_sent at the hung provider", set(v.outcomes("hung")), {"never_sent"})
	tap.equal("nobody is dead", v.count("refreshd.connection WHERE state <> 'callable'"), 0)
	late = v.count("watch.late l JOIN refreshd.connection c USING (connection_id) WHERE c.service_id = 'good'")
	tap.equal("the other provider's tokens never expired", late, 0)
	v.signal(signal.SIGTERM)
	tap.equal("it stops in the middle of hung look-ups", v.wait(20), 0)
	w.judge_ledger(tap, world.sim, "good")
	w.judge_tokens(tap, world.sim, v, "good")


def openssl(*args):
	subprocess.run(["openssl"] + list(args), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_ca(folder, name):
	key, crt = os.path.join(folder, name + ".key"), os.path.join(folder, name + ".crt")
	openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", crt,
		"-days", "2", "-subj", "/CN=" + name)
	return key, crt


def make_cert(folder, name, ca, san):
	key, csr, crt, ext = (os.path.join(folder, name + x) for x in (".key", ".csr", ".crt", ".ext"))
	with open(ext, "w") as f:
		f.write("subjectAltName=%s\n" % san)
	openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", csr, "-subj", "/CN=" + name)
	openssl("x509", "-req", "-in", csr, "-CA", ca[1], "-CAkey", ca[0], "-CAcreateserial", "-out", crt, "-days", "2", "-extfile", ext)
	return key, crt


def tls(tap, world):
	folder = os.path.join(world.dir, "tls")
	os.mkdir(folder)
	ca, other = make_ca(folder, "private-ca"), make_ca(folder, "other-ca")
	server, client = make_cert(folder, "server", ca, "IP:127.0.0.1"), make_cert(folder, "client", ca, "DNS:client.test")
	sim = w.Simulator(os.path.join(folder, "sim"), tls={"cert": server[1], "key": server[0], "ca": ca[1], "client_ca": ca[1],
		"client_cert": client[1], "client_key": client[0]}, dns=True)
	try:
		for realm, auth in (("trusted", "basic"), ("untrusted", "basic"), ("system", "basic"), ("wrongname", "basic"), ("mtls", "tls")):
			sim.realm(realm, mode="strict", at_ttl=3600, auth=auth, client_secret=w.CLIENT_SECRET)
		conf = os.path.join(folder, "resolv.conf")
		with open(conf, "w") as f:
			f.write("nameserver 127.0.0.1:%d\n" % sim.dns_port)
		names = ("trusted", "untrusted", "system", "wrongname", "mtls")
		v = world.vault("tlsv", {
			"trusted": {"token_url": sim.url("trusted"), "ca_file": ca[1]},
			"untrusted": {"token_url": sim.url("untrusted"), "ca_file": other[1]},
			"system": {"token_url": sim.url("system")},
			"wrongname": {"token_url": sim.url("wrongname", host="name.test"), "ca_file": ca[1]},
			"mtls": {"token_url": sim.url("mtls"), "ca_file": ca[1], "client_auth": "tls_client_auth"},
		}, migrate=False, dns={"resolv_conf": conf})
		for c in v.conf["clients"]:
			if c["provider"] == "mtls":
				del c["client_secret_file"]
				c.update(cert_file=client[1], private_key_file=client[0])
		v.write_conf()
		v.migrate()
		for n in names:
			v.import_lines(due_now(sim.mint(n, 3)))
		v.start()
		settled(v, names, 3)
		tap.equal("a private CA is trusted when the provider names it", v.outcomes("trusted"), {"refreshed": 3})
		tap.equal("a client certificate is shown", v.outcomes("mtls"), {"refreshed": 3})
		for n in ("untrusted", "system", "wrongname"):
			tap.equal("%s certificate: nothing is sent" % n, (set(v.outcomes(n)), len(sim.ledger(n))), ({"never_sent"}, 0))
		tap.check("the log names the reason", any(x.get("error", "").startswith("tls") for x in v.logged("refresh.transport")),
			v.logged("refresh.transport")[:3])
		w.judge_tokens(tap, sim, v, "trusted")
		w.judge_tokens(tap, sim, v, "mtls")
	finally:
		sim.close()


def client_auth(tap, world):
	folder = os.path.join(world.dir, "keys")
	os.mkdir(folder)
	keys = {"es": "ec -pkeyopt ec_paramgen_curve:P-256", "rs": "rsa -pkeyopt rsa_keygen_bits:2048"}
	for name, how in keys.items():
		key, pub = os.path.join(folder, name + ".pem"), os.path.join(folder, name + ".pub")
		openssl("genpkey", "-algorithm", *how.split(), "-out", key)
		openssl("pkey", "-in", key, "-pubout", "-out", pub)
		world.sim.realm("jwt" + name, mode="strict", at_ttl=3600, auth="jwt", client_id="cl " + name, jwt_key=pub)
	odd_id, odd_secret = "odd:client/1 %+\u00e9", "p@ss w/%+&=:~\u00fc"
	world.sim.realm("odd", mode="strict", at_ttl=3600, auth="basic", client_id=odd_id, client_secret=odd_secret)
	world.sim.realm("post", mode="strict", at_ttl=3600, auth="post", client_id=odd_id, client_secret=odd_secret)
	world.sim.realm("public", mode="strict", at_ttl=3600, auth="none", client_id=odd_id)
	auths = {"odd": "client_secret_basic", "post": "client_secret_post", "jwtes": "private_key_jwt", "jwtrs": "private_key_jwt", "public": "none"}
	v = world.vault("auth", {n: {"client_auth": a} for n, a in auths.items()}, migrate=False)
	secret = v.write("odd-secret", odd_secret + "\n")
	v.conf["clients"] = [
		{"application": "*", "provider": "odd", "client_id": odd_id, "client_secret_file": secret},
		{"application": "*", "provider": "post", "client_id": odd_id, "client_secret_file": secret},
		{"application": "*", "provider": "public", "client_id": odd_id},
		{"application": "*", "provider": "jwtes", "client_id": "cl es", "private_key_file": os.path.join(folder, "es.pem"), "assertion_alg": "ES256"},
		{"application": "*", "provider": "jwtrs", "client_id": "cl rs", "private_key_file": os.path.join(folder, "rs.pem"), "assertion_alg": "RS256"},
	]
	v.write_conf()
	v.migrate()
	for n in auths:
		v.import_lines(due_now(world.sim.mint(n, 4)))
	v.start()
	settled(v, list(auths), 4)
	for n, a in auths.items():
		tap.equal("%s with %s" % (n, a), v.outcomes(n), {"refreshed": 4})
		w.judge_tokens(tap, world.sim, v, n)


# ---------------------------------------------------------------- signals

def reload(tap, world):
	for realm in ("one", "two"):
		world.sim.realm(realm, mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("reload", {"one": {}, "two": {}})
	whole = json.loads(json.dumps(v.conf))
	v.conf["providers"].pop("two")
	v.conf["clients"] = [c for c in v.conf["clients"] if c["provider"] != "two"]
	v.write_conf()
	v.import_lines(due_now(world.sim.mint("one", 3)))
	v.start()
	settled(v, ["one"], 3)
	v.conf = json.loads(json.dumps(whole))
	v.conf["refresh"]["margin"] = "soon"
	v.conf["providers"]["two"]["rotatoin"] = "strict"
	v.write_conf()
	v.signal(signal.SIGHUP)
	wait_until("the bad configuration to be refused", lambda: v.metrics().get("config_reloads_total", outcome="refused") == 1)
	errors = v.logged("config.error")
	tap.check("both mistakes are told with file and line", len(errors) == 2 and all(v.conf_file + ":" in x["at"] for x in errors) and
		"margin" in json.dumps(errors) and "rotatoin" in json.dumps(errors), errors)
	tap.equal("the old one is kept", (len(v.logged("config.kept")), v.ready(), v.get("/readyz")[0]), (1, True, 200))
	v.conf = json.loads(json.dumps(whole))
	v.write_conf()
	v.import_lines(due_now(world.sim.mint("two", 3)))
	v.signal(signal.SIGHUP)
	wait_until("the good configuration to be taken", lambda: v.metrics().get("config_reloads_total", outcome="applied") == 1)
	settled(v, ["two"], 3)
	tap.equal("a provider that came by a reload is refreshed", v.outcomes("two"), {"refreshed": 3})
	v.conf["database"]["pool_size"] = 7
	v.conf["state_dir"] = v.state_dir + "2"
	v.write_conf()
	v.signal(signal.SIGHUP)
	wait_until("the word about a restart", lambda: v.logged("config.needs_restart"))
	options = v.logged("config.needs_restart")[0]["options"]
	tap.check("it names what needs a restart", "database.pool_size" in options and "state_dir" in options, options)
	tap.equal("it goes on", (v.ready(), v.stop()), (True, 0))
	clean_log(tap, v)


def drain(tap, world):
	world.sim.realm("slow", mode="strict", at_ttl=3600, auth="basic", client_secret=w.CLIENT_SECRET, delay_ms=2500)
	v = world.vault("drain", {"slow": {"max_in_flight": 40}})
	v.import_lines(due_now(world.sim.mint("slow", 60)))
	v.start()
	wait_until("forty requests in flight", lambda: world.sim.stats("slow")["in_flight"] == 40)
	began = time.monotonic()
	v.signal(signal.SIGTERM)
	wait_until("the drain to begin", lambda: any(x.get("phase") == "draining" for x in v.log_lines()))
	tap.equal("while it drains it is alive and not ready", (v.get("/healthz")[0], v.get("/readyz")[0]), (200, 503))
	v.signal(signal.SIGTERM)
	wait_until("the second SIGTERM to be noticed", lambda: v.logged("daemon.still_draining"))
	v.signal(signal.SIGINT)
	tap.equal("it ends with 0", v.wait(30), 0)
	took = time.monotonic() - began
	tap.check("it waits for the answers and no longer (%.1f s)" % took, 0.5 < took < 8, took)
	tap.equal("what was sent is committed", v.count("refreshd.credential WHERE refreshes = 1"), 40)
	tap.equal("the rest is untouched", v.count("refreshd.credential WHERE refreshes = 0"), 20)
	tap.equal("no lease is left behind", v.count("refreshd.schedule WHERE lease_owner IS NOT NULL"), 0)
	tap.equal("the instance said goodbye", v.count("refreshd.instance WHERE gone"), 1)
	w.judge_ledger(tap, world.sim, "slow")
	w.judge_tokens(tap, world.sim, v, "slow")
	clean_log(tap, v)


# ---------------------------------------------------------------- metrics, probes, quiet

def probes(tap, world):
	world.sim.realm("quiet", mode="strict", at_ttl=86400, auth="basic", client_secret=w.CLIENT_SECRET)
	v = world.vault("quiet", {"quiet": {}}, refresh={"poll_interval": "5s"})
	v.import_lines(world.sim.mint("quiet", 20))
	v.start()
	m = v.metrics()
	tap.equal("every metric is there from the start", [n for n in METRICS if "refreshd_" + n not in m.names()], [])
	tap.equal("every outcome of a provider is there at zero", [m.get("refreshes_total", provider="quiet", outcome=o) for o in OUTCOMES], [0.0] * 8)
	bare = [n for n in METRICS if not any(k[0].startswith("refreshd_" + n) for k in m.samples)]
	tap.equal("every metric has a sample at the start", bare, [])
	for name in ("rotation_lost_total", "in_doubt_total", "expired_connections", "orphan_tokens", "journal_records", "due_backlog"):
		tap.equal("%s starts at 0" % name, m.get(name), 0)
	tap.equal("build_info is 1", m.total("build_info"), 1)
	if shutil.which("promtool"):
		p = subprocess.run(["promtool", "check", "metrics"], input=v.get("/metrics")[1], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
		tap.check("promtool finds nothing wrong", p.returncode == 0 and p.stdout.strip() == "", p.stdout)
	else:
		tap.note("no promtool here: the strict reader of this script has judged the text")
	for path, status, words in (("/healthz", 200, "ok"), ("/readyz", 200, "ready"), ("/nothing", 404, "not found")):
		got = v.get(path)
		tap.check("%s: %d" % (path, status), got[0] == status and words in got[1], got)
	tap.equal("POST is refused", w.http(v.metrics_base + "/metrics", b"x")[0], 405)
	tap.equal("the connections are counted by state", m.total("connections") == 20 or wait_until("the count",
		lambda: v.metrics().get("connections", state="callable") == 20, 10), True)

	def switches():
		with open("/proc/%d/status" % v.proc.pid) as f:
			return sum(int(x.split()[1]) for x in f if "ctxt_switches" in x and x.startswith("voluntary"))

	before, began = switches(), time.monotonic()
	wait_until("four quiet seconds", lambda: time.monotonic() - began > 4)
	woken = switches() - before
	tap.check("with nothing due it sleeps (%d wake-ups in 4 s)" % woken, woken < 60, woken)
	tap.equal("it presented nothing", len(world.sim.ledger("quiet")), 0)


# ---------------------------------------------------------------- secrets

def spellings(secret):
	raw = secret.encode()
	out = {raw, binascii.hexlify(raw), binascii.hexlify(raw).upper(), urllib.parse.quote_plus(secret).encode(), urllib.parse.quote(secret, safe="").encode()}
	for shift in range(3):  # wherever it starts within a group of three
		plain = base64.b64encode(b"\0" * shift + raw)
		inner = plain[4 * (shift > 0):len(plain) - 4]
		out |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
	return out


def canaries(tap, world):
	world.sim.realm("bird", mode="grace", grace_s=60, at_ttl=6, auth="post", client_secret=w.CLIENT_SECRET)
	world.sim.sink_set("birds", secret=w.WEBHOOK_SECRET)
	world.pg.psql("ALTER SYSTEM SET log_statement = 'all'; ALTER SYSTEM SET log_min_duration_statement = 0;"
		" ALTER SYSTEM SET log_min_messages = 'debug1'; SELECT pg_reload_conf()")
	v = world.vault("birds", {"bird": {"client_auth": "client_secret_post", "rotation": "grace", "rotation_grace": "60s"}}, migrate=False,
		log={"level": "debug"})
	v.conf["webhooks"] = [{"name": "birds", "application": "*", "url": world.sim.sink_url("birds"),
		"secret_file": v.write("webhook-secret", w.WEBHOOK_SECRET + "\n"), "allow_private": True}]
	v.write_conf()
	v.migrate()
	lines = due_now(world.sim.mint("bird", 8))
	secrets = {w.CLIENT_SECRET, w.WEBHOOK_SECRET, w.WEBHOOK_SECRET[6:], "canary-webhook-secret-0123456789", v.keyring.split()[1]}
	secrets |= {x["credentials"][k] for x in lines for k in ("access_token", "refresh_token")}
	for kind, arg in (("error", "400:invalid_grant"), ("dup_keys", None), ("not_json", None), ("half_reply", None), ("wrong_types", "access_token_number")):
		world.sim.fault("bird", kind, n=1, **({"arg": arg} if arg else {}))
	v.import_lines(lines)
	v.start()
	collected = [v.get("/metrics")[1]]

	def gather():
		for x in lines:
			f = world.sim.family("bird", x["consumer_id"][1:])
			secrets.update(f[k] for k in ("access_token", "refresh_token") if f.get(k))
		return v.count("refreshd.credential WHERE refreshes < 2") <= 1

	wait_until("two rounds of refreshes", gather, 40)
	wait_until("a webhook", lambda: world.sim.sink("birds"), 20)
	with open("/proc/%d/cmdline" % v.proc.pid, "rb") as f, open("/proc/%d/environ" % v.proc.pid, "rb") as g:
		collected += [f.read().decode(errors="replace"), g.read().decode(errors="replace")]
	collected.append(v.get("/metrics")[1])
	gather()
	v.stop()
	hooks = world.sim.sink("birds")
	tap.check("webhooks are signed (%d)" % len(hooks), hooks and all(h["verified"]["standard"] and h["verified"]["apideck"] for h in hooks), hooks[:1])
	dump = subprocess.run([os.path.join(world.pg.bindir, "pg_dump"), "-d", world.pg.url(v.dbname)], stdout=subprocess.PIPE, check=True).stdout
	places = {"the log": v.log_text().encode(), "the server's log": world.pg.log_text().encode(), "metrics, arguments, environment": "\n".join(collected).encode(),
		"webhooks": json.dumps(hooks).encode(), "a dump of the database": dump}
	journal = b""
	for folder, _, names in os.walk(v.state_dir):
		for n in names:
			with open(os.path.join(folder, n), "rb") as f:
				journal += f.read().strip(b"\0")
	places["the journal"] = journal
	needles = {s for secret in secrets for s in spellings(secret)}
	tap.check("there is enough to look for (%d secrets, %d spellings)" % (len(secrets), len(needles)), len(secrets) >= 20, len(secrets))
	planted = ("x" + sorted(secrets)[3] + "y").encode()
	tap.check("the search finds a secret that is there", any(n in planted for n in needles), "")
	for place, text in places.items():
		found = [n for n in needles if n in text]
		tap.check("no secret in %s (%d bytes)" % (place, len(text)), len(text) > 0 and not found, found[:3])
	world.pg.psql("ALTER SYSTEM RESET ALL; SELECT pg_reload_conf()")


SCENARIOS = [normal_life, due_at_once, revoked, client_refused, provider_down, rate_limited, replies, keepalive_race, hung_dns, tls,
	client_auth, reload, drain, probes, canaries]


def main():
	tap = w.Tap()
	with w.World("daemon", dns=True) as world:
		tap.run(SCENARIOS, world)
	return tap.finish()


if __name__ == "__main__":
	sys.exit(main())
