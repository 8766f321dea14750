from __future__ import annotations

import asyncio

import pytest
from tests.unit.support import (
    POISON,
    PythonModel,
    Station,
    answer,
    bytes_spec,
    model_spec,
    picky,
    run,
    tensor_spec,
)

from tensorferry.batching.batcher import limits_of
from tensorferry.batching.pending import Pending
from tensorferry.batching.statistics import FAILURE_REASONS
from tensorferry.errors import Cancelled, DeadlineExceeded, Draining, ModelFailed, QueueFull
from tensorferry.execution.stream import InlineStream
from tensorferry.model import BatchingSpec
from tensorferry.tensors import Tensor

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
    assert station.executor.log == [[b"a", b"b"]]


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


# -- order of things ----------------------------------------------------------------------------


def test_stream_is_refilled_before_the_replies_go_out():
    station = Station()
    sizes_at_reply = []
    for _ in range(2):
        station.submit(on_done=lambda _: sizes_at_reply.append(list(station.sizes)))
        station.tick()
    station.executor.finish()
    assert sizes_at_reply == [[1, 1]]


def test_inline_executor_lets_the_loop_turn_between_two_batches():
    station = Station(bytes_spec(max_batch_size=2), inline=True)
    station.submit_all([b"a"] * 6)
    calls, station.clock._soon = station.clock._soon, []
    for call in calls:
        call.fire()
    assert station.sizes == [2]
    station.tick()
    assert station.sizes == [2, 2, 2]


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
    # Each request counts its batch's whole computing time: 1, 2 and 3 ns of the puppet's.
    assert (counts.compute_input_ns, counts.compute_infer_ns, counts.compute_output_ns) == (3, 6, 9)
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
