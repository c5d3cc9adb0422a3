"""Scaling signals: what autoscalers are told while load comes and goes."""

import json
import pathlib
import signal
import tempfile
import threading
import unittest

import expertmesh_testing as et
import grpc
from asked_all_along import asked_all_along
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc
from keda import externalscaler_pb2 as keda
from keda import externalscaler_pb2_grpc

MODEL = et.DEMO_MODEL
NUM_EXPERTS = json.loads((MODEL / "config.json").read_text())["num_experts"]
SECONDS = 120
METRIC = "expertmesh-desired-replicas"


def trigger(pool="base"):
    metadata = {"scalerAddress": "router:9090"}
    if pool is not None:
        metadata["pool"] = pool
    return keda.ScaledObjectRef(name="experts", namespace="mesh",
                                scalerMetadata=metadata)


class Listener:
    """A StreamIsActive call, read as it comes."""

    def __init__(self, scaler, pool="base"):
        self.call = scaler.StreamIsActive(trigger(pool))
        self.told = []
        self.code = None
        self.details = None
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        try:
            for response in self.call:
                self.told.append(response.result)
            self.code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            self.code, self.details = error.code(), error.details()

    def await_end(self):
        self._thread.join(SECONDS)
        return self.code

    def cancel(self):
        self.call.cancel()
        return self.await_end()


class ScalingTest(unittest.TestCase):

    def start(self, *flags):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.expert = et.expert()
        self.addCleanup(self.expert.__exit__)
        mesh = pathlib.Path(folder.name) / "mesh.json"
        # The second pool's service is never there.
        mesh.write_text(json.dumps({"pools": [
            {"name": "base", "target": self.expert.address,
             "fixed": {"slots": f"0-{NUM_EXPERTS - 1}"},
             "minReplicas": 1, "maxReplicas": 3},
            {"name": "hot", "target": "127.0.0.1:1", "managed": {},
             "minReplicas": 2}]}))
        self.router = et.Service(
            [et.BIN / "expertmesh-router", "--model", MODEL, "--mesh-config",
             mesh, "--listen", "127.0.0.1:0", "--metrics-listen",
             "127.0.0.1:0", "--scaler-listen", "127.0.0.1:0", *flags])
        self.addCleanup(self.router.__exit__)
        self.stub = self.connect(
            self.router.address, generation_pb2_grpc.GenerationServiceStub)
        self.admin = self.connect(
            self.router.admin_address, admin_pb2_grpc.AdminServiceStub)
        self.scaler = self.connect(
            self.router.ready["scaler"],
            externalscaler_pb2_grpc.ExternalScalerStub)

    def connect(self, address, stub):
        channel = grpc.insecure_channel(address)
        self.addCleanup(channel.close)
        return stub(channel)

    def recommendation(self, pool="base"):
        response = self.admin.GetScaleRecommendation(
            admin_pb2.GetScaleRecommendationRequest(), timeout=SECONDS)
        self.assertEqual([p.pool for p in response.pools], ["base", "hot"])
        return {p.pool: p for p in response.pools}[pool]

    def desired(self, pool="base"):
        (value,) = self.scaler.GetMetrics(
            keda.GetMetricsRequest(scaledObjectRef=trigger(pool),
                                   metricName=METRIC),
            timeout=SECONDS).metricValues
        self.assertEqual(value.metricName, METRIC)
        self.assertEqual(value.metricValue, value.metricValueFloat)
        return value.metricValue

    def is_active(self, pool="base"):
        return self.scaler.IsActive(trigger(pool), timeout=SECONDS).result

    def gauge(self, name, pool="base"):
        return self.router.metrics()[
            f'expertmesh_router_pool_{name}{{pool="{pool}"}}']

    def test_follows_the_load(self):
        # A target that a single service is beyond whenever it has work.
        self.start("--scale-target-utilization", 0.02, "--scale-window", 2,
                   "--scale-down-window", 2)
        listener = Listener(self.scaler)
        self.addCleanup(listener.cancel)
        et.wait_until(lambda: self.desired() == 1, what="the pool to be idle")
        self.assertTrue(self.is_active())
        et.wait_until(lambda: listener.told == [True],
                      what="the stream to say so")
        self.assertEqual(self.recommendation().demand_rows_per_second, 0)

        def ask():
            return [i for response in self.stub.Generate(pb.GenerateRequest(
                text="ROMEO:", max_tokens=32, temperature=0, ignore_eos=True),
                timeout=SECONDS) for i in response.token_ids]
        with asked_all_along(ask, ask(), threads=4):
            et.wait_until(lambda: self.desired() >= 2, what="more replicas")
            busy = self.recommendation()
            self.assertTrue(self.is_active())
            et.wait_until(lambda: self.gauge("desired_replicas") >= 2)
            self.assertGreater(self.gauge("demand_rows_per_second"), 0)
            self.assertGreater(self.gauge("utilization_ratio"), 0.02)
            self.assertEqual(self.gauge("replicas"), 1)
        self.assertGreater(busy.demand_rows_per_second, 0)
        self.assertGreater(busy.utilization_ratio, 0.02)
        self.assertEqual(busy.current_replicas, 1)
        self.assertIn(busy.desired_replicas, (2, 3))
        self.assertRegex(busy.reason, "demand [1-9].* rows/s; utilisation .* "
                         "over target 0.02 with 1 replicas needs")

        et.wait_until(lambda: self.desired() == 1, what="fewer replicas")
        self.assertEqual(self.recommendation().desired_replicas, 1)
        # It tells of changes alone.
        self.assertEqual(listener.told, [True])
        self.assertEqual(listener.cancel(), grpc.StatusCode.CANCELLED)

    def test_a_pool_that_is_empty(self):
        self.start()
        self.assertEqual(self.desired("hot"), 2)
        self.assertTrue(self.is_active("hot"))
        self.assertIn("never less than 2", self.recommendation("hot").reason)
        self.assertEqual(self.gauge("replicas", "hot"), 0)
        self.assertEqual(self.gauge("max_replicas"), 3)
        with self.assertRaises(KeyError):  # has no bound
            self.gauge("max_replicas", "hot")

    def test_what_keda_reads_first(self):
        self.start()
        (spec,) = self.scaler.GetMetricSpec(
            trigger(), timeout=SECONDS).metricSpecs
        self.assertEqual((spec.metricName, spec.targetSize,
                          spec.targetSizeFloat), (METRIC, 1, 1))
        # A router that has just started takes no replica away.
        et.wait_until(lambda: self.desired() == 1)

    def test_bad_triggers_are_told_what_there_is(self):
        self.start()
        for pool, text in (("cold", "there is no pool 'cold'"),
                           (None, "metadata lacks 'pool'")):
            for call in (
                    lambda: self.is_active(pool),
                    lambda: self.desired(pool),
                    lambda: self.scaler.GetMetricSpec(trigger(pool),
                                                      timeout=SECONDS),
                    lambda: list(self.scaler.StreamIsActive(
                        trigger(pool), timeout=SECONDS))):
                with self.assertRaises(grpc.RpcError) as caught:
                    call()
                self.assertEqual(caught.exception.code(),
                                 grpc.StatusCode.INVALID_ARGUMENT)
                self.assertIn(text, caught.exception.details())
                self.assertIn("the pools are base, hot",
                              caught.exception.details())
        with self.assertRaises(grpc.RpcError) as caught:
            self.scaler.GetMetrics(keda.GetMetricsRequest(
                scaledObjectRef=trigger(), metricName="load"),
                timeout=SECONDS)
        self.assertEqual(caught.exception.code(),
                         grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn(METRIC, caught.exception.details())

    def test_serves_nothing_else_there(self):
        self.start()
        admin = self.connect(self.router.ready["scaler"],
                             admin_pb2_grpc.AdminServiceStub)
        with self.assertRaises(grpc.RpcError) as caught:
            admin.ListEndpoints(admin_pb2.ListEndpointsRequest(),
                                timeout=SECONDS)
        self.assertEqual(caught.exception.code(),
                         grpc.StatusCode.UNIMPLEMENTED)

    def test_streams_end_with_the_router(self):
        self.start()
        listeners = [Listener(self.scaler, pool) for pool in ("base", "hot")]
        et.wait_until(lambda: all(l.told for l in listeners))
        self.assertEqual(self.router.stop(signal.SIGTERM), 0)
        for listener in listeners:
            self.assertEqual(listener.await_end(),
                             grpc.StatusCode.UNAVAILABLE)
            self.assertEqual(listener.details, "the router is shutting down")


if __name__ == "__main__":
    et.main()
