"""The demo model's held-out texts as traffic, and the rows that it makes."""

import json
import math

import grpc
import numpy as np

import expert_client
import expertmesh_testing as et
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

_CONFIG = json.loads((et.DEMO_MODEL / "config.json").read_text())
LAYERS = _CONFIG["num_hidden_layers"]
EXPERTS = _CONFIG["num_experts"]
TOP_K = _CONFIG["num_experts_per_tok"]
# As report.json has them.
WINDOW_TOKENS = 256
TEXTS = {"plays": "heldout.txt", "programs": "heldout_programs.txt"}

_SECONDS = 300


class Experts:
    """Expert services in processes of their own, each with one thread. The
    first `fixed` hold all experts by number, in equal parts; where there are
    `managed_slots`, one more starts empty, with room for so many. A context
    manager."""

    def __init__(self, fixed=4, managed_slots=0):
        share = EXPERTS // fixed
        slot_bytes = 3 * 2 * _CONFIG["hidden_size"] * \
            _CONFIG["moe_intermediate_size"]
        flags = [("--experts", f"{i * share}-{(i + 1) * share - 1}")
                 for i in range(fixed)]
        if managed_slots > 0:
            flags.append(("--experts", "none", "--memory-budget",
                          managed_slots * slot_bytes))
        self._services = [et.expert(et.DEMO_MODEL, "--threads", 1, *f)
                          for f in flags]
        self._channels = [expert_client.connect(s) for s in self._services]

    @property
    def addresses(self):
        return [s.address for s in self._services]

    def rows(self):
        """[services, layers, experts] served so far, as the services count."""
        rows = np.zeros((len(self._services), LAYERS, EXPERTS), np.int64)
        for service, channel in enumerate(self._channels):
            watch = expert_client.watch_state(channel)
            for slot in next(watch).load:
                rows[service, slot.layer, slot.expert_id] = slot.rows
            watch.cancel()
        return rows

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for channel in self._channels:
            channel.close()
        for service in self._services:
            service.__exit__()


class Router:
    """A router of these experts and a client of it. A context manager."""

    def __init__(self, experts, *flags):
        self.service = et.router(et.DEMO_MODEL, experts.addresses, *flags)
        self.channel = grpc.insecure_channel(self.service.address)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self.channel)

    def windows(self, text, most=None):
        """A text of TEXTS as token ids, in windows of WINDOW_TOKENS; what is
        left at the end is left out."""
        ids = self._stub.Tokenize(pb.TokenizeRequest(
            text=(et.DEMO_MODEL / TEXTS[text]).read_text()),
            timeout=_SECONDS).token_ids
        number = len(ids) // WINDOW_TOKENS
        return [ids[i * WINDOW_TOKENS:(i + 1) * WINDOW_TOKENS]
                for i in range(min(number, most or number))]

    def score(self, windows, policy="wait"):
        """Scores windows at once; their responses in order."""
        value = pb.OverflowPolicy.Value(f"OVERFLOW_POLICY_{policy.upper()}")
        calls = [self._stub.Score.future(
            pb.ScoreRequest(token_ids=pb.TokenIds(ids=ids),
                            overflow_policy=value), timeout=_SECONDS)
            for ids in windows]
        return [call.result() for call in calls]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.service.__exit__()


def perplexity(responses):
    """Over all their tokens together."""
    logprobs = [p for r in responses for p in r.logprobs]
    return math.exp(-math.fsum(logprobs) / len(logprobs))


def slowest_rows(rows):
    """Of [hosts, layers, experts]: the rows of the busiest host of a layer,
    summed over layers. Hosts work on one layer at a time, so this is what a
    step waits for."""
    return rows.sum(axis=2).max(axis=0).sum()


def print_table(header, rows):
    """As Markdown; all columns but the first are numbers."""
    print("| " + " | ".join(header) + " |")
    print("|-|" + "-:|" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
