"""The AUC and its interval, against brute force, the bootstrap and figures that can be reckoned by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.rollout.auc import auc

LABELLED = st.lists(st.tuples(st.integers(-5, 5).map(float), st.integers(0, 1)), min_size=1, max_size=60)


def split(pairs):
    positives = np.array([score for score, label in pairs if label == 1])
    negatives = np.array([score for score, label in pairs if label == 0])
    return positives, negatives


def kernel(positives, negatives):
    """1 for each pair in order, 1/2 for a tie: O(n^2), straight from the definition."""
    return (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)


def drawn(seed, positives, negatives, shift, digits=6):
    random = np.random.default_rng(seed)
    scores = np.round(
        np.concatenate((random.normal(shift, 1, positives), random.normal(0, 1, negatives))), digits
    )
    return [(float(score), int(index < positives)) for index, score in enumerate(scores)]


@given(LABELLED)
def test_ties_and_all_the_value_is_that_of_every_pair_compared(pairs):
    positives, negatives = split(pairs)
    found = auc(pairs)
    if not len(positives) or not len(negatives):
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(kernel(positives, negatives).mean())
        assert 0.0 <= found.low <= found.value + 1e-12
        assert found.value - 1e-12 <= found.high <= 1.0


@pytest.mark.parametrize("digits", [6, 1])
def test_the_interval_is_that_of_delongs_variance_by_brute_force(digits):
    pairs = drawn(1, 40, 200, 1.0, digits)
    matrix = kernel(*split(pairs))
    variance = matrix.mean(axis=1).var(ddof=1) / 40 + matrix.mean(axis=0).var(ddof=1) / 200
    value = matrix.mean()
    width = 1.959964 * np.sqrt(variance) / (value * (1 - value))
    logit = np.log(value / (1 - value))
    found = auc(pairs)
    assert found.low == pytest.approx(1 / (1 + np.exp(-(logit - width))))
    assert found.high == pytest.approx(1 / (1 + np.exp(-(logit + width))))


def test_the_interval_agrees_with_the_bootstrap():
    pairs = drawn(2, 150, 600, 1.2)
    positives, negatives = split(pairs)
    matrix = kernel(positives, negatives)
    random = np.random.default_rng(3)
    values = [
        matrix[np.ix_(random.integers(0, 150, 150), random.integers(0, 600, 600))].mean() for _ in range(800)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    found = auc(pairs)
    assert found.low == pytest.approx(low, abs=0.008)
    assert found.high == pytest.approx(high, abs=0.008)


def test_the_interval_holds_the_true_value_nineteen_times_in_twenty():
    true = 0.7602499389  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt(2))
    held = sum(
        found.low <= true <= found.high for found in (auc(drawn(seed, 60, 120, 1.0)) for seed in range(400))
    )
    assert 365 <= held <= 394


def test_known_values():
    assert auc([(0.1, 0), (0.4, 0), (0.35, 1), (0.8, 1)]).value == 0.75
    assert auc([(1.0, 0), (1.0, 1)]).value == 0.5
    assert auc([(0.9, 0), (0.1, 1)]).value == 0.0


@pytest.mark.parametrize("pairs", [[], [(0.5, 1)], [(0.1, 0), (0.2, 0)]])
def test_it_is_undefined_without_both_labels(pairs):
    assert auc(pairs) is None


def test_all_in_order_is_sure_of_no_more_than_the_number_of_labels_allows():
    few = auc([(0.1, 0)] * 5 + [(0.9, 1)] * 5)
    many = auc([(0.1, 0)] * 500 + [(0.9, 1)] * 500)
    assert (few.value, few.high) == (1.0, 1.0)
    assert few.low == pytest.approx(0.025 ** (1 / 5))
    assert many.low == pytest.approx(0.025 ** (1 / 500))
    worst = auc([(0.9, 0)] * 5 + [(0.1, 1)] * 5)
    assert (worst.low, worst.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 5)))


def test_scores_that_are_all_the_same_say_little():
    found = auc([(0.5, 0)] * 50 + [(0.5, 1)] * 50)
    assert found.value == 0.5
    assert found.low < 0.35
    assert found.high > 0.65
