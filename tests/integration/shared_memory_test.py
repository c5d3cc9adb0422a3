"""Batches between processes of one host, with and without shared memory."""

import contextlib
import unittest

import expertmesh_testing as et
import grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

SECONDS = 120
SERIES = "expertmesh_router_expert_shared_memory"


def answer(router):
    with grpc.insecure_channel(router.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = pb.GenerateRequest(text="ROMEO:", temperature=0,
                                     ignore_eos=True, max_tokens=24)
        return "".join(response.text for response in
                       stub.Generate(request, timeout=SECONDS))


def users(router):
    """Endpoints whose batches go through shared memory."""
    values = [value for series, value in router.metrics().items()
              if series.startswith(SERIES)]
    assert len(values) == 1, values
    return values[0]


class SharedMemoryTest(unittest.TestCase):

    def check(self, expert_flags, router_flags, expected_users):
        with contextlib.ExitStack() as stack:
            expert = stack.enter_context(
                et.expert(et.DEMO_MODEL, *expert_flags))
            router = stack.enter_context(
                et.router(et.DEMO_MODEL, [expert.address], *router_flags))
            text = answer(router)
            self.assertEqual(users(router), expected_users)
            return text

    def test_is_used_unless_either_side_refuses_and_changes_no_token(self):
        text = self.check([], [], 1)
        self.assertEqual(text, self.check(["--no-shared-memory"], [], 0))
        self.assertEqual(text, self.check([], ["--no-shared-memory"], 0))

    def test_serve_passes_the_refusal_on(self):
        with et.serve(et.DEMO_MODEL, 1) as mesh:
            text = answer(mesh)
            self.assertEqual(users(mesh), 1)
        with et.serve(et.DEMO_MODEL, 1, "--no-shared-memory") as mesh:
            self.assertEqual(answer(mesh), text)
            self.assertEqual(users(mesh), 0)

    def test_a_killed_service_is_let_go_of(self):
        with contextlib.ExitStack() as stack:
            expert = stack.enter_context(et.expert(et.DEMO_MODEL))
            router = stack.enter_context(
                et.router(et.DEMO_MODEL, [expert.address]))
            answer(router)
            self.assertEqual(users(router), 1)
            expert.process.kill()
            # The router lets go of it as soon as the stream has ended.
            et.wait_until(lambda: users(router) == 0)


if __name__ == "__main__":
    et.main()
