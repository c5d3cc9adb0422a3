#!/usr/bin/env python3
"""Rows that two hosts of unequal speed are given, over time.

Two expert services hold the same experts; one of them is held to half a CPU for
a while. Clients send prompts without pause. Each line tells what an interval gave: rows of each host, how fast each
computed while it computed, and the share of rows beside the share of speed.
"""

import argparse
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("EXPERTMESH_BUILD",
                                    ROOT / "build/cpu-release"))
os.environ.setdefault("EXPERTMESH_BIN", str(BUILD / "bin"))
os.environ.setdefault("EXPERTMESH_STUBS", str(BUILD / "python_stubs"))
os.environ.setdefault("EXPERTMESH_SOURCE", str(ROOT))
sys.path.insert(0, str(ROOT / "tests/support/python"))

import grpc

import expertmesh_testing as et
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

VOCAB = 1000
# A row takes some tens of microseconds; attention takes little.
SHAPE = {"hidden": 512, "layers": 2, "heads": 4, "kv-heads": 2, "head-dim": 64,
         "experts": 16, "top-k": 4, "expert-width": 1024, "vocab": VOCAB}


class HeldBack:
    """Lets a process run for a share of the time, as long as the block runs."""

    def __init__(self, process, share, period_seconds=0.01):
        self._process = process
        self._phases = ((signal.SIGSTOP, (1 - share) * period_seconds),
                        (signal.SIGCONT, share * period_seconds))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        # Against the clock, so that oversleeping does not add up.
        at = time.monotonic()
        while not self._over.is_set():
            for number, seconds in self._phases:
                self._process.send_signal(number)
                now = time.monotonic()
                at = max(at + seconds, now)
                time.sleep(at - now)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def prompts_all_along(address, clients, prompt_tokens):
    """Prefill, and one token of decode, from some clients."""
    over = threading.Event()

    def ask(seed):
        rng = random.Random(seed)
        with grpc.insecure_channel(address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            while not over.is_set():
                ids = [rng.randrange(1, VOCAB) for _ in range(prompt_tokens)]
                list(stub.Generate(pb.GenerateRequest(
                    token_ids=pb.TokenIds(ids=ids), max_tokens=1,
                    temperature=0)))
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Meter:
    """Rows and computing time of a service since the last look."""

    def __init__(self, service):
        self._service = service
        self._last = self._read()

    def _read(self):
        metrics = self._service.metrics()
        return [metrics[f"expertmesh_expert_{name}"] for name in (
            "rows_total", "forward_duration_seconds_sum")]

    def take(self):
        """(rows, rows per second of computing)."""
        now = self._read()
        rows, seconds = (b - a for a, b in zip(self._last, now))
        self._last = now
        return rows, rows / seconds if seconds else 0.0


def share(pair):
    """Of the first in both, in percent."""
    return 100 * pair[0] / sum(pair) if sum(pair) else 0.0


def measure(phase, meters, intervals, seconds):
    totals = [0.0, 0.0]
    for meter in meters:
        meter.take()
    begin = time.monotonic()
    for _ in range(intervals):
        time.sleep(seconds)
        (rows_a, speed_a), (rows_b, speed_b) = (m.take() for m in meters)
        totals = [totals[0] + rows_a, totals[1] + rows_b]
        print(f"{phase:>8}  {time.monotonic() - begin:6.1f}  {rows_a:8.0f}  "
              f"{rows_b:8.0f}  {speed_a:9.0f}  {speed_b:9.0f}  "
              f"{share((rows_a, rows_b)):7.1f} %  "
              f"{share((speed_a, speed_b)):7.1f} %", flush=True)
    return totals


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cpu", type=float, default=0.5,
                        help="share of a CPU that host B is held to")
    parser.add_argument("--interval", type=float, default=1, help="seconds")
    parser.add_argument("--intervals", type=int, default=8,
                        help="of each phase")
    parser.add_argument("--clients", type=int, default=4, help=" ")
    parser.add_argument("--prompt-tokens", type=int, default=256, help=" ")
    parser.add_argument("--model", type=pathlib.Path,
                        help="a checkpoint of make_checkpoint.py with this "
                        "vocabulary; default: a small one is written")
    return parser.parse_args()


def main():
    flags = parse_flags()
    with contextlib.ExitStack() as stack:
        model = flags.model
        if model is None:
            model = pathlib.Path(stack.enter_context(
                tempfile.TemporaryDirectory(prefix="expertmesh-bench-")))
            subprocess.run(
                [sys.executable, str(pathlib.Path(__file__).with_name(
                    "make_checkpoint.py")), str(model),
                 *(str(x) for name, value in SHAPE.items()
                   for x in ("--" + name, value))], check=True)
        services = [stack.enter_context(et.expert(model, "--threads", 1))
                    for _ in range(2)]
        router = stack.enter_context(et.router(
            model, [s.address for s in services]))
        stack.enter_context(prompts_all_along(
            router.address, flags.clients, flags.prompt_tokens))
        meters = [Meter(service) for service in services]
        print("   phase       s    rows A    rows B  A, rows/s  B, rows/s  "
              "A of rows  A of speed")
        run = (meters, flags.intervals, flags.interval)
        measure("even", *run)
        with HeldBack(services[1].process, flags.cpu):
            measure("B held", *run)
        measure("even", *run)


if __name__ == "__main__":
    main()
