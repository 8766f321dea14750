"""An event loop on virtual time, fast enough for millions of requests.

It keeps the order of uvloop: first the calls that were put off to the end of the tick, then what
has arrived meanwhile, then timers. A callback that works for a while says so (``time += seconds``),
and what comes meanwhile waits, as behind a busy loop. An idle loop's tick takes no time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from tensorferry.batching.pending import NEVER

__all__ = ["SimulatedLoop"]


class _Call:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class SimulatedLoop:
    """A ``tensorferry.clock.Clock`` with a schedule of arrivals. Instants are in seconds from 0."""

    def __init__(self) -> None:
        #: The present instant. Callbacks add to it the seconds that they take.
        self.time = 0.0
        #: Called, if set, whenever nothing is left to do at an instant.
        self.on_sleep: Callable[[], None] | None = None
        self._soon: list[_Call] = []
        self._timers: list[tuple[float, int, _Call]] = []
        self._order = 0  # timers of one instant fire in the order in which they were armed

    def now(self) -> float:
        """Return the present instant in seconds."""
        return self.time

    def call_soon(self, callback: Callable[[], None]) -> _Call:
        """Call back at the end of this tick."""
        call = _Call(callback)
        self._soon.append(call)
        return call

    def call_at(self, when: float, callback: Callable[[], None]) -> _Call:
        """Call back at the instant ``when``, or as soon after as the loop is free."""
        call = _Call(callback)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, call))
        return call

    def run(self, arrivals: Sequence[float], arrive: Callable[[int], None]) -> None:
        """Call ``arrive`` with the index of each of ``arrivals`` (ascending) at its instant.

        Returns when all have arrived and nothing is scheduled any more.
        """
        instants = iter(arrivals)
        arrival = next(instants, NEVER)
        index = 0
        while True:
            if self._soon:
                calls, self._soon = self._soon, []
                for call in calls:
                    if call.callback is not None:
                        call.callback()
            elif not self._sleep_until(arrival):
                return
            now = self.time
            while arrival <= now:
                arrive(index)
                index += 1
                arrival = next(instants, NEVER)
            timers = self._timers
            while timers and timers[0][0] <= now:
                callback = heapq.heappop(timers)[2].callback
                if callback is not None:
                    callback()

    def _sleep_until(self, arrival: float) -> bool:
        """Go on to the next arrival or timer; return whether there is any."""
        if self.on_sleep is not None:
            self.on_sleep()
            if self._soon:
                return True
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        wake_at = timers[0][0] if timers and timers[0][0] < arrival else arrival
        if wake_at == NEVER:
            return False
        if wake_at > self.time:
            self.time = wake_at
        return True
