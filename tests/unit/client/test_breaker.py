"""When a server that has stopped answering is asked again."""

import math

import pytest

from tensorferry_client._breaker import CircuitBreaker


def opened(now_s=0.0):
    breaker = CircuitBreaker(failures_to_open=3, probe_interval_s=1.0)
    for _ in range(3):
        breaker.failed(now_s)
    return breaker


def test_failures_in_a_row_open_it():
    breaker = CircuitBreaker(failures_to_open=3, probe_interval_s=1.0)
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert not breaker.is_open
    breaker.failed(0.0)
    assert breaker.is_open
    assert not breaker.allows(0.0)


def test_a_success_between_failures_starts_the_count_anew():
    breaker = CircuitBreaker(failures_to_open=2, probe_interval_s=1.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.succeeded()
    assert not breaker.is_open


def test_one_probe_passes_in_each_interval():
    breaker = opened()
    assert [breaker.allows(now_s) for now_s in (0.9, 1.0, 1.0, 1.9, 2.0, 2.5)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_failed_probe_leaves_it_open_and_the_pace_as_it_was():
    breaker = opened()
    assert breaker.allows(1.0)
    breaker.failed(1.4)
    assert breaker.is_open
    assert not breaker.allows(1.9)
    assert breaker.allows(2.0)


def test_a_probe_that_succeeds_closes_it():
    breaker = opened()
    assert breaker.allows(1.0)
    breaker.succeeded()
    assert breaker.allows(1.0)
    assert breaker.allows(1.0)


@pytest.mark.parametrize(("failures", "interval_s"), [(0, 1.0), (1, 0.0), (1, math.inf), (1, math.nan)])
def test_senseless_settings_are_refused(failures, interval_s):
    with pytest.raises(ValueError, match=r"failures_to_open|probe_interval_s"):
        CircuitBreaker(failures, interval_s)
