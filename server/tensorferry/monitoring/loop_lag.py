"""How late the event loop is: a timer every 100 ms, and the distribution of how late it fires.

What holds up the timer holds up every call as long: a model that runs on the loop, a long scrape, a
process that gets no CPU.
"""

from __future__ import annotations

from typing import Final

from tensorferry.batching.histogram import Histogram
from tensorferry.clock import Clock, Timer

__all__ = ["LoopLag"]

_EVERY_S: Final = 0.1


class LoopLag:
    """Counts from ``start`` to ``stop``. Used on the loop thread."""

    def __init__(self, clock: Clock) -> None:
        #: Seconds that the timer fired after its time.
        self.histogram = Histogram()
        self._clock = clock
        self._due = 0.0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Arm the timer."""
        self._due = self._clock.now() + _EVERY_S
        self._timer = self._clock.call_at(self._due, self._fire)

    def stop(self) -> None:
        """Disarm it. Harmless when it isn't armed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self.histogram.add(max(0.0, self._clock.now() - self._due))
        self.start()
