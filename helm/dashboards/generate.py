#!/usr/bin/env python3
"""Writes the dashboards of the chart: helm/expertmesh/dashboards/*.json.

With --check, only says whether they are what this would write.
"""

import json
import pathlib
import sys

import experts
import mesh

FOLDER = pathlib.Path(__file__).parent.parent / "expertmesh" / "dashboards"
DASHBOARDS = (mesh.service_objectives, mesh.routing, experts.balance,
              experts.pools, experts.devices)


def files():
    """Contents by path."""
    out = {}
    for make in DASHBOARDS:
        made = make()
        name = made["uid"].removeprefix("expertmesh-")
        out[FOLDER / f"{name}.json"] = json.dumps(
            made, indent=1, ensure_ascii=False) + "\n"
    return out


def main():
    wanted = files()
    if sys.argv[1:] == ["--check"]:
        there = {path: path.read_text() for path in FOLDER.glob("*.json")}
        if there != wanted:
            sys.exit("the dashboards are not what helm/dashboards/generate.py "
                     "writes; run it")
        return
    if sys.argv[1:]:
        sys.exit("usage: generate.py [--check]")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
