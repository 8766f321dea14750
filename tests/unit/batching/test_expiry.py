from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.batching.expiry import Expiry
from tensorferry.batching.pending import DONE, RUNNING, Pending
from tensorferry.model import Bound
from tensorferry.testing.clock import VirtualClock


class Watched:
    """An expiry on virtual time that ends what expires, and when that was."""

    def __init__(self, on_expired=None) -> None:
        self.clock = VirtualClock()
        self.expired: list[tuple[float, Pending]] = []
        self.expiry = Expiry(self.clock, on_expired or self.end)

    def end(self, request: Pending) -> None:
        request.state = DONE
        self.expired.append((self.clock.now(), request))

    def watch(self, deadline: float, waiting: int = 1) -> Pending:
        request = Pending(Bound([], 1, ()), lambda _: None, deadline)
        self.expiry.watch(request, waiting)
        return request


def test_each_expires_at_its_own_instant_in_whatever_order_they_came():
    watched = Watched()
    requests = {deadline: watched.watch(deadline) for deadline in (3.0, 1.0, 2.0)}
    watched.clock.advance(10.0)
    assert watched.expired == [(deadline, requests[deadline]) for deadline in (1.0, 2.0, 3.0)]
    assert len(watched.expiry) == 0


def test_nothing_expires_before_its_instant():
    watched = Watched()
    watched.watch(1.0)
    watched.clock.advance(0.999)
    assert watched.expired == []


def test_those_of_one_instant_expire_in_the_order_they_came():
    watched = Watched()
    requests = [watched.watch(1.0) for _ in range(20)]
    watched.clock.advance(1.0)
    assert [request for _, request in watched.expired] == requests


@pytest.mark.parametrize("state", [RUNNING, DONE])
def test_request_that_no_longer_waits_does_not_expire(state):
    watched = Watched()
    left, stays = watched.watch(1.0), watched.watch(2.0)
    left.state = state
    watched.clock.advance(5.0)
    assert watched.expired == [(2.0, stays)]


def test_there_is_one_timer_for_the_nearest_deadline():
    watched = Watched()
    for deadline in (5.0, 4.0, 9.0, 3.0):
        watched.watch(deadline)
    assert watched.clock.next_timer() == 3.0
    watched.clock.advance(3.5)
    assert watched.clock.next_timer() == 4.0
    watched.clock.advance(10.0)
    assert watched.clock.next_timer() is None


def test_request_whose_deadline_was_put_off_expires_at_the_later_one_only():
    watched = Watched()
    delayed = []

    def delay_once(request: Pending) -> None:
        if delayed:
            watched.end(request)
            return
        delayed.append(watched.clock.now())
        request.deadline = 4.0
        watched.expiry.watch(request, 1)

    watched.expiry = Expiry(watched.clock, delay_once)
    request = watched.watch(1.0)
    watched.clock.advance(10.0)
    assert (delayed, watched.expired) == ([1.0], [(4.0, request)])


def test_request_that_is_forgotten_never_expires_and_is_not_kept():
    watched = Watched()
    request = watched.watch(1.0)
    watched.expiry.forget(request)
    assert not any(request in entry for entry in watched.expiry._heap)
    watched.clock.advance(10.0)
    assert watched.expired == []
    assert len(watched.expiry) == 0


def test_callback_that_ends_another_one_of_its_instant_keeps_it_from_expiring():
    watched = Watched()
    requests = []
    called = []

    def end_both(request: Pending) -> None:
        called.append(request)
        for each in requests:
            each.state = DONE

    watched.expiry = Expiry(watched.clock, end_both)
    requests += [watched.watch(1.0), watched.watch(1.0)]
    watched.clock.advance(1.0)
    assert called == requests[:1]


def test_callback_that_brings_a_new_request_has_it_watched():
    watched = Watched()
    brought = []

    def bring(request: Pending) -> None:
        watched.end(request)
        if not brought:
            brought.append(watched.watch(1.5))

    watched.expiry = Expiry(watched.clock, bring)
    watched.watch(1.0)
    watched.watch(9.0)
    watched.clock.advance(2.0)
    assert watched.expired[-1] == (1.5, brought[0])
    assert watched.clock.next_timer() == 9.0


def test_late_timer_expires_all_whose_instant_has_passed():
    watched = Watched()
    requests = [watched.watch(1.0), watched.watch(2.0), watched.watch(3.0)]
    watched.clock.sleep(2.5)
    watched.clock.advance(0.0)
    assert [request for _, request in watched.expired] == requests[:2]


def test_memory_is_bounded_when_most_requests_leave_long_before_their_deadlines():
    watched = Watched()
    staying = [watched.watch(1000.0 + number) for number in range(10)]
    for number in range(20_000):
        left = watched.watch(60.0 + number, len(staying) + 1)
        left.state = DONE
        watched.expiry.forget(left)
        assert len(watched.expiry) < 600
    watched.clock.advance(100_000.0)
    assert [request for _, request in watched.expired] == staying
    assert len(watched.expiry) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 20).map(float), st.sampled_from(["stays", "leaves"]), st.integers(0, 3)),
        max_size=40,
    )
)
def test_exactly_those_that_wait_expire_at_their_instants(arrivals):
    watched = Watched()
    staying = []
    for deadline, fate, gap in arrivals:
        request = watched.watch(watched.clock.now() + deadline)
        if fate == "leaves":
            request.state = RUNNING
        else:
            staying.append(request)
        watched.clock.advance(float(gap))
    watched.clock.advance(100.0)
    assert {request for _, request in watched.expired} == set(staying)
    assert all(at == request.deadline for at, request in watched.expired)
    assert len(watched.expiry) == 0
