"""Write deploy/grafana/tensorferry.json from deploy/grafana/panels.yml: `python -m tools.dashboard`.

Change the panels, not the dashboard: a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

__all__ = ["PATH", "text"]

_GRAFANA: Final = Path(__file__).resolve().parents[1] / "deploy" / "grafana"
PATH: Final = _GRAFANA / "tensorferry.json"

#: The words of panels.yml, and what they stand for.
_SERVERS: Final = 'job=~"$job", instance=~"$instance"'
_WORDS: Final = {
    "SERVERS": _SERVERS,
    "MODELS": _SERVERS + ', model=~"$model", version=~"$version"',
    "RULES": 'job=~"$job", model=~"$model"',
    "RATE": "$__rate_interval",
}

_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH: Final = 24

#: A panel of panels.yml, or of the dashboard.
_Panel = dict[str, Any]


def text() -> str:
    """Return the dashboard as a file to import into Grafana 10 or later."""
    rows = yaml.safe_load((_GRAFANA / "panels.yml").read_text(encoding="utf-8"))
    dashboard = {
        "title": "Tensorferry",
        "uid": "tensorferry",
        "description": "What Tensorferry servers do, in the order of the questions of who is on call.",
        "tags": ["tensorferry", "inference"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_annotation()]},
        "templating": {"list": _variables()},
        "links": [],
        "panels": _placed(rows),
    }
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def _annotation() -> dict[str, Any]:
    return {
        "name": "Versions loaded",
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": 'changes(tensorferry_model_loads_total{job=~"$job", model=~"$model"}[1m]) > 0',
        "titleFormat": "{{model}} version {{version}} loaded",
        "step": "60s",
    }


def _variables() -> list[dict[str, Any]]:
    of_models = f"nv_inference_count{{{_SERVERS}}}"
    of_versions = f'nv_inference_count{{{_SERVERS}, model=~"$model"}}'
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _variable("job", "Job", "label_values(tensorferry_info, job)"),
        _variable("instance", "Server", 'label_values(tensorferry_info{job=~"$job"}, instance)'),
        _variable("model", "Model", f"label_values({of_models}, model)"),
        _variable("version", "Version", f"label_values({of_versions}, version)"),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,  # when the time range changes: versions come and go
        "sort": 3,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(rows: Sequence[Mapping[str, Any]]) -> list[_Panel]:
    """Give each panel its place: from left to right, and a new line where the width is used up."""
    found: list[_Panel] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        found.append({"type": "row", "title": row["row"], "collapsed": False, "panels": [], "gridPos": place})
        y, x, line = y + 1, 0, 0
        for panel in row["panels"]:
            is_stat = panel.get("kind") == "stat"
            width, height = panel.get("width", 4 if is_stat else 8), 4 if is_stat else 8
            if x + width > _WIDTH:
                y, x, line = y + line, 0, 0
            found.append(_panel(panel) | {"gridPos": {"x": x, "y": y, "w": width, "h": height}})
            x, line = x + width, max(line, height)
        y += line
    return [{"id": number} | panel for number, panel in enumerate(found, 1)]


def _panel(panel: _Panel) -> _Panel:
    kind = panel.get("kind", "timeseries")
    options = _OPTIONS[kind]
    if kind == "heatmap":
        options = options | {"yAxis": {"unit": panel.get("unit", "short"), "axisPlacement": "left"}}
    made = {
        "type": kind,
        "title": panel["title"],
        "description": panel["description"],
        "datasource": _DATASOURCE,
        "targets": [_target(kind, index, query) for index, query in enumerate(panel["queries"])],
        "fieldConfig": {"defaults": _field(kind, panel), "overrides": _overrides(panel)},
        "options": options,
    }
    return made | ({"transformations": _TABLE} if kind == "table" else {})


def _target(kind: str, index: int, query: Mapping[str, str]) -> dict[str, Any]:
    expression = query["expr"]
    for word, meaning in _WORDS.items():
        expression = expression.replace(word, meaning)
    target: dict[str, Any] = {
        "refId": chr(ord("A") + index),
        "datasource": _DATASOURCE,
        "expr": expression,
        "legendFormat": query.get("legend", "__auto"),
    }
    if kind == "heatmap":
        target["format"] = "heatmap"
    elif kind == "table":
        target |= {"format": "table", "instant": True, "range": False}
    elif kind == "stat":
        target |= {"instant": True, "range": False}
    return target


def _field(kind: str, panel: _Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.get("unit", "short"), "noValue": "none"}
    if kind == "heatmap":
        field["unit"] = "short"  # of a cell, which counts
    if "decimals" in panel:
        field["decimals"] = panel["decimals"]
    steps = panel.get("steps", [])
    if kind == "timeseries":
        field["min"] = 0
        field["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.get("stacked") else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.get("stacked") else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if steps else "off"},
        }
    colours = ("red", "green", "green") if panel.get("low") else ("green", "orange", "red")
    levels: list[dict[str, Any]] = [{"color": colours[0], "value": None}]
    levels += [{"color": colour, "value": value} for colour, value in zip(colours[1:], steps, strict=False)]
    field["thresholds"] = {"mode": "absolute", "steps": levels}
    return field


def _overrides(panel: _Panel) -> list[dict[str, Any]]:
    """Draw the objective as what it is, a line that isn't to be crossed."""
    if not any(query.get("legend", "").endswith("objective") for query in panel["queries"]):
        return []
    look = {
        "custom.lineStyle": {"fill": "dash", "dash": [8, 6]},
        "custom.lineWidth": 2,
        "custom.fillOpacity": 0,
    }
    return [
        {
            "matcher": {"id": "byRegexp", "options": ".*objective$"},
            "properties": [{"id": name, "value": value} for name, value in look.items()],
        }
    ]


_OPTIONS: Final[Mapping[str, dict[str, Any]]] = {
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "none",
        "textMode": "auto",
    },
    "timeseries": {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
        "cellGap": 1,
        "legend": {"show": True},
        "tooltip": {"show": True, "yHistogram": True},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}

_TABLE: Final = [
    {
        "id": "organize",
        "options": {"excludeByName": {"Time": True, "__name__": True, "job": True, "Value": True}},
    }
]


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
