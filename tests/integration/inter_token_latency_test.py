"""A prompt's share of steps that also decode, by --target-inter-token-latency."""

import threading
import unittest

import expertmesh_testing as et
import grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

SECONDS = 120
STEP_TOKENS = 256
# Of a prompt in steps that decode, whatever the target.
LEAST_TOKENS = 16
BUDGET = "expertmesh_router_prefill_budget_tokens"
PROMPT = [5 + i % 400 for i in range(900)]


def request(ids, tokens):
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), temperature=0,
                              ignore_eos=True, max_tokens=tokens)


def token_ids(responses):
    return [id for response in responses for id in response.token_ids]


class InterTokenLatencyTest(unittest.TestCase):

    def tokens_and_budget(self, *flags):
        """Of a long prompt that comes while another request decodes: its
        tokens, and the budget after it."""
        with et.serve(et.DEMO_MODEL, 1, "--prefix-cache", "off",
                      "--max-step-tokens", str(STEP_TOKENS), *flags) as mesh, \
                grpc.insecure_channel(mesh.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            decoding = stub.Generate(request([7], 400), timeout=SECONDS)
            has_begun = threading.Event()

            def decode():
                for _ in decoding:
                    has_begun.set()

            thread = threading.Thread(target=decode)
            thread.start()
            self.assertTrue(has_begun.wait(SECONDS))
            answer = token_ids(stub.Generate(request(PROMPT, 8),
                                             timeout=SECONDS))
            budget = mesh.metrics()[BUDGET]
            self.assertTrue(thread.is_alive(), "nothing decoded beside it")
            thread.join()
            return answer, budget

    def test_the_budget_follows_the_target_and_changes_no_token(self):
        free, budget = self.tokens_and_budget()
        self.assertEqual(len(free), 8)
        self.assertEqual(budget, STEP_TOKENS)
        # No step is so quick.
        bounded, budget = self.tokens_and_budget(
            "--target-inter-token-latency", "0.000001")
        self.assertEqual(bounded, free)
        self.assertEqual(budget, LEAST_TOKENS)
        # Every step is: it grows from its low beginning.
        bounded, budget = self.tokens_and_budget(
            "--target-inter-token-latency", "60")
        self.assertEqual(bounded, free)
        self.assertGreater(budget, 64)


if __name__ == "__main__":
    et.main()
