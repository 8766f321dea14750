"""Scenarios: what load to run and what is asked of the server, read from ``scenarios/*.toml``.

Two kinds, told apart by the key ``generator``, with the same ``[[thresholds]]``. ``reading.py`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "ARRIVALS",
    "KINDS",
    "SCENARIOS",
    "TRANSPORTS",
    "LocustScenario",
    "OpenLoopScenario",
    "Phase",
    "Scenario",
    "ServedModel",
    "Threshold",
    "Traffic",
    "scenario_names",
]

SCENARIOS: Final = Path(__file__).parent / "scenarios"
TRANSPORTS: Final = frozenset({"grpcio", "http2"})
#: What a served model can be; ``served_models.py`` makes them.
KINDS: Final = ("mlp", "tower")
ARRIVALS: Final = ("poisson", "uniform", "mmpp", "transactions")

#: What is measured of each stream of traffic in each part of a phase; ``with_openloop.py`` says how.
_OF_A_STREAM: Final = (
    "offered_per_s",
    "ok_per_s",
    "good_per_s",
    "answered_per_s",
    "ok_ratio",
    "refused_ratio",
    "errors",
    "p50_ms",
    "p99_ms",
    "refused_p50_ms",
    "slip_p99_ms",
)
#: Figures with these endings depend on the machine, so they are compared, never held against a number.
_MACHINES_OWN: Final = ("_ms", "_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What is asked of one figure: at least, or at most, ``limit x the figure times + plus``.

    Without ``times`` the limit is a plain number. Just one of ``at_least`` and ``at_most`` is set.
    With ``transport`` it is asked only of a server that serves with that one.
    """

    figure: str
    at_least: float | None = None
    at_most: float | None = None
    times: str = ""
    plus: float = 0.0
    transport: str = ""

    @property
    def needs_a_comparison(self) -> bool:
        """Whether the figure says something of the machine too."""
        return self.figure.endswith(_MACHINES_OWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One load to run."""

    name: str
    description: str
    thresholds: tuple[Threshold, ...]

    def figures(self) -> frozenset[str]:
        """Return the names of all that a run of it measures."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class LocustScenario(Scenario):
    """Users who each wait for an answer before they ask again.

    ``users`` holds the users of each step; the steps share ``duration_s`` equally, after
    ``warmup_s`` at the first one's, which isn't measured. ``spawn_rate`` is users per second.
    With ``reference_s`` above 0 the reference is measured for so long before the server and again
    after it.
    """

    model: str
    users: tuple[int, ...]
    spawn_rate: float
    warmup_s: float
    duration_s: float
    rows_per_request: int
    reference_s: float = 0.0

    def figures(self) -> frozenset[str]:
        """Return the server's figures and, if it is measured, the reference's."""
        places = ("server", "reference") if self.reference_s else ("server",)
        return frozenset(
            f"{place}.{key}" for place in places for key in ("requests_per_s", "p99_ms", "error_rate")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that is made for the run.

    ``config`` is more text for its configuration. With ``objective_full_batches`` above 0 its
    latency_objective_ms is so many times what a full batch was measured to take.
    """

    name: str
    kind: str
    max_batch_size: int
    config: str = "dynamic_batching { }"
    objective_full_batches: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One stream of a phase's traffic, requests of a row each to ``model``.

    One number for each part of the phase: ``load`` as a share of the model's measured capacity, or
    ``rate_per_s``; the other is empty. ``arrivals`` other than poisson have one rate all along, as
    a mean. ``priority`` is the request's parameter, 0 leaves it out.
    """

    name: str
    model: str
    load: tuple[float, ...] = ()
    rate_per_s: tuple[float, ...] = ()
    arrivals: str = "poisson"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One run of the generator. ``parts`` are names and seconds, one after another without a pause."""

    name: str
    parts: Mapping[str, float]
    traffic: tuple[Traffic, ...]

    @property
    def seconds(self) -> float:
        """How long it offers load."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoopScenario(Scenario):
    """Calls that leave when they are due, answered or not, in phases one after another.

    Before each round, for ``calibration_s`` and with a flooded queue, the capacity of each model is
    measured that a stream's ``load`` refers to. Then all phases run in turn. There are ``rounds``, and
    a figure is their median, so that one stall of the machine decides nothing. ``grace_s`` after a
    phase's last call, what has no answer is an error.
    """

    models: Mapping[str, ServedModel]
    phases: tuple[Phase, ...]
    connections: int = 4
    grace_s: float = 5.0
    calibration_s: float = 3.0
    rounds: int = 1

    def loaded_models(self) -> frozenset[str]:
        """Return the models whose capacity has to be known."""
        return frozenset(each.model for phase in self.phases for each in phase.traffic if each.load)

    def figures(self) -> frozenset[str]:
        """Return the models' figures, and those of each stream in each part."""
        found = {f"{name}.full_batch_ms" for name in self.models}
        found |= {f"{name}.capacity_per_s" for name in self.loaded_models()}
        found |= {f"{each.name}.objective_ms" for each in self.models.values() if each.objective_full_batches}
        for phase in self.phases:
            found |= {
                f"{part}.{stream.name}.{key}"
                for part in phase.parts
                for stream in phase.traffic
                for key in _OF_A_STREAM
            }
        return frozenset(found)


def scenario_names(directory: Path = SCENARIOS) -> list[str]:
    """Return the names of all scenarios in ``directory``, sorted."""
    return sorted(path.stem for path in directory.glob("*.toml"))
