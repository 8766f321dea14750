"""What became of a batch: why it left, how long it was held and run. Its requests share the one record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tensorferry.model import RunResult

if TYPE_CHECKING:
    from tensorferry.batching.batch import Batch

__all__ = ["DEADLINE", "DEPARTURES", "FULL", "HOLD", "IDLE", "PREFERRED", "RETRY", "BatchRecord"]

#: Nobody else would fit; of one row at most, somebody waited who didn't.
FULL: Final = "full"
#: It had one of the model's preferred sizes.
PREFERRED: Final = "preferred"
#: A stream was idle, and nothing asks to wait for company.
IDLE: Final = "idle"
#: The model's own queue delay was over.
HOLD: Final = "hold"
#: Waiting longer, or leaving with more rows, would have made a passenger late.
DEADLINE: Final = "deadline"
#: A part of a batch that the model failed on.
RETRY: Final = "retry"

#: Why batches leave.
DEPARTURES: Final = (FULL, PREFERRED, IDLE, HOLD, DEADLINE, RETRY)


class BatchRecord:
    """One batch that ran well. Made once for each; a request holds it until its caller is answered.

    ``rows`` and ``requests`` count those that left together, ``reason`` is one of DEPARTURES. ``hold_s``
    is how long the first of them waited while a stream was idle; ``started_at`` and ``ended_at`` are
    instants of the engine's clock in seconds. ``result`` has the run's own durations, and ``stream`` its
    number. ``trace`` is for who traces: what several requests of a batch share.
    """

    __slots__ = (
        "ended_at",
        "hold_s",
        "reason",
        "requests",
        "result",
        "rows",
        "started_at",
        "stream",
        "trace",
    )

    def __init__(self, batch: Batch, result: RunResult, ended_at: float, stream: int) -> None:
        self.rows = batch.rows
        self.requests = len(batch.requests)
        self.reason = batch.reason
        self.hold_s = batch.hold_s
        self.started_at = batch.started_at
        self.ended_at = ended_at
        self.result = result
        self.stream = stream
        self.trace: Any = None

    @property
    def input_ns(self) -> int:
        """How long the inputs took to form."""
        return self.result.input_ns

    @property
    def infer_ns(self) -> int:
        """How long the model ran."""
        return self.result.infer_ns

    @property
    def output_ns(self) -> int:
        """How long its outputs took."""
        return self.result.output_ns

    @property
    def run_s(self) -> float:
        """Seconds of the three together."""
        result = self.result
        return (result.input_ns + result.infer_ns + result.output_ns) / 1e9

    def __repr__(self) -> str:
        return f"<BatchRecord {self.rows} rows of {self.requests} requests, {self.reason}>"
