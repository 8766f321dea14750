"""What a batcher counts, and the snapshot that metrics, logs and tests read.

Meanings follow Triton's statistics extension: request counts and durations add up over requests
(each request of a batch counts the whole batch's compute time), ``inference_count`` counts rows,
``execution_count`` batches. Durations are in nanoseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tensorferry.batching.batch import Batch
from tensorferry.batching.histogram import Histogram
from tensorferry.batching.record import DEPARTURES, BatchRecord
from tensorferry.errors import Cancelled, DeadlineExceeded, ModelFailed, Overloaded, TensorferryError
from tensorferry.model import RunResult

__all__ = [
    "FAILURE_REASONS",
    "REFUSAL_REASONS",
    "BatchSizeStatistics",
    "BatcherStatistics",
    "Counters",
    "Histograms",
    "compute_of",
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


def compute_of(record: BatchRecord) -> tuple[int, int, int]:
    """Return the nanoseconds of input, infer and output that a request of the batch has counted.

    Together they are all the time since the batch left. What isn't the run's own goes to the outputs: it
    is spent on the way back, above all.
    """
    result = record.result
    input_ns, infer_ns = result.input_ns, result.infer_ns
    rest_ns = int((record.ended_at - record.started_at) * 1e9) - input_ns - infer_ns
    return input_ns, infer_ns, max(rest_ns, result.output_ns)


@dataclass(slots=True)
class BatchSizeStatistics:
    """Runs of one batch size (rows)."""

    count: int = 0
    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0


class Histograms:
    """Distributions: of requests' waits and response times, of batches' holds and runs."""

    __slots__ = ("hold", "queue", "response", "run")

    def __init__(self) -> None:
        self.queue = Histogram()
        self.hold = Histogram()
        self.run = Histogram()
        self.response = Histogram()

    def copy(self) -> Histograms:
        """Return the counts of this moment."""
        other = Histograms()
        other.queue, other.hold = self.queue.copy(), self.hold.copy()
        other.run, other.response = self.run.copy(), self.response.copy()
        return other


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """One moment's counts. ``waiting`` and ``running`` are requests now; the rest only grows.

    ``success_ns`` is the sum of the four parts: ``queue_ns``, until the batch left, and the three of
    ``compute``, of which the last holds all that comes between the end of the run and the answer.
    ``late_count`` is of answers that came after the request's deadline or the model's objective.
    """

    waiting: int
    running: int
    success_count: int
    success_ns: int
    failure_count: int
    failure_ns: int
    failures: dict[str, int]
    refusals: dict[str, int]
    departures: dict[str, int]
    late_count: int
    queue_ns: int
    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int
    inference_count: int
    execution_count: int
    last_inference_ms: int
    true_elements: int
    padded_elements: int
    batch_sizes: dict[int, BatchSizeStatistics]
    histograms: Histograms | None


class Counters:
    """The running counts of one batcher, written by it alone."""

    def __init__(self, has_histograms: bool = True) -> None:
        self.success_count = 0
        self.success_ns = 0
        self.failure_count = 0
        self.failure_ns = 0
        self.failures = dict.fromkeys(FAILURE_REASONS, 0)
        self.refusals = dict.fromkeys(REFUSAL_REASONS, 0)
        self.departures = dict.fromkeys(DEPARTURES, 0)
        self.late_count = 0
        self.queue_ns = 0
        self.compute_input_ns = 0
        self.compute_infer_ns = 0
        self.compute_output_ns = 0
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference_ms = 0
        self.true_elements = 0
        self.padded_elements = 0
        self.batch_sizes: dict[int, BatchSizeStatistics] = {}
        self.histograms = Histograms() if has_histograms else None

    def failed(self, reason: str, age_s: float) -> None:
        """Count a request that ended without an answer, ``age_s`` after it came."""
        self.failure_count += 1
        self.failure_ns += int(age_s * 1e9)
        self.failures[reason] += 1

    def refused(self, reason: str) -> None:
        """Count why a request was refused, beside counting it as failed."""
        self.refusals[reason] += 1

    def ran(self, batch: Batch, result: RunResult, ended_at: float, stream: int = 0) -> BatchRecord:
        """Count a batch that ran well, and return the record of it for its requests."""
        self.departures[batch.reason] += 1
        if batch.length:
            self.true_elements += batch.true_elements
            self.padded_elements += batch.padded_elements
        self.executed(batch.rows, result)
        if self.histograms is not None:
            self.histograms.hold.add(batch.hold_s)
            self.histograms.run.add((result.input_ns + result.infer_ns + result.output_ns) / 1e9)
        return BatchRecord(batch, result, ended_at, stream)

    def executed(self, rows: int, result: RunResult | None = None) -> None:
        """Count an execution of ``rows``, and its durations where they are known."""
        self.inference_count += rows
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        size = self.batch_sizes.get(rows)
        if size is None:
            size = self.batch_sizes[rows] = BatchSizeStatistics()
        size.count += 1
        if result is not None:
            size.compute_input_ns += result.input_ns
            size.compute_infer_ns += result.infer_ns
            size.compute_output_ns += result.output_ns

    def answered(self, waits_s: list[float], late: int, record: BatchRecord) -> None:
        """Count the answered requests of one batch by how long each waited, in seconds."""
        requests = len(waits_s)
        taken_s = record.ended_at - record.started_at
        input_ns, infer_ns, output_ns = compute_of(record)
        waited_s = waits_s[0] if requests == 1 else sum(waits_s)
        queue_ns = int(waited_s * 1e9)
        self.success_count += requests
        self.late_count += late
        self.success_ns += queue_ns + requests * (input_ns + infer_ns + output_ns)
        self.queue_ns += queue_ns
        self.compute_input_ns += requests * input_ns
        self.compute_infer_ns += requests * infer_ns
        self.compute_output_ns += requests * output_ns
        if self.histograms is None or not requests:
            return
        if requests == 1:
            self.histograms.queue.add(waited_s)
            self.histograms.response.add(waited_s + taken_s)
        else:
            self.histograms.queue.add_all(waits_s, waited_s)
            self.histograms.response.add_all(waits_s, waited_s, taken_s)

    def answered_whole(self, rows: int, age_s: float, compute: RunResult, is_late: bool = False) -> None:
        """Count a request that was answered by the runs of others, ``age_s`` after it came.

        ``compute`` has their durations together; what is more of them than of the request's own time is
        that of runs which began before it came. The rest of its time is counted as waiting.
        """
        left_ns = age_ns = int(age_s * 1e9)
        parts_ns = []
        for part_ns in (compute.input_ns, compute.infer_ns, compute.output_ns):
            parts_ns.append(min(part_ns, left_ns))
            left_ns -= parts_ns[-1]
        self.executed(rows, RunResult([], parts_ns[0], parts_ns[1], parts_ns[2]))
        self.queue_ns += left_ns
        self.compute_input_ns += parts_ns[0]
        self.compute_infer_ns += parts_ns[1]
        self.compute_output_ns += parts_ns[2]
        self.answered_alone(age_s, is_late)
        assert age_ns == left_ns + sum(parts_ns)

    def answered_alone(self, age_s: float, is_late: bool = False) -> None:
        """Count a request that was answered ``age_s`` after it came, not by a batch of its own."""
        self.success_count += 1
        self.success_ns += int(age_s * 1e9)
        self.late_count += is_late
        if self.histograms is not None:
            self.histograms.response.add(age_s)

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
            departures=dict(self.departures),
            late_count=self.late_count,
            queue_ns=self.queue_ns,
            compute_input_ns=self.compute_input_ns,
            compute_infer_ns=self.compute_infer_ns,
            compute_output_ns=self.compute_output_ns,
            inference_count=self.inference_count,
            execution_count=self.execution_count,
            last_inference_ms=self.last_inference_ms,
            true_elements=self.true_elements,
            padded_elements=self.padded_elements,
            batch_sizes={
                rows: BatchSizeStatistics(
                    size.count, size.compute_input_ns, size.compute_infer_ns, size.compute_output_ns
                )
                for rows, size in sorted(self.batch_sizes.items())
            },
            histograms=None if self.histograms is None else self.histograms.copy(),
        )
