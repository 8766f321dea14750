"""What a rollout may be: the rules that every change keeps, and that a state file is held to.

All raise ``InvalidRequest`` with what is wrong and how to mend it, but for ``check_versions``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Final

from tensorferry.errors import InvalidRequest, NotFound
from tensorferry.rollout.state import CANARY, STABLE, Canary, CanaryState, Guards, Rollout, Shadow, Share

__all__ = [
    "check",
    "check_canary",
    "check_label",
    "check_label_is_free",
    "check_shadow",
    "check_split",
    "check_version",
    "check_versions",
    "known_labels",
    "resolved",
]

_LABEL: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
#: What the version's directory may be called; see ``repository/scan.py``.
_MAX_VERSION: Final = 10**18 - 1
#: More steps than anybody needs, and few enough to be written down.
_MAX_STEPS: Final = 100


def check(rollout: Rollout) -> None:
    """Check a rollout that didn't come of changes: somebody may have written the file by hand."""
    for label, version in rollout.labels.items():
        check_label(label)
        check_version(version, f"the label {label}")
    if rollout.previous_stable:
        check_version(rollout.previous_stable, "previous_stable")
    if rollout.split:
        _check_shares(rollout, rollout.split)
    if rollout.shadow is not None:
        check_shadow(rollout, rollout.shadow)
    canary = rollout.canary
    if canary is None or canary.state is CanaryState.NONE:
        return
    check_canary(canary)
    if not 0 <= canary.step < len(canary.steps):
        raise InvalidRequest(f"the canary's step is {canary.step}, but it has {len(canary.steps)} steps")
    if canary.is_running and canary.stable_version != rollout.stable:
        raise InvalidRequest(
            f"the canary runs beside version {canary.stable_version}, but the label {STABLE} is not on it"
        )
    if canary.is_running and rollout.split:
        raise InvalidRequest("there are a split and a canary that runs; there can be one of them")


def check_versions(rollout: Rollout, available: Collection[int]) -> None:
    """Raise ``NotFound`` if the rollout needs a version that isn't available.

    The version that a rollback would go back to isn't needed: it may have been deleted.
    """
    missing = sorted(rollout.needed - set(available))
    if not missing:
        return
    users = [f"the label {label}" for label, version in rollout.labels.items() if version == missing[0]]
    if rollout.shadow_version == missing[0]:
        users.append("the shadow")
    if missing[0] in dict(rollout.arms):
        users.append("the canary" if rollout.running is not None else "the split")
    there = ", ".join(str(version) for version in sorted(available)) or "none"
    raise NotFound(f"there is no version {missing[0]}, for {users[0]}; there are: {there}")


def resolved(rollout: Rollout, target: str) -> int:
    """Return the version that a target means, which has to be one."""
    version = rollout.version_of(target)
    if target.isascii() and target.isdigit():
        check_version(version, f"target {target}")
    elif not version:
        raise InvalidRequest(
            f"{target!r} is neither a version number nor a label; there are {known_labels(rollout)}"
        )
    return version


def check_version(version: int, of: str, least: int = 1) -> None:
    """Check a version's number."""
    if not least <= version <= _MAX_VERSION:
        raise InvalidRequest(f"{of}: there can be no version {version}; versions are numbers from 1 up")


def check_label(label: str) -> None:
    """Check a label's name."""
    if not _LABEL.fullmatch(label):
        raise InvalidRequest(
            f"{label[:80]!r} can't be a label: a letter, then at most 63 letters, digits, '_', '.' or '-'"
        )


def check_label_is_free(rollout: Rollout, label: str) -> None:
    """Check that a label may be removed: that nothing needs it."""
    canary = rollout.running
    if canary is not None and (
        label == STABLE or (label == CANARY and rollout.labels[label] == canary.version)
    ):
        raise InvalidRequest(
            f"the canary of version {canary.version} needs the label {label}: "
            "promote it or roll it back first"
        )
    if any(share.target == label for share in rollout.split):
        raise InvalidRequest(f"the split needs the label {label}: change or clear the split first")
    if rollout.shadow is not None and rollout.shadow.target == label:
        raise InvalidRequest(f"the shadow needs the label {label}: end the shadow first")


def check_split(rollout: Rollout, shares: Sequence[Share]) -> None:
    """Check the shares of a new split."""
    _check_shares(rollout, shares)
    targets: dict[int, str] = {}
    for share in shares:
        version = rollout.version_of(share.target)
        if version in targets:
            raise InvalidRequest(
                f"{targets[version]} and {share.target} are both version {version}; name each version once"
            )
        targets[version] = share.target


def _check_shares(rollout: Rollout, shares: Sequence[Share]) -> None:
    for share in shares:
        resolved(rollout, share.target)
        if not (math.isfinite(share.weight) and share.weight > 0):
            raise InvalidRequest(
                f"the weight of {share.target} is {share.weight:g}; give a number above 0, or leave it out"
            )
    if not math.isfinite(sum(share.weight for share in shares)):
        raise InvalidRequest("the weights add up to more than a number can hold; give smaller ones")


def check_shadow(rollout: Rollout, shadow: Shadow) -> None:
    """Check a shadow's target and share."""
    resolved(rollout, shadow.target)
    if not 0 < shadow.share <= 1:
        raise InvalidRequest(
            f"the shadow's share is {shadow.share:g}; give one above 0, and at most 1 (all requests)"
        )


def check_canary(canary: Canary) -> None:
    """Check a canary's steps and guards, and that the guards come into play before it is promoted."""
    check_version(canary.version, "the canary")
    check_version(canary.stable_version, "the canary's stable")
    steps = canary.steps
    if not 1 <= len(steps) <= _MAX_STEPS:
        raise InvalidRequest(f"the canary has {len(steps)} steps; give from 1 to {_MAX_STEPS}")
    if not all(0 < step <= 1 for step in steps):
        raise InvalidRequest(
            f"the canary's steps are {_listed(steps)}; give shares above 0 and at most 1, such as 0.01"
        )
    if any(later <= step for step, later in pairwise(steps)):
        raise InvalidRequest(f"the canary's steps are {_listed(steps)}; each has to be above the one before")
    if canary.step_requests < 1:
        raise InvalidRequest(f"step_requests is {canary.step_requests}; give at least 1")
    if not (math.isfinite(canary.step_s) and canary.step_s >= 0):
        raise InvalidRequest(f"step_s is {canary.step_s:g}; give seconds, 0 or more")
    _check_guards(canary.guards)
    answers = canary.step_requests * len(steps)
    if canary.step_s == 0 and answers < canary.guards.min_requests:
        raise InvalidRequest(
            f"the canary would be promoted after {answers} answers, but its p99 and scores are judged from "
            f"{canary.guards.min_requests} on: raise step_requests or lower min_requests"
        )


def _check_guards(guards: Guards) -> None:
    if not 0 < guards.max_error_rate_increase <= 1:
        raise InvalidRequest(
            f"max_error_rate_increase is {guards.max_error_rate_increase:g}; give a share above 0, at most 1"
        )
    if not (math.isfinite(guards.max_p99_ratio) and guards.max_p99_ratio >= 1):
        raise InvalidRequest(f"max_p99_ratio is {guards.max_p99_ratio:g}; give 1 or more")
    if not 0 < guards.max_score_shift <= 1:
        raise InvalidRequest(f"max_score_shift is {guards.max_score_shift:g}; give one above 0, at most 1")
    if guards.min_requests < 1:
        raise InvalidRequest(f"min_requests is {guards.min_requests}; give at least 1")


def known_labels(rollout: Rollout) -> str:
    """Return the labels that there are, in words."""
    return "the labels " + ", ".join(sorted(rollout.labels)) if rollout.labels else "no labels"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
