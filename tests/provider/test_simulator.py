#!/usr/bin/env python3
"""The provider simulator judged by raw sockets: every rotation mode, client authentication, fault, the sink,
the name server and the ledger. TAP on stdout; nothing but the standard library and the openssl program."""
import base64
import hashlib
import hmac
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.parse

PROGRAM = os.path.join(os.environ.get("TOP_BUILDDIR", "."), "tests/provider/simulator")
DEADLINE_S = 20
results = []
running = []


def check(name, good, detail=""):
    results.append(bool(good))
    print("%s %d - %s" % ("ok" if good else "not ok", len(results), name))
    if not good:
        print("# got: %s" % (detail,))
    sys.stdout.flush()


def equal(name, got, want):
    check(name, got == want, "%r, wanted %r" % (got, want))


class Reset(Exception):
    pass


class Conn:
    """One connection that sends bytes and reads answers, and tells a FIN from a RST."""

    def __init__(self, port, context=None):
        self.s = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            self.s = context.wrap_socket(self.s, server_hostname="localhost")
        self.data = b""

    def send(self, data):
        self.s.sendall(data)

    def more(self):
        try:
            got = self.s.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            raise Reset()
        self.data += got
        return len(got) > 0

    def until(self, mark):
        while mark not in self.data:
            if not self.more():
                return None
        head, self.data = self.data.split(mark, 1)
        return head

    def exactly(self, n):
        while len(self.data) < n:
            if not self.more():
                return None
        out, self.data = self.data[:n], self.data[n:]
        return out

    def answer(self):
        """(status, headers, body), or None when the connection ended first."""
        head = self.until(b"\r\n\r\n")
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            k, v = line.split(": ", 1)
            headers[k.lower()] = v
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                n = int(self.until(b"\r\n"), 16)
                piece = self.exactly(n)
                self.exactly(2)
                if n == 0:
                    break
                body += piece
        else:
            body = self.exactly(int(headers.get("content-length", "0")))
        if body is None:
            return None
        return int(lines[0].split(" ")[1]), headers, body

    def rest(self):
        """Everything up to the end of the connection."""
        while self.more():
            pass
        return self.data

    def ended(self):
        """'fin' or 'rst', when nothing else comes."""
        try:
            return "fin" if self.rest() == b"" else "bytes"
        except Reset:
            return "rst"

    def close(self):
        self.s.close()


def request_bytes(path, body=b"", headers=None, method="POST"):
    h = {"Host": "127.0.0.1"}
    if body or method == "POST":
        h["Content-Length"] = str(len(body))
    h.update(headers or {})
    text = "".join("%s: %s\r\n" % kv for kv in h.items())
    return ("%s %s HTTP/1.1\r\n%s\r\n" % (method, path, text)).encode() + body


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def token_request(realm, rt, extra=None, headers=None, path=None):
    params = {"grant_type": "refresh_token", "refresh_token": rt}
    params.update(extra or {})
    h = dict(FORM)
    h.update(headers or {})
    return request_bytes(path or "/%s/token" % realm, urllib.parse.urlencode(params).encode(), h)


def basic(user, password):
    pair = urllib.parse.quote_plus(user) + ":" + urllib.parse.quote_plus(password)
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


class Simulator:
    def __init__(self, directory, *options, context=None):
        self.ledger = os.path.join(directory, "ledger-%d" % time.monotonic_ns())
        self.context = context
        self.p = subprocess.Popen([PROGRAM, "--listen", "127.0.0.1:0", "--ledger", self.ledger] + list(options),
                                  stdout=subprocess.PIPE)
        running.append(self.p)
        line = self.p.stdout.readline()
        self.ready = json.loads(line) if line else {}
        self.port = self.ready.get("port", 0)
        self.control = None

    def conn(self):
        return Conn(self.port, self.context)

    def call(self, method, path, body=b""):
        if self.control is None:
            self.control = self.conn()
        self.control.send(request_bytes(path, body, None, method))
        status, _, body = self.control.answer()
        return status, body.decode()

    def post(self, path_, **q):
        body = q.pop("raw_", b"")
        status, text = self.call("POST", path_ + ("?" + urllib.parse.urlencode(q) if q else ""), body)
        assert status == 200, text
        return text

    def get(self, path_, **q):
        status, text = self.call("GET", path_ + ("?" + urllib.parse.urlencode(q) if q else ""))
        assert status == 200, text
        return text

    def mint(self, realm, n=1, **q):
        return [json.loads(x) for x in self.post("/_sim/mint", realm=realm, n=n, **q).splitlines()]

    def token(self, realm):
        return self.mint(realm)[0]["refresh_token"]

    def family(self, realm, family):
        return json.loads(self.get("/_sim/family", realm=realm, family=family))

    def stats(self, realm):
        return json.loads(self.get("/_sim/stats", realm=realm))["realms"][realm]

    def fault(self, realm, kind, **q):
        self.post("/_sim/fault", realm=realm, kind=kind, **q)

    def refresh(self, realm, rt, **kw):
        c = self.conn()
        c.send(token_request(realm, rt, **kw))
        out = c.answer()
        c.close()
        return out

    def lines(self):
        self.get("/_sim/flush")
        with open(self.ledger) as f:
            return [json.loads(x) for x in f]

    def last(self, want=lambda line: True):
        """The newest ledger line that fits, once it is there."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            found = [x for x in self.lines() if want(x)]
            if found:
                return found[-1]
        return {}

    def stop(self):
        self.p.send_signal(signal.SIGTERM)
        code = self.p.wait(DEADLINE_S)
        self.p.stdout.close()
        return code


def body_of(answer):
    return json.loads(answer[2])


def error_of(answer):
    return answer[0], body_of(answer).get("error")


def test_strict(s):
    s.post("/_sim/realm", name="strict", mode="strict", at_ttl=1800, rt_len=77, at_len=1024)
    m = s.mint("strict")[0]
    rt0 = m["refresh_token"]
    equal("mint makes tokens of the lengths asked for", (len(rt0), len(m["access_token"])), (77, 1024))
    a = s.refresh("strict", rt0)
    equal("strict: a live token is exchanged", a[0], 200)
    b = body_of(a)
    check("strict: the answer has a new refresh token", b["refresh_token"] != rt0 and len(b["refresh_token"]) == 77, b)
    equal("strict: expires_in is the realm's", b["expires_in"], 1800)
    line = s.last()
    equal("ledger: rotated, delivered, with the token's hash", (line["outcome"], line["delivered"], line["rt"], line["live_gen"]),
          ("rotated", True, hashlib.sha256(rt0.encode()).hexdigest()[:16], 2))
    f = s.family("strict", m["family"])
    equal("family shows the live token", f["refresh_token"], b["refresh_token"])
    live = [json.loads(x) for x in s.get("/_sim/live", realm="strict").splitlines()]
    equal("live lists the hash of the live token", live[m["family"]]["rt_sha256"],
          hashlib.sha256(b["refresh_token"].encode()).hexdigest())
    equal("strict: an old token is invalid_grant", error_of(s.refresh("strict", rt0)), (400, "invalid_grant"))
    equal("ledger: reuse revokes", s.last()["outcome"], "reuse_revoked")
    equal("strict: the new token died with the family", error_of(s.refresh("strict", b["refresh_token"])), (400, "invalid_grant"))
    equal("ledger: revoked", s.last()["outcome"], "revoked")
    st = s.stats("strict")
    equal("stats: one reuse, one family revoked", (st["reuse_detected"], st["families_revoked"], st["errors"]["invalid_grant"]), (1, 1, 2))
    bad = rt0[:-1] + ("A" if rt0[-1] != "A" else "B")
    for name, rt in (("forged", bad), ("cut", rt0[:60]), ("foreign", "whatever")):
        equal("a %s token is unknown" % name, error_of(s.refresh("strict", rt)), (400, "invalid_grant"))
        equal("ledger: %s is unknown_token" % name, (s.last()["outcome"], s.last()["family"]), ("unknown_token", -1))
    other = s.token("strict")
    s.post("/_sim/realm", name="elsewhere")
    equal("a token of another realm is unknown", error_of(s.refresh("elsewhere", other)), (400, "invalid_grant"))
    m = s.mint("strict")[0]
    s.post("/_sim/revoke", realm="strict", family=m["family"])
    equal("revoke by hand", error_of(s.refresh("strict", m["refresh_token"])), (400, "invalid_grant"))


def test_grace(s):
    s.post("/_sim/realm", name="grace", mode="grace", grace_s=3600)
    rt1 = s.token("grace")
    rt2 = body_of(s.refresh("grace", rt1))["refresh_token"]
    rt3 = body_of(s.refresh("grace", rt1))["refresh_token"]
    check("grace: the previous token gives a sibling", rt3 not in (rt1, rt2))
    equal("ledger: reused_in_grace", s.last()["outcome"], "reused_in_grace")
    a = s.refresh("grace", rt2)
    equal("grace: every sibling is live until one is used", a[0], 200)
    equal("grace: a passed-over sibling is reuse", error_of(s.refresh("grace", rt3)), (400, "invalid_grant"))
    equal("grace: and revokes the family", s.stats("grace")["families_revoked"], 1)
    rt1 = s.token("grace")
    rt2 = body_of(s.refresh("grace", rt1))["refresh_token"]
    s.refresh("grace", rt2)
    equal("grace: the token before the previous one is reuse", error_of(s.refresh("grace", rt1)), (400, "invalid_grant"))
    s.post("/_sim/realm", name="grace0", mode="grace", grace_ms=0)
    rt1 = s.token("grace0")
    s.refresh("grace0", rt1)
    equal("grace: after the grace it is reuse", error_of(s.refresh("grace0", rt1)), (400, "invalid_grant"))


def test_static(s):
    for reply, want in (("absent", "absent"), ("null", None), ("empty", ""), ("same", "same")):
        realm = "static-" + reply
        s.post("/_sim/realm", name=realm, mode="static", static_reply=reply)
        rt = s.token(realm)
        first, second = body_of(s.refresh(realm, rt)), body_of(s.refresh(realm, rt))
        got = second.get("refresh_token", "absent")
        equal("static: refresh_token in the reply is %s" % reply, "same" if got == rt else got, want)
        check("static: access tokens are new (%s)" % reply, first["access_token"] != second["access_token"])
    equal("ledger: static_ok", s.last()["outcome"], "static_ok")


def test_verify(s):
    s.post("/_sim/realm", name="ver", mode="static", at_overlap="no")
    m = s.mint("ver", expires_in=100)[0]
    new = body_of(s.refresh("ver", m["refresh_token"]))["access_token"]
    lines = "\n".join(json.dumps({"access_token": x}) for x in (m["access_token"], new, "junk"))
    old, newest, junk = [json.loads(x) for x in s.post("/_sim/verify", raw_=lines.encode()).splitlines()]
    equal("verify: the old access token is not the newest", (old["newest"], old["active"]), (False, False))
    equal("verify: the newest is active", (newest["newest"], newest["active"], newest["family"]), (True, True, m["family"]))
    equal("verify: junk is unknown", junk["known"], False)
    m = s.mint("ver", expires_in=0)[0]
    v = json.loads(s.post("/_sim/verify", raw_=json.dumps({"access_token": m["access_token"]}).encode()))
    equal("verify: an access token expires", v["expired"], True)
    m = s.mint("ver", 2, format="import", application="a", consumer_prefix="u-", unified_api="crm", service_id="sv")[1]
    equal("mint: import lines", (m["application_id"], m["unified_api"], m["service_id"], m["consumer_id"][:2], sorted(m["credentials"])),
          ("a", "crm", "sv", "u-", ["access_token", "expires_in", "issued_at", "refresh_token"]))
    equal("mint: many lines, streamed", len(s.mint("ver", 5000)), 5000)


def test_auth(s):
    def ask(realm, **kw):
        return error_of(s.refresh(realm, s.token(realm), **kw))
    secret = "p+ä:%&= x"
    fine, refused, invalid = (200, None), (401, "invalid_client"), (400, "invalid_request")
    for auth in ("basic", "post", "none", "any"):
        s.post("/_sim/realm", name="au-" + auth, auth=auth, client_id="my:id", client_secret=secret)
    post = {"client_id": "my:id", "client_secret": secret}
    equal("basic: form-encoded parts are decoded", ask("au-basic", headers=basic("my:id", secret)), fine)
    equal("basic: a wrong secret", ask("au-basic", headers=basic("my:id", "x")), refused)
    a = s.refresh("au-basic", s.token("au-basic"))
    equal("basic: nothing given; the challenge is there", (a[0], a[1]["www-authenticate"][:5]), (401, "Basic"))
    equal("ledger: client_refused, and the token is not spent", (s.last()["outcome"], s.last()["rotated"]), ("client_refused", False))
    equal("basic: the secret in the body as well", ask("au-basic", headers=basic("my:id", secret), extra=post), invalid)
    equal("basic: the same client_id in the body is fine", ask("au-basic", headers=basic("my:id", secret), extra={"client_id": "my:id"}), fine)
    equal("basic: garbage after Basic", ask("au-basic", headers={"Authorization": "Basic !!"}), refused)
    equal("post: right", ask("au-post", extra=post), fine)
    equal("post: wrong", ask("au-post", extra={"client_id": "my:id", "client_secret": "x"}), refused)
    equal("post: Basic is the wrong way", ask("au-post", headers=basic("my:id", secret)), refused)
    equal("none: the id alone", ask("au-none", extra={"client_id": "my:id"}), fine)
    equal("none: another id", ask("au-none", extra={"client_id": "you"}), refused)
    equal("any: nothing", ask("au-any"), fine)
    equal("any: post", ask("au-any", extra=post), fine)
    equal("any: a wrong secret stays wrong", ask("au-any", headers=basic("my:id", "x")), refused)


def b64u(b):
    return base64.urlsafe_b64encode(b).rstrip(b"=").decode()


def der_to_raw(der):
    rl = der[3]
    r = int.from_bytes(der[4:4 + rl], "big")
    v = int.from_bytes(der[6 + rl:], "big")
    return r.to_bytes(32, "big") + v.to_bytes(32, "big")


def openssl(*args, data=None):
    return subprocess.run(["openssl"] + list(args), input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True).stdout


def make_jwt(alg, key, claims):
    text = b64u(json.dumps({"alg": alg}).encode()) + "." + b64u(json.dumps(claims).encode())
    sig = openssl("dgst", "-sha256", "-sign", key, data=text.encode())
    return text + "." + b64u(der_to_raw(sig) if alg == "ES256" else sig)


def test_jwt(s, d):
    for alg, spec in (("ES256", ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]), ("RS256", ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"])):
        key, pub, realm = os.path.join(d, alg), os.path.join(d, alg + ".pub"), "jwt-" + alg
        openssl("genpkey", "-algorithm", *spec, "-out", key)
        openssl("pkey", "-in", key, "-pubout", "-out", pub)
        s.post("/_sim/realm", name=realm, auth="jwt", jwt_key=pub, client_id="cid")

        def ask(jwt):
            return error_of(s.refresh(realm, s.token(realm), extra={
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion": jwt}))

        def claims(**kw):
            c = {"iss": "cid", "sub": "cid", "aud": "http://127.0.0.1/%s/token" % realm, "exp": int(time.time()) + 60,
                 "jti": os.urandom(9).hex()}
            c.update(kw)
            return c
        good = make_jwt(alg, key, claims())
        equal("jwt %s: right" % alg, ask(good), (200, None))
        refused = (401, "invalid_client")
        equal("jwt %s: a replayed jti" % alg, ask(good), refused)
        equal("jwt %s: another aud" % alg, ask(make_jwt(alg, key, claims(aud="http://else/"))), refused)
        equal("jwt %s: expired" % alg, ask(make_jwt(alg, key, claims(exp=int(time.time()) - 1))), refused)
        equal("jwt %s: another sub" % alg, ask(make_jwt(alg, key, claims(sub="x"))), refused)
        broken = make_jwt(alg, key, claims()).split(".")
        broken[2] = b64u(bytes(64 if alg == "ES256" else 256))
        equal("jwt %s: a wrong signature" % alg, ask(".".join(broken)), refused)
        equal("jwt %s: alg none" % alg, ask(b64u(b'{"alg":"none"}') + "." + broken[1] + "."), refused)


def test_http(s):
    s.post("/_sim/realm", name="http")
    c = s.conn()
    tokens = [s.token("http") for _ in range(5)]
    c.send(b"".join(token_request("http", t) for t in tokens))
    equal("five pipelined requests get five answers in order", [c.answer()[0] for _ in tokens], [200] * 5)
    serials = s.lines()[-5:]
    equal("ledger: one connection, requests counted", ([x["req"] for x in serials], len({x["conn"] for x in serials})), ([1, 2, 3, 4, 5], 1))
    data = token_request("http", s.token("http"))
    for i in range(len(data)):
        c.send(data[i:i + 1])
    equal("a request byte by byte", c.answer()[0], 200)
    c.send(token_request("http", s.token("http"), headers={"Connection": "close"}))
    equal("Connection: close is kept", (c.answer()[0], c.ended()), (200, "fin"))
    c = s.conn()
    body = urllib.parse.urlencode({"grant_type": "refresh_token", "refresh_token": s.token("http")}).encode()
    c.send(request_bytes("/http/token", body, dict(FORM, Expect="100-continue"))[:-len(body)])
    equal("Expect: 100-continue is answered", c.until(b"\r\n\r\n"), b"HTTP/1.1 100 Continue")
    c.send(body)
    equal("and the request goes on", c.answer()[0], 200)
    for name, raw, want in (
            ("HTTP/1.0", b"POST /http/token HTTP/1.0\r\nHost: x\r\n\r\n", 505),
            ("no Host", b"POST /http/token HTTP/1.1\r\n\r\n", 400),
            ("chunked request", b"POST /http/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
            ("two lengths", b"POST /http/token HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
            ("huge length", b"POST /http/token HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n", 413),
            ("space before the colon", b"POST /http/token HTTP/1.1\r\nHost : x\r\n\r\n", 400)):
        c = s.conn()
        c.send(raw)
        equal("refused: " + name, (c.answer() or [0])[0], want)
        c.close()
    dup = request_bytes("/http/token", b"grant_type=refresh_token&refresh_token=a&refresh_token=b", FORM)
    for name, raw, want in (
            ("a parameter twice", dup, "invalid_request"),
            ("no refresh token", request_bytes("/http/token", b"grant_type=refresh_token", FORM), "invalid_request"),
            ("another grant", request_bytes("/http/token", b"grant_type=password&refresh_token=x", FORM), "unsupported_grant_type"),
            ("no content type", request_bytes("/http/token", body), "invalid_request")):
        c = s.conn()
        c.send(raw)
        equal("refused: " + name, error_of(c.answer()), (400, want))
        c.close()
    s.post("/_sim/realm", name="json", body="json")
    c = s.conn()
    c.send(request_bytes("/json/token", json.dumps({"grant_type": "refresh_token", "refresh_token": s.token("json")}).encode(),
                         {"Content-Type": "application/json"}))
    equal("a JSON body", c.answer()[0], 200)
    c.send(token_request("json", s.token("json")))
    equal("body=json refuses a form", c.answer()[0], 400)


def test_time(s):
    s.post("/_sim/realm", name="slow", delay_ms=150)
    rt = s.token("slow")
    t = time.monotonic()
    a, b = s.conn(), s.conn()
    a.send(token_request("slow", rt))
    b.send(token_request("slow", rt))
    got = sorted((a.answer()[0], b.answer()[0]))
    check("delay_ms holds the answer back", time.monotonic() - t >= 0.14)
    equal("two at once: one wins", got, [200, 400])
    equal("ledger: both are flagged as overlapping", [x["overlap"] for x in s.lines()[-2:]], [True, True])
    equal("stats: overlap and concurrency", (s.stats("slow")["overlaps"], s.stats("slow")["max_in_flight"]), (1, 2))
    rt = s.token("slow")
    c = s.conn()
    c.send(token_request("slow", rt))
    c.close()
    line = s.last(lambda x: x["rt"] == hashlib.sha256(rt.encode()).hexdigest()[:16])
    equal("commit=early: a client that leaves has spent its token", (line["outcome"], line["delivered"]), ("rotated", False))
    s.post("/_sim/realm", name="slow", commit="late")
    m = s.mint("slow")[0]
    c = s.conn()
    c.send(token_request("slow", m["refresh_token"]))
    c.close()
    line = s.last(lambda x: (x["realm"], x["family"]) == ("slow", m["family"]))
    equal("commit=late: so has one that leaves before the end", (line["outcome"], line["delivered"], line["live_gen"]), ("rotated", False, 2))
    check("commit=late: at the end of the delay", line["t_done_us"] - line["t_recv_us"] >= 140000, line)
    equal("commit=late: one that stays is served", s.refresh("slow", s.token("slow"))[0], 200)
    s.post("/_sim/realm", name="rate", rate=1)
    first, second = s.refresh("rate", s.token("rate")), s.refresh("rate", s.token("rate"))
    equal("rate: the second in a second is 429", (first[0], second[0], second[1].get("retry-after")), (200, 429, "1"))
    equal("ledger: rate_limited", s.last()["outcome"], "rate_limited")
    s.post("/_sim/realm", name="down")
    rt = s.token("down")
    s.post("/_sim/down", realm="down", s=60)
    c = s.conn()
    c.send(token_request("down", rt))
    equal("down: reset", c.ended(), "rst")
    s.post("/_sim/down", realm="down", s=60, status=503)
    equal("down: 503", s.refresh("down", rt)[0], 503)
    s.post("/_sim/down", realm="down", s=0)
    equal("down ends; nothing was spent", s.refresh("down", rt)[0], 200)
    s.post("/_sim/down", realm="*", s=60)
    try:
        c = s.conn()
        c.send(token_request("down", rt))
        how = c.ended()
    except (ConnectionResetError, BrokenPipeError):
        how = "rst"
    equal("down for all: new connections are reset, old ones live", how, "rst")
    s.post("/_sim/down", realm="*", s=0)


class Faulty:
    """One fault, one fresh token, one connection."""

    def __init__(self, s, kind, send=True, **q):
        self.s, self.kind = s, kind
        s.fault("f", kind, **q)
        self.m = s.mint("f")[0]
        self.c = s.conn()
        if send:
            self.c.send(token_request("f", self.m["refresh_token"]))

    def done(self, name, rotated, delivered, status=None):
        self.c.close()
        line = self.s.last(lambda x: (x["realm"], x["family"]) == ("f", self.m["family"]))
        got = [line.get("outcome"), line.get("live_gen"), line.get("rotated"), line.get("delivered")]
        want = ["fault:" + self.kind, 2 if rotated else 1, rotated, delivered]
        if status is not None:
            got.append(line.get("status"))
            want.append(status)
        equal("ledger: " + name, got, want)


def test_faults_before(s):
    s.post("/_sim/realm", name="f", mode="strict")
    for kind, how in (("die_before", "fin"), ("rst_before", "rst")):
        f = Faulty(s, kind)
        equal(kind + " ends the connection without an answer", f.c.ended(), how)
        f.done(kind, False, False)
    f = Faulty(s, "hang")
    f.c.s.settimeout(0.2)
    try:
        how = f.c.ended()
    except (socket.timeout, TimeoutError):
        how = "silence"
    equal("hang never answers", how, "silence")
    f.done("hang", False, False)
    for arg in ("400:invalid_grant", "401:invalid_client", "500:server_error", "503:temporarily_unavailable", "403:invalid_grant", "404:x"):
        f = Faulty(s, "error", arg=arg)
        a = f.c.answer()
        equal("error " + arg, "%d:%s" % error_of(a), arg)
        f.done("error " + arg, False, True, int(arg[:3]))
    f = Faulty(s, "empty_401")
    a = f.c.answer()
    equal("empty_401 has no body and no challenge", (a[0], a[2], a[1].get("www-authenticate")), (401, b"", None))
    f.done("empty_401", False, True, 401)
    f = Faulty(s, "empty_200")
    equal("empty_200", f.c.answer()[::2], (200, b""))
    f.done("empty_200", False, True, 200)
    f = Faulty(s, "ok_with_error")
    equal("ok_with_error", error_of(f.c.answer()), (200, "invalid_grant"))
    f.done("ok_with_error", False, True, 200)
    f = Faulty(s, "ok_with_error", arg="bad_refresh_token")
    equal("ok_with_error with another code", error_of(f.c.answer()), (200, "bad_refresh_token"))
    f = Faulty(s, "not_json")
    a = f.c.answer()
    equal("not_json", (a[0], a[1]["content-type"][:9], a[2][:5]), (200, "text/html", b"<!doc"))
    f.done("not_json", False, True, 200)
    f = Faulty(s, "redirect_307")
    a = f.c.answer()
    equal("redirect_307 points elsewhere", (a[0], a[1]["location"]), (307, "/f/redirected"))
    f.done("redirect_307", False, True, 307)
    s.refresh("f", "x", path="/f/redirected")
    c = s.conn()
    c.send(request_bytes("/f/redirected", b"a=b", FORM))
    c.answer()
    st = s.stats("f")
    equal("redirect: followed twice, a secret once", (st["redirect_followed"], st["redirect_secret_seen"]), (2, 1))
    for arg, fits in (("delta:7", lambda v: v == "7"), ("date:60", lambda v: v.endswith(" GMT")),
                      ("garbage", lambda v: "soon" in v), ("none", lambda v: v == "")):
        f = Faulty(s, "429", arg=arg)
        a = f.c.answer()
        check("429 with Retry-After %s" % arg, a[0] == 429 and fits(a[1].get("retry-after", "")), a)
    f.done("429", False, True, 429)
    f = Faulty(s, "early_answer", send=False)
    data = token_request("f", f.m["refresh_token"])
    f.c.send(data[:-20])
    equal("early_answer comes before the body", f.c.answer()[0], 503)
    f.c.send(data[-20:])
    f.c.send(token_request("f", s.token("f")))
    equal("early_answer: the connection goes on after the body", f.c.answer()[0], 200)
    f.done("early_answer", False, True, 503)
    f = Faulty(s, "early_answer", arg="413:too_large")
    equal("early_answer when the body is there already", f.c.answer()[0], 413)


def test_faults_bytes(s):
    for kind, how in (("die_after", "fin"), ("rst_after", "rst")):
        f = Faulty(s, kind)
        equal(kind + " ends the connection without an answer", f.c.ended(), how)
        f.done(kind, True, False)
    f = Faulty(s, "hang_after")
    f.c.s.settimeout(0.2)
    try:
        how = f.c.ended()
    except (socket.timeout, TimeoutError):
        how = "silence"
    equal("hang_after never answers", how, "silence")
    f.done("hang_after", True, False)
    f = Faulty(s, "half_reply", arg=25)
    equal("half_reply sends so many bytes", len(f.c.rest()), 25)
    f.done("half_reply", True, False)
    f = Faulty(s, "half_reply")
    check("half_reply sends half by default", b"\r\n\r\n" in f.c.rest())
    f = Faulty(s, "drip", arg=1)
    sizes = []
    while b"}" not in f.c.data and f.c.more():
        sizes.append(len(f.c.data))
    check("drip comes in many small pieces", len(sizes) > 50 and f.c.answer()[0] == 200, len(sizes))
    f.done("drip", True, True, 200)
    f = Faulty(s, "slow_headers", arg=1)
    sizes = []
    while b"\r\n\r\n" not in f.c.data and f.c.more():
        sizes.append(len(f.c.data))
    check("slow_headers drips the head", len(sizes) > 30 and f.c.answer()[0] == 200, len(sizes))
    f.done("slow_headers", True, True, 200)
    for arg, how in (("", "fin"), ("rst", "rst")):
        f = Faulty(s, "keepalive_close", **({"arg": arg} if arg else {}))
        equal("keepalive_close answers the first request", f.c.answer()[0], 200)
        f.done_family = s.mint("f")[0]
        f.c.send(token_request("f", f.done_family["refresh_token"]))
        equal("keepalive_close: the next request ends in %s" % how, f.c.ended(), how)
        line = s.last(lambda x, n=f.done_family["family"]: (x["realm"], x["family"]) == ("f", n))
        equal("ledger: the second was presented and not spent", (line["outcome"], line["live_gen"], line["delivered"]),
              ("fault:keepalive_close", 1, False))
        f.done("keepalive_close, the first", True, True, 200)
    f = Faulty(s, "chunked")
    a = f.c.answer()
    equal("chunked", (a[1].get("transfer-encoding"), "refresh_token" in body_of(a)), ("chunked", True))
    f.done("chunked", True, True, 200)
    f = Faulty(s, "wrong_length", arg=50)
    head = f.c.until(b"\r\n\r\n").decode()
    promised = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
    equal("wrong_length promises too much and closes", promised - len(f.c.rest()), 50)
    f.done("wrong_length", True, False)
    f = Faulty(s, "huge_body", arg=3000000)
    a = f.c.answer()
    check("huge_body", len(a[2]) > 3000000 and "refresh_token" in body_of(a))
    f.done("huge_body", True, True, 200)
    f = Faulty(s, "deep_json", arg=5000)
    check("deep_json", b"[" * 5000 + b"]" * 5000 in f.c.answer()[2])
    f.done("deep_json", True, True, 200)


def test_faults_content(s):
    f = Faulty(s, "form_body")
    a = f.c.answer()
    q = urllib.parse.parse_qs(a[2].decode())
    check("form_body", a[1]["content-type"].startswith("application/x-www-form-urlencoded") and q["refresh_token"], a)
    f.done("form_body", True, True, 200)
    f = Faulty(s, "dup_keys")
    check("dup_keys", f.c.answer()[2].count(b'"access_token"') == 2)
    f.done("dup_keys", True, True, 200)
    f = Faulty(s, "bad_utf8")
    check("bad_utf8", b"\xff\xfe" in f.c.answer()[2])
    f.done("bad_utf8", True, True, 200)
    for kind, want in (("rt_absent", "absent"), ("rt_null", None), ("rt_empty", "")):
        f = Faulty(s, kind)
        equal(kind, body_of(f.c.answer()).get("refresh_token", "absent"), want)
        f.done(kind, True, True, 200)
    types = {"expires_string": b'"expires_in":"3600"', "expires_float": b'"expires_in":3599.5', "expires_negative": b'"expires_in":-1',
             "expires_zero": b'"expires_in":0}', "expires_huge": b'"expires_in":1e400', "expires_null": b'"expires_in":null',
             "expires_ms": b'"expires_in":3600000', "expires_text": b'"expires_in":"soon"', "access_token_number": b'"access_token":12345',
             "access_token_null": b'"access_token":null', "access_token_empty": b'"access_token":""',
             "refresh_token_number": b'"refresh_token":12345', "refresh_token_object": b'"refresh_token":{',
             "refresh_token_null": b'"refresh_token":null', "refresh_token_empty": b'"refresh_token":""'}
    for arg, text in types.items():
        body = Faulty(s, "wrong_types", arg=arg).c.answer()[2]
        check("wrong_types " + arg, text in body.replace(b',"refresh_token":"rt_', b'}'), body)
    for arg, key in (("token_type_missing", "token_type"), ("expires_absent", "expires_in"), ("access_token_missing", "access_token"),
                     ("refresh_token_absent", "refresh_token")):
        check("wrong_types " + arg, key not in body_of(Faulty(s, "wrong_types", arg=arg).c.answer()))


def test_fault_rules(s):
    s.post("/_sim/realm", name="r")
    s.fault("r", "error", n=2, every=3, arg="500:server_error")
    equal("every third, twice", [s.refresh("r", s.token("r"))[0] for _ in range(10)], [200, 200, 500, 200, 200, 500] + [200] * 4)
    a, b = s.mint("r", 2)
    s.fault("r", "error", n=0, family=b["family"], arg="503:x")
    equal("one family only, for ever", [s.refresh("r", x["refresh_token"])[0] for x in (b, a, b)], [503, 200, 503])
    listed = json.loads(s.get("/_sim/fault", realm="r"))
    equal("faults are listed", [(x["kind"], x["left"], x["fired"]) for x in listed], [("error", 0, 2), ("error", None, 2)])
    s.post("/_sim/fault/clear", realm="r")
    equal("and cleared", s.refresh("r", b["refresh_token"])[0], 200)
    s.fault("r", "die_after")
    s.refresh("r", "unknown")
    c = s.conn()
    c.send(token_request("r", s.token("r")))
    equal("an after-fault waits for a grant", c.ended(), "fin")
    for path in ("/_sim/fault?realm=r&kind=nonsense", "/_sim/fault?realm=nobody&kind=hang", "/_sim/fault?realm=r&kind=hang&every=0",
                 "/_sim/fault?realm=r&kind=error&arg=what", "/_sim/fault?realm=r&kind=wrong_types&arg=what", "/_sim/realm?name=r&mode=odd",
                 "/_sim/realm?name=r&odd=1", "/_sim/realm?name=_x", "/_sim/mint?realm=r&n=-1", "/_sim/family?realm=r&family=999999", "/_sim/what"):
        status, text = s.call("POST" if "family?" not in path else "GET", path)
        check("refused with a reason: " + path, status in (400, 404) and "error" in json.loads(text), text)


def test_sink(s):
    raw_key = os.urandom(24)
    secret = "whsec_" + base64.b64encode(raw_key).decode()
    s.post("/_sink_ctl", name="a", secret=secret, apideck_secret="sk", fail_first=2, retry_after=3)
    body = '{"x":"ü"}'.encode()

    def deliver(ident="m1", ts=None, spoil=False):
        ts = str(int(time.time()) if ts is None else ts)
        sig = base64.b64encode(hmac.new(raw_key, b".".join((ident.encode(), ts.encode(), body)), "sha256").digest()).decode()
        hexa = hmac.new(b"sk", body + (b" " if spoil else b""), "sha256").hexdigest()
        c = s.conn()
        c.send(request_bytes("/_sink/a/below", body, {"Webhook-Id": ident, "webhook-timestamp": ts, "X-Apideck-Signature": hexa,
                                                      "webhook-signature": "v1,AAAA v1," + ("A" if spoil else "") + sig}))
        out = c.answer()
        c.close()
        return out
    answers = [deliver(), deliver(spoil=True), deliver(ts=1)]
    equal("sink: the first two fail", [(a[0], a[1].get("retry-after")) for a in answers], [(503, "3"), (503, "3"), (200, None)])
    log = [json.loads(x) for x in s.get("/_sink_log", name="a").splitlines()]
    equal("sink: records keep headers and the raw body", (log[0]["headers"]["webhook-id"], log[0]["body"], log[0]["status"]), ("m1", body.decode(), 503))
    equal("sink: signatures are verified", [x["verified"] for x in log],
          [{"standard": True, "apideck": True}, {"standard": False, "apideck": False}, {"standard": False, "apideck": True}])
    equal("sink: the log goes on from a number", len(s.get("/_sink_log", name="a", **{"from": 2}).splitlines()), 1)
    s.post("/_sink_ctl", name="b", status=410, delay_ms=100)
    c = s.conn()
    t = time.monotonic()
    c.send(request_bytes("/_sink/b", b"\xff"))
    equal("sink: status", c.answer()[0], 410)
    check("sink: delay", time.monotonic() - t >= 0.09)
    equal("sink: bytes that are not UTF-8", json.loads(s.get("/_sink_log", name="b"))["body_base64"], "/w==")
    s.post("/_sink_ctl", name="c", hang=1)
    c.send(request_bytes("/_sink/c", b"{}"))
    c.s.settimeout(0.2)
    try:
        how = c.ended()
    except (socket.timeout, TimeoutError):
        how = "silence"
    equal("sink: hang", how, "silence")
    equal("sink: what hangs is recorded", json.loads(s.get("/_sink_log", name="c"))["body"], "{}")
    with open(s.sink_log) as f:
        s.get("/_sim/flush")
        equal("sink: the log file has them all", [json.loads(x)["sink"] for x in f], ["a", "a", "a", "b", "c"])


def dns_ask(port, name, kind=1):
    q = struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0)
    q += b"".join(bytes([len(x)]) + x.encode() for x in name.split(".")) + b"\0" + struct.pack(">HH", kind, 1)
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.settimeout(0.2 if name.startswith("hang") else DEADLINE_S)
    u.sendto(q, ("127.0.0.1", port))
    try:
        a = u.recv(1500)
    except (socket.timeout, TimeoutError):
        return "silence"
    finally:
        u.close()
    rcode, count = a[3] & 15, struct.unpack(">H", a[6:8])[0]
    return socket.inet_ntoa(a[-4:]) if count else "rcode %d" % rcode


def test_dns(s):
    port = s.ready["dns_port"]
    for name, want in (("api.test", "127.0.0.1"), ("A.B.Test", "127.0.0.1"), ("private.test", "10.0.0.1"), ("nx.test", "rcode 3"),
                       ("example.com", "rcode 5"), ("hang.test", "silence")):
        equal("dns: " + name, dns_ask(port, name), want)
    equal("dns: rebind.test alternates", [dns_ask(port, "rebind.test") for _ in range(3)], ["127.0.0.1", "10.0.0.1", "127.0.0.1"])
    equal("dns: AAAA of a known name is empty", dns_ask(port, "api.test", 28), "rcode 0")


def test_tls(d):
    key, cert = os.path.join(d, "tls.key"), os.path.join(d, "tls.crt")
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2")
    context = ssl.create_default_context(cafile=cert)
    s = Simulator(d, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", cert, "--realm", "f:delay_ms=1",
                  "--realm", "mtls:auth=tls,client_id=cid", context=context)
    equal("tls: a refresh", s.refresh("f", s.token("f"))[0], 200)
    c = s.conn()
    c.send(token_request("f", s.token("f")) * 2)
    equal("tls: pipelining", (c.answer()[0], c.answer()[0]), (200, 400))
    f = Faulty(s, "huge_body", arg=1000000)
    check("tls: a large answer", len(f.c.answer()[2]) > 1000000)
    f.done("tls: a large answer is delivered", True, True, 200)
    f = Faulty(s, "half_reply", arg=30)
    try:
        got = len(f.c.rest())
    except (ssl.SSLError, Reset):
        got = len(f.c.data)
    equal("tls: half a reply", got, 30)
    equal("tls: no certificate", error_of(s.refresh("mtls", s.token("mtls"), extra={"client_id": "cid"})), (401, "invalid_client"))
    context.load_cert_chain(cert, key)
    equal("tls: a client certificate", s.refresh("mtls", s.token("mtls"), extra={"client_id": "cid"})[0], 200)
    equal("tls: SIGTERM ends it with 0", s.stop(), 0)


def test_program(d):
    out = subprocess.run([PROGRAM, "--help"], stdout=subprocess.PIPE, check=False)
    check("--help", out.returncode == 0 and b"--ledger" in out.stdout)
    out = subprocess.run([PROGRAM, "--version"], stdout=subprocess.PIPE, check=False)
    check("--version", out.returncode == 0 and out.stdout.startswith(b"simulator (refreshd) "), out)
    for name, args, code in (("an unknown option", ["--what"], 2), ("an argument", ["x"], 2), ("a certificate without its key", ["--tls-cert", "x"], 2),
                             ("a bad realm option", ["--realm", "x:mode=odd"], 1), ("a bad address", ["--listen", "nowhere"], 1),
                             ("a ledger in no directory", ["--ledger", os.path.join(d, "no/ledger")], 1)):
        out = subprocess.run([PROGRAM] + args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, timeout=DEADLINE_S)
        check("refused at start: " + name, out.returncode == code and out.stderr, out)


def run_all():
    with tempfile.TemporaryDirectory() as d:
        test_program(d)
        ready = os.path.join(d, "ready")
        sink_log = os.path.join(d, "sink.log")
        s = Simulator(d, "--ready-file", ready, "--sink-log", sink_log, "--dns", "127.0.0.1:0", "--realm", "cli:mode=grace,grace_s=5")
        s.sink_log = sink_log
        with open(ready) as f:
            equal("the ready file says what stdout said", json.loads(f.read()), s.ready)
        equal("a realm from the command line is there", s.stats("cli")["requests"], 0)
        for test in (test_strict, test_grace, test_static, test_verify, test_auth, test_http, test_time, test_faults_before,
                     test_faults_bytes, test_faults_content, test_fault_rules, test_sink, test_dns):
            print("# " + test.__name__)
            test(s)
        test_jwt(s, d)
        c = s.conn()
        s.post("/_sim/realm", name="end", delay_ms=60000)
        m = s.mint("end")[0]
        c.send(token_request("end", m["refresh_token"]))
        end = time.monotonic() + DEADLINE_S
        while s.stats("end")["in_flight"] == 0 and time.monotonic() < end:
            pass
        equal("SIGTERM ends it with 0", s.stop(), 0)
        with open(s.ledger) as f:
            line = [json.loads(x) for x in f][-1]
        equal("an open presentation is in the ledger after SIGTERM", (line["realm"], line["outcome"], line["delivered"]), ("end", "rotated", False))
        test_tls(d)


def main():
    try:
        run_all()
    except Exception:  # a surprise is a failed check, and no simulator outlives it
        check("no surprise on the way", False, traceback.format_exc().replace("\n", "\n# "))
    finally:
        for p in running:
            if p.poll() is None:
                p.kill()
                p.wait()
    print("1..%d" % len(results))
    return 0 if all(results) else 1


sys.exit(main())
