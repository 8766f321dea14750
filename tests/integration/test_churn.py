"""A short churn run: models change under calls, no call fails, and nothing piles up in the server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from loadtests.churn.figures import SPARE, figures_of
from loadtests.churn.measure import Outcome, Wishes, measure
from loadtests.churn.report import report

CYCLES = 15


@pytest.fixture(scope="module")
def outcome(transport: str, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run of a few seconds; all kinds of swap, and guests that are loaded in one piece and in parts."""
    scratch = tmp_path_factory.mktemp(f"churn-{transport}")
    wishes = Wishes(
        CYCLES,
        rate_per_s=100.0,
        run_s=1.0,
        first_cycles=9,
        guests=("torchscript", "large"),
        flags=("--transport", transport),
    )
    return measure(wishes, scratch, scratch / "log")


def test_no_call_fails_while_models_change(outcome: Outcome):
    for calls in (outcome.before, outcome.during, outcome.after):
        assert len(calls.is_ok) > 0
        assert calls.failures == {}
        assert calls.is_ok.all()
        assert np.isfinite(calls.latency_s).all()
        assert (np.diff(calls.intended_s) >= 0).all()


def test_every_swap_is_in_force_when_its_load_returns(outcome: Outcome):
    assert len(outcome.cycles) == CYCLES
    assert {cycle.swap for cycle in outcome.cycles} == {"file", "config", "version"}
    assert {cycle.guest for cycle in outcome.cycles} == {"torchscript", "large"}
    assert [cycle.faults for cycle in outcome.cycles] == [()] * CYCLES


def test_threads_descriptors_and_processes_do_not_pile_up(outcome: Outcome):
    assert outcome.at_end.processes == outcome.at_rest.processes
    assert outcome.at_end.threads <= outcome.at_rest.threads + SPARE
    assert outcome.at_end.descriptors <= outcome.at_rest.descriptors + SPARE


def test_the_report_has_every_figure_and_a_picture(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report(outcome, CYCLES, tmp_path)
    text = (tmp_path / "churn.txt").read_text()
    assert text == capsys.readouterr().out
    written = json.loads((tmp_path / "churn.json").read_text())
    assert written["figures"] == figures_of(outcome, CYCLES)
    # So few cycles may have seen no call, or no guest of a kind; the rest is always there.
    missing = [name for name, value in written["figures"].items() if value is None]
    assert all(name.endswith("_ms") and not name.startswith("quiet.") for name in missing), missing
    assert len(written["cycles"]) == CYCLES
    assert (tmp_path / "churn.png").read_bytes().startswith(b"\x89PNG")
