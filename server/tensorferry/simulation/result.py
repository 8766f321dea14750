"""What became of the requests of a simulation, and what that says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensorferry.batching.statistics import BatcherStatistics
from tensorferry.simulation.arrivals import Instants

__all__ = ["ANSWERED", "FAILED", "REFUSED", "Result"]

#: Outcomes. FAILED: let in and ended without an answer (its deadline came).
ANSWERED: Final = 1
REFUSED: Final = 2
FAILED: Final = 3

#: After a burst: so many requests in a row, of which this share must be answered in time.
_SETTLED_REQUESTS: Final = 200
_SETTLED_SHARE: Final = 0.99


@dataclass(frozen=True, slots=True)
class Result:
    """One entry for each request, in the order of their arrival, and one for each batch, as started.

    ``spent_s`` (float64) is the time from the arrival to the outcome, ``outcomes`` (uint8) which it
    was. Instants and durations are in seconds.
    """

    arrivals: Instants
    rows: NDArray[np.int64]
    outcomes: NDArray[np.uint8]
    spent_s: Instants
    batch_started_at: Instants
    batch_ended_at: Instants
    batch_rows: NDArray[np.int64]
    batch_run_s: Instants
    streams: int
    statistics: BatcherStatistics

    @property
    def latencies_s(self) -> Instants:
        """Of the answered requests, in the order of their arrival."""
        latencies: Instants = self.spent_s[self.outcomes == ANSWERED]
        return latencies

    @property
    def refused_share(self) -> float:
        """Requests without an answer, as a share of all; nan if none came."""
        return float(np.mean(self.outcomes != ANSWERED)) if len(self.outcomes) else float("nan")

    @property
    def mean_wait_s(self) -> float:
        """From coming to the batcher until the batch starts, over the answered; nan if there are none."""
        count = self.statistics.success_count
        return self.statistics.queue_ns / 1e9 / count if count else float("nan")

    @property
    def mean_batch_rows(self) -> float:
        """Rows per batch; nan if nothing ran."""
        return float(self.batch_rows.mean()) if len(self.batch_rows) else float("nan")

    @property
    def utilisation(self) -> float:
        """For what share of the time, from first arrival to last batch's end, streams run; 0 to 1."""
        if not len(self.batch_rows):
            return 0.0
        last_end = float(self.batch_ended_at.max())
        seconds = last_end - min(float(self.arrivals[0]), float(self.batch_started_at[0]))
        return float(self.batch_run_s.sum()) / (seconds * self.streams)

    def settled(self, share: float) -> Result:
        """Leave out the first ``share`` of the requests, while queues fill, and the batches before the rest.

        ``statistics`` stay those of the whole run.
        """
        first = int(share * len(self.arrivals))
        if not first:
            return self
        batches = slice(int(np.searchsorted(self.batch_started_at, self.arrivals[first])), None)
        return replace(
            self,
            arrivals=self.arrivals[first:],
            rows=self.rows[first:],
            outcomes=self.outcomes[first:],
            spent_s=self.spent_s[first:],
            batch_started_at=self.batch_started_at[batches],
            batch_ended_at=self.batch_ended_at[batches],
            batch_rows=self.batch_rows[batches],
            batch_run_s=self.batch_run_s[batches],
        )

    def percentile_s(self, percent: float) -> float:
        """Return a percentile of the answered requests' latency; nan if there are none."""
        latencies = self.latencies_s
        return float(np.percentile(latencies, percent)) if len(latencies) else float("nan")

    def in_time(self, objective_s: float) -> NDArray[np.bool_]:
        """Say of each request whether it was answered within ``objective_s``."""
        # An instant is rounded when it is added up; a nanosecond late isn't late.
        good: NDArray[np.bool_] = (self.outcomes == ANSWERED) & (self.spent_s <= objective_s + 1e-9)
        return good

    def goodput(self, objective_s: float, start: float = 0.0, end: float = float("inf")) -> float:
        """Return the rows/s answered within ``objective_s``, of those that came in [start, end).

        inf for the objective: answered at all.
        """
        if not len(self.arrivals):
            return 0.0
        start, end = max(start, float(self.arrivals[0])), min(end, float(self.arrivals[-1]))
        chosen = (self.arrivals >= start) & (self.arrivals < end)
        rows = int(self.rows[chosen & self.in_time(objective_s)].sum())
        return rows / (end - start) if end > start else float("nan")

    def recovery_s(self, since: float, objective_s: float) -> float:
        """Return how long after the instant ``since`` requests were answered in time again.

        That is when the first of 200 in a row came of which 99 % were; inf if that never was.
        """
        first = int(np.searchsorted(self.arrivals, since))
        good = self.in_time(objective_s)[first:].astype(np.int64)
        if len(good) < _SETTLED_REQUESTS:
            return float("inf")
        total = np.concatenate(([0], np.cumsum(good)))
        settled = total[_SETTLED_REQUESTS:] - total[:-_SETTLED_REQUESTS] >= (
            _SETTLED_SHARE * _SETTLED_REQUESTS
        )
        if not settled.any():
            return float("inf")
        return max(0.0, float(self.arrivals[first + int(settled.argmax())]) - since)
