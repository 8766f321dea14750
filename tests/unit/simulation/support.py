"""What the simulation's tests share: curves, models, and runs that are watched."""

from __future__ import annotations

import numpy as np

from tensorferry.batching.pending import NEVER
from tensorferry.model import BatchingSpec
from tensorferry.simulation.curves import affine
from tensorferry.simulation.executor import Machine
from tensorferry.simulation.result import ANSWERED, Result
from tensorferry.simulation.simulator import Simulation, specification

#: A small network on a CPU, a model on a GPU, and one that batching doesn't help.
SMALL = affine(60e-6, 1.5e-6)
LARGE = affine(2e-3, 40e-6)
NO_GAIN = affine(5e-6, 100e-6)
CURVES = {"small": SMALL, "large": LARGE, "no gain": NO_GAIN}

MAX_ROWS = 64


def model(max_batch_size=MAX_ROWS, **batching):
    return specification(max_batch_size, BatchingSpec(**batching))


def simulation_of(spec, curve, traffic, *, run_s=None, streams=1, max_queue_size=4096) -> Simulation:
    """Return a simulation whose batcher knows ``curve`` from warm-up, and whose runs take ``run_s``."""
    measured = curve.points(spec.max_batch_size)
    return Simulation(spec, Machine(run_s or curve, streams), traffic, measured, max_queue_size)


def simulated(spec, curve, traffic, **more) -> Result:
    return simulation_of(spec, curve, traffic, **more).run()


def watch_for_idleness(simulation: Simulation) -> list[float]:
    """Keep the instants at which a stream stays idle though somebody waits."""
    idle_at: list[float] = []

    def look() -> None:
        if simulation.executor.idle and simulation.batcher.statistics().waiting:
            idle_at.append(simulation.loop.time)

    simulation.loop.on_sleep = look
    return idle_at


def watch_for_lateness(simulation: Simulation) -> list[float]:
    """Keep the instants at which a request is run whose deadline has come."""
    late_at: list[float] = []

    def look(batch) -> None:
        now = simulation.loop.time
        late_at.extend(now for request in batch.requests if request.deadline <= now)

    simulation.executor.on_start = look
    return late_at


def merged(*streams: tuple[np.ndarray, int]) -> tuple[np.ndarray, np.ndarray]:
    """Merge schedules, each with a priority, into (arrivals, priorities)."""
    arrivals = np.concatenate([times for times, _ in streams])
    priorities = np.concatenate([np.full(len(times), priority) for times, priority in streams])
    order = np.argsort(arrivals, kind="stable")
    return arrivals[order], priorities[order]


def latency_of(result: Result, chosen: np.ndarray, percent: float) -> float:
    """Return a percentile of the latency of the chosen requests that were answered, in seconds."""
    return float(np.percentile(result.spent_s[chosen & (result.outcomes == ANSWERED)], percent))


def deadlines(count: int, shortest_s: float, longest_s: float, seed: int) -> np.ndarray:
    """Return random deadlines, log-uniform; every fourth request has none."""
    draw = np.random.default_rng(seed)
    seconds = np.exp(draw.uniform(np.log(shortest_s), np.log(longest_s), count))
    seconds[::4] = NEVER
    return seconds
