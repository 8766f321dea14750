"""How long a run takes, as a function of its rows: assumed, measured, or disturbed.

A ``RunTime`` gets the rows of a batch and the instant in seconds, and returns seconds. Those made
here are deterministic for a given seed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from tensorferry.errors import SettingsError

__all__ = ["RunCurve", "RunTime", "affine", "drifting", "no_time", "noisy", "parse_curve", "pipelined"]

RunTime = Callable[[int, float], float]


@dataclass(frozen=True, slots=True)
class RunCurve:
    """Seconds by rows: straight between the points, and on along the outer ones' lines beyond them.

    A single point means time in proportion to rows. ``rows`` ascend; ``seconds`` are positive.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: int, now: float = 0.0) -> float:
        """Return the seconds of a run of ``rows`` (at least 1), at any time."""
        points, times = self.rows, self.seconds
        if len(points) == 1:
            return times[0] * rows / points[0]
        high = min(max(1, bisect_left(points, rows)), len(points) - 1)
        low = high - 1
        slope = (times[high] - times[low]) / (points[high] - points[low])
        seconds = times[low] + slope * (rows - points[low])
        # Below the first point a steep line may reach 0; no run takes less than its share.
        return seconds if rows >= points[0] else max(seconds, times[0] * rows / points[0])

    def capacity(self, max_rows: int, streams: int = 1) -> float:
        """Return the most rows/s that ``streams`` can run, at the best batch size up to ``max_rows``."""
        sizes = {size for size in (*self.rows, 1, max_rows) if size <= max_rows}
        return streams * max(size / self(size) for size in sizes)

    def points(self, max_rows: int) -> dict[int, float]:
        """Return what a warm-up at powers of two and at ``max_rows`` would have measured."""
        sizes = {max_rows, *[1 << power for power in range(max_rows.bit_length())]}
        return {size: self(size) for size in sorted(sizes) if size <= max_rows}

    def plus(self, *others: RunCurve) -> RunCurve:
        """Return the time of this and of the others, one after another."""
        rows = tuple(sorted({*self.rows, *[row for other in others for row in other.rows]}))
        return RunCurve(rows, tuple(self(row) + sum([other(row) for other in others]) for row in rows))


def no_time(rows: int, now: float) -> float:
    """Return 0.0 for any rows, at any time."""
    return 0.0


def pipelined(stages: Sequence[RunCurve], slots: int, max_rows: int) -> RunCurve:
    """Return for how long a batch of a busy stream keeps the next one from being done, by its rows.

    Batches go through the ``stages`` one after another, each of which takes one batch at a time; the
    stream takes at most ``slots`` batches at once.
    """
    sizes = sorted({row for stage in stages for row in (*stage.rows, *stage.points(max_rows))})
    times = [[stage(size) for stage in stages] for size in sizes]
    return RunCurve(tuple(sizes), tuple(max(*each, sum(each) / slots) for each in times))


def affine(fixed_s: float, row_s: float) -> RunCurve:
    """Return the curve ``fixed_s`` + ``row_s`` * rows."""
    return RunCurve((1, 2), (fixed_s + row_s, fixed_s + 2 * row_s))


def noisy(
    curve: RunTime, sigma: float, hiccup_share: float = 0.0, hiccup_factor: float = 3.0, seed: int = 0
) -> RunTime:
    """Disturb a curve: lognormal noise of median 1, and a share of runs that take a multiple.

    ``sigma`` is the standard deviation of the logarithm.
    """
    draw = Random(seed)
    gauss, random, exp = draw.gauss, draw.random, math.exp

    def run_s(rows: int, now: float) -> float:
        seconds = curve(rows, now) * exp(gauss(0.0, sigma))
        return seconds * hiccup_factor if random() < hiccup_share else seconds

    return run_s


def drifting(curve: RunTime, factors: Mapping[float, float]) -> RunTime:
    """Multiply a curve from an instant (s) on: ``{2.0: 1.5}`` is half as long again from 2 s on."""
    plan = sorted(factors.items())

    def run_s(rows: int, now: float) -> float:
        factor = 1.0
        for instant, each in plan:
            if now >= instant:
                factor = each
        return curve(rows, now) * factor

    return run_s


def parse_curve(text: str, flag: str = "--run-ms") -> RunCurve:
    """Read ``ROWS:MS,ROWS:MS,...``, the value of ``flag``.

    Raises:
        SettingsError: says which point is wrong, and what one looks like.
    """
    points: dict[int, float] = {}
    for part in text.split(","):
        try:
            rows_text, ms_text = part.split(":")
            rows, run_ms = int(rows_text), float(ms_text)
        except ValueError:
            raise SettingsError(
                f"{flag}: {part.strip()!r} isn't ROWS:MILLISECONDS; write for example 1:0.08,64:0.25"
            ) from None
        if rows < 1 or not 0 < run_ms < math.inf:
            raise SettingsError(f"{flag}: {part.strip()!r} must have at least 1 row and more than 0 ms")
        if rows in points:
            raise SettingsError(f"{flag}: {rows} rows are given twice; give each number of rows once")
        points[rows] = run_ms / 1e3
    ordered = sorted(points.items())
    for (few, quick_s), (many, slow_s) in pairwise(ordered):
        if slow_s < quick_s:
            raise SettingsError(
                f"{flag}: {many} rows take {slow_s * 1e3:g} ms and {few} rows {quick_s * 1e3:g} ms; more"
                " rows can't take less time: measure again"
            )
    return RunCurve(tuple(points for points, _ in ordered), tuple(seconds for _, seconds in ordered))
