"""expertmesh-expert as a process: start, faults, memory, end."""

import ctypes
import mmap
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

import grpc
import numpy as np

import expertmesh_testing as et
import expert_client
import safetensors_files
from expertmesh.expert.v1 import expert_pb2 as pb

BINARY = et.BIN / "expertmesh-expert"
MODEL = et.GOLDENS / "qwen3_moe"


def run(*arguments, memory_bytes=None, env=None):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    return subprocess.run([str(BINARY), *map(str, arguments)],
                          capture_output=True, text=True,
                          preexec_fn=limit if memory_bytes else None,
                          env={**os.environ, **(env or {})},
                          timeout=et.START_SECONDS)


class EndTest(unittest.TestCase):

    def test_sigterm_drains_and_exits_with_zero(self):
        with et.expert(MODEL) as service, \
             expert_client.connect(service) as channel, \
             expert_client.ForwardStream(channel) as stream:
            watch = expert_client.watch_state(channel, 3_600_000)
            self.assertFalse(next(watch).draining)
            batch = expert_client.make_batch(
                1, 0, np.ones((1, 64), np.float32), {0: [0]})
            self.assertEqual(stream.ask(batch).code, pb.CODE_OK)
            service.process.send_signal(signal.SIGTERM)
            self.assertTrue(next(watch).draining)
            self.assertEqual(expert_client.health(channel), 2)
            # What still comes is still served.
            self.assertEqual(stream.ask(batch).code, pb.CODE_OK)
            for call in (stream.call, watch):
                with self.assertRaises(grpc.RpcError) as raised:
                    next(call)
                self.assertEqual(raised.exception.code(),
                                 grpc.StatusCode.UNAVAILABLE)
            self.assertEqual(service.process.wait(et.STOP_SECONDS), 0, service.log())

    def test_sigterm_under_load_loses_no_batch(self):
        window = 8  # batches on the way at any time
        with et.expert(MODEL) as service, \
             expert_client.connect(service) as channel, \
             expert_client.ForwardStream(channel) as stream:
            # A long interval: the service allows for slow watchers.
            watch = expert_client.watch_state(channel, 1000)
            self.assertFalse(next(watch).draining)
            draining = threading.Event()

            def follow():
                for state in watch:
                    if state.draining:
                        draining.set()
                        return

            follower = threading.Thread(target=follow)
            follower.start()
            batch = expert_client.make_batch(
                0, 1, np.ones((4, 64), np.float32), {2: [0, 1], 5: [2, 3]})
            sent = answered = 0
            while not draining.is_set() or answered < sent:
                while sent < answered + window and not draining.is_set():
                    batch.sequence_number = sent
                    copy = pb.ExpertBatch()
                    copy.CopyFrom(batch)
                    stream.send(copy)
                    sent += 1
                self.assertEqual(stream.receive().code, pb.CODE_OK)
                answered += 1
                if answered == 100:
                    service.process.send_signal(signal.SIGTERM)
            follower.join()
            self.assertGreaterEqual(answered, 100)
            self.assertEqual(service.process.wait(et.STOP_SECONDS), 0,
                             service.log())

    def test_sigint_without_clients(self):
        with et.expert(MODEL) as service:
            self.assertEqual(service.stop(signal.SIGINT), 0, service.log())

    def test_ends_with_its_parent(self):
        # The parent reports readiness, then ends; the service, which alone
        # holds the other end of stderr then, follows.
        parent = ("import subprocess, sys, time, os\n"
                  "ready = sys.argv[1]\n"
                  "p = subprocess.Popen(sys.argv[2:] + ['--ready-file', ready])\n"
                  "while not os.path.exists(ready): time.sleep(0.01)\n")
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", parent, f"{folder}/ready",
                 str(BINARY), "--model", str(MODEL),
                 "--exit-with-parent"],
                stderr=subprocess.PIPE, text=True, timeout=et.START_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("drained", done.stderr)


class StartFaultTest(unittest.TestCase):

    def check_fault(self, exit_code, text, *arguments, memory_bytes=None,
                    env=None):
        result = run(*arguments, memory_bytes=memory_bytes, env=env)
        self.assertEqual(result.returncode, exit_code, result.stderr)
        self.assertEqual(result.stdout, "")
        faults = [line for line in result.stderr.splitlines()
                  if line.startswith("expertmesh-expert: ")]
        self.assertEqual(len(faults), 1, result.stderr)
        self.assertIn(text, faults[0])
        return result

    def test_command_line(self):
        for text, arguments in (
                ("--model is required", []),
                ("--experts", ["--model", MODEL, "--experts", "0-8"]),
                ("--experts", ["--model", MODEL, "--experts", "3-x"]),
                ("--experts", ["--model", MODEL, "--experts", "1@9"]),
                ("--memory-budget", ["--model", MODEL, "--experts", "none"]),
                ("--memory-budget", ["--model", MODEL,
                                     "--memory-budget", "lots"]),
                ("--listen", ["--model", MODEL, "--listen", "localhost"]),
                ("--expert-dtype", ["--model", MODEL, "--expert-dtype", "i8"]),
                ("--threads", ["--model", MODEL, "--threads", "-1"]),
                ("--device", ["--model", MODEL, "--device", "gpu"]),
                ("--device-memory-fraction",
                 ["--model", MODEL, "--device-memory-fraction", "1.5"]),
                ("--speed", ["--model", MODEL, "--speed", "9"])):
            with self.subTest(arguments):
                result = self.check_fault(2, text, *arguments)
                self.assertEqual(result.stderr.count("\n"), 1, result.stderr)

    def test_no_cuda_device(self):
        """Said before the model is looked at, which is not there either."""
        for device in "cuda", "cuda:1":
            result = self.check_fault(1, "no CUDA device", "--model",
                                      "/nowhere", "--device", device,
                                      env={"CUDA_VISIBLE_DEVICES": ""})
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)

    def test_more_experts_than_the_memory_budget(self):
        self.check_fault(1, "24 more experts", "--model", MODEL,
                         "--memory-budget", "100KiB")

    def test_a_workspace_larger_than_memory(self):
        self.check_fault(2, "need a workspace of", "--model", MODEL,
                         "--max-batch-rows", 1 << 20, "--threads", 1,
                         memory_bytes=500 << 20)

    def test_no_such_checkpoint(self):
        result = self.check_fault(1, "/nowhere", "--model", "/nowhere")
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)

    def test_experts_of_two_types(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for file in ("config.json", "model.safetensors"):
                shutil.copy(et.GOLDENS / "qwen3_moe_bf16" / file, folder)
            safetensors_files.widen(
                folder / "model.safetensors",
                lambda name: ".layers.1." in name and ".experts.5." in name)
            self.check_fault(
                1, "expert 5 of layer 1 is f32, but the first one is bf16",
                "--model", folder)
            # One type for all is what the message advises; nor do the others
            # need it.
            for flags in (("--expert-dtype", "bf16"), ("--experts", "0-4")):
                with et.expert(folder, *flags) as service:
                    self.assertEqual(service.stop(), 0, service.log())

    def test_taken_ports(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            for flag in ("--listen", "--metrics-listen"):
                self.check_fault(
                    1, f"cannot listen on {address}: Address already in use",
                    "--model", MODEL, flag, address)

    def test_help_and_version(self):
        version = run("--version")
        self.assertEqual((version.returncode, version.stdout),
                         (0, "expertmesh-expert 0.1.0\n"))
        usage = run("--help")
        self.assertEqual(usage.returncode, 0)
        self.assertIn("--experts", usage.stdout)


def resident_share(path, ranges):
    """Share of the pages of file ranges [begin, end) that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = (ctypes.c_ubyte * -(-len(view) // page))()
        anchor = ctypes.c_char.from_buffer(view)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)),
                              ctypes.c_size_t(len(view)), pages)
        del anchor
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    found = [pages[i] & 1 for begin, end in ranges
             for i in range(begin // page + 1, end // page)]
    return sum(found) / len(found)


class DeviceTest(unittest.TestCase):

    def test_without_a_gpu_the_cpu_computes(self):
        for device, lines in ("auto", 1), ("cpu", 0):
            with et.Service([BINARY, "--model", MODEL, "--device", device],
                            env={"CUDA_VISIBLE_DEVICES": ""}) as service, \
                 expert_client.connect(service) as channel:
                state = next(expert_client.watch_state(channel))
                self.assertEqual(state.device, "cpu")
                self.assertRegex(state.numerics_id, "^cpu-")
                service.await_log(" serving ")
                said = [line for line in service.log().splitlines()
                        if "no CUDA device" in line]
                self.assertEqual(len(said), lines, service.log())


class MemoryTest(unittest.TestCase):
    """A service with 2 of 8 experts does not read the other six."""

    HIDDEN, INTERMEDIATE, EXPERTS, LAYERS = 512, 1536, 8, 2

    def test_two_of_eight_experts(self):
        with safetensors_files.temporary_checkpoint(
                MODEL, self.HIDDEN, self.INTERMEDIATE, self.EXPERTS,
                self.LAYERS) as (folder, tensors):
            path = folder / "model.safetensors"
            hosted, others = [], []
            for tensor, where in tensors.items():
                if ".experts." in tensor:
                    own = ".experts.2." in tensor or ".experts.5." in tensor
                    (hosted if own else others).append(where)
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            evicted = resident_share(path, others) < 0.01

            with et.expert(folder, "--experts", "2,5",
                           "--max-batch-rows", 64) as service:
                status = pathlib.Path(
                    f"/proc/{service.pid}/status").read_text()
                if evicted:  # else the folder is memory itself (tmpfs)
                    # Readahead may touch the neighbours' first pages.
                    self.assertGreater(resident_share(path, hosted), 0.99)
                    self.assertLess(resident_share(path, others), 0.1)
                state = next(expert_client.watch_state(
                    expert_client.connect(service)))
                self.assertEqual(service.stop(), 0)

        expert_bytes = 3 * 4 * self.HIDDEN * self.INTERMEDIATE
        two = 2 * self.LAYERS * expert_bytes
        self.assertGreaterEqual(state.memory_bytes, two)
        self.assertLess(state.memory_bytes, 1.1 * two)
        peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
        print(f"\nhosted weights {two >> 20} MiB, peak resident memory "
              f"{peak >> 20} MiB, all experts {4 * two >> 20} MiB",
              "" if evicted else "(page residency not checked)")
        self.assertLess(peak, 2.5 * two)  # all experts would be 4 · two


if __name__ == "__main__":
    et.main()
