"""What the tests of a rollout's state share."""

from __future__ import annotations

from tensorferry.rollout import changes
from tensorferry.rollout.state import EMPTY, Guards, Rollout

NOW_MS = 1_700_000_000_000


def stable_at(*versions: int) -> Rollout:
    """A rollout whose stable label has been at each of the versions in turn."""
    rollout = EMPTY
    for version in versions:
        rollout = changes.set_label(rollout, "stable", version, NOW_MS)
    return rollout


def start(rollout: Rollout, target: str = "4", steps=(), step_requests=0, step_s=0.0, **guards) -> Rollout:
    return changes.start_canary(rollout, target, steps, step_requests, step_s, Guards(**guards), NOW_MS)


def with_canary(*, stable: int = 3, version: int = 4) -> Rollout:
    return start(stable_at(stable), str(version))


def last(rollout: Rollout) -> str:
    return rollout.history[-1].what
