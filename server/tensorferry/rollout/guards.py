"""When a canary is worse than stable, by more than its guards allow and beyond chance.

``judge`` is a pure function of both arms' counts and is asked again and again while they grow. Each
guard needs two things at once: an effect larger than allowed, and a probability below ``LEVEL`` that a
version which keeps within the guard shows such counts. That level is small enough to be asked at every
request; docs/guards.md has the measurements. Whatever is estimated of stable is taken at its bound at
``STABLE_LEVEL``, so that few requests of stable's make no alarm either.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Final

import numpy as np

from tensorferry.rollout.counts import ArmCounts
from tensorferry.rollout.histograms import LATENCY_EDGES_S, exceeded_by, quantile
from tensorferry.rollout.state import Guards
from tensorferry.rollout.tails import highest_by_chance, quantile_rank, upper_rate, upper_tail

__all__ = ["LEVEL", "STABLE_LEVEL", "judge"]

#: The probability of an alarm at one look, for a canary that is just as bad as its guards allow.
LEVEL: Final = 1e-6
#: The probability that stable is worse than what its counts are taken for.
STABLE_LEVEL: Final = 1e-3
#: STABLE_LEVEL in standard deviations, one-sided.
_STABLE_SIGMAS: Final = 3.09

#: A version that fails more than this is judged bad, however little is known of stable.
_NO_GOOD_RATE: Final = 0.5
_ABOVE_P99: Final = 0.01


def judge(guards: Guards, stable: ArmCounts, canary: ArmCounts) -> str:
    """Return "" while the guards hold, else the broken one in words and figures.

    Both arms' counts are of the same time: since the canary started.
    """
    return (
        _judge_failures(guards, stable, canary)
        or _judge_latency(guards, stable, canary)
        or _judge_scores(guards, stable, canary)
    )


def _judge_failures(guards: Guards, stable: ArmCounts, canary: ArmCounts) -> str:
    failures, requests = canary.failures, canary.requests
    observed = stable.failures / stable.requests if stable.requests else 0.0
    allowed = observed + guards.max_error_rate_increase
    # The cheap test first: a bound on stable's rate only allows more.
    if upper_tail(failures, requests, allowed) >= LEVEL:
        return ""
    bound = upper_rate(stable.failures, stable.requests, STABLE_LEVEL)
    allowed = min(bound, max(observed, _NO_GOOD_RATE)) + guards.max_error_rate_increase
    if upper_tail(failures, requests, allowed) >= LEVEL:
        return ""
    kinds = f"{canary.errors} failed" if canary.errors else ""
    if canary.not_finite:
        kinds += f"{' and ' if kinds else ''}{canary.not_finite} answered NaN or infinity"
    return (
        f"error rate: {failures} of the canary's {requests} requests ({kinds}), against stable's"
        f" {stable.failures} of {stable.requests}; {guards.max_error_rate_increase:.2%} more are allowed"
    )


def _judge_latency(guards: Guards, stable: ArmCounts, canary: ArmCounts) -> str:
    timed = int(canary.latencies.sum())
    if timed < guards.min_requests:
        return ""
    stable_timed = int(stable.latencies.sum())
    p99_s = _exceeded_by(stable, int(stable_timed * _ABOVE_P99))
    if p99_s == float("inf"):
        return _judge_late(guards, stable, canary)
    # Again the cheap test first.
    slow = _slower_than(canary, guards.max_p99_ratio * p99_s)
    if upper_tail(slow, timed, _ABOVE_P99) >= LEVEL:
        return ""
    rank = quantile_rank(stable_timed, _ABOVE_P99, STABLE_LEVEL)
    # Below 688 requests of stable's nothing bounds its p99; its slowest is taken, and then a second test.
    bound_s = _exceeded_by(stable, max(0, rank))
    if bound_s == float("inf"):
        return _judge_late(guards, stable, canary)
    limit_s = guards.max_p99_ratio * bound_s
    slow = _slower_than(canary, limit_s)
    if upper_tail(slow, timed, _ABOVE_P99) >= LEVEL:
        return ""
    if rank < 0 and highest_by_chance(slow, timed, stable_timed) >= LEVEL:
        return ""
    return (
        f"p99: {slow} of the canary's {timed} requests took longer than {_ms(limit_s)} ms, or got no answer"
        f" in time ({canary.late} of them); that is {guards.max_p99_ratio:g} times stable's p99 of at most"
        f" {_ms(bound_s)} ms, and the canary's is {_canary_p99(canary)}"
    )


def _judge_late(guards: Guards, stable: ArmCounts, canary: ArmCounts) -> str:
    """Compare how many got no answer in time, where so many of stable's did that it has no p99."""
    requests = canary.requests
    bound = upper_rate(stable.late, stable.requests, STABLE_LEVEL)
    allowed = guards.max_p99_ratio * bound + _ABOVE_P99
    if upper_tail(canary.late, requests, allowed) >= LEVEL:
        return ""
    return (
        f"no answer in time: {canary.late} of the canary's {requests} requests, against stable's"
        f" {stable.late} of {stable.requests}; {guards.max_p99_ratio:g} times as many are allowed"
    )


def _judge_scores(guards: Guards, stable: ArmCounts, canary: ArmCounts) -> str:
    few, many = sorted((canary.scored, stable.scored))
    if canary.scored < guards.min_requests or few < 1:
        return ""
    # Rows of one request are alike (the same card, say), so requests are what counts as a sample.
    spread = sqrt(1 / few + 1 / many)
    # The bound of Dvoretzky, Kiefer and Wolfowitz with Massart's constant (Ann. Probab. 18, 1990), as for
    # two samples; and the allowed shift plus the deviation that one point of the distribution may have.
    by_chance = sqrt(log(2 / LEVEL) / 2) * spread
    limit = max(by_chance, guards.max_score_shift + _STABLE_SIGMAS * 0.5 * spread)
    shares = np.cumsum(canary.scores) / canary.score_count - np.cumsum(stable.scores) / stable.score_count
    distance = float(np.abs(shares).max())
    if distance <= limit:
        return ""
    return (
        f"score shift: the distance between the distributions of scores is {distance:.2f} (Kolmogorov-"
        f"Smirnov, {canary.scored} requests of the canary against {stable.scored} of stable's; mean score"
        f" {canary.score_sum / canary.score_count:.4g} against {stable.score_sum / stable.score_count:.4g});"
        f" {guards.max_score_shift:g} is allowed, and {limit:.2f} with what chance may add"
    )


def _exceeded_by(arm: ArmCounts, rank: int) -> float:
    """Return a latency in seconds that at most ``rank`` of the arm's requests exceed."""
    return exceeded_by(arm.latencies, LATENCY_EDGES_S, rank)


def _slower_than(arm: ArmCounts, limit_s: float) -> int:
    """Count the requests that certainly took longer: those in buckets above the limit's own."""
    first = int(np.searchsorted(LATENCY_EDGES_S, limit_s, side="left")) + 1
    return int(arm.latencies[first:].sum())


def _canary_p99(canary: ArmCounts) -> str:
    p99_s = quantile(canary.latencies, LATENCY_EDGES_S, 1 - _ABOVE_P99)
    return "no answer in time" if p99_s == float("inf") else f"{_ms(p99_s)} ms"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"
