"""Scenarios: what load to run and what is asked of the server, read from ``scenarios/*.toml``."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

__all__ = ["SCENARIOS", "Scenario", "ScenarioError", "Thresholds", "load_scenario", "parse", "scenario_names"]

SCENARIOS: Final = Path(__file__).parent / "scenarios"

_SHORTEST_MEASUREMENT_S: Final = 1.0
_TRANSPORTS: Final = frozenset({"grpcio", "http2"})


class ScenarioError(Exception):
    """A scenario that isn't there or isn't well formed. Says which key of which file, and why."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is asked of the server. The last three compare it with the reference of the same run.

    ``max_p99_ratio_to_reference`` allows ``ratio x reference + p99_allowance_ms``: locust counts
    in whole milliseconds, so a ratio alone means nothing where the reference's p99 is a few.
    """

    min_requests_per_s: float
    max_p99_ms: float
    max_error_rate: float
    min_rate_ratio_to_reference: float | None = None
    max_p99_ratio_to_reference: float | None = None
    p99_allowance_ms: float = 0.0

    @property
    def need_a_reference(self) -> bool:
        """Whether any of them is a ratio."""
        return not (self.min_rate_ratio_to_reference is None and self.max_p99_ratio_to_reference is None)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load to run.

    ``users`` holds the users of each step; the steps share ``duration_s`` equally, after
    ``warmup_s`` at the first one's, which isn't measured. ``spawn_rate`` is users per second.
    With ``reference_s`` above 0 the reference is measured for so long before the server and again
    after it. ``by_transport`` has the thresholds of a transport that has some of its own.
    """

    name: str
    description: str
    model: str
    users: tuple[int, ...]
    spawn_rate: float
    warmup_s: float
    duration_s: float
    rows_per_request: int
    thresholds: Thresholds
    reference_s: float = 0.0
    by_transport: Mapping[str, Thresholds] = field(default_factory=dict)

    def thresholds_for(self, transport: str) -> Thresholds:
        """Return the thresholds of a server on ``transport``: its own, or those of any."""
        return self.by_transport.get(transport, self.thresholds)


def scenario_names(directory: Path = SCENARIOS) -> list[str]:
    """Return the names of all scenarios in ``directory``, sorted."""
    return sorted(path.stem for path in directory.glob("*.toml"))


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
        asked, by_transport = _thresholds(document.pop("thresholds", {}))
        values = _values(document, Scenario, "")
        scenario = Scenario(name=name, thresholds=asked, by_transport=by_transport, **values)
        _check_reference(scenario)
    except ScenarioError as error:
        raise ScenarioError(f"scenario {name!r}: {error}") from None
    return scenario


def _thresholds(table: object) -> tuple[Thresholds, dict[str, Thresholds]]:
    """Read ``[thresholds]``, and ``[thresholds.TRANSPORT]`` as changes to it."""
    if not isinstance(table, Mapping):
        raise ScenarioError("thresholds must be a table")
    common = {key: value for key, value in table.items() if key not in _TRANSPORTS}
    by_transport = {}
    for transport in _TRANSPORTS & table.keys():
        own, prefix = table[transport], f"thresholds.{transport}."
        if not isinstance(own, Mapping):
            raise ScenarioError(f"{prefix.rstrip('.')} must be a table")
        by_transport[transport] = Thresholds(**_values({**common, **own}, Thresholds, prefix))
    return Thresholds(**_values(common, Thresholds, "thresholds.")), by_transport


def _check_reference(scenario: Scenario) -> None:
    all_thresholds = (scenario.thresholds, *scenario.by_transport.values())
    needed = any(thresholds.need_a_reference for thresholds in all_thresholds)
    if needed and not scenario.reference_s:
        raise ScenarioError("reference_s is missing, and the ratios in thresholds need a reference")
    if scenario.reference_s and not needed:
        raise ScenarioError("reference_s measures a reference that no ratio in thresholds asks for")
    if scenario.reference_s and scenario.reference_s < _SHORTEST_MEASUREMENT_S:
        raise ScenarioError(f"reference_s must be 0 or at least {_SHORTEST_MEASUREMENT_S:g}")


def _values(table: Mapping[str, Any], kind: type, prefix: str) -> dict[str, Any]:
    """Check a table against the fields of ``kind`` and against ``_READERS``; return what it holds."""
    known = {each.name: each for each in fields(kind) if each.name in _READERS}
    if unknown := table.keys() - known.keys():
        raise ScenarioError(f"unknown key {prefix}{min(unknown)}; known are {', '.join(known)}")
    for name, each in known.items():
        if name not in table and each.default is MISSING:
            raise ScenarioError(f"{prefix}{name} is missing")
    values = {}
    for name, value in table.items():
        try:
            values[name] = _READERS[name](value)
        except ValueError as error:
            raise ScenarioError(f"{prefix}{name} must be {error}, not {value!r}") from None
    return values


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a whole number above 0")
    return value


def _steps(value: object) -> tuple[int, ...]:
    steps = value if isinstance(value, list) and value else [value]
    try:
        return tuple(_count(step) for step in steps)
    except ValueError:
        raise ValueError("a whole number above 0, or a list of them") from None


def _number(low: float, high: float = math.inf) -> Callable[[object], float]:
    allowed = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(allowed)
        if not low <= value <= high or math.isinf(value):
            raise ValueError(allowed)
        return float(value)

    return read


_READERS: Final[Mapping[str, Callable[[object], Any]]] = {
    "description": _text,
    "model": _text,
    "users": _steps,
    "spawn_rate": _number(1.0),
    "warmup_s": _number(0.0),
    "duration_s": _number(_SHORTEST_MEASUREMENT_S),
    "reference_s": _number(0.0),
    "rows_per_request": _count,
    "min_requests_per_s": _number(0.0),
    "max_p99_ms": _number(0.0),
    "max_error_rate": _number(0.0, 1.0),
    "min_rate_ratio_to_reference": _number(0.0),
    "max_p99_ratio_to_reference": _number(0.0),
    "p99_allowance_ms": _number(0.0),
}
