"""The verdict: a run's figures, held against its scenario's thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.scenario import Threshold

__all__ = ["Check", "Figures", "judge", "table"]

#: A run's figures by their full names; None where there was nothing to measure.
Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict: what was asked, what came, whether that will do."""

    threshold: str
    measured: str
    ok: bool


def judge(thresholds: Sequence[Threshold], figures: Figures, transport: str = "") -> list[Check]:
    """Hold ``figures`` against every threshold that is asked of a server on ``transport``.

    A figure that isn't there, is None or isn't a number misses its threshold: what wasn't
    measured hasn't passed.
    """
    asked = [each for each in thresholds if each.transport in ("", transport)]
    return [_check(each, figures) for each in asked]


def _check(asked: Threshold, figures: Figures) -> Check:
    measured = figures.get(asked.figure)
    base = figures.get(asked.times) if asked.times else 1.0
    for name, value in ((asked.figure, measured), (asked.times, base)):
        if value is None or math.isnan(value):
            return Check(_text(asked), f"{name} wasn't measured", False)
    assert measured is not None
    assert base is not None
    limit = (asked.at_least if asked.at_most is None else asked.at_most or 0.0) or 0.0
    allowed = limit * base + asked.plus
    # A hair's breadth for the rounding of a product that is to be met exactly.
    ok = measured >= allowed * (1 - 1e-9) if asked.at_most is None else measured <= allowed * (1 + 1e-9)
    if not asked.times:
        return Check(_text(asked), _shown(measured), ok)
    ratio = f"{measured / base:.3g} x" if base else "no ratio to 0"
    return Check(_text(asked), f"{ratio} ({_shown(measured)} against {_shown(base)})", ok)


def _text(asked: Threshold) -> str:
    sign, limit = (">=", asked.at_least) if asked.at_most is None else ("<=", asked.at_most)
    text = f"{asked.figure} {sign} {limit:g}"
    if asked.times:
        text += f" x {asked.times}"
    return text + (f" + {asked.plus:g}" if asked.plus else "")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(checks: Sequence[Check]) -> str:
    """Return the checks as lines of text, in columns, with a heading."""
    rows = [("threshold", "measured", "ok")]
    rows += [(check.threshold, check.measured, "yes" if check.ok else "NO") for check in checks]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{threshold:<{first}}  {measured:<{second}}  {ok}" for threshold, measured, ok in rows)
