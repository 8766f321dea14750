"""When does the ferry leave, and with whom? The decision, and nothing else.

A pure function of what waits, what is idle, the limits and the time: no asyncio, no clock, no
side effect. The batcher calls it whenever something has changed and does what it says.

The rule (work-conserving, as Triton's default and the theory of batch queues have it: Inoue,
arXiv 1912.06322): when a stream is idle, leave with whoever is there. Two settings of the model's
owner move the departure:

* ``max_queue_delay_s``, when stated, holds an unfull batch until its oldest request has waited
  that long, literally. A deadline that the hold would miss ends it early.
* ``preferred_batch_sizes`` let a held batch leave early at one of these sizes, and cut a batch
  that leaves on time to the largest that fits.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Decision", "Limits", "QueueView", "Rest", "Run", "Wait", "decide"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model's configuration fixes. ``max_rows`` is at least 1."""

    max_rows: int
    max_queue_delay_s: float = 0.0
    preferred_rows: tuple[int, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether whatever waits always leaves at once, with as many rows as fit.

        ``decide`` says the same then for every queue, so that asking it can be left out.
        """
        return not self.max_queue_delay_s and not self.preferred_rows


@dataclass(slots=True)
class QueueView:
    """What waits and could share the next batch: requests of one key, in the order of departure.

    ``rows`` and ``count`` are of the requests that would fit a batch of ``max_rows``, taken
    greedily in order; the first always counts, even where it alone is more. ``is_full`` says that
    the next one wouldn't fit any more, or that ``max_rows`` is reached. Times are instants in
    seconds.
    """

    count: int
    rows: int
    is_full: bool
    oldest_enqueued_at: float
    earliest_deadline: float


@dataclass(frozen=True, slots=True)
class Run:
    """Leave now, with at most this many rows."""

    rows: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at this instant, or when something changes before."""

    until: float


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do until something changes."""


Decision = Run | Wait | Rest

_REST = Rest()


def decide(queue: QueueView, idle_streams: int, limits: Limits, now: float) -> Decision:
    """Say what to do with the head of the queue. See the module's text for the rule."""
    if not queue.count or not idle_streams:
        return _REST
    if queue.is_full or not limits.max_queue_delay_s:
        return Run(_preferred_cut(queue.rows, limits))
    if queue.rows in limits.preferred_rows:
        return Run(queue.rows)
    leave_at = queue.oldest_enqueued_at + limits.max_queue_delay_s
    # A hold is there to gain company; one that outlasts a deadline only loses a passenger.
    # Half of what is left goes to the run, for want of knowing how long it takes.
    if queue.earliest_deadline < leave_at:
        leave_at = (queue.oldest_enqueued_at + queue.earliest_deadline) / 2
    if now >= leave_at:
        return Run(_preferred_cut(queue.rows, limits))
    return Wait(leave_at)


def _preferred_cut(rows: int, limits: Limits) -> int:
    fitting = [size for size in limits.preferred_rows if size <= rows]
    return max(fitting) if fitting else rows
