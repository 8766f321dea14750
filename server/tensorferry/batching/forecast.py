"""When would a request be answered that came now?

The forecast plays the queue forward: streams become free when their batches are expected to end,
and take what waits in batches as large as fit and are in time for the first in line. A batch is
expected to have grown by what still arrives until it leaves, at the rate of the last tens of ms:
without that, those who arrive first after a departure would be let in, and the batch would have
to leave small for their sake. So under overload it is they who are refused, and batches are full.

What runs take beyond the expected, now and then, is covered by a margin that is learned from
answers that came late, and added where a promise is made.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Final

from tensorferry.batching.batch import Batch
from tensorferry.batching.run_times import RunTimes

__all__ = ["Forecast"]

#: The share of the capacity from which on late work costs others their time.
_OVERLOAD: Final = 0.9

#: The arrival rate follows the last tens of milliseconds: a burst must count while it lasts.
_RATE_WINDOW_S: Final = 0.05
#: ... and no more whole runs than this: a queue of short runs fills in a few milliseconds.
_RATE_RUNS: Final = 16

#: By how much a lower priority may stretch what a higher one waits and runs.
_STRETCH: Final = 1.5
#: Rates of the levels above are counted over this long, so that a few a second count as well.
_ABOVE_WINDOW_S: Final = 1.0
#: The share of a batch that the lowest level is taken to get, however much comes above it.
_LEAST_ROOM: Final = 0.02
#: Steps after which the size of a batch at a given rate is near its fixed point.
_SETTLED_AFTER: Final = 4

#: While nobody asks for a forecast, one run in so many is learned from, after the first ones: it
#: costs as much as two requests, and batches may be of one.
_SAMPLE: Final = 8

#: The margin is what keeps the first request of this share of batches in time: it grows by a step
#: with each that is late and shrinks by a 49th of one with each that isn't (stochastic
#: approximation; Robbins and Monro, 1951). A step is this share of the objective.
_IN_TIME: Final = 0.98
_MARGIN_STEP: Final = 0.02
#: Beyond this share of the objective it is the machine's hiccups, which no margin covers.
_MOST_MARGIN: Final = 0.3


class Forecast:
    """What one model's streams do, and are expected to do. Used by its batcher alone.

    ``seed`` maps rows to the seconds that warm-up measured. ``objective_s`` is 0.0 for none.
    """

    def __init__(self, max_rows: int, streams: int, seed: Mapping[int, float], objective_s: float) -> None:
        self._max_rows = self._most_rows = max_rows
        self._row_limits: dict[int, int] = {}  # by stream, of those whose device ran out of memory
        self._streams = max(1, streams)
        self._seed = seed
        self._times: dict[int, RunTimes] = {}
        self._slowest = RunTimes(max_rows, seed)
        #: Expected seconds of the largest batch; 0.0 while nothing is known.
        self.whole_s = self._slowest(max_rows)
        #: Batches that run: when each started. One that follows another has that one's end for its start,
        #: once it has come: what is learned of it is the time for which the stream is taken by it alone.
        self.runs: dict[Batch, float] = {}
        #: By the batch that runs before it, each that follows another. The batcher adds.
        self.followers: dict[Batch, Batch] = {}
        # The last batch of a lone stream that others waited behind: it holds the stream until the
        # next one starts. (rows, started_at, finished_at)
        self._last: tuple[int, float, float] | None = None
        #: Rows that were asked for since the last batch started, admitted or not. The batcher adds.
        self.arrived_rows = 0
        self._rate = 0.0
        self._rate_at = 0.0
        #: Rows of levels above the lowest since the count began. The batcher adds.
        self.above_rows = 0
        self._above_rate = 0.0
        self._above_at = 0.0
        self._shared: int | None = None  # settled once for each batch that starts
        self._step_s = _MARGIN_STEP * objective_s
        self._most_margin_s = _MOST_MARGIN * objective_s
        self.margin_s = 0.0
        #: Whether anybody asks: there is an objective, levels, or a request came with a deadline. Until then
        #: a batch is little looked at.
        self.is_needed = False
        self._unasked = 0

    @property
    def expected(self) -> RunTimes:
        """The run times of the slowest stream: a promise must hold whichever stream takes the batch."""
        return self._slowest

    def drained_s(self, waiting: int) -> float:
        """Return a bound on the seconds until all is done that runs or waits, and one batch more."""
        return self.whole_s * (2.0 + len(self.followers) + waiting)

    @property
    def is_overloaded(self) -> bool:
        """Whether rows come faster than the streams can run them in whole batches, or nearly so."""
        return self._rate * self.whole_s > _OVERLOAD * self._max_rows * self._streams

    def shared_rows(self, now: float) -> int:
        """Return how many rows a batch may have that carries the lowest level.

        Whoever comes while it runs waits for it, and then runs with more of its kind. So it may
        take ``_STRETCH`` times what a batch takes of the levels above alone, at the rate at which
        their rows come: with that their wait and their run are stretched by no more. Without such
        rows lately, batches are as large as they can be.
        """
        if self._shared is None:
            self._shared = self._shared_rows(now)
        return self._shared

    def _shared_rows(self, now: float) -> int:
        passed_s = now - self._above_at
        if passed_s >= _ABOVE_WINDOW_S:
            self._above_rate = self.above_rows / passed_s
            self.above_rows = 0
            self._above_at = now
        rate = max(self._above_rate, self.above_rows / _ABOVE_WINDOW_S)
        expected = self._slowest
        if not rate or not expected.is_known:
            return self._max_rows
        alone = 1.0
        for _ in range(_SETTLED_AFTER):
            alone = min(self._max_rows, max(1.0, rate / self._streams * expected(int(alone))))
        return max(1, expected.most_rows(_STRETCH * expected(int(alone)), self._max_rows))

    def started(self, batch: Batch, now: float) -> None:
        """Note that a batch has been handed to a stream. While nobody asks, noting it in ``runs`` will do."""
        if self._last is not None:
            rows, started_at, _ = self._last
            self._last = None
            self._learn(0, rows, now - started_at)
        self.runs[batch] = now
        self._shared = None
        passed_s = now - self._rate_at
        if passed_s > 0.0:
            window_s = min(_RATE_WINDOW_S, _RATE_RUNS * self.whole_s)
            weight = 1.0 - math.exp(-passed_s / window_s) if window_s else 1.0
            self._rate += weight * (self.arrived_rows / passed_s - self._rate)
            self._rate_at = now
            self.arrived_rows = 0

    def finished(self, batch: Batch, stream: int, now: float, is_good: bool, waiting: int) -> None:
        """Note that a stream has brought a batch back, and learn from one that ran well.

        With others ``waiting`` behind it, a lone stream is taken until the next batch starts: the
        hand-over, the replies, and on the loop thread the reading of new requests are part of
        what a batch costs, and of what those behind it wait for.
        """
        started_at = self.runs.pop(batch)
        if not is_good:
            return
        if not self.is_needed:
            self._unasked += 1
            if self._unasked > _SAMPLE and self._unasked % _SAMPLE:
                return
        if waiting and self._streams == 1 and self.is_needed:
            self._last = batch.rows, started_at, now
        else:
            self._learn(stream, batch.rows, now - started_at)

    def handed_on(self, batch: Batch, now: float) -> bool:
        """Note that a batch has come back, before ``finished``; return whether another followed it."""
        follower = self.followers.pop(batch, None)
        if follower is None:
            return False
        follower.behind = None
        self.runs[follower] = now
        return True

    def rested(self) -> None:
        """Note that nothing was started though a stream is idle."""
        if self._last is not None:
            rows, started_at, finished_at = self._last
            self._last = None
            self._learn(0, rows, finished_at - started_at)

    def limit_rows(self, stream: int, row_limit: int) -> int:
        """Note how many rows a stream's device has memory for; return the most that a batch may have.

        A ``row_limit`` of 0 means that it has memory for all.
        """
        limits = self._row_limits
        if limits.get(stream, 0) != row_limit:
            limits[stream] = row_limit
            self._max_rows = min([self._most_rows, *filter(None, limits.values())])
            self._shared = None
            self.whole_s = self._slowest(self._max_rows)
        return self._max_rows

    def free_at(self, now: float, follow_at: float = math.inf) -> float:
        """Return when the first of the streams that run is expected to be through with all that it has.

        Not before ``follow_at``, unless that is infinite: the stream that is free first may have no place
        to spare, and the one for which ``follow_at`` is right comes later.
        """
        free_at = min(self._ends(now), default=now)
        return free_at if follow_at == math.inf else max(free_at, follow_at)

    def _learn(self, stream: int, rows: int, seconds: float) -> None:
        times = self._times.get(stream)
        if times is None:
            times = self._times[stream] = self._slowest if not self._times else self._another()
        times.observe(rows, seconds)
        if len(self._times) > 1:
            self._slowest = max(self._times.values(), key=self._whole_batch)
        self.whole_s = self._slowest(self._max_rows)

    def answered(self, late: bool) -> None:
        """Learn from a batch under an objective: whether its first request was answered late."""
        if late:
            self.margin_s = min(self._most_margin_s, self.margin_s + self._step_s * _IN_TIME)
        else:
            self.margin_s = max(0.0, self.margin_s - self._step_s * (1.0 - _IN_TIME))

    def completion(self, now: float, rows_ahead: int, rows: int, first_limit: float) -> float:
        """Return when a request of ``rows`` would be answered that came now, behind ``rows_ahead``.

        ``first_limit`` is by when the first in line must be answered; a batch is no larger than
        that allows. Returns ``now`` while nothing is known of the model's run time.
        """
        expected = self._slowest
        if not expected.is_known:
            return now
        free = self._ends(now)
        free += [now] * (self._streams - len(free))
        heapq.heapify(free)
        start = free[0]
        size = expected.most_rows(first_limit - start, self._max_rows) or self._max_rows
        before = rows_ahead
        if before and before + rows > size:
            heapq.heapreplace(free, start + expected(size))
            before = max(0, before - size)
            size = self._max_rows
            # The streams take whole batches in turns: all rounds but the last at once.
            rounds = max(0, -(-(before + rows) // size) - 1) // self._streams
            free = [each + rounds * self.whole_s for each in free]
            before = max(0, before - rounds * self._streams * size)
            while before and before + rows > size:
                heapq.heapreplace(free, free[0] + self.whole_s)
                before = max(0, before - size)
            start = free[0]
        joining = self._rate * (start - now)
        return start + expected(max(rows, min(size, int(before + rows + joining))))

    def lowest_completion(self, now: float, rows_ahead: int, rows: int) -> float:
        """Return the same for a request of the lowest of several levels.

        Its batches hold ``shared_rows``, and rows of the levels above that have yet to come take
        their share of each.
        """
        if not self._slowest.is_known:
            return now
        shared = self.shared_rows(now)
        run_s = self._slowest(max(rows, shared))
        rate = max(self._above_rate, self.above_rows / _ABOVE_WINDOW_S)
        room = max(_LEAST_ROOM * shared, shared - rate * run_s / self._streams)
        before = math.ceil((rows_ahead + rows) / room) - 1
        ends = sorted(self._ends(now))
        free = [now] * (self._streams - len(ends)) + ends
        rounds, stream = divmod(before, self._streams)
        return free[stream] + (rounds + 1) * run_s

    def _ends(self, now: float) -> list[float]:
        """Return when each stream's last batch is expected to end; an overdue one at any moment."""
        expected = self._slowest
        if not self.followers:
            return [max(now, started_at + expected(batch.rows)) for batch, started_at in self.runs.items()]
        ends: dict[Batch | None, float] = {}
        for batch, started_at in self.runs.items():  # each comes after the one that it follows
            start = ends.pop(batch.behind, started_at)
            ends[batch] = max(now, start + expected(batch.rows))
        return list(ends.values())

    def _whole_batch(self, times: RunTimes) -> float:
        return times(self._max_rows)

    def _another(self) -> RunTimes:
        return RunTimes(self._most_rows, self._seed)

    def __repr__(self) -> str:
        return f"<Forecast {self._slowest!r}, {self._rate:.0f} rows/s, margin {self.margin_s * 1e3:.2f} ms>"
