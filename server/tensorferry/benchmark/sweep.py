"""The search for the highest throughput within an objective: doubling, then bisecting.

A step that misses is run again before it is believed: what disturbs a measurement only ever makes it
worse. Throughput need not grow with the level, nor must a low level be within the objective because a
higher one is (a batcher that waits for more calls is slow when there are few): so the answer is the
step of the highest throughput among those that were within, and it is run a second time, for the figures
that are told: the first was chosen for being high, by chance as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["Outcome", "Range", "Step", "search"]

#: Levels from the lowest on that may miss before the search gives up.
_PATIENCE_LEVELS: Final = 3


class Outcome(Protocol):
    """What the search needs to know of a measurement."""

    @property
    def is_within(self) -> bool:
        """Whether it kept the objective, without errors."""

    @property
    def calls_per_s(self) -> float:
        """Its throughput."""


T = TypeVar("T", bound=Outcome)


@dataclass(frozen=True, slots=True)
class Range:
    """Levels to search, both ends included. ``is_whole``: a concurrency, else a rate.

    Bisecting ends when the levels are closer than ``resolution`` of the lower one, or
    after ``most_bisections``.
    """

    low: float
    high: float
    is_whole: bool
    resolution: float = 0.05
    most_bisections: int = 6

    def doubled(self) -> Iterator[float]:
        """Yield the low end, doubled up to the high end."""
        level = self.low
        while level < self.high:
            yield level
            level *= 2
        yield self.high

    def between(self, low: float, high: float) -> float | None:
        """Return the level to try next; None if the two are close enough."""
        if high - low <= max(self.resolution * low, 1.0 if self.is_whole else 0.0):
            return None
        middle = (low + high) / 2
        return float(int(middle)) if self.is_whole else round(middle, 1)


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """A level and its measurement; ``attempt`` is 1, or more where the level was run again."""

    level: float
    attempt: int
    outcome: T


def search(
    measure: Callable[[float, int], T | None], levels: Range, note: Callable[[Step[T]], None]
) -> Step[T] | None:
    """Return the best step, or None if no level kept the objective.

    ``measure`` is given a level and the attempt, and returns None to end the search early: then the
    answer is the best so far. ``note`` is told of every step.
    """
    run = _Search(measure, note)
    run.double_and_bisect(levels)
    return run.confirmed()


class _Search(Generic[T]):
    def __init__(self, measure: Callable[[float, int], T | None], note: Callable[[Step[T]], None]) -> None:
        self._measure = measure
        self._note = note
        self._within: list[Step[T]] = []
        self._attempts: dict[float, int] = {}
        self._ended = False

    def double_and_bisect(self, levels: Range) -> None:
        low, high = 0.0, 0.0
        for tried, level in enumerate(levels.doubled(), 1):
            if self._keeps(level):
                low = level
            elif low or tried >= _PATIENCE_LEVELS:
                high = level
                break
            if self._ended:
                return
        if not low or not high:
            return
        for _ in range(levels.most_bisections):
            middle = levels.between(low, high)
            if middle is None or self._ended:
                return
            if self._keeps(middle):
                low = middle
            else:
                high = middle

    def confirmed(self) -> Step[T] | None:
        """Return the second run of the step of the highest throughput that is within in both."""
        best_first = sorted(self._within, key=lambda each: each.outcome.calls_per_s, reverse=True)
        for each in best_first:
            again = None if self._ended else self._run(each.level)
            if again is None:
                return each
            if again.outcome.is_within:
                return again
        return None

    def _keeps(self, level: float) -> bool:
        for _ in range(2):
            step = self._run(level)
            if step is None:
                return False
            if step.outcome.is_within:
                self._within.append(step)
                return True
        return False

    def _run(self, level: float) -> Step[T] | None:
        if self._ended:
            return None
        self._attempts[level] = attempt = self._attempts.get(level, 0) + 1
        outcome = self._measure(level, attempt)
        if outcome is None:
            self._ended = True
            return None
        step = Step(level, attempt, outcome)
        self._note(step)
        return step
