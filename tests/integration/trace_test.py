"""Traces: from a client's traceparent to the spans of expert services."""

import json
import pathlib
import re
import tempfile
import unittest

import expertmesh_testing as et
import grpc
from expertmesh.v1 import generation_pb2, generation_pb2_grpc

MODEL = et.DEMO_MODEL
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{CLIENT_SPAN}-01"
SECONDS = 60


def value_of(value):
    (kind, content), = value.items()
    return int(content) if kind == "intValue" else content


class Span:
    def __init__(self, span, service):
        self.service = service
        self.name = span["name"]
        self.trace, self.id = span["traceId"], span["spanId"]
        self.parent = span.get("parentSpanId")
        self.links = [(link["traceId"], link["spanId"])
                      for link in span.get("links", [])]
        self.start = int(span["startTimeUnixNano"])
        self.end = int(span["endTimeUnixNano"])
        self.status = span["status"]
        self.attributes = {a["key"]: value_of(a["value"])
                           for a in span["attributes"]}


def read_spans(path):
    """Spans of a file, each line of which must be a whole request."""
    spans = []
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    for line in text.splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            attributes = {a["key"]: value_of(a["value"])
                          for a in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                assert scope["scope"]["name"] == "expertmesh"
                for span in scope["spans"]:
                    assert re.fullmatch("[0-9a-f]{32}", span["traceId"])
                    assert re.fullmatch("[0-9a-f]{16}", span["spanId"])
                    spans.append(Span(span, attributes["service.name"]))
    return spans


class Traces(unittest.TestCase):

    def start(self, *flags, router_file=True):
        folder = tempfile.TemporaryDirectory(prefix="expertmesh-test-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.experts = []
        for i, slots in enumerate(("0-7", "8-99")):
            self.experts.append(et.expert(
                MODEL, "--experts", slots if i == 0 else self.rest(slots),
                "--trace-file", self.folder / f"expert{i}"))
            self.addCleanup(self.experts[-1].__exit__)
        trace = ("--trace-file", self.folder / "router") if router_file else ()
        self.router = et.router(
            MODEL, [expert.address for expert in self.experts],
            "--log-format", "json", *trace, *flags)
        self.addCleanup(self.router.__exit__)
        channel = grpc.insecure_channel(self.router.address)
        self.addCleanup(channel.close)
        self.stub = generation_pb2_grpc.GenerationServiceStub(channel)

    @staticmethod
    def rest(slots):
        config = json.loads((MODEL / "config.json").read_text())
        count = config.get("num_local_experts") or config.get("num_experts")
        return slots.replace("99", str(count - 1))

    def generate(self, *metadata, text="ROMEO:", max_tokens=6, **fields):
        return list(self.stub.Generate(generation_pb2.GenerateRequest(
            text=text, max_tokens=max_tokens, temperature=0, ignore_eos=True,
            **fields), metadata=metadata, timeout=SECONDS))

    def stop(self):
        """Ends everything, so that files are complete."""
        self.router.stop()
        for expert in self.experts:
            expert.stop()
        path = self.folder / "router"
        self.ours = read_spans(path) if path.exists() else []
        self.theirs = [span for i in range(2)
                       for span in read_spans(self.folder / f"expert{i}")]

    def named(self, name):
        span, = [span for span in self.ours if span.name.endswith(name)]
        return span

    def test_spans_of_a_request(self):
        self.start()
        self.generate(("traceparent", SAMPLED), request_id="traced")
        self.stop()
        root = self.named("/Generate")
        self.assertEqual((root.trace, root.parent), (TRACE, CLIENT_SPAN))
        self.assertEqual(root.attributes["expertmesh.request_id"], "traced")
        self.assertEqual(root.attributes["expertmesh.generated_tokens"], 6)
        self.assertEqual(root.attributes["expertmesh.steps"], 6)
        self.assertEqual(root.attributes["expertmesh.outcome"], "length")
        self.assertEqual(root.attributes["expertmesh.model"], MODEL.name)
        phases = [self.named(name) for name in ("queue", "prefill", "decode")]
        for phase in phases:
            self.assertEqual((phase.trace, phase.parent), (TRACE, root.id))
            self.assertLessEqual(root.start, phase.start)
            self.assertLessEqual(phase.start, phase.end)
            self.assertLessEqual(phase.end, root.end)
        for before, after in zip(phases, phases[1:]):
            self.assertEqual(before.end, after.start)
        self.assertEqual(len(self.ours), 4)

        # Of both services, in both phases; five steps decode, by 4 layers each.
        self.assertTrue(all(span.trace == TRACE for span in self.theirs))
        by_parent = {phase.id: [span for span in self.theirs
                                if span.parent == phase.id]
                     for phase in phases[1:]}
        self.assertEqual(sum(map(len, by_parent.values())), len(self.theirs))
        layers = {span.attributes["expertmesh.layer"] for span in self.theirs}
        for phase, steps in zip(phases[1:], (1, 5)):
            spans = by_parent[phase.id]
            self.assertGreaterEqual(len(spans), steps * len(layers))
            # Their queue and compute times are rounded to what clocks give.
            slack = 1_000_000
            for span in spans:
                self.assertGreaterEqual(span.start, phase.start - slack)
                self.assertLessEqual(span.end, phase.end + slack)
        ids = [span.id for span in self.ours + self.theirs]
        self.assertEqual(len(ids), len(set(ids)))
        line, = [json.loads(line) for line in self.router.log().splitlines()
                 if "request finished" in line]
        self.assertEqual(line["trace_id"], TRACE)

    def test_rows_of_several_requests_are_linked(self):
        self.start()
        calls = []
        traces = [f"{i:032x}" for i in range(1, 9)]
        for trace in traces:
            calls.append(self.stub.Generate(
                generation_pb2.GenerateRequest(
                    text="JULIET", max_tokens=48, temperature=0,
                    ignore_eos=True),
                metadata=[("traceparent", f"00-{trace}-{CLIENT_SPAN}-01")],
                timeout=SECONDS))
        for call in calls:
            list(call)
        self.stop()
        self.assertEqual({span.trace for span in self.ours}, set(traces))
        linked = [span for span in self.theirs if span.links]
        self.assertTrue(linked)
        self.assertLessEqual(max(len(span.links) for span in linked), 3)
        ours = {(span.trace, span.id) for span in self.ours}
        for span in self.theirs:
            self.assertIn((span.trace, span.parent), ours)
            for link in span.links:
                self.assertIn(link, ours)

    def test_who_is_not_sampled_leaves_no_spans(self):
        self.start()
        self.generate(("traceparent", SAMPLED[:-1] + "0"))
        self.generate()
        for bad in ("", "nonsense", SAMPLED.upper(), SAMPLED + "-x",
                    "ff" + SAMPLED[2:], SAMPLED.replace(TRACE, "0" * 32)):
            self.generate(("traceparent", bad))
        # Two are none.
        self.generate(("traceparent", SAMPLED), ("traceparent", SAMPLED))
        self.stop()
        self.assertEqual(self.ours + self.theirs, [])
        ids = [json.loads(line)["trace_id"]
               for line in self.router.log().splitlines()
               if "request finished" in line]
        self.assertEqual(len(ids), 9)
        self.assertEqual(ids[0], TRACE)
        self.assertEqual(len(set(ids)), 9)
        self.assertTrue(all(re.fullmatch("[0-9a-f]{32}", i) for i in ids))

    def test_all_are_sampled_where_that_is_asked_for(self):
        self.start("--trace-sample", "1")
        self.generate()
        self.generate(("traceparent", SAMPLED[:-1] + "0"))
        self.stop()
        roots = [s for s in self.ours if s.name.endswith("/Generate")]
        self.assertEqual([root.parent for root in roots], [None, CLIENT_SPAN])
        self.assertEqual({span.trace for span in self.theirs},
                         {root.trace for root in roots})

    def test_refused_and_cancelled_requests_and_scores(self):
        self.start()
        with self.assertRaises(grpc.RpcError):
            self.generate(("traceparent", SAMPLED), text="")
        call = self.stub.Generate(
            generation_pb2.GenerateRequest(text="a", max_tokens=2000,
                                           ignore_eos=True),
            metadata=[("traceparent", SAMPLED)], timeout=SECONDS)
        next(iter(call))
        call.cancel()
        self.router.await_log("CANCELLED")
        self.stub.Score(generation_pb2.ScoreRequest(text="ROMEO: what"),
                        metadata=[("traceparent", SAMPLED)], timeout=SECONDS)
        self.stop()
        outcomes = [span.attributes["expertmesh.outcome"] for span in self.ours
                    if span.parent == CLIENT_SPAN]
        self.assertEqual(outcomes, ["refused", "cancelled", "length"])
        refused, cancelled, scored = [
            span for span in self.ours if span.parent == CLIENT_SPAN]
        self.assertEqual((refused.status["code"], cancelled.status["code"],
                          scored.status), (2, 2, {}))
        self.assertEqual({span.name for span in self.ours
                          if span.parent == scored.id}, {"queue", "prefill"})

    def test_a_router_without_a_file_hands_contexts_on(self):
        self.start(router_file=False)
        self.generate(("traceparent", SAMPLED))
        self.generate()
        self.stop()
        self.assertTrue(self.theirs)
        self.assertEqual({(span.trace, span.parent) for span in self.theirs},
                         {(TRACE, CLIENT_SPAN)})

    def test_a_file_that_cannot_be_is_named(self):
        for start in (lambda *f: et.expert(MODEL, *f),
                      lambda *f: et.router(MODEL, ["127.0.0.1:1"], *f)):
            with self.assertRaisesRegex(et.StartError, "--trace-file: cannot"):
                start("--trace-file", "/nowhere/at/all").__exit__()

    def test_every_json_log_line_is_json(self):
        self.start("--log-level", "debug")
        for request_id in ("plain", 'a"b\\c', "two\nlines", "ümläut\x01"):
            try:
                self.generate(request_id=request_id)
            except grpc.RpcError:
                pass
        self.stop()
        lines = self.router.log().splitlines()
        self.assertGreater(len(lines), 5)
        for line in lines:
            entry = json.loads(line)
            self.assertEqual(entry["service"], "router")
            self.assertIn("message", entry)

    def test_a_fault_at_the_start_is_a_log_line_too(self):
        for name, start in (
                ("router", lambda *f: et.router("/nowhere", ["h:1"], *f)),
                ("expert", lambda *f: et.expert("/nowhere", *f))):
            with self.assertRaises(et.StartError) as caught:
                start("--log-format", "json").__exit__()
            found = [json.loads(line)
                     for line in str(caught.exception).splitlines()
                     if line.startswith("{")]
            self.assertEqual((found[-1]["level"], found[-1]["service"]),
                             ("error", name))
            self.assertIn("/nowhere", found[-1]["message"])


if __name__ == "__main__":
    et.main()
