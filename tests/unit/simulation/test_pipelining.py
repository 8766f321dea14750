"""What a stream gains by copying while it runs, and that batches don't get small for it."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.simulation.support import LARGE, MAX_ROWS, model

from tensorferry.simulation.arrivals import poisson
from tensorferry.simulation.curves import affine
from tensorferry.simulation.executor import Machine
from tensorferry.simulation.result import Result
from tensorferry.simulation.simulator import Simulation, Traffic

#: A copy in either direction. A run, LARGE, takes 2 ms and 40 us for each row.
COPY = affine(0.5e-3, 0.0)
COPY_S = 0.5e-3


def simulation(arrivals, slots: int, copy=COPY, **batching) -> Simulation:
    machine = Machine(LARGE, slots=slots, copy_in_s=copy, copy_out_s=copy)
    measured = LARGE.plus(copy, copy).points(MAX_ROWS)
    return Simulation(model(**batching), machine, Traffic(arrivals), measured, 1 << 20)


def served(rate: float, slots: int, requests: int = 20_000, **more) -> Result:
    return simulation(poisson(rate, requests / rate, seed=1), slots, **more).run()


def rows_per_s(result: Result) -> float:
    return float(result.batch_rows.sum() / (result.batch_ended_at[-1] - result.batch_started_at[0]))


def test_a_batch_alone_is_copied_in_run_and_copied_out():
    result = simulation(np.array([0.0]), slots=3).run()
    assert result.latencies_s == pytest.approx([COPY_S + LARGE(1) + COPY_S])


def test_each_stage_takes_one_batch_at_a_time():
    # Five full batches at once, of which three are taken; runs follow each other without a pause.
    result = simulation(np.zeros(5 * MAX_ROWS), slots=3).run()
    run_s = LARGE(MAX_ROWS)
    assert result.batch_rows.tolist() == [MAX_ROWS] * 5
    assert result.batch_ended_at == pytest.approx([COPY_S + (n + 1) * run_s + COPY_S for n in range(5)])
    assert result.batch_started_at[:3].tolist() == [0.0] * 3
    assert result.batch_started_at[3:] == pytest.approx(result.batch_ended_at[:2])


def test_at_saturation_three_slots_give_what_the_copies_took():
    one, three = (served(30_000, slots) for slots in (1, 3))
    assert min(one.mean_batch_rows, three.mean_batch_rows) > 0.99 * MAX_ROWS
    assert rows_per_s(three) >= 1.2 * rows_per_s(one)
    assert three.utilisation > 0.99


@pytest.mark.parametrize("rate", [50, 100])
def test_at_light_load_batches_are_as_large_as_without(rate):
    one, three = (served(rate, slots) for slots in (1, 3))
    assert three.mean_batch_rows >= 0.9 * one.mean_batch_rows
    assert three.percentile_s(50) <= one.percentile_s(50) + 1e-9
    assert three.percentile_s(99) <= one.percentile_s(99)


@pytest.mark.parametrize("rate", [1_000, 6_000, 11_000])
def test_at_any_load_answers_come_sooner_and_batches_hold_what_comes_during_a_run(rate):
    one, three = (served(rate, slots) for slots in (1, 3))
    for percent in (50, 99):
        assert three.percentile_s(percent) < one.percentile_s(percent)
    # Smaller than those that hold what comes during the copies as well, but never for leaving early.
    assert three.mean_batch_rows >= 0.98 * rate * LARGE(int(three.mean_batch_rows))


@pytest.mark.parametrize("rate", [1_000, 6_000])
def test_batches_that_left_as_soon_as_there_is_a_place_would_wait_in_it(rate):
    eager = simulation(poisson(rate, 20_000 / rate, seed=1), slots=3)
    eager.executor.follow_at = lambda expected: 0.0
    early, timely = eager.run(), served(rate, slots=3)
    assert timely.mean_batch_rows > early.mean_batch_rows
    assert timely.percentile_s(50) < 0.7 * early.percentile_s(50)


def test_under_an_objective_followers_are_in_time():
    result = served(20_000, slots=3, latency_objective_ms=20.0)
    answered = result.latencies_s
    assert result.refused_share > 0.2
    assert float((answered <= 20e-3).mean()) > 0.99
    assert rows_per_s(result) > 0.9 * MAX_ROWS / LARGE(MAX_ROWS)


def test_without_copies_a_second_slot_only_keeps_the_stream_fed():
    one, two = (served(30_000, slots, copy=affine(0.0, 0.0)) for slots in (1, 2))
    assert rows_per_s(two) == pytest.approx(rows_per_s(one), rel=0.01)
