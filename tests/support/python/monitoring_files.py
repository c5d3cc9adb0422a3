"""The dashboards and rules of the chart, and what they ask Prometheus for."""

import dataclasses
import json
import pathlib
import re

CHART = pathlib.Path(__file__).parents[3] / "helm" / "expertmesh"

# What Grafana puts in, while it does not.
VARIABLES = {"$__rate_interval": "10s", "$job": ".+", "$instance": ".+"}

# A series as an expression names it, with its matchers.
_SELECTOR = re.compile(r"\b((?:expertmesh|process)[_:][\w:]*)(?:{([^}]*)})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(
    r"\b(?:by|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclasses.dataclass
class Query:
    where: str          # "pools / Demand" or "alerts / ExpertmeshNoRouter"
    expr: str           # as written
    legend: str = ""

    @property
    def runnable(self):
        """With Grafana's variables put in."""
        expr = self.expr
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        return expr

    @property
    def selectors(self):
        """(metric, {label: (operator, value)}) of each series it reads."""
        return [(name, {label: (operator, value) for label, operator, value
                        in _MATCHER.findall(matchers or "")})
                for name, matchers in _SELECTOR.findall(self.expr)]

    @property
    def labels(self):
        """Those it groups or joins by, and that its legend shows."""
        found = set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", self.legend))
        for names in _GROUPING.findall(self.expr):
            found |= {name.strip() for name in names.split(",") if name.strip()}
        return found


def dashboards():
    """Their JSON by name."""
    return {path.stem: json.loads(path.read_text())
            for path in sorted((CHART / "dashboards").glob("*.json"))}


def panels(dashboard):
    """Those that show something."""
    return [each for each in dashboard["panels"] if each["type"] != "row"]


def dashboard_queries():
    return [Query(f"{name} / {panel['title']}", target["expr"],
                  target["legendFormat"])
            for name, dashboard in dashboards().items()
            for panel in panels(dashboard) for target in panel["targets"]]


def rule_files():
    return sorted((CHART / "rules").glob("*.yaml"))


def rules():
    """Every rule, as its file has it."""
    import yaml  # not needed where only dashboards are
    return [rule for path in rule_files()
            for group in yaml.safe_load(path.read_text())["groups"]
            for rule in group["rules"]]


def rule_queries():
    return [Query(rule.get("alert") or rule["record"], rule["expr"],
                  " ".join(rule.get("annotations", {}).values()))
            for rule in rules()]
