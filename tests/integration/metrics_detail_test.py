"""--metrics-expert-detail: what there is by layer and expert."""

import collections
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request

import expertmesh_testing as et

MODEL = et.DEMO_MODEL
MOST_SERIES = 2000
Metric = collections.namedtuple("Metric", "type labels")


def parse(text):
    """Metrics of an exposition by name, and how many series it has."""
    types, labels, series = {}, collections.defaultdict(set), 0
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            types[name] = kind
        elif line and not line.startswith("#"):
            series += 1
            name, inside = re.match(r"([^{ ]+)(?:\{(.*)\})? ", line).groups()
            if name not in types:  # of a histogram or summary
                name = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in types, line
            labels[name] |= set(re.findall(r'(\w+)="', inside or ""))
    metrics = {name: Metric(kind, frozenset(labels[name] - {"le", "quantile"}))
               for name, kind in types.items() if name in labels}
    return metrics, series


def scrape(service):
    with urllib.request.urlopen(service.metrics_url, timeout=60) as page:
        return page.read().decode()


def by_layer(metrics):
    return {name for name, metric in metrics.items()
            if metric.labels & {"layer", "expert", "rank"}}


class MetricsDetail(unittest.TestCase):

    def start(self, *flags):
        """A router that finds its service by a file, after some requests."""
        folder = tempfile.TemporaryDirectory(prefix="expertmesh-test-")
        self.addCleanup(folder.cleanup)
        self.expert = et.expert(MODEL, *flags)
        self.addCleanup(self.expert.__exit__)
        addresses = pathlib.Path(folder.name) / "addresses"
        addresses.write_text(self.expert.address + "\n")
        mesh = pathlib.Path(folder.name) / "mesh.json"
        config = json.loads((MODEL / "config.json").read_text())
        experts = config.get("num_local_experts") or config["num_experts"]
        mesh.write_text(json.dumps({"pools": [{
            "name": "base", "fixed": {"slots": f"0-{experts - 1}"},
            "target": f"file://{addresses}"}]}))
        self.router = et.Service([
            et.BIN / "expertmesh-router", "--model", MODEL,
            "--mesh-config", mesh, "--listen", "127.0.0.1:0",
            "--metrics-listen", "127.0.0.1:0", *flags])
        self.addCleanup(self.router.__exit__)
        et.cli("generate", "--server", self.router.address,
               "--prompt", "ROMEO:", "--max-tokens", "8")
        et.cli("score", "--server", self.router.address, "--text", "JULIET")
        # Twice: what the endpoint says of itself comes after the first.
        for service in (self.router, self.expert):
            scrape(service)
        return {"router": scrape(self.router), "expert": scrape(self.expert)}

    def test_default_series_are_few(self):
        for service, text in self.start().items():
            metrics, series = parse(text)
            print(f"{service}: {series} series")
            self.assertLessEqual(series, MOST_SERIES, service)
            # Eight of them.
            self.assertLessEqual({name for name, metric in metrics.items()
                                  if "expert" in metric.labels},
                                 {"expertmesh_router_hot_slot_load_ratio"})
        self.assertIn("expertmesh_router_layer_balancedness_ratio",
                      by_layer(parse(scrape(self.router))[0]))

    def test_off_leaves_out_layers_and_experts(self):
        for text in self.start("--metrics-expert-detail", "off").values():
            self.assertEqual(set(), by_layer(parse(text)[0]))

    def test_full_counts_the_rows_of_every_expert(self):
        self.start("--metrics-expert-detail", "full")
        for service, name in (
                (self.router, "expertmesh_router_expert_rows_total"),
                (self.expert, "expertmesh_expert_slot_rows_total")):
            rows = [value for series, value in service.metrics().items()
                    if series.startswith(name + "{")]
            service.await_log(
                rf"a series per expert.*series={len(rows)}")
            self.assertGreater(len(rows), 16)
            totals = sum(
                value for series, value in service.metrics().items()
                if series.startswith(("expertmesh_router_routed_rows_total",
                                      "expertmesh_expert_rows_total")))
            self.assertEqual(sum(rows), totals)
            self.assertGreater(sum(rows), 0)

    def test_an_unknown_detail_is_refused(self):
        for binary in ("expertmesh-router", "expertmesh-expert"):
            ended = subprocess.run(
                [et.BIN / binary, "--model", MODEL, "--experts-at", "h:1"]
                [:3 if binary.endswith("expert") else 5] +
                ["--metrics-expert-detail", "some"],
                capture_output=True, text=True, timeout=60)
            self.assertEqual(ended.returncode, 2, ended.stderr)
            self.assertIn("must be off, topk or full", ended.stderr)

    @unittest.skipUnless(shutil.which("promtool"),
                         "promtool is missing (Debian package prometheus)")
    def test_promtool_has_nothing_to_say_of_all(self):
        for service, text in self.start(
                "--metrics-expert-detail", "full").items():
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=text,
                capture_output=True, text=True, timeout=60)
            self.assertEqual((checked.returncode, checked.stdout,
                              checked.stderr), (0, "", ""), service)


if __name__ == "__main__":
    et.main()
