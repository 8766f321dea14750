"""Streams that take as long as they are told to, and run nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.model import RunResult
from tensorferry.simulation.curves import RunTime, no_time
from tensorferry.simulation.loop import SimulatedLoop

__all__ = ["LoopCosts", "Machine", "SimulatedExecutor"]

_RESULT: Final = RunResult([], 0, 0, 0)

#: The share of what a batch's copies took that the average of them takes over.
_GAIN: Final = 0.1


@dataclass(frozen=True, slots=True)
class LoopCosts:
    """What the event loop's thread itself spends, in seconds: for each request on the way in
    (decoding, submitting), on the way out (encoding, sending), and for handing a batch over."""

    request_s: float = 0.0
    reply_s: float = 0.0
    batch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the model runs: on ``streams``, or (``inline``) on the loop's own thread.

    A batch on a stream is copied in, run and copied out, and each of the three is done for one batch at a
    time. So a stream that takes more than one batch, up to ``slots``, does them side by side.
    """

    run_s: RunTime
    streams: int = 1
    inline: bool = False
    costs: LoopCosts = LoopCosts()
    slots: int = 1
    copy_in_s: RunTime = no_time
    copy_out_s: RunTime = no_time


class _Stream:
    """One stream's batches: when each is expected to begin, as a pool would have it, and where they are."""

    __slots__ = ("_in_free_at", "_run_free_at", "held", "number", "out_free_at")

    def __init__(self, number: int) -> None:
        self.number = number
        #: Batches with the instants since when the stream is theirs alone, the one that runs first.
        self.held: deque[tuple[Batch, float]] = deque()
        self._in_free_at = self._run_free_at = self.out_free_at = 0.0

    def take(self, batch: Batch, now: float, copy_in_s: float, run_s: float, copy_out_s: float) -> float:
        """Add a batch; return the instant at which it will be done."""
        batch.behind = self.held[-1][0] if self.held else None
        self.held.append((batch, now))
        self._in_free_at = max(now, self._in_free_at) + copy_in_s
        self._run_free_at = max(self._in_free_at, self._run_free_at) + run_s
        self.out_free_at = max(self._run_free_at, self.out_free_at) + copy_out_s
        return self.out_free_at

    def give(self, now: float) -> None:
        """Remove the batch that is done; the next has the stream from ``now`` on."""
        self.held.popleft()
        if self.held:
            self.held[0] = self.held[0][0], now

    def expected_end(self, now: float, expected: Callable[[int], float]) -> float:
        """Return when all that it has is expected to be done; what is overdue, at any moment."""
        end = self.held[0][1]
        for batch, _ in self.held:
            end = max(now, end + expected(batch.rows))
        return end


class SimulatedExecutor:
    """The ``Executor`` of a ``Machine``. Keeps each batch's instants, rows and seconds."""

    def __init__(self, machine: Machine, loop: SimulatedLoop) -> None:
        self.idle = 1 if machine.inline else machine.streams
        self.spare = 0
        self.started_at: list[float] = []
        self.ended_at: list[float] = []
        self.rows: list[int] = []
        #: Of the runs alone, without copies.
        self.run_s: list[float] = []
        #: Called, if set, with each batch as it starts.
        self.on_start: Callable[[Batch], None] | None = None
        self._machine = machine
        self._loop = loop
        self._streams = [_Stream(number) for number in range(self.idle)]
        self._free = list(self._streams)
        self._lead_s = 0.0

    def follow_at(self, expected: Callable[[int], float]) -> float:
        """Return when a batch in a spare place is best started: so that its run can follow the one before."""
        now, slots = self._loop.time, self._machine.slots
        ends = [each.expected_end(now, expected) for each in self._streams if 0 < len(each.held) < slots]
        return min(ends, default=math.inf) - self._lead_s

    def start(self, batch: Batch, done: Callable[[BatchOutcome], None]) -> None:
        """Run a batch on an idle stream, or behind what the stream runs that is free next."""
        if self.on_start is not None:
            self.on_start(batch)
        loop, machine = self._loop, self._machine
        seconds = machine.run_s(batch.rows, loop.time)
        loop.time += machine.costs.batch_s
        now = loop.time
        self.started_at.append(now)
        self.rows.append(batch.rows)
        self.run_s.append(seconds)
        stream = self._place()
        copy_in_s, copy_out_s = machine.copy_in_s(batch.rows, now), machine.copy_out_s(batch.rows, now)
        self._lead_s += (_GAIN if self._lead_s else 1.0) * (copy_in_s + copy_out_s - self._lead_s)
        ended_at = stream.take(batch, now, copy_in_s, seconds, copy_out_s)
        self.ended_at.append(ended_at)
        if machine.inline:
            loop.time = ended_at
            self._finish(batch, done, stream)
        else:
            loop.call_at(ended_at, partial(self._finish, batch, done, stream))

    def _place(self) -> _Stream:
        slots = self._machine.slots
        if self.idle:
            self.idle -= 1
            self.spare += slots - 1
            return self._free.pop()
        self.spare -= 1
        return min(
            (each for each in self._streams if len(each.held) < slots), key=lambda each: each.out_free_at
        )

    def _finish(self, batch: Batch, done: Callable[[BatchOutcome], None], stream: _Stream) -> None:
        stream.give(self._loop.time)
        if stream.held:
            self.spare += 1
        else:
            self.spare -= self._machine.slots - 1
            self.idle += 1
            self._free.append(stream)
        done(BatchOutcome(batch, _RESULT, None, stream.number))
