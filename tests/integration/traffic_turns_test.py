"""Traffic turns from plays to programs: other experts become hot, dashboards
show which, and the managed service comes to hold them. All real: services,
texts, Prometheus."""

import threading
import unittest

import expertmesh_testing as et
import grpc
import monitoring_files as mf
import prometheus
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import generation_pb2, generation_pb2_grpc

MODEL = et.DEMO_MODEL
SECONDS = 60
PIECE_CHARACTERS = 400


class Traffic:
    """Scores pieces of a text over and over until left."""

    def __init__(self, router, file):
        text = (MODEL / file).read_text()
        self._pieces = [text[i:i + PIECE_CHARACTERS]
                        for i in range(0, len(text), PIECE_CHARACTERS)]
        self._channel = grpc.insecure_channel(router.address)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.error = None

    def _run(self):
        try:
            while True:
                for piece in self._pieces:
                    if self._stop.is_set():
                        return
                    self._stub.Score(generation_pb2.ScoreRequest(text=piece),
                                     timeout=SECONDS)
        except grpc.RpcError as error:
            self.error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._channel.close()


@unittest.skipUnless(prometheus.is_installed(), prometheus.INSTALL)
class TrafficTurnsTest(unittest.TestCase):

    def setUp(self):
        base = et.expert(MODEL, "--threads", 1)
        self.addCleanup(base.__exit__)
        # Room for 21 of 64 slots.
        self.managed = et.expert(MODEL, "--threads", 1, "--experts", "none",
                                 "--memory-budget", "4MiB")
        self.addCleanup(self.managed.__exit__)
        self.router = et.router(
            MODEL, [base.address, self.managed.address], "--control",
            "--rebalance", "auto", "--rebalance-interval", 1,
            "--rebalance-windows", 1, "--rebalance-pause", 1,
            "--rebalance-min-improvement", 0.01, "--load-window", 5)
        self.addCleanup(self.router.__exit__)
        self.admin = admin_pb2_grpc.AdminServiceStub(
            self.router.admin_channel())
        self.prometheus = prometheus.Prometheus(
            {"router": [self.router.metrics_url],
             "expert": [base.metrics_url, self.managed.metrics_url]})
        self.addCleanup(self.prometheus.__exit__)

    def panel(self, title):
        """What a panel of the balance dashboard shows now."""
        (query,) = [q for q in mf.dashboard_queries()
                    if q.where == f"balance / {title}"]
        return self.prometheus.query(query.runnable)

    def hottest(self):
        """Slots, the hottest first."""
        shown = sorted(self.panel("Which experts are hottest"),
                       key=lambda sample: -sample[1])
        return [(int(labels["layer"]), int(labels["expert"]))
                for labels, _ in shown]

    def held(self):
        placement = self.admin.GetPlacement(admin_pb2.GetPlacementRequest(),
                                            timeout=SECONDS)
        return {(entry.layer, expert) for host in placement.hosts
                if host.managed for entry in host.hosted
                for expert in entry.expert_ids}

    def hottest_if_held(self, but_for=()):
        """All eight, where the managed service holds the first three, and at
        most four of them are of `but_for`."""
        hottest = self.hottest()
        if len(hottest) == 8 and set(hottest[:3]) <= self.held() and \
                len(set(hottest) & set(but_for)) <= 4:
            return hottest
        return None

    def test_hot_experts_move_and_dashboards_show_it(self):
        with Traffic(self.router, "heldout.txt") as plays:
            hot_in_plays = et.wait_until(
                lambda: self.hottest_if_held(), SECONDS,
                "the managed service to hold what plays ask for")
        self.assertIsNone(plays.error)
        with Traffic(self.router, "heldout_programs.txt") as programs:
            hot_in_programs = et.wait_until(
                lambda: self.hottest_if_held(but_for=set(hot_in_plays)),
                SECONDS, "other experts to be hot, and to be held")
            moves = sum(value for _, value in self.panel("Moves"))
            loaded = sum(value for _, value in self.panel("Weights moved"))
        self.assertIsNone(programs.error)
        self.assertNotEqual(set(hot_in_plays[:3]), set(hot_in_programs[:3]))
        self.assertGreater(moves, 0)
        self.assertGreater(loaded, 0)
        # By rank it is as many as ever.
        self.assertEqual(len(self.panel("Hottest experts")), 8)


if __name__ == "__main__":
    et.main()
