"""How many log lines of one kind are written: a token bucket for each kind, in one number.

The bucket is the generic cell rate algorithm's form of it (ITU-T I.371, annex A): it keeps the instant
at which the lines so far would be paid for, and admits a line while that is at most a burst ahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["BURST", "MAX_KINDS", "REFUSED", "SAY_EVERY_S", "Kind", "Limiter"]

#: What tells one kind of line from another: logger, event, and the model that it is about, if any.
Kind = Hashable

#: A burst is so many times what is allowed in a second.
BURST: Final = 5.0

#: How often it is said of a kind how many of its lines were left out.
SAY_EVERY_S: Final = 5.0

#: More kinds than these share one bucket: whatever names them, they don't fill the memory.
MAX_KINDS: Final = 1024

REFUSED: Final = -1
_OTHERS: Final = ("other kinds of line",)


class _Bucket:
    """``paid_at`` as in the module; ``left_out`` since ``said_at``."""

    __slots__ = ("kind", "left_out", "paid_at", "said_at")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.paid_at = float("-inf")
        self.said_at = float("-inf")
        self.left_out = 0


class Limiter:
    """The buckets of all kinds. Used on any thread.

    ``lines_per_s`` > 0 is what each kind may write lastingly; ``now`` tells seconds. ``on_left_out`` is
    called when a kind begins to owe a word about lines that were left out.
    """

    def __init__(
        self,
        lines_per_s: float,
        now: Callable[[], float] = time.monotonic,
        on_left_out: Callable[[], None] = lambda: None,
    ) -> None:
        self._interval_s = 1.0 / lines_per_s
        # The first line is free: with it a bucket holds a burst, and never less than one line.
        self._ahead_s = max(BURST * lines_per_s - 1.0, 0.0) * self._interval_s
        self._now = now
        self._on_left_out = on_left_out
        # Reentrant: a finaliser that logs may run wherever memory is allocated, also in here.
        self._lock = threading.RLock()
        self._buckets: dict[Kind, _Bucket] = {}
        self._owing: dict[Kind, _Bucket] = {}
        self._pruned_at = float("-inf")
        #: How many lines were left out, of all kinds, ever.
        self.left_out = 0

    def admit(self, kind: Kind) -> int:
        """Return REFUSED if a line is to be left out, else how many were before it and are to be told of."""
        now = self._now()
        with self._lock:
            bucket = self._buckets.get(kind) or self._new(kind, now)
            if bucket.paid_at - now > self._ahead_s:
                begins = self._leave_out(bucket)
            else:
                bucket.paid_at = max(bucket.paid_at, now) + self._interval_s
                return self._owed(bucket, now) if bucket.left_out else 0
        if begins:
            self._on_left_out()
        return REFUSED

    def refuses(self, kind: Kind) -> bool:
        """Whether a line is to be left out, which counts as ``admit``; else ``admit`` is to be asked.

        For who wants to know it before making anything of a line: of a flood, this is all that is paid.
        """
        bucket = self._buckets.get(kind)
        if bucket is None or bucket.paid_at - self._now() <= self._ahead_s:
            return False
        with self._lock:
            begins = self._leave_out(bucket)
        if begins:
            self._on_left_out()
        return True

    def _leave_out(self, bucket: _Bucket) -> bool:
        self.left_out += 1
        bucket.left_out += 1
        if bucket.left_out > 1:
            return False
        self._owing[bucket.kind] = bucket
        return True

    def overdue(self) -> list[tuple[Kind, int]]:
        """Return the kinds of whose lines that were left out it may be told now, and how many they were."""
        now = self._now()
        with self._lock:
            told = [
                (each.kind, self._owed(each, now))
                for each in list(self._owing.values())
                if each.paid_at - now <= self._ahead_s
            ]
        return [(kind, count) for kind, count in told if count]

    @property
    def is_owing(self) -> bool:
        """Whether lines were left out of which nothing has been told yet."""
        return bool(self._owing)

    def _owed(self, bucket: _Bucket, now: float) -> int:
        """Settle what a bucket owes, if it is time to; telling of it costs as much as any line."""
        if now - bucket.said_at < SAY_EVERY_S:
            return 0
        count, bucket.left_out = bucket.left_out, 0
        bucket.said_at = now
        bucket.paid_at = max(bucket.paid_at, now) + self._interval_s
        self._owing.pop(bucket.kind, None)
        return count

    def _new(self, kind: Kind, now: float) -> _Bucket:
        if len(self._buckets) >= MAX_KINDS:
            self._prune(now)
        if len(self._buckets) >= MAX_KINDS:
            kind = _OTHERS
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = _Bucket(kind)
        return bucket

    def _prune(self, now: float) -> None:
        """Forget the buckets that are full and owe nothing: a new one would be just like them."""
        if now - self._pruned_at < 1.0:
            return  # looking through all of them for every line would cost more than the lines
        self._pruned_at = now
        for kind, bucket in list(self._buckets.items()):
            if bucket.paid_at <= now and not bucket.left_out and now - bucket.said_at >= SAY_EVERY_S:
                del self._buckets[kind]
