"""Requests that may share a batch, in the order in which they leave: earliest ``due`` first.

Most come in that order, and appending one costs nothing; one that is more urgent than the last
is put in its place by bisection. Those that got their outcome while they waited are passed over,
and dropped when they reach the front or when the queue sweeps. What left isn't kept: the request
holds its tensors.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator
from operator import attrgetter
from typing import Final

from tensorferry.batching.pending import WAITING, Pending

__all__ = ["Lane"]

_due: Final = attrgetter("due")


class Lane:
    """A sorted queue. Requests with equal ``due`` keep the order in which they came."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        #: Read and appended to by the queue alone, on every request's way.
        # A list: taking from its front moves the rest, 8 bytes each, which for thousands takes
        # less than a microsecond; a deque can't be bisected.
        self.items: list[Pending] = []

    def push(self, request: Pending) -> None:
        """Put a waiting request in its place."""
        items = self.items
        if not items or request.due >= items[-1].due:
            items.append(request)
        else:
            insort(items, request, key=_due)

    def head(self) -> Pending | None:
        """Return the most urgent request; None if nothing waits."""
        items = self.items
        if items and items[0].state == WAITING:
            return items[0]
        for index, request in enumerate(items):
            if request.state == WAITING:
                del items[:index]
                return request
        items.clear()
        return None

    def is_last(self, due: float) -> bool:
        """Whether a new request due then would leave after all that are here."""
        return not self.items or self.items[-1].due <= due

    def rows_before(self, due: float) -> int:
        """Return the rows that leave before a new request due then. Costs a pass."""
        before = self.items[: bisect_right(self.items, due, key=_due)]
        return sum([request.bound.rows for request in before if request.state == WAITING])

    def take(self, max_rows: int) -> list[Pending]:
        """Remove and return what fits ``max_rows`` rows, in order; at least one if anything waits."""
        taken: list[Pending] = []
        rows = end = 0
        for request in self.items:
            if request.state == WAITING:
                rows += request.bound.rows
                if rows > max_rows and taken:
                    break
                taken.append(request)
            end += 1
        del self.items[:end]
        return taken

    def remove(self, request: Pending) -> None:
        """Remove a request that waits here. Costs a pass."""
        self.items.remove(request)

    def sweep(self) -> None:
        """Drop those that got their outcome. Costs a pass."""
        self.items = [request for request in self.items if request.state == WAITING]

    def __iter__(self) -> Iterator[Pending]:
        return (request for request in self.items if request.state == WAITING)
