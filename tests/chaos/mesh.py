"""The mesh under test: a router, four expert services, a network between."""

import concurrent.futures
import json
import pathlib
import signal
import subprocess
import sys
import threading

import grpc

import expert_client
import expertmesh_testing as et
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc

NUM_SERVICES = 4
CONFIG = json.loads((et.DEMO_MODEL / "config.json").read_text())
NUM_EXPERTS = CONFIG["num_experts"]
NUM_LAYERS = CONFIG["num_hidden_layers"]
# Threads that live as long as the test: --exit-with-parent is about the thread
# that started a service.
_STARTERS = concurrent.futures.ThreadPoolExecutor(NUM_SERVICES)
# Until the router sees that a service is back.
RECOVERY_SECONDS = 60


def experts_of(index):
    """A quarter of the experts and the next quarter: every expert is held by
    two services, and of three in a row the outer ones cover the middle's."""
    share = NUM_EXPERTS // NUM_SERVICES
    first = index * share
    return sorted((first + i) % NUM_EXPERTS for i in range(2 * share))


class ExpertProcess:
    """One of the services, at one address through all restarts."""

    def __init__(self, index):
        self.index = index
        self.experts = experts_of(index)
        self.epoch = 0
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
             "--experts", ",".join(map(str, self.experts)),
             "--listen", self.listen, "--metrics-listen", "127.0.0.1:0",
             "--memory-budget", "1GiB", "--threads", 1, "--exit-with-parent"])

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

    def next_epoch(self):
        self.epoch += 1
        return self.epoch


class Network:
    """The process of network.py."""

    def __init__(self, services, seed):
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(pathlib.Path(__file__).with_name(
                "network.py")), str(seed), *(s.listen for s in services)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addresses = self._process.stdout.readline().split()
        for service in services:
            with service.channel() as channel:
                state = next(expert_client.watch_state(channel))
            self.set(service.index, "state", state.SerializeToString().hex())

    def set(self, index, *order):
        with self._lock:
            print(index, *order, file=self._process.stdin, flush=True)
            if self._process.stdout.readline() != "done\n":
                raise RuntimeError("the network's process ended")

    def stop(self):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


class Mesh:

    def __init__(self, seed, clients):
        self.services = [ExpertProcess(i) for i in range(NUM_SERVICES)]
        self.network = Network(self.services, seed)
        self.router = et.router(
            et.DEMO_MODEL, self.network.addresses, "--max-sequences", clients,
            "--exit-with-parent")
        self.channel = grpc.insecure_channel(self.router.address)
        self._admin = admin_pb2_grpc.AdminServiceStub(self.channel)

    def endpoint(self, index):
        """The router's view of a service."""
        address = self.network.addresses[index]
        response = self._admin.ListEndpoints(
            admin_pb2.ListEndpointsRequest(), timeout=et.START_SECONDS)
        return {e.address: e for e in response.endpoints}[address]

    def state(self, index):
        """"ready", "draining" …"""
        return self.endpoint(index).state

    def await_state(self, index, *states):
        et.wait_until(lambda: self.state(index) in states, RECOVERY_SECONDS,
                      f"the router to see service {index} {' or '.join(states)}")

    def await_gone(self, index):
        et.wait_until(lambda: self.state(index) != "ready", RECOVERY_SECONDS,
                      f"the router to miss service {index}")

    def keep_logs(self, folder):
        (folder / "router.log").write_text(self.router.log())
        for service in self.services:
            logs = list(service.logs)
            if service.service is not None:
                logs.append(service.service.log())
            (folder / f"expert{service.index}.log").write_text(
                "\n--- started again ---\n".join(logs))

    def stop(self):
        self.channel.close()
        self.router.__exit__()
        for service in self.services:
            if service.service is not None:
                service.signal(signal.SIGCONT)
                service.stop(signal.SIGTERM)
        self.network.stop()
