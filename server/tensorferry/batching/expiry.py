"""Deadlines of what waits: one heap, one timer.

The place of a request that leaves the queue stays in the heap, empty, until it reaches the top or
the heap is swept. The heap is swept when most of it is such places, so it never holds much more
than what waits, and the cost per request stays logarithmic whatever the load.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

from tensorferry.batching.pending import NEVER, WAITING, Pending
from tensorferry.clock import Clock, Timer

__all__ = ["Expiry"]

#: This many remains are cheaper to keep than to sweep.
_SLACK: Final = 256


class Expiry:
    """Calls back for each request that still waits when its deadline comes."""

    __slots__ = ("_clock", "_handle", "_heap", "_next_at", "_on_expired", "_order")

    def __init__(self, clock: Clock, on_expired: Callable[[Pending], None]) -> None:
        self._clock = clock
        self._on_expired = on_expired
        # [deadline, order, request or None]. Requests don't compare, so equal deadlines need an order.
        self._heap: list[list[Any]] = []
        self._order = 0
        self._handle: Timer | None = None
        self._next_at = NEVER

    def watch(self, request: Pending, waiting: int) -> None:
        """Watch a request that has a deadline. ``waiting`` is how many requests wait now."""
        heap = self._heap
        if len(heap) > 2 * waiting + _SLACK:
            self._heap = heap = [each for each in heap if each[2] is not None]
            heapq.heapify(heap)
        if request.entry is not None:
            self.forget(request)
        self._order += 1
        request.entry = [request.deadline, self._order, request]
        heapq.heappush(heap, request.entry)
        if request.deadline < self._next_at:
            self._arm(request.deadline)

    @staticmethod
    def forget(request: Pending) -> None:
        """Stop watching a request that waits no longer. Its place in the heap keeps nothing of it."""
        if request.entry is not None:
            request.entry[2] = None
            request.entry = None

    def close(self) -> None:
        """Stop the timer: until a deadline that may be a day away it would keep all of this alive."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._next_at = NEVER
        self._heap.clear()

    def _arm(self, deadline: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._next_at = deadline
        self._handle = self._clock.call_at(deadline, self._fire)

    def _fire(self) -> None:
        self._handle = None
        self._next_at = NEVER
        now = self._clock.now()
        # Taken off first: the callback may bring new requests, or end others.
        expired: list[Pending] = []
        heap = self._heap
        while heap and (heap[0][2] is None or heap[0][0] <= now):
            request = heapq.heappop(heap)[2]
            if request is not None:
                expired.append(request)
        if heap:
            self._arm(heap[0][0])
        for request in expired:
            if request.state == WAITING:
                self.forget(request)
                self._on_expired(request)

    def __len__(self) -> int:
        return len(self._heap)
