from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.support import bytes_spec

from tensorferry.batching.batch import Batch
from tensorferry.batching.forecast import Forecast
from tensorferry.batching.pending import NEVER, Pending
from tensorferry.model import Bound

#: 1 s for each row.
SEED = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}
#: Beyond this many seconds without arrivals, none are expected.
QUIET_S = 10.0


def batch(rows: int = 1, at: float = 0.0) -> Batch:
    return Batch(bytes_spec(), [Pending(Bound([], rows, ()), lambda _: None)], at)


def forecast(streams: int = 1, seed=None, objective_s: float = 0.0, max_rows: int = 8) -> Forecast:
    forecast = Forecast(max_rows, streams, SEED if seed is None else seed, objective_s)
    forecast.is_needed = True
    return forecast


def test_while_nobody_asks_one_run_in_eight_is_learned_from_after_the_first_ones():
    idle = Forecast(8, 1, SEED, 0.0)
    learned = []
    for number in range(64):
        before = idle.expected(1)
        each = batch()
        idle.started(each, float(number))
        idle.finished(each, 0, number + 2 * before, True, 0)
        if idle.expected(1) != before:
            learned.append(number)
    assert learned == [*range(8), *range(15, 64, 8)]


# -- completion ---------------------------------------------------------------------------------


def test_nothing_is_forecast_while_no_run_time_is_known():
    unknown = forecast(seed={})
    assert unknown.completion(5.0, 99, 1, NEVER) == 5.0
    assert unknown.drained_s(99) == 0.0


def test_on_an_idle_stream_a_request_takes_its_own_run():
    assert forecast().completion(5.0, 0, 3, NEVER) == 8.0


def test_those_who_wait_share_the_batch_where_they_fit():
    assert forecast().completion(0.0, 3, 2, NEVER) == 5.0


def test_those_who_do_not_fit_leave_before_in_full_batches():
    assert forecast().completion(0.0, 8, 1, NEVER) == 8.0 + 1.0
    assert forecast().completion(0.0, 17, 2, NEVER) == 2 * 8.0 + 3.0


def test_running_batch_is_waited_for_and_one_that_overruns_ends_any_moment():
    known = forecast()
    known.started(batch(4), 0.0)
    assert known.completion(1.0, 0, 1, NEVER) == 4.0 + 1.0
    assert known.completion(6.0, 0, 1, NEVER) == 6.0 + 1.0


def test_batch_that_came_back_is_no_longer_waited_for():
    known = forecast()
    running = batch(4)
    known.started(running, 0.0)
    known.finished(running, 0, 1.0, False, 0)
    assert known.completion(1.0, 0, 1, NEVER) == 2.0


def test_several_streams_take_the_queue_in_turns():
    known = forecast(streams=2)
    assert known.completion(0.0, 8, 1, NEVER) == 1.0, "the other stream is idle"
    assert known.completion(0.0, 16, 1, NEVER) == 8.0 + 1.0
    known.started(batch(2), 0.0)
    assert known.completion(0.0, 8, 1, NEVER) == 2.0 + 1.0


def test_first_in_lines_limit_makes_the_first_batch_smaller():
    # Four rows leave in time for the first, the other four and the new one after them.
    assert forecast().completion(0.0, 8, 1, 4.0) == 4.0 + 5.0
    assert forecast().completion(0.0, 4, 1, 4.0) == 4.0 + 1.0


def test_limit_that_no_size_meets_does_not_matter():
    assert forecast().completion(0.0, 8, 1, 0.5) == forecast().completion(0.0, 8, 1, NEVER)


@given(
    streams=st.integers(1, 3),
    running=st.lists(st.integers(1, 8), max_size=3),
    ahead=st.just(0) | st.integers(0, 50),
    rows=st.integers(1, 8),
    first_limit=st.integers(0, 20).map(float) | st.just(NEVER),
)
def test_no_request_is_forecast_to_be_done_sooner_than_if_it_were_alone(
    streams, running, ahead, rows, first_limit
):
    known = forecast(streams)
    for each in running[:streams]:
        known.started(batch(each), 0.0)
    assert known.completion(1.0, ahead, rows, first_limit) >= 1.0 + known.expected(rows)


@given(ahead=st.integers(0, 50), rows=st.integers(1, 8), streams=st.integers(1, 3))
def test_drained_is_a_bound_on_every_forecast(ahead, rows, streams):
    known = forecast(streams)
    for _ in range(streams):
        known.started(batch(8), 0.0)
    assert known.completion(0.0, ahead, rows, NEVER) <= known.drained_s(ahead)


# -- batches that follow others -----------------------------------------------------------------


def followed(known: Forecast, *sizes: int) -> list[Batch]:
    """Start batches at 0 s, each behind the one before."""
    batches = [batch(rows) for rows in sizes]
    for ahead, each in zip([None, *batches], batches, strict=False):
        each.behind = ahead
        known.started(each, 0.0)
        if ahead is not None:
            known.followers[ahead] = each
    return batches


def hand_on(known: Forecast, running: Batch, at: float) -> bool:
    is_followed = known.handed_on(running, at)
    known.finished(running, 0, at, True, 0)
    return is_followed


def test_stream_is_free_when_the_last_of_its_batches_is_done():
    known = forecast()
    followed(known, 4, 2, 1)
    assert known.free_at(1.0) == 7.0
    assert known.completion(1.0, 0, 1, NEVER) == 8.0


def test_overdue_batch_puts_off_those_behind_it():
    known = forecast()
    followed(known, 4, 2)
    assert known.free_at(6.0) == 6.0 + 2.0


def test_stream_without_followers_is_free_before_one_with():
    known = forecast(streams=2)
    followed(known, 2, 1)
    known.started(batch(4), 0.0)
    assert known.free_at(1.0) == 3.0
    assert known.completion(1.0, 8, 1, NEVER) == 4.0 + 1.0, "the other stream takes the eight"


def test_batch_has_the_stream_from_the_end_of_the_one_before_it():
    known = forecast(seed={4: 4.0})
    first, second, third = followed(known, 4, 4, 4)
    assert hand_on(known, first, 4.0)
    assert second.behind is None
    assert known.free_at(5.0) == 12.0
    assert hand_on(known, second, 8.0)
    assert not hand_on(known, third, 12.0)
    assert known.expected(4) == pytest.approx(4.0)
    assert (known.runs, known.followers) == ({}, {})


@given(ahead=st.integers(0, 50), rows=st.integers(1, 8), behind=st.integers(0, 3))
def test_drained_is_a_bound_with_followers_as_well(ahead, rows, behind):
    known = forecast()
    followed(known, *[8] * (behind + 1))
    assert known.completion(0.0, ahead, rows, NEVER) <= known.drained_s(ahead)


# -- what a device has memory for ---------------------------------------------------------------


def test_batches_of_a_row_limit_are_forecast():
    known = forecast()
    assert known.limit_rows(0, 4) == 4
    assert known.completion(0.0, 4, 1, NEVER) == 4.0 + 1.0
    assert known.whole_s == 4.0
    assert known.limit_rows(1, 2) == 2
    assert known.limit_rows(1, 0) == 4
    assert known.limit_rows(0, 0) == 8
    assert known.whole_s == 8.0


# -- arrivals -----------------------------------------------------------------------------------


def busy_with_arrivals(rows_per_s: int, max_rows: int = 8, seconds: int = 10) -> Forecast:
    """A stream that takes a second for a batch of any size, and has just started one."""
    known = forecast(seed={1: 1.0, max_rows: 1.0}, max_rows=max_rows)
    for second in range(seconds):
        known.arrived_rows += rows_per_s
        running = batch(1)
        known.started(running, float(second + 1))
        if second + 1 < seconds:
            known.finished(running, 0, float(second + 2), True, 0)
    return known


def test_batch_is_expected_to_grow_by_what_arrives_until_it_leaves():
    known = forecast()
    known.arrived_rows += 6
    known.started(batch(2), 1.0)
    # 6 rows a second for 2 seconds: the batch will be full.
    assert known.completion(1.0, 0, 1, NEVER) == pytest.approx(3.0 + 8.0)
    # In the last 0.4 s two more.
    assert known.completion(2.6, 0, 1, NEVER) == pytest.approx(3.0 + 3.0)


def test_burst_that_is_over_is_forgotten():
    known = forecast()
    known.arrived_rows += 1000
    running = batch(1)
    known.started(running, 1.0)
    known.finished(running, 0, 2.0, True, 0)
    known.started(batch(1), 2.0 + QUIET_S)
    assert known.completion(2.0 + QUIET_S, 0, 1, NEVER) == pytest.approx(2.0 + QUIET_S + 2.0)


@pytest.mark.parametrize(("rows_per_s", "is_overloaded"), [(6, False), (7, False), (8, True), (20, True)])
def test_overload_begins_near_what_full_batches_can_carry(rows_per_s, is_overloaded):
    assert busy_with_arrivals(rows_per_s).is_overloaded is is_overloaded


# -- learning -----------------------------------------------------------------------------------


def run(known: Forecast, rows: int, seconds: float, at: float, stream: int = 0, waiting: int = 0) -> None:
    running = batch(rows, at)
    known.started(running, at)
    known.finished(running, stream, at + seconds, True, waiting)


def test_run_time_is_learned_from_batches_that_ran_well():
    known = forecast(seed={})
    run(known, 8, 2.0, 100.0)
    assert known.expected(8) == 2.0


def test_failed_batch_teaches_nothing():
    known = forecast()
    running = batch(8)
    known.started(running, 0.0)
    known.finished(running, 0, 0.001, False, 0)
    assert known.expected(8) == 8.0


def test_slowest_stream_counts():
    known = forecast(streams=2)
    for turn in range(100):
        run(known, 8, 4.0, turn * 20.0, stream=0)
        run(known, 8, 12.0, turn * 20.0, stream=1)
    assert known.expected(8) == pytest.approx(12.0, rel=0.01)
    for turn in range(100, 300):
        run(known, 8, 12.0, turn * 20.0, stream=0)
        run(known, 8, 4.0, turn * 20.0, stream=1)
    assert known.expected(8) == pytest.approx(12.0, rel=0.01)


def test_behind_a_batch_with_others_waiting_the_way_to_the_next_one_counts_as_its_run():
    known = forecast(seed={})
    running = batch(8)
    known.started(running, 0.0)
    known.finished(running, 0, 2.0, True, 5)
    known.started(batch(8), 2.5)
    assert known.expected(8) == 2.5


def test_time_in_which_nobody_could_leave_is_no_part_of_a_run():
    known = forecast(seed={})
    running = batch(8)
    known.started(running, 0.0)
    known.finished(running, 0, 2.0, True, 5)
    known.rested()
    known.started(batch(8), 100.0)
    assert known.expected(8) == 2.0


def test_nothing_is_kept_of_batches_that_came_back():
    known = forecast(streams=2)
    for turn in range(50):
        run(known, 8, 1.0, float(turn), stream=turn % 2, waiting=turn % 3)
    assert len(known.runs) == 0


# -- the margin ---------------------------------------------------------------------------------


def test_margin_grows_with_late_answers_up_to_a_share_of_the_objective():
    known = forecast(objective_s=10.0)
    margins = []
    for _ in range(100):
        known.answered(True)
        margins.append(known.margin_s)
    assert margins == sorted(margins)
    assert 0.0 < margins[0] < 0.5
    assert margins[-1] == pytest.approx(3.0)


def test_margin_shrinks_again_slower_than_it_grew_and_never_below_zero():
    known = forecast(objective_s=10.0)
    for _ in range(10):
        known.answered(True)
    grown = known.margin_s
    for _ in range(10):
        known.answered(False)
    assert 0.0 < known.margin_s < grown
    assert known.margin_s > 0.5 * grown
    for _ in range(10_000):
        known.answered(False)
    assert known.margin_s == 0.0


def test_without_an_objective_there_is_no_margin():
    known = forecast()
    known.answered(True)
    assert known.margin_s == 0.0
