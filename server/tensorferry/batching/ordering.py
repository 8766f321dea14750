"""Answers in the order of the requests, for models that ask for it (``preserve_ordering``).

Every outcome counts, an error too: a caller that matches answers by position would take the
wrong one otherwise. So a request that is cancelled or expires hears of it in its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tensorferry.batching.pending import DONE, Pending

__all__ = ["InOrder"]


class InOrder:
    """Holds back the outcomes of later requests until the earlier ones have theirs."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line: deque[tuple[Pending, Callable[[Pending], None]]] = deque()

    def join(self, request: Pending) -> None:
        """Take a place in the line. From here on the line calls the request's ``on_done``."""
        self._line.append((request, request.on_done))
        request.on_done = self._advance

    def _advance(self, _: Pending) -> None:
        line = self._line
        while line and line[0][0].state == DONE:
            request, on_done = line.popleft()
            on_done(request)

    def __len__(self) -> int:
        return len(self._line)
