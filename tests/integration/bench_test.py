"""`expertmesh bench` against real services, and the plot of its results."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

import expertmesh_testing as et

LAYERS, TOP_K, CONTEXT = 4, 2, 1024
BENCH_FOLDER = et.SOURCE / "tests" / "bench"


def complaints(stderr):
    """Without the line in which, on a busy machine, it calls itself late."""
    return re.sub(r"expertmesh: this client fell behind .*\n", "", stderr)


class BenchTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.mesh = et.serve(et.DEMO_MODEL, 2)
        cls.addClassCleanup(cls.mesh.__exit__)

    def bench(self, *arguments, **options):
        return et.cli("bench", "--at", self.mesh.address, *arguments,
                      **options)

    def levels(self, *arguments, **options):
        done = self.bench("--json", *arguments, **options)
        self.assertEqual(complaints(done.stderr), "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def check_latencies(self, level):
        for name, q in level["latency_seconds"].items():
            self.assertLessEqual(q["p50"], q["p90"], name)
            self.assertLessEqual(q["p90"], q["p95"], name)
            self.assertLessEqual(q["p95"], q["p99"], name)
            self.assertLessEqual(q["p99"], q["max"], name)
        latency = level["latency_seconds"]
        self.assertGreater(latency["time_to_first_token"]["p50"], 0)
        self.assertLess(latency["time_to_first_token"]["max"],
                        latency["end_to_end"]["max"])
        self.assertLessEqual(latency["end_to_end"]["max"], level["seconds"])

    def test_counts_agree_in_a_closed_loop(self):
        levels = self.levels("--concurrency", "1,4", "--requests", 12,
                             "--prompt-tokens", 20, "--output-tokens", 6,
                             "--shared-prefix-tokens", 5, "--warmup", 2)
        self.assertEqual([l["load"]["concurrency"] for l in levels], [1, 4])
        for level in levels:
            self.assertEqual(level["requests"], {
                "sent": 12, "completed": 12, "failed": 0, "unfinished": 0,
                "cut_short": 0})
            self.assertEqual(level["tokens"], {"prompt": 12 * 25,
                                               "output": 12 * 6})
            # The last token of an answer is never run through the model.
            rows = sum(level["routing"][name] for name in (
                "primary", "replica", "waited", "rerouted", "dropped"))
            self.assertEqual(rows, 12 * (25 + 6 - 1) * LAYERS * TOP_K)
            self.assertEqual(level["routing"]["gate_mass_kept"], 1)
            counts = {name: q["count"] for name, q
                      in level["latency_seconds"].items()}
            self.assertEqual(counts, {
                "time_to_first_token": 12, "inter_token": 12 * 5,
                "time_per_output_token": 12, "end_to_end": 12, "queue": 12})
            self.assertAlmostEqual(level["per_second"]["output_tokens"],
                                   72 / level["seconds"], places=6)
            self.check_latencies(level)
            self.assertEqual(level["model"]["name"], "demo_model")
            self.assertEqual(level["model"]["num_experts"], 16)

    def test_the_same_seed_asks_for_the_same_tokens(self):
        def tokens(seed):
            return self.levels(
                "--requests", 8, "--concurrency", 4, "--seed", seed,
                "--prompt-tokens", "uniform:1-40", "--output-tokens",
                "normal:8,3", "--warmup", 0)[0]["tokens"]
        self.assertEqual(tokens(3), tokens(3))
        self.assertNotEqual(tokens(3), tokens(4))

    def test_an_open_loop_keeps_its_rate(self):
        level, = self.levels("--request-rate", 20, "--requests", 30,
                             "--prompt-tokens", 8, "--output-tokens", 2)
        self.assertEqual(level["requests"]["completed"], 30)
        # 30 arrivals take 1.5 s in the mean; those of this seed at least 0.7.
        self.assertGreater(level["seconds"], 0.7)
        self.check_latencies(level)

    def test_hundreds_of_requests_at_once(self):
        level, = self.levels("--request-rate", "inf", "--requests", 200,
                             "--prompt-tokens", 4, "--output-tokens", 3)
        self.assertEqual(level["requests"]["completed"], 200)
        self.assertEqual(level["tokens"]["output"], 600)

    def test_duration_ends_a_level(self):
        level, = self.levels("--duration", 0.3, "--concurrency", 2,
                             "--prompt-tokens", 4, "--output-tokens", 2,
                             "--warmup", 0)
        self.assertGreater(level["requests"]["completed"], 0)
        self.assertEqual(level["load"]["max_requests"], None)

    def test_texts_as_prompts(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("ROMEO:\n\nto be or not to be\n")
            file.flush()
            lengths = [len(json.loads(tokens)) for tokens in (
                et.cli("tokenize", "--server", self.mesh.address, "--text",
                       text).stdout
                for text in ("ROMEO:", "to be or not to be"))]
            level, = self.levels("--prompts", file.name, "--requests", 4,
                                 "--output-tokens", 2)
            self.assertEqual(level["tokens"]["prompt"], 2 * sum(lengths))

    def test_text_for_people_and_a_file_for_machines(self):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "results.json"
            done = self.bench("--requests", 2, "--concurrency", "1,2",
                              "--output-tokens", 3, "--json", file)
            self.assertIn("concurrency 2: 2 requests in ", done.stdout)
            self.assertRegex(done.stdout, r"(?m)^  to first token +\d")
            self.assertRegex(done.stdout, r"(?m)^load +failed +requests/s")
            self.assertNotIn("\033", done.stdout + done.stderr)
            levels = [json.loads(l) for l in file.read_text().splitlines()]
            self.assertEqual(len(levels), 2)
            self.check_plot(file, pathlib.Path(folder) / "plot.svg")

    def check_plot(self, results, svg):
        subprocess.run([sys.executable, BENCH_FOLDER / "serving_plot.py",
                        results, svg], check=True, timeout=et.STOP_SECONDS)
        root = xml.etree.ElementTree.parse(svg).getroot()
        name = "{http://www.w3.org/2000/svg}"
        self.assertEqual(len(root.findall(name + "polyline")), 6)
        for polyline in root.findall(name + "polyline"):
            self.assertEqual(len(polyline.get("points").split()), 2)

    def test_failures_are_counted_and_end_with_1(self):
        # The server refuses this contradiction.
        arguments = ("--requests", 3, "--overflow-policy", "drop", "--exact",
                     "--warmup", 0, "--json")
        done = self.bench(*arguments, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(complaints(done.stderr),
                         "expertmesh: 3 of 3 requests failed\n")
        level = json.loads(done.stdout)
        self.assertEqual(level["requests"]["failed"], 3)
        self.assertEqual(level["failures"]["INVALID_ARGUMENT"]["count"], 3)
        self.assertEqual(level["tokens"], {"prompt": 0, "output": 0})
        self.bench(*arguments, "--allow-failures")

    def test_ctrl_c_prints_what_was_measured(self):
        process = subprocess.Popen(
            [et.BIN / "expertmesh", "bench", "--at", self.mesh.address,
             "--concurrency", "1,2", "--requests", "4", "--duration", "600",
             "--output-tokens", "900", "--prompt-tokens", "4"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()  # it has begun
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=et.STOP_SECONDS)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(complaints(stderr), "expertmesh: interrupted\n")
        self.assertNotIn("concurrency 2", stdout)

    def test_nothing_is_measured_for_nobody(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [et.BIN / "expertmesh", "bench", "--at", self.mesh.address,
                 "--duration", "600"], stdout=full, stderr=subprocess.PIPE,
                text=True, timeout=et.STOP_SECONDS)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr, "expertmesh: cannot write to standard "
                         "output: No space left on device\n")

    def test_lengths_beyond_the_context_are_refused(self):
        for flags in (("--prompt-tokens", CONTEXT, "--output-tokens", 1),
                      ("--shared-prefix-tokens", CONTEXT),
                      ("--output-tokens", "uniform:1-1000")):
            done = self.bench(*flags, check=False)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr, r"\Aexpertmesh: .*context of "
                             rf"demo_model, {CONTEXT} tokens\n\Z")

    def test_bad_flags_are_one_line(self):
        for flags in (("--request-rate", 0), ("--request-rate", -1),
                      ("--request-rate", "inf"), ("--concurrency", 0),
                      ("--concurrency", "1,x"), ("--requests", 0),
                      ("--concurrency", 1, "--request-rate", 1),
                      ("--prompt-tokens", "gamma:1"),
                      ("--output-tokens", 0), ("--duration", "inf"),
                      ("--prompts", "x", "--prompt-tokens", 3)):
            done = self.bench(*flags, check=False)
            self.assertEqual(done.returncode, 2, flags)
            self.assertRegex(done.stderr, r"\Aexpertmesh: .*\n\Z")
            self.assertEqual(done.stdout, "")

    def test_files_that_are_not_there_are_one_line(self):
        for flags in (("--prompts", "/no/such/file"),
                      ("--json", "/no/such/folder/file")):
            done = self.bench(*flags, check=False)
            self.assertEqual(done.returncode, 1, flags)
            self.assertRegex(done.stderr, r"\Aexpertmesh: .*/no/such.*\n\Z")


class WithoutServer(unittest.TestCase):

    def test_no_server_is_one_line(self):
        done = et.cli("bench", "--at", "127.0.0.1:1", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr,
                         r"\Aexpertmesh: cannot reach .*127.0.0.1:1.*\n\Z")


class RunTest(unittest.TestCase):

    def run_script(self, *arguments):
        return subprocess.run([BENCH_FOLDER / "run", *arguments],
                              capture_output=True, text=True,
                              timeout=et.STOP_SECONDS)

    def test_lists_what_readme_names(self):
        listed = self.run_script().stdout
        names = [line.split()[0] for line in listed.splitlines()]
        self.assertIn("all", names)
        readme = (BENCH_FOLDER / "README.md").read_text()
        for name in names:
            self.assertTrue(name.removesuffix("_demo") in readme, name)

    def test_an_unknown_name_is_refused(self):
        done = self.run_script("nonsense")
        self.assertEqual(done.returncode, 2)
        self.assertIn("nonsense", done.stderr)

    def test_all_goes_on_after_a_failure_and_says_so(self):
        with tempfile.TemporaryDirectory() as temporary:
            build = pathlib.Path(temporary)
            (build / "bin").mkdir()
            # Programs in C++ that say a word; services are missing.
            for name, code in (("mesh_bench", 0), ("grpc_forms_bench", 3),
                               ("planner_bench", 0)):
                program = build / "bin" / name
                program.write_text(f"#!/bin/sh\necho {name} $1\nexit {code}\n")
                program.chmod(0o755)
            environment = {name: value for name, value in os.environ.items()
                           if name not in ("EXPERTMESH_BIN",
                                           "EXPERTMESH_STUBS")}
            done = subprocess.run(
                [BENCH_FOLDER / "run", "all", build / "results"],
                capture_output=True, text=True, timeout=et.START_SECONDS,
                env={**environment, "EXPERTMESH_BUILD": temporary})
            self.assertEqual(done.returncode, 1)
            failed = done.stderr.splitlines()[-1]
            self.assertIn("run: failed: ", failed)
            self.assertIn("grpc_forms_bench", failed)
            self.assertNotIn("mesh_bench", failed)
            text = (build / "results" / "mesh_bench.txt").read_text()
            self.assertEqual(text, f"mesh_bench {et.DEMO_MODEL}\n")
            summary = json.loads(
                (build / "results" / "summary.json").read_text())
            codes = {r["name"]: r["exit_code"] for r in summary["results"]}
            self.assertEqual(codes["mesh_bench"], 0)
            self.assertEqual(codes["grpc_forms_bench"], 3)
            self.assertEqual(codes["planner_bench"], 0)

    def test_all_takes_no_options(self):
        self.assertEqual(self.run_script("all", "--help").returncode, 2)


if __name__ == "__main__":
    et.main()
