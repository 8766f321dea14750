"""What became of one version's requests during a rollout, as counts.

``ArmRecorder`` counts in one process, on the loop thread. ``ArmCounts`` is one moment of it: it adds up
over processes, subtracts over time, and travels through a pipe. An arm is a version with its part of
the requests.

What counts as what, by its outcome:

============================================  ==================================================
answer, all scores finite                     a request; its latency; its scores
answer with a NaN or infinite score           a request; its latency; ``not_finite``; no scores
``ModelFailed``, and what else is INTERNAL    a request; an error
deadline passed; refused for overload         a request; ``late``: slower than any that answered
the caller's fault, or cancelled by it        nothing
version or server on its way out              nothing
============================================  ==================================================

A late request is no error: a caller in a hurry or a full server may be the reason, and both arms get
their part of those. But it can't count for nothing: a version too slow for its callers' deadlines
is refused work as soon as the server has learned its run time, and would look perfect.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tensorferry.errors import Cancelled, DeadlineExceeded, Overloaded, RequestError, Unavailable
from tensorferry.rollout.histograms import (
    LATENCY_EDGES_S,
    SCORE_EDGES,
    Counts,
    empty,
    from_sparse,
    sparse,
)
from tensorferry.rollout.score_memory import ScoreMemory

__all__ = ["ArmCounts", "ArmRecorder", "Scores", "is_fault", "is_late", "merged"]

#: The scores of a request's rows: a view of FP32 or FP64, or a list.
Scores = Sequence[float] | memoryview | npt.NDArray[np.floating[Any]]

#: Above so many rows, numpy's 15 us are less than a loop's 0.7 us a row; measured.
_MANY_ROWS: Final = 20

_LATE: Final = len(LATENCY_EDGES_S)


def is_fault(error: BaseException) -> bool:
    """Whether an error is the version's or the server's: what a caller sees as INTERNAL."""
    return not isinstance(error, RequestError | Overloaded | Unavailable | DeadlineExceeded | Cancelled)


def is_late(error: BaseException) -> bool:
    """Whether an error says that the answer would come, or came, too late."""
    return isinstance(error, Overloaded | DeadlineExceeded)


@dataclass(frozen=True, slots=True, eq=False)
class ArmCounts:
    """One moment's counts of an arm. ``latencies`` and ``scores`` are in the buckets of ``histograms``.

    ``requests`` are all that count: answered, failed (``errors``) and ``late``. ``latencies`` holds
    the answered by their time, and the late in its last bucket. ``score_count`` and ``score_sum`` are
    over rows.
    """

    requests: int = 0
    errors: int = 0
    not_finite: int = 0
    late: int = 0
    score_count: int = 0
    score_sum: float = 0.0
    latencies: Counts = field(default_factory=lambda: empty(LATENCY_EDGES_S))
    scores: Counts = field(default_factory=lambda: empty(SCORE_EDGES))

    @property
    def failures(self) -> int:
        """Requests whose answer is of no use: failed, or not finite."""
        return self.errors + self.not_finite

    @property
    def scored(self) -> int:
        """Requests whose scores are counted, be they of one row or many."""
        return min(self.score_count, self.requests - self.failures - self.late)

    def minus(self, earlier: ArmCounts) -> ArmCounts:
        """Return what was counted since ``earlier``, a snapshot of the same arm."""
        return self._with(earlier, -1)

    def plus(self, other: ArmCounts) -> ArmCounts:
        """Return the counts of both."""
        return self._with(other, 1)

    def _with(self, other: ArmCounts, sign: int) -> ArmCounts:
        return ArmCounts(
            self.requests + sign * other.requests,
            self.errors + sign * other.errors,
            self.not_finite + sign * other.not_finite,
            self.late + sign * other.late,
            self.score_count + sign * other.score_count,
            self.score_sum + sign * other.score_sum,
            self.latencies + sign * other.latencies,
            self.scores + sign * other.scores,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and lists of them, as a pipe or a file takes."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "not_finite": self.not_finite,
            "late": self.late,
            "score_count": self.score_count,
            "score_sum": self.score_sum,
            "latencies": sparse(self.latencies),
            "scores": sparse(self.scores),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> ArmCounts:
        """Return what ``to_json`` was made of."""
        return cls(
            plain["requests"],
            plain["errors"],
            plain["not_finite"],
            plain["late"],
            plain["score_count"],
            plain["score_sum"],
            from_sparse(plain["latencies"], LATENCY_EDGES_S),
            from_sparse(plain["scores"], SCORE_EDGES),
        )


def merged(a: ArmCounts, b: ArmCounts) -> ArmCounts:
    """Return the counts of both, as of two processes that serve one version."""
    return a.plus(b)


class ArmRecorder:
    """Counts one version's outcomes in this process. Owned by the loop thread.

    ``memory`` holds the scores that labels may be fed back for.
    """

    def __init__(self, memory: ScoreMemory | None = None) -> None:
        self.memory = memory if memory is not None else ScoreMemory()
        #: All requests that count.
        self.requests = 0
        self._errors = self._not_finite = self._late = 0
        self._score_count = 0
        self._score_sum = 0.0
        # An array counts in 50 ns, a numpy array in 100; numpy views these for many rows and snapshots.
        self._latencies = array("q", bytes(8 * (len(LATENCY_EDGES_S) + 1)))
        self._scores = array("q", bytes(8 * (len(SCORE_EDGES) + 1)))
        self._scores_view: Counts = np.frombuffer(self._scores, dtype=np.int64)

    def record(self, latency_s: float, scores: Scores, key: bytes = b"") -> bool:
        """Count an answer: its latency in seconds, and the scores of all its rows (there may be none).

        ``key`` is what the caller may feed labels back by; the score of a request of one row is
        remembered under it. Returns whether all scores are finite.
        """
        self.requests += 1
        self._latencies[bisect_right(LATENCY_EDGES_S, latency_s, 0, _LATE - 1)] += 1
        rows = len(scores)
        if rows > _MANY_ROWS:
            return self._count_many(np.asarray(scores, dtype=np.float64))
        total = sum(scores)
        # The sum is looked at first because it is one number; finite scores may add up to infinity.
        if not isfinite(total) and not all(isfinite(score) for score in scores):
            self._not_finite += 1
            return False
        self._score_count += rows
        self._score_sum += total
        for score in scores:
            self._scores[bisect_right(SCORE_EDGES, score)] += 1
        if key and rows == 1:
            self.memory.remember(key, total)
        return True

    def record_error(self) -> None:
        """Count a request that failed by the version's or the server's fault."""
        self.requests += 1
        self._errors += 1

    def record_late(self) -> None:
        """Count a request that got no answer in time: refused for overload, or its deadline passed."""
        self.requests += 1
        self._late += 1
        self._latencies[_LATE] += 1

    def snapshot(self) -> ArmCounts:
        """Return this moment's counts; they don't change any more."""
        return ArmCounts(
            self.requests,
            self._errors,
            self._not_finite,
            self._late,
            self._score_count,
            self._score_sum,
            np.array(self._latencies, dtype=np.int64),
            self._scores_view.copy(),
        )

    def _count_many(self, scores: npt.NDArray[np.float64]) -> bool:
        if not np.isfinite(scores).all():
            self._not_finite += 1
            return False
        self._score_count += len(scores)
        self._score_sum += float(scores.sum())
        np.add.at(self._scores_view, np.searchsorted(_SCORE_EDGES, scores, side="right"), 1)
        return True

    def __repr__(self) -> str:
        return f"<ArmRecorder {self.requests} requests, {self._errors} errors, {self._not_finite} not finite>"


_SCORE_EDGES: Final = np.array(SCORE_EDGES)
