"""How a shadow's scores differ from the live version's, as counts."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from tensorferry.rollout.histograms import DIFFERENCE_EDGES, Counts, empty, from_sparse, sparse

__all__ = ["ShadowCounts", "ShadowRecorder"]


@dataclass(frozen=True, slots=True, eq=False)
class ShadowCounts:
    """One moment's counts of a shadow.

    A copy of a request ends as one of: ``compared``, ``errors`` (the shadow failed, or its scores are
    not finite or not as many as the live ones), ``dropped`` (no time or no room for it, or the shadow
    wasn't ready) and ``incompatible`` (the shadow takes other inputs). ``differences`` counts
    |shadow's score - live score| by row.
    """

    compared: int = 0
    errors: int = 0
    dropped: int = 0
    incompatible: int = 0
    differences: Counts = field(default_factory=lambda: empty(DIFFERENCE_EDGES))

    def minus(self, earlier: ShadowCounts) -> ShadowCounts:
        """Return what was counted since ``earlier``, a snapshot of the same shadow."""
        return self._with(earlier, -1)

    def plus(self, other: ShadowCounts) -> ShadowCounts:
        """Return the counts of both, as of two processes."""
        return self._with(other, 1)

    def _with(self, other: ShadowCounts, sign: int) -> ShadowCounts:
        return ShadowCounts(
            self.compared + sign * other.compared,
            self.errors + sign * other.errors,
            self.dropped + sign * other.dropped,
            self.incompatible + sign * other.incompatible,
            self.differences + sign * other.differences,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and a list of them."""
        return {
            "compared": self.compared,
            "errors": self.errors,
            "dropped": self.dropped,
            "incompatible": self.incompatible,
            "differences": sparse(self.differences),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ShadowCounts:
        """Return what ``to_json`` was made of."""
        return cls(
            plain["compared"],
            plain["errors"],
            plain["dropped"],
            plain["incompatible"],
            from_sparse(plain["differences"], DIFFERENCE_EDGES),
        )


class ShadowRecorder:
    """Counts one shadow's comparisons in this process. Owned by the loop thread."""

    def __init__(self) -> None:
        self.compared = self.errors = self.dropped = self.incompatible = 0
        self._differences = array("q", bytes(8 * (len(DIFFERENCE_EDGES) + 1)))

    def compare(self, live: Sequence[float], shadow: Sequence[float]) -> None:
        """Count the difference of each row; scores that can't be compared are an error of the shadow's."""
        differences = [abs(theirs - ours) for ours, theirs in zip(live, shadow, strict=False)]
        total = sum(differences)
        if len(live) != len(shadow) or not isfinite(total):
            self.errors += 1
            return
        self.compared += 1
        for each in differences:
            self._differences[bisect_right(DIFFERENCE_EDGES, each)] += 1

    def snapshot(self) -> ShadowCounts:
        """Return this moment's counts; they don't change any more."""
        return ShadowCounts(
            self.compared,
            self.errors,
            self.dropped,
            self.incompatible,
            np.array(self._differences, dtype=np.int64),
        )

    def __repr__(self) -> str:
        return f"<ShadowRecorder {self.compared} compared, {self.dropped} dropped, {self.errors} errors>"
