"""The requests that wait for one model.

Invariants:

1. Only the batcher touches it, on the loop thread.
2. ``count`` and ``byte_size`` are of the requests in state WAITING. A request that was cancelled or
   has expired stays in its lane as a dead entry until it reaches the front or a sweep removes it.
3. A lane holds requests of one key, in order of arrival; a lane with no entry doesn't exist.
4. Dead entries never outnumber the living by more than ``_SWEEP_SLACK``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from tensorferry.batching.pending import DONE, NEVER, Pending
from tensorferry.batching.policy import QueueView

__all__ = ["Key", "WaitingQueue"]

#: Sweeping costs a pass over the queue; this many dead entries are cheaper to keep.
_SWEEP_SLACK: Final = 256

#: What requests must have in common to share a batch; see ``tensorferry.model.Bound``.
Key = tuple[tuple[str, tuple[int, ...]], ...]


class WaitingQueue:
    """Requests in lanes by what they may share a batch with."""

    __slots__ = ("_dead", "_lanes", "byte_size", "count")

    def __init__(self) -> None:
        self._lanes: dict[Key, deque[Pending]] = {}
        self._dead = 0
        self.count = 0
        self.byte_size = 0

    def push(self, request: Pending) -> None:
        """Append a waiting request."""
        key = request.bound.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = deque()
        lane.append(request)
        self.count += 1
        self.byte_size += request.byte_size

    def forget(self, request: Pending) -> None:
        """Account for a waiting request that just got its outcome without running."""
        self.count -= 1
        self.byte_size -= request.byte_size
        self._dead += 1
        if self._dead > self.count + _SWEEP_SLACK:
            self._sweep()

    def oldest_key(self) -> Key | None:
        """Return the key of the lane with the oldest request; None if nothing waits."""
        if self._dead:
            for key in list(self._lanes):
                self._drop_dead_heads(key)
        if len(self._lanes) <= 1:
            return next(iter(self._lanes), None)
        return min(self._lanes, key=self._head_enqueued_at)

    def keys_by_age(self) -> Iterator[Key]:
        """Yield the key of each lane, the lane with the oldest request first. Take from none meanwhile."""
        oldest = self.oldest_key()
        if oldest is None:
            return
        yield oldest
        # Mostly the first may leave, and the order of the others doesn't matter.
        yield from sorted((key for key in self._lanes if key != oldest), key=self._head_enqueued_at)

    def view(self, key: Key, max_rows: int) -> QueueView:
        """Describe a lane's next batch of at most ``max_rows`` rows. ``key`` is one of ``keys_by_age``."""
        lane = self._lanes[key]
        count = rows = 0
        earliest = NEVER
        for request in lane:
            if request.state == DONE:
                continue
            total = rows + request.bound.rows
            if count and total > max_rows:
                return QueueView(count, rows, True, lane[0].enqueued_at, earliest)
            rows = total
            count += 1
            if request.deadline < earliest:
                earliest = request.deadline
            if rows == max_rows:
                break
        return QueueView(count, rows, rows >= max_rows, lane[0].enqueued_at, earliest)

    def take(self, key: Key, max_rows: int) -> list[Pending]:
        """Remove and return a lane's next batch: in order, up to ``max_rows`` rows, at least one request."""
        lane = self._lanes[key]
        taken: list[Pending] = []
        rows = 0
        while lane:
            request = lane[0]
            if request.state == DONE:
                lane.popleft()
                self._dead -= 1
                continue
            rows += request.bound.rows
            if taken and rows > max_rows:
                break
            taken.append(lane.popleft())
            self.byte_size -= request.byte_size
        self.count -= len(taken)
        if not lane:
            del self._lanes[key]
        return taken

    def expired(self, now: float) -> list[Pending]:
        """Return the waiting requests whose deadline has come. They stay; fail and ``forget`` each."""
        return [request for request in self.waiting() if request.deadline <= now]

    def earliest_deadline(self) -> float:
        """Return the nearest deadline of all that wait; NEVER if there is none. Costs a pass."""
        return min((request.deadline for request in self.waiting()), default=NEVER)

    def waiting(self) -> list[Pending]:
        """Return everything that waits, lane by lane."""
        return [request for lane in self._lanes.values() for request in lane if request.state != DONE]

    def _head_enqueued_at(self, key: Key) -> float:
        return self._lanes[key][0].enqueued_at

    def _drop_dead_heads(self, key: Key) -> None:
        lane = self._lanes[key]
        while lane and lane[0].state == DONE:
            lane.popleft()
            self._dead -= 1
        if not lane:
            del self._lanes[key]

    def _sweep(self) -> None:
        self._lanes = {
            key: living
            for key, lane in self._lanes.items()
            if (living := deque(request for request in lane if request.state != DONE))
        }
        self._dead = 0

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"<WaitingQueue {self.count} waiting in {len(self._lanes)} lanes>"
