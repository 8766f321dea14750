"""Virtual time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

__all__ = ["VirtualClock"]


class _Call:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()


class VirtualClock:
    """A ``tensorferry.clock.Clock`` whose time stands still between calls of ``advance``.

    There is no event loop behind it: ``tick`` runs what was scheduled for the end of the tick,
    and ``advance`` moves through the timers in order, each at its own instant.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._soon: list[_Call] = []
        self._timers: list[tuple[float, int, _Call]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Return the virtual instant in seconds."""
        return self._now

    def call_soon(self, callback: Callable[[], None]) -> _Call:
        """Call back at the next ``tick``."""
        call = _Call(callback)
        self._soon.append(call)
        return call

    def call_at(self, when: float, callback: Callable[[], None]) -> _Call:
        """Call back when virtual time reaches ``when``."""
        call = _Call(callback)
        heapq.heappush(self._timers, (max(when, self._now), next(self._order), call))
        return call

    def tick(self) -> None:
        """End the tick: run what was scheduled for it, and what that schedules."""
        while self._soon:
            self.tick_once()

    def tick_once(self) -> None:
        """Run what was scheduled for the end of this tick; what that schedules is for the next."""
        calls, self._soon = self._soon, []
        for call in calls:
            call.fire()

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass within a callback, as a loop that is busy does: no timer fires meanwhile."""
        self._now += seconds

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, firing each timer at its instant."""
        end = self._now + seconds
        self.tick()
        while self._timers and self._timers[0][0] <= end:
            when, _, call = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            call.fire()
            self.tick()
        self._now = max(self._now, end)

    def next_timer(self) -> float | None:
        """Return the instant of the next armed timer, or None."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None
