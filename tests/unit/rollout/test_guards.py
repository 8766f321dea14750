"""Guards trip on bad versions within a stated number of requests, and not on one as good as stable."""

from __future__ import annotations

from math import exp
from random import Random

import pytest

from tensorferry.rollout.counts import ArmCounts, ArmRecorder
from tensorferry.rollout.guards import judge
from tensorferry.rollout.state import Guards

GUARDS = Guards()


class Version:
    """A version of a fraud model, good unless told otherwise: what becomes of a request, drawn from a seed.

    Latencies are log-normal around 2 ms (p99 6.4 ms); scores are sigmoids of a normal logit, most below 0.1.
    """

    def __init__(self, errors=0.0, nan=0.0, late=0.0, slower=1.0, score=None) -> None:
        self.errors, self.nan, self.late, self.slower = errors, nan, late, slower
        self.score = score or (lambda fine: fine)

    def answer(self, random: Random, recorder: ArmRecorder) -> None:
        if random.random() < self.errors:
            recorder.record_error()
        elif random.random() < self.late:
            recorder.record_late()
        else:
            fine = 1 / (1 + exp(3.0 - 1.5 * random.gauss(0, 1)))
            score = float("nan") if random.random() < self.nan else self.score(fine)
            recorder.record(self.slower * 0.002 * exp(0.5 * random.gauss(0, 1)), [score])


def rollout(canary: Version, share: float, requests: int, seed=1, stable=None, every=10, guards=GUARDS):
    """Return (canary's requests, the reason) of the first alarm, or of the end."""
    random = Random(seed)
    stable = stable or Version()
    arms = ArmRecorder(), ArmRecorder()
    judged = 0
    for _ in range(requests):
        if random.random() >= share:
            stable.answer(random, arms[0])
            continue
        failures = arms[1].snapshot().failures if every > 1 else 0
        canary.answer(random, arms[1])
        if arms[1].requests - judged >= every or arms[1].snapshot().failures > failures:
            judged = arms[1].requests
            if reason := judge(guards, arms[0].snapshot(), arms[1].snapshot()):
                return arms[1].requests, reason
    return arms[1].requests, ""


#: Each bad version, the guard that must trip, and by how many requests of the canary's it must.
BAD = {
    "raises always": (Version(errors=1.0), "error rate", 8),
    "answers NaN always": (Version(nan=1.0), "error rate", 8),
    "raises for one in ten": (Version(errors=0.1), "error rate", 150),
    "is ten times slower": (Version(slower=10.0), "p99", 110),
    "never answers in time": (Version(late=1.0), "p99", 110),
    "has its scores inverted": (Version(score=lambda fine: 1 - fine), "score shift", 110),
    "answers a constant": (Version(score=lambda fine: 0.5), "score shift", 110),
    "has doubled odds twice": (Version(score=lambda fine: 4 * fine / (1 + 3 * fine)), "score shift", 200),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_bad_version_trips_the_right_guard_in_time(what, seed):
    canary, guard, within = BAD[what]
    requests, reason = rollout(canary, share=0.05, requests=20 * within + 1000, seed=seed)
    assert reason.startswith(guard), reason
    assert requests <= within


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_an_equal_version_never_trips(share):
    # docs/guards.md has 200 runs of 100,000 requests.
    for seed in range(3):
        assert rollout(Version(errors=0.002), share, 12_000, seed, Version(errors=0.002))[1] == ""


def test_a_version_as_bad_as_stable_does_not_trip():
    bad = Version(errors=0.2, nan=0.1, late=0.1, slower=3.0)
    assert rollout(bad, 0.3, 10_000, stable=bad)[1] == ""


@pytest.mark.parametrize(
    "canary",
    [Version(errors=0.008), Version(slower=1.25), Version(score=lambda fine: 1.2 * fine / (1 + 0.2 * fine))],
)
def test_a_version_that_keeps_within_the_guards_does_not_trip(canary):
    assert rollout(canary, 0.5, 15_000)[1] == ""


def test_overload_that_hits_both_arms_does_not_trip():
    random = Random(5)
    arms = ArmRecorder(), ArmRecorder()
    for request in range(20_000):
        arm = arms[random.random() < 0.1]
        # A second of overload in every ten, in which nine of ten are refused.
        overloaded = request % 10_000 > 9_000
        Version(late=0.9 if overloaded else 0.0).answer(random, arm)
        if request % 100 == 0:
            assert judge(GUARDS, arms[0].snapshot(), arms[1].snapshot()) == ""


def test_a_canary_that_is_never_in_time_trips_while_many_of_stables_are_not_either():
    _, reason = rollout(Version(late=1.0), 0.1, 5000, stable=Version(late=0.05))
    assert reason.startswith("no answer in time: ")


def failed(errors: int, answered: int, nans: int = 0) -> ArmCounts:
    recorder = ArmRecorder()
    for _ in range(errors):
        recorder.record_error()
    for number in range(answered):
        recorder.record(0.001, [float("nan") if number < nans else 0.5])
    return recorder.snapshot()


def test_the_reason_gives_the_figures():
    reason = judge(GUARDS, failed(1, 999), failed(12, 28, nans=3))
    assert reason == (
        "error rate: 15 of the canary's 40 requests (12 failed and 3 answered NaN or infinity), against"
        " stable's 1 of 1000; 1.00% more are allowed"
    )


def test_a_version_that_always_fails_trips_even_with_nothing_to_compare():
    trips_at = next(n for n in range(1, 50) if judge(GUARDS, ArmCounts(), failed(n, 0)))
    assert 15 <= trips_at <= 25


def test_no_two_requests_make_an_alarm():
    for answered in range(3):
        assert judge(GUARDS, failed(0, 10_000), failed(2, answered)) == ""


def test_nothing_is_no_alarm():
    assert judge(GUARDS, ArmCounts(), ArmCounts()) == ""
    assert judge(GUARDS, failed(0, 1000), ArmCounts()) == ""
    assert judge(Guards(min_requests=0), ArmCounts(), failed(0, 500)) == ""


def test_the_allowed_increase_of_errors_is_the_guards():
    stable, canary = failed(0, 100_000), failed(300, 9_700)
    assert judge(Guards(max_error_rate_increase=0.01), stable, canary).startswith("error rate")
    assert judge(Guards(max_error_rate_increase=0.05), stable, canary) == ""


def timed(*latencies_ms: float) -> ArmCounts:
    recorder = ArmRecorder()
    for each in latencies_ms:
        recorder.record(each / 1e3, [])
    return recorder.snapshot()


def test_the_allowed_p99_is_the_guards():
    stable, canary = timed(*[1.0] * 1000), timed(*[2.0] * 200)
    assert judge(Guards(max_p99_ratio=1.5), stable, canary).startswith("p99")
    assert judge(Guards(max_p99_ratio=2.5), stable, canary) == ""


def test_p99_waits_for_the_requests_that_the_guard_asks_for():
    slow = timed(*[9.0] * 100)
    assert judge(GUARDS, timed(*[1.0] * 1000), slow).startswith("p99")
    assert judge(Guards(min_requests=101), timed(*[1.0] * 1000), slow) == ""


def test_few_requests_of_stable_make_an_alarm_only_if_nearly_all_of_the_canarys_are_slow():
    assert judge(GUARDS, timed(*[1.0] * 3), timed(*[9.0] * 100)) == ""
    assert judge(GUARDS, timed(*[1.0] * 4), timed(*[9.0] * 100)) != ""
    # 12 of 100 would be enough with a p99 that is known; here 100 of stable's are as likely to be without.
    few_slow = timed(*[1.0] * 88, *[9.0] * 12)
    assert judge(GUARDS, timed(*[1.0] * 100), few_slow) == ""
    assert judge(GUARDS, timed(*[1.0] * 688), few_slow) != ""


def test_a_slow_half_percent_is_not_the_p99():
    assert judge(GUARDS, timed(*[1.0] * 5000), timed(*[1.0] * 4975, *[100.0] * 25)) == ""


def rows_scored(scores: list[float], requests: int) -> ArmCounts:
    recorder = ArmRecorder()
    for _ in range(requests):
        recorder.record(0.001, scores)
    return recorder.snapshot()


def test_the_rows_of_one_request_do_not_count_as_so_many_requests():
    stable = rows_scored([0.1, 0.2], 10_000)
    assert judge(GUARDS, stable, rows_scored([0.9] * 500, 20)) == ""
    assert judge(GUARDS, stable, rows_scored([0.9], 100)).startswith("score shift")


def test_the_allowed_score_shift_is_the_guards():
    stable, canary = rows_scored([0.1, 0.9], 5000), rows_scored([0.1, 0.9, 0.9, 0.9], 5000)
    assert judge(Guards(max_score_shift=0.2), stable, canary).startswith("score shift: ")
    assert judge(Guards(max_score_shift=0.3), stable, canary) == ""


def test_a_model_without_scores_is_judged_by_the_rest():
    assert judge(GUARDS, timed(*[1.0] * 5000), timed(*[1.0] * 5000)) == ""
