"""A histogram of durations that costs a batch little more than it would cost one request.

The bounds are Renard's R10 series, ten to a decade (ISO 3), from 10 us to 10 s: each is about a quarter
above the one before. They are constants, so that counts of several processes, and of two moments, add
and subtract. A value counts in the first bucket whose bound it doesn't exceed, as in Prometheus.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

__all__ = ["BOUNDS_S", "Histogram", "in_python"]

_RENARD: Final = (1.0, 1.25, 1.6, 2.0, 2.5, 3.15, 4.0, 5.0, 6.3, 8.0)

#: Upper bounds in seconds. Written as decimals and parsed, so that 0.00025 is the float of that name.
BOUNDS_S: Final = (*(float(f"{step}e{decade}") for decade in range(-5, 1) for step in _RENARD), 10.0)

_LAST: Final = len(BOUNDS_S)
_NOTHING: Final = [0] * (_LAST + 1)


def in_python(counts: array[int], values_s: list[float], shift_s: float) -> None:
    """Count durations, each ``shift_s`` longer than it says; the list is sorted on the way.

    A search for each bucket that is hit, not for each value: the waits of a batch of 64 lie in about ten
    buckets, and cost some 30 ns each so. The extension takes some 10.
    """
    values_s.sort()
    bounds, index, end = BOUNDS_S, 0, len(values_s)
    bucket = bisect_left(bounds, values_s[0] + shift_s) if values_s else _LAST
    while bucket < _LAST:
        after = bisect_right(values_s, bounds[bucket] - shift_s, index)
        if after == index:  # an empty bucket: leap to the one of the next value
            bucket = max(bucket + 1, bisect_left(bounds, values_s[index] + shift_s))
            continue
        counts[bucket] += after - index
        if after == end:
            return
        index = after
        bucket += 1
    counts[_LAST] += end - index


def _one_in_python(counts: array[int], value_s: float) -> None:
    counts[bisect_left(BOUNDS_S, value_s)] += 1


_tally: Callable[[array[int], list[float], float], None] = in_python
_tally_one: Callable[[array[int], float], None] = _one_in_python
try:
    from tensorferry.batching import _histogram

    _histogram.use(BOUNDS_S)
    _tally, _tally_one = _histogram.tally, _histogram.tally_one
except ImportError:
    pass  # not built: Python does it


class Histogram:
    """Counts by bucket (one more than there are bounds: the last is open) and the sum in seconds."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = array("q", _NOTHING)
        self.sum_s = 0.0

    def add(self, value_s: float) -> None:
        """Count one duration."""
        _tally_one(self.counts, value_s)
        self.sum_s += value_s

    def add_all(self, values_s: list[float], total_s: float, shift_s: float = 0.0) -> None:
        """Count durations, each ``shift_s`` longer than it says; ``total_s`` is their sum as they are.

        The list may be sorted on the way.
        """
        _tally(self.counts, values_s, shift_s)
        self.sum_s += total_s + len(values_s) * shift_s

    def copy(self) -> Histogram:
        """Return the counts of this moment."""
        other = Histogram()
        other.counts = self.counts[:]
        other.sum_s = self.sum_s
        return other

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)

    def __repr__(self) -> str:
        return f"<Histogram {self.count} values, {self.sum_s:.6g} s>"
