"""One run: a schedule of requests through the real ``Batcher``, on a simulated machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensorferry.batching.batcher import Admission, Batcher
from tensorferry.batching.pending import NEVER, Pending
from tensorferry.errors import Overloaded, TensorferryError
from tensorferry.model import BatchingSpec, Bound, ModelSpec
from tensorferry.simulation.arrivals import Instants
from tensorferry.simulation.executor import Machine, SimulatedExecutor
from tensorferry.simulation.loop import SimulatedLoop
from tensorferry.simulation.result import ANSWERED, FAILED, REFUSED, Result

__all__ = ["Simulation", "Traffic", "simulate", "specification"]

#: The server's own default (``max_queue_size``).
_MAX_QUEUE_SIZE: Final = 4096
_MAX_BYTES: Final = 2**62
_NO_PARTS: Final[tuple[bytes, ...]] = ()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests: when they come, and what each is.

    The arrays have one entry for each of ``arrivals``. ``rows`` (integers) may be one number for
    all. ``deadlines_s`` (float64) is seconds from the arrival, inf for none; ``priorities``
    (integers) are levels, 0 for the model's default.
    """

    arrivals: Instants
    rows: int | NDArray[np.int64] = 1
    deadlines_s: Instants | None = None
    priorities: NDArray[np.int64] | None = None


def specification(max_batch_size: int, batching: BatchingSpec | None = None) -> ModelSpec:
    """Return the specification of a model that is only ever simulated."""
    return ModelSpec(
        "simulated", 1, Path(), max_batch_size=max_batch_size, batching=batching or BatchingSpec()
    )


class _Simulated(Pending):
    __slots__ = ("index",)
    index: int


class Simulation:
    """A batcher, the loop that it is on, the machine it has, and the requests that come.

    ``measured`` is what warm-up has found out about run times, as seconds by rows; None: nothing,
    so that the batcher has to learn them all.
    """

    def __init__(
        self,
        spec: ModelSpec,
        machine: Machine,
        traffic: Traffic,
        measured: Mapping[int, float] | None = None,
        max_queue_size: int = _MAX_QUEUE_SIZE,
    ) -> None:
        self.loop = SimulatedLoop()
        self.executor = SimulatedExecutor(machine, self.loop)
        self.batcher = Batcher(
            spec, self.executor, self.loop, Admission(_MAX_BYTES), max_queue_size, measured
        )
        self._streams = self.executor.idle
        self._costs = machine.costs
        self._traffic = traffic
        # Lists: reading and writing single entries of arrays takes three times as long.
        self._arrivals: list[float] = traffic.arrivals.tolist()
        count = len(self._arrivals)
        self._rows = np.broadcast_to(np.asarray(traffic.rows), count).tolist()
        self._deadlines = None if traffic.deadlines_s is None else traffic.deadlines_s.tolist()
        self._priorities = None if traffic.priorities is None else traffic.priorities.tolist()
        self._bounds = {rows: Bound([], rows, ()) for rows in set(self._rows)}
        self._spent_s = [0.0] * count
        self._outcomes = bytearray(count)

    def run(self) -> Result:
        """Let everything come and wait for every outcome. Once."""
        self.loop.run(self._arrivals, self._arrive)
        return Result(
            arrivals=self._traffic.arrivals,
            rows=np.asarray(self._rows, dtype=np.int64),
            outcomes=np.frombuffer(self._outcomes, dtype=np.uint8),
            spent_s=np.asarray(self._spent_s),
            batch_started_at=np.asarray(self.executor.started_at),
            batch_ended_at=np.asarray(self.executor.ended_at),
            batch_rows=np.asarray(self.executor.rows, dtype=np.int64),
            batch_run_s=np.asarray(self.executor.run_s),
            streams=self._streams,
            statistics=self.batcher.statistics(),
        )

    def _arrive(self, index: int) -> None:
        deadline = NEVER if self._deadlines is None else self._arrivals[index] + self._deadlines[index]
        priority = 0 if self._priorities is None else self._priorities[index]
        request = _Simulated(self._bounds[self._rows[index]], self._done, deadline, _NO_PARTS, 0.0, priority)
        request.index = index
        loop = self.loop
        loop.time += self._costs.request_s
        try:
            self.batcher.submit(request)
        except TensorferryError as error:
            request.error = error
            self._done(request)

    def _done(self, request: Pending) -> None:
        assert isinstance(request, _Simulated), "every request here is ours"
        index = request.index
        loop = self.loop
        loop.time += self._costs.reply_s
        self._spent_s[index] = loop.time - self._arrivals[index]
        if request.error is None:
            self._outcomes[index] = ANSWERED
        else:
            self._outcomes[index] = REFUSED if isinstance(request.error, Overloaded) else FAILED


def simulate(
    spec: ModelSpec,
    machine: Machine,
    traffic: Traffic,
    measured: Mapping[int, float] | None = None,
    max_queue_size: int = _MAX_QUEUE_SIZE,
) -> Result:
    """Simulate; see ``Simulation``."""
    return Simulation(spec, machine, traffic, measured, max_queue_size).run()
