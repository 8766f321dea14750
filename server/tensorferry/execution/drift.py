"""Where a model should run, as its run time drifts: on the loop thread, or on a stream of its own.

``DriftWatch`` is told how long each batch ran, and says when the model should move. It knows
neither threads nor a clock, so every rule below is tested on scripted times.

The estimate is an exponentially weighted mean of the runs' CPU time, each counted as 5 ms at most:
one odd run can't move a model, however long it took, and four in a row can. CPU time, because
beside a busy model a run also waits for its core, which says nothing of the model.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BLOCKED_S",
    "INLINE_BELOW_S",
    "LEAVE_ABOVE_S",
    "MAX_INLINE_S",
    "RETURN_BELOW_S",
    "DriftWatch",
]

#: A batch that runs for less than this runs on the loop thread: two GIL hand-overs between busy
#: threads cost 0.1-0.2 ms, and a worker thread gave 0.8 of the inline throughput on one core.
INLINE_BELOW_S: Final = 150e-6
#: A model whose mean is above this leaves the loop thread, and one whose mean is below the second
#: may come back: a factor of four between them, so that no steady load makes it go to and fro. Both
#: are above the limit for a warm run, because between other work a run is cold: an MLP of 0.03 ms
#: took 0.3 ms of CPU time beside a busy neighbour, and a thread only made its calls 0.1 ms longer.
LEAVE_ABOVE_S: Final = 1e-3
RETURN_BELOW_S: Final = LEAVE_ABOVE_S / 4
#: No model is put on the loop thread whose slowest batch was measured above this, not even one
#: that is told to run there: every other call waits for such a run. It is of the order of the
#: 0.8 ms for which a batch may gather, and less than half of the 5 ms for which one Python thread
#: may keep another waiting anyway.
MAX_INLINE_S: Final = 2e-3
#: Two runs in a row that held the loop for this long: the model leaves at once.
BLOCKED_S: Final = 20e-3

#: The weight of the newest run, and what it counts as at most.
_WEIGHT: Final = 1 / 16
_MOST_COUNTED_S: Final = 5e-3
_BLOCKED_RUNS: Final = 2
#: How long a model's mean must have been low before it comes back. Each time, it takes twice as
#: long as the time before, up to the second figure.
_FIRST_QUIET_S: Final = 5.0
_MOST_QUIET_S: Final = 640.0


class DriftWatch:
    """The running estimate for one model on one CPU stream. Used on the loop thread.

    With ``stays`` the model's owner has asked for the loop thread: only runs that block it
    (``BLOCKED_S``) move the model, and it doesn't come back.

    ``may_return`` is whether its slowest batch was measured, and below ``MAX_INLINE_S``.
    """

    def __init__(self, is_inline: bool, may_return: bool, stays: bool = False) -> None:
        self.is_inline = is_inline
        #: The mean of the latest runs in seconds, as described above. It starts where it speaks for
        #: staying, so that the first run alone decides nothing.
        self.mean_s = _first_mean_s(is_inline)
        self._stays = stays
        self._may_return = may_return and not stays
        self._blocked = 0
        self._quiet_s = _FIRST_QUIET_S
        self._quick_since: float | None = None

    def saw(self, run_s: float, cpu_s: float, now: float) -> bool:
        """Take in one batch that ended at ``now``; return whether the model should move.

        ``run_s`` is the time that passed, which on the loop thread is how long the loop was held,
        and ``cpu_s`` the thread's CPU time, both in seconds; a negative ``cpu_s`` wasn't measured.
        The caller moves the model then, and says so with ``moved``.
        """
        if cpu_s >= 0.0:
            counted = cpu_s if cpu_s < _MOST_COUNTED_S else _MOST_COUNTED_S
            self.mean_s += (counted - self.mean_s) * _WEIGHT
        return self._should_leave(run_s) if self.is_inline else self._should_return(now)

    def moved(self) -> None:
        """Note that the model is at the other place now, and begin to measure anew."""
        if self.is_inline:
            self._quick_since = None
        else:
            self._quiet_s = min(2 * self._quiet_s, _MOST_QUIET_S)
        self.is_inline = not self.is_inline
        self.mean_s = _first_mean_s(self.is_inline)
        self._blocked = 0

    def _should_leave(self, run_s: float) -> bool:
        self._blocked = self._blocked + 1 if run_s >= BLOCKED_S else 0
        if self._blocked >= _BLOCKED_RUNS:
            return True
        return not self._stays and self.mean_s > LEAVE_ABOVE_S

    def _should_return(self, now: float) -> bool:
        if not self._may_return:
            return False
        if self.mean_s >= RETURN_BELOW_S:
            self._quick_since = None
            return False
        if self._quick_since is None:
            self._quick_since = now
        return now - self._quick_since >= self._quiet_s


def _first_mean_s(is_inline: bool) -> float:
    return 0.0 if is_inline else LEAVE_ABOVE_S
