"""When a batch leaves, and with whom: ticks, streams, shapes, and holds that the owner asks for."""

from __future__ import annotations

import pytest
from tests.unit.support import (
    Station,
    answer,
    bytes_spec,
    model_spec,
    tensor_spec,
)

from tensorferry.model import BatchingSpec

HOLD_US = 1000
HOLD_S = HOLD_US / 1e6


def holding(**batching) -> Station:
    return Station(bytes_spec(max_queue_delay_us=HOLD_US, **batching))


# -- when a batch leaves ------------------------------------------------------------------------


def test_requests_of_one_tick_share_a_batch():
    station = Station()
    requests = station.submit_all([b"a", b"b", b"c"])
    assert station.sizes == []
    station.tick()
    assert station.sizes == [3]
    station.executor.finish()
    assert [answer(request) for request in requests] == [b"a", b"b", b"c"]


def test_request_of_a_later_tick_does_not_join_a_batch_that_left():
    station = Station(streams=2)
    station.submit(b"a")
    station.tick()
    station.submit(b"b")
    station.tick()
    assert station.sizes == [1, 1]


def test_rows_are_counted_and_not_requests():
    station = Station(streams=9)
    for rows in (3, 4, 2, 8, 1):
        station.submit(rows=rows)
    station.tick()
    assert station.sizes == [7, 2, 8, 1]


def test_while_all_streams_are_busy_requests_gather_up_to_the_maximum():
    station = Station()
    station.submit()
    station.tick()
    for _ in range(11):
        station.submit()
        station.tick()
    assert station.sizes == [1]
    station.executor.finish()
    assert station.sizes == [1, 8]
    station.executor.finish()
    assert station.sizes == [1, 8, 3]


def test_several_streams_run_at_once_and_no_more_than_there_are():
    station = Station(bytes_spec(max_batch_size=2), streams=3)
    station.submit_all([b"a"] * 9)
    station.tick()
    assert len(station.executor.running) == 3
    assert station.sizes == [2, 2, 2]
    station.executor.finish()
    assert station.sizes == [2, 2, 2, 2]


def test_without_batching_each_request_runs_alone_however_many_rows_it_has():
    station = Station(bytes_spec(enabled=False), streams=9)
    for rows in (4, 1, 8):
        station.submit(rows=rows)
    station.tick()
    assert station.sizes == [4, 1, 8]
    assert [len(batch) for batch in station.executor.log] == [1, 1, 1]


def test_without_batch_dimension_each_request_runs_alone():
    spec = model_spec(
        [tensor_spec("x", "UINT8", (-1, -1))], max_batch_size=0, batching=BatchingSpec(enabled=False)
    )
    station = Station(spec, streams=9)
    station.submit_all([b"ab", b"cd"])
    station.tick()
    assert [len(batch) for batch in station.executor.log] == [1, 1]


def test_unlike_shapes_never_share_a_batch():
    station = Station(streams=9)
    station.submit_all([b"a", b"bb", b"c", b"ddd", b"ee"])
    station.tick()
    assert station.executor.log == [[b"a", b"c"], [b"bb", b"ee"], [b"ddd"]]


def test_shape_whose_request_is_oldest_leaves_first():
    station = Station()
    station.submit(b"a")
    station.tick()
    for data in (b"bb", b"c", b"dd", b"e"):
        station.submit(data)
        station.clock.advance(0.001)
    station.finish_all()
    assert station.executor.log == [[b"a"], [b"bb", b"dd"], [b"c", b"e"]]


# -- the hold -----------------------------------------------------------------------------------


def test_delay_holds_an_unfull_batch_until_exactly_its_end():
    station = holding()
    station.submit(b"a")
    station.clock.advance(HOLD_S * 0.75)
    station.submit(b"b")
    station.clock.advance(HOLD_S * 0.2499)
    assert station.sizes == []
    assert station.clock.next_timer() == pytest.approx(HOLD_S, abs=1e-12)
    station.clock.advance(HOLD_S * 0.0002)
    assert station.executor.log == [[b"a", b"b"]]


def test_full_batch_leaves_at_once_in_spite_of_the_hold():
    station = holding()
    station.submit_all([b"a"] * 7)
    station.clock.advance(HOLD_S / 2)
    assert station.sizes == []
    station.submit(b"b")
    station.tick()
    assert station.sizes == [8]


def test_batch_that_the_next_request_would_overfill_leaves_at_once():
    station = holding()
    station.submit(rows=5)
    station.tick()
    station.submit(rows=4)
    station.tick()
    assert station.sizes == [5]


def test_delay_of_zero_holds_nothing():
    station = Station(bytes_spec(max_queue_delay_us=0))
    station.submit()
    station.tick()
    assert station.sizes == [1]


def test_hold_is_of_the_requests_own_and_begins_anew_after_a_departure():
    station = Station(bytes_spec(max_queue_delay_us=HOLD_US), streams=2)
    station.submit_all([b"a"] * 8)
    station.clock.advance(HOLD_S / 2)
    station.submit(b"b")
    station.clock.advance(HOLD_S * 0.99)
    assert station.sizes == [8]
    station.clock.advance(HOLD_S * 0.02)
    assert station.sizes == [8, 1]


def test_deadline_nearer_than_the_hold_ends_it_early_enough_to_run():
    station = holding()
    request = station.submit(b"a", deadline=HOLD_S / 2)
    station.clock.advance(HOLD_S * 0.499)
    assert station.sizes == [1]
    station.executor.finish()
    assert answer(request) == b"a"


def test_deadline_that_comes_during_the_hold_ends_it_for_all():
    station = holding()
    station.submit(b"a")
    station.clock.advance(HOLD_S / 10)
    station.submit(b"b", deadline=HOLD_S / 2)
    station.clock.advance(HOLD_S * 0.39)
    assert station.executor.log == [[b"b", b"a"]], "the nearest deadline first"


def test_oldest_request_cancelled_during_the_hold_lets_the_next_one_have_its_own():
    station = holding()
    first = station.submit(b"a")
    station.clock.advance(HOLD_S / 2)
    station.submit(b"b")
    station.tick()
    station.batcher.cancel(first)
    station.clock.advance(HOLD_S * 0.9)
    assert station.sizes == []
    station.clock.advance(HOLD_S * 0.2)
    assert station.executor.log == [[b"b"]]


def test_held_shape_does_not_hold_up_a_full_batch_of_another():
    station = holding()
    station.submit(b"a")
    station.tick()
    station.submit_all([b"bb"] * 8)
    station.tick()
    assert station.executor.log == [[b"bb"] * 8]


def test_held_shape_does_not_make_another_one_miss_its_deadline():
    station = holding()
    station.submit(b"a")
    station.tick()
    request = station.submit(b"bb", deadline=HOLD_S / 2)
    station.clock.advance(HOLD_S * 0.499)
    station.executor.finish()
    assert answer(request) == b"bb"


def test_held_batch_leaves_early_at_a_preferred_size():
    station = holding(preferred_batch_sizes=(4,))
    station.submit_all([b"a"] * 3)
    station.tick()
    assert station.sizes == []
    station.submit(b"b")
    station.tick()
    assert station.sizes == [4]


def test_batch_that_leaves_on_time_is_cut_to_a_preferred_size():
    station = Station(bytes_spec(preferred_batch_sizes=(4,)), streams=9)
    station.submit_all([b"a"] * 6)
    station.tick()
    assert station.sizes == [4, 2]


def test_hold_costs_one_timer_however_many_requests_arrive():
    station = Station(bytes_spec(max_batch_size=1000, max_queue_delay_us=HOLD_US))
    armed = []
    call_at = station.clock.call_at
    station.clock.call_at = lambda when, callback: (armed.append(when), call_at(when, callback))[1]
    for _ in range(100):
        station.submit()
        station.tick()
    assert len(armed) == 1


# -- gathering: ticks that bring requests ---------------------------------------------------------


def arriving(station: Station, data: list[bytes], step_s: float = 0.0) -> None:
    """Submit one request in each of successive ticks, ``step_s`` apart."""

    def arrive() -> None:
        station.submit(data.pop(0))
        station.clock.sleep(step_s)
        if data:
            station.clock.call_soon(arrive)

    station.clock.call_soon(arrive)


def test_requests_of_successive_ticks_share_a_batch():
    station = Station()
    arriving(station, [b"a", b"b", b"c"])
    station.tick()
    assert station.sizes == [3]


def test_a_lone_request_leaves_after_one_tick_that_brought_nobody():
    station = Station()
    station.submit()
    station.clock.tick_once()
    assert station.sizes == []
    station.clock.tick_once()
    assert station.sizes == [1]


def test_a_full_batch_gathers_no_more():
    station = Station(streams=2)
    arriving(station, [b"x"] * 9)
    station.tick()
    assert station.sizes == [8, 1]


def test_gathering_ends_before_a_millisecond_is_over():
    station = Station(bytes_spec(max_batch_size=64), streams=2)
    arriving(station, [b"x"] * 16, step_s=0.1e-3)
    station.tick()
    assert station.sizes[0] == 8
    assert sum(station.sizes) == 16


def test_gathering_is_bounded_for_one_that_comes_when_a_stream_is_busy():
    station = Station()
    station.submit(b"a")
    station.tick()
    station.submit(b"b")
    station.executor.finish()
    assert station.sizes == [1, 1], "a stream that becomes idle takes what waits, gathering or not"
