"""Packed weights kept on disk: the second start maps them, to the same bits."""

import pathlib
import re
import signal
import tempfile
import unittest

import expertmesh_testing as et


def generate(mesh):
    return et.cli("generate", "--server", mesh.address, "--prompt", "ROMEO:",
                  "--temperature", 0, "--max-tokens", 24, "--json").stdout


def tokens(mesh):
    # However many come in a message.
    return [int(token) for ids in re.findall(r'"tokenIds":\[([^]]*)\]',
                                             generate(mesh))
            for token in ids.split(",") if token]


class PackCacheTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name) / "packed"

    def serve(self, *flags):
        return et.serve(et.DEMO_MODEL, 2, "--log-level", "info",
                        "--expert-dtype", "int4", "--router-dtype", "int8",
                        *flags)

    def uses(self, mesh):
        """(hits, misses, stored) over all services."""
        def lines_of_all():
            lines = re.findall(
                r"pack cache used .*hits=(\d+) misses=(\d+) stored=(\d+)",
                mesh.log())
            return lines if len(lines) == 3 else None

        lines = et.wait_until(lines_of_all, what="lines of all services")
        return tuple(sum(map(int, column)) for column in zip(*lines))

    def test_the_second_start_packs_nothing(self):
        with self.serve() as mesh:
            expected = tokens(mesh)
        with self.serve("--pack-cache", self.folder) as mesh:
            hits, files, stored = self.uses(mesh)
            self.assertEqual((hits, stored), (0, files))
            self.assertEqual(tokens(mesh), expected)
        self.assertEqual(len(list(self.folder.glob("*/*.pack"))), files)
        self.assertEqual(len(list(self.folder.glob("*/*"))), files)
        with self.serve("--pack-cache", self.folder) as mesh:
            self.assertEqual(self.uses(mesh), (files, 0, 0))
            self.assertEqual(tokens(mesh), expected)

    def test_broken_files_are_replaced(self):
        with self.serve("--pack-cache", self.folder) as mesh:
            expected = tokens(mesh)
            files = self.uses(mesh)[2]
        expert_file, other_expert = sorted(
            self.folder.glob("*/layer*-expert*.pack"))[:2]
        head = next(self.folder.glob("*/router-head*.pack"))
        good = {path: path.read_bytes()
                for path in (expert_file, other_expert, head)}
        flipped = bytearray(good[expert_file])
        flipped[-5000] ^= 1
        expert_file.write_bytes(flipped)
        head.write_bytes(good[head][:-4096])
        other_expert.write_bytes(b"")
        with self.serve("--pack-cache", self.folder) as mesh:
            self.assertEqual(self.uses(mesh), (files - 3, 3, 3))
            for path in good:
                mesh.await_log(f'error="?{re.escape(str(path))}')
            self.assertEqual(tokens(mesh), expected)
        for path, contents in good.items():
            self.assertEqual(path.read_bytes(), contents)

    def test_a_folder_that_is_none_costs_a_warning(self):
        self.folder.write_text("in the way")
        with self.serve("--pack-cache", self.folder) as mesh:
            self.assertEqual(self.uses(mesh)[::2], (0, 0))
            mesh.await_log("packed weights cannot be kept")
            self.assertTrue(tokens(mesh))

    def test_a_killed_start_leaves_nothing_broken(self):
        with et.expert(et.DEMO_MODEL, "--pack-cache", self.folder) as service:
            service.stop(signal.SIGKILL)
        with et.expert(et.DEMO_MODEL, "--pack-cache", self.folder) as service:
            service.await_log(r"hits=[1-9]\d* misses=0")

    def test_pulled_weights_are_not_pulled_for_a_hit(self):
        with et.expert(et.DEMO_MODEL) as lender, \
             tempfile.TemporaryDirectory() as first, \
             tempfile.TemporaryDirectory() as second:
            def pull(weights):
                return et.Service([
                    et.BIN / "expertmesh-expert", "--weights-from",
                    lender.address, "--weights-cache", weights, "--listen",
                    "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                    "--pack-cache", self.folder])

            def pulled_bytes(service):
                return int(service.await_log(r"pulled_bytes=(\d+)").group(1))

            with pull(first) as service:
                whole = pulled_bytes(service)
            with pull(second) as service:
                service.await_log(r"hits=[1-9]\d* misses=0")
                # Samples for the fingerprint, and no matrix.
                self.assertLess(pulled_bytes(service), whole / 10)


if __name__ == "__main__":
    et.main()
