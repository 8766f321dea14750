"""The verdict: what locust measured, held against a scenario's thresholds."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.scenario import Thresholds

__all__ = ["Check", "Measured", "NothingMeasured", "judge", "read_measured", "table"]


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


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict: what was asked, what came, whether that will do."""

    threshold: str
    measured: str
    ok: bool


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


def judge(thresholds: Thresholds, measured: Measured, references: Sequence[Measured] = ()) -> list[Check]:
    """Hold ``measured`` against every threshold.

    ``references`` are measurements of the reference around it: their mean rate and their worst
    p99 count. They are needed where a threshold is a ratio; a reference with failures is a check missed.
    """
    asked = thresholds
    checks = [
        Check(
            f"requests/s >= {asked.min_requests_per_s:g}",
            f"{measured.answered_per_s:.0f}",
            measured.answered_per_s >= asked.min_requests_per_s,
        ),
        Check(
            f"p99 <= {asked.max_p99_ms:g} ms", f"{measured.p99_ms:g} ms", measured.p99_ms <= asked.max_p99_ms
        ),
        Check(
            f"error rate <= {asked.max_error_rate:g}",
            f"{measured.error_rate:.3g} ({measured.failures} of {measured.requests})",
            measured.error_rate <= asked.max_error_rate,
        ),
    ]
    return checks + (_compare(asked, measured, references) if asked.need_a_reference else [])


def _compare(asked: Thresholds, measured: Measured, references: Sequence[Measured]) -> list[Check]:
    failures = sum(reference.failures for reference in references)
    if not references or failures:
        came = f"{failures} errors" if references else "not measured"
        return [Check("the reference answers every request", came, False)]
    rate = sum(reference.answered_per_s for reference in references) / len(references)
    p99_ms = max(reference.p99_ms for reference in references)
    checks = []
    if asked.min_rate_ratio_to_reference is not None:
        limit = asked.min_rate_ratio_to_reference
        ratio = measured.answered_per_s / rate if rate else math.inf
        came = f"{ratio:.2f} (reference {rate:.0f}/s)"
        checks.append(Check(f"requests/s >= {limit:g} x the reference's", came, ratio >= limit))
    if asked.max_p99_ratio_to_reference is not None:
        limit = asked.max_p99_ratio_to_reference * p99_ms + asked.p99_allowance_ms
        threshold = f"p99 <= {asked.max_p99_ratio_to_reference:g} x the reference's"
        if asked.p99_allowance_ms:
            threshold += f" + {asked.p99_allowance_ms:g} ms"
        came = f"{measured.p99_ms:g} ms (limit {limit:g}, reference {p99_ms:g})"
        checks.append(Check(threshold, came, measured.p99_ms <= limit))
    return checks


def table(checks: Sequence[Check]) -> str:
    """Return the checks as lines of text, in columns, with a heading."""
    rows = [("threshold", "measured", "ok")]
    rows += [(check.threshold, check.measured, "yes" if check.ok else "NO") for check in checks]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{threshold:<{first}}  {measured:<{second}}  {ok}" for threshold, measured, ok in rows)
