"""Plots as SVG, without a library: python3 plot.py balance|day < FIGURES > PLOT.svg

`balance` reads the CSV of the example balance-simulation, `day` the JSON of busy-day.
"""

import csv
import json
import math
import sys
from html import escape

COLOURS = ["#777777", "#1f6feb", "#d1242f", "#1a7f37", "#9a6700"]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 300, 60, 46, 34


def text(x, y, words, anchor="middle", size=12, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" {more}>{escape(str(words))}</text>'


def nice(number):
    return f"{number / 1000:g} s" if number >= 1000 else f"{number:g} ms"


class Panel:
    """One chart: a linear axis to the right, a logarithmic one in milliseconds upwards."""

    def __init__(self, left, title, x_title, x_most, low, high):
        self.left, self.x_most, self.low, self.high = left, x_most, low, high
        self.parts = [text(left + LEFT + self.width() / 2, 20, title, size=13, more='font-weight="bold"')]
        bottom = HEIGHT - BOTTOM
        ticks = [m * 10**e for e in range(1, 6) for m in (1, 2, 5) if low <= m * 10**e <= high]
        for tick in ticks:
            y = self.y(tick)
            self.parts.append(f'<line x1="{self.x(0):.1f}" x2="{self.x(x_most):.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            self.parts.append(text(self.x(0) - 6, y + 4, nice(tick), "end", 11))
        step = 10 ** math.floor(math.log10(x_most / 2))
        step *= next(m for m in (1, 2, 5, 10) if x_most / (step * m) <= 7)
        for n in range(int(x_most / step) + 1):
            self.parts.append(text(self.x(n * step), bottom + 17, f"{n * step:g}", size=11))
        self.parts.append(text(left + LEFT + self.width() / 2, HEIGHT - 8, x_title))

    @staticmethod
    def width():
        return WIDTH - LEFT - 16

    def x(self, value):
        return self.left + LEFT + value / self.x_most * self.width()

    def y(self, value):
        share = (math.log(max(value, self.low)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return HEIGHT - BOTTOM - min(share, 1.0) * (HEIGHT - BOTTOM - TOP)

    def line(self, points, colour):
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="1.6" fill="{colour}"/>')


def legend(names, y):
    parts, x = [], LEFT
    for name, colour in names:
        parts.append(f'<rect x="{x}" y="{y - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(text(x + 17, y, name, "start"))
        x += 40 + 7.2 * len(name)
    return parts


def svg(width, height, parts, title):
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" role="img">'
            f'<title>{escape(title)}</title><rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n')


def balance():
    rows = list(csv.DictReader(sys.stdin))
    ways = list(dict.fromkeys(row["way"] for row in rows))
    most = max(float(row["requests_per_second"]) for row in rows)
    panels = []
    for number, (column, title) in enumerate([("mean_ms", "mean"), ("p99_ms", "99th percentile")]):
        panel = Panel(number * WIDTH, f"time to an answer, {title}", "requests a second", most, 300, 60000)
        for way, colour in zip(ways, COLOURS):
            points = [(float(row["requests_per_second"]), float(row[column])) for row in rows if row["way"] == way]
            panel.line(points, colour)
        panels += panel.parts
    return svg(2 * WIDTH, HEIGHT + 26, panels + legend(zip(ways, COLOURS), HEIGHT + 14),
               "Three ways to balance nodes, and taking them in turn, in a simulation")


def day():
    reports = json.load(sys.stdin)
    names = {"alone": "a client that tries again", "nodes": "Postern, cloud and two nodes", "local": "the same and the engine here"}
    colours = {"cloud": "#1f6feb", "nodes": "#1a7f37", "local": "#9a6700", None: "#d1242f"}
    most = max(one[0] for report in reports for one in report["each"]) * 1.02
    parts = []
    for number, report in enumerate(reports):
        share = 100 * report["answered"] / report["requests"]
        title = f"{names[report['set_up']]}: {share:.4g} % answered"
        panel = Panel(number * WIDTH, title, "seconds", most, 100, 100000)
        for at, took, by in report["each"]:
            panel.dot(at, took, colours[by])
        parts += panel.parts
    keys = [("the cloud", colours["cloud"]), ("a node", colours["nodes"]), ("the engine here", colours["local"]), ("nobody", colours[None])]
    return svg(len(reports) * WIDTH, HEIGHT + 26, parts + legend(keys, HEIGHT + 14), "Each request of a busy-cloud day: how long it took, and who answered")


print({"balance": balance, "day": day}[sys.argv[1]](), end="")
