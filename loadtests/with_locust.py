"""Runs a locust scenario: the reference, the server, the reference again; returns their figures.

locust is another process, because gevent patches the standard library of whoever imports it.
"""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.scenario import LocustScenario, ServedModel
from loadtests.served_models import write_models
from loadtests.verdict import Figures
from tensorferry.testing.process import ListeningProcess, ServerProcess

__all__ = ["LocustFailed", "Measured", "NothingMeasured", "figures_of", "measure", "read_measured"]

_LOCUSTFILE: Final = Path("loadtests/locustfile.py")
_MAX_BATCH_SIZE: Final = 64
_SHOWN_LOG_LINES: Final = 20
#: For what locust does besides the scenario: starting, spawning, and stopping its users.
_LOCUST_SPARE_S: Final = 60.0


class LocustFailed(Exception):
    """locust itself failed, whatever the server did. Holds the end of its log."""


class NothingMeasured(Exception):
    """locust's CSV isn't there or holds no request. Says which file, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run's figures. ``answered_per_s`` counts the requests that were answered well."""

    requests: int
    failures: int
    answered_per_s: float
    p99_ms: float

    @property
    def error_rate(self) -> float:
        """Failed requests of all, 0 to 1."""
        return self.failures / self.requests


def measure(
    scenario: LocustScenario, transport: str, reports: Path, models: Path
) -> tuple[str, dict[str, float | None]]:
    """Run the scenario; return the transport that served, and the figures.

    Raises:
        LocustFailed: locust ended with an error, or not at all.
        NothingMeasured: it left no figures.
        ServerProcessError: the server or the reference didn't start, died or didn't stop in order.
    """
    references = []
    if scenario.reference_s:
        references.append(_measure_reference(scenario, reports, "reference-before"))
    write_models(models, [ServedModel(name=scenario.model, kind="mlp", max_batch_size=_MAX_BATCH_SIZE)])
    with ServerProcess(models, reports / "server.log", flags=("--transport", transport)) as server:
        served_by = server.transport
        measured = _locust(scenario, server.grpc_address, reports / "server", scenario.duration_s)
    if scenario.reference_s:
        references.append(_measure_reference(scenario, reports, "reference-after"))
    return served_by, dict(figures_of(measured, references))


def figures_of(measured: Measured, references: Sequence[Measured] = ()) -> Figures:
    """Name the figures.

    ``references`` are measurements of the reference around the server's: their mean rate and their
    worst p99 count, unless one of them had failures: then it is no reference, and they are None.
    """
    figures: dict[str, float | None] = {
        "server.requests_per_s": measured.answered_per_s,
        "server.p99_ms": measured.p99_ms,
        "server.error_rate": measured.error_rate,
    }
    if references:
        good = not any(each.failures for each in references)
        mean = sum(each.answered_per_s for each in references) / len(references)
        figures["reference.requests_per_s"] = mean if good else None
        figures["reference.p99_ms"] = max(each.p99_ms for each in references) if good else None
        figures["reference.error_rate"] = max(each.error_rate for each in references)
    return figures


def read_measured(path: Path) -> Measured:
    """Read the line of all requests together from a CSV with locust's statistics.

    Raises:
        NothingMeasured: no file, no such line, a figure that isn't a number, or no request.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            totals = [row for row in csv.DictReader(file) if row.get("Name") == "Aggregated"]
    except FileNotFoundError:
        raise NothingMeasured(f"{path} isn't there: locust didn't get as far as writing it") from None
    if not totals:
        raise NothingMeasured(f"{path} has no line 'Aggregated'")
    row = totals[-1]
    try:
        requests, failures = int(row["Request Count"]), int(row["Failure Count"])
        if not requests:
            raise NothingMeasured(f"{path} counts no request")
        rate = float(row["Requests/s"]) - float(row["Failures/s"])
        p99_ms = float(row["99%"])
    except (KeyError, TypeError, ValueError) as error:
        raise NothingMeasured(f"{path} isn't locust's statistics: {error!r}") from None
    if not (math.isfinite(rate) and math.isfinite(p99_ms)):
        raise NothingMeasured(f"{path} holds a figure that isn't a number")
    return Measured(requests, failures, rate, p99_ms)


def _measure_reference(scenario: LocustScenario, reports: Path, name: str) -> Measured:
    command = [sys.executable, "-m", "loadtests.reference", scenario.model, str(scenario.rows_per_request)]
    with ListeningProcess(command, reports / f"{name}.log") as server:
        return _locust(scenario, server.grpc_address, reports / name, scenario.reference_s)


def _locust(scenario: LocustScenario, address: str, prefix: Path, duration_s: float) -> Measured:
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
