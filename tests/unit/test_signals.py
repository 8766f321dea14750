from __future__ import annotations

from tensorferry.signals import ECHO_S, StopSignals


def test_a_signal_right_after_the_first_is_its_echo_and_a_later_one_a_second_wish():
    now = 100.0
    signals = StopSignals(lambda: now)
    assert signals.is_second() is False
    assert signals.is_second() is None
    now += ECHO_S / 2
    assert signals.is_second() is None
    now += ECHO_S
    assert signals.is_second() is True
    assert signals.is_second() is True
