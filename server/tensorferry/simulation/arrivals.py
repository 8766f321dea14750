"""When requests come: point processes, as sorted float64 arrays of instants.

Every function returns an array of shape (requests,): seconds from the start, each in [0, seconds).
The same arguments, the seed included, give the same array.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Instants", "mmpp", "poisson", "read_timestamps", "replay", "steps"]

#: float64, shape (requests,), ascending, in seconds.
Instants = NDArray[np.float64]


def poisson(rate: float, seconds: float, seed: int = 0) -> Instants:
    """Independent callers: a Poisson process of ``rate`` in 1/s."""
    return steps([(rate, seconds)], seed)


def steps(plan: Sequence[tuple[float, float]], seed: int = 0) -> Instants:
    """A Poisson process whose rate changes: ``plan`` is (rate in 1/s, seconds) of each part, in order.

    Raises:
        ValueError: a negative rate, or a part that doesn't last.
    """
    draw = np.random.default_rng(seed)
    parts: list[Instants] = []
    start = 0.0
    for rate, seconds in plan:
        parts.append(_poisson(draw, rate, start, seconds))
        start += seconds
    return np.concatenate(parts) if parts else np.empty(0)


def mmpp(
    rates: tuple[float, float], mean_dwells_s: tuple[float, float], seconds: float, seed: int = 0
) -> Instants:
    """Bursts: a Markov-modulated Poisson process of two states.

    State i sends at ``rates[i]`` in 1/s and lasts an exponentially distributed time of mean
    ``mean_dwells_s[i]``; the first is drawn from the stationary distribution. Source: W. Fischer
    and K. Meier-Hellstern, The Markov-modulated Poisson process cookbook, 1993.

    Raises:
        ValueError: a negative rate, or a dwell or length that isn't more than 0.
    """
    if min(mean_dwells_s) <= 0:
        raise ValueError(f"mean dwells are {mean_dwells_s} s; each must be more than 0")
    draw = np.random.default_rng(seed)
    state = int(draw.random() * sum(mean_dwells_s) >= mean_dwells_s[0])
    parts: list[Instants] = []
    start = 0.0
    while start < seconds:
        dwell = min(seconds - start, draw.exponential(mean_dwells_s[state]))
        parts.append(_poisson(draw, rates[state], start, dwell))
        start += dwell
        state = 1 - state
    return np.concatenate(parts) if parts else np.empty(0)


def replay(timestamps: ArrayLike, rate: float = 0.0) -> Instants:
    """What really happened, from its first timestamp (s) on.

    With a ``rate`` in 1/s it is sped up or slowed down to that.

    Raises:
        ValueError: a timestamp isn't finite, or a rate is asked for and they all are the same.
    """
    times: Instants = np.sort(np.asarray(timestamps, dtype=np.float64).ravel())
    if not np.isfinite(times).all():
        raise ValueError("a timestamp isn't a finite number")
    if not len(times):
        return times
    times = times - times[0]
    if rate <= 0:
        return times
    if times[-1] == 0:
        raise ValueError("all timestamps are the same, so that they can't be replayed at another rate")
    stretched: Instants = times * ((len(times) - 1) / times[-1] / rate)
    return stretched


def read_timestamps(path: Path) -> Instants:
    """Read timestamps in seconds, one a line.

    Raises:
        ValueError: a line isn't a number; says which.
        OSError: the file can't be read.
    """
    times = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            times.append(float(line))
        except ValueError:
            raise ValueError(f"{path}:{number}: {line.strip()!r} isn't a number of seconds") from None
    return np.array(times, dtype=np.float64)


def _poisson(draw: np.random.Generator, rate: float, start: float, seconds: float) -> Instants:
    if rate < 0 or not np.isfinite(rate):
        raise ValueError(f"the rate is {rate}; it must be 0 or more")
    if seconds < 0 or not np.isfinite(seconds):
        raise ValueError(f"a part of the schedule lasts {seconds} s; it must be 0 or more")
    # Given how many there are, the points of a Poisson process are independent and uniform.
    end = start + seconds
    times = start + seconds * draw.random(int(draw.poisson(rate * seconds)))
    return np.sort(np.minimum(times, np.nextafter(end, start)))
