"""Grafana's JSON, as little of it as the dashboards need.

Queries are written with `@` where the matchers of $job and $instance go:
`rate(expertmesh_router_requests_total{@, code="OK"}[$__rate_interval])`.
"""

MATCHERS = 'job=~"$job", instance=~"$instance"'
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # of Grafana's grid
HEIGHT = 8


def rate(counter, more=""):
    """Per second; `more` are matchers: rate("x_total", 'code="OK"')."""
    return f"rate({counter}{{@{more and ', ' + more}}}[$__rate_interval])"


def quantile(q, histogram, by=""):
    """Of all series of a histogram together, or by labels."""
    labels = f"le, {by}" if by else "le"
    return (f"histogram_quantile({q}, "
            f"sum by ({labels}) ({rate(histogram + '_bucket')}))")


def quantiles(histogram, *qs):
    """Targets with the quantiles of all series together."""
    return [(quantile(q, histogram), f"p{100 * q:g}") for q in qs]


def panel(title, description, unit, *targets, kind="timeseries", width=8,
          least=None, most=None, stacked=False):
    """A panel without its place. `targets`: (query, legend)."""
    defaults = {"unit": unit}
    if least is not None:
        defaults["min"] = least
    if most is not None:
        defaults["max"] = most
    out = {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [{"refId": chr(ord("A") + i), "datasource": DATASOURCE,
                     "expr": query.replace("@", MATCHERS),
                     "legendFormat": legend}
                    for i, (query, legend) in enumerate(targets)],
        "gridPos": {"w": width, "h": HEIGHT},
    }
    if kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "never"}
        if stacked:
            defaults["custom"]["stacking"] = {"mode": "normal"}
        out["options"] = {"legend": {"displayMode": "table",
                                     "placement": "bottom",
                                     "calcs": ["lastNotNull", "max"]},
                          "tooltip": {"mode": "multi", "sort": "desc"}}
    elif kind == "stat":
        out["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    elif kind == "status-history":
        # A row by series, coloured by value: green where all is even.
        defaults["color"] = {"mode": "continuous-RdYlGr"}
        out["options"] = {"showValue": "never",
                          "legend": {"showLegend": False}}
        out["maxDataPoints"] = 100
    return out


def _label_variable(name, query):
    return {
        "name": name, "label": name.title(), "type": "query",
        "datasource": DATASOURCE, "definition": query,
        "query": {"query": query, "refId": f"Prometheus-{name}"},
        "refresh": 2,  # as the time range changes
        "sort": 1, "multi": True, "includeAll": True, "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(rows):
    """Panels with their places and ids: each row from the left, a heading
    above it."""
    panels, y = [], 0
    for heading, row in rows:
        panels.append({"type": "row", "title": heading, "collapsed": False,
                       "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        y += 1
        x = 0
        for each in row:
            size = each["gridPos"]
            if x + size["w"] > WIDTH:
                x, y = 0, y + HEIGHT
            panels.append({**each, "gridPos": {"x": x, "y": y, **size}})
            x += size["w"]
        y += HEIGHT
    return [{"id": i + 1, **each} for i, each in enumerate(panels)]


def dashboard(name, title, description, rows):
    """`rows`: (heading, panels)."""
    return {
        "uid": f"expertmesh-{name}",
        "title": f"Expertmesh / {title}",
        "description": description,
        "tags": ["expertmesh"],
        "editable": False,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "title": "Expertmesh",
                   "tags": ["expertmesh"], "asDropdown": True,
                   "includeVars": True, "keepTime": True}],
        "templating": {"list": [
            {"name": "datasource", "label": "Data source",
             "type": "datasource", "query": "prometheus",
             "current": {}},
            _label_variable("job", "label_values(expertmesh_build_info, job)"),
            _label_variable(
                "instance",
                'label_values(expertmesh_build_info{job=~"$job"}, instance)'),
        ]},
        "panels": _placed(rows),
    }
