"""Tails of the binomial distribution, against sums of exact fractions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from tensorferry.rollout.tails import highest_by_chance, lower_tail, quantile_rank, upper_rate, upper_tail


def exactly(counts, trials: int, rate: Fraction) -> float:
    return float(sum(comb(trials, count) * rate**count * (1 - rate) ** (trials - count) for count in counts))


@pytest.mark.parametrize("trials", [1, 7, 100, 300])
@pytest.mark.parametrize("rate", [Fraction(1, 1000), Fraction(1, 100), Fraction(1, 2), Fraction(9, 10)])
def test_tails_are_exact(trials, rate):
    for hits in sorted({0, 1, 2, 5, trials // 2, trials - 1, trials}):
        if hits > trials:
            continue
        upper = exactly(range(hits, trials + 1), trials, rate)
        lower = exactly(range(hits + 1), trials, rate)
        assert upper_tail(hits, trials, float(rate)) == pytest.approx(upper, rel=1e-8, abs=1e-12)
        assert lower_tail(hits, trials, float(rate)) == pytest.approx(lower, rel=1e-8, abs=1e-12)


def test_tails_at_the_ends():
    assert upper_tail(0, 10, 0.5) == 1.0
    assert upper_tail(11, 10, 0.5) == 0.0
    assert upper_tail(1, 10, 0.0) == 0.0
    assert upper_tail(10, 10, 1.0) == upper_tail(3, 10, 1.5) == 1.0
    assert lower_tail(10, 10, 0.5) == 1.0
    assert lower_tail(-1, 10, 0.5) == 0.0
    assert lower_tail(9, 10, 1.0) == 0.0


def test_a_million_trials_neither_overflow_nor_lose_the_tail():
    # Five standard deviations; the normal distribution has 2.9e-7 there.
    assert upper_tail(10_498, 10**6, 0.01) == pytest.approx(3.6e-7, rel=0.2)
    assert lower_tail(9_502, 10**6, 0.01) == pytest.approx(2.2e-7, rel=0.2)


@pytest.mark.parametrize(("hits", "trials"), [(0, 50), (3, 50), (40, 50), (120, 100_000)])
def test_the_upper_rate_is_where_the_tail_has_the_level(hits, trials):
    rate = upper_rate(hits, trials, 1e-3)
    assert lower_tail(hits, trials, rate) == pytest.approx(1e-3, rel=0.1)


def test_the_upper_rate_of_nothing_is_one():
    assert upper_rate(0, 0, 1e-3) == upper_rate(5, 5, 1e-3) == 1.0


def test_the_rank_of_a_quantiles_bound_is_the_highest_that_keeps_the_level():
    # 0.99**687 is above 1e-3, and 0.99**688 below: no sample of 687 has a bound on its p99.
    assert quantile_rank(687, 0.01, 1e-3) == -1
    assert quantile_rank(688, 0.01, 1e-3) == 0
    rank = quantile_rank(100_000, 0.01, 1e-3)
    assert lower_tail(rank, 100_000, 0.01) <= 1e-3 < lower_tail(rank + 1, 100_000, 0.01)
    assert quantile_rank(0, 0.01, 1e-3) == -1


@pytest.mark.parametrize(("highest", "own", "others"), [(0, 5, 5), (1, 1, 3), (3, 5, 9), (40, 100, 300)])
def test_the_highest_are_all_own_as_often_as_counting_says(highest, own, others):
    ways = Fraction(comb(own, highest), comb(own + others, highest))
    assert highest_by_chance(highest, own, others) == pytest.approx(float(ways), rel=1e-9)
