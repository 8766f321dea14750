"""The default policy against theory: batches leave at once, and waiting is as short as it can be."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.simulation.support import (
    CURVES,
    LARGE,
    SMALL,
    latency_of,
    model,
    simulated,
    simulation_of,
    watch_for_idleness,
)

from tensorferry.simulation.arrivals import mmpp, poisson
from tensorferry.simulation.curves import affine
from tensorferry.simulation.executor import LoopCosts, Machine
from tensorferry.simulation.simulator import Simulation, Traffic, simulate

FIXED_S = 200e-6
ROW_S = 10e-6
UNCAPPED = 1 << 14


def bound_s(rate: float) -> float:
    """Inoue, Queueing analysis of GPU-based inference servers with dynamic batching, arXiv 1912.06322.

    Mean latency with Poisson arrivals, one server, run time affine in the rows, no largest batch.
    """
    load = rate * ROW_S
    fixed = rate * FIXED_S
    first = (ROW_S + FIXED_S) / (2 * (1 - load)) * (1 + 2 * fixed + (1 - fixed) / (1 + load))
    second = 1.5 * FIXED_S / (1 - load) + ROW_S / 2 * (load + 2) / (1 - load * load)
    return min(first, second)


@pytest.mark.parametrize(
    ("rate", "requests", "least_share"),
    [
        (1e3, 2e4, 0.98),
        (5e3, 2e4, 0.9),  # between its two ends the bound isn't tight
        (2e4, 1e5, 0.98),
        (5e4, 2e5, 0.98),
    ],
)
def test_the_mean_latency_keeps_the_closed_form_bound_and_comes_close_to_it(rate, requests, least_share):
    arrivals = poisson(rate, requests / rate, seed=3)
    result = simulated(model(UNCAPPED), affine(FIXED_S, ROW_S), Traffic(arrivals), max_queue_size=1 << 20)
    share = float(result.latencies_s.mean()) / bound_s(rate)
    # A finite run strays from its mean by less than half a percent.
    assert least_share <= share <= 1.005
    assert result.refused_share == 0.0


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("load", [0.3, 2.0])
@pytest.mark.parametrize("objective_runs", [0, 4])
def test_no_stream_stays_idle_while_anybody_waits(name, load, objective_runs):
    curve = CURVES[name]
    spec = model(latency_objective_ms=objective_runs * curve(64) * 1e3)
    rate = load * curve.capacity(64, 2)
    simulation = simulation_of(spec, curve, Traffic(poisson(rate, 3000 / rate)), streams=2)
    idle_at = watch_for_idleness(simulation)
    result = simulation.run()
    assert idle_at == []
    assert len(result.batch_rows) > 20


def test_the_watch_for_idleness_sees_a_hold():
    spec = model(max_queue_delay_us=1000)
    simulation = simulation_of(spec, SMALL, Traffic(np.array([0.0, 0.1])))
    idle_at = watch_for_idleness(simulation)
    simulation.run()
    assert idle_at == [0.0, 0.1]


@pytest.mark.parametrize("objective_ms", [0.0, 10.0])
def test_a_lone_request_doesnt_wait_at_all(objective_ms):
    result = simulated(model(latency_objective_ms=objective_ms), SMALL, Traffic(np.arange(100) * 0.01))
    assert result.mean_wait_s == 0.0
    assert result.latencies_s == pytest.approx(np.full(100, SMALL(1)))


def test_a_stated_delay_is_obeyed_to_the_letter():
    spec = model(max_queue_delay_us=1000)
    # Two that share a hold, a lone one, and a batch that is full before its hold ends.
    arrivals = np.concatenate(([0.0, 0.0004, 0.01], np.full(64, 0.02)))
    result = simulated(spec, SMALL, Traffic(arrivals))
    assert result.batch_started_at == pytest.approx([0.001, 0.011, 0.02])
    assert result.batch_rows.tolist() == [2, 1, 64]


@pytest.mark.parametrize(("curve", "delay_us"), [(SMALL, 1000), (LARGE, 5000)], ids=["small", "large"])
@pytest.mark.parametrize("load", [0.1, 0.5])
def test_leaving_at_once_beats_a_fixed_delay(curve, delay_us, load):
    rate = load * curve.capacity(64)
    traffic = Traffic(poisson(rate, 10_000 / rate))
    greedy = simulated(model(), curve, traffic)
    held = simulated(model(max_queue_delay_us=delay_us), curve, traffic)
    for percent in (50, 99):
        assert greedy.percentile_s(percent) < held.percentile_s(percent)
    # The price: the stream works more, in smaller batches.
    assert greedy.mean_batch_rows < held.mean_batch_rows


def test_bursts_wait_longer_than_steady_traffic_of_the_same_rate():
    rate = 0.5 * SMALL.capacity(64)
    steady = simulated(model(), SMALL, Traffic(poisson(rate, 0.2)))
    bursty = simulated(model(), SMALL, Traffic(mmpp((rate / 3, rate * 7), (0.09, 0.01), 0.4, seed=2)))
    assert bursty.percentile_s(99) > 2 * steady.percentile_s(99)


def test_a_busy_loop_collects_batches_while_it_receives():
    # The loop receives faster than it would if each request were run at once, on the same thread.
    costs = LoopCosts(request_s=35e-6, reply_s=35e-6, batch_s=60e-6)
    traffic = Traffic(poisson(8e3, 1.0))
    result = simulate(model(), Machine(SMALL, inline=True, costs=costs), traffic, SMALL.points(64))
    lone = simulate(model(1), Machine(SMALL, inline=True, costs=costs), traffic, {1: SMALL(1)})
    assert result.mean_batch_rows > 2
    assert result.percentile_s(99) < 0.1 * lone.percentile_s(99)


def test_two_streams_carry_twice_the_load_of_one():
    rate = 1.6 * SMALL.capacity(64)
    traffic = Traffic(poisson(rate, 20_000 / rate))
    assert simulated(model(), SMALL, traffic, streams=2).percentile_s(99) < 1e-3
    assert simulated(model(), SMALL, traffic).percentile_s(99) > 10e-3


def test_the_same_seed_gives_the_same_run():
    first, again = (simulated(model(), SMALL, Traffic(poisson(1e5, 0.05, seed=7))) for _ in range(2))
    assert np.array_equal(first.spent_s, again.spent_s)
    assert latency_of(first, np.ones(len(first.arrivals), bool), 99) == first.percentile_s(99)


def test_every_request_has_an_outcome():
    rate = 2 * LARGE.capacity(64)
    simulation = Simulation(model(), Machine(LARGE), Traffic(poisson(rate, 1.0)), max_queue_size=100)
    result = simulation.run()
    assert set(np.unique(result.outcomes)) == {1, 2}
    assert result.statistics.refusals["max_queue_size"] == int((result.outcomes == 2).sum())
    assert simulation.batcher.in_flight == 0
