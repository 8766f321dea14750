"""What a batcher counts, and the snapshot that metrics, logs and tests read.

Meanings follow Triton's statistics extension: request counts and durations add up over requests
(each request of a batch counts the whole batch's compute time), ``inference_count`` counts rows,
``execution_count`` batches. Durations are in nanoseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tensorferry.errors import Cancelled, DeadlineExceeded, ModelFailed, Overloaded, TensorferryError

__all__ = [
    "FAILURE_REASONS",
    "REFUSAL_REASONS",
    "BatchSizeStatistics",
    "BatcherStatistics",
    "Counters",
    "failure_reason",
]

#: Triton's names for why a request failed; EXPIRED is ours, for a deadline that came in the queue.
FAILURE_REASONS = ("REJECTED", "EXPIRED", "CANCELED", "BACKEND", "OTHER")

#: Why requests are refused without running: two bounds, and two kinds of lateness.
REFUSAL_REASONS = ("max_queue_size", "max_inflight_bytes", "latency_objective", "deadline")


def failure_reason(error: TensorferryError) -> str:
    """Name an error among ``FAILURE_REASONS``."""
    if isinstance(error, Overloaded):
        return "REJECTED"
    if isinstance(error, DeadlineExceeded):
        return "EXPIRED"
    if isinstance(error, Cancelled):
        return "CANCELED"
    if isinstance(error, ModelFailed):
        return "BACKEND"
    return "OTHER"


@dataclass(slots=True)
class BatchSizeStatistics:
    """Runs of one batch size (rows)."""

    count: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """One moment's counts. ``waiting`` and ``running`` are requests now; the rest only grows."""

    waiting: int
    running: int
    success_count: int
    success_ns: int
    failure_count: int
    failure_ns: int
    failures: dict[str, int]
    refusals: dict[str, int]
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    inference_count: int
    execution_count: int
    last_inference_ms: int
    batch_sizes: dict[int, BatchSizeStatistics]


@dataclass(slots=True)
class Counters:
    """The running counts of one batcher, written by it alone."""

    success_count: int = 0
    success_ns: int = 0
    failure_count: int = 0
    failure_ns: int = 0
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURE_REASONS, 0))
    refusals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REFUSAL_REASONS, 0))
    queue_ns: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0
    batch_sizes: dict[int, BatchSizeStatistics] = field(default_factory=dict)

    def failed(self, reason: str, age_s: float) -> None:
        """Count a request that ended without an answer, ``age_s`` after it came."""
        self.failure_count += 1
        self.failure_ns += int(age_s * 1e9)
        self.failures[reason] += 1

    def refused(self, reason: str) -> None:
        """Count why a request was refused, beside counting it as failed."""
        self.refusals[reason] += 1

    def ran(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count a batch that ran well."""
        self.inference_count += rows
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        size = self.batch_sizes.get(rows)
        if size is None:
            size = self.batch_sizes[rows] = BatchSizeStatistics()
        size.count += 1
        size.compute_input_ns += input_ns
        size.compute_infer_ns += infer_ns
        size.compute_output_ns += output_ns

    def answered(
        self, requests: int, queue_s: float, total_s: float, compute_ns: tuple[int, int, int]
    ) -> None:
        """Count the answered requests of one batch; the times in seconds are sums over them."""
        self.success_count += requests
        self.success_ns += int(total_s * 1e9)
        self.queue_ns += int(queue_s * 1e9)
        self.compute_input_ns += requests * compute_ns[0]
        self.compute_infer_ns += requests * compute_ns[1]
        self.compute_output_ns += requests * compute_ns[2]

    def snapshot(self, waiting: int, running: int) -> BatcherStatistics:
        """Freeze the counts."""
        return BatcherStatistics(
            waiting=waiting,
            running=running,
            success_count=self.success_count,
            success_ns=self.success_ns,
            failure_count=self.failure_count,
            failure_ns=self.failure_ns,
            failures=dict(self.failures),
            refusals=dict(self.refusals),
            queue_ns=self.queue_ns,
            compute_input_ns=self.compute_input_ns,
            compute_infer_ns=self.compute_infer_ns,
            compute_output_ns=self.compute_output_ns,
            inference_count=self.inference_count,
            execution_count=self.execution_count,
            last_inference_ms=self.last_inference_ms,
            batch_sizes={
                rows: BatchSizeStatistics(
                    size.count, size.compute_input_ns, size.compute_infer_ns, size.compute_output_ns
                )
                for rows, size in sorted(self.batch_sizes.items())
            },
        )
