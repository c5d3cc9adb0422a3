"""The client programs that the README shows do what it says."""

import os
import pathlib
import subprocess
import sys
import unittest

import expertmesh_testing as et

EXAMPLES = pathlib.Path(__file__).parent / "examples"
SUM = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"


class ExamplesTest(unittest.TestCase):

    def check(self, *command):
        with et.serve(et.DEMO_MODEL, 2) as mesh:
            done = subprocess.run(
                [*command, mesh.address, SUM], capture_output=True, text=True,
                timeout=et.START_SECONDS,
                env={**os.environ,
                     "PYTHONPATH": os.environ["EXPERTMESH_STUBS"]})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "42")
        self.assertRegex(done.stderr, r"\d+ tokens, \d+ expert rows")

    def test_python(self):
        self.check(sys.executable, EXAMPLES / "generate_client.py")

    def test_cpp(self):
        self.check(et.BIN / "generate_client")


if __name__ == "__main__":
    et.main()
