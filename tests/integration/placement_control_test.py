"""Experts move between real services while a generation runs."""

import threading
import unittest

import expertmesh_testing as et
import grpc
from asked_all_along import asked_all_along
from expertmesh.admin.v1 import admin_pb2 as pb
from expertmesh.admin.v1 import admin_pb2_grpc
from expertmesh.v1 import generation_pb2, generation_pb2_grpc, model_pb2, \
    model_pb2_grpc

MODEL = et.DEMO_MODEL
EXPERTS = 16
LAYERS = 4
SECONDS = 120


def slots(hosted):
    return {(h.layer, e) for h in hosted for e in h.expert_ids}


class PlacementControl(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.base = [et.expert(MODEL, "--experts", part)
                    for part in ("0-7", "8-15")]
        # Room for 21 experts of 192 KiB.
        cls.managed = et.expert(MODEL, "--experts", "none",
                                "--memory-budget", "4MiB")
        for service in (*cls.base, cls.managed):
            cls.addClassCleanup(service.__exit__)

    def start_router(self, *flags):
        router = et.router(
            MODEL, [s.address for s in (*self.base, self.managed)], *flags)
        self.addCleanup(router.__exit__)
        channel = grpc.insecure_channel(router.address)
        self.addCleanup(channel.close)
        self.admin = admin_pb2_grpc.AdminServiceStub(router.admin_channel())
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)
        return router

    def setUp(self):
        self.router = self.start_router()
        # What a test before this one left there.
        self.await_known()
        self.apply({self.managed.address: set()})

    def await_known(self):
        et.wait_until(lambda: len(self.placement().hosts) == 3,
                      what="three ready services")

    def placement(self):
        return self.admin.GetPlacement(pb.GetPlacementRequest(),
                                       timeout=SECONDS)

    def held(self, address):
        """Nothing of a host that a router has not met yet."""
        return {slot for host in self.placement().hosts
                if host.address == address for slot in slots(host.hosted)}

    def apply(self, hosts, version=None):
        target = pb.PlacementTarget()
        for address, held in hosts.items():
            host = target.hosts.add(address=address)
            for layer in sorted({layer for layer, _ in held}):
                host.hosted.add(layer=layer, expert_ids=sorted(
                    e for where, e in held if where == layer))
        return self.admin.ApplyPlacement(pb.ApplyPlacementRequest(
            expected_version=self.placement().version if version is None
            else version, placement=target), timeout=SECONDS)

    def generate(self, tokens=48):
        responses = self.stub.Generate(
            generation_pb2.GenerateRequest(
                text="ROMEO:", max_tokens=tokens, temperature=0,
                ignore_eos=True), timeout=SECONDS)
        return [i for response in responses for i in response.token_ids]

    def mesh_rows(self):
        load = self.admin.GetExpertLoad(pb.GetExpertLoadRequest(),
                                        timeout=SECONDS)
        return {(layer.layer, expert): rows for layer in load.mesh_layers
                for expert, rows in enumerate(layer.rows)}

    def await_load(self):
        et.wait_until(lambda: sum(self.mesh_rows().values()) > 0,
                      what="the services' counters")

    def check_code(self, code, text, function, *arguments):
        with self.assertRaises(grpc.RpcError) as raised:
            function(*arguments)
        self.assertEqual(raised.exception.code(), code,
                         raised.exception.details())
        self.assertIn(text, raised.exception.details())

    def test_hot_experts_move_under_a_running_generation(self):
        expected = self.generate()
        with asked_all_along(self.generate, expected, threads=3):
            self.await_load()
            proposal = self.admin.ProposePlacement(
                pb.ProposePlacementRequest(), timeout=SECONDS)
            self.assertGreater(proposal.balancedness_after,
                               proposal.balancedness_before)
            done = self.admin.Rebalance(pb.RebalanceRequest(),
                                        timeout=SECONDS)
            held = self.held(self.managed.address)
            self.assertTrue(held)
            self.assertEqual(done.applied.version, self.placement().version)
            self.assertEqual(len(held), sum(
                1 if m.kind == pb.PlacementMove.KIND_LOAD else -1
                for m in done.proposal.moves))
            # In each layer, experts with more rows than the mean.
            rows = self.mesh_rows()
            for layer in {layer for layer, _ in held}:
                mean = sum(rows[layer, e] for e in range(EXPERTS)) / EXPERTS
                self.assertGreater(
                    max(rows[s] for s in held if s[0] == layer), mean)
            # Served from there, and back again, all the while.
            self.apply({self.managed.address: set()})
            self.apply({self.managed.address: held})
            before = done.applied.version
            self.assertGreater(self.placement().version, before)
        endpoints = self.admin.ListEndpoints(pb.ListEndpointsRequest(),
                                             timeout=SECONDS)
        by_address = {e.address: slots(e.hosted) for e in endpoints.endpoints}
        self.assertEqual(by_address, {h.address: slots(h.hosted)
                                      for h in self.placement().hosts})
        self.assertEqual(by_address[self.managed.address], held)
        (managed,) = [e for e in endpoints.endpoints
                      if e.address == self.managed.address]
        self.assertEqual(managed.placement_epoch, self.placement().epoch)

    def test_bad_changes_change_nothing(self):
        before = self.placement()
        base, managed = self.base[0].address, self.managed.address
        self.check_code(grpc.StatusCode.ABORTED, "version", self.apply,
                        {managed: {(0, 0)}}, before.version - 1)
        # Fixed, and its experts are nowhere else.
        self.check_code(grpc.StatusCode.FAILED_PRECONDITION, "", self.apply,
                        {base: {(0, 0)}})
        everything = {(layer, e) for layer in range(LAYERS)
                      for e in range(EXPERTS)}
        # More than its memory.
        self.check_code(grpc.StatusCode.FAILED_PRECONDITION, managed,
                        self.apply, {managed: everything})
        self.check_code(grpc.StatusCode.INVALID_ARGUMENT, "127.0.0.1:1",
                        self.apply, {"127.0.0.1:1": everything})
        self.check_code(grpc.StatusCode.INVALID_ARGUMENT, "", self.apply,
                        {managed: {(LAYERS, 0)}})
        self.check_code(
            grpc.StatusCode.INVALID_ARGUMENT, "nothing to apply",
            self.admin.ApplyPlacement,
            pb.ApplyPlacementRequest(expected_version=before.version))
        self.check_code(
            grpc.StatusCode.ABORTED, "propose",
            self.admin.ApplyPlacement,
            pb.ApplyPlacementRequest(expected_version=before.version,
                                     as_proposed=True))
        self.assertEqual(self.placement(), before)

    def test_watchers_see_each_placement_until_the_router_ends(self):
        watch = self.admin.WatchPlacement(pb.WatchPlacementRequest(),
                                          timeout=SECONDS)
        version = next(watch).version
        self.assertEqual(version, self.placement().version)
        self.apply({self.managed.address: {(1, 2)}})
        placement = next(watch)
        self.assertGreater(placement.version, version)
        (host,) = [h for h in placement.hosts if h.managed]
        self.assertEqual(slots(host.hosted), {(1, 2)})
        self.assertEqual(self.router.stop(), 0)
        self.check_code(grpc.StatusCode.UNAVAILABLE, "shutting down",
                        list, watch)

    def test_a_restarted_controller_goes_on_with_epochs(self):
        self.apply({self.managed.address: {(0, 0)}})
        epoch = self.placement().epoch
        version = self.placement().version
        self.router.stop()
        self.router = self.start_router()
        self.await_known()
        self.assertEqual(self.placement().epoch, epoch)
        self.assertGreater(self.placement().version, version)
        self.apply({self.managed.address: {(0, 1)}})
        et.wait_until(lambda: self.placement().epoch == epoch + 1)
        self.assertEqual(self.held(self.managed.address), {(0, 1)})

    def test_drain(self):
        base, managed = self.base[0].address, self.managed.address

        def state(address):
            found = self.admin.ListEndpoints(pb.ListEndpointsRequest(),
                                             timeout=SECONDS)
            return {e.address: e.state for e in found.endpoints}[address]

        def drain(address, undo=False):
            self.admin.DrainEndpoint(
                pb.DrainEndpointRequest(address=address, undo=undo),
                timeout=SECONDS)
        self.check_code(grpc.StatusCode.NOT_FOUND, "", drain, "127.0.0.1:1")
        before = self.placement()
        # It holds half of the model, and there is room for a third.
        self.check_code(grpc.StatusCode.FAILED_PRECONDITION,
                        "no other service has room", drain, base)
        self.assertEqual(self.placement(), before)
        expected = self.generate()
        self.apply({managed: {(0, 0), (0, 1)}})
        et.cli("drain", managed, "--admin", self.router.admin_address)
        et.wait_until(lambda: state(managed) == "draining")
        self.assertEqual(len(self.placement().hosts), 2)
        self.assertEqual(self.generate(), expected)
        et.cli("drain", managed, "--undo", "--admin", self.router.admin_address)
        et.wait_until(lambda: state(managed) == "ready")
        self.assertEqual(self.generate(), expected)

    def test_capacity_is_set_live(self):
        def capacity(**fields):
            return self.admin.SetCapacity(pb.SetCapacityRequest(**fields),
                                          timeout=SECONDS)
        now = capacity(capacity_factor=1, min_capacity=1,
                       overflow_policy="drop")
        self.assertEqual((now.capacity_factor, now.min_capacity,
                          now.overflow_policy), (1, 1, "drop"))
        model = self.models.GetModel(model_pb2.GetModelRequest())
        self.assertEqual((model.capacity_factor, model.overflow_policy),
                         (1, "drop"))
        for fields in ({"capacity_factor": -1},
                       {"capacity_factor": float("nan")},
                       {"min_capacity": 0}, {"max_lost_gate_mass": 1.5},
                       {"overflow_policy": "pray"}):
            self.check_code(grpc.StatusCode.INVALID_ARGUMENT,
                            "", lambda: capacity(**fields))
        self.assertEqual(capacity(), now)
        self.assertEqual(now.max_lost_gate_mass, 0.02)
        capacity(max_lost_gate_mass=1)
        long = generation_pb2.GenerateRequest(
            text="To be or not to be, that is the question. " * 8,
            max_tokens=1, temperature=0)
        (last,) = list(self.stub.Generate(long, timeout=SECONDS))[-1:]
        self.assertGreater(last.routing.dropped, 0)

    def test_a_router_without_control_says_so(self):
        self.start_router("--no-control")
        for call in (
                lambda: self.admin.GetPlacement(pb.GetPlacementRequest()),
                lambda: list(self.admin.WatchPlacement(
                    pb.WatchPlacementRequest())),
                lambda: self.admin.Rebalance(pb.RebalanceRequest())):
            self.check_code(grpc.StatusCode.FAILED_PRECONDITION, "--control",
                            call)
        load = self.admin.GetExpertLoad(pb.GetExpertLoadRequest())
        self.assertEqual(len(load.mesh_layers), 0)
        self.assertEqual(len(load.layers), LAYERS)

    def test_the_command_line(self):
        server = ("--admin", self.router.admin_address)
        managed = self.managed.address
        shown = et.cli("placement", "show", *server).stdout
        self.assertIn(managed, shown)
        self.assertIn("managed, within 4.0 MiB", shown)
        self.generate()
        self.await_load()
        self.assertIn("to load", et.cli("placement", "propose",
                                        *server).stdout)
        self.assertIn("moves made", et.cli("placement", "rebalance",
                                           *server).stdout)
        self.assertIn("replicas)", et.cli("top", "--once", *server).stdout)
        file = self.router.ready_file.with_name("placement.json")
        file.write_text(et.cli("placement", "show", "--json",
                               *server).stdout)
        self.assertIn("0 moves made", et.cli("placement", "apply", file,
                                             *server).stdout)
        self.apply({managed: set()})
        stale = et.cli("placement", "apply", file, *server, check=False)
        self.assertEqual(stale.returncode, 1)
        self.assertIn("ABORTED", stale.stderr)

    def test_follows_the_traffic_by_itself(self):
        self.router.stop()
        self.router = self.start_router(
            "--rebalance", "auto", "--rebalance-interval", "0.2",
            "--rebalance-windows", "1", "--rebalance-pause", "0")
        expected = self.generate()

        def filled():
            self.assertEqual(self.generate(), expected)
            return self.held(self.managed.address)
        et.wait_until(filled, what="copies of hot experts")


class DrainOfAManagedService(unittest.TestCase):
    """One that alone holds a quarter of the experts."""

    def setUp(self):
        self.base = self.start("--experts", "0-11")
        self.leaving, self.other = (
            self.start("--experts", experts, "--memory-budget", "4MiB")
            for experts in ("12-15", "none"))
        self.router = et.router(MODEL, [s.address for s in (
            self.base, self.leaving, self.other)])
        self.addCleanup(self.router.__exit__)
        channel = grpc.insecure_channel(self.router.address)
        self.addCleanup(channel.close)
        self.admin = admin_pb2_grpc.AdminServiceStub(
            self.router.admin_channel())
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)

    def start(self, *flags):
        service = et.expert(MODEL, *flags)
        self.addCleanup(service.__exit__)
        return service

    def held(self):
        placement = self.admin.GetPlacement(pb.GetPlacementRequest(),
                                            timeout=SECONDS)
        return {h.address: slots(h.hosted) for h in placement.hosts}

    def state(self, service):
        found = self.admin.ListEndpoints(pb.ListEndpointsRequest(),
                                         timeout=SECONDS)
        return {e.address: e.state for e in found.endpoints}[service.address]

    def generate(self, begun=None):
        tokens = []
        for response in self.stub.Generate(generation_pb2.GenerateRequest(
                text="ROMEO:", max_tokens=400, temperature=1, seed=11,
                ignore_eos=True), timeout=SECONDS):
            tokens += response.token_ids
            if begun and len(tokens) > 10:
                begun.set()
        return tokens

    def test_its_experts_are_loaded_elsewhere_under_a_running_generation(self):
        et.wait_until(lambda: len(self.held()) == 3,
                      what="three ready services")
        expected = self.generate()
        begun, tokens = threading.Event(), []
        asker = threading.Thread(
            target=lambda: tokens.extend(self.generate(begun)))
        asker.start()
        self.assertTrue(begun.wait(SECONDS))
        et.cli("drain", self.leaving.address, "--admin", self.router.admin_address)
        # It is none of the mesh when the command ends, and can go.
        alone = {(layer, e) for layer in range(LAYERS) for e in range(12, 16)}
        held = self.held()
        self.assertEqual(held[self.other.address], alone)
        self.assertNotIn(self.leaving.address, held)
        self.assertEqual(self.leaving.stop(), 0, self.leaving.log())
        asker.join()
        self.assertEqual(tokens, expected)
        self.assertEqual(self.generate(), expected)

    def test_undo_brings_it_back(self):
        et.wait_until(lambda: len(self.held()) == 3,
                      what="three ready services")
        before = self.held()
        server = ("--admin", self.router.admin_address)
        et.cli("drain", self.leaving.address, *server)
        et.wait_until(lambda: self.state(self.leaving) == "draining")
        et.cli("drain", self.leaving.address, "--undo", *server)
        et.wait_until(lambda: self.leaving.address in self.held())
        held = self.held()
        self.assertEqual(held[self.leaving.address],
                         before[self.leaving.address])
        # What was loaded for it stays until the next rebalance.
        self.assertEqual(held[self.other.address],
                         before[self.leaving.address])


if __name__ == "__main__":
    et.main()
