#!/usr/bin/env python3
"""A hot pool under an autoscaler against one of fixed size, on a bursty trace
whose text turns from plays to programs.

Router, expert services and Prometheus are real processes; requests are those of
`expertmesh bench`. The autoscaler is Kubernetes' algorithm (hpa.py) on the
expertmesh_router_pool_* metrics that Prometheus scraped. Its clock, and with it
the trace, runs --times as fast; requests do not. The trace is replayed once
with the autoscaler and once for each fixed size; the smallest that keeps the
objective is the static peak that it is compared with. Prints the tables of
README.md.
"""

import argparse
import dataclasses
import json
import subprocess
import tempfile
import threading
import time

import expertmesh_testing as et
import monitoring_files as mf
import prometheus
from autoscale_mesh import ScaledMesh
from hpa import Autoscaler, Behavior

SLOW_SECONDS = 2.5  # a bucket of the histogram
OUTPUT_TOKENS = 8
PROMPT_CHARACTERS = 200
TEXTS = {"plays": "heldout.txt", "programs": "heldout_programs.txt"}
TTFT = "expertmesh_router_time_to_first_token_seconds"
# What the autoscaler reads: the mean over replicas, and its target.
METRICS = {
    "desired": ('max(expertmesh_router_pool_desired_replicas{{pool="{pool}"}})'
                ' / {replicas}', 1),
    "inflight": ('sum(rate(expertmesh_router_expert_row_seconds_total'
                 '{{pool="{pool}"}}[5s])) / {replicas}', None),
}


@dataclasses.dataclass
class Phase:
    text: str
    minutes: float  # of the trace
    rate: float     # requests a second


def trace(args):
    quiet, burst = args.quiet, args.burst
    return [Phase("plays", 8, quiet), Phase("plays", 5, burst),
            Phase("plays", 12, quiet), Phase("programs", 10, quiet),
            Phase("programs", 5, burst), Phase("programs", 20, quiet)]


class Load:
    """Replays the trace with one `expertmesh bench` for each phase."""

    def __init__(self, folder, address, phases, times):
        self._files = {}
        for text, name in TEXTS.items():
            body = " ".join((et.DEMO_MODEL / name).read_text().split("\n"))
            size = PROMPT_CHARACTERS
            file = folder / f"{text}.txt"
            file.write_text("".join(body[i:i + size] + "\n" for i in
                                    range(0, len(body) - size, size)))
            self._files[text] = file
        self._address, self._phases, self._times = address, phases, times
        self.phase = None
        self.failed = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        began = time.monotonic()
        running = []
        at = 0
        for number, phase in enumerate(self._phases):
            time.sleep(max(0, began + at - time.monotonic()))
            self.phase = phase
            seconds = phase.minutes * 60 / self._times
            at += seconds
            running.append(subprocess.Popen(
                [et.BIN / "expertmesh", "bench", "--at", self._address,
                 "--request-rate", str(phase.rate), "--warmup", "0",
                 "--duration", str(seconds), "--seed", str(number + 1),
                 "--prompts", self._files[phase.text], "--temperature", "0",
                 "--output-tokens", str(OUTPUT_TOKENS)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        for process in running:
            _, said = process.communicate(timeout=600)
            if process.returncode != 0:
                self.failed.append(said.decode()[-200:])

    def is_over(self):
        return not self._thread.is_alive()


class Replay:
    """The trace, once. `replicas`: of the hot pool, or None for as many as the
    autoscaler wants."""

    def __init__(self, args, replicas):
        self._args, self._fixed = args, replicas
        self.samples = []
        self.within = self.requests = self.seconds = self.replica_seconds = 0

    def run(self):
        with tempfile.TemporaryDirectory() as folder:
            mesh = ScaledMesh(folder, self._fixed or 1, self._args.times,
                              self._args.base_share, self._args.hot_share,
                              self._args.most)
            try:
                with prometheus.Prometheus(mesh.jobs(),
                                           mf.rule_files()) as scraped:
                    self._replay(mesh, scraped)
            finally:
                mesh.stop()
        return self

    def _replay(self, mesh, scraped):
        self._scraped = scraped
        et.wait_until(lambda: self._read("desired", "hot", 1) is not None,
                      what="the first scrapes")
        behavior = Behavior().compressed(self._args.times)
        hpa = Autoscaler(1, self._args.most, behavior)
        before, begin = mesh.hot.seconds(), time.monotonic()
        load = Load(mesh.hot.file.parent, mesh.router.address,
                    trace(self._args), self._args.times)
        due = begin
        while not load.is_over():
            due += behavior.sync_seconds
            time.sleep(max(0, due - time.monotonic()))
            count = len(mesh.hot.replicas)
            self._sample(mesh, load, time.monotonic() - begin)
            if self._fixed is not None:
                continue
            wanted = hpa.decide(
                time.monotonic(), count,
                self._read(self._args.metric, "hot", count),
                METRICS[self._args.metric][1] or self._args.target_rows)
            if wanted != count:
                mesh.hot.scale(wanted)
                scraped.set_targets(mesh.jobs())
        if load.failed:
            raise SystemExit(f"requests failed: {load.failed}")
        self.seconds = time.monotonic() - begin
        self.replica_seconds = mesh.hot.seconds() - before
        metrics = mesh.router.metrics()
        self.requests = metrics[TTFT + "_count"]
        self.within = metrics[f'{TTFT}_bucket{{le="{SLOW_SECONDS}"}}']
        if self._args.plots and self._fixed is None:
            subprocess.run(
                ["/usr/bin/python3", et.SOURCE / "helm/dashboards/render.py",
                 "--prometheus", scraped.url, "--seconds",
                 str(int(self.seconds)), "--out", self._args.plots],
                check=True)

    def _read(self, metric, pool, replicas):
        found = self._scraped.query(
            METRICS[metric][0].format(pool=pool, replicas=replicas))
        return found[0][1] if found else None

    def _sample(self, mesh, load, at):
        """What the autoscaler saw, of both pools."""
        phase = load.phase
        self.samples.append({
            "seconds": round(at, 2), "text": phase.text, "rate": phase.rate,
            "hot": len(mesh.hot.replicas),
            **{f"{pool}_{metric}": self._read(metric, pool, 1)
               for pool in ("base", "hot") for metric in METRICS}})

    @property
    def share(self):
        return self.within / self.requests

    def row(self, name):
        hot = [s["hot"] for s in self.samples]
        return (f"| {name} | {min(hot)} to {max(hot)} | {self.requests:.0f} | "
                f"{100 * self.share:.1f} % | {self.replica_seconds:.0f} |")


def by_phase(replay, phases, times):
    """What the pools were in each phase of the trace, most and last."""
    print("\n| phase | requests/s | hot replicas, most | at its end | "
          "base would have wanted |\n|-|-:|-:|-:|-:|")
    at = 0
    for phase in phases:
        end = at + phase.minutes * 60 / times
        here = [s for s in replay.samples if at <= s["seconds"] < end]
        print(f"| {phase.text}, {phase.minutes:g} min | {phase.rate:g} | "
              f"{max(s['hot'] for s in here)} | {here[-1]['hot']} | "
              f"{max(s['base_desired'] or 0 for s in here):.0f} |")
        at = end


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=float, default=20,
                        help="how many times as fast as the trace's hour")
    parser.add_argument("--quiet", type=float, default=0.5)
    parser.add_argument("--burst", type=float, default=4)
    parser.add_argument("--most", type=int, default=4)
    parser.add_argument("--base-share", type=float, default=0.4)
    parser.add_argument("--hot-share", type=float, default=0.12)
    parser.add_argument("--metric", choices=METRICS, default="inflight")
    parser.add_argument("--target-rows", type=float, default=60,
                        help="in-flight rows per replica, of --metric inflight")
    parser.add_argument("--objective", type=float, default=0.95,
                        help=f"share of first tokens within {SLOW_SECONDS} s")
    parser.add_argument("--fixed", type=int, nargs="*",
                        help="sizes to compare with; default: from --most down "
                        "until one misses the objective")
    parser.add_argument("--json", help="file for all samples")
    parser.add_argument("--plots", help="folder for plots of the dashboards")
    args = parser.parse_args()

    auto = Replay(args, None).run()
    print("| hot pool | replicas | requests | first token within "
          f"{SLOW_SECONDS} s | replica-seconds |\n|-|-|-:|-:|-:|")
    print(auto.row("autoscaled"), flush=True)
    fixed = {}
    for size in args.fixed or range(args.most, 0, -1):
        fixed[size] = Replay(args, size).run()
        print(fixed[size].row(f"fixed at {size}"), flush=True)
        if args.fixed is None and fixed[size].share < args.objective:
            break
    by_phase(auto, trace(args), args.times)
    meets = [size for size, replay in fixed.items()
             if replay.share >= args.objective]
    if not meets or auto.share < args.objective:
        print(f"\nThe objective of {100 * args.objective:g} % is missed by "
              f"{'the autoscaled pool' if meets else 'every fixed size'}: "
              "there is nothing to compare.")
    else:
        static = fixed[min(meets)]
        # Of the trace's time: the runs end a little apart.
        saved = 1 - (auto.replica_seconds / auto.seconds) / \
            (static.replica_seconds / static.seconds)
        print(f"\nStatic peak at the objective of {100 * args.objective:g} %: "
              f"{min(meets)} replicas. Saved: {100 * saved:.1f} % of its "
              "replica-seconds.")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"settings": vars(args), "auto": auto.samples,
                       "fixed": {size: replay.samples
                                 for size, replay in fixed.items()}},
                      file, indent=1)


if __name__ == "__main__":
    main()
