"""Throughput and latency of a mesh by concurrency, and a plot of both.

Starts a router and expert services on this machine, runs `expertmesh bench`
against them, and draws what it measured. Options that are not of this list go
to `expertmesh bench`.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import expertmesh_testing as et
import serving_plot


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=et.DEMO_MODEL,
                        help=" ")
    parser.add_argument("--expert-services", type=int, default=1, help=" ")
    parser.add_argument("--concurrency", default="1,2,4,8,16,32,64", help=" ")
    parser.add_argument("--duration", default="15", help="seconds of a level")
    parser.add_argument("--json", type=pathlib.Path,
                        help="file for the results of `expertmesh bench`")
    parser.add_argument("--plot", type=pathlib.Path, help="SVG",
                        default=pathlib.Path(__file__).with_name("serving.svg"))
    return parser.parse_known_args()


def load():
    return f"{os.getloadavg()[0]:.1f}"


def main():
    flags, others = parse_flags()
    with tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder:
        results = flags.json or pathlib.Path(folder) / "results.json"
        before = load()
        with et.serve(flags.model, flags.expert_services) as mesh:
            code = subprocess.run(
                [et.BIN / "expertmesh", "bench", "--at", mesh.address,
                 "--concurrency", flags.concurrency, "--duration",
                 flags.duration, "--json", results, *others]).returncode
        print(f"\nmachine: {os.cpu_count()} CPUs, load {before} before and "
              f"{load()} after, of which the benchmark is a part")
        if not results.exists() or not results.read_text():
            return code or 1
        serving_plot.draw(serving_plot.read(results), flags.plot)
        print(f"plot: {flags.plot}")
        return code


if __name__ == "__main__":
    sys.exit(main())
