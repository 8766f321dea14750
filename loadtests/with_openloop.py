"""Runs an open-loop scenario: measures what the machine can do, then offers the load; returns the figures.

Two servers with the same models. The bare one, without any objective or priority, is the yardstick: it
says how long a full batch takes, and what the capacity is, before every round. The other one is what the
scenario describes, with objectives made of those figures. One of them is idle while the other works.
The generator has the last core for itself and the servers have the others, if there are two or more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import grpc
import numpy as np

from loadtests.figures import answered_per_s, figures_of_phase, merged
from loadtests.scenario import OpenLoopScenario, Phase, ServedModel, Traffic
from loadtests.served_models import OBJECTIVE, write_models
from loadtests.verdict import Figures
from tensorferry.benchmark import arrivals
from tensorferry.benchmark.arrivals import Schedule
from tensorferry.benchmark.generator import Options, Stream, run
from tensorferry.benchmark.report import Bounds, Report, analyse, write_runs
from tensorferry.benchmark.requests import messages_for
from tensorferry.benchmark.traffic import METHOD, Result
from tensorferry.testing.process import ServerProcess

__all__ = ["CapacityUnknown", "measure", "schedule_of"]

#: A flood: so many times what full batches alone would allow, as far as the generator can. The first that
#: fills the queue will do, because refusing costs the server too, and the capacity would be too low.
_FLOODS: Final = (1.3, 2.6, 5.2)
_MOST_FLOOD_PER_S: Final = 15_000.0
#: So that a flood's queue always has the next full batches, and the rest is refused at once.
_FLOODED_QUEUE_BATCHES: Final = 4
#: The flood's beginning isn't counted: the queue is filling.
_FILLING_S: Final = 0.5
_FEWEST_FULL_BATCHES: Final = 20
_CALL_TIMEOUT_S: Final = 30.0
_BODIES: Final = 16
_BURST, _CALM_S, _BURST_S = 4.0, 0.4, 0.1
_SEED: Final = 1


class CapacityUnknown(Exception):
    """The flood didn't keep the server busy, so there is nothing to compare with."""


def measure(
    scenario: OpenLoopScenario, transport: str, reports: Path, models: Path
) -> tuple[str, dict[str, float | None]]:
    """Run the scenario; return the transport that served, and the figures by their full names.

    Writes ``PHASE.json``, with a run for each round, and ``PHASE-ROUND.png`` into ``reports``.

    Raises:
        CapacityUnknown: a model is too quick for the generator.
        CannotConnect, grpc.RpcError: the server doesn't answer.
        ServerProcessError: a server didn't start, died or didn't stop in order.
    """
    bare, served = models / "bare", models / "served"
    write_models(bare, [_without_settings(each) for each in scenario.models.values()])
    with _serving(bare, reports / "bare.log", transport) as yardstick:
        objectives = _objectives(scenario, yardstick.grpc_address)
        more = {name: OBJECTIVE.format(value) for name, value in objectives.items()}
        write_models(served, scenario.models.values(), more)
        reported: dict[str, list[Report]] = {phase.name: [] for phase in scenario.phases}
        bound_ms = min(objectives.values(), default=scenario.grace_s * 1000)
        rounds: list[Figures] = []
        with _serving(served, reports / "server.log", transport) as server:
            for number in range(scenario.rounds):
                figures: dict[str, float | None] = dict(_yardsticks(scenario, yardstick.grpc_address))
                for phase in scenario.phases:
                    result = _offer(scenario, phase, figures, server.grpc_address, number)
                    figures |= figures_of_phase(phase, result, objectives, scenario.grace_s)
                    reported[phase.name].append(analyse(result, Bounds(bound_ms), phase.seconds))
                rounds.append(figures)
            served_by = server.transport
    _write(reports, reported)
    return served_by, merged(rounds) | {f"{name}.objective_ms": value for name, value in objectives.items()}


# -- what the machine can do ------------------------------------------------------------------------


def _objectives(scenario: OpenLoopScenario, target: str) -> dict[str, float]:
    """Return latency objectives in ms, by model, for those that have one."""
    return {
        each.name: round(
            each.objective_full_batches * _full_batch_ms(target, each, scenario.calibration_s / 2), 1
        )
        for each in scenario.models.values()
        if each.objective_full_batches
    }


def _yardsticks(scenario: OpenLoopScenario, target: str) -> Iterator[tuple[str, float]]:
    """Yield each model's full_batch_ms and, where a stream refers to it, its capacity_per_s."""
    for model in scenario.models.values():
        full_batch_ms = _full_batch_ms(target, model, scenario.calibration_s / 2)
        yield f"{model.name}.full_batch_ms", full_batch_ms
        print(f"  {model.name}: a full batch of {model.max_batch_size} takes {full_batch_ms:.3g} ms", end="")
        if model.name in scenario.loaded_models():
            capacity = _capacity_per_s(target, model, full_batch_ms, scenario)
            yield f"{model.name}.capacity_per_s", capacity
            print(f", and with a full queue it answers {capacity:,.0f}/s", end="")
        print(flush=True)


def _without_settings(model: ServedModel) -> ServedModel:
    waiting = _FLOODED_QUEUE_BATCHES * model.max_batch_size
    return replace(
        model, config=f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {waiting} }} }}"
    )


def _full_batch_ms(target: str, model: ServedModel, seconds: float) -> float:
    """Median time of a call with as many rows as a batch holds, one after another, in ms."""
    message = messages_for(target, model.name, rows=model.max_batch_size)[0]
    took_s: list[float] = []
    with grpc.insecure_channel(target) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        infer(message, timeout=_CALL_TIMEOUT_S)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(took_s) < _FEWEST_FULL_BATCHES:
            began = time.perf_counter()
            infer(message, timeout=_CALL_TIMEOUT_S)
            took_s.append(time.perf_counter() - began)
    return float(np.median(took_s)) * 1000


def _capacity_per_s(
    target: str, model: ServedModel, full_batch_ms: float, scenario: OpenLoopScenario
) -> float:
    """Answers/s while the queue is never empty, to the same single-row calls that the scenario sends."""
    seconds = _FILLING_S + scenario.calibration_s
    messages = messages_for(target, model.name, count=_BODIES)
    rate = 0.0
    for flood in _FLOODS:
        rate = min(flood * model.max_batch_size / full_batch_ms * 1000, _MOST_FLOOD_PER_S)
        calls = Stream(model.name, arrivals.poisson(rate, seconds, _SEED), messages)
        result = run(target, [calls], _options(scenario))
        if analyse(result).total.refused:
            return answered_per_s(result, np.ones(len(result.stream), bool), _FILLING_S, seconds)
    raise CapacityUnknown(
        f"{rate:,.0f} requests/s didn't fill the queue of {model.name!r}: it is too quick for the "
        "generator. Give its streams rate_per_s in place of load"
    )


# -- the load ---------------------------------------------------------------------------------------


def _offer(scenario: OpenLoopScenario, phase: Phase, figures: Figures, target: str, number: int) -> Result:
    """Offer the phase's load in round ``number``; each round and stream has arrivals of its own."""
    streams = []
    for place, each in enumerate(phase.traffic):
        capacity = figures.get(f"{each.model}.capacity_per_s") or 0.0
        schedule = schedule_of(each, list(phase.parts.values()), capacity, seed=_SEED + 100 * number + place)
        messages = messages_for(target, each.model, count=_BODIES, priority=each.priority or None)
        streams.append(Stream(each.name, schedule, messages))
    offered = ", ".join(f"{len(each.schedule):,} calls of {each.name}" for each in streams)
    print(f"  {phase.name}: {phase.seconds:g} s, {offered} ...", flush=True)
    return run(target, streams, _options(scenario))


def schedule_of(traffic: Traffic, seconds: Sequence[float], capacity_per_s: float, seed: int) -> Schedule:
    """Return when ``traffic`` is due in a phase whose parts last ``seconds``; shape (calls,), in seconds."""
    rates = traffic.rate_per_s or [share * capacity_per_s for share in traffic.load]
    rates, length = list(rates) * (len(seconds) if len(rates) == 1 else 1), sum(seconds)
    if traffic.arrivals == "poisson":
        return arrivals.steps(list(zip(rates, seconds, strict=True)), seed)
    if traffic.arrivals == "uniform":
        return arrivals.uniform(rates[0], length)
    if traffic.arrivals == "mmpp":
        low = rates[0] * (_CALM_S + _BURST_S) / (_CALM_S + _BURST * _BURST_S)
        return arrivals.mmpp((low, low * _BURST), (_CALM_S, _BURST_S), length, seed)
    return _transactions(rates[0], length, seed)


def _transactions(rate: float, seconds: float, seed: int) -> Schedule:
    """Two days of card transactions, as the demonstration makes them up, in ``seconds``."""
    from demo.transactions import generate

    times_s = generate(max(2, round(rate * seconds)), seed).features[:, 0].astype(np.float64)
    # Theirs are whole seconds; spread within them, or those of one second would come at once.
    times_s += np.random.default_rng(seed).random(len(times_s))
    schedule = arrivals.replay(times_s, speed=float(np.ptp(times_s)) / seconds)
    return np.minimum(schedule, np.nextafter(seconds, 0.0))


# -- around it --------------------------------------------------------------------------------------


def _options(scenario: OpenLoopScenario) -> Options:
    cores = sorted(os.sched_getaffinity(0))
    return Options(
        connections=scenario.connections,
        grace_s=scenario.grace_s,
        core=cores[-1] if len(cores) > 1 else None,
    )


@contextmanager
def _serving(models: Path, log: Path, transport: str) -> Iterator[ServerProcess]:
    """The server on all cores but the generator's, for the length of a ``with`` block."""
    cores = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, cores[:-1] or cores)  # which the server's process inherits
        with ServerProcess(models, log, flags=("--transport", transport)) as server:
            os.sched_setaffinity(0, cores)
            yield server
    finally:
        os.sched_setaffinity(0, cores)


def _write(reports: Path, reported: Mapping[str, Sequence[Report]]) -> None:
    # Drawing takes a second to import: not while something is being measured.
    from loadtests.openloop.plots import over_time

    for name, rounds in reported.items():
        write_runs(reports / f"{name}.json", name, rounds)
        for number, report in enumerate(rounds, 1):
            over_time(f"{name}, round {number}", report.to_dict(), reports / f"{name}-{number}.png")
