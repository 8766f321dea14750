"""A simulation at several loads, and the largest load at which the objective holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tensorferry.model import ModelSpec
from tensorferry.simulation.arrivals import Instants
from tensorferry.simulation.curves import RunCurve
from tensorferry.simulation.executor import Machine
from tensorferry.simulation.result import Result
from tensorferry.simulation.simulator import Traffic, simulate

__all__ = ["IN_TIME_SHARE", "Point", "Sizing", "Study", "largest_load", "run_load"]

#: The objective holds if this share of all requests is answered within it. A refused one isn't.
IN_TIME_SHARE: Final = 0.99
_BISECTIONS: Final = 6

#: Of a run's requests: they aren't counted, since queues are still filling.
_WARM_UP_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Study:
    """What is simulated at each load.

    ``arrive`` makes a schedule from requests/s and seconds. ``capacity`` is in rows/s.
    ``max_requests`` bounds one run, whose time is then shorter than ``seconds``.
    """

    spec: ModelSpec
    machine: Machine
    curve: RunCurve
    capacity: float
    arrive: Callable[[float, float], Instants]
    seconds: float
    max_requests: int
    request_rows: int = 1
    objective_s: float = float("inf")


@dataclass(frozen=True, slots=True)
class Point:
    """One load: ``load`` as a share of capacity, ``offered`` in rows/s, and what came of it."""

    load: float
    offered: float
    result: Result

    def holds(self, objective_s: float) -> bool:
        """Whether all but one in a hundred requests were answered within the objective."""
        in_time = self.result.in_time(objective_s)
        return len(in_time) > 0 and float(in_time.mean()) >= IN_TIME_SHARE


@dataclass(frozen=True, slots=True)
class Sizing:
    """The largest load found at which the objective holds; None if it holds at none that was tried.

    ``is_bound`` says that a larger one was tried, at which it doesn't.
    """

    point: Point | None
    is_bound: bool


def run_load(study: Study, load: float) -> Point:
    """Simulate one load."""
    offered = load * study.capacity
    rate = offered / study.request_rows
    seconds = min(study.seconds, study.max_requests / rate)
    traffic = Traffic(study.arrive(rate, seconds), study.request_rows)
    measured = study.curve.points(max(1, study.spec.max_batch_size))
    result = simulate(study.spec, study.machine, traffic, measured)
    return Point(load, offered, result.settled(_WARM_UP_SHARE))


def largest_load(study: Study, points: Sequence[Point]) -> Sizing:
    """Bisect between the loads that were simulated: the last that holds below the first that doesn't.

    A load of 1 or more holds at most for a while.
    """
    best: Point | None = None
    for point in sorted(points, key=lambda point: point.load):
        if point.load >= 1.0 or not point.holds(study.objective_s):
            return Sizing(_bisect(study, best, min(1.0, point.load)), is_bound=True)
        best = point
    return Sizing(best, is_bound=False)


def _bisect(study: Study, best: Point | None, too_much: float) -> Point | None:
    low = best.load if best is not None else 0.0
    for _ in range(_BISECTIONS):
        load = (low + too_much) / 2
        point = run_load(study, load)
        if point.holds(study.objective_s):
            best, low = point, load
        else:
            too_much = load
    return best
