"""The READMEs' tables of metrics against what running services export."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest
import urllib.request

import expertmesh_testing as et

MAX_SERIES = 2000
# Of the router, at most; one of its own for each layer and expert service.
LAYERS, SERVICES = 64, 32


def table(folder):
    """Its README's metrics: {name: (type, labels, whether always there)}."""
    text = (et.SOURCE / folder / "README.md").read_text()
    begin = text.index("\n## Metrics\n")
    text = text[begin:text.index("\n## ", begin + 1)]
    rows = {}
    for name, kind, labels, _, meaning in re.findall(
            r"^\| `(\w+)` \| (\w+) \| ([\w, ]*)\| ([^|]*)\| (.*) \|$", text,
            re.MULTILINE):
        rows[name] = (kind, frozenset(labels.replace(",", " ").split()),
                      "; only " not in meaning)
    return rows


def exported(url):
    """{name: (type, labels)}, and every series, of what is ours."""
    with urllib.request.urlopen(url, timeout=et.START_SECONDS) as page:
        text = page.read().decode()
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    found, series = {}, []
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text,
                                   re.MULTILINE):
        series.append((name, labels))
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        family = family if types.get(family) == "histogram" else name
        if not family.startswith("expertmesh_"):
            continue
        found.setdefault(family, (types[family], set()))[1].update(
            set(re.findall(r'(\w+)="', labels)) - {"le"})
    return found, series


class MetricsTablesTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.mesh = pathlib.Path(folder.name) / "mesh.json"
        cls.experts = [et.expert(et.DEMO_MODEL, "--experts", part)
                       for part in ("0-7", "8-15")]
        cls.mesh.write_text(json.dumps({"pools": [
            {"name": name, "target": service.address,
             "fixed": {"slots": slots}, "maxReplicas": 2}
            for name, service, slots in zip(
                "ab", cls.experts, ("0-7", "8-15"))]}))
        cls.router = et.Service(
            [et.BIN / "expertmesh-router", "--model", et.DEMO_MODEL,
             "--mesh-config", cls.mesh, "--control", "--listen",
             "127.0.0.1:0"])
        for service in (*cls.experts, cls.router):
            cls.addClassCleanup(service.__exit__, None, None, None)
        et.cli("generate", "--server", cls.router.address, "--prompt", "To be",
               "--max-tokens", 4)

    def check(self, folder, url, conditional=()):
        """`conditional` rows are there too."""
        rows = table(folder)
        found, _ = exported(url)
        self.assertEqual(
            {(name, kind, *sorted(labels))
             for name, (kind, labels) in found.items()},
            {(name, kind, *sorted(labels))
             for name, (kind, labels, always) in rows.items()
             if always or name in conditional})

    def test_routers(self):
        self.check("router_service", self.router.metrics_url,
                   ("expertmesh_router_pool_max_replicas",))

    def test_expert_services(self):
        self.check("expert_service", self.experts[0].metrics_url)

    def test_promtool_accepts_all(self):
        for service in (self.router, *self.experts):
            with urllib.request.urlopen(service.metrics_url) as page:
                ours = b"".join(line for line in page
                                if b"exposer_" not in line)
            done = subprocess.run(["promtool", "check", "metrics"], input=ours,
                                  capture_output=True)
            self.assertEqual((done.returncode, done.stdout + done.stderr),
                             (0, b""))

    def test_series_are_bounded(self):
        _, series = exported(self.experts[0].metrics_url)
        self.assertLess(len(series), 200)
        _, series = exported(self.router.metrics_url)
        # Eight hot slots are eight whatever the model.
        by_layer = sum('layer="' in labels and "hot_slot" not in name
                       for name, labels in series)
        by_service = sum('endpoint="' in labels for _, labels in series)
        rest = len(series) - by_layer - by_service
        self.assertLess(
            rest + by_layer // 4 * LAYERS + by_service // 2 * SERVICES,
            MAX_SERIES)


if __name__ == "__main__":
    et.main()
