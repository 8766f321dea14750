"""Which batch is where, in a pool whose streams take several at once: those on GPUs.

Used on the loop thread alone. A stream's batches run one after another, in the order in which they were
started; what overlaps is the copying of one with the run of another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.clock import LoopClock
from tensorferry.device import DeviceRun
from tensorferry.errors import DeviceLost, OutOfDeviceMemory, TensorferryError
from tensorferry.execution.device_counts import DeviceCounts
from tensorferry.execution.launching import DeviceStatus, LaunchingModel
from tensorferry.execution.outcomes import Done
from tensorferry.execution.stream import Stream
from tensorferry.model import Model

__all__ = ["Lines"]

#: The lead follows the last ten batches or so: it depends on their rows.
_LEAD_WEIGHT: Final = 0.1

_NS: Final = 1e-9


@dataclass(slots=True)
class _Flight:
    """A batch that was started; ``begun_at`` is when that was, or when the batch before it ended if later."""

    batch: Batch
    begun_at: float


@dataclass(slots=True)
class _Line:
    """One stream, and its batches in flight, the oldest first. ``device`` is "" on the CPU."""

    stream: Stream
    number: int
    places: int
    device: str
    flights: deque[_Flight] = field(default_factory=deque)
    #: How long before the end of the batch before it one is best started, in seconds: what its inputs take
    #: to reach the device, and what that batch's outputs take to come back, when the device is free already.
    lead_s: float = 0.0
    row_limit: int = 0

    def ends_at(self, now: float, expected: Callable[[int], float]) -> float:
        """Return when the last batch in flight is expected to end; what is overdue ends at any moment."""
        end = now
        for number, flight in enumerate(self.flights):
            run_s = expected(flight.batch.rows)
            end = end + run_s if number else max(now, flight.begun_at + run_s)
        return end

    def staged(self, run: DeviceRun) -> None:
        """Learn the lead: an average of the latest batches'."""
        lead_s = (run.staged_ns + run.copy_in_ns + run.copy_out_ns) * _NS
        self.lead_s += (lead_s - self.lead_s) * (_LEAD_WEIGHT if self.lead_s else 1.0)


class Lines:
    """The streams of one pool. Each takes as many batches as its model has slots; one on the CPU takes one.

    ``models`` are those of ``streams``, in order. ``now`` is in seconds, on a monotonic scale of its own.
    """

    def __init__(
        self, streams: Sequence[Stream], models: Sequence[Model], now: Callable[[], float] = LoopClock.now
    ) -> None:
        self._now = now
        self._lines: list[_Line] = []
        statuses: list[DeviceStatus] = []
        for number, (stream, model) in enumerate(zip(streams, models, strict=True)):
            if isinstance(model, LaunchingModel):
                statuses.append(model.status)
                self._lines.append(_Line(stream, number, model.slots, model.status.device))
            else:
                self._lines.append(_Line(stream, number, 1, ""))
        self._idle = list(self._lines)
        self._expected: Callable[[int], float] = _unknown
        #: What each stream on a GPU has there.
        self.devices: Final = tuple(statuses)
        #: What the batches did, by device.
        self.counts: Final = {status.device: DeviceCounts() for status in statuses}
        #: Why no batch can run any more; "" while its devices are well.
        self.lost = ""
        #: Called once, with the reason, when a device is lost.
        self.on_lost: Callable[[str], None] | None = None

    @property
    def idle(self) -> int:
        """Streams with nothing in flight."""
        return len(self._idle)

    @property
    def spare(self) -> int:
        """Places behind a batch in flight."""
        return sum([line.places - len(line.flights) for line in self._lines if line.flights])

    def follow_at(self, expected: Callable[[int], float]) -> float:
        """Return from when on a batch in a spare place loses nothing; see ``Executor``.

        The least over the streams with a spare place of the expected end of the last batch there, less
        the stream's lead.
        """
        self._expected = expected
        now = self._now()
        return min(
            [line.ends_at(now, expected) - line.lead_s for line in self._spare_lines()], default=math.inf
        )

    def start(self, batch: Batch, done: Done) -> None:
        """Run a batch on the stream that became idle last, else behind the one that is to end first."""
        now = self._now()
        line = self._idle.pop() if self._idle else self._soonest(now)
        batch.behind = line.flights[-1].batch if line.flights else None
        line.flights.append(_Flight(batch, now))
        line.stream.start(batch, partial(self._finished, line, done))

    def close(self) -> None:
        """Have no place for a batch any more. None may be in flight."""
        self._idle.clear()

    def _spare_lines(self) -> list[_Line]:
        return [line for line in self._lines if 0 < len(line.flights) < line.places]

    def _soonest(self, now: float) -> _Line:
        """Return where a batch would begin first: behind the fewest, while no run times are known."""

        def order(line: _Line) -> tuple[float, int, float]:
            return line.ends_at(now, self._expected), len(line.flights), line.flights[0].begun_at

        return min(self._spare_lines(), key=order)

    def _finished(self, line: _Line, done: Done, outcome: BatchOutcome) -> None:
        line.flights.popleft()
        outcome.stream = line.number  # run times are learned by stream: devices differ
        if line.flights:
            line.flights[0].begun_at = self._now()
        else:
            self._idle.append(line)
        if outcome.result is not None and outcome.result.device is not None:
            self._count(line, outcome.result.device)
        elif outcome.error is not None:
            self._failed(line, outcome.error)
        done(outcome)

    def _count(self, line: _Line, run: DeviceRun) -> None:
        line.staged(run)
        line.row_limit = run.row_limit
        counts = self.counts[line.device]
        counts.ran(run)
        limits = [each.row_limit for each in self._lines if each.device == line.device and each.row_limit]
        counts.row_limit = min(limits, default=0)

    def _failed(self, line: _Line, error: TensorferryError) -> None:
        if isinstance(error, OutOfDeviceMemory) and line.device in self.counts:
            self.counts[line.device].out_of_memory += 1
        if isinstance(error, DeviceLost) and not self.lost:
            self.lost = str(error)
            if self.on_lost is not None:
                self.on_lost(self.lost)


def _unknown(_rows: int) -> float:
    return 0.0
