"""What became of the requests: bounds, failures, the end, and how it is all counted."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.support import (
    POISON,
    Station,
    answer,
    bytes_spec,
    picky,
    run,
)

from tensorferry.batching.batcher import limits_of
from tensorferry.batching.statistics import FAILURE_REASONS
from tensorferry.errors import Draining, ModelFailed, QueueFull
from tensorferry.tensors import Tensor

HOLD_US = 1000
HOLD_S = HOLD_US / 1e6


def holding(**batching) -> Station:
    return Station(bytes_spec(max_queue_delay_us=HOLD_US, **batching))


# -- admission ----------------------------------------------------------------------------------


def test_bound_on_waiting_requests_refuses_the_next_and_recovers():
    station = Station(max_queue_size=2)
    station.submit_all([b"a", b"b"])
    with pytest.raises(QueueFull, match=r"'m': 2 requests wait already, and max_queue_size is 2"):
        station.submit(b"c")
    station.tick()
    station.submit_all([b"d", b"e"])
    with pytest.raises(QueueFull):
        station.submit(b"f")
    station.finish_all()
    assert len(station.done) == 4
    assert station.batcher.statistics().failures["REJECTED"] == 2
    station.submit(b"g")


def test_cancelled_and_expired_requests_make_room():
    station = Station(max_queue_size=1)
    station.submit(b"x")
    station.tick()
    station.batcher.cancel(station.submit(b"a"))
    station.submit(b"b", deadline=0.5)
    station.clock.advance(0.5)
    station.submit(b"c")


def test_bound_on_bytes_counts_what_waits_and_what_runs():
    station = Station(max_bytes=10)
    station.submit(b"aaaa")
    station.tick()
    station.submit(b"bbbbbb")
    with pytest.raises(QueueFull, match=r"'m': 10 bytes are in flight.* max_inflight_bytes is 10"):
        station.submit(b"c")
    station.executor.finish()
    station.submit(b"cccc")
    with pytest.raises(QueueFull):
        station.submit(b"d")


def outcome_answered(station):
    station.finish_all()


def outcome_expired(station):
    station.clock.advance(5.0)


def outcome_expired_in_the_tick(station):
    station.clock._now = 5.0
    station.tick()


def outcome_cancelled_waiting(station):
    for request in station.requests:
        station.batcher.cancel(request)


def outcome_cancelled_running(station):
    station.finish_first()
    station.tick()
    outcome_cancelled_waiting(station)
    station.finish_all()


def outcome_failed(station):
    station.finish_first()
    while station.batcher.in_flight:
        station.tick()
        station.executor.finish(ModelFailed("no"))


def outcome_stopped(station):
    station.batcher.fail_waiting(Draining("over"))


@pytest.mark.parametrize(
    "outcome",
    [
        outcome_answered,
        outcome_expired,
        outcome_expired_in_the_tick,
        outcome_cancelled_waiting,
        outcome_cancelled_running,
        outcome_failed,
        outcome_stopped,
    ],
)
def test_bytes_in_flight_and_the_queue_are_zero_after_every_outcome(outcome):
    station = Station()
    station.submit(b"first")
    station.tick()
    station.finish_first = station.executor.finish
    station.requests = [station.submit(b"aaa", deadline=4.0), station.submit(b"bb", rows=2, deadline=4.0)]
    assert station.admission.byte_size == 5 + 3 + 4
    outcome(station)
    while station.executor.running:
        station.executor.finish()
    assert len(station.done) == 3
    assert station.admission.byte_size == 0
    assert station.batcher.in_flight == 0
    assert (station.batcher.statistics().waiting, station.batcher.statistics().running) == (0, 0)


# -- failure ------------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", range(8))
def test_failed_batch_is_halved_until_the_culprit_stands_alone(culprit):
    station = Station(behaviour=picky)
    data = [bytes([n]) for n in range(8)]
    data[culprit] = bytes([POISON])
    requests = station.submit_all(data)
    station.finish_all()
    for number, request in enumerate(requests):
        if number == culprit:
            assert isinstance(request.error, ModelFailed)
        else:
            assert answer(request) == data[number]
    assert station.sizes[0] == 8
    assert len(station.sizes) == 7, "one run for all, and two for each halving"


def test_halves_run_before_those_who_came_later():
    station = Station(behaviour=picky)
    station.submit_all([b"a", bytes([POISON])])
    station.tick()
    station.submit(b"c")
    station.finish_all()
    assert station.executor.log[1:] == [[b"a"], [bytes([POISON])], [b"c"]]


def test_model_that_always_fails_ends_every_request_and_the_next_ones_too():
    station = Station()
    station.submit_all([b"a"] * 8)
    station.tick()
    for _ in range(100):
        if station.executor.running:
            station.executor.finish(ModelFailed("never"))
            station.tick()
    assert [str(request.error) for request in station.done] == ["never"] * 8
    assert len(station.sizes) == 15
    station.submit(b"b")
    station.finish_all()
    assert answer(station.done[-1]) == b"b"


def test_output_that_cannot_be_split_fails_each_request_and_no_other():
    def summed(inputs):
        return [Tensor("y", "UINT8", (1, 1), b"s")] if inputs[0].shape[0] > 1 else picky(inputs)

    station = Station(behaviour=summed)
    double, single = station.submit(b"a", rows=2), station.submit(b"b")
    station.finish_all()
    assert isinstance(double.error, ModelFailed)
    assert "its first dimension must be the batch's" in str(double.error)
    assert answer(single) == b"b"


# -- the end ------------------------------------------------------------------------------------


def test_fail_waiting_ends_what_waits_and_leaves_what_runs():
    station = Station()
    running = station.submit(b"a")
    station.tick()
    waiting = [station.submit(b"b"), station.submit(b"cc")]
    error = Draining("over")
    station.batcher.fail_waiting(error)
    assert station.done == waiting
    assert [request.error for request in waiting] == [error, error]
    station.executor.finish()
    station.tick()
    assert answer(running) == b"a"
    assert station.executor.log == [[b"a"]]


def test_fail_waiting_with_nothing_waiting_does_nothing():
    station = Station()
    station.batcher.fail_waiting(Draining("over"))
    station.submit(b"a")
    station.finish_all()
    assert answer(station.done[0]) == b"a"


async def turn():
    for _ in range(5):
        await asyncio.sleep(0)


def test_wait_idle_waits_for_the_last_request_that_waits_or_runs():
    async def main():
        station = Station()
        await station.batcher.wait_idle()
        station.submit(b"a")
        station.tick()
        second = station.submit(b"b")
        waiters = [asyncio.create_task(station.batcher.wait_idle()) for _ in range(2)]
        await turn()
        station.executor.finish()
        await turn()
        assert not any(waiter.done() for waiter in waiters)
        station.batcher.cancel(second)
        station.executor.finish()
        await asyncio.gather(*waiters)

    run(main())


@pytest.mark.parametrize(
    "end",
    [
        lambda station: station.clock.advance(0.5),
        outcome_expired_in_the_tick,
        lambda station: station.batcher.fail_waiting(Draining("over")),
        lambda station: [station.batcher.cancel(request) for request in station.batcher._queue.waiting()],
    ],
)
def test_wait_idle_ends_when_those_that_wait_end_without_running(end):
    async def main():
        station = holding()
        station.submit(b"a", deadline=HOLD_S / 1000)
        station.submit(b"b", deadline=HOLD_S / 1000)
        station.executor._streams = 0  # nothing can leave
        waiter = asyncio.create_task(station.batcher.wait_idle())
        await turn()
        assert not waiter.done()
        station.executor._streams = 1
        end(station)
        while station.executor.running:
            station.executor.finish()
        await waiter

    run(main())


def test_wait_idle_ends_when_the_rest_of_a_failed_batch_is_given_up():
    async def main():
        station = Station()
        requests = station.submit_all([b"a", b"b"])
        station.tick()
        station.executor.finish(ModelFailed("no"))
        station.batcher.cancel(requests[1])
        waiter = asyncio.create_task(station.batcher.wait_idle())
        await turn()
        station.executor.finish()
        await waiter
        assert station.admission.byte_size == 0

    run(main())


# -- counting -----------------------------------------------------------------------------------


def test_statistics_of_answered_requests_add_up():
    station = Station(bytes_spec(max_batch_size=4))
    station.submit(b"a", rows=3)
    station.clock.advance(0.25)  # leaves at once
    station.submit(b"b", rows=2)
    station.submit(b"c", rows=2)
    station.clock.advance(0.75)
    station.executor.finish()  # the first took 1 s; the next two waited 0.75 s
    station.clock.advance(0.5)
    station.executor.finish()
    counts = station.batcher.statistics()
    assert (counts.success_count, counts.inference_count, counts.execution_count) == (3, 7, 2)
    assert counts.queue_ns == pytest.approx(1.5e9)
    assert counts.success_ns == pytest.approx(1e9 + 2 * 1.25e9)
    # Each request counts its batch's whole computing time: 1 and 2 ns of the puppet's, and what is left.
    assert (counts.compute_input_ns, counts.compute_infer_ns) == (3, 6)
    assert counts.success_ns == counts.queue_ns + 3 + 6 + counts.compute_output_ns
    assert {rows: (size.count, size.compute_infer_ns) for rows, size in counts.batch_sizes.items()} == {
        3: (1, 2),
        4: (1, 2),
    }
    assert sum(rows * size.count for rows, size in counts.batch_sizes.items()) == counts.inference_count
    assert sum(size.count for size in counts.batch_sizes.values()) == counts.execution_count
    assert (counts.failure_count, counts.failures) == (0, dict.fromkeys(FAILURE_REASONS, 0))
    assert counts.last_inference_ms > 0


def test_durations_are_never_negative_however_long_the_machine_has_been_up():
    station = Station(bytes_spec(max_batch_size=64))
    station.clock.advance(123_456_789.1)
    for number in range(1, 60):
        station.submit_all([b"a"] * number)
        station.finish_all()
    counts = station.batcher.statistics()
    assert 0 <= counts.queue_ns < 60 * 60
    assert counts.success_ns >= counts.queue_ns


def test_failures_are_counted_by_reason_and_with_their_age():
    station = Station(max_queue_size=4)
    station.submit(b"a")
    station.tick()
    cancelled = station.submit(b"b")
    station.submit(b"c", deadline=0.25)
    station.submit(b"d")
    station.submit(b"e")
    with pytest.raises(QueueFull):
        station.submit(b"f")
    station.clock.advance(0.5)
    station.batcher.cancel(cancelled)
    station.batcher.fail_waiting(Draining("over"))
    station.executor.finish(ModelFailed("no"))
    counts = station.batcher.statistics()
    assert counts.failures == {"REJECTED": 1, "EXPIRED": 1, "CANCELED": 1, "BACKEND": 1, "OTHER": 2}
    assert counts.failure_count == 6
    assert counts.failure_ns == pytest.approx((0.25 + 0.5 * 4) * 1e9)
    assert (counts.success_count, counts.inference_count, counts.execution_count) == (0, 0, 0)


def test_rows_of_a_cancelled_request_that_ran_are_counted_but_it_is_no_success():
    station = Station()
    request = station.submit(b"a", rows=2)
    station.submit(b"b")
    station.tick()
    station.batcher.cancel(request)
    station.executor.finish()
    counts = station.batcher.statistics()
    assert (counts.inference_count, counts.success_count, counts.failures["CANCELED"]) == (3, 1, 1)


def test_statistics_are_a_snapshot():
    station = Station()
    station.submit(b"a")
    station.tick()
    before = station.batcher.statistics()
    assert (before.waiting, before.running) == (0, 1)
    station.finish_all()
    station.submit(b"a")
    station.finish_all()
    assert (before.running, before.success_count, before.batch_sizes, before.failures["OTHER"]) == (
        1,
        0,
        {},
        0,
    )
    one = station.batcher.statistics()
    one.batch_sizes[1].count = 99
    assert station.batcher.statistics().batch_sizes[1].count == 2


def test_limits_follow_the_specification():
    spec = bytes_spec(max_batch_size=8, max_queue_delay_us=300, preferred_batch_sizes=(2, 4))
    assert (limits_of(spec).max_rows, limits_of(spec).preferred_rows) == (8, (2, 4))
    assert limits_of(spec).max_queue_delay_s == pytest.approx(300e-6)
    assert limits_of(bytes_spec(enabled=False)).max_rows == 1
    assert limits_of(bytes_spec(max_batch_size=0)).max_rows == 1
