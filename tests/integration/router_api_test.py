"""The client API of a real router, from the published protos alone."""

import concurrent.futures
import json
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

import expertmesh_testing as testing
import grpc
from expert_client import health
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

SECONDS = 120


def request(text="ROMEO:", **fields):
    fields.setdefault("max_tokens", 16)
    fields.setdefault("temperature", 0)
    return pb.GenerateRequest(text=text, **fields)


def token_ids(responses):
    return [i for response in responses for i in response.token_ids]


class RouterTest(unittest.TestCase):
    MODEL = testing.DEMO_MODEL
    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        cls.mesh = testing.serve(cls.MODEL, 2, *cls.FLAGS)
        cls.addClassCleanup(cls.mesh.__exit__)
        cls.channel = grpc.insecure_channel(cls.mesh.address)
        cls.addClassCleanup(cls.channel.close)
        cls.stub = generation_pb2_grpc.GenerationServiceStub(cls.channel)
        cls.admin = admin_pb2_grpc.AdminServiceStub(cls.mesh.admin_channel())

    def generate(self, *args, **fields):
        return list(self.stub.Generate(request(*args, **fields),
                                       timeout=SECONDS))

    def uncovered_rows(self):
        return self.mesh.metrics()[
            'expertmesh_router_overflow_rows_total{reason="uncovered"}']

    def routing(self, *args, **fields):
        """The account of a run in which no expert was lost. On a busy machine
        one may seem so for a moment, and rows go without it as they should."""
        for _ in range(20):
            before = self.uncovered_rows()
            routing = self.generate(*args, **fields)[-1].routing
            if self.uncovered_rows() == before:
                return routing
        self.fail("experts come and go")

    def running(self):
        load = self.admin.GetExpertLoad(admin_pb2.GetExpertLoadRequest())
        return load.requests_running + load.requests_waiting

    def error(self, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        return caught.exception


class GenerateTest(RouterTest):

    def test_last_message_carries_the_accounts(self):
        responses = self.generate(request_id="mine")
        last = responses[-1]
        self.assertEqual({r.request_id for r in responses}, {"mine"})
        self.assertEqual(last.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(last.usage.generated_tokens, 16)
        self.assertEqual(len(token_ids(responses)), 16)
        self.assertEqual(last.routing.gate_mass_kept, 1)
        # Every token but the last, in four layers, by two experts.
        tokens = last.usage.prompt_tokens + 15
        self.assertEqual(last.routing.primary, tokens * 4 * 2)
        self.assertGreater(last.timings.total_seconds, 0)
        self.assertFalse(any(r.HasField("usage") for r in responses[:-1]))

    def test_expert_counts_add_up(self):
        responses = self.generate(expert_counts=True)
        rows = sum(c.rows for r in responses for c in r.expert_counts)
        self.assertEqual(rows, responses[-1].routing.primary)

    def test_concurrent_requests_get_what_they_get_alone(self):
        texts = [f"Scene {i}. " + "Enter a servant. " * (i % 5)
                 for i in range(16)]
        alone = [token_ids(self.generate(t, seed=7, temperature=0.8))
                 for t in texts]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(
                lambda t: token_ids(self.generate(t, seed=7,
                                                  temperature=0.8)), texts))
        self.assertEqual(together, alone)

    def test_logprobs_are_of_the_model_not_of_the_sampler(self):
        responses = self.generate(logprobs=3, temperature=1.3, seed=3)
        for response in responses:
            self.assertEqual(len(response.logprobs), len(response.token_ids))
            for entry, token in zip(response.logprobs, response.token_ids):
                self.assertEqual(entry.token_id, token)
                self.assertEqual(len(entry.top), 3)
                self.assertLessEqual(entry.logprob, entry.top[0].logprob)

    def test_text_is_the_detokenized_ids(self):
        responses = self.generate(max_tokens=48, ignore_eos=True)
        whole = self.stub.Detokenize(
            pb.DetokenizeRequest(token_ids=token_ids(responses),
                                 skip_special=True))
        self.assertEqual("".join(r.text for r in responses), whole.text)

    def test_cancelling_frees_the_request(self):
        stream = self.stub.Generate(request(max_tokens=900, ignore_eos=True))
        next(stream)
        stream.cancel()
        testing.wait_until(lambda: self.running() == 0, SECONDS,
                           "the cancelled request to end")

    def test_a_deadline_ends_the_request(self):
        failure = self.error(lambda: list(self.stub.Generate(
            request(max_tokens=1000, ignore_eos=True), timeout=0.05)))
        self.assertEqual(failure.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        testing.wait_until(lambda: self.running() == 0, SECONDS,
                           "the late request to end")

    def test_a_slow_reader_stalls_nobody(self):
        # Far more bytes than flow control lets through unread.
        slow = self.stub.Generate(request(max_tokens=400, ignore_eos=True,
                                          logprobs=20))
        next(slow)
        self.assertEqual(len(token_ids(self.generate())), 16)
        testing.wait_until(lambda: self.running() == 0, SECONDS,
                           "the unread request to finish")
        self.assertEqual(len(token_ids(slow)) + 1, 400)

    def test_bad_requests(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        for bad, word in (
                (request(top_p=0), "top_p"),
                (request(max_tokens=0), "max_tokens"),
                (request("to be " * 2000), "tokens"),
                (pb.GenerateRequest(max_tokens=1), "prompt"),
                (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 5000])),
                 "token 2 of the prompt is outside the vocabulary of 1024"),
                (request(min_tokens=1, stop_token_ids=range(1024)),
                 "stop_token_ids lists more than 256"),
                (request(overflow_policy=pb.OVERFLOW_POLICY_DROP, exact=True),
                 "exact")):
            failure = self.error(lambda: list(self.stub.Generate(bad)))
            self.assertEqual(failure.code(), invalid, failure.details())
            self.assertIn(word, failure.details())
        self.assertEqual(self.error(lambda: self.stub.Detokenize(
            pb.DetokenizeRequest(token_ids=[1 << 31]))).code(), invalid)

    def test_bytes_that_are_no_message(self):
        garbage, bad_utf8 = b"\xff\xff\xff", b"\x0a\x02\xff\xfe"
        for method, call, sent in (
                ("v1.GenerationService/Generate", "unary_stream", bad_utf8),
                ("v1.GenerationService/Score", "unary_unary", bad_utf8),
                ("v1.GenerationService/Tokenize", "unary_unary", bad_utf8),
                ("v1.GenerationService/Detokenize", "unary_unary", garbage),
                ("v1.ModelService/GetModel", "unary_unary", garbage),
                ("admin.v1.AdminService/GetExpertLoad", "unary_unary",
                 garbage)):
            # Without serializers the channel passes bytes through.
            channel = (self.mesh.admin_channel() if "admin" in method
                       else self.channel)
            raw = getattr(channel, call)(f"/expertmesh.{method}")
            failure = self.error(
                lambda: list(raw(sent)) if call == "unary_stream"
                else raw(sent))
            self.assertEqual(failure.code(),
                             grpc.StatusCode.INVALID_ARGUMENT, method)
            self.assertIn("UTF-8", failure.details())
        self.assertNotIn("libprotobuf", self.mesh.log())

    def test_long_texts_do_not_hold_up_others(self):
        text = "The quick brown fox jumps over the lazy dog. " * 200_000
        with grpc.insecure_channel(
                self.mesh.address,
                options=[("grpc.max_receive_message_length", -1)]) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            long = [stub.Tokenize.future(pb.TokenizeRequest(text=text))
                    for _ in range(3)]
            # Answers arrive while the second text is in work.
            answers = []
            while not all(call.done() for call in long):
                done = sum(call.done() for call in long)
                self.assertEqual(health(self.channel), 1)
                answers.append(done)
            sizes = {len(call.result().token_ids) for call in long}
        self.assertEqual(len(sizes), 1)
        self.assertGreater(answers.count(1), 3)
        failure = self.error(lambda: self.stub.Tokenize(
            pb.TokenizeRequest(text="x" * ((16 << 20) + 1))))
        self.assertEqual(failure.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("16777216", failure.details())

    def test_score_is_what_generate_reports(self):
        ids = list(self.stub.Tokenize(
            pb.TokenizeRequest(text="Enter ROMEO and the nurse.")).token_ids)
        score = self.stub.Score(pb.ScoreRequest(
            token_ids=pb.TokenIds(ids=ids)))
        response = list(self.stub.Generate(pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=ids), max_tokens=1, temperature=0,
            prompt_logprobs=0)))[0]
        self.assertEqual(list(score.token_ids), ids)
        self.assertEqual(list(score.logprobs),
                         [p.logprob for p in response.prompt_logprobs])

    def test_health_and_reflection(self):
        for name in ("", "expertmesh.v1.GenerationService",
                     "expertmesh.v1.ModelService"):
            self.assertEqual(health(self.channel, name), 1)
        reflect = self.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda x: x, response_deserializer=lambda x: x)
        # list_services (field 7) of ServerReflectionRequest.
        answer = next(reflect(iter([b"\x3a\x00"]), timeout=SECONDS))
        self.assertIn(b"expertmesh.v1.GenerationService", answer)

    def test_model_and_endpoints(self):
        model = model_pb2_grpc.ModelServiceStub(self.channel).GetModel(
            model_pb2.GetModelRequest())
        self.assertEqual(model.model_type, "qwen3_moe")
        self.assertEqual((model.num_experts, model.top_k), (16, 2))
        self.assertEqual(model.wire_dtype, "bf16")
        endpoints = self.admin.ListEndpoints(admin_pb2.ListEndpointsRequest())
        self.assertEqual(endpoints.uncovered_slots, 0)
        self.assertEqual([e.state for e in endpoints.endpoints],
                         ["ready", "ready"])


class LogTest(RouterTest):
    FLAGS = ("--log-level", "info")

    def lines(self, word, count):
        """The log's lines with this word, once there are so many."""
        find = lambda: [line for line in self.mesh.log().splitlines()
                        if word in line]
        testing.wait_until(lambda: len(find()) >= count, SECONDS,
                           f"{count} lines with {word}")
        return find()

    def test_every_request_of_a_burst_has_its_line(self):
        calls = [self.stub.Generate(request(max_tokens=4,
                                            request_id=f"burst{i}."))
                 for i in range(16)]
        for call in calls:
            list(call)
        for i in range(10):
            self.error(lambda: self.generate(temperature=-1,
                                             request_id=f"refused{i}."))
        self.assertEqual(len(self.lines("request_id=burst", 16)), 16)
        refused = self.lines("request_id=refused", 10)
        self.assertEqual(len(refused), 10)
        self.assertIn("code=INVALID_ARGUMENT", refused[0])

    def test_an_id_cannot_forge_a_line(self):
        self.generate(max_tokens=1, request_id="x\r\x1b[31mFORGED")
        line, = self.lines("FORGED", 1)
        self.assertIn(r'request_id="x\u000d\u001b[31mFORGED"', line)


class SentencePieceTest(RouterTest):
    """A model whose tokens carry the space before a word."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="expertmesh-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.MODEL = pathlib.Path(folder.name)
        shutil.copytree(testing.GOLDENS / "mixtral", cls.MODEL,
                        dirs_exist_ok=True)
        shutil.copy(testing.GOLDENS / "tokenizers" / "llama_spm" /
                    "tokenizer.json", cls.MODEL)
        super().setUpClass()

    def detokenize(self, ids):
        return self.stub.Detokenize(pb.DetokenizeRequest(
            token_ids=ids, skip_special=True)).text

    def test_streamed_text_goes_on_where_the_prompt_ends(self):
        spaces = 0
        for last in range(3, 300, 11):
            prompt = [1, last]
            responses = list(self.stub.Generate(pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=prompt), max_tokens=3,
                temperature=0, ignore_eos=True)))
            text = "".join(r.text for r in responses)
            before = self.detokenize(prompt)
            whole = self.detokenize(prompt + token_ids(responses))
            if whole.startswith(before):
                self.assertEqual(before + text, whole)
                spaces += text.startswith(" ")
        self.assertGreater(spaces, 0)


class StopStringsTest(RouterTest):
    """A checkpoint whose generation_config.json has stop strings."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="expertmesh-test-")
        cls.addClassCleanup(folder.cleanup)
        cls.MODEL = pathlib.Path(folder.name)
        shutil.copytree(testing.DEMO_MODEL, cls.MODEL, dirs_exist_ok=True)
        path = cls.MODEL / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()),
                                    "stop_strings": ["e"]}))
        super().setUpClass()

    def test_they_hold_where_a_request_has_none(self):
        stopped = self.generate(max_tokens=64, ignore_eos=True)
        self.assertEqual(stopped[-1].finish_reason,
                         pb.FINISH_REASON_STOP_STRING)
        self.assertNotIn("e", "".join(r.text for r in stopped))
        own = self.generate(max_tokens=64, ignore_eos=True, stop=["\0"])
        self.assertEqual(own[-1].finish_reason, pb.FINISH_REASON_LENGTH)


class LostMassBudgetTest(RouterTest):
    FLAGS = ("--capacity-factor", "1", "--min-capacity", "1",
             "--max-lost-gate-mass", "0", "--prefix-cache", "off")

    def test_a_spent_budget_makes_every_policy_wait(self):
        for policy in (pb.OVERFLOW_POLICY_NEXT_BEST, pb.OVERFLOW_POLICY_DROP):
            routing = self.routing("What is the news from Verona? " * 12,
                                   ignore_eos=True, overflow_policy=policy)
            self.assertGreater(routing.waited, 0)
            self.assertEqual(routing.rerouted + routing.dropped, 0)
            self.assertEqual(routing.gate_mass_kept, 1)


class TightCapacityTest(RouterTest):
    # Equal prompts are routed again each time.
    FLAGS = ("--capacity-factor", "1", "--min-capacity", "1",
             "--max-lost-gate-mass", "1", "--prefix-cache", "off")
    TEXT = "What is the news from Verona? " * 12

    def test_policies_by_request(self):
        def ask(**fields):
            return self.routing(self.TEXT, ignore_eos=True, **fields)

        wait = ask(overflow_policy=pb.OVERFLOW_POLICY_WAIT)
        self.assertGreater(wait.waited, 0)
        self.assertEqual(wait.gate_mass_kept, 1)
        self.assertEqual(wait.rerouted + wait.dropped, 0)
        rerouted = ask(overflow_policy=pb.OVERFLOW_POLICY_NEXT_BEST)
        self.assertGreater(rerouted.rerouted, 0)
        self.assertLess(rerouted.gate_mass_kept, 1)
        dropped = ask(overflow_policy=pb.OVERFLOW_POLICY_DROP)
        self.assertGreater(dropped.dropped, 0)
        exact = ask(exact=True)
        self.assertEqual(exact.rerouted + exact.dropped, 0)
        total = lambda r: (r.primary + r.replica + r.waited + r.rerouted +
                           r.dropped)
        self.assertEqual(len({total(r) for r in (wait, rerouted, dropped,
                                                 exact)}), 1)

    def test_waiting_changes_nothing(self):
        # The other class's mesh has room for all; wait must equal it.
        with testing.serve(testing.DEMO_MODEL, 4, "--capacity-factor",
                           "0") as roomy:
            with grpc.insecure_channel(roomy.address) as channel:
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                expected = token_ids(stub.Generate(
                    request(self.TEXT, max_tokens=32), timeout=SECONDS))
        self.assertEqual(token_ids(self.generate(self.TEXT, max_tokens=32)),
                         expected)


class DefaultBudgetTest(RouterTest):
    FLAGS = ("--capacity-factor", "1", "--min-capacity", "1",
             "--prefix-cache", "off")

    def test_policies_lose_little_and_the_rest_waits(self):
        text = TightCapacityTest.TEXT
        for policy, moved in ((pb.OVERFLOW_POLICY_NEXT_BEST, "rerouted"),
                              (pb.OVERFLOW_POLICY_DROP, "dropped")):
            routing = self.routing(text, ignore_eos=True,
                                   overflow_policy=policy)
            self.assertGreater(getattr(routing, moved), 0)
            self.assertGreater(routing.waited, 0)
            self.assertGreaterEqual(routing.gate_mass_kept, 0.96)
            self.assertLess(routing.gate_mass_kept, 1)


class LimitsTest(RouterTest):
    FLAGS = ("--max-queue", "2", "--max-sequences", "1",
             "--kv-cache-tokens", "256")

    def test_a_full_queue_answers_resource_exhausted(self):
        streams = [self.stub.Generate(request(max_tokens=200,
                                              ignore_eos=True))]
        next(streams[0])
        codes = []
        lock = threading.Lock()

        def ask():
            try:
                # Long enough to be there when the others come.
                self.generate(max_tokens=200, ignore_eos=True)
                code = grpc.StatusCode.OK
            except grpc.RpcError as failure:
                code = failure.code()
            with lock:
                codes.append(code)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertIn(grpc.StatusCode.RESOURCE_EXHAUSTED, codes)
        self.assertIn(grpc.StatusCode.OK, codes)
        list(streams[0])

    def test_numbers_out_of_range_are_refused_at_the_start(self):
        for flag, value in (("--max-queue", (1 << 63) - 1),
                            ("--threads", 1_000_000),
                            ("--kv-cache-tokens", 1 << 62)):
            with self.assertRaises(testing.StartError) as caught:
                testing.router(testing.DEMO_MODEL, ["127.0.0.1:1"], flag,
                               value)
            self.assertRegex(str(caught.exception),
                             rf"\Aexpertmesh-router: {flag} is \S+; it must "
                             r"be from \d+ to \d+\n\Z")

    def test_a_prompt_that_can_never_fit_is_refused(self):
        failure = self.error(lambda: self.generate("to be " * 400))
        self.assertEqual(failure.code(), grpc.StatusCode.INVALID_ARGUMENT)


class FaultTest(RouterTest):

    def test_a_killed_expert_service_fails_requests_and_comes_back(self):
        expected = token_ids(self.generate())
        first_pid = self.mesh.ready["experts"][0]["pid"]
        subprocess.run(["kill", "-9", str(first_pid)], check=True)
        testing.wait_until(
            lambda: self.mesh.ready["experts"][0]["pid"] != first_pid,
            what="the launcher to restart the service")

        def answers():
            try:
                return token_ids(self.generate())
            except grpc.RpcError as failure:
                self.assertEqual(failure.code(),
                                 grpc.StatusCode.UNAVAILABLE,
                                 failure.details())
                return None

        self.assertEqual(testing.wait_until(answers), expected)
        self.assertEqual(health(self.channel), 1)

    def test_drain_finishes_what_runs(self):
        mesh = testing.serve(testing.DEMO_MODEL, 1, "--drain-timeout", SECONDS)
        self.addCleanup(mesh.__exit__)
        with grpc.insecure_channel(mesh.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            stream = stub.Generate(request(max_tokens=150, ignore_eos=True))
            next(stream)
            mesh.process.send_signal(signal.SIGTERM)
            self.assertEqual(len(token_ids(stream)) + 1, 150)
        self.assertEqual(mesh.process.wait(SECONDS), 0)


class MetricsTest(RouterTest):
    NAMES = (
        "requests_total", "requests_running", "requests_waiting",
        "kv_cache_usage_ratio", "time_to_first_token_seconds",
        "inter_token_latency_seconds", "request_duration_seconds",
        "queue_duration_seconds", "prompt_tokens_total",
        "generated_tokens_total", "step_duration_seconds",
        "routed_rows_total", "overflow_rows_total",
        "layer_balancedness_ratio", "hot_expert_load_ratio",
        "hot_slot_load_ratio",
        "expert_rpc_duration_seconds", "expert_inflight_rows",
        "expert_endpoints", "endpoints_refused_total", "uncovered_experts",
        "prefix_cache_lookup_tokens_total", "prefix_cache_hit_tokens_total",
        "prefix_cache_evicted_pages_total", "prefix_cache_pages",
        "prefill_budget_tokens", "step_phase_seconds_total",
        "expert_sent_bytes_total", "expert_received_bytes_total")
    PHASES = ("schedule", "attention", "gate", "dispatch", "experts",
              "combine", "dense", "head", "sampling")

    def scrape(self):
        with urllib.request.urlopen(self.mesh.metrics_url,
                                    timeout=SECONDS) as page:
            return page.read().decode()

    def value(self, series):
        for line in self.scrape().splitlines():
            if line.startswith(series + " "):
                return float(line.split()[-1])
        self.fail(f"no series {series}")

    def test_phases_make_up_the_steps(self):
        def phases():
            return [self.value("expertmesh_router_step_phase_seconds_total"
                               f'{{phase="{phase}"}}')
                    for phase in self.PHASES]
        before = phases()
        began = time.monotonic()
        self.generate(max_tokens=50, ignore_eos=True)
        spent = [b - a for a, b in zip(before, phases())]
        for name, seconds in zip(self.PHASES, spent):
            # The demo model has neither dense layers nor shared experts.
            (self.assertEqual if name == "dense" else self.assertGreater)(
                seconds, 0, name)
        self.assertLess(sum(spent), time.monotonic() - began)
        steps = self.value("expertmesh_router_step_duration_seconds_sum")
        self.assertGreater(sum(phases()), steps * 0.9)

    def test_series_exist_from_the_start(self):
        text = self.scrape()
        for name in self.NAMES:
            self.assertIn(f"# TYPE expertmesh_router_{name} ", text)
        self.assertIn("expertmesh_build_info{", text)
        self.assertIn('expertmesh_router_routed_rows_total{outcome="dropped"}',
                      text)

    def test_promtool_accepts_them(self):
        done = subprocess.run(["promtool", "check", "metrics"],
                              input=self.scrape(), text=True,
                              capture_output=True)
        self.assertEqual((done.returncode, done.stdout + done.stderr),
                         (0, ""))

    def test_they_count(self):
        rows = 'expertmesh_router_routed_rows_total{outcome="primary"}'
        tokens = "expertmesh_router_generated_tokens_total"
        before = self.value(rows), self.value(tokens)
        last = self.generate(max_tokens=9)[-1]
        self.assertEqual(self.value(tokens) - before[1], 9)
        self.assertEqual(self.value(rows) - before[0], last.routing.primary)
        testing.wait_until(
            lambda: self.value("expertmesh_router_requests_running") == 0,
            SECONDS, "the gauge to fall")


if __name__ == "__main__":
    testing.main()
