"""What happens to a service: each breaks it, mends it, and returns once the
routers have it back."""

import signal
import threading

import grpc

import expert_client
import expertmesh_testing as et
import mesh as mesh_module
from expertmesh.admin.v1 import admin_pb2

# As many experts as the managed service has room for.
MOST_PLACED = 21


def pause(context, least, most):
    """Waits a random time, short ones as likely as long ones."""
    seconds = least * (most / least) ** context.rng.random()
    context.note(f"for {seconds:.2f} s")
    context.sleep(seconds)


def kill(context, mesh, service):
    service.stop(signal.SIGKILL)
    mesh.await_gone(service.index)
    pause(context, 0.05, 3)
    service.restart()


def freeze(context, mesh, service):
    service.signal(signal.SIGSTOP)
    try:
        pause(context, 0.1, 8)
    finally:
        service.signal(signal.SIGCONT)


def freeze_and_kill(context, mesh, service):
    service.signal(signal.SIGSTOP)
    pause(context, 0.1, 3)
    service.stop(signal.SIGKILL)
    service.restart()


def restart(context, mesh, service):
    """As a rolling restart does it."""
    code = service.stop(signal.SIGTERM)
    if code != 0:
        raise AssertionError(
            f"service {service.index} exited with {code} after SIGTERM")
    mesh.await_gone(service.index)
    service.restart()


def drain(context, mesh, service):
    with service.channel() as channel:
        expert_client.drain(channel)
        mesh.await_state(service.index, "draining")
        pause(context, 0.05, 2)
        expert_client.drain(channel, draining=False)


def hole(context, mesh, service):
    mesh.network.set(service.index, "hole")
    pause(context, 0.1, 8)


def hole_and_reset(context, mesh, service):
    mesh.network.set(service.index, "hole")
    pause(context, 0.1, 4)
    mesh.network.set(service.index, "reset")


def reset(context, mesh, service):
    for _ in range(context.rng.randrange(1, 4)):
        mesh.network.set(service.index, "reset")
        pause(context, 0.02, 0.5)


def refuse(context, mesh, service):
    mesh.network.set(service.index, "refuse")
    mesh.await_gone(service.index)
    pause(context, 0.05, 4)


def delay(context, mesh, service):
    seconds = context.rng.choice((0.005, 0.03, 0.2, 1))
    context.note(f"by {seconds} s")
    mesh.network.set(service.index, "delay", seconds)
    pause(context, 0.2, 4)


def order_drain(context, mesh, service):
    """As an operator does it."""
    request = admin_pb2.DrainEndpointRequest(address=mesh.address(service))
    mesh.admin.DrainEndpoint(request, timeout=mesh_module.RECOVERY_SECONDS)
    mesh.await_state(service.index, "draining")
    pause(context, 0.05, 2)
    request.undo = True
    mesh.admin.DrainEndpoint(request, timeout=mesh_module.RECOVERY_SECONDS)


def impersonate(context, mesh, service, mode):
    """Something else takes its place and announces the same."""
    mesh.network.set(service.index, "state",
                     service.state().SerializeToString().hex())
    mesh.network.set(service.index, mode)
    pause(context, 0.3, 5)


def garbage(context, mesh, service):
    impersonate(context, mesh, service, "garbage")


def nan(context, mesh, service):
    impersonate(context, mesh, service, "nan")


def unload(context, mesh, service):
    """Some of its slots, which all have another replica."""
    slots = {layer: sorted(context.rng.sample(
        service.experts, context.rng.randrange(1, len(service.experts) + 1)))
        for layer in range(mesh_module.NUM_LAYERS)}
    with service.channel() as channel:
        epoch = service.state().placement_epoch
        expert_client.unload_experts(channel, slots, epoch)
        pause(context, 0.02, 2)
        expert_client.load_experts(channel, slots, epoch)


# --- Of the managed service. ---


def random_contents(context):
    """{layer: experts} that it has room for."""
    slots = context.rng.sample(
        [(layer, expert) for layer in range(mesh_module.NUM_LAYERS)
         for expert in range(mesh_module.NUM_EXPERTS)],
        context.rng.randrange(1, MOST_PLACED + 1))
    return {layer: sorted(e for where, e in slots if where == layer)
            for layer in sorted({layer for layer, _ in slots})}


def apply_contents(mesh, service, contents):
    """Orders them as often as the mesh changes in between."""
    target = admin_pb2.PlacementTarget(hosts=[admin_pb2.PlacementHost(
        address=mesh.address(service), hosted=[
            admin_pb2.HostedExperts(layer=layer, expert_ids=experts)
            for layer, experts in contents.items()])])

    def is_applied():
        version = mesh.admin.GetPlacement(
            admin_pb2.GetPlacementRequest(),
            timeout=mesh_module.RECOVERY_SECONDS).version
        return unless_aborted(lambda: mesh.admin.ApplyPlacement(
            admin_pb2.ApplyPlacementRequest(expected_version=version,
                                            placement=target),
            timeout=mesh_module.RECOVERY_SECONDS))
    et.wait_until(is_applied, mesh_module.RECOVERY_SECONDS,
                  "a placement of the expected version")


def unless_aborted(call):
    """Its answer; None where the mesh changed meanwhile."""
    try:
        return call()
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.ABORTED:
            return None
        raise


def place(context, mesh, service):
    for _ in range(context.rng.randrange(1, 4)):
        contents = random_contents(context)
        apply_contents(mesh, service, contents)
        held = expert_client.hosted(service.state())
        if held != contents:
            raise AssertionError(f"{held} was placed instead of {contents}")
        pause(context, 0.02, 1)


def rebalance(context, mesh, service):
    et.wait_until(lambda: unless_aborted(lambda: mesh.admin.Rebalance(
        admin_pb2.RebalanceRequest(), timeout=mesh_module.RECOVERY_SECONDS)),
        mesh_module.RECOVERY_SECONDS, "a rebalance")


def kill_while_placing(context, mesh, service):
    """The order fails or was done; it does not hang."""
    contents = random_contents(context)
    codes = []

    def order():
        try:
            apply_contents(mesh, service, contents)
            codes.append(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.append(error.code())
    orderer = threading.Thread(target=order)
    orderer.start()
    pause(context, 0.001, 0.1)
    kill(context, mesh, service)
    orderer.join()
    if not codes or codes[0] == grpc.StatusCode.DEADLINE_EXCEEDED:
        raise AssertionError(f"an order ended with {codes}")
    context.note(f"left the order {codes[0].name}")


KINDS = (kill, freeze, freeze_and_kill, restart, drain, order_drain, hole,
         hole_and_reset, reset, refuse, delay, garbage, nan, unload)
# Values that are not finite are asked for once more: one replica of an expert
# may give some at a time, and it is one of those above.
MANAGED_KINDS = (place, rebalance, kill_while_placing, kill, freeze, restart,
                 order_drain, hole, hole_and_reset, delay, garbage)


class Deck:
    """Deals kinds of events; each comes up before any comes up again."""

    def __init__(self, kinds, rng):
        self._kinds = kinds
        self._rng = rng
        self._left = []

    def deal(self, count):
        return [self._draw() for _ in range(count)]

    def _draw(self):
        if not self._left:
            self._left = list(self._kinds)
            self._rng.shuffle(self._left)
        return self._left.pop()


class Context:
    """One lane of events: its randomness, and what it says of them."""

    def __init__(self, rng, say, ended):
        self.rng = rng
        self._say = say
        self._ended = ended  # set: the test has failed, no need to go on
        self._event = ""

    def sleep(self, seconds):
        self._ended.wait(seconds)

    def note(self, what):
        self._say(f"{self._event} {what}")

    def happen(self, kind, mesh, service):
        self._event = f"service {service.index}: {kind.__name__}"
        self.note("begins")
        try:
            kind(self, mesh, service)
        finally:
            mesh.network.set(service.index, "forward")
        self.note("is over")
        await_back(mesh, service)
        self.note("is mended")


def await_back(mesh, service):
    """Until every router counts on all that it holds."""
    def is_back():
        held = expert_client.hosted(service.state())
        return all(e.state == "ready" and expert_client.hosted(e) == held
                   for e in mesh.endpoints(service.index))
    et.wait_until(is_back, mesh_module.RECOVERY_SECONDS,
                  f"service {service.index} to be back")
