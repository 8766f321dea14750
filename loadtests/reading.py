"""Reads scenarios: TOML to ``scenario.py``'s classes, every key checked and refused by name."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

from loadtests.scenario import (
    ARRIVALS,
    KINDS,
    SCENARIOS,
    TRANSPORTS,
    LocustScenario,
    OpenLoopScenario,
    Phase,
    Scenario,
    ServedModel,
    Threshold,
    Traffic,
    scenario_names,
)

__all__ = ["ScenarioError", "load_scenario", "parse"]

_SHORTEST_MEASUREMENT_S: Final = 1.0
_GENERATORS: Final = ("locust", "openloop")


class ScenarioError(Exception):
    """A scenario that isn't there or isn't well formed. Says which key of which file, and why."""


def load_scenario(name: str, directory: Path = SCENARIOS) -> Scenario:
    """Read and check the scenario ``name``.

    Raises:
        ScenarioError: there is none of that name, or it isn't well formed.
    """
    if name not in scenario_names(directory):
        raise ScenarioError(f"no scenario {name!r}; there are: {', '.join(scenario_names(directory))}")
    return parse(name, (directory / f"{name}.toml").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Scenario:
    """Make a scenario of the text of its file.

    Raises:
        ScenarioError: it isn't well formed.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"scenario {name!r} isn't TOML: {error}") from None
    try:
        scenario = _scenario(name, document)
        _check_thresholds(scenario)
    except ScenarioError as error:
        raise ScenarioError(f"scenario {name!r}: {error}") from None
    return scenario


def _scenario(name: str, document: dict[str, Any]) -> Scenario:
    if "generator" not in document:
        raise ScenarioError(f"generator is missing; it is one of {', '.join(_GENERATORS)}")
    generator = _value("generator", document.pop("generator"), "")
    thresholds = _thresholds(document.pop("thresholds", []))
    if generator == "locust":
        return LocustScenario(name=name, thresholds=thresholds, **_values(document, LocustScenario, ""))
    models = {
        each: ServedModel(name=each, **_values(table, ServedModel, f"models.{each}."))
        for each, table in _tables(document.pop("models", {}), "models").items()
    }
    phases = tuple(
        _phase(each, table, models) for each, table in _tables(document.pop("phases", {}), "phases").items()
    )
    parts = [part for phase in phases for part in phase.parts]
    if twice := {part for part in parts if parts.count(part) > 1}:
        raise ScenarioError(f"two parts have the name {min(twice)!r}; figures are told apart by it")
    rest = _values(document, OpenLoopScenario, "")
    return OpenLoopScenario(name=name, thresholds=thresholds, models=models, phases=phases, **rest)


def _phase(name: str, table: Mapping[str, Any], models: Mapping[str, ServedModel]) -> Phase:
    prefix = f"phases.{name}."
    if unknown := table.keys() - {"seconds", "parts", "streams"}:
        raise ScenarioError(f"unknown key {prefix}{min(unknown)}; known are seconds, parts, streams")
    if ("seconds" in table) == ("parts" in table):
        raise ScenarioError(f"{prefix}seconds or {prefix}parts must be there, and not both")
    parts = table.get("parts", {name: table.get("seconds")})
    if not isinstance(parts, Mapping) or not parts:
        raise ScenarioError(f"{prefix}parts must be a table of names and seconds, not {parts!r}")
    parts = {_name(part, f"{prefix}parts."): _value("seconds", s, prefix) for part, s in parts.items()}
    traffic = tuple(
        _traffic(each, own, f"{prefix}streams.{each}.", models, len(parts))
        for each, own in _tables(table.get("streams", {}), f"{prefix}streams").items()
    )
    return Phase(name=name, parts=parts, traffic=traffic)


def _traffic(
    name: str, table: Mapping[str, Any], prefix: str, models: Mapping[str, ServedModel], parts: int
) -> Traffic:
    traffic = Traffic(name=name, **_values(table, Traffic, prefix))
    if traffic.model not in models:
        known = ", ".join(models)
        raise ScenarioError(f"{prefix}model is {traffic.model!r}, and the models are {known}")
    if bool(traffic.load) == bool(traffic.rate_per_s):
        raise ScenarioError(f"{prefix}load or {prefix}rate_per_s must be there, and not both")
    given = len(traffic.load or traffic.rate_per_s)
    if given not in (1, parts):
        raise ScenarioError(f"{prefix}load has {given} numbers, and the phase has {parts} parts")
    if traffic.arrivals != "poisson" and given > 1:
        raise ScenarioError(
            f"{prefix}arrivals {traffic.arrivals!r} have one rate; only poisson may change it"
        )
    return traffic


def _thresholds(tables: object) -> tuple[Threshold, ...]:
    if not isinstance(tables, list) or not all(isinstance(each, Mapping) for each in tables):
        raise ScenarioError("thresholds must be tables, each under [[thresholds]]")
    if not tables:
        raise ScenarioError("thresholds are missing: a run without any has no verdict")
    found = []
    for number, table in enumerate(tables, 1):
        prefix = f"thresholds {number}: "
        threshold = Threshold(**_values(table, Threshold, prefix))
        if (threshold.at_least is None) == (threshold.at_most is None):
            raise ScenarioError(f"{prefix}at_least or at_most must be there, and not both")
        found.append(threshold)
    return tuple(found)


def _check_thresholds(scenario: Scenario) -> None:
    """Every figure is one that the run measures, and what depends on the machine is a ratio."""
    known = scenario.figures()
    for number, each in enumerate(scenario.thresholds, 1):
        for name in (each.figure, each.times):
            if name and name not in known:
                raise ScenarioError(f"thresholds {number}: no figure {name!r}; {_near(name, known)}")
        if each.needs_a_comparison and not each.times:
            raise ScenarioError(
                f"thresholds {number}: {each.figure} depends on the machine; "
                "name in times the figure of the same run that it is a ratio to"
            )


def _near(name: str, known: frozenset[str]) -> str:
    """Say which figures there are: those of the same place, or else the places."""
    place = name.rpartition(".")[0]
    alike = sorted(each for each in known if each.rpartition(".")[0] == place)
    if alike:
        return f"there are {', '.join(alike)}"
    return f"there are figures of {', '.join(sorted({each.rpartition('.')[0] for each in known}))}"


# -- tables and values ------------------------------------------------------------------------------


def _tables(value: object, prefix: str) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(each, Mapping) for each in value.values()):
        raise ScenarioError(f"{prefix} must hold a table for each name")
    if not value:
        raise ScenarioError(f"{prefix} are missing")
    for name in value:
        _name(name, f"{prefix}.")
    return value


def _name(text: str, prefix: str) -> str:
    if not re.fullmatch(r"\w+", text):
        raise ScenarioError(f"{prefix}{text}: a name has letters, digits and _")
    return text


def _values(table: Mapping[str, Any], kind: type, prefix: str) -> dict[str, Any]:
    """Check a table against the fields of ``kind`` and against ``_READERS``; return what it holds."""
    known = {each.name: each for each in fields(kind) if each.name in _READERS}
    if unknown := table.keys() - known.keys():
        raise ScenarioError(f"unknown key {prefix}{min(unknown)}; known are {', '.join(known)}")
    for name, each in known.items():
        if name not in table and each.default is MISSING:
            raise ScenarioError(f"{prefix}{name} is missing")
    return {name: _value(name, value, prefix) for name, value in table.items()}


def _value(name: str, value: object, prefix: str) -> Any:  # noqa: ANN401 - as its reader says
    try:
        return _READERS[name](value)
    except ValueError as error:
        raise ScenarioError(f"{prefix}{name} must be {error}, not {value!r}") from None


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value


def _one_of(*names: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return value

    return read


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number above 0")
    return value


def _number(low: float, high: float = math.inf) -> Callable[[object], float]:
    allowed = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(allowed)
        if not low <= value <= high or math.isinf(value):
            raise ValueError(allowed)
        return float(value)

    return read


def _list_of(read: Callable[[object], Any], what: str) -> Callable[[object], tuple[Any, ...]]:
    def read_all(value: object) -> tuple[Any, ...]:
        values = value if isinstance(value, list) and value else [value]
        try:
            return tuple(read(each) for each in values)
        except ValueError:
            raise ValueError(f"{what}, or a list of them") from None

    return read_all


_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "description": _text,
    "generator": _one_of(*_GENERATORS),
    "model": _text,
    # locust
    "users": _list_of(_count, "a whole number above 0"),
    "spawn_rate": _number(1.0),
    "warmup_s": _number(0.0),
    "duration_s": _number(_SHORTEST_MEASUREMENT_S),
    "reference_s": _number(_SHORTEST_MEASUREMENT_S),
    "rows_per_request": _count,
    # openloop
    "connections": _count,
    "rounds": _count,
    "grace_s": _number(0.1),
    "calibration_s": _number(_SHORTEST_MEASUREMENT_S),
    "kind": _one_of(*KINDS),
    "max_batch_size": _count,
    "config": _text,
    "objective_full_batches": _number(1.0),
    "seconds": _number(0.1),
    "load": _list_of(_number(0.0, 10.0), "a number from 0 to 10"),
    "rate_per_s": _list_of(_number(0.0, 20_000.0), "a number from 0 to 20000"),
    "arrivals": _one_of(*ARRIVALS),
    "priority": _count,
    # thresholds
    "figure": _text,
    "at_least": _number(0.0),
    "at_most": _number(0.0),
    "times": _text,
    "plus": _number(0.0),
    "transport": _one_of(*sorted(TRANSPORTS)),
}
