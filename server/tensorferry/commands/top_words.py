"""What is wrong with a server, in words, the worst first: the top lines of ``tensorferry top``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tensorferry.commands.top_text import clean, rate, spoken

__all__ = ["BAD", "FAILURES_APART", "POWER_CAP", "WARN", "failed_per_s", "problems", "refused_per_s", "title"]

BAD: Final = "bad"
WARN: Final = "warn"

#: Reasons that are shown elsewhere (refusals), or that are the caller's own doing.
FAILURES_APART: Final = ("REJECTED", "CANCELED")

#: Streams that run this much of the time have nothing left to give.
_BUSY: Final = 0.95

#: A loop that comes this late to its timers delays every answer.
_LATE_LOOP_MS: Final = 25.0

#: Lowers a GPU's clocks whenever it gives all that its limit lets it: no fault.
POWER_CAP: Final = "power_cap"

#: Which problems come first; the sort keeps the order of the models otherwise.
_ORDER: Final = (BAD, WARN)


def title(model: Mapping[str, Any]) -> str:
    """Return name and version."""
    return f"{clean(model['model'])}/{clean(model['version'])}"


def failed_per_s(model: Mapping[str, Any]) -> float:
    """Return the requests per second that failed, not those refused or given up by their callers."""
    failures: Mapping[str, float] = model.get("failures") or {}
    return sum(value for reason, value in failures.items() if reason not in FAILURES_APART and value)


def refused_per_s(model: Mapping[str, Any]) -> float:
    """Return the requests per second that were refused without running."""
    refusals: Mapping[str, float] = model.get("refusals") or {}
    return sum(value for value in refusals.values() if value)


def problems(frame: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (BAD or WARN, what is wrong) of all that a person on call wants to know first."""
    found = [
        *_of_server(frame["server"]),
        *_of_gpus(frame),
        *(each for model in frame["models"] for each in _of_model(model)),
    ]
    return sorted(found, key=lambda each: _ORDER.index(each[0]))


def _of_server(server: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    reasons = server.get("not_ready") or {}
    if server.get("ready") is False and not reasons:
        yield BAD, "the server isn't ready"
    for name, reason in reasons.items():
        yield BAD, f"{clean(name)} isn't ready: {clean(reason)}"
    lag_ms = server.get("loop_lag_p99_ms")
    if lag_ms is not None and lag_ms > _LATE_LOOP_MS:
        yield WARN, f"the event loop is {spoken(lag_ms)} late (p99): the server's processors are short"


def _of_gpus(frame: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for gpu in frame.get("gpus") or ():
        reasons = [clean(reason) for reason in gpu.get("throttled") or () if reason != POWER_CAP]
        if reasons:
            yield (
                WARN,
                f"{clean(gpu.get('device') or 'a GPU')} runs slower than it could: {', '.join(reasons)}",
            )


def _of_model(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = title(model)
    failed = failed_per_s(model)
    if failed:
        yield BAD, f"{name}: {rate(failed)}/s fail ({_reasons(model['failures'], FAILURES_APART)})"
    refused = refused_per_s(model)
    if refused:
        share = refused / (refused + (model.get("requests_per_s") or 0.0))
        yield BAD, f"{name}: {rate(refused)}/s refused, {share:.0%} of all ({_reasons(model['refusals'])})"
    if model.get("ready") is False:
        yield WARN, f"{name} isn't ready"
    objective_ms, p99_ms = model.get("objective_ms"), model.get("p99_ms")
    if objective_ms and p99_ms is not None and p99_ms > objective_ms:
        yield (
            WARN,
            f"{name}: p99 of {spoken(p99_ms)} is over its objective of {spoken(objective_ms)}",
        )
    row_limit = (model.get("device") or {}).get("row_limit")
    if row_limit:
        yield (
            WARN,
            f"{name}: its GPU ran out of memory: batches of more than {row_limit:.0f} rows run in parts",
        )
    busy, waiting = model.get("busy"), model.get("waiting")
    if busy is not None and busy >= _BUSY and waiting:
        yield (
            WARN,
            f"{name}: its streams run {min(1.0, busy):.0%} of the time, and {waiting:.0f} requests wait",
        )


def _reasons(by_reason: Mapping[str, float], apart: tuple[str, ...] = ()) -> str:
    some = [(value, reason) for reason, value in by_reason.items() if value and reason not in apart]
    return ", ".join(clean(reason) for _, reason in sorted(some, reverse=True))
