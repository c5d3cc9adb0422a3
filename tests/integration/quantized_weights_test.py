"""Weights, keys, values and rows on the wire in codes: what they cost in
quality, and their bits."""

import contextlib
import json
import os
import unittest

import expertmesh_testing as et
from expertmesh.v1 import model_pb2, model_pb2_grpc
import grpc

HELD_OUT = os.path.join(et.DEMO_MODEL, "heldout_novel.txt")


def score(router):
    return json.loads(et.cli("score", "--server", router.address,
                             "--text-file", HELD_OUT, "--complete-windows",
                             "--max-windows", "24", "--json").stdout)


def perplexity(*flags):
    with et.serve(et.DEMO_MODEL, 1, *flags) as mesh:
        return score(mesh)["perplexity"]


class QuantizedWeightsTest(unittest.TestCase):

    def test_quality_stays(self):
        plain = perplexity()
        for flags, most in ((["--expert-dtype", "int8"], 0.002),
                            (["--expert-dtype", "int4"], 0.01),
                            (["--expert-dtype", "int8",
                              "--router-dtype", "int8"], 0.002),
                            (["--kv-dtype", "int8"], 0.002),
                            (["--wire-dtype", "int8"], 0.002)):
            quantized = perplexity(*flags)
            # It is something else, or the flags do nothing.
            self.assertNotEqual(quantized, plain, flags)
            self.assertLess(abs(quantized / plain - 1), most, flags)

    def test_instruction_sets_give_the_same_bits(self):
        for dtype, kv, wire in (("int8", "int8", "int8"),
                                ("int4", "f32", "f32")):
            answers, ids = set(), set()
            for isa in ("", "avx2", "portable"):
                with contextlib.ExitStack() as stack:
                    os.environ["EXPERTMESH_ISA"] = isa
                    stack.callback(os.environ.pop, "EXPERTMESH_ISA")
                    expert = stack.enter_context(et.expert(
                        et.DEMO_MODEL, "--expert-dtype", dtype))
                    router = stack.enter_context(et.router(
                        et.DEMO_MODEL, [expert.address], "--router-dtype",
                        dtype, "--kv-dtype", kv, "--wire-dtype", wire))
                    answers.add(et.cli(
                        "score", "--server", router.address, "--text",
                        "All the world's a stage", "--json").stdout)
                    with grpc.insecure_channel(router.address) as channel:
                        stub = model_pb2_grpc.ModelServiceStub(channel)
                        ids.add(stub.GetModel(
                            model_pb2.GetModelRequest(),
                            timeout=et.START_SECONDS).numerics_id)
            self.assertEqual(len(answers), 1, dtype)
            self.assertEqual(len(ids), 1, dtype)


if __name__ == "__main__":
    et.main()
