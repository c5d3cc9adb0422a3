"""What expertmesh-expert holds, changed by orders while it serves."""

import pathlib
import threading
import unittest

import grpc
import numpy as np

import expertmesh_testing as et
import expert_client
import safetensors_files
from expertmesh.expert.v1 import expert_pb2 as pb

MODEL = et.GOLDENS / "qwen3_moe"
HIDDEN, LAYERS, EXPERTS = 64, 3, 8


def one_row(number, layer, expert, value=1):
    return expert_client.make_batch(
        number, layer, np.full((1, HIDDEN), value, np.float32), {expert: [0]})


class ContentsTest(unittest.TestCase):

    def start(self, *flags):
        service = et.expert(MODEL, *flags)
        self.addCleanup(service.__exit__, None, None, None)
        channel = expert_client.connect(service)
        self.addCleanup(channel.close)
        return service, channel

    def check_status(self, code, text, function, *arguments):
        with self.assertRaises(grpc.RpcError) as raised:
            function(*arguments)
        self.assertEqual(raised.exception.code(), code)
        self.assertIn(text, raised.exception.details())

    def test_single_slots(self):
        service, channel = self.start("--experts", "1-2,7@0,3@2")
        state = next(expert_client.watch_state(channel))
        self.assertEqual(expert_client.hosted(state),
                         {0: [1, 2, 7], 1: [1, 2], 2: [1, 2, 3]})
        self.assertEqual(service.ready["experts"], "1-2,7@0,3@2")
        self.assertEqual(state.wire_version, 1)
        self.assertEqual(state.placement_epoch, 0)

    def test_a_managed_host_starts_empty_and_follows_orders(self):
        whole, whole_channel = self.start()
        _, channel = self.start("--experts", "none", "--memory-budget", "256KiB")
        watch = expert_client.watch_state(channel, 3_600_000)
        state = next(watch)
        self.assertEqual(expert_client.hosted(state), {})
        self.assertEqual(state.memory_bytes, 0)
        self.assertEqual(state.memory_budget_bytes, 256 << 10)
        expected = next(expert_client.watch_state(whole_channel))
        self.assertEqual(state.numerics_id, expected.numerics_id)
        with expert_client.ForwardStream(channel) as stream, \
             expert_client.ForwardStream(whole_channel) as whole_stream:
            self.assertEqual(stream.ask(one_row(1, 1, 3)).code,
                             pb.CODE_NOT_HOSTED)
            progress = expert_client.load_experts(channel, {1: [3, 4], 2: [0]},
                                                  epoch=4)
            self.assertEqual(progress[-1].slots_done, 3)
            self.assertEqual(progress[-1].slots_total, 3)
            state = next(watch)
            self.assertEqual(expert_client.hosted(state), {1: [3, 4], 2: [0]})
            self.assertEqual(state.placement_epoch, 4)
            self.assertEqual(state.memory_bytes, progress[-1].bytes_total)
            batch = one_row(2, 1, 3)
            self.assertEqual(stream.ask(batch).hidden_states,
                             whole_stream.ask(batch).hidden_states)
            # Again: nothing to do.
            self.assertEqual(
                expert_client.load_experts(channel, {1: [3]}, epoch=4), [])

            self.check_status(grpc.StatusCode.FAILED_PRECONDITION, "older",
                              expert_client.unload_experts, channel,
                              {1: [3]}, 3)
            self.check_status(grpc.StatusCode.INVALID_ARGUMENT, "layer 3",
                              expert_client.load_experts, channel, {3: [0]}, 4)
            everything = {layer: range(EXPERTS) for layer in range(LAYERS)}
            self.check_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "room for",
                              expert_client.load_experts, channel, everything,
                              4)
            self.assertEqual(stream.ask(one_row(3, 1, 4)).code, pb.CODE_OK)

            left = expert_client.unload_experts(channel, {1: [3]}, epoch=5)
            self.assertEqual(left.memory_bytes,
                             progress[-1].bytes_total // 3 * 2)
            self.assertEqual(stream.ask(batch).code, pb.CODE_NOT_HOSTED)
            self.assertEqual(stream.ask(one_row(5, 1, 4)).code, pb.CODE_OK)

    def test_orders_under_load_change_no_answer(self):
        _, channel = self.start()
        failures, answers, stop = [], set(), threading.Event()

        def ask():
            with expert_client.ForwardStream(channel) as stream:
                number = 0
                while not stop.is_set():
                    number += 1
                    result = stream.ask(one_row(number, 0, 0))
                    if result.code != pb.CODE_OK:
                        failures.append(result)
                    answers.add(bytes(result.hidden_states))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for epoch in range(10):
                others = {0: range(1, EXPERTS), 1: range(EXPERTS)}
                expert_client.unload_experts(channel, others, epoch)
                expert_client.load_experts(channel, others, epoch)
        finally:
            stop.set()
            thread.join()
        self.assertEqual(failures, [])
        self.assertEqual(len(answers), 1)

    def test_drain_is_an_order_too(self):
        service, channel = self.start()
        watch = expert_client.watch_state(channel, 3_600_000)
        self.assertFalse(next(watch).draining)
        expert_client.drain(channel)
        self.assertTrue(next(watch).draining)
        self.assertEqual(expert_client.health(channel), 2)
        with expert_client.ForwardStream(channel) as stream:
            self.assertEqual(stream.ask(one_row(1, 0, 0)).code, pb.CODE_OK)
        expert_client.drain(channel, False)
        self.assertFalse(next(watch).draining)
        self.assertEqual(expert_client.health(channel), 1)
        self.assertIsNone(service.process.poll())


class MemoryTest(unittest.TestCase):
    """Unloading gives memory back to the system."""

    HIDDEN, INTERMEDIATE, LAYERS = 512, 1536, 2

    def test_resident_memory_follows_the_orders(self):
        with safetensors_files.temporary_checkpoint(
                MODEL, self.HIDDEN, self.INTERMEDIATE, EXPERTS,
                self.LAYERS) as (folder, _), \
             et.expert(folder, "--max-batch-rows", 64) as service:
            channel = expert_client.connect(service)

            def resident():
                status = pathlib.Path(
                    f"/proc/{service.pid}/status").read_text()
                return 1024 * int(status.split("RssAnon:")[1].split()[0])

            everything = {layer: range(EXPERTS) for layer in range(self.LAYERS)}
            expert_bytes = 3 * 4 * self.HIDDEN * self.INTERMEDIATE
            total = expert_bytes * self.LAYERS * EXPERTS
            full = resident()
            self.assertGreater(full, total)
            for epoch in range(3):
                expert_client.unload_experts(channel, everything, epoch)
                self.assertLess(resident(), full - 0.9 * total)
                expert_client.load_experts(channel, everything, epoch)
            self.assertLess(resident(), full + 0.1 * total)


if __name__ == "__main__":
    et.main()
