"""An expert service on a device, emulated: its answers, memory, and loss."""

import unittest

import numpy as np

import expertmesh_testing as et
import expert_client
from expertmesh.expert.v1 import expert_pb2 as pb

MODEL = et.GOLDENS / "qwen3_moe"
EXIT_FAULT = 1


def on_device(*flags, env=None):
    return et.Service([et.BIN / "expertmesh-expert-emulated",
                       "--model", MODEL, "--device", "cuda",
                       "--listen", "127.0.0.1:0",
                       "--metrics-listen", "127.0.0.1:0", *flags], env=env)


def batch(number, layer=0):
    tokens = np.random.default_rng(5).standard_normal((6, 64))
    return expert_client.make_batch(number, layer, tokens.astype(np.float32),
                                    {0: [0, 1, 2], 3: [2, 3], 7: [4, 5]})


def ask(service, request):
    with expert_client.connect(service) as channel, \
         expert_client.ForwardStream(channel) as stream:
        return stream.ask(request)


class DeviceTest(unittest.TestCase):

    def test_answers_as_a_cpu_does(self):
        # A CPU rounds what meets codes to codes, a device to bf16.
        for dtype, tolerance in (("f32", 1e-5), ("bf16", 1e-2), ("int8", 2e-2),
                                 ("int4", 2e-2)):
            with self.subTest(dtype), \
                 et.expert(MODEL, "--expert-dtype", dtype,
                           "--device", "cpu") as cpu, \
                 on_device("--expert-dtype", dtype) as device:
                want = expert_client.decode(ask(cpu, batch(1)))
                got = ask(device, batch(1))
                self.assertEqual(got.code, pb.CODE_OK, got.message)
                off = np.linalg.norm(expert_client.decode(got) - want)
                self.assertLess(off / np.linalg.norm(want), tolerance)
                self.assertEqual(device.stop(), 0, device.log())

    def test_fast_numerics_are_their_own(self):
        flags = ("--expert-dtype", "bf16")
        with on_device(*flags) as invariant, \
             on_device(*flags, "--numerics", "fast") as fast:
            ids = []
            for service in invariant, fast:
                with expert_client.connect(service) as channel:
                    ids.append(next(expert_client.watch_state(
                        channel, 3_600_000)).numerics_id)
            self.assertRegex(ids[0], "^cuda-.*-mma-bf16-")
            self.assertRegex(ids[1], "^cuda-.*-cublas-bf16-")
            want = expert_client.decode(ask(invariant, batch(1)))
            got = expert_client.decode(ask(fast, batch(1)))
            off = np.linalg.norm(got - want) / np.linalg.norm(want)
            self.assertLess(off, 2e-2)

    def test_batches_are_timed(self):
        with on_device() as service:
            for number in range(6):
                ask(service, batch(number))
            metrics = service.metrics()
            device = "expertmesh_expert_device_"
            for name in ("kernel_duration_seconds_count",
                         'copy_duration_seconds_count{direction="in"}',
                         'copy_duration_seconds_count{direction="out"}',
                         "batch_rows_count"):
                self.assertEqual(metrics[device + name], 6, name)
            self.assertEqual(metrics[device + "batch_rows_sum"], 42)
            # All but the first of each of its two places.
            self.assertEqual(metrics[device + "graph_launches_total"], 4)

    def test_a_lost_device_ends_the_service(self):
        with on_device(env={"EXPERTMESH_FAULT_AT": "20"}) as service, \
             expert_client.connect(service) as channel, \
             expert_client.ForwardStream(channel) as stream:
            watch = expert_client.watch_state(channel, 3_600_000)
            self.assertFalse(next(watch).draining)
            codes = [stream.ask(batch(number)).code for number in range(8)]
            self.assertEqual(codes[0], pb.CODE_OK)
            self.assertEqual(codes[-1], pb.CODE_INTERNAL)
            served = codes.count(pb.CODE_OK)
            self.assertEqual(codes, [pb.CODE_OK] * served +
                             [pb.CODE_INTERNAL] * (8 - served))
            self.assertEqual(expert_client.health(channel), 2)
            self.assertTrue(next(watch).draining)
            self.assertEqual(service.process.wait(et.STOP_SECONDS), EXIT_FAULT,
                             service.log())
            self.assertIn("device lost: ", service.log())

    def test_experts_that_do_not_fit_are_refused(self):
        with self.assertRaises(et.StartError) as raised:
            with on_device("--device-memory-fraction", "0.0005",
                           "--max-batch-rows", "64"):
                pass
        self.assertIn("(--device-memory-fraction) has room for 12 ",
                      str(raised.exception))


if __name__ == "__main__":
    et.main()
