"""Dashboard, rules and their page fit each other. What Prometheus says of them: tests/integration."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import yaml
from tools import dashboard

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
ANNOTATIONS = {"summary", "description", "runbook"}


def panels() -> list[dict[str, Any]]:
    return json.loads(dashboard.PATH.read_text(encoding="utf-8"))["panels"]


def drawn() -> list[dict[str, Any]]:
    return [panel for panel in panels() if panel["type"] != "row"]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def section(anchor: str) -> str:
    """The text under a heading of the page, by its anchor."""
    for found in re.finditer(r"^#+ (.+)\n((?:(?!#).*\n)*)", PAGE, re.MULTILINE):
        if re.sub(r"[^\w-]", "", found[1].lower().replace(" ", "-")) == anchor:
            return found[2]
    return ""


def test_the_dashboard_is_fresh():
    assert dashboard.PATH.read_text(encoding="utf-8") == dashboard.text(), "run python -m tools.dashboard"


def test_every_panel_says_what_it_shows():
    for panel in drawn():
        assert panel["description"], panel["title"]
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"].strip(), panel["title"]


def test_several_lines_of_a_panel_have_different_legends():
    for panel in drawn():
        legends = [target["legendFormat"] for target in panel["targets"]]
        assert len(set(legends)) == len(legends), panel["title"]


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels()], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())


def test_every_variable_that_is_used_is_declared():
    text = dashboard.PATH.read_text(encoding="utf-8")
    declared = {each["name"] for each in json.loads(text)["templating"]["list"]}
    used = {first or second for first, second in re.findall(r"\$(?:\{(\w+)\}|(?!__)(\w+))", text)}
    assert used <= declared
    assert declared - used == set()


def test_every_alert_says_what_it_means_and_what_to_do_first():
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names)
    for alert in alerts():
        assert alert["labels"]["severity"] in ("page", "warn"), alert["alert"]
        assert set(alert["annotations"]) == ANNOTATIONS, alert["alert"]
        assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{alert['alert'].lower()}"
        severity = "Pages" if alert["labels"]["severity"] == "page" else "Warns"
        assert section(alert["alert"].lower()).strip().startswith(severity), alert["alert"]


def test_the_page_has_no_section_of_an_alert_that_is_gone():
    assert set(re.findall(r"^### (Tensorferry\w+)", PAGE, re.MULTILINE)) == {
        alert["alert"] for alert in alerts()
    }


def test_rows_of_the_dashboard_that_alerts_name_are_there():
    rows = {panel["title"] for panel in panels() if panel["type"] == "row"}
    named = [
        row for alert in alerts() for row in re.findall(r'row "([^"]+)"', alert["annotations"]["description"])
    ]
    assert named
    assert set(named) <= rows


def test_every_alert_has_a_case_in_which_it_fires():
    cases = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
    for alert in alerts():
        assert f'alertname="{alert["alert"]}"' in cases


def test_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / "docs" / path).exists(), target
        if not path:
            assert section(anchor), target
