"""A batcher that is closed leaves nothing behind: a timer would hold a descriptor until its instant."""

from __future__ import annotations

from tests.unit.support import Station, bytes_spec

from tensorferry.errors import ModelNotReady


def test_a_closed_batcher_has_no_timer_for_a_deadline_far_away():
    station = Station()
    station.submit(deadline=86_400.0)
    station.clock.tick()
    station.executor.finish()
    station.clock.tick()
    assert len(station.done) == 1
    assert station.clock.next_timer() is not None
    station.batcher.close()
    assert station.clock.next_timer() is None


def test_a_closed_batcher_waits_for_no_batch_to_fill():
    station = Station(bytes_spec(max_queue_delay_us=60_000_000))
    request = station.submit()
    station.clock.tick()
    assert station.clock.next_timer() == 60.0
    station.batcher.fail_waiting(ModelNotReady("it is unloaded"))
    station.clock.tick()
    assert station.done == [request]
    station.batcher.close()
    assert station.clock.next_timer() is None
