"""How long a batch of so many rows takes: learned while serving, never configured.

The curve is piecewise linear between powers of two, so it follows a model whose time isn't an
affine function of its rows. Each run moves the two points beside it towards what was measured:
normalised least mean squares (Widrow and Hoff, 1960) on hat functions, in ratios instead of
differences, so that one gain fits microseconds and seconds. A ratio is clipped before it counts,
so one run that the machine interrupted moves little.

The curve holds means. What runs take beyond them, now and then, is covered by the margin that
the forecast learns from answers that came late (``forecast.py``).

Times are in seconds, and are those for which a stream is taken: from handing the batch over to
having its result on the loop thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

__all__ = ["RunTimes"]

#: The share of a run's error that the curve takes over. The first runs count for more.
_GAIN: Final = 0.1
_LEAST_RATIO: Final = 0.5
_MOST_RATIO: Final = 2.0

#: Points that none of so many runs has measured go this share of the way, once in so many runs.
_STALE_AFTER: Final = 32
_DRIFT: Final = 0.5

#: Time for twice the rows against time for the rows: 2 is linear, and caches that overflow add to it.
_STEEPEST: Final = 3.0

#: No run takes less; a clock that stands still mustn't teach that rows are free.
_LEAST_S: Final = 1e-6


class RunTimes:
    """Expected seconds by rows, of one stream. ``seed`` holds what warm-up measured; it may be empty."""

    __slots__ = ("_anchor", "_gain", "_measured", "_nodes", "_runs", "is_known")

    def __init__(self, max_rows: int, seed: Mapping[int, float] | None = None) -> None:
        # One point at each power of two, up to the first that is not below max_rows.
        self._nodes = [0.0] * ((max_rows - 1).bit_length() + 1)
        self._anchor: list[float] = []
        self._measured = [0] * len(self._nodes)  # the number of the run that measured each point
        self._runs = 0
        self.is_known = False
        self._gain = 1.0
        if seed:
            self._plant(dict(seed))

    def __call__(self, rows: int) -> float:
        """Return the expected seconds of a run of ``rows`` (at least 1); 0.0 while nothing is known."""
        nodes = self._nodes
        low = rows.bit_length() - 1
        last = len(nodes) - 1
        if low >= last:
            return nodes[last] * rows / (1 << last)
        start = nodes[low]
        return start + (nodes[low + 1] - start) * (rows - (1 << low)) / (1 << low)

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one run."""
        seconds = max(seconds, _LEAST_S)
        if not self.is_known:
            self._plant({rows: seconds})
            return
        ratio = seconds / self(rows)
        self._gain = max(_GAIN, self._gain * 0.7)
        self._adapt(rows, self._gain * (min(_MOST_RATIO, max(_LEAST_RATIO, ratio)) - 1.0))

    def most_rows(self, seconds: float, at_most: int) -> int:
        """Return how many rows, up to ``at_most``, are expected to run within ``seconds``; 0 if none."""
        if self(at_most) <= seconds:
            return at_most
        low, high = 0, at_most
        while high - low > 1:
            middle = (low + high) // 2
            if self(middle) <= seconds:
                low = middle
            else:
                high = middle
        return low

    def _adapt(self, rows: int, correction: float) -> None:
        nodes = self._nodes
        low = min(rows.bit_length() - 1, len(nodes) - 1)
        weight = min(1.0, (rows - (1 << low)) / (1 << low)) if low < len(nodes) - 1 else 0.0
        norm = weight * weight + (1.0 - weight) * (1.0 - weight)
        nodes[low] *= 1.0 + correction * (1.0 - weight) / norm
        if weight:
            nodes[low + 1] *= 1.0 + correction * weight / norm
        self._bring_along(low, low + 1 if weight else low)

    def _bring_along(self, low: int, high: int) -> None:
        """Let the points that no run has measured lately follow those that this one did.

        They drift towards the shape that was measured at first, scaled to what is measured now: a
        point that a bad moment has raised would else keep batches of its size from ever being
        tried again. Whatever is known, more rows take no less time, and twice the rows no more than thrice.
        """
        nodes, measured = self._nodes, self._measured
        self._runs += 1
        measured[low] = measured[high] = self._runs
        if self._runs % _STALE_AFTER == 0:
            self._drift(nodes[low] / self._anchor[low])
        if nodes[high] < nodes[low]:
            nodes[low] = nodes[high] = (nodes[low] + nodes[high]) / 2
        for index in range(low - 1, -1, -1):
            least, most = nodes[index + 1] / _STEEPEST, nodes[index + 1]
            if least <= nodes[index] <= most:
                break  # and so do those below
            nodes[index] = min(max(nodes[index], least), most)
        for index in range(high + 1, len(nodes)):
            least, most = nodes[index - 1], _STEEPEST * nodes[index - 1]
            if least <= nodes[index] <= most:
                break
            nodes[index] = min(max(nodes[index], least), most)

    def _drift(self, scale: float) -> None:
        nodes, anchor = self._nodes, self._anchor
        for index, run in enumerate(self._measured):
            if self._runs - run >= _STALE_AFTER:
                nodes[index] += _DRIFT * (anchor[index] * scale - nodes[index])
        for index in range(1, len(nodes)):
            nodes[index] = max(nodes[index], nodes[index - 1])

    def _plant(self, seed: dict[int, float]) -> None:
        """Take the seed's times as they are, with lines between; below them level.

        Above them, from twice the rows on, with the square root, less than any model takes in the
        end: what is taken to be too slow for its limit is never tried, and so never learned.
        """
        known = sorted(seed.items())
        for index in range(len(self._nodes)):
            rows = 1 << index
            below = [each for each in known if each[0] <= rows]
            above = [each for each in known if each[0] >= rows]
            if not below:
                self._nodes[index] = above[0][1]
            elif not above:
                times = rows / below[-1][0]
                self._nodes[index] = below[-1][1] * (times if times < 2 else math.sqrt(times))
            elif below[-1][0] == above[0][0]:
                self._nodes[index] = below[-1][1]
            else:
                (r0, s0), (r1, s1) = below[-1], above[0]
                self._nodes[index] = s0 + (s1 - s0) * (rows - r0) / (r1 - r0)
        for index in range(1, len(self._nodes)):
            self._nodes[index] = max(self._nodes[index], self._nodes[index - 1])
        self._nodes = [max(_LEAST_S, each) for each in self._nodes]
        self._anchor = list(self._nodes)
        self.is_known = True

    def __repr__(self) -> str:
        points = ", ".join(f"{1 << index}: {each * 1e3:.3f} ms" for index, each in enumerate(self._nodes))
        return f"<RunTimes {points}>"
