"""What a run of load has brought: scores, latencies, failures, batch sizes. Values only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

__all__ = ["Latency", "Outcome", "Record"]

#: Beyond this many failed calls there is nothing more to learn, and each may take its full deadline.
MAX_FAILURES: Final = 50

_LONGEST_US: Final = 60_000_000
_DIGITS: Final = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds, to three digits, over ``count`` calls as the caller saw them."""

    count: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One phase of load.

    ``scores`` (float32) holds the answers in the order they came and ``rows`` (integers, the same
    shape) which transaction each belongs to. ``failures`` counts failed calls by reason, ``batches``
    the batches that the server ran meanwhile by their size in rows, and ``decisions`` what the
    fraud-scoring caller made of its scores (empty without it).
    """

    rows: npt.NDArray[np.intp]
    scores: npt.NDArray[np.float32]
    latency: Latency
    elapsed_s: float
    failures: Mapping[str, int]
    batches: Mapping[int, int]
    decisions: Mapping[str, int]

    @property
    def requests_per_s(self) -> float:
        """Answers per second."""
        return len(self.scores) / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def failed(self) -> int:
        """Calls without an answer from the model."""
        return sum(self.failures.values())


@dataclass(slots=True)
class Record:
    """Collects the calls of one phase; the one writer is the phase's event loop."""

    rows: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    _latency_us: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, _LONGEST_US, _DIGITS))

    def answered(self, row: int, score: float, elapsed_ns: int) -> None:
        """Note an answer and how long it took."""
        self.rows.append(row)
        self.scores.append(score)
        self._latency_us.record_value(min(max(elapsed_ns // 1000, 1), _LONGEST_US))

    def failed(self, reason: str) -> None:
        """Note a call without an answer from the model."""
        self.failures[reason] += 1

    @property
    def is_hopeless(self) -> bool:
        """Whether so many calls have failed that the phase should end."""
        return self.failures.total() >= MAX_FAILURES

    def outcome(self, elapsed_s: float, batches: Mapping[int, int]) -> Outcome:
        """Close the record."""
        return Outcome(
            rows=np.asarray(self.rows, dtype=np.intp),
            scores=np.asarray(self.scores, dtype=np.float32),
            latency=self._latency(),
            elapsed_s=elapsed_s,
            failures=dict(self.failures),
            batches=dict(batches),
            decisions=dict(self.decisions),
        )

    def _latency(self) -> Latency:
        def ms(percentile: float) -> float:
            return float(self._latency_us.get_value_at_percentile(percentile)) / 1000

        return Latency(len(self.rows), ms(50), ms(99), ms(99.9), ms(100))
