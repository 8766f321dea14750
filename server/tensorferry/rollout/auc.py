"""The area under the ROC curve of scores with known labels, and how sure it is.

The AUC is the probability that a random positive scores above a random negative, ties counting one
half (Mann-Whitney). Its variance is that of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988),
computed from mid-ranks in O(n log n) as Sun and Xu have shown (IEEE Signal Processing Letters 21,
2014). The interval is made on the logit scale and brought back, so that it stays within 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "auc"]

#: Two-sided 95 % of the normal distribution.
_SIGMAS: Final = 1.959963984540054
_OUTSIDE: Final = 0.05

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def auc(pairs: Sequence[tuple[float, int]]) -> Interval | None:
    """Return the AUC of (score, label) pairs, labels being 0 and 1; None unless both occur.

    Scores must be finite.
    """
    if not pairs:
        return None
    scores = np.array([score for score, _ in pairs], dtype=np.float64)
    is_positive = np.array([label == 1 for _, label in pairs])
    positives, negatives = scores[is_positive], scores[~is_positive]
    if not len(positives) or not len(negatives):
        return None
    above, below = _placements(positives, negatives)
    value = float(above.mean())
    fewer = min(len(positives), len(negatives))
    if fewer < 2:
        return Interval(value, *_without_variance(value, fewer))
    variance = float(above.var(ddof=1)) / len(positives) + float(below.var(ddof=1)) / len(negatives)
    if variance <= 0.0 or not 0.0 < value < 1.0:
        return Interval(value, *_without_variance(value, fewer))
    logit = log(value / (1.0 - value))
    width = _SIGMAS * sqrt(variance) / (value * (1.0 - value))
    return Interval(value, _from_logit(logit - width), _from_logit(logit + width))


def _placements(positives: _Floats, negatives: _Floats) -> tuple[_Floats, _Floats]:
    """Return each positive's share of negatives below it, and each negative's of positives above it.

    Ties count one half. DeLong's V10 and V01.
    """
    together = _mid_ranks(np.concatenate((positives, negatives)))
    above = (together[: len(positives)] - _mid_ranks(positives)) / len(negatives)
    below = 1.0 - (together[len(positives) :] - _mid_ranks(negatives)) / len(positives)
    return above, below


def _mid_ranks(values: _Floats) -> _Floats:
    """Return each value's rank from 1 on, equal values sharing the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: _Floats = last - (counts - 1) / 2
    return ranks[where]


def _without_variance(value: float, fewer: int) -> tuple[float, float]:
    """Return an interval where DeLong's variance is 0 or undefined: few labels, or all in order.

    So many disjoint pairs of a positive and a negative are independent. If all of them are in order,
    the chance of that is the AUC to their number, which gives the exact one-sided bound; else Hoeffding's
    inequality for U-statistics holds (J. Am. Stat. Assoc. 58, 1963).
    """
    bound = (_OUTSIDE / 2) ** (1 / fewer)
    if value == 1.0:
        return bound, 1.0
    if value == 0.0:
        return 0.0, 1.0 - bound
    width = sqrt(log(2 / _OUTSIDE) / (2 * fewer))
    return max(0.0, value - width), min(1.0, value + width)


def _from_logit(logit: float) -> float:
    # Of two forms the one whose exponential can't overflow.
    return 1.0 / (1.0 + exp(-logit)) if logit >= 0 else exp(logit) / (1.0 + exp(logit))
