from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.support import POISON, Station, answer, bytes_spec, picky

from tensorferry.batching.ordering import InOrder
from tensorferry.batching.pending import Pending
from tensorferry.errors import Cancelled, DeadlineExceeded, ModelFailed, OutOfDeviceMemory
from tensorferry.model import Bound


def joined(line: InOrder, told: list[Pending], count: int) -> list[Pending]:
    requests = [Pending(Bound([], 1, ()), told.append) for _ in range(count)]
    for request in requests:
        line.join(request)
    return requests


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_callers_are_told_in_the_order_they_came_whatever_the_order_of_the_outcomes(order, failing):
    line, told = InOrder(), []
    requests = joined(line, told, 6)
    ended = set()
    for index in order:
        requests[index].fail(Cancelled("")) if index in failing else requests[index].finish([])
        ended.add(index)
        known = next((n for n in range(6) if n not in ended), 6)
        assert told == requests[:known], "everybody up to the first that has no outcome, and nobody else"
        assert len(line) == 6 - known


def test_callback_that_ends_the_next_one_does_not_disturb_the_order():
    line, told = InOrder(), []
    requests = []

    def first_done(request: Pending) -> None:
        told.append(request)
        requests[1].fail(Cancelled(""))

    requests.append(Pending(Bound([], 1, ()), first_done))
    line.join(requests[0])
    requests += joined(line, told, 2)
    requests[2].finish([])
    requests[0].finish([])
    assert told == requests


def test_callback_may_join_the_line_again():
    line, told = InOrder(), []
    again = []

    def rejoin(request: Pending) -> None:
        told.append(request)
        again.extend(joined(line, told, 1))

    first = Pending(Bound([], 1, ()), rejoin)
    line.join(first)
    first.finish([])
    again[0].finish([])
    assert told == [first, again[0]]
    assert len(line) == 0


# -- in the batcher -----------------------------------------------------------------------------


def ordered(**more) -> Station:
    batching = more.pop("batching", {})
    return Station(bytes_spec(max_batch_size=2, preserve_ordering=True, **batching), **more)


def finish_last(station: Station) -> None:
    """Finish the batch that was started last, as a faster stream would."""
    station.executor._running.insert(0, station.executor._running.pop())
    station.executor.finish()


def test_answers_of_several_streams_come_in_the_order_of_the_requests():
    station = ordered(streams=3)
    requests = station.submit_all([bytes([n]) for n in range(6)])
    station.tick()
    assert station.sizes == [2, 2, 2]
    finish_last(station)
    assert station.done == []
    station.executor.finish()
    assert station.done == requests[:2]
    station.executor.finish()
    assert station.done == requests
    assert [answer(request) for request in requests] == [bytes([n]) for n in range(6)]


def test_held_back_answers_hold_no_stream_and_no_admission():
    station = ordered(streams=2)
    station.submit_all([b"a"] * 4)
    station.tick()
    finish_last(station)
    assert station.executor.idle == 1
    assert station.admission.byte_size == 2
    assert station.batcher.in_flight == 2
    assert station.batcher.statistics().success_count == 2


def test_cancelled_and_expired_requests_hear_of_it_in_their_turn():
    station = ordered(streams=1)
    first = station.submit(b"a", rows=2)
    station.tick()
    expiring = station.submit(b"b", deadline=1.0)
    cancelled = station.submit(b"c")
    last = station.submit(b"d")
    station.batcher.cancel(cancelled)
    station.clock.advance(2.0)
    assert station.done == []
    station.executor.finish()
    assert station.done == [first, expiring, cancelled]
    assert isinstance(expiring.error, DeadlineExceeded)
    assert isinstance(cancelled.error, Cancelled)
    station.executor.finish()
    assert station.done[-1] is last


def test_halves_of_a_failed_batch_keep_the_order():
    station = Station(bytes_spec(max_batch_size=4, preserve_ordering=True), streams=2, behaviour=picky)
    requests = station.submit_all([bytes([POISON if n == 1 else n]) for n in range(8)])
    station.tick()
    station.executor.finish()
    station.finish_all()
    assert station.done == requests
    assert [n for n, request in enumerate(requests) if isinstance(request.error, ModelFailed)] == [1]


def test_requests_tried_alone_for_want_of_memory_keep_the_order():
    station = Station(bytes_spec(max_batch_size=4, preserve_ordering=True), streams=2)
    requests = station.submit_all([bytes([n]) for n in range(8)])
    station.tick()
    station.executor.finish(OutOfDeviceMemory("full"))
    station.finish_all()
    assert station.done == requests
    assert not any(request.error for request in requests)


def test_deadlines_do_not_change_the_order_of_departure():
    station = ordered()
    patient, urgent = station.submit(b"a"), station.submit(b"b", deadline=5.0)
    station.finish_all()
    assert station.executor.log == [[b"a", b"b"]]
    assert station.done == [patient, urgent]


def test_nothing_of_what_is_over_is_kept():
    station = ordered(streams=2)
    for _ in range(20):
        station.submit_all([b"a"] * 7)
        station.finish_all()
    assert len(station.done) == 140
    assert len(station.batcher._in_order) == 0
