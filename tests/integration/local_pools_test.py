"""`serve --mesh-config` and `scale`: pools of local services come and go."""

import json
import os
import pathlib
import signal
import tempfile
import unittest
from unittest import mock

import expertmesh_testing as et
import grpc
from asked_all_along import asked_all_along
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

MODEL = et.DEMO_MODEL
SECONDS = 120
BASE = {"name": "base", "fixed": {"slots": "0-15"}}
# Room for 21 experts of 192 KiB.
HOT = {"name": "hot", "managed": {"memoryBudgetBytes": 4 << 20}}


class LocalPools(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def write(self, *pools, **fields):
        file = self.folder / "mesh.json"
        file.write_text(json.dumps({"pools": pools, **fields}))
        return file

    def serve(self, *pools, fields={}, flags=(), **options):
        mesh = et.Service(
            [et.BIN / "expertmesh", "serve", "--model", MODEL, "--mesh-config",
             self.write(*pools, **fields), "--listen", "127.0.0.1:0",
             "--resolve-interval", "0.1", *flags], **options)
        self.addCleanup(mesh.__exit__)
        channel = grpc.insecure_channel(mesh.address)
        self.addCleanup(channel.close)
        self.mesh = mesh
        self.admin = admin_pb2_grpc.AdminServiceStub(mesh.admin_channel())
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)
        # A router is ready once every expert is covered.
        et.wait_until(lambda: {(e["pool"], e["address"], "ready")
                               for e in mesh.ready["experts"]}
                      <= self.endpoints(), what="all services")
        return mesh

    def scale(self, *sizes, check=True):
        done = et.cli("scale", "--launcher", self.mesh.ready["launcher"],
                      *sizes, check=check)
        return self.pools_of(done) if check else done

    @staticmethod
    def pools_of(done):
        """The addresses of each pool, as `scale` printed them."""
        pools = {}
        for line in done.stdout.splitlines():
            name, count, addresses = line.split("\t")
            pools[name] = addresses.split(",") if addresses else []
            assert len(pools[name]) == int(count), line
        return pools

    def endpoints(self):
        """(pool, address, state) of each that the router knows."""
        listed = self.admin.ListEndpoints(admin_pb2.ListEndpointsRequest(),
                                          timeout=SECONDS)
        return {(e.pool, e.address, e.state) for e in listed.endpoints}

    def check_running(self, pools):
        """The router and the ready file know exactly these services."""
        self.assertEqual(self.endpoints(), {
            (name, address, "ready") for name, addresses in pools.items()
            for address in addresses})
        known = {}
        for service in self.mesh.ready["experts"]:
            known.setdefault(service["pool"], []).append(service["address"])
            self.assertTrue(et.is_running(service["pid"]))
        self.assertEqual(known, {n: a for n, a in pools.items() if a})

    def pids(self):
        return {e["address"]: e["pid"] for e in self.mesh.ready["experts"]}

    def generate(self):
        return "".join(r.text for r in self.stub.Generate(
            pb.GenerateRequest(text="ROMEO:", max_tokens=200, seed=7,
                               temperature=0.8, ignore_eos=True),
            timeout=SECONDS))

    def unchanged_generation(self):
        """Generates the same text all along; checks every byte of it."""
        return asked_all_along(self.generate, self.generate(), threads=2)


class ScaleTest(LocalPools):

    def fill(self):
        """Gives hot services copies of experts; how many slots they hold."""
        def has_load():
            load = self.admin.GetExpertLoad(admin_pb2.GetExpertLoadRequest(),
                                            timeout=SECONDS)
            return any(sum(layer.rows) for layer in load.mesh_layers)
        et.wait_until(has_load, what="the services' counters")
        et.cli("placement", "rebalance", "--admin",
               self.mesh.admin_address)
        placement = self.admin.GetPlacement(admin_pb2.GetPlacementRequest(),
                                            timeout=SECONDS)
        return {host.address: sum(len(h.expert_ids) for h in host.hosted)
                for host in placement.hosts if host.pool == "hot"}

    def test_pools_grow_and_shrink_while_requests_run(self):
        self.serve(BASE, {**HOT, "maxReplicas": 3})
        first = self.scale()
        self.assertEqual({n: len(a) for n, a in first.items()},
                         {"base": 1, "hot": 1})
        self.check_running(first)
        with self.unchanged_generation():
            grown = self.scale("hot=3")
            self.assertEqual(len(grown["hot"]), 3)
            self.assertEqual(grown["hot"][0], first["hot"][0])
            self.assertEqual(grown["base"], first["base"])
            self.check_running(grown)
            held = self.fill()
            self.assertEqual(set(held), set(grown["hot"]))
            self.assertGreater(sum(held.values()), 0)

            # Another pool the other way.
            pids = self.pids()
            mixed = self.scale("hot=1", "base=2")
            self.assertEqual(mixed["hot"], first["hot"])
            self.assertEqual(len(mixed["base"]), 2)
            self.check_running(mixed)
            for address in grown["hot"][1:]:
                self.assertFalse(et.is_running(pids[address]))

            self.assertEqual(self.scale("base=1"), first)
            self.check_running(first)
        # Nothing ended but by being told to.
        self.assertNotIn("exited", self.mesh.log())
        self.assertNotIn("killed", self.mesh.log())

    def test_a_killed_service_comes_back(self):
        self.serve(BASE, HOT)
        hot = self.scale("hot=2")["hot"]
        with self.unchanged_generation():
            self.fill()
            before = self.pids()[hot[1]]
            os.kill(before, signal.SIGKILL)
            et.wait_until(lambda: self.pids()[hot[1]] != before,
                          what="a restart")
            et.wait_until(
                lambda: ("hot", hot[1], "ready") in self.endpoints(),
                what="the service to join again")
        self.mesh.await_log(r"expert service hot/2 \(pid")
        self.check_running(self.scale())

    def test_a_restarted_router_finds_the_pools_as_they_are(self):
        self.serve(BASE, HOT)
        pools = self.scale("hot=2")
        before = self.mesh.ready["router_pid"]
        os.kill(before, signal.SIGKILL)
        et.wait_until(lambda: self.mesh.ready["router_pid"] != before,
                      what="a restart")
        wanted = {(n, a, "ready") for n, addresses in pools.items()
                  for a in addresses}

        def finds_them():
            try:
                return self.endpoints() == wanted
            except grpc.RpcError:  # by the connection to the killed one
                return False

        et.wait_until(finds_them, what="its services")

    def test_what_is_refused_changes_nothing(self):
        self.serve(BASE, {**HOT, "minReplicas": 1, "maxReplicas": 3},
                   {"name": "far", "target": "127.0.0.1:1", "managed": {}})
        before = self.scale()
        far = {("far", "127.0.0.1:1", "connecting")}
        for sizes, code, text in (
                (["hot="], 2, "POOL=N"), (["hot=-1"], 2, "POOL=N"),
                (["hot=x"], 2, "POOL=N"), (["hot=1.5"], 2, "POOL=N"),
                (["hot=99999999999"], 2, "POOL=N"), (["=3"], 2, "POOL=N"),
                (["hot"], 2, "POOL=N"),
                (["cold=2"], 2, "there is no pool cold; started here are base, "
                 "hot"),
                (["far=2"], 2, "it has a target"),
                (["hot=0"], 2, "pool hot has at least 1"),
                (["hot=2", "hot=4"], 2, "pool hot has at most 3"),
                (["hot=2", "hot=3"], 2, "pool hot is named twice"),
                (["base=0"], 2, "pool base has at least 1"),
                (["base=1000"], 2, "pool base has at most 256")):
            done = self.scale(*sizes, check=False)
            self.assertEqual(done.returncode, code, done)
            self.assertRegex(done.stderr, r"\Aexpertmesh: .*\n\Z")
            self.assertIn(text, done.stderr)
            self.assertEqual(self.scale(), before)
        self.assertEqual(self.endpoints() - far, {
            (name, address, "ready") for name, addresses in before.items()
            for address in addresses})

    def test_a_service_that_does_not_start_is_one_error(self):
        model = self.folder / "model"
        model.mkdir()
        for file in MODEL.iterdir():
            (model / file.name).symlink_to(file)
        self.mesh = et.Service(
            [et.BIN / "expertmesh", "serve", "--model", model, "--mesh-config",
             self.write(BASE, HOT), "--listen", "127.0.0.1:0"])
        self.addCleanup(self.mesh.__exit__)
        before = self.scale()
        (model / "config.json").unlink()
        done = self.scale("hot=3", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"\Aexpertmesh: expert service hot/\d "
                         r"did not start: .*config.json.*\n\Z")
        self.assertEqual(self.scale(), before)

    def test_the_launcher_is_found_if_it_is_the_only_one(self):
        with mock.patch.dict(os.environ, TMPDIR=str(self.folder)):
            done = et.cli("scale", "hot=2", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr,
                             r"\Aexpertmesh: no `expertmesh serve.*\n\Z")
            here = {"TMPDIR": str(self.folder)}
            one = self.serve(BASE, HOT, env=here)
            self.assertEqual(len(self.pools_of(et.cli("scale", "hot=2"))
                                 ["hot"]), 2)
            two = self.serve(BASE, env=here)
            done = et.cli("scale", "hot=2", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, r"\Aexpertmesh: several .*\n\Z")
            for mesh in (one, two):
                self.assertIn(mesh.ready["launcher"], done.stderr)
            socket = one.ready["launcher"]
            one.stop()
            self.assertEqual(list(self.pools_of(et.cli("scale"))), ["base"])
            done = et.cli("scale", "--launcher", socket, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr,
                             r"\Aexpertmesh: no launcher answers.*\n\Z")


class ServeTest(LocalPools):

    def test_pools_with_a_target_are_only_connected_to(self):
        with et.expert() as base:
            self.serve({**BASE, "target": base.address},
                       {**HOT, "minReplicas": 2})
            pools = self.scale()
            self.assertEqual(list(pools), ["hot"])
            wanted = {("base", base.address, "ready"),
                      *(("hot", address, "ready") for address in
                        pools["hot"])}
            et.wait_until(lambda: self.endpoints() == wanted,
                          what="both pools")
            self.assertEqual({e["pool"] for e in self.mesh.ready["experts"]},
                             {"hot"})
            self.assertEqual(self.mesh.stop(), 0)
            self.assertTrue(et.is_running(base.pid))

    def test_services_get_what_the_file_says(self):
        self.serve(BASE, {"name": "hot", "managed": {}},
                   fields={"expertDtype": "f32"},
                   flags=["--managed-memory", "3MiB"])
        listed = self.admin.ListEndpoints(admin_pb2.ListEndpointsRequest(),
                                          timeout=SECONDS)
        by_pool = {e.pool: e for e in listed.endpoints}
        self.assertEqual({e.expert_dtype for e in by_pool.values()}, {"f32"})
        self.assertEqual(by_pool["base"].memory_budget_bytes, 0)
        self.assertEqual(by_pool["hot"].memory_budget_bytes, 3 << 20)

    def test_bad_input_is_one_line(self):
        cases = (
            ((HOT,), {}, [], "no fixed pool holds expert 0 of layer 0"),
            (({"name": "base", "fixed": {"slots": "0-14"}},), {}, [],
             "no fixed pool holds expert 15"),
            ((BASE,), {}, ["--expert-services", 2], "--mesh-config"),
            (({**BASE, "minReplicas": 1000},), {}, [], "at most 256"),
            ((BASE,), {"expertDtype": "f32"}, ["--expert-dtype", "bf16"],
             "--expert-dtype is bf16"),
            (({**BASE, "colour": "red"},), {}, [], "colour"))
        for pools, fields, flags, text in cases:
            done = et.cli("serve", "--model", MODEL, "--listen", "127.0.0.1:0",
                          "--mesh-config", self.write(*pools, **fields),
                          *flags, check=False)
            self.assertEqual(done.returncode, 2, done)
            self.assertRegex(done.stderr, r"\Aexpertmesh: .*\n\Z")
            self.assertIn(text, done.stderr)


if __name__ == "__main__":
    et.main()
