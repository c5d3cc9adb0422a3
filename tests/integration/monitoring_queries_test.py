"""What dashboards, rules and scalers ask for is what real services export.

Two routers and four expert services, one of them on an emulated device, serve
requests; a Prometheus scrapes them, and is asked every query of the chart.
"""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import expertmesh_testing as et
import monitoring_files as mf
import prometheus
from expertmesh.admin.v1 import admin_pb2, admin_pb2_grpc


MODEL = et.DEMO_MODEL
SECONDS = 120
DEVICE_EXPERT = et.BIN / "expertmesh-expert-emulated"
# What is not exported here, and why.
NVML = "only where the driver's NVML is"
TLS = "only with certificates"
ABSENT = {
    "expertmesh_expert_device_utilization_ratio": NVML,
    "expertmesh_expert_device_memory_used_bytes": NVML,
    "expertmesh_expert_device_memory_total_bytes": NVML,
    "expertmesh_expert_device_temperature_celsius": NVML,
    "expertmesh_router_certificate_expiry_timestamp_seconds": TLS,
    "expertmesh_expert_certificate_expiry_timestamp_seconds": TLS,
}
if not DEVICE_EXPERT.exists():
    ABSENT.update({f"expertmesh_expert_device_{name}": "only on a device"
                   for name in ("kernel_duration_seconds",
                                "copy_duration_seconds", "batch_rows",
                                "graph_launches_total")})
# Labels that Prometheus adds, or that an expression makes.
ADDED = {"job", "instance", "namespace", "le", "checksum", "severity",
         "app_kubernetes_io_component"}
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def family(series):
    return SUFFIXES.sub("", series)


class Mesh:
    """Two routers, one with control, over a fixed and two managed pools."""

    def __init__(self, folder):
        self.services = []
        try:
            self._start(pathlib.Path(folder))
        except BaseException:
            self.stop()
            raise

    def _add(self, *command):
        service = et.Service([*command, "--listen", "127.0.0.1:0",
                              "--metrics-listen", "127.0.0.1:0"])
        self.services.append(service)
        return service

    def _start(self, folder):
        expert = (et.BIN / "expertmesh-expert", "--model", MODEL,
                  "--device", "cpu", "--threads", 1)
        empty = ("--experts", "none", "--memory-budget", "4MiB")
        base = [self._add(*expert), self._add(*expert)]
        hot = [self._add(*expert, *empty)]
        gpu = []
        if DEVICE_EXPERT.exists():
            gpu.append(self._add(DEVICE_EXPERT, "--model", MODEL, "--device",
                                 "cuda", *empty))
        self.experts = base + hot + gpu
        addresses = folder / "base"
        addresses.write_text("".join(e.address + "\n" for e in base))
        pools = [{"name": "base", "target": f"file://{addresses}",
                  "fixed": {"slots": "0-15"}},
                 {"name": "hot", "target": hot[0].address, "managed": {},
                  "maxReplicas": 3}]
        if gpu:
            pools.append({"name": "gpu", "target": gpu[0].address,
                          "managed": {}, "maxReplicas": 2})
        mesh = folder / "mesh.json"
        mesh.write_text(json.dumps({"pools": pools}))
        # Overflow is made to happen, and may cost what it likes.
        router = (et.BIN / "expertmesh-router", "--model", MODEL,
                  "--mesh-config", mesh, "--mix-numerics", "--threads", 1,
                  "--capacity-factor", 1, "--min-capacity", 2,
                  "--overflow-policy", "next_best",
                  "--max-lost-gate-mass", 1)
        self.routers = [
            self._add(*router, "--control", "--load-window", 5,
                      "--scale-window", 5, "--scaler-listen", "127.0.0.1:0"),
            self._add(*router, "--no-control")]

    def jobs(self):
        return {"router": [r.metrics_url for r in self.routers],
                "expert": [e.metrics_url for e in self.experts]}

    def rebalance(self):
        """Gives the managed services copies of what is hot."""
        admin = admin_pb2_grpc.AdminServiceStub(
            self.routers[0].admin_channel())
        et.wait_until(lambda: any(
            rows for layer in admin.GetExpertLoad(
                admin_pb2.GetExpertLoadRequest(),
                timeout=SECONDS).mesh_layers for rows in layer.rows),
            what="the services' counters")
        admin.Rebalance(admin_pb2.RebalanceRequest(), timeout=SECONDS)

    def stop(self):
        # Routers first.
        for service in reversed(self.services):
            service.__exit__()


@unittest.skipUnless(prometheus.is_installed(), prometheus.INSTALL)
class QueriesTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.mesh = Mesh(folder.name)
        cls.addClassCleanup(cls.mesh.stop)
        cls.prometheus = prometheus.Prometheus(cls.mesh.jobs(),
                                               mf.rule_files())
        cls.addClassCleanup(cls.prometheus.__exit__)
        for router in cls.mesh.routers:
            cls.load(router)
        cls.mesh.rebalance()
        cls.exported = cls.read_exported()

    @classmethod
    def load(cls, router):
        """Requests until the end."""
        bench = subprocess.Popen(
            [et.BIN / "expertmesh", "bench", "--at", router.address,
             "--concurrency", "4", "--duration", "600", "--warmup", "0",
             "--shared-prefix-tokens", "32", "--prompt-tokens", "16",
             "--output-tokens", "16"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def stop():
            bench.terminate()
            bench.wait()
        cls.addClassCleanup(stop)

    @classmethod
    def read_exported(cls):
        """Labels by the name of each series, of all services."""
        exported = {}
        for service in cls.mesh.services:
            for series in service.metrics():
                name, _, labels = series.partition("{")
                exported.setdefault(name, set()).update(
                    re.findall(r'(\w+)="', labels))
        return exported

    def test_metrics_and_labels_are_exported(self):
        recorded = {rule["record"] for rule in mf.rules() if "record" in rule}
        for query in mf.dashboard_queries() + mf.rule_queries():
            with self.subTest(query.where):
                known = set(ADDED)
                absent = False
                for metric, matchers in query.selectors:
                    if metric in recorded:
                        # Kept by the rule that records it, which is here too.
                        known |= self.labels_of_recorded(metric)
                        continue
                    if family(metric) in ABSENT:
                        absent = True
                        continue
                    self.assertIn(metric, self.exported)
                    known |= self.exported[metric]
                    self.assertLessEqual(
                        set(matchers), self.exported[metric] | ADDED)
                if not absent:
                    self.assertLessEqual(query.labels, known)

    def labels_of_recorded(self, record):
        (query,) = [q for q in mf.rule_queries() if q.where == record]
        labels = set(query.labels)
        for metric, _ in query.selectors:
            labels |= self.exported.get(
                metric, {"use"} if family(metric) in ABSENT else set())
        return labels

    def test_names_in_the_chart_are_exported(self):
        """In values, templates, examples and prose: what autoscalers ask for,
        whichever way."""
        known = set(self.exported) | {family(name) for name in self.exported}
        for path in mf.CHART.rglob("*"):
            if path.suffix not in (".yaml", ".yml", ".md", ".tpl", ".txt"):
                continue
            for name in re.findall(r"\bexpertmesh_(?:router|expert)_\w+",
                                   path.read_text()):
                with self.subTest(f"{path.name}: {name}"):
                    self.assertIn(name, known | set(ABSENT))

    def test_what_is_absent_is_documented(self):
        text = "".join((et.SOURCE / folder / "README.md").read_text()
                       for folder in ("router_service", "expert_service"))
        for name, reason in ABSENT.items():
            if reason == TLS and "certificate_expiry" not in text:
                continue  # no certificates yet
            with self.subTest(name):
                self.assertNotIn(name, self.exported)
                short = name.removeprefix("expertmesh_expert_")
                self.assertTrue(name in text or f"`{short}" in text, reason)

    def test_every_query_returns_data(self):
        def lacking():
            self.lacking = [
                (query.where, query.expr) for query in queries
                if not self.prometheus.query(query.runnable)]
            return not self.lacking
        queries = [query for query in mf.dashboard_queries()
                   if not any(family(metric) in ABSENT
                              for metric, _ in query.selectors)]
        try:
            et.wait_until(lacking, 120, "data")
        except TimeoutError:
            self.fail(f"no data: {self.lacking}")

    def test_every_recording_rule_records(self):
        for rule in mf.rules():
            if "record" not in rule or "certificate" in rule["record"]:
                continue
            with self.subTest(rule["record"]):
                et.wait_until(lambda: self.prometheus.query(rule["record"]),
                              60, rule["record"])

    def test_rules_evaluate_and_what_is_well_is_quiet(self):
        et.wait_until(lambda: self.states(), 60, "evaluations")
        for name, (health, state, error) in self.states().items():
            with self.subTest(name):
                self.assertEqual((health, error), ("ok", ""))
                # Four seconds' worth of overflow is not ten minutes' worth.
                self.assertNotEqual(state, "firing")

    def states(self):
        """Of each rule; empty while one was not evaluated."""
        rules = [rule for group in self.prometheus.get("rules")["groups"]
                 for rule in group["rules"]]
        if any(rule["health"] == "unknown" for rule in rules):
            return {}
        return {(rule["name"], rule.get("labels", {}).get("severity")):
                (rule["health"], rule.get("state"), rule.get("lastError", ""))
                for rule in rules}

    def test_values_make_sense(self):
        def one(expr):
            ((_, value),) = self.prometheus.query(expr)
            return value
        wait = lambda condition, what: et.wait_until(condition, 60, what)
        kept = "sum(expertmesh_router_gate_mass_kept_total)"
        chosen = "sum(expertmesh_router_gate_mass_chosen_total)"
        # Rerouted rows lose some of it.
        wait(lambda: 0 < one(kept) < one(chosen), "gate mass lost")
        wait(lambda: one("min(expertmesh_router_expert_credit_rows"
                         '{pool="base"})') > 0, "credits")
        # Both routers see the same mesh, and what control did to it.
        wait(lambda: one('count(count_values("c", expertmesh_router_placement_'
                         'checksum))') == 1, "one placement")
        self.assertEqual(one("min(expertmesh_router_placement_copies)"),
                         one("sum(expertmesh_expert_loaded_slots)"))
        self.assertGreaterEqual(
            one('sum(expertmesh_router_placement_changes_total'
                '{outcome="done"})'), 1)
        self.assertEqual(
            one('max(expertmesh_router_pool_max_replicas{pool="hot"})'), 3)
        self.assertEqual(
            one("max(expertmesh_router_requests_waiting_limit)"), 256)
        self.assertEqual(
            one("max(expertmesh_expert_queue_limit_rows)"), 16384)


if __name__ == "__main__":
    et.main()
