"""Pools by name or file: services come and go by what these say."""

import private_network

# Before anything starts a thread.
NO_NETWORK = private_network.enter()

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import expertmesh_testing as et
import grpc
import name_server
from asked_all_along import asked_all_along
from expert_client import health
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

MODEL = et.DEMO_MODEL
NUM_EXPERTS = json.loads((MODEL / "config.json").read_text())["num_experts"]
ALL = f"0-{NUM_EXPERTS - 1}"
SECONDS = 120
PORT = 50052
ROUTER = "127.0.0.1:50051"
ROUTER_ADMIN = "127.0.0.1:50053"


class Mesh(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.file = pathlib.Path(folder.name) / "mesh.json"

    def write(self, *pools, **fields):
        self.file.write_text(json.dumps({"pools": pools, **fields}))
        return self.file

    def expert(self, listen, *flags):
        service = et.Service([et.BIN / "expertmesh-expert", "--model", MODEL,
                              "--listen", listen, "--metrics-listen",
                              "127.0.0.1:0", *flags])
        self.addCleanup(service.__exit__)
        return service

    def router(self, *flags, listen="127.0.0.1:0", wait=True):
        router = et.Service(
            [et.BIN / "expertmesh-router", "--model", MODEL, "--mesh-config",
             self.file, "--listen", listen, "--metrics-listen",
             "127.0.0.1:0", *flags], wait=wait)
        self.addCleanup(router.__exit__)
        channel = grpc.insecure_channel(
            listen if not wait else router.address)
        self.addCleanup(channel.close)
        self.channel = channel
        admin = grpc.insecure_channel(
            router.admin_address if wait else ROUTER_ADMIN)
        self.addCleanup(admin.close)
        self.admin = admin_pb2_grpc.AdminServiceStub(admin)
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)
        return router

    def endpoints(self):
        """Each endpoint's message, by address."""
        response = self.admin.ListEndpoints(
            admin_pb2.ListEndpointsRequest(), timeout=SECONDS,
            wait_for_ready=True)
        return {e.address: e for e in response.endpoints}

    def await_endpoints(self, wanted):
        """Waits until exactly these addresses have these states."""
        def as_wanted():
            found = self.endpoints()
            return found if {a: e.state for a, e in found.items()} == wanted \
                else None
        return et.wait_until(as_wanted, what=f"endpoints {wanted}")

    def generate(self, **fields):
        responses = self.stub.Generate(
            pb.GenerateRequest(text="ROMEO:", max_tokens=24, temperature=0,
                               ignore_eos=True, **fields), timeout=SECONDS)
        return [i for response in responses for i in response.token_ids]

    def metric(self, router, series):
        return [value for name, value in router.metrics().items()
                if name.startswith(series)]


@unittest.skipIf(NO_NETWORK, NO_NETWORK)
class NamesTest(Mesh):
    POOL = {"name": "base", "target": f"dns:///experts.test:{PORT}",
            "fixed": {"slots": ALL}}

    def setUp(self):
        super().setUp()
        self.names = name_server.NameServer()
        self.addCleanup(self.names.__exit__)

    def resolutions(self, router, outcome):
        (value,) = self.metric(
            router, "expertmesh_router_resolutions_total{"
            f'outcome="{outcome}",pool="base"}}')
        return value

    def await_resolutions(self, router, outcome, count=2):
        before = self.resolutions(router, outcome)
        et.wait_until(
            lambda: self.resolutions(router, outcome) >= before + count,
            what=f"lookups that are {outcome}")

    def test_starts_before_its_experts_are_known(self):
        self.write(self.POOL)
        router = self.router("--resolve-interval", 0.2, listen=ROUTER,
                             wait=False)
        self.assertEqual(self.endpoints(), {})
        self.assertEqual(health(self.channel), 2)
        self.assertFalse(router.ready_file.exists())
        self.expert(f"127.0.0.2:{PORT}")
        self.names.set("experts.test", "127.0.0.2")
        router.await_ready()
        self.assertEqual(health(self.channel), 1)
        self.assertEqual(len(self.generate()), 24)

    def test_services_come_and_go_under_load(self):
        addresses = ["127.0.0.2", "127.0.0.3"]
        if private_network.has_ipv6():
            addresses.append("::1")
        hosts = {a: f"[{a}]:{PORT}" if ":" in a else f"{a}:{PORT}"
                 for a in addresses}
        for host in hosts.values():
            self.expert(host)
        self.write(self.POOL)
        self.names.set("experts.test", addresses[0])
        router = self.router("--resolve-interval", 0.2)
        expected = self.generate()
        with asked_all_along(self.generate, expected):
            for now in ([0, 1], [1], [1, -1], [-1], [0]):
                known = {addresses[i] for i in now}
                self.names.set("experts.test", *known)
                found = self.await_endpoints(
                    {hosts[a]: "ready" for a in known})
                self.assertEqual({e.pool for e in found.values()}, {"base"})
                self.assertEqual(
                    len(self.metric(
                        router, "expertmesh_router_expert_inflight_rows{")),
                    len(known))

    def test_a_name_that_is_bad_keeps_its_services(self):
        self.expert(f"127.0.0.2:{PORT}")
        self.write(self.POOL)
        self.names.set("experts.test", "127.0.0.2")
        router = self.router("--resolve-interval", 0.2)
        expected = self.generate()
        for break_it, outcome in (
                (self.names.fail, "failed"),
                (lambda: self.names.set("experts.test"), "empty")):
            break_it()
            self.await_resolutions(router, outcome)
            self.assertEqual(self.endpoints()[f"127.0.0.2:{PORT}"].state,
                             "ready")
            self.assertEqual(self.generate(), expected)
        self.names.set("experts.test", "127.0.0.2")
        self.await_resolutions(router, "resolved")


class FilesTest(Mesh):
    """Pools by a file of addresses."""

    def setUp(self):
        super().setUp()
        self.addresses = self.file.with_name("base.addresses")
        self.write({"name": "base", "target": f"file://{self.addresses}",
                    "fixed": {"slots": ALL}})

    def list(self, text):
        beside = self.addresses.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.addresses)

    def resolutions(self, router, outcome):
        (value,) = self.metric(
            router, "expertmesh_router_resolutions_total{"
            f'outcome="{outcome}",pool="base"}}')
        return value

    def test_services_come_and_go_by_the_file(self):
        router = self.router("--resolve-interval", 0.1, wait=False)
        one, two = (self.expert("127.0.0.1:0").address for _ in range(2))
        self.assertFalse(router.ready_file.exists())
        self.list(f"# base\n{one}\n")
        router.await_ready()
        self.channel = grpc.insecure_channel(router.address)
        self.addCleanup(self.channel.close)
        self.admin = admin_pb2_grpc.AdminServiceStub(router.admin_channel())
        self.stub = generation_pb2_grpc.GenerationServiceStub(self.channel)
        expected = self.generate()
        self.assertGreater(self.resolutions(router, "failed"), 0)

        self.list(f"{one}\n{two}\n")
        found = self.await_endpoints({one: "ready", two: "ready"})
        self.assertEqual({e.pool for e in found.values()}, {"base"})
        self.list(two)
        self.await_endpoints({two: "ready"})
        self.assertEqual(self.generate(), expected)

        # What is wrong with a file keeps the services it had.
        for spoil, outcome in ((self.addresses.unlink, "failed"),
                               (lambda: self.list(""), "empty"),
                               (lambda: self.list(f"{one}\n:\n"), "failed")):
            spoil()
            before = self.resolutions(router, outcome)
            et.wait_until(
                lambda: self.resolutions(router, outcome) >= before + 2,
                what=f"lookups that are {outcome}")
            self.await_endpoints({two: "ready"})
            self.assertEqual(self.generate(), expected)
        self.list("none")
        et.wait_until(lambda: not self.endpoints(), what="no service")
        self.list(one)
        self.await_endpoints({one: "ready"})
        self.assertEqual(self.generate(), expected)


class RefusalTest(Mesh):

    def test_says_what_does_not_fit(self):
        good = self.expert("127.0.0.1:0")
        other = self.expert("127.0.0.1:0", "--expert-dtype", "f32")
        pools = [{"name": name, "target": service.address,
                  "fixed": {"slots": ALL}}
                 for name, service in (("base", good), ("other", other))]
        self.write(*pools)
        router = self.router()
        refused = et.wait_until(
            lambda: [e for e in self.endpoints().values()
                     if e.state == "refused"])
        self.assertEqual(len(refused), 1)
        self.assertIn("holds weights as", refused[0].reason)
        router.await_log(re.escape(refused[0].reason))
        self.assertEqual(self.metric(
            router, "expertmesh_router_endpoints_refused_total{"
            'reason="expert_dtype"}'), [1])
        self.assertEqual(len(self.generate()), 24)


    def test_a_service_is_one_whatever_its_addresses(self):
        port = self.expert("0.0.0.0:0").address.rpartition(":")[2]
        addresses = [f"127.0.0.{host}:{port}" for host in (1, 2)]
        self.write({"name": "base", "target": ",".join(addresses),
                    "fixed": {"slots": ALL}})
        self.router("--control")

        def settled():
            found = {e.state: e for e in self.endpoints().values()}
            return found if "connecting" not in found else None
        found = et.wait_until(settled, what="the service's state")
        self.assertEqual(set(found), {"ready", "refused"})
        used, refused = found["ready"].address, found["refused"].address
        self.assertIn(f"is the service at {used}", found["refused"].reason)
        # There is no other copy.
        for address, code in ((used, grpc.StatusCode.FAILED_PRECONDITION),
                              (refused, grpc.StatusCode.NOT_FOUND)):
            with self.assertRaises(grpc.RpcError) as caught:
                self.admin.DrainEndpoint(admin_pb2.DrainEndpointRequest(
                    address=address), timeout=SECONDS)
            self.assertEqual(caught.exception.code(), code)
        self.assertEqual(len(self.generate()), 24)


class BadFileTest(Mesh):

    def start(self, *flags):
        return subprocess.run(
            [str(et.BIN / "expertmesh-router"), "--model", str(MODEL),
             *map(str, flags)], capture_output=True, text=True,
            timeout=SECONDS)

    def check(self, text, *flags):
        done = self.start(*flags)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(text, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def test_one_line_says_what_is_wrong(self):
        pool = {"name": "a", "target": "127.0.0.1:1", "managed": {}}
        for text, pools in (
                ("colour", [{**pool, "colour": "red"}]),
                ("pool a: name", [pool, {**pool, "target": "h:2"}]),
                ("there is no expert 9999",
                 [{"name": "a", "target": "h:1",
                   "fixed": {"slots": "9999"}}])):
            self.check(text, "--mesh-config", self.write(*pools))
        self.check("No such file", "--mesh-config", "/nonexistent")

    def test_one_source_of_services_is_given(self):
        self.check("exactly one of --experts-at and --mesh-config")
        self.check("exactly one of --experts-at and --mesh-config",
                   "--experts-at", "h:1", "--mesh-config", self.file)


if __name__ == "__main__":
    et.main()
