from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.lane import Lane
from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.batching.queue import STARVING_S, Place, WaitingQueue
from tensorferry.model import Bound
from tensorferry.tensors import Tensor

NARROW = (("UINT8", (1,)),)
WIDE = (("UINT8", (2,)),)

#: Of this many batches, a starving level gets one.
TURN = 9


def pending(rows=1, key=NARROW, at=0.0, due=0.0, limit=NEVER, size=1, level=0) -> Pending:
    bound = Bound([Tensor("x", "UINT8", (rows, size), bytes(rows * size))], rows, key)
    request = Pending(bound, lambda _: None)
    request.enqueued_at, request.due, request.limit, request.level = at, due, limit, level
    return request


def filled(*requests: Pending, levels: int = 1) -> WaitingQueue:
    queue = WaitingQueue(levels)
    for request in requests:
        queue.push(request)
    return queue


def forget(queue: WaitingQueue, request: Pending) -> None:
    request.state = DONE
    queue.forget(request)


def entries(queue: WaitingQueue) -> int:
    return sum(len(lane.items) for lanes in queue._lanes for lane in lanes.values())


def head_of(queue: WaitingQueue, now: float = 0.0) -> Pending:
    return queue.first(now).head


def lane_of(*requests: Pending) -> Lane:
    lane = Lane()
    for request in requests:
        lane.push(request)
    return lane


# -- a lane -------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5)))
def test_lane_is_in_the_order_of_due_and_equals_in_the_order_they_came(dues):
    requests = [pending(due=float(due)) for due in dues]
    assert list(lane_of(*requests)) == sorted(requests, key=lambda request: request.due)


def test_removed_request_leaves_the_others_in_their_order():
    requests = [pending(due=float(n)) for n in range(3)]
    lane = lane_of(*requests)
    lane.remove(requests[1])
    assert lane.take(8) == [requests[0], requests[2]]


# -- counts, and who is first -------------------------------------------------------------------


def test_empty_queue_has_no_place_and_no_count():
    queue = WaitingQueue()
    assert queue.first(0.0) is None
    assert list(queue.places()) == []
    assert (len(queue), queue.waiting()) == (0, [])


def test_counts_are_of_what_waits():
    first, second, low = pending(rows=2, size=3), pending(size=5), pending(rows=4, level=1)
    queue = filled(first, second, low, levels=2)
    assert len(queue) == 3
    assert (queue.counts, queue.rows) == ([2, 1, 0], [3, 4, 0])
    forget(queue, first)
    assert (len(queue), queue.counts) == (2, [1, 1, 0])
    assert queue.take(queue.first(0.0), 1) == [second]
    assert queue.take(queue.first(0.0), 8) == [low]
    assert len(queue) == 0
    assert (queue.counts, queue.rows, queue.waiting()) == ([0, 0, 0], [0, 0, 0], [])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_lane_whose_head_is_due_first_comes_first(order):
    requests = [pending(key=WIDE, due=1.0), pending(key=NARROW, due=2.0)]
    queue = filled(*[requests[index] for index in order])
    assert queue.first(0.0) == Place(0, WIDE, requests[0])
    assert [place.key for place in queue.places()] == [WIDE, NARROW]


def test_highest_level_comes_first_however_urgent_the_lower_are():
    urgent, high = pending(due=1.0, level=2), pending(due=99.0, level=1, key=WIDE)
    queue = filled(urgent, high, levels=3)
    assert head_of(queue) is high
    assert [place.head for place in queue.places()] == [high, urgent]


def test_request_due_sooner_than_those_before_it_leaves_before_them():
    first, urgent, last = pending(due=5.0), pending(due=1.0), pending(due=5.0)
    queue = filled(first, urgent, last)
    assert queue.take(queue.first(0.0), 8) == [urgent, first, last]


def test_dead_head_does_not_keep_its_lane_first_nor_count_as_the_oldest():
    dead, living, other = pending(due=1.0), pending(due=3.0, at=3.0), pending(key=WIDE, due=2.0)
    queue = filled(dead, living, other)
    forget(queue, dead)
    places = list(queue.places())
    assert [place.head for place in places] == [other, living]
    assert queue.view(places[1], 8).oldest_enqueued_at == 3.0


def test_lane_of_the_dead_disappears():
    dead, other = pending(), pending(key=WIDE)
    queue = filled(dead, other)
    forget(queue, dead)
    assert [place.head for place in queue.places()] == [other]
    assert entries(queue) == 1


# -- the next batch -----------------------------------------------------------------------------


def test_view_takes_rows_in_order_until_one_does_not_fit():
    queue = filled(
        pending(3, at=2.0, limit=9.0, due=1.0),
        pending(2, at=1.0, limit=7.0, due=2.0),
        pending(4, limit=1.0, due=3.0),
    )
    place = queue.first(0.0)
    view = queue.view(place, 8)
    assert (view.count, view.rows, view.is_full) == (2, 5, True)
    assert (view.oldest_enqueued_at, view.earliest_limit) == (1.0, 7.0)
    assert [request.rows for request in queue.take(place, view.rows)] == [3, 2]


def test_view_is_full_at_exactly_the_bound_and_not_below_it():
    for rows, is_full in ((5, True), (4, False)):
        queue = filled(pending(3), pending(rows))
        assert queue.view(queue.first(0.0), 8).is_full is is_full


def test_request_larger_than_the_bound_goes_alone():
    queue = filled(pending(4), pending(1))
    place = queue.first(0.0)
    view = queue.view(place, 1)
    assert (view.count, view.rows, view.is_full) == (1, 4, True)
    assert [request.rows for request in queue.take(place, 1)] == [4]
    assert len(queue) == 1


def test_dead_in_the_middle_are_neither_seen_nor_taken():
    first, dead, last = pending(), pending(5, limit=0.5), pending()
    queue = filled(first, dead, last)
    forget(queue, dead)
    place = queue.first(0.0)
    view = queue.view(place, 8)
    assert (view.count, view.rows, view.earliest_limit) == (2, 2, NEVER)
    assert queue.take(place, 8) == [first, last]
    assert entries(queue) == 0


def test_room_in_a_batch_is_filled_from_the_levels_below_in_their_order():
    high, middle, low, other = (
        pending(3),
        pending(2, level=1),
        pending(2, level=2),
        pending(level=1, key=WIDE),
    )
    queue = filled(low, other, middle, high, levels=3)
    place = queue.first(0.0)
    assert queue.view(place, 8).rows == 7
    assert queue.take(place, 8) == [high, middle, low]
    assert queue.waiting() == [other]


def test_one_that_does_not_fit_the_room_keeps_its_level_in_order():
    queue = filled(pending(6), pending(3, level=1), pending(1, level=1), levels=2)
    assert [request.rows for request in queue.take(queue.first(0.0), 8)] == [6]
    assert [request.rows for request in queue.waiting()] == [3, 1]


def test_line_is_of_those_of_one_lane_that_leave_first():
    first, second, third = (pending(due=float(n)) for n in range(3))
    queue = filled(third, second, first, pending(level=1), pending(key=WIDE, due=5.0), levels=2)
    assert queue.line(queue.first(0.0), 2) == [first, second]


def test_rows_before_a_new_request_are_those_of_its_level_and_above():
    queue = filled(pending(1), pending(2, level=1), pending(4, level=2), levels=3)
    assert [queue.rows_before(level) for level in range(3)] == [1, 3, 7]


# -- delayed requests, and turns for the starving -----------------------------------------------


def test_delayed_request_leaves_after_all_others_and_is_still_counted():
    delayed, low = pending(due=1.0, key=WIDE), pending(due=2.0, level=1)
    queue = filled(delayed, low, levels=2)
    queue.delay(delayed)
    assert delayed.level == 2
    assert (queue.counts, len(queue)) == ([0, 1, 1], 2)
    assert [queue.take(queue.first(0.0), 8) for _ in range(2)] == [[low], [delayed]]


def heads_over_time(queue: WaitingQueue, high, now: float, batches: int) -> list[int]:
    """Take full batches while a request of the highest level comes for each; return the heads' levels."""
    levels = []
    for _ in range(batches):
        queue.push(high())
        place = queue.first(now)
        levels.append(place.level)
        queue.take(place, 8)
    return levels


def test_starving_level_gets_every_ninth_batch_and_the_highest_all_others():
    queue = filled(*[pending(8, level=1) for _ in range(9)], levels=2)
    levels = heads_over_time(queue, lambda: pending(8, due=9.0), STARVING_S, 3 * TURN)
    assert [index for index, level in enumerate(levels) if level] == [TURN - 1, 2 * TURN - 1, 3 * TURN - 1]


def test_nobody_starves_before_the_time_is_up():
    queue = filled(pending(8, level=1), levels=2)
    assert set(heads_over_time(queue, lambda: pending(8), STARVING_S * 0.99, 3 * TURN)) == {0}


def test_turn_is_of_the_request_that_has_waited_longest_at_whatever_level():
    queue = filled(pending(8, level=1, at=0.5, due=0.5), pending(8, level=2, at=0.25, due=9.0), levels=3)
    levels = heads_over_time(queue, lambda: pending(8), 2.0, 2 * TURN)
    assert [level for level in levels if level] == [2, 1]


def test_delayed_requests_have_their_turns_too():
    delayed = pending(8)
    queue = filled(delayed)
    queue.delay(delayed)
    assert heads_over_time(queue, lambda: pending(8), STARVING_S, TURN)[-1] == 1


def test_turn_leaves_half_of_the_batch_to_the_levels_above():
    queue = filled(*[pending(level=1) for _ in range(20)], levels=2)
    heads_over_time(queue, lambda: pending(8), STARVING_S, TURN - 1)
    for _ in range(8):
        queue.push(pending())
    taken = queue.take(queue.first(STARVING_S), 8)
    assert [request.level for request in taken] == [1] * 4 + [0] * 4


# -- memory -------------------------------------------------------------------------------------


def test_memory_of_many_cancelled_requests_is_given_back_though_the_first_still_waits():
    queue = filled(pending())
    for number in range(10_000):
        request = pending(due=float(number))
        queue.push(request)
        forget(queue, request)
        assert entries(queue) < 1000
    assert len(queue) == 1


def test_many_shapes_that_come_once_leave_no_lanes_behind():
    queue = filled(pending())
    for number in range(2000):
        request = pending(key=(("UINT8", (number,)),))
        queue.push(request)
        forget(queue, request)
    assert len(queue._lanes[0]) < 600


# -- against a plain list -----------------------------------------------------------------------

LEVELS = 3


class PlainList:
    """What waits, in no order; who is next is found by looking at all of it."""

    def __init__(self) -> None:
        self.waiting: list[Pending] = []

    def lane(self, level: int, key: object) -> list[Pending]:
        mine = [each for each in self.waiting if each.level == level and each.bound.key == key]
        return sorted(mine, key=lambda each: each.due)

    def place(self) -> tuple[int, float]:
        level = min(each.level for each in self.waiting)
        return level, min(each.due for each in self.waiting if each.level == level)

    def batch(self, level: int, key: object, max_rows: int) -> list[Pending]:
        """The lane's own, and for what room is left whoever fits at the front of the other levels."""
        taken: list[Pending] = []
        rows = 0
        for other in sorted(range(LEVELS + 1), key=lambda each: each != level):
            for request in self.lane(other, key):
                if taken and rows + request.rows > max_rows:
                    break
                taken.append(request)
                rows += request.rows
        return taken


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ppppfdtt"),
            st.integers(1, 4),
            st.sampled_from([NARROW, WIDE]),
            st.integers(0, 5),
            st.integers(0, LEVELS - 1),
        ),
        max_size=60,
    )
)
def test_queue_agrees_with_a_plain_list(operations):
    queue, model = WaitingQueue(LEVELS), PlainList()
    for instant, (operation, number, key, due, level) in enumerate(operations):
        if operation == "p":
            request = pending(number, key, float(instant), float(due), size=number, level=level)
            queue.push(request)
            model.waiting.append(request)
        elif not model.waiting:
            assert queue.first(0.0) is None
        elif operation == "f":
            forget(queue, model.waiting.pop(number % len(model.waiting)))
        elif operation == "d":
            request = model.waiting[number % len(model.waiting)]
            model.waiting.remove(request)
            model.waiting.append(request)  # among equals it is the last now
            request.due = float(due)
            queue.delay(request)
        else:
            # Before the starving have their turns: nothing here is older than the clock.
            place = queue.first(0.0)
            assert (place.level, place.head.due) == model.place()
            assert place.head is model.lane(place.level, place.key)[0]
            expected = model.batch(place.level, place.key, number)
            assert queue.take(place, number) == expected
            model.waiting = [each for each in model.waiting if each not in expected]
        assert len(queue) == len(model.waiting)
        for index in range(LEVELS + 1):
            mine = [each for each in model.waiting if each.level == index]
            assert (queue.counts[index], queue.rows[index]) == (len(mine), sum(each.rows for each in mine))
        assert set(queue.waiting()) == set(model.waiting)
        for place in queue.places():
            view = queue.view(place, 5)
            batch = model.batch(place.level, place.key, 5)
            assert view.count <= len(batch)
            assert batch[0] is place.head
            assert view.rows == sum(each.rows for each in batch[: view.count])
