"""Prompts that begin the same, at real routers with and without the cache."""

import json
import unittest
import urllib.request

import expertmesh_testing as testing
import grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

SECONDS = 120
PREFIX = list(range(256, 320)) * 2
PAGE_TOKENS = 16


class PrefixCacheTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.cached, cls.plain = (
            testing.serve(testing.DEMO_MODEL, 2, "--prefix-cache", state)
            for state in ("on", "off"))
        for mesh in (cls.cached, cls.plain):
            cls.addClassCleanup(mesh.__exit__)

    def generate(self, mesh, ids, **fields):
        """New ids, bits of their log-probabilities, and the last message."""
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=ids), max_tokens=24, seed=5,
            temperature=0.8, logprobs=5, ignore_eos=True, **fields)
        with grpc.insecure_channel(mesh.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            responses = list(stub.Generate(request, timeout=SECONDS))
        tokens = [i for r in responses for i in r.token_ids]
        logprobs = [entry.SerializeToString() for r in responses
                    for entry in r.logprobs]
        return tokens, logprobs, responses[-1]

    def metric(self, mesh, name):
        with urllib.request.urlopen(mesh.metrics_url, timeout=SECONDS) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(f"expertmesh_router_{name} "):
                    return float(line.split()[-1])
        self.fail(f"no metric {name}")

    def test_the_second_of_two_prompts_finds_their_prefix(self):
        # A beginning that no other test has.
        prompts = [[7, 8] + PREFIX + rest for rest in ([300, 301], [302])]
        for number, prompt in enumerate(prompts):
            tokens, logprobs, last = self.generate(self.cached, prompt)
            usage = last.usage
            self.assertEqual(usage.cached_tokens,
                             number * len(PREFIX) // PAGE_TOKENS * PAGE_TOKENS)
            # 24 new tokens, of which the last is no input; four layers, top 2.
            self.assertEqual(last.routing.gate_mass_kept, 1)
            self.assertEqual(
                last.routing.primary + last.routing.waited,
                (len(prompt) - usage.cached_tokens + 23) * 4 * 2)
            expected = self.generate(self.plain, prompt)
            self.assertEqual(expected[2].usage.cached_tokens, 0)
            self.assertEqual((tokens, logprobs), expected[:2])

    def test_metrics_tell_hits(self):
        names = ("prefix_cache_lookup_tokens_total",
                 "prefix_cache_hit_tokens_total")
        prompt = [9] + PREFIX
        self.generate(self.cached, prompt)
        before = [self.metric(self.cached, name) for name in names]
        self.generate(self.cached, prompt)
        after = [self.metric(self.cached, name) for name in names]
        self.assertEqual([b - a for a, b in zip(before, after)],
                         [len(prompt), len(PREFIX)])
        self.assertGreaterEqual(self.metric(self.cached, "prefix_cache_pages"),
                                len(PREFIX) // PAGE_TOKENS)
        self.assertEqual(
            self.metric(self.cached, "prefix_cache_evicted_pages_total"), 0)
        # Without a target, prefill may use the whole step.
        self.assertEqual(self.metric(self.cached, "prefill_budget_tokens"),
                         512)
        self.assertEqual(self.metric(self.plain, "prefix_cache_pages"), 0)

    def test_the_command_line_shows_cached_tokens(self):
        arguments = ["generate", "--server", self.cached.address,
                     "--token-ids", ",".join(map(str, [11] + PREFIX)),
                     "--max-tokens", 2, "--priority", 3]
        testing.cli(*arguments)
        again = testing.cli(*arguments, "--json", "--stats")
        last = json.loads(again.stdout.splitlines()[-1])
        self.assertEqual(last["usage"]["cachedTokens"], len(PREFIX))
        self.assertIn(f"prompt ({len(PREFIX)} cached)", again.stderr)

    def test_a_priority_out_of_range_is_refused(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.generate(self.cached, [1], priority=11)
        self.assertEqual(caught.exception.code(),
                         grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("from -10 to 10", caught.exception.details())


if __name__ == "__main__":
    testing.main()
