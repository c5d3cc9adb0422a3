"""Hosts without a checkpoint: weights pulled from peers by real processes."""

import concurrent.futures
import pathlib
import signal
import subprocess
import tempfile
import unittest

import grpc
import numpy as np

import expertmesh_testing as et
import expert_client
import safetensors_files
from expertmesh.expert.v1 import expert_pb2 as pb
from expertmesh.expert.v1 import weights_pb2 as weights
from expertmesh.expert.v1 import weights_pb2_grpc as weights_grpc
from expertmesh.v1 import generation_pb2, generation_pb2_grpc

LIKE = et.GOLDENS / "qwen3_moe"
HIDDEN, INTERMEDIATE, EXPERTS, LAYERS = 256, 1024, 8, 2
SLOT_BYTES = 3 * 4 * HIDDEN * INTERMEDIATE


class LyingPeer(weights_grpc.WeightServiceServicer):
    """Passes a real peer's answers on, with one wrong bit in each chunk."""

    def __init__(self, address):
        self.stub = weights_grpc.WeightServiceStub(
            grpc.insecure_channel(address))
        self.chunks = 0

    def GetManifest(self, request, context):
        return self.stub.GetManifest(request)

    def ReadTensor(self, request, context):
        for chunk in self.stub.ReadTensor(request):
            self.chunks += 1
            data = bytearray(chunk.data)
            data[len(data) // 2] ^= 4
            yield weights.TensorChunk(offset=chunk.offset, data=bytes(data),
                                      crc32c=chunk.crc32c)


class WeightsFromPeersTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        checkpoint = safetensors_files.temporary_checkpoint(
            LIKE, HIDDEN, INTERMEDIATE, EXPERTS, LAYERS)
        cls.folder, cls.tensors = cls.enterClassContext(checkpoint)
        cls.lender = cls.enterClassContext(et.expert(cls.folder))
        cls.lender_channel = cls.enterClassContext(
            expert_client.connect(cls.lender))

    def setUp(self):
        cache = tempfile.TemporaryDirectory()
        self.addCleanup(cache.cleanup)
        self.cache = pathlib.Path(cache.name)

    def command(self, peers, *flags):
        return [et.BIN / "expertmesh-expert", "--weights-from", ",".join(peers),
                "--weights-cache", self.cache, "--listen", "127.0.0.1:0",
                "--metrics-listen", "127.0.0.1:0", *flags]

    def start(self, peers, *flags):
        service = et.Service(self.command(peers, *flags))
        self.addCleanup(service.__exit__, None, None, None)
        return service

    def test_waits_for_peers_that_start_later(self):
        with et.expert(self.folder) as late:
            address = late.address
        waiting = et.Service(self.command(["127.0.0.1:1", address]),
                             wait=False)
        self.addCleanup(waiting.__exit__, None, None, None)
        waiting.await_log("no peer answers; asking again")
        with et.Service([et.BIN / "expertmesh-expert", "--model", self.folder,
                         "--listen", address]):
            waiting.await_ready()
        self.assertNotIn("from the cache", waiting.log())

    def test_gives_up_in_the_end(self):
        with self.assertRaises(et.StartError) as caught:
            self.start(["127.0.0.1:1"], "--weights-wait", "0")
        self.assertRegex(str(caught.exception),
                         r"(?m)^expertmesh-expert: weights from 127.0.0.1:1: ")

    def journal(self):
        """{tensor: bytes} of what was pulled, beside the samples of 1 KiB."""
        pulled = {}
        for path in self.cache.glob("*/pulled.journal"):
            for line in path.read_text().splitlines():
                if line:
                    _, _, length, tensor = line.split(" ", 3)
                    pulled[tensor] = pulled.get(tensor, 0) + int(length)
        return pulled

    def pulled_bytes(self, service):
        loaded = service.await_log(
            r"experts loaded model=.* pulled_bytes=(\d+)")
        return int(loaded.group(1))

    def check_answers(self, service, slots):
        """The same bits as the lender's, for every slot."""
        random = np.random.default_rng(5)
        tokens = random.standard_normal((3, HIDDEN), np.float32)
        with expert_client.connect(service) as channel, \
             expert_client.ForwardStream(channel) as stream, \
             expert_client.ForwardStream(self.lender_channel) as lender:
            for layer, expert in slots:
                batch = expert_client.make_batch(1, layer, tokens,
                                                 {expert: [0, 1, 2]})
                result = stream.ask(batch)
                self.assertEqual(result.code, pb.CODE_OK, result.message)
                self.assertEqual(result.hidden_states,
                                 lender.ask(batch).hidden_states)
            state = next(expert_client.watch_state(channel))
            lent = next(expert_client.watch_state(self.lender_channel))
            self.assertEqual(state.checkpoint_fingerprint,
                             lent.checkpoint_fingerprint)

    def test_pulls_only_what_it_needs_and_a_restart_pulls_nothing(self):
        service = self.start([self.lender.address], "--experts", "2,5@1")
        self.check_answers(service, [(0, 2), (1, 2), (1, 5)])
        experts = {name for name, size in self.journal().items()
                   if ".experts." in name and size > 1024}
        self.assertEqual(experts, {
            f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
            for layer, expert in ((0, 2), (1, 2), (1, 5))
            for part in ("gate", "up", "down")})
        pulled = self.pulled_bytes(service)
        self.assertGreaterEqual(pulled, 3 * SLOT_BYTES)
        self.assertLess(pulled, 3 * SLOT_BYTES + 100_000)
        on_disk = sum(512 * path.stat().st_blocks
                      for path in self.cache.glob("*/*"))
        self.assertLess(on_disk, 4 * SLOT_BYTES)  # of 16
        self.assertEqual(service.stop(), 0)

        # Nobody answers at this address, and nobody needs to.
        again = self.start(["127.0.0.1:1"], "--experts", "2,5@1")
        self.check_answers(again, [(0, 2), (1, 2), (1, 5)])
        self.assertEqual(self.pulled_bytes(again), 0)

    def test_a_peer_with_wrong_bytes_is_left_for_another(self):
        liar = LyingPeer(self.lender.address)
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        weights_grpc.add_WeightServiceServicer_to_server(liar, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        address = f"127.0.0.1:{port}"
        service = self.start([address, self.lender.address], "--experts", "1")
        self.check_answers(service, [(0, 1), (1, 1)])
        self.assertGreater(liar.chunks, 0)
        self.assertIn("do not match their checksum", service.log())
        # Without another peer it ends with one line.
        self.cache = self.cache / "other"
        ended = subprocess.run(
            [str(part) for part in self.command([address], "--experts", "1")],
            capture_output=True, text=True, timeout=et.START_SECONDS)
        self.assertEqual(ended.returncode, 1, ended.stderr)
        fault = [line for line in ended.stderr.splitlines()
                 if line.startswith("expertmesh-expert: ")]
        self.assertEqual(len(fault), 1)
        self.assertIn(address, fault[0])
        self.assertIn("checksum", fault[0])

    def test_resumes_after_a_kill(self):
        slow = subprocess.Popen(
            [str(part) for part in self.command(
                [self.lender.address], "--experts", "3",
                "--weights-rate-limit", "2MiB")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(slow.wait)
        self.addCleanup(slow.kill)
        et.wait_until(lambda: sum(self.journal().values()) > SLOT_BYTES // 2,
                      what="some of the weights")
        slow.send_signal(signal.SIGKILL)
        slow.wait()
        before = sum(self.journal().values())
        self.assertLess(before, 2 * SLOT_BYTES)
        service = self.start([self.lender.address], "--experts", "3")
        self.check_answers(service, [(0, 3), (1, 3)])
        total = sum(self.journal().values())
        self.assertEqual(self.pulled_bytes(service), total - before)
        self.assertLess(total, 2 * SLOT_BYTES + 100_000)

    def test_sigterm_ends_a_pull(self):
        service = self.start([self.lender.address], "--experts", "none",
                             "--memory-budget", "64MiB",
                             "--weights-rate-limit", "1MiB")
        channel = expert_client.connect(service)
        with channel, concurrent.futures.ThreadPoolExecutor(1) as thread:
            before = sum(self.journal().values())
            order = thread.submit(expert_client.load_experts, channel, {0: [1]})
            et.wait_until(
                lambda: sum(self.journal().values()) > before + (1 << 19),
                what="a first chunk")
            self.assertEqual(service.stop(), 0, service.log())
            with self.assertRaises(grpc.RpcError):
                order.result()
        self.assertLess(sum(self.journal().values()), SLOT_BYTES)

    def test_a_managed_host_pulls_as_it_is_ordered_and_lends_on(self):
        first = self.start([self.lender.address], "--experts", "none",
                           "--memory-budget", "64MiB")
        with expert_client.connect(first) as channel:
            expert_client.load_experts(channel, {1: [6]}, epoch=1)
        self.check_answers(first, [(1, 6)])
        # From the first alone, which has this expert and no other.
        self.cache = self.cache / "second"
        second = self.start([first.address], "--experts", "none",
                            "--memory-budget", "64MiB")
        with expert_client.connect(second) as channel:
            expert_client.load_experts(channel, {1: [6]}, epoch=1)
            with self.assertRaises(grpc.RpcError) as raised:
                expert_client.load_experts(channel, {1: [7]}, epoch=1)
            self.assertEqual(raised.exception.code(),
                             grpc.StatusCode.UNAVAILABLE)
            self.assertIn("is not here", raised.exception.details())
        self.check_answers(second, [(1, 6)])


class WeightsFromARouterTest(unittest.TestCase):
    """The router has the checkpoint, and no expert service to begin with."""

    def start_router(self, *flags):
        router = et.Service(
            [et.BIN / "expertmesh-router", "--model", et.DEMO_MODEL,
             "--experts-at", "127.0.0.1:1", "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0", *flags], wait=False)
        self.addCleanup(router.__exit__, None, None, None)
        address = router.await_log(r"listening .*admin=(\S+)").group(1)
        channel = grpc.insecure_channel(address)
        self.addCleanup(channel.close)
        return address, weights_grpc.WeightServiceStub(channel)

    def generate(self, expert_address):
        with et.router(et.DEMO_MODEL, [expert_address]) as router, \
             grpc.insecure_channel(router.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            return [token for response in stub.Generate(
                generation_pb2.GenerateRequest(
                    text="ROMEO:", max_tokens=32, temperature=1, seed=7,
                    ignore_eos=True), timeout=et.START_SECONDS)
                    for token in response.token_ids]

    def test_an_expert_service_pulls_from_it(self):
        with et.expert(et.DEMO_MODEL) as local:
            expected = self.generate(local.address)
        address, _ = self.start_router()
        with tempfile.TemporaryDirectory() as cache:
            service = et.Service(
                [et.BIN / "expertmesh-expert", "--weights-from", address,
                 "--weights-cache", cache, "--listen", "127.0.0.1:0",
                 "--metrics-listen", "127.0.0.1:0"])
            with service:
                self.assertEqual(self.generate(service.address), expected)
        self.assertEqual(len(expected), 32)

    def test_refuses_another_checkpoint(self):
        _, stub = self.start_router()
        manifest = stub.GetManifest(weights.GetManifestRequest())
        self.assertTrue(manifest.weight_files)
        request = weights.ReadTensorRequest(
            checkpoint_fingerprint="another", length=16,
            tensor="model.layers.0.mlp.experts.0.gate_proj.weight")
        with self.assertRaises(grpc.RpcError) as raised:
            list(stub.ReadTensor(request))
        self.assertEqual(raised.exception.code(),
                         grpc.StatusCode.FAILED_PRECONDITION)
        request.checkpoint_fingerprint = manifest.checkpoint_fingerprint
        (chunk,) = stub.ReadTensor(request)
        self.assertEqual(len(chunk.data), 16)

    def test_lends_nothing_where_told_so(self):
        _, stub = self.start_router("--no-lend-weights")
        with self.assertRaises(grpc.RpcError) as raised:
            stub.GetManifest(weights.GetManifestRequest())
        self.assertEqual(raised.exception.code(),
                         grpc.StatusCode.UNIMPLEMENTED)

    def test_who_is_refused_does_not_wait(self):
        address, _ = self.start_router("--no-lend-weights")
        with tempfile.TemporaryDirectory() as cache:
            with self.assertRaises(et.StartError) as caught:
                et.Service([et.BIN / "expertmesh-expert", "--weights-from",
                            address, "--weights-cache", cache])
        self.assertIn(address, str(caught.exception))


if __name__ == "__main__":
    et.main()
