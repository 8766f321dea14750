"""Whether to ask a server that has stopped answering: counts and a time, no clock."""

from __future__ import annotations

from math import inf

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Closed: everything passes. Open: one probe in each interval passes.

    ``failures_to_open`` failures in a row open it; a success closes it. Times are seconds of one
    clock that never goes back.
    """

    __slots__ = ("_failures", "_failures_to_open", "_next_probe_s", "_probe_interval_s")

    def __init__(self, failures_to_open: int, probe_interval_s: float) -> None:
        if failures_to_open < 1:
            raise ValueError(f"failures_to_open is {failures_to_open}; at least 1")
        if not 0 < probe_interval_s < inf:
            raise ValueError(f"probe_interval_s is {probe_interval_s}; it must be above 0 and finite")
        self._failures_to_open = failures_to_open
        self._probe_interval_s = probe_interval_s
        self._failures = 0
        self._next_probe_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether only probes pass."""
        return self._failures >= self._failures_to_open

    def allows(self, now_s: float) -> bool:
        """Return whether a call may go out now; when open, saying yes uses the interval up."""
        if not self.is_open:
            return True
        if now_s < self._next_probe_s:
            return False
        self._next_probe_s = now_s + self._probe_interval_s
        return True

    def succeeded(self) -> None:
        """The server answered, whatever it said."""
        self._failures = 0

    def failed(self, now_s: float) -> None:
        """The server didn't answer."""
        self._failures += 1
        if self._failures == self._failures_to_open:
            self._next_probe_s = now_s + self._probe_interval_s
