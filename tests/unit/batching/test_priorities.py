"""Priority levels: who leaves first, who fills whose room, and that nobody waits for ever."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.unit.batching.timed import refusal
from tests.unit.support import Station, answer, bytes_spec

from tensorferry.errors import InvalidRequest, QueueFull
from tensorferry.model import QueuePolicy

MAX_ROWS = 4
LEVELS = 3


def levelled(max_queue_size: int = 1000, **batching) -> Station:
    settings = {"priority_levels": LEVELS, "default_priority_level": 2, **batching}
    return Station(bytes_spec(MAX_ROWS, **settings), max_queue_size=max_queue_size)


def busy(station: Station) -> Station:
    """Have the one stream busy, so that what comes now waits."""
    station.submit(b"x")
    station.tick()
    station.executor.log.clear()
    return station


def departures(station: Station) -> list[list[bytes]]:
    """Let everything leave; return the batches in order."""
    station.finish_all()
    return station.executor.log


# -- order --------------------------------------------------------------------------------------


def test_higher_level_leaves_first_and_each_in_the_order_it_came():
    station = busy(levelled())
    for data, priority in ((b"c", 3), (b"b", 2), (b"a", 1), (b"B", 2), (b"A", 1), (b"C", 3)):
        station.submit(data, rows=MAX_ROWS, priority=priority)
    assert [batch[0][:1] for batch in departures(station)] == [b"a", b"A", b"b", b"B", b"c", b"C"]


@pytest.mark.parametrize("priority", [0, 2])
def test_request_without_priority_has_the_models_default(priority):
    station = busy(levelled())
    station.submit(b"l", rows=MAX_ROWS, priority=3)
    station.submit(b"d", rows=MAX_ROWS, priority=priority)
    station.submit(b"h", rows=MAX_ROWS, priority=1)
    assert [batch[0][:1] for batch in departures(station)] == [b"h", b"d", b"l"]


def test_within_a_level_the_earliest_deadline_leaves_first():
    station = busy(levelled())
    for data, deadline in ((b"c", 9.0), (b"a", 3.0), (b"b", 5.0)):
        station.submit(data, rows=MAX_ROWS, deadline=deadline)
    station.executor.finish()
    station.executor.finish()
    station.executor.finish()
    assert [batch[0][:1] for batch in station.executor.log] == [b"a", b"b", b"c"]


def test_deadline_does_not_lift_a_request_over_the_levels_above():
    station = busy(levelled())
    station.submit(b"u", rows=MAX_ROWS, deadline=0.5, priority=2)
    station.submit(b"h", rows=MAX_ROWS, priority=1)
    station.executor.finish()
    assert [batch[0][:1] for batch in station.executor.log] == [b"h"]


def test_request_without_a_timeout_is_not_passed_for_ever_by_those_that_have_one():
    station = busy(levelled())
    station.submit(b"p", rows=MAX_ROWS)
    for _ in range(8):
        station.submit(b"d", rows=MAX_ROWS, timeout_s=0.75)
        station.clock.advance(0.25)
        station.executor.finish()
    assert [b"p" * MAX_ROWS] in station.executor.log


# -- room ---------------------------------------------------------------------------------------


def test_lower_levels_fill_the_room_that_a_batch_has_left():
    station = busy(levelled())
    for data, priority in ((b"l", 3), (b"m", 2), (b"h", 1), (b"h", 1), (b"l", 3)):
        station.submit(data, priority=priority)
    assert departures(station) == [[b"h", b"h", b"m", b"l"], [b"l"]]


def test_other_shape_fills_no_room():
    station = busy(levelled())
    station.submit(b"ll", priority=3)
    station.submit(b"h", priority=1)
    assert departures(station) == [[b"h"], [b"ll"]]


# -- starvation ---------------------------------------------------------------------------------


def flood_from_above(station: Station, batches: int) -> list[bytes]:
    """A full batch of level 1 comes for each that leaves; return the first letter of each departure."""
    for _ in range(batches):
        station.submit(b"h", rows=MAX_ROWS, priority=1)
        station.tick()
        station.executor.finish()
    return [batch[0][:1] for batch in station.executor.log]


@pytest.mark.parametrize(
    "batching",
    [{}, {"max_queue_delay_us": 1000}, {"preferred_batch_sizes": (4,)}],
    ids=["greedy", "hold", "preferred"],
)
def test_level_that_starves_gets_a_ninth_of_the_batches(batching):
    station = busy(levelled(**batching))
    for _ in range(5):
        station.submit(b"l", rows=MAX_ROWS, priority=3)
    station.submit(b"h", rows=MAX_ROWS, priority=1)
    station.clock.advance(1.5)
    leaving = flood_from_above(station, 40)
    turns = [index for index, data in enumerate(leaving) if data == b"l"]
    assert len(turns) >= 3
    assert all(after - before == 9 for before, after in pairwise(turns))


def test_level_that_waits_but_does_not_starve_gets_none():
    station = busy(levelled())
    station.submit(b"l", rows=MAX_ROWS, priority=3)
    station.submit(b"h", rows=MAX_ROWS, priority=1)
    station.clock.advance(0.5)
    assert b"l" not in flood_from_above(station, 27)


def test_full_batch_of_a_lower_level_leaves_whole_while_a_higher_one_is_held():
    station = levelled(max_queue_delay_us=1_000_000)
    station.submit(b"hh", priority=1)
    for _ in range(MAX_ROWS):
        station.submit(b"l", priority=3)
    station.tick()
    assert station.executor.log == [[b"l"] * MAX_ROWS]


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("priority", [LEVELS + 1, 2**64 - 1])
def test_priority_out_of_range_is_the_callers_fault_and_leaves_no_trace(priority):
    station = levelled()
    error = refusal(station, priority=priority)
    assert isinstance(error, InvalidRequest)
    assert f"priority {priority} is out of range" in str(error)
    assert "levels 1 (the highest) to 3, and 0 or none means 2" in str(error)
    assert station.batcher.in_flight == 0
    assert station.admission.byte_size == 0
    assert not any(station.batcher.statistics().refusals.values())


def test_model_with_one_level_refuses_the_second():
    station = Station(bytes_spec(MAX_ROWS, priority_levels=1, default_priority_level=1))
    station.submit(b"a", priority=1)
    error = refusal(station, priority=2)
    assert isinstance(error, InvalidRequest)
    assert "priority 2 is out of range" in str(error)


@pytest.mark.parametrize("priority", [1, 7, 2**64 - 1])
def test_model_without_levels_ignores_the_priority(priority):
    station = busy(Station(bytes_spec(MAX_ROWS)))
    first = station.submit(b"a", rows=MAX_ROWS)
    second = station.submit(b"b", rows=MAX_ROWS, priority=priority)
    assert departures(station) == [[b"aaaa"], [b"bbbb"]]
    assert (answer(first), answer(second)) == (b"aaaa", b"bbbb")


def test_each_level_has_its_own_bound_on_what_waits():
    policies = ((1, QueuePolicy(max_queue_size=1)), (3, QueuePolicy(max_queue_size=2)))
    station = busy(levelled(priority_policies=policies))
    station.submit(b"h", priority=1)
    error = refusal(station, b"h", priority=1)
    assert isinstance(error, QueueFull)
    assert "max_queue_size is 1" in str(error)
    station.submit(b"l", priority=3)
    station.submit(b"l", priority=3)
    assert "2 requests wait already" in str(refusal(station, b"l", priority=3))
    for _ in range(50):
        station.submit(b"m", priority=2)
    counts = station.batcher.statistics()
    assert counts.refusals["max_queue_size"] == 2
    assert counts.failures["REJECTED"] == 2


def test_level_without_a_bound_of_its_own_has_the_models():
    station = busy(
        levelled(
            queue_policy=QueuePolicy(max_queue_size=2),
            priority_policies=((1, QueuePolicy(max_queue_size=5)),),
        )
    )
    for _ in range(5):
        station.submit(b"h", priority=1)
    station.submit(b"m", priority=2)
    station.submit(b"m", priority=2)
    assert isinstance(refusal(station, b"m", priority=2), QueueFull)
    assert isinstance(refusal(station, b"h", priority=1), QueueFull)


def test_levels_without_any_bound_have_the_servers_each_for_itself():
    station = busy(levelled(max_queue_size=3))
    for _ in range(3):
        station.submit(b"l", priority=3)
    assert "max_queue_size is 3" in str(refusal(station, b"l", priority=3))
    station.submit(b"h", priority=1)


def test_room_in_a_level_is_there_again_once_one_has_left():
    station = busy(levelled(priority_policies=((1, QueuePolicy(max_queue_size=1)),)))
    cancelled = station.submit(b"h", priority=1)
    station.batcher.cancel(cancelled)
    station.submit(b"h", priority=1)
    station.executor.finish()
    station.submit(b"h", priority=1)
    assert not any(station.batcher.statistics().refusals.values())
