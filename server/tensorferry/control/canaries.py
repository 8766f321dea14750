"""Takes canaries from step to step, and back when a guard breaks.

``progress`` is called as answers are recorded, ``tick`` now and then for steps that last a time.
The figures are those of all processes together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from tensorferry.control.coordinator import Coordinator
from tensorferry.control.fleet import Fleet
from tensorferry.control.rollbacks import DIED, GUARD
from tensorferry.errors import InvalidRequest, TensorferryError
from tensorferry.rollout import changes
from tensorferry.rollout.guards import judge
from tensorferry.rollout.state import Canary, Rollout

__all__ = ["TICK_S", "Canaries"]

_log = structlog.get_logger("tensorferry.control")

TICK_S: Final = 0.25

#: A look costs some 0.1 ms: under a load of many thousands a second not every answer gets its own.
_LEAST_PAUSE_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class _Step:
    """A canary's step: when it began, and what the canary had answered by then."""

    key: tuple[int, int, int]
    began_s: float
    answered: int


class Canaries:
    """The canaries that run, of all models."""

    def __init__(
        self, coordinator: Coordinator, fleet: Fleet, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._coordinator = coordinator
        self._fleet = fleet
        self._now_s = now_s
        self._steps: dict[str, _Step] = {}
        self._changing: dict[str, asyncio.Task[object]] = {}
        self._looked_s: dict[str, float] = {}

    def tick(self) -> None:
        """Look at every model's canary."""
        for order in self._coordinator.orders:
            self.look(order.name)

    def progress(self, name: str) -> None:
        """Look at a model's canary, unless that was done just now: ``tick`` makes up for it."""
        now_s = self._now_s()
        if now_s - self._looked_s.get(name, -_LEAST_PAUSE_S) >= _LEAST_PAUSE_S:
            self._looked_s[name] = now_s
            self.look(name)

    def process_died(self, number: int) -> None:
        """Take back every canary that runs: it may be what killed the process, and its counts are gone."""
        for order in self._coordinator.orders:
            canary = order.rollout.running
            if canary is not None and order.name not in self._changing:
                reason = f"server process {number} died while the canary ran"
                self._change(order.name, partial(_taken_back, canary, reason), DIED)

    def look(self, name: str) -> None:
        """Judge a model's canary, and take it on or back."""
        if name in self._changing:
            return
        try:
            rollout = self._coordinator.rollout(name)
        except TensorferryError:
            return  # withdrawn meanwhile
        canary = rollout.canary
        if canary is None or not canary.is_running:
            self._steps.pop(name, None)
            return
        reason = self._judged(name, canary)
        if reason:
            self._change(name, partial(_taken_back, canary, reason), GUARD)
        elif self._is_step_over(name, canary):
            self._change(name, partial(_taken_on, canary))

    def _judged(self, name: str, canary: Canary) -> str:
        counts = self._fleet.counts(name)
        stable, own = counts.get(canary.stable_version), counts.get(canary.version)
        if own is None or stable is None:
            return ""
        return judge(canary.guards, stable, own)

    def _is_step_over(self, name: str, canary: Canary) -> bool:
        counts = self._fleet.counts(name).get(canary.version)
        answered = counts.requests if counts is not None else 0
        key = (canary.stable_version, canary.version, canary.step)
        step = self._steps.get(name)
        if step is None or step.key != key or answered < step.answered:
            step = self._steps[name] = _Step(key, self._now_s(), answered)
        return (
            answered - step.answered >= canary.step_requests and self._now_s() - step.began_s >= canary.step_s
        )

    def _change(self, name: str, change: Callable[[Rollout], Rollout], taken_back_for: str = "") -> None:
        # Until it is in force, and no longer: what follows may have to be taken back, too.
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(
            self._coordinator.divert_now(name, change)
        )
        self._changing[name] = task
        task.add_done_callback(partial(self._changed, name, taken_back_for))

    def _changed(self, name: str, taken_back_for: str, task: asyncio.Task[object]) -> None:
        self._changing.pop(name, None)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            _log.error("canary not changed", model=name, reason=str(error))
        elif taken_back_for:
            self._coordinator.rollbacks.add(name, taken_back_for)


def _taken_back(canary: Canary, reason: str, rollout: Rollout) -> Rollout:
    _check_same(canary, rollout)
    return changes.rollback(rollout, reason, _now_ms())


def _taken_on(canary: Canary, rollout: Rollout) -> Rollout:
    _check_same(canary, rollout)
    return changes.advance(rollout, _now_ms())


def _check_same(canary: Canary, rollout: Rollout) -> None:
    """Refuse to change another canary, or another step, than the one that was judged."""
    now = rollout.canary
    if now is None or not now.is_running or (now.version, now.step) != (canary.version, canary.step):
        raise InvalidRequest("the canary has changed meanwhile")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
