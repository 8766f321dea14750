"""Streams that take as long as they are told to, and run nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.model import RunResult
from tensorferry.simulation.curves import RunTime
from tensorferry.simulation.loop import SimulatedLoop

__all__ = ["LoopCosts", "Machine", "SimulatedExecutor"]

_RESULT: Final = RunResult([], 0, 0, 0)


@dataclass(frozen=True, slots=True)
class LoopCosts:
    """What the event loop's thread itself spends, in seconds: for each request on the way in
    (decoding, submitting), on the way out (encoding, sending), and for handing a batch over."""

    request_s: float = 0.0
    reply_s: float = 0.0
    batch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the model runs: on ``streams``, or (``inline``) on the loop's own thread."""

    run_s: RunTime
    streams: int = 1
    inline: bool = False
    costs: LoopCosts = LoopCosts()


class SimulatedExecutor:
    """The ``Executor`` of a ``Machine``. Keeps when each batch started, its rows and its seconds."""

    def __init__(self, machine: Machine, loop: SimulatedLoop) -> None:
        self.idle = 1 if machine.inline else machine.streams
        self.spare = 0
        self.started_at: list[float] = []
        self.rows: list[int] = []
        self.run_s: list[float] = []
        #: Called, if set, with each batch as it starts.
        self.on_start: Callable[[Batch], None] | None = None
        self._machine = machine
        self._loop = loop
        self._free = list(range(self.idle))

    def follow_at(self, expected: Callable[[int], float]) -> float:
        """Return when a batch in a spare place is best started: there is none."""
        return math.inf

    def start(self, batch: Batch, done: Callable[[BatchOutcome], None]) -> None:
        """Run a batch on an idle stream."""
        if self.on_start is not None:
            self.on_start(batch)
        loop, machine = self._loop, self._machine
        seconds = machine.run_s(batch.rows, loop.time)
        loop.time += machine.costs.batch_s
        self.started_at.append(loop.time)
        self.rows.append(batch.rows)
        self.run_s.append(seconds)
        stream = self._free.pop()
        self.idle -= 1
        if machine.inline:
            loop.time += seconds
            self._finish(batch, done, stream)
        else:
            loop.call_at(loop.time + seconds, partial(self._finish, batch, done, stream))

    def _finish(self, batch: Batch, done: Callable[[BatchOutcome], None], stream: int) -> None:
        self._free.append(stream)
        self.idle += 1
        done(BatchOutcome(batch, _RESULT, None, stream))
