"""Run load scenarios and give verdicts: ``python -m loadtests.run SCENARIO``, from the repository's root.

The server under test is the real one in a process of its own. ``all`` runs every scenario.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, NoReturn

import grpc

from loadtests import with_locust, with_openloop
from loadtests.reading import ScenarioError, load_scenario
from loadtests.scenario import LocustScenario, OpenLoopScenario, Scenario, scenario_names
from loadtests.verdict import Check, Figures, judge, table
from loadtests.with_locust import LocustFailed, NothingMeasured
from loadtests.with_openloop import CapacityUnknown
from tensorferry.benchmark.generator import CannotConnect
from tensorferry.testing.process import ServerProcessError

__all__ = ["conclude", "main", "run_scenario"]

MODELS: Final = Path(".cache/loadtests/models")
REPORTS: Final = Path("reports")
ALL: Final = "all"

_FAILURES: Final = (
    CannotConnect,
    CapacityUnknown,
    LocustFailed,
    NothingMeasured,
    ServerProcessError,
    grpc.RpcError,
    subprocess.CalledProcessError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: every threshold of every scenario holds; 1: one is missed, or a run failed; 2: a wrong call.
    """
    parser = argparse.ArgumentParser(prog="python -m loadtests.run", description="Run load scenarios.")
    parser.add_argument("scenario", nargs="?", help=f"the name of a file in loadtests/scenarios, or {ALL}")
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument("--transport", default="auto", help="as for tensorferry serve (default: auto)")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.list:
            for name in scenario_names():
                print(f"{name:<18}{load_scenario(name).description}")
            return 0
        if parsed.scenario is None:
            parser.error(f"which scenario? There are: {', '.join(scenario_names())}, and {ALL}")
        names = scenario_names() if parsed.scenario == ALL else [parsed.scenario]
        scenarios = [load_scenario(name) for name in names]
    except ScenarioError as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _leave)  # so that the server is stopped on the way out
    try:
        return _run(scenarios, parsed.transport)
    except KeyboardInterrupt:
        print("loadtests: interrupted; no verdict", file=sys.stderr)
        return 130


def _run(scenarios: Sequence[Scenario], transport: str) -> int:
    outcomes = {}
    for scenario in scenarios:
        try:
            passed = run_scenario(scenario, transport, REPORTS / scenario.name, MODELS / scenario.name)
            outcomes[scenario.name] = "passed" if passed else "FAILED"
        except _FAILURES as error:
            print(f"loadtests: {error}\n\nverdict: FAILED, the run didn't come to its end", file=sys.stderr)
            outcomes[scenario.name] = "FAILED, the run didn't come to its end"
        print(flush=True)
    if len(scenarios) > 1:
        print("\n".join(f"{name:<18}{outcome}" for name, outcome in outcomes.items()))
    return 0 if set(outcomes.values()) == {"passed"} else 1


def run_scenario(scenario: Scenario, transport: str, reports: Path, models: Path) -> bool:
    """Run it, print its verdict, and write that and all figures into ``reports``; return whether it passed.

    ``models`` is a directory for the models that it makes. What is in ``reports`` is removed
    first: a failed run must not be judged by an earlier one's figures.

    Raises:
        Exception: as the generator's ``measure`` says, when the run doesn't come to its end.
    """
    reports.mkdir(parents=True, exist_ok=True)
    for old in reports.glob("*"):
        old.unlink()
    print(f"{scenario.name}: {scenario.description}", flush=True)
    served_by, figures = _measure(scenario, transport, reports, models)
    return conclude(scenario, served_by, figures, reports)


def conclude(scenario: Scenario, transport: str, figures: Figures, reports: Path) -> bool:
    """Judge what a server on ``transport`` did; print and write the verdict; return whether it passed."""
    checks = judge(scenario.thresholds, figures, transport)
    passed = all(check.ok for check in checks)
    # Without the transport's name two verdicts can't be compared: "auto" depends on what is built.
    verdict = f"transport: {transport}\n\n{table(checks)}\n\nverdict: {'passed' if passed else 'FAILED'}"
    if any(not each.ok and "slip" in each.threshold for each in checks):
        verdict += "\nthe generator was late, so latencies say little: repeat it on a quieter machine"
    (reports / "verdict.txt").write_text(verdict + "\n", encoding="utf-8")
    _write_json(reports / "verdict.json", scenario.name, transport, passed, checks, figures)
    print(f"\n{verdict}\nreports: {reports}/")
    return passed


def _measure(
    scenario: Scenario, transport: str, reports: Path, models: Path
) -> tuple[str, dict[str, float | None]]:
    if isinstance(scenario, LocustScenario):
        return with_locust.measure(scenario, transport, reports, models)
    assert isinstance(scenario, OpenLoopScenario)
    return with_openloop.measure(scenario, transport, reports, models)


def _write_json(
    path: Path, name: str, transport: str, passed: bool, checks: Sequence[Check], figures: Figures
) -> None:
    # JSON knows no infinity, which is the slip of a call that was never sent.
    finite = {key: None if v is None or not math.isfinite(v) else v for key, v in figures.items()}
    document = {"scenario": name, "transport": transport, "passed": passed}
    document |= {"checks": [asdict(each) for each in checks], "figures": finite}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
