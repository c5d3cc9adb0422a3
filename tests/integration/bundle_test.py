"""deploy/bundle: binaries that run from any folder without the libraries here."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import expertmesh_testing as et

PROGRAMS = ("expertmesh", "expertmesh-router", "expertmesh-expert")
LEAN_BYTES = 45 << 20
GLIBC = ("ld-linux-x86-64.", "libc.", "libm.", "libmvec.", "libdl.",
         "libpthread.", "librt.", "libresolv.", "linux-vdso.")


def bundle(*arguments):
    return subprocess.run(
        [str(et.SOURCE / "deploy" / "bundle"), *map(str, arguments)],
        capture_output=True, text=True, timeout=et.START_SECONDS)


def without_environment(program, *arguments):
    return subprocess.run(["env", "-i", str(program), *map(str, arguments)],
                          capture_output=True, text=True, cwd="/",
                          timeout=et.START_SECONDS)


class BundleTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        made = cls.root / "made"
        done = bundle("--lean", "--binaries", et.BIN, made)
        assert done.returncode == 0, done.stderr
        # Nothing may remember where it was made.
        cls.bundle = cls.root / "else where"
        shutil.move(made, cls.bundle)

    def test_programs_start_in_an_empty_environment(self):
        for name in PROGRAMS:
            done = without_environment(self.bundle / "bin" / name, "--version")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(name, done.stdout)

    def test_nothing_outside_but_glibc_is_loaded(self):
        for name in PROGRAMS:
            listed = subprocess.run(["ldd", self.bundle / "bin" / name],
                                    capture_output=True, text=True, check=True)
            libraries = [line.split()[0] for line in listed.stdout.splitlines()
                         if str(self.bundle) not in line]
            foreign = [library for library in libraries
                       if not pathlib.Path(library).name.startswith(GLIBC)]
            self.assertEqual(foreign, [])
            self.assertIn(f"{self.bundle}/bin/../lib/libgrpc", listed.stdout)

    def test_a_mesh_of_them_answers(self):
        expertmesh = self.bundle / "bin" / "expertmesh"
        with et.Service(["env", "-i", expertmesh, "serve", "--model",
                         et.DEMO_MODEL, "--expert-services", 1, "--listen",
                         "127.0.0.1:0", "--device", "cpu"]) as mesh:
            done = without_environment(
                expertmesh, "generate", "--server", mesh.address, "--prompt",
                "ROMEO:", "--max-tokens", 4)
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_lean_one_is_small(self):
        size = sum(path.stat().st_size
                   for path in self.bundle.rglob("*") if path.is_file())
        self.assertLessEqual(size, LEAN_BYTES)
        self.assertEqual(list(self.bundle.glob("lib/libcublas*")), [])

    def test_images_copy_what_is_there(self):
        dockerfiles = list((et.SOURCE / "deploy/images").glob("*.Dockerfile"))
        self.assertTrue(dockerfiles)
        for path in dockerfiles:
            copies = [line.split()[1:-1] for line in path.read_text().splitlines()
                      if line.startswith("COPY ")]
            self.assertTrue(copies, path)
            for source in sum(copies, []):
                self.assertTrue((self.bundle / source).exists(), source)
            self.assertRegex(path.read_text(), r"\nUSER [1-9]\d*:[1-9]\d*\n")

    def test_says_what_it_needs(self):
        text = (self.bundle / "bundle.txt").read_text()
        self.assertRegex(text, r"glibc 2\.\d+ or newer")
        self.assertIn("kind: lean", text)


class FolderTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def test_a_second_run_replaces_the_first(self):
        out = self.root / "out"
        for _ in range(2):
            done = bundle("--binaries", et.BIN, out)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertTrue((out / "bin" / "expertmesh").exists())
            (out / "lib" / "libold.so.1").touch()
        done = bundle("--binaries", et.BIN, out)
        self.assertFalse((out / "lib" / "libold.so.1").exists())
        self.assertEqual([path.name for path in self.root.iterdir()], ["out"])

    def test_with_tests_it_has_all_that_they_read(self):
        out = self.root / "out"
        done = bundle("--lean", "--tests", "--binaries", et.BIN, out)
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in ("tests/run", "tests/pytorch_bench.py", "tests/steps/demo.py",
                     "tests/golden/qwen3_moe/golden.safetensors",
                     "demo_model/heldout.txt"):
            self.assertTrue((out / name).exists(), name)
        done = subprocess.run(
            [out / "tests/run", "--out", self.root / "results.json"],
            capture_output=True, text=True, cwd=self.root,
            timeout=et.START_SECONDS,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        self.assertEqual(done.returncode, 77, done.stdout + done.stderr)
        self.assertEqual(list(out.rglob("__pycache__")), [])

    def test_other_folders_are_left_alone(self):
        (self.root / "precious").touch()
        done = bundle("--binaries", et.BIN, self.root)
        self.assertEqual(done.returncode, 1)
        self.assertIn("no bundle", done.stderr)
        self.assertTrue((self.root / "precious").exists())

    def test_refusals_are_one_line(self):
        for arguments, text in (((), "no folder given"),
                                (("--fat", "a"), "unknown argument --fat"),
                                (("a", "b"), "one folder only"),
                                (("--binaries", self.root, self.root / "out"),
                                 "expertmesh is not there")):
            done = bundle(*arguments)
            self.assertEqual(done.returncode, 1)
            self.assertIn(text, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)


if __name__ == "__main__":
    et.main()
