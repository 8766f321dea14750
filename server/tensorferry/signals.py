"""Signals to stop: the first asks to drain, a second, on purpose, to end at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["ECHO_S", "StopSignals"]

#: Signals that come so soon after the first are the same wish: `timeout` sends one to the process and
#: one to its group, and a terminal's Ctrl-C may be passed on by a parent.
ECHO_S: Final = 0.1


class StopSignals:
    """Counts the wishes to stop. ``now`` tells seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._first_at: float | None = None

    def is_second(self) -> bool | None:
        """Take in a signal: whether it is a second wish; None if it is only the first one's echo."""
        now = self._now()
        if self._first_at is None:
            self._first_at = now
            return False
        return True if now - self._first_at >= ECHO_S else None
