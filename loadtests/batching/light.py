"""Cases on the fraud MLP, whose run takes microseconds: an idle server, and half of the capacity."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Final

import grpc

from loadtests.batching.models import write_light
from loadtests.batching.servers import (
    ONE_CORE,
    Bench,
    Server,
    cpu_ns,
    offer,
    ours,
    report_of,
    started,
    triton,
)
from loadtests.batching.verdict import Bound, Figure, Value, value_of
from loadtests.bench.targets import Target
from tensorferry.benchmark import arrivals
from tensorferry.benchmark.report import Report
from tensorferry.benchmark.traffic import Stream
from tensorferry.wire import open_inference_pb2 as pb
from tensorferry.wire import open_inference_pb2_grpc as pb_grpc

__all__ = ["half", "idle"]

_IDLE_RATE: Final = 50.0


def idle(bench: Bench) -> list[Figure]:
    """One call at a time, 50/s: what batching adds to its wait, with no setting at all."""
    repository = bench.scratch / "light"
    write_light(repository)
    with started(ours(repository), ONE_CORE) as server:
        rounds = [_idle_round(server, bench.seconds) for _ in range(bench.rounds)]

    def figure(what: str, unit: str, values: list[Value], bound: Bound | None = None) -> Figure:
        return Figure("idle", what, unit, tuple(values), bound)

    return [
        figure(
            "median time in the queue / a turn of the loop (the CPU time of a call)",
            "",
            [Value(median(each.waited_us) / each.turn_us) for each in rounds],
            Bound(1.0),
        ),
        figure(
            "longest time in the queue",
            "ms",
            [Value(max(each.waited_us) / 1000) for each in rounds],
            Bound(1.0),
        ),
        figure(
            "the same without dynamic_batching",
            "ms",
            [Value(max(each.waited_single_us) / 1000) for each in rounds],
        ),
        figure(
            "caller's median / the same without dynamic_batching",
            "",
            [value_of(each.p50_ratio, each.report) for each in rounds],
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Idle:
    waited_us: list[float]
    waited_single_us: list[float]
    turn_us: float
    p50_ratio: float
    report: Report


def _idle_round(server: Server, seconds: float) -> _Idle:
    """First callers by turns, for their latency and the CPU time of a call; then the queue, call by call."""
    batched, single = server.messages("fraud"), server.messages("fraud_single")
    times = arrivals.uniform(_IDLE_RATE / 2, seconds)
    traffic = [Stream("fraud", times, batched), Stream("fraud_single", times + 1 / _IDLE_RATE, single)]
    before = cpu_ns(server)
    report = report_of(offer(server, traffic), seconds)
    turn_us = (cpu_ns(server) - before) / 1000 / max(1, report.total.ok)
    calls = int(_IDLE_RATE * seconds / 2)
    first, second = (each.latency_of_ok.p50_ms or float("inf") for each in report.streams)
    return _Idle(
        _queue_times_us(server, "fraud", batched[0], calls),
        _queue_times_us(server, "fraud_single", single[0], calls),
        turn_us,
        first / second,
        report,
    )


def _queue_times_us(server: Server, model: str, message: bytes, calls: int) -> list[float]:
    """Call one at a time; return how long each waited, which the server's sum says before and after it."""
    request, about = pb.ModelInferRequest.FromString(message), pb.ModelStatisticsRequest(name=model)
    with grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]

        def waited_ns() -> int:
            return int(stub.ModelStatistics(about).model_stats[0].inference_stats.queue.ns)

        stub.ModelInfer(request)
        sums = [waited_ns()]
        for _ in range(calls):
            time.sleep(1 / _IDLE_RATE)
            stub.ModelInfer(request)
            sums.append(waited_ns())
    return [(after - before) / 1000 for before, after in pairwise(sums)]


@dataclass(slots=True)
class _Half:
    """One server's rounds: its capacity in calls/s, and its runs at half of Triton's."""

    capacity: list[float] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)


def half(bench: Bench) -> list[Figure]:
    """Poisson arrivals at half of Triton's capacity, to Triton and to us; and half of ours, paced.

    Our own half is beyond what the open loop can send from one core, so h2load sends it: evenly
    paced, and timed from when a call really left.
    """
    repository = bench.scratch / "half"
    write_light(repository)
    other = triton(repository, bench)
    mine, theirs = _Half(), _Half()
    own_p99: list[Value] = []
    for number in range(bench.rounds):
        if other:
            with _loaded(other, theirs, bench) as server:
                _offer_half(server, theirs, theirs.capacity[-1] / 2, bench.seconds, number)
        with _loaded(ours(repository), mine, bench) as server:
            if other:
                _offer_half(server, mine, theirs.capacity[-1] / 2, bench.seconds, number)
            own_p99.append(Value(server.paced_p99_ms("fraud", mine.capacity[-1] / 2, bench.seconds)))
    own = Figure("half", "p99 at half of our own capacity, evenly paced", "ms", tuple(own_p99))
    return [*(_compared(mine, theirs) if other else ()), own]


@contextmanager
def _loaded(target: Target, half: _Half, bench: Bench) -> Iterator[Server]:
    """Start a server, and note its capacity."""
    with started(target, ONE_CORE) as server:
        half.capacity.append(server.capacity(server.messages("fraud")[0], min(2.0, bench.seconds)))
        print(f"    {target.name}: {half.capacity[-1]:,.0f} calls/s", flush=True)
        yield server


def _offer_half(server: Server, half: _Half, rate: float, seconds: float, number: int) -> None:
    stream = Stream("fraud", arrivals.poisson(rate, seconds, seed=number), server.messages("fraud"))
    half.reports.append(report_of(offer(server, [stream]), seconds))


def _compared(mine: _Half, theirs: _Half) -> list[Figure]:
    def figure(what: str, unit: str, values: list[Value], bound: Bound | None = None) -> Figure:
        return Figure("half", what, unit, tuple(values), bound)

    pairs = zip(mine.reports, theirs.reports, strict=True)
    ratios = [value_of(_p99(first).value / _p99(second).value, first, second) for first, second in pairs]
    capacities = zip(mine.capacity, theirs.capacity, strict=True)
    return [
        figure("p99 / Triton's, both at half of Triton's capacity", "", ratios, Bound(0.5)),
        figure("p99 at half of Triton's capacity", "ms", [_p99(each) for each in mine.reports]),
        figure("Triton's there", "ms", [_p99(each) for each in theirs.reports]),
        figure("capacity / Triton's", "", [Value(first / second) for first, second in capacities]),
    ]


def _p99(report: Report) -> Value:
    """The 99th percentile of the answers in ms; a run in which calls failed has none."""
    return value_of(None if report.total.failed else report.total.latency_of_ok.p99_ms, report)
