"""What became of a batch: why it left, how long it was held and run. Its requests share the one record."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["DEADLINE", "DEPARTURES", "FULL", "HOLD", "IDLE", "PREFERRED", "RETRY", "BatchRecord"]

#: Nobody else would fit.
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
    instants of the engine's clock in seconds. The three durations are the run's own, in nanoseconds, and
    ``stream`` its number. ``trace`` is for who traces: what several requests of a batch share.
    """

    __slots__ = (
        "ended_at",
        "hold_s",
        "infer_ns",
        "input_ns",
        "output_ns",
        "reason",
        "requests",
        "rows",
        "started_at",
        "stream",
        "trace",
    )

    def __init__(self, rows: int, requests: int, reason: str, hold_s: float, started_at: float) -> None:
        self.rows = rows
        self.requests = requests
        self.reason = reason
        self.hold_s = hold_s
        self.started_at = started_at
        self.ended_at = started_at
        self.input_ns = 0
        self.infer_ns = 0
        self.output_ns = 0
        self.stream = 0
        self.trace: Any = None

    @property
    def run_s(self) -> float:
        """Seconds of the run: forming inputs, the model, and its outputs."""
        return (self.input_ns + self.infer_ns + self.output_ns) / 1e9

    def __repr__(self) -> str:
        return f"<BatchRecord {self.rows} rows of {self.requests} requests, {self.reason}>"
