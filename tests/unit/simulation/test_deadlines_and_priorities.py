"""Deadlines are kept or refused; priorities go first, and nobody waits for ever."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.simulation.support import (
    CURVES,
    MAX_ROWS,
    NO_GAIN,
    deadlines,
    latency_of,
    merged,
    model,
    simulated,
    simulation_of,
    watch_for_lateness,
)

from tensorferry.batching.queue import STARVING_S
from tensorferry.simulation.arrivals import poisson
from tensorferry.simulation.curves import noisy
from tensorferry.simulation.result import ANSWERED
from tensorferry.simulation.simulator import Traffic

HIGH, LOW = 1, 2


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("load", [0.7, 2.0])
def test_no_request_is_run_after_its_deadline(name, load):
    curve = CURVES[name]
    rate = load * curve.capacity(MAX_ROWS)
    arrivals = poisson(rate, 10_000 / rate, seed=6)
    allowed_s = deadlines(len(arrivals), 0.5 * curve(1), 20 * curve(MAX_ROWS), seed=7)
    traffic = Traffic(arrivals, deadlines_s=allowed_s)
    run_s = noisy(curve, 0.2, 0.05, seed=8)
    simulation = simulation_of(model(), curve, traffic, run_s=run_s)
    late_at = watch_for_lateness(simulation)
    result = simulation.run()
    assert late_at == []
    # A deadline that comes while its request waits is told at once, not when the running batch ends.
    ended = result.outcomes != ANSWERED
    assert ended.any()
    assert (result.spent_s[ended] <= allowed_s[ended] + 1e-9).all()


@pytest.mark.parametrize("name", CURVES)
def test_deadlines_that_can_be_kept_are_kept(name):
    curve = CURVES[name]
    rate = 0.6 * curve.capacity(MAX_ROWS)
    arrivals = poisson(rate, 10_000 / rate, seed=6)
    allowed_s = deadlines(len(arrivals), 3 * curve(MAX_ROWS), 20 * curve(MAX_ROWS), seed=7)
    result = simulated(model(), curve, Traffic(arrivals, deadlines_s=allowed_s))
    assert (result.spent_s <= allowed_s + 1e-9).mean() > 0.99


@pytest.mark.parametrize("name", CURVES)
def test_low_priority_is_served_under_an_overload_of_high(name):
    # Runs of 10 ms and more: starving takes a second, and that is many thousands of small runs.
    curve = CURVES[name]
    slow = 10e-3 / curve(MAX_ROWS)

    def run_s(rows: int, now: float) -> float:
        return slow * curve(rows)

    capacity = curve.capacity(MAX_ROWS) / slow
    arrivals, priorities = merged(
        (poisson(2 * capacity, 5.0, seed=1), HIGH), (poisson(0.02 * capacity, 3.0, seed=2), LOW)
    )
    spec = model(priority_levels=2, default_priority_level=LOW)
    traffic = Traffic(arrivals, priorities=priorities)
    result = simulated(spec, curve, traffic, run_s=run_s, max_queue_size=1 << 20)
    low = priorities == LOW
    assert (result.outcomes[low] == ANSWERED).all()
    # A turn each nine batches is more than they need, once they starve.
    assert result.spent_s[low].max() <= STARVING_S + 30 * 10e-3


def high_among_low(curve, load, objective_runs=0.0):
    """Return p99 of high priority at ``load`` of capacity: alone, and with low priority at twice capacity."""
    capacity = curve.capacity(MAX_ROWS)
    seconds = 20_000 / (2 * capacity)
    high = poisson(load * capacity, seconds, seed=1)
    arrivals, priorities = merged((high, HIGH), (poisson(2 * capacity, seconds, seed=2), LOW))
    spec = model(
        priority_levels=2,
        default_priority_level=LOW,
        latency_objective_ms=objective_runs * curve(MAX_ROWS) * 1e3,
    )
    alone = simulated(spec, curve, Traffic(high, priorities=np.full(len(high), HIGH)))
    mixed = simulated(spec, curve, Traffic(arrivals, priorities=priorities), max_queue_size=1 << 20)
    return alone.percentile_s(99), latency_of(mixed, priorities == HIGH, 99)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(("load", "objective_runs"), [(0.1, 0), (0.5, 0), (0.3, 6)])
def test_high_priority_hardly_notices_an_overload_of_low_priority(name, load, objective_runs):
    alone_s, among_low_s = high_among_low(CURVES[name], load, objective_runs)
    assert among_low_s <= 1.5 * alone_s


def test_the_queue_bound_counts():
    rate = 2 * NO_GAIN.capacity(MAX_ROWS)
    result = simulated(model(), NO_GAIN, Traffic(poisson(rate, 1.0)), max_queue_size=50)
    assert result.latencies_s.max() <= 3 * NO_GAIN(MAX_ROWS)
    assert result.statistics.refusals["max_queue_size"] > 0
