"""The mesh under test: routers, expert services, a network between."""

import collections
import concurrent.futures
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

import grpc

import expert_client
import expertmesh_testing as et
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc

# Of fixed contents; a managed one may follow.
NUM_SERVICES = 4
MANAGED_BUDGET = "4MiB"
CONFIG = json.loads((et.DEMO_MODEL / "config.json").read_text())
NUM_EXPERTS = CONFIG["num_experts"]
NUM_LAYERS = CONFIG["num_hidden_layers"]
# Threads that live as long as the test: --exit-with-parent is about the thread
# that started a service.
_STARTERS = concurrent.futures.ThreadPoolExecutor(NUM_SERVICES + 1)
# Until the router sees that a service is back.
RECOVERY_SECONDS = 60


def experts_of(index):
    """A quarter of the experts and the next quarter: every expert is held by
    two services, and of three in a row the outer ones cover the middle's."""
    share = NUM_EXPERTS // NUM_SERVICES
    first = index * share
    return sorted((first + i) % NUM_EXPERTS for i in range(2 * share))


class ExpertProcess:
    """One of the services, at one address through all restarts. A managed one
    starts empty."""

    def __init__(self, index, managed=False):
        self.index = index
        self.managed = managed
        self.experts = [] if managed else experts_of(index)
        self.logs = []
        self.service = None
        # An address of its own, whose port no outgoing connection takes while
        # nobody listens there.
        self.listen = f"127.0.0.{index + 11}:0"
        self.restart()
        self.listen = self.service.address

    def restart(self):
        _STARTERS.submit(self._start).result()

    def _start(self):
        self.service = et.Service(
            [et.BIN / "expertmesh-expert", "--model", et.DEMO_MODEL,
             "--experts", ",".join(map(str, self.experts)) or "none",
             "--listen", self.listen, "--metrics-listen", "127.0.0.1:0",
             "--memory-budget", MANAGED_BUDGET if self.managed else "1GiB",
             "--threads", 1, "--exit-with-parent"])

    def signal(self, number):
        self.service.process.send_signal(number)

    def stop(self, number):
        """Ends it; returns the exit code."""
        service, self.service = self.service, None
        code = service.stop(number)
        self.logs.append(service.log())
        service.__exit__()
        return code

    def channel(self):
        """Straight to it, past the network."""
        return grpc.insecure_channel(
            self.listen, options=[("grpc.use_local_subchannel_pool", 1)])

    def state(self):
        """What it says of itself."""
        with self.channel() as channel:
            return next(expert_client.watch_state(channel))

    def pool(self, address):
        """Its pool in the mesh file; the router knows it by `address`."""
        contents = {"managed": {}} if self.managed else {
            "fixed": {"slots": ",".join(map(str, self.experts))}}
        return {"name": f"service-{self.index}", "target": address, **contents}


class Network:
    """The process of network.py."""

    def __init__(self, services, seed):
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name(
                "network.py")), str(seed), *(s.listen for s in services)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addresses = self._process.stdout.readline().split()

    def set(self, index, *order):
        with self._lock:
            print(index, *order, file=self._process.stdin, flush=True)
            if self._process.stdout.readline() != "done\n":
                raise RuntimeError("the network's process ended")

    def stop(self):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


class Router:
    """One of the routers; all reach the services by the same network."""

    def __init__(self, mesh_file, clients, *flags):
        self.process = et.Service(
            [et.BIN / "expertmesh-router", "--model", et.DEMO_MODEL,
             "--mesh-config", mesh_file, "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0", "--max-sequences", clients,
             "--exit-with-parent", *flags])
        self.channel = grpc.insecure_channel(self.process.address)
        self.admin = admin_pb2_grpc.AdminServiceStub(
            self.process.admin_channel())

    def endpoint(self, address):
        """Its view of a service."""
        response = self.admin.ListEndpoints(
            admin_pb2.ListEndpointsRequest(), timeout=et.START_SECONDS)
        return {e.address: e for e in response.endpoints}[address]

    def stop(self):
        self.channel.close()
        self.process.__exit__()


class Mesh:
    """Four services of fixed contents and, beside them where `whole`, a managed
    service and a second router. The first router controls placement."""

    def __init__(self, seed, clients, wire_dtype, whole):
        self.services = [ExpertProcess(i) for i in range(NUM_SERVICES)]
        if whole:
            self.services.append(ExpertProcess(NUM_SERVICES, managed=True))
        self.network = Network(self.services, seed)
        self._folder = tempfile.TemporaryDirectory(prefix="expertmesh-test-")
        mesh_file = pathlib.Path(self._folder.name) / "mesh.json"
        mesh_file.write_text(json.dumps({"pools": [
            service.pool(address) for service, address in
            zip(self.services, self.network.addresses)]}))
        flags = (mesh_file, clients, "--wire-dtype", wire_dtype)
        self.routers = [Router(*flags, "--control")]
        if whole:
            # The network between is no obstacle to shared memory.
            self.routers.append(Router(*flags, "--no-shared-memory"))

    @property
    def admin(self):
        """Of the router that controls placement."""
        return self.routers[0].admin

    def address(self, service):
        """Of a service, as routers know it."""
        return self.network.addresses[service.index]

    def endpoints(self, index):
        """Each router's view of a service."""
        return [router.endpoint(self.network.addresses[index])
                for router in self.routers]

    def await_state(self, index, *states):
        """Until it is so ("ready", "draining" …) for every router."""
        et.wait_until(
            lambda: all(e.state in states for e in self.endpoints(index)),
            RECOVERY_SECONDS,
            f"the routers to see service {index} {' or '.join(states)}")

    def await_gone(self, index):
        et.wait_until(
            lambda: all(e.state != "ready" for e in self.endpoints(index)),
            RECOVERY_SECONDS, f"the routers to miss service {index}")

    def metrics(self):
        """The routers' series, added up."""
        total = collections.Counter()
        for router in self.routers:
            total.update(router.process.metrics())
        return total

    def keep_logs(self, folder):
        for i, router in enumerate(self.routers):
            (folder / f"router{i}.log").write_text(router.process.log())
        for service in self.services:
            logs = list(service.logs)
            if service.service is not None:
                logs.append(service.service.log())
            (folder / f"expert{service.index}.log").write_text(
                "\n--- started again ---\n".join(logs))

    def stop(self):
        for router in self.routers:
            router.stop()
        for service in self.services:
            if service.service is not None:
                service.signal(signal.SIGCONT)
                service.stop(signal.SIGTERM)
        self.network.stop()
        self._folder.cleanup()
