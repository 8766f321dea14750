"""Time for the batcher: an instant, the next loop tick, and a timer that keeps microseconds.

Production code reads time and arms timers only through a ``Clock``, so that tests run on virtual
time (``tensorferry.testing.VirtualClock``).

Why not the loop's own: uvloop's ``loop.time()`` and its timers count whole milliseconds, and
asyncio's selector rounds its timeouts up to one, so a queue delay of 300 us would be 0 or 1 ms.
``LoopClock`` arms one Linux timerfd per pending timer instead, which wakes the loop within some
tens of microseconds of the instant.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["Clock", "LoopClock", "Timer"]


class Timer(Protocol):
    """An armed timer or a scheduled call."""

    def cancel(self) -> None:
        """Make sure it doesn't fire any more. Harmless when it has."""
        ...


class Clock(Protocol):
    """What the batcher knows of time. Used on the loop thread."""

    def now(self) -> float:
        """Return the present instant in seconds, on a monotonic scale of its own."""
        ...

    def call_soon(self, callback: Callable[[], None]) -> Timer:
        """Call back at the end of this loop tick."""
        ...

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back once at the instant ``when``, or at once if it has passed."""
        ...


class LoopClock:
    """The clock of a running asyncio or uvloop loop. Create it on the loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spare: list[int] = []  # timerfds to use again
        self._armed: set[_Alarm] = set()

    now = staticmethod(time.monotonic)

    def call_soon(self, callback: Callable[[], None]) -> Timer:
        """Call back at the end of this loop tick."""
        return self._loop.call_soon(callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back once at the instant ``when``, or at once if it has passed."""
        if when <= time.monotonic():
            return self._loop.call_soon(callback)
        descriptor = self._spare.pop() if self._spare else _timerfd_create()
        return _Alarm(self, descriptor, when, callback)

    def close(self) -> None:
        """Cancel what is armed and close the descriptors."""
        for alarm in list(self._armed):
            alarm.cancel()
        while self._spare:
            os.close(self._spare.pop())


class _Alarm:
    """One armed timerfd, watched by the loop until it fires or is cancelled."""

    __slots__ = ("_callback", "_clock", "_descriptor")

    def __init__(self, clock: LoopClock, descriptor: int, when: float, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._descriptor = descriptor
        self._callback: Callable[[], None] | None = callback
        _timerfd_settime(descriptor, min(when, _FOREVER_S))
        clock._loop.add_reader(descriptor, self._fire)
        clock._armed.add(self)

    def _fire(self) -> None:
        callback = self._callback
        self.cancel()
        if callback is not None:
            callback()

    def cancel(self) -> None:
        if self._callback is None:
            return
        self._callback = None
        self._clock._armed.discard(self)
        self._clock._loop.remove_reader(self._descriptor)
        _timerfd_settime(self._descriptor, 0.0)  # disarms, and forgets an expiry not yet read
        self._clock._spare.append(self._descriptor)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


#: An instant that the kernel's 64-bit nanoseconds still hold, some thirty years away.
_FOREVER_S: Final = 1e9

_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_CLOEXEC: Final = os.O_CLOEXEC
_TFD_TIMER_ABSTIME: Final = 1

# Python has os.timerfd_create from 3.13 on; the calls are the same.
_libc: Final = ctypes.CDLL(None, use_errno=True)


def _timerfd_create() -> int:
    assert sys.platform == "linux", "timerfd is Linux's"
    descriptor = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return descriptor


def _timerfd_settime(descriptor: int, when: float) -> None:
    seconds = int(when)
    spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, int((when - seconds) * 1e9)))
    if _libc.timerfd_settime(descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
