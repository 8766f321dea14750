from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.histogram import BOUNDS_S, Histogram, in_python

SECONDS = st.floats(0.0, 20.0, allow_subnormal=False)
NEAR_BOUNDS = st.sampled_from(BOUNDS_S)


def one_by_one(values) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def test_bounds_are_ten_to_a_decade_from_10_us_to_10_s():
    assert (BOUNDS_S[0], BOUNDS_S[-1], len(BOUNDS_S)) == (1e-5, 10.0, 61)
    steps = [after / before for before, after in pairwise(BOUNDS_S)]
    assert min(steps) > 1.2
    assert max(steps) < 1.3


def test_bounds_that_are_exported_are_the_floats_of_their_names():
    assert {0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05} <= set(BOUNDS_S)
    assert {0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0} <= set(BOUNDS_S)


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (1e-5, 0), (1.01e-5, 1), (10.0, 60), (10.5, 61)])
def test_a_value_counts_where_it_does_not_exceed_the_bound(value, bucket):
    histogram = one_by_one([value])
    assert histogram.counts[bucket] == histogram.count == 1
    assert histogram.sum_s == value


@given(st.lists(SECONDS | NEAR_BOUNDS, min_size=1, max_size=80))
def test_many_values_count_as_one_by_one(values):
    many = Histogram()
    many.add_all(list(values), sum(values))
    single = one_by_one(values)
    assert many.counts == single.counts
    assert many.sum_s == pytest.approx(single.sum_s)


@given(st.lists(SECONDS | NEAR_BOUNDS, min_size=1, max_size=80), SECONDS | NEAR_BOUNDS)
def test_shifted_values_all_count_in_their_bucket_or_one_that_rounding_makes_it(values, shift):
    histogram = Histogram()
    histogram.add_all(list(values), sum(values), shift)
    assert histogram.count == len(values)
    exact = [0] * len(histogram.counts)
    for value in values:
        exact[bisect_left(BOUNDS_S, value + shift)] += 1
    # The sum and the difference round apart by one step of a float: only a value that lies that near
    # to a bound may move, and only to the bucket beside.
    near = sum(
        1 for value in values if any(abs(value + shift - bound) <= 1e-14 * (1 + bound) for bound in BOUNDS_S)
    )
    assert sum(abs(mine - theirs) for mine, theirs in zip(histogram.counts, exact, strict=True)) <= 2 * near


def test_a_copy_stays_as_it_was():
    histogram = one_by_one([0.5])
    copy = histogram.copy()
    histogram.add(0.5)
    assert (copy.count, copy.sum_s) == (1, 0.5)


@given(st.lists(SECONDS | NEAR_BOUNDS, max_size=80))
def test_python_counts_as_the_extension_does(values):
    """Where it isn't built, both are the same."""
    histogram = Histogram()
    histogram.add_all(list(values), sum(values))
    counts = array("q", [0] * len(histogram.counts))
    in_python(counts, list(values), 0.0)
    assert counts == histogram.counts


def test_the_extension_refuses_counts_of_other_buckets():
    extension = pytest.importorskip("tensorferry.batching._histogram", reason="the extension isn't built")
    for counts in (array("q", [0] * 3), array("i", [0] * (len(BOUNDS_S) + 1))):
        with pytest.raises(ValueError, match="other buckets"):
            extension.tally(counts, [1.0], 0.0)
        with pytest.raises(ValueError, match="other buckets"):
            extension.tally_one(counts, 1.0)
    with pytest.raises(TypeError):
        extension.tally(array("q", [0] * (len(BOUNDS_S) + 1)), ["a"], 0.0)
