"""Dashboards, rules and the runbook of the chart, as files."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import yaml

import monitoring_files as mf

ROOT = mf.CHART.parent.parent
TESTS = ROOT / "tests" / "monitoring"
GENERATOR = ROOT / "helm" / "dashboards" / "generate.py"
# Those of Grafana's units (categories.ts of grafana-data) that we use.
UNITS = {"short", "percentunit", "bytes", "Bps", "celsius", "s", "cps", "ops",
         "reqps"}
# Functions that a counter must be in, as a range of $__rate_interval.
RATES = ("rate", "irate", "increase")


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True,
                          text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


class DashboardsTest(unittest.TestCase):
    """The rules of Grafana's dashboard-linter, and some of ours."""

    @classmethod
    def setUpClass(cls):
        cls.dashboards = mf.dashboards()

    def panels(self):
        return [panel for dashboard in self.dashboards.values()
                for panel in mf.panels(dashboard)]

    def test_there_are_all(self):
        self.assertEqual(set(self.dashboards), {
            "service", "routing", "balance", "pools", "devices"})

    def test_are_what_the_generator_writes(self):
        self.assertEqual(run(sys.executable, "-B", GENERATOR, "--check"),
                         (0, ""))

    def test_the_generator_sees_a_difference(self):
        with tempfile.TemporaryDirectory() as copy:
            helm = pathlib.Path(copy) / "helm"
            shutil.copytree(GENERATOR.parent, helm / "dashboards")
            shutil.copytree(mf.CHART / "dashboards",
                            helm / "expertmesh" / "dashboards")
            extra = helm / "expertmesh" / "dashboards" / "more.json"
            extra.write_text("{}")
            code, said = run(sys.executable, "-B",
                             helm / "dashboards" / "generate.py", "--check")
            self.assertEqual(code, 1)
            self.assertRegex(said, r"\Athe dashboards are not .*\n\Z")

    def test_dashboards(self):
        uids = [each["uid"] for each in self.dashboards.values()]
        self.assertEqual(len(set(uids)), len(uids))
        for name, dashboard in self.dashboards.items():
            with self.subTest(name):
                self.assertTrue(dashboard["title"])
                self.assertTrue(dashboard["description"])
                # uneditable-dashboard-rule
                self.assertIs(dashboard["editable"], False)
                ids = [panel["id"] for panel in dashboard["panels"]]
                self.assertEqual(len(set(ids)), len(ids))

    def test_templates(self):
        """template-datasource-, -job-, -instance-, -label-promql-,
        -on-time-change-reload-rule"""
        for name, dashboard in self.dashboards.items():
            with self.subTest(name):
                templates = {each["name"]: each for each in
                             dashboard["templating"]["list"]}
                self.assertEqual(list(templates),
                                 ["datasource", "job", "instance"])
                source = templates.pop("datasource")
                self.assertEqual((source["type"], source["query"]),
                                 ("datasource", "prometheus"))
                self.assertEqual(source["label"], "Data source")
                for label, template in templates.items():
                    self.assertEqual(template["type"], "query")
                    self.assertEqual(template["label"], label.title())
                    self.assertEqual(template["datasource"]["uid"],
                                     "${datasource}")
                    self.assertIs(template["multi"], True)
                    self.assertEqual(template["allValue"], ".+")
                    self.assertEqual(template["refresh"], 2)
                    self.assertRegex(
                        template["query"]["query"],
                        rf"\Alabel_values\(expertmesh_build_info.*, {label}\)")

    def test_panels_do_not_overlap(self):
        for name, dashboard in self.dashboards.items():
            taken = set()
            for panel in dashboard["panels"]:
                at = panel["gridPos"]
                self.assertLessEqual(at["x"] + at["w"], 24)
                cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                         for y in range(at["y"], at["y"] + at["h"])}
                self.assertFalse(taken & cells, (name, panel["title"]))
                taken |= cells

    def test_panels(self):
        """panel-datasource-, -title-description-, -units-, -no-targets-rule"""
        for panel in self.panels():
            with self.subTest(panel.get("title")):
                self.assertEqual(panel["datasource"]["uid"], "${datasource}")
                self.assertTrue(panel["title"])
                self.assertTrue(panel["description"].endswith("."))
                self.assertIn(panel["fieldConfig"]["defaults"]["unit"], UNITS)
                self.assertTrue(panel["targets"])
                for target in panel["targets"]:
                    self.assertEqual(target["datasource"]["uid"],
                                     "${datasource}")
                    self.assertTrue(target["legendFormat"])

    def test_series_match_job_and_instance(self):
        """target-job-, target-instance-rule"""
        for query in mf.dashboard_queries():
            with self.subTest(query.where):
                self.assertTrue(query.selectors)
                for metric, matchers in query.selectors:
                    self.assertEqual(matchers.get("job"), ("=~", "$job"))
                    self.assertEqual(matchers.get("instance"),
                                     ("=~", "$instance"))

    def test_rates(self):
        """target-rate-interval-, target-counter-agg-, target-histogram-rule"""
        for query in mf.dashboard_queries():
            expr = query.expr
            for interval in re.findall(r"\[([^\]]*)\]", expr):
                self.assertEqual(interval, "$__rate_interval")
            for match in re.finditer(
                    r"(\w+)\(\s*(\w+)({[^}]*})?\[\$__rate_interval\]", expr):
                self.assertIn(match[1], RATES)
            for match in re.finditer(
                    r"\b\w+_(total|bucket|sum|count)\b(?={)", expr):
                before = expr[:match.start()].rsplit("(", 1)[0].split()[-1]
                self.assertTrue(before.rsplit("(", 1)[-1] in RATES, expr)
            if "_bucket{" in expr:
                self.assertTrue("histogram_quantile(" in expr or
                                'le="' in expr, expr)

    def test_promql(self):
        """target-promql-rule, by promtool."""
        rules = [{"record": f"query:{i}", "expr": query.runnable}
                 for i, query in enumerate(mf.dashboard_queries())]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"groups": [{"name": "all", "rules": rules}]}, file)
            file.flush()
            code, said = run("promtool", "check", "rules", file.name)
        self.assertEqual(code, 0, said)
        self.assertIn(f"{len(rules)} rules found", said)


class RulesTest(unittest.TestCase):

    def test_are_valid(self):
        code, said = run("promtool", "check", "rules", *mf.rule_files())
        self.assertEqual(code, 0, said)

    def test_fire_when_they_should(self):
        for file in TESTS.glob("*.yaml"):
            code, said = run("promtool", "test", "rules", file)
            self.assertEqual(code, 0, said)

    def test_each_alert_is_tested_both_ways(self):
        fires, quiet = set(), set()
        for file in TESTS.glob("*.yaml"):
            for test in yaml.safe_load(file.read_text())["tests"]:
                for check in test.get("alert_rule_test", []):
                    name = check["alertname"]
                    if not check["exp_alerts"]:
                        quiet.add(name)
                    for alert in check["exp_alerts"]:
                        fires.add((name, alert["exp_labels"]["severity"]))
        alerts = {(rule["alert"], rule["labels"]["severity"])
                  for rule in mf.rules() if "alert" in rule}
        self.assertEqual(fires, alerts)
        self.assertEqual(quiet, {name for name, _ in alerts})

    def test_each_alert_says_what_to_do(self):
        runbook = (mf.CHART / "RUNBOOK.md").read_text()
        sections = {}
        for text in runbook.split("\n## ")[1:]:
            title, _, body = text.partition("\n")
            sections[title.lower()] = body
        linked = set()
        for rule in mf.rules():
            if "alert" not in rule:
                continue
            with self.subTest(rule["alert"]):
                self.assertIn(rule["labels"]["severity"],
                              ("critical", "warning"))
                notes = rule["annotations"]
                self.assertTrue(notes["summary"])
                self.assertTrue(notes["description"].endswith("."))
                file, _, anchor = notes["runbook_url"].partition("#")
                self.assertEqual((file, anchor),
                                 ("RUNBOOK.md", rule["alert"].lower()))
                body = sections[anchor]
                self.assertIn("**Means.**", body)
                self.assertRegex(body, r"\*\*Look at(\.|, do\.)\*\*")
                self.assertRegex(body, r"(\*\*Do\.|, do\.)\*\*")
                linked.add(anchor)
        self.assertEqual(linked, set(sections))
        for anchor in re.findall(r"\(#(\w+)\)", runbook):
            self.assertIn(anchor, sections)

    def test_the_runbook_names_panels_that_there_are(self):
        titles = {panel["title"] for dashboard in mf.dashboards().values()
                  for panel in mf.panels(dashboard)}
        titles |= {dashboard["title"].partition(" / ")[2] for dashboard in
                   mf.dashboards().values()}
        text = (mf.CHART / "RUNBOOK.md").read_text()
        # Dashboards → panels are in italics with a capital.
        for named in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", text):
            for part in named.split(" → "):
                if part == "Latency":  # a row of panels
                    continue
                self.assertIn(part, titles)


if __name__ == "__main__":
    unittest.main(verbosity=2)
