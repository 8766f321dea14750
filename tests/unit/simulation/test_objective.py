"""A latency objective under overload: full batches, answers in time, early refusals, quick recovery."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.simulation.support import CURVES, LARGE, MAX_ROWS, SMALL, model, simulated

from tensorferry.simulation.arrivals import poisson, steps
from tensorferry.simulation.curves import drifting, noisy
from tensorferry.simulation.executor import Machine
from tensorferry.simulation.result import ANSWERED, REFUSED
from tensorferry.simulation.simulator import Traffic, simulate

REQUESTS = 15_000


def overloaded(curve, runs, *, run_s=None, requests=REQUESTS):
    """Return what Poisson traffic at twice the capacity gets, and the objective of so many full runs."""
    objective_s = runs * curve(MAX_ROWS)
    rate = 2 * curve.capacity(MAX_ROWS)
    traffic = Traffic(poisson(rate, requests / rate, seed=1))
    spec = model(latency_objective_ms=objective_s * 1e3)
    return simulated(spec, curve, traffic, run_s=run_s).settled(0.1), objective_s


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("runs", [2.5, 4, 10])
def test_twice_the_capacity_is_served_at_capacity_and_in_time(name, runs):
    curve = CURVES[name]
    result, objective_s = overloaded(curve, runs)
    # Short of 3 runs, the batches of a curve with much to gain can't all be full.
    least = 0.95 if runs >= 3 else 0.92
    assert result.goodput(objective_s) >= least * curve.capacity(MAX_ROWS)
    assert result.percentile_s(99) <= objective_s


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize(("runs", "least_share"), [(1.2, 0.4), (1.5, 0.6), (2.0, 0.8)])
def test_an_objective_close_to_the_run_time_costs_capacity_but_not_lateness(name, runs, least_share):
    # Whoever comes while a batch runs has to wait for it, and then be run: there is no time for two
    # full batches, so that batches must be smaller.
    curve = CURVES[name]
    result, objective_s = overloaded(curve, runs)
    assert result.goodput(objective_s) >= least_share * curve.capacity(MAX_ROWS)
    assert result.percentile_s(99) <= objective_s


@pytest.mark.parametrize("name", CURVES)
def test_nearly_all_refusals_are_immediate(name):
    result, objective_s = overloaded(CURVES[name], 4)
    refused = result.outcomes == REFUSED
    assert refused.mean() == pytest.approx(0.5, abs=0.05)
    assert (result.spent_s[refused] == 0.0).mean() >= 0.98
    assert result.spent_s[refused].max() <= objective_s


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("runs", [3, 10])
def test_a_burst_is_over_within_two_objectives(name, runs):
    curve = CURVES[name]
    objective_s = runs * curve(MAX_ROWS)
    capacity = curve.capacity(MAX_ROWS)
    part_s = 3000 / capacity
    arrivals = steps([(0.5 * capacity, part_s), (2 * capacity, part_s), (0.5 * capacity, part_s)], seed=2)
    result = simulated(model(latency_objective_ms=objective_s * 1e3), curve, Traffic(arrivals))
    assert result.in_time(objective_s)[arrivals < part_s].mean() > 0.99
    assert result.in_time(objective_s)[(arrivals >= part_s) & (arrivals < 2 * part_s)].mean() < 0.8
    assert result.recovery_s(2 * part_s, objective_s) <= 2 * objective_s


@pytest.mark.parametrize("name", CURVES)
def test_a_lone_request_at_an_idle_server_is_never_refused(name):
    # Not even where the objective can't be met, and the batcher knows it.
    curve = CURVES[name]
    arrivals = np.arange(50) * 10 * curve(1)
    result = simulated(model(latency_objective_ms=0.5e3 * curve(1)), curve, Traffic(arrivals))
    assert (result.outcomes == ANSWERED).all()


@pytest.mark.parametrize("hiccup_share", [0.0, 0.1])
@pytest.mark.parametrize("name", CURVES)
def test_noise_costs_little(name, hiccup_share):
    curve = CURVES[name]
    run_s = noisy(curve, 0.1, hiccup_share, 3.0, seed=5)
    result, objective_s = overloaded(curve, 6, run_s=run_s, requests=25_000)
    # A tenth of the runs takes three times as long: 1.2 times the mean run time is lost to that.
    capacity = curve.capacity(MAX_ROWS) / (1.0 + 2.0 * hiccup_share)
    assert result.goodput(objective_s) >= (0.8 if hiccup_share else 0.95) * capacity
    late = (result.outcomes == ANSWERED) & ~result.in_time(objective_s)
    assert late.mean() <= (0.05 if hiccup_share else 0.01)


#: Batches after which the batcher has learned that the model has become slower or faster.
LEARNING_BATCHES = 50


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("name", CURVES)
def test_run_times_that_drift_are_learned(name, factor):
    curve = CURVES[name]
    objective_s = 8 * curve(MAX_ROWS)
    slowest_s = max(1.0, factor) * curve(MAX_ROWS)
    rate = 2 * curve.capacity(MAX_ROWS) / min(1.0, factor)
    change_at = 60 * curve(MAX_ROWS)
    learned_at = change_at + LEARNING_BATCHES * slowest_s
    arrivals = poisson(rate, learned_at + 60 * slowest_s, seed=4)
    spec = model(latency_objective_ms=objective_s * 1e3)
    result = simulated(spec, curve, Traffic(arrivals), run_s=drifting(curve, {change_at: factor}))
    assert result.goodput(objective_s, 0.0, change_at) >= 0.9 * curve.capacity(MAX_ROWS)
    assert result.goodput(objective_s, learned_at) >= 0.9 * curve.capacity(MAX_ROWS) / factor


def test_a_batcher_that_knows_nothing_at_first_learns_the_objective_too():
    rate = 2 * LARGE.capacity(MAX_ROWS)
    objective_s = 5 * LARGE(MAX_ROWS)
    spec = model(latency_objective_ms=objective_s * 1e3)
    traffic = Traffic(poisson(rate, 1.0))
    learned = simulated(spec, LARGE, traffic)
    from_nothing = simulate(spec, Machine(LARGE), traffic)
    assert from_nothing.goodput(objective_s, 0.3) >= 0.95 * learned.goodput(objective_s, 0.3)


def test_without_an_objective_overload_makes_everybody_late():
    rate = 2 * SMALL.capacity(MAX_ROWS)
    result = simulated(model(), SMALL, Traffic(poisson(rate, 20_000 / rate)))
    assert result.settled(0.3).goodput(10 * SMALL(MAX_ROWS)) == 0.0
