"""A batcher whose runs take virtual time: as long as a function of their rows says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from tests.unit.support import Station, StrictExecutor

from tensorferry.batching.batch import Batch
from tensorferry.errors import TensorferryError

Seconds = Callable[[int], float]


class TimedExecutor(StrictExecutor):
    """Streams that take ``run_s(rows)`` seconds of virtual time for a batch.

    With several ``slots`` a batch runs when the one before it has ended, if it left ``lead_s`` before.
    """

    def __init__(self, clock, run_s: Seconds, streams: int, slots: int = 1, lead_s: float = 0.0) -> None:
        super().__init__(clock, streams=streams, slots=slots)
        self.run_s = run_s
        self.lead_s = lead_s
        #: When each batch that runs or follows will have ended, and when it began or is to begin.
        self.ends: dict[Batch, float] = {}
        self.begins: dict[Batch, float] = {}

    def follow_at(self, expected: Seconds) -> float:
        """As a pool does: when the stream that is free first is expected to be, less the lead."""
        ends = [self.free_at(held, expected) for held in self._held if 0 < len(held) < self._slots]
        return min(ends, default=math.inf) - self.lead_s

    def free_at(self, held: list[Batch], expected: Seconds) -> float:
        end = self.begins[held[0]]
        for batch in held:
            end = max(end + expected(batch.rows), self._clock.now())
        return end

    def start(self, batch: Batch, done) -> None:
        super().start(batch, done)
        now = self._clock.now()
        self.begins[batch] = now
        if batch.behind is not None:
            self.begins[batch] = max(self.ends[batch.behind], now + self.lead_s)
        self.ends[batch] = self.begins[batch] + self.run_s(batch.rows)
        self._clock.call_at(self.ends[batch], lambda: self.finish(batch=batch))


class TimedStation(Station):
    """A station with such an executor, whose run times the batcher knows, unless not ``is_known``."""

    def __init__(
        self, spec=None, run_s: Seconds = lambda _: 1.0, *, streams=1, is_known=True, **more
    ) -> None:
        seed = {1 << n: run_s(1 << n) for n in range(8)} if is_known else None
        super().__init__(spec, run_s=seed, run_times=run_s, streams=streams, **more)

    def make_executor(self, *, run_times: Seconds, **executor) -> TimedExecutor:
        return TimedExecutor(self.clock, run_times, **executor)

    @property
    def refusals(self) -> dict[str, int]:
        """The counts of refusals, but for those that are 0."""
        return {reason: count for reason, count in self.batcher.statistics().refusals.items() if count}


def refusal(station: Station, *args, **request) -> TensorferryError:
    """Submit a request that is refused; return the error."""
    called = []
    with pytest.raises(TensorferryError) as caught:
        station.submit(*args, on_done=called.append, **request)
    assert called == [], "a refused request is the caller's again"
    return caught.value
