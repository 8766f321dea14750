"""Run a load scenario and give a verdict: ``python -m loadtests.run SCENARIO``, from the repository's root.

The server under test is the real one in a process of its own; locust is another process, because
gevent patches the standard library of whoever imports it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import tensorferry.testing
from loadtests.scenario import Scenario, ScenarioError, load_scenario, scenario_names
from loadtests.verdict import Measured, NothingMeasured, judge, read_measured, table
from tensorferry.testing.process import ListeningProcess, ServerProcess, ServerProcessError

__all__ = ["main"]

MODELS: Final = Path(".cache/loadtests/models")
REPORTS: Final = Path("reports")

_LOCUSTFILE: Final = Path("loadtests/locustfile.py")
_SHOWN_LOG_LINES: Final = 20
#: For what locust does besides the scenario: starting, spawning, and stopping its users.
_LOCUST_SPARE_S: Final = 60.0


class LocustFailed(Exception):
    """locust itself failed, whatever the server did. Holds the end of its log."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: every threshold holds; 1: one is missed, or the run failed; 2: a wrong call.
    """
    parser = argparse.ArgumentParser(prog="python -m loadtests.run", description="Run a load scenario.")
    parser.add_argument("scenario", nargs="?", help="the name of a file in loadtests/scenarios")
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument("--transport", default="auto", help="as for tensorferry serve (default: auto)")
    parsed = parser.parse_args(arguments)
    try:
        if parsed.list:
            for name in scenario_names():
                print(f"{name:<16}{load_scenario(name).description}")
            return 0
        if parsed.scenario is None:
            parser.error(f"which scenario? There are: {', '.join(scenario_names())}")
        scenario = load_scenario(parsed.scenario)
    except ScenarioError as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _leave)  # so that the server is stopped on the way out
    try:
        return _run(scenario, parsed.transport, REPORTS / scenario.name)
    except (ServerProcessError, LocustFailed, NothingMeasured) as error:
        print(f"loadtests: {error}\n\nverdict: FAILED, the run didn't come to its end", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("loadtests: interrupted; no verdict", file=sys.stderr)
        return 130


def _run(scenario: Scenario, transport: str, reports: Path) -> int:
    reports.mkdir(parents=True, exist_ok=True)
    for old in reports.glob("*"):
        old.unlink()  # a failed run must not be judged by an earlier one's figures
    print(f"{scenario.name}: {scenario.description}", flush=True)
    references = []
    if scenario.reference_s:
        references.append(_measure_reference(scenario, reports, "reference-before"))
    served_by, measured = _measure_server(scenario, transport, reports)
    if scenario.reference_s:
        references.append(_measure_reference(scenario, reports, "reference-after"))
    checks = judge(scenario.thresholds_for(served_by), measured, references)
    passed = all(check.ok for check in checks)
    outcome = "passed" if passed else "FAILED"
    # Without the transport's name two verdicts can't be compared: "auto" depends on what is built.
    verdict = f"transport: {served_by}\n\n{table(checks)}\n\nverdict: {outcome}"
    (reports / "verdict.txt").write_text(verdict + "\n", encoding="utf-8")
    print(f"\n{verdict}\nreports: {reports}/*.html")
    return 0 if passed else 1


def _measure_server(scenario: Scenario, transport: str, reports: Path) -> tuple[str, Measured]:
    """Return the transport that served, and the figures."""
    _make_models(scenario.model)
    flags = ("--transport", transport)
    with ServerProcess(MODELS, reports / "server.log", flags=flags) as server:
        return server.transport, _locust(
            scenario, server.grpc_address, reports / "server", scenario.duration_s
        )


def _measure_reference(scenario: Scenario, reports: Path, name: str) -> Measured:
    command = [sys.executable, "-m", "loadtests.reference", scenario.model, str(scenario.rows_per_request)]
    with ListeningProcess(command, reports / f"{name}.log") as server:
        return _locust(scenario, server.grpc_address, reports / name, scenario.reference_s)


def _make_models(name: str) -> None:
    """Make the model repository, unless there is one younger than the code that makes it."""
    maker = Path(tensorferry.testing.__file__).with_name("models.py")
    last_written = MODELS / name / "config.pbtxt"
    if last_written.exists() and last_written.stat().st_mtime > maker.stat().st_mtime:
        return
    # In a process of its own, so that this one doesn't hold torch during the measurement.
    code = "import sys, pathlib; from tensorferry.testing import models; "
    code += "models.write_mlp(pathlib.Path(sys.argv[1]), sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(MODELS), name], check=True)


def _locust(scenario: Scenario, address: str, prefix: Path, duration_s: float) -> Measured:
    """Run locust against ``address``; its reports are ``prefix`` with an ending."""
    print(f"  {prefix.name}: {scenario.warmup_s:g} s of warm-up, {duration_s:g} s measured ...", flush=True)
    measured = prefix.with_name(prefix.name + "_measured.csv")
    log_path = prefix.with_name(prefix.name + "_locust.log")
    command = [
        sys.executable,
        "-m",
        "locust",
        "--headless",
        "--only-summary",
        "--locustfile",
        str(_LOCUSTFILE),
    ]
    command += ["--host", address, "--scenario", scenario.name, "--duration-s", str(duration_s)]
    command += ["--csv", str(prefix), "--html", f"{prefix}.html", "--measured-csv", str(measured)]
    # Calls in flight may end; a failed request is for the verdict to judge, not for locust's exit code.
    command += ["--stop-timeout", "10", "--exit-code-on-error", "0"]
    limit_s = scenario.warmup_s + duration_s + _LOCUST_SPARE_S
    with log_path.open("w", encoding="utf-8") as log:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s
            ).returncode
        except subprocess.TimeoutExpired:
            raise LocustFailed(f"locust took longer than {limit_s:g} s; see {log_path}") from None
    if code:
        end = "\n".join(
            log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LOG_LINES:]
        )
        raise LocustFailed(f"locust ended with code {code}. The end of {log_path}:\n{end}")
    return read_measured(measured)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
