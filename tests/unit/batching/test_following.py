"""Batches that leave for a place behind one that runs: which do, when, and what is learned of them."""

from __future__ import annotations

import pytest
from tests.unit.batching.timed import TimedStation, refusal
from tests.unit.support import POISON, Station, answer, bytes_spec, picky

from tensorferry.batching.record import DEADLINE, FULL, HOLD, IDLE, PREFERRED, RETRY
from tensorferry.errors import DeviceLost, ModelFailed, OutOfDeviceMemory, PredictedLate

#: What warm-up is taken to have measured.
RUN_S = {1: 1.0, 8: 1.0}

#: About a millisecond, and a power of two, so that sums of it are exact.
MS = 2**-10


def station(max_batch_size=4, slots=2, best_instant=0.75, run_s=RUN_S, **more) -> Station:
    """A station whose streams run a row each; behind them one is best started at ``best_instant``."""
    executor = {name: more.pop(name) for name in ("streams", "behaviour") if name in more}
    busy = Station(bytes_spec(max_batch_size, **more), run_s=run_s, slots=slots, **executor)
    busy.executor.best_instant = best_instant
    for _ in range(busy.executor.idle):
        busy.submit(b"-")
        busy.clock.advance(more.get("max_queue_delay_us", 0) / 1e6)
    assert not busy.executor.idle
    busy.executor.log.clear()
    busy.executor.started.clear()
    return busy


def reasons(busy: Station) -> list[str]:
    return [batch.reason for batch in busy.executor.started]


# -- when ---------------------------------------------------------------------------------------


def test_full_batch_leaves_at_once_behind_the_one_that_runs():
    busy = station()
    (ahead,) = busy.executor.running
    busy.submit_all([b"a"] * 4)
    busy.tick()
    assert busy.sizes == [4]
    assert busy.executor.started[0].behind is ahead
    assert reasons(busy) == [FULL]


def test_unfull_batch_leaves_at_the_instant_from_which_waiting_gains_nothing():
    busy = station()
    busy.submit(b"a")
    busy.clock.advance(0.7499)
    assert busy.sizes == []
    busy.clock.advance(0.0001)
    assert busy.sizes == [1]
    assert reasons(busy) == [IDLE]


def test_whoever_comes_before_that_instant_shares_the_batch():
    busy = station()
    for _ in range(3):
        busy.submit(b"a")
        busy.clock.advance(0.25)
    busy.submit(b"b")
    busy.clock.advance(0.25)
    assert busy.executor.log == [[b"a"] * 3]


def test_batch_that_becomes_full_while_it_waits_leaves_then():
    busy = station()
    busy.submit_all([b"a"] * 3)
    busy.clock.advance(0.5)
    assert busy.sizes == []
    busy.submit(b"b")
    busy.tick()
    assert busy.sizes == [4]
    busy.clock.advance(1.0)
    assert busy.sizes == [4]


def test_unfull_batch_leaves_at_once_when_the_one_before_ends_early():
    busy = station()
    busy.submit(b"a")
    busy.clock.advance(0.5)
    busy.executor.finish()
    assert busy.sizes == [1]
    assert busy.executor.started[0].behind is None
    busy.finish_all()
    assert busy.sizes == [1]


def test_batch_with_no_room_for_the_next_in_line_is_full():
    busy = station()
    busy.submit(rows=3)
    busy.tick()
    assert busy.sizes == []
    busy.submit(rows=2)
    busy.tick()
    assert busy.sizes == [3]


def test_no_more_batches_leave_than_there_are_places():
    busy = station(slots=3)
    busy.submit_all([b"a"] * 16)
    busy.tick()
    assert busy.sizes == [4, 4]
    busy.executor.finish()
    assert busy.sizes == [4, 4, 4]


def test_each_of_several_streams_takes_batches_behind_its_own():
    busy = station(streams=2)
    ahead = busy.executor.running
    busy.submit_all([b"a"] * 12)
    busy.tick()
    assert busy.sizes == [4, 4]
    assert [batch.behind for batch in busy.executor.started] == ahead


def test_while_run_times_are_unknown_only_full_batches_go_ahead():
    busy = station(run_s=None, best_instant=0.0)
    busy.submit_all([b"a"] * 3)
    busy.clock.advance(10.0)
    assert busy.sizes == []
    busy.submit(b"a")
    busy.tick()
    assert busy.sizes == [4]


def test_streams_without_places_are_never_asked_when_to_follow():
    busy = station(slots=1)
    busy.executor.follow_at = None
    busy.submit_all([b"a"] * 9)
    busy.finish_all()
    assert busy.sizes == [4, 4, 1]
    assert [batch.behind for batch in busy.executor.started] == [None] * 3


def test_batch_that_left_while_no_stream_was_idle_was_not_held():
    busy = station()
    busy.submit(b"a")
    busy.clock.advance(0.75)
    busy.finish_all()
    assert busy.done[-1].record.hold_s == 0.0
    assert busy.done[-1].record.started_at == 0.75


def test_hold_counts_from_when_a_stream_was_idle_whatever_others_do():
    busy = station(streams=2, max_queue_delay_us=500_000)
    ahead, other = busy.executor.running
    busy.submit_all([b"a"] * 4)
    busy.tick()
    assert busy.executor.started[0].behind is ahead
    busy.executor.finish(batch=other)
    busy.submit(b"b")
    busy.clock.advance(0.25)
    busy.executor.finish(batch=ahead)
    busy.clock.advance(0.25)
    assert busy.executor.log == [[b"a"] * 4, [b"b"]]
    assert busy.executor.started[1].hold_s == 0.5


def test_those_who_wait_may_all_give_up_before_their_batch_leaves():
    busy = station()
    busy.batcher.cancel(busy.submit(b"a"))
    request = busy.submit(b"b")
    busy.clock.advance(0.5)
    busy.batcher.cancel(request)
    busy.clock.advance(0.5)
    assert busy.sizes == []
    busy.submit(b"c")
    busy.tick()
    assert busy.executor.log == [[b"c"]]


# -- with the model's own rules -----------------------------------------------------------------


def test_hold_that_outlasts_the_instant_is_obeyed():
    busy = station(best_instant=1.0, max_queue_delay_us=500_000)
    busy.clock.advance(0.4)  # it is 0.9
    busy.submit(b"a")
    busy.clock.advance(0.4999)
    assert busy.sizes == []
    busy.clock.advance(0.0001)
    assert busy.sizes == [1]
    assert reasons(busy) == [HOLD]
    assert busy.executor.started[0].hold_s == 0.0


def test_hold_that_is_over_before_the_instant_doesnt_send_the_batch_ahead():
    busy = station(best_instant=2.0, max_queue_delay_us=500_000)
    busy.submit(b"a")
    busy.clock.advance(1.25)
    assert busy.sizes == []
    busy.clock.advance(0.25)
    assert busy.sizes == [1]


def test_full_batch_goes_before_one_that_is_held():
    busy = station(best_instant=0.5, max_queue_delay_us=500_000)
    busy.submit(b"a")
    busy.submit_all([b"bb"] * 4)
    busy.tick()
    assert busy.executor.log == [[b"bb"] * 4]


def test_full_batch_doesnt_go_before_one_whose_hold_is_over_by_then():
    busy = station(slots=3, best_instant=1.25, max_queue_delay_us=500_000)
    busy.submit(b"a")
    busy.submit_all([b"bb"] * 4)
    busy.clock.advance(0.5)
    assert busy.sizes == []
    busy.clock.advance(0.25)
    assert busy.executor.log == [[b"a"], [b"bb"] * 4]


def test_preferred_size_leaves_at_the_instant_and_not_before():
    busy = station(max_batch_size=8, best_instant=2.0, max_queue_delay_us=500_000, preferred_batch_sizes=(2,))
    busy.submit_all([b"a"] * 2)
    busy.clock.advance(0.25)
    assert busy.sizes == []
    busy.clock.advance(1.25)
    assert reasons(busy) == [PREFERRED]


def test_full_batch_of_a_lower_level_lets_those_come_who_go_before_it():
    busy = station(priority_levels=2, default_priority_level=2)
    for _ in range(4):
        busy.submit(b"b", priority=2)
    busy.clock.advance(0.5)
    assert busy.sizes == []
    busy.submit(b"a", priority=1)
    busy.clock.advance(0.25)
    assert busy.executor.log[0][0] == b"a"


def test_nobody_passes_the_first_in_line_who_waits_for_company():
    busy = station(slots=3)
    busy.submit(b"a")
    busy.clock.advance(0.25)
    busy.submit_all([b"bb"] * 4)
    busy.clock.advance(0.25)
    assert busy.sizes == []
    busy.clock.advance(0.25)
    assert busy.executor.log == [[b"a"], [b"bb"] * 4]


def test_halves_of_a_failed_batch_leave_at_once():
    busy = station(slots=3, behaviour=picky)
    requests = busy.submit_all([b"a", b"b", bytes([POISON]), b"d"])
    busy.tick()
    busy.executor.finish()
    busy.executor.finish()  # the four fail, and leave as two and two, behind nobody and behind those
    assert busy.sizes == [4, 2, 2]
    first, second = busy.executor.running
    assert (first.behind, second.behind) == (None, first)
    assert reasons(busy) == [FULL, RETRY, RETRY]
    busy.finish_all()
    assert isinstance(requests[2].error, ModelFailed)
    assert [answer(each) for each in (requests[0], requests[1], requests[3])] == [b"a", b"b", b"d"]


def test_batch_that_fails_keeps_the_one_behind_it():
    busy = station()
    requests = busy.submit_all([b"a"] * 4)
    busy.tick()
    busy.executor.finish(ModelFailed("no"))
    busy.finish_all()
    assert [answer(each) for each in requests] == [b"a"] * 4


# -- with limits --------------------------------------------------------------------------------


def pipelined(run_s=lambda rows: rows * MS, max_batch_size=8, slots=2, lead_s=0.0) -> TimedStation:
    return TimedStation(bytes_spec(max_batch_size), run_s, slots=slots, lead_s=lead_s)


def test_follower_is_cut_to_the_rows_that_run_in_time_after_the_one_before():
    busy = pipelined(lead_s=MS)
    busy.submit(rows=4)
    busy.tick()
    requests = [busy.submit(b"a", deadline=7 * MS) for _ in range(3)]
    requests += [busy.submit(b"b") for _ in range(5)]
    busy.tick()
    assert busy.sizes == [4], "it is full, and has to be cut: who is in it is settled when it leaves"
    busy.clock.advance(3 * MS)
    assert busy.sizes == [4, 3], "they run from 4 to 7 ms"
    busy.clock.advance(20 * MS)
    assert busy.sizes == [4, 3, 5]
    assert [answer(request) for request in requests] == [b"a"] * 3 + [b"b"] * 5
    assert busy.batcher.statistics().late_count == 0
    assert busy.batcher.statistics().departures[DEADLINE] == 1


def test_full_batch_that_is_in_time_after_the_one_before_goes_ahead():
    busy = pipelined()
    busy.submit(rows=4)
    busy.tick()
    for _ in range(8):
        busy.submit(b"a", deadline=12 * MS)
    busy.tick()
    assert busy.sizes == [4, 8]


def test_request_that_would_come_late_behind_those_who_follow_is_refused():
    busy = pipelined(slots=3)
    busy.submit(rows=8)
    busy.tick()
    for _ in range(2):
        busy.submit(rows=8)
        busy.tick()
    assert busy.sizes == [8, 8, 8]
    assert isinstance(refusal(busy, b"a", deadline=24.5 * MS), PredictedLate)
    request = busy.submit(b"b", deadline=25 * MS)
    busy.clock.advance(100 * MS)
    assert answer(request) == b"b"


def test_batch_behind_another_teaches_how_long_it_kept_the_stream_alone():
    busy = pipelined(run_s=lambda _: 8 * MS, slots=3)
    for _ in range(24):
        busy.submit(rows=8)
        busy.tick()
    busy.clock.advance(1.0)
    assert len(busy.done) == 24
    assert busy.batcher._forecast.expected(8) == pytest.approx(8 * MS)


def test_time_in_which_those_who_wait_have_no_reason_to_leave_is_no_part_of_a_run():
    busy = pipelined(run_s=lambda _: 8 * MS, lead_s=MS)
    for _ in range(2):
        busy.submit(b"a", rows=8, deadline=1.0)
        busy.tick()
    busy.submit(b"b")
    busy.clock.advance(15 * MS)
    assert busy.sizes == [8, 8, 1]
    assert busy.batcher._forecast.expected(8) == pytest.approx(8 * MS)


def test_unfull_batches_leave_when_the_stream_is_expected_to_be_free():
    busy = pipelined(run_s=lambda _: 8 * MS, max_batch_size=16)
    for _ in range(40):
        busy.submit(b"a")
        busy.clock.advance(MS)
    assert busy.sizes == [1, 7, 8, 8, 8, 8], "what came during a run leaves at its end"


# -- what a device says -------------------------------------------------------------------------


def test_batch_that_found_the_device_lost_is_not_tried_again():
    busy = station()
    requests = busy.submit_all([b"a"] * 4)
    busy.tick()
    busy.executor.finish()
    busy.executor.finish(DeviceLost("gone"))
    busy.finish_all()
    assert busy.sizes == [4]
    assert all(isinstance(request.error, DeviceLost) for request in requests)
    assert busy.admission.byte_size == 0
    assert busy.batcher.statistics().failures["OTHER"] == 4


def test_requests_of_a_batch_that_the_device_had_no_room_for_are_tried_alone():
    busy = station()
    requests = busy.submit_all([b"a"] * 4)
    busy.tick()
    busy.executor.finish()
    busy.executor.finish(OutOfDeviceMemory("full"))  # by a model that has halved it itself
    busy.executor.finish()
    busy.executor.finish(OutOfDeviceMemory("full"))
    busy.finish_all()
    assert busy.sizes == [4, 1, 1, 1, 1]
    assert isinstance(requests[1].error, OutOfDeviceMemory)
    assert [answer(requests[number]) for number in (0, 2, 3)] == [b"a"] * 3
    assert busy.admission.byte_size == 0
