"""A rollout as text of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from tensorferry.rollout.state import Canary, CanaryState, Event, Rollout

__all__ = ["as_text", "event_text", "percent", "role_of"]

_WIDTH: Final = 100
_INDENT: Final = 11
_EVENTS: Final = 5


def as_text(model: str, rollout: Rollout, ready: Sequence[int]) -> str:
    """Return all that an operator asks first: who answers, what runs, what happened last."""
    lines = [f"{model}: change {rollout.generation}" if rollout.generation else f"{model}: no rollout yet"]
    lines += _field("ready", ", ".join(f"{version}" for version in ready) or "no version")
    labels = (f"{label} -> {version}" for label, version in sorted(rollout.labels.items()))
    lines += _field("labels", ", ".join(labels) or "none")
    lines += _field("requests", _requests(rollout))
    if rollout.canary is not None and rollout.canary.state is not CanaryState.NONE:
        lines += _field("canary", _canary(rollout.canary))
        if rollout.canary.is_running:
            lines += _field("guards", _guards(rollout.canary))
    if rollout.shadow is not None:
        share = percent(rollout.shadow.share)
        lines += _field("shadow", f"version {rollout.shadow_version} gets copies of {share} of the requests")
    lines += _field("rollback", _rollback(rollout))
    if rollout.history:
        lines += ["", "last changes (UTC), newest first:"]
        lines += [event_text(event) for event in reversed(rollout.history[-_EVENTS:])]
    return "\n".join(lines)


def event_text(event: Event) -> str:
    """Return an event with its time (UTC); several lines if it is long."""
    when = datetime.fromtimestamp(event.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return textwrap.fill(event.what, _WIDTH, initial_indent=f"  {when}  ", subsequent_indent=" " * 23)


def role_of(rollout: Rollout, version: int) -> str:
    """Return what a version is in a rollout: its labels, "shadow", or ""."""
    labels = sorted(label for label, of in rollout.labels.items() if of == version)
    return ", ".join([*labels, *(["shadow"] if version == rollout.shadow_version else [])])


def percent(share: float) -> str:
    """Return a share in percent, with as many digits as it takes."""
    return f"{100 * share:.4g} %"


def _field(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"  {name:<{_INDENT - 2}}", subsequent_indent=" " * _INDENT
    )


def _requests(rollout: Rollout) -> str:
    arms = rollout.arms
    if not arms:
        return "all to the version policy's highest version"
    if len(arms) == 1:
        return f"all to {_named(rollout, arms[0][0])}"
    return ", ".join(f"{percent(share)} to {_named(rollout, version)}" for version, share in arms)


def _named(rollout: Rollout, version: int) -> str:
    role = role_of(rollout, version)
    return f"version {version} ({role})" if role else f"version {version}"


def _canary(canary: Canary) -> str:
    if canary.state is CanaryState.PROMOTED:
        return f"version {canary.version} was promoted to stable"
    if canary.state is CanaryState.ROLLED_BACK:
        reason = f": {canary.reason}" if canary.reason else ""
        return f"version {canary.version} was rolled back to version {canary.stable_version}{reason}"
    steps = _steps(canary.steps, canary.step)
    lasts = f"{canary.step_requests} of its answers" + (f" and {canary.step_s:g} s" if canary.step_s else "")
    now = f"step {canary.step + 1} of {len(canary.steps)}"
    return f"version {canary.version} runs, {now}: {steps}; a step lasts {lasts}"


def _steps(steps: Iterable[float], now: int) -> str:
    shares = (percent(step) for step in steps)
    return ", ".join(f"[{share}]" if index == now else share for index, share in enumerate(shares))


def _guards(canary: Canary) -> str:
    guards = canary.guards
    scores = f" of {guards.score_output}" if guards.score_output else ""
    return (
        f"errors at most {percent(guards.max_error_rate_increase)} above stable's, p99 at most "
        f"{guards.max_p99_ratio:g} x stable's, score shift{scores} at most {guards.max_score_shift:g}; "
        f"p99 and scores from {guards.min_requests} answers on"
    )


def _rollback(rollout: Rollout) -> str:
    if rollout.running is not None:
        return f"would end the canary: all to version {rollout.stable}"
    if rollout.split:
        home = f"version {rollout.stable}" if rollout.stable else "the version policy's highest version"
        return f"would end the split: all to {home}"
    if rollout.previous_stable:
        return f"would take stable back to version {rollout.previous_stable}"
    return "nowhere to go"
