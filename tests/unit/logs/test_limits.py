"""How many lines of a kind are admitted, on virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorferry.logs.limits import BURST, MAX_KINDS, REFUSED, SAY_EVERY_S, Limiter


class Time:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def limiter(lines_per_s=20.0, **more):
    time = Time()
    return time, Limiter(lines_per_s, time, **more)


def admitted(limiter, kind, lines):
    return sum(limiter.admit(kind) != REFUSED for _ in range(lines))


def test_a_burst_and_then_a_rate():
    time, limits = limiter(20.0)
    assert admitted(limits, "a", 1000) == 100
    time.now_s += 10.0
    assert admitted(limits, "a", 1000) == 100 - 1  # and the word about those that were left out
    time.now_s += 0.5
    assert admitted(limits, "a", 1000) in (9, 10)


def test_a_flood_of_one_kind_keeps_no_other_out():
    _, limits = limiter()
    admitted(limits, "flood", 100_000)
    assert admitted(limits, "model not loaded", 100) == 100


def test_what_was_left_out_is_told_with_the_next_line():
    time, limits = limiter(20.0)
    admitted(limits, "a", 150)
    time.now_s += 1.0
    assert limits.admit("a") == 50
    assert limits.admit("a") == 0
    assert limits.left_out == 50


def test_what_was_left_out_is_told_without_a_next_line():
    told = []
    time, limits = limiter(20.0, on_left_out=lambda: told.append(1))
    admitted(limits, "a", 130)
    assert told == [1], "once, however many are left out"
    assert limits.overdue() == []
    assert limits.is_owing
    time.now_s += 1.0
    assert limits.overdue() == [("a", 30)]
    assert not limits.is_owing
    assert limits.overdue() == []


def test_of_a_kind_it_is_told_every_few_seconds_only():
    time, limits = limiter(20.0)
    words = 0
    for _ in range(1000):
        time.now_s += 0.05
        words += sum(limits.admit("a") > 0 for _ in range(10))
    assert words <= 50.0 / SAY_EVERY_S + 1


def test_asking_first_counts_what_is_left_out():
    _, limits = limiter(20.0)
    assert not limits.refuses("a")
    admitted(limits, "a", 100)
    assert limits.refuses("a")
    assert limits.left_out == 1
    assert limits.is_owing


def test_more_kinds_than_fit_share_a_bucket():
    _, limits = limiter(20.0)
    for number in range(MAX_KINDS + 1000):
        limits.admit(number)
    assert len(limits._buckets) <= MAX_KINDS + 1
    assert limits.left_out == 1000 - 100


def test_kinds_that_are_quiet_make_room():
    time, limits = limiter(20.0)
    for number in range(MAX_KINDS):
        limits.admit(number)
    time.now_s += 60.0
    assert admitted(limits, "new", 1000) == 100
    assert len(limits._buckets) == 1


@given(
    rate=st.sampled_from([0.1, 1.0, 20.0, 1000.0]),
    calls=st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 300)), min_size=1, max_size=60),
)
def test_whatever_comes_the_bound_holds_and_nothing_is_forgotten(rate, calls):
    time, limits = limiter(rate)
    began_s = time.now_s
    lines = written = words = told = 0
    for pause_s, count in calls:
        time.now_s += pause_s
        for _ in range(count):
            left_out = limits.admit("a")
            lines += 1
            written += left_out != REFUSED
            words += left_out > 0
            told += max(left_out, 0)
    bound = max(BURST * rate, 1.0) + rate * (time.now_s - began_s)
    # A word that is told may overdraw by the one line that it is.
    assert written + words <= bound + 1 + 1e-6
    assert written + limits.left_out == lines
    time.now_s += 1e6
    assert told + sum(count for _, count in limits.overdue()) == limits.left_out


@pytest.mark.parametrize("rate", [0.1, 0.2, 1.0])
def test_however_low_the_rate_a_first_line_is_written(rate):
    _, limits = limiter(rate)
    assert limits.admit("a") == 0
