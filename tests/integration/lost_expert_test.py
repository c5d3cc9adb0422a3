"""What becomes of requests when nobody serves some experts any more."""

import signal
import unittest

import expertmesh_testing as et
import grpc
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

SECONDS = 120  # far below --uncovered-timeout


def request(**fields):
    return pb.GenerateRequest(text="ROMEO:", temperature=0, ignore_eos=True,
                              **fields)


class LostExpertTest(unittest.TestCase):

    def setUp(self):
        self.experts = [et.expert(et.DEMO_MODEL, "--experts", part)
                        for part in ("0-7", "8-15")]
        for service in self.experts:
            self.addCleanup(service.__exit__)
        router = et.router(et.DEMO_MODEL, [s.address for s in self.experts],
                           "--uncovered-timeout", 3600, "--max-sequences", 1)
        self.addCleanup(router.__exit__)
        channel = grpc.insecure_channel(router.address)
        self.addCleanup(channel.close)
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(router.admin_channel())

    def lose(self, number):
        self.experts[1].process.send_signal(number)
        # Stopped ones could not be ended by SIGTERM.
        self.addCleanup(self.experts[1].process.send_signal, signal.SIGKILL)

    def running(self):
        load = self.admin.GetExpertLoad(admin_pb2.GetExpertLoadRequest(),
                                        timeout=SECONDS)
        return load.requests_running

    def check_next_best(self, number):
        stream = self.stub.Generate(
            request(max_tokens=600,
                    overflow_policy=pb.OVERFLOW_POLICY_NEXT_BEST),
            timeout=SECONDS)
        next(stream)  # it is under way
        self.lose(number)
        routing = list(stream)[-1].routing
        self.assertGreater(routing.rerouted, 0)
        self.assertEqual(routing.dropped, 0)
        self.assertLess(routing.gate_mass_kept, 1)

    def test_next_best_does_without_killed_experts(self):
        self.check_next_best(signal.SIGKILL)

    def test_next_best_does_without_stopped_experts(self):
        self.check_next_best(signal.SIGSTOP)

    def test_a_cancelled_request_frees_its_place(self):
        self.lose(signal.SIGKILL)
        exact = self.stub.Generate(request(max_tokens=1, exact=True))
        et.wait_until(lambda: self.running() == 1)
        exact.cancel()
        # The only place is free again.
        answer = list(self.stub.Generate(
            request(max_tokens=4, overflow_policy=pb.OVERFLOW_POLICY_DROP),
            timeout=SECONDS))
        self.assertGreater(answer[-1].routing.dropped, 0)


if __name__ == "__main__":
    et.main()
