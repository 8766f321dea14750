"""What the fraud-scoring caller says: scores, decisions, and where they came from. No calls here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from math import nan

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Decision",
    "FallbackPolicy",
    "Reason",
    "Scored",
    "ScorerStatistics",
    "Source",
    "Thresholds",
    "fallback_scores",
]


class Decision(Enum):
    """What to do with a transaction."""

    APPROVE = "approve"
    REVIEW = "review"
    DECLINE = "decline"


class Source(StrEnum):
    """Who decided."""

    MODEL = "model"
    FALLBACK = "fallback"


class Reason(StrEnum):
    """Why the fallback decided.

    ``SERVER_AWAY``: no connection, or a server or model that isn't ready; also every call that the
    circuit breaker held back. ``REFUSED``: a server at work took the request for wrong or had no room.
    ``BAD_ANSWER``: the model failed, or returned other than one finite score for each row.
    """

    BUDGET_SPENT = "budget spent"
    SERVER_AWAY = "server away"
    REFUSED = "refused"
    BAD_ANSWER = "bad answer"


#: Without the model: either one decision for all, or a score for a row of features (float32) that the
#: thresholds then judge. It runs on the event loop and must not block; what it raises, ``score`` raises.
FallbackPolicy = Decision | Callable[[NDArray[np.float32]], float]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where scores turn into decisions: below ``review`` approve, from ``decline`` on decline."""

    review: float = 0.5
    decline: float = 0.9

    def __post_init__(self) -> None:
        if not self.review <= self.decline:
            raise ValueError(
                f"review is {self.review} and decline {self.decline}; decline can't be the lower"
            )

    def decide(self, score: float) -> Decision:
        """Return the decision for a score; a NaN is for a person to look at."""
        if score >= self.decline:
            return Decision.DECLINE
        return Decision.APPROVE if score < self.review else Decision.REVIEW


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer for one transaction, or for several that were asked about together.

    Attributes:
        scores: One for each row; NaN where the fallback is a fixed decision.
        decisions: One for each row.
        source: Who decided.
        reason: Why not the model; None if it was the model.
        elapsed_ms: From the call of ``score`` to the answer.
    """

    scores: tuple[float, ...]
    decisions: tuple[Decision, ...]
    source: Source
    reason: Reason | None
    elapsed_ms: float

    @property
    def score(self) -> float:
        """The score of the one row.

        Raises:
            ValueError: there are several; see ``scores``.
        """
        return self.scores[self._only_row()]

    @property
    def decision(self) -> Decision:
        """The decision for the one row.

        Raises:
            ValueError: there are several; see ``decisions``.
        """
        return self.decisions[self._only_row()]

    def _only_row(self) -> int:
        if len(self.scores) != 1:
            raise ValueError(f"{len(self.scores)} rows were scored; read `scores` and `decisions`")
        return 0


@dataclass(frozen=True, slots=True)
class ScorerStatistics:
    """Counts since the scorer was made, and how things stand.

    Attributes:
        by_source: Calls of ``score`` by who decided.
        by_reason: Calls that the fallback decided, by reason.
        held_back: Those among them that weren't sent because the circuit breaker was open.
        is_open: Whether it is open now.
        last_trouble: What the last failure said; empty if there was none.
    """

    by_source: Mapping[Source, int]
    by_reason: Mapping[Reason, int]
    held_back: int
    is_open: bool
    last_trouble: str


def fallback_scores(
    policy: FallbackPolicy, thresholds: Thresholds, rows: NDArray[np.float32]
) -> tuple[tuple[float, ...], tuple[Decision, ...]]:
    """Return scores and decisions for ``rows`` (n, features) without the model."""
    if isinstance(policy, Decision):
        return (nan,) * len(rows), (policy,) * len(rows)
    scores = tuple(float(policy(row)) for row in rows)
    return scores, tuple(thresholds.decide(score) for score in scores)
