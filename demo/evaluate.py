"""Judge scores: how well they rank fraud, and whether two ways of computing them agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCE", "Agreement", "agreement", "roc_auc"]

#: How far a served score may lie from the offline one. A matrix product over another number of
#: rows may add up in another order, which moves the last bits of a float32 (2**-24 is 6e-8).
TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Agreement:
    """How ``compared`` served scores stand to the offline ones."""

    compared: int
    identical: int
    max_difference: float

    @property
    def holds(self) -> bool:
        """Whether every score is within ``TOLERANCE``. Nothing compared, or a NaN, is no agreement."""
        return self.compared > 0 and self.max_difference <= TOLERANCE


def roc_auc(scores: npt.NDArray[np.float32], is_positive: npt.NDArray[np.bool_]) -> float:
    """Return the chance that a random positive scores above a random negative; a tie counts half.

    Both arrays have shape (rows,). Raises ValueError without at least one of each kind.
    """
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if not positives or not negatives:
        raise ValueError(f"AUC needs both kinds: {positives} positives, {negatives} negatives")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(sizes)
    mean_rank = last_rank - (sizes - 1) / 2  # ranks count from 1; equal scores share their mean
    rank_sum = mean_rank[group][is_positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def agreement(served: npt.NDArray[np.float32], offline: npt.NDArray[np.float32]) -> Agreement:
    """Compare two float32 arrays of shape (rows,), bit for bit and by absolute difference."""
    identical = int((served.view(np.uint32) == offline.view(np.uint32)).sum())
    difference = np.abs(served.astype(np.float64) - offline.astype(np.float64))
    return Agreement(len(served), identical, float(difference.max()) if len(served) else 0.0)
