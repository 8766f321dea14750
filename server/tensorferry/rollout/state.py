"""A model's rollout: what its versions are for. Immutable; ``changes.py`` makes one out of another.

``messages.py`` has its form on the wire and in the state file (``protos/rollout.proto``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final

__all__ = [
    "CANARY",
    "EMPTY",
    "STABLE",
    "Canary",
    "CanaryState",
    "Event",
    "Guards",
    "Rollout",
    "Shadow",
    "Share",
]

#: The label that answers requests that name neither a version nor a label.
STABLE: Final = "stable"
#: The label that ``push --label canary`` and the tools use; no special meaning to the server.
CANARY: Final = "canary"


class CanaryState(Enum):
    """Where a canary is. The values are those of ``Canary.State`` in the proto file."""

    NONE = 0
    RUNNING = 1
    PROMOTED = 2
    ROLLED_BACK = 3


@dataclass(frozen=True, slots=True)
class Share:
    """A target (a version number or a label, as text) and its weight, above 0, relative to the others'."""

    target: str
    weight: float


@dataclass(frozen=True, slots=True)
class Shadow:
    """A target that gets a copy of ``share`` (above 0, at most 1) of the model's requests."""

    target: str
    share: float


@dataclass(frozen=True, slots=True)
class Guards:
    """When a canary is taken back; see ``guards.py``.

    ``max_error_rate_increase`` is a share of requests above stable's, ``max_p99_ratio`` the canary's
    p99 over stable's, ``max_score_shift`` a Kolmogorov-Smirnov distance from 0 to 1.
    ``min_requests`` are answers of the canary before p99 and scores are judged. ``score_output`` is
    the output that holds scores; "" for the model's first of floating point.
    """

    max_error_rate_increase: float = 0.01
    max_p99_ratio: float = 1.5
    max_score_shift: float = 0.2
    min_requests: int = 100
    score_output: str = ""


@dataclass(frozen=True, slots=True)
class Canary:
    """A version on its way to be stable, share by share; or the last one that was."""

    state: CanaryState
    stable_version: int
    version: int
    steps: tuple[float, ...]
    step: int = 0
    step_requests: int = 100
    step_s: float = 0.0
    guards: Guards = field(default_factory=Guards)
    reason: str = ""

    @property
    def is_running(self) -> bool:
        """Whether it gets requests."""
        return self.state is CanaryState.RUNNING

    @property
    def share(self) -> float:
        """Of the unlabelled requests, at the present step."""
        return self.steps[self.step] if self.is_running else 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed: milliseconds since 1970, and what."""

    time_ms: int
    what: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """The whole of it for one model. ``labels`` maps to versions."""

    labels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    split: tuple[Share, ...] = ()
    shadow: Shadow | None = None
    canary: Canary | None = None
    previous_stable: int = 0
    history: tuple[Event, ...] = ()
    generation: int = 0

    @property
    def stable(self) -> int:
        """The version that the label ``stable`` points at; 0 if there is none."""
        return self.labels.get(STABLE, 0)

    @property
    def running(self) -> Canary | None:
        """The canary, if it gets requests."""
        return self.canary if self.canary is not None and self.canary.is_running else None

    def version_of(self, target: str) -> int:
        """Return the version that a target means: its number, or where its label points; 0 if nowhere."""
        if target.isascii() and target.isdigit():
            return int(target)
        return self.labels.get(target, 0)

    @property
    def arms(self) -> tuple[tuple[int, float], ...]:
        """(version, share) of the requests that name neither version nor label; shares add up to 1.

        In the order that ``Split`` needs: what grows comes first. Empty where nobody has said anything,
        so that the version policy's highest answers.
        """
        arms: tuple[tuple[int, float], ...]
        canary = self.running
        if canary is not None:
            arms = ((canary.version, canary.share), (canary.stable_version, 1.0 - canary.share))
        elif self.split:
            total = sum(share.weight for share in self.split)
            arms = tuple((self.version_of(share.target), share.weight / total) for share in self.split)
        else:
            arms = ((self.stable, 1.0),)
        return tuple(arm for arm in arms if arm[0] and arm[1] > 0)

    @property
    def shadow_version(self) -> int:
        """The version that shadows; 0 if none."""
        return self.version_of(self.shadow.target) if self.shadow is not None else 0

    @property
    def needed(self) -> frozenset[int]:
        """All versions that have to be there."""
        named = {*self.labels.values(), self.shadow_version, *(version for version, _ in self.arms)}
        return frozenset(named - {0})

    @property
    def versions(self) -> frozenset[int]:
        """All versions to keep loaded: those needed, and the one that a rollback would go back to.

        The latter so that a rollback takes effect on the next request, without a load.
        """
        return self.needed | {self.previous_stable} - {0}


EMPTY: Final = Rollout()
