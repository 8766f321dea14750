"""A tracer on virtual time whose traces stay here."""

from __future__ import annotations

from random import Random

from tests.unit.support import bytes_spec

from tensorferry.batching.batch import Batch
from tensorferry.batching.pending import Pending
from tensorferry.batching.record import HOLD, BatchRecord
from tensorferry.model import RunResult
from tensorferry.tensors import Tensor
from tensorferry.testing.clock import VirtualClock
from tensorferry.tracing.tracer import Tracer

SAMPLED = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = SAMPLED[:-1] + b"0"


def batch_record(started_at: float, ended_at: float) -> BatchRecord:
    """Three requests of 5 rows together, held for 0.25 s, that ran 0.6 s on stream 1."""
    spec = bytes_spec()
    requests = [
        Pending(spec.bind([Tensor("x", "UINT8", (rows, 1), bytes(rows))]), print) for rows in (2, 2, 1)
    ]
    result = RunResult([], input_ns=100_000_000, infer_ns=400_000_000, output_ns=100_000_000)
    return BatchRecord(Batch(spec, requests, started_at, HOLD, 0.25), result, ended_at, 1)


class KeptTraces:
    """A sink that keeps what it gets, a list for each time."""

    def __init__(self) -> None:
        self.sent = []
        self.dropped = 0
        self.is_closed = False

    def send(self, traces) -> None:
        self.sent.append(list(traces))

    async def close(self) -> None:
        self.is_closed = True


class Bench:
    """A tracer and what it gave away."""

    def __init__(self, rate=1, max_per_s=1e9) -> None:
        self.clock = VirtualClock()
        self.sink = KeptTraces()
        self.tracer = Tracer(self.sink, self.clock, rate, max_per_s, Random(5))

    def sampled(self, calls=1, traceparent=None, model="") -> int:
        """How many of so many calls are traced."""
        return sum(self.tracer.sample(traceparent, None, model) is not None for _ in range(calls))
