"""Buckets: where a value falls, and what is read back."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import numpy as np
import pytest

from tensorferry.rollout.histograms import (
    DIFFERENCE_EDGES,
    LATENCY_EDGES_S,
    SCORE_EDGES,
    coarse,
    empty,
    exceeded_by,
    from_sparse,
    quantile,
    sparse,
)


@pytest.mark.parametrize("edges", [LATENCY_EDGES_S, SCORE_EDGES, DIFFERENCE_EDGES])
def test_edges_ascend(edges):
    assert all(later > earlier for earlier, later in pairwise(edges))


def test_latencies_from_ten_microseconds_to_a_minute_are_known_to_five_percent():
    assert LATENCY_EDGES_S[0] <= 10e-6
    assert LATENCY_EDGES_S[-1] >= 60.0
    assert max(np.diff(LATENCY_EDGES_S) / LATENCY_EDGES_S[:-1]) <= 0.05


@pytest.mark.parametrize("score", [1e-6, 0.003, 0.4, 7.5, 3000.0, -1e-6, -12.0])
def test_scores_are_known_to_three_percent_of_their_size(score):
    index = bisect_right(SCORE_EDGES, score)
    assert (SCORE_EDGES[index] - SCORE_EDGES[index - 1]) / abs(score) <= 0.031


@pytest.mark.parametrize("missing", [0.3, 1e-2, 1e-4, 1e-6])
def test_just_below_one_scores_are_known_to_three_percent_of_what_is_missing_to_one(missing):
    index = bisect_right(SCORE_EDGES, 1 - missing)
    assert (SCORE_EDGES[index] - SCORE_EDGES[index - 1]) / missing <= 0.031


def test_one_is_not_in_the_bucket_of_what_is_below_it():
    assert bisect_right(SCORE_EDGES, 1.0) != bisect_right(SCORE_EDGES, float(np.nextafter(1.0, 0.0)))


def test_sparse_counts_come_back():
    counts = empty(SCORE_EDGES)
    counts[[0, 17, len(SCORE_EDGES)]] = [3, 1, 2**40]
    assert sparse(counts) == [0, 3, 17, 1, len(SCORE_EDGES), 2**40]
    assert np.array_equal(from_sparse(sparse(counts), SCORE_EDGES), counts)
    assert sparse(empty(SCORE_EDGES)) == []
    assert np.array_equal(from_sparse([], SCORE_EDGES), empty(SCORE_EDGES))


def test_a_quantile_is_the_upper_edge_of_its_bucket():
    edges = [1.0, 2.0, 3.0]
    counts = np.array([50, 49, 1, 0])
    assert quantile(counts, edges, 0.5) == 1.0
    assert quantile(counts, edges, 0.51) == 2.0
    assert quantile(counts, edges, 0.99) == 2.0
    assert quantile(counts, edges, 0.995) == 3.0
    assert quantile(np.array([0, 0, 0, 1]), edges, 0.5) == float("inf")
    assert quantile(np.zeros(4, dtype=np.int64), edges, 0.5) == 0.0


def test_exceeded_by_leaves_no_more_than_so_many_above():
    edges = [1.0, 2.0, 3.0]
    counts = np.array([50, 49, 1, 0])
    assert [exceeded_by(counts, edges, above) for above in (0, 1, 49, 50)] == [3.0, 2.0, 2.0, 1.0]


def test_coarse_counts_sum_the_fine_ones_up():
    edges = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert coarse(np.array([1, 2, 3, 4, 5, 6]), edges, [1.0, 3.0]) == [1 + 2, 3 + 4, 5 + 6]
    assert coarse(np.zeros(6, dtype=np.int64), edges, [1.0]) == [0, 0]
