"""What the bare loops use of ``torch.cuda``, done at once on the CPU: a rehearsal runs their every line.

No order between streams is needed where each thing is done when it is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Pretend"]


class _Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self._at_s = time.perf_counter()

    def record(self, stream: Any = None) -> None:  # noqa: ANN401 - as torch's
        self._at_s = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is ever open."""

    def elapsed_time(self, end: _Event) -> float:
        return max(1e-6, (end._at_s - self._at_s) * 1000)


class _Stream:
    def wait_event(self, event: _Event) -> None:
        """What came before is done."""

    def synchronize(self) -> None:
        """Nothing is ever open."""


class _Graph:
    """Runs nothing when it is replayed: its capture has."""

    def replay(self) -> None:
        """The outputs are there."""

    def pool(self) -> None:
        """There is no pool."""


class Pretend:
    """In place of the module ``torch.cuda``."""

    Event = _Event
    Stream = _Stream
    CUDAGraph = _Graph

    @staticmethod
    @contextmanager
    def stream(stream: _Stream) -> Iterator[None]:
        """Run what is inside, on no stream."""
        yield

    @staticmethod
    @contextmanager
    def graph(graph: _Graph, pool: Any = None, stream: _Stream | None = None) -> Iterator[None]:  # noqa: ANN401
        """Run what is inside, which a capture wouldn't."""
        yield
