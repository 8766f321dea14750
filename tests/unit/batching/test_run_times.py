from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.run_times import RunTimes

SEED = {1: 1.0, 2: 2.0, 4: 3.0, 8: 7.0}
ROWS = st.integers(1, 64)
SECONDS = st.floats(1e-7, 100.0)


def curve(times: RunTimes, most: int = 80) -> list[float]:
    return [times(rows) for rows in range(1, most + 1)]


def learned(times: RunTimes, rows: int, seconds: float, runs: int = 200) -> RunTimes:
    for _ in range(runs):
        times.observe(rows, seconds)
    return times


# -- the curve ----------------------------------------------------------------------------------


def test_nothing_is_known_before_the_first_run():
    times = RunTimes(8)
    assert not times.is_known
    assert curve(times, 8) == [0.0] * 8
    assert times.most_rows(0.0, 8) == 8


def test_seed_is_taken_as_it_is():
    times = RunTimes(8, SEED)
    assert times.is_known
    assert {rows: times(rows) for rows in SEED} == SEED


def test_between_its_points_the_curve_is_straight():
    times = RunTimes(8, SEED)
    assert times(3) == 2.5
    assert [times(rows) for rows in (5, 6, 7)] == [4.0, 5.0, 6.0]


def test_maximum_between_two_powers_of_two_has_points_around_it():
    times = RunTimes(6, {1: 1.0, 6: 6.0})
    assert curve(times, 6) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_sparse_seed_is_a_line_between_its_rows_level_before_and_a_root_after_them():
    times = RunTimes(32, {2: 2.0, 8: 5.0})
    assert [times(rows) for rows in (1, 2, 4, 8, 32)] == [2.0, 2.0, 3.0, 5.0, 10.0]


def test_seed_of_one_size_bounds_all_others():
    assert [RunTimes(16, {1: 0.5})(rows) for rows in (1, 4, 16)] == [0.5, 1.0, 2.0]
    assert [RunTimes(8, {8: 0.5})(rows) for rows in (1, 4, 8)] == [0.5, 0.5, 0.5]


def test_seed_that_falls_is_levelled():
    assert [RunTimes(4, {1: 3.0, 2: 1.0, 4: 2.0})(rows) for rows in (1, 2, 4)] == [3.0, 3.0, 3.0]


def test_empty_seed_is_none():
    assert not RunTimes(8, {}).is_known


@pytest.mark.parametrize("most", [1, 2, 8])
def test_more_rows_than_the_maximum_take_proportionally_longer(most):
    times = RunTimes(most, {most: 1.0})
    for rows in range(most, 6 * most):
        assert times(rows) == pytest.approx(rows / most), rows


# -- learning -----------------------------------------------------------------------------------


def test_first_run_gives_the_whole_curve():
    times = RunTimes(16)
    times.observe(4, 2.0)
    assert times.is_known
    assert [times(rows) for rows in (1, 4, 16)] == [2.0, 2.0, 4.0]


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("factor", [0.2, 0.7, 1.3, 10.0])
def test_repeated_runs_are_believed(rows, factor):
    times = RunTimes(8, SEED)
    seconds = times(rows) * factor
    assert learned(times, rows, seconds)(rows) == pytest.approx(seconds, rel=1e-3)


def test_curve_that_is_no_line_is_learned_from_runs_of_all_sizes():
    times = RunTimes(16, {1: 1.0, 4: 1.5, 16: 12.0})
    true_s = {1: 1.0, 2: 1.1, 4: 1.5, 8: 4.0, 16: 12.0}
    for _ in range(300):
        for rows, seconds in true_s.items():
            times.observe(rows, seconds)
    assert {rows: times(rows) for rows in true_s} == pytest.approx(true_s, rel=0.1)


def test_first_runs_count_for_more_than_later_ones():
    times = RunTimes(1, {1: 1.0})
    steps = []
    for _ in range(10):
        before = times(1)
        times.observe(1, 1.5 * before)
        steps.append(times(1) / before)
    assert steps[0] > 1.3
    assert steps[-1] == pytest.approx(1.05)


def test_one_run_that_was_interrupted_moves_little():
    times = learned(RunTimes(8, SEED), 8, 7.0)
    times.observe(8, 700.0)
    assert times(8) == pytest.approx(7.0 * 1.1)
    times.observe(8, 1e-9)
    assert times(8) > 7.0


def test_clock_that_stands_still_does_not_make_rows_free():
    assert learned(RunTimes(8, {1: 1e-5}), 8, 0.0)(8) > 0.0
    times = RunTimes(8)
    times.observe(1, 0.0)
    times.observe(1, 1.0)
    assert times(1) > 0.0


def test_seed_that_measured_nothing_can_be_learned_from():
    assert learned(RunTimes(4, {1: 0.0, 4: 0.0}), 4, 1.0, 1000)(4) == pytest.approx(1.0, rel=1e-3)


def test_points_not_measured_follow_those_that_are_in_the_shape_of_the_seed():
    times = learned(RunTimes(8, SEED), 1, 3.0, 400)
    assert [times(rows) for rows in SEED] == pytest.approx([3.0, 6.0, 9.0, 21.0], rel=0.01)


def test_size_that_had_a_bad_moment_is_tried_again_though_nothing_of_it_is_measured():
    times = learned(RunTimes(8, {1: 1.0, 8: 1.0}), 8, 100.0, 50)
    assert times(8) > 20.0
    learned(times, 1, 1.0, 300)
    assert times(8) < 1.5


@given(
    most=ROWS,
    seed=st.dictionaries(ROWS, st.floats(1e-6, 100.0), max_size=4),
    runs=st.lists(st.tuples(ROWS, SECONDS), max_size=30),
)
def test_more_rows_never_take_less_time_whatever_was_measured(most, seed, runs):
    times = RunTimes(most, seed)
    for rows, seconds in runs:
        times.observe(min(rows, most), seconds)
        seconds_by_rows = curve(times, most)
        assert seconds_by_rows[0] > 0.0
        for fewer, more in pairwise(seconds_by_rows):
            assert fewer <= more * (1 + 1e-12)


# -- the inverse --------------------------------------------------------------------------------


@given(
    most=ROWS,
    seed=st.dictionaries(ROWS, st.floats(1e-3, 100.0), min_size=1, max_size=4),
    seconds=st.floats(0.0, 200.0),
    at_most=ROWS,
)
def test_most_rows_is_the_inverse_of_the_curve(most, seed, seconds, at_most):
    times, at_most = RunTimes(most, seed), min(at_most, most)
    rows = times.most_rows(seconds, at_most)
    assert 0 <= rows <= at_most
    if rows:
        assert times(rows) <= seconds
    if rows < at_most:
        assert times(rows + 1) > seconds


def test_no_rows_where_even_one_takes_too_long():
    assert RunTimes(8, SEED).most_rows(0.5, 8) == 0
    assert RunTimes(8, SEED).most_rows(-1.0, 8) == 0
