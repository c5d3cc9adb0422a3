"""A mesh under fire: every answer is the undisturbed one, to the bit.

A seeded run of kills, stops, partitions, nonsense, drains, restarts and moves
under many clients. See README.md.
"""

import argparse
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import events
import load as load_module
from load import quantile
import mesh as mesh_module

# Services that hold no expert together: two that may be broken at a time.
PAIRS = ((0, 2), (1, 3))
# Until a service that came back is measured by the routers.
SETTLE_SECONDS = 2


class Chaos:
    """One run."""

    def __init__(self, flags):
        self.flags = flags
        self.rng = random.Random(flags.seed)
        self.began = time.monotonic()
        self.log = []
        self.mesh = mesh_module.Mesh(flags.seed, flags.clients,
                                     flags.wire_dtype, whole=not flags.kills)
        self.load = load_module.Load(
            [router.channel for router in self.mesh.routers],
            load_module.make_requests(flags.seed, flags.requests),
            flags.clients, flags.seed, self.began)
        self._deck = events.Deck(events.KINDS, self.rng)
        self._managed_deck = events.Deck(events.MANAGED_KINDS, self.rng)

    def say(self, what):
        line = f"{time.monotonic() - self.began:8.3f}  {what}"
        self.log.append(line)
        if self.flags.verbose:
            # In one piece: lanes talk at the same time.
            print(f"{line}\n", end="", flush=True)

    # --- Events. ---

    def lane(self, index, kinds, seed, errors):
        """Events of one service, one after the other."""
        context = events.Context(random.Random(seed), self.say,
                                 self.load.ended)
        try:
            for kind in kinds:
                if not self.load.ended.is_set():
                    context.happen(kind, self.mesh, self.mesh.services[index])
        except BaseException:
            errors.append(traceback.format_exc())
            self.load.ended.set()

    def round(self):
        """Events of three services, independently; the others stay well."""
        errors = []
        hit = [(index, self._deck.deal(self.rng.randrange(1, 3)))
               for index in self.rng.choice(PAIRS)]
        # The managed one is given something to lose first.
        hit.append((mesh_module.NUM_SERVICES, [
            events.place, *self._managed_deck.deal(self.rng.randrange(1, 3))]))
        lanes = [threading.Thread(target=self.lane, args=(
            index, kinds, self.rng.random(), errors)) for index, kinds in hit]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        if errors:
            raise load_module.Failure("\n".join(errors))

    def disturb(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.load.ended.is_set():
            self.round()
            self.check_routers()

    def roll(self):
        """A rolling restart of all."""
        context = events.Context(random.Random(0), self.say, self.load.ended)
        for service in self.mesh.services:
            if not self.load.ended.is_set():
                context.happen(events.restart, self.mesh, service)

    def check_routers(self):
        for router in self.mesh.routers:
            if router.process.process.poll() is not None:
                raise load_module.Failure("a router ended")

    # --- Phases. ---

    def quiet(self, seconds):
        """Runs undisturbed; returns tokens per second and the gaps."""
        begin = time.monotonic()
        self.load.ended.wait(seconds)
        end = time.monotonic()
        return (self.load.tokens_per_second(begin, end),
                self.load.gaps_between(begin, end))

    def run(self):
        self.say("recording the undisturbed answers")
        self.load.record()
        self.say("the undisturbed answers are there")
        self.load.run(self.measure_kills if self.flags.kills else self.shake)

    def shake(self):
        flags = self.flags
        before, calm_gaps = self.quiet(flags.quiet)
        begin = time.monotonic()
        self.roll()
        self.disturb(flags.minutes * 60)
        end = time.monotonic()
        after, _ = self.quiet(flags.quiet)
        if self.load.ended.is_set():
            return
        gaps = self.load.gaps_between(begin, end)
        print(f"answers             {self.load.completed}, all as undisturbed\n"
              f"tokens/s            {before:.0f} before, "
              f"{self.load.tokens_per_second(begin, end):.0f} during, "
              f"{after:.0f} after\n"
              f"gap between tokens  before: p99 "
              f"{quantile(calm_gaps, 0.99) * 1e3:.0f} ms, longest "
              f"{quantile(calm_gaps, 1) * 1e3:.0f} ms; during: p99 "
              f"{quantile(gaps, 0.99) * 1e3:.0f} ms, longest "
              f"{quantile(gaps, 1) * 1e3:.0f} ms")
        self.print_longest_gaps(begin, end)
        self.print_metrics()

    def print_longest_gaps(self, begin, end):
        """When they were, to be looked up among the events."""
        shown = []
        for gap in sorted(self.load.gaps, key=lambda g: -g.seconds):
            # One stall shows in the gaps of all clients.
            if begin <= gap.ended_at < end and all(
                    abs(gap.ended_at - other) > 1 for other in shown):
                shown.append(gap.ended_at)
                print(f"  {gap.seconds * 1e3:6.0f} ms until "
                      f"{gap.ended_at - self.began:.3f}")
            if len(shown) == 5:
                return

    def print_metrics(self):
        for series, value in sorted(self.mesh.metrics().items()):
            if value > 0 and series.startswith((
                    "expertmesh_router_resent_batches_total",
                    "expertmesh_router_hedged_batches_total",
                    "expertmesh_router_expert_rpc_duration_seconds_count")):
                print(f"{series.removeprefix('expertmesh_router_')}  "
                      f"{value:.0f}")

    def measure_kills(self):
        """For each kill: the longest gap between tokens after it over the
        undisturbed p99, and the throughput after it over that of the same three
        services undisturbed."""
        print("| Service | p99 gap before, ms | longest after, ms | ratio "
              "| tokens/s of four | of three | after the kill | over three |\n"
              "|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
        ratios, shares = [], []
        for number in range(self.flags.kills):
            service = self.mesh.services[number % mesh_module.NUM_SERVICES]
            three = self.without(service)
            four, calm = self.quiet(self.flags.quiet)
            at = time.monotonic()
            self.say(f"service {service.index}: kill")
            service.stop(signal.SIGKILL)
            after, gaps = self.quiet(at + self.flags.quiet - time.monotonic())
            p99, longest = quantile(calm, 0.99), gaps[-1]
            ratios.append(longest / p99)
            shares.append(after / three)
            self.bring_back(service)
            if self.load.ended.is_set():
                return
            print(f"| {service.index} | {p99 * 1e3:.0f} | {longest * 1e3:.0f} "
                  f"| {ratios[-1]:.1f} | {four:.0f} | {three:.0f} "
                  f"| {after:.0f} | {shares[-1]:.2f} |", flush=True)
        print(f"\nmedian gap ratio {statistics.median(ratios):.1f}, largest "
              f"{max(ratios):.1f}; median throughput after over that of three "
              f"{statistics.median(shares):.2f}")

    def without(self, service):
        """Tokens per second of the others, while it is drained and gone."""
        service.stop(signal.SIGTERM)
        self.mesh.await_gone(service.index)
        three, _ = self.quiet(self.flags.quiet)
        self.bring_back(service)
        return three

    def bring_back(self, service):
        self.mesh.await_gone(service.index)
        service.restart()
        events.await_back(self.mesh, service)
        self.load.ended.wait(SETTLE_SECONDS)

    # --- What is left of it. ---

    def keep(self, what):
        """Says why it failed and keeps what tells how."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix="expertmesh-chaos-"))
        self.mesh.keep_logs(folder)
        (folder / "events.log").write_text("\n".join(self.log) + "\n")
        if shutil.which("gdb"):
            for i, router in enumerate(self.mesh.routers):
                stacks = subprocess.run(
                    ["gdb", "-p", str(router.process.pid), "-batch", "-ex",
                     "thread apply all backtrace"], capture_output=True,
                    text=True)
                (folder / f"router{i}_stacks.txt").write_text(stacks.stdout)
        print("\n".join(self.log))
        print(f"\n{what}\nat {time.monotonic() - self.began:.3f} of the run. "
              f"Logs: {folder}\nAgain: tests/chaos/run --seed "
              f"{self.flags.seed} --minutes {self.flags.minutes} "
              f"--wire-dtype {self.flags.wire_dtype}", flush=True)


def parse_flags():
    parser = argparse.ArgumentParser(prog="tests/chaos/run",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.3,
                        help="of disturbance (default: 0.3)")
    parser.add_argument("--seed", type=int,
                        help="of requests and events (default: a random one)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96,
                        help="different ones (default: 96)")
    parser.add_argument("--quiet", type=float, default=4,
                        help="seconds measured before and after (default: 4)")
    parser.add_argument("--kills", type=int, default=0,
                        help="only measure so many kills, one after the other")
    parser.add_argument("--wire-dtype", default="auto",
                        help="of the routers: auto, f32, bf16 or int8")
    parser.add_argument("--verbose", action="store_true",
                        help="tell events as they happen")
    flags = parser.parse_args()
    if flags.seed is None:
        flags.seed = random.SystemRandom().randrange(1 << 31)
    return flags


def main():
    flags = parse_flags()
    print(f"seed {flags.seed}", flush=True)
    chaos = Chaos(flags)
    try:
        chaos.run()
        chaos.check_routers()
    except Exception as error:
        chaos.keep(str(error) if isinstance(error, load_module.Failure)
                   else traceback.format_exc())
        return 1
    finally:
        chaos.mesh.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
