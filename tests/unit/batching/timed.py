"""A batcher whose runs take virtual time: as long as a function of their rows says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.support import Station, StrictExecutor

from tensorferry.batching.batch import Batch
from tensorferry.batching.batcher import BatchOutcome
from tensorferry.errors import TensorferryError
from tensorferry.model import RunResult
from tensorferry.testing.puppet import echo

Seconds = Callable[[int], float]


class TimedExecutor(StrictExecutor):
    """Streams that take ``run_s(rows)`` seconds of virtual time for a batch."""

    def __init__(self, clock, run_s: Seconds, streams: int) -> None:
        super().__init__(clock, streams=streams)
        self.run_s = run_s
        self._free = list(range(streams))

    def start(self, batch: Batch, done) -> None:
        stream = self._free.pop(0)

        def finish() -> None:
            self._running.remove((batch, done))
            self._free.append(stream)
            done(BatchOutcome(batch, RunResult(echo(batch.inputs()), 1, 2, 3), None, stream))

        super().start(batch, done)
        self._clock.call_at(self._clock.now() + self.run_s(batch.rows), finish)


class TimedStation(Station):
    """A station with such an executor, whose run times the batcher knows, unless not ``is_known``."""

    def __init__(
        self, spec=None, run_s: Seconds = lambda _: 1.0, *, streams=1, is_known=True, **more
    ) -> None:
        seed = {1 << n: run_s(1 << n) for n in range(8)} if is_known else None
        super().__init__(spec, run_s=seed, run_times=run_s, streams=streams, **more)

    def make_executor(self, *, run_times: Seconds, streams: int) -> TimedExecutor:
        return TimedExecutor(self.clock, run_times, streams)

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
