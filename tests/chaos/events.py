"""What happens to a service: each breaks it, mends it, and returns once the
router has it back."""

import signal

import expert_client
import expertmesh_testing as et
import mesh as mesh_module


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


def garbage(context, mesh, service):
    mesh.network.set(service.index, "garbage")
    pause(context, 0.3, 5)


def unload(context, mesh, service):
    """Some of its slots, which all have another replica."""
    slots = {layer: sorted(context.rng.sample(
        service.experts, context.rng.randrange(1, len(service.experts) + 1)))
        for layer in range(mesh_module.NUM_LAYERS)}
    with service.channel() as channel:
        expert_client.unload_experts(channel, slots, service.next_epoch())
        pause(context, 0.02, 2)
        expert_client.load_experts(channel, slots, service.next_epoch())


KINDS = (kill, freeze, freeze_and_kill, restart, drain, hole, hole_and_reset,
         reset, refuse, delay, garbage, unload)


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
    """Until the router counts on all that it holds."""
    def is_back():
        endpoint = mesh.endpoint(service.index)
        hosted = {entry.layer: list(entry.expert_ids)
                  for entry in endpoint.hosted}
        return endpoint.state == "ready" and hosted == {
            layer: service.experts for layer in range(mesh_module.NUM_LAYERS)}
    et.wait_until(is_back, mesh_module.RECOVERY_SECONDS,
                  f"service {service.index} to be back")
