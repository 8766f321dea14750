"""When does the ferry leave, with whom, and who is told at once that it won't be in time?

Pure functions of what waits, what is idle, what runs are expected to take, the limits and the
time: no asyncio, no clock, no side effect. The batcher calls them whenever something has changed
and does what they say.

The rule (work-conserving, as Triton's default and the theory of batch queues have it: Inoue,
arXiv 1912.06322): when a stream is idle, leave with whoever is there. What moves the departure
or its size:

* ``max_queue_delay_s``, when stated, holds an unfull batch until its oldest request has waited
  that long, literally. A limit that the hold would miss ends it early.
* ``preferred_batch_sizes`` let a held batch leave early at one of these sizes, and cut a batch
  that leaves on time to the largest that fits.
* Limits (deadlines, the model's latency objective): a batch is cut to the rows that are expected
  to run in time for its most urgent request; ``cut`` says when that request isn't worth it.

A stream on a GPU also takes batches behind the one that it runs; ``follow`` says when one leaves
for such a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tensorferry.batching.record import DEADLINE, FULL, HOLD, IDLE, PREFERRED
from tensorferry.model import ModelSpec

__all__ = [
    "Cut",
    "Decision",
    "ExpectedTimes",
    "Limits",
    "QueueView",
    "Rest",
    "Run",
    "Spare",
    "Wait",
    "cut",
    "decide",
    "follow",
    "limits_of",
]


class ExpectedTimes(Protocol):
    """How long runs are expected to take; ``RunTimes`` is one."""

    def __call__(self, rows: int) -> float:
        """Return the seconds of a run of ``rows``; 0.0 if that isn't known."""
        ...

    def most_rows(self, seconds: float, at_most: int) -> int:
        """Return how many rows, up to ``at_most``, run within ``seconds``; 0 if none."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model's configuration fixes. ``max_rows`` is at least 1."""

    max_rows: int
    max_queue_delay_s: float = 0.0
    preferred_rows: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether whatever waits always leaves at once, with as many rows as fit and are in time.

        ``decide`` says the same then for every queue, so that asking it can be left out.
        """
        return not self.max_queue_delay_s and not self.preferred_rows


def limits_of(spec: ModelSpec) -> Limits:
    """Turn a model's batching settings into the policy's limits."""
    batching = spec.batching
    return Limits(
        max_rows=max(1, spec.max_batch_size) if batching.enabled else 1,
        max_queue_delay_s=(batching.max_queue_delay_us or 0) / 1e6,
        preferred_rows=batching.preferred_batch_sizes,
    )


@dataclass(slots=True)
class QueueView:
    """What waits and could share the next batch: requests of one key, in the order of departure.

    ``rows`` and ``count`` are of the requests that would fit a batch of ``max_rows``, taken
    greedily in order; the first always counts, even where it alone is more. ``is_full`` says that
    the next one wouldn't fit any more, or that ``max_rows`` is reached. Times are instants in
    seconds; ``earliest_limit`` is when the first of these requests must have its answer. ``level`` is
    their priority, 0 the highest.
    """

    count: int
    rows: int
    is_full: bool
    oldest_enqueued_at: float
    earliest_limit: float
    level: int = 0


@dataclass(frozen=True, slots=True)
class Spare:
    """A place behind a batch that runs, where there is one. Both are instants in seconds.

    A batch that leaves at ``follow_at`` is expected to be on the device when the one before it ends;
    infinite where run times aren't known. ``free_at`` is when that is: it runs from then on.
    """

    follow_at: float
    free_at: float


@dataclass(frozen=True, slots=True)
class Run:
    """Leave now, with at most this many rows; ``reason`` is one of ``record.DEPARTURES``."""

    rows: int
    reason: str = IDLE


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at this instant, or when something changes before."""

    until: float


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do until something changes."""


Decision = Run | Wait | Rest

_NEVER: Final = float("inf")
_WORTH_SKIPPING: Final = 1.1

_REST = Rest()


def decide(
    queue: QueueView,
    idle_streams: int,
    limits: Limits,
    now: float,
    expected_s: Callable[[int], float] | None = None,
) -> Decision:
    """Say what to do with the head of the queue. See the module's text for the rule.

    ``expected_s`` gives the seconds of a run by its rows; None or 0.0 where it isn't known.
    """
    if not queue.count or not idle_streams:
        return _REST
    if queue.is_full or not limits.max_queue_delay_s:
        return Run(_preferred_cut(queue.rows, limits), FULL if queue.is_full else IDLE)
    if queue.rows in limits.preferred_rows:
        return Run(queue.rows, PREFERRED)
    reason = HOLD
    leave_at = queue.oldest_enqueued_at + limits.max_queue_delay_s
    # A hold is there to gain company; one that outlasts a limit only loses a passenger.
    run_s = expected_s(queue.rows) if expected_s else 0.0
    if queue.earliest_limit < leave_at + run_s:
        # Half of what is left goes to the run, for want of knowing how long it takes.
        latest = (queue.oldest_enqueued_at + queue.earliest_limit) / 2
        leave_at = min(leave_at, queue.earliest_limit - run_s if run_s else latest)
        reason = DEADLINE
    if now >= leave_at:
        return Run(_preferred_cut(queue.rows, limits), reason)
    return Wait(leave_at)


def follow(
    queue: QueueView, limits: Limits, now: float, spare: Spare, expected_s: Callable[[int], float]
) -> Decision:
    """Say what to do with the head of the queue when no stream is idle, but one has a place to spare.

    In such a place a batch's inputs are copied while the batch before it runs, so that the stream goes
    from one to the next without a pause. But whoever comes later can't join it any more. Batches that
    leave too early are small, and what the stream gains by the overlap it loses by running more of
    them. So an unfull batch stays until ``spare.follow_at``: then there is nothing left to gain by
    waiting. A full one can't grow, and leaves at once, unless

    * it is below the highest priority: somebody may come who goes before it;
    * it would be late, and is to be cut: who is in it is settled when it has to be.

    What would hold the batch if a stream were idle (``decide``) holds it here as well.
    """
    decision = decide(queue, 1, limits, max(now, spare.follow_at), expected_s)
    if now >= spare.follow_at or not isinstance(decision, Run):
        return decision
    is_settled = queue.is_full and not queue.level
    if is_settled and spare.free_at + expected_s(queue.rows) <= queue.earliest_limit:
        return decision
    return Wait(spare.follow_at)


@dataclass(frozen=True, slots=True)
class Cut:
    """Which of those in line make up the next batch: ``rows`` rows after the first ``skipped`` requests."""

    skipped: int
    rows: int


def cut(line: Sequence[tuple[float, int]], now: float, most: int, expected: ExpectedTimes) -> Cut:
    """Choose the batch that answers most rows in time for each second that it takes the stream.

    ``line`` holds (limit, rows) of those who wait for this batch, most urgent first, and isn't
    empty; ``most`` is the largest batch. The limit of the first passenger bounds the batch's size,
    so passing over one who is nearly late may let ten times as many leave on time.

    What is tried: leaving at once with the first in line, and without the first 1, 2, 4, ...: the
    best size lies within a factor of two of one that was tried. Passing over somebody must be
    worth ``_WORTH_SKIPPING`` of the rate.
    """
    best, best_rate = Cut(0, most), 0.0
    waiting = sum([rows for _, rows in line])
    skipped = 0
    while skipped < len(line):
        limit, first_rows = line[skipped]
        at_most = max(first_rows, min(most, waiting))
        rows = at_most if limit == _NEVER else expected.most_rows(limit - now, at_most)
        if rows >= first_rows:
            rate = rows / expected(rows)
            if rate > best_rate * _WORTH_SKIPPING:
                best, best_rate = Cut(skipped, rows), rate
            if rows == at_most:
                break  # passing over more would only make it smaller
        step = max(1, skipped)
        waiting -= sum([rows for _, rows in line[skipped : skipped + step]])
        skipped += step
    return best


def _preferred_cut(rows: int, limits: Limits) -> int:
    fitting = [size for size in limits.preferred_rows if size <= rows]
    return max(fitting) if fitting else rows
