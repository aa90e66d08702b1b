"""A caller of refreshd's API for scripted tests: one request at a time, every byte of it as wanted. Every answer is held against
docs/openapi.json on its way."""
import http.client
import json
import os
import socket
import ssl
import sys
import urllib.parse

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from openapi import document


class Answer:
	def __init__(self, status, headers, body):
		self.status, self.headers, self.body = status, {k.lower(): v for k, v in headers}, body

	@property
	def json(self):
		return json.loads(self.body)

	@property
	def data(self):
		return self.json["data"]

	def __repr__(self):
		return "%d %s" % (self.status, self.body[:600])


class UnixConnection(http.client.HTTPConnection):
	def __init__(self, path, timeout):
		super().__init__("localhost", timeout=timeout)
		self.path = path

	def connect(self):
		self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
		self.sock.settimeout(self.timeout)
		self.sock.connect(self.path)


class Client:
	"""key, app and consumer None: that header is left out."""

	def __init__(self, port, key=None, app="app", consumer="c1", unix=None, tls_ca=None):
		self.port, self.key, self.app, self.consumer, self.unix, self.tls_ca = port, key, app, consumer, unix, tls_ca

	def but(self, **changes):
		fields = dict(port=self.port, key=self.key, app=self.app, consumer=self.consumer, unix=self.unix, tls_ca=self.tls_ca)
		fields.update(changes)
		return Client(**fields)

	def headers(self):
		h = {}
		if self.key is not None:
			h["Authorization"] = "Bearer " + self.key
		if self.app is not None:
			h["x-apideck-app-id"] = self.app
		if self.consumer is not None:
			h["x-apideck-consumer-id"] = self.consumer
		return h

	def connect(self, timeout_s):
		if self.unix:
			return UnixConnection(self.unix, timeout_s)
		if self.tls_ca:
			context = ssl.create_default_context(cafile=self.tls_ca)
			return http.client.HTTPSConnection("localhost", self.port, timeout=timeout_s, context=context)
		return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

	def call(self, method, path, body=None, headers=None, timeout_s=75):
		"""body: bytes as they are, else JSON. headers: added; None removes one."""
		h = self.headers()
		if body is not None:
			h["Content-Type"] = "application/json"
		h.update(headers or {})
		h = {k: v for k, v in h.items() if v is not None}
		data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
		c = self.connect(timeout_s)
		try:
			c.request(method, path, body=data, headers={k: v.encode() if isinstance(v, str) else v for k, v in h.items()})
			r = c.getresponse()
			a = Answer(r.status, r.getheaders(), r.read().decode())
			document.answer(method, path, a.status, a.headers, a.body)
			return a
		finally:
			c.close()

	def get(self, path, **more):
		return self.call("GET", path, **more)

	def post(self, path, body=None, **more):
		return self.call("POST", path, body, **more)

	def patch(self, path, body=None, **more):
		return self.call("PATCH", path, body, **more)

	def delete(self, path, **more):
		return self.call("DELETE", path, **more)


def connection_path(service, api="accounting", tail=""):
	return "/vault/connections/%s/%s%s" % (urllib.parse.quote(api, safe=""), urllib.parse.quote(service, safe=""), tail)
