"""What was measured in the rounds, held against what it is to be. Arithmetic alone: nothing runs here.

Rules for this file: a value whose load generator was late is shown, and never part of a median; a
figure that fewer than half of the rounds could measure has no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from tensorferry.benchmark.report import Report, Windows
from tensorferry.benchmark.traffic import Result

__all__ = ["Bound", "Figure", "Value", "between", "drift", "markdown", "recovered_after_s", "value_of"]

_HEADINGS: Final = ("case", "figure", "median", "lowest - highest", "target", "verdict")
#: Windows in a row that must be as before the burst: one alone may be luck.
_STEADY_WINDOWS: Final = 3


@dataclass(frozen=True, slots=True)
class Bound:
    """The limit of a figure, which is the most or the least that it may be."""

    limit: float
    is_most: bool = True

    def holds(self, value: float) -> bool:
        """Say whether ``value`` keeps it; what isn't a number doesn't."""
        return value <= self.limit if self.is_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.is_most else '>='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Value:
    """A figure in one round; infinite for what never came. Not valid if a reason is given."""

    value: float
    invalid_because: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a case: a value for each round, in their order. Without ``bound`` it is told, not judged.

    ``unit`` is empty for a ratio.
    """

    case: str
    what: str
    unit: str
    rounds: tuple[Value, ...]
    bound: Bound | None = None

    @property
    def valid(self) -> list[float]:
        """The values that count."""
        return [each.value for each in self.rounds if not each.invalid_because]

    @property
    def median(self) -> float | None:
        """The median of the values that count; None if there are none."""
        return median(self.valid) if self.valid else None

    @property
    def holds(self) -> bool | None:
        """Whether the median keeps the bound; None if there is none, or too few values for a verdict."""
        if self.bound is None or self.median is None or 2 * len(self.valid) < len(self.rounds):
            return None
        return self.bound.holds(self.median)

    @property
    def verdict(self) -> str:
        """In words: the verdict, and the rounds that don't count."""
        left_out = len(self.rounds) - len(self.valid)
        word = {True: "yes", False: "NO", None: "NOT VALID" if self.bound else "-"}[self.holds]
        return f"{word} ({left_out} of {len(self.rounds)} rounds not valid)" if left_out else word

    def row(self) -> tuple[str, ...]:
        """Return the cells of its line of the table."""
        unit = f" {self.unit}" if self.unit else ""
        every = [each.value for each in self.rounds]
        counted = self.valid or every
        shown = "-" if self.median is None else f"{_shown(self.median)}{unit}"
        spread = f"{_shown(min(counted))} - {_shown(max(counted))}" if every else "-"
        target = f"{self.bound}{unit}" if self.bound else "-"
        return self.case, self.what, shown, spread, target, self.verdict

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON, where an infinite value is null."""
        return {
            "case": self.case,
            "what": self.what,
            "unit": self.unit,
            "rounds": [
                {"value": _finite(each.value), "invalid_because": each.invalid_because}
                for each in self.rounds
            ],
            "median": _finite(self.median),
            "target": str(self.bound) if self.bound else None,
            "verdict": self.verdict,
        }


def value_of(value: float | None, *reports: Report) -> Value:
    """Make a round's value of what ``reports`` say; it is valid if all of them are. None: it never came."""
    reasons = [reason for each in reports for reason in each.invalid_because]
    return Value(math.inf if value is None else value, "; ".join(reasons))


def drift(before: float, after: float, most: float = 0.1) -> str:
    """Return why a yardstick that was taken before and after can't be relied on; empty if it can."""
    share = abs(after - before) / min(before, after)
    if share <= most:
        return ""
    return (
        f"the machine drifted: {before:,.0f}/s before and {after:,.0f}/s after; at most {most:.0%} is allowed"
    )


def between(result: Result, start_s: float, end_s: float) -> Result:
    """Return the calls that were due in [start_s, end_s), with times since ``start_s``."""
    chosen = (result.intended_s >= start_s) & (result.intended_s < end_s)
    return Result(
        result.names,
        result.stream[chosen],
        result.intended_s[chosen] - start_s,
        result.sent_s[chosen] - start_s,
        result.done_s[chosen] - start_s,
        result.ending[chosen],
        result.endings,
        result.held,
    )


def recovered_after_s(
    windows: Windows, burst_end_s: float, p99_before_ms: float, factor: float = 1.5
) -> float:
    """Return the seconds from the burst's end until windows are as they were before it.

    Such a window has no refusal and no failure, and its 99th percentile is at most ``factor`` times
    ``p99_before_ms``; it counts with two more after it, as far as the run goes. Only windows that
    begin after the burst are looked at. Infinite if it doesn't happen.
    """
    starts = np.array(windows.start_s)
    first = int(np.searchsorted(starts, burst_end_s - 1e-9))
    good = [_is_calm(windows, place, factor * p99_before_ms) for place in range(len(starts))]
    for place in range(first, len(good)):
        if all(good[place : place + _STEADY_WINDOWS]):
            return max(0.0, windows.start_s[place] - burst_end_s)
    return math.inf


def markdown(figures: Sequence[Figure]) -> str:
    """Return the figures as a table, in columns that a terminal shows straight too."""
    rows = [_HEADINGS, *(each.row() for each in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _is_calm(windows: Windows, place: int, most_ms: float) -> bool:
    if windows.refused[place] or windows.failed[place]:
        return False
    p99_ms = windows.p99_ms[place]
    return p99_ms <= most_ms if p99_ms is not None else not windows.offered[place]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) and abs(value) >= 100 else f"{value:.3g}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
