"""The `expertmesh` command line against real services on the demo model."""

import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import expertmesh_testing as et

SUM = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"


class WithServer(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.mesh = et.serve(et.DEMO_MODEL, 4)
        cls.addClassCleanup(cls.mesh.__exit__)

    def cli(self, command, *arguments, **options):
        admin = (("--admin", self.mesh.admin_address)
                 if command in ("describe", "top") else ())
        return et.cli(command, "--server", self.mesh.address, *admin,
                      *arguments, **options)


class GenerateTest(WithServer):

    def messages(self, *arguments):
        lines = self.cli("generate", "--json", *arguments).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def test_streams_the_text_and_nothing_else(self):
        done = self.cli("generate", "--prompt", SUM, "--temperature", 0)
        self.assertEqual(done.stdout, "42")
        self.assertEqual(done.stderr, "")

    def test_json_has_a_list_entry_for_each_token(self):
        messages = self.messages("--prompt", "ROMEO:", "--max-tokens", 5,
                                 "--ignore-eos", "--logprobs", 2, "--seed", 1)
        ids = []
        for message in messages:
            self.assertEqual(len(message["tokenIds"]),
                             len(message["logprobs"]))
            for token, logprob in zip(message["tokenIds"],
                                      message["logprobs"]):
                self.assertEqual(logprob["tokenId"], token)
                self.assertLessEqual(logprob["logprob"], 0)
                self.assertEqual(len(logprob["top"]), 2)
            ids += message["tokenIds"]
        self.assertEqual(len(ids), 5)
        last = messages[-1]
        self.assertEqual(last["finishReason"], "FINISH_REASON_LENGTH")
        self.assertEqual(last["usage"]["generatedTokens"], 5)
        # Two experts a token in each of four layers; the last sampled token is
        # never run through the model.
        rows = (last["usage"]["promptTokens"] + 4) * 4 * 2
        self.assertEqual(last["routing"]["primary"], rows)
        self.assertEqual(last["routing"]["gateMassKept"], 1)
        for message in messages[:-1]:
            self.assertNotIn("finishReason", message)

    def test_json_reports_logprobs_unasked(self):
        for message in self.messages("--prompt", "a", "--max-tokens", 2):
            self.assertEqual(len(message["tokenIds"]),
                             len(message["logprobs"]))

    def test_token_ids_are_a_prompt(self):
        ids = json.loads(self.cli("tokenize", "--text", SUM).stdout)
        done = self.cli("generate", "--token-ids", ",".join(map(str, ids)),
                        "--temperature", 0)
        self.assertEqual(done.stdout, "42")

    def test_a_seed_repeats_and_flags_arrive(self):
        flags = ["--prompt", "ROMEO:", "--max-tokens", 20, "--temperature", 1,
                 "--top-k", 50, "--top-p", 0.9, "--min-p", 0.01, "--seed", 5,
                 "--repetition-penalty", 1.1, "--presence-penalty", 0.1,
                 "--frequency-penalty", 0.1, "--min-tokens", 20, "--exact",
                 "--request-id", "mine"]
        first = self.messages(*flags)
        second = self.messages(*flags)
        self.assertEqual([m["tokenIds"] for m in first],
                         [m["tokenIds"] for m in second])
        self.assertEqual(first[0]["requestId"], "mine")
        self.assertEqual(first[-1]["seed"], "5")

    def test_stop_strings_and_ids(self):
        done = self.cli("generate", "--prompt", SUM, "--temperature", 0,
                        "--stop", "2")
        self.assertEqual(done.stdout, "4")
        first = self.messages("--prompt", SUM, "--temperature", 0)
        stop = [m["tokenIds"] for m in first if m["tokenIds"]][0][0]
        last = self.messages("--prompt", SUM, "--temperature", 0,
                             "--stop-ids", stop)[-1]
        self.assertEqual(last["finishReason"], "FINISH_REASON_STOP")
        self.assertEqual(last["usage"]["generatedTokens"], 1)

    def test_prompt_logprobs_come_first(self):
        first = self.messages("--token-ids", "260,300,81", "--max-tokens", 1,
                              "--prompt-logprobs", 1)[0]
        self.assertEqual([p["tokenId"] for p in first["promptLogprobs"]],
                         [300, 81])

    def test_experts_and_stats_go_to_standard_error(self):
        done = self.cli("generate", "--prompt", SUM, "--temperature", 0,
                        "--show-experts", "--stats")
        self.assertEqual(done.stdout, "42")
        self.assertRegex(done.stderr, r"experts  0 [·▁-█]{16}  1 ")
        self.assertRegex(done.stderr, r"rows +\d+ primary")

    def test_lines_of_standard_input_are_prompts(self):
        sum_line = "def add_"
        one = self.cli("generate", "--prompt", sum_line, "--temperature", 0,
                       "--max-tokens", 8).stdout
        done = self.cli("generate", "--temperature", 0, "--max-tokens", 8,
                        stdin=f"{sum_line}\n{sum_line}\n")
        self.assertEqual(done.stdout, f"{one}\n{one}\n")

    def test_ctrl_c_cancels(self):
        process = subprocess.Popen(
            [et.BIN / "expertmesh", "generate", "--server", self.mesh.address,
             "--prompt", "a", "--max-tokens", "900", "--ignore-eos"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=et.STOP_SECONDS)
        self.assertEqual(process.returncode, 1)
        self.assertEqual(stderr, b"expertmesh: interrupted\n")

    def test_a_refused_request_is_one_line(self):
        done = self.cli("generate", "--prompt", "a", "--temperature", -1,
                        check=False)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, r"\Aexpertmesh: .*temperature.*\n\Z")

    def test_nothing_is_generated_for_nobody(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [et.BIN / "expertmesh", "generate", "--server",
                 self.mesh.address, "--prompt", "a", "--max-tokens", "900",
                 "--ignore-eos", "--stats"], stdout=full,
                stderr=subprocess.PIPE, text=True, timeout=et.STOP_SECONDS)
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.endswith(
            "expertmesh: cannot write to standard output: No space left on "
            "device\n"))

    def test_a_deadline_ends_the_call(self):
        done = self.cli("generate", "--prompt", "a", "--max-tokens", 900,
                        "--ignore-eos", "--timeout", 0.05, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("--timeout", done.stderr)


class ScoreTest(WithServer):

    def score(self, *arguments):
        return json.loads(self.cli("score", "--json", *arguments).stdout)

    def test_one_window(self):
        text = "What light through yonder window breaks?"
        ids = json.loads(self.cli("tokenize", "--text", text).stdout)
        scored = self.score("--text", text)
        self.assertEqual(len(scored["logprobs"]), len(ids) - 1)
        mean = math.fsum(scored["logprobs"]) / len(scored["logprobs"])
        self.assertAlmostEqual(scored["mean"], mean, places=9)
        self.assertAlmostEqual(scored["perplexity"], math.exp(-mean), places=6)
        by_ids = self.score("--token-ids", ",".join(map(str, ids)))
        self.assertEqual(by_ids, scored)

    def test_later_windows_begin_with_null(self):
        scored = self.score("--token-ids", ",".join(["260"] * 10),
                            "--window", 4)
        nulls = [i for i, p in enumerate(scored["logprobs"]) if p is None]
        self.assertEqual(nulls, [3, 7])
        self.assertEqual(len(scored["logprobs"]), 9)
        # Windows know nothing of each other.
        self.assertEqual(scored["logprobs"][:3], scored["logprobs"][4:7])

    def test_a_file_and_the_choice_of_windows(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("to be or not to be " * 40)
            file.flush()
            some = self.score("--text-file", file.name, "--window", 16,
                              "--max-windows", 2)
            self.assertEqual(len(some["logprobs"]), 31)
            whole = self.score("--text-file", file.name, "--window", 16,
                               "--complete-windows")
            self.assertEqual(len(whole["logprobs"]) % 16, 15)

    def test_a_single_token_has_no_score(self):
        self.assertEqual(self.score("--token-ids", "5"),
                         {"logprobs": [], "mean": None, "perplexity": None})

    def test_a_priority_changes_no_score_and_has_a_range(self):
        plain = self.score("--text", "hello there")
        self.assertEqual(
            self.score("--text", "hello there", "--priority", "-3"), plain)
        refused = self.cli("score", "--text", "hello there", "--priority",
                           "11", check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertRegex(refused.stderr, r"\Aexpertmesh: .*priority.*\n\Z")

    def test_plain_output(self):
        lines = self.cli("score", "--text", "hello there").stdout.splitlines()
        self.assertRegex(lines[0], r"^2\t\d+\t-\d+\.\d+$")
        self.assertRegex(lines[-2], r"^mean\t-")
        self.assertRegex(lines[-1], r"^perplexity\t")


class TokenizeTest(WithServer):

    TEXTS = ["hello", "", "naïve 😀\n", SUM]

    def test_server_and_folder_agree(self):
        lines = "".join(json.dumps(text) + "\n" for text in self.TEXTS)
        remote = self.cli("tokenize", "--jsonl", stdin=lines).stdout
        for model in (et.DEMO_MODEL, et.DEMO_MODEL / "tokenizer.json"):
            local = et.cli("tokenize", "--model", model, "--jsonl",
                           stdin=lines).stdout
            self.assertEqual(local, remote)
        texts = self.cli("detokenize", "--jsonl", stdin=remote).stdout
        self.assertEqual([json.loads(line) for line in texts.splitlines()],
                         self.TEXTS)

    def test_special_tokens_can_be_skipped(self):
        ids = json.loads(self.cli("tokenize", "--text", SUM).stdout)
        flat = ",".join(map(str, ids))
        whole = self.cli("detokenize", "--token-ids", flat).stdout
        self.assertEqual(whole, SUM + "\n")
        bare = self.cli("detokenize", "--token-ids", flat,
                        "--skip-special").stdout
        self.assertNotIn("<|im_start|>", bare)

    def test_no_special(self):
        folder = et.GOLDENS / "tokenizers" / "llama_spm"
        case = json.loads((folder / "cases.json").read_text())[0]
        for flags, key in ((["--no-special"], "ids_without_special"),
                           ([], "ids_with_special")):
            done = et.cli("tokenize", "--model", folder, "--jsonl", *flags,
                          stdin=json.dumps(case["text"]) + "\n")
            self.assertEqual(json.loads(done.stdout), case[key])

    def test_ids_of_a_padded_vocabulary_decode_to_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder)
            shutil.copy(et.DEMO_MODEL / "tokenizer.json", model)
            detokenize = lambda ids: et.cli(
                "detokenize", "--model", model, "--token-ids", ids,
                check=False)
            self.assertEqual(detokenize("1030").returncode, 2)
            (model / "config.json").write_text('{"vocab_size": 1040}')
            self.assertEqual(detokenize("1030,1039").stdout, "\n")
            done = detokenize("1040")
            self.assertEqual(done.returncode, 2)
            self.assertIn("vocabulary of 1040", done.stderr)

    def test_a_bad_line_is_named(self):
        for command, lines in (("tokenize", '"a"\n[1]\n'),
                               ("tokenize", '"a"\nnope\n'),
                               ("detokenize", '[1]\n"a"\n'),
                               ("detokenize", "[1]\n[-1]\n")):
            done = et.cli(command, "--model", et.DEMO_MODEL, "--jsonl",
                          stdin=lines, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertEqual(len(done.stdout.splitlines()), 1)
            self.assertRegex(done.stderr, r"\Aexpertmesh: line 2: .*\n\Z")


class DescribeTest(WithServer):

    def test_names_model_and_endpoints(self):
        text = self.cli("describe").stdout
        self.assertIn("qwen3_moe", text)
        self.assertIn("16 a layer, 2 for each token", text)
        for endpoint in self.mesh.ready["experts"]:
            self.assertIn(endpoint["address"], text)
        described = json.loads(self.cli("describe", "--json").stdout)
        self.assertEqual(described["model"]["numExperts"], 16)
        self.assertEqual(len(described["endpoints"]["endpoints"]), 4)

    def test_top_draws_one_plain_frame(self):
        self.cli("generate", "--prompt", "a", "--max-tokens", 4)
        text = self.cli("top", "--once").stdout
        self.assertNotIn("\033", text)
        self.assertIn("experts 0-3 of 4 layers", text)
        self.assertRegex(text, r"rows since start: \d+ primary")

    def test_plan_needs_no_server(self):
        plan = json.loads(et.cli("describe", "--plan", "--json", "--model",
                                 et.DEMO_MODEL).stdout)
        self.assertEqual([(p["dtype"], p["services"]) for p in plan["plans"]],
                         [(d, n) for d in ("int4", "int8", "bf16", "f32")
                          for n in (1, 2, 4, 8)])
        self.assertEqual(plan["plans"][2]["expert_services"][0]["experts"],
                         "0-3")
        # Only experts and the KV cache follow the type asked for.
        self.assertEqual(len({p["router_weight_bytes"]
                              for p in plan["plans"]}), 1)
        sizes = [p["expert_bytes"] for p in plan["plans"][::4]]
        self.assertEqual(sizes, sorted(sizes))
        self.assertEqual(len(set(sizes)), 4)
        for p in plan["plans"]:
            self.assertLess(p["kv_bytes_per_token_int8"],
                            p["kv_bytes_per_token"])


class ServeTest(unittest.TestCase):

    def test_the_ready_file_names_living_processes(self):
        with et.serve(et.DEMO_MODEL, 3) as mesh:
            ready = mesh.ready
            self.assertEqual(len(ready["experts"]), 3)
            self.assertRegex(ready["metrics"],
                             r"^http://127\.0\.0\.1:\d+/metrics$")
            pids = [e["pid"] for e in ready["experts"]] + [ready["router_pid"]]
            for pid in pids:
                self.assertTrue(et.is_running(pid))
            self.assertEqual(mesh.stop(), 0)
            for pid in pids:
                self.assertFalse(et.is_running(pid))
            self.assertFalse(mesh.ready_file.exists())

    def test_sigint_stops_all_while_a_request_runs(self):
        with et.serve(et.DEMO_MODEL, 2, "--drain-timeout", "0") as mesh:
            pids = [e["pid"] for e in mesh.ready["experts"]]
            client = subprocess.Popen(
                [et.BIN / "expertmesh", "generate", "--server", mesh.address,
                 "--prompt", "a", "--max-tokens", "900", "--ignore-eos"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            client.stdout.read(1)
            self.assertEqual(mesh.stop(signal.SIGINT), 0)
            client.communicate(timeout=et.STOP_SECONDS)
            self.assertFalse(any(map(et.is_running, pids)))

    def test_a_dead_expert_and_a_dead_router_come_back(self):
        with et.serve(et.DEMO_MODEL, 2) as mesh:
            before = mesh.ready

            def ask():
                return et.cli("generate", "--server", before["grpc"],
                              "--prompt", SUM, "--temperature", 0, check=False)

            os.kill(before["experts"][1]["pid"], signal.SIGKILL)
            et.wait_until(lambda: mesh.ready["experts"][1]["pid"] !=
                          before["experts"][1]["pid"], what="a restart")
            after = mesh.ready
            self.assertEqual(after["experts"][1]["address"],
                             before["experts"][1]["address"])
            mesh.await_log("killed by signal 9")
            et.wait_until(lambda: ask().stdout == "42", what="an answer")

            os.kill(before["router_pid"], signal.SIGKILL)
            et.wait_until(lambda: mesh.ready["router_pid"] !=
                          before["router_pid"], what="a restart")
            self.assertEqual(mesh.ready["grpc"], before["grpc"])
            et.wait_until(lambda: ask().stdout == "42", what="an answer")

    def test_a_killed_replica_costs_no_request_and_no_token(self):
        with et.serve(et.DEMO_MODEL, 4, "--replicas", "2") as mesh:
            ask = [et.BIN / "expertmesh", "generate", "--server", mesh.address,
                   "--prompt", "ROMEO:", "--max-tokens", "600", "--seed", "5",
                   "--temperature", "0.8", "--ignore-eos"]
            undisturbed = subprocess.run(ask, capture_output=True, check=True,
                                         timeout=et.START_SECONDS).stdout
            # Unbuffered, so that communicate() finds all but the first byte.
            with subprocess.Popen(ask, stdout=subprocess.PIPE,
                                  bufsize=0) as client:
                first = client.stdout.read(1)  # it is under way
                os.kill(mesh.ready["experts"][1]["pid"], signal.SIGKILL)
                rest = client.communicate(timeout=et.START_SECONDS)[0]
            self.assertEqual(client.returncode, 0)
            self.assertEqual(first + rest, undisturbed)

    def test_the_device_is_passed_on(self):
        """The expert services refuse: there is never a CUDA device 999."""
        refused = et.cli("serve", "--model", et.DEMO_MODEL, "--listen",
                         "127.0.0.1:0", "--device", "cuda:999", check=False)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("no CUDA device", refused.stderr)

    def test_more_replicas_than_services_are_refused(self):
        refused = et.cli("serve", "--model", et.DEMO_MODEL,
                         "--expert-services", 2, "--replicas", 3, check=False)
        self.assertNotEqual(refused.returncode, 0)
        self.assertRegex(refused.stderr, r"^[^\n]*3 replicas[^\n]*\n$")

    def test_children_end_with_a_killed_launcher(self):
        with et.serve(et.DEMO_MODEL, 2) as mesh:
            ready = mesh.ready
            mesh.stop(signal.SIGKILL)
            for pid in [e["pid"] for e in ready["experts"]] + [
                    ready["router_pid"]]:
                et.wait_until(lambda: not et.is_running(pid),
                              what="a child to end")

    def test_a_folder_of_a_killed_launcher_is_removed_by_the_next(self):
        with tempfile.TemporaryDirectory() as temporary:
            folders = pathlib.Path(temporary)

            def serve():
                return et.Service(
                    [et.BIN / "expertmesh", "serve", "--model", et.DEMO_MODEL,
                     "--listen", "127.0.0.1:0", "--expert-services", 1],
                    env={"TMPDIR": temporary})

            with serve() as mesh:
                mesh.stop(signal.SIGKILL)
            dead = set(folders.iterdir())
            self.assertEqual(len(dead), 1)
            with serve():
                self.assertFalse(dead & set(folders.iterdir()))
            self.assertEqual(list(folders.iterdir()), [])

    def test_a_parent_that_ignores_its_children_is_no_trouble(self):
        # What `nohup` is to SIGHUP, some supervisors are to SIGCHLD.
        ignore = ("import os, signal, sys; "
                  "signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
                  "os.execv(sys.argv[1], sys.argv[1:])")
        with et.Service([sys.executable, "-c", ignore, et.BIN / "expertmesh",
                         "serve", "--model", et.DEMO_MODEL, "--listen",
                         "127.0.0.1:0", "--expert-services", 1]) as mesh:
            before = mesh.ready["experts"][0]["pid"]
            os.kill(before, signal.SIGKILL)
            et.wait_until(lambda: mesh.ready["experts"][0]["pid"] != before,
                          what="a restart")
            self.assertEqual(mesh.stop(), 0)

    def test_bad_input_is_one_line(self):
        with tempfile.TemporaryDirectory() as folder:
            broken = pathlib.Path(folder)
            for name in ("config.json", "generation_config.json"):
                (broken / name).write_bytes(
                    (et.DEMO_MODEL / name).read_bytes())
            weights = (et.DEMO_MODEL / "model.safetensors").read_bytes()
            (broken / "model.safetensors").write_bytes(weights[:-1000])
            for flags, code in ((["--model", "/no/such/model"], 1),
                                (["--model", broken], 1),
                                (["--model", et.DEMO_MODEL,
                                  "--expert-services", 17], 2),
                                (["--model", et.DEMO_MODEL,
                                  "--expert-services", 0], 2),
                                (["--model", et.DEMO_MODEL,
                                  "--threads", -1], 2),
                                (["--model", et.DEMO_MODEL,
                                  "--listen", "nonsense"], 2),
                                (["--model", et.DEMO_MODEL,
                                  "--wire-dtype", "f64"], 2),
                                (["--model", et.DEMO_MODEL, "--ready-file",
                                  "/no/such/folder/ready"], 1)):
                done = et.cli("serve", "--listen", "127.0.0.1:0", *flags,
                              check=False) if "--listen" not in flags else (
                    et.cli("serve", *flags, check=False))
                self.assertEqual(done.returncode, code, flags)
                self.assertRegex(done.stderr, r"\Aexpertmesh: .*\n\Z")
                self.assertLess(len(done.stderr), 300)
                self.assertEqual(done.stdout, "")

    def test_a_tokenizer_that_cannot_be_read_is_not_an_absent_one(self):
        with tempfile.TemporaryDirectory() as folder:
            for file in et.DEMO_MODEL.iterdir():
                (pathlib.Path(folder) / file.name).symlink_to(file)
            tokenizer = pathlib.Path(folder) / "tokenizer.json"
            tokenizer.unlink()
            tokenizer.symlink_to("/no/such/file")
            done = et.cli("serve", "--model", folder, "--listen",
                          "127.0.0.1:0", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, r"\Aexpertmesh: .*tokenizer.json"
                             r".*\n\Z")

    def test_a_taken_port_is_one_line(self):
        with et.serve(et.DEMO_MODEL, 1) as mesh:
            done = et.cli("serve", "--model", et.DEMO_MODEL, "--listen",
                          mesh.address, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, r"\Aexpertmesh: the router .*\n\Z")
            self.assertIn("in use", done.stderr)


class UsageTest(unittest.TestCase):

    COMMANDS = ("serve", "generate", "score", "tokenize", "detokenize", "top",
                "bench", "describe")

    def test_help_and_version_everywhere(self):
        for command in ((), *((c,) for c in self.COMMANDS)):
            self.assertIn("Usage: expertmesh",
                          et.cli(*command, "--help").stdout)
            self.assertRegex(et.cli(*command, "--version").stdout,
                             r"\Aexpertmesh \d+\.\d+\.\d+\n\Z")

    def test_usage_errors_exit_with_2(self):
        for arguments in ((), ("bogus",), ("serve",), ("score",),
                          ("generate", "--top-k", "x"),
                          ("generate", "--prompt", "a", "--token-ids", "1"),
                          ("generate", "--prompt", "a", "bogus"),
                          ("tokenize", "--text", "a", "--jsonl"),
                          ("describe", "--plan")):
            done = et.cli(*arguments, check=False)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertRegex(done.stderr, r"\Aexpertmesh: .*\n\Z")

    def test_a_wrong_expert_address_is_named_before_anything_is_loaded(self):
        done = subprocess.run(
            [et.BIN / "expertmesh-router", "--model", "/no/such/model",
             "--experts-at", "127.0.0.1:1,foo"], capture_output=True,
            text=True, timeout=et.STOP_SECONDS)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr,
                         r"\Aexpertmesh-router: --experts-at: .*foo.*\n\Z")

    def test_an_unknown_command_is_named(self):
        for arguments in (("bogus",), ("bogus", "--model", "x"),
                          ("--bogus", "describe")):
            done = et.cli(*arguments, check=False)
            self.assertEqual(done.returncode, 2)
            self.assertIn(arguments[0], done.stderr)
        self.assertIn("command", et.cli(check=False).stderr)

    def test_output_that_cannot_be_written_is_an_error(self):
        for arguments in (("describe", "--plan", "--model", et.DEMO_MODEL),
                          ("tokenize", "--model", et.DEMO_MODEL, "--text", "a"),
                          ("serve", "--help"), ("--version",)):
            with open("/dev/full", "w") as full:
                done = subprocess.run([et.BIN / "expertmesh", *arguments],
                                      stdout=full, stderr=subprocess.PIPE,
                                      text=True, timeout=et.STOP_SECONDS)
            self.assertEqual(done.returncode, 1, arguments)
            self.assertRegex(done.stderr, r"\Aexpertmesh: cannot write to "
                             r"standard output.*\n\Z")

    def test_no_server_is_one_line(self):
        for arguments in (("generate", "--prompt", "a"), ("top", "--once"),
                          ("score", "--text", "a b"), ("describe",),
                          ("tokenize", "--text", "a")):
            done = et.cli(*arguments, "--server", "127.0.0.1:1", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr,
                             r"\Aexpertmesh: cannot reach .*127.0.0.1:[13];.*\n\Z")


if __name__ == "__main__":
    et.main()
