"""The open-loop load test as ``make load`` runs it: real servers, load, figures, a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loadtests.reading import load_scenario
from loadtests.run import run_scenario
from loadtests.scenario import TRANSPORTS, OpenLoopScenario


@pytest.fixture
def scenario() -> OpenLoopScenario:
    found = load_scenario("openloop_smoke")
    assert isinstance(found, OpenLoopScenario)
    return found


def test_a_run_counts_every_call_and_ends_with_a_verdict_and_all_its_figures(
    scenario: OpenLoopScenario, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "old.json").write_text("from an earlier run")
    assert run_scenario(scenario, "auto", reports, tmp_path / "models")
    verdict = (reports / "verdict.txt").read_text()
    assert verdict in capsys.readouterr().out
    assert verdict.startswith(tuple(f"transport: {each}\n" for each in TRANSPORTS))
    assert verdict.count("  yes\n") == len(scenario.thresholds)
    written = json.loads((reports / "verdict.json").read_text())
    assert written["passed"]
    assert written["figures"].keys() == scenario.figures()
    names = {each.name for each in reports.iterdir()}
    assert {"poisson.json", "poisson-1.png", "replay.json", "replay-1.png", "server.log"} <= names
    assert "old.json" not in names
    (run,) = json.loads((reports / "replay.json").read_text())["runs"]
    assert run["total"]["offered"] == run["total"]["sent"] == run["total"]["ok"] == 50
