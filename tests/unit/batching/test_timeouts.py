"""Queue timeouts: whose is nearest, which may be overridden, and what DELAY does instead of ending."""

from __future__ import annotations

import pytest
from tests.unit.batching.timed import TimedStation, refusal
from tests.unit.support import POISON, Station, answer, bytes_spec, picky

from tensorferry.batching.pending import NEVER
from tensorferry.errors import Cancelled, DeadlineExceeded, ModelFailed, QueueFull
from tensorferry.model import QueuePolicy

MAX_ROWS = 4


def with_policy(max_batch_size: int = MAX_ROWS, behaviour=picky, batching=None, **policy) -> Station:
    """One busy stream, so that what comes now waits."""
    spec = bytes_spec(max_batch_size, queue_policy=QueuePolicy(**policy), **(batching or {}))
    station = Station(spec, behaviour=behaviour)
    station.submit(b"x", deadline=NEVER)
    station.tick()
    station.executor.log.clear()
    return station


def expiry_of(station: Station, **request) -> float | None:
    """Submit a request and say when it expires; None if it doesn't within 100 s."""
    ends_at = []
    pending = station.submit(on_done=lambda _: ends_at.append(station.clock.now()), **request)
    station.clock.advance(100.0)
    assert pending.error is None or isinstance(pending.error, DeadlineExceeded)
    return ends_at[0] if ends_at else None


@pytest.mark.parametrize(
    ("default_s", "may_override", "timeout_s", "deadline", "expires"),
    [
        (0, True, 0.0, NEVER, None),
        (0, True, 0.0, 7.0, 7.0),
        (0, True, 3.0, NEVER, 3.0),
        (0, True, 3.0, 2.0, 2.0),
        (5, True, 0.0, NEVER, 5.0),
        (5, True, 3.0, NEVER, 3.0),
        (5, True, 9.0, NEVER, 5.0),  # it may only shorten
        (5, True, 3.0, 2.0, 2.0),
        (5, True, 9.0, 7.0, 5.0),
        (5, False, 3.0, NEVER, 5.0),
        (5, False, 3.0, 4.0, 4.0),
        (0, False, 3.0, NEVER, None),
    ],
)
def test_nearest_of_deadline_timeout_and_default_holds(default_s, may_override, timeout_s, deadline, expires):
    station = with_policy(default_timeout_us=default_s * 1_000_000, allow_timeout_override=may_override)
    assert expiry_of(station, timeout_s=timeout_s, deadline=deadline) == expires


def test_each_level_has_its_own_timeout():
    policies = ((2, QueuePolicy(default_timeout_us=2_000_000, allow_timeout_override=False)),)
    batching = {"priority_levels": 2, "default_priority_level": 1, "priority_policies": policies}
    made = {"default_timeout_us": 5_000_000, "batching": batching}
    assert expiry_of(with_policy(**made), priority=1) == 5.0
    assert expiry_of(with_policy(**made), priority=2) == 2.0
    assert expiry_of(with_policy(**made), priority=1, timeout_s=1.0) == 1.0
    assert expiry_of(with_policy(**made), priority=2, timeout_s=1.0) == 2.0


def test_timeout_bounds_the_wait_and_not_the_run():
    station = TimedStation(run_s=lambda _: 6.0)
    request = station.submit(b"a", timeout_s=1.0)
    station.clock.advance(6.0)
    assert answer(request) == b"a"


def test_timeout_shorter_than_the_run_refuses_nobody_before_it_comes():
    station = TimedStation(run_s=lambda _: 6.0)
    station.submit(b"a")
    station.tick()
    request = station.submit(b"b", timeout_s=1.0)
    station.clock.advance(1.0)
    assert isinstance(request.error, DeadlineExceeded)
    assert station.refusals == {}


def test_shorter_timeout_leaves_before_a_longer_one():
    station = with_policy(max_batch_size=1)
    station.submit(b"b", timeout_s=0.75)
    station.submit(b"a", timeout_s=0.5)
    station.executor.finish()
    station.executor.finish()
    assert station.executor.log == [[b"a"], [b"b"]]


# -- DELAY --------------------------------------------------------------------------------------


def delaying(**more) -> Station:
    return with_policy(default_timeout_us=1_000_000, timeout_action="DELAY", **more)


def test_delayed_request_runs_after_all_that_wait_and_all_that_come():
    station = delaying()
    delayed = station.submit(b"d", rows=MAX_ROWS)
    station.clock.advance(1.0)
    assert delayed.error is None
    station.submit(b"a", rows=MAX_ROWS)
    station.executor.finish()
    station.submit(b"b", rows=MAX_ROWS)
    station.executor.finish()
    station.executor.finish()
    station.executor.finish()
    assert [batch[0][:1] for batch in station.executor.log] == [b"a", b"b", b"d"]
    assert answer(delayed) == b"dddd"


def test_delayed_request_fills_room_that_nobody_else_needs():
    station = delaying()
    delayed = station.submit(b"d")
    station.clock.advance(1.0)
    station.submit(b"a")
    station.executor.finish()
    assert station.executor.log == [[b"a", b"d"]]
    station.executor.finish()
    assert answer(delayed) == b"d"


def test_delayed_request_still_obeys_the_calls_own_deadline():
    station = delaying()
    delayed = station.submit(b"d", deadline=3.0)
    station.clock.advance(2.5)
    assert delayed.error is None
    station.clock.advance(0.5)
    assert isinstance(delayed.error, DeadlineExceeded)
    assert station.batcher.statistics().waiting == 0


def test_calls_deadline_before_the_timeout_ends_the_request():
    station = delaying()
    assert expiry_of(station, deadline=0.5) == 0.5


def test_delayed_request_can_be_cancelled_and_given_up():
    station = delaying()
    cancelled, stays = station.submit(b"c"), station.submit(b"s")
    station.clock.advance(1.0)
    station.batcher.cancel(cancelled)
    assert isinstance(cancelled.error, Cancelled)
    station.batcher.fail_waiting(ModelFailed("unloaded"))
    assert isinstance(stays.error, ModelFailed)
    station.executor.finish()
    assert station.batcher.in_flight == 0
    assert station.admission.byte_size == 0


def test_only_the_level_that_says_so_delays():
    policies = ((2, QueuePolicy(default_timeout_us=1_000_000, timeout_action="DELAY")),)
    batching = {"priority_levels": 2, "default_priority_level": 1, "priority_policies": policies}
    station = with_policy(default_timeout_us=1_000_000, batching=batching)
    ended, delayed = station.submit(b"e", priority=1), station.submit(b"d", priority=2)
    station.clock.advance(2.0)
    assert isinstance(ended.error, DeadlineExceeded)
    station.executor.finish()
    station.executor.finish()
    assert answer(delayed) == b"d"


def test_requests_own_timeout_delays_too():
    station = with_policy(timeout_action="DELAY")
    delayed = station.submit(b"d", timeout_s=0.5)
    station.clock.advance(50.0)
    station.executor.finish()
    station.executor.finish()
    assert answer(delayed) == b"d"


def test_timeout_that_comes_before_its_timer_had_its_turn_does_not_end_the_request():
    station = delaying()
    delayed = station.submit(b"d")
    station.clock.sleep(1.5)
    station.executor.finish()
    station.clock.advance(1.0)
    station.finish_all()
    assert answer(delayed) == b"d"


def test_timeout_that_comes_during_a_failing_run_does_not_end_the_others_of_the_batch():
    station = delaying()
    poisoned, good = station.submit(bytes([POISON])), station.submit(b"g")
    station.executor.finish()
    station.clock.advance(1.5)
    station.finish_all()
    assert isinstance(poisoned.error, ModelFailed)
    assert answer(good) == b"g"


def test_delayed_requests_count_for_the_bound_on_what_waits():
    station = delaying(max_queue_size=2)
    station.submit(b"d")
    station.submit(b"d")
    station.clock.advance(1.0)
    assert isinstance(refusal(station), QueueFull)


def test_delayed_requests_count_for_their_levels_bound():
    batching = {"priority_levels": 2, "default_priority_level": 1}
    station = delaying(max_queue_size=2, batching=batching)
    for _ in range(2):
        station.submit(b"d", priority=1)
    station.clock.advance(1.0)
    assert isinstance(refusal(station, priority=1), QueueFull)
    station.submit(b"o", priority=2)


def test_delayed_request_keeps_no_stream_idle():
    spec = bytes_spec(
        MAX_ROWS,
        max_queue_delay_us=5_000_000,
        queue_policy=QueuePolicy(default_timeout_us=1_000_000, timeout_action="DELAY"),
    )
    station = Station(spec)
    delayed = station.submit(b"d")
    station.clock.advance(5.0)
    station.executor.finish()
    assert answer(delayed) == b"d"
