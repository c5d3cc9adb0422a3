"""tests/gpu/run: without a GPU, with programs that stand in for one, and on an
emulated device."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import expertmesh_testing as et

GPU = et.SOURCE / "tests" / "gpu"
RUN = GPU / "run"
BENCH = "cuda_ffn_bench"


class GpuRun(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.out = self.root / "results.json"

    def run_it(self, bundle, *flags, env=None):
        """Its exit code; results are in self.results."""
        done = subprocess.run(
            [str(RUN), "--bundle", str(bundle), "--out", str(self.out), *flags],
            capture_output=True, text=True, timeout=et.START_SECONDS,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "",
                 "PATH": f"{self.root}/path:{os.environ['PATH']}",
                 **(env or {})})
        self.results = json.loads(self.out.read_text())
        self.said = done.stdout + done.stderr
        self.assertNotIn("Traceback", self.said)
        return done.returncode

    def record(self, name):
        records = [run for run in self.results["runs"] if run["name"] == name]
        self.assertEqual(len(records), 1, self.said)
        return records[0]

    def program(self, name, script):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def stand_in(self, cuda_perplexity=10, again=7, beside=7, others=600):
        """A bundle with a device, whose meshes score as they are told, and
        generate 64 tokens: 7s on a CPU and at first, `again` after that, and
        `beside` while others run, which they do for so many seconds."""
        self.program("bin/expertmesh-expert", """
echo '{"message":"computing on a CUDA device","name":"Stand-in"}' >&2
exit 1""")
        self.program("bin/expertmesh", f"""
case $1 in
  score)
    [[ $3 == cuda ]] && value={cuda_perplexity} || value=10
    echo "{{\\"perplexity\\":$value}}" ;;
  generate)
    if [[ $* == *"--max-tokens 512"* ]]; then
      touch {self.root}/has_others
      echo '{{"tokenIds":[1]}}'
      exec sleep {others}
    fi
    token=7
    [[ $3 == cuda && -e {self.root}/asked ]] && token={again}
    [[ -e {self.root}/has_others ]] && token={beside}
    [[ $3 == cpu ]] || touch {self.root}/asked
    tokens=$(printf "$token,%.0s" {{1..63}})$token
    echo '{{}}'
    echo "{{\\"tokenIds\\":[$tokens],\\"text\\":\\"so it goes\\"}}" ;;
  serve)
    while (($# > 0)); do
      [[ $1 == --device ]] && device=$2
      [[ $1 == --ready-file ]] && ready=$2
      shift
    done
    echo "{{\\"grpc\\":\\"$device\\"}}" >"$ready.new" && mv "$ready.new" "$ready"
    exec sleep 600 ;;
esac""")
        (self.root / "demo_model").mkdir()
        (self.root / "demo_model" / "heldout.txt").write_text("text")
        self.kernel_tests()
        self.sanitizer()
        shutil.copy(GPU / "pytorch_bench.py", self.root / "tests")

    def sanitizer(self, memcheck=0, racecheck=0, before=""):
        """A compute-sanitizer that finds so much."""
        self.program("path/compute-sanitizer", f"""
{before}
tool=$2
shift 4
"$@" || exit
if [[ $tool == memcheck ]]; then
  echo "========= ERROR SUMMARY: {memcheck} errors"
  (({memcheck} == 0)) || exit 99
else
  echo "========= RACECHECK SUMMARY: {racecheck} hazards displayed"
fi""")

    def kernel_tests(self):
        """Three tests, two of them of formats."""
        self.program("tests/bin/cuda_kernels_test", """
if [[ $1 == --gtest_list_tests ]]; then
  printf '%s\\n' 'Tables.' '  AreRight' 'Each/Kernels.' \\
    '  Multiply/bf16  # GetParam() = 1' '  Multiply/int4  # GetParam() = 2'
  exit
fi
for flag; do
  [[ $flag != --gtest_output=* ]] || echo '{"tests":1}' >"${flag#*json:}"
done""")


class ProgramsTest(GpuRun):

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
[[ $LD_LIBRARY_PATH == */lib:before ]] || exit 1
[[ -x $EXPERTMESH_EXPERT_BINARY && $EXPERTMESH_GOLDENS == */tests/golden ]]""")
        self.assertEqual(
            self.run_it(self.root, env={"LD_LIBRARY_PATH": "before"}), 0,
            self.said)
        self.assertEqual(self.results["device"]["name"], "Stand-in")
        self.assertEqual(self.record("a_test")["output"], {"tests": 3})
        self.assertAlmostEqual(
            self.record("perplexity")["texts"]["heldout.txt"]["difference"],
            0.001)
        generation = self.record("generation")
        self.assertEqual(generation["cuda"], "so it goes")
        self.assertEqual(generation["leading_tokens_as_on_cpu"], 64)
        self.assertEqual(generation["others"], 8)

    def test_a_bundle_without_programs_fails(self):
        self.stand_in()
        (self.root / "tests/bin/cuda_kernels_test").unlink()
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIn("--tests", self.results["runs"][0]["said"])

    def test_a_service_that_says_nothing_fails(self):
        self.program("bin/expertmesh-expert", "echo oh >&2; exit 1")
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIn("oh", self.results["runs"][0]["said"])

    def test_half_a_file_is_none(self):
        self.stand_in()
        self.program("tests/bin/a_test",
                     'echo "{" >"${1#--gtest_output=json:}"; exit 1')
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIsNone(self.record("a_test")["output"])

    def test_a_failure_does_not_stop_the_rest(self):
        self.stand_in(cuda_perplexity=11)
        self.program("tests/bin/a_test", "echo broken; exit 3")
        self.program("tests/bin/golden_on_device_test", "exit 0")
        self.program("tests/bin/b_bench", "exit 4")
        self.assertEqual(self.run_it(self.root), 1)
        self.assertEqual(
            [(run["name"], run["passed"]) for run in self.results["runs"]][:6],
            [("a_test", False), ("cuda_kernels_test", True),
             ("golden_on_device_test", True), ("generation", True),
             ("perplexity", False), ("b_bench", False)])
        self.assertIn("broken", self.record("a_test")["said"])
        self.assertIs(self.record("memcheck bf16")["passed"], True)


class GenerationTest(GpuRun):

    def test_other_tokens_again_fail(self):
        self.stand_in(again=8)
        self.assertEqual(self.run_it(self.root), 1)
        self.assertFalse(self.record("generation")["same_again"])

    def test_other_tokens_in_company_fail(self):
        self.stand_in(beside=8)
        self.assertEqual(self.run_it(self.root), 1)
        generation = self.record("generation")
        self.assertTrue(generation["same_again"])
        self.assertFalse(generation["same_beside_others"])

    def test_company_that_left_is_none(self):
        self.stand_in(others=0)
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIn("ended before", self.record("generation")["said"])

    def test_a_bundle_without_texts_fails(self):
        self.stand_in()
        (self.root / "demo_model" / "heldout.txt").unlink()
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIn("no heldout", self.record("generation")["said"])
        self.assertIn("no heldout", self.record("perplexity")["said"])

    def test_a_mesh_that_does_not_start_fails(self):
        self.stand_in()
        self.program("bin/expertmesh", "echo too little memory >&2; exit 1")
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIn("too little memory", self.record("generation")["said"])
        self.assertIn("too little memory", self.record("perplexity")["said"])


class BenchmarkTest(GpuRun):

    def bench(self, *cases):
        """A program that has measured these cases, and writes down the flags
        that it is given."""
        listed = "\n".join(f"{case['name']}/manual_time" for case in cases)
        self.program(f"tests/bin/{BENCH}", f"""
if [[ $1 == --benchmark_list_tests ]]; then
  echo '{listed}'
  exit
fi
echo "$*" >>{self.root}/flags
python3 - "$@" <<'PYTHON'
import json, re, sys
flags = dict(flag.split("=", 1) for flag in sys.argv[1:])
cases = [dict(case, name=case["name"] + "/manual_time") for case in {cases!r}]
chosen = [case for case in cases
          if re.search(flags["--benchmark_filter"], case["name"])]
open(flags["--benchmark_out"], "w").write(json.dumps(dict(benchmarks=chosen)))
PYTHON""")

    def pytorch(self, results):
        path = self.root / "tests" / "pytorch_bench.py"
        path.write_text(f"""import json, pathlib, sys
path = sys.argv[sys.argv.index("--out") + 1]
pathlib.Path(path).write_text(json.dumps({results!r}))
""")

    def test_shares_of_ceilings_and_pytorch(self):
        self.stand_in()
        self.bench(
            {"name": "CopyBandwidth", "bytes_per_second": 4e12,
             "real_time": 1.0, "time_unit": "us"},
            {"name": "LargeGemm", "operations": 8e14,
             "real_time": 1.0, "time_unit": "us"},
            {"name": "Batch/32", "real_time": 20.0, "time_unit": "us"},
            {"name": "Decode/mixtral/bf16/1", "weights_bytes": 3e12,
             "operations": 1.0, "real_time": 0.25, "time_unit": "ms"},
            {"name": "Decode/mixtral/bf16_fast/1", "weights_bytes": 6e12,
             "operations": 1.0, "real_time": 125.0, "time_unit": "us"},
            {"name": "Decode/mixtral/int4/1", "weights_bytes": 2e12,
             "operations": 1.0, "real_time": 100.0, "time_unit": "us"},
            {"name": "Prefill/mixtral/bf16/512", "operations": 2e14,
             "weights_bytes": 1.0, "real_time": 1.0, "time_unit": "ms"},
            {"name": "Prefill/deepseek/bf16/512", "error_occurred": True,
             "error_message": "too little device memory", "real_time": 0.0,
             "time_unit": "us"})
        self.pytorch({"cases": {"Decode/mixtral/1": {
            "matmul": {"microseconds": 500.0},
            "grouped_mm": {"error": "no such thing"},
            "transformers_eager": {"microseconds": 900.0}}}})
        self.assertEqual(self.run_it(self.root), 0, self.said)
        found = self.results["benchmarks"]
        self.assertEqual(found["ceilings"]["copy_bytes_per_second"], 4e12)
        self.assertEqual(found["cases"], {
            "Batch/32": {"microseconds": 20},
            "Decode/mixtral/bf16/1": {
                "microseconds": 250, "weights_bytes_per_second": 3e12,
                "share_of_copy": 0.75,
                "pytorch": {"method": "matmul", "microseconds": 500,
                            "speed": 2}},
            "Decode/mixtral/bf16_fast/1": {
                "microseconds": 125, "weights_bytes_per_second": 6e12,
                "share_of_copy": 1.5, "speed_beside_invariant": 2,
                "pytorch": {"method": "matmul", "microseconds": 500,
                            "speed": 4}},
            "Decode/mixtral/int4/1": {
                "microseconds": 100, "weights_bytes_per_second": 2e12,
                "share_of_copy": 0.5},
            "Prefill/mixtral/bf16/512": {
                "microseconds": 1000, "operations_per_second": 2e14,
                "share_of_gemm": 0.25},
            "Prefill/deepseek/bf16/512": {"error": "too little device memory"}})
        self.assertRegex(self.said, "Decode/mixtral/bf16/1 .*0.75 of copy .*2.00 x")
        self.assertIn("too little device memory", self.said)

    def test_without_ceilings_there_are_no_shares(self):
        self.stand_in()
        self.bench({"name": "Decode/mixtral/bf16/1", "weights_bytes": 3e12,
                    "real_time": 1.0, "time_unit": "us"})
        self.assertEqual(self.run_it(self.root), 0, self.said)
        case = self.results["benchmarks"]["cases"]["Decode/mixtral/bf16/1"]
        self.assertIsNone(case["share_of_copy"])
        self.assertIn("copies: not measured", self.said)

    def test_cases_take_less_where_time_is_short(self):
        self.stand_in()
        self.bench({"name": "Batch/1", "real_time": 1.0, "time_unit": "us"})
        for seconds, case_seconds in ("520", "0.500"), ("100", "0.050"):
            self.run_it(self.root, "--seconds", seconds)
            last = (self.root / "flags").read_text().splitlines()[-1]
            self.assertIn(f"--benchmark_min_time={case_seconds}", last)

    def test_pytorch_that_is_missing_is_no_failure(self):
        self.stand_in()
        self.pytorch({"not_installed": "no PyTorch"})
        self.assertEqual(self.run_it(self.root), 0, self.said)
        self.assertEqual(self.record("pytorch_bench")["skipped"], "no PyTorch")

    def test_pytorch_is_run_without_the_libraries_of_the_bundle(self):
        self.stand_in()
        path = self.root / "tests" / "pytorch_bench.py"
        path.write_text("import os, sys\n"
                        "sys.exit('lib' in os.environ.get('LD_LIBRARY_PATH', ''))")
        self.assertEqual(self.run_it(self.root, env={"LD_LIBRARY_PATH": ""}), 0,
                         self.said)

    def test_pytorch_has_the_same_layers(self):
        ours = re.findall(r'\{("\w+", \d+, \d+, \d+, \d+)\}',
                          (GPU / "ffn_bench.cc").read_text())
        theirs = re.findall(r'\(("\w+", \d+, \d+, \d+, \d+)\)[,\]]',
                            (GPU / "pytorch_bench.py").read_text())
        self.assertEqual(len(ours), 3)
        self.assertEqual(theirs[:3], ours)

    def test_says_that_pytorch_is_not_there(self):
        out = self.root / "pytorch.json"
        # -S: without any packages.
        done = subprocess.run(
            ["python3", "-S", GPU / "pytorch_bench.py", "--out", out],
            capture_output=True, text=True, timeout=et.START_SECONDS)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("no PyTorch", json.loads(out.read_text())["not_installed"])


class SanitizerTest(GpuRun):

    def test_runs_each_part_with_each_tool(self):
        self.stand_in()
        self.sanitizer(before=f'echo "$2 $6" >>{self.root}/flags')
        self.assertEqual(self.run_it(self.root), 0, self.said)
        self.assertEqual(
            (self.root / "flags").read_text().splitlines(),
            [f"{tool} --gtest_filter={tests}"
             for tool in ("memcheck", "racecheck")
             for tests in ("Tables.AreRight", "Each/Kernels.Multiply/bf16",
                           "Each/Kernels.Multiply/int4")])

    def test_what_it_finds_fails(self):
        self.stand_in()
        for memcheck, racecheck in (3, 0), (0, 3):
            self.sanitizer(memcheck, racecheck)
            self.assertEqual(self.run_it(self.root), 1)
            for tool, found in ("memcheck", memcheck), ("racecheck", racecheck):
                record = self.record(f"{tool} bf16")
                self.assertIs(record["passed"], found == 0)
                self.assertEqual("SUMMARY: 3" in record.get("said", ""),
                                 found == 3)

    def test_tests_that_did_not_run_fail(self):
        self.stand_in()
        self.program("path/compute-sanitizer", "echo ERROR SUMMARY: 0 errors")
        self.assertEqual(self.run_it(self.root), 1)
        self.assertIs(self.record("memcheck bf16")["passed"], False)

    def test_devices_that_it_cannot_look_into_are_no_failure(self):
        self.stand_in()
        for script in ("echo ERROR SUMMARY: 1 error: Device not supported; exit 99",
                       "echo nothing at all; exit 1"):
            self.program("path/compute-sanitizer", script)
            self.assertEqual(self.run_it(self.root), 0, self.said)
            self.assertIn("cannot look", self.results["runs"][-1]["skipped"])


class TimeTest(GpuRun):

    def test_what_does_not_fit_is_not_run(self):
        self.stand_in()
        # It leaves a child behind that would keep its output open.
        self.program("tests/bin/a_test", "sleep 600 & sleep 600")
        self.assertEqual(self.run_it(self.root, "--seconds", "4"), 3)
        for name in "a_test", "cuda_kernels_test", "generation", "perplexity":
            self.assertIsNone(self.record(name)["passed"])
            self.assertIn("time was", self.record(name)["not_run"])
        self.assertIn("4 s were not enough", self.said)
        self.assertLess(self.results["seconds"], 30)


@unittest.skipUnless((et.BIN / "expertmesh-expert-emulated").exists(),
                     "a build with CUDA has no emulation")
class EmulatedDeviceTest(GpuRun):
    """Real programs, and a device that is emulated."""

    def test_all_that_needs_no_gpu_passes(self):
        for folder in "bin", "tests/bin", "demo_model":
            (self.root / folder).mkdir(parents=True)
        for name, copy in (("expertmesh", "bin/expertmesh"),
                           ("expertmesh-router", "bin/expertmesh-router"),
                           ("expertmesh-expert-emulated", "bin/expertmesh-expert"),
                           ("golden_on_device_test", "tests/bin")):
            shutil.copy(et.BIN / name, self.root / copy)
        for path in et.DEMO_MODEL.iterdir():
            if path.name.startswith("heldout"):  # emulations are slow
                copy = self.root / "demo_model" / path.name
                copy.write_text(path.read_text()[:400])
            else:
                shutil.copy(path, self.root / "demo_model")
        shutil.copytree(et.GOLDENS, self.root / "tests" / "golden")
        self.run_it(self.root)
        for name in "golden_on_device_test", "generation", "perplexity":
            self.assertIs(self.record(name)["passed"], True, self.record(name))
        generation = self.record("generation")
        self.assertEqual(len(self.record("perplexity")["texts"]), 5)
        self.assertNotEqual(generation["cuda"], "")


if __name__ == "__main__":
    et.main()
