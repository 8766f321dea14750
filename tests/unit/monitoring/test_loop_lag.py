"""How late the loop is, on virtual time."""

from __future__ import annotations

from tensorferry.monitoring.loop_lag import LoopLag
from tensorferry.testing.clock import VirtualClock


def test_a_loop_that_keeps_up_is_never_late():
    clock = VirtualClock()
    lag = LoopLag(clock)
    lag.start()
    clock.advance(1.05)
    assert lag.histogram.count == 10
    assert lag.histogram.sum_s < 1e-9


def test_a_loop_that_is_held_up_is_as_late_as_it_was_held():
    clock = VirtualClock()
    lag = LoopLag(clock)
    lag.start()
    clock.call_at(0.05, lambda: clock.sleep(0.75))
    clock.advance(0.85)
    assert lag.histogram.count == 1
    assert abs(lag.histogram.sum_s - 0.7) < 1e-9


def test_stopped_it_counts_no_more():
    clock = VirtualClock()
    lag = LoopLag(clock)
    lag.start()
    clock.advance(0.15)
    lag.stop()
    lag.stop()
    clock.advance(5.0)
    assert lag.histogram.count == 1
    assert clock.next_timer() is None
