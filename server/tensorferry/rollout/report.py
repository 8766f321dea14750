"""From counts to what people read: percentiles, a histogram of some twenty bars, an AUC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Final

import numpy as np

from tensorferry.rollout.auc import Interval, auc
from tensorferry.rollout.counts import ArmCounts
from tensorferry.rollout.histograms import DIFFERENCE_EDGES, LATENCY_EDGES_S, SCORE_EDGES, coarse, quantile
from tensorferry.rollout.shadow_counts import ShadowCounts

__all__ = ["ArmReport", "Bars", "ShadowReport", "arm_report", "score_bounds", "shadow_report"]

#: For scores from 0 to 1: fine at both ends, where probabilities crowd.
_PROBABILITY_BOUNDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4),
    *(0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995),
)
_DIFFERENCE_BOUNDS: Final = (1e-6, 1e-5, 1e-4, 1e-3, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0)
_BARS: Final = 20


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram: ``counts[i]`` values from ``bounds[i - 1]`` to below ``bounds[i]``, with open ends."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ArmReport:
    """One arm's figures. Latencies in milliseconds: upper edges of buckets 4.4 % wide.

    A percentile among requests that got no answer in time is infinite. ``score_mean`` is over rows.
    ``labelled`` are the labels that were matched; ``auc`` is None unless both labels occur.
    """

    requests: int
    errors: int
    not_finite: int
    late: int
    latency_p50_ms: float
    latency_p99_ms: float
    scores: Bars
    score_mean: float
    labelled: int
    auc: Interval | None


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """How a shadow's scores differ from the live ones: |difference|, over rows."""

    differences: Bars
    compared: int
    dropped: int
    errors: int
    incompatible: int


def score_bounds(arms: Sequence[ArmCounts]) -> tuple[float, ...]:
    """Return bounds for bars that suit the scores of all ``arms``, so that they can be compared."""
    together = sum((arm.scores for arm in arms), start=ArmCounts().scores)
    where = np.flatnonzero(together)
    if not len(where):
        return _PROBABILITY_BOUNDS
    lowest = SCORE_EDGES[max(0, int(where[0]) - 1)]
    highest = SCORE_EDGES[min(len(SCORE_EDGES) - 1, int(where[-1]))]
    # 1 itself is in the bucket that begins there.
    if lowest >= 0.0 and int(where[-1]) <= SCORE_EDGES.index(1.0) + 1:
        return _PROBABILITY_BOUNDS
    step = _round_step((highest - lowest) / _BARS)
    first = (floor(lowest / step) + 1) * step
    count = max(1, round((highest - first) / step))
    return tuple([float(f"{first + step * index:.6g}") for index in range(count)])


def _round_step(step: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    unit = 10.0 ** floor(log10(step))
    return next(factor * unit for factor in (1, 2, 5, 10, 20) if factor * unit >= step)


def arm_report(
    counts: ArmCounts, bounds: Sequence[float], pairs: Sequence[tuple[float, int]] = ()
) -> ArmReport:
    """Make an arm's report; ``bounds`` are ``score_bounds``, ``pairs`` the (score, label) fed back."""
    return ArmReport(
        requests=counts.requests,
        errors=counts.errors,
        not_finite=counts.not_finite,
        late=counts.late,
        latency_p50_ms=quantile(counts.latencies, LATENCY_EDGES_S, 0.5) * 1e3,
        latency_p99_ms=quantile(counts.latencies, LATENCY_EDGES_S, 0.99) * 1e3,
        scores=Bars(tuple(bounds), tuple(coarse(counts.scores, SCORE_EDGES, bounds))),
        score_mean=counts.score_sum / counts.score_count if counts.score_count else 0.0,
        labelled=len(pairs),
        auc=auc(pairs),
    )


def shadow_report(counts: ShadowCounts) -> ShadowReport:
    """Make a shadow's report."""
    bars = coarse(counts.differences, DIFFERENCE_EDGES, _DIFFERENCE_BOUNDS)
    return ShadowReport(
        differences=Bars(_DIFFERENCE_BOUNDS, tuple(bars)),
        compared=counts.compared,
        dropped=counts.dropped,
        errors=counts.errors,
        incompatible=counts.incompatible,
    )
