"""Cases on a model whose run is the bottleneck: overload, priorities, and another model beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from loadtests.batching.models import (
    OBJECTIVE_MS,
    calibrated_depth,
    write_deep,
    write_light,
)
from loadtests.batching.servers import Bench, Server, offer, ours, report_of, started
from loadtests.batching.verdict import Bound, Figure, Value, between, drift, recovered_after_s, value_of
from tensorferry.benchmark import arrivals
from tensorferry.benchmark.endings import OK
from tensorferry.benchmark.report import Bounds, Report, analyse
from tensorferry.benchmark.traffic import Result, Stream

__all__ = ["fairness", "heavy_server", "overload", "peak_of", "priorities"]

_OVERLOAD: Final = 2.0
_CALM: Final = 0.5
_BEFORE_S, _AFTER_S = 2.0, 2.0
_PEAK_S: Final = 2.0
_HIGH_SHARE: Final = 0.1
_LIGHT_RATE: Final = 300.0


@contextmanager
def heavy_server(bench: Bench) -> Iterator[Server]:
    """Start a server with the deep models and the light ones, in the layout for heavy cases."""
    repository = bench.scratch / "heavy"
    if not repository.is_dir():
        depth = calibrated_depth()
        print(f"    the deep model: 30 -> {depth} x 256 -> 1", flush=True)
        write_deep(repository, depth)
        write_light(repository)
    with started(ours(repository), bench.heavy) as server:
        yield server


def peak_of(server: Server, rows: int) -> float:
    """Return the most calls/s that the deep model answers, without an objective, in a closed loop."""
    return server.capacity(server.messages("plain", rows)[0], _PEAK_S)


@dataclass(frozen=True, slots=True)
class _Burst:
    """A run at half of the peak, twice the peak, and half again. ``during`` is the burst alone.

    ``answered_per_s`` counts what was answered while it lasted, in time or not.
    """

    whole: Report
    during: Report
    answered_per_s: float
    recovery_s: float

    @property
    def p99(self) -> Value:
        """Of the answers in the burst, ms."""
        return value_of(self.during.total.latency_of_ok.p99_ms, self.during)

    @property
    def refusal_p50(self) -> Value:
        """The median time from a call's intended time to its refusal, ms."""
        return value_of(self.during.total.latency_of_refused.p50_ms, self.during)

    @property
    def recovery(self) -> Value:
        """Seconds from the burst's end."""
        return value_of(self.recovery_s, self.whole)


@dataclass(frozen=True, slots=True)
class _Told:
    """One round: the peak before and after in calls/s, and the burst with the objective and without it."""

    before: float
    after: float
    capped: _Burst
    plain: _Burst

    def share(self, burst: _Burst) -> Value:
        """The calls of ``burst`` that were answered within the objective, as a share of the peak rate."""
        share = burst.during.total.goodput_per_s / ((self.before + self.after) / 2)
        told = value_of(share, burst.during)
        return Value(share, told.invalid_because or drift(self.before, self.after))

    @property
    def share_of_plain(self) -> Value:
        """The same, as a share of what is answered, however late, at the same offered load without it."""
        share = self.capped.during.total.goodput_per_s / max(self.plain.answered_per_s, 1.0)
        return value_of(share, self.capped.during, self.plain.during)


def overload(bench: Bench) -> list[Figure]:
    """Twice the peak for some seconds, with an objective of 10 ms and with nothing."""
    told: list[_Told] = []
    with heavy_server(bench) as server:
        for number in range(bench.rounds):
            before = peak_of(server, bench.rows)
            capped = _burst(server, "objective", before, bench, number)
            after = peak_of(server, bench.rows)
            plain = _burst(server, "plain", (before + after) / 2, bench, number)
            told.append(_Told(before, after, capped, plain))
            print(f"    peak {before:,.0f} and {after:,.0f} calls/s of {bench.rows} rows", flush=True)

    return _judged(told)


def _judged(told: Sequence[_Told]) -> list[Figure]:
    def figure(what: str, unit: str, pick: Callable[[_Told], Value], bound: Bound | None = None) -> Figure:
        return Figure("overload", what, unit, tuple(pick(each) for each in told), bound)

    within = f"answered within {OBJECTIVE_MS:g} ms / peak"
    without = "without the objective: "
    return [
        figure(within, "", lambda each: each.share(each.capped), Bound(0.95, is_most=False)),
        figure(
            f"{within.split(' /')[0]} / answered late or not, without it",
            "",
            lambda each: each.share_of_plain,
        ),
        figure("median time to a refusal", "ms", lambda each: each.capped.refusal_p50, Bound(1.0)),
        figure("p99 of the answered", "ms", lambda each: each.capped.p99, Bound(OBJECTIVE_MS)),
        figure("recovery after the burst", "s", lambda each: each.capped.recovery, Bound(1.0)),
        figure(f"{without}{within}", "", lambda each: each.share(each.plain)),
        figure(f"{without}p99 of the answered", "ms", lambda each: each.plain.p99),
        figure(f"{without}recovery", "s", lambda each: each.plain.recovery),
    ]


def priorities(bench: Bench) -> list[Figure]:
    """High priority at a tenth of the capacity: alone, then beside low priority at twice the capacity."""
    ratios, alone_ms, answered = [], [], []
    with heavy_server(bench) as server:
        high = server.messages("levels", bench.rows, priority=1)
        low = server.messages("levels", bench.rows, priority=2)
        for number in range(bench.rounds):
            peak, seconds = peak_of(server, bench.rows), bench.seconds
            few = Stream("high", arrivals.poisson(peak * _HIGH_SHARE, seconds, number), high)
            flood = Stream("low", arrivals.poisson(peak * _OVERLOAD, seconds, 1000 + number), low)
            alone = report_of(offer(server, [few]), seconds)
            both = offer(server, [few, flood])
            beside = report_of(both, seconds)
            ratios.append(_ratio_of_p99(beside, alone))
            alone_ms.append(value_of(alone.total.latency_of_ok.p99_ms, alone))
            answered.append(value_of(_answered_by(both, seconds) / seconds / peak, beside))
    return [
        Figure("priorities", "p99 of high priority / alone", "", tuple(ratios), Bound(1.5)),
        Figure("priorities", "its p99 alone", "ms", tuple(alone_ms)),
        Figure("priorities", "answered meanwhile, both levels / peak", "", tuple(answered)),
    ]


def fairness(bench: Bench) -> list[Figure]:
    """The fraud MLP at a modest rate: alone, then while the deep model is asked twice what it can."""
    ratios, alone_ms = [], []
    with heavy_server(bench) as server:
        light, deep = server.messages("fraud"), server.messages("plain", bench.rows)
        for number in range(bench.rounds):
            peak, seconds = peak_of(server, bench.rows), bench.seconds
            few = Stream("fraud", arrivals.poisson(_LIGHT_RATE, seconds, number), light)
            flood = Stream("deep", arrivals.poisson(peak * _OVERLOAD, seconds, 1000 + number), deep)
            alone = report_of(offer(server, [few]), seconds)
            beside = report_of(offer(server, [few, flood]), seconds)
            ratios.append(_ratio_of_p99(beside, alone))
            alone_ms.append(value_of(alone.total.latency_of_ok.p99_ms, alone))
    return [
        Figure("fairness", "p99 of the fraud MLP beside a flooded model / alone", "", tuple(ratios)),
        Figure("fairness", "its p99 alone", "ms", tuple(alone_ms)),
    ]


def _burst(server: Server, model: str, peak: float, bench: Bench, number: int) -> _Burst:
    seconds = bench.seconds
    plan = [(peak * _CALM, _BEFORE_S), (peak * _OVERLOAD, seconds), (peak * _CALM, _AFTER_S)]
    schedule = arrivals.steps(plan, seed=number)
    result = offer(server, [Stream(model, schedule, server.messages(model, bench.rows))])
    burst_end_s = _BEFORE_S + seconds
    bounds = Bounds(OBJECTIVE_MS)
    whole = report_of(result, burst_end_s + _AFTER_S, OBJECTIVE_MS)
    before = analyse(between(result, 0.0, _BEFORE_S), bounds, _BEFORE_S)
    burst = between(result, _BEFORE_S, burst_end_s)
    during = analyse(burst, bounds, seconds)
    usual_ms = before.total.latency_of_ok.p99_ms or 0.0
    answered_per_s = _answered_by(burst, seconds) / seconds
    return _Burst(whole, during, answered_per_s, recovered_after_s(whole.windows, burst_end_s, usual_ms))


def _ratio_of_p99(beside: Report, alone: Report) -> Value:
    """Of the first stream; it never came if not all of its calls were answered."""
    first, only = beside.streams[0], alone.streams[0]
    if first.ok < first.offered or not first.latency_of_ok.p99_ms or not only.latency_of_ok.p99_ms:
        print(f"    {first.name}: not all were answered: {first.by_message}", file=sys.stderr, flush=True)
        return value_of(None, beside, alone)
    return value_of(first.latency_of_ok.p99_ms / only.latency_of_ok.p99_ms, beside, alone)


def _answered_by(result: Result, seconds: float) -> int:
    return int(((result.status == OK) & (result.done_s <= seconds)).sum())
