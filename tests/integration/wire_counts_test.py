"""What a token costs between processes, in messages and bytes: regressions
that clocks would only show on an idle machine."""

import contextlib
import json
import unittest

import expertmesh_testing as et
import grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

SECONDS = 120
STEPS = 32
CONFIG = json.loads((et.DEMO_MODEL / "config.json").read_text())
LAYERS = CONFIG["num_hidden_layers"]
ROW_BYTES = {"bf16": CONFIG["hidden_size"] * 2,
             "int8": CONFIG["hidden_size"] + 4}  # codes and their scale
# Of a message beside its activations: a batch of one token names its rows,
# experts and offsets.
BATCH_OVERHEAD = 128
ANSWER_OVERHEAD = 64
NAMES = ("expert_rpc_duration_seconds_count", "expert_sent_bytes_total",
         "expert_received_bytes_total", "routed_rows_total")


def generate(channel, tokens):
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = pb.GenerateRequest(text="ROMEO:", temperature=0,
                                 ignore_eos=True, max_tokens=tokens)
    return list(stub.Generate(request, timeout=SECONDS))


def total(metrics, name):
    """Over all endpoints."""
    values = [value for series, value in metrics.items()
              if series.startswith("expertmesh_router_" + name)]
    assert values, name
    return sum(values)


class WireCountsTest(unittest.TestCase):

    def decode_counts(self, experts, router_flags):
        """What STEPS more tokens cost, without the prompt."""
        with contextlib.ExitStack() as stack:
            addresses = [
                stack.enter_context(
                    et.expert(et.DEMO_MODEL, "--experts", held)).address
                for held in experts]
            router = stack.enter_context(
                et.router(et.DEMO_MODEL, addresses, "--prefix-cache", "off",
                          *router_flags))
            channel = stack.enter_context(
                grpc.insecure_channel(router.address))
            counts = []
            for tokens in (8, 8 + STEPS):
                before = router.metrics()
                generate(channel, tokens)
                after = router.metrics()
                counts.append([total(after, name) - total(before, name)
                               for name in NAMES])
        return [longer - shorter for shorter, longer in zip(*counts)]

    def check(self, experts, *router_flags, wire="bf16"):
        row_bytes = ROW_BYTES[wire]
        messages, sent, received, rows = self.decode_counts(
            experts, [*router_flags, "--wire-dtype", wire])
        self.assertEqual(rows, STEPS * LAYERS * CONFIG["num_experts_per_tok"])
        # One for each layer and service that holds a chosen expert.
        self.assertGreaterEqual(messages, STEPS * LAYERS)
        self.assertLessEqual(messages, STEPS * LAYERS * len(experts))
        # A token goes once to each service, and comes back once for each row.
        self.assertGreater(sent, messages * row_bytes)
        self.assertLessEqual(sent, messages * (row_bytes + BATCH_OVERHEAD))
        self.assertGreater(received, rows * row_bytes)
        self.assertLessEqual(received,
                             rows * row_bytes + messages * ANSWER_OVERHEAD)

    def test_one_service_through_shared_memory(self):
        self.check(["0-15"])

    def test_two_services_through_shared_memory(self):
        self.check(["0-7", "8-15"])

    def test_one_service_over_grpc(self):
        self.check(["0-15"], "--no-shared-memory")

    def test_codes_take_half(self):
        self.check(["0-7", "8-15"], wire="int8")
        self.check(["0-15"], "--no-shared-memory", wire="int8")


if __name__ == "__main__":
    et.main()
