"""The batcher on virtual time: deadlines, cancellation, callbacks that act on it, and who comes first."""

from __future__ import annotations

import pytest
from tests.unit.support import (
    POISON,
    PythonModel,
    Station,
    answer,
    bytes_spec,
    picky,
)

from tensorferry.batching.pending import Pending
from tensorferry.errors import Cancelled, DeadlineExceeded, Draining, ModelFailed
from tensorferry.execution.stream import InlineStream
from tensorferry.testing.puppet import echo

# -- deadlines ----------------------------------------------------------------------------------


def test_request_expires_at_its_deadline_while_another_batch_runs():
    station = Station()
    first = station.submit(b"a")
    station.tick()
    second = station.submit(b"b", deadline=0.5)
    station.clock.advance(0.4999)
    assert station.done == []
    station.clock.advance(0.0001)
    assert station.done == [second]
    assert isinstance(second.error, DeadlineExceeded)
    assert "'m': the deadline came after 500.0 ms" in str(second.error)
    station.executor.finish()
    station.tick()
    assert station.executor.log == [[b"a"]]
    assert answer(first) == b"a"


def test_each_of_several_deadlines_is_kept_in_whatever_order_they_come():
    station = Station()
    station.submit(b"a")
    station.tick()
    requests = {deadline: station.submit(b"b", deadline=deadline) for deadline in (0.3, 0.1, 0.2, 0.4)}
    for deadline in (0.1, 0.2, 0.3, 0.4):
        station.clock.advance(deadline - station.clock.now())
        assert station.done[-1] is requests[deadline]
    assert len(station.done) == 4


def test_request_that_comes_too_late_is_refused_at_once_and_not_queued():
    station = Station()
    station.clock.advance(1.0)
    for deadline in (0.5, 1.0):
        with pytest.raises(DeadlineExceeded):
            station.submit(deadline=deadline)
    station.tick()
    assert (station.done, station.sizes, station.admission.byte_size) == ([], [], 0)
    assert station.batcher.statistics().failures["EXPIRED"] == 2


def test_deadline_that_passes_within_the_tick_is_found_before_the_batch_leaves():
    station = Station()
    late, other = station.submit(b"a", deadline=0.1), station.submit(b"b")
    station.clock._now = 0.1  # the instant has come, and no timer has had its turn
    station.tick()
    assert station.executor.log == [[b"b"]]
    assert isinstance(late.error, DeadlineExceeded)
    station.executor.finish()
    assert answer(other) == b"b"
    assert station.admission.byte_size == 0


def test_deadline_that_passes_during_the_run_does_not_take_the_answer_away():
    station = Station()
    request = station.submit(b"a", deadline=0.1)
    station.tick()
    station.clock.advance(1.0)
    assert station.done == []
    station.executor.finish()
    assert answer(request) == b"a"


def test_halves_of_a_failed_batch_keep_their_deadlines():
    station = Station(behaviour=picky)
    for data in (b"a", b"b", bytes([POISON]), b"d"):
        station.submit(data, deadline=1.0 if data == b"b" else float("inf"))
    station.tick()
    station.clock._now = 2.0
    station.finish_all()
    by_data = {bytes(request.bound.tensors[0].data): request for request in station.done}
    assert isinstance(by_data[b"b"].error, DeadlineExceeded)
    assert isinstance(by_data[bytes([POISON])].error, ModelFailed)
    assert (answer(by_data[b"a"]), answer(by_data[b"d"])) == (b"a", b"d")


# -- cancellation -------------------------------------------------------------------------------


def test_cancelled_request_never_runs():
    station = Station()
    request, other = station.submit(b"a"), station.submit(b"b")
    station.batcher.cancel(request)
    assert station.done == [request]
    assert isinstance(request.error, Cancelled)
    station.tick()
    assert station.executor.log == [[b"b"]]
    station.executor.finish()
    assert answer(other) == b"b"


def test_answer_of_a_request_cancelled_while_it_runs_is_dropped():
    station = Station()
    request, other = station.submit(b"a"), station.submit(b"b")
    station.tick()
    station.batcher.cancel(request)
    assert isinstance(request.error, Cancelled)
    assert station.admission.byte_size == 2, "its bytes are still in use"
    station.executor.finish()
    assert station.done == [request, other]
    assert request.outputs == []
    assert station.admission.byte_size == 0


def test_cancelling_twice_or_after_the_answer_does_nothing():
    station = Station()
    request, other = station.submit(b"a"), station.submit(b"b")
    station.batcher.cancel(other)
    station.batcher.cancel(other)
    station.finish_all()
    station.batcher.cancel(request)
    assert answer(request) == b"a"
    assert len(station.done) == 2
    assert station.batcher.statistics().failure_count == 1


def test_request_cancelled_between_two_halves_does_not_run_again():
    station = Station()
    requests = station.submit_all([b"a", b"b", b"c", b"d"])
    station.tick()
    station.executor.finish(ModelFailed("no"))
    station.batcher.cancel(requests[3])
    station.finish_all()
    assert station.executor.log == [[b"a", b"b", b"c", b"d"], [b"a", b"b"], [b"c"]]
    assert station.admission.byte_size == 0


# -- callbacks that act on the batcher ----------------------------------------------------------


def test_callback_that_cancels_another_waiting_request_counts_nothing_twice():
    station = Station()
    others: list[Pending] = []

    def cancel_others(request):
        station.done.append(request)
        for other in others:
            station.batcher.cancel(other)

    station.submit(b"x")
    station.tick()
    others += [station.submit(b"a", deadline=0.5, on_done=cancel_others) for _ in range(3)]
    station.clock.advance(0.5)
    assert len(station.done) == 3
    assert station.batcher.in_flight == 1
    assert station.admission.byte_size == 1

    others[:] = [station.submit(b"a", on_done=cancel_others) for _ in range(3)]
    station.batcher.fail_waiting(Draining("over"))
    assert station.batcher.in_flight == 1
    assert station.admission.byte_size == 1


def test_callback_of_a_late_request_may_cancel_those_that_were_to_leave_with_it():
    station = Station()
    others: list[Pending] = []

    def cancel_others(request):
        station.done.append(request)
        for other in others:
            station.batcher.cancel(other)

    others.append(station.submit(b"a"))
    station.submit(b"b", deadline=0.1, on_done=cancel_others)
    others.append(station.submit(b"c"))
    staying = station.submit(b"d")
    station.clock._now = 0.2
    station.tick()
    assert station.executor.log == [[b"d"]]
    assert len(station.done) == 3
    assert station.admission.byte_size == 1
    station.finish_all()
    assert answer(staying) == b"d"
    assert station.batcher.in_flight == 0


def test_callback_may_cancel_another_of_its_own_batch():
    station = Station()
    second: list[Pending] = []

    def cancel_second(request):
        station.done.append(request)
        station.batcher.cancel(second[0])

    first = station.submit(b"a", on_done=cancel_second)
    second.append(station.submit(b"b"))
    station.finish_all()
    assert answer(first) == b"a"
    assert isinstance(second[0].error, Cancelled)
    assert station.admission.byte_size == 0


@pytest.mark.parametrize("inline", [False, True])
def test_callback_may_submit_the_next_request(inline):
    station = Station(inline=inline)

    def again(request):
        station.done.append(request)
        if len(station.done) < 100:
            station.submit(b"a", on_done=again)

    station.submit(b"a", on_done=again)
    for _ in range(100):
        station.finish_all()
    assert [answer(request) for request in station.done] == [b"a"] * 100


# -- order of things ----------------------------------------------------------------------------


def test_stream_is_refilled_before_the_replies_go_out():
    station = Station()
    sizes_at_reply = []
    for _ in range(2):
        station.submit(on_done=lambda _: sizes_at_reply.append(list(station.sizes)))
        station.tick()
    station.executor.finish()
    assert sizes_at_reply == [[1, 1]]


def test_inline_executor_lets_the_loop_turn_before_a_batch_that_is_not_full():
    station = Station(bytes_spec(max_batch_size=2), inline=True)
    station.submit_all([b"a"] * 3)
    station.clock.tick_once()
    assert station.sizes == [2]
    station.tick()
    assert station.sizes == [2, 1]


def test_inline_executor_runs_the_full_batches_that_wait_for_a_millisecond_at_most():
    def takes_half_a_millisecond(inputs):
        station.clock.sleep(0.5e-3)
        return echo(inputs)

    station = Station(bytes_spec(max_batch_size=2), inline=True, behaviour=takes_half_a_millisecond)
    station.submit_all([b"a"] * 12)
    station.clock.tick_once()
    assert station.sizes == [2, 2]
    station.clock.tick_once()
    assert station.sizes == [2, 2, 2, 2]
    station.tick()
    assert sum(station.sizes) == 12


def test_inline_executor_serves_ten_thousand_queued_requests_without_recursing():
    station = Station(bytes_spec(max_batch_size=2), inline=True)
    requests = station.submit_all([bytes([n % 251]) for n in range(10_000)])
    station.tick()
    assert len(station.sizes) == 5000
    assert [answer(request) for request in requests] == [bytes([n % 251]) for n in range(10_000)]


def test_inline_executor_halves_a_failed_batch_too():
    station = Station(inline=True, behaviour=picky)
    requests = station.submit_all([bytes([POISON if n == 5 else n]) for n in range(8)])
    station.tick()
    assert [n for n, request in enumerate(requests) if request.error is not None] == [5]


def test_real_inline_stream_serves_a_batcher_and_survives_a_model_that_raises():
    def behaviour(inputs):
        if b"!" in inputs[0].parts:
            raise RuntimeError("a secret of the model's")
        return picky(inputs)

    class Executor:
        idle = 1

        def __init__(self, spec):
            self.start = InlineStream(PythonModel(spec, behaviour)).start

    station = Station()
    station.batcher._executor = Executor(station.spec)
    requests = station.submit_all([b"a", b"!", b"b"])
    station.tick()
    assert (answer(requests[0]), answer(requests[2])) == (b"a", b"b")
    assert isinstance(requests[1].error, ModelFailed)
    assert "secret" not in str(requests[1].error)
