"""Counts what was taken back: a canary, a split, or a version that had become stable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["ASKED", "DIED", "GUARD", "Rollbacks"]

#: Why: a guard broke, a server process died while the canary ran, or somebody asked for it.
GUARD: Final = "guard"
DIED: Final = "process_died"
ASKED: Final = "asked"
_REASONS: Final = (GUARD, DIED, ASKED)


class Rollbacks:
    """How often each model's rollout was taken back, by reason. Used on the coordinator's loop thread."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, reason: str) -> None:
        """Count one that is in force."""
        self._counts[name, reason] += 1

    def counts(self, names: Iterable[str]) -> Mapping[tuple[str, str], int]:
        """Return the counts of some models by (model, reason); 0 from the start, so that one shows."""
        return {(name, reason): self._counts[name, reason] for name in names for reason in _REASONS}
