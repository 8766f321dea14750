"""Schedules: when each call of a run is meant to be sent, decided before the run.

Every function returns a sorted float64 array of shape (calls,): seconds since the run's start, each
within [0, seconds). The same arguments, the seed included, give the same array.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Schedule", "mmpp", "poisson", "read_timestamps", "replay", "step", "steps", "uniform"]

Schedule = NDArray[np.float64]


def uniform(rate: float, seconds: float) -> Schedule:
    """Evenly spaced calls, ``rate`` in 1/s; the first leaves at once."""
    _require_positive(rate=rate, seconds=seconds)
    times: Schedule = np.arange(int(np.ceil(rate * seconds)), dtype=np.float64) / rate
    return times[times < seconds]


def poisson(rate: float, seconds: float, seed: int = 0) -> Schedule:
    """Independent callers: a Poisson process of ``rate`` in 1/s."""
    _require_positive(rate=rate, seconds=seconds)
    return _poisson(np.random.default_rng(seed), rate, 0.0, seconds)


def steps(plan: Sequence[tuple[float, float]], seed: int = 0) -> Schedule:
    """A Poisson process whose rate changes: ``plan`` is (rate in 1/s, seconds) of each part.

    A rate of 0 is a pause.
    """
    draw = np.random.default_rng(seed)
    parts: list[Schedule] = []
    start = 0.0
    for rate, seconds in plan:
        _require_positive(seconds=seconds)
        if rate < 0:
            raise ValueError(f"rate is {rate}: it must be 0 or more")
        parts.append(_poisson(draw, rate, start, start + seconds))
        start += seconds
    return _joined(parts)


def step(low: float, high: float, before_s: float, burst_s: float, after_s: float, seed: int = 0) -> Schedule:
    """A burst: a Poisson process at ``low``, then ``high``, then ``low`` again, in 1/s."""
    return steps([(low, before_s), (high, burst_s), (low, after_s)], seed)


def mmpp(
    rates: tuple[float, float], mean_dwells_s: tuple[float, float], seconds: float, seed: int = 0
) -> Schedule:
    """Bursty traffic: a Markov-modulated Poisson process of two states.

    State i sends at ``rates[i]`` in 1/s and lasts an exponentially distributed time of mean
    ``mean_dwells_s[i]``. It begins in a state drawn from the stationary distribution, so that the
    expected rate is the same all along: the mean of the rates, weighted by the dwells. Source:
    W. Fischer and K. Meier-Hellstern, The Markov-modulated Poisson process cookbook, 1993.
    """
    _require_positive(dwell_0=mean_dwells_s[0], dwell_1=mean_dwells_s[1], seconds=seconds)
    if min(rates) < 0:
        raise ValueError(f"rates are {rates}: they must be 0 or more")
    draw = np.random.default_rng(seed)
    state = int(draw.random() >= mean_dwells_s[0] / sum(mean_dwells_s))
    parts: list[Schedule] = []
    start = 0.0
    while start < seconds:
        end = min(seconds, start + float(draw.exponential(mean_dwells_s[state])))
        parts.append(_poisson(draw, rates[state], start, end))
        start, state = end, 1 - state
    return _joined(parts)


def replay(timestamps: ArrayLike, speed: float = 1.0) -> Schedule:
    """What really happened, ``speed`` times as fast: the first timestamp (s) becomes 0."""
    _require_positive(speed=speed)
    times: Schedule = np.sort(np.asarray(timestamps, dtype=np.float64).ravel())
    if not np.isfinite(times).all():
        raise ValueError("a timestamp isn't a finite number")
    return (times - times[0]) / speed if len(times) else times


def read_timestamps(path: Path, column: str = "") -> Schedule:
    """Read timestamps in seconds: one a line, or the named column of a CSV file with a header.

    Returns:
        Them as they are in the file, shape (lines,); not sorted yet.

    Raises:
        ValueError: no such column, or something in it isn't a number; says where.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        if not column:
            return np.array([_number(line, path, at) for at, line in enumerate(lines, 1) if line.strip()])
        rows = csv.DictReader(lines)
        if column not in (rows.fieldnames or ()):
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(rows.fieldnames or ())}")
        return np.array([_number(row[column], path, at) for at, row in enumerate(rows, 2)])


def _number(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}:{line}: {text.strip()!r} isn't a number of seconds") from None


def _poisson(draw: np.random.Generator, rate: float, start: float, end: float) -> Schedule:
    # Given how many there are, the points of a Poisson process are independent and uniform.
    times = start + (end - start) * draw.random(int(draw.poisson(rate * (end - start))))
    # Rounding can reach the end itself, which belongs to what comes next.
    return np.sort(np.minimum(times, np.nextafter(end, start)))


def _joined(parts: Sequence[Schedule]) -> Schedule:
    return np.concatenate(parts) if parts else np.empty(0)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0 or not np.isfinite(value):
            raise ValueError(f"{name} is {value}: it must be more than 0")
