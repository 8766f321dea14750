"""Writes log lines to a file descriptor on a thread of its own.

Whoever logs only appends to a queue: standard error may be a pipe that nobody reads, a file on a full disk,
or closed, and none of that may hold up the event loop or raise into it. What doesn't fit in the queue, and
what can't be written, is dropped and counted. The order of lines is kept.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["MAX_BYTES", "MAX_LINES", "Writer"]

#: What may wait to be written. Lines that aren't errors leave a quarter of it to those that are.
MAX_LINES: Final = 10_000
MAX_BYTES: Final = 4 * 2**20
_ORDINARY_SHARE: Final = 0.75

#: Lines are written together up to this size, in bytes: a pipe takes so much in one piece (POSIX promises
#: 512, Linux has 4096), so the lines of several processes on one pipe don't mix.
_PIECE_BYTES: Final = 4096

_POLL_MS: Final = 1000


def _nothing() -> float | None:
    return None


class Writer:
    """``fd`` is where it writes; None: nowhere, all lines are dropped.

    ``idle`` is called on the thread between pieces; it may write lines, and returns in how many seconds it
    is to be called again if nothing happens (None: only then).
    """

    def __init__(
        self,
        fd: int | None,
        idle: Callable[[], float | None] = _nothing,
        max_lines: int = MAX_LINES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._fd = fd
        self._idle = idle
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        # A Condition's own lock is reentrant, as it must be: finalisers log, too.
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._is_resting = False
        self._is_torn = False
        #: How many lines were lost here, ever.
        self.dropped = 0
        #: Whether the last line that was tried could be written.
        self.is_well = True

    def write(self, line: str, is_urgent: bool = False) -> None:
        """Take a line, without its newline. Never waits, never raises."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        share = 1.0 if is_urgent else _ORDINARY_SHARE
        with self._changed:
            if (
                len(self._queue) >= share * self._max_lines
                or self._bytes + len(data) > share * self._max_bytes
                or not self._has_thread()
            ):
                self.dropped += 1
                return
            self._queue.append(data)
            self._bytes += len(data)
            if self._is_resting:
                self._changed.notify_all()

    def poke(self) -> None:
        """See to it that ``idle`` is called soon."""
        with self._changed:
            self._is_resting = False
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was taken is written, or ``timeout_s`` at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(self._is_done, timeout_s)

    def _is_done(self) -> bool:
        return self._thread is None or (not self._queue and self._is_resting)

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads just now
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            again_in_s = self._idle()
            with self._changed:
                if not self._queue:
                    self._is_resting = True
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._queue or not self._is_resting, again_in_s)
                    self._is_resting = False
                piece, count = self._take()
            if count:
                self._send(piece, count)

    def _take(self) -> tuple[bytes, int]:
        """Remove lines from the queue that go out in one piece, at least one if there is any."""
        lines: list[bytes] = []
        size = 0
        while self._queue and (not lines or size + len(self._queue[0]) <= _PIECE_BYTES):
            line = self._queue.popleft()
            lines.append(line)
            size += len(line)
        self._bytes -= size
        return b"".join(lines), len(lines)

    def _send(self, piece: bytes, count: int) -> None:
        if self._is_torn:
            piece = b"\n" + piece  # the half line before it isn't to swallow this one
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._put(rest) :]
        except OSError:
            written = len(piece) - len(rest)
            self._is_torn = self._is_torn if not written else piece[written - 1] != ord("\n")
            self.is_well = False
            with self._changed:
                self.dropped += count
        else:
            self._is_torn = False
            self.is_well = True

    def _put(self, data: memoryview) -> int:
        """Write some of the data and return how many bytes; 0 if it wasn't the time.

        Raises:
            OSError: it can't be written.
        """
        if self._fd is None:
            raise OSError("standard error is closed")
        try:
            return os.write(self._fd, data)
        except BlockingIOError:  # somebody with whom it is shared has made it non-blocking
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.poll(_POLL_MS)
            return 0
