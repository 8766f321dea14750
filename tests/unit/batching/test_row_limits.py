"""A device that ran out of memory says how many rows it takes at once; batches are no larger then."""

from __future__ import annotations

import pytest
from tests.unit.support import Station, answer, bytes_spec

from tensorferry.device import DeviceRun


def ran(row_limit: int) -> DeviceRun:
    return DeviceRun(1, 2, 3, row_limit=row_limit)


def limited(row_limit: int, **more) -> Station:
    """A station one of whose runs has told this limit, with nothing in flight."""
    station = Station(bytes_spec(8), **more)
    tell(station, row_limit)
    return station


def tell(station: Station, row_limit: int) -> None:
    station.submit(b"-")
    station.tick()
    station.executor.finish(device=ran(row_limit))
    station.executor.log.clear()


def leave(station: Station, rows: int, row_limit: int) -> list[int]:
    """Return the sizes of the batches as which ``rows`` requests leave, all of them telling the limit."""
    station.executor.log.clear()
    station.submit_all([b"a"] * rows)
    station.tick()
    while station.executor.running:
        station.executor.finish(device=ran(row_limit))
    return station.sizes


def test_batches_are_no_larger_than_the_limit_that_a_run_told():
    assert leave(limited(3), 8, 3) == [3, 3, 2]


def test_limit_holds_from_the_batch_on_that_leaves_next():
    station = Station(bytes_spec(8))
    station.submit_all([b"a"] * 16)
    station.tick()
    station.executor.finish(device=ran(4))
    assert station.sizes == [8, 4]


@pytest.mark.parametrize(("later", "sizes"), [(5, [5, 3]), (0, [8]), (2, [2, 2, 2, 2]), (99, [8])])
def test_limit_follows_what_the_device_says_later(later, sizes):
    station = limited(3)
    tell(station, later)
    assert leave(station, 8, later) == sizes


def test_single_request_above_the_limit_goes_alone_and_whole():
    station = limited(3)
    request = station.submit(b"a", rows=7)
    others = station.submit_all([b"b", b"c"])
    station.tick()
    assert station.sizes == [7]
    station.finish_all()
    assert station.sizes == [7, 2]
    assert answer(request) == b"a" * 7
    assert [answer(other) for other in others] == [b"b", b"c"]


def test_of_several_streams_the_lowest_limit_counts():
    station = Station(bytes_spec(8), streams=2)
    station.submit(b"-")
    station.tick()
    station.submit(b"-")
    station.tick()
    first, second = station.executor.running
    station.executor.finish(device=ran(3), batch=first)
    station.executor.finish(device=ran(0), batch=second)
    station.executor.log.clear()
    station.submit_all([b"a"] * 4)
    station.tick()
    assert station.sizes == [3, 1]


def test_full_by_the_limit_is_full_for_a_place_behind_another():
    station = limited(3, slots=2)
    station.submit(b"-")
    station.tick()
    station.submit_all([b"a"] * 3)
    station.tick()
    assert station.sizes == [1, 3]


def test_forecast_counts_batches_of_the_limit():
    station = Station(bytes_spec(8), run_s={1: 1.0, 8: 1.0})
    forecast = station.batcher._forecast
    assert forecast.completion(0.0, 7, 1, float("inf")) == 1.0
    tell(station, 4)
    now = station.clock.now()
    assert forecast.completion(now, 7, 1, float("inf")) > forecast.completion(now, 3, 1, float("inf"))
