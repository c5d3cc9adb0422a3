"""A mesh whose hot pool changes while it serves: each replica is a process held
to a share of a CPU, as a pod would be to its limit."""

import json
import pathlib
import signal
import threading
import time

import expertmesh_testing as et

# Experts take longest here, as with a large model.
SLOW = {"EXPERTMESH_ISA": "portable"}


class HeldBack:
    """Lets processes run for a share of the time each, in turn within a
    period, so that they do not all want the CPU at once."""

    PERIOD = 0.02

    def __init__(self):
        self._shares = {}  # process: share
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, process, share):
        with self._lock:
            self._shares[process] = share

    def remove(self, process):
        with self._lock:
            del self._shares[process]
        process.send_signal(signal.SIGCONT)

    def _run(self):
        begin = time.monotonic()
        while not self._over.is_set():
            with self._lock:
                shares = list(self._shares.items())
            at = 0
            events = []
            for process, share in shares:
                events += [(at % 1, signal.SIGCONT, process),
                           ((at + share) % 1, signal.SIGSTOP, process)]
                at += share
            for when, number, process in sorted(
                    events, key=lambda event: event[:2]):
                delay = begin + when * self.PERIOD - time.monotonic()
                if delay > 0:
                    time.sleep(delay)
                with self._lock:
                    if process in self._shares:
                        process.send_signal(number)
            now = time.monotonic()
            begin += self.PERIOD
            if begin < now:  # overslept
                begin = now
            elif not events:
                time.sleep(begin - now)

    def stop(self):
        self._over.set()
        self._thread.join()
        with self._lock:
            for process in self._shares:
                process.send_signal(signal.SIGCONT)


class Pool:
    """Replicas of one pool, found through a file of addresses."""

    def __init__(self, name, folder, held, share, flags):
        self.name = name
        self.file = pathlib.Path(folder) / name
        self.replicas = []
        self.replica_seconds = 0  # from when a process begins to its end
        self._held, self._share, self._flags = held, share, flags
        self._begun = {}
        self._publish()

    def _publish(self):
        new = self.file.with_suffix(".new")
        new.write_text("".join(r.address + "\n" for r in self.replicas)
                       or "none\n")
        new.rename(self.file)

    def scale(self, replicas):
        while len(self.replicas) < replicas:
            begin = time.monotonic()
            replica = et.Service(
                [et.BIN / "expertmesh-expert", "--model", et.DEMO_MODEL,
                 "--device", "cpu", "--threads", 1, "--listen", "127.0.0.1:0",
                 "--metrics-listen", "127.0.0.1:0", *self._flags], env=SLOW)
            self._begun[replica] = begin
            self._held.add(replica.process, self._share)
            self.replicas.append(replica)
            self._publish()
        while len(self.replicas) > replicas:
            replica = self.replicas.pop()
            self._publish()
            self._held.remove(replica.process)
            replica.__exit__()  # drains
            self.replica_seconds += time.monotonic() - self._begun.pop(replica)

    def seconds(self):
        """Replica-seconds so far."""
        now = time.monotonic()
        return self.replica_seconds + sum(now - b
                                          for b in self._begun.values())

    def metrics_urls(self):
        return [r.metrics_url for r in self.replicas]


class ScaledMesh:
    """A router, a base pool of one that holds every expert, and a hot pool."""

    def __init__(self, folder, hot, times, base_share, hot_share, most):
        self._held = HeldBack()
        self.base = Pool("base", folder, self._held, base_share, ())
        # Room for 16 of the 64 experts.
        self.hot = Pool("hot", folder, self._held, hot_share,
                        ("--experts", "none", "--memory-budget", "3MiB"))
        self.router = None
        try:
            self.base.scale(1)
            self.hot.scale(hot)
            mesh = pathlib.Path(folder) / "mesh.json"
            mesh.write_text(json.dumps({"pools": [
                {"name": "base", "target": f"file://{self.base.file}",
                 "fixed": {"slots": "0-15"}, "maxReplicas": most},
                {"name": "hot", "target": f"file://{self.hot.file}",
                 "managed": {}, "maxReplicas": most, "weight": 4}]}))
            self.router = et.Service([
                et.BIN / "expertmesh-router", "--model", et.DEMO_MODEL,
                "--mesh-config", mesh, "--control", "--threads", 1,
                "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                "--prefix-cache", "off", "--resolve-interval", 0.2,
                "--rebalance", "auto", "--rebalance-windows", 1,
                *(part for flag, seconds in (
                    ("--load-window", 60), ("--rebalance-interval", 10),
                    ("--rebalance-pause", 15), ("--scale-window", 30),
                    ("--scale-down-window", 300))
                  for part in (flag, max(1, seconds / times)))])
        except BaseException:
            self.stop()
            raise

    def jobs(self):
        return {"router": [self.router.metrics_url],
                "expert": self.base.metrics_urls() + self.hot.metrics_urls()}

    def stop(self):
        self._held.stop()
        if self.router is not None:
            self.router.__exit__()
        self.hot.scale(0)
        self.base.scale(0)
