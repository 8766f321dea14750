from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.batching.queue import WaitingQueue
from tensorferry.model import Bound
from tensorferry.tensors import Tensor

NARROW = (("UINT8", (1,)),)
WIDE = (("UINT8", (2,)),)


def pending(rows=1, key=NARROW, at=0.0, deadline=NEVER, size=1) -> Pending:
    bound = Bound([Tensor("x", "UINT8", (rows, size), bytes(rows * size))], rows, key)
    request = Pending(bound, lambda _: None, deadline)
    request.enqueued_at = at
    return request


def filled(*requests: Pending) -> WaitingQueue:
    queue = WaitingQueue()
    for request in requests:
        queue.push(request)
    return queue


def forget(queue: WaitingQueue, request: Pending) -> None:
    request.state = DONE
    queue.forget(request)


def entries(queue: WaitingQueue) -> int:
    return sum(len(lane) for lane in queue._lanes.values())


def test_empty_queue_has_no_lane_no_count_and_no_deadline():
    queue = WaitingQueue()
    assert list(queue.keys_by_age()) == []
    assert (len(queue), queue.byte_size, queue.earliest_deadline()) == (0, 0, NEVER)


def test_counts_are_of_what_waits():
    first, second = pending(rows=2, size=3), pending(size=5)
    queue = filled(first, second)
    assert (len(queue), queue.byte_size) == (2, 11)
    forget(queue, first)
    assert (len(queue), queue.byte_size) == (1, 5)
    assert queue.take(NARROW, 8) == [second]
    assert (len(queue), queue.byte_size) == (0, 0)
    assert queue.waiting() == []


def test_view_takes_rows_in_order_until_one_does_not_fit():
    queue = filled(
        pending(3, at=1.0, deadline=9.0), pending(2, at=2.0, deadline=7.0), pending(4, deadline=1.0)
    )
    view = queue.view(NARROW, 8)
    assert (view.count, view.rows, view.is_full) == (2, 5, True)
    assert (view.oldest_enqueued_at, view.earliest_deadline) == (1.0, 7.0)
    assert [request.rows for request in queue.take(NARROW, view.rows)] == [3, 2]


def test_view_is_full_at_exactly_the_bound_and_not_below_it():
    assert filled(pending(3), pending(5)).view(NARROW, 8).is_full
    assert not filled(pending(3), pending(4)).view(NARROW, 8).is_full


def test_request_larger_than_the_bound_goes_alone():
    queue = filled(pending(4), pending(1))
    view = queue.view(NARROW, 1)
    assert (view.count, view.rows, view.is_full) == (1, 4, True)
    assert [request.rows for request in queue.take(NARROW, 1)] == [4]
    assert len(queue) == 1


def test_lane_with_the_oldest_head_comes_first():
    old, young = pending(key=WIDE, at=1.0), pending(key=NARROW, at=2.0)
    assert list(filled(young, old).keys_by_age()) == [WIDE, NARROW]
    assert list(filled(old, young).keys_by_age()) == [WIDE, NARROW]


def test_dead_head_does_not_keep_its_lane_first_nor_count_as_the_oldest():
    dead, living, other = pending(at=1.0), pending(at=3.0), pending(key=WIDE, at=2.0)
    queue = filled(dead, living, other)
    forget(queue, dead)
    assert list(queue.keys_by_age()) == [WIDE, NARROW]
    assert queue.view(NARROW, 8).oldest_enqueued_at == 3.0


def test_lane_of_the_dead_disappears():
    dead = pending()
    queue = filled(dead)
    forget(queue, dead)
    assert list(queue.keys_by_age()) == []
    assert entries(queue) == 0


def test_dead_in_the_middle_are_neither_seen_nor_taken():
    first, dead, last = pending(), pending(5, deadline=0.5), pending()
    queue = filled(first, dead, last)
    forget(queue, dead)
    view = queue.view(NARROW, 8)
    assert (view.count, view.rows, view.earliest_deadline) == (2, 2, NEVER)
    assert queue.take(NARROW, 8) == [first, last]
    assert entries(queue) == 0


def test_expired_are_those_whose_instant_has_come():
    requests = [pending(deadline=1.0), pending(deadline=2.0, key=WIDE), pending(deadline=3.0), pending()]
    queue = filled(*requests)
    assert queue.expired(2.0) == [requests[0], requests[1]]
    assert queue.earliest_deadline() == 1.0
    forget(queue, requests[0])
    assert queue.earliest_deadline() == 2.0


def test_memory_of_many_cancelled_requests_is_given_back_though_the_first_still_waits():
    queue = filled(pending())
    for _ in range(10_000):
        request = pending()
        queue.push(request)
        forget(queue, request)
        assert entries(queue) < 1000
    assert len(queue) == 1


@given(st.lists(st.tuples(st.sampled_from("pfpt"), st.integers(1, 4), st.sampled_from([NARROW, WIDE]))))
def test_queue_agrees_with_a_plain_list(operations):
    queue, model = WaitingQueue(), []
    for instant, (operation, number, key) in enumerate(operations):
        if operation == "p":
            request = pending(number, key, at=float(instant), size=number)
            queue.push(request)
            model.append(request)
        elif operation == "f" and model:
            forget(queue, model.pop(number % len(model)))
        elif operation == "t" and model:
            first = model[0]
            assert next(queue.keys_by_age()) == first.bound.key
            taken = queue.take(first.bound.key, number)
            rows = sum(request.rows for request in taken)
            assert rows <= number or len(taken) == 1
            lane = [request for request in model if request.bound.key == first.bound.key]
            assert taken == lane[: len(taken)]
            assert len(taken) == len(lane) or rows + lane[len(taken)].rows > number
            model = [request for request in model if request not in taken]
        assert len(queue) == len(model)
        assert queue.byte_size == sum(request.byte_size for request in model)
        assert sorted(queue.waiting(), key=lambda request: request.enqueued_at) == model
