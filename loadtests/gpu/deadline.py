"""The time that a whole run may take: asked before each step, and a hard stop at its end."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Final

__all__ = ["Deadline", "OutOfTime"]

#: What ends after the time was over gets so long, again and again: a process that a broken device holds
#: can't even be killed, and nobody shall wait for it.
_AGAIN_S: Final = 15.0


class OutOfTime(BaseException):
    """The run's time is over: whatever was under way ends, and what there is is told.

    No ``Exception``, so that who excuses a failed case doesn't excuse this.
    """


class Deadline:
    """``limit_s`` from now. ``kept_s`` of it are for what comes last."""

    def __init__(self, limit_s: float) -> None:
        self._end_s = time.monotonic() + limit_s
        self.kept_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return self._end_s - time.monotonic()

    def has_room_for(self, seconds: float) -> bool:
        """Whether ``seconds`` are left beside those that are kept."""
        return self.left_s - self.kept_s >= seconds

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise ``OutOfTime`` inside the block when the time is over, and each 15 s from then.

        In the main thread alone.
        """

        def over(number: int, frame: FrameType | None) -> None:
            raise OutOfTime(f"the time was over ({self.left_s:+.0f} s)")

        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, self.left_s), _AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
