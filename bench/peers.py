"""Two kinds of peers that the simulator is not: one that speaks HTTP/2, and one that wants a new TLS connection for every request. Both are nginx
in front of the simulator.

HTTP/2: one name, multiplexed, against HTTP/1.1 keep-alive through the same nginx. It ends its connections all the time (after so many requests, and
by being reloaded), which is when a client is tempted to send again; the provider's ledger then says whether any token was
presented twice. New connections: no keep-alive, no session to resume, so that each has a whole handshake and a certificate to
verify, against a bundle as large as the system's; what it costs is the difference to kept ones.
"""
import os
import shutil
import signal

import parts
from parts import cpu_us, free_port, ratio, say, spread, spreads, wait_until

LIFE_S = 4
KINDS = ("h1", "h2", "new")
IN_FLIGHT = 128
STREAM_LIFE = 5000  # requests before nginx says GOAWAY
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
CONF = """daemon off;
worker_processes 1;
pid {dir}/pid;
error_log {dir}/error.log warn;
events {{ worker_connections 4096; }}
http {{
	access_log off;
	client_body_temp_path {dir}/body;
	proxy_temp_path {dir}/proxy;
	fastcgi_temp_path {dir}/fastcgi;
	uwsgi_temp_path {dir}/uwsgi;
	scgi_temp_path {dir}/scgi;
	ssl_certificate {cert};
	ssl_certificate_key {key};
	ssl_session_cache off;
	ssl_session_tickets off;
	upstream simulator {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 100000000; }}
	proxy_http_version 1.1;
	proxy_set_header Connection "";
	proxy_set_header Host $http_host;
	server {{ listen 127.0.0.1:{h1} ssl; keepalive_requests 100000000; location / {{ proxy_pass http://simulator; }} }}
	server {{ listen 127.0.0.1:{h2} ssl http2; keepalive_requests {life}; http2_max_concurrent_streams 256;
		location / {{ proxy_pass http://simulator; }} }}
	server {{ listen 127.0.0.1:{new} ssl; keepalive_timeout 0; location / {{ proxy_pass http://simulator; }} }}
}}
"""


class Nginx:
	"""nginx in a folder of its own, in front of a simulator of its own without TLS."""

	def __init__(self, place, program):
		self.dir = os.path.join(place.dir, "nginx")
		os.mkdir(self.dir, 0o777)
		os.chmod(self.dir, 0o777)  # as root its worker is somebody else
		self.sim = parts.w.Simulator(os.path.join(self.dir, "sim"))
		self.proc = None
		self.ports = {k: free_port() for k in KINDS}
		for path in (place.tls["cert"], place.tls["key"]):
			os.chmod(path, 0o644)
		with open(os.path.join(self.dir, "conf"), "w") as f:
			f.write(CONF.format(dir=self.dir, cert=place.tls["cert"], key=place.tls["key"], upstream=self.sim.port, life=STREAM_LIFE, **self.ports))
		try:
			self.proc = parts.spawn([program, "-p", self.dir, "-e", os.path.join(self.dir, "error.log"), "-c", os.path.join(self.dir, "conf")],
				stdin=parts.subprocess.DEVNULL)
			wait_until("nginx", lambda: self.proc.poll() is not None or all(map(listens, self.ports.values())))
			if self.proc.poll() is not None:
				with open(os.path.join(self.dir, "error.log")) as f:
					raise RuntimeError("nginx ended with %d\n%s" % (self.proc.returncode, f.read()[-2000:]))
		except BaseException:
			self.close()
			raise

	def cpu(self):
		return parts.cpu_tree_us(self.proc.pid) + cpu_us(self.sim.proc.pid)

	def reload(self):
		self.proc.send_signal(signal.SIGHUP)

	def close(self):
		with parts.undisturbed():
			workers = parts.children(self.proc.pid) if self.proc and self.proc.poll() is None else []
			if self.proc:
				self.proc.terminate()
				try:
					self.proc.wait(10)
				except parts.subprocess.TimeoutExpired:
					self.proc.kill()
					self.proc.wait()
			for pid in workers:
				with parts.contextlib.suppress(ProcessLookupError):
					os.kill(pid, signal.SIGKILL)
			self.sim.close()

	def __enter__(self):
		return self

	def __exit__(self, *exc):
		self.close()


def listens(port):
	return any(x[1] == port and x[3] == "0A" for x in sockets())


def sockets():
	"""(local address, local port, remote port, state) of IPv4."""
	with open("/proc/net/tcp") as f:
		for line in f.readlines()[1:]:
			words = line.split()
			yield words[1].split(":")[0], int(words[1].split(":")[1], 16), int(words[2].split(":")[1], 16), words[3]


def connections_to(port):
	return sum(1 for x in sockets() if x[2] == port and x[3] == "01")


def roots(place):
	"""The bench's CA behind as many others as a system has."""
	path = os.path.join(place.dir, "roots.pem")
	with open(path, "w") as f:
		for part in (SYSTEM_ROOTS, place.tls["ca"]):
			if os.path.exists(part):
				with open(part) as g:
					f.write(g.read())
	return path


def round_of(place, nginx, kind, name, form, churn=False):
	nginx.sim.realm(name, at_ttl=LIFE_S, at_len=parts.AT_BYTES, rt_len=parts.RT_BYTES, client_secret=parts.w.CLIENT_SECRET, auth="basic")
	v = place.vault(name, name, {"max_in_flight": IN_FLIGHT, "ca_file": roots(place),
		"token_url": "https://127.0.0.1:%d/%s/token" % (nginx.ports[kind], name)}, refresh={"max_in_flight": IN_FLIGHT})
	v.conf["log"]["level"] = "warning"
	v.write_conf()
	v.import_lines(nginx.sim.mint(name, form.connections // 2, expires_in=1, issued_ago=3600))
	parts.as_an_old_table(v)
	place.settle()
	most = {"connections": 0, "reloads": 0}

	def watch():
		most["connections"] = max(most["connections"], connections_to(nginx.ports[kind]))
		if churn and most["reloads"] < 10:
			nginx.reload()
			most["reloads"] += 1

	v.start()
	d = parts.flood(v, form.connections / 20, form.window_s, {"postgres": place.pg_cpu, "peer": nginx.cpu}, watch)
	if kind != "h2":  # which loses the streams that are open when the peer ends its connection
		parts.must_be_well(v)
	most["other_outcomes"] = sum(parts.failures(v).values())
	v.stop()
	return dict(d, **most)


def twice(nginx, name):
	"""Tokens that were presented again after their answer, or twice at once, by the provider's ledger; and all presentations."""
	ledger = nginx.sim.ledger(name)
	return len(parts.w.presented_again(ledger)) + sum(1 for x in ledger if x["overlap"]), len(ledger)


def measure(form):
	program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
	if program is None:
		why = "nginx is not installed"
		say("not measured: " + why)
		return {"http2": {"skipped": why}, "tls_connect": {"cpu_us": {"skipped": why}}}
	rows, again, presented, reloads = {k: [] for k in KINDS}, 0, 0, 0
	with parts.Place("peers") as place, Nginx(place, program) as nginx:
		for run in range(form.runs):
			for kind in KINDS if run % 2 == 0 else reversed(KINDS):
				r = round_of(place, nginx, kind, "%s-%d" % (kind, run), form)
				rows[kind].append(r)
				say("%s: %.0f/s at %.1f CPU-us over %d connections" % (kind, r["per_s"], r["daemon_cpu_us"], r["connections"]))
				if kind == "h2":
					bad, n = twice(nginx, "h2-%d" % run)
					again, presented = again + bad, presented + n
		churned = round_of(place, nginx, "h2", "churn", form, churn=True)
		bad, n = twice(nginx, "churn")
		again, presented, reloads = again + bad, presented + n, churned["reloads"]
		say("HTTP/2 with %d reloads of the peer: %d of %d presentations were of a token that had been answered; %d outcomes were not a refresh" % (
			reloads, again, presented, churned["other_outcomes"]))
	def both(a, b, key):
		return [r[key] for r in rows[a]], [r[key] for r in rows[b]]
	keys = ("per_s", "daemon_cpu_us", "postgres_cpu_us", "peer_cpu_us", "connections", "other_outcomes")
	slim = {k: spreads([{x: r[x] for x in keys} for r in v]) for k, v in rows.items()}
	return {
		"http2": dict(slim["h2"], h1=slim["h1"], ratio_to_h1=ratio(*both("h2", "h1", "per_s"), 2), cpu_ratio_to_h1=ratio(*both("h2", "h1", "daemon_cpu_us"), 2),
			presented=presented, presented_again=again, reloads=reloads, stream_life=STREAM_LIFE, churn_other_outcomes=churned["other_outcomes"]),
		"tls_connect": dict(cpu_us=spread([a - b for a, b in zip(*both("new", "h1", "daemon_cpu_us"))]), new=slim["new"], kept=slim["h1"]),
	}
