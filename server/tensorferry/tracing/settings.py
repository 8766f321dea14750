"""The trace settings that may be changed while the server runs: Triton's, by their names and as texts.

``trace_level`` (OFF or TIMESTAMPS), ``trace_rate`` and ``trace_count`` can be changed. ``trace_mode``,
``trace_file`` and ``log_frequency`` are told, for clients that show them, and can't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from tensorferry.errors import InvalidRequest
from tensorferry.tracing.sampling import UNLIMITED

__all__ = ["FIXED", "Change", "Choice", "Described", "Untraced", "parse"]

#: What is told and can't be changed.
FIXED: Final = {"trace_mode": "opentelemetry", "trace_file": "", "log_frequency": "0"}

_WHY_FIXED: Final = {
    "trace_mode": "traces are OpenTelemetry's, sent to the collector of --trace-endpoint",
    "trace_file": "traces are sent to the collector of --trace-endpoint, and written to no file",
    "log_frequency": "traces are sent to the collector of --trace-endpoint about once a second, not to files",
}
_LEVELS: Final = ("OFF", "TIMESTAMPS")
_MAX: Final = 2**31 - 1

#: Settings as they are told: a list of texts by name.
Described = dict[str, list[str]]


class Choice(NamedTuple):
    """What was chosen for one scope; None: what holds without a choice."""

    is_on: bool | None = None
    rate: int | None = None
    budget: int | None = None


#: Which parts of a choice a change sets, by their names; None takes the part's choice back.
Change = dict[str, Any]


def parse(change: Mapping[str, Any]) -> Change:
    """Check a change of settings, and return the parts of a Choice that it sets.

    Raises:
        InvalidRequest: a name that isn't known, a value that doesn't fit, or a setting that is fixed.
    """
    parts: Change = {}
    for name, values in change.items():
        if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
            raise InvalidRequest(f"the value of trace setting {name[:64]!r} must be a list of texts")
        if name in FIXED:
            if list(values) not in ([], [FIXED[name]]):
                raise InvalidRequest(f"{name} can't be changed: {_WHY_FIXED[name]}")
        elif name == "trace_level":
            parts["is_on"] = _level(values) if values else None
        elif name == "trace_rate":
            parts["rate"] = _number(name, values, 0) if values else None
        elif name == "trace_count":
            parts["budget"] = _number(name, values, UNLIMITED) if values else None
        else:
            known = sorted(["trace_level", "trace_rate", "trace_count", *FIXED])
            raise InvalidRequest(f"no trace setting {name[:64]!r}; there are {', '.join(known)}")
    return parts


def _level(values: Sequence[str]) -> bool:
    if "TENSORS" in values:
        raise InvalidRequest(
            "trace_level TENSORS isn't offered: tensors never leave through traces; use TIMESTAMPS"
        )
    if len(values) != 1 or values[0] not in _LEVELS:
        raise InvalidRequest(f"trace_level must be one of {', '.join(_LEVELS)}, not {_shown(values)}")
    return values[0] == "TIMESTAMPS"


def _number(name: str, values: Sequence[str], least: int) -> int:
    text = values[0].strip() if len(values) == 1 else ""
    digits = text.removeprefix("-")
    # As long as a number that fits can be: int() of a very long text takes its time.
    number = int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 10 else least - 1
    if not least <= number <= _MAX:
        raise InvalidRequest(f"{name} must be a whole number from {least} to {_MAX}, not {_shown(values)}")
    return number


def _shown(values: Sequence[str]) -> str:
    return ", ".join(repr(value[:64]) for value in values[:4])


class Untraced:
    """The settings of a server that has no collector to send traces to: off, and to stay so."""

    def describe(self, scope: str) -> Described:
        """Return the settings of a model, or of all ("")."""
        return {"trace_level": ["OFF"], "trace_rate": ["0"], "trace_count": [str(UNLIMITED)]} | {
            name: [value] for name, value in FIXED.items()
        }

    def apply(self, scope: str, change: Mapping[str, Any]) -> None:
        """Refuse to switch traces on.

        Raises:
            InvalidRequest: the change is wrong, or would trace.
        """
        parts = parse(change)
        if parts.get("is_on") or parts.get("rate") or parts.get("budget") is not None:
            raise InvalidRequest(
                "traces have nowhere to go: start the server with --trace-endpoint, the OTLP/HTTP address of"
                " a collector, such as http://localhost:4318"
            )
