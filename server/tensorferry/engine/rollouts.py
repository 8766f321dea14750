"""What watches a rollout inside one server process: a recorder for each version, and the shadow's.

Recorders begin with the rollout's arms and stay, as they are, when it is over, so that a report
can still be made; they begin anew when the arms change.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog

from tensorferry.batching.pending import Intake
from tensorferry.clock import Clock
from tensorferry.engine.live import LiveModel
from tensorferry.engine.observed_intake import ObservedIntake
from tensorferry.engine.scores import score_output_index
from tensorferry.engine.shadow_intake import Shadowing, ShadowIntake
from tensorferry.errors import InvalidRequest
from tensorferry.model import ModelSpec
from tensorferry.rollout.counts import ArmCounts, ArmRecorder
from tensorferry.rollout.shadow_counts import ShadowCounts, ShadowRecorder
from tensorferry.rollout.state import Rollout

__all__ = ["Comparison", "Rollouts", "comparison_of"]

_log = structlog.get_logger("tensorferry.engine")


class Comparison(NamedTuple):
    """What recorders compare: the versions that answer, ascending, and the one that shadows (0: none).

    A canary is judged by what both have answered since it started, and not in a split before.
    """

    arms: tuple[int, ...]
    shadow: int
    is_canary: bool


@dataclass(slots=True)
class _Experiment:
    """The recorders of one model, by version, and what they compare; None if it is over."""

    comparison: Comparison | None = None
    arms: dict[int, ArmRecorder] = field(default_factory=dict)
    shadows: dict[int, ShadowRecorder] = field(default_factory=dict)


class Rollouts:
    """All models' recorders. ``on_progress`` is called with a model's name as answers are recorded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._experiments: dict[str, _Experiment] = {}
        self.on_progress: Callable[[str], None] | None = None

    def apply(self, name: str, rollout: Rollout, versions: Mapping[int, LiveModel]) -> None:
        """Put observers before the versions that ``rollout`` is about, and take them from all others."""
        experiment = self._experiments.get(name)
        comparison = comparison_of(rollout, versions)
        if experiment is None:
            if comparison is None:
                return
            experiment = self._experiments[name] = _Experiment()
        shadow = comparison.shadow if comparison is not None else 0
        if comparison is not None and comparison != experiment.comparison:
            experiment.arms = {number: ArmRecorder() for number in comparison.arms}
            experiment.shadows = {shadow: ShadowRecorder()} if shadow else {}
        experiment.comparison = comparison
        for number, live in versions.items():
            if comparison is not None and number in experiment.arms:
                live.put_before(self._before(live, experiment, rollout, versions.get(shadow)))
            else:
                live.put_before(None)

    def forget(self, name: str) -> None:
        """Drop a model's recorders."""
        self._experiments.pop(name, None)

    def counts(self, name: str) -> dict[int, ArmCounts]:
        """Return a snapshot of each version's counts; empty if there never was a rollout."""
        experiment = self._experiments.get(name)
        return {} if experiment is None else {n: arm.snapshot() for n, arm in experiment.arms.items()}

    def shadow_counts(self, name: str) -> dict[int, ShadowCounts]:
        """Return a snapshot of each shadow's counts."""
        experiment = self._experiments.get(name)
        return {} if experiment is None else {n: each.snapshot() for n, each in experiment.shadows.items()}

    def learn(self, name: str, labels: Sequence[tuple[bytes, int]]) -> int:
        """Take in labels by key; return how many belong to a request that is remembered."""
        experiment = self._experiments.get(name)
        return 0 if experiment is None else sum(arm.memory.learn(labels) for arm in experiment.arms.values())

    def pairs(self, name: str) -> dict[int, list[tuple[float, int]]]:
        """Return by version the (score, label) pairs of what was learned."""
        experiment = self._experiments.get(name)
        return {} if experiment is None else {n: arm.memory.pairs for n, arm in experiment.arms.items()}

    def _before(
        self, live: LiveModel, experiment: _Experiment, rollout: Rollout, shadow: LiveModel | None
    ) -> Callable[[Intake], Intake]:
        wanted = rollout.canary.guards.score_output if rollout.canary is not None else ""
        recorder = experiment.arms[live.spec.version]
        progress = partial(self._progress, live.spec.name)
        output = _score_output(live.spec, wanted)

        def before(inner: Intake) -> Intake:
            if shadow is not None and rollout.shadow is not None:
                shadowing = Shadowing(
                    live.spec,
                    lambda: shadow,
                    rollout.shadow.share,
                    lambda: live.waiting > 0,
                    experiment.shadows[shadow.spec.version],
                    wanted,
                )
                inner = ShadowIntake(inner, self._clock, shadowing)
            return ObservedIntake(inner, self._clock, recorder, output, progress)

        return before

    def _progress(self, name: str) -> None:
        if self.on_progress is not None:
            self.on_progress(name)


def comparison_of(rollout: Rollout, versions: Container[int] | None = None) -> Comparison | None:
    """Return what a rollout compares among the versions that are there (None: all); None if nothing."""
    arms = tuple(sorted(n for n in set(_compared(rollout)) if versions is None or n in versions))
    shadow = rollout.shadow_version
    if versions is not None and shadow not in versions:
        shadow = 0
    if len(arms) < 2 and not shadow:
        return None
    return Comparison(arms, shadow, rollout.running is not None)


def _compared(rollout: Rollout) -> tuple[int, ...]:
    """Return the versions that answer: with a canary both, also at the step that leaves stable nothing."""
    canary = rollout.canary
    if canary is not None and canary.is_running:
        return canary.version, canary.stable_version
    return tuple(number for number, _ in rollout.arms)


def _score_output(spec: ModelSpec, wanted: str) -> int:
    try:
        return score_output_index(spec, wanted)
    except InvalidRequest as error:
        _log.warning("scores not judged", model=spec.name, version=spec.version, reason=str(error))
        return -1
