"""Every change of a rollout, as a function from the one before to the one after.

All raise ``InvalidRequest`` with what is wrong and how to mend it, and add an ``Event`` in plain
words. None knows which versions there are: ``check_versions`` asks that of the outcome. The
generation and the length of the history are the store's affair. A change that changes nothing
returns the rollout that it was given.

A version that answers unlabelled requests doesn't shadow: whatever makes it answer ends its shadow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from tensorferry.errors import InvalidRequest
from tensorferry.rollout import rules
from tensorferry.rollout.rules import check_versions
from tensorferry.rollout.state import (
    CANARY,
    STABLE,
    Canary,
    CanaryState,
    Event,
    Guards,
    Rollout,
    Shadow,
    Share,
)

__all__ = [
    "STEPS",
    "STEP_REQUESTS",
    "advance",
    "check_versions",
    "promote",
    "rollback",
    "set_label",
    "set_shadow",
    "set_split",
    "start_canary",
]

#: A canary's shares of the requests if nobody says otherwise.
STEPS: Final = (0.01, 0.1, 0.5, 1.0)
#: How many requests a canary answers at each step if nobody says otherwise.
STEP_REQUESTS: Final = 100

#: Characters of a reason that are kept.
_MAX_REASON: Final = 500


def set_label(rollout: Rollout, label: str, version: int, now_ms: int) -> Rollout:
    """Point a label at a version, or remove it (version 0).

    Moving ``stable`` remembers where it was, for ``rollback``, and ends a canary that runs: promoted
    if stable is now its version, else rolled back.
    """
    rules.check_label(label)
    rules.check_version(version, f"the label {label}", least=0)
    before = rollout.labels.get(label, 0)
    if version == before:
        if version == 0:
            raise InvalidRequest(
                f"there is no label {label} to remove; there are {rules.known_labels(rollout)}"
            )
        return rollout
    if version == 0:
        rules.check_label_is_free(rollout, label)
        labels = {name: of for name, of in rollout.labels.items() if name != label}
        changed = replace(rollout, labels=MappingProxyType(labels))
        return _settled(rollout, changed, f"label {label} removed; it was version {before}", now_ms)
    if label == STABLE:
        return _moved_stable(rollout, version, now_ms)
    canary = rollout.running
    if label == CANARY and canary is not None and before == canary.version:
        raise InvalidRequest(
            f"the label {CANARY} stands for version {before}, which runs as a canary: "
            "promote it or roll it back first"
        )
    what = f"label {label} set to version {version}" + (f"; it was {before}" if before else "")
    return _settled(rollout, _labelled(rollout, label, version), what, now_ms)


def set_split(rollout: Rollout, shares: Sequence[Share], now_ms: int) -> Rollout:
    """Divide unlabelled requests by weight; without shares, all go to stable again."""
    canary = rollout.running
    if canary is not None:
        raise InvalidRequest(
            f"a canary of version {canary.version} runs and divides the requests itself: "
            "promote it or roll it back first"
        )
    if not shares:
        if not rollout.split:
            return rollout
        what = f"split cleared: all requests to {_home(rollout)}"
        return _settled(rollout, replace(rollout, split=()), what, now_ms)
    rules.check_split(rollout, shares)
    total = sum(share.weight for share in shares)
    parts = ", ".join(f"{_named(rollout, share.target)} {_percent(share.weight / total)}" for share in shares)
    return _settled(rollout, replace(rollout, split=tuple(shares)), f"split set: {parts}", now_ms)


def set_shadow(rollout: Rollout, shadow: Shadow | None, now_ms: int) -> Rollout:
    """Give a version copies of a share of the requests; None ends it."""
    if shadow is None:
        if rollout.shadow is None:
            return rollout
        what = f"shadow of {_named(rollout, rollout.shadow.target)} ended"
        return _settled(rollout, replace(rollout, shadow=None), what, now_ms)
    rules.check_shadow(rollout, shadow)
    version = rollout.version_of(shadow.target)
    if version in dict(rollout.arms):
        raise InvalidRequest(
            f"{_named(rollout, shadow.target)} answers requests already; "
            "a shadow is a version that doesn't answer"
        )
    what = f"{_named(rollout, shadow.target)} shadows {_percent(shadow.share)} of the requests"
    return _settled(rollout, replace(rollout, shadow=shadow), what, now_ms)


def start_canary(
    rollout: Rollout,
    target: str,
    steps: Sequence[float],
    step_requests: int,
    step_s: float,
    guards: Guards,
    now_ms: int,
) -> Rollout:
    """Start to take a version to stable, share by share. Clears the split.

    ``steps`` are ascending shares of the requests, above 0 and at most 1; empty: ``STEPS``. A step
    lasts until the canary has answered ``step_requests`` requests in it (0: ``STEP_REQUESTS``), and
    at least ``step_s`` seconds.
    """
    running = rollout.running
    if running is not None:
        raise InvalidRequest(
            f"a canary of version {running.version} runs already: promote it or roll it back first"
        )
    if not rollout.stable:
        raise InvalidRequest(
            f"a canary is compared with {STABLE}, and no version has that label: set it first"
        )
    version = rules.resolved(rollout, target)
    if version == rollout.stable:
        raise InvalidRequest(f"version {version} is {STABLE} already; name another version for the canary")
    canary = Canary(
        state=CanaryState.RUNNING,
        stable_version=rollout.stable,
        version=version,
        steps=tuple(float(step) for step in steps or STEPS),
        step_requests=step_requests or STEP_REQUESTS,
        step_s=float(step_s),
        guards=guards,
    )
    rules.check_canary(canary)
    changed = replace(rollout, canary=canary, split=())
    if target not in rollout.labels:
        changed = _labelled(changed, CANARY, version)
    what = f"canary of version {version} started beside stable version {rollout.stable}: {_step(canary)}"
    if rollout.split:
        what += "; the split is cleared"
    return _settled(rollout, changed, what, now_ms)


def advance(rollout: Rollout, now_ms: int) -> Rollout:
    """Take a canary to its next step; after the last, promote it."""
    canary = _needed(rollout)
    if canary.step + 1 >= len(canary.steps):
        return promote(rollout, now_ms)
    canary = replace(canary, step=canary.step + 1)
    what = f"canary of version {canary.version}: {_step(canary)}"
    return _settled(rollout, replace(rollout, canary=canary), what, now_ms)


def promote(rollout: Rollout, now_ms: int) -> Rollout:
    """Make a running canary stable, whatever its step."""
    return _moved_stable(rollout, _needed(rollout).version, now_ms)


def rollback(rollout: Rollout, reason: str, now_ms: int) -> Rollout:
    """Go back: a canary or a split to stable; if there is neither, stable to the version before.

    A rollback leaves no version to go back to. So a second one, by somebody who didn't see the first
    or by a guard at the same moment, is refused instead of going back further.
    """
    reason = " ".join(reason.split())[:_MAX_REASON]
    because = f": {reason}" if reason else ""
    canary = rollout.running
    if canary is not None:
        ended = replace(canary, state=CanaryState.ROLLED_BACK, reason=reason)
        changed = replace(rollout, canary=ended, split=(), previous_stable=0)
        what = f"canary of version {canary.version} rolled back to stable version {rollout.stable}{because}"
    elif rollout.split:
        changed = replace(rollout, split=(), previous_stable=0)
        what = f"split rolled back to {_home(rollout)}{because}"
    elif rollout.previous_stable:
        changed = replace(_labelled(rollout, STABLE, rollout.previous_stable), previous_stable=0)
        what = (
            f"stable rolled back from version {rollout.stable} to version {rollout.previous_stable}{because}"
        )
    else:
        raise InvalidRequest(_nowhere(rollout))
    return _settled(rollout, changed, what, now_ms)


def _moved_stable(rollout: Rollout, version: int, now_ms: int) -> Rollout:
    """Point stable at another version, and end a canary that runs accordingly."""
    before = rollout.stable
    changed = replace(_labelled(rollout, STABLE, version), previous_stable=before)
    what = (
        f"stable moved from version {before} to {version}" if before else f"stable set to version {version}"
    )
    canary = rollout.running
    if canary is not None and version == canary.version:
        changed = replace(changed, canary=replace(canary, state=CanaryState.PROMOTED))
        what = f"canary of version {version} promoted: {what}"
    elif canary is not None:
        reason = f"stable was moved to version {version}"
        changed = replace(changed, canary=replace(canary, state=CanaryState.ROLLED_BACK, reason=reason))
        what = f"canary of version {canary.version} ended: {what}"
    return _settled(rollout, changed, what, now_ms)


def _settled(before: Rollout, after: Rollout, what: str, now_ms: int) -> Rollout:
    """Return ``after`` with an event, and without a shadow that now answers."""
    if after.shadow is not None and after.shadow_version in dict(after.arms):
        what += f"; it no longer shadows, since version {after.shadow_version} answers now"
        after = replace(after, shadow=None)
    return replace(after, history=(*before.history, Event(now_ms, what)))


def _labelled(rollout: Rollout, label: str, version: int) -> Rollout:
    return replace(rollout, labels=MappingProxyType({**rollout.labels, label: version}))


def _needed(rollout: Rollout) -> Canary:
    canary = rollout.running
    if canary is not None:
        return canary
    last = rollout.canary
    outcome = ""
    if last is not None and last.state is CanaryState.PROMOTED:
        outcome = f"; the last one, version {last.version}, was promoted"
    elif last is not None and last.state is CanaryState.ROLLED_BACK:
        outcome = f"; the last one, version {last.version}, was rolled back: {last.reason or 'asked for'}"
    raise InvalidRequest(f"no canary runs{outcome}")


def _nowhere(rollout: Rollout) -> str:
    """Say why there is nothing to roll back."""
    stable = f"stable is version {rollout.stable}" if rollout.stable else "there is no stable version"
    last = f" (last change: {rollout.history[-1].what})" if rollout.history else ""
    return (
        f"nothing to roll back: no canary runs, there is no split, and {stable} with none before it{last}; "
        f"to move {STABLE}, set the label to the version you want"
    )


def _named(rollout: Rollout, target: str) -> str:
    """Return a target in words, with its version."""
    version = rollout.version_of(target)
    return f"version {version}" if target == str(version) else f"version {version} ({target})"


def _home(rollout: Rollout) -> str:
    """Where unlabelled requests go without canary and split."""
    return f"stable version {rollout.stable}" if rollout.stable else "the version policy's highest version"


def _step(canary: Canary) -> str:
    return f"step {canary.step + 1} of {len(canary.steps)}, {_percent(canary.share)} of the requests"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
