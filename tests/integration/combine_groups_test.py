"""Combine groups: who adds up rows changes no bit of any answer."""

import contextlib
import json
import os
import tempfile
import unittest

import expertmesh_testing as et
import grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from expertmesh.v1 import model_pb2, model_pb2_grpc

SECONDS = 120
TOP_K = 5  # of 16 experts


def write_variant(folder):
    """The demo model with more experts for each token."""
    for name in os.listdir(et.DEMO_MODEL):
        if name != "config.json":
            os.symlink(os.path.join(et.DEMO_MODEL, name),
                       os.path.join(folder, name))
    with open(os.path.join(et.DEMO_MODEL, "config.json")) as file:
        config = json.load(file)
    config["num_experts_per_tok"] = TOP_K
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)


def answers(address, on_token=lambda number: None):
    """Tokens and log-probabilities of one request, to the bit."""
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = pb.GenerateRequest(text="ROMEO:", temperature=0, logprobs=5,
                                     ignore_eos=True, max_tokens=40)
        found = []
        for response in stub.Generate(request, timeout=SECONDS):
            for logprob in response.logprobs:
                found.append(logprob.SerializeToString(deterministic=True))
                on_token(len(found))
        return found


class CombineGroupsTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.model = folder.name
        write_variant(self.model)

    @contextlib.contextmanager
    def mesh(self, parts, *flags):
        """A router, and an expert service for each of the parts."""
        with contextlib.ExitStack() as stack:
            services = [stack.enter_context(
                et.expert(self.model, "--experts", part)) for part in parts]
            router = stack.enter_context(
                et.router(self.model, [s.address for s in services], *flags))
            yield router, services

    def answers(self, parts, *flags):
        with self.mesh(parts, *flags) as (router, _):
            return answers(router.address)

    def test_services_and_groups_change_no_bit(self):
        one = self.answers(["0-15"])
        self.assertEqual(len(one), 40)
        for parts in (["0-15"], ["0-7", "8-15"], ["0-3", "4-15"],
                      ["0-15", "0-15"]):
            self.assertEqual(
                self.answers(parts, "--combine-group-size", "all"), one, parts)
        in_eights = self.answers(["0-7", "8-15"], "--combine-group-size", 8)
        # Activations rounded to bf16 may hide the difference.
        exact = ("--router-dtype", "f32", "--wire-dtype", "f32")
        self.assertNotEqual(
            self.answers(["0-7", "8-15"], "--combine-group-size", 8, *exact),
            self.answers(["0-15"], *exact))
        for parts in (["0-15"], ["0-5", "6-15"], ["0-15", "4-11"]):
            self.assertEqual(self.answers(parts, "--combine-group-size", 8),
                             in_eights, parts)

    def test_a_killed_replica_changes_no_bit(self):
        for size in (8, "all"):
            expected = self.answers(["0-15"], "--combine-group-size", size)
            with self.mesh(["0-15", "0-15"], "--combine-group-size",
                           size) as (router, services):
                def lose(number):
                    if number == 10:
                        services[0].process.kill()
                self.assertEqual(answers(router.address, lose), expected)

    def test_serve_passes_it_on(self):
        for flag, value, suffix in (
                ("--combine-group-size", "all", "-v2"),
                ("--combine-group-size", 4, "-groups-4"),
                ("--wire-dtype", "int8", "-wire-int8-v2")):
            with et.serve(self.model, 2, flag, value) as mesh:
                with grpc.insecure_channel(mesh.address) as channel:
                    stub = model_pb2_grpc.ModelServiceStub(channel)
                    model = stub.GetModel(model_pb2.GetModelRequest(),
                                          timeout=SECONDS)
                self.assertTrue(model.numerics_id.endswith(suffix),
                                model.numerics_id)
        for size in ("0", "some", "-1"):
            done = et.cli("serve", "--model", self.model,
                          "--combine-group-size", size, check=False)
            self.assertEqual(done.returncode, 2, size)


if __name__ == "__main__":
    et.main()
