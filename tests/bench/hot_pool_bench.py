"""How a managed pool evens hosts out, and how soon it follows the traffic.

Four expert services hold the demo model's experts by number; a fifth is managed
and has room for a quarter more. Plays are scored over and over, then programs,
with `--rebalance auto`. Every log-probability is compared, to the bit, with
that of the same mesh while the fifth was empty. Prints the tables of README.md.
"""

import argparse
import dataclasses
import threading
import time

import grpc
import numpy as np

import traffic
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc

FIXED = 4
MANAGED_SLOTS = traffic.LAYERS * traffic.EXPERTS // 4
# Placements that change for longer than this are a fault.
SETTLE_SECONDS = 300


class PlacementLog:
    """What the managed service holds, and since when."""

    def __init__(self, router):
        self._lock = threading.Lock()
        self._changes = [(time.monotonic(), frozenset())]
        stub = admin_pb2_grpc.AdminServiceStub(
            router.service.admin_channel())
        self._watch = stub.WatchPlacement(admin_pb2.WatchPlacementRequest())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            for placement in self._watch:
                held = frozenset(
                    (entry.layer, expert) for host in placement.hosts
                    if host.managed for entry in host.hosted
                    for expert in entry.expert_ids)
                with self._lock:
                    if held != self._changes[-1][1]:
                        self._changes.append((time.monotonic(), held))
        except grpc.RpcError:
            pass  # stopped

    def since(self, begin):
        """When it changed after `begin`."""
        with self._lock:
            return [when for when, _ in self._changes if when > begin]

    def now(self):
        """(since when, {(layer, expert)})"""
        with self._lock:
            return self._changes[-1]

    def stop(self):
        self._watch.cancel()
        self._thread.join()


@dataclasses.dataclass
class Served:
    """What the hosts did for some rounds of traffic."""
    rows: np.ndarray  # [services, layers, experts]
    slowest_by_round: int = 0

    def cells(self, held):
        mean = self.rows.sum() / len(self.rows)
        halved, best = split_rows(self.rows.sum(axis=0), held)
        return [f"{x / mean:.3f}" for x in (
            traffic.slowest_rows(self.rows), self.slowest_by_round, halved,
            best)]


def split_rows(rows, held):
    """The slowest host's rows, summed over layers, of [layers, experts] under a
    placement: where both copies of a slot serve half of its rows, and where
    rows are split as well as can be."""
    halved = best = 0
    for layer in range(traffic.LAYERS):
        fixed = rows[layer].reshape(FIXED, -1).sum(axis=1)
        mask = [(layer, e) in held for e in range(traffic.EXPERTS)]
        copied = np.where(mask, rows[layer], 0).reshape(FIXED, -1).sum(axis=1)
        halved += max(*(fixed - copied / 2), copied.sum() / 2)
        low, high = 0, fixed.max()
        while high - low > 0.1:
            limit = (low + high) / 2
            excess = np.maximum(0, fixed - limit)
            if (excess <= copied).all() and excess.sum() <= limit:
                high = limit
            else:
                low = limit
        best += high
    return halved, best


class Traffic:
    """Scores the windows of texts in turn, some at a time."""

    def __init__(self, experts, at_once):
        self._experts = experts
        self._at_once = at_once
        self._expected = {}  # (text, window) → log-probabilities
        self.scored = self.changed = 0

    def serve(self, router, text, windows, more):
        """Rounds of the text until more(number of rounds) is false."""
        before = begin = self._experts.rows()
        slowest = rounds = 0
        while more(rounds):
            first = rounds * self._at_once
            numbers = [i % len(windows)
                       for i in range(first, first + self._at_once)]
            responses = router.score([windows[i] for i in numbers])
            for number, response in zip(numbers, responses):
                self._check((text, number), list(response.logprobs))
            rounds += 1
            after = self._experts.rows()
            slowest += traffic.slowest_rows(after - before)
            before = after
        return Served(before - begin, slowest)

    def serve_once(self, router, text, windows):
        rounds = -(-len(windows) // self._at_once)
        return self.serve(router, text, windows, lambda done: done < rounds)

    def _check(self, key, logprobs):
        self.scored += 1
        self.changed += self._expected.setdefault(key, logprobs) != logprobs


class Run:
    """Plays, then programs, with a pool that follows."""

    def __init__(self, args, experts):
        self._args = args
        self._experts = experts
        self._traffic = Traffic(experts, args.at_once)
        self.balance = []  # rows of the first table
        self.turn = None   # the row of the second

    def _router(self, *flags):
        return traffic.Router(self._experts, "--load-window",
                              self._args.load_window, *flags)

    def undisturbed(self):
        with self._router("--rebalance", "off") as router:
            for text in traffic.TEXTS:
                served = self._traffic.serve_once(
                    router, text, router.windows(text, self._args.windows))
                self.balance.append([text, "nothing", *served.cells(())])

    def follow(self):
        args = self._args
        with self._router(
                "--rebalance", "auto", "--rebalance-interval", args.interval,
                "--rebalance-windows", args.looks, "--rebalance-pause",
                args.pause) as router:
            self._log = PlacementLog(router)
            plays, programs = (router.windows(text, args.windows)
                               for text in ("plays", "programs"))
            self._settle(router, "plays", plays, time.monotonic())
            self._measure(router, "plays", plays)
            turn = time.monotonic()
            self._before_it_follows(router, programs, turn)
            self._settle(router, "programs", programs, turn)
            changes = self._log.since(turn)
            self._measure(router, "programs", programs)
            self._log.stop()
            self.turn = [f"{args.load_window:g} s", f"{args.interval:g} s",
                         args.looks, f"{args.pause:g} s",
                         f"{changes[0] - turn:.1f} s",
                         f"{changes[-1] - turn:.1f} s",
                         f"{changes[-1] - turn - args.load_window:+.1f} s"]

    def _settle(self, router, text, windows, begin):
        """Serves until the placement follows the text and stays."""
        args = self._args
        quiet = args.load_window + args.pause + args.interval * (args.looks + 1)

        def more(_):
            now = time.monotonic()
            if now - begin > SETTLE_SECONDS:
                raise TimeoutError(f"{text}: the placement did not settle")
            changed_at = self._log.now()[0]
            return changed_at <= begin or now - changed_at < quiet
        self._traffic.serve(router, text, windows, more)

    def _before_it_follows(self, router, windows, turn):
        held = self._log.now()[1]
        served = self._traffic.serve(
            router, "programs", windows,
            lambda _: not self._log.since(turn) and
            time.monotonic() < turn + SETTLE_SECONDS)
        self.balance.append(["programs", "for plays", *served.cells(held)])

    def _measure(self, router, text, windows):
        held = self._log.now()[1]
        served = self._traffic.serve_once(router, text, windows)
        self.balance.append([text, f"for {text}", *served.cells(held)])

    def summary(self):
        return (f"{self._traffic.scored} windows scored, "
                f"{self._traffic.changed} with a bit changed")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=1,
                        help="windows of 256 tokens scored at a time")
    parser.add_argument("--windows", type=int,
                        help="of each text so many at most")
    # Short, for a laptop; the router's own are 30, 10, 3 and 60.
    parser.add_argument("--load-window", type=float, default=5)
    parser.add_argument("--interval", type=float, default=1)
    parser.add_argument("--looks", type=int, default=3)
    parser.add_argument("--pause", type=float, default=5)
    args = parser.parse_args()

    with traffic.Experts(FIXED, MANAGED_SLOTS) as experts:
        run = Run(args, experts)
        run.undisturbed()
        run.follow()
    traffic.print_table(
        ["text", "copies", "served", "served, by round", "halved", "best"],
        run.balance)
    print()
    traffic.print_table(
        ["load window", "interval", "looks", "pause", "first load",
         "last load", "after the window has seen the turn"], [run.turn])
    print(f"\n{run.summary()}")


if __name__ == "__main__":
    main()
