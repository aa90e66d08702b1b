"""Pictures of the results as plain SVG, written by hand: no library, no script, no font but the reader's. Their colours follow whether the reader's
page is light or dark. Everything is rounded, so that equal results give equal bytes.
"""
import math
from xml.sax.saxutils import escape

WIDTH = 760
COLOURS = ("#2f81f7", "#d9822b", "#8e6fd8", "#3fa55b")
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.dim { fill: #6e7781; font-size: 11px; }
.grid { stroke: #6e7781; stroke-opacity: .35; stroke-width: 1; }
.target { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 5 4; }
.good { fill: #3fa55b; } .bad { fill: #d9822b; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .dim { fill: #9198a1; } .target { stroke: #ff7b72; } }
</style>"""


def svg(height, title, body):
	return "\n".join(['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">' % (WIDTH, height, WIDTH, height),
		"<title>%s</title>" % escape(title), STYLE] + body + ["</svg>", ""])


def text(x, y, words, css="", anchor="start"):
	return '<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>' % (x, y, anchor, ' class="%s"' % css if css else "", escape(words))


def line(x1, y1, x2, y2, css):
	return '<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>' % (x1, y1, x2, y2, css)


def rect(x, y, w, h, look):
	return '<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" %s/>' % (x, y, max(w, 0.5), h, look)


def amount(x):
	return "{:,.0f}".format(x) if abs(x) >= 100 else "{:.3g}".format(x)


def targets(rows):
	"""A bar a figure: how many times better than its target, on a logarithmic scale; the thin line is the spread."""
	left, right, top, step, decades = 400, 690, 34, 24, 1.3
	height = top + step * len(rows) + 14
	centre = (left + right) / 2

	def at(value):
		return centre + max(-1, min(1, math.log10(value) / decades)) * (right - left) / 2

	def better(way, bound, x):
		x = max(x, 1e-9)
		return x / bound if way == "≥" else bound / x
	out = [text(centre, 16, "the target", "dim", "middle"), text(left, 16, "short of it", "dim"), text(right, 16, "better", "dim", "end")]
	for i, (what, way, bound, unit, s) in enumerate(rows):
		y = top + i * step
		ends = sorted(at(better(way, bound, s[k])) for k in ("min", "max"))
		middle = at(better(way, bound, s["median"]))
		good = better(way, bound, s["median"]) >= 1
		what = what.replace("`", "")
		label = what if len(what) <= 52 else what[:49] + "..."
		out += [text(left - 10, y + 12, label, "", "end"), rect(min(centre, middle), y + 2, abs(middle - centre), 13, 'class="%s"' % ("good" if good else "bad")),
			line(ends[0], y + 8.5, ends[1], y + 8.5, "grid"), text(right + 6, y + 12, amount(s["median"]) + " " + unit, "dim")]
	return svg(height, "each figure over its target", out + [line(centre, 22, centre, height - 8, "target")])


def cpu(rows):
	"""Stacked bars of CPU-microseconds by process."""
	left, right, top, step = 150, 650, 40, 34
	height = top + step * len(rows) + 10
	most = max([sum(x for _, x in parts) for _, parts in rows] or [1])
	names, out = [], []
	for _, parts in rows:
		names += [n for n, _ in parts if n not in names]
	for i, n in enumerate(names):
		out += [rect(left + i * 110, 8, 12, 12, 'fill="%s"' % COLOURS[i]), text(left + i * 110 + 18, 18, n, "dim")]
	for i, (name, parts) in enumerate(rows):
		x, y = left, top + i * step
		out.append(text(left - 10, y + 16, name, "", "end"))
		for n, us in parts:
			w = us / most * (right - left)
			out.append(rect(x, y, w, 22, 'fill="%s"' % COLOURS[names.index(n)]))
			x += w
		out.append(text(x + 8, y + 16, "%.0f µs" % sum(u for _, u in parts), "dim"))
	return svg(height, "CPU time of one refresh, by process", out)


def lateness(curves):
	"""Percentiles across, milliseconds up, logarithmic; the 99th has the target."""
	left, right, top, bottom = 70, 560, 20, 320
	points = [p for p, _ in curves[0][1]] if curves else []
	values = [max(v, 0.1) for _, c, _ in curves for _, v in c] + [b for _, _, b in curves if b]
	low = math.floor(math.log10(min(values or [1])))
	high = max(low + 1, math.ceil(math.log10(max(values or [10]))))

	def at_x(p):
		return left + points.index(p) * (right - left) / max(1, len(points) - 1)

	def at_y(ms):
		return bottom - (math.log10(max(ms, 10 ** low)) - low) / (high - low) * (bottom - top)
	out = []
	for e in range(low, high + 1):
		out += [line(left, at_y(10 ** e), right, at_y(10 ** e), "grid"), text(left - 8, at_y(10 ** e) + 4, "%g ms" % 10 ** e, "dim", "end")]
	for p in points:
		out.append(text(at_x(p), bottom + 18, "%g" % p, "dim", "middle"))
	out.append(text((left + right) / 2, bottom + 36, "percentile of refreshes", "dim", "middle"))
	for i, (name, curve, bound) in enumerate(curves):
		out.append('<polyline fill="none" stroke="%s" stroke-width="2.5" points="%s"/>' % (COLOURS[i], " ".join("%.1f,%.1f" % (at_x(p), at_y(v)) for p, v in curve)))
		out.append(text(right + 12, top + 20 + 20 * i, name).replace("<text ", '<text style="fill:%s" ' % COLOURS[i]))
		if bound:
			x = at_x(99)
			out += [line(x - 26, at_y(bound), x + 26, at_y(bound), "target"), text(x - 30, at_y(bound) + 4, "target %d ms" % bound, "dim", "end")]
	return svg(bottom + 48, "how late refreshes are", out)
