"""A mesh under fire: every answer is the undisturbed one, to the bit.

A seeded run of kills, stops, partitions, nonsense, drains, restarts and moves
under many clients. See README.md.
"""

import argparse
import pathlib
import random
import shutil
import signal
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


class Chaos:
    """One run."""

    def __init__(self, flags):
        self.flags = flags
        self.rng = random.Random(flags.seed)
        self.began = time.monotonic()
        self.log = []
        self.mesh = mesh_module.Mesh(flags.seed, flags.clients)
        self.load = load_module.Load(
            self.mesh.channel,
            load_module.make_requests(flags.seed, flags.requests),
            flags.clients, flags.seed, self.began)
        self._decks = []

    def say(self, what):
        line = f"{time.monotonic() - self.began:8.3f}  {what}"
        self.log.append(line)
        if self.flags.verbose:
            print(line, flush=True)

    # --- Events. ---

    def draw(self):
        """A kind of event; each comes up before any comes up again."""
        if not self._decks:
            self._decks = list(events.KINDS)
            self.rng.shuffle(self._decks)
        return self._decks.pop()

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
        """Events of two services, independently; the others stay well."""
        errors = []
        lanes = [threading.Thread(target=self.lane, args=(
            index, [self.draw() for _ in range(self.rng.randrange(1, 3))],
            self.rng.random(), errors)) for index in self.rng.choice(PAIRS)]
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
            self.check_router()

    def roll(self):
        """A rolling restart of all."""
        context = events.Context(random.Random(0), self.say, self.load.ended)
        for service in self.mesh.services:
            if not self.load.ended.is_set():
                context.happen(events.restart, self.mesh, service)

    def check_router(self):
        if self.mesh.router.process.poll() is not None:
            raise load_module.Failure("the router ended")

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
        for series, value in sorted(self.mesh.router.metrics().items()):
            if value > 0 and series.startswith((
                    "expertmesh_router_resent_batches_total",
                    "expertmesh_router_hedged_batches_total",
                    "expertmesh_router_expert_rpc_duration_seconds_count")):
                print(f"{series.removeprefix('expertmesh_router_')}  "
                      f"{value:.0f}")

    def measure_kills(self):
        """The longest gap between tokens after SIGKILL of one service, over the
        undisturbed p99."""
        print("service  p99 before  longest after  ratio  "
              "tokens/s before  after, three left")
        for number in range(self.flags.kills):
            service = self.mesh.services[number % mesh_module.NUM_SERVICES]
            before, calm = self.quiet(self.flags.quiet)
            at = time.monotonic()
            self.say(f"service {service.index}: kill")
            service.stop(signal.SIGKILL)
            self.mesh.await_gone(service.index)
            after, _ = self.quiet(2)
            p99 = quantile(calm, 0.99)
            longest = self.load.gaps_between(at, time.monotonic())[-1]
            print(f"{service.index:7}  {p99 * 1e3:7.1f} ms  "
                  f"{longest * 1e3:10.1f} ms  {longest / p99:5.1f}  "
                  f"{before:15.0f}  {after:5.0f}", flush=True)
            service.restart()
            events.await_back(self.mesh, service)
            if self.load.ended.is_set():
                return

    # --- What is left of it. ---

    def keep(self, what):
        """Says why it failed and keeps what tells how."""
        folder = pathlib.Path(tempfile.mkdtemp(prefix="expertmesh-chaos-"))
        self.mesh.keep_logs(folder)
        (folder / "events.log").write_text("\n".join(self.log) + "\n")
        if shutil.which("gdb"):
            stacks = subprocess.run(
                ["gdb", "-p", str(self.mesh.router.pid), "-batch", "-ex",
                 "thread apply all backtrace"], capture_output=True, text=True)
            (folder / "router_stacks.txt").write_text(stacks.stdout)
        print("\n".join(self.log))
        print(f"\n{what}\nat {time.monotonic() - self.began:.3f} of the run. "
              f"Logs: {folder}\nAgain: tests/chaos/run --seed "
              f"{self.flags.seed} --minutes {self.flags.minutes}", flush=True)


def parse_flags():
    parser = argparse.ArgumentParser(prog="tests/chaos/run",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.4,
                        help="of disturbance (default: 0.4)")
    parser.add_argument("--seed", type=int,
                        help="of requests and events (default: a random one)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96,
                        help="different ones (default: 96)")
    parser.add_argument("--quiet", type=float, default=4,
                        help="seconds measured before and after (default: 4)")
    parser.add_argument("--kills", type=int, default=0,
                        help="only measure so many kills, one after the other")
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
        chaos.check_router()
    except Exception as error:
        chaos.keep(str(error) if isinstance(error, load_module.Failure)
                   else traceback.format_exc())
        return 1
    finally:
        chaos.mesh.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
