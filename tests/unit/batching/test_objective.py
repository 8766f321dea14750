"""The latency objective, and callers' deadlines, on virtual time: who is let in, and who leaves with whom."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.batching.timed import TimedStation, refusal
from tests.unit.support import POISON, Station, answer, bytes_spec, picky

from tensorferry.errors import DeadlineExceeded, PredictedLate, TensorferryError
from tensorferry.testing.puppet import echo

OBJECTIVE_S = 10.0

#: About a millisecond, and a power of two, so that sums of it are exact. Requests without a
#: deadline are ordered as if they had a second, so tests of who leaves first use this scale.
MS = 2**-10


def with_objective(run_s, seconds: float = OBJECTIVE_S, max_batch_size: int = 8, **more) -> TimedStation:
    return TimedStation(bytes_spec(max_batch_size, latency_objective_ms=seconds * 1e3), run_s, **more)


def per_row(rows: int) -> float:
    return rows * MS


# -- refusing at once ---------------------------------------------------------------------------


def test_idle_server_refuses_nobody_however_long_it_expects_to_take():
    station = with_objective(lambda _: 100.0)
    for _ in range(3):
        request = station.submit(b"a")
        station.clock.advance(150.0)
        assert answer(request) == b"a"
    assert station.refusals == {}


def test_one_whose_answer_would_come_after_the_objective_is_refused_at_once():
    station = with_objective(lambda _: 6.0)
    station.submit(b"a")
    station.clock.advance(0.5)
    error = refusal(station, b"b")
    assert isinstance(error, PredictedLate)
    # The run ends at 6 s and the next at 12 s, which is 11.5 s after the request.
    assert "up to 11500.0 ms" in str(error)
    assert "the latency objective of 10000 ms" in str(error)
    assert "'m'" in str(error)
    assert station.refusals == {"latency_objective": 1}
    counts = station.batcher.statistics()
    assert (counts.failures["REJECTED"], counts.failure_count, counts.waiting) == (1, 1, 0)
    assert station.admission.byte_size == 1


def test_one_that_comes_late_enough_to_be_in_time_is_let_in():
    station = with_objective(lambda _: 6.0)
    station.submit(b"a")
    station.clock.advance(5.0)
    request = station.submit(b"b")
    station.clock.advance(7.0)
    assert answer(request) == b"b"
    assert station.refusals == {}


def test_one_that_would_miss_its_deadline_is_refused_at_once():
    station = TimedStation(run_s=lambda _: 6.0)
    station.submit(b"a")
    station.clock.advance(1.0)
    error = refusal(station, b"b", deadline=6.0)
    assert isinstance(error, PredictedLate)
    assert "up to 11000.0 ms" in str(error)
    assert "its deadline is 5000.0 ms" in str(error)
    assert station.refusals == {"deadline": 1}


def test_deadline_that_the_forecast_meets_is_met():
    station = TimedStation(run_s=lambda _: 6.0)
    station.submit(b"a")
    station.tick()
    request = station.submit(b"b", deadline=12.0)
    station.clock.advance(12.0)
    assert answer(request) == b"b"


def test_deadline_that_has_passed_is_refused_even_when_idle():
    station = TimedStation()
    station.clock.advance(5.0)
    assert isinstance(refusal(station, deadline=5.0), DeadlineExceeded)
    assert station.refusals == {"deadline": 1}


def test_nobody_is_refused_for_time_while_no_run_time_is_known():
    station = with_objective(lambda _: 100.0, is_known=False)
    station.submit_all([b"a"] * 50)
    station.tick()
    station.submit(b"b", deadline=1.0)
    assert station.refusals == {}


def test_run_time_learned_from_the_first_run_is_used_from_then_on():
    station = with_objective(lambda _: 100.0, is_known=False)
    station.submit(b"a")
    station.clock.advance(100.0)
    station.submit(b"b")
    station.tick()
    assert isinstance(refusal(station, b"c"), PredictedLate)


def test_urgent_request_is_not_refused_for_those_whom_it_will_pass():
    station = TimedStation(bytes_spec(max_batch_size=4), run_s=lambda _: MS)
    station.submit_all([b"p"] * 44)
    station.tick()
    urgent = station.submit(b"u", deadline=2.5 * MS)
    station.clock.advance(2.5 * MS)
    assert answer(urgent) == b"u", "it leaves in the next batch"


def test_two_models_streams_are_forecast_together():
    station = TimedStation(run_s=lambda _: 6.0, streams=2)
    station.submit(b"a", rows=8)
    station.tick()
    in_time = station.submit(b"b", deadline=7.0)
    station.clock.advance(7.0)
    assert answer(in_time) == b"b"


# -- sizes --------------------------------------------------------------------------------------


def test_batch_is_cut_so_that_the_head_makes_its_deadline():
    station = TimedStation(run_s=per_row)
    station.submit(b"x")
    station.tick()
    head = station.submit(b"h", deadline=5 * MS)
    station.submit_all([b"p"] * 7)
    station.clock.advance(5 * MS)
    assert answer(head) == b"h"
    station.clock.advance(10 * MS)
    assert station.sizes == [1, 4, 4]


def test_batch_is_full_where_the_deadline_leaves_time_for_it():
    station = TimedStation(run_s=per_row)
    station.submit(b"x")
    station.tick()
    station.submit(b"h", deadline=9 * MS)
    station.submit_all([b"p"] * 7)
    station.clock.advance(9 * MS)
    assert station.sizes == [1, 8]


def test_objective_cuts_batches_like_a_deadline():
    station = with_objective(per_row, seconds=10 * MS)
    station.submit_all([b"a"] * 4)
    station.clock.advance(MS)
    later = station.submit_all([b"b"] * 2)
    station.clock.advance(MS)
    later += station.submit_all([b"b"] * 2)
    station.clock.advance(20 * MS)
    assert [answer(request) for request in later] == [b"b"] * 4
    assert station.refusals == {}


def test_request_of_several_rows_is_never_cut():
    station = TimedStation(run_s=per_row)
    station.submit(b"x")
    station.tick()
    head = station.submit(b"h", rows=4, deadline=5 * MS)
    station.submit_all([b"p"] * 4)
    station.clock.advance(5 * MS)
    assert answer(head) == b"hhhh"
    assert station.sizes == [1, 4, 4]


def test_rows_of_lower_levels_do_not_make_the_head_late():
    spec = bytes_spec(max_batch_size=8, priority_levels=2)
    station = TimedStation(spec, run_s=per_row)
    station.submit(b"x")
    station.tick()
    for _ in range(7):
        station.submit(b"l", priority=2)
    head = station.submit(b"h", deadline=4 * MS, priority=1)
    station.clock.advance(4 * MS)
    assert answer(head) == b"h"


# -- late all the same --------------------------------------------------------------------------


def hiccup(station: TimedStation, seconds: float) -> None:
    """Start a run that takes longer than expected."""
    usual, station.executor.run_s = station.executor.run_s, lambda _: seconds
    station.submit(b"x")
    station.tick()
    station.executor.run_s = usual


def test_head_that_became_late_runs_where_that_costs_nobody_a_place():
    station = TimedStation(run_s=lambda _: MS)
    hiccup(station, 2 * MS)
    late = station.submit(b"l", deadline=2.5 * MS)
    others = station.submit_all([b"o"] * 7)
    station.clock.advance(5 * MS)
    assert answer(late) == b"l"
    assert [answer(each) for each in others] == [b"o"] * 7
    assert station.sizes == [1, 8]
    assert station.refusals == {}


def test_head_that_became_late_is_refused_where_it_would_take_the_place_of_one_in_time():
    station = TimedStation(run_s=lambda _: MS)
    hiccup(station, 2 * MS)
    late = station.submit(b"l", deadline=2.5 * MS)
    others = station.submit_all([b"o"] * 8)
    station.clock.advance(5 * MS)
    assert isinstance(late.error, PredictedLate)
    assert f"its deadline is {2.5 * MS * 1e3:.1f} ms" in str(late.error)
    assert [answer(each) for each in others] == [b"o"] * 8
    assert station.refusals == {"deadline": 1}
    assert station.admission.byte_size == 0


@pytest.mark.parametrize("count", [20, 257, 600])
def test_callback_of_a_late_head_may_cancel_everybody_behind_it(count):
    station = TimedStation(run_s=lambda _: MS)
    hiccup(station, 2 * MS)
    others = []

    def cancel_others(_) -> None:
        for each in others:
            station.batcher.cancel(each)

    station.submit(b"l", deadline=2.5 * MS, on_done=cancel_others)
    others += station.submit_all([b"o"] * count)
    station.clock.advance(5 * MS)
    assert station.sizes == [1]
    assert station.batcher.in_flight == 0
    assert station.admission.byte_size == 0
    station.submit(b"n")
    station.clock.advance(MS)
    assert station.batcher.in_flight == 0


def test_answers_that_come_late_make_the_next_promise_more_careful():
    station = with_objective(lambda _: 4.25)
    for _ in range(10):
        station.executor.run_s = lambda _: 9.9
        station.submit(b"a")
        station.clock.advance(20.0)
    assert station.batcher._forecast.margin_s > 0.0


def test_margin_is_added_to_what_is_promised_and_not_to_a_callers_deadline():
    station = with_objective(lambda _: 4.25)
    station.submit(b"a")
    station.tick()
    station.submit(b"b")
    for _ in range(5):
        station.batcher._forecast.answered(True)
    assert "up to 9480.0 ms" in str(refusal(station, b"c"))

    station = TimedStation(run_s=lambda _: 4.25)
    station.submit(b"a")
    station.tick()
    for _ in range(5):
        station.batcher._forecast.answered(True)
    station.submit(b"b", deadline=8.5)
    assert station.refusals == {}


# -- what is learned ----------------------------------------------------------------------------


def test_halves_of_a_failed_batch_teach_their_own_run_times_and_not_the_failed_ones():
    station = Station(behaviour=picky)
    station.submit_all([bytes([POISON]), b"a"])
    station.tick()
    for run_s in (5.0, 1.0, 1.0):
        station.clock.advance(run_s)
        station.executor.finish()
    assert station.batcher._forecast.expected(1) == 1.0


def test_idle_time_after_a_batch_whose_followers_were_cancelled_is_no_part_of_its_run():
    def takes_a_second(inputs):
        station.clock.sleep(1.0)
        return echo(inputs)

    station = Station(inline=True, behaviour=takes_a_second)
    followers = []
    station.submit(b"a", on_done=lambda _: station.batcher.cancel(followers[0]))
    followers.append(station.submit(b"bb"))
    station.tick()
    station.clock.advance(100.0)
    station.submit(b"c")
    station.tick()
    assert station.batcher._forecast.expected(1) == 1.0


# -- overload -----------------------------------------------------------------------------------

#: A batch costs a millisecond, and each of its rows 50 us: 64 rows take 4.2 ms.
FULL_S = 4.2e-3
CAPACITY = 64 / FULL_S
FLOOD_S = 0.15


def flood(load: float, seconds: float = FLOOD_S, objective_s: float = 10e-3) -> TimedStation:
    """Offer ``load`` times the capacity of one stream in even steps."""
    station = with_objective(lambda rows: 1e-3 + 50e-6 * rows, objective_s, 64)
    station.waits_s = []

    def on_done(request) -> None:
        if request.error is None:
            station.waits_s.append(station.clock.now() - request.enqueued_at)

    for _ in range(int(seconds * load * CAPACITY)):
        station.clock.advance(1.0 / (load * CAPACITY))
        with suppress(TensorferryError):
            station.submit(b"a", on_done=on_done)
    station.clock.advance(1.0)
    return station


@pytest.mark.parametrize("load", [0.3, 0.8])
def test_below_capacity_nobody_is_refused_and_all_are_in_time(load):
    station = flood(load)
    assert station.refusals == {}
    assert max(station.waits_s) <= 10e-3


@pytest.mark.parametrize("load", [1.5, 3.0])
def test_under_overload_the_streams_stay_busy_and_whoever_is_let_in_is_in_time(load):
    station = flood(load)
    assert len(station.waits_s) >= 0.95 * FLOOD_S * CAPACITY
    late = [wait_s for wait_s in station.waits_s if wait_s > 10e-3]
    assert len(late) <= 0.01 * len(station.waits_s)
    assert set(station.refusals) == {"latency_objective"}


def test_queue_is_empty_and_nobody_refused_again_once_a_burst_is_over():
    station = flood(4.0, seconds=0.03)
    before = station.refusals
    station.submit_all([b"a"] * 16)
    station.clock.advance(1.0)
    assert station.refusals == before
    assert station.batcher.in_flight == 0


@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 4), st.sampled_from([None, 2, 5, 20])),
        max_size=40,
    ),
    streams=st.integers(1, 2),
)
def test_as_long_as_runs_take_what_is_expected_only_the_overtaken_miss_their_deadlines(arrivals, streams):
    station = TimedStation(bytes_spec(max_batch_size=4), lambda _: MS, streams=streams)
    let_in = []
    for quarters, rows, within in arrivals:
        station.clock.advance(quarters * MS / 4)
        if within is None:
            station.submit(rows=rows)
            continue
        with suppress(PredictedLate):
            let_in.append(station.submit(rows=rows, deadline=station.clock.now() + within * MS))
    station.clock.advance(10.0)
    assert station.batcher.in_flight == 0
    if len({within for _, _, within in arrivals}) == 1:
        assert all(request.error is None for request in let_in), "there is nobody to overtake them"
