from __future__ import annotations

import pytest

from tensorferry.execution.drift import (
    BLOCKED_S,
    INLINE_BELOW_S,
    LEAVE_ABOVE_S,
    MAX_INLINE_S,
    RETURN_BELOW_S,
    DriftWatch,
)

QUICK_S = 30e-6


def inline(**more) -> DriftWatch:
    return DriftWatch(is_inline=True, may_return=True, **more)


def on_thread(may_return=True) -> DriftWatch:
    return DriftWatch(is_inline=False, may_return=may_return)


def runs_until_move(watch: DriftWatch, run_s: float, most: int = 1000) -> int | None:
    """Feed equal runs at one instant; return after how many the watch says to move."""
    return next((number for number in range(1, most + 1) if watch.saw(run_s, run_s, 0.0)), None)


def seconds_until_move(watch: DriftWatch, run_s: float, most_s: int = 2000) -> float | None:
    """Feed fifty equal runs a second; return after how many seconds the watch says to move."""
    return next((tick / 50 for tick in range(most_s * 50) if watch.saw(run_s, run_s, tick / 50)), None)


def test_limits_are_in_their_order():
    assert INLINE_BELOW_S < RETURN_BELOW_S < LEAVE_ABOVE_S < MAX_INLINE_S < BLOCKED_S


@pytest.mark.parametrize("run_s", [QUICK_S, INLINE_BELOW_S, LEAVE_ABOVE_S * 0.99])
def test_model_that_is_quick_enough_stays_on_the_loop_thread(run_s):
    assert runs_until_move(inline(), run_s) is None


@pytest.mark.parametrize(("run_s", "at_most"), [(LEAVE_ABOVE_S * 1.5, 20), (MAX_INLINE_S, 12), (1.0, 4)])
def test_model_that_becomes_slower_leaves_the_loop_thread(run_s, at_most):
    watch = inline()
    assert runs_until_move(watch, QUICK_S) is None
    count = runs_until_move(watch, run_s)
    assert count is not None
    assert 1 < count <= at_most


@pytest.mark.parametrize("hiccup_s", [5e-3, 0.5])
def test_one_run_that_was_held_up_moves_nothing_however_long_it_took(hiccup_s):
    watch = inline()
    for _ in range(20):
        assert not watch.saw(hiccup_s, hiccup_s, 0.0)
        assert runs_until_move(watch, QUICK_S, 40) is None


def test_runs_that_neighbours_hold_up_move_nothing_until_they_block_the_loop():
    watch = inline()
    assert not any(watch.saw(BLOCKED_S * 0.9, QUICK_S, 0.0) for _ in range(1000))
    assert [watch.saw(BLOCKED_S, QUICK_S, 0.0) for _ in range(2)] == [False, True]


def test_model_returns_under_load_though_its_runs_wait_for_the_core():
    watch = on_thread()
    assert any(watch.saw(MAX_INLINE_S, QUICK_S, tick / 50) for tick in range(50 * 20))


def test_two_runs_in_a_row_that_block_the_loop_move_the_model_at_once():
    watch = inline()
    assert runs_until_move(watch, QUICK_S) is None
    assert runs_until_move(watch, BLOCKED_S) == 2


def test_model_that_is_told_to_run_inline_leaves_only_when_it_blocks_the_loop():
    watch = inline(stays=True)
    assert runs_until_move(watch, BLOCKED_S * 0.99) is None
    assert runs_until_move(watch, BLOCKED_S) == 2
    watch.moved()
    assert seconds_until_move(watch, QUICK_S) is None, "it doesn't come back"


def test_model_that_has_become_quick_returns_after_some_seconds():
    seconds = seconds_until_move(on_thread(), QUICK_S)
    assert seconds is not None
    assert 5 <= seconds < 7


@pytest.mark.parametrize("run_s", [RETURN_BELOW_S, LEAVE_ABOVE_S, 1.0])
def test_model_that_is_not_well_below_the_limit_stays_on_its_thread(run_s):
    assert seconds_until_move(on_thread(), run_s) is None


def test_model_whose_slowest_batch_is_unknown_or_too_long_never_returns():
    assert seconds_until_move(on_thread(may_return=False), QUICK_S) is None


def test_quiet_time_starts_again_when_the_model_is_slow_meanwhile():
    watch = on_thread()
    quiet = [watch.saw(QUICK_S, QUICK_S, tick / 50) for tick in range(4 * 50)]
    slow = [watch.saw(1.0, 1.0, 4.0)]
    again = [watch.saw(QUICK_S, QUICK_S, 4.0 + tick / 50) for tick in range(5 * 50)]
    assert not any(quiet + slow + again)


def test_each_return_takes_twice_as_long_as_the_one_before_up_to_a_limit():
    watch = on_thread()
    took = []
    for _ in range(9):
        took.append(seconds_until_move(watch, QUICK_S))
        watch.moved()
        assert runs_until_move(watch, BLOCKED_S) == 2
        watch.moved()
    assert [round(seconds / 5) for seconds in took] == [1, 2, 4, 8, 16, 32, 64, 128, 128]


def test_measurement_begins_anew_at_the_new_place():
    watch = inline()
    assert runs_until_move(watch, BLOCKED_S) == 2
    watch.moved()
    assert not watch.is_inline
    assert seconds_until_move(watch, QUICK_S) is not None
    watch.moved()
    assert watch.is_inline
    assert not watch.saw(BLOCKED_S, BLOCKED_S, 0.0), "what it did before it left counts no more"


def test_run_whose_cpu_time_was_not_measured_changes_nothing():
    watch = inline()
    assert runs_until_move(watch, QUICK_S) is None
    before = watch.mean_s
    assert not any(watch.saw(BLOCKED_S / 2, -1.0, 0.0) for _ in range(1000))
    assert watch.mean_s == before


def test_loop_that_is_blocked_is_noticed_though_no_cpu_time_was_measured():
    watch = inline()
    assert [watch.saw(BLOCKED_S, -1.0, 0.0) for _ in range(2)] == [False, True]
