"""When a failed call is made again, and after what pause."""

import math

import pytest

from tensorferry_client import DeadlineExceeded, InvalidRequest, RetryPolicy, Unavailable
from tensorferry_client._retry import Attempts

AWAY = Unavailable("away")


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def attempts(policy, timeout_s=None, clock=None, random=lambda: 1.0):
    return Attempts(policy, timeout_s, clock or Clock(), random)


def test_pauses_double_up_to_the_cap():
    tries = attempts(RetryPolicy(max_attempts=6, initial_backoff_s=0.1, max_backoff_s=0.5))
    assert [tries.pause_s(AWAY) for _ in range(5)] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


def test_the_last_attempts_error_is_raised_as_it_is():
    tries = attempts(RetryPolicy(max_attempts=2))
    tries.pause_s(AWAY)
    with pytest.raises(Unavailable) as caught:
        tries.pause_s(AWAY)
    assert caught.value is AWAY


@pytest.mark.parametrize("error", [InvalidRequest("no"), DeadlineExceeded("late")])
def test_other_errors_are_raised_at_once(error):
    with pytest.raises(type(error)):
        attempts(RetryPolicy(max_attempts=9)).pause_s(error)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.999])
def test_a_pause_is_drawn_between_nothing_and_its_upper_end(share):
    tries = attempts(RetryPolicy(initial_backoff_s=0.4), random=lambda: share)
    assert tries.pause_s(AWAY) == pytest.approx(0.4 * share)


def test_a_pause_beyond_the_deadline_is_not_begun():
    policy = RetryPolicy(initial_backoff_s=1.0)
    assert attempts(policy, timeout_s=1.01).pause_s(AWAY) == 1.0
    with pytest.raises(Unavailable):
        attempts(policy, timeout_s=1.0).pause_s(AWAY)


def test_attempts_share_one_deadline():
    clock = Clock()
    tries = attempts(RetryPolicy(), timeout_s=3.0, clock=clock)
    clock.now_s += 2.0
    assert tries.remaining_s() == 1.0
    clock.now_s += 1.0
    with pytest.raises(DeadlineExceeded):
        tries.remaining_s()


@pytest.mark.parametrize("timeout_s", [None, math.inf])
def test_no_deadline_leaves_no_bound(timeout_s):
    assert attempts(RetryPolicy(), timeout_s=timeout_s).remaining_s() is None


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan])
def test_a_call_without_time_is_never_sent(timeout_s):
    with pytest.raises(DeadlineExceeded):
        attempts(RetryPolicy(), timeout_s=timeout_s).remaining_s()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"initial_backoff_s": -0.1},
        {"initial_backoff_s": 2.0, "max_backoff_s": 1.0},
        {"max_backoff_s": math.inf},
    ],
)
def test_a_wrong_policy_is_refused_by_the_fields_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


def test_many_attempts_do_not_overflow():
    assert RetryPolicy(max_attempts=10**6).max_pause_s(10**5) == 1.0
