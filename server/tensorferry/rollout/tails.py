"""Exact tails of the binomial distribution, and the bounds that they give.

Sums of at most some hundred terms, from the largest outwards, with logarithms of factorials from
``math.lgamma``: microseconds, and no scipy.
"""

from __future__ import annotations

from math import exp, lgamma, log, log1p

__all__ = ["highest_by_chance", "lower_tail", "quantile_rank", "upper_rate", "upper_tail"]

#: Terms below this part of the sum no longer change it.
_NEGLIGIBLE = 1e-12


def upper_tail(hits: int, trials: int, rate: float) -> float:
    """Return P(X >= hits) for X ~ Binomial(trials, rate)."""
    if hits <= 0:
        return 1.0
    if hits > trials or rate <= 0.0:
        return 0.0
    if rate >= 1.0:
        return 1.0
    if hits <= trials * rate:
        return max(0.0, 1.0 - lower_tail(hits - 1, trials, rate))
    odds = rate / (1.0 - rate)
    total, term = 0.0, _probability(hits, trials, rate)
    for count in range(hits, trials + 1):
        total += term
        if term < total * _NEGLIGIBLE:
            break
        term *= (trials - count) / (count + 1) * odds
    return min(1.0, total)


def lower_tail(hits: int, trials: int, rate: float) -> float:
    """Return P(X <= hits) for X ~ Binomial(trials, rate)."""
    if hits >= trials or rate <= 0.0:
        return 1.0
    if hits < 0 or rate >= 1.0:
        return 0.0
    if hits > trials * rate:
        return max(0.0, 1.0 - upper_tail(hits + 1, trials, rate))
    inverse_odds = (1.0 - rate) / rate
    total, term = 0.0, _probability(hits, trials, rate)
    for count in range(hits, -1, -1):
        total += term
        if term < total * _NEGLIGIBLE:
            break
        term *= count / (trials - count + 1) * inverse_odds
    return min(1.0, total)


def upper_rate(hits: int, trials: int, level: float) -> float:
    """Return the highest rate that isn't refuted at ``level`` by ``hits`` of ``trials``; 1 without trials.

    The one-sided upper bound of Clopper and Pearson (Biometrika 26, 1934).
    """
    if hits >= trials:
        return 1.0
    low, high = hits / trials, 1.0
    while high - low > 1e-6 + 1e-3 * low:
        middle = (low + high) / 2
        if lower_tail(hits, trials, middle) > level:
            low = middle
        else:
            high = middle
    return high


def highest_by_chance(highest: int, own: int, others: int) -> float:
    """Return the probability that the ``highest`` largest of ``own + others`` equal values are all own.

    Equal in distribution, that is: every order of them is as likely. Exact, whatever the distribution.
    """
    together = own + others
    return exp(
        lgamma(own + 1) - lgamma(own - highest + 1) - lgamma(together + 1) + lgamma(together - highest + 1)
    )


def quantile_rank(trials: int, above: float, level: float) -> int:
    """Return how many of ``trials`` values may lie above a bound on the quantile; -1 if there is none.

    ``above`` is the quantile's complement (0.01 for p99). The bound, a value of the sample with no
    more than that many above it, is below the true quantile with a probability of at most ``level``.
    """
    low, high = -1, int(trials * above)
    while low < high:
        middle = (low + high + 1) // 2
        if lower_tail(middle, trials, above) <= level:
            low = middle
        else:
            high = middle - 1
    return low


def _probability(hits: int, trials: int, rate: float) -> float:
    ways = lgamma(trials + 1) - lgamma(hits + 1) - lgamma(trials - hits + 1)
    return exp(ways + hits * log(rate) + (trials - hits) * log1p(-rate))
