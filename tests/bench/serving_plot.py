"""Draws throughput and latency by concurrency, as `expertmesh bench` has them.

  serving_plot.py RESULTS.json PLOT.svg

An SVG of three panels. Its greys and colours are read on white and on black.
"""

import json
import math
import pathlib
import sys

GREY = "#7d858d"
GRID = "#7d858d40"
BLUE, ORANGE = "#3d85e0", "#d9730d"
PANEL_WIDTH, PANEL_HEIGHT = 250, 200
LEFT, TOP, GAP = 58, 62, 74
WIDTH = LEFT + 3 * PANEL_WIDTH + 2 * GAP + 18
HEIGHT = TOP + PANEL_HEIGHT + 52


def latency(name, quantile):
    """Of a level, in milliseconds; nothing where no request was answered."""
    def value(level):
        seconds = level["latency_seconds"][name].get(quantile)
        return None if seconds is None else 1000 * seconds
    return value


PANELS = (
    ("Throughput, tokens/s", (
        ("all", ORANGE, lambda level: level["per_second"]["tokens"]),
        ("output", BLUE, lambda level: level["per_second"]["output_tokens"]))),
    ("Time to first token, ms", (
        ("p99", ORANGE, latency("time_to_first_token", "p99")),
        ("p50", BLUE, latency("time_to_first_token", "p50")))),
    ("Between tokens, ms", (
        ("p99", ORANGE, latency("inter_token", "p99")),
        ("p50", BLUE, latency("inter_token", "p50")))),
)


def nice_step(most, ticks=4):
    """1, 2 or 5 times a power of ten, so that about `ticks` cover `most`."""
    rough = max(most, 1e-9) / ticks
    power = 10 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough)


def text(x, y, content, anchor="middle", colour=GREY, extra=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
            f'fill="{colour}"{extra}>{content}</text>')


def line(x1, y1, x2, y2, colour):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour}"/>')


class Panel:
    """One diagram: concurrency by powers of two, values from zero."""

    def __init__(self, left, levels, title, series):
        self._left, self._title = left, title
        self._concurrency = [level["load"]["concurrency"] for level in levels]
        self._series = [(name, colour, [value(level) for level in levels])
                        for name, colour, value in series]
        self._least = math.log2(self._concurrency[0])
        self._width = max(math.log2(self._concurrency[-1]) - self._least, 1e-9)
        most = max((v for _, _, values in self._series
                    for v in values if v is not None), default=1)
        self._step = nice_step(most)
        self._top = self._step * max(1, math.ceil(most / self._step))

    def _x(self, concurrency):
        share = (math.log2(concurrency) - self._least) / self._width
        return self._left + PANEL_WIDTH * share

    def _y(self, value):
        return TOP + PANEL_HEIGHT * (1 - value / self._top)

    def _axes(self):
        yield text(self._left, TOP - 36, self._title, "start",
                   extra=' font-weight="bold"')
        right, bottom = self._left + PANEL_WIDTH, TOP + PANEL_HEIGHT
        for i in range(round(self._top / self._step) + 1):
            y = self._y(i * self._step)
            yield line(self._left, y, right, y, GREY if i == 0 else GRID)
            yield text(self._left - 8, y + 4, f"{i * self._step:g}", "end")
        for concurrency in self._concurrency:
            x = self._x(concurrency)
            yield line(x, bottom, x, bottom + 4, GREY)
            yield text(x, bottom + 18, concurrency)
        yield text((self._left + right) / 2, bottom + 38,
                   "requests at a time")

    def _lines(self):
        for i, (name, colour, values) in enumerate(self._series):
            points = [(self._x(c), self._y(v))
                      for c, v in zip(self._concurrency, values)
                      if v is not None]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            yield (f'<polyline points="{path}" fill="none" stroke="{colour}" '
                   f'stroke-width="2"/>')
            for x, y in points:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            legend = self._left + 70 * i
            yield (f'<circle cx="{legend + 4}" cy="{TOP - 20}" r="4" '
                   f'fill="{colour}"/>')
            yield text(legend + 13, TOP - 16, name, "start", colour)

    def draw(self):
        return [*self._axes(), *self._lines()]


def draw(levels, path):
    """levels: objects of `expertmesh bench --json`, by concurrency."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" '
             f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
             f'height="{HEIGHT}" font-family="sans-serif" font-size="12">',
             "<title>Throughput and latency by concurrency</title>"]
    for i, (title, series) in enumerate(PANELS):
        left = LEFT + i * (PANEL_WIDTH + GAP)
        parts += Panel(left, levels, title, series).draw()
    pathlib.Path(path).write_text("\n".join([*parts, "</svg>"]) + "\n")


def read(path):
    """The levels of a file, by concurrency."""
    lines = pathlib.Path(path).read_text().splitlines()
    return sorted(map(json.loads, lines),
                  key=lambda level: level["load"]["concurrency"])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(read(sys.argv[1]), sys.argv[2])
