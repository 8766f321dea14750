"""Buckets for latencies, scores and differences of scores, and what is read from their counts.

Bucket ``i`` holds what is at least ``edges[i - 1]`` and below ``edges[i]``: the first and the last are
open. The edges are constants, so that counts of several processes, and of two moments, add and subtract.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "DIFFERENCE_EDGES",
    "LATENCY_EDGES_S",
    "SCORE_EDGES",
    "Counts",
    "coarse",
    "empty",
    "exceeded_by",
    "from_sparse",
    "quantile",
    "sparse",
]

#: How many values each bucket holds: one more than there are edges.
Counts = npt.NDArray[np.int64]

_PER_OCTAVE_LATENCY: Final = 16  # 4.4 % wide
_PER_OCTAVE_SCORE: Final = 24  # 2.9 % wide


def _powers(first: int, last: int, per_octave: int) -> list[float]:
    """Return 2**first to 2**last, both included, in equal steps of the exponent."""
    return [2.0 ** (first + step / per_octave) for step in range((last - first) * per_octave + 1)]


def _score_edges() -> tuple[float, ...]:
    """Return edges for scores of any range, fine around 0 on both sides and just below 1.

    Probabilities crowd at 0 and at 1. Relative to their size, those at 1 would all be in one bucket,
    so there the edges are relative to the distance from 1.
    """
    positive = _powers(-30, 20, _PER_OCTAVE_SCORE)
    below_one = [1.0 - each for each in _powers(-24, -1, _PER_OCTAVE_SCORE)]
    return tuple(sorted({0.0, *positive, *below_one, *(-each for each in positive)}))


#: Seconds, from 10 us to more than 60 s.
LATENCY_EDGES_S: Final = tuple(1e-5 * each for each in _powers(0, 23, _PER_OCTAVE_LATENCY))
SCORE_EDGES: Final = _score_edges()
#: Of what isn't negative; the first bucket is nearly equal scores.
DIFFERENCE_EDGES: Final = tuple(_powers(-30, 20, 4))


def empty(edges: Sequence[float]) -> Counts:
    """Return counts of nothing."""
    return np.zeros(len(edges) + 1, dtype=np.int64)


def sparse(counts: Counts) -> list[int]:
    """Return index, count, index, count, ... of the buckets that hold anything."""
    where = np.flatnonzero(counts)
    return [int(each) for each in np.column_stack((where, counts[where])).ravel()]


def from_sparse(pairs: Sequence[int], edges: Sequence[float]) -> Counts:
    """Return what ``sparse`` was made of."""
    counts = empty(edges)
    counts[np.asarray(pairs[::2], dtype=np.int64)] = pairs[1::2]
    return counts


def quantile(counts: Counts, edges: Sequence[float], share: float) -> float:
    """Return the upper edge of the bucket in which the quantile lies, ``share`` being above 0.

    0 of nothing; infinity if the quantile lies above the last edge.
    """
    # Rounded, because 0.99 of 100 is 99 and a little in binary.
    total = int(counts.sum())
    return exceeded_by(counts, edges, total - ceil(round(share * total, 6)))


def exceeded_by(counts: Counts, edges: Sequence[float], above: int) -> float:
    """Return the lowest edge that at most ``above`` of the values exceed; 0 and infinity as ``quantile``."""
    total = int(counts.sum())
    if not total:
        return 0.0
    index = int(np.searchsorted(np.cumsum(counts), total - above))
    return edges[index] if index < len(edges) else float("inf")


def coarse(counts: Counts, edges: Sequence[float], bounds: Sequence[float]) -> list[int]:
    """Sum the buckets up into the few that ``bounds`` makes: ``len(bounds) + 1`` counts.

    A bucket that a bound cuts is counted where its lower edge is.
    """
    lower = np.array([-np.inf, *edges])
    into = np.searchsorted(np.asarray(bounds), lower, side="right")
    return [int(each) for each in np.bincount(into, weights=counts, minlength=len(bounds) + 1)]
