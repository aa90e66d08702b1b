"""Holds every answer of the API against docs/openapi.json: the status must be one that is written there for the route, the headers and
the body must be as they are described, and no member may be there that is not. A small validator of what the document uses of JSON
Schema; a keyword that it does not know is an error, so that it cannot pass over one."""
import datetime
import json
import os
import re
import urllib.parse
import uuid

IGNORED = {"description", "default", "title", "examples"}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


class Mismatch(AssertionError):
	pass


def is_type(value, name):
	if name in ("integer", "number"):
		return isinstance(value, (int,) if name == "integer" else (int, float)) and not isinstance(value, bool)
	return isinstance(value, TYPES[name])


def has_format(text, name):
	try:
		if name == "date-time":
			return bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text) and datetime.datetime.fromisoformat(text[:19]))
		if name == "uuid":
			return str(uuid.UUID(text)) == text
		if name == "uri":
			return bool(urllib.parse.urlsplit(text).scheme)
	except ValueError:
		return False
	raise Mismatch("format %s is not known to the test" % name)


class Document:
	def __init__(self, doc):
		self.doc = doc
		self.seen = set() # (method, path of the document, status)
		self.routes = []
		for path, item in doc["paths"].items():
			shape = re.compile("".join("[^/]+" if p.startswith("{") else re.escape(p) for p in re.split(r"(\{[^}]*\})", path)))
			for method, operation in item.items():
				if method in ("get", "post", "patch", "delete", "put"):
					self.routes.append((method.upper(), path, shape, operation))

	def resolve(self, x):
		while "$ref" in x:
			at = self.doc
			for part in x["$ref"][2:].split("/"):
				at = at[part]
			x = at
		return x

	def members(self, schema):
		"""Every member that a schema names, its allOf included; None: any may be there."""
		schema = self.resolve(schema)
		names = set(schema.get("properties", {}))
		for part in schema.get("allOf", []):
			names |= self.members(part) or set()
		return names or None

	def check(self, value, schema, where="", whole=True):
		schema = self.resolve(schema)
		for word, arg in schema.items():
			if word not in IGNORED:
				getattr(self, "on_" + word, self.on_unknown)(value, arg, where, word)
		if whole and isinstance(value, dict):
			known = self.members(schema)
			more = set(value) - known if known is not None else set()
			if more:
				raise Mismatch("%s: members that are not described: %s" % (where, sorted(more)))

	def on_unknown(self, value, arg, where, word):
		raise Mismatch("%s: the test does not know the keyword %s" % (where, word))

	def on_type(self, value, arg, where, _):
		if not any(is_type(value, t) for t in ([arg] if isinstance(arg, str) else arg)):
			raise Mismatch("%s: %.80r is not %s" % (where, value, arg))

	def on_enum(self, value, arg, where, _):
		if value not in arg:
			raise Mismatch("%s: %.80r is none of %s" % (where, value, arg))

	def on_const(self, value, arg, where, _):
		self.on_enum(value, [arg], where, _)

	def on_format(self, value, arg, where, _):
		if isinstance(value, str) and not has_format(value, arg):
			raise Mismatch("%s: %.80r is no %s" % (where, value, arg))

	def on_minimum(self, value, arg, where, _):
		if is_type(value, "number") and value < arg:
			raise Mismatch("%s: %r is less than %r" % (where, value, arg))

	def on_minItems(self, value, arg, where, word):
		bad = isinstance(value, list) and (len(value) < arg if word == "minItems" else len(value) > arg)
		if bad:
			raise Mismatch("%s: %s is %r, and there are %d" % (where, word, arg, len(value)))
	on_maxItems = on_minItems

	def on_minLength(self, value, arg, where, word):
		if isinstance(value, str) and (len(value) < arg if word == "minLength" else len(value) > arg):
			raise Mismatch("%s: %s is %r, and it has %d" % (where, word, arg, len(value)))
	on_maxLength = on_minLength

	def on_required(self, value, arg, where, _):
		if isinstance(value, dict) and set(arg) - set(value):
			raise Mismatch("%s: without %s" % (where, sorted(set(arg) - set(value))))

	def on_properties(self, value, arg, where, _):
		for name, schema in arg.items():
			if isinstance(value, dict) and name in value:
				self.check(value[name], schema, "%s.%s" % (where, name))

	def on_additionalProperties(self, value, arg, where, _):
		pass # what is not named is refused in any case

	def on_items(self, value, arg, where, _):
		for i, x in enumerate(value if isinstance(value, list) else []):
			self.check(x, arg, "%s[%d]" % (where, i))

	def on_allOf(self, value, arg, where, _):
		for schema in arg:
			self.check(value, schema, where, whole=False)

	def on_oneOf(self, value, arg, where, _):
		fits = 0
		for schema in arg:
			try:
				self.check(value, schema, where)
				fits += 1
			except Mismatch:
				pass
		if fits != 1:
			raise Mismatch("%s: %d of its forms fit" % (where, fits))

	def check_headers(self, described, headers, where):
		for name, header in described.items():
			value = headers.get(name.lower())
			if value is None:
				raise Mismatch("%s: no header %s" % (where, name))
			schema = self.resolve(self.resolve(header)["schema"])
			self.check(int(value) if schema.get("type") == "integer" else value, schema, "%s: header %s" % (where, name))

	def unseen(self, prefix):
		"""Successes below a prefix that are described and did not come."""
		return [(m, path, status) for m, path, _, operation in self.routes if path.startswith(prefix) for status in operation["responses"]
			if status < "300" and (m, path, int(status)) not in self.seen]

	def answer(self, method, target, status, headers, body):
		"""What came for a request, against what is written of it. A path or method that is not described is none of ours."""
		path = target.split("?")[0]
		for m, said, shape, operation in self.routes:
			if m != method or not shape.fullmatch(path):
				continue
			where = "%s %s: %d" % (method, said, status)
			if str(status) not in operation["responses"]:
				raise Mismatch("%s is not described: %.300s" % (where, body))
			self.seen.add((method, said, status))
			response = self.resolve(operation["responses"][str(status)])
			self.check_headers(response.get("headers", {}), headers, where)
			content = response.get("content", {}).get("application/json")
			if content is None:
				if body:
					raise Mismatch("%s: a body that is not described: %.300s" % (where, body))
				return
			if headers.get("content-type") != "application/json":
				raise Mismatch("%s: content-type %r" % (where, headers.get("content-type")))
			self.check(json.loads(body), content["schema"], where)
			return


with open(os.path.join(os.environ.get("TOP_SRCDIR", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")), "docs/openapi.json")) as file:
	document = Document(json.load(file))
