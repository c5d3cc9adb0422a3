"""Hot experts on a device beside CPUs: services of two numerics_ids."""

import unittest

import expertmesh_testing as et
import grpc
from expertmesh.admin.v1 import admin_pb2 as pb
from expertmesh.admin.v1 import admin_pb2_grpc
from expertmesh.v1 import generation_pb2, generation_pb2_grpc, model_pb2, \
    model_pb2_grpc

MODEL = et.DEMO_MODEL
TOKENS = 32
SECONDS = 120


class MixedNumerics(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.base = et.expert(MODEL, "--device", "cpu")
        cls.addClassCleanup(cls.base.__exit__)
        with et.router(MODEL, [cls.base.address]) as router, \
             grpc.insecure_channel(router.address) as channel:
            cls.expected = cls.generate(channel)

    def setUp(self):
        # Emulated; room for 21 experts of 192 KiB.
        self.device = et.Service([
            et.BIN / "expertmesh-expert-emulated", "--model", MODEL,
            "--device", "cuda", "--experts", "none",
            "--memory-budget", "4MiB", "--listen", "127.0.0.1:0",
            "--metrics-listen", "127.0.0.1:0"])
        self.addCleanup(self.device.__exit__)

    def start_router(self, *flags):
        self.router = et.router(
            MODEL, [self.base.address, self.device.address], *flags)
        self.addCleanup(self.router.__exit__)
        self.channel = grpc.insecure_channel(self.router.address)
        self.addCleanup(self.channel.close)
        self.admin = admin_pb2_grpc.AdminServiceStub(
            self.router.admin_channel())
        et.wait_until(lambda: len(self.placement().hosts) == 2,
                      what="two ready services")

    @staticmethod
    def answer(channel, exact=False):
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        return list(stub.Generate(generation_pb2.GenerateRequest(
            text="ROMEO:", max_tokens=TOKENS, temperature=0, ignore_eos=True,
            logprobs=0, exact=exact), timeout=SECONDS))

    @classmethod
    def generate(cls, channel, exact=False):
        """Tokens and their log-probabilities, which show other bits."""
        return [(t, logprob.logprob) for r in cls.answer(channel, exact)
                for t, logprob in zip(r.token_ids, r.logprobs)]

    def placement(self):
        return self.admin.GetPlacement(pb.GetPlacementRequest(),
                                       timeout=SECONDS)

    def host(self):
        """The device's."""
        (host,) = [h for h in self.placement().hosts
                   if h.address == self.device.address]
        return host

    def rebalance(self):
        """Once the services have told of their rows."""
        et.wait_until(lambda: any(
            rows for layer in self.admin.GetExpertLoad(
                pb.GetExpertLoadRequest(), timeout=SECONDS).mesh_layers
            for rows in layer.rows), what="the services' counters")
        self.admin.Rebalance(pb.RebalanceRequest(), timeout=SECONDS)

    def rows(self):
        """Those the device served, and those that crossed."""
        return (self.device.metrics()["expertmesh_expert_rows_total"],
                self.router.metrics()["expertmesh_router_crossed_rows_total"])

    def test_hot_experts_are_promoted_to_the_device(self):
        self.start_router("--mix-numerics")
        model = model_pb2_grpc.ModelServiceStub(self.channel).GetModel(
            model_pb2.GetModelRequest(), timeout=SECONDS)
        self.assertRegex(model.numerics_id, "^cpu-.*-mixed$")
        self.generate(self.channel)
        self.rebalance()
        self.assertTrue(self.host().hosted)
        self.assertFalse(self.host().stands_by)

        def is_served_there():
            self.assertEqual(len(self.generate(self.channel)), TOKENS)
            return min(self.rows()) > 0
        et.wait_until(is_served_there, what="rows that cross")
        et.wait_until(
            lambda: self.answer(self.channel)[-1].routing.crossed > 0,
            what="an answer that says so")
        # Requests that are exact have no part in it.
        _, crossed = self.rows()
        self.assertEqual(self.generate(self.channel, exact=True),
                         self.expected)
        self.assertEqual(self.rows()[1], crossed)
        last = self.answer(self.channel, exact=True)[-1]
        self.assertEqual(last.routing.crossed, 0)

    def test_serve_passes_the_flag_on(self):
        with et.serve(MODEL, 1, "--mix-numerics") as mesh:
            described = et.cli("describe", "--server", mesh.address,
                               "--admin", mesh.admin_address).stdout
            self.assertIn("-mixed", described)

    def test_a_device_is_left_idle_otherwise(self):
        self.start_router()
        self.generate(self.channel)
        self.rebalance()
        self.assertFalse(self.host().hosted)
        self.assertTrue(self.host().stands_by)
        self.router.await_log("left idle.*--mix-numerics")
        self.assertIn("--mix-numerics", et.cli(
            "placement", "show", "--admin", self.router.admin_address).stdout)
        # What an operator places there serves in need alone.
        target = pb.PlacementTarget()
        target.hosts.add(address=self.device.address).hosted.add(
            layer=0, expert_ids=range(16))
        self.admin.ApplyPlacement(pb.ApplyPlacementRequest(
            expected_version=self.placement().version, placement=target),
            timeout=SECONDS)
        self.assertTrue(self.host().hosted)
        for _ in range(3):
            self.assertEqual(self.generate(self.channel), self.expected)
        self.assertEqual(self.rows(), (0, 0))


if __name__ == "__main__":
    et.main()
