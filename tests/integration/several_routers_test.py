"""Two routers share the expert services of one mesh."""

import concurrent.futures
import signal
import unittest

import expert_client
import expertmesh_testing as et
import grpc
from asked_all_along import asked_all_along
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

MODEL = et.DEMO_MODEL
SECONDS = 120
TEXT = (MODEL / "heldout.txt").read_text()
# Greedy and sampled, of prompts of different lengths.
REQUESTS = [
    pb.GenerateRequest(text=TEXT[1000 * i:1000 * i + size], max_tokens=24,
                       ignore_eos=True, temperature=0.8 * (i % 2), seed=i,
                       logprobs=2, prompt_logprobs=1)
    for i, size in enumerate((3, 40, 200, 900, 12, 500, 80, 300))]
# Little but prefill.
LONG = pb.GenerateRequest(text=TEXT[:1200], max_tokens=1, temperature=0)
SHORT = pb.GenerateRequest(text="ROMEO:", max_tokens=64, temperature=0,
                           ignore_eos=True, logprobs=1)


class Router:
    """A router and its clients."""

    # With one micro-batch a service has one batch of a router at a time: what
    # it merges is then of several routers.
    def __init__(self, test, services, *flags, micro_batches=1):
        self.process = et.router(MODEL, [s.address for s in services],
                                 "--micro-batches", micro_batches, *flags)
        test.addCleanup(self.process.__exit__)
        channel = grpc.insecure_channel(self.process.address)
        test.addCleanup(channel.close)
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.process.admin_channel())

    def generate(self, request):
        """Every token with the bits of its log-probability."""
        return answer(self.stub.Generate(request, timeout=SECONDS))

    def generate_all(self):
        """Answers to REQUESTS, asked at the same time."""
        with concurrent.futures.ThreadPoolExecutor(len(REQUESTS)) as pool:
            return list(pool.map(self.generate, REQUESTS))

    def steps(self):
        return self.process.metrics()[
            "expertmesh_router_step_duration_seconds_count"]

    def rows_in_flight(self, service):
        return sum(value for series, value in self.process.metrics().items()
                   if series.startswith("expertmesh_router_expert_inflight")
                   and f'"{service.address}"' in series)


def answer(responses):
    return [p.SerializeToString() for response in responses
            for p in (*response.prompt_logprobs, *response.logprobs)]


def merged_batches(service):
    """Batches that ran together with an earlier one."""
    metrics = service.metrics()
    return metrics['expertmesh_expert_batches_total{code="ok"}'] - \
        metrics["expertmesh_expert_batch_rows_count"]


class SeveralRouters(unittest.TestCase):

    def setUp(self):
        self.services = [self.expert("--experts", part)
                         for part in ("0-7", "8-15")]

    def expert(self, *flags):
        service = et.expert(MODEL, "--threads", 1, *flags)
        self.addCleanup(service.__exit__)
        return service

    def await_streams(self, service, count):
        et.wait_until(
            lambda: service.metrics()["expertmesh_expert_streams"] == count,
            what=f"{count} streams of routers")

    def test_rows_of_both_are_merged_and_answered_as_if_alone(self):
        first = Router(self, self.services)
        expected = first.generate_all()
        self.assertEqual([merged_batches(s) for s in self.services], [0, 0])
        second = Router(self, self.services, "--no-control")
        with asked_all_along(first.generate_all, expected), \
                asked_all_along(second.generate_all, expected):
            et.wait_until(
                lambda: all(merged_batches(s) > 10 for s in self.services),
                what="batches of both routers to run together")

    def test_a_flood_at_one_does_not_starve_the_other(self):
        flooded = Router(self, self.services, micro_batches=2)
        other = Router(self, self.services, "--no-control")
        expected = other.generate(SHORT)
        own = other.steps()
        long = flooded.generate(LONG)
        with asked_all_along(lambda: flooded.generate(LONG), long, threads=8):
            begin = flooded.steps()
            et.wait_until(lambda: flooded.steps() > begin + 2,
                          what="the flood")
            before = flooded.steps()
            self.assertEqual(other.generate(SHORT), expected)
            meanwhile = flooded.steps() - before
        # A step of either passes the services as often; those of the flood are
        # a hundred times larger.
        self.assertGreater(meanwhile, 0)
        self.assertLess(meanwhile, 3 * own)

    def test_one_killed_leaves_the_other_unharmed(self):
        # Its requests wait while the service is stopped.
        first = Router(self, self.services, "--uncovered-timeout", SECONDS)
        expected = first.generate(SHORT)
        service = self.services[0]

        def credits():
            with expert_client.connect(service) as channel:
                return next(expert_client.watch_state(channel)).credit_rows
        et.wait_until(lambda: service.metrics()[
            "expertmesh_expert_queue_rows"] == 0)
        self.await_streams(service, 1)
        granted = credits()
        second = Router(self, self.services, "--no-control")
        second.generate(LONG)
        self.await_streams(service, 2)
        self.assertLess(credits(), granted)
        with asked_all_along(lambda: first.generate(SHORT), expected,
                             threads=2):
            # It dies while the services owe it answers.
            service.process.send_signal(signal.SIGSTOP)
            calls = [second.stub.Generate(LONG, timeout=SECONDS)
                     for _ in range(8)]
            et.wait_until(lambda: second.rows_in_flight(service),
                          what="rows on their way")
            second.process.stop(signal.SIGKILL)
            service.process.send_signal(signal.SIGCONT)
            for call in calls:
                with self.assertRaises(grpc.RpcError) as raised:
                    list(call)
                self.assertEqual(raised.exception.code(),
                                 grpc.StatusCode.UNAVAILABLE)
            self.await_streams(service, 1)
            self.assertEqual(first.generate(SHORT), expected)
        et.wait_until(lambda: credits() == granted,
                      what="the credits of the dead router")
        self.assertEqual(
            service.metrics()["expertmesh_expert_queue_rows"], 0)

    def test_both_finish_their_streams_when_told_to_stop(self):
        routers = [Router(self, self.services, *flags,
                          "--drain-timeout", SECONDS)
                   for flags in ((), ("--no-control",))]
        request = pb.GenerateRequest(text="ROMEO:", max_tokens=400,
                                     temperature=0, ignore_eos=True,
                                     logprobs=1)
        expected = routers[0].generate(request)
        streams = [(router, router.stub.Generate(request, timeout=SECONDS))
                   for router in routers for _ in range(6)]
        begun = [answer([next(stream)]) for _, stream in streams]
        for router in routers:
            router.process.process.send_signal(signal.SIGTERM)
        for router in routers:
            self.assertEqual(et.wait_until(lambda: self.refusal(router)),
                             grpc.StatusCode.UNAVAILABLE)
        for start, (router, stream) in zip(begun, streams):
            self.assertEqual(start + answer(stream), expected)
        for router in routers:
            self.assertEqual(router.process.process.wait(et.STOP_SECONDS), 0,
                             router.process.log())
        for service in self.services:
            self.await_streams(service, 0)

    @staticmethod
    def refusal(router):
        """The code with which it refuses a request, if it does."""
        try:
            router.generate(SHORT)
            return None
        except grpc.RpcError as failure:
            return failure.code()

    def test_one_places_experts_and_both_find_them(self):
        managed = self.expert("--experts", "none", "--memory-budget", "4MiB")
        services = [*self.services, managed]
        controller = Router(self, services)
        other = Router(self, services, "--no-control")
        expected = other.generate(SHORT)
        et.wait_until(lambda: any(
            host.address == managed.address
            for host in controller.admin.GetPlacement(
                admin_pb2.GetPlacementRequest()).hosts),
            what="the controller to meet the managed service")
        for call in self.orders(other.admin, managed.address):
            with self.assertRaises(grpc.RpcError) as raised:
                call()
            self.assertEqual(raised.exception.code(),
                             grpc.StatusCode.FAILED_PRECONDITION)
            self.assertIn("--control", raised.exception.details())

        def held():
            found = other.admin.ListEndpoints(
                admin_pb2.ListEndpointsRequest(), timeout=SECONDS)
            (endpoint,) = [e for e in found.endpoints
                           if e.address == managed.address]
            return {h.layer: list(h.expert_ids) for h in endpoint.hosted}

        def rows():
            return managed.metrics()["expertmesh_expert_rows_total"]
        with asked_all_along(lambda: other.generate(SHORT), expected,
                             threads=2):
            for experts in (range(4), range(8, 12)):
                placed = {layer: list(experts) for layer in range(4)}
                self.apply(controller.admin, managed.address, placed)
                et.wait_until(lambda: held() == placed,
                              what="the other router to hear of it")
                before = rows()
                et.wait_until(lambda: rows() > before + 100,
                              what="its rows to go there")
            self.apply(controller.admin, managed.address, {})
            et.wait_until(lambda: held() == {})

    def orders(self, admin, address):
        """All that only the controller does."""
        return [
            lambda: admin.GetPlacement(admin_pb2.GetPlacementRequest()),
            lambda: next(admin.WatchPlacement(
                admin_pb2.WatchPlacementRequest())),
            lambda: admin.ProposePlacement(
                admin_pb2.ProposePlacementRequest()),
            lambda: admin.ApplyPlacement(
                admin_pb2.ApplyPlacementRequest(as_proposed=True)),
            lambda: admin.Rebalance(admin_pb2.RebalanceRequest()),
            lambda: admin.DrainEndpoint(
                admin_pb2.DrainEndpointRequest(address=address))]

    def apply(self, admin, address, placed):
        version = admin.GetPlacement(admin_pb2.GetPlacementRequest()).version
        host = admin_pb2.PlacementHost(address=address, hosted=[
            admin_pb2.HostedExperts(layer=layer, expert_ids=experts)
            for layer, experts in placed.items()])
        admin.ApplyPlacement(admin_pb2.ApplyPlacementRequest(
            expected_version=version,
            placement=admin_pb2.PlacementTarget(hosts=[host])),
            timeout=SECONDS)


if __name__ == "__main__":
    et.main()
