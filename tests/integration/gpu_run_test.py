"""tests/gpu/run: without a GPU, and with programs that stand in for one."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import expertmesh_testing as et

RUN = et.SOURCE / "tests" / "gpu" / "run"


class GpuRunTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.out = self.root / "results.json"

    def run_it(self, bundle):
        """Its exit code; results are in self.results."""
        done = subprocess.run(
            [str(RUN), "--bundle", str(bundle), "--out", str(self.out)],
            capture_output=True, text=True, timeout=et.START_SECONDS,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        self.results = json.loads(self.out.read_text())
        self.said = done.stdout + done.stderr
        return done.returncode

    def program(self, name, script):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def stand_in(self, cuda_perplexity):
        """A bundle with a device, whose meshes score as they are told."""
        self.program("bin/expertmesh-expert", """
echo '{"message":"computing on a CUDA device","name":"Stand-in"}' >&2
exit 1""")
        self.program("bin/expertmesh", f"""
if [[ $1 == score ]]; then
  [[ $3 == cuda ]] && value={cuda_perplexity} || value=10
  echo "{{\\"perplexity\\":$value}}"
  exit
fi
while (($# > 0)); do
  [[ $1 == --device ]] && device=$2
  [[ $1 == --ready-file ]] && ready=$2
  shift
done
echo "{{\\"grpc\\":\\"$device\\"}}" >"$ready.new" && mv "$ready.new" "$ready"
exec sleep 60""")
        (self.root / "demo_model").mkdir()
        (self.root / "demo_model" / "heldout.txt").touch()

    def test_says_that_there_is_no_device(self):
        self.assertEqual(self.run_it(et.BIN.parent), 77)
        self.assertIn("no CUDA device", self.said)
        self.assertIsNone(self.results["device"])
        self.assertNotEqual(self.results["no_device"], "")
        self.assertEqual(self.results["runs"], [])

    def test_writes_down_what_programs_say(self):
        self.stand_in(cuda_perplexity=10.01)
        self.program("tests/bin/a_test", """
echo '{"tests":3}' >"${1#--gtest_output=json:}"
[[ $LD_LIBRARY_PATH == */lib ]]""")
        self.assertEqual(self.run_it(self.root), 0, self.said)
        self.assertEqual(self.results["device"]["name"], "Stand-in")
        test, perplexity = self.results["runs"]
        self.assertEqual(test["output"], {"tests": 3})
        self.assertAlmostEqual(
            perplexity["texts"]["heldout.txt"]["difference"], 0.001)

    def test_a_bundle_without_programs_fails(self):
        self.stand_in(cuda_perplexity=10)
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIn("--tests", self.results["runs"][0]["said"])

    def test_a_service_that_says_nothing_fails(self):
        self.program("bin/expertmesh-expert", "echo oh >&2; exit 1")
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIn("oh", self.results["runs"][0]["said"])
        self.assertNotIn("Traceback", self.said)

    def test_half_a_file_is_none(self):
        self.stand_in(cuda_perplexity=10)
        self.program("tests/bin/a_test",
                     'echo "{" >"${1#--gtest_output=json:}"; exit 1')
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIsNone(self.results["runs"][0]["output"])

    def test_a_failure_does_not_stop_the_rest(self):
        self.stand_in(cuda_perplexity=11)
        self.program("tests/bin/a_test", "echo broken; exit 3")
        self.program("tests/bin/b_bench", "exit 0")
        self.assertEqual(self.run_it(self.root), 1)
        self.assertEqual(
            [(run["name"], run["passed"]) for run in self.results["runs"]],
            [("a_test", False), ("b_bench", True), ("perplexity", False)])
        self.assertIn("broken", self.results["runs"][0]["said"])


if __name__ == "__main__":
    et.main()
