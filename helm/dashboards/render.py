#!/usr/bin/env python3
"""Draws the dashboards as pictures, where there is no Grafana: asks a
Prometheus every query and plots what it answers, a PNG for each dashboard.

Needs matplotlib (Debian: python3-matplotlib).
"""

import argparse
import datetime
import json
import math
import pathlib
import re
import sys
import time
import urllib.parse
import urllib.request

try:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.dates as dates
    import matplotlib.pyplot as plt
    from PIL import Image  # which matplotlib needs as well
except ImportError as error:
    sys.exit(f"{error}; Debian has it as python3-matplotlib")

FOLDER = pathlib.Path(__file__).parent.parent / "expertmesh" / "dashboards"
UNITS = {"short": "", "percentunit": "%", "bytes": "MiB", "Bps": "KiB/s",
         "celsius": "°C", "s": "s", "cps": "/s", "ops": "/s", "reqps": "/s"}
SCALES = {"percentunit": 100, "bytes": 1 / (1 << 20), "Bps": 1 / 1024}
MOST_LEGEND = 8  # series that a legend names


class Source:
    """A Prometheus, and the time that is drawn."""

    def __init__(self, url, seconds, rate_interval):
        self._url = url
        self._rate_interval = rate_interval
        self._end = time.time()
        self._start = self._end - seconds
        self._step = max(1, seconds / 300)

    def ask(self, target):
        """[(legend, times, values)] of each series that has values."""
        expr = target["expr"]
        for name, value in (("$__rate_interval", self._rate_interval),
                            ("$job", ".+"), ("$instance", ".+")):
            expr = expr.replace(name, value)
        query = urllib.parse.urlencode({
            "query": expr, "start": self._start, "end": self._end,
            "step": self._step})
        with urllib.request.urlopen(
                f"{self._url}/api/v1/query_range?{query}", timeout=60) as page:
            found = json.load(page)["data"]["result"]
        out = []
        for series in found:
            points = [(datetime.datetime.fromtimestamp(t), float(v))
                      for t, v in series["values"]]
            points = [(t, v) for t, v in points if not math.isnan(v)]
            if points:
                legend = re.sub(
                    r"{{\s*(\w+)\s*}}",
                    lambda m: series["metric"].get(m[1], ""),
                    target["legendFormat"])
                out.append((legend, *zip(*points)))
        return out


def draw_lines(axes, panel, series):
    scale = SCALES.get(panel["fieldConfig"]["defaults"]["unit"], 1)
    for legend, times, values in series:
        axes.plot(times, [v * scale for v in values], lw=1, label=legend)
    axes.margins(x=0)
    if panel["fieldConfig"]["defaults"].get("min") == 0:
        axes.set_ylim(bottom=0)
    names = {each[0] for each in series if any(each[2])}
    if 0 < len(names) <= MOST_LEGEND:
        lines = [line for line in axes.get_lines()
                 if line.get_label() in names]
        axes.legend(handles=lines, fontsize=5, loc="upper left",
                    framealpha=0.6)


def draw_rows(axes, panel, series):
    """A row for each series, coloured by value."""
    for number, (_, times, values) in enumerate(series):
        axes.scatter(times, [number] * len(times), c=values, marker="s", s=12,
                     cmap="RdYlGn", vmin=0, vmax=1)
    axes.set_yticks(range(len(series)), [each[0] for each in series])
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.margins(x=0)


def draw_number(axes, panel, series):
    axes.axis("off")
    text = ", ".join(f"{values[-1]:g}" for _, _, values in series)
    axes.text(0.5, 0.5, text or "no data", ha="center", va="center",
              fontsize=20)


DRAW = {"status-history": draw_rows, "stat": draw_number}


def draw(dashboard, source, file):
    panels = [each for each in dashboard["panels"] if each["type"] != "row"]
    figure = plt.figure(figsize=(15, 1 + 2.4 * len(
        {each["gridPos"]["y"] for each in panels})))
    ys = sorted({each["gridPos"]["y"] for each in panels})
    grid = figure.add_gridspec(len(ys), 24, hspace=0.5, wspace=3.5,
                               left=0.04, right=0.99, bottom=0.04, top=0.92)
    figure.suptitle(dashboard["title"], fontsize=12)
    for panel in panels:
        at = panel["gridPos"]
        axes = figure.add_subplot(
            grid[ys.index(at["y"]), at["x"]:at["x"] + at["w"]])
        series = [each for target in panel["targets"]
                  for each in source.ask(target)]
        unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
        axes.set_title(panel["title"] + (f" ({unit})" if unit else ""),
                       fontsize=8)
        DRAW.get(panel["type"], draw_lines)(axes, panel, series)
        axes.tick_params(labelsize=6)
        axes.grid(lw=0.3)
        if not series and panel["type"] != "stat":
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes,
                      ha="center", va="center", color="grey")
        if not series:
            axes.set_xticks([])
        elif panel["type"] != "stat":
            locator = dates.AutoDateLocator(maxticks=5)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(
                dates.ConciseDateFormatter(locator, show_offset=False))
    figure.savefig(file, dpi=80)
    plt.close(figure)
    with Image.open(file) as picture:  # a third of the size
        picture.convert("RGB").quantize(200).save(file, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--seconds", type=float, default=3600,
                        help="how far back")
    parser.add_argument("--rate-interval", default="10s")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    source = Source(args.prometheus, args.seconds, args.rate_interval)
    for path in sorted(FOLDER.glob("*.json")):
        draw(json.loads(path.read_text()), source,
             args.out / f"{path.stem}.png")


if __name__ == "__main__":
    main()
